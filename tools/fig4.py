"""Figure 4: how the features of a network evolve in its training.

Takes the epochs that tools/train.py --keep has put beside the weights. Of some maps of every layer, the strongest
activation over the training images at each epoch is projected to pixels; a frame marks where it has jumped to another
image. The curves show how much all maps still move.

examples:
  python tools/train.py --data imagenette --keep 1,2,5,10,20,30,40 --out weights/photos.h5
  python tools/fig4.py weights/photos.h5 --data imagenette --out out/photos
"""

import glob
from collections.abc import Sequence

import _cli
import _plot
import _results
import _sheets
from _results import Number
from matplotlib.figure import Figure

from refnet import datasets, top, weights
from refnet.backend import find_device
from refnet.experiments import fig4
from refnet.experiments.fig4 import Evolution


def main() -> None:
    parser = _cli.experiment(__doc__)
    parser.add_argument("--layers", help="names, separated by commas (default: every convolution, rectified)")
    parser.add_argument("--maps", type=int, default=6, help="maps of each layer, drawn at random (default 6)")
    args = parser.parse_args()
    _cli.check_counts(args, "images", "threads", "maps")
    last = weights.load(args.weights)
    paths = sorted(args.weights.parent.glob(f"{glob.escape(args.weights.stem)}.epoch*.h5"))
    kept = {checkpoint.epoch: checkpoint for checkpoint in (last, *map(weights.load, paths))}
    if len(kept) < 2:
        raise ValueError(f"{args.weights} has no kept epochs beside it; tools/train.py --keep 1,2,5,10,20 keeps some")
    data, _ = datasets.load(args.data, side=last.mean.shape[0], seed=last.seed)
    data = data if args.images is None else data.first(args.images)
    with _cli.progress(len(data) * len(kept)) as progress:
        evolutions = fig4.run(
            list(kept.values()), data, layers=args.layers.split(",") if args.layers else top.rectified(last.arch),
            maps=args.maps, seed=args.seed, device=find_device(args.device), threads=args.threads, progress=progress,
        )  # fmt: skip
    _cli.report_skipped(data)
    if not evolutions:
        raise ValueError(f"{args.weights}: no image excites any map of these layers at the last epoch")
    choices = {
        "weights": args.weights, "epochs": sorted(kept), "data": args.data or "scenes", "images": len(data),
        "start": "rectified convolutions", "rules": "deconv", "map seed": args.seed, "contrast": top.CONTRAST,
    }  # fmt: skip
    detail = {
        each.layer: {
            "epochs": each.epochs.tolist(), "maps": each.maps.tolist(), "values": each.values.tolist(),
            "images": [[data.names[i] for i in row] for row in each.images.tolist()],
            "changed": each.changed.tolist()[1:], "moved": each.moved.tolist()[1:], "to_last": each.to_last.tolist(),
        }
        for each in evolutions
    }  # fmt: skip
    _results.save(args, "fig4", [], choices=choices, picture=_sheets.evolution(evolutions))
    _results.save(
        args, "fig4-movement", numbers(evolutions), choices=choices, detail=detail, picture=curves(evolutions)
    )


def numbers(evolutions: Sequence[Evolution]) -> list[Number]:
    """How far from its last state each layer is at every epoch."""
    return [
        Number(f"{each.layer}: distance of epoch {epoch} to the last", float(distance))
        for each in evolutions
        for epoch, distance in zip(each.epochs[:-1], each.to_last[:-1], strict=True)
    ]


def curves(evolutions: Sequence[Evolution]) -> Figure:
    """Per layer, the distance to the last epoch, and the share of maps that jump from epoch to epoch."""
    figure, ((distance, jumps),) = _plot.figure(1, 2, width=9, height=3.2)
    for each in evolutions:
        distance.plot(each.epochs, each.to_last, "o-", label=each.layer)
        jumps.plot(each.epochs[1:], 100 * each.changed[1:], "o-", label=each.layer)
    distance.set(xlabel="epoch", ylabel="distance to the last epoch\n1 - correlation of peaks", ylim=(0, None))
    jumps.set(xlabel="epoch", ylabel="maps whose strongest image is\nanother than before (%)", ylim=(0, 100))
    for axes in (distance, jumps):
        axes.set_xscale("log")
        axes.set_xticks(evolutions[0].epochs, labels=map(str, evolutions[0].epochs))
        axes.minorticks_off()
    distance.legend()
    return figure


if __name__ == "__main__":
    _cli.run(main)
