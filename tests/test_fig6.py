"""Figure 6: filters of known frequency, aliasing counted the slow way, a dead filter, and one that dominates."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures import checkpoint_of, noise, pictures

from refnet import datasets, models, train
from refnet.experiments import fig6

SCENES = datasets.load_whole(None, side=32).subset(range(24))
CHECKPOINT = checkpoint_of(side=32)


def wave(cycles, size=11):
    """A filter (size, size, 3, 1) that is a grating across the columns, of so many cycles per pixel."""
    line = np.cos(2 * np.pi * cycles * (np.arange(size) - size // 2))
    return np.broadcast_to(line[:, None, None], (size, size, 3, 1)).copy()


@pytest.mark.parametrize(("cycles", "band"), [(0.0, 0), (0.05, 0), (0.18, 1), (0.45, 2)])
def test_a_grating_is_in_its_band(cycles, band):
    shares = fig6.bands(wave(cycles))
    assert shares.shape == (1, 3) and shares.sum() == pytest.approx(1)
    assert shares[0, band] > 0.7


def test_noise_fills_the_bands_by_their_areas():
    w = np.random.default_rng(0).standard_normal((11, 11, 3, 2000))
    area = np.pi / 64, np.pi / 16 - np.pi / 64, 1 - np.pi / 16  # of the circles in the unit square of frequencies
    np.testing.assert_allclose(fig6.bands(w).mean(axis=0), area, atol=0.01)


def test_aliasing_is_what_the_slow_way_counts():
    """Filter white noise, transform the response, and add up the energy beyond the stride's half cycle."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((7, 7, 3, 2))
    side, flat = 32, np.broadcast_to(np.eye(3), (32, 32, 3, 3))
    for stride in (2, 4):
        for m, share in enumerate(fig6.aliasing(w, stride, flat)):
            inside = total = 0.0
            for f in range(side):
                for g in range(side):
                    response = 0.0
                    for c in range(3):
                        phase = np.exp(-2j * np.pi * (f * np.arange(7)[:, None] + g * np.arange(7)) / side)
                        response += abs((w[:, :, c, m] * phase).sum()) ** 2
                    total += response
                    if max(min(f, side - f), min(g, side - g)) / side <= 1 / (2 * stride):
                        inside += response
            assert share == pytest.approx(1 - inside / total)


def test_aliasing_is_that_of_the_responses_to_the_images():
    """Filter every windowed image, cyclically, and transform the responses; green follows red a little further on."""
    rng = np.random.default_rng(2)
    red = np.cumsum(rng.normal(0, 12, (6, 32, 32)), axis=2)
    pixels = np.clip(np.stack([red, np.roll(red, 2, axis=2), -red], axis=3) + 128, 0, 255).astype(np.uint8)
    side, w = CHECKPOINT.arch.side, rng.standard_normal((5, 5, 3, 2))
    w[..., 1] = 0  # sees red, and green where red was: at this shift a transform turned round would show
    w[2, 2, 0, 1] = w[2, 4, 1, 1] = 1
    row = (32 - side) // 2
    crops = (pixels - CHECKPOINT.mean)[:, row : row + side, row : row + side] * CHECKPOINT.scale
    seen = crops * np.outer(np.hanning(side), np.hanning(side))[..., None]
    energy = np.zeros((side, side, 2))
    for x in seen:
        response = sum(np.roll(x, (-i, -j), axis=(0, 1)) @ w[i, j] for i in range(5) for j in range(5))
        energy += np.abs(np.fft.fft2(response, axes=(0, 1))) ** 2
    cycles = np.minimum(np.arange(side), side - np.arange(side)) / side
    beyond = np.maximum(cycles[:, None], cycles) > 1 / 4
    share = energy[beyond].sum(axis=0) / energy.sum(axis=(0, 1))
    found = fig6.aliasing(w, 2, fig6.spectrum(CHECKPOINT, pictures(pixels)))
    np.testing.assert_allclose(found, share, rtol=1e-4)


def test_a_smooth_filter_aliases_less_than_a_sharp_one_and_a_wide_stride_more():
    spectrum = fig6.spectrum(CHECKPOINT, SCENES)
    smooth, sharp = wave(0.02), wave(0.4)
    assert fig6.aliasing(smooth, 2, spectrum) < 0.3 * fig6.aliasing(sharp, 2, spectrum)
    assert fig6.aliasing(smooth, 1, spectrum) == 0 == fig6.aliasing(sharp, 1, spectrum)
    assert fig6.aliasing(sharp, 4, spectrum) > fig6.aliasing(sharp, 2, spectrum)


def test_the_spectrum_is_the_data_s():
    """Noise that differs from pixel to pixel has a flat spectrum; what is the same everywhere has one peak."""
    ck = replace(CHECKPOINT, mean=np.full((32, 32, 3), 128, np.float32))
    flat = fig6.spectrum(ck, pictures(noise(200, 32)))
    diagonal = np.einsum("fgcc->fg", flat).real
    assert diagonal[6:12, 6:12].mean() == pytest.approx(diagonal[3:6, 3:6].mean(), rel=0.2)
    same = fig6.spectrum(ck, pictures(np.full((3, 32, 32, 3), 200, np.uint8)))
    assert np.einsum("fgcc->fg", same).real.argmax() == 0
    with pytest.raises(ValueError, match="none of the 2 images could be read"):
        fig6.spectrum(ck, pictures(noise(2, 32), bad=(0, 1)))


def test_a_dead_filter_and_a_dominant_one_are_seen():
    params = {name: {key: a.copy() for key, a in each.items()} for name, each in CHECKPOINT.params.items()}
    params["conv1"]["w"][..., 2] *= 100
    params["conv1"]["b"][[0, 4]] = -1e4
    few = SCENES.subset(range(5))  # fewer than the nine that are asked for
    looks = fig6.run({"good": CHECKPOINT, "bad": replace(CHECKPOINT, params=params)}, few, maps=3)
    good, bad = looks.values()
    assert good.dead == 0 and bad.rms.argmax() == 2
    assert bad.rms.max() / np.median(bad.rms) > 30 > good.rms.max() / np.median(good.rms)
    assert bad.dead == 3 / 6  # two that never respond, and one that hardly counts beside the dominant one
    assert len(good.layer2.maps) == 3 and good.layer2.layer == "relu2"
    np.testing.assert_allclose(good.rms, np.sqrt((good.w**2).mean(axis=(0, 1, 2))), rtol=1e-5)


def test_the_clip_holds_layer_1_and_without_it_filters_outgrow_it():
    """The planted effect: a few steps at a large rate, with the recipe's clip and without any."""
    data = datasets.load_whole(None, side=32).subset(range(64))
    largest = {}
    for clip in (0.1, None):
        recipe = replace(train.DEFAULT, batch=16, rate=0.05, schedule=((0, 0.05),), clip=clip, scale=1 / 32)
        start = train.begin(models.with_classes(models.TINY, 12), recipe, data, epochs=3, seed=0)
        done = train.run(start, data, data.first(12), recipe=recipe, epochs=3)
        look = fig6.run({"it": done}, data, maps=1)["it"]
        largest[clip] = look.rms.max()
        assert (look.clipped > 0) == (clip is not None)
    assert largest[0.1] <= 0.1 + 1e-6 < largest[None]
