"""Training by several processes: the same as by one, whatever their number; and what happens when one of them fails."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import oracle, standin_for_cupy
from fixtures import FORKED, STEPS, batches_for, bits, noise, params_of
from PIL import Image

from refnet import models, net, ranks, sgd, weights
from refnet import train as training
from refnet.arch import Arch, Dropout, Linear, Relu
from refnet.backend import to_device
from refnet.ranks import ALONE, launched, world

TOOLS = Path(__file__).parents[1] / "tools"
TRAIN = TOOLS / "train.py"
EPOCHS, BATCH = 4, 16
# Of layers as wide as these, ranks have some rows each (with three rows, one of four ranks has none); of tiny's own,
# with 12 units, they add up the gradients.
WIDE = [
    Linear("fc6", 256), Relu("relu6"), Dropout("drop6"), Linear("fc7", 256), Linear("fc8", 3), Linear("fc9", 10)
]  # fmt: skip
ARCHS = {"tiny": models.TINY, "wide": Arch("wide", models.TINY.input, (*models.TINY.upto("pool2").layers, *WIDE))}
PATHS = {"PYTHONPATH": os.pathsep.join([str(TOOLS.parent), str(Path(__file__).parent)])}  # of a rank


@pytest.fixture(scope="module")
def mpirun():
    """The start of a command that runs n processes."""
    oracle("mpi4py")
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        assert os.environ.get("REFNET_ORACLES") != "1", "mpirun is missing"
        pytest.skip("mpirun is missing")
    flags = []
    if "Open MPI" in subprocess.run([found, "--version"], capture_output=True, text=True).stdout:
        flags = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    return lambda n: [found, *flags, "-n", str(n)] if n > 1 else []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """80 images to train on in two classes, one of them bad, and 12 to validate."""
    root = tmp_path_factory.mktemp("data")
    for i, pixels in enumerate(noise(92, side=32)):
        path = root / ("train" if i < 80 else "val") / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "train" / "a" / "10.png").write_bytes(b"no image")
    return root


# tiny's gradients are summed; of mini's wide layers ranks have rows, but at the recipe's rate a network as deep makes
# much of rounding in 20 steps.
NETS = {"tiny": ["--arch", "tiny"], "mini": ["--arch", "mini", "--rate", "0.0005"]}
both = pytest.mark.parametrize("name", NETS)


def command(mpirun, n, data, out, *more, name="tiny", epochs=EPOCHS):
    return [
        *mpirun(n), sys.executable, TRAIN, "--data", data, *NETS[name], "--batch", str(BATCH), "--threads", "1",
        "--device", "cpu", "--epochs", str(epochs), "--out", out, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def train(mpirun, data):
    def run(n, out, *more, status=0, **how):
        done = subprocess.run(command(mpirun, n, data, out, *more, **how), capture_output=True, text=True, timeout=120)
        assert done.returncode == status, done.stderr
        return weights.load(out) if status == 0 else done.stderr

    return run


def twenty_steps(arch, group, device="cpu"):
    """Parameters in float64 after 20 steps with dropout, of which each rank has its share; 3 images in a minibatch."""
    group.take_device(device)
    params = net.on_device(params_of(arch), device)
    velocity, recipe = sgd.zeros_like(params), replace(training.DEFAULT, batch=3)
    for step, (x, labels) in enumerate(batches_for(arch, 3)):
        mine = group.share(3)
        training.step(
            arch, params, velocity, to_device(x[mine], device), to_device(labels[mine], device),
            recipe=recipe, rate=0.01, group=group, rng=np.random.default_rng(step), rows=(mine.start, 3), threads=1,
        )  # fmt: skip
    return net.on_host(params)


def flat(params):
    return np.concatenate([a.ravel() for layer in params.values() for a in layer.values()])


def distance(a, b):
    """Of their weights, relative to b's."""
    return np.linalg.norm(flat(a.params) - flat(b.params)) / np.linalg.norm(flat(b.params))


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    return {name: train(1, tmp_path_factory.mktemp("alone") / "w.h5", name=name) for name in NETS}


@both
@pytest.mark.parametrize("n", [2, 4])
def test_n_ranks_give_what_one_gives_and_the_same_bits_again(train, alone, tmp_path, n, name):
    """20 steps, with dropout, the clip, and a bad image in one rank's share."""
    alone = alone[name]
    together, again = (train(n, tmp_path / file, name=name) for file in ("w.h5", "again.h5"))
    off = distance(together, alone)
    assert 0 < off < 1e-5, off  # float32's rounding, of sums in another order
    assert flat(again.params).tobytes() == flat(together.params).tobytes()
    assert (together.ranks, alone.ranks) == (n, 1)
    np.testing.assert_array_equal(together.mean, alone.mean)
    for what, values in alone.history.items():
        if what not in ("seconds", "waited"):
            assert together.history[what] == pytest.approx(values, rel=1e-3), what


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("arch", ARCHS)
def test_twenty_steps_in_float64(mpirun, tmp_path, arch, device, n):
    """Uneven shares, and with four ranks one that has nothing; all ranks have the same bits. CUDA's is the stand-in."""
    out = tmp_path / "params.npz"
    if device == "cuda":
        with standin_for_cupy():  # or skip
            pass
    start = [*mpirun(n), sys.executable, __file__, out, arch, device]
    done = subprocess.run(start, capture_output=True, text=True, timeout=120, env={**os.environ, **PATHS})
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        got = file["params"]
    want = flat(twenty_steps(ARCHS[arch], ALONE))
    assert STEPS == 20 and np.abs(got - want).max() <= 1e-12 * np.abs(want).max()


