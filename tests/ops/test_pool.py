"""Max pooling with switches, and unpooling."""

import functools
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
    oracle,
)

from refnet.ops import pool
from refnet.ops.pool import pool_forward, unpool

pytestmark = pytest.mark.usefixtures("dirty_memory")


class Case(NamedTuple):
    n: int
    hw: tuple[int, int]
    c: int = 2
    size: int = 3
    stride: int = 2
    pad: int = 0
    ceil: bool = True

    @property
    def window(self):
        return {"size": self.size, "stride": self.stride, "pad": self.pad}

    def draw(self, dtype="float64"):
        """Maps of few whole numbers, so that ties abound, and most of them negative."""
        return np.random.default_rng(0).integers(-4, 2, (self.n, *self.hw, self.c)).astype(dtype)

    def signal(self, dtype="float64"):
        """A signal on the outputs; the same numbers in either dtype."""
        shape = by_formula(self)[0].shape
        return np.random.default_rng(1).normal(size=shape).astype("float32").astype(dtype)


CASES = [
    Case(2, (7, 6)),
    Case(1, (8, 7), ceil=False),
    Case(2, (5, 9), size=2, stride=2),
    Case(1, (6, 5), size=2, stride=3),
    Case(1, (7, 8), size=3, stride=1, pad=1, ceil=False),
    Case(3, (6, 4), size=4, stride=3, pad=2, c=1),
    Case(1, (2, 11), size=3, stride=2),
    Case(0, (5, 5)),
    Case(1, (2, 3), size=7, stride=1, pad=3, c=1),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@functools.cache
def by_formula(case):
    """y and switches of a case, by the naive loops."""
    return naive.pool_forward(case.draw(), **case.window, ceil=case.ceil)


def check_pool(pool_forward, case, dtype="float64", layout="c_order"):
    y, switches = pool_forward(LAYOUTS[layout](case.draw(dtype)), **case.window, ceil=case.ceil)
    assert_close(y, by_formula(case)[0], dtype, case)
    assert switches.dtype == np.uint8 and switches.flags.c_contiguous
    np.testing.assert_array_equal(switches, by_formula(case)[1])


def check_unpool(unpool, case, dtype="float64", layout="c_order"):
    switches, r = by_formula(case)[1], case.signal(dtype)
    x = unpool(LAYOUTS[layout](r), LAYOUTS[layout](switches), **case.window, ceil=case.ceil, hw=case.hw)
    assert_close(x, naive.unpool(r, switches, **case.window, hw=case.hw), dtype, case)


@every_case
@every_dtype
@every_layout
def test_pool_forward_is_its_formula(case, dtype, layout):
    check_pool(pool_forward, case, dtype, layout)


@every_case
@every_dtype
@every_layout
def test_unpool_is_its_formula(case, dtype, layout):
    check_unpool(unpool, case, dtype, layout)


@pytest.mark.parametrize("twin", wrong_twins.POOL_FORWARD)
def test_a_wrong_pooling_is_caught(twin):
    assert_caught(check_pool, twin, CASES)


@pytest.mark.parametrize("twin", wrong_twins.UNPOOL)
def test_a_wrong_unpooling_is_caught(twin):
    assert_caught(check_unpool, twin, CASES)


@every_case
def test_without_switches_the_maxima_are_the_same(case):
    y, switches = pool_forward(case.draw(), **case.window, ceil=case.ceil, switches=False)
    assert switches is None
    np.testing.assert_array_equal(y, by_formula(case)[0])


def test_images_are_pooled_a_few_at_a_time(monkeypatch):
    x = np.random.default_rng(0).normal(size=(5, 7, 6, 4))
    together = pool_forward(x)
    monkeypatch.setattr(pool, "_AT_A_TIME", 2 * x[0].size)
    for a, b in zip(pool_forward(x), together, strict=True):
        np.testing.assert_array_equal(a, b)


@every_case
def test_unpool_is_the_adjoint_of_pooling_with_fixed_switches(case):
    x, switches = case.draw(), by_formula(case)[1]
    np.testing.assert_array_equal(naive.pool_by_switches(x, switches, **case.window), by_formula(case)[0])
    assert_adjoint(
        lambda x: naive.pool_by_switches(x, switches, **case.window),
        lambda r: unpool(r, switches, **case.window, ceil=case.ceil, hw=case.hw),
        x,
        case.signal(),
    )


@every_case
def test_unpool_is_the_slope_of_the_loss(case):
    x = np.random.default_rng(2).permutation(case.draw().size).reshape(case.draw().shape) * 1.0  # no two are close
    _, switches = pool_forward(x, **case.window, ceil=case.ceil)
    dy = case.signal()
    assert_gradient(
        lambda x: np.vdot(dy, pool_forward(x, **case.window, ceil=case.ceil)[0]),
        x,
        unpool(dy, switches, **case.window, ceil=case.ceil, hw=case.hw),
        np.random.default_rng(3),
    )


# PyTorch takes no padding of more than half a window.
@pytest.mark.parametrize("case", [case for case in CASES if 2 * case.pad <= case.size], ids=str)
@every_dtype
def test_pytorch_agrees_with_the_maxima_the_switches_and_the_gradient(case, dtype):
    torch = oracle("torch")
    r = case.signal(dtype)
    x = torch.tensor(case.draw(dtype)).permute(0, 3, 1, 2).contiguous().requires_grad_()
    y, cells = torch.nn.functional.max_pool2d(
        x, case.size, case.stride, case.pad, ceil_mode=case.ceil, return_indices=True
    )
    y.backward(torch.tensor(r).permute(0, 3, 1, 2))
    row, col = np.divmod(cells.permute(0, 2, 3, 1).numpy(), case.hw[1])
    _, p, q, _ = np.indices(row.shape)
    wanted = (row - p * case.stride + case.pad) * case.size + col - q * case.stride + case.pad
    got, switches = pool_forward(case.draw(dtype), **case.window, ceil=case.ceil)
    assert_close(got, y.detach().permute(0, 2, 3, 1).numpy(), dtype)
    np.testing.assert_array_equal(switches, wanted)
    back = unpool(r, switches, **case.window, ceil=case.ceil, hw=case.hw)
    assert_close(back, x.grad.permute(0, 2, 3, 1).numpy(), dtype)


def image(*rows):
    """One image of one map."""
    return np.array(rows, np.float64)[None, :, :, None]


def rows(x):
    """The first map of the first image, as lists."""
    return x[0, :, :, 0].tolist()


def test_a_switch_is_row_times_size_plus_column():
    y, switches = pool_forward(image([0, 0, 5], [0, 0, 0], [0, 0, 0]))
    assert (rows(y), rows(switches)) == ([[5]], [[2]])
    y, switches = pool_forward(image([0, 0, 0], [0, 0, 0], [0, 7, 0]))
    assert (rows(y), rows(switches)) == ([[7]], [[7]])


def test_ties_go_to_the_first_cell_in_row_order():
    _, switches = pool_forward(image([1, 1, 9], [9, 1, 9], [1, 9, 1]))
    assert rows(switches) == [[2]]
    _, switches = pool_forward(np.zeros((1, 3, 3, 1)))
    assert rows(switches) == [[0]]


def test_ceil_keeps_the_cells_at_the_border_and_floor_leaves_them_out():
    x = image([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16])
    y, switches = pool_forward(x, ceil=True)
    assert (rows(y), rows(switches)) == ([[11, 12], [15, 16]], [[8, 7], [5, 4]])
    y, switches = pool_forward(x, ceil=False)
    assert (rows(y), rows(switches)) == ([[11]], [[8]])


def test_padding_never_wins():
    y, switches = pool_forward(image([-3, -2], [-5, -4]), size=3, stride=2, pad=1)
    assert (rows(y), rows(switches)) == ([[-2, -2], [-4, -4]], [[5, 3], [2, 0]])


def test_a_cell_that_wins_in_several_windows_gets_their_sum():
    x = np.zeros((1, 5, 5, 1))
    x[0, 2, 2] = 1
    _, switches = pool_forward(x)
    assert rows(switches) == [[8, 6], [2, 0]]
    back = unpool(image([1, 10], [100, 1000]), switches, hw=(5, 5))
    assert back[0, 2, 2, 0] == 1111
    assert back.sum() == 1111


def test_unpool_puts_values_where_the_switches_say_and_zeros_elsewhere():
    switches = np.array([[3, 1]], np.uint8)[None, :, :, None]
    back = unpool(image([5, -6]), switches, size=2, stride=2, hw=(2, 4))
    assert rows(back) == [[0, 0, 0, -6], [0, 5, 0, 0]]


def test_unpool_fills_the_size_it_is_asked_for():
    switches = np.zeros((1, 2, 2, 1), np.uint8)
    for hw in ((4, 4), (5, 5), (4, 5)):
        assert unpool(np.ones((1, 2, 2, 1)), switches, hw=hw).shape == (1, *hw, 1)


def test_the_switches_of_one_image_serve_many_signals():
    case = Case(1, (7, 6))
    switches, r = by_formula(case)[1], np.random.default_rng(4).normal(size=(3, 3, 3, 2))
    together = unpool(r, switches, hw=(7, 6))
    one_by_one = [unpool(r[i : i + 1], switches, hw=(7, 6)) for i in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))


