"""PyTorch's state dicts: .safetensors, and .pt and .pth through an unpickler that executes nothing of the file.

Convolutions are (M, C, K, K), linear layers (units, inputs), flattened in (map, row, column) order.
"""

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arch import Arch, Params
from refnet.interop import graph, layouts, zoo
from refnet.interop.conventions import declared, described
from refnet.interop.graph import Network
from refnet.weights import Checkpoint

_SIDE = 224  # of the images that torchvision's networks take
_SAFE = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
_STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ByteStorage": "|u1", "BoolStorage": "|b1",
}  # fmt: skip


@graph.one_line()
def read(path: Path, until: str | None = None) -> Network:
    """The network whose state dict is in a .safetensors, .pt or .pth file, or up to its module ``until``."""
    tensors, metadata = _safetensors(path) if path.suffix == ".safetensors" else (_pickled(path), {})
    if "refnet" in metadata:
        return _ours(tensors, metadata["refnet"], until)
    name, nodes = layouts.torchvision(tensors)
    if until is not None:
        last = next((n for n, node in enumerate(nodes, start=1) if node.name == until), 0)
        nodes = graph.leading(nodes[:last], until)
    return graph.build(name, (_SIDE, _SIDE, 3), nodes, "x")


def _ours(tensors: Mapping[str, np.ndarray], metadata: str, until: str | None) -> Network:
    """What `write` wrote, or the part of it that leads to a layer."""
    try:
        data = json.loads(metadata)
        arch, inputs, classes = Arch.from_json(data["arch"]), declared(data["inputs"]), tuple(map(str, data["classes"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its metadata for refnet is damaged: {error}") from None
    needs = {f"{layer}.{key}" for layer in arch.param_shapes() for key in ("weight", "bias")}
    if needs != set(tensors):
        raise ValueError(f"its tensors do not fit {arch.name}: {', '.join(sorted(needs ^ set(tensors))[:4])}")
    below, params = arch.input_shapes(), Params()
    for layer, shapes in arch.param_shapes().items():
        w, b = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        if w.size != math.prod(shapes["w"]) or b.shape != shapes["b"] or w.ndim != len(shapes["w"]):
            raise ValueError(f"tensor {layer}.weight is {w.shape} and its bias {b.shape}; {shapes} are needed")
        if w.ndim == 4:
            w = w.transpose(2, 3, 1, 0)
        elif len(below[layer]) == 3:
            rows, columns, maps = below[layer]
            w = w.reshape(-1, maps, rows, columns).transpose(2, 3, 1, 0).reshape(shapes["w"])
        else:
            w = w.T
        if w.shape != shapes["w"]:
            raise ValueError(f"tensor {layer}.weight is {w.shape} in refnet's order, it needs {shapes['w']}")
        params[layer] = {"w": np.ascontiguousarray(w), "b": b}
    if until is not None:
        arch = arch.upto(until)
    return Network(arch, {layer: params[layer] for layer in arch.param_shapes()}, {}, classes, inputs)


def write(path: Path, ck: Checkpoint) -> None:
    """Write the parameters as a state dict, "conv1.weight" (M, C, K, K) and so on; the network is in the metadata."""
    below = ck.arch.input_shapes()
    tensors = {}
    for layer, p in ck.params.items():
        for key, array in zip(("weight", "bias"), graph.maps_first(p, below[layer]), strict=True):
            tensors[f"{layer}.{key}"] = np.ascontiguousarray(array)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "refnet": json.dumps(described(ck))}}
    kinds, start = {kind: name for name, kind in _SAFE.items()}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": kinds[array.dtype.str], "shape": array.shape, "data_offsets": [start, start + array.nbytes]
        }  # fmt: skip
        start += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.data)


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata; ValueError for a header that does not describe the file."""
    with open(path, "rb") as file:
        data = file.read()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"no safetensors file: its header should have {length} bytes, the file has {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        raise ValueError("no safetensors file: its header is no JSON object") from None
    body, tensors = memoryview(data)[8 + length :], {}
    for name, said in header.items():
        try:
            dtype, shape, (start, stop) = np.dtype(_SAFE[said["dtype"]]), said["shape"], said["data_offsets"]
            fits = 0 <= start <= stop <= len(body) and stop - start == math.prod(shape) * dtype.itemsize
            if not fits or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError
            tensors[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"tensor {name}: {said!r:.80} does not describe {len(body)} bytes of data") from None
    return tensors, metadata if isinstance(metadata, dict) else {}


class _Storage:
    """Numbers of a storage, a view of the file's bytes."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """What torch._utils._rebuild_tensor_v2 would make, checked against the storage's length."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor is not made of whole numbers and a storage")
    values, count = storage.values, math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (last >= len(values) or count > len(values)):
        raise ValueError(f"a tensor of {size} reaches value {last} of a storage of {len(values)}")
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps).copy()


class _Unpickler(pickle._Unpickler):
    """Knows ordered dictionaries and tensors; any other name in the file ends the reading.

    The unpickler in C would take 34 GB for five bytes: an index of its memo that the file may choose.
    """

    def __init__(self, file: Any, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(file)
        self.archive, self.prefix = archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        """The few names that state dicts need."""
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in known:
            raise ValueError(f"it asks for {module}.{name}; a state dict of tensors does not: nothing was executed")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """A storage of the archive."""
        kind, name, key, _, count = pid
        if kind != "storage" or name not in _STORAGES:
            raise ValueError(f"it refers to {pid!r:.60}")
        info = self.archive.getinfo(f"{self.prefix}data/{key}")
        dtype = np.dtype(_STORAGES[name])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {info.file_size} bytes, {count} numbers of {dtype} are declared")
        return _Storage(np.frombuffer(self.archive.read(info), dtype))


@graph.one_line()
def _pickled(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch.save wrote."""
    if not zipfile.is_zipfile(path):
        path.stat()  # a missing file is no broken one
        raise ValueError("no archive of PyTorch 1.6 or newer: load it there and torch.save its state_dict()")
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((each for each in archive.infolist() if each.filename.endswith("data.pkl")), None)
            if pickled is None or pickled.file_size > 1 << 26:
                raise ValueError("it has no data.pkl of a state dict's size")
            prefix = pickled.filename.removesuffix("data.pkl")
            with archive.open(pickled) as file:
                found = _Unpickler(file, archive, prefix).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"no state dict: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
        raise ValueError(f"no state dict but a {type(found).__name__}")
    tensors = {key.removeprefix("module."): a for key, a in found.items() if isinstance(a, np.ndarray)}
    return {key: a for key, a in tensors.items() if not key.endswith("num_batches_tracked")}


def runner(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """torch on a state dict: from images (N, H, W, C) as the source sees them to every module's output, maps as NHWC.

    The modules are `refnet.interop.zoo`'s.
    """
    try:
        import torch
    except ImportError:
        raise ValueError("comparing needs the package torch") from None
    tensors = _loaded(torch, path)
    module = zoo.like({key.removeprefix("module."): each.float() for key, each in tensors.items()})
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, y: Any) -> None:
            found[name] = (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy().copy()

        return hook

    for name, each in module.named_modules():
        each.register_forward_hook(keep(name))

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        found.clear()
        with torch.no_grad():
            module(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
        return dict(found)

    return run


def _loaded(torch: Any, path: Path) -> Any:
    """A state dict as torch or safetensors itself reads it; nothing in it is executed."""
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ValueError("comparing needs the package safetensors") from None
        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    return found.get("state_dict", found)
