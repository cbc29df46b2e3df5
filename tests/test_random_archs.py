"""Architectures at random: what validates runs, trains, projects and comes back from its file; the rest is refused."""

import os
from typing import Any, NamedTuple

import naive
import numpy as np
from fixtures import assert_near, params_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from refnet import deconv, net, sgd, weights
from refnet.arch import Arch, Average, Branch, Conv, Dropout, Flatten, Linear, Norm, Pool, Relu, SpatialNorm, flat
from refnet.weights import Checkpoint

EXAMPLES = int(os.environ.get("REFNET_ARCHS", 60))
KINDS = ("conv", "conv", "relu", "pool", "norm", "spatial", "average", "dropout", "flatten", "linear", "branch")
small = st.integers(1, 4)


@st.composite
def layers(draw, depth=0, prefix=""):
    """A few layers of any kind in any order, many of which cannot follow each other."""
    made = []
    for number in range(draw(st.integers(0 if depth else 1, 6 if not depth else 3))):
        name = f"{prefix}{number}"
        stride, pad, flag = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.booleans())
        match draw(st.sampled_from(KINDS if depth < 2 else KINDS[:-1])):
            case "conv":
                groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
                made.append(Conv(f"conv{name}", groups * draw(small), draw(small), stride, pad, groups))
            case "relu":
                made.append(Relu(f"relu{name}"))
            case "pool":
                made.append(Pool(f"pool{name}", draw(small), stride, pad, flag))
            case "average":
                made.append(Average(f"average{name}", draw(small), stride, pad, flag, draw(st.booleans())))
            case "norm":
                made.append(Norm(f"norm{name}", n=draw(st.sampled_from([1, 3, 5])), alpha=0.5))
            case "spatial":
                made.append(SpatialNorm(f"spatial{name}", draw(st.sampled_from([1, 3, 5])), alpha=0.5))
            case "dropout":
                made.append(Dropout(f"drop{name}", 0.3))
            case "flatten":
                made.append(Flatten(f"flat{name}"))
            case "linear":
                made.append(Linear(f"fc{name}", draw(small)))
            case "branch":
                paths = [draw(layers(depth=depth + 1, prefix=f"{name}_{k}_")) for k in range(stride)]
                made.append(Branch(f"branch{name}", tuple(paths)))
    return tuple(made)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    layers=layers(), side=st.integers(1, 12), colours=st.integers(1, 4), seed=st.integers(0, 99), n=st.integers(0, 3)
)
def test_an_architecture_is_refused_with_a_reason_or_does_everything(layers, side, colours, seed, n, tmp_path_factory):
    try:
        arch = Arch("random", (side, side, colours), layers)
    except ValueError as error:
        assert len(str(error)) > 10 and "\n" not in str(error)
        return
    assert Arch.from_json(arch.to_json()) == arch and str(arch)
    rng = np.random.default_rng(seed)
    params = net.init_params(arch, rng=rng, dtype="float64")
    for layer in params.values():  # the first layer's own are too small for differences
        layer["w"][...] = rng.normal(size=layer["w"].shape) / np.sqrt(layer["w"][..., 0].size)
        layer["b"][...] = rng.normal(size=layer["b"].shape)
    x = rng.normal(size=(n, side, side, colours))
    y, trace = net.forward(arch, params, x)
    assert y.shape == (n, *arch.shapes()[arch.layers[-1].name]) and np.isfinite(y).all()
    np.testing.assert_array_equal(net.predict(arch, params, x), y)
    dy = rng.normal(size=y.shape)
    dx, grads = net.backward(trace, params, dy)
    assert dx.shape == x.shape and {name: {k: a.shape for k, a in g.items()} for name, g in grads.items()} == {
        name: {k: a.shape for k, a in p.items()} for name, p in params.items()
    }
    if n:
        step = 1e-6 * rng.normal(size=x.shape)
        rise = ((net.predict(arch, params, x + step) - net.predict(arch, params, x - step)) * dy).sum() / 2
        assert abs(rise - np.vdot(dx, step)) <= 1e-8 * np.linalg.norm(dy) * np.linalg.norm(y) + 1e-12
        for rules in deconv.RULES.values():
            r = deconv.project(trace, params, np.maximum(y, 0), rules=rules)
            assert r.shape == x.shape and np.isfinite(r).all()
    sgd.step(params, grads, sgd.zeros_like(params), rate=0.01, clip=0.1)
    path = tmp_path_factory.mktemp("random") / "x.h5"
    weights.save(path, Checkpoint(arch, params, np.zeros((side, side, colours), np.float32)))
    back = weights.load(path)
    assert back.arch == arch
    assert all(back.params[name][key].tobytes() == a.tobytes() for name, p in params.items() for key, a in p.items())


# --- what a trace records, and what comes of it under each rule ---


class Step(NamedTuple):
    """A layer that was walked: what it was given, what it gave, and what else the way back takes."""

    layer: Any
    x: np.ndarray
    y: np.ndarray
    seen: Any


