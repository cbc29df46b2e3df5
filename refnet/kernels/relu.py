"""Rectification on a GPU, and its mask: one pass each (relu.cu)."""

import numpy as np

from refnet.backend import Array, check_same_dtype, empty
from refnet.kernels.launch import pack, start
from refnet.ops.relu import check_backward


def relu_forward(x: Array, *, out: Array | None = None) -> Array:
    """As `refnet.ops.relu.relu_forward`; ``out`` must be C-ordered."""
    xp = check_same_dtype("relu_forward", x=x, out=out)
    x = xp.ascontiguousarray(x)
    y = empty(x.shape, x) if out is None else out
    v = pack(x.size, x, y)
    start("relu", "relu_forward", x.size // v, 1, x, y, np.int64(x.size // v), dtype=x.dtype, V=v)
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """As `refnet.ops.relu.relu_backward`."""
    xp = check_backward(dy, y)
    dy, y = xp.ascontiguousarray(dy), xp.ascontiguousarray(y)
    dx = empty(dy.shape, dy)
    v = pack(y.size, dy, y, dx)
    start("relu", "relu_backward", dy.size // v, 1, dy, y, dx, np.int64(dy.size // v), np.int64(y.size // v),
          dtype=dy.dtype, V=v)  # fmt: skip
    return dx
