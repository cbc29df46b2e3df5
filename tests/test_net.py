"""Running a network and walking it back: gradients, traces and their life, slices, threads, errors."""

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest
from conftest import assert_gradient
from fixtures import FLAT, FORKED, OBLONG, assert_near, bits, images_for, params_of, signal_for
from threadpoolctl import threadpool_limits

from refnet import models, net, sgd
from refnet.arch import Arch, Branch, Conv, Linear, Norm, Pool, Relu, flat
from refnet.layers import GRADIENT, Rules, pooled_first
from refnet.ops.loss import cross_entropy

TINY = models.TINY
ARCHS = [TINY, OBLONG, FORKED, FLAT]
LARGER = [*ARCHS, models.MINI]  # has arrays large enough for the arena, which uses their memory again
MANY = 40  # images: several to a slice


def name_of(arch):
    return arch.name


def run(arch, params, x, dy, **options):
    """Output and all gradients."""
    y, trace = net.forward(arch, params, x, **options)
    dx, grads = net.backward(trace, params, dy)
    return {"y": y, "dx": dx, **grads}


def dropout_rng():
    return np.random.default_rng(5)


# ------------------------------------------------------------------------------------- finite differences


def loss(arch, params, x, upstream, rng):
    """A number whose gradient is what `backward` makes of ``upstream``."""
    y, _ = net.forward(arch, params, x, rng=rng)
    return float((y * upstream).sum())


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_dx_is_the_slope(arch, training):
    params, x, upstream = params_of(arch), images_for(arch, 3), signal_for(arch, 3)
    dx = run(arch, params, x, upstream, rng=dropout_rng() if training else None)["dx"]
    rng = np.random.default_rng(0)
    assert_gradient(lambda x: loss(arch, params, x, upstream, dropout_rng() if training else None), x, dx, rng)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("arch", "layer", "key"),
    [(arch, layer, key) for arch in ARCHS for layer in arch.param_shapes() for key in "wb"],
    ids=lambda value: getattr(value, "name", value),
)
def test_gradient_of_every_parameter_is_the_slope(arch, layer, key, training):
    params, x, upstream = params_of(arch), images_for(arch, 3), signal_for(arch, 3)

    def changed(a):
        others = {**params, layer: {**params[layer], key: a}}
        return loss(arch, others, x, upstream, dropout_rng() if training else None)

    grad = run(arch, params, x, upstream, rng=dropout_rng() if training else None)[layer][key]
    assert grad.any()
    assert_gradient(changed, params[layer][key], grad, np.random.default_rng(0))


# ------------------------------------------------------------------------------------- forward and predict


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_predict_gives_forwards_bytes_in_the_dtype_of_x(arch, dtype):
    params, x = params_of(arch, dtype=dtype), images_for(arch, MANY, dtype=dtype)
    y = net.predict(arch, params, x)
    assert y.dtype == dtype
    assert bits(y) == bits(net.forward(arch, params, x)[0])


def test_inference_and_training_pool_before_they_rectify():
    conv, relu, pool, norm = Conv("conv1", 2, 3), Relu("relu1"), Pool("pool1", 3, 2), Norm("norm1")
    again, fc = Pool("pool2", 2, 2), Linear("fc3", 4)
    assert pooled_first((conv, relu, pool, norm)) == (conv, pool, relu, norm)
    assert pooled_first((relu, pool, again, fc)) == (pool, again, relu, fc)
    assert pooled_first((relu, norm, pool)) == (relu, norm, pool)
    branch = Branch("b", ((conv, relu, pool), ()))
    assert pooled_first((relu, branch)) == (relu, Branch("b", ((conv, pool, relu), ())))


@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_watch_sees_every_layer_for_every_image_once(arch):
    params, x, seen = params_of(arch), images_for(arch, MANY), {}

    def watch(layer, images, y):
        seen.setdefault(layer, []).append((images.start, images.stop, y.copy()))

    net.predict(arch, params, x, watch=watch)
    assert seen.keys() == arch.shapes().keys()
    for layer, parts in seen.items():
        starts, stops, outputs = zip(*sorted(parts, key=lambda part: part[0]), strict=True)
        assert (0, *stops) == (*starts, MANY)
        assert_near(np.concatenate(outputs), net.predict(arch, params, x, stop=layer), 1e-12, layer)


