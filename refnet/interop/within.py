"""Normalisation within maps in ONNX, which has none: as its own square, average, product, sum, power and quotient.

y = x / (1 + (alpha size^2) mean(x x))^beta, the mean over size x size cells, zeros beyond the edge.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from refnet.arch import SpatialNorm
from refnet.interop.graph import Node


def nodes(
    layer: SpatialNorm, tensor: str, helper: Any, constant: Callable[[str, np.ndarray], str], dtype: Any
) -> list[Any]:
    """The nodes from a tensor to the one called as the layer; ``constant(name, array)`` makes the numbers they need."""
    name = layer.name
    factor, one, beta = (
        constant(f"{name}.{key}", np.array(value, dtype))
        for key, value in (("alpha", layer.alpha * layer.size**2), ("one", 1), ("beta", layer.beta))
    )
    square, mean, product, scale, power = (f"{name}_{step}" for step in ("square", "mean", "product", "scale", "power"))
    steps = (
        ("Mul", [tensor, tensor], square), ("AveragePool", [square], mean), ("Mul", [mean, factor], product),
        ("Add", [product, one], scale), ("Pow", [scale, beta], power), ("Div", [tensor, power], name),
    )  # fmt: skip
    how = {"AveragePool": _window(layer.size)}
    return [helper.make_node(kind, inputs, [end], name=end, **how.get(kind, {})) for kind, inputs, end in steps]


def found(
    content: Iterable[Any], constants: dict[str, np.ndarray], attributes: Callable[[Any], dict[str, Any]]
) -> dict[str, Node | None]:
    """Which of a graph's nodes are `nodes`, by their outputs: the quotient's layer, and none for those before it."""
    made = {node.output[0]: node for node in content if node.output and node.input}
    layers: dict[str, Node | None] = {}
    for output, quotient in made.items():
        chain = _chain(quotient, made)
        if len(chain) == len(_KINDS) and (layer := _layer(chain, constants, attributes)):
            layers |= dict.fromkeys(node.output[0] for node in chain)
            layers[output] = _node(layer, quotient.input[0], output)
    return layers


_KINDS = ("Div", "Pow", "Add", "Mul", "AveragePool", "Mul")  # the last one first


def _chain(quotient: Any, made: dict[str, Any]) -> list[Any]:
    """The quotient and what leads to its divisor, as long as they are of the right kinds."""
    chain: list[Any] = []
    node = quotient
    for kind in _KINDS:
        if node is None or node.op_type != kind or len(node.input) != (1 if kind == "AveragePool" else 2):
            break
        chain.append(node)
        node = made.get(node.input[kind == "Div"])
    return chain


def _layer(
    chain: list[Any], constants: dict[str, np.ndarray], attributes: Callable[[Any], dict[str, Any]]
) -> SpatialNorm | None:
    """What the nodes are, if their numbers are those of `nodes`."""
    quotient, power, add, product, average, square = chain
    beta, one, factor = (constants.get(node.input[1], np.zeros(0)).reshape(-1) for node in (power, add, product))
    window = attributes(average)
    sides = window.get("kernel_shape")
    size = sides[0] if isinstance(sides, list) and sides and isinstance(sides[0], int) else 0
    fits = window == _window(size) and list(square.input) == [quotient.input[0]] * 2
    if not fits or size % 2 == 0 or not len(beta) == len(one) == len(factor) == 1 or one[0] != 1:
        return None
    alpha = factor.dtype.type(_short(factor[0]) / size**2)
    return SpatialNorm(quotient.name or quotient.output[0], size, _short(alpha), _short(beta[0]))


def _short(value: Any) -> float:
    """The shortest decimal that is this number of its type."""
    return float(str(value))


def _node(layer: SpatialNorm, x: str, output: str) -> Node:
    return Node(layer.name, (x,), output, lambda shape: layer)


def _window(size: int) -> dict[str, Any]:
    """Attributes of the average."""
    return {"kernel_shape": [size] * 2, "strides": [1, 1], "pads": [size // 2] * 4, "count_include_pad": 1}
