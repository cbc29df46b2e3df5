"""Where does a network look? The pointing game (Zhang et al. 2016) on drawn scenes, whose truth is known.

A control beyond the paper: projections and the occlusion of section 4.2 each give a map of what matters in an image.
It should point at the object, and better than chance, the middle of the image, the image's own edges, and the same
method on random weights.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from refnet import datasets, images, net, occlusion, top
from refnet.backend import Array, to_device, to_host, zeros
from refnet.datasets import Dataset
from refnet.deconv import RULES, project, seeds
from refnet.features import check_input
from refnet.images import Pixels
from refnet.ops.loss import softmax
from refnet.weights import Checkpoint

Mask = npt.NDArray[np.bool_]
GREY = 128  # of 0..255, the paper's grey square
OCCLUSION, EDGES, CENTRE, CHANCE = "occlusion", "edges of the image", "centre", "chance"
BASELINES = (EDGES, CENTRE, CHANCE)  # which know nothing of the network


@dataclass(frozen=True)
class Score:
    """How well one map points.

    ``hit`` is whether its largest value is on the object (for chance, how probable that is), ``inside`` the share of
    its sum that is on the object, and ``distance`` how far its largest value is from the nearest part, in sides of the
    image (for chance, of a random point on the object).
    """

    hit: float
    inside: float
    distance: float


@dataclass(frozen=True)
class Pointed:
    """One scene: its index in the data, what the network sees (S, S, 3), the object, and maps (S, S) and scores."""

    image: int
    pixels: Pixels
    mask: Mask
    maps: Mapping[str, np.ndarray]
    scores: Mapping[str, Score]


def run(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    square: int | None = None,
    step: int | None = None,
    best: int = 9,
    smooth: float = 1 / 40,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Iterator[Pointed]:
    """Point at the object of every scene, one after the other.

    Parameters
    ----------
    dataset : drawn scenes
    square, step : of occlusion, in pixels; default 27 and 7 of 224. The square is grey
    best : activations of the last convolution to project, the strongest ones of all its maps
    smooth : standard deviation of the Gaussian that maps are smoothed with before their largest value is looked for,
        in sides of the image

    Raises
    ------
    ValueError
        If an image is no drawn scene, or an option does not fit.
    """
    check_input(checkpoint)
    if best < 1 or smooth < 0:
        raise ValueError(f"best is {best} and smooth {smooth}; it needs 1 or more, and 0 or more")
    size, side = checkpoint.arch.side, dataset.side
    start = (side - size) // 2
    mean = images.centre_crop(checkpoint.mean[None], size)[0]
    square, step = square or round(27 * size / 224), step or max(1, round(7 * size / 224))
    for i, name in enumerate(dataset.names):
        truth = datasets.drawing(name, side=side)
        if truth is None:
            raise ValueError(f"{name} is no drawn scene; only of these it is known where the object is")
        pixels = images.centre_crop(dataset.image(i)[None], size)
        x = images.normalise(pixels, mean, checkpoint.scale)[0].astype(checkpoint.dtype, copy=False)
        grey = (GREY - mean) * checkpoint.scale
        maps = {
            OCCLUSION: occluded(checkpoint, x, truth.label, square, step, grey, device, threads),
            **projected(checkpoint, x, truth.label, best, device, threads),
            EDGES: edges(x),
            CENTRE: centre(size),
        }
        mask = truth.mask[start : start + size, start : start + size]
        parts = np.array(list(truth.parts.values())) - start
        scores = {name: judge(each, mask, parts, sigma=smooth * size) for name, each in maps.items()}
        yield Pointed(i, pixels[0], mask, maps, {**scores, CHANCE: chance(mask, parts)})
        progress(i + 1)


def occluded(
    checkpoint: Checkpoint,
    x: np.ndarray,
    label: int,
    square: int,
    step: int,
    fill: np.ndarray,
    device: str,
    threads: int | None,
) -> np.ndarray:
    """How much a class's probability falls on average behind the squares that cover a pixel (S, S), 0 if it grows."""
    params = net.on_device(checkpoint.params, device)
    sweep = occlusion.slide(
        checkpoint.arch, params, to_device(x, device), square=square, step=step, fill=to_device(fill, device),
        threads=threads,
    )  # fmt: skip
    p = to_host(sweep.probabilities)[..., label]
    bare = to_host(softmax(sweep.base_logits))[label]
    pixel = np.arange(len(x))
    rows, cols = (
        ((at[:, None] <= pixel) & (pixel < at[:, None] + square)).astype(float) for at in (sweep.rows, sweep.cols)
    )
    covering = rows.T @ np.ones_like(p) @ cols
    falls = rows.T @ (bare - p) @ cols / np.maximum(covering, 1)
    return np.asarray(np.maximum(falls, 0))


