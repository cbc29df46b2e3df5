"""Every command is a good citizen: --help, --version, statuses, stdout and stderr, pipes, terminals, JSON."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from test_tools import ROOT, mistake, photos, tool, trained  # noqa: F401  fixtures

import refnet

sys.path.insert(0, str(ROOT / "tools"))

import _cli

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("[a-z]*.py"))
every_tool = pytest.mark.parametrize("name", TOOLS)
# What each is given that is not there; all others take a weight file and --out.
MISSING = {
    "benchmark.py": ("training", "--data", "missing"),
    "convert.py": ("missing.onnx", "x.h5"),
    "describe.py": ("missing.h5",),
    "evaluate.py": ("missing.h5",),
    "fig6.py": ("--data", "missing", "--out", "out"),
    "prepare.py": ("missing", "out"),
    "table2.py": ("--data", "missing", "--out", "out"),
    "table3.py": ("--data", "missing", "--out", "out"),
    "table6.py": ("missing.h5", "--data", "missing", "--out", "out"),
    "table7.py": ("missing.h5", "--data", "missing", "--out", "out"),
    "train.py": ("--data", "missing", "--out", "x.h5"),
    "transfer.py": ("missing.h5", "--data", "missing", "--out", "out"),
}
# What these make is a file, whose name they print, and no number.
FILES_ALONE = {"convert.py", "figures.py", "report.py", "visualize.py"}


def on_a_terminal(name, *args, cwd=ROOT, **environment):
    """What a tool writes to a terminal of 80 columns."""
    mine, its = pty.openpty()
    termios.tcsetwinsize(mine, (24, 80))
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, args)]
    environment = {**os.environ, **environment}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment, cwd=cwd) as process:
        os.close(its)
        written = b""
        while True:
            try:
                written += os.read(mine, 1 << 16)
            except OSError:  # Linux's way to say that the other end is closed
                break
    os.close(mine)
    assert process.returncode == 0, written
    return written.decode()


@every_tool
def test_help_has_examples_and_statuses_and_no_colour(name, tmp_path):
    """On a terminal, where Python 3.14 would colour it, from any folder."""
    shown = on_a_terminal(name, "--help", cwd=tmp_path, NO_COLOR="1").replace("\r\n", "\n")
    assert shown.startswith(f"usage: {name} ") and f"\n  python tools/{name} " in shown and "\x1b" not in shown
    assert shown.endswith(_cli.STATUSES + "\n") and "--version" in shown
    assert ("--json" in shown) != (name in FILES_ALONE)


@every_tool
def test_a_reader_that_has_seen_enough_is_no_error(name):
    """As in `| head -1`, though here it reads nothing at all."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "tools" / name), "--version"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@every_tool
def test_an_unknown_flag_and_what_is_missing_are_one_line_and_status_2(name, tmp_path):
    given = MISSING.get(name, ("missing.h5", "--out", "out"))
    assert "--colour" in mistake(name, *given, "--colour")
    _, printed, err = tool(name, *given, check=2, cwd=tmp_path)
    assert printed == "" and re.fullmatch(rf"{re.escape(name)}: .*missing.*\n", err), err
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_refnet_s():
    assert tool("describe.py", "--version", check=0)[1] == f"describe.py, refnet {refnet.__version__}\n"


def test_a_bar_is_for_terminals_and_has_no_colour(photos, tmp_path):  # noqa: F811
    args = ("--data", photos, "--arch", "tiny", "--epochs", 2, "--batch", 8, "--out")
    shown = on_a_terminal("train.py", *args, tmp_path / "a.h5", NO_COLOR="1")
    assert "step/s" in shown and not re.search(r"\x1b\[[0-9;]*m", shown)
    _, printed, err = tool("train.py", *args, tmp_path / "b.h5", check=0)
    assert "step/s" not in err and "\r" not in err and printed.count("\n") == 1


def test_json_is_all_that_stdout_gets(photos, trained, tmp_path):  # noqa: F811
    """Whatever is said beside it."""
    options = ("--arch", "tiny", "--epochs", 1, "--batch", 8, "--out", tmp_path / "a.h5", "--json")
    _, printed, err = tool("train.py", "--data", photos, *options, check=0)
    found = json.loads(printed)
    assert found["validation images"] == 16 and 0 <= found["val_top1"] <= 1 and "epoch" in err
    options = ("--data", photos, "--layers", "relu1,relu2", "--study", 3, "--rows", 2, "--out", tmp_path, "--json")
    _, printed, _ = tool("fig5.py", trained[0], *options, check=0)
    assert {"name": "fig5", **json.loads((tmp_path / "fig5.json").read_text())} == json.loads(printed)
