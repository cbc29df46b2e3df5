"""Figure 7: a planted object is found where it is, noise is not, and every number is recomputed in a simpler way."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import standin_for_cupy
from fixtures import assert_near, checkpoint_of, noise, pictures
from PIL import Image
from test_tools import mistake, tool

from refnet import datasets, evaluate, models, net, top, weights
from refnet.arch import Arch, Conv, Linear, Relu
from refnet.experiments import fig7
from refnet.ops.loss import softmax
from refnet.weights import Checkpoint

SHIPPED = Path(__file__).parents[1] / "weights" / "scenes.h5"
SIDE, BLOB = 24, (slice(3, 9), slice(5, 11))  # off the middle
TINY = {"layer": "relu2", "square": 5, "step": 3}


def coloured():
    """A network of two maps that see red and blue patches, and of a class for each: of red, and of blue blobs."""
    arch = Arch("colours", (SIDE, SIDE, 3), (Conv("conv1", 2, 5), Relu("relu1"), Linear("fc2", 2)))
    params = {name: {key: np.zeros(s, "f4") for key, s in each.items()} for name, each in arch.param_shapes().items()}
    params["conv1"]["w"][..., 0], params["conv1"]["w"][..., 1] = [0.1, -0.05, -0.05], [-0.05, -0.05, 0.1]
    params["fc2"]["w"][...] = 0.006 * np.resize([[1, -1], [-1, 1]], params["fc2"]["w"].shape)
    return Checkpoint(arch, params, np.full((SIDE, SIDE, 3), 128, np.float32), scale=1 / 64, classes=("a", "b"))


def blobs(n):
    """Faint noise with a red blob in every even image and a blue one in every odd one."""
    pixels = (120 + noise(n, SIDE) // 16).astype(np.uint8)
    for i, image in enumerate(pixels):
        image[BLOB] = (0, 0, 255) if i % 2 else (255, 0, 0)
    return pictures(pixels, 2)


def planted_rows(n=4):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[BLOB] = True
    found = fig7.rows(coloured(), blobs(n), range(n), layer="relu1", square=6, step=1)
    return [replace(row, mask=mask) for row in found]


def tiny_rows(n=4, **options):
    return list(fig7.rows(checkpoint_of(), pictures(noise(n)), range(n), **{**TINY, **options}))


# ------------------------------------------------------------------------------------- what is planted is found


def test_a_planted_object_is_the_sensitive_region_and_explains_its_map():
    for row in planted_rows():
        each = fig7.effect(row)
        assert row.sweep.map == row.label == row.image % 2
        assert each.bare > 0.9 and each.lowest < each.bare - 0.2
        assert each.overlap > 0.7 and each.chance == pytest.approx(36 / SIDE**2) and each.centre < 0.2
        assert each.explained > 0.8 and each.turned < 0.2
        elsewhere = fig7.effect(replace(row, mask=row.mask[::-1, ::-1]))
        assert elsewhere.overlap == 0


def test_a_square_over_nothing_changes_nothing():
    ck = coloured()
    grey = pictures(np.full((1, SIDE, SIDE, 3), 128, np.uint8), 2)
    ck.params["conv1"]["b"][:] = 1, 0  # something to be active
    [row] = fig7.rows(ck, grey, [0], layer="relu1", square=4, step=4)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[BLOB] = True
    each = fig7.effect(replace(row, mask=mask))
    assert (each.lowest, each.wrong, each.activity) == (pytest.approx(each.bare), 0, pytest.approx(1))
    assert each.overlap == pytest.approx(each.chance) == pytest.approx(mask.mean())


def test_random_weights_and_masks_are_at_chance():
    rng = np.random.default_rng(0)
    found = []
    for row in tiny_rows(40):
        mask = np.zeros((19, 19), bool)
        r, c = rng.integers(0, 12, 2)
        mask[r : r + 7, c : c + 7] = True
        each = fig7.effect(replace(row, mask=mask))
        found.append((each.overlap - each.chance, each.explained - each.turned))
    above, _ = np.mean(found, axis=0)
    assert abs(above) < 3 * np.std(found, axis=0)[0] / np.sqrt(len(found))


def test_the_shipped_network_sees_the_drawn_object_and_random_weights_do_not():
    ck = weights.load(SHIPPED)
    scenes = datasets.load_whole(None, side=64, seed=ck.seed).subset(range(24))
    options = {"layer": "relu5", "square": 9, "step": 5}
    blank = replace(ck, params=net.init_params(ck.arch, rng=np.random.default_rng(0)))
    trained, random = (
        [fig7.effect(row) for row in fig7.rows(each, scenes, range(24), **options)] for each in (ck, blank)
    )
    overlap, chance, null = (
        np.array([getattr(each, field) for each in of])
        for of, field in ((trained, "overlap"), (trained, "chance"), (random, "overlap"))
    )
    assert (overlap - chance).mean() > 3 * (overlap - chance).std() / np.sqrt(24)
    assert (overlap - null).mean() > 3 * (overlap - null).std() / np.sqrt(24)
    assert np.mean([each.explained - each.turned for each in trained]) > 0.2


# ------------------------------------------------------------------------------------- as recomputed


@pytest.mark.parametrize("fill", ["grey", "mean"])
def test_the_square_is_pasted_into_the_pixels(fill):
    ck = checkpoint_of()
    mean = ck.mean[2:21, 2:21]
    for row in tiny_rows(2, fill=fill):
        assert (row.sweep.rows.tolist(), row.sweep.cols.tolist()) == ([0, 3, 6, 9, 12], [0, 3, 6, 9, 12])
        for r, c in ((0, 0), (6, 9), (12, 3)):
            pixels = row.pixels.astype(np.float32)
            pixels[r : r + 5, c : c + 5] = 128 if fill == "grey" else mean[r : r + 5, c : c + 5]
            x = ((pixels - mean) / np.float32(64))[None]
            p = softmax(net.predict(models.TINY, ck.params, x))[0]
            assert row.probability[r // 3, c // 3] == pytest.approx(p[row.label], rel=1e-4)
            maps = net.predict(models.TINY, ck.params, x, stop="relu2")[0]
            assert row.sweep.activity[r // 3, c // 3] == pytest.approx(maps[..., row.sweep.map].sum(), rel=1e-4)


def test_sensitivity_and_correlation_are_what_loops_give():
    for row in tiny_rows():
        falls = row.bare - row.probability.astype(float)
        covering = [[[] for _ in range(19)] for _ in range(19)]
        covered, fall = [], []
        box = row.features.boxes[0, 0]
        for i, r in enumerate(row.sweep.rows):
            for j, c in enumerate(row.sweep.cols):
                energy = 0.0
                for pixel in np.ndindex(5, 5):
                    at = r + pixel[0], c + pixel[1]
                    covering[at[0]][at[1]].append(falls[i, j])
                    inside = at[0] - box[0], at[1] - box[1]
                    if box[0] <= at[0] < box[2] and box[1] <= at[1] < box[3]:
                        energy += np.abs(row.features.projections[0, 0][inside]).sum()
                covered.append(energy)
                fall.append(row.sweep.base_activity - row.sweep.activity[i, j])
        expected = [[np.mean(each) if each else np.nan for each in line] for line in covering]
        np.testing.assert_allclose(fig7.sensitivity(row), expected, atol=1e-9)
        assert np.isnan(fig7.sensitivity(row)[17:]).all()  # 12 + 5: no square covers the last two
        explained = fig7.effect(row).explained
        assert explained == (pytest.approx(np.corrcoef(covered, fall)[0, 1]) if np.std(fall) else None)


def test_overlap_counts_pixels_and_shares_those_that_are_equal():
    rng = np.random.default_rng(0)
    strength, mask = rng.permutation(50).astype(float), rng.random(50) < 0.3
    largest = set(np.argsort(-strength)[: mask.sum()].tolist())
    assert fig7.overlap(strength, mask) == len(largest & set(np.flatnonzero(mask).tolist())) / mask.sum()
    ties = rng.integers(0, 3, 50).astype(float)
    orders = [fig7.overlap(ties + 1e-6 * rng.random(50), mask) for _ in range(4000)]
    assert fig7.overlap(ties, mask) == pytest.approx(np.mean(orders), abs=0.01)
    assert np.isnan(fig7.overlap(ties, np.zeros(50, bool)))


def test_the_map_is_projected_in_this_image_first_and_then_in_the_strongest_others():
    ck, data = checkpoint_of(), pictures(noise(12))
    best = top.find(ck, data, ["relu2"], top=4).best["relu2"]
    for row in fig7.rows(ck, data, range(12), best=best, top=3, **TINY):
        number, each = row.sweep.map, row.features.strongest
        others = [i for i in best.image[number].tolist() if i != row.image][:3]
        assert each.image[0].tolist() == [row.image, *others] and row.features.maps.tolist() == [number]
        alone = top.project(ck, data, "relu2", np.array([number]), type(each)(*(a[:, :1] for a in vars(each).values())))
        assert_near(row.features.projections[:, :1], alone.projections, 1e-5)
        if row.image == best.image[number, 0]:  # where the map is strongest of all, its cell is the one of the pass
            assert (each.row[0, 0], each.col[0, 0]) == (best.row[number, 0], best.col[number, 0])


def test_the_truth_is_cut_as_the_image_is():
    ck = weights.load(SHIPPED)
    scenes = datasets.load_whole(None, side=64, seed=ck.seed)
    [row] = fig7.rows(ck, scenes, [17], layer="relu5", square=20, step=30)
    drawing = datasets.drawing(scenes.names[17], side=64)
    np.testing.assert_array_equal(row.mask, drawing.mask[4:60, 4:60])
    np.testing.assert_array_equal(row.pixels, drawing.image[4:60, 4:60])
    assert row.label == drawing.label


def test_a_gpu_finds_the_same():
    expected = tiny_rows(2)
    with standin_for_cupy():
        found = tiny_rows(2, device="cuda")
    for one, other in zip(found, expected, strict=True):
        assert_near(one.probability, other.probability, 1e-5)
        assert_near(one.sweep.activity, other.sweep.activity, 1e-5)
        assert_near(one.features.projections, other.features.projections, 1e-5)
        assert fig7.effect(one).bare == pytest.approx(fig7.effect(other).bare, rel=1e-5)


# ------------------------------------------------------------------------------------- which images


def test_the_surest_images_are_right_and_of_different_classes():
    labels = np.array([0, 0, 1, 1, 2, 2])
    logits = np.array([[5, 1, 0], [9, 1, 8], [0, 4, 3], [9, 0, 0], [0, 0, 7], [np.nan] * 3])
    assert evaluate.is_right(logits, labels).tolist() == [True, True, True, False, True, False]
    assert evaluate.surest(logits, labels, 3) == [4, 0, 2]  # 9 against 8 is less sure than 5 against 1
    assert evaluate.surest(logits, labels, 1) == [4]
    assert evaluate.surest(logits, labels, 4) == [4, 0, 2]
    with pytest.raises(ValueError, match="wrong about all 1 images"):
        evaluate.surest(logits[3:4], labels[3:4], 4)
    assert evaluate.surest(1e4 * logits, labels, 3) == [4, 0, 2]  # where every probability is 1


def test_the_square_goes_with_the_crop():
    assert [fig7.square_and_step(side) for side in (224, 112, 56)] == [(27, 7), (14, 4), (7, 2)]


def test_data_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="output is \\(10,\\), but the data has 3 classes"):
        next(fig7.rows(checkpoint_of(), pictures(noise(2), 3), [0], **TINY))


# ------------------------------------------------------------------------------------- the command


def test_the_command_draws_measures_and_goes_on(tmp_path):
    args = (SHIPPED, "--images", 36, "--study", 4, "--square", 15, "--step", 10, "--threads", 1, "--out", tmp_path)
    tool("fig7.py", *args, "--rows", 2, check=0)
    content = json.loads((tmp_path / "fig7.json").read_text())
    found = {each["name"]: each["measured"] for each in content["numbers"]}
    measured = content["detail"]["measured"]
    lowest = "probability of the right class: lowest behind the square"
    assert found[lowest] == pytest.approx(np.mean([each["lowest"] for each in measured]))
    assert content["choices"] | {"square": 15, "step": 10, "fill": "grey", "layer": "relu5"} == content["choices"]
    assert len(measured) == 4 and len(content["detail"]["drawn"]) == 2
    with Image.open(tmp_path / "fig7.png") as picture:
        assert picture.width > 900
    first = measured[0]["image"]
    [trained] = [
        path for path in (tmp_path / "fig7").glob("*.json")
        if json.loads(path.read_text())[first]["overlap"] == measured[0]["overlap"]
    ]  # fmt: skip
    kept = json.loads(trained.read_text())
    kept[first]["lowest"] = -5.0  # what is kept is not measured again
    trained.write_text(json.dumps(kept))
    name = measured[1]["image"]
    tool("fig7.py", *args, "--pick", f"{name},3", check=0)
    content = json.loads((tmp_path / "fig7.json").read_text())
    assert content["detail"]["measured"][0]["lowest"] == -5
    assert [each["image"] for each in content["detail"]["drawn"]] == [name, "scene 1:000003"]


def test_mistakes(tmp_path):
    args = (SHIPPED, "--images", 12, "--study", 1, "--out", tmp_path)
    assert "it needs the end of one image's name, or 0 to 11" in mistake("fig7.py", *args, "--pick", "12")
    assert "square is 57" in mistake("fig7.py", *args, "--square", 57)
    assert "no layer 'relu9'" in mistake("fig7.py", *args, "--layer", "relu9")
    blind = weights.load(SHIPPED)
    blind.params["fc8"]["w"][:], blind.params["fc8"]["b"][-1] = 0, 100
    weights.save(tmp_path / "blind.h5", blind)
    args = (tmp_path / "blind.h5", "--images", 1, "--out", tmp_path)
    assert "the network is right about none of the 1 images" in mistake("fig7.py", *args, "--pick", 0)
