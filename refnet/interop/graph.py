"""A foreign network, nodes between named tensors, and how it becomes layers in a row with branches."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refnet.arch import Arch, Average, Branch, Conv, Flatten, Layer, Linear, Params, Pool, Shape, out_shape
from refnet.geometry import Window, pool_size

MOST_VALUES = 1 << 27  # of a layer's output for one image: what asks for more is a lie or cannot be run
Pads = tuple[int, int, int, int]  # rows before, columns before, rows after, columns after


@contextmanager
def one_line() -> Iterator[None]:
    """Of a file's names a ValueError may hold anything: its message becomes one line of at most 1000 characters."""
    try:
        yield
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())[:1000]) from None


@dataclass
class Node:
    """An operation of the source.

    ``make`` gives the layer for an input of a shape; none, or None of it, where the node changes nothing. ``weights``
    are in refnet's layouts, but rows of a linear layer that follows maps are in (map, row, column) order if
    ``maps_first``. ``affine`` is (factors, summands) per map, folded into the layer before.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    make: Callable[[Shape], Layer | None] | None = None
    weights: dict[str, np.ndarray] | None = None
    affine: tuple[np.ndarray, np.ndarray] | None = None
    joins: bool = False
    flattens: bool = False
    maps_first: bool = True


@dataclass
class Network:
    """What a reader found: ``outputs`` has the source's tensor for each layer's output.

    ``declared`` is what the file says of its inputs, as `refnet.interop.conventions.Inputs` takes it. ``maps_first``:
    the source flattens maps in (map, row, column) order.
    """

    arch: Arch
    params: Params
    outputs: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    declared: dict[str, Any] = field(default_factory=dict)
    maps_first: bool = True


def build(name: str, shape: Shape, nodes: list[Node], source: str) -> Network:
    """The network from the tensor ``source``, images of a ``shape`` (rows, columns, colours), to its one end.

    Raises
    ------
    ValueError
        Naming the node that cannot be a layer, or why nodes make no row of layers with branches.
    """
    builder = _Builder(nodes)
    try:
        layers, shape, joint = builder.chain(source, shape, None)
    except RecursionError:
        raise ValueError("its branches lie too deep inside each other") from None
    if joint is not None:
        raise ValueError(f"node {joint.name}: it joins paths that do not start at one place")
    if left := [node.name for node in nodes if id(node) not in builder.visited]:
        raise ValueError(f"{len(left)} nodes are not on the way from {source!r} to the output, the first is {left[0]}")
    if not layers:
        raise ValueError("it has no layers")
    if len(shape) == 3 and (builder.flattened or shape[:2] == (1, 1)):
        if shape[:2] != (1, 1):
            raise ValueError(f"its output is {shape} maps flattened; only 1 x 1 maps end a network")
        layers.append(Flatten(builder.unique("flatten")))
        builder.outputs[layers[-1].name] = builder.end
    arch = Arch(re.sub(r"[^ -~]", "_", name)[:64] or "imported", builder.input, tuple(layers))
    return Network(arch, builder.params, builder.outputs)


def leading(nodes: list[Node], until: str) -> list[Node]:
    """Those nodes that lead to the one called ``until``, or that makes a tensor of that name; it is the last of all.

    ValueError names it where there is none.
    """
    if not nodes or until not in (nodes[-1].name, nodes[-1].output):
        raise ValueError(f"it has no layer {until!r} for --until")
    wanted, kept = {nodes[-1].output}, list[Node]()
    for node in reversed(nodes):
        if node.output in wanted:
            wanted.update(node.inputs)
            kept.insert(0, node)
    return kept


class _Builder:
    def __init__(self, nodes: list[Node]) -> None:
        self.users: dict[str, list[Node]] = {}
        made: set[str] = set()
        for node in nodes:
            if node.output in made:
                raise ValueError(f"node {node.name}: another one makes {node.output!r} too")
            made.add(node.output)
            for tensor in dict.fromkeys(node.inputs):
                self.users.setdefault(tensor, []).append(node)
        self.visited: set[int] = set()
        self.names: set[str] = set()
        self.params: Params = {}
        self.outputs: dict[str, str] = {}
        self.flattened = False
        self.end = ""  # the tensor that the last chain ended with
        self.input: tuple[int, int, int] = (0, 0, 0)

    def chain(self, tensor: str, shape: Shape, first: Node | None) -> tuple[list[Layer], Shape, Node | None]:
        """Layers from a tensor on, by way of the node ``first`` if several use it; their shape; and the joint."""
        if first is None and not self.input[0]:
            self.input = (shape[0], shape[1], shape[2])
        layers: list[Layer] = []
        while True:
            users = [first] if first is not None else self.users.get(tensor, [])
            first = None
            if len(users) > 1:
                branch, shape, tensor = self._branch(tensor, shape, users)
                layers.append(branch)
                continue
            if not users:
                self.end = tensor
                return layers, shape, None
            (node,) = users
            if node.joins:
                self.end = tensor
                return layers, shape, node
            self._visit(node)
            shape = self._add(node, layers, shape)
            tensor = node.output

    def _branch(self, tensor: str, shape: Shape, users: list[Node]) -> tuple[Branch, Shape, str]:
        paths: dict[str, tuple[Layer, ...]] = {}
        ends: dict[str, Shape] = {}
        joints: list[Node] = []
        for user in users:
            layers, end, joint = self.chain(tensor, shape, user)
            if joint is None:
                raise ValueError(f"node {user.name}: the path that it starts joins no others")
            joints.append(joint)
            paths[self.end], ends[self.end] = tuple(layers), end
        joint = joints[0]
        if any(each is not joint for each in joints) or sorted(joint.inputs) != sorted(paths):
            raise ValueError(f"node {joint.name}: it does not join all paths that start at {tensor!r}, and only these")
        self._visit(joint)
        branch = Branch(self.unique(joint.name), tuple(paths[each] for each in joint.inputs))
        self.outputs[branch.name] = joint.output
        if any(len(end) != 3 or end[:2] != shape_of[:2] for end in ends.values() for shape_of in ends.values()):
            raise ValueError(f"node {joint.name}: it joins maps of {', '.join(map(str, ends.values()))}")
        return branch, (*end[:2], sum(each[2] for each in ends.values())), joint.output

    def _visit(self, node: Node) -> None:
        if id(node) in self.visited:
            raise ValueError(f"node {node.name}: it is reached twice, by a cycle or by paths that were not joined")
        self.visited.add(id(node))

    def _add(self, node: Node, layers: list[Layer], shape: Shape) -> Shape:
        self.flattened |= node.flattens
        if node.affine is not None:
            self._fold(node, layers)
            return shape
        try:
            layer = node.make(shape) if node.make else None
            if layer is None:
                return shape
            layer = replace(layer, name=self.unique(layer.name))
            after = out_shape(layer, shape)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(f"node {node.name}: {error}") from None
        if math.prod(after) > MOST_VALUES:
            raise ValueError(f"node {node.name}: its output would be {after}")
        if isinstance(layer, Linear):
            self.flattened = False
        if isinstance(layer, Conv | Linear):
            self.params[layer.name] = self._weights(node, layer, shape)
        layers.append(layer)
        self.outputs[layer.name] = node.output
        return after

    def _weights(self, node: Node, layer: Conv | Linear, shape: Shape) -> dict[str, np.ndarray]:
        weights = node.weights or {}
        if isinstance(layer, Conv):
            needs: Shape = (layer.size, layer.size, shape[2] // layer.groups, layer.filters)
        else:
            needs = (math.prod(shape), layer.units)
        w, b = weights.get("w"), weights.get("b")
        if w is None or w.shape != needs:
            got = "missing" if w is None else str(w.shape)
            raise ValueError(f"node {node.name}: its weights are {got}, on maps or units {shape} they must be {needs}")
        b = np.zeros(needs[-1:], w.dtype) if b is None else b
        if b.shape != needs[-1:]:
            raise ValueError(f"node {node.name}: its biases are {b.shape}, they must be {needs[-1:]}")
        if isinstance(layer, Linear) and len(shape) == 3 and node.maps_first:
            rows, columns, maps = shape
            w = w.reshape(maps, rows, columns, layer.units).transpose(1, 2, 0, 3).reshape(needs)
        return {key: np.ascontiguousarray(a, np.float32) for key, a in (("w", w), ("b", b))}

    def _fold(self, node: Node, layers: list[Layer]) -> None:
        """Take factors and summands into the weights of the convolution or linear layer before."""
        last = layers[-1] if layers else None
        if not isinstance(last, Conv | Linear):
            raise ValueError(f"node {node.name}: it scales or shifts, which can only follow a convolution or Gemm")
        assert node.affine is not None
        p = self.params[last.name]
        try:
            a, shift = (np.broadcast_to(each.astype(np.float64).reshape(-1), p["b"].shape) for each in node.affine)
        except ValueError:
            raise ValueError(
                f"node {node.name}: it has {node.affine[0].size} factors for {p['b'].shape} maps"
            ) from None
        if np.any(a != 1):
            p["w"] = (p["w"] * a).astype(np.float32)
        p["b"] = (p["b"] * a + shift).astype(np.float32)
        self.outputs[last.name] = node.output

    def unique(self, name: str) -> str:
        """A name that a layer may have and none has yet."""
        base = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[-60:] or "layer"
        found, number = base, 1
        while found in self.names:
            number += 1
            found = f"{base}_{number}"
        self.names.add(found)
        return found


def same(what: str, values: Any) -> int:
    """The one value of all; ValueError where they differ, as for oblong windows."""
    different = sorted(set(values))
    if len(different) != 1:
        raise ValueError(f"its {what} are {', '.join(map(str, values))}; only equal ones can be had")
    return int(different[0])


def conv(
    name: str, w: np.ndarray, *, stride: Any, pads: Pads, groups: int = 1, dilations: Any = (1, 1)
) -> Callable[[Shape], Layer]:
    """What makes a convolution with filters w (K, K, C, M)."""

    def make(shape: Shape) -> Layer:
        if w.ndim != 4:
            raise ValueError(f"its filters have {w.ndim} axes, they need 4")
        if same("dilations", dilations) != 1:
            raise ValueError(f"its dilation is {dilations}; only 1 can be had")
        size, pad = same("filter's sides", w.shape[:2]), same("pads", pads)
        return Conv(name, w.shape[3], size, same("strides", stride), pad, groups)

    return make


def pool(
    name: str, *, size: Any, stride: Any, pads: Pads, ceil: bool, average: bool = False, count_pad: bool = False
) -> Callable[[Shape], Layer | None]:
    """What makes a pooling layer; more padding after than before is as good as ``ceil`` where sizes agree."""

    def make(shape: Shape) -> Layer | None:
        k, step, pad = same("window's sides", size), same("strides", stride), same("pads", pads[:2])
        if k < 1 or step < 1 or min(pads) < 0:
            raise ValueError(f"its size is {k}, its stride {step} and its pads {pads}")
        over = ceil
        if pads[2:] != pads[:2]:
            ends = [n + pad + after - k for n, after in zip(shape, pads[2:], strict=False)]
            sizes = [(-(-end // step) if ceil else end // step) + 1 for end in ends]
            ours = [pool_size(n, Window(k, step, pad), ceil=True) for n in shape[:2]]
            if sizes != ours or (average and count_pad):
                raise ValueError(f"its pads {pads} give {sizes} regions; padded evenly and rounded up it has {ours}")
            over = True
        if k == step == 1 and not pad:
            return None
        if average:
            return Average(name, k, step, pad, over, count_pad)
        return Pool(name, k, step, pad, over)

    return make


def whole_average(name: str) -> Callable[[Shape], Layer]:
    """What makes the average over whole maps."""

    def make(shape: Shape) -> Layer:
        side = same("maps' sides", shape[:2])
        return Average(name, side, 1)

    return make


def batch_norm(gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, epsilon: float) -> Any:
    """Factors and summands of a batch normalisation in inference."""
    if not gamma.shape == beta.shape == mean.shape == var.shape:
        raise ValueError("its batch normalisation has arrays of different shapes")
    if not np.all(var + epsilon > 0):
        raise ValueError("its batch normalisation has a variance that is not above 0")
    a = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
    return a, beta - mean * a


def maps_first(p: dict[str, np.ndarray], below: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Weights as ONNX and PyTorch have them: (M, C, K, K) or (units, inputs), inputs in (map, row, column) order."""
    w = p["w"]
    if w.ndim == 4:
        return w.transpose(3, 2, 0, 1), p["b"]
    if len(below) == 3:
        w = w.reshape(*below, -1).transpose(2, 0, 1, 3).reshape(w.shape)
    return w.T, p["b"]
