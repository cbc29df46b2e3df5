"""Table 1 and Figure 8: does the network know that eyes go with eyes and noses with noses (section 4.4)?

Mask the same part in several images. If the change of a layer's features has the same direction in all of them, the
layer knows, without having been told, that it is the same part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refnet import images, models, net
from refnet.backend import to_device, to_host
from refnet.parts import Marked
from refnet.weights import Checkpoint

RANDOM = "random"
ROUNDING = 1e-11  # of a layer's largest feature: changes up to here are none

# The paper's Delta at layers 5 and 7, with its +-.
PAPER = {
    "right eye": ((0.067, 0.007), (0.069, 0.015)),
    "left eye": ((0.069, 0.007), (0.068, 0.013)),
    "nose": ((0.079, 0.017), (0.069, 0.011)),
    RANDOM: ((0.107, 0.017), (0.073, 0.014)),
}


@dataclass(frozen=True)
class Delta:
    """How much the signs of the features' changes differ from image to image, at one layer for one part.

    Attributes
    ----------
    mean, std : of the distance of two images' signs, over all pairs of images
    p : of a part, how probable a ``mean`` as far below that of random places is by chance: the share of permutations,
        each of which swaps the part's and the random place's change in a random half of the images. NaN for random
    """

    mean: float
    std: float
    p: float


@dataclass(frozen=True)
class Correspondence:
    """Deltas by distance (`DISTANCES`), layer and part, random places last; masked images (N, S, S, 3) by part."""

    deltas: Mapping[str, Mapping[str, Mapping[str, Delta]]]
    masked: Mapping[str, np.ndarray]


def run(
    checkpoint: Checkpoint,
    marked: Marked,
    *,
    layers: Sequence[str] | None = None,
    size: float = 0.6,
    draws: int = 10,
    permutations: int = 2000,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
) -> Correspondence:
    """Mask each part in all images, and random places, and compare the changes of the layers' features.

    A part that lies in about the same place in all images changes the same places of a layer's maps, which alone makes
    its Delta smaller than that of random places; what a network has learnt shows against one with random weights.


    Parameters
    ----------
    marked : images of the mean's side with the places of their parts, at least 5 as in the paper
    layers : names; default the ends of layers 5 and 7
    size : the mask's side in units of the distance between the eyes; the paper does not say. It shows the mean image
    draws : sets of random places; a random mask is inside the image and overlaps no part's mask
    permutations : of the test against random places

    Raises
    ------
    ValueError
        If there are fewer than 5 images, a part is outside of the crop, or no random place is free.
    """
    if len(marked.names) < 5:
        raise ValueError(f"{len(marked.names)} images; the same part in 5 or more is what is compared")
    layers = layers or list(dict.fromkeys(models.end_of(checkpoint.arch, stage) for stage in (5, 7)))
    side, rng = checkpoint.arch.side, np.random.default_rng(seed)
    pixels = images.centre_crop(marked.pixels, side)
    mean = images.centre_crop(checkpoint.mean[None], side)[0]
    x = images.normalise(pixels, mean, checkpoint.scale).astype(np.float64)
    sides = np.maximum(np.round(size * marked.unit).astype(int), 1)
    corners = {part: _corners(marked, part, places, sides, side) for part, places in marked.places.items()}
    taken = np.stack(list(corners.values()))
    random = [_free(taken, sides, side, marked.names, rng) for _ in range(draws)]
    params = net.on_device(
        {name: {key: a.astype(np.float64) for key, a in layer.items()} for name, layer in checkpoint.params.items()},
        device,
    )

    def features(x: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {
            layer: np.empty((len(x), *checkpoint.arch.shapes()[layer]), x.dtype) for layer in layers
        }

        def watch(layer: str, part: slice, y: np.ndarray) -> None:
            if layer in found:
                found[layer][part] = to_host(y)

        last = checkpoint.arch.layers[max(map(checkpoint.arch.index, layers))].name
        net.predict(checkpoint.arch, params, to_device(x, device), stop=last, watch=watch, threads=threads)
        return {layer: y.reshape(len(x), -1) for layer, y in found.items()}

    before = features(x)

    def signs(corner: np.ndarray) -> dict[str, np.ndarray]:
        after = features(_masked(x, corner, sides, 0))
        return {layer: signs_of_change(before[layer], after[layer]) for layer in layers}

    by_part = {part: signs(corner) for part, corner in corners.items()}
    by_draw = [signs(corner) for corner in random]

    def delta(distance: Distance, layer: str, sets: list[dict[str, np.ndarray]]) -> Delta:
        against = [] if sets is by_draw else [each[layer] for each in by_draw]
        return _delta(distance, [each[layer] for each in sets], against, permutations, rng)

    deltas = {
        name: {
            layer: {
                **{part: delta(distance, layer, [each]) for part, each in by_part.items()},
                RANDOM: delta(distance, layer, by_draw),
            }
            for layer in layers
        }
        for name, distance in DISTANCES.items()
    }
    grey = np.round(mean).astype(np.uint8)
    masked = {part: _masked(pixels, corner, sides, grey) for part, corner in {**corners, RANDOM: random[0]}.items()}
    return Correspondence(deltas, masked)


def signs_of_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """-1, 0 or 1 of features (N, F) in float64, int8; a change too small to be one is 0.

    A fast convolution works in blocks, so that a hidden pixel changes the rounding of features that it isn't seen by.
    In float64 that lies far below any change.
    """
    change = before - after
    change[np.abs(change) <= ROUNDING * np.abs(before).max(initial=0)] = 0
    signs: np.ndarray = np.sign(change).astype(np.int8)
    return signs


def hamming(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of features with another sign, of every row of ``one`` (N, F) and of ``other`` (M, F): (N, M).

    Sign 0, that of a feature that has not changed, is a sign of its own.
    """
    return np.stack([(each != other).mean(axis=1) for each in one])


