"""Fully connected layers on a GPU: whole products at the precision asked for."""

from refnet.backend import Array, empty
from refnet.kernels.launch import product
from refnet.ops.linear import check_forward, check_grads, check_transpose


def linear_forward(x: Array, w: Array, b: Array) -> Array:
    """As `refnet.ops.linear.linear_forward`."""
    check_forward(x, w, b)
    y = product(x, w, empty((len(x), w.shape[1]), x))
    y += b
    return y


def linear_transpose(r: Array, w: Array) -> Array:
    """As `refnet.ops.linear.linear_transpose`."""
    check_transpose(r, w)
    return product(r, w.T, empty((len(r), len(w)), r))


def linear_grads(x: Array, dy: Array) -> tuple[Array, Array]:
    """As `refnet.ops.linear.linear_grads`."""
    check_grads(x, dy)
    return product(x.T, dy, empty((x.shape[1], dy.shape[1]), x)), dy.sum(axis=0)
