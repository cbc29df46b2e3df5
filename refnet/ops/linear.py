"""Fully connected layers: forward, transposed, and the weight gradients."""

from types import ModuleType

from refnet.backend import Array, check_same_dtype, empty


def linear_forward(x: Array, w: Array, b: Array, *, out: Array | None = None) -> Array:
    """y[n, u] = b[u] + sum_i x[n, i] w[i, u] (section 2, layers 6 to 8).

    Parameters
    ----------
    x : (N, inputs), float32 or float64
    w : (inputs, units) of x's dtype
    b : (units,) of x's dtype
    out : (N, units) array that receives the result

    Raises
    ------
    ValueError
        If shapes do not fit each other.
    TypeError
        If dtypes or backends differ.
    """
    xp = check_forward(x, w, b, out)
    y = xp.matmul(x, w, out=empty((len(x), w.shape[1]), x) if out is None else out)
    y += b
    return y


def linear_transpose(r: Array, w: Array, *, out: Array | None = None) -> Array:
    """x[n, i] = sum_u r[n, u] w[i, u]: the adjoint of `linear_forward` without bias (section 2.1: filtering).

    Raises ValueError if r (N, units) and w (inputs, units) do not fit, TypeError if dtypes or backends differ.
    """
    xp = check_transpose(r, w, out)
    x = empty((len(r), len(w)), r) if out is None else out
    x[...] = xp.matmul(w, r.T).T  # a quarter faster than r w', for few rows of r
    return x


def linear_grads(x: Array, dy: Array, *, out: Array | None = None) -> tuple[Array, Array]:
    """Gradients of `linear_forward` (section 3): dw[i, u] = sum_n x[n, i] dy[n, u], db[u] = sum_n dy[n, u].

    ``dw`` goes into ``out`` where it is given.

    Raises ValueError if x (N, inputs) and dy (N, units) do not fit, TypeError if dtypes or backends differ.
    """
    xp = check_grads(x, dy, out)
    dw = empty((x.shape[1], dy.shape[1]), x) if out is None else out
    return xp.matmul(x.T, dy, out=dw), dy.sum(axis=0)


def check_forward(x: Array, w: Array, b: Array, out: Array | None = None) -> ModuleType:
    """The arrays' module, if `linear_forward` can be had of them."""
    xp = check_same_dtype("linear_forward", x=x, w=w, b=b, out=out)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0] or b.shape != (w.shape[1],):
        raise ValueError(f"linear_forward: x is {x.shape}, w {w.shape}, b {b.shape}; it needs (N, I), (I, U) and (U,)")
    return xp


def check_transpose(r: Array, w: Array, out: Array | None = None) -> ModuleType:
    """The arrays' module, if `linear_transpose` can be had of them."""
    xp = check_same_dtype("linear_transpose", r=r, w=w, out=out)
    if r.ndim != 2 or w.ndim != 2 or r.shape[1] != w.shape[1]:
        raise ValueError(f"linear_transpose: r is {r.shape} and w {w.shape}; it needs (N, U) and (I, U)")
    return xp


def check_grads(x: Array, dy: Array, out: Array | None = None) -> ModuleType:
    """The arrays' module, if `linear_grads` can be had of them."""
    xp = check_same_dtype("linear_grads", x=x, dy=dy, out=out)
    if x.ndim != 2 or dy.ndim != 2 or len(x) != len(dy):
        raise ValueError(f"linear_grads: x is {x.shape} and dy {dy.shape}; it needs (N, I) and (N, U)")
    return xp
