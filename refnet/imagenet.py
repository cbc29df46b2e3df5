"""ImageNet 2012 as it is distributed: a tar file of tar files to train on, a flat tar file and labels to validate."""

import functools
import io
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refnet import images
from refnet.datasets import Dataset

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


class Member(NamedTuple):
    """A file inside a tar file: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


class _Window(io.RawIOBase):
    """A part of a file as a file: a tar file inside another."""

    def __init__(self, path: Path, member: Member) -> None:
        self.file, self.member, self.at = open(path, "rb"), member, 0  # noqa: SIM115  closed with it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.member.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        left = max(self.member.size - self.at, 0)
        data = os.pread(self.file.fileno(), left if size < 0 else min(size, left), self.member.offset + self.at)
        self.at += len(data)
        return data

    def close(self) -> None:
        self.file.close()
        super().close()


def members(path: Path, inside: Member | None = None) -> list[Member]:
    """The files in a tar file, or in one that lies inside it, without reading their contents.

    Raises ValueError for a file that is no whole tar file.
    """
    inside = inside or Member(path.name, 0, path.stat().st_size)
    try:
        with _Window(path, inside) as window, tarfile.open(fileobj=window, mode="r:") as tar:
            found = [Member(each.name, inside.offset + each.offset_data, each.size) for each in tar if each.isfile()]
    except tarfile.TarError as error:
        raise ValueError(f"{path}: {inside.name} is no whole tar file ({error})") from None
    if not found or found[-1].offset + found[-1].size > inside.offset + inside.size:
        raise ValueError(f"{path}: {inside.name} is empty or cut off; get it again")
    return found


def load(folder: Path, *, side: int, labels: Path | None, synsets: Path | None) -> tuple[Dataset, Dataset]:
    """Training and validation data of a folder that holds both tar files.

    Parameters
    ----------
    side : the shorter side is resized to it and the centre cut (paper sec. 3)
    labels : a line for each validation image: its file name and its synset (n01440764), or, in the images' order, its
        number from 1 among ``synsets``, as in the development kit's ILSVRC2012_validation_ground_truth.txt
    synsets : a line for each class in the order of those numbers; the first word counts

    Raises
    ------
    ValueError
        If a file is missing, is none, or the labels do not fit the images.
    """
    for name in (TRAIN, VAL):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: there is no {name}; ImageNet comes as {TRAIN} and {VAL}")
    if labels is None:
        raise ValueError(f"{VAL} has no labels of its own: give them with --val-labels")
    inner = sorted(members(folder / TRAIN))
    classes = tuple(Path(each.name).stem for each in inner)
    train = [(i, each) for i, tar in enumerate(inner) for each in members(folder / TRAIN, tar)]
    val = sorted(members(folder / VAL), key=lambda each: Path(each.name).name)
    places = _labels([Path(each.name).name for each in val], classes, labels, synsets)
    names = [f"{classes[i]}/{each.name}" for i, each in train]
    return (
        _dataset(folder / TRAIN, classes, names, [i for i, _ in train], [each for _, each in train], side),
        _dataset(folder / VAL, classes, [each.name for each in val], places, val, side),
    )


def _labels(files: Sequence[str], classes: Sequence[str], labels: Path, synsets: Path | None) -> list[int]:
    lines = [line.split() for line in labels.read_text().splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        if synsets is None:
            raise ValueError(f"{labels} has numbers: say with --synsets FILE which synset each of them is")
        order = [line.split()[0] for line in synsets.read_text().splitlines() if line.strip()]
        numbers = [line[0] for line in lines]
        if len(numbers) != len(files) or not all(
            re.fullmatch("[0-9]+", n) and 0 < int(n) <= len(order) for n in numbers
        ):
            raise ValueError(
                f"{labels} has {len(numbers)} lines for {len(files)} images; each needs a number from 1 to {len(order)}"
            )
        wanted = [order[int(number) - 1] for number in numbers]
    else:
        known = {Path(line[0]).stem: line[-1] for line in lines}
        if missing := [name for name in files if Path(name).stem not in known]:
            raise ValueError(f"{labels} lacks {len(missing)} of {len(files)} images, {missing[0]} for one")
        wanted = [known[Path(name).stem] for name in files]
    place = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(wanted) - place.keys()):
        raise ValueError(f"{labels} names {', '.join(unknown[:5])}, which {TRAIN} does not have")
    return [place[name] for name in wanted]


def _dataset(
    path: Path, classes: tuple[str, ...], names: list[str], labels: Sequence[int], where: Sequence[Member], side: int
) -> Dataset:
    places = np.array([(each.offset, each.size) for each in where], np.int64).reshape(-1, 2)
    return Dataset(classes, np.array(labels, np.int64), names, side, functools.partial(_read, path, places, side))


def _read(path: Path, places: npt.NDArray[np.int64], side: int, i: int) -> images.Pixels:
    offset, size = places[i].tolist()
    with open(path, "rb", buffering=0) as file:
        return images.square(images.decode(os.pread(file.fileno(), size, offset), side=side), side)
