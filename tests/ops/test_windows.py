"""unfold, fold and the taps they share with pooling."""

from typing import NamedTuple

import naive
import numpy as np
import pytest
import wrong_twins
from conftest import DTYPES, LAYOUTS, assert_adjoint, assert_caught, assert_close
from hypothesis import assume, given
from hypothesis import strategies as st

from refnet.geometry import Window, conv_size, pool_size
from refnet.ops.windows import fold, taps, unfold

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


@given(hw=st.tuples(st.integers(1, 9), st.integers(1, 5)), window=windows, ceil=st.booleans())
def test_taps_meet_every_cell_under_every_window_exactly_once(hw, window, ceil):
    out_hw = tuple(pool_size(n, window, ceil=ceil) for n in hw)
    assume(min(out_hw) >= 1)
    met = [
        (tap.row, tap.col, p, q, row, col)
        for tap in taps(hw, out_hw, window)
        for p, row in zip(range(out_hw[0])[tap.out[1]], range(hw[0])[tap.cell[1]], strict=True)
        for q, col in zip(range(out_hw[1])[tap.out[2]], range(hw[1])[tap.cell[2]], strict=True)
    ]
    assert sorted(met) == sorted(
        (i, j, p, q, row, col)
        for i, p, row in _meetings(hw[0], out_hw[0], window)
        for j, q, col in _meetings(hw[1], out_hw[1], window)
    )


def _meetings(n, out_n, window):
    """(offset in the window, output, cell) wherever the cell is in the image."""
    for offset, output in np.ndindex(window.size, out_n):
        cell = output * window.stride + offset - window.pad
        if 0 <= cell < n:
            yield offset, output, cell


def test_taps_come_in_row_order():
    order = [(tap.row, tap.col) for tap in taps((4, 4), (2, 2), Window(2, 2))]
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1)]
