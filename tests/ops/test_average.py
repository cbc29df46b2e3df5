"""Average pooling and its adjoint."""

from typing import NamedTuple

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import (
    DTYPES,
    LAYOUTS,
    OTHER_DTYPES,
    assert_adjoint,
    assert_caught,
    assert_close,
    assert_gradient,
    oracle,
)

from refnet.ops.average import average_forward, average_transpose, edge_weights

pytestmark = pytest.mark.usefixtures("dirty_memory")


class Case(NamedTuple):
    n: int
    hw: tuple[int, int]
    c: int = 2
    size: int = 3
    stride: int = 2
    pad: int = 0
    ceil: bool = False
    count_pad: bool = False

    @property
    def how(self):
        return {key: getattr(self, key) for key in ("size", "stride", "pad", "ceil", "count_pad")}

    def draw(self, dtype="float64"):
        return np.random.default_rng(0).normal(size=(self.n, *self.hw, self.c)).astype("float32").astype(dtype)

    def signal(self, dtype="float64"):
        shape = naive.average_forward(self.draw(), **self.how).shape
        return np.random.default_rng(1).normal(size=shape).astype("float32").astype(dtype)


CASES = [
    Case(2, (7, 6)),
    Case(2, (7, 6), ceil=True),
    Case(1, (6, 5), size=2, stride=3),
    Case(2, (5, 8), stride=1, pad=1),
    Case(2, (5, 8), stride=1, pad=1, count_pad=True),
    Case(1, (6, 4), size=4, stride=3, pad=2, ceil=True, count_pad=True),
    Case(1, (6, 4), size=4, stride=3, pad=2, ceil=True, c=3),
    Case(3, (5, 5), size=5, stride=5),
    Case(1, (20, 20), size=20, stride=1),  # larger than any region with switches
    Case(0, (5, 5)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def check_forward(average_forward, case, dtype="float64", layout="c_order"):
    x = case.draw(dtype)
    assert_close(average_forward(LAYOUTS[layout](x), **case.how), naive.average_forward(x, **case.how), dtype, case)


def check_transpose(average_transpose, case, dtype="float64", layout="c_order"):
    r = case.signal(dtype)
    x = average_transpose(LAYOUTS[layout](r), **case.how, hw=case.hw)
    assert_close(x, naive.average_transpose(r, **case.how, hw=case.hw), dtype, case)


def check_weights(edge_weights, case, dtype="float64"):
    like = case.draw(dtype)
    assert_close(edge_weights(case.hw, like, **case.how), naive.edge_weights(case.hw, like, **case.how), dtype, case)


@every_case
@every_dtype
@every_layout
def test_average_forward_is_its_formula(case, dtype, layout):
    check_forward(average_forward, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_average_transpose_is_its_formula(case, dtype, layout):
    check_transpose(average_transpose, case, dtype, layout)


@every_case
@every_dtype
def test_edge_weights_are_their_formula(case, dtype):
    check_weights(edge_weights, case, dtype)


@pytest.mark.parametrize("twin", wrong_twins.AVERAGE_FORWARD)
def test_a_wrong_average_is_caught(twin):
    assert_caught(check_forward, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.AVERAGE_TRANSPOSE)
def test_a_wrong_adjoint_is_caught(twin):
    assert_caught(check_transpose, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.EDGE_WEIGHTS)
def test_wrong_weights_are_caught(twin):
    assert_caught(check_weights, twin, CASES)


@every_case
def test_average_transpose_is_the_adjoint(case):
    assert_adjoint(
        lambda x: average_forward(x, **case.how),
        lambda r: average_transpose(r, **case.how, hw=case.hw),
        case.draw(),
        case.signal(),
    )


@every_case
def test_average_transpose_is_the_slope(case):
    x, dy = case.draw(), case.signal()
    dx = average_transpose(dy, **case.how, hw=case.hw)
    assert_gradient(lambda x: np.vdot(dy, average_forward(x, **case.how)), x, dx, np.random.default_rng(2))


@pytest.mark.parametrize("case", [case for case in CASES if 2 * case.pad <= case.size], ids=str)
@every_dtype
def test_pytorch_agrees(case, dtype):
    torch = oracle("torch")
    x = torch.tensor(case.draw(dtype)).permute(0, 3, 1, 2)
    y = torch.nn.functional.avg_pool2d(
        x, case.size, case.stride, case.pad, ceil_mode=case.ceil, count_include_pad=case.count_pad
    )
    assert_close(average_forward(case.draw(dtype), **case.how), y.permute(0, 2, 3, 1).numpy(), dtype)


def test_what_counts_at_the_edge():
    x = np.ones((1, 3, 3, 1))
    y = average_forward(x, size=2, stride=2, pad=1)
    assert y[0, :, :, 0].tolist() == [[1, 1], [1, 1]]
    y = average_forward(x, size=2, stride=2, pad=1, count_pad=True)
    assert y[0, :, :, 0].tolist() == [[0.25, 0.5], [0.5, 1]]


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((7, 6, 2), {}, r"average_forward: x is \(7, 6, 2\), it needs \(N, H, W, C\)"),
        ((1, 2, 7, 6, 2), {}, r"x is \(1, 2, 7, 6, 2\), it needs \(N, H, W, C\)"),
        ((1, 7, 1, 2), {}, r"does not fit x \(1, 7, 1, 2\)"),
        ((1, 1, 6, 2), {}, r"average_forward: Window\(size=3, stride=2, pad=0\) does not fit x \(1, 1, 6, 2\)"),
        ((1, 7, 6, 2), {"pad": 3}, r"Window\(size=3, stride=2, pad=3\) does not fit .*pad smaller than size"),
        ((1, 7, 6, 2), {"pad": -1}, r"Window\(size=3, stride=2, pad=-1\) does not fit"),
        ((1, 7, 6, 2), {"stride": 0}, r"Window\(size=3, stride=0, pad=0\) does not fit"),
    ],
)
def test_what_does_not_fit_is_said(shape, how, message):
    with pytest.raises(ValueError, match=message):
        average_forward(np.zeros(shape), **{"size": 3, "stride": 2, **how})


def test_a_signal_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"average_transpose: r is \(1, 3, 3, 2\); averaging \(9, 6\) with"):
        average_transpose(np.zeros((1, 3, 3, 2)), size=3, stride=2, hw=(9, 6))


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"average_forward: got x {dtype}; all must be float32 or all float64"):
        average_forward(np.zeros((1, 3, 3, 1), dtype), size=3, stride=2)
    with pytest.raises(TypeError, match=f"average_transpose: got r {dtype}; all must be float32 or all float64"):
        average_transpose(np.zeros((1, 1, 1, 1), dtype), size=3, stride=2, hw=(3, 3))
