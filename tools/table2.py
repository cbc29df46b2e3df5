"""Table 2: errors of single networks and of several that vote, trained with different seeds.

Trains the networks on the same data with the same budget, or takes them from OUT/nets, where they are kept; those of
tools/table3.py with the same --out, size and epochs are the same.

examples:
  python tools/table2.py --data imagenette --epochs 8 --members 5 --out out/imagenette
"""

from collections.abc import Sequence

import _cli
import _plot
import _results
import numpy as np
from _results import Number
from _shelf import Shelf
from matplotlib.figure import Figure

from refnet import datasets, models, train
from refnet.backend import find_device
from refnet.experiments import table2, table3
from refnet.experiments.table2 import Row

# The rows of Table 3 that these are.
KINDS = {
    table2.REPLICATION: table3.BY_NAME["Krizhevsky, replication"],
    table2.A: table3.BY_NAME["Figure 3, as it is"],
    table2.B: table3.BY_NAME["Figure 3, layers 3,4,5: 512, 1024, 512"],
}


def main() -> None:
    parser = _cli.training(__doc__)
    parser.add_argument("--members", type=int, default=5, help="networks (a) (default 5)")
    parser.add_argument("--others", type=int, default=1, help="networks of each other kind (default 1)")
    parser.add_argument("--centre-crop", action="store_true", help="test on the centre crop, not on ten")
    args = parser.parse_args()
    _cli.check_counts(args, "epochs", "threads", "members", "others")
    bases, device = table3.BASES[args.size], find_device(args.device)
    data, val = datasets.load(args.data, side=max(train.image_side(arch) for arch in bases.values()))
    shelf = Shelf(args.out / "nets", data, val, args.epochs, device, args.threads)
    nets = {
        kind: [
            shelf.net(f"{args.size} {row.name}", models.with_classes(row.arch(bases[row.net]), len(data.classes)), seed)
            for seed in range(args.seed, args.seed + (args.members if kind == table2.A else args.others))
        ]
        for kind, row in KINDS.items()
    }
    rows = table2.run(nets, val, ten_crop=not args.centre_crop, device=device, threads=args.threads)
    choices = {
        "size": args.size, "epochs": args.epochs, "seeds from": args.seed, "data": args.data or "scenes",
        "images": len(val), "crops": 1 if args.centre_crop else 10, "vote": "mean of the softmax outputs",
    }  # fmt: skip
    detail = [{"row": row.name, "errors": row.errors.tolist()} for row in rows]
    _results.save(args, "table2", numbers(rows), choices=choices, detail=detail, picture=figure(rows))


def numbers(rows: Sequence[Row]) -> list[Number]:
    """Mean and standard deviation over the seeds of every row, and what the vote gains over its mean member."""
    found = []
    for row in rows:
        spread = row.errors.std(axis=0, ddof=1).tolist() if len(row.errors) > 1 else (None, None)
        for k, top in enumerate(("top-1", "top-5")):
            paper = row.paper and row.paper[k]
            found.append(Number(f"{row.name}: {top} error %", float(row.errors[:, k].mean()), spread[k], paper))
    single, vote = ({row.kinds: row for row in rows if row.vote == vote} for vote in (False, True))
    for kinds in vote.keys() & single.keys():
        gain = float(single[kinds].errors[:, 0].mean() - vote[kinds].errors[0, 0])
        both = single[kinds].paper, vote[kinds].paper
        paper = round(both[0][0] - both[1][0], 1) if both[0] and both[1] else None
        found.append(Number(f"{vote[kinds].name}: points below the mean member, top-1", gain, None, paper))
    return found


def figure(rows: Sequence[Row]) -> Figure:
    """Top-1 errors: of each network, their means, and the votes; here and in the paper."""
    made, ((here, there),) = _plot.figure(1, 2, width=10, height=0.5 * len(rows) + 1.2, sharey=True)
    place = np.arange(len(rows))[::-1]
    for y, row in zip(place, rows, strict=True):
        colour = _plot.COLOURS[1] if row.vote else _plot.COLOURS[0]
        here.plot(row.errors[:, 0], np.full(len(row.errors), y), "o", color=colour, alpha=0.35)
        here.plot(row.errors[:, 0].mean(), y, "D" if row.vote else "|", color=colour, markersize=9 if row.vote else 16)
        if row.paper:
            there.plot(row.paper[0], y, "D" if row.vote else "o", color=colour)
    here.set_yticks(place, labels=[row.name for row in rows])
    here.set(xlabel="top-1 error here (%)")
    there.set(xlabel="top-1 error in the paper, ImageNet (%)")
    return made


if __name__ == "__main__":
    _cli.run(main)
