"""Table 2: the errors of single networks, and of several that vote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refnet.datasets import Dataset
from refnet.evaluate import probabilities, score
from refnet.weights import Checkpoint

REPLICATION, A, B = "Krizhevsky", "a", "b"  # the kinds of networks: his, that of Figure 3, and its wider one
WHAT = {
    REPLICATION: "Krizhevsky, our replication",
    A: "Figure 3 (a)",
    B: "layers 3,4,5: 512, 1024, 512 (b)",
}
# The paper's validation errors, top-1 and top-5 in %, of one network of a kind and of votes.
PAPER = {(REPLICATION,): (40.5, 18.1), (A,): (38.4, 16.5), (B,): (37.5, 16.0)}
PAPER_VOTES = {(A,): (36.7, 15.3), (A, B): (36.0, 14.7)}


@dataclass(frozen=True)
class Row:
    """Errors in %, top-1 and top-5.

    ``kinds`` of networks, ``count`` of them. ``errors`` are those of a vote (1, 2), or of each single one (count, 2).
    ``paper`` has votes of 5 networks (a), and of these and 1 network (b).
    """

    kinds: tuple[str, ...]
    count: int
    vote: bool
    errors: np.ndarray
    paper: tuple[float, float] | None

    @property
    def name(self) -> str:
        """What the row is called."""
        networks = f"{self.count} convnets" if self.vote else "1 convnet"
        return f"{' and '.join(WHAT[kind] for kind in self.kinds)}, {networks}"


def run(
    nets: Mapping[str, Sequence[Checkpoint]],
    dataset: Dataset,
    *,
    ten_crop: bool = True,
    device: str = "cpu",
    threads: int | None = None,
) -> list[Row]:
    """Errors of the networks, one by one and together: a vote is the mean of their softmax outputs.

    Parameters
    ----------
    nets : by kind, networks that differ in their seeds; of (b) the first one joins the vote with (a), as in the paper
    ten_crop : each network's output is its mean over the ten crops of section 3. How the paper tested is not stated;
        Krizhevsky et al. (2012) did so

    Raises
    ------
    ValueError
        If there is no network, the data's classes are not theirs, or no image can be read.
    """
    if not any(nets.values()):
        raise ValueError("Table 2 needs networks, and there are none")
    outputs: dict[str, list[np.ndarray]] = {kind: [] for kind in nets}
    for kind, members in nets.items():
        for each in members:
            p, labels = probabilities(each, dataset, ten_crop=ten_crop, device=device, threads=threads)
            outputs[kind].append(p)

    def errors(p: np.ndarray) -> tuple[float, float]:
        found = score(p, labels, dataset.classes)
        return 100 * (1 - found.top1), 100 * (1 - found.top5)

    rows = [
        Row((kind,), len(members), False, np.array([errors(p) for p in members]), PAPER[kind,])
        for kind, members in outputs.items()
        if members
    ]
    votes: list[tuple[tuple[str, ...], list[np.ndarray]]] = [((kind,), members) for kind, members in outputs.items()]
    votes.append(((A, B), [*outputs.get(A, []), *outputs.get(B, [])[:1]] if outputs.get(B) else []))
    for kinds, voters in votes:
        if len(voters) > 1:
            together = np.array([errors(np.mean(voters, axis=0))])
            rows.append(Row(kinds, len(voters), True, together, PAPER_VOTES.get(kinds)))
    return rows
