"""Local response normalisation, with alpha near 0.5: at the paper's 1e-4 an off-by-one window would pass."""

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
    assert_caught,
    assert_close,
    assert_gradient,
    oracle,
)

from refnet.ops import lrn
from refnet.ops.lrn import lrn_backward, lrn_forward

pytestmark = pytest.mark.usefixtures("dirty_memory")


class Case(NamedTuple):
    shape: tuple[int, ...]
    n: int = 5
    k: float = 2.0
    alpha: float = 0.5
    beta: float = 0.75

    @property
    def constants(self):
        return {"n": self.n, "alpha": self.alpha, "beta": self.beta}

    def draw(self, dtype="float64"):
        """x, dy and the scale of x; the same numbers in either dtype."""
        rng = np.random.default_rng(0)
        x, dy = (rng.normal(size=self.shape).astype("float32") for _ in range(2))
        _, scale = naive.lrn_forward(x, k=self.k, **self.constants)
        return x.astype(dtype), dy.astype(dtype), scale.astype(dtype)


CASES = [
    Case((2, 3, 2, 7)),
    Case((1, 2, 3, 6), n=3, k=1.0, alpha=0.4, beta=0.5),
    Case((2, 1, 2, 5), n=1, beta=1.0),
    Case((1, 1, 2, 4), n=9),
    Case((3, 8), n=7, alpha=0.6),
    Case((1, 2, 2, 1)),
    Case((0, 2, 2, 3)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def check_forward(lrn_forward, case, dtype="float64", layout="c_order"):
    x, _, _ = case.draw(dtype)
    wanted = naive.lrn_forward(x, k=case.k, **case.constants)
    y, scale = lrn_forward(LAYOUTS[layout](x), k=case.k, **case.constants)
    assert_close(y, wanted[0], dtype, case)
    assert_close(scale, wanted[1], dtype, case)


def check_backward(lrn_backward, case, dtype="float64", layout="c_order"):
    x, dy, scale = case.draw(dtype)
    wanted = naive.lrn_backward(dy, x, scale, **case.constants)
    dx = lrn_backward(*(LAYOUTS[layout](a) for a in (dy, x, scale)), **case.constants)
    assert_close(dx, wanted, dtype, case)


@every_case
@every_dtype
@every_layout
def test_lrn_forward_is_its_formula(case, dtype, layout):
    check_forward(lrn_forward, case, dtype, layout)


def test_positions_are_taken_a_few_at_a_time(monkeypatch):
    x, dy = np.random.default_rng(0).normal(size=(2, 3, 5, 7, 6))
    y, scale = lrn_forward(x)
    dx = lrn_backward(dy, x, scale)
    monkeypatch.setattr(lrn, "_AT_A_TIME", 4 * 6)
    for a, b in zip((*lrn_forward(x), lrn_backward(dy, x, scale)), (y, scale, dx), strict=True):
        np.testing.assert_array_equal(a, b)


@every_case
@every_dtype
@every_layout
def test_lrn_backward_is_its_formula(case, dtype, layout):
    check_backward(lrn_backward, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.LRN_FORWARD)
def test_a_wrong_normalisation_is_caught(twin):
    assert_caught(check_forward, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.LRN_BACKWARD)
def test_a_wrong_gradient_of_the_normalisation_is_caught(twin):
    assert_caught(check_backward, twin, CASES)


@every_case
def test_lrn_backward_is_the_slope_of_the_loss(case):
    x, dy, scale = case.draw()
    dx = lrn_backward(dy, x, scale, **case.constants)
    assert_gradient(
        lambda x: np.vdot(dy, lrn_forward(x, k=case.k, **case.constants)[0]), x, dx, np.random.default_rng(1)
    )


# PyTorch wants at least one axis after the maps.
@pytest.mark.parametrize("case", [case for case in CASES if len(case.shape) > 2], ids=str)
@every_dtype
def test_pytorch_agrees_with_its_alpha_n_times_ours(case, dtype):
    torch = oracle("torch")
    x, dy, scale = case.draw(dtype)
    maps_first = torch.tensor(np.moveaxis(x, -1, 1)).requires_grad_()
    y = torch.nn.functional.local_response_norm(maps_first, case.n, case.n * case.alpha, case.beta, case.k)
    y.backward(torch.tensor(np.moveaxis(dy, -1, 1)))
    got, _ = lrn_forward(x, k=case.k, **case.constants)
    assert_close(got, np.moveaxis(y.detach().numpy(), 1, -1), dtype)
    assert_close(lrn_backward(dy, x, scale, **case.constants), np.moveaxis(maps_first.grad.numpy(), 1, -1), dtype)


def test_the_window_is_cut_off_at_both_ends():
    x = np.ones((1, 6))
    y, scale = lrn_forward(x, n=5, k=2.0, alpha=0.5, beta=1.0)
    assert scale.tolist() == [[3.5, 4, 4.5, 4.5, 4, 3.5]]
    np.testing.assert_allclose(y, 1 / scale, rtol=1e-15)


def test_a_map_reaches_its_two_neighbours_on_either_side_and_no_further():
    x = np.zeros((1, 7))
    x[0, 3] = 2
    _, scale = lrn_forward(x, n=5, k=1.0, alpha=0.5, beta=0.75)
    assert scale.tolist() == [[1, 3, 3, 3, 3, 3, 1]]


def test_positions_do_not_see_each_other():
    x = np.zeros((1, 2, 2, 1))
    x[0, 0, 0] = 4
    _, scale = lrn_forward(x, k=1.0, alpha=0.5)
    assert scale.ravel().tolist() == [9, 1, 1, 1]


def test_the_defaults_are_krizhevsky_s():
    x = np.full((1, 1), 100.0)
    y, scale = lrn_forward(x)
    assert scale.item() == pytest.approx(2 + 1e-4 * 100**2)
    assert y.item() == pytest.approx(100 * 3**-0.75)


def test_the_usual_exponent_is_the_general_one():
    """-0.75 is two square roots instead of a power."""
    x = np.random.default_rng(2).normal(size=(2, 9))
    usual, near = (lrn_forward(x, alpha=0.5, beta=beta)[0] for beta in (0.75, 0.75 + 1e-13))
    assert_close(usual, near)


def test_the_scale_of_one_image_serves_many_signals():
    x, _, scale = Case((1, 3, 2, 7)).draw()
    dy = np.random.default_rng(3).normal(size=(4, 3, 2, 7))
    together = lrn_backward(dy, x, scale, alpha=0.5)
    one_by_one = [lrn_backward(dy[i : i + 1], x, scale, alpha=0.5) for i in range(4)]
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))


