"""Every figure, table and control of the paper on a GPU against the CPU; without a GPU, on the stand-in for CuPy.

In float64, so that both sides make the same choices, of maxima for instance, and all that comes of them is the same.
"""

from dataclasses import asdict, is_dataclass, replace

import numpy as np
import pytest
from fixtures import checkpoint_of, params_of

from refnet import datasets, evaluate, features, models, parts
from refnet.experiments import faithful, fig2, fig4, fig5, fig6, fig7, pointing, table1, table2, table3, table6, table7
from refnet.experiments.transfer import from_scratch, pretrained

pytestmark = pytest.mark.usefixtures("cupy")

SIDE = 32
WHOLE = datasets.load_whole(None, side=SIDE)
SCENES, FEW = WHOLE.subset(range(40)), WHOLE.subset(range(40, 52))
ARCH, MINI = (models.with_classes(arch, len(WHOLE.classes)) for arch in (models.TINY, models.MINI))


def net(seed=0, arch=ARCH, side=SIDE):
    """A network for the scenes, in float64."""
    params = params_of(arch, seed=seed)
    return replace(checkpoint_of(side=side), arch=arch, params=params, classes=WHOLE.classes, epoch=seed)


def classified(device):
    """What the classifiers make of features; these alone are computed on a device."""
    data = WHOLE.subset(range(60))
    found, which = features.collect(net(), data, ["relu2"], reduce=features.pooled, device=device)
    x, labels = found["relu2"].reshape(len(which), -1), data.labels[which]
    signs = np.sign(labels[:, None] - 3)
    how = {"k": 2, "count": 1, "test": 1, "penalty": 1.0}
    return {
        "features": x,
        "table 6": table6.run(x, signs, x, signs, classes=[0], penalty=1.0),
        "table 7": table7.run({"relu2": x}, labels, **how),
        "transfer": pretrained(x, labels, **how),
    }


EXPERIMENTS = {
    "fig2": lambda how: fig2.run(net(), SCENES, layers=("relu1", "norm1", "relu2", "fc8"), maps=3, top=3, **how),
    "fig4": lambda how: fig4.run([net(1), net(2)], SCENES, layers=["relu1", "relu2"], maps=2, **how),
    "fig5": lambda how: fig5.run(net(), FEW, [0, 5], layers=["relu1", "relu6"], **how),
    "fig6": lambda how: fig6.run({"one": net(1), "other": net(2)}, FEW, maps=2, top=3, **how),
    "fig7": lambda how: fig7.rows(net(), SCENES, [3, 9], layer="relu2", square=8, step=6, **how),
    "table1": lambda how: table1.run(
        net(arch=MINI, side=64), parts.faces(1, 6, side=64), draws=2, permutations=9, **how
    ),
    "table2": lambda how: table2.run({table2.A: [net(1), net(2)]}, FEW, **how),
    "table3": lambda how: table3.run(
        [row for row in table3.ROWS if row.net == table3.FIGURE_3][:2], {table3.FIGURE_3: models.TINY}, SCENES, FEW,
        seed=1, net=lambda name, arch, seed: net(seed, arch), **how,
    ),
    "transfer from scratch": lambda how: from_scratch(
        ARCH, SCENES, k=2, test=2, numbers=[0], net=lambda name, arch, few, others: net(1, arch), **how
    ),
    "classifiers of features": lambda how: classified(**how),
    "faithful": lambda how: faithful.run(net(), FEW, "relu2", units=2, **how),
    "pointing": lambda how: pointing.run(net(), FEW, square=8, step=6, best=3, **how),
    "evaluation, ten crops": lambda how: evaluate.probabilities(net(), FEW, ten_crop=True, **how),
}  # fmt: skip


def leaves(x, path="it"):
    """Every array, number and name of a result, by where it stands."""
    if is_dataclass(x):
        x = asdict(x)
    if isinstance(x, dict):
        return {p: leaf for key, each in x.items() for p, leaf in leaves(each, f"{path}[{key!r}]").items()}
    if isinstance(x, list | tuple) or hasattr(x, "__next__"):
        return {p: leaf for i, each in enumerate(x) for p, leaf in leaves(each, f"{path}[{i}]").items()}
    return {path: x}


def is_real(leaf):
    return isinstance(leaf, np.ndarray | float) and np.asarray(leaf).dtype.kind == "f"


def largest(leaf):
    finite = np.asarray(leaf)[np.isfinite(leaf)]
    return np.abs(finite).max(initial=0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name):
    got, want = (leaves(EXPERIMENTS[name]({"device": device})) for device in ("cuda", "cpu"))
    assert got.keys() == want.keys()
    assert any(largest(leaf) > 0 for leaf in want.values() if is_real(leaf))
    for where, expected in want.items():
        if is_real(expected):
            near = 1e-5 * largest(expected)  # images are made in float32
            np.testing.assert_allclose(got[where], expected, rtol=0, atol=near, err_msg=where)
        else:
            np.testing.assert_array_equal(got[where], expected, err_msg=where)
