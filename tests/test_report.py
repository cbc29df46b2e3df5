"""The page: what fills it, and the page itself in a headless browser, opened from a folder as a person opens it."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import oracle
from PIL import Image

from refnet import datasets, models, net, scenes, top, weights
from refnet.experiments import fig2
from refnet.report import encode, maps, page, samples, training

ROOT = Path(__file__).parents[1]
HOSTILE = ('<img src=x onerror="window.hacked=1">', "\u2028<script>window.hacked=1<\u2215script>", "</script><b>")
CHECKS = (ROOT / "tests" / "page_checks.js").read_text()


def tool(*args):
    """Run tools/report.py: (status, stdout, stderr)."""
    command = [sys.executable, str(ROOT / "tools" / "report.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return done.returncode, done.stdout, done.stderr


def checkpoint(classes, *, seed=0, epoch=2, arch=models.TINY):
    """A network that was never trained, with a made-up history; map 0 of conv2 is dead."""
    arch = models.with_classes(arch, len(classes))
    params = net.init_params(arch, rng=np.random.default_rng(seed))
    params["conv2"]["b"][0] = -100
    history = {"train_loss": [2.0, 1.0], "val_loss": [2.5, 1.5], "val_top1": [0.25, 0.5], "clipped": [0.0, 3.0]}
    mean = np.full((32, 32, 3), 120, np.float32)
    return weights.Checkpoint(
        arch, params, mean, scale=1 / 64, classes=tuple(classes), recipe={"clip": 0.1}, epoch=epoch, history=history
    )


@pytest.fixture(scope="module")
def drawn():
    """A network that knows the drawn scenes, and 48 of them."""
    return checkpoint(scenes.CLASSES), datasets.load_whole(None, side=32).first(48)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a network on drawn scenes, with kept epochs and an experiment, as the command writes it."""
    root = tmp_path_factory.mktemp("report")
    for epoch in (1, 2):
        weights.save(root / f"net.epoch{epoch:03}.h5", checkpoint(scenes.CLASSES, seed=2 - epoch, epoch=epoch))
    weights.save(root / "net.h5", checkpoint(scenes.CLASSES))
    (root / "found").mkdir()
    numbers = {
        "command": "python tools/table2.py", "choices": {"crops": 10},
        "numbers": [{"name": "top-1 error", "measured": 0.226, "plus_minus": 0.0123, "paper": 0.375}],
    }  # fmt: skip
    (root / "found" / "table2.json").write_text(json.dumps(numbers))
    Image.new("RGB", (40, 20)).save(root / "found" / "table2.png")
    out = root / "page with a space"
    args = ("--images", 48, "--samples", 3, "--experiments", root / "found", "--out", out)
    status, printed, err = tool(root / "net.h5", *args)
    assert (status, printed.strip()) == (0, str(out / "index.html")), err
    return out


def taken(content):
    """Key and value that a script of data hands to the page."""
    match = re.fullmatch(rb"refnet\.take\((.*)\);\n", content)
    key, value = json.loads(b"[" + match[1] + b"]")
    return key, value


# --- what fills it ---


def test_a_script_is_ascii_and_no_name_in_it_ends_anything():
    content = encode.script("x", {"names": [*HOSTILE, "\udcff"], "nan": float("nan"), "one": 1.5})
    assert content.isascii() and b"<" not in content and b"\xe2\x80\xa8" not in content
    assert taken(content) == ("x", {"names": [*HOSTILE, "\udcff"], "nan": None, "one": 1.5})


def test_numbers_have_four_digits():
    assert encode.numbers(np.array([[1 / 3, 12345.6], [0, -1e-9]])) == [[0.3333, 12350.0], [0.0, -1e-9]]


def test_habits_find_a_planted_class_and_nothing_in_a_map_that_likes_all():
    labels = np.array([0, 0, 2, 2, 2])
    peaks = np.array([[4, 1, 0], [2, 1, 0], [1, 1, 0], [np.nan] * 3, [0, 1, 0]], np.float32)
    found = maps.habits(peaks, labels, 4)
    assert found.favourite.tolist()[0] == 0
    np.testing.assert_allclose(found.selectivity, [(3 - 0.5) / 3.5, 0, 0])
    np.testing.assert_allclose(found.quiet, [0.25, 0, 1])
    np.testing.assert_array_equal(np.isnan(found.means[:, 0]), [False, True, False, True])


