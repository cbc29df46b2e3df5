"""Rectification: forward, in the gradient, and on its own on the way down."""

from types import ModuleType

from refnet.backend import Array, check_same_dtype, empty


def relu_forward(x: Array, *, out: Array | None = None) -> Array:
    """y = max(x, 0), into ``out`` (may be ``x``) where it is given (section 2; on the way down: section 2.1).

    Raises TypeError if ``x`` is neither float32 nor float64.
    """
    xp = check_same_dtype("relu_forward", x=x, out=out)
    return xp.maximum(x, 0, out=empty(x.shape, x) if out is None else out)


def relu_backward(dy: Array, y: Array) -> Array:
    """dx = dy where y > 0, else 0 (section 3).

    ``y`` is `relu_forward`'s output; a batch axis of length 1 serves every dy.

    Raises TypeError if dtypes or backends differ, ValueError if shapes do.
    """
    xp = check_backward(dy, y)
    passed = xp.greater(y, 0, out=empty(y.shape, y, bool))
    return xp.multiply(dy, passed, out=empty(dy.shape, dy))


def check_backward(dy: Array, y: Array) -> ModuleType:
    """The arrays' module, if `relu_backward` can be had of them."""
    xp = check_same_dtype("relu_backward", dy=dy, y=y)
    if dy.shape[1:] != y.shape[1:] or len(y) not in (1, len(dy)):
        raise ValueError(f"relu_backward: dy is {dy.shape} but y {y.shape}; they must have one shape")
    return xp
