"""Run a network forward, and walk its trace back under a table of rules.

Forward, each layer keeps just what its way back needs; that is the trace. The way back is one walk for training,
for the deconvnet and for guided backprop (`refnet.layers.back`).

The layers run in stages, of one or more convolutions with what follows them: on a few images at a time, so that these
stay in cache, and several such slices at once. From the first fully connected layer on, whose weights are large, the
whole batch runs at once and the weights are cut. On a GPU the whole batch runs at once everywhere.
"""

from __future__ import annotations  # naming np.random loads it, which takes as long as all of refnet

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from refnet import parallel
from refnet.arch import Arch, Branch, Conv, Dropout, Flatten, Layer, Linear, Norm, Params, Shape, flat
from refnet.backend import Array, array_module, empty, to_device, to_host, zeros
from refnet.layers import GRADIENT, Down, Kept, Rules, back, grads, meet, pooled_first, split, walk_down, walk_up
from refnet.layers import forward as forward_layer
from refnet.ops import winograd
from refnet.ops.dropout import dropout_mask
from refnet.ops.tiles import multiplications, tile_counts
from refnet.ranks import ALONE, Group

# Called as watch(layer, images, y) with a layer's output for a slice of the batch.
Watch = Callable[[str, slice, Array], None]
# Called as collect(layer, index of the slice, dw, db).
Collect = Callable[[str, int, Array, Array], None]
# Called as on_grads(layer, its gradients).
OnGrads = Callable[[str, dict[str, Array]], None]


class Stage(NamedTuple):
    """Consecutive layers that run together, and the slices of the batch that they run on."""

    layers: tuple[Layer, ...]
    slices: list[slice]

    def inner_threads(self, threads: int | None) -> int | None:
        """Threads for a layer of the stage: slices have one each, the whole batch has all."""
        return threads if len(self.slices) == 1 else 1


@dataclass(frozen=True)
class Trace:
    """What a forward run leaves: the layers up to where it stopped, and the arrays that their way back needs.

    ``kept`` has a list for each stage, with the arrays of each of its slices by layer, those inside of branches too.
    They are the trace's own, but for ``x``, which is the caller's. Parameters must not change while it is used, but
    where `backward` says so.
    """

    arch: Arch
    n: int
    plan: list[Stage]
    kept: list[list[dict[str, Kept]]]
    filters: Params  # transformed ones, of the convolutions that use them
    like: Array  # an empty array of the trace's dtype and backend
    threads: int | None
    training: bool  # pooled before it rectified, as ``arch`` has it too, so it serves `GRADIENT` only


