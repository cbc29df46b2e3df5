"""Any architecture in PyTorch with refnet's parameters: the independent implementation that tests compare with.

Arrays go in and come out in refnet's layouts.
"""

import copy

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
            return nn.Conv2d(below[2], layer.filters, layer.size, layer.stride, layer.pad, groups=layer.groups)
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
    """``arch`` as a torch module of NCHW images in evaluation mode; children named as the layers.

    It shares the memory of ``params``, which are large.
    """
    net = nn.Sequential()
    for layer, below in zip(arch.layers, [arch.input, *arch.shapes().values()], strict=False):
        if isinstance(layer, Linear) and len(below) == 3:
            net.add_module("flatten", FlattenNHWC())
        with torch.device("meta"):  # its own weights are never drawn
            module = _module(layer, below)
        if layer.name in params:
            w, b = (torch.from_numpy(params[layer.name][key]) for key in "wb")
            module.weight = nn.Parameter(w.permute(3, 2, 0, 1) if w.ndim == 4 else w.T)
            module.bias = nn.Parameter(b)
        net.add_module(layer.name, module)
    return net.eval()


def nchw(x: np.ndarray) -> Tensor:
    """Images (N, H, W, C) as a torch tensor (N, C, H, W)."""
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous()


def nhwc(x: Tensor) -> np.ndarray:
    """Maps (N, C, H, W) of torch as an array (N, H, W, C); units (N, U) as they are."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).detach().cpu().numpy()


def params_of(net: nn.Sequential, *, grad: bool = False) -> Params:
    """The parameters of `build`'s module, or their gradients."""
    out: Params = {}
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            w, b = (p.grad if grad else p.detach() for p in (module.weight, module.bias))
            out[name] = {"w": (w.permute(2, 3, 1, 0) if w.ndim == 4 else w.T).cpu().numpy(), "b": b.cpu().numpy()}
    return out


def run(arch: Arch, params: Params, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, Params]:
    """Output of the last layer, and what autograd makes of ``dy``: the gradients of the input and the parameters."""
    net, images = build(arch, params), nchw(x).requires_grad_()
    y = net(images)
    y.backward(nchw(dy) if dy.ndim == 4 else torch.tensor(dy))
    return nhwc(y), nhwc(images.grad), params_of(net, grad=True)


def train(
    arch: Arch,
    params: Params,
    batches: list[tuple[np.ndarray, np.ndarray]],
    *,
    rate: float,
    momentum: float,
    decay: float,
    clip: float,
) -> Params:
    """Parameters after a step of torch.optim.SGD, and the filters' clip, for each (images, labels); no dropout."""
    net = build(arch, copy.deepcopy(params))
    weights, biases = ([p for name, p in net.named_parameters() if name.endswith(end)] for end in ("weight", "bias"))
    groups = [{"params": weights, "weight_decay": decay}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    for x, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(nchw(x)), torch.tensor(labels)).backward()
        optimizer.step()
        for w in weights:
            if w.ndim == 4:
                rms = w.detach().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
                w.data *= (clip / rms).clamp(max=1)
    return params_of(net)


def attribution(method: str, arch: Arch, params: Params, x: np.ndarray, cell: tuple[int, ...]) -> np.ndarray:
    """What a class of captum.attr, NeuronDeconvolution for one, makes of an output (row, column, map) or (unit,)."""
    from captum import attr

    net, images = build(arch, params), nchw(x).requires_grad_()
    return nhwc(getattr(attr, method)(net, net[-1]).attribute(images, (cell[-1], *cell[:-1])))
