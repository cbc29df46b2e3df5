"""Architectures as data: shapes, counts, JSON, and every way in which they are refused."""

import copy
import dataclasses
import json

import pytest

from refnet import models
from refnet.arch import Arch, Branch, Conv, Dropout, Linear, Norm, Pool, Relu, SpatialNorm

SMALLEST = Arch(
    "smallest", (9, 9, 4), (Conv("conv1", 6, 3, stride=2, pad=1, groups=2), Relu("relu1"), Linear("fc8", 5))
)
every_model = pytest.mark.parametrize("arch", models.MODELS.values(), ids=models.MODELS)

# --- shapes and counts ---


def test_shapes_of_every_kind_of_layer():
    arch = Arch("a", (11, 9, 4), (
        Conv("conv1", 6, 3, stride=2, pad=1, groups=2), Relu("relu1"), Norm("norm1"), Pool("pool1"),
        Linear("fc2", 7), Dropout("drop2"), Linear("fc3", 5),
    ))  # fmt: skip
    assert arch.shapes() == {
        "conv1": (6, 5, 6), "relu1": (6, 5, 6), "norm1": (6, 5, 6), "pool1": (3, 2, 6),
        "fc2": (7,), "drop2": (7,), "fc3": (5,),
    }  # fmt: skip
    assert arch.param_shapes() == {
        "conv1": {"w": (3, 3, 2, 6), "b": (6,)},
        "fc2": {"w": (36, 7), "b": (7,)},
        "fc3": {"w": (7, 5), "b": (5,)},
    }
    assert arch.param_count() == (108 + 6) + (252 + 7) + (35 + 5)
    assert arch.macs() == {"conv1": 108 * 30, "fc2": 252, "fc3": 35}


def test_pools_round_up_or_down_as_they_say():
    up, down = (Arch("a", (4, 4, 1), (Pool("pool1", ceil=ceil),)).shapes()["pool1"] for ceil in (True, False))
    assert (up, down) == ((2, 2, 1), (1, 1, 1))


def test_a_field_counts_convolutions_and_pools():
    assert tuple(models.ZFNET.field("norm2")) == tuple(models.ZFNET.field("pool2")) == (43, 16, -1)
    assert tuple(models.ZFNET.field("relu5")) == (139, 16, -49)


@pytest.mark.parametrize("layer", ["fc6", "drop7"])
def test_a_unit_sees_the_whole_image(layer):
    with pytest.raises(ValueError, match=f"{layer} of zfnet sees the whole image: only layers of maps have a field"):
        models.ZFNET.field(layer)


def test_a_network_can_end_early():
    part = models.ZFNET.upto("pool1")
    assert [layer.name for layer in part.layers] == ["conv1", "relu1", "pool1"]
    assert (part.name, part.input) == ("zfnet", (224, 224, 3))
    assert models.ZFNET.upto("fc8") == models.ZFNET


def test_layers_have_positions():
    assert [SMALLEST.index(name) for name in ("conv1", "relu1", "fc8")] == [0, 1, 2]


@pytest.mark.parametrize("look_up", [Arch.index, Arch.upto, Arch.field])
def test_an_unknown_layer_is_answered_with_those_that_exist(look_up):
    with pytest.raises(ValueError, match="no layer 'conv2' in smallest; its layers are conv1 relu1 fc8"):
        look_up(SMALLEST, "conv2")


def test_it_prints_as_a_table():
    title, header, *rows, total = str(models.ZFNET).splitlines()
    assert title == "zfnet, input 224x224x3"
    assert header.split() == ["layer", "kind", "output", "parameters", "multiply-adds", "field/stride"]
    assert [row.split()[0] for row in rows] == [layer.name for layer in models.ZFNET.layers]
    assert rows[0].split() == ["conv1", "conv", "110x110x96", "14,208", "170,755,200", "7/2"]
    assert rows[2].split() == ["pool1", "pool", "55x55x96", "11/4"]
    assert rows[-1].split() == ["fc8", "linear", "1000", "4,097,000", "4,096,000", "all"]
    assert total == "62,357,608 parameters, 1,168,032,896 multiply-adds per image"


def test_it_is_frozen_and_compares_by_value():
    again = copy.deepcopy(SMALLEST)
    assert again == SMALLEST and hash(again) == hash(SMALLEST)
    assert dataclasses.replace(SMALLEST, name="other") != SMALLEST
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALLEST.name = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALLEST.layers[0].filters = 7


# --- what is refused ---


