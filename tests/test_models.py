"""The paper's networks and the presets: sizes, counts, and the rows of Table 3."""

import math

import pytest

from refnet import models
from refnet.arch import Conv, Dropout, Norm, Pool
from refnet.experiments import table3
from refnet.models import KRIZHEVSKY, MINI, MODELS, SMALL, TINY, ZFNET

TABLE3_KRIZHEVSKY, TABLE3_ZFNET = (
    {row.change: row.arch for row in table3.ROWS if row.net == net} for net in (table3.KRIZHEVSKY, table3.FIGURE_3)
)
MAPS = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]


def sides(arch, layers=MAPS):
    """Rows of these layers' maps, which must be square."""
    shapes = arch.shapes()
    assert all(shapes[layer][0] == shapes[layer][1] for layer in layers)
    return [shapes[layer][0] for layer in layers]


def widths(arch):
    """Filters and units of the layers with weights."""
    return [shapes["b"][0] for shapes in arch.param_shapes().values()]


# --- Figure 3 ---


def test_zfnet_s_maps():
    assert ZFNET.input == (224, 224, 3)
    assert sides(ZFNET) == [110, 55, 26, 13, 13, 13, 13, 6]
    assert ZFNET.shapes()["pool5"] == (6, 6, 256)
    assert widths(ZFNET) == [96, 256, 384, 384, 256, 4096, 4096, 1000]


def test_zfnet_filters_rectifies_pools_and_normalises_in_this_order():
    names = [layer.name for layer in ZFNET.layers]
    assert names[:8] == ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"]
    assert names[8:15] == ["conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"]
    assert names[15:] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]


def test_zfnet_drops_half_of_layers_6_and_7():
    """Section 3."""
    assert [layer for layer in ZFNET.layers if isinstance(layer, Dropout)] == [
        Dropout("drop6", 0.5),
        Dropout("drop7", 0.5),
    ]


@pytest.mark.parametrize("arch", [ZFNET, KRIZHEVSKY], ids=lambda arch: arch.name)
def test_contrast_normalisation_has_krizhevsky_s_constants(arch):
    norms = [layer for layer in arch.layers if isinstance(layer, Norm)]
    assert norms == [Norm(f"norm{stage}", n=5, k=2.0, alpha=1e-4, beta=0.75) for stage in (1, 2)]


def test_pools_overlap_as_the_paper_s():
    for arch in (ZFNET, KRIZHEVSKY):
        pools = [layer for layer in arch.layers if isinstance(layer, Pool)]
        assert [(pool.size, pool.stride, pool.pad) for pool in pools] == [(3, 2, 0)] * 3


def test_zfnet_s_parameters():
    counts = {name: math.prod(shapes["w"]) + math.prod(shapes["b"]) for name, shapes in ZFNET.param_shapes().items()}
    assert counts == {
        "conv1": 14_208, "conv2": 614_656, "conv3": 885_120, "conv4": 1_327_488, "conv5": 884_992,
        "fc6": 37_752_832, "fc7": 16_781_312, "fc8": 4_097_000,
    }  # fmt: skip
    assert ZFNET.param_count() == 62_357_608


def test_zfnet_s_multiply_adds():
    assert ZFNET.macs() == {
        "conv1": 170_755_200, "conv2": 415_334_400, "conv3": 149_520_384, "conv4": 224_280_576, "conv5": 149_520_384,
        "fc6": 37_748_736, "fc7": 16_777_216, "fc8": 4_096_000,
    }  # fmt: skip
    assert sum(ZFNET.macs().values()) == 1_168_032_896


def test_zfnet_s_receptive_fields():
    fields = [ZFNET.field(layer) for layer in MAPS]
    assert [field.size for field in fields] == [7, 11, 27, 43, 75, 107, 139, 171]
    assert [field.stride for field in fields] == [2, 4, 8, 16, 16, 16, 16, 32]


# --- Krizhevsky et al. ---


