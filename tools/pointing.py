"""Where does a network look? Occlusion and projections point at the objects of drawn scenes, whose truth is known.

Measures scenes that the network is right about: whether the largest value of a map is on the object, how much of the
map is, and how far it is from the object's nearest part; beside chance, the middle of the image, the image's own edges,
and the same methods on random weights. What is measured is kept below OUT: an interrupted run goes on.

examples:
  python tools/pointing.py weights/scenes.h5 --out out/scenes
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import _cli
import _features
import _plot
import _results
import numpy as np
from _kept import Kept
from _results import Number
from matplotlib.figure import Figure

from refnet import features
from refnet.backend import find_device
from refnet.datasets import Dataset
from refnet.evaluate import untrained
from refnet.experiments import pointing
from refnet.experiments.pointing import BASELINES, CENTRE, CHANCE, Pointed
from refnet.weights import Checkpoint

Scores = Mapping[str, Mapping[str, np.ndarray]]  # map -> hit, inside or distance -> (N,)
MEASURES = {
    "hit": "largest value on the object",
    "inside": "share of the map on the object",
    "distance": "largest value to the nearest part\n(sides of the image)",
}
OUTLINE, MARK = "#D55E00", "#56B4E9"


def main() -> None:
    parser = _cli.experiment(__doc__)
    parser.add_argument("--study", type=int, default=200, help="scenes to measure (default 200)")
    parser.add_argument("--rows", type=int, default=4, help="scenes to draw (default 4)")
    parser.add_argument("--square", type=int, help="side of the occluding square (default: 27 of 224 pixels)")
    parser.add_argument("--step", type=int, help="of the square (default: 7 of 224 pixels)")
    parser.add_argument("--best", type=int, default=9, help="activations of the last convolution (default 9)")
    parser.add_argument("--smooth", type=float, default=0.025, help="sigma before the largest, in sides (default .025)")
    args = parser.parse_args()
    _cli.check_counts(args, "images", "threads", "study", "rows", "square", "step", "best")
    checkpoint, data = _cli.load(args)
    device, outputs = find_device(args.device), checkpoint.arch.layers[-1].name
    found, good = features.collect(checkpoint, data, [outputs], device=device, threads=args.threads)
    right = good[found[outputs].argmax(axis=1) == data.labels[good]]
    study = data.subset(right).first(args.study)
    if not len(study):
        raise ValueError(f"the network is wrong about all {len(data)} scenes")
    options = {"square": args.square, "step": args.step, "best": args.best, "smooth": args.smooth}
    where = {"device": device, "threads": args.threads}
    kept = Kept(
        args.out / "pointing",
        {"network": _features.digest(checkpoint, []), "data": study.digest(), "seed": args.seed, **options},
    )
    trained = measure(kept, "trained", checkpoint, study, options | where)
    random = measure(kept, "random weights", untrained(checkpoint, args.seed), study, options | where)
    drawn = list(islice(pointing.run(checkpoint, study, **options, **where), args.rows))
    choices = {
        "weights": args.weights, "data": "scenes", "images": len(data), **options,
        "measured": f"{len(study)} scenes that the network is right about, evenly over the classes",
        "square": "grey; the default is 27 pixels with steps of 7 at 224", "energy": "sum of squares over the colours",
        "start of projections": f"the right class's logit, or the {args.best} largest activations of the last "
        "convolution, projected one by one",
        "hit": "no tolerance around the object", "+-": "standard error over scenes", "seed": args.seed,
    }  # fmt: skip
    detail = {name: {key: values.tolist() for key, values in each.items()} for name, each in trained.items()}
    _results.save(
        args, "pointing", numbers(trained, random), choices=choices, detail=detail,
        picture=figure(drawn, trained, random, args.smooth),
    )  # fmt: skip


def measure(kept: Kept, name: str, checkpoint: Checkpoint, study: Dataset, options: dict[str, Any]) -> Scores:
    """The scores of every map in every scene; from an earlier run where they are there."""
    found = kept.load(name)
    if found is None:
        with _cli.progress(len(study), name, "scene") as progress:
            scenes = [each.scores for each in pointing.run(checkpoint, study, **options, progress=progress)]
        found = {map: [asdict(scores[map]) for scores in scenes] for map in scenes[0]}
        kept.save(name, found)
    return {map: {key: np.array([each[key] for each in rows]) for key in MEASURES} for map, rows in found.items()}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over scenes and its standard error; 0 of a single scene."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def numbers(trained: Scores, random: Scores) -> list[Number]:
    """Every measure of every map, of trained and of random weights; and the hits where the middle is a miss."""
    listed = []
    for key, what in MEASURES.items():
        for map, each in trained.items():
            name = f"{map}: {' '.join(what.split())}"
            listed.append(Number(name, *mean_and_error(each[key])))
            if map not in BASELINES:
                listed.append(Number(f"{name}, random weights", *mean_and_error(random[map][key])))
    hard = trained[CENTRE]["hit"] == 0
    listed.append(Number("scenes whose middle is not on the object", float(hard.sum())))
    if hard.any():
        for map, each in trained.items():
            listed.append(Number(f"{map}: largest value on the object, of these", *mean_and_error(each["hit"][hard])))
            if map not in BASELINES:
                hits = mean_and_error(random[map]["hit"][hard])
                listed.append(Number(f"{map}: largest value on the object, of these, random weights", *hits))
    return listed


def figure(drawn: Sequence[Pointed], trained: Scores, random: Scores, smooth: float) -> Figure:
    """Some scenes with what each method points at and the object's outline; below, every score."""
    made = Figure(figsize=(13, 1.55 * len(drawn) + 4.6))
    above, below = made.subfigures(2, 1, height_ratios=[1.55 * len(drawn), 4.6])
    maps = [name for name in drawn[0].maps if name != CENTRE]
    axes = above.subplots(len(drawn), 1 + len(maps), squeeze=False)
    for row, scene in zip(axes, drawn, strict=True):
        _plot.bare(row[0]).imshow(scene.pixels)
        for axis, name in zip(row[1:], maps, strict=True):
            strength = np.sqrt(scene.maps[name])
            axis.imshow(strength, vmin=0, vmax=max(float(np.percentile(strength, 99.5)), 1e-12))
            across, down = reversed(pointing.peak(scene.maps[name], smooth * len(strength)))
            _plot.bare(axis).plot(across, down, "+", color=MARK, markersize=10, markeredgewidth=2)
        for axis in row:
            axis.contour(scene.mask, [0.5], colors=OUTLINE, linewidths=1)
    for axis, name in zip(axes[0], ["scene", *maps], strict=True):
        axis.set_title(name.replace(" of ", "\nof ", 1), fontsize="small")
    names = [name for name in trained if name != CHANCE][::-1]
    panels = below.subplots(1, len(MEASURES), sharey=True)
    for axis, (key, what) in zip(panels, MEASURES.items(), strict=True):
        for label, scores, mark, shift in (("trained", trained, "o", 0.12), ("random weights", random, "s", -0.12)):
            shown = [(k, *mean_and_error(scores[name][key])) for k, name in enumerate(names)
                     if scores is trained or name not in BASELINES]  # fmt: skip
            place, mean, error = np.array(shown).T
            axis.errorbar(mean, place + shift, xerr=error, fmt=mark, capsize=3, label=label)
        axis.axvline(trained[CHANCE][key].mean(), color="0.4", linestyle="--", label="chance")
        axis.set(xlabel=what, yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
    panels[0].set_xlim(0, 1.02)
    panels[1].set_xlim(0, 1.02)
    below.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return made


if __name__ == "__main__":
    _cli.run(main)
