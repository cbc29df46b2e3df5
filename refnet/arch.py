"""Networks as data: layer records, the architecture that holds them, and its shapes.

A record says what a layer is, never how it is computed. All are frozen, comparable and survive JSON unchanged.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
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
class Linear:
    """Fully connected layer; maps are flattened in (row, column, map) order."""

    name: str
    units: int


@dataclass(frozen=True)
class Dropout:
    """Drops each value with probability ``rate`` in training and divides the rest by 1 - rate (inverted)."""

    name: str
    rate: float = 0.5


Layer = Conv | Relu | Pool | Norm | Linear | Dropout
_KINDS = {kind.__name__.lower(): kind for kind in (Conv, Relu, Pool, Norm, Linear, Dropout)}


@dataclass(frozen=True)
class Arch:
    """An architecture: the input's (rows, columns, colours) and the layers in order.

    Raises ValueError, naming the layer, when names repeat, a field is out of range or a window does not fit.
    """

    name: str
    input: tuple[int, int, int]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
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
        """Position of the layer called ``layer``; ValueError with the names that exist."""
        names = [each.name for each in self.layers]
        if layer not in names:
            raise ValueError(f"no layer {layer!r} in {self.name}; its layers are {' '.join(names)}")
        return names.index(layer)

    @property
    def side(self) -> int:
        """Side of the square input; ValueError if it is not square, as all images that refnet reads are."""
        if self.input[0] != self.input[1]:
            raise ValueError(
                f"{self.name} needs images of {self.input[0]} x {self.input[1]}; only square ones are read"
            )
        return self.input[0]

    def upto(self, layer: str) -> "Arch":
        """The same network, ending with the layer called ``layer``."""
        return Arch(self.name, self.input, self.layers[: self.index(layer) + 1])

    def shapes(self) -> dict[str, Shape]:
        """Output shape of every layer, without the batch axis: (H, W, C) or (units,)."""
        return dict(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        shape: Shape = self.input
        shapes = {}
        for layer in self.layers:
            try:
                shape = _out_shape(layer, shape)
            except ValueError as error:
                raise ValueError(f"arch {self.name}, layer {layer.name}: {error}") from None
            shapes[layer.name] = shape
        return shapes

    def input_shapes(self) -> dict[str, Shape]:
        """Input shape of every layer, without the batch axis."""
        return dict(zip(self._shapes, [self.input, *self._shapes.values()], strict=False))

    def param_shapes(self) -> dict[str, dict[str, Shape]]:
        """Shapes of ``w`` (K, K, C / groups, M) or (inputs, units) and ``b`` of every layer that has them."""
        shapes: dict[str, dict[str, Shape]] = {}
        before: Shape = self.input
        for layer, after in zip(self.layers, self.shapes().values(), strict=True):
            match layer:
                case Conv(name, filters, size, groups=groups):
                    shapes[name] = {"w": (size, size, before[2] // groups, filters), "b": (filters,)}
                case Linear(name, units):
                    shapes[name] = {"w": (_product(before), units), "b": (units,)}
            before = after
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
        if any(isinstance(each, Linear) for each in part.layers):
            raise ValueError(f"{layer} of {self.name} sees the whole image: only layers of maps have a field")
        return receptive_field(each.window for each in part.layers if isinstance(each, Conv | Pool))

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        layers = [{"kind": _kind(layer), **asdict(layer)} for layer in self.layers]
        return json.dumps({"name": self.name, "input": self.input, "layers": layers})

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
        return Arch(data["name"], tuple(data["input"]), tuple(_layer(each) for each in data["layers"]))

    def __str__(self) -> str:
        """A table: name, kind, output shape, parameters, multiply-adds, receptive field / stride."""
        shapes, params, macs = self.shapes(), self.param_shapes(), self.macs()
        rows = [("layer", "kind", "output", "parameters", "multiply-adds", "field/stride")]
        for layer in self.layers:
            name, shape = layer.name, shapes[layer.name]
            count = sum(_product(s) for s in params.get(name, {}).values())
            field = "{0.size}/{0.stride}".format(self.field(name)) if len(shape) == 3 else "all"
            rows.append((name, _kind(layer), "x".join(map(str, shape)),
                         f"{count:,}" if count else "", f"{macs[name]:,}" if count else "", field))  # fmt: skip
        lines = ["{:<8}{:<9}{:>13}{:>13}{:>15}{:>14}".format(*row) for row in rows]
        total = f"{self.param_count():,} parameters, {sum(macs.values()):,} multiply-adds per image"
        return "\n".join([f"{self.name}, input {'x'.join(map(str, self.input))}", *lines, total])


def _kind(layer: Layer) -> str:
    return type(layer).__name__.lower()


def _product(shape: Shape) -> int:
    return math.prod(shape)


def _out_shape(layer: Layer, shape: Shape) -> Shape:
    """Output shape of one layer on an input of ``shape``; ValueError where it cannot be."""
    _check_fields(layer)
    if isinstance(layer, Conv | Pool | Norm) and len(shape) != 3:
        raise ValueError(f"a {_kind(layer)} layer needs maps, but it gets {shape[0]} units")
    match layer:
        case Conv(_, filters, size, stride, pad, groups):
            if shape[2] % groups or filters % groups:
                raise ValueError(f"{shape[2]} maps and {filters} filters do not divide into {groups} groups")
            window = Window(size, stride, pad)
            out = tuple(conv_size(n, window) for n in shape[:2])
        case Pool(_, size, stride, pad, ceil):
            window = Window(size, stride, pad)
            out = tuple(pool_size(n, window, ceil=ceil) for n in shape[:2])
        case Linear(_, units):
            return (units,)
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


def _check_fields(layer: Layer) -> None:
    if not isinstance(layer.name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", layer.name):
        raise ValueError(f"its name is {layer.name!r}; a name is 1 to 64 letters, digits, _ or -")
    for field in fields(layer):
        value = getattr(layer, field.name)
        kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[field.type.__name__]  # type: ignore[union-attr]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{field.name} is {value!r}, it needs a {field.type.__name__}")  # type: ignore[union-attr]
        low, high = _RANGES.get(field.name, (-math.inf, math.inf))
        if not isinstance(value, str) and not low <= value < high:
            raise ValueError(f"{field.name} is {value}, it needs {low} <= {field.name} < {high}")
    if isinstance(layer, Conv | Pool) and layer.pad >= layer.size:
        raise ValueError(f"pad is {layer.pad}; it must be smaller than the window, {layer.size}")
    if isinstance(layer, Pool) and layer.size > 16:
        raise ValueError(f"size is {layer.size}; switches are bytes, so a region has at most 16 x 16 cells")
    if isinstance(layer, Norm) and (layer.n % 2 == 0 or layer.k == 0):
        raise ValueError(f"n is {layer.n} and k {layer.k}; it needs an odd n and k > 0")


def _layer(data: Any) -> Layer:
    """A layer record from its JSON object."""
    if not isinstance(data, dict) or str(data.get("kind")) not in _KINDS:
        raise ValueError(f"layer {data!r:.80} is of no known kind; the kinds are {', '.join(_KINDS)}")
    kind = _KINDS[data["kind"]]
    given = {key: value for key, value in data.items() if key != "kind"}
    names = {field.name for field in fields(kind)}
    if extra := given.keys() - names:
        raise ValueError(f"{data['kind']} layer {data.get('name')!r} has unknown fields: {', '.join(sorted(extra))}")
    try:
        return kind(**given)
    except TypeError:
        raise ValueError(f"{data['kind']} layer {data.get('name')!r:.80} lacks some of {sorted(names)}") from None
