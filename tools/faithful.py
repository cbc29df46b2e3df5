"""Is the projection true? Hides what it shows and sees whether the activation falls, beside three controls.

The controls hide as many pixels in the same receptive field: the same mask shifted, or turned by 180 degrees, and what
the projection of a network with random weights shows. Below, how alike projections stay while the weights are drawn
anew from the top down. Each finished layer is kept below OUT: an interrupted run goes on.

examples:
  python tools/faithful.py weights/scenes.h5 --out out/scenes
  python tools/faithful.py weights/imagenette-small.h5 --data imagenette --layers relu3,relu5 --out out/photos
"""

from collections.abc import Mapping
from typing import Any

import _cli
import _features
import _plot
import _results
import numpy as np
from _kept import Kept
from _results import Number
from matplotlib.figure import Figure

from refnet import top
from refnet.backend import find_device
from refnet.experiments import faithful
from refnet.experiments.faithful import MASKS, PROJECTION, SHIFTED, TURNED, UNTRAINED, Units

IMAGES = 200
METHODS = ("deconv", "guided", "gradient")
STYLES = {PROJECTION: ("o", "-"), TURNED: ("s", "--"), SHIFTED: ("D", "--"), UNTRAINED: ("^", ":")}


def main() -> None:
    parser = _cli.experiment(__doc__)
    parser.add_argument("--layers", help="names, separated by commas (default: every convolution, rectified)")
    parser.add_argument("--units", type=int, default=4, help="maps of each image and layer (default 4)")
    parser.add_argument("--share", type=float, default=0.05, help="of the receptive field, hidden (default 0.05)")
    parser.add_argument("--fill", default="mean", choices=("mean", "grey"), help="what is seen there (default mean)")
    args = parser.parse_args()
    args.images = args.images or IMAGES
    _cli.check_counts(args, "images", "threads", "units")
    checkpoint, data = _cli.load(args)
    layers = args.layers.split(",") if args.layers else top.rectified(checkpoint.arch)
    for layer in layers:
        checkpoint.arch.field(layer)  # an unknown name must not wait for the others
    options = {"units": args.units, "share": args.share, "fill": args.fill, "seed": args.seed}
    setting = {"network": _features.digest(checkpoint, []), "data": data.digest(), **options}
    kept, found = Kept(args.out / "faithful", setting), {}
    for layer in layers:
        if kept.load(layer) is None:
            with _cli.progress(len(data), layer) as progress:
                units = faithful.run(
                    checkpoint, data, layer, **options, device=find_device(args.device), threads=args.threads,
                    progress=progress,
                )  # fmt: skip
            kept.save(layer, summary(units))
            _cli.say(f"{layer}: {len(units.image)} activations measured")
        found[layer] = kept.load(layer)
    _cli.report_skipped(data)
    choices = {
        "weights": args.weights, "data": args.data or "scenes", "images": len(data), **options,
        "units": f"{args.units} maps of each image, drawn of the half of the excited ones that is excited most",
        "hidden": "the pixels of the receptive field with most energy, the sum of squares over the colours",
        "shifted": "the same mask, cyclically inside the receptive field, by a random step that is not 0",
        "turned": "the same mask, by 180 degrees inside the receptive field",
        "random weights": "drawn as for a training, biases 0", "+-": "standard error over images",
    }  # fmt: skip
    _results.save(args, "faithful", numbers(found), choices=choices, detail=found, picture=figure(found))


def summary(units: Units) -> dict[str, Any]:
    """Means over images with their standard errors, (mean, error) each."""

    def means(table: faithful.ByMethod) -> dict[str, Any]:
        return {
            method: {
                each: [faithful.mean_and_error(row, units.image) for row in np.atleast_2d(values)]
                for each, values in columns.items()
            }
            for method, columns in table.items()
        }

    larger = {
        method: {each: float((masks[PROJECTION] > masks[each]).mean()) for each in MASKS[1:]}
        for method, masks in units.falls.items()
    }
    return {
        "activations": len(units.image), "hidden share of the image": float(units.share.mean()),
        "falls": means(units.falls), "falls of the map's largest": means(units.peak_falls),
        "falls more than the control's": larger, "random": units.random, "alike": means(units.alike),
    }  # fmt: skip


def numbers(found: Mapping[str, Any]) -> list[Number]:
    """The falls of every layer and method, and how alike projections are once all weights are random."""
    listed = []
    for layer, each in found.items():
        for method in METHODS:
            falls = {mask: each["falls"][method][mask][0] for mask in MASKS}
            for mask, (mean, error) in falls.items():
                listed.append(Number(f"{layer}, {method}: fall, {mask} hidden", mean, error))
            for control in MASKS[1:]:
                ratio = falls[PROJECTION][0] / falls[control][0] if falls[control][0] > 0 else "no fall"
                listed.append(Number(f"{layer}, {method}: ratio to {control}", ratio))
                larger = each["falls more than the control's"][method][control]
                listed.append(Number(f"{layer}, {method}: share of activations that fall more than {control}", larger))
            for what in ("values", "energy"):
                mean, error = each["alike"][method][what][-1]
                listed.append(Number(f"{layer}, {method}: rank correlation of {what}, all weights random", mean, error))
    return listed


def figure(found: Mapping[str, Any]) -> Figure:
    """Above the falls by layer, below how alike projections stay with random weights; a column for each method."""
    made, (above, below) = _plot.figure(2, len(METHODS), width=11, height=6.4, sharey="row")
    place = np.arange(len(found))
    for falls, alike, method in zip(above, below, METHODS, strict=True):
        for k, (mask, (mark, line)) in enumerate(STYLES.items()):
            mean, error = np.array([each["falls"][method][mask][0] for each in found.values()]).T
            where = place + 0.06 * (k - 1.5)
            falls.errorbar(where, mean, error, fmt=mark + line, capsize=3, markersize=5, label=mask)
        falls.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        falls.set_xticks(place, labels=list(found))
        falls.set_title(method)
        for layer, each in found.items():
            mean, error = np.array([(1, 0), *each["alike"][method]["energy"]]).T
            alike.errorbar(range(len(mean)), mean, error, fmt="o-", capsize=3, markersize=4, label=layer)
        alike.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        alike.set_xlabel("convolutions with random weights,\nfrom the layer down")
        alike.set_xticks(range(1 + max(len(each["random"]) for each in found.values())))
    above[0].set_ylabel("fall of the activation,\nshare of it, when hidden is ...")
    below[0].set_ylabel("rank correlation with the\nprojection of trained weights")
    handles, names = above[0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside upper center", ncols=len(names))
    below[-1].legend(fontsize="small", ncols=2)
    return made


if __name__ == "__main__":
    _cli.run(main)
