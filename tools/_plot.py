"""One style for all curves and maps: colours that colour-blind readers can tell apart, and legible in a README."""

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, black last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
SEQUENTIAL = "cividis"  # maps of one sign
DIVERGING = "PuOr"  # maps around 0
QUALITATIVE = "tab20"  # maps of labels

matplotlib.rcParams.update(
    {
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "image.cmap": SEQUENTIAL,
        "image.interpolation": "nearest",
        "legend.frameon": False,
    }
)


def figure(
    rows: int = 1, columns: int = 1, *, width: float = 8, height: float = 3, **options: Any
) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes, (rows, columns); ``options`` are those of `Figure.subplots`."""
    made = Figure(figsize=(width, height))
    return made, made.subplots(rows, columns, squeeze=False, **options)


def bare(axes: Axes) -> Axes:
    """Axes of a picture: no ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes
