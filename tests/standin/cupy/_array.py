"""cupy.ndarray: as strict as CuPy's, and stricter where that computes silently with what is wrong.

What CuPy does was read in its sources (cupy/_core/core.pyx, _routines_indexing.pyx, _kernel.pyx, _scalar.pyx):

- no conversion to NumPy but by ``get``, and no NumPy array in arithmetic, in either order; NumPy's scalars may be;
- a NumPy array, or a list, may index: it is copied over. Indices beyond the end wrap; here they raise IndexError;
- only numbers, 0-d NumPy arrays and CuPy's arrays may be assigned; NumPy arrays to ``a[:]``, if shape and dtype agree,
  and where indices are arrays;
- reductions give 0-d arrays, which are no indices, and know neither ``initial`` nor ``where``;
- results are C-ordered, unless they are views or made by astype, which keeps the order.
"""

import numpy as np

from . import _memory, _names

_PYTHON_SCALARS = (bool, int, float, complex)


def number_or_array(x):
    """What NumPy computes with for an operand: the array behind ours, or a number; TypeError for anything else."""
    if isinstance(x, ndarray):
        return x._host
    if type(x) in _PYTHON_SCALARS or isinstance(x, np.generic):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def array_only(x):
    """The NumPy array behind one of ours; TypeError for anything else."""
    if not isinstance(x, ndarray):
        raise TypeError(f"Argument has incorrect type (expected cupy.ndarray, got {type(x).__name__})")
    return x._host


def new(values, order="C"):
    """An array of our own with these values."""
    values = np.asarray(values)
    if values.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {values.dtype}")
    strides = np.empty_like(values, order=order, subok=False).strides
    array = ndarray(values.shape, values.dtype, _memory.MemoryPointer(_memory.Memory(values.nbytes), 0), strides)
    array._host[...] = values
    return array


class ufunc:
    """A function of NumPy on our arrays; like CuPy's it has no ``where``."""

    def __init__(self, name):
        self.__name__, self.numpy = name, getattr(np, name)

    def __call__(self, *args, out=None, dtype=None, casting="same_kind"):
        operands = [number_or_array(x) for x in args[: self.numpy.nin]]
        if len(args) > self.numpy.nin:
            (out,) = args[self.numpy.nin :]
        if out is not None and not isinstance(out, ndarray):
            raise TypeError("return arrays must be of ArrayType")
        with np.errstate(all="ignore"):
            into = None if out is None else out._host
            result = self.numpy(*operands, out=into, dtype=dtype, casting=casting)
        if out is not None:
            return out
        return tuple(map(new, result)) if isinstance(result, tuple) else new(result)

    def at(self, a, indices, b=None):
        if self.__name__ not in ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"):
            raise NotImplementedError(f"`{self.__name__}.at` is not supported yet")
        self.numpy.at(array_only(a), _index(indices)[0], number_or_array(b))


def _operator(name, *, reflected=False, in_place=False):
    function = ufunc(name)

    def apply(self, other):
        if not isinstance(other, (ndarray, np.ndarray, np.generic, *_PYTHON_SCALARS)):
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        return function(a, b, out=self if in_place else None)

    return apply


def _unary(name):
    function = ufunc(name)
    return lambda self: function(self)


def _view(name):
    def apply(self, *args, **kwargs):
        return self._of(getattr(self._host, name)(*args, **kwargs))

    return apply


def _method(name, *parameters):
    """A method with CuPy's parameters, which are fewer than NumPy's."""

    def apply(self, *args, **kwargs):
        if len(args) > len(parameters) or not kwargs.keys() <= set(parameters[len(args) :]):
            raise TypeError(f"{name}() takes {', '.join(parameters)}")
        given = dict(zip(parameters, args, strict=False)) | kwargs
        out = given.pop("out", None)
        with np.errstate(all="ignore"):
            result = getattr(self._host, name)(**given)
        if out is None:
            return new(result)
        array_only(out)[...] = result
        return out

    return apply


