"""See what the maps of a network have learnt (Figure 2), and its layer-1 filters.

For each map the strongest activations over the data are projected down to pixels by the deconvnet, beside the image
patches that caused them. Writes to the folder OUT: LAYER.png for each layer, features.png with all of them,
filters.png, and features.h5 and features.json with the numbers.

examples:
  python tools/visualize.py weights/scenes.h5 --out out/scenes
  python tools/visualize.py weights/imagenette-small.h5 --data imagenette --layers conv2,conv5 --maps 9 --out out/i
"""

import argparse
import json
from pathlib import Path

import _cli
import _sheets
import h5py

from refnet import datasets, models, top, weights
from refnet.arch import Arch, Conv, flat
from refnet.backend import find_device
from refnet.deconv import RULES
from refnet.experiments import fig2


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, help="folder of classes; its val/ if there is one (default: scenes)")
    parser.add_argument("--layers", help="names, separated by commas (default: all with --start)")
    parser.add_argument(
        "--start", default="rectified", choices=("rectified", "pooled"),
        help="where in each convolution's stage: its rectified output, or the stage's last layer (default rectified)",
    )  # fmt: skip
    parser.add_argument("--maps", type=int, default=16, help="maps of each layer, drawn at random (default 16)")
    parser.add_argument("--top", type=int, default=9, help="activations of each map (default 9)")
    parser.add_argument("--repeat-images", action="store_true", help="allow several activations from one image")
    parser.add_argument("--rules", default="deconv", choices=tuple(RULES), help="of the way down (default deconv)")
    parser.add_argument("--images", type=int, help="look at so many images only, evenly over the classes")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of maps (default 0)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if need be")
    args = parser.parse_args()
    _cli.check_counts(args, "maps", "top", "images", "threads")
    checkpoint = weights.load(args.weights)
    arch = checkpoint.arch
    layers = list(dict.fromkeys(args.layers.split(","))) if args.layers else starts(arch, args.start)
    for layer in layers:
        arch.index(layer)  # an unknown name must not wait for the data
    args.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load_whole(args.data, side=checkpoint.mean.shape[0], seed=checkpoint.seed)
    data = data if args.images is None else data.first(args.images)
    with _cli.progress(len(data)) as progress:
        features = fig2.run(
            checkpoint, data, layers=layers, maps=args.maps, top=args.top, one_per_image=not args.repeat_images,
            rules=RULES[args.rules], seed=args.seed, device=find_device(args.device), threads=args.threads,
            progress=progress,
        )  # fmt: skip
    for each in features:
        _sheets.layer(each).save(args.out / f"{each.layer}.png")
    _sheets.figure(features).save(args.out / "features.png")
    first = next((layer.name for layer in arch.layers if isinstance(layer, Conv)), None)
    if first is not None and arch.input[2] == 3:
        _sheets.filters(checkpoint.params[first]["w"]).save(args.out / "filters.png")
    numbers(args, features, data)
    _cli.report_skipped(data)
    print(args.out / "features.png")


def starts(arch: Arch, start: str) -> list[str]:
    """Where the walk down starts, in the stage of every convolution."""
    if start == "rectified":
        return top.rectified(arch)
    convolutions = {layer.name for layer in flat(arch.layers) if isinstance(layer, Conv)}
    return [end for begins, end in models.stage_ends(arch).items() if begins in convolutions]


def numbers(args: argparse.Namespace, features: list[top.LayerFeatures], data: datasets.Dataset) -> None:
    """features.h5 has every array, features.json what each activation is and where it was found."""
    choices = {
        "weights": str(args.weights), "data": str(args.data or "scenes"), "images": len(data), "rules": args.rules,
        "start": args.layers or args.start,
        "one_per_image": not args.repeat_images, "map_seed": args.seed, "contrast": top.CONTRAST,
    }  # fmt: skip
    with h5py.File(args.out / "features.h5", "w") as file:
        file.attrs.update(choices)
        for each in features:
            group = file.create_group(each.layer)
            arrays = {"maps": each.maps, "boxes": each.boxes, **vars(each.strongest)}
            for name, array in {**arrays, "projections": each.projections, "patches": each.patches}.items():
                group.create_dataset(name, data=array, compression="gzip" if array.ndim > 3 else None)
    listed = {
        each.layer: [
            {
                "map": int(each.maps[k]),
                "top": [
                    {
                        "image": data.names[best.image[k, i]], "value": float(best.value[k, i]),
                        "row": int(best.row[k, i]), "column": int(best.col[k, i]), "box": each.boxes[k, i].tolist(),
                    }
                    for i in range(best.image.shape[1]) if best.image[k, i] >= 0
                ],
            }
            for best in [each.strongest] for k in range(len(each.maps))
        ]
        for each in features
    }  # fmt: skip
    (args.out / "features.json").write_text(json.dumps({**choices, "layers": listed}, indent=1) + "\n")


if __name__ == "__main__":
    _cli.run(main)
