"""Where arrays live: NumPy or CuPy, warm memory, and the number of BLAS threads."""

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

# An array of NumPy or CuPy; the core never asks which beyond `array_module`.
Array = Any


def array_module(*arrays: Array | None) -> ModuleType:
    """The module, numpy or cupy, that all ``arrays`` belong to (None is passed over).

    Raises
    ------
    TypeError
        If they mix the two, or if something else than an array is among them.
    """
    kinds: dict[Any, None] = dict.fromkeys([type(a) for a in arrays if a is not None])
    if kinds.keys() <= _NUMPY:
        return np
    packages = {_package(kind) for kind in kinds}
    if packages <= {"numpy"}:
        return np
    if packages == {"cupy"}:
        return sys.modules["cupy"]
    names = " and ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
    raise TypeError(f"arrays of {names}: they must all be numpy or all cupy; move them with to_device or to_host")


def check_same_dtype(operation: str, **arrays: Array | None) -> ModuleType:
    """`array_module` of the named arrays; TypeError unless they share float32 or float64."""
    xp = array_module(*arrays.values())
    dtypes = {name: a.dtype for name, a in arrays.items() if a is not None}
    if not any(all(dtype == each for dtype in dtypes.values()) for each in _FLOATS):
        got = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{operation}: got {got}; all must be float32 or all float64")
    return xp


_FLOATS = np.dtype("float32"), np.dtype("float64")
_NUMPY = {np.ndarray}


@cache
def _package(kind: Any) -> str:
    """The package that a type is from, so that arrays need no isinstance of what may not be installed."""
    package: str = kind.__module__.partition(".")[0]
    return package


def find_device(wanted: str) -> str:
    """Resolve "auto", "cpu" or "cuda" to "cpu" or "cuda".

    Raises
    ------
    ValueError
        If the name is another one, or "cuda" was asked for and no CUDA device answers.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {wanted!r}, it needs auto, cpu or cuda")
    if wanted == "cpu":
        return "cpu"
    try:
        _look_for_cuda()
        return "cuda"
    except Exception as error:  # cupy's own errors cannot be named without importing it
        if wanted == "auto":
            return "cpu"
        raise ValueError(f"device cuda: no CUDA device answers through CuPy ({error}); try --device cpu") from None


def _look_for_cuda() -> None:
    """Raise unless CuPy is there, fits the driver, sees a device and finds CUDA's libraries."""
    import cupy

    runtime = cupy.cuda.runtime
    if not runtime.getDeviceCount():
        raise RuntimeError("it counts 0 devices")
    built, driver = runtime.runtimeGetVersion() // 1000, runtime.driverGetVersion() // 1000
    if built > driver:
        extra = "gpu" if driver == 12 else f"gpu{driver}"
        raise RuntimeError(f"it is made for CUDA {built}, the driver for {driver}: pip install 'refnet[{extra}]'")
    _ = cupy.cuda.cublas, cupy.cuda.nvrtc  # loads them, or says which library is missing


def to_device(array: np.ndarray, device: str) -> Array:
    """``array`` on "cpu" (unchanged) or "cuda" (copied); ValueError for another name."""
    if device == "cpu":
        return array
    if device != "cuda":
        raise ValueError(f"device is {device!r}, it needs cpu or cuda; find_device resolves auto")
    import cupy

    return cupy.asarray(array)


def to_host(array: Array) -> np.ndarray:
    """``array`` as a NumPy array; a NumPy array comes back unchanged."""
    host: np.ndarray = array if array_module(array) is np else array.get()
    return host


PRECISIONS = ("fp32", "tf32")
_precision = ContextVar("precision", default="fp32")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside, products of float32 on a GPU are made at this precision: a declared choice, "fp32" elsewhere.

    "tf32" lets tensor cores round the factors to 10 bits after the point, several times as fast; sums stay float32,
    and so does everything that is no product. The CPU has fp32 only.

    Raises
    ------
    ValueError
        If the name is another one.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}, it needs {' or '.join(PRECISIONS)}")
    token = _precision.set(name)
    try:
        yield
    finally:
        _precision.reset(token)


def current_precision() -> str:
    """The name that `precision` was given."""
    return _precision.get()


