"""Convolution on a GPU: windows unfolded and multiplied, or tiles of fewer multiplications, all of them whole."""

from collections.abc import Iterator
from math import gcd, prod

from refnet import parallel
from refnet.backend import Array, array_module, check_same_dtype, current_precision, empty, zeros
from refnet.geometry import Window, conv_size
from refnet.kernels.launch import pack, product, start
from refnet.ops.conv import check_outputs, check_shapes
from refnet.ops.tiles import CELLS, POINTS, tile_counts
from refnet.ops.windows import group_slices
from refnet.ops.winograd import suits

_BYTES = 256 << 20  # of windows or tiles that exist at a time
_THREADS = 256  # that unfold a line of windows together


def conv_forward(x: Array, w: Array, b: Array, *, stride: int = 1, pad: int = 0, groups: int = 1) -> Array:
    """As `refnet.ops.conv.conv_forward`."""
    check_same_dtype("conv_forward", x=x, w=w, b=b)
    window, m = check_shapes("conv_forward", x.shape, w.shape, stride, pad, groups), w.shape[-1]
    if b.shape != (m,):
        raise ValueError(f"conv_forward: b is {b.shape}, it needs one value for each filter of w {w.shape}")
    x = array_module(x).ascontiguousarray(x)
    y = empty((len(x), *(conv_size(n, window) for n in x.shape[1:3]), m), x)
    if _in_tiles(window, y.shape, x.shape[3], groups):
        u, met = _filters(w, window), stride**2 * x.shape[3]
        for images in _cut(y.shape, met, m):
            v = _tiles(x[images], window, y.shape[1:3])
            z = empty((*v.shape[:2], m), x)
            for seen, filters in group_slices(met, m, groups):
                product(v[..., seen], u[..., filters], z[..., filters])
            _outputs(z, b, y[images])
        return y
    matrix = _with_bias(w, b)
    for images, rows, filters in _unfolded(x, window, y.shape, groups):
        product(rows, matrix[:, filters], _matrix(y[images])[:, filters])
    return y


