"""What a foreign network's inputs are, declared and never guessed, and how refnet's become the same.

refnet reads images as RGB of 0..255. A network made for BGR has the input maps of its first convolution turned round
once, when it is imported; so projections, filters and means are RGB everywhere, and nothing else has to know.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from refnet.arch import Branch, Conv, Linear, Params
from refnet.interop.graph import Network
from refnet.weights import Checkpoint

Colours = tuple[float, ...]


@dataclass(frozen=True)
class Inputs:
    """The network sees (pixel - mean) / std, pixels of 0..range, colours in this order, mean and std as well."""

    order: str = "RGB"
    range: float = 255.0
    mean: Colours = (0.0, 0.0, 0.0)
    std: Colours = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise ValueError(f"the colour order is {self.order!r}, it needs RGB or BGR")
        numbers = np.array([self.range, *self.mean, *self.std], np.float64)
        if not np.isfinite(numbers).all() or self.range <= 0 or min(self.std) <= 0:
            raise ValueError(
                f"inputs of 0..{self.range} less {self.mean} over {self.std}: range and std must be above 0"
            )

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """What the source sees of RGB pixels (N, H, W, C) of 0..255: float32."""
        x = pixels[..., ::-1] if self.order == "BGR" else pixels
        seen: np.ndarray = ((x * (self.range / 255) - self.mean) / self.std).astype(np.float32)
        return seen


PRESETS = {
    "raw": Inputs(),
    "caffe": Inputs("BGR", 255.0, (104.0, 117.0, 123.0)),
    "torchvision": Inputs("RGB", 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tensorflow": Inputs("RGB", 255.0, (127.5,) * 3, (127.5,) * 3),
}


def checkpoint(
    network: Network, inputs: Inputs, *, side: int | None = None, classes: Sequence[str] = (), source: str = ""
) -> Checkpoint:
    """The network as refnet runs it on RGB images of 0..255.

    Parameters
    ----------
    inputs : what the source's network was made for
    side : what images are resized to before the centre is cut; default the network's input
    classes : names in the order of the outputs
    source : where it came from, for the file's recipe

    Raises
    ------
    ValueError
        Where the first convolution cannot take the colours' order or their different std.
    """
    arch = network.arch
    step = slice(None, None, -1 if inputs.order == "BGR" else 1)
    colours = arch.input[2]
    mean, std = (np.array(each, np.float64)[step] for each in (inputs.mean, inputs.std))
    if len(mean) != colours or len(std) != colours:
        raise ValueError(f"{len(mean)} means and {len(std)} stds are declared, but the network has {colours} colours")
    factors = inputs.range / 255 / std  # the source sees (pixel - mean) * factors
    scale = factors[0] if np.all(factors == factors[0]) else factors.mean()
    params = _first_maps(network, step, factors / scale)
    height, width = (max(n, side or 0) for n in arch.input[:2])
    pixels = np.broadcast_to(mean * 255 / inputs.range, (height, width, colours)).astype(np.float32)
    recipe = {"imported": {"source": source, **asdict(inputs), "side": height}}
    names = tuple(classes) or network.classes
    return Checkpoint(arch, params, pixels, scale=float(scale), classes=names, recipe=recipe, finished=True)


def _first_maps(network: Network, step: slice, factors: np.ndarray) -> Params:
    """The parameters, with the first convolution's input maps reordered and scaled."""
    if step.step == 1 and np.all(factors == 1):
        return network.params
    for layer in network.arch.layers:
        if isinstance(layer, Branch | Linear) or (isinstance(layer, Conv) and layer.groups > 1):
            break
        if isinstance(layer, Conv):
            w = network.params[layer.name]["w"][:, :, step]
            if np.any(factors != 1):
                w = (w * factors[:, None]).astype(np.float32)
            return network.params | {layer.name: network.params[layer.name] | {"w": np.ascontiguousarray(w)}}
    raise ValueError("its colours need another order or scale, but it does not begin with one plain convolution")


def rgb(ck: Checkpoint) -> Checkpoint:
    """A checkpoint of refnet's own format that was made for other images, as one for RGB of 0..255."""
    step = slice(None, None, -1 if ck.colour_order == "BGR" else 1)
    params = _first_maps(Network(ck.arch, ck.params), step, np.ones(ck.arch.input[2]))
    factor = 255 / ck.input_range
    mean = np.ascontiguousarray(ck.mean[..., step] * np.float32(factor))
    return replace(
        ck, params=params, mean=mean, scale=ck.scale / factor, colour_order="RGB", input_range=255.0, optimizer=None
    )


def described(ck: Checkpoint) -> dict[str, Any]:
    """What an exported file says of the network's inputs, as `Inputs` takes it, and the class names.

    The mean is that of each colour; where ours has one for each pixel, that is an approximation.
    """
    inputs = {
        "order": ck.colour_order, "range": ck.input_range, "std": [1 / ck.scale] * ck.arch.input[2],
        "mean": ck.mean.mean(axis=(0, 1), dtype=np.float64).tolist(),
    }  # fmt: skip
    return {"inputs": inputs, "classes": list(ck.classes), "arch": ck.arch.to_json()}


def declared(data: Any) -> dict[str, Any]:
    """`described`'s inputs, checked; ValueError for anything else."""
    keys = {"order", "range", "mean", "std"}
    if not isinstance(data, dict) or data.keys() != keys:
        raise ValueError(f"its inputs are {data!r:.80}, they need {', '.join(sorted(keys))}")
    try:
        return asdict(
            Inputs(data["order"], float(data["range"]), tuple(map(float, data["mean"])), tuple(map(float, data["std"])))
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"its inputs cannot be read: {error}") from None
