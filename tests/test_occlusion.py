"""Occlusion (section 4.2, Figure 7): every place of the square against the whole network on the occluded image."""

import numpy as np
import pytest
from fixtures import FLAT, FORKED, OBLONG, assert_near, bits, drawn, images_for, params_of

from refnet import models, net, occlusion
from refnet.arch import Arch, Conv, Dropout, Linear, Norm, Pool, Relu
from refnet.geometry import Window, conv_size, pool_size
from refnet.ops.loss import softmax

TINY, MINI = models.TINY, models.MINI

# Krizhevsky's: normalise, then pool without a rest; two groups; the last layers see more than the image is wide.
OLD = Arch("old", (43, 43, 3), (
    Conv("conv1", 6, 11, stride=4), Relu("relu1"), Norm("norm1", alpha=0.5), Pool("pool1", ceil=False),
    Conv("conv2", 8, 5, pad=2, groups=2), Relu("relu2"), Norm("norm2", alpha=0.5), Pool("pool2", 2, 1, ceil=False),
    Conv("conv3", 6, 3, pad=1, groups=2), Relu("relu3"),
    Linear("fc6", 7), Relu("relu6"), Dropout("drop6"), Linear("fc7", 5),
))  # fmt: skip

# Regions of negative values, padded and hanging over both edges by different widths.
SIGNED = Arch("signed", (16, 19, 3), (
    Conv("conv1", 5, 4, pad=3), Pool("pool1", 4, 3, pad=2), Conv("conv2", 4, 2), Pool("pool2", 2, 2), Linear("fc3", 4),
))  # fmt: skip

# Steps wider than the windows, so that many pixels are seen by none; no pool.
GAPS = Arch("gaps", (18, 23, 3), (
    Conv("conv1", 4, 2, stride=4), Relu("relu1"), Conv("conv2", 4, 1, stride=2), Relu("relu2"),
    Conv("conv3", 3, 3, pad=2), Linear("fc4", 4),
))  # fmt: skip

ARCHS = [TINY, OBLONG, OLD, SIGNED, GAPS, FORKED]
every_arch = pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.name)
pytestmark = pytest.mark.usefixtures("dirty_memory")


def case(arch, dtype="float64"):
    """Parameters and a read-only image."""
    (x,) = images_for(arch, 1, dtype=dtype)
    x.flags.writeable = False
    return params_of(arch, dtype=dtype), x


def occluded(x, square, step, fill=0.0):
    """The image with the square at every place, row by row (R C, H, W, 3)."""
    images = []
    for row in range(0, x.shape[0] - square + 1, step):
        for col in range(0, x.shape[1] - square + 1, step):
            image, behind = x.copy(), (slice(row, row + square), slice(col, col + square))
            image[behind] = np.broadcast_to(fill, x.shape)[behind]
            images.append(image)
    return np.stack(images)


def assert_as_recomputed(arch, params, x, *, tolerance=1e-12, square, step, fill=0.0, **options):
    """The sweep is what the whole network makes of every occluded image."""
    got = occlusion.slide(arch, params, x, square=square, step=step, fill=fill, **options)
    images = occluded(x, square, step, fill)
    grid = [len(range(0, side - square + 1, step)) for side in arch.input[:2]]
    assert [len(got.rows), len(got.cols)] == grid
    logits = net.predict(arch, params, images)
    maps = net.predict(arch, params, images, stop=got.layer)[..., got.map]
    assert_near(got.logits, logits.reshape(*grid, -1), tolerance, "logits")
    assert_near(got.activity, maps.sum(axis=(1, 2)).reshape(grid), tolerance, "activity")
    assert got.logits.dtype == got.activity.dtype == x.dtype
    return got


# ------------------------------------------------------------------------------------- as recomputed


@every_arch
@pytest.mark.parametrize("square, step", [(4, 2), (1, 3), (3, 5), (9, 1)])
def test_every_place_is_as_the_whole_network_sees_it(arch, square, step):
    assert_as_recomputed(arch, *case(arch), square=square, step=step, fill=0.7)


@every_arch
def test_a_square_over_the_whole_image_and_one_a_pixel_smaller(arch):
    side = min(arch.input[:2])
    for square in (side, side - 1):
        assert_as_recomputed(arch, *case(arch), square=square, step=1, fill=-0.3)


@every_arch
def test_every_pixel_alone(arch):
    assert_as_recomputed(arch, *case(arch), square=1, step=1, fill=3.0)


def test_a_batch_of_squares_that_no_window_sees():
    blind = Arch("blind", (3, 130, 1), (Conv("conv1", 2, 2, stride=3), Linear("fc2", 3)))  # to the last row
    got = assert_as_recomputed(blind, *case(blind), square=1, step=1)
    assert got.labels.size > 3 * occlusion._BATCH
    assert_near(got.logits[2], np.broadcast_to(got.base_logits, (130, 3)), 1e-12)


