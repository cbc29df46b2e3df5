"""Batches for the network, made ahead on threads: drawn crops in training, else the centre or the ten crops.

Threads decode. On a CPU they cut the crops as well; for a GPU they hand over whole uint8 images, which are cut there.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refnet import images, kernels, parallel
from refnet.backend import Array, to_device
from refnet.datasets import Dataset, Labels
from refnet.images import Augment, Draws, Floats, Pixels
from refnet.ranks import ALONE, Group

AHEAD = 3  # batches made before they are asked for
PIECE = 8  # images that a thread decodes at a time: a batch is shared by many threads


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
    order = np.arange(len(dataset))

    def add(places: Labels) -> tuple[npt.NDArray[np.int64], int]:
        total, count = np.zeros((dataset.side, dataset.side, 3), np.int64), 0
        for _, pixels in _good(dataset, order, places):
            total += pixels
            count += 1
        return total, count

    total, count, parts = np.zeros((dataset.side, dataset.side, 3), np.int64), 0, _parts(len(order), 64)
    for part, good in parallel.ahead(add, parts[group.share(len(parts))], threads=threads, ahead=2 * AHEAD):
        total, count = total + part, count + good
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


def _good(dataset: Dataset, order: Labels, places: Labels) -> Iterator[tuple[int, Pixels]]:
    """(place, image ``order[place]``) for each place whose image can be read."""
    for place in places:
        try:
            pixels = dataset.image(order[place])
        except ValueError:
            continue  # it is in dataset.skipped now
        yield place, pixels


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

    def cut(pixels: Array, slots: Labels, places: Labels) -> Array:
        """Crops of the images in ``slots`` of the pixels, which are those at ``places``."""
        crops = images.crops if device == "cpu" else kernels.crops
        draws = drawn(places)
        of = np.repeat(slots, len(draws.box) // max(len(slots), 1))
        x = crops(pixels, of, draws, size=shape[-2], mean=on_device, scale=scale)
        return x.reshape(len(slots), *shape)

    def pieces() -> Iterator[tuple[Labels, Pixels, slice]]:
        for places in parts:
            pixels = np.empty((len(places), dataset.side, dataset.side, 3), np.uint8)
            for piece in parallel.cut(len(places), PIECE):
                yield places, pixels, piece

    def decode(piece: tuple[Labels, Pixels, slice]) -> tuple[Pixels, Labels, Array]:
        """The batch's pixels with those of one piece filled in; its slots that could be read; on a CPU their crops."""
        places, pixels, part = piece
        first, slots = places[0], []
        for place, each in _good(dataset, order, places[part]):
            pixels[place - first] = each
            slots.append(place - first)
        good = np.array(slots, np.int64)
        return pixels, good, cut(pixels, good, places[good]) if device == "cpu" else None

    most = len(parallel.cut(max(map(len, parts), default=0), PIECE))
    with closing(parallel.ahead(decode, pieces(), threads=threads, ahead=ahead * most)) as decoded:
        for places in parts:
            if not len(places):  # of a batch smaller than its group
                empty = np.empty((0, *shape), np.float32)
                yield Batch(to_device(empty, device), dataset.labels[:0], order[:0])
                continue
            pixels, slots, x = zip(*(next(decoded) for _ in parallel.cut(len(places), PIECE)), strict=True)
            good = np.concatenate(slots)
            indices = order[places[good]]
            whole = np.concatenate(x) if device == "cpu" else cut(to_device(pixels[0], device), good, places[good])
            yield Batch(whole, dataset.labels[indices], indices)
