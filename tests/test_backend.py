"""Where arrays live, the arena's memory, and the number of BLAS threads."""

import gc
import os
import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import OTHER_DTYPES, CupyArray, blas_threads, on_threads
from threadpoolctl import threadpool_limits

from refnet import backend
from refnet.backend import (
    array_module,
    check_same_dtype,
    cores,
    current_precision,
    empty,
    find_device,
    one_blas_thread,
    precision,
    to_device,
    to_host,
    zeros,
)

FLOAT = np.ones(1, np.float32)
BIG = 1 << 16  # values: more than the arena leaves to malloc

# --- devices ---


def fake_cupy(devices, built=12090, driver=13000, **libraries):
    """A module cupy for a version of CUDA, on a machine with so many devices and a driver for another version."""

    def count():
        if not devices:
            raise RuntimeError("cudaErrorNoDevice")
        return devices

    runtime = SimpleNamespace(getDeviceCount=count, runtimeGetVersion=lambda: built, driverGetVersion=lambda: driver)
    return SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime, **(libraries or {"cublas": None, "nvrtc": None})),
        asarray=lambda array: CupyArray(array.shape, array.dtype),
        empty=lambda shape, dtype: CupyArray(shape, dtype),
    )


def test_numpy_s_arrays_belong_to_numpy():
    assert array_module(FLOAT, np.float32(1), None) is np
    assert array_module() is np


def test_cupy_s_arrays_belong_to_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy := fake_cupy(1))
    assert array_module(CupyArray(), None, CupyArray()) is cupy


def test_a_mix_is_refused():
    with pytest.raises(TypeError, match=r"arrays of numpy\.ndarray and cupy\.CupyArray: .* move them with to_device"):
        array_module(FLOAT, CupyArray())


@pytest.mark.parametrize("other", [[1.0], 1.0, "array"], ids=repr)
def test_something_else_is_refused(other):
    with pytest.raises(TypeError, match=rf"arrays of builtins\.{type(other).__name__}: they must all be numpy or all"):
        array_module(other)


def test_one_float_type_for_all():
    assert check_same_dtype("op", x=FLOAT, w=FLOAT, b=None) is np
    with pytest.raises(TypeError, match="op: got x float32, w float64; all must be float32 or all float64"):
        check_same_dtype("op", x=FLOAT, w=np.ones(1))


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"op: got x {dtype}; all must be float32 or all float64"):
        check_same_dtype("op", x=np.ones(1, dtype))


def test_the_cpu_needs_no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert find_device("cpu") == "cpu"
    assert find_device("auto") == "cpu"
    assert to_device(FLOAT, "cpu") is FLOAT
    assert to_host(FLOAT) is FLOAT


def test_auto_takes_a_cuda_device_where_there_is_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1))
    assert (find_device("auto"), find_device("cuda"), find_device("cpu")) == ("cuda", "cuda", "cpu")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(0))
    assert find_device("auto") == "cpu"


@pytest.mark.parametrize("cupy", [None, fake_cupy(0)], ids=["no CuPy", "no device"])
def test_cuda_without_a_device_says_so(monkeypatch, cupy):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(ValueError, match=r"device cuda: no CUDA device answers through CuPy \(.+\); try --device cpu"):
        find_device("cuda")


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (
            fake_cupy(1, built=13000, driver=12040),
            r"it is made for CUDA 13, the driver for 12: pip install .refnet\[gpu\]",
        ),
        (fake_cupy(1, built=14000, driver=13000), r"it is made for CUDA 14, .* pip install .refnet\[gpu13\]"),
        (fake_cupy(1, nvrtc=None), "no attribute 'cublas'"),
    ],
)
def test_a_cupy_that_cannot_work_here_says_so(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert find_device("auto") == "cpu"
    with pytest.raises(ValueError, match=f"device cuda: .*{message}"):
        find_device("cuda")


def test_precision_holds_inside_and_is_put_back():
    assert current_precision() == "fp32"
    with precision("tf32"), precision("fp32"):
        assert current_precision() == "fp32"
    with pytest.raises(RuntimeError), precision("tf32"):
        assert current_precision() == "tf32"
        raise RuntimeError
    assert current_precision() == "fp32"
    with pytest.raises(ValueError, match="precision is 'half', it needs fp32 or tf32"), precision("half"):
        pass


@pytest.mark.parametrize("name", ["gpu", "", "cuda:0"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match=f"device is '{name}', it needs auto, cpu or cuda"):
        find_device(name)


def test_arrays_travel_to_the_device_and_back(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1))
    there = to_device(np.ones((2, 3), np.float32), "cuda")
    assert isinstance(there, CupyArray)
    back = to_host(there)
    assert isinstance(back, np.ndarray) and back.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_empty_lives_where_its_neighbour_lives(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1))
    assert isinstance(empty((BIG,), CupyArray()), CupyArray)


