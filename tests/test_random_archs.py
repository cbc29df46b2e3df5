"""Architectures at random: what validates runs, trains, projects and comes back from its file; the rest is refused."""

import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refnet import deconv, net, sgd, weights
from refnet.arch import Arch, Average, Branch, Conv, Dropout, Flatten, Linear, Norm, Pool, Relu, SpatialNorm
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