def projected(
    checkpoint: Checkpoint, x: np.ndarray, label: int, best: int, device: str, threads: int | None
) -> dict[str, np.ndarray]:
    """Energies (S, S) of the projections of a class's logit, and of the last convolution's strongest activations.

    Each of the activations is projected on its own, and their energies are added.
    """
    arch, params = checkpoint.arch, net.on_device(checkpoint.params, device)
    last = top.rectified(arch)[-1]
    found = {}
    for layer, name in ((None, "class"), (last, last)):
        y, trace = net.forward(arch, params, to_device(x[None], device), stop=layer, threads=threads)
        if layer is None:
            seed: Array = zeros(y.shape, y)
            seed[0, label] = 1
        else:
            order = np.argsort(-to_host(y).ravel(), kind="stable")[:best]
            _, row, col, maps = np.unravel_index(order, y.shape)
            seed = seeds(y, 0 * row, maps, row, col)
        image = np.zeros(len(seed), int)
        for method, rules in RULES.items():
            r = to_host(project(trace, params, seed, rules=rules, image=image))
            found[f"{method} of {name}"] = np.square(r).sum(axis=(0, 3))
    return found


def edges(x: np.ndarray) -> np.ndarray:
    """Squared slopes (S, S) of an image x (S, S, C), added over directions and colours."""
    return np.asarray(np.square(np.gradient(x, axis=(0, 1))).sum(axis=(0, 3)))


def centre(size: int) -> np.ndarray:
    """A Gaussian hill (S, S) in the middle of the image, a quarter of its side wide."""
    hill = np.exp(-0.5 * ((np.arange(size) + 0.5 - size / 2) / (size / 4)) ** 2)
    return np.outer(hill, hill)


def judge(saliency: np.ndarray, mask: Mask, parts: np.ndarray, *, sigma: float) -> Score:
    """Score of a map (S, S), 0 or more everywhere, against the object (S, S) and its parts' middles (P, 2).

    Before its largest value is looked for, the map is smoothed with a Gaussian of ``sigma`` pixels. Where it is 0
    everywhere, it points nowhere: no hit, and all else as chance has it.
    """
    if not saliency.any():
        return Score(0, *[getattr(chance(mask, parts), each) for each in ("inside", "distance")])
    at = peak(saliency, sigma)
    inside = float(saliency[mask].sum() / saliency.sum())
    return Score(float(mask[at]), inside, float(_to_nearest(np.array([at]), parts)[0] / len(mask)))


def peak(saliency: np.ndarray, sigma: float) -> tuple[int, int]:
    """Row and column of a map's largest value, once it is smoothed."""
    smoothed = gaussian_filter(saliency, sigma, mode="constant")
    row, col = np.unravel_index(int(smoothed.argmax()), smoothed.shape)
    return int(row), int(col)


def chance(mask: Mask, parts: np.ndarray) -> Score:
    """What pointing at random scores: the object's share of the image; its distance is that of points on the object."""
    away = _to_nearest(np.argwhere(mask), parts).mean() / len(mask)
    return Score(float(mask.mean()), float(mask.mean()), float(away))


def _to_nearest(pixels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Distance of the middle of each pixel (n, 2) to the nearest part (n,)."""
    return np.asarray(np.linalg.norm(pixels[:, None] + 0.5 - parts, axis=2).min(axis=1))
