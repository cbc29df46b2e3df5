"""Stream a data set through a network."""

import threading
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise

import numpy as np

from refnet import loader, net
from refnet.backend import Array, array_module, to_host
from refnet.datasets import Dataset
from refnet.ranks import ALONE, Group
from refnet.weights import Checkpoint

# Called with the layer's name, the data set's indices of some images, and the layer's output for them.
Watch = Callable[[str, np.ndarray, Array], object]


def check_input(checkpoint: Checkpoint) -> None:
    """ValueError unless the network was made for images as refnet reads them."""
    if (checkpoint.colour_order, checkpoint.input_range) != ("RGB", 255):
        made_for = f"{checkpoint.colour_order} images of 0..{checkpoint.input_range:g}"
        raise ValueError(
            f"the network was made for {made_for}; images are read as RGB of 0..255: "
            "tools/convert.py makes it one for these"
        )


def stream(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    layer: str | None = None,
    ten_crop: bool = False,
    batch: int = 64,
    watch: Watch | None = None,
    device: str = "cpu",
    group: Group = ALONE,
    threads: int | None = None,
) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """Output of ``layer`` for every image, a batch at a time, from the centre crop or all ten crops.

    Parameters
    ----------
    checkpoint : network, mean and scale
    dataset : images of the mean's side
    layer : name; default the last (logits)
    watch : sees every layer's output for slices of the batch, from several threads (`refnet.net.predict`)
    group : of which this process gets its share of the batches

    Yields
    ------
    y : (n, *shape of the layer), or (n, 10, *shape) with ``ten_crop``
    labels, indices : (n,) int64; bad images are missing
    """
    check_input(checkpoint)
    params = net.on_device(checkpoint.params, device)
    batches = loader.in_order(
        dataset,
        batch=max(1, batch // 10) if ten_crop else batch,
        size=checkpoint.arch.side,
        mean=checkpoint.mean,
        scale=checkpoint.scale,
        ten_crop=ten_crop,
        device=device,
        group=group,
        threads=threads,
    )
    for x, labels, indices in batches:
        flat = x.reshape(-1, *checkpoint.arch.input)
        image = np.repeat(indices, 10) if ten_crop else indices

        def seen(name: str, part: slice, y: Array, image: np.ndarray = image) -> None:
            assert watch is not None
            watch(name, image[part], y)

        y = net.predict(
            checkpoint.arch,
            params,
            flat.astype(checkpoint.dtype, copy=False),
            stop=layer,
            watch=seen if watch is not None else None,
            threads=threads,
        )
        host = to_host(y)
        yield host.reshape(*x.shape[: x.ndim - 3], *host.shape[1:]), labels, indices


def collect(
    checkpoint: Checkpoint,
    dataset: Dataset,
    layers: Sequence[str],
    *,
    reduce: Callable[[Array], Array] = lambda y: y,
    progress: Callable[[int], None] = lambda images: None,
    device: str = "cpu",
    threads: int | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Outputs of some layers for the centre crop of every image, in one pass.

    Parameters
    ----------
    layers : their names
    reduce : what is kept of a layer's output (n, ...) for some images, as `pooled`
    progress : called with the number of images done

    Returns
    -------
    features : layer -> (n, *shape of what is kept), in the images' order
    indices : (n,) of the images that could be read

    Raises
    ------
    ValueError
        If a layer does not exist or no image can be read.
    """
    arch = checkpoint.arch
    last = arch.layers[max(map(arch.index, layers))].name
    found: dict[str, np.ndarray] = {}
    lock = threading.Lock()

    def watch(layer: str, images: np.ndarray, y: Array) -> None:
        if layer not in layers:
            return
        few = to_host(reduce(y))
        with lock:
            whole = found.setdefault(layer, np.empty((len(dataset), *few.shape[1:]), few.dtype))
        whole[images] = few

    good: list[int] = []
    for _, _, indices in stream(checkpoint, dataset, layer=last, watch=watch, device=device, threads=threads):
        good += indices.tolist()
        progress(len(good))
    if not good:
        raise ValueError(f"none of the {len(dataset)} images could be read")
    return {layer: found[layer][good] for layer in layers}, np.array(good)


def pooled(y: Array, *, grid: int = 6) -> Array:
    """Maps y (n, P, Q, M) averaged over the cells of a grid, at most ``grid`` x ``grid``; units (n, M) as they are.

    The cells are of nearly equal size and do not overlap.
    """
    if y.ndim == 2:
        return y
    rows, columns = (np.linspace(0, side, min(side, grid) + 1).round().astype(int) for side in y.shape[1:3])
    cells = [[y[:, a:b, c:d].mean(axis=(1, 2)) for c, d in pairwise(columns)] for a, b in pairwise(rows)]
    xp = array_module(y)
    return xp.stack([xp.stack(row, axis=1) for row in cells], axis=1)
