"""What a training step needs is estimated before the first one."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures import images_for, params_of, signal_for

from refnet import backend, memory, models, net
from refnet.arch import Arch, Branch, Conv, Norm, Pool, Relu, SpatialNorm

ROOT = Path(__file__).parents[1]
MEASURE = """
import re, sys
import numpy as np
from refnet import models, net, sgd, train
arch, batch = models.by_name(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
rss = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = rss()
params = net.init_params(arch, rng=rng)
velocity, x = sgd.zeros_like(params), rng.standard_normal((batch, *arch.input), dtype=np.float32)
for _ in range(2):
    train.step(arch, params, velocity, x, np.zeros(batch, int), recipe=train.DEFAULT, rate=1e-3, rng=rng)
ahead = 4 * x.nbytes  # the loader's, which did not run
print(rss() - before + ahead)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(("name", "batch"), [("small", 64), ("mini", 256)])
def test_the_estimate_is_what_a_step_takes(name, batch):
    command = [sys.executable, "-c", MEASURE, name, str(batch)]
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert 0.75 < memory.training_bytes(models.by_name(name), batch) / measured < 1.4


def test_more_images_and_more_threads_need_more():
    needs = [memory.training_bytes(models.SMALL, n, threads=1) for n in (16, 64, 256)]
    assert needs == sorted(set(needs))
    assert memory.training_bytes(models.SMALL, 64, threads=2) > memory.training_bytes(models.SMALL, 64, threads=1)


def test_a_batch_that_does_not_fit_is_told_what_would(monkeypatch):
    there = memory.training_bytes(models.SMALL, 100, threads=1)
    monkeypatch.setattr(memory, "available_bytes", lambda: there)
    assert memory.check_batch(models.SMALL, 100, threads=1) == there
    with pytest.raises(ValueError, match=r"small on 400 images needs about .* GB of memory, .* a batch of 100 fits"):
        memory.check_batch(models.SMALL, 400, threads=1)
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    with pytest.raises(ValueError, match="not even one image fits"):
        memory.check_batch(models.SMALL, 1, threads=1)


def test_this_machine_has_memory():
    assert memory.available_bytes() > 1e7


def test_either_normalisation_keeps_a_scale_beside_its_output():
    def needs(layer):
        arch = Arch("a", (32, 32, 3), (Conv("conv1", 8, 3), layer, Relu("relu1")))
        return memory.training_bytes(arch, 64, threads=1)

    assert needs(SpatialNorm("norm1")) == needs(Norm("norm1")) > needs(Relu("relu0"))


def test_maps_that_are_pooled_need_nothing_whatever_comes_after_them_in_other_paths():
    def needs(*layers):
        return memory.training_bytes(Arch("a", (64, 64, 3), layers), 64, threads=1)

    conv, relu, pool = Conv("conv1", 32, 3, pad=1), Relu("relu1"), Pool("pool1", 2, 2)
    assert needs(conv, relu, pool) < 0.6 * needs(conv, relu, Norm("norm1"), pool)
    paths = (Pool("pool", 3, 1, pad=1, ceil=False), Conv("left", 2, 1)), (Conv("right", 2, 1),)
    one, other = (needs(conv, Branch("branch", each), relu) for each in (paths, paths[::-1]))
    assert one == other > needs(conv, Branch("branch", paths), relu, pool)


def test_a_training_run_keeps_no_maps_that_are_pooled():
    """Those of mini's first convolution alone, which relu would keep, are more than all the rest."""
    params, x = params_of(models.MINI, dtype="float32"), images_for(models.MINI, 64, dtype="float32")
    held = []
    for rng in (None, np.random.default_rng(0)):
        before = backend._arena.live_bytes
        y, trace = net.forward(models.MINI, params, x, rng=rng, threads=1)
        held.append(backend._arena.live_bytes - before)
        del y, trace
    unpooled = 4 * len(x) * math.prod(models.MINI.shapes()["conv1"])
    assert held[0] - held[1] > 0.9 * unpooled


def test_the_way_back_keeps_no_signals_of_slices_that_have_come_down(monkeypatch):
    """Kept, those of the first convolution alone would be as large as its whole output."""
    arena, n = backend._Arena(), 256
    monkeypatch.setattr(backend, "_arena", arena)
    params = params_of(models.MINI, dtype="float32")
    x, dy = (f(models.MINI, n, dtype="float32") for f in (images_for, signal_for))
    _, trace = net.forward(models.MINI, params, x, threads=1)
    kept = arena.peak_bytes = arena.live_bytes
    net.backward(trace, params, dy, input_grad=False)
    whole = 4 * n * math.prod(models.MINI.shapes()["conv1"])
    assert arena.peak_bytes - kept < 2.1 * whole  # 1.8; with them 2.4
