"""Every operation, network and experiment on a GPU against the CPU; without a GPU, on the stand-in for CuPy.

`make test-gpu` runs it on CuPy. The ordinary suite runs all but the large networks on `standin`, which is strict about
what CuPy refuses, and runs the kernels' sources on the CPU.
"""

import importlib
import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

import fixtures
import numpy as np
import pytest
from conftest import DTYPES, assert_close
from fixtures import (
    FLAT,
    OBLONG,
    assert_near,
    bits,
    checkpoint_of,
    drawn,
    flat,
    images_for,
    noise,
    params_of,
    signal_for,
)
from PIL import Image

from refnet import backend, datasets, deconv, evaluate, images, kernels, models, net, occlusion, ops, sgd, train
from refnet.experiments import fig2
from refnet.geometry import Window, conv_size, pool_size
from refnet.ops import winograd
from refnet.ops.dropout import dropout_forward
from refnet.ops.loss import cross_entropy, softmax

pytestmark = pytest.mark.usefixtures("cupy")

TINY, MINI = models.TINY, models.MINI
NEAR = {"float32": 1e-5, "float64": 1e-12}
on_both = pytest.mark.parametrize("op", [ops, kernels], ids=["ops", "kernels"])
both_dtypes = pytest.mark.parametrize("dtype", DTYPES)
every_net = pytest.mark.parametrize("arch", [TINY, OBLONG, FLAT, MINI], ids=lambda arch: arch.name)


def put(x):
    """An array, or what holds arrays, on the device."""
    if isinstance(x, dict):
        return {key: put(each) for key, each in x.items()}
    return backend.to_device(x, "cuda")


def fetch(x):
    """The same back on the host; what is not on the device fails."""
    if isinstance(x, dict):
        return {key: fetch(each) for key, each in x.items()}
    assert type(x).__module__ == "cupy", f"{type(x)} is not on the device"
    return x.get()


def assert_same(got, want):
    """To the bit."""
    np.testing.assert_array_equal(fetch(got), want, strict=True)


# ------------------------------------------------------------------------------------- operations

# n, hw, maps, filters, size, stride, pad, groups; from 64 maps on, 3 x 3 blocks go the way of fewer multiplications.
CONVS = [
    (2, (5, 4), 3, 4, 3, 1, 0, 1), (2, (6, 7), 2, 3, 3, 2, 1, 1), (1, (9, 7), 3, 2, 5, 3, 0, 1),
    (2, (5, 6), 4, 6, 3, 1, 2, 2), (1, (7, 5), 6, 3, 2, 2, 1, 3), (3, (3, 4), 2, 2, 1, 2, 0, 1),
    (1, (11, 12), 8, 4, 7, 2, 1, 1), (0, (5, 4), 3, 4, 3, 1, 1, 1), (1, (3, 2), 1, 2, 9, 1, 4, 1),
    (1, (9, 8), 16, 8, 5, 2, 2, 2), (2, (13, 13), 64, 72, 3, 1, 1, 1), (1, (21, 18), 17, 65, 5, 2, 0, 1),
    (1, (12, 14), 128, 160, 3, 1, 1, 2), (0, (13, 13), 64, 64, 3, 1, 1, 1),
    (1, (14, 13), 64, 64, 5, 1, 2, 1), (1, (21, 18), 128, 128, 5, 2, 0, 2),  # tiles on a CPU, windows on a GPU
]  # fmt: skip


@both_dtypes
@on_both
@pytest.mark.parametrize("at_a_time", ["whole", "one image"])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolution(op, dtype, case, at_a_time, monkeypatch):
    if at_a_time == "one image":
        monkeypatch.setattr(kernels.conv, "_BYTES", 1)
    n, hw, c, m, size, stride, pad, groups = case
    x, w = drawn((n, *hw, c), 1).astype(dtype), drawn((size, size, c // groups, m), 2).astype(dtype)
    pq = (conv_size(side, Window(size, stride, pad)) for side in hw)
    b, dy = drawn((m,), 3).astype(dtype), drawn((n, *pq, m), 4).astype(dtype)
    how = {"stride": stride, "pad": pad, "groups": groups}
    y = op.conv_forward(put(x), put(w), put(b), **how)
    assert_close(fetch(y), ops.conv_forward(x, w, b, **how), dtype, "y")
    r = op.conv_transpose(put(dy), put(w), hw=hw, **how)
    assert_close(fetch(r), ops.conv_transpose(dy, w, hw=hw, **how), dtype, "x")
    got, want = op.conv_grads(put(x), put(dy), size=size, **how), ops.conv_grads(x, dy, size=size, **how)
    for name, each, expected in zip(("dw", "db"), got, want, strict=True):
        assert_close(fetch(each), expected, dtype, name)


@both_dtypes
@pytest.mark.parametrize("case", CONVS[-6:], ids=str)
def test_convolution_by_fewer_multiplications(dtype, case):
    n, hw, c, m, size, stride, pad, groups = case
    window = Window(size, stride, pad)
    x, w = drawn((n, *hw, c), 1).astype(dtype), drawn((size, size, c // groups, m), 2).astype(dtype)
    b, dy = drawn((m,), 3).astype(dtype), drawn((n, *(conv_size(side, window) for side in hw), m), 4).astype(dtype)
    on = {"window": window, "groups": groups}

    def results(x, w, b, dy):
        u = winograd.filters(w, window)
        y, r = winograd.winograd_forward(x, u, b, **on), winograd.winograd_transpose(dy, u, hw=hw, **on)
        return y, r, *winograd.winograd_grads(x, dy, **on)

    for got, want in zip(results(*map(put, (x, w, b, dy))), results(x, w, b, dy), strict=True):
        assert_near(fetch(got), want, NEAR[dtype]) if n else assert_same(got, want)


POOLS = [
    ((7, 8), 5, Window(3, 2, 0), True), ((6, 6), 4, Window(3, 2, 1), False), ((9, 5), 4, Window(2, 3, 0), True),
    ((13, 11), 8, Window(3, 2, 0), True), ((20, 19), 2, Window(16, 5, 3), True), ((4, 4), 1, Window(1, 1, 0), False),
]  # fmt: skip


@both_dtypes
@on_both
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize(("hw", "c", "window", "ceil"), POOLS, ids=str)
def test_pooling_ties_and_switches_to_the_bit(op, dtype, n, hw, c, window, ceil):
    x = drawn((n, *hw, c), 1).round(1).astype(dtype)  # many equal values
    how = {**window._asdict(), "ceil": ceil}
    y, switches = ops.pool_forward(x, **how)
    got, where = op.pool_forward(put(x), **how)
    assert_same(got, y), assert_same(where, switches)
    got, nothing = op.pool_forward(put(x), switches=False, **how)
    assert_same(got, y)
    assert nothing is None
    r = drawn((n, *(pool_size(side, window, ceil=ceil) for side in hw), c), 2).astype(dtype)
    for many in (r, np.repeat(r, 4, axis=0)) if n == 1 else (r,):
        got, want = op.unpool(put(many), where, hw=hw, **how), ops.unpool(many, switches, hw=hw, **how)
        if op is kernels or not n:
            assert_same(got, want)
        else:  # CuPy's add.at adds in no order
            assert_near(fetch(got), want, NEAR[dtype])


@both_dtypes
@on_both
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("count_pad", [False, True])
@pytest.mark.parametrize(("hw", "c", "window", "ceil"), POOLS, ids=str)
def test_averages(op, dtype, n, count_pad, hw, c, window, ceil):
    x = drawn((n, *hw, c), 1).astype(dtype)
    how = {**window._asdict(), "ceil": ceil, "count_pad": count_pad}
    y = ops.average_forward(x, **how)
    assert_near(fetch(op.average_forward(put(x), **how)), y, NEAR[dtype])
    want = ops.average_transpose(y, hw=hw, **how)
    assert_near(fetch(op.average_transpose(put(y), hw=hw, **how)), want, NEAR[dtype])


@both_dtypes
@on_both
@pytest.mark.parametrize("shape", [(2, 3, 4, 7), (1, 2, 2, 8), (0, 3, 3, 4), (3, 1, 1, 2), (1, 1, 2, 1)], ids=str)
@pytest.mark.parametrize(("n", "beta"), [(5, 0.75), (3, 0.5), (1, 0.75), (9, 0.75)])
def test_normalisation(op, dtype, shape, n, beta):
    x, dy = drawn(shape, 1).astype(dtype), drawn(shape, 2).astype(dtype)
    y, scale = ops.lrn_forward(x, n=n, alpha=0.5, beta=beta)
    got, kept = op.lrn_forward(put(x), n=n, alpha=0.5, beta=beta)
    assert_close(fetch(got), y, dtype), assert_close(fetch(kept), scale, dtype)
    dx = ops.lrn_backward(dy, x, scale, n=n, alpha=0.5, beta=beta)
    assert_close(fetch(op.lrn_backward(put(dy), put(x), put(scale), n=n, alpha=0.5, beta=beta)), dx, dtype)
    if len(x) == 1:
        many = drawn((5, *shape[1:]), 3).astype(dtype)
        dx = ops.lrn_backward(many, x, scale, n=n, alpha=0.5, beta=beta)
        assert_close(fetch(op.lrn_backward(put(many), put(x), put(scale), n=n, alpha=0.5, beta=beta)), dx, dtype)


@both_dtypes
@on_both
@pytest.mark.parametrize("shape", [(2, 3, 4, 7), (1, 5, 2, 8), (0, 3, 3, 4), (1, 1, 1, 2)], ids=str)
@pytest.mark.parametrize(("size", "beta"), [(3, 0.75), (5, 0.5), (1, 0.75)])
def test_normalisation_within_maps(op, dtype, shape, size, beta):
    x, dy = drawn(shape, 1).astype(dtype), drawn(shape, 2).astype(dtype)
    how = {"size": size, "alpha": 0.5, "beta": beta}
    y, scale = ops.lrn_within_forward(x, **how)
    got, kept = op.lrn_within_forward(put(x), **how)
    assert_close(fetch(got), y, dtype), assert_close(fetch(kept), scale, dtype)
    dx = ops.lrn_within_backward(dy, x, scale, **how)
    assert_close(fetch(op.lrn_within_backward(put(dy), put(x), put(scale), **how)), dx, dtype)


@pytest.mark.parametrize("rules", deconv.RULES)
def test_a_network_with_branches_that_normalises_within_maps(rules):
    arch = fixtures.FORKED
    params, x = params_of(arch), images_for(arch)
    y, trace = net.forward(arch, params, x, stop="fire2")
    on_device, trace_there = net.forward(arch, put(params), put(x), stop="fire2")
    assert_near(fetch(on_device), y, 1e-12)
    cells = np.array([0, 1]), np.array([3, 1]), np.array([0, 4]), np.array([2, 3])
    r, _ = deconv.project_cells(trace, params, y, *cells, rules=deconv.RULES[rules])
    there, _ = deconv.project_cells(trace_there, put(params), on_device, *cells, rules=deconv.RULES[rules])
    assert_near(fetch(there), r, 1e-12)


@both_dtypes
@on_both
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 4, 4), (0, 4), (1, 7)], ids=str)
def test_rectification_to_the_bit(op, dtype, shape):
    x, dy = drawn(shape, 1).round(1).astype(dtype), drawn((3, *shape[1:]), 2).astype(dtype)
    x[x > 0.8] = np.nan
    y = ops.relu_forward(x)
    assert_same(op.relu_forward(put(x)), y)
    mine = put(x)
    assert op.relu_forward(mine, out=mine) is mine
    assert_same(mine, y)
    assert_same(op.relu_backward(put(dy[: len(y)]), put(y)), ops.relu_backward(dy[: len(y)], y))
    if len(y) == 1:
        assert_same(op.relu_backward(put(dy), put(y)), ops.relu_backward(dy, y))


@both_dtypes
@on_both
@pytest.mark.parametrize(("n", "inputs", "units"), [(3, 5, 4), (1, 7, 1), (0, 4, 3), (8, 1, 16)])
def test_fully_connected(op, dtype, n, inputs, units):
    x, w, b = drawn((n, inputs), 1).astype(dtype), drawn((inputs, units), 2).astype(dtype), drawn((units,), 3)
    b, dy = b.astype(dtype), drawn((n, units), 4).astype(dtype)
    assert_close(fetch(op.linear_forward(put(x), put(w), put(b))), ops.linear_forward(x, w, b), dtype)
    assert_close(fetch(op.linear_transpose(put(dy), put(w))), ops.linear_transpose(dy, w), dtype)
    for got, want in zip(op.linear_grads(put(x), put(dy)), ops.linear_grads(x, dy), strict=True):
        assert_close(fetch(got), want, dtype)


@pytest.mark.parametrize(
    "layout", [lambda x: x.T.copy().T, lambda x: x.repeat(2, axis=-1)[..., ::2]], ids=["transposed", "strided"]
)
@on_both
def test_inputs_of_any_layout(op, layout):
    x, w, b, dy = drawn((2, 6, 6, 4), 1), drawn((3, 3, 4, 5), 2), drawn((5,), 3), drawn((2, 4, 4, 5), 4)

    def results(op, put):
        x1, w1, b1, dy1 = (put(each) for each in (x, w, b, dy))
        y, switches = op.pool_forward(x1)
        scale = op.lrn_forward(x1)[1]
        return {
            "conv": op.conv_forward(x1, w1, b1), "transpose": op.conv_transpose(dy1, w1, hw=(6, 6)),
            "dw": op.conv_grads(x1, dy1, size=3)[0], "pool": y, "relu": op.relu_forward(x1), "scale": scale,
            "unpool": op.unpool(put(drawn((2, 3, 3, 4), 5)), switches, hw=(6, 6)),
            "relu back": op.relu_backward(x1, x1), "norm back": op.lrn_backward(x1, x1, scale),
        }  # fmt: skip

    assert_near(fetch(results(op, lambda x: layout(put(x)))), results(ops, lambda x: x), NEAR["float64"])


@both_dtypes
def test_dropout_softmax_and_loss(dtype):
    y, labels = drawn((6, 5), 1).astype(dtype), np.array([0, 4, 2, 2, 1, 3])
    mask = (y > 0).astype(dtype)
    assert_same(dropout_forward(put(y), put(mask)), dropout_forward(y, mask))
    assert_close(fetch(softmax(put(y))), softmax(y), dtype)
    (loss, dy), (expected, slope) = cross_entropy(put(y), put(labels)), cross_entropy(y, labels)
    assert loss == pytest.approx(expected, rel=NEAR[dtype])
    assert_close(fetch(dy), slope, dtype)
    with pytest.raises(ValueError, match="labels run from 0 to 5, classes to 5"):
        cross_entropy(put(y), put(labels + (labels == 4)))


@both_dtypes
@on_both
def test_boxes_to_the_bit(op, dtype):
    x, image = drawn((3, 6, 7, 4), 1).astype(dtype), np.array([2, 0, 2, 1, 1])
    corners = np.array([[0, 0], [-2, 3], [4, -1], [5, 6], [-9, 9]])
    y = ops.cut_boxes(x, image, corners, size=(3, 4), beyond=1)
    assert_same(op.cut_boxes(put(x), image, corners, size=(3, 4), beyond=1), y)
    onto = drawn((5, 6, 7, 4), 2).astype(dtype)
    mine = put(onto.copy())
    op.paste_boxes(put(y), corners, mine)
    ops.paste_boxes(y, corners, onto)
    assert_same(mine, onto)
    assert_same(op.blank_beyond(put(y.copy()), corners, hw=(6, 7)), ops.blank_beyond(y.copy(), corners, hw=(6, 7)))


@pytest.mark.parametrize("augment", [images.Augment(), train.DEFAULT.augment], ids=["the paper's", "jittered"])
def test_crops(augment):
    pixels, of = noise(3, side=30), np.array([0, 1, 2, 2, 1, 0, 0])
    draws = augment.draw(len(of), side=30, size=19, rng=np.random.default_rng(1))
    mean = np.float32(128 + 9 * drawn((30, 30, 3), 2))
    got = kernels.crops(put(pixels), of, draws, size=19, mean=put(mean), scale=1 / 64)
    want = [
        images.crop(pixels[i], *(each[k] for each in draws), size=19, mean=mean, scale=1 / 64) for k, i in enumerate(of)
    ]
    assert_close(fetch(got), np.stack(want), "float32")


@both_dtypes
@pytest.mark.parametrize("layout", ["C-ordered", "transposed"])
def test_update_and_clip(dtype, layout):
    params = {"conv1": {"w": drawn((3, 3, 2, 5), 1), "b": drawn((5,), 2)}, "fc2": {"w": drawn((7, 4), 3)}}
    params = {name: {key: a.astype(dtype) for key, a in layer.items()} for name, layer in params.items()}
    grads, velocity = ({n: {k: f * a for k, a in p.items()} for n, p in params.items()} for f in (-0.5, 0.25))
    mine = [put(each) for each in (params, grads, velocity)]
    if layout == "transposed":
        mine = [{n: {k: a.T.copy().T for k, a in p.items()} for n, p in each.items()} for each in mine]
    how = {"rate": 0.1, "momentum": 0.9, "decay": 5e-4, "clip": 0.74}
    clipped = sgd.step(params, grads, velocity, **how)
    assert 0 < clipped["conv1"] < 5
    assert {name: int(n) for name, n in sgd.step(*mine, **how).items()} == clipped
    assert_near(fetch(mine[0]), params, NEAR[dtype])
    assert_near(fetch(mine[2]), velocity, NEAR[dtype])


# ------------------------------------------------------------------------------------- networks


def large(arch):
    return pytest.param(arch, marks=pytest.mark.gpu, id=arch.name)


def results(arch, params, x, dy, **options):
    """Output, gradients of all parameters, and of the input."""
    y, trace = net.forward(arch, params, x, **options)
    dx, grads = net.backward(trace, params, dy)
    return {"y": y, "dx": dx, **grads}


@both_dtypes
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "arch", [*(pytest.param(each, id=each.name) for each in (TINY, OBLONG, FLAT, MINI)),
             large(models.SMALL), large(models.ZFNET), large(models.KRIZHEVSKY)],
)  # fmt: skip
def test_networks_and_their_gradients(arch, n, dtype):
    params, x, dy = params_of(arch, dtype=dtype), images_for(arch, n, dtype=dtype), signal_for(arch, n, dtype=dtype)
    tolerance = 10 * NEAR[dtype]
    assert_near(fetch(net.predict(arch, put(params), put(x))), net.predict(arch, params, x), tolerance)
    got = results(arch, put(params), put(x), put(dy), rng=np.random.default_rng(1))
    want = results(arch, params, x, dy, rng=np.random.default_rng(1))
    if (arch, dtype) != (models.ZFNET, "float32"):
        assert_near(fetch(got), want, tolerance)
        return
    # Among its 290,000 regions some have two nearly equal values; either may win, and its signal takes another way.
    want = flat(want, arch.name)
    for name, each in flat(fetch(got), arch.name).items():
        assert np.linalg.norm(each - want[name]) <= 1e-2 * np.linalg.norm(want[name]), name


