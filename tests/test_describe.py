"""tools/describe.py, and through it what all tools share: exit statuses and one line for a user's mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refnet import models, weights

TOOLS = Path(__file__).parent.parent / "tools"


def describe(*arguments, cwd):
    return run(sys.executable, TOOLS / "describe.py", *arguments, cwd=cwd)


def run(*command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    """A folder with x.h5, where each filter of conv1 has the RMS 0.25."""
    arch = models.TINY
    params = {
        layer: {name: np.full(shape, 0.25, np.float32) for name, shape in each.items()}
        for layer, each in arch.param_shapes().items()
    }
    params["fc8"]["b"][:] = np.linspace(-1, 2, 10)
    checkpoint = weights.Checkpoint(
        arch,
        params,
        np.full((20, 20, 3), 100.0, np.float32),
        scale=1 / 64,
        classes=tuple("abcdefghij"),
        recipe={"name": "paper"},
        seed=7,
        epoch=3,
        finished=True,
        history={"val_top1": [0.25, 0.75, 0.5], "val_loss": [2.0, 1.0, float("nan")]},
    )
    weights.save(tmp_path / "x.h5", checkpoint, dtype="float16")
    return tmp_path


def test_text(folder):
    done = describe("x.h5", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    parts = [
        str(models.TINY), "stored as float16", "10 names a, b, c", "RGB, 0..255", "x 0.015625",
        "20x20x3, 100.0 100.0 100.0", "multiplies the sum of squares", "zeros, as many before as after",
        '{"name": "paper"}', "3 epochs, finished, seed 7", "5x5x3x6", "not finite",
    ]  # fmt: skip
    assert [part for part in parts if part not in done.stdout] == []
    assert "val_top1 0.5 0.25 0.75" in " ".join(done.stdout.split())
    assert "fc8.b 10" in " ".join(done.stdout.split())


def test_json(folder):
    facts = json.loads(describe("x.h5", "--json", cwd=folder).stdout, parse_constant=pytest.fail)
    assert facts["file"]["bytes"] == (folder / "x.h5").stat().st_size and len(facts["file"]["sha256"]) == 64
    assert facts["arch"] == json.loads(models.TINY.to_json())
    assert facts["history"]["val_top1"] == {"last": 0.5, "lowest": 0.25, "highest": 0.75}
    assert facts["history"]["val_loss"]["last"] is None
    assert facts["layers"]["conv1"]["w"]["largest_filter_rms"] == 0.25
    assert facts["layers"]["fc8"]["b"]["min"] == -1 and facts["layers"]["fc8"]["b"]["max"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nope.h5"], "No such file"), (["text"], "no HDF5 file"), (["."], "Is a directory")],
)
def test_a_users_mistake_is_one_line_and_status_2(tmp_path, arguments, message):
    (tmp_path / "text").write_text("hello\n")
    done = describe(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("describe.py: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_arguments_that_do_not_parse_are_status_2(tmp_path):
    assert describe(cwd=tmp_path).returncode == 2


def test_help_has_the_example_and_version_the_version(tmp_path):
    assert "python tools/describe.py weights/scenes.h5 --json" in describe("--help", cwd=tmp_path).stdout
    assert describe("--version", cwd=tmp_path).stdout.startswith("describe.py, refnet ")


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("raise ValueError('two\\nlines')", 2, "-c: two lines\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise BrokenPipeError", 0, ""),
        ("pass", 0, ""),
    ],
)
def test_exit_statuses(body, status, stderr):
    done = run(sys.executable, "-c", f"import _cli\ndef main():\n    {body}\n_cli.run(main)", cwd=TOOLS)
    assert (done.returncode, done.stderr) == (status, stderr)


def test_a_bug_keeps_its_traceback():
    done = run(sys.executable, "-c", "import _cli\ndef main():\n    {}['x']\n_cli.run(main)", cwd=TOOLS)
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError" in done.stderr


def test_a_closed_pipe_is_quiet(folder):
    command = f"{sys.executable} {TOOLS / 'describe.py'} x.h5 | head -n 1"
    done = run("bash", "-o", "pipefail", "-c", command, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny, input 19x19x3\n", "")
