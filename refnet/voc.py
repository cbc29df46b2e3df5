"""Data in PASCAL VOC's layout: images that show objects of several classes at once (Table 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from refnet import images
from refnet.datasets import Dataset

LAYOUT = "it needs JPEGImages/ID.jpg, Annotations/ID.xml and lists of IDs such as ImageSets/Main/train.txt"


class Part(NamedTuple):
    """Some of the images, and what is in them.

    Attributes
    ----------
    images : their labels are all 0 and say nothing
    presence : (N, C) int8, for each of ``images.classes`` 1 where the image shows it, -1 where not, and 0 where all of
        its objects are marked as difficult: such an image counts neither for nor against the class
    """

    images: Dataset
    presence: np.ndarray


def load(root: str | Path, names: Sequence[str] = ("train", "val"), *, side: int) -> list[Part]:
    """The parts of those names, as ImageSets/Main/NAME.txt lists them; classes are all that any of them has objects of.

    Parameters
    ----------
    root : the folder with JPEGImages, Annotations and ImageSets
    side : pixels; the shorter side is resized to it and the centre cut (section 3). An object that is cut off still
        counts.

    Raises
    ------
    ValueError
        The folder is not laid out like that, a list is empty, or an annotation is missing or damaged.
    """
    root = Path(root)
    ids = [_listed(root, name) for name in names]
    objects = [[_objects(root / "Annotations" / f"{each}.xml") for each in part] for part in ids]
    classes = tuple(sorted({name for part in objects for each in part for name, _ in each}))
    if not classes:
        raise ValueError(f"{root}: no annotation has an object; {LAYOUT}")
    return [
        Part(_dataset(root, part, classes, side), np.array([_presence(each, classes) for each in seen], np.int8))
        for part, seen in zip(ids, objects, strict=True)
    ]


def _listed(root: Path, name: str) -> list[str]:
    """The IDs of a part, one a line."""
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    try:
        ids = path.read_text().split()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {LAYOUT}") from None
    if strange := [each for each in ids if Path(each).name != each]:
        raise ValueError(f"{path}: {strange[0]!r} is no ID of an image")
    if not ids:
        raise ValueError(f"{path} lists no images")
    return ids


def _dataset(root: Path, ids: Sequence[str], classes: tuple[str, ...], side: int) -> Dataset:
    names = [f"JPEGImages/{each}.jpg" for each in ids]
    return Dataset(
        classes=classes,
        labels=np.zeros(len(ids), np.int64),
        names=names,
        side=side,
        read=lambda i: images.square(images.decode(root / names[i], side=side), side),
    )


def _objects(path: Path) -> list[tuple[str, bool]]:
    """Class of every object of an annotation, and whether it is marked as difficult; an object's parts are none."""
    try:
        tree = _parsed(path.read_bytes())
        return [
            (each.findtext("name", "").strip(), each.findtext("difficult", "0").strip() != "0")
            for each in tree.findall("object")
        ]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {LAYOUT}") from None
    except (ValueError, LookupError, expat.ExpatError) as error:
        raise ValueError(f"{path} is no annotation: {error}") from None


def _parsed(data: bytes) -> ElementTree.Element:
    """XML without a document type, which alone could declare entities that grow without end or name other files."""

    def refuse(*declared: object) -> None:
        raise ValueError("it declares a document type, which VOC's annotations do not")

    scan = expat.ParserCreate()
    scan.StartDoctypeDeclHandler = refuse
    scan.Parse(data, True)
    return ElementTree.fromstring(data)


def _presence(objects: Sequence[tuple[str, bool]], classes: Sequence[str]) -> list[int]:
    """1, 0 or -1 for every class, as `Part` has it."""
    clear, difficult = ({name for name, hard in objects if hard == wanted} for wanted in (False, True))
    return [1 if name in clear else 0 if name in difficult else -1 for name in classes]
