"""Tables 4 and 5, Figure 9: what a network has learnt on one data set, used on another (section 5.2)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from refnet.arch import Arch
from refnet.classifiers import accuracy, folds, tested
from refnet.datasets import Dataset
from refnet.evaluate import probabilities
from refnet.models import with_classes
from refnet.weights import Checkpoint

# Accuracy in % and +- by images per class: Table 4 on Caltech-101, Table 5 on Caltech-256.
PAPER: dict[str, dict[int, tuple[float, float | None]]] = {
    "Caltech-101, pretrained": {15: (83.8, 0.5), 30: (86.5, 0.5)},
    "Caltech-101, from scratch": {15: (22.8, 1.5), 30: (46.5, 1.7)},
    "Caltech-256, pretrained": {15: (65.7, None), 30: (70.6, None), 45: (72.7, None), 60: (74.2, None)},
    "Caltech-256, from scratch": {15: (9.0, None), 30: (22.5, None), 45: (31.2, None), 60: (38.8, None)},
}


def pretrained(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    k: int,
    count: int = 5,
    test: int = 50,
    penalty: float | None = None,
    seed: int = 0,
) -> list[float]:
    """Accuracy in %, mean over the classes, of a new softmax on the features of a frozen network, for every fold.

    Parameters
    ----------
    x : (N, F) features of the layer below the softmax, the end of layer 7 in the paper
    labels : (N,) integers
    k : images of each class to train on
    count, test : folds, and images of each class to test on at the most
    penalty : of the weights (`refnet.classifiers.fit`)

    Raises
    ------
    ValueError
        If a class has no more than ``k`` images, and as `fit` does.
    """
    return [tested(x, labels, fold, penalty=penalty) for fold in folds(labels, k, count=count, test=test, seed=seed)]


def from_scratch(
    arch: Arch,
    dataset: Dataset,
    *,
    k: int,
    net: Callable[[str, Arch, Dataset, Dataset], Checkpoint],
    numbers: Sequence[int],
    test: int = 50,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
) -> Iterator[tuple[int, float]]:
    """The same for the same network trained on these images alone: number and accuracy in % of some of the folds.

    Parameters
    ----------
    net : trains or loads a network: net(its name, architecture, images to train on, images to test on)
    numbers : of the folds; they have the images of `pretrained`'s
    """
    splits = folds(dataset.labels, k, count=max(numbers, default=-1) + 1, test=test, seed=seed)
    for number in numbers:
        few, others = (dataset.subset(places) for places in splits[number])
        checkpoint = net(f"scratch k{k} fold{number}", with_classes(arch, len(dataset.classes)), few, others)
        p, labels = probabilities(checkpoint, others, device=device, threads=threads)
        yield number, accuracy(p.argmax(axis=1), labels)