class _Block:
    """Memory of the arena, and where it is aligned to 64 bytes."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.memory = nbytes, np.empty(nbytes, np.uint8)
        address = self.memory.ctypes.data
        self.start = address + -address % 64


class _Arena:
    """Memory that was touched before, handed out again.

    The first touch of a fresh page costs the CPU many times what using it again does, and a training step asks for
    the same few hundred arrays as the one before. So a block goes back to a free list when the last array that
    looks at it dies, whoever holds that array, and the next request of its size class gets it, still warm.
    CuPy's memory pool does the same on the GPU.
    """

    small = 1 << 15  # bytes; below this malloc itself reuses memory
    most = 1.25  # times the blocks that were once in use is kept, as the next ones are never quite of the same sizes

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.returned: deque[_Block] = deque()
        self.free: dict[int, list[_Block]] = {}
        self.live_bytes = self.free_bytes = self.peak_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < self.small:
            return np.empty(shape, dtype)
        return np.asarray(_Lease(self, self._take(_size_class(nbytes)), shape, dtype))

    def give_back(self, block: _Block) -> None:
        """Take a block back. The garbage collector may call this at any moment, so it waits for no lock."""
        self.returned.append(block)
        if self.lock.acquire(blocking=False):
            self._sort_returned()
            self.lock.release()

    def _take(self, size: int) -> _Block:
        with self.lock:
            self._sort_returned()
            if blocks := self.free.get(size):
                self.free_bytes -= size
                block = blocks.pop()
            else:
                # Blocks of sizes no longer asked for must not pile up.
                while self.free_bytes and self.live_bytes + size + self.free_bytes > self.most * self.peak_bytes:
                    largest = max(each for each, blocks in self.free.items() if blocks)
                    self.free[largest].pop()
                    self.free_bytes -= largest
                block = _Block(size)
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            return block

    def _sort_returned(self) -> None:
        while self.returned:
            block = self.returned.popleft()
            self.live_bytes -= block.nbytes
            self.free_bytes += block.nbytes
            self.free.setdefault(block.nbytes, []).append(block)


class _Lease:
    """Holds a block of the arena for the arrays that look at it: NumPy keeps it as the base of every view."""

    def __init__(self, arena: _Arena, block: _Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.arena, self.block = arena, block
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (block.start, False)}

    def __del__(self) -> None:
        self.arena.give_back(self.block)


def _size_class(nbytes: int) -> int:
    """``nbytes``, and room to align it to 64, rounded up to one of eight steps per power of two."""
    step = 1 << max((nbytes + 64).bit_length() - 4, 0)
    return -(-(nbytes + 64) // step) * step


_arena = _Arena()


def empty(shape: tuple[int, ...], like: Array, dtype: DTypeLike | None = None) -> Array:
    """An uninitialised array of ``shape`` beside ``like``, of its dtype unless told otherwise, from warm memory."""
    dtype = like.dtype if dtype is None else dtype
    xp = array_module(like)
    return _arena.empty(shape, dtype) if xp is np else xp.empty(shape, dtype)


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """An array of zeros of ``shape`` beside ``like``, of its dtype, from warm memory."""
    array = empty(shape, like)
    array.fill(0)
    return array


class Room:
    """Memory for arrays that are needed one after the other: what was lent before is overwritten, still in cache."""

    def __init__(self, like: Array, dtype: DTypeLike | None = None) -> None:
        self._values = empty((0,), like, dtype)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """An uninitialised array of ``shape``; the one before must not be used any more."""
        size = math.prod(shape)
        if self._values.size < size:
            self._values = empty((size,), self._values)
        return self._values[:size].reshape(shape)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _OneBlasThread:
    """Counts who wants BLAS single-threaded: the first one in sets it, the last one out puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.controller: Any = None
        self.limit: Any = None

    def enter(self) -> None:
        with self.lock:
            if self.users == 0:
                if self.controller is None:
                    from threadpoolctl import ThreadpoolController

                    self.controller = ThreadpoolController()
                self.free_control()
                self.limit = self.controller.limit(limits=1, user_api="blas")
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.free_control()
                self.limit.restore_original_limits()
                self.free_control()

    def free_control(self) -> None:
        """threadpoolctl 3.8 ignores every thread but the first to set OpenBLAS's limit; ours may be another."""
        for library in self.controller.lib_controllers:
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)


_blas = _OneBlasThread()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, every product runs on the thread that asks for it; the setting before comes back afterwards.

    BLAS's thread count belongs to the process, so users are counted: nested and overlapping uses end in any order.
    """
    _blas.enter()
    try:
        yield
    finally:
        _blas.leave()
