"""One training, written to one file: it goes on from a checkpoint, shows how far it is, and stops where it is asked to.

Ctrl-C ends the step and writes a checkpoint; the same call goes on from there.
"""

import signal
import sys
import time
import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import _cli
from tqdm import tqdm

from refnet import memory, ranks, train, weights
from refnet.arch import Arch
from refnet.datasets import Dataset
from refnet.weights import Checkpoint


def fit(
    out: Path,
    arch: Arch,
    data: Dataset,
    val: Dataset,
    *,
    recipe: train.Recipe,
    epochs: int,
    seed: int,
    device: str = "cpu",
    group: ranks.Group = ranks.ALONE,
    threads: int | None = None,
    every: int = 1,
    keep: Collection[int] = (),
    half: bool = False,
    strict: bool = False,
) -> Checkpoint | None:
    """The network ``arch`` trained on ``data``: from the file ``out`` if that has it, wholly or in part.

    The caller holds the file's lock (`_lock.held`).

    Parameters
    ----------
    every : epochs between checkpoints
    keep : epochs whose weights are kept beside ``out`` as NAME.epoch007.h5
    half : store the finished weights as float16
    strict : stop at the first image that cannot be read, instead of passing over it


    Returns
    -------
    Checkpoint
        None in a process that does not lead its group, where the training was stopped.

    Raises
    ------
    ValueError
        If the file is of another training; what `refnet.train.run` raises; with ``strict``, for a bad image.

    SystemExit
        128 and the signal's number, if it was stopped.
    """
    warnings.simplefilter("ignore", RuntimeWarning)  # a training that diverges says so itself, in one line
    leads = group.rank == 0
    before = weights.load(out) if out.exists() else None
    if before is not None:
        check_same(out, before, arch, recipe, epochs, seed)
        if before.recipe.get("data") != data.digest():
            raise ValueError(f"{out} was trained on other images than these; use another --out")
        if before.finished:
            if leads:
                _cli.say(f"{out}: finished after {before.epoch} epochs, nothing to do")
            return before
    group.take_device(device)
    where = f"on {device}" if group.size == 1 else f"on {group.size} ranks, {device}"
    if device == "cpu":
        share = -(-recipe.batch // group.size)
        where += f", about {memory.check_batch(arch, share, threads=threads) / 1e9:.2f} GB a step"
    if leads:
        _cli.say(f"{len(data)} images to train on, {len(val)} to validate, {len(data.classes)} classes")
        _cli.say(f"{arch.name}: {arch.param_count():,} parameters, {where}")
    checkpoint = before or train.begin(arch, recipe, data, epochs=epochs, seed=seed, group=group)
    checkpoint.recipe |= train.declared(recipe, epochs)

    def check_images() -> None:
        if strict and (skipped := {**data.skipped, **val.skipped}):
            name, why = next(iter(skipped.items()))
            raise ValueError(f"{name}: {why}; --strict stops at {len(skipped)} bad files, without it they are skipped")

    check_images()
    with Stop() as stop, Bar(epochs, checkpoint, shown=leads) as bar:

        def on_step(*place: Any) -> None:
            check_images()
            bar.step(*place)

        def on_epoch(checkpoint: Checkpoint) -> None:
            if not leads:
                return
            bar.epoch(checkpoint)
            slim = replace(checkpoint, optimizer=None, rng=None)
            if checkpoint.finished:
                weights.save(out, slim, dtype="float16" if half else None)
            elif checkpoint.epoch % every == 0:
                weights.save(out, checkpoint)
            if checkpoint.epoch in keep:
                weights.save(out.with_suffix(f".epoch{checkpoint.epoch:03}.h5"), slim, dtype="float16")

        train.run(
            checkpoint, data, val, recipe=recipe, epochs=epochs, device=device, group=group, threads=threads,
            on_step=on_step, on_epoch=on_epoch, stop=lambda: bool(stop.asked),
        )  # fmt: skip
        asked = max(group.gather(stop.asked))
    for each in (data, val):
        for skipped in group.gather(each.skipped):
            each.skipped.update(skipped)
    if leads:
        _cli.report_skipped(data, val)
    if checkpoint.finished:
        return checkpoint
    if leads:
        weights.save(out, checkpoint)
        _cli.say(f"stopped in epoch {checkpoint.epoch + 1}; {out} is written, --resume goes on from it")
        sys.exit(128 + asked)
    return None  # and status 0, as mpirun kills the others at the first process that fails


def check_same(out: Path, before: Checkpoint, arch: Arch, recipe: train.Recipe, epochs: int, seed: int) -> None:
    """ValueError unless the checkpoint is of the training that was asked for."""
    if not before.finished and before.optimizer is None:
        raise ValueError(f"{out} holds weights without the state of their training; it cannot be gone on from")
    asked = {"arch": arch.name, "seed": seed, **train.declared(recipe, epochs)}
    was = {"arch": before.arch.name, "seed": before.seed, **before.recipe}
    fixed = asked.keys() - {"rate", "schedule"}  # may be changed by hand on the way (section 3)
    changed = [
        f"{name} {was.get(name)!r}, not {asked[name]!r}"
        for name in asked
        if name in fixed and was.get(name) != asked[name]
    ]
    if not changed and before.arch.layers[:-1] != arch.layers[:-1]:  # the last has an output for each of the classes
        changed = [f"another {arch.name}, with {before.arch.param_count():,} parameters"]
    if changed:
        raise ValueError(f"{out} has {'; '.join(changed)}: ask for the same to go on, or use another --out")


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
