"""The pointing game on maps and boxes made by hand."""

import numpy as np
import pytest

from lavis_apps.pointing import (
    covered,
    named_against_others,
    point,
    pointing_game,
    ratio_interval,
)


def peak(row: int, column: int, side: int = 4) -> np.ndarray:
    grid = np.zeros((side, side), dtype=np.float32)
    grid[row, column] = 1.0
    return grid


def test_a_hit_and_a_miss() -> None:
    size = (80, 40)  # patches of 20 x 10 pixels
    assert point(peak(0, 3), [(60, 0, 20, 10)], size).hit == 1
    assert point(peak(3, 0), [(60, 0, 20, 10)], size).hit == 0
    assert point(peak(3, 0), [(60, 0, 20, 10), (0, 30, 20, 10)], size).hit == 1  # any box
    row = point(peak(1, 1), [(0, 0, 40, 20)], size)
    assert row.chance == pytest.approx(0.25)
    assert row.energy is not None
    assert 0.75 < row.energy <= 1


def test_the_highest_patch_wins_also_against_one_at_the_edge() -> None:
    grid = peak(1, 2) + 0.95 * peak(3, 0)
    assert point(grid, [(40, 20, 20, 20)], (80, 80)).hit == 1
    assert point(grid, [(0, 60, 20, 20)], (80, 80)).hit == 0
    assert point(grid, [(48, 28, 4, 4)], (80, 80)).hit == 1  # its middle


def test_chance_is_the_area_of_the_union() -> None:
    size = (10, 10)
    boxes = [(0.0, 0.0, 4.0, 4.0), (2.0, 2.0, 4.0, 4.0)]
    assert covered(boxes, size).sum() == 16 + 16 - 4
    assert point(peak(0, 0), boxes, size).chance == pytest.approx(0.28)
    assert covered([(-5, -5, 7, 7)], size).sum() == 4  # what lies in the picture
    assert covered([(8, 8, 100, 100)], size).sum() == 4
    assert covered([(0, 0, 10, 10)], size).all()


def test_pixels_belong_to_a_box_by_their_middle() -> None:
    inside = covered([(1.4, 0.6, 2.0, 1.0)], (5, 3))
    assert np.argwhere(inside).tolist() == [[1, 1], [1, 2]]
    # too thin for any middle: the pixel around its own
    assert np.argwhere(covered([(4.6, 2.7, 0.2, 0.2)], (5, 3))).tolist() == [[2, 4]]
    assert not covered([(5.0, 0.0, 3.0, 3.0)], (5, 3)).any()
    assert not covered([(-4.0, 0.0, 3.0, 3.0)], (5, 3)).any()


@pytest.mark.parametrize(("value", "energy"), [(2.0, 0.25), (0.0, None)])
def test_a_map_of_one_value_hits_as_chance_does(value: float, energy: float | None) -> None:
    grid = np.full((3, 3), value, dtype=np.float32)
    row = point(grid, [(0, 0, 7, 7)], (14, 14))
    assert row.hit == row.chance == pytest.approx(0.25)
    assert row.energy == (None if energy is None else pytest.approx(energy))


def test_a_shared_maximum_counts_by_its_share() -> None:
    grid = peak(0, 0) + peak(3, 3)
    assert point(grid, [(0, 0, 20, 20)], (40, 40)).hit == pytest.approx(0.5)
    assert point(grid, [(0, 0, 40, 40)], (40, 40)).hit == 1
    assert point(grid, [(20, 0, 20, 20)], (40, 40)).hit == 0


def test_wrong_maps_and_boxes_are_named() -> None:
    with pytest.raises(ValueError, match="no box inside the picture of 10 x 10"):
        point(peak(0, 0), [(20, 20, 5, 5)], (10, 10))
    with pytest.raises(ValueError, match="no box inside"):
        point(peak(0, 0), [], (10, 10))
    grid = peak(0, 0)
    grid[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"map 1 \(picture b\): a map with nan"):
        pointing_game([peak(0, 0), grid], [[(0, 0, 5, 5)]] * 2, [(10, 10)] * 2, ["a", "b"])
    with pytest.raises(ValueError, match="argument"):
        pointing_game([peak(0, 0)], [], [(10, 10)], ["a"])


def test_the_game() -> None:
    maps = [peak(0, 0), peak(3, 3), peak(0, 0), np.zeros((4, 4))]
    boxes = [[(0, 0, 20, 20)], [(0, 0, 20, 20)], [(0, 0, 40, 20)], [(0, 0, 20, 20)]]
    game = pointing_game(maps, boxes, [(40, 40)] * 4, ["a", "a", "b", "c"])
    assert (game.n, game.n_images, game.n_flat) == (4, 3, 1)
    assert [row.hit for row in game.rows] == [1, 0, 1, 0.25]
    assert game.hit_rate.mean == pytest.approx(2.25 / 4)
    assert game.chance == pytest.approx((0.25 + 0.25 + 0.5 + 0.25) / 4)
    assert game.ratio == pytest.approx(2.25 / 1.25)
    assert game.energy.n == 3  # the map of zeros has none
    assert game.energy.mean == pytest.approx(2 / 3, abs=0.06)
    assert game.ratio_low is not None
    assert game.ratio_high is not None
    assert game.ratio_low <= game.ratio <= game.ratio_high
    assert game.note == "only 3 pictures: the interval is too narrow"


def test_named_against_others() -> None:
    left, right, size = [(0, 0, 20, 40)], [(20, 0, 20, 40)], (40, 40)
    follows = [peak(0, 0), peak(0, 3)] * 6
    named, others = [left, right] * 6, [right, left] * 6
    sizes, ids = [size] * 12, [k // 2 for k in range(12)]
    found = named_against_others(follows, named, others, sizes, ids)
    assert (found.difference, found.wins, found.losses) == (1.0, 12, 0)
    # the same map whatever the text: as often right as wrong, though half of all hits are
    salient = named_against_others([peak(0, 0)] * 12, named, others, sizes, ids)
    assert (salient.difference, salient.wins, salient.losses) == (0.0, 6, 6)
    assert salient.n_clusters == 6


def test_the_interval_resamples_pictures() -> None:
    """The same rows twice in the same pictures tell no more; in pictures of their own they do."""
    rng = np.random.default_rng(0)
    hits = (rng.random(60) < 0.5).astype(float)
    chances = rng.uniform(0.1, 0.3, 60)
    ids = [str(i) for i in range(60)]
    once = ratio_interval(hits, chances, ids)
    doubled = [np.concatenate([values, values]) for values in (hits, chances)]
    twice = ratio_interval(*doubled, ids * 2)
    apart = ratio_interval(*doubled, [*ids, *(f"other {i}" for i in ids)])
    assert twice[:2] == pytest.approx(once[:2])
    assert apart[1] - apart[0] < 0.85 * (once[1] - once[0])
    ratio = hits.sum() / chances.sum()
    assert once[0] < ratio < once[1]
    assert ratio_interval(hits, chances, ids) == once  # same seed, same interval


def test_always_right_has_an_interval_of_its_hits() -> None:
    count = 20
    game = pointing_game(
        [peak(0, 0)] * count, [[(0, 0, 10, 10)]] * count, [(40, 40)] * count, list(range(count))
    )
    assert game.hit_rate.mean == 1
    assert game.hit_rate.low < 0.9  # Wilson's
    assert game.ratio == pytest.approx(16)


def test_nothing_to_say() -> None:
    empty = pointing_game([], [], [], [])
    assert empty.hit_rate.mean is None
    assert empty.ratio is None
    assert empty.ratio_low is None
    assert empty.note == "0 picture(s): no interval"
    one = pointing_game([peak(0, 0)], [[(0, 0, 10, 10)]], [(40, 40)], ["a"])
    assert one.ratio == pytest.approx(16)
    assert (one.ratio_low, one.ratio_high) == (None, None)
    assert one.note == "1 picture(s): no interval"
