"""Walks back in boxes against the walk of whole maps: every layer, every rule, seeds anywhere."""

import numpy as np
import pytest
from fixtures import FLAT, FORKED, OBLONG, assert_near, bits, drawn, images_for, params_of, signal_for

from refnet import boxes, layers, models, net
from refnet.arch import Arch, Conv, Dropout, Linear, Norm, Pool, Relu, SpatialNorm, Windowed, flat
from refnet.boxes import Boxes
from refnet.deconv import GRADIENT, RULES, project, project_cells, seeds
from refnet.geometry import Window, clip_box

pytestmark = pytest.mark.usefixtures("dirty_memory")

TINY = models.TINY
SOME = 9  # images: a seed for each, and one or two to a slice

_WIDTHS = {1: 1 / 4, 2: 1 / 8, 3: 1 / 8, 4: 1 / 8, 5: 1 / 8, 6: 1 / 16, 7: 1 / 16}
MINI = models.widened(models.MINI, _WIDTHS)
# Krizhevsky's groups, regions without ceil, and normalisation before pooling, strong enough to see.
GROUPED = Arch("grouped", (43, 51, 3), (
    Conv("conv1", 4, 7, stride=3), Relu("relu1"), Norm("norm1", alpha=0.2), Pool("pool1", ceil=False),
    Conv("conv2", 8, 5, pad=2, groups=2), Relu("relu2"), Norm("norm2", alpha=0.2), Pool("pool2", ceil=False),
    Conv("conv3", 12, 3, pad=1), Relu("relu3"),
    Conv("conv4", 8, 3, pad=1, groups=2), Relu("relu4"), Pool("pool5", size=2, ceil=False),
    Linear("fc6", 7), Relu("relu6"), Dropout("drop6"), Linear("fc8", 5),
))  # fmt: skip
# Steps larger than the windows, so that cells lie between them; a padded pool that hangs over the edge on both sides.
SPARSE = Arch("sparse", (23, 17, 2), (
    Conv("conv1", 5, 2, stride=3, pad=1), Relu("relu1"), Norm("norm1", n=3, alpha=0.4),
    Pool("pool1", size=3, stride=2, pad=2), Relu("relu2"), Dropout("drop2", 0.25),
    Pool("pool2", size=2, stride=3, pad=1), Conv("conv3", 4, 1), Relu("relu3"),
))  # fmt: skip
# Normalisation within maps below everything, and twice in a row: no convolution blanks what would lie beyond the edge.
LOCAL = Arch("local", (9, 11, 2), (
    SpatialNorm("norm0", 3, alpha=0.3), Conv("conv1", 4, 3, pad=1), Relu("relu1"),
    SpatialNorm("norm1", 5, alpha=0.4, beta=0.5), Relu("relu2"), SpatialNorm("norm2", 3, alpha=0.2),
))  # fmt: skip
# Wide enough for the transformed filters of `refnet.ops.winograd` on the way back.
WIDE = Arch("wide", (35, 33, 3), (
    Conv("conv1", 16, 4, pad=1), Relu("relu1"),
    Conv("conv2", 64, 5, stride=2, pad=1), Relu("relu2"),
    Conv("conv3", 64, 3, pad=1), Relu("relu3"),
))  # fmt: skip

ARCHS = [TINY, OBLONG, SPARSE, GROUPED, MINI, FORKED, LOCAL]
every_place = pytest.mark.parametrize(
    ("arch", "layer"),
    [(arch, layer.name) for arch in [*ARCHS, FLAT] for layer in flat(arch.layers)],
    ids=lambda value: getattr(value, "name", value),
)
every_layer_of_maps = pytest.mark.parametrize(
    ("arch", "layer"),
    [(arch, name) for arch in ARCHS for name, shape in arch.shapes().items() if len(shape) == 3],
    ids=lambda value: getattr(value, "name", value),
)
every_rule = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


def traced(arch, layer, *, training=False, n=SOME, threads=1):
    """Parameters, output and trace of n images up to a layer; in training if dropout comes before it."""
    params, rng = params_of(arch), np.random.default_rng(5) if training else None
    return params, *net.forward(arch, params, images_for(arch, n), stop=layer, rng=rng, threads=threads)


def rules_of(training):
    """Names and rules that a trace serves."""
    return [("gradient", GRADIENT)] if training else list(RULES.items())


