"""Slices of a batch on threads: results in order, and the same bits whatever the threads do."""

import itertools
import threading
import time

import numpy as np
import pytest
import wrong_twins
from conftest import assert_caught, blas_threads, on_threads
from hypothesis import given
from hypothesis import strategies as st

from refnet import parallel
from refnet.parallel import OrderedSum, cut, run

every_number_of_threads = pytest.mark.parametrize("threads", [1, 2, 4])


def check_cut(cut, case):
    n, size = case
    slices = cut(n, size)
    assert list(itertools.chain.from_iterable(range(s.start, s.stop) for s in slices)) == list(range(n))
    lengths = [s.stop - s.start for s in slices]
    assert len(slices) == -(-n // size)
    assert max(lengths, default=1) <= size
    assert max(lengths, default=0) - min(lengths, default=0) <= 1


@given(n=st.integers(0, 300), size=st.integers(1, 50))
def test_slices_are_even_no_longer_than_allowed_and_miss_nothing(n, size):
    check_cut(cut, (n, size))


@pytest.mark.parametrize("twin", wrong_twins.CUT)
def test_a_wrong_cut_is_caught(twin):
    assert_caught(check_cut, twin, [(7, 3), (9, 4)])


def test_ten_items_in_slices_of_four():
    assert cut(10, 4) == [slice(0, 3), slice(3, 6), slice(6, 10)]
    assert cut(0, 4) == []


@every_number_of_threads
def test_results_come_in_the_order_of_the_parts(threads):
    def work(part):
        time.sleep(0.002 * (10 - part))  # the last ones are the quickest
        return part * part

    assert run(work, range(10), threads=threads) == [part * part for part in range(10)]


@every_number_of_threads
def test_no_parts_give_no_results(threads):
    assert run(lambda part: part, [], threads=threads) == []


@pytest.mark.parametrize("threads", [2, 4])
def test_parts_run_at_the_same_time(threads):
    together = threading.Barrier(threads, timeout=20)
    assert sorted(run(lambda part: together.wait(), range(threads), threads=threads)) == list(range(threads))


def test_by_default_all_cores_work(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    together = threading.Barrier(3, timeout=20)
    assert sorted(run(lambda part: together.wait(), range(3))) == [0, 1, 2]


def test_one_thread_is_the_caller_s():
    assert run(lambda part: threading.current_thread(), range(3), threads=1) == [threading.current_thread()] * 3


@every_number_of_threads
def test_the_first_exception_is_raised_when_nothing_runs_any_more(threads):
    started, ended = [], []

    def work(part):
        started.append(part)
        try:
            if part in (2, 3):
                raise ValueError(f"part {part}")
            time.sleep(0.01)
        finally:
            ended.append(part)

    with pytest.raises(ValueError, match="part 2"):
        run(work, range(40), threads=threads)
    assert sorted(started) == sorted(ended)
    assert len(started) < 40


@every_number_of_threads
def test_it_works_again_after_an_exception(threads):
    with pytest.raises(ZeroDivisionError):
        run(lambda part: 1 // part, [1, 0, 1], threads=threads)
    assert run(lambda part: 1 // part, [1, 1, 1], threads=threads) == [1, 1, 1]


@every_number_of_threads
@pytest.mark.usefixtures("three_blas_threads")
def test_a_product_runs_on_the_thread_that_asks_for_it(threads):
    assert run(lambda part: blas_threads(), range(4), threads=threads) == [{1}] * 4
    assert blas_threads() == {3}
    with pytest.raises(ZeroDivisionError):
        run(lambda part: 1 // part, [1, 0, 1], threads=threads)
    assert blas_threads() == {3}


ARRIVALS = list(itertools.permutations(range(4)))


def arrays_whose_sum_depends_on_the_order():
    rng = np.random.default_rng(0)
    return [(rng.normal(size=50) * 10.0**power).astype("float32") for power in (0, 7, 3, 5)]


def check_sum(ordered_sum, arrival):
    arrays = arrays_whose_sum_depends_on_the_order()
    a, b, c, d = arrays_whose_sum_depends_on_the_order()
    total = ordered_sum()
    for index in arrival:
        total.add(index, arrays[index])
    assert total.total.tobytes() == (((a + b) + c) + d).tobytes()


@pytest.mark.parametrize("arrival", ARRIVALS, ids=str)
def test_a_sum_has_the_same_bits_whichever_part_comes_first(arrival):
    check_sum(OrderedSum, arrival)


@pytest.mark.parametrize("twin", wrong_twins.ORDERED_SUM)
def test_a_sum_in_order_of_arrival_is_caught(twin):
    assert_caught(check_sum, twin, ARRIVALS)


def test_a_sum_of_nothing_is_none():
    assert OrderedSum().total is None


def many_arrays():
    """A hundred arrays, and the bits of their sum from the first to the last."""
    arrays = list(np.random.default_rng(1).normal(size=(100, 30)).astype("float32"))
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return arrays, total.tobytes()


@every_number_of_threads
def test_a_sum_from_threads_has_the_same_bits(threads):
    arrays, bits = many_arrays()
    total = OrderedSum()
    run(lambda index: total.add(index, arrays[index]), range(100), threads=threads)
    assert total.total.tobytes() == bits


@pytest.mark.usefixtures("restless_threads")
def test_threads_may_add_at_the_same_time():
    arrays, bits = many_arrays()
    total = OrderedSum()

    def add_every_fourth(first):
        for index in range(first, 100, 4):
            total.add(index, arrays[index])

    on_threads(add_every_fourth, range(4))
    assert total.total.tobytes() == bits
