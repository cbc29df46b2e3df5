"""Table 6: average precision by hand, a planted class that is found, and a random one that is not."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures import checkpoint_of, colours
from PIL import Image
from test_tools import mistake, tool
from test_voc import written

from refnet import weights
from refnet.classifiers import PENALTIES
from refnet.experiments import table6
from refnet.experiments.table6 import average_precision

# --- average precision ---


@pytest.mark.parametrize(
    ("scores", "shown", "wanted"),
    [
        ([4, 3, 2, 1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([4, 3, 2, 1], [1, 1, 0, 0], 1),
        ([4, 3, 2, 1], [0, 0, 0, 1], 1 / 4),
        ([4, 3, 2, 1], [0, 1, 1, 0], 2 / 3),  # precision 1/2, then 2/3: made monotone, 2/3 from the start
        ([5, 4, 3, 2, 1], [1, 0, 0, 1, 1], (1 + 3 / 5 + 3 / 5) / 3),
        ([1, 1, 1, 1], [0, 0, 1, 0], 1 / 4),  # all alike: the share, in whatever order they stand
        ([2, 1, 1, 0], [0, 1, 0, 1], 1 / 2),
        ([2, 2, 1, 0], [1, 0, 0, 1], 1 / 2),
        ([7], [1], 1),
    ],
)
def test_average_precision_by_hand(scores, shown, wanted):
    assert average_precision(np.array(scores, float), np.array(shown, bool)) == pytest.approx(wanted)


def by_threshold(scores, shown):
    """Precision and recall at every threshold, as VOC's own program goes through them."""
    recall, precision = [0.0], [0.0]
    for threshold in sorted(set(scores), reverse=True):
        chosen = [s for score, s in zip(scores, shown, strict=True) if score >= threshold]
        recall.append(sum(chosen) / sum(shown))
        precision.append(sum(chosen) / len(chosen))
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def test_average_precision_is_the_slow_one_whatever_the_order_of_the_images():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 30))
        scores, shown = rng.integers(8, size=n).astype(float), rng.random(n) < 0.4
        shown[0] = True
        other = rng.permutation(n)
        assert average_precision(scores, shown) == pytest.approx(by_threshold(scores.tolist(), shown.tolist()))
        assert average_precision(scores[other], shown[other]) == pytest.approx(average_precision(scores, shown))


def test_what_has_no_average_precision_is_refused():
    with pytest.raises(ValueError, match="0 of 3 images show the class"):
        average_precision(np.arange(3.0), np.zeros(3, bool))
    with pytest.raises(ValueError, match="finite scores"):
        average_precision(np.array([1, np.nan]), np.array([True, False]))


# --- the experiment ---

PLANTED, ALSO, RANDOM = range(3)


def made(n, seed, strength=5):
    """Features of n images: two classes are planted, often both at once, and a third is drawn at random."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 12))
    presence = np.where(rng.random((n, 3)) < (0.4, 0.5, 0.3), 1, -1).astype(np.int8)
    x[:, 4] += strength * presence[:, PLANTED]
    x[:, 9] += strength * presence[:, ALSO]
    return x, presence


@pytest.mark.parametrize("penalty", [None, 0.01])
def test_planted_classes_are_found_and_a_random_one_is_not(penalty):
    found = dict(table6.run(*made(150, 0), *made(600, 1), classes=range(3), penalty=penalty))
    assert found[PLANTED] > 98 and found[ALSO] > 98
    assert abs(found[RANDOM] - 30) < 8  # the share of images that show it


def test_one_softmax_of_all_classes_finds_them_less_well():
    """The paper's remark: an exclusive answer does not suit images of several classes; the planted are found still."""
    sets = *made(300, 0, strength=1.5), *made(600, 1, strength=1.5)
    against_all, exclusive = (dict(table6.run(*sets, classes=range(3), method=method)) for method in table6.METHODS)
    for label in (PLANTED, ALSO):
        assert 90 < exclusive[label] < against_all[label] - 0.5
    assert abs(exclusive[RANDOM] - 30) < 12


