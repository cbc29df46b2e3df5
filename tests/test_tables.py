"""Tables 2 and 3 on small nets and scenes: votes, rows, orderings, and the grid that goes on where it stopped."""

import statistics
from dataclasses import astuple, replace

import numpy as np
import pytest
from fixtures import checkpoint_of, pictures

from refnet import datasets, models, net, train
from refnet.arch import Arch, Linear
from refnet.experiments import table2, table3
from refnet.experiments.table3 import Errors
from refnet.weights import Checkpoint

# --- Table 2 ---

SIDE, CLASSES = 4, ("a", "b", "c")
LINEAR = Arch("linear", (SIDE, SIDE, 3), (Linear("fc8", len(CLASSES)),))


def seen(n):
    """Images that are red, green or blue, for the classes in turn, and their labels."""
    labels = np.arange(n) % 3
    pixels = np.zeros((n, SIDE, SIDE, 3), np.uint8)
    pixels[np.arange(n), :, :, labels] = 255
    return replace(pictures(pixels), classes=CLASSES, labels=labels), labels


def knowing(*known, seed):
    """A network that tells the classes it knows by their colour, and of the others says what its seed draws."""
    w = np.random.default_rng(seed).standard_normal((SIDE, SIDE, 3, 3)) / 100
    for label in known:
        w[:, :, label, :] = 0
        w[:, :, label, label] = 1
    params = {"fc8": {"w": w.reshape(-1, 3).astype(np.float32), "b": np.zeros(3, np.float32)}}
    return Checkpoint(LINEAR, params, np.zeros((SIDE, SIDE, 3), np.float32), scale=1 / 255, classes=CLASSES)


def test_networks_that_know_different_classes_know_all_together():
    data, _ = seen(30)
    members = [knowing(0, 1, seed=1), knowing(1, 2, seed=2), knowing(0, 2, seed=3)]
    single, vote = table2.run({table2.A: members}, data, ten_crop=False)
    assert not single.vote and vote.vote and (single.count, vote.count) == (3, 3)
    assert single.errors.shape == (3, 2) and vote.errors.shape == (1, 2)
    assert vote.errors[0, 0] == 0
    assert single.errors[:, 0].mean() > 0
    assert (single.errors[:, 1] == 0).all()  # three classes are always among the first five


def test_the_same_network_many_times_gains_nothing():
    """The null of a vote."""
    drawn, one = datasets.load_whole(None, side=32).subset(range(48)), checkpoint_of(side=32)
    data = replace(drawn, classes=one.classes, labels=drawn.labels % 10)
    single, vote = table2.run({table2.A: [one] * 4}, data)
    np.testing.assert_allclose(single.errors, np.repeat(vote.errors, 4, axis=0))


def test_a_vote_is_the_mean_of_the_softmax_outputs():
    drawn, one = datasets.load_whole(None, side=32).subset(range(48)), checkpoint_of(side=32)
    data = replace(drawn, classes=one.classes, labels=drawn.labels % 10)
    members = [replace(checkpoint_of(side=32, seed=seed), scale=1 / 8) for seed in range(3)]
    x = np.stack([data.image(i)[6:25, 6:25] for i in range(48)])
    p = []
    for each in members:
        y = net.predict(one.arch, each.params, (x - each.mean[6:25, 6:25]) / np.float32(8)).astype(float)
        p.append(np.exp(y) / np.exp(y).sum(axis=1, keepdims=True))
    wrong = sum(p).argmax(axis=1) != data.labels
    loudest = np.max(p, axis=0).argmax(axis=1) != data.labels
    vote = table2.run({table2.A: members}, data, ten_crop=False)[1]
    assert vote.errors[0, 0] == pytest.approx(100 * wrong.mean())
    assert wrong.mean() != loudest.mean()  # so that another vote would show


def test_b_joins_the_vote_of_a_with_its_first_network_only():
    data, _ = seen(30)
    lost = knowing(seed=5)
    nets = {table2.A: [knowing(0, 1, seed=1), knowing(1, 2, seed=2)], table2.B: [knowing(0, 1, 2, seed=0), lost]}
    rows = table2.run(nets, data, ten_crop=False)
    by_name = {row.name: row for row in rows}
    both = by_name["Figure 3 (a) and layers 3,4,5: 512, 1024, 512 (b), 3 convnets"]
    assert both.count == 3 and both.paper == (36.0, 14.7) and both.errors[0, 0] == 0
    assert [row.paper for row in rows] == [(38.4, 16.5), (37.5, 16.0), (36.7, 15.3), None, (36.0, 14.7)]


def test_table_2_without_networks_is_refused():
    with pytest.raises(ValueError, match="needs networks"):
        table2.run({table2.A: []}, seen(3)[0])


