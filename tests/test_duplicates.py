"""Near-duplicates: images that were planted in another form are found, others are not."""

import io

import numpy as np
import pytest
from fixtures import pictures
from PIL import Image

from refnet import datasets, duplicates
from refnet.duplicates import near_duplicates

SIDE = 48
ONE, OTHER = (datasets.load_whole(None, side=SIDE, seed=seed).subset(range(60)) for seed in (0, 1))


def small(x):
    return Image.fromarray(x).resize((23, 23)).resize((SIDE, SIDE))


def jpeg(x):
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=30)
    return Image.open(file)


def brighter(x):
    return (0.8 * x.astype(float) + 45).clip(0, 255).astype(np.uint8)


CHANGES = {"same": np.asarray, "small": small, "jpeg": jpeg, "brighter": brighter}


def with_planted(change):
    """The other images, the 7th, 20th and last of which are images of the first set, changed."""
    pixels = np.stack([OTHER.image(i) for i in range(len(OTHER))])
    for place, source in ((7, 3), (20, 41), (59, 8)):
        pixels[place] = np.asarray(change(ONE.image(source)))
    return pictures(pixels)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("block", [7, 4096])
def test_planted_duplicates_are_found_and_nothing_else(change, block, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    found = near_duplicates(ONE, with_planted(change))
    assert [(pair.image, pair.other) for pair in found] == [(3, 7), (8, 59), (41, 20)]
    assert all(0.95 <= pair.correlation <= 1 + 1e-6 for pair in found)


def test_different_scenes_are_no_duplicates():
    assert near_duplicates(ONE, OTHER) == []


def test_correlation_is_that_of_numpy():
    """Of every image and the one it is most like, by the definition and one pair at a time."""

    def few(image):
        return np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX), float).ravel()

    some, others = ONE.subset(range(5)), OTHER.subset(range(8))
    for pair in near_duplicates(some, others, threshold=-1):
        all_of_them = [np.corrcoef(few(some.image(pair.image)), few(others.image(j)))[0, 1] for j in range(8)]
        assert pair.other == int(np.argmax(all_of_them))
        assert pair.correlation == pytest.approx(max(all_of_them), abs=1e-5)


def test_the_threshold_is_what_is_reached():
    planted = with_planted(jpeg)
    at = min(pair.correlation for pair in near_duplicates(ONE, planted))
    assert len(near_duplicates(ONE, planted, threshold=at)) == 3
    assert len(near_duplicates(ONE, planted, threshold=at + 1e-6)) == 2


def test_images_of_one_colour_or_that_cannot_be_read_are_like_none():
    grey = pictures(np.full((4, SIDE, SIDE, 3), 90, np.uint8), bad=(2,))
    assert near_duplicates(grey, grey) == []
    assert near_duplicates(grey, ONE, threshold=0.5) == []
