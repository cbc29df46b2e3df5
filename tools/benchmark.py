"""Measure refnet against PyTorch, ONNX Runtime and Captum, and against itself; print a table and write JSON.

Every figure is a ratio within one run: the contenders start from the same parameters, must first give the same
result, and then take turns, A B C A B C ..., with the same number of threads. A package that is not installed costs
its rows and nothing else; a missed target is said and does not change the exit status.

With --device cuda refnet runs on a GPU, beside PyTorch with cuDNN on the same one, at the same precision.

examples:
  python tools/benchmark.py --list
  python tools/benchmark.py --device cuda --precision fp32 tf32
  python tools/benchmark.py inference training --repeats 5
  python tools/benchmark.py --data imagenette --images 2000 --full --json out/benchmark.json --markdown
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import _cli
from _bench_cpu import PARTS as CPU_PARTS
from _bench_cpu import ROOT
from _bench_cuda import PARTS as CUDA_PARTS
from _bench_cuda import device_name
from _race import Options, Row
from threadpoolctl import threadpool_info

from refnet.backend import PRECISIONS, cores, find_device

# -------------------------------------------------------------------------------------------------- the report

COLUMNS = {"part": 13, "what": 52, "ours": 19, "peer": 38, "ratio": 9, "spread": 15, "target": 10, "verdict": 0}


def number(figure: float, unit: str) -> str:
    match unit:
        case "x":
            return f"{figure:.2f}x"
        case "":
            return f"{figure:.0e}"
    return f"{figure:.0f} {unit}"


def cells(row: Row) -> list[str]:
    """A row as text, a cell for each of the columns."""
    ratio = "" if row.figure is None else number(row.figure, row.unit)
    spread = "" if row.spread is None else " to ".join(number(each, row.unit).removesuffix("x") for each in row.spread)
    target = "" if row.target is None else f"{'<=' if row.at_most else '>='} {number(row.target, row.unit)}"
    return [row.part, row.what, row.ours, row.peer, ratio, spread, target, row.verdict]


def line(texts: Sequence[str], *, markdown: bool) -> str:
    if markdown:
        return f"| {' | '.join(texts)} |"
    return "  ".join(text.ljust(width) for text, width in zip(texts, COLUMNS.values(), strict=True)).rstrip()


def surroundings() -> dict[str, Any]:
    """Versions, machine and date: what one must know to compare two reports."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages = ("numpy", "pillow", "h5py", "torch", "captum", "onnx", "onnxruntime", "cupy-cuda12x", "cupy-cuda13x")
    blas = [info for info in threadpool_info() if info["user_api"] == "blas"]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "blas": [f"{info['internal_api']} {info['version']} {info.get('architecture', '')}".strip() for info in blas],
        "cpu": cpu_name(),
        "cores": cores(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure (default: everything in --list)")
    parser.add_argument("--list", action="store_true", help="list the parts and what they are measured against")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="that both sides run on")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=PRECISIONS, help="of products on a GPU")
    parser.add_argument("--threads", type=int, help="on both sides (default: all cores)")
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="turns of each contender (default 7)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images, crops, dropout (default 0)")
    parser.add_argument("--data", type=Path, help="folder of classes of JPEGs, for jpeg and small")
    parser.add_argument("--images", type=int, default=Options.images, help="of top9 (default 256)")
    parser.add_argument("--steps", type=int, default=Options.steps, help="of small in each turn (default 40)")
    parser.add_argument("--full", action="store_true", help="occlusion: PyTorch runs all places, not a sample")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "benchmark.json", help="default out/benchmark.json")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args()
    _cli.check_counts(args, "threads", "repeats", "images", "steps")
    parts = CPU_PARTS if args.device == "cpu" else CUDA_PARTS
    if unknown := [name for name in args.parts if name not in parts]:
        raise ValueError(f"there is no part {', '.join(unknown)}; there are {' '.join(parts)}")
    if args.list:
        for name, part in parts.items():
            print(f"{name:<14}{part.__doc__}")
        return
    if args.data is not None and not args.data.is_dir():
        raise ValueError(f"{args.data}: there is no such folder")
    device = find_device(args.device)
    if args.device != "cpu" and device == "cpu":
        raise ValueError("--device auto: no CUDA device answers through CuPy; --device cpu has other parts")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    o = Options(
        args.threads or cores(), args.repeats, args.seed, args.data, args.images, args.steps, args.full, device,
        tuple(args.precision),
    )  # fmt: skip
    report = {**surroundings(), "options": {**asdict(o), "data": str(o.data or "")}, "rows": []}
    if device == "cuda":
        report["gpu"] = device_name()
        print(report["gpu"])
    print(line(list(COLUMNS), markdown=args.markdown), flush=True)
    if args.markdown:
        print(line(["---"] * len(COLUMNS), markdown=True), flush=True)
    for name in args.parts or parts:
        for row in parts[name](o):
            print(line(cells(row), markdown=args.markdown), flush=True)
            report["rows"].append({**asdict(row), "verdict": row.verdict})
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    _cli.run(main)
