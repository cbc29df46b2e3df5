"""Figure 5: images are moved, scaled and turned; how far do layers 1 and 7 and the right class's probability follow?

Draws some images, by default those of different classes that the network is surest about, and measures many that it
is right about.

examples:
  python tools/fig5.py weights/scenes.h5 --out out/scenes
  python tools/fig5.py weights/imagenette-small.h5 --data imagenette --pick 3,120,301,707,888 --out out/photos
"""

from collections.abc import Mapping

import _cli
import _plot
import _results
import numpy as np
from _results import Number
from matplotlib.figure import Figure

from refnet import evaluate, features, images, models
from refnet.backend import find_device
from refnet.datasets import Dataset
from refnet.experiments import fig5
from refnet.experiments.fig5 import KINDS, Curves, Kind

STEP = 1 / 20  # of the image's side: a small translation
LABELS: dict[Kind, str] = {
    "translation": "moved down (pixels)", "scale": "scaled (times)", "rotation": "turned (degrees)",
}  # fmt: skip
UNITS = {"original": "norm of the original", "largest": "largest of the curve"}


def main() -> None:
    parser = _cli.experiment(__doc__)
    parser.add_argument("--pick", help="images to draw, names or numbers, separated by commas (default: the surest)")
    parser.add_argument("--rows", type=int, default=5, help="images to draw, without --pick (default 5)")
    parser.add_argument("--study", type=int, default=50, help="images to measure (default 50)")
    parser.add_argument(
        "--layers", help="two names, separated by a comma (default: the ends of layers 1 and 7, or of the first stage "
        "and what classifies reads)",
    )  # fmt: skip
    parser.add_argument("--fill", default="edge", choices=("edge", "mean"), help="beyond the image (default edge)")
    parser.add_argument(
        "--unit", default="original", choices=("original", "largest"),
        help="of distances: the norm of the original's features, or a curve's largest distance (default original)",
    )  # fmt: skip
    args = parser.parse_args()
    _cli.check_counts(args, "images", "threads", "rows", "study")
    layers = args.layers.split(",") if args.layers else None
    if layers and len(set(layers)) != 2:
        raise ValueError(f"--layers is {args.layers}, it needs two names")
    checkpoint, data = _cli.load(args)
    if layers is None:
        layers = [models.end_of(checkpoint.arch, stage) for stage in (1, 7)]
    if len(set(layers)) != 2:
        raise ValueError(f"{checkpoint.arch.name} has no two layers to compare below its classifier")
    options = {
        "layers": layers, "fill": args.fill, "unit": args.unit,
        "device": find_device(args.device), "threads": args.threads,
    }  # fmt: skip
    outputs = checkpoint.arch.layers[-1].name
    with _cli.progress(len(data), "which are right") as progress:
        found, good = features.collect(
            checkpoint, data, [outputs], progress=progress, device=options["device"], threads=args.threads
        )
    data = data.subset(good)
    logits = found[outputs]
    chosen = _cli.picked(args.pick, data) if args.pick else evaluate.surest(logits, data.labels, args.rows)
    drawn = fig5.run(checkpoint, data, chosen, **options)
    study = data.subset(np.flatnonzero(logits.argmax(axis=1) == data.labels)).first(args.study)
    with _cli.progress(len(study), "moved, scaled, turned") as progress:
        curves = fig5.run(checkpoint, study, range(len(study)), **options, progress=progress)
    _cli.report_skipped(data)
    size = checkpoint.arch.side
    choices = {
        "weights": args.weights, "data": args.data or "scenes", "images": len(data),
        "drawn": [data.names[i] for i in chosen],
        "measured": f"{len(study)} images that the network is right about, evenly over the classes",
        "layers": list(curves["scale"].distances), "fill": args.fill, "unit of distances": args.unit,
        "ranges": "as the paper's at 224 pixels; translations by whole pixels", "resampling": "bilinear, in float32",
        "changed": f"the whole image of {data.side} pixels, of which the centre of {size} is seen",
        "+-": "standard deviation over images",
    }  # fmt: skip
    detail = {
        kind: {
            "amounts": each.amounts.tolist(),
            "distances": {layer: rows.mean(axis=0).tolist() for layer, rows in each.distances.items()},
            "probability": each.probability.mean(axis=0).tolist(),
        }
        for kind, each in curves.items()
    }
    _results.save(
        args, "fig5", numbers(curves, study, size), choices=choices, detail=detail,
        picture=figure(drawn, data.subset(chosen), size, args.unit),
    )  # fmt: skip


def numbers(curves: Mapping[Kind, Curves], study: Dataset, size: int) -> list[Number]:
    """What section 4.1 claims, each as a mean over images."""

    def mean(name: str, values: np.ndarray) -> Number:
        return Number(name, float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)

    moved, turned = curves["translation"], curves["rotation"]
    found = [
        mean(f"{layer}: share of its largest distance at a translation of 1/20 of the side",
             fig5.reached(moved.amounts, rows, size * STEP))
        for layer, rows in moved.distances.items()
    ]  # fmt: skip
    found += [
        mean(f"{layer}: linearity in {kind}", fig5.linearity(kind, curves[kind].amounts, rows))
        for kind in ("translation", "scale")
        for layer, rows in curves[kind].distances.items()
    ]
    for kind in ("translation", "scale"):
        name = f"probability at {kind}: mean over the range"
        found.append(mean(name, curves[kind].probability.mean(axis=1)))
    for angle in (0, 90, 180):
        found.append(mean(f"probability at {angle} degrees", turned.probability[:, turned.amounts == angle][:, 0]))
    by_class = {
        name: turned.probability[study.labels == label].mean(axis=1)
        for label, name in enumerate(study.classes)
        if (study.labels == label).any()
    }
    for name, values in sorted(by_class.items(), key=lambda item: -item[1].mean()):
        found.append(mean(f"probability over all angles: {_cli.plain(name)}", values))
    return found


def figure(curves: Mapping[Kind, Curves], drawn: Dataset, size: int, unit: str) -> Figure:
    """As the paper's: a row for each kind, with the changed images, both layers' distances and the probability."""
    made, axes = _plot.figure(3, 4, width=14, height=9.6, width_ratios=[1.15, 1, 1, 1])
    for row, kind in zip(axes, KINDS, strict=True):
        each = curves[kind]
        last = len(each.amounts) - 1
        shown = each.amounts[np.linspace(0, last + last % 2, 5).round().astype(int).clip(max=last)]
        tiles = [
            np.round(crop).astype(np.uint8)
            for i in range(len(drawn))
            for crop in fig5.transformed(drawn.image(i), kind, shown, size=size)
        ]
        sheet = images.contact_sheet(tiles, columns=len(shown))
        _plot.bare(row[0]).imshow(sheet, interpolation="antialiased")
        row[0].set_xticks((np.arange(len(shown)) + 0.5) * sheet.shape[1] / len(shown), [f"{a:g}" for a in shown])
        row[0].set_yticks([])
        row[0].tick_params(length=0)
        row[0].set_xlabel(LABELS[kind])
        for axis, (name, rows) in zip(
            row[1:], [*each.distances.items(), ("right class", each.probability)], strict=True
        ):
            for values, label in zip(rows, drawn.labels, strict=True):
                axis.plot(each.amounts, values, label=_cli.plain(drawn.classes[label]))
            axis.set(xlabel=LABELS[kind], ylim=(0, None), xlim=(each.amounts[0], each.amounts[-1]))
            axis.set_ylabel("probability" if name == "right class" else f"distance ({UNITS[unit]} = 1)")
            axis.set_title(name)
        row[-1].set_ylim(-0.02, 1.02)
        if kind == "rotation":
            for axis in row[1:]:
                axis.set_xticks(range(0, 360, 90))
    handles, names = axes[0, 1].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=len(names))
    return made


if __name__ == "__main__":
    _cli.run(main)
