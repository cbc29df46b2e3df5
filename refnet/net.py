"""Run a network forward, and walk its trace back under a table of rules.

Forward, each layer keeps just what its way back needs; that is the trace. The way back is one walk for training,
for the deconvnet and for guided backprop (`refnet.layers.back`).

Layers of maps run on a few images at a time, so that these stay in cache, and several such slices at once; from the
first fully connected layer on, whose weights are large, the whole batch runs at once and the weights are cut.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnet import parallel
from refnet.arch import Arch, Conv, Dropout, Layer, Linear, Params, Shape
from refnet.backend import Array, array_module, empty, to_device, to_host, zeros
from refnet.layers import GRADIENT, Kept, Rules, back, grads
from refnet.layers import forward as forward_layer
from refnet.ops.dropout import dropout_mask

# Called as watch(layer, images, y) with a layer's output for a slice of the batch.
Watch = Callable[[str, slice, Array], None]
# Called as collect(layer, index of the slice, dw, db).
Collect = Callable[[str, int, Array, Array], None]


@dataclass(frozen=True)
class Piece:
    """What one slice of the batch left behind: per layer, the arrays that its way back needs."""

    images: slice
    kept: dict[str, Kept]


@dataclass(frozen=True)
class Trace:
    """What a forward run leaves: the layers up to where it stopped, and their arrays.

    ``maps`` holds the layers of maps in slices of the batch, ``units`` the rest for the whole batch at once.
    The arrays are the trace's own, but for ``x``, which is the caller's.
    """

    arch: Arch
    n: int
    maps: tuple[Piece, ...]
    units: Piece
    like: Array  # an empty array of the trace's dtype and backend
    threads: int | None


def init_params(arch: Arch, *, rng: np.random.Generator, dtype: Any = "float32", init: str = "he") -> Params:
    """Weights drawn anew, biases 0.

    Parameters
    ----------
    arch : the network
    rng : source of the draws, made in float64 layer by layer, so that both dtypes see the same ones
    dtype : float32 or float64
    init : "he": N(0, 2 / fan-in), which trains small nets from scratch, but N(0, 0.01^2) in the first layer, so
        that its filters show what they learnt and not what was drawn;
        "paper": N(0, 0.01^2) everywhere, our reading of "initialized to 10^-2" (section 3)

    Returns
    -------
    dict
        {"conv1": {"w": (7, 7, 3, 96), "b": (96,)}, ...}

    Raises
    ------
    ValueError
        If ``init`` is neither.
    """
    if init not in ("he", "paper"):
        raise ValueError(f"init is {init!r}, it needs he or paper")
    params: Params = {}
    for name, shapes in arch.param_shapes().items():
        fan_in = int(np.prod(shapes["w"][:-1]))
        sigma = 0.01 if init == "paper" or not params else np.sqrt(2 / fan_in)
        w = rng.standard_normal(shapes["w"]) * sigma
        params[name] = {"w": w.astype(dtype), "b": np.zeros(shapes["b"], dtype)}
    return params


def on_device(params: Params, device: str) -> Params:
    """``params`` on "cpu" (unchanged) or "cuda" (copied)."""
    return {name: {key: to_device(a, device) for key, a in layer.items()} for name, layer in params.items()}


def on_host(params: Params) -> Params:
    """``params`` as NumPy arrays."""
    return {name: {key: to_host(a) for key, a in layer.items()} for name, layer in params.items()}


def predict(
    arch: Arch,
    params: Params,
    x: Array,
    *,
    stop: str | None = None,
    watch: Watch | None = None,
    threads: int | None = None,
) -> Array:
    """Output of the layer ``stop`` (default: the last) in inference; nothing is kept.

    Parameters
    ----------
    x : (N, H, W, C) images less the mean, scaled as in training; float32 or float64 as the parameters
    stop : name of the layer to stop after
    watch : called as watch(layer, images, y) with the output of every layer for a slice of the batch, from several
        threads at once; ``y`` must be neither kept nor changed
    threads : number of threads (default: all cores); the result does not depend on it

    Returns
    -------
    y : (N, *shape of the layer)

    Raises
    ------
    ValueError
        If the layer does not exist, or shapes do not fit.
    TypeError
        If dtypes or backends differ.
    """
    arch = arch if stop is None else arch.upto(stop)
    return _run(arch, params, x, keep=False, masks={}, watch=watch, threads=threads)[0]


def forward(
    arch: Arch,
    params: Params,
    x: Array,
    *,
    stop: str | None = None,
    rng: np.random.Generator | None = None,
    threads: int | None = None,
) -> tuple[Array, Trace]:
    """Like `predict`, but also returns the trace that `backward` and the deconvnet walk back.

    With ``rng`` it is a training run: dropout draws its masks from it. ``x`` must not be written to while
    the trace is used; ``y`` may. Raises as `predict` does.
    """
    arch = arch if stop is None else arch.upto(stop)
    shapes, masks = arch.shapes(), {}
    if rng is not None:
        for layer in arch.layers:
            if isinstance(layer, Dropout):
                mask = dropout_mask((len(x), *shapes[layer.name]), rate=layer.rate, rng=rng, dtype=x.dtype)
                masks[layer.name] = mask if array_module(x) is np else to_device(mask, "cuda")
    y, maps, units = _run(arch, params, x, keep=True, masks=masks, watch=None, threads=threads)
    return y, Trace(arch, len(x), maps, units, x[:0], threads)


def backward(trace: Trace, params: Params, dy: Array, *, input_grad: bool = True) -> tuple[Array | None, Params]:
    """Gradients with respect to the input and all parameters.

    Parameters
    ----------
    trace : of `forward`, with the same ``params``
    dy : gradient of the loss with respect to the trace's last output, and of its shape
    input_grad : False leaves ``dx`` out (None) and saves conv1's transposed filtering

    Returns
    -------
    dx : (N, H, W, C) or None
    grads : like ``params``, for the layers of the trace

    Raises
    ------
    ValueError
        If ``dy`` is not like the trace's last output, or a parameter is missing.
    TypeError
        If dtypes or backends differ.
    """
    sums: dict[str, dict[str, parallel.OrderedSum]] = {
        name: {"w": parallel.OrderedSum(), "b": parallel.OrderedSum()} for name in trace.arch.param_shapes()
    }

    def collect(layer: str, index: int, dw: Array, db: Array) -> None:
        sums[layer]["w"].add(index, dw)
        sums[layer]["b"].add(index, db)

    dx = back_through(trace, params, dy, rules=GRADIENT, collect=collect, to_input=input_grad)
    totals = {name: {key: each.total for key, each in layer.items()} for name, layer in sums.items()}
    if not trace.n:  # no slice gave anything
        totals = {name: {key: zeros(a.shape, a) for key, a in params[name].items()} for name in sums}
    return dx, totals


def back_through(
    trace: Trace,
    params: Params,
    r: Array,
    *,
    rules: Rules,
    image: Array | None = None,
    collect: Collect | None = None,
    to_input: bool = True,
) -> Array | None:
    """Walk the trace back from its last output to the input, under ``rules``.

    Parameters
    ----------
    trace : of `forward`, with the same ``params``
    r : (S, *shape of the last output) signals to send down
    rules : what relu and normalisation do
    image : (S,) integers, the image of the trace that each signal belongs to; default: signal i to image i
    collect : called as collect(layer, index of the slice, dw, db) at every layer with weights; needs ``image`` None
    to_input : False stops at the first layer's weights and returns None

    Returns
    -------
    r : (S, H, W, C)

    Raises
    ------
    ValueError
        If shapes do not fit or an image is out of range.
    TypeError
        If dtypes or backends differ.
    """
    arch, shapes = trace.arch, trace.arch.shapes()
    last = shapes[arch.layers[-1].name]
    if r.shape[1:] != last or (image is None and len(r) != trace.n):
        raise ValueError(f"the signal is {r.shape}, but {arch.layers[-1].name} of the trace is {(trace.n, *last)}")
    if image is not None and (len(image) != len(r) or (len(r) and not 0 <= min(image) <= max(image) < trace.n)):
        raise ValueError(f"{len(r)} signals for images {list(image)[:9]}: one for each, from 0 to {trace.n - 1}")
    array_module(r, trace.like)  # raises where backends differ
    if r.dtype != trace.like.dtype:
        raise TypeError(f"the signal is {r.dtype}, but the trace {trace.like.dtype}")
    layers = list(zip(arch.layers, [arch.input, *shapes.values()], strict=False))  # each with its input's shape
    split = _first_linear(arch)

    def walk(
        part: list[tuple[Layer, Shape]], index: int, kept: dict[str, Kept], r: Array, threads: int | None
    ) -> Array:
        for layer, below in reversed(part):
            with _naming(layer):
                if collect is not None and isinstance(layer, Conv | Linear):
                    collect(layer.name, index, *grads(layer, kept[layer.name], r, threads=threads))
                if layer is arch.layers[0] and not to_input:
                    return None
                p = params.get(layer.name, {})
                r = back(layer, p, kept[layer.name], r, below=below, rules=rules, threads=threads)
        return r

    if split < len(layers):
        kept = trace.units.kept if image is None else _rows(trace.units.kept, image)
        r = walk(layers[split:], 0, kept, r, trace.threads)
    if split == 0:
        return r
    pixels = empty((len(r), *arch.input), r) if to_input else None

    def walk_maps(work: tuple[int, Piece, slice | Array]) -> None:
        index, piece, signals = work
        out = walk(layers[:split], index, piece.kept, r[signals], 1)
        if pixels is not None:
            pixels[signals] = out

    parallel.run(walk_maps, list(_signals(trace, image)), threads=trace.threads)
    return pixels


def _signals(trace: Trace, image: Array | None) -> Iterable[tuple[int, Piece, slice | Array]]:
    """Slices of the signals with the piece of the trace that each walks back through."""
    if image is None:
        yield from ((index, piece, piece.images) for index, piece in enumerate(trace.maps))
        return
    image = np.asarray(image)
    for piece in trace.maps:
        for i in range(piece.images.start, piece.images.stop):
            signals = np.flatnonzero(image == i)
            row = slice(i - piece.images.start, i - piece.images.start + 1)
            one = Piece(slice(i, i + 1), _rows(piece.kept, row))  # its arrays serve all signals of the image
            size = piece.images.stop - piece.images.start
            yield from ((0, one, signals[part]) for part in parallel.cut(len(signals), size))


def _rows(kept: dict[str, Kept], rows: slice | Array) -> dict[str, Kept]:
    return {name: tuple(array[rows] for array in arrays) for name, arrays in kept.items()}


def _run(
    arch: Arch,
    params: Params,
    x: Array,
    *,
    keep: bool,
    masks: dict[str, Array],
    watch: Watch | None,
    threads: int | None,
) -> tuple[Array, tuple[Piece, ...], Piece]:
    """Output, the pieces of the layers of maps, and that of the rest."""
    if x.ndim != 4 or x.shape[1:] != arch.input:
        raise ValueError(f"{arch.name}: x is {x.shape}, it needs (N, {', '.join(map(str, arch.input))})")
    split, shapes = _first_linear(arch), [arch.input, *arch.shapes().values()]

    def climb(layers: tuple[Layer, ...], x: Array, piece: Piece, threads: int | None) -> Array:
        own = False  # whether x is nobody else's
        for layer in layers:
            mask = masks[layer.name][piece.images] if layer.name in masks else None
            with _naming(layer):
                p = params.get(layer.name, {})
                y, kept = forward_layer(layer, p, x, mask=mask, keep=keep, own=own, threads=threads)
            if keep:
                piece.kept[layer.name] = kept
            if watch is not None:
                watch(layer.name, piece.images, y)
            x, own = y, isinstance(layer, Conv | Linear)
        return x

    y = empty((len(x), *shapes[split]), x) if split else x

    def climb_maps(images: slice) -> Piece:
        piece = Piece(images, {})
        y[images] = climb(arch.layers[:split], x[images], piece, 1)
        return piece

    maps = tuple(parallel.run(climb_maps, slices(arch, len(x)), threads=threads)) if split else ()
    units = Piece(slice(0, len(x)), {})
    if split < len(arch.layers):
        y = climb(arch.layers[split:], y, units, threads)
        y = y.copy() if keep else y  # the trace may keep it as the output of a relu
    return y, maps if keep else (), units


@contextmanager
def _naming(layer: Layer) -> Iterator[None]:
    """Put the layer's name in front of what is wrong with it."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"layer {layer.name}: there is no parameter {error}") from None
    except (ValueError, TypeError) as error:
        raise type(error)(f"layer {layer.name}: {error}") from error


def _first_linear(arch: Arch) -> int:
    """Index of the first layer that mixes all positions; the number of layers if there is none."""
    kinds = [isinstance(layer, Linear) for layer in arch.layers]
    return kinds.index(True) if True in kinds else len(kinds)


_SLICE_BYTES = 1 << 24  # the largest unfolded input of a slice, in float32: it should stay in cache
_MIN_SLICES = 16  # so that many cores find work


def slices(arch: Arch, n: int) -> list[slice]:
    """Where a batch of ``n`` is cut for the layers of maps; depends on shapes alone."""
    size = _SLICE_BYTES // (4 * max(unfolded_values(arch), 1))
    return parallel.cut(n, max(1, min(size, -(-n // _MIN_SLICES))))


def unfolded_values(arch: Arch) -> int:
    """Values of the largest unfolded input of a convolution, for one image."""
    shapes = arch.shapes()
    befores = [arch.input, *shapes.values()]
    return max(
        (
            math.prod(shapes[layer.name][:2]) * layer.size**2 * before[2]
            for layer, before in zip(arch.layers, befores, strict=False)
            if isinstance(layer, Conv)
        ),
        default=0,
    )
