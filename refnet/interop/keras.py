"""Keras: maps are NHWC and filters (K, K, C, M), as ours are. Whole models (.h5, .keras) and weights alone (.h5)."""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from refnet import hdf5
from refnet.arch import Arch, Average, Branch, Conv, Dropout, Flatten, Layer, Linear, Params, Pool, Relu, Shape
from refnet.geometry import pool_size
from refnet.interop import graph
from refnet.interop.apart import apart
from refnet.interop.conventions import declared, described
from refnet.interop.graph import Network, Node, Pads
from refnet.weights import Checkpoint


@graph.one_line()
def read(path: Path, arch: Arch | None = None, until: str | None = None) -> Network:
    """The network in a .keras or .h5 file, or up to its layer ``until``; ``arch`` for a file of weights alone."""
    with _damage():
        return apart(_read, path, arch, until)


def _read(path: Path, arch: Arch | None, until: str | None) -> Network:
    with _damage():
        if path.suffix == ".keras":
            return _archive(path, until)
        with h5py.File(path, "r", locking=False) as file:
            arrays = hdf5.datasets(file)
            if "model_config" not in file.attrs:
                if arch is None:
                    raise ValueError("it holds weights alone: say with --arch of which network")
                return _weights_alone(arch if until is None else arch.upto(until), _by_layer(file, arrays))
            weights = _by_layer(file["model_weights"], arrays)
            found = _network(json.loads(file.attrs["model_config"]), weights, until)
            if "refnet" in file.attrs:
                data = json.loads(file.attrs["refnet"])
                found.declared, found.classes = declared(data["inputs"]), tuple(map(str, data["classes"]))
            return found


@contextmanager
def _damage() -> Iterator[None]:
    """What damaged HDF5, JSON and archives raise, as ValueError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"no model of Keras, or a damaged one: {error}") from None


def _archive(path: Path, until: str | None) -> Network:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > 1100 * max(info.compress_size, 1) or info.file_size > 1 << 33:
                raise ValueError(f"{info.filename} declares {info.file_size:,} bytes")
        config = json.loads(archive.read("config.json"))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
            arrays = hdf5.datasets(file)
            return _network(config, _by_variable(config, arrays), until)


def _by_layer(file: Any, arrays: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """Of a legacy file, each layer's arrays in their order."""
    found = {}
    for name in _texts(file, "layer_names"):
        prefix = file[name].name
        found[name] = [arrays[f"{prefix}/{each}"][()] for each in _texts(file[name], "weight_names")]
    return found


def _texts(item: Any, attribute: str) -> list[str]:
    """An attribute of texts, which Keras cuts into numbered ones where it is long."""
    if attribute in item.attrs:
        parts = [item.attrs[attribute]]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in item.attrs:
            parts.append(item.attrs[f"{attribute}{len(parts)}"])
    return [each.decode() if isinstance(each, bytes) else str(each) for part in parts for each in part]


