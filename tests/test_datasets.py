"""Data sets: which files become which images and labels, and batches that don't depend on threads."""

import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refnet import datasets, images, loader
from refnet.datasets import Dataset
from refnet.images import Augment

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenette128.zip"


def noise(side, seed):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def put(path, seed=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(side, seed)).save(path)


@pytest.fixture
def classes(tmp_path):
    """A folder of three classes with 10, 5 and 2 images."""
    for name, n in [("cat", 10), ("ant", 5), ("bee", 2)]:
        for i in range(n):
            put(tmp_path / name / f"{i:02d}.png", seed=i)
    return tmp_path


@pytest.fixture
def split(tmp_path):
    """A folder with train/ and val/; val/ lacks a class."""
    for i, name in enumerate(["train/ant/a.png", "train/bee/b.png", "train/cat/c.png", "val/cat/d.png"]):
        put(tmp_path / name, seed=i)
    return tmp_path


def made(n=20, side=8, bad=(), classes=3):
    """A data set in memory whose images ``bad`` cannot be read."""

    def read(i):
        if i in bad:
            raise ValueError("broken")
        return noise(side, i)

    names = [f"image {i}" for i in range(n)]
    return Dataset(tuple("abcdefgh"[:classes]), np.arange(n) % classes, names, side, read)


# ------------------------------------------------------------------------------------------------- folders


def test_train_and_val_folders(split):
    train, val = datasets.load(split, side=8)
    assert train.classes == val.classes == ("ant", "bee", "cat")
    assert train.names == ["train/ant/a.png", "train/bee/b.png", "train/cat/c.png"]
    assert val.names == ["val/cat/d.png"]
    assert train.labels.tolist() == [0, 1, 2] and val.labels.tolist() == [2]
    assert train.labels.dtype == np.int64
    np.testing.assert_array_equal(val.image(0), noise(8, 3))


def test_one_folder_is_split_by_class_and_the_same_every_time(classes):
    train, val = datasets.load(classes, side=8)
    assert np.bincount(train.labels).tolist() == [4, 1, 8]
    assert np.bincount(val.labels).tolist() == [1, 1, 2]
    whole = datasets.load_whole(classes, side=8)
    assert sorted([*train.names, *val.names]) == sorted(whole.names)
    assert len(train) + len(val) == len(whole) == 17
    assert datasets.load(str(classes), side=8)[1].names == val.names
    assert any(datasets.load(classes, side=8, seed=seed)[1].names != val.names for seed in (1, 2, 3))
    for part in (train, val):
        for i, name in enumerate(part.names):
            assert part.classes[part.labels[i]] == name.split("/")[0]
            np.testing.assert_array_equal(part.image(i), noise(8, int(name[4:6])))


def test_split_does_not_depend_on_the_order_of_files(classes, monkeypatch):
    expected = datasets.load(classes, side=8)[1].names
    scandir = datasets.os.scandir

    class Backwards:
        def __init__(self, path):
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(datasets.os, "scandir", Backwards)
    assert datasets.load(classes, side=8)[1].names == expected


def test_load_whole_takes_val_with_the_labels_of_train(split):
    whole = datasets.load_whole(split, side=8)
    assert whole.names == ["val/cat/d.png"]
    assert whole.labels.tolist() == [2]


def test_load_whole_of_val_alone_and_of_a_class_called_val(split, classes):
    put(split / "alone" / "val" / "ant" / "a.png")
    assert datasets.load_whole(split / "alone", side=8).names == ["val/ant/a.png"]
    put(classes / "trains" / "train" / "a.png")
    put(classes / "trains" / "val" / "b.png")
    assert datasets.load_whole(classes / "trains", side=8).classes == ("train", "val")


def test_labels_follow_given_classes(classes):
    whole = datasets.load_whole(classes, side=8, classes=("zebra", "cat", "bee", "ant"))
    assert whole.classes == ("zebra", "cat", "bee", "ant")
    assert np.bincount(whole.labels).tolist() == [0, 10, 2, 5]
    with pytest.raises(ValueError, match=r"unknown class ant, cat; known are bee, dog"):
        datasets.load_whole(classes, side=8, classes=("bee", "dog"))


