"""Figure 5: how much layers 1 and 7, and the right class's probability, mind an image that is moved, scaled or turned.

Section 4.1 claims that small changes of the image change layer 1 at once, but layer 7 little, and nearly linearly in
translation and scale; and that rotations are not borne, unless the object looks the same when it is turned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from refnet import images, models, net
from refnet.arch import Params
from refnet.backend import Array, to_device, to_host
from refnet.datasets import Dataset
from refnet.features import check_input
from refnet.images import Floats, Pixels
from refnet.ops.loss import softmax
from refnet.weights import Checkpoint

Kind = Literal["translation", "scale", "rotation"]
Fill = Literal["edge", "mean"]
Unit = Literal["original", "largest"]

KINDS: tuple[Kind, ...] = ("translation", "scale", "rotation")
IDENTITY: dict[Kind, float] = {"translation": 0, "scale": 1, "rotation": 0}


@dataclass(frozen=True)
class Curves:
    """What T amounts of one kind of change do to N images.

    Attributes
    ----------
    amounts : (T,) pixels downwards, factors, or degrees anticlockwise; one of them changes nothing
    distances : layer -> (N, T), Euclidean, between the features of the original and of the changed image
    probability : (N, T) of the right class
    """

    amounts: np.ndarray
    distances: Mapping[str, np.ndarray]
    probability: np.ndarray


def default_amounts(kind: Kind, side: int) -> np.ndarray:
    """The figure's ranges, -60..60 of 224 pixels, 1..1.8 and 0..350 degrees, for crops of ``side`` pixels.

    Translations are by whole pixels: half a pixel would blur the image too.
    """
    if kind == "translation":
        return np.unique(np.round(np.linspace(-60, 60, 25) * side / 224))
    return np.linspace(1, 1.8, 17) if kind == "scale" else np.arange(0.0, 360, 10)


def transformed(pixels: Pixels, kind: Kind, amounts: np.ndarray, *, size: int, behind: Floats | None = None) -> Floats:
    """The crops that the network would see of the changed images, bilinear: (T, size, size, 3), in 0..255.

    Parameters
    ----------
    pixels : (S, S, 3) the whole image, so that what lies around the crop can move into it
    size : side of the centre crop, about whose middle the image is scaled and turned
    behind : (size, size, 3) what is seen where the image ends; None repeats the pixels at its edge

    Raises
    ------
    ValueError
        If a change looks further beyond the image than the image is wide.
    """
    side = len(pixels)
    framed = np.pad(pixels.astype(np.float32), [(side, side), (side, side), (0, 0)], mode="edge")
    inside = np.zeros(framed.shape[:2], np.uint8)
    inside[side : 2 * side, side : 2 * side] = 1
    changed = np.empty((len(amounts), size, size, 3), np.float32)
    for crop, amount in zip(changed, amounts.tolist(), strict=True):
        matrix, shift = _source(kind, amount)
        start = side + (side - size) // 2 + size / 2 + shift - matrix @ np.full(2, size / 2)
        corners = start + np.array([(0, 0), (0, size), (size, 0), (size, size)]) @ matrix.T
        if corners.min() < 0 or corners.max() > 3 * side:
            raise ValueError(f"a {kind} of {amount} looks too far beyond an image of {side} pixels")
        (a, b), (d, e) = matrix.tolist()
        affine = (a, b, float(start[0]), d, e, float(start[1]))

        def sampled(plane: np.ndarray, how: Image.Resampling, affine: tuple[float, ...] = affine) -> np.ndarray:
            return np.asarray(Image.fromarray(plane).transform((size, size), Image.Transform.AFFINE, affine, how))

        for colour in range(3):
            crop[..., colour] = sampled(framed[..., colour], Image.Resampling.BILINEAR)
        if behind is not None:
            outside = sampled(inside, Image.Resampling.NEAREST) == 0
            crop[outside] = behind[outside]
    return changed


def _source(kind: Kind, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the changed image's (x, y), from the middle, are in the original: a matrix (2, 2) and a shift (2,)."""
    if kind == "translation":
        return np.eye(2), np.array([0, -amount])
    if kind == "scale":
        return np.eye(2) / amount, np.zeros(2)
    cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
    return np.array([(cos, -sin), (sin, cos)]), np.zeros(2)  # y points down


