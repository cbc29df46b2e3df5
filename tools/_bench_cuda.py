"""The parts of the benchmark on a GPU: refnet on CuPy beside PyTorch with cuDNN, on one card at one precision.

Device work is asynchronous, so a turn is several runs and ends when the device has done them all: launches count as
they do in life. The tests run these parts on a CPU.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _race import (
    COMPILED,
    EAGER,
    LOOSE,
    OURS,
    RATE,
    Options,
    Row,
    Run,
    Start,
    as_memory,
    as_time,
    check_same,
    deconvnet,
    enter,
    first_step,
    layout_of,
    our_step,
    peers,
    per_second,
    race,
    settled,
    start,
    step_flops,
    their_step,
    versus,
)  # fmt: skip

from refnet import layers, models, net, sgd
from refnet.arch import Arch, Conv, Dropout, Layer, Linear, Norm, Pool, Relu
from refnet.backend import precision, to_device, to_host

RUNS = 10  # of a turn
# Of logits, and of a first step's results, in their norm: tf32 keeps 10 bits of each factor, and then other values win
# a pooling region, or none pass a rectification.
NEAR = {"fp32": {"tolerance": 1e-3, "order": 2}, "tf32": {"tolerance": 2e-2, "order": 2}}
FIRST_STEP = {"fp32": LOOSE, "tf32": {"tolerance": 0.2, "order": 2}}


def device_name() -> str:
    """The GPU's name."""
    import cupy

    name: bytes = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    return name.decode()


def turn(run: Run, o: Options) -> Run:
    """Several runs, and the wait for the device."""

    def several() -> None:
        for _ in range(RUNS):
            run()
        settled(None, o)

    return several


def each_precision(o: Options) -> Iterator[str]:
    """The precisions asked for, each in force on both sides while it is dealt with."""
    for name in o.precisions:
        with precision(name):
            with suppress(ImportError):  # the rows say so
                peers(o).set_precision(name)
            yield name
        free()


def free() -> None:
    """Give memory that nobody uses back to the device."""
    if cupy := sys.modules.get("cupy"):
        cupy.get_default_memory_pool().free_all_blocks()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()  # nothing where there is no device


def inference(
    o: Options, *, arch: Arch = models.ZFNET, batch: int = 128, names: tuple[str, ...] = EAGER, what: str = "eager"
) -> Iterator[Row]:
    """logits of a batch of 128: PyTorch eager, the better layout"""
    at = start(arch, batch, o)
    for how in each_precision(o):
        mine = at.on_device()
        expected = to_host(net.predict(arch, mine.params, mine.x))

        def theirs(name: str, how: str = how, expected: Any = expected) -> Run:
            compile = name in COMPILED
            run = peers(o).predictor(arch, at.params, at.x, layout_of(name), compile=compile, device=o.device)
            check_same(f"inference, {name}", run().cpu(), expected, **NEAR[how])
            return turn(run, o)

        there, absent = enter(theirs, names)
        ours = turn(partial(net.predict, arch, mine.params, mine.x), o)
        yield versus(
            "inference", f"{arch.name}, batch {batch}, {how}: {what}", race({OURS: ours, **there}, o.repeats), names,
            1.0 if names is EAGER else None, show=per_second(RUNS * batch), absent=absent,
        )  # fmt: skip


def training(
    o: Options, *, arch: Arch = models.ZFNET, batch: int = 128, names: tuple[str, ...] = EAGER, what: str = "eager"
) -> Iterator[Row]:
    """training steps with dropout and RMS clip: PyTorch eager, the better layout; and their share of GEMM's speed"""
    at = start(arch, batch, o)
    for how in each_precision(o):
        expected = first_step(at)

        def theirs(name: str, how: str = how, expected: Any = expected) -> Run:
            return turn(their_step(name, at, expected, **FIRST_STEP[how]), o)

        there, absent = enter(theirs, names)
        times = race({OURS: turn(our_step(at), o), **there}, o.repeats)
        yield versus(
            "training", f"{arch.name}, batch {batch}, {how}: {what}", times, names,
            1.0 if names is EAGER else None, show=per_second(RUNS * batch), absent=absent,
        )  # fmt: skip
        if names is EAGER:
            peak, reached = gemm_rate(o, 8192), RUNS * step_flops(arch, batch) / median(times[OURS])
            yield Row(
                "training", f"{arch.name}, batch {batch}, {how}: share of GEMM 8192", f"{reached / 1e12:.1f} TFLOP/s",
                f"{peak / 1e12:.1f} TFLOP/s", figure=100 * reached / peak, unit="%",
                note="operations as the definition counts them; Winograd's are fewer",
            )  # fmt: skip


