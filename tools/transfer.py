"""Tables 4 and 5, Figure 9: put a new softmax on a frozen network's features, for another data set.

The network stays as it is; a softmax on its layer-7 features learns the classes of DATA from a few images of each.
Beside it the same network, trained on those images alone. Near-duplicates of the network's own training images are left
out. Features, networks and the result of every fold are kept below OUT.

examples:
  python tools/transfer.py weights/imagenette-small.h5 --data caltech101 --known imagenette --out out/photos
  python tools/transfer.py weights/zfnet.h5 --data caltech256 --k 15,30,45,60 --scratch-folds 0 --out out/zfnet
"""

from collections.abc import Mapping

import _cli
import _features
import _plot
import _results
import numpy as np
from _kept import Kept
from _results import Number
from _shelf import Shelf
from matplotlib.figure import Figure

from refnet import models, train
from refnet.arch import Arch
from refnet.backend import find_device
from refnet.datasets import Dataset
from refnet.duplicates import THRESHOLD
from refnet.experiments import transfer
from refnet.weights import Checkpoint

PRETRAINED, SCRATCH = "pretrained", "from scratch"
Found = Mapping[str, Mapping[int, list[float]]]  # kind -> images per class -> accuracy of every fold


def main() -> None:
    parser = _cli.experiment(__doc__)
    _cli.transfer(parser, k="15,30")
    parser.add_argument("--layer", help="of the features (default: the end of layer 7, or what classifies reads)")
    parser.add_argument("--scratch-k", help="images per class to train from scratch on (default: those of --k)")
    parser.add_argument("--scratch-folds", type=int, default=5, help="folds of it, 0 for none (default 5)")
    parser.add_argument("--scratch-epochs", type=int, default=60, help="of those trainings (default 60)")
    args = parser.parse_args()
    _cli.check_counts(args, "images", "threads", "folds", "test", "scratch_epochs")
    ks = _cli.whole_numbers("--k", args.k)
    scratch_ks = _cli.whole_numbers("--scratch-k", args.scratch_k) if args.scratch_k else ks
    checkpoint, data, left_out = _cli.load_transfer(args)
    device, layer = find_device(args.device), args.layer or models.end_of(checkpoint.arch, 7)
    x, good = _features.collect(
        args.out / "features", checkpoint, data, [layer], grid=_features.grid_of(checkpoint.arch, layer),
        device=device, threads=args.threads,
    )  # fmt: skip
    x, labels = x[layer].reshape(len(good), -1), data.labels[good]
    setting = {
        "weights": _features.digest(checkpoint, [layer]), "data": data.digest(), "test": args.test,
        "penalty": args.penalty, "seed": args.seed,
    }  # fmt: skip
    kept, found = Kept(args.out / "transfer", setting), {PRETRAINED: {}, SCRATCH: {}}
    for k in ks:
        name = f"{PRETRAINED} k{k} folds{args.folds}"
        if (each := kept.load(name)) is None:
            each = transfer.pretrained(
                x, labels, k=k, count=args.folds, test=args.test, penalty=args.penalty, seed=args.seed
            )
            kept.save(name, each)
        found[PRETRAINED][k] = each

    def net(name: str, arch: Arch, few: Dataset, others: Dataset) -> Checkpoint:
        shelf = Shelf(args.out / "nets", few, others, args.scratch_epochs, device, args.threads)
        return shelf.net(name, arch, args.seed)

    scratch = Kept(args.out / "transfer", {**setting, "epochs": args.scratch_epochs})
    for k in scratch_ks if args.scratch_folds else []:
        each = {n: scratch.load(f"{SCRATCH} k{k} fold{n}") for n in range(args.scratch_folds)}
        missing = [n for n, value in each.items() if value is None]
        for n, value in transfer.from_scratch(
            checkpoint.arch, data, k=k, net=net, numbers=missing, test=args.test, seed=args.seed,
            device=device, threads=args.threads,
        ):  # fmt: skip
            scratch.save(f"{SCRATCH} k{k} fold{n}", value)
            each[n] = value
            _cli.say(f"{SCRATCH}, {k} images per class, fold {n}: {value:.1f} %")
        found[SCRATCH][k] = list(each.values())
    choices = {
        "weights": args.weights, "data": args.data, "images": len(data), "classes": len(data.classes), "layer": layer,
        "near-duplicates left out": left_out, "threshold of correlation": THRESHOLD, "folds": args.folds,
        "test images per class": f"up to {args.test}", "penalty": args.penalty or "three-fold cross-validation",
        "scratch": f"{args.scratch_folds} folds, {args.scratch_epochs} epochs, recipe {train.DEFAULT.name}",
        "seed": args.seed,
    }  # fmt: skip
    _results.save(args, "transfer", numbers(found), choices=choices, detail=found, picture=figure(found))


def numbers(found: Found) -> list[Number]:
    """Mean accuracy and +- over the folds; beside it the paper's for as many images per class, of other classes."""
    listed = []
    for kind, by_k in found.items():
        known = {name.split(",")[0]: of for name, of in transfer.PAPER.items() if kind in name}
        for k, each in sorted(by_k.items()):
            std = float(np.std(each, ddof=1)) if len(each) > 1 else None
            paper = "; ".join(f"{name} {of[k][0]}" for name, of in known.items() if k in of)
            listed.append(Number(f"{kind}, {k} per class: accuracy %", float(np.mean(each)), std, paper or None))
    return listed


def figure(found: Found) -> Figure:
    """Accuracy against images per class, here and in the paper (Figure 9)."""
    made, ((axes,),) = _plot.figure(width=7, height=4)
    for kind, by_k in found.items():
        ks = sorted(by_k)
        if ks:
            std = [np.std(by_k[k], ddof=1) if len(by_k[k]) > 1 else 0 for k in ks]
            axes.errorbar(ks, [np.mean(by_k[k]) for k in ks], std, fmt="o-", capsize=3, label=f"{kind}, here")
    for mark, (name, known) in zip("Ds^v", transfer.PAPER.items(), strict=True):
        style = {"color": "0.6", "mfc": "none", "label": f"{name}, paper"}
        axes.plot(list(known), [value for value, _ in known.values()], f"{mark}--", **style)
    axes.set(xlabel="training images per class", ylabel="accuracy, mean over the classes (%)", ylim=(0, 100))
    axes.legend(fontsize="small", bbox_to_anchor=(1.02, 1), loc="upper left")
    return made


if __name__ == "__main__":
    _cli.run(main)
