"""Training: schedules, the loop against one by hand, stopping and going on, and that it learns."""

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from fixtures import assert_near, bits, colours, noise, pictures

from refnet import datasets, loader, models, net, sgd, train, weights
from refnet.arch import Arch, Linear
from refnet.evaluate import evaluate
from refnet.images import Augment
from refnet.ops.loss import cross_entropy
from refnet.train import DEFAULT, PAPER, RECIPES, learning_rate

TINY = models.TINY
DATA = pictures(colours(50))
VAL = pictures(colours(20, seed=1))
# Two and a half batches an epoch, hence three steps; crops that need no resizing, which is Pillow's.
SHORT = replace(DEFAULT, batch=20, augment=Augment(crops="ten"))
STEPS = 3


def begun(recipe=SHORT, *, epochs=2, seed=3):
    return train.begin(TINY, recipe, DATA, epochs=epochs, seed=seed)


def trained(recipe=SHORT, *, epochs=2, checkpoint=None, **options):
    checkpoint = checkpoint or begun(recipe, epochs=epochs)
    return train.run(checkpoint, DATA, VAL, recipe=recipe, epochs=epochs, **options)


def state(checkpoint):
    """All that must not depend on how a training came to where it is; seconds may."""
    history = {name: values for name, values in checkpoint.history.items() if name not in ("seconds", "waited")}
    progress = {**checkpoint.rng, "seconds": None, "waited": None}
    return bits(checkpoint.params), bits(checkpoint.optimizer), history, progress, checkpoint.epoch, checkpoint.finished


# ------------------------------------------------------------------------------------- recipes and rates


def test_the_papers_recipe():
    assert asdict(PAPER) == {
        "name": "paper",
        "init": "paper",
        "scale": 1.0,
        "batch": 128,
        "rate": 1e-2,
        "schedule": "plateau",
        "augment": {"crops": "ten", "area": None, "aspect": 1.0, "mirror": True, "colour": 0.0},
        "momentum": 0.9,
        "decay": 5e-4,
        "clip": 0.1,
        "warmup": 0.2,
        "drop": 10.0,
        "patience": 5,
        "precision": "fp32",
    }
    assert RECIPES == {"paper": PAPER, "default": DEFAULT}


def test_one_cycle_rises_in_a_line_and_falls_as_a_cosine():
    recipe = replace(DEFAULT, rate=1.0, warmup=0.2)
    rates = [learning_rate(recipe, done, 10, []) for done in (0, 1, 2, 4, 6, 8, 10)]
    cosine = [(1 + math.cos(math.pi * share)) / 2 for share in (0.25, 0.5, 0.75)]
    assert rates == pytest.approx([0.1, 0.55, 1, *cosine, 0])