def conv_transpose(r: Array, w: Array, *, stride: int = 1, pad: int = 0, hw: tuple[int, int], groups: int = 1) -> Array:
    """As `refnet.ops.conv.conv_transpose`."""
    check_same_dtype("conv_transpose", r=r, w=w)
    c = w.shape[2] * groups if w.ndim == 4 else 0
    window = check_shapes("conv_transpose", (len(r), *hw, c), w.shape, stride, pad, groups)
    m = w.shape[3]
    check_outputs("conv_transpose", "r", r.shape, (len(r), *hw), window, m)
    r, x = array_module(r).ascontiguousarray(r), empty((len(r), *hw, c), r)
    if _in_tiles(window, r.shape, c, groups):
        # Blocks of x are a convolution of r, with zeros around, with the filters turned: tiles need not overlap.
        u, met = _filters(w, window, flip=True), stride**2 * c
        block_hw = tuple(-(-(n + pad) // stride) for n in hw)
        nothing = zeros((c,), r)
        for images in _cut((len(r), *block_hw), met, m):
            v = _tiles(r[images], Window(3, 1, 2), block_hw)
            z = empty((*v.shape[:2], met), r)
            for seen, filters in group_slices(met, m, groups):
                product(v[..., filters], u[..., filters].swapaxes(1, 2), z[..., seen])
            _outputs(z, nothing, x[images], stride=stride, pad=pad)
        return x
    matrix, cells = _matrix(array_module(w).ascontiguousarray(w)), prod(w.shape[:3])
    for images in _cut(r.shape, cells, 0):
        for maps, filters in group_slices(c, m, groups):
            rows = empty((prod(r[images].shape[:3]), _aligned(cells)), r)
            product(_matrix(r[images])[:, filters], matrix[:, filters].T, rows[:, :cells])
            _start_windows("fold", rows, x[images], maps, r.shape[1:3], window)
    return x


def conv_grads(
    x: Array, dy: Array, *, size: int, stride: int = 1, pad: int = 0, groups: int = 1
) -> tuple[Array, Array]:
    """As `refnet.ops.conv.conv_grads`."""
    xp = check_same_dtype("conv_grads", x=x, dy=dy)
    c, m = x.shape[-1], dy.shape[-1]
    window = check_shapes("conv_grads", x.shape, (size, size, c // max(groups, 1), m), stride, pad, groups)
    check_outputs("conv_grads", "dy", dy.shape, x.shape[:3], window, m)
    x, dy = xp.ascontiguousarray(x), xp.ascontiguousarray(dy)
    if _in_tiles(window, dy.shape, c, groups):
        met = stride**2 * c
        du = zeros((36, met // groups, m), x)
        for images in _cut(dy.shape, met, m):
            v, z = _tiles(x[images], window, dy.shape[1:3]), _outputs_adjoint(dy[images])
            for seen, filters in group_slices(met, m, groups):
                product(v[..., seen].swapaxes(1, 2), z[..., filters], du[..., filters], add=True)
        return _filters_adjoint(du, window, c // groups), column_sums(_matrix(dy))
    cells = size * size * c // groups
    both = zeros((_aligned(cells + 1), m), x)  # of filters and biases
    for images, rows, filters in _unfolded(x, window, dy.shape, groups):
        product(rows.T, _matrix(dy[images])[:, filters], both[:, filters], add=True)
    return both[:cells].reshape(size, size, c // groups, m), both[cells]


def column_sums(a: Array) -> Array:
    """Sums over the rows of a (I, J): (J,)."""
    ones = empty((1, len(a)), a)
    ones.fill(1)
    return product(ones, a, empty((1, a.shape[1]), a))[0]


def _in_tiles(window: Window, y: tuple[int, ...], c: int, groups: int) -> bool:
    """Whether `refnet.ops.winograd` gains: not where tensor cores multiply, and it would lose too many digits.

    The kernels have filters of one part, and groups at a stride of 1 only.
    """
    if -(-window.size // window.stride) != CELLS or (window.stride > 1 and groups > 1):
        return False
    return current_precision() == "fp32" and suits(window, (y[1], y[2]), c, y[3], groups, narrow=False)


def _cut(y: tuple[int, ...], read: int, made: int) -> list[slice]:
    """Images in slices whose windows of ``read`` values, or tiles of ``read`` and ``made`` maps, are not too many."""
    values = prod(tile_counts(y[1:3])) * POINTS**2 * (read + made) if made else y[1] * y[2] * read
    return parallel.cut(y[0], max(_BYTES // (4 * values), 1))


# -------------------------------------------------------------------------------------------- windows (windows.cu)


def _aligned(length: int) -> int:
    """Length of a row that cuBLAS can read 16 bytes at a time."""
    return -(-length // 4) * 4


def _with_bias(w: Array, b: Array) -> Array:
    """Filters as a matrix with the bias as the weight of a cell that is always 1, and zeros: (aligned K K C + 1, M)."""
    cells, m = prod(w.shape[:3]), w.shape[3]
    matrix = zeros((_aligned(cells + 1), m), w)
    matrix[:cells] = _matrix(w)
    matrix[cells] = b
    return matrix


def _unfolded(x: Array, window: Window, y: tuple[int, ...], groups: int) -> Iterator[tuple[slice, Array, slice]]:
    """Of some images and a group: the windows as rows (N P Q, aligned K K C / groups + 1), and its filters."""
    cells = window.size**2 * x.shape[3] // groups
    for images in _cut(y, cells, 0):
        for maps, filters in group_slices(x.shape[3], y[3], groups):
            rows = empty(((images.stop - images.start) * y[1] * y[2], _aligned(cells + 1)), x)
            _start_windows("unfold", rows, x[images], maps, y[1:3], window)
            yield images, rows, filters


def _start_windows(kernel: str, rows: Array, x: Array, maps: slice, out_hw: tuple[int, ...], window: Window) -> None:
    """Copy windows of some maps of x (N, H, W, C) to rows, or fold them back, which writes all cells."""
    (n, h, w, c), count, length = x.shape, maps.stop - maps.start, rows.shape[1]
    shape = n, h, w, c, maps.start, count, *out_hw, length, *window
    side_by_side = pack(gcd(c, maps.start, count), x, rows)
    if kernel == "fold":
        over = h * w * count // side_by_side
        start("windows", "fold", over, n, rows, x, *shape, dtype=x.dtype, V=side_by_side, SHARED=1)
        return
    q_step = min(-(-_THREADS // (length // 4)), out_hw[1])  # positions that threads have at a time
    start(
        "windows", "unfold", length // 4 * q_step, n * out_hw[0], x, rows, *shape, q_step,
        dtype=x.dtype, V=4, SHARED=int(side_by_side == 4),
    )  # fmt: skip


def _matrix(a: Array) -> Array:
    """All axes but the last as one."""
    return a.reshape(-1, a.shape[-1]) if a.size else a.reshape(prod(a.shape[:-1]), a.shape[-1])


# ---------------------------------------------------------------------------------------------- tiles (winograd.cu)


def _tiles(x: Array, window: Window, out_hw: tuple[int, ...]) -> Array:
    """The blocks of x that each tile meets, at all points: (36, N tiles, stride^2 C)."""
    rows, columns = tile_counts(out_hw)
    n, h, w, c = x.shape
    count, maps = n * rows * columns, window.stride**2 * c
    v = empty((36, count, maps), x)
    start(
        "winograd", "tiles", maps, count, x, v, h, w, c, count, rows, columns, window.stride, window.pad, dtype=x.dtype
    )
    return v


def _outputs(z: Array, b: Array, y: Array, *, stride: int = 1, pad: int = 0) -> None:
    """The outputs y (N, H, W, C), in blocks of stride x stride cells, of products (36, N tiles, stride^2 C), plus b."""
    h, w, c = y.shape[1:]
    rows, columns = tile_counts(tuple(-(-(n + pad) // stride) for n in (h, w)))
    start(
        "winograd", "outputs", z.shape[2], z.shape[1],
        z, b, y, h, w, c, z.shape[1], rows, columns, stride, pad, dtype=y.dtype,
    )  # fmt: skip


def _outputs_adjoint(dy: Array) -> Array:
    rows, columns = tile_counts(dy.shape[1:3])
    count, (h, w, m) = len(dy) * rows * columns, dy.shape[1:]
    z = empty((36, count, m), dy)
    start("winograd", "outputs_adjoint", m, count, dy, z, h, w, m, count, rows, columns, dtype=dy.dtype)
    return z


def _filters(w: Array, window: Window, *, flip: bool = False) -> Array:
    """Filters w (K, K, C / groups, M), turned where ``flip``, at all points: (36, stride^2 C / groups, M)."""
    w = array_module(w).ascontiguousarray(w)
    size, _, c, m = w.shape
    maps = window.stride**2 * c
    u = empty((36, maps, m), w)
    start("winograd", "filters", m, maps, w, u, size, c, m, window.stride, flip, dtype=w.dtype)
    return u


def _filters_adjoint(du: Array, window: Window, c: int) -> Array:
    dw = empty((window.size, window.size, c, du.shape[2]), du)
    start(
        "winograd", "filters_adjoint", du.shape[2], du.shape[1],
        du, dw, window.size, c, du.shape[2], window.stride, dtype=du.dtype,
    )  # fmt: skip
    return dw
