"""Slices of a batch on threads.

Where the slices are cut, and the order in which their results are added, depend on shapes alone, never on the
number of threads; so neither do the bits of the result.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import numpy as np

from refnet.backend import Array, array_module, cores, one_blas_thread

Part = TypeVar("Part")
Result = TypeVar("Result")


def cut(n: int, size: int, *, multiple: int = 1) -> list[slice]:
    """``n`` items in consecutive slices of nearly equal length, at most ``size`` each.

    Their number is a ``multiple`` of one that threads share evenly, as long as there are so many items.
    """
    count = min(-(-n // (size * multiple)) * multiple, n)
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def run(
    work: Callable[[Part], Result], parts: Sequence[Part], *, threads: int | None = None, like: Array = None
) -> list[Result]:
    """``[work(part) for part in parts]`` on ``threads`` threads (default: all cores), one BLAS thread each.

    ``work`` must not call `run` itself. The first exception is raised once the parts already started have ended.
    Work on arrays like ``like`` that are on a GPU stays on this thread, whose device it is.
    """
    if array_module(like) is not np:
        return [work(part) for part in parts]
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, it needs 1 or more")
    threads = min(threads or cores(), len(parts))
    with one_blas_thread():
        if threads <= 1:
            return [work(part) for part in parts]
        futures = [_pool(threads).submit(work, part) for part in parts]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for future in futures:
                if not future.cancelled():
                    future.exception()
            raise


def begin(work: Callable[[], Result]) -> Callable[[], Result]:
    """Start ``work`` on a thread of its own; what is returned waits for its result."""
    return _pool(1).submit(work).result


@cache
def _pool(threads: int) -> Executor:
    return ThreadPoolExecutor(threads, thread_name_prefix="refnet")


def ahead(
    work: Callable[[Part], Result], parts: Iterable[Part], *, ahead: int, threads: int | None = None
) -> Generator[Result, None, None]:
    """``work(part)`` for each part, in order, on threads (default: all cores), at most ``ahead`` parts early.

    ``parts`` is asked for its next one on the consumer's thread. An exception comes out in the place of its result.
    After it, or when the generator is closed, threads end.
    """
    with ThreadPoolExecutor(threads or cores()) as pool:
        yield from in_order(pool, work, parts, ahead=ahead)


def in_order(
    pool: Executor, work: Callable[[Part], Result], parts: Iterable[Part], *, ahead: int
) -> Generator[Result, None, None]:
    """`ahead` on a pool; when the generator is closed, nothing of it is left there."""
    pending: deque[Future[Result]] = deque()
    try:
        for part in parts:
            pending.append(pool.submit(work, part))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        wait(pending)


class OrderedSum:
    """Adds arrays in the order of their index 0, 1, 2, ..., whichever arrives first."""

    def __init__(self) -> None:
        self.total: Array = None
        self._lock = threading.Lock()
        self._early: dict[int, Array] = {}
        self._next = 0

    def add(self, index: int, array: Array) -> int:
        """Take the array of ``index``; it is the sum's from now on. Returns how many have been added up."""
        with self._lock:
            self._early[index] = array
            while self._next in self._early:
                array = self._early.pop(self._next)
                if self.total is None:
                    self.total = array
                else:
                    self.total += array
                self._next += 1
            return self._next