@pytest.mark.parametrize("arch", [FORKED, *ARCHS.values()], ids=lambda arch: arch.name)
def test_a_rank_without_images_exchanges_in_the_order_of_the_others(arch):
    class Listening(ranks.Group):
        size = 2

        def __init__(self):
            self.heard = []

        def start_sum(self, array):
            self.heard.append(("sum", array.shape))
            return super().start_sum(array)

        def start_exchange(self, array):
            self.heard.append(("exchange", array.shape))
            return super().start_exchange(array)

        def all_rows(self, array):
            self.heard.append(("rows", array.shape[1:]))
            return super().all_rows(array)

    def heard(n):
        group, params = Listening(), params_of(arch, dtype="float32")
        training.step(
            arch, params, sgd.zeros_like(params), np.zeros((n, *arch.input), "float32"), np.zeros(n, int),
            recipe=replace(training.DEFAULT, batch=3), rate=0.01, rng=np.random.default_rng(0), group=group,
            rows=(0, 4),
        )  # fmt: skip
        return group.heard

    kinds = Counter(kind for kind, _ in heard(0))
    assert heard(0) == heard(3)
    layers, by_rows = len(arch.param_shapes()), 4 if arch.name == "wide" else 0
    assert kinds == Counter(sum=2 * (layers - by_rows), exchange=by_rows, rows=2 * by_rows)


@both
def test_a_training_goes_on_with_another_number_of_ranks(mpirun, data, train, alone, tmp_path, name):
    out = tmp_path / "w.h5"
    process = subprocess.Popen(command(mpirun, 2, data, out, name=name), stderr=subprocess.PIPE, text=True)
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # of mpirun itself: what it has started ends with it
    process.communicate()
    time.sleep(1)
    rest = train(1, out, "--resume", name=name)
    assert rest.epoch == EPOCHS and rest.finished
    np.testing.assert_allclose(flat(rest.params), flat(alone[name].params), atol=1e-4)
    assert distance(rest, alone[name]) < 1e-5


def children(pid):
    """Processes that were started by this one, or by those."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(each) for each in found] + [deeper for each in found for deeper in children(int(each))]


def test_a_rank_that_dies_ends_the_job_with_a_clear_line_and_resume_goes_on(mpirun, data, train, tmp_path):
    out = tmp_path / "w.h5"
    process = subprocess.Popen(command(mpirun, 2, data, out, epochs=200), stderr=subprocess.PIPE, text=True)
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    victim = [pid for pid in children(process.pid) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()][-1]
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 30 and process.returncode != 0
    assert "signal 9" in err, err
    assert 0 < weights.load(out).epoch < 200


def test_ctrl_c_ends_the_step_of_all_ranks_and_writes_a_checkpoint(mpirun, data, tmp_path):
    out = tmp_path / "w.h5"
    starter = [sys.executable, TOOLS / "_mpirun.py"]
    process = subprocess.Popen(
        [*starter, *command(mpirun, 2, data, out, epochs=1000)], stderr=subprocess.PIPE, text=True
    )
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and err.count("--resume goes on from it") == 1, err
    stopped = weights.load(out)
    assert 0 < stopped.epoch < 1000 and not stopped.finished and stopped.ranks == 2


def test_an_exception_on_one_rank_ends_all(mpirun, tmp_path):
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from refnet import ranks
with ranks.world() as group:
    if group.rank == 1:
        raise ValueError("what is wrong")
    group.gather(0)
"""
    root = Path(ranks.__file__).parents[1]
    done = subprocess.run(
        [*mpirun(2), sys.executable, "-c", code, root], capture_output=True, text=True, timeout=30
    )  # fmt: skip
    assert done.returncode != 0 and "ValueError: what is wrong" in done.stderr


def test_a_mistake_is_said_once(train, tmp_path):
    err = train(2, tmp_path / "nowhere" / "w.h5", status=2)
    assert err.count("there is no folder") == 1, err


# --- which processes there are ---


def test_alone_a_process_has_everything():
    assert (ALONE.rank, ALONE.size, ALONE.share(7)) == (0, 1, slice(0, 7))
    assert ALONE.gather("x") == ["x"] and ALONE.add(1, 2.5) == (1, 2.5) and ALONE.broadcast(3) == 3
    assert world() is ALONE


def test_shares_are_everything_once():
    group = ranks.Group()
    for size in (1, 2, 3, 7):
        for n in (0, 1, 5, 64):
            shares = []
            for group.rank in range(size):
                group.size = size
                shares += range(n)[group.share(n)]
            assert shares == list(range(n))


@pytest.mark.parametrize(
    ("environ", "size"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, 2),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, 8),
        ({"PMIX_RANK": "0"}, None),
        ({"SLURM_NTASKS": "8"}, 1),  # inside an allocation, but not started by srun
    ],
)
def test_launchers_are_told_by_their_environment(environ, size):
    assert launched(environ) == size


def test_without_mpi4py_the_extra_is_named(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"2 processes were started together, which takes mpi4py .*refnet\[mpi\]"):
        world()


if __name__ == "__main__":
    with world() as together, standin_for_cupy() if sys.argv[3] == "cuda" else nullcontext():
        after = twenty_steps(ARCHS[sys.argv[2]], together, sys.argv[3])
        assert len(set(map(str, together.gather(bits(after))))) == 1
        with pytest.raises(ValueError, match="C order"):
            together.start_exchange(np.zeros((2, 4)).T)
        if together.rank == 0:
            np.savez(sys.argv[1], params=flat(after))
