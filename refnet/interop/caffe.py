"""Caffe: a .caffemodel, read with a small reader of protobuf's wire format. It holds both layers and weights.

The .prototxt of the same name beside it, if there is one, gives the input's size. Pools round up, groups, LRN (across
or within maps) and padding are as refnet has them; alpha is over the mean; filters are (M, C, K, K), inner products
(units, inputs).
"""

import math
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arch import Dropout, Layer, Linear, Norm, Relu, SpatialNorm
from refnet.interop import graph
from refnet.interop.graph import Network, Node

Message = dict[int, list[Any]]  # field number: values in order; bytes, or integers
_SKIPPED = ("Accuracy", "SoftmaxWithLoss", "Silence")


@graph.one_line()
def read(path: Path, until: str | None = None) -> Network:
    """The network in a .caffemodel, or up to its layer ``until``.

    ValueError names the layer that refnet has none for.
    """
    net = _message(path.read_bytes())
    if not net.keys() & {2, 100}:
        raise ValueError("it has no layers")
    size = _input(path.with_suffix(".prototxt"), net)
    nodes: list[Node] = []
    now: dict[str, str] = {}  # the newest tensor of each blob: layers in place write to the blob that they read
    source = ""
    for data in net.get(100) or net[2]:
        name = ""
        try:
            layer = _message(data) if 100 in net else _upgraded(_message(data))
            name, kind = _text(layer, 1), _text(layer, 2)
            bottoms, tops = ([each.decode(errors="replace") for each in layer.get(n, [])] for n in (3, 4))
            if kind in _SKIPPED or not bottoms:  # without bottoms it makes the data
                continue
            source = source or bottoms[0]
            inputs = tuple(now.get(each, each) for each in bottoms)
            if kind == "Split":  # Caffe puts it in where several layers read a blob
                now |= dict.fromkeys(tops, inputs[0])
                continue
            nodes.append(_node(name, kind, layer, inputs))
            (top,) = tops
            now[top] = name
            if name == until:
                break
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
            raise ValueError(f"layer {name}: {error}") from None
    if until is not None:
        nodes = graph.leading(nodes, until)
    return graph.build(_text(net, 1) or path.stem, (size[1], size[2], size[0]), nodes, source)


# What files of 2014 have instead of "layer", as those of AlexNet and VGG: numbers of kinds, and of fields today's.
_OLD_KINDS = {
    1: "Accuracy", 3: "Concat", 4: "Convolution", 6: "Dropout", 8: "Flatten", 14: "InnerProduct", 15: "LRN",
    17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split", 36: "Silence",
}  # fmt: skip
_OLD_FIELDS = {2: 3, 3: 4, 4: 1, 6: 7, 9: 104, 10: 106, 12: 108, 18: 118, 19: 121, 30: 123}


def _upgraded(old: Message) -> Message:
    """A layer of the format before today's, as one of today's."""
    if 1 in old:
        raise ValueError("it is of Caffe's first format: upgrade_net_proto_binary makes it new")
    kind = _number(old, 5, 0)
    new = {today: old[field] for field, today in _OLD_FIELDS.items() if field in old}
    return new | {2: [_OLD_KINDS.get(kind, f"number {kind} of the old kinds").encode()]}


