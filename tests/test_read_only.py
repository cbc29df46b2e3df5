"""Data and weights where nothing can be written: they are read all the same, and a wish to write there is one line."""

import os
import shutil
import subprocess

import pytest
from conftest import without_root
from test_tools import mistake, photos, tool, trained  # noqa: F401  fixtures

from refnet import weights


@pytest.fixture(scope="module")
def mounted(photos, trained, tmp_path_factory):  # noqa: F811
    """A file system that is mounted read-only, with photographs and weights."""
    place = tmp_path_factory.mktemp("mount")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", place], capture_output=True).returncode:
        pytest.skip("a read-only file system needs the right to mount one")
    try:
        shutil.copytree(photos, place / "photos")
        shutil.copy(trained[0], place / "tiny.h5")
        begun = ("--data", photos, "--arch", "tiny", "--epochs", 2, "--batch", 8, "--keep", "1", "--out")
        tool("train.py", *begun, place / "begun.h5", check=0)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_training_reads_from_it_and_writes_elsewhere(mounted, tmp_path):
    args = ("--data", mounted / "photos", "--arch", "tiny", "--epochs", 1, "--batch", 8, "--out", tmp_path / "x.h5")
    tool("train.py", *args, check=0)
    assert weights.load(tmp_path / "x.h5").finished


@pytest.mark.parametrize("name", ["describe.py", "evaluate.py", "visualize.py", "report.py"])
def test_weights_on_it_are_read(name, mounted, tmp_path):
    data = () if name == "describe.py" else ("--data", mounted / "photos")
    out = ("--out", tmp_path / "out") if name in ("visualize.py", "report.py") else ()
    tool(name, mounted / "tiny.h5", *data, *out, check=0)
    assert not out or list(out[1].iterdir())


def test_to_write_there_is_one_line_that_says_so(mounted, tmp_path):
    tiny, data = mounted / "tiny.h5", ("--data", mounted / "photos")
    train = ("train.py", *data, "--arch", "tiny", "--epochs", 12, "--batch", 8, "--out")
    for name, *args in (
        (*train, mounted / "new.h5"),
        (*train, mounted / "begun.epoch001.h5", "--resume"),
        ("visualize.py", tiny, *data, "--out", mounted / "out"),
        ("report.py", tiny, *data, "--out", mounted / "out"),
        ("prepare.py", mounted / "photos", mounted / "packed", "--side", 32),
        ("convert.py", tiny, mounted / "tiny.safetensors"),
    ):
        message = mistake(name, *args)
        assert "Read-only file system" in message and str(mounted) in message, message


def test_a_folder_without_permission_to_write(photos, trained, tmp_path):  # noqa: F811
    shutil.copy(trained[0], tmp_path / "tiny.h5")
    args = ("--data", photos, "--arch", "tiny", "--epochs", 1, "--batch", 8, "--out", tmp_path / "new.h5")
    tmp_path.chmod(0o555)
    try:
        _, printed, err = tool("train.py", *args, check=2, before=without_root)
        assert printed == "" and err.count("\n") == 1 and f"{tmp_path}" in err and "Permission denied" in err
        assert "tiny" in tool("describe.py", tmp_path / "tiny.h5", check=0, before=without_root)[1]
    finally:
        tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == ["tiny.h5"]
