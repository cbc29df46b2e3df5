"""Tables 4, 5 and 7: planted knowledge is carried over and noise is not, and the commands from folders to numbers."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures import bits, checkpoint_of, colours, noise, pictures
from PIL import Image
from test_tools import mistake, tool

from refnet import datasets, features, models, net, weights
from refnet.arch import Arch, Linear
from refnet.classifiers import folds
from refnet.experiments import table7, transfer
from refnet.weights import Checkpoint

# --- transfer ---

LABELS = np.arange(200) % 4


def known(strength, *, seed=0):
    """Features (200, 10) that tell the four classes so well."""
    x = np.random.default_rng(seed).standard_normal((200, 10))
    x[np.arange(200), LABELS] += strength
    return x


def test_planted_features_tell_the_classes_and_more_images_more_so():
    found = [np.mean(transfer.pretrained(known(3), LABELS, k=k, penalty=0.01)) for k in (1, 5, 30)]
    assert found[0] + 10 < found[1] and found[1] + 3 < found[2] and found[2] > 80
    assert min(transfer.pretrained(known(15), LABELS, k=5)) > 95


def test_features_that_tell_nothing_are_at_chance():
    found = transfer.pretrained(known(0), LABELS, k=20)
    assert len(found) == 5 and abs(np.mean(found) - 25) < 6


def seeing(colour, classes, side=4):
    """A network that takes an image for the class whose colour (classes, 3) it has, if it learnt so."""
    arch = Arch("linear", (side, side, 3), (Linear("fc8", len(classes)),))
    w = np.tile(colour.T / 255, (side * side, 1)).astype(np.float32)
    return Checkpoint(arch, {"fc8": {"w": w, "b": np.zeros(len(classes), np.float32)}},
                      np.zeros((side, side, 3), np.float32), scale=1 / 255, classes=classes)  # fmt: skip


def test_from_scratch_the_network_gets_the_folds_images_and_is_tested_on_the_others():
    pixels = np.zeros((60, 4, 4, 3), np.uint8)
    pixels[np.arange(60), :, :, np.arange(60) % 3] = 255
    data = pictures(pixels, classes=3)
    right = seeing(np.eye(3) * 255, data.classes)
    wrong = seeing(np.eye(3)[[1, 0, 2]] * 255, data.classes)
    asked = []

    def trained(name, arch, few, others):
        asked.append((name, arch.shapes()["fc8"], few, others))
        return right if name.endswith("fold0") else wrong

    found = list(transfer.from_scratch(right.arch, data, k=5, net=trained, numbers=[0, 2], test=10))
    assert found == [(0, 100), (2, pytest.approx(100 / 3))]
    splits = folds(data.labels, 5, test=10)  # those of a frozen network
    for number, (name, outputs, few, others) in zip([0, 2], asked, strict=True):
        assert name == f"scratch k5 fold{number}" and outputs == (3,)
        assert few.names == [data.names[i] for i in splits[number].train]
        assert others.names == [data.names[i] for i in splits[number].test]


# --- Table 7 ---


def test_a_layer_that_knows_more_classifies_better_with_either_classifier():
    layers = {"shallow": known(0.5).reshape(200, 5, 2), "deep": known(4), "noise": known(0)}
    found = {(name, layer): np.mean(each) for name, layer, each in table7.run(layers, LABELS, k=20, count=3)}
    assert {name for name, _ in found} == {"SVM", "softmax"}
    for name in table7.LOSSES:
        assert found[name, "deep"] > 95 > found[name, "shallow"] + 30
        assert found[name, "shallow"] > found[name, "noise"] and abs(found[name, "noise"] - 25) < 8


# --- what they read ---


def test_maps_are_averaged_over_a_grid_and_units_are_left_alone():
    y = np.random.default_rng(0).standard_normal((3, 7, 5, 2)).astype(np.float32)
    few = features.pooled(y, grid=3)
    assert few.shape == (3, 3, 3, 2)
    rows, columns = (0, 2, 5, 7), (0, 2, 3, 5)
    for i, j in np.ndindex(3, 3):
        cell = y[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        np.testing.assert_allclose(few[:, i, j], cell.mean(axis=(1, 2)), atol=1e-6)
    assert bits(features.pooled(y, grid=9)) == bits(y)
    assert features.pooled(y[:, 0, 0]) is not None and bits(features.pooled(y[:, 0, 0])) == bits(y[:, 0, 0])


def test_collect_keeps_what_reduce_leaves():
    checkpoint, data = checkpoint_of(), pictures(noise(9))
    whole, _ = features.collect(checkpoint, data, ["relu2", "relu6"])
    few, _ = features.collect(checkpoint, data, ["relu2", "relu6"], reduce=functools.partial(features.pooled, grid=2))
    np.testing.assert_allclose(few["relu2"], features.pooled(whole["relu2"], grid=2), atol=1e-6)
    assert bits(few["relu6"]) == bits(whole["relu6"])


def folder(root, parts, *, classes=("a", "b", "c"), each=14, seed=0):
    """Class folders of noisy images with a colour each, in the parts of a folder; how many images there are."""
    pixels = colours(each * len(classes) * len(parts), classes=len(classes), side=24, seed=seed)
    for i, image in enumerate(pixels):
        where = root / parts[i // (each * len(classes))] / classes[i % len(classes)]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(where / f"{i:03}.png")
    return len(pixels)


def test_everything_is_all_images_of_all_parts_but_the_classes_left_out(tmp_path):
    n = folder(tmp_path / "whole", [""])
    folder(tmp_path / "two", ["train", "val"], each=5)
    assert len(datasets.everything(tmp_path / "whole", side=24)) == n
    both = datasets.everything(tmp_path / "two", side=24)
    assert len(both) == 30 and both.names[0].startswith("train/a/") and both.names[-1].startswith("val/c/")
    separate = [datasets.load(tmp_path / "two", side=24)[k] for k in (0, 1)]
    assert bits(both.image(20)) == bits(separate[1].image(5)) and bits(both.image(3)) == bits(separate[0].image(3))
    few = datasets.everything(tmp_path / "two", side=24, without=["b"])
    assert few.classes == ("a", "c") and np.bincount(few.labels).tolist() == [10, 10]
    assert all(("/c/" in name) == (label == 1) for name, label in zip(few.names, few.labels, strict=True))
    with pytest.raises(ValueError, match="no class d to leave out; there are a, b, c"):
        datasets.everything(tmp_path / "two", side=24, without=["d"])


# --- the commands ---


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Networks of random weights; images of three colours and clutter; and what their networks were trained on."""
    root = tmp_path_factory.mktemp("transfer")
    folder(root / "data", [""], classes=("a", "b", "c", "clutter"))
    folder(root / "known", ["train", "val"], classes=("x", "y"), seed=9)
    for name, part in (("a/000.png", "train"), ("b/001.png", "train"), ("c/002.png", "val")):  # again, paler
        image = Image.open(root / "data" / name).point(lambda value: 0.8 * value + 30)
        image.save(root / "known" / part / "x" / f"{name[0]}.png")
    weights.save(root / "tiny.h5", replace(checkpoint_of(), finished=True))
    mini = net.init_params(models.MINI, rng=np.random.default_rng(0), init="he")
    mean = np.full((64, 64, 3), 128, np.float32)
    weights.save(root / "mini.h5", Checkpoint(models.MINI, mini, mean, scale=1 / 64, finished=True))
    return root


