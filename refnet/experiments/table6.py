"""Table 6: which of several classes an image shows, from a frozen network's features, by average precision."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from scipy.special import softmax as probabilities

from refnet.classifiers import PENALTIES, fit, softmax, svm

# "one-against-all": an SVM for each class. "softmax": one of all classes, an image counted for each that it shows; that
# is the paper's, which says itself that a single exclusive answer does not suit these images.
Method = Literal["one-against-all", "softmax"]
METHODS: tuple[Method, ...] = ("one-against-all", "softmax")

# Mean average precision in % on PASCAL VOC 2012: the paper's, Sande et al.'s and Yan et al.'s.
PAPER_MEAN = 79.0
OTHERS = {"Sande et al.": 74.3, "Yan et al.": 82.2}


def run(
    x: np.ndarray,
    presence: np.ndarray,
    test_x: np.ndarray,
    test_presence: np.ndarray,
    *,
    classes: Sequence[int],
    method: Method = "one-against-all",
    penalty: float | None = None,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """Average precision in % on the test images for some of the classes, each as soon as it is known.

    Parameters
    ----------
    x, test_x : (N, F), (M, F) features
    presence, test_presence : (N, C), (M, C) as in `refnet.voc.Part`: 1, -1, or 0 for an image that does not count
    classes : places of those asked for
    method : of `METHODS`
    penalty : of the weights (`refnet.classifiers.fit`). Default: three-fold cross-validation on the training images; of
        one-against-all by average precision, for each class on its own.
    seed : of the cross-validation

    Raises
    ------
    ValueError
        If a class lacks images that show it, or that do not, to train or to test on; and as `fit` does.
    """
    for label in classes:
        for given, of in ((presence, "train"), (test_presence, "test")):
            shown, not_shown = ((given[:, label] == sign).sum() for sign in (1, -1))
            if not (shown and not_shown):
                raise ValueError(
                    f"class {label} is shown by {shown} images and not by {not_shown}; to {of} on, both are needed"
                )
    everything = _exclusive(x, presence, test_x, penalty, seed) if method == "softmax" else None
    for label in classes:
        if everything is not None:
            scores = everything[:, label]
        else:
            counts = presence[:, label] != 0
            scores = _against_all(x[counts], presence[counts, label] > 0, test_x, penalty, seed)
        counts = test_presence[:, label] != 0
        yield label, 100 * average_precision(scores[counts], test_presence[counts, label] > 0)


def average_precision(scores: np.ndarray, shown: np.ndarray) -> float:
    """Area under the precision-recall curve made monotone, as PASCAL VOC defines it since 2010.

    AP = sum over the steps of recall r_k of (r_k - r_(k-1)) * max over j >= k of precision_j. Images of equal score
    enter together, so that their order does not matter: scores that tell nothing give the share of ``shown``.

    Parameters
    ----------
    scores : (N,) higher for images that are thought to show the class
    shown : (N,) bool, those that do

    Raises
    ------
    ValueError
        If no image shows the class or a score is not finite.
    """
    if not shown.any() or not np.isfinite(scores).all():
        raise ValueError(
            f"{shown.sum()} of {len(shown)} images show the class; it needs one or more, and finite scores"
        )
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)  # the last of those with equal scores
    found, seen = shown[order].cumsum()[ends], np.flatnonzero(ends) + 1
    precision = np.maximum.accumulate((found / seen)[::-1])[::-1]
    return float(np.diff(found, prepend=0) @ precision / found[-1])


def _exclusive(x: np.ndarray, presence: np.ndarray, test_x: np.ndarray, penalty: float | None, seed: int) -> np.ndarray:
    """Probabilities (M, C) of one softmax over all classes."""
    image, label = np.nonzero(presence == 1)
    classifier = fit(x[image], label, presence.shape[1], loss=softmax, penalty=penalty, seed=seed)
    found: np.ndarray = probabilities(classifier.scores(test_x), axis=1)
    return found


def _against_all(x: np.ndarray, shown: np.ndarray, test_x: np.ndarray, penalty: float | None, seed: int) -> np.ndarray:
    """Scores (M,) of one class's SVM."""
    if penalty is None:
        penalty = _chosen(x, shown, seed)
    return fit(x, shown.astype(int), 2, loss=svm, penalty=penalty).scores(test_x)[:, 1]


def _chosen(x: np.ndarray, shown: np.ndarray, seed: int) -> float:
    """The penalty with the best average precision in three-fold cross-validation; the middle one if too few show it."""
    if min(shown.sum(), (~shown).sum()) < 3:
        return PENALTIES[len(PENALTIES) // 2]
    rng = np.random.default_rng(seed)
    part = np.empty(len(shown), int)  # of three, as evenly over those that show it and those that don't as can be
    for these in (shown, ~shown):
        part[these] = rng.permutation(these.sum()) % 3

    def precision(penalty: float) -> float:
        return sum(
            average_precision(_against_all(x[part != held], shown[part != held], x[part == held], penalty, seed),
                              shown[part == held])
            for held in range(3)
        )  # fmt: skip

    return max(PENALTIES, key=precision)
