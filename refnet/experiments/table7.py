"""Table 7: how well each layer's features tell classes, by a linear SVM or a softmax on top (section 5.3)."""

from collections.abc import Iterator, Mapping

import numpy as np

from refnet.classifiers import Loss, folds, softmax, svm, tested

LOSSES: dict[str, Loss] = {"SVM": svm, "softmax": softmax}
# Accuracy in % by the layer's number: on Caltech-101 with 30 images per class, on Caltech-256 with 60.
PAPER = {
    "SVM": {1: (44.8, 24.6), 2: (66.2, 39.6), 3: (72.3, 46.0), 4: (76.6, 51.3), 5: (86.2, 65.6), 7: (85.5, 71.7)},
    "softmax": {5: (82.9, 65.7), 7: (85.4, 72.6)},
}


def run(
    features: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    k: int,
    losses: tuple[str, ...] = ("SVM", "softmax"),
    count: int = 5,
    test: int = 50,
    penalty: float | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, str, list[float]]]:
    """Accuracy in %, mean over the classes, for every classifier, layer and fold.

    Parameters
    ----------
    features : (N, ...) of each layer; maps are flattened
    labels : (N,) integers
    k : images of each class to train on
    losses : names of `LOSSES`
    count, test : folds, and images of each class to test on at the most
    penalty : of the weights (`refnet.classifiers.fit`); default by cross-validation, for each layer on its own

    Yields
    ------
    classifier, layer, accuracies of the folds

    Raises
    ------
    ValueError
        If a class has no more than ``k`` images, and as `fit` does.
    """
    splits = folds(labels, k, count=count, test=test, seed=seed)
    for name in losses:
        for layer, x in features.items():
            flat = x.reshape(len(x), -1)
            yield name, layer, [tested(flat, labels, fold, loss=LOSSES[name], penalty=penalty) for fold in splits]