def test_cores_are_those_this_process_may_use():
    assert cores() == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


# --- the arena ---


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 0, 2), (BIG,), (7, 100, 101), (1, 65, 1, 1001)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool"])
def test_empty_gives_what_numpy_would(shape, dtype):
    array = empty(shape, FLOAT, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous and array.flags.writeable
    array[...] = 1
    assert (array == 1).all()


def test_the_dtype_is_the_neighbour_s_unless_told():
    assert empty((2,), np.ones(1, np.float64)).dtype == np.float64
    assert empty((2,), FLOAT, "uint8").dtype == np.uint8


def test_zeros_are_zero_in_memory_that_was_used():
    for _ in range(3):
        dirty = empty((BIG,), FLOAT)
        dirty.fill(7)
        del dirty
        assert not zeros((BIG,), FLOAT).any()


@pytest.mark.parametrize("values", [1 << 13, 10_001, BIG, 123_457])
def test_memory_is_aligned_to_cache_lines(values):
    arrays = [empty((values,), FLOAT) for _ in range(5)]
    assert [array.ctypes.data % 64 for array in arrays] == [0] * 5


def test_memory_is_handed_out_again_when_its_array_dies():
    arena = backend._Arena()
    first = arena.empty((BIG,), np.float32)
    address, size = first.ctypes.data, arena.live_bytes
    del first
    assert (arena.live_bytes, arena.free_bytes) == (0, size)
    second = arena.empty((256, BIG // 256 + 1), np.float32)  # about as large
    assert (second.ctypes.data, arena.live_bytes, arena.free_bytes) == (address, size, 0)


def test_live_arrays_never_share_memory():
    arena = backend._Arena()
    arrays = [arena.empty((BIG,), np.float32) for _ in range(8)]
    del arrays[::2]
    arrays += [arena.empty((BIG,), np.float32) for _ in range(8)]
    for number, array in enumerate(arrays):
        array.fill(number)
    assert [set(array.tolist()) for array in arrays] == [{number} for number in range(len(arrays))]


VIEWS = {
    "slice": lambda a: a[3:5],
    "element": lambda a: a[7:8],
    "strided": lambda a: a[::1000],
    "reshaped": lambda a: a.reshape(256, -1).T,
    "slice of a slice": lambda a: a[100:200].reshape(10, 10)[3:4],
    "as bytes": lambda a: a.view(np.uint8),
    "as strided": lambda a: np.lib.stride_tricks.as_strided(a[5:], (2, 2), (4, 4)),
    "broadcast": lambda a: np.broadcast_to(a[:1], (4,)),
    "memoryview": lambda a: memoryview(a)[9:11],
}


@pytest.mark.parametrize("view", VIEWS)
def test_memory_is_not_used_again_while_a_view_of_it_lives(view):
    arena = backend._Arena()
    array = arena.empty((BIG,), np.float32)
    array[...] = np.arange(BIG)
    held = VIEWS[view](array)
    before = np.array(held)
    del array
    for _ in range(4):
        arena.empty((BIG,), np.float32).fill(-1)
    np.testing.assert_array_equal(np.array(held), before)
    del held
    assert arena.live_bytes == 0


def test_it_keeps_no_more_than_was_once_needed_at_the_same_time():
    """Sizes that come one after the other must not pile up."""
    arena = backend._Arena()
    for values in range(BIG, 40 * BIG, BIG):
        arena.empty((values,), np.float32)
        kept = sum(block.nbytes for blocks in arena.free.values() for block in blocks)
        assert kept <= 1.2 * 4 * values


def test_its_books_are_right():
    arena, rng, held = backend._Arena(), np.random.default_rng(0), []
    for _ in range(300):
        if held and rng.random() < 0.5:
            held.pop(rng.integers(len(held)))
        else:
            held.append(arena.empty((int(rng.integers(BIG // 4, 4 * BIG)),), np.float32))
        assert sum(a.nbytes for a in held) <= arena.live_bytes <= 1.2 * sum(a.nbytes for a in held)
        assert arena.free_bytes == sum(size * len(blocks) for size, blocks in arena.free.items())
        assert arena.live_bytes + arena.free_bytes <= arena.most * arena.peak_bytes
    held.clear()
    assert arena.live_bytes == 0


def test_a_refused_request_leaves_the_books_right():
    arena = backend._Arena()
    with pytest.raises(MemoryError):
        arena.empty((1 << 58,), np.float32)
    assert (arena.live_bytes, arena.peak_bytes) == (0, 0)


def test_a_room_lends_the_same_memory_again_as_long_as_it_is_enough():
    room = backend.Room(np.zeros(1, "float32"))
    first = room.empty((3, BIG))
    again = room.empty((BIG, 2))
    assert (again.shape, again.dtype, again.flags.c_contiguous) == ((BIG, 2), np.dtype("float32"), True)
    assert again.ctypes.data == first.ctypes.data
    assert not np.shares_memory(room.empty((4, BIG)), first)
    assert backend.Room(first, "uint8").empty((2, 0)).dtype == "uint8"


@pytest.mark.usefixtures("restless_threads")
def test_threads_get_memory_of_their_own():
    arena = backend._Arena()

    def work(seed):
        rng, held = np.random.default_rng(seed), []
        for number in range(100):
            array = arena.empty((int(rng.choice([BIG // 4, BIG // 2])),), np.float32)
            value = seed * 1000 + number
            array[::97] = value
            held.append((array[::97], value))
            if len(held) > 3:
                array, value = held.pop(int(rng.integers(3)))
                assert (array == value).all()

    on_threads(work, range(4))
    arena.empty((BIG,), np.float32)  # it sorts what came back
    assert arena.live_bytes == 0
    assert arena.free_bytes == sum(size * len(blocks) for size, blocks in arena.free.items())


def use_an_arena(collect_at, lines):
    """Some requests, while an array in a reference cycle is collected as they reach a line of the arena's own code.

    The lines that they reach go to ``lines``.
    """
    arena = backend._Arena()
    cycle = [arena.empty((BIG,), np.float32)]
    cycle.append(cycle)

    def trace(frame, event, _):
        nonlocal cycle
        if frame.f_code.co_filename != backend.__file__:
            return None
        lines.add(frame.f_lineno)
        if frame.f_lineno == collect_at and cycle is not None:
            cycle = None
            gc.collect()
        return trace

    sys.settrace(trace)
    for values in (BIG, 2 * BIG, 4 * BIG, BIG):
        arena.empty((values,), np.float32)
    sys.settrace(None)


@pytest.fixture
def quick_collections():
    """The garbage collector looks only at what is made from now on."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collections")
def test_the_garbage_collector_may_give_memory_back_at_any_moment():
    """It runs inside whatever allocates, and that may be the arena itself: it must not wait for itself then."""

    def ends(collect_at):
        thread = threading.Thread(target=use_an_arena, args=(collect_at, lines), daemon=True)
        thread.start()
        thread.join(10)
        return not thread.is_alive()

    lines = set()
    assert ends(None) and len(lines) > 10
    for line in sorted(lines):
        assert ends(line), f"the arena waits for itself when memory comes back at line {line} of {backend.__file__}"


# --- BLAS threads ---


@pytest.mark.usefixtures("three_blas_threads")
class TestOneBlasThread:
    def test_inside_there_is_one_and_outside_what_was_before(self):
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {3}

    def test_it_comes_back_after_an_error(self):
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert blas_threads() == {3}

    def test_nested_uses_end_with_the_outermost(self):
        with one_blas_thread():
            with one_blas_thread():
                pass
            assert blas_threads() == {1}
        assert blas_threads() == {3}

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    def test_overlapping_uses_may_end_in_any_order(self, order):
        users = [ExitStack() for _ in range(3)]
        for user in users:
            user.enter_context(one_blas_thread())
        for number in order:
            assert blas_threads() == {1}
            users[number].close()
        assert blas_threads() == {3}

    def test_it_can_be_used_again(self):
        for _ in range(3):
            with one_blas_thread():
                assert blas_threads() == {1}
            assert blas_threads() == {3}

    def test_any_thread_may_be_the_first_in(self):
        seen = []

        def work(_=0):
            with one_blas_thread():
                seen.append(blas_threads())
            seen.append(blas_threads())

        work()
        on_threads(work, [0])
        on_threads(work, [0])
        assert seen == [{1}, {3}] * 3

    def test_any_thread_may_be_the_last_out(self):
        entered, leave, left, end = (threading.Event() for _ in range(4))

        def first():
            with one_blas_thread():
                entered.set()
                leave.wait(20)
            left.set()
            end.wait(20)

        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(20)
        with one_blas_thread():
            leave.set()
            left.wait(20)
            with_one_left = blas_threads()
        with_none_left = blas_threads()
        end.set()
        thread.join()
        assert (with_one_left, with_none_left) == ({1}, {3})

    def test_another_thread_may_have_set_the_number_and_live_on(self):
        ready, end = threading.Event(), threading.Event()

        def another_user():
            threadpool_limits(3, "blas")
            ready.set()
            end.wait(20)

        thread = threading.Thread(target=another_user)
        thread.start()
        ready.wait(20)
        with one_blas_thread():
            inside = blas_threads()
        outside = blas_threads()
        end.set()
        thread.join()
        assert (inside, outside) == ({1}, {3})

    @pytest.mark.usefixtures("restless_threads")
    def test_many_threads_share_one_limit(self):
        seen = []

        def work(_):
            for _ in range(20):
                with one_blas_thread():
                    seen.append(blas_threads())

        on_threads(work, range(4))
        assert seen == [{1}] * 80
        assert blas_threads() == {3}
