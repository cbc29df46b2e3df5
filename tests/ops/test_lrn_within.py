"""Normalisation within maps, with alpha near 0.5: at Caffe's 5e-5 an off-by-one window would pass."""

from typing import NamedTuple

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import DTYPES, LAYOUTS, OTHER_DTYPES, assert_caught, assert_gradient, oracle
from fixtures import assert_near

from refnet.ops.lrn import lrn_within_backward, lrn_within_forward

pytestmark = pytest.mark.usefixtures("dirty_memory")
NEAR = {"float32": 1e-5, "float64": 1e-12}


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    size: int = 3
    alpha: float = 0.5
    beta: float = 0.75

    @property
    def constants(self):
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta}

    def draw(self, dtype="float64"):
        """x, dy and the scale of x; the same numbers in either dtype."""
        rng = np.random.default_rng(0)
        x, dy = (rng.normal(size=self.shape).astype("float32") for _ in range(2))
        _, scale = naive.lrn_within_forward(x, **self.constants)
        return x.astype(dtype), dy.astype(dtype), scale.astype(dtype)


CASES = [
    Case((2, 5, 4, 3)),
    Case((1, 6, 7, 2), size=5, alpha=0.3, beta=0.5),
    Case((2, 3, 3, 4), size=1, beta=1.0),
    Case((1, 2, 3, 2), size=9),  # larger than the maps
    Case((1, 1, 1, 1)),
    Case((0, 3, 3, 2)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def assert_close(got, want, dtype):
    assert got.dtype == dtype and got.flags.c_contiguous and got.shape == want.shape
    if want.size:
        assert_near(got, want, NEAR[dtype])


def check_forward(lrn_within_forward, case, dtype="float64", layout="c_order"):
    x, _, _ = case.draw(dtype)
    wanted = naive.lrn_within_forward(x, **case.constants)
    for got, want in zip(lrn_within_forward(LAYOUTS[layout](x), **case.constants), wanted, strict=True):
        assert_close(got, want, dtype)


def check_backward(lrn_within_backward, case, dtype="float64", layout="c_order"):
    x, dy, scale = case.draw(dtype)
    dx = lrn_within_backward(*(LAYOUTS[layout](a) for a in (dy, x, scale)), **case.constants)
    assert_close(dx, naive.lrn_within_backward(dy, x, scale, **case.constants), dtype)


@every_case
@every_dtype
@every_layout
def test_the_operation_is_its_formula(case, dtype, layout):
    check_forward(lrn_within_forward, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_the_gradient_is_its_formula(case, dtype, layout):
    check_backward(lrn_within_backward, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.LRN_WITHIN_FORWARD)
def test_a_wrong_normalisation_is_caught(twin):
    assert_caught(check_forward, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.LRN_WITHIN_BACKWARD)
def test_a_wrong_gradient_is_caught(twin):
    assert_caught(check_backward, twin, CASES)


@every_case
def test_the_gradient_is_the_slope_of_the_loss(case):
    x, dy, scale = case.draw()
    dx = lrn_within_backward(dy, x, scale, **case.constants)
    assert_gradient(lambda x: np.vdot(dy, lrn_within_forward(x, **case.constants)[0]), x, dx, np.random.default_rng(1))


@pytest.mark.parametrize("case", [case for case in CASES if case.shape[0] and case.size < 9], ids=str)
@every_dtype
def test_pytorch_agrees_by_averages_with_alpha_size_squared_times_ours(case, dtype):
    """Caffe's own definition: x (1 + alpha mean)^-beta, the mean over the whole square, zeros beyond the edge."""
    torch = oracle("torch")
    x, dy, scale = case.draw(dtype)
    maps_first = torch.tensor(np.moveaxis(x, -1, 1)).requires_grad_()
    mean = torch.nn.functional.avg_pool2d(maps_first**2, case.size, stride=1, padding=case.size // 2)
    y = maps_first * (1 + case.alpha * case.size**2 * mean) ** -case.beta
    y.backward(torch.tensor(np.moveaxis(dy, -1, 1)))
    got, _ = lrn_within_forward(x, **case.constants)
    assert_close(got, np.moveaxis(y.detach().numpy(), 1, -1), dtype)
    dx = lrn_within_backward(dy, x, scale, **case.constants)
    assert_close(dx, np.moveaxis(maps_first.grad.numpy(), 1, -1), dtype)


def test_the_square_is_cut_off_at_the_edge():
    _, scale = lrn_within_forward(np.ones((1, 4, 3, 1)), size=3, alpha=1.0, beta=1.0)
    assert scale[0, :, :, 0].tolist() == [[5, 7, 5], [7, 10, 7], [7, 10, 7], [5, 7, 5]]


def test_maps_do_not_see_each_other():
    x = np.zeros((1, 3, 3, 3))
    x[0, 1, 1, 1] = 2
    _, scale = lrn_within_forward(x, size=3, alpha=0.5)
    assert scale[0, 0, 0].tolist() == [1, 3, 1]


def test_the_scale_of_one_image_serves_many_signals():
    x, _, scale = Case((1, 3, 4, 2)).draw()
    dy = np.random.default_rng(3).normal(size=(4, 3, 4, 2))
    together = lrn_within_backward(dy, x, scale, alpha=0.5)
    one_by_one = [lrn_within_backward(dy[i : i + 1], x, scale, alpha=0.5) for i in range(4)]
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))


@pytest.mark.parametrize("size", [4, 0, -1])
def test_the_side_must_be_odd_and_positive(size):
    x = np.ones((1, 3, 3, 1))
    with pytest.raises(ValueError, match=f"lrn_within_forward: size is {size} and x .* it needs an odd side"):
        lrn_within_forward(x, size=size)
    with pytest.raises(ValueError, match=f"lrn_within_backward: size is {size} and x .* it needs an odd side"):
        lrn_within_backward(x, x, x, size=size)


def test_shapes_that_do_not_fit_are_refused():
    x = np.ones((2, 3, 3, 1))
    with pytest.raises(ValueError, match=r"lrn_within_forward: size is 3 and x \(3, 3, 1\); .* \(N, H, W, C\)"):
        lrn_within_forward(x[0])
    with pytest.raises(ValueError, match=r"lrn_within_backward: dy is .* they must be alike"):
        lrn_within_backward(x, x[:, :2], x[:, :2])


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    x = np.ones((1, 3, 3, 1), dtype)
    with pytest.raises(TypeError, match=f"lrn_within_forward: got x {dtype}; all must be float32 or all float64"):
        lrn_within_forward(x)
    with pytest.raises(TypeError, match=f"lrn_within_backward: got dy {dtype}, x {dtype}, scale {dtype}; all must be"):
        lrn_within_backward(x, x, x)
