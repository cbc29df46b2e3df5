"""Streaming a data set through a network: every image once, cut as the paper cuts, whatever the batches."""

import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures import assert_near, bits, checkpoint_of, noise, pictures

from refnet import features, models, net
from refnet.features import stream
from refnet.net import predict

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import _features

N = 23
CHECKPOINT = checkpoint_of()
PIXELS = noise(N)


def gathered(dataset, **options):
    """Outputs, labels and indices of the whole data set."""
    return tuple(np.concatenate(each) for each in zip(*stream(CHECKPOINT, dataset, **options), strict=True))


def outputs_at(row, col, *, mirrored=False, layer=None):
    """Outputs for the 19 x 19 pixels from (row, col) on."""
    cut = np.s_[row : row + 19, col : col + 19]
    x = np.stack([(pixels[cut] - CHECKPOINT.mean[cut]) / np.float32(64) for pixels in PIXELS])
    return predict(CHECKPOINT.arch, CHECKPOINT.params, x[:, :, ::-1] if mirrored else x, stop=layer)


def test_every_image_once_and_in_order():
    _, labels, indices = gathered(pictures(PIXELS), batch=5)
    assert indices.tolist() == list(range(N))
    assert labels.tolist() == [i % 10 for i in range(N)]
    assert [len(y) for y, _, _ in stream(CHECKPOINT, pictures(PIXELS), batch=5)] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("layer", [None, "relu2", "fc6"])
def test_outputs_are_the_networks_of_the_centre_crop(layer):
    y, _, _ = gathered(pictures(PIXELS), layer=layer)
    assert y.dtype == np.float32
    assert_near(y, outputs_at(2, 2, layer=layer), 1e-6)


