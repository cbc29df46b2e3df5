"""The benchmark's arithmetic and its report, on nets and pictures so small that their own figures mean nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import oracle

from refnet import images, loader, models

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import _bench_cpu
import _bench_cuda
import _race
import benchmark
from _race import OURS, Disagreement, Options, Row, as_time, check_same, enter, per_second, race, versus

ROOT = Path(__file__).parents[1]
TINY = models.TINY
QUICK = Options(threads=1, repeats=1, images=4, steps=1)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(_race, "PAUSE", 0)


@pytest.fixture
def peers(monkeypatch):
    """The other side, without what compiles for seconds."""
    oracle("torch")
    oracle("captum")
    import _peers

    def no_compiler(net, **options):
        raise _peers.CannotRun("torch.compile: there is no C++ compiler")

    monkeypatch.setattr(_peers, "compiled", no_compiler)
    return _peers


def without(monkeypatch, *packages):
    """As if these were not installed."""
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "_peers", raising=False)


def command(*args):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "benchmark.py"), *map(str, args)], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------ the arithmetic


def test_contenders_take_turns_and_their_warm_up_does_not_count():
    turns, now = [], [0.0]

    def contender(name, seconds):
        def run():
            turns.append(name)
            now[0] += 100 if turns.count(name) == 1 else seconds + turns.count(name)

        return run

    times = race({"a": contender("a", 0), "b": contender("b", 10)}, 3, clock=lambda: now[0])
    assert turns == ["a", "b"] * 4
    assert times == {"a": [2, 3, 4], "b": [12, 13, 14]}


TIMES = {OURS: [1.0, 2.0, 4.0], "slow": [9.0, 9.0, 9.0], "fast": [3.0, 4.0, 4.0], "other": [0.1, 0.1, 0.1]}


def test_the_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds():
    row = versus("p", "w", TIMES, ["slow", "fast"], 1.9, show=as_time, absent={})
    assert (row.figure, row.spread) == (2.0, (1.0, 3.0))
    assert (row.ours, row.peer, row.verdict) == ("2.00 s", "fast 4.00 s", "reached")
    assert row.times == {name: TIMES[name] for name in (OURS, "slow", "fast")}


def test_a_sample_is_scaled_and_the_raw_times_are_kept():
    row = versus("p", "w", TIMES, ["fast"], 25, show=as_time, absent={}, scale=10, note="scaled")
    assert (row.figure, row.spread, row.peer) == (20.0, (10.0, 30.0), "fast 40.00 s")
    assert row.verdict == "missed by 20 %; scaled" and row.times["fast"] == [3.0, 4.0, 4.0]


def test_a_ratio_to_stay_below():
    row = versus("p", "w", TIMES, ["fast"], 0.4, show=per_second(8), absent={}, ours_over_theirs=True)
    assert (row.figure, row.spread, row.ours, row.peer) == (0.5, (1 / 3, 1.0), "4.0 images/s", "fast 2.0 images/s")
    assert row.verdict == "missed by 25 %"
    assert replace(row, target=0.5).verdict == "reached"


def test_without_a_peer_ours_is_still_there():
    row = versus("p", "w", {OURS: [0.002]}, ["x", "y"], 2, show=as_time, absent={"x": "no torch", "y": "no torch"})
    assert (row.ours, row.figure, row.verdict) == ("2.0 ms", None, "not measured: no torch")
    row = versus("p", "w", TIMES, ["fast", "gone"], 2, show=as_time, absent={"gone": "it broke", "z": "unasked"})
    assert row.verdict == "reached; without gone: it broke"


def test_who_cannot_take_part_says_why():
    def make(name):
        if name == "missing":
            raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
        if name == "broken":
            raise RuntimeError("no compiler\nand a long story")
        return name.upper()

    assert enter(make, ["fine", "missing", "broken"]) == (
        {"fine": "FINE"}, {"missing": "torch is not installed", "broken": "no compiler"}
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        enter(lambda name: 1 / 0, ["a bug"])


@pytest.mark.parametrize("wrong", [1.01, np.nan])
def test_different_results_are_not_raced(wrong):
    want = {"a": np.array([1.0, -2.0]), "b": {"c": np.array(0.0)}}
    check_same("it", {"a": np.array([1.0001, -2.0]), "b": {"c": 0.0}}, want)
    with pytest.raises(Disagreement, match="it: the results differ by"):
        check_same("it", {"a": np.array([wrong, -2.0]), "b": {"c": 0.0}}, want)


def test_a_training_step_is_three_forward_runs_but_for_the_first_layer():
    macs = models.ZFNET.macs()
    assert _race.step_flops(models.ZFNET, 2) == 4 * (3 * 1_168_032_896 - macs["conv1"])
    assert macs["conv1"] == 110 * 110 * 7 * 7 * 3 * 96


def test_a_row_as_text():
    row = Row("p", "w", "1 s", "x 2 s", 2.0, spread=(1.5, 2.5), target=3.0)
    assert benchmark.cells(row) == ["p", "w", "1 s", "x 2 s", "2.00x", "1.50 to 2.50", ">= 3.00x", "missed by 33 %"]
    row = Row("p", "w", figure=2e-6, unit="", target=1e-5, at_most=True)
    assert benchmark.cells(row)[4:] == ["2e-06", "", "<= 1e-05", "reached"]
    assert benchmark.line(["a", "b"], markdown=True) == "| a | b |"


# ------------------------------------------------------------------------------------------------- the command


def test_mistakes_get_one_line_and_status_2():
    for args, message in {
        ("inferenze", "imports"): "there is no part inferenze; there are inference training",
        ("--repeats", 0): "--repeats is 0, it needs 1 or more",
        ("--data", ROOT / "none"): "there is no such folder",
    }.items():
        status, out, err = command(*args)
        assert (status, out) == (2, "") and err.count("\n") == 1 and message in err, err


def test_list_names_every_part():
    status, out, _ = command("--list")
    assert status == 0
    assert [text.split()[0] for text in out.splitlines()] == list(_bench_cpu.PARTS)


def test_the_report(tmp_path, monkeypatch, capsys):
    file = tmp_path / "new" / "benchmark.json"
    args = ["imports", "small", "--repeats", 2, "--markdown", "--threads", 1, "--json", file]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, args)])
    benchmark.main()
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| part | what | ours | peer | ratio | spread | target | verdict |"
    assert len(table) == 4 and {text.count("|") for text in table} == {9}
    assert table[3].endswith("| >= 1.50x | not measured: it needs --data |")
    report = json.loads(file.read_text())
    assert report["versions"]["numpy"] == np.__version__ and report["cores"] >= 1 and report["blas"]
    assert report["options"]["threads"] == 1 and report["options"]["repeats"] == 2
    measured, skipped = report["rows"]
    assert {len(seconds) for seconds in measured["times"].values()} == {2}
    ours, theirs = measured["times"].values()
    assert measured["figure"] == pytest.approx(1000 * np.mean(np.subtract(ours, theirs)))
    assert skipped["figure"] is None


# --------------------------------------------------------------------------------------------------- the parts


def test_without_pytorch_ours_is_measured(monkeypatch):
    without(monkeypatch, "torch")
    parts = [
        _bench_cpu.inference(QUICK, arch=TINY, batch=2),
        _bench_cpu.training(QUICK, arch=TINY, batch=2),
        _bench_cpu.deconv_conv2(QUICK, arch=TINY),
        _bench_cpu.occlude(QUICK, arch=TINY, square=5, step=5),
        _bench_cpu.jpeg(QUICK, images=2),
    ]
    rows = [row for part in parts for row in part]
    assert len(rows) == 3 + 2 + 1 + 2 + 1
    (alone,) = (row for row in rows if row.figure is not None)
    assert "error" in alone.what and alone.verdict.startswith("reached")
    for row in rows:
        assert row.ours and (row is alone or row.verdict == "not measured: torch is not installed")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_one_missing_package_costs_one_contender(monkeypatch, peers, package):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    without(monkeypatch, package)
    monkeypatch.setitem(sys.modules, "_peers", peers)
    *eager, last = _bench_cpu.inference(QUICK, arch=TINY, batch=2)
    assert all(row.figure > 0 for row in eager)
    assert last.verdict == f"not measured: torch.compile: there is no C++ compiler; {package} is not installed"


def test_the_network_s_parts_agree_with_the_peers(peers):
    """All of them check that before they race."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    rows = [*_bench_cpu.inference(QUICK, arch=TINY, batch=2), *_bench_cpu.training(QUICK, arch=TINY, batch=2)]
    assert [row.figure is None for row in rows] == [False, False, False, False, True]
    assert rows[2].peer.startswith("ONNX Runtime")
    *_, conv2 = _bench_cpu.deconv_conv2(QUICK, arch=TINY, sample=3)
    assert set(conv2.times) == {OURS, *_race.CAPTUM} and "Captum timed on 3 maps" in conv2.note
    sweep, error = _bench_cpu.occlude(QUICK, arch=TINY, square=5, step=4, sample=7)
    assert "16 places" in sweep.what and "timed on 7 places" in sweep.note
    assert error.verdict.startswith("reached")


