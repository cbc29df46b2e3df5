"""The HDF5 format: nothing is lost, nothing is half written, and whatever is wrong is said in one line."""

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from refnet import hdf5, models, weights
from refnet.arch import Arch, Linear
from refnet.weights import Checkpoint


def random_params(arch, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    shapes = arch.param_shapes()
    return {
        layer: {name: rng.normal(0, 0.1, shape).astype(dtype) for name, shape in each.items()}
        for layer, each in shapes.items()
    }


def finished(arch=models.TINY, dtype="float32"):
    """The least a checkpoint can be."""
    return Checkpoint(arch, random_params(arch, dtype), np.full((*arch.input,), 120.5, np.float32))


def in_training(dtype="float32"):
    """A checkpoint with everything in it."""
    rng = np.random.default_rng(1)
    return Checkpoint(
        models.TINY,
        random_params(models.TINY, dtype),
        rng.uniform(0, 255, (21, 22, 3)).astype(np.float32),
        scale=1 / 64,
        classes=tuple(f"class {n}" for n in range(10)),
        recipe={"name": "paper", "decay": 5e-4, "schedule": [[1, 0.01], [30, 0.001]], "note": "σ=½"},
        seed=2**40,
        epoch=3,
        history={"train_loss": [2.3, 0.1 + 0.2, float("inf")], "val_top1": [0.1, 0.5, 0.7], "none_yet": []},
        optimizer=random_params(models.TINY, dtype, seed=2),
        rng={"order": rng.bit_generator.state, "step": 7},
        colour_order="BGR",
        input_range=1.0,
    )


def same_params(a, b):
    return a.keys() == b.keys() and all(
        same_array(a[layer][name], b[layer][name]) for layer in a for name in ("w", "b")
    )


def same_array(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def file(tmp_path) -> Path:
    """A good file to do harm to."""
    path = tmp_path / "good.h5"
    weights.save(path, in_training())
    return path


# What is written comes back


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_comes_back_bit_by_bit(tmp_path, dtype):
    before = in_training(dtype)
    weights.save(tmp_path / "x.h5", before)
    after = weights.load(tmp_path / "x.h5")
    assert same_params(after.params, before.params) and same_params(after.optimizer, before.optimizer)
    assert same_array(after.mean, before.mean)
    for name in before.__dict__.keys() - {"params", "optimizer", "mean"}:
        assert getattr(after, name) == getattr(before, name), name
    restored = np.random.default_rng()
    restored.bit_generator.state = after.rng["order"]  # 128-bit integers and all


def test_optional_parts_may_be_absent(tmp_path):
    weights.save(tmp_path / "x.h5", finished())
    after = weights.load(tmp_path / "x.h5")
    assert after.optimizer is None and after.rng is None
    assert (after.classes, after.history, after.recipe) == ((), {}, {})
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(file) == ["input", "params"]


def test_layers_come_back_in_the_order_of_the_network(tmp_path):
    layers = (Linear("z", 4), Linear("a", 3))
    weights.save(tmp_path / "x.h5", finished(Arch("unsorted", (2, 2, 3), layers)))
    assert list(weights.load(tmp_path / "x.h5").params) == ["z", "a"]


def test_float16_is_stored_at_half_the_size_and_read_as_float32(tmp_path):
    before = finished(models.MINI)
    weights.save(tmp_path / "32.h5", before)
    weights.save(tmp_path / "16.h5", before, dtype="float16")
    assert (tmp_path / "16.h5").stat().st_size < 1_000_000 < (tmp_path / "32.h5").stat().st_size
    after = weights.load(tmp_path / "16.h5")
    for layer, each in before.params.items():
        for name, array in each.items():
            assert same_array(after.params[layer][name], array.astype(np.float16).astype(np.float32))
    assert same_array(after.mean, before.mean)


def test_the_same_checkpoint_gives_the_same_file(tmp_path):
    for name in ("a.h5", "b.h5"):
        weights.save(tmp_path / name, in_training())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_25000_class_names_in_any_script(tmp_path):
    hostile = ["", " ", "a/b", "..", "\n", "\u202etxt.exe", "日本語", "🦓" * 50, "e\u0301", "é", "\x7f\x01"]
    names = tuple(hostile + [f"n{n:08}" for n in range(25_000 - len(hostile))])
    before = replace(finished(Arch("wide", (1, 1, 3), (Linear("fc", 25_000),))), classes=names)
    weights.save(tmp_path / "x.h5", before)
    assert weights.load(tmp_path / "x.h5").classes == names
    assert (tmp_path / "x.h5").stat().st_size < 1_000_000  # 25,000 times the longest, were they not deflated
    with h5py.File(tmp_path / "x.h5") as file:
        assert h5py.check_string_dtype(file["classes"].dtype).encoding == "utf-8"


def test_a_long_recipe_fits(tmp_path):
    recipe = {"note": "x" * 100_000}  # attributes of older HDF5 structures end at 64 KiB
    weights.save(tmp_path / "x.h5", replace(finished(), recipe=recipe))
    assert weights.load(tmp_path / "x.h5").recipe == recipe


def test_the_checksum_is_the_one_that_format_md_defines(file):
    objects = {}
    with h5py.File(file) as f:
        objects["/"] = dict(f.attrs)
        data = {}

        def visit(name, item):
            objects["/" + name] = dict(item.attrs)
            if isinstance(item, h5py.Dataset):
                data["/" + name] = item[()]

        f.visititems(visit)
    claimed = objects["/"].pop("sha256").decode()
    sha = hashlib.sha256()
    for path in sorted(objects):
        for name in sorted(objects[path]):
            value = objects[path][name].item()
            value = value.decode() if isinstance(value, bytes) else value
            sha.update((json.dumps([path, name, value]) + "\n").encode())
    for path in sorted(data):
        with h5py.File(file) as f:
            dtype, shape = f[path].dtype.str, f[path].shape
        sha.update((json.dumps([path, dtype, shape]) + "\n").encode())
        sha.update(np.asarray(data[path], dtype).tobytes())
    assert sha.hexdigest() == claimed


def test_the_example_in_format_md_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "weights" / "FORMAT.md").read_text()
    (tmp_path / "weights").mkdir()
    weights.save(tmp_path / "weights" / "scenes.h5", in_training())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["arch"]["name"] == "tiny" and names["params"]["conv1"][0].shape == (5, 5, 3, 6)
    assert names["classes"][3] == "class 3" and names["scale"] == 1 / 64


# Written whole or not at all


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    weights.save(path, finished())
    old = path.read_bytes()
    create = h5py.Group.create_dataset

    def fails_at_the_mean(group, name, **options):
        if name == "/input/mean":
            raise OSError("disk full")
        return create(group, name, **options)

    monkeypatch.setattr(h5py.Group, "create_dataset", fails_at_the_mean)
    with pytest.raises(OSError, match="disk full"):
        weights.save(path, in_training())
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hdf5.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights.save(tmp_path / "x.h5", finished())
    assert list(tmp_path.iterdir()) == []


def test_file_then_folder_are_synced_around_the_renaming(tmp_path, monkeypatch):
    steps = []
    fsync, rename = hdf5.os.fsync, hdf5.os.replace

    def noted_fsync(handle):
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_rename(old, new):
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(hdf5.os, "fsync", noted_fsync)
    monkeypatch.setattr(hdf5.os, "replace", noted_rename)
    weights.save(tmp_path / "x.h5", finished())
    assert steps == ["file", "rename", "folder"]


def test_saving_through_a_link_replaces_the_file_behind_it(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "last.h5").symlink_to(tmp_path / "disk" / "real.h5")
    weights.save(tmp_path / "last.h5", finished())
    assert (tmp_path / "last.h5").is_symlink() and (tmp_path / "disk" / "real.h5").is_file()


# What save refuses


def test_save_lists_all_that_does_not_fit(tmp_path):
    bad = finished()
    del bad.params["conv1"]["b"]
    bad.params["fc8"]["w"] = bad.params["fc8"]["w"].T
    bad.params["fc9"] = {"w": np.zeros(1)}
    bad.params["fc6"]["b"] = bad.params["fc6"]["b"].astype(int)
    with pytest.raises(ValueError) as caught:
        weights.save(tmp_path / "x.h5", bad)
    assert str(caught.value).removeprefix(f"{tmp_path / 'x.h5'}: it does not fit tiny: ").split("; ") == [
        "/params/conv1/b (6,) is missing",
        "/params/fc6/b is int64, it needs float16, 32 or 64",
        "/params/fc8/w is (10, 12), it needs (12, 10)",
        "/params/fc9/w is extra",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"rate": np.float32(1)}}, "recipe must survive JSON"),
        ({"rng": {"x": float("nan")}}, "rng must survive JSON"),
        ({"history": {"a/b": [1.0]}}, "name 'a/b'"),
        ({"mean": np.zeros((18, 19, 3), np.float32)}, r"mean is \(18, 19, 3\), it needs \(19, 19, 3\)"),
        ({"mean": np.zeros((19, 19, 4), np.float32)}, r"/input/mean is \(19, 19, 4\)"),
        ({"mean": np.zeros(3, np.float32)}, r"/input/mean is \(3,\)"),
        ({"mean": np.zeros((19, 19, 3), np.uint8)}, "/input/mean is uint8"),
    ],
)
def test_save_refuses_what_the_format_cannot_hold(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        weights.save(tmp_path / "x.h5", replace(finished(), **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a", "b")}, "2 class names, but tiny has 10 outputs"),
        ({"classes": ("a\0b",) * 10}, "NUL"),
        ({"classes": ("\ud800",) * 10}, "half a character"),
        ({"colour_order": "RBG"}, "colour order is 'RBG', it needs RGB or BGR"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"input_range": float("nan")}, "input_range is nan"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"epoch": -1}, "epoch is -1"),
    ],
)
def test_a_checkpoint_refuses_values_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        replace(finished(), **change)


