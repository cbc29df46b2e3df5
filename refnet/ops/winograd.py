"""Convolution with fewer multiplications: the fast twin of `refnet.ops.conv` for filters of 3 x 3 blocks.

In one dimension, 4 outputs of a filter of 3 cells take 6 multiplications instead of 12: y = A' ((G w) * (B' x)), where
G and B' evaluate polynomials at 6 points and A' interpolates (Winograd 1980; for networks, Lavin & Gray 2016). In two
dimensions the rows and the columns get each matrix, which makes one of 6 x 6 = 36 rows; 4 x 4 outputs are a *tile*.
The 36 products of numbers are products of matrices here, which sum over the maps.

A convolution of stride s is one of stride 1 over blocks of s x s cells, whose maps lie side by side: so ZFNet's 5 x 5
filters of stride 2 are 3 x 3 blocks with zeros at the border, over 4 x 96 maps.

The three linear functions `_tiles` (of x), `filters` (of w) and `_outputs` (to y) and their adjoints are everything:
forward, transposed filtering and gradients are three lines each.
"""

from functools import cache

import numpy as np

from refnet.backend import Array, array_module, check_same_dtype, empty, zeros
from refnet.geometry import Window, conv_size
from refnet.ops.windows import group_slices

_BLOCKS = 3  # of a filter, in one dimension
_OUTPUTS = 4  # of a tile
_SPAN = _OUTPUTS + _BLOCKS - 1  # blocks that a tile meets, and points
_POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)  # and infinity; of the sets tried, these lose the fewest digits
_APART = slice(0, _OUTPUTS), slice(_OUTPUTS, _SPAN)  # of a tile's blocks: within each, those of two tiles differ
_WORTHWHILE = 0.6  # share of multiplications left; the functions before and after them cost time as well


def line_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (6, 4), G (6, 3) and B (6, 6) of one dimension, one row for each point."""
    points, infinity = np.array(_POINTS), np.eye(_SPAN)[-1]
    powers = np.vander(points, _SPAN, increasing=True)
    others = [np.delete(points, i) for i in range(len(points))]
    weights = [np.prod(point - each) for point, each in zip(points, others, strict=True)]
    a = np.vstack([powers[:, :_OUTPUTS], infinity[-_OUTPUTS:]])
    g = np.vstack([powers[:, :_BLOCKS] / np.array(weights)[:, None], infinity[-_BLOCKS:]])
    b = np.vstack([*(np.append(np.poly(each)[::-1], 0) for each in others), np.poly(points)[::-1]])
    return a, g, b


@cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (36, 16), G (36, 9) and B (36, 36), one row for each pair of points."""
    a, g, b = line_matrices()
    return np.kron(a, a), np.kron(g, g), np.kron(b, b)


def tile_count(out_hw: tuple[int, ...]) -> int:
    """Tiles of the outputs (P, Q) of one image: so many rows it has in each of the 36 products."""
    rows, columns = tile_counts(out_hw)
    return rows * columns