@every_arch
def test_the_activity_of_every_layer_of_maps(arch):
    params, x = case(arch)
    for layer, shape in arch.shapes().items():
        if len(shape) == 3:
            got = assert_as_recomputed(arch, params, x, square=5, step=4, fill=0.5, layer=layer)
            last = assert_as_recomputed(arch, params, x, square=5, step=4, fill=0.5, layer=layer, map=shape[2] - 1)
            assert (got.layer, last.map) == (layer, shape[2] - 1)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
def test_more_places_than_run_at_once(dtype, tolerance):
    got = assert_as_recomputed(MINI, *case(MINI, dtype), tolerance=tolerance, square=9, step=4)
    assert got.labels.size > occlusion._BATCH


@every_arch
def test_in_float32(arch):
    assert_as_recomputed(arch, *case(arch, "float32"), tolerance=1e-5, square=4, step=3)


@pytest.mark.parametrize("shape", [(), (3,), (19, 19, 3), (19, 1, 1)], ids=str)
def test_the_square_may_show_a_value_a_colour_or_an_image(shape):
    fill = drawn(shape or 1, 3).reshape(shape) if shape else 0.25
    got = assert_as_recomputed(TINY, *case(TINY), square=6, step=3, fill=fill)
    black = occlusion.slide(TINY, *case(TINY), square=6, step=3)
    assert np.abs(got.logits - black.logits).max() > 1e-3


@pytest.mark.slow
def test_zfnet():
    params, x = case(models.ZFNET, "float32")
    got = assert_as_recomputed(models.ZFNET, params, x, tolerance=1e-5, square=27, step=49, fill=0.5)
    assert (got.layer, got.logits.shape) == ("relu5", (5, 5, 1000))


# ------------------------------------------------------------------------------------- what a sweep says


def test_where_the_squares_are():
    got = occlusion.slide(OBLONG, *case(OBLONG), square=3, step=4)
    assert got.rows.tolist() == [0, 4, 8] and got.cols.tolist() == [0, 4, 8]  # of 14 x 11: 11 and 8 are the last
    assert (got.logits.shape, got.activity.shape) == ((3, 3, 5), (3, 3))


def test_the_bare_image_and_the_map_with_the_largest_activation():
    params, x = case(TINY)
    got = occlusion.slide(TINY, params, x, square=9, step=5)
    maps = net.predict(TINY, params, x[None], stop="relu2")[0]
    assert (got.layer, got.map) == ("relu2", np.unravel_index(maps.argmax(), maps.shape)[2])
    assert got.map != maps.sum(axis=(0, 1)).argmax()  # so the two rules differ
    assert got.base_activity == pytest.approx(maps[..., got.map].sum(), rel=1e-12)
    assert_near(got.base_logits, net.predict(TINY, params, x[None])[0], 1e-12)


def test_a_square_that_shows_the_image_itself_changes_nothing():
    params, x = case(MINI)
    got = occlusion.slide(MINI, params, x, square=20, step=9, fill=x)
    assert_near(got.logits, np.broadcast_to(got.base_logits, got.logits.shape), 1e-12)
    assert_near(got.activity, np.full(got.activity.shape, got.base_activity), 1e-12)


def test_probabilities_and_labels():
    got = occlusion.slide(TINY, *case(TINY), square=5, step=7, fill=2.0)
    assert_near(got.probabilities, softmax(got.logits.reshape(-1, 10)).reshape(3, 3, 10), 0)
    assert (got.labels == got.probabilities.argmax(axis=2)).all() and got.labels.shape == (3, 3)


def test_without_rectified_maps_the_last_layer_of_maps_is_watched():
    assert occlusion.slide(SIGNED, *case(SIGNED), square=9, step=9).layer == "pool2"


def test_the_same_bits_at_any_number_of_threads():
    params, x = case(MINI, "float32")
    sweeps = [occlusion.slide(MINI, params, x, square=9, step=4, threads=threads) for threads in (1, 2, 3, None)]
    assert len({str(bits({"logits": each.logits, "activity": each.activity})) for each in sweeps}) == 1


# ------------------------------------------------------------------------------------- only what changes


@pytest.fixture
def seen(monkeypatch):
    """Shapes of the maps that `refnet.net.predict` has run on, by the first layer."""
    shapes, predict = {}, net.predict

    def watched(arch, params, x, **options):
        shapes.setdefault(arch.layers[0].name, []).append(x.shape)
        return predict(arch, params, x, **options)

    monkeypatch.setattr(net, "predict", watched)
    return shapes


