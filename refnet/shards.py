"""Packed data sets: images of one size in a few large HDF5 files, read without opening a file for each.

A folder holds ``train-00000.h5``, ``train-00001.h5``, ... and ``val-00000.h5``, ...; weights/FORMAT.md describes them.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from refnet import hdf5, images, parallel, processes
from refnet.hdf5 import Content, Stored
from refnet.images import Floats, Pixels

FORMAT, VERSION = "refnet-shard", 1
PIECE = 16  # images that a process packs at a time


class Images(Protocol):
    """What can be packed: a `refnet.datasets.Dataset`."""

    classes: tuple[str, ...]
    labels: np.ndarray
    names: Sequence[str]
    side: int
    read: Callable[[int], Pixels]
    skipped: dict[str, str]

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """A fingerprint of classes, names and labels."""
        ...


class Packed(NamedTuple):
    """What `load` finds; the fields of a `refnet.datasets.Dataset`."""

    classes: tuple[str, ...]
    labels: np.ndarray
    names: list[str]
    side: int
    read: Callable[[int], Pixels]
    skipped: dict[str, str]
    mean: Callable[[], Floats] | None


# The root's attributes: what each must be, a type or the very value.
_ROOT: dict[str, Any] = {
    "format": FORMAT, "version": VERSION, "side": int, "quality": int, "shard": int, "shards": int, "source": str,
    "sha256": str,
}  # fmt: skip


def write(
    folder: Path,
    part: str,
    dataset: Images,
    *,
    quality: int | None = 95,
    per_shard: int = 1024,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Pack a data set; shards that are there already are left as they are, so that an interrupted run goes on.

    Parameters
    ----------
    folder : that exists
    part : "train" or "val"
    quality : of JPEG, 1 to 95; None stores the pixels themselves
    per_shard : images in a shard
    progress : called with the number of images done

    Returns
    -------
    list
        The shards, in order. Bad images are left out, and listed in them and in ``dataset.skipped``.

    Raises
    ------
    ValueError
        If the folder has shards of other images, or packed in another way.
    OSError
        Where a shard cannot be written; nothing is left of it.
    """
    cuts = parallel.cut(len(dataset), per_shard)
    how = {"quality": quality or 0, "shards": len(cuts), "source": dataset.digest(), "side": dataset.side}
    paths = [folder / f"{part}-{k:05}.h5" for k in range(len(cuts))]
    if extra := sorted(set(folder.glob(f"{part}-*.h5")) - set(paths)):
        raise ValueError(f"{extra[0]} is no shard of these images; prepare them in another folder")
    missing: dict[Path, list[range]] = {}
    for path, cut in zip(paths, cuts, strict=True):
        if path.exists():
            there = _opened(path).attributes["/"]
            if changed := [f"{key} {there[key]}, not {want}" for key, want in how.items() if there[key] != want]:
                raise ValueError(f"{path} holds other images: {', '.join(changed)}; use another folder")
        else:
            indices = range(cut.start, cut.stop)
            missing[path] = [indices[piece] for piece in parallel.cut(len(indices), PIECE)]
    # The next shard is under way while one is written.
    work, pieces = functools.partial(_encoded, dataset.side, quality), itertools.chain.from_iterable(missing.values())
    with closing(processes.ahead(work, dataset.read, pieces, ahead=per_shard // PIECE, threads=threads)) as made:
        for k, (path, cut) in enumerate(zip(paths, cuts, strict=True)):
            if path in missing:
                hdf5.write(path, _packed(dataset, {**how, "shard": k}, [(each, next(made)) for each in missing[path]]))
            progress(cut.stop)
    return paths


class _Encoded(NamedTuple):
    """A few images as they are stored, or why they cannot be read, and the sum of their pixels."""

    images: list[bytes | str]
    sum: np.ndarray


def _packed(dataset: Images, how: dict[str, Any], made: list[tuple[range, _Encoded]]) -> Content:
    """The content of one shard: the indices of its images, and what was made of them."""
    total, kept, stored, skipped = np.zeros((dataset.side, dataset.side, 3), np.int64), [], [], []
    for indices, encoded in made:
        total += encoded.sum
        for i, each in zip(indices, encoded.images, strict=True):
            if isinstance(each, str):
                dataset.skipped[dataset.names[i]] = each
                skipped.append(f"{dataset.names[i]}: {each}")
            else:
                kept.append(i)
                stored.append(each)
    datasets = {
        "/images": np.frombuffer(b"".join(stored), np.uint8),
        "/offsets": np.cumsum([0, *map(len, stored)], dtype=np.int64),
        "/labels": dataset.labels[kept],
        "/sum": total,
        "/classes": hdf5.texts([name.encode() for name in dataset.classes]),
        "/names": hdf5.texts([dataset.names[i].encode(errors="surrogateescape") for i in kept]),
        "/skipped": hdf5.texts([why.encode(errors="surrogateescape") for why in skipped]),
    }
    return Content({"/": {"format": FORMAT, "version": VERSION, **how}}, datasets)


def _encoded(side: int, quality: int | None, read: Callable[[int], Pixels], indices: range) -> _Encoded:
    made: list[bytes | str] = []
    total = np.zeros((side, side, 3), np.int64)
    for i in indices:
        try:
            pixels = read(i)
        except (OSError, ValueError) as error:
            made.append(str(error))
            continue
        total += pixels
        made.append(pixels.tobytes() if quality is None else images.encode(pixels, quality))
    return _Encoded(made, total)


def holds(folder: Path, part: str) -> bool:
    """Whether a folder has shards of this part."""
    return (folder / f"{part}-00000.h5").is_file()


class _Images(NamedTuple):
    """The images of a shard; with quality 0 they are pixels."""

    stored: Stored
    offsets: np.ndarray
    side: int
    quality: int

    @classmethod
    def of(cls, shard: Content) -> "_Images":
        root, arrays = shard.attributes["/"], shard.datasets
        return cls(arrays["/images"], arrays["/offsets"], root["side"], root["quality"])

    def read(self, i: int, side: int) -> Pixels:
        data = self.stored.read(*self.offsets[i : i + 2].tolist())
        if not self.quality:
            pixels = data.reshape(self.side, self.side, 3)
            return pixels if side == self.side else images.square(Image.fromarray(pixels), side)
        image = images.decode(data.tobytes())
        if image.size != (self.side, self.side):
            raise ValueError(f"it is {image.width} x {image.height}, but its shard says {self.side} x {self.side}")
        return np.asarray(image) if side == self.side else images.square(image, side)


def _read(shards: list[_Images], starts: np.ndarray, side: int, i: int) -> Pixels:
    k = int(np.searchsorted(starts, i, side="right")) - 1
    return shards[k].read(int(i - starts[k]), side)


def load(folder: Path, part: str, *, side: int) -> Packed:
    """The images of all shards of a part, read and decoded when asked for.

    Raises
    ------
    ValueError
        If a shard is missing or is none: which, and what it needs.
    """
    shards = [_opened(path) for path in _paths(folder, part)]
    first = shards[0]
    classes = tuple(_decoded(first.datasets["/classes"]))
    starts = np.cumsum([0, *(len(each.datasets["/labels"]) for each in shards)])

    return Packed(
        classes=classes,
        labels=np.concatenate([each.datasets["/labels"] for each in shards]),
        names=[name for each in shards for name in _decoded(each.datasets["/names"])],
        side=side,
        read=functools.partial(_read, [_Images.of(each) for each in shards], starts, side),
        skipped={
            name: why
            for each in shards
            for name, _, why in (text.partition(": ") for text in _decoded(each.datasets["/skipped"]))
        },
        mean=functools.partial(_mean, shards) if first.attributes["/"]["side"] == side else None,
    )


def verify(folder: Path, part: str, *, progress: Callable[[int], None] = lambda images: None) -> int:
    """Number of images of a part, after every checksum was compared and every image decoded.

    Raises ValueError for the first shard or image that is not as it was written.
    """
    done = 0
    for path in _paths(folder, part):
        with _naming(path):
            hdf5.read(path, check=_check)
    data = load(folder, part, side=_opened(_paths(folder, part)[0]).attributes["/"]["side"])
    pieces = [range(len(data.labels))[part] for part in parallel.cut(len(data.labels), PIECE)]
    for count in processes.ahead(_tried, data.read, pieces, ahead=64):
        done += count
        progress(done)
    return done


def _tried(read: Callable[[int], Pixels], indices: range) -> int:
    """How many they are, after each was read."""
    return len([read(i) for i in indices])


def _mean(shards: list[Content]) -> Floats:
    count = sum(len(each.datasets["/labels"]) for each in shards)
    if not count:
        raise ValueError("none of the images could be read when they were prepared")
    total = sum(each.datasets["/sum"].read() for each in shards)
    mean: Floats = (total / count).astype(np.float32)
    return mean


def _paths(folder: Path, part: str) -> list[Path]:
    """All shards of a part, if none is missing."""
    first = folder / f"{part}-00000.h5"
    count = _opened(first).attributes["/"]["shards"]
    paths = [folder / f"{part}-{k:05}.h5" for k in range(count)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder}: {first.name} is one of {count} shards, but {', '.join(missing[:9])} are missing")
    return paths


def _opened(path: Path) -> Content:
    with _naming(path):
        return hdf5.opened(path, check=_check, on_disk=("/images", "/sum"))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the shard's name in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _decoded(texts: np.ndarray) -> Iterator[str]:
    return (text.decode(errors="surrogateescape") for text in texts.tolist() if text)


def _check(content: Content) -> None:
    """ValueError unless the attributes and arrays are those of a shard, and its offsets lie inside."""
    root, datasets = content.attributes["/"], content.datasets
    problems = [
        f"{name} is {root.get(name)!r:.60}, it needs {getattr(want, '__name__', repr(want))}"
        for name, want in _ROOT.items()
        if root.get(name) != want and type(root.get(name)) is not want
    ]
    if problems:
        raise ValueError(f"not a shard of this version: {'; '.join(problems)}")
    side = root["side"]
    n, classes = (datasets[name].size if name in datasets else 0 for name in ("/labels", "/classes"))
    shapes: dict[str, tuple[tuple[int, ...] | None, str]] = {
        "/labels": ((n,), "i8"), "/offsets": ((n + 1,), "i8"), "/sum": ((side, side, 3), "i8"),
        "/images": (None, "u1"), "/classes": ((classes,), "S"), "/names": (None, "S"), "/skipped": (None, "S"),
    }  # fmt: skip
    for name, (shape, kind) in shapes.items():
        if name not in datasets:
            raise ValueError(f"{name} is missing")
        each = datasets[name]
        if each.shape != (shape or (each.size,)) or (each.dtype.kind if kind == "S" else each.dtype.str[1:]) != kind:
            raise ValueError(f"{name} is {each.shape} {each.dtype}, it needs {shape or '(n,)'} {kind}")
    if extra := datasets.keys() - shapes.keys():
        raise ValueError(f"{', '.join(sorted(extra))} is extra")
    offsets, labels = np.asarray(datasets["/offsets"][()]), np.asarray(datasets["/labels"][()])
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != datasets["/images"].shape[0]:
        raise ValueError(f"/offsets must rise from 0 to the {datasets['/images'].shape[0]} bytes of /images")
    if not root["quality"] and (np.diff(offsets) != side * side * 3).any():
        raise ValueError(f"/offsets of raw images must be {side * side * 3} apart")
    if n and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"/labels run from {labels.min()} to {labels.max()}, but there are {classes} classes")
