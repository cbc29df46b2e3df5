"""Convolution with fewer multiplications: the fast twin of `refnet.ops.conv` for filters that are made of 3 x 3 blocks.

y = A' ((G w) * (B x)) for each tile of the outputs, with the matrices of `refnet.ops.tiles`: as maps are summed over,
the products of numbers are products of matrices, one for each pair of points.

A convolution of stride s is one of stride 1 over blocks of s x s cells, whose maps lie side by side: so ZFNet's 5 x 5
filters of stride 2 are 3 x 3 blocks with zeros at the border, over 4 x 96 maps. And larger filters are *parts* of 3 x 3
blocks, each over the same maps shifted by 3: 5 x 5 filters of stride 1 are 2 x 2 parts over 4 times the maps.

The three linear functions `_tiles` (of x), `filters` (of w) and `_outputs` (to y) and their adjoints are everything:
forward, transposed filtering and gradients are a few lines each.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from math import prod

import numpy as np

from refnet.backend import Array, Room, array_module, check_same_dtype, empty, zeros
from refnet.geometry import Window, conv_size
from refnet.ops.tiles import CELLS, POINTS, Pair, Scheme, Tiles, line_matrices, multiplications, scheme, tile_counts
from refnet.ops.windows import group_slices

_WORTHWHILE = 0.56  # share of multiplications left; the functions before and after them cost time as well


def suits(window: Window, out_hw: Pair, c: int, m: int, groups: int = 1, *, narrow: bool = True) -> bool:
    """Whether P x Q outputs, C and M maps are enough to gain time with filters of this window.

    ``narrow`` False if tiles at the edges are whole ones too.
    """
    left = multiplications(out_hw) if narrow else prod(tile_counts(out_hw)) * POINTS**2
    share = left * depth(window) / (out_hw[0] * out_hw[1] * window.size**2)  # of the multiplications
    return share < _WORTHWHILE and min(depth(window, c), m) >= 64 * groups


def winograd_forward(x: Array, u: Array, b: Array, *, window: Window, groups: int = 1) -> Array:
    """`refnet.ops.conv.conv_forward` with the filters whose `filters` are u (section 2).

    The same but for rounding: some 3e-6 of the largest value in float32. Raises TypeError if dtypes or backends differ.
    """
    xp = check_same_dtype("winograd_forward", x=x, u=u, b=b)
    p, q = (conv_size(n, window) for n in x.shape[1:3])
    cut = scheme((p, q))
    v = _tiles(x, window, cut, groups)
    z = empty((*v.shape[:2], len(b)), x)
    for read, at, made in _products(cut, v, z):
        for maps, filters in group_slices(v.shape[2], z.shape[2], groups):
            xp.matmul(read[..., maps], u[at][..., filters], out=made[..., filters])
    return _outputs(z, b, (len(x), p, q, len(b)), cut)


def winograd_transpose(
    r: Array, u: Array, *, window: Window, hw: tuple[int, int], groups: int = 1, z: Array | None = None
) -> Array:
    """`refnet.ops.conv.conv_transpose` with the filters whose `filters` are u (section 2.1, "Filtering").

    ``z`` is `signal_at_points` of r, if it is known. Raises TypeError if dtypes or backends differ.
    """
    xp = check_same_dtype("winograd_transpose", r=r, u=u, z=z)
    cut, deep = scheme(r.shape[1:3]), u.shape[2] * groups
    z = signal_at_points(r) if z is None else z
    v = empty((*z.shape[:2], deep), r)
    for made, at, read in _products(cut, v, z):
        for maps, filters in group_slices(deep, z.shape[2], groups):
            xp.matmul(read[..., filters], u[at][..., filters].swapaxes(2, 3), out=made[..., maps])
    return _tiles_adjoint(v, (len(r), *hw, deep // depth(window)), window, cut, groups)


def winograd_grads(
    x: Array, dy: Array, *, window: Window, groups: int = 1, z: Array | None = None
) -> tuple[Array, Array]:
    """`refnet.ops.conv.conv_grads` (section 3, back-propagation).

    ``z`` is `signal_at_points` of dy, if it is known. Raises TypeError if dtypes or backends differ.
    """
    xp = check_same_dtype("winograd_grads", x=x, dy=dy, z=z)
    cut = scheme(dy.shape[1:3])
    v, z = _tiles(x, window, cut, groups), signal_at_points(dy) if z is None else z
    du = empty((POINTS, POINTS, v.shape[2] // groups, z.shape[2]), x)
    for read, at, signal in _products(cut, v, z):
        for maps, filters in group_slices(v.shape[2], z.shape[2], groups):
            xp.matmul(read[..., maps].swapaxes(2, 3), signal[..., filters], out=du[at][..., filters])
    return _filters_adjoint(du, window), dy.sum(axis=(0, 1, 2))


def depth(window: Window, c: int = 1) -> int:
    """Maps side by side that C maps become: parts^2 stride^2 C."""
    return (_parts(window) * window.stride) ** 2 * c


def _parts(window: Window) -> int:
    """In one dimension, how many filters of 3 blocks make a filter."""
    return -(-window.size // (window.stride * CELLS))


def _products(cut: Scheme, v: Array, z: Array) -> Iterator[tuple[Array, tuple[slice, slice], Array]]:
    """For all pairs of points that serve the same tiles: their parts of v, their rows and columns, their parts of z."""
    n = v.shape[1] // cut.tile_count
    for at, points, place in cut.products:
        tiles = slice(n * place.start, n * place.stop)
        grid = *(each.stop - each.start for each in at), tiles.stop - tiles.start
        yield v[points, tiles].reshape(*grid, v.shape[2]), at, z[points, tiles].reshape(*grid, z.shape[2])


def filters(w: Array, window: Window) -> Array:
    """Filters w (K, K, C / groups, M) at all pairs of points: (6, 6, `depth` of C / groups, M)."""
    (size, stride, _), parts, (c, m) = window, _parts(window), w.shape[2:]
    whole = zeros((parts * CELLS * stride, parts * CELLS * stride, c, m), w)
    whole[:size, :size] = w
    blocks = whole.reshape(parts, CELLS, stride, parts, CELLS, stride, c, m).transpose(1, 4, 0, 3, 2, 5, 6, 7)
    u = empty((POINTS, POINTS, depth(window, c), m), w)
    _times(_filter_matrix(), blocks, u)
    return u


def _filters_adjoint(du: Array, window: Window) -> Array:
    (size, stride, _), parts, m = window, _parts(window), du.shape[3]
    c, side = du.shape[2] // depth(window), parts * CELLS * stride
    blocks, dw = empty((CELLS, CELLS, parts, parts, stride, stride, c, m), du), empty((size, size, c, m), du)
    _times(_filter_matrix().T, du, blocks)
    dw[...] = blocks.transpose(2, 0, 4, 3, 1, 5, 6, 7).reshape(side, side, c, m)[:size, :size]
    return dw


@cache
def _filter_matrix() -> np.ndarray:
    """G of both dimensions, (36, 9)."""
    g = line_matrices()[1]
    return np.kron(g, g)


def _tiles(x: Array, window: Window, cut: Scheme, groups: int) -> Array:
    """The blocks of x that each tile meets, at the points that it takes: (36, N tiles, `depth` of the maps)."""
    (n, h, w, c), parts = x.shape, _parts(window)
    blocks = _blank_blocks(n, c, window, cut, x)
    cells = _cells(blocks, window, (h, w))
    cells[...] = x[:, : cells.shape[1], : cells.shape[2]]
    v = empty((POINTS**2, n * cut.tile_count, depth(window, c)), x)
    for tiles, met, some, place in _pieces(blocks, cut, parts, groups):
        some[...] = met
        _times(tiles.b, some, v[tiles.points, place])
    return v


def _tiles_adjoint(v: Array, shape: tuple[int, ...], window: Window, cut: Scheme, groups: int) -> Array:
    (n, h, w, c), parts = shape, _parts(window)
    blocks = _blank_blocks(n, c, window, cut, v)
    for tiles, met, some, place in _pieces(blocks, cut, parts, groups):
        _times(tiles.b.T, v[tiles.points, place], some)
        for rows, columns, i, j in product(_apart(tiles, 0), _apart(tiles, 1), range(parts), range(parts)):
            cells = met[rows, columns, :, :, :, :, i, j]
            cells += some[rows, columns, :, :, :, :, i, j]
    x, cells = zeros(shape, v), _cells(blocks, window, (h, w))
    x[:, : cells.shape[1], : cells.shape[2]] = cells
    return x


def _outputs(z: Array, b: Array, shape: tuple[int, ...], cut: Scheme) -> Array:
    """The outputs (N, P, Q, M) of products (36, N tiles, M), plus b."""
    xp, y = array_module(z), empty(shape, z)
    for tiles, made, some, place in _pieces(_as_blocks(y), cut, outputs=True):
        _times(tiles.a.T, z[tiles.points, place], some)
        xp.add(some, b, out=made)
    return y


def signal_at_points(y: Array) -> Array:
    """A signal on outputs (N, P, Q, M) at the points that each tile takes, (36, N tiles, M): `_outputs`' adjoint."""
    cut = scheme(y.shape[1:3])
    z = empty((POINTS**2, len(y) * cut.tile_count, y.shape[3]), y)
    for tiles, made, some, place in _pieces(_as_blocks(y), cut, outputs=True):
        some[...] = made
        _times(tiles.a, some, z[tiles.points, place])
    return z