def init_params(arch: Arch, *, rng: np.random.Generator, dtype: Any = "float32", init: str = "he") -> Params:
    """Weights drawn anew, biases 0.

    Parameters
    ----------
    arch : the network
    rng : source of the draws, made in float64 layer by layer, so that both dtypes see the same ones
    dtype : float32 or float64
    init : "he": N(0, 2 / fan-in), which trains small nets from scratch, times k^beta after a normalisation, which
        divides small maps by it; but N(0, 0.01^2) in the first layer, so that its filters show what they learnt and
        not what was drawn;
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
    gains = dict(_gains(arch.layers))
    for name, shapes in arch.param_shapes().items():
        fan_in = int(np.prod(shapes["w"][:-1]))
        sigma = 0.01 if init == "paper" or not params else gains[name] * np.sqrt(2 / fan_in)
        w = rng.standard_normal(shapes["w"]) * sigma
        params[name] = {"w": w.astype(dtype), "b": np.zeros(shapes["b"], dtype)}
    return params


def _gains(layers: Sequence[Layer], gain: float = 1.0) -> Iterator[tuple[str, float]]:
    """Layers with weights, and what normalisation divides their inputs by if these are small."""
    for layer in layers:
        match layer:
            case Norm():
                gain *= layer.k**layer.beta
            case Branch():
                for path in layer.paths:
                    yield from _gains(path, gain)
                gain = 1.0
            case Conv() | Linear():
                yield layer.name, gain
                gain = 1.0


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
    if watch is None:  # who watches sees the layers in their order
        arch = _pooling_first(arch)
    return _run(arch, params, x, _plan(arch, x), keep=False, masks=None, watch=watch, threads=threads)[0]


def forward(
    arch: Arch,
    params: Params,
    x: Array,
    *,
    stop: str | None = None,
    rng: np.random.Generator | None = None,
    rows: tuple[int, int] | None = None,
    threads: int | None = None,
) -> tuple[Array, Trace]:
    """Like `predict`, but also returns the trace that `backward` and the deconvnet walk back.

    With ``rng`` it is a training run: dropout draws its masks from it, and maps are pooled before they are rectified,
    which gives the same bits and gradients, and no unpooled maps to keep. Where nothing is positive its switches are
    others; so the trace serves `GRADIENT` only. ``rows`` (first, total) tells where the images are in the batch that
    masks are drawn for, by default they are all of it. ``x`` must not be written to while the trace is used; ``y``
    may. Raises as `predict` does.
    """
    arch = arch if stop is None else arch.upto(stop)
    arch = arch if rng is None else _pooling_first(arch)
    plan, masks = _plan(arch, x), None if rng is None else parallel.begin(partial(_masks, arch, x, rng, rows))
    y, kept, filters = _run(arch, params, x, plan, keep=True, masks=masks, watch=None, threads=threads)
    return y, Trace(arch, len(x), plan, kept, filters, x[:0], threads, training=rng is not None)


def _pooling_first(arch: Arch) -> Arch:
    return replace(arch, layers=pooled_first(arch.layers))


def _masks(arch: Arch, x: Array, rng: np.random.Generator, rows: tuple[int, int] | None) -> dict[str, np.ndarray]:
    """The masks of dropout for images x, drawn on the host."""
    layers, shapes = [each for each in flat(arch.layers) if isinstance(each, Dropout)], arch.shapes()
    first, total = rows or (0, len(x))
    return {
        each.name: dropout_mask((total, *shapes[each.name]), rate=each.rate, rng=rng, dtype=x.dtype)[
            first : first + len(x)
        ]
        for each in layers
    }


def backward(
    trace: Trace,
    params: Params,
    dy: Array,
    *,
    input_grad: bool = True,
    on_grads: OnGrads = lambda layer, grads: None,
    group: Group = ALONE,
) -> tuple[Array | None, Params]:
    """Gradients with respect to the input and all parameters.

    Parameters
    ----------
    trace : of `forward`, with the same ``params``
    dy : gradient of the loss with respect to the trace's last output, and of its shape
    input_grad : False leaves ``dx`` out (None) and saves conv1's transposed filtering
    on_grads : called as on_grads(layer, {"w": dw, "b": db}) as soon as they are known, while the walk goes on, from
        the last layer to the first, by one thread at a time and always in the same order. The walk has left a fully
        connected layer then, and its weights may be changed
    group : the processes that have a share of the batch each, with the same ``params``

    Returns
    -------
    dx : (N, H, W, C) or None
    grads : like ``params``, for the layers of the trace. In a ``group``, a convolution's are those of this process's
        images; a fully connected layer's are those of the whole batch, but of ``w`` for `Group.share` of its rows

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
    slices = {layer.name: len(stage.slices) for stage in trace.plan for layer in flat(stage.layers)}

    def collect(layer: str, index: int, dw: Array, db: Array) -> None:
        sums[layer]["w"].add(index, dw)
        # Each slice adds its db last, so that one of them completes both sums.
        if sums[layer]["b"].add(index, db) == slices[layer]:
            on_grads(layer, {key: each.total for key, each in sums[layer].items()})

    dx = back_through(trace, params, dy, rules=GRADIENT, collect=collect, to_input=input_grad, group=group)
    totals = {name: {key: each.total for key, each in layer.items()} for name, layer in sums.items()}
    for name in _downward(trace.arch.layers):
        if not slices[name] and name in totals:  # of no image
            totals[name] = {key: zeros(a.shape, a) for key, a in params[name].items()}
            on_grads(name, totals[name])
    return dx, totals


