"""A stand-in for CuPy, on the CPU: with it the suite runs where there is no CUDA device.

It has only names that CuPy has, with CuPy's parameters, and of them those that refnet needs. NumPy's arrays and its
own refuse to mix as CuPy's do (`_array`), and kernels are compiled for the CPU (`_raw`). It is no faster than NumPy.
"""

import types

import numpy as np

from . import _names, cuda
from ._array import array_only as _host
from ._array import ndarray, ufunc
from ._array import new as _new
from ._array import number_or_array as _operand
from ._raw import RawModule

__all__ = ["RawModule", "cuda", "ndarray", "ufunc"]
__version__ = _names.VERSION

_CONSTANTS = {"inf", "nan", "pi", "e", "newaxis", "dtype", "finfo", "iinfo", "result_type", "promote_types"}


def __getattr__(name):
    if name in _names.UFUNCS:
        return ufunc(name)
    if name in _names.MODULE and (name in _CONSTANTS or isinstance(getattr(np, name, None), type)):
        return getattr(np, name)
    if name in _names.MODULE:
        raise NotImplementedError(f"cupy.{name} is not in the stand-in yet")
    raise AttributeError(f"module 'cupy' has no attribute {name!r}")


# --- making arrays ---


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def full(shape, fill_value, dtype=None, order="C"):
    array = ndarray(shape, np.asarray(_operand(fill_value)).dtype if dtype is None else dtype, order=order)
    array.fill(fill_value)
    return array


def zeros(shape, dtype=float, order="C"):
    return full(shape, 0, dtype, order)


def ones(shape, dtype=float, order="C"):
    return full(shape, 1, dtype, order)


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return _new(np.zeros_like(_host(a), dtype, order, shape=shape), order)


def arange(start, stop=None, step=1, dtype=None):
    return _new(np.arange(start, stop, step, dtype) if stop is not None else np.arange(0, start, step, dtype))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype, order, copy=copy)
    return _new(np.array(obj, dtype, ndmin=ndmin), order)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy=bool(copy), order=order or "K")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def ascontiguousarray(a, dtype=None):
    host = _host(a)
    same = host.flags.c_contiguous and dtype in (None, host.dtype)
    return a if same else _new(host if dtype is None else host.astype(dtype))


# --- shapes ---


def broadcast_to(array, shape):
    view = np.broadcast_to(_host(array), shape)
    return array._of(view)


def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    return _new(np.concatenate([_host(each) for each in tup], axis))


def stack(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    return _new(np.stack([_host(each) for each in tup], axis))


def pad(array, pad_width, mode="constant", **kwargs):
    return _new(np.pad(_host(array), pad_width, mode, **kwargs))


def _as_strided(x, shape=None, strides=None):
    _host(x)
    return ndarray(x.shape if shape is None else shape, x.dtype, x.data, x.strides if strides is None else strides)


lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=_as_strided))


# --- values ---


def copyto(dst, src, casting="same_kind", where=None):
    if isinstance(src, np.ndarray) and src.size != 1:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    given = src if isinstance(src, np.ndarray) else _operand(src)
    np.copyto(_host(dst), given, casting, where=True if where is None else _host(where))


def where(condition, x=None, y=None):
    if x is None and y is None:
        return condition.nonzero()
    return _new(np.where(_host(condition), _operand(x), _operand(y)))


def einsum(*operands, **kwargs):
    subscripts, *arrays = operands
    return _new(np.einsum(subscripts, *map(_host, arrays), **kwargs))


def matmul(a, b, out=None):
    result = np.matmul(_host(a), _host(b), out=None if out is None else _host(out))
    return _new(result) if out is None else out


def get_default_memory_pool():
    return types.SimpleNamespace(used_bytes=lambda: 0, total_bytes=lambda: 0, free_all_blocks=lambda: None)
