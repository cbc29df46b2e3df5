"""Max pooling and unpooling on a GPU: one pass each (pool.cu)."""

from refnet.backend import Array, array_module, check_same_dtype, empty
from refnet.geometry import Window, pool_size
from refnet.kernels.launch import start
from refnet.ops.pool import check_unpool, check_window


def pool_forward(
    x: Array, *, size: int = 3, stride: int = 2, pad: int = 0, ceil: bool = True, switches: bool = True
) -> tuple[Array, Array | None]:
    """As `refnet.ops.pool.pool_forward`, to the bit."""
    xp = check_same_dtype("pool_forward", x=x)
    window = check_window("pool_forward", x.shape, Window(size, stride, pad), ceil)
    x, (n, h, w, c) = xp.ascontiguousarray(x), x.shape
    p, q = (pool_size(side, window, ceil=ceil) for side in (h, w))
    y, where = empty((n, p, q, c), x), empty((n, p, q, c) if switches else (0,), x, "uint8")
    start("pool", "pool_forward", p * q * c, n, x, y, where, n, h, w, c, p, q, *window, switches, dtype=x.dtype)
    return y, where if switches else None


def unpool(
    r: Array, switches: Array, *, size: int = 3, stride: int = 2, pad: int = 0, ceil: bool = True, hw: tuple[int, int]
) -> Array:
    """As `refnet.ops.pool.unpool`, to the bit: cells gather what their regions send, in the same order."""
    _, window = check_unpool(r, switches, Window(size, stride, pad), ceil, hw)
    xp, (n, p, q, c) = array_module(r), r.shape
    r, switches = xp.ascontiguousarray(r), xp.ascontiguousarray(switches)
    x = empty((n, *hw, c), r)
    shared = len(switches) == 1
    start("pool", "unpool", hw[0] * hw[1] * c, n, r, switches, x, n, *hw, c, p, q, *window, shared, dtype=r.dtype)
    return x
