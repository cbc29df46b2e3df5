"""Is the projection true? Hide what it shows, and see whether the activation that it is of falls.

A control beyond the paper. The pixels where a projection has most of its energy are hidden, and as controls equally
many in the same shape elsewhere in the receptive field: outside of it nothing can change an activation, which would be
too easy to beat. And the sanity check of Adebayo et al. 2018: a projection that stays the same when the weights above
or all of them are drawn anew shows the image, and not what the network has learnt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refnet import images, net
from refnet.arch import Arch, Params, Relu
from refnet.backend import Array, to_device, to_host, zeros
from refnet.datasets import Dataset
from refnet.deconv import RULES, project
from refnet.features import check_input
from refnet.geometry import clip_box
from refnet.weights import Checkpoint

Fill = Literal["mean", "grey"]
GREY = 128  # of 0..255
# What is hidden: the projection's strongest pixels; the same mask shifted cyclically within the receptive field by a
# random step; turned there by 180 degrees, so that it is as far from the middle; and what the projection from a network
# with random weights would hide.
PROJECTION, SHIFTED, TURNED, UNTRAINED = "projection", "shifted", "turned", "random weights"
MASKS = (PROJECTION, SHIFTED, TURNED, UNTRAINED)

ByMethod = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Units:
    """What hiding does to U activations of one layer, each the strongest of its map in its image.

    Attributes
    ----------
    layer : its name
    image, map, row, col : (U,) where each activation is
    share : (U,) of the image's pixels that its masks hide
    falls : method -> mask -> (U,) how much of the activation is lost, 1 if all; below 0 where it grows
    peak_falls : the same of the largest activation anywhere in the map
    random : the layers with weights from the top down; with the first d of them drawn anew, row d - 1 of
    alike : method -> "values" or "energy" -> (D, U) is the rank correlation with the trained network's projection
        within the receptive field, of the absolute values or of the pixels' energies
    """

    layer: str
    image: np.ndarray
    map: np.ndarray
    row: np.ndarray
    col: np.ndarray
    share: np.ndarray
    falls: ByMethod
    peak_falls: ByMethod
    random: tuple[str, ...]
    alike: ByMethod


def run(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layer: str,
    *,
    methods: Sequence[str] = tuple(RULES),
    units: int = 4,
    share: float = 0.05,
    fill: Fill = "mean",
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Units:
    """Hide what the projections of a layer's activations show, in every image.

    Parameters
    ----------
    layer : of maps; activations are taken and projected as they are before its relu, if it is one
    methods : names of `refnet.deconv.RULES`
    units : maps of each image, drawn at random of the half that it excites most of those that it excites at all; weak
        activations can grow manyfold, and no mean would survive them
    share : of the receptive field's pixels inside the image that are hidden: those with the most energy, which is the
        sum of the projection's squares over the colours. Equally many for all methods and controls
    fill : what hidden pixels show, the mean image or grey
    seed : of the maps, the shifts and the random weights (as `refnet.net.init_params` draws them)
    progress : called with the number of images done

    Raises
    ------
    ValueError
        If the layer does not exist or has no maps, an option is out of its range, or no image excites the layer.
    """
    check_input(checkpoint)
    if not 0 < share < 1 or units < 1:
        raise ValueError(f"share is {share} and units {units}; it needs a share between 0 and 1, and 1 unit or more")
    field, arch = checkpoint.arch.field(layer), checkpoint.arch.upto(_before_relu(checkpoint.arch, layer))
    mean = images.centre_crop(checkpoint.mean[None], arch.side)[0]
    seen = np.zeros_like(mean) if fill == "mean" else (GREY - mean) * checkpoint.scale
    params, cascade = net.on_device(checkpoint.params, device), _cascade(checkpoint, arch, seed, device)
    found: list[dict[str, np.ndarray]] = []
    for i in range(len(dataset)):
        try:
            pixels = images.centre_crop(dataset.image(i)[None], arch.side)
        except ValueError:
            continue  # the data set notes it
        rng = np.random.default_rng([seed, i])
        x = images.normalise(pixels, mean, checkpoint.scale).astype(checkpoint.dtype, copy=False)
        of = _Image(arch, x, seen.astype(x.dtype), device, threads)
        cells = _strongest(of.predict(params, x)[0], units, rng)
        boxes = [clip_box(field.box(row, col), (arch.side, arch.side)) for row, col, _ in cells.tolist()]
        if len(cells):
            found.append({"image": np.full(len(cells), i), **_measured(
                of, params, cascade, cells, boxes, methods=methods, share=share, rng=rng
            )})  # fmt: skip
        progress(i + 1)
    if len(found) < 2:
        raise ValueError(f"{len(found)} of {len(dataset)} images can be read and excite {layer}; errors need 2 or more")
    every = {key: np.concatenate([each[key] for each in found], axis=-1) for key in found[0]}

    def table(what: str, columns: Sequence[str]) -> ByMethod:
        return {method: {each: every[f"{what} {method} {each}"] for each in columns} for method in methods}

    row, col, map = every["cells"]
    return Units(
        layer, every["image"], map, row, col, every["share"], table("fall", MASKS), table("peak", MASKS),
        tuple(reversed(arch.param_shapes())), table("alike", ("values", "energy")),
    )  # fmt: skip


@dataclass(frozen=True)
class _Image:
    """An image x (1, H, W, C), what is seen where it is hidden (H, W, C), and how it runs up to the layer."""

    arch: Arch
    x: np.ndarray
    seen: np.ndarray
    device: str
    threads: int | None

    def predict(self, params: Params, x: np.ndarray) -> np.ndarray:
        """The layer's rectified output for images x (n, H, W, C)."""
        y = net.predict(self.arch, params, to_device(x, self.device), threads=self.threads)
        return np.asarray(np.maximum(to_host(y), 0))

    def project(self, params: Params, cells: np.ndarray, methods: Sequence[str]) -> dict[str, np.ndarray]:
        """The projection of 1 at each of the cells (U, 3): method -> (U, H, W, C)."""
        y, trace = net.forward(self.arch, params, to_device(self.x, self.device), threads=self.threads)
        ones: Array = zeros((len(cells), *y.shape[1:]), y)
        ones[(np.arange(len(cells)), *cells.T)] = 1
        image = np.zeros(len(cells), int)
        return {method: to_host(project(trace, params, ones, rules=RULES[method], image=image)) for method in methods}


