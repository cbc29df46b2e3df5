"""The Layers tab: what excites every map, found in one pass, and each map's strongest activations as a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnet import images, parallel
from refnet.arch import Arch
from refnet.backend import Array, to_host
from refnet.datasets import Dataset
from refnet.deconv import RULES, Strongest, Strongests
from refnet.experiments import fig2
from refnet.features import stream
from refnet.images import Pixels
from refnet.report.encode import numbers, picture, tiles
from refnet.weights import Checkpoint

TOP = 9
COLUMNS = 3  # of a square of TOP tiles
# The squares of a map's picture, side by side.
SQUARES = ("patches", *RULES)
_MAPS_AT_A_TIME = 32  # whose projections are in memory


@dataclass(frozen=True)
class Found:
    """What one pass over the data has found, by layer.

    ``best`` are the strongest activations of all maps, and ``peaks`` (N, M) the largest activation of each map in each
    image, NaN where the image cannot be read.
    """

    best: Mapping[str, Strongest]
    peaks: Mapping[str, np.ndarray]


def find(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layers: Sequence[str],
    *,
    top: int = TOP,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Found:
    """Run all images up to the last of the layers; ``progress`` is called with the number of images done.

    Raises
    ------
    ValueError
        If no image can be read.
    """
    shapes = checkpoint.arch.shapes()
    peaks = {layer: np.full((len(dataset), shapes[layer][-1]), np.nan, np.float32) for layer in layers}
    strongest = Strongests(tuple(layers), top=top)

    def watch(layer: str, image: np.ndarray, y: Array) -> None:
        strongest.watch(layer, image, y)
        if layer in peaks:
            peaks[layer][image] = to_host(y.max(axis=(1, 2)))

    last, done = max(layers, key=checkpoint.arch.index), 0
    for y, _, _ in stream(checkpoint, dataset, layer=last, watch=watch, device=device, threads=threads):
        done += len(y)
        progress(done)
    if not done:
        raise ValueError(f"none of the {len(dataset)} images could be read")
    return Found({layer: strongest.of(layer) for layer in layers}, peaks)


@dataclass(frozen=True)
class Habits:
    """How the maps of a layer behave over the data.

    Attributes
    ----------
    means : (classes, M) mean of a map's peaks over the images of a class; NaN for a class without images
    favourite : (M,) class with the largest mean
    selectivity : (M,) (mu - nu) / (mu + nu) of the favourite's mean mu and the mean nu of the other classes (Morcos et
        al. 2018): 0 for a map that all classes excite alike or none does, 1 for one that a single class excites
    quiet : (M,) share of the images that do not excite the map at all
    """

    means: np.ndarray
    favourite: np.ndarray
    selectivity: np.ndarray
    quiet: np.ndarray


def habits(peaks: np.ndarray, labels: np.ndarray, classes: int) -> Habits:
    """The habits of maps with these peaks (N, M) in images of these labels (N,)."""
    read = ~np.isnan(peaks[:, 0])
    peaks, labels = peaks[read].astype(np.float64), labels[read]
    means = np.full((classes, peaks.shape[1]), np.nan)
    present = np.unique(labels)
    for label in present:
        means[label] = peaks[labels == label].mean(axis=0)
    mu = means[present].max(axis=0)
    nu = (means[present].sum(axis=0) - mu) / max(len(present) - 1, 1)
    total = np.where(mu + nu > 0, mu + nu, 1)
    return Habits(means, present[means[present].argmax(axis=0)], (mu - nu) / total, (peaks <= 0).mean(axis=0))


def entries(arch: Arch, layer: str, best: Strongest, habits: Habits) -> list[dict[str, Any]]:
    """A layer's maps as the page reads them; only what excites a map is listed."""
    field = arch.field(layer)
    return [
        {
            "values": numbers(best.value[m, :n]),
            "images": best.image[m, :n].tolist(),
            "boxes": [field.box(*at) for at in zip(best.row[m, :n].tolist(), best.col[m, :n].tolist(), strict=True)],
            "means": numbers(habits.means[:, m]),
            "favourite": int(habits.favourite[m]),
            "selectivity": float(f"{habits.selectivity[m]:.4g}"),
            "quiet": float(f"{habits.quiet[m]:.4g}"),
        }
        for m, n in enumerate((best.value > 0).sum(axis=1).tolist())
    ]


def pictures(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layer: str,
    best: Strongest,
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Each map's number and picture: `SQUARES` side by side, patches and what every rule makes of them."""
    for part in parallel.cut(len(best.value), _MAPS_AT_A_TIME):
        maps = np.arange(part.start, part.stop)
        some = Strongest(*(getattr(best, each)[part] for each in ("value", "image", "row", "col")))
        by_rule = [
            fig2.project(checkpoint, dataset, layer, maps, some, rules=rules, device=device, threads=threads)
            for rules in RULES.values()
        ]

        def draw(k: int, by_rule: list[fig2.LayerFeatures] = by_rule) -> bytes:
            squares = [by_rule[0].patches[k], *(visible(each.projections[k]) for each in by_rule)]
            sheet = np.concatenate([tiles(list(each), columns=COLUMNS) for each in squares], axis=1)
            return picture(sheet, tile=by_rule[0].patches.shape[2])

        yield from zip(maps.tolist(), parallel.run(draw, range(len(maps)), threads=threads), strict=True)


def visible(projections: np.ndarray) -> Pixels:
    """Projections (K, h, w, 3) as pixels, each with its own contrast."""
    return np.stack([images.to_uint8(r, percentile=fig2.PERCENTILE) for r in projections])
