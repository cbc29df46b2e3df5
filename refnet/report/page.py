"""The whole page, file by file; the one that a person opens comes last."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from refnet import images, top
from refnet.arch import Arch, Branch, Conv, flat
from refnet.datasets import Dataset
from refnet.report import maps, samples, training
from refnet.report.encode import picture, script, tiles
from refnet.weights import Checkpoint

TEMPLATES = ("style.css", "page.js", "index.html")
_FEATURED = 6  # maps of each layer on the first view
# Called with what is being made, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

CHOICES = {
    "strongest activations": f"{maps.TOP} of each map, from {maps.TOP} images",
    "start of a projection": "the activation itself, after rectification",
    "contrast of projections": top.CONTRAST,
    "selectivity of a map": "(mu - nu) / (mu + nu) of its mean peak mu over the images of its favourite class, and the "
    "mean nu of the other classes",
    "quiet": "share of the images that do not excite a map at all",
    "occlusion": f"a square of the mean image, {samples.SQUARE} pixels wide at steps of {samples.STEP} on an image of "
    f"{samples.SIDE} pixels, and in proportion on others; the map with the largest single activation",
    "maps of the evolution": f"{training.SHOWN} of each layer, evenly taken from those alive in the last kept epoch",
}


@dataclass(frozen=True)
class About:
    """What the page says that is not in the network.

    Attributes
    ----------
    title : name of the network
    facts : name -> value, about the weights; JSON-able
    commands : what is made, and the command that makes it
    experiments : each a title, its numbers (name, measured, paper) and names of its pictures; JSON-able
    pictures : the experiments' pictures by name
    """

    title: str
    facts: Mapping[str, Any]
    commands: Sequence[tuple[str, str]] = ()
    experiments: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def files(
    checkpoint: Checkpoint,
    dataset: Dataset | None,
    about: About,
    *,
    kept: Sequence[Checkpoint] = (),
    sample_count: int = 12,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of the page.

    Parameters
    ----------
    dataset : images to look at; None shows what the weights alone tell
    kept : the network at some epochs, in their order, for Figure 4
    sample_count : images on the Image tab

    Raises
    ------
    ValueError
        If no image can be read, or a kept epoch is of another network.
    """
    arch, layers = checkpoint.arch, top.rectified(checkpoint.arch)
    if other := [each for each in kept if each.arch != arch]:
        raise ValueError(f"kept epoch {other[0].epoch} is of {other[0].arch.name} with other layers than {arch.name}")
    where: dict[str, Any] = {"device": device, "threads": threads}
    summary: dict[str, Any] = {
        "title": about.title,
        "side": arch.side,
        "classes": list(checkpoint.classes or (dataset.classes if dataset else ())),
        "layers": table(arch),
        "parameters": arch.param_count(),
        "macs": sum(arch.macs().values()),
        "squares": maps.SQUARES,
        "images": len(dataset) if dataset else 0,
        "samples": [],
        "featured": {},
        "epochs": [],
        "history": {name: list(values) for name, values in checkpoint.history.items()},
        "rms": training.spread(checkpoint.params),
        "clip": checkpoint.recipe.get("clip"),
        "about": {"facts": about.facts, "choices": CHOICES, "commands": about.commands},
        "experiments": about.experiments,
    }
    if drawn := filters(checkpoint):
        summary["filters"], content = drawn
        yield "filters.webp", content
    for name, content in about.pictures.items():
        yield f"experiments/{name}", content

    if dataset is not None and layers:
        yield from _maps(checkpoint, dataset, layers, summary, where, progress)
        if len(arch.shapes()[arch.layers[-1].name]) == 1:  # what ends with maps names no class
            yield from _samples(checkpoint, samples.readable(dataset, sample_count), layers, summary, where, progress)
        if kept:
            yield from _evolution(kept, dataset, layers, summary, where, progress)

    yield "data/net.js", script("net", summary)
    for name in TEMPLATES:
        yield name, resources.files("refnet.report").joinpath(name).read_bytes()


