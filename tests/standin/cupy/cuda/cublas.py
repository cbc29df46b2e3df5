"""The one function of cuBLAS that the kernels call, on addresses, as cuBLAS takes them."""

import ctypes

import numpy as np

from .. import _memory

CUDA_R_32F, CUDA_R_64F = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77
CUBLAS_GEMM_DEFAULT = -1

_DTYPES = {CUDA_R_32F: np.dtype("float32"), CUDA_R_64F: np.dtype("float64")}
_COMPUTE = {
    CUBLAS_COMPUTE_32F: np.dtype("float32"),
    CUBLAS_COMPUTE_32F_FAST_TF32: np.dtype("float32"),
    CUBLAS_COMPUTE_64F: np.dtype("float64"),
}


def gemmStridedBatchedEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc,
    strideC, batchCount, computeType, algo,
):  # fmt: skip
    """C (m, n) = alpha A (m, k) B (k, n) + beta C, matrices stored column by column; where beta is 0, C is not read."""
    dtype = _COMPUTE[computeType]
    if any(_DTYPES[each] != dtype for each in (Atype, Btype, Ctype)):
        raise ValueError(f"cuBLAS: types {Atype} {Btype} {Ctype} are not computed in {computeType}")

    def matrices(ptr, rows, columns, step, stride, transposed=False):
        rows, columns = (columns, rows) if transposed else (rows, columns)
        if min(rows, columns, batchCount) < 1 or step < rows:
            raise ValueError(f"cuBLAS: {batchCount} matrices of {rows} rows, {columns} columns, {step} apart")
        place, item = _memory.at(ptr), dtype.itemsize
        strides = stride * item, item, step * item
        stored = place.mem.view((batchCount, rows, columns), dtype, place.offset, strides)
        return stored.swapaxes(1, 2) if transposed else stored

    a, b, c = (
        matrices(A, m, k, lda, strideA, transa),
        matrices(B, k, n, ldb, strideB, transb),
        matrices(C, m, n, ldc, strideC),
    )
    if computeType == CUBLAS_COMPUTE_32F_FAST_TF32:
        a, b = _ten_bits(a), _ten_bits(b)
    one, zero = (np.frombuffer(ctypes.string_at(each, dtype.itemsize), dtype)[0] for each in (alpha, beta))
    product = one * np.matmul(a, b)
    c[...] = product + zero * c if zero else product


def _ten_bits(a):
    """float32 rounded to 10 bits after the point, as tensor cores read it."""
    return ((a.copy().view(np.int32) + 0x1000) & ~0x1FFF).view(np.float32)