def some_cells(hw):
    """The corners, the middles of the edges and the middle of maps: rows and columns."""
    row, col = (np.array([0, n // 2, n - 1]) for n in hw)
    return np.repeat(row, 3), np.tile(col, 3)


def pasted(r, where, hw):
    """Boxes as whole images, zero around; nothing may lie beyond the edge."""
    margin = max(where.size)
    around = np.zeros((len(r), hw[0] + 2 * margin, hw[1] + 2 * margin, r.shape[3]), r.dtype)
    for i, (row, col) in enumerate(where.origin + margin):
        around[i, row : row + where.size[0], col : col + where.size[1]] = r[i]
    whole = around[:, margin:-margin, margin:-margin].copy()
    assert np.count_nonzero(around) == np.count_nonzero(whole)
    return whole


# ------------------------------------------------------------------------------------- the same as on whole maps


@every_place
def test_signals_everywhere_are_walked_back_as_whole_maps(arch, layer):
    params, _, trace = traced(arch, layer)
    signal = signal_for(arch.upto(layer), SOME)
    for name, rules in RULES.items():
        whole = net.back_through(trace, params, signal, rules=rules)
        assert_near(project(trace, params, signal, rules=rules), whole, 1e-12, name)


@every_layer_of_maps
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_seed_in_one_place_is_walked_back_as_in_whole_maps(arch, layer, training):
    if training and not any(isinstance(each, Dropout) for each in flat(arch.upto(layer).layers)):
        return  # it would be the same run again
    params, y, trace = traced(arch, layer, training=training)
    row, col = some_cells(y.shape[1:3])
    image = np.array([7, 1, 4, 8, 0, 3, 6, 2, 5])
    seed = np.zeros_like(y)
    seed[np.arange(SOME), row, col] = drawn((SOME, y.shape[3]), 1)
    for name, rules in rules_of(training):
        whole = net.back_through(trace, params, seed[np.argsort(image)], rules=rules)[image]
        assert whole.any()
        assert_near(project(trace, params, seed, image=image, rules=rules), whole, 1e-12, name)
        for i in (5, 8):  # alone, so that its box has its own size
            alone = project(trace, params, seed[i : i + 1], image=image[i : i + 1], rules=rules)
            assert_near(alone, whole[i : i + 1], 1e-12, f"{name}, seed {i}")


@every_layer_of_maps
def test_a_walk_from_cells_is_the_projection_cut_to_boxes(arch, layer):
    if isinstance(arch.upto(layer).layers[-1], Relu | Dropout) and layer != "relu2":
        return  # in its boxes it is as the layer before
    params, y, trace = traced(arch, layer)
    row, col = some_cells(y.shape[1:3])
    image = np.array([7, 1, 4, 8, 0, 3, 6, 2, 5])
    maps = y[image, row, col].argmax(axis=1)
    seed = seeds(y, image, maps, row, col)
    for name, rules in RULES.items():
        whole = net.back_through(trace, params, seed[np.argsort(image)], rules=rules)[image]
        r, where = project_cells(trace, params, y, image, maps, row, col, rules=rules)
        assert r.shape == (SOME, *where.size, arch.input[2])
        assert max(where.size) <= arch.field(layer).size
        assert_near(pasted(r, where, arch.input[:2]), whole, 1e-12, name)
        for i in (0, 4):
            one = np.array([i])
            r, where = project_cells(trace, params, y, image[one], maps[one], row[one], col[one], rules=rules)
            assert_near(pasted(r, where, arch.input[:2]), whole[one], 1e-12, f"{name}, seed {i}")


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("arch", [TINY, OBLONG, GROUPED, FORKED, FLAT], ids=lambda arch: arch.name)
def test_units_are_walked_back_as_in_the_whole_batch(arch, training):
    for layer, shape in arch.shapes().items():
        if len(shape) == 3:
            continue
        params, y, trace = traced(arch, layer, training=training)
        image, units = np.array([7, 1, 4, 8, 0, 3, 6, 2, 5]), np.arange(SOME) % shape[0]
        seed = seeds(y, image, units)
        for name, rules in rules_of(training):
            whole = net.back_through(trace, params, seed[np.argsort(image)], rules=rules)[image]
            r, where = project_cells(trace, params, y, image, units, rules=rules)
            assert not where.origin.any()  # the last columns may lie beyond all windows
            assert_near(pasted(r, where, arch.input[:2]), whole, 1e-12, f"{name} from {layer}")
            assert_near(project(trace, params, seed, image=image, rules=rules), whole, 1e-12, f"{name} from {layer}")


@every_rule
@pytest.mark.parametrize("layer", ["conv1", "norm1", "relu2", "pool2", "fc8"])
def test_seeds_may_come_in_any_order_and_again(layer, rules):
    params, y, trace = traced(TINY, layer, n=40)
    image = np.array([39, 0, 7, 7, 20, 0, 39, 7, 7, 7, 8])  # the last of a slice, the first of one, several of one
    number = np.arange(len(image))
    place = (number % y.shape[1], 3 * number % y.shape[2]) if y.ndim == 4 else ()
    seed = np.zeros((len(image), *y.shape[1:]))
    seed[(number, *place)] = drawn((len(image), y.shape[-1]), 2)
    together = project(trace, params, seed, image=image, rules=rules)
    for k, i in enumerate(image):
        whole = np.zeros_like(y)
        whole[i] = seed[k]
        assert_near(together[k], net.back_through(trace, params, whole, rules=rules)[i], 1e-12)


@every_rule
def test_the_same_seed_gives_the_same_in_every_image_that_is_the_same(rules):
    """Each slice of the batch is asked for its own arrays."""
    params, x = params_of(TINY), images_for(TINY, 40)
    x[1::2] = x[0]
    y, trace = net.forward(TINY, params, x, stop="relu2")
    image = np.array([1, 39, 17, 0, 5])
    r, _ = project_cells(
        trace, params, y, image, np.full(5, y[0, 1, 2].argmax()), np.full(5, 1), np.full(5, 2), rules=rules
    )
    assert r.any()
    assert_near(r, np.broadcast_to(r[0], r.shape), 1e-14)


@every_rule
@pytest.mark.parametrize("layer", ["pool1", "conv2", "fc8"])
def test_seeds_of_zeros_give_zeros_beside_others(layer, rules):
    params, y, trace = traced(TINY, layer)
    seed = np.zeros_like(y)
    assert not project(trace, params, seed, rules=rules).any()
    seed[3] = signal_for(TINY.upto(layer), SOME)[3]
    r = project(trace, params, seed, rules=rules)
    assert r[3].any() and not np.delete(r, 3, axis=0).any()
    assert_near(r, net.back_through(trace, params, seed, rules=rules), 1e-12)


@every_rule
def test_seeds_may_cover_as_much_as_they_like(rules):
    """The boxes are as large as the largest, also for a seed in the last corner."""
    params, y, trace = traced(TINY, "norm1")
    seed, signal = np.zeros_like(y), signal_for(TINY.upto("norm1"), SOME)
    parts = [np.s_[-1:, -1:], np.s_[:, 2:3], np.s_[1:2], np.s_[:2, :2], np.s_[1:3, -2:], np.s_[-1:, :1], np.s_[:0]]
    for i, part in enumerate(parts):
        seed[i][part] = signal[i][part]
    for few in (slice(0, 2), slice(3, 5), slice(0, SOME)):
        whole = net.back_through(trace, params, seed, rules=rules)[few]
        assert_near(project(trace, params, seed[few], image=np.arange(SOME)[few], rules=rules), whole, 1e-12)


@pytest.mark.parametrize("n", [0, SOME])
@pytest.mark.parametrize("layer", ["conv1", "relu2", "fc8"])
def test_no_seeds_give_no_projections(layer, n):
    params, y, trace = traced(TINY, layer, n=n)
    r = project(trace, params, y[:0], image=np.arange(0))
    assert (r.shape, r.dtype) == ((0, *TINY.input), np.float64)


@pytest.mark.parametrize("layer", ["norm1", "relu2", "fc8"])
def test_float32_stays_float32(layer):
    params = params_of(TINY, dtype="float32")
    y, trace = net.forward(TINY, params, images_for(TINY, SOME, dtype="float32"), stop=layer)
    for rules in RULES.values():
        r = project(trace, params, y, rules=rules)
        assert r.dtype == np.float32
        assert_near(r, net.back_through(trace, params, y, rules=rules), 1e-5)


@pytest.mark.parametrize("layer", ["norm1", "relu2", "pool2", "fc8"])
def test_nothing_that_the_caller_gives_is_changed(layer):
    params, y, trace = traced(TINY, layer)
    seed, image = signal_for(TINY.upto(layer), SOME), np.arange(SOME)[::-1].copy()
    place = [image % n for n in y.shape[1:-1]]
    given = params, {"y": y, "seed": seed, "image": image, "place": np.array(place)}
    before = [bits(each) for each in given]
    for rules in RULES.values():
        first = bits(project(trace, params, seed, image=image, rules=rules))
        project_cells(trace, params, y, image, image % 2, *place, rules=rules)
        assert bits(project(trace, params, seed, image=image, rules=rules)) == first
    assert [bits(each) for each in given] == before


# ------------------------------------------------------------------------------------- slices and threads


@every_rule
@pytest.mark.parametrize(("arch", "layer"), [(TINY, "pool2"), (OBLONG, "relu2"), (MINI, "relu5"), (TINY, "fc8")])
def test_threads_do_not_change_a_bit(arch, layer, rules, monkeypatch):
    monkeypatch.setattr(boxes, "SLICE_BYTES", 1 << 16)  # so that there are several slices
    results = set()
    for threads in (1, 2, 3):
        params, y, trace = traced(arch, layer, threads=threads)
        image = np.arange(20) % SOME
        rows, cols = (image % n for n in y.shape[1:3]) if y.ndim == 4 else (None, None)
        maps = np.arange(20) % y.shape[-1]
        r, where = project_cells(trace, params, np.abs(y), image, maps, rows, cols, rules=rules)
        whole = project(trace, params, seeds(y, image, maps, rows, cols), image=image, rules=rules)
        results.add((bits(r), bits(where.origin), where.size, bits(whole)))
    assert len(results) == 1


@every_rule
@pytest.mark.parametrize("layer", ["norm1", "pool2", "fc8"])
def test_a_few_seeds_at_a_time_give_the_same(layer, rules, monkeypatch):
    params, y, trace = traced(TINY, layer)
    image, signal = np.array([8, 2, 2, 5, 0, 7, 1]), drawn((7, *y.shape[1:]), 3)
    at_once = project(trace, params, signal, image=image, rules=rules)
    monkeypatch.setattr(boxes, "SLICE_BYTES", 1)
    assert_near(project(trace, params, signal, image=image, rules=rules), at_once, 1e-14)


@every_rule
def test_transformed_filters_are_used_in_large_boxes_and_change_nothing(rules, monkeypatch):
    used, operation = [], layers.winograd_transpose
    monkeypatch.setattr(layers, "winograd_transpose", lambda *args, **how: used.append(1) or operation(*args, **how))
    params, y, trace = traced(WIDE, "relu3", n=2)
    number = np.arange(64)  # enough, however they are cut
    image, signal = number % 2, drawn((64, *y.shape[1:]), 4)
    fast = project(trace, params, signal, image=image, rules=rules)
    assert used
    used.clear()
    project(trace, params, seeds(y, image, number, number % 16, number % 15), image=image, rules=rules)
    assert not used  # one cell fills no tile
    monkeypatch.setattr(net.winograd, "suits", lambda *_: False)
    assert_near(fast, project(trace, params, signal, image=image, rules=rules), 1e-12)
    assert not used
    for k in range(0, 64, 16):
        assert_near(fast[k : k + 2], net.back_through(trace, params, signal[k : k + 2], rules=rules), 1e-12)


# ------------------------------------------------------------------------------------- how large the boxes are


def seen(arch, layer, row, col):
    """Rows and columns that a cell sees through no padding, layer by layer: (row0, col0, row1, col1)."""
    starts, stops = [row, col], [row + 1, col + 1]
    part = arch.upto(layer)
    for each in reversed(part.layers):
        if isinstance(each, Windowed):
            hw = part.input_shapes()[each.name][:2]
            size, stride, pad = each.window
            starts = [max(n * stride - pad, 0) for n in starts]
            stops = [min((n - 1) * stride - pad + size, m) for n, m in zip(stops, hw, strict=True)]
    return *starts, *stops


def walked_down(arch, layer, origin):
    """The boxes of the input that single cells reach."""
    where, part = Boxes(np.array(origin), (1, 1)), arch.upto(layer)
    for each in reversed(part.layers):
        if isinstance(each, Windowed):
            where = where.below(each.window, part.input_shapes()[each.name][:2])
    return where


@pytest.mark.parametrize("arch", [*ARCHS, models.ZFNET, models.SMALL], ids=lambda arch: arch.name)
def test_the_box_of_a_cell_is_what_it_sees_and_inside_its_receptive_field(arch):
    whole = 0
    for layer, shape in arch.shapes().items():
        if len(shape) != 3:
            continue
        for row, col in zip(*some_cells(shape[:2]), strict=True):
            where = walked_down(arch, layer, [(row, col)])
            box = tuple(where.origin[0].tolist() + (where.origin[0] + where.size).tolist())
            field = arch.field(layer).box(row, col)
            assert box == seen(arch, layer, row, col) == clip_box(box, clip_box(field, arch.input[:2])[2:])
            assert min(np.subtract(box, field)[:2]) >= 0
            whole += box == field
    assert whole


def test_one_activation_of_zfnets_layer_2_reaches_27_by_27_pixels():
    assert walked_down(models.ZFNET, "relu2", [(13, 13)]).size == (27, 27)
    assert walked_down(models.ZFNET, "relu2", [(1, 13), (25, 24), (7, 7)]).size == (27, 27)
    assert walked_down(models.ZFNET, "relu1", [(0, 0)]).size == (6, 6)  # less the padding
    assert walked_down(models.ZFNET, "relu1", [(0, 0), (109, 109)]).size == (7, 7)


def test_what_a_window_reaches_below():
    upper = Boxes(np.array([[0, 3], [2, 0]]), (1, 1))
    lower = upper.below(Window(3, stride=2, pad=1), (6, 7))
    assert lower.origin.tolist() == [[-1, 5], [3, -1]] and lower.size == (3, 3)
    assert lower.of(slice(1, 2)).origin.tolist() == [[3, -1]] and lower.of(slice(1, 2)).size == (3, 3)
    # What hangs over the edge in every box is left out.
    whole = Boxes(np.array([[0, 0]]), (6, 7)).below(Window(3, pad=1), (6, 7))
    assert whole.origin.tolist() == [[0, 0]] and whole.size == (6, 7)
    corner = Boxes(np.array([[2, 2]]), (1, 2)).below(Window(2, stride=3), (7, 10))  # the last window lacks a row
    assert corner.origin.tolist() == [[6, 6]] and corner.size == (1, 4)


def test_boxes_are_cut_out_of_maps():
    maps = drawn((2, 5, 4, 3), 1)
    cut = Boxes(np.array([[1, 0], [3, 2]]), (2, 2)).cut(maps)
    assert bits(cut) == bits(np.stack([maps[0, 1:3, 0:2], maps[1, 3:5, 2:4]]))


@pytest.mark.parametrize("image", [[0, SOME], [-1, 0], [0], [0, 1, 2]])
def test_cells_of_images_that_are_not_there_are_refused(image):
    params, y, trace = traced(TINY, "relu2")
    maps = row = col = np.array([0, 1])
    with pytest.raises(ValueError, match=r"2 signals for images \[.*\]: one for each, from 0 to 8"):
        project_cells(trace, params, y, np.array(image), maps, row, col)
    with pytest.raises(ValueError, match="the signal is"):
        project_cells(trace, params, y[:2], np.array([0, 1]), maps, row, col)


def test_cells_that_are_not_on_the_maps_are_refused():
    params, y, trace = traced(TINY, "relu2")
    for maps, row, col in [(8, 0, 0), (0, 4, 0), (0, 0, 4), (0, -1, 0), (0, 0, -1)]:
        with pytest.raises((ValueError, IndexError)):
            project_cells(trace, params, y, *(np.array([each]) for each in (1, maps, row, col)))
    with pytest.raises(ValueError, match="relu2 has maps: its cells need rows and columns"):
        project_cells(trace, params, y, np.array([0]), np.array([0]))


def test_signals_of_another_kind_are_refused():
    params, y, trace = traced(TINY, "relu2")
    cell = [np.array([1])] * 4
    with pytest.raises(ValueError, match=r"the signal is \(9, 4, 4, 7\), but relu2 of the trace is \(9, 4, 4, 8\)"):
        project(trace, params, y[..., :7])
    for other in (y[..., :7], y[:, :3], y[:, 0, 0]):
        with pytest.raises(ValueError, match=r"the signal is \(9, .*\), but relu2 of the trace is \(9, 4, 4, 8\)"):
            project_cells(trace, params, other, *cell)
    for call in (lambda y: project(trace, params, y), lambda y: project_cells(trace, params, y, *cell)):
        with pytest.raises(TypeError, match="the signal is float32, but the trace float64"):
            call(y.astype("float32"))


@pytest.mark.parametrize("layer", ["conv2", "fc6"])
def test_a_parameter_that_is_missing_is_named(layer):
    params, y, trace = traced(TINY, "fc8")
    del params[layer]["w"]
    with pytest.raises(ValueError, match=f"layer {layer}: there is no parameter 'w'"):
        project(trace, params, y)


def test_a_parameter_of_another_shape_is_named():
    params, y, trace = traced(TINY, "relu2")
    with pytest.raises(ValueError, match="layer conv2: conv_transpose: "):
        project(trace, {**params, "conv2": params_of(OBLONG)["conv2"]}, y)
