"""The parts of the benchmark that a CPU runs."""

import compileall
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _race import (
    COMPILED,
    EAGER,
    OURS,
    RATE,
    Disagreement,
    Options,
    Row,
    Run,
    Start,
    as_memory,
    as_time,
    check_finite,
    check_same,
    deconvnet,
    deviation,
    enter,
    first_step,
    layout_of,
    our_step,
    peers,
    per_second,
    pictures,
    race,
    spread_out,
    start,
    step_flops,
    their_step,
    trainer,
    versus,
)  # fmt: skip
from PIL import Image
from threadpoolctl import ThreadpoolController

from refnet import datasets, deconv, features, loader, models, net, occlusion, sgd, train
from refnet.arch import Arch, Relu
from refnet.backend import cores
from refnet.datasets import Dataset
from refnet.images import Floats, Pixels
from refnet.ops.loss import softmax
from refnet.weights import Checkpoint

ROOT = Path(__file__).resolve().parent.parent

GREY = 118.0  # the mean that photographs are read with, for all pixels and channels
ONNX = "ONNX Runtime"
LOADER = "DataLoader"


def in_memory(pixels: Pixels) -> Dataset:
    """A data set that has been decoded beforehand, of one class."""
    names = [f"picture {i}" for i in range(len(pixels))]
    return Dataset(("any",), np.zeros(len(pixels), np.int64), names, pixels.shape[1], lambda i: pixels[i])


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
    code = f"import _bench_cpu as b; print(b.own_peak({name!r}, {arch.to_json()!r}, {batch}, b.Options(**{given})))"
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


def imports(o: Options) -> Iterator[Row]:
    """starting Python with refnet: with numpy and h5py alone"""
    compileall.compile_dir(ROOT / "refnet", quiet=2)  # as pip did for numpy and h5py
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
