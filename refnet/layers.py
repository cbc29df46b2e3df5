"""What each kind of layer does to maps on the way up, and to a signal on the way down.

`forward` returns a layer's output and the arrays that its way back needs. `back` is the paper's method in one
`match`: training, deconvnet and guided backprop differ only in the `Rules` for relu and normalisation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from refnet import ops, parallel
from refnet.arch import Average, Branch, Conv, Dropout, Flatten, Layer, Linear, Norm, Pool, Relu, Shape, SpatialNorm
from refnet.backend import Array, array_module, empty
from refnet.ops.dropout import dropout_forward
from refnet.ops.winograd import winograd_forward, winograd_grads, winograd_transpose
from refnet.ranks import ALONE, Group

Kept = tuple[Array, ...]


@dataclass(frozen=True)
class Rules:
    """What relu and normalisation do to the signal on its way back; every other layer applies its adjoint.

    ``relu``: "forward" passes it where the forward relu passed, "signal" rectifies the signal itself, "both" does
    one after the other. ``norm``: "gradient", or "skip" to hand it on unchanged.
    """

    relu: str
    norm: str

    def __post_init__(self) -> None:
        if self.relu not in ("forward", "signal", "both") or self.norm not in ("gradient", "skip"):
            raise ValueError(f"{self}: relu is forward, signal or both, and norm gradient or skip")

    def looks_at(self, layer: Layer) -> bool:
        """Whether the way back through the layer takes what it kept."""
        match layer:
            case Relu():
                return self.relu != "signal"
            case Norm() | SpatialNorm():
                return self.norm == "gradient"
        return isinstance(layer, Pool | Dropout)


GRADIENT = Rules(relu="forward", norm="gradient")
# Section 2.1: "relu is imposed independently" of the forward pass, and contrast normalisation is not inverted.
DECONV = Rules(relu="signal", norm="skip")
# Springenberg et al. 2015: both the forward pass and the signal must be positive. Their nets had no normalisation.
GUIDED = Rules(relu="both", norm="skip")
RULES = {"gradient": GRADIENT, "deconv": DECONV, "guided": GUIDED}


def operations(like: Array) -> ModuleType:
    """`refnet.ops`, or for arrays on a GPU `refnet.kernels`, which has the same by the same names."""
    if array_module(like) is np:
        return ops
    from refnet import kernels

    return kernels


def forward(
    layer: Layer,
    p: dict[str, Array],
    x: Array,
    *,
    mask: Array | None,
    keep: bool,
    out: Array | None,
    threads: int | None,
) -> tuple[Array, Kept]:
    """Output of a layer, and the arrays that its way back needs.

    Parameters
    ----------
    p : its weights ``w`` and biases ``b``, if it has any, and the transformed filters ``u`` if it should use them
    x : (N, H, W, C) or (N, units)
    mask : of dropout, in training
    keep : False leaves out what only the way back needs
    out : where relu may put its result; may be ``x``
    threads : for the fully connected layers
    """
    op = operations(x)
    match layer:
        case Conv():
            if "u" in p:
                return winograd_forward(x, p["u"], p["b"], window=layer.window, groups=layer.groups), (x,)
            return op.conv_forward(x, p["w"], p["b"], stride=layer.stride, pad=layer.pad, groups=layer.groups), (x,)
        case Relu():
            y = op.relu_forward(x, out=out)
            return y, (y,)
        case Pool():
            size, stride, pad, ceil = layer.size, layer.stride, layer.pad, layer.ceil
            y, switches = op.pool_forward(x, size=size, stride=stride, pad=pad, ceil=ceil, switches=keep)
            return y, (switches,)
        case Average():
            return op.average_forward(x, **averaging(layer)), ()
        case Norm():
            y, scale = op.lrn_forward(x, n=layer.n, k=layer.k, alpha=layer.alpha, beta=layer.beta)
            return y, (x, scale)
        case SpatialNorm():
            y, scale = op.lrn_within_forward(x, size=layer.size, alpha=layer.alpha, beta=layer.beta)
            return y, (x, scale)
        case Flatten():
            return x.reshape(len(x), int(np.prod(x.shape[1:]))), ()
        case Linear():
            x = x.reshape(len(x), int(np.prod(x.shape[1:])))
            if op is not ops:
                y = op.linear_forward(x, p["w"], p["b"])
                return y, (x,)
            y = empty((len(x), layer.units), x)
            blocks = parallel.cut(layer.units, _BLOCK)
            parallel.run(lambda i: op.linear_forward(x, p["w"][:, i], p["b"][i], out=y[:, i]), blocks, threads=threads)
            return y, (x,)
        case Dropout():
            return (x, ()) if mask is None else (dropout_forward(x, mask), (mask,))
        case Branch():
            return x, ()  # what its paths have made is joined already


# down(path, part): walk a path of a branch back with its part of the signal.
Down = Callable[[tuple[Layer, ...], Array], Array]


def walk_up(layers: Sequence[Layer], maps: Array, through: Callable[[Layer, Array, Array | None], Array]) -> Array:
    """Maps through layers one after the other, and through the paths of branches.

    ``through(layer, maps, out)`` runs one layer; ``out`` is maps that it may overwrite, as only it looks at them.
    """
    # Not closures that call themselves: these would hold their arrays until the garbage collector comes.
    out = None
    for layer in layers:
        if isinstance(layer, Branch):
            maps = join([walk_up(path, maps, through) for path in layer.paths])
        maps = through(layer, maps, out)
        out = maps if isinstance(layer, Conv | Linear | Pool) else None
    return maps


def pooled_first(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers with each max pooling before the relu it follows: the same bits, and fewer values to rectify."""
    order: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Branch):
            order.append(replace(layer, paths=tuple(map(pooled_first, layer.paths))))
        elif isinstance(layer, Pool) and order and isinstance(order[-1], Relu):
            order.insert(-1, layer)
        else:
            order.append(layer)
    return tuple(order)


