"""Max pooling with switches, and unpooling."""

import math
from types import ModuleType

from refnet.backend import Array, Room, array_module, check_same_dtype, empty
from refnet.geometry import Window, pool_size
from refnet.ops.windows import blocks, meetings, scatter

_AT_A_TIME = 1 << 20  # values that are pooled together: they stay in cache meanwhile


def pool_forward(
    x: Array, *, size: int = 3, stride: int = 2, pad: int = 0, ceil: bool = True, switches: bool = True
) -> tuple[Array, Array | None]:
    """The largest value of each region, and where it was (section 2; switches: section 2.1, "Unpooling").

    y[n, p, q, c] = max_{i, j} x[n, p stride + i - pad, q stride + j - pad, c] over the cells inside the image,
    and switches[n, p, q, c] = i size + j of the first cell, in row order, that has this value.

    Parameters
    ----------
    x : (N, H, W, C) maps, float32 or float64
    size, stride, pad : side of a region, step between regions, cells on each side that belong to no image
    ceil : let the last region hang over the edge (Caffe, the default) instead of leaving cells out
    switches : False leaves them out (None), which is faster

    Returns
    -------
    y : (N, P, Q, C)
    switches : (N, P, Q, C) uint8, or None

    Raises
    ------
    ValueError
        If ``x`` has not four axes, the regions do not fit, or have more than 16 x 16 cells (switches are bytes).
    TypeError
        If ``x`` is neither float32 nor float64.
    """
    xp = check_same_dtype("pool_forward", x=x)
    window = check_window("pool_forward", x.shape, Window(size, stride, pad), ceil)
    p, q = (pool_size(n, window, ceil=ceil) for n in x.shape[1:3])
    y = empty((len(x), p, q, x.shape[3]), x)
    ranks = empty(y.shape, x, "uint8") if switches else None
    rows_room, best_room = Room(x), Room(x, "uint8")
    # The largest of a region is the largest of its rows' largest, so rows go first and columns second. Of equal values
    # the one of the highest rank wins; ranks fall from the region's first cell to its last, in row order.
    for images, _ in blocks(len(x), (1, 1), _AT_A_TIME // max(math.prod(x.shape[1:]), 1)):
        some = x[images]
        rows = rows_room.empty((len(some), p, *x.shape[2:]))
        best = best_room.empty(rows.shape) if switches else None
        _largest(some, None, 1, window, rows, best, step=size)
        _largest(rows, best, 2, window, y[images], None if ranks is None else ranks[images], step=1)
    return y, None if ranks is None else xp.subtract(xp.uint8(size * size - 1), ranks, out=ranks)


def _largest(
    x: Array, ranks: Array | None, axis: int, window: Window, y: Array, best: Array | None, *, step: int
) -> None:
    """Along an axis, write each window's largest value into y, and into ``best``, if given, the highest rank it has.

    A cell's rank is what ``ranks`` says, and ``step`` for each cell that comes after it.
    """
    xp, along = array_module(x), (slice(None),) * axis
    parts = [((*along, there), (*along, cells)) for there, cells in meetings(x.shape[axis], y.shape[axis], window)]
    there, cells = parts[0]
    y[there] = x[cells]
    for beyond in (slice(0, there[axis].start), slice(there[axis].stop, y.shape[axis])):
        y[(*along, beyond)] = -xp.inf
    for there, cells in parts[1:]:
        xp.maximum(y[there], x[cells], out=y[there])
    if best is None:
        return
    best.fill(0)
    room = Room(x, bool)
    for i, (there, cells) in enumerate(parts):
        rank = xp.uint8((window.size - 1 - i) * step)
        if ranks is not None:
            rank = rank + ranks[cells]
        elif not rank:
            continue  # it is 0 already
        wins = xp.equal(x[cells], y[there], out=room.empty(y[there].shape)).view("uint8")
        wins *= rank
        xp.maximum(best[there], wins, out=best[there])


def unpool(
    r: Array, switches: Array, *, size: int = 3, stride: int = 2, pad: int = 0, ceil: bool = True, hw: tuple[int, int]
) -> Array:
    """Put each value back where its switch says (section 2.1, "Unpooling"): the adjoint of `pool_forward`.

    x[n, h, v, c] = sum of r[n, p, q, c] over the regions (p, q) whose switch points at (h, v). Where regions overlap
    a cell can win in several of them; their values *add*, as the gradient's do (a declared choice: the paper is
    silent).

    Parameters
    ----------
    r : (N, P, Q, C) signal on the pooled maps, float32 or float64
    switches : (N, P, Q, C) uint8 of `pool_forward`; with N = 1 they serve every r
    hw : height and width of the maps below

    Returns
    -------
    x : (N, *hw, C)

    Raises
    ------
    ValueError
        If shapes do not fit each other.
    TypeError
        If ``switches`` are not uint8 or the backends differ.
    """
    xp, _ = check_unpool(r, switches, Window(size, stride, pad), ceil, hw)
    # Each switch as a cell of its image (H, W, C), counted through: (row W + column) C + map.
    (p, q, c), (h, w) = r.shape[1:], hw
    rows, columns = (xp.arange(n, dtype="int32") * stride - pad for n in (p, q))
    cells = xp.floor_divide(switches, xp.uint8(size), out=empty(switches.shape, r, "int32"))
    cells *= w - size
    cells += switches
    cells += (rows[:, None] * w + columns)[..., None]
    cells *= c
    cells += xp.arange(c, dtype="int32")
    cells.clip(0, h * w * c - 1, out=cells)  # what no switch of such maps can mean must not write elsewhere
    return scatter(r, cells, hw=hw)


def check_window(operation: str, x: tuple[int, ...], window: Window, ceil: bool) -> Window:
    """The window, if its regions fit maps x (N, H, W, C)."""
    size, stride, pad = window
    if len(x) != 4:
        raise ValueError(f"{operation}: x is {x}, it needs (N, H, W, C)")
    if not 0 <= pad < size <= 16 or stride < 1 or min(pool_size(n, window, ceil=ceil) for n in x[1:3]) < 1:
        raise ValueError(f"{operation}: {window} does not fit x {x} (size at most 16, pad smaller than size)")
    return window


def check_unpool(
    r: Array, switches: Array, window: Window, ceil: bool, hw: tuple[int, int]
) -> tuple[ModuleType, Window]:
    """The arrays' module and the window, if signal and switches fit each other and the maps below."""
    check_same_dtype("unpool", r=r)
    xp = array_module(r, switches)
    check_window("unpool", (len(r), *hw, r.shape[-1]), window, ceil)
    needs = (*(pool_size(n, window, ceil=ceil) for n in hw), r.shape[-1])
    if r.shape[1:] != needs or switches.shape not in (r.shape, (1, *needs)):
        raise ValueError(
            f"unpool: r is {r.shape} and switches {switches.shape}; pooling {hw} with {window} needs (N, {needs})"
        )
    if switches.dtype != xp.uint8:
        raise TypeError(f"unpool: switches are {switches.dtype}, they must be the uint8 that pool_forward returned")
    return xp, window