def with_layers(*layers, shape=(9, 9, 4)):
    return Arch("a", shape, layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "arch a: it has no layers"),
        ([Relu("relu1"), Relu("relu1")], "arch a: two layers are called 'relu1'; names must differ"),
        ([Conv("conv1", 6, 10)], r"arch a, layer conv1: a 10 x 10 window \(stride 1, pad 0\) does not fit \(9, 9\)"),
        ([Pool("pool1", 12)], r"layer pool1: a 12 x 12 window \(stride 2, pad 0\) does not fit \(9, 9\)"),
        ([Conv("conv1", 6, 3, groups=3)], "layer conv1: 4 maps and 6 filters do not divide into 3 groups"),
        ([Conv("conv1", 6, 3, groups=4)], "layer conv1: 4 maps and 6 filters do not divide into 4 groups"),
        ([Linear("fc1", 5), Conv("conv2", 6, 1)], "layer conv2: a conv layer needs maps, but it gets 5 units"),
        ([Linear("fc1", 5), Pool("pool2")], "layer pool2: a pool layer needs maps, but it gets 5 units"),
        ([Linear("fc1", 5), Norm("norm2")], "layer norm2: a norm layer needs maps, but it gets 5 units"),
        ([Conv("conv1", 0, 3)], "layer conv1: filters is 0, it needs 1 <= filters < inf"),
        ([Conv("conv1", 6, 0)], "layer conv1: size is 0, it needs 1 <= size"),
        ([Conv("conv1", 6, 3, stride=0)], "layer conv1: stride is 0, it needs 1 <= stride"),
        ([Conv("conv1", 6, 3, pad=-1)], "layer conv1: pad is -1, it needs 0 <= pad"),
        ([Conv("conv1", 6, 3, groups=0)], "layer conv1: groups is 0, it needs 1 <= groups"),
        ([Conv("conv1", 6, 3, pad=3)], "layer conv1: pad is 3; it must be smaller than the window, 3"),
        ([Pool("pool1", 3, pad=3)], "layer pool1: pad is 3; it must be smaller than the window, 3"),
        ([Conv("conv1", 6.0, 3)], "layer conv1: filters is 6.0, it needs a int"),
        ([Conv("conv1", True, 3)], "layer conv1: filters is True, it needs a int"),
        ([Conv("conv1", "6", 3)], "layer conv1: filters is '6', it needs a int"),
        ([Conv("conv1", None, 3)], "layer conv1: filters is None, it needs a int"),
        ([Pool("pool1", ceil=1)], "layer pool1: ceil is 1, it needs a bool"),
        ([Linear("fc1", 0)], "layer fc1: units is 0, it needs 1 <= units"),
        ([Dropout("drop1", 1.0)], "layer drop1: rate is 1.0, it needs 0 <= rate < 1"),
        ([Dropout("drop1", -0.1)], "layer drop1: rate is -0.1, it needs 0 <= rate < 1"),
        ([Dropout("drop1", True)], "layer drop1: rate is True, it needs a float"),
        ([Norm("norm1", n=4)], "layer norm1: n is 4 and k 2.0; it needs an odd n and k > 0"),
        ([Norm("norm1", n=0)], "layer norm1: n is 0, it needs 1 <= n"),
        ([Norm("norm1", k=0)], "layer norm1: n is 5 and k 0; it needs an odd n and k > 0"),
        ([Norm("norm1", alpha=-1.0)], "layer norm1: alpha is -1.0, it needs 0 <= alpha"),
        ([Norm("norm1", alpha=float("nan"))], "layer norm1: alpha is nan, it needs 0 <= alpha"),
        ([Norm("norm1", beta=float("inf"))], "layer norm1: beta is inf, it needs 0 <= beta < inf"),
        ([Linear("fc1", 5), SpatialNorm("norm2")], "layer norm2: a spatialnorm layer needs maps, but it gets 5 units"),
        ([SpatialNorm("norm1", 4)], "layer norm1: size is 4, it needs an odd one"),
        ([SpatialNorm("norm1", 0)], "layer norm1: size is 0, it needs 1 <= size"),
        ([SpatialNorm("norm1", 10**9 + 1)], r"layer norm1: size is 1000000001, which reaches more than .*\(9, 9\)"),
        ([SpatialNorm("norm1", alpha=-1.0)], "layer norm1: alpha is -1.0, it needs 0 <= alpha"),
        ([Relu("")], "layer : its name is ''; a name is 1 to 64 letters, digits, _ or -"),
        ([Relu("a/b")], "its name is 'a/b'; a name is 1 to 64 letters"),
        ([Relu("relu1\n")], r"its name is 'relu1\\n'; a name is 1 to 64 letters"),
        ([Relu("x" * 65)], "a name is 1 to 64 letters"),
        ([Relu(7)], "its name is 7; a name is 1 to 64 letters"),
    ],
)
def test_layers_that_cannot_be_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        with_layers(*layers)


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 4, 1), (0, 9, 4), (9, -9, 4), (9.0, 9, 4), ("9", 9, 4), (9, 9, True)])
def test_inputs_that_cannot_be_are_refused(shape):
    with pytest.raises(ValueError, match=r"arch a: input is \(.*\), it needs \(rows, columns, colours\)"):
        with_layers(Relu("relu1"), shape=shape)


