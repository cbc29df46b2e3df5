"""The deconvnet (section 2.1) against each layer written as a matrix, and the search for the strongest activations."""

import itertools
import threading

import numpy as np
import pytest
from fixtures import FLAT, OBLONG, assert_near, bits, drawn, images_for, params_of, signal_for

from refnet import deconv, models, net
from refnet.arch import Arch, Conv, Dropout, Linear, Norm, Pool, Relu
from refnet.deconv import DECONV, GRADIENT, GUIDED, Strongests, project, seeds, strongest

TINY = models.TINY
MANY = 40  # images: several to a slice


def name_of(arch):
    return arch.name


# ------------------------------------------------------------------------------------- every layer as a matrix
# At one image every layer is linear: y = A x, plus a constant. Going down is going through A's transpose.


def cells(shape):
    return list(itertools.product(*map(range, shape)))


def number(shape):
    """Of every cell, its place in the flattened array."""
    return np.arange(np.prod(shape)).reshape(shape)


def conv_matrix(layer, w, below, above):
    into, out, group = number(below), number(above), w.shape[2]
    a = np.zeros((out.size, into.size))
    for p, q, m in cells(above):
        first = m // (layer.filters // layer.groups) * group  # of the maps that this filter sees
        for i, j, c in cells(w.shape[:3]):
            row, col = p * layer.stride + i - layer.pad, q * layer.stride + j - layer.pad
            if 0 <= row < below[0] and 0 <= col < below[1]:
                a[out[p, q, m], into[row, col, first + c]] = w[i, j, c, m]
    return a


def pool_matrix(layer, x, above):
    into, out = number(x.shape), number(above)
    a, below = np.zeros((out.size, into.size)), x.shape
    for p, q, c in cells(above):
        top, left = p * layer.stride - layer.pad, q * layer.stride - layer.pad
        rows = range(max(top, 0), min(top + layer.size, below[0]))
        cols = range(max(left, 0), min(left + layer.size, below[1]))
        winner = max(itertools.product(rows, cols), key=lambda cell: x[*cell, c])  # the first of equal ones
        a[out[p, q, c], into[*winner, c]] = 1
    return a


def norm_output(layer, x):
    half, maps = layer.n // 2, x.shape[-1]
    energy = [np.sum(x[..., max(c - half, 0) : c + half + 1] ** 2, axis=-1) for c in range(maps)]
    return x * (layer.k + layer.alpha * np.stack(energy, axis=-1)) ** -layer.beta


def norm_matrix(layer, x):
    """Derivatives of every output by every input, through imaginary steps."""
    columns = []
    for place in range(x.size):
        moved = x.astype(complex).reshape(-1)
        moved[place] += 1e-30j
        columns.append(norm_output(layer, moved.reshape(x.shape)).imag.reshape(-1) / 1e-30)
    return np.stack(columns, axis=1)


def matrices(arch, params, x, masks):
    """(layer, its matrix, its output) for each layer at the image x, with the masks of dropout in training."""
    found = []
    for layer, shape in zip(arch.layers, arch.shapes().values(), strict=True):
        p = params.get(layer.name)
        match layer:
            case Conv():
                a = conv_matrix(layer, p["w"], x.shape, shape)
                y = a @ x.reshape(-1) + np.resize(p["b"], len(a))
            case Pool():
                a = pool_matrix(layer, x, shape)
                y = a @ x.reshape(-1)
            case Norm():
                a, y = norm_matrix(layer, x), norm_output(layer, x)
            case Relu():
                a, y = np.diag(1.0 * (x.reshape(-1) > 0)), np.maximum(x, 0)
            case Linear():
                a = p["w"].T
                y = a @ x.reshape(-1) + p["b"]
            case Dropout():
                a = np.diag(masks.get(layer.name, np.ones(x.shape)).reshape(-1))
                y = a @ x.reshape(-1)
        x = y.reshape(shape)
        found.append((layer, a, x))
    return found


def walk_down(found, r, rules, image_shape):
    """A signal through the transposed matrices, but where the rules say otherwise."""
    r = r.reshape(-1)
    for layer, a, _ in reversed(found):
        match layer:
            case Norm() if rules is not GRADIENT:
                pass
            case Relu() if rules is DECONV:
                r = np.maximum(r, 0)
            case Relu() if rules is GUIDED:
                r = np.maximum(a.T @ r, 0)
            case _:
                r = a.T @ r
    return r.reshape(image_shape)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("arch", [TINY, OBLONG, FLAT], ids=name_of)
