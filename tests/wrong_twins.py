"""Operations with one mistake each, of the kind that people make and that looks right in a plot.

Each list holds the wrong twins of one operation. The tests run the very checks that the operation passes on every
twin of it, and the checks must fail: a suite that lets a twin through could not tell it from the operation.
"""

import numpy as np

from refnet import geometry
from refnet.geometry import Field, Window
from refnet.ops.average import average_forward, average_transpose, edge_weights
from refnet.ops.conv import conv_forward, conv_grads, conv_transpose
from refnet.ops.linear import linear_forward, linear_grads, linear_transpose
from refnet.ops.loss import cross_entropy, softmax
from refnet.ops.lrn import lrn_backward, lrn_forward, lrn_within_backward, lrn_within_forward
from refnet.ops.pool import pool_forward, unpool
from refnet.ops.windows import unfold
from refnet.ops.winograd import filters, winograd_forward, winograd_grads, winograd_transpose

# --- windows ---


def unfold_columns_before_rows(x, **how):
    return unfold(x, **how).swapaxes(3, 4).copy()


def unfold_repeating_the_edge(x, *, out_hw, window):
    size, stride, pad = window
    edges = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    return unfold(edges, out_hw=out_hw, window=Window(size, stride))


def fold_overwrites(columns, *, hw, window):
    size, stride, pad = window
    n, p, q, _, _, c = columns.shape
    x = np.zeros((n, hw[0] + 2 * pad, hw[1] + 2 * pad, c), columns.dtype)
    for row, col in np.ndindex(p, q):
        x[:, row * stride : row * stride + size, col * stride : col * stride + size] = columns[:, row, col]
    return x[:, pad : pad + hw[0], pad : pad + hw[1]].copy()


UNFOLD = [unfold_columns_before_rows, unfold_repeating_the_edge]
FOLD = [fold_overwrites]

# --- convolution ---


def conv_without_bias(x, w, b, **how):
    return conv_forward(x, w, np.zeros_like(b), **how)


def conv_with_flipped_filters(x, w, b, **how):
    """True convolution."""
    return conv_forward(x, w[::-1, ::-1], b, **how)


def conv_with_rows_and_columns_of_filters_swapped(x, w, b, **how):
    return conv_forward(x, w.swapaxes(0, 1), b, **how)


def conv_padded_on_one_side(x, w, b, *, stride, pad, groups):
    x = np.pad(x, ((0, 0), (2 * pad, 0), (2 * pad, 0), (0, 0)))
    return conv_forward(x, w, b, stride=stride, groups=groups)


def conv_from_the_far_corner(x, w, b, **how):
    """Where the stride leaves cells over, it leaves out the first ones instead of the last."""
    return conv_forward(x[:, ::-1, ::-1], w[::-1, ::-1], b, **how)[:, ::-1, ::-1].copy()