def test_hidden_files_and_folders_are_ignored(classes):
    before = datasets.load_whole(classes, side=8)
    put(classes / ".cache" / "a.png")
    put(classes / "ant" / ".a.png")
    put(classes / "loose.png")
    (classes / "ant" / "folder.png").mkdir()
    after = datasets.load_whole(classes, side=8)
    assert after.names == before.names and after.classes == before.classes
    assert after.skipped == {"ant/folder.png": "a folder inside a class folder is not looked into"}


def test_extensions_in_any_case_and_others_counted(tmp_path):
    for name in ("a.JPG", "b.JPEG", "c.Png", "d.gif", "e.bmp", "f.webp", "g.tiff"):
        put(tmp_path / "ant" / name)
    (tmp_path / "ant" / "Thumbs.db").write_bytes(b"?")
    whole = datasets.load_whole(tmp_path, side=8)
    assert len(whole) == 7
    assert list(whole.skipped) == ["ant/Thumbs.db"]
    assert "extension" in whole.skipped["ant/Thumbs.db"]


def test_folder_errors(tmp_path, classes):
    loads = (datasets.load, datasets.load_whole)

    def refused(path, message):
        for load in loads:
            with pytest.raises(ValueError, match=message) as error:
                load(path, side=8)
            assert "\n" not in str(error.value)
            assert "a data set is a folder of class folders" in str(error.value)

    refused(tmp_path / "nowhere", "nowhere: does not exist")
    refused(classes / "ant" / "00.png", "00.png: is not a folder")
    refused(classes / "ant", "ant: has no class folders")
    (classes / "eel").mkdir()
    (classes / "dog").mkdir()
    (classes / "dog" / "readme.txt").write_text("no dogs")
    refused(classes, "no images in class folder dog, eel")


def test_val_class_that_train_lacks_is_an_error(split):
    put(split / "val" / "dog" / "a.png")
    put(split / "val" / "eel" / "a.png")
    for load in (datasets.load, datasets.load_whole):
        with pytest.raises(ValueError, match=r"val: unknown class dog, eel; known are ant, bee, cat"):
            load(split, side=8)


def test_class_too_small_to_split(classes):
    put(classes / "dog" / "a.png")
    with pytest.raises(ValueError, match="class dog has one image"):
        datasets.load(classes, side=8)
    assert len(datasets.load_whole(classes, side=8)) == 18


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("cache_bytes", "reads"), [(17 * 8 * 8 * 3, 1), (17 * 8 * 8 * 3 - 1, 2)])
def test_images_are_decoded_once_if_all_fit(classes, monkeypatch, cache_bytes, reads):
    decode, seen = images.decode, []
    monkeypatch.setattr(images, "decode", lambda path, side: seen.append(path) or decode(path, side=side))
    whole = datasets.load_whole(classes, side=8, cache_bytes=cache_bytes)
    for dataset in (whole, whole.subset([3, 1])):
        for i in range(len(dataset)):
            dataset.image(i)
    assert len(seen) == 17 + (reads - 1) * 2


def test_bad_image_is_tried_once(classes):
    tries = []

    def read(i):
        tries.append(i)
        raise OSError("broken")

    dataset = replace(made(), read=read)
    for _ in range(2):
        with pytest.raises(ValueError, match="image 3: broken"):
            dataset.image(3)
    assert tries == [3]


def test_subset_keeps_order_and_shares_what_was_skipped():
    whole = made(bad=(4,))
    part = whole.subset([7, 4, -1]).subset(np.array([1, 2, 0]))
    assert part.names == ["image 4", "image 19", "image 7"]
    assert part.labels.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(part.image(1), noise(8, 19))
    np.testing.assert_array_equal(part.image(-1), noise(8, 7))
    np.testing.assert_array_equal(whole.image(-1), noise(8, 19))
    with pytest.raises(ValueError, match="image 4: broken"):
        part.image(0)
    assert whole.skipped == {"image 4": "broken"}
    with pytest.raises(IndexError):
        whole.subset([20])


def test_first_is_even_over_the_classes():
    dataset = replace(made(8), labels=np.array([0, 0, 0, 0, 2, 2, 1, 2]))
    assert dataset.first(3).names == ["image 0", "image 4", "image 6"]
    assert np.bincount(dataset.first(6).labels).tolist() == [3, 1, 2]
    assert dataset.first(99).names == dataset.names