def test_krizhevsky_s_maps_and_counts():
    assert KRIZHEVSKY.input == (227, 227, 3)
    assert sides(KRIZHEVSKY) == [55, 27, 27, 13, 13, 13, 13, 6]
    assert KRIZHEVSKY.param_count() == 60_965_224
    assert sum(KRIZHEVSKY.macs().values()) == 724_406_816


def test_krizhevsky_s_layers_2_4_and_5_see_half_of_the_maps():
    groups = [layer.groups for layer in KRIZHEVSKY.layers if isinstance(layer, Conv)]
    assert groups == [1, 2, 1, 2, 2]
    assert KRIZHEVSKY.param_shapes()["conv2"]["w"] == (5, 5, 48, 256)


def test_krizhevsky_normalises_before_he_pools():
    names = [layer.name for layer in KRIZHEVSKY.layers]
    assert names[:4] == ["conv1", "relu1", "norm1", "pool1"]


# --- the presets ---


def mflop(arch):
    """Millions of operations for an image; a multiply-add is two."""
    return 2 * sum(arch.macs().values()) / 1e6


def test_small_has_the_paper_s_13_by_13_at_a_laptop_s_cost():
    assert SMALL.input == (112, 112, 3)
    assert sides(SMALL) == [54, 27, 27, 13, 13, 13, 13, 6]
    assert 150 <= mflop(SMALL) <= 300
    assert SMALL.param_count() <= 3_500_000


def test_mini_costs_at_most_30_mflop():
    assert max(MINI.input[:2]) <= 64
    assert mflop(MINI) <= 30


def test_tiny_has_every_kind_of_layer_and_groups():
    assert {type(layer).__name__ for layer in TINY.layers} == {"Conv", "Relu", "Pool", "Norm", "Linear", "Dropout"}
    assert {layer.groups for layer in TINY.layers if isinstance(layer, Conv)} == {1, 2}
    assert TINY.param_count() < 2000


def test_models_are_known_by_name():
    assert set(MODELS) == {"zfnet", "krizhevsky", "small", "mini", "mini-krizhevsky", "tiny"}
    assert all(models.by_name(name) is arch for name, arch in MODELS.items())
    with pytest.raises(ValueError, match="there are zfnet, krizhevsky, small, mini, mini-krizhevsky, tiny"):
        models.by_name("vgg")


@pytest.mark.parametrize("arch", MODELS.values(), ids=MODELS)
def test_layers_are_named_as_the_paper_numbers_them(arch):
    kinds = {"conv": "Conv", "relu": "Relu", "pool": "Pool", "norm": "Norm", "fc": "Linear", "drop": "Dropout"}
    for layer in arch.layers:
        assert kinds[layer.name.rstrip("12345678")] == type(layer).__name__
    stages = [int(layer.name[-1]) for layer in arch.layers]
    assert stages == sorted(stages)


def test_a_stage_ends_with_its_last_layer_but_dropout():
    wanted = "norm1 norm2 relu3 relu4 pool5 relu6 relu7 fc8"
    assert list(models.stage_ends(ZFNET).values()) == wanted.split()
    assert list(models.stage_ends(KRIZHEVSKY).values()) == wanted.replace("norm", "pool").split()
    assert list(models.stage_ends(ZFNET)) == list(ZFNET.param_shapes())
    assert [models.end_of(ZFNET, stage) for stage in (1, 5, 7)] == ["norm1", "pool5", "relu7"]
    assert models.end_of(models.without(ZFNET, 3, 4), 7) == "relu7"
    with pytest.raises(ValueError, match="no layer numbered 7; its layers are norm1"):
        models.end_of(models.without(ZFNET, 7), 7)


def test_the_number_of_classes_can_be_changed():
    arch = models.with_classes(ZFNET, 37)
    assert arch.shapes()["fc8"] == (37,)
    assert arch.layers[:-1] == ZFNET.layers[:-1]


# --- Table 3 ---

