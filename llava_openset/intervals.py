"""How sure open-set figures are: bootstrap intervals, and the paired difference of two AUROCs.

Known and unknown samples are drawn with replacement apart, each as many as there are, so that their
ratio, which AUPR depends on, stays. Rows that share a picture (crops, one picture asked twice) are
drawn together when `clusters` are given: pictures with known rows only, with unknown rows only and
with both are then drawn apart. Limits are the 2.5 and 97.5 percentiles of the figure over the
resamples. The threshold stays as given: how it would vary with the validation part is not in them.

    python -m pytest tests/llava_openset/test_intervals.py

Reads and writes nothing. The figures are those of `llava_openset.metrics`, from how often each row
was drawn, for all resamples at once: scikit-learn takes one resample a call, milliseconds each.
Tests hold the two equal, figure by figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llava_openset.metrics import (
    METRICS,
    UNKNOWN,
    Rows,
    are_confidences,
    checked_rows,
    checked_scores,
    final_predictions,
    open_set_metrics,
)
from shared.calibration import N_BINS
from shared.significance import FEW_CLUSTERS, N_RESAMPLES, Interval, wilson_interval

# What the figure is computed from; the others need known and unknown samples.
OF_KNOWN = (
    "closed_set_accuracy", "known_accept_rate", "known_correct_and_accepted",
    "aurc", "ece", "brier",
)  # fmt: skip
OF_UNKNOWN = ("unknown_reject_rate",)
PROPORTIONS = (
    "closed_set_accuracy", "known_accept_rate", "known_correct_and_accepted", "unknown_reject_rate",
)  # fmt: skip
# Resamples are drawn in pieces of this many counts, so that memory does not grow with their number.
_PIECE = 2**18


@dataclass(frozen=True)
class AurocDifference:
    """AUROC of the other scores minus that of the base scores, on the same samples.

    `low` and `high`: 95 % percentile interval over resamples in which both are computed. `p_value`,
    two-sided: 1 minus the widest confidence whose percentile interval leaves 0 out, that is twice
    the share of resamples on the rarer side of 0 (those at 0 on both), the data counted as one of
    them so that it is never 0. What cannot be said is None, and `note` says why.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n_known: int
    n_unknown: int
    note: str | None = None


def bootstrap_intervals(
    scores: Sequence[float],
    labels: Sequence[int],
    predictions: Sequence[int],
    threshold: float | None,
    n_classes: int,
    names: Iterable[str],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    clusters: Sequence[int | str] | None = None,
) -> dict[str, Interval]:
    """95 % intervals of the named figures of `open_set_metrics`, whose value stands as `mean`.

    `n` counts the samples that the figure is computed from, `n_clusters` their pictures. A share
    that is 0 or 1 in all resamples gets Wilson's interval, over pictures where given; any other
    figure that no resample changes (a perfect AUROC) gets none, and `note` says so, as it does
    below ten samples, where a bootstrap is too narrow, and for a figure that is None. Same rows in
    any order and same seed, same intervals. Raises ValueError as `open_set_metrics` does, for a
    name that is not in `METRICS` and for openness, which no sample enters.
    """
    names = list(names)
    for name in names:
        if name not in METRICS or name == "openness":
            known_names = ", ".join(METRICS[:-1])
            raise ValueError(f"no interval of {name!r}, must be one of {known_names}")
    rows = checked_rows(scores, labels, predictions, n_classes)
    values = open_set_metrics(scores, labels, predictions, threshold, n_classes)
    codes = _cluster_codes(clusters, len(rows))
    order = np.lexsort((rows.predictions, rows.labels, rows.scores))
    rows = Rows(rows.scores[order], rows.labels[order], rows.predictions[order])
    codes = None if codes is None else codes[order]
    figures: dict[str, list[np.ndarray]] = {name: [] for name in names}
    computed = [name for name in names if values[name] is not None]
    if computed:
        for counts in _resamples(rows.known, codes, n_resamples, seed):
            piece = figures_of_resamples(rows, counts, threshold, n_classes)
            for name in computed:
                figures[name].append(piece[name])
    return {
        name: _interval(
            name, values[name], values["notes"].get(name), figures[name], rows.known, codes
        )
        for name in names
    }