def test_float16_refuses_a_training_that_goes_on_and_values_beyond_it(tmp_path):
    with pytest.raises(ValueError, match="float16 is for finished weights, without /optimizer"):
        weights.save(tmp_path / "x.h5", in_training(), dtype="float16")
    large = finished()
    large.params["fc8"]["b"][0] = -1e5
    with pytest.raises(ValueError, match=r"/params/fc8/b reaches 1e\+05, float16 only 65504"):
        weights.save(tmp_path / "x.h5", large, dtype="float16")
    with pytest.raises(ValueError, match="'float8'"):
        weights.save(tmp_path / "x.h5", finished(), dtype="float8")


def test_save_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        weights.save(tmp_path / "nowhere" / "x.h5", finished())


# What load refuses


def refusal(path) -> str:
    """The one line with which load refuses ``path``."""
    with pytest.raises(ValueError) as caught:
        weights.load(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line
    return line


def test_missing_and_unopenable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope\.h5"):
        weights.load(tmp_path / "nope.h5")
    with pytest.raises(IsADirectoryError):
        weights.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"version https://git-lfs.github.com\n"])
def test_a_file_that_is_no_hdf5(tmp_path, content):
    (tmp_path / "x.h5").write_bytes(content)
    line = refusal(tmp_path / "x.h5")
    assert "no HDF5 file" in line and repr(content[:16]) in line