# Parameters, widths, and the stages that are left.
KRIZHEVSKY_ROWS = {
    "replication": (60_965_224, [96, 256, 384, 384, 256, 4096, 4096, 1000], "12345678"),
    "without layers 3,4": (59_268_712, [96, 256, 256, 4096, 4096, 1000], "125678"),
    "without layer 7": (44_183_912, [96, 256, 384, 384, 256, 4096, 1000], "1234568"),
    "without layers 6,7": (11_551_080, [96, 256, 384, 384, 256, 1000], "123458"),
    "without layers 3,4,6,7": (9_854_568, [96, 256, 256, 1000], "1258"),
    "layers 6,7: 2048": (27_455_848, [96, 256, 384, 384, 256, 2048, 2048, 1000], "12345678"),
    "layers 6,7: 8192": (153_149_800, [96, 256, 384, 384, 256, 8192, 8192, 1000], "12345678"),
}
ZFNET_ROWS = {
    "as it is": (62_357_608, [96, 256, 384, 384, 256, 4096, 4096, 1000], "12345678"),
    "layers 6,7: 2048": (28_848_232, [96, 256, 384, 384, 256, 2048, 2048, 1000], "12345678"),
    "layers 6,7: 8192": (154_542_184, [96, 256, 384, 384, 256, 8192, 8192, 1000], "12345678"),
    "layers 3,4,5: 512, 1024, 512": (107_627_624, [96, 256, 512, 1024, 512, 4096, 4096, 1000], "12345678"),
    "layers 6,7: 8192 and 3,4,5: 512, 1024, 512": (
        237_560_936, [96, 256, 512, 1024, 512, 8192, 8192, 1000], "12345678",
    ),
}  # fmt: skip


def stages(arch):
    """The numbers of the layers that an architecture has."""
    return "".join(sorted({layer.name[-1] for layer in arch.layers}))


def test_table_3_has_seven_rows_and_five():
    assert list(TABLE3_KRIZHEVSKY) == list(KRIZHEVSKY_ROWS) and len(KRIZHEVSKY_ROWS) == 7
    assert list(TABLE3_ZFNET) == list(ZFNET_ROWS) and len(ZFNET_ROWS) == 5


@pytest.mark.parametrize("row", KRIZHEVSKY_ROWS)
def test_the_rows_of_krizhevsky_s_net(row):
    arch = TABLE3_KRIZHEVSKY[row](KRIZHEVSKY)
    assert (arch.param_count(), widths(arch), stages(arch)) == KRIZHEVSKY_ROWS[row]


@pytest.mark.parametrize("row", ZFNET_ROWS)
def test_the_rows_of_our_net(row):
    arch = TABLE3_ZFNET[row](ZFNET)
    assert (arch.param_count(), widths(arch), stages(arch)) == ZFNET_ROWS[row]


@pytest.mark.parametrize("preset", [SMALL, MINI], ids=lambda arch: arch.name)
@pytest.mark.parametrize(
    "row", [*TABLE3_ZFNET.values(), *TABLE3_KRIZHEVSKY.values()], ids=[*TABLE3_ZFNET, *TABLE3_KRIZHEVSKY]
)
def test_every_row_can_be_said_of_a_preset(row, preset):
    arch = row(preset)
    assert (arch.input, arch.shapes()["fc8"]) == (preset.input, (10,))
    assert arch.upto("conv2") == preset.upto("conv2")


@pytest.mark.parametrize("preset", [SMALL, MINI], ids=lambda arch: arch.name)
def test_a_row_s_widths_are_in_proportion(preset):
    factors = {"conv3": 4 / 3, "conv4": 8 / 3, "conv5": 2, "fc6": 2, "fc7": 2}
    row = TABLE3_ZFNET["layers 6,7: 8192 and 3,4,5: 512, 1024, 512"]
    wanted = [
        round(width * factors.get(name, 1)) for name, width in zip(preset.param_shapes(), widths(preset), strict=True)
    ]
    assert widths(row(preset)) == wanted


def test_a_removed_stage_takes_its_rectification_and_dropout_along():
    names = [layer.name for layer in models.without(ZFNET, 3, 7).layers]
    assert names == [
        layer.name for layer in ZFNET.layers if layer.name not in ("conv3", "relu3", "fc7", "relu7", "drop7")
    ]
