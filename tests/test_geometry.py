"""Sizes, receptive fields and boxes, against windows counted and followed one by one."""

import itertools

import naive
import pytest
import wrong_twins
from conftest import assert_caught
from hypothesis import given
from hypothesis import strategies as st

from refnet import models
from refnet.arch import Conv, Pool
from refnet.geometry import Field, Window, clip_box, conv_size, pool_size, receptive_field


@st.composite
def windows(draw):
    """Windows with less padding than their size, as everywhere in refnet."""
    size = draw(st.integers(1, 11))
    return Window(size, stride=draw(st.integers(1, 5)), pad=draw(st.integers(0, size - 1)))


# Every small case, for the twins.
SMALL = [
    (n, Window(size, stride, pad))
    for n, size, stride in itertools.product(range(1, 9), range(1, 5), range(1, 4))
    for pad in range(size)
]


def check_conv_size(conv_size, case):
    n, window = case
    assert max(conv_size(n, window), 0) == len(naive.conv_starts(n, *window))


def check_pool_size(pool_size, case):
    n, window = case
    for ceil in (False, True):
        assert max(pool_size(n, window, ceil=ceil), 0) == len(naive.pool_starts(n, *window, ceil))


@given(n=st.integers(1, 60), window=windows())
def test_conv_size_counts_the_windows_that_fit(n, window):
    check_conv_size(conv_size, (n, window))


@given(n=st.integers(1, 60), window=windows())
def test_pool_size_counts_the_regions(n, window):
    check_pool_size(pool_size, (n, window))


@pytest.mark.parametrize("twin", wrong_twins.CONV_SIZE)
def test_a_wrong_size_of_a_convolution_is_caught(twin):
    assert_caught(check_conv_size, twin, SMALL)


@pytest.mark.parametrize("twin", wrong_twins.POOL_SIZE)
def test_a_wrong_size_of_a_pool_is_caught(twin):
    assert_caught(check_pool_size, twin, SMALL)


@given(n=st.integers(1, 60), window=windows())
def test_with_ceil_the_last_region_starts_inside_the_image(n, window):
    """Caffe's rule."""
    last_start = (pool_size(n, window, ceil=True) - 1) * window.stride - window.pad
    assert last_start < n


@given(n=st.integers(1, 60), window=windows())
def test_with_ceil_no_cell_is_left_out(n, window):
    count = pool_size(n, window, ceil=True)
    if count >= 1 and window.stride <= window.size:
        assert (count - 1) * window.stride - window.pad + window.size >= n


@pytest.mark.parametrize(
    ("n", "window", "floor", "ceil"),
    [
        (110, Window(3, 2), 54, 55),  # pool1
        (26, Window(3, 2), 12, 13),  # pool2
        (13, Window(3, 2), 6, 6),  # pool5
        (4, Window(3, 2), 1, 2),
        (4, Window(2, 2, 1), 3, 3),
        (3, Window(2, 2, 1), 2, 2),  # a third region would start at cell 3, behind the image
        (2, Window(3, 1, 2), 4, 4),
    ],
)
def test_sizes_with_floor_and_ceil(n, window, floor, ceil):
    assert (pool_size(n, window, ceil=False), pool_size(n, window, ceil=True)) == (floor, ceil)


@pytest.mark.parametrize(("n", "size"), [(223, 110), (224, 110), (225, 111)])
def test_two_sizes_give_conv1_s_110(n, size):
    assert conv_size(n, Window(7, 2, 1)) == size


def cells_seen(windows, position):
    """Input cells, in one dimension, that reach a position of the last window, followed down window by window."""
    cells = {position}
    for window in reversed(windows):
        cells = {p * window.stride - window.pad + offset for p in cells for offset in range(window.size)}
    return cells


def stack(arch, layer):
    """The windows of an architecture up to a layer."""
    layers = arch.layers[: arch.index(layer) + 1]
    return [Window(each.size, each.stride, each.pad) for each in layers if isinstance(each, Conv | Pool)]


STACKS = {
    "one window": [Window(5, 2, 1)],
    "two strides": [Window(3, 2), Window(3, 3)],
    "padding below a stride": [Window(3, 1, 1), Window(5, 2, 2), Window(2, 2)],
    "zfnet": stack(models.ZFNET, "pool5"),
    "krizhevsky": stack(models.KRIZHEVSKY, "pool5"),
}


def check_receptive_field(receptive_field, name):
    field = receptive_field(STACKS[name])
    for row, col in [(0, 0), (1, 0), (2, 5)]:
        rows, cols = cells_seen(STACKS[name], row), cells_seen(STACKS[name], col)
        assert field.box(row, col) == (min(rows), min(cols), max(rows) + 1, max(cols) + 1)


@pytest.mark.parametrize("name", STACKS)
def test_a_receptive_field_is_what_reaches_the_position(name):
    check_receptive_field(receptive_field, name)


@pytest.mark.parametrize("twin", wrong_twins.RECEPTIVE_FIELD)
def test_a_wrong_receptive_field_is_caught(twin):
    assert_caught(check_receptive_field, twin, STACKS)


def test_the_receptive_fields_of_the_paper_s_layers():
    layers = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
    fields = [receptive_field(stack(models.ZFNET, layer)) for layer in layers]
    assert [field.size for field in fields] == [7, 11, 27, 43, 75, 107, 139, 171]
    assert [field.stride for field in fields] == [2, 4, 8, 16, 16, 16, 16, 32]
    assert [field.start for field in fields] == [-1, -1, -1, -1, -17, -33, -49, -49]


def test_a_pixel_sees_itself():
    assert receptive_field([]) == Field(size=1, stride=1, start=0)
    assert receptive_field([]).box(3, 4) == (3, 4, 4, 5)


def test_windows_may_come_from_an_iterator():
    assert receptive_field(iter(STACKS["two strides"])) == receptive_field(STACKS["two strides"])


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((2, 3, 5, 6), (2, 3, 5, 6)),
        ((-1, -2, 5, 6), (0, 0, 5, 6)),
        ((2, 3, 11, 12), (2, 3, 10, 8)),
        ((-3, -3, 99, 99), (0, 0, 10, 8)),
    ],
)
def test_a_box_is_clipped_to_the_image(box, clipped):
    assert clip_box(box, (10, 8)) == clipped