@pytest.mark.parametrize("kept", [20, 500, 5000, -1])
def test_a_truncated_file(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    assert "damaged HDF5 file, get it again" in refusal(file)


def test_another_programs_hdf5(tmp_path):
    with h5py.File(tmp_path / "keras.h5", "w") as f:
        f.attrs["backend"] = "tensorflow"
        f.attrs["layer_names"] = [b"conv1", b"conv2"]
    assert "not refnet's: its attribute format is None, it needs 'refnet'" in refusal(tmp_path / "keras.h5")


def test_a_later_version(file):
    with h5py.File(file, "r+") as f:
        f.attrs["version"] = 2
    line = refusal(file)
    assert "version is 2, but this refnet reads 1" in line and "update refnet" in line


def test_root_attributes_are_all_checked_at_once(file):
    with h5py.File(file, "r+") as f:
        del f.attrs["arch"], f.attrs["sha256"]
        f.attrs["epoch"] = 1.5
        f.attrs["lrn_alpha"] = np.bytes_("multiplies the mean of squares")
        f.attrs["recipe"] = "of variable length"
    line = refusal(file)
    assert sorted(line.removeprefix(f"{file}: attributes do not fit: ").split("; ")) == [
        "arch is None, it needs str",
        "epoch is 1.5, it needs int",
        "lrn_alpha is 'multiplies the mean of squares', it needs 'multiplies the sum of squares'",
        "recipe is None, it needs str",
        "sha256 is None, it needs str",
    ]


def test_missing_extra_and_misshaped_are_listed_at_once(file):
    with h5py.File(file, "r+") as f:
        del f["params/conv1/w"], f["optimizer/fc8"], f["input/scale"]
        f["params/conv9/w"] = np.zeros(3)
        f["history/deep/er"] = np.zeros(3)
        del f["params/fc8/w"]
        f["params/fc8/w"] = np.zeros((10, 12), np.float32)
        f["params/fc8/w"].attrs["axes"] = np.bytes_("unit input")
        del f["params/fc8/b"]
        f["params/fc8/b"] = np.zeros(10, np.int32)
        f["params/fc8/b"].attrs["axes"] = np.bytes_("unit")
    line = refusal(file)
    assert sorted(line.removeprefix(f"{file}: it does not fit tiny: ").split("; ")) == [
        "/history/deep/er is extra",
        "/input/scale () is missing",
        "/optimizer/fc8/b (10,) is missing",
        "/optimizer/fc8/w (12, 10) is missing",
        "/params/conv1/w (5, 5, 3, 6) is missing",
        "/params/conv9/w is extra",
        "/params/fc8/b is int32, it needs float16, 32 or 64",
        "/params/fc8/w has the axes 'unit input', it needs 'input unit'",
        "/params/fc8/w is (10, 12), it needs (12, 10)",
    ]


@pytest.mark.parametrize("dtype", [np.int8, np.complex64, np.dtype(">f4"), h5py.string_dtype(), bool])
def test_numbers_of_other_types(file, dtype):
    with h5py.File(file, "r+") as f:
        del f["params/fc8/b"]
        f.create_dataset("params/fc8/b", (10,), dtype)
        f["params/fc8/b"][...] = "1" if h5py.check_string_dtype(np.dtype(dtype)) else 1
        f["params/fc8/b"].attrs["axes"] = np.bytes_("unit")
    assert "it needs float16, 32 or 64" in refusal(file)


def test_texts_of_variable_length(file):
    with h5py.File(file, "r+") as f:
        names = f["classes"].asstr()[:]
        del f["classes"]
        f["classes"] = names
    assert "/classes is object, it needs text of fixed length" in refusal(file)


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (h5py.SoftLink("/params/fc6/b"), "/params/fc8/b is a soft or external link"),
        (h5py.ExternalLink("other.h5", "/params/fc8/b"), "/params/fc8/b is a soft or external link"),
    ],
)
def test_links(file, link, message):
    with h5py.File(file, "r+") as f:
        del f["params/fc8/b"]
        f["params/fc8/b"] = link
    assert message in refusal(file)


