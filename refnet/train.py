"""Training as in section 3: recipes, the loop, and going on where it stopped.

Every random draw comes from a stream named by (seed, purpose, epoch, step); so the state of a training is its
arrays and its place, and going on from a checkpoint gives the bits that going straight through would have given.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from refnet import loader, net, sgd
from refnet.arch import Arch, Params
from refnet.backend import PRECISIONS, Array, array_module, precision, to_device
from refnet.datasets import Dataset
from refnet.evaluate import probabilities, score
from refnet.images import Augment
from refnet.layers import operations
from refnet.ranks import ALONE, Group
from refnet.weights import Checkpoint


@dataclass(frozen=True)
class Recipe:
    """The declared choices of a training; stored with the weights.

    ``schedule`` is "one-cycle" (a linear rise to ``rate``, then a cosine down to 0), "plateau" (divide by
    ``drop`` when the validation error has not improved for ``patience`` epochs) or, by hand, pairs of
    (first epoch, rate). ``scale`` multiplies the pixels less the mean. ``precision`` is that of products on a GPU
    (`refnet.backend.precision`). ``clip`` None leaves the filters' RMS alone.
    """

    name: str
    init: str
    scale: float
    batch: int
    rate: float
    schedule: str | tuple[tuple[int, float], ...]
    augment: Augment
    momentum: float = 0.9
    decay: float = 5e-4
    clip: float | None = 0.1
    warmup: float = 0.2
    drop: float = 10.0
    patience: int = 5
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if isinstance(self.schedule, str):
            good = self.schedule in ("one-cycle", "plateau")
        else:
            epochs = [epoch for epoch, _ in self.schedule]
            good = epochs[:1] == [0] and epochs == sorted(set(epochs))
        rates = [self.rate] if isinstance(self.schedule, str) else [rate for _, rate in self.schedule]
        if not all(0 < rate < math.inf for rate in rates):
            raise ValueError(f"the learning rate is {rates}, it needs a number above 0")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, it needs {' or '.join(PRECISIONS)}")
        if not good:
            needs = "one-cycle, plateau, or pairs of an epoch and its rate, from epoch 0"
            raise ValueError(f"schedule is {self.schedule!r}, it needs {needs}")


# What the paper says; weight decay and the factor of the drops are Krizhevsky's.
PAPER = Recipe(
    name="paper", init="paper", scale=1.0, batch=128, rate=1e-2, schedule="plateau", augment=Augment(crops="ten")
)  # fmt: skip
# What trains small networks from scratch in an hour. At a rate of 0.03 some of them fell back to chance for epochs.
DEFAULT = Recipe(
    name="default", init="he", scale=1 / 64, batch=64, rate=0.02, schedule="one-cycle",
    augment=Augment(crops="random", area=(0.4, 1.0), aspect=1.25, colour=0.2),
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in (DEFAULT, PAPER)}

_INIT, _ORDER, _DROPOUT = range(3)  # purposes of the random streams


def image_side(arch: Arch) -> int:
    """Side that images are resized to before the crop: 256 for 224 (section 3), 128 for 112, 64 for 56."""
    return max(32 * round(arch.side / 28), arch.side)


def begin(arch: Arch, recipe: Recipe, data: Dataset, *, epochs: int, seed: int, group: Group = ALONE) -> Checkpoint:
    """A network before its first step; all images are read once for their per-pixel mean, a share by each process.

    Raises
    ------
    ValueError
        If the network has another number of outputs than the data classes, or no image can be read.
    """
    rng = np.random.default_rng([seed, _INIT])
    params = net.init_params(arch, rng=rng, init=recipe.init)
    return Checkpoint(
        arch,
        params,
        loader.mean_image(data, group=group),
        scale=recipe.scale,
        classes=data.classes,
        recipe={**declared(recipe, epochs), "data": data.digest()},
        seed=seed,
        optimizer=sgd.zeros_like(params),
        rng=asdict(Progress()),
    )


def declared(recipe: Recipe, epochs: int) -> dict[str, Any]:
    """All choices of a training as JSON gives them back, as they are stored with the weights."""
    stored: dict[str, Any] = json.loads(json.dumps({**asdict(recipe), "epochs": epochs}))
    return stored


@dataclass
class Progress:
    """Where in the epoch a training is: steps done, sums over their images, seconds, and those waiting for images."""

    step: int = 0
    images: int = 0
    loss: float = 0.0
    correct: int = 0
    clipped: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def learning_rate(recipe: Recipe, done: float, epochs: int, val_errors: list[float]) -> float:
    """Rate after ``done`` epochs (with fraction) of ``epochs``; ``val_errors`` has one value per epoch done."""
    if not isinstance(recipe.schedule, str):
        return [rate for first, rate in recipe.schedule if first <= done][-1]
    if recipe.schedule == "plateau":
        drops, best, since = 0, math.inf, 0
        for error in val_errors:
            best, since = (error, 0) if error < best else (best, since + 1)
            if since == recipe.patience:
                drops, since = drops + 1, 0
        return recipe.rate / recipe.drop**drops
    share = done / epochs
    if share < recipe.warmup:
        return recipe.rate * (0.1 + 0.9 * share / recipe.warmup)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (share - recipe.warmup) / (1 - recipe.warmup)))


def step(
    arch: Arch,
    params: Params,
    velocity: Params,
    x: Array,
    labels: Array,
    *,
    recipe: Recipe,
    rate: float,
    rng: np.random.Generator,
    group: Group = ALONE,
    rows: tuple[int, int] | None = None,
    threads: int | None = None,
) -> tuple[float, int, Array]:
    """One minibatch of training: forward, loss, backward, and the update of ``params`` and ``velocity`` in place.

    The processes of a ``group`` have a share of the minibatch each, add up their gradients while the walk goes on, and
    make the same update. But where the fully connected layers go `by_rows`, each process has the whole minibatch's
    gradients for its share of their rows (`refnet.net.backward`), updates these, and hands them round; the weights'
    ``velocity`` is up to date for these rows alone.

    Parameters
    ----------
    x : (N, H, W, C) crops less the mean, scaled
    labels : (N,) integers
    rate : learning rate of this step
    rng : of dropout, the same in all processes
    rows : (first, total) tells where the images are in the whole minibatch; by default they are all of it

    Returns
    -------
    loss : mean cross-entropy before the update, in nats; if it is not finite, nothing was updated
    correct : images whose class was the most probable
    clipped : filters scaled back to the RMS clip; on a GPU a 0-d array, as the step is still under way
    """
    total = rows[1] if rows else len(x)
    shared = by_rows(params, recipe.batch) if group.size > 1 else set()
    started: list[Callable[[], object]] = []
    update = partial(
        sgd.step, rate=rate, momentum=recipe.momentum, decay=recipe.decay, clip=recipe.clip, threads=threads
    )

    def on_grads(layer: str, grads: dict[str, Array]) -> None:
        if layer not in shared:
            started.extend(group.start_sum(array) for array in grads.values())
            return
        w, v = params[layer]["w"], velocity[layer]["w"]
        mine = group.share(len(w))
        update({layer: params[layer] | {"w": w[mine]}}, {layer: grads}, {layer: velocity[layer] | {"w": v[mine]}})
        started.append(group.start_exchange(w))

    with precision(recipe.precision):
        y, trace = net.forward(arch, params, x, rng=rng, rows=rows, threads=threads)
        correct, loss, dy = 0, 0.0, y
        if len(x):
            correct = (y.argmax(axis=1) == labels).sum()
            loss, dy = operations(y).cross_entropy(y, labels)
        loss, right = group.add(loss * len(x) / total, int(correct))
        if not math.isfinite(loss):
            return loss, 0, 0
        if group.size > 1:
            dy *= len(x) / total  # its mean is over this process's images
        together = group if shared else ALONE
        _, grads = net.backward(trace, params, dy, input_grad=False, on_grads=on_grads, group=together)
        for wait in started:
            wait()
    clipped = update({name: layer for name, layer in params.items() if name not in shared}, grads, velocity)
    return loss, int(right), sum(clipped.values())


def by_rows(params: Params, batch: int) -> set[str]:
    """The fully connected layers, if a minibatch's inputs and outputs of all of them are small beside their weights.

    Then the processes of a group hand these round instead of gradients, and have a share of the weights' rows each.
    """
    shapes = {name: layer["w"].shape for name, layer in params.items() if layer["w"].ndim == 2}
    small = 4 * batch * sum(map(sum, shapes.values())) < sum(map(math.prod, shapes.values()))
    return set(shapes) if small else set()


def trouble(arch: Arch, params: Params, x: Array | None = None, *, threads: int | None = None) -> str | None:
    """Where numbers first stop being finite: in a layer's parameters, or in a layer's output for images x.

    Returns None where all are finite.
    """
    for name, layer in params.items():
        for key, a in layer.items():
            if not bool(array_module(a).isfinite(a).all()):
                return f"{name}'s {'weights' if key == 'w' else 'biases'}"
    outputs: set[str] = set()

    def watch(name: str, _: slice, y: Array) -> None:
        if not bool(array_module(y).isfinite(y).all()):
            outputs.add(name)

    if x is not None:
        net.predict(arch, params, x, watch=watch, threads=threads)
    return f"{min(outputs, key=arch.index)}'s output" if outputs else None


def run(
    checkpoint: Checkpoint,
    train: Dataset,
    val: Dataset,
    *,
    recipe: Recipe,
    epochs: int,
    device: str = "cpu",
    group: Group = ALONE,
    threads: int | None = None,
    on_step: Callable[[Progress, int, float], None] = lambda progress, steps, rate: None,
    on_epoch: Callable[[Checkpoint], None] = lambda checkpoint: None,
    stop: Callable[[], bool] = lambda: False,
) -> Checkpoint:
    """Train ``checkpoint`` up to ``epochs`` epochs in all, from where it stands.

    Parameters
    ----------
    checkpoint : of `begin`, or of an earlier `run` that was stopped; it is changed in place and returned
    group : the processes that train together; the data that are seen do not depend on how many there are
    on_step : called after every step with the place in the epoch, the steps per epoch and the rate
    on_epoch : called after every epoch's validation; may save the checkpoint
    stop : asked after every step; True, in any process, ends the run with the checkpoint at that step

    Raises
    ------
    ValueError
        If the loss or a parameter is no longer finite: names epoch, step and layer, and nothing is handed to
        ``on_epoch``. Go on from the last checkpoint saved.
    """
    arch, seed = checkpoint.arch, checkpoint.seed
    params = net.on_device(checkpoint.params, device)
    assert checkpoint.optimizer is not None and checkpoint.rng is not None
    velocity = net.on_device(checkpoint.optimizer, device)
    progress = Progress(**checkpoint.rng)
    steps = loader.batch_count(len(train), recipe.batch)

    def diverged(what: str, x: Array | None = None) -> ValueError:
        where = trouble(arch, params, x, threads=threads)
        return ValueError(
            f"{what} at epoch {checkpoint.epoch + 1}, step {progress.step}"
            f"{f', first in {where}' if where else ''}: the training diverged; "
            f"go on from the last checkpoint with a rate below {rate:.3g}"
        )

    def keep() -> None:
        for name in sorted(by_rows(params, recipe.batch)):  # each process knows its own rows'
            group.start_exchange(velocity[name]["w"])()
        checkpoint.params, checkpoint.optimizer = net.on_host(params), net.on_host(velocity)
        checkpoint.rng, checkpoint.ranks = asdict(progress), group.size

    while checkpoint.epoch < epochs:
        epoch, errors = checkpoint.epoch, [1 - top1 for top1 in checkpoint.history.get("val_top1", [])]
        batches = loader.minibatches(
            train,
            batch=recipe.batch,
            size=arch.side,
            augment=recipe.augment,
            mean=checkpoint.mean,
            scale=checkpoint.scale,
            rng=np.random.default_rng([seed, _ORDER, epoch]),
            group=group,
            start=progress.step,
            device=device,
            threads=threads,
        )
        clock, clipped = time.perf_counter(), 0
        for x, labels, _ in batches:
            progress.waited += time.perf_counter() - clock
            rate = learning_rate(recipe, epoch + progress.step / steps, epochs, errors)
            rng = np.random.default_rng([seed, _DROPOUT, epoch, progress.step])
            progress.step += 1
            counts = group.gather(len(x))
            first, total = sum(counts[: group.rank]), sum(counts)
            if total:
                progress.clipped += int(clipped)  # of the step before: this one's is not known on a GPU until later
                loss, correct, clipped = step(
                    arch, params, velocity, x, to_device(labels, device),
                    recipe=recipe, rate=rate, rng=rng, group=group, rows=(first, total), threads=threads,
                )  # fmt: skip
                if not math.isfinite(loss):
                    raise diverged(f"the loss is {loss}", x)
                progress.images += total
                progress.loss += loss * total
                progress.correct += correct
            clock, before = time.perf_counter(), clock
            progress.seconds += clock - before  # with the wait for the batch
            on_step(progress, steps, rate)
            if any(group.gather(stop())):
                batches.close()
                progress.clipped += int(clipped)
                if trouble(arch, params):
                    raise diverged("a parameter is not finite")
                keep()
                return checkpoint
        progress.clipped += int(clipped)
        if not progress.images:
            raise ValueError(f"none of the {len(train)} images could be read in epoch {epoch + 1}")
        if trouble(arch, params):
            raise diverged("a parameter is not finite")

        checkpoint.params = net.on_host(params)
        found = score(*probabilities(checkpoint, val, device=device, group=group, threads=threads), val.classes)
        for name, value in {
            "train_loss": progress.loss / progress.images,
            "train_top1": progress.correct / progress.images,
            "val_loss": found.loss,
            "val_top1": found.top1,
            "val_top5": found.top5,
            "rate": learning_rate(recipe, epoch + (steps - 1) / steps, epochs, errors),
            "clipped": progress.clipped / progress.step,
            "seconds": progress.seconds,
            "waited": progress.waited / progress.seconds,
        }.items():
            checkpoint.history.setdefault(name, []).append(value)
        checkpoint.epoch, progress = epoch + 1, Progress()
        checkpoint.finished = checkpoint.epoch == epochs
        keep()
        on_epoch(checkpoint)
    return checkpoint
