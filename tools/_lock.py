"""One process at a time for a weight file, so that two trainings cannot write over each other.

The lock is on a file beside it, which the system lets go when its owner ends, however that ends.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Inside, ``out`` is this process's to write; ValueError with the owner's name if it is another's."""
    path = out.with_name(f".{out.name}.lock")
    handle = _take(path, out)
    try:
        for left in out.parent.glob(f".{out.name}.*.tmp"):  # of an owner that was killed while it wrote
            left.unlink(missing_ok=True)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _take(path: Path, out: Path) -> int:
    """The lock file, opened and locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode(errors="replace")
            os.close(handle)
            raise ValueError(f"{out} is being trained by {owner}; wait for it, or use another --out") from None
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            break
        os.close(handle)  # its last owner has removed it since
    os.ftruncate(handle, 0)
    since = time.strftime("%H:%M:%S on %d %B %Y")
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
    return handle