def _by_variable(config: dict[str, Any], arrays: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """Of a .keras archive, each layer's arrays: its group has the layer's name, or its class's and a number."""
    counts: dict[str, int] = {}
    found = {}
    for each in config["config"]["layers"]:
        name, kind = each["config"]["name"], re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", each["class_name"]).lower()
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        for group in (name, f"{kind}_{number}" if number else kind):
            paths = sorted(path for path in arrays if re.fullmatch(f"/layers/{re.escape(group)}/vars/[0-9]+", path))
            if paths:
                found[name] = [arrays[path][()] for path in paths]
                break
    return found


def _weights_alone(arch: Arch, weights: dict[str, list[np.ndarray]]) -> Network:
    """The arch with the weights of the layers that are called as its own, but for / in their names."""
    have = {name.replace("/", "_"): each for name, each in weights.items() if each}
    shapes, params = arch.param_shapes(), Params()
    if have.keys() != shapes.keys():
        raise ValueError(f"its layers do not fit {arch.name}: {', '.join(sorted(have.keys() ^ shapes.keys())[:4])}")
    for name, needs in shapes.items():
        if [a.shape for a in have[name]] != [needs["w"], needs["b"]]:
            raise ValueError(f"layer {name}: its arrays are {[a.shape for a in have[name]]}, they must be {needs}")
        w, b = (np.ascontiguousarray(a, np.float32) for a in have[name])
        params[name] = {"w": w, "b": b}
    return Network(arch, params)


def _network(config: Any, weights: dict[str, list[np.ndarray]], until: str | None) -> Network:
    layers = config["config"]["layers"]
    sequential = config["class_name"] == "Sequential"
    pads: dict[str, Pads] = {}
    used: set[str] = set()
    alias: dict[str, str] = {}
    nodes, source, shape, last = [], "", None, ""
    for each in layers:
        how = each["config"]
        name = how["name"]
        if shape is None and (given := how.get("batch_shape") or how.get("batch_input_shape")):
            shape, source = tuple(given[1:]), name if each["class_name"] == "InputLayer" else "x"
            if each["class_name"] == "InputLayer":
                last = name
                continue
            last = source
        if each["class_name"] == "InputLayer":
            raise ValueError(f"layer {name}: a second input")
        inputs = [last] if sequential else _inbound(each)
        zeros = pads.get(inputs[0]) if inputs else None
        used |= set(inputs)
        inputs = [alias.get(i, i) for i in inputs]
        last = name
        if each["class_name"] == "ZeroPadding2D":
            (top, bottom), (left, right) = how["padding"]
            pads[name], alias[name] = (top, left, bottom, right), inputs[0]  # goes with the layer that reads it
            continue
        try:
            nodes += _node(each["class_name"], how, tuple(inputs), weights.get(name, []), zeros)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"layer {name}: {error}") from None
        if name == until:
            break
    if until is not None:
        nodes = graph.leading(nodes, until)
    if until is None and pads.keys() - used:
        raise ValueError(f"zeros are padded to {next(iter(pads))}, which only convolutions and pools can take")
    if shape is None or len(shape) != 3 or not all(type(n) is int and 0 < n < 1 << 14 for n in shape):
        raise ValueError(f"its input is {shape}; it needs (rows, columns, colours)")
    return replace(graph.build(str(config["config"].get("name", "keras")), shape, nodes, source), maps_first=False)


def _inbound(layer: dict[str, Any]) -> list[str]:
    """Names of the layers before, as Keras 2 or 3 write them."""
    (node,) = layer["inbound_nodes"]
    if isinstance(node, dict):
        given = node["args"][0]
        return [each["config"]["keras_history"][0] for each in (given if isinstance(given, list) else [given])]
    return [each[0] for each in node]


