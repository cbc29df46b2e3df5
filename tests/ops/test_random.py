"""Every operation on shapes, windows, layouts and dtypes at random: by its formula, linear, and with its adjoint."""

import naive
import numpy as np
import pytest
import test_average
import test_conv
import test_linear
import test_loss
import test_lrn
import test_pool
import test_relu
from conftest import DTYPES, LAYOUTS, assert_adjoint, assert_close
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refnet.geometry import Window, conv_size, pool_size
from refnet.ops import (
    average_forward,
    average_transpose,
    blank_beyond,
    conv_forward,
    conv_grads,
    conv_transpose,
    cross_entropy,
    cut_boxes,
    linear_forward,
    linear_grads,
    linear_transpose,
    lrn_backward,
    lrn_forward,
    paste_boxes,
    pool_forward,
    relu_backward,
    relu_forward,
    unpool,
)
from refnet.ops.average import edge_weights
from refnet.ops.dropout import dropout_forward, dropout_mask
from refnet.ops.loss import softmax

pytestmark = pytest.mark.usefixtures("dirty_memory")

few, side, images = st.integers(1, 4), st.integers(1, 9), st.integers(0, 3)
sides = st.tuples(side, side)
how = {"dtype": st.sampled_from(DTYPES), "layout": st.sampled_from(sorted(LAYOUTS))}
often = settings(max_examples=400)


@st.composite
def convs(draw):
    """Convolutions with any padding, strides longer than their filters, and groups."""
    groups, size = draw(few), draw(st.integers(1, 5))
    maps, filters = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    window = Window(size, draw(few), draw(st.integers(0, size)))
    hw = draw(sides)
    assume(all(conv_size(n, window) >= 1 for n in hw))
    return test_conv.Case(draw(images), hw, maps, filters, *window, groups)


@st.composite
def pools(draw, case, **more):
    """Regions with less padding than their size, of every rounding."""
    size, hw, ceil = draw(st.integers(1, 5)), draw(sides), draw(st.booleans())
    window = Window(size, draw(few), draw(st.integers(0, size - 1)))
    assume(all(pool_size(n, window, ceil=ceil) >= 1 for n in hw))
    return case(draw(images), hw, draw(few), *window, ceil, *(draw(each) for each in more.values()))


def assert_linear(f, x, z):
    """f(3 x - z) = 3 f(x) - f(z), in float64."""
    want = 3 * f(x) - f(z)
    assert np.abs(f(3 * x - z) - want).max(initial=0) <= 1e-13 * (1 + np.abs(want).max(initial=0)) * max(x.size, 1)


def again(x, seed=2):
    """Other numbers in the shape of x."""
    return np.random.default_rng(seed).normal(size=x.shape)


@often
@given(case=convs(), **how)
def test_convolutions(case, dtype, layout):
    test_conv.check_forward(conv_forward, case, dtype, layout)
    test_conv.check_transpose(conv_transpose, case, dtype, layout)
    test_conv.check_grads(conv_grads, case, dtype, layout)


@often
@given(case=convs())
def test_a_convolution_is_linear_and_its_transpose_the_adjoint(case):
    x, w, b, r = case.draw()

    def up(x):
        return conv_forward(x, w, 0 * b, **case.how)

    def down(r):
        return conv_transpose(r, w, hw=case.hw, **case.how)

    assert_linear(up, x, again(x))
    assert_linear(down, r, again(r))
    assert_adjoint(up, down, x, r)
    # The same of its filters, whose adjoint are their gradients.
    assert_adjoint(
        lambda w: conv_forward(x, w, 0 * b, **case.how), lambda r: conv_grads(x, r, size=case.size, **case.how)[0], w, r
    )


@often
@given(case=pools(test_pool.Case), **how)
def test_pooling_and_unpooling(case, dtype, layout):
    test_pool.check_pool(pool_forward, case, dtype, layout)
    test_pool.check_unpool(unpool, case, dtype, layout)


@often
@given(case=pools(test_pool.Case))
def test_unpooling_is_linear_and_the_adjoint_of_pooling_at_fixed_switches(case):
    x, r = case.draw(), case.signal()
    _, switches = pool_forward(x, **case.window, ceil=case.ceil)

    def down(r):
        return unpool(r, switches, **case.window, ceil=case.ceil, hw=case.hw)

    assert_linear(down, r, again(r))
    assert_adjoint(lambda x: naive.pool_by_switches(x, switches, **case.window), down, again(x), r)


