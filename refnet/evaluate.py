"""Error rates: top-1, top-5 and per class, of one network or an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refnet import net
from refnet.backend import Array
from refnet.datasets import Dataset
from refnet.features import stream
from refnet.ops.loss import softmax
from refnet.ranks import ALONE, Group
from refnet.weights import Checkpoint


@dataclass(frozen=True)
class Scores:
    """Fractions correct, and the mean cross-entropy in nats.

    ``per_class`` holds the top-1 fraction of each class by name; ``images`` counts those that could be read.
    """

    top1: float
    top5: float
    loss: float
    per_class: dict[str, float]
    images: int


def probabilities(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    ten_crop: bool = False,
    batch: int = 64,
    device: str = "cpu",
    group: Group = ALONE,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Softmax of every image (N, classes) float64, with ten crops their mean (section 3), and the labels (N,).

    The processes of a ``group`` run a share of the batches each, and all get everything.

    Raises ValueError if the data's classes are not the network's, or no image can be read.
    """
    if checkpoint.classes and checkpoint.classes != dataset.classes:
        raise ValueError(
            f"the network knows {checkpoint.classes}, the data has {dataset.classes}: they must be the same"
        )
    outputs = checkpoint.arch.shapes()[checkpoint.arch.layers[-1].name][-1]
    if len(dataset.classes) != outputs:
        raise ValueError(f"the network has {outputs} outputs, the data {len(dataset.classes)} classes")
    found = [
        (softmax(y.astype(np.float64)).mean(axis=tuple(range(1, y.ndim - 1))), labels)
        for y, labels, _ in stream(
            checkpoint, dataset, ten_crop=ten_crop, batch=batch, device=device, group=group, threads=threads
        )
    ]
    found = [pair for pairs in group.gather(found) for pair in pairs]
    if not any(len(labels) for _, labels in found):
        raise ValueError(f"none of the {len(dataset)} images could be read")
    p, labels = (np.concatenate(each) for each in zip(*found, strict=True))
    return p, labels


def score(p: Array, labels: Array, classes: Sequence[str]) -> Scores:
    """Scores of class probabilities p (N, classes) against labels (N,)."""
    right = p[np.arange(len(p)), labels]
    # How many classes are not less probable: ties count against the network, and what is no number does too.
    rank = (~(p < right[:, None])).sum(axis=1)
    hit = rank == 1
    return Scores(
        top1=float(hit.mean()),
        top5=float((rank <= 5).mean()),
        loss=float(-np.log(np.maximum(right, 1e-300)).mean()),
        per_class={name: float(hit[labels == i].mean()) for i, name in enumerate(classes) if (labels == i).any()},
        images=len(p),
    )


def evaluate(
    checkpoints: Sequence[Checkpoint],
    dataset: Dataset,
    *,
    ten_crop: bool = False,
    batch: int = 64,
    device: str = "cpu",
    threads: int | None = None,
) -> Scores:
    """Scores of a network, or of several as an ensemble: the mean of their softmax outputs (Table 2).

    Raises
    ------
    ValueError
        If the networks differ in their classes or none is given.
    """
    if not checkpoints or any(each.classes != checkpoints[0].classes for each in checkpoints):
        raise ValueError(f"an ensemble needs networks of the same classes, got {len(checkpoints)} of different ones")
    results = [
        probabilities(each, dataset, ten_crop=ten_crop, batch=batch, device=device, threads=threads)
        for each in checkpoints
    ]
    return score(np.mean([p for p, _ in results], axis=0), results[0][1], dataset.classes)


def is_right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of which images the network finds the class; of logits (N, classes), rows of NaN are images that are bad."""
    right: np.ndarray = ~np.isnan(logits[:, 0]) & (logits.argmax(axis=1) == labels)
    return right


def surest(logits: np.ndarray, labels: np.ndarray, n: int) -> list[int]:
    """Images of up to ``n`` different classes that the network is right and surest about: by the right class's odds.

    Raises
    ------
    ValueError
        If it is right about none.
    """
    right = np.flatnonzero(is_right(logits, labels))
    others = logits[right].astype(np.float64)
    mine = others[np.arange(len(right)), labels[right]]
    others[np.arange(len(right)), labels[right]] = -np.inf
    odds = mine - np.logaddexp.reduce(others, axis=1)  # of the right class against all others, as a logarithm
    best = right[np.argsort(-odds, kind="stable")]
    if not len(best):
        raise ValueError(f"the network is wrong about all {len(labels)} images")
    _, first = np.unique(labels[best], return_index=True)  # of each class
    return [int(i) for i in best[np.sort(first)[:n]]]


def untrained(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The same network with weights drawn anew: what it would be before a training, as a control."""
    rng = np.random.default_rng(seed)
    return replace(checkpoint, params=net.init_params(checkpoint.arch, rng=rng, dtype=checkpoint.dtype))