def test_second_names_and_circles(file):
    with h5py.File(file, "r+") as f:
        f["params/again"] = f["params"]
    assert "/params/again is a second name of another object" in refusal(file)


def test_external_storage(file, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(40))
    with h5py.File(file, "r+") as f:
        del f["params/fc8/b"]
        f.create_dataset("params/fc8/b", (10,), "f4", external=[(str(tmp_path / "secret"), 0, 40)])
    assert "/params/fc8/b keeps its data in other files" in refusal(file)


def test_virtual_datasets(file, tmp_path):
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (10,))
    with h5py.File(file, "r+") as f:
        del f["params/fc8/b"]
        f.create_virtual_dataset("params/fc8/b", layout)
    assert "/params/fc8/b keeps its data in other files" in refusal(file)


def test_a_petabyte_that_is_declared_but_not_stored(file):
    huge = Arch("huge", (10_000, 10_000, 10), (Linear("fc", 250_000),))
    with h5py.File(file, "r+") as f:
        f.attrs["arch"] = np.bytes_(huge.to_json())
        del f["params"]
        f.create_dataset("params/fc/w", (10**9, 250_000), "f4", chunks=(1000, 1000), compression="gzip")
    assert "/params/fc/w declares 1,000,000,000,000,000 bytes, but only 0 are stored" in refusal(file)


