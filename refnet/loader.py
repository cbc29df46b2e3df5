"""Batches for the network, made ahead: drawn crops in training, else the centre or the ten crops.

On a CPU, threads decode images and cut the crops. For a GPU, processes decode, and whole uint8 images are handed over
and cut there; threads do it where images are kept in memory.
"""

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refnet import images, kernels, parallel, processes
from refnet.backend import Array, to_device
from refnet.datasets import Dataset, Labels
from refnet.images import Augment, Draws, Floats, Pixels
from refnet.ranks import ALONE, Group

AHEAD = 3  # batches made before they are asked for
PIECE = 8  # images that are decoded at a time, so that many share a batch


class Batch(NamedTuple):
    """``x`` (n, size, size, 3), or (n, 10, size, size, 3) of ten crops, on the device; ``labels`` and ``indices`` (n,).

    Images that cannot be read are missing; with all of them bad, n is 0.
    """

    x: Array
    labels: Labels
    indices: Labels


def batch_count(n: int, batch: int) -> int:
    """Minibatches in an epoch of n images; a rest below half a batch is left out, unless it is everything."""
    return max(1, (n + batch // 2) // batch)


def minibatches(
    dataset: Dataset,
    *,
    batch: int,
    size: int,
    augment: Augment,
    mean: Floats,
    scale: float,
    rng: np.random.Generator,
    group: Group = ALONE,
    start: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    ahead: int = AHEAD,
) -> Generator[Batch, None, None]:
    """One epoch of training crops in random order, made on threads, at most ``ahead`` batches in advance.

    The order and every crop are drawn in this call: threads, bad images or a consumer that stops early don't
    change what ``rng`` gives next, or how many batches there are. Of each batch, a process gets its share, as ``group``
    has it. ``start`` leaves out that many, to go on with an epoch.
    """
    order = rng.permutation(len(dataset))
    draws = augment.draw(len(order), side=dataset.side, size=size, rng=rng)
    parts = _parts(len(order), batch)[start : batch_count(len(order), batch)]

    def drawn(places: Labels) -> Draws:
        return Draws(draws.box[places], draws.mirror[places], draws.colour[places])

    parts = [part[group.share(len(part))] for part in parts]
    return _batches(
        dataset, order, parts, drawn, (size, size, 3),
        mean=mean, scale=scale, device=device, threads=threads, ahead=ahead,
    )  # fmt: skip


def in_order(
    dataset: Dataset,
    *,
    batch: int,
    size: int,
    mean: Floats,
    scale: float,
    ten_crop: bool = False,
    group: Group = ALONE,
    device: str = "cpu",
    threads: int | None = None,
    ahead: int = AHEAD,
) -> Generator[Batch, None, None]:
    """Every image once, in order: its centre crop, or the paper's ten; of a ``group``, this process's share."""
    draws = images.fixed(dataset.side, size, ten_crop=ten_crop)

    def drawn(places: Labels) -> Draws:
        n = len(places)
        return Draws(np.tile(draws.box, (n, 1)), np.tile(draws.mirror, n), np.tile(draws.colour, (n, 1)))

    order = np.arange(len(dataset))
    parts = _parts(len(order), batch)
    return _batches(
        dataset, order, parts[group.share(len(parts))], drawn, (10, size, size, 3) if ten_crop else (size, size, 3),
        mean=mean, scale=scale, device=device, threads=threads, ahead=ahead,
    )  # fmt: skip


def mean_image(dataset: Dataset, *, group: Group = ALONE, threads: int | None = None) -> Floats:
    """Per-pixel mean (paper sec. 3) over the images that can be read: (side, side, 3), in 0..255.

    Where the data set has it stored, it is taken from there. Otherwise all images are read, by the processes of a
    ``group`` a share each; the bad ones are in ``skipped`` afterwards. Sums of integers are exact: threads and
    processes don't change a bit.

    Raises
    ------
    ValueError
        No image can be read.
    """
    if dataset.mean is not None:
        return dataset.mean()
    parts = _parts(len(dataset), 64)
    mine = parts[group.share(len(parts))]
    sums = processes.ahead(functools.partial(_sum, dataset.side), dataset.read, mine, ahead=2 * AHEAD, threads=threads)
    total, count = np.zeros((dataset.side, dataset.side, 3), np.int64), 0
    for indices, (part, bad) in zip(mine, sums, strict=True):
        total, count = total + part, count + len(indices) - len(bad)
        dataset.skipped.update({dataset.names[i]: why for i, why in bad.items()})
    group.start_sum(total)()
    count = sum(group.gather(count))
    for skipped in group.gather(dataset.skipped):
        dataset.skipped.update(skipped)
    if not count:
        name = dataset.names[0]
        raise ValueError(f"none of the {len(dataset)} images can be read; {name}: {dataset.skipped[name]}")
    return (total / count).astype(np.float32)


def _parts(n: int, batch: int) -> list[Labels]:
    """0..n-1 in pieces of ``batch``; the last one may be smaller."""
    return [np.arange(start, min(start + batch, n)) for start in range(0, n, batch)]


class _Piece(NamedTuple):
    """Some images of a batch: its pixels, the slots there that they go to, their indices, and the batch's places."""

    pixels: Pixels
    slots: Labels
    indices: Labels
    places: Labels


class _Filled(NamedTuple):
    """A piece's slots that hold their image now; of the others, by index, why not; crops, where they were cut."""

    slots: Labels
    bad: dict[int, str]
    x: Array = None


def _fill(read: Callable[[int], Pixels], piece: _Piece) -> _Filled:
    """Read a piece's images into their slots."""
    good, bad = [], {}
    for slot, i in zip(piece.slots.tolist(), piece.indices.tolist(), strict=True):
        try:
            piece.pixels[slot] = read(i)
        except (OSError, ValueError) as error:
            bad[i] = str(error)
        else:
            good.append(slot)
    return _Filled(np.array(good, np.int64), bad)


def _sum(side: int, read: Callable[[int], Pixels], indices: Labels) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    """The sum of the images that can be read, and of the others, by index, why not."""
    total, bad = np.zeros((side, side, 3), np.int64), {}
    for i in indices.tolist():
        try:
            total += read(i)
        except (OSError, ValueError) as error:
            bad[i] = str(error)
    return total, bad


def _batches(
    dataset: Dataset,
    order: Labels,
    parts: Sequence[Labels],
    drawn: Callable[[Labels], Draws],
    shape: tuple[int, ...],
    *,
    mean: Floats,
    scale: float,
    device: str,
    threads: int | None,
    ahead: int,
) -> Generator[Batch, None, None]:
    """A batch per part: the crops ``drawn(places)``, ``shape`` for each image, of those at its places in ``order``."""
    on_device = to_device(mean, device)
    # A GPU's next operation would wait for the interpreter while threads decode.
    there = processes.sent(dataset.read) if device != "cpu" else None
    most = max(map(len, parts), default=0)
    free: list[tuple[Pixels, Any]] = []
    taken: deque[tuple[Pixels, Any]] = deque()

    def room() -> tuple[Pixels, Any]:
        """Memory for a batch's pixels, and what arrives as it where they are read."""
        of = (most, dataset.side, dataset.side, 3)
        if there:
            memory = processes.shared(of)
            return memory.here(), memory
        pixels = np.empty(of, np.uint8)
        return pixels, pixels

    def pieces() -> Iterator[_Piece]:
        for places in filter(len, parts):
            taken.append(free.pop() if free else room())
            known = np.array([dataset.names[i] not in dataset.skipped for i in order[places]])
            for piece in parallel.cut(len(places), PIECE):
                slots = piece.start + np.flatnonzero(known[piece])
                yield _Piece(taken[-1][1], slots, order[places[slots]], places)

    def cut(pixels: Array, slots: Labels, places: Labels) -> Array:
        """Crops of the images in ``slots`` of the pixels, which are those at ``places``."""
        crops = images.crops if device == "cpu" else kernels.crops
        draws = drawn(places)
        of = np.repeat(slots, len(draws.box) // max(len(slots), 1))
        x = crops(pixels, of, draws, size=shape[-2], mean=on_device, scale=scale)
        return x.reshape(len(slots), *shape)

    def fill_and_cut(read: Callable[[int], Pixels], piece: _Piece) -> _Filled:
        done = _fill(read, piece)
        return done._replace(x=cut(piece.pixels, done.slots, piece.places[done.slots]))

    early = ahead * len(parallel.cut(most, PIECE))
    if there:
        filled = processes.ahead(_fill, there, pieces(), ahead=early, threads=threads)
    else:
        work = functools.partial(fill_and_cut if device == "cpu" else _fill, dataset.read)
        filled = parallel.ahead(work, pieces(), ahead=early, threads=threads)
    with closing(filled):
        for places in parts:
            if not len(places):  # of a batch smaller than its group
                empty = np.empty((0, *shape), np.float32)
                yield Batch(to_device(empty, device), dataset.labels[:0], order[:0])
                continue
            slots, bad, x = zip(*(next(filled) for _ in parallel.cut(len(places), PIECE)), strict=True)
            for each in bad:
                dataset.skipped.update({dataset.names[i]: why for i, why in each.items()})
            pixels = taken.popleft()
            good = np.concatenate(slots)
            indices = order[places[good]]
            whole = np.concatenate(x) if device == "cpu" else cut(to_device(pixels[0], device), good, places[good])
            free.append(pixels)
            yield Batch(whole, dataset.labels[indices], indices)