def test_whole_numbers_pass_for_floats():
    assert with_layers(Norm("norm1", k=2, alpha=1, beta=1), Dropout("drop1", 0)).layers[1].rate == 0


# --- JSON ---


@every_model
def test_json_and_back(arch):
    text = arch.to_json()
    assert "\n" not in text
    assert Arch.from_json(text) == arch
    assert Arch.from_json(text).to_json() == text


def test_the_json_of_a_network():
    assert json.loads(SMALLEST.to_json()) == {
        "name": "smallest",
        "input": [9, 9, 4],
        "layers": [
            {"kind": "conv", "name": "conv1", "filters": 6, "size": 3, "stride": 2, "pad": 1, "groups": 2},
            {"kind": "relu", "name": "relu1"},
            {"kind": "linear", "name": "fc8", "units": 5},
        ],
    }


def test_fields_with_defaults_may_be_left_out():
    text = '{"name": "a", "input": [9, 9, 4], "layers": [{"kind": "pool", "name": "pool1"}]}'
    assert Arch.from_json(text) == with_layers(Pool("pool1"))


def as_json(layer='{"kind": "relu", "name": "relu1"}', *, name='"a"', shape="[9, 9, 4]"):
    return f'{{"name": {name}, "input": {shape}, "layers": [{layer}]}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the architecture is no valid JSON"),
        ("{", "the architecture is no valid JSON"),
        ("[" * 100_000, "the architecture is no valid JSON"),
        ("9" * 5000, "the architecture is no valid JSON"),
        ("[]", "the architecture needs a name, an input and layers"),
        ("null", "the architecture needs a name, an input and layers"),
        ('{"name": "a", "layers": []}', "the architecture needs a name, an input and layers"),
        ('{"name": "a", "input": [9, 9, 4], "layers": {}}', "the architecture's input and layers must be lists"),
        (as_json(shape='"994"'), "the architecture's input and layers must be lists"),
        (as_json(shape="[9, 9]"), "it needs .rows, columns, colours"),
        (as_json(shape="[9, 9, [4]]"), "it needs .rows, columns, colours"),
        (as_json("7"), "layer 7 is of no known kind; the kinds are conv, relu, pool, average, norm, "),
        (as_json("{}"), "layer {} is of no known kind; the kinds are conv"),
        (as_json('{"kind": "softmax", "name": "x"}'), "layer {'kind': 'softmax', 'name': 'x'} is of no known kind"),
        (as_json('{"kind": ["relu"], "name": "x"}'), "is of no known kind"),
        (as_json('{"kind": "relu"}'), r"relu layer None lacks some of \['name'\]"),
        (as_json('{"kind": "conv", "name": "c", "size": 3}'), "conv layer 'c' lacks some of .*'filters'"),
        (as_json('{"kind": "relu", "name": "r", "slope": 0.1}'), r"relu layer 'r' has unknown fields: \['slope'\]"),
        (as_json(r'{"kind": "relu", "name": "r", "a\nb": 0.1}'), r"relu layer 'r' has unknown fields: \['a\\nb'\]"),
        (as_json('{"kind": "conv", "name": "c", "filters": true, "size": 3}'), "filters is True, it needs a int"),
        (as_json('{"kind": "conv", "name": "c", "filters": 6.0, "size": 3}'), "filters is 6.0, it needs a int"),
        (as_json('{"kind": "conv", "name": "c", "filters": [6], "size": 3}'), r"filters is \[6\], it needs a int"),
        (as_json('{"kind": "norm", "name": "n", "alpha": NaN}'), "alpha is nan, it needs 0 <= alpha"),
        (as_json('{"kind": "norm", "name": "n", "k": Infinity}'), "k is inf, it needs 0 <= k < inf"),
        (as_json('{"kind": "relu", "name": null}'), "its name is None; a name is 1 to 64 letters"),
        (as_json('{"kind": "relu", "name": {"a": 1}}'), "its name is {'a': 1}; a name is 1 to 64 letters"),
    ],
    ids=range(26),
)
def test_json_that_is_no_architecture_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Arch.from_json(text)


