"""Every operation again, as loops straight from its formula: slow, obvious, and without a line of refnet's.

Names and axes are those of refnet; results are float64.
"""

import numpy as np


def conv_starts(n, size, stride, pad):
    """First cells of the windows that lie wholly within ``n`` cells and ``pad`` more on either side."""
    return [start for start in range(-pad, n + pad, stride) if start + size <= n + pad]


def pool_starts(n, size, stride, pad, ceil):
    """First cells of the pooling regions: with ``ceil`` one more for cells left over, if it starts in the image."""
    starts = conv_starts(n, size, stride, pad)
    following = len(starts) * stride - pad
    left_over = following - stride + size < n + pad
    return [*starts, following] if ceil and left_over and following < n else starts


def unfold(x, *, size, stride, pad):
    n, h, w, c = x.shape
    rows, cols = (conv_starts(length, size, stride, pad) for length in (h, w))
    columns = np.zeros((n, len(rows), len(cols), size, size, c))
    for p, row in enumerate(rows):
        for q, col in enumerate(cols):
            for i, j in np.ndindex(size, size):
                if 0 <= row + i < h and 0 <= col + j < w:
                    columns[:, p, q, i, j] = x[:, row + i, col + j]
    return columns


def fold(columns, *, hw, size, stride, pad):
    n, p, q, _, _, c = columns.shape
    x = np.zeros((n, *hw, c))
    for row, col, i, j in np.ndindex(p, q, size, size):
        at = row * stride + i - pad, col * stride + j - pad
        if 0 <= at[0] < hw[0] and 0 <= at[1] < hw[1]:
            x[:, at[0], at[1]] += columns[:, row, col, i, j]
    return x


def conv_products(x_shape, w_shape, *, stride, pad, groups):
    """Everything that a convolution multiplies: the indices of an output, of a cell of x and of a weight."""
    n, h, w, _ = x_shape
    size, _, c, m = w_shape
    rows, cols = (conv_starts(length, size, stride, pad) for length in (h, w))
    for image, p, q, f in np.ndindex(n, len(rows), len(cols), m):
        group = f // (m // groups)
        for i, j, d in np.ndindex(size, size, c):
            if 0 <= rows[p] + i < h and 0 <= cols[q] + j < w:
                yield (image, p, q, f), (image, rows[p] + i, cols[q] + j, group * c + d), (i, j, d, f)


def conv_forward(x, w, b, *, stride, pad, groups):
    p, q = (len(conv_starts(length, len(w), stride, pad)) for length in x.shape[1:3])
    y = np.zeros((len(x), p, q, len(b)))
    y += b
    for output, cell, weight in conv_products(x.shape, w.shape, stride=stride, pad=pad, groups=groups):
        y[output] += float(x[cell]) * w[weight]
    return y


def conv_transpose(r, w, *, stride, pad, hw, groups):
    x = np.zeros((len(r), *hw, w.shape[2] * groups))
    for output, cell, weight in conv_products(x.shape, w.shape, stride=stride, pad=pad, groups=groups):
        x[cell] += float(r[output]) * w[weight]
    return x


