"""ONNX: images and maps are NCHW, filters (M, C, K, K), Gemm's (units, inputs) or (inputs, units)."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arch import Average, Branch, Conv, Dropout, Flatten, Layer, Linear, Norm, Pool, Relu, Shape, SpatialNorm
from refnet.geometry import pool_size
from refnet.interop import graph, within
from refnet.interop.conventions import declared, described
from refnet.interop.graph import Network, Node
from refnet.weights import Checkpoint

_IDENTITIES = ("Identity", "Dropout", "Softmax", "LogSoftmax", "Cast")
_FLATTENS = ("Flatten", "Reshape", "Squeeze")
_TYPES = {1: "float32", 7: "int64", 6: "int32", 10: "float16", 11: "float64"}


@graph.one_line()
def read(path: Path, until: str | None = None) -> Network:
    """The network in an .onnx file, or up to its node or tensor ``until``.

    ValueError names the node that refnet has no layer for.
    """
    onnx = _package()
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's DecodeError, which has no common base
        raise ValueError(f"no ONNX file: {error}") from None
    content = model.graph
    constants = {each.name: _array(each, path) for each in content.initializer}
    nodes = []
    normed = within.found(content.node, constants, lambda node: _attributes(onnx, node))
    for index, each in enumerate(content.node):
        name = _line(each.name or next(iter(each.output), "")) or f"{each.op_type}_{index}"
        attributes = _attributes(onnx, each)
        try:
            if each.op_type == "Constant":
                if "value" not in attributes:
                    value = next(iter(attributes.values()), None)
                    constants[each.output[0]] = np.asarray(value)
                else:
                    constants[each.output[0]] = _array(attributes["value"], path)
                continue
            if each.output[0] not in normed:
                nodes.append(_node(name, each, attributes, constants))
            elif (node := normed[each.output[0]]) is not None:
                nodes.append(node)
            if until in (name, each.output[0]):
                break
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise ValueError(f"node {name}: {error}") from None
    if until is not None:
        nodes = graph.leading(nodes, until)
    inputs = [each for each in content.input if each.name not in constants]
    if len(inputs) != 1 or (until is None and len(content.output) != 1):
        raise ValueError(f"it has {len(inputs)} inputs and {len(content.output)} outputs; it needs one of each")
    dims = [each.dim_value for each in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4 or min(dims[1:]) < 1 or math.prod(dims[1:]) > graph.MOST_VALUES:
        raise ValueError(f"its input {inputs[0].name} is {dims}; it needs (N, colours, rows, columns)")
    found = graph.build(_line(content.name) or path.stem, (dims[2], dims[3], dims[1]), nodes, inputs[0].name)
    return _with_metadata(found, {each.key: each.value for each in model.metadata_props})


def _with_metadata(found: Network, metadata: dict[str, str]) -> Network:
    """What `write` said of the network's inputs and classes."""
    if "refnet" not in metadata:
        return found
    try:
        data = json.loads(metadata["refnet"])
        inputs, classes = data["inputs"], tuple(map(str, data["classes"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its metadata for refnet is damaged") from None
    found.declared, found.classes = declared(inputs), classes
    return found


def _package() -> Any:
    try:
        import onnx
    except ImportError:
        raise ValueError("ONNX needs the package onnx: pip install 'refnet[interop]'") from None
    return onnx


def _line(name: str | bytes) -> str:
    """A name as it goes into messages of one line; where it is no UTF-8, it comes as bytes."""
    return " ".join(str(name).split())


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _array(tensor: Any, path: Path) -> np.ndarray:
    """A tensor's numbers, of this file or of another one in the same folder."""
    shape, name = tuple(tensor.dims), tensor.name
    if tensor.data_type not in _TYPES or min(shape, default=0) < 0:
        raise ValueError(
            f"tensor {name}: its type is {tensor.data_type} and its shape {shape}; it needs floats or ints"
        )
    dtype = np.dtype(_TYPES[tensor.data_type])
    count = math.prod(shape)
    if tensor.data_location == 1:
        raw = _external({each.key: each.value for each in tensor.external_data}, name, path)
    elif tensor.raw_data:
        raw = tensor.raw_data
    else:
        fields = {"float32": tensor.float_data, "int64": tensor.int64_data, "float64": tensor.double_data}
        values = fields.get(dtype.name, tensor.int32_data)
        raw = (np.array(values, "uint16") if dtype == np.float16 else np.array(values, dtype)).tobytes()
    if len(raw) != count * dtype.itemsize:
        raise ValueError(f"tensor {name}: {shape} of {dtype} need {count * dtype.itemsize} bytes, it has {len(raw)}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _external(said: dict[str, str], name: str, path: Path) -> bytes:
    file = said.get("location", "")
    other = path.parent / file
    if not file or Path(file).name != file or other.is_symlink() or not other.is_file():
        raise ValueError(f"tensor {name}: its data should be in {file!r}; only files in the same folder are read")
    size = other.stat().st_size
    try:
        offset = int(said.get("offset") or 0)
        length = int(said.get("length") or size - offset)
    except ValueError:
        raise ValueError(f"tensor {name}: its place in {file!r} is no number") from None
    if min(offset, length) < 0 or offset + length > size:
        raise ValueError(f"tensor {name}: bytes {offset} to {offset + length} of {file!r}, which has {size}")
    with open(other, "rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _node(name: str, node: Any, attributes: dict[str, Any], constants: dict[str, np.ndarray]) -> Node:
    kind, inputs, output = node.op_type, list(node.input), node.output[0]
    if node.domain not in ("", "ai.onnx"):
        raise ValueError(f"{node.domain}.{kind} is no operator of ONNX's own")
    weights = [constants[each] for each in inputs[1:] if each in constants]
    x = (inputs[0],) if inputs and inputs[0] not in constants else tuple(e for e in inputs if e not in constants)
    layer = _named(name, inputs, constants)
    if kind in _IDENTITIES:
        if kind == "Dropout":
            rate = _short(weights[0].item() if weights else attributes.get("ratio", 0.5))
            return Node(name, x, output, lambda shape: Dropout(layer, rate))
        return Node(name, x, output)
    if kind in _FLATTENS:
        return Node(name, x, output, flattens=True)
    if kind == "Relu":
        return Node(name, x, output, lambda shape: Relu(layer))
    if kind == "Concat":
        if attributes.get("axis") not in (1, -3):
            raise ValueError(f"Concat along axis {attributes.get('axis')}; only maps, axis 1, can be joined")
        return Node(name, tuple(inputs), output, joins=True)
    if kind == "Conv":
        w = weights[0].transpose(2, 3, 1, 0)
        size = w.shape[:2]
        make = graph.conv(
            layer, w, stride=attributes.get("strides", (1, 1)), pads=_pads(attributes),
            groups=attributes.get("group", 1), dilations=attributes.get("dilations", (1, 1)),
        )  # fmt: skip
        if tuple(attributes.get("kernel_shape", size)) != size:
            raise ValueError(f"its kernel_shape is {attributes['kernel_shape']}, but its filters are {size}")
        return Node(name, x, output, make, {"w": w, **({"b": weights[1]} if len(weights) > 1 else {})})
    if kind in ("MaxPool", "AveragePool"):
        if len(node.output) > 1 or graph.same("dilations", attributes.get("dilations", (1, 1))) != 1:
            raise ValueError("it has a second output or dilations, which refnet's pooling has not")
        return Node(name, x, output, graph.pool(
            layer, size=attributes["kernel_shape"], stride=attributes.get("strides", (1, 1)), pads=_pads(attributes),
            ceil=bool(attributes.get("ceil_mode", 0)), average=kind == "AveragePool",
            count_pad=bool(attributes.get("count_include_pad", 0)),
        ))  # fmt: skip
    if kind == "GlobalAveragePool":
        return Node(name, x, output, graph.whole_average(layer))
    if kind == "ReduceMean":
        axes = sorted(a % 4 for a in (weights[0].ravel().tolist() if weights else attributes.get("axes", ())))
        if axes != [2, 3]:
            raise ValueError(f"a mean over axes {axes}; only that of whole maps, 2 and 3, can be had")
        return Node(name, x, output, graph.whole_average(layer), flattens=not attributes.get("keepdims", 1))
    if kind == "LRN":
        n = attributes["size"]
        alpha, beta, k = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
        return Node(name, x, output, lambda shape: Norm(layer, n, _short(k), _short(_short(alpha) / n), _short(beta)))
    if kind in ("Gemm", "MatMul"):
        w = weights[0].T if attributes.get("transB") else weights[0]
        if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1 or attributes.get("transA") or w.ndim != 2:
            raise ValueError("alpha and beta must be 1, A not transposed and B a matrix")
        arrays = {"w": w} | ({"b": weights[1].reshape(-1)} if len(weights) > 1 else {})
        return Node(name, x, output, lambda shape: Linear(layer, w.shape[1]), arrays)
    if kind == "BatchNormalization":
        gamma, beta, mean, var = weights
        return Node(name, x, output, affine=graph.batch_norm(gamma, beta, mean, var, attributes.get("epsilon", 1e-5)))
    if kind in ("Add", "Mul") and len(x) == 1:
        (a,) = (constants[each] for each in inputs if each in constants)
        return Node(name, x, output, affine=(np.ones(1), a) if kind == "Add" else (a, np.zeros(1)))
    raise ValueError(f"refnet has no layer for {kind}; --until takes the network up to one before")


def _short(value: float) -> float:
    """The shortest decimal that is this float32: ONNX's attributes are float32, ours Python's."""
    return float(str(np.float32(value)))


def _named(name: str, inputs: list[str], constants: dict[str, np.ndarray]) -> str:
    """What the layer is to be called: as its weights, where they have a name, else as its node."""
    weights = next((each for each in inputs[1:] if each in constants and each.endswith(".weight")), "")
    return weights.removesuffix(".weight") or name


def _pads(attributes: dict[str, Any]) -> graph.Pads:
    rule = attributes.get("auto_pad", b"NOTSET")
    if rule not in (b"NOTSET", b"VALID", b""):
        raise ValueError(f"its auto_pad is {rule.decode(errors='replace')}; export it with explicit pads")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if min(top, left, bottom, right) < 0:
        raise ValueError(f"its pads are {(top, left, bottom, right)}; they must not be negative")
    return top, left, bottom, right


def write(path: Path, ck: Checkpoint) -> None:
    """Write the network, whose input is (pixel - mean) x scale as NCHW, and say in its metadata what these are."""
    onnx = _package()
    helper, arch, nodes, tensors = onnx.helper, ck.arch, [], []
    shapes, below = arch.shapes(), arch.input_shapes()

    def constant(name: str, a: np.ndarray) -> str:
        tensors.append(onnx.numpy_helper.from_array(np.array(a, order="C"), name))
        return name

    def along(layers: tuple[Layer, ...], tensor: str) -> str:
        for layer in layers:
            ends = [along(path, tensor) for path in layer.paths] if isinstance(layer, Branch) else []
            flat = f"{layer.name}_flat"
            inputs = [tensor, *(f"{layer.name}.{key}" for key in ("weight", "bias"))]
            kind, how = "Identity", {}
            if isinstance(layer, SpatialNorm):
                nodes.extend(within.nodes(layer, tensor, helper, constant, ck.dtype))
                tensor = layer.name
                continue
            if isinstance(layer, Linear) and len(below[layer.name]) == 3:
                nodes.append(helper.make_node("Flatten", [tensor], [flat], name=flat))
                inputs[0] = flat
            if isinstance(layer, Conv | Linear):
                for array, name in zip(
                    graph.maps_first(ck.params[layer.name], below[layer.name]), inputs[1:], strict=True
                ):
                    constant(name, array)
            match layer:
                case Conv(_, _, size, stride, pad, groups):
                    kind, how = "Conv", {
                        "kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "group": groups
                    }  # fmt: skip
                case Linear():
                    kind, how = "Gemm", {"transB": 1}
                case Relu():
                    kind, inputs = "Relu", [tensor]
                case Pool() | Average():
                    kind, how, inputs = *_pooling(layer, below[layer.name], shapes[layer.name]), [tensor]
                case Norm(_, n, k, alpha, beta):
                    kind, how = "LRN", {"size": n, "alpha": alpha * n, "beta": beta, "bias": k}
                    inputs = [tensor]
                case Dropout(_, rate):
                    kind = "Dropout"
                    inputs = [tensor, constant(f"{layer.name}.rate", np.array(rate, np.float32))]
                case Flatten():
                    kind, inputs = "Flatten", [tensor]
                case Branch():
                    kind, how, inputs = "Concat", {"axis": 1}, ends
            nodes.append(helper.make_node(kind, inputs, [layer.name], name=layer.name, **how))
            tensor = layer.name
        return tensor

    dtype = onnx.TensorProto.DOUBLE if ck.dtype == np.float64 else onnx.TensorProto.FLOAT
    end = along(arch.layers, "x")
    rows, columns, colours = arch.input
    last = shapes[end] if len(shapes[end]) == 1 else (shapes[end][2], *shapes[end][:2])
    takes = helper.make_tensor_value_info("x", dtype, ["N", colours, rows, columns])
    gives = helper.make_tensor_value_info(end, dtype, ["N", *last])
    made = helper.make_graph(nodes, arch.name, [takes], [gives], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], producer_name="refnet", ir_version=9)
    helper.set_model_props(model, {"refnet": json.dumps(described(ck))})
    onnx.save(model, str(path))


def _pooling(layer: Pool | Average, below: Shape, out: Shape) -> tuple[str, dict[str, Any]]:
    """Without ceil_mode, whose sizes and counts differ between versions: what hangs over is written as pads."""
    size, stride, pad = layer.window
    over = [max((n - 1) * stride + size - side - pad, pad) for n, side in zip(out, below, strict=False)][:2]
    how: dict[str, Any] = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad, pad, *over]}
    if isinstance(layer, Pool):
        how["pads"] = [pad, pad, *(n if layer.ceil else pad for n in over)]
        return "MaxPool", how
    if layer.count_pad and any(
        pool_size(n, layer.window, ceil=False) != m for n, m in zip(below, out[:2], strict=False)
    ):
        raise ValueError(f"layer {layer.name}: averages that count the padding and hang over the edge are not in ONNX")
    how["pads"] = [pad, pad, *(n if layer.ceil else pad for n in over)]
    return "AveragePool", how | {"count_include_pad": int(layer.count_pad)}


def runner(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """onnxruntime on the file: from images (N, H, W, C) as the source sees them to every tensor, maps as NHWC."""
    onnx = _package()
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("comparing needs the package onnxruntime: pip install 'refnet[interop]'") from None
    model = onnx.load(str(path))
    known = {each.name for each in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and node.op_type != "Constant"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        given, outputs = session.get_inputs()[0], [each.name for each in session.get_outputs()]
        fixed = given.shape[0] if isinstance(given.shape[0], int) else None
        pieces = [x[i : i + fixed] for i in range(0, len(x), fixed)] if fixed else [x]
        found = [session.run(None, {given.name: np.ascontiguousarray(p.transpose(0, 3, 1, 2))}) for p in pieces]
        arrays = (np.concatenate(each) for each in zip(*found, strict=True))
        return {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in zip(outputs, arrays, strict=True)}

    return run
