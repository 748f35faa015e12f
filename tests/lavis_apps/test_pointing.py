"""The pointing game on maps and boxes made by hand."""

import numpy as np
import pytest

from lavis_apps.pointing import covered, elsewhere, point, ratio_interval


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
    with pytest.raises(ValueError, match="a map with nan"):
        point(grid, [(0, 0, 5, 5)], (10, 10))


def test_a_map_that_ignores_its_text_hits_named_and_others_alike() -> None:
    size = (40, 40)
    left, middle, right = ([(x, 0, w, 40)] for x, w in ((0, 20), (10, 20), (20, 20)))
    assert elsewhere(peak(0, 0), [right], size) == 0
    assert elsewhere(peak(0, 3), [right], size) == 1
    assert elsewhere(peak(0, 3), [left, right], size) == 0.5
    assert elsewhere(peak(0, 3), [], size) is None
    boxes = [left, middle, right]  # overlapping ones, asked for one after the other
    for grid in (peak(0, 0), peak(0, 1), peak(2, 3)):
        named = [point(grid, own, size).hit for own in boxes]
        others = [elsewhere(grid, [o for o in boxes if o is not own], size) for own in boxes]
        assert sum(named) == pytest.approx(sum(others))


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


def test_no_interval_of_one_picture() -> None:
    assert ratio_interval([1.0], [0.25], ["a"]) == (None, None, "1 picture(s): no interval")
    assert ratio_interval([], [], []) == (None, None, "0 picture(s): no interval")
    assert ratio_interval([1.0, 0.0], [0.25, 0.25], [1, 2])[2] == (
        "only 2 pictures: the interval is too narrow"
    )