def test_a_peer_that_computes_something_else_drops_out_and_its_row_says_so(monkeypatch, peers):
    right = peers.images
    monkeypatch.setattr(peers, "images", lambda x, layout, *device: 1.1 * right(x, layout, *device))
    row, *_ = _bench_cpu.inference(QUICK, arch=TINY, batch=2)
    assert row.figure is None and "inference, PyTorch contiguous: the results differ" in row.verdict
    row, *_ = _bench_cpu.training(QUICK, arch=TINY, batch=2)
    assert row.figure is None and "of PyTorch contiguous: the results differ by" in row.verdict


def test_the_dataloader_s_crops_are_refnet_s(peers):
    mean, side, size = np.full((48, 48, 3), 118, np.float32), 48, 40
    with _bench_cpu.photographs(QUICK, 3, side) as (data, files, whence):
        assert whence == "3 drawn JPEGs of 500 x 375"
        ((x, _, _),) = loader.in_order(data, batch=3, size=size, mean=mean, scale=0.5)
        how = {"side": side, "size": size, "colour": mean[0, 0], "scale": 0.5}
        made = peers.Photographs(files, data.labels, **how)
        np.testing.assert_array_equal([np.moveaxis(made[i][0].numpy(), 0, 2) for i in range(3)], x)
        draws = images.Augment("random", area=(0.4, 1.0), aspect=1.25).draw(
            3, side=side, size=size, rng=np.random.default_rng(0)
        )
        made = peers.Photographs(files, data.labels, draws=draws, **how)
        for i in range(3):
            row = [each[i] for each in draws]
            want = images.crop(data.image(i), *row, size=size, mean=mean, scale=0.5)
            assert np.abs(np.moveaxis(made[i][0].numpy(), 0, 2) - want).max() <= 0.51  # Pillow rounds to grey levels


