"""What every tool does alike: the parser from the module's docstring, and one line for a user's mistake.

A tool starts with ``import _cli`` before anything of refnet, so that it runs from any folder without being
installed, and ends with ``if __name__ == "__main__": _cli.run(main)``.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

import refnet
from refnet import datasets, weights
from refnet.datasets import Dataset
from refnet.duplicates import near_duplicates
from refnet.weights import Checkpoint

STATUSES = """exit status:
  0 when it is done; 2 for a mistake in what it was given, with one line on stderr; 128 + n when signal n stopped it;
  1 for anything else"""


class Parser(argparse.ArgumentParser):
    """Says a mistake as `run` does."""

    def error(self, message: str) -> NoReturn:
        """One line, and status 2."""
        self.exit(2, f"{self.prog}: {message}; --help lists what it takes\n")


def parser(doc: str | None) -> Parser:
    """A parser with --help from a tool's docstring, and --version.

    Parameters
    ----------
    doc : the first paragraph describes the tool; the rest, with the examples, comes after the options.
    """
    description, _, examples = (doc or "").partition("\n\n")
    made = Parser(
        description=description, epilog=f"{examples}\n{STATUSES}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--version", action="version", version=f"%(prog)s, refnet {refnet.__version__}")
    return made


def experiment(doc: str | None) -> Parser:
    """The parser of an experiment on a weight file and data; `load` reads both."""
    made = parser(doc)
    made.add_argument("weights", type=Path)
    made.add_argument("--data", type=Path, help="folder of classes; its val/ if there is one (default: scenes)")
    made.add_argument("--images", type=int, help="look at so many images only, evenly over the classes")
    common(made)
    return made


def training(doc: str | None) -> Parser:
    """The parser of an experiment that trains its networks, or finds them where an earlier one has left them."""
    made = parser(doc)
    made.add_argument("--data", type=Path, help="folder of classes, or of train/ and val/ (default: scenes)")
    made.add_argument("--size", default="mini", choices=("mini", "paper"), help="of the networks (default mini)")
    made.add_argument("--epochs", type=int, default=8, help="of every training (default 8)")
    common(made)
    return made


def common(made: argparse.ArgumentParser) -> None:
    """What all experiments can be told."""
    made.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default 0)")
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    made.add_argument("--threads", type=int, help="CPU threads (default: all cores); results don't depend on it")
    made.add_argument("--out", type=Path, required=True, help="folder to write to; made if need be")
    made.add_argument("--json", action="store_true", help="print what OUT's JSON has, an object a line")


def load(args: argparse.Namespace) -> tuple[Checkpoint, Dataset]:
    """The network and the data of an experiment."""
    checkpoint = weights.load(args.weights)
    data = datasets.load_whole(
        args.data, side=checkpoint.mean.shape[0], seed=checkpoint.seed, classes=checkpoint.classes or None
    )
    return checkpoint, data if args.images is None else data.first(args.images)


def transfer(made: argparse.ArgumentParser, *, k: str) -> None:
    """What the experiments on another data set can be told; `load_transfer` reads what they need."""
    made.add_argument("--known", type=Path, help="the network's own training images: near-duplicates are left out")
    made.add_argument("--without", default="", metavar="CLASS,...", help="classes to leave out, as BACKGROUND_Google")
    made.add_argument("--k", default=k, help=f"training images of each class (default {k})")
    made.add_argument("--folds", type=int, default=5, help="random splits (default 5)")
    made.add_argument("--test", type=int, default=50, help="test images of each class at the most (default 50)")
    made.add_argument("--penalty", type=float, help="of the classifier's weights (default: by cross-validation)")


def load_transfer(args: argparse.Namespace) -> tuple[Checkpoint, Dataset, int]:
    """The network, all images of a folder of other classes, and how many near-duplicates were left out of them."""
    checkpoint = weights.load(args.weights)
    side = checkpoint.mean.shape[0]
    data = datasets.everything(args.data, side=side, without=tuple(filter(None, args.without.split(","))))
    data = data if args.images is None else data.first(args.images)
    if args.known is None:
        return checkpoint, data, 0
    known, _ = datasets.load(args.known, side=side, seed=checkpoint.seed)  # the part that it was trained on
    again = {pair.image for pair in near_duplicates(data, known, threads=args.threads)}
    return checkpoint, data.subset(i for i in range(len(data)) if i not in again), len(again)


def whole_numbers(name: str, text: str) -> list[int]:
    """Numbers above 0 from "15,30"; ValueError for anything else."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ValueError(f"{name} is {text!r}, it needs numbers above 0, separated by commas")
    return found


def picked(names: str, data: Dataset) -> list[int]:
    """Indices of images given by number, or by a name or its end."""
    chosen = []
    for name in names.split(","):
        fits = [int(name)] if name.isdigit() else [i for i, each in enumerate(data.names) if each.endswith(name)]
        if len(fits) != 1 or fits[0] >= len(data):
            raise ValueError(f"--pick has {name!r}; it needs the end of one image's name, or 0 to {len(data) - 1}")
        chosen += fits
    return chosen


def plain(name: str) -> str:
    """A class's name without the number that ImageNet gives it."""
    return re.sub(r"^n\d{8}_", "", name).replace("_", " ")


@contextmanager
def progress(total: int, what: str = "", unit: str = "image") -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; gives what to call with the number done."""
    with tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        yield show


def check_counts(args: argparse.Namespace, *names: str) -> None:
    """ValueError unless each of these arguments is 1 or more, or was not given, and the seed 0 or more."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, it needs 1 or more")
    if getattr(args, "seed", 0) < 0:
        raise ValueError(f"--seed is {args.seed}, it needs 0 or more")


def say(text: str) -> None:
    """A line for the person at the screen; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def report_skipped(*data: Dataset) -> None:
    """Name and count the files that are no images, on stderr."""
    skipped = {name: why for each in data for name, why in each.skipped.items()}
    for name, why in skipped.items():
        say(f"skipped {name}: {why}")
    if skipped:
        say(f"{len(skipped)} files skipped")


def run(main: Callable[[], None]) -> NoReturn:
    """Call ``main`` and exit: 0; 2 and one line on stderr for a user's mistake; 130 when interrupted.

    A user's mistakes are ValueError (refnet's, for values, files and shapes) and OSError (missing files, full
    disks). Every other exception is a bug and keeps its traceback.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # also what --help has printed
    except BrokenPipeError:  # "| head" has seen enough; the flush at Python's exit must not fail once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None
        text = f"{error.filename}: {error.strerror}" if named else str(error)
        print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"{Path(sys.argv[0]).name}: out of memory ({error}); try a smaller --batch", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