def suits(window: Window, out_hw: tuple[int, ...], c: int, m: int, groups: int = 1) -> bool:
    """Whether filters of this window are 3 x 3 blocks, and P x Q outputs, C and M maps enough to gain time."""
    size, stride, _ = window
    in_blocks = -(-size // stride) == _BLOCKS and (stride == 1 or groups == 1)
    share = tile_count(out_hw) * (_SPAN * stride) ** 2 / (out_hw[0] * out_hw[1] * size**2)  # of the multiplications
    return in_blocks and share < _WORTHWHILE and min(stride**2 * c, m) >= 64 * groups


def winograd_forward(x: Array, u: Array, b: Array, *, window: Window, groups: int = 1) -> Array:
    """`refnet.ops.conv.conv_forward` with the filters whose `filters` are u (section 2).

    The same but for rounding: some 3e-6 of the largest value in float32. Raises TypeError if dtypes or backends differ.
    """
    xp = check_same_dtype("winograd_forward", x=x, u=u, b=b)
    shape = (len(x), *(conv_size(n, window) for n in x.shape[1:3]), u.shape[2])
    v = _tiles(x, window, shape[1:3])
    z = empty((*v.shape[:2], shape[3]), x)
    for maps, filters in group_slices(v.shape[2], shape[3], groups):
        xp.matmul(v[..., maps], u[..., filters], out=z[..., filters])
    return xp.add(_outputs(z, shape), b, out=empty(shape, x))


def winograd_transpose(r: Array, u: Array, *, window: Window, hw: tuple[int, int], groups: int = 1) -> Array:
    """`refnet.ops.conv.conv_transpose` with the filters whose `filters` are u (section 2.1, "Filtering").

    Raises TypeError if dtypes or backends differ.
    """
    xp = check_same_dtype("winograd_transpose", r=r, u=u)
    z = _outputs_adjoint(r)
    v = empty((*z.shape[:2], u.shape[1] * groups), r)
    for maps, filters in group_slices(v.shape[2], z.shape[2], groups):
        xp.matmul(z[..., filters], u[..., filters].swapaxes(1, 2), out=v[..., maps])
    return _tiles_adjoint(v, (len(r), *hw, v.shape[2] // window.stride**2), window, r.shape[1:3])


def winograd_grads(x: Array, dy: Array, *, window: Window, groups: int = 1) -> tuple[Array, Array]:
    """`refnet.ops.conv.conv_grads` (section 3, back-propagation). Raises TypeError if dtypes or backends differ."""
    xp = check_same_dtype("winograd_grads", x=x, dy=dy)
    v, z = _tiles(x, window, dy.shape[1:3]), _outputs_adjoint(dy)
    du = empty((len(v), v.shape[2] // groups, z.shape[2]), x)
    for maps, filters in group_slices(v.shape[2], z.shape[2], groups):
        xp.matmul(v[..., maps].swapaxes(1, 2), z[..., filters], out=du[..., filters])
    return _filters_adjoint(du, window), dy.sum(axis=(0, 1, 2))


def filters(w: Array, window: Window) -> Array:
    """Filters w (K, K, C / groups, M) at all points: (36, stride^2 C / groups, M)."""
    size, stride, _ = window
    c, m = w.shape[2:]
    whole = zeros((_BLOCKS * stride, _BLOCKS * stride, c, m), w)
    whole[:size, :size] = w
    blocks = whole.reshape(_BLOCKS, stride, _BLOCKS, stride, c, m).swapaxes(1, 2)
    return _times(_matrices()[1], blocks.reshape(_BLOCKS**2, stride**2 * c, m))


def _filters_adjoint(u: Array, window: Window) -> Array:
    size, stride, _ = window
    blocks = _times(_matrices()[1].T, u).reshape(_BLOCKS, _BLOCKS, stride, stride, -1, u.shape[2])
    whole = blocks.swapaxes(1, 2).reshape(_BLOCKS * stride, _BLOCKS * stride, -1, u.shape[2])
    dw = empty((size, size, *whole.shape[2:]), u)
    dw[...] = whole[:size, :size]
    return dw


def _tiles(x: Array, window: Window, out_hw: tuple[int, ...]) -> Array:
    """The blocks of x that each tile meets, at all points: (36, N tiles, stride^2 C)."""
    (n, h, w, c), (_, stride, pad) = x.shape, window
    tiles = tile_counts(out_hw)
    blocks = _blank_blocks(n, c, tiles, stride, x)
    cells = _cells(blocks)
    cells[:, pad : pad + h, pad : pad + w] = x[:, : cells.shape[1] - pad, : cells.shape[2] - pad]
    met = empty((_SPAN, _SPAN, n, *tiles, stride, stride, c), x)
    met[...] = _met(blocks, tiles, slice(0, _SPAN), slice(0, _SPAN))
    return _times(_matrices()[2], met.reshape(_SPAN**2, -1, stride**2 * c))


def _tiles_adjoint(v: Array, shape: tuple[int, ...], window: Window, out_hw: tuple[int, int]) -> Array:
    (n, h, w, c), (_, stride, pad) = shape, window
    tiles = tile_counts(out_hw)
    met = _times(_matrices()[2].T, v).reshape(_SPAN, _SPAN, n, *tiles, stride, stride, c)
    blocks = _blank_blocks(n, c, tiles, stride, v)
    for rows in _APART:
        for columns in _APART:
            some = _met(blocks, tiles, rows, columns)
            some += met[rows, columns]
    x, cells = zeros(shape, v), _cells(blocks)[:, pad : pad + h, pad : pad + w]
    x[:, : cells.shape[1], : cells.shape[2]] = cells
    return x


def _outputs(z: Array, shape: tuple[int, ...]) -> Array:
    """The outputs (N, P, Q, M) of products (36, N tiles, M)."""
    (n, p, q, m), (rows, columns) = shape, tile_counts(shape[1:3])
    y = _times(_matrices()[0].T, z).reshape(_OUTPUTS, _OUTPUTS, n, rows, columns, m)
    whole = empty((n, rows, _OUTPUTS, columns, _OUTPUTS, m), z)
    whole[...] = y.transpose(2, 3, 0, 4, 1, 5)
    return whole.reshape(n, rows * _OUTPUTS, columns * _OUTPUTS, m)[:, :p, :q]


def _outputs_adjoint(y: Array) -> Array:
    (n, p, q, m), (rows, columns) = y.shape, tile_counts(y.shape[1:3])
    whole = zeros((n, rows * _OUTPUTS, columns * _OUTPUTS, m), y)
    whole[:, :p, :q] = y
    tiled = empty((_OUTPUTS, _OUTPUTS, n, rows, columns, m), y)
    tiled[...] = whole.reshape(n, rows, _OUTPUTS, columns, _OUTPUTS, m).transpose(2, 4, 0, 1, 3, 5)
    return _times(_matrices()[0], tiled.reshape(_OUTPUTS**2, -1, m))


def _times(matrix: np.ndarray, a: Array) -> Array:
    """matrix (J, I) times a (I, ..., M): (J, ..., M)."""
    xp, out = array_module(a), empty((len(matrix), *a.shape[1:]), a)
    xp.matmul(xp.asarray(matrix, a.dtype), a.reshape(len(a), -1), out=out.reshape(len(matrix), -1))
    return out


def tile_counts(out_hw: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of tiles that hold the outputs (P, Q)."""
    return -(-out_hw[0] // _OUTPUTS), -(-out_hw[1] // _OUTPUTS)


def _blank_blocks(n: int, c: int, tiles: tuple[int, int], stride: int, like: Array) -> Array:
    """Zeros wherever tiles look: (N, block rows, stride, block columns, stride, C)."""
    rows, columns = (count * _OUTPUTS + _BLOCKS - 1 for count in tiles)
    return zeros((n, rows, stride, columns, stride, c), like)


def _cells(blocks: Array) -> Array:
    """Blocks as the image they are: a view (N, rows, columns, C)."""
    n, rows, stride, columns, _, c = blocks.shape
    return blocks.reshape(n, rows * stride, columns * stride, c)


def _met(blocks: Array, tiles: tuple[int, int], rows: slice, columns: slice) -> Array:
    """Some rows and columns of the blocks that tiles meet, a view: (rows, columns, N, *tiles, stride, stride, C)."""
    image, row, in_row, column, in_column, channel = blocks.strides
    n, stride, c = (blocks.shape[axis] for axis in (0, 2, 5))
    return array_module(blocks).lib.stride_tricks.as_strided(
        blocks[:, rows.start :, :, columns.start :],
        (rows.stop - rows.start, columns.stop - columns.start, n, *tiles, stride, stride, c),
        (row, column, image, _OUTPUTS * row, _OUTPUTS * column, in_row, in_column, channel),
    )