@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_stopping_at_a_layer_is_the_network_that_ends_there(arch):
    params, x = params_of(arch), images_for(arch, MANY)
    for layer in flat(arch.layers):
        short = arch.upto(layer.name)
        y, trace = net.forward(arch, params, x, stop=layer.name)
        assert trace.arch == short and y.shape == (MANY, *arch.shapes()[layer.name])
        assert bits(y) == bits(net.predict(arch, params, x, stop=layer.name)) == bits(net.predict(short, params, x))


def test_an_image_gives_the_same_alone_and_in_a_batch():
    params, x = params_of(TINY), images_for(TINY, MANY)
    alone = [net.predict(TINY, params, x[i : i + 1])[0] for i in range(MANY)]
    assert_near(net.predict(TINY, params, x), np.stack(alone), 1e-12)


@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_no_images_give_no_outputs(arch):
    y, trace = net.forward(arch, params_of(arch), images_for(arch, 0))
    assert y.shape == (0, *arch.shapes()[arch.layers[-1].name])
    assert net.backward(trace, params_of(arch), y)[0].shape == (0, *arch.input)


@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_x_and_dy_may_be_views(arch):
    params, x, dy = params_of(arch), images_for(arch, 2 * MANY), signal_for(arch, 2 * MANY)
    views = x[::-2, :, ::-1], dy[::-2, ::-1]
    assert bits(run(arch, params, *views)) == bits(run(arch, params, *(view.copy() for view in views)))


# ------------------------------------------------------------------------------------- dropout


def test_dropout_works_only_where_an_rng_is_given():
    params, x = params_of(TINY), images_for(TINY, MANY)
    hidden = net.predict(TINY, params, x, stop="relu6")
    assert bits(net.predict(TINY, params, x, stop="drop6")) == bits(hidden)
    dropped, _ = net.forward(TINY, params, x, stop="drop6", rng=dropout_rng())
    kept = dropped != 0
    assert_near(dropped, 2 * hidden * kept, 1e-12)
    assert 0.4 < kept.sum() / (hidden != 0).sum() < 0.6


def test_an_rng_in_the_same_state_drops_the_same_in_both_dtypes():
    kept = [
        net.forward(TINY, params_of(TINY, dtype=d), images_for(TINY, dtype=d), stop="drop6", rng=dropout_rng())[0] != 0
        for d in ("float32", "float64")
    ]
    assert bits(kept[0]) == bits(kept[1])


# ------------------------------------------------------------------------------------- backward


@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_gradients_have_the_shapes_and_dtype_of_what_they_belong_to(arch):
    params, x = params_of(arch, dtype="float32"), images_for(arch, dtype="float32")
    dx, grads = net.backward(net.forward(arch, params, x)[1], params, signal_for(arch, dtype="float32"))
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    assert {layer: {key: g.shape for key, g in each.items()} for layer, each in grads.items()} == arch.param_shapes()
    assert {g.dtype for each in grads.values() for g in each.values()} == {x.dtype}


@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_without_input_grad_dx_is_none_and_the_rest_the_same(arch):
    params, dy = params_of(arch), signal_for(arch, MANY)
    _, trace = net.forward(arch, params, images_for(arch, MANY))
    _, grads = net.backward(trace, params, dy)
    dx, others = net.backward(trace, params, dy, input_grad=False)
    assert dx is None
    assert bits(others) == bits(grads)


@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_gradients_of_a_batch_are_the_sums_over_its_images(arch):
    params, x, dy = params_of(arch), images_for(arch, MANY), signal_for(arch, MANY)
    whole = run(arch, params, x, dy)
    alone = [run(arch, params, x[i : i + 1], dy[i : i + 1]) for i in range(MANY)]
    assert_near(whole["dx"], np.concatenate([each["dx"] for each in alone]), 1e-12)
    for layer in params:
        for key in "wb":
            assert_near(whole[layer][key], sum(each[layer][key] for each in alone), 1e-12, (layer, key))


def test_a_walk_under_the_gradients_rules_is_backwards_dx():
    for arch in ARCHS:
        params, dy = params_of(arch), signal_for(arch, MANY)
        _, trace = net.forward(arch, params, images_for(arch, MANY))
        dx, _ = net.backward(trace, params, dy)
        assert bits(net.back_through(trace, params, dy, rules=Rules("forward", "gradient"))) == bits(dx)


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("arch", ARCHS, ids=name_of)
def test_pooling_before_the_relu_changes_no_gradient(arch, input_grad, monkeypatch):
    params, x, dy = params_of(arch), images_for(arch, MANY), signal_for(arch, MANY)

    def train():
        y, trace = net.forward(arch, params, x, rng=dropout_rng())
        return y, net.backward(trace, params, dy, input_grad=input_grad)

    y, (dx, grads) = train()
    monkeypatch.setattr(net, "pooled_first", lambda layers: layers)
    in_order, (dx_in_order, grads_in_order) = train()
    assert bits(y) == bits(in_order)
    np.testing.assert_array_equal(dx, dx_in_order)  # but for the signs of zeros
    for layer, each in grads.items():
        for key, grad in each.items():
            np.testing.assert_array_equal(grad, grads_in_order[layer][key], f"{layer}/{key}")


