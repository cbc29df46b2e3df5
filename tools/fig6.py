"""Figure 6: layer 1 without and with the RMS clip, and Krizhevsky's layers 1 and 2 against those of Figure 3.

Trains three networks on the same data with the same budget, or takes them from OUT/nets, where they are kept; those of
tools/table3.py with the same --out, size and epochs are the same.

examples:
  python tools/fig6.py --data imagenette --epochs 8 --out out/imagenette
"""

from collections.abc import Mapping
from dataclasses import replace

import _cli
import _plot
import _results
import _sheets
import numpy as np
from _results import Number
from _shelf import Shelf
from matplotlib.figure import Figure

from refnet import datasets, images, models, top, train
from refnet.backend import find_device
from refnet.experiments import fig6, table3
from refnet.experiments.fig6 import Look

# Name of the network, the row of Table 3 that it is, and its recipe.
NETS = {
    "7x7/2, no clip": (table3.BY_NAME["Figure 3, as it is"], replace(train.DEFAULT, clip=None)),
    "7x7/2": (table3.BY_NAME["Figure 3, as it is"], train.DEFAULT),
    "11x11/4": (table3.BY_NAME["Krizhevsky, replication"], train.DEFAULT),
}


def main() -> None:
    parser = _cli.training(__doc__)
    parser.add_argument("--maps", type=int, default=16, help="maps of layer 2, drawn at random (default 16)")
    args = parser.parse_args()
    _cli.check_counts(args, "epochs", "threads", "maps")
    bases, device = table3.BASES[args.size], find_device(args.device)
    data, val = datasets.load(args.data, side=train.image_side(bases[table3.FIGURE_3]))
    shelf = Shelf(args.out / "nets", data, val, args.epochs, device, args.threads)
    nets = {
        name: shelf.net(
            f"{args.size} {row.name}{' without clip' if recipe.clip is None else ''}",
            models.with_classes(bases[row.net], len(data.classes)), args.seed, recipe,
        )
        for name, (row, recipe) in NETS.items()
    }  # fmt: skip
    with _cli.progress(len(val) * len(nets)) as progress:
        looks = fig6.run(
            nets, val, maps=args.maps, seed=args.seed, device=device, threads=args.threads, progress=progress
        )
    choices = {
        "size": args.size, "epochs": args.epochs, "seed": args.seed, "data": args.data or "scenes",
        "images looked at": len(val), "clip": train.DEFAULT.clip, "bands, cycles per pixel": fig6.BANDS,
        "dead": f"no activation above {fig6.DEAD} of the layer's strongest", "contrast": top.CONTRAST,
        "val top-1": {name: each.history["val_top1"][-1] for name, each in nets.items()},
    }  # fmt: skip
    detail = {
        name: {"rms": each.rms.tolist(), "bands": each.bands.tolist(), "aliasing": each.aliasing.tolist()}
        for name, each in looks.items()
    }
    _results.save(args, "fig6", numbers(looks), choices=choices, detail=detail, picture=figure(looks))
    for name, slug in (("7x7/2", "fig6-layer2"), ("11x11/4", "fig6-layer2-krizhevsky")):
        _results.save(args, slug, [], choices=choices, picture=_sheets.layer(looks[name].layer2))


def numbers(looks: Mapping[str, Look]) -> list[Number]:
    """Each network's numbers."""
    found = []
    for name, each in looks.items():
        shares = 100 * each.bands
        found += [
            Number(f"{name}: largest filter RMS / median", float(each.rms.max() / np.median(each.rms))),
            Number(f"{name}: filters clipped in a step", each.clipped),
            Number(f"{name}: dead filters %", 100 * each.dead),
            *(
                Number(f"{name}: energy at {band} frequencies %", float(of.mean()), float(of.std()))
                for band, of in zip(("low", "middle", "high"), shares.T, strict=True)
            ),
            Number(f"{name}: aliasing %", float(100 * each.aliasing.mean()), float(100 * each.aliasing.std())),
        ]
    return found


def figure(looks: Mapping[str, Look]) -> Figure:
    """Filters on top; below, the histogram of their RMS, their energy by frequency, and aliasing."""
    made, axes = _plot.figure(2, 3, width=10, height=5.8)
    for axis, (name, each) in zip(axes[0], looks.items(), strict=True):
        strongest = np.abs(each.w).max()
        tiles = [  # on one scale, so that a filter that dominates is seen to
            (128 + 127 * each.w[..., m] / strongest).round().astype(np.uint8)
            for m in np.argsort(-each.rms, kind="stable")
        ]
        _plot.bare(axis).imshow(images.contact_sheet(tiles, columns=6, gap=1))
        axis.set_title(name)
    rms, energy, alias = axes[1]
    every = np.concatenate([each.rms for each in looks.values()])
    edges = np.linspace(0, 1.05 * every.max(), 13)
    rms.hist([each.rms for each in looks.values()], bins=edges)
    rms.axvline(train.DEFAULT.clip, color="0.6", linestyle="--")
    rms.set(xlabel="RMS of a filter", ylabel="filters")

    place, width = np.arange(3), 0.8 / len(looks)
    for i, (name, each) in enumerate(looks.items()):
        energy.bar(place + i * width, 100 * each.bands.mean(axis=0), width, label=name)
    energy.set_xticks(place + width, labels=["low\n< 1/8", "middle", "high\n> 1/4 cycle/pixel"])
    energy.set(ylabel="energy of the filters (%)")
    energy.legend()
    for i, each in enumerate(looks.values()):
        alias.bar(i, 100 * each.aliasing.mean())
    alias.set_xticks(range(len(looks)), labels=[name.replace(", ", "\n") for name in looks])
    alias.set(ylabel="response that the stride aliases (%)")
    return made


if __name__ == "__main__":
    _cli.run(main)
