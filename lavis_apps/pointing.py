"""The pointing game: whether a map's highest point lies in a box of what the text names.

A map is enlarged to its picture; it hits when its maximum is inside any of the boxes (J. Zhang et
al. 2016, arXiv 1608.00507, without their 15 pixels of tolerance). By chance it would as often as
the boxes' share of the picture's area, so the hit rate is told beside that share and as a multiple
of it. The energy is the share of the whole map inside the boxes (H. Wang et al. 2020, arXiv
1910.01279). Neither tells whether a map follows its text or shows whatever stands out: that needs
`elsewhere`. Pure functions of maps and boxes, no torch; scoring_itm.py makes the figures.

    point(grid, boxes, size).hit
    python lavis_apps/evaluate.py --task localization --data_root data/coco2017 [--toy]

Reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.significance import FEW_CLUSTERS, N_RESAMPLES

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]  # x, y, width, height in pixels, as in COCO
TIE = 1e-6  # of the map's range: enlarging in float32 tells equal maxima apart by less


@dataclass(frozen=True)
class Pointing:
    """One map against the boxes of one category; all in 0..1."""

    hit: float  # 1 or 0; between them when the maximum is shared by places inside and outside
    chance: float  # the boxes' share of the picture's area
    energy: float | None  # None for a map of zeros


def point(grid: np.ndarray, boxes: Iterable[Box], size: tuple[int, int]) -> Pointing:
    """One map (rows, columns) against boxes on a picture of `size` (width, height).

    Ties: where several pixels share the maximum, `hit` is the share of them inside, which is what
    choosing one of them at random gives; so a map of one value hits as often as chance.

    Raises ValueError for a map with a number that is not finite, and when no box lies in the
    picture.
    """
    import numpy as np

    if not np.isfinite(grid).all():
        raise ValueError("a map with nan or inf")
    inside = covered(boxes, size)
    if not inside.any():
        raise ValueError(f"no box inside the picture of {size[0]} x {size[1]} pixels")
    chance = float(inside.mean())
    if is_flat(grid):
        top = np.ones_like(inside)
        heat = np.full(inside.shape, grid.flat[0], dtype=np.float32)
    else:
        heat = enlarged(grid, size)
        top = heat >= heat.max() - TIE * (heat.max() - heat.min())
    heat = heat.astype(np.float64).clip(min=0)
    total = heat.sum()
    energy = float(heat[inside].sum() / total) if total > 0 else None
    return Pointing(float(inside[top].mean()), chance, energy)


def enlarged(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (rows, columns) on a picture of `size` (width, height): (height, width) float32.

    Linear: the highest patch stays the highest, its top in its middle. A bicubic curve lifts the
    patches at the edges above others.
    """
    import numpy as np
    from PIL import Image

    small = Image.fromarray(np.array(grid, dtype=np.float32))  # a copy, whatever its layout
    return np.asarray(small.resize(size, Image.Resampling.BILINEAR))


def covered(boxes: Iterable[Box], size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: the pixels whose middle is in any box."""
    import numpy as np

    width, height = size
    inside = np.zeros((height, width), dtype=bool)
    for x, y, w, h in boxes:
        inside[_pixels(y, h, height), _pixels(x, w, width)] = True
    return inside


def _pixels(start: float, length: float, limit: int) -> slice:
    """Along one side; a box too thin for any pixel's middle has the pixel that holds its own."""
    first, behind = math.floor(start + 0.5), math.floor(start + length + 0.5)
    if first >= behind:
        first = math.floor(start + length / 2)
        behind = first + 1
    return slice(min(max(0, first), limit), min(max(0, behind), limit))


def is_flat(grid: np.ndarray) -> bool:
    return bool(grid.max() == grid.min())


def elsewhere(
    grid: np.ndarray, others: Sequence[Sequence[Box]], size: tuple[int, int]
) -> float | None:
    """How often the map hits what its text does not name: the mean hit on the boxes of each other
    category of the picture; None where it has no other.

    The mean, not the union: a map that ignores the text, asked for each category of a picture, then
    hits the named ones exactly as often as the others, however many there are.
    """
    hits = [point(grid, boxes, size).hit for boxes in others]
    return sum(hits) / len(hits) if hits else None


def ratio_interval(
    hits: Sequence[float],
    chances: Sequence[float],
    image_ids: Sequence[int | str],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> tuple[float | None, float | None, str | None]:
    """(low, high, note): the 95 % percentile interval of sum(hits) / sum(chances) when pictures are
    drawn with replacement. No limits below two pictures."""
    import numpy as np

    places = {image_id: i for i, image_id in enumerate(dict.fromkeys(image_ids))}
    if len(places) < 2:
        return None, None, f"{len(places)} picture(s): no interval"
    index = [places[image_id] for image_id in image_ids]
    hit, chance = (np.bincount(index, weights=values) for values in (hits, chances))
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(n_resamples):
        drawn = rng.integers(len(places), size=len(places))
        ratios.append(hit[drawn].sum() / chance[drawn].sum())
    low, high = np.percentile(ratios, [2.5, 97.5])
    few = len(places) < FEW_CLUSTERS
    note = f"only {len(places)} pictures: the interval is too narrow" if few else None
    return float(low), float(high), note
