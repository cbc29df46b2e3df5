"""Windows over images: which cells meet, and their copies into rows (unfold) and back (fold)."""

from collections.abc import Iterator

import numpy as np

from refnet.backend import Array, array_module, empty, zeros
from refnet.geometry import Window

_FEW_BYTES = 32  # pixels of no more are worth copying a row of a window at a time


def meetings(n: int, out: int, window: Window) -> Iterator[tuple[slice, slice]]:
    """In one dimension, for each cell of a window: the outputs where it lies on 0..n - 1, and what it meets there."""
    size, stride, pad = window
    for i in range(size):
        first = max(-(-(pad - i) // stride), 0)
        last = max(min((n - 1 + pad - i) // stride, out - 1), first - 1)
        start = first * stride + i - pad
        yield slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)


def padded(x: Array, pad: int) -> Array:
    """``x`` (N, H, W, C) with ``pad`` zeros on each side; itself where pad is 0."""
    if not pad:
        return x
    n, h, w, c = x.shape
    out = zeros((n, h + 2 * pad, w + 2 * pad, c), x)
    out[:, pad:-pad, pad:-pad] = x
    return out


def cropped(x: Array, *, hw: tuple[int, int], pad: int) -> Array:
    """The adjoint of `padded`: the inner ``hw`` of x; itself where pad is 0."""
    if not pad:
        return x
    out = empty((len(x), *hw, x.shape[-1]), x)
    out[...] = x[:, pad:-pad, pad:-pad]
    return out


def unfold(x: Array, *, out_hw: tuple[int, int], window: Window, out: Array | None = None) -> Array:
    """Every window of ``x`` as a row: (N, H, W, C) -> (N, P, Q, K, K, C); zeros where it hangs over the edge.

    One strided copy, into ``out`` where it is given; the product of its rows with the filters is the convolution.
    """
    xp, (size, stride, pad) = array_module(x), window
    x = padded(x, pad)
    (image, row, col, channel), c = x.strides, x.shape[-1]
    shape = len(x), *out_hw, size, size, c
    columns = empty(shape, x) if out is None else out
    view = xp.lib.stride_tricks.as_strided(x, shape, (image, row * stride, col * stride, row, col, channel))
    to, pixel = columns, c * x.itemsize
    if xp is np and pixel <= _FEW_BYTES and view.strides[-2:] == to.strides[-2:] == (pixel, x.itemsize):
        # The cells of a window's row are copied as one item: for three colours in two thirds of the time.
        to, view = (a.reshape(*shape[:4], size * c).view(f"V{size * pixel}") for a in (to, view))
    xp.copyto(to, view)
    return columns


def fold(columns: Array, *, hw: tuple[int, int], window: Window) -> Array:
    """The adjoint of `unfold`: each window's cells are added where they came from, (N, *hw, C) in all."""
    x = zeros((len(columns), hw[0] + 2 * window.pad, hw[1] + 2 * window.pad, columns.shape[-1]), columns)
    add_windows(x, columns, stride=window.stride)
    return cropped(x, hw=hw, pad=window.pad)


def add_windows(x: Array, columns: Array, *, stride: int) -> None:
    """Add to x (N, H, W, C), which has its padding, the windows (N, P, Q, K, K, C) where they lie."""
    xp, size = array_module(x, columns), columns.shape[3]
    image, row, col, channel = x.strides
    apart = -(-size // stride)  # windows so many steps apart don't overlap: a row of each is added at once
    for i in range(size):
        for first in range(min(apart, columns.shape[2])):
            rows = columns[:, :, first::apart, i]
            strides = image, row * stride, col * stride * apart, col, channel
            meets = xp.lib.stride_tricks.as_strided(x[:, i:, first * stride :], rows.shape, strides)
            meets += rows


def scatter(values: Array, cells: Array, *, hw: tuple[int, int]) -> Array:
    """Maps (N, *hw, C) of zeros with each image's values (N, P, Q, C) added at ``cells``, in the order of the values.

    ``cells`` are int32 and count through the image's (*hw, C), in no check; with N = 1 they serve every image.
    """
    xp, (n, p, q, c) = array_module(values, cells), values.shape
    x, size, each = empty((n, *hw, c), values), hw[0] * hw[1] * c, p * q * c
    cells = xp.broadcast_to(cells, values.shape)
    if xp is not np:
        x.fill(0)
        xp.add.at(x.reshape(n, size), (xp.arange(n)[:, None], cells.reshape(n, each)), values.reshape(n, each))
        return x
    # Images as the rows of a sparse matrix, whose entries add up where they meet. NumPy's add.at does the same, but
    # would hold the interpreter, for which the other threads wait.
    from scipy.sparse import csr_array

    entries = values.reshape(-1), cells.reshape(-1), np.arange(n + 1) * each
    csr_array(entries, shape=(n, size)).toarray(out=x.reshape(n, size))
    return x


def blocks(n: int, out_hw: tuple[int, ...], most: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of the outputs of n images, in blocks of at most ``most`` positions or one row."""
    p, q = out_hw
    images, rows = max(most // (p * q), 1), min(max(most // q, 1), p)
    for first in range(0, n, images):
        for row in range(0, p, rows):
            yield slice(first, min(first + images, n)), slice(row, min(row + rows, p))


def group_slices(c: int, m: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """For each group, its slice of the C maps and its slice of the M filters."""
    for g in range(groups):
        yield slice(g * c // groups, (g + 1) * c // groups), slice(g * m // groups, (g + 1) * m // groups)