# ------------------------------------------------------------------------------------- the life of a trace


@pytest.mark.parametrize("arch", LARGER, ids=name_of)
def test_nothing_that_the_caller_gives_is_changed(arch):
    params, x, dy = params_of(arch), images_for(arch, MANY), signal_for(arch, MANY)
    before = bits(params), bits(x), bits(dy)
    run(arch, params, x, dy, rng=dropout_rng())
    net.predict(arch, params, x)
    assert (bits(params), bits(x), bits(dy)) == before


def test_x_may_be_read_only():
    x = images_for(TINY, MANY)
    x.flags.writeable = False
    relu_first = Arch("relu first", TINY.input, (Relu("relu0"), *TINY.layers))
    assert net.predict(relu_first, params_of(TINY), x).shape == (MANY, 10)


@pytest.mark.parametrize("arch", LARGER, ids=name_of)
def test_a_later_run_changes_no_earlier_trace(arch):
    params, dy = params_of(arch), signal_for(arch, MANY)
    _, trace = net.forward(arch, params, images_for(arch, MANY))
    before = bits(dict(enumerate(net.backward(trace, params, dy))))
    run_others()
    assert bits(dict(enumerate(net.backward(trace, params, dy)))) == before


@pytest.mark.parametrize("arch", LARGER, ids=name_of)
def test_results_outlive_the_trace(arch):
    params, dy = params_of(arch), signal_for(arch, MANY)
    y, trace = net.forward(arch, params, images_for(arch, MANY))
    dx, grads = net.backward(trace, params, dy)
    before = bits(y), bits(dx), bits(grads)
    del trace
    gc.collect()
    run_others()
    assert (bits(y), bits(dx), bits(grads)) == before


def run_others():
    """Ask for memory of the same sizes, and write other numbers to it."""
    for arch in LARGER:
        run(arch, params_of(arch, seed=1), images_for(arch, MANY, seed=1), signal_for(arch, MANY, seed=1))
        net.predict(arch, params_of(arch, seed=2), images_for(arch, MANY, seed=2))


