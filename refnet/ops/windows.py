"""Windows over images: which cells meet, and their copies into rows (unfold) and back (fold).

The cells that neighbouring windows see at one place lie ``stride`` columns apart. Work that visits a window cell by
cell is several times faster where they lie side by side, so the columns are dealt out to ``stride`` planes first.
"""

from collections.abc import Iterator

from refnet.backend import Array, array_module, empty, zeros
from refnet.geometry import Window

Index = tuple[slice | int, ...]


def meetings(n: int, out: int, window: Window) -> Iterator[tuple[slice, slice]]:
    """In one dimension, for each cell of a window: the outputs where it lies on 0..n - 1, and what it meets there."""
    size, stride, pad = window
    for i in range(size):
        first = max(-(-(pad - i) // stride), 0)
        last = max(min((n - 1 + pad - i) // stride, out - 1), first - 1)
        start = first * stride + i - pad
        yield slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)


def taps(out_hw: tuple[int, int], window: Window) -> Iterator[tuple[int, Index]]:
    """The cells of a window in row order: ``row * size + col``, and where all windows see it in `blank_planes`."""
    size, stride, _ = window
    (p, q), all_images = out_hw, slice(None)
    for row in range(size):
        for col in range(size):
            rows = slice(row, row + (p - 1) * stride + 1, stride)
            yield row * size + col, (col % stride, all_images, rows, slice(col // stride, col // stride + q))


def blank_planes(n: int, c: int, *, out_hw: tuple[int, int], window: Window, like: Array) -> Array:
    """Zeros (stride, N, U, V, C) for n images whose columns are dealt out in turn, as far as windows reach.

    planes[k, n, u, v, c] stands for x[n, u - pad, v stride + k - pad, c].
    """
    size, stride, _ = window
    rows, columns = (out_hw[0] - 1) * stride + size, out_hw[1] + (size - 1) // stride
    return zeros((stride, n, rows, columns, c), like)


def join(dealt: Array, *, hw: tuple[int, int], window: Window) -> Array:
    """The images (N, *hw, C) whose columns were dealt out (`blank_planes`); 0 where no window reaches."""
    _, n, _, _, c = dealt.shape
    x = zeros((n, *hw, c), dealt)
    for plane, cells in _dealt(dealt.shape, hw, window.pad):
        x[cells] = dealt[plane]
    return x


def _dealt(shape: tuple[int, ...], hw: tuple[int, int], pad: int) -> Iterator[tuple[Index, Index]]:
    """For each plane, where it lies over the image, and the cells of the image there."""
    (stride, _, rows, columns, _), (h, w) = shape, hw
    h, everything = min(h, rows - pad), slice(None)
    for k in range(stride):
        first = max(-(-(pad - k) // stride), 0)  # of its columns, inside the image
        start = first * stride + k - pad
        count = max(min(columns - first, -(-(w - start) // stride)), 0)
        yield (
            (k, everything, slice(pad, pad + h), slice(first, first + count)),
            (everything, slice(h), slice(start, start + count * stride, stride)),
        )


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


def unfold(x: Array, *, out_hw: tuple[int, int], window: Window) -> Array:
    """Every window of ``x`` as a row: (N, H, W, C) -> (N, P, Q, K, K, C); zeros where it hangs over the edge.

    One strided copy; the product of its rows with the filters is the convolution.
    """
    xp = array_module(x)
    size, stride, pad = window
    x = padded(x, pad)
    image, row, col, channel = x.strides
    view = xp.lib.stride_tricks.as_strided(
        x, (len(x), *out_hw, size, size, x.shape[-1]), (image, row * stride, col * stride, row, col, channel)
    )
    columns = empty(view.shape, x)
    xp.copyto(columns, view)
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