# ------------------------------------------------------------------------------------------------- scenes


def test_scenes():
    train, val = datasets.load(None, side=32, seed=3)
    assert (len(train), len(val)) == (datasets.TRAIN_SCENES, datasets.VAL_SCENES)
    assert (train.names[0], val.names[123]) == ("scene 6:000000", "scene 7:000123")
    for part, seed in ((train, 6), (val, 7)):
        scene = datasets.scenes.scene(seed, 13, side=32)
        assert part.classes == datasets.scenes.CLASSES
        assert part.labels[13] == scene.label
        np.testing.assert_array_equal(part.image(13), scene.image)
    whole = datasets.load_whole(None, side=32, seed=3)
    assert whole.names == val.names
    assert not {*train.names, *datasets.load(None, side=32, seed=4)[0].names} & {*val.names}


def test_scenes_follow_given_classes():
    backwards = datasets.scenes.CLASSES[::-1]
    whole = datasets.load_whole(None, side=32, classes=backwards)
    assert [backwards[label] for label in whole.labels[:5]] == list(datasets.scenes.CLASSES[:5])
    with pytest.raises(ValueError, match="scenes: unknown class"):
        datasets.load_whole(None, side=32, classes=("tench",))


# ------------------------------------------------------------------------------------------------- batches

MEAN = noise(8, 99).astype(np.float32)
JITTER = Augment("random", area=(0.3, 1), aspect=4 / 3, colour=0.3)


def epoch(dataset, *, seed=0, augment=JITTER, batch=6, **options):
    rng = np.random.default_rng(seed)
    batches = loader.minibatches(
        dataset, batch=batch, size=6, augment=augment, mean=MEAN, scale=0.5, rng=rng, **options
    )
    return list(batches), rng.bytes(8)


def same(first, second):
    return len(first) == len(second) and all(
        a.tobytes() == b.tobytes()
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_minibatches_visit_every_image_once_with_its_crop():
    dataset = made(18)
    batches, _ = epoch(dataset)
    assert [batch.x.shape for batch in batches] == [(6, 6, 6, 3)] * 3
    assert batches[0].x.dtype == np.float32
    order = np.concatenate([batch.indices for batch in batches])
    assert sorted(order) == list(range(18)) and order.tolist() != sorted(order)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(order, rng.permutation(18))
    drawn = JITTER.draw(18, side=8, size=6, rng=rng)
    for place, (i, x) in enumerate(zip(order, np.concatenate([batch.x for batch in batches]), strict=True)):
        box, mirror, colour = (each[place] for each in drawn)
        expected = images.crop(noise(8, i), box, mirror, colour, size=6, mean=MEAN, scale=0.5)
        np.testing.assert_array_equal(x, expected)
    for batch in batches:
        np.testing.assert_array_equal(batch.labels, dataset.labels[batch.indices])


def test_minibatches_have_the_same_bytes_at_any_thread_count():
    one, after_one = epoch(made(50), threads=1, ahead=0)
    three, after_three = epoch(made(50), threads=3, ahead=5)
    assert same(one, three)
    assert after_one == after_three
    assert not same(one, epoch(made(50), seed=1)[0])


def test_minibatches_draw_before_the_first_batch_is_asked_for():
    _, after_all = epoch(made())
    rng = np.random.default_rng(0)
    loader.minibatches(made(), batch=6, size=6, augment=JITTER, mean=MEAN, scale=0.5, rng=rng)
    assert rng.bytes(8) == after_all


def test_epoch_goes_on_after_a_stop():
    whole, _ = epoch(made())
    assert same(whole[2:], epoch(made(), start=2)[0])


@pytest.mark.parametrize(("n", "sizes"), [(18, [6, 6, 6]), (20, [6, 6, 6]), (21, [6, 6, 6, 3]), (2, [2])])
def test_a_rest_below_half_a_batch_is_left_out(n, sizes):
    batches, _ = epoch(made(n))
    assert [len(batch.x) for batch in batches] == sizes
    assert loader.batch_count(n, 6) == len(sizes)


def test_bad_images_are_missing_and_change_nothing_else():
    whole, after_whole = epoch(made(18))
    dataset = made(18, bad=(3, 5))
    batches, after = epoch(dataset)
    assert after == after_whole
    assert sorted(dataset.skipped) == ["image 3", "image 5"]
    for batch, full in zip(batches, whole, strict=True):
        good = ~np.isin(full.indices, (3, 5))
        assert same([batch], [tuple(each[good] for each in full)])
    assert same(batches, epoch(dataset)[0])  # now that they are known to be bad


def test_a_batch_of_bad_images_is_empty():
    dataset = made(12, bad=range(6))
    batches = list(loader.in_order(dataset, batch=6, size=6, mean=MEAN, scale=1.0))
    assert [batch.indices.tolist() for batch in batches] == [[], [6, 7, 8, 9, 10, 11]]
    assert batches[0].x.shape == (0, 6, 6, 3)


@pytest.mark.parametrize("ten_crop", [False, True])
def test_in_order(ten_crop):
    dataset = made(10, bad=(4,))
    batches = list(loader.in_order(dataset, batch=4, size=6, mean=MEAN, scale=0.5, ten_crop=ten_crop))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [5, 6, 7], [8, 9]]
    whole = images.normalise(np.stack([noise(8, i) for i in (5, 6, 7)]), MEAN, 0.5)
    crops = images.ten_crop if ten_crop else images.centre_crop
    np.testing.assert_array_equal(batches[1].x, crops(whole, 6))
    np.testing.assert_array_equal(batches[1].labels, dataset.labels[[5, 6, 7]])


