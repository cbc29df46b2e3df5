"""Any architecture in PyTorch with refnet's parameters: the independent implementation that tests compare with."""

import numpy as np
import torch
from torch import Tensor, nn

from refnet.arch import Arch, Conv, Dropout, Layer, Linear, Norm, Params, Pool, Relu


class FlattenNHWC(nn.Module):
    """Flatten in (row, column, map) order, as refnet does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def _module(layer: Layer, below: tuple[int, ...]) -> nn.Module:
    match layer:
        case Conv():
            conv = nn.Conv2d(below[2], layer.filters, layer.size, layer.stride, layer.pad, groups=layer.groups)
            return conv
        case Relu():
            return nn.ReLU()
        case Pool():
            return nn.MaxPool2d(layer.size, layer.stride, layer.pad, ceil_mode=layer.ceil)
        case Norm():  # torch multiplies the mean of the squares, refnet the sum
            return nn.LocalResponseNorm(layer.n, layer.alpha * layer.n, layer.beta, layer.k)
        case Linear():
            return nn.Linear(int(np.prod(below)), layer.units)
        case Dropout():
            return nn.Dropout(layer.rate)


def build(arch: Arch, params: Params) -> nn.Sequential:
    """``arch`` as a torch module of NCHW images with ``params``, in evaluation mode; children named as the layers."""
    net = nn.Sequential()
    for layer, below in zip(arch.layers, [arch.input, *arch.shapes().values()], strict=False):
        if isinstance(layer, Linear) and len(below) == 3:
            net.add_module("flatten", FlattenNHWC())
        module = _module(layer, below)
        if layer.name in params:
            w, b = (torch.tensor(params[layer.name][key]) for key in "wb")
            module.weight = nn.Parameter(w.permute(3, 2, 0, 1).contiguous() if w.ndim == 4 else w.T.contiguous())
            module.bias = nn.Parameter(b)
        net.add_module(layer.name, module)
    return net.eval()


def nchw(x: np.ndarray) -> Tensor:
    """Images (N, H, W, C) as a torch tensor (N, C, H, W)."""
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous()


def nhwc(x: Tensor) -> np.ndarray:
    """Maps (N, C, H, W) of torch as an array (N, H, W, C)."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def params_of(net: nn.Sequential, *, grad: bool = False) -> Params:
    """The parameters of `build`'s module, or their gradients, in refnet's layout."""
    out: Params = {}
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            w, b = (p.grad if grad else p.detach() for p in (module.weight, module.bias))
            out[name] = {"w": (w.permute(2, 3, 1, 0) if w.ndim == 4 else w.T).numpy(), "b": b.numpy()}
    return out