def _node(name: str, kind: str, layer: Message, x: tuple[str, ...]) -> Node:
    blobs = [_blob(_message(each)) for each in layer.get(7, [])]
    match kind:
        case "Convolution":
            how = _message(layer[106][0])
            w = blobs[0].transpose(2, 3, 1, 0)
            pad, stride = _one(how, 3, 9, 10, 0), _one(how, 6, 13, 14, 1)
            make = graph.conv(
                name, w, stride=(stride,), pads=(pad,) * 4, groups=_number(how, 5, 1),
                dilations=[int(n) for n in how.get(18, [1])],
            )  # fmt: skip
            return Node(name, x, name, make, {"w": w, **_biases(blobs)})
        case "InnerProduct":
            w = blobs[0].reshape(-1, blobs[0].shape[-1]).T
            return Node(name, x, name, lambda shape: Linear(name, w.shape[-1]), {"w": w, **_biases(blobs)})
        case "ReLU":
            if 123 in layer and _float(_message(layer[123][0]), 1, 0.0):
                raise ValueError("it leaks below 0; only max(x, 0) can be had")
            return Node(name, x, name, lambda shape: Relu(name))
        case "Pooling":
            how = _message(layer[121][0])
            average = _number(how, 1, 0) == 1
            if _number(how, 1, 0) > 1:
                raise ValueError("stochastic pooling cannot be had")
            if _number(how, 12, 0):
                return Node(name, x, name, graph.whole_average(name) if average else _no_global_max)
            size, stride, pad = _one(how, 2, 5, 6, None), _one(how, 3, 7, 8, 1), _one(how, 4, 9, 10, 0)
            make_pool = graph.pool(
                name, size=(size,), stride=(stride,), pads=(pad,) * 4, ceil=not _number(how, 13, 0), average=average,
                count_pad=average,
            )  # fmt: skip
            return Node(name, x, name, make_pool)
        case "LRN":
            how = _message(layer[118][0])
            n, alpha, beta, k = _number(how, 1, 5), _float(how, 2, 1.0), _float(how, 3, 0.75), _float(how, 5, 1.0)
            if _number(how, 4, 0):  # within maps: Caffe takes 1 for k, whatever the file says
                return Node(name, x, name, lambda shape: SpatialNorm(name, n, _short(alpha / n**2), beta))
            return Node(name, x, name, lambda shape: Norm(name, n, k, _short(alpha / n), beta))
        case "Dropout":
            rate = _float(_message(layer[108][0]), 1, 0.5) if 108 in layer else 0.5
            return Node(name, x, name, lambda shape: Dropout(name, rate))
        case "Concat":
            how = _message(layer[104][0]) if 104 in layer else {}
            if _number(how, 2, 1) != 1:
                raise ValueError(f"it joins along axis {_number(how, 2, 1)}; only maps, axis 1, can be joined")
            return Node(name, x, name, joins=True)
        case "Softmax":
            return Node(name, x, name)
        case "Flatten":
            return Node(name, x, name, flattens=True)
        case "BatchNorm":
            mean, var, factor = (each.reshape(-1) for each in blobs)
            by = 1 / factor[0] if factor[0] else 0.0
            epsilon = _float(_message(layer[139][0]), 3, 1e-5) if 139 in layer else 1e-5
            ones = np.ones_like(mean)
            return Node(name, x, name, affine=graph.batch_norm(ones, 0 * ones, mean * by, var * by, epsilon))
        case "Scale":
            a = blobs[0].reshape(-1)
            return Node(name, x, name, affine=(a, blobs[1].reshape(-1) if len(blobs) > 1 else np.zeros(1)))
    raise ValueError(f"refnet has no layer for {kind:.60}; --until takes the network up to one before")


