"""The weight files that come with refnet are what the README says of them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from refnet import datasets, models, weights
from refnet.evaluate import evaluate

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "imagenette128.zip"
SCENES, IMAGENETTE = (ROOT / "weights" / name for name in ("scenes.h5", "imagenette-small.h5"))


@pytest.mark.parametrize(
    ("path", "megabytes"), [(SCENES, 1), (IMAGENETTE, 7)], ids=lambda value: getattr(value, "name", "")
)
def test_files_are_small_finished_and_without_optimizer_state(path, megabytes):
    assert path.stat().st_size < megabytes * 1e6
    checkpoint = weights.load(path)
    assert checkpoint.finished and checkpoint.optimizer is None
    assert checkpoint.epoch == len(checkpoint.history["val_top1"]) == checkpoint.recipe["epochs"]


def test_architectures_are_the_presets():
    scenes, photographs = weights.load(SCENES), weights.load(IMAGENETTE)
    assert scenes.arch == models.with_classes(models.MINI, len(datasets.scenes.CLASSES))
    assert photographs.arch == models.SMALL
    assert scenes.classes == datasets.scenes.CLASSES


def test_scenes_are_neither_trivial_nor_impossible_for_a_network():
    """80 to 98 % on scenes it has never seen; linear models stay under 40 % (tests/test_scenes.py)."""
    checkpoint = weights.load(SCENES)
    unseen = datasets.load_whole(None, side=checkpoint.mean.shape[0], seed=checkpoint.seed + 1000)
    assert 0.80 <= evaluate([checkpoint], unseen).top1 <= 0.98


def test_layer_1_has_learnt_smooth_filters():
    """Noise has no correlation between neighbouring weights; edges and colours have much."""
    for path in (SCENES, IMAGENETTE):
        w = weights.load(path).params["conv1"]["w"]
        w = w - w.mean(axis=(0, 1))
        for left, right in ((w[:, :-1], w[:, 1:]), (w[:-1], w[1:])):
            assert (left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum()) > 0.3


def test_top_1_on_photographs(tmp_path):
    if not PHOTOGRAPHS.exists():
        pytest.skip("the photographs are not here: ../shared/data/imagenette128.zip")
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/val/" in name])
    checkpoint = weights.load(IMAGENETTE)
    val = datasets.load_whole(tmp_path / "imagenette128", side=128, classes=checkpoint.classes)
    scores = evaluate([checkpoint], val)
    assert scores.images == 1000
    assert scores.top1 >= 0.75
