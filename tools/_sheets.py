"""The pictures of Figure 2: for each map its projections on the left and the patches that caused them on the right."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refnet import images
from refnet.experiments.fig2 import PERCENTILE, LayerFeatures

COLUMNS = 4  # maps side by side
GAP = 12


def layer(features: LayerFeatures, *, tile: int | None = None) -> Image.Image:
    """All maps of one layer; a tile is enlarged to 24 pixels, or made smaller where asked."""
    tile = tile or max(24, features.patches.shape[2])
    maps = [_map(features, k, tile) for k in range(len(features.maps))]
    return Image.fromarray(images.contact_sheet(maps, columns=COLUMNS, gap=GAP))


def figure(features: Sequence[LayerFeatures], *, width: int = 1600, maps: int = 8) -> Image.Image:
    """The first maps of every layer, one layer under the other, each with a title."""
    parts = []
    for each in features:
        few = replace(each, maps=each.maps[:maps])
        tile = (width - (COLUMNS - 1) * GAP) // (COLUMNS * 2 * _side(each)) - 2
        height, wide = each.patches.shape[2:4]
        parts.append(
            _title(f"{each.layer}   each map's {each.patches.shape[1]} strongest, {height} x {wide} pixels", width)
        )
        parts.append(layer(few, tile=tile))
    page = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    for top, part in zip(np.cumsum([0, *(part.height for part in parts)]).tolist(), parts, strict=False):
        page.paste(part, (0, top))
    return page


def filters(w: np.ndarray, *, tile: int = 42) -> Image.Image:
    """Filters w (K, K, 3, M) of layer 1, each with its own contrast around grey."""
    tiles = [_scaled(images.to_uint8(w[..., m]), tile) for m in range(w.shape[-1])]
    return Image.fromarray(images.contact_sheet(tiles, columns=math.ceil(math.sqrt(2 * len(tiles)))))


def _map(features: LayerFeatures, k: int, tile: int) -> np.ndarray:
    """Projections and patches of the k-th map, two squares of tiles."""
    projections = [images.to_uint8(r, percentile=PERCENTILE) for r in features.projections[k]]
    squares = [
        images.contact_sheet([_scaled(each, tile) for each in tiles], columns=_side(features), gap=1)
        for tiles in (projections, features.patches[k])
    ]
    return images.contact_sheet(squares, columns=2, gap=3)


def _side(features: LayerFeatures) -> int:
    return math.ceil(math.sqrt(features.patches.shape[1]))


def _title(text: str, width: int) -> Image.Image:
    title = Image.new("RGB", (width, 46), "white")
    ImageDraw.Draw(title).text((0, 12), text, fill="black", font=ImageFont.load_default(size=22))
    return title


def _scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """A square of ``side`` pixels: enlarged pixel by pixel, made smaller by averaging."""
    way = Image.Resampling.BOX if side < picture.shape[0] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((side, side), way))