def compiled(o: Options, *, arch: Arch = models.ZFNET, batch: int = 128) -> Iterator[Row]:
    """inference and training steps: torch.compile, the higher mark"""
    for part in (inference, training):
        yield from part(o, arch=arch, batch=batch, names=COMPILED, what="compiled")


def deconv_conv5(o: Options, *, arch: Arch = models.ZFNET, layer: str = "relu5", sample: int = 16) -> Iterator[Row]:
    """forward, and the strongest activation of each conv5 map to pixels: Captum"""
    for _ in each_precision(replace(o, precisions=("fp32",))):
        yield from deconvnet(o, "deconv-conv5", layer, 10, arch, sample)


# ------------------------------------------------------------------------------------------------------- memory


def memory(o: Options, *, arch: Arch = models.ZFNET, batch: int = 128) -> Iterator[Row]:
    """device memory that three training steps take, each in a process of its own: PyTorch eager"""
    mine = own_memory(OURS, arch, batch, o)
    theirs, absent = enter(partial(own_memory, arch=arch, batch=batch, o=o), EAGER)
    peaks = {name: [each] for name, each in {OURS: mine, **theirs}.items()}
    yield versus(
        "memory", f"{arch.name}, batch {batch}: eager, the smaller layout", peaks, EAGER, 1.2,
        show=as_memory, absent=absent, ours_over_theirs=True, note="context and libraries included",
    )  # fmt: skip


def own_memory(name: str, arch: Arch, batch: int, o: Options) -> float:
    """MB less of the device's memory that are free while a fresh process holds what its steps have taken."""
    if name != OURS:
        peers(o)  # what is not installed shows here
    free()
    before = device_free(o)
    given = f"{name!r}, {arch.to_json()!r}, {batch}, b.Options(**{ {**asdict(o), 'data': None} })"
    code = f"import _bench_cuda as b; print(b.free_after_steps({given}))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise RuntimeError(f"its process ended: {last}")
    return before - float(done.stdout)


def free_after_steps(name: str, arch_json: str, batch: int, o: Options) -> float:
    """MB that are free on the device after three training steps of one side in this process."""
    at = start(Arch.from_json(arch_json), batch, o)
    step = our_step(at) if name == OURS else their_step(name, at, {})
    for _ in range(3):
        step()
    return device_free(settled(o, o))


def device_free(o: Options) -> float:
    """MB that are free on the device; on a CPU, of the tests, none."""
    if o.device != "cuda":
        return 0.0
    import cupy

    return float(cupy.cuda.runtime.memGetInfo()[0]) / 1e6


# --------------------------------------------------------------------------------------- operations and their floors


def operations(o: Options, *, arch: Arch = models.ZFNET, batch: int = 128, n: int = 8192) -> Iterator[Row]:
    """each operation of a training step: the time that its bytes or its multiplications take at the least"""
    at = start(arch, batch, o)
    for how in each_precision(o):
        rates = copy_rate(o, 1 << 28 if o.device == "cuda" else 1 << 20), gemm_rate(o, n)
        what = f"{how}: {rates[0] / 1e12:.2f} TB/s copied, {rates[1] / 1e12:.1f} TFLOP/s multiplied"
        yield Row("operations", what, note="the limits below")
        total, least = 0.0, 0.0
        for name, run, moved, flops in walked(at.on_device()):
            seconds = elapsed(run, o)
            floor = max(moved / rates[0], flops / rates[1])
            total, least = total + seconds, least + floor
            bound = "bytes" if moved / rates[0] > flops / rates[1] else "FLOP"
            yield Row(
                "operations", f"{how}: {name}", as_time(seconds), f"{as_time(floor)} ({bound})",
                figure=seconds / floor, times={OURS: [seconds]},
            )  # fmt: skip
        yield Row(
            "operations", f"{how}: all", as_time(total), as_time(least), figure=total / least, times={OURS: [total]}
        )


