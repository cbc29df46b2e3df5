"""Correspondence: a planted part is found, random networks know none, and the same pixels give exact zeros."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures import checkpoint_of, noise, params_of
from PIL import Image

from refnet import parts
from refnet.arch import Arch, Conv, Linear, Pool, Relu
from refnet.experiments import table1
from refnet.geometry import Window
from refnet.ops import winograd
from refnet.parts import Marked
from refnet.weights import Checkpoint

N, SIDE = 8, 32
# Units that see red, green and blue alone, pooled over the whole image; and one layer of units on top.
DETECTOR = Arch("detector", (SIDE, SIDE, 3), (
    Conv("conv1", 6, 1), Relu("relu1"), Pool("pool1", size=4, stride=4), Linear("fc2", 5), Relu("relu2"),
))  # fmt: skip


def detector():
    """A network with two units for each colour, one of which it excites."""
    rng = np.random.default_rng(3)
    w = np.concatenate([np.eye(3), -np.eye(3)], axis=1)[None, None].astype(np.float32)
    params = {
        "conv1": {"w": w, "b": np.zeros(6, np.float32)},
        "fc2": {"w": rng.normal(size=(6 * 64, 5)).astype(np.float32), "b": np.zeros(5, np.float32)},
    }
    return Checkpoint(DETECTOR, params, np.full((SIDE, SIDE, 3), 128, np.float32), scale=1 / 64, classes=tuple("abcde"))


def spotted():
    """Noise with a red square, always in the same place, that is the part "spot"; nothing is at "nowhere"."""
    pixels = np.full((N, SIDE, SIDE, 3), 128, np.uint8)
    pixels += (noise(N, SIDE) // 16).astype(np.uint8) - 8
    pixels[:, 8:16, 8:16] = 255, 0, 0
    spot = np.tile([12.0, 12.0], (N, 1))
    return Marked(tuple(map(str, range(N))), pixels, {"spot": spot, "nowhere": spot + 12}, np.full(N, 8.0))


def test_a_planted_part_is_known_and_noise_is_not():
    found = table1.run(detector(), spotted(), layers=["pool1", "fc2"], size=1.0, draws=4, permutations=500)
    for by_layer in found.deltas.values():
        for by_part in by_layer.values():
            assert by_part["spot"].mean < 0.5 * by_part["random"].mean
            assert by_part["spot"].p < 0.02
            assert np.isnan(by_part["random"].p)
    assert set(found.masked) == {"spot", "nowhere", "random"}


def test_the_same_pixels_give_exact_zeros():
    """A mask over what is the mean already changes nothing, at any layer, to the bit."""
    ck = checkpoint_of(side=SIDE)
    pixels = np.broadcast_to(np.round(ck.mean).astype(np.uint8), (5, SIDE, SIDE, 3))
    marked = Marked(tuple("abcde"), pixels, {"part": np.full((5, 2), 16.0)}, np.full(5, 4.0))
    whole = replace(ck, mean=np.round(ck.mean))
    found = table1.run(whole, marked, layers=["relu1", "relu6"], size=1.0, draws=3, permutations=20)
    for by_layer in found.deltas.values():
        for by_part in by_layer.values():
            assert (by_part["part"].mean, by_part["part"].std, by_part["random"].mean) == (0, 0, 0)
            assert by_part["part"].p == 1


def test_features_that_do_not_see_the_mask_have_not_changed():
    """Of a convolution in blocks of 4 x 4 as well, whose rounding reaches as far as they do."""
    arch = Arch(
        "blocks", (36, 36, 3), (Conv("conv1", 64, 1), Relu("relu1"), Conv("conv2", 64, 3, pad=1), Relu("relu2"))
    )
    ck = replace(checkpoint_of(side=36), arch=arch, params=params_of(arch, dtype="float32"), classes=())
    marked = Marked(tuple("abcdef"), noise(6, 36), {"part": np.full((6, 2), 18.0)}, np.full(6, 8.0))
    found = table1.run(ck, marked, layers=["relu2"], size=1.0, draws=1, permutations=1)
    delta = found.deltas["all features"]["relu2"]["part"]
    assert (
        0.03 < delta.mean < 0.5 * (10 / 36) ** 2
    )  # half of them differ; the mask covers 8 x 8 and is seen by 10 x 10 of 36 x 36
    assert winograd.suits(Window(3, 1, 1), (36, 36), 64, 64, 1)


def test_a_random_network_and_random_parts_have_no_small_p():
    """The null: places drawn as random ones are, in noise; p is uniform, so that few of many are small."""
    rng = np.random.default_rng(5)
    ck, p = checkpoint_of(side=SIDE), []
    for trial in range(12):
        places = 6 + 2 + rng.integers(0, 16, (N, 2)).astype(float)  # of a mask of 4 pixels inside the crop of 19
        marked = Marked(tuple(map(str, range(N))), noise(N * 12, SIDE)[trial::12], {"part": places}, np.full(N, 4.0))
        found = table1.run(ck, marked, layers=["relu2"], size=1.0, draws=2, permutations=100, seed=trial)
        p.append(found.deltas["changed features"]["relu2"]["part"].p)
    assert 0.2 < np.mean(p) < 0.8 and sum(each < 0.05 for each in p) <= 3


def test_distances_are_what_two_loops_count():
    rng = np.random.default_rng(0)
    one, other = rng.integers(-1, 2, (3, 40)).astype(np.int8), rng.integers(-1, 2, (4, 40)).astype(np.int8)
    other[2] = one[1]
    for i in range(3):
        for j in range(4):
            differ = sum(a != b for a, b in zip(one[i], other[j], strict=True))
            changed = sum(a != 0 or b != 0 for a, b in zip(one[i], other[j], strict=True))
            assert table1.hamming(one, other)[i, j] == pytest.approx(differ / 40)
            assert table1.hamming_of_changed(one, other)[i, j] == pytest.approx(differ / changed)
    none = np.zeros((2, 5), np.int8)
    assert not table1.hamming_of_changed(none, none).any()


def test_delta_is_the_mean_over_pairs_and_masks_lie_where_the_parts_are():
    ck, marked = detector(), spotted()
    found = table1.run(ck, marked, layers=["relu1"], size=0.75, draws=2, permutations=5)
    x = (marked.pixels - 128.0) / 64
    masked = x.copy()
    masked[:, 9:15, 9:15] = 0  # 6 pixels around the middle, 12
    change = []
    for one, other in zip(x, masked, strict=True):
        y = [np.maximum(np.concatenate([each, -each], axis=2), 0) for each in (one, other)]
        change.append(np.sign(np.round(y[0] - y[1], 6)).ravel())
    pairs = [np.mean(change[i] != change[j]) for i in range(N) for j in range(i)]
    each = found.deltas["all features"]["relu1"]["spot"]
    assert each.mean == pytest.approx(np.mean(pairs)) and each.std == pytest.approx(np.std(pairs, ddof=1), abs=1e-9)
    assert (found.masked["spot"][:, 9:15, 9:15] == 128).all()
    outside = np.ones((SIDE, SIDE), bool)
    outside[9:15, 9:15] = False
    assert (found.masked["spot"][:, outside] == marked.pixels[:, outside]).all()


def test_random_masks_lie_inside_and_on_no_part():
    found = table1.run(detector(), spotted(), layers=["relu1"], size=1.0, draws=1, permutations=1)
    changed = (found.masked["random"] != spotted().pixels).any(axis=3)
    parts_masked = [(found.masked[part] != spotted().pixels).any(axis=3) for part in ("spot", "nowhere")]
    assert changed.any(axis=(1, 2)).all()
    assert not any((changed & each).any() for each in parts_masked)


def test_too_few_images_parts_outside_and_no_free_place_are_refused():
    marked, ck = spotted(), detector()
    few = Marked(marked.names[:4], marked.pixels[:4], {k: p[:4] for k, p in marked.places.items()}, marked.unit[:4])
    with pytest.raises(ValueError, match="4 images; the same part in 5 or more"):
        table1.run(ck, few, layers=["relu1"])
    outside = replace(marked, places={"spot": np.full((N, 2), 40.0)})
    with pytest.raises(ValueError, match="0: its spot is outside of the 32 pixels"):
        table1.run(ck, outside, layers=["relu1"])
    with pytest.raises(ValueError, match="no place beside the parts for a random mask"):
        table1.run(ck, marked, layers=["relu1"], size=3.0)


# --- marked images ---


def test_faces_know_their_parts_as_the_drawn_ones_own():
    marked = parts.faces(1, 5, side=64)
    assert marked.pixels.shape == (5, 64, 64, 3) and list(marked.places) == list(parts.FACE_PARTS)
    upright = marked.places["right eye"][:, 1] < marked.places["left eye"][:, 1]
    assert upright.mean() > 0.7  # on the picture's left, unless the face is turned or mirrored
    assert (marked.unit > 4).all()


def folder(path, entries, side=50):
    """Images of one colour each, and a parts.json."""
    for i, entry in enumerate(entries):
        Image.new("RGB", (side, side), (40 * i, 0, 0)).save(path / entry.get("file", "x.png"))
    (path / "parts.json").write_text(json.dumps(entries))
    return path


GOOD = {"file": "a.png", "image_left_eye": [10, 20], "image_right_eye": [30, 22], "nose": [20, 35.5], "eye_dist": 20}


def test_a_folder_of_marked_images_is_scaled(tmp_path):
    marked = parts.dogs(folder(tmp_path, [GOOD, {**GOOD, "file": "b.png"}]), side=25)
    assert marked.names == ("a.png", "b.png") and marked.pixels[1, 0, 0].tolist() == [40, 0, 0]
    assert marked.places["right eye"].tolist() == [[10, 5]] * 2  # row, column; the dog's own right is on the left
    assert marked.places["nose"].tolist() == [[17.75, 10]] * 2 and marked.unit.tolist() == [10, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "lists no images"),
        ("7", "entry 0 does not fit"),
        ('[{"file": "a.png"}]', "it needs file, eye_dist"),
    ],
)
def test_what_parts_json_lacks_is_said(tmp_path, text, message):
    (tmp_path / "parts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        parts.dogs(tmp_path, side=25)


def test_a_folder_without_parts_json_and_an_oblong_image(tmp_path):
    with pytest.raises(ValueError, match=r"parts.json: No such file"):
        parts.dogs(tmp_path, side=25)
    folder(tmp_path, [GOOD])
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="50 x 40 pixels; marks are for square images"):
        parts.dogs(tmp_path, side=25)
