"""Measure refnet against PyTorch, ONNX Runtime and Captum, and against itself; print a table and write JSON.

Every figure is a ratio within one run: the contenders start from the same parameters, must first give the same
result, and then take turns, A B C A B C ..., with the same number of threads. A package that is not installed costs
its rows and nothing else; a missed target is said and does not change the exit status.

examples:
  python tools/benchmark.py --list
  python tools/benchmark.py inference training --repeats 5
  python tools/benchmark.py --data imagenette --images 2000 --full --json out/benchmark.json --markdown
"""

import copy
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, TypeVar

import _cli
import numpy as np
from PIL import Image
from threadpoolctl import ThreadpoolController, threadpool_info

from refnet import datasets, deconv, features, loader, models, net, occlusion, sgd, train
from refnet.arch import Arch, Norm, Params, Relu
from refnet.backend import cores
from refnet.datasets import Dataset
from refnet.images import Floats, Pixels
from refnet.ops.loss import cross_entropy, softmax
from refnet.weights import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
OURS = "refnet"
PAUSE = 0.1  # seconds before each turn: the threads of the one before spin that long, in ONNX Runtime
TOLERANCE = 1e-4  # of results in float32, relative to the largest value
# Of gradients and what they change, in their norm: of values equal up to rounding, one or another wins a region.
LOOSE = {"tolerance": 0.02, "order": 2}
RATE = 1e-3  # of the training steps: small, as the same batch comes again and again
GREY = 118.0  # the mean that photographs are read with, for all pixels and channels

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


def start(arch: Arch, n: int, o: Options) -> Start:
    params = net.init_params(arch, rng=np.random.default_rng(o.seed))
    x = (pictures(n, *arch.input[:2], seed=o.seed).astype(np.float32) - 128) / 64
    return Start(arch, params, x, np.arange(n) % list(arch.shapes().values())[-1][0], o)


def in_memory(pixels: Pixels) -> Dataset:
    """A data set that has been decoded beforehand, of one class."""
    names = [f"picture {i}" for i in range(len(pixels))]
    return Dataset(("any",), np.zeros(len(pixels), np.int64), names, pixels.shape[1], lambda i: pixels[i])


def without_norm(arch: Arch) -> Arch:
    """Captum sends the signal through normalisation's gradient, the deconvnet passes it by."""
    return replace(arch, layers=tuple(layer for layer in arch.layers if not isinstance(layer, Norm)))


@contextmanager
def photographs(o: Options, n: int, side: int) -> Iterator[tuple[Dataset, list[Path], str]]:
    """At most n JPEGs as a data set that decodes each time anew, their files, and where they are from."""
    with tempfile.TemporaryDirectory() as folder:
        root, whence = o.data or Path(folder), f"JPEGs of {o.data.name}" if o.data else "drawn JPEGs of 500 x 375"
        if o.data is None:
            (root / "any").mkdir()
            for i in range(n):
                (picture,) = pictures(1, 375, 500, seed=o.seed + i)
                Image.fromarray(picture).save(root / "any" / f"{i:04}.jpg", quality=90)
        data = datasets.load_whole(root, side=side, cache_bytes=0).first(n)
        yield data, [root / name for name in data.names], f"{len(data)} {whence}"


# ----------------------------------------------------------------------------------------- the parts: the network

EAGER = ("PyTorch contiguous", "PyTorch channels_last")
COMPILED = ("compiled contiguous", "compiled channels_last")
ONNX = "ONNX Runtime"


def layout_of(name: str) -> str:
    return name.split()[-1]


def inference(o: Options, *, arch: Arch = models.ZFNET, batch: int = 32) -> Iterator[Row]:
    """logits of a batch of 32: PyTorch eager, compiled, ONNX Runtime"""
    at = start(arch, batch, o)

    def ours() -> Floats:
        return net.predict(arch, at.params, at.x, threads=o.threads)

    def theirs(name: str) -> Run:
        if name == ONNX:
            run = peers(o).onnx_predictor(arch, at.params, at.x, threads=o.threads)
        else:
            run = peers(o).predictor(arch, at.params, at.x, layout_of(name), compile=name in COMPILED)
        check_same(f"inference, {name}", run(), expected)
        return run

    expected = ours()
    there, absent = enter(theirs, (*EAGER, *COMPILED, ONNX))
    times = race({OURS: ours, **there}, o.repeats)
    for what, names, target in (
        ("eager, contiguous", EAGER[:1], 2.3),
        ("eager, the better layout", EAGER, 1.6),
        ("compiled or ONNX, the fastest", (*COMPILED, ONNX), 1.0),
    ):
        what = f"{arch.name}, batch {batch}: {what}"
        yield versus("inference", what, times, names, target, show=per_second(batch), absent=absent)


