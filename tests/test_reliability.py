"""Nothing lost, nothing let in: the promises of tests/RELIABILITY.md in little; `make torture` has them at length."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torture
from fixtures import checkpoint_of
from test_interop import written
from test_tools import ROOT, mistake, photos, tool  # noqa: F401  photos is a fixture

from refnet import datasets, hdf5, models, sgd, train, weights
from refnet.interop import apart

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, locks and forks of a Unix")

sys.path.insert(0, str(ROOT / "tools"))

import _lock  # noqa: E402

CHECKPOINT = replace(checkpoint_of(side=32), rng={"step": 1}, history={"val_top1": [0.1, 0.2]}, epoch=2)
CHECKPOINT = replace(CHECKPOINT, optimizer=sgd.zeros_like(CHECKPOINT.params))
ROOT_ATTRIBUTES = (
    "arch", "colour_order", "epoch", "finished", "format", "input_range", "lrn_alpha", "padding_rule", "ranks",
    "recipe", "seed", "version",
)  # fmt: skip
KILLS, MUTANTS, AT_ONCE = (
    int(os.environ.get(f"REFNET_{name}", few)) for name, few in (("KILLS", 20), ("MUTANTS", 400), ("AT_ONCE", 3))
)
SCENES = datasets.load_whole(None, side=32).subset(range(24))


def same(one, other):
    """Whether two checkpoints hold the same bytes."""

    def bits(params):
        return params and {(name, key): a.tobytes() for name, each in params.items() for key, a in each.items()}

    rest = [
        (ck.arch, ck.mean.tobytes(), ck.scale, ck.classes, ck.recipe, ck.seed, ck.epoch, ck.history, ck.rng)
        for ck in (one, other)
    ]
    arrays = [(bits(ck.params), bits(ck.optimizer)) for ck in (one, other)]
    return rest[0] == rest[1] and arrays[0] == arrays[1]


# --- killed trainings ---


def test_a_training_that_is_killed_again_and_again_ends_in_the_same_bytes(tmp_path):
    """kill -9 at random moments, inside writes too; after each the file is whole and of the run that nobody killed."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "killed.py", tmp_path, str(KILLS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["kills"] == KILLS and found["finished"] >= 1
    assert found["wrong"] == 0 and found["unreadable"] == 0


# --- a checkpoint is whole or absent ---


def calls(monkeypatch, module, name, fail_at):
    """Make the call number ``fail_at`` of a function fail as a full disk does; gives the counter."""
    real, count = getattr(module, name), [0]

    def failing(*args, **options):
        count[0] += 1
        if count[0] == fail_at:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(module, name, failing)
    return count


CALLS = (
    (os, "fsync"), (os, "replace"), (os, "open"),
    (h5py.Group, "create_dataset"), (h5py.AttributeManager, "__setitem__"),
)  # fmt: skip


@pytest.mark.parametrize(("module", "name"), CALLS, ids=[name for _, name in CALLS])
def test_a_failure_at_any_call_leaves_the_last_good_file(tmp_path, monkeypatch, module, name):
    path = tmp_path / "x.h5"
    weights.save(path, CHECKPOINT)
    new = replace(CHECKPOINT, epoch=3)
    with monkeypatch.context() as patch:
        count = calls(patch, module, name, 0)
        weights.save(tmp_path / "count.h5", new)
    (tmp_path / "count.h5").unlink()
    assert count[0] > 0
    for fail_at in range(1, count[0] + 1):
        with monkeypatch.context() as patch:
            calls(patch, module, name, fail_at)
            with pytest.raises(OSError, match="No space left"):
                weights.save(path, new)
        # Once it is renamed, the new file is there, and only the folder's sync can still fail.
        assert weights.load(path).epoch in ((2, 3) if name in ("fsync", "open") and fail_at == count[0] else (2,))
        assert [each.name for each in tmp_path.iterdir()] == ["x.h5"]
        weights.save(path, CHECKPOINT)


def test_a_full_disk_at_any_byte_leaves_the_last_good_file(tmp_path):
    """The size of files is limited in a child, from nothing to all but the last byte."""
    path = tmp_path / "x.h5"
    weights.save(path, CHECKPOINT)
    size = path.stat().st_size
    limits = [*range(0, size, size // 25), size - 1]

    def limited(case):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits[case], resource.RLIM_INFINITY))
        try:
            weights.save(path, replace(CHECKPOINT, epoch=3))
        except OSError as error:
            return "refused" if "\n" not in str(error) else "! several lines"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return "! saved"

    verdict = torture.run(len(limits), limited)
    assert not verdict.bad and verdict.outcomes["refused"] == len(limits)
    assert same(weights.load(path), CHECKPOINT)
    assert [each.name for each in tmp_path.iterdir()] == ["x.h5"]


# --- files from strangers ---


def reading(path, data, want):
    """What becomes of a file with these bytes: read as ``want``, refused in one line, or something bad."""
    path.write_bytes(data)
    try:
        return "the same" if same(weights.load(path), want) else "! other content"
    except (ValueError, OSError) as error:
        text = str(error)
        return "refused" if "\n" not in text and len(text) < 4000 else f"! {len(text)} characters: {text[:80]}"
    finally:
        path.unlink()


def test_mutated_weight_files_are_refused_or_unchanged(tmp_path):
    weights.save(tmp_path / "good.h5", CHECKPOINT)
    good = (tmp_path / "good.h5").read_bytes()

    def case(number):
        mutant = torture.mutated(good, np.random.default_rng([7, number]))
        return reading(tmp_path / f"{os.getpid()}.h5", mutant, CHECKPOINT)

    verdict = torture.run(MUTANTS, case)
    print(dict(verdict.outcomes))
    assert not verdict.bad, {outcome: numbers[:5] for outcome, numbers in verdict.bad.items()}
    assert sum(verdict.outcomes.values()) == MUTANTS and verdict.outcomes["refused"] > 0.8 * MUTANTS