@every_net
def test_no_images(arch):
    params, x = params_of(arch), images_for(arch, 0)
    got = results(arch, put(params), put(x), put(signal_for(arch, 0)))
    assert bits(fetch(got)) == bits(results(arch, params, x, signal_for(arch, 0)))


@pytest.mark.parametrize("arch", [TINY, MINI], ids=lambda arch: arch.name)
def test_five_steps_of_training(arch):
    recipe = replace(train.DEFAULT, clip=0.08)

    def trained(put):
        params = put(params_of(arch))
        velocity, told = sgd.zeros_like(params), []
        for i in range(5):
            x, labels = put(images_for(arch, 6, seed=i)), put((np.arange(6) + i) % 10)
            loss, correct, clipped = train.step(
                arch, params, velocity, x, labels, recipe=recipe, rate=0.01, rng=np.random.default_rng(i)
            )
            told.append((loss, int(correct), int(clipped)))
        return params, told

    (got, told), (want, expected) = trained(put), trained(lambda x: x)
    assert_near(fetch(got), want, 1e-10)
    assert max(clipped for _, _, clipped in expected) > 0
    np.testing.assert_allclose(told, expected, rtol=1e-10)


def test_two_runs_give_the_same_bits(cupy, monkeypatch):
    params, x, dy = (f(MINI, dtype="float32") for f in (params_of, images_for, signal_for))
    first = results(MINI, put(params), put(x), put(dy))
    if not cupy.cuda.runtime.getDeviceProperties(0)["name"].startswith(b"stand-in"):
        assert bits(fetch(results(MINI, put(params), put(x), put(dy)))) == bits(fetch(first))
        return
    monkeypatch.setattr(importlib.import_module("cupy._raw").RawKernel, "backwards", True)  # the order of threads
    assert bits(fetch(results(MINI, put(params), put(x), put(dy)))) == bits(fetch(first))


