"""Figure 4 on TINY and a few scenes: the same maps at every epoch, where they jump, and how far they move."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures import checkpoint_of

from refnet import datasets, deconv
from refnet.experiments import fig4
from refnet.features import collect

SCENES = datasets.load_whole(None, side=32).subset(range(24))
FIRST = replace(checkpoint_of(side=32), epoch=1)
LAYERS = ["relu1", "relu2"]


def changed(checkpoint, epoch, layer, change):
    """The network at another epoch, with one layer's weights changed."""
    params = {name: {key: a.copy() for key, a in each.items()} for name, each in checkpoint.params.items()}
    change(params[layer])
    return replace(checkpoint, params=params, epoch=epoch)


def test_what_does_not_train_does_not_move():
    for each in fig4.run([FIRST, replace(FIRST, epoch=2), replace(FIRST, epoch=7)], SCENES, layers=LAYERS):
        assert each.epochs.tolist() == [1, 2, 7]
        assert not each.jumped.any() and each.changed[1:].tolist() == [0, 0]
        np.testing.assert_allclose([*each.moved[1:], *each.to_last], 0, atol=1e-6)
        assert (each.projections == each.projections[:, :1]).all() and (each.values == each.values[:, :1]).all()


def test_only_the_layer_that_changes_and_those_above_it_move():
    rng = np.random.default_rng(0)

    def shuffled(layer):
        layer["w"][...] = rng.permuted(layer["w"].reshape(-1)).reshape(layer["w"].shape)

    later = changed(FIRST, 2, "conv2", shuffled)
    lower, upper = fig4.run([FIRST, later], SCENES, layers=LAYERS, maps=8)
    assert lower.moved[1] == pytest.approx(0, abs=1e-6) and not lower.jumped.any()
    assert upper.moved[1] > 0.3 and upper.changed[1] > 0.3 and upper.jumped.any()
    assert upper.to_last[0] == upper.moved[1] and upper.to_last[1] == pytest.approx(0, abs=1e-6)


def test_a_filter_that_grows_keeps_its_image():
    """Twice the weights is the same feature, twice as strong: the measure must not see it move."""

    def doubled(layer):
        layer["w"] *= 2
        layer["b"] *= 2

    [each] = fig4.run([FIRST, changed(FIRST, 2, "conv1", doubled)], SCENES, layers=["relu1"])
    np.testing.assert_allclose(each.values[:, 1], 2 * each.values[:, 0], rtol=1e-5)
    assert not each.jumped.any() and each.moved[1] == pytest.approx(0, abs=1e-6)


def test_a_map_that_turns_around_jumps_to_the_image_that_the_new_filter_likes_best():
    def negated(layer):
        layer["w"] *= -1

    later = changed(FIRST, 5, "conv1", negated)
    [each] = fig4.run([later, FIRST], SCENES, layers=["relu1"], maps=6)  # given in any order
    for e, checkpoint in enumerate((FIRST, later)):
        y = collect(checkpoint, SCENES, ["relu1"])[0]["relu1"]
        best = deconv.strongest(y, top=1)
        assert each.images[:, e].tolist() == best.image[each.maps, 0].tolist()
        w, m = checkpoint.params["conv1"]["w"], each.maps[0]
        inside = each.projections[0, e] != 0  # a field may hang over the image's edge
        whole = each.values[0, e] * w[..., m]
        assert inside.any()
        np.testing.assert_allclose(each.projections[0, e][inside], whole[inside], rtol=1e-4)
    assert (each.jumped[:, 1] == (each.images[:, 0] != each.images[:, 1])).all() and each.jumped.any()


def test_movement_is_one_less_the_correlation():
    rng = np.random.default_rng(0)
    peaks = rng.random((50, 3))
    other = np.stack([2 * peaks[:, 0] + 1, 1 - peaks[:, 1], rng.random(50)], axis=1)
    each = [1 - np.corrcoef(peaks[:, m], other[:, m])[0, 1] for m in range(3)]
    assert each[:2] == pytest.approx([0, 2])
    assert fig4.movement(peaks, other) == pytest.approx(np.mean(each))
    dead = np.concatenate([peaks, np.zeros((50, 1))], axis=1)
    assert fig4.movement(dead, np.concatenate([other, np.zeros((50, 1))], axis=1)) == pytest.approx(np.mean(each))
    dead[7] = np.nan  # an image that could not be read
    assert np.isfinite(fig4.movement(dead, dead))
    assert np.isnan(fig4.movement(np.zeros((5, 2)), np.zeros((5, 2))))


def test_a_layer_that_has_died_is_left_out():
    def silent(layer):
        layer["b"][...] = -1e3

    found = fig4.run([FIRST, changed(FIRST, 2, "conv2", silent)], SCENES, layers=LAYERS)
    assert [each.layer for each in found] == ["relu1"]


def test_it_takes_two_epochs_of_one_network():
    with pytest.raises(ValueError, match="it takes two or more"):
        fig4.run([FIRST], SCENES, layers=LAYERS)
    with pytest.raises(ValueError, match="it takes two or more, each once"):
        fig4.run([FIRST, FIRST], SCENES, layers=LAYERS)
    other = replace(FIRST, arch=replace(FIRST.arch, name="other"), epoch=2)
    with pytest.raises(ValueError, match="epoch 1 is of another network than epoch 2"):
        fig4.run([FIRST, other], SCENES, layers=LAYERS)
