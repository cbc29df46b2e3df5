"""Pictures in and out: decode, square, cut, augment, and show.

Pixels are RGB, uint8 or float32 in 0..255, laid out (rows, columns, channels). Declared choices, the
paper being silent: resizes are Pillow's antialiased bilinear filter (`RESAMPLE`), transparent pixels lie on
white (`BACKDROP`), 16 bits keep their upper byte, and jittered colours are not clipped to 0..255.
"""

import io
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from refnet.backend import empty

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
AnyPixels = TypeVar("AnyPixels", Pixels, Floats)
Ints = npt.NDArray[np.int64]

RESAMPLE = Image.Resampling.BILINEAR
BACKDROP = (255, 255, 255)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in Pillow's conversion to grey


# ---------------------------------------------------------------------------------------------------- reading


def decode(source: str | Path | bytes | BinaryIO, *, side: int | None = None) -> Image.Image:
    """Read an image as upright RGB: the first frame, EXIF orientation applied, transparency on `BACKDROP`.

    Parameters
    ----------
    source : path, the bytes of a file, or an open binary file
    side : int, optional
        What the shorter side will be resized to. A large JPEG is then decoded at a half, a quarter or an
        eighth of its size (cheaper by far), but never below twice ``side``.

    Raises
    ------
    ValueError
        It is no image, and why: unreadable, empty, of another format, damaged, truncated, too large.
    """
    data = _bytes(source)
    if not data:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        if side is not None:
            image.draft(None, (2 * side, 2 * side))
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)
    except UnidentifiedImageError:
        raise ValueError(f"not an image in a known format: it starts with {data[:12]!r}") from None
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything
        raise ValueError(f"cannot be decoded: {error}") from error