def test_from_every_layer_down_each_layer_is_its_matrix(arch, training):
    params, x = params_of(arch), images_for(arch)
    masks = dropout_masks(arch, len(x), np.random.default_rng(5)) if training else {}
    found = [matrices(arch, params, x[i], {name: mask[i] for name, mask in masks.items()}) for i in range(len(x))]
    for depth, layer in enumerate(arch.layers, start=1):
        r = signal_for(arch.upto(layer.name))
        y, trace = net.forward(arch, params, x, stop=layer.name, rng=np.random.default_rng(5) if training else None)
        assert_near(y, np.stack([each[depth - 1][2] for each in found]), 1e-12, layer.name)
        for name, rules in deconv.RULES.items():
            if training and rules is not GRADIENT:
                with pytest.raises(ValueError, match="the trace is of a training run, which is for the gradient alone"):
                    project(trace, params, r, rules=rules)
                continue
            down = np.stack([walk_down(found[i][:depth], r[i], rules, arch.input) for i in range(len(x))])
            assert_near(project(trace, params, r, rules=rules), down, 1e-12, f"{name} from {layer.name}")


def dropout_masks(arch, n, rng):
    dropouts = [layer for layer in arch.layers if isinstance(layer, Dropout)]
    kept = [rng.random((n, *arch.shapes()[layer.name]), dtype=np.float32) >= layer.rate for layer in dropouts]
    return {layer.name: mask / (1 - layer.rate) for layer, mask in zip(dropouts, kept, strict=True)}


# ------------------------------------------------------------------------------------- what a projection is


def traced(arch, layer, n=MANY):
    """Parameters, output and trace of n images up to a layer."""
    params = params_of(arch)
    return params, *net.forward(arch, params, images_for(arch, n), stop=layer)


def test_a_projection_of_layer_1_is_the_activation_times_the_filter_where_it_lay():
    params, y, trace = traced(TINY, "relu1", 1)
    for row, col, m in [(4, 3, 0), (0, 0, 1), (8, 2, 2), (8, 8, 5)]:  # inside, and at the edges
        y[0, row, col, m] = 2.5
        r = project(trace, params, seeds(y, [0], [m], [row], [col]))
        canvas = np.zeros((21, 21, 3))  # with the padding of 1
        canvas[2 * row : 2 * row + 5, 2 * col : 2 * col + 5] = 2.5 * params["conv1"]["w"][..., m]
        assert_near(r[0], canvas[1:-1, 1:-1], 1e-15)


def test_gradient_is_backwards_dx():
    for arch in (TINY, OBLONG, FLAT):
        params, _, trace = traced(arch, arch.layers[-1].name)
        signal = signal_for(arch, MANY)
        assert bits(project(trace, params, signal, rules=GRADIENT)) == bits(net.backward(trace, params, signal)[0])


def test_deconv_is_the_default_and_skips_normalisation():
    params, y, trace = traced(TINY, "norm1")
    _, _, pooled = traced(TINY, "pool1")
    assert bits(project(trace, params, y)) == bits(project(pooled, params, y, rules=DECONV))
    assert bits(project(trace, params, y, rules=GRADIENT)) != bits(project(pooled, params, y, rules=GRADIENT))


@pytest.mark.parametrize("rules", [DECONV, GUIDED])
def test_negative_signals_end_at_a_relu(rules):
    params, y, trace = traced(TINY, "relu2")
    assert not project(trace, params, -y, rules=rules).any()


def test_deconv_passes_where_the_forward_relu_did_not():
    params, y, trace = traced(TINY, "relu1", 1)
    dead = np.argwhere(y == 0)[0]
    seed = np.zeros_like(y)
    seed[tuple(dead)] = 1
    assert project(trace, params, seed, rules=DECONV).any()
    assert not project(trace, params, seed, rules=GUIDED).any()
    assert not project(trace, params, seed, rules=GRADIENT).any()


@pytest.mark.parametrize("rules", deconv.RULES.values(), ids=deconv.RULES)
def test_a_projection_is_signed_and_zero_for_nothing(rules):
    params, y, trace = traced(TINY, "relu2")
    r = project(trace, params, y, rules=rules)
    assert r.min() < 0 < r.max()
    assert not project(trace, params, np.zeros_like(y), rules=rules).any()


@pytest.mark.parametrize("rules", deconv.RULES.values(), ids=deconv.RULES)
def test_twice_the_activation_gives_twice_the_projection(rules):
    params, y, trace = traced(TINY, "relu2")
    assert_near(project(trace, params, 2 * y, rules=rules), 2 * project(trace, params, y, rules=rules), 1e-15)


