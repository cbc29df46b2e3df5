"""Local response normalisation across maps: the paper's contrast normalisation."""

from types import ModuleType

from refnet.backend import Array, array_module, check_same_dtype, empty, zeros


def lrn_forward(
    x: Array, *, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> tuple[Array, Array]:
    """Divide each value by the energy of its neighbours in the ``n`` nearest maps (section 2, "normalise").

    scale[..., c] = k + alpha sum_{|d - c| <= (n - 1) / 2} x[..., d]^2 and y = x scale^-beta
    (Krizhevsky et al. 2012, section 3.3; maps that do not exist count as 0).

    ``alpha`` multiplies the *sum*. Caffe, PyTorch and ONNX multiply the mean: their alpha is ``n`` times this one.

    Parameters
    ----------
    x : (..., C) maps, float32 or float64
    n : odd number of maps in a neighbourhood
    k, alpha, beta : constants of the formula

    Returns
    -------
    y : like x
    scale : like x; `lrn_backward` needs it

    Raises
    ------
    ValueError
        If ``n`` is not odd and positive.
    TypeError
        If ``x`` is neither float32 nor float64.
    """
    xp = check_forward(x, n)
    scale = _neighbour_sum(x, x, n)
    scale *= alpha
    scale += k
    y = _power(scale, beta)
    return xp.divide(x, y, out=y), scale


def lrn_backward(dy: Array, x: Array, scale: Array, *, n: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Array:
    """Gradient of `lrn_forward` with respect to its input (section 3; the deconvnet leaves it out, section 2.1).

    dx[..., c] = dy[..., c] scale[..., c]^-beta
    - 2 alpha beta x[..., c] sum_{|d - c| <= (n - 1) / 2} dy[..., d] x[..., d] scale[..., d]^(-beta - 1).

    Parameters
    ----------
    dy : (..., C) gradient with respect to y, float32 or float64
    x, scale : input and scale of `lrn_forward`; a batch axis of length 1 serves every dy
    n, alpha, beta : as in `lrn_forward`

    Returns
    -------
    dx : like dy

    Raises
    ------
    ValueError
        If ``n`` is not odd and positive.
    TypeError
        If dtypes or backends differ.
    """
    xp = check_backward(dy, x, scale, n)
    dx = xp.divide(dy, _power(scale, beta), out=empty(dy.shape, dy))
    across = _neighbour_sum(xp.divide(dx, scale, out=empty(dy.shape, dy)), x, n)
    across *= x
    across *= 2 * alpha * beta
    dx -= across
    return dx


def _neighbour_sum(a: Array, b: Array, n: int) -> Array:
    """Sum of a b over the ``n`` nearest maps, fewer at both ends."""
    xp, c, reach = array_module(a), a.shape[-1], min(n // 2, a.shape[-1] - 1)
    # With ``reach`` zeros between one position's maps and the next one's, all positions are one long row.
    products = zeros((*a.shape[:-1], c + reach), a)
    xp.multiply(a, b, out=products[..., :c])
    row, total = products.reshape(-1), empty(products.shape, a)
    sums = total.reshape(-1)
    sums[...] = row
    for d in range(1, reach + 1):
        sums[d:] += row[:-d]
        sums[:-d] += row[d:]
    out = empty(a.shape, a)
    out[...] = total[..., :c]
    return out


def _power(a: Array, exponent: float) -> Array:
    """``a ** exponent``; the usual 0.75 as two square roots, several times faster than a general power."""
    xp, out = array_module(a), empty(a.shape, a)
    if exponent != 0.75:
        return xp.power(a, exponent, out=out)
    root = xp.sqrt(a, out=empty(a.shape, a))
    xp.sqrt(root, out=out)
    out *= root
    return out


def check_forward(x: Array, n: int) -> ModuleType:
    """The arrays' module, if `lrn_forward` can be had of them."""
    xp = check_same_dtype("lrn_forward", x=x)
    _check_odd("lrn_forward", n)
    return xp


def check_backward(dy: Array, x: Array, scale: Array, n: int) -> ModuleType:
    """The arrays' module, if `lrn_backward` can be had of them."""
    xp = check_same_dtype("lrn_backward", dy=dy, x=x, scale=scale)
    _check_odd("lrn_backward", n)
    if dy.shape[1:] != x.shape[1:] or x.shape != scale.shape or len(x) not in (1, len(dy)):
        raise ValueError(f"lrn_backward: dy is {dy.shape}, x {x.shape} and scale {scale.shape}; they must be alike")
    return xp


def _check_odd(operation: str, n: int) -> None:
    if n < 1 or n % 2 == 0:
        raise ValueError(f"{operation}: n is {n}, it needs an odd number of maps")