def auroc_difference(
    base_scores: Sequence[float],
    other_scores: Sequence[float],
    labels: Sequence[int],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    clusters: Sequence[int | str] | None = None,
) -> AurocDifference:
    """Compare two scores of the same samples, row by row; only their order matters, not their unit.

    Both are computed on the same resamples, so what makes a sample hard for both drops out. Raises
    ValueError naming the row as `checked_rows` does.
    """
    rows = checked_rows(base_scores, labels, labels)
    other = checked_scores(other_scores, "other_scores")
    if len(other) != len(rows):
        raise ValueError(
            f"unequal numbers of rows (base_scores {len(rows)}, other_scores {len(other)}): "
            f"row {min(len(rows), len(other))} lacks a partner"
        )
    codes = _cluster_codes(clusters, len(rows))
    order = np.lexsort((other, rows.scores, rows.labels))
    base, other, known = rows.scores[order], other[order], rows.known[order]
    codes = None if codes is None else codes[order]
    n_known, n_unknown = int(known.sum()), int((~known).sum())
    if not n_known or not n_unknown:
        missing = "unknown" if n_known else "known"
        return AurocDifference(None, None, None, None, n_known, n_unknown, f"no {missing} sample")

    def differences(counts: np.ndarray) -> np.ndarray:
        return _auroc(other, known, counts) - _auroc(base, known, counts)

    difference = float(differences(np.ones((1, len(known)), dtype=np.int64))[0])
    alone, few = _too_few(("known", "unknown"), known, codes)
    if alone:
        return AurocDifference(difference, None, None, None, n_known, n_unknown, alone)
    drawn = np.concatenate(
        [differences(counts) for counts in _resamples(known, codes, n_resamples, seed)]
    )
    if np.ptp(drawn) <= 1e-12:
        same = "every resample gives the same difference: no interval, no test"
        note = "; ".join(filter(None, [few, same]))
        return AurocDifference(difference, None, None, None, n_known, n_unknown, note)
    low, high = np.quantile(drawn, [0.025, 0.975])
    # a rounding error beside 0 lies on both sides
    rarer = min((drawn <= 1e-12).sum(), (drawn >= -1e-12).sum())
    p_value = min(1.0, 2 * (int(rarer) + 1) / (len(drawn) + 1))
    return AurocDifference(difference, float(low), float(high), p_value, n_known, n_unknown, few)


def figures_of_resamples(
    rows: Rows, counts: np.ndarray, threshold: float | None, n_classes: int
) -> dict[str, np.ndarray]:
    """Figures of B resamples, [B] each, from how often each row was drawn, `counts` [B, n] of ints.

    Those of `open_set_metrics` without openness; which of them mean something is told there.
    """
    known, correct = rows.known, rows.correct
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = _rank_figures(rows, counts)
        drawn = counts.astype(float)  # for matrix products
        n_known, n_unknown = drawn @ known, drawn @ ~known
        figures["closed_set_accuracy"] = drawn @ correct / n_known
        if threshold is not None:
            final = final_predictions(rows, threshold)
            right = known & (final == rows.labels)
            rejected = ~known & (final == UNKNOWN)
            figures["known_accept_rate"] = drawn @ (known & (final != UNKNOWN)) / n_known
            figures["known_correct_and_accepted"] = drawn @ right / n_known
            figures["unknown_reject_rate"] = drawn @ rejected / n_unknown
            figures["normalised_accuracy"] = (
                figures["known_correct_and_accepted"] + figures["unknown_reject_rate"]
            ) / 2
            figures["macro_f1_with_unknown"] = _macro_f1(rows.labels, final, drawn, n_classes)
        if are_confidences(rows.scores):
            gaps = np.where(known, correct - rows.scores, 0.0)
            bins = np.minimum((rows.scores * N_BINS).astype(np.int64), N_BINS - 1)
            by_bin = gaps[:, None] * (bins[:, None] == np.arange(N_BINS))  # [n, bins]
            figures["ece"] = abs(drawn @ by_bin).sum(axis=1) / n_known
            figures["brier"] = drawn @ gaps**2 / n_known
    return figures


