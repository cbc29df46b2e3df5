"""A folder of photographs as the world has them: one in twenty is broken or odd, and a training goes through."""

import os
import re
import zlib

import numpy as np
import pytest
from conftest import without_root
from fixtures import noise
from PIL import Image
from test_tools import tool

from refnet import datasets, weights

GOOD, SIDE, CLASSES = 283, 24, ("ant", "bee")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour):
    """An image of one colour."""
    return Image.new("RGB", (SIDE, SIDE), colour)


def halves(first, second):
    """An image whose left half is of one colour and whose right half is of another."""
    image = plain(first)
    image.paste(second, (SIDE // 2, 0, SIDE, SIDE))
    return image


def bomb(path):
    """A PNG of a hundred kilobytes that declares 900 million pixels, and has them."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 30_000
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(side * (1 + side // 8)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def cut(path):
    """The first half of an image."""
    plain(RED).save(path, path.suffix[1:].replace("jpg", "jpeg"), quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unreadable(path):
    """A good image that nobody may read."""
    plain(RED).save(path)
    path.chmod(0)


def turned(path):
    """Stored on its side, with an orientation that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    halves(RED, BLUE).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)


def animated(path):
    """Red, then blue."""
    plain(RED).save(path, save_all=True, append_images=[plain(BLUE)])


# What is put into the folder: its name, what makes it, and why it is skipped.
BROKEN = (
    ("empty.jpg", lambda path: path.touch(), "the file is empty"),
    ("cut.jpg", cut, "cannot be decoded: "),
    ("cut.png", cut, "cannot be decoded: "),
    ("page.jpg", lambda path: path.write_text("<!DOCTYPE html>not found"), "not an image in a known format"),
    ("bomb.png", bomb, "cannot be decoded: .*decompression bomb"),
    ("unreadable.png", unreadable, "cannot be read: Permission denied"),
    ("link.jpg", lambda path: path.symlink_to("gone.jpg"), "cannot be read: No such file"),
    ("pipe.jpg", os.mkfifo, "cannot be read: it is no file"),
    ("zeros.jpg", lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is no file"),
    (os.fsdecode(b"\xff\xe9.jpg"), lambda path: path.write_text("no image"), "not an image in a known format"),
)
# The same, but for what it must be read as.
ODD = (
    ("cmyk.jpg", lambda path: Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(path), plain(RED)),
    ("deep.png", lambda path: Image.fromarray(np.full((SIDE, SIDE), 0x80FF, np.uint16)).save(path), plain((128,) * 3)),
    ("palette.gif", lambda path: halves(RED, BLUE).quantize(2).save(path), halves(RED, BLUE)),
    ("animated.gif", animated, plain(RED)),
    ("turned.jpg", turned, halves(RED, BLUE)),
    ("pixel.png", lambda path: Image.new("RGB", (1, 1), BLUE).save(path), plain(BLUE)),
    (os.fsdecode(b"\xe9t\xe9.png"), plain(BLUE).save, plain(BLUE)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 150, 17 files of them broken or odd."""
    root = tmp_path_factory.mktemp("world")
    for name in CLASSES:
        (root / name).mkdir()
    for number, pixels in enumerate(noise(GOOD, SIDE)):
        Image.fromarray(pixels).save(root / CLASSES[number % 2] / f"{number:03}.png")
    for number, (name, make, _) in enumerate((*BROKEN, *ODD)):
        make(root / CLASSES[number % 2] / name)
    return root


def test_what_can_be_decoded_is_decoded_right_and_the_rest_says_why(folder):
    data = datasets.load_whole(folder, side=SIDE)
    place = {os.path.basename(name): i for i, name in enumerate(data.names)}
    assert len(place) == GOOD + len(BROKEN) + len(ODD) == 300
    for name, _, want in ODD:
        off = np.abs(data.image(place[name]).astype(int) - np.asarray(want)).mean()
        assert off < 6, f"{name!r} is off by {off:.1f}"
    for name, _, why in BROKEN:
        if "Permission" not in why:  # root reads it
            with pytest.raises(ValueError, match=f"{re.escape(name)}: {why}"):
                data.image(place[name])


def test_a_training_passes_over_what_is_broken_and_lists_it(folder, tmp_path):
    args = ("--data", folder, "--arch", "tiny", "--epochs", 1, "--out", tmp_path / "x.h5")
    _, printed, err = tool("train.py", *args, check=0, before=without_root)
    assert weights.load(tmp_path / "x.h5").finished and "top-1" in printed and "Warning" not in err
    *_, count = err.splitlines()
    listed = sorted(line for line in err.splitlines() if line.startswith("skipped "))
    assert count == f"{len(listed)} files skipped" and len(listed) == len(BROKEN)
    for number, (name, _, why) in enumerate(BROKEN):
        shown = f"{CLASSES[number % 2]}/{name}".encode(errors="backslashreplace").decode()
        assert any(re.match(f"skipped {re.escape(shown)}: {why}", line) for line in listed), shown


def test_strict_stops_at_the_first(folder, tmp_path):
    args = ("--data", folder, "--arch", "tiny", "--epochs", 1, "--out", tmp_path / "x.h5", "--strict")
    _, printed, err = tool("train.py", *args, check=2, before=without_root)
    assert printed == "" and not (tmp_path / "x.h5").exists() and "epoch " not in err
    assert re.match(r"train\.py: (ant|bee)/.*; --strict stops at \d+ bad file", err.splitlines()[-1])
