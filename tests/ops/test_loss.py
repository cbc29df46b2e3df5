"""Softmax and cross-entropy."""

import math
from typing import NamedTuple

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import (
    DTYPES,
    LAYOUTS,
    OTHER_DTYPES,
    TOLERANCE,
    CupyArray,
    assert_caught,
    assert_close,
    assert_gradient,
    oracle,
)

from refnet.ops.loss import cross_entropy, softmax

pytestmark = pytest.mark.usefixtures("dirty_memory")


class Case(NamedTuple):
    n: int
    classes: int
    spread: float = 1.0

    def draw(self, dtype="float64"):
        """Logits and labels; the same numbers in either dtype."""
        rng = np.random.default_rng(0)
        y = rng.normal(0, self.spread, (self.n, self.classes)).astype("float32")
        return y.astype(dtype), rng.integers(0, self.classes, self.n)


CASES = [Case(3, 5), Case(1, 7, spread=3), Case(4, 2, spread=0.1), Case(2, 1)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def check_softmax(softmax, case, dtype="float64", layout="c_order"):
    y, _ = case.draw(dtype)
    assert_close(softmax(LAYOUTS[layout](y)), naive.softmax(y), dtype, case)
    huge = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], dtype))
    assert_close(huge, [[1, 0], [0.5, 0.5]], dtype, "logits too large for exp")


def check_cross_entropy(cross_entropy, case, dtype="float64", layout="c_order"):
    y, labels = case.draw(dtype)
    wanted = naive.cross_entropy(y, labels)
    loss, dy = cross_entropy(LAYOUTS[layout](y), labels)
    assert isinstance(loss, float)
    assert abs(loss - wanted[0]) <= TOLERANCE[dtype] * max(wanted[0], 1)
    assert_close(dy, wanted[1], dtype, case)
    loss, dy = cross_entropy(np.array([[1000.0, 0.0]], dtype), np.array([1]))
    assert loss == 1000
    assert_close(dy, [[1, -1]], dtype, "logits too large for exp")


@every_case
@every_dtype
@every_layout
def test_softmax_is_its_formula(case, dtype, layout):
    check_softmax(softmax, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_cross_entropy_is_its_formula(case, dtype, layout):
    check_cross_entropy(cross_entropy, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.SOFTMAX)
def test_a_wrong_softmax_is_caught(twin):
    assert_caught(check_softmax, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.CROSS_ENTROPY)
def test_a_wrong_cross_entropy_is_caught(twin):
    assert_caught(check_cross_entropy, twin, CASES)


@every_case
def test_the_gradient_is_the_slope_of_the_loss(case):
    y, labels = case.draw()
    _, dy = cross_entropy(y, labels)
    assert_gradient(lambda y: cross_entropy(y, labels)[0], y, dy, np.random.default_rng(1))


@every_case
@every_dtype
def test_pytorch_agrees(case, dtype):
    torch = oracle("torch")
    y, labels = case.draw(dtype)
    logits = torch.tensor(y, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    got, dy = cross_entropy(y, labels)
    assert abs(got - loss.item()) <= TOLERANCE[dtype] * max(loss.item(), 1)
    assert_close(dy, logits.grad.numpy(), dtype)
    assert_close(softmax(y), torch.softmax(logits, dim=1).detach().numpy(), dtype)


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes():
    """The loss that a network starts from: ln 1000 on ImageNet."""
    loss, dy = cross_entropy(np.zeros((2, 4)), np.array([1, 3]))
    assert loss == pytest.approx(math.log(4), rel=1e-15)
    assert dy.tolist() == [[0.125, -0.375, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]]


def test_softmax_of_no_images_is_empty():
    assert softmax(np.ones((0, 3), "float32")).shape == (0, 3)


def test_softmax_goes_over_the_last_axis():
    np.testing.assert_allclose(softmax(np.zeros((2, 5, 4))), 0.25)


@pytest.mark.parametrize(
    ("y", "labels"), [((3, 5), (2,)), ((3, 5), (3, 1)), ((0, 5), (0,)), ((5,), (5,)), ((3, 5, 1), (3,))]
)
def test_shapes_must_fit(y, labels):
    with pytest.raises(ValueError, match=r"cross_entropy: y is \(.*\) and labels \(.*\); it needs \(N, C\) and \(N,\)"):
        cross_entropy(np.ones(y), np.zeros(labels, int))


@pytest.mark.parametrize(("labels", "low", "high"), [([0, 5], 0, 5), ([-1, 4], -1, 4)])
def test_labels_must_be_classes(labels, low, high):
    with pytest.raises(ValueError, match=f"cross_entropy: labels run from {low} to {high}, classes to 5"):
        cross_entropy(np.ones((2, 5)), np.array(labels))


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    y = np.ones((1, 3), dtype)
    with pytest.raises(TypeError, match=f"softmax: got y {dtype}; all must be float32 or all float64"):
        softmax(y)
    with pytest.raises(TypeError, match=f"cross_entropy: got y {dtype}; all must be float32 or all float64"):
        cross_entropy(y, np.array([0]))


def test_mixed_backends_are_refused():
    with pytest.raises(TypeError, match="must all be numpy or all cupy"):
        cross_entropy(np.ones((1, 3)), CupyArray((1,), "int64"))


def test_labels_must_be_an_array():
    with pytest.raises(TypeError, match=r"builtins\.list"):
        cross_entropy(np.ones((1, 3)), [0])
