"""Windows over images: which cells meet, and their copies into rows (unfold) and back (fold)."""

from collections.abc import Iterator
from typing import NamedTuple

from refnet.backend import Array, array_module, empty, zeros
from refnet.geometry import Window


class Tap(NamedTuple):
    """One cell (row, col) of a window: the outputs where it lies inside the image, and the image cells it meets."""

    row: int
    col: int
    out: tuple[slice, slice, slice]
    cell: tuple[slice, slice, slice]


def taps(hw: tuple[int, int], out_hw: tuple[int, int], window: Window) -> Iterator[Tap]:
    """The cells of a window in row order; ``x[tap.cell]`` lies under ``y[tap.out]``."""
    rows = [_meet(hw[0], out_hw[0], i, window) for i in range(window.size)]
    cols = [_meet(hw[1], out_hw[1], j, window) for j in range(window.size)]
    everything = slice(None)
    for i, (out_rows, cell_rows) in enumerate(rows):
        for j, (out_cols, cell_cols) in enumerate(cols):
            yield Tap(i, j, (everything, out_rows, out_cols), (everything, cell_rows, cell_cols))


def _meet(n: int, out_n: int, offset: int, window: Window) -> tuple[slice, slice]:
    """Outputs p in 0 .. out_n with 0 <= p * stride + offset - pad < n, and those cells, as two slices."""
    _, stride, pad = window
    first = max(-(-(pad - offset) // stride), 0)
    last = min((n - 1 + pad - offset) // stride, out_n - 1)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset - pad
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)


def unfold(x: Array, *, out_hw: tuple[int, int], window: Window) -> Array:
    """Every window of ``x`` as a row: (N, H, W, C) -> (N, P, Q, K, K, C); zeros where it hangs over the edge.

    One strided copy; the product of its rows with the filters is the convolution.
    """
    xp = array_module(x)
    size, stride, pad = window
    n, h, w, c = x.shape
    if pad:
        padded = zeros((n, h + 2 * pad, w + 2 * pad, c), x)
        padded[:, pad:-pad, pad:-pad] = x
        x = padded
    image, row, col, channel = x.strides
    view = xp.lib.stride_tricks.as_strided(
        x, (n, *out_hw, size, size, c), (image, row * stride, col * stride, row, col, channel)
    )
    columns = empty(view.shape, x)
    xp.copyto(columns, view)
    return columns


def fold(columns: Array, *, hw: tuple[int, int], window: Window) -> Array:
    """The adjoint of `unfold`: each window's cells are added where they came from, (N, H, W, C) in all."""
    n, p, q, _, _, c = columns.shape
    x = zeros((n, *hw, c), columns)
    for tap in taps(hw, (p, q), window):
        x[tap.cell] += columns[tap.out][..., tap.row, tap.col, :]
    return x
