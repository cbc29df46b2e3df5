"""Whole networks against PyTorch: the same weights and images give the same logits, gradients and trained weights."""

import numpy as np
import pytest
from conftest import oracle
from fixtures import OBLONG, RECIPE, assert_near, batches_for, images_for, params_of, signal_for, train

from refnet import models, net

oracle("torch")
torchnet = oracle("torchnet")

ARCHS = [OBLONG, *models.MODELS.values()]
CONTRAST = {"tiny": 1.0, "oblong": 1.0}  # of the images; else the paper's, for which LRN has its constants


def name_of(arch):
    return arch.name


@pytest.fixture(scope="module", params=ARCHS, ids=name_of)
def case(request):
    """A network, its parameters, images, and a gradient of its logits; in float64."""
    arch = request.param
    n = 1 if arch.param_count() > 1e7 else 3
    return arch, params_of(arch), images_for(arch, n, contrast=CONTRAST.get(arch.name, 128.0)), signal_for(arch, n)


def refnet_run(arch, params, x, dy):
    y, trace = net.forward(arch, params, x)
    return y, *net.backward(trace, params, dy)


def test_logits_and_all_gradients_in_float64(case):
    for got, expected in zip(refnet_run(*case), torchnet.run(*case), strict=True):
        assert_near(got, expected, 1e-12)


def test_logits_and_all_gradients_in_float32(case):
    """Where the two largest values of a region differ by rounding alone, its gradient may go to either.

    Large networks have enough regions for that to happen, and one is enough to change all gradients below it.
    """
    arch, params, x, dy = case
    params = {layer: {key: a.astype(np.float32) for key, a in each.items()} for layer, each in params.items()}
    x, dy = x.astype(np.float32), dy.astype(np.float32)
    y, dx, grads = refnet_run(arch, params, x, dy)
    torch_y, torch_dx, torch_grads = torchnet.run(arch, params, x, dy)
    assert {a.dtype for a in (y, dx, *(g for each in grads.values() for g in each.values()))} == {np.dtype("float32")}
    tolerance = 1e-4 if arch.param_count() < 1e6 else 5e-2
    assert_near(y, torch_y, 1e-5)
    assert_near(dx, torch_dx, tolerance)
    assert_near(grads, torch_grads, tolerance)


@pytest.mark.parametrize(
    "arch", [models.TINY, models.MINI, models.SMALL, pytest.param(models.ZFNET, marks=pytest.mark.slow)], ids=name_of
)
def test_20_sgd_steps_end_at_the_same_weights(arch):
    batches = batches_for(arch, 1 if arch is models.ZFNET else 4)
    start, trained = params_of(arch), params_of(arch)
    clipped = train(arch, trained, batches)
    by_torch = torchnet.train(arch, start, batches, **RECIPE)
    for layer, each in trained.items():
        for key, w in each.items():
            assert np.abs(w - by_torch[layer][key]).max() < 1e-8, (layer, key)
            assert np.abs(w - start[layer][key]).max() > 1e-3 * np.abs(start[layer][key]).max(), (layer, key)
    assert sum(clipped[1:]) > 0  # beyond the first step's, which cuts what He draws
