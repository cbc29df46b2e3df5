"""Figure 7: a grey square slides over images; where do the strongest map and the right class miss something?

Draws some images, by default those of different classes that the network is surest about, and measures many that it
is right about. Of drawn scenes, whose truth is known, it measures too how much of the object is where the right class
falls most, beside the same for random weights. What is measured is kept below OUT: an interrupted run goes on.

examples:
  python tools/fig7.py weights/scenes.h5 --out out/scenes
  python tools/fig7.py weights/imagenette-small.h5 --data imagenette --pick 20,431,877 --out out/photos
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _cli
import _features
import _plot
import _results
import numpy as np
from _results import Number
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from refnet import evaluate, images, top
from refnet.backend import find_device
from refnet.datasets import Dataset
from refnet.experiments import fig7
from refnet.experiments.fig7 import Effect, Row
from refnet.weights import Checkpoint

NAMED = 7  # labels with a colour of their own
OTHERS, MARK = "#BBBBBB", "#D55E00"


def main() -> None:
    parser = _cli.experiment(__doc__)
    parser.add_argument("--pick", help="images to draw, names or numbers, separated by commas (default: the surest)")
    parser.add_argument("--rows", type=int, default=3, help="images to draw, without --pick (default 3)")
    parser.add_argument("--study", type=int, default=100, help="images to measure (default 100)")
    parser.add_argument("--square", type=int, help="its side (default: 27 of 224 pixels)")
    parser.add_argument("--step", type=int, help="of the square (default: 7 of 224 pixels)")
    parser.add_argument("--fill", default="grey", choices=("grey", "mean"), help="what it shows (default grey, 128)")
    parser.add_argument("--layer", help="whose strongest map is watched (default: the last convolution, rectified)")
    parser.add_argument("--top", type=int, default=3, help="other images to project that map in (default 3)")
    args = parser.parse_args()
    _cli.check_counts(args, "images", "threads", "rows", "study", "square", "step", "top")
    checkpoint, data = _cli.load(args)
    arch, device = checkpoint.arch, find_device(args.device)
    layer = args.layer or top.rectified(arch)[-1]
    square, step = fig7.square_and_step(arch.side)
    options = {
        "layer": layer, "square": args.square or square, "step": args.step or step, "fill": args.fill,
        "device": device, "threads": args.threads,
    }  # fmt: skip
    outputs = arch.layers[-1].name
    with _cli.progress(len(data), "activations") as progress:
        found = top.find(
            checkpoint, data, [layer, outputs], top=args.top + 1, device=device, threads=args.threads,
            progress=progress,
        )  # fmt: skip
    logits = found.peaks[outputs]
    chosen = _cli.picked(args.pick, data) if args.pick else evaluate.surest(logits, data.labels, args.rows)
    right = np.flatnonzero(evaluate.is_right(logits, data.labels))
    if not len(right):
        raise ValueError(f"the network is right about none of the {len(data)} images: there is nothing to measure")
    drawn = list(fig7.rows(checkpoint, data, chosen, best=found.best[layer], top=args.top, **options))
    study = data.subset(right).first(args.study)
    effects = measure(args.out / "fig7", "squares", checkpoint, study, options)
    untrained = (
        measure(args.out / "fig7", "random weights", evaluate.untrained(checkpoint, args.seed), study, options)
        if effects[0].overlap is not None
        else []
    )
    _cli.report_skipped(data)
    choices = {
        "weights": args.weights, "data": args.data or "scenes", "images": len(data), "drawn": args.pick or "surest",
        "measured": f"{len(study)} images that the network is right about, evenly over the classes",
        **{key: options[key] for key in ("layer", "square", "step", "fill")},
        "map": "the one with the largest activation in the bare image", "start of projections": "that activation",
        "rules": "deconv", "contrast": top.CONTRAST, "+-": "standard deviation over images", "seed": args.seed,
        "sensitive region": "as many pixels as the object has, with the largest mean fall of the right class over the "
        "squares that cover them",
    }  # fmt: skip
    detail = {
        "drawn": [{"image": data.names[row.image], "map": row.sweep.map, **asdict(fig7.effect(row))} for row in drawn],
        "measured": [{"image": name, **asdict(each)} for name, each in zip(study.names, effects, strict=True)],
    }
    _results.save(
        args, "fig7", numbers(effects, untrained), choices=choices, detail=detail, picture=figure(drawn, data)
    )


def measure(
    folder: Path, what: str, checkpoint: Checkpoint, study: Dataset, options: dict[str, Any]
) -> list[Effect]:  # fmt: skip
    """What the square does to every image; those that are in FOLDER from an earlier run are read from there."""
    folder.mkdir(parents=True, exist_ok=True)
    key = _features.digest(checkpoint, [str(options[each]) for each in ("layer", "square", "step", "fill")])
    path = folder / f"{key}.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    todo = [i for i, name in enumerate(study.names) if name not in kept]
    with _cli.progress(len(study), what) as progress:
        for row in fig7.rows(checkpoint, study, todo, **options):
            kept[study.names[row.image]] = asdict(fig7.effect(row))
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(kept, indent=1) + "\n")
            os.replace(unfinished, path)
            progress(row.image + 1)
    return [Effect(**kept[name]) for name in study.names]


def numbers(effects: Sequence[Effect], untrained: Sequence[Effect]) -> list[Number]:
    """Means over the images, each claim beside its null."""

    def mean(name: str, of: Sequence[Effect], field: str) -> Number:
        values = [value for each in of if (value := getattr(each, field)) is not None]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Number(name, float(np.mean(values)) if values else "undefined", std)

    found = [
        mean("probability of the right class: bare", effects, "bare"),
        mean("probability of the right class: lowest behind the square", effects, "lowest"),
        Number("images whose label changes somewhere: share", float(np.mean([each.wrong > 0 for each in effects]))),
        mean("places of the square where the label is wrong: share", effects, "wrong"),
        mean("activity of the strongest map: lowest, as a share of the bare image's", effects, "activity"),
        mean("its fall against how much of its projection is covered: correlation", effects, "explained"),
        mean("its fall against the projection turned by 180 degrees: correlation", effects, "turned"),
    ]
    if untrained:
        found += [
            mean("object inside the sensitive region: share", effects, "overlap"),
            mean("object inside as many pixels next to the middle: share", effects, "centre"),
            mean("object inside as many random pixels: share", effects, "chance"),
            mean("object inside the sensitive region of random weights: share", untrained, "overlap"),
        ]
    return found


def figure(drawn: Sequence[Row], data: Dataset) -> Figure:
    """A row for each image: (a) to (e) as in the paper."""
    ratios = [1.1, 1.35, 0.62 * drawn[0].features.boxes.shape[1], 1.35, 1.75]
    made, axes = _plot.figure(len(drawn), 5, width=13, height=1.95 * len(drawn) + 0.6, width_ratios=ratios)
    count = Counter(int(label) for row in drawn for label in row.sweep.labels.ravel())
    first = [*dict.fromkeys(row.label for row in drawn), *(label for label, _ in count.most_common())]
    colour = dict(zip(list(dict.fromkeys(first))[:NAMED], _plot.COLOURS, strict=False))
    for number, (row, (image, activity, projections, right, labels)) in enumerate(zip(drawn, axes, strict=True)):
        bare_picture(image, row)
        image.set_title("(a) image\n" * (not number) + readable(data.classes[row.label]))
        place_map(activity, row, row.sweep.activity, "activity", vmin=0)
        activity.set_title("(b) total activity of\n" * (not number) + f"{row.sweep.layer}, map {row.sweep.map}")
        _plot.bare(projections).imshow(sheet(row))
        projections.set_title("(c) that map projected here and in\nother images, and what it sees" * (not number))
        place_map(right, row, row.probability, "probability", vmin=0, vmax=1)
        right.set_title("(d) probability of\nthe right class" * (not number))
        label_map(labels, row, colour, data.classes)
        labels.set_title("(e) most probable\nclass" * (not number))
    for axis in axes[-1, [1, 3, 4]]:
        axis.set_xlabel("middle of the square (px)")
    return made


def bare_picture(axes: Axes, row: Row) -> None:
    """The image, with the square where the right class falls most, and its probability p without and with it."""
    side = len(row.pixels)
    worst = np.unravel_index(row.probability.argmin(), row.probability.shape)
    at = row.sweep.cols[worst[1]], row.sweep.rows[worst[0]]
    axes.imshow(row.pixels, extent=(0, side, side, 0))
    axes.add_patch(Rectangle(at, row.square, row.square, facecolor="#808080", edgecolor="white", linewidth=0.8))
    axes.set_xlabel(f"p {row.bare:.2f},\nbehind it {row.probability.min():.2f}")
    _plot.bare(axes)


def place_map(axes: Axes, row: Row, values: np.ndarray, what: str, **options: Any) -> None:
    """A map over the places of the square's middle, in pixels of the image, with its colour bar."""
    shown = axes.imshow(values, extent=extent(row), **options)
    axes.figure.colorbar(shown, ax=axes, shrink=0.9, aspect=14, label=what)
    in_pixels(axes, row)