def climb(layers, params, x):
    """The steps up, by the naive operations; a branch has seen the steps of its paths."""
    steps = []
    for layer in layers:
        below, seen, p = x, None, params.get(layer.name)
        match layer:
            case Conv():
                x = naive.conv_forward(x, p["w"], p["b"], stride=layer.stride, pad=layer.pad, groups=layer.groups)
            case Relu():
                x = naive.relu_forward(x)
            case Pool():
                x, seen = naive.pool_forward(x, **windowed(layer), ceil=layer.ceil)
            case Average():
                x = naive.average_forward(x, **windowed(layer), ceil=layer.ceil, count_pad=layer.count_pad)
            case Norm():
                x, seen = naive.lrn_forward(x, n=layer.n, k=layer.k, alpha=layer.alpha, beta=layer.beta)
            case SpatialNorm():
                x, seen = naive.lrn_within_forward(x, size=layer.size, alpha=layer.alpha, beta=layer.beta)
            case Flatten():
                x = x.reshape(len(x), -1)
            case Linear():
                x = naive.linear_forward(x.reshape(len(x), -1), p["w"], p["b"])
            case Branch():
                seen = [climb(path, params, x) for path in layer.paths]
                x = np.concatenate([steps_up[-1].y if steps_up else below for steps_up in seen], axis=-1)
        steps.append(Step(layer, below, x, seen))
    return steps


def descend(steps, params, r, rules):
    """A signal down the same steps: each layer's adjoint, but where the rules say otherwise (section 2.1)."""
    for layer, x, y, seen in reversed(steps):
        match layer:
            case Conv():
                how = {"stride": layer.stride, "pad": layer.pad, "groups": layer.groups}
                r = naive.conv_transpose(r, params[layer.name]["w"], hw=x.shape[1:3], **how)
            case Relu():
                r = r if rules.relu == "forward" else np.maximum(r, 0)
                r = r if rules.relu == "signal" else naive.relu_backward(r, y)
            case Pool():
                r = naive.unpool(r, seen, **windowed(layer), hw=x.shape[1:3])
            case Average():
                how = {**windowed(layer), "ceil": layer.ceil, "count_pad": layer.count_pad}
                r = naive.average_transpose(r, hw=x.shape[1:3], **how)
            case Norm() if rules.norm == "gradient":
                r = naive.lrn_backward(r, x, seen, n=layer.n, alpha=layer.alpha, beta=layer.beta)
            case SpatialNorm() if rules.norm == "gradient":
                r = naive.lrn_within_backward(r, x, seen, size=layer.size, alpha=layer.alpha, beta=layer.beta)
            case Flatten():
                r = r.reshape(x.shape)
            case Linear():
                r = naive.linear_transpose(r, params[layer.name]["w"]).reshape(x.shape)
            case Branch():
                ends = np.cumsum([steps_up[-1].y.shape[-1] if steps_up else x.shape[-1] for steps_up in seen])
                parts = np.split(r, ends[:-1], axis=-1)
                r = sum(descend(up, params, part, rules) for up, part in zip(seen, parts, strict=True))
    return r


def windowed(layer):
    """The window of a pool."""
    return {"size": layer.size, "stride": layer.stride, "pad": layer.pad}


def recorded(steps):
    """What the way back takes from each layer, inside of branches too."""
    found = {}
    for layer, x, y, seen in steps:
        match layer:
            case Conv():
                found[layer.name] = (x,)
            case Linear():
                found[layer.name] = (x.reshape(len(x), -1),)
            case Relu():
                found[layer.name] = (y,)
            case Pool():
                found[layer.name] = (seen,)
            case Norm() | SpatialNorm():
                found[layer.name] = (x, seen)
            case Branch():
                for each in seen:
                    found |= recorded(each)
    return found


@settings(max_examples=max(EXAMPLES, 200), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(layers=layers(), side=st.integers(3, 8), colours=st.integers(1, 3), depth=st.integers(1, 6))
def test_a_trace_records_what_the_rules_need_and_projections_follow_them(layers, side, colours, depth):
    try:
        arch = Arch("random", (side, side, colours), layers[:depth])
    except ValueError:
        assume(False)
    params, rng = params_of(arch), np.random.default_rng(0)
    x = rng.normal(size=(2, *arch.input))
    steps = climb(arch.layers, params, x)
    y, trace = net.forward(arch, params, x)
    assert_near(y, steps[-1].y, 1e-12)
    kept = {}
    for stage, slices in zip(trace.plan, trace.kept, strict=True):
        for name in [layer.name for layer in flat(stage.layers)]:
            parts = [each.get(name, ()) for each in slices]
            kept |= {name: tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))} if parts[0] else {}
    want = recorded(steps)
    assert kept.keys() == want.keys()
    for name, arrays in want.items():
        for got, array in zip(kept[name], arrays, strict=True):
            assert_near(got.astype(float), array.astype(float), 1e-12, name)
    r = rng.normal(size=y.shape)
    for name, rules in deconv.RULES.items():
        down = deconv.project(trace, params, r, rules=rules)
        assert_near(down, descend(steps, params, r, rules), 1e-11, name)
        np.testing.assert_array_equal(deconv.project(trace, params, 2 * r, rules=rules), 2 * down)
        alone = deconv.project(trace, params, r[1:], rules=rules, image=np.array([1]))
        assert_near(alone, down[1:], 1e-12, name)
    assert_near(net.backward(trace, params, r)[0], descend(steps, params, r, deconv.GRADIENT), 1e-11)


def test_the_strategy_makes_both_kinds():
    """Neither half of the test above may be empty."""
    good, bad = [], []

    @settings(max_examples=200, suppress_health_check=list(HealthCheck))
    @given(layers=layers(), side=st.integers(1, 12))
    def sort(layers, side):
        try:
            good.append(Arch("random", (side, side, 3), layers))
        except ValueError as error:
            bad.append(str(error))

    sort()
    assert len(good) > 20 and len(bad) > 20
    assert max(len(arch.layers) for arch in good) >= 4
    assert any(isinstance(layer, Branch) for arch in good for layer in arch.layers)
    assert len({reason.split(":")[-1][:20] for reason in bad}) > 3