def _bytes(source: str | Path | bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source
    if not isinstance(source, (str, Path)):
        return source.read()
    path = Path(source)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("cannot be read: it is no file")  # a pipe or a device might have no end
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any Pillow mode as RGB."""
    if image.mode.startswith("I"):  # "I;16" and its kin, or "I", which holds 16 bits in PNG
        high = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(high.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("float pixels (mode F) have no declared range")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, BACKDROP), layer).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Pixels:
    """The shorter side resized to ``side`` and the centre cut (paper sec. 3): (side, side, 3), read-only.

    The centre is cut first: the same pixels up to rounding, and a strip of 1 x 50,000 never grows huge.
    """
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return np.asarray(image.crop((left, top, left + short, top + short)).resize((side, side), RESAMPLE))


def encode(pixels: Pixels, quality: int) -> bytes:
    """Pixels (H, W, 3) as a JPEG of Pillow's ``quality``."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------- cutting


def normalise(x: npt.NDArray[Any], mean: Floats, scale: float) -> Floats:
    """What the network sees of pixels x (N, S, S, 3): (x - mean) * scale; mean (S, S, 3) in 0..255."""
    _check_mean(mean, x.shape[1:])
    return (x - mean) * np.float32(scale)


def centre_crop(x: AnyPixels, size: int) -> AnyPixels:
    """The centre of x (N, S, S, 3), as a view: (N, size, size, 3)."""
    row, col = _five(x.shape[1], size)[-1]
    return x[:, row : row + size, col : col + size]


def ten_crop(x: AnyPixels, size: int) -> AnyPixels:
    """The paper's ten crops (sec. 3) of x (N, S, S, 3): (N, 10, size, size, 3).

    Upper left, upper right, lower left, lower right, centre, and then their mirror images.
    """
    five = [x[:, row : row + size, col : col + size] for row, col in _five(x.shape[1], size)]
    return np.stack(five + [crop[:, :, ::-1] for crop in five], axis=1)


def _five(side: int, size: int) -> Ints:
    """Where the paper's five boxes start, (5, 2) rows and columns, in the order of `ten_crop`."""
    if not 0 < size <= side:
        raise ValueError(f"a crop of {size} px does not fit in an image of {side} px")
    far, centre = side - size, (side - size) // 2
    return np.array([(0, 0), (0, far), (far, 0), (far, far), (centre, centre)])


def _check_mean(mean: Floats, shape: tuple[int, ...]) -> None:
    if mean.shape != shape:
        raise ValueError(f"the mean is {mean.shape} but the image {shape}: load images at the mean's side")


class Draws(NamedTuple):
    """What was drawn for n images.

    ``box`` (n, 4) int64: row, column, height, width; ``mirror`` (n,) bool; ``colour`` (n, 3) float32: factors
    of brightness, contrast and saturation, 1 where they stay as they are.
    """

    box: Ints
    mirror: npt.NDArray[np.bool_]
    colour: Floats


def fixed(side: int, size: int, *, ten_crop: bool = False) -> Draws:
    """The centre crop of an image of side x side, or the paper's ten (sec. 3) in the order of `ten_crop`."""
    five = np.pad(_five(side, size), [(0, 0), (0, 2)], constant_values=size)
    box = np.tile(five, (2, 1)) if ten_crop else five[-1:]
    return Draws(box, np.arange(len(box)) >= 5, np.ones((len(box), 3), np.float32))


@dataclass(frozen=True)
class Augment:
    """How training crops are drawn; the default is the paper's (sec. 3), one of its ten at random.

    Attributes
    ----------
    crops : "ten" for the four corners and the centre; "random" for a box anywhere in the image
    area : range of a random box's share of the image, resized to the crop. None: boxes of the crop's size.
    aspect : with an area, width / height is drawn from 1 / aspect to aspect, log-uniformly
    mirror : whether half of the crops are mirrored
    colour : brightness, contrast and saturation are multiplied by factors from 1 - colour to 1 + colour
    """

    crops: Literal["ten", "random"] = "ten"
    area: tuple[float, float] | None = None
    aspect: float = 1.0
    mirror: bool = True
    colour: float = 0.0

    def __post_init__(self) -> None:
        if self.crops not in ("ten", "random"):
            raise ValueError(f"Augment: crops must be 'ten' or 'random', not {self.crops!r}")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"Augment: area must be a range within 0..1, not {self.area}")
        if self.area is not None and self.crops != "random":
            raise ValueError("Augment: an area needs crops='random'")
        if self.aspect < 1 or (self.aspect > 1 and self.area is None):
            raise ValueError(f"Augment: aspect must be at least 1, and needs an area; got {self.aspect}")
        if not 0 <= self.colour < 1:
            raise ValueError(f"Augment: colour must be at least 0 and below 1, not {self.colour}")

    def draw(self, n: int, *, side: int, size: int, rng: np.random.Generator) -> Draws:
        """Draw a crop of size x size for each of n images of side x side, from ``rng``.

        Raises
        ------
        ValueError
            The crop is larger than the image.
        """
        five = np.pad(_five(side, size), [(0, 0), (0, 2)], constant_values=size)
        box = five[rng.integers(5, size=n)] if self.crops == "ten" else self._boxes(n, side, size, rng)
        mirror = rng.random(n) < 0.5 if self.mirror else np.zeros(n, bool)
        colour = rng.uniform(1 - self.colour, 1 + self.colour, (n, 3)) if self.colour else np.ones((n, 3))
        return Draws(box, mirror, colour.astype(np.float32))

    def _boxes(self, n: int, side: int, size: int, rng: np.random.Generator) -> Ints:
        """Boxes anywhere; a side that an extreme aspect makes too long is cut to the image's."""
        if self.area is None:
            shape = np.full((n, 2), size)
        else:
            share = rng.uniform(*self.area, n)
            ratio = self.aspect ** rng.uniform(-1, 1, n)
            ideal = side * np.sqrt(np.stack([share / ratio, share * ratio], axis=1))
            shape = ideal.round().astype(np.int64).clip(1, side)
        return np.concatenate([rng.integers(side - shape + 1), shape], axis=1)


