"""Table 1 and Figure 8: mask the same part in several images, and see whether a layer's features change alike.

examples:
  python tools/table1.py weights/scenes.h5 --out out/scenes
  python tools/table1.py weights/imagenette-small.h5 --dogs dog_parts --out out/photos
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import _cli
import _plot
import _results
import numpy as np
from _results import Number
from matplotlib.figure import Figure

from refnet import images, parts, weights
from refnet.backend import find_device
from refnet.evaluate import untrained
from refnet.experiments import table1
from refnet.experiments.table1 import Correspondence, Delta

SHOWN = 8  # images of each part in the picture


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--dogs", type=Path, help="folder of images with parts.json (default: drawn faces)")
    parser.add_argument("--faces", type=int, default=20, help="drawn faces, without --dogs (default 20)")
    parser.add_argument("--layers", help="names, separated by commas (default: the ends of layers 5 and 7)")
    parser.add_argument("--size", type=float, default=0.6, help="of the mask, in distances of the eyes (default 0.6)")
    parser.add_argument("--draws", type=int, default=10, help="sets of random places (default 10)")
    _cli.common(parser)
    args = parser.parse_args()
    _cli.check_counts(args, "faces", "draws", "threads")
    if not 0 < args.size < 3:
        raise ValueError(f"--size is {args.size}, it needs a number above 0 and below 3")
    checkpoint = weights.load(args.weights)
    side = checkpoint.mean.shape[0]
    marked = (
        parts.dogs(args.dogs, side=side)
        if args.dogs
        else parts.faces(2 * checkpoint.seed + 1, args.faces, side=side)  # those that were not trained on
    )
    found, control = (
        table1.run(
            each, marked, layers=args.layers.split(",") if args.layers else None, size=args.size, draws=args.draws,
            seed=args.seed, device=find_device(args.device), threads=args.threads,
        )
        for each in (checkpoint, untrained(checkpoint, args.seed))
    )  # fmt: skip
    choices = {
        "weights": args.weights, "data": args.dogs or "scenes", "images": len(marked.names),
        "layers": list(found.deltas["all features"]),
        "mask": f"a square of {args.size} distances between the eyes, of the mean image", "random sets": args.draws,
        "random places": "inside the image, on no part's mask", "+-": "standard deviation over pairs of images",
        "zeros": "sign 0 is a sign of its own; among changed features those with 0 in both images are left out",
        "seed": args.seed,
    }  # fmt: skip
    listed = numbers(found.deltas) + [
        replace(n, name=f"random weights: {n.name}", paper=None) for n in numbers(control.deltas)
    ]
    _results.save(args, "table1", listed, choices=choices, picture=figure(found))


def numbers(deltas: Mapping[str, Mapping[str, Mapping[str, Delta]]]) -> list[Number]:
    """Delta of every part at every layer, and its p; the paper's beside those of all features."""
    found = []
    for distance, by_layer in deltas.items():
        for k, (layer, by_part) in enumerate(by_layer.items()):
            for part, each in by_part.items():
                paper = table1.PAPER.get(part) if distance == "all features" and k < 2 else None
                known = paper and "{:.3f} +- {:.3f}".format(*paper[k])
                found.append(Number(f"{layer}, {part}: Delta, {distance}", each.mean, each.std, known))
            parts = [part for part in by_part if part != table1.RANDOM]
            found += [Number(f"{layer}, {part}: p, {distance}", by_part[part].p) for part in parts]
    return found


def figure(found: Correspondence) -> Figure:
    """The masked images, a row for each part, and Delta beside the paper's."""
    by_layer = found.deltas["all features"]
    made, axes = _plot.figure(1, 1 + len(by_layer), width=12, height=3.6, width_ratios=[2.2, *[1] * len(by_layer)])
    sheet, *plots = axes[0]
    tiles = [tile for each in found.masked.values() for tile in each[:SHOWN]]
    picture = images.contact_sheet(tiles, columns=len(tiles) // len(found.masked))
    _plot.bare(sheet).imshow(picture)
    rows = len(found.masked)
    sheet.set_yticks((np.arange(rows) + 0.5) * picture.shape[0] / rows, labels=list(found.masked))
    sheet.tick_params(length=0)
    for k, (axis, layer) in enumerate(zip(plots, by_layer, strict=True)):
        names = list(by_layer[layer])
        place = np.arange(len(names))
        for number, (distance, mark) in enumerate((("all features", "o"), ("changed features", "s"))):
            each = found.deltas[distance][layer].values()
            axis.errorbar(
                place + 0.15 * number,
                [d.mean for d in each],
                [d.std for d in each],
                fmt=mark,
                capsize=3,
                label=distance,
            )
        known = [(x, *table1.PAPER[part][k]) for x, part in enumerate(names) if part in table1.PAPER and k < 2]
        if known:
            x, mean, std = zip(*known, strict=True)
            style = {"fmt": "D", "mfc": "none", "capsize": 3, "label": "paper, all features"}
            axis.errorbar(np.array(x) + 0.3, mean, std, **style)
        axis.set_xticks(place, labels=[part.replace(" ", "\n") for part in names])
        axis.set(title=layer, ylim=(0, 1), xlim=(-0.5, len(names) - 0.2))
    plots[0].set_ylabel("Delta: share of signs that differ")
    made.legend(*plots[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return made


if __name__ == "__main__":
    _cli.run(main)
