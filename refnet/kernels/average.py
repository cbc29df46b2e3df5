"""Average pooling and its adjoint on a GPU: one pass each (average.cu)."""

from refnet.backend import Array, array_module, empty
from refnet.geometry import Window, pool_size
from refnet.kernels.launch import pack, start
from refnet.ops.average import check_average


def average_forward(
    x: Array, *, size: int, stride: int, pad: int = 0, ceil: bool = False, count_pad: bool = False
) -> Array:
    """As `refnet.ops.average.average_forward`: sums in the same order."""
    xp, window = check_average("average_forward", x, x.shape, Window(size, stride, pad), ceil)
    x, (n, h, w, c) = xp.ascontiguousarray(x), x.shape
    p, q = (pool_size(side, window, ceil=ceil) for side in (h, w))
    y = empty((n, p, q, c), x)
    v = pack(c, x, y)
    shape = n, h, w, c // v, p, q
    start("average", "average_forward", p * q * c // v, n, x, y, *shape, *window, count_pad, dtype=x.dtype, V=v)
    return y


def average_transpose(
    r: Array,
    *,
    size: int,
    stride: int,
    pad: int = 0,
    ceil: bool = False,
    count_pad: bool = False,
    hw: tuple[int, int],
) -> Array:
    """As `refnet.ops.average.average_transpose`: cells gather their shares in the same order."""
    _, window = check_average("average_transpose", r, (len(r), *hw, r.shape[-1]), Window(size, stride, pad), ceil)
    r, (n, p, q, c) = array_module(r).ascontiguousarray(r), r.shape
    x = empty((n, *hw, c), r)
    v = pack(c, r, x)
    shape = n, *hw, c // v, p, q
    over = hw[0] * hw[1] * c // v
    start("average", "average_transpose", over, n, r, x, *shape, *window, count_pad, dtype=r.dtype, V=v)
    return x
