"""The operations on a GPU: one CUDA source for each, beside the NumPy-API operation of `refnet.ops` as its oracle.

Where whole-array expressions would pass over memory many times, a kernel passes once. Every thread gathers what its
own outputs are made of, in one order, without atomics: the same bits come out of every run. Products are cuBLAS's.
`refnet.layers.operations` chooses between the two by where the arrays live.
"""

from refnet.kernels.average import average_forward, average_transpose
from refnet.kernels.boxes import blank_beyond, cut_boxes, paste_boxes
from refnet.kernels.conv import conv_forward, conv_grads, conv_transpose
from refnet.kernels.crops import crops
from refnet.kernels.linear import linear_forward, linear_grads, linear_transpose
from refnet.kernels.loss import cross_entropy
from refnet.kernels.lrn import lrn_backward, lrn_forward, lrn_within_backward, lrn_within_forward
from refnet.kernels.pool import pool_forward, unpool
from refnet.kernels.relu import relu_backward, relu_forward

__all__ = [
    "average_forward", "average_transpose", "blank_beyond", "conv_forward", "conv_grads", "conv_transpose", "crops",
    "cross_entropy", "cut_boxes", "linear_forward", "linear_grads", "linear_transpose", "lrn_backward",
    "lrn_forward", "lrn_within_backward", "lrn_within_forward", "paste_boxes", "pool_forward", "relu_backward",
    "relu_forward", "unpool",
]  # fmt: skip
