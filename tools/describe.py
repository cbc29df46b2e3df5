"""Print what a refnet weights file or checkpoint holds, after verifying its checksum.

example:
  python tools/describe.py weights/scenes.h5
  python tools/describe.py weights/scenes.h5 --json
"""

import json
import os
from typing import Any

import _cli
import h5py
import numpy as np

from refnet import weights


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("file", help="what refnet's training or weights.save wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    checkpoint = weights.load(args.file)
    facts = {"file": file_facts(args.file), **checkpoint_facts(checkpoint)}
    print(json.dumps(facts) if args.json else as_text(checkpoint, facts))


def file_facts(path: str) -> dict[str, Any]:
    """What `weights.load` leaves out: the file's size, its checksum and the dtypes it stores."""
    with h5py.File(path, "r", locking=False) as file:
        dtypes = {array.dtype.name for layer in file["params"].values() for array in layer.values()}
        checksum = file.attrs["sha256"].decode()
    return {"path": path, "bytes": os.path.getsize(path), "sha256": checksum, "dtypes": sorted(dtypes)}


def checkpoint_facts(checkpoint: weights.Checkpoint) -> dict[str, Any]:
    """Everything but the arrays themselves, as JSON takes it."""
    return {
        "arch": json.loads(checkpoint.arch.to_json()),
        "parameters": checkpoint.arch.param_count(),
        "classes": checkpoint.classes,
        "mean": {"shape": checkpoint.mean.shape, "colours": checkpoint.mean.mean((0, 1)).tolist()},
        "scale": checkpoint.scale,
        "colour_order": checkpoint.colour_order,
        "input_range": checkpoint.input_range,
        **weights.CONVENTIONS,
        "recipe": checkpoint.recipe,
        "seed": checkpoint.seed,
        "epoch": checkpoint.epoch,
        "finished": checkpoint.finished,
        "resumable": checkpoint.optimizer is not None,
        "history": {name: span(values) for name, values in checkpoint.history.items() if values},
        "layers": {
            layer: {name: statistics(array) for name, array in each.items()}
            for layer, each in checkpoint.params.items()
        },
    }


def span(values: list[float]) -> dict[str, float | None]:
    """The last, lowest and highest of one value per epoch; None where JSON has no number for it."""
    picked = {"last": values[-1], "lowest": min(values), "highest": max(values)}
    return {name: value if np.isfinite(value) else None for name, value in picked.items()}


def statistics(array: np.ndarray) -> dict[str, Any]:
    """Shape, RMS and range; for filters the largest RMS of one, clipped at 0.1 in the paper."""
    squares = np.square(array, dtype=np.float64)
    found: dict[str, Any] = {"shape": array.shape, "rms": float(np.sqrt(squares.mean()))}
    found |= {"min": float(array.min()), "max": float(array.max())}
    if array.ndim == 4:
        found["largest_filter_rms"] = float(np.sqrt(squares.mean((0, 1, 2)).max()))
    return found


def as_text(checkpoint: weights.Checkpoint, facts: dict[str, Any]) -> str:
    """The same facts for a person."""
    file, mean = facts["file"], facts["mean"]
    state = "finished" if checkpoint.finished else "unfinished"
    if checkpoint.optimizer is not None:
        state += ", can be resumed"
    colours = " ".join(f"{value:.1f}" for value in mean["colours"])
    rows = {
        "file": f"{file['path']}, {file['bytes']:,} bytes, stored as {' '.join(file['dtypes'])}",
        "sha256": f"{file['sha256']} (verified)",
        "classes": f"{len(checkpoint.classes):,} names {shortened(checkpoint.classes)}",
        "colours": f"{checkpoint.colour_order}, 0..{checkpoint.input_range:g}",
        "scale": f"(pixel - mean) x {checkpoint.scale:g}",
        "mean": f"{'x'.join(map(str, mean['shape']))}, {colours} on average",
        "padding": facts["padding_rule"],
        "LRN alpha": facts["lrn_alpha"],
        "layouts": "filters by row, column, map, filter; maps flattened by row, column, map",
        "recipe": json.dumps(checkpoint.recipe),
        "training": f"{checkpoint.epoch} epochs, {state}, seed {checkpoint.seed}",
    }
    lines = [str(checkpoint.arch), "", *(f"{name:<10}{value}" for name, value in rows.items())]
    return "\n".join([*lines, "", *history_table(facts["history"]), *layer_table(facts["layers"])])


def shortened(names: tuple[str, ...], most: int = 20) -> str:
    more = f", ... {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def history_table(history: dict[str, dict[str, float | None]]) -> list[str]:
    if not history:
        return []
    lines = [f"{'history':<16}{'last':>12}{'lowest':>12}{'highest':>12}"]
    for name, each in history.items():
        values = ("not finite" if value is None else f"{value:.4g}" for value in each.values())
        lines.append(f"{name:<16}" + "".join(f"{value:>12}" for value in values))
    return [*lines, ""]


def layer_table(layers: dict[str, dict[str, Any]]) -> list[str]:
    names = max(10, 3 + max(map(len, layers), default=0))
    lines = [f"{'array':<{names}}{'shape':>16}{'rms':>11}{'min':>11}{'max':>11}  largest filter rms (paper: 0.1)"]
    for layer, arrays in layers.items():
        for name, each in arrays.items():
            shape = "x".join(map(str, each["shape"]))
            values = "".join(f"{each[key]:>11.4g}" for key in ("rms", "min", "max"))
            filters = f"  {each['largest_filter_rms']:.4g}" if "largest_filter_rms" in each else ""
            lines.append(f"{layer + '.' + name:<{names}}{shape:>16}{values}{filters}")
    return lines


if __name__ == "__main__":
    _cli.run(main)
