"""Local response normalisation on a GPU: one pass each (lrn.cu)."""

import numpy as np

from refnet.backend import Array, empty
from refnet.kernels.launch import start
from refnet.ops.lrn import check_backward, check_forward


def lrn_forward(
    x: Array, *, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> tuple[Array, Array]:
    """As `refnet.ops.lrn.lrn_forward`."""
    x = check_forward(x, n).ascontiguousarray(x)
    y, scale, count = empty(x.shape, x), empty(x.shape, x), np.int64(x.size)
    start(
        "lrn", "lrn_forward", x.size, 1,
        x, y, scale, x.shape[-1], n // 2, float(k), float(alpha), float(beta), count, dtype=x.dtype,
    )  # fmt: skip
    return y, scale


def lrn_backward(dy: Array, x: Array, scale: Array, *, n: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Array:
    """As `refnet.ops.lrn.lrn_backward`."""
    xp = check_backward(dy, x, scale, n)
    dy, x, scale = (xp.ascontiguousarray(each) for each in (dy, x, scale))
    dx, counts = empty(dy.shape, dy), (np.int64(dy.size), np.int64(x.size))
    start(
        "lrn", "lrn_backward", dy.size, 1,
        dy, x, scale, dx, dy.shape[-1], n // 2, float(alpha), float(beta), *counts, dtype=dy.dtype,
    )  # fmt: skip
    return dx
