"""Error rates: small examples counted by hand, the mean over crops and networks, bad images."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures import assert_near, checkpoint_of, noise, params_of, pictures

from refnet import models
from refnet.arch import Arch, Linear
from refnet.evaluate import evaluate, probabilities, score
from refnet.features import stream

N = 23
CHECKPOINT = checkpoint_of()
OTHER = checkpoint_of(seed=1)
PIXELS = noise(N)


def softmax(y):
    e = np.exp(np.float64(y))
    return e / e.sum(axis=-1, keepdims=True)


def outputs(checkpoint=CHECKPOINT, **options):
    return np.concatenate([y for y, _, _ in stream(checkpoint, pictures(PIXELS), **options)])


# ------------------------------------------------------------------------------------- scores


def test_scores_counted_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6]])
    found = score(p, np.array([0, 1, 2, 2]), ("cat", "dog", "fox"))
    assert found.top1 == 0.75 and found.top5 == 1 and found.images == 4
    assert found.per_class == {"cat": 1, "dog": 1, "fox": 0.5}
    assert found.loss == pytest.approx(-np.log([0.7, 0.6, 0.4, 0.6]).mean())


def test_top5_is_among_the_five_most_probable():
    p = np.tile([0.30, 0.20, 0.15, 0.12, 0.10, 0.08, 0.05], (7, 1))
    found = score(p, np.arange(7), tuple("abcdefg"))
    assert (found.top1, found.top5) == (1 / 7, 5 / 7)


def test_ties_count_against_the_network():
    assert score(np.full((4, 6), 1 / 6), np.array([0, 1, 2, 5]), tuple("abcdef")).top5 == 0
    assert score(np.array([[0.5, 0.5]]), np.array([0]), ("a", "b")).top1 == 0
    assert score(np.array([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]]), np.array([3]), tuple("abcdef")).top5 == 0
    assert score(np.array([[0.5, 0.2, 0.1, 0.1, 0.1, 0.0]]), np.array([3]), tuple("abcdef")).top5 == 1


def test_classes_without_images_have_no_score():
    assert score(np.array([[0.1, 0.9]]), np.array([1]), ("a", "b")).per_class == {"b": 1}


def test_a_probability_of_zero_gives_a_finite_loss():
    assert 600 < score(np.array([[0.0, 1.0]]), np.array([0]), ("a", "b")).loss < 700


def test_a_network_that_gives_no_numbers_scores_nothing():
    found = score(np.full((2, 10), np.nan), np.array([0, 1]), tuple("abcdefghij"))
    assert (found.top1, found.top5) == (0, 0)


# ------------------------------------------------------------------------------------- probabilities


def test_probabilities_are_the_softmax_in_float64():
    p, labels = probabilities(CHECKPOINT, pictures(PIXELS))
    assert p.dtype == np.float64 and p.shape == (N, 10)
    assert_near(p, softmax(outputs()), 1e-12)
    assert labels.tolist() == [i % 10 for i in range(N)]


def test_with_ten_crops_they_are_the_mean_of_the_softmaxes():
    p, labels = probabilities(CHECKPOINT, pictures(PIXELS), ten_crop=True)
    assert_near(p, softmax(outputs(ten_crop=True)).mean(axis=1), 1e-12)
    assert labels.tolist() == [i % 10 for i in range(N)]


@pytest.mark.parametrize("ten_crop", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_they_do_not_depend_on_the_batch(batch, ten_crop):
    p, _ = probabilities(CHECKPOINT, pictures(PIXELS), batch=batch, ten_crop=ten_crop)
    assert_near(p, probabilities(CHECKPOINT, pictures(PIXELS), batch=20, ten_crop=ten_crop)[0], 1e-6)


def test_bad_images_are_dropped():
    bad = (0, 5, 22)
    good = [i for i in range(N) if i not in bad]
    p, labels = probabilities(CHECKPOINT, pictures(PIXELS, bad=bad), batch=4)
    assert_near(p, probabilities(CHECKPOINT, pictures(PIXELS))[0][good], 1e-6)
    assert labels.tolist() == [i % 10 for i in good]
    assert evaluate([CHECKPOINT, OTHER], pictures(PIXELS, bad=bad)).images == N - 3


def test_where_no_image_can_be_read_it_says_so():
    with pytest.raises(ValueError, match="none of the 23 images could be read"):
        probabilities(CHECKPOINT, pictures(PIXELS, bad=range(N)))


# ------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("ten_crop", [False, True])
def test_an_ensembles_probabilities_are_the_mean(ten_crop):
    mean = sum(probabilities(each, pictures(PIXELS), ten_crop=ten_crop)[0] for each in (CHECKPOINT, OTHER)) / 2
    expected = score(mean, np.arange(N) % 10, CHECKPOINT.classes)
    assert evaluate([CHECKPOINT, OTHER], pictures(PIXELS), ten_crop=ten_crop) == expected
    assert evaluate([CHECKPOINT], pictures(PIXELS), ten_crop=ten_crop) != expected


def test_networks_of_an_ensemble_may_differ_in_architecture():
    arch = Arch("linear", models.TINY.input, (Linear("fc8", 10),))
    linear = replace(CHECKPOINT, arch=arch, params=params_of(arch, dtype="float32"))
    assert evaluate([CHECKPOINT, linear], pictures(PIXELS)).images == N


def test_a_network_that_sees_the_class_scores_one():
    """Its only weights lead from a pixel, which holds the class, to the logits."""
    pixels = np.zeros((20, 24, 24, 3), np.uint8)
    pixels[:, 2, 2, 0] = np.arange(20) % 10
    arch = Arch("reader", models.TINY.input, (Linear("fc8", 10),))
    w = np.zeros((19 * 19 * 3, 10), np.float32)
    w[0] = 2 * np.arange(10)  # logit c is 2 c v - c^2 = v^2 - (c - v)^2, largest where c is the pixel's value v
    params = {"fc8": {"w": w, "b": -np.float32(np.arange(10) ** 2)}}
    reader = replace(CHECKPOINT, arch=arch, params=params, mean=np.zeros((24, 24, 3), np.float32), scale=1.0)
    found = evaluate([reader], pictures(pixels))
    assert (found.top1, found.top5) == (1, 1)
    assert found.per_class == dict.fromkeys("abcdefghij", 1)
    backwards = replace(pictures(pixels), labels=np.flip(np.arange(20) % 10))
    assert evaluate([reader], backwards).top1 == 0


def test_networks_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="an ensemble needs networks of the same classes, got 2 of different ones"):
        evaluate([CHECKPOINT, replace(OTHER, classes=tuple("abcdefghik"))], pictures(PIXELS))


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="needs networks"):
        evaluate([], pictures(PIXELS))


def test_classes_in_another_order_are_refused():
    data = pictures(PIXELS)
    with pytest.raises(ValueError, match="they must be the same"):
        probabilities(CHECKPOINT, replace(data, classes=data.classes[::-1]))
