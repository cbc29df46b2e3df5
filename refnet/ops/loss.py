"""Softmax and its cross-entropy."""

from types import ModuleType

from refnet.backend import Array, array_module, check_same_dtype, to_host


def softmax(y: Array) -> Array:
    """p[n, c] = exp(y[n, c]) / sum_d exp(y[n, d]) (section 2). TypeError unless float32 or float64."""
    xp = check_same_dtype("softmax", y=y)
    y = xp.ascontiguousarray(y)
    e = xp.exp(y - y.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(y: Array, labels: Array) -> tuple[float, Array]:
    """Mean cross-entropy of the softmax (section 3) and its gradient.

    loss = -1/N sum_n log p[n, labels[n]] and dy[n, c] = (p[n, c] - [c = labels[n]]) / N.

    Parameters
    ----------
    y : (N, C) logits, float32 or float64, N > 0
    labels : (N,) integers, 0 <= labels < C

    Returns
    -------
    loss : float, in nats
    dy : (N, C)

    Raises
    ------
    ValueError
        If shapes do not fit or a label is out of range.
    TypeError
        If ``y`` is neither float32 nor float64 or the backends differ.
    """
    xp = check_labels(y, labels)
    y, rows = xp.ascontiguousarray(y), xp.arange(len(y))
    shifted = y - y.max(axis=1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    dy, inside = xp.exp(log_p), labels.clip(0, y.shape[1] - 1)
    dy[rows, inside] -= 1
    dy /= len(y)
    # One look at the device: each one waits until everything before has been done.
    mean, fit = to_host(xp.stack([log_p[rows, inside].mean(), (labels == inside).all().astype(y.dtype)])).tolist()
    check_range(y, labels, fit)
    return -mean, dy


def check_labels(y: Array, labels: Array) -> ModuleType:
    """The arrays' module, if labels and logits fit each other but for the labels' range."""
    check_same_dtype("cross_entropy", y=y)
    xp = array_module(y, labels)
    if y.ndim != 2 or labels.shape != (len(y),) or len(y) == 0:
        raise ValueError(f"cross_entropy: y is {y.shape} and labels {labels.shape}; it needs (N, C) and (N,), N > 0")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels are {labels.dtype}, they must be integers")
    return xp


def check_range(y: Array, labels: Array, fit: bool) -> None:
    """ValueError unless the labels fit the classes."""
    if not fit:
        raise ValueError(f"cross_entropy: labels run from {labels.min()} to {labels.max()}, classes to {y.shape[1]}")
