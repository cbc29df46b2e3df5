"""Labelled images, a folder of classes or the drawn scenes, read when asked for."""

import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refnet import images, scenes, shards
from refnet.images import Floats, Pixels

Labels = npt.NDArray[np.int64]

CACHE_BYTES = 1 << 30
VAL_SHARE = 0.2  # of each class, where a folder has no val/ of its own
TRAIN_SCENES = 5000
VAL_SCENES = 1000
EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
LAYOUT = "a data set is a folder of class folders with images in them, or holds two such, train/ and val/"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one size.

    Attributes
    ----------
    classes : names of the classes
    labels : (N,) int64, places in ``classes``
    names : one per image: its path below the folder, or "scene 17:000123"
    side : images are (side, side, 3)
    read : the image at an index; raises ValueError or OSError for a bad one
    skipped : name -> reason, of files that are no image and of images that could not be read so far; shared
        with subsets. A bad image keeps its index: an epoch's order doesn't depend on what was read before.
    mean : reads the per-pixel mean (side, side, 3) float32 of all images, where it is stored
    """

    classes: tuple[str, ...]
    labels: Labels
    names: Sequence[str]
    side: int
    read: Callable[[int], Pixels]
    skipped: dict[str, str] = field(default_factory=dict)
    mean: Callable[[], Floats] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> Pixels:
        """Image ``i``, (side, side, 3) uint8; not to be written to, it may be kept for the next time.

        Raises
        ------
        ValueError
            The image is bad. It is then in ``skipped`` and not tried again.
        """
        name = self.names[i]
        if name not in self.skipped:
            try:
                return self.read(range(len(self))[i])
            except (OSError, ValueError) as error:
                self.skipped[name] = str(error)
        raise ValueError(f"{name}: {self.skipped[name]}")

    def digest(self) -> str:
        """A short fingerprint of the classes, names and labels (not of the pixels)."""
        text = json.dumps([self.classes, list(self.names), self.labels.tolist()])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """The images at ``indices``, in their order."""
        chosen = np.array([range(len(self))[i] for i in indices], np.int64)
        names = [self.names[i] for i in chosen]
        read = functools.partial(_chosen, self.read, chosen)
        return replace(self, labels=self.labels[chosen], names=names, read=read, mean=None)

    def first(self, n: int) -> "Dataset":
        """The first ``n`` images, evenly over the classes."""
        by_class = np.argsort(self.labels, kind="stable")
        counts = np.bincount(self.labels)
        rank = np.empty_like(self.labels)  # of each image within its class
        rank[by_class] = np.arange(len(self)) - np.repeat(counts.cumsum() - counts, counts)
        return self.subset(np.sort(np.argsort(rank, kind="stable")[:n]))


def load(
    path: str | Path | None, *, side: int, seed: int = 0, cache_bytes: int = CACHE_BYTES
) -> tuple[Dataset, Dataset]:
    """Training and validation data.

    Parameters
    ----------
    path : folder or None
        With ``train/<class>/*`` and ``val/<class>/*``; or with ``<class>/*``, of which `VAL_SHARE` of each
        class, at least one image, is split off as validation data; or with what tools/prepare.py packed. None: drawn
        scenes.
    side : pixels; the shorter side is resized to it and the centre cut (paper sec. 3)
    seed : of the split, or of the scenes
    cache_bytes : data no larger than this are decoded once and kept in memory

    Raises
    ------
    ValueError
        The folder is missing or not laid out like that; all empty or unknown classes are named at once.
    """
    if path is None:
        train, val = _scenes(2 * seed, TRAIN_SCENES, side), _scenes(2 * seed + 1, VAL_SCENES, side)
    elif shards.holds(Path(path), "train"):
        train = Dataset(*shards.load(Path(path), "train", side=side))
        if shards.holds(Path(path), "val"):
            val = Dataset(*shards.load(Path(path), "val", side=side))
        else:
            train, val = _split(train, seed)
    elif Path(path, "train").is_dir() and Path(path, "val").is_dir():
        train = _class_folders(Path(path), "train", side)
        val = _class_folders(Path(path), "val", side, train.classes)
    else:
        train, val = _split(_class_folders(Path(path), "", side), seed)
    return _remember(train, cache_bytes), _remember(val, cache_bytes)


def load_whole(
    path: str | Path | None,
    *,
    side: int,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """Data to evaluate or look at: a folder's ``val/``, else all its classes; None: the val scenes.

    ``classes`` are the names that labels count, as weights have them; by default those of the folder's
    ``train/``, else its own. A class folder that they lack is an error. All else is as in `load`.
    """
    if path is None:
        return _remember(_scenes(2 * seed + 1, VAL_SCENES, side, classes), cache_bytes)
    root = Path(path)
    if packed := next((part for part in ("val", "train") if shards.holds(root, part)), None):
        data = Dataset(*shards.load(root, packed, side=side))
        known = tuple(classes or data.classes)
        labels = _places(str(root), data.classes, known)[data.labels]
        return _remember(replace(data, classes=known, labels=labels), cache_bytes)
    part = "val" if (root / "val").is_dir() and _visible(root / "val", os.DirEntry.is_dir) else ""
    if part and classes is None and (root / "train").is_dir():
        classes = _visible(root / "train", os.DirEntry.is_dir)
    return _remember(_class_folders(root, part, side, classes), cache_bytes)


def everything(
    path: str | Path | None, *, side: int, without: Sequence[str] = (), cache_bytes: int = CACHE_BYTES
) -> Dataset:
    """All images of a folder of classes, its train/ and val/ together if it has them; None: the val scenes of seed 0.

    ``without`` names classes to leave out. All else is as in `load`.
    """
    if path is None:
        whole = _scenes(1, VAL_SCENES, side)
    elif (Path(path) / "train").is_dir() and (Path(path) / "val").is_dir():
        parts = [_class_folders(Path(path), part, side) for part in ("train", "val")]
        if parts[0].classes != parts[1].classes:
            raise ValueError(f"{path}: train/ has the classes {parts[0].classes}, val/ {parts[1].classes}")
        first, second = parts
        whole = replace(
            first,
            labels=np.concatenate([first.labels, second.labels]),
            names=[*first.names, *second.names],
            read=functools.partial(_either, first.read, second.read, len(first)),
            skipped={**first.skipped, **second.skipped},
        )
    else:
        whole = _class_folders(Path(path), "", side)
    if unknown := [name for name in without if name not in whole.classes]:
        raise ValueError(f"{path}: no class {', '.join(unknown)} to leave out; there are {', '.join(whole.classes)}")
    left = [name for name in whole.classes if name not in without]
    label = np.array([left.index(name) if name in left else -1 for name in whole.classes])[whole.labels]
    some = whole.subset(np.flatnonzero(label >= 0))
    return _remember(replace(some, classes=tuple(left), labels=label[label >= 0]), cache_bytes)


def _scenes(seed: int, n: int, side: int, classes: Sequence[str] | None = None) -> Dataset:
    """The first n scenes of a seed. Training has even seeds and validation odd ones: they never meet."""
    known = tuple(classes or scenes.CLASSES)
    return Dataset(
        classes=known,
        labels=np.resize(_places("scenes", scenes.CLASSES, known), n),
        names=[f"scene {seed}:{i:06d}" for i in range(n)],
        side=side,
        read=functools.partial(_drawn, seed, side),
    )


def drawing(name: str, *, side: int) -> scenes.Scene | None:
    """The truth about the image of that name, if it is a drawn scene; names of files end otherwise."""
    found = re.fullmatch(r"scene (\d+):(\d{6,})", name)
    return scenes.scene(int(found[1]), int(found[2]), side=side) if found else None


def _class_folders(root: Path, part: str, side: int, classes: Sequence[str] | None = None) -> Dataset:
    """The images in the folders ``root/part/<class>/``, by class and by name."""
    folder = root / part
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'is not a folder' if folder.exists() else 'does not exist'}; {LAYOUT}")
    found = _visible(folder, os.DirEntry.is_dir)
    if not found:
        raise ValueError(f"{folder}: has no class folders; {LAYOUT}")
    known = tuple(classes or found)
    places = _places(str(folder), found, known)
    files = [
        [Path(part, name, file).as_posix() for file in _visible(folder / name, lambda entry: not entry.is_dir())]
        for name in found
    ]
    deeper = [
        Path(part, name, each).as_posix() for name in found for each in _visible(folder / name, os.DirEntry.is_dir)
    ]
    good = [[file for file in inside if file.lower().endswith(EXTENSIONS)] for inside in files]
    if empty := [name for name, inside in zip(found, good, strict=True) if not inside]:
        raise ValueError(f"{folder}: no images in class folder {', '.join(empty)}; {LAYOUT}")
    names = list(itertools.chain(*good))
    others = sorted(set(itertools.chain(*files)).difference(names))
    return Dataset(
        classes=known,
        labels=np.repeat(places, [len(inside) for inside in good]),
        names=names,
        side=side,
        read=functools.partial(_decoded, root, names, side),
        skipped={
            **dict.fromkeys(others, f"its extension is none of {' '.join(EXTENSIONS)}"),
            **dict.fromkeys(deeper, "a folder inside a class folder is not looked into"),
        },
    )


# What data sets read with is no closure, so that other processes can be sent it.


def _decoded(root: Path, names: Sequence[str], side: int, i: int) -> Pixels:
    return images.square(images.decode(root / names[i], side=side), side)


def _drawn(seed: int, side: int, i: int) -> Pixels:
    return scenes.scene(seed, i, side=side).image


def _chosen(read: Callable[[int], Pixels], places: Labels, i: int) -> Pixels:
    return read(int(places[i]))


def _either(first: Callable[[int], Pixels], second: Callable[[int], Pixels], n: int, i: int) -> Pixels:
    return first(i) if i < n else second(i - n)


def _visible(folder: Path, kind: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Names in a folder, of entries of one kind and not hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if kind(entry) and not entry.name.startswith("."))


def _places(where: str, found: Sequence[str], known: Sequence[str]) -> Labels:
    """The labels of the classes that were found: their places among those known."""
    label = {name: i for i, name in enumerate(known)}
    if unknown := [name for name in found if name not in label]:
        raise ValueError(f"{where}: unknown class {', '.join(unknown)}; known are {', '.join(known)}")
    return np.array([label[name] for name in found], np.int64)


def _split(whole: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Training and validation data of a folder that has no val/: `VAL_SHARE` of each class, at least one."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(whole), bool)
    for label, name in enumerate(whole.classes):
        members = rng.permutation(np.flatnonzero(whole.labels == label))
        if len(members) < 2:
            raise ValueError(f"class {name} has one image; to split it into train and val it takes two")
        held_out[members[: max(1, round(VAL_SHARE * len(members)))]] = True
    return whole.subset(np.flatnonzero(~held_out)), whole.subset(np.flatnonzero(held_out))


def _remember(dataset: Dataset, cache_bytes: int) -> Dataset:
    """The data set, keeping every image it has read if all of them fit."""
    fits = len(dataset) * dataset.side**2 * 3 <= cache_bytes
    return replace(dataset, read=functools.cache(dataset.read)) if fits else dataset