def crop(pixels: Pixels, box: Ints, mirror: bool, colour: Floats, *, size: int, mean: Floats, scale: float) -> Floats:
    """One training crop, (size, size, 3): a box of the image less the same box of the mean, times scale.

    Cutting, resizing and mirroring are linear: the mean, subtracted first, takes part in all of them.

    Parameters
    ----------
    pixels : (S, S, 3) uint8
    box, mirror, colour : a row of `Draws`
    mean : (S, S, 3) float32 in 0..255
    """
    _check_mean(mean, pixels.shape)
    row, col, height, width = box
    cut = np.s_[row : row + height, col : col + width]
    x = (_jitter(pixels[cut], colour) if (colour != 1).any() else pixels[cut]) - mean[cut]
    if (height, width) != (size, size):
        x = _resize(x, size)
    return (x[:, ::-1] if mirror else x) * np.float32(scale)


def crops(pixels: Pixels, of: Ints, draws: Draws, *, size: int, mean: Floats, scale: float) -> Floats:
    """The `crop` that each row of ``draws`` cuts from ``pixels[of]``: (m, size, size, 3).

    Parameters
    ----------
    pixels : (n, S, S, 3) uint8
    of : (m,) the image that each crop is from
    mean : (S, S, 3) float32 in 0..255
    """
    x: Floats = empty((len(of), size, size, 3), mean)
    for out, i, box, mirror, colour in zip(x, of, *draws, strict=True):
        out[...] = crop(pixels[i], box, mirror, colour, size=size, mean=mean, scale=scale)
    return x


def _jitter(x: Pixels, colour: Floats) -> Floats:
    """x (H, W, 3) with brightness, contrast and saturation multiplied by ``colour`` (3,).

    Saturation is the distance from the pixel's own grey, contrast the distance from the mean grey.
    """
    brightness, contrast, saturation = colour
    red, green, blue = np.moveaxis(x, 2, 0)
    grey = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    level = contrast * (1 - saturation) * grey + (1 - contrast) * grey.mean()
    jittered: Floats = brightness * (x * (contrast * saturation) + level[..., None])
    return jittered


def _resize(x: Floats, size: int) -> Floats:
    """Resize x (H, W, 3) to (size, size, 3), plane by plane: Pillow has no float RGB."""
    planes = [Image.fromarray(x[..., c]).resize((size, size), RESAMPLE) for c in range(3)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


# ---------------------------------------------------------------------------------------------------- showing


def to_uint8(r: npt.NDArray[Any], *, percentile: float = 100) -> Pixels:
    """A signed reconstruction, of any shape, as pixels: 0 is grey (128), +peak and -peak become 255 and 1.

    peak is the ``percentile`` of |r| where r isn't 0 (most of a projection is); beyond it, r is clipped.
    """
    strength = np.abs(r[r != 0])
    peak = np.percentile(strength, percentile) if strength.size else 1.0
    return (128 + 127 * (r / peak).clip(-1, 1)).round().astype(np.uint8)


def contact_sheet(tiles: Sequence[Pixels], *, columns: int, gap: int = 2, background: int = 255) -> Pixels:
    """Tiles (h, w, 3) in rows of ``columns``, ``gap`` pixels of ``background`` grey between: (H, W, 3).

    Raises
    ------
    ValueError
        No tiles, or tiles of several shapes.
    """
    shapes = {tile.shape for tile in tiles}
    if len(shapes) != 1:
        raise ValueError(f"contact_sheet: needs tiles of one shape, got {sorted(shapes) or 'none'}")
    height, width, channels = shapes.pop()
    rows = -(-len(tiles) // columns)
    hw = rows * (height + gap) - gap, columns * (width + gap) - gap
    sheet = np.full((*hw, channels), background, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet
