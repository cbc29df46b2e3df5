"""The embedded data set: photographs of a sort, drawn from numbers, with the truth about every pixel.

An object is a list of filled outlines in its own coordinates; one function per class sketches it, never the
same twice. An affine map puts the sketch into the picture and four paints colour it; then a backdrop, litter
before and behind, light and a camera do what they can to hide it. Paints are mixed without regard to the
class, so that only structure tells the classes apart. And as the drawing is ours, we know what is where.

>>> face = scene(seed=0, index=6)
>>> CLASSES[face.label], sorted(face.parts)
('face', ['left eye', 'mouth', 'nose', 'right eye'])
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float32]
Palette = dict[str, list[int]]


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it. Pixel [r, c] covers rows r to r + 1 and columns c to c + 1.

    Attributes
    ----------
    image : uint8 (side, side, 3), RGB
    label : index into `CLASSES`
    box : row0, col0, row1, col1, half-open, tight around `mask`
    mask : bool (side, side), the pixels of the object that are visible
    parts : name -> (row, col) of the part's middle, in pixels; left and right are the viewer's.
        Always inside the image, though litter may hide a part, and the middle of a handle is its hole.
    """

    image: NDArray[np.uint8]
    label: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]
    parts: dict[str, tuple[float, float]]


class Shape(NamedTuple):
    """A filled outline (n, 2) of x, y, the name of its paint, and the part that it is, if it is one."""

    paint: str
    outline: Floats
    part: str = ""


# --------------------------------------------------------------------------------------------------
# Outlines, in the coordinates of an object: x to the right, y down, most objects fill [-1, 1] x [-1, 1].


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float32)


_ANGLES = np.linspace(0, 2 * np.pi, 25)
_CIRCLE = _floats([np.cos(_ANGLES), np.sin(_ANGLES)]).T


