"""Work in other processes: what arrives there, its order, its failures, and what is left of them."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures import bits, noise
from PIL import Image

from refnet import datasets, images, loader, processes

MEAN = np.full((24, 24, 3), 128, np.float32)


def times(factor, part):
    return factor * part, os.getpid()


def identity(value, part):
    return os.getpid(), id(value)


def raising(value, part):
    if part == 3:
        raise ValueError(f"{value} and {part}")
    return part


def dying(value, part):
    if part == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def filled(value, part):
    array, places = part
    array[places] = value
    return type(array).__name__


def test_results_come_in_order_from_other_processes():
    found = list(processes.ahead(times, 7, range(20), ahead=4, threads=2))
    assert [each for each, _ in found] == [7 * i for i in range(20)]
    assert os.getpid() not in {pid for _, pid in found}


def test_what_cannot_be_sent_stays_here():
    closure = functools.cache(lambda: 3)
    assert processes.sent(closure) is None
    assert processes.sent((1, closure)) is None
    found = list(processes.ahead(lambda f, part: (f() * part, os.getpid()), closure, range(4), ahead=1, threads=2))
    assert found == [(3 * i, os.getpid()) for i in range(4)]


def test_what_is_sent_again_is_neither_pickled_nor_unpickled_again():
    value = functools.partial(times, 3)
    there = [each for _ in range(2) for each in processes.ahead(identity, value, range(8), ahead=2, threads=2)]
    assert len(set(there)) <= 2
    assert processes.sent(value) is processes.sent(value)


def test_an_exception_comes_out_in_its_place():
    found = processes.ahead(raising, "it", range(6), ahead=2, threads=2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="it and 3"):
        next(found)


def test_a_process_that_dies_is_said_and_the_next_work_finds_others():
    with pytest.raises(ChildProcessError, match="a process that reads images has died"):
        list(processes.ahead(dying, None, range(6), ahead=2, threads=2))
    assert [each for each, _ in processes.ahead(times, 2, range(3), ahead=2, threads=2)] == [0, 2, 4]


def test_arrays_are_shared_and_nothing_is_written_after_the_end():
    memory = processes.shared((6, 2))
    array = memory.here()
    array[:] = 9
    work = processes.ahead(filled, 5, ((memory, slice(i, i + 1)) for i in range(6)), ahead=2, threads=2)
    assert next(work) == "memmap"
    work.close()
    after = array.copy()
    assert after[0].tolist() == [5, 5] and set(after.ravel().tolist()) == {5, 9}
    time.sleep(0.2)
    np.testing.assert_array_equal(array, after)


def test_no_process_outlives_the_one_that_was_killed():
    code = """
        import os, sys, time
        from refnet import processes
        if __name__ == "__main__":
            print(*processes.ahead(pow, 2, range(3), ahead=2, threads=2), flush=True)
            print(*[each.pid for each in processes._pool(2)._processes.values()], flush=True)
            sys.stdin.readline()
            print(*processes.ahead(pow, 3, range(3), ahead=2, threads=2), flush=True)
            time.sleep(60)
    """
    root = Path(processes.__file__).parents[1]
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline().split() == ["1", "2", "4"]
        pids = [int(each) for each in job.stdout.readline().split()]
        for pid in pids:
            os.kill(pid, signal.SIGINT)  # Ctrl-C goes to all of them, and is its business
        print(file=job.stdin, flush=True)
        assert job.stdout.readline().split() == ["1", "3", "9"]
        job.kill()
    end = time.monotonic() + 10
    while any(running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images of two classes, two of them damaged, too many to keep in memory, as far as the reader knows."""
    root = tmp_path_factory.mktemp("data")
    for i, pixels in enumerate(noise(40)):
        file = root / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
    for name in ("a/04.png", "b/31.png"):
        (root / name).write_bytes(b"no image")
    return root


def batches(data, device):
    how = {"size": 19, "augment": images.Augment(), "mean": MEAN, "scale": 1 / 64, "device": device, "threads": 2}
    for epoch in range(2):
        yield from loader.minibatches(data, batch=3, rng=np.random.default_rng(epoch), **how)
    yield from loader.in_order(data, batch=3, size=19, mean=MEAN, scale=1.0, device=device, threads=2)


@pytest.mark.usefixtures("cupy")
def test_a_gpu_is_fed_from_other_processes_with_the_same(folder):
    data, other = load(folder), load(folder)
    assert processes.sent(data.read)
    got = [(each.x.get(), each.labels, each.indices) for each in batches(data, "cuda")]
    want = list(batches(other, "cpu"))
    assert len(got) == len(want)
    for (x, *rest), each in zip(got, want, strict=True):
        np.testing.assert_allclose(x, each.x, atol=1e-4)
        assert [a.tolist() for a in rest] == [each.labels.tolist(), each.indices.tolist()]
    assert data.skipped == other.skipped and set(data.skipped) == {"a/04.png", "b/31.png"}


def test_the_mean_is_the_same_from_other_processes(folder):
    data, other = load(folder), load(folder)
    mean = loader.mean_image(data, threads=2)
    assert bits(mean) == bits(loader.mean_image(replace(other, read=lambda i: other.read(i))))
    assert data.skipped == other.skipped and set(data.skipped) == {"a/04.png", "b/31.png"}


@pytest.mark.usefixtures("cupy")
def test_after_an_epoch_that_is_left_early_the_next_is_as_ever(folder):
    def begun():
        return loader.in_order(load(folder), batch=4, size=19, mean=MEAN, scale=1.0, device="cuda", threads=2)

    left, again = begun(), begun()
    first = next(left)
    left.close()
    assert bits(next(again).x.get()) == bits(first.x.get())
    again.close()


def load(folder):
    return datasets.load_whole(folder, side=24, cache_bytes=0)
