"""The embedded data set: repeatable, true to its ground truth, and not solved by pixels or colours alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.optimize import minimize

from refnet import scenes
from refnet.scenes import CLASSES, Scene

K = len(CLASSES)


@pytest.fixture(scope="module")
def sample() -> list[Scene]:
    return [scenes.scene(11, index) for index in range(20 * K)]


def same(one: Scene, other: Scene) -> bool:
    """Equal in every pixel and every truth."""
    pixels = np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
    return pixels and (one.label, one.box, one.parts) == (other.label, other.box, other.parts)


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    forwards = [scenes.scene(3, index, side=64) for index in range(K)]
    backwards = [scenes.scene(3, index, side=64) for index in reversed(range(K))][::-1]
    assert all(map(same, forwards, backwards))


def test_other_seeds_and_indices_give_other_scenes() -> None:
    images = [scenes.scene(seed, index, side=64).image for seed in (0, 1) for index in (0, 1, K, K + 1)]
    assert len({image.tobytes() for image in images}) == len(images)


def test_threads_draw_the_same_scenes() -> None:
    serial = [scenes.scene(5, index, side=64) for index in range(4 * K)]
    with ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(lambda index: scenes.scene(5, index, side=64), range(4 * K)))
    assert all(map(same, serial, threaded))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    scenes.scene(0, 0, side=64)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_classes_are_sorted_and_take_turns(sample: list[Scene]) -> None:
    assert tuple(sorted(set(CLASSES))) == CLASSES
    assert K >= 10
    assert [scene.label for scene in sample] == [index % K for index in range(len(sample))]


@pytest.mark.parametrize("side", [32, 65, 128])
def test_shapes_and_dtypes(side: int) -> None:
    for label in range(K):
        scene = scenes.draw(label, rng=np.random.default_rng(label), side=side)
        assert (scene.image.shape, scene.image.dtype) == ((side, side, 3), np.uint8)
        assert (scene.mask.shape, scene.mask.dtype) == ((side, side), np.bool_)
        assert scene.image.flags.c_contiguous


def test_another_side_shows_the_same_scene() -> None:
    for index in range(K):
        large, small = scenes.scene(9, index, side=128), scenes.scene(9, index, side=64)
        np.testing.assert_allclose(np.array(large.box) / 2, small.box, atol=1.5)
        halved = np.asarray(Image.fromarray(large.image).reduce(2), float)
        assert np.corrcoef(halved.ravel(), small.image.ravel())[0, 1] > 0.9


def test_the_box_is_tight_around_the_mask(sample: list[Scene]) -> None:
    for scene in sample:
        row0, col0, row1, col1 = scene.box
        assert scene.mask[row0:row1, col0:col1].sum() == scene.mask.sum()
        inside = scene.mask[row0:row1, col0:col1]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_objects_are_large_enough_to_see_and_leave_room_for_the_backdrop(sample: list[Scene]) -> None:
    share = np.array([scene.mask.mean() for scene in sample])
    boxes = np.array([scene.box for scene in sample])
    extent = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 128
    assert share.min() > 0.02 and share.max() < 0.75
    assert extent.min() > 0.5 and extent.max() < 1


def test_parts_are_those_of_the_class_inside_the_image_and_on_the_object(sample: list[Scene]) -> None:
    for label in range(K):
        names = {tuple(sorted(scene.parts)) for scene in sample if scene.label == label}
        assert len(names) == 1 and len(names.pop()) >= 2, CLASSES[label]
    for scene in sample:
        away = distance_transform_edt(~scene.mask)  # litter may hide a part, and a handle is a hole
        for part, (row, col) in scene.parts.items():
            assert 0 <= row < 128 and 0 <= col < 128
            assert away[int(row), int(col)] < 0.13 * 128, (CLASSES[scene.label], part)


def test_left_is_the_viewers_left_mirrored_or_not(sample: list[Scene]) -> None:
    pairs = [("face", "left eye", "right eye"), ("house", "left window", "right window")]
    for name, left, right in pairs:
        for scene in (scene for scene in sample if CLASSES[scene.label] == name):
            assert scene.parts[left][1] < scene.parts[right][1]
    cars = [scene.parts for scene in sample if CLASSES[scene.label] == "car"]
    assert {parts["rear wheel"][1] < parts["front wheel"][1] for parts in cars} == {True, False}


def test_repainting_the_object_changes_its_mask_and_soft_rim_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    one = scenes.scene(2, 6)
    palette = scenes._palette
    calls = []

    def repainted(rng: np.random.Generator) -> tuple[scenes.Palette, float]:
        paints, light = palette(rng)
        calls.append(light)
        if len(calls) == 1:  # the object comes first, then litter
            paints = {name: [255 - value for value in paint] for name, paint in paints.items()}
        return paints, light

    monkeypatch.setattr(scenes, "_palette", repainted)
    changed = np.abs(one.image.astype(int) - scenes.scene(2, 6).image).max(axis=-1) > 8
    assert calls and changed[one.mask].mean() > 0.85
    assert distance_transform_edt(~one.mask)[changed].max() < 4


def test_what_draw_cannot_do_it_says() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=f"label {K}, needs 0 to {K - 1}"):
        scenes.draw(K, rng=rng)
    with pytest.raises(ValueError, match="side 16, needs at least 32"):
        scenes.draw(0, rng=rng, side=16)


def softmax_regression(x: np.ndarray, labels: np.ndarray, *, decay: float) -> np.ndarray:
    """Weights (features + 1, K) that minimise mean cross-entropy + decay/2 |w|^2, by L-BFGS."""
    x, onehot = np.c_[x, np.ones(len(x))], np.eye(K)[labels]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        w = w.reshape(-1, K)
        scores = x @ w
        scores -= scores.max(axis=1, keepdims=True)
        logp = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        value = -(onehot * logp).sum() / len(x) + decay / 2 * (w * w).sum()
        return value, (x.T @ (np.exp(logp) - onehot) / len(x) + decay * w).ravel()

    start = np.zeros(x.shape[1] * K)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x.reshape(-1, K)


def thumbnail(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BOX), float).ravel()


def pixels(scene: Scene) -> np.ndarray:
    return thumbnail(scene.image)


def colours(scene: Scene) -> np.ndarray:
    """How often each of 5 x 5 x 5 colours occurs; the square root makes the rare ones count."""
    bins = (scene.image.reshape(-1, 3).astype(int) * 5 // 256) @ (25, 5, 1)
    return np.sqrt(np.bincount(bins, minlength=125) / len(bins))


def silhouette(scene: Scene) -> np.ndarray:
    """The object's outline without paint, place, size and backdrop: what pixels lack."""
    row0, col0, row1, col1 = scene.box
    return thumbnail(255 * scene.mask[row0:row1, col0:col1].astype(np.uint8))


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [scenes.scene(7, index, side=64) for index in range(160 * K)]


@pytest.mark.parametrize("features, low, high", [(pixels, 1 / K, 0.4), (colours, 0, 0.4), (silhouette, 0.5, 1)])
def test_a_linear_model_needs_the_truth(
    many: list[Scene], features: Callable[[Scene], np.ndarray], low: float, high: float
) -> None:
    """Pixels and colours are not enough for it. Silhouettes are: the model works, masks tell classes."""
    x, labels = np.stack([features(scene) for scene in many]), np.array([scene.label for scene in many])
    train = np.arange(len(x)) < 120 * K
    x = (x - x[train].mean(axis=0)) / (x[train].std(axis=0) + 1e-6)
    w = softmax_regression(x[train], labels[train], decay=0.1)
    right = (np.c_[x, np.ones(len(x))] @ w).argmax(axis=1) == labels
    assert right[train].mean() > 1.5 / K, "nothing was learned"
    print(f"{features.__name__}: {right[~train].mean():.1%} of held-out scenes")  # shown by pytest -s
    assert low < right[~train].mean() < high