@pytest.mark.parametrize("n", [4, 0, -1])
def test_n_must_be_odd_and_positive(n):
    x = np.ones((1, 3))
    with pytest.raises(ValueError, match=f"lrn_forward: n is {n}, it needs an odd number of maps"):
        lrn_forward(x, n=n)
    with pytest.raises(ValueError, match=f"lrn_backward: n is {n}, it needs an odd number of maps"):
        lrn_backward(x, x, x, n=n)


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    x = np.ones((1, 3), dtype)
    with pytest.raises(TypeError, match=f"lrn_forward: got x {dtype}; all must be float32 or all float64"):
        lrn_forward(x)
    with pytest.raises(TypeError, match=f"lrn_backward: got dy {dtype}, x {dtype}, scale {dtype}; all must be"):
        lrn_backward(x, x, x)


def test_mixed_dtypes_and_backends_are_refused():
    x = np.ones((1, 3), "float32")
    with pytest.raises(TypeError, match="lrn_backward: got dy float32, x float32, scale float64"):
        lrn_backward(x, x, x.astype("float64"))
    with pytest.raises(TypeError, match="must all be numpy or all cupy"):
        lrn_backward(x, CupyArray((1, 3)), x)


@pytest.mark.parametrize(
    ("dy", "x", "scale"),
    [((2, 3), (2, 4), (2, 4)), ((2, 3), (2, 3), (2, 4)), ((2, 3), (2, 3), (1, 3)), ((3, 3), (2, 3), (2, 3))],
    ids=str,
)
def test_shapes_must_agree(dy, x, scale):
    with pytest.raises(ValueError, match=r"lrn_backward: dy is \(.*\), x \(.*\) and scale \(.*\); they must be alike"):
        lrn_backward(np.ones(dy), np.ones(x), np.ones(scale))