def test_images_with_difficult_objects_only_count_neither_way():
    """Were they taken for or against, the wrong half of them would spoil training, and the test."""
    (x, presence), (test_x, test_presence) = made(150, 0), made(300, 1)
    (want,) = table6.run(x, presence, test_x, test_presence, classes=[PLANTED], penalty=0.01)
    difficult = np.zeros((40, 3), np.int8)
    confusing = np.zeros((40, 12))
    confusing[:, 4] = np.linspace(-30, 30, 40)
    more = np.vstack([x, confusing]), np.vstack([presence, difficult])
    more_test = np.vstack([test_x, confusing]), np.vstack([test_presence, difficult])
    (found,) = table6.run(*more, *more_test, classes=[PLANTED], penalty=0.01)
    assert found == want
    for sign in (1, -1):  # and where they do count, that shows
        (spoilt,) = table6.run(*more, more_test[0], np.where(more_test[1] == 0, sign, more_test[1]), classes=[PLANTED])
        assert spoilt[1] < want[1] - 1


def test_a_class_of_one_image_is_learnt_with_the_middle_penalty():
    x, presence = made(40, 0)
    presence[:, PLANTED] = -1
    presence[7, PLANTED] = 1
    (chosen,) = table6.run(x, presence, *made(30, 1), classes=[PLANTED])
    penalty = PENALTIES[len(PENALTIES) // 2]
    (middle,) = table6.run(x, presence, *made(30, 1), classes=[PLANTED], penalty=penalty)
    assert chosen == middle


@pytest.mark.parametrize(("sign", "part"), [(1, "train"), (-1, "test")])
def test_a_class_that_all_or_no_images_show_is_refused(sign, part):
    sets = [*made(20, 0), *made(20, 1)]
    presence = sets[1 if part == "train" else 3]
    presence[presence[:, ALSO] != sign, ALSO] = 0
    with pytest.raises(ValueError, match=f"class 1 is shown by .* to {part} on, both are needed"):
        list(table6.run(*sets, classes=[PLANTED, ALSO]))


# --- the command ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network of random weights, and images in VOC's layout that show a colour, beside classes drawn by a coin."""
    root = tmp_path_factory.mktemp("voc")
    rng = np.random.default_rng(2)
    pixels = colours(180, classes=2, side=24)
    parts = {"train": {}, "val": {}}
    for i in range(len(pixels)):
        name = f"2012_{i:06}"
        objects = [("boat", "")] if i % 2 else []
        objects += [("chair", rng.choice(["", "difficult"], p=[0.8, 0.2]))] if rng.random() < 0.35 else []
        parts["train" if i < 100 else "val"][name] = objects
    written(root / "data", parts)
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(root / "data" / "JPEGImages" / f"2012_{i:06}.jpg", quality=95)
    weights.save(root / "tiny.h5", replace(checkpoint_of(), finished=True))
    return root


def arguments(folder, out, *more):
    return folder / "tiny.h5", "--data", folder / "data", "--layer", "relu6", "--threads", 1, "--out", out, *more


def test_the_command_from_a_folder_to_the_numbers_and_goes_on_where_it_stopped(folder, tmp_path):
    tool("table6.py", *arguments(folder, tmp_path), check=0)
    found = json.loads((tmp_path / "table6.json").read_text())
    by_name = {each["name"]: each for each in found["numbers"]}
    share = found["detail"]["share of images that show it"]
    assert by_name["boat: AP %"]["measured"] > 95
    assert abs(by_name["chair: AP %"]["measured"] - share["chair"]) < 20
    mean = by_name["mean average precision %"]
    assert mean["paper"] == 79.0
    assert mean["measured"] == pytest.approx(
        (by_name["boat: AP %"]["measured"] + by_name["chair: AP %"]["measured"]) / 2
    )
    assert found["choices"]["method"] == "one-against-all" and found["choices"]["images"] == [100, 80]
    assert (tmp_path / "table6.png").stat().st_size > 10_000

    kept = tmp_path / "table6" / "boat.json"
    kept.write_text(kept.read_text().replace(f'"result": {by_name["boat: AP %"]["measured"]}', '"result": 12.5'))
    (tmp_path / "table6" / "chair.json").unlink()
    tool("table6.py", *arguments(folder, tmp_path), check=0)
    again = {each["name"]: each for each in json.loads((tmp_path / "table6.json").read_text())["numbers"]}
    assert again["boat: AP %"]["measured"] == 12.5  # read, not computed
    assert again["chair: AP %"] == by_name["chair: AP %"]
    assert "use another --out" in mistake("table6.py", *arguments(folder, tmp_path, "--method", "softmax"))


def test_mistakes_are_one_line(folder, tmp_path):
    no_layer_7 = [each for each in arguments(folder, tmp_path) if each not in ("--layer", "relu6")]
    assert "has no layer numbered 7" in mistake("table6.py", *no_layer_7)
    assert "test.txt: No such file" in mistake("table6.py", *arguments(folder, tmp_path, "--test", "test"))