def hamming_of_changed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`hamming` among the features that have changed in at least one of the two; 0 where none has.

    Most rectified features are 0 before and after and agree in that: what changes few features, as a mask in a corner
    does, has a small `hamming` whatever it changes them to.
    """
    changed = np.stack([((each != 0) | (other != 0)).sum(axis=1) for each in one])
    different = np.stack([(each != other).sum(axis=1) for each in one])
    return np.asarray(different / np.maximum(changed, 1))


Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
DISTANCES: dict[str, Distance] = {"all features": hamming, "changed features": hamming_of_changed}


def _delta(
    distance: Distance,
    sets: list[np.ndarray],
    against: list[np.ndarray],
    permutations: int,
    rng: np.random.Generator,
) -> Delta:
    """Of the signs (N, F) of one or more sets of masks, tested against those of other sets."""
    pairs = np.triu_indices(len(sets[0]), 1)
    every = np.concatenate([distance(signs, signs)[pairs] for signs in sets])
    p = _test(distance, sets[0], against, permutations, rng) if against else np.nan
    return Delta(float(every.mean()), float(every.std(ddof=1)), p)


def _test(
    distance: Distance, part: np.ndarray, against: list[np.ndarray], permutations: int, rng: np.random.Generator
) -> float:
    """Share of swaps, the one that was seen among them, whose difference is as far below 0 as the one seen."""
    n = len(part)
    pairs = np.triu_indices(n, 1)
    # Between all 2 N changes; an image's own part is at i, its random place at N + i.
    both = [np.concatenate([part, each]) for each in against]
    distances = np.mean([distance(each, each) for each in both], axis=0)

    def difference(swapped: np.ndarray) -> float:
        here, there = np.arange(n) + n * swapped, np.arange(n) + n * ~swapped
        return float(distances[np.ix_(here, here)][pairs].mean() - distances[np.ix_(there, there)][pairs].mean())

    seen = difference(np.zeros(n, bool))
    chance = [difference(rng.random(n) < 0.5) for _ in range(permutations)]
    return (1 + sum(each <= seen for each in chance)) / (1 + permutations)


def _corners(marked: Marked, part: str, places: np.ndarray, sides: np.ndarray, side: int) -> np.ndarray:
    """Top left corners (N, 2) of the masks over a part, in the crop; ValueError for a part outside of it."""
    offset = (marked.pixels.shape[1] - side) // 2
    middle = places - offset
    for name, (row, col) in zip(marked.names, middle, strict=True):
        if not (0 <= row < side and 0 <= col < side):
            raise ValueError(f"{name}: its {part} is outside of the {side} pixels that the network sees")
    corners: np.ndarray = np.round(middle - sides[:, None] / 2).astype(int)
    return corners


def _free(
    taken: np.ndarray, sides: np.ndarray, side: int, names: Sequence[str], rng: np.random.Generator
) -> np.ndarray:
    """Corners (N, 2) of a random mask in each image that overlaps none of the masks at ``taken`` (parts, N, 2)."""
    corners = []
    for i, size in enumerate(sides.tolist()):
        grid = np.stack(np.meshgrid(*[np.arange(side - size + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        apart = (np.abs(grid[:, None] - taken[:, i]) >= size).any(axis=2).all(axis=1)
        if not apart.any():
            raise ValueError(
                f"{names[i]}: no place beside the parts for a random mask of {size} pixels; use a smaller size"
            )
        corners.append(grid[rng.choice(np.flatnonzero(apart))])
    return np.array(corners)


def _masked(x: np.ndarray, corners: np.ndarray, sides: np.ndarray, fill: np.ndarray | int) -> np.ndarray:
    """Copies of the images (N, S, S, 3) that show ``fill`` inside of each one's square."""
    masked = x.copy()
    whole = np.broadcast_to(fill, x.shape[1:])
    for image, (row, col), size in zip(masked, corners.tolist(), sides.tolist(), strict=True):
        box = np.s_[max(row, 0) : row + size, max(col, 0) : col + size]
        image[box] = whole[box]
    return masked