def test_mean_image_is_exact_at_any_thread_count_and_leaves_bad_images_out():
    dataset = made(150, bad=(0, 70))
    mean = loader.mean_image(dataset, threads=3)
    expected = np.mean([noise(8, i) for i in range(150) if i not in (0, 70)], axis=0, dtype=np.float64)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, expected.astype(np.float32))
    assert sorted(dataset.skipped) == ["image 0", "image 70"]
    assert mean.tobytes() == loader.mean_image(dataset, threads=1).tobytes()
    with pytest.raises(ValueError, match="none of the 2 images can be read; image 0: broken"):
        loader.mean_image(made(2, bad=(0, 1)))


def test_mean_of_another_side_reaches_the_consumer():
    batches = loader.in_order(made(), batch=4, size=6, mean=np.zeros((9, 9, 3), np.float32), scale=1.0)
    with pytest.raises(ValueError, match="the mean is"):
        next(batches)


# ------------------------------------------------------------------------------------------------- threads


def test_failure_in_a_thread_reaches_the_consumer_and_threads_end():
    before = threading.active_count()

    def read(i):
        if i == 9:
            raise RuntimeError("disk on fire")
        return noise(8, i)

    batches = loader.in_order(replace(made(), read=read), batch=4, size=6, mean=MEAN, scale=1.0)
    assert next(batches).indices.tolist() == [0, 1, 2, 3]
    next(batches)
    with pytest.raises(RuntimeError, match="disk on fire"):
        next(batches)
    assert threading.active_count() == before


def test_threads_end_when_the_consumer_stops():
    before = threading.active_count()
    batches = loader.in_order(made(), batch=2, size=6, mean=MEAN, scale=1.0, threads=3)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    for _ in loader.in_order(made(), batch=2, size=6, mean=MEAN, scale=1.0, threads=3):
        break
    assert threading.active_count() == before


def test_look_ahead_is_bounded():
    seen = []

    def read(i):
        seen.append(i)
        return noise(8, i)

    batches = loader.in_order(replace(made(), read=read), batch=1, size=6, mean=MEAN, scale=1.0, ahead=2)
    for asked in range(1, 6):
        next(batches)
        assert len(seen) <= asked + 2
    batches.close()


# ----------------------------------------------------------------------------------------------- photographs


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="no photographs beside the repository (shared/data)")
def test_photographs(tmp_path):
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        archive.extractall(tmp_path, sorted(archive.namelist())[::100])
    train, val = datasets.load(tmp_path / "imagenette128", side=128)
    assert len(train.classes) == 10 and len(val) and set(val.labels) <= set(train.labels)
    mean = loader.mean_image(train)
    assert 80 < mean.mean() < 150 and not train.skipped
    (first, *_) = loader.in_order(val, batch=4, size=112, mean=mean, scale=1 / 64, ten_crop=True)
    assert first.x.shape == (min(4, len(val)), 10, 112, 112, 3) and abs(first.x.mean()) < 1
