"""Figure 6: layer 1 with and without the RMS clip, and Krizhevsky's against Figure 3's, in pictures and numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from refnet import images
from refnet.arch import Conv
from refnet.datasets import Dataset
from refnet.sgd import filter_rms
from refnet.top import LayerFeatures, find, project, rectified
from refnet.weights import Checkpoint

BANDS = (1 / 8, 1 / 4)  # cycles per pixel: low below, middle between, high above; up to 0.71 there is
DEAD = 0.01  # a map that never exceeds this share of its layer's strongest activation counts as dead
SIDE = 64  # of the transforms of filters: frequencies in steps of 1/64 cycle per pixel


@dataclass(frozen=True)
class Look:
    """Layer 1 of a network, what it costs layer 2, and layer 2's maps.

    Attributes
    ----------
    w : (K, K, 3, M) the filters of layer 1
    rms : (M,) their root mean squares
    clipped : how many filters of the network a step clipped on average, in the whole training
    dead : share of layer 1's maps that hardly anything in the data excites (`DEAD`)
    bands : (M, 3) share of each filter's energy at low, middle and high spatial frequencies (`BANDS`)
    aliasing : (M,) share of the energy of each filter's response to the data at frequencies that its stride cannot
        carry (above half a cycle per stride) and that layer 2 therefore sees as other ones
    layer2 : the strongest activations of some maps of layer 2
    """

    w: np.ndarray
    rms: np.ndarray
    clipped: float
    dead: float
    bands: np.ndarray
    aliasing: np.ndarray
    layer2: LayerFeatures


def run(
    nets: Mapping[str, Checkpoint],
    dataset: Dataset,
    *,
    maps: int = 16,
    top: int = 9,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Look]:
    """A look at each of the networks.

    Parameters
    ----------
    nets : by name, all trained on the same data with the same budget
    dataset : images to find what excites their maps
    maps, top : of layer 2, maps drawn at random with ``seed`` from those that are alive, and activations of each
    progress : called with the number of images done, of all networks together

    Raises
    ------
    ValueError
        If no image can be read, or a network has no second convolution or none of its maps is alive.
    """
    looks = {}
    for number, (name, checkpoint) in enumerate(nets.items()):
        first, second, *_ = rectified(checkpoint.arch)
        conv = next(layer for layer in checkpoint.arch.layers if isinstance(layer, Conv))
        found = find(
            checkpoint, dataset, [first, second], top=top, device=device, threads=threads,
            progress=lambda done, number=number: progress(number * len(dataset) + done),  # type: ignore[misc]
        )  # fmt: skip
        peaks = found.best[first].value[:, 0]
        alive = np.flatnonzero(found.best[second].value[:, 0] > 0)
        shown = np.sort(np.random.default_rng(seed).permutation(alive)[:maps])
        w = checkpoint.params[conv.name]["w"]
        looks[name] = Look(
            w,
            filter_rms(w),
            float(np.mean(checkpoint.history.get("clipped", [0.0]))),
            float(np.mean(peaks <= DEAD * peaks.max())),
            bands(w),
            aliasing(w, conv.stride, spectrum(checkpoint, dataset)),
            project(checkpoint, dataset, second, shown, found.best[second].of(shown), device=device, threads=threads),
        )
    return looks


def bands(w: np.ndarray) -> np.ndarray:
    """Share (M, 3) of the energy of each filter of w (K, K, C, M) in the `BANDS` of spatial frequency.

    The transform is that of the filter with zeros around it, so that filters of all sizes are seen alike.
    """
    energy = (np.abs(np.fft.fft2(w, s=(SIDE, SIDE), axes=(0, 1))) ** 2).sum(axis=2)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij"))
    low, high = radius < BANDS[0], radius >= BANDS[1]
    shares = np.stack([energy[each].sum(axis=0) for each in (low, ~low & ~high, high)], axis=1)
    found: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return found


def spectrum(checkpoint: Checkpoint, dataset: Dataset) -> np.ndarray:
    """Mean cross-spectrum (S, S, C, C) of what the network sees of the data, under a Hann window of the crop's side S.

    Raises ValueError if no image can be read.
    """
    side = checkpoint.arch.side
    window = np.outer(np.hanning(side), np.hanning(side))[..., None]
    mean = images.centre_crop(checkpoint.mean[None], side)[0]
    total, count = np.zeros((side, side, 3, 3), complex), 0
    for i in range(len(dataset)):
        try:
            pixels = images.centre_crop(dataset.image(i)[None], side)
        except ValueError:
            continue  # a bad image, which is in dataset.skipped
        x = np.fft.fft2(window * images.normalise(pixels, mean, checkpoint.scale)[0], axes=(0, 1))
        total += x[..., :, None] * x[..., None, :].conj()
        count += 1
    if not count:
        raise ValueError(f"none of the {len(dataset)} images could be read")
    return total / count


def aliasing(w: np.ndarray, stride: int, spectrum: np.ndarray) -> np.ndarray:
    """Share (M,) of the energy of each filter's response that lies beyond what a grid of this stride can carry.

    Parameters
    ----------
    w : (K, K, C, M) filters
    spectrum : (S, S, C, C) mean cross-spectrum of what they look at
    """
    side = len(spectrum)
    transform = np.fft.fft2(w, s=(side, side), axes=(0, 1))
    energy = np.einsum("fgcm,fgcd,fgdm->fgm", transform.conj(), spectrum, transform, optimize=True).real
    frequency = np.abs(np.fft.fftfreq(side))
    beyond = np.maximum(frequency[:, None], frequency) > 1 / (2 * stride)
    share: np.ndarray = energy[beyond].sum(axis=0) / energy.sum(axis=(0, 1))
    return share
