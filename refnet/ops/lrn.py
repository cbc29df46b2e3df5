"""Local response normalisation: across maps, the paper's contrast normalisation, and within each, as Caffe has both."""

from collections.abc import Callable
from types import ModuleType

from refnet.backend import Array, Room, array_module, check_same_dtype, empty, zeros
from refnet.geometry import Window
from refnet.ops.windows import blocks, meetings

_AT_A_TIME = 1 << 17  # values: they stay in cache for all that is done to them


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
    check_forward(x, n)
    return _normalised(x, _neighbour_sum(x, x, n), k, alpha, beta)


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
    check_backward(dy, x, scale, n)
    return _gradient(dy, x, scale, alpha, beta, lambda a: _neighbour_sum(a, x, n))


def lrn_within_forward(x: Array, *, size: int = 3, alpha: float = 1e-4, beta: float = 0.75) -> tuple[Array, Array]:
    """Divide each value by the energy of its neighbours in the same map (in the place of section 2's "normalise").

    scale[n, p, q, c] = 1 + alpha sum_{|i - p|, |j - q| <= (size - 1) / 2} x[n, i, j, c]^2 and y = x scale^-beta
    (Caffe, ``norm_region: WITHIN_CHANNEL``; cells beyond the edge count as 0).

    ``alpha`` multiplies the *sum*. Caffe multiplies the mean: its alpha is size^2 times this one.

    Parameters
    ----------
    x : (N, H, W, C) maps, float32 or float64
    size : odd side of a neighbourhood
    alpha, beta : constants of the formula

    Returns
    -------
    y : like x
    scale : like x; `lrn_within_backward` needs it

    Raises
    ------
    ValueError
        If ``size`` is not odd and positive, or ``x`` has not four axes.
    TypeError
        If ``x`` is neither float32 nor float64.
    """
    check_same_dtype("lrn_within_forward", x=x)
    _check_square("lrn_within_forward", x, size)
    return _normalised(x, _square_sum(x, x, size), 1.0, alpha, beta)


def lrn_within_backward(
    dy: Array, x: Array, scale: Array, *, size: int = 3, alpha: float = 1e-4, beta: float = 0.75
) -> Array:
    """Gradient of `lrn_within_forward` with respect to its input (section 3; the deconvnet leaves it out, section 2.1).

    dx[n, p, q, c] = dy[n, p, q, c] scale[n, p, q, c]^-beta
    - 2 alpha beta x[n, p, q, c] sum_{|i - p|, |j - q| <= (size - 1) / 2} (dy x scale^(-beta - 1))[n, i, j, c].

    Parameters
    ----------
    dy : (N, H, W, C) gradient with respect to y, float32 or float64
    x, scale : input and scale of `lrn_within_forward`; a batch axis of length 1 serves every dy
    size, alpha, beta : as in `lrn_within_forward`

    Returns
    -------
    dx : like dy

    Raises
    ------
    ValueError
        If ``size`` is not odd and positive, or shapes differ.
    TypeError
        If dtypes or backends differ.
    """
    check_same_dtype("lrn_within_backward", dy=dy, x=x, scale=scale)
    _check_square("lrn_within_backward", x, size)
    _check_alike("lrn_within_backward", dy, x, scale)
    return _gradient(dy, x, scale, alpha, beta, lambda a: _square_sum(a, x, size))


def _normalised(x: Array, energy: Array, k: float, alpha: float, beta: float) -> tuple[Array, Array]:
    """y and scale of the formulas; ``energy`` becomes the scale."""
    energy *= alpha
    energy += k
    y = _power(energy, beta)
    return array_module(x).divide(x, y, out=y), energy


def _gradient(
    dy: Array, x: Array, scale: Array, alpha: float, beta: float, neighbours: Callable[[Array], Array]
) -> Array:
    """dx of the formulas; ``neighbours(a)`` is the sum of a x over all neighbours."""
    xp = array_module(dy)
    dx = xp.divide(dy, _power(scale, beta), out=empty(dy.shape, dy))
    across = neighbours(xp.divide(dx, scale, out=empty(dy.shape, dy)))
    across *= x
    across *= 2 * alpha * beta
    dx -= across
    return dx


def _neighbour_sum(a: Array, b: Array, n: int) -> Array:
    """Sum of a b over the ``n`` nearest maps, fewer at both ends."""
    xp, c, out = array_module(a), a.shape[-1], empty(a.shape, a)
    reach, rooms = min(n // 2, c - 1), (Room(a), Room(a))
    a, b, sums = (each.reshape(-1, c) for each in (a, xp.broadcast_to(b, a.shape), out))
    for some, _ in blocks(len(a), (1, 1), _AT_A_TIME // c):
        # With ``reach`` zeros between one position's maps and the next one's, all positions are one long row.
        products, total = (room.empty((len(a[some]), c + reach)) for room in rooms)
        products[:, c:] = 0
        xp.multiply(a[some], b[some], out=products[:, :c])
        row, around = products.reshape(-1), total.reshape(-1)
        around[...] = row
        for d in range(1, reach + 1):
            around[d:] += row[:-d]
            around[:-d] += row[d:]
        sums[some] = total[:, :c]
    return out


def _square_sum(a: Array, b: Array, size: int) -> Array:
    """Sum of a b over the ``size`` x ``size`` cells around each one, fewer at the edge."""
    total = array_module(a).multiply(a, b, out=empty(a.shape, a))
    for axis in (1, 2):
        sums, along = zeros(a.shape, a), (slice(None),) * axis
        for there, cells in meetings(a.shape[axis], a.shape[axis], Window(size, 1, size // 2)):
            sums[(*along, there)] += total[(*along, cells)]
        total = sums
    return total


def _power(a: Array, exponent: float) -> Array:
    """``a ** exponent``; the usual 0.75 as two square roots, several times faster than a general power."""
    xp, out = array_module(a), empty(a.shape, a)
    if exponent != 0.75:
        return xp.power(a, exponent, out=out)
    values, powers, room = a.reshape(-1), out.reshape(-1), Room(a)
    for some, _ in blocks(a.size, (1, 1), _AT_A_TIME):
        root = xp.sqrt(values[some], out=room.empty(values[some].shape))
        xp.multiply(xp.sqrt(root, out=powers[some]), root, out=powers[some])
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
    _check_alike("lrn_backward", dy, x, scale)
    return xp


def _check_alike(operation: str, dy: Array, x: Array, scale: Array) -> None:
    if dy.shape[1:] != x.shape[1:] or x.shape != scale.shape or len(x) not in (1, len(dy)):
        raise ValueError(f"{operation}: dy is {dy.shape}, x {x.shape} and scale {scale.shape}; they must be alike")


def _check_odd(operation: str, n: int) -> None:
    if n < 1 or n % 2 == 0:
        raise ValueError(f"{operation}: n is {n}, it needs an odd number of maps")


def _check_square(operation: str, x: Array, size: int) -> None:
    if size < 1 or size % 2 == 0 or x.ndim != 4:
        raise ValueError(f"{operation}: size is {size} and x {x.shape}; it needs an odd side and (N, H, W, C)")