def test_one_pass_finds_what_figure_2_finds_and_every_image_s_peaks(drawn):
    ck, data = drawn
    found = top.find(ck, data, ["relu1", "relu2"])
    for each in fig2.run(ck, data, layers=["relu1", "relu2"], maps=None):
        for name, array in vars(each.strongest).items():
            np.testing.assert_array_equal(array, getattr(found.best[each.layer], name))
        np.testing.assert_array_equal(
            np.nanmax(found.peaks[each.layer], axis=0), np.maximum(each.strongest.value[:, 0], 0)
        )


def test_a_map_s_picture_holds_patches_and_projections_as_figure_2_has_them(drawn):
    ck, data = drawn
    [features] = fig2.run(ck, data, layers=["relu2"], maps=None)
    pictures = dict(maps.pictures(ck, data, "relu2", features.strongest))
    assert sorted(pictures) == list(range(8))
    size = features.patches.shape[2]
    sheet = encode.tiles(list(features.patches[3]), columns=3)
    got = np.asarray(Image.open(io.BytesIO(pictures[3])))
    assert got.shape == (3 * size, 3 * size * len(maps.SQUARES), 3)
    np.testing.assert_array_equal(got[:, : 3 * size], sheet)
    place = maps.SQUARES.index("deconv") * 3 * size
    drawn_again = encode.tiles(list(top.visible(features.projections[3])), columns=3)
    np.testing.assert_array_equal(got[:, place : place + 3 * size], drawn_again)


def test_the_strongest_maps_here_are_those_of_the_bare_image(drawn):
    ck, data = drawn
    here = samples.strongest_here(ck, data.first(3), "relu2")
    peaks = top.find(ck, data.first(3), ["relu2"]).peaks["relu2"]
    np.testing.assert_array_equal(here.features.strongest.value[:, 0], np.sort(peaks, axis=1)[:, ::-1][:, :6].ravel())


def test_the_truth_about_a_scene_is_in_the_crop(drawn):
    ck, data = drawn
    [(_, facts, _)] = samples.files(ck, samples.readable(data, 1), ["relu1", "relu2"])
    truth = datasets.drawing(data.names[0], side=32)
    name, (row, col) = next(iter(truth.parts.items()))
    assert facts["parts"][name] == [row - 6, col - 6]  # of 32 pixels, 19 in the middle
    assert datasets.drawing("val/face/scene 1:000001.png", side=32) is None


def test_the_evolution_keeps_its_maps_and_needs_one_network(drawn):
    ck, data = drawn
    kept = [checkpoint(scenes.CLASSES, seed=1, epoch=1), replace(ck, epoch=2)]
    shown = [facts for _, _, facts in training.evolution(kept, data, ["relu2"])]
    assert sorted(each["epoch"] for each in shown) == [1, 2]
    assert shown[0]["maps"] == shown[1]["maps"] and 0 not in shown[0]["maps"]
    other = checkpoint(scenes.CLASSES, arch=models.MINI)
    with pytest.raises(ValueError, match="kept epoch 2 is of mini"):
        list(page.files(ck, None, page.About("x", {}), kept=[other]))


def test_without_images_there_are_filters_and_curves(drawn):
    files = dict(page.files(drawn[0], None, page.About("x", {})))
    assert set(files) == {"filters.webp", "data/net.js", *page.TEMPLATES}
    _, summary = taken(files["data/net.js"])
    assert summary["images"] == 0 and summary["history"]["train_loss"] == [2.0, 1.0]
    assert list(files)[-1] == "index.html"


def test_the_command_says_what_it_needs(tmp_path):
    weights.save(tmp_path / "net.h5", checkpoint(["a", "b"]))
    status, printed, err = tool(tmp_path / "net.h5", "--out", tmp_path / "page")
    assert status == 0 and "does not know the drawn scenes" in err
    status, printed, err = tool(tmp_path / "net.h5", "--data", tmp_path / "none", "--out", tmp_path / "page")
    assert (status, printed, err.count("\n")) == (2, "", 1) and "does not exist" in err
    (tmp_path / "x.json").write_text("{")
    status, printed, err = tool(tmp_path / "net.h5", "--experiments", tmp_path, "--out", tmp_path / "page")
    assert status == 2 and "no valid JSON" in err


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; where there is none the tests skip, but not in CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        says = "no chromium is installed: apt-get install chromium"
        pytest.fail(says) if os.environ.get("REFNET_ORACLES") == "1" else pytest.skip(says)
    playwright = oracle("playwright.sync_api").sync_playwright().start()
    opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
    yield opened
    opened.close()
    playwright.stop()


