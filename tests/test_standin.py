"""The stand-in for CuPy is as strict as CuPy, has no names that CuPy has not, and notices what a GPU would not say."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import standin_for_cupy


@pytest.fixture(scope="module", autouse=True)
def cupy():
    with standin_for_cupy() as cupy:
        yield cupy


HOST = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def a(cupy):
    return cupy.asarray(HOST)


# ------------------------------------------------------------------------------------- names


def public(names):
    return {name for name in names if not name.startswith("_")}


def functions(cupy):
    """The module's own functions and the names of their parameters."""
    own = {name: each for name, each in vars(cupy).items() if inspect.isfunction(each)}
    return {name: list(inspect.signature(each).parameters) for name, each in own.items() if not name.startswith("_")}


def test_it_has_only_names_that_cupy_has(cupy):
    names = sys.modules["cupy._names"]
    assert public(vars(cupy)) - {"types", "np"} <= names.MODULE
    assert public(dir(cupy.ndarray)) <= names.NDARRAY
    with pytest.raises(AttributeError, match="has no attribute 'float128'"):
        cupy.float128  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'tofiles'"):
        cupy.zeros(1).tofiles  # noqa: B018
    with pytest.raises(NotImplementedError, match="not in the stand-in yet"):
        cupy.linspace  # noqa: B018


def test_the_names_are_those_of_cupy_where_it_is_installed(cupy):
    code = """
import cupy, inspect, json, sys
wanted, cuda, runtime, device = json.loads(sys.argv[1])
missing = [name for name in cuda if name not in dir(cupy.cuda) and name not in ("cublas", "nvrtc")]  # loaded when used
missing += [name for name in runtime if not hasattr(cupy.cuda.runtime, name)]
missing += [name for name in device if not hasattr(cupy.cuda.device, name)]
public = lambda names: sorted(name for name in names if not name.startswith("_"))
ufuncs = [name for name in dir(cupy) if isinstance(getattr(cupy, name), cupy.ufunc)]
parameters = {name: list(inspect.signature(getattr(cupy, name)).parameters) for name in wanted if name != "matmul"}
print(json.dumps([cupy.__version__, public(dir(cupy)), public(ufuncs), public(dir(cupy.ndarray)), parameters, missing]))
"""
    cuda = [list(public(vars(each))) for each in (cupy.cuda, cupy.cuda.runtime, cupy.cuda.device)]
    wanted = json.dumps([list(functions(cupy)), *cuda])
    done = subprocess.run([sys.executable, "-c", code, wanted], capture_output=True, text=True)
    if done.returncode and "No module named 'cupy'" in done.stderr:
        pytest.skip("CuPy is not installed")
    assert not done.returncode, done.stderr
    version, module, ufuncs, ndarray, parameters, missing = json.loads(done.stdout)
    names = sys.modules["cupy._names"]
    if version == names.VERSION:
        assert (set(module), set(ufuncs), set(ndarray)) == (names.MODULE, names.UFUNCS, names.NDARRAY)
    assert {name: each for name, each in functions(cupy).items() if name != "matmul"} == parameters
    assert missing == []


# ------------------------------------------------------------------------------------- arrays refuse to mix


@pytest.mark.parametrize(
    "mix",
    [lambda a, x: a + x, lambda a, x: x + a, lambda a, x: np.maximum(x, a), lambda a, x: a == x, lambda a, x: x < a,
     lambda a, x: a.__iadd__(x), lambda a, x: x.__iadd__(a), lambda a, x: a @ x.T, lambda a, x: x @ a.T,
     lambda a, x: np.concatenate([a, x]), lambda a, x: np.copyto(x, a)],
)  # fmt: skip
def test_arithmetic_with_numpy_s_arrays_is_refused(a, mix):
    with pytest.raises(TypeError):
        mix(a, HOST.copy())