def test_shapes_are_refused_before_anything_is_read(file, monkeypatch):
    with h5py.File(file, "r+") as f:
        f["params/conv9/w"] = np.zeros(3)

    def read(*_):
        raise AssertionError("a dataset was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    assert "/params/conv9/w is extra" in refusal(file)


def flip_a_weight(f):
    f["params/conv2/w"][0, 0, 0, 0] = np.nextafter(f["params/conv2/w"][0, 0, 0, 0], np.float32(1))


def change_the_seed(f):
    f.attrs["seed"] = 8


def rename_a_class(f):
    f["classes"][3] = "class 8"


def lengthen_the_history(f):
    f["history/extra"] = [1.0]


def note_on_a_group(f):
    f["params"].attrs["note"] = 1


@pytest.mark.parametrize(
    "change", [flip_a_weight, change_the_seed, rename_a_class, lengthen_the_history, note_on_a_group]
)
def test_the_checksum_sees_every_change(file, change):
    with h5py.File(file, "r+") as f:
        change(f)
    assert "the checksum differs: the file was changed or damaged" in refusal(file)


def test_flipped_bytes_are_refused_or_make_no_difference(file):
    """Anywhere in the file; libhdf5 survives because its structures carry checksums of their own."""
    good, rng = file.read_bytes(), np.random.default_rng(0)
    before = weights.load(file)
    refused = 0
    for at in rng.integers(len(good), size=120):
        bad = bytearray(good)
        bad[at] ^= 1 << rng.integers(8)
        file.write_bytes(bad)
        try:
            after = weights.load(file)
        except ValueError:
            refused += 1
        else:
            assert same_params(after.params, before.params) and after.rng == before.rng
    assert refused > 60


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_recipe_that_is_no_json_object(tmp_path, monkeypatch, text):
    monkeypatch.setattr(weights, "_to_json", lambda *_: text)
    weights.save(tmp_path / "x.h5", finished())
    assert "its recipe is" in refusal(tmp_path / "x.h5")


def test_an_arch_that_is_no_json(file):
    with h5py.File(file, "r+") as f:
        f.attrs["arch"] = np.bytes_("{")
    assert "the architecture is no valid JSON" in refusal(file)


def test_parameters_of_several_dtypes_are_refused(tmp_path):
    mixed = {**finished().params}
    name = next(iter(mixed))
    mixed[name] = {**mixed[name], "w": mixed[name]["w"].astype(np.float64)}
    with pytest.raises(ValueError, match="float32 and float64; they must be of one dtype"):
        weights.save(tmp_path / "mixed.h5", replace(finished(), params=mixed))