def conv_grads(x, dy, *, size, stride, pad, groups):
    dw = np.zeros((size, size, x.shape[3] // groups, dy.shape[3]))
    for output, cell, weight in conv_products(x.shape, dw.shape, stride=stride, pad=pad, groups=groups):
        dw[weight] += float(x[cell]) * dy[output]
    db = np.zeros(dy.shape[3])
    for output in np.ndindex(dy.shape):
        db[output[3]] += dy[output]
    return dw, db


def pool_forward(x, *, size, stride, pad, ceil):
    n, h, w, c = x.shape
    rows, cols = (pool_starts(length, size, stride, pad, ceil) for length in (h, w))
    y = np.full((n, len(rows), len(cols), c), -np.inf)
    switches = np.zeros(y.shape, np.uint8)
    for image, p, q, m in np.ndindex(y.shape):
        for i, j in np.ndindex(size, size):
            row, col = rows[p] + i, cols[q] + j
            if 0 <= row < h and 0 <= col < w and x[image, row, col, m] > y[image, p, q, m]:
                y[image, p, q, m] = x[image, row, col, m]
                switches[image, p, q, m] = i * size + j
    return y, switches


def switched_cell(output, switch, *, size, stride, pad):
    """The cell of the image that the switch of an output points at."""
    image, p, q, c = output
    return image, p * stride - pad + int(switch) // size, q * stride - pad + int(switch) % size, c


def pool_by_switches(x, switches, *, size, stride, pad):
    """Pooling with the switches of another image: linear in x."""
    y = np.zeros(switches.shape)
    for output, switch in np.ndenumerate(switches):
        y[output] = x[switched_cell(output, switch, size=size, stride=stride, pad=pad)]
    return y


def unpool(r, switches, *, size, stride, pad, hw):
    x = np.zeros((len(r), *hw, r.shape[3]))
    for output, switch in np.ndenumerate(switches):
        x[switched_cell(output, switch, size=size, stride=stride, pad=pad)] += r[output]
    return x


def region(start, size, n, border=0):
    """The cells of a region that lie in the image or, counted from its edge, at most ``border`` beyond."""
    return [cell for cell in range(start, start + size) if -border <= cell < n + border]


def averaged(hw, *, size, stride, pad, ceil, count_pad):
    """Every cell that a region averages: the output, the cell, and the number it divides by."""
    rows, cols = (pool_starts(length, size, stride, pad, ceil) for length in hw)
    border = pad if count_pad else 0
    for p, q in np.ndindex(len(rows), len(cols)):
        count = len(region(rows[p], size, hw[0], border)) * len(region(cols[q], size, hw[1], border))
        for row in region(rows[p], size, hw[0]):
            for col in region(cols[q], size, hw[1]):
                yield (p, q), (row, col), count


def average_forward(x, **how):
    rows, cols = (len(pool_starts(n, how["size"], how["stride"], how["pad"], how["ceil"])) for n in x.shape[1:3])
    y = np.zeros((len(x), rows, cols, x.shape[3]))
    for (p, q), (row, col), count in averaged(x.shape[1:3], **how):
        y[:, p, q] += x[:, row, col].astype(float) / count
    return y


def average_transpose(r, *, hw, **how):
    x = np.zeros((len(r), *hw, r.shape[3]))
    for (p, q), (row, col), count in averaged(hw, **how):
        x[:, row, col] += r[:, p, q].astype(float) / count
    return x


def edge_weights(hw, like, *, size, **how):
    rows, cols = (len(pool_starts(n, size, how["stride"], how["pad"], how["ceil"])) for n in hw)
    weights = np.zeros((1, rows, cols, 1))
    for (p, q), _, count in averaged(hw, size=size, **how):
        weights[0, p, q, 0] = size**2 / count
    return weights


def neighbours(c, maps, n):
    """The maps whose distance to ``c`` is at most (n - 1) / 2."""
    return [d for d in range(maps) if abs(d - c) <= (n - 1) / 2]


def lrn_forward(x, *, n, k, alpha, beta):
    y, scale = np.zeros(x.shape), np.zeros(x.shape)
    for *at, c in np.ndindex(x.shape):
        energy = sum(float(x[*at, d]) ** 2 for d in neighbours(c, x.shape[-1], n))
        scale[*at, c] = k + alpha * energy
        y[*at, c] = x[*at, c] * scale[*at, c] ** -beta
    return y, scale


def lrn_backward(dy, x, scale, *, n, alpha, beta):
    dx = np.zeros(x.shape)
    for *at, c in np.ndindex(x.shape):
        across = 0.0
        for d in neighbours(c, x.shape[-1], n):
            across += float(dy[*at, d]) * x[*at, d] * float(scale[*at, d]) ** (-beta - 1)
        dx[*at, c] = dy[*at, c] * float(scale[*at, c]) ** -beta - 2 * alpha * beta * x[*at, c] * across
    return dx


def around(p, q, hw, size):
    """The cells whose rows and columns are at most (size - 1) / 2 from (p, q)."""
    return [(i, j) for i, j in np.ndindex(*hw) if max(abs(i - p), abs(j - q)) <= (size - 1) / 2]


def lrn_within_forward(x, *, size, alpha, beta):
    y, scale = np.zeros(x.shape), np.zeros(x.shape)
    for n, p, q, c in np.ndindex(x.shape):
        energy = sum(float(x[n, i, j, c]) ** 2 for i, j in around(p, q, x.shape[1:3], size))
        scale[n, p, q, c] = 1 + alpha * energy
        y[n, p, q, c] = x[n, p, q, c] * scale[n, p, q, c] ** -beta
    return y, scale


def lrn_within_backward(dy, x, scale, *, size, alpha, beta):
    dx = np.zeros(x.shape)
    for n, p, q, c in np.ndindex(x.shape):
        energy = 0.0
        for i, j in around(p, q, x.shape[1:3], size):
            energy += float(dy[n, i, j, c]) * x[n, i, j, c] * float(scale[n, i, j, c]) ** (-beta - 1)
        dx[n, p, q, c] = dy[n, p, q, c] * float(scale[n, p, q, c]) ** -beta - 2 * alpha * beta * x[n, p, q, c] * energy
    return dx


def relu_forward(x):
    y = np.zeros(x.shape)
    for at, value in np.ndenumerate(x):
        y[at] = max(value, 0)
    return y


def relu_backward(dy, y):
    dx = np.zeros(dy.shape)
    for at, value in np.ndenumerate(y):
        dx[at] = dy[at] if value > 0 else 0
    return dx


def linear_forward(x, w, b):
    y = np.zeros((len(x), len(b)))
    for n, u in np.ndindex(y.shape):
        y[n, u] = b[u] + sum(float(x[n, i]) * w[i, u] for i in range(len(w)))
    return y


def linear_transpose(r, w):
    x = np.zeros((len(r), len(w)))
    for n, i in np.ndindex(x.shape):
        x[n, i] = sum(float(r[n, u]) * w[i, u] for u in range(w.shape[1]))
    return x


def linear_grads(x, dy):
    dw, db = np.zeros((x.shape[1], dy.shape[1])), np.zeros(dy.shape[1])
    for n, u in np.ndindex(dy.shape):
        db[u] += dy[n, u]
        for i in range(x.shape[1]):
            dw[i, u] += float(x[n, i]) * dy[n, u]
    return dw, db


def dropout_forward(x, mask):
    y = np.zeros(x.shape)
    for at, value in np.ndenumerate(x):
        y[at] = value * mask[at]
    return y


def softmax(y):
    p = np.zeros(y.shape)
    for n, c in np.ndindex(y.shape):
        p[n, c] = np.exp(float(y[n, c])) / sum(np.exp(float(y[n, d])) for d in range(y.shape[1]))
    return p


def cross_entropy(y, labels):
    p, n = softmax(y), len(y)
    loss = -sum(np.log(p[i, labels[i]]) for i in range(n)) / n
    dy = np.zeros(y.shape)
    for i, c in np.ndindex(y.shape):
        dy[i, c] = (p[i, c] - (c == labels[i])) / n
    return loss, dy


def sgd_step(w, g, v, *, rate, momentum, decay):
    """New weights and velocities of one array."""
    new_w, new_v = np.zeros(w.shape), np.zeros(w.shape)
    for at in np.ndindex(w.shape):
        new_v[at] = momentum * v[at] - rate * (g[at] + decay * w[at])
        new_w[at] = w[at] + new_v[at]
    return new_w, new_v


def clip_filters(w, clip):
    """The filters w (K, K, C, M), those with an RMS above ``clip`` scaled down to it, and how many these are."""
    clipped, count = np.array(w, np.float64), 0
    for m in range(w.shape[3]):
        weights = [float(weight) for weight in w[..., m].ravel()]
        rms = (sum(weight**2 for weight in weights) / len(weights)) ** 0.5
        if rms > clip:
            clipped[..., m] *= clip / rms
            count += 1
    return clipped, count


# --- boxes of maps ---


def cut_boxes(x, image, corners, *, size, beyond=0.0):
    y = np.full((len(image), *size, x.shape[3]), beyond, x.dtype)
    for s, i, j in np.ndindex(y.shape[:3]):
        row, column = corners[s][0] + i, corners[s][1] + j
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            y[s, i, j] = x[image[s], row, column]
    return y


def paste_boxes(y, corners, x):
    for s, i, j in np.ndindex(y.shape[:3]):
        row, column = corners[s][0] + i, corners[s][1] + j
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            x[s, row, column] = y[s, i, j]


def blank_beyond(y, corners, *, hw):
    blanked = y.copy()
    for s, i, j in np.ndindex(y.shape[:3]):
        if not (0 <= corners[s][0] + i < hw[0] and 0 <= corners[s][1] + j < hw[1]):
            blanked[s, i, j] = 0
    return blanked