def _biases(blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {"b": blobs[1].reshape(-1)} if len(blobs) > 1 else {}


def _no_global_max(shape: Any) -> Layer:
    raise ValueError("the maximum of whole maps cannot be had")


def _input(prototxt: Path, net: Message) -> tuple[int, int, int]:
    """(colours, rows, columns) of the input, by the prototxt, else by the model."""
    if prototxt.is_file():
        text = re.sub(r"#.*", "", prototxt.read_text(errors="replace"))
        dims = re.findall(r"(?:input_dim|dim)\s*:\s*(\d+)", text)[:4]
    else:
        dims = [str(n) for n in net.get(4, [])[:4]]
        shapes = [_message(each) for each in net.get(8, [])]
        dims = dims or [str(n) for n in _packed(shapes[0].get(1, []))] if shapes else dims
    size = [int(each) for each in dims[1:]]
    if len(size) != 3 or not all(0 < n < 1 << 14 for n in size):
        raise ValueError(f"the input's dims are {dims}; they must stand in {prototxt.name}, as in a deploy.prototxt")
    return size[0], size[1], size[2]


def _blob(blob: Message) -> np.ndarray:
    """An array: its shape (field 7, or 1 to 4 of old) and its floats."""
    new = _message(blob[7][0]) if 7 in blob else None
    shape = [_number(blob, n, 1) for n in (1, 2, 3, 4)] if new is None else _packed(new.get(1, []))
    raw = b"".join(each if isinstance(each, bytes) else struct.pack("<I", each) for each in blob.get(5, []))
    if len(raw) != 4 * math.prod(shape):
        raise ValueError(f"an array of {tuple(shape)} has {len(raw)} bytes")
    return np.frombuffer(raw, "<f4").reshape(shape)


def runner(path: Path, until: str | None = None) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """OpenCV on the .prototxt beside a .caffemodel, or on its part that ends with the layer ``until``.

    From images (N, H, W, C) as the source sees them to every layer's output, maps as NHWC.
    """
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "comparing needs the package opencv-python-headless 4: pip install 'refnet[interop]'"
        ) from None
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise ValueError(f"comparing needs opencv-python-headless below 5, this is {cv2.__version__}: 5 reads no Caffe")
    prototxt = path.with_suffix(".prototxt")
    if not prototxt.is_file():
        raise ValueError(f"comparing needs {prototxt.name} beside it")
    text = _up_to(prototxt.read_text(errors="replace"), until)
    if others := [k for k in re.findall(r"\bk\s*:\s*([^\s}]+)", text) if float(k) != 1]:
        raise ValueError(f"an LRN has k {others[0]}; OpenCV takes 1 for all")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it cannot do is said here, once
    model = cv2.dnn.readNetFromCaffe(*(np.frombuffer(a, np.uint8) for a in (text.encode(), path.read_bytes())))
    model.enableFusion(False)
    names = [name for name in model.getLayerNames() if name]

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        model.setInput(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        arrays = model.forward(names)
        return {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in zip(names, arrays, strict=True)}

    return run


def _up_to(prototxt: str, until: str | None) -> str:
    """A prototxt without what comes after a layer."""
    text = re.sub(r"#.*", "", prototxt)
    if until is None:
        return text
    name = re.search(rf"""\bname\s*:\s*["']{re.escape(until)}["']""", text)
    following = re.search(r"\blayers?\s*\{", text[name.end() :]) if name else None
    if name is None:
        raise ValueError(f"the prototxt has no layer {until!r}")
    return text[: name.end() + following.start()] if following else text


# Protobuf's wire format


def _message(data: bytes) -> Message:
    """The fields of a message, unread: integers, and bytes for texts, messages and packed numbers."""
    if not isinstance(data, bytes):
        raise ValueError(f"no Caffe model, or a damaged one: the number {data} where a message should be")
    found: Message = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"no Caffe model, or a truncated one: field {number} of kind {kind} at byte {at}")
        raw = data[at : at + length]
        yield number, raw if kind == 2 else int.from_bytes(raw, "little")
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"no Caffe model, or a truncated one: a number breaks off at byte {at}")


def _packed(values: list[Any]) -> list[int]:
    """Integers that may be packed into bytes."""
    found = []
    for value in values:
        at = 0
        if not isinstance(value, bytes):
            found.append(value)
            continue
        while at < len(value):
            one, at = _varint(value, at)
            found.append(one)
    return found


def _number(message: Message, field: int, default: Any) -> Any:
    return message[field][-1] if field in message else default


def _float(message: Message, field: int, default: float) -> float:
    """A float, or the default."""
    if field not in message:
        return default
    return _short(np.frombuffer(struct.pack("<I", message[field][-1]), "<f4")[0])


def _short(value: float) -> float:
    """The shortest decimal that is this float32."""
    return float(str(np.float32(value)))


def _text(message: Message, field: int) -> str:
    value = message.get(field, [b""])[-1]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _one(how: Message, both: int, height: int, width: int, default: Any) -> Any:
    """A window's size, stride or pad: one for both directions, or one for each."""
    values = _packed(how.get(both, [])) + [_number(how, n, None) for n in (height, width) if n in how]
    if not values and default is None:
        raise ValueError("its window has no size")
    return graph.same("window's values", values) if values else default
