"""Every command that looks into a network looks into one that branches, as imported ones do: a small SqueezeNet."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from fixtures import params_of
from test_tools import mistake, tool
from test_transfer import folder

from refnet import models, scenes, top, weights
from refnet.arch import Arch, Average, Branch, Conv, Dropout, Flatten, Norm, Pool, Relu, SpatialNorm, flat
from refnet.report import page
from refnet.weights import Checkpoint


def fire(number, squeeze, expand, *after):
    """A fire module, named as in Caffe."""
    name = f"fire{number}"
    return (
        Conv(f"{name}_squeeze1x1", squeeze, 1), Relu(f"{name}_relu_squeeze1x1"),
        Branch(f"{name}_concat", (
            (Conv(f"{name}_expand1x1", expand, 1), Relu(f"{name}_relu_expand1x1")),
            (Conv(f"{name}_expand3x3", expand, 3, pad=1), Relu(f"{name}_relu_expand3x3")),
        )),
        *after,
    )  # fmt: skip


ARCH = Arch("branching", (47, 47, 3), (
    Conv("conv1", 6, 5, 2), Relu("relu_conv1"), SpatialNorm("norm1", 3, 0.01), Pool("pool1"),
    *fire(2, 3, 4, Pool("pool2")), *fire(3, 4, 6), Dropout("drop9"),
    Conv("conv10", len(scenes.CLASSES), 1), Relu("relu_conv10"), Average("pool10", 5, 1), Flatten("flatten"),
))  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A file of the network, with the classes of the drawn scenes."""
    path = tmp_path_factory.mktemp("branching") / "branching.h5"
    mean = np.full((48, 48, 3), 120, np.float32)
    weights.save(path, Checkpoint(ARCH, params_of(ARCH, dtype="float32"), mean, scale=1 / 64, classes=scenes.CLASSES))
    return path


SCENES = ("--images", 36, "--threads", 1)


@pytest.mark.parametrize(
    ("command", "shown", "layer"),
    [
        (("visualize.py", *SCENES, "--maps", 2, "--layers", "fire3_concat"), "features.json", "fire3_concat"),
        (("visualize.py", *SCENES, "--maps", 2), "features.json", "fire2_relu_expand3x3"),
        (("visualize.py", *SCENES, "--maps", 2, "--start", "pooled"), "features.json", "fire3_concat"),
        (("table1.py", "--faces", 5, "--draws", 2, "--threads", 1), "table1.json", "fire3_concat"),
        (("fig5.py", *SCENES, "--rows", 1, "--study", 2), "fig5.json", "fire3_concat"),
        (("fig7.py", *SCENES, "--rows", 1, "--study", 2), "fig7.json", "relu_conv10"),
        (("faithful.py", *SCENES, "--images", 6, "--units", 1), "faithful.json", "fire3_relu_expand3x3"),
        (("pointing.py", *SCENES, "--rows", 1, "--study", 2), "pointing.json", "relu_conv10"),
        (("report.py", *SCENES, "--samples", 1), "data/net.js", "fire3_concat"),
    ],
    ids=lambda value: value[0][:-3] if isinstance(value, tuple) else "",
)
def test_commands_look_into_a_network_that_branches(command, shown, layer, net, tmp_path):
    name, *options = command
    tool(name, net, *options, "--out", tmp_path, check=0)
    assert layer in (tmp_path / shown).read_text()


def test_what_a_detector_s_network_can_show_it_shows(net, tmp_path):
    """Up to a layer of maps: there are no classes, but maps, their features and the page of them."""
    ck = weights.load(net)
    arch = replace(ck.arch.upto("fire2_concat"), name="backbone")
    params = {layer: ck.params[layer] for layer in arch.param_shapes()}
    weights.save(tmp_path / "b.h5", replace(ck, arch=arch, params=params, classes=()))
    tool("visualize.py", tmp_path / "b.h5", *SCENES, "--maps", 2, "--out", tmp_path, check=0)
    tool("report.py", tmp_path / "b.h5", "--data", scenes_in(tmp_path / "data"), "--out", tmp_path / "page", check=0)
    summary = (tmp_path / "page" / "data" / "net.js").read_text()
    assert '"samples":[]' in summary and "fire2_expand3x3" in summary
    folder(tmp_path / "others", [""], each=8)
    options = (
        "--data",
        tmp_path / "others",
        "--threads",
        1,
        "--penalty",
        0.01,
        "--folds",
        2,
        "--k",
        4,
        "--out",
        tmp_path,
    )
    tool("transfer.py", tmp_path / "b.h5", *options, "--layer", "fire2_concat", "--scratch-folds", 0, check=0)
    tool("table7.py", tmp_path / "b.h5", *options, check=0)
    assert json.loads((tmp_path / "table7.json").read_text())["choices"]["layers"] == ["pool1", "fire2_concat"]
    assert "the network's output is" in mistake("fig7.py", tmp_path / "b.h5", *SCENES, "--out", tmp_path)


