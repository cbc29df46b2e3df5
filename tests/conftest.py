"""What the tests share: oracles, closeness, memory layouts, numeric gradients, threads, and what stands in for CuPy."""

import ctypes
import importlib
import os
import shutil
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  its BLAS must be there before refnet looks for them all, as OpenCV's
from hypothesis import settings
from threadpoolctl import threadpool_info, threadpool_limits

from refnet import backend, kernels

with suppress(ImportError):
    import cv2  # noqa: F401

settings.register_profile("refnet", deadline=None, derandomize=True, database=None)
settings.load_profile("refnet")

# Largest error allowed, relative to the largest value of what is compared with.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
DTYPES = tuple(TOLERANCE)
OTHER_DTYPES = ("float16", "int64", "bool", "complex128")  # that no operation takes


def oracle(name):
    """An independent implementation to compare with; skips the test where it is not installed.

    CI sets REFNET_ORACLES=1, and there a missing oracle fails instead of passing unseen.
    """
    module = importlib.import_module(name) if os.environ.get("REFNET_ORACLES") == "1" else pytest.importorskip(name)
    if name == "torch":
        module.set_num_threads(1)
    return module


def assert_close(got, want, dtype="float64", about=""):
    """``got`` is a C-ordered array of ``dtype`` and of want's shape, equal to ``want`` within the tolerance."""
    want = np.asarray(want)
    assert isinstance(got, np.ndarray), f"{about}: got a {type(got)}"
    assert (got.shape, got.dtype) == (want.shape, np.dtype(dtype)), f"{about}: {got.shape} {got.dtype}"
    assert got.flags.c_contiguous, f"{about}: strides {got.strides} of {got.shape} are not C-ordered"
    largest, off = (np.max(np.abs(a), initial=0) for a in (want, got - want))
    assert off <= TOLERANCE[dtype] * largest, f"{about}: off by {off}, the largest value is {largest}"


def assert_caught(check, twin, cases):
    """``check`` fails on the wrong ``twin`` of an operation in at least one of the ``cases``."""
    with pytest.raises(AssertionError):
        for case in cases:
            check(twin, case)


def assert_adjoint(forward, transpose, x, y):
    """<forward(x), y> = <x, transpose(y)>, in float64."""
    up = forward(x)
    assert abs(np.vdot(up, y) - np.vdot(x, transpose(y))) <= 1e-13 * np.linalg.norm(up) * np.linalg.norm(y)


def assert_gradient(f, x, dx, rng):
    """``dx`` is the gradient of the number ``f(x)``: finite differences along three random directions, in float64."""
    step = 1e-6
    for _ in range(3):
        direction = rng.normal(size=x.shape)
        slope = (f(x + step * direction) - f(x - step * direction)) / (2 * step)
        assert abs(slope - np.vdot(dx, direction)) <= 1e-7 * np.linalg.norm(dx) * np.linalg.norm(direction)


def _frozen(x):
    """Read-only, so that an operation that writes to its input raises."""
    x.flags.writeable = False
    return x


def _transposed(x):
    return _frozen(x.T.copy(order="C").T)


def _strided(x):
    every_second = (slice(None, None, 2),) * x.ndim
    larger = np.full([2 * n for n in x.shape], 99, x.dtype)
    larger[every_second] = x
    return _frozen(larger[every_second])


def _reversed(x):
    backwards = (slice(None, None, -1),) * x.ndim
    return _frozen(x[backwards].copy()[backwards])


# Copies of an array, each laid out in its own way; they cannot be written to.
LAYOUTS = {
    "c_order": lambda x: _frozen(x.copy(order="C")),
    "transposed": _transposed,
    "strided": _strided,
    "reversed": _reversed,
}


@pytest.fixture(scope="module")
def dirty_memory():
    """Memory that refnet takes without clearing it holds NaN and 255, so that counting on zeros shows."""
    clean = backend._arena.empty

    def dirty(shape, dtype):
        array = clean(shape, dtype)
        array.reshape(-1).view("uint8").fill(255)
        return array

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend._arena, "empty", dirty)
        yield


def without_root():
    """Called in a child before its program starts: there root may only do what permissions allow, as anyone else."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def blas_threads():
    """The numbers of threads of the BLAS libraries in this process."""
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def _set_blas_threads(number):
    """Set it and let go: threadpoolctl lets one thread at a time change it, as long as that thread lives."""
    with threadpool_limits(None, "blas"):
        pass  # on leaving, this thread gives up what an earlier test may have left it with
    thread = threading.Thread(target=threadpool_limits, args=(number, "blas"))
    thread.start()
    thread.join()


@pytest.fixture
def three_blas_threads():
    """BLAS has three threads, and whichever thread comes first may change that."""
    if not blas_threads():
        pytest.skip("threadpoolctl finds no BLAS")
    before = max(blas_threads())
    _set_blas_threads(3)
    assert blas_threads() == {3}
    yield
    _set_blas_threads(before)


def on_threads(work, parts):
    """``work(part)`` for all parts at once, each on a thread of its own; raises what one of them raised."""
    errors = []

    def guarded(part):
        try:
            work(part)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def restless_threads():
    """Threads started from now on step back at every line of refnet's, so that races show."""

    def trace(frame, event, _):
        if not frame.f_globals.get("__name__", "").startswith("refnet."):
            return None
        time.sleep(0)
        return trace

    threading.settrace(trace)
    yield
    threading.settrace(None)


@contextmanager
def standin_for_cupy():
    """Inside, `import cupy` gives tests/standin/cupy; skips the test, or fails in CI, where its kernels need a g++."""
    if not shutil.which("g++"):
        assert os.environ.get("REFNET_ORACLES") != "1", "the stand-in for CuPy needs g++"
        pytest.skip("the stand-in for CuPy needs g++")

    def loaded():
        return [name for name in sys.modules if name.partition(".")[0] == "cupy"]

    with pytest.MonkeyPatch.context() as patch:
        for name in loaded():
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "path", [str(Path(__file__).with_name("standin")), *sys.path])
        try:
            yield importlib.import_module("cupy")
        finally:
            for name in loaded():
                del sys.modules[name]


@pytest.fixture(scope="module", params=["standin", pytest.param("device", marks=pytest.mark.gpu)])
def cupy(request):
    """CuPy on a device, or what stands in for it and has its place in the meantime."""
    if request.param == "device":
        yield importlib.import_module("cupy")
        return
    with standin_for_cupy() as cupy:
        yield cupy
    kernels.launch._module.cache_clear()
    kernels.launch._kernel.cache_clear()


def pytest_collection_modifyitems(items):
    """What takes a GPU is not for what stands in for CuPy."""

    def too_slow(item):
        given = getattr(item, "callspec", None)
        return given and given.params.get("cupy") == "standin" and item.get_closest_marker("gpu")

    items[:] = [item for item in items if not too_slow(item)]


class CupyArray:
    """Taken for an array of CuPy, because the module of its type is cupy."""

    __module__ = "cupy"

    def __init__(self, shape=(1,), dtype="float32"):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def get(self):
        """Its copy on the host."""
        return np.ones(self.shape, self.dtype)
