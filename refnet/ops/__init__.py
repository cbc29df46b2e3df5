"""The operations: pure functions on arrays of NumPy or CuPy, one file each.

Axes: images (N, H, W, C), outputs (N, P, Q, M), filters (K, K, C / groups, M); all C-ordered. ``r`` is a signal on
its way back to the pixels: a gradient in training, the reconstruction in the deconvnet.
"""

from refnet.ops.average import average_forward, average_transpose
from refnet.ops.boxes import blank_beyond, cut_boxes, paste_boxes
from refnet.ops.conv import conv_forward, conv_grads, conv_transpose
from refnet.ops.linear import linear_forward, linear_grads, linear_transpose
from refnet.ops.loss import cross_entropy
from refnet.ops.lrn import lrn_backward, lrn_forward, lrn_within_backward, lrn_within_forward
from refnet.ops.pool import pool_forward, unpool
from refnet.ops.relu import relu_backward, relu_forward

__all__ = [
    "average_forward", "average_transpose", "blank_beyond", "conv_forward", "conv_grads", "conv_transpose",
    "cross_entropy", "cut_boxes", "linear_forward", "linear_grads", "linear_transpose", "lrn_backward",
    "lrn_forward", "lrn_within_backward", "lrn_within_forward", "paste_boxes", "pool_forward", "relu_backward",
    "relu_forward", "unpool",
]  # fmt: skip
