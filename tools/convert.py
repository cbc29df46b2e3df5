"""Convert weights: other frameworks' files to refnet's HDF5, and refnet's to theirs.

From .onnx, .pt, .pth and .safetensors (torchvision's AlexNet, VGG and SqueezeNet), .keras and Keras's .h5, and
.caffemodel beside its .prototxt; a weights file of refnet's goes to .onnx, .safetensors or Keras's .h5, by DST's name.
What a file does not say of its network's inputs has to be said: --preprocess, or --order, --range, --mean and --std.
A random image and a photograph go through both networks, the source's in onnxruntime, torch, OpenCV (Caffe) or Keras,
if these are installed.

examples:
  python tools/convert.py squeezenet.onnx weights/squeezenet.h5 --preprocess torchvision --side 256
  python tools/convert.py alexnet.pth weights/alexnet.h5 --preprocess torchvision --side 256 --classes names.txt
  python tools/convert.py ZF_faster_rcnn_final.caffemodel weights/zf.h5 --preprocess caffe --until relu5
  python tools/convert.py weights/scenes.h5 scenes.onnx
  python tools/convert.py --check squeezenet.onnx weights/squeezenet.h5
"""

import argparse
from dataclasses import replace
from pathlib import Path

import _cli
import h5py
import numpy as np
from matplotlib.cbook import get_sample_data

from refnet import images, models, weights
from refnet.arch import Arch
from refnet.interop import caffe, check, keras, layouts, onnx, pytorch
from refnet.interop.conventions import PRESETS, Inputs, checkpoint, rgb
from refnet.interop.graph import Network

NETWORKS = {
    "squeezenet1.0": lambda: layouts.squeezenet("1.0", ceil=False),
    "squeezenet1.1": lambda: layouts.squeezenet("1.1", ceil=False),
}


def main() -> None:
    parser = _cli.parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("target", type=Path, metavar="DST")
    parser.add_argument("--preprocess", choices=tuple(PRESETS), help="what the network's inputs are, all at once")
    parser.add_argument("--order", choices=("RGB", "BGR"), help="of colours")
    parser.add_argument("--range", type=float, help="highest value of a pixel, as 1 or 255")
    parser.add_argument("--mean", type=numbers, help="of each colour in that order and range, as 104,117,123")
    parser.add_argument("--std", type=numbers, help="what (pixel - mean) is divided by, for each colour or for all")
    parser.add_argument("--side", type=int, help="resize images to it before the centre is cut (default: no cut)")
    parser.add_argument("--classes", type=Path, help="text file with a class name on each line")
    parser.add_argument("--arch", choices=(*NETWORKS, *models.MODELS), help="of Keras weights without a model")
    parser.add_argument("--until", metavar="LAYER", help="take the network only up to this layer of the source's")
    parser.add_argument("--image", type=Path, help="to compare on, beside a random one (default: matplotlib's Hopper)")
    parser.add_argument("--accept-differences", action="store_true", help="write DST whatever the comparison says")
    parser.add_argument("--check", action="store_true", help="only compare SRC with the DST that was made of it")
    args = parser.parse_args()
    _cli.check_counts(args, "side")
    if is_refnets(args.source):
        export(args)
        return
    try:
        network = read(args)
    except ValueError as error:
        raise ValueError(f"{args.source}: {error}") from None
    if args.check:
        ck = weights.load(args.target)
        stored = ck.recipe.get("imported", {})
        inputs = Inputs(**{key: plain(stored[key]) for key in ("order", "range", "mean", "std") if key in stored})
        compare(args, network, ck, inputs)
        return
    inputs = said(args, network)
    names = args.classes.read_text().splitlines() if args.classes else ()
    source = args.source.name if args.until is None else f"{args.source.name} up to {args.until}"
    ck = checkpoint(network, inputs, side=args.side, classes=names, source=source)
    compare(args, network, ck, inputs)
    weights.save(args.target, ck)
    if not ck.classes:
        _cli.say("it names no classes: --classes, or folders in sorted order will be taken for them")
    print(args.target)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))


def plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def is_refnets(path: Path) -> bool:
    """Whether it is HDF5 of refnet's own."""
    if path.suffix != ".h5" or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r", locking=False) as file:
        return file.attrs.get("format") == np.bytes_(weights.FORMAT)


