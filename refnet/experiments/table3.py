"""Table 3: what happens to the errors when layers are left out or made wider."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from refnet import models
from refnet.arch import Arch
from refnet.datasets import Dataset
from refnet.evaluate import evaluate
from refnet.weights import Checkpoint


@dataclass(frozen=True)
class Errors:
    """Errors in %: top-1 on the training images, top-1 and top-5 on the validation images."""

    train_top1: float
    val_top1: float
    val_top5: float


@dataclass(frozen=True)
class Row:
    """A row of the table: what it does to its net, and the paper's errors."""

    net: str
    change: str
    arch: Callable[[Arch], Arch]
    paper: Errors

    @property
    def name(self) -> str:
        """The net and the change, as the row is called everywhere."""
        return f"{self.net}, {self.change}"


KRIZHEVSKY, FIGURE_3 = "Krizhevsky", "Figure 3"

# Widths are relative to those nets' 384, 384, 256 and 4096, 4096, so that a row says the same of a smaller preset.
ROWS = (
    Row(KRIZHEVSKY, "replication", lambda arch: arch, Errors(35.1, 40.5, 18.1)),
    Row(KRIZHEVSKY, "without layers 3,4", lambda arch: models.without(arch, 3, 4), Errors(41.8, 45.4, 22.1)),
    Row(KRIZHEVSKY, "without layer 7", lambda arch: models.without(arch, 7), Errors(27.4, 40.0, 18.4)),
    Row(KRIZHEVSKY, "without layers 6,7", lambda arch: models.without(arch, 6, 7), Errors(27.4, 44.8, 22.4)),
    Row(KRIZHEVSKY, "without layers 3,4,6,7", lambda arch: models.without(arch, 3, 4, 6, 7), Errors(71.1, 71.3, 50.1)),
    Row(KRIZHEVSKY, "layers 6,7: 2048", lambda arch: models.widened(arch, {6: 1 / 2, 7: 1 / 2}),
        Errors(40.3, 41.7, 18.8)),
    Row(KRIZHEVSKY, "layers 6,7: 8192", lambda arch: models.widened(arch, {6: 2, 7: 2}), Errors(26.8, 40.0, 18.1)),
    Row(FIGURE_3, "as it is", lambda arch: arch, Errors(33.1, 38.4, 16.5)),
    Row(FIGURE_3, "layers 6,7: 2048", lambda arch: models.widened(arch, {6: 1 / 2, 7: 1 / 2}),
        Errors(38.2, 40.2, 17.6)),
    Row(FIGURE_3, "layers 6,7: 8192", lambda arch: models.widened(arch, {6: 2, 7: 2}), Errors(22.0, 38.8, 17.0)),
    Row(FIGURE_3, "layers 3,4,5: 512, 1024, 512", lambda arch: models.widened(arch, {3: 4 / 3, 4: 8 / 3, 5: 2}),
        Errors(18.8, 37.5, 16.0)),
    Row(FIGURE_3, "layers 6,7: 8192 and 3,4,5: 512, 1024, 512",
        lambda arch: models.widened(arch, {3: 4 / 3, 4: 8 / 3, 5: 2, 6: 2, 7: 2}), Errors(10.0, 38.3, 16.9)),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}

# The two nets by size: the paper's, and those for 64-pixel images (at most 30 million multiply-adds).
BASES = {
    "paper": {KRIZHEVSKY: models.KRIZHEVSKY, FIGURE_3: models.ZFNET},
    "mini": {KRIZHEVSKY: models.MINI_KRIZHEVSKY, FIGURE_3: models.MINI},
}


def run(
    rows: Sequence[Row],
    bases: Mapping[str, Arch],
    train: Dataset,
    val: Dataset,
    *,
    seed: int,
    net: Callable[[str, Arch, int], Checkpoint],
    device: str = "cpu",
    threads: int | None = None,
) -> Iterator[tuple[Row, Errors]]:
    """Errors of every row, each as soon as it is known.

    Parameters
    ----------
    rows : of `ROWS`
    bases : the two nets that the rows change, as in `BASES`
    net : trains or loads a network: net(row's name, architecture, seed); all with the same recipe and budget
    """
    for row in rows:
        checkpoint = net(row.name, models.with_classes(row.arch(bases[row.net]), len(train.classes)), seed)
        on_train, on_val = (evaluate([checkpoint], data, device=device, threads=threads) for data in (train, val))
        yield row, Errors(*(100 * (1 - hit) for hit in (on_train.top1, on_val.top1, on_val.top5)))


@dataclass(frozen=True)
class Ordering:
    """Two rows whose validation errors the paper orders: by how many points the second one's top-1 error is higher.

    ``mean`` and ``std`` are over the seeds, each of which trained both; ``holds`` is True where the mean has the
    paper's sign and is larger than its standard error, False where it has the other sign and is, None in between.
    """

    first: str
    second: str
    paper: float
    mean: float
    std: float
    holds: bool | None


def orderings(found: Mapping[str, Mapping[int, Errors]]) -> list[Ordering]:
    """All pairs of rows that the paper does not have equal and that at least two seeds have trained both of."""
    result = []
    for first, second in combinations([row for row in ROWS if row.name in found], 2):
        paper = round(second.paper.val_top1 - first.paper.val_top1, 1)
        one, other = found[first.name], found[second.name]
        seeds = sorted(one.keys() & other.keys())
        if not paper or len(seeds) < 2:
            continue
        higher = np.array([other[seed].val_top1 - one[seed].val_top1 for seed in seeds])
        mean, std = float(higher.mean()), float(higher.std(ddof=1))
        clear = abs(mean) > std / np.sqrt(len(seeds))
        holds = bool(mean * paper > 0) if clear else None
        result.append(Ordering(first.name, second.name, paper, mean, std, holds))
    return result
