"""Features of a data set, kept on disk part by part: what was interrupted goes on where it stopped."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import _cli
import numpy as np

from refnet import features, parallel
from refnet.arch import Arch
from refnet.datasets import Dataset
from refnet.weights import Checkpoint

PART = 1024  # images whose features are kept together
GRID = 6  # cells in each direction: as many as layer 5 has in the paper


def collect(
    folder: Path,
    checkpoint: Checkpoint,
    data: Dataset,
    layers: Sequence[str],
    *,
    grid: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What `refnet.features.collect` gives, pooled to a ``grid`` if there is one; parts of an earlier run are read.

    A part in FOLDER belongs to its network, images and layers; those of others are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = digest(checkpoint, [*layers, str(grid)])
    reduce = functools.partial(features.pooled, grid=grid) if grid else lambda y: y
    found, good = [], []
    with _cli.progress(len(data), f"features {' '.join(layers)}") as progress:
        for part in parallel.cut(len(data), PART):
            images = range(len(data))[part]
            some = data.subset(images)
            path = folder / f"{key}-{some.digest()}.npz"
            if not path.exists():
                y, indices = features.collect(checkpoint, some, layers, reduce=reduce, device=device, threads=threads)
                unfinished = path.with_suffix(".tmp.npz")
                np.savez(unfinished, indices=indices, **{f"y {layer}": each for layer, each in y.items()})
                os.replace(unfinished, path)
            with np.load(path, allow_pickle=False) as kept:
                found.append({layer: kept[f"y {layer}"] for layer in layers})
                good.append(kept["indices"] + images.start)
            progress(images.stop)
    return {layer: np.concatenate([each[layer] for each in found]) for layer in layers}, np.concatenate(good)


def grid_of(arch: Arch, layer: str) -> int | None:
    """Cells, in each direction, that a layer's maps are averaged over for a linear classifier; none for units."""
    arch.index(layer)  # raises where there is none
    return GRID if len(arch.shapes()[layer]) == 3 else None


def digest(checkpoint: Checkpoint, layers: Sequence[str]) -> str:
    """A short fingerprint of a network and the layers asked for."""
    sha = hashlib.sha256(repr((checkpoint.arch.to_json(), checkpoint.scale, *layers)).encode())
    for array in (checkpoint.mean, *(a for layer in checkpoint.params.values() for a in layer.values())):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
