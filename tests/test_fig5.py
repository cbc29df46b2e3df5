"""Figure 5: changes of an image against loops, distances of exactly 0, and networks that bear what they are made to."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures import assert_near, bits, checkpoint_of, noise, pictures
from test_tools import mistake, tool

from refnet import net
from refnet.arch import Arch, Average, Conv, Linear, Relu
from refnet.experiments import fig5
from refnet.experiments.fig5 import IDENTITY, KINDS
from refnet.ops.loss import softmax
from refnet.weights import Checkpoint

SIDE, SIZE = 24, 19  # of the image and of TINY's crop, which begins at 2
CROP = np.s_[2:21, 2:21]
PIXELS = noise(1, SIDE)[0]


def changed(kind, amount, **options):
    return fig5.transformed(PIXELS, kind, np.array([amount]), size=SIZE, **options)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_amount_that_changes_nothing_changes_no_bit(kind):
    assert bits(changed(kind, IDENTITY[kind])) == bits(PIXELS[CROP].astype(np.float32))


def test_a_translation_moves_rows_down_and_repeats_the_edge():
    for amount in (-9, -3, 3, 9):
        rows = np.clip(np.arange(2, 21) - amount, 0, SIDE - 1)
        np.testing.assert_array_equal(changed("translation", amount), PIXELS[rows][:, 2:21])


def test_quarter_turns_are_anticlockwise():
    for turns in range(4):
        assert_near(changed("rotation", 90 * turns), np.rot90(PIXELS[CROP], turns).astype("f4"), 1e-4)


@pytest.mark.parametrize(("kind", "amount"), [("scale", 1.3), ("scale", 0.8), ("rotation", 33), ("rotation", 250)])
def test_scales_and_rotations_are_what_complex_numbers_and_a_loop_make(kind, amount):
    factor = 1 / amount if kind == "scale" else np.exp(1j * np.radians(amount))
    middle = 2 + SIZE / 2
    for row, col in [(0, 0), (3, 15), (9, 9), (18, 7)]:
        source = complex(col + 0.5 - SIZE / 2, row + 0.5 - SIZE / 2) * factor
        x, y = source.real + middle - 0.5, source.imag + middle - 0.5
        value = np.zeros(3)
        for dy, dx in np.ndindex(2, 2):
            at = [int(np.clip(np.floor(v) + d, 0, SIDE - 1)) for v, d in ((y, dy), (x, dx))]
            weight = abs(1 - dy - y % 1) * abs(1 - dx - x % 1)
            value += weight * PIXELS[tuple(at)]
        np.testing.assert_allclose(changed(kind, amount)[row, col], value, atol=0.01)


def test_beyond_the_image_the_mean_may_be_seen():
    mean = np.full((SIZE, SIZE, 3), 7, np.float32)
    down, edge = changed("translation", 6, behind=mean), changed("translation", 6)
    assert (down[:4] == 7).all()
    np.testing.assert_array_equal(down[4:], edge[4:])


def test_default_ranges_are_the_paper_s_in_whole_pixels():
    for side in (56, 112, 224):
        moved = fig5.default_amounts("translation", side)
        assert (moved[0], moved[-1]) == (-60 * side / 224, 60 * side / 224)
        assert 0 in moved and (moved == np.round(moved)).all()
    turned = fig5.default_amounts("rotation", 224)
    assert {0, 90, 180, 350} <= set(turned) and turned[-1] == 350
    scaled = fig5.default_amounts("scale", 224)
    assert (scaled[0], scaled[-1]) == (1, 1.8)


@pytest.mark.parametrize("unit", ["original", "largest"])
def test_curves_are_distances_of_features_of_each_image_alone(unit):
    ck, data = checkpoint_of(side=SIDE), pictures(noise(3, SIDE))
    found = fig5.run(ck, data, [2, 0], layers=["norm1", "relu6"], unit=unit)
    for kind, curves in found.items():
        for k, image in enumerate([2, 0]):
            crops = fig5.transformed(data.image(image), kind, curves.amounts, size=SIZE)
            x = ((crops - ck.mean[CROP]) / 64).astype("f4")
            bare = ((data.image(image)[CROP] - ck.mean[CROP]) / 64).astype("f4")
            for layer, rows in curves.distances.items():
                y, original = (
                    np.stack([net.predict(ck.arch, ck.params, one[None], stop=layer)[0].ravel() for one in each])
                    for each in (x, bare[None])
                )
                distance = np.sqrt(((y - original) ** 2).sum(axis=1))
                by = np.sqrt((original**2).sum()) if unit == "original" else distance.max()
                np.testing.assert_allclose(rows[k], distance / by, atol=1e-5)
                assert (rows[k][curves.amounts == IDENTITY[kind]] == 0).all()  # to the bit
            p = softmax(net.predict(ck.arch, ck.params, x))[:, data.labels[image]]
            np.testing.assert_allclose(curves.probability[k], p, atol=1e-5)


def test_a_layer_that_averages_bears_translations_and_one_of_maps_does_not():
    arch = Arch(
        "averages", (20, 20, 3), (Conv("conv1", 3, 1), Relu("relu1"), Average("mean1", 20, 1), Linear("fc2", 2))
    )
    rng = np.random.default_rng(0)
    params = {
        "conv1": {"w": np.eye(3, dtype="f4")[None, None], "b": np.zeros(3, "f4")},
        "fc2": {"w": rng.normal(size=(3, 2)).astype("f4"), "b": np.zeros(2, "f4")},
    }
    pixels = np.full((1, 40, 40, 3), 128, np.uint8)
    pixels[0, 18:22, 18:22] = 255, 200, 150
    ck = Checkpoint(arch, params, np.full((40, 40, 3), 128, np.float32), classes=("a", "b"))
    amounts = {"translation": np.arange(-5.0, 6)}
    curves = fig5.run(ck, pictures(pixels, 2), [0], layers=["relu1", "mean1"], amounts=amounts)["translation"]
    assert curves.distances["mean1"].max() < 1e-6
    assert fig5.reached(curves.amounts, curves.distances["relu1"], 4) == pytest.approx(1)
    np.testing.assert_allclose(curves.probability, curves.probability[0, 5], rtol=1e-6)


def test_a_disc_bears_rotation_and_a_bar_does_not():
    row, col = np.mgrid[:40, :40] - 19.5
    shapes = np.stack([np.hypot(row, col) < 7, (abs(row) < 3) & (abs(col) < 10)])
    templates = shapes[:, 10:30, 10:30, None] * np.ones(3) - 0.25
    arch = Arch("templates", (20, 20, 3), (Linear("fc1", 2),))
    params = {"fc1": {"w": (templates.reshape(2, -1).T / 20).astype("f4"), "b": np.zeros(2, "f4")}}
    ck = Checkpoint(arch, params, np.zeros((40, 40, 3), np.float32), scale=1 / 64, classes=("disc", "bar"))
    data = replace(pictures((shapes[..., None] * np.full(3, 200)).astype(np.uint8), 2), classes=ck.classes)
    curves = fig5.run(ck, data, [0, 1], layers=["fc1"], amounts={"rotation": np.arange(0.0, 360, 10)})["rotation"]
    disc, bar = curves.probability
    assert disc.min() > 0.9
    assert bar[[0, 18]].min() > 0.9 and bar[[9, 27]].max() < 0.5  # upside down it is the same, and across it is not


def test_measures_of_curves():
    amounts = np.arange(-10.0, 11)
    curves = np.stack([np.minimum(abs(amounts), 2), abs(amounts), np.where(amounts > 0, amounts, -3 * amounts)])
    np.testing.assert_allclose(fig5.reached(amounts, curves, 1.5), [0.75, 0.15, 3 / 30])
    step, straight, _ = fig5.linearity("translation", amounts, curves)
    assert straight == pytest.approx(1) and step < 0.75


def test_what_does_not_fit_is_refused():
    ck, data = checkpoint_of(side=SIDE), pictures(noise(2, SIDE), bad=(1,))
    with pytest.raises(ValueError, match="tiny has no layer numbered 7"):
        fig5.run(ck, data, [0])
    with pytest.raises(ValueError, match="the amounts of scale need 1 among them"):
        fig5.run(ck, data, [0], layers=["relu1"], amounts={"scale": np.array([1.1])})
    with pytest.raises(ValueError, match=r"a scale of 0\.1 looks too far beyond an image of 24 pixels"):
        changed("scale", 0.1)
    with pytest.raises(ValueError, match="picture 1: broken"):
        fig5.run(ck, data, [1], layers=["relu1"])


@pytest.mark.parametrize("unit", ["original", "largest"])
def test_a_dead_layer_has_no_distances(unit):
    ck, data = checkpoint_of(side=SIDE), pictures(noise(1, SIDE))
    ck.params["fc6"]["b"][:] = -1e6
    with pytest.raises(ValueError, match="picture 0: relu6 is 0 or never changes"):
        fig5.run(ck, data, [0], layers=["norm1", "relu6"], unit=unit)


def test_the_command_measures_and_draws(tmp_path):
    args = ("weights/scenes.h5", "--images", 36, "--threads", 1, "--out", tmp_path)
    tool("fig5.py", *args, "--study", 3, "--rows", 2, check=0)
    content = json.loads((tmp_path / "fig5.json").read_text())
    found = {each["name"]: each["measured"] for each in content["numbers"]}
    name = "{}: share of its largest distance at a translation of 1/20 of the side"
    assert 0 < found[name.format("relu7")] < found[name.format("norm1")] < 1
    assert found["probability at 0 degrees"] > 1 / 12  # the network is right about them
    assert content["choices"]["layers"] == ["norm1", "relu7"] and content["choices"]["fill"] == "edge"
    assert set(content["detail"]) == set(KINDS) and (tmp_path / "fig5.png").exists()
    assert "needs the end of one image's name, or 0 to 35" in mistake("fig5.py", *args, "--pick", "nothing")
    assert "it needs two names" in mistake("fig5.py", *args, "--layers", "relu1")
