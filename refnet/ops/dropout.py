"""Dropout, inverted: what is kept is divided by the keep rate in training, so inference does nothing."""

from __future__ import annotations  # naming np.random loads it, which takes as long as all of refnet

from typing import Any

import numpy as np

from refnet.backend import Array, check_same_dtype, empty


def dropout_mask(shape: tuple[int, ...], *, rate: float, rng: np.random.Generator, dtype: Any) -> np.ndarray:
    """0 with probability ``rate``, else 1 / (1 - rate) (section 3: rate 0.5 in layers 6 and 7).

    Drawn on the host, in float32 whatever ``dtype`` is, so that every backend and precision sees the same draws.

    Raises ValueError unless 0 <= rate < 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_mask: rate is {rate}, it needs 0 <= rate < 1")
    kept = rng.random(shape, dtype=np.float32) >= rate
    mask: np.ndarray = kept.astype(dtype) / np.dtype(dtype).type(1 - rate)
    return mask


def dropout_forward(x: Array, mask: Array) -> Array:
    """y = x mask (section 3); its backward is the same product. TypeError if dtypes or backends differ."""
    xp = check_same_dtype("dropout_forward", x=x, mask=mask)
    return xp.multiply(x, mask, out=empty(x.shape, x))
