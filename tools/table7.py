"""Table 7: how well the features of each layer tell the classes of another data set.

Layers of maps are averaged over a grid, at most 6 x 6, so that all have a size that a linear classifier can learn from
few images. Features are kept below OUT. A network whose layers are not named as the paper numbers them is looked at
after every stage, a fire module being one.

examples:
  python tools/table7.py weights/imagenette-small.h5 --data caltech101 --known imagenette --out out/photos
"""

from collections.abc import Mapping

import _cli
import _features
import _plot
import _results
import numpy as np
from _kept import Kept
from _results import Number
from matplotlib.figure import Figure

from refnet import models
from refnet.backend import find_device
from refnet.experiments import table7

STAGES = (1, 2, 3, 4, 5, 7)
Found = Mapping[str, Mapping[int, list[float]]]  # classifier -> layer's number -> accuracy of every fold
Paper = Mapping[str, Mapping[int, tuple[float, float]]]


def main() -> None:
    parser = _cli.experiment(__doc__)
    _cli.transfer(parser, k="30")
    parser.add_argument(
        "--grid", type=int, default=_features.GRID, help="cells in each direction of a layer of maps (default 6)"
    )
    args = parser.parse_args()
    _cli.check_counts(args, "images", "threads", "folds", "test", "grid")
    (k,) = _cli.whole_numbers("--k", args.k)[:1]
    checkpoint, data, left_out = _cli.load_transfer(args)
    as_the_paper = bool(models.numbered(checkpoint.arch))
    if as_the_paper:
        layers = {end: stage for stage, end in models.numbered(checkpoint.arch).items() if stage in STAGES}
    else:
        layers = {end: stage for stage, end in enumerate(models.hidden(checkpoint.arch), start=1)}
    called = {stage: str(stage) if as_the_paper else layer for layer, stage in layers.items()}
    x, good = _features.collect(
        args.out / "features", checkpoint, data, list(layers), grid=args.grid,
        device=find_device(args.device), threads=args.threads,
    )  # fmt: skip
    labels = data.labels[good]
    setting = {
        "weights": _features.digest(checkpoint, list(layers)), "data": data.digest(), "test": args.test, "k": k,
        "grid": args.grid, "folds": args.folds, "penalty": args.penalty, "seed": args.seed,
    }  # fmt: skip
    kept = Kept(args.out / "table7", setting)
    found: dict[str, dict[int, list[float]]] = {name: {} for name in table7.LOSSES}
    with _cli.progress(len(layers) * len(found), "table7", unit="row") as progress:
        for name in found:
            for layer, stage in layers.items():
                if (each := kept.load(f"{name} {layer}")) is None:
                    ((_, _, each),) = table7.run(
                        {layer: x[layer]}, labels, k=k, losses=(name,), count=args.folds, test=args.test,
                        penalty=args.penalty, seed=args.seed,
                    )  # fmt: skip
                    kept.save(f"{name} {layer}", each)
                found[name][stage] = each
                progress(sum(map(len, found.values())))
    choices = {
        "weights": args.weights, "data": args.data, "images": len(data), "classes": len(data.classes),
        "layers": list(layers), "maps": f"averaged over a grid of at most {args.grid} x {args.grid}", "k": k,
        "near-duplicates left out": left_out, "folds": args.folds, "test images per class": f"up to {args.test}",
        "penalty": args.penalty or "three-fold cross-validation", "seed": args.seed,
    }  # fmt: skip
    paper = table7.PAPER if as_the_paper else {}
    _results.save(
        args, "table7", numbers(found, called, paper), choices=choices, detail=found,
        picture=figure(found, called, paper),
    )  # fmt: skip


def numbers(found: Found, called: Mapping[int, str], paper: Paper) -> list[Number]:
    """Mean accuracy and +- over the folds; beside it the paper's on Caltech-101 and Caltech-256."""
    return [
        Number(
            f"{name} on layer {called[stage]}: accuracy %",
            float(np.mean(each)),
            float(np.std(each, ddof=1)) if len(each) > 1 else None,
            "{} (Caltech-101), {} (256)".format(*paper[name][stage]) if stage in paper.get(name, ()) else None,
        )
        for name, by_stage in found.items()
        for stage, each in by_stage.items()
    ]


def figure(found: Found, called: Mapping[int, str], paper: Paper) -> Figure:
    """Accuracy against depth, here and in the paper."""
    made, ((axes,),) = _plot.figure(width=7, height=3.6 if paper else 4.6)  # names need more room than numbers
    for name, by_stage in found.items():
        mean, std = [np.mean(each) for each in by_stage.values()], [np.std(each) for each in by_stage.values()]
        axes.errorbar(list(by_stage), mean, std, fmt="o-", capsize=3, label=f"{name}, here")
    known = paper.get("SVM", {})
    for k, (where, mark) in enumerate((("Caltech-101", "D"), ("Caltech-256", "s")) if known else ()):
        style = {"color": "0.6", "mfc": "none", "label": f"SVM, {where}, paper"}
        axes.plot(list(known), [each[k] for each in known.values()], f"{mark}--", **style)
    axes.set(xlabel="layer", ylabel="accuracy, mean over the classes (%)", ylim=(0, 100))
    axes.set_xticks(list(called), list(called.values()), rotation=0 if paper else 60, ha="center" if paper else "right")
    axes.legend(fontsize="small", bbox_to_anchor=(1.02, 1), loc="upper left")
    return made


if __name__ == "__main__":
    _cli.run(main)
