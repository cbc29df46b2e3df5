"""Does the imported network do what the source's does? Every layer's output, side by side."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from refnet import net
from refnet.interop import caffe, keras, onnx, pytorch
from refnet.interop.conventions import Inputs
from refnet.interop.graph import Network
from refnet.weights import Checkpoint

MOST = 1e-4  # relative to the layer's largest value


Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def runner(path: Path, network: Network, until: str | None = None) -> Run:
    """What runs the source: its own framework or another one, but never refnet.

    From images as the source sees them (N, H, W, C) to every tensor, maps as NHWC. ValueError, there as here, says why
    nothing does.
    """
    if not network.outputs:
        raise ValueError("the file has weights alone, and nothing but refnet has a network for them")
    runners: dict[str, tuple[str, Callable[[Path], Run]]] = {
        ".onnx": ("onnxruntime", onnx.runner), ".h5": ("Keras", keras.runner), ".keras": ("Keras", keras.runner),
        ".caffemodel": ("OpenCV", lambda path: caffe.runner(path, until)),
    }  # fmt: skip
    name, make = runners.get(path.suffix, ("torch", pytorch.runner))
    with _one_line(name):
        run = make(path)

    def guarded(x: np.ndarray) -> dict[str, np.ndarray]:
        with _one_line(name):
            return run(x)

    return guarded


@contextmanager
def _one_line(framework: str) -> Iterator[None]:
    """Another framework's errors, which have no common base, as ours: a ValueError of one line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    except Exception as error:
        raise ValueError(f"{framework} cannot run it: {' '.join(str(error).split()):.200}") from None


def differences(
    network: Network,
    ck: Checkpoint,
    inputs: Inputs,
    run: Run,
    pixels: np.ndarray,
) -> dict[str, float]:
    """The largest difference at every layer that the source has too, relative to the layer's largest value.

    It is infinite where shapes differ.

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
        if tensor is None:
            continue
        if tensor.size != y.size:
            found[layer] = np.inf
            continue
        largest = float(np.abs(tensor).max())
        found[layer] = float(np.abs(y - _shaped(tensor, y.shape, network.maps_first)).max()) / (largest or 1.0)
    return found


def _shaped(tensor: np.ndarray, shape: tuple[int, ...], maps_first: bool) -> np.ndarray:
    """The source's tensor as ours is: where it is flat already, as maps again."""
    if maps_first and tensor.ndim == 2 and len(shape) == 4:
        n, h, w, c = shape
        return tensor.reshape(n, c, h, w).transpose(0, 2, 3, 1)
    return tensor.reshape(shape)


def worst(found: dict[str, float]) -> float:
    """The largest of `differences`: not a number where one of them is none, infinite where nothing was compared."""
    return float(np.max(list(found.values()))) if found else np.inf
