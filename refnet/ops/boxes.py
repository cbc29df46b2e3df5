"""Boxes of maps, one for each signal: cut out, pasted, and blanked beyond the edge."""

from collections.abc import Iterator

import numpy as np

from refnet.backend import Array, empty
from refnet.geometry import clip_box

Cells = tuple[int, slice, slice]


def cut_boxes(x: Array, image: np.ndarray, corners: np.ndarray, *, size: tuple[int, int], beyond: float = 0.0) -> Array:
    """y[s, i, j, c] = x[image[s], corners[s, 0] + i, corners[s, 1] + j, c], or ``beyond`` outside of the maps.

    What a layer kept for the cells that an activation's way to the pixels meets (section 2.1), or what surrounds an
    occluded part (section 4.2).

    Parameters
    ----------
    x : (N, H, W, C) maps of any dtype
    image : (S,) integers on the host
    corners : (S, 2) first row and column of each box, on the host; boxes may hang over the edge
    size : height and width of all boxes

    Returns
    -------
    y : (S, *size, C)
    """
    y = empty((len(image), *size, x.shape[3]), x)
    y.fill(beyond)
    for s, there, here in _inside(corners, size, x.shape[1:3]):
        y[here] = x[(image[s], *there[1:])]
    return y


def paste_boxes(y: Array, corners: np.ndarray, x: Array) -> None:
    """x[s, corners[s, 0] + i, corners[s, 1] + j, c] = y[s, i, j, c], in place, where that is inside of x (section 4.2).

    Parameters
    ----------
    y : (S, h, w, C) boxes
    corners : (S, 2) first row and column of each, on the host
    x : (S, H, W, C) maps
    """
    for _, there, here in _inside(corners, y.shape[1:3], x.shape[1:3]):
        x[there] = y[here]


def blank_beyond(y: Array, corners: np.ndarray, *, hw: tuple[int, ...]) -> Array:
    """Boxes y (S, h, w, C) with 0 in the cells beyond maps (*hw), which carry no signal (section 2.1).

    y itself is overwritten; on a GPU only where it is C-ordered.
    """
    for s, _, (_, rows, columns) in _inside(corners, y.shape[1:3], hw):
        y[s, : rows.start] = 0
        y[s, rows.stop :] = 0
        y[s, :, : columns.start] = 0
        y[s, :, columns.stop :] = 0
    return y


def _inside(corners: np.ndarray, size: tuple[int, ...], hw: tuple[int, ...]) -> Iterator[tuple[int, Cells, Cells]]:
    """For each box its number, and the part of it on maps (*hw): there, and in the box."""
    for s, (row, column) in enumerate(corners.tolist()):
        top, left, bottom, right = clip_box((row, column, row + size[0], column + size[1]), (hw[0], hw[1]))
        there = s, slice(top, bottom), slice(left, right)
        yield s, there, (s, slice(top - row, bottom - row), slice(left - column, right - column))
