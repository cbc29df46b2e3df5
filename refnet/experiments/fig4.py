"""Figure 4: how features evolve in training: each map's strongest activation at some epochs, projected to pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refnet.datasets import Dataset
from refnet.deconv import DECONV
from refnet.layers import Rules
from refnet.top import find, project
from refnet.weights import Checkpoint


@dataclass(frozen=True)
class Evolution:
    """How some maps of a layer look at E epochs, and how much all of its maps still move.

    Attributes
    ----------
    layer : its name
    epochs : (E,) in order
    maps : (K,) the maps shown
    values, images : (K, E) the strongest activation over the data, and in which image it is
    projections : (K, E, h, w, 3) float32, signed, cut to the receptive field
    patches : (K, E, h, w, 3) uint8, the image there
    changed : (E,) share of all living maps whose strongest activation is in another image than at the epoch before;
        NaN at the first
    moved, to_last : (E,) how far the maps are from where they were at the epoch before (NaN at the first), and from
        where they are at the last: the mean over the living maps of 1 - the correlation, over the data, of a map's
        largest activation in each image. 0 is no change, 1 nothing in common
    """

    layer: str
    epochs: np.ndarray
    maps: np.ndarray
    values: np.ndarray
    images: np.ndarray
    projections: np.ndarray
    patches: np.ndarray
    changed: np.ndarray
    moved: np.ndarray
    to_last: np.ndarray

    @property
    def jumped(self) -> np.ndarray:
        """(K, E) whether the activation is in another image than at the epoch before ("sudden jumps")."""
        before = np.concatenate([self.images[:, :1], self.images[:, :-1]], axis=1)
        jumped: np.ndarray = self.images != before
        return jumped


def run(
    kept: Sequence[Checkpoint],
    dataset: Dataset,
    *,
    layers: Sequence[str],
    maps: int = 6,
    rules: Rules = DECONV,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> list[Evolution]:
    """The same maps of every layer at every epoch; a layer without a living map at the last one is left out.

    Parameters
    ----------
    kept : the network at some epochs
    dataset : the training images, in the paper
    layers : names of the layers to start from
    maps : how many of each layer, drawn at random with ``seed`` from those that any image excites at the last epoch
    progress : called with the number of images done, of all epochs together

    Raises
    ------
    ValueError
        If there are not two epochs of one network, a layer does not exist, or no image can be read.
    """
    kept = sorted(kept, key=lambda checkpoint: checkpoint.epoch)
    epochs = np.array([checkpoint.epoch for checkpoint in kept])
    if len(set(epochs.tolist())) < 2 or len(set(epochs.tolist())) < len(kept):
        raise ValueError(f"the epochs are {epochs.tolist()}; to see features move it takes two or more, each once")
    if other := [checkpoint.epoch for checkpoint in kept if checkpoint.arch != kept[-1].arch]:
        raise ValueError(f"epoch {other[0]} is of another network than epoch {epochs[-1]}")
    found = []
    for number, checkpoint in enumerate(kept):
        done = number * len(dataset)
        found.append(
            find(
                checkpoint, dataset, layers, top=1, device=device, threads=threads,
                progress=lambda images, done=done: progress(done + images),  # type: ignore[misc]
            )
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    evolutions = []
    for layer in layers:
        best = [each.best[layer] for each in found]
        shown = np.sort(rng.permutation(np.flatnonzero(best[-1].value[:, 0] > 0))[:maps])
        if not len(shown):
            continue
        drawn = [
            project(checkpoint, dataset, layer, shown, each.of(shown), rules=rules, device=device, threads=threads)
            for checkpoint, each in zip(kept, best, strict=True)
        ]
        images = np.concatenate([each.image for each in best], axis=1)
        values = np.concatenate([each.value for each in best], axis=1)
        peaks = [each.peaks[layer] for each in found]
        alive = (values[:, 1:] > 0) & (values[:, :-1] > 0)
        evolutions.append(
            Evolution(
                layer,
                epochs,
                shown,
                values[shown],
                images[shown],
                np.stack([each.projections[:, 0] for each in drawn], axis=1),
                np.stack([each.patches[:, 0] for each in drawn], axis=1),
                np.append(np.nan, ((np.diff(images, axis=1) != 0) & alive).sum(axis=0) / alive.sum(axis=0)),
                np.array([np.nan, *(movement(*pair) for pair in pairwise(peaks))]),
                np.array([movement(each, peaks[-1]) for each in peaks]),
            )
        )
    return evolutions


def movement(before: np.ndarray, after: np.ndarray) -> float:
    """Mean over the maps of 1 - the correlation of their peaks (N, M) before and after; images with NaN do not count.

    Maps that are the same in all images, as dead ones are, have no correlation and are left out; NaN if all are.
    """
    read = ~np.isnan(before[:, 0])
    one, other = (peaks[read] - peaks[read].mean(axis=0) for peaks in (before.astype(float), after.astype(float)))
    norms = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    some = norms > 0
    return float(np.mean(1 - (one * other).sum(axis=0)[some] / norms[some])) if some.any() else np.nan
