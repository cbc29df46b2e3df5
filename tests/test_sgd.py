"""Gradient descent: momentum, weight decay and the filters' RMS clip."""

import copy

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import DTYPES, TOLERANCE, CupyArray, assert_caught

from refnet import sgd

SHAPES = {"conv1": {"w": (3, 3, 2, 4), "b": (4,)}, "fc8": {"w": (5, 3), "b": (3,)}}
# rate, momentum and decay of three steps one after the other
SCHEDULE = [(0.1, 0.9, 0.05), (0.01, 0.8, 0.05), (0.3, 0.0, 0.0)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def draw(rng, dtype="float64", shapes=SHAPES):
    """Parameters, gradients or velocities."""
    return {
        name: {key: rng.normal(size=shape).astype("float32").astype(dtype) for key, shape in layer.items()}
        for name, layer in shapes.items()
    }


def check_step(step, schedule, dtype="float64"):
    rng = np.random.default_rng(0)
    params, velocity = draw(rng, dtype), draw(rng, dtype)
    wanted_w, wanted_v = copy.deepcopy(params), copy.deepcopy(velocity)
    for rate, momentum, decay in schedule:
        grads = draw(rng, dtype)
        step(params, grads, velocity, rate=rate, momentum=momentum, decay=decay)
        for name, layer in SHAPES.items():
            for key in layer:
                wanted_w[name][key], wanted_v[name][key] = naive.sgd_step(
                    wanted_w[name][key], grads[name][key], wanted_v[name][key],
                    rate=rate, momentum=momentum, decay=decay if key == "w" else 0,
                )  # fmt: skip
    for name, layer in SHAPES.items():
        for key in layer:
            tolerance = TOLERANCE[dtype]
            assert params[name][key].dtype == velocity[name][key].dtype == dtype
            np.testing.assert_allclose(params[name][key], wanted_w[name][key], rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(velocity[name][key], wanted_v[name][key], rtol=tolerance, atol=tolerance)


@every_dtype
def test_steps_are_their_formula(dtype):
    check_step(sgd.step, SCHEDULE, dtype)


@pytest.mark.parametrize("twin", wrong_twins.SGD_STEP)
def test_a_wrong_step_is_caught(twin):
    assert_caught(check_step, twin, [SCHEDULE])


def one_weight(value):
    return {"fc": {"w": np.array([[value]]), "b": np.array([value])}}


def test_two_steps_by_hand():
    """v = mu v - lr (g + wd w), w += v; biases do not decay."""
    params, velocity = one_weight(8.0), one_weight(0.0)
    for _ in range(2):
        sgd.step(params, one_weight(1.0), velocity, rate=0.5, momentum=0.5, decay=0.25)
    # weight: v = -0.5 (1 + 2) = -1.5, w = 6.5; v = -0.75 - 0.5 (1 + 1.625) = -2.0625, w = 4.4375
    assert (params["fc"]["w"].item(), velocity["fc"]["w"].item()) == (4.4375, -2.0625)
    # bias: v = -0.5, b = 7.5; v = -0.25 - 0.5 = -0.75, b = 6.75
    assert (params["fc"]["b"].item(), velocity["fc"]["b"].item()) == (6.75, -0.75)


def test_the_momentum_is_the_paper_s_and_nothing_decays_unless_told():
    params, velocity = one_weight(8.0), one_weight(1.0)
    sgd.step(params, one_weight(0.5), velocity, rate=0.2)
    np.testing.assert_allclose(velocity["fc"]["w"], 0.9 - 0.2 * 0.5)
    np.testing.assert_allclose(params["fc"]["w"], 8.8)


def test_the_gradient_is_left_alone():
    params, grads, velocity = (draw(np.random.default_rng(seed)) for seed in range(3))
    before = copy.deepcopy(grads)
    sgd.step(params, grads, velocity, rate=0.1, decay=0.1, clip=0.1)
    np.testing.assert_equal(grads, before)


def test_weights_that_are_no_c_ordered_array_are_updated_too():
    params, velocity = {"fc": {"w": np.ones((3, 4)).T}}, {"fc": {"w": np.zeros((3, 4)).T}}
    sgd.step(params, {"fc": {"w": np.ones((4, 3))}}, velocity, rate=0.25)
    assert (params["fc"]["w"] == 0.75).all()
    assert (velocity["fc"]["w"] == -0.25).all()


def test_the_bits_do_not_depend_on_the_number_of_threads():
    shapes = {"conv1": {"w": (5, 5, 16, 32), "b": (32,)}, "fc6": {"w": (700, 900), "b": (900,)}}
    results = []
    for threads in (1, 2, 4):
        params, grads, velocity = (draw(np.random.default_rng(seed), "float32", shapes) for seed in range(3))
        counts = sgd.step(params, grads, velocity, rate=0.1, decay=5e-4, clip=0.9, threads=threads)
        arrays = [each[name][key] for each in (params, velocity) for name in shapes for key in ("w", "b")]
        results.append((counts, [array.tobytes() for array in arrays]))
    assert results[0] == results[1] == results[2]


def test_velocities_start_at_zero():
    params = draw(np.random.default_rng(0), "float32")
    velocity = sgd.zeros_like(params)
    for name, layer in params.items():
        for key, array in layer.items():
            assert (velocity[name][key].shape, velocity[name][key].dtype) == (array.shape, array.dtype)
            assert not velocity[name][key].any()


def check_clip(clip_filters, clip, dtype="float64"):
    rng = np.random.default_rng(0)
    w = rng.normal(0.1, [0.02, 0.1, 0.3, 1.0, 0.0], (5, 5, 3, 5)).astype("float32").astype(dtype)
    wanted, count = naive.clip_filters(w, clip)
    assert 0 < count < 5
    assert clip_filters(w, clip) == count
    np.testing.assert_allclose(w, wanted, rtol=TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize("clip", [0.12, 0.2, 0.5])
def test_the_clip_is_its_formula(clip, dtype):
    check_clip(sgd.clip_filters, clip, dtype)


@pytest.mark.parametrize("twin", wrong_twins.CLIP_FILTERS)
def test_a_wrong_clip_is_caught(twin):
    assert_caught(check_clip, twin, [0.12, 0.2, 0.5])


def test_the_rms_of_a_filter_by_hand():
    """Filters of two weights: 3 and 4 have the RMS sqrt(25 / 2); filters are the last axis."""
    w = np.array([[3.0, 0.1], [4.0, -0.1]]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(sgd.filter_rms(w), [12.5**0.5, 0.1], rtol=1e-15)


def test_a_filter_over_the_clip_is_scaled_back_to_it_and_the_others_keep_their_bits():
    w = np.array([[0.3, 0.05], [0.4, 0.1]]).reshape(2, 1, 1, 2)
    w = np.concatenate([w, 0 * w], axis=1).reshape(2, 2, 1, 2)
    small = w[..., 1].copy()
    assert sgd.clip_filters(w, 0.1) == 1  # sqrt((0.09 + 0.16) / 4) = 0.25, scaled by 0.4
    np.testing.assert_allclose(w[..., 0].ravel(), [0.12, 0, 0.16, 0], rtol=1e-12)
    np.testing.assert_array_equal(w[..., 1], small)


def test_a_filter_just_at_the_clip_is_left_alone():
    w = np.full((3, 3, 2, 2), 0.25)
    assert sgd.clip_filters(w, 0.25) == 0
    assert (w == 0.25).all()


def test_filters_of_zero_stay_zero():
    w = np.zeros((3, 3, 2, 2))
    w[..., 1] = 1
    assert sgd.clip_filters(w, 0.1) == 1
    assert not w[..., 0].any()


def test_a_step_clips_after_the_update_and_only_convolutions():
    params = {"conv1": {"w": np.full((1, 1, 1, 2), 0.05)}, "fc8": {"w": np.full((1, 2), 0.05)}}
    grads = {"conv1": {"w": np.array([-1.0, 0.0]).reshape(1, 1, 1, 2)}, "fc8": {"w": np.array([[-1.0, 0.0]])}}
    counts = sgd.step(params, grads, sgd.zeros_like(params), rate=1.0, clip=0.1)
    assert counts == {"conv1": 1}
    np.testing.assert_allclose(params["conv1"]["w"].ravel(), [0.1, 0.05])
    np.testing.assert_allclose(params["fc8"]["w"].ravel(), [1.05, 0.05])


def test_without_a_clip_nothing_is_clipped():
    params = {"conv1": {"w": np.ones((1, 1, 1, 1))}}
    assert sgd.step(params, {"conv1": {"w": np.zeros((1, 1, 1, 1))}}, sgd.zeros_like(params), rate=1.0) == {}
    assert params["conv1"]["w"].item() == 1


def test_a_clip_of_zero_is_one():
    params = {"conv1": {"w": np.ones((1, 1, 1, 1))}}
    grads = {"conv1": {"w": np.zeros((1, 1, 1, 1))}}
    assert sgd.step(params, grads, sgd.zeros_like(params), rate=1.0, clip=0.0) == {"conv1": 1}
    assert params["conv1"]["w"].item() == 0


@pytest.mark.parametrize("which", ["gradient", "velocity"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "fc/w is missing or not"),
        ({"fc": {"w": np.ones((1, 1))}}, "fc/b is missing or not"),
        ({"fc": {"w": np.ones((2, 1)), "b": np.ones(1)}}, r"fc/w is missing or not \(1, 1\)"),
    ],
)
def test_gradients_and_velocities_must_be_complete(which, wrong, message):
    params, right = one_weight(1.0), one_weight(1.0)
    grads, velocity = (wrong, right) if which == "gradient" else (right, wrong)
    with pytest.raises(ValueError, match=f"sgd: gradient or velocity of {message}"):
        sgd.step(params, grads, velocity, rate=0.1)
    assert params == one_weight(1.0)


def test_dtypes_must_agree():
    half = {"fc": {"w": np.ones((1, 1), "float32"), "b": np.ones(1)}}
    with pytest.raises(TypeError, match="sgd: fc/w: got w float64, g float32, v float64; all must be float32 or all"):
        sgd.step(one_weight(1.0), half, one_weight(0.0), rate=0.1)


def test_mixed_backends_are_refused():
    grads = {"fc": {"w": CupyArray((1, 1), "float64"), "b": np.ones(1)}}
    with pytest.raises(TypeError, match="must all be numpy or all cupy"):
        sgd.step(one_weight(1.0), grads, one_weight(0.0), rate=0.1)
