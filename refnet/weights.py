"""Checkpoints and trained networks in HDF5: one file with everything, written in one step, checked when read.

`weights/FORMAT.md` describes the file. Between a `Checkpoint` and the file stands `refnet.hdf5.Content`,
the file's attributes and datasets as flat dictionaries: `save` packs, checks and writes it; `load` goes the other way.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refnet import hdf5
from refnet.arch import Arch, Params, Shape
from refnet.backend import to_host
from refnet.hdf5 import Content

FORMAT, VERSION = "refnet", 1
# Conventions that all files of this version share, stored for other programs and for people.
CONVENTIONS = {
    "padding_rule": "zeros, as many before as after; conv rounds sizes down, pool by its ceil",
    "lrn_alpha": "multiplies the sum of squares",
}


@dataclass(eq=False)
class Checkpoint:
    """A network in training or trained, and how it came about.

    Attributes
    ----------
    arch : Arch
    params : {layer: {"w": array, "b": array}}, float32 or float64
    mean : (rows, columns, colours) float32, per pixel, in ``input_range``, of the size images are cut from
    scale : what (pixel - mean) is multiplied by
    classes : names, one per output of the last layer, or none
    recipe : every declared choice of the training; JSON-able
    ranks : processes that trained it together, at last
    seed, epoch, finished : what all streams are spawned from, epochs done, whether no more will follow
    history : one value per epoch under each name: "train_loss", "val_top1", ...
    optimizer : velocities, like ``params``; None in finished weights
    rng : states of the generators and what else a resumed training needs; JSON-able
    colour_order, input_range : of the images: "RGB" or "BGR"; 255 where pixels are 0..255

    Raises
    ------
    ValueError
        For a value out of its range, another number of classes than outputs, or a name HDF5 cannot hold.
    """

    arch: Arch
    params: Params
    mean: np.ndarray
    scale: float = 1.0
    classes: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    ranks: int = 1
    epoch: int = 0
    finished: bool = False
    history: dict[str, list[float]] = field(default_factory=dict)
    optimizer: Params | None = None
    rng: dict[str, Any] | None = None
    colour_order: str = "RGB"
    input_range: float = 255.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the parameters, and so of the images that the network takes."""
        return next((np.dtype(a.dtype) for layer in self.params.values() for a in layer.values()), np.dtype("float32"))

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != _outputs(self.arch):
            raise ValueError(f"{len(self.classes)} class names, but {self.arch.name} has {_outputs(self.arch)} outputs")
        for name in self.classes:
            if re.search("[\0\ud800-\udfff]", name):
                raise ValueError(f"class name {name!r} has a NUL or half a character, which HDF5 cannot hold")
        if self.colour_order not in ("RGB", "BGR"):
            raise ValueError(f"colour order is {self.colour_order!r:.60}, it needs RGB or BGR")
        for name, value in (("scale", self.scale), ("input_range", self.input_range)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, it needs a number above 0")
        for name, value, least in (("seed", self.seed, 0), ("epoch", self.epoch, 0), ("ranks", self.ranks, 1)):
            if not least <= value < 2**63:
                raise ValueError(f"{name} is {value}, it needs {least} <= {name} < 2**63")


def save(path: str | Path, checkpoint: Checkpoint, *, dtype: str | None = None) -> None:
    """Write ``checkpoint`` to ``path``; a file already there stays whole until the new one is on the disk.

    Parameters
    ----------
    path : in a folder that exists
    dtype : "float32" or "float16" for the parameters and velocities; None keeps what they have.
        "float16" halves the file of finished weights; `load` makes float32 of it.

    Raises
    ------
    ValueError
        Listing every parameter that is missing, extra, mis-shaped or of another dtype; for velocities in
        float16, values beyond its range, and what JSON cannot hold.
    OSError
        Where the file cannot be written.
    """
    if dtype not in (None, "float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}, it needs None, 'float32' or 'float16'")
    with _naming(path):
        content = _pack(checkpoint, dtype)
        _check(checkpoint.arch, content)
    hdf5.write(Path(path), content)


def load(path: str | Path) -> Checkpoint:
    """Read and verify what `save` wrote; float16 becomes float32, all else comes back bit by bit.

    Raises
    ------
    ValueError
        For anything but a whole, unchanged refnet file of this version: what it is and what to do.
    OSError
        Where the file is missing or cannot be opened.
    """
    with _naming(path):
        content = hdf5.read(Path(path), check=_check_file)
        return _unpack(Arch.from_json(content.attributes["/"]["arch"]), content)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it, in one line whatever the names in the file are."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


# Checkpoint <-> content


def _pack(checkpoint: Checkpoint, dtype: str | None) -> Content:
    root = {
        "format": FORMAT,
        "version": VERSION,
        "arch": checkpoint.arch.to_json(),
        "recipe": _to_json(checkpoint.recipe, "recipe"),
        "seed": int(checkpoint.seed),
        "ranks": int(checkpoint.ranks),
        "epoch": int(checkpoint.epoch),
        "finished": bool(checkpoint.finished),
        "colour_order": checkpoint.colour_order,
        "input_range": float(checkpoint.input_range),
        **CONVENTIONS,
    }
    datasets = {
        **_flat("params", checkpoint.params, dtype),
        **_flat("optimizer", checkpoint.optimizer or {}, dtype),
        "/input/mean": to_host(checkpoint.mean),
        "/input/scale": np.array(float(checkpoint.scale)),
    }
    for name, values in checkpoint.history.items():
        if not re.fullmatch(_HISTORY, path := f"/history/{name}"):
            raise ValueError(f"history has the name {name!r}; a name is letters, digits and _")
        datasets[path] = np.array(values, dtype=np.float64)
    if checkpoint.classes:
        datasets["/classes"] = hdf5.texts([name.encode() for name in checkpoint.classes])
    if checkpoint.rng is not None:
        datasets["/rng"] = hdf5.texts(_to_json(checkpoint.rng, "rng").encode())
    axes = {path: {"axes": axes} for path, axes in _axes(checkpoint.arch).items() if path in datasets}
    return Content({"/": root, **axes}, datasets)


def _unpack(arch: Arch, content: Content) -> Checkpoint:
    root, arrays = {**_ABSENT, **content.attributes["/"]}, content.datasets
    return Checkpoint(
        arch,
        _nested("params", arch, arrays),
        arrays["/input/mean"].astype(np.float32, copy=False),
        scale=arrays["/input/scale"].item(),
        classes=tuple(name.decode() for name in arrays["/classes"].tolist()) if "/classes" in arrays else (),
        recipe=_from_json(root["recipe"], "recipe"),
        seed=root["seed"],
        ranks=root["ranks"],
        epoch=root["epoch"],
        finished=root["finished"],
        history={
            path.removeprefix("/history/"): values.tolist()
            for path, values in arrays.items()
            if path.startswith("/history/")
        },
        optimizer=_nested("optimizer", arch, arrays) if _has_optimizer(arrays) else None,
        rng=_from_json(arrays["/rng"].item(), "rng") if "/rng" in arrays else None,
        colour_order=root["colour_order"],
        input_range=root["input_range"],
    )


def _flat(group: str, params: Params, dtype: str | None) -> dict[str, np.ndarray]:
    arrays = {f"/{group}/{layer}/{name}": a for layer, each in params.items() for name, a in each.items()}
    return {path: _cast(path, to_host(array), dtype) for path, array in arrays.items()}


def _nested(group: str, arch: Arch, arrays: Mapping[str, np.ndarray]) -> Params:
    return {
        layer: {name: _widened(arrays[f"/{group}/{layer}/{name}"]) for name in shapes}
        for layer, shapes in arch.param_shapes().items()
    }


def _cast(path: str, array: np.ndarray, dtype: str | None) -> np.ndarray:
    if dtype is None:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    if np.isinf(cast).sum() > np.isinf(array).sum():
        raise ValueError(f"{path} reaches {np.abs(array).max():.3g}, {dtype} only {np.finfo(dtype).max:.6g}")
    return cast


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _to_json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must survive JSON: {error}") from None


def _from_json(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"its {name} is no valid JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"its {name} is {text:.60}; it needs a JSON object")
    return value


# What a file holds

_HISTORY = "/history/[A-Za-z0-9_]+"
_FLOATS = tuple(map(np.dtype, (np.float16, np.float32, np.float64)))
# The root's attributes: what each must be, a type or the very value.
_ROOT: dict[str, Any] = {
    "arch": str, "recipe": str, "seed": int, "ranks": int, "epoch": int, "finished": bool,
    "colour_order": str, "input_range": float, "sha256": str, **CONVENTIONS,
}  # fmt: skip
_ABSENT = {"ranks": 1}  # what the first files need not say


def _check_file(content: Content) -> None:
    """ValueError unless a file that declares this is one of ours; nothing has been read yet."""
    _check_root(content.attributes["/"])
    _check(Arch.from_json(content.attributes["/"]["arch"]), content)


def _check_root(attributes: dict[str, Any]) -> None:
    """ValueError unless the root's attributes are those of a refnet file of this version."""
    got = {name: attributes.get(name, _ABSENT.get(name)) for name in ("format", "version", *_ROOT)}
    if got["format"] != FORMAT:
        raise ValueError(f"HDF5, but not refnet's: its attribute format is {got['format']!r:.60}, it needs {FORMAT!r}")
    if got["version"] != VERSION:
        raise ValueError(
            f"its format version is {got['version']!r:.60}, but this refnet reads {VERSION}: update refnet, "
            "or save the file again with the refnet that wrote it"
        )
    problems = [
        f"{name} is {got[name]!r:.60}, it needs {getattr(want, '__name__', repr(want))}"
        for name, want in _ROOT.items()
        if got[name] != want and type(got[name]) is not want
    ]
    problems += [f"{name} is extra" for name in attributes if name not in got]
    if problems:
        raise ValueError(f"attributes do not fit: {'; '.join(problems)}")


def _check(arch: Arch, content: Content) -> None:
    """ValueError with everything that is missing, extra or not as it must be."""
    datasets, shapes, axes = content.datasets, _shapes(arch, content.datasets), _axes(arch)
    problems = [f"{path} {shape} is missing" for path, shape in shapes.items() if path not in datasets]
    problems += [f"{path} is extra" for path in datasets if path not in shapes]
    for path in shapes.keys() & datasets.keys():
        array, text = datasets[path], path in ("/classes", "/rng")
        named = content.attributes.get(path, {}).get("axes")
        problems += [f"{path} has the attribute {name}" for name in content.attributes.get(path, {}) if name != "axes"]
        if array.shape != shapes[path]:
            problems.append(f"{path} is {array.shape}, it needs {shapes[path]}")
        if not (array.dtype.kind == "S" if text else array.dtype in _FLOATS):
            need = "text of fixed length" if text else "float16, 32 or 64"
            problems.append(f"{path} is {array.dtype}, it needs {need}")
        if named != axes.get(path):
            problems.append(f"{path} has the axes {named!r:.60}, it needs {axes.get(path)!r}")
    numbers = {
        str(each.dtype)
        for path, each in datasets.items()
        if path in shapes and path.startswith(("/params/", "/optimizer/")) and each.dtype in _FLOATS
    }
    if len(numbers) > 1:
        problems.append(f"/params and /optimizer are of {' and '.join(sorted(numbers))}; they must be of one dtype")
    if _has_optimizer(datasets) and any(each.dtype == np.float16 for each in datasets.values()):
        problems.append("float16 is for finished weights, without /optimizer")
    if problems:
        raise ValueError(f"it does not fit {arch.name}: {'; '.join(sorted(problems))}")


def _shapes(arch: Arch, datasets: Mapping[str, Any]) -> dict[str, Shape]:
    """Shape of every dataset that must be there, and of the optional ones that are."""
    groups = ("params", "optimizer") if _has_optimizer(datasets) else ("params",)
    shapes: dict[str, Shape] = {
        f"/{group}/{layer}/{name}": shape
        for group in groups
        for layer, each in arch.param_shapes().items()
        for name, shape in each.items()
    }
    optional: dict[str, Shape] = {"/classes": (_outputs(arch),), "/rng": ()}
    optional |= {path: (each.size,) for path, each in datasets.items() if re.fullmatch(_HISTORY, path)}
    shapes |= {path: shape for path, shape in optional.items() if path in datasets}
    return {**shapes, "/input/mean": _mean_shape(arch, datasets.get("/input/mean")), "/input/scale": ()}


def _mean_shape(arch: Arch, mean: Any) -> Shape:
    """The mean's own shape where the network's input can be cut from it, else the least it needs."""
    shape: Shape = () if mean is None else mean.shape
    cuts = len(shape) == 3 and shape[2] == arch.input[2] and all(np.greater_equal(shape, arch.input))
    return shape if cuts else arch.input


def _axes(arch: Arch) -> dict[str, str]:
    """The ``axes`` attribute of every array that has one."""
    axes = {"/input/mean": "row column colour"}
    for layer, shapes in arch.param_shapes().items():
        of_w = "row column map filter" if len(shapes["w"]) == 4 else "input unit"
        for group in ("params", "optimizer"):
            axes |= {f"/{group}/{layer}/w": of_w, f"/{group}/{layer}/b": of_w.split()[-1]}
    return axes


def _outputs(arch: Arch) -> int:
    return list(arch.shapes().values())[-1][-1]


def _has_optimizer(datasets: Mapping[str, Any]) -> bool:
    return any(path.startswith("/optimizer/") for path in datasets)