@often
@given(case=pools(test_average.Case, count_pad=st.booleans()), **how)
def test_averages(case, dtype, layout):
    test_average.check_forward(average_forward, case, dtype, layout)
    test_average.check_transpose(average_transpose, case, dtype, layout)
    test_average.check_weights(edge_weights, case, dtype)


@often
@given(case=pools(test_average.Case, count_pad=st.booleans()))
def test_averaging_is_linear_and_its_transpose_the_adjoint(case):
    x, r = case.draw(), case.signal()

    def up(x):
        return average_forward(x, **case.how)

    def down(r):
        return average_transpose(r, **case.how, hw=case.hw)

    assert_linear(up, x, again(x))
    assert_linear(down, r, again(r))
    assert_adjoint(up, down, x, r)


@given(case=st.builds(test_linear.Case, images, st.integers(1, 9), st.integers(1, 9)), **how)
def test_fully_connected_layers(case, dtype, layout):
    test_linear.check_forward(linear_forward, case, dtype, layout)
    test_linear.check_transpose(linear_transpose, case, dtype, layout)
    test_linear.check_grads(linear_grads, case, dtype, layout)
    x, w, b, r = case.draw()
    assert_adjoint(lambda x: linear_forward(x, w, 0 * b), lambda r: linear_transpose(r, w), x, r)
    assert_adjoint(lambda w: linear_forward(x, w, 0 * b), lambda r: linear_grads(x, r)[0], w, r)


constants = {
    "k": st.sampled_from([1.0, 2.0]), "alpha": st.floats(0.1, 1), "beta": st.sampled_from([0.5, 0.75, 1.0, 1.3]),
}  # fmt: skip


@often
@given(
    case=st.builds(
        test_lrn.Case,
        st.tuples(images, few, few, st.integers(1, 9)),
        n=st.sampled_from([1, 3, 5, 7, 11]),
        **constants,
    ),
    **how,
)
def test_normalisation(case, dtype, layout):
    test_lrn.check_forward(lrn_forward, case, dtype, layout)
    test_lrn.check_backward(lrn_backward, case, dtype, layout)


@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), **how)
def test_rectification(shape, dtype, layout):
    test_relu.check_forward(relu_forward, shape, dtype, layout)
    test_relu.check_backward(relu_backward, shape, dtype, layout)


@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), rate=st.floats(0, 0.9), **how)
def test_dropping_out(shape, rate, dtype, layout):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=shape).astype(dtype), dropout_mask(shape, rate=rate, rng=rng, dtype=dtype)
    y = dropout_forward(LAYOUTS[layout](x), LAYOUTS[layout](mask))
    assert_close(y, naive.dropout_forward(x, mask), dtype)


@given(case=st.builds(test_loss.Case, few, st.integers(1, 9), spread=st.floats(0.1, 30)), **how)
def test_losses(case, dtype, layout):
    test_loss.check_softmax(softmax, case, dtype, layout)
    test_loss.check_cross_entropy(cross_entropy, case, dtype, layout)


@often
@given(
    hw=sides,
    size=sides,
    corners=st.lists(st.tuples(st.integers(-12, 12), st.integers(-12, 12)), min_size=1, max_size=5),
    beyond=st.sampled_from([0.0, 1.0]),
)
def test_boxes(hw, size, corners, beyond):
    x, corners = np.random.default_rng(0).normal(size=(3, *hw, 2)), np.array(corners)
    image = np.arange(len(corners)) % 3
    y = cut_boxes(x, image, corners, size=size, beyond=beyond)
    assert_close(y, naive.cut_boxes(x, image, corners, size=size, beyond=beyond))
    got, want = again(np.zeros((len(corners), *hw, 2))), again(np.zeros((len(corners), *hw, 2)))
    paste_boxes(y, corners, got)
    naive.paste_boxes(y, corners, want)
    assert_close(got, want)
    assert_close(blank_beyond(y.copy(), corners, hw=hw), naive.blank_beyond(y, corners, hw=hw))