def _downward(layers: Sequence[Layer]) -> Iterator[str]:
    """Names of the layers in the order of the walk back."""
    for layer in reversed(layers):
        if isinstance(layer, Branch):
            for path in layer.paths:
                yield from _downward(path)
        else:
            yield layer.name


def back_through(
    trace: Trace,
    params: Params,
    r: Array,
    *,
    rules: Rules,
    collect: Collect | None = None,
    to_input: bool = True,
    group: Group = ALONE,
) -> Array | None:
    """Walk the trace back from its last output to the input, under ``rules``.

    Parameters
    ----------
    trace : of `forward`, with the same ``params``
    r : (N, *shape of the last output) signal to send down
    rules : what relu and normalisation do
    collect : called as collect(layer, index of the slice, dw, db) at every layer with weights
    to_input : False stops at the first layer's weights and returns None
    group : as in `backward`

    Returns
    -------
    r : (N, H, W, C)

    Raises
    ------
    ValueError
        If shapes do not fit, or the trace is of a training run and the rules are not `GRADIENT`.
    TypeError
        If dtypes or backends differ.
    """
    arch, plan = trace.arch, trace.plan
    check_signal(trace, r, len(r) == trace.n, rules)
    shapes, below = arch.shapes(), arch.input_shapes()
    params = {name: p | trace.filters.get(name, {}) for name, p in params.items()}

    def descend(stage: Stage, kept: list[dict[str, Kept]], r: Array) -> Array:
        handed_on = len(stage.slices) == 1 and stage is not plan[0]  # the signal is nobody else's
        x = r if handed_on else empty((len(r), *below[stage.layers[0].name]), r)
        threads = stage.inner_threads(trace.threads)

        def descend_slice(index: int) -> Array | None:
            images, arrays = stage.slices[index], kept[index]

            def through(layer: Layer, signal: Array) -> Array:
                with naming(layer):
                    p, mine = params.get(layer.name, {}), arrays[layer.name]
                    if collect is not None and "u" in p:  # made once for both
                        p = p | {"z": winograd.signal_at_points(signal)}
                    if collect is not None and isinstance(layer, Conv):  # before: what is sent on is in cache then
                        collect(layer.name, index, *grads(layer, p, mine, signal, threads=threads))
                    sent = signal
                    if to_input or layer is not arch.layers[0]:
                        sent = back(layer, p, mine, signal, below=below[layer.name], rules=rules, threads=threads)
                    if collect is not None and isinstance(layer, Linear):  # after: its weights may be changed then
                        collect(layer.name, index, *grads(layer, p, mine, signal, threads=threads, group=group))
                    return sent

            def fork(branch: Branch, signal: Array, down: Down) -> Array:
                parts = split(signal, branch, shapes, below[branch.name])
                return meet([down(path, part) for path, part in zip(branch.paths, parts, strict=True)])

            signal = walk_down(stage.layers, r[images], through, fork)
            if handed_on:
                return signal
            if to_input or stage is not plan[0]:
                x[images] = signal
            return None  # what is returned is kept until all slices have come down

        signals = parallel.run(descend_slice, range(len(stage.slices)), threads=trace.threads, like=r)
        return signals[0] if handed_on else x

    for stage, kept in zip(reversed(plan), reversed(trace.kept), strict=True):
        r = descend(stage, kept, r)
    return r if to_input else None