def _rotation(angle: float) -> Floats:
    """A matrix to multiply points by from the right. It turns x towards y: clockwise, as y points down."""
    return _floats([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _polygon(*points: tuple[float, float]) -> Floats:
    return _floats(points)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Floats:
    return _floats([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Floats:
    return _floats(_CIRCLE * _floats((rx, ry)) @ _rotation(turn) + _floats((x, y)))


def _disc(x: float, y: float, radius: float) -> Floats:
    return _CIRCLE * np.float32(radius) + _floats((x, y))


def _ring(x: float, y: float, radius: float, width: float) -> Floats:
    """Two circles with a seam between them; filled by the even-odd rule, the inner one is a hole."""
    return np.concatenate([_disc(x, y, radius), _disc(x, y, radius - width)[::-1]])


def _ribbon(width: float, *points: tuple[float, float]) -> Floats:
    """A line of this width through the points."""
    line = _floats(points)
    along = np.gradient(line, axis=0)
    aside = along[:, ::-1] * _floats((-width / 2, width / 2)) / np.linalg.norm(along, axis=1, keepdims=True)
    return np.concatenate([line + aside, (line - aside)[::-1]])


# --------------------------------------------------------------------------------------------------
# The classes, each drawn from back to front. The paints are base and its shade, trim, and ink; see _palette.


def _vary(rng: Generator, *ranges: tuple[float, float]) -> list[float]:
    """One number from each range."""
    low, high = zip(*ranges, strict=True)
    values: list[float] = rng.uniform(low, high).tolist()
    return values


def _airplane(rng: Generator) -> list[Shape]:
    girth, sweep, span = _vary(rng, (0.12, 0.19), (0.1, 0.4), (0.55, 0.8))
    fin, gap = _vary(rng, (0.35, 0.55), (0.13, 0.2))
    wing = _polygon((0.25, 0), (0.02 - sweep, span), (-0.16 - sweep, span), (-0.22, 0))
    return [
        Shape("shade", wing * _floats((0.9, -0.75)), "far wing"),
        Shape("shade", _polygon((-0.62, 0), (-0.95, -fin), (-1.1, -fin), (-0.92, 0.05)), "tail"),
        Shape("base", _ellipse(0, 0, 1, girth)),
        Shape("trim", _ellipse(0.86, 0, 0.14, girth / 2), "nose"),
        Shape("ink", _polygon((0.62, -0.1), (0.78, -0.08), (0.8, 0), (0.62, 0))),
        *(Shape("ink", _disc(x, -0.04, 0.04)) for x in np.arange(-0.6, 0.5, gap)),
        Shape("ink", _ellipse(0.08 - sweep / 2, 0.52 * span, 0.17, 0.07)),
        Shape("trim", wing + _floats((0, 0.05)), "near wing"),
        Shape("trim", _polygon((-0.7, 0), (-0.98, 0.22), (-1.1, 0.22), (-0.92, 0))),
    ]


def _bicycle(rng: Generator) -> list[Shape]:
    radius, tyre, tube, turn = _vary(rng, (0.36, 0.46), (0.06, 0.1), (0.06, 0.09), (0, 1))
    rear, front, crank, seat, head = (-0.56, 0.35), (0.56, 0.35), (-0.06, 0.38), (-0.22, -0.3), (0.36, -0.34)
    tubes = [(rear, crank), (crank, seat), (seat, rear), (seat, head), (crank, head), (head, front)]
    tubes += [(seat, (-0.26, -0.46)), (head, (0.32, -0.52))]
    spoke = _rectangle(-radius, -0.01, radius, 0.01)
    spokes = [spoke @ _rotation(turn + angle) for angle in np.arange(0, np.pi, np.pi / rng.integers(3, 6))]
    wheels = (("rear wheel", rear), ("front wheel", front))
    return [
        *(Shape("trim", pair + _floats(hub)) for _, hub in wheels for pair in spokes),
        *(Shape("ink", _ring(*hub, radius, tyre)) for _, hub in wheels),
        *(Shape("ink", _disc(*hub, 0.07), part) for part, hub in wheels),
        *(Shape("base", _ribbon(tube, a, b)) for a, b in tubes),
        Shape("ink", _polygon((-0.48, -0.54), (-0.08, -0.5), (-0.1, -0.42), (-0.44, -0.42)), "saddle"),
        Shape("ink", _ribbon(0.08, (0.2, -0.5), (0.36, -0.56), (0.5, -0.5), (0.5, -0.38)), "handlebar"),
        Shape("ink", _ring(*crank, 0.13, 0.05)),
    ]


def _boat(rng: Generator) -> list[Shape]:
    mast, keel, deck, billow = _vary(rng, (-0.15, 0.2), (0.4, 0.7), (0.35, 0.5), (0, 0.15))
    boom, luff = deck - 0.12, mast - 0.05
    main = _polygon((luff, -0.9), (luff + billow - 0.05, -0.3), (luff, boom), (-0.8, boom), (-0.45, -0.2))
    jib = _polygon((mast + 0.06, -0.75), (0.5 + billow, -0.15), (0.85, boom), (mast + 0.1, boom))
    hull = _polygon((-0.95, deck), (0, deck + 0.06), (1, deck - 0.06), (keel, 0.82), (-keel - 0.15, 0.82))
    return [
        Shape("ink", _ribbon(0.06, (mast, deck), (mast, -1)), "mast"),
        Shape(rng.choice(("trim", "base")), main, "sail"),
        Shape("trim", jib, "jib"),
        Shape("base", hull, "hull"),
        Shape("ink", _ribbon(0.09, (-0.85, deck + 0.14), (0, deck + 0.2), (0.88, deck + 0.09))),
    ]


def _car(rng: Generator) -> list[Shape]:
    back, front, slope = _vary(rng, (-0.9, -0.4), (0.1, 0.35), (0.12, 0.3))
    roof, radius = _vary(rng, (-0.62, -0.42), (0.19, 0.26))
    post, nose, pane, sill = (back + front) / 2 + 0.1, front + slope, roof + 0.09, -0.1
    body = _polygon(
        (-1, 0.32),
        (-0.98, -0.08),
        (back - 0.1, -0.12),
        (back + 0.1, roof),
        (front, roof),
        (nose, sill),
        (0.92, 0),
        (1, 0.32),
    )
    rear_window = _polygon((back + 0.03, sill), (back + 0.15, pane), (post - 0.04, pane), (post - 0.04, sill))
    front_window = _polygon((post + 0.04, sill), (post + 0.04, pane), (front, pane), (nose - 0.1, sill))
    wheels = (("rear wheel", -0.58), ("front wheel", 0.58))
    return [
        Shape("base", body),
        Shape("shade", _rectangle(-1.02, 0.2, 1.02, 0.34)),
        Shape("trim", rear_window, "rear window"),
        Shape("trim", front_window, "front window"),
        Shape("shade", _rectangle(post - 0.015, sill, post + 0.015, 0.28)),
        Shape("ink", _rectangle(post + 0.06, 0, post + 0.18, 0.04)),
        Shape("trim", _disc(0.9, 0.1, 0.07), "headlight"),
        *(Shape("ink", _disc(x, 0.34, radius), part) for part, x in wheels),
        *(Shape("trim", _disc(x, 0.34, radius / 2)) for _, x in wheels),
    ]


def _clock(rng: Generator) -> list[Shape]:
    rim, tick, hour, minute = _vary(rng, (0.07, 0.16), (0.1, 0.22), (0, 2 * np.pi), (0, 2 * np.pi))
    marks = 2 * np.pi / rng.choice((4, 12, 12)) * np.arange(1, 12)
    hung = [Shape("trim", _rectangle(-0.92, -0.92, 0.92, 0.92))]
    alarm = [Shape("trim", _ellipse(x * 0.5, -0.8, 0.3, 0.2, x * 0.6)) for x in (-1, 1)]
    alarm += [Shape("trim", _ribbon(0.15, (x * 0.4, 0.7), (x * 0.6, 1))) for x in (-1, 1)]

    def hand(angle: float, width: float, start: float, end: float) -> Floats:
        return _rectangle(-width / 2, -end, width / 2, -start) @ _rotation(angle)

    return [
        *(alarm, hung, [])[rng.integers(3)],
        Shape("base", _disc(0, 0, 0.85)),
        Shape(rng.choice(("ink", "trim", "shade")), _ring(0, 0, 0.88, rim)),
        *(Shape("ink", hand(angle, 0.05, 0.7 - tick, 0.7)) for angle in marks),
        Shape("ink", hand(0, 0.1, 0.7 - tick, 0.7), "twelve"),
        Shape("ink", hand(hour, 0.1, -0.1, 0.38), "hour hand"),
        Shape("ink", hand(minute, 0.07, -0.12, 0.6), "minute hand"),
        Shape("trim", _disc(0, 0, 0.06), "hub"),
    ]


def _cup(rng: Generator) -> list[Shape]:
    brim, foot, bottom = _vary(rng, (0.5, 0.68), (0.3, 0.5), (0.3, 0.75))
    grip, band = _vary(rng, (0.24, 0.36), (0.2, 0.6))
    top = -0.45

    def wall(y0: float, y1: float) -> Floats:
        x0, x1 = np.interp((y0, y1), (top, bottom), (brim, foot))
        return _polygon((-x0, y0), (x0, y0), (x1, y1), (-x1, y1))

    band = top + band * (bottom - top)
    saucer = [Shape("shade", _ellipse(0, bottom, 0.95, 0.17)), Shape("trim", _ellipse(0, bottom, 0.6, 0.1))]
    return [
        *(saucer if rng.random() < 0.5 else []),
        Shape("base", _ring((brim + foot) / 2 + 0.12, (top + bottom) / 2 - 0.05, grip, 0.11), "handle"),
        Shape("base", _ellipse(0, bottom, foot, 0.1), "foot"),
        Shape("base", wall(top, bottom)),
        Shape("trim", wall(band, band + 0.25 * (bottom - top))),
        Shape("shade", _ellipse(0, top, brim, 0.15), "rim"),
        Shape("ink", _ellipse(0, top + 0.02, brim * 0.88, 0.1)),
    ]


def _face(rng: Generator) -> list[Shape]:
    width, size, gaze, lip = _vary(rng, (0.62, 0.8), (0.1, 0.15), (-0.05, 0.05), (0.5, 0.66))
    grin, fringe, frown = _vary(rng, (-0.14, 0.26), (-0.6, -0.45), (-0.05, 0.07))
    hair = rng.choice(("ink", "trim"))
    locks = Shape(hair, _ellipse(0, -0.05, width * 1.2, 0.95))
    rims = [Shape("ink", _ring(x * width, -0.12, 0.26, 0.05)) for x in (-0.45, 0.45)]
    shapes = [
        *([locks] if rng.random() < 0.5 else []),
        *(Shape("shade", _ellipse(x * width, 0.05, 0.13, 0.2)) for x in (-1, 1)),
        Shape("base", _ellipse(0, 0.05, width, 0.92)),
        Shape(hair, np.minimum(_ellipse(0, -0.02, width * 1.06, 0.95), _floats((9, fringe)))),
        Shape("shade", _polygon((-0.02, -0.1), (0.05, -0.1), (0.15, 0.3), (-0.12, 0.3)), "nose"),
        Shape("ink", _ribbon(0.09, (-0.3, lip - grin), (-0.1, lip), (0.1, lip), (0.3, lip - grin)), "mouth"),
    ]
    for part, x, tilt in (("left eye", -0.45 * width, -frown), ("right eye", 0.45 * width, frown)):
        shapes += [
            Shape("trim", _ellipse(x, -0.12, size * 1.4, size)),
            Shape("ink", _disc(x + gaze, -0.12, size * 0.6), part),
            Shape("ink", _ribbon(0.06, (x - 0.18, -0.34 + tilt), (x, -0.38), (x + 0.18, -0.34 - tilt))),
        ]
    return shapes + (rims if rng.random() < 0.3 else [])


def _fish(rng: Generator) -> list[Shape]:
    depth, tail, fin, fork = _vary(rng, (0.3, 0.5), (0.3, 0.5), (0.15, 0.32), (0.05, 0.25))
    bands = rng.uniform(-0.35, 0.3, rng.integers(1, 4))
    ridge = -0.7 * depth
    back = _polygon((-0.35, ridge), (-0.15, -depth - fin), (0.35, -depth - fin / 2), (0.45, ridge))
    return [
        Shape("trim", _polygon((-0.5, 0), (-1, -tail), (-1 + fork, 0), (-1, tail)), "tail"),
        Shape("trim", back, "dorsal fin"),
        Shape("trim", _polygon((0.1, depth * 0.8), (-0.15, depth + fin), (-0.2, depth * 0.8))),
        Shape("base", _ellipse(0.18, 0, 0.8, depth)),
        *(Shape("shade", _ellipse(x, 0, 0.05, depth * 0.8)) for x in bands),
        Shape("ink", _ribbon(0.04, (0.48, -depth * 0.6), (0.4, 0), (0.48, depth * 0.6))),
        Shape("trim", _polygon((0.35, 0.05), (0.05, 0.18), (0.12, 0.02))),
        Shape("trim", _disc(0.7, -depth * 0.3, 0.1)),
        Shape("ink", _disc(0.71, -depth * 0.3, 0.055), "eye"),
        Shape("ink", _ribbon(0.04, (0.8, depth * 0.35), (0.93, depth * 0.2))),
    ]


def _flower(rng: Generator) -> list[Shape]:
    heart, reach, plump, turn = _vary(rng, (0.13, 0.2), (0.3, 0.4), (0.9, 1.3), (0, 1))
    bend, high, low = _vary(rng, (-0.15, 0.15), (0.2, 0.5), (0.4, 0.7))
    petals = int(rng.integers(5, 10))
    petal = _ellipse(reach, 0, reach * 0.75, reach * np.pi / petals * plump)
    corolla = [petal @ _rotation(turn + 2 * np.pi / petals * k) - _floats((0, 0.4)) for k in range(petals)]
    return [
        Shape("trim", _ribbon(0.08, (0, -0.4), (bend, 0.3), (0, 1)), "stem"),
        Shape("trim", _ellipse(bend + 0.25, low, 0.28, 0.1, -0.5), "leaf"),
        Shape("trim", _ellipse(bend - 0.22, high, 0.25, 0.1, 0.6)),
        *(Shape(("base", "shade")[k % 2], outline) for k, outline in enumerate(corolla)),
        Shape("ink", _disc(0, -0.4, heart), "heart"),
    ]


def _house(rng: Generator) -> list[Shape]:
    width, eaves, floor = _vary(rng, (0.65, 0.9), (-0.3, -0.05), (0.7, 0.95))
    ridge, rise = _vary(rng, (0, 0.5), (0.45, 0.7))
    door, *windows = rng.permutation((-0.58, 0.0, 0.58)) * width
    wide, top, sill, pane = width + 0.12, eaves - rise, eaves + 0.22, 0.21 * width
    shapes = [
        Shape("shade", _rectangle(0.3, top - 0.18, 0.5, top + 0.45), "chimney"),
        Shape("base", _rectangle(-width, eaves, width, floor)),
        Shape("trim", _polygon((-wide, eaves), (-ridge, top), (ridge, top), (wide, eaves)), "roof"),
        Shape("ink", _rectangle(door - pane, floor - 0.55, door + pane, floor), "door"),
        Shape("trim", _disc(door + pane * 0.6, floor - 0.26, 0.035)),
    ]
    for part, x in zip(("left window", "right window"), sorted(windows), strict=True):
        shapes += [
            Shape("ink", _rectangle(x - pane, sill, x + pane, sill + 0.34), part),
            Shape("trim", _rectangle(x - 0.02, sill, x + 0.02, sill + 0.34)),
            Shape("trim", _rectangle(x - pane, sill + 0.15, x + pane, sill + 0.19)),
        ]
    return shapes


def _keyboard(rng: Generator) -> list[Shape]:
    columns, rows = int(rng.integers(8, 12)), int(rng.integers(3, 5))
    depth, gap, bar = _vary(rng, (0.3, 0.5), (0.02, 0.04), (0.35, 0.55))
    caps, pitch, rise = rng.choice(("trim", "ink")), 1.8 / columns, (2 * depth - 0.12) / (rows + 1)

    def key(x0: float, x1: float, row: int) -> Floats:
        y = 0.06 - depth + row * rise
        return _rectangle(x0 + gap, y + gap, x1 - gap, y + rise - gap)

    lefts = np.arange(columns) * pitch - 0.9
    return [
        Shape("base", _rectangle(-1, -depth, 1, depth)),
        *(Shape(caps, key(x, x + pitch, row)) for x in lefts for row in range(rows)),
        Shape("shade", key(lefts[0], lefts[1], 0), "escape key"),
        Shape("shade", key(lefts[-1], 0.9, rows - 2), "enter key"),
        Shape(caps, key(-0.9, -bar, rows)),
        Shape(caps, key(-bar, bar, rows), "space bar"),
        Shape(caps, key(bar, 0.9, rows)),
    ]


def _tree(rng: Generator) -> list[Shape]:
    girth, lean, turn = _vary(rng, (0.08, 0.16), (-0.1, 0.1), (0, 1))
    trunk = _polygon((-girth, 1), (lean - girth / 2, -0.1), (lean + girth / 2, -0.1), (girth, 1))

    def tier(top: float, foot: float, half: float) -> Floats:
        return _polygon((lean, top), (lean + half, foot), (lean - half, foot))

    if rng.random() < 0.4:
        return [
            Shape("trim", trunk, "trunk"),
            Shape("base", tier(-0.35, 0.6, 0.75)),
            Shape("shade", tier(-0.7, 0.1, 0.58), "crown"),
            Shape("base", tier(-1, -0.35, 0.4)),
        ]
    sizes = rng.uniform(0.2, 0.36, 7)
    leaves = [_disc(0.42, 0, size) @ _rotation(turn + 0.9 * k) for k, size in enumerate(sizes)]
    return [
        *(Shape("trim", _ribbon(0.07, (0, 0.4), (lean + x, -0.2))) for x in (-0.4, 0.4)),
        *(Shape(("base", "shade")[k % 2], leaf + _floats((lean, -0.32))) for k, leaf in enumerate(leaves)),
        Shape("trim", trunk, "trunk"),
        Shape("base", _disc(lean, -0.35, 0.42), "crown"),
    ]


_SKETCHES = (_airplane, _bicycle, _boat, _car, _clock, _cup, _face, _fish, _flower, _house, _keyboard, _tree)
CLASSES: tuple[str, ...] = tuple(sketch.__name__.removeprefix("_") for sketch in _SKETCHES)

# What lies about: no objects, but much like pieces of them.
_SCRAPS: tuple[list[Shape], ...] = (
    [Shape("base", _disc(0, 0, 1))],
    [Shape("base", _ring(0, 0, 1, 0.15))],
    [Shape("ink", _disc(0, 0, 0.8)), Shape("trim", _disc(0, 0, 0.4))],
    [Shape("base", _polygon((-1, 0.7), (1, 0.7), (0, -1)))],
    [Shape("base", _rectangle(-1, -0.7, 1, 0.7)), Shape("ink", _rectangle(-0.8, -0.5, 0.8, 0.5))],
    [Shape("base", _ribbon(0.15, (-2, 0), (-0.5, 0.7), (0.5, -0.7), (2, 0)))],
    [Shape("trim", _rectangle(x, -0.7, x + 0.25, 0.7)) for x in (-0.8, -0.2, 0.4)],
    [Shape("ink", _rectangle(x, y, x + 0.4, y + 0.4)) for x in (-0.8, -0.2, 0.4) for y in (-0.8, -0.2, 0.4)],
)


# --------------------------------------------------------------------------------------------------
# Placing and painting.


def _placed(shapes: list[Shape], *, rng: Generator, side: int) -> list[Shape]:
    """The object in pixels: mirrored, stretched, turned by up to 25 degrees, scaled, put inside the image."""
    mirrored = rng.random() < 0.5
    wide, shear, turn, extent = _vary(rng, (0.87, 1.15), (-0.15, 0.15), (-0.44, 0.44), (0.7, 0.95))
    pose = _floats([(-wide if mirrored else wide, 0.0), (shear, 1 / wide)]) @ _rotation(turn)
    points = np.concatenate([shape.outline for shape in shapes]) @ pose
    low, high = points.min(axis=0), points.max(axis=0)
    scale = side * extent / np.max(high - low)
    room = 0.97 * side - (high - low) * scale
    shift = 0.015 * side + room * rng.random(2, np.float32) - low * scale
    return [
        Shape(paint, outline @ pose * scale + shift, _mirror_name(part) if mirrored else part)
        for paint, outline, part in shapes
    ]


def _mirror_name(part: str) -> str:
    other = {"left": "right", "right": "left"}
    return " ".join(other.get(word, word) for word in part.split())


def _litter(count: int, *, rng: Generator, side: int) -> list[tuple[list[Shape], Palette]]:
    """Scraps of any shape at any angle anywhere in the picture, each with its own palette."""
    litter = []
    for _ in range(count):
        size, squeeze, turn, x, y = _vary(rng, (0.03, 0.13), (0.5, 1), (0, 2 * np.pi), (0, 1), (0, 1))
        pose = side * size * _floats([[1.0], [squeeze]]) * _rotation(turn)
        place = side * _floats((x, y))
        scrap = _SCRAPS[rng.integers(len(_SCRAPS))]
        shapes = [Shape(paint, outline @ pose + place) for paint, outline, _ in scrap]
        litter.append((shapes, _palette(rng)[0]))
    return litter


def _colours(lights: ArrayLike, *, rng: Generator) -> Floats:
    """For each lightness (n,) in 0..1 a colour (n, 3) of any hue, strong or faint."""
    light = _floats(lights)[:, None]
    hue, chroma = rng.random((2, *light.shape), np.float32)
    phases = 2 * np.pi * (hue + _floats((0, 1 / 3, 2 / 3)))
    return _floats(np.clip(light + (0.02 + 0.25 * chroma) * np.cos(phases), 0, 1))


def _palette(rng: Generator) -> tuple[Palette, float]:
    """The four paints of an object, and a lightness for what is behind it.

    Base, trim and ink are a dark, a medium and a light colour, so that they can be told apart; ink is mostly
    the dark one, as tyres and pupils are, else the light one. The backdrop is well above or below the base.
    """
    dark, medium, light = _vary(rng, (0.04, 0.24), (0.4, 0.6), (0.78, 0.97))
    ink, *others = (dark, medium, light) if rng.random() < 0.75 else (light, medium, dark)
    rng.shuffle(others)
    base, trim, ink = (255 * _colours((*others, ink), rng=rng)).astype(int).tolist()
    shade = [3 * value // 4 if others[0] > 0.3 else value + 40 for value in base]
    behind = float(np.clip((others[0] + rng.uniform(0.25, 0.75)) % 1, 0.12, 0.9))
    return {"base": base, "shade": shade, "trim": trim, "ink": ink}, behind


def _layer(groups: list[tuple[list[Shape], Palette]], side: int) -> tuple[Floats, Floats]:
    """Paint (3, side, side) and coverage (side, side), 0..1, drawn at twice the size for smooth edges.

    Paint is black where nothing is: what is seen is `paint + (1 - coverage) * behind`.
    """
    canvas = Image.new("RGBX", (2 * side, 2 * side))  # X: the coverage; RGBA is four times as slow to reduce
    pen = ImageDraw.Draw(canvas)
    for shapes, palette in groups:
        for paint, outline, _ in shapes:
            pen.polygon((2 * outline).ravel().tolist(), fill=(*palette[paint], 255))
    planes = _planes(canvas.reduce(2))
    return planes[:3], planes[3]


# --------------------------------------------------------------------------------------------------
# Light, texture and camera. A field is (side, side), a picture three planes (3, side, side) in 0..1: with the
# channels in front, NumPy multiplies the one with the other several times as fast.


def _planes(picture: Image.Image) -> Floats:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)) * np.float32(1 / 255)


def _picture(planes: Floats) -> Image.Image:
    levels = np.clip(planes * 255 + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def _ramp(rng: Generator, side: int) -> Floats:
    """A straight slope in any direction, from about -1 to 1 across the picture."""
    angle, line = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, side, dtype=np.float32)
    return _floats(np.cos(angle)) * line + _floats(np.sin(angle)) * line[:, None]


def _clouds(rng: Generator, side: int) -> Floats:
    """Noise at four frequencies, each with its own strength, about -1 to 1."""
    clouds = np.zeros((1, 1), np.float32)
    for cells in (3, 8, 20, 50):
        noise = rng.random((cells, cells), np.float32) - 0.5
        clouds = _enlarged(clouds, cells) + rng.uniform(0.2, 1.2) * noise
    return _enlarged(clouds, side)


def _enlarged(field: Floats, side: int) -> Floats:
    return np.asarray(Image.fromarray(field).resize((side, side), Image.Resampling.BILINEAR))


def _surface(light: float, *, rng: Generator, side: int) -> Floats:
    """A wall, a meadow, a cloth: a gradient of two colours with clouds, and sometimes stripes or checks."""
    first, second = _colours(light + rng.uniform(-0.12, 0.12, 2), rng=rng)[..., None, None]
    texture = rng.uniform(0.03, 0.14) * _clouds(rng, side)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        pitch, phase, edge, depth = _vary(rng, (6, 30), (0, 6), (1, 5), (0.03, 0.12))
        texture += depth * np.clip(edge * np.sin(pitch * _ramp(rng, side) + phase), -1, 1)
    return _floats(first + (second - first) * (0.5 + 0.5 * _ramp(rng, side)) + texture)


def _backdrop(light: float, *, rng: Generator, side: int) -> Floats:
    """One surface, or two that meet in a line, and litter: drawn small and enlarged, being out of focus."""
    small = side // int(rng.integers(2, 4))
    planes = _surface(light, rng=rng, side=small)
    if rng.random() < 0.5:
        other = _surface(light + rng.uniform(-0.2, 0.2), rng=rng, side=small)
        planes = np.where(_ramp(rng, small) > rng.uniform(-0.5, 0.5), other, planes)
    paint, cover = _layer(_litter(int(rng.integers(2, 7)), rng=rng, side=small), small)
    return np.stack([_enlarged(plane, side) for plane in paint + (1 - cover) * planes])


def _lit(paint: Floats, cover: Floats, backdrop: Floats, *, rng: Generator) -> Floats:
    """The object before its backdrop: light from one side rounds it, its soft shadow falls to the other."""
    side = len(cover)
    relief, texture, depth, reach = _vary(rng, (0.02, 0.06), (0, 0.12), (0.1, 0.5), (0.01, 0.06))
    angle = rng.uniform(0, 2 * np.pi)
    right, down = float(np.cos(angle)), float(np.sin(angle))
    body = Image.fromarray((255 * cover[::2, ::2]).astype(np.uint8))  # soft, so half the size will do
    body = body.filter(ImageFilter.GaussianBlur(0.015 * side)).resize((side, side), Image.Resampling.BICUBIC)
    slope_down, slope_right = np.gradient(_floats(np.asarray(body)) / 255, 1 / side)
    mottle = _enlarged(2 * rng.random((24, 24), np.float32) - 1, side)
    shading = (1 + relief * (right * slope_right + down * slope_down)) * (1 + texture * mottle)
    x, y = round(reach * side * right), round(reach * side * down)
    shadow = depth / 255 * _floats(np.asarray(body.crop((x, y, x + side, y + side))))
    return paint * shading + backdrop * ((1 - cover) * (1 - shadow))


def _photographed(planes: Floats, *, rng: Generator) -> NDArray[np.uint8]:
    """Uneven light, sometimes the edge of a shadow, exposure, a colour cast, grain and a soft lens."""
    side = planes.shape[-1]
    light = 1 + rng.uniform(0, 0.35) * _ramp(rng, side)
    if rng.random() < 0.3:
        light *= 1 - rng.uniform(0.2, 0.5) * np.clip(rng.uniform(3, 20) * _ramp(rng, side), 0, 1)
    contrast, exposure, grain, blur = _vary(rng, (0.7, 1.1), (-0.1, 0.1), (0.03, 0.15), (0, 0.008))
    cast = _floats(rng.uniform(0.9, 1.1, (3, 1, 1)))
    noise = grain * (rng.random((side, side), np.float32) - 0.5)
    seen = contrast * cast * (planes * light - 0.5) + (0.5 + exposure + noise)
    return np.array(_picture(seen).filter(ImageFilter.BoxBlur(blur * side)))


# --------------------------------------------------------------------------------------------------
# Scenes.


def draw(label: int, *, rng: Generator, side: int = 128) -> Scene:
    """Draw a new scene with an object of class `CLASSES[label]`.

    Everything else is random: the object's proportions and details, its paints, pose, size and place, the
    backdrop, the litter behind and before it (which never hides more than 30 % of it), light and camera.

    Raises
    ------
    ValueError
        if there is no such class, or fewer than 32 pixels on a side
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"draw: got label {label}, needs 0 to {len(CLASSES) - 1}")
    if side < 32:
        raise ValueError(f"draw: got side {side}, needs at least 32 pixels to show an object")
    shapes = _placed(_SKETCHES[label](rng), rng=rng, side=side)
    palette, light = _palette(rng)
    paint, cover = _layer([(shapes, palette)], side)
    planes = _lit(paint, cover, _backdrop(light, rng=rng, side=side), rng=rng)
    mask = cover > 0.5

    litter, hidden = _layer(_litter(int(rng.integers(0, 4)), rng=rng, side=side), side)
    visible = mask & (hidden < 0.5)
    if visible.sum() >= 0.7 * mask.sum():
        planes, mask = litter + (1 - hidden) * planes, visible

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Scene(
        image=_photographed(planes, rng=rng),
        label=label,
        box=(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1),
        mask=mask,
        parts={part: _middle(outline) for _, outline, part in shapes if part},
    )


def _middle(outline: Floats) -> tuple[float, float]:
    column, row = (outline.min(axis=0) + outline.max(axis=0)) / 2
    return float(row), float(column)


def scene(seed: int, index: int, *, side: int = 128) -> Scene:
    """Scene number `index` of the endless data set `seed`.

    It depends on the arguments alone (and on the version of Pillow), so scenes can be drawn in any order on
    any thread, and another side shows the same scene in another size. Classes take turns: the label is
    `index % len(CLASSES)`.
    """
    return draw(index % len(CLASSES), rng=np.random.default_rng([seed, index]), side=side)
