"""The Training tab: curves, the filters' RMS, and the features of kept epochs (Figure 4)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from refnet.arch import Params
from refnet.datasets import Dataset
from refnet.deconv import Strongest
from refnet.experiments import fig2
from refnet.report.encode import numbers, picture, tiles
from refnet.report.maps import find, visible
from refnet.sgd import filter_rms
from refnet.weights import Checkpoint

SHOWN = 24  # maps of each layer
COLUMNS = 6  # of the sheet of an epoch


def spread(params: Params) -> dict[str, Any]:
    """Root mean square of every filter of the convolutions (section 3 clips it at 0.1)."""
    return {name: numbers(filter_rms(layer["w"])) for name, layer in params.items() if layer["w"].ndim == 4}


def evolution(
    kept: Sequence[Checkpoint],
    dataset: Dataset,
    layers: Sequence[str],
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Each layer's strongest activations at each of the kept epochs, projected (Figure 4).

    The maps are the same in all epochs: evenly taken from those that any image excites in the last one.

    Yields
    ------
    name, picture, facts : of a layer at an epoch; its tiles in `COLUMNS`, and of each tile its map, image and value
    """
    shown: dict[str, np.ndarray] = {}
    for checkpoint in reversed(kept):
        found = find(checkpoint, dataset, layers, top=1, device=device, threads=threads, progress=progress)
        for layer in layers:
            best = found.best[layer]
            if layer not in shown:
                alive = np.flatnonzero(best.value[:, 0] > 0)
                places = np.linspace(0, len(alive), min(SHOWN, len(alive)), endpoint=False)
                shown[layer] = alive[places.astype(int)]
            maps = shown[layer]
            if not len(maps):
                continue
            some = Strongest(*(getattr(best, each)[maps] for each in ("value", "image", "row", "col")))
            features = fig2.project(checkpoint, dataset, layer, maps, some, device=device, threads=threads)
            drawn = visible(features.projections[:, 0])
            facts = {
                "layer": layer,
                "epoch": checkpoint.epoch,
                "maps": maps.tolist(),
                "images": [dataset.names[i] for i in some.image[:, 0].tolist()],
                "values": numbers(some.value[:, 0]),
            }
            sheet = picture(tiles(list(drawn), columns=COLUMNS), tile=drawn.shape[1])
            yield f"{layer}-{checkpoint.epoch:03}.webp", sheet, facts
