"""The race that every figure of the benchmark is: who takes part, who gives the same results, whose turn it is."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, TypeVar

import _cli  # noqa: F401  so that refnet is found
import numpy as np
from PIL import Image

from refnet import deconv, net, sgd, train
from refnet.arch import Arch, Norm, Params
from refnet.backend import current_precision, to_device, to_host
from refnet.images import Floats, Pixels
from refnet.ops.boxes import paste_boxes
from refnet.ops.loss import cross_entropy

OURS = "refnet"
PAUSE = 0.1  # seconds before each turn: the threads of the one before spin that long, in ONNX Runtime
TOLERANCE = 1e-4  # of results in float32, relative to the largest value
# Of gradients and what they change, in their norm: of values equal up to rounding, one or another wins a region.
LOOSE = {"tolerance": 0.02, "order": 2}
RATE = 1e-3  # of the training steps: small, as the same batch comes again and again

Run = Callable[[], Any]
Contender = TypeVar("Contender")
Times = dict[str, list[float]]  # seconds of each contender in each round


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    threads: int
    repeats: int = 7
    seed: int = 0
    data: Path | None = None
    images: int = 256
    steps: int = 40
    full: bool = False
    device: str = "cpu"
    precisions: tuple[str, ...] = ("fp32",)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, on both sides, and what was hoped for.

    ``figure`` is in ``unit``, with its ``spread`` over the rounds; None where nothing was measured, and ``note`` says
    why. ``times`` holds the raw seconds, or megabytes, of everyone whom the figure is made of.
    """

    part: str
    what: str
    ours: str = ""
    peer: str = ""
    figure: float | None = None
    unit: str = "x"
    spread: tuple[float, float] | None = None
    target: float | None = None
    at_most: bool = False
    note: str = ""
    times: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return f"not measured: {self.note}"
        if self.target is None:
            return self.note
        short = self.figure / self.target - 1 if self.at_most else 1 - self.figure / self.target
        verdict = "reached" if short <= 0 else f"missed by {100 * short:.0f} %"
        return f"{verdict}; {self.note}" if self.note else verdict


class Disagreement(Exception):
    """Contenders do not give the same result, so that their times cannot be compared."""


# -------------------------------------------------------------------------------------------------- the race


def race(contenders: Mapping[str, Run], repeats: int, *, clock: Callable[[], float] = time.perf_counter) -> Times:
    """Seconds that each contender takes, in rounds: after a warm-up of each they take turns."""
    for run in contenders.values():
        run()
    times: Times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            time.sleep(PAUSE)
            start = clock()
            run()
            times[name].append(clock() - start)
    return times


