"""The pointing game: a map that is the object wins, noise has chance, another truth loses; and where a net looks."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures import noise, pictures
from scipy.ndimage import gaussian_filter
from test_tools import mistake, tool

from refnet import datasets, net, weights
from refnet.arch import Arch, Conv, Linear, Relu
from refnet.experiments import pointing
from refnet.experiments.pointing import BASELINES, CENTRE, CHANCE, OCCLUSION
from refnet.ops.loss import softmax
from refnet.weights import Checkpoint

SIDE = 40
PROJECTED = {f"{method} of {start}" for method in ("gradient", "deconv", "guided") for start in ("class", "relu5")}


def truths(n=200):
    """Objects, rectangles anywhere, and the places of two parts on each."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        (row, col), (height, width) = rng.integers(0, 20, 2), rng.integers(5, 18, 2)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[row : row + height, col : col + width] = True
        yield mask, np.array([(row + 1.0, col + 1.0), (row + height / 2, col + width / 2)])


def mean(scores, field):
    return np.mean([getattr(each, field) for each in scores])


def test_a_map_that_is_the_object_scores_everything():
    for mask, parts in truths():
        got = pointing.judge(mask.astype(float), mask, parts, sigma=1)
        assert (got.hit, got.inside) == (1, 1)


def test_noise_scores_chance():
    rng, noisy, chance = np.random.default_rng(1), [], []
    for mask, parts in truths(400):
        noisy.append(pointing.judge(rng.random((SIDE, SIDE)), mask, parts, sigma=0))
        chance.append(pointing.chance(mask, parts))
    assert mean(noisy, "inside") == pytest.approx(mean(chance, "inside"), rel=0.05)
    assert abs(mean(noisy, "hit") - mean(chance, "hit")) < 4 * np.sqrt(mean(chance, "hit") / 400)
    assert mean(noisy, "distance") > 2 * mean(chance, "distance")  # chance's is of points on the object


