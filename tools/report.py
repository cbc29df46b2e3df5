"""Make a page to walk through a network in the browser: OUT/index.html opens by double-click and needs no network.

Shows every convolution's maps with what excites them, some images with their occlusion maps, the training, the
experiments found in a folder, and where the weights come from. Epochs kept beside the weights by tools/train.py --keep
become a slider. Without --data it shows drawn scenes to weights that know them, and to others no images.

examples:
  python tools/report.py weights/scenes.h5 --out out/scenes/report
  python tools/report.py weights/imagenette-small.h5 --data imagenette --out out/imagenette/report
"""

import argparse
import glob
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import _cli
import describe
from tqdm import tqdm

from refnet import datasets, scenes, weights
from refnet.backend import find_device
from refnet.report import page


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, help="folder of classes; its val/ if there is one (default: scenes)")
    parser.add_argument("--images", type=int, help="look at so many images only, evenly over the classes")
    parser.add_argument("--samples", type=int, default=12, help="images of the Image tab (default 12)")
    parser.add_argument("--experiments", type=Path, help="folder with pictures (PNG) and numbers (JSON) to show")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if need be")
    args = parser.parse_args()
    _cli.check_counts(args, "images", "samples", "threads")
    checkpoint = weights.load(args.weights)
    kept = [
        weights.load(path) for path in sorted(args.weights.parent.glob(f"{glob.escape(args.weights.stem)}.epoch*.h5"))
    ]
    data = None
    if args.data is not None or set(scenes.CLASSES) <= set(checkpoint.classes):
        data = datasets.load_whole(
            args.data, side=checkpoint.mean.shape[0], seed=checkpoint.seed, classes=checkpoint.classes or None
        )
        data = data if args.images is None else data.first(args.images)
    else:
        _cli.say(f"{args.weights} does not know the drawn scenes: no images are shown without --data")
    about = page.About(
        args.weights.stem,
        {"file": describe.file_facts(str(args.weights)), **describe.checkpoint_facts(checkpoint)},
        commands(args),
        *experiments(args.experiments),
    )
    with Bar() as bar:
        for name, content in page.files(
            checkpoint, data, about, kept=sorted(kept, key=lambda each: each.epoch), sample_count=args.samples,
            device=find_device(args.device), threads=args.threads, progress=bar.show,
        ):  # fmt: skip
            (args.out / name).parent.mkdir(parents=True, exist_ok=True)
            (args.out / name).write_bytes(content)
    if data is not None:
        _cli.report_skipped(data)
    print(args.out / "index.html")


def commands(args: argparse.Namespace) -> list[tuple[str, str]]:
    """What makes this page and its pictures again."""
    data = ["--data", str(args.data)] if args.data else []
    again = shlex.join([str(args.weights), *data])
    return [
        ("this page", f"python tools/report.py {again} --out {shlex.quote(str(args.out))}"),
        ("sheets of the maps, as in Figure 2", f"python tools/visualize.py {again} --out out/look"),
        ("error rates", f"python tools/evaluate.py {again}"),
        ("the facts about the weights", f"python tools/describe.py {shlex.quote(str(args.weights))}"),
        ("a training with kept epochs", "python tools/train.py --keep 1,2,5,10,20,40 --out RUN.h5"),
    ]


def experiments(folder: Path | None) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """NAME.png and the numbers of NAME.json (`_results.save`), by name; of pictures without numbers the picture."""
    if folder is None or not folder.is_dir():
        return [], {}
    pictures = {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    found = []
    for name in sorted({path.stem for path in (*folder.glob("*.png"), *folder.glob("*.json"))}):
        path = folder / f"{name}.json"
        try:
            content = json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            raise ValueError(f"{path}: it is no valid JSON") from None
        content = content if isinstance(content, dict) else {}
        listed = content.get("numbers", [])
        numbers = [row for row in listed if isinstance(row, dict) and "measured" in row]
        pngs = [f"{name}.png"] if f"{name}.png" in pictures else []
        if numbers or pngs:
            how = {key: content[key] for key in ("command", "choices") if key in content}
            found.append({"title": name, "numbers": numbers, "pictures": pngs, **how})
    return found, pictures


class Bar:
    """One progress bar after the other on a terminal, for each thing that is made."""

    def __init__(self) -> None:
        self.what, self.bar = "", tqdm(disable=True)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def show(self, what: str, done: int, total: int) -> None:
        if what != self.what or done < self.bar.n:
            self.bar.close()
            self.what = what
            self.bar = tqdm(desc=what, total=total, dynamic_ncols=True, disable=not sys.stderr.isatty())
        self.bar.update(done - self.bar.n)


if __name__ == "__main__":
    _cli.run(main)
