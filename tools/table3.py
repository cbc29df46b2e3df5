"""Table 3: train all twelve nets with layers left out or made wider, and set their errors beside the paper's.

All rows have the same recipe and the same budget. Networks and finished rows are kept below --out: an interrupted run
goes on where it stopped, and with more --seeds it adds to what is there.

examples:
  python tools/table3.py --data imagenette --epochs 8 --seeds 3 --out out/imagenette
"""

from collections.abc import Mapping
from dataclasses import asdict, astuple

import _cli
import _plot
import _results
import numpy as np
from _kept import Kept
from _results import Number
from _shelf import Shelf
from matplotlib.figure import Figure

from refnet import datasets, train
from refnet.arch import Arch
from refnet.backend import find_device
from refnet.experiments import table3
from refnet.experiments.table3 import Errors
from refnet.weights import Checkpoint

KINDS = ("train top-1", "val top-1", "val top-5")


def main() -> None:
    parser = _cli.training(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row, from --seed on (default 3)")
    args = parser.parse_args()
    _cli.check_counts(args, "epochs", "seeds", "threads")
    bases, device = table3.BASES[args.size], find_device(args.device)
    data, val = datasets.load(args.data, side=max(train.image_side(arch) for arch in bases.values()))
    shelf = Shelf(args.out / "nets", data, val, args.epochs, device, args.threads)
    kept = Kept(args.out / "table3", {"size": args.size, "epochs": args.epochs, "data": data.digest()})

    def net(name: str, arch: Arch, seed: int) -> Checkpoint:
        return shelf.net(f"{args.size} {name}", arch, seed)

    seeds = range(args.seed, args.seed + args.seeds)
    for seed in seeds:  # the first seed of all rows first: a grid that is cut short can be compared
        missing = [row for row in table3.ROWS if kept.load(f"{row.name} seed{seed}") is None]
        for row, errors in table3.run(
            missing, bases, data, val, seed=seed, net=net, device=device, threads=args.threads
        ):
            kept.save(f"{row.name} seed{seed}", asdict(errors))
            _cli.say(f"{row.name}, seed {seed}: {errors.train_top1:.1f} {errors.val_top1:.1f} {errors.val_top5:.1f}")
    found = {row.name: {seed: Errors(**kept.load(f"{row.name} seed{seed}")) for seed in seeds} for row in table3.ROWS}
    orderings = table3.orderings(found)
    choices = {
        "size": args.size, "epochs": args.epochs, "seeds": list(seeds), "data": args.data or "scenes",
        "images": [len(data), len(val)], "recipe": train.DEFAULT.name, "crops": 1,
        "multiply-adds": {row.name: sum(row.arch(bases[row.net]).macs().values()) for row in table3.ROWS},
    }  # fmt: skip
    detail = {
        "errors": {name: {seed: asdict(errors) for seed, errors in each.items()} for name, each in found.items()},
        "orderings": [asdict(each) for each in orderings],
    }
    _results.save(args, "table3", numbers(found, orderings), choices=choices, detail=detail, picture=figure(found))


def numbers(found: Mapping[str, Mapping[int, Errors]], orderings: list[table3.Ordering]) -> list[Number]:
    """Mean and standard deviation over the seeds of every row, what it changes, and how many orderings hold."""
    listed = []
    for name, each in found.items():
        errors = np.array([astuple(seed) for seed in each.values()])
        spread = errors.std(axis=0, ddof=1).tolist() if len(errors) > 1 else [None] * 3
        paper = astuple(table3.BY_NAME[name].paper)
        listed += [
            Number(f"{name}: {kind} error %", float(mean), std, there)
            for kind, mean, std, there in zip(KINDS, errors.mean(axis=0), spread, paper, strict=True)
        ]
    bases = {row.net: row.name for row in reversed(table3.ROWS)}
    for each in orderings:
        if each.first == bases[table3.BY_NAME[each.second].net] or {each.first, each.second} == {*bases.values()}:
            name = f"{each.second}: points above {each.first}, val top-1"
            listed.append(Number(name, each.mean, each.std, each.paper))
    for what, holds in (("as in the paper", True), ("reversed", False), ("within the noise", None)):
        count = sum(each.holds is holds for each in orderings)
        listed.append(Number(f"orderings of {len(orderings)} pairs, {what}", count))
    return listed


def figure(found: Mapping[str, Mapping[int, Errors]]) -> Figure:
    """Training and validation errors of every row, here with +- over the seeds, and in the paper."""
    made, ((here, there),) = _plot.figure(1, 2, width=10, height=5, sharey=True)
    place = np.arange(len(found))[::-1]
    for kind, k, mark in (("train", 0, "o"), ("validation", 1, "D")):
        errors = [np.array([astuple(seed)[k] for seed in each.values()]) for each in found.values()]
        spread = [each.std(ddof=1) if len(each) > 1 else 0 for each in errors]
        here.errorbar([each.mean() for each in errors], place, xerr=spread, fmt=mark, label=kind, capsize=3)
        there.plot([astuple(table3.BY_NAME[name].paper)[k] for name in found], place, mark, label=kind)
    here.set_yticks(place, labels=list(found))
    here.set(xlabel="top-1 error here (%)")
    there.set(xlabel="top-1 error in the paper, ImageNet (%)")
    for axes in (here, there):
        axes.axhline(len(table3.ROWS) - 7.5, color="0.8", linewidth=1)
        axes.grid(axis="x", color="0.9")
    there.legend()
    return made


if __name__ == "__main__":
    _cli.run(main)
