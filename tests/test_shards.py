"""Packed data sets: what goes in comes out, an interrupted run goes on, and files that lie are refused."""

import io
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from fixtures import noise
from PIL import Image

from refnet import datasets, hdf5, imagenet, images, loader, shards
from refnet.datasets import Dataset
from refnet.hdf5 import Content

TOOL = Path(__file__).parents[1] / "tools" / "prepare.py"


def data_set(n=10, side=16, bad=()):
    pixels = noise(n, side=side)

    def read(i):
        if i in bad:
            raise ValueError("it is no image")
        return pixels[i]

    return Dataset(("a", "b"), np.arange(n) % 2, [f"{'ab'[i % 2]}/{i}.png" for i in range(n)], side, read)


def packed(folder, data, part="train", **how):
    return shards.write(folder, part, data, **{"quality": None, "per_shard": 4, **how})


def loaded(folder, part="train", side=16):
    return Dataset(*shards.load(folder, part, side=side))


def test_pixels_labels_names_and_the_mean_come_back(tmp_path):
    data = data_set()
    paths = packed(tmp_path, data)
    assert [path.name for path in paths] == ["train-00000.h5", "train-00001.h5", "train-00002.h5"]
    back = loaded(tmp_path)
    assert (back.classes, back.names, back.labels.tolist()) == (data.classes, data.names, data.labels.tolist())
    for i in range(len(data)):
        np.testing.assert_array_equal(back.image(i), data.image(i))
    np.testing.assert_array_equal(loader.mean_image(back), loader.mean_image(data))
    assert loader.mean_image(back.subset([1])).tolist() == data.image(1).tolist()  # a subset reads its own
    assert shards.verify(tmp_path, "train") == 10


def test_jpegs_come_back_nearly_the_same(tmp_path):
    smooth = np.asarray(Image.fromarray(noise(1, side=4)[0]).resize((32, 32), Image.Resampling.BICUBIC))
    data = replace(data_set(3, side=32), read=lambda i: smooth)
    packed(tmp_path, data, quality=95)
    back = loaded(tmp_path, side=32)
    assert np.abs(back.image(0).astype(int) - smooth).mean() < 4
    assert loaded(tmp_path, side=16).image(0).shape == (16, 16, 3)  # another side is resized, and has another mean
    assert loaded(tmp_path, side=16).mean is None and back.mean is not None


def test_bad_images_are_left_out_and_listed(tmp_path):
    data = data_set(bad={2, 3, 9})
    packed(tmp_path, data)
    back = loaded(tmp_path)
    assert len(back) == 7 and back.skipped == {"a/2.png": "it is no image", "b/3.png": "it is no image",
                                               "b/9.png": "it is no image"}  # fmt: skip
    np.testing.assert_array_equal(back.image(2), data.image(4))


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    for folder in (whole, again):
        folder.mkdir()
        packed(folder, data_set())
    (again / "train-00001.h5").unlink()
    kept = (again / "train-00000.h5").stat().st_mtime_ns
    packed(again, data_set())
    assert (again / "train-00000.h5").stat().st_mtime_ns == kept
    for path in whole.iterdir():
        got, want = (hdf5.read(folder / path.name, check=shards._check) for folder in (again, whole))
        assert got.attributes == want.attributes
        for name, array in want.datasets.items():
            np.testing.assert_array_equal(got.datasets[name], array)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": data_set(9)}, "source"),
        ({"quality": 90}, "quality 0, not 90"),
        ({"per_shard": 5}, "shards 3, not 2|is no shard of these images"),
    ],
)
def test_shards_of_something_else_are_not_mixed_in(tmp_path, changed, message):
    packed(tmp_path, data_set())
    with pytest.raises(ValueError, match=message):
        packed(tmp_path, changed.pop("data", data_set()), **changed)


