"""Streaming a data set through a network: every image once, cut as the paper cuts, whatever the batches."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from fixtures import assert_near, bits, checkpoint_of, noise, pictures

from refnet import models
from refnet.features import stream
from refnet.net import predict

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
