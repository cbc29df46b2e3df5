"""How `refnet.ops.winograd` cuts the outputs of a convolution into tiles: their points, products and matrices.

In one dimension, m outputs of a filter of r cells take m + r - 1 multiplications instead of m r:
y = A' ((G w) * (B x)). A and G evaluate polynomials at m + r - 1 points, and B is the transposed interpolation
(Winograd 1980; for networks, Lavin & Gray 2016). In two dimensions a *tile* of m x m outputs takes pairs of points,
one of its rows and one of its columns.

Filters have 3 cells, and 4 outputs are a whole tile, of 6 points. The outputs left over at the end of a line are a
narrow one, which takes the first of the same points only; so the same G w serves it.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, pairwise, product
from typing import NamedTuple

import numpy as np

from refnet.ops.windows import blocks

CELLS = 3  # of a filter, in one dimension
OUTPUTS = 4  # of a whole tile
POINTS = OUTPUTS + CELLS - 1  # of it; and it meets as many cells
_FINITE = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)  # after the first, infinity; of the sets tried, these lose fewest digits
_AT_A_TIME = 1 << 18  # values that are transformed together: they stay in cache meanwhile

Pair = tuple[int, int]  # of rows, and of columns


def line_matrices(outputs: int = OUTPUTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (I, outputs), G (I, 3) and B (I, I) of one dimension, a row for each of the first I = outputs + 2 points.

    A point's row of G is the same for any number of outputs.
    """
    finite, infinity = np.array(_FINITE[: outputs + CELLS - 2]), np.eye(outputs + CELLS - 1)[-1]
    powers = np.vander(finite, len(infinity), increasing=True)
    a, g = (np.vstack([infinity[-n:], powers[:, :n]]) for n in (outputs, CELLS))
    others = [np.delete(finite, i) for i in range(len(finite))]
    rows = [np.append(np.poly(each)[::-1], 0) / np.prod(at - each) for at, each in zip(finite, others, strict=True)]
    return a, g, np.vstack([np.poly(finite)[::-1], *rows])


class Tiles(NamedTuple):
    """Tiles of one size, side by side in an image."""

    first: Pair  # output at which they begin
    counts: Pair  # rows and columns of tiles
    outputs: Pair  # rows and columns of outputs in each
    place: slice  # of them, among all tiles of an image
    points: slice  # that they take, among all pairs of points
    a: np.ndarray  # (points, outputs)
    b: np.ndarray  # (points, cells met)

    @property
    def met(self) -> Pair:
        """Rows and columns of the cells that each one meets."""
        return self.outputs[0] + CELLS - 1, self.outputs[1] + CELLS - 1

    def pieces(self, n: int, maps: int) -> Iterator[tuple[slice, slice, slice]]:
        """A few tiles at a time: images of n, rows of tiles, and their place among the tiles of all n."""
        rows, columns = self.counts
        for images, some in blocks(n, self.counts, _AT_A_TIME // (len(self.b) * maps)):
            start = self.place.start * n + (images.start * rows + some.start) * columns
            yield images, some, slice(start, start + (images.stop - images.start) * (some.stop - some.start) * columns)


class Products(NamedTuple):
    """Pairs of points that serve the same tiles."""

    pairs: tuple[slice, slice]  # points of the rows, and of the columns
    points: slice  # the same, among all pairs of points
    place: slice  # of the tiles, among all tiles of an image


class Scheme(NamedTuple):
    """The tiles of an image of outputs, and the products that they take."""

    out_hw: Pair
    tiles: list[Tiles]
    products: list[Products]
    tile_count: int


# (rows, columns): 1 for a line's narrow tile, and for the points that it does not take; else 0. A tile takes all points
# but those that have a 1 where it has one. In this order, what each kind of tile takes is a run of pairs of points, and
# what each kind of pair serves is a run of tiles.
_KINDS = (0, 1), (0, 0), (1, 0), (1, 1)


@lru_cache(maxsize=256)
def scheme(out_hw: Pair) -> Scheme:
    """How the outputs (P, Q) of an image are cut."""
    rows, columns = (_line(n) for n in out_hw)
    pairs = [(rows.points[i], columns.points[j]) for i, j in _KINDS]
    listed = [pair for each in pairs for pair in product(*each)]
    point_ends = _ends(len(i) * len(j) for i, j in pairs)
    tile_ends = _ends(rows.counts[i] * columns.counts[j] for i, j in _KINDS)

    tiles, products = [], []
    for kind, at, points, place in zip(_KINDS, pairs, pairwise(point_ends), pairwise(tile_ends), strict=True):
        if place[0] < place[1]:
            i, j = kind
            outputs, taken = (rows.outputs[i], columns.outputs[j]), _run(kind, point_ends)
            order = [row * (outputs[1] + CELLS - 1) + column for row, column in listed[taken]]
            (a, _, b), (a2, _, b2) = map(line_matrices, outputs)
            tiles.append(
                Tiles(
                    first=(rows.first[i], columns.first[j]),
                    counts=(rows.counts[i], columns.counts[j]),
                    outputs=outputs,
                    place=slice(*place),
                    points=taken,
                    a=np.kron(a, a2)[order],
                    b=np.kron(b, b2)[order],
                )
            )
        if points[0] < points[1]:
            both = slice(at[0].start, at[0].stop), slice(at[1].start, at[1].stop)
            products.append(Products(both, slice(*points), _run(kind, tile_ends)))
    return Scheme(out_hw, tiles, products, tile_ends[-1])


def multiplications(out_hw: Pair) -> int:
    """Products of numbers that the outputs (P, Q) of an image take, for one map and one filter."""
    rows, columns = (
        whole * POINTS + (left + CELLS - 1 if left else 0) for whole, left in (divmod(n, OUTPUTS) for n in out_hw)
    )
    return rows * columns


def tile_counts(out_hw: tuple[int, ...]) -> Pair:
    """Rows and columns of tiles for the outputs (P, Q), the last ones narrow or not."""
    return -(-out_hw[0] // OUTPUTS), -(-out_hw[1] // OUTPUTS)


class _Line(NamedTuple):
    """Of one dimension: first what whole tiles have, then what the narrow one has, or only whole ones take."""

    first: Pair
    counts: Pair
    outputs: Pair
    points: tuple[range, range]


def _line(n: int) -> _Line:
    whole, left = divmod(n, OUTPUTS)
    taken = left + CELLS - 1 if left else POINTS
    return _Line((0, whole * OUTPUTS), (whole, min(left, 1)), (OUTPUTS, left), (range(taken), range(taken, POINTS)))


def _ends(lengths: Iterable[int]) -> list[int]:
    """Where each of the kinds begins, and where the last one ends."""
    return [0, *accumulate(lengths)]


def _run(kind: Pair, ends: list[int]) -> slice:
    """From the first to the last of the kinds that this one goes with."""
    fits = [number for number, other in enumerate(_KINDS) if (1, 1) not in zip(kind, other, strict=True)]
    return slice(ends[fits[0]], ends[fits[-1] + 1])
