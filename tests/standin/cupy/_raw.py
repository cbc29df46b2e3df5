"""cupy.RawModule: a kernel compiled for the CPU, and its threads run one after the other.

A launch is refused where a GPU would read garbage without a word: another number of arguments, a number that is not
exactly of its parameter's type, an array of another dtype, not C-ordered, or not aligned for the struct it is read as;
what a kernel writes beyond an array is noticed afterwards. No shared memory, no atomics, no warps.
"""

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from ._array import ndarray

_FRONT = """
#include <cmath>
#include <type_traits>
#include <utility>
namespace {
using std::sqrt; using std::pow; using std::exp; using std::log; using std::fmax; using std::fmin;
template<class A> A max(A a, A b) { return a < b ? b : a; }
template<class A> A min(A a, A b) { return b < a ? b : a; }
struct Index { unsigned x, y, z; };
thread_local Index threadIdx, blockIdx, blockDim, gridDim;
}
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
"""

# Of each parameter: whether it is a pointer to what is written (2), read (1) or a number (0), its type and alignment.
_BACK = """
namespace {
template<class A, class = void> struct Value { using type = A; };
template<class A> struct Value<A, std::void_t<decltype(A::at)>> { using type = std::remove_extent_t<decltype(A::at)>; };
constexpr char code(float) { return 'f'; }
constexpr char code(double) { return 'd'; }
constexpr char code(int) { return 'i'; }
constexpr char code(long long) { return 'l'; }
constexpr char code(unsigned char) { return 'B'; }
constexpr char code(bool) { return '?'; }
template<class A> void describe_one(int*& to) {
    using Target = std::remove_pointer_t<A>;
    using Plain = std::remove_cv_t<Target>;
    *to++ = std::is_pointer_v<A> ? 2 - std::is_const_v<Target> : 0;
    *to++ = code(typename Value<Plain>::type{});
    *to++ = alignof(Plain);
}
template<class... A> int describe(void (*)(A...), int* to) { (describe_one<A>(to), ...); return sizeof...(A); }
template<class... A, size_t... I>
void launch(void (*kernel)(A...), void** a, const unsigned* g, const unsigned* b, bool back, std::index_sequence<I...>)
{
    gridDim = {g[0], g[1], g[2]}, blockDim = {b[0], b[1], b[2]};
    unsigned long long threads = (unsigned long long)g[0] * g[1] * g[2] * b[0] * b[1] * b[2];
    for (unsigned long long i = 0; i < threads; i++) {
        unsigned long long at = back ? threads - 1 - i : i;
        threadIdx.x = at % b[0], at /= b[0], threadIdx.y = at % b[1], at /= b[1], threadIdx.z = at % b[2], at /= b[2];
        blockIdx.x = at % g[0], at /= g[0], blockIdx.y = at % g[1], at /= g[1], blockIdx.z = at;
        kernel(*(A*)a[I]...);
    }
}
template<class... A>
void launch(void (*kernel)(A...), void** a, const unsigned* g, const unsigned* b, bool back)
{
    launch(kernel, a, g, b, back, std::index_sequence_for<A...>());
}
}
"""

_ONE = """
extern "C" int describe_{0}(int* to) {{ return describe({0}, to); }}
extern "C" void launch_{0}(void** a, const unsigned* g, const unsigned* b, bool back) {{ launch({0}, a, g, b, back); }}
"""


class RawModule:
    """Kernels of one source."""

    def __init__(self, *, code, options=()):
        if unknown := [each for each in options if not each.startswith(("--std=", "-std=", "-D"))]:
            raise ValueError(f"the stand-in's compiler does not know {' '.join(unknown)}")
        self.code, self.options = code, tuple(options)

    def get_function(self, name):
        """The kernel of this name."""
        names = re.findall(r'extern\s+"C"\s+__global__\s+(?:__launch_bounds__\([^)]*\)\s+)?void\s+(\w+)', self.code)
        if name not in names:
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: there is no kernel {name}, only {', '.join(names)}")
        return RawKernel(name, _compiled(self.code, self.options, tuple(names)))


class RawKernel:
    """A kernel; `backwards` runs its threads from the last to the first, which must give the same."""

    backwards = False

    def __init__(self, name, library):
        self.name, self._launch = name, getattr(library, f"launch_{name}")
        self._launch.restype = None
        described = (ctypes.c_int * 300)()
        count = getattr(library, f"describe_{name}")(described)
        self._parameters = [
            (described[3 * i], np.dtype(chr(described[3 * i + 1])), described[3 * i + 2]) for i in range(count)
        ]

    def __call__(self, grid, block, args):
        """Run on a grid of blocks of threads."""
        grid, block = ((*each, 1, 1)[:3] for each in (grid, block))
        if min(*grid, *block) < 1 or max(grid[1:]) > 65535 or grid[0] >= 1 << 31 or np.prod(block) > 1024:
            raise ValueError(f"{self.name}: CUDA_ERROR_INVALID_VALUE, grid {grid} of blocks {block}")
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name}: {len(args)} arguments for {len(self._parameters)} parameters")
        values = [self._value(i, each) for i, each in enumerate(args)]
        self._check_overlaps(args)
        places = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        three = ctypes.c_uint * 3
        self._launch(places, three(*grid), three(*block), ctypes.c_bool(self.backwards))
        for each in args:
            if isinstance(each, ndarray):
                each._mem.check(self.name)

    def _value(self, i, given):
        """An argument in memory, as its parameter takes it."""
        kind, dtype, alignment = self._parameters[i]
        if not kind:
            if type(given) is not dtype.type:
                raise TypeError(f"{self.name}: argument {i} is {type(given)}, its parameter {dtype}")
            return np.ctypeslib.as_ctypes_type(dtype)(given.item())
        if not isinstance(given, ndarray) or given.dtype != dtype:
            got = given.dtype if isinstance(given, ndarray) else type(given)
            raise TypeError(f"{self.name}: argument {i} is {got}, its parameter points at {dtype}")
        if not given.flags.c_contiguous:
            raise ValueError(f"{self.name}: argument {i} is not C-ordered: strides {given.strides} of {given.shape}")
        if given.data.ptr % alignment:
            raise ValueError(f"{self.name}: argument {i} is misaligned, {given.data.ptr} for {alignment} bytes")
        return ctypes.c_void_p(given.data.ptr)

    def _check_overlaps(self, args):
        """What is written must not be a part of another array: threads run in any order."""
        spans = [
            (each.data.ptr, each.data.ptr + each.nbytes, kind)
            for each, (kind, _, _) in zip(args, self._parameters, strict=True)
            if kind and each.size
        ]
        for start, stop, kind in spans:
            for start2, stop2, _ in spans:
                if kind == 2 and start < stop2 and start2 < stop and (start, stop) != (start2, stop2):
                    raise ValueError(f"{self.name}: an array that it writes overlaps another one")


@functools.cache
def _compiled(code, options, names):
    """The library of a source, kept from one session to the next."""
    text = "\n".join([_FRONT, code, _BACK, *map(_ONE.format, names)])
    key = hashlib.sha256("\n".join([text, *options]).encode()).hexdigest()[:24]
    library = Path(tempfile.gettempdir()) / f"refnet-standin-{os.getuid()}" / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-x", "c++", "-O2", "-w", "-fPIC", "-shared", *options, "-o", made, "-"]
        done = subprocess.run(command, input=text, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"g++ does not compile the kernel:\n{done.stderr}")
        os.replace(made, library)
    return ctypes.CDLL(str(library))
