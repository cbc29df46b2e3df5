"""Reading what can crash or hang its reader: in a process of its own.

libhdf5 runs in circles on some damaged files of the old format, which has no checksums; nothing in the same process can
stop it.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

SECONDS = 30.0  # for a file, and a second more for each of its RATE bytes
RATE = 10_000_000


def apart(read: Callable[..., Result], path: Path, *rest: object) -> Result:
    """``read(path, *rest)`` in a child process; its ValueError and OSError come out here.

    Raises ValueError as well where the child dies or comes to no end.
    """
    seconds = SECONDS + path.stat().st_size / RATE
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(other, read, path, *rest), daemon=True)
    child.start()
    other.close()
    good: bool
    result: Any
    try:
        good, result = mine.recv() if mine.poll(seconds) else (False, ValueError(f"no end within {seconds:.0f} s"))
    except EOFError:
        child.join()
        good, result = False, ValueError(f"its reader died with status {child.exitcode}")
    finally:
        child.kill()
        child.join()
    if not good:
        raise result
    found: Result = result
    return found


def _serve(answer: Connection, read: Callable[..., object], path: Path, *rest: object) -> None:
    """In the child."""
    try:
        answer.send((True, read(path, *rest)))
    except (ValueError, OSError) as error:
        answer.send((False, error))
