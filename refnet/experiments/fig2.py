"""Figure 2: the strongest activations of a layer's maps, projected to pixels, beside the patches that caused them."""

from collections.abc import Callable, Sequence

import numpy as np

from refnet.datasets import Dataset
from refnet.deconv import DECONV
from refnet.layers import Rules
from refnet.top import LayerFeatures, find, project
from refnet.weights import Checkpoint


def run(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    layers: Sequence[str],
    maps: int | None = 16,
    top: int = 9,
    one_per_image: bool = True,
    rules: Rules = DECONV,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> list[LayerFeatures]:
    """Find the strongest activations of all maps of the layers in one pass, and project those of some maps.

    Parameters
    ----------
    layers : names of the layers to start from
    maps : how many maps of each layer to show, drawn at random with ``seed`` as in the paper, of those that any image
        excites; None shows all
    top : activations of each map
    one_per_image : whether they must come from different images (the paper does not say)
    rules : of the projection, `refnet.deconv.DECONV` by default
    progress : called with the number of images done

    Raises
    ------
    ValueError
        If a layer does not exist, no image can be read, or none excites any map of a layer.
    """
    if not layers or (maps is not None and maps < 1):
        raise ValueError(f"{len(layers)} layers and {maps} maps are asked for; it needs one or more of each")
    found = find(
        checkpoint, dataset, layers, top=top, one_per_image=one_per_image,
        device=device, threads=threads, progress=progress,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    features = []
    for layer in layers:
        best = found.best[layer]
        alive = np.flatnonzero(best.value[:, 0] > 0)
        shown = np.arange(len(best.value)) if maps is None else np.sort(rng.permutation(alive)[:maps])
        chosen = best.of(shown)
        features.append(project(checkpoint, dataset, layer, shown, chosen, rules=rules, device=device, threads=threads))
    return features
