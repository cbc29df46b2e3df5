"""Walk signals back that start in one place: only the boxes that they can reach are computed.

One activation of ZFNet's layer 2 sees 27 x 27 of the 224 x 224 pixels, and on the way down it reaches no others. So
each signal comes with a box of its own, all of one size; the layers walk them back as they would whole maps
(`refnet.layers.back`), with the arrays of the trace cut to the same boxes. Boxes may hang over the edge of the maps;
the signal is zero there, as padding is.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from refnet import parallel
from refnet.arch import Average, Branch, Conv, Layer, Params, Pool, Shape, SpatialNorm, Windowed, flat
from refnet.backend import Array, array_module, empty, zeros
from refnet.geometry import Window
from refnet.layers import Down, Kept, Rules, averaging, back, operations, split, walk_down
from refnet.net import SLICE_BYTES, SLICES, Stage, Trace, naming, parts, values_on_the_way, with_filters
from refnet.ops.average import edge_weights

_DEVICE_BYTES = 1 << 30  # of windows or tiles that a GPU has at a time; launches cost more than its cache gives


class Boxes(NamedTuple):
    """Where each signal lies in its maps: ``origin`` (S, 2), first row and column, and the ``size`` of all."""

    origin: np.ndarray
    size: tuple[int, int]

    def below(self, window: Window, hw: tuple[int, ...]) -> "Boxes":
        """What a window reaches in the maps below (*hw), less the rows and columns that lie beyond in every box."""
        size, stride, pad = window
        origin = self.origin * stride - pad
        reach = (np.array(self.size) - 1) * stride + size
        first = np.maximum((-origin).min(axis=0), 0)
        last = np.minimum((np.array(hw) - origin).max(axis=0), reach)
        rows, columns = (last - first).tolist()
        return Boxes(origin + first, (rows, columns))

    def of(self, signals: slice) -> "Boxes":
        """The boxes of some signals."""
        return Boxes(self.origin[signals], self.size)

    def inside(self, other: "Boxes") -> tuple[slice, slice, slice]:
        """Where they lie in others that hold them, each at the same place of its own."""
        row, column = (self.origin[0] - other.origin[0]).tolist()
        return slice(None), slice(row, row + self.size[0]), slice(column, column + self.size[1])

    def cut(self, maps: Array) -> Array:
        """The boxes of maps (S, H, W, C), one in each."""
        y: Array = operations(maps).cut_boxes(maps, np.arange(len(maps)), self.origin, size=self.size)
        return y


def descend(
    trace: Trace, params: Params, r: Array, image: np.ndarray, boxes: Boxes | None, *, rules: Rules
) -> tuple[Array, Boxes]:
    """Walk signals back to the input, each in its own box.

    Parameters
    ----------
    trace : of `refnet.net.forward`, with the same ``params``
    r : (S, *boxes.size, M) signals in boxes of the trace's last output, or (S, units) with ``boxes`` None; S >= 1
    image : (S,) the image of the trace that each signal belongs to

    Returns
    -------
    r : (S, h, w, colours), and the boxes of the input that this is
    """
    arch, shapes, below, threads = trace.arch, trace.arch.shapes(), trace.arch.input_shapes(), trace.threads
    plan = list(zip(reversed(trace.plan), reversed(trace.kept), strict=True))
    if boxes is None:
        while plan and r.ndim == 2:
            stage, kept = plan.pop(0)
            for layer in reversed(stage.layers):
                arrays = tuple(a[image] for a in kept[0][layer.name]) if rules.looks_at(layer) else ()
                with naming(layer):
                    p, shape = params.get(layer.name, {}), below[layer.name]
                    r = back(layer, p, arrays, r, below=shape, rules=rules, threads=threads)
        boxes = Boxes(np.zeros((len(r), 2), int), r.shape[1:3])

    most, multiple = (SLICE_BYTES, SLICES) if array_module(r) is np else (_DEVICE_BYTES, 1)
    uppers: dict[str, Boxes] = {}
    lowers: dict[str, Boxes] = {}
    at_a_time: dict[str, int] = {}

    signals = len(r)

    def place(layers: tuple[Layer, ...], boxes: Boxes) -> Boxes:
        """Find out where the signals lie above and below each layer."""
        for layer in reversed(layers):
            uppers[layer.name] = boxes
            if isinstance(layer, Conv):
                values = values_on_the_way(layer, boxes.size, below[layer.name][2])
                at_a_time[layer.name] = max(1, min(most // (4 * values), signals // multiple))
            if isinstance(layer, Branch):
                for path in layer.paths:
                    place(path, boxes)
            if isinstance(layer, Windowed):
                boxes = boxes.below(layer.window, below[layer.name][:2])
            lowers[layer.name] = boxes
        return boxes

    boxes = place(tuple(layer for stage, _ in reversed(plan) for layer in stage.layers), boxes)
    params = with_filters(arch, params, {name: each.size for name, each in uppers.items()}, at_a_time, threads)

    def walk(stage: Stage, kept: list[dict[str, Kept]], r: Array) -> Array:
        first = stage.layers[0].name
        x = empty((len(r), *lowers[first].size, below[first][2]), r)

        def walk_some(part: slice) -> None:
            def through(layer: Layer, signal: Array) -> Array:
                upper, lower = uppers[layer.name].of(part), lowers[layer.name].of(part)
                with naming(layer):
                    where = upper if isinstance(layer, Pool) else lower  # switches lie on outputs, the rest on inputs
                    arrays = _cut_out(kept, stage, layer, image[part], where) if rules.looks_at(layer) else ()
                    p, shape = params.get(layer.name, {}), below[layer.name]
                    return _back(layer, p, arrays, signal, upper, lower, below=shape, rules=rules)

            def fork(branch: Branch, signal: Array, down: Down) -> Array:
                upper, lower, c = uppers[branch.name], lowers[branch.name], below[branch.name][2]
                total = zeros((len(signal), *lower.size, c), r)
                pieces = split(signal, branch, shapes, below[branch.name])
                for path, piece in zip(branch.paths, pieces, strict=True):
                    mine = lowers[path[0].name] if path else upper
                    total[mine.inside(lower)] += down(path, piece)
                return total

            x[part] = walk_down(stage.layers, r[part], through, fork)

        size = min((at_a_time.get(layer.name, len(r)) for layer in flat(stage.layers)), default=len(r))
        parallel.run(walk_some, parallel.cut(len(r), size, multiple=multiple), threads=threads, like=r)
        return x

    for stage, kept in plan:
        for layers in reversed(parts(stage.layers)):  # each has as many signals at a time as it can
            r = walk(Stage(layers, stage.slices), kept, r)
    return r, boxes


def _back(
    layer: Layer, p: dict[str, Array], kept: Kept, r: Array, upper: Boxes, lower: Boxes, *, below: Shape, rules: Rules
) -> Array:
    if isinstance(layer, SpatialNorm):
        around = zeros((len(r), *lower.size, below[2]), r)
        around[upper.inside(lower)] = r
        return _blanked(back(layer, p, kept, around, below=below, rules=rules, threads=1), lower, below)
    if not isinstance(layer, Conv | Pool | Average):
        return back(layer, p, kept, r, below=below, rules=rules, threads=1)
    size, stride, pad = layer.window
    whole = Boxes(
        upper.origin * stride - pad, ((upper.size[0] - 1) * stride + size, (upper.size[1] - 1) * stride + size)
    )
    unpadded = replace(layer, pad=0) if isinstance(layer, Conv) else replace(layer, pad=0, ceil=False)
    if isinstance(layer, Average):  # a region at the edge has fewer cells than it would have inside
        hw = below[0], below[1]
        r = r * operations(r).cut_boxes(
            edge_weights(hw, r, **averaging(layer)), np.zeros(len(r), int), upper.origin, size=upper.size
        )
    x = back(unpadded, p, kept, r, below=(*whole.size, below[2]), rules=rules, threads=1)
    return _blanked(x[lower.inside(whole)], lower, below)


def _blanked(x: Array, boxes: Boxes, maps: Shape) -> Array:
    """Zero where the boxes hang over the edge of the maps."""
    blanked: Array = operations(x).blank_beyond(x, boxes.origin, hw=maps[:2])
    return blanked


def _cut_out(kept: list[dict[str, Kept]], stage: Stage, layer: Layer, image: np.ndarray, boxes: Boxes) -> Kept:
    """The arrays that a layer kept, where each box lies; 1, which nothing divides by in vain, beyond the edge."""
    pieces = np.searchsorted([images.stop for images in stage.slices], image, side="right")
    arrays = []
    for k, like in enumerate(kept[0][layer.name]):
        array = empty((len(image), *boxes.size, like.shape[3]), like)
        for piece in np.unique(pieces):
            of = np.flatnonzero(pieces == piece)
            whole, first = kept[piece][layer.name][k], stage.slices[piece].start
            array[of] = operations(like).cut_boxes(
                whole, image[of] - first, boxes.origin[of], size=boxes.size, beyond=1
            )
        arrays.append(array)
    return tuple(arrays)
