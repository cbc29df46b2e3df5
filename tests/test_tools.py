"""The commands as a user runs them: the whole line from a folder of images to a picture, and every mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from refnet import images, sgd, train, weights

ROOT = Path(__file__).parents[1]


def tool(name, *args, check=None, cwd=ROOT, before=None):
    """Run a tool, having called ``before`` in its process; (status, stdout, stderr)."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, preexec_fn=before)
    if check is not None:
        assert done.returncode == check, done.stderr
    return done.returncode, done.stdout, done.stderr


def mistake(name, *args):
    """The one line that a tool prints for a user's mistake, having exited with 2."""
    _, out, err = tool(name, *args, check=2)
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(name), err
    return err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes that differ in colour, one bad file."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, n in (("train", 24), ("val", 8)):
        for name, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(rng.normal(colour, 40, (40, 36, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (root / "train" / "red" / "broken.jpg").write_text("no image")
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "tiny.h5"
    args = ("--data", photos, "--arch", "tiny", "--epochs", 12, "--batch", 8, "--keep", "1,3", "--out", out)
    return out, tool("train.py", *args, check=0), args


def test_training_writes_a_finished_file_and_says_what_it_skipped(trained, photos):
    out, (_, printed, err), _ = trained
    checkpoint = weights.load(out)
    assert checkpoint.finished and checkpoint.epoch == 12 and checkpoint.optimizer is None
    assert checkpoint.classes == ("blue", "red")
    assert checkpoint.history["val_top1"][-1] == 1.0
    assert f"{out}: top-1 100.0% on 16 validation images" in printed
    assert "skipped train/red/broken.jpg" in err and "1 files skipped" in err
    assert err.count("epoch ") == 12


def test_the_asked_epochs_are_kept(trained):
    out = trained[0]
    kept = sorted(each.name for each in out.parent.glob("tiny.epoch*.h5"))
    assert kept == ["tiny.epoch001.h5", "tiny.epoch003.h5"]
    assert weights.load(out.parent / kept[1]).epoch == 3


def test_resuming_a_finished_training_says_so(trained):
    out, _, args = trained
    before = out.read_bytes()
    _, _, err = tool("train.py", *args, "--resume", check=0)
    assert "finished after 12 epochs, nothing to do" in err
    assert out.read_bytes() == before


def test_a_file_that_exists_is_not_written_over(trained):
    out, _, args = trained
    before = out.read_bytes()
    assert "exists; --resume goes on from it" in mistake("train.py", *args)
    assert out.read_bytes() == before


def test_resuming_another_training_is_refused(trained):
    _, _, args = trained
    message = mistake("train.py", *args, "--resume", "--recipe", "paper", "--seed", 7)
    assert "seed 0, not 7" in message and "init 'he', not 'paper'" in message


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_goes_on_to_the_same_bytes(trained, tmp_path, number):
    whole, _, args = trained
    out = tmp_path / "tiny.h5"
    args = [*args[:-1], out]
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("epoch"):
                break
        time.sleep(0.02)
        process.send_signal(number)
        rest = process.stderr.read()
    if process.returncode == 0:
        pytest.fail("the training ended before it could be interrupted")
    assert process.returncode == 128 + number, rest
    assert "--resume goes on from it" in rest
    assert not weights.load(out).finished
    tool("train.py", *args, "--resume", check=0)
    one, other = weights.load(whole).params, weights.load(out).params
    assert all(one[n][k].tobytes() == other[n][k].tobytes() for n in one for k in one[n])


def test_resuming_without_the_training_s_state_is_refused(trained):
    out, _, args = trained
    message = mistake("train.py", *args[:-1], out.with_suffix(".epoch001.h5"), "--resume")
    assert "without the state of their training" in message


def test_resuming_on_other_images_is_refused(trained, photos, tmp_path):
    kept = weights.load(trained[0].with_suffix(".epoch001.h5"))
    begun = replace(kept, optimizer=sgd.zeros_like(kept.params), rng=asdict(train.Progress()))
    weights.save(tmp_path / "begun.h5", begun)
    args = ("--data", photos / "val", *trained[2][2:-1], tmp_path / "begun.h5", "--resume")
    _, _, err = tool("train.py", *args, check=2)
    assert "was trained on other images" in err.splitlines()[-1]


def test_resume_with_nothing_to_resume_starts_afresh(photos, tmp_path):
    out = tmp_path / "new.h5"
    tool("train.py", "--data", photos, "--arch", "tiny", "--epochs", 1, "--out", out, "--resume", check=0)
    assert weights.load(out).finished


def test_rates_by_hand_and_half_precision(photos, tmp_path):
    out = tmp_path / "new.h5"
    args = ("--data", photos, "--arch", "tiny", "--epochs", 2, "--rates", "0:0.01,1:0.002", "--half", "--out", out)
    tool("train.py", *args, check=0)
    assert weights.load(out).history["rate"] == [0.01, 0.002]
    with h5py.File(out) as file:
        assert file["params/conv1/w"].dtype == np.float16


def test_one_folder_of_classes_is_split_for_training_and_evaluated_whole(photos, tmp_path):
    out = tmp_path / "new.h5"
    args = ("--data", photos / "train", "--arch", "tiny", "--epochs", 2, "--batch", 8, "--out", out)
    _, printed, err = tool("train.py", *args, check=0)
    assert "39 images to train on, 10 to validate" in err
    _, printed, err = tool("evaluate.py", out, "--data", photos / "train", "--json", check=0)
    scores = json.loads(printed)
    assert scores["images"] == 48 and scores["skipped"] == 1
    assert "skipped red/broken.jpg" in err


def test_evaluate_prints_fractions(trained, photos):
    out = trained[0]
    _, printed, _ = tool("evaluate.py", out, "--data", photos, "--json", check=0)
    scores = json.loads(printed)
    assert scores["top1"] == 1.0 and scores["top5"] == 1.0 and scores["images"] == 16
    assert scores["per_class"] == {"blue": 1.0, "red": 1.0}
    _, printed, _ = tool("evaluate.py", out, out, "--data", photos, "--ten-crop", check=0)
    assert printed.startswith("top-1 100.0%, top-5 100.0%") and "on 16 images" in printed


def test_classes_are_matched_by_folder_name(trained, photos, tmp_path):
    (tmp_path / "red").symlink_to(photos / "val" / "red")
    _, printed, _ = tool("evaluate.py", trained[0], "--data", tmp_path, "--json", check=0)
    assert json.loads(printed)["per_class"] == {"red": 1.0}


def test_visualize_writes_sheets_and_numbers_that_agree(trained, photos, tmp_path):
    args = (trained[0], "--data", photos, "--layers", "conv1,pool2,fc8", "--maps", 4, "--top", 5, "--out", tmp_path)
    _, printed, _ = tool("visualize.py", *args, check=0)
    assert Path(printed.strip()) == tmp_path / "features.png"
    for name in ("features", "filters", "conv1", "pool2", "fc8"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 50
    numbers = json.loads((tmp_path / "features.json").read_text())
    with h5py.File(tmp_path / "features.h5") as file:
        for layer, maps in numbers["layers"].items():
            group = file[layer]
            assert [each["map"] for each in maps] == group["maps"][:].tolist()
            for k, each in enumerate(maps):
                assert [top["value"] for top in each["top"]] == group["value"][k].tolist()
                names = [top["image"] for top in each["top"]]
                assert len(set(names)) == len(names) == 5
        # The patch is the photograph at the box, brought to the side and cropped as the network sees it.
        best = numbers["layers"]["conv1"][0]["top"][0]
        side, size = weights.load(trained[0]).mean.shape[0], weights.load(trained[0]).arch.input[0]
        pixels = images.centre_crop(images.square(images.decode(photos / best["image"]), side)[None], size)[0]
        row0, col0, row1, col1 = best["box"]
        inside = pixels[max(row0, 0) : row1, max(col0, 0) : col1]
        patch = file["conv1/patches"][0, 0]
        np.testing.assert_array_equal(patch[max(-row0, 0) :, max(-col0, 0) :][: len(inside), : inside.shape[1]], inside)


def test_mistakes_get_one_line_and_status_2(trained, photos, tmp_path):
    out = trained[0]
    new = tmp_path / "new.h5"
    (tmp_path / "empty" / "a").mkdir(parents=True)
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes(out.read_bytes()[:9000])
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    assert "does not exist" in mistake("train.py", "--data", tmp_path / "none", "--out", new)
    assert "no images in class folder a" in mistake("train.py", "--data", tmp_path / "empty", "--out", new)
    assert "there are zfnet, krizhevsky" in mistake("train.py", "--arch", "alexnet", "--out", new)
    assert "--epochs is 0" in mistake("train.py", "--epochs", 0, "--out", new)
    assert "there is no folder" in mistake("train.py", "--data", photos, "--out", tmp_path / "no" / "x.h5")
    assert "truncated" in mistake("evaluate.py", truncated)
    assert "no HDF5 file" in mistake("evaluate.py", notes)
    assert "No such file" in mistake("describe.py", tmp_path / "none.h5")
    assert "its layers are conv1 relu1" in mistake("visualize.py", out, "--layers", "conv9", "--out", tmp_path)
    assert "unknown class a" in mistake("evaluate.py", out, "--data", tmp_path / "empty")
    assert "--top is 0" in mistake("visualize.py", out, "--top", 0, "--out", tmp_path)
    too_large = mistake("train.py", "--data", photos, "--arch", "zfnet", "--batch", 10**7, "--out", new)
    assert "needs about" in too_large and "fits" in too_large
    assert not new.exists()


def test_cuda_is_refused_where_there_is_none(photos, tmp_path):
    if os.environ.get("CUDA_VISIBLE_DEVICES") is None and Path("/dev/nvidia0").exists():
        pytest.skip("there is a CUDA device")
    message = mistake("train.py", "--data", photos, "--device", "cuda", "--out", tmp_path / "x.h5")
    assert "no CUDA device answers" in message
