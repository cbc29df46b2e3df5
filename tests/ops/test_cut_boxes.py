"""Boxes of maps: cut out, pasted, and blanked beyond the edge."""

import naive
import numpy as np
import pytest

from refnet.ops.boxes import blank_beyond, cut_boxes, paste_boxes

# Inside, over each edge, over two, beyond, and larger than the maps (5 x 6).
CORNERS = np.array([(1, 2), (-1, 0), (4, 1), (0, -2), (2, 5), (-2, 5), (5, 6), (-3, -3), (-9, 20)])
SIZES = [(1, 1), (2, 3), (4, 2), (9, 10)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def drawn(*shape, dtype="float64"):
    return (100 * np.random.default_rng(0).random(shape)).astype(dtype)


@every_size
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("beyond", [0, 1])
def test_boxes_are_cut_out_cell_by_cell(size, dtype, beyond):
    x, image = drawn(3, 5, 6, 2, dtype=dtype), np.arange(len(CORNERS)) % 3
    got = cut_boxes(x, image, CORNERS, size=size, beyond=beyond)
    want = naive.cut_boxes(x, image, CORNERS, size=size, beyond=beyond)
    assert got.dtype == want.dtype and np.array_equal(got, want)


@every_size
def test_boxes_are_pasted_cell_by_cell(size):
    y, got = drawn(len(CORNERS), *size, 2), drawn(len(CORNERS), 5, 6, 2)
    want = got.copy()
    paste_boxes(y, CORNERS, got)
    naive.paste_boxes(y, CORNERS, want)
    assert np.array_equal(got, want)


@every_size
def test_what_lies_beyond_is_blanked_cell_by_cell(size):
    y = 1 + drawn(len(CORNERS), *size, 2)
    want = naive.blank_beyond(y, CORNERS, hw=(5, 6))
    assert np.array_equal(blank_beyond(y, CORNERS, hw=(5, 6)), want)


def test_pasting_what_was_cut_changes_nothing():
    x = drawn(len(CORNERS), 5, 6, 2)
    same = x.copy()
    paste_boxes(cut_boxes(x, np.arange(len(x)), CORNERS, size=(3, 3)), CORNERS, same)
    assert np.array_equal(same, x)


def test_no_boxes():
    assert cut_boxes(drawn(1, 5, 6, 2), np.zeros(0, int), np.zeros((0, 2), int), size=(2, 3)).shape == (0, 2, 3, 2)
