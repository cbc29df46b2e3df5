"""Networks whose files hold weights alone: what stands between these."""

from collections.abc import Mapping

import numpy as np

from refnet.arch import Arch, Average, Branch, Conv, Dropout, Flatten, Layer, Linear, Pool, Relu
from refnet.interop import graph
from refnet.interop.graph import Node

# Filters of the fire modules' squeeze and expand layers, and after which of them the maps are pooled.
_FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
_POOLED = {"1.0": (4, 8), "1.1": (3, 5)}
_STEM = {"1.0": (96, 7), "1.1": (64, 3)}


def squeezenet(version: str = "1.1", *, side: int = 227, ceil: bool = True, classes: int = 1000) -> Arch:
    """SqueezeNet (Iandola et al. 2016), with Caffe's names; ``ceil``: pools round up (Caffe, PyTorch) or down (Keras).

    ``version`` is "1.0" or "1.1".
    """
    filters, size = _STEM[version]
    layers: list[Layer] = [Conv("conv1", filters, size, 2), Relu("relu_conv1"), Pool("pool1", ceil=ceil)]
    for number, (squeeze, expand) in _FIRES.items():
        fire = f"fire{number}"
        layers += [
            Conv(f"{fire}_squeeze1x1", squeeze, 1), Relu(f"{fire}_relu_squeeze1x1"),
            Branch(f"{fire}_concat", (
                (Conv(f"{fire}_expand1x1", expand, 1), Relu(f"{fire}_relu_expand1x1")),
                (Conv(f"{fire}_expand3x3", expand, 3, pad=1), Relu(f"{fire}_relu_expand3x3")),
            )),
        ]  # fmt: skip
        if number in _POOLED[version]:
            layers.append(Pool(f"pool{number}", ceil=ceil))
    layers += [Dropout("drop9"), Conv("conv10", classes, 1), Relu("relu_conv10")]
    rows, _, _ = Arch("", (side, side, 3), tuple(layers)).shapes()["relu_conv10"]
    name = f"squeezenet{version}"
    return Arch(name, (side, side, 3), (*layers, Average("pool10", rows, 1), Flatten("flatten")))


# torchvision's AlexNet: stride and padding of its convolutions, by their number among the features.
_ALEXNET = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}


def torchvision(tensors: Mapping[str, np.ndarray]) -> tuple[str, list[Node]]:
    """Name and nodes of a state dict as torchvision lays out AlexNet, VGG and SqueezeNet, by its keys.

    ValueError names what a state dict of these would have.
    """
    weights = {key.removesuffix(".weight") for key in tensors if key.endswith(".weight")}
    features = sorted(int(key.split(".")[1]) for key in weights if key.count(".") == 1 and key.startswith("features."))
    if any(key.endswith(".squeeze") for key in weights):
        return _squeezenet(tensors)
    if {"classifier.1", "classifier.4", "classifier.6"} <= weights and features == list(_ALEXNET):
        return "alexnet", _alexnet(tensors)
    if {"classifier.0", "classifier.3", "classifier.6"} <= weights and features[:1] == [0]:
        return "vgg", _vgg(tensors, features)
    few = ", ".join(sorted(tensors)[:4])
    raise ValueError(f"its keys ({few}, ...) are not those of torchvision's AlexNet, VGG or SqueezeNet")


class _Row:
    """Nodes one after the other, called as torchvision's modules are."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors, self.nodes, self.last = tensors, list[Node](), "x"

    def add(self, name: str, **how: object) -> None:
        self.nodes.append(Node(name, (self.last,), name, **how))  # type: ignore[arg-type]
        self.last = name

    def weights(self, name: str) -> dict[str, np.ndarray]:
        w, b = (self._tensor(f"{name}.{key}") for key in ("weight", "bias"))
        return {"w": w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T, "b": b}

    def _tensor(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise ValueError(f"the tensor {name} is missing")
        return self.tensors[name]

    def conv(self, name: str, stride: int = 1, pad: int = 0) -> None:
        arrays = self.weights(name)
        self.add(name, make=graph.conv(name, arrays["w"], stride=(stride,), pads=(pad,) * 4), weights=arrays)

    def linear(self, name: str) -> None:
        arrays = self.weights(name)
        self.add(name, make=lambda shape: Linear(name, arrays["w"].shape[-1]), weights=arrays)

    def relu(self, name: str) -> None:
        self.add(name, make=lambda shape: Relu(name))

    def dropout(self, name: str) -> None:
        self.add(name, make=lambda shape: Dropout(name))

    def pool(self, name: str, *, size: int = 3, ceil: bool = False) -> None:
        self.add(name, make=graph.pool(name, size=(size,), stride=(2,), pads=(0,) * 4, ceil=ceil))

    def batch_norm(self, name: str) -> None:
        gamma, beta, mean, var = (
            self._tensor(f"{name}.{key}") for key in ("weight", "bias", "running_mean", "running_var")
        )
        self.add(name, affine=graph.batch_norm(gamma, beta, mean, var, 1e-5))


def _alexnet(tensors: Mapping[str, np.ndarray]) -> list[Node]:
    row = _Row(tensors)
    for number, (stride, pad) in _ALEXNET.items():
        row.conv(f"features.{number}", stride, pad)
        row.relu(f"features.{number + 1}")
        if number in (0, 3, 10):
            row.pool(f"features.{number + 2}")
    for number in (1, 4):
        row.dropout(f"classifier.{number - 1}")
        row.linear(f"classifier.{number}")
        row.relu(f"classifier.{number + 1}")
    row.linear("classifier.6")
    return row.nodes


def _vgg(tensors: Mapping[str, np.ndarray], features: list[int]) -> list[Node]:
    row = _Row(tensors)
    normed = [number for number in features if f"features.{number}.running_mean" in tensors]
    convs = [number for number in features if number not in normed]
    for number, following in zip(convs, [*convs[1:], 0], strict=True):
        row.conv(f"features.{number}", 1, 1)
        if number + 1 in normed:
            row.batch_norm(f"features.{number + 1}")
        relu = number + 1 + (number + 1 in normed)
        row.relu(f"features.{relu}")
        if following != relu + 1:
            row.pool(f"features.{relu + 1}", size=2)
    for number in (0, 3):
        row.linear(f"classifier.{number}")
        row.relu(f"classifier.{number + 1}")
        row.dropout(f"classifier.{number + 2}")
    row.linear("classifier.6")
    return row.nodes


def _squeezenet(tensors: Mapping[str, np.ndarray]) -> tuple[str, list[Node]]:
    row = _Row(tensors)
    version = "1.0" if row.weights("features.0")["w"].shape[0] == 7 else "1.1"
    row.conv("features.0", 2)
    row.relu("features.1")
    row.pool("features.2", ceil=True)
    number = 3
    for fire in _FIRES:
        at = f"features.{number}"
        row.conv(f"{at}.squeeze")
        row.relu(f"{at}.squeeze_activation")
        start, ends = row.last, []
        for path, pad in (("expand1x1", 0), ("expand3x3", 1)):
            row.last = start
            row.conv(f"{at}.{path}", pad=pad)
            row.relu(f"{at}.{path}_activation")
            ends.append(row.last)
        row.nodes.append(Node(at, tuple(ends), at, joins=True))
        row.last = at
        number += 1
        if fire in _POOLED[version]:
            row.pool(f"features.{number}", ceil=True)
            number += 1
    row.dropout("classifier.0")
    row.conv("classifier.1")
    row.relu("classifier.2")
    row.add("classifier.3", make=graph.whole_average("classifier.3"))
    return f"squeezenet{version}", row.nodes
