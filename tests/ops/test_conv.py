"""Convolution, transposed filtering and the gradients of filters and biases."""

import functools
import re
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

from refnet.geometry import Window, conv_size
from refnet.ops import conv
from refnet.ops.conv import conv_forward, conv_grads, conv_transpose

pytestmark = pytest.mark.usefixtures("dirty_memory")


class Case(NamedTuple):
    n: int
    hw: tuple[int, int]
    maps: int
    filters: int
    size: int
    stride: int = 1
    pad: int = 0
    groups: int = 1

    @property
    def how(self):
        """The keyword arguments that the three operations share."""
        return {"stride": self.stride, "pad": self.pad, "groups": self.groups}

    def draw(self, dtype="float64"):
        """Maps, filters, biases and a signal on the outputs; the same numbers in either dtype."""
        rng = np.random.default_rng(0)
        window = Window(self.size, self.stride, self.pad)
        shapes = [
            (self.n, *self.hw, self.maps),
            (self.size, self.size, self.maps // self.groups, self.filters),
            (self.filters,),
            (self.n, *(conv_size(length, window) for length in self.hw), self.filters),
        ]
        return [rng.normal(size=shape).astype("float32").astype(dtype) for shape in shapes]


CASES = [
    Case(2, (5, 4), 3, 4, 3),
    Case(2, (6, 7), 2, 3, 3, stride=2, pad=1),
    Case(1, (9, 7), 3, 2, 5, stride=3),
    Case(2, (5, 6), 4, 6, 3, pad=2, groups=2),
    Case(1, (7, 5), 6, 3, 2, stride=2, pad=1, groups=3),
    Case(3, (3, 4), 2, 2, 1, stride=2),
    Case(1, (11, 12), 1, 2, 7, stride=2, pad=1),
    Case(0, (5, 4), 3, 4, 3, pad=1),
    Case(1, (3, 2), 1, 2, 9, pad=4),
    # More maps than outputs in a row, for which filtering back adds rows, not planes.
    Case(2, (4, 6), 6, 4, 3, stride=2, pad=1),
    Case(1, (5, 4), 12, 6, 3, pad=1, groups=2),
    Case(2, (6, 7), 9, 3, 2, stride=3, pad=1, groups=3),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@functools.cache
def by_formula(case):
    """y, x from r, dw and db of a case, by the naive loops."""
    x, w, b, r = case.draw()
    dw, db = naive.conv_grads(x, r, size=case.size, **case.how)
    return naive.conv_forward(x, w, b, **case.how), naive.conv_transpose(r, w, hw=case.hw, **case.how), dw, db


def check_forward(conv_forward, case, dtype="float64", layout="c_order"):
    x, w, b, _ = (LAYOUTS[layout](a) for a in case.draw(dtype))
    assert_close(conv_forward(x, w, b, **case.how), by_formula(case)[0], dtype, case)


def check_transpose(conv_transpose, case, dtype="float64", layout="c_order"):
    _, w, _, r = (LAYOUTS[layout](a) for a in case.draw(dtype))
    assert_close(conv_transpose(r, w, hw=case.hw, **case.how), by_formula(case)[1], dtype, case)


def check_grads(conv_grads, case, dtype="float64", layout="c_order"):
    x, _, _, dy = (LAYOUTS[layout](a) for a in case.draw(dtype))
    dw, db = conv_grads(x, dy, size=case.size, **case.how)
    assert_close(dw, by_formula(case)[2], dtype, case)
    assert_close(db, by_formula(case)[3], dtype, case)


@every_case
@every_dtype
@every_layout
def test_conv_forward_is_its_formula(case, dtype, layout):
    check_forward(conv_forward, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_conv_transpose_is_its_formula(case, dtype, layout):
    check_transpose(conv_transpose, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_conv_grads_are_their_formula(case, dtype, layout):
    check_grads(conv_grads, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.CONV_FORWARD)
def test_a_wrong_convolution_is_caught(twin):
    assert_caught(check_forward, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.CONV_TRANSPOSE)
def test_a_wrong_transposed_convolution_is_caught(twin):
    assert_caught(check_transpose, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.CONV_GRADS)
def test_wrong_gradients_of_filters_are_caught(twin):
    assert_caught(check_grads, twin, CASES)


@every_case
def test_scipy_agrees_with_the_convolution(case):
    signal = oracle("scipy.signal")
    x, w, b, _ = case.draw()
    around = (case.pad, case.pad)
    padded = np.pad(x, ((0, 0), around, around, (0, 0)))
    y = np.zeros(by_formula(case)[0].shape)
    per_group = case.maps // case.groups
    for n, f in np.ndindex(case.n, case.filters):
        first = f // (case.filters // case.groups) * per_group
        maps = [signal.correlate2d(padded[n, :, :, first + c], w[:, :, c, f], mode="valid") for c in range(per_group)]
        y[n, :, :, f] = sum(maps)[:: case.stride, :: case.stride] + b[f]
    assert_close(conv_forward(x, w, b, **case.how), y)


@every_case
@every_dtype
def test_pytorch_agrees_with_the_convolution_and_its_gradients(case, dtype):
    torch = oracle("torch")
    x, w, b, r = case.draw(dtype)
    nchw, mcij = (torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(w).permute(3, 2, 0, 1))
    inputs = [each.clone().requires_grad_() for each in (nchw, mcij, torch.tensor(b))]
    y = torch.nn.functional.conv2d(*inputs, stride=case.stride, padding=case.pad, groups=case.groups)
    y.backward(torch.tensor(r).permute(0, 3, 1, 2))
    dx, dw, db = (each.grad for each in inputs)
    got_dw, got_db = conv_grads(x, r, size=case.size, **case.how)
    assert_close(conv_forward(x, w, b, **case.how), y.detach().permute(0, 2, 3, 1).numpy(), dtype)
    assert_close(conv_transpose(r, w, hw=case.hw, **case.how), dx.permute(0, 2, 3, 1).numpy(), dtype)
    assert_close(got_dw, dw.permute(2, 3, 1, 0).numpy(), dtype)
    assert_close(got_db, db.numpy(), dtype)


@every_case
def test_conv_transpose_is_the_adjoint_of_conv_forward(case):
    x, w, b, r = case.draw()
    assert_adjoint(
        lambda x: conv_forward(x, w, 0 * b, **case.how),
        lambda r: conv_transpose(r, w, hw=case.hw, **case.how),
        x,
        r,
    )


@every_case
def test_conv_grads_are_the_slope_of_the_loss(case):
    x, w, b, dy = case.draw()
    dw, db = conv_grads(x, dy, size=case.size, **case.how)
    rng = np.random.default_rng(1)
    assert_gradient(lambda w: np.vdot(dy, conv_forward(x, w, b, **case.how)), w, dw, rng)
    assert_gradient(lambda b: np.vdot(dy, conv_forward(x, w, b, **case.how)), b, db, rng)


def test_transposed_filtering_convolves_with_each_filter_flipped():
    """Section 2.1: "flipping each filter vertically and horizontally". scipy's convolve2d is correlation flipped."""
    signal = oracle("scipy.signal")
    _, w, _, r = Case(1, (6, 5), 1, 3, 3).draw()
    flipped = sum(signal.correlate2d(r[0, :, :, f], w[::-1, ::-1, 0, f], mode="full") for f in range(3))
    convolved = sum(signal.convolve2d(r[0, :, :, f], w[:, :, 0, f], mode="full") for f in range(3))
    x = conv_transpose(r, w, hw=(6, 5))
    assert_close(x, flipped[None, :, :, None])
    assert_close(x, convolved[None, :, :, None])


def test_a_filter_is_not_flipped_on_the_way_up():
    """Correlation: the weight at the top left meets the cell at the top left."""
    x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    w = np.array([[1000.0, 100.0], [10.0, 1.0]]).reshape(2, 2, 1, 1)
    assert conv_forward(x, w, np.array([0.5])).item() == 1234.5


def test_one_activation_projects_to_the_activation_times_the_filter():
    """What the deconvnet shows of a layer-1 map: its filter, at the place that it saw."""
    w = np.arange(9.0).reshape(3, 3, 1, 1)
    r = np.zeros((1, 2, 2, 1))
    r[0, 1, 0, 0] = 2
    assert conv_transpose(r, w, stride=2, hw=(5, 6))[0, :, :, 0].tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 2, 4, 0, 0, 0],
        [6, 8, 10, 0, 0, 0],
        [12, 14, 16, 0, 0, 0],
    ]


def test_both_sizes_that_give_the_same_outputs_can_be_asked_for():
    """Sizes are not invertible: conv1 makes 110 of 223 and of 224."""
    r, w = np.ones((1, 110, 110, 1), "float32"), np.ones((7, 7, 1, 1), "float32")
    for side in (223, 224):
        assert conv_transpose(r, w, stride=2, pad=1, hw=(side, side)).shape == (1, side, side, 1)


def test_groups_do_not_see_each_other():
    x, w, b = np.zeros((1, 1, 1, 4)), np.ones((1, 1, 2, 4)), np.zeros(4)
    x[..., :2] = 1
    assert conv_forward(x, w, b, groups=2).ravel().tolist() == [2, 2, 0, 0]
    assert conv_transpose(x, w, hw=(1, 1), groups=2).ravel().tolist() == [2, 2, 0, 0]


def ones(*shape, dtype="float64"):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("w", "b", "how", "message"),
    [
        ((3, 3, 4, 8), (8,), {}, r"conv_forward: x has 3 maps \(2, 6, 5, 3\) but w filters 4 \(3, 3, 4, 8\)"),
        ((3, 3, 3, 8), (8,), {"groups": 3}, r"x has 3 maps .* but w filters 9 .* in 3 group"),
        ((3, 3, 1, 8), (8,), {"groups": 3}, r"x has 3 maps .* \(3, 3, 1, 8\) in 3 group"),
        ((3, 3, 3, 8), (8,), {"groups": 0}, r"conv_forward: .* in 0 group"),
        ((3, 2, 3, 8), (8,), {}, r"w \(3, 2, 3, 8\); it needs x \(N, H, W, C\) and w \(K, K, C / groups, M\)"),
        ((3, 3, 24), (8,), {}, r"w \(3, 3, 24\); it needs x \(N, H, W, C\) and w \(K, K, C / groups, M\)"),
        ((3, 3, 3, 8), (1,), {}, r"conv_forward: b is \(1,\), it needs one value for each filter of w \(3, 3, 3, 8\)"),
        ((3, 3, 3, 8), (8, 1), {}, r"b is \(8, 1\), it needs one value for each filter"),
        ((6, 6, 3, 8), (8,), {}, r"conv_forward: Window\(size=6, stride=1, pad=0\) does not fit x \(2, 6, 5, 3\)"),
        ((3, 3, 3, 8), (8,), {"stride": 0}, r"Window\(size=3, stride=0, pad=0\) does not fit"),
        ((3, 3, 3, 8), (8,), {"pad": -1}, r"Window\(size=3, stride=1, pad=-1\) does not fit"),
    ],
)
def test_conv_forward_says_what_does_not_fit(w, b, how, message):
    with pytest.raises(ValueError, match=message):
        conv_forward(ones(2, 6, 5, 3), ones(*w), ones(*b), **how)


@pytest.mark.parametrize("x", [(6, 5, 3), (1, 2, 6, 5, 3)])
def test_conv_forward_refuses_x_of_more_or_fewer_axes(x):
    with pytest.raises(ValueError, match=rf"conv_forward: x is {re.escape(str(x))} .* it needs x \(N, H, W, C\)"):
        conv_forward(ones(*x), ones(3, 3, 3, 8), ones(8))


@pytest.mark.parametrize(
    ("r", "w", "how", "message"),
    [
        (
            (2, 4, 3, 8),
            (3, 3, 3, 8),
            {"hw": (7, 5)},
            r"conv_transpose: r is \(2, 4, 3, 8\), but 8 filters on \(2, 7, 5\)",
        ),
        ((2, 4, 3, 7), (3, 3, 3, 8), {"hw": (6, 5)}, r"r is \(2, 4, 3, 7\), .* give \(2, 4, 3, 8\)"),
        ((2, 4, 3, 8), (7, 7, 3, 8), {"hw": (6, 5)}, r"conv_transpose: Window\(size=7, stride=1, pad=0\) does not fit"),
        ((2, 1, 3, 8), (5, 5, 3, 8), {"hw": (4, 7)}, r"conv_transpose: Window\(size=5, stride=1, pad=0\) does not fit"),
        ((2, 4, 3, 8), (3, 3, 3, 8), {"hw": (6, 5), "groups": 3}, r"conv_transpose: .* in 3 group"),
        ((2, 4, 3, 8), (3, 3, 3, 8), {"hw": (6, 5), "groups": 0}, r"conv_transpose: .* in 0 group"),
        ((4, 3, 8), (3, 3, 3, 8), {"hw": (6, 5)}, r"conv_transpose: .*r is \(4, 3, 8\)"),
        ((2, 4, 3, 8), (27, 8), {"hw": (6, 5)}, r"conv_transpose: .*w .*\(27, 8\)"),
    ],
)
def test_conv_transpose_says_what_does_not_fit(r, w, how, message):
    with pytest.raises(ValueError, match=message):
        conv_transpose(ones(*r), ones(*w), **how)


@pytest.mark.parametrize(
    ("x", "dy", "how", "message"),
    [
        ((2, 6, 5, 3), (2, 4, 4, 8), {"size": 3}, r"conv_grads: dy is \(2, 4, 4, 8\), .* give \(2, 4, 3, 8\)"),
        ((2, 6, 5, 3), (2, 4, 3, 8), {"size": 3, "groups": 2}, r"conv_grads: x has 3 maps .* in 2 group"),
        ((2, 6, 5, 3), (2, 4, 3, 8), {"size": 3, "groups": 0}, r"conv_grads: .* in 0 group"),
        ((2, 6, 5, 3), (2, 4, 3, 8), {"size": 7}, r"conv_grads: Window\(size=7, stride=1, pad=0\) does not fit"),
        ((2, 6, 5, 3), (3, 4, 3, 8), {"size": 3}, r"conv_grads: .*\(3, 4, 3, 8\)"),
        ((2, 6, 5, 3), (4, 3, 8), {"size": 3}, r"conv_grads: .*dy is \(4, 3, 8\)"),
        ((6, 5, 3), (2, 4, 3, 8), {"size": 3}, r"conv_grads: .*x is \(6, 5, 3\)"),
    ],
)
def test_conv_grads_say_what_does_not_fit(x, dy, how, message):
    with pytest.raises(ValueError, match=message):
        conv_grads(ones(*x), ones(*dy), **how)


def calls(x, w, b):
    """Each operation by name, on these arrays."""
    return {
        "conv_forward": lambda: conv_forward(x, w, b),
        "conv_transpose": lambda: conv_transpose(x, w, hw=(1, 1)),
        "conv_grads": lambda: conv_grads(x, w, size=1),
    }


every_operation = pytest.mark.parametrize("name", ["conv_forward", "conv_transpose", "conv_grads"])


@every_operation
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(name, dtype):
    a = ones(1, 1, 1, 1, dtype=dtype)
    with pytest.raises(TypeError, match=f"{name}: got .* {dtype}.*; all must be float32 or all float64"):
        calls(a, a, a[0, 0, 0])[name]()


@every_operation
def test_mixed_dtypes_are_refused(name):
    x, w = ones(1, 1, 1, 1), ones(1, 1, 1, 1, dtype="float32")
    with pytest.raises(TypeError, match=rf"{name}: got \w+ float64, \w+ float32"):
        calls(x, w, ones(1))[name]()


@every_operation
def test_mixed_backends_are_refused(name):
    x, w = ones(1, 1, 1, 1, dtype="float32"), CupyArray((1, 1, 1, 1))
    with pytest.raises(TypeError, match=r"numpy\.ndarray and cupy\.CupyArray: they must all be numpy or all cupy"):
        calls(x, w, ones(1, dtype="float32"))[name]()


@every_case
@pytest.mark.parametrize("most", [1, 5, 7, 40])
def test_unfolding_a_few_windows_at_a_time_gives_the_same(case, most, monkeypatch):
    monkeypatch.setattr(conv, "_AT_A_TIME", most)
    monkeypatch.setattr(conv, "_IN_PLANES", most)
    check_forward(conv_forward, case)
    check_transpose(conv_transpose, case)
    check_grads(conv_grads, case)
