"""Images that are in two data sets, found by normalised correlation (section 5)."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from refnet import parallel
from refnet.datasets import Dataset

SIDE = 16  # of the small images that are compared
# Of 1,000 photographs of Caltech, all are found again once made 70 pixels wide and compressed (0.967 and more), and one
# was taken for another of 8,000 (0.974): two blue skies with something small in the middle.
THRESHOLD = 0.95
_BLOCK = 4096


class Pair(NamedTuple):
    """An image of one data set, the image of the other that it is most like, and their correlation, at most 1."""

    image: int
    other: int
    correlation: float


def near_duplicates(
    one: Dataset, other: Dataset, *, threshold: float = THRESHOLD, threads: int | None = None
) -> list[Pair]:
    """The images of ``one`` that are nearly the same as an image of ``other``.

    Each is made `SIDE` pixels wide, its mean is subtracted, and the cosine of the two is their correlation: it sees
    through another size, compression, brightness or contrast, not through another cut. The paper names the method and
    no threshold. Images that cannot be read are like none.
    """
    a, b = (_small(each, threads) for each in (one, other))
    best, where = np.full(len(one), -1.0), np.zeros(len(one), int)
    for part in parallel.cut(len(other), _BLOCK):
        found = a @ b[part].T
        nearest = found.argmax(axis=1)
        value = found[np.arange(len(one)), nearest]
        better = value > best
        best[better], where[better] = value[better], part.start + nearest[better]
    return [Pair(int(i), int(where[i]), float(best[i])) for i in np.flatnonzero(best >= threshold)]


def _small(dataset: Dataset, threads: int | None) -> np.ndarray:
    """Every image as a vector of length 1 and mean 0; zeros for those that cannot be read, or show nothing."""

    def vector(i: int) -> np.ndarray:
        try:
            image = Image.fromarray(dataset.image(i))
        except ValueError:
            return np.zeros(3 * SIDE**2, np.float32)
        small: np.ndarray = np.array(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
        small -= small.mean()
        small /= max(float(np.linalg.norm(small)), 1e-6)
        return small

    return np.stack(parallel.run(vector, range(len(dataset)), threads=threads))
