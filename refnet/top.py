"""What excites a network's maps most: found in one pass over the data, and projected to pixels beside the patches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refnet import images, net, parallel
from refnet.arch import Arch, Branch, Conv, Relu, flat
from refnet.backend import Array, to_device, to_host
from refnet.datasets import Dataset
from refnet.deconv import DECONV, Strongest, Strongests, project_cells
from refnet.features import stream
from refnet.geometry import clip_box
from refnet.images import Pixels
from refnet.layers import Rules
from refnet.weights import Checkpoint

_AT_A_TIME = 64  # activations projected together: their traces and signals must fit in memory

# How a signed projection becomes grey levels (`refnet.images.to_uint8`); recorded beside the numbers.
PERCENTILE = 99.5
CONTRAST = f"each projection on its own: 0 is grey, +-the {PERCENTILE} percentile of its absolute values white or black"


@dataclass(frozen=True)
class Found:
    """What one pass over the data has found, by layer.

    ``best`` are the strongest activations of all maps, and ``peaks`` (N, M) the largest activation of each map in each
    image, NaN where the image cannot be read.
    """

    best: Mapping[str, Strongest]
    peaks: Mapping[str, np.ndarray]


def find(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layers: Sequence[str],
    *,
    top: int = 9,
    one_per_image: bool = True,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Found:
    """Run all images up to the last of the layers.

    Parameters
    ----------
    layers : their names
    top : activations of each map
    one_per_image : whether they must come from different images (the paper does not say)
    progress : called with the number of images done

    Raises
    ------
    ValueError
        If a layer does not exist or no image can be read.
    """
    last = checkpoint.arch.layers[max(map(checkpoint.arch.index, layers))].name
    shapes = checkpoint.arch.shapes()
    peaks = {layer: np.full((len(dataset), shapes[layer][-1]), np.nan, np.float32) for layer in layers}
    strongest = Strongests(tuple(layers), top=top, one_per_image=one_per_image)

    def watch(layer: str, image: np.ndarray, y: Array) -> None:
        largest = strongest.watch(layer, image, y)
        if largest is not None:
            peaks[layer][image] = largest

    done = 0
    for y, _, _ in stream(checkpoint, dataset, layer=last, watch=watch, device=device, threads=threads):
        done += len(y)
        progress(done)
    if not done:
        raise ValueError(f"none of the {len(dataset)} images could be read")
    return Found({layer: strongest.of(layer) for layer in layers}, peaks)


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


def visible(projections: np.ndarray) -> Pixels:
    """Projections (..., h, w, 3) as pixels, each with its own contrast as `CONTRAST` says."""
    each = projections.reshape(-1, *projections.shape[-3:])
    return np.stack([images.to_uint8(r, percentile=PERCENTILE) for r in each]).reshape(projections.shape)


def rectified(arch: Arch) -> list[str]:
    """The relu after every convolution: where Figure 2 starts."""
    return list(rectifiers(arch).values())


def rectifiers(arch: Arch) -> dict[str, str]:
    """Every convolution that a relu follows, in its own path, and that relu."""
    chains = [arch.layers, *(path for each in flat(arch.layers) if isinstance(each, Branch) for path in each.paths)]
    after = {
        layer.name: relu.name
        for chain in chains
        for layer, relu in pairwise(chain)
        if isinstance(layer, Conv) and isinstance(relu, Relu)
    }
    return {each.name: after[each.name] for each in flat(arch.layers) if each.name in after}


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
