"""The deconvnet (section 2.1): find a map's strongest activations and project them back to pixels."""

import math
import threading
from dataclasses import dataclass

import numpy as np

from refnet.arch import Params
from refnet.backend import Array, to_host, zeros
from refnet.boxes import Boxes, descend
from refnet.layers import DECONV, GRADIENT, GUIDED, RULES, Rules, operations
from refnet.net import Trace, check_signal

__all__ = [
    "DECONV", "GRADIENT", "GUIDED", "RULES",
    "Boxes", "Strongest", "Strongests", "project", "project_cells", "seeds", "strongest",
]  # fmt: skip


def project(trace: Trace, params: Params, seed: Array, *, rules: Rules = DECONV, image: Array | None = None) -> Array:
    """Project activations of the trace's last layer down to pixels (section 2.1: unpool, rectify, filter).

    Only what a seed's values can reach is computed; `project_cells` gives just that, without the zeros around.

    Parameters
    ----------
    trace : of `refnet.net.forward`, without ``rng``, stopped at the layer to look at; with the same ``params``
    seed : (S, *shape of the last output), the activations to project, zero elsewhere (`seeds` makes them)
    rules : `DECONV`, `GUIDED`, or `GRADIENT`, for which ``seed`` times the gradient comes out
    image : (S,) image of the trace that each seed belongs to, on the host; default: seed i to image i

    Returns
    -------
    r : (S, H, W, C), signed: nothing is rectified after the last filtering. In the units of the input as scaled.

    Raises
    ------
    ValueError
        If shapes do not fit, an image is out of range, or a training run's trace meets other rules than `GRADIENT`.
    TypeError
        If dtypes or backends differ.
    """
    check_signal(trace, seed, image is not None or len(seed) == trace.n, rules)
    image = _images(trace, seed, image)
    whole = zeros((len(seed), *trace.arch.input), seed)
    if not len(seed):
        return whole
    boxes = _nonzero(seed) if seed.ndim == 4 else None
    r = seed if boxes is None else boxes.cut(seed)
    r, boxes = descend(trace, params, r, image, boxes, rules=rules)
    operations(r).paste_boxes(r, boxes.origin, whole)
    return whole


def seeds(y: Array, image: Array, maps: Array, row: Array | None = None, col: Array | None = None) -> Array:
    """One activation each and zeros elsewhere: what `project` starts from (section 2.1).

    Parameters
    ----------
    y : (N, P, Q, M) or (N, M) output of the layer
    image, maps, row, col : (S,) indices into ``y``; without rows and columns for a layer of units

    Returns
    -------
    (S, P, Q, M) or (S, M)
    """
    where = (maps,) if row is None or y.ndim == 2 else (row, col, maps)
    seed = zeros((len(image), *y.shape[1:]), y)
    seed[(np.arange(len(image)), *where)] = y[(image, *where)]
    return seed


def project_cells(
    trace: Trace,
    params: Params,
    y: Array,
    image: np.ndarray,
    maps: np.ndarray,
    row: np.ndarray | None = None,
    col: np.ndarray | None = None,
    *,
    rules: Rules = DECONV,
) -> tuple[Array, Boxes]:
    """What `project` makes of `seeds` of the same activations, cut to the boxes of pixels that they can reach.

    Parameters
    ----------
    trace, params, rules : as for `project`
    y : (N, P, Q, M) or (N, M), the trace's last output
    image, maps, row, col : (S,) indices into ``y``, S >= 1; without rows and columns for a layer of units

    Returns
    -------
    r : (S, h, w, C), 0 beyond the image
    boxes : rows and columns of the image that each is; they may hang over its edge

    Raises as `project` does, and ValueError where rows and columns are missing or negative.
    """
    check_signal(trace, y, len(y) == trace.n, rules)
    image = _images(trace, maps, image)
    if y.ndim == 2:
        return descend(trace, params, seeds(y, image, maps), image, None, rules=rules)
    if row is None or col is None:
        raise ValueError(f"{trace.arch.layers[-1].name} has maps: its cells need rows and columns")
    if min(np.min(row), np.min(col)) < 0:
        raise ValueError(f"cells in row {np.min(row)}, column {np.min(col)}: both count from 0")
    cells = zeros((len(image), 1, 1, y.shape[3]), y)
    cells[np.arange(len(image)), 0, 0, maps] = y[image, row, col, maps]
    return descend(trace, params, cells, image, Boxes(np.stack([row, col], axis=1), (1, 1)), rules=rules)


def _images(trace: Trace, signals: Array, image: Array | None) -> np.ndarray:
    """The image of each signal, checked."""
    if image is None:
        return np.arange(len(signals))
    if len(image) != len(signals) or (len(image) and not 0 <= min(image) <= max(image) < trace.n):
        few = list(image)[:9]
        raise ValueError(f"{len(signals)} signals for images {few}: one for each, from 0 to {trace.n - 1}")
    return np.asarray(image)


