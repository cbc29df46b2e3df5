"""The networks that an experiment needs, in a folder: each is trained once, and read from then on."""

import re
from dataclasses import dataclass
from pathlib import Path

import _lock
import _training

from refnet import train
from refnet.arch import Arch
from refnet.datasets import Dataset
from refnet.weights import Checkpoint


@dataclass(frozen=True)
class Shelf:
    """Networks that were trained on one data set with one budget, as FOLDER/NAME-seed0.h5.

    A training that was interrupted goes on where it stopped when its network is asked for again.
    """

    folder: Path
    data: Dataset
    val: Dataset
    epochs: int
    device: str = "cpu"
    threads: int | None = None

    def net(self, name: str, arch: Arch, seed: int, recipe: train.Recipe = train.DEFAULT) -> Checkpoint:
        """The network of that name and seed, trained if need be. Raises as `_training.fit` does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{slug(name)}-seed{seed}.h5"
        with _lock.held(path):
            found = _training.fit(
                path, arch, self.data, self.val, recipe=recipe,
                epochs=self.epochs, seed=seed, device=self.device, threads=self.threads,
            )  # fmt: skip
        assert found is not None  # there is only this process
        return found


def slug(name: str) -> str:
    """A name for a file: letters, digits and hyphens."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
