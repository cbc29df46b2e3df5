"""Hidden projections: planted spots die with them, random weights know nothing, everything against a slow twin."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures import checkpoint_of, noise, pictures
from scipy.stats import spearmanr
from test_tools import mistake, tool

from refnet import net
from refnet.arch import Arch, Conv, Linear, Pool, Relu
from refnet.deconv import RULES, project, seeds
from refnet.experiments import faithful
from refnet.experiments.faithful import MASKS, PROJECTION, SHIFTED, TURNED, UNTRAINED
from refnet.weights import Checkpoint

SIDE, SIZE = 24, 19
METHODS = ("gradient", "deconv", "guided")


def spots():
    """A network each of whose maps looks at one spot of 2 x 2 pixels, somewhere in windows of 7 x 7."""
    arch = Arch("spots", (20, 20, 3), (Conv("conv1", 12, 7), Relu("relu1"), Linear("fc2", 2)))
    rng = np.random.default_rng(0)
    w = np.zeros((7, 7, 3, 12), "f4")
    for m, (row, col) in enumerate(rng.integers(0, 6, (12, 2))):
        w[row : row + 2, col : col + 2, :, m] = 1
    params = {
        "conv1": {"w": w, "b": np.zeros(12, "f4")},
        "fc2": {"w": rng.normal(size=(14 * 14 * 12, 2)).astype("f4"), "b": np.zeros(2, "f4")},
    }
    return Checkpoint(arch, params, np.zeros((24, 24, 3), np.float32), scale=1 / 64, classes=("a", "b"))


@pytest.fixture(scope="module")
def planted():
    return faithful.run(spots(), pictures(noise(30, 24), 2), "relu1", units=6, share=0.1, seed=3)


@pytest.mark.parametrize("method", METHODS)
def test_a_spot_dies_with_its_projection_and_not_with_the_controls(planted, method):
    falls = planted.falls[method]
    np.testing.assert_allclose(falls[PROJECTION], 1, atol=1e-5)
    for control in (SHIFTED, TURNED, UNTRAINED):
        mean, error = faithful.mean_and_error(falls[control], planted.image)
        assert 0.02 < mean < 0.3 and error < 0.1
    assert (planted.share == 5 / 400).all()  # a tenth of 49 pixels, for all


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_show_no_more_than_a_random_place(planted, method):
    """The null: four pixels of 49 among five hidden ones, wherever these are."""
    for control in (SHIFTED, UNTRAINED):
        mean, error = faithful.mean_and_error(planted.falls[method][control], planted.image)
        assert abs(mean - 5 / 49) < 4 * error
    assert abs(planted.alike[method]["energy"]).mean() < 0.3 and planted.random == ("conv1",)


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_show_something_of_every_activation(planted, method):
    """Also where the random network leaves at 0 what the trained one excites."""
    for alike in planted.alike[method].values():
        assert (alike == 0).mean() < 0.1  # by chance the ranks of a few may add up to just that


def test_no_more_than_all_of_an_activation_can_fall():
    ck = spots()
    ck.params["conv1"]["b"][:] = -0.1  # what is left without the spot, before the relu
    units = faithful.run(ck, pictures(noise(4, 24), 2), "relu1", share=0.1)
    for method in METHODS:
        assert (units.falls[method][PROJECTION] == 1).all()


def test_elsewhere_in_the_map_the_largest_may_stay(planted):
    """Hiding one spot leaves the other places of its map, whose largest activation falls less."""
    for method in METHODS:
        peak = planted.peak_falls[method][PROJECTION]
        assert (peak <= planted.falls[method][PROJECTION] + 1e-6).all() and peak.mean() < 0.2


def test_the_units_are_the_strongest_of_well_excited_maps(planted):
    ck, data = spots(), pictures(noise(30, 24), 2)
    for i in range(30):
        y = net.predict(ck.arch, ck.params, (data.image(i)[None, 2:22, 2:22] / 64).astype("f4"), stop="relu1")[0]
        peaks, mine = y.max(axis=(0, 1)), planted.image == i
        assert len(set(planted.map[mine])) == 6
        assert (peaks[planted.map[mine]] >= np.median(peaks)).all()
        at = planted.row[mine], planted.col[mine], planted.map[mine]
        np.testing.assert_allclose(y[at], peaks[planted.map[mine]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fill", ["mean", "grey"])
def test_as_hidden_by_hand(method, fill):
    ck, data = checkpoint_of(side=SIDE), pictures(noise(4, SIDE))
    units = faithful.run(ck, data, "relu2", methods=[method], units=2, share=0.05, fill=fill)
    compared = 0
    for u, i in enumerate(units.image):
        mean = ck.mean[2:21, 2:21]
        x = ((data.image(int(i))[2:21, 2:21] - mean) / 64).astype("f4")
        seen = np.zeros_like(x) if fill == "mean" else (128 - mean) / 64
        y, trace = net.forward(ck.arch, ck.params, x[None], stop="relu2")
        row, col, m = units.row[u], units.col[u], units.map[u]
        r = project(trace, ck.params, seeds(y, [0], [m], [row], [col]), rules=RULES[method])[0]
        top, left, bottom, right = (int(np.clip(edge, 0, SIZE)) for edge in ck.arch.field("relu2").box(row, col))
        strength = (r[top:bottom, left:right] ** 2).sum(axis=2)
        count = round(0.05 * strength.size)
        order = np.sort(strength.ravel())[::-1]
        if order[count - 1] <= order[count] * 1.001:
            continue  # a tie: either may be hidden
        x[top:bottom, left:right][strength >= order[count - 1]] = seen[top:bottom, left:right][
            strength >= order[count - 1]
        ]
        hidden = net.predict(ck.arch, ck.params, x[None], stop="relu2")[0]
        fall, peak = 1 - hidden[row, col, m] / y[0, row, col, m], 1 - hidden[..., m].max() / y[0, row, col, m]
        np.testing.assert_allclose(units.falls[method][PROJECTION][u], fall, atol=1e-4)
        np.testing.assert_allclose(units.peak_falls[method][PROJECTION][u], peak, atol=1e-4)
        assert units.share[u] == count / SIZE**2
        compared += 1
    assert compared >= 4


def test_the_same_weights_drawn_again_change_nothing():
    """A network that is what the random weights are: the projections are the same, layer after layer."""
    ck = checkpoint_of(side=SIDE)
    ck = replace(ck, params=net.init_params(ck.arch, rng=np.random.default_rng(5)))
    units = faithful.run(ck, pictures(noise(4, SIDE)), "relu2", units=2, seed=5)
    assert units.random == ("conv2", "conv1")
    for method in METHODS:
        for each in units.alike[method].values():
            assert each.shape == (2, len(units.image))
            np.testing.assert_allclose(each, 1)
        if method != "deconv":  # whose zeros tie, and the hidden ones of these are drawn
            np.testing.assert_allclose(units.falls[method][UNTRAINED], units.falls[method][PROJECTION], atol=0.3)


def test_weights_are_drawn_anew_from_the_top_down():
    """Only conv1 differs from the drawn weights: a random conv2 is the same, and a random conv1 is not."""
    ck = checkpoint_of(side=SIDE)
    fresh = net.init_params(ck.arch, rng=np.random.default_rng(5))
    ck = replace(ck, params=fresh | {"conv1": ck.params["conv1"]})
    units = faithful.run(ck, pictures(noise(4, SIDE)), "relu2", units=2, seed=5)
    for method in METHODS:
        first, both = units.alike[method]["values"]
        np.testing.assert_allclose(first, 1)
        assert both.mean() < 0.9


def test_support_is_the_most_energy_and_draws_among_equals():
    rng = np.random.default_rng(0)
    energies = rng.random((7, 9))
    mask = faithful.support(energies, 0.2, rng)
    assert mask.sum() == 13 and energies[mask].min() > energies[~mask].max()
    flat = np.zeros((7, 9))
    flat[2, 3] = 1
    drawn = [faithful.support(flat, 0.2, rng) for _ in range(200)]
    assert all(each.sum() == 13 and each[2, 3] for each in drawn)
    rest = np.mean(drawn, axis=0)[flat == 0]
    assert rest.min() > 0.05 and rest.max() < 0.4  # 12 of 62, anywhere
    assert faithful.support(energies, 0.001, rng).sum() == 1


def test_a_shift_is_cyclic_and_never_stays():
    rng, mask = np.random.default_rng(0), np.zeros((5, 4), bool)
    mask[1, 2] = True
    places = {tuple(np.argwhere(faithful.shifted(mask, rng))[0]) for _ in range(400)}
    assert len(places) == 19 and (1, 2) not in places
    mask[:2] = True
    assert faithful.shifted(mask, rng).sum() == mask.sum()


def test_rank_correlation_is_spearman_s():
    rng = np.random.default_rng(0)
    one = np.round(rng.random((6, 5, 3)), 1)
    other = np.round(one + rng.random((6, 5, 3)), 1)
    assert faithful.rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel())[0])
    assert faithful.rank_correlation(one, np.exp(one)) == pytest.approx(1)
    assert faithful.rank_correlation(one, np.ones_like(one)) == 0


def test_images_count_alike_whatever_they_have_of_units():
    mean, error = faithful.mean_and_error(np.array([1, 1, 1, 3.0]), np.array([4, 4, 4, 9]))
    assert (mean, error) == (2, 1)


def test_bad_images_are_passed_over_and_mistakes_refused():
    ck = checkpoint_of(side=SIDE)
    some = faithful.run(ck, pictures(noise(4, SIDE), bad=(1,)), "relu1", units=2)
    assert set(some.image) == {0, 2, 3}
    with pytest.raises(ValueError, match="1 of 2 images can be read and excite relu1; errors need 2 or more"):
        faithful.run(ck, pictures(noise(2, SIDE), bad=(1,)), "relu1")
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        faithful.run(ck, pictures(noise(2, SIDE)), "relu1", share=0)
    with pytest.raises(ValueError, match="fc8 of tiny sees the whole image"):
        faithful.run(ck, pictures(noise(2, SIDE)), "fc8")


def test_layers_that_are_no_relu_start_where_they_are():
    """After a pool and its switches, too, a planted spot dies with its projection."""
    ck = spots()
    layers = (*ck.arch.layers[:2], Pool("pool1", 2, 2), Linear("fc2", 2))
    params = ck.params | {"fc2": {"w": np.zeros((7 * 7 * 12, 2), "f4"), "b": np.zeros(2, "f4")}}
    ck = replace(ck, arch=replace(ck.arch, layers=layers), params=params)
    units = faithful.run(ck, pictures(noise(6, 24), 2), "pool1", methods=["deconv"], units=4, share=0.1)
    falls = units.falls["deconv"]
    assert falls[PROJECTION].mean() > 2 * max(falls[mask].mean() for mask in MASKS[1:3])


def test_the_command_keeps_its_layers(tmp_path):
    args = ("weights/scenes.h5", "--images", 3, "--units", 2, "--layers", "relu1,relu3", "--threads", 1)
    args = (*args, "--out", tmp_path)
    _, _, err = tool("faithful.py", *args, check=0)
    assert "relu1: 6 activations measured" in err
    before = (tmp_path / "faithful.json").read_bytes()
    content = json.loads(before)
    found = {each["name"]: each["measured"] for each in content["numbers"]}
    assert found["relu1, deconv: fall, projection hidden"] > found["relu1, deconv: fall, shifted hidden"]
    assert len(content["detail"]["relu3"]["alike"]["guided"]["energy"]) == 3  # convolutions from relu3 down
    assert content["choices"]["share"] == 0.05 and (tmp_path / "faithful.png").exists()
    (tmp_path / "faithful" / "relu3.json").unlink()
    _, _, err = tool("faithful.py", *args, check=0)
    assert err.count("measured\n") == 1 and "relu1: 6" not in err
    assert (tmp_path / "faithful.json").read_bytes() == before
    assert "use another --out" in mistake("faithful.py", *args, "--share", 0.1)
    assert "sees the whole image" in mistake("faithful.py", *args, "--layers", "fc8")