def read(args: argparse.Namespace) -> Network:
    match args.source.suffix:
        case ".onnx":
            return onnx.read(args.source, args.until)
        case ".pt" | ".pth" | ".safetensors":
            return pytorch.read(args.source, args.until)
        case ".h5" | ".keras":
            return keras.read(args.source, named(args.arch), args.until)
        case ".caffemodel":
            return caffe.read(args.source, args.until)
    raise ValueError("the name must end with .onnx, .pt, .pth, .safetensors, .h5, .keras or .caffemodel")


def named(name: str | None) -> Arch | None:
    if name is None:
        return None
    return NETWORKS[name]() if name in NETWORKS else models.by_name(name)


def said(args: argparse.Namespace, network: Network) -> Inputs:
    """The inputs that were declared, by the file or by flags; printed. ValueError where nothing was."""
    flags = {key: getattr(args, key) for key in ("order", "range", "mean", "std") if getattr(args, key) is not None}
    if args.preprocess:
        inputs, by = PRESETS[args.preprocess], f"the preset {args.preprocess}"
    elif network.declared:
        inputs, by = Inputs(**network.declared), "the file"
    elif {"order", "range", "mean"} <= flags.keys():
        inputs, by = Inputs(std=(1.0,) * len(flags["mean"])), "flags"
    else:
        raise ValueError(
            f"{args.source}: it does not say what its inputs are; say it with --preprocess "
            f"{'|'.join(PRESETS)}, or with --order, --range and --mean"
        )
    if len(flags.get("std", ())) == 1:
        flags["std"] *= len(flags.get("mean", inputs.mean))
    inputs = replace(inputs, **flags)
    colours = " ".join(f"{each:g}" for each in inputs.mean)
    spread = " ".join(f"{each:g}" for each in inputs.std)
    _cli.say(f"inputs, by {by}: {inputs.order} of 0..{inputs.range:g}, less {colours}, over {spread}")
    return inputs


def compare(args: argparse.Namespace, network: Network, ck: weights.Checkpoint, inputs: Inputs) -> None:
    """Print the largest difference at every layer; ValueError where one is too large."""
    try:
        run = check.runner(args.source, network, args.until)
        found = check.differences(network, ck, inputs, run, compared(args.image, ck.arch))
    except ValueError as error:
        if args.check:
            raise ValueError(f"{args.source}: it cannot be compared: {error}") from None
        _cli.say(f"not compared: {error}")
        return
    width = max(map(len, found), default=0)
    for layer, each in found.items():
        print(f"{layer:<{width}}  {each:.1e}")
    largest = check.worst(found)
    if not largest <= check.MOST and not args.accept_differences:
        raise ValueError(
            f"{args.source}: outputs differ by {largest:.1e} of their largest value, {check.MOST:g} are allowed; "
            "--accept-differences takes it as it is"
        )


def compared(image: Path | None, arch: Arch) -> np.ndarray:
    """A random image and a photograph; of another shape than a square, two random ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *arch.input)).astype(np.uint8)
    if arch.input[0] == arch.input[1] and arch.input[2] == 3:
        photograph = image or Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
        pixels[1] = images.square(images.decode(photograph), arch.side)
    return pixels


def export(args: argparse.Namespace) -> None:
    said_already = [name for name, value in vars(args).items() if value and name not in ("source", "target")]
    if said_already:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in said_already)
        raise ValueError(f"{args.source} is refnet's own and says all about itself: leave out {options}")
    ck = weights.load(args.source)
    writers = {".onnx": onnx.write, ".safetensors": pytorch.write, ".h5": keras.write}
    if args.target.suffix not in writers:
        raise ValueError(f"{args.target}: the name must end with {', '.join(writers)}")
    if (ck.colour_order, ck.input_range) != ("RGB", 255) and args.target.suffix == ".h5":
        weights.save(args.target, rgb(ck))  # not Keras's: refnet's own, as it reads images
    else:
        writers[args.target.suffix](args.target, ck)
        if np.ptp(ck.mean, axis=(0, 1)).any():
            _cli.say("the mean is written as one value for each colour, not for each pixel")
    print(args.target)


if __name__ == "__main__":
    _cli.run(main)