def test_refnet_alone():
    (flops,) = _bench_cpu.flops(QUICK, arch=TINY, batch=2, n=64)
    assert flops.unit == "%" and set(flops.times) == {OURS, "sgemm"}
    (top9,) = _bench_cpu.top9(QUICK, arch=TINY)
    assert "4 decoded images, relu1 to relu2" in top9.what and top9.at_most
    batches, *threads = _bench_cpu.growth(QUICK, arch=TINY, batches=(1, 2), batch=2)
    assert batches.figure >= 1 and set(batches.times) == {"batch 1", "batch 2"}
    assert threads[0].target == 1.8


def test_a_process_of_its_own_tells_its_peak(monkeypatch):
    without(monkeypatch, "torch")
    against, slope = _bench_cpu.memory(QUICK, arch=TINY, batches=(1, 2, 64))
    assert against.verdict == "not measured: torch is not installed"
    assert 10 < against.times[OURS][0] < 1000 and len(slope.times) == 3


# ------------------------------------------------------------------------------------------ the parts for a GPU

BOTH = replace(QUICK, precisions=("fp32", "tf32"))  # on a CPU both are fp32


def test_a_gpus_parts_agree_with_the_peers(peers):
    rows = [*_bench_cuda.inference(BOTH, arch=TINY, batch=2), *_bench_cuda.training(BOTH, arch=TINY, batch=2)]
    assert ["fp32" in row.what for row in rows] == [True, False, True, True, False, False]
    assert all(row.figure > 0 for row in rows) and [row.unit for row in rows].count("%") == 2
    (conv,) = _bench_cuda.deconv_conv5(BOTH, arch=TINY, layer="relu2", sample=3)
    assert set(conv.times) == {OURS, *_race.CAPTUM} and conv.target == 10
    marks = list(_bench_cuda.compiled(QUICK, arch=TINY, batch=2))
    assert [row.verdict for row in marks] == ["not measured: torch.compile: there is no C++ compiler"] * 2


def test_each_operation_of_a_step_and_its_floor():
    first, *rows, last = _bench_cuda.operations(QUICK, arch=TINY, batch=2, n=64)
    assert "TB/s copied" in first.what and last.what == "fp32: all"
    names = [row.what.removeprefix("fp32: ") for row in rows]
    assert names[:2] == ["conv1 forward", "relu1 forward"] and names[-1] == "update and clip"
    walks = {way: [name.split()[0] for name in names if name.endswith(way)] for way in ("forward", "gradients", "back")}
    everything = [layer.name for layer in TINY.layers]
    assert walks["forward"] == everything and walks["back"] == everything[:0:-1]
    assert walks["gradients"] == ["fc8", "fc6", "conv2", "conv1"]
    assert all(row.figure > 0 for row in rows)


def test_a_gpus_memory_is_asked_for_in_a_process_of_its_own(monkeypatch):
    without(monkeypatch, "torch")
    (row,) = _bench_cuda.memory(QUICK, arch=TINY, batch=2)
    assert row.verdict == "not measured: torch is not installed" and row.times[OURS] == [0.0]


def test_a_gpus_parts_need_one():
    status, _, err = command("--device", "cuda", "inference")
    assert status == 2 and "device cuda: no CUDA device answers through CuPy" in err
