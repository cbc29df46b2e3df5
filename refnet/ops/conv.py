"""Convolution, its transposed filtering and its weight gradients."""

import math
from collections.abc import Iterator
from itertools import product

from refnet.backend import Array, Room, array_module, check_same_dtype, empty, zeros
from refnet.geometry import Window, conv_size
from refnet.ops.windows import add_windows, blocks, cropped, group_slices, padded, unfold

# Windows that are unfolded at a time: enough rows for a fast product, few enough to be still in cache for it.
_AT_A_TIME = 2048
_IN_PLANES = 8192  # of them, where planes are added: the more at a time, the fewer calls


def conv_forward(x: Array, w: Array, b: Array, *, stride: int = 1, pad: int = 0, groups: int = 1) -> Array:
    """Filter the maps (section 2; a correlation, as everywhere in the field).

    y[n, p, q, m] = b[m] + sum_{i, j, c} x[n, p stride + i - pad, q stride + j - pad, c] w[i, j, c, m],
    where x is 0 outside the image and c runs over the maps of m's group.

    Parameters
    ----------
    x : (N, H, W, C) maps, float32 or float64
    w : (K, K, C / groups, M) filters, of x's dtype
    b : (M,) biases, of x's dtype
    stride, pad : step between outputs and cells added on each side
    groups : the maps and the filters are cut into so many blocks that do not see each other

    Returns
    -------
    y : (N, P, Q, M), P = floor((H + 2 pad - K) / stride) + 1

    Raises
    ------
    ValueError
        If shapes do not fit each other or the window does not fit the image.
    TypeError
        If dtypes or backends differ.
    """
    xp = check_same_dtype("conv_forward", x=x, w=w, b=b)
    window, m = check_shapes("conv_forward", x.shape, w.shape, stride, pad, groups), w.shape[-1]
    if b.shape != (m,):
        raise ValueError(f"conv_forward: b is {b.shape}, it needs one value for each filter of w {w.shape}")
    p, q = (conv_size(n, window) for n in x.shape[1:3])
    y, cells = empty((len(x), p, q, m), x), math.prod(w.shape[:3])
    # A bias as the weight of a cell that is always 1 costs a copy of the filters, added later one more pass over y.
    ones = math.prod(y.shape[:3]) > cells
    matrix = _with_bias(w, b) if ones else _matrix(w)
    for (images, rows), columns, filters in _unfolded(x, window, y.shape, groups, ones=ones):
        xp.matmul(columns, matrix[:, filters], out=_matrix(y[images, rows, :, filters]))
    if not ones:
        y += b
    return y


def conv_transpose(r: Array, w: Array, *, stride: int = 1, pad: int = 0, hw: tuple[int, int], groups: int = 1) -> Array:
    """Filter with the transposed filters (section 2.1, "Filtering"): the adjoint of `conv_forward` without bias.

    x[n, h, v, c] = sum_{i, j, m} r[n, p, q, m] w[i, j, c, m] over all p, q with p stride + i - pad = h and
    q stride + j - pad = v. With stride 1 this is a convolution with each filter flipped vertically and horizontally.

    Parameters
    ----------
    r : (N, P, Q, M) signal on the outputs, float32 or float64
    w : (K, K, C / groups, M) filters, of r's dtype
    hw : height and width of the maps below: several sizes give the same P, Q, so it cannot be derived

    Returns
    -------
    x : (N, *hw, C)

    Raises
    ------
    ValueError
        If shapes do not fit each other, or no ``hw`` input has P, Q outputs.
    TypeError
        If dtypes or backends differ.
    """
    check_same_dtype("conv_transpose", r=r, w=w)
    c = w.shape[2] * groups if w.ndim == 4 else 0
    window = check_shapes("conv_transpose", (len(r), *hw, c), w.shape, stride, pad, groups)
    check_outputs("conv_transpose", "r", r.shape, (len(r), *hw), window, w.shape[3])
    # Both add the same; in planes the runs of memory are as long as a row of r, in rows as the maps are many.
    transpose = _transpose_in_planes if w.shape[2] <= r.shape[2] else _transpose_in_rows
    return transpose(r, w, window, hw, groups)