def test_a_missing_shard_is_named(tmp_path):
    packed(tmp_path, data_set())
    (tmp_path / "train-00001.h5").unlink()
    with pytest.raises(ValueError, match=r"one of 3 shards, but train-00001.h5 are missing"):
        loaded(tmp_path)


def spoilt(path, name, change):
    """The shard with another array, and a checksum that fits it."""
    content = hdf5.read(path, check=shards._check)
    content.datasets[name] = change(content.datasets[name].copy())
    path.unlink()
    hdf5.write(path, Content({"/": content.attributes["/"]}, content.datasets))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("/offsets", lambda a: a[::-1].copy(), "must rise from 0"),
        ("/offsets", lambda a: a + 1, "must rise from 0"),
        ("/offsets", lambda a: np.sort(np.append(a[:-2], [a[-2] + 1, a[-1]])), "must be 768 apart"),
        ("/labels", lambda a: a + 2, "labels run from 2 to 3, but there are 2 classes"),
        ("/labels", lambda a: a - 1, "labels run from -1"),
        ("/labels", lambda a: a[:-1], "/offsets is"),
        ("/images", lambda a: a[:-1], "must rise from 0 to the 2303 bytes"),
        ("/sum", lambda a: a[..., :2], "/sum is"),
        ("/labels", lambda a: a.astype("f4"), "/labels is"),
    ],
)
def test_a_shard_that_lies_is_refused(tmp_path, name, change, message):
    path = packed(tmp_path, data_set())[0]
    spoilt(path, name, change)
    with pytest.raises(ValueError, match=f"train-00000.h5: .*{message}"):
        loaded(tmp_path)


def test_damage_and_links_are_noticed(tmp_path):
    path = packed(tmp_path, data_set())[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-700])
    with pytest.raises(ValueError):
        loaded(tmp_path)
    at = whole.index(data_set().image(0).tobytes()) + 5
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    loaded(tmp_path)  # not compared
    with pytest.raises(ValueError, match=r"train-00000\.h5: the checksum differs"):
        shards.verify(tmp_path, "train")
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["other"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ValueError, match="soft or external link"):
        loaded(tmp_path)


