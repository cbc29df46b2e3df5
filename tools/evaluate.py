"""Print the error rates of a network, or of several as an ensemble, on a folder of classes or on drawn scenes.

A folder with val/ is evaluated on that, any other folder of classes whole; classes are matched by folder name.

examples:
  python tools/evaluate.py weights/scenes.h5
  python tools/evaluate.py weights/imagenette-small.h5 --data imagenette --ten-crop --json
"""

import json
from dataclasses import asdict
from pathlib import Path

import _cli

from refnet import datasets, weights
from refnet.backend import find_device
from refnet.evaluate import Scores, evaluate


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("weights", nargs="+", type=Path, help="weight files; several are an ensemble")
    parser.add_argument("--data", type=Path, help="folder of classes (default: scenes)")
    parser.add_argument("--ten-crop", action="store_true", help="average the softmax of the paper's ten crops")
    parser.add_argument("--batch", type=int, default=64, help="crops at a time (default 64)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object: fractions correct")
    args = parser.parse_args()
    _cli.check_counts(args, "batch", "threads")
    checkpoints = [weights.load(path) for path in args.weights]
    first = checkpoints[0]
    sides = {checkpoint.mean.shape[0] for checkpoint in checkpoints}
    if len(sides) > 1:
        raise ValueError(f"the networks look at images of {sorted(sides)} pixels; an ensemble needs one size")
    data = datasets.load_whole(args.data, side=first.mean.shape[0], seed=first.seed, classes=first.classes or None)
    scores = evaluate(
        checkpoints,
        data,
        ten_crop=args.ten_crop,
        batch=args.batch,
        device=find_device(args.device),
        threads=args.threads,
    )
    _cli.report_skipped(data)
    if not first.classes:
        _cli.say("the weights name no classes: the folders in sorted order are taken for its outputs")
    if args.json:
        print(json.dumps({**asdict(scores), "skipped": len(data.skipped), "ten_crop": args.ten_crop}))
    else:
        print(as_text(scores))


def as_text(scores: Scores) -> str:
    width = max(map(len, scores.per_class), default=0)
    return "\n".join(
        [
            f"top-1 {scores.top1:.1%}, top-5 {scores.top5:.1%}, loss {scores.loss:.3f} on {scores.images} images",
            *(f"  {name:<{width}} {share:6.1%}" for name, share in scores.per_class.items()),
        ]
    )


if __name__ == "__main__":
    _cli.run(main)
