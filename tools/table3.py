"""Table 3: train all twelve nets with layers left out or made wider, and set their errors beside the paper's.

All rows have the same recipe and the same budget. Networks and finished rows are kept below --out: an interrupted run
goes on where it stopped, and with more --seeds it adds to what is there.

examples:
  python tools/table3.py --data imagenette --epochs 8 --seeds 3 --out out/imagenette
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _cli
from _shelf import Shelf, slug

from refnet import datasets, train
from refnet.backend import find_device
from refnet.experiments import table3
from refnet.weights import Checkpoint


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of classes, or of train/ and val/ (default: scenes)")
    parser.add_argument("--size", default="mini", choices=tuple(table3.BASES), help="of the nets (default mini)")
    parser.add_argument("--epochs", type=int, default=8, help="of every training (default 8)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores); results don't depend on it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if need be")
    args = parser.parse_args()
    _cli.check_counts(args, "epochs", "seeds", "threads")
    bases, device = table3.BASES[args.size], find_device(args.device)
    sides = {train.image_side(arch) for arch in bases.values()}
    data, val = datasets.load(args.data, side=max(sides))
    shelf = Shelf(args.out / "nets", data, val, args.epochs, device, args.threads)
    kept = Rows(args.out / "table3", {"size": args.size, "epochs": args.epochs, "data": data.digest()})

    def net(name: str, arch: Any, seed: int) -> Checkpoint:
        return shelf.net(f"{args.size} {name}", arch, seed)

    for seed in range(args.seeds):
        todo = [row for row in table3.ROWS if kept.load(row, seed) is None]
        for row, _, errors in table3.run(
            todo, bases, data, val, seeds=[seed], net=net, device=device, threads=args.threads
        ):
            kept.save(row, seed, errors)
            print(f"{row.name}, seed {seed}: {errors.train_top1:.1f} {errors.val_top1:.1f} {errors.val_top5:.1f}")


class Rows:
    """The finished rows of a grid, a file each; of another grid's rows a ValueError is made."""

    def __init__(self, folder: Path, budget: dict[str, Any]) -> None:
        self.folder, self.budget = folder, budget
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, row: table3.Row, seed: int) -> Path:
        return self.folder / f"{slug(row.name)}-seed{seed}.json"

    def load(self, row: table3.Row, seed: int) -> table3.Errors | None:
        path = self.path(row, seed)
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        if found["budget"] != self.budget:
            raise ValueError(f"{path} has {found['budget']}, not {self.budget}: use another --out")
        return table3.Errors(**found["errors"])

    def save(self, row: table3.Row, seed: int, errors: table3.Errors) -> None:
        found = {"row": row.name, "seed": seed, "budget": self.budget, "errors": asdict(errors)}
        self.path(row, seed).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    _cli.run(main)