def test_many_shards_hold_no_file_descriptors(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    packed(tmp_path, data_set(30), per_shard=1)
    back = loaded(tmp_path)
    assert len(back) == 30 and back.image(29).shape == (16, 16, 3)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_an_image_of_another_size_than_its_shard_says_is_noticed(tmp_path):
    [path] = shards.write(tmp_path, "train", data_set(2))
    content = hdf5.read(path, check=shards._check)
    small = images.encode(noise(1, side=16)[0][:9, :5], 95)
    content.datasets["/images"] = np.frombuffer(small + small, np.uint8)
    content.datasets["/offsets"] = np.array([0, len(small), 2 * len(small)])
    hdf5.write(path, content)
    with pytest.raises(ValueError, match="it is 5 x 9, but its shard says 16 x 16"):
        shards.verify(tmp_path, "train")


# --- the command ---


def prepare(*args):
    done = subprocess.run([sys.executable, TOOL, *map(str, args)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    for i, pixels in enumerate(noise(24, side=40)):
        path = tmp_path / "src" / ("train" if i < 16 else "val") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "src" / "train" / "a" / "bad.jpg").write_text("<html>")
    return tmp_path / "src"


def test_what_was_prepared_trains_as_the_folder_does(folder, tmp_path):
    status, out, err = prepare(folder, tmp_path / "dst", "--side", "32", "--raw", "--per-shard", "7")
    assert status == 0 and out.startswith(f"{tmp_path / 'dst'}: 24 images") and "bad.jpg: not an image" in err
    found = []
    for path in (folder, tmp_path / "dst"):
        train, val = datasets.load(path, side=32)
        assert (len(val), train.classes) == (8, ("a", "b"))
        found.append([train.image(i) for i in range(len(train)) if "bad" not in train.names[i]])
    np.testing.assert_array_equal(found[0], found[1], strict=True)
    assert len(datasets.load_whole(tmp_path / "dst", side=32)) == 8
    assert datasets.load_whole(tmp_path / "dst", side=32, classes=("c", "b", "a")).labels.max() == 2
    with pytest.raises(ValueError, match="unknown class b"):
        datasets.load_whole(tmp_path / "dst", side=32, classes=("a",))


def test_strict_and_mistakes(folder, tmp_path):
    assert prepare(folder, tmp_path / "dst", "--side", "32", "--strict")[0] == 1
    status, _, err = prepare(folder, tmp_path / "dst", "--side", "32", "--quality", "80")
    assert status == 2 and "quality 95, not 80; use another folder" in err
    assert prepare(folder, tmp_path / "dst", "--quality", "101")[0] == 2
    assert prepare(tmp_path / "nothing", tmp_path / "dst2")[0] == 2


# --- ImageNet's tar files ---


def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def tars(tmp_path):
    pixels = noise(9, side=20)
    files = [png(each) for each in pixels]
    inner = {f"{name}.tar": tar_of({f"{name}_{i}.JPEG": files[2 * k + i] for i in range(2)})
             for k, name in enumerate(("n02", "n01", "n03"))}  # fmt: skip
    (tmp_path / imagenet.TRAIN).write_bytes(tar_of(inner))
    (tmp_path / imagenet.VAL).write_bytes(tar_of({f"val_{i}.JPEG": files[6 + i] for i in range(3)}))
    (tmp_path / "numbers.txt").write_text("3\n1\n1\n")
    (tmp_path / "synsets.txt").write_text("n03 a thing\nn02\nn01\n")
    (tmp_path / "names.txt").write_text("val_1.JPEG n02\nval_0 n03\nval_2.JPEG n01\n")
    return tmp_path, pixels


def test_imagenets_tar_files(tars):
    folder, pixels = tars
    train, val = imagenet.load(folder, side=20, labels=folder / "numbers.txt", synsets=folder / "synsets.txt")
    assert train.classes == val.classes == ("n01", "n02", "n03")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and val.labels.tolist() == [0, 2, 2]
    assert train.names[0] == "n01/n01_0.JPEG"
    for data, of in ((train, (2, 3, 0, 1, 4, 5)), (val, (6, 7, 8))):
        for i, k in enumerate(of):
            np.testing.assert_array_equal(data.image(i), pixels[k])
    _, val = imagenet.load(folder, side=20, labels=folder / "names.txt", synsets=None)
    assert val.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("labels", "synsets", "message"),
    [
        (None, None, "no labels of its own: give them with --val-labels"),
        ("3\n1\n1\n", None, "say with --synsets FILE"),
        ("3\n1\n", "n01\nn02\nn03\n", "2 lines for 3 images"),
        ("3\n1\n4\n", "n01\nn02\nn03\n", "a number from 1 to 3"),
        ("val_0 n01\nval_1 n01\n", None, "lacks 1 of 3 images, val_2.JPEG"),
        ("val_0 n01\nval_1 n01\nval_2 n09\n", None, "names n09, which"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tars, labels, synsets, message):
    folder, _ = tars
    given = []
    for name, text in (("l.txt", labels), ("s.txt", synsets)):
        given.append(None if text is None else folder / name)
        if text is not None:
            (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        imagenet.load(folder, side=20, labels=given[0], synsets=given[1])


def test_a_tar_file_that_was_cut_off_is_noticed(tars):
    folder, _ = tars
    data = (folder / imagenet.TRAIN).read_bytes()
    (folder / imagenet.TRAIN).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"no whole tar file|empty or cut off"):
        imagenet.load(folder, side=20, labels=folder / "names.txt", synsets=None)
    (folder / imagenet.TRAIN).unlink()
    with pytest.raises(ValueError, match=r"there is no ILSVRC2012_img_train\.tar"):
        imagenet.load(folder, side=20, labels=folder / "names.txt", synsets=None)