# --- Table 3 ---


def test_the_paper_s_rows():
    assert len(table3.ROWS) == 12 == len(table3.BY_NAME)
    nets = [row.net for row in table3.ROWS]
    assert (nets.count(table3.KRIZHEVSKY), nets.count(table3.FIGURE_3)) == (7, 5)
    best = min(table3.ROWS, key=lambda row: row.paper.val_top1)
    assert best.name == "Figure 3, layers 3,4,5: 512, 1024, 512" and best.paper == Errors(18.8, 37.5, 16.0)


def test_the_small_size_is_small_and_every_row_changes_it():
    """The two nets have at most 30 million floating-point operations, two for each multiply-add."""
    for base in table3.BASES["mini"].values():
        assert 2 * sum(base.macs().values()) <= 30e6
    for row in table3.ROWS:
        arch = row.arch(table3.BASES["mini"][row.net])
        assert (arch == table3.BASES["mini"][row.net]) == (row.change in ("replication", "as it is"))


def test_every_row_is_trained_on_its_own_net_and_scored_on_both_data_sets():
    """Each row's net is one that is right on as many images as its number of parameters says."""
    data, _ = seen(30)
    val = data.subset(range(15))
    asked = []

    def net(name, arch, seed):
        asked.append((name, arch.param_count(), seed))
        return knowing(0, 1, 2, seed=seed) if arch.name == "mini" else knowing(0, 1, seed=1)

    found = list(table3.run(table3.ROWS, table3.BASES["mini"], data, val, seed=4, net=net))
    assert [row for row, _ in found] == list(table3.ROWS)
    wanted = [
        (row.name, models.with_classes(row.arch(table3.BASES["mini"][row.net]), 3).param_count(), 4)
        for row in table3.ROWS
    ]
    assert asked == wanted
    for row, errors in found:
        right = row.net == table3.FIGURE_3
        assert (errors.train_top1 == 0) == (errors.val_top1 == 0) == right
        assert errors.val_top5 == 0


def grid(shift, noise, seeds=(0, 1, 2)):
    """Errors of all rows: a multiple of the paper's, and noise that differs from seed to seed."""
    rng = np.random.default_rng(0)
    return {
        row.name: {seed: Errors(0, shift * row.paper.val_top1 + noise * rng.standard_normal(), 0) for seed in seeds}
        for row in table3.ROWS
    }


def test_the_paper_s_own_errors_hold_all_its_orderings():
    orderings = table3.orderings(grid(1, 1e-6))
    assert all(each.holds for each in orderings)
    assert len(orderings) == 12 * 11 / 2 - 1  # two rows have the same error
    assert all(each.mean == pytest.approx(each.paper, abs=1e-4) for each in orderings)


def test_mean_and_standard_deviation_are_over_the_seeds_differences():
    found = grid(1, 3)
    each = table3.orderings(found)[0]
    higher = [found[each.second][seed].val_top1 - found[each.first][seed].val_top1 for seed in range(3)]
    assert (each.mean, each.std) == (pytest.approx(statistics.mean(higher)), pytest.approx(statistics.stdev(higher)))


def test_turned_around_they_hold_none():
    assert not any(each.holds or each.holds is None for each in table3.orderings(grid(-1, 1e-6)))


def test_of_noise_neither_is_said_much():
    """The null: rows that differ by nothing but their seeds."""
    orderings = table3.orderings(grid(0, 5, seeds=range(30)))
    clear = [each for each in orderings if each.holds is not None]
    assert len(clear) < 0.6 * len(orderings)  # a third of differences exceed their standard error by chance


def test_a_row_with_one_seed_or_none_is_not_compared():
    found = grid(1, 1e-6)
    del found["Figure 3, as it is"]
    found["Krizhevsky, without layer 7"] = {0: Errors(0, 0, 0)}
    names = {name for each in table3.orderings(found) for name in (each.first, each.second)}
    assert len(names) == 10


def test_a_net_of_the_grid_learns_scenes():
    """End to end, in miniature: the row with the most taken away, one epoch of a few scenes."""
    row = table3.BY_NAME["Krizhevsky, without layers 3,4,6,7"]
    data = datasets.load_whole(None, side=64).subset(range(96))
    recipe = replace(train.DEFAULT, batch=16, schedule=((0, 0.02),))

    def net(name, arch, seed):
        start = train.begin(arch, recipe, data, epochs=4, seed=seed)
        return train.run(start, data, data.subset(range(12)), recipe=recipe, epochs=4)

    [(_, errors)] = table3.run([row], table3.BASES["mini"], data, data.subset(range(12)), seed=0, net=net)
    assert errors.train_top1 < 85  # chance is 91.7
    assert astuple(errors)[2] <= errors.val_top1