def our_step(at: Start) -> Callable[[], float]:
    """A training step on the start's own parameters, again and again; gives the loss."""
    velocity, rng = sgd.zeros_like(at.params), np.random.default_rng(at.o.seed)
    how = {"recipe": train.DEFAULT, "rate": RATE, "rng": rng, "threads": at.o.threads}
    return lambda: check_finite(train.step(at.arch, at.params, velocity, at.x, at.labels, **how)[0])


def check_finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise Disagreement(f"the loss is {loss}: these steps do not train, and their times mean nothing")
    return loss


def first_step(at: Start) -> dict[str, Any]:
    """Loss, gradients and new parameters of a step without dropout, whose draws nobody shares."""
    params, recipe = copy.deepcopy(at.params), train.DEFAULT
    y, trace = net.forward(at.arch, params, at.x, threads=at.o.threads)
    loss, dy = cross_entropy(y, at.labels)
    _, grads = net.backward(trace, params, dy, input_grad=False)
    sgd.step(
        params, grads, sgd.zeros_like(params),
        rate=RATE, momentum=recipe.momentum, decay=recipe.decay, clip=recipe.clip, threads=at.o.threads,
    )  # fmt: skip
    return {"loss": loss, "grads": grads, "params": params}


def trainer(name: str, at: Start, expected: dict[str, Any]) -> tuple[Any, tuple[Any, Any]]:
    """PyTorch's trainer on a copy of the parameters, and the start's batch, whose first step gave what is expected."""
    them = peers(at.o)
    compile = name in COMPILED
    made = them.Trainer(at.arch, at.params, layout_of(name), recipe=train.DEFAULT, rate=RATE, compile=compile)
    batch = them.images(at.x, layout_of(name)), them.torch.from_numpy(at.labels)
    undropped = partial(made.step, *batch, dropout=False)
    got = {"loss": them.first(undropped) if compile else undropped(), "grads": made.grads(), "params": made.params()}
    for key, want in expected.items():
        check_same(f"training, {key} of {name}", got[key], want, **({} if key == "loss" else LOOSE))
    return made, batch


def their_step(name: str, at: Start, expected: dict[str, Any]) -> Callable[[], float]:
    """What `our_step` does, of PyTorch."""
    made, batch = trainer(name, at, expected)
    return lambda: check_finite(made.step(*batch))


def training(o: Options, *, arch: Arch = models.ZFNET, batch: int = 32) -> Iterator[Row]:
    """training steps with dropout and RMS clip: PyTorch eager, compiled"""
    at = start(arch, batch, o)
    there, absent = enter(partial(their_step, at=at, expected=first_step(at)), EAGER + COMPILED)
    times = race({OURS: our_step(at), **there}, o.repeats)
    for what, names, target in (("eager", EAGER, 2.5), ("compiled", COMPILED, 2.0)):
        what = f"{arch.name}, batch {batch}: {what}, the better layout"
        yield versus("training", what, times, names, target, show=per_second(batch), absent=absent)


def flops(o: Options, *, arch: Arch = models.ZFNET, batch: int = 32, n: int = 4096) -> Iterator[Row]:
    """FLOP/s of a training step as a share of this machine's own sgemm"""
    step = our_step(start(arch, batch, o))
    a = np.random.default_rng(o.seed).random((n, n), np.float32)
    c, blas = np.empty_like(a), ThreadpoolController()

    def sgemm() -> None:
        with blas.limit(limits=o.threads, user_api="blas"):
            np.matmul(a, a, out=c)

    times = race({OURS: step, "sgemm": sgemm}, o.repeats)
    done, peak = step_flops(arch, batch), 2 * n**3 / min(times["sgemm"])
    shares = [100 * done / seconds / peak for seconds in times[OURS]]
    yield Row(
        "flops", f"{arch.name}, batch {batch}: training step of sgemm {n}",
        ours=f"{done / median(times[OURS]) / 1e9:.0f} GFLOP/s", peer=f"sgemm at its best {peak / 1e9:.0f} GFLOP/s",
        figure=median(shares), unit="%", spread=(min(shares), max(shares)), target=70, times=times,
    )  # fmt: skip