def _measured(
    of: _Image,
    params: Params,
    cascade: list[Params],
    cells: np.ndarray,
    boxes: list[tuple[int, int, int, int]],
    *,
    methods: Sequence[str],
    share: float,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Everything about one image's cells (U, 3), each array's last axis U."""
    inside = [np.s_[row0:row1, col0:col1] for row0, col0, row1, col1 in boxes]
    projected = of.project(params, cells, methods)
    untrained = [of.project(each, cells, methods) for each in cascade]
    hidden = np.zeros((len(methods), len(MASKS), len(cells), of.arch.side, of.arch.side), bool)
    found: dict[str, np.ndarray] = {"cells": cells.T}
    for m, method in enumerate(methods):
        for u, box in enumerate(inside):
            mine, random = (support(energy(r[method][u][box]), share, rng) for r in (projected, untrained[-1]))
            masks = {PROJECTION: mine, SHIFTED: shifted(mine, rng), TURNED: mine[::-1, ::-1], UNTRAINED: random}
            for k, name in enumerate(MASKS):
                hidden[m, k, u][box] = masks[name]
        pairs = [[(projected[method][u][box], r[method][u][box]) for u, box in enumerate(inside)] for r in untrained]
        found[f"alike {method} values"] = np.array([[rank_correlation(abs(a), abs(b)) for a, b in p] for p in pairs])
        found[f"alike {method} energy"] = np.array(
            [[rank_correlation(energy(a), energy(b)) for a, b in p] for p in pairs]
        )
    each = np.arange(len(cells))
    bare = of.predict(params, of.x)[0][tuple(cells.T)]
    for m, method in enumerate(methods):
        for k, name in enumerate(MASKS):
            maps = of.predict(params, np.where(hidden[m, k][..., None], of.seen, of.x))
            found[f"fall {method} {name}"] = 1 - maps[(each, *cells.T)] / bare
            found[f"peak {method} {name}"] = 1 - maps[each, :, :, cells[:, 2]].max(axis=(1, 2)) / bare
    found["share"] = hidden[0, 0].mean(axis=(1, 2))
    return found


def energy(r: np.ndarray) -> np.ndarray:
    """Energy (h, w) of a projection (h, w, C): the sum of its squares over the colours."""
    return np.asarray(np.square(r).sum(axis=-1))


def support(energies: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mask (h, w) of the ``share`` of pixels with the most energy, one or more; equal ones are drawn at random."""
    count = max(1, round(share * energies.size))
    order = rng.permutation(energies.size)
    mask = np.zeros(energies.size, bool)
    mask[order[np.argsort(-energies.ravel()[order], kind="stable")[:count]]] = True
    return mask.reshape(energies.shape)


def shifted(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask (h, w) shifted cyclically by a random step that is not 0."""
    return np.roll(mask, divmod(int(rng.integers(1, mask.size)), mask.shape[1]), axis=(0, 1))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, over all elements; 0 if one of them is the same everywhere."""
    ranks = np.stack([_ranks(each) for each in (one, other)])
    return float(np.corrcoef(ranks)[0, 1]) if (np.ptp(ranks, axis=1) > 0).all() else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of every value, flat; equal ones have the mean of theirs."""
    _, which, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[which])


def mean_and_error(values: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """Mean of values (U,) over two or more images, each the mean of its units, and its standard error."""
    _, of = np.unique(image, return_inverse=True)
    means = np.bincount(of, values) / np.bincount(of)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def _before_relu(arch: Arch, layer: str) -> str:
    """The layer under a relu: random weights may leave at 0 what trained ones excite, and nothing would come down."""
    at = arch.index(layer)
    return arch.layers[at - 1].name if at and isinstance(arch.layers[at], Relu) else layer


def _cascade(checkpoint: Checkpoint, arch: Arch, seed: int, device: str) -> list[Params]:
    """The parameters with those of the top layer of ``arch`` drawn anew, of the top two, and so on to all."""
    rng = np.random.default_rng(seed)
    fresh = net.init_params(checkpoint.arch, rng=rng, dtype=checkpoint.dtype)
    names = list(reversed(arch.param_shapes()))
    return [
        net.on_device(checkpoint.params | {name: fresh[name] for name in names[: depth + 1]}, device)
        for depth in range(len(names))
    ]


def _strongest(y: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(U, 3) row, column and map of the largest activations in y (P, Q, M) of up to ``count`` well excited maps."""
    flat = y.reshape(-1, y.shape[-1])
    peaks = flat.max(axis=0)
    excited = np.flatnonzero(peaks > 0)
    strong = excited[peaks[excited] >= np.median(peaks[excited])] if len(excited) else excited
    maps = np.sort(rng.permutation(strong)[:count])
    return np.stack([*np.divmod(flat.argmax(axis=0)[maps], y.shape[1]), maps], axis=1)