def _transpose_in_rows(r: Array, w: Array, window: Window, hw: tuple[int, int], groups: int) -> Array:
    """`conv_transpose` position by position: the adjoint of `unfold`, a block of windows at a time."""
    xp, c, (_, stride, pad) = array_module(r), w.shape[2] * groups, window
    x, room = zeros((len(r), hw[0] + 2 * pad, hw[1] + 2 * pad, c), r), Room(r)
    for images, rows in blocks(len(r), r.shape[1:3], _AT_A_TIME):
        for maps, filters in group_slices(c, w.shape[3], groups):
            part = r[images, rows, :, filters]
            columns = room.empty((*part.shape[:3], *w.shape[:3]))
            xp.matmul(_matrix(part), _matrix(w[..., filters]).T, out=_rows(columns))
            add_windows(x[images, rows.start * stride :, :, maps], columns, stride=stride)
    return cropped(x, hw=hw, pad=pad)


def _transpose_in_planes(r: Array, w: Array, window: Window, hw: tuple[int, int], groups: int) -> Array:
    """`conv_transpose` map by map, which is more than twice as fast for few maps, the three colours above all.

    What one cell of the filters sends to a map is a plane as large as r. Cells whose rows and columns are equal modulo
    the stride meet in one plane, shifted by whole steps; and these planes, dealt out in turn, are the map.
    """
    xp, (n, p, q, m), (size, stride, pad) = array_module(r), r.shape, window
    c, beyond = w.shape[2] * groups, (size - 1) // stride
    planes, room = zeros((stride, stride, c, n, p + beyond, q + beyond), r), Room(r)
    for images, rows in blocks(n, (p, q), _IN_PLANES):
        for maps, filters in group_slices(c, m, groups):
            part = r[images, rows, :, filters]
            cells = room.empty((*w.shape[:3], *part.shape[:3]))
            xp.matmul(_matrix(w[..., filters]), _matrix(part).T, out=cells.reshape(_matrix(w).shape[0], -1))
            for i, j in product(range(0, size, stride), repeat=2):
                some, top, left = cells[i : i + stride, j : j + stride], rows.start + i // stride, j // stride
                below = planes[: len(some), : some.shape[1], maps, images, top : top + part.shape[1], left : left + q]
                below += some
    whole = empty((n, p + beyond, stride, q + beyond, stride, c), r)
    whole[...] = planes.transpose(3, 4, 0, 5, 1, 2)
    inside = whole.reshape(n, (p + beyond) * stride, (q + beyond) * stride, c)[:, pad : pad + hw[0], pad : pad + hw[1]]
    x = zeros((n, *hw, c), r)
    x[:, : inside.shape[1], : inside.shape[2]] = inside
    return x