def step_flops(arch: Arch, batch: int) -> int:
    """Forward, and twice as much backward, but for the first layer, whose input needs no gradient."""
    macs = arch.macs()
    return 2 * batch * (3 * sum(macs.values()) - next(iter(macs.values())))


def memory(o: Options, *, arch: Arch = models.ZFNET, batches: tuple[int, int, int] = (32, 64, 128)) -> Iterator[Row]:
    """peak resident memory of a training step, each in a process of its own"""
    small, middle, large = batches
    mine = {n: peak_memory(OURS, arch, n, o) for n in batches}
    theirs, absent = enter(partial(peak_memory, arch=arch, batch=large, o=o), EAGER)
    peaks = {name: [each] for name, each in {OURS: mine[large], **theirs}.items()}
    yield versus(
        "memory", f"{arch.name}, batch {large}: eager, the smaller layout", peaks, EAGER, 0.8,
        show=as_memory, absent=absent, ours_over_theirs=True, note="one run each, libraries included",
    )  # fmt: skip
    low, high = ((mine[b] - mine[a]) / (b - a) for a, b in ((small, middle), (middle, large)))
    yield Row(
        "memory", f"{arch.name}: for each further image, {middle} to {large}",
        ours=as_memory(high), peer=f"{small} to {middle}: {as_memory(low)}", figure=high / low if low > 0 else None,
        note="1 is linear" if low > 0 else "it does not grow",
        times={f"{OURS}, batch {n}": [each] for n, each in mine.items()},
    )  # fmt: skip


def peak_memory(name: str, arch: Arch, batch: int, o: Options) -> float:
    """MB that a fresh process had at its peak in two training steps."""
    if name != OURS:
        peers(o)  # what is not installed shows here
    given = {**asdict(o), "data": None}
    code = f"import benchmark as b; print(b.own_peak({name!r}, {arch.to_json()!r}, {batch}, b.Options(**{given})))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise RuntimeError(f"its process ended: {last}")
    return float(done.stdout)


def own_peak(name: str, arch_json: str, batch: int, o: Options) -> float:
    """MB of this process at its peak, after two training steps of one side."""
    at = start(Arch.from_json(arch_json), batch, o)
    step = our_step(at) if name == OURS else their_step(name, at, {})
    del at
    for _ in range(2):
        step()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss counts what the parent had before this program was loaded, and this does not
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** (2 if sys.platform == "darwin" else 1)


# ------------------------------------------------------------------------------------ the parts: what it is for

CAPTUM = ("Captum contiguous", "Captum channels_last")


def projections(at: Start, layer: str) -> tuple[deconv.Strongest, Floats, deconv.Boxes]:
    """Of each of a layer's maps the strongest activation, and its projection to pixels; with the run up to there."""
    y, trace = net.forward(at.arch, at.params, at.x, stop=layer, threads=at.o.threads)
    best = deconv.strongest(y, top=1)
    where = best.image[:, 0], np.arange(len(best.image)), best.row[:, 0], best.col[:, 0]
    return best, *deconv.project_cells(trace, at.params, y, *where)


