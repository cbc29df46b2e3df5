"""CUDA's side of the kernels: their sources compiled when first needed, started, and products through cuBLAS."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from refnet.backend import Array, current_precision
from refnet.images import LUMA
from refnet.ops import tiles

HERE = Path(__file__).parent
SOURCES = tuple(sorted(path.stem for path in HERE.glob("*.cu")))
OPTIONS = ("--std=c++17",)
_TYPES = {"float32": "float", "float64": "double", "uint8": "unsigned char"}
_THREADS = 256  # of a block, at most
_MOST_BLOCKS = 65535  # along a grid's second axis; kernels stride over what is beyond


def source(name: str, dtype: DTypeLike, **constants: int) -> str:
    """The text of a ``.cu`` file for one type T, and in front of it constants and what it shares with NumPy's side.

    With the constant V, a Pack is V neighbouring values that are read and written at once.
    """
    front = [f"typedef {_TYPES[np.dtype(dtype).name]} T;"]
    front += [f"constexpr int {key} = {value};" for key, value in constants.items()]
    if "V" in constants:
        front.append("struct alignas(V * sizeof(T)) Pack { T at[V]; };")
    if name == "winograd":
        for key, a in zip("AGB", tiles.line_matrices(), strict=True):
            front.append(f"__device__ constexpr T {key}[{len(a)}][{a.shape[1]}] = {_braces(a)};")
    if name == "crops":
        front.append(f"__device__ constexpr float LUMA[3] = {_braces(LUMA)};")
    return "\n".join([*front, (HERE / f"{name}.cu").read_text()])


def _braces(a: Any) -> str:
    return "{" + ", ".join(_braces(each) if np.ndim(each) else repr(float(each)) for each in a) + "}"


@cache
def _module(file: str, dtype: np.dtype[Any], constants: tuple[tuple[str, int], ...]) -> Any:
    import cupy

    return cupy.RawModule(code=source(file, dtype, **dict(constants)), options=OPTIONS)


@cache
def _kernel(file: str, name: str, dtype: np.dtype[Any], constants: tuple[tuple[str, int], ...]) -> Any:
    return _module(file, dtype, constants).get_function(name)


def pack(length: int, *arrays: Array) -> int:
    """How many neighbouring values a thread may read at once where lines of ``length`` lie in these arrays: 4 or 1."""
    return 1 if length % 4 or any(a.data.ptr % (4 * a.itemsize) for a in arrays) else 4


def start(file: str, name: str, over: int, times: int, *arguments: Any, dtype: DTypeLike, **constants: int) -> None:
    """Start a kernel on ``over`` x ``times`` threads: arrays as they are, ints as int, floats as T.

    What a kernel declares as long long or float is given as np.int64 or np.float32. ``constants`` are compiled in.
    """
    if not over or not times:
        return
    dtype = np.dtype(dtype)
    threads = min(_THREADS, -(-over // 32) * 32)
    grid = -(-over // threads), min(times, _MOST_BLOCKS)
    kinds = {int: np.int32, bool: np.int32, float: dtype.type}
    given = tuple(kinds[type(each)](each) if type(each) in kinds else each for each in arguments)
    _kernel(file, name, dtype, tuple(constants.items()))(grid, (threads,), given)


def product(a: Array, b: Array, out: Array, *, add: bool = False) -> Array:
    """``out`` = a b, or out + a b: matrices (I, J) (J, K) (I, K), or stacks of them (S, I, J) (S, J, K) (S, I, K).

    Of each matrix one axis must be contiguous, of ``out`` the last; nothing is copied. At precision "tf32"
    (`refnet.backend.precision`) float32 factors lose all but 10 bits after the point; sums stay float32.
    """
    from cupy.cuda import cublas, device, runtime

    if not out.size or not a.shape[-1]:
        if not add:
            out.fill(0)
        return out
    double = out.dtype == np.float64
    kind = runtime.CUDA_R_64F if double else runtime.CUDA_R_32F
    tf32 = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if current_precision() == "tf32" else cublas.CUBLAS_COMPUTE_32F
    compute = cublas.CUBLAS_COMPUTE_64F if double else tf32
    one, beta = np.ones((), out.dtype), np.full((), add, out.dtype)
    # cuBLAS counts columns first: to it these arrays are their transposes, and out' = b' a'.
    (b_flip, b_step), (a_flip, a_step), (_, out_step) = (_layout(each) for each in (b, a, out))
    stride = [each.strides[0] // each.itemsize if each.ndim == 3 else 0 for each in (b, a, out)]
    cublas.gemmStridedBatchedEx(
        device.get_cublas_handle(), b_flip, a_flip, b.shape[-1], a.shape[-2], a.shape[-1], one.ctypes.data,
        b.data.ptr, kind, b_step, stride[0], a.data.ptr, kind, a_step, stride[1], beta.ctypes.data,
        out.data.ptr, kind, out_step, stride[2], len(out) if out.ndim == 3 else 1, compute, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return out


def _layout(a: Array) -> tuple[int, int]:
    """Whether a matrix lies transposed, and the step from row to row, or then from column to column, in values."""
    rows, columns = (step // a.itemsize for step in a.strides[-2:])
    if columns == 1 or a.shape[-1] == 1:
        return 0, max(rows, a.shape[-1])
    assert rows == 1 or a.shape[-2] == 1, f"neither axis of {a.shape}, {a.strides} is contiguous"
    return 1, max(columns, a.shape[-2])
