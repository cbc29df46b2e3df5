"""Occlusion sensitivity (section 4.2, Figure 7): slide a square over an image and see what the network makes of it.

A square changes a box of each layer's maps, which grows from layer to layer; outside of it the maps of the bare image
are right already. So the bare image runs once, and then each place of the square runs only its boxes: what a box's
windows see is cut out of the bare maps, the box below is pasted over it, and the layer runs on that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refnet import net, parallel
from refnet.arch import Arch, Average, Branch, Conv, Layer, Params, Pool, Relu, Shape, SpatialNorm, Windowed, flat
from refnet.backend import Array, array_module, empty
from refnet.geometry import Window
from refnet.layers import averaging, join, operations
from refnet.ops.average import edge_weights
from refnet.ops.loss import softmax


@dataclass(frozen=True)
class Sweep:
    """What a network makes of an image behind a square, for R x C places of the square.

    ``rows`` (R,) and ``cols`` (C,) are its top left corners. ``logits`` (R, C, classes) is the network's output, and
    ``activity`` (R, C) the sum of ``layer``'s map number ``map`` over its positions; ``base_logits`` (classes,) and
    ``base_activity`` are those of the bare image.
    """

    rows: np.ndarray
    cols: np.ndarray
    logits: Array
    activity: Array
    layer: str
    map: int
    base_logits: Array
    base_activity: float

    @property
    def probabilities(self) -> Array:
        """Softmax of the logits (R, C, classes); Figure 7 (d) shows the right class's."""
        return softmax(self.logits)

    @property
    def labels(self) -> Array:
        """The most probable class (R, C), Figure 7 (e)."""
        return self.logits.argmax(axis=-1)


def slide(
    arch: Arch,
    params: Params,
    x: Array,
    *,
    square: int = 27,
    step: int = 7,
    fill: ArrayLike = 0.0,
    layer: str | None = None,
    map: int | None = None,
    threads: int | None = None,
) -> Sweep:
    """The network's output and one map's total activity, with a square at each place of an image (section 4.2).

    Parameters
    ----------
    x : (H, W, C) one image less the mean, scaled as in training; float32 or float64 as the parameters
    square, step : the square's side and the step between its places, in pixels. The paper states neither; others use
        27 and 7 on its 224 pixels, which gives 29 x 29 places
    fill : what the square shows, in units of x: anything that broadcasts to x. 0 is the mean image; the paper's grey
        square is a grey image less the mean, scaled
    layer : name of the layer of maps whose activity is summed; default the last rectified one (relu5)
    map : number of its map; default the strongest in the bare image, that is the one with the largest single
        activation (a declared choice)
    threads : number of threads (default: all cores); the result does not depend on it

    Raises
    ------
    ValueError
        If the square does not fit, ``layer`` or ``map`` does not exist, the network has no layers of maps or no fully
        connected ones, or shapes do not fit.
    TypeError
        If dtypes or backends differ.
    """
    maps, layer = _check(arch, x, square, step, layer, map)
    xp, op, last = array_module(x), operations(x), maps[-1].name
    try:
        seen = xp.broadcast_to(xp.asarray(fill, dtype=x.dtype), x.shape)
    except ValueError:
        raise ValueError(f"fill is {np.shape(fill)}, it must broadcast to x {x.shape}") from None

    bare: dict[str, Array] = {}  # every layer's output for the bare image

    def keep(name: str, _: slice, y: Array) -> None:
        bare[name] = y[0].copy()

    base_logits = net.predict(arch, params, x[None], watch=keep, threads=threads)[0]
    strongest = int(bare[layer].max(axis=(0, 1)).argmax()) if map is None else map
    rows, cols = (np.arange(0, side - square + 1, step) for side in x.shape[:2])
    places = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    logits, activity = empty((len(places), *base_logits.shape), x), empty((len(places),), x)
    run = _Boxed(arch, params, x, bare, layer, strongest, threads)
    for batch in parallel.cut(len(places), _BATCH):
        corners = places[batch]
        y = op.cut_boxes(seen[None], np.zeros(len(corners), int), corners, size=(square, square))
        end = run.along(maps, _Changed(y, corners, corners, corners + square), activity[batch])
        logits[batch] = _run(arch, arch.layers[len(maps) :], params, _whole(end.y, end.corners, bare[last]), threads)
    logits, activity = (a.reshape(len(rows), len(cols), *a.shape[1:]) for a in (logits, activity))
    base_activity = float(bare[layer][..., strongest].sum())
    return Sweep(rows, cols, logits, activity, layer, strongest, base_logits, base_activity)


class _Changed(NamedTuple):
    """What squares have changed of some maps: boxes y (S, h, w, C) at ``corners``, of which ``first`` to ``stop``."""

    y: Array
    corners: np.ndarray
    first: np.ndarray
    stop: np.ndarray


class _Boxed:
    """Runs layers on what squares change; around it, the maps are those of the ``bare`` image x."""

    def __init__(
        self, arch: Arch, params: Params, x: Array, bare: dict[str, Array], layer: str, map: int, threads: int | None
    ) -> None:
        self.arch, self.params, self.bare, self.threads = arch, params, bare, threads
        self.layer, self.map = layer, map  # whose activity is summed
        self.shapes, self.below = arch.shapes(), arch.input_shapes()
        self.inputs = {
            each.name: of for each, of in _inputs([each for each in arch.layers if each.name in bare], x, bare)
        }

    def along(self, layers: Sequence[Layer], at: _Changed, activity: Array) -> _Changed:
        """What the layers make of changed boxes; the watched map's sums (S,) go into ``activity``."""
        for part in _parts(layers, self.layer):
            head, name = part[0], part[-1].name
            if isinstance(head, Branch):
                at = self._join(head, [self.along(path, at, activity) for path in head.paths])
                part = part[1:]
            elif isinstance(head, Windowed):
                at = self._through(head, at)
                part = part[1:]
            if part:
                at = at._replace(y=_run(self.arch, part, self.params, at.y, self.threads))
            if name == self.layer:
                one = [self.map]
                whole = _whole(at.y[..., one], at.corners, self.bare[name][..., one])
                activity[...] = whole.sum(axis=(1, 2, 3))
        return at

    def _through(self, layer: Conv | Pool | Average | SpatialNorm, at: _Changed) -> _Changed:
        """A layer with windows: they see the changed boxes and what surrounds them."""
        size, stride, pad = layer.window
        hw, op, alone = self.shapes[layer.name][:2], operations(at.y), np.zeros(len(at.y), int)
        first, stop = changed(at.first, at.stop, layer.window, hw)
        corners, (h, w) = boxes(first, stop, hw)
        start = corners * stride  # in the padded maps, where y lies at its corners + pad
        padded = _padded(self.inputs[layer.name], layer, hw)
        around = op.cut_boxes(padded[None], alone, start, size=((h - 1) * stride + size, (w - 1) * stride + size))
        op.paste_boxes(at.y, at.corners + pad - start, around)
        if isinstance(layer, SpatialNorm):  # it always pads: what that gives at the edge is cut off
            y = _run(self.arch, [layer], self.params, around, self.threads)[:, pad : pad + h, pad : pad + w]
            return _Changed(array_module(y).ascontiguousarray(y), corners, first, stop)
        y = _run(self.arch, [replace(layer, pad=0)], self.params, around, self.threads)
        if isinstance(layer, Average):  # a region at the edge has fewer cells than it would have inside
            weights = edge_weights(self.below[layer.name][:2], y, **averaging(layer))
            y *= op.cut_boxes(weights, alone, corners, size=(h, w))
        return _Changed(y, corners, first, stop)

    def _join(self, branch: Branch, ends: list[_Changed]) -> _Changed:
        """The paths' maps side by side, in boxes that hold what has changed in any of them."""
        first = reduce(np.minimum, [end.first for end in ends])
        stop = reduce(np.maximum, [end.stop for end in ends])
        corners, size = boxes(first, stop, self.shapes[branch.name][:2])
        pieces = []
        for path, end in zip(branch.paths, ends, strict=True):
            bare = self.bare[path[-1].name] if path else self.inputs[branch.name]
            piece = operations(end.y).cut_boxes(bare[None], np.zeros(len(corners), int), corners, size=size)
            operations(piece).paste_boxes(end.y, end.corners - corners, piece)
            pieces.append(piece)
        return _Changed(join(pieces), corners, first, stop)


_BATCH = 128  # places that run at once: enough rows for fast products, in 130 MB for ZFNet behind squares of 27


def changed(first: np.ndarray, stop: np.ndarray, window: Window, hw: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Which of the ``hw`` outputs see inputs from ``first`` to ``stop`` (S, 2), ends excluded: again (S, 2) each."""
    size, stride, pad = window
    return np.maximum(-(-(first + pad - size + 1) // stride), 0), np.minimum((stop - 1 + pad) // stride + 1, hw)


def boxes(first: np.ndarray, stop: np.ndarray, hw: Shape) -> tuple[np.ndarray, tuple[int, int]]:
    """Corners (S, 2) and common (height, width) of boxes inside ``hw`` that hold ``first`` to ``stop`` (S, 2).

    Boxes of one size make a batch; where less has changed, a box holds some unchanged neighbours or cells.
    """
    h, w = np.maximum((stop - first).max(axis=0), 1).tolist()  # at least a cell, also where no window sees the square
    return np.minimum(first, (hw[0] - h, hw[1] - w)), (h, w)


def _check(arch: Arch, x: Array, square: int, step: int, layer: str | None, map: int | None) -> tuple[list[Layer], str]:
    """The layers of maps and the name of the one to watch, if everything fits."""
    shapes = arch.shapes()
    maps = [each for each in arch.layers if len(shapes[each.name]) == 3]
    if not 0 < len(maps) < len(arch.layers):
        needs = "it needs some, and then fully connected ones"
        raise ValueError(f"{arch.name}: {len(maps)} of {len(arch.layers)} layers have maps; {needs}")
    names = [each.name for each in flat(maps)]
    if layer is None:
        layer = next((each.name for each in reversed(list(flat(maps))) if isinstance(each, Relu)), names[-1])
    if layer not in names:
        raise ValueError(f"layer is {layer!r}, it needs one of {arch.name}'s layers of maps: {' '.join(names)}")
    if map is not None and not 0 <= map < shapes[layer][2]:
        raise ValueError(f"map is {map}, but {layer} has {shapes[layer][2]} maps, counted from 0")
    if x.shape != arch.input:
        raise ValueError(f"{arch.name}: x is {x.shape}, it needs one image {arch.input}")
    if step < 1 or not 1 <= square <= min(x.shape[:2]):
        raise ValueError(
            f"square is {square} and step {step}; both need 1 or more, and x {x.shape} must hold the square"
        )
    return maps, layer


def _padded(x: Array, layer: Conv | Pool | Average | SpatialNorm, out: Shape) -> Array:
    """The maps x (H, W, C) with all around them that the layer's windows see; in a pooling region that never wins."""
    size, stride, pad = layer.window
    ends = [(n - 1) * stride + size - pad - side for n, side in zip(out, x.shape, strict=False)]
    around = [(pad, max(end, 0)) for end in ends[:2]]
    return array_module(x).pad(x, [*around, (0, 0)], constant_values=-np.inf if isinstance(layer, Pool) else 0)


def _inputs(layers: Sequence[Layer], x: Array, bare: dict[str, Array]) -> Iterator[tuple[Layer, Array]]:
    """Every layer, those in branches too, and the maps that it sees in the bare image."""
    for layer in layers:
        yield layer, x
        if isinstance(layer, Branch):
            for path in layer.paths:
                yield from _inputs(path, x, bare)
        x = bare[layer.name]


def _parts(layers: Sequence[Layer], layer: str) -> list[list[Layer]]:
    """The layers in parts of which only the first has windows, and one of which ends with ``layer``."""
    parts: list[list[Layer]] = []
    for each in layers:
        if not parts or isinstance(each, Windowed) or parts[-1][-1].name == layer:
            parts.append([])
        parts[-1].append(each)
    return parts


def _run(arch: Arch, layers: Sequence[Layer], params: Params, x: Array, threads: int | None) -> Array:
    """Some layers of the network on maps x (S, H, W, C) of any size."""
    _, h, w, c = x.shape
    return net.predict(Arch(arch.name, (h, w, c), tuple(layers)), params, x, threads=threads)


def _whole(y: Array, corners: np.ndarray, bare: Array) -> Array:
    """Whole maps (S, H, W, C) behind squares: the boxes y (S, h, w, C) at ``corners``, elsewhere the ``bare`` maps."""
    whole = bare[None].repeat(len(y), axis=0)
    operations(y).paste_boxes(y, corners, whole)
    return whole