def test_ten_crops_come_in_the_papers_order():
    y, _, _ = gathered(pictures(PIXELS), ten_crop=True)
    places = [(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]  # upper left, upper right, lower left, lower right, centre
    ten = [outputs_at(*place, mirrored=mirrored) for mirrored in (False, True) for place in places]
    assert_near(y, np.stack(ten, axis=1), 1e-6)


def test_ten_crops_of_a_layer_of_maps():
    y, _, _ = gathered(pictures(PIXELS), ten_crop=True, layer="pool1")
    assert y.shape == (N, 10, *models.TINY.shapes()["pool1"])


@pytest.mark.parametrize("ten_crop", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_outputs_do_not_depend_on_the_batch(batch, ten_crop):
    y, labels, indices = gathered(pictures(PIXELS), batch=batch, ten_crop=ten_crop)
    others = gathered(pictures(PIXELS), batch=20, ten_crop=ten_crop)
    assert_near(y, others[0], 1e-6)
    assert (bits(labels), bits(indices)) == (bits(others[1]), bits(others[2]))


def test_outputs_do_not_depend_on_threads():
    assert bits(gathered(pictures(PIXELS), threads=1)[0]) == bits(gathered(pictures(PIXELS), threads=3)[0])


def test_bad_images_are_left_out_and_named():
    dataset = pictures(PIXELS, bad=(0, 7, 8, 9))
    y, labels, indices = gathered(dataset, batch=3)  # of one batch nothing is left
    good = [i for i in range(N) if i not in (0, 7, 8, 9)]
    assert indices.tolist() == good and labels.tolist() == [i % 10 for i in good]
    assert_near(y, outputs_at(2, 2)[good], 1e-6)
    assert dataset.skipped.keys() == {f"picture {i}" for i in (0, 7, 8, 9)}


def seen_by_watch(batch=8, **options):
    """For every layer and image, the outputs that ``watch`` was given."""
    seen, lock = {}, threading.Lock()

    def watch(layer, images, y):
        with lock:
            for image, each in zip(images.tolist(), y.copy(), strict=True):
                seen.setdefault(layer, {}).setdefault(image, []).append(each)

    outputs = gathered(pictures(PIXELS, bad=(3, 4)), watch=watch, batch=batch, **options)
    return seen, *outputs


def test_watch_gets_every_layer_with_the_images_places_in_the_data():
    seen, _, _, indices = seen_by_watch()
    assert list(seen) == [layer.name for layer in CHECKPOINT.arch.layers]
    for layer, outputs in seen.items():
        whole = outputs_at(2, 2, layer=layer)
        for image, each in outputs.items():
            assert_near(np.stack(each), whole[[image]], 1e-6, (layer, image))
        assert sorted(outputs) == indices.tolist()


def test_watch_gets_the_place_of_the_image_for_each_of_its_ten_crops():
    seen, y, _, indices = seen_by_watch(ten_crop=True, batch=30)  # three images at a time
    assert sorted(seen["fc8"]) == indices.tolist()
    for place, image in enumerate(indices.tolist()):
        assert_near(np.stack(seen["fc8"][image]), y[place], 1e-6)


def test_watch_sees_nothing_beyond_the_layer():
    assert list(seen_by_watch(layer="relu1")[0]) == ["conv1", "relu1"]


def test_an_unknown_layer_gets_the_names_that_exist():
    with pytest.raises(ValueError, match="no layer 'fc7' in tiny; its layers are conv1 relu1"):
        gathered(pictures(PIXELS), layer="fc7")


def test_images_of_another_side_than_the_means_are_refused():
    with pytest.raises(ValueError, match=r"the mean is \(24, 24, 3\) but the image \(32, 32, 3\)"):
        gathered(pictures(noise(2, 32)))


def test_a_network_of_float64_takes_images_of_float64():
    params = {
        name: {key: a.astype(np.float64) for key, a in layer.items()} for name, layer in CHECKPOINT.params.items()
    }
    single, double = (
        np.concatenate([y for y, _, _ in stream(checkpoint, pictures(PIXELS))])
        for checkpoint in (CHECKPOINT, replace(CHECKPOINT, params=params))
    )
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert_near(single, double, 1e-4)


# --- features of some layers, and keeping them ---


def test_collect_gives_every_layer_s_output_in_the_images_order():
    data, done = pictures(noise(70), bad=(3, 69)), []
    found, indices = features.collect(CHECKPOINT, data, ["norm1", "relu6"], progress=done.append)
    assert indices.tolist() == [i for i in range(70) if i not in (3, 69)] and done[-1] == 68
    x = (noise(70)[indices, 2:21, 2:21] - CHECKPOINT.mean[2:21, 2:21]) / np.float32(64)
    for layer, y in found.items():
        want = net.predict(CHECKPOINT.arch, CHECKPOINT.params, x, stop=layer)
        assert y.shape == want.shape
        assert_near(y, want, 1e-5)


def test_collect_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="no layer 'relu9'"):
        features.collect(CHECKPOINT, pictures(noise(2)), ["relu9"])
    with pytest.raises(ValueError, match="none of the 2 images could be read"):
        features.collect(CHECKPOINT, pictures(noise(2), bad=(0, 1)), ["relu1"])


def test_kept_features_are_read_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    data, layers = pictures(noise(50), bad=(20,)), ["relu2", "relu6"]
    monkeypatch.setattr(_features, "PART", 16)
    want, indices = features.collect(CHECKPOINT, data, layers)
    work, parts = features.collect, []

    def interrupted(checkpoint, some, *rest, **options):
        parts.append(len(some))
        if len(parts) == 3:
            raise KeyboardInterrupt
        return work(checkpoint, some, *rest, **options)

    monkeypatch.setattr(features, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _features.collect(tmp_path, CHECKPOINT, data, layers)
    assert len(list(tmp_path.iterdir())) == 2
    found, good = _features.collect(tmp_path, CHECKPOINT, data, layers)
    assert parts == [12, 13, 12, 12, 13]  # the third once more, and the rest
    assert good.tolist() == indices.tolist()
    for layer in layers:
        assert_near(found[layer], want[layer], 1e-5)
    again, _ = _features.collect(tmp_path, CHECKPOINT, data, layers)
    assert len(parts) == 5 and all(bits(again[layer]) == bits(found[layer]) for layer in layers)


def test_other_weights_images_or_layers_have_features_of_their_own(tmp_path):
    data = pictures(noise(5))
    first, _ = _features.collect(tmp_path, CHECKPOINT, data, ["relu6"])
    other, _ = _features.collect(tmp_path, checkpoint_of(seed=1), data, ["relu6"])
    assert bits(first["relu6"]) != bits(other["relu6"])
    _features.collect(tmp_path, CHECKPOINT, data, ["relu2"])
    _features.collect(tmp_path, CHECKPOINT, data.subset(range(3)), ["relu6"])
    assert len(list(tmp_path.iterdir())) == 4