def walked(at: Start) -> Iterator[tuple[str, Run, float, float]]:
    """Each operation of a step as the walks call it, in their order: name, call, bytes to move, FLOPs to do."""
    arch, params, below, h = at.arch, at.params, at.arch.input_shapes(), at.x
    velocity, macs = sgd.zeros_like(params), arch.macs()
    steps = []
    for layer in arch.layers:
        p = params.get(layer.name, {})
        mask = h * 0 + 2 if isinstance(layer, Dropout) else None
        up = partial(layers.forward, layer, p, h, mask=mask, keep=True, out=None, threads=at.o.threads)
        y, kept = up()
        flops = 2 * len(h) * macs.get(layer.name, 0)
        yield f"{layer.name} forward", up, moved("forward", layer, h, y, p), flops
        steps.append((layer, p, kept, h, y, flops))
        h = y
    while steps:
        layer, p, kept, x, y, flops = steps.pop()
        if isinstance(layer, Conv | Linear):
            yield (
                f"{layer.name} gradients", partial(layers.grads, layer, p, kept, y, threads=at.o.threads),
                moved("gradients", layer, x, y, p), flops,
            )  # fmt: skip
        if steps:
            down = partial(layers.back, layer, p, kept, y, below=below[layer.name], rules=layers.GRADIENT,
                           threads=at.o.threads)  # fmt: skip
            yield f"{layer.name} back", down, moved("back", layer, x, y, p), flops
    grads = {name: {key: a * 0 for key, a in each.items()} for name, each in params.items()}
    update = partial(sgd.step, params, grads, velocity, rate=RATE, decay=5e-4, clip=0.1, threads=at.o.threads)
    yield "update and clip", update, 20.0 * arch.param_count(), 0.0


def moved(way: str, layer: Layer, x: Any, y: Any, p: dict[str, Any]) -> float:
    """Bytes that must be read or written, each array once."""
    weights = sum(a.nbytes for a in p.values())
    match layer:
        case Pool():
            return float(x.nbytes + y.nbytes + y.size)  # and the switches
        case Norm():
            return float((3 if way == "forward" else 4) * y.nbytes)
        case Relu():
            return float((2 if way == "forward" else 3) * y.nbytes)
        case Dropout():
            return float(3 * y.nbytes)
    return float(x.nbytes + y.nbytes + weights)


def elapsed(run: Run, o: Options) -> float:
    """Median seconds of a run on the device, by its own clock."""
    run()
    if o.device != "cuda":
        return median(clocked(run) for _ in range(o.repeats))
    import cupy

    seconds = []
    for _ in range(o.repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(cupy.cuda.get_elapsed_time(begin, end) / 1000)
    return median(seconds)


def clocked(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def copy_rate(o: Options, values: int) -> float:
    """Bytes per second of a large copy on the device, read and written."""
    a = to_device(np.ones(values, np.float32), o.device)
    b = a.copy()
    return 2 * a.nbytes / elapsed(partial(b.__setitem__, slice(None), a), o)


def gemm_rate(o: Options, n: int) -> float:
    """FLOP/s of a product of two n x n matrices at the precision in force."""
    a = to_device(np.random.default_rng(o.seed).random((n, n), np.float32), o.device)
    out = a.copy()
    return 2 * n**3 / elapsed(partial(product(o), a, a, out), o)


def product(o: Options) -> Callable[..., Any]:
    if o.device != "cuda":
        return lambda a, b, out: np.matmul(a, b, out=out)
    from refnet.kernels.launch import product

    return product


PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "inference": inference,
    "training": training,
    "deconv-conv5": deconv_conv5,
    "memory": memory,
    "operations": operations,
    "compiled": compiled,
}
