"""HDF5 files written in one step and checked when read: attributes and datasets by path, nothing else.

A reader here follows no link and opens no second file, and reads nothing before the caller has agreed to what the
file declares. weights/FORMAT.md says what refnet puts into such files, and defines the checksum.
"""

import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_PACKED = ("/input/mean", "/classes")  # smooth, or mostly padding; parameters are noise and do not shrink


@dataclass
class Content:
    """What is in a file, by path. Texts are arrays of UTF-8 bytes; h5py's datasets stand in until read."""

    attributes: dict[str, dict[str, Any]]
    datasets: dict[str, Any]


def write(path: Path, content: Content) -> None:
    """Write ``content`` and its checksum to ``path``; a file already there stays whole until the new one is on disk.

    Raises
    ------
    OSError
        Where the file cannot be written; nothing is left behind.
    """
    target = path.resolve()  # through a link to the file itself: the temporary one must be on its disk
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    image = _image(content)
    try:
        with open(temporary, "xb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)  # the new name is in the folder's data


def read(path: Path, *, check: Callable[[Content], None]) -> Content:
    """Read and verify what `write` wrote.

    Parameters
    ----------
    check : called with all attributes and the datasets as yet unread; raises ValueError for what must not be read

    Raises
    ------
    ValueError
        In one line, for anything but a whole, unchanged file of hard links and plain storage that ``check`` accepts.
    OSError
        Where the file is missing or cannot be opened.
    """
    with open(path, "rb") as raw:
        start = raw.read(16)
    with _damage_as_value_error():
        if not h5py.is_hdf5(path):
            raise ValueError(f"no HDF5 file, it starts with {start!r}; it needs one that refnet wrote")
        with h5py.File(path, "r", locking=False) as file:
            content = _declared(file)
            check(content)
            content.datasets = {name: np.asarray(each[()]) for name, each in content.datasets.items()}
    if content.attributes["/"].pop("sha256", None) != _digest(content):
        raise ValueError("the checksum differs: the file was changed or damaged; get it again")
    return content


@dataclass(frozen=True)
class Stored:
    """An array that stays in its file; no descriptor is held, so that there may be thousands."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Its rows from ``start`` to ``stop``; threads may read at once. ValueError for a file cut short."""
        row = self.dtype.itemsize * math.prod(self.shape[1:])
        count = (self.shape[0] if stop is None else stop) - start
        handle = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(handle, count * row, self.offset + start * row)
        finally:
            os.close(handle)
        if len(data) != count * row:
            raise ValueError(f"{self.path} has become shorter; get it again")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def opened(path: Path, *, check: Callable[[Content], None], on_disk: Collection[str]) -> Content:
    """What `write` wrote, with `Stored` in place of the arrays called ``on_disk``; no checksum is compared.

    Raises as `read` does, and ValueError where one of those arrays is not in one piece.
    """
    with open(path, "rb"):
        pass  # what cannot be opened is no damage
    with _damage_as_value_error():
        if not h5py.is_hdf5(path):
            raise ValueError("no HDF5 file; it needs one that refnet wrote")
        with h5py.File(path, "r", locking=False) as file:
            content = _declared(file)
            check(content)
            content.datasets = {
                name: _stored(path, name, each) if name in on_disk else np.asarray(each[()])
                for name, each in content.datasets.items()
            }
    return content


def _stored(path: Path, name: str, dataset: Any) -> Stored:
    offset = dataset.id.get_offset()
    if offset is None and dataset.nbytes:
        raise ValueError(f"{name} is not stored in one piece")
    return Stored(path, offset or 0, dataset.dtype, dataset.shape)


def texts(utf8: bytes | list[bytes]) -> np.ndarray:
    """The texts at one length, that of the longest; the dtype tells HDF5 that they are UTF-8."""
    array = np.array(utf8 if utf8 else [], dtype=None if utf8 else "S1")
    return array.astype(h5py.string_dtype(length=array.itemsize))


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """One ValueError of one line for all that h5py raises on damaged files."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"damaged HDF5 file, get it again ({' '.join(str(error).split())})") from error


def _image(content: Content) -> memoryview:
    """The bytes of the file. Made in memory, as libhdf5 can crash where a disk is full."""
    image = io.BytesIO()
    # HDF5 1.10 checksums its own structure, and texts of fixed length lie inside it: with either missing, one
    # flipped bit can crash libhdf5 before our own checksum is compared.
    with h5py.File(image, "w", libver="v110") as file:
        for name, array in content.datasets.items():
            packing = {"compression": "gzip", "shuffle": True} if name in _PACKED else {}
            file.create_dataset(name, data=array, **packing)
        for name, attributes in content.attributes.items():
            for key, value in attributes.items():
                file[name].attrs[key] = np.bytes_(value, "ascii") if isinstance(value, str) else value
        file.attrs["sha256"] = np.bytes_(_digest(content), "ascii")
    return image.getbuffer()


def _sync(folder: Path) -> None:
    """Have the disk hold the names in the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def datasets(file: Any) -> dict[str, Any]:
    """Every dataset by its path, none of them read; ValueError for links and what is stored elsewhere or not at all."""
    found = {path: item for path, item in _walk(file) if isinstance(item, h5py.Dataset)}
    for path, item in found.items():
        _check_storage(path, item)
    return found


def _declared(file: Any) -> Content:
    """All attributes, and all datasets as yet unread."""
    content = Content({"/": _attributes(file)}, {})
    for path, item in _walk(file):
        if item.attrs:
            content.attributes[path] = _attributes(item)
        if isinstance(item, h5py.Dataset):
            _check_storage(path, item)
            content.datasets[path] = item
    return content


def _walk(file: Any) -> Iterator[tuple[str, Any]]:
    """Path of every object below the root; ValueError for links out of the file and for second names."""
    seen = {h5py.h5o.get_info(file.id).addr}
    groups = [("", file)]
    while groups:
        parent, group = groups.pop()
        for name in group:
            path = f"{parent}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path} is a soft or external link; refnet's files have none")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise ValueError(f"{path} is a second name of another object; refnet's files have none")
            seen.add(address)
            if isinstance(item, h5py.Group):
                groups.append((path, item))
            yield path, item


def _check_storage(path: str, dataset: Any) -> None:
    """ValueError where reading would reach other files, or fill memory with what was never stored."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{path} keeps its data in other files; refnet's files are whole")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > 1100 * stored:  # deflate packs by 1032 at most
        raise ValueError(f"{path} declares {dataset.nbytes:,} bytes, but only {stored:,} are stored")


def _attributes(item: Any) -> dict[str, Any]:
    """Attributes of a group or dataset as str, int, float or bool; None where refnet writes no such thing."""
    values = {}
    for name in item.attrs:
        stored = item.attrs.get_id(name)
        known = stored.shape == () and stored.dtype.kind in "Sifb"
        value = item.attrs[name].item() if known else None
        values[name] = value.decode() if isinstance(value, bytes) else value
    return values


def _digest(content: Content) -> str:
    """SHA-256 over all attributes, then all datasets, by path (FORMAT.md); shows damage, signs nothing."""
    sha = hashlib.sha256()
    for path, attributes in sorted(content.attributes.items()):
        for name, value in sorted(attributes.items()):
            sha.update(json.dumps([path, name, value]).encode() + b"\n")
    for path, array in sorted(content.datasets.items()):
        sha.update(json.dumps([path, array.dtype.str, array.shape]).encode() + b"\n")
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