def _rank_figures(rows: Rows, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Figures that depend on the scores' order only, from counts by level (distinct score), [B, L].

    Levels ascend. `k` known, `u` unknown, `c` known and correct drawn at each; `_up` at it or
    above, `_down` at it or below.
    """
    k, u, c = _by_level(rows.scores, counts, rows.known, ~rows.known, rows.correct)
    k_down, u_down = k.cumsum(axis=1), u.cumsum(axis=1)
    n_known, n_unknown = k_down[:, -1:], u_down[:, -1:]
    k_up, u_up = n_known - k_down + k, n_unknown - u_down + u
    wins = (u_down - u / 2) / n_unknown  # share of the unknown below the level, ties half
    each = np.arange(len(counts))
    at_known = (20 * k_up >= 19 * n_known).sum(axis=1) - 1  # the highest level of recall .95
    at_unknown = (20 * u_down < 19 * n_unknown).sum(axis=1)  # the lowest
    return {
        "auroc": (k * wins).sum(axis=1) / n_known[:, 0],
        "oscr": (c * wins).sum(axis=1) / n_known[:, 0],
        "aupr_known": (k * k_up / np.maximum(k_up + u_up, 1)).sum(axis=1) / n_known[:, 0],
        "aupr_unknown": (u * u_down / np.maximum(k_down + u_down, 1)).sum(axis=1) / n_unknown[:, 0],
        "fpr95_known_positive": u_up[each, at_known] / n_unknown[:, 0],
        "fpr95_unknown_positive": k_down[each, at_unknown] / n_known[:, 0],
        "aurc": _aurc(k, k - c),
    }


def _aurc(k: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Area under risk and coverage, [B], from known samples and errors by level, [B, L].

    Inside a level of k samples after n samples with e errors above it, the expected risks are
    (e + j r) / (n + j) for j = 1..k with r the level's error rate; with harmonic numbers H their
    sum is k r + (e - n r) (H(n + k) - H(n)).
    """
    n_known = k.sum(axis=1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n_known.max(initial=0) + 1))])
    rate = wrong / np.maximum(k, 1)
    n_up = k[:, ::-1].cumsum(axis=1)[:, ::-1]
    n_above = n_up - k
    wrong_above = wrong[:, ::-1].cumsum(axis=1)[:, ::-1] - wrong
    risks = wrong + (wrong_above - n_above * rate) * (harmonic[n_up] - harmonic[n_above])
    return risks.sum(axis=1) / n_known


def _auroc(scores: np.ndarray, known: np.ndarray, counts: np.ndarray) -> np.ndarray:
    k, u = _by_level(scores, counts, known, ~known)
    pairs = k.sum(axis=1) * u.sum(axis=1)
    return (k * (u.cumsum(axis=1) - u / 2)).sum(axis=1) / pairs


def _by_level(scores: np.ndarray, counts: np.ndarray, *masks: np.ndarray) -> list[np.ndarray]:
    """Draws of the masked rows at each distinct score, ascending, [B, L] for each mask."""
    order = np.argsort(scores, kind="stable")
    starts = np.unique(scores[order], return_index=True)[1]
    return [np.add.reduceat((counts * mask)[:, order], starts, axis=1) for mask in masks]


def _macro_f1(
    labels: np.ndarray, final: np.ndarray, drawn: np.ndarray, n_classes: int
) -> np.ndarray:
    classes = np.arange(UNKNOWN, n_classes)
    is_class, called = labels[:, None] == classes, final[:, None] == classes  # [n, classes + 1]
    hits, both = drawn @ (is_class & called), drawn @ is_class + drawn @ called
    return np.where(both > 0, 2 * hits / both, 0.0).mean(axis=1)