def test_another_object_s_truth_loses():
    every = list(truths())
    right = [pointing.judge(mask.astype(float), mask, parts, sigma=1) for mask, parts in every]
    wrong = [
        pointing.judge(np.roll(mask, (SIDE // 2, SIDE // 2), (0, 1)).astype(float), mask, parts, sigma=1)
        for mask, parts in every
    ]
    for field, better in (("hit", 1), ("inside", 1), ("distance", -1)):
        assert better * (mean(right, field) - mean(wrong, field)) > 0.2


def test_scores_are_what_a_loop_counts():
    rng = np.random.default_rng(2)
    for mask, parts in truths(5):
        saliency = rng.random((SIDE, SIDE)) ** 4
        got = pointing.judge(saliency, mask, parts, sigma=1.5)
        smoothed = gaussian_filter(saliency, 1.5, mode="constant")
        best = max(np.ndindex(SIDE, SIDE), key=lambda at: smoothed[at])
        inside = sum(saliency[at] for at in np.ndindex(SIDE, SIDE) if mask[at]) / saliency.sum()
        nearest = min(np.hypot(best[0] + 0.5 - row, best[1] + 0.5 - col) for row, col in parts)
        assert got.hit == mask[best] and pointing.peak(saliency, 1.5) == best
        assert (got.inside, got.distance) == (pytest.approx(inside), pytest.approx(nearest / SIDE))


def test_a_map_of_nothing_hits_nothing_and_has_chance_in_all_else():
    mask, parts = next(truths())
    got, chance = pointing.judge(np.zeros((SIDE, SIDE)), mask, parts, sigma=1), pointing.chance(mask, parts)
    assert (got.hit, got.inside, got.distance) == (0, chance.inside, chance.distance)
    assert chance.hit == mask.mean()


def spotted():
    """A network whose class 1 is seen by one spot of the image, class 0 by another, and class 2 by none."""
    arch = Arch("spotted", (24, 24, 3), (Conv("conv1", 2, 3, pad=1), Relu("relu1"), Linear("fc2", 3)))
    params = {name: {key: np.zeros(s, "f4") for key, s in each.items()} for name, each in arch.param_shapes().items()}
    params["conv1"]["w"][1, 1, :, :] = 1
    w = np.zeros((24, 24, 2, 3), "f4")
    w[5:9, 14:18, :, 1] = 0.05
    w[15:19, 3:7, :, 0] = 0.05
    params["fc2"]["w"] = w.reshape(-1, 3)
    return Checkpoint(arch, params, np.full((24, 24, 3), 100, np.float32), scale=1 / 64, classes=("a", "b", "c"))


def test_maps_are_at_the_spot_that_a_network_looks_at():
    ck, spot = spotted(), np.zeros((24, 24), bool)
    spot[5:9, 14:18] = True
    x = np.full((24, 24, 3), 0.5, np.float32)
    maps = pointing.projected(ck, x, 1, 1, "cpu", None)
    maps[OCCLUSION] = pointing.occluded(ck, x, 1, 3, 1, np.zeros_like(x), "cpu", None)
    for name in (OCCLUSION, "gradient of class", "deconv of class", "guided of class"):
        assert spot[pointing.peak(maps[name], 0.5)], name
    for method in ("gradient", "deconv", "guided"):
        assert maps[f"{method} of class"][~spot].max() == 0 < maps[f"{method} of class"][spot].min()


def test_occlusion_is_the_mean_fall_of_the_squares_over_a_pixel():
    ck = spotted()
    x = ((noise(1, 24)[0] - 100.0) / 64).astype("f4")
    got = pointing.occluded(ck, x, 1, 5, 3, np.zeros_like(x), "cpu", None)
    falls, count = np.zeros((24, 24)), np.zeros((24, 24))
    bare = softmax(net.predict(ck.arch, ck.params, x[None]))[0, 1]
    for row in range(0, 20, 3):
        for col in range(0, 20, 3):
            hidden = x.copy()
            hidden[row : row + 5, col : col + 5] = 0
            falls[row : row + 5, col : col + 5] += bare - softmax(net.predict(ck.arch, ck.params, hidden[None]))[0, 1]
            count[row : row + 5, col : col + 5] += 1
    np.testing.assert_allclose(got, np.maximum(falls / np.maximum(count, 1), 0), atol=1e-5)


def test_edges_are_where_the_image_changes():
    x = np.zeros((24, 24, 3), np.float32)
    x[:, 12:] = 1
    assert set(np.nonzero(pointing.edges(x))[1]) == {11, 12}


@pytest.fixture(scope="module")
def scenes():
    ck = weights.load("weights/scenes.h5")
    data = datasets.load_whole(None, side=64, seed=ck.seed, classes=ck.classes).first(24)
    return ck, data, list(pointing.run(ck, data, step=6))


def test_truth_and_image_are_cropped_alike(scenes):
    _, data, found = scenes
    for each, name in zip(found, data.names, strict=True):
        truth = datasets.drawing(name, side=64)
        np.testing.assert_array_equal(each.mask, truth.mask[4:60, 4:60])
        np.testing.assert_array_equal(each.pixels, truth.image[4:60, 4:60])
        assert set(each.scores) - set(BASELINES) == PROJECTED | {OCCLUSION}
        parts = [np.array(part) - 4 for part in truth.parts.values()]
        at = pointing.peak(each.maps["guided of relu5"], 56 / 40)
        nearest = min(np.hypot(*(part - at - 0.5)) for part in parts)
        assert each.scores["guided of relu5"].distance == pytest.approx(nearest / 56)
        assert each.scores[CENTRE].hit == each.mask[pointing.peak(each.maps[CENTRE], 1)]


def test_trained_maps_are_on_the_object_more_than_chance_and_random_weights(scenes):
    ck, data, found = scenes
    fresh = replace(ck, params=net.init_params(ck.arch, rng=np.random.default_rng(0)))
    random = list(pointing.run(fresh, data, step=6))
    for name in ("guided of class", OCCLUSION):
        trained, untrained = (np.array([s.scores[name].inside for s in each]) for each in (found, random))
        chance = np.array([s.scores[CHANCE].inside for s in found])
        for control in (chance, untrained):
            gain = trained - control
            assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain)), name


def test_photographs_and_bad_options_are_refused(scenes):
    ck, data, _ = scenes
    with pytest.raises(ValueError, match="picture 0 is no drawn scene"):
        next(pointing.run(ck, pictures(noise(2, 64), 12)))
    with pytest.raises(ValueError, match="best is 0 and smooth"):
        next(pointing.run(ck, data, best=0))


def test_the_command_goes_on_where_it_stopped(tmp_path):
    args = ("weights/scenes.h5", "--images", 24, "--study", 5, "--rows", 2, "--step", 6, "--threads", 1)
    args = (*args, "--out", tmp_path)
    tool("pointing.py", *args, check=0)
    before = (tmp_path / "pointing.json").read_bytes()
    content = json.loads(before)
    found = {each["name"]: each for each in content["numbers"]}
    hits = content["detail"]["occlusion"]["hit"]
    assert len(hits) == 5 and found["occlusion: largest value on the object"]["measured"] == np.mean(hits)
    assert "guided of class: largest value on the object, random weights" in found
    assert "centre: largest value on the object, random weights" not in found  # the same for all weights
    assert (tmp_path / "pointing.png").exists()
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "pointing").iterdir())]
    tool("pointing.py", *args, check=0)
    assert times == [path.stat().st_mtime_ns for path in sorted((tmp_path / "pointing").iterdir())]
    assert (tmp_path / "pointing.json").read_bytes() == before
    assert "use another --out" in mistake("pointing.py", *args, "--best", 3)
