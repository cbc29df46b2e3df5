"""The Layers tab: what excites every map, found in one pass, and each map's strongest activations as a picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnet import parallel, top
from refnet.arch import Arch
from refnet.datasets import Dataset
from refnet.deconv import RULES, Strongest
from refnet.report.encode import numbers, picture, tiles
from refnet.weights import Checkpoint

TOP = 9
COLUMNS = 3  # of a square of TOP tiles
# The squares of a map's picture, side by side.
SQUARES = ("patches", *RULES)
_MAPS_AT_A_TIME = 32  # whose projections are in memory


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
        some = best.of(part)
        by_rule = [
            top.project(checkpoint, dataset, layer, maps, some, rules=rules, device=device, threads=threads)
            for rules in RULES.values()
        ]

        def draw(k: int, by_rule: list[top.LayerFeatures] = by_rule) -> bytes:
            squares = [by_rule[0].patches[k], *(top.visible(each.projections[k]) for each in by_rule)]
            sheet = np.concatenate([tiles(list(each), columns=COLUMNS) for each in squares], axis=1)
            return picture(sheet, tile=by_rule[0].patches.shape[2])

        yield from zip(maps.tolist(), parallel.run(draw, range(len(maps)), threads=threads), strict=True)
