"""unfold, fold and scatter."""

import itertools
import math
from typing import NamedTuple

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import DTYPES, LAYOUTS, assert_adjoint, assert_caught, assert_close
from hypothesis import assume, example, given
from hypothesis import strategies as st

from refnet.geometry import Window, conv_size, pool_size
from refnet.ops.windows import (
    add_windows,
    blocks,
    cropped,
    fold,
    group_slices,
    meetings,
    padded,
    scatter,
    unfold,
)

pytestmark = pytest.mark.usefixtures("dirty_memory")


class Case(NamedTuple):
    n: int
    hw: tuple[int, int]
    c: int
    window: Window

    def out_hw(self):
        return tuple(conv_size(length, self.window) for length in self.hw)

    def draw(self, dtype):
        """Maps and unfolded columns."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(self.n, *self.hw, self.c))
        columns = rng.normal(size=(self.n, *self.out_hw(), self.window.size, self.window.size, self.c))
        return x.astype(dtype), columns.astype(dtype)


CASES = [
    Case(2, (5, 4), 3, Window(3)),
    Case(1, (6, 7), 2, Window(3, stride=2, pad=1)),
    Case(2, (9, 8), 1, Window(2, stride=3)),
    Case(1, (4, 6), 2, Window(5, stride=1, pad=2)),
    Case(0, (5, 4), 3, Window(3, pad=1)),
    Case(1, (1, 6), 2, Window(1, stride=2)),
    Case(1, (3, 2), 1, Window(9, pad=4)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def check_unfold(unfold, case, dtype="float64", layout="c_order"):
    x, _ = case.draw(dtype)
    columns = unfold(LAYOUTS[layout](x), out_hw=case.out_hw(), window=case.window)
    assert_close(columns, naive.unfold(x, **case.window._asdict()), dtype, case)


def check_fold(fold, case, dtype="float64", layout="c_order"):
    _, columns = case.draw(dtype)
    x = fold(LAYOUTS[layout](columns), hw=case.hw, window=case.window)
    assert_close(x, naive.fold(columns.astype("float64"), hw=case.hw, **case.window._asdict()), dtype, case)


@every_case
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unfold_is_its_formula(case, dtype, layout):
    check_unfold(unfold, case, dtype, layout)


@every_case
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fold_is_its_formula(case, dtype, layout):
    check_fold(fold, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.UNFOLD)
def test_a_wrong_unfold_is_caught(twin):
    assert_caught(check_unfold, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.FOLD)
def test_a_wrong_fold_is_caught(twin):
    assert_caught(check_fold, twin, CASES)


@every_case
def test_fold_is_the_adjoint_of_unfold(case):
    x, columns = case.draw("float64")
    assert_adjoint(
        lambda x: unfold(x, out_hw=case.out_hw(), window=case.window),
        lambda columns: fold(columns, hw=case.hw, window=case.window),
        x,
        columns,
    )


@every_case
@pytest.mark.parametrize("maps", [slice(None), slice(0, 1)], ids=str)
def test_windows_are_unfolded_into_the_columns_of_a_matrix(case, maps):
    x = case.draw("float32")[0][..., maps]
    want = unfold(x, out_hw=case.out_hw(), window=case.window)
    rows, cells = math.prod(want.shape[:3]), math.prod(want.shape[3:])
    matrix = np.full((rows, cells + 2), 7, "float32")
    inside = matrix[:, 1:-1].reshape(want.shape)
    assert unfold(x, out_hw=case.out_hw(), window=case.window, out=inside) is inside
    np.testing.assert_array_equal(matrix[:, 1:-1], want.reshape(rows, cells))
    assert (matrix[:, [0, -1]] == 7).all()


def test_the_windows_of_a_small_image():
    x = np.arange(9.0).reshape(1, 3, 3, 1)
    columns = unfold(x, out_hw=(2, 2), window=Window(2))
    assert columns.reshape(4, 4).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]


def test_what_hangs_over_the_edge_is_zero():
    x = np.ones((1, 1, 1, 1))
    columns = unfold(x, out_hw=(1, 1), window=Window(3, pad=1))
    assert columns.reshape(3, 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_folding_ones_counts_the_windows_over_each_cell():
    x = fold(np.ones((1, 2, 2, 2, 2, 1)), hw=(3, 3), window=Window(2))
    assert x[0, :, :, 0].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_cells_that_no_window_covers_fold_to_zero():
    x = fold(np.ones((1, 2, 2, 2, 2, 1)), hw=(6, 5), window=Window(2, stride=3))
    assert x[0, :, :, 0].tolist() == [
        [1, 1, 0, 1, 1],
        [1, 1, 0, 1, 1],
        [0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1],
        [1, 1, 0, 1, 1],
        [0, 0, 0, 0, 0],
    ]


windows = st.builds(Window, st.integers(1, 7), st.integers(1, 4), st.integers(0, 4))
sides = st.tuples(st.integers(1, 9), st.integers(1, 5))


@given(hw=sides, window=windows)
def test_any_window_unfolds_and_folds_by_the_formula(hw, window):
    assume(all(conv_size(n, window) >= 1 for n in hw))
    case = Case(2, hw, 3, window)
    check_unfold(unfold, case)
    check_fold(fold, case)


@given(n=st.integers(1, 12), window=windows, ceil=st.booleans())
@example(n=1, window=Window(7, 1, 4), ceil=False)  # cells of the window that lie on the image in no position
def test_meetings_are_wherever_a_cell_of_a_window_lies_on_the_image(n, window, ceil):
    out = pool_size(n, window, ceil=ceil)
    assume(out >= 1)
    met = [
        (i, p, cell)
        for i, (there, cells) in enumerate(meetings(n, out, window))
        for p, cell in zip(range(out)[there], range(n)[cells], strict=True)
    ]
    assert met == list(_meetings(n, out, window))


def _meetings(n, out, window):
    """(offset in the window, output, cell) wherever the cell is in the image."""
    for offset, output in np.ndindex(window.size, out):
        cell = output * window.stride + offset - window.pad
        if 0 <= cell < n:
            yield offset, output, cell


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_scatter_adds_values_at_their_cells_in_their_order(n, shared, dtype):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(n, 4, 3, 2)) * 10.0 ** rng.integers(-9, 9, (n, 4, 3, 2))).astype(dtype)
    cells = rng.integers(0, 5 * 2 * 2, (1 if shared else n, 4, 3, 2), dtype=np.int32)
    want = np.zeros((n, 5, 2, 2), dtype)
    for index, value in np.ndenumerate(values):
        want[index[0]].reshape(-1)[cells[0 if shared else index[0]][index[1:]]] += value
    got = scatter(values, cells, hw=(5, 2))
    np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_cropped_is_the_adjoint_of_padded(pad):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 3, 2)), rng.normal(size=(2, 4 + 2 * pad, 3 + 2 * pad, 2))
    assert padded(x, pad).sum() == pytest.approx(x.sum())
    assert_adjoint(lambda x: padded(x, pad), lambda y: cropped(y, hw=(4, 3), pad=pad), x, y)


def poisoned(x):
    """A copy of ``x`` inside a larger array, and that array, which holds NaN everywhere else."""
    around = np.full([n + 2 for n in x.shape], np.nan)
    inside = around[(slice(1, -1),) * x.ndim]
    inside[...] = x
    return inside, around


@given(hw=sides, size=st.integers(1, 7), stride=st.integers(1, 4))
def test_windows_are_taken_from_their_images_alone_and_added_to_them(hw, size, stride):
    """Strides that lead out of the array would meet the poison around it."""
    assume(size <= min(hw))
    window = Window(size, stride)
    case = Case(2, hw, 3, window)
    x, columns = case.draw("float64")
    inside, around = poisoned(x)
    assert_close(unfold(inside, out_hw=case.out_hw(), window=window), naive.unfold(x, **window._asdict()))
    add_windows(inside, columns, stride=stride)
    assert np.isnan(around).sum() == around.size - x.size
    assert_close(inside.copy(), x + naive.fold(columns, hw=hw, **window._asdict()))


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("most", [1, 7, 12, 13, 40, 1000])
def test_blocks_hold_every_row_once_and_no_more_than_allowed(n, most):
    p, q = 3, 4
    met = []
    for images, rows in blocks(n, (p, q), most):
        count = (images.stop - images.start) * (rows.stop - rows.start)
        assert count * q <= most or count == 1
        assert images.stop - images.start == 1 or rows == slice(0, p)
        met += itertools.product(range(n)[images], range(p)[rows])
    assert met == list(itertools.product(range(n), range(p)))


def test_blocks_are_as_large_as_they_may_be():
    assert [each for each, _ in blocks(5, (3, 4), 40)] == [slice(0, 3), slice(3, 5)]
    assert [each for _, each in blocks(1, (5, 4), 11)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(blocks(1, (2, 9), 8)) == [(slice(0, 1), slice(0, 1)), (slice(0, 1), slice(1, 2))]


def test_groups_have_their_share_of_maps_and_filters():
    assert list(group_slices(4, 6, 2)) == [(slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 6))]
    assert list(group_slices(3, 2, 1)) == [(slice(0, 3), slice(0, 2))]
