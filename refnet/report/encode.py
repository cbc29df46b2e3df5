"""Arrays and numbers as the files that a page opened from a folder can load: scripts of JSON, and pictures."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from refnet import images
from refnet.images import Pixels

_QUALITY = 88
_SMALL = 32  # pixels; below, a tile is shown enlarged, and what compression does to its pixels would be seen


def script(key: str, value: Any) -> bytes:
    """A classic script that hands ``value`` to the page: from file://, browsers load neither JSON nor modules.

    The text is ASCII without <, so that no name in it can end a string or an element. What is not finite is null.
    """
    text = f"refnet.take({json.dumps(key)}, {json.dumps(_finite(value), allow_nan=False, separators=(',', ':'))});\n"
    return text.replace("<", "\\u003c").encode("ascii")


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value


def numbers(array: np.ndarray) -> Any:
    """Nested lists of floats with four significant digits, which is more than a page shows."""
    flat = [float(f"{value:.4g}") for value in array.ravel().tolist()]
    return np.array(flat, dtype=object).reshape(array.shape).tolist()


def picture(pixels: Pixels, *, tile: int) -> bytes:
    """A WebP file of pixels (H, W, 3) that hold tiles of that side; lossless where these are small."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=_QUALITY, lossless=tile < _SMALL, method=4)
    return file.getvalue()


def tiles(parts: Sequence[Pixels], *, columns: int) -> Pixels:
    """Tiles (h, w, 3) without gaps, as a page cuts them out again; the last row is filled up with grey."""
    return images.contact_sheet(parts, columns=columns, gap=0, background=128)
