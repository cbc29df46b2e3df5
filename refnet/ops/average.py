"""Average pooling, which later networks have where the paper's have max pooling."""

from types import ModuleType

import numpy as np

from refnet.backend import Array, array_module, check_same_dtype, empty, zeros
from refnet.geometry import Window, pool_size
from refnet.ops.windows import meetings


def average_forward(
    x: Array, *, size: int, stride: int, pad: int = 0, ceil: bool = False, count_pad: bool = False
) -> Array:
    """The mean of each region (in the place of section 2's max pooling).

    y[n, p, q, c] = sum_{i, j} x[n, p stride + i - pad, q stride + j - pad, c] / count[p, q] over the cells inside the
    image; count is the number of these, with ``count_pad`` that of the cells inside the image or its padding.

    Parameters
    ----------
    x : (N, H, W, C) maps, float32 or float64
    size, stride, pad : side of a region, step between regions, cells on each side that belong to no image
    ceil : let the last region hang over the edge instead of leaving cells out

    Returns
    -------
    y : (N, P, Q, C)

    Raises
    ------
    ValueError
        If ``x`` has not four axes or the regions do not fit.
    TypeError
        If ``x`` is neither float32 nor float64.
    """
    _, window = check_average("average_forward", x, x.shape, Window(size, stride, pad), ceil)
    y = x
    for axis in (1, 2):
        out = pool_size(x.shape[axis], window, ceil=ceil)
        sums, along = zeros((*y.shape[:axis], out, *y.shape[axis + 1 :]), x), (slice(None),) * axis
        for there, cells in meetings(x.shape[axis], out, window):
            sums[(*along, there)] += y[(*along, cells)]
        y = sums
    y /= _counts(x.shape[1:3], x, window, ceil, count_pad)
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
    """The adjoint of `average_forward`: each cell gets its share of every region it is in (section 2.1, "Unpooling").

    Parameters
    ----------
    r : (N, P, Q, C) signal on the averages, float32 or float64
    hw : height and width of the maps below

    Returns
    -------
    x : (N, *hw, C)

    Raises
    ------
    ValueError
        If shapes do not fit each other.
    TypeError
        If ``r`` is neither float32 nor float64.
    """
    xp, window = check_average("average_transpose", r, (len(r), *hw, r.shape[-1]), Window(size, stride, pad), ceil)
    x = xp.divide(r, _counts(hw, r, window, ceil, count_pad), out=empty(r.shape, r))
    for axis in (2, 1):
        spread, along = zeros((*x.shape[:axis], hw[axis - 1], *x.shape[axis + 1 :]), r), (slice(None),) * axis
        for there, cells in meetings(hw[axis - 1], r.shape[axis], window):
            spread[(*along, cells)] += x[(*along, there)]
        x = spread
    return x


def edge_weights(
    hw: tuple[int, ...], like: Array, *, size: int, stride: int, pad: int, ceil: bool, count_pad: bool
) -> Array:
    """size^2 / count[p, q] of `average_forward`: 1 inside, more where a region hangs over the edge (section 2.1).

    Who averages boxes of maps as if they lay inside makes up for it with these: (1, P, Q, 1), of like's dtype.
    """
    return size * size / _counts(hw, like, Window(size, stride, pad), ceil, count_pad)


def _counts(hw: tuple[int, ...], like: Array, window: Window, ceil: bool, count_pad: bool) -> Array:
    """How many cells each region has (1, P, Q, 1)."""
    size, stride, pad = window
    border = pad if count_pad else 0
    lines = []
    for n in hw:
        start = np.arange(pool_size(n, window, ceil=ceil)) * stride - pad
        lines.append(np.minimum(start + size, n + border) - np.maximum(start, -border))
    return array_module(like).asarray(np.outer(*lines)[None, :, :, None].astype(like.dtype))


def check_average(
    operation: str, a: Array, x: tuple[int, ...], window: Window, ceil: bool
) -> tuple[ModuleType, Window]:
    """The array's module and the window, if its regions fit maps x (N, H, W, C) and a is these or their averages."""
    xp = check_same_dtype(operation, **{"r" if operation == "average_transpose" else "x": a})
    size, stride, pad = window
    if len(x) != 4:
        raise ValueError(f"{operation}: x is {x}, it needs (N, H, W, C)")
    if not 0 <= pad < size or stride < 1 or min(pool_size(n, window, ceil=ceil) for n in x[1:3]) < 1:
        raise ValueError(f"{operation}: {window} does not fit x {x} (pad smaller than size)")
    needs = (*(pool_size(n, window, ceil=ceil) for n in x[1:3]), x[3])
    if operation == "average_transpose" and a.shape[1:] != needs:
        raise ValueError(f"{operation}: r is {a.shape}; averaging {x[1:3]} with {window} needs (N, {needs})")
    return xp, window
