"""Memory of the device: what was not written yet is NaN or 255, and what is written beyond an end is noticed."""

import itertools
import threading
import weakref

import numpy as np

_GUARD, _ALIGNED = 256, 512  # bytes before and after a block; CuPy's blocks begin at multiples of 512
_numbers = itertools.count()
_live = weakref.WeakValueDictionary()
_lock = threading.Lock()


class Memory:
    """A block of ``nbytes``, all bits set, between guards: NaN too, but others in each block, as kernels copy NaN."""

    def __init__(self, nbytes):
        number = next(_numbers)
        nan = np.array([number & 255, number >> 8 & 255, 255, 255], np.uint8)
        self.whole = np.resize(nan, nbytes + 2 * _GUARD + _ALIGNED)
        self.start = _GUARD + -(self.whole.ctypes.data + _GUARD) % _ALIGNED
        self.bytes = self.whole[self.start : self.start + nbytes]
        self.bytes.fill(255)
        self.outside = [self.whole[: self.start], self.whole[self.start + nbytes :]]
        self.guards = [each.copy() for each in self.outside]
        self.ptr = self.whole.ctypes.data + self.start
        with _lock:
            _live[self.ptr] = self

    def check(self, writer):
        """MemoryError if something was written outside."""
        if not all(map(np.array_equal, self.outside, self.guards)):
            raise MemoryError(f"{writer} wrote beyond an array of {len(self.bytes)} bytes")

    def view(self, shape, dtype, offset, strides):
        """A NumPy array on these bytes; ValueError where it would reach beyond them."""
        return np.ndarray(shape, dtype, buffer=self.bytes, offset=offset, strides=strides)


class MemoryPointer:
    """A place in a block: `ptr` is its address."""

    def __init__(self, mem, offset):
        self.mem, self.offset, self.ptr = mem, offset, mem.ptr + offset


def at(ptr):
    """The place that an address of a live array means; MemoryError where there is none."""
    with _lock:
        blocks = list(_live.values())
    for mem in blocks:
        if mem.ptr <= ptr < mem.ptr + len(mem.bytes):
            return MemoryPointer(mem, ptr - mem.ptr)
    raise MemoryError(f"no array lies at {ptr}")
