"""The update of one array of weights on a GPU, and its filters' RMS clip (sgd.cu)."""

import numpy as np

from refnet.backend import Array, array_module, empty
from refnet.kernels.launch import pack, start

_ROWS = 32  # that one thread sums


def update(w: Array, g: Array, v: Array, *, rate: float, momentum: float, decay: float) -> None:
    """v = momentum v - rate (g + decay w); w = w + v, in place and in one pass (section 3)."""
    g, factors = array_module(g).ascontiguousarray(g), (float(rate), float(momentum), float(decay))
    width = pack(w.size, w, g, v)
    start("sgd", "update", w.size // width, 1, w, g, v, *factors, np.int64(w.size // width), dtype=w.dtype, V=width)


def clip_filters(w: Array, clip: float) -> Array:
    """As `refnet.sgd.clip_filters`; the count stays on the device, so that nobody waits for it."""
    rows, m = w.size // w.shape[-1], w.shape[-1]
    parts = -(-rows // _ROWS)
    sums, over = empty((parts, m), w), empty((m,), w, "uint8")
    start("sgd", "square_sums", m, parts, w, sums, rows, m, _ROWS, dtype=w.dtype, V=1)
    start("sgd", "clip", m, parts, w, sums, over, rows, m, parts, float(clip), dtype=w.dtype, V=1)
    return over.sum()
