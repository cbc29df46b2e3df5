"""A stand-in for CuPy, on the CPU: with it the suite runs where there is no CUDA device.

It has only names that CuPy has, with CuPy's parameters, and of them those that refnet needs. NumPy's arrays and its
own refuse to mix as CuPy's do (`_array`), and kernels are compiled for the CPU (`_raw`). It is no faster than NumPy.
"""

import tomllib
import types
from pathlib import Path

import numpy as np

from . import cuda
from ._array import array_only, ndarray, new, number_or_array, ufunc
from ._raw import RawModule

__all__ = ["RawModule", "cuda", "ndarray", "ufunc"]

_listed = tomllib.loads((Path(__file__).parent / "names.toml").read_text())
__version__ = _listed["version"]
_NAMES, _UFUNCS, _NDARRAY = (set(_listed[each].split()) for each in ("module", "ufuncs", "ndarray"))

_CONSTANTS = {"inf", "nan", "pi", "e", "newaxis", "dtype", "finfo", "iinfo", "result_type", "promote_types"}


def __getattr__(name):
    if name in _UFUNCS:
        return ufunc(name)
    if name in _NAMES and (name in _CONSTANTS or isinstance(getattr(np, name, None), type)):
        return getattr(np, name)
    if name in _NAMES:
        raise NotImplementedError(f"cupy.{name} is not in the stand-in yet")
    raise AttributeError(f"module 'cupy' has no attribute {name!r}")


# --- making arrays ---


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def full(shape, fill_value, dtype=None, order="C"):
    array = ndarray(shape, np.asarray(number_or_array(fill_value)).dtype if dtype is None else dtype, order=order)
    array.fill(fill_value)
    return array


def zeros(shape, dtype=float, order="C"):
    return full(shape, 0, dtype, order)


def ones(shape, dtype=float, order="C"):
    return full(shape, 1, dtype, order)


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return new(np.zeros_like(array_only(a), dtype, order, shape=shape), order)


def arange(start, stop=None, step=1, dtype=None):
    return new(np.arange(start, stop, step, dtype) if stop is not None else np.arange(0, start, step, dtype))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype, order, copy=copy)
    return new(np.array(obj, dtype, ndmin=ndmin), order)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy=bool(copy), order=order or "K")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def ascontiguousarray(a, dtype=None):
    host = array_only(a)
    same = host.flags.c_contiguous and dtype in (None, host.dtype)
    return a if same else new(host if dtype is None else host.astype(dtype))


# --- shapes ---


def broadcast_to(array, shape):
    return array._of(np.broadcast_to(array_only(array), shape))


def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    return new(np.concatenate([array_only(each) for each in tup], axis))


def stack(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    return new(np.stack([array_only(each) for each in tup], axis))


def pad(array, pad_width, mode="constant", **kwargs):
    return new(np.pad(array_only(array), pad_width, mode, **kwargs))


def _as_strided(x, shape=None, strides=None):
    array_only(x)
    return ndarray(x.shape if shape is None else shape, x.dtype, x.data, x.strides if strides is None else strides)


lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=_as_strided))


# --- values ---


def copyto(dst, src, casting="same_kind", where=None):
    if isinstance(src, np.ndarray) and src.size != 1:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    given = src if isinstance(src, np.ndarray) else number_or_array(src)
    np.copyto(array_only(dst), given, casting, where=True if where is None else array_only(where))


def where(condition, x=None, y=None):
    if x is None and y is None:
        return condition.nonzero()
    return new(np.where(array_only(condition), number_or_array(x), number_or_array(y)))


def einsum(*operands, **kwargs):
    subscripts, *arrays = operands
    return new(np.einsum(subscripts, *map(array_only, arrays), **kwargs))


def matmul(a, b, out=None):
    result = np.matmul(array_only(a), array_only(b), out=None if out is None else array_only(out))
    return new(result) if out is None else out


def get_default_memory_pool():
    return types.SimpleNamespace(used_bytes=lambda: 0, total_bytes=lambda: 0, free_all_blocks=lambda: None)
