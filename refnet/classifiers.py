"""Linear classifiers on features, softmax and support vector machines, and how they are tested (section 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from refnet.backend import one_blas_thread

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
ITERATIONS = 2000


@dataclass(frozen=True)
class Classifier:
    """Scores of C classes from F features: less ``mean``, times ``scale`` (F,), times ``w`` (F, C), plus ``b``."""

    mean: np.ndarray
    scale: np.ndarray
    w: np.ndarray
    b: np.ndarray
    penalty: float

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Of features x (N, F): (N, C)."""
        found: np.ndarray = (x - self.mean) * self.scale @ self.w + self.b
        return found


# Loss of scores (N, C) with labels (N,), and its gradient.
Loss = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


def softmax(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy, in nats, and its gradient (section 5.2: "a new softmax classifier")."""
    log_p, n = log_softmax(scores, axis=1), len(labels)
    gradient = np.exp(log_p)
    gradient[np.arange(n), labels] -= 1
    return float(-log_p[np.arange(n), labels].mean()), gradient / n


def svm(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean squared hinge, summed over the classes, each against all others, and its gradient (section 5.3)."""
    sign = np.full(scores.shape, -1.0)
    sign[np.arange(len(labels)), labels] = 1
    margin = np.maximum(1 - sign * scores, 0)
    return float((margin**2).sum() / len(labels)), -2 * sign * margin / len(labels)


def fit(
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    loss: Loss = softmax,
    penalty: float | None = None,
    seed: int = 0,
) -> Classifier:
    """Minimise loss + penalty / 2 |w|^2 by L-BFGS.

    Features are brought to mean 0 and deviation 1 over x, and divided by the square root of their number, so that a
    penalty means the same for any number of them.

    Parameters
    ----------
    x : (N, F) features
    labels : (N,) integers below ``classes``
    penalty : default that of `PENALTIES` with the least loss in three-fold cross-validation on x, drawn with ``seed``

    Raises
    ------
    ValueError
        If there are no images, x is not finite, or L-BFGS does not converge.
    """
    if not len(x) or not np.isfinite(x).all():
        raise ValueError(f"{len(x)} images with features {x.shape[1:]}; it needs one or more, all finite")
    if penalty is None:
        penalty = _chosen(x, labels, classes, loss, seed)
    return _fits(x, labels, classes, loss, [penalty])[0]


def _fits(x: np.ndarray, labels: np.ndarray, classes: int, loss: Loss, penalties: Sequence[float]) -> list[Classifier]:
    """What `fit` finds with each of the penalties; every search begins where the one before has ended."""
    x = x.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    varies = deviation > 1e-12 * np.abs(mean)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0) / np.sqrt(x.shape[1])
    found, flat = [], None
    with one_blas_thread():  # the products are small
        z, basis = (x - mean) * scale, None
        if z.shape[1] > len(z):
            # The best w lies in the span of the images, as any other part of it only adds to |w|. So with z' = QR it is
            # Qv, and of v there are no more values than images.
            basis, triangle = np.linalg.qr(z.T)
            z = triangle.T
        for penalty in penalties:
            flat = _minimum(z, labels, classes, loss, penalty, flat)
            w, b = flat[:-classes].reshape(-1, classes), flat[-classes:]
            found.append(Classifier(mean, scale, w if basis is None else basis @ w, b, penalty))
    return found


def _minimum(
    z: np.ndarray, labels: np.ndarray, classes: int, loss: Loss, penalty: float, start: np.ndarray | None
) -> np.ndarray:
    """Where loss + penalty / 2 |w|^2 is least: w (F, C) and b (C,), one after the other."""

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat[:-classes].reshape(-1, classes), flat[-classes:]
        value, gradient = loss(z @ w + b, labels)
        down = np.concatenate([(z.T @ gradient + penalty * w).ravel(), gradient.sum(axis=0)])
        return value + penalty / 2 * float((w**2).sum()), down

    start = np.zeros((z.shape[1] + 1) * classes) if start is None else start
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS, "maxfun": 10**6})
    if not found.success:
        raise ValueError(f"L-BFGS has not converged with penalty {penalty:g} ({found.message}); use a larger penalty")
    flat: np.ndarray = found.x
    return flat


def _chosen(x: np.ndarray, labels: np.ndarray, classes: int, loss: Loss, seed: int) -> float:
    """The penalty with the least loss on images held out; the middle one where no class has three."""
    if np.bincount(labels, minlength=classes).max() < 3:
        return PENALTIES[len(PENALTIES) // 2]
    part = np.empty(len(labels), int)  # of three, as evenly over the classes as can be
    rng = np.random.default_rng(seed)
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        part[members] = rng.permutation(len(members)) % 3
    losses = np.zeros(len(PENALTIES))
    for held in (part == number for number in range(3)):
        fits = _fits(x[~held], labels[~held], classes, loss, PENALTIES)
        losses += [held.sum() * loss(each.scores(x[held]), labels[held])[0] for each in fits]
    return PENALTIES[int(np.argmin(losses))]


# ---------------------------------------------------------------------------------------- how accuracy is measured


class Fold(NamedTuple):
    """Places of the images to train on and to test on."""

    train: np.ndarray
    test: np.ndarray


def folds(labels: np.ndarray, k: int, *, count: int = 5, test: int = 50, seed: int = 0) -> list[Fold]:
    """Random splits with ``k`` images of each class to train on and up to ``test`` others to test on.

    The first images of a class's random order are the same for all ``k``, so that more images are those and others.

    Raises
    ------
    ValueError
        If a class has no image left to test on.
    """
    found = []
    for fold in range(count):
        rng = np.random.default_rng([seed, fold])
        train, rest = [], []
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            if len(members) <= k:
                raise ValueError(
                    f"class {label} has {len(members)} images; {k} to train on and 1 to test on are needed"
                )
            train.append(members[:k])
            rest.append(members[::-1][: min(test, len(members) - k)])
        found.append(Fold(np.sort(np.concatenate(train)), np.sort(np.concatenate(rest))))
    return found


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of the share in % that is predicted right, so that large classes count no more."""
    return 100 * float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def tested(
    x: np.ndarray, labels: np.ndarray, fold: Fold, *, loss: Loss = softmax, penalty: float | None = None
) -> float:
    """`accuracy` on a fold's test images of a classifier that its other images have trained. Raises as `fit` does."""
    classes = int(labels.max()) + 1
    classifier = fit(x[fold.train], labels[fold.train], classes, loss=loss, penalty=penalty)
    return accuracy(classifier.scores(x[fold.test]).argmax(axis=1), labels[fold.test])