class ndarray:
    """An array that NumPy must not touch; `_host` is the NumPy array that holds its values."""

    __module__ = "cupy"
    __hash__ = None
    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = (int(shape),) if np.ndim(shape) == 0 else tuple(map(int, shape))
        like = np.empty(shape, dtype, order)
        memptr = memptr or _memory.MemoryPointer(_memory.Memory(like.nbytes), 0)
        self._mem = memptr.mem
        self._host = self._mem.view(shape, like.dtype, memptr.offset, like.strides if strides is None else strides)

    def _of(self, values):
        """What NumPy made of our array: a view of the same memory, or new."""
        if not np.may_share_memory(values, self._mem.whole):
            return new(values, order="K")
        array = ndarray.__new__(ndarray)
        array._mem, array._host = self._mem, values
        return array

    def __getattr__(self, name):
        if name in _names.NDARRAY:
            raise NotImplementedError(f"cupy.ndarray.{name} is not in the stand-in yet")
        raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")

    # --- what it is

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    T = property(lambda self: self._of(self._host.T))

    @property
    def flags(self):
        """Only what CuPy has."""
        return _Flags(self._host.flags)

    @property
    def data(self):
        """Where it lies."""
        offset = self._host.__array_interface__["data"][0] - self._mem.ptr if self.size else 0
        return _memory.MemoryPointer(self._mem, offset)

    # --- from and to NumPy

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, function, method, *inputs, **kwargs):
        if method != "__call__":
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return ufunc(function.__name__)(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        import cupy

        return getattr(cupy, function.__name__)(*args, **kwargs)

    def get(self, stream=None, order="C", out=None, blocking=True):
        """A copy for NumPy."""
        if out is None:
            return self._host.copy(order)
        if (out.dtype, out.shape) != (self.dtype, self.shape):
            raise TypeError(f"{out.dtype} {out.shape} array cannot be obtained from {self.dtype} {self.shape}")
        out[...] = self._host
        return out

    def set(self, arr, stream=None):
        """Take the values of a NumPy array that is alike."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self._host.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        self._host[...] = arr

    def item(self):
        """The one value as a number of Python."""
        return self._host.item()

    def tolist(self):
        """Nested lists of numbers."""
        return self._host.tolist()

    __bool__ = lambda self: bool(self._host)  # noqa: E731
    __int__ = lambda self: int(self._host)  # noqa: E731
    __float__ = lambda self: float(self._host)  # noqa: E731
    __repr__ = lambda self: repr(self._host)  # noqa: E731
    __format__ = lambda self, spec: format(self._host, spec)  # noqa: E731
    __len__ = lambda self: len(self._host)  # noqa: E731

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # --- indices

    def __getitem__(self, index):
        index, basic = _index(index)
        return self._of(self._host[index]) if basic else new(self._host[index])

    def __setitem__(self, index, value):
        whole, (index, basic) = isinstance(index, slice) and index == slice(None), _index(index)
        if isinstance(value, ndarray):
            self._host[index] = value._host
        elif isinstance(value, np.ndarray) and value.ndim and basic:
            if not whole or (value.shape, value.dtype) != (self.shape, self.dtype):
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            self._host[...] = value
        elif basic and not isinstance(value, np.ndarray):
            self._host[index] = number_or_array(value)
        else:
            self._host[index] = value

    def fill(self, value):
        """One value everywhere."""
        self[...] = value

    # --- views and copies

    reshape, transpose, swapaxes = _view("reshape"), _view("transpose"), _view("swapaxes")
    squeeze, ravel, view = _view("squeeze"), _view("ravel"), _view("view")

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        """A copy of another dtype; itself where ``copy`` is False and nothing changes."""
        if not copy and self.dtype == dtype and order in "KA":
            return self
        return new(self._host.astype(dtype), order)

    def copy(self, order="C"):
        """A copy."""
        return new(self._host, order)

    def repeat(self, repeats, axis=None):
        """Each element so many times."""
        return new(self._host.repeat(repeats, axis))

    def nonzero(self):
        """Indices of what is not zero."""
        return tuple(map(new, self._host.nonzero()))

    # --- values

    clip = _method("clip", "min", "max", "out")
    sum = _method("sum", "axis", "dtype", "out", "keepdims")
    mean = _method("mean", "axis", "dtype", "out", "keepdims")
    max = _method("max", "axis", "out", "keepdims")
    min = _method("min", "axis", "out", "keepdims")
    any = _method("any", "axis", "out", "keepdims")
    all = _method("all", "axis", "out", "keepdims")
    argmax = _method("argmax", "axis", "out", "dtype", "keepdims")
    argmin = _method("argmin", "axis", "out", "dtype", "keepdims")

    __neg__, __abs__, __invert__ = _unary("negative"), _unary("absolute"), _unary("invert")


for _symbol, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "matmul": "matmul",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_symbol}__", _operator(_name))
    setattr(ndarray, f"__r{_symbol}__", _operator(_name, reflected=True))
    if _symbol != "matmul":  # CuPy has it not
        setattr(ndarray, f"__i{_symbol}__", _operator(_name, in_place=True))
for _symbol, _name in {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_symbol}__", _operator(_name))


class _Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


def _index(index):
    """The index as NumPy takes it, and whether it makes a view."""
    parts = index if isinstance(index, tuple) else (index,)
    basic = all(each is None or each is Ellipsis or isinstance(each, (slice, int, np.integer)) for each in parts)
    basic = basic and not any(isinstance(each, bool) for each in parts)
    parts = tuple(each._host if isinstance(each, ndarray) else each for each in parts)
    if basic and Ellipsis not in parts:
        parts += (Ellipsis,)  # so that also a single element is a view
    return parts, basic
