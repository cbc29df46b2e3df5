"""Kill -9 a training at random moments, as often as asked, and compare what it leaves with a run that nobody kills.

python tests/killed.py FOLDER KILLS prints one JSON object. It forks, so that no start-up time lies between the kills;
the parent itself starts no threads.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("", "tools", "tests")]

import _lock  # noqa: E402
import _training  # noqa: E402
import numpy as np  # noqa: E402

from refnet import datasets, models, train, weights  # noqa: E402

EPOCHS = 12
LONGEST = 0.25  # seconds that a training gets before it is killed


def data():
    """A few scenes, drawn once."""
    pixels = np.stack([datasets.load_whole(None, side=32).image(i) for i in range(36)])
    return datasets.Dataset(("a", "b", "c"), np.arange(36) % 3, [f"{i}" for i in range(36)], 32, lambda i: pixels[i])


def fit(out, images):
    """What tools/train.py does; stderr is of no interest."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the rest of this process
    recipe = replace(train.DEFAULT, batch=6)
    with _lock.held(out):
        arch = models.with_classes(models.TINY, 3)
        _training.fit(out, arch, images, images, recipe=recipe, epochs=EPOCHS, seed=0, threads=2)


def bits(checkpoint):
    """Parameters and optimizer state, and how far they are."""
    parts = [checkpoint.params, checkpoint.optimizer or {}]
    return [{(n, k): a.tobytes() for n, each in part.items() for k, a in each.items()} for part in parts]


def forked(work, *args):
    """Start ``work`` in a child."""
    child = os.fork()
    if not child:
        try:
            work(*args)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.__stderr__)
            os._exit(1)
    return child


def reference(folder, images):
    """Every epoch's checkpoint of a run that nobody kills."""
    recipe = replace(train.DEFAULT, batch=6)
    start = train.begin(models.with_classes(models.TINY, 3), recipe, images, epochs=EPOCHS, seed=0)
    train.run(
        start, images, images, recipe=recipe, epochs=EPOCHS, threads=1,
        on_epoch=lambda ck: weights.save(folder / f"reference{ck.epoch}.h5", ck),
    )  # fmt: skip


def main():
    """Kill, look, and go on."""
    folder, kills, images = Path(sys.argv[1]), int(sys.argv[2]), data()
    rng = np.random.default_rng(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    assert os.waitpid(forked(reference, folder, images), 0)[1] == 0
    want = {epoch: bits(weights.load(folder / f"reference{epoch}.h5")) for epoch in range(1, EPOCHS + 1)}
    out = folder / "killed.h5"
    found = dict.fromkeys(("kills", "finished", "wrong", "unreadable", "in_a_write"), 0)
    while found["kills"] < kills or not found["finished"]:
        child = forked(fit, out, images)
        if found["kills"] < kills:
            time.sleep(rng.uniform(0, LONGEST))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        found["kills"] += os.WIFSIGNALED(status)
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
        found["in_a_write"] += bool(list(folder.glob(".killed.h5.*.tmp")))
        if not out.exists():
            continue
        try:
            left = weights.load(out)
        except (ValueError, OSError):
            found["unreadable"] += 1
            break
        params, optimizer = bits(left)
        found["wrong"] += params != want[left.epoch][0] or (bool(optimizer) and optimizer != want[left.epoch][1])
        if left.finished:
            found["finished"] += 1
            out.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
