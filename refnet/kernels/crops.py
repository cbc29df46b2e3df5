"""Training crops made on a GPU from the pixels of whole images (crops.cu)."""

from typing import Any

import numpy as np

from refnet.backend import Array, array_module, empty
from refnet.images import Draws
from refnet.kernels.launch import start


def crops(pixels: Array, of: np.ndarray, draws: Draws, *, size: int, mean: Array, scale: float) -> Array:
    """As `refnet.images.crops`: each crop within float32's rounding of Pillow's.

    Parameters
    ----------
    pixels : (n, S, S, 3) uint8, on the device
    of : (m,) on the host: the image that each crop is from
    draws : of m crops, on the host
    mean : (S, S, 3) float32 in 0..255, on the device

    Returns
    -------
    x : (m, size, size, 3) float32

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    xp, side, m = array_module(pixels, mean), pixels.shape[1], len(of)
    if mean.shape != pixels.shape[1:] or len(draws.box) != m:
        raise ValueError(f"crops: pixels {pixels.shape}, mean {mean.shape}, {m} crops of {len(draws.box)} boxes")
    jitter = bool((draws.colour != 1).any())

    def put(a: Any, dtype: str) -> Array:
        return xp.asarray(np.ascontiguousarray(a, dtype))

    images, box, mirror = put(of, "int32"), put(draws.box, "int32"), put(draws.mirror, "uint8")
    colour, x = put(draws.colour, "float32"), empty((m, size, size, 3), mean)
    rows, grey = empty((m, side) if jitter else (1, 1), mean), empty((m,), mean)
    if jitter:
        start("crops", "grey_rows", side, m, pixels, images, box, rows, m, side, dtype="float32")
        start("crops", "grey_mean", m, 1, rows, box, grey, m, side, dtype="float32")
    start(
        "crops", "crops", size * size, m,
        pixels, images, box, mirror, colour, grey, mean, x, m, side, size, jitter, float(scale), dtype="float32",
    )  # fmt: skip
    return x
