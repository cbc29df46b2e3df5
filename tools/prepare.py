"""Pack images into a few large HDF5 files that training reads quickly.

SRC is a folder of classes, one with train/ and val/, or a folder with ImageNet 2012 as it is distributed
(ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar). The shorter side is resized and the centre cut, as in the paper.
An interrupted run goes on with the shards that are missing; at the end every checksum is compared.

examples:
  python tools/prepare.py imagenette out/imagenette-packed --side 128
  python tools/prepare.py imagenet out/imagenet --val-labels imagenet/val.txt
  python tools/train.py --data out/imagenet --arch zfnet --recipe paper --out weights/zfnet.h5
"""

import argparse
import json
import sys
import time
from pathlib import Path

import _cli

from refnet import datasets, imagenet, shards
from refnet.datasets import Dataset


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder of images, or with ImageNet's tar files")
    parser.add_argument("dst", type=Path, metavar="DST", help="folder for the shards; made if need be")
    parser.add_argument("--side", type=int, default=256, help="of the square images (default 256)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG, 1 to 95 (default 95)")
    parser.add_argument("--raw", action="store_true", help="store pixels instead of JPEG: larger, and read at once")
    parser.add_argument("--per-shard", type=int, default=1024, help="images in a shard (default 1024)")
    parser.add_argument("--val-labels", type=Path, help="of ImageNet: a line for each validation image")
    parser.add_argument("--synsets", type=Path, help="of ImageNet, where the labels are numbers: the synsets in order")
    parser.add_argument("--seed", type=int, default=0, help="of the split where SRC has no val/ (default 0)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--strict", action="store_true", help="end with status 1 if an image was skipped")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    _cli.check_counts(args, "side", "quality", "per_shard", "threads")
    if args.quality > 95:
        raise ValueError(f"--quality is {args.quality}; it needs 1 to 95, or --raw")
    data = dict(zip(("train", "val"), source(args), strict=True))
    args.dst.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for part, each in data.items():
        with _cli.progress(len(each), f"packing {part}") as progress:
            shards.write(
                args.dst, part, each, quality=None if args.raw else args.quality, per_shard=args.per_shard,
                threads=args.threads, progress=progress,
            )  # fmt: skip
    seconds, count = time.perf_counter() - start, 0
    for part, each in data.items():
        with _cli.progress(len(each), f"verifying {part}") as progress:
            count += shards.verify(args.dst, part, progress=progress)
    _cli.report_skipped(*data.values())
    stored = sum(path.stat().st_size for path in args.dst.glob("*.h5"))
    found = {
        "images": count, "skipped": sum(len(each.skipped) for each in data.values()), "bytes": stored,
        "bytes_per_image": stored / max(count, 1), "seconds": seconds, "images_per_second": count / seconds,
    }  # fmt: skip
    if args.json:
        print(json.dumps(found))
    else:
        print(
            f"{args.dst}: {count} images, {stored / 1e9:.2f} GB, {found['bytes_per_image']:.0f} bytes an image, "
            f"{found['images_per_second']:.0f} images/s"
        )
    if args.strict and found["skipped"]:
        sys.exit(1)


def source(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Training and validation data of SRC."""
    if (args.src / imagenet.TRAIN).exists() or (args.src / imagenet.VAL).exists():
        return imagenet.load(args.src, side=args.side, labels=args.val_labels, synsets=args.synsets)
    return datasets.load(args.src, side=args.side, seed=args.seed, cache_bytes=0)


if __name__ == "__main__":
    _cli.run(main)
