"""What refnet is raced against: the tests' PyTorch twin, compiled too, as ONNX, under Captum, with a DataLoader.

Each function gives a callable to be timed. It takes its own copy of refnet's parameters in the layout that PyTorch
itself prefers, so that nothing is converted on the clock. ImportError says which package is missing; `CannotRun` why
something that is installed does not run here.
"""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else its compiling processes stay, beside the race

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torchnet

from refnet.arch import Arch, Params
from refnet.images import Draws, Floats
from refnet.train import Recipe

Result = TypeVar("Result")

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class CannotRun(RuntimeError):
    """Why a contender that is installed drops out."""


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings and the prints of compilers and exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def set_precision(name: str) -> None:
    """Of products and convolutions on a GPU; cuDNN tries its algorithms and keeps the fastest."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    torch.backends.cudnn.benchmark = True


def network(arch: Arch, params: Params, layout: str, device: str = "cpu") -> nn.Sequential:
    """The tests' twin with parameters of its own: filters laid out as ``layout`` says, matrices (units, inputs)."""
    net = torchnet.build(arch, params)
    for module in net.children():
        for name, p in module.named_parameters(recurse=False):
            own = (
                p.detach()
                .to(device, copy=True)
                .clone(memory_format=LAYOUTS[layout] if p.ndim == 4 else torch.contiguous_format)
            )
            setattr(module, name, nn.Parameter(own))
    return net


def images(x: np.ndarray, layout: str, device: str = "cpu") -> Tensor:
    """refnet's images (N, H, W, C) as PyTorch's (N, C, H, W), in a layout."""
    return laid_out(torchnet.nchw(x).to(device), layout)


def laid_out(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=LAYOUTS[layout])


def compiled(net: nn.Module, **options: bool) -> nn.Module:
    """torch.compile for this shape; the compiler runs at the first call, which `first` makes."""
    torch._dynamo.config.recompile_limit = 1000  # over all parts; beyond it, PyTorch runs eager without a word
    return torch.compile(net, dynamic=False, options=options)


def first(run: Callable[[], Result]) -> Result:
    """``run()`` for the first time, which compiles; CannotRun with the first line of what is wrong."""
    try:
        with quietly():
            return run()
    except Exception as error:  # of Dynamo, of Inductor, of the C++ compiler
        raise CannotRun(f"torch.compile: {str(error).strip().splitlines()[0]:.100}") from error


# --------------------------------------------------------------------------------------------------- inference


def predictor(
    arch: Arch, params: Params, x: np.ndarray, layout: str, *, compile: bool = False, device: str = "cpu"
) -> Callable[[], Tensor]:
    """The logits of x, in evaluation mode and without autograd."""
    net, tensor = network(arch, params, layout, device), images(x, layout, device)
    if compile:
        net = compiled(net)

    @torch.no_grad()
    def run() -> Tensor:
        return net(tensor)

    if compile:
        first(run)
    return run


def onnx_predictor(arch: Arch, params: Params, x: np.ndarray, *, threads: int) -> Callable[[], np.ndarray]:
    """The logits of x from ONNX Runtime on the CPU.

    Normalisation is exported as PyTorch writes it, with pools: ONNX's own LRN is slower here.
    """
    import onnx  # noqa: F401  the exporter needs it; without, this names it
    import onnxruntime

    tensor = images(x, "contiguous")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, quietly():
        file = str(Path(folder, "net.onnx"))
        net = network(arch, params, "contiguous")
        torch.onnx.export(net, (tensor,), file, dynamo=False, opset_version=17, input_names=["x"])
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    array = tensor.numpy()
    return lambda: session.run(None, {"x": array})[0]


# ---------------------------------------------------------------------------------------------------- training


class Trainer:
    """Training steps by refnet's recipe, with PyTorch's fused SGD, its fastest on a CPU."""

    def __init__(
        self,
        arch: Arch,
        params: Params,
        layout: str,
        *,
        recipe: Recipe,
        rate: float,
        compile: bool = False,
        device: str = "cpu",
    ) -> None:
        self.net, self.clip = network(arch, params, layout, device), recipe.clip
        # Layouts that Inductor chooses give gradients of 0 below a convolution, relu and pool (PyTorch 2.13, CPU).
        self.forward = compiled(self.net, layout_optimization=False) if compile else self.net
        weights, biases = (
            [p for name, p in self.net.named_parameters() if name.endswith(end)] for end in ("weight", "bias")
        )
        groups = [{"params": weights, "weight_decay": recipe.decay}, {"params": biases}]
        self.optimizer = torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, fused=True)
        self.filters = [w for w in weights if w.ndim == 4]

    def step(self, x: Tensor, labels: Tensor, *, dropout: bool = True) -> float:
        """One minibatch; the loss before the update."""
        self.forward.train(dropout)
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.forward(x), labels)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for w in self.filters:
                w *= (self.clip / w.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()).clamp(max=1)
        return loss.item()

    def params(self) -> Params:
        """In refnet's layout."""
        return torchnet.params_of(self.net)

    def grads(self) -> Params:
        """Of the last step, in refnet's layout."""
        return torchnet.params_of(self.net, grad=True)


