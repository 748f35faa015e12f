"""How sure corpus figures of captions are: bootstrap intervals, and the paired test of two sets.

Images are drawn with replacement and the figures computed anew from the drawn images' sums: for
BLEU these are lengths and n-gram counts, for the rest the images' own scores. Two sets of captions
of the same images are compared at the same draws; the p-value comes from swapping the two captions
of images at random (approximate randomisation: Riezler, Maxwell 2005, W05-0908).

    python -m pytest tests/shared/test_caption_score.py

Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from shared.caption_metrics import ORDERS, Statistics, figures
from shared.significance import FEW_CLUSTERS, N_FLIPS, PairedComparison

if TYPE_CHECKING:
    import numpy as np

_PIECE = 2**22  # numbers of a matrix of resamples at a time (32 MB)


def corpus_intervals(
    statistics: Statistics, n_resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """95 % percentile intervals of the corpus figures, images drawn with replacement.

    CIDEr's weights stay those of the whole set: an image's CIDEr is what is drawn.
    """
    import numpy as np

    columns = statistics.columns()
    n_images = len(columns)
    note = _sample_note(n_images)
    if n_images == 1:
        return {name: _interval(None, n_images, note) for name in statistics.names}
    drawn = np.concatenate(
        [figures(draws @ columns, n_images) for draws in _draws(n_images, n_resamples, seed)]
    )
    found = {}
    for name, samples in zip(statistics.names, drawn.T, strict=True):
        found[name] = _interval(_limits(samples), n_images, note)
        if name == "CIDEr":
            _add_note(found[name], "the words' weights are this set's, not drawn anew")
        elif name == "METEOR":
            found[name]["mean"] = float(statistics.means[name].mean())
            _add_note(found[name], "of the mean over images, which is not the corpus value")
    return found


def compare_statistics(
    base: Statistics, tuned: Statistics, n_resamples: int, seed: int
) -> dict[str, PairedComparison]:
    """Tuned minus base for every metric that both have; what it means: `compare_captions`."""
    import numpy as np

    names = [name for name in base.names if name in tuned.means or name not in base.means]
    columns = [_chosen(base, names), _chosen(tuned, names)]
    n_images = len(columns[0])
    observed = _difference(columns[0].sum(0), columns[1].sum(0), n_images)
    own = _difference(columns[0], columns[1], 1)  # [I, 4 + M]
    own[abs(own) <= 1e-9] = 0.0
    # Without a matched n-gram on either side an image's BLEU differs by its small constants only.
    unmatched = (base.counts[:, -ORDERS:] == 0) & (tuned.counts[:, -ORDERS:] == 0)
    own[:, :ORDERS][unmatched] = 0.0
    note = _sample_note(n_images)
    limits: list[tuple[float, float] | None] = [None] * len(names)
    p_values: list[float | None] = [None] * len(names)
    detectable: list[float | None] = [None] * len(names)
    if n_images > 1:
        drawn = np.concatenate(
            [
                _difference(draws @ columns[0], draws @ columns[1], n_images)
                for draws in _draws(n_images, n_resamples, seed)
            ]
        )
        limits = [_limits(samples) for samples in drawn.T]
        p_values = _swap_test(columns[0], columns[1], seed)
        # Power .8 at two-sided .05, by the spread of the resampled differences.
        powered = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
        detectable = [
            powered * float(samples.std()) if limit else None
            for samples, limit in zip(drawn.T, limits, strict=True)
        ]
    compared = {}
    for i, name in enumerate(names):
        notes = [note] if note else []
        if n_images > 1 and limits[i] is None:
            notes.append("no image's difference varies: no interval")
        if name == "CIDEr":
            notes.append("the words' weights are this set's, not drawn anew")
        if name == "METEOR":
            notes.append("the mean over images, not the corpus value")
        low, high = limits[i] or (None, None)
        wins, losses = int((own[:, i] > 0).sum()), int((own[:, i] < 0).sum())
        compared[name] = PairedComparison(
            difference=float(observed[i]), low=low, high=high,
            p_value=p_values[i], p_value_mid=None,
            test="captions swapped within images" if n_images > 1 else None,
            n=n_images, n_clusters=n_images,
            wins=wins, ties=n_images - wins - losses, losses=losses,
            minimum_detectable_difference=detectable[i], note="; ".join(notes) or None,
        )  # fmt: skip
    return compared


def _chosen(statistics: Statistics, names: list[str]) -> np.ndarray:
    means = {name: column for name, column in statistics.means.items() if name in names}
    return Statistics(statistics.tokens, statistics.counts, means).columns()


def _difference(base: np.ndarray, tuned: np.ndarray, n_images: int) -> np.ndarray:
    return figures(tuned, n_images) - figures(base, n_images)


def _swap_test(base: np.ndarray, tuned: np.ndarray, seed: int) -> list[float | None]:
    """Two-sided p-values when an image's two captions could as well have changed places.

    All patterns where they are at most `N_FLIPS`, else that many drawn, and the observed one
    counted in. None for a metric in which no image differs.
    """
    import numpy as np

    n_images = len(base)
    sums = base.sum(0), tuned.sum(0)
    observed = abs(_difference(*sums, n_images))
    least = observed * (1 - 1e-9)  # a rounding error below is still as large
    changes = (tuned - base)[(tuned != base).any(1)]
    n_changed = len(changes)
    exhaustive = 2**n_changed <= N_FLIPS
    hits = np.zeros(len(observed))
    for swaps in _all_swaps(n_changed) if exhaustive else _swaps(n_changed, seed):
        moved = swaps @ changes
        hits += (abs(_difference(sums[0] + moved, sums[1] - moved, n_images)) >= least).sum(0)
    p_values = hits / 2**n_changed if exhaustive else (hits + 1) / (N_FLIPS + 1)
    return [float(p) for p in p_values]


def _all_swaps(n: int) -> Iterator[np.ndarray]:
    import numpy as np

    yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(float)  # [2**n, n]


def _swaps(n: int, seed: int) -> Iterator[np.ndarray]:
    import numpy as np

    rng = np.random.default_rng(seed)
    for rows in _pieces(N_FLIPS, n):
        packed = rng.integers(0, 256, size=(rows, (n + 7) // 8), dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=n).astype(float)  # [rows, n]


def _draws(n_images: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often every image is drawn, [rows, I] a piece."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for rows in _pieces(n_resamples, n_images):
        drawn = rng.integers(0, n_images, size=(rows, n_images))
        drawn += n_images * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_images)
        yield counts.reshape(rows, n_images).astype(float)


def _pieces(total: int, width: int) -> Iterator[int]:
    size = max(1, _PIECE // max(1, width))
    for done in range(0, total, size):
        yield min(size, total - done)


def _limits(samples: np.ndarray) -> tuple[float, float] | None:
    """2.5 and 97.5 % points; None where all samples are alike, which would claim certainty."""
    import numpy as np

    low, high = map(float, np.percentile(samples, [2.5, 97.5]))
    return None if samples.max() - samples.min() <= 1e-12 * max(1.0, abs(high)) else (low, high)


def _sample_note(n_images: int) -> str | None:
    if n_images == 1:
        return "one image: no interval, no test"
    few = f"only {n_images} images: the interval is too narrow"
    return few if n_images < FEW_CLUSTERS else None


def _interval(
    limits: tuple[float, float] | None, n_images: int, note: str | None
) -> dict[str, Any]:
    low, high = limits or (None, None)
    interval: dict[str, Any] = {"low": low, "high": high, "n": n_images}
    if note:
        interval["note"] = note
    elif limits is None:
        interval["note"] = "all images have the same figure: no interval"
    return interval


def _add_note(interval: dict[str, Any], note: str) -> None:
    interval["note"] = f"{interval['note']}; {note}" if "note" in interval else note
