"""Caffe's networks in: to the bit, up to a layer, and every layer as OpenCV gives it."""

from dataclasses import replace

import numpy as np
import pytest
from caffemodels import (
    CAFFE,
    PROTOTXT,
    ZF_CLASSIFIER,
    ZF_DETECTOR,
    blob,
    caffemodel,
    field,
    geometry,
    layer,
    old,
    prototxt,
    stored,
    zf_arch,
)  # fmt: skip
from conftest import oracle
from fixtures import bits, noise, params_of
from test_interop import all_bits, assert_seen_into, convert

from refnet import weights
from refnet.arch import Dropout, Linear, Norm, Pool, Relu, SpatialNorm
from refnet.interop import caffe, check, conventions, onnx
from refnet.interop.conventions import PRESETS, Inputs


@pytest.fixture(scope="module")
def zf_classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("zf") / "ZF.v2.caffemodel"
    data, p = stored(ZF_CLASSIFIER)
    path.write_bytes(data)
    path.with_suffix(".prototxt").write_text(prototxt(ZF_CLASSIFIER))
    return path, p


@pytest.fixture(scope="module")
def zf_detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("zf") / "ZF_faster_rcnn_final.caffemodel"
    data, p = stored(ZF_DETECTOR)
    path.write_bytes(data)
    path.with_suffix(".prototxt").write_text(prototxt(ZF_DETECTOR, ("data", "im_info")))
    return path, p


def test_a_caffemodel_becomes_its_layers_to_the_bit(tmp_path):
    p = params_of(CAFFE, dtype="float32")
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(p))
    (tmp_path / "a.prototxt").write_text(PROTOTXT)
    found = caffe.read(tmp_path / "a.caffemodel")
    assert found.arch == CAFFE
    assert all_bits(found.params) == all_bits(p)


def test_a_caffemodel_of_2014_is_read_as_one_of_today(tmp_path):
    p = params_of(CAFFE, dtype="float32")
    (tmp_path / "a.caffemodel").write_bytes(old(caffemodel(p)))
    (tmp_path / "a.prototxt").write_text(PROTOTXT)
    found = caffe.read(tmp_path / "a.caffemodel")
    assert found.arch == CAFFE and all_bits(found.params) == all_bits(p)
    first = field(2, field(1, field(1, "conv1")))
    (tmp_path / "a.caffemodel").write_bytes(first)
    with pytest.raises(ValueError, match="it is of Caffe's first format: upgrade_net_proto_binary makes it new"):
        caffe.read(tmp_path / "a.caffemodel")


def test_opencv_reads_a_caffemodel_of_2014_as_we_do(zf_classifier, tmp_path):
    """Its own numbers of kinds and fields, beside the prototxt of today."""
    oracle("cv2")
    path, _ = zf_classifier
    without_data = b"".join(field(n, v) for n, v in caffe._fields(path.read_bytes()) if b"Python" not in bytes(v)[:40])
    (tmp_path / "a.caffemodel").write_bytes(old(without_data))
    (tmp_path / "a.prototxt").write_text(path.with_suffix(".prototxt").read_text())
    found, inputs = caffe.read(tmp_path / "a.caffemodel"), PRESETS["caffe"]
    run = check.runner(tmp_path / "a.caffemodel", found)
    off = check.differences(found, conventions.checkpoint(found, inputs), inputs, run, noise(1, 224))
    assert len(off) == len(found.arch.layers) and check.worst(off) < 1e-5


def test_a_caffemodel_without_its_size_says_where_it_should_stand(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(params_of(CAFFE, dtype="float32")))
    with pytest.raises(ValueError, match=r"they must stand in a.prototxt"):
        caffe.read(tmp_path / "a.caffemodel")


@pytest.mark.parametrize("region", [0, 1], ids=["across", "within"])
@pytest.mark.parametrize("size", [0, 2, 10**9 + 1])
def test_caffes_normalisation_over_what_cannot_be_is_refused(region, size, tmp_path):
    if (region, size) == (0, 10**9 + 1):
        return  # across so many maps is across all
    how = field(1, size) + field(2, 0.5) + field(4, region)
    conv = field(106, geometry(1, 3)), blob(np.ones((2, 3, 3, 3)))
    layers = layer("conv1", "Convolution", ["data"], "c", *conv), layer("norm1", "LRN", ["c"], "n", field(118, how))
    (tmp_path / "a.caffemodel").write_bytes(field(1, "a") + b"".join(layers))
    (tmp_path / "a.prototxt").write_text(PROTOTXT)
    with pytest.raises(ValueError, match=r"^node norm1: "):
        caffe.read(tmp_path / "a.caffemodel")


# ------------------------------------------------------------------------------------- ZF of Faster R-CNN


def test_zf_the_classifier_becomes_its_layers_to_the_bit(zf_classifier):
    path, p = zf_classifier
    found = caffe.read(path)
    assert found.arch == zf_arch(
        Pool("pool5"), Linear("fc6", 32), Relu("relu6"), Dropout("drop6"), Linear("fc7", 32), Relu("relu7"),
        Linear("fc8", 1000),
    )  # fmt: skip
    assert all_bits(found.params) == all_bits(p)
    with pytest.raises(ValueError, match="it has no layer 'relu8' for --until"):
        caffe.read(path, "relu8")