def run(
    checkpoint: Checkpoint,
    dataset: Dataset,
    chosen: Sequence[int],
    *,
    layers: Sequence[str] | None = None,
    amounts: Mapping[Kind, np.ndarray] | None = None,
    fill: Fill = "edge",
    unit: Unit = "original",
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[Kind, Curves]:
    """Move, scale and turn images, and follow their features and the right class's probability.

    All amounts of one kind run as one batch with the original among them, whose distance is 0 to the bit.

    Parameters
    ----------
    chosen : indices of the images
    layers : names; default the ends of layers 1 and 7
    amounts : by kind; default `default_amounts`
    fill : what enters from beyond the image: its edge repeated, or the mean image
    unit : of a distance: the norm of the original's features, or the largest distance of the curve

    Raises
    ------
    ValueError
        If a layer does not exist, an image cannot be read, amounts lack the one that changes nothing, or what distances
        are divided by is 0.
    """
    check_input(checkpoint)
    arch = checkpoint.arch
    layers = layers or [models.end_of(arch, stage) for stage in (1, 7)]
    size, mean = arch.side, images.centre_crop(checkpoint.mean[None], arch.side)[0]
    amounts = amounts or {kind: default_amounts(kind, size) for kind in KINDS}
    params = net.on_device(checkpoint.params, device)
    for kind, each in amounts.items():
        if IDENTITY[kind] not in each:
            raise ValueError(f"the amounts of {kind} need {IDENTITY[kind]} among them, the image as it is")
    found = {
        kind: Curves(each, {layer: np.empty((len(chosen), len(each))) for layer in layers},
                     np.empty((len(chosen), len(each))))
        for kind, each in amounts.items()
    }  # fmt: skip
    for k, image in enumerate(chosen):
        pixels = dataset.image(image)
        for kind, curves in found.items():
            crops = transformed(pixels, kind, curves.amounts, size=size, behind=mean if fill == "mean" else None)
            x = images.normalise(crops, mean, checkpoint.scale).astype(checkpoint.dtype, copy=False)
            features, logits = _features(checkpoint, params, to_device(x, device), layers, threads)
            original = int(np.flatnonzero(curves.amounts == IDENTITY[kind])[0])
            for layer, y in features.items():
                distance = np.linalg.norm(y - y[original], axis=1)
                by = np.linalg.norm(y[original]) if unit == "original" else distance.max()
                if not by > 0:
                    raise ValueError(
                        f"{dataset.names[image]}: {layer} is 0 or never changes, and distances have no unit"
                    )
                curves.distances[layer][k] = distance / by
            curves.probability[k] = softmax(logits)[:, dataset.labels[image]]
        progress(k + 1)
    return found


def _features(
    checkpoint: Checkpoint, params: Params, x: Array, layers: Sequence[str], threads: int | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features (T, F) of the layers, and logits (T, classes), float64 on the host."""
    found: dict[str, np.ndarray] = {layer: np.empty((len(x), *checkpoint.arch.shapes()[layer])) for layer in layers}

    def watch(layer: str, part: slice, y: Array) -> None:
        if layer in found:
            found[layer][part] = to_host(y)

    logits = net.predict(checkpoint.arch, params, x, watch=watch, threads=threads)
    return {layer: y.reshape(len(x), -1) for layer, y in found.items()}, to_host(logits).astype(np.float64)


def reached(amounts: np.ndarray, distances: np.ndarray, at: float) -> np.ndarray:
    """Share of each curve's largest distance that translations by ``at`` pixels up and down reach, their mean (N,)."""
    places = [-at, at]
    there = np.array([np.interp(places, amounts, each).mean() for each in distances])
    return np.asarray(there / distances.max(axis=1))


def linearity(kind: Kind, amounts: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Correlation of each curve (N, T) with the size of the change (N,): 1 for a straight line."""
    size = np.abs(amounts - IDENTITY[kind])
    return np.array([np.corrcoef(size, each)[0, 1] for each in distances])
