"""Train a network on a folder of images, or on drawn scenes, and write its weights.

Ctrl-C ends the step and writes a checkpoint; the same command with --resume goes on from there. Under mpirun or srun
all processes train one network together; there SIGUSR1 does what Ctrl-C does here.

examples:
  python tools/train.py --arch mini --epochs 12 --out weights/scenes-mini.h5
  python tools/train.py --data imagenette --arch small --epochs 40 --out weights/imagenette.h5 --keep 1,2,5,10,20,40
"""

import argparse
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import _cli
from tqdm import tqdm

from refnet import datasets, memory, models, ranks, train, weights
from refnet.backend import PRECISIONS, find_device
from refnet.weights import Checkpoint


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
    parser.add_argument("--out", type=Path, required=True, help="the weight file to write")
    parser.add_argument("--resume", action="store_true", help="go on from --out if it is there")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with ranks.world() as group:
        run(args, group)


def run(args: argparse.Namespace, group: ranks.Group) -> None:
    """Train, as one of the processes that a launcher has started, or alone; the first one speaks and writes."""
    leads = group.rank == 0
    threads = args.threads or group.threads
    _cli.check_counts(args, "epochs", "checkpoint_every", "threads", "batch")
    recipe, keep = chosen_recipe(args), epoch_list(args.keep)
    device = find_device(args.device)
    if device == "cpu" and args.precision != "fp32":
        raise ValueError(f"--precision {args.precision} is for a GPU; the CPU has fp32")
    before = weights.load(args.out) if args.resume and args.out.exists() else None
    if before is not None:
        check_same(args, before, recipe)
    elif args.out.exists():
        raise ValueError(f"{args.out} exists; --resume goes on from it, another --out leaves it alone")
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out}: there is no folder {args.out.parent}")

    arch = models.by_name(args.arch)
    data, val = datasets.load(args.data, side=train.image_side(arch), seed=args.seed)
    if before is not None and before.recipe.get("data") != data.digest():
        raise ValueError(f"{args.out} was trained on other images than {args.data or 'scenes'} has; use another --out")
    if before is not None and before.finished:
        if leads:
            print(f"{args.out}: finished after {before.epoch} epochs, nothing to do")
        return
    arch = models.with_classes(arch, len(data.classes))
    group.take_device(device)
    where = f"on {device}" if group.size == 1 else f"on {group.size} ranks, {device}"
    if device == "cpu":
        share = -(-recipe.batch // group.size)
        where += f", about {memory.check_batch(arch, share, threads=threads) / 1e9:.2f} GB a step"
    if leads:
        say(f"{len(data)} images to train on, {len(val)} to validate, {len(data.classes)} classes")
        say(f"{arch.name}: {arch.param_count():,} parameters, {where}")
    checkpoint = before or train.begin(arch, recipe, data, epochs=args.epochs, seed=args.seed, group=group)
    checkpoint.recipe |= train.declared(recipe, args.epochs)

    with Stop() as stop, Bar(args.epochs, checkpoint, shown=leads) as bar:

        def on_epoch(checkpoint: Checkpoint) -> None:
            if not leads:
                return
            bar.epoch(checkpoint)
            slim = replace(checkpoint, optimizer=None, rng=None)
            if checkpoint.finished:
                weights.save(args.out, slim, dtype="float16" if args.half else None)
            elif checkpoint.epoch % args.checkpoint_every == 0:
                weights.save(args.out, checkpoint)
            if checkpoint.epoch in keep:
                weights.save(args.out.with_suffix(f".epoch{checkpoint.epoch:03}.h5"), slim, dtype="float16")

        train.run(
            checkpoint, data, val, recipe=recipe, epochs=args.epochs, device=device, group=group, threads=threads,
            on_step=bar.step, on_epoch=on_epoch, stop=lambda: bool(stop.asked),
        )  # fmt: skip
        asked = max(group.gather(stop.asked))
    for each in (data, val):
        for skipped in group.gather(each.skipped):
            each.skipped.update(skipped)
    if leads:
        _cli.report_skipped(data, val)
    if not checkpoint.finished:
        if leads:
            weights.save(args.out, checkpoint)
            say(f"stopped in epoch {checkpoint.epoch + 1}; {args.out} is written, --resume goes on from it")
            sys.exit(128 + asked)
        return  # with status 0, as mpirun kills the others at the first one that fails
    if leads:
        print(f"{args.out}: top-1 {checkpoint.history['val_top1'][-1]:.1%} on {len(val)} validation images")


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


def check_same(args: argparse.Namespace, before: Checkpoint, recipe: train.Recipe) -> None:
    """ValueError unless the checkpoint is of the training that was asked for."""
    if not before.finished and before.optimizer is None:
        raise ValueError(f"{args.out} holds weights without the state of their training; it cannot be gone on from")
    asked = {"arch": args.arch, "seed": args.seed, **train.declared(recipe, args.epochs)}
    was = {"arch": before.arch.name, "seed": before.seed, **before.recipe}
    fixed = asked.keys() - {"rate", "schedule"}  # may be changed by hand on the way (section 3)
    changed = [
        f"{name} {was.get(name)!r}, not {asked[name]!r}"
        for name in asked
        if name in fixed and was.get(name) != asked[name]
    ]
    if changed:
        raise ValueError(f"{args.out} has {'; '.join(changed)}: ask for the same to go on, or use another --out")


class Stop:
    """Notes Ctrl-C and SIGTERM, so that the step can end and a checkpoint be written; a second one stops at once.

    SIGUSR1 means the same: mpirun hands it on, where on the others it kills what it has started.
    """

    asked = 0

    def __enter__(self) -> "Stop":
        signals = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
        self.before = {number: signal.signal(number, self.note) for number in signals}
        return self

    def note(self, number: int, frame: object) -> None:
        self.asked = number
        signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Bar:
    """The progress bar on a terminal, and one line for each epoch."""

    def __init__(self, epochs: int, checkpoint: Checkpoint, *, shown: bool) -> None:
        self.epochs, self.done, self.start = epochs, checkpoint.epoch, time.perf_counter()
        self.bar = tqdm(total=0, unit="step", dynamic_ncols=True, disable=not (shown and sys.stderr.isatty()))

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def step(self, progress: train.Progress, steps: int, rate: float) -> None:
        if not self.bar.total:
            self.bar.total = steps * self.epochs
            self.bar.initial = self.bar.n = self.done * steps + progress.step - 1  # so that the time left is right
        self.bar.set_postfix_str(
            f"epoch {self.done + 1}/{self.epochs}, loss {progress.loss / max(progress.images, 1):.3f}, "
            f"top-1 {progress.correct / max(progress.images, 1):.1%}, "
            f"{progress.images / progress.seconds:.0f} images/s",
            refresh=False,
        )
        self.bar.update()

    def epoch(self, checkpoint: Checkpoint) -> None:
        self.done = checkpoint.epoch
        last = {name: values[-1] for name, values in checkpoint.history.items()}
        tqdm.write(
            f"epoch {self.done:3}/{self.epochs}  loss {last['train_loss']:.3f}  val loss {last['val_loss']:.3f}  "
            f"top-1 {last['val_top1']:.1%}  top-5 {last['val_top5']:.1%}  rate {last['rate']:.2g}  "
            f"{last['seconds']:.0f} s, {last['waited']:.0%} of it waiting for images, "
            f"{time.perf_counter() - self.start:.0f} s in all",
            file=sys.stderr,
        )


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    _cli.run(main)