def test_the_harness_sees_what_it_is_for(tmp_path):
    """A crash, a hang, memory without end, other content and an exception are each caught, and the rest goes on."""

    def case(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 4:
            time.sleep(60)
        if number == 6:
            bytearray(8 << 30)
        if number == 8:
            return reading(tmp_path / "x.h5", good, replace(CHECKPOINT, seed=1))
        return "fine" if number != 10 else str(1 / 0)

    weights.save(tmp_path / "good.h5", CHECKPOINT)
    good = (tmp_path / "good.h5").read_bytes()
    verdict = torture.run(12, case, seconds=1)
    assert verdict.outcomes["fine"] == 7
    assert {outcome.split(":")[0]: numbers for outcome, numbers in verdict.bad.items()} == {
        "! killed by SIGSEGV": [2], "! no end within 1 s": [4], "! MemoryError": [6], "! other content": [8],
        "! ZeroDivisionError": [10],
    }  # fmt: skip


def crafted(path, change):
    """A good file with a change by h5py, and its checksum made right again where that can be."""
    weights.save(path, CHECKPOINT)
    with h5py.File(path, "r+") as file:
        change(file)
    try:
        with h5py.File(path, "r+") as file:
            content = hdf5._declared(file)
            content.attributes["/"].pop("sha256", None)
            content.datasets = {name: np.asarray(each[()]) for name, each in content.datasets.items()}
            file.attrs["sha256"] = np.bytes_(hdf5._digest(content), "ascii")
    except (ValueError, OSError, KeyError, RuntimeError, TypeError, MemoryError):
        pass  # it declares what cannot be read, and that is the point
    data = path.read_bytes()
    path.unlink()
    return data


def lying(**changes):
    """An architecture's JSON with a field of it, or of its first layer, changed."""

    def change(file):
        arch = json.loads(file.attrs["arch"])
        for key, value in changes.items():
            (arch if key in arch else arch["layers"][0])[key] = value
        file.attrs["arch"] = np.bytes_(json.dumps(arch))

    return change


def attribute(name, value):
    """Another value of an attribute of the root, or none."""

    def change(file):
        if name in file.attrs:
            del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def put(path, value):
    """Replace a dataset."""

    def change(file):
        if path in file:
            del file[path]
        file[path] = value

    return change


def bomb(path, shape):
    """A dataset that declares much and stores little: zeros, packed a thousand to one."""

    def change(file):
        if path in file:
            del file[path]
        file.create_dataset(path, data=np.zeros(shape, "f4"), chunks=True, compression="gzip", compression_opts=9)

    return change


def deep(file):
    """Groups in groups."""
    group = file
    for _ in range(2000):
        group = group.create_group("g")


# What an architecture's JSON may lie about, field by field.
LIES = {
    "filters": (0, -1, 2**31, 2**62, 10**30, 1.5, "6", None, True, [6], {}),
    "size": (0, -3, 2**40, "x", None, 0.5),
    "stride": (0, -1, 2**63, None),
    "pad": (-1, 2**50, "1"),
    "groups": (0, 7, -1, 2**33),
    "name": ("", "conv2", "/", "..", "a/b", "x" * 10**5, "\0", 7),
    "kind": ("no", "", None, "branch", 3),
    "input": ([], [19], [19, 19, 0], [0, 19, 3], [-1, 19, 3], [2**40, 2**40, 3], "19", [19, 19, "3"], None),
    "layers": ([], {}, None, 7, [[]], [None], [{}], "conv"),
}
PATHS = (
    "/input",
    "/input/mean",
    "/input/scale",
    "/classes",
    "/rng",
    "/history",
    "/history/val_top1",
    "/params",
    "/optimizer",
    *(f"/params/{layer}/{key}" for layer in ("conv1", "conv2", "fc6", "fc8") for key in "wb"),
    *(f"/optimizer/{layer}/w" for layer in ("conv1", "conv2", "fc6", "fc8")),
)
VALUES = (
    0, -1.0, np.nan, np.inf, "text", np.zeros(0, "f4"), np.zeros((3, 3), "f4"), np.zeros((5, 5, 3, 6), "f8"),
    np.full((5, 5, 3, 6), np.nan, "f4"), np.zeros((1,) * 32, "f4"), np.zeros(3, "c16"), np.zeros(3, "V8"),
    np.zeros(3, "?"), np.zeros(3, "S5"), np.zeros(2, [("a", "f4"), ("b", "S3")]),
)  # fmt: skip
BOMBS = {"/input/mean": (2000, 2000, 3), "/params/conv1/w": (1 << 24,), "/classes": (1 << 24,), "/extra": (4096, 4096)}
ATTRIBUTES = (
    0, -1, 2**63 - 1, 1e308, np.nan, "", "x", np.bytes_(b"\xff\xfe"), np.zeros(3), np.bytes_("[" * 5000 + "]" * 5000),
)  # fmt: skip
CRAFTED = {
    **{f"{key} {value!r:.20}": lying(**{key: value}) for key, values in LIES.items() for value in values},
    **{f"{path} {value!r:.30}": put(path, value) for path in PATHS for value in VALUES},
    **{f"bomb at {path}": bomb(path, shape) for path, shape in BOMBS.items()},
    **{f"attribute {name} {value!r:.20}": attribute(name, value) for name in ROOT_ATTRIBUTES for value in ATTRIBUTES},
    **{f"without {name}": attribute(name, None) for name in ROOT_ATTRIBUTES},
    "deep": deep,
    "many": lambda file: [file.create_group(f"/g{i}") for i in range(3000)],
    "a null": lambda file: file.create_dataset("/params/null", data=h5py.Empty("f4")),
    "references": lambda file: file.create_dataset("/params/ref", data=[file["/params"].ref], dtype=h5py.ref_dtype),
    "a circle": lambda file: file["/params"].__setitem__("again", file["/"]),
    "a soft link": lambda file: file.__setitem__("/soft", h5py.SoftLink("/params")),
    "an attribute of two lines": attribute("a\nb", 1),
    "a dataset of two lines": put("/a\nb", 1),
    "a soft link of two lines": lambda file: file.__setitem__("/a\nb", h5py.SoftLink("/params")),
    "a link to another file": lambda file: file.__setitem__("/out", h5py.ExternalLink("/etc/hostname", "/")),
}


def test_crafted_weight_files_are_refused_or_as_declared(tmp_path):
    files = [crafted(tmp_path / "craft.h5", change) for change in CRAFTED.values()]

    def case(number):
        (tmp_path / "x.h5").write_bytes(files[number])
        try:
            weights.load(tmp_path / "x.h5")
        except (ValueError, OSError) as error:
            text = str(error)
            return "refused" if "\n" not in text and len(text) < 4000 else f"! {len(text)} characters: {text[:80]}"
        return f"loaded {names[number]}"

    names = list(CRAFTED)
    verdict = torture.run(len(files), case)
    assert not verdict.bad, {outcome: [names[n] for n in numbers] for outcome, numbers in verdict.bad.items()}
    print(dict(verdict.outcomes), len(files))


def mutant_of(good, number):
    """A file's bytes changed, mostly in its first part: the rest is numbers, which may have any value."""
    rng = np.random.default_rng([8, number])
    head = min(len(good), 20_000 if rng.random() < 0.8 else len(good))
    return torture.mutated(good[:head], rng) + good[head:]


def test_what_hangs_libhdf5_is_an_error(tmp_path, monkeypatch):
    """Two mutants of a Keras file, which has no checksums, send libhdf5 in circles."""
    path, read = written("h5", tmp_path)
    good, hang = path.read_bytes(), 175
    monkeypatch.setattr(apart, "SECONDS", 3.0)
    path.write_bytes(mutant_of(good, hang))
    with pytest.raises(ValueError, match="no end within 3 s"):
        read(path)
    path.write_bytes(good)
    assert read(path).arch.name


def dies(path):
    """A reader that crashes."""
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_reader_that_dies_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="its reader died with status -11"):
        apart.apart(dies, ROOT / "README.md")


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "h5", "caffemodel", "pt"])
def test_mutated_files_of_other_frameworks_are_refused_or_read(kind, tmp_path, monkeypatch):
    """The importers in children: a network or one line, no crash, no hang and no memory without end."""
    path, read = written(kind, tmp_path)
    good, count = path.read_bytes(), MUTANTS // (100 if kind == "h5" else 4)
    monkeypatch.setattr(apart, "SECONDS", 3.0)

    def case(number):
        mutant = path.with_stem(f"{path.stem}{os.getpid()}")
        if kind == "caffemodel":
            mutant.with_suffix(".prototxt").write_bytes(path.with_suffix(".prototxt").read_bytes())
        mutant.write_bytes(mutant_of(good, number))
        try:
            read(mutant)
        except (ValueError, OSError) as error:
            text = str(error)
            return "refused" if "\n" not in text and len(text) < 4000 else f"! {len(text)} characters: {text[:80]}"
        return "read"

    verdict = torture.run(count, case, seconds=10)
    print(kind, dict(verdict.outcomes))
    assert not verdict.bad, {outcome: numbers[:5] for outcome, numbers in verdict.bad.items()}


