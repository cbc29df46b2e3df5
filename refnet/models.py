"""The paper's networks and our presets, and the changes of Table 3 as functions of an architecture."""

import re
from dataclasses import replace

from refnet.arch import Arch, Branch, Conv, Dropout, Flatten, Layer, Linear, Norm, Pool, Relu, flat


def _head(*units: int, dropout: float = 0.5) -> tuple[Layer, ...]:
    """Fully connected layers fc6, fc7, ... with relu and dropout between them; the last one gives the logits."""
    *hidden, classes = units
    layers: list[Layer] = []
    for number, width in enumerate(hidden, start=6):
        layers += [Linear(f"fc{number}", width), Relu(f"relu{number}"), Dropout(f"drop{number}", dropout)]
    return *layers, Linear("fc8", classes)


# Figure 3: filter, rectify, pool, normalise. Padding and rounding are not stated; these are Caffe's, one of the
# three readings that give the maps 110-55-26-13-13-13-13-6.
ZFNET = Arch("zfnet", (224, 224, 3), (
    Conv("conv1", 96, 7, stride=2, pad=1), Relu("relu1"), Pool("pool1"), Norm("norm1"),
    Conv("conv2", 256, 5, stride=2), Relu("relu2"), Pool("pool2"), Norm("norm2"),
    Conv("conv3", 384, 3, pad=1), Relu("relu3"),
    Conv("conv4", 384, 3, pad=1), Relu("relu4"),
    Conv("conv5", 256, 3, pad=1), Relu("relu5"), Pool("pool5"),
    *_head(4096, 4096, 1000),
))  # fmt: skip

# Krizhevsky et al. 2012, the baseline of Figure 6 and Tables 2 and 3: normalise, then pool; two groups.
KRIZHEVSKY = Arch("krizhevsky", (227, 227, 3), (
    Conv("conv1", 96, 11, stride=4), Relu("relu1"), Norm("norm1"), Pool("pool1", ceil=False),
    Conv("conv2", 256, 5, pad=2, groups=2), Relu("relu2"), Norm("norm2"), Pool("pool2", ceil=False),
    Conv("conv3", 384, 3, pad=1), Relu("relu3"),
    Conv("conv4", 384, 3, pad=1, groups=2), Relu("relu4"),
    Conv("conv5", 256, 3, pad=1, groups=2), Relu("relu5"), Pool("pool5", ceil=False),
    *_head(4096, 4096, 1000),
))  # fmt: skip

# ZFNet's layers for 112-pixel crops of 128-pixel images, for a laptop: conv2 keeps its stride at 1, so that the
# maps go 54-27-27-13-13-13-13-6 and layers 3 to 5 have the paper's 13 x 13.
SMALL = Arch("small", (112, 112, 3), (
    Conv("conv1", 32, 7, stride=2, pad=1), Relu("relu1"), Pool("pool1"), Norm("norm1"),
    Conv("conv2", 80, 5, pad=2), Relu("relu2"), Pool("pool2", ceil=False), Norm("norm2"),
    Conv("conv3", 160, 3, pad=1), Relu("relu3"),
    Conv("conv4", 160, 3, pad=1), Relu("relu4"),
    Conv("conv5", 96, 3, pad=1), Relu("relu5"), Pool("pool5"),
    *_head(512, 512, 10),
))  # fmt: skip

# 56-pixel crops of 64-pixel images, a quarter of ZFNet's maps, at most 30 MFLOP an image: for grids of trainings.
# Little dropout: in short trainings, half of so few units gone kept the loss at ln C for many epochs.
MINI = Arch("mini", (56, 56, 3), (
    Conv("conv1", 24, 7, stride=2, pad=2), Relu("relu1"), Pool("pool1"), Norm("norm1"),
    Conv("conv2", 64, 5, stride=2, pad=2), Relu("relu2"), Norm("norm2"),
    Conv("conv3", 96, 3, pad=1), Relu("relu3"),
    Conv("conv4", 96, 3, pad=1), Relu("relu4"),
    Conv("conv5", 64, 3, pad=1), Relu("relu5"), Pool("pool5"),
    *_head(256, 256, 10, dropout=0.1),
))  # fmt: skip

# Krizhevsky's net at the same size, for the same grids: his strides and groups, normalised before the pool, a
# quarter of the maps, and as in mini no second pool. The maps go 14-7-7-7-7-7-3.
MINI_KRIZHEVSKY = Arch("mini-krizhevsky", (56, 56, 3), (
    Conv("conv1", 24, 11, stride=4, pad=4), Relu("relu1"), Norm("norm1"), Pool("pool1"),
    Conv("conv2", 64, 5, pad=2, groups=2), Relu("relu2"), Norm("norm2"),
    Conv("conv3", 96, 3, pad=1), Relu("relu3"),
    Conv("conv4", 96, 3, pad=1, groups=2), Relu("relu4"),
    Conv("conv5", 64, 3, pad=1, groups=2), Relu("relu5"), Pool("pool5"),
    *_head(256, 256, 10, dropout=0.1),
))  # fmt: skip

