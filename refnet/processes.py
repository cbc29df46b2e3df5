"""Work in other processes. Decoding images holds the interpreter, which everything else in a process waits for then.

What is sent lies in files in memory: a value is unpickled once by each process, an array is mapped by all of them.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache, partial
from itertools import count
from multiprocessing import connection
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from refnet import parallel
from refnet.backend import cores

Part = TypeVar("Part")
Result = TypeVar("Result")


class Sent:
    """Memory that arrives in another process as what ``arrives(number, path, *args)`` makes of it, once."""

    _numbers = count()  # descriptors, and so paths, are used again

    def __init__(self, size: int, arrives: Any, *args: Hashable) -> None:
        self.handle = os.memfd_create("refnet")
        weakref.finalize(self, os.close, self.handle)
        os.ftruncate(self.handle, size)
        self.arrives, self.args = arrives, args
        self.number, self.path = next(self._numbers), f"/proc/{os.getpid()}/fd/{self.handle}"

    def __reduce__(self) -> tuple[Any, ...]:
        return self.arrives, (self.number, self.path, *self.args)

    def here(self) -> Any:
        """The same in this process."""
        return self.arrives.__wrapped__(self.number, self.path, *self.args)


@lru_cache(maxsize=4)
def sent(value: Hashable) -> Sent | None:
    """A value that arrives as itself; None if it cannot be sent, as a closure, or from here, where this is no Linux.

    It is pickled once, so it must not change.
    """
    try:
        pickled = pickle.dumps(value)
        memory = Sent(len(pickled), _unpickled)
    except (AttributeError, TypeError, pickle.PicklingError):
        return None
    with open(memory.handle, "wb", closefd=False) as file:
        file.write(pickled)
    return memory


def shared(shape: tuple[int, ...]) -> Sent:
    """Pixels that all processes can write to; they arrive as an array uint8 of this shape."""
    return Sent(int(np.prod(shape)), _mapped, shape)


@lru_cache(maxsize=4)
def _unpickled(number: int, path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


@lru_cache(maxsize=16)
def _mapped(number: int, path: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.memmap(path, np.uint8, "r+", shape=shape)


def ahead(
    work: Callable[[Any, Part], Result],
    value: Hashable,
    parts: Iterable[Part],
    *,
    ahead: int,
    threads: int | None = None,
) -> Generator[Result, None, None]:
    """``work(value, part)`` for each part, in order, as `refnet.parallel.ahead` does it, in so many processes.

    ``work`` is a function of a module. What cannot be sent (`sent`) stays in this process, on threads.

    Raises
    ------
    ChildProcessError
        If a process has died.
    """
    there = value if isinstance(value, Sent) else sent(value)
    if there is None:
        yield from parallel.ahead(partial(work, value), parts, ahead=ahead, threads=threads)
        return
    pool = _pool(threads or cores())
    try:
        yield from parallel.in_order(pool, partial(work, there), parts, ahead=ahead)
    except BrokenProcessPool:
        _pool.cache_clear()
        raise ChildProcessError(
            "a process that reads images has died; is there too little memory, or no `if __name__ == '__main__':` "
            "in the script?"
        ) from None


@cache
def _pool(size: int) -> ProcessPoolExecutor:
    # Not forked: this process has threads, and maybe a GPU.
    return ProcessPoolExecutor(size, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """In the new process: Ctrl-C is for the one that started it, with which it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
