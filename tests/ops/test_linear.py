"""Fully connected layers: forward, transposed, gradients."""

from typing import NamedTuple

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import (
    DTYPES,
    LAYOUTS,
    OTHER_DTYPES,
    CupyArray,
    assert_adjoint,
    assert_caught,
    assert_close,
    assert_gradient,
    oracle,
)

from refnet.ops.linear import linear_forward, linear_grads, linear_transpose

pytestmark = pytest.mark.usefixtures("dirty_memory")


class Case(NamedTuple):
    n: int
    inputs: int
    units: int

    def draw(self, dtype="float64"):
        """x, w, b and a signal on the outputs; the same numbers in either dtype."""
        rng = np.random.default_rng(0)
        shapes = [(self.n, self.inputs), (self.inputs, self.units), (self.units,), (self.n, self.units)]
        return [rng.normal(size=shape).astype("float32").astype(dtype) for shape in shapes]


CASES = [Case(3, 7, 5), Case(1, 4, 6), Case(2, 1, 1), Case(0, 3, 2)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def check_forward(linear_forward, case, dtype="float64", layout="c_order"):
    x, w, b, _ = (LAYOUTS[layout](a) for a in case.draw(dtype))
    assert_close(linear_forward(x, w, b), naive.linear_forward(x, w, b), dtype, case)


def check_transpose(linear_transpose, case, dtype="float64", layout="c_order"):
    _, w, _, r = (LAYOUTS[layout](a) for a in case.draw(dtype))
    assert_close(linear_transpose(r, w), naive.linear_transpose(r, w), dtype, case)


def check_grads(linear_grads, case, dtype="float64", layout="c_order"):
    x, _, _, dy = (LAYOUTS[layout](a) for a in case.draw(dtype))
    for got, wanted in zip(linear_grads(x, dy), naive.linear_grads(x, dy), strict=True):
        assert_close(got, wanted, dtype, case)


@every_case
@every_dtype
@every_layout
def test_linear_forward_is_its_formula(case, dtype, layout):
    check_forward(linear_forward, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_linear_transpose_is_its_formula(case, dtype, layout):
    check_transpose(linear_transpose, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_linear_grads_are_their_formula(case, dtype, layout):
    check_grads(linear_grads, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.LINEAR_FORWARD)
def test_a_wrong_layer_is_caught(twin):
    assert_caught(check_forward, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.LINEAR_TRANSPOSE)
def test_a_wrong_transposition_is_caught(twin):
    assert_caught(check_transpose, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.LINEAR_GRADS)
def test_wrong_gradients_are_caught(twin):
    assert_caught(check_grads, twin, CASES)


@every_case
def test_linear_transpose_is_the_adjoint_of_linear_forward(case):
    x, w, b, r = case.draw()
    assert_adjoint(lambda x: linear_forward(x, w, 0 * b), lambda r: linear_transpose(r, w), x, r)


@every_case
def test_linear_grads_are_the_slope_of_the_loss(case):
    x, w, b, dy = case.draw()
    dw, db = linear_grads(x, dy)
    rng = np.random.default_rng(1)
    assert_gradient(lambda w: np.vdot(dy, linear_forward(x, w, b)), w, dw, rng)
    assert_gradient(lambda b: np.vdot(dy, linear_forward(x, w, b)), b, db, rng)


@every_case
@every_dtype
def test_pytorch_agrees(case, dtype):
    torch = oracle("torch")
    x, w, b, dy = case.draw(dtype)
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, w.T, b)]
    y = torch.nn.functional.linear(*inputs)
    y.backward(torch.tensor(dy))
    dx, dw, db = (each.grad.numpy() for each in inputs)
    assert_close(linear_forward(x, w, b), y.detach().numpy(), dtype)
    assert_close(linear_transpose(dy, w), dx, dtype)
    for got, wanted in zip(linear_grads(x, dy), (dw.T, db), strict=True):
        assert_close(got, wanted, dtype)


def test_a_layer_of_two_units():
    x, w, b = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([10.0, 20.0])
    assert linear_forward(x, w, b).tolist() == [[14, 25]]
    assert linear_transpose(np.array([[1.0, 10.0]]), w).tolist() == [[1, 10, 11]]


def test_results_can_go_into_a_part_of_an_array():
    """As net does with blocks of columns."""
    x, w, b, dy = Case(3, 7, 5).draw()
    y, dx, dw = np.full((3, 9), 7.0), np.full((3, 9), 7.0), np.full((9, 5), 7.0)
    linear_forward(x, w, b, out=y[:, 2:7])
    linear_transpose(dy, w, out=dx[:, 1:8])
    linear_grads(x, dy, out=dw[1:8])
    np.testing.assert_allclose(y[:, 2:7], naive.linear_forward(x, w, b))
    np.testing.assert_allclose(dx[:, 1:8], naive.linear_transpose(dy, w))
    np.testing.assert_allclose(dw[1:8], naive.linear_grads(x, dy)[0])
    assert (y[:, [0, 1, 7, 8]] == 7).all() and (dx[:, [0, 8]] == 7).all() and (dw[[0, 8]] == 7).all()


@pytest.mark.parametrize(
    ("x", "w", "b"),
    [
        ((3, 7), (6, 5), (5,)),
        ((3, 7), (7, 5), (4,)),
        ((3, 7), (7, 5), (5, 1)),
        ((7,), (7, 5), (5,)),
        ((3, 7), (7,), (1,)),
        ((3, 1, 1, 7), (7, 5), (5,)),
        ((3, 7, 1), (7, 5), (5,)),
        ((3, 7), (7, 5, 1), (5,)),
    ],
)
def test_linear_forward_says_what_does_not_fit(x, w, b):
    with pytest.raises(ValueError, match=r"linear_forward: x is \(.*\), w \(.*\), b \(.*\); it needs \(N, I\)"):
        linear_forward(np.ones(x), np.ones(w), np.ones(b))


@pytest.mark.parametrize(
    ("r", "w"), [((3, 5), (7, 4)), ((5,), (7, 5)), ((3, 5), (5,)), ((3, 5, 1), (7, 5)), ((3, 5), (7, 5, 1))]
)
def test_linear_transpose_says_what_does_not_fit(r, w):
    with pytest.raises(ValueError, match=r"linear_transpose: r is \(.*\) and w \(.*\); it needs \(N, U\) and \(I, U\)"):
        linear_transpose(np.ones(r), np.ones(w))


@pytest.mark.parametrize(
    ("x", "dy"), [((3, 7), (2, 5)), ((7,), (7, 5)), ((3, 7), (3,)), ((3, 7, 1), (3, 5)), ((3, 7), (3, 5, 1))]
)
def test_linear_grads_say_what_does_not_fit(x, dy):
    with pytest.raises(ValueError, match=r"linear_grads: x is \(.*\) and dy \(.*\); it needs \(N, I\) and \(N, U\)"):
        linear_grads(np.ones(x), np.ones(dy))


def calls(x, w):
    """Each operation by name, on arrays of shape (1, 1)."""
    return {
        "linear_forward": lambda: linear_forward(x, w, x),
        "linear_transpose": lambda: linear_transpose(x, w),
        "linear_grads": lambda: linear_grads(x, w),
    }


every_operation = pytest.mark.parametrize("name", ["linear_forward", "linear_transpose", "linear_grads"])


@every_operation
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(name, dtype):
    a = np.ones((1, 1), dtype)
    with pytest.raises(TypeError, match=f"{name}: got .* {dtype}.*; all must be float32 or all float64"):
        calls(a, a)[name]()


@every_operation
def test_mixed_dtypes_are_refused(name):
    with pytest.raises(TypeError, match=rf"{name}: got \w+ float32, \w+ float64"):
        calls(np.ones((1, 1), "float32"), np.ones((1, 1)))[name]()


@every_operation
def test_mixed_backends_are_refused(name):
    with pytest.raises(TypeError, match="must all be numpy or all cupy"):
        calls(np.ones((1, 1), "float32"), CupyArray((1, 1)))[name]()
