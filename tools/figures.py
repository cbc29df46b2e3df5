"""Every figure and table of the paper, and the controls beyond it, for a weight file and a data folder, in one folder.

Runs the command of each, one after the other; what needs data that are not given is left out, and said to be. Trainings
and features are kept below OUT: an interrupted run goes on where it stopped.

examples:
  python tools/figures.py weights/scenes.h5 --out out/scenes
  python tools/figures.py weights/imagenette-small.h5 --data imagenette --dogs dog_parts --caltech caltech101 \\
    --out out/photos
"""

import argparse
import glob
import shlex
import subprocess
import sys
import time
from pathlib import Path

import _cli

from refnet import scenes, weights

HERE = Path(__file__).parent
SETS = ("dogs", "caltech", "voc")  # data that one experiment each needs


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, help="folder of classes, or of train/ and val/ (default: scenes)")
    parser.add_argument("--dogs", type=Path, help="folder of images with parts.json, for Table 1")
    parser.add_argument("--caltech", type=Path, help="folder of classes to transfer to, for Tables 4, 5 and 7")
    parser.add_argument("--voc", type=Path, help="folder in PASCAL VOC's layout, for Table 6")
    parser.add_argument(
        "--epochs", type=int, default=8, help="of the trainings of Figure 6, Tables 2 and 3 (default 8)"
    )
    parser.add_argument("--only", help="names, separated by commas (default: all)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if need be")
    args = parser.parse_args()
    _cli.check_counts(args, "epochs", "threads")
    steps = commands(args)
    only = args.only.split(",") if args.only else list(steps)
    if unknown := [name for name in only if name not in steps]:
        raise ValueError(f"--only has {', '.join(unknown)}; there are {', '.join(steps)}")
    for name in only:
        step = steps[name]
        if isinstance(step, str):
            _cli.say(f"{name}: left out, {step}")
            continue
        _cli.say(f"{name}: python tools/{shlex.join(step)}")
        start = time.perf_counter()
        done = subprocess.run([sys.executable, HERE / step[0], *step[1:]])
        if done.returncode:
            _cli.say(f"{name} ended with status {done.returncode}; the same command goes on from there")
            sys.exit(done.returncode)
        _cli.say(f"{name}: {time.perf_counter() - start:.0f} s\n")
    print(args.out)


def commands(args: argparse.Namespace) -> dict[str, list[str] | str]:
    """The command of every figure and table, or what it lacks."""
    data = ["--data", str(args.data)] if args.data else []
    where = ["--device", args.device, *(["--threads", str(args.threads)] if args.threads else [])]
    rest = [*where, "--out", str(args.out)]
    known = ["--known", str(args.data)] if args.data else []

    look, budget = [str(args.weights), *data, *rest], [*data, "--epochs", str(args.epochs), *rest]
    steps: dict[str, list[str] | str] = {
        "fig2": ["visualize.py", *look],
        "fig4": ["fig4.py", *look],
        "fig5": ["fig5.py", *look],
        "fig6": ["fig6.py", *budget],
        "fig7": ["fig7.py", *look],
        "table1": ["table1.py", str(args.weights), *(["--dogs", str(args.dogs)] if args.dogs else []), *rest],
        "table2": ["table2.py", *budget],
        "table3": ["table3.py", *budget],
        "transfer": ["transfer.py", str(args.weights), "--data", str(args.caltech), *known, *rest],
        "table6": ["table6.py", str(args.weights), "--data", str(args.voc), *rest],
        "table7": ["table7.py", str(args.weights), "--data", str(args.caltech), *known, *rest],
        "faithful": ["faithful.py", *look],
        "pointing": ["pointing.py", str(args.weights), *rest],
    }
    lacks = {"transfer": "caltech", "table6": "voc", "table7": "caltech"}
    steps |= {name: f"it needs --{what}" for name, what in lacks.items() if getattr(args, what) is None}
    if not list(args.weights.parent.glob(f"{glob.escape(args.weights.stem)}.epoch*.h5")):
        steps["fig4"] = f"{args.weights} has no kept epochs beside it (tools/train.py --keep)"
    if not set(scenes.CLASSES) <= set(weights.load(args.weights).classes):
        if args.data is None:
            raise ValueError(f"{args.weights} does not know the drawn scenes: it needs --data")
        steps["pointing"] = f"{args.weights} does not know the drawn scenes"
    return steps


if __name__ == "__main__":
    _cli.run(main)
