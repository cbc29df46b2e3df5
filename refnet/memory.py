"""How much memory a training step needs, and how much there is."""

import math
from collections.abc import Sequence
from pathlib import Path

from refnet import loader, net
from refnet.arch import Arch, Branch, Conv, Dropout, Flatten, Layer, Norm, Pool, Relu, Shape, SpatialNorm, flat
from refnet.backend import cores
from refnet.layers import pooled_first

_FLOAT = 4
_MANY = 1 << 12  # images: beyond, a batch has more slices, and no larger ones
_ROUNDING = 1.3  # the arena rounds sizes up, and keeps blocks for other sizes than the next one's


def training_bytes(arch: Arch, batch: int, *, threads: int | None = None) -> int:
    """Bytes that a float32 training step on ``batch`` images holds at its peak: an estimate, good to about 20 %.

    Weights, gradients and velocities; the trace; what convolutions make of the slices under way; images made ahead.
    """
    values = _kept(pooled_first(arch.layers), arch.shapes())
    images = (2 + loader.AHEAD) * math.prod(arch.input)  # this batch, the next one, and those made ahead
    scratch = max(
        min(threads or cores(), len(stage.slices)) * stage.slices[0].stop * _scratch(arch, stage)
        for stage in net.stages(arch, min(max(batch, 1), _MANY))
    )
    return int(_FLOAT * (3 * arch.param_count() + _ROUNDING * (batch * (values + images) + scratch)))


def _kept(layers: Sequence[Layer], shapes: dict[str, Shape]) -> float:
    """Values that the trace of a training run keeps of an image's way through layers in a row."""
    values = 0.0
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        size = math.prod(shapes[layer.name])
        match layer:
            case Relu() | Flatten():
                pass  # overwrites its input, or is it
            case Conv() | Branch() if isinstance(following, Pool):
                pass  # nobody needs the maps once they are pooled
            case Pool():
                values += 1.25 * size  # and a byte for each switch
            case Norm() | SpatialNorm() | Dropout():
                values += 2 * size  # and the scale or the mask
            case _:
                values += size
        if isinstance(layer, Branch):
            values += sum(_kept(path, shapes) for path in layer.paths)
    return values


def _scratch(arch: Arch, stage: net.Stage) -> int:
    """Values that are in use for each image of a slice: windows or tiles, and what goes from layer to layer."""
    layers, shapes = list(flat(stage.layers)), arch.shapes()
    return net.scratch_values(arch, layers) + 4 * max(math.prod(shapes[layer.name]) for layer in layers)


def available_bytes() -> float:
    """Bytes that this process may still take: of the machine or of its control group; infinite where unknown."""
    free = math.inf
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * float(lines["MemAvailable"].split()[0])
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, float(limit) - used)
    except (OSError, KeyError, ValueError):
        return free


def check_batch(arch: Arch, batch: int, *, threads: int | None = None) -> int:
    """`training_bytes`, if they are there.

    Raises
    ------
    ValueError
        If they are not: names a batch that fits.
    """
    needs, there = training_bytes(arch, batch, threads=threads), available_bytes()
    if needs <= there:
        return needs
    fits = batch
    while fits and training_bytes(arch, fits, threads=threads) > there:
        fits //= 2
    advice = f"a batch of {fits} fits" if fits else "not even one image fits"
    raise ValueError(
        f"a training step of {arch.name} on {batch} images needs about {needs / 1e9:.1f} GB of memory, "
        f"{there / 1e9:.1f} GB are free; {advice}"
    )