def _node(
    kind: str, how: dict[str, Any], x: tuple[str, ...], arrays: list[np.ndarray], pads: Pads | None
) -> list[Node]:
    """A layer's node, and one more for its activation."""
    name = how["name"]
    if how.get("data_format") == "channels_first":
        raise ValueError("its data_format is channels_first; only channels_last is read")
    activation = _activation(how.get("activation"))
    end = f"{name}/linear" if activation == "relu" and kind != "Activation" else name

    def padding(shape: Shape, size: Any, stride: Any) -> Pads:
        return pads or _pads(how, shape, size, stride)

    if pads and how.get("padding") not in (None, "valid"):
        raise ValueError("zeros are padded before it and its own padding is same")
    after = [Node(name, (end,), name, lambda shape: Relu(f"{name}_relu"))] if end != name else []
    match kind:
        case "Activation" | "ReLU":
            if kind == "ReLU" and (how.get("max_value") or how.get("negative_slope") or how.get("threshold")):
                raise ValueError("only max(x, 0) can be had")
            made = Node(name, x, name, lambda shape: Relu(name) if "relu" in (activation, kind.lower()) else None)
        case "Dropout" | "SpatialDropout2D" | "Softmax":
            rate = how.get("rate", 0.0)
            made = Node(name, x, name, lambda shape: Dropout(name, rate) if kind != "Softmax" else None)
        case "Flatten":
            made = Node(name, x, name, flattens=True)
        case "Concatenate":
            if how.get("axis", -1) not in (-1, 3):
                raise ValueError(f"it joins along axis {how['axis']}; only maps, the last axis, can be joined")
            made = Node(name, x, name, joins=True)
        case "Merge":
            if how.get("mode") != "concat":
                raise ValueError(f"its mode is {how.get('mode')!r}, only concat can be had")
            made = Node(name, x, name, joins=True)
        case "Conv2D" | "Convolution2D":
            w = arrays[0]
            stride, size = how.get("strides", how.get("subsample", (1, 1))), w.shape[:2]

            def make(shape: Shape) -> Layer:
                return graph.conv(
                    name, w, stride=stride, pads=padding(shape, size, stride), groups=how.get("groups", 1),
                    dilations=how.get("dilation_rate", (1, 1)),
                )(shape)  # fmt: skip

            made = Node(name, x, end, make, _weights(arrays))
        case "Dense":
            made = Node(
                name, x, end, lambda shape: Linear(name, arrays[0].shape[1]), _weights(arrays), maps_first=False
            )
        case "MaxPooling2D" | "AveragePooling2D":
            window, step = how["pool_size"], how["strides"] or how["pool_size"]
            average, zeros = kind == "AveragePooling2D", bool(pads)

            def make_pool(shape: Shape) -> Layer | None:
                return graph.pool(
                    name, size=window, stride=step, pads=padding(shape, window, step), ceil=False, average=average,
                    count_pad=average and zeros,
                )(shape)  # fmt: skip

            made = Node(name, x, name, make_pool)
        case "GlobalAveragePooling2D":
            made = Node(name, x, name, graph.whole_average(name), flattens=not how.get("keepdims", False))
        case "BatchNormalization":
            names = ["gamma"] * bool(how.get("scale", True)) + ["beta"] * bool(how.get("center", True))
            have = dict(zip([*names, "mean", "var"], arrays, strict=True))
            ones = np.ones_like(have["var"])
            gamma, beta = have.get("gamma", ones), have.get("beta", 0 * ones)
            affine = graph.batch_norm(gamma, beta, have["mean"], have["var"], how["epsilon"])
            made = Node(name, x, name, affine=affine)
        case _:
            raise ValueError(f"refnet has no layer for {kind}; --until takes the network up to one before")
    if pads and kind not in ("Conv2D", "Convolution2D", "MaxPooling2D", "AveragePooling2D"):
        raise ValueError("zeros are padded before it, which only convolutions and pools can take")
    return [made, *after]


def _activation(name: Any) -> str:
    if isinstance(name, dict):
        name = name.get("config", {}).get("name", name.get("config"))
    if name not in (None, "linear", "relu", "softmax"):
        raise ValueError(f"its activation is {name!r:.40}; only relu, and softmax at the end, can be had")
    return str(name or "linear")


def _weights(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip("wb", arrays, strict=False))