@pytest.mark.parametrize(
    ("arch", "layer"),
    [(arch, layer.name) for arch in ARCHS for layer in flat(arch.layers)],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_caller_may_write_to_y(arch, layer):
    params = params_of(arch)
    y, trace = net.forward(arch, params, images_for(arch, MANY), stop=layer)
    dy = signal_for(arch.upto(layer), MANY)
    before = bits(net.backward(trace, params, dy)[0])
    y.fill(-1)
    assert bits(net.backward(trace, params, dy)[0]) == before


def test_two_networks_may_take_turns():
    cases = [(arch, params_of(arch), images_for(arch, MANY), signal_for(arch, MANY)) for arch in (TINY, models.MINI)]
    alone = [bits(run(*case)) for case in cases]
    forward = [net.forward(*case[:3]) for case in cases]
    back = [net.backward(trace, case[1], case[3]) for (_, trace), case in zip(forward, cases, strict=True)]
    turns = [{"y": y, "dx": dx, **grads} for (y, _), (dx, grads) in zip(forward, back, strict=True)]
    assert [bits(each) for each in turns] == alone


def test_two_threads_may_each_run_a_network():
    cases = [(arch, params_of(arch), images_for(arch, MANY), signal_for(arch, MANY)) for arch in (TINY, models.MINI)]
    alone = [bits(run(*case)) for case in cases]
    together = [set(), set()]

    def work(i):
        for _ in range(3):
            together[i].add(bits(run(*cases[i]))["dx"])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [{each["dx"]} for each in alone]


# ------------------------------------------------------------------------------------- threads


def test_20_steps_give_the_same_bits_at_any_number_of_threads():
    def train(threads):
        params, velocity = params_of(TINY, dtype="float32"), sgd.zeros_like(params_of(TINY, dtype="float32"))
        for step in range(20):
            x = images_for(TINY, MANY, dtype="float32", seed=step)
            y, trace = net.forward(TINY, params, x, rng=np.random.default_rng(step), threads=threads)
            _, dy = cross_entropy(y, np.arange(MANY) % 10)
            _, grads = net.backward(trace, params, dy, input_grad=False)
            sgd.step(params, grads, velocity, rate=0.01, decay=5e-4, clip=0.1, threads=threads)
        return bits(params), bits(velocity)

    assert train(1) == train(2) == train(4)


def test_a_larger_network_gives_the_same_bits_at_any_number_of_threads():
    arch = models.SMALL
    case = [part(arch, dtype="float32") for part in (params_of, images_for, signal_for)]
    results = [bits(run(arch, *case, threads=threads)) for threads in (1, 2, 4)]
    assert results[0] == results[1] == results[2]


def test_the_number_of_blas_threads_outside_does_not_change_a_bit():
    arch = models.SMALL
    case = [part(arch, dtype="float32") for part in (params_of, images_for, signal_for)]
    results = []
    for outside in (1, 2):
        with threadpool_limits(outside, "blas"):
            results.append(bits(run(arch, *case)))
    assert results[0] == results[1]


# ------------------------------------------------------------------------------------- parameters


def test_he_init_is_his_but_for_the_first_layer():
    params = net.init_params(models.MINI, rng=np.random.default_rng(0))
    for layer, shapes in models.MINI.param_shapes().items():
        w, b = params[layer]["w"], params[layer]["b"]
        assert w.shape == shapes["w"] and b.shape == shapes["b"] and w.dtype == b.dtype == np.float32
        sigma = 0.01 if layer == "conv1" else np.sqrt(2 / np.prod(shapes["w"][:-1]))
        sigma *= 2**0.75 if layer in ("conv2", "conv3") else 1  # what is normalised before is that much smaller
        assert w.std() == pytest.approx(sigma, rel=0.05) and abs(w.mean()) < 0.1 * sigma
        assert not b.any()


def test_he_init_knows_what_normalisation_divides_by_on_every_path():
    paths = (Conv("left", 64, 3, pad=1),), (Relu("relu"), Conv("right", 64, 3, pad=1)), ()
    layers = (
        Conv("first", 64, 3, pad=1),
        Norm("norm", k=16, beta=0.5),
        Branch("fork", paths),
        Conv("last", 64, 3, pad=1),
    )
    params = net.init_params(Arch("it", (8, 8, 3), layers), rng=np.random.default_rng(0))
    times = {name: p["w"].std() / np.sqrt(2 / np.prod(p["w"].shape[:-1])) for name, p in params.items()}
    assert {name: times[name] for name in ("left", "right", "last")} == pytest.approx(
        {"left": 4, "right": 4, "last": 1}, rel=0.02
    )


def test_paper_init_is_a_hundredth_everywhere():
    params = net.init_params(models.MINI, rng=np.random.default_rng(0), init="paper")
    assert [each["w"].std() for each in params.values()] == pytest.approx([0.01] * len(params), rel=0.05)
    assert not any(each["b"].any() for each in params.values())


def test_init_draws_the_same_in_both_dtypes():
    single, double = (net.init_params(TINY, rng=np.random.default_rng(0), dtype=d) for d in ("float32", "float64"))
    assert {layer: bits(each["w"].astype("float32")) for layer, each in double.items()} == {
        layer: bits(each["w"]) for layer, each in single.items()
    }


# ------------------------------------------------------------------------------------- errors


def test_an_unknown_init_is_named():
    with pytest.raises(ValueError, match="init is 'xavier', it needs he or paper"):
        net.init_params(TINY, rng=np.random.default_rng(0), init="xavier")


def test_an_unknown_layer_gets_the_names_that_exist():
    with pytest.raises(ValueError, match="no layer 'relu9' in tiny; its layers are conv1 relu1 pool1 norm1 conv2"):
        net.predict(TINY, params_of(TINY), images_for(TINY), stop="relu9")


@pytest.mark.parametrize("shape", [(2, 19, 20, 3), (19, 19, 3), (2, 3, 19, 19)])
def test_images_of_the_wrong_shape_get_the_networks_name(shape):
    with pytest.raises(ValueError, match=r"tiny: x is \(.*\), it needs \(N, 19, 19, 3\)"):
        net.predict(TINY, params_of(TINY), np.zeros(shape))


@pytest.mark.parametrize(("layer", "key"), [("conv2", "w"), ("fc6", "b")])
def test_a_missing_parameter_is_named(layer, key):
    params = params_of(TINY)
    del params[layer][key]
    with pytest.raises(ValueError, match=f"layer {layer}: there is no parameter '{key}'"):
        net.predict(TINY, params, images_for(TINY))


def test_a_missing_layer_is_named():
    params = params_of(TINY)
    del params["conv2"]
    with pytest.raises(ValueError, match="layer conv2: there is no parameter 'w'"):
        net.forward(TINY, params, images_for(TINY))


def test_what_a_layer_cannot_do_gets_its_name():
    params = {**params_of(TINY), "conv2": params_of(OBLONG)["conv2"]}
    with pytest.raises(ValueError, match=r"layer conv2: conv_forward: x has 6 maps .* but w filters 4 \(2, 2, 2, 6\)"):
        net.predict(TINY, params, images_for(TINY))


def test_what_a_layer_cannot_do_on_the_way_back_gets_its_name():
    params = params_of(TINY)
    _, trace = net.forward(TINY, params, images_for(TINY))
    with pytest.raises(ValueError, match="layer conv2: conv_transpose: "):
        net.backward(trace, {**params, "conv2": params_of(OBLONG)["conv2"]}, signal_for(TINY))


def test_a_parameter_missing_on_the_way_back_is_named():
    params = params_of(TINY)
    _, trace = net.forward(TINY, params, images_for(TINY))
    del params["conv2"]["w"]
    with pytest.raises(ValueError, match="layer conv2: there is no parameter 'w'"):
        net.backward(trace, params, signal_for(TINY))


def test_a_mix_of_dtypes_is_named_with_the_layer():
    with pytest.raises(TypeError, match="layer conv1: conv_forward: got x float64, w float32, b float32"):
        net.predict(TINY, params_of(TINY, dtype="float32"), images_for(TINY))


def test_images_of_integers_are_refused():
    with pytest.raises(TypeError, match="layer conv1: conv_forward: got x uint8"):
        net.predict(TINY, params_of(TINY), np.zeros((2, *TINY.input), np.uint8))


@pytest.mark.parametrize("shape", [(2, 9), (3, 10), (2, 1, 10)])
def test_a_signal_of_another_shape_than_the_output_is_refused(shape):
    params = params_of(TINY)
    _, trace = net.forward(TINY, params, images_for(TINY))
    with pytest.raises(ValueError, match=r"the signal is \(.*\), but fc8 of the trace is \(2, 10\)"):
        net.backward(trace, params, np.zeros(shape))


def test_a_signal_of_another_dtype_than_the_trace_is_refused():
    params = params_of(TINY)
    _, trace = net.forward(TINY, params, images_for(TINY))
    with pytest.raises(TypeError, match="the signal is float32, but the trace float64"):
        net.backward(trace, params, signal_for(TINY, dtype="float32"))


def test_rules_that_do_not_exist_are_refused():
    for unknown in ({"relu": "Forward"}, {"norm": "forward"}):
        with pytest.raises(ValueError, match="relu is forward, signal or both, and norm gradient or skip"):
            replace(GRADIENT, **unknown)


def test_no_images_give_gradients_of_zero():
    params = params_of(TINY)
    y, trace = net.forward(TINY, params, images_for(TINY)[:0])
    _, grads = net.backward(trace, params, y)
    assert all(not grads[name][key].any() for name in params for key in params[name])
    assert {name: {key: a.shape for key, a in layer.items()} for name, layer in grads.items()} == TINY.param_shapes()


def test_parts_that_are_cut_alike_are_one_stage():
    def first_layers(arch, n):
        return [(stage.layers[0].name, len(stage.slices)) for stage in net.stages(arch, n)]

    assert first_layers(models.ZFNET, 8) == [("conv1", 4), ("fc6", 1)]
    assert first_layers(models.ZFNET, 32) == [("conv1", 16), ("conv2", 8), ("conv3", 4), ("fc6", 1)]
    for n in (0, 1, 5, 32, 100):  # the fully connected layers are a stage of their own, and no layer is lost
        plan = net.stages(models.ZFNET, n)
        assert [layer for stage in plan for layer in stage.layers] == list(models.ZFNET.layers)
        assert plan[-1].layers[0].name == "fc6"
        for stage in plan[:-1]:
            assert [i for part in stage.slices for i in range(n)[part]] == list(range(n))


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads is -1, it needs 1 or more"):
        net.predict(TINY, params_of(TINY), images_for(TINY), threads=-1)