def test_signals_add_in_the_gradient_and_not_in_the_deconvnet():
    params, _, trace = traced(TINY, "fc8")
    a, b = signal_for(TINY, MANY), signal_for(TINY, MANY, seed=1)
    for rules, adds in ((GRADIENT, True), (DECONV, False), (GUIDED, False)):
        apart = project(trace, params, a, rules=rules) + project(trace, params, b, rules=rules)
        assert np.allclose(project(trace, params, a + b, rules=rules), apart, rtol=0, atol=1e-12) is adds


def test_unpooled_activations_add_where_regions_overlap():
    arch = Arch("one pool", (3, 5, 1), (Pool("pool1"),))
    x = np.zeros((1, 3, 5, 1))
    x[0, 1, 2] = 7  # wins in both regions
    y, trace = net.forward(arch, {}, x)
    assert y.reshape(-1).tolist() == [7, 7]
    r = project(trace, {}, np.array([3.0, 4.0]).reshape(y.shape))
    assert np.flatnonzero(r).tolist() == [7] and r[0, 1, 2, 0] == 7


def test_a_projection_stays_inside_the_receptive_field():
    for layer in ("relu1", "pool1", "norm1", "relu2"):
        params, y, trace = traced(TINY, layer, 1)
        _, rows, cols, maps = y.shape
        for row, col in [(0, 0), (rows // 2, cols // 2), (rows - 1, cols - 1)]:
            image = [0] * maps
            seed = seeds(y + 1, image, np.arange(maps), [row] * maps, [col] * maps)
            r = project(trace, params, seed, image=image)
            row0, col0, row1, col1 = TINY.field(layer).box(row, col)
            inside = np.s_[:, max(row0, 0) : row1, max(col0, 0) : col1]
            assert r[inside].any()
            r[inside] = 0
            assert not r.any()


# ------------------------------------------------------------------------------------- many seeds


@pytest.mark.parametrize("rules", deconv.RULES.values(), ids=deconv.RULES)
@pytest.mark.parametrize("layer", ["relu1", "norm1", "pool2", "fc8"])
def test_many_seeds_of_some_images_are_as_one_at_a_time(layer, rules):
    params, y, trace = traced(TINY, layer)
    image = np.array([39, 0, 7, 7, 20, 0, 39, 7, 7, 7, 8])  # in any order, with repeats, others left out
    signal = drawn((len(image), *y.shape[1:]), 4000)
    together = project(trace, params, signal, rules=rules, image=image)
    for k, i in enumerate(image):
        whole = np.zeros_like(y)
        whole[i] = signal[k]
        assert_near(together[k], project(trace, params, whole, rules=rules)[i], 1e-14)


def test_no_seeds_give_no_projections():
    params, y, trace = traced(TINY, "relu2")
    assert project(trace, params, y[:0], image=np.arange(0)).shape == (0, *TINY.input)


@pytest.mark.parametrize("image", [[0, MANY], [-1, 0], [0], [0, 1, 2]])
def test_images_that_do_not_fit_the_seeds_are_refused(image):
    params, y, trace = traced(TINY, "relu2")
    with pytest.raises(ValueError, match=r"2 signals for images \[.*\]: one for each, from 0 to 39"):
        project(trace, params, y[:2], image=image)


def test_seeds_without_images_need_one_for_each_image():
    params, y, trace = traced(TINY, "relu2")
    with pytest.raises(ValueError, match=r"the signal is \(2, 4, 4, 8\), but relu2 of the trace is \(40, 4, 4, 8\)"):
        project(trace, params, y[:2])


def test_a_seed_is_one_activation_and_zeros():
    y = np.arange(24.0).reshape(2, 2, 3, 2)
    seed = seeds(y, [1, 0], [0, 1], [1, 0], [2, 0])
    assert seed.shape == (2, 2, 3, 2) and np.argwhere(seed).tolist() == [[0, 1, 2, 0], [1, 0, 0, 1]]
    assert (seed[0, 1, 2, 0], seed[1, 0, 0, 1]) == (y[1, 1, 2, 0], y[0, 0, 0, 1])


def test_a_seed_of_a_layer_of_units_needs_no_place():
    y = np.arange(1.0, 7).reshape(2, 3)
    assert seeds(y, [1, 0], [0, 2]).tolist() == [[4, 0, 0], [0, 0, 3]]
    assert seeds(y, [1, 0], [0, 2], [0, 0], [0, 0]).tolist() == [[4, 0, 0], [0, 0, 3]]


# ------------------------------------------------------------------------------------- strongest activations


def sorted_by_hand(y, top, one_per_image):
    """(value, image, row, column) of the strongest activations of each map."""
    ranked = []
    for m in range(y.shape[-1]):
        found = sorted((-y[*at, m], *at) for at in cells(y.shape[:-1]))
        if one_per_image:
            found = [next(each for each in found if each[1] == i) for i in dict.fromkeys(each[1] for each in found)]
        ranked.append([(-value, image, *(at or (0, 0))) for value, image, *at in found[:top]])
    return ranked


def as_rows(best):
    return [list(zip(*(each[m].tolist() for each in fields_of(best)), strict=True)) for m in range(len(best.value))]


def fields_of(best):
    return best.value, best.image, best.row, best.col


@pytest.mark.parametrize("one_per_image", [True, False])
@pytest.mark.parametrize("shape", [(12, 3, 4, 5), (10, 8, 8, 2), (20, 6), (9, 1, 1, 2)])
def test_strongest_is_what_sorting_finds(shape, one_per_image):
    for seed, levels in itertools.product(range(3), (1, 4, 1000)):
        y = (drawn(shape, seed) * levels).round()  # so that many are equal: by image, then by place
        assert as_rows(strongest(y, one_per_image=one_per_image)) == sorted_by_hand(y, 9, one_per_image)


def test_strongest_of_negative_maps_and_of_dead_ones():
    y = np.zeros((3, 2, 2, 2))
    y[..., 0] = -1 - np.arange(12).reshape(3, 2, 2)
    best = strongest(y, top=3)
    assert as_rows(best) == [[(-1, 0, 0, 0), (-5, 1, 0, 0), (-9, 2, 0, 0)], [(0, 0, 0, 0), (0, 1, 0, 0), (0, 2, 0, 0)]]


def test_ranks_that_no_image_fills_are_minus_one():
    best = strongest(np.array([[3.0], [5.0]]), top=4)
    assert best.value.tolist() == [[5, 3, -np.inf, -np.inf]]
    assert best.image.tolist() == [[1, 0, -1, -1]]
    assert not best.row.any() and not best.col.any()


def test_one_image_may_fill_all_ranks_if_it_may():
    y = np.array([1.0, 4, 3, 2]).reshape(1, 2, 2, 1)
    assert as_rows(strongest(y, top=9, one_per_image=False))[0][:5] == [
        (4, 0, 0, 1), (3, 0, 1, 0), (2, 0, 1, 1), (1, 0, 0, 0), (-np.inf, -1, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("one_per_image", [True, False])
def test_the_order_in_which_slices_arrive_does_not_matter(one_per_image):
    y = (drawn((60, 3, 3, 4), 1) * 4).round()
    whole = strongest(y, one_per_image=one_per_image)
    for seed in range(5):
        found = Strongests(one_per_image=one_per_image)
        for images in np.array_split(np.random.default_rng(seed).permutation(60), 13):
            found.watch("relu5", images, y[images])
        assert as_rows(found.of("relu5")) == as_rows(whole)


def test_slices_may_arrive_from_several_threads():
    y = (drawn((240, 3, 3, 16), 1) * 4).round()
    found = Strongests()

    def work(parts):
        for images in parts:
            found.watch("relu5", images, y[images])

    parts = np.array_split(np.random.default_rng(0).permutation(240), 80)
    threads = [threading.Thread(target=work, args=(parts[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert as_rows(found.of("relu5")) == as_rows(strongest(y))


def test_several_layers_are_searched_at_once_and_others_left_out():
    params, x, found = params_of(TINY), images_for(TINY, MANY), Strongests(("relu2", "fc8"), top=5)
    net.predict(TINY, params, x, watch=lambda layer, part, y: found.watch(layer, np.arange(MANY)[part], y))
    for layer in ("relu2", "fc8"):
        assert as_rows(found.of(layer)) == as_rows(strongest(net.predict(TINY, params, x, stop=layer), top=5))
    with pytest.raises(KeyError, match="relu1"):
        found.of("relu1")


def test_top_must_be_positive():
    with pytest.raises(ValueError, match="top is 0, it needs 1 or more"):
        Strongests(top=0)


def test_an_image_that_comes_again_still_counts_once():
    """As its ten crops do, and data that are streamed twice."""
    y = np.random.default_rng(0).random((40, 3, 3, 2))
    images = np.repeat(np.arange(4), 10)
    found = Strongests(top=3)
    for part in (slice(0, 25), slice(25, 40), slice(0, 40)):
        found.watch("", images[part], y[part])
    best = found.of("")
    for m in range(2):
        peaks = y[..., m].reshape(4, -1).max(axis=1)
        order = np.argsort(-peaks)[:3]
        assert best.image[m].tolist() == order.tolist()
        np.testing.assert_array_equal(best.value[m], peaks[order])


def test_strongest_of_no_images_is_empty_ranks():
    assert (strongest(np.zeros((0, 3, 3, 2))).image == -1).all()