def run(name, places, network, out, *more, check=0):
    """A command on three of the four classes, what it has written, and what it said."""
    options = "--data", places / "data", "--without", "clutter", "--threads", 1, "--penalty", 0.01, "--out", out
    _, _, err = tool(name, places / network, *options, *more, check=check)
    return json.loads((out / f"{name[:-3]}.json").read_text()), err


TRANSFER = "--layer", "relu6", "--k", "1,8", "--folds", 2, "--scratch-k", 8, "--scratch-folds", 1, "--scratch-epochs", 1


def test_transfer_from_folders_to_numbers_and_on_where_it_stopped(places, tmp_path):
    known = "--known", places / "known"
    found, err = run("transfer.py", places, "tiny.h5", tmp_path, *known, *TRANSFER)
    assert found["choices"]["near-duplicates left out"] == 2 and found["choices"]["images"] == 3 * 14 - 2
    by_name = {each["name"]: each["measured"] for each in found["numbers"]}
    assert by_name["pretrained, 8 per class: accuracy %"] > 60  # of three colours, by random weights
    assert "from scratch, 8 per class: accuracy %" in by_name and "from scratch, 8 images per class, fold 0" in err
    assert (tmp_path / "transfer.png").stat().st_size > 10_000

    kept = next((tmp_path / "transfer").glob("pretrained-k8*.json"))
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps({**content, "result": [11.0, 13.0]}))
    again, err = run("transfer.py", places, "tiny.h5", tmp_path, *known, *TRANSFER)
    assert {each["name"]: each["measured"] for each in again["numbers"]}["pretrained, 8 per class: accuracy %"] == 12
    assert "fold 0" not in err  # nothing was trained
    options = "--data", places / "data", "--layer", "relu6", "--k", "8", "--folds", 2, "--out", tmp_path
    assert "use another --out" in mistake("transfer.py", places / "tiny.h5", *options)


def test_transfer_s_mistakes_are_one_line(places, tmp_path):
    options = "transfer.py", places / "tiny.h5", "--data", places / "data", "--out", tmp_path, "--layer", "relu6"
    assert "14 to train on and 1 to test on are needed" in mistake(*options, "--k", "14", "--scratch-folds", 0)
    assert "--k is '3,x'" in mistake(*options, "--k", "3,x")
    assert "no class moth to leave out" in mistake(*options, "--without", "moth")


def test_table_7_from_a_folder_to_numbers_and_on_where_it_stopped(places, tmp_path):
    found, _ = run("table7.py", places, "mini.h5", tmp_path, "--k", 6, "--folds", 2)
    names = [each["name"] for each in found["numbers"]]
    layers = found["choices"]["layers"]
    assert layers == ["norm1", "norm2", "relu3", "relu4", "pool5", "relu7"]
    assert names[:2] == ["SVM on layer 1: accuracy %", "SVM on layer 2: accuracy %"] and len(names) == 12
    assert found["numbers"][0]["measured"] > 90  # colours are there in layer 1
    assert "44.8" in found["numbers"][0]["paper"]
    assert (tmp_path / "table7.png").stat().st_size > 10_000

    kept = tmp_path / "table7" / "svm-norm1.json"
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps({**content, "result": [11.0, 13.0]}))
    again, _ = run("table7.py", places, "mini.h5", tmp_path, "--k", 6, "--folds", 2)
    assert again["numbers"][0]["measured"] == 12 and again["numbers"][1:] == found["numbers"][1:]
