"""Sizes, receptive fields and boxes: integers only.

Everything is in one dimension (the paper's images and windows are square); rows and columns are treated alike.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Window(NamedTuple):
    """A sliding window: its size, the step between neighbours and the padding on each side, in cells."""

    size: int
    stride: int = 1
    pad: int = 0


def conv_size(n: int, window: Window) -> int:
    """Number of window positions that fit wholly in ``n`` padded cells: floor((n + 2 pad - size) / stride) + 1."""
    return (n + 2 * window.pad - window.size) // window.stride + 1


def pool_size(n: int, window: Window, *, ceil: bool) -> int:
    """Number of pooling regions over ``n`` cells.

    With ``ceil`` the last region may hang over the far edge (Caffe, cuda-convnet), but never start beyond it.
    """
    if not ceil:
        return conv_size(n, window)
    size, stride, pad = window
    out = -(-(n + 2 * pad - size) // stride) + 1
    if (out - 1) * stride >= n + pad:
        out -= 1
    return out


class Field(NamedTuple):
    """Where the positions of a map look in the input.

    Position ``i`` sees the input cells ``start + i * stride`` to ``start + i * stride + size``, end excluded.
    """

    size: int = 1
    stride: int = 1
    start: int = 0

    def box(self, row: int, col: int) -> tuple[int, int, int, int]:
        """Input rows and columns seen at (row, col): (row0, col0, row1, col1), ends excluded, not clipped."""
        r, c = self.start + row * self.stride, self.start + col * self.stride
        return r, c, r + self.size, c + self.size


def receptive_field(windows: Iterable[Window]) -> Field:
    """Receptive field of the last of several stacked windows, first window first (paper.md, section 1)."""
    field = Field()
    for window in windows:
        field = Field(
            size=field.size + (window.size - 1) * field.stride,
            stride=field.stride * window.stride,
            start=field.start - window.pad * field.stride,
        )
    return field


def clip_box(box: tuple[int, int, int, int], hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of ``box`` (row0, col0, row1, col1) that lies in an image of ``hw`` = (height, width)."""
    row0, col0, row1, col1 = box
    row0, col0 = max(row0, 0), max(col0, 0)
    return row0, col0, max(min(row1, hw[0]), row0), max(min(col1, hw[1]), col0)
