"""Train a network on a folder of images, or on drawn scenes, and write its weights.

Ctrl-C ends the step and writes a checkpoint; the same command with --resume goes on from there. Under mpirun or srun
all processes train one network together; there SIGUSR1 does what Ctrl-C does here.

examples:
  python tools/train.py --arch mini --epochs 12 --out weights/scenes-mini.h5
  python tools/train.py --data imagenette --arch small --epochs 40 --out weights/imagenette.h5 --keep 1,2,5,10,20,40
"""

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import _cli
import _lock
import _training

from refnet import datasets, models, ranks, train
from refnet.backend import PRECISIONS, find_device


def arguments() -> argparse.Namespace:
    parser = _cli.parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of classes, or of train/ and val/ (default: scenes)")
    parser.add_argument("--arch", default="small", help=f"one of {', '.join(models.MODELS)} (default small)")
    parser.add_argument("--epochs", type=int, default=40, help="epochs in all (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, crops, dropout, splits (default 0)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores); results don't depend on it")
    parser.add_argument("--recipe", default="default", choices=tuple(train.RECIPES))
    parser.add_argument("--batch", type=int, help="images per step, instead of the recipe's")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of products on a GPU (default fp32)")
    parser.add_argument("--rate", type=float, help="highest learning rate, instead of the recipe's")
    parser.add_argument("--rates", metavar="EPOCH:RATE,...", help="learning rates by hand, such as 0:0.01,30:0.001")
    parser.add_argument("--checkpoint-every", type=int, default=1, metavar="N", help="epochs between checkpoints")
    parser.add_argument("--keep", default="", metavar="EPOCH,...", help="also keep these epochs' weights (Figure 4)")
    parser.add_argument("--half", action="store_true", help="store the finished weights as float16")
    parser.add_argument("--strict", action="store_true", help="stop at an image that cannot be read")
    parser.add_argument("--out", type=Path, required=True, help="the weight file to write")
    parser.add_argument("--resume", action="store_true", help="go on from --out if it is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object: where the training has come to")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with ranks.world() as group:
        run(args, group)


def run(args: argparse.Namespace, group: ranks.Group) -> None:
    """Train, as one of the processes that a launcher has started, or alone."""
    _cli.check_counts(args, "epochs", "checkpoint_every", "threads", "batch")
    recipe, keep = chosen_recipe(args), epoch_list(args.keep)
    device = find_device(args.device)
    if device == "cpu" and args.precision != "fp32":
        raise ValueError(f"--precision {args.precision} is for a GPU; the CPU has fp32")
    if args.out.exists() and not args.resume:
        raise ValueError(f"{args.out} exists; --resume goes on from it, another --out leaves it alone")
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out}: there is no folder {args.out.parent}")
    arch = models.by_name(args.arch)
    data, val = datasets.load(args.data, side=train.image_side(arch), seed=args.seed)
    with _lock.held(args.out) if group.rank == 0 else nullcontext():
        checkpoint = _training.fit(
            args.out, models.with_classes(arch, len(data.classes)), data, val, recipe=recipe, epochs=args.epochs,
            seed=args.seed, device=device, group=group, threads=args.threads or group.threads,
            every=args.checkpoint_every, keep=keep, half=args.half, strict=args.strict,
        )  # fmt: skip
    if group.rank == 0 and checkpoint is not None:
        last = {name: values[-1] for name, values in checkpoint.history.items()}
        found = {"weights": str(args.out), "epoch": checkpoint.epoch, "validation images": len(val), **last}
        text = f"{args.out}: top-1 {last['val_top1']:.1%} on {len(val)} validation images"
        print(json.dumps(found) if args.json else text)


def chosen_recipe(args: argparse.Namespace) -> train.Recipe:
    """The recipe with what the command line changes in it."""
    recipe = replace(train.RECIPES[args.recipe], precision=args.precision)
    if args.batch is not None:
        recipe = replace(recipe, batch=args.batch)
    if args.rate is not None:
        recipe = replace(recipe, rate=args.rate)
    if args.rates is not None:
        try:
            pairs = tuple((int(e), float(r)) for e, r in (each.split(":") for each in args.rates.split(",")))
        except ValueError:
            raise ValueError(f"--rates is {args.rates!r}, it needs EPOCH:RATE,EPOCH:RATE,...") from None
        recipe = replace(recipe, schedule=pairs)
    return recipe


def epoch_list(text: str) -> set[int]:
    try:
        return {int(each) for each in text.split(",") if each}
    except ValueError:
        raise ValueError(f"--keep is {text!r}, it needs EPOCH,EPOCH,...") from None


if __name__ == "__main__":
    _cli.run(main)