def test_functions_of_cupy_refuse_numpy_s_arrays(cupy, a):
    for refused in (
        lambda: cupy.exp(HOST), lambda: cupy.add(a, HOST), lambda: cupy.multiply(a, a, out=HOST.copy()),
        lambda: cupy.matmul(a, HOST.T), lambda: cupy.stack([HOST]), lambda: cupy.ascontiguousarray(HOST),
        lambda: cupy.where(HOST > 0, a, a), lambda: cupy.einsum("ij->i", HOST), lambda: cupy.broadcast_to(HOST, (2, 3)),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            refused()


def test_there_is_no_way_to_numpy_but_get(a):
    for conversion in (np.asarray, np.array, lambda a: np.zeros(2).__setitem__(slice(None), a[:, 0])):
        with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed"):
            conversion(a)
    np.testing.assert_array_equal(a.get(), HOST)
    with pytest.raises(TypeError):
        range(3)[a.argmax()]  # a 0-d array is no index


def test_numbers_may_take_part(cupy, a):
    for number in (2, 2.0, np.float32(2), np.uint8(2)):
        for got in (a * number, number * a):
            assert type(got) is cupy.ndarray
            np.testing.assert_array_equal(got.get(), HOST * number, strict=True)
    assert (a * np.float64(2)).dtype == "float64"


def test_what_may_be_assigned_and_what_may_index(a):
    for refused in (np.zeros(3, "float32"), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="non-scalar numpy"):
            a[...] = refused
    with pytest.raises(ValueError, match="non-scalar numpy"):
        a[0] = np.zeros(3, "float32")
    a[:], a[np.array([1]), 0] = HOST + 1, np.array([9.0])
    a[0], a[1, 2] = a[1] * 2, 5
    assert a.get().tolist() == [[18, 10, 12], [9, 5, 5]]
    assert a[np.array([1, 0]), [0, 2]].get().tolist() == [9, 12]
    with pytest.raises(IndexError):
        a[np.array([2])]  # CuPy would take row 0


def test_reductions_know_what_cupy_s_know(a):
    assert a.sum().shape == () and float(a.max()) == 5
    for call in (lambda: a.max(initial=0), lambda: a.sum(where=a > 1), lambda: a.any(0, None, False, 1)):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError):
        np.add(a, a, where=[True])


def test_views_are_views_and_results_are_c_ordered(cupy, a):
    a.T[0] = 7
    a.reshape(-1)[1:3].fill(8)
    assert a.get().tolist() == [[7, 8, 8], [7, 4, 5]]
    assert (a.T + 0).flags.c_contiguous and not a.T.astype("float64").flags.c_contiguous
    one = a[1, 1]
    one[...] = 6
    assert a[1].get().tolist() == [7, 6, 5]
    windows = cupy.lib.stride_tricks.as_strided(a[0], (2, 2), (4, 4))
    assert windows.get().tolist() == [[7, 8], [8, 8]]
    with pytest.raises(ValueError):
        cupy.lib.stride_tricks.as_strided(a[1], (3, 2), (4, 4))  # ends behind a's memory


def test_memory_that_nobody_wrote_shows(cupy):
    assert np.isnan(cupy.empty((2, 3)).get()).all()
    assert (cupy.empty(4, "uint8").get() == 255).all()


# ------------------------------------------------------------------------------------- kernels

SOURCE = """
struct alignas(8) Pair { float at[2]; };
extern "C" __global__ void scale(
    const float* __restrict__ x, float* __restrict__ y, int n, float factor, long long shift)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i + shift] = x[i] * factor;
}
extern "C" __global__ void pairs(const Pair* x, Pair* y) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void places(int* y)
{
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    y[(block * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x] = 1000 * block + 10 * threadIdx.y + threadIdx.x;
}
"""


@pytest.fixture
def kernel(cupy):
    module = cupy.RawModule(code=SOURCE, options=("--std=c++17",))
    return lambda name, grid, block, *args: module.get_function(name)(grid, block, args)


def arguments(cupy, **changed):
    """Good ones for ``scale``, with some changed."""
    x = cupy.asarray(HOST)
    good = {
        "x": x,
        "y": cupy.empty(x.shape, "float32"),
        "n": np.int32(6),
        "factor": np.float32(2),
        "shift": np.int64(0),
    }
    return list((good | changed).values())