def test_plateau_drops_after_patience_epochs_without_a_better_error():
    recipe = replace(PAPER, rate=1.0, drop=10.0, patience=2)
    errors = [0.9, 0.8, 0.8, 0.8, 0.85, 0.7, 0.7, 0.71, 0.6, 0.6]
    rates = [learning_rate(recipe, done, 99, errors[:done]) for done in range(len(errors) + 1)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_plateau_drops_again_after_as_many_epochs():
    recipe = replace(PAPER, rate=1.0, drop=10.0, patience=2)
    rates = [learning_rate(recipe, done, 99, [0.5] * done) for done in range(8)]
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_rates_by_hand_hold_from_their_epoch_on():
    recipe = replace(PAPER, schedule=((0, 0.5), (2, 0.25), (3, 0.125)))
    rates = [learning_rate(recipe, done, 9, []) for done in (0, 1.99, 2, 2.5, 3, 8)]
    assert rates == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


@pytest.mark.parametrize(
    ("size", "side"), [(224, 256), (227, 256), (112, 128), (56, 64), (19, 32), (28, 32), (1, 1), (300, 352)]
)
def test_images_are_an_eighth_larger_than_crops(size, side):
    arch = Arch("any", (size, size, 3), (Linear("fc8", 2),))
    assert train.image_side(arch) == side


# ------------------------------------------------------------------------------------- the beginning


def test_a_training_begins_with_the_mean_the_classes_and_drawn_weights():
    checkpoint = begun(seed=3)
    assert_near(checkpoint.mean, colours(50).mean(axis=0), 1e-6)
    assert checkpoint.classes == DATA.classes and checkpoint.scale == 1 / 64 and checkpoint.seed == 3
    assert (checkpoint.epoch, checkpoint.finished, checkpoint.history) == (0, False, {})
    assert bits(checkpoint.params) == bits(begun(seed=3).params) != bits(begun(seed=4).params)
    assert not any(v.any() for layer in checkpoint.optimizer.values() for v in layer.values())
    assert checkpoint.params["conv2"]["w"].std() == pytest.approx(2**0.75 * math.sqrt(2 / 27), rel=0.2)
    assert begun(PAPER).params["conv2"]["w"].std() == pytest.approx(0.01, rel=0.2)


def test_the_recipe_is_kept_as_json_gives_it_back():
    recipe = replace(PAPER, schedule=((0, 0.5), (2, 0.25)))
    kept = begun(recipe, epochs=7).recipe
    assert kept["schedule"] == [[0, 0.5], [2, 0.25]] and kept["epochs"] == 7 and kept["augment"]["crops"] == "ten"
    assert kept.keys() == {*asdict(PAPER), "epochs", "data"}


def test_a_network_of_other_outputs_than_classes_is_refused():
    with pytest.raises(ValueError, match="3 class names, but tiny has 10 outputs"):
        train.begin(TINY, SHORT, pictures(colours(6, 3), 3), epochs=1, seed=0)


# ------------------------------------------------------------------------------------- the loop


def test_the_loop_is_forward_loss_backward_and_step():
    by_hand = begun()
    params, velocity = by_hand.params, by_hand.optimizer
    losses, clipped, done = [], 0, 0
    for epoch in range(2):
        batches = loader.minibatches(
            DATA, batch=20, size=19, augment=SHORT.augment, mean=by_hand.mean, scale=1 / 64,
            rng=np.random.default_rng([3, 1, epoch]),
        )  # fmt: skip
        for step, (x, labels, _) in enumerate(batches):
            y, trace = net.forward(TINY, params, x, rng=np.random.default_rng([3, 2, epoch, step]))
            loss, dy = cross_entropy(y, labels)
            _, grads = net.backward(trace, params, dy)
            rate = learning_rate(SHORT, done / STEPS, 2, [])
            clips = sgd.step(params, grads, velocity, rate=rate, momentum=0.9, decay=5e-4, clip=0.1)
            clipped += sum(clips.values())
            losses.append(loss * len(x))
            done += 1
    checkpoint = trained()
    assert done == 2 * STEPS
    assert bits(checkpoint.params) == bits(params) and bits(checkpoint.optimizer) == bits(velocity)
    assert checkpoint.history["train_loss"] == pytest.approx([sum(losses[:3]) / 50, sum(losses[3:]) / 50])
    assert sum(checkpoint.history["clipped"]) == pytest.approx(clipped / STEPS)


# `trained(epochs=4).history` on an EPYC (Zen 3) with NumPy 2.4; other kernels of OpenBLAS change it by 1e-8.
GOLDEN = {
    "train_loss": [2.3102079391, 2.2993101597, 2.2864387512, 2.2731097221],
    "val_loss": [2.2989136936, 2.2834611373, 2.2710872326, 2.2594509839],
}


def test_golden_losses():
    history = trained(epochs=4).history
    assert {name: history[name] for name in GOLDEN} == {
        name: pytest.approx(losses, rel=1e-6) for name, losses in GOLDEN.items()
    }


def test_history_and_what_callbacks_see():
    seen, saved = [], []
    checkpoint = trained(
        on_step=lambda progress, steps, rate: seen.append((progress.step, progress.images, steps, rate)),
        on_epoch=lambda checkpoint: saved.append((checkpoint.epoch, checkpoint.finished)),
    )
    rates = [learning_rate(SHORT, done / STEPS, 2, []) for done in range(2 * STEPS)]
    places = [(1, 20), (2, 40), (3, 50)] * 2
    assert seen == [(step, images, STEPS, rate) for (step, images), rate in zip(places, rates, strict=True)]
    assert saved == [(1, False), (2, True)]
    history = checkpoint.history
    assert history.keys() == {
        "train_loss", "train_top1", "val_loss", "val_top1", "val_top5", "rate", "clipped", "seconds", "waited"
    }  # fmt: skip
    assert {len(values) for values in history.values()} == {2}
    assert history["rate"] == [rates[STEPS - 1], rates[-1]]
    found = evaluate([checkpoint], VAL)
    assert [history[name][-1] for name in ("val_loss", "val_top1", "val_top5")] == [found.loss, found.top1, found.top5]
    assert 0 <= history["train_top1"][0] <= 1 and min(history["seconds"]) > 0


def test_a_plateau_of_the_validation_error_lowers_the_rate():
    recipe = replace(SHORT, schedule="plateau", rate=1e-12, patience=1, drop=2.0)  # too small to change the error
    assert trained(recipe, epochs=4).history["rate"] == pytest.approx([1e-12, 1e-12, 5e-13, 2.5e-13])


@pytest.mark.parametrize(("val_top1", "rate"), [([0.1, 0.2], 1e-3), ([0.2, 0.1], 5e-4)])
def test_a_better_validation_error_keeps_the_rate(val_top1, rate):
    recipe = replace(SHORT, schedule="plateau", rate=1e-3, patience=1, drop=2.0)
    checkpoint = trained(recipe, epochs=2)
    checkpoint.history["val_top1"] = val_top1
    assert trained(recipe, checkpoint=checkpoint, epochs=3).history["rate"][-1] == rate


@pytest.mark.parametrize("clip", [0.1, 0.05])
def test_filters_stay_within_the_clip(clip):
    recipe = replace(SHORT, clip=clip)
    assert sgd.filter_rms(begun(recipe).params["conv2"]["w"]).max() > clip
    checkpoint = trained(recipe)
    assert checkpoint.history["clipped"][0] > 0
    for layer in ("conv1", "conv2"):
        assert sgd.filter_rms(checkpoint.params[layer]["w"]).max() <= clip * (1 + 1e-6)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_do_not_change_a_bit(threads):
    assert state(trained(threads=threads)) == state(trained(threads=2))


def test_bad_images_are_left_out():
    bad = pictures(colours(50), bad=(0, 1, 30))
    checkpoint = train.begin(TINY, SHORT, bad, epochs=1, seed=3)
    images = []
    train.run(checkpoint, bad, VAL, recipe=SHORT, epochs=1, on_step=lambda progress, *_: images.append(progress.images))
    assert images[-1] == 47


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of overflows, on the way there
def test_a_training_that_diverges_says_where():
    recipe = replace(SHORT, schedule=((0, 1e30),))
    with pytest.raises(ValueError, match=r"loss is nan at epoch 1, step 2, first in .*'s output: .* rate below 1e\+30"):
        trained(recipe)


# ------------------------------------------------------------------------------------- stopping and going on


def stopped_after(steps):
    """A stop that comes after so many steps."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) == steps


@pytest.mark.parametrize("steps", range(1, 2 * STEPS))
def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path, steps):
    """In the middle of an epoch, and after an epoch's last step; through a file in between."""
    stopped = trained(stop=stopped_after(steps))
    assert stopped.epoch == (steps - 1) // STEPS and stopped.rng["step"] == (steps - 1) % STEPS + 1
    assert not stopped.finished
    weights.save(tmp_path / "x.h5", stopped)
    assert state(trained(checkpoint=weights.load(tmp_path / "x.h5"))) == state(trained())


def test_a_training_goes_on_from_what_an_epoch_saved(tmp_path):
    trained(on_epoch=lambda checkpoint: weights.save(tmp_path / f"{checkpoint.epoch}.h5", checkpoint))
    assert state(trained(checkpoint=weights.load(tmp_path / "1.h5"))) == state(trained())


def test_a_training_goes_on_where_all_images_of_a_batch_are_bad():
    recipe = replace(SHORT, batch=2)
    order = np.random.default_rng([3, 1, 0]).permutation(50)
    bad = pictures(colours(50), bad=order[4:6].tolist())  # the third batch

    def run(checkpoint, **options):
        return train.run(checkpoint, bad, VAL, recipe=recipe, epochs=1, **options)

    begun = train.begin(TINY, recipe, bad, epochs=1, seed=3)
    stopped = run(copy.deepcopy(begun), stop=stopped_after(7))
    assert state(run(stopped)) == state(run(begun))


def test_a_finished_training_is_left_as_it_is():
    checkpoint = trained()
    before = state(checkpoint)
    assert state(trained(checkpoint=checkpoint, on_step=pytest.fail)) == before


def test_a_finished_training_may_go_on_for_more_epochs():
    longer = trained(epochs=3, checkpoint=trained(epochs=2))
    assert longer.epoch == 3 and longer.finished and len(longer.history["val_top1"]) == 3


# ------------------------------------------------------------------------------------- learning


def test_the_default_recipe_learns_colours():
    data, val = pictures(colours(300, 10, 32)), pictures(colours(100, 10, 32, seed=1))
    recipe = replace(DEFAULT, batch=10)
    checkpoint = train.begin(TINY, recipe, data, epochs=6, seed=0)
    history = train.run(checkpoint, data, val, recipe=recipe, epochs=6).history
    assert history["val_top1"][-1] > 0.3  # chance is 0.1
    assert history["train_loss"][-1] < history["train_loss"][0]


def test_nothing_is_learnt_from_noise():
    data, val = pictures(noise(100, 32)), pictures(noise(100, 32, seed=1))
    checkpoint = train.begin(TINY, DEFAULT, data, epochs=3, seed=0)
    assert train.run(checkpoint, data, val, recipe=DEFAULT, epochs=3).history["val_top1"][-1] < 0.3


@pytest.mark.slow
def test_the_default_recipe_learns_scenes():
    data, val = (part.subset(range(n)) for part, n in zip(datasets.load(None, side=64), (3000, 400), strict=True))
    arch = models.with_classes(models.MINI, len(data.classes))
    recipe = replace(DEFAULT, batch=32, rate=0.02)
    checkpoint = train.begin(arch, recipe, data, epochs=8, seed=0)
    history = train.run(checkpoint, data, val, recipe=recipe, epochs=8).history
    assert history["val_top1"][-1] > 0.4  # chance is 0.083


@pytest.mark.parametrize("schedule", ["cosine", (), ((1, 0.1),), ((0, 0.1), (5, 0.01), (3, 0.2))])
def test_a_schedule_that_cannot_be_followed_is_refused(schedule):
    with pytest.raises(ValueError, match="it needs one-cycle, plateau, or pairs"):
        replace(DEFAULT, schedule=schedule)