def _times(matrix: np.ndarray, a: Array, out: Array) -> None:
    """matrix (J, I) times a, whose first axes are I, into out, whose first axes are J."""
    xp, (j, i) = array_module(a), matrix.shape
    xp.matmul(xp.asarray(matrix, a.dtype), a.reshape(i, -1), out=out.reshape(j, -1))


def _blank_blocks(n: int, c: int, window: Window, cut: Scheme, like: Array) -> Array:
    """Zeros for all blocks that filters meet: (N, block rows, stride, block columns, stride, C)."""
    rows, columns = (length + _parts(window) * CELLS - 1 for length in cut.out_hw)
    return zeros((n, rows, window.stride, columns, window.stride, c), like)


def _cells(blocks: Array, window: Window, hw: Pair) -> Array:
    """A view (N, rows, columns, C) of the blocks' cells, without those that lie outside an image of H x W."""
    n, rows, stride, columns, _, c = blocks.shape
    cells, pad = blocks.reshape(n, rows * stride, columns * stride, c), window.pad
    return cells[:, pad : pad + hw[0], pad : pad + hw[1]]


def _as_blocks(y: Array) -> Array:
    """A view of y (N, P, Q, M) as blocks of 1 x 1 cells."""
    return y[:, :, None, :, None]


def _pieces(
    blocks: Array, cut: Scheme, parts: int = 1, groups: int = 1, *, outputs: bool = False
) -> Iterator[tuple[Tiles, Array, Array, slice]]:
    """A few tiles at a time: their kind, a view of the blocks that they meet (or make: ``outputs``), room, and place.

    The view is (rows and columns in a tile, N, rows and columns of tiles, groups, parts, parts, stride, stride, maps).
    The room is for a copy of it; the next tiles' copy overwrites it.
    """
    image, row, in_row, column, in_column, channel = blocks.strides
    n, _, stride, _, _, c = blocks.shape
    room = Room(blocks)
    for tiles in cut.tiles:
        (top, left), (down, across) = tiles.first, tiles.outputs
        size = tiles.outputs if outputs else tiles.met
        view = array_module(blocks).lib.stride_tricks.as_strided(
            blocks[:, top:, :, left:],
            (*size, n, *tiles.counts, groups, parts, parts, stride, stride, c // groups),
            (
                row, column, image, down * row, across * column,
                c // groups * channel, CELLS * row, CELLS * column, in_row, in_column, channel,
            ),
        )  # fmt: skip
        for images, rows, place in tiles.pieces(n, prod(view.shape[5:])):
            met = view[:, :, images, rows]
            yield tiles, met, room.empty(met.shape), place


def _apart(tiles: Tiles, axis: int) -> list[slice]:
    """Rows (0) or columns (1) of the blocks that tiles meet, in parts: within each, those of two tiles differ."""
    step = tiles.outputs[axis] if tiles.counts[axis] > 1 else tiles.met[axis]
    return [slice(start, start + step) for start in range(0, tiles.met[axis], step)]