class Visit:
    """A page that was opened from a folder; notes errors, and requests that leave the folder or fail."""

    def __init__(self, context, folder, route=""):
        self.page, self.wrong = context.new_page(), []
        base = folder.as_uri()
        self.page.set_default_timeout(5000)
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.page.on(
            "request", lambda request: request.url.startswith((base, "data:,")) or self.wrong.append(request.url)
        )
        self.page.goto(f"{base}/index.html{route}")
        self.page.wait_for_selector("main[data-route]")

    def go(self, route):
        self.page.evaluate("route => { location.hash = route; }", route)
        self.page.wait_for_selector(f'main[data-route="{route}"]')

    def heading(self):
        return self.page.inner_text("h1")


@pytest.fixture
def visit(browser, report):
    """A visit to the report at a desktop's width; at its end nothing may have gone wrong."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened = Visit(context, report)
        yield opened
        assert opened.wrong == []


def test_from_layer_to_map_to_image(visit):
    page = visit.page
    assert visit.heading() == "What net has learnt"
    page.click(".stack >> text=conv2")
    page.wait_for_selector('main[data-route="conv2"]')
    assert page.locator(".grid .map").count() == 8
    assert "1 of them dead" in page.inner_text("main")
    page.click('.grid [data-map="3"]')
    page.wait_for_selector('main[data-route="conv2/3"]')
    assert visit.heading() == "conv2, map 3"
    assert page.locator(".nine").nth(0).locator(".cell").count() == 9
    page.click("text=Whole image")
    assert page.locator(".nine").nth(1).locator("img").count() == 9
    page.click("text=Guided")
    assert page.locator(".nine").locator("xpath=preceding-sibling::h3").first.inner_text() == "Guided"
    page.locator(".nine").nth(0).locator(".cell").nth(4).click()
    assert "5 of 9" in page.inner_text("dl")
    sizes = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert sizes and all(sizes)
    page.click("nav >> text=Image")
    page.wait_for_selector("main[data-route='/image']")
    page.click(".spot >> nth=0")
    page.wait_for_selector("main[data-route^='conv1/']")


def test_a_deep_link_opens_its_map_and_a_wrong_one_the_layers(browser, report):
    with browser.new_context() as context:
        assert Visit(context, report, "#conv2/5").heading() == "conv2, map 5"
        assert Visit(context, report, "#/image/2").page.locator("[aria-current=true]").count() == 1
        assert Visit(context, report, "#conv2/99").heading().startswith("conv2")
        assert Visit(context, report, "#<b>").heading() == "What net has learnt"


def test_a_dead_map_says_so(visit):
    visit.go("conv2/0")
    assert "Dead: none of the images excites it." in visit.page.inner_text("main")


def test_sorting_and_searching(visit, report):
    page = visit.page
    visit.go("conv2")
    _, entries = taken((report / "data" / "relu2.js").read_bytes())
    want = {
        "strength": lambda m: -(entries[m]["values"] or [-1])[0],
        "selectivity": lambda m: -entries[m]["selectivity"],
        "quiet": lambda m: -entries[m]["quiet"] - (not entries[m]["values"]),
        "number": lambda m: m,
    }
    for key, value in want.items():
        page.select_option("#sort", key)
        order = page.eval_on_selector_all(".grid .map", "links => links.map(link => Number(link.dataset.map))")
        assert order == sorted(range(8), key=value), key
    page.focus("#sort")
    page.keyboard.press("Escape")  # leaves the list, not the layer
    page.keyboard.press("/")
    page.keyboard.type("6")
    assert page.locator(".grid .map").count() == 1
    page.keyboard.press("Enter")
    page.wait_for_selector('main[data-route="conv2/6"]')


def test_the_keyboard_walks_between_maps_and_up_again(visit):
    page = visit.page
    visit.go("conv2")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector('main[data-route="conv2/1"]')
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('main[data-route="conv2/2"]')
    page.keyboard.press("ArrowDown")
    assert "2 of " in page.inner_text("dl")
    page.keyboard.press("Escape")
    page.wait_for_selector('main[data-route="conv2"]')
    assert page.evaluate("document.activeElement.dataset.map") == "2"
    page.keyboard.press("Escape")
    page.wait_for_selector('main[data-route="/layers"]')


def test_the_square_follows_the_pointer_and_the_arrow_keys(visit, report):
    page = visit.page
    visit.go("/image/1")
    _, facts = taken((report / "data" / "sample-1.js").read_bytes())
    rows, cols = len(facts["right"]), len(facts["right"][0])
    frame = page.locator(".panels .frame").nth(3)
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    r, c = rows - 2, 1
    page.mouse.move(box["x"] + (c + 0.5) / cols * box["width"], box["y"] + (r + 0.5) / rows * box["height"])
    top, left = r * facts["step"], c * facts["step"]
    where = f"Square over rows {top} – {top + facts['square']}, columns {left} – {left + facts['square']}"
    said = page.inner_text(".readout")
    assert said.startswith(where)
    assert f"activity {facts['activity'][r][c]:.3g}" in said
    assert f"most probable {scenes.CLASSES[facts['labels'][r][c]]} " in said
    assert page.locator(".hider:visible").count() == 5
    frame.focus()
    page.keyboard.press("ArrowUp")
    assert f"rows {top - facts['step']} –" in page.inner_text(".readout")
    assert page.locator(".mark:visible").count() > 0
    page.uncheck("text=true outline and parts")
    assert page.locator(".mark:visible").count() == 0


def test_curves_and_the_slider_over_epochs(visit):
    page = visit.page
    visit.go("/training")
    assert page.locator(".chart path.s0").count() == 3 and page.locator(".chart circle").count() == 14
    box = page.locator(".chart svg").first.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    assert page.locator(".chart output").first.inner_text() == "Epoch 1: training 2, validation 2.5"
    slider = page.locator("#epoch")
    pictures = "els => els.map(el => getComputedStyle(el).backgroundImage)"
    late = page.eval_on_selector_all(".epochs .part", pictures)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".slide output") == "epoch 1"
    early = page.eval_on_selector_all(".epochs .part", pictures)
    assert "relu2-002.webp" in late[0] and "relu2-001.webp" in early[0]


def test_experiments_stand_beside_the_paper_s_numbers(visit):
    visit.go("/experiments")
    rows = visit.page.locator("tbody tr")
    assert rows.first.inner_text().split("\t") == ["top-1 error", "0.226 ± 0.0123", "0.375"]
    visit.page.get_by_text("How it was made").click()
    assert rows.last.inner_text().split("\t") == ["crops", "10"]
    assert visit.page.get_by_text("python tools/table2.py").is_visible()
    assert visit.page.evaluate("document.querySelector('.plot').naturalWidth") in (0, 40)  # it loads when seen
    visit.go("/about")
    assert "tools/report.py" in visit.page.inner_text("main")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_reads_well_in_both_schemes(browser, report, scheme):
    with browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme) as context:
        visit = Visit(context, report)
        for route in ("/layers", "conv2", "conv2/3", "/image/0", "/training", "/experiments", "/about"):
            visit.go(route)
            assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), route
            contrast, unnamed = visit.page.evaluate(CHECKS)
            assert contrast >= 4.5 and unnamed == 0, route
        assert visit.wrong == []


def test_hostile_names_stay_text(browser, tmp_path):
    rng = np.random.default_rng(0)
    names = HOSTILE[:2]
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f'{i}"><img src=x onerror=window.hacked=1>.png')
    weights.save(tmp_path / "<i>net.h5", checkpoint(HOSTILE))
    status, _, err = tool(tmp_path / "<i>net.h5", "--data", tmp_path / "photos", "--out", tmp_path / "page")
    assert status == 0, err
    with browser.new_context() as context:
        visit = Visit(context, tmp_path / "page")
        assert visit.heading() == "What <i>net has learnt"
        for route in ("conv2", "conv2/3", "/image/0", "/image/1", "/training", "/experiments", "/about", "/layers"):
            visit.go(route)
            assert visit.page.evaluate("window.hacked") is None
            assert visit.page.locator("[onerror], main script, main i > *, h1 i").count() == 0
        visit.go("conv2/3")
        assert HOSTILE[0] in visit.page.inner_text("main").replace("_", " ")
        assert visit.wrong == []


def test_it_can_be_used_within_a_second(browser, report):
    with browser.new_context() as context:
        assert min(Visit(context, report).page.evaluate("performance.now()") for _ in range(3)) < 1000


def test_printed_it_has_pictures_and_no_controls(visit):
    visit.page.emulate_media(media="print")
    visit.go("conv2/3")
    assert not visit.page.is_visible("nav") and not visit.page.is_visible(".bar")
    assert visit.page.is_visible(".nine >> nth=0")
