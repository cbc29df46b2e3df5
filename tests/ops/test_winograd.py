"""The fast twin of the convolution: what `refnet.ops.conv` gives, and where a network takes it."""

import functools
import itertools
from dataclasses import replace
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
)
from fixtures import assert_near, images_for, params_of, signal_for
from hypothesis import assume, example, given
from hypothesis import strategies as st

from refnet import layers, models, net
from refnet.arch import Arch, Conv, Linear, Relu
from refnet.backend import precision
from refnet.geometry import Window, conv_size
from refnet.kernels.conv import _in_tiles
from refnet.ops import winograd
from refnet.ops.conv import conv_forward, conv_grads, conv_transpose
from refnet.ops.tiles import scheme
from refnet.ops.winograd import depth, filters, suits, winograd_forward, winograd_grads, winograd_transpose

pytestmark = pytest.mark.usefixtures("dirty_memory")

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


class Case(NamedTuple):
    n: int
    hw: tuple[int, int]
    maps: int
    filters: int
    size: int = 3
    stride: int = 1
    pad: int = 0
    groups: int = 1

    @property
    def window(self):
        return Window(self.size, self.stride, self.pad)

    @property
    def out_hw(self):
        return tuple(conv_size(length, self.window) for length in self.hw)

    @property
    def fast(self):
        """The keyword arguments of the fast operations."""
        return {"window": self.window, "groups": self.groups}

    @property
    def slow(self):
        """Those of the operations of `refnet.ops.conv`."""
        return {"stride": self.stride, "pad": self.pad, "groups": self.groups}

    def draw(self, dtype="float64"):
        """Maps, filters, biases and a signal on the outputs; the same numbers in either dtype."""
        rng = np.random.default_rng(0)
        shapes = [
            (self.n, *self.hw, self.maps),
            (self.size, self.size, self.maps // self.groups, self.filters),
            (self.filters,),
            (self.n, *self.out_hw, self.filters),
        ]
        return [rng.normal(size=shape).astype("float32").astype(dtype) for shape in shapes]


CASES = [
    Case(2, (5, 4), 3, 4),
    Case(2, (9, 7), 2, 3, pad=1),
    Case(1, (6, 6), 1, 1),  # one whole tile
    Case(1, (3, 18), 2, 2),
    Case(1, (1, 1), 2, 3, pad=1),
    Case(2, (1, 7), 2, 2, pad=2),
    Case(1, (2, 2), 2, 2, stride=1, pad=2),
    Case(2, (6, 5), 4, 6, pad=2, groups=2),
    Case(1, (7, 8), 6, 3, pad=1, groups=3),
    Case(2, (11, 8), 3, 2, 5, stride=2),
    Case(1, (13, 5), 2, 3, 6, stride=2, pad=1),
    Case(1, (13, 21), 2, 2, 6, stride=2),  # two rows that no window sees, in the images that stride 2 cuts
    Case(1, (10, 12), 2, 2, 7, stride=3, pad=2),
    Case(1, (19, 12), 2, 2, 8, stride=3, pad=1),
    Case(1, (20, 9), 1, 2, 9, stride=3),
    Case(1, (18, 9), 2, 3, 9, stride=3, pad=1),  # a row that no window sees, and padding
    Case(1, (9, 18), 2, 3, 9, stride=3, pad=1),  # such a column
    Case(1, (1, 2), 2, 2, 5, stride=2, pad=2),
    Case(2, (9, 12), 4, 4, 5, pad=2),  # 2 x 2 parts
    Case(1, (7, 8), 4, 6, 5, groups=2),
    Case(1, (15, 14), 4, 6, 7, stride=2, pad=1, groups=2),  # parts of blocks of 2 x 2 cells, in groups
    Case(1, (13, 16), 3, 2, 8, pad=3),  # 3 x 3 parts
    Case(2, (6, 5), 3, 2, 1),
    Case(1, (8, 5), 2, 3, 4, stride=3, pad=1),
    Case(0, (5, 4), 3, 4, pad=1),
    Case(0, (9, 8), 3, 2, 5, stride=2),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def assert_closer(got, want, dtype, about=""):
    """As `assert_close`, but within this file's tolerance."""
    assert_close(got, want, dtype, about)
    largest, off = (np.max(np.abs(a), initial=0) for a in (want, got - want))
    assert off <= TOLERANCE[dtype] * largest, f"{about}: off by {off}, the largest value is {largest}"


def by_definition(case):
    """y, x from r, dw and db of a case, by the definitional convolution in float64."""
    x, w, b, r = case.draw()
    y, back = conv_forward(x, w, b, **case.slow), conv_transpose(r, w, hw=case.hw, **case.slow)
    return y, back, *conv_grads(x, r, size=case.size, **case.slow)


@functools.cache
def by_formula(case):
    """The same, by the naive loops."""
    x, w, b, r = case.draw()
    y, back = naive.conv_forward(x, w, b, **case.slow), naive.conv_transpose(r, w, hw=case.hw, **case.slow)
    return y, back, *naive.conv_grads(x, r, size=case.size, **case.slow)


def check_forward(winograd_forward, case, dtype="float64", layout="c_order", want=by_formula, filters=filters):
    x, w, b, _ = (LAYOUTS[layout](a) for a in case.draw(dtype))
    assert_closer(winograd_forward(x, filters(w, case.window), b, **case.fast), want(case)[0], dtype, case)


def check_transpose(winograd_transpose, case, dtype="float64", layout="c_order", want=by_formula):
    _, w, _, r = (LAYOUTS[layout](a) for a in case.draw(dtype))
    x = winograd_transpose(r, filters(w, case.window), hw=case.hw, **case.fast)
    assert_closer(x, want(case)[1], dtype, case)


def check_grads(winograd_grads, case, dtype="float64", layout="c_order", want=by_formula):
    x, _, _, dy = (LAYOUTS[layout](a) for a in case.draw(dtype))
    dw, db = winograd_grads(x, dy, **case.fast)
    assert_closer(dw, want(case)[2], dtype, case)
    assert_closer(db, want(case)[3], dtype, case)


def check_all(case, dtype="float64"):
    """The three against the definitional convolution, which is fast enough for larger cases."""
    want = by_definition(case)
    check_forward(winograd_forward, case, dtype, want=lambda _: want)
    check_transpose(winograd_transpose, case, dtype, want=lambda _: want)
    check_grads(winograd_grads, case, dtype, want=lambda _: want)


def check_filters(filters, case):
    """Filters are right if the convolution with them is."""
    check_forward(winograd_forward, case, filters=filters)


# ------------------------------------------------------------------------------------- it is the convolution


@every_case
@every_dtype
@every_layout
def test_winograd_forward_is_the_convolution(case, dtype, layout):
    check_forward(winograd_forward, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_winograd_transpose_is_transposed_filtering(case, dtype, layout):
    check_transpose(winograd_transpose, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_winograd_grads_are_the_convolutions(case, dtype, layout):
    check_grads(winograd_grads, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.WINOGRAD_FORWARD)
def test_a_wrong_winograd_convolution_is_caught(twin):
    assert_caught(check_forward, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.WINOGRAD_TRANSPOSE)
def test_a_wrong_winograd_transposition_is_caught(twin):
    assert_caught(check_transpose, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.WINOGRAD_GRADS)
def test_wrong_winograd_gradients_are_caught(twin):
    assert_caught(check_grads, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.WINOGRAD_FILTERS)
def test_wrong_transformed_filters_are_caught(twin):
    assert_caught(check_filters, twin, CASES)


@st.composite
def cases(draw):
    """Any filters, on maps of any shape that they fit."""
    stride, size, pad, groups = (draw(st.integers(*ends)) for ends in ((1, 3), (1, 9), (0, 2), (1, 3)))
    n, per_group, filters_per_group = draw(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)))
    hw = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    case = Case(n, hw, groups * per_group, groups * filters_per_group, size, stride, pad, groups)
    assume(min(case.out_hw) >= 1)
    return case


@pytest.mark.parametrize("out_hw", [(4, 4), (1, 3), (8, 13), (10, 5)])
def test_parts_of_what_tiles_meet_are_everything_once_and_do_not_overlap(out_hw):
    blocks = np.zeros((2, out_hw[0] + 2, 2, out_hw[1] + 2, 2, 3))
    times = np.zeros(blocks.shape)
    for tiles, met, _, _ in winograd._pieces(blocks, scheme(out_hw)):
        for part in itertools.product(winograd._apart(tiles, 0), winograd._apart(tiles, 1)):
            cells = met[part]
            cells += 1  # as many times as it should only where no two tiles share a cell
        for row, column in np.ndindex(tiles.counts):
            top, left = (first + 4 * at for first, at in zip(tiles.first, (row, column), strict=True))
            times[:, top : top + tiles.met[0], :, left : left + tiles.met[1]] += 1
    assert times.min() == 1
    np.testing.assert_array_equal(blocks, times)


@given(case=cases())
@example(case=Case(32, (6, 6), 96, 64, pad=1))
@example(case=Case(3, (22, 13), 7, 5, 6, stride=2, pad=5))  # more padding than the paper's
def test_on_maps_of_any_shape_it_is_the_convolution(case):
    check_all(case)


@every_case
def test_winograd_transpose_is_the_adjoint_of_winograd_forward(case):
    x, w, b, r = case.draw()
    u = filters(w, case.window)
    assert_adjoint(
        lambda x: winograd_forward(x, u, 0 * b, **case.fast),
        lambda r: winograd_transpose(r, u, hw=case.hw, **case.fast),
        x,
        r,
    )


@every_case
def test_a_signal_that_is_at_the_points_already_gives_the_same_bits(case):
    x, w, _, r = case.draw()
    z, u = winograd.signal_at_points(r), filters(w, case.window)
    for operation in (
        lambda **known: winograd_transpose(r, u, hw=case.hw, **case.fast, **known),
        lambda **known: winograd_grads(x, r, **case.fast, **known)[0],
    ):
        np.testing.assert_array_equal(operation(z=z), operation())
        assert not z.size or (operation(z=0 * z) == 0).all()


@every_case
def test_winograd_grads_are_the_adjoint_in_the_filters(case):
    x, w, b, dy = case.draw()
    assert_adjoint(
        lambda w: winograd_forward(x, filters(w, case.window), 0 * b, **case.fast),
        lambda dy: winograd_grads(x, dy, **case.fast)[0],
        w,
        dy,
    )


@every_case
def test_winograd_grads_are_the_slope_of_the_loss(case):
    x, w, b, dy = case.draw()
    u, (dw, db) = filters(w, case.window), winograd_grads(x, dy, **case.fast)
    rng = np.random.default_rng(1)

    def loss(w):
        return np.vdot(dy, winograd_forward(x, filters(w, case.window), b, **case.fast))

    assert_gradient(loss, w, dw, rng)
    assert_gradient(lambda b: np.vdot(dy, winograd_forward(x, u, b, **case.fast)), b, db, rng)


# The widest of the paper's convolutions, and conv2, whose filters have a border of zeros.
LARGE = [
    Case(1, (13, 13), 384, 384, pad=1),
    Case(1, (13, 13), 384, 256, pad=1, groups=2),
    Case(1, (55, 55), 96, 256, 5, stride=2),
]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_with_as_many_maps_as_the_papers_float32_still_has_its_digits(case):
    check_all(case, "float32")


def test_a_filter_is_not_flipped_on_the_way_up():
    x, w = np.zeros((1, 3, 3, 1)), np.arange(9.0).reshape(3, 3, 1, 1)
    x[0, 0, 1] = 1
    y = winograd_forward(x, filters(w, Window(3)), np.array([0.5]), window=Window(3))
    assert y.item() == pytest.approx(1.5)


def test_groups_do_not_see_each_other():
    x, w = np.zeros((1, 4, 4, 4)), np.ones((3, 3, 2, 4))
    x[..., :2] = 1
    how = {"window": Window(3), "groups": 2}
    y = winograd_forward(x, filters(w, Window(3)), np.zeros(4), **how)
    assert_near(y, np.broadcast_to([18.0, 18, 0, 0], (1, 2, 2, 4)), 1e-12)
    back = winograd_transpose(np.array([1.0, 0, 0, 0]).reshape(1, 1, 1, 4), filters(w, Window(3)), hw=(3, 3), **how)
    assert_near(back, np.broadcast_to([1.0, 1, 0, 0], (1, 3, 3, 4)), 1e-12)


@every_case
@every_dtype
def test_transformed_filters_are_6_by_6_matrices_of_the_filters_dtype(case, dtype):
    _, w, _, _ = case.draw(dtype)
    u = filters(w, case.window)
    assert (u.shape, u.dtype) == ((6, 6, depth(case.window, case.maps // case.groups), case.filters), w.dtype)


# ------------------------------------------------------------------------------------- what is refused


def calls(x, u, b):
    """Each operation by name, on these arrays."""
    return {
        "winograd_forward": lambda: winograd_forward(x, u, b, window=Window(3)),
        "winograd_transpose": lambda: winograd_transpose(x, u, window=Window(3), hw=(3, 3)),
        "winograd_grads": lambda: winograd_grads(x, u, window=Window(3)),
    }


every_operation = pytest.mark.parametrize("name", ["winograd_forward", "winograd_transpose", "winograd_grads"])


@every_operation
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(name, dtype):
    a = np.ones((1, 3, 3, 1), dtype)
    with pytest.raises(TypeError, match=f"{name}: got .* {dtype}.*; all must be float32 or all float64"):
        calls(a, a, a[0, 0, 0])[name]()


@every_operation
def test_mixed_dtypes_are_refused(name):
    x, u = np.ones((1, 3, 3, 1)), np.ones((6, 6, 1, 1), "float32")
    with pytest.raises(TypeError, match=rf"{name}: got \w+ float64, \w+ float32"):
        calls(x, u, np.ones(1))[name]()


@pytest.mark.parametrize("odd", ["x", "u", "b"])
def test_one_array_of_another_dtype_is_enough(odd):
    a = {"x": np.ones((1, 3, 3, 1)), "u": np.ones((6, 6, 1, 1)), "b": np.ones(1)}
    a[odd] = a[odd].astype("float32")
    with pytest.raises(TypeError, match=rf"winograd_forward: got .*{odd} float32"):
        winograd_forward(**a, window=Window(3))


@every_operation
def test_mixed_backends_are_refused(name):
    x, u = np.ones((1, 3, 3, 1), "float32"), CupyArray((6, 6, 1, 1))
    with pytest.raises(TypeError, match=r"numpy\.ndarray and cupy\.CupyArray: they must all be numpy or all cupy"):
        calls(x, u, np.ones(1, "float32"))[name]()


# ------------------------------------------------------------------------------------- where it pays


def test_maps_of_all_parts_and_cells_lie_side_by_side():
    assert [depth(Window(*each), 10) for each in ((3, 1), (5, 2), (5, 1), (7, 2), (1, 1))] == [10, 40, 40, 160, 10]


def suited(arch):
    """The convolutions of a network that suit."""
    shapes, below = arch.shapes(), arch.input_shapes()
    return [
        layer.name
        for layer in arch.layers
        if isinstance(layer, Conv)
        and suits(layer.window, shapes[layer.name][:2], below[layer.name][2], layer.filters, layer.groups)
    ]


def test_all_of_zfnets_convolutions_suit_but_the_first():
    assert suited(models.ZFNET) == ["conv2", "conv3", "conv4", "conv5"]
    assert suited(models.KRIZHEVSKY) == ["conv2", "conv3", "conv4", "conv5"]
    assert suited(models.SMALL) == ["conv2", "conv3", "conv4", "conv5"]
    assert suited(models.TINY) == []


def test_filters_that_fill_their_blocks_suit():
    windows = [Window(size, stride) for stride in range(1, 5) for size in range(1, 14)]
    assert [(size, stride) for size, stride, _ in windows if suits(Window(size, stride), (16, 16), 512, 512)] == [
        (3, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1), (13, 1),
        (5, 2), (6, 2), (9, 2), (10, 2), (11, 2), (12, 2), (13, 2),
        (7, 3), (8, 3), (9, 3), (13, 3), (9, 4), (10, 4), (11, 4), (12, 4),
    ]  # fmt: skip


def test_few_maps_do_not_suit():
    assert suits(Window(3), (13, 13), 64, 64)
    assert not suits(Window(3), (13, 13), 63, 512)
    assert not suits(Window(3), (13, 13), 512, 63)
    assert suits(Window(5, 2), (13, 13), 16, 64)  # 4 cells each side by side
    assert not suits(Window(5, 2), (13, 13), 15, 64)


def test_groups_need_as_many_maps_each():
    assert suits(Window(3), (13, 13), 128, 128, 2)
    assert not suits(Window(3), (13, 13), 126, 128, 2)
    assert not suits(Window(3), (13, 13), 128, 126, 2)


def test_maps_that_fill_their_tiles_badly_do_not_suit():
    def unsuited(window, **how):
        return [n for n in range(1, 30) if not suits(window, (n, n), 512, 512, **how)]

    assert (unsuited(Window(3)), unsuited(Window(5, 2))) == ([1], [1, 2])
    assert (unsuited(Window(3), narrow=False), unsuited(Window(5, 2), narrow=False)) == ([1, 2, 5], [1, 2, 3, 5, 6, 9])
    assert suits(Window(3), (1, 100), 512, 512) and not suits(Window(5, 2), (100, 1), 512, 512)


def test_a_gpu_has_tiles_for_filters_of_one_part_and_for_groups_at_a_stride_of_1():
    def taken(size, stride, groups=1, side=16):
        return _in_tiles(Window(size, stride), (8, side, side, 512), 512, groups)

    assert taken(3, 1) and taken(3, 1, groups=2) and taken(5, 2)
    assert not taken(5, 1) and not taken(7, 2) and not taken(5, 2, groups=2)
    assert not taken(3, 1, side=5)  # tiles at the edges are whole ones there
    with precision("tf32"):
        assert not taken(3, 1)


# ------------------------------------------------------------------------------------- in a network

# Filters of stride 2 with a border of zeros, 3 x 3, and groups; just wide enough.
WIDE = Arch("wide", (35, 33, 3), (
    Conv("conv1", 16, 4, pad=1), Relu("relu1"),
    Conv("conv2", 64, 5, stride=2, pad=1), Relu("relu2"),
    Conv("conv3", 128, 3, pad=1), Relu("relu3"),
    Conv("conv4", 128, 3, groups=2), Relu("relu4"),
    Linear("fc5", 4),
))  # fmt: skip


MANY = 32  # images: a few to a slice


def with_filters(arch, params, n):
    """The layers that have transformed filters in a batch of n images."""
    at_a_time = {layer.name: s.slices[0].stop for s in net.stages(arch, n) for layer in s.layers}
    return [name for name, p in net.with_filters(arch, params, arch.shapes(), at_a_time, 1).items() if "u" in p]


def test_a_batch_of_zfnets_takes_it_and_an_image_of_tiny_does_not():
    convolutions = {
        name: {key: np.zeros(shape, "float32") for key, shape in shapes.items()}
        for name, shapes in models.ZFNET.param_shapes().items()
        if name.startswith("conv")
    }
    assert with_filters(models.ZFNET, convolutions, 32) == ["conv2", "conv3", "conv4", "conv5"]
    assert with_filters(models.TINY, params_of(models.TINY), 1) == []
    assert with_filters(WIDE, params_of(WIDE), MANY) == ["conv2", "conv3", "conv4"]


def test_transformed_filters_are_those_of_the_parameters():
    params = params_of(WIDE)
    shapes = dict.fromkeys(WIDE.shapes(), (16, 16))
    got = net.with_filters(WIDE, params, shapes, {"conv2": 3, "conv4": 8}, 2)
    assert "u" not in params["conv2"] and "u" not in got["conv3"]
    for layer in ("conv2", "conv4"):
        window = WIDE.layers[WIDE.index(layer)].window
        assert got[layer]["w"] is params[layer]["w"]
        assert_near(got[layer]["u"], filters(params[layer]["w"], window), 1e-15)


def test_a_few_rows_are_not_worth_it():
    params = params_of(WIDE)
    for images, taken in [(2, []), (3, ["conv3"])]:  # 16 tiles each
        got = net.with_filters(WIDE, params, {"conv3": (16, 16, 128)}, {"conv3": images}, 1)
        assert [name for name, p in got.items() if "u" in p] == taken


def test_every_way_through_a_network_takes_it(monkeypatch):
    used = []

    def count(name):
        operation = getattr(layers, name)
        monkeypatch.setattr(layers, name, lambda *args, **how: used.append(name) or operation(*args, **how))

    for name in ("winograd_forward", "winograd_transpose", "winograd_grads"):
        count(name)
    params, x = params_of(WIDE), images_for(WIDE, MANY)
    layers_of = [(stage, layer.name) for stage in net.stages(WIDE, MANY) for layer in stage.layers]
    slices = sum(len(stage.slices) for stage, name in layers_of if name in ("conv2", "conv3", "conv4"))
    net.predict(WIDE, params, x)
    assert used == ["winograd_forward"] * slices
    y, trace = net.forward(WIDE, params, x)
    assert used == ["winograd_forward"] * 2 * slices
    used.clear()
    net.backward(trace, params, y)
    assert sorted(used) == ["winograd_grads"] * slices + ["winograd_transpose"] * slices


def test_a_signal_goes_to_its_points_once_for_both_gradients(monkeypatch):
    made, operation = [], winograd.signal_at_points
    monkeypatch.setattr(winograd, "signal_at_points", lambda r: made.append(r.shape) or operation(r))
    y, trace = net.forward(WIDE, params_of(WIDE), images_for(WIDE, MANY))
    net.backward(trace, params_of(WIDE), y)
    wide = [(stage, layer) for stage in trace.plan for layer in stage.layers if layer.name in trace.filters]
    assert len(made) == sum(len(stage.slices) for stage, _ in wide)


@every_dtype
def test_a_network_gives_the_same_without_it(dtype, monkeypatch):
    params, x = params_of(WIDE, dtype=dtype), images_for(WIDE, MANY, dtype=dtype)
    dy = signal_for(WIDE, MANY, dtype=dtype)

    _, trace = net.forward(WIDE, params, x)  # one for both ways back, as rounding can switch a relu

    def run():
        y, mine = net.forward(WIDE, params, x)
        dx, grads = net.backward(replace(trace, filters=mine.filters), params, dy)
        return {"predicted": net.predict(WIDE, params, x), "y": y, "dx": dx, **grads}

    fast = run()
    monkeypatch.setattr(winograd, "suits", lambda *_: False)
    assert with_filters(WIDE, params, MANY) == []
    slow = run()
    assert_near(fast, slow, TOLERANCE[dtype])
    if dtype == "float32":
        assert (fast["y"] != slow["y"]).any() and (fast["dx"] != slow["dx"]).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"b": (128,)}, "there is no parameter 'w'"),
        ({"w": (3, 3, 64, 128)}, "there is no parameter 'b'"),
        ({"w": (3, 3, 32, 128), "b": (128,)}, "conv_forward: x has 64 maps .* but w filters 32"),
        ({"w": (3, 3, 64, 128), "b": (1,)}, r"conv_forward: b is \(1,\), it needs one value for each filter"),
        ({"w": (3, 3, 64, 64), "b": (128,)}, r"conv_forward: b is \(128,\), it needs one value for each filter"),
    ],
)
def test_filters_that_do_not_fit_are_left_to_the_layer(given, message):
    params = {**params_of(WIDE), "conv3": {key: np.ones(shape) for key, shape in given.items()}}
    assert "conv3" not in with_filters(WIDE, params, MANY)
    with pytest.raises(ValueError, match=f"layer conv3: {message}"):
        net.predict(WIDE, params, images_for(WIDE, MANY))
