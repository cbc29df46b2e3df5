"""Local response normalisation on a GPU: across maps one pass each (lrn.cu), within maps as on the CPU.

What normalises within maps is one network's, which nobody trains here: it has no kernel of its own.
"""

import numpy as np

from refnet.backend import Array, empty
from refnet.kernels.launch import pack, start
from refnet.ops.lrn import check_backward, check_forward, lrn_within_backward, lrn_within_forward

__all__ = ["lrn_backward", "lrn_forward", "lrn_within_backward", "lrn_within_forward"]


def lrn_forward(
    x: Array, *, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> tuple[Array, Array]:
    """As `refnet.ops.lrn.lrn_forward`."""
    x = check_forward(x, n).ascontiguousarray(x)
    y, scale = empty(x.shape, x), empty(x.shape, x)
    v = pack(x.shape[-1], x, y, scale)
    start(
        "lrn", "lrn_forward", x.size // v, 1,
        x, y, scale, x.shape[-1], float(k), float(alpha), float(beta), np.int64(x.size // v),
        dtype=x.dtype, V=v, REACH=n // 2,
    )  # fmt: skip
    return y, scale


def lrn_backward(dy: Array, x: Array, scale: Array, *, n: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Array:
    """As `refnet.ops.lrn.lrn_backward`."""
    xp = check_backward(dy, x, scale, n)
    dy, x, scale = (xp.ascontiguousarray(each) for each in (dy, x, scale))
    dx = empty(dy.shape, dy)
    v = pack(dy.shape[-1], dy, x, scale, dx)
    start(
        "lrn", "lrn_backward", dy.size // v, 1,
        dy, x, scale, dx, dy.shape[-1], float(alpha), float(beta), np.int64(dy.size // v), np.int64(x.size),
        dtype=dy.dtype, V=v, REACH=n // 2,
    )  # fmt: skip
    return dx
