"""Batches for the network, made ahead on threads: drawn crops in training, else the centre or the ten crops."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from refnet import images
from refnet.backend import cores
from refnet.datasets import Dataset, Labels
from refnet.images import Augment, Floats, Pixels

AHEAD = 3  # batches made before they are asked for

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(NamedTuple):
    """``x`` (n, size, size, 3), or (n, 10, size, size, 3) of ten crops; ``labels`` and ``indices`` (n,).

    Images that cannot be read are missing; with all of them bad, n is 0.
    """

    x: Floats
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
    start: int = 0,
    threads: int | None = None,
    ahead: int = AHEAD,
) -> Generator[Batch, None, None]:
    """One epoch of training crops in random order, made on threads, at most ``ahead`` batches in advance.

    The order and every crop are drawn in this call: threads, bad images or a consumer that stops early don't
    change what ``rng`` gives next, or how many batches there are. ``start`` leaves out that many, to go on with an
    epoch.
    """
    order = rng.permutation(len(dataset))
    draws = augment.draw(len(order), side=dataset.side, size=size, rng=rng)

    def cut(place: int, pixels: Pixels) -> Floats:
        return images.crop(pixels, *(drawn[place] for drawn in draws), size=size, mean=mean, scale=scale)

    parts = _parts(len(order), batch)[start : batch_count(len(order), batch)]
    return _batches(dataset, order, parts, cut, shape=(size, size, 3), threads=threads, ahead=ahead)


def in_order(
    dataset: Dataset,
    *,
    batch: int,
    size: int,
    mean: Floats,
    scale: float,
    ten_crop: bool = False,
    threads: int | None = None,
    ahead: int = AHEAD,
) -> Generator[Batch, None, None]:
    """Every image once, in order: its centre crop, or the paper's ten."""
    crops: Callable[[Floats, int], Floats] = images.ten_crop if ten_crop else images.centre_crop

    def cut(_: int, pixels: Pixels) -> Floats:
        x: Floats = crops(images.normalise(pixels[None], mean, scale), size)[0]
        return x

    order = np.arange(len(dataset))
    shape = (10, size, size, 3) if ten_crop else (size, size, 3)
    return _batches(dataset, order, _parts(len(order), batch), cut, shape=shape, threads=threads, ahead=ahead)


def mean_image(dataset: Dataset, *, threads: int | None = None) -> Floats:
    """Per-pixel mean (paper sec. 3) over the images that can be read: (side, side, 3), in 0..255.

    The others are in ``skipped`` afterwards. Sums of integers are exact: threads don't change a bit.

    Raises
    ------
    ValueError
        No image can be read.
    """
    order = np.arange(len(dataset))

    def add(places: Labels) -> tuple[npt.NDArray[np.int64], int]:
        total, count = np.zeros((dataset.side, dataset.side, 3), np.int64), 0
        for _, pixels in _good(dataset, order, places):
            total += pixels
            count += 1
        return total, count

    total, count = np.zeros((), np.int64), 0
    for part, good in _ahead(add, _parts(len(order), 64), threads=threads, ahead=2 * AHEAD):
        total, count = total + part, count + good
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
    cut: Callable[[int, Pixels], Floats],
    *,
    shape: tuple[int, ...],
    threads: int | None,
    ahead: int,
) -> Generator[Batch, None, None]:
    """A batch per part: what ``cut(place, pixels)``, of this shape, makes of the images at its places in ``order``."""

    def make(places: Labels) -> Batch:
        good = list(_good(dataset, order, places))
        x = np.empty((len(good), *shape), np.float32)
        for crop, each in zip(x, good, strict=True):
            crop[...] = cut(*each)
        indices = order[[place for place, _ in good]] if good else order[:0]
        return Batch(x, dataset.labels[indices], indices)

    return _ahead(make, parts, threads=threads, ahead=ahead)


def _ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None, ahead: int
) -> Generator[Result, None, None]:
    """function(item) for each item, in order, on threads (default: all cores), at most ``ahead`` items early.

    An exception comes out in the place of its result. After it, or when the generator is closed, threads end.
    """
    pool = ThreadPoolExecutor(threads or cores())
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