def deconvnet(o: Options, part: str, layer: str, target: float, arch: Arch, sample: int) -> Iterator[Row]:
    """Captum is given the positions. It projects one at a time, so that a sample of the maps tells its time for all."""
    at = start(without_norm(arch), 1, o)
    best, r, boxes = projections(at, layer)
    some = spread_out(len(r), sample)
    cells = [(int(best.row[m, 0]), int(best.col[m, 0]), int(m)) for m in some]

    def theirs(name: str) -> Run:
        attribute = peers(o).deconvolution(at.arch.upto(layer), at.params, at.x, layout_of(name))
        for m, cell in zip(some, cells, strict=True):
            here, (there, inside) = np.zeros(at.arch.input, np.float32), boxes.inside(m, at.arch.input)
            here[there] = r[m][inside]
            check_same(f"{part}, {name}", best.value[m, 0] * attribute(cell), here)  # Captum starts from 1
        return lambda: [attribute(cell) for cell in cells]

    there, absent = enter(theirs, CAPTUM)
    times = race({OURS: lambda: projections(at, layer), **there}, o.repeats)
    yield versus(
        part, f"{arch.name} without norm: {layer}'s {len(r)} maps to pixels", times, CAPTUM, target,
        show=as_time, absent=absent, scale=len(r) / len(some), note=f"Captum timed on {len(some)} maps, scaled",
    )  # fmt: skip


def spread_out(n: int, sample: int) -> np.ndarray:
    """At most ``sample`` of n, evenly spread."""
    return np.unique(np.linspace(0, n - 1, sample).astype(int))


def deconv_conv5(o: Options, *, arch: Arch = models.ZFNET, layer: str = "relu5", sample: int = 16) -> Iterator[Row]:
    """forward, and the strongest activation of each conv5 map to pixels: Captum"""
    yield from deconvnet(o, "deconv-conv5", layer, 15, arch, sample)


def deconv_conv2(o: Options, *, arch: Arch = models.ZFNET, layer: str = "relu2", sample: int = 16) -> Iterator[Row]:
    """forward, and the strongest activation of each conv2 map to pixels: Captum"""
    yield from deconvnet(o, "deconv-conv2", layer, 100, arch, sample)


def occlude(
    o: Options, *, arch: Arch = models.ZFNET, square: int = 27, step: int = 7, sample: int = 128
) -> Iterator[Row]:
    """Figure 7, a square at 29 x 29 places: PyTorch with a whole run for each place"""
    at = start(arch, 1, o)
    x = at.x[0]

    def ours() -> occlusion.Sweep:
        return occlusion.slide(arch, at.params, x, square=square, step=step, threads=o.threads)

    sweep = ours()
    places = np.stack(np.meshgrid(sweep.rows, sweep.cols, indexing="ij"), axis=-1).reshape(-1, 2)
    some = np.arange(len(places)) if o.full else spread_out(len(places), sample)
    got = sweep.probabilities.reshape(len(places), -1)[some], sweep.activity.reshape(-1)[some]

    def theirs(name: str) -> Run:
        whole = {"layer": sweep.layer, "map": sweep.map, "square": square}
        run = partial(peers(o).occluder(arch, at.params, x, layout_of(name), **whole), places[some])
        for each, want in zip(got, run(), strict=True):
            check_same(f"occlusion, {name}", each, want)
        return run

    there, absent = enter(theirs, EAGER)
    times = race({OURS: ours, **there}, o.repeats)
    what = f"{arch.name}, {square} px square at {len(places)} places"
    yield versus(
        "occlusion", f"{what}: eager", times, EAGER, 3, show=as_time, absent=absent, scale=len(places) / len(some),
        note="" if o.full else f"PyTorch timed on {len(some)} places, scaled; --full runs all",
    )  # fmt: skip
    want = whole_runs(at, places[some], sweep, square)
    chosen = np.take_along_axis(want[0], sweep.labels.reshape(-1, 1)[some], axis=1)  # a label may differ in a tie
    yield Row(
        "occlusion", f"{what}: error", ours=f"{len(some)} places", peer=f"{OURS}, whole runs",
        figure=max(*map(deviation, got, want), deviation(chosen, want[0].max(axis=1, keepdims=True))),
        unit="", target=1e-5, at_most=True, note="probabilities, labels, activity",
    )  # fmt: skip