def conv_with_groups_swapped(x, w, b, *, stride, pad, groups):
    x = np.roll(x, x.shape[3] // groups if groups > 1 else 0, axis=3)
    return conv_forward(x, w, b, stride=stride, pad=pad, groups=groups)


def conv_with_groups_interleaved(x, w, b, *, stride, pad, groups):
    maps = np.arange(x.shape[3]).reshape(-1, groups).T.ravel()
    return conv_forward(x[..., maps], w, b, stride=stride, pad=pad, groups=groups)


def transpose_with_flipped_filters(r, w, **how):
    """Flips what the transposition has flipped already."""
    return conv_transpose(r, w[::-1, ::-1], **how)


def transpose_ignoring_hw(r, w, *, stride, pad, hw, groups):
    """Gives the smallest of the sizes that have these outputs."""
    smallest = tuple((n - 1) * stride + len(w) - 2 * pad for n in r.shape[1:3])
    return conv_transpose(r, w, stride=stride, pad=pad, hw=smallest, groups=groups)


def transpose_padded_on_one_side(r, w, *, stride, pad, hw, groups):
    padded = hw[0] + 2 * pad, hw[1] + 2 * pad
    return conv_transpose(r, w, stride=stride, hw=padded, groups=groups)[:, 2 * pad :, 2 * pad :].copy()


def transpose_with_groups_swapped(r, w, *, groups, **how):
    x = conv_transpose(r, w, groups=groups, **how)
    return np.roll(x, x.shape[3] // groups if groups > 1 else 0, axis=3)


def grads_averaged_over_the_batch(x, dy, **how):
    return tuple(each / max(len(x), 1) for each in conv_grads(x, dy, **how))


def grads_of_flipped_filters(x, dy, **how):
    dw, db = conv_grads(x, dy, **how)
    return dw[::-1, ::-1].copy(), db


def grads_with_biases_averaged_over_positions(x, dy, **how):
    dw, db = conv_grads(x, dy, **how)
    return dw, db / max(dy.shape[1] * dy.shape[2], 1)


CONV_FORWARD = [
    conv_without_bias,
    conv_with_flipped_filters,
    conv_with_rows_and_columns_of_filters_swapped,
    conv_padded_on_one_side,
    conv_from_the_far_corner,
    conv_with_groups_swapped,
    conv_with_groups_interleaved,
]
CONV_TRANSPOSE = [
    transpose_with_flipped_filters,
    transpose_ignoring_hw,
    transpose_padded_on_one_side,
    transpose_with_groups_swapped,
]
CONV_GRADS = [
    grads_averaged_over_the_batch,
    grads_of_flipped_filters,
    grads_with_biases_averaged_over_positions,
]

# --- the fast convolution ---


def filters_flipped(w, window):
    """Rows and columns turned round, as the textbook's convolution would have it."""
    return filters(w[::-1, ::-1], window)


def filters_with_rows_and_columns_swapped(w, window):
    return filters(w.swapaxes(0, 1), window)


def filters_bordered_on_the_wrong_side(w, window):
    """The zeros that fill a strided filter's blocks come before its weights instead of after."""
    size, stride, pad = window
    missing = 3 * stride - size
    return filters(np.pad(w, ((missing, 0), (missing, 0), (0, 0), (0, 0))), Window(3 * stride, stride, pad))


def filters_with_the_cells_of_a_block_by_column(w, window):
    u, stride = filters(w, window), window.stride
    return u.reshape(36, stride, stride, -1, u.shape[3]).swapaxes(1, 2).reshape(u.shape)


def winograd_without_bias(x, u, b, **how):
    return winograd_forward(x, u, np.zeros_like(b), **how)


def winograd_with_groups_swapped(x, u, b, *, window, groups):
    x = np.roll(x, x.shape[3] // groups if groups > 1 else 0, axis=3)
    return winograd_forward(x, u, b, window=window, groups=groups)


def winograd_padded_on_one_side(x, u, b, *, window, groups):
    x = np.pad(x, ((0, 0), (2 * window.pad, 0), (2 * window.pad, 0), (0, 0)))
    return winograd_forward(x, u, b, window=window._replace(pad=0), groups=groups)


def winograd_with_tiles_one_cell_too_far(x, u, b, *, window, groups):
    """Tiles overlap by one row and one column less than they should."""
    size, stride, pad = window
    y = winograd_forward(x, u, b, window=window, groups=groups)
    x = np.pad(x, ((0, 0), (pad, pad + 99), (pad, pad + 99), (0, 0)))
    for p, q in np.ndindex(-(-y.shape[1] // 4), -(-y.shape[2] // 4)):
        row, col = (stride * 4 + 1) * p, (stride * 4 + 1) * q
        met = x[:, row : row + 3 * stride + size, col : col + 3 * stride + size]
        tile = winograd_forward(met, u, b, window=Window(size, stride), groups=groups)
        outputs = y[:, 4 * p : 4 * p + 4, 4 * q : 4 * q + 4]
        outputs[...] = tile[:, : outputs.shape[1], : outputs.shape[2]]
    return y


def winograd_of_whole_tiles(x, u, b, **how):
    """Outputs that don't fill a tile keep what was in memory."""
    y = winograd_forward(x, u, b, **how)
    y[:, y.shape[1] // 4 * 4 :] = 0
    y[:, :, y.shape[2] // 4 * 4 :] = 0
    return y


def winograd_transpose_with_unflipped_filters(r, u, **how):
    """The same filters up and down."""
    return winograd_transpose(r[:, ::-1, ::-1], u, **how)[:, ::-1, ::-1].copy()


def winograd_transpose_overwrites(r, u, *, window, hw, groups):
    """Where the cells of two tiles overlap, the last one wins."""
    size, stride, pad = window
    rows, cols = (n + 2 * pad + 6 * stride for n in hw)
    x = np.zeros((len(r), rows, cols, u.shape[2] // stride**2 * groups), r.dtype)
    for p, q in np.ndindex(-(-r.shape[1] // 4), -(-r.shape[2] // 4)):
        part = r[:, 4 * p : 4 * p + 4, 4 * q : 4 * q + 4]
        reach = tuple((n - 1) * stride + size for n in part.shape[1:3])
        at = np.s_[:, 4 * p * stride : 4 * p * stride + reach[0], 4 * q * stride : 4 * q * stride + reach[1]]
        x[at] = winograd_transpose(part, u, window=Window(size, stride), hw=reach, groups=groups)
    return x[:, pad : pad + hw[0], pad : pad + hw[1]].copy()


def winograd_transpose_with_groups_swapped(r, u, *, groups, **how):
    x = winograd_transpose(r, u, groups=groups, **how)
    return np.roll(x, x.shape[3] // groups if groups > 1 else 0, axis=3)


def winograd_grads_of_whole_tiles(x, dy, **how):
    whole = np.zeros_like(dy)
    p, q = (n // 4 * 4 for n in dy.shape[1:3])
    whole[:, :p, :q] = dy[:, :p, :q]
    return winograd_grads(x, whole, **how)[0], dy.sum(axis=(0, 1, 2))


def winograd_grads_with_rows_and_columns_swapped(x, dy, **how):
    dw, db = winograd_grads(x, dy, **how)
    return dw.swapaxes(0, 1).copy(), db


def winograd_grads_with_groups_swapped(x, dy, *, groups, **how):
    x = np.roll(x, x.shape[3] // groups if groups > 1 else 0, axis=3)
    return winograd_grads(x, dy, groups=groups, **how)


WINOGRAD_FILTERS = [
    filters_flipped,
    filters_with_rows_and_columns_swapped,
    filters_bordered_on_the_wrong_side,
    filters_with_the_cells_of_a_block_by_column,
]
WINOGRAD_FORWARD = [
    winograd_without_bias,
    winograd_with_groups_swapped,
    winograd_padded_on_one_side,
    winograd_with_tiles_one_cell_too_far,
    winograd_of_whole_tiles,
]
WINOGRAD_TRANSPOSE = [
    winograd_transpose_with_unflipped_filters,
    winograd_transpose_overwrites,
    winograd_transpose_with_groups_swapped,
]
WINOGRAD_GRADS = [
    winograd_grads_of_whole_tiles,
    winograd_grads_with_rows_and_columns_swapped,
    winograd_grads_with_groups_swapped,
]

# --- pooling ---


def _pool(x, *, size, stride, pad, ceil, border=-np.inf, last_tie=False):
    """Pooling by tap over a padded copy, with room for the mistakes below."""
    p, q = (geometry.pool_size(n, Window(size, stride, pad), ceil=ceil) for n in x.shape[1:3])
    after = [max((m - 1) * stride + size - n - pad, 0) for m, n in zip((p, q), x.shape[1:3], strict=True)]
    padded = np.pad(x, ((0, 0), (pad, after[0]), (pad, after[1]), (0, 0)), constant_values=border)
    y = np.full((len(x), p, q, x.shape[3]), -np.inf, x.dtype)
    switches = np.zeros(y.shape, np.uint8)
    for i, j in np.ndindex(size, size):
        cells = padded[:, i : i + (p - 1) * stride + 1 : stride, j : j + (q - 1) * stride + 1 : stride]
        switches[cells >= y if last_tie else cells > y] = i * size + j
        y = np.maximum(y, cells)
    return y, switches


def pool_with_floor_for_ceil(x, *, ceil, **how):
    return pool_forward(x, ceil=False, **how)


def pool_with_the_last_tie(x, **how):
    return _pool(x, last_tie=True, **how)


def pool_with_a_border_of_zeros(x, **how):
    return _pool(x, border=0, **how)


def pool_with_switches_by_column(x, *, size, **how):
    y, switches = pool_forward(x, size=size, **how)
    return y, switches % size * size + switches // size


def unpool_overwrites(r, switches, *, size, stride, pad, ceil, hw):
    """What torch.nn.MaxUnpool2d does."""
    x = np.zeros((len(r), *hw, r.shape[3]), r.dtype)
    for (n, p, q, c), switch in np.ndenumerate(switches):
        x[n, p * stride - pad + switch // size, q * stride - pad + switch % size, c] = r[n, p, q, c]
    return x


def unpool_into_the_first_cell(r, switches, **how):
    return unpool(r, np.zeros_like(switches), **how)


def unpool_averages_overlaps(r, switches, **how):
    wins = unpool(np.ones_like(r), switches, **how)
    return unpool(r, switches, **how) / np.maximum(wins, 1)


def unpool_with_switches_by_column(r, switches, *, size, **how):
    return unpool(r, switches % size * size + switches // size, size=size, **how)


POOL_FORWARD = [
    pool_with_floor_for_ceil,
    pool_with_the_last_tie,
    pool_with_a_border_of_zeros,
    pool_with_switches_by_column,
]
UNPOOL = [
    unpool_overwrites,
    unpool_into_the_first_cell,
    unpool_averages_overlaps,
    unpool_with_switches_by_column,
]

# --- average pooling ---


def average_of_the_whole_window(x, *, size, count_pad, **how):
    """Divides by size^2 also where a region hangs over the edge."""
    y = average_forward(x, size=size, count_pad=count_pad, **how)
    return y / edge_weights(x.shape[1:3], x, size=size, count_pad=count_pad, **how)


def average_counting_the_padding(x, *, count_pad, **how):
    return average_forward(x, count_pad=True, **how)


def average_not_counting_the_padding(x, *, count_pad, **how):
    return average_forward(x, count_pad=False, **how)


def average_with_floor_for_ceil(x, *, ceil, **how):
    return average_forward(x, ceil=False, **how)


def average_transpose_undivided(r, *, size, **how):
    return average_transpose(r, size=size, **how) * size**2


def average_transpose_shared_evenly(r, *, size, count_pad, hw, **how):
    weights = edge_weights(hw, r, size=size, count_pad=count_pad, **how)
    return average_transpose(r / weights, size=size, count_pad=count_pad, hw=hw, **how)


def average_transpose_into_the_first_cell(r, *, size, **how):
    pad, hw = how["pad"], how["hw"]
    x = np.zeros((len(r), *hw, r.shape[3]), r.dtype)
    for p, q in np.ndindex(r.shape[1:3]):
        x[:, max(p * how["stride"] - pad, 0), max(q * how["stride"] - pad, 0)] += r[:, p, q]
    return x


def weights_of_the_whole_window(hw, like, **how):
    return np.ones_like(edge_weights(hw, like, **how))


AVERAGE_FORWARD = [
    average_of_the_whole_window,
    average_counting_the_padding,
    average_not_counting_the_padding,
    average_with_floor_for_ceil,
]
AVERAGE_TRANSPOSE = [
    average_transpose_undivided,
    average_transpose_shared_evenly,
    average_transpose_into_the_first_cell,
]
EDGE_WEIGHTS = [weights_of_the_whole_window]

# --- local response normalisation ---


def _lrn(x, maps_around, *, k, alpha, beta):
    """Normalisation over the maps that ``maps_around(c)`` lists."""
    energy = np.stack([(x[..., maps_around(c)] ** 2).sum(axis=-1) for c in range(x.shape[-1])], axis=-1)
    scale = (k + alpha * energy).astype(x.dtype)
    return x * scale**-beta, scale


def lrn_over_one_map_more(x, *, n, **constants):
    """Goes to c + n / 2 where it should to c + (n - 1) / 2."""
    last = x.shape[-1]
    return _lrn(x, lambda c: [d for d in range(c - n // 2, c + n // 2 + 2) if 0 <= d < last], **constants)


def lrn_over_two_maps_less(x, *, n, **constants):
    return lrn_forward(x, n=max(n - 2, 1), **constants)


def lrn_around_the_ends(x, *, n, **constants):
    """Takes the first map for the neighbour of the last."""
    last = x.shape[-1]
    return _lrn(x, lambda c: sorted({d % last for d in range(c - n // 2, c + n // 2 + 1)}), **constants)


def lrn_with_alpha_times_the_mean(x, *, n, alpha, **constants):
    """Caffe's, PyTorch's and ONNX's alpha."""
    return lrn_forward(x, n=n, alpha=alpha / n, **constants)


def lrn_with_the_power_of_the_other_sign(x, *, beta, **constants):
    y, scale = lrn_forward(x, beta=-beta, **constants)
    return y, scale


def lrn_without_k(x, *, k, **constants):
    return lrn_forward(x, k=1.0, **constants)


def lrn_backward_with_the_power_off_by_two(dy, x, scale, *, n, alpha, beta):
    """scale^(1 - beta) where scale^(-beta - 1) belongs."""
    direct = dy * scale**-beta
    rest = lrn_backward(dy * scale**2, x, scale, n=n, alpha=alpha, beta=beta) - dy * scale ** (2 - beta)
    return direct + rest


def lrn_backward_without_the_two(dy, x, scale, *, alpha, **constants):
    return lrn_backward(dy, x, scale, alpha=alpha / 2, **constants)


def lrn_backward_with_a_plus(dy, x, scale, *, alpha, **constants):
    return lrn_backward(dy, x, scale, alpha=-alpha, **constants)


def lrn_backward_without_neighbours(dy, x, scale, *, n, **constants):
    return lrn_backward(dy, x, scale, n=1, **constants)


def lrn_backward_taking_scale_for_constant(dy, x, scale, *, n, alpha, beta):
    return dy * scale**-beta


LRN_FORWARD = [
    lrn_over_one_map_more,
    lrn_over_two_maps_less,
    lrn_around_the_ends,
    lrn_with_alpha_times_the_mean,
    lrn_with_the_power_of_the_other_sign,
    lrn_without_k,
]
LRN_BACKWARD = [
    lrn_backward_with_the_power_off_by_two,
    lrn_backward_without_the_two,
    lrn_backward_with_a_plus,
    lrn_backward_without_neighbours,
    lrn_backward_taking_scale_for_constant,
]


def within_over_two_cells_less(x, *, size, **constants):
    return lrn_within_forward(x, size=max(size - 2, 1), **constants)


def within_across_maps(x, *, size, **constants):
    """Normalises over neighbouring maps."""
    return lrn_forward(x, n=size, k=1.0, **constants)


def within_with_alpha_times_the_mean(x, *, size, alpha, **constants):
    """Caffe's alpha is size^2 times ours."""
    return lrn_within_forward(x, size=size, alpha=alpha / size**2, **constants)


def within_one_row_only(x, *, size, **constants):
    """Sums along the columns and not along the rows: over each row on its own."""
    y, scale = (np.empty_like(x) for _ in range(2))
    for row in range(x.shape[1]):
        y[:, row : row + 1], scale[:, row : row + 1] = lrn_within_forward(x[:, row : row + 1], size=size, **constants)
    return y, scale


def within_with_the_edge_repeated(x, *, size, alpha, beta):
    """Cells beyond the edge count as those at the edge where they should count as 0."""
    reach = size // 2
    around = np.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
    _, scale = lrn_within_forward(around, size=size, alpha=alpha, beta=beta)
    scale = scale[:, reach : reach + x.shape[1], reach : reach + x.shape[2]].copy()
    return x * scale**-beta, scale


def within_backward_without_the_two(dy, x, scale, *, alpha, **constants):
    return lrn_within_backward(dy, x, scale, alpha=alpha / 2, **constants)


def within_backward_with_a_plus(dy, x, scale, *, alpha, **constants):
    return lrn_within_backward(dy, x, scale, alpha=-alpha, **constants)


def within_backward_without_neighbours(dy, x, scale, *, size, **constants):
    return lrn_within_backward(dy, x, scale, size=1, **constants)


def within_backward_taking_scale_for_constant(dy, x, scale, *, size, alpha, beta):
    return dy * scale**-beta


LRN_WITHIN_FORWARD = [
    within_over_two_cells_less,
    within_across_maps,
    within_with_alpha_times_the_mean,
    within_one_row_only,
    within_with_the_edge_repeated,
]
LRN_WITHIN_BACKWARD = [
    within_backward_without_the_two,
    within_backward_with_a_plus,
    within_backward_without_neighbours,
    within_backward_taking_scale_for_constant,
]

# --- rectification ---


def relu_leaks(x):
    return np.maximum(x, x / 100)


def relu_of_the_absolute_value(x):
    return abs(x)


def relu_backward_at_zero_too(dy, y):
    """>= for >: a rectified output is never below 0, so everything passes."""
    return dy * (y >= 0)


def relu_backward_by_its_own_sign(dy, y):
    """The deconvnet's rule, in the gradient's place."""
    return np.maximum(dy, 0)


RELU_FORWARD = [relu_leaks, relu_of_the_absolute_value]
RELU_BACKWARD = [relu_backward_at_zero_too, relu_backward_by_its_own_sign]

# --- fully connected layers ---


def linear_without_bias(x, w, b):
    return linear_forward(x, w, np.zeros_like(b))


def linear_with_the_weights_reordered(x, w, b):
    """Rows of w taken in the order of another layout."""
    return linear_forward(x, w.ravel(order="F").reshape(w.shape), b)


def linear_transpose_with_the_weights_reordered(r, w):
    return linear_transpose(r, w.ravel(order="F").reshape(w.shape))


def linear_grads_averaged_over_the_batch(x, dy):
    return tuple(each / max(len(x), 1) for each in linear_grads(x, dy))


def linear_grads_with_biases_averaged_only(x, dy):
    dw, db = linear_grads(x, dy)
    return dw, db / max(len(x), 1)


LINEAR_FORWARD = [linear_without_bias, linear_with_the_weights_reordered]
LINEAR_TRANSPOSE = [linear_transpose_with_the_weights_reordered]
LINEAR_GRADS = [linear_grads_averaged_over_the_batch, linear_grads_with_biases_averaged_only]

# --- dropout ---


def dropout_unscaled(shape, *, rate, rng, dtype):
    return (rng.random(shape, dtype=np.float32) >= rate).astype(dtype)


def dropout_of_what_it_should_keep(shape, *, rate, rng, dtype):
    return (rng.random(shape, dtype=np.float32) < rate).astype(dtype) / np.dtype(dtype).type(1 - rate)


def dropout_scaled_by_the_rate(shape, *, rate, rng, dtype):
    """Right at a rate of 0.5, and only there."""
    return (rng.random(shape, dtype=np.float32) >= rate).astype(dtype) / np.dtype(dtype).type(rate or 1)


def dropout_of_whole_rows(shape, *, rate, rng, dtype):
    kept = rng.random(shape[:1] + (1,) * (len(shape) - 1), dtype=np.float32) >= rate
    return np.broadcast_to(kept, shape).astype(dtype) / np.dtype(dtype).type(1 - rate)


DROPOUT_MASK = [
    dropout_unscaled,
    dropout_of_what_it_should_keep,
    dropout_scaled_by_the_rate,
    dropout_of_whole_rows,
]

# --- loss ---


def softmax_over_the_batch(y):
    return softmax(y.T).T.copy()


def softmax_that_overflows(y):
    with np.errstate(all="ignore"):
        e = np.exp(y)
        return e / e.sum(axis=-1, keepdims=True)


def cross_entropy_summed(y, labels):
    loss, dy = cross_entropy(y, labels)
    return loss * len(y), dy * len(y)


def cross_entropy_with_a_summed_gradient(y, labels):
    loss, dy = cross_entropy(y, labels)
    return loss, dy * len(y)


def cross_entropy_in_bits(y, labels):
    loss, dy = cross_entropy(y, labels)
    return loss / np.log(2), dy


def cross_entropy_with_the_gradient_of_the_label_alone(y, labels):
    loss, dy = cross_entropy(y, labels)
    return loss, np.minimum(dy, 0)


def cross_entropy_that_overflows(y, labels):
    with np.errstate(all="ignore"):
        p = softmax_that_overflows(y)
        rows = np.arange(len(y))
        dy = p.copy()
        dy[rows, labels] -= 1
        return -float(np.log(p[rows, labels]).mean()), dy / np.asarray(len(y), y.dtype)


SOFTMAX = [softmax_over_the_batch, softmax_that_overflows]
CROSS_ENTROPY = [
    cross_entropy_summed,
    cross_entropy_with_a_summed_gradient,
    cross_entropy_in_bits,
    cross_entropy_with_the_gradient_of_the_label_alone,
    cross_entropy_that_overflows,
]

# --- gradient descent ---


def _sgd(params, grads, velocity, update):
    for name, layer in params.items():
        for key, w in layer.items():
            w[...], velocity[name][key][...] = update(key, w, grads[name][key], velocity[name][key])


def sgd_of_nesterov(params, grads, velocity, *, rate, momentum, decay):
    def update(key, w, g, v):
        g = g + decay * w * (key == "w")
        v = momentum * v - rate * g
        return w + momentum * v - rate * g, v

    _sgd(params, grads, velocity, update)


def sgd_with_the_rate_outside_the_velocity(params, grads, velocity, *, rate, momentum, decay):
    """PyTorch's form: the same until the rate changes."""

    def update(key, w, g, v):
        v = momentum * v + g + decay * w * (key == "w")
        return w - rate * v, v

    _sgd(params, grads, velocity, update)


def sgd_with_decay_on_biases(params, grads, velocity, *, rate, momentum, decay):
    def update(key, w, g, v):
        v = momentum * v - rate * (g + decay * w)
        return w + v, v

    _sgd(params, grads, velocity, update)


def sgd_with_decay_beside_the_gradient(params, grads, velocity, *, rate, momentum, decay):
    """AdamW's decoupled decay."""

    def update(key, w, g, v):
        v = momentum * v - rate * g
        return w + v - rate * decay * w * (key == "w"), v

    _sgd(params, grads, velocity, update)


def sgd_with_a_damped_gradient(params, grads, velocity, *, rate, momentum, decay):
    def update(key, w, g, v):
        v = momentum * v - (1 - momentum) * rate * (g + decay * w * (key == "w"))
        return w + v, v

    _sgd(params, grads, velocity, update)


SGD_STEP = [
    sgd_of_nesterov,
    sgd_with_the_rate_outside_the_velocity,
    sgd_with_decay_on_biases,
    sgd_with_decay_beside_the_gradient,
    sgd_with_a_damped_gradient,
]


def _clip(w, size, clip):
    """Scale the filters whose ``size`` (M,) exceeds ``clip`` down to it; return how many."""
    w *= np.minimum(1, clip / np.maximum(size, 1e-30)).astype(w.dtype)
    return int((size > clip).sum())


def clip_by_the_largest_weight(w, clip):
    return _clip(w, abs(w).max(axis=(0, 1, 2)), clip)


def clip_by_the_norm(w, clip):
    """Root of the sum where the root of the mean belongs."""
    return _clip(w, np.sqrt((w * w).sum(axis=(0, 1, 2))), clip)


def clip_by_the_layer(w, clip):
    return _clip(w, np.full(w.shape[3], np.sqrt((w * w).mean())), clip)


def clip_by_the_spread(w, clip):
    """Standard deviation: forgets the filter's mean."""
    return _clip(w, w.std(axis=(0, 1, 2)), clip)


def clip_scales_small_filters_up(w, clip):
    rms = np.sqrt((w * w).mean(axis=(0, 1, 2)))
    w *= (clip / np.maximum(rms, 1e-30)).astype(w.dtype)
    return int((rms > clip).sum())


def clip_by_cutting_weights(w, clip):
    over = np.sqrt((w * w).mean(axis=(0, 1, 2))) > clip
    w[...] = np.clip(w, -clip, clip)
    return int(over.sum())


CLIP_FILTERS = [
    clip_by_the_largest_weight,
    clip_by_the_norm,
    clip_by_the_layer,
    clip_by_the_spread,
    clip_scales_small_filters_up,
    clip_by_cutting_weights,
]

# --- geometry ---


def conv_size_with_ceil(n, window):
    return -(-(n + 2 * window.pad - window.size) // window.stride) + 1


def conv_size_padded_on_one_side(n, window):
    return geometry.conv_size(n - window.pad, window)


def pool_size_with_a_window_of_padding(n, window, *, ceil):
    """Without Caffe's rule that the last window starts inside the image."""
    return conv_size_with_ceil(n, window) if ceil else geometry.conv_size(n, window)


def pool_size_with_floor(n, window, *, ceil):
    return geometry.conv_size(n, window)


def field_without_strides(windows):
    windows = list(windows)
    whole = geometry.receptive_field(windows)
    return whole._replace(size=1 + sum(window.size - 1 for window in windows))


def field_without_padding(windows):
    return geometry.receptive_field(window._replace(pad=0) for window in windows)


def field_counting_a_stride_too_early(windows):
    field = Field()
    for window in windows:
        stride = field.stride * window.stride
        field = Field(field.size + (window.size - 1) * stride, stride, field.start - window.pad * field.stride)
    return field


CONV_SIZE = [conv_size_with_ceil, conv_size_padded_on_one_side]
POOL_SIZE = [pool_size_with_a_window_of_padding, pool_size_with_floor]
RECEPTIVE_FIELD = [field_without_strides, field_without_padding, field_counting_a_stride_too_early]

# --- parallel ---


class SumInOrderOfArrival:
    """The bits of its total depend on which thread was first."""

    def __init__(self):
        self.total = None

    def add(self, index, array):
        self.total = array if self.total is None else self.total + array


def cut_with_a_short_last_slice(n, size):
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def cut_without_the_rest(n, size):
    return [slice(start, start + size) for start in range(0, n - size + 1, size)]


ORDERED_SUM = [SumInOrderOfArrival]
CUT = [cut_with_a_short_last_slice, cut_without_the_rest]