def test_a_kernel_runs(cupy, kernel):
    x, y, *rest = arguments(cupy)
    kernel("scale", (3,), (2,), x, y, *rest)
    np.testing.assert_array_equal(y.get(), 2 * HOST)
    places = cupy.empty(24, "int32")
    kernel("places", (2, 1, 2), (3, 2), places)
    assert sorted(places.get()) == [1000 * b + 10 * j + i for b in range(4) for j in range(2) for i in range(3)]
    assert (np.diff(places.get()) > 0).all()


@pytest.mark.parametrize(
    "changed",
    [{"n": 6}, {"n": np.int64(6)}, {"factor": 2.0}, {"factor": np.float64(2)}, {"shift": np.int32(0)},
     {"x": HOST}, {"x": np.float32(1)}, {"n": HOST}, {"another": np.int32(0)}],
    ids=str,
)  # fmt: skip
def test_arguments_that_a_gpu_would_read_as_garbage_are_refused(cupy, kernel, changed):
    with pytest.raises(TypeError):
        kernel("scale", (3,), (2,), *arguments(cupy, **changed))


def test_arrays_that_a_gpu_would_read_as_garbage_are_refused(cupy, kernel):
    x = cupy.zeros((3, 4), "float32")
    for changed, says in [
        ({"x": x.astype("float64")}, "argument 0 is float64, its parameter points at float32"),
        ({"x": x.T}, "not C-ordered"), ({"x": x.reshape(-1)[:6], "y": x.reshape(-1)[2:8]}, "overlaps"),
    ]:  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=says):
            kernel("scale", (3,), (2,), *arguments(cupy, **changed))
    kernel("pairs", (1,), (2,), x[0], x[1])
    with pytest.raises(ValueError, match="misaligned"):
        kernel("pairs", (1,), (1,), x.reshape(-1)[1:3], x[1])
    with pytest.raises(TypeError, match="points at float32"):
        kernel("pairs", (1,), (1,), x.astype("int32"), x[1])
    with pytest.raises(ValueError, match="INVALID_VALUE"):
        kernel("scale", (1, 65536), (1,), *arguments(cupy))


@pytest.mark.parametrize("shift", [1, -1])
def test_writing_beyond_an_array_is_noticed(cupy, kernel, shift):
    with pytest.raises(MemoryError, match="scale wrote beyond"):  # NaN read beyond x, written beyond y
        kernel("scale", (7,), (1,), *arguments(cupy, n=np.int32(7)))
    with pytest.raises(MemoryError, match="scale wrote beyond an array of 24 bytes"):
        kernel("scale", (3,), (2,), *arguments(cupy, shift=np.int64(shift)))


def test_a_wrong_source_is_refused(cupy):
    wrong = cupy.RawModule(code='extern "C" __global__ void f(float* x) { x[0] = nothing; }')
    with pytest.raises(RuntimeError, match="nothing"):
        wrong.get_function("f")
    with pytest.raises(RuntimeError, match="no kernel g, only f"):
        wrong.get_function("g")


def test_products_are_read_where_they_lie(cupy):
    from cupy.cuda import cublas, runtime

    def gemm(a, b, c, shape, steps, beta=0.0):
        (m, n, k), one, more = shape, np.ones(()), np.array(beta)
        cublas.gemmStridedBatchedEx(
            0, 0, 0, m, n, k, one.ctypes.data, a.data.ptr, runtime.CUDA_R_64F, steps[0], m * k, b.data.ptr,
            runtime.CUDA_R_64F, steps[1], k * n, more.ctypes.data, c.data.ptr, runtime.CUDA_R_64F, steps[2], m * n,
            len(c), cublas.CUBLAS_COMPUTE_64F, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4, 5))
    a, b, c = cupy.asarray(x), cupy.asarray(y), cupy.empty((2, 3, 5))
    gemm(b, a, c, (5, 3, 4), (5, 4, 5))  # column by column these are the transposes
    np.testing.assert_allclose(c.get(), x @ y)
    gemm(b, a, c, (5, 3, 4), (5, 4, 5), beta=1.0)
    np.testing.assert_allclose(c.get(), 2 * x @ y)
    with pytest.raises(ValueError, match="buffer"):
        gemm(b, a, c, (5, 3, 5), (5, 5, 5))
    with pytest.raises(ValueError, match="apart"):
        gemm(b, a, c, (5, 3, 4), (4, 4, 5))
