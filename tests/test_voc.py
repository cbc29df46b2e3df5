"""Data in PASCAL VOC's layout: every image with what it shows, and files that are not what they should be."""

import numpy as np
import pytest
from fixtures import noise
from PIL import Image

from refnet import images, voc


def annotation(*objects):
    """An annotation as VOC writes it: of each object its class, "difficult" or "", and the names of its parts."""
    listed = "".join(
        f"<object><name>{name}</name><pose>Left</pose>"
        f"{'<difficult>1</difficult>' if hard else '<difficult>0</difficult>'}"
        f"{''.join(f'<part><name>{part}</name></part>' for part in parts)}</object>"
        for name, hard, *parts in objects
    )
    return f"<annotation><folder>VOC2012</folder><size><width>40</width></size>{listed}</annotation>"


def written(root, parts):
    """A folder in VOC's layout of {part: {ID: objects}} with noise for images; the images (side 24) by ID."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = {}
    for part, listed in parts.items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(listed) + "\n")
        for each, objects in listed.items():
            pixels[each] = noise(1, 24, seed=len(pixels))[0]
            Image.fromarray(pixels[each]).save(root / "JPEGImages" / f"{each}.jpg", quality=100, subsampling=0)
            (root / "Annotations" / f"{each}.xml").write_text(annotation(*objects))
    return pixels


TRAIN = {
    "2008_000002": [("dog", ""), ("person", "", "head", "hand")],
    "2007_000001": [("dog", ""), ("dog", "difficult")],
    "2011_000003": [("person", "difficult"), ("person", "difficult"), ("cat", "difficult")],
}
VAL = {"2009_000004": [("bus", "")], "2009_000005": []}


def test_presence_is_1_shown_minus_1_not_and_0_where_all_are_difficult(tmp_path):
    written(tmp_path, {"train": TRAIN, "val": VAL})
    train, val = voc.load(tmp_path, side=24)
    assert train.images.classes == val.images.classes == ("bus", "cat", "dog", "person")  # parts of a person are none
    assert train.presence.tolist() == [[-1, -1, 1, 1], [-1, -1, 1, -1], [-1, 0, -1, 0]]
    assert val.presence.tolist() == [[1, -1, -1, -1], [-1, -1, -1, -1]]


def test_images_come_in_the_list_s_order(tmp_path):
    pixels = written(tmp_path, {"train": TRAIN, "val": VAL})
    [train] = voc.load(tmp_path, ["train"], side=24)
    assert train.images.names == [f"JPEGImages/{each}.jpg" for each in TRAIN]
    for i, each in enumerate(TRAIN):
        off = np.abs(train.images.image(i).astype(int) - pixels[each])
        assert off.mean() < 3  # it is a JPEG; noise and other noise differ by 85


def test_images_are_cut_square_as_all_others(tmp_path):
    written(tmp_path, {"train": TRAIN})
    wide = np.repeat(noise(1, 30)[0], 2, axis=1)
    Image.fromarray(wide).save(tmp_path / "JPEGImages" / "2007_000001.jpg")
    [train] = voc.load(tmp_path, ["train"], side=20)
    want = images.square(images.decode(tmp_path / "JPEGImages" / "2007_000001.jpg", side=20), 20)
    np.testing.assert_array_equal(train.images.image(1), want)


def test_an_image_that_is_not_there_is_skipped_when_it_is_read(tmp_path):
    written(tmp_path, {"train": TRAIN})
    (tmp_path / "JPEGImages" / "2007_000001.jpg").unlink()
    [train] = voc.load(tmp_path, ["train"], side=24)
    with pytest.raises(ValueError, match="No such file"):
        train.images.image(1)
    assert list(train.images.skipped) == ["JPEGImages/2007_000001.jpg"]


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'
OTHER_FILE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotation>&a;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB.encode(), "declares a document type"),
        (BOMB.encode("utf-16"), "declares a document type"),
        (OTHER_FILE.encode(), "declares a document type"),
        (b"<annotation><object>", "no element found"),
        (b"", "no element found"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not well-formed"),
        (b'<?xml version="1.0" encoding="no-such"?><annotation/>', "unknown encoding"),
    ],
)
def test_a_damaged_or_hostile_annotation_is_named(tmp_path, content, message):
    written(tmp_path, {"train": TRAIN})
    (tmp_path / "Annotations" / "2007_000001.xml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        voc.load(tmp_path, ["train"], side=24)
    assert "2007_000001.xml is no annotation" in str(error.value)


def test_what_is_missing_is_named_with_the_layout(tmp_path):
    written(tmp_path, {"train": TRAIN})
    with pytest.raises(ValueError, match=r"val\.txt: No such file.*JPEGImages"):
        voc.load(tmp_path, side=24)
    (tmp_path / "Annotations" / "2008_000002.xml").unlink()
    with pytest.raises(ValueError, match=r"2008_000002\.xml: No such file.*Annotations"):
        voc.load(tmp_path, ["train"], side=24)


@pytest.mark.parametrize(
    ("listed", "message"),
    [("\n", "lists no images"), ("../../etc/passwd\n", "is no ID"), ("2007_000001\na/b\n", "'a/b' is no ID")],
)
def test_a_list_holds_ids_and_nothing_else(tmp_path, listed, message):
    written(tmp_path, {"train": TRAIN})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(listed)
    with pytest.raises(ValueError, match=message):
        voc.load(tmp_path, ["train"], side=24)


def test_images_without_any_object_are_refused(tmp_path):
    written(tmp_path, {"train": {"1": [], "2": []}})
    with pytest.raises(ValueError, match="no annotation has an object"):
        voc.load(tmp_path, ["train"], side=24)