def test_tf32_rounds_products_only_where_it_is_asked_for():
    params, x = params_of(MINI, dtype="float32"), images_for(MINI, dtype="float32")
    exact = net.predict(MINI, params, x)
    with backend.precision("tf32"):
        rounded = fetch(net.predict(MINI, put(params), put(x)))
    assert 1e-5 < np.abs(rounded - exact).max() / np.abs(exact).max() < 1e-2


def test_arrays_of_both_sides_are_refused():
    params, x = params_of(TINY), images_for(TINY)
    together = "they must all be numpy or all cupy; move them with to_device or to_host"
    for p, shown in ((put(params), x), (params, put(x))):
        with pytest.raises(
            TypeError, match=rf"layer conv1: arrays of (\w+\.ndarray) and (?!\1)\w+\.ndarray: {together}"
        ):
            net.predict(TINY, p, shown)
    y, trace = net.forward(TINY, put(params), put(x))
    with pytest.raises(TypeError, match=together):
        net.backward(trace, put(params), signal_for(TINY))
    with pytest.raises(TypeError, match=together):
        deconv.project(trace, put(params), y.get())
    with pytest.raises(TypeError, match=together):
        sgd.step(put(params), params, put(params), rate=0.1)


def test_the_loss_in_one_launch():
    rng = np.random.default_rng(0)
    for shape in ((128, 1000), (33, 7), (1, 1)):
        y, labels = 9 * rng.normal(size=shape), rng.integers(0, shape[1], shape[0])
        for dtype in DTYPES:
            loss, dy = cross_entropy(y.astype(dtype), labels)
            got, there = kernels.cross_entropy(put(y.astype(dtype)), put(labels))
            assert got == pytest.approx(loss, rel=NEAR[dtype])
            assert_near(fetch(there), dy, NEAR[dtype])
    for wrong in (-1, 7):
        with pytest.raises(ValueError, match=f"labels run from {min(wrong, 0)} to {max(wrong, 0)}, classes to 7"):
            kernels.cross_entropy(put(np.zeros((2, 7))), put(np.array([0, wrong])))


