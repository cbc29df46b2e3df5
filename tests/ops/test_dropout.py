"""Dropout's masks and their product."""

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import DTYPES, LAYOUTS, OTHER_DTYPES, CupyArray, assert_caught, assert_close

from refnet.ops.dropout import dropout_forward, dropout_mask

pytestmark = pytest.mark.usefixtures("dirty_memory")
RATES = [0.2, 0.5, 0.75, 0.0]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def check_mask(dropout_mask, rate, dtype="float64"):
    """So many values are 0, in no regular places, and the others make up for them."""
    mask = dropout_mask((200, 300), rate=rate, rng=np.random.default_rng(0), dtype=dtype)
    assert (mask.shape, mask.dtype, mask.flags.c_contiguous) == ((200, 300), np.dtype(dtype), True)
    assert set(np.unique(mask).tolist()) <= {0, np.dtype(dtype).type(1) / np.dtype(dtype).type(1 - rate)}
    dropped = mask == 0
    assert abs(dropped.mean() - rate) < 0.01
    assert abs(dropped.mean(axis=0) - rate).max() < 0.15
    assert abs(dropped.mean(axis=1) - rate).max() < 0.15
    assert abs(mask.mean() - 1) < 0.02


@every_dtype
@pytest.mark.parametrize("rate", RATES)
def test_a_mask_drops_its_share_and_scales_the_rest(rate, dtype):
    check_mask(dropout_mask, rate, dtype)


@pytest.mark.parametrize("twin", wrong_twins.DROPOUT_MASK)
def test_a_wrong_mask_is_caught(twin):
    assert_caught(check_mask, twin, RATES)


def test_a_value_is_dropped_when_its_draw_is_below_the_rate():
    class Draws:
        def random(self, shape, dtype):
            assert (shape, dtype) == ((1, 4), np.float32)
            return np.array([[0.0, 0.74, 0.75, 0.99]], dtype)

    assert dropout_mask((1, 4), rate=0.75, rng=Draws(), dtype="float64").tolist() == [[0, 0, 4, 4]]


def test_both_dtypes_see_the_same_draws():
    masks = [dropout_mask((5, 40), rate=0.5, rng=np.random.default_rng(3), dtype=dtype) for dtype in DTYPES]
    np.testing.assert_array_equal(*masks)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5), (1, 2, 3, 2), (0, 4)], ids=str)
def test_dropout_forward_is_its_formula(shape, dtype, layout):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    mask = dropout_mask(shape, rate=0.4, rng=rng, dtype=dtype)
    y = dropout_forward(LAYOUTS[layout](x), LAYOUTS[layout](mask))
    assert_close(y, naive.dropout_forward(x, mask), dtype)


def test_at_a_rate_of_one_half_the_kept_values_double():
    assert dropout_forward(np.array([[3.0, 4.0]]), np.array([[2.0, 0.0]])).tolist() == [[6, 0]]


@pytest.mark.parametrize("rate", [1, 1.5, -0.1, float("nan")])
def test_the_rate_must_leave_something(rate):
    with pytest.raises(ValueError, match=f"dropout_mask: rate is {rate}, it needs 0 <= rate < 1"):
        dropout_mask((2, 2), rate=rate, rng=np.random.default_rng(0), dtype="float32")


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    x = np.ones((1, 3), dtype)
    with pytest.raises(TypeError, match=f"dropout_forward: got x {dtype}, mask {dtype}; all must be"):
        dropout_forward(x, x)


def test_mixed_dtypes_and_backends_are_refused():
    x = np.ones((1, 3), "float32")
    with pytest.raises(TypeError, match="dropout_forward: got x float32, mask float64"):
        dropout_forward(x, x.astype("float64"))
    with pytest.raises(TypeError, match="must all be numpy or all cupy"):
        dropout_forward(x, CupyArray((1, 3)))