def _maps(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layers: Sequence[str],
    summary: dict[str, Any],
    where: dict[str, Any],
    progress: Progress,
) -> Iterator[tuple[str, bytes]]:
    """The numbers and pictures of all maps, and the images that these come from."""
    arch = checkpoint.arch
    found = top.find(checkpoint, dataset, layers, **where, progress=lambda done: progress("images", done, len(dataset)))
    total, done = sum(len(found.best[layer].value) for layer in layers), 0
    shown: set[int] = set()
    for layer in layers:
        best = found.best[layer]
        habits = maps.habits(found.peaks[layer], dataset.labels, len(dataset.classes))
        alive = np.flatnonzero(best.value[:, 0] > 0)
        summary["featured"][layer] = alive[np.argsort(-habits.selectivity[alive], kind="stable")[:_FEATURED]].tolist()
        yield f"data/{layer}.js", script(layer, maps.entries(arch, layer, best, habits))
        shown.update(best.image[best.value > 0].tolist())
        for number, content in maps.pictures(checkpoint, dataset, layer, best, **where):
            yield f"maps/{layer}/{number}.webp", content
            done += 1
            progress("maps", done, total)
    listed = {i: {"name": dataset.names[i], "label": int(dataset.labels[i])} for i in sorted(shown)}
    yield "data/images.js", script("images", listed)
    for i in listed:
        yield f"images/{i}.webp", picture(images.centre_crop(dataset.image(i)[None], arch.side)[0], tile=arch.side)


def _samples(
    checkpoint: Checkpoint,
    few: Dataset,
    layers: Sequence[str],
    summary: dict[str, Any],
    where: dict[str, Any],
    progress: Progress,
) -> Iterator[tuple[str, bytes]]:
    """Some images behind a square, for the Image tab."""
    for i, (one, facts, pictures) in enumerate(samples.files(checkpoint, few, layers, **where)):
        summary["samples"].append(one)
        yield f"data/sample-{i}.js", script(f"sample-{i}", facts)
        for name, content in pictures.items():
            yield f"samples/{i}/{name}", content
        progress("occlusion", i + 1, len(few))


def _evolution(
    kept: Sequence[Checkpoint],
    dataset: Dataset,
    layers: Sequence[str],
    summary: dict[str, Any],
    where: dict[str, Any],
    progress: Progress,
) -> Iterator[tuple[str, bytes]]:
    """The features of the kept epochs."""
    facts = []
    passes = training.evolution(
        kept, dataset, layers, **where, progress=lambda done: progress("kept epochs", done, len(dataset))
    )
    for name, content, each in passes:
        facts.append(each)
        yield f"evolution/{name}", content
    summary["epochs"] = [checkpoint.epoch for checkpoint in kept]
    yield "data/evolution.js", script("evolution", facts)


def table(arch: Arch) -> list[dict[str, Any]]:
    """Every layer as the page draws it: name, kind, output, receptive field and parameters."""
    shapes, params, maps_of = arch.shapes(), arch.param_shapes(), top.rectifiers(arch)
    rows = []
    for layer in flat(arch.layers):
        shape = shapes[layer.name]
        seen = arch.field(layer.name) if len(shape) == 3 else None
        rows.append(
            {
                **({"name": layer.name} if isinstance(layer, Branch) else asdict(layer)),
                **({"maps": maps_of[layer.name]} if layer.name in maps_of else {}),
                "kind": type(layer).__name__.lower(),
                "shape": shape,
                "field": seen and seen.size,
                "step": seen and seen.stride,
                "parameters": sum(int(np.prod(each)) for each in params.get(layer.name, {}).values()),
            }
        )
    return rows


def filters(checkpoint: Checkpoint) -> tuple[dict[str, Any], bytes] | None:
    """The filters of the first convolution in one row, if they look at colours."""
    first = next((layer.name for layer in checkpoint.arch.layers if isinstance(layer, Conv)), None)
    if first is None or checkpoint.params[first]["w"].shape[2] != 3:
        return None
    w = checkpoint.params[first]["w"]
    row = [images.to_uint8(w[..., m]) for m in range(w.shape[-1])]
    return {"layer": first, "count": len(row), "size": w.shape[0]}, picture(tiles(row, columns=len(row)), tile=0)
