"""The commands of the experiments that train: from a folder of a few images to pictures and numbers, and going on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures import checkpoint_of
from PIL import Image
from test_tools import mistake, tool

from refnet import weights


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes that differ in colour, a few images of 64 pixels each."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 4)):
        for name, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(rng.normal(colour, 40, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """The folder of a grid of two seeds, its arguments, and what was said."""
    out = tmp_path_factory.mktemp("run")
    args = ("--data", photos, "--epochs", 1, "--seeds", 2, "--out", out)
    _, _, err = tool("table3.py", *args, check=0)
    return out, args, err


def numbers(out, name):
    """Every number of NAME.json by its name."""
    content = json.loads((out / f"{name}.json").read_text())
    assert content["command"].startswith(f"python tools/{name.partition('-')[0]}.py")
    return {each["name"]: each for each in content["numbers"]}, content


def test_the_grid_writes_every_row_beside_the_paper_s(run):
    out, _, err = run
    found, content = numbers(out, "table3")
    assert len(list((out / "table3").glob("*.json"))) == 24 == len(list((out / "nets").glob("*.h5")))
    row = found["Figure 3, layers 3,4,5: 512, 1024, 512: val top-1 error %"]
    assert row["paper"] == 37.5 and 0 <= row["measured"] <= 100 and row["plus_minus"] >= 0
    errors = content["detail"]["errors"]["Figure 3, as it is"]
    mean = found["Figure 3, as it is: train top-1 error %"]["measured"]
    assert mean == pytest.approx(np.mean([each["train_top1"] for each in errors.values()]))
    counts = [each["measured"] for name, each in found.items() if name.startswith("orderings of")]
    assert sum(counts) == len(content["detail"]["orderings"]) == 65
    assert content["choices"]["epochs"] == 1 and content["choices"]["seeds"] == [0, 1]
    with Image.open(out / "table3.png") as picture:
        assert picture.width > 900
    assert "Krizhevsky, replication, seed 1:" in err


def test_the_grid_goes_on_where_it_stopped(run):
    out, args, _ = run
    before = (out / "table3.json").read_bytes()
    (out / "table3" / "figure-3-as-it-is-seed1.json").unlink()
    (out / "nets" / "mini-figure-3-as-it-is-seed1.h5").unlink()
    _, _, err = tool("table3.py", *args, check=0)
    assert err.count(", seed ") == 1 and "Figure 3, as it is, seed 1:" in err
    assert err.count("epoch ") == 1  # one training
    assert (out / "table3.json").read_bytes() == before


def test_rows_of_another_budget_are_refused(run):
    args = run[1]
    message = mistake("table3.py", *args[:2], "--epochs", 2, *args[4:])
    assert "'epochs': 1" in message and "use another --out" in message


def test_table_2_votes_with_the_grid_s_networks(run, photos):
    out, _, _ = run
    before = {path.name for path in (out / "nets").iterdir()}
    tool("table2.py", "--data", photos, "--epochs", 1, "--members", 3, "--out", out, check=0)
    assert {path.name for path in (out / "nets").iterdir()} - before == {"mini-figure-3-as-it-is-seed2.h5"}
    found, content = numbers(out, "table2")
    assert found["Figure 3 (a), 1 convnet: top-1 error %"]["paper"] == 38.4
    members = next(each for each in content["detail"] if each["row"] == "Figure 3 (a), 1 convnet")["errors"]
    assert found["Figure 3 (a), 1 convnet: top-1 error %"]["measured"] == pytest.approx(np.mean(members, axis=0)[0])
    assert "Figure 3 (a), 3 convnets: top-1 error %" in found
    assert "Krizhevsky, our replication, 1 convnet: top-5 error %" in found
    assert content["choices"]["crops"] == 10 and (out / "table2.png").exists()


def test_figure_6_trains_only_the_network_without_the_clip(run, photos):
    out, _, _ = run
    before = {path.name for path in (out / "nets").iterdir()}
    tool("fig6.py", "--data", photos, "--epochs", 1, "--maps", 4, "--out", out, check=0)
    new = {path.name for path in (out / "nets").iterdir()} - before
    assert new == {"mini-figure-3-as-it-is-without-clip-seed0.h5"}
    found, content = numbers(out, "fig6")
    assert found["7x7/2, no clip: filters clipped in a step"]["measured"] == 0
    for name in content["detail"]:
        shares = [found[f"{name}: energy at {band} frequencies %"]["measured"] for band in ("low", "middle", "high")]
        assert sum(shares) == pytest.approx(100)
    assert {"fig6.png", "fig6-layer2.png", "fig6-layer2-krizhevsky.png"} <= {path.name for path in out.iterdir()}


def test_figure_4_takes_the_kept_epochs(photos, tmp_path):
    out, data = tmp_path / "tiny.h5", ("--data", photos)
    tool("train.py", *data, "--arch", "tiny", "--epochs", 3, "--batch", 8, "--keep", "1,2", "--out", out, check=0)
    assert "has no kept epochs" in mistake("fig4.py", tmp_path / "tiny.epoch001.h5", *data, "--out", tmp_path)
    tool("fig4.py", out, "--data", photos, "--maps", 3, "--out", tmp_path / "look", check=0)
    found, content = numbers(tmp_path / "look", "fig4-movement")
    assert content["choices"]["epochs"] == [1, 2, 3] and content["choices"]["images"] == 24
    assert set(content["detail"]) == {"relu1", "relu2"}
    assert found["relu1: distance of epoch 1 to the last"]["measured"] == content["detail"]["relu1"]["to_last"][0]
    assert (tmp_path / "look" / "fig4.png").exists() and (tmp_path / "look" / "fig4-movement.png").exists()


def test_figure_4_of_a_dead_network_is_a_line(tmp_path):
    live = checkpoint_of(side=32)
    dead = {n: {k: np.full_like(a, -1) if k == "b" else 0 * a for k, a in p.items()} for n, p in live.params.items()}
    for name, epoch in (("x.epoch001", 1), ("x", 2)):
        weights.save(tmp_path / f"{name}.h5", replace(live, params=dead, epoch=epoch))
    message = mistake("fig4.py", tmp_path / "x.h5", "--images", 4, "--out", tmp_path)
    assert "no image excites any map of these layers" in message


def test_all_figures_run_one_after_the_other_or_say_what_they_lack(run, photos, tmp_path):
    """Those that the grid's networks are there for; the rest has its own tests."""
    out, _, _ = run
    net = out / "nets" / "mini-figure-3-as-it-is-seed0.h5"
    args = (net, "--data", photos, "--epochs", 1, "--out", tmp_path)
    _, _, err = tool("figures.py", *args, "--only", "fig2,fig4,transfer,pointing", check=0)
    assert "fig4: left out" in err and "no kept epochs" in err
    assert "transfer: left out, it needs --caltech" in err
    assert "pointing: left out" in err and "does not know the drawn scenes" in err
    assert "fig2: python tools/visualize.py" in err and (tmp_path / "features.png").exists()
    assert "there are fig2, fig4" in mistake("figures.py", *args, "--only", "fig3")
    assert "it needs --data" in mistake("figures.py", net, "--out", tmp_path)


def test_figures_end_with_the_status_of_the_one_that_failed(photos, tmp_path):
    (tmp_path / "broken.h5").write_text("no weights")
    status, _, err = tool("figures.py", tmp_path / "broken.h5", "--data", photos, "--only", "fig2", "--out", tmp_path)
    assert status == 2 and "no HDF5 file" in err