def enter(make: Callable[[str], Contender], names: Sequence[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """``make(name)`` of each contender that can take part here, and why each of the others cannot."""
    there: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            there[name] = make(name)
        except ImportError as error:
            absent[name] = f"{(error.name or str(error)).partition('.')[0]} is not installed"
        except (RuntimeError, Disagreement) as error:  # no compiler, no memory, other results
            absent[name] = str(error).strip().splitlines()[0]
    return there, absent


def peers(o: Options) -> ModuleType:
    """The other side, with as many threads as ours; ImportError without PyTorch."""
    import _peers

    _peers.torch.set_num_threads(o.threads)
    _peers.torch.manual_seed(o.seed)
    return _peers


def check_same(what: str, got: Any, want: Any, *, tolerance: float = TOLERANCE, order: float = np.inf) -> None:
    """Disagreement unless the arrays are equal up to float32's rounding."""
    off = deviation(got, want, order=order)
    if not off <= tolerance:
        raise Disagreement(f"{what}: the results differ by {off:.1e}, which is more than {tolerance:.0e}")


def deviation(got: Any, want: Any, *, order: float = np.inf) -> float:
    """Norm of the difference by that of what is wanted; in a dictionary of arrays the largest."""
    if isinstance(want, dict):
        return float(np.max([deviation(got[key], each, order=order) for key, each in want.items()]))
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
    off, size = (np.linalg.norm(each.reshape(-1), order) for each in (got - want, want))
    return float(off / (size or 1.0))


def versus(
    part: str,
    what: str,
    times: Times,
    names: Sequence[str],
    target: float | None,
    *,
    show: Callable[[float], str],
    absent: Mapping[str, str],
    scale: float = 1.0,
    ours_over_theirs: bool = False,
    note: str = "",
) -> Row:
    """The best of the peers called ``names`` against refnet.

    Parameters
    ----------
    show : seconds as text
    absent : why contenders dropped out
    scale : how much more than was timed the peers would have had to do
    ours_over_theirs : the ratio is one to stay below
    """
    raced = [name for name in names if name in times]
    ours, mine = show(median(times[OURS])), times[OURS]
    if not raced:
        note = "; ".join(dict.fromkeys(absent[name] for name in names))
        return Row(part, what, ours, target=target, at_most=ours_over_theirs, note=note, times={OURS: mine})
    best = min(raced, key=lambda name: median(times[name]))
    theirs = [scale * each for each in times[best]]

    def ratio(our: float, their: float) -> float:
        return our / their if ours_over_theirs else their / our

    ratios = list(map(ratio, mine, theirs))
    notes = [note, *(f"without {name}: {absent[name]}" for name in names if name in absent)]
    return Row(
        part, what, ours, f"{best} {show(median(theirs))}",
        figure=ratio(median(mine), median(theirs)), spread=(min(ratios), max(ratios)),
        target=target, at_most=ours_over_theirs, note="; ".join(filter(None, notes)),
        times={name: times[name] for name in (OURS, *raced)},
    )  # fmt: skip


def per_second(images: int) -> Callable[[float], str]:
    return lambda seconds: f"{images / seconds:.1f} images/s"


def as_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def as_memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes >= 100 else f"{megabytes:.1f} MB"


# ------------------------------------------------------------------------------------------- what they start from


def pictures(n: int, height: int, width: int, *, seed: int) -> Pixels:
    """n smooth random pictures (n, height, width, 3) with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, -(-height // 25), -(-width // 25), 3), np.uint8)
    smooth = [np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC)) for each in coarse]
    noisy = np.stack(smooth) + rng.integers(-8, 9, (n, height, width, 1), np.int16)
    return noisy.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Start:
    """What every contender starts from: images less a mean and scaled, and their labels."""

    arch: Arch
    params: Params
    x: Floats
    labels: np.ndarray
    o: Options

    def on_device(self) -> "Start":
        """The same with its arrays where ours are to be."""
        params = net.on_device(self.params, self.o.device)
        return replace(self, params=params, x=self.put(self.x), labels=self.put(self.labels))

    def put(self, a: np.ndarray) -> Any:
        return to_device(a, self.o.device)


def start(arch: Arch, n: int, o: Options) -> Start:
    params = net.init_params(arch, rng=np.random.default_rng(o.seed))
    x = (pictures(n, *arch.input[:2], seed=o.seed).astype(np.float32) - 128) / 64
    return Start(arch, params, x, np.arange(n) % list(arch.shapes().values())[-1][0], o)


def without_norm(arch: Arch) -> Arch:
    """Captum sends the signal through normalisation's gradient, the deconvnet passes it by."""
    return replace(arch, layers=tuple(layer for layer in arch.layers if not isinstance(layer, Norm)))


# ---------------------------------------------------------------------------------------------- PyTorch and Captum

EAGER = ("PyTorch contiguous", "PyTorch channels_last")
COMPILED = ("compiled contiguous", "compiled channels_last")
CAPTUM = ("Captum contiguous", "Captum channels_last")


def layout_of(name: str) -> str:
    return name.split()[-1]


def our_step(at: Start) -> Callable[[], float]:
    """A training step on the start's own parameters, again and again; gives the loss."""
    at, rng = at.on_device(), np.random.default_rng(at.o.seed)
    velocity, recipe = sgd.zeros_like(at.params), replace(train.DEFAULT, precision=current_precision())
    how = {"recipe": recipe, "rate": RATE, "rng": rng, "threads": at.o.threads}
    return lambda: check_finite(train.step(at.arch, at.params, velocity, at.x, at.labels, **how)[0])


def check_finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise Disagreement(f"the loss is {loss}: these steps do not train, and their times mean nothing")
    return loss


def first_step(at: Start) -> dict[str, Any]:
    """Loss, gradients and new parameters of a step without dropout, whose draws nobody shares."""
    recipe, at = train.DEFAULT, replace(at, params=copy.deepcopy(at.params)).on_device()
    params = at.params
    y, trace = net.forward(at.arch, params, at.x, threads=at.o.threads)
    loss, dy = cross_entropy(y, at.labels)
    _, grads = net.backward(trace, params, dy, input_grad=False)
    sgd.step(
        params, grads, sgd.zeros_like(params),
        rate=RATE, momentum=recipe.momentum, decay=recipe.decay, clip=recipe.clip, threads=at.o.threads,
    )  # fmt: skip
    return {"loss": loss, "grads": net.on_host(grads), "params": net.on_host(params)}


def trainer(name: str, at: Start, expected: dict[str, Any], **loose: float) -> tuple[Any, tuple[Any, Any]]:
    """PyTorch's trainer on a copy of the parameters, and the start's batch, whose first step gave what is expected."""
    them = peers(at.o)
    compile = name in COMPILED
    made = them.Trainer(
        at.arch, at.params, layout_of(name), recipe=train.DEFAULT, rate=RATE, compile=compile, device=at.o.device
    )
    batch = them.images(at.x, layout_of(name), at.o.device), them.torch.from_numpy(at.labels).to(at.o.device)
    undropped = partial(made.step, *batch, dropout=False)
    got = {"loss": them.first(undropped) if compile else undropped(), "grads": made.grads(), "params": made.params()}
    for key, want in expected.items():
        check_same(
            f"training, {key} of {name}", got[key], want, **({} if key == "loss" and not loose else loose or LOOSE)
        )
    return made, batch


def their_step(name: str, at: Start, expected: dict[str, Any], **loose: float) -> Callable[[], float]:
    """What `our_step` does, of PyTorch."""
    made, batch = trainer(name, at, expected, **loose)
    return lambda: check_finite(made.step(*batch))


def step_flops(arch: Arch, batch: int) -> int:
    """Forward, and twice as much backward, but for the first layer, whose input needs no gradient."""
    macs = arch.macs()
    return 2 * batch * (3 * sum(macs.values()) - next(iter(macs.values())))


def projections(at: Start, layer: str) -> tuple[deconv.Strongest, Floats, deconv.Boxes]:
    """Of each of a layer's maps the strongest activation, and its projection to pixels; with the run up to there."""
    y, trace = net.forward(at.arch, at.params, at.x, stop=layer, threads=at.o.threads)
    best = deconv.strongest(y, top=1)
    where = best.image[:, 0], np.arange(len(best.image)), best.row[:, 0], best.col[:, 0]
    return best, *deconv.project_cells(trace, at.params, y, *where)


def settled(result: Any, o: Options) -> Any:
    """``result`` once the device has done all that it was told."""
    if o.device == "cuda":
        import cupy

        cupy.cuda.runtime.deviceSynchronize()
    return result


def spread_out(n: int, sample: int) -> np.ndarray:
    """At most ``sample`` of n, evenly spread."""
    return np.unique(np.linspace(0, n - 1, sample).astype(int))


def deconvnet(o: Options, part: str, layer: str, target: float, arch: Arch, sample: int) -> Iterator[Row]:
    """Captum is given the positions. It projects one at a time, so that a sample of the maps tells its time for all."""
    at = start(without_norm(arch), 1, o)
    mine = at.on_device()
    best, r, boxes = projections(mine, layer)
    r = to_host(r)
    some = spread_out(len(r), sample)
    cells = [(int(best.row[m, 0]), int(best.col[m, 0]), int(m)) for m in some]

    def theirs(name: str) -> Run:
        attribute = peers(o).deconvolution(at.arch.upto(layer), at.params, at.x, layout_of(name), device=o.device)
        for m, cell in zip(some, cells, strict=True):
            here = np.zeros((1, *at.arch.input), np.float32)
            paste_boxes(r[[m]], boxes.origin[[m]], here)
            check_same(f"{part}, {name}", best.value[m, 0] * attribute(cell), here[0])  # Captum starts from 1
        return lambda: [attribute(cell) for cell in cells]

    there, absent = enter(theirs, CAPTUM)
    times = race({OURS: lambda: settled(projections(mine, layer), o), **there}, o.repeats)
    yield versus(
        part, f"{arch.name} without norm: {layer}'s {len(r)} maps to pixels", times, CAPTUM, target,
        show=as_time, absent=absent, scale=len(r) / len(some), note=f"Captum timed on {len(some)} maps, scaled",
    )  # fmt: skip
