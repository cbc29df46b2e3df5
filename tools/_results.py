"""What an experiment leaves in its folder: NAME.json, with every number beside the paper's, and the picture NAME.png.

tools/report.py shows them on its page.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

DPI = 150


@dataclass(frozen=True)
class Number:
    """A measured number, +- its standard deviation where it was measured several times, and what the paper has."""

    name: str
    measured: float | str
    plus_minus: float | None = None
    paper: float | str | None = None


def save(
    args: argparse.Namespace,
    name: str,
    numbers: Sequence[Number],
    *,
    choices: Mapping[str, Any],
    detail: Any = None,
    picture: Figure | Image.Image | None = None,
) -> None:
    """Write OUT/NAME.json and OUT/NAME.png, and print the numbers.

    Parameters
    ----------
    args : with ``out``, the folder, and ``json``, to print what goes into the file instead of a table
    choices : every option that the numbers depend on, what the paper leaves open among them
    detail : curves and maps, as JSON can hold them
    """
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "command": shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "choices": {key: str(value) if isinstance(value, Path) else value for key, value in choices.items()},
        "numbers": [asdict(number) for number in numbers],
        **({"detail": detail} if detail is not None else {}),
    }
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    if isinstance(picture, Figure):
        picture.savefig(out / f"{name}.png", dpi=DPI)
    elif picture is not None:
        picture.save(out / f"{name}.png")
    if args.json:
        print(json.dumps({"name": name, **content}))
        return
    if numbers:
        print(as_text(numbers))
    print(out / f"{name}.{'json' if picture is None else 'png'}")


def as_text(numbers: Sequence[Number]) -> str:
    """A table of the numbers, with the paper's in the last column where there are any."""
    rows = [("", "measured", "paper"), *((n.name, _measured(n), _plain(n.paper)) for n in numbers)]
    width = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        f"{name:<{width[0]}}  {here:>{width[1]}}  {there:>{width[2]}}".rstrip() for name, here, there in rows
    )


def _measured(number: Number) -> str:
    return _plain(number.measured) + (f" +- {_plain(number.plus_minus)}" if number.plus_minus is not None else "")


def _plain(value: float | str | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
