"""Tiles of a fast convolution: each output in one of them, each point where it is needed, and their matrices."""

import itertools

import numpy as np
import pytest

from refnet.ops.tiles import Tiles, line_matrices, multiplications, scheme, tile_counts

EVERY = list(itertools.product(range(1, 11), repeat=2))
every_size = pytest.mark.parametrize("out_hw", EVERY, ids=str)


def numbers(part):
    return range(part.start, part.stop)


@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
def test_matrices_correlate(outputs):
    a, g, b = line_matrices(outputs)
    assert (a.shape, g.shape, b.shape) == ((outputs + 2, outputs), (outputs + 2, 3), (outputs + 2, outputs + 2))
    x, w = np.random.default_rng(0).normal(size=(100, outputs + 2)), np.random.default_rng(1).normal(size=(100, 3))
    y = ((w @ g.T) * (x @ b.T)) @ a
    want = sum(x[:, i : i + outputs] * w[:, i : i + 1] for i in range(3))
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-13)


def test_filters_at_a_point_are_the_same_for_all_tiles():
    whole = line_matrices()[1]
    for outputs in (1, 2, 3):
        np.testing.assert_array_equal(line_matrices(outputs)[1], whole[: outputs + 2])


@every_size
def test_each_output_is_in_one_tile(out_hw):
    times, tiles_seen = np.zeros(out_hw, int), []
    for tiles in scheme(out_hw).tiles:
        rows, columns = (count * outputs for count, outputs in zip(tiles.counts, tiles.outputs, strict=True))
        times[tiles.first[0] :, tiles.first[1] :][:rows, :columns] += 1
        tiles_seen += numbers(tiles.place)
        assert len(numbers(tiles.place)) == tiles.counts[0] * tiles.counts[1]
        assert rows + tiles.first[0] <= out_hw[0] and columns + tiles.first[1] <= out_hw[1]
    assert (times == 1).all()
    assert tiles_seen == list(range(scheme(out_hw).tile_count))


@every_size
def test_products_are_what_tiles_take_and_nothing_else(out_hw):
    cut = scheme(out_hw)
    taken = {pair for each in cut.tiles for pair in itertools.product(numbers(each.points), numbers(each.place))}
    made = [pair for each in cut.products for pair in itertools.product(numbers(each.points), numbers(each.place))]
    assert len(made) == len(set(made)) and set(made) == taken
    assert multiplications(out_hw) == len(made)
    for each in cut.tiles:
        assert len(numbers(each.points)) == each.met[0] * each.met[1] == len(each.a) == len(each.b)


@every_size
def test_all_pairs_of_points_are_in_one_product(out_hw):
    pairs, numbered = [], []
    for each in scheme(out_hw).products:
        pairs += itertools.product(*(numbers(part) for part in each.pairs))
        numbered += numbers(each.points)
    assert sorted(pairs) == list(itertools.product(range(6), repeat=2))
    assert numbered == list(range(36))


@every_size
def test_matrices_of_tiles_have_the_points_of_the_products(out_hw):
    cut = scheme(out_hw)
    pairs = [pair for each in cut.products for pair in itertools.product(*(numbers(part) for part in each.pairs))]
    for tiles in cut.tiles:
        (a, _, b), (a2, _, b2) = map(line_matrices, tiles.outputs)
        for number, (i, j) in enumerate(pairs[tiles.points]):
            np.testing.assert_array_equal(tiles.a[number], np.outer(a[i], a2[j]).ravel())
            np.testing.assert_array_equal(tiles.b[number], np.outer(b[i], b2[j]).ravel())


def test_narrow_tiles_save_multiplications():
    assert [multiplications((n, n)) for n in (1, 4, 13, 26)] == [9, 36, 21**2, 40**2]
    assert multiplications((13, 26)) == 21 * 40
    assert [scheme(hw).tile_count for hw in ((1, 1), (13, 13), (26, 26), (5, 9))] == [1, 16, 49, 6]


def test_tiles_are_4_by_4_outputs():
    assert [tile_counts((n, 1)) for n in (1, 4, 5, 13)] == [(1, 1), (1, 1), (2, 1), (4, 1)]
    assert tile_counts((3, 9, 64)) == (1, 3)


@every_size
def test_there_are_as_many_tiles_as_counted(out_hw):
    rows, columns = tile_counts(out_hw)
    assert scheme(out_hw).tile_count == rows * columns


@pytest.mark.parametrize(("n", "maps"), [(0, 3), (1, 1), (3, 64), (2, 5000), (5, 10**6)])
def test_pieces_are_all_tiles_of_all_images_in_order(n, maps):
    for tiles in scheme((23, 14)).tiles:
        seen, count = [], len(numbers(tiles.place))
        for images, rows, place in tiles.pieces(n, maps):
            listed = list(itertools.product(numbers(images), numbers(rows), range(tiles.counts[1])))
            assert len(listed) == len(numbers(place))
            assert place.start == n * tiles.place.start + len(seen)
            seen += listed
        assert seen == list(itertools.product(range(n), range(tiles.counts[0]), range(tiles.counts[1])))
        assert len(seen) == n * count


def test_pieces_stay_in_cache_where_a_row_of_tiles_does():
    tiles = next(each for each in scheme((26, 26)).tiles if each.outputs == (4, 4))
    sizes = [len(numbers(place)) for _, _, place in tiles.pieces(2, 384)]
    assert sizes == [18] * 4  # a row of 6 tiles takes 83,000 values
    assert [len(numbers(place)) for _, _, place in tiles.pieces(8, 64)] == [108, 108, 72]


def test_a_kind_of_tile_is_described():
    whole, corner = (next(each for each in scheme((13, 26)).tiles if each.outputs == hw) for hw in ((4, 4), (1, 2)))
    assert isinstance(whole, Tiles) and (whole.first, whole.counts, whole.met) == ((0, 0), (3, 6), (6, 6))
    assert (corner.first, corner.counts, corner.met) == ((12, 24), (1, 1), (3, 4))
