"""The Image tab: what a network makes of some images, map by map, and what it makes of them behind a square."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnet import datasets, images, net, occlusion, top
from refnet.backend import to_device, to_host
from refnet.datasets import Dataset
from refnet.deconv import Strongest, strongest
from refnet.features import stream
from refnet.geometry import clip_box
from refnet.ops.loss import softmax
from refnet.report.encode import numbers, picture, tiles
from refnet.weights import Checkpoint

SHOWN = 6  # maps of each layer
SQUARE, STEP, SIDE = 27, 7, 224  # of the occlusion, on an image of that side; smaller images have smaller squares


@dataclass(frozen=True)
class Here:
    """The strongest maps of a layer in some images, ``SHOWN`` (or all) of each: (S, k) maps, and their features."""

    maps: np.ndarray
    features: top.LayerFeatures


def strongest_here(
    checkpoint: Checkpoint, dataset: Dataset, layer: str, *, device: str = "cpu", threads: int | None = None
) -> Here:
    """Each image's strongest maps, where they are strongest, projected by the deconvnet."""
    y = np.concatenate([y for y, _, _ in stream(checkpoint, dataset, layer=layer, device=device, threads=threads)])
    found = [strongest(each[None], top=1) for each in y]
    maps = np.stack([np.argsort(-each.value[:, 0], kind="stable")[:SHOWN] for each in found])
    value, row, col = (
        np.concatenate([getattr(each, key)[m] for each, m in zip(found, maps, strict=True)])
        for key in ("value", "row", "col")
    )
    image = np.repeat(np.arange(len(y)), maps.shape[1])[:, None]
    best = Strongest(value, image, row, col)
    return Here(maps, top.project(checkpoint, dataset, layer, maps.ravel(), best, device=device, threads=threads))


def readable(dataset: Dataset, count: int) -> Dataset:
    """The first images that can be read, evenly over the classes, in their order."""
    few = dataset.first(count)
    good = []
    for i in range(len(few)):
        try:
            few.image(i)
        except ValueError:
            continue  # it is in dataset.skipped now
        good.append(i)
    if not good:
        raise ValueError(f"none of the first {len(few)} images could be read")
    return few.subset(good)


def files(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layers: Sequence[str],
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]]:
    """For each image of a few that can be read: its summary, its numbers and its pictures by file name."""
    arch = checkpoint.arch
    here = {layer: strongest_here(checkpoint, dataset, layer, device=device, threads=threads) for layer in layers}
    logits = np.concatenate([y for y, _, _ in stream(checkpoint, dataset, device=device, threads=threads)])
    p = softmax(logits.astype(np.float64))
    params = net.on_device(checkpoint.params, device)
    mean = images.centre_crop(checkpoint.mean[None], arch.side)[0]
    square, step = (max(1, round(each * arch.side / SIDE + 0.01)) for each in (SQUARE, STEP))
    for i in range(len(dataset)):
        pixels = images.centre_crop(dataset.image(i)[None], arch.side)
        x = images.normalise(pixels, mean, checkpoint.scale).astype(checkpoint.dtype, copy=False)
        sweep = occlusion.slide(
            arch, params, to_device(x[0], device), square=square, step=step, layer=layers[-1], threads=threads
        )
        label = int(dataset.labels[i])
        summary = {"name": dataset.names[i], "label": label, "p": numbers(p[i])}
        pictures = {"image.webp": picture(pixels[0], tile=0)}
        shown = {}
        for layer, each in here.items():
            k = each.maps.shape[1]
            mine = slice(i * k, (i + 1) * k)
            strip = np.concatenate([each.features.patches[mine, 0], top.visible(each.features.projections[mine, 0])])
            pictures[f"{layer}.webp"] = picture(tiles(list(strip), columns=k), tile=strip.shape[1])
            shown[layer] = {
                "maps": each.maps[i].tolist(),
                "values": numbers(each.features.strongest.value[mine, 0]),
                "boxes": each.features.boxes[mine, 0].tolist(),
            }
        behind = to_host(sweep.probabilities)
        facts = {
            "square": square,
            "step": step,
            "layer": sweep.layer,
            "map": sweep.map,
            "right": numbers(behind[..., label]),
            "labels": behind.argmax(axis=-1).tolist(),
            "best": numbers(behind.max(axis=-1)),
            "activity": numbers(to_host(sweep.activity)),
            "bare": float(f"{sweep.base_activity:.4g}"),
            "shown": shown,
            **_truth(dataset, i, arch.side),
        }
        yield summary, facts, pictures


def _truth(dataset: Dataset, i: int, side: int) -> dict[str, Any]:
    """Where a drawn scene has its object and its parts, in pixels of the centre crop."""
    scene = datasets.drawing(dataset.names[i], side=dataset.side)
    if scene is None:
        return {}
    cut = (dataset.side - side) // 2
    row0, col0, row1, col1 = (edge - cut for edge in scene.box)
    return {
        "object": clip_box((row0, col0, row1, col1), (side, side)),
        "parts": {name: [row - cut, col - cut] for name, (row, col) in scene.parts.items()},
    }