# ------------------------------------------------------------------------------------- experiments


@pytest.mark.parametrize("rules", deconv.RULES)
@pytest.mark.parametrize(
    ("arch", "stop"), [(TINY, "pool2"), (TINY, "fc8"), (OBLONG, "relu2"), (MINI, "relu5"), (MINI, "norm2")],
    ids=lambda each: getattr(each, "name", each),
)  # fmt: skip
def test_projections(arch, stop, rules):
    rules, params, x = deconv.RULES[rules], params_of(arch), images_for(arch, 3)

    def projected(put):
        p = put(params)
        y, trace = net.forward(arch, p, put(x), stop=stop)
        image, maps = np.array([2, 0, 0, 1]), np.array([0, 3, 1, 2])
        at = () if y.ndim == 2 else (np.array([0, 1, 0, 1]) % y.shape[1], np.array([1, 0, 1, 1]) % y.shape[2])
        seed = deconv.seeds(y, image, maps, *at)
        cells, boxes = deconv.project_cells(trace, p, y, image, maps, *at, rules=rules)
        return (
            {"seeds": deconv.project(trace, p, seed, rules=rules, image=image),
             "whole": deconv.project(trace, p, y, rules=rules), "cells": cells},
            boxes,
        )  # fmt: skip

    (got, boxes), (want, expected) = projected(put), projected(lambda x: x)
    assert_near(fetch(got), want, 1e-11)
    assert boxes.size == expected.size
    np.testing.assert_array_equal(boxes.origin, expected.origin)


