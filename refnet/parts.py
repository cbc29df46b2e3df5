"""Images of the same kind of thing with the places of its parts: dog faces marked by hand, and drawn faces."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refnet import images, scenes
from refnet.images import Pixels

# parts.json's names; the paper names eyes as the dog's own, so that its right one is on the picture's left.
DOG_PARTS = {"right eye": "image_left_eye", "left eye": "image_right_eye", "nose": "nose"}
FACE_PARTS = ("right eye", "left eye", "nose", "mouth")  # scenes name eyes as the viewer sees them


@dataclass(frozen=True)
class Marked:
    """N images of one size, and where their parts are.

    Attributes
    ----------
    names : one per image
    pixels : (N, S, S, 3) uint8
    places : part -> (N, 2) float, row and column of its middle in pixels
    unit : (N,) distance between the eyes in pixels, by which the size of a face is told
    """

    names: tuple[str, ...]
    pixels: Pixels
    places: Mapping[str, np.ndarray]
    unit: np.ndarray


def dogs(folder: str | Path, *, side: int) -> Marked:
    """The images of a folder whose ``parts.json`` has a list of objects with file, eye_dist and [x, y] of each part.

    Raises
    ------
    ValueError
        If ``parts.json`` is missing or lacks something, an image cannot be read, or is not square.
    """
    listed = Path(folder, "parts.json")
    try:
        entries = json.loads(listed.read_text())
    except OSError as error:
        raise ValueError(
            f"{listed}: {error.strerror}; it needs a list of images and the places of their parts"
        ) from None
    except ValueError as error:
        raise ValueError(f"{listed}: it is no valid JSON ({error})") from None
    pixels, places, unit, names = [], [], [], []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            name, distance = str(entry["file"]), float(entry["eye_dist"])
            marks = np.array([entry[key] for key in DOG_PARTS.values()], float).reshape(len(DOG_PARTS), 2)
        except (KeyError, TypeError, ValueError) as error:
            needs = f"file, eye_dist and [x, y] of {', '.join(DOG_PARTS.values())}"
            raise ValueError(f"{listed}: entry {number} does not fit ({error!r}); it needs {needs}") from None
        image = images.decode(Path(folder, name))
        if image.width != image.height:
            raise ValueError(f"{name} is {image.width} x {image.height} pixels; marks are for square images")
        pixels.append(images.square(image, side))
        places.append(marks[:, ::-1] * side / image.width)
        unit.append(distance * side / image.width)
        names.append(name)
    if not names:
        raise ValueError(f"{listed}: it lists no images")
    where = dict(zip(DOG_PARTS, np.stack(places, axis=1), strict=True))
    return Marked(tuple(names), np.stack(pixels), where, np.array(unit))


def faces(seed: int, n: int, *, side: int) -> Marked:
    """The first ``n`` drawn faces of a seed (`refnet.scenes`)."""
    step = len(scenes.CLASSES)
    numbers = [scenes.CLASSES.index("face") + step * i for i in range(n)]
    drawn = [scenes.scene(seed, number, side=side) for number in numbers]
    mirrored = {"right eye": "left eye", "left eye": "right eye"}
    where = {part: np.array([each.parts[mirrored.get(part, part)] for each in drawn]) for part in FACE_PARTS}
    unit = np.linalg.norm(where["right eye"] - where["left eye"], axis=1)
    names = tuple(f"scene {seed}:{number:06d}" for number in numbers)
    return Marked(names, np.stack([each.image for each in drawn]), where, unit)