def _nonzero(seed: Array) -> Boxes:
    """The smallest boxes of one size that hold all that is not zero in each seed (S, P, Q, M)."""
    alive = to_host((seed != 0).any(axis=3))
    first, past = [], []
    for each in (np.any(alive, axis=2), np.any(alive, axis=1)):  # rows, columns
        some = np.any(each, axis=1)
        first.append(np.where(some, each.argmax(axis=1), 0))
        past.append(np.where(some, each.shape[1] - each[:, ::-1].argmax(axis=1), 1))
    origin, (rows, columns) = np.stack(first, axis=1), (np.array(past) - first).max(axis=1).tolist()
    return Boxes(np.minimum(origin, np.array(alive.shape[1:]) - (rows, columns)), (rows, columns))


@dataclass(frozen=True)
class Strongest:
    """The strongest activations of every map of a layer, (M, top) arrays, strongest first.

    ``image`` is the index in the data, ``row`` and ``col`` the position in the map (0 for a layer of units).
    Equal values are ranked by image, then position; ranks that found no image have image -1 and value -inf.
    """

    value: np.ndarray
    image: np.ndarray
    row: np.ndarray
    col: np.ndarray

    def of(self, maps: np.ndarray | slice) -> "Strongest":
        """Those of some maps."""
        return Strongest(self.value[maps], self.image[maps], self.row[maps], self.col[maps])


def strongest(y: Array, *, top: int = 9, one_per_image: bool = True) -> Strongest:
    """The ``top`` strongest activations of each map of y (N, P, Q, M) or (N, M).

    Whether the paper's nine come from nine images is not said; here they do, unless ``one_per_image`` is False.
    """
    found = Strongests(top=top, one_per_image=one_per_image)
    found.watch("", np.arange(len(y)), y)
    return found.of("")


class Strongests:
    """Collects the strongest activations of all maps of several layers in one pass over the data.

    Pass `watch` to `refnet.features.stream`. Neither threads nor the order of arrival change the result.
    """

    def __init__(self, layers: tuple[str, ...] | None = None, *, top: int = 9, one_per_image: bool = True) -> None:
        if top < 1:
            raise ValueError(f"top is {top}, it needs 1 or more")
        self.layers, self.top, self.one_per_image = layers, top, one_per_image
        self._best: dict[str, dict[str, np.ndarray]] = {}
        self._shape: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def watch(self, layer: str, images: np.ndarray, y: Array) -> np.ndarray | None:
        """Take in the layer's output y (n, P, Q, M) or (n, M) for the data's images (n,).

        Returns each map's largest activation in each image (n, M); None for a layer that is not looked at.
        """
        if self.layers is not None and layer not in self.layers:
            return None
        n, maps = len(y), y.shape[-1]
        flat = y.reshape(n, math.prod(y.shape[1:-1]), maps)
        peaks = to_host(flat.max(axis=1))
        with self._lock:
            best = self._best.setdefault(layer, self._nothing(maps, self.top))
            self._shape[layer] = tuple(y.shape[1:-1])
            least = best["value"][:, -1].copy()
        # Most images have nothing new for most maps: only those at or above a map's weakest are looked into.
        new_image, new_map = np.nonzero(peaks >= least)
        if not len(new_map):
            return peaks

        columns = to_host(flat[new_image, :, new_map])
        per_image = 1 if self.one_per_image else min(self.top, columns.shape[1])
        places = (
            np.argsort(-columns, axis=1, kind="stable")[:, :per_image]
            if per_image > 1
            else (columns.argmax(axis=1)[:, None])
        )
        found = {
            "value": np.take_along_axis(columns, places, axis=1),
            "image": np.broadcast_to(images[new_image, None], places.shape),
            "place": places,
        }
        with self._lock:
            shown, row = np.unique(new_map, return_inverse=True)
            rivals = self._nothing(len(shown), n * per_image)
            column = new_image[:, None] * per_image + np.arange(per_image)
            for key, each in rivals.items():
                each[row[:, None], column] = found[key]
            both = {key: np.concatenate([best[key][shown], rivals[key]], axis=1) for key in best}
            for key, each in self._ranked(both).items():
                best[key][shown] = each[:, : self.top]
        return peaks

    def _ranked(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each row by value, then image, then place; of an image only its first, unless all count."""
        if self.one_per_image:
            found = _sorted(found, (found["place"], -found["value"], found["image"]))
            again = np.diff(found["image"], axis=1, prepend=-1) == 0
            found["value"][again], found["image"][again], found["place"][again] = -np.inf, -1, 0
        return _sorted(found, (found["place"], found["image"], -found["value"]))

    def of(self, layer: str) -> Strongest:
        """What was found for a layer."""
        best, shape = self._best[layer], self._shape[layer]
        row, col = np.divmod(best["place"], shape[1]) if len(shape) == 2 else (0 * best["place"],) * 2
        return Strongest(best["value"].copy(), best["image"].copy(), row, col)

    @staticmethod
    def _nothing(maps: int, ranks: int) -> dict[str, np.ndarray]:
        shape = maps, ranks
        return {"value": np.full(shape, -np.inf), "image": np.full(shape, -1), "place": np.zeros(shape, np.int64)}


def _sorted(found: dict[str, np.ndarray], keys: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Every array's rows in the order of the keys, the last one first."""
    order = np.lexsort(keys, axis=1)
    return {key: np.take_along_axis(each, order, axis=1) for key, each in found.items()}
