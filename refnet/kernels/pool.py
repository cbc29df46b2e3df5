"""Max pooling and unpooling on a GPU: one pass each (pool.cu)."""

from refnet.backend import Array, array_module, check_same_dtype, empty
from refnet.geometry import Window, pool_size
from refnet.kernels.launch import pack, start
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
    v = pack(c, x, y, where)
    shape = n, h, w, c // v, p, q
    start("pool", "pool_forward", p * q * c // v, n, x, y, where, *shape, *window, switches, dtype=x.dtype, V=v)
    return y, where if switches else None


def unpool(
    r: Array, switches: Array, *, size: int = 3, stride: int = 2, pad: int = 0, ceil: bool = True, hw: tuple[int, int]
) -> Array:
    """As `refnet.ops.pool.unpool`, to the bit: cells gather what their regions send, in the same order."""
    _, window = check_unpool(r, switches, Window(size, stride, pad), ceil, hw)
    xp, (n, p, q, c) = array_module(r), r.shape
    r, switches = xp.ascontiguousarray(r), xp.ascontiguousarray(switches)
    x, shared = empty((n, *hw, c), r), len(switches) == 1
    v = pack(c, r, switches, x)
    shape = n, *hw, c // v, p, q
    start("pool", "unpool", hw[0] * hw[1] * c // v, n, r, switches, x, *shape, *window, shared, dtype=r.dtype, V=v)
    return x
