"""Networks as data: layer records, the architecture that holds them, and its shapes.

A record says what a layer is, never how it is computed. All are frozen, comparable and survive JSON unchanged.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from refnet.geometry import Field, Window, conv_size, pool_size, receptive_field

Shape = tuple[int, ...]
Params = dict[str, dict[str, Any]]  # {"conv1": {"w": (7, 7, 3, 96), "b": (96,)}, ..., "fc8": {...}}


@dataclass(frozen=True)
class Conv:
    """Convolution: ``filters`` filters of ``size`` x ``size``, each over 1 / ``groups`` of the maps, plus a bias."""

    name: str
    filters: int
    size: int
    stride: int = 1
    pad: int = 0
    groups: int = 1

    @property
    def window(self) -> Window:
        """Its size, stride and padding."""
        return Window(self.size, self.stride, self.pad)


@dataclass(frozen=True)
class Relu:
    """Rectification max(x, 0)."""

    name: str


@dataclass(frozen=True)
class Pool:
    """Max pooling with switches; ``ceil`` lets the last region hang over the edge (a declared choice)."""

    name: str
    size: int = 3
    stride: int = 2
    pad: int = 0
    ceil: bool = True

    @property
    def window(self) -> Window:
        """Its size, stride and padding."""
        return Window(self.size, self.stride, self.pad)


@dataclass(frozen=True)
class Average:
    """Average pooling, each map on its own; without weights.

    ``ceil`` lets the last region hang over the edge. A region's sum is divided by the number of its cells: those
    inside the image, with ``count_pad`` (Caffe, PyTorch) those in the padding as well.
    """

    name: str
    size: int = 3
    stride: int = 2
    pad: int = 0
    ceil: bool = False
    count_pad: bool = False

    @property
    def window(self) -> Window:
        """Its size, stride and padding."""
        return Window(self.size, self.stride, self.pad)


@dataclass(frozen=True)
class Norm:
    """Contrast normalisation across ``n`` neighbouring maps; ``alpha`` multiplies the *sum* of squares.

    The paper gives no constants; these are Krizhevsky's (2012, section 3.3), a declared choice.
    """

    name: str
    n: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75


@dataclass(frozen=True)
class SpatialNorm:
    """Contrast normalisation of each map on its own, over ``size`` x ``size`` cells; ``alpha`` multiplies the *sum*.

    The ZF network of Faster R-CNN has it (Caffe's LRN within a channel, whose alpha is size^2 times this one).
    """

    name: str
    size: int = 3
    alpha: float = 1e-4
    beta: float = 0.75

    @property
    def window(self) -> Window:
        """The cells around each one: as many come out as went in."""
        return Window(self.size, 1, self.size // 2)


@dataclass(frozen=True)
class Linear:
    """Fully connected layer; maps are flattened in (row, column, map) order."""

    name: str
    units: int


@dataclass(frozen=True)
class Dropout:
    """Drops each value with probability ``rate`` in training and divides the rest by 1 - rate (inverted)."""

    name: str
    rate: float = 0.5


@dataclass(frozen=True)
class Flatten:
    """Maps as units, in (row, column, map) order: the end of a network without fully connected layers."""

    name: str


@dataclass(frozen=True)
class Branch:
    """Parallel paths of layers over the same maps; theirs are concatenated, in the paths' order.

    A path without layers hands the maps on. On the way down each path gets its own maps' signal, and what arrives at
    their common start is added.
    """

    name: str
    paths: tuple[tuple["Layer", ...], ...]

    @property
    def window(self) -> Window:
        """The smallest window that holds those of all paths; ValueError where their steps differ."""
        fields = [receptive_field(windows(path)) for path in self.paths]
        if len({field.stride for field in fields}) > 1:
            raise ValueError(f"its paths step by {' and '.join(str(field.stride) for field in fields)} cells")
        start = min(field.start for field in fields)
        return Window(max(field.start + field.size for field in fields) - start, fields[0].stride, -start)


Layer = Conv | Relu | Pool | Average | Norm | SpatialNorm | Linear | Dropout | Flatten | Branch
Windowed = Conv | Pool | Average | SpatialNorm | Branch
_KINDS: dict[str, Any] = {
    kind.__name__.lower(): kind
    for kind in (Conv, Relu, Pool, Average, Norm, SpatialNorm, Linear, Dropout, Flatten, Branch)
}


def flat(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The layers in order, those of a branch's paths before the branch itself."""
    for layer in layers:
        if isinstance(layer, Branch):
            for path in layer.paths:
                yield from flat(path)
        yield layer


def windows(layers: Iterable[Layer]) -> Iterator[Window]:
    """The windows of those layers that have one."""
    return (each.window for each in layers if isinstance(each, Windowed))


@dataclass(frozen=True)
class Arch:
    """An architecture: the input's (rows, columns, colours) and the layers in order.

    Raises ValueError, naming the layer, when names repeat, a field is out of range or a window does not fit.
    """

    name: str
    input: tuple[int, int, int]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        names = [layer.name for layer in flat(self.layers)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"arch {self.name}: two layers are called {name!r}; names must differ")
        if (
            not isinstance(self.input, tuple)
            or len(self.input) != 3
            or not all(type(n) is int and n > 0 for n in self.input)
        ):
            raise ValueError(f"arch {self.name}: input is {self.input}, it needs (rows, columns, colours)")
        if not self.layers:
            raise ValueError(f"arch {self.name}: it has no layers")
        _ = self._shapes  # raises where a layer cannot follow the one before it

    def index(self, layer: str) -> int:
        """Position in ``layers`` of the layer called ``layer``, or of the branch that has it in one of its paths.

        ValueError with the names that exist.
        """
        for i, each in enumerate(self.layers):
            if any(inner.name == layer for inner in flat([each])):
                return i
        names = " ".join(each.name for each in flat(self.layers))
        raise ValueError(f"no layer {layer!r} in {self.name}; its layers are {names}")

    @property
    def side(self) -> int:
        """Side of the square input; ValueError if it is not square, as all images that refnet reads are."""
        if self.input[0] != self.input[1]:
            raise ValueError(
                f"{self.name} needs images of {self.input[0]} x {self.input[1]}; only square ones are read"
            )
        return self.input[0]

    def upto(self, layer: str) -> "Arch":
        """The same network, ending with the layer called ``layer``; inside a branch, of its paths only that one."""
        self.index(layer)  # raises where there is none
        return Arch(self.name, self.input, _chain(self.layers, layer))

    def shapes(self) -> dict[str, Shape]:
        """Output shape of every layer, without the batch axis: (H, W, C) or (units,)."""
        return dict(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return {name: after for name, (_, after) in self._around.items()}

    def input_shapes(self) -> dict[str, Shape]:
        """Input shape of every layer, without the batch axis."""
        return {name: before for name, (before, _) in self._around.items()}

    @cached_property
    def _around(self) -> dict[str, tuple[Shape, Shape]]:
        """Every layer's shapes before and after it."""
        around: dict[str, tuple[Shape, Shape]] = {}

        def along(layers: tuple[Layer, ...], shape: Shape) -> Shape:
            for layer in layers:
                ends = [along(path, shape) for path in layer.paths] if isinstance(layer, Branch) else []
                try:
                    after = _joined(layer, ends) if isinstance(layer, Branch) else out_shape(layer, shape)
                except ValueError as error:
                    raise ValueError(f"arch {self.name}, layer {layer.name}: {error}") from None
                around[layer.name] = shape, after
                shape = after
            return shape

        along(self.layers, self.input)
        return around

    def param_shapes(self) -> dict[str, dict[str, Shape]]:
        """Shapes of ``w`` (K, K, C / groups, M) or (inputs, units) and ``b`` of every layer that has them."""
        shapes: dict[str, dict[str, Shape]] = {}
        before = self.input_shapes()
        for layer in flat(self.layers):
            match layer:
                case Conv(name, filters, size, groups=groups):
                    shapes[name] = {"w": (size, size, before[name][2] // groups, filters), "b": (filters,)}
                case Linear(name, units):
                    shapes[name] = {"w": (_product(before[name]), units), "b": (units,)}
        return shapes

    def param_count(self) -> int:
        """Number of weights and biases."""
        return sum(_product(s) for layer in self.param_shapes().values() for s in layer.values())

    def macs(self) -> dict[str, int]:
        """Multiply-adds per image of every layer with weights."""
        shapes = self.shapes()
        return {
            name: _product(w["w"]) * (_product(shapes[name][:2]) if len(shapes[name]) == 3 else 1)
            for name, w in self.param_shapes().items()
        }

    def field(self, layer: str) -> Field:
        """Receptive field of one position of the layer called ``layer``, which must be a layer of maps."""
        part = self.upto(layer)
        if any(isinstance(each, Linear | Flatten) for each in part.layers):
            raise ValueError(f"{layer} of {self.name} sees the whole image: only layers of maps have a field")
        return receptive_field(windows(part.layers))

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        return json.dumps({"name": self.name, "input": self.input, "layers": [_object(each) for each in self.layers]})

    @staticmethod
    def from_json(text: str) -> "Arch":
        """Inverse of `to_json`; ValueError says what is missing, unknown or of the wrong type."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("the architecture is no valid JSON") from None
        if not isinstance(data, dict) or data.keys() != {"name", "input", "layers"} or type(data["name"]) is not str:
            raise ValueError("the architecture needs a name, an input and layers, and nothing else")
        if not isinstance(data["input"], list) or not isinstance(data["layers"], list):
            raise ValueError("the architecture's input and layers must be lists")
        try:
            layers = tuple(_layer(each) for each in data["layers"])
        except RecursionError:
            raise ValueError("the architecture has too many branches inside each other") from None
        return Arch(data["name"], tuple(data["input"]), layers)

    def __str__(self) -> str:
        """A table: name, kind, output shape, parameters, multiply-adds, receptive field / stride."""
        shapes, params, macs = self.shapes(), self.param_shapes(), self.macs()
        rows = [("layer", "kind", "output", "parameters", "multiply-adds", "field/stride")]
        for layer in flat(self.layers):
            name, shape = layer.name, shapes[layer.name]
            count = sum(_product(s) for s in params.get(name, {}).values())
            field = "{0.size}/{0.stride}".format(self.field(name)) if len(shape) == 3 else "all"
            rows.append((name, _kind(layer), "x".join(map(str, shape)),
                         f"{count:,}" if count else "", f"{macs[name]:,}" if count else "", field))  # fmt: skip
        width = max(8, 1 + max(len(row[0]) for row in rows))
        lines = ["{:<{width}}{:<12}{:>13}{:>13}{:>15}{:>14}".format(*row, width=width) for row in rows]
        total = f"{self.param_count():,} parameters, {sum(macs.values()):,} multiply-adds per image"
        return "\n".join([f"{self.name}, input {'x'.join(map(str, self.input))}", *lines, total])


def _kind(layer: Layer) -> str:
    return type(layer).__name__.lower()


def _product(shape: Shape) -> int:
    return math.prod(shape)


def _chain(layers: tuple[Layer, ...], layer: str) -> tuple[Layer, ...]:
    """The layers that lead to the one called ``layer``, with it at their end."""
    at, last = next((i, each) for i, each in enumerate(layers) if any(inner.name == layer for inner in flat([each])))
    if not isinstance(last, Branch) or last.name == layer:
        return layers[: at + 1]
    path = next(path for path in last.paths if any(each.name == layer for each in flat(path)))
    return layers[:at] + _chain(path, layer)


def _joined(layer: Branch, ends: list[Shape]) -> Shape:
    """Output shape of a branch whose paths end with these shapes; ValueError where they cannot be joined."""
    _check_name(layer.name)
    if not ends or any(len(end) != 3 or end[:2] != ends[0][:2] for end in ends):
        raise ValueError(f"its paths end with {', '.join(map(str, ends)) or 'nothing'}; they need maps of one size")
    _ = layer.window  # raises where steps differ
    return *ends[0][:2], sum(end[2] for end in ends)


def out_shape(layer: Layer, shape: Shape) -> Shape:
    """Output shape of one layer on an input of ``shape``; ValueError where it cannot be."""
    _check_fields(layer)
    if isinstance(layer, Conv | Pool | Average | Norm | SpatialNorm) and len(shape) != 3:
        raise ValueError(f"a {_kind(layer)} layer needs maps, but it gets {shape[0]} units")
    match layer:
        case Conv(_, filters, size, stride, pad, groups):
            if shape[2] % groups or filters % groups:
                raise ValueError(f"{shape[2]} maps and {filters} filters do not divide into {groups} groups")
            window = Window(size, stride, pad)
            out = tuple(conv_size(n, window) for n in shape[:2])
        case Pool(_, size, stride, pad, ceil) | Average(_, size, stride, pad, ceil):
            window = Window(size, stride, pad)
            out = tuple(pool_size(n, window, ceil=ceil) for n in shape[:2])
        case SpatialNorm(_, size) if size // 2 > max(shape[:2]):
            raise ValueError(f"size is {size}, which reaches more than its maps' sides {shape[:2]} beyond their edges")
        case Linear(_, units):
            return (units,)
        case Flatten():
            return (_product(shape),)
        case _:
            return shape
    if min(out) < 1:
        raise ValueError(f"a {size} x {size} window (stride {stride}, pad {pad}) does not fit {shape[:2]}")
    return *out, layer.filters if isinstance(layer, Conv) else shape[2]


# Ranges of the records' fields: lowest value and, where there is one, the value they stay below.
_RANGES: dict[str, tuple[float, float]] = {
    "filters": (1, math.inf), "size": (1, math.inf), "stride": (1, math.inf), "pad": (0, math.inf),
    "groups": (1, math.inf), "units": (1, math.inf), "n": (1, math.inf), "k": (0, math.inf),
    "alpha": (0, math.inf), "beta": (0, math.inf), "rate": (0, 1),
}  # fmt: skip


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError(f"its name is {name!r}; a name is 1 to 64 letters, digits, _ or -")


def _check_fields(layer: Layer) -> None:
    _check_name(layer.name)
    for field in fields(layer):
        value = getattr(layer, field.name)
        kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[field.type.__name__]  # type: ignore[union-attr]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{field.name} is {value!r}, it needs a {field.type.__name__}")  # type: ignore[union-attr]
        low, high = _RANGES.get(field.name, (-math.inf, math.inf))
        if not isinstance(value, str) and not low <= value < high:
            raise ValueError(f"{field.name} is {value}, it needs {low} <= {field.name} < {high}")
    if isinstance(layer, Conv | Pool | Average) and layer.pad >= layer.size:
        raise ValueError(f"pad is {layer.pad}; it must be smaller than the window, {layer.size}")
    if isinstance(layer, Pool) and layer.size > 16:
        raise ValueError(f"size is {layer.size}; switches are bytes, so a region has at most 16 x 16 cells")
    if isinstance(layer, Norm) and (layer.n % 2 == 0 or layer.k == 0):
        raise ValueError(f"n is {layer.n} and k {layer.k}; it needs an odd n and k > 0")
    if isinstance(layer, SpatialNorm) and layer.size % 2 == 0:
        raise ValueError(f"size is {layer.size}, it needs an odd one")


def _object(layer: Layer) -> dict[str, Any]:
    """A layer record as JSON takes it."""
    values = {field.name: getattr(layer, field.name) for field in fields(layer)}
    if isinstance(layer, Branch):
        values["paths"] = [[_object(each) for each in path] for path in layer.paths]
    return {"kind": _kind(layer), **values}


def _layer(data: Any) -> Layer:
    """A layer record from its JSON object."""
    if not isinstance(data, dict) or str(data.get("kind")) not in _KINDS:
        raise ValueError(f"layer {data!r:.80} is of no known kind; the kinds are {', '.join(_KINDS)}")
    kind = _KINDS[data["kind"]]
    given = {key: value for key, value in data.items() if key != "kind"}
    names = {field.name for field in fields(kind)}
    if extra := given.keys() - names:
        raise ValueError(f"{data['kind']} layer {data.get('name')!r:.80} has unknown fields: {sorted(extra)!r:.80}")
    if kind is Branch and "paths" in given:
        paths = given["paths"]
        if not isinstance(paths, list) or not all(isinstance(path, list) for path in paths):
            raise ValueError(f"branch layer {data.get('name')!r:.80}: its paths must be a list of lists of layers")
        given["paths"] = tuple(tuple(_layer(each) for each in path) for path in paths)
    try:
        made: Layer = kind(**given)
        return made
    except TypeError:
        raise ValueError(f"{data['kind']} layer {data.get('name')!r:.80} lacks some of {sorted(names)}") from None
