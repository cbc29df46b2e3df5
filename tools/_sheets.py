"""Sheets of tiles: projections of maps beside the patches that caused them (Figures 2 and 4), and filters."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refnet import images
from refnet.experiments.fig4 import Evolution
from refnet.top import LayerFeatures, visible

COLUMNS = 4  # maps side by side
GAP = 12
FRAME, JUMP = 2, "#E69F00"  # around a tile whose activation has jumped to another image


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


def evolution(evolutions: Sequence[Evolution], *, tile: int = 56, columns: int = 2) -> Image.Image:
    """Figure 4: of each layer a row for each map, an epoch in each column, and at last the patch of the last epoch.

    A tile has a frame where its activation is in another image than the one to its left.
    """
    blocks = [_block(each, tile) for each in evolutions]
    rows = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    width = sum(block.width for block in rows[0]) + GAP * 2 * (len(rows[0]) - 1)
    page = Image.new("RGB", (width, sum(max(b.height for b in row) + GAP for row in rows) - GAP), "white")
    top = 0
    for row in rows:
        for i, block in enumerate(row):
            page.paste(block, (i * (block.width + 2 * GAP), top))
        top += max(block.height for block in row) + GAP
    return page


def _block(each: Evolution, tile: int) -> Image.Image:
    """One layer of `evolution`, with its name and the epochs on top."""
    drawn, step, head = visible(each.projections), tile + 2 * FRAME, 40
    count = len(each.epochs)
    block = Image.new("RGB", ((count + 1) * step + GAP, head + len(each.maps) * step), "white")
    pen, font = ImageDraw.Draw(block), ImageFont.load_default(size=14)
    pen.text((2, 0), each.layer, fill="black", font=font)
    for e, epoch in enumerate((*each.epochs.tolist(), "image")):
        pen.text((e * step + (GAP if e == count else 0) + step // 2, 30), str(epoch), "black", font, anchor="mm")
    for k, jumped in enumerate(each.jumped):
        for e in range(count + 1):
            left, upper = e * step + (GAP if e == count else 0), head + k * step
            if e < count and jumped[e]:
                pen.rectangle((left, upper, left + step - 1, upper + step - 1), fill=JUMP)
            picture = drawn[k, e] if e < count else each.patches[k, -1]
            block.paste(Image.fromarray(_scaled(picture, tile)), (left + FRAME, upper + FRAME))
    return block


def filters(w: np.ndarray, *, tile: int = 42) -> Image.Image:
    """Filters w (K, K, 3, M) of layer 1, each with its own contrast around grey."""
    tiles = [_scaled(images.to_uint8(w[..., m]), tile) for m in range(w.shape[-1])]
    return Image.fromarray(images.contact_sheet(tiles, columns=math.ceil(math.sqrt(2 * len(tiles)))))


def _map(features: LayerFeatures, k: int, tile: int) -> np.ndarray:
    """Projections and patches of the k-th map, two squares of tiles."""
    squares = [
        images.contact_sheet([_scaled(each, tile) for each in tiles], columns=_side(features), gap=1)
        for tiles in (visible(features.projections[k]), features.patches[k])
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