def check_signal(trace: Trace, r: Array, fits: bool, rules: Rules) -> None:
    """ValueError or TypeError unless ``fits``, r is like the trace's last output, and such a trace serves the rules."""
    layer, shape = list(trace.arch.shapes().items())[-1]
    if r.shape[1:] != shape or not fits:
        raise ValueError(f"the signal is {r.shape}, but {layer} of the trace is {(trace.n, *shape)}")
    if trace.training and rules != GRADIENT:
        raise ValueError(f"the trace is of a training run, which is for the gradient alone, not for {rules}")
    array_module(r, trace.like)  # raises where backends differ
    if r.dtype != trace.like.dtype:
        raise TypeError(f"the signal is {r.dtype}, but the trace {trace.like.dtype}")


def _run(
    arch: Arch,
    params: Params,
    x: Array,
    plan: list[Stage],
    *,
    keep: bool,
    masks: Callable[[], dict[str, np.ndarray]] | None,
    watch: Watch | None,
    threads: int | None,
) -> tuple[Array, list[list[dict[str, Kept]]], Params]:
    """Output, what the stages' slices keep, and the transformed filters. ``masks`` waits for those of dropout."""
    if x.ndim != 4 or x.shape[1:] != arch.input:
        raise ValueError(f"{arch.name}: x is {x.shape}, it needs (N, {', '.join(map(str, arch.input))})")
    shapes = arch.shapes()
    params = with_filters(arch, params, shapes, _at_a_time(plan), threads)

    def climb(stage: Stage, x: Array) -> tuple[Array, list[dict[str, Kept]]]:
        last = stage.layers[-1]
        # What leaves the net is the caller's, so a trace must not keep it.
        leaves = last is arch.layers[-1]
        handed_on = len(stage.slices) == 1 and not leaves
        y = x if handed_on else empty((len(x), *shapes[last.name]), x)
        inner = stage.inner_threads(threads)
        # Asked for only now: they are drawn while the stages before are under way.
        dropouts = [each.name for each in flat(stage.layers) if isinstance(each, Dropout)]
        mine: dict[str, Array] = masks() if masks and dropouts else {}
        if array_module(x) is not np and mine:
            mine = {name: to_device(mine[name], "cuda") for name in dropouts}

        def climb_slice(images: slice) -> tuple[Array | None, dict[str, Kept]]:
            kept: dict[str, Kept] = {}

            def through(layer: Layer, maps: Array, out: Array | None) -> Array:
                if layer is last and not handed_on and not (keep and leaves):
                    out = y[images]
                mask = mine[layer.name][images] if layer.name in mine else None
                with naming(layer):
                    p = params.get(layer.name, {})
                    maps, arrays = forward_layer(layer, p, maps, mask=mask, keep=keep, out=out, threads=inner)
                if keep:
                    kept[layer.name] = arrays
                if watch is not None:
                    watch(layer.name, images, maps)
                return maps

            maps = walk_up(stage.layers, x[images], through)
            if handed_on:
                return maps, kept
            y[images] = maps
            return None, kept

        done = parallel.run(climb_slice, stage.slices, threads=threads, like=x)
        return done[0][0] if handed_on else y, [kept for _, kept in done]

    everything = []
    for stage in plan:
        x, kept = climb(stage, x)
        everything.append(kept)
    return x, everything, {name: {"u": p["u"]} for name, p in params.items() if "u" in p}


