"""Figure 2 on TINY and a few scenes: the right activations, their patches pixel by pixel, their projections."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures import assert_near, bits, checkpoint_of, noise, pictures

from refnet import datasets, deconv, models, net, top
from refnet.arch import Arch, Conv, Linear, Relu
from refnet.deconv import GRADIENT, project, seeds, strongest
from refnet.experiments import fig2
from refnet.weights import Checkpoint

N = 24
LAYERS = ("relu1", "norm1", "relu2", "fc8")
FIELDS = {"relu1": 5, "norm1": 9, "relu2": 17, "fc8": 19}  # of fc8: the whole crop
CHECKPOINT = checkpoint_of(side=32)
SCENES = datasets.load_whole(None, side=32).subset(range(N))
CROP = np.s_[6:25, 6:25]  # the centre


@pytest.fixture(scope="module")
def found():
    """All maps of four layers, with the two strongest activations of one image allowed."""
    return fig2.run(CHECKPOINT, SCENES, layers=LAYERS, maps=None, top=5, one_per_image=False)


def crops():
    """The pixels that the network sees, and what it sees of them."""
    pixels = np.stack([SCENES.image(i)[CROP] for i in range(N)])
    return pixels, (pixels - CHECKPOINT.mean[CROP]) / np.float32(64)


def activations(found):
    """Layer, map, rank, and the box, for every activation found."""
    for each in found:
        for place in np.ndindex(each.strongest.value.shape):
            yield each, place, each.boxes[place].tolist()


def padded(image, box, *, fill):
    """The image inside the box, and ``fill`` where the box hangs over."""
    row0, col0, row1, col1 = box
    wide = np.pad(image, [(20, 20), (20, 20), (0, 0)], constant_values=fill)
    return wide[20 + row0 : 20 + row1, 20 + col0 : 20 + col1]


def test_shapes(found):
    assert [each.layer for each in found] == list(LAYERS)
    for each in found:
        maps, side = models.TINY.shapes()[each.layer][-1], FIELDS[each.layer]
        assert each.maps.tolist() == list(range(maps))
        assert each.boxes.shape == (maps, 5, 4)
        assert each.projections.shape == each.patches.shape == (maps, 5, side, side, 3)
        assert each.projections.dtype == np.float32 and each.patches.dtype == np.uint8


@pytest.mark.parametrize("one_per_image", [True, False])
def test_they_are_the_strongest_of_all_images(one_per_image):
    found = fig2.run(CHECKPOINT, SCENES, layers=LAYERS, maps=None, top=5, one_per_image=one_per_image)
    for each in found:
        y = net.predict(models.TINY, CHECKPOINT.params, crops()[1], stop=each.layer)
        expected = strongest(y, top=5, one_per_image=one_per_image)
        assert_near(each.strongest.value, expected.value, 1e-6)
        for field in ("image", "row", "col"):
            np.testing.assert_array_equal(getattr(each.strongest, field), getattr(expected, field))


def test_boxes_are_receptive_fields_in_the_crop(found):
    for each, place, box in activations(found):
        if each.layer == "fc8":
            assert box == [0, 0, 19, 19]
        else:
            at = each.strongest.row[place], each.strongest.col[place]
            assert box == list(models.TINY.field(each.layer).box(*at))


def test_patches_are_the_pixels_of_the_box(found):
    pixels, _ = crops()
    hanging_over = 0
    for each, place, box in activations(found):
        image = pixels[each.strongest.image[place]]
        excited = each.strongest.value[place] > 0  # what excites nothing has no patch
        patch = padded(image, box, fill=128) if excited else np.full_like(each.patches[place], 128)
        np.testing.assert_array_equal(each.patches[place], patch)
        hanging_over += min(box) < 0 or max(box) > 19
    assert hanging_over


@pytest.mark.parametrize("rules", ["deconv", "guided", "gradient"])
def test_projections_are_of_the_one_activation_in_its_image(rules):
    params = {layer: {key: a.astype("float64") for key, a in p.items()} for layer, p in CHECKPOINT.params.items()}
    exact = replace(CHECKPOINT, params=params)
    found = fig2.run(exact, SCENES, layers=LAYERS, maps=None, top=2, rules=deconv.RULES[rules])
    x = crops()[1].astype("float64")
    for each, (m, rank), box in activations(found):
        best, i = each.strongest, each.strongest.image[m, rank]
        if best.value[m, rank] <= 0:
            assert not each.projections[m, rank].any()
            continue
        y, trace = net.forward(models.TINY, params, x[i : i + 1], stop=each.layer)
        seed = seeds(y, [0], [m], [best.row[m, rank]], [best.col[m, rank]])
        whole = project(trace, params, seed, rules=deconv.RULES[rules])[0]
        assert_near(each.projections[m, rank], padded(whole, box, fill=0), 1e-5)
        inside = np.s_[max(box[0], 0) : box[2], max(box[1], 0) : box[3]]
        whole[inside] = 0
        assert not whole.any()  # nothing was cut off


def test_deconv_is_the_default():
    by_default, by_name, other = (
        fig2.run(CHECKPOINT, SCENES, layers=["relu2"], **rules)[0].projections
        for rules in ({}, {"rules": deconv.DECONV}, {"rules": GRADIENT})
    )
    assert bits(by_default) == bits(by_name) != bits(other)


def test_a_seed_draws_some_of_the_maps(found):
    some = fig2.run(CHECKPOINT, SCENES, layers=LAYERS, maps=4, top=5, one_per_image=False, seed=1)
    for few, each in zip(some, found, strict=True):
        assert len(few.maps) == 4 and (np.diff(few.maps) > 0).all()
        assert_near(few.projections, each.projections[few.maps], 1e-5)
        assert bits(few.patches) == bits(each.patches[few.maps])
        assert bits(few.strongest.image) == bits(each.strongest.image[few.maps])
    drawn = {tuple(fig2.run(CHECKPOINT, SCENES, layers=["fc8"], maps=4, seed=seed)[0].maps) for seed in range(5)}
    assert len(drawn) > 1


def test_more_ranks_than_images_stay_grey():
    (each,) = fig2.run(CHECKPOINT, SCENES.subset(range(3)), layers=["relu2"], maps=None, top=5)
    assert (each.strongest.image[:, :3] >= 0).all() and (each.strongest.image[:, 3:] == -1).all()
    assert (each.patches[:, 3:] == 128).all() and not each.projections[:, 3:].any()
    assert (each.patches[:, :3] != 128).any()


def test_bad_images_are_passed_over():
    pixels = noise(6, 32)
    (whole,) = fig2.run(CHECKPOINT, pictures(pixels[[0, 2, 3, 5]]), layers=["relu2"], maps=None, top=4)
    (rest,) = fig2.run(CHECKPOINT, pictures(pixels, bad=(1, 4)), layers=["relu2"], maps=None, top=4)
    assert np.array([0, 2, 3, 5])[whole.strongest.image].tolist() == rest.strongest.image.tolist()
    assert bits(whole.patches) == bits(rest.patches)
    assert_near(rest.projections, whole.projections, 1e-5)


def test_little_memory_and_threads_change_nothing(found, monkeypatch):
    monkeypatch.setattr(top, "_AT_A_TIME", 3)
    again = fig2.run(CHECKPOINT, SCENES, layers=LAYERS, maps=None, top=5, one_per_image=False, threads=1)
    for each, other in zip(again, found, strict=True):
        assert_near(each.projections, other.projections, 1e-5)
        assert bits(each.patches) == bits(other.patches)


def test_progress_is_told_the_images_done():
    done = []
    fig2.run(CHECKPOINT, pictures(noise(100, 32)), layers=["relu1"], maps=1, progress=done.append)
    assert done == [64, 100]


def test_a_map_that_detects_red_finds_the_reddest_images():
    arch = Arch("red", (19, 19, 3), (Conv("conv1", 2, 3), Relu("relu1"), Linear("fc8", 2)))
    params = {name: {key: np.zeros(s, "f4") for key, s in each.items()} for name, each in arch.param_shapes().items()}
    params["conv1"]["w"][..., 0] = [1, -0.5, -0.5]
    checkpoint = Checkpoint(arch, params, np.full((24, 24, 3), 128, np.float32))
    pixels = noise(20) // 4
    spots = {3: (200, 5, 4), 17: (255, 9, 12), 8: (150, 2, 2)}  # image: redness, row and column in the crop
    for image, (red, row, col) in spots.items():
        pixels[image, 2 + row : 5 + row, 2 + col : 5 + col] = red, 0, 0
    (each,) = fig2.run(checkpoint, pictures(pixels), layers=["relu1"], maps=None, top=3)
    assert each.strongest.image[0].tolist() == [17, 3, 8]
    assert each.boxes[0].tolist() == [[9, 12, 12, 15], [5, 4, 8, 7], [2, 2, 5, 5]]
    assert [patch[0, 0].tolist() for patch in each.patches[0]] == [[255, 0, 0], [200, 0, 0], [150, 0, 0]]
    for value, projection in zip(each.strongest.value[0], each.projections[0], strict=True):
        assert_near(projection, value * params["conv1"]["w"][..., 0], 1e-6)


def test_an_unknown_layer_gets_the_names_that_exist():
    with pytest.raises(ValueError, match="no layer 'relu5' in tiny; its layers are"):
        fig2.run(CHECKPOINT, SCENES, layers=["relu1", "relu5"])


def test_where_no_image_can_be_read_it_says_so():
    with pytest.raises(ValueError, match="none of the 2 images could be read"):
        fig2.run(CHECKPOINT, pictures(noise(2, 32), bad=(0, 1)), layers=["relu1"])


@pytest.mark.parametrize("options", [{"layers": []}, {"maps": 0}])
def test_nothing_to_show_is_refused(options):
    with pytest.raises(ValueError, match="it needs one or more of each"):
        fig2.run(CHECKPOINT, SCENES, **{"layers": LAYERS, **options})


def test_dead_maps_are_not_drawn_and_shown_empty_if_all_are_asked_for():
    params = {name: {key: a.copy() for key, a in layer.items()} for name, layer in CHECKPOINT.params.items()}
    params["conv2"]["b"][[1, 4, 6]] = -1e3
    dead = replace(CHECKPOINT, params=params)
    (some,) = fig2.run(dead, SCENES, layers=["relu2"], maps=8)
    assert not {1, 4, 6} & set(some.maps) and len(some.maps) <= 5
    (every,) = fig2.run(dead, SCENES, layers=["relu2"], maps=None)
    assert not every.projections[[1, 4, 6]].any() and (every.patches[[1, 4, 6]] == 128).all()
    params["conv2"]["b"][:] = -1e3
    with pytest.raises(ValueError, match="relu2 has no map that any image excites"):
        fig2.run(dead, SCENES, layers=["relu2"], maps=8)
