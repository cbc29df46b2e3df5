"""The Training tab: curves, the filters' RMS, and the features of kept epochs (Figure 4)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from refnet.arch import Params
from refnet.datasets import Dataset
from refnet.experiments import fig4
from refnet.report.encode import numbers, picture, tiles
from refnet.sgd import filter_rms
from refnet.top import visible
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

    Yields
    ------
    name, picture, facts : of a layer at an epoch; its tiles in `COLUMNS`, and of each tile its map, image and value
    """
    for each in fig4.run(kept, dataset, layers=layers, maps=SHOWN, device=device, threads=threads, progress=progress):
        for e, epoch in enumerate(each.epochs.tolist()):
            drawn = visible(each.projections[:, e])
            facts = {
                "layer": each.layer,
                "epoch": epoch,
                "maps": each.maps.tolist(),
                "images": [dataset.names[i] for i in each.images[:, e].tolist()],
                "values": numbers(each.values[:, e]),
            }
            sheet = picture(tiles(list(drawn), columns=COLUMNS), tile=drawn.shape[1])
            yield f"{each.layer}-{epoch:03}.webp", sheet, facts
