"""Linear classifiers: their gradients, their optimum by another way, what they can learn and what they cannot."""

import numpy as np
import pytest
from conftest import assert_gradient
from scipy.optimize import minimize

from refnet import classifiers
from refnet.classifiers import accuracy, fit, folds, softmax, svm

LOSSES = {"softmax": softmax, "svm": svm}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def blobs(n, classes, features=6, apart=4.0, seed=0):
    """Features of n images in one cloud for each class, on very different scales, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centre = apart * np.random.default_rng(99).standard_normal((classes, features))
    x = (centre[labels] + rng.standard_normal((n, features))) * 10.0 ** np.arange(features) - 3
    return x, labels


def softmax_by_hand(scores, labels):
    """Mean over the images of -log p, one by one."""
    return float(np.mean([np.log(np.exp(s - s[label]).sum()) for s, label in zip(scores, labels, strict=True)]))


def svm_by_hand(scores, labels):
    """For each image and class max(0, 1 - t s)^2, where t is 1 for the image's own class and -1 for the others."""
    total = 0.0
    for s, label in zip(scores, labels, strict=True):
        for c, each in enumerate(s):
            total += max(0.0, 1 - (1 if c == label else -1) * each) ** 2
    return total / len(labels)


@pytest.mark.parametrize(("loss", "by_hand"), [(softmax, softmax_by_hand), (svm, svm_by_hand)])
def test_losses_are_their_formulas_and_gradients_theirs(loss, by_hand):
    rng = np.random.default_rng(1)
    scores, labels = 2 * rng.standard_normal((7, 4)), rng.integers(4, size=7)
    value, gradient = loss(scores, labels)
    assert value == pytest.approx(by_hand(scores, labels), rel=1e-12)
    assert_gradient(lambda s: loss(s, labels)[0], scores, gradient, rng)