def test_only_what_the_square_changes_is_computed(seen):
    """A square of 8 meets at most 7 windows of conv1, these 5 of pool1, these 5 of conv2, and from there on all 7."""
    count = occlusion.slide(MINI, *case(MINI), square=8, step=4).labels.size
    for layer, side in {"conv1": 6 * 2 + 7, "pool1": 4 * 2 + 3, "conv2": 4 * 2 + 5, "conv3": 7 + 2}.items():
        windows = [x for x in seen[layer] if x != (1, *MINI.input)]  # without the bare image's
        assert max(x[1:3] for x in windows) == (side, side), layer
        assert sum(x[0] for x in windows) == count, layer  # each place once


@every_arch
def test_layers_see_only_whole_windows(arch, seen):
    """All that a box needs is cut out for it, no cell more: so no layer pads, and no region hangs over the edge."""
    occlusion.slide(arch, *case(arch), square=4, step=3)
    for layer in arch.layers:
        if isinstance(layer, Conv | Pool):
            windows = [x[1:3] for x in seen[layer.name] if x != (1, *arch.input)]
            assert windows and all((n - layer.size) % layer.stride == 0 for hw in windows for n in hw)


@pytest.mark.parametrize(
    "window", [Window(k, s, p) for k in (1, 2, 3, 5) for s in (1, 2, 3) for p in (0, 1, 2)], ids=str
)
def test_changed_outputs_are_those_whose_windows_meet_the_interval(window):
    side, (size, stride, pad) = 9, window
    spans = [(a, b) for a in range(side) for b in range(a + 1, side + 1)]
    first, stop = np.array(spans).T[:, :, None].repeat(2, axis=2)  # rows and columns alike
    for out in {conv_size(side, window), pool_size(side, window, ceil=True)}:
        low, high = occlusion.changed(first, stop, window, (out, out))
        assert (low[:, 0] == low[:, 1]).all() and (high[:, 0] == high[:, 1]).all()
        for i, (a, b) in enumerate(spans):
            met = [o for o in range(out) if o * stride - pad < b and o * stride - pad + size > a]
            assert list(range(low[i, 0], high[i, 0])) == met, (a, b)


def test_boxes_hold_what_has_changed_and_lie_inside():
    first, stop = np.array([(0, 3), (2, 6), (4, 7), (5, 8)]), np.array([(3, 4), (4, 7), (5, 7), (5, 8)])
    corners, size = occlusion.boxes(first, stop, (5, 8))
    assert size == (3, 1)  # 3 rows in the first, a column in the first two
    assert corners.tolist() == [[0, 3], [2, 6], [2, 7], [2, 7]]  # the last has seen no change: any place is right


# ------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    "options, says",
    [
        ({"square": 0}, r"square is 0 and step 7; .* 1 or more"),
        ({"square": 20}, r"square is 20 .* x \(19, 19, 3\) must hold"),
        ({"square": 5, "step": 0}, r"step 0; .* 1 or more"),
        ({"square": 5, "layer": "fc8"}, "layer is 'fc8', it needs one of tiny's layers of maps: conv1 .* pool2"),
        ({"square": 5, "layer": "conv9"}, "layer is 'conv9'"),
        ({"square": 5, "map": 8}, "map is 8, but relu2 has 8 maps, counted from 0"),
        ({"square": 5, "map": -1}, "map is -1, but"),
        ({"square": 5, "fill": np.zeros((2, 3, 4))}, r"fill is \(2, 3, 4\), it must broadcast to x \(19, 19, 3\)"),
        ({"square": 5, "threads": 0}, "threads is 0"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        occlusion.slide(TINY, *case(TINY), **options)


def test_bad_images_and_parameters_are_refused():
    params, x = case(TINY)
    for wrong in (x[None], x[1:], x[..., 0]):
        with pytest.raises(ValueError, match=r"tiny: x is \(.*\), it needs one image \(19, 19, 3\)"):
            occlusion.slide(TINY, params, wrong, square=5)
    with pytest.raises(ValueError, match="layer fc8: there is no parameter 'w'"):
        occlusion.slide(TINY, {name: p for name, p in params.items() if name != "fc8"}, x, square=5)
    with pytest.raises(TypeError, match="float32"):
        occlusion.slide(TINY, params, x.astype("float32"), square=5)


@pytest.mark.parametrize("arch", [FLAT, TINY.upto("pool2")], ids=["no maps", "no units"])
def test_networks_without_maps_or_without_fully_connected_layers_are_refused(arch):
    with pytest.raises(ValueError, match=r"of \d layers have maps; it needs some, and then fully connected ones"):
        occlusion.slide(arch, *case(arch), square=1)
