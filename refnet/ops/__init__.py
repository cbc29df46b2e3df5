"""The operations: pure functions on arrays of NumPy or CuPy, one file each.

Axes: images (N, H, W, C), outputs (N, P, Q, M), filters (K, K, C / groups, M); all C-ordered. ``r`` is a signal on
its way back to the pixels: a gradient in training, the reconstruction in the deconvnet.
"""
