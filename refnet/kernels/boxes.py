"""Boxes of maps on a GPU: all at once (boxes.cu)."""

from typing import Any

import numpy as np

from refnet.backend import Array, array_module, empty
from refnet.kernels.launch import start


def cut_boxes(x: Array, image: np.ndarray, corners: np.ndarray, *, size: tuple[int, int], beyond: float = 0.0) -> Array:
    """As `refnet.ops.boxes.cut_boxes`."""
    x, y = array_module(x).ascontiguousarray(x), empty((len(image), *size, x.shape[3]), x)
    h, w, c = x.shape[1:]
    given = _indices(image, x), _indices(corners, x), y, len(image), h, w, c, *size, x.dtype.type(beyond)
    start("boxes", "cut_boxes", size[0] * size[1] * c, len(image), x, *given, dtype=x.dtype)
    return y


def paste_boxes(y: Array, corners: np.ndarray, x: Array) -> None:
    """As `refnet.ops.boxes.paste_boxes`; x must be C-ordered."""
    y, (s, h, w, c) = array_module(y, x).ascontiguousarray(y), y.shape
    start("boxes", "paste_boxes", h * w * c, s, y, _indices(corners, x), x, s, *x.shape[1:3], c, h, w, dtype=x.dtype)


def blank_beyond(y: Array, corners: np.ndarray, *, hw: tuple[int, ...]) -> Array:
    """As `refnet.ops.boxes.blank_beyond`."""
    y, (s, h, w, c) = array_module(y).ascontiguousarray(y), y.shape
    start("boxes", "blank_beyond", h * w * c, s, y, _indices(corners, y), s, *hw[:2], c, h, w, dtype=y.dtype)
    return y


def _indices(a: Any, like: Array) -> Array:
    return array_module(like).asarray(np.ascontiguousarray(a, "int32"))