def test_a_switch_can_count_to_255():
    x = np.zeros((1, 16, 16, 1))
    x[0, 15, 15] = 1
    y, switches = pool_forward(x, size=16, stride=16)
    assert (y.item(), switches.item()) == (1, 255)
    assert unpool(y, switches, size=16, stride=16, hw=(16, 16))[0, 15, 15, 0] == 1


def test_the_paper_s_pools_halve_110_to_55_26_to_13_and_13_to_6():
    for before, after in ((110, 55), (26, 13), (13, 6)):
        assert pool_forward(np.zeros((1, before, before, 1)))[0].shape == (1, after, after, 1)


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((7, 6, 2), {}, r"pool_forward: x is \(7, 6, 2\), it needs \(N, H, W, C\)"),
        ((1, 2, 7, 6, 2), {}, r"x is \(1, 2, 7, 6, 2\), it needs \(N, H, W, C\)"),
        ((1, 7, 1, 2), {}, r"does not fit x \(1, 7, 1, 2\)"),
        ((1, 1, 6, 2), {}, r"pool_forward: Window\(size=3, stride=2, pad=0\) does not fit x \(1, 1, 6, 2\)"),
        ((1, 7, 6, 2), {"pad": 3}, r"Window\(size=3, stride=2, pad=3\) does not fit .* pad smaller than size"),
        ((1, 7, 6, 2), {"pad": -1}, r"Window\(size=3, stride=2, pad=-1\) does not fit"),
        ((1, 7, 6, 2), {"stride": 0}, r"Window\(size=3, stride=0, pad=0\) does not fit"),
        ((1, 7, 6, 2), {"size": 0}, r"Window\(size=0, stride=2, pad=0\) does not fit"),
        ((1, 20, 20, 2), {"size": 17}, r"Window\(size=17, .* does not fit .*size at most 16"),
    ],
)
def test_pool_forward_says_what_does_not_fit(shape, how, message):
    with pytest.raises(ValueError, match=message):
        pool_forward(np.zeros(shape), **how)


