"""What `make torture` runs: files broken in every way, in children that may crash without harm to anyone.

A child takes one file after the other and reports on each; the parent sees at which it died or hung, notes that, and
has another child go on behind it.
"""

import os
import resource
import select
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

MEMORY = 2 << 30  # address space that a child may use beyond what it had when it was forked
SECONDS = 5.0
NOTABLE = (0, 1, 0x7F, 0x80, 0xFF, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)


@dataclass
class Verdict:
    """How often each outcome came, and the numbers of the cases that had a bad one."""

    outcomes: Counter = field(default_factory=Counter)
    bad: dict[str, list[int]] = field(default_factory=dict)

    def add(self, outcome: str, case: int, *, bad: bool) -> None:
        """Count it."""
        self.outcomes[outcome] += 1
        if bad:
            self.bad.setdefault(outcome, []).append(case)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to eight changes of the kinds that find bugs in readers of binary files."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9) if rng.random() < 0.5 else 1):
        if not changed:
            break
        at = int(rng.integers(len(changed)))
        match rng.integers(9):
            case 0:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at] = int(rng.integers(256))
            case 2:  # a number where a size or an address may be
                size = int(rng.choice((1, 2, 4, 8)))
                at -= at % size
                value = NOTABLE[rng.integers(len(NOTABLE))]
                changed[at : at + size] = value.to_bytes(8, "little")[:size]
            case 3:  # a little more or less
                size = int(rng.choice((1, 2, 4, 8)))
                at -= at % size
                old = int.from_bytes(changed[at : at + size], "little")
                new = (old + int(rng.integers(-16, 17))) % (1 << (8 * size))
                changed[at : at + size] = new.to_bytes(size, "little")
            case 4:
                del changed[at:]
            case 5:
                del changed[at : at + int(rng.integers(1, 64))]
            case 6:
                start = int(rng.integers(len(changed)))
                piece = changed[start : start + int(rng.integers(1, 256))]
                changed[at : at + len(piece)] = piece
            case 7:
                changed[at:at] = rng.bytes(int(rng.integers(1, 32)))
            case 8:
                length = int(rng.integers(1, 512))
                changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)


def run(count: int, case: Callable[[int], str], *, seconds: float = SECONDS, until: float = float("inf")) -> Verdict:
    """Call ``case(number)`` for all numbers below ``count`` in children; it gives the outcome, "! ..." for a bad one.

    A child that dies, or takes too long for a case, makes that case bad; ``until`` (`time.monotonic`) ends it early.
    """
    verdict, number = Verdict(), 0
    while number < count and time.monotonic() < until:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _work(writer, range(number, count), case)
        os.close(writer)
        number = _watch(child, reader, number, verdict, seconds, until)
        os.close(reader)
    return verdict


def _work(writer: int, numbers: range, case: Callable[[int], str]) -> None:
    """In the child: all cases, and never a return."""
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            try:
                outcome = case(number)
            except BaseException as error:
                outcome = f"! {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            os.write(writer, outcome.encode(errors="replace").replace(b"\n", b" ")[:1000] + b"\n")
    finally:
        os._exit(0)


def _watch(child: int, reader: int, number: int, verdict: Verdict, seconds: float, until: float) -> int:
    """Read the child's outcomes until it ends; the number of the case to go on with."""
    rest = b""
    while True:
        ready, _, _ = select.select([reader], [], [], seconds)
        data = os.read(reader, 1 << 16) if ready else b""
        if data:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                outcome = line.decode()
                verdict.add(outcome, number, bad=outcome.startswith("!"))
                number += 1
            if time.monotonic() < until:
                continue
        if not ready or data:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if data:
            return number
        if not ready:
            verdict.add(f"! no end within {seconds:g} s", number, bad=True)
        elif os.WIFSIGNALED(status):
            verdict.add(f"! killed by {signal.Signals(os.WTERMSIG(status)).name}", number, bad=True)
        else:
            return number  # it has come to its end
        return number + 1