@pytest.mark.parametrize("one_per_image", [True, False])
def test_the_strongest_to_the_bit(one_per_image):
    y = drawn((20, 4, 5, 6), 1).round(2)  # with ties
    for maps in (y, y[:, 0, 0]):
        got = deconv.strongest(put(maps), top=5, one_per_image=one_per_image)
        want = deconv.strongest(maps, top=5, one_per_image=one_per_image)
        for each, expected in zip(astuple(got), astuple(want), strict=True):
            np.testing.assert_array_equal(each, expected, strict=True)


@pytest.mark.parametrize("arch", [TINY, MINI], ids=lambda arch: arch.name)
def test_occlusion(arch):
    params, (x,) = params_of(arch), images_for(arch, 1)
    how = {"square": arch.side // 3, "step": arch.side // 5, "fill": 0.5}
    got, want = occlusion.slide(arch, put(params), put(x), **how), occlusion.slide(arch, params, x, **how)
    for name in ("logits", "activity", "base_logits", "probabilities", "labels"):
        assert_near(fetch(getattr(got, name)), getattr(want, name), 1e-11, name)
    assert (got.layer, got.map) == (want.layer, want.map)
    assert got.base_activity == pytest.approx(want.base_activity)


WHOLE = datasets.load_whole(None, side=32)
SCENES, OTHERS = WHOLE.subset(range(40)), WHOLE.subset(range(40, 60))
TWELVE = models.with_classes(TINY, len(WHOLE.classes))
CHECKPOINT = replace(
    checkpoint_of(side=32), arch=TWELVE, params=params_of(TWELVE, dtype="float32"), classes=WHOLE.classes
)


@pytest.mark.parametrize("ten_crop", [False, True])
def test_evaluation(ten_crop):
    got, labels = evaluate.probabilities(CHECKPOINT, SCENES, ten_crop=ten_crop, device="cuda")
    want, expected = evaluate.probabilities(CHECKPOINT, SCENES, ten_crop=ten_crop)
    assert_near(got, want, 1e-5)
    np.testing.assert_array_equal(labels, expected)


def test_figure_2():
    how = {"layers": ("relu1", "norm1", "relu2", "fc8"), "maps": 4, "top": 3}
    found = fig2.run(CHECKPOINT, SCENES, device="cuda", **how)
    for got, want in zip(found, fig2.run(CHECKPOINT, SCENES, **how), strict=True):
        assert_near(got.strongest.value, want.strongest.value, 1e-5)
        np.testing.assert_array_equal(got.strongest.image, want.strongest.image)
        np.testing.assert_array_equal(got.patches, want.patches)
        assert_near(got.projections, want.projections, 1e-5)


def test_a_training():
    recipe = replace(train.DEFAULT, batch=16)

    def trained(device):
        began = train.begin(TWELVE, recipe, SCENES, epochs=2, seed=1)
        return train.run(began, SCENES, OTHERS, recipe=recipe, epochs=2, device=device)

    got, want = trained("cuda"), trained("cpu")
    assert_near(got.params, want.params, 1e-4)
    assert_near(got.optimizer, want.optimizer, 1e-3)
    assert (got.epoch, got.finished, got.history.keys()) == (2, True, want.history.keys())
    for name in ("train_loss", "val_loss", "train_top1", "val_top1", "clipped"):
        assert got.history[name] == pytest.approx(want.history[name], rel=1e-4), name


def test_the_commands(cupy, tmp_path):
    tools, home = Path(train.__file__).parents[1] / "tools", str(Path(cupy.__file__).parents[1])
    for i, pixels in enumerate(noise(16, side=32)):
        folder = tmp_path / "data" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")

    def run(name, *args):
        command = [sys.executable, tools / name, *args, "--data", tmp_path / "data"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": home})
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    out = tmp_path / "tiny.h5"
    said = run("train.py", "--arch", "tiny", "--epochs", "1", "--batch", "4", "--device", "cuda", "--out", out)
    assert "on cuda" in said
    assert run("evaluate.py", out, "--device", "cuda") == run("evaluate.py", out, "--device", "cpu")
    run("visualize.py", out, "--device", "cuda", "--maps", "2", "--out", tmp_path / "sheet")
    assert (tmp_path / "sheet" / "features.png").exists()