def scenes_in(root):
    """A folder of a few images of two classes."""
    folder(root, [""], each=6, classes=("a", "b"))
    return root


def test_it_is_evaluated_and_described(net):
    _, printed, _ = tool("evaluate.py", net, "--threads", 1, "--ten-crop", "--json", check=0)
    assert set(json.loads(printed)) >= {"top1"}
    _, printed, _ = tool("describe.py", net, check=0)
    assert re.search(r"^norm1 +spatialnorm +22x22x6 +9/2$", printed, re.MULTILINE)


def test_its_features_are_put_to_other_classes(net, tmp_path):
    """By default those that its classifier reads, averaged over a grid."""
    folder(tmp_path / "data", [""], each=8)
    options = "--data", tmp_path / "data", "--threads", 1, "--penalty", 0.01, "--folds", 2, "--out", tmp_path
    scratch = "--k", 4, "--scratch-folds", 1, "--scratch-epochs", 1
    tool("transfer.py", net, *options, *scratch, check=0)
    assert json.loads((tmp_path / "transfer.json").read_text())["choices"]["layer"] == "fire3_concat"
    tool("table7.py", net, *options, "--k", 4, check=0)
    content = json.loads((tmp_path / "table7.json").read_text())
    assert content["choices"]["layers"] == ["pool1", "pool2", "fire3_concat"]
    assert [each["name"] for each in content["numbers"]][:2] == [
        "SVM on layer pool1: accuracy %", "SVM on layer pool2: accuracy %"
    ]  # fmt: skip
    assert not any(each.get("paper") for each in content["numbers"])  # the paper's layers are others


def test_the_page_knows_the_layers_of_paths():
    rows = page.table(ARCH)
    assert [row["name"] for row in rows] == [layer.name for layer in flat(ARCH.layers)]
    maps = {row["name"]: row["maps"] for row in rows if "maps" in row}
    assert list(maps.values()) == top.rectified(ARCH) and maps["fire3_expand3x3"] == "fire3_relu_expand3x3"
    assert len(maps) == len([layer for layer in flat(ARCH.layers) if isinstance(layer, Conv)])


def test_a_relu_that_begins_a_path_rectifies_no_convolution_of_the_path_before():
    paths = (Conv("left", 2, 1),), (Relu("relu_right"), Conv("right", 2, 1))
    assert top.rectifiers(Arch("a", (4, 4, 3), (Branch("both", paths), Relu("relu")))) == {}


def test_the_stages_of_a_trunk():
    assert models.trunk(ARCH) == ["pool1", "pool2", "fire3_concat", "pool10"]
    assert models.trunk(models.ZFNET) == list(models.stage_ends(models.ZFNET).values())
    twice = replace(ARCH, layers=(*ARCH.layers[:4], *(fire(n, 2, 2)[2] for n in (4, 5)), Norm("norm5")))
    assert models.trunk(twice) == ["fire4_concat", "norm5"]  # as in GoogLeNet: a branch after another is a stage


def test_numbers_stand_for_stages_only_where_layers_are_named_as_in_the_paper():
    assert models.numbered(models.ZFNET)[7] == "relu7" and models.numbered(ARCH) == {}
    assert [models.end_of(ARCH, stage) for stage in (1, 5, 7)] == ["pool1", "fire3_concat", "fire3_concat"]
    with pytest.raises(ValueError, match="branching has no layer numbered 2; its layers are pool1, pool2, fire3"):
        models.end_of(ARCH, 2)
    # torchvision's AlexNet has other numbers: its last layer is classifier.6, and features.6 is no layer 6.
    vision = replace(models.ZFNET, layers=tuple(
        replace(layer, name=f"features_{number}" if number < 14 else f"classifier_{number - 14}")
        for number, layer in enumerate(models.ZFNET.layers)
    ))  # fmt: skip
    assert [models.end_of(vision, stage) for stage in (1, 7)] == ["features_3", "classifier_5"]