def _pads(how: dict[str, Any], shape: Shape, size: Any, stride: Any) -> Pads:
    """Keras's own padding in numbers: with "same" the odd cell comes after."""
    rule = how.get("padding", how.get("border_mode", "valid"))
    if rule == "valid":
        return 0, 0, 0, 0
    if rule != "same":
        raise ValueError(f"its padding is {rule!r}, it needs valid or same")
    all_around = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(shape, size, stride, strict=False)]
    top, left = (each // 2 for each in all_around)
    return top, left, all_around[0] - top, all_around[1] - left


def write(path: Path, ck: Checkpoint) -> None:
    """Write a whole model as Keras reads it from .h5; its input is (pixel - mean) x scale.

    Raises
    ------
    ValueError
        For layers that Keras has not: normalisation (LRN), and pools over the edge of what may be negative.
    """
    arch = ck.arch
    shapes, below = arch.shapes(), arch.input_shapes()
    layers: list[dict[str, Any]] = []
    weights: dict[str, list[tuple[str, np.ndarray]]] = {}

    def add(kind: str, name: str, inputs: list[str], **how: Any) -> str:
        nodes = [[[each, 0, 0, {}] for each in inputs]] if inputs else []
        layers.append({"class_name": kind, "name": name, "config": {"name": name, **how}, "inbound_nodes": nodes})
        return name

    def padded(layer: Layer, tensor: str, before: int, after: tuple[int, int]) -> str:
        if not before and not any(after):
            return tensor
        padding = [[before, after[0]], [before, after[1]]]
        return add("ZeroPadding2D", f"{layer.name}_pad", [tensor], padding=padding, data_format="channels_last")

    def along(chain: tuple[Layer, ...], tensor: str, positive: bool) -> tuple[str, bool]:
        for layer in chain:
            name = layer.name
            match layer:
                case Conv(_, filters, size, stride, pad, groups):
                    tensor = add(
                        "Conv2D", name, [padded(layer, tensor, pad, (pad, pad))], filters=filters, strides=[stride] * 2,
                        kernel_size=[size] * 2, padding="valid", groups=groups, activation="linear", use_bias=True,
                        data_format="channels_last",
                    )  # fmt: skip
                case Linear(_, units):
                    if len(below[name]) == 3:
                        tensor = add("Flatten", f"{name}_flat", [tensor], data_format="channels_last")
                    tensor = add("Dense", name, [tensor], units=units, activation="linear", use_bias=True)
                case Relu():
                    tensor = add("Activation", name, [tensor], activation="relu")
                case Dropout(_, rate):
                    tensor = add("Dropout", name, [tensor], rate=rate)
                case Flatten():
                    tensor = add("Flatten", name, [tensor], data_format="channels_last")
                case Pool(_, size, stride, pad) | Average(_, size, stride, pad):
                    ends = [(n - 1) * stride + size - m - pad for n, m in zip(shapes[name], below[name], strict=False)]
                    after = max(ends[0], 0), max(ends[1], 0)
                    average = isinstance(layer, Average)
                    floor = tuple(pool_size(n, layer.window, ceil=False) for n in below[name][:2])
                    if average and (pad or any(after)) and not (layer.count_pad and floor == shapes[name][:2]):  # type: ignore[union-attr]
                        raise ValueError(f"layer {name}: Keras counts all cells of an average over padding")
                    if (pad or any(after)) and not average and not positive:
                        raise ValueError(f"layer {name}: Keras pads pools with 0, which would win over negative values")
                    tensor = add(
                        "AveragePooling2D" if average else "MaxPooling2D", name, [padded(layer, tensor, pad, after)],
                        pool_size=[size] * 2, strides=[stride] * 2, padding="valid", data_format="channels_last",
                    )  # fmt: skip
                case Branch():
                    ends_of = [along(path, tensor, positive) for path in layer.paths]
                    tensor = add("Concatenate", name, [each for each, _ in ends_of], axis=-1)
                    positive = all(each for _, each in ends_of)
                case _:
                    raise ValueError(f"layer {name}: Keras has no normalisation across or within maps (LRN)")
            positive = not isinstance(layer, Conv | Linear) and (positive or isinstance(layer, Relu))
            if isinstance(layer, Conv | Linear):
                weights[name] = [(f"{name}/{key}", ck.params[name][k]) for key, k in (("kernel", "w"), ("bias", "b"))]
        return tensor, positive

    add("InputLayer", "x", [], batch_shape=[None, *arch.input], dtype="float32")
    end, _ = along(arch.layers, "x", False)
    config = {
        "name": re.sub(r"\W", "_", arch.name), "layers": layers, "input_layers": [["x", 0, 0]],
        "output_layers": [[end, 0, 0]],
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        file.attrs["refnet"] = json.dumps(described(ck))
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([each["name"].encode() for each in layers])
        group.attrs["keras_version"], group.attrs["backend"] = "2.15.0", "tensorflow"
        for each in layers:
            of = group.create_group(each["name"])
            mine = weights.get(each["name"], [])
            of.attrs["weight_names"] = np.array([name.encode() for name, _ in mine], "S")
            for name, array in mine:
                of.create_dataset(name, data=array)


def runner(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Keras itself on a whole model: from images (N, H, W, C) as it sees them to every layer's output."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError:
        raise ValueError("comparing needs the package keras, and torch or tensorflow for it") from None
    model = keras.models.load_model(path, compile=False)
    layers = [each for each in model.layers if not isinstance(each, keras.layers.InputLayer)]
    every = keras.Model(model.inputs, [each.output for each in layers])

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        outputs = every.predict(x, verbose=0)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return {layer.name: np.asarray(y) for layer, y in zip(layers, outputs, strict=True)}

    return run