# --- two trainings, and bad numbers and images ---


def test_two_trainings_of_one_file_and_a_dead_owner(photos, tmp_path):  # noqa: F811
    out = tmp_path / "x.h5"
    args = ("--data", photos, "--arch", "tiny", "--epochs", 400, "--batch", 8, "--out", out)
    command = [sys.executable, ROOT / "tools" / "train.py", *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        for line in first.stderr:
            if line.startswith("epoch"):
                break
        message = mistake("train.py", *args, "--resume")
        assert f"is being trained by process {first.pid} on " in message and "use another --out" in message
        assert weights.load(out).arch.name == "tiny"  # reading needs no lock
        first.kill()
        first.stderr.read()
    assert (tmp_path / ".x.h5.lock").exists()  # left by the dead, who holds nothing any more
    with _lock.held(out):
        assert f"process {os.getpid()}" in (tmp_path / ".x.h5.lock").read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["x.h5"]


def diverging(recipe=train.DEFAULT, **changes):
    """A training of TINY whose parameters are set to something first, and what became of it."""
    start = train.begin(models.with_classes(models.TINY, 12), replace(recipe, batch=8), SCENES, epochs=3, seed=0)
    for (layer, key), value in changes.pop("params", {}).items():
        start.params[layer][key].flat[0] = value
    saved = []
    train.run(start, SCENES, SCENES, recipe=replace(recipe, batch=8, **changes), epochs=3, on_epoch=saved.append)
    return saved


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_weights_stop_a_training_at_once_and_name_the_layer(value):
    with pytest.raises(ValueError, match="loss is nan at epoch 1, step 1, first in conv2's weights: the training div"):
        diverging(params={("conv2", "w"): value})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_overflow_names_the_layer_whose_output_it_is():
    with pytest.raises(ValueError, match="at epoch 1, step 1, first in fc6's output: the training diverged; go on"):
        diverging(params={("fc6", "w"): 3e38, ("fc6", "b"): 3e38, ("conv1", "b"): 1e6, ("conv2", "b"): 1e6})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_diverges_in_an_epoch_s_last_step_is_never_saved():
    saved = []
    start = train.begin(models.with_classes(models.TINY, 12), train.DEFAULT, SCENES, epochs=2, seed=0)
    recipe = replace(train.DEFAULT, schedule=((0, 1e30),), decay=1e30, clip=None)  # one step an epoch is enough
    with pytest.raises(ValueError, match="a parameter is not finite at epoch 1, step 1, first in conv1's weights"):
        train.run(start, SCENES, SCENES, recipe=recipe, epochs=2, on_epoch=saved.append)
    assert not saved


def test_a_diverging_command_says_one_line_and_keeps_the_last_good_file(photos, tmp_path):  # noqa: F811
    out = tmp_path / "x.h5"
    args = ("--data", photos, "--arch", "tiny", "--epochs", 6, "--batch", 8, "--rates", "0:0.01,2:1e30", "--out", out)
    _, printed, err = tool("train.py", *args, check=2)
    assert printed == "" and err.splitlines()[-1].startswith("train.py: the loss is ")
    assert "RuntimeWarning" not in err
    good = weights.load(out)
    assert good.epoch == 2 and train.trouble(good.arch, good.params) is None
    _, _, err = tool("train.py", *args[:-3], "0:0.01,2:0.001", "--out", out, "--resume", check=0)
    assert err.count("epoch  ") == 4


# --- under load, and with data that go away ---


def test_several_trainings_at_once_end_as_one_alone(photos, tmp_path):  # noqa: F811

    args = ("--data", photos, "--arch", "tiny", "--epochs", 4, "--batch", 8, "--out")
    tool("train.py", *args, tmp_path / "alone.h5", check=0)
    commands = [
        [sys.executable, ROOT / "tools" / "train.py", *map(str, args), tmp_path / f"{i}.h5"] for i in range(AT_ONCE)
    ]
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    assert [each.wait(timeout=120) for each in started] == [0] * AT_ONCE
    alone = weights.load(tmp_path / "alone.h5")
    for i in range(AT_ONCE):
        each = weights.load(tmp_path / f"{i}.h5")
        assert all(each.params[n][k].tobytes() == a.tobytes() for n, p in alone.params.items() for k, a in p.items())


def test_images_that_disappear_in_mid_run_are_passed_over_and_named(photos, tmp_path):  # noqa: F811
    """The rest goes on; with none left there is one line, and the last checkpoint stays."""
    shutil.copytree(photos, tmp_path / "photos")
    data, _ = datasets.load(tmp_path / "photos", side=32, cache_bytes=0)
    recipe, saved = replace(train.DEFAULT, batch=8), []

    def lose(checkpoint):
        saved.append(checkpoint.epoch)
        gone = tmp_path / "photos" / "train" / ("red" if checkpoint.epoch == 1 else "blue")
        if checkpoint.epoch < 3:
            shutil.rmtree(gone)

    start = train.begin(models.with_classes(models.TINY, 2), recipe, data, epochs=4, seed=0)
    with pytest.raises(ValueError, match="none of the 49 images could be read in epoch 3"):
        train.run(start, data, datasets.load_whole(photos, side=32), recipe=recipe, epochs=4, on_epoch=lose)
    assert saved == [1, 2]
    assert sum("No such file" in why for why in data.skipped.values()) == 48
