"""Images: what is read, where it is cut, what is drawn, and that the mean takes part in all of it."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refnet import images
from refnet.images import Augment

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixel(data, row=0, col=0):
    return tuple(np.asarray(images.decode(data))[row, col].tolist())


# ------------------------------------------------------------------------------------------------- decode


def test_decode_reads_path_bytes_and_file(tmp_path):
    data = encoded(Image.fromarray(noise(5, 7)), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        np.testing.assert_array_equal(np.asarray(images.decode(source)), noise(5, 7))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "CMYK"])
def test_decode_of_modes_without_alpha(mode):
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    data = encoded(image, "TIFF")
    assert images.decode(data).mode == "RGB"
    assert min(pixel(data)) >= 254


def test_decode_cmyk_jpeg():
    assert np.allclose(pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")), RED, atol=3)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_decode_of_16_bits_keeps_the_upper_byte(format):
    deep = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    grey = np.asarray(images.decode(encoded(Image.fromarray(deep), format)))
    np.testing.assert_array_equal(grey, np.repeat([[[0], [0], [1], [0x12], [0xFF]]], 3, axis=2))


def test_decode_puts_transparent_pixels_on_white():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert pixel(encoded(half, "PNG")) == (127, 127, 127)
    assert pixel(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*RED, *BLUE])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of transparency in bytes that is converted straight to RGB
        assert pixel(encoded(palette, "PNG", transparency=b"\xff\x00")) == (255, 255, 255)
    assert pixel(encoded(palette, "PNG")) == BLUE


def test_decode_takes_the_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED, BLUE)]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == GREEN


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_the_exif_orientation(orientation):
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:20, :32], upright[20:, 32:] = RED, BLUE
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(undo(upright))), "JPEG", exif=exif, quality=95)
    for side in (None, 8):  # also where the decoder shrinks
        small = images.decode(data, side=side).resize((64, 40))
        assert np.abs(np.asarray(small).astype(int) - upright).mean() < 8


def test_decode_shrinks_a_large_jpeg_but_never_below_twice_the_side():
    data = encoded(Image.fromarray(noise(300, 1000)), "JPEG")
    assert images.decode(data).size == (1000, 300)
    assert images.decode(data, side=64).size == (500, 150)
    assert images.decode(data, side=100).size == (1000, 300)


HUGE = b"P6 20000 20000 255\n"
WHOLE = encoded(Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>not found</html>", "not an image in a known format.*<!DOCTYPE ht"),
        (WHOLE[: len(WHOLE) // 2], "cannot be decoded: .*truncated"),
        (encoded(Image.fromarray(noise(64, 64)), "PNG")[:500], "cannot be decoded"),
        (HUGE, "cannot be decoded: .*decompression bomb"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "cannot be decoded: float pixels"),
        (Path("nowhere.jpg"), "cannot be read: No such file"),
        (Path("/"), "cannot be read: it is no file"),
    ],
    ids=["empty", "html", "truncated jpeg", "truncated png", "bomb", "float", "missing", "folder"],
)
def test_decode_says_in_one_line_why_it_is_no_image(data, message):
    with pytest.raises(ValueError, match=message) as error:
        images.decode(data)
    assert "\n" not in str(error.value)


def test_decode_of_damaged_files_raises_nothing_but_value_error():
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(24, 24))
    for format, options in [("JPEG", {"exif": exif}), ("PNG", {}), ("GIF", {}), ("TIFF", {}), ("WEBP", {})]:
        whole = np.frombuffer(encoded(image, format, **options), np.uint8)
        for _ in range(20):
            damaged = whole.copy()
            damaged[rng.integers(min(len(whole), 300), size=6)] = rng.integers(0, 256, 6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what Pillow reads all the same
                with contextlib.suppress(ValueError):
                    images.decode(damaged.tobytes())


# ------------------------------------------------------------------------------------------------- square


def test_square_does_not_resample_what_fits():
    np.testing.assert_array_equal(images.square(Image.fromarray(noise(16, 16)), 16), noise(16, 16))
    wide, tall = noise(16, 25), noise(23, 16)
    np.testing.assert_array_equal(images.square(Image.fromarray(wide), 16), wide[:, 4:20])
    np.testing.assert_array_equal(images.square(Image.fromarray(tall), 16), tall[3:19])


def test_square_agrees_with_the_papers_order():
    """Resize the shorter side, then cut: the same but for rounding, where the cut falls on pixels."""
    image = Image.fromarray(noise(4, 6, seed=3)).resize((60, 40), Image.Resampling.BICUBIC)
    paper = np.asarray(image.resize((30, 20), images.RESAMPLE))[:, 5:25].astype(int)
    assert np.abs(images.square(image, 20) - paper)[:, 1:-1].max() <= 1  # the filter reaches over the cut's edge


@pytest.mark.parametrize("hw", [(1, 1), (1, 50000), (3, 2)])
def test_square_of_tiny_and_thin_images(hw):
    image = Image.new("RGB", hw[::-1], RED)
    np.testing.assert_array_equal(images.square(image, 8), np.full((8, 8, 3), RED))


# ------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_ten_crop_is_corners_and_centre_then_their_mirror_images(dtype):
    x = np.stack([noise(9, 9, seed) for seed in (1, 2)]).astype(dtype)
    ten = images.ten_crop(x, 6)
    assert ten.shape == (2, 10, 6, 6, 3)
    assert ten.dtype == dtype
    five = [x[:, :6, :6], x[:, :6, 3:], x[:, 3:, :6], x[:, 3:, 3:], x[:, 1:7, 1:7]]
    for i, expected in enumerate(five):
        np.testing.assert_array_equal(ten[:, i], expected)
        np.testing.assert_array_equal(ten[:, 5 + i], expected[:, :, ::-1])
    np.testing.assert_array_equal(images.centre_crop(x, 6), ten[:, 4])


def test_papers_sizes():
    x = np.zeros((1, 256, 256, 3), np.uint8)
    x[0, 16:240, 16:240] = 1
    assert images.centre_crop(x, 224).all()
    assert images.ten_crop(x, 224).shape == (1, 10, 224, 224, 3)


@pytest.mark.parametrize("size", [0, 10])
def test_crops_that_do_not_fit(size):
    x = np.zeros((1, 9, 9, 3), np.float32)
    for function in (images.centre_crop, images.ten_crop):
        with pytest.raises(ValueError, match=f"crop of {size} px does not fit in an image of 9 px"):
            function(x, size)
    for augment in (Augment(), Augment("random")):
        with pytest.raises(ValueError, match="does not fit"):
            augment.draw(1, side=9, size=size, rng=np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------- augmentation


def draw(augment, n=2000, side=32, size=24, seed=0):
    return augment.draw(n, side=side, size=size, rng=np.random.default_rng(seed))


def test_default_draws_each_of_the_papers_ten_crops():
    box, mirror, colour = draw(Augment())
    kinds, counts = np.unique(np.c_[box, mirror], axis=0, return_counts=True)
    starts = sorted([(0, 0), (0, 8), (4, 4), (8, 0), (8, 8)])
    expected = [(row, col, 24, 24, flip) for row, col in starts for flip in (0, 1)]
    np.testing.assert_array_equal(kinds, expected)
    assert counts.min() > 150
    assert (colour == 1).all()


def test_random_boxes_without_an_area_have_the_crops_size_and_reach_every_place():
    box, _, _ = draw(Augment("random", mirror=False))
    assert (box[:, 2:] == 24).all()
    assert {tuple(place) for place in box[:, :2]} == {(row, col) for row in range(9) for col in range(9)}


def test_random_boxes_keep_to_area_aspect_and_image():
    row, col, height, width = draw(Augment("random", area=(0.25, 0.6), aspect=1.5), side=200).box.T
    share, aspect = height * width / 200**2, width / height
    assert row.min() == 0 and col.min() == 0 and (row + height).max() == 200 and (col + width).max() == 200
    assert 0.24 < share.min() < 0.26 and 0.59 < share.max() < 0.61
    assert 0.65 < aspect.min() < 0.68 and 1.48 < aspect.max() < 1.52
    assert abs(np.log(aspect).mean()) < 0.02
    row, col, height, width = draw(Augment("random", area=(0.0001, 1), aspect=4), side=50).box.T
    assert min(height.min(), width.min()) >= 1 and (row + height).max() == 50 and (col + width).max() == 50


def test_mirror_and_colour_can_be_off_and_on():
    off, on = draw(Augment(mirror=False)), draw(Augment(colour=0.4))
    assert not off.mirror.any()
    assert 0.45 < on.mirror.mean() < 0.55
    np.testing.assert_allclose([on.colour.min(axis=0), on.colour.max(axis=0)], [[0.6] * 3, [1.4] * 3], atol=0.01)
    assert on.colour.dtype == np.float32


def test_draws_depend_on_the_generator_alone():
    augment = Augment("random", area=(0.3, 1), aspect=1.3, colour=0.2)
    for first, second, other in zip(draw(augment), draw(augment), draw(augment, seed=1), strict=True):
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crops": "five"}, "crops must be 'ten' or 'random', not 'five'"),
        ({"crops": "random", "area": (0.5, 0.2)}, "area must be a range"),
        ({"crops": "random", "area": (0, 1)}, "area must be a range"),
        ({"crops": "ten", "area": (0.5, 1)}, "area needs crops='random'"),
        ({"crops": "random", "aspect": 1.5}, "aspect must be at least 1, and needs an area"),
        ({"crops": "random", "area": (0.5, 1), "aspect": 0.5}, "aspect must be at least 1"),
        ({"colour": 1}, "colour must be at least 0 and below 1"),
    ],
)
def test_augment_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Augment(**fields)


# ------------------------------------------------------------------------------------------------- one crop

PLAIN = np.ones(3, np.float32)


def cut(pixels, box, mirror=False, colour=PLAIN, *, size=8, mean=None, scale=1.0):
    mean = np.zeros(pixels.shape, np.float32) if mean is None else mean
    return images.crop(pixels, np.array(box), mirror, colour, size=size, mean=mean, scale=scale)


@pytest.mark.parametrize("augment", [Augment(), Augment("random")])
def test_mean_is_cut_and_mirrored_with_the_image(augment):
    """An image that equals the mean, no two rows or columns alike, leaves nothing, wherever it is cut."""
    rows, cols = np.mgrid[:12, :12]
    pixels = np.stack([5 * rows + 9 * cols, 9 * rows + 5 * cols, 12 * rows + cols], axis=2).astype(np.uint8)
    drawn = draw(augment, 100, side=12, size=8)
    for one in zip(*drawn, strict=True):
        assert not images.crop(pixels, *one, size=8, mean=pixels.astype(np.float32), scale=0.1).any()
    assert drawn.mirror.any() and len(np.unique(drawn.box, axis=0)) >= 5


def test_mean_is_resized_with_the_image():
    pixels, mean = noise(12, 12), noise(12, 12, 1).astype(np.float32)
    box = (1, 2, 9, 7)
    both = cut(pixels, box, True, mean=mean)
    alone = cut(pixels, box, True) - cut(mean.astype(np.uint8), box, True)
    np.testing.assert_allclose(both, alone, atol=1e-4)
    assert not cut(pixels, box, mean=pixels.astype(np.float32)).any()


def test_crop_without_resize_is_exact():
    pixels, mean = noise(12, 12), noise(12, 12, 1) / np.float32(3)
    crop = cut(pixels, (3, 1, 8, 8), mean=mean, scale=1 / 64)
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, (pixels[3:11, 1:9] - mean[3:11, 1:9]) * np.float32(1 / 64))


def test_resized_crop_is_pillows():
    pixels = noise(12, 12)
    expected = Image.fromarray(pixels[1:10, 2:9]).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.abs(cut(pixels, (1, 2, 9, 7)) - np.asarray(expected)).max() < 1.01  # Pillow rounds after each pass


@pytest.mark.parametrize("box", [(2, 3, 8, 8), (0, 1, 5, 10)])
def test_mirroring_twice_is_nothing(box):
    pixels, mean = noise(12, 12), noise(12, 12, 1).astype(np.float32)
    plain, mirrored = (cut(pixels, box, mirror, mean=mean) for mirror in (False, True))
    np.testing.assert_array_equal(mirrored[:, ::-1], plain)
    assert not np.array_equal(mirrored, plain)


def test_colour_factors():
    pixels, whole = noise(8, 8).astype(np.float32), (0, 0, 8, 8)
    grey = pixels @ np.float32([0.299, 0.587, 0.114])

    def jittered(*colour):
        return cut(noise(8, 8), whole, colour=np.float32(colour))

    np.testing.assert_allclose(jittered(1.3, 1, 1), 1.3 * pixels, rtol=1e-5)
    np.testing.assert_allclose(jittered(1, 0.7, 1), grey.mean() + 0.7 * (pixels - grey.mean()), rtol=1e-4)
    np.testing.assert_allclose(jittered(1, 1, 1.2), grey[..., None] * -0.2 + 1.2 * pixels, rtol=1e-3, atol=1e-3)
    one_by_one = grey[..., None] + 1.2 * (pixels - grey[..., None])
    one_by_one = 1.3 * (grey.mean() + 0.7 * (one_by_one - grey.mean()))
    np.testing.assert_allclose(jittered(1.3, 0.7, 1.2), one_by_one, rtol=1e-3, atol=1e-3)


def test_normalise():
    x, mean = np.stack([noise(5, 5), noise(5, 5, 1)]), noise(5, 5, 2).astype(np.float32)
    seen = images.normalise(x, mean, 0.5)
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, (x.astype(np.float32) - mean) / 2)


def test_mean_of_another_side_is_refused():
    mean = np.zeros((9, 9, 3), np.float32)
    with pytest.raises(ValueError, match=r"mean is \(9, 9, 3\) but the image \(12, 12, 3\)"):
        cut(noise(12, 12), (0, 0, 8, 8), mean=mean)
    with pytest.raises(ValueError, match=r"mean is \(9, 9, 3\) but the image \(12, 12, 3\)"):
        images.normalise(noise(12, 12)[None], mean, 1.0)


# ------------------------------------------------------------------------------------------------- showing


def test_to_uint8_has_grey_at_zero_and_symmetric_contrast():
    r = np.array([-2.0, -1, 0, 1, 4]).reshape(1, 5, 1)
    np.testing.assert_array_equal(images.to_uint8(r).ravel(), [64, 96, 128, 160, 255])
    np.testing.assert_array_equal(images.to_uint8(-4 * r[:, 2:]).ravel(), [128, 96, 1])
    np.testing.assert_array_equal(images.to_uint8(np.zeros((2, 2, 3))), np.full((2, 2, 3), 128))


def test_to_uint8_percentile_is_of_what_is_not_zero():
    r = np.zeros((10, 10, 1))
    r.flat[:5] = [1, 2, 3, 4, 100]
    np.testing.assert_array_equal(images.to_uint8(r, percentile=50).ravel()[:6], [170, 213, 255, 255, 255, 128])


def test_contact_sheet():
    tiles = [np.full((2, 3, 3), i, np.uint8) for i in (1, 2, 3)]
    sheet = images.contact_sheet(tiles, columns=2, gap=1, background=9)
    expected = [[1, 1, 1, 9, 2, 2, 2]] * 2 + [[9] * 7] + [[3, 3, 3, 9, 9, 9, 9]] * 2
    np.testing.assert_array_equal(sheet, np.repeat(np.array(expected)[..., None], 3, axis=2))
    assert sheet.dtype == np.uint8


def test_contact_sheet_refuses_none_and_unequal_tiles():
    with pytest.raises(ValueError, match="got none"):
        images.contact_sheet([], columns=2)
    with pytest.raises(ValueError, match=r"one shape, got \[\(2, 2, 3\), \(3, 2, 3\)\]"):
        images.contact_sheet([np.zeros((3, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)], columns=2)