def test_zf_the_detector_is_taken_up_to_a_layer(zf_detector):
    path, p = zf_detector
    with pytest.raises(
        ValueError, match=r"^layer rpn_cls_score_reshape: refnet has no layer for Reshape; --until takes"
    ):
        caffe.read(path)
    found = caffe.read(path, "relu5")
    assert found.arch == zf_arch()
    assert all_bits(found.params) == {name: bits(p[name]) for name in found.params}
    branch = caffe.read(path, "rpn_cls_score")  # the way there, and not what else is read from the same maps
    assert [each.name for each in branch.arch.layers[-3:]] == ["rpn_conv_3x3", "rpn_relu_3x3", "rpn_cls_score"]
    with pytest.raises(ValueError, match="layer rpn_cls_score_reshape: refnet has no layer for Reshape"):
        caffe.read(path, "cls_score")


@pytest.mark.parametrize("until", [None, "relu5"])
def test_opencv_gives_every_layer_of_zf_as_we_do(until, zf_classifier, zf_detector):
    oracle("cv2")
    path, _ = zf_classifier if until is None else zf_detector
    found, inputs = caffe.read(path, until), PRESETS["caffe"]
    ck, run = conventions.checkpoint(found, inputs), check.runner(path, found, until)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *ck.arch.input)).astype(np.uint8)
    off = check.differences(found, ck, inputs, run, pixels)
    assert len(off) == len(ck.arch.layers) and max(off.values()) < 1e-5
    across = replace(found, arch=replace(found.arch, layers=tuple(
        Norm(each.name, 3, 1.0, each.alpha * 3, each.beta) if isinstance(each, SpatialNorm) else each
        for each in found.arch.layers
    )))  # fmt: skip
    assert max(check.differences(across, conventions.checkpoint(across, inputs), inputs, run, pixels).values()) > 1e-3


@pytest.mark.parametrize("k", ["2", "1.5", "0.1e1", "1", "1.0"])
def test_opencv_takes_1_for_k(k, zf_classifier, tmp_path):
    """So a network with another is not compared, rather than refused for what OpenCV makes of it."""
    oracle("cv2")
    path, _ = zf_classifier
    (tmp_path / "a.caffemodel").write_bytes(path.read_bytes())
    text = path.with_suffix(".prototxt").read_text()
    (tmp_path / "a.prototxt").write_text(text.replace("beta: 0.75", f"beta: 0.75 k: {k}"))
    if float(k) == 1:
        caffe.runner(tmp_path / "a.caffemodel")
        return
    with pytest.raises(ValueError, match=f"an LRN has k {k}; OpenCV takes 1 for all"):
        caffe.runner(tmp_path / "a.caffemodel")


def test_what_works_on_zfnet_works_on_zf(zf_classifier, tmp_path):
    """Projections, occlusion, the file, and there and back by ONNX."""
    oracle("onnxruntime")
    path, _ = zf_classifier
    found = caffe.read(path)
    ck = conventions.checkpoint(found, PRESETS["caffe"])
    weights.save(tmp_path / "zf.h5", ck)
    assert weights.load(tmp_path / "zf.h5").arch == ck.arch and "spatialnorm" in str(ck.arch)
    assert_seen_into(ck, "relu5")
    onnx.write(tmp_path / "zf.onnx", ck)
    again = onnx.read(tmp_path / "zf.onnx")
    assert again.arch.shapes() == ck.arch.shapes() and all_bits(again.params) == all_bits(ck.params)
    assert again.arch.layers[2] == ck.arch.layers[2]
    inputs = Inputs(**again.declared)
    imported, run = conventions.checkpoint(again, inputs), check.runner(tmp_path / "zf.onnx", again)
    off = check.differences(again, imported, inputs, run, noise(2, 224))
    assert len(off) == len(ck.arch.layers) and max(off.values()) < 1e-5


def test_convert_takes_zf_up_to_a_layer_and_compares(zf_detector, tmp_path):
    oracle("cv2")
    path, _ = zf_detector
    done = convert(path, tmp_path / "zf.h5", "--preprocess", "caffe")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "layer rpn_cls_score_reshape: refnet has no layer for Reshape; --until takes" in done.stderr
    done = convert(path, tmp_path / "zf.h5", "--preprocess", "caffe", "--until", "relu5")
    assert done.returncode == 0 and "\nnorm2  " in done.stdout and "not compared" not in done.stderr, done.stderr
    again = convert("--check", path, tmp_path / "zf.h5", "--until", "relu5")
    assert again.returncode == 0 and "\nrelu5  " in again.stdout
    ck = weights.load(tmp_path / "zf.h5")
    assert ck.arch == zf_arch()
    assert ck.recipe["imported"]["source"] == "ZF_faster_rcnn_final.caffemodel up to relu5"
