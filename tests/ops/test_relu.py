"""Rectification and its gradient."""

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

from refnet.ops.relu import relu_backward, relu_forward

pytestmark = pytest.mark.usefixtures("dirty_memory")
SHAPES = [(2, 3, 5, 2), (1, 7), (0, 3, 3, 2)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def draw(shape, dtype="float64"):
    """x with many zeros, and dy; the same numbers in either dtype."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=shape).round(), rng.normal(size=shape)
    return x.astype(dtype), dy.astype("float32").astype(dtype)


def check_forward(relu_forward, shape, dtype="float64", layout="c_order"):
    x, _ = draw(shape, dtype)
    assert_close(relu_forward(LAYOUTS[layout](x)), naive.relu_forward(x), dtype)


def check_backward(relu_backward, shape, dtype="float64", layout="c_order"):
    x, dy = draw(shape, dtype)
    y = naive.relu_forward(x).astype(dtype)
    dx = relu_backward(LAYOUTS[layout](dy), LAYOUTS[layout](y))
    assert_close(dx, naive.relu_backward(dy, y), dtype)


@every_shape
@every_dtype
@every_layout
def test_relu_forward_is_its_formula(shape, dtype, layout):
    check_forward(relu_forward, shape, dtype, layout)


@every_shape
@every_dtype
@every_layout
def test_relu_backward_is_its_formula(shape, dtype, layout):
    check_backward(relu_backward, shape, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.RELU_FORWARD)
def test_a_wrong_rectification_is_caught(twin):
    assert_caught(check_forward, twin, SHAPES)


@pytest.mark.parametrize("twin", wrong_twins.RELU_BACKWARD)
def test_a_wrong_gradient_of_the_rectification_is_caught(twin):
    assert_caught(check_backward, twin, SHAPES)


@every_shape
def test_relu_backward_is_the_slope_of_the_loss(shape):
    rng = np.random.default_rng(1)
    x, dy = rng.choice([-1, 1], shape) * rng.uniform(0.1, 1, shape), rng.normal(size=shape)  # away from the kink
    dx = relu_backward(dy, relu_forward(x))
    assert_gradient(lambda x: np.vdot(dy, relu_forward(x)), x, dx, rng)


@every_shape
@every_dtype
def test_pytorch_agrees(shape, dtype):
    torch = oracle("torch")
    x, dy = draw(shape, dtype)
    tensor = torch.tensor(x, requires_grad=True)
    y = torch.relu(tensor)
    y.backward(torch.tensor(dy))
    assert_close(relu_forward(x), y.detach().numpy(), dtype)
    assert_close(relu_backward(dy, relu_forward(x)), tensor.grad.numpy(), dtype)


def test_nothing_passes_at_zero():
    y = relu_forward(np.array([[-1.0, 0.0, 2.0]]))
    assert y.tolist() == [[0, 0, 2]]
    assert relu_backward(np.array([[5.0, 6.0, -7.0]]), y).tolist() == [[0, 0, -7]]


def test_the_result_can_overwrite_the_input_or_go_elsewhere():
    x, elsewhere = np.array([-1.0, 2.0]), np.full(2, 9.0)
    assert relu_forward(x, out=elsewhere) is elsewhere
    assert (elsewhere.tolist(), x.tolist()) == ([0, 2], [-1, 2])
    assert relu_forward(x, out=x) is x
    assert x.tolist() == [0, 2]


def test_the_output_of_one_image_serves_many_signals():
    y, dy = np.array([[0.0, 3.0]]), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert relu_backward(dy, y).tolist() == [[0, 2], [0, 4], [0, 6]]


@pytest.mark.parametrize(("dy", "y"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((2, 3, 1), (2, 3)), ((1, 3), (2, 3))])
def test_shapes_must_agree(dy, y):
    with pytest.raises(ValueError, match=r"relu_backward: dy is \(.*\) but y \(.*\); they must have one shape"):
        relu_backward(np.ones(dy), np.ones(y))


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    x = np.ones((1, 3), dtype)
    with pytest.raises(TypeError, match=f"relu_forward: got x {dtype}; all must be float32 or all float64"):
        relu_forward(x)
    with pytest.raises(TypeError, match=f"relu_backward: got dy {dtype}, y {dtype}; all must be"):
        relu_backward(x, x)


def test_mixed_dtypes_and_backends_are_refused():
    x = np.ones((1, 3), "float32")
    with pytest.raises(TypeError, match="relu_backward: got dy float32, y float64"):
        relu_backward(x, x.astype("float64"))
    with pytest.raises(TypeError, match="relu_forward: got x float32, out float64"):
        relu_forward(x, out=x.astype("float64"))
    with pytest.raises(TypeError, match="must all be numpy or all cupy"):
        relu_backward(x, CupyArray((1, 3)))
