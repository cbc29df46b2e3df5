"""Figure 7: a grey square slides over images, and we see where the strongest map and the right class miss something.

Section 4.2 makes two claims, and `Effect` has a measure of each, with a null beside it. The network sees the object
itself: the right class's probability falls where the object is covered. And a projection shows what excites its map:
the map's activity falls where what the projection shows is covered.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from refnet import datasets, images, net, occlusion
from refnet.backend import to_device, to_host
from refnet.datasets import Dataset
from refnet.deconv import Strongest
from refnet.geometry import clip_box
from refnet.images import Pixels
from refnet.occlusion import Sweep
from refnet.ops.loss import softmax
from refnet.top import LayerFeatures, project
from refnet.weights import Checkpoint

Fill = Literal["grey", "mean"]
Mask = npt.NDArray[np.bool_]
GREY = 128  # of 0..255, the paper's grey square


@dataclass(frozen=True)
class Row:
    """One image behind the square: a row of the figure.

    Attributes
    ----------
    image, label : its index in the data, and the right class
    pixels : (S, S, 3) uint8, what the network sees of it
    mask : (S, S) pixels of the object, or None where the truth is not known
    square : the square's side
    sweep : for every place of the square, the network's output and the activity of the map with the largest activation
        in the bare image; on the host
    features : that map's largest activation in this image, and then its largest in others, projected; (1, 1 + top)
    """

    image: int
    label: int
    pixels: Pixels
    mask: Mask | None
    square: int
    sweep: Sweep
    features: LayerFeatures

    @property
    def bare(self) -> float:
        """Probability of the right class in the bare image."""
        return float(softmax(self.sweep.base_logits)[self.label])

    @property
    def probability(self) -> np.ndarray:
        """Probability of the right class (R, C), Figure 7 (d)."""
        right: np.ndarray = self.sweep.probabilities[..., self.label]
        return right

    @property
    def covers(self) -> tuple[Mask, Mask]:
        """Whether the square covers a row of the image (R, S), and a column (C, S)."""
        pixel = np.arange(len(self.pixels))
        rows, cols = ((at[:, None] <= pixel) & (pixel < at[:, None] + self.square) for at in self.corners)
        return rows, cols

    @property
    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (R,) and columns (C,) of the square's top left corner."""
        return self.sweep.rows, self.sweep.cols


@dataclass(frozen=True)
class Effect:
    """What the square does to one image.

    Attributes
    ----------
    bare, lowest : probability of the right class in the bare image, and the lowest behind the square
    wrong : share of the places of the square where another class is the most probable
    activity : the lowest activity of the strongest map, as a share of the bare image's
    explained : correlation, over the places, between how much of the map's projection the square covers and how far
        the map's activity falls; None where one of them is the same everywhere
    turned : the same with the projection turned by 180 degrees, which is as far from the middle: the null
    overlap : share of the object's pixels among as many pixels that are the most sensitive ones, that is, with the
        largest mean fall of the right class over the squares that cover them; None where the truth is not known
    centre, chance : the same for as many pixels next to the middle of the image, and for pixels drawn at random
    """

    bare: float
    lowest: float
    wrong: float
    activity: float
    explained: float | None
    turned: float | None
    overlap: float | None
    centre: float | None
    chance: float | None


def square_and_step(side: int) -> tuple[int, int]:
    """Sides of the square and of its step for crops of a side: 27 and 7 at the paper's 224 pixels, which are silent."""
    return max(1, round(27 * side / 224)), max(1, round(7 * side / 224))


def rows(
    checkpoint: Checkpoint,
    dataset: Dataset,
    chosen: Iterable[int],
    *,
    layer: str,
    square: int,
    step: int,
    fill: Fill = "grey",
    best: Strongest | None = None,
    top: int = 3,
    device: str = "cpu",
    threads: int | None = None,
) -> Iterator[Row]:
    """The square over some images of the data, one after the other (section 4.2).

    Parameters
    ----------
    chosen : indices of the images
    layer : whose strongest map is watched; the paper's is the last convolution, rectified
    square, step : sides in pixels, as `square_and_step` gives
    fill : what the square shows, grey pixels of `GREY`, or the mean image
    best : the strongest activations of all of the layer's maps over the data, one of an image, from which the ``top``
        of other images are projected too; without it, only that in the image itself

    Raises
    ------
    ValueError
        If an image cannot be read, the network has another number of outputs than the data classes, or as in
        `refnet.occlusion.slide`.
    """
    arch = checkpoint.arch
    outputs = arch.shapes()[arch.layers[-1].name]
    if outputs != (len(dataset.classes),):
        raise ValueError(f"the network's output is {outputs}, but the data has {len(dataset.classes)} classes")
    params = net.on_device(checkpoint.params, device)
    mean = images.centre_crop(checkpoint.mean[None], arch.side)
    shown = {"grey": np.full_like(mean, GREY), "mean": mean}[fill]
    seen = to_device(images.normalise(shown, mean[0], checkpoint.scale)[0].astype(checkpoint.dtype), device)
    for image in chosen:
        pixels = images.centre_crop(dataset.image(image)[None], arch.side)
        x = to_device(images.normalise(pixels, mean[0], checkpoint.scale).astype(checkpoint.dtype), device)
        sweep = occlusion.slide(arch, params, x[0], square=square, step=step, fill=seen, layer=layer, threads=threads)
        sweep = replace(
            sweep, logits=to_host(sweep.logits), activity=to_host(sweep.activity),
            base_logits=to_host(sweep.base_logits),
        )  # fmt: skip
        maps = to_host(net.predict(arch, params, x, stop=layer, threads=threads))[0, ..., sweep.map]
        strongest = _here_and_elsewhere(image, maps, sweep.map, best, top)
        shown_map = np.array([sweep.map])
        features = project(checkpoint, dataset, layer, shown_map, strongest, device=device, threads=threads)
        mask = _mask(dataset, image, arch.side)
        yield Row(image, int(dataset.labels[image]), pixels[0], mask, square, sweep, features)