# Every kind of layer in a net that tests can differentiate numerically: odd sizes, groups, overlapping pools.
TINY = Arch("tiny", (19, 19, 3), (
    Conv("conv1", 6, 5, stride=2, pad=1), Relu("relu1"), Pool("pool1"), Norm("norm1", alpha=0.5),
    Conv("conv2", 8, 3, pad=1, groups=2), Relu("relu2"), Pool("pool2", ceil=False),
    *_head(12, 10),
))  # fmt: skip

MODELS = {arch.name: arch for arch in (ZFNET, KRIZHEVSKY, SMALL, MINI, MINI_KRIZHEVSKY, TINY)}


def with_classes(arch: Arch, classes: int) -> Arch:
    """``arch`` with so many outputs: units of its last layer with weights, or filters (SqueezeNet)."""
    at, last = [(i, layer) for i, layer in enumerate(arch.layers) if isinstance(layer, Conv | Linear)][-1]
    new = replace(last, units=classes) if isinstance(last, Linear) else replace(last, filters=classes)
    return replace(arch, layers=(*arch.layers[:at], new, *arch.layers[at + 1 :]))


def _stage(layer: Layer) -> int:
    """The paper's number of the stage that a layer belongs to: 1 for conv1, relu1, pool1 and norm1."""
    return int(layer.name[-1])


def stage_ends(arch: Arch) -> dict[str, str]:
    """The last layer of every stage, dropout apart, by the layer with weights that begins it: conv1 -> norm1.

    What the paper calls layer n, where it does not say where in the stage, is taken to be this one.
    """
    ends: dict[str, str] = {}
    begins = ""
    for layer in flat(arch.layers):
        if isinstance(layer, Conv | Linear):
            begins = layer.name
        if begins and not isinstance(layer, Dropout | Flatten):
            ends[begins] = layer.name
    return ends


def trunk(arch: Arch) -> list[str]:
    """The last layer of every stage of the network itself, not of its branches' paths; dropout and flattening apart.

    A stage has one convolution or fully connected layer, one branch, or one of each: a fire module is a stage.
    """
    ends: list[str] = []
    branched = True
    for layer in arch.layers:
        if isinstance(layer, Conv | Linear) or (isinstance(layer, Branch) and branched):
            ends.append(layer.name)
            branched = False
        branched |= isinstance(layer, Branch)
        if ends and not isinstance(layer, Dropout | Flatten):
            ends[-1] = layer.name
    return ends


def hidden(arch: Arch) -> list[str]:
    """The stages of the `trunk` below the one that classifies; all of a network that ends with maps."""
    return trunk(arch)[:-1] if len(arch.shapes()[arch.layers[-1].name]) == 1 else trunk(arch)


def numbered(arch: Arch) -> dict[int, str]:
    """The ends of the stages by the paper's number, as conv1 to fc8 say it; empty for a network with other names."""
    names = {begins: re.fullmatch("(conv|fc)([1-9])", begins) for begins in stage_ends(arch)}
    ends = {int(found[2]): end for found, end in zip(names.values(), stage_ends(arch).values(), strict=True) if found}
    return ends if len(ends) == len(names) else {}


def end_of(arch: Arch, stage: int) -> str:
    """The last layer of a stage as the paper numbers them: relu7 for 7.

    In a network with other names the first of the `hidden` stages stands for 1, the last one of maps for 5 and the last
    one for 7. ValueError if there is no such stage.
    """
    ends, others = numbered(arch), hidden(arch)
    if not ends and others:
        of_maps = [end for end in others if len(arch.shapes()[end]) == 3]
        ends = {1: others[0], **({5: of_maps[-1]} if of_maps else {}), 7: others[-1]}
    if stage not in ends:
        raise ValueError(f"{arch.name} has no layer numbered {stage}; its layers are {', '.join(trunk(arch))}")
    return ends[stage]


def without(arch: Arch, *stages: int) -> Arch:
    """``arch`` without these stages (Table 3, "removed layers")."""
    return replace(arch, layers=tuple(layer for layer in arch.layers if _stage(layer) not in stages))


def widened(arch: Arch, factors: dict[int, float]) -> Arch:
    """``arch`` with the filters or units of these stages multiplied (Table 3, "adjust layers")."""

    def wider(layer: Layer) -> Layer:
        factor = factors.get(_stage(layer), 1)
        match layer:
            case Conv(_, filters):
                return replace(layer, filters=round(filters * factor))
            case Linear(_, units):
                return replace(layer, units=round(units * factor))
        return layer

    return replace(arch, layers=tuple(wider(layer) for layer in arch.layers))


def by_name(name: str) -> Arch:
    """The architecture called ``name``; ValueError with the names that exist."""
    if name not in MODELS:
        raise ValueError(f"no architecture {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