@contextmanager
def naming(layer: Layer) -> Iterator[None]:
    """Put the layer's name in front of what is wrong with it."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"layer {layer.name}: there is no parameter {error}") from None
    except (ValueError, TypeError) as error:
        raise type(error)(f"layer {layer.name}: {error}") from error


SLICE_BYTES = 20 << 20  # what a convolution makes of a slice at most, in float32: it should stay in cache
SLICES = 4  # their number is a multiple of it, which few cores share evenly and many find enough of in large batches
_MIN_ROWS = 48  # of the products of transformed filters: with fewer they lose more than they save


def _plan(arch: Arch, x: Array) -> list[Stage]:
    """The stages for images x: on a GPU they are not cut."""
    if array_module(x) is np:
        return stages(arch, len(x))
    return [Stage(layers, [slice(0, len(x))]) for layers in parts(arch.layers)]


def stages(arch: Arch, n: int) -> list[Stage]:
    """The stages of a network, and where a batch of ``n`` is cut for each on a CPU; depends on shapes alone.

    Parts that are cut alike are one stage, so that no thread waits between them, and what a slice made is still near.
    """
    plan: list[Stage] = []
    for layers in parts(arch.layers):
        slices = _cut(arch, layers, n)
        if plan and plan[-1].slices == slices and not _of_units(layers):
            plan[-1] = Stage((*plan[-1].layers, *layers), slices)
        else:
            plan.append(Stage(layers, slices))
    return plan


def parts(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """Layers in parts: each convolution or branch with what follows it, and the fully connected ones together."""
    found: list[list[Layer]] = [[]]
    for layer in layers:
        if found[-1] and not _of_units(found[-1]) and isinstance(layer, Conv | Linear | Flatten | Branch):
            found.append([])
        found[-1].append(layer)
    return [tuple(part) for part in found]


def _of_units(layers: Sequence[Layer]) -> bool:
    return any(isinstance(layer, Linear | Flatten) for layer in layers)


def _cut(arch: Arch, layers: tuple[Layer, ...], n: int) -> list[slice]:
    if _of_units(layers):
        return [slice(0, n)]
    return parallel.cut(n, max(1, SLICE_BYTES // (4 * max(scratch_values(arch, layers), 1))), multiple=SLICES)


def scratch_values(arch: Arch, layers: Sequence[Layer]) -> int:
    """The most values that one of the layers' convolutions makes of an image, on the way to its output."""
    shapes, below = arch.shapes(), arch.input_shapes()
    convolutions = [each for each in flat(layers) if isinstance(each, Conv)]
    return max((values_on_the_way(each, shapes[each.name], below[each.name][2]) for each in convolutions), default=0)


def values_on_the_way(layer: Conv, outputs: Shape, c: int) -> int:
    """Values that a convolution of C maps to outputs (P, Q, ...) writes for an image: tiles, or unfolded windows."""
    hw = outputs[0], outputs[1]
    if winograd.suits(layer.window, hw, c, layer.filters, layer.groups):
        return multiplications(hw) * (winograd.depth(layer.window, c) + layer.filters)
    return hw[0] * hw[1] * layer.size**2 * c


def _at_a_time(stages: list[Stage]) -> dict[str, int]:
    """How many images each layer sees at a time."""
    return {layer.name: stage.slices[0].stop for stage in stages for layer in flat(stage.layers) if stage.slices}


def with_filters(
    arch: Arch, params: Params, out_hw: Mapping[str, Shape], at_a_time: Mapping[str, int], threads: int | None
) -> Params:
    """``params``, with the transformed filters ``u`` of those convolutions that gain by them (`refnet.ops.winograd`).

    On a GPU transforming them costs nothing, and the kernels do it each time.

    Parameters
    ----------
    out_hw : outputs (P, Q, ...) that each layer computes of an image
    at_a_time : images that it sees at a time; layers that are missing are left out
    """
    shapes = arch.param_shapes()

    def gains(layer: Conv) -> bool:
        p = params.get(layer.name, {})
        if {key: a.shape for key, a in p.items()} != shapes[layer.name]:
            return False  # the layer itself will say what is wrong
        if array_module(p["w"]) is not np:
            return False
        (height, width, *_), (_, _, c, m) = out_hw[layer.name], p["w"].shape
        hw = height, width
        if not winograd.suits(layer.window, hw, c * layer.groups, m, layer.groups):
            return False
        return at_a_time[layer.name] * prod(tile_counts(hw)) >= _MIN_ROWS

    layers = [each for each in flat(arch.layers) if isinstance(each, Conv) and each.name in at_a_time and gains(each)]
    if not layers:
        return params
    filters = parallel.run(lambda each: winograd.filters(params[each.name]["w"], each.window), layers, threads=threads)
    return params | {layer.name: params[layer.name] | {"u": u} for layer, u in zip(layers, filters, strict=True)}