def label_map(axes: Axes, row: Row, colour: dict[int, str], classes: Sequence[str]) -> None:
    """The most probable class at each place, and the names of those that occur, the commonest first."""
    listed = list(colour)
    index = np.array([listed.index(k) if k in colour else len(listed) for k in row.sweep.labels.ravel().tolist()])
    axes.imshow(
        index.reshape(row.sweep.labels.shape), extent=extent(row), cmap=ListedColormap([*colour.values(), OTHERS]),
        vmin=-0.5, vmax=len(listed) + 0.5,
    )  # fmt: skip
    names = [Patch(color=colour[listed[i]], label=readable(classes[listed[i]])) if i < len(listed)
             else Patch(color=OTHERS, label="others") for i, _ in Counter(index.tolist()).most_common()]  # fmt: skip
    axes.legend(handles=names, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1, fontsize="small")
    in_pixels(axes, row)


def extent(row: Row) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a map over the square's middle, a step for each of its places."""
    edges = []
    for corner in row.corners:
        half = (corner[1] - corner[0]) / 2 if len(corner) > 1 else row.square / 2
        middle = corner + row.square / 2
        edges.append((middle[0] - half, middle[-1] + half))
    (upper, lower), (left, right) = edges
    return left, right, lower, upper


def in_pixels(axes: Axes, row: Row) -> None:
    """Axes of the whole image."""
    side = len(row.pixels)
    axes.set(xlim=(0, side), ylim=(side, 0), xticks=(0, side // 2, side), yticks=(0, side // 2, side))


def sheet(row: Row) -> np.ndarray:
    """The map's projections in this image, in a frame, and in others; below them what the map sees."""
    shown, seen = top.visible(row.features.projections)[0], row.features.patches[0]
    pairs = [images.contact_sheet([*pair], columns=1, gap=3) for pair in zip(shown, seen, strict=True)]
    wide = max(2, len(pairs[0]) // 60)
    frame = np.array([int(MARK[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    framed = [np.pad(pair, [(wide, wide), (wide, wide), (0, 0)], constant_values=255) for pair in pairs]
    inside = np.zeros(framed[0].shape[:2], bool)
    inside[wide:-wide, wide:-wide] = True
    framed[0][~inside] = frame
    return images.contact_sheet(framed, columns=len(framed), gap=1)


def readable(name: str) -> str:
    """A class's name without ImageNet's number."""
    return name.split("_", 1)[-1].replace("_", " ") if name[:1] == "n" and name[1:9].isdigit() else name


if __name__ == "__main__":
    _cli.run(main)
