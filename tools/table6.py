"""Table 6: tell which classes the images of a data set in PASCAL VOC's layout show, from a frozen network's features.

DATA holds JPEGImages, Annotations and ImageSets/Main. VOC 2012's test annotations are not public, so by default the
classifiers learn from train and are tested on val; for VOC 2007 there is --learn trainval --test test. Features and the
result of every class are kept below OUT.

examples:
  python tools/table6.py weights/zfnet.h5 --data VOCdevkit/VOC2012 --out out/zfnet
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import _cli
import _features
import _plot
import _results
import numpy as np
from _kept import Kept
from _results import Number
from matplotlib.figure import Figure

from refnet import models, voc, weights
from refnet.backend import find_device
from refnet.experiments import table6


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder in PASCAL VOC's layout")
    parser.add_argument("--learn", default="train", help="list of the images to train on (default train)")
    parser.add_argument("--test", default="val", help="list of the images to test on (default val)")
    parser.add_argument("--layer", help="of the features (default: the end of layer 7, or what classifies reads)")
    parser.add_argument("--method", default=table6.METHODS[0], choices=table6.METHODS, help="of classification")
    parser.add_argument("--penalty", type=float, help="of the classifier's weights (default: by cross-validation)")
    _cli.common(parser)
    args = parser.parse_args()
    _cli.check_counts(args, "threads")
    checkpoint = weights.load(args.weights)
    layer = args.layer or models.end_of(checkpoint.arch, 7)
    checkpoint.arch.index(layer)  # an unknown name must not wait for the data
    parts = voc.load(args.data, (args.learn, args.test), side=checkpoint.mean.shape[0])
    device, sets = find_device(args.device), []
    for images, presence in parts:
        x, good = _features.collect(
            args.out / "features", checkpoint, images, [layer], grid=_features.grid_of(checkpoint.arch, layer),
            device=device, threads=args.threads,
        )  # fmt: skip
        sets += [x[layer].reshape(len(good), -1), presence[good]]
    setting = {
        "weights": _features.digest(checkpoint, [layer]), "method": args.method, "penalty": args.penalty,
        "seed": args.seed, "data": [f"{images.digest()} {zlib.crc32(presence)}" for images, presence in parts],
    }  # fmt: skip
    classes = parts[0].images.classes
    kept = Kept(args.out / "table6", setting)
    missing = [label for label, name in enumerate(classes) if kept.load(name) is None]
    with _cli.progress(len(missing), "table6", unit="class") as progress:
        for done, (label, precision) in enumerate(
            table6.run(*sets, classes=missing, method=args.method, penalty=args.penalty, seed=args.seed), start=1
        ):
            kept.save(classes[label], precision)
            progress(done)
    found = {name: kept.load(name) for name in classes}
    shown = (parts[1].presence == 1).sum(axis=0) / (parts[1].presence != 0).sum(axis=0)
    choices = {
        "weights": args.weights, "data": args.data, "learn": args.learn, "test": args.test,
        "images": [len(images) for images, _ in parts], "layer": layer, "method": args.method,
        "penalty": args.penalty or "three-fold cross-validation", "precision": "VOC 2012, ties together",
        "difficult only": "not counted", "seed": args.seed,
    }  # fmt: skip
    _cli.report_skipped(*(images for images, _ in parts))
    _results.save(
        args, "table6", numbers(found), choices=choices,
        detail={"share of images that show it": dict(zip(classes, (100 * shown).tolist(), strict=True))},
        picture=figure(found, dict(zip(classes, 100 * shown, strict=True))),
    )  # fmt: skip


def numbers(found: Mapping[str, float]) -> list[Number]:
    """Mean average precision beside the paper's on VOC 2012, and that of every class."""
    mean = Number("mean average precision %", float(np.mean(list(found.values()))), None, table6.PAPER_MEAN)
    return [mean, *(Number(f"{name}: AP %", each) for name, each in found.items())]


def figure(found: Mapping[str, float], shown: Mapping[str, float]) -> Figure:
    """Average precision of every class, best first, beside what chance gives."""
    names = sorted(found, key=lambda name: found[name])
    made, ((axes,),) = _plot.figure(width=7, height=0.24 * len(names) + 1.3)
    place = np.arange(len(names))
    axes.barh(place, [found[name] for name in names], color=_plot.COLOURS[0], height=0.7, label="here")
    axes.scatter(
        [shown[name] for name in names], place, marker="|", s=90, color=_plot.COLOURS[7], zorder=2,
        label="share of images that show it: chance",
    )  # fmt: skip
    axes.set_yticks(place, labels=names)
    axes.set(xlabel="average precision (%)", xlim=(0, 100), ylim=(-0.6, len(names) - 0.4))
    made.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return made


if __name__ == "__main__":
    _cli.run(main)