@pytest.mark.parametrize(
    ("r", "switches", "hw", "message"),
    [
        ((1, 3, 3, 2), (1, 3, 3, 2), (8, 6), r"unpool: r is \(1, 3, 3, 2\) .* pooling \(8, 6\) .* \(N, \(4, 3, 2\)\)"),
        ((2, 3, 3, 2), (3, 3, 3, 2), (7, 6), r"unpool: r is \(2, 3, 3, 2\) and switches \(3, 3, 3, 2\)"),
        ((2, 3, 3, 2), (2, 3, 3, 1), (7, 6), r"unpool: r is \(2, 3, 3, 2\) and switches \(2, 3, 3, 1\)"),
        ((3, 3, 2), (3, 3, 2), (7, 6), r"unpool: r is \(3, 3, 2\) and switches \(3, 3, 2\)"),
        (
            (1, 3, 3, 2),
            (1, 3, 3, 2),
            (1, 6),
            r"unpool: Window\(size=3, stride=2, pad=0\) does not fit x \(1, 1, 6, 2\)",
        ),
    ],
)
def test_unpool_says_what_does_not_fit(r, switches, hw, message):
    with pytest.raises(ValueError, match=message):
        unpool(np.zeros(r), np.zeros(switches, np.uint8), hw=hw)


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"pool_forward: got x {dtype}; all must be float32 or all float64"):
        pool_forward(np.zeros((1, 3, 3, 1), dtype))
    with pytest.raises(TypeError, match=f"unpool: got r {dtype}; all must be float32 or all float64"):
        unpool(np.zeros((1, 1, 1, 1), dtype), np.zeros((1, 1, 1, 1), np.uint8), hw=(3, 3))


def test_switches_must_be_the_bytes_that_pooling_returned():
    with pytest.raises(TypeError, match="unpool: switches are int64, they must be the uint8 that pool_forward"):
        unpool(np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1), np.int64), hw=(3, 3))


def test_mixed_backends_are_refused():
    with pytest.raises(TypeError, match="must all be numpy or all cupy"):
        unpool(np.zeros((1, 1, 1, 1)), CupyArray((1, 1, 1, 1), "uint8"), hw=(3, 3))