@pytest.mark.parametrize("depth", [100, 900, 990, 1000, 3000, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        as_json("{}"),
        as_json(shape="[9, 9, {}]"),
        as_json('{"kind": "relu", "name": {}}'),
        as_json('{"kind": "linear", "name": "fc1", "units": {}}'),
    ],
    ids=["a layer", "the input", "a name", "a field"],
)
def test_deep_nesting_is_refused_too(text, depth):
    with pytest.raises(ValueError):
        Arch.from_json(text.replace("{}", "[" * depth + "]" * depth))


# ------------------------------------------------------------------------------------- branches

FIRE = Branch("fire", ((Conv("left", 4, 1), Relu("relu_left")), (Conv("right", 6, 3, pad=1),), ()))
FORK = Arch("fork", (9, 9, 4), (Conv("conv1", 5, 3), FIRE, Pool("pool1"), Conv("conv2", 3, 1)))


def test_a_branch_joins_the_maps_of_its_paths():
    assert FORK.shapes()["fire"] == (7, 7, 15)
    assert FORK.input_shapes()["right"] == (7, 7, 5)
    assert FORK.param_shapes()["conv2"] == {"w": (1, 1, 15, 3), "b": (3,)}
    assert list(FORK.shapes()) == ["conv1", "left", "relu_left", "right", "fire", "pool1", "conv2"]


def test_a_network_may_end_inside_a_path():
    assert FORK.upto("right").layers == (Conv("conv1", 5, 3), Conv("right", 6, 3, pad=1))
    assert FORK.upto("fire").layers[-1] is FIRE
    assert FORK.index("right") == FORK.index("fire") == 1


def test_a_branch_sees_what_the_widest_of_its_paths_sees():
    assert FORK.field("left").size == 3 and FORK.field("fire").size == FORK.field("right").size == 5
    assert FORK.field("fire").box(0, 0) == (-1, -1, 4, 4)


def test_branches_survive_json_and_print():
    assert Arch.from_json(FORK.to_json()) == FORK
    assert "relu_left" in str(FORK) and "7x7x15" in str(FORK)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Branch("fire", ()), "layer fire: its paths end with nothing; they need maps of one size"),
        (Branch("fire", ((Conv("a", 2, 3),), ())), r"its paths end with \(7, 7, 2\), \(9, 9, 4\); they need maps of"),
        (Branch("fire", ((Linear("a", 2),),)), r"its paths end with \(2,\); they need maps of one size"),
        (Branch("fire", ((Pool("a", 2, 2),), (Pool("b", 5, 1, ceil=False),))), "paths step by 2 and 1 cells"),
        (Branch("fire", ((Relu("fire"),),)), "two layers are called 'fire'"),
        (Branch("f/re", ((Relu("a"),),)), "its name is 'f/re'"),
        (Branch("fire", ((Conv("a", 2, 30),),)), "layer a: a 30 x 30 window"),
    ],
    ids=range(7),
)
def test_a_branch_that_cannot_be_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        Arch("a", (9, 9, 4), (layer,))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("7", "its paths must be a list of lists of layers"),
        ("[7]", "its paths must be a list of lists of layers"),
        ("[[7]]", "layer 7 is of no known kind"),
        ("[" * 300 + "]" * 300, "layer .* is of no known kind"),
    ],
    ids=range(4),
)
def test_json_of_a_branch_that_cannot_be_is_refused(paths, message):
    text = as_json(f'{{"kind": "branch", "name": "b", "paths": {paths}}}')
    with pytest.raises(ValueError, match=message):
        Arch.from_json(text)


def test_branches_inside_branches_without_end_are_refused():
    text = as_json('{"kind": "branch", "name": "b", "paths": [[' * 2000 + "]]}" * 2000)
    with pytest.raises(ValueError, match=r"no valid JSON|too many branches"):
        Arch.from_json(text)


def test_normalisation_within_maps_sees_its_square():
    """3 x 3 cells of maps that step by 2 and see 7 x 7: 11 x 11 pixels, the two rows and columns more on each side."""
    arch = Arch("a", (21, 21, 3), (Conv("conv1", 2, 7, stride=2, pad=3), SpatialNorm("norm1"), Relu("relu1")))
    assert arch.field("conv1") == (7, 2, -3) and arch.field("relu1") == (11, 2, -5)
    assert arch.shapes()["relu1"] == arch.shapes()["conv1"]
    assert Arch.from_json(arch.to_json()) == arch