def walk_down(
    layers: Sequence[Layer],
    r: Array,
    through: Callable[[Layer, Array], Array],
    fork: Callable[[Branch, Array, Down], Array],
) -> Array:
    """A signal back through layers, the last one first; ``fork(branch, r, down)`` is the way through a branch."""
    for layer in reversed(layers):
        if isinstance(layer, Branch):
            r = fork(layer, r, lambda path, part: walk_down(path, part, through, fork))
        else:
            r = through(layer, r)
    return r


def join(paths: list[Array]) -> Array:
    """The paths' maps (N, P, Q, M1), (N, P, Q, M2), ... side by side (N, P, Q, M1 + M2 + ...)."""
    shape = *paths[0].shape[:3], sum(each.shape[3] for each in paths)
    joined: Array = array_module(*paths).concatenate(paths, axis=3, out=empty(shape, paths[0]))
    return joined


def split(r: Array, branch: Branch, shapes: dict[str, Shape], below: Shape) -> list[Array]:
    """Each path's part of a signal r (N, P, Q, M) on a branch's output; adjoint of `join`.

    ``shapes`` has the output of every layer, ``below`` is that of the branch's input.
    """
    ends = np.cumsum([(shapes[path[-1].name] if path else below)[2] for path in branch.paths]).tolist()
    return [r[..., start:end] for start, end in zip([0, *ends], ends, strict=False)]


def meet(signals: list[Array]) -> Array:
    """The sum of the paths' signals where they meet, at the branch's input; in the paths' order."""
    total = signals[0]
    for each in signals[1:]:
        total = array_module(total, each).add(total, each, out=empty(each.shape, each))
    return total


def averaging(layer: Average) -> dict[str, Any]:
    """What the operations want to know of the layer."""
    return {
        "size": layer.size, "stride": layer.stride, "pad": layer.pad, "ceil": layer.ceil, "count_pad": layer.count_pad
    }  # fmt: skip


def back(
    layer: Layer,
    p: dict[str, Array],
    kept: Kept,
    r: Array,
    *,
    below: Shape,
    rules: Rules,
    threads: int | None,
) -> Array:
    """Send the signal ``r`` from a layer's output to its input, of shape (N, *below) (section 2.1)."""
    op = operations(r)
    match layer:
        case Conv():
            hw = below[0], below[1]
            if "u" in p:
                return winograd_transpose(r, p["u"], window=layer.window, hw=hw, groups=layer.groups, z=p.get("z"))
            return op.conv_transpose(r, p["w"], stride=layer.stride, pad=layer.pad, hw=hw, groups=layer.groups)
        case Relu():
            if rules.relu in ("forward", "both"):
                r = op.relu_backward(r, kept[0])
            if rules.relu in ("signal", "both"):
                r = op.relu_forward(r)
            return r
        case Pool():
            hw = below[0], below[1]
            return op.unpool(r, *kept, size=layer.size, stride=layer.stride, pad=layer.pad, ceil=layer.ceil, hw=hw)
        case Average():
            return op.average_transpose(r, **averaging(layer), hw=(below[0], below[1]))
        case Norm() if rules.norm == "gradient":
            return op.lrn_backward(r, *kept, n=layer.n, alpha=layer.alpha, beta=layer.beta)
        case SpatialNorm() if rules.norm == "gradient":
            return op.lrn_within_backward(r, *kept, size=layer.size, alpha=layer.alpha, beta=layer.beta)
        case Norm() | SpatialNorm():
            return r
        case Flatten():
            return r.reshape(len(r), *below)
        case Linear():
            if op is not ops:
                return op.linear_transpose(r, p["w"]).reshape(len(r), *below)
            x = empty((len(r), int(np.prod(below))), r)
            blocks = parallel.cut(x.shape[1], _BLOCK)
            parallel.run(lambda i: op.linear_transpose(r, p["w"][i], out=x[:, i]), blocks, threads=threads)
            return x.reshape(len(r), *below)
        case Dropout():
            return dropout_forward(r, *kept) if kept else r
        case Branch():
            raise TypeError(f"the signal on {layer.name} must be split for its paths")


def grads(
    layer: Conv | Linear, p: dict[str, Array], kept: Kept, dy: Array, *, threads: int | None, group: Group = ALONE
) -> tuple[Array, Array]:
    """Gradients of a layer's weights and biases, from the gradient ``dy`` of its output.

    Where ``p`` has transformed filters, it may have ``z`` as well, dy at their points (`refnet.ops.winograd`). The
    processes of a ``group`` hand round a fully connected layer's x and dy, which are small beside its weights: each
    gets the gradients of the whole batch, for its share of the weights' rows.
    """
    (x,), op = kept, operations(dy)
    if isinstance(layer, Conv) and "u" in p:
        return winograd_grads(x, dy, window=layer.window, groups=layer.groups, z=p.get("z"))
    if isinstance(layer, Conv):
        dw, db = op.conv_grads(x, dy, size=layer.size, stride=layer.stride, pad=layer.pad, groups=layer.groups)
        return dw, db
    x, dy = group.all_rows(x)[:, group.share(x.shape[1])], group.all_rows(dy)
    if op is not ops:
        dw, db = op.linear_grads(x, dy)
        return dw, db
    dw = empty((x.shape[1], dy.shape[1]), x)
    blocks = parallel.cut(x.shape[1], _BLOCK)
    parallel.run(lambda i: op.linear_grads(x[:, i], dy, out=dw[i]), blocks, threads=threads)
    return dw, dy.sum(axis=0)


_BLOCK = 512  # rows or columns of a fully connected layer's weights that one thread works on