def test_softmax_takes_scores_of_any_size():
    value, gradient = softmax(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert value == pytest.approx(5e3) and np.isfinite(gradient).all()


@pytest.mark.parametrize(("loss", "by_hand"), [(softmax, softmax_by_hand), (svm, svm_by_hand)])
def test_the_optimum_is_that_of_another_solver_without_our_gradient(loss, by_hand):
    """The whole objective written out once more, minimised by Powell's directions, which know no gradients."""
    x, labels = blobs(12, 3, features=2, apart=1.0)
    penalty = 0.05
    found = fit(x, labels, 3, loss=loss, penalty=penalty)
    z = (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(2)

    def objective(flat):
        w, b = flat[:6].reshape(2, 3), flat[6:]
        return by_hand(z @ w + b, labels) + penalty / 2 * (w**2).sum()

    other = minimize(objective, np.zeros(9), method="Powell", options={"maxiter": 10**5, "xtol": 1e-7, "ftol": 1e-12})
    assert objective(np.concatenate([found.w.ravel(), found.b])) <= other.fun * (1 + 1e-5)
    np.testing.assert_allclose(found.w, other.x[:6].reshape(2, 3), atol=0.02)


@every_loss
def test_with_more_features_than_images_the_gradient_is_0_in_all_features(loss):
    """There the search goes over as many unknowns as images; what it finds must be best among all weights."""
    rng = np.random.default_rng(5)
    x, labels = rng.standard_normal((20, 70)), np.arange(20) % 3
    found = fit(x, labels, 3, loss=loss, penalty=0.02)
    assert found.w.shape == (70, 3)
    _, gradient = loss(found.scores(x), labels)
    z = (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(70)
    assert np.abs(z.T @ gradient + 0.02 * found.w).max() < 1e-4 * np.abs(0.02 * found.w).max() + 2e-5
    assert np.abs(gradient.sum(axis=0)).max() < 2e-5


@every_loss
def test_separable_classes_are_told_apart_and_shuffled_labels_are_not(loss):
    x, labels = blobs(120, 4)
    other_x, other = blobs(400, 4, seed=1)
    found = fit(x, labels, 4, loss=loss)
    assert accuracy(found.scores(x).argmax(axis=1), labels) == 100
    assert accuracy(found.scores(other_x).argmax(axis=1), other) > 97
    shuffled = np.random.default_rng(3).permutation(labels)
    chance = fit(x, shuffled, 4, loss=loss)
    assert abs(accuracy(chance.scores(other_x).argmax(axis=1), np.random.default_rng(4).permutation(other)) - 25) < 8


@every_loss
def test_scale_and_offset_of_a_feature_change_nothing(loss):
    x, labels = blobs(60, 3)
    want = fit(x, labels, 3, loss=loss, penalty=0.01).scores(x)
    other = x * np.array([1e-6, 3, -2, 1e5, 1, 7]) + np.array([5, -1e3, 0, 2, 9, 1])
    np.testing.assert_allclose(fit(other, labels, 3, loss=loss, penalty=0.01).scores(other), want, atol=2e-3)


@every_loss
def test_constant_features_and_float32_do_no_harm(loss):
    x, labels = blobs(60, 3)
    dead = np.concatenate([x, np.zeros((60, 4)), np.full((60, 2), 7.0)], axis=1)
    found = fit(dead.astype(np.float32), labels, 3, loss=loss, penalty=0.01)
    assert (found.scale[-6:] == 0).all()
    assert accuracy(found.scores(dead).argmax(axis=1), labels) == 100


def test_a_larger_penalty_makes_smaller_weights():
    x, labels = blobs(60, 3, apart=1.0)
    sizes = [np.linalg.norm(fit(x, labels, 3, penalty=penalty).w) for penalty in sorted(classifiers.PENALTIES)]
    assert (np.diff(sizes) < 0).all()


def test_the_penalty_is_chosen_on_the_training_images_and_for_what_they_need():
    """Noise in many features wants a large penalty, four clean clouds a small one."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((90, 300)), np.arange(90) % 3
    x[np.arange(90), labels] += 1.5
    noisy = fit(x, labels, 3)
    assert noisy.penalty == fit(x, labels, 3, seed=0).penalty
    assert fit(*blobs(60, 4), 4).penalty < noisy.penalty
    middle = classifiers.PENALTIES[len(classifiers.PENALTIES) // 2]
    assert fit(x[:4], np.array([0, 0, 1, 1]), 2).penalty == middle  # too few images to hold any out


def test_what_does_not_converge_is_said(monkeypatch):
    monkeypatch.setattr(classifiers, "ITERATIONS", 2)
    x, labels = blobs(60, 3, apart=0.5)
    with pytest.raises(ValueError, match=r"L-BFGS has not converged with penalty 0\.0001"):
        fit(x, labels, 3, penalty=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(value):
    x, labels = blobs(12, 3)
    x[5, 2] = value
    with pytest.raises(ValueError, match="all finite"):
        fit(x, labels, 3)
    with pytest.raises(ValueError, match="0 images"):
        fit(x[:0], labels[:0], 3)


# --- folds ---


def test_folds_have_k_images_of_each_class_and_others_to_test_on():
    labels = np.repeat([0, 1, 2], [9, 30, 70])
    for fold in folds(labels, 6, count=3, test=50):
        assert np.bincount(labels[fold.train]).tolist() == [6, 6, 6]
        assert np.bincount(labels[fold.test]).tolist() == [3, 24, 50]
        assert not set(fold.train) & set(fold.test)


def test_folds_differ_and_more_images_are_the_same_and_others():
    labels = np.arange(60) % 3
    few, many = folds(labels, 5), folds(labels, 10)
    assert len({tuple(fold.train) for fold in few}) == 5
    assert all(set(a.train) < set(b.train) for a, b in zip(few, many, strict=True))
    assert not all(set(a.train) < set(b.train) for a, b in zip(few, many[1:] + many[:1], strict=True))
    again = folds(labels, 5)
    assert all((a.train == b.train).all() and (a.test == b.test).all() for a, b in zip(few, again, strict=True))


def test_a_class_with_nothing_left_to_test_on_is_refused():
    with pytest.raises(ValueError, match="class 1 has 4 images; 4 to train on and 1 to test on are needed"):
        folds(np.repeat([0, 1], [9, 4]), 4)


def test_accuracy_is_the_mean_over_the_classes():
    labels = np.repeat([0, 1], [90, 10])
    assert accuracy(np.zeros(100, int), labels) == 50
    assert accuracy(labels, labels) == 100


def test_test_images_are_not_learnt_from():
    """Every image is its own feature, so that only those learnt from could be known; the others are at chance."""
    labels = np.arange(120) % 4
    (fold,) = folds(labels, 15, count=1)
    assert classifiers.tested(np.eye(120), labels, fold, penalty=0.01) == pytest.approx(25, abs=12)
