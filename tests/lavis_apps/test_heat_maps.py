"""Heat maps: the formula pixel by pixel, maps without a difference, sizes, the chart of words."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from lavis_apps.heat_maps import (
    MOST_WORDS,
    enlarged,
    fitted,
    from_0_to_1,
    heat_map,
    smooth,
    words_chart,
)
from lavis_apps.localization import Localization, WordMap

GRID = np.array([[0.2, 0.2, 0.2], [0.2, 1.4, 0.2], [0.2, 0.2, 0.5]], dtype=np.float32)


def picture(size: tuple[int, int] = (60, 40)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def localization(words: int) -> Localization:
    maps = [WordMap(f"$word{i}$", np.roll(GRID, i)) for i in range(words)]
    return Localization(GRID, maps, 0.75, cut=False)


def bicubic(count: int, size: int) -> np.ndarray:
    """(size, count) weights of Keys' kernel with a = -0.5; outside, the outermost value."""
    weights = np.zeros((size, count))
    for i in range(size):
        place = (i + 0.5) * count / size - 0.5
        for k in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            x = abs(place - k)
            near = 1.5 * x**3 - 2.5 * x**2 + 1
            far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            weights[i, min(max(k, 0), count - 1)] += near if x < 1 else far
    return weights


def test_the_formula() -> None:
    image = picture()
    heat = bicubic(3, 40) @ ((GRID - 0.2) / 1.2) @ bicubic(3, 60).T
    np.testing.assert_allclose(enlarged((GRID - 0.2) / 1.2, (60, 40)), heat.clip(0, 1), atol=1e-6)
    heat = gaussian_filter(heat.clip(0, 1), 0.02 * 60)
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    colors = matplotlib.colormaps["jet"](heat)[..., :3]
    share = (heat**0.7)[..., None]
    expected = (1 - share) * np.asarray(image) / 255 + share * colors
    drawn = np.asarray(heat_map(GRID, image), dtype=np.float64) / 255
    assert drawn.shape == (40, 60, 3)
    difference = np.abs(drawn - expected)
    assert np.median(difference) < 0.003  # rounding to 8 bits
    assert difference.max() < 0.03  # the neighbouring one of jet's 256 colours


def test_hot_is_where_the_map_is_high() -> None:
    grid = np.zeros((4, 4), dtype=np.float32)
    grid[0, 3] = 2.0
    grey = Image.new("RGB", (80, 80), (128, 128, 128))
    drawn = np.asarray(heat_map(grid, grey), dtype=int)
    assert drawn[3, 76, 0] > drawn[3, 76, 2] + 100  # red
    assert drawn[70, 5].tolist() == [128, 128, 128]
    heat = smooth(grid, (80, 80))
    assert heat.min() == 0
    assert heat.max() == 1
    assert heat[5, 75] > 0.9 > 0.1 > heat[40, 40]


def test_edges_do_not_fade() -> None:
    """A map that is high along a side is high up to the picture's edge."""
    grid = np.zeros((6, 6), dtype=np.float32)
    grid[:, 0] = 1.0
    assert smooth(grid, (96, 96))[:, 0].min() > 0.95


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_map_without_a_difference_leaves_the_picture(value: float) -> None:
    grid = np.full((4, 4), value, dtype=np.float32)
    assert not smooth(grid, (60, 40)).any()
    np.testing.assert_array_equal(np.asarray(heat_map(grid, picture())), np.asarray(picture()))


def test_from_0_to_1() -> None:
    assert from_0_to_1(np.array([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert from_0_to_1(np.array([7.0, 7.0])).tolist() == [0.0, 0.0]


def test_enlarged_to_width_and_height() -> None:
    grid = np.arange(6, dtype=np.float64).reshape(2, 3)
    assert enlarged(grid, (30, 20)).shape == (20, 30)
    np.testing.assert_allclose(enlarged(grid, (3, 2)), grid)
    large = enlarged(grid, (300, 200))
    assert (large.min(), large.max()) == (0, 5)
    assert enlarged(grid.T, (20, 30)).shape == (30, 20)  # not contiguous


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 1), (640, 480)])
def test_sizes(size: tuple[int, int]) -> None:
    assert heat_map(GRID, picture(size)).size == size


def test_very_wide_pictures_are_drawn_smaller() -> None:
    wide = Image.new("RGB", (20_000, 30), (9, 9, 9))
    assert heat_map(GRID, wide).size == (2048, 3)
    assert fitted(wide, 100).size == (100, 1)
    image = picture()
    assert fitted(image) is image
    assert heat_map(GRID, image.convert("L")).mode == "RGB"


@pytest.mark.parametrize("count", [0, 2, 5])
def test_the_chart_of_words(count: int) -> None:
    chart = Image.open(io.BytesIO(words_chart(picture(), localization(count))))
    tiles = count + 1
    assert chart.size == (240 * min(4, tiles), 190 * ((tiles + 3) // 4))  # pictures of 240 x 160
    assert len(chart.convert("RGB").getcolors(10**6) or ()) > 100


@pytest.mark.slow
def test_of_very_many_words_the_first_are_drawn() -> None:
    chart = Image.open(io.BytesIO(words_chart(picture(), localization(MOST_WORDS + 300))))
    assert chart.size == (960, 1900)