# ----------------------------------------------------------------------------------------- deconvnet, occlusion


def deconvolution(
    arch: Arch, params: Params, x: np.ndarray, layout: str, *, device: str = "cpu"
) -> Callable[[tuple[int, int, int]], Floats]:
    """Captum's deconvnet for one image x (1, H, W, C): (row, column, map) of the last layer, from 1, to (H, W, C)."""
    from captum.attr import NeuronDeconvolution

    net, image = network(arch, params, layout, device), images(x, layout, device).requires_grad_()
    captum = NeuronDeconvolution(net, net[-1])

    def attribute(cell: tuple[int, int, int]) -> Floats:
        row, col, m = cell
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says each time that it sets hooks
            return torchnet.nhwc(captum.attribute(image, (m, row, col)))[0]

    return attribute


def occluder(
    arch: Arch, params: Params, x: np.ndarray, layout: str, *, layer: str, map: int, square: int, batch: int = 32
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Whole forward runs of one image x (H, W, C) behind squares of 0 at places (S, 2), a batch at a time.

    Gives the probabilities (S, classes) and the activity (S,) of a map of ``layer``.
    """
    net = network(arch, params, layout)
    cut = list(net._modules).index(layer) + 1
    below, above, image = net[:cut], net[cut:], torchnet.nchw(x[None])

    @torch.no_grad()
    def run(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, activity = [], []
        for start in range(0, len(places), batch):
            some = places[start : start + batch].tolist()
            occluded = laid_out(image.repeat(len(some), 1, 1, 1), layout)
            for each, (row, col) in zip(occluded, some, strict=True):
                each[:, row : row + square, col : col + square] = 0
            y = below(occluded)
            activity.append(y[:, map].sum(dim=(1, 2)))
            probabilities.append(above(y).softmax(dim=1))
        return torch.cat(probabilities).numpy(), torch.cat(activity).numpy()

    return run


# ------------------------------------------------------------------------------------------------- photographs


class Photographs(Dataset):
    """(crop (C, size, size), label) from image files, as torchvision's transforms make it with Pillow.

    ``colour`` is the mean that is subtracted, one value for each channel. With ``draws`` the crops are those of
    refnet's `Augment`, else the centre's. A worker process unpickles this, so it holds nothing but data.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: np.ndarray,
        *,
        side: int,
        size: int,
        colour: Floats,
        scale: float,
        draws: Draws | None = None,
    ) -> None:
        self.files, self.labels, self.draws = list(files), labels, draws
        self.side, self.size, self.colour, self.scale = side, size, colour, np.float32(scale)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        with Image.open(self.files[i]) as file:
            file.draft("RGB", (2 * self.side, 2 * self.side))  # as refnet does: large files at a half or less
            image = file.convert("RGB")
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short)).resize((self.side,) * 2, Image.Resampling.BILINEAR)
        image = self._centre(image) if self.draws is None else self._drawn(image, *(each[i] for each in self.draws))
        x = (np.asarray(image) - self.colour) * self.scale
        return torch.from_numpy(x.transpose(2, 0, 1).copy()), int(self.labels[i])

    def _centre(self, image: Image.Image) -> Image.Image:
        start = (self.side - self.size) // 2
        return image.crop((start, start, start + self.size, start + self.size))

    def _drawn(self, image: Image.Image, box: np.ndarray, mirror: bool, colour: Floats) -> Image.Image:
        row, col, height, width = box.tolist()
        image = image.crop((col, row, col + width, row + height)).resize((self.size,) * 2, Image.Resampling.BILINEAR)
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        brightness, contrast, saturation = colour.tolist()
        for enhance, factor in (
            (ImageEnhance.Color, saturation), (ImageEnhance.Contrast, contrast), (ImageEnhance.Brightness, brightness),
        ):  # fmt: skip
            if factor != 1:
                image = enhance(image).enhance(factor)
        return image


def batches(photographs: Photographs, *, batch: int, workers: int) -> DataLoader:
    """Batches in the files' order, from worker processes that stay for the next pass."""
    return DataLoader(photographs, batch, num_workers=workers, persistent_workers=True, multiprocessing_context="spawn")
