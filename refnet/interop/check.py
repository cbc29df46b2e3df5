"""Does the imported network do what the source's does? Every layer's output, side by side."""

import threading
from collections.abc import Callable

import numpy as np

from refnet import net
from refnet.interop.conventions import Inputs
from refnet.interop.graph import Network
from refnet.weights import Checkpoint

MOST = 1e-4  # relative to the layer's largest value


def differences(
    network: Network,
    ck: Checkpoint,
    inputs: Inputs,
    run: Callable[[np.ndarray], dict[str, np.ndarray]],
    pixels: np.ndarray,
) -> dict[str, float]:
    """The largest difference at every layer that the source has too, relative to the layer's largest value.

    Parameters
    ----------
    run : the source's network, from images as it sees them to every tensor, maps as NHWC
    pixels : (N, H, W, C) RGB of 0..255, of the network's size
    """
    theirs = run(inputs.of(pixels))
    ours: dict[str, np.ndarray] = {}
    lock = threading.Lock()

    def watch(layer: str, images: slice, y: np.ndarray) -> None:
        with lock:
            ours.setdefault(layer, np.empty((len(pixels), *y.shape[1:]), y.dtype))[images] = y

    h, w, _ = ck.arch.input
    top, left = (ck.mean.shape[0] - h) // 2, (ck.mean.shape[1] - w) // 2
    x = ((pixels - ck.mean[top : top + h, left : left + w]) * np.float32(ck.scale)).astype(ck.dtype)
    net.predict(ck.arch, ck.params, x, watch=watch)
    found = {}
    for layer, y in ours.items():
        tensor = theirs.get(network.outputs.get(layer, ""))
        if tensor is not None and tensor.size == y.size:
            largest = float(np.abs(tensor).max())
            found[layer] = float(np.abs(y - tensor.reshape(y.shape)).max()) / (largest or 1.0)
    return found