def _cluster_codes(clusters: Sequence[int | str] | None, n: int) -> np.ndarray | None:
    """0, 1, ... per cluster in sorted order of the ids; ValueError names a row without one."""
    if clusters is None:
        return None
    if len(clusters) != n:
        raise ValueError(
            f"unequal numbers of rows (scores {n}, clusters {len(clusters)}): "
            f"row {min(n, len(clusters))} lacks a partner"
        )
    for i, cluster in enumerate(clusters):
        if cluster is None or cluster != cluster:
            raise ValueError(f"clusters[{i}] is {cluster!r}, must be a picture's id")
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _resamples(
    known: np.ndarray, codes: np.ndarray | None, n_resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """How often each row is drawn, in pieces [b, n] of ints, n_resamples rows together."""
    codes = np.arange(len(known)) if codes is None else codes
    n_units = int(codes.max()) + 1
    # which kinds of rows a unit holds: 1 unknown, 2 known, 3 both
    kinds = np.zeros(n_units, dtype=np.int64)
    np.bitwise_or.at(kinds, codes, np.where(known, 2, 1))
    rng = np.random.default_rng(seed)
    at_once = max(1, _PIECE // len(known))
    for start in range(0, n_resamples, at_once):
        size = min(at_once, n_resamples - start)
        of_units = np.zeros((size, n_units), dtype=np.int64)
        for kind in (1, 2, 3):
            units = np.flatnonzero(kinds == kind)
            if len(units):
                shares = np.full(len(units), 1 / len(units))
                of_units[:, units] = rng.multinomial(len(units), shares, size=size)
        yield of_units[:, codes]


def _too_few(
    needed: Sequence[str], known: np.ndarray, codes: np.ndarray | None
) -> tuple[str | None, str | None]:
    """Why there is no interval at all, and why it is too narrow; None where it is not so."""
    what = "sample" if codes is None else "picture"
    alone, few = [], []
    for kind in needed:
        n = _n_units(known if kind == "known" else ~known, codes)
        if n == 1:
            alone.append(f"one {kind} {what}: no interval")
        elif 0 < n < FEW_CLUSTERS:
            few.append(f"only {n} {kind} {what}s: the interval is too narrow")
    return "; ".join(alone) or None, "; ".join(few) or None


def _n_units(mask: np.ndarray, codes: np.ndarray | None) -> int:
    return int(mask.sum()) if codes is None else len(np.unique(codes[mask]))


def _interval(
    name: str,
    value: float | None,
    reason: str | None,
    pieces: list[np.ndarray],
    known: np.ndarray,
    codes: np.ndarray | None,
) -> Interval:
    needed = ("known", "unknown")
    if name in OF_KNOWN + OF_UNKNOWN:
        needed = ("known",) if name in OF_KNOWN else ("unknown",)
    mask = (known & ("known" in needed)) | (~known & ("unknown" in needed))
    n, n_units = int(mask.sum()), _n_units(mask, codes)
    n_clusters = None if codes is None else n_units
    drawn = np.concatenate(pieces) if pieces else np.empty(0)
    unit = "samples" if codes is None else "pictures"
    method = f"percentile bootstrap over known and unknown {unit}, {len(drawn)} resamples"
    if value is None:
        return Interval(None, None, None, n, n_clusters, method, reason)
    alone, few = _too_few(needed, known, codes)
    no_width = np.ptp(drawn) <= 1e-12
    if no_width and name in PROPORTIONS and value in (0.0, 1.0):
        wilson = wilson_interval(round(value * n_units), n_units)
        note = f"{value:.0f} in every resample: Wilson's interval over {n_units} {unit}"
        return Interval(value, wilson.low, wilson.high, n, n_clusters, "wilson", note)
    if alone or no_width:
        note = alone or "every resample gives the same figure: no interval"
        return Interval(value, None, None, n, n_clusters, method, note)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), n, n_clusters, method, few)