def conv_grads(
    x: Array, dy: Array, *, size: int, stride: int = 1, pad: int = 0, groups: int = 1
) -> tuple[Array, Array]:
    """Gradients of `conv_forward` with respect to its filters and biases (section 3, back-propagation).

    dw[i, j, c, m] = sum_{n, p, q} x[n, p stride + i - pad, q stride + j - pad, c] dy[n, p, q, m]
    and db[m] = sum_{n, p, q} dy[n, p, q, m].

    Parameters
    ----------
    x : (N, H, W, C) the convolution's input, float32 or float64
    dy : (N, P, Q, M) gradient of the loss with respect to its output, of x's dtype
    size : K, the side of the filters

    Returns
    -------
    dw : (K, K, C / groups, M)
    db : (M,)

    Raises
    ------
    ValueError
        If shapes do not fit each other.
    TypeError
        If dtypes or backends differ.
    """
    xp = check_same_dtype("conv_grads", x=x, dy=dy)
    c, m = x.shape[-1], dy.shape[-1]
    window = check_shapes("conv_grads", x.shape, (size, size, c // max(groups, 1), m), stride, pad, groups)
    check_outputs("conv_grads", "dy", dy.shape, x.shape[:3], window, m)
    both = zeros((size * size * (c // groups) + 1, m), x)  # of filters and biases
    for (images, rows), columns, filters in _unfolded(x, window, dy.shape, groups, ones=True):
        both[:, filters] += xp.matmul(columns.T, _matrix(dy[images, rows, :, filters]))
    return both[:-1].reshape(size, size, c // groups, m), both[-1]


def _unfolded(
    x: Array, window: Window, out: tuple[int, ...], groups: int, *, ones: bool
) -> Iterator[tuple[tuple[slice, slice], Array, slice]]:
    """The windows of x as rows of matrices, block by block: (images and rows of the output), matrix, filters.

    With ``ones`` each row ends with a 1, whose weight is the bias. The next block overwrites the matrix.
    """
    size, stride, pad = window
    x, c, room = padded(x, pad), x.shape[-1] // groups, Room(x)
    for images, rows in blocks(len(x), out[1:3], _AT_A_TIME):
        below = slice(rows.start * stride, (rows.stop - 1) * stride + size)
        windows = images.stop - images.start, rows.stop - rows.start, out[2]
        for maps, filters in group_slices(x.shape[-1], out[3], groups):
            columns = room.empty((math.prod(windows), size * size * c + ones))
            columns[:, size * size * c :] = 1
            cells = columns[:, : size * size * c].reshape(*windows, size, size, c)
            unfold(x[images, below, :, maps], out_hw=windows[1:], window=Window(size, stride), out=cells)
            yield (images, rows), columns, filters


def _with_bias(w: Array, b: Array) -> Array:
    """Filters as a matrix, and the biases as its last row: (K K C / groups + 1, M)."""
    matrix = empty((math.prod(w.shape[:3]) + 1, w.shape[3]), w)
    matrix[:-1].reshape(w.shape)[...] = w
    matrix[-1] = b
    return matrix


def _matrix(a: Array) -> Array:
    """All axes but the last as one; a view, also for a slice of the last axis."""
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def _rows(columns: Array) -> Array:
    """Unfolded windows (N, P, Q, K, K, C) as the rows of a matrix (N P Q, K K C)."""
    return columns.reshape(math.prod(columns.shape[:3]), math.prod(columns.shape[3:]))


def check_shapes(operation: str, x: tuple[int, ...], w: tuple[int, ...], stride: int, pad: int, groups: int) -> Window:
    """The window, if it and the shapes of x and w fit each other."""
    if len(x) != 4 or len(w) != 4 or w[0] != w[1]:
        raise ValueError(f"{operation}: x is {x} and w {w}; it needs x (N, H, W, C) and w (K, K, C / groups, M)")
    if groups < 1 or x[3] != w[2] * groups or w[3] % groups:
        raise ValueError(f"{operation}: x has {x[3]} maps {x} but w filters {w[2] * groups} {w} in {groups} group(s)")
    window = Window(w[0], stride, pad)
    if stride < 1 or pad < 0 or window.size < 1 or min(conv_size(n, window) for n in x[1:3]) < 1:
        raise ValueError(f"{operation}: {window} does not fit x {x}")
    return window


def check_outputs(operation: str, name: str, out: tuple[int, ...], x: tuple[int, ...], window: Window, m: int) -> None:
    """ValueError unless ``out`` is the shape that m filters give on x (N, H, W)."""
    needs = (x[0], *(conv_size(n, window) for n in x[1:]), m)
    if tuple(out) != needs:
        raise ValueError(f"{operation}: {name} is {out}, but {m} filters on {x} with {window} give {needs}")