def effect(row: Row) -> Effect:
    """The numbers of a row."""
    in_rows, in_cols = row.covers
    energy = _energy(row)
    fall = row.sweep.base_activity - row.sweep.activity
    covered, turned = (in_rows @ each @ in_cols.T for each in (energy, energy[::-1, ::-1]))
    overlaps: list[float | None] = [None] * 3
    if row.mask is not None:
        seen: Mask = np.outer(in_rows.any(axis=0), in_cols.any(axis=0))
        pixel = np.arange(len(energy)) + 0.5 - len(energy) / 2
        near = -np.hypot(pixel[:, None], pixel)
        flat = np.zeros(energy.shape)
        overlaps = [overlap(each[seen], row.mask[seen]) for each in (sensitivity(row), near, flat)]
    return Effect(
        bare=row.bare,
        lowest=float(row.probability.min()),
        wrong=float((row.sweep.labels != row.label).mean()),
        activity=float(row.sweep.activity.min()) / row.sweep.base_activity,
        explained=_correlation(covered, fall),
        turned=_correlation(turned, fall),
        overlap=overlaps[0],
        centre=overlaps[1],
        chance=overlaps[2],
    )


def sensitivity(row: Row) -> np.ndarray:
    """Of every pixel (S, S), the mean fall of the right class over the squares that cover it; NaN if none does."""
    in_rows, in_cols = row.covers
    total = in_rows.T @ (row.bare - row.probability.astype(np.float64)) @ in_cols
    count = np.outer(in_rows.sum(axis=0), in_cols.sum(axis=0))
    mean: np.ndarray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def overlap(strength: np.ndarray, mask: Mask) -> float:
    """Share of the mask's pixels (P,) among as many with the largest strength (P,); NaN for an empty mask.

    Of equal ones at the edge, each counts in part, so that where all are equal, the mask's share of all comes out.
    """
    n = int(mask.sum())
    if not n:
        return np.nan
    edge = np.sort(strength)[-n]
    above, equal = strength > edge, strength == edge
    return float((mask[above].sum() + mask[equal].sum() * (n - above.sum()) / equal.sum()) / n)


def _here_and_elsewhere(image: int, maps: np.ndarray, number: int, best: Strongest | None, top: int) -> Strongest:
    """The largest activation of map ``number`` in this image, where the map is ``maps`` (P, Q), and of others."""
    row, col = np.unravel_index(maps.argmax(), maps.shape)
    here = [np.array([each]) for each in (maps.max(), image, row, col)]
    if best is None:
        return Strongest(*(each[None] for each in here))
    elsewhere = np.flatnonzero(best.image[number] != image)[:top]
    there = [each[number][elsewhere] for each in (best.value, best.image, best.row, best.col)]
    return Strongest(*(np.concatenate(pair)[None] for pair in zip(here, there, strict=True)))


def _mask(dataset: Dataset, image: int, side: int) -> Mask | None:
    """The pixels of a drawn scene's object in the centre crop."""
    drawing = datasets.drawing(dataset.names[image], side=dataset.side)
    if drawing is None:
        return None
    row, col, height, width = images.fixed(dataset.side, side).box[0]
    return drawing.mask[row : row + height, col : col + width]


def _energy(row: Row) -> np.ndarray:
    """How much the projection of the map's activation in this image shows at each pixel (S, S)."""
    whole = np.zeros(row.pixels.shape[:2])
    top, left, bottom, right = (int(edge) for edge in row.features.boxes[0, 0])
    row0, col0, row1, col1 = clip_box((top, left, bottom, right), (len(whole), len(whole)))
    shown = np.abs(row.features.projections[0, 0]).sum(axis=2)
    whole[row0:row1, col0:col1] = shown[row0 - top : row1 - top, col0 - left : col1 - left]
    return whole


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) if one.std() > 0 and other.std() > 0 else None