def whole_runs(at: Start, places: np.ndarray, sweep: occlusion.Sweep, square: int) -> tuple[Floats, Floats]:
    """Probabilities and activity of the sweep's map, with the whole network run on each occluded image."""
    probabilities, activity = [], []
    for some in np.array_split(places, -(-len(places) // 32)):
        occluded = np.repeat(at.x, len(some), axis=0)
        for each, (row, col) in zip(occluded, some, strict=True):
            each[row : row + square, col : col + square] = 0
        run = partial(net.predict, at.arch, at.params, occluded, threads=at.o.threads)
        probabilities.append(softmax(run()))
        activity.append(run(stop=sweep.layer)[..., sweep.map].sum(axis=(1, 2)))
    return np.concatenate(probabilities), np.concatenate(activity)


def top9(o: Options, *, arch: Arch = models.ZFNET) -> Iterator[Row]:
    """one pass that keeps all maps' nine strongest activations: the same pass without"""
    side = train.image_side(arch)
    checkpoint = Checkpoint(arch, start(arch, 1, o).params, np.full((side, side, 3), 128, np.float32), scale=1 / 64)
    data = in_memory(pictures(o.images, side, side, seed=o.seed))
    shapes = arch.shapes()
    layers = tuple(each.name for each in arch.layers if isinstance(each, Relu) and len(shapes[each.name]) == 3)

    def run(watch: features.Watch | None) -> None:
        for _ in features.stream(checkpoint, data, layer=layers[-1], watch=watch, threads=o.threads):
            pass

    times = race({OURS: lambda: run(deconv.Strongests(layers).watch), "without": lambda: run(None)}, o.repeats)
    yield versus(
        "top9", f"{arch.name}: {len(data)} decoded images, {layers[0]} to {layers[-1]}", times, ["without"], 1.1,
        show=per_second(len(data)), absent={}, ours_over_theirs=True,
        note="" if len(data) >= 2000 else "meant for --images 2000; the first ones cost most",
    )  # fmt: skip


# ------------------------------------------------------------------------------------- the parts: photographs

LOADER = "DataLoader"


def jpeg(o: Options, *, images: int = 512, side: int = 256, size: int = 224, batch: int = 64) -> Iterator[Row]:
    """decode, resize, crop and subtract the mean: Pillow under PyTorch's DataLoader"""
    mean = np.full((side, side, 3), GREY, np.float32)
    with photographs(o, images, side) as (data, files, whence):

        def ours() -> Iterator[loader.Batch]:
            return loader.in_order(data, batch=batch, size=size, mean=mean, scale=1.0, threads=o.threads)

        def theirs(name: str) -> Run:
            them = peers(o)
            made = them.Photographs(files, data.labels, side=side, size=size, colour=mean[0, 0], scale=1.0)
            batches = them.batches(made, batch=batch, workers=o.threads)
            for (x, labels, _), (crops, theirs) in zip(ours(), batches, strict=True):
                check_same("jpeg", np.moveaxis(crops.numpy(), 1, 3), x)
                check_same("jpeg, labels", theirs, labels)
            return lambda: exhaust(batches)

        there, absent = enter(theirs, [LOADER])
        times = race({OURS: lambda: exhaust(ours()), **there}, o.repeats)
        what = f"{whence}, to {size} px"
        yield versus("jpeg", what, times, [LOADER], 1.0, show=per_second(len(data)), absent=absent)


def exhaust(batches: Any) -> None:
    for _ in batches:
        pass


def small(o: Options, *, arch: Arch = models.SMALL, batch: int = 64) -> Iterator[Row]:
    """training `small` on JPEGs, decoding and augmenting: PyTorch with a DataLoader"""
    if o.data is None:
        yield Row("small", f"{arch.name}: training on JPEGs", target=1.5, note="it needs --data")
        return
    how = {"side": train.image_side(arch), "size": arch.side}
    whole, _ = datasets.load(o.data, side=how["side"], seed=o.seed, cache_bytes=0)
    data = whole.first(o.steps * batch)
    images = min(len(data), batch * loader.batch_count(len(data), batch))
    arch, recipe = models.with_classes(arch, len(data.classes)), train.DEFAULT
    mean = np.full((how["side"], how["side"], 3), GREY, np.float32)

    def crops() -> Iterator[loader.Batch]:
        return loader.minibatches(
            data, batch=batch, size=arch.side, augment=recipe.augment, mean=mean, scale=recipe.scale,
            rng=np.random.default_rng(o.seed), threads=o.threads,
        )  # fmt: skip

    x, labels, _ = next(crops())
    at = replace(start(arch, 1, o), x=x, labels=labels)
    expected = first_step(at)
    rng = np.random.default_rng(o.seed)  # what the loader draws: first the order, then the crops
    order = rng.permutation(len(data))
    how |= {"draws": recipe.augment.draw(len(order), **how, rng=rng), "colour": mean[0, 0], "scale": recipe.scale}

    def theirs(name: str) -> Run:
        them, (made, _) = peers(o), trainer(name, at, expected)
        files = [o.data / data.names[i] for i in order[:images]]
        batches = them.batches(them.Photographs(files, data.labels[order], **how), batch=batch, workers=o.threads)
        first_x, first_labels = next(iter(batches))
        check_same("small, labels", first_labels, labels)
        # Pillow cuts fractions of a grey level off at each step, and clips what is too bright.
        off = np.median(np.abs(np.moveaxis(first_x.numpy(), 1, 3) - x)) / recipe.scale
        if off > 3:
            raise Disagreement(f"small: half of the pixels differ by {off:.1f} grey levels or more")
        return lambda: [check_finite(made.step(them.laid_out(x, layout_of(name)), y)) for x, y in batches]

    there, absent = enter(theirs, EAGER)
    velocity, rng = sgd.zeros_like(at.params), np.random.default_rng(o.seed)
    step = partial(train.step, recipe=recipe, rate=RATE, rng=rng, threads=o.threads)
    ours: Run = lambda: [check_finite(step(arch, at.params, velocity, x, y)[0]) for x, y, _ in crops()]  # noqa: E731
    times = race({OURS: ours, **there}, o.repeats)
    what = f"{arch.name}, {len(data.classes)} classes: {images} of {len(whole)} JPEGs"
    yield versus("small", what, times, EAGER, 1.5, show=per_second(images), absent=absent)


# -------------------------------------------------------------------------------------- the parts: refnet alone


def imports(o: Options) -> Iterator[Row]:
    """starting Python with refnet: with numpy and h5py alone"""
    base = "import numpy, h5py"
    codes = {OURS: f"{base}; from refnet import models, net, deconv, weights", base: base}
    begin = partial(subprocess.run, cwd=ROOT, check=True)
    times = race({name: partial(begin, [sys.executable, "-c", code]) for name, code in codes.items()}, o.repeats)
    extra = [1000 * (ours - theirs) for ours, theirs in zip(times[OURS], times[base], strict=True)]
    yield Row(
        "imports", "models, net, deconv, weights: time added", as_time(median(times[OURS])),
        f"{base}: {as_time(median(times[base]))}", figure=median(extra), unit="ms", spread=(min(extra), max(extra)),
        target=80, at_most=True, times=times,
    )  # fmt: skip


def growth(
    o: Options, *, arch: Arch = models.ZFNET, batches: Sequence[int] = (8, 16, 32, 64, 128, 256), batch: int = 32
) -> Iterator[Row]:
    """inference: time per image as the batch grows, and the gain of more threads"""
    at = start(arch, max(batches), o)

    def predict(n: int, threads: int) -> Run:
        return lambda: net.predict(arch, at.params, at.x[:n], threads=threads)

    times = race({f"batch {n}": predict(n, o.threads) for n in batches}, o.repeats)
    each = {n: [seconds / n for seconds in times[f"batch {n}"]] for n in batches}
    medians = {n: median(seconds) for n, seconds in each.items()}
    slow, fast = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    ratios = [max(turn) / min(turn) for turn in zip(*each.values(), strict=True)]
    yield Row(
        "growth", f"{arch.name}: time per image, batches of {min(batches)} to {max(batches)}",
        f"{as_time(medians[slow])} at {slow}", f"{as_time(medians[fast])} at {fast}",
        figure=medians[slow] / medians[fast], spread=(min(ratios), max(ratios)), target=1.15, at_most=True, times=times,
    )  # fmt: skip
    counts = sorted({1, cores(), *(2**k for k in range(cores().bit_length()))})
    times = race({f"{n}": predict(batch, n) for n in counts}, o.repeats)
    what = f"{arch.name}, batch {batch}: "
    if cores() == 1:
        yield Row("growth", f"{what}2 threads", target=1.8, note="there is one core", times=times)
    for n in counts[1:]:
        gains = [one / many for one, many in zip(times["1"], times[f"{n}"], strict=True)]
        yield Row(
            "growth", f"{what}{n} threads", as_time(median(times[f"{n}"])), f"1 thread {as_time(median(times['1']))}",
            figure=median(times["1"]) / median(times[f"{n}"]), spread=(min(gains), max(gains)),
            target=1.8 if n == 2 else None, times={name: times[name] for name in ("1", f"{n}")},
        )  # fmt: skip


PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "inference": inference,
    "training": training,
    "flops": flops,
    "memory": memory,
    "deconv-conv5": deconv_conv5,
    "deconv-conv2": deconv_conv2,
    "occlusion": occlude,
    "top9": top9,
    "jpeg": jpeg,
    "imports": imports,
    "small": small,
    "growth": growth,
}


# -------------------------------------------------------------------------------------------------- the report

COLUMNS = {"part": 13, "what": 52, "ours": 19, "peer": 38, "ratio": 9, "spread": 15, "target": 10, "verdict": 0}


def number(figure: float, unit: str) -> str:
    match unit:
        case "x":
            return f"{figure:.2f}x"
        case "":
            return f"{figure:.0e}"
    return f"{figure:.0f} {unit}"


def cells(row: Row) -> list[str]:
    """A row as text, a cell for each of the columns."""
    ratio = "" if row.figure is None else number(row.figure, row.unit)
    spread = "" if row.spread is None else " to ".join(number(each, row.unit).removesuffix("x") for each in row.spread)
    target = "" if row.target is None else f"{'<=' if row.at_most else '>='} {number(row.target, row.unit)}"
    return [row.part, row.what, row.ours, row.peer, ratio, spread, target, row.verdict]


def line(texts: Sequence[str], *, markdown: bool) -> str:
    if markdown:
        return f"| {' | '.join(texts)} |"
    return "  ".join(text.ljust(width) for text, width in zip(texts, COLUMNS.values(), strict=True)).rstrip()


def surroundings() -> dict[str, Any]:
    """Versions, machine and date: what one must know to compare two reports."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages = ("numpy", "pillow", "h5py", "torch", "captum", "onnx", "onnxruntime")
    blas = [info for info in threadpool_info() if info["user_api"] == "blas"]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "blas": [f"{info['internal_api']} {info['version']} {info.get('architecture', '')}".strip() for info in blas],
        "cpu": cpu_name(),
        "cores": cores(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure (default: everything in --list)")
    parser.add_argument("--list", action="store_true", help="list the parts and what they are measured against")
    parser.add_argument("--threads", type=int, help="on both sides (default: all cores)")
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="turns of each contender (default 7)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images, crops, dropout (default 0)")
    parser.add_argument("--data", type=Path, help="folder of classes of JPEGs, for jpeg and small")
    parser.add_argument("--images", type=int, default=Options.images, help="of top9 (default 256)")
    parser.add_argument("--steps", type=int, default=Options.steps, help="of small in each turn (default 40)")
    parser.add_argument("--full", action="store_true", help="occlusion: PyTorch runs all places, not a sample")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "benchmark.json", help="default out/benchmark.json")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args()
    _cli.check_counts(args, "threads", "repeats", "images", "steps")
    if unknown := [name for name in args.parts if name not in PARTS]:
        raise ValueError(f"there is no part {', '.join(unknown)}; there are {' '.join(PARTS)}")
    if args.list:
        for name, part in PARTS.items():
            print(f"{name:<14}{part.__doc__}")
        return
    if args.data is not None and not args.data.is_dir():
        raise ValueError(f"{args.data}: there is no such folder")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    o = Options(args.threads or cores(), args.repeats, args.seed, args.data, args.images, args.steps, args.full)
    report = {**surroundings(), "options": {**asdict(o), "data": str(o.data or "")}, "rows": []}
    print(line(list(COLUMNS), markdown=args.markdown), flush=True)
    if args.markdown:
        print(line(["---"] * len(COLUMNS), markdown=True), flush=True)
    for name in args.parts or PARTS:
        for row in PARTS[name](o):
            print(line(cells(row), markdown=args.markdown), flush=True)
            report["rows"].append({**asdict(row), "verdict": row.verdict})
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    _cli.run(main)
