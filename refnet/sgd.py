"""Stochastic gradient descent as in section 3: momentum, weight decay, and the filters' RMS clip."""

import math
from typing import Any

import numpy as np

from refnet import parallel
from refnet.arch import Params
from refnet.backend import Array, array_module, check_same_dtype, empty, zeros

_BLOCK = 1 << 18  # values updated at a time: weights, gradient and velocity of a block stay in cache


def zeros_like(params: Params) -> Params:
    """Velocities of zero for ``params``."""
    return {name: {key: zeros(a.shape, a) for key, a in layer.items()} for name, layer in params.items()}


def step(
    params: Params,
    grads: Params,
    velocity: Params,
    *,
    rate: float,
    momentum: float = 0.9,
    decay: float = 0.0,
    clip: float | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """One update, in place: v = momentum v - rate (g + decay w); w = w + v (decay on weights, not on biases).

    Then every convolution filter whose RMS exceeds ``clip`` is scaled back to it (section 3: 0.1).

    Returns
    -------
    dict
        Per convolution layer, how many filters were clipped; on a GPU 0-d arrays, so that nobody waits for them.

    Raises
    ------
    ValueError
        If ``grads`` or ``velocity`` lack a layer or differ in shape.
    TypeError
        If dtypes or backends differ.
    """
    work: list[tuple[Array, Array, Array, float]] = []
    for name, layer in params.items():
        for key, w in layer.items():
            g, v = (each.get(name, {}).get(key) for each in (grads, velocity))
            if g is None or v is None or not g.shape == v.shape == w.shape:
                raise ValueError(f"sgd: gradient or velocity of {name}/{key} is missing or not {w.shape}")
            check_same_dtype(f"sgd: {name}/{key}", w=w, g=g, v=v)
            parts: list[Any] = [...]
            if all(each.flags.c_contiguous for each in (w, g, v)):  # else reshape would update a copy
                w, g, v = (each.reshape(-1) for each in (w, g, v))
                parts = parallel.cut(w.size, _BLOCK if array_module(w) is np else max(w.size, 1))
            work += [(w[part], g[part], v[part], decay if key == "w" else 0.0) for part in parts]
    filters = {name: layer["w"] for name, layer in params.items() if layer["w"].ndim == 4}
    if work and array_module(work[0][0]) is not np:
        from refnet.kernels import sgd as kernels

        for w, g, v, how in work:
            twin = kernels.update if w.flags.c_contiguous and v.flags.c_contiguous else update
            twin(w, g, v, rate=rate, momentum=momentum, decay=how)
        if clip is None:
            return {}
        twins = {name: kernels.clip_filters if w.flags.c_contiguous else clip_filters for name, w in filters.items()}
        return {name: twins[name](w, clip) for name, w in filters.items()}

    def update_block(block: tuple[Array, Array, Array, float]) -> None:
        w, g, v, decay = block
        update(w, g, v, rate=rate, momentum=momentum, decay=decay)

    parallel.run(update_block, work, threads=threads)
    return {name: clip_filters(w, clip) for name, w in filters.items()} if clip is not None else {}


def update(w: Array, g: Array, v: Array, *, rate: float, momentum: float, decay: float) -> None:
    """v = momentum v - rate (g + decay w); w = w + v, in place (section 3)."""
    xp, change = array_module(w), empty(w.shape, w)
    xp.multiply(w, decay, out=change)
    change += g
    change *= rate
    v *= momentum
    v -= change
    w += v


def filter_rms(w: Array) -> Array:
    """Root mean square (M,) of the weights of each filter of w (K, K, C / groups, M)."""
    xp = array_module(w)
    return xp.sqrt(xp.einsum("ijcm,ijcm->m", w, w) / math.prod(w.shape[:3]))


def clip_filters(w: Array, clip: float) -> int:
    """Scale filters of w (K, K, C / groups, M) whose RMS exceeds ``clip`` back to it, in place; return how many."""
    rms = filter_rms(w)
    over = rms > clip
    count = int(over.sum())
    if count:
        xp = array_module(w)
        w *= xp.where(over, clip / xp.maximum(rms, clip), 1).astype(w.dtype)
    return count
