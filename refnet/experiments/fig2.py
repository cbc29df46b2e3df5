"""Figure 2: the strongest activations of a layer's maps, projected to pixels, beside the patches that caused them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refnet import images, net, parallel
from refnet.arch import Arch, Conv, Relu, flat
from refnet.backend import to_device, to_host
from refnet.datasets import Dataset
from refnet.deconv import DECONV, Strongest, Strongests, project_cells
from refnet.features import stream
from refnet.geometry import clip_box
from refnet.layers import Rules
from refnet.weights import Checkpoint

_AT_A_TIME = 64  # activations projected together: their traces and signals must fit in memory

# How a signed projection becomes grey levels (`refnet.images.to_uint8`); recorded beside the numbers.
PERCENTILE = 99.5
CONTRAST = f"each projection on its own: 0 is grey, +-the {PERCENTILE} percentile of its absolute values white or black"


@dataclass(frozen=True)
class LayerFeatures:
    """What excites some maps of one layer.

    Attributes
    ----------
    layer : its name
    maps : (K,) the maps shown
    strongest : their strongest activations, (K, top) arrays
    boxes : (K, top, 4) receptive field of each, rows and columns of the crop, not clipped: row0, col0, row1, col1
    projections : (K, top, h, w, 3) float32, signed, cut to the receptive field; 0 beyond the image
    patches : (K, top, h, w, 3) uint8, the image there; 128 beyond the image

    Ranks whose activation is not above 0, as in a dead map, have neither projection nor patch.
    """

    layer: str
    maps: np.ndarray
    strongest: Strongest
    boxes: np.ndarray
    projections: np.ndarray
    patches: np.ndarray


def run(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    layers: Sequence[str],
    maps: int | None = 16,
    top: int = 9,
    one_per_image: bool = True,
    rules: Rules = DECONV,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> list[LayerFeatures]:
    """Find the strongest activations of all maps of the layers in one pass, and project those of some maps.

    Parameters
    ----------
    layers : names of the layers to start from
    maps : how many maps of each layer to show, drawn at random with ``seed`` as in the paper, of those that any image
        excites; None shows all
    top : activations of each map
    one_per_image : whether they must come from different images (the paper does not say)
    rules : of the projection, `refnet.deconv.DECONV` by default
    progress : called with the number of images done

    Raises
    ------
    ValueError
        If a layer does not exist, no image can be read, or none excites any map of a layer.
    """
    if not layers or (maps is not None and maps < 1):
        raise ValueError(f"{len(layers)} layers and {maps} maps are asked for; it needs one or more of each")
    last = checkpoint.arch.layers[max(map(checkpoint.arch.index, layers))].name
    found = Strongests(tuple(layers), top=top, one_per_image=one_per_image)
    done = 0
    for y, _, _ in stream(checkpoint, dataset, layer=last, watch=found.watch, device=device, threads=threads):
        done += len(y)
        progress(done)
    if not done:
        raise ValueError(f"none of the {len(dataset)} images could be read")
    rng = np.random.default_rng(seed)
    features = []
    for layer in layers:
        best = found.of(layer)
        alive = np.flatnonzero(best.value[:, 0] > 0)
        shown = np.arange(len(best.value)) if maps is None else np.sort(rng.permutation(alive)[:maps])
        chosen = Strongest(*(getattr(best, each)[shown] for each in ("value", "image", "row", "col")))
        features.append(project(checkpoint, dataset, layer, shown, chosen, rules=rules, device=device, threads=threads))
    return features


def rectified(arch: Arch) -> list[str]:
    """The relu after every convolution: where Figure 2 starts."""
    pairs = pairwise(flat(arch.layers))
    return [after.name for layer, after in pairs if isinstance(layer, Conv) and isinstance(after, Relu)]


def project(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layer: str,
    maps: np.ndarray,
    best: Strongest,
    *,
    rules: Rules = DECONV,
    device: str = "cpu",
    threads: int | None = None,
) -> LayerFeatures:
    """Project some activations of one layer, a few images at a time.

    Parameters
    ----------
    maps : (K,) the maps; one may come again
    best : (K, top) arrays, each map's activations

    Raises
    ------
    ValueError
        If there are no maps.
    """
    if not len(maps):
        raise ValueError(f"{layer} has no map that any image excites: the weights are untrained or have diverged")
    arch = checkpoint.arch.upto(layer)
    boxes = _boxes(arch, layer, best)
    size = boxes[0, 0, 2] - boxes[0, 0, 0], boxes[0, 0, 3] - boxes[0, 0, 1]
    projections = np.zeros((*best.value.shape, *size, 3), np.float32)
    patches = np.full(projections.shape, 128, np.uint8)
    params = net.on_device(checkpoint.params, device)
    # Of each activation, its map's place in ``maps`` and its rank; what is not above 0 excites nothing.
    number, rank = np.nonzero((best.image >= 0) & (best.value > 0))
    order = np.argsort(best.image[number, rank], kind="stable")
    for some in parallel.cut(len(order), _AT_A_TIME):
        where = number[order[some]], rank[order[some]]
        of, image = np.unique(best.image[where], return_inverse=True)
        pixels = images.centre_crop(np.stack([dataset.image(i) for i in of]), arch.side)
        mean = images.centre_crop(checkpoint.mean[None], arch.side)[0]
        x = to_device(images.normalise(pixels, mean, checkpoint.scale).astype(checkpoint.dtype, copy=False), device)
        y, trace = net.forward(arch, params, x, threads=threads)
        r, reached = project_cells(
            trace, params, y, image, maps[where[0]], best.row[where], best.col[where], rules=rules
        )
        r = to_host(r)
        for k, place in enumerate(zip(*where, strict=True)):
            row, col = reached.origin[k] - boxes[place][:2]
            projections[place][row : row + reached.size[0], col : col + reached.size[1]] = r[k]
            _cut(pixels[image[k]], boxes[place], patches[place])
    return LayerFeatures(layer, maps, best, boxes, projections, patches)


def _boxes(arch: Arch, layer: str, best: Strongest) -> np.ndarray:
    """Receptive field of every activation; the whole image for a layer of units."""
    if len(arch.shapes()[layer]) == 1:
        return np.broadcast_to([0, 0, *arch.input[:2]], (*best.value.shape, 4))
    field = arch.field(layer)
    return np.array(
        [[field.box(*at) for at in zip(*each, strict=True)] for each in zip(best.row, best.col, strict=True)]
    )


def _cut(image: np.ndarray, box: np.ndarray, into: np.ndarray) -> None:
    """Copy the box of the image; what lies beyond the image is left as it is."""
    top, left, bottom, right = (int(edge) for edge in box)
    row0, col0, row1, col1 = clip_box((top, left, bottom, right), (image.shape[0], image.shape[1]))
    into[row0 - top : row1 - top, col0 - left : col1 - left] = image[row0:row1, col0:col1]
