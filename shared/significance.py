"""How sure a score is: intervals for one run, tests for two runs over the same questions.

Questions about one picture rise and fall together, so whatever is resampled, flipped or summed
here is a whole cluster (image id): intervals are percentile bootstraps over images (C. Field, A.
Welsh 2007), standard errors are clustered (E. Miller 2024, arXiv 2411.00640). Where all scores are
0 or all 1 a bootstrap has no width: there Wilson's interval stands, over images. Two runs are
compared by flipping the signs of the images' summed differences; for right/wrong scores of
questions that have an image each that is McNemar's test, which then gives the exact p.

    python -m pytest tests/shared/test_significance.py

Reads and writes nothing; takes sequences of numbers, gives numbers in the unit they came in. The
order of the rows, which a resumed run changes, does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

N_RESAMPLES = 2_000
N_FLIPS = 9_999
FEW_CLUSTERS = 10
# Resamples are drawn in pieces of this many numbers (32 MB), so that memory does not grow.
_PIECE = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean or proportion with its interval. What cannot be said is None, and `note` says why."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    n_clusters: int | None  # None where the method takes all rows as independent
    method: str
    note: str | None = None


@dataclass(frozen=True)
class PairedComparison:
    """Tuned minus base over the same questions, in the unit of the scores.

    `low` and `high` are the 95 % cluster-bootstrap interval of the difference. `p_value` is
    two-sided and comes from `test`: "mcnemar-exact" for right/wrong scores of questions that have
    an image each (`p_value_mid` is its mid-p, less conservative), else "sign-flip-clustered", as
    McNemar's test takes questions that share an image as independent. Where every image has the
    same difference the bootstrap has no width, so there is no interval.
    `minimum_detectable_difference` is the true difference that a comparison of this size finds with
    power .8 at two-sided .05. What cannot be said is None, and `note` says why.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_value_mid: float | None
    test: str | None
    n: int
    n_clusters: int
    wins: int  # tuned above base
    ties: int
    losses: int
    minimum_detectable_difference: float | None
    note: str | None = None


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, 0..1; sound at 0 and n, where a normal one is empty.

    Takes the n as independent: for scores of several questions a picture use `cluster_bootstrap`.
    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: must be 0 <= successes <= n")
    if n == 0:
        return Interval(None, None, None, 0, None, "wilson", "n = 0: no proportion")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    # At the ends the limit is 0 or 1 exactly; statsmodels leaves a rounding error there.
    low = 0.0 if successes == 0 else float(low)
    high = 1.0 if successes == n else float(high)
    return Interval(successes / n, low, high, n, None, "wilson")


def cluster_bootstrap(
    scores: Sequence[float],
    clusters: Sequence[int | str],
    n_resamples: int = N_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean score when whole clusters are drawn with replacement.

    The mean is over rows, so a picture with ten questions weighs ten times one with one. Same seed,
    same interval. With one cluster there is none; below ten it comes out too narrow, says `note`.
    Raises ValueError naming the row for a score that is no finite number, a missing cluster id or
    unequal lengths.
    """
    values = _numbers(scores, "scores")
    _same_length(scores=scores, clusters=clusters)
    sums, counts = _cluster_sums(values, clusters)
    return _bootstrap(sums, counts, n_resamples, confidence, seed)


def score_interval(scores: Sequence[float], clusters: Sequence[int | str]) -> Interval:
    """`cluster_bootstrap` of scores 0..1, with Wilson's interval where all are 0 or all are 1.

    A bootstrap has no width there, which would claim certainty. Wilson's trials are then the
    clusters: what the questions of one picture tell beyond the first is not known, so they count as
    one. Between the ends a bootstrap without width (every cluster has the same mean) gives none.
    """
    interval = cluster_bootstrap(scores, clusters)
    if interval.low is None or not _has_no_width(interval):
        return interval
    notes = [interval.note] if interval.note else []
    if interval.mean not in (0.0, 1.0):
        notes.append("every cluster has the same mean: no interval")
        return replace(interval, low=None, high=None, note="; ".join(notes))
    n_clusters = interval.n_clusters or 0
    wilson = wilson_interval(round(interval.mean * n_clusters), n_clusters)
    return replace(
        interval, low=wilson.low, high=wilson.high, method="wilson over clusters",
        note=f"all scores equal: Wilson's interval over {n_clusters} clusters",
    )  # fmt: skip


def minimum_detectable_difference(
    differences: Sequence[float],
    clusters: Sequence[int | str],
    alpha: float = 0.05,
    power: float = 0.8,
) -> float | None:
    """The true mean difference that a test at two-sided `alpha` finds with probability `power`.

    (z(1 - alpha/2) + z(power)) * clustered standard error of the paired differences: 2.80 standard
    errors by default. None below two clusters, and when the clusters' differences do not vary,
    which says nothing about how they would.
    """
    values = _numbers(differences, "differences")
    _same_length(differences=differences, clusters=clusters)
    standard_error = _standard_error(values, clusters)
    if standard_error is None or standard_error <= 1e-12 * abs(values).max():
        return None
    from scipy.stats import norm

    return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * standard_error)


def mcnemar_p_values(losses: int, wins: int) -> tuple[float, float]:
    """McNemar's two-sided p-values (exact, mid-p) from the two counts of changed answers.

    Exact: 2 P(X <= min) for X ~ Binomial(losses + wins, 1/2), at most 1. Mid-p counts the observed
    table half, 2 P(X <= min) - P(X = min) (Fagerland et al. 2013). Nothing changed: both are 1.
    """
    from scipy.stats import binom
    from statsmodels.stats.contingency_tables import mcnemar

    exact = mcnemar([[0, losses], [wins, 0]], exact=True).pvalue
    fewer, changed = min(losses, wins), losses + wins
    mid = 2 * binom.cdf(fewer, changed, 0.5) - binom.pmf(fewer, changed, 0.5)
    return float(exact), float(min(mid, 1.0))


def compare_paired(
    base_scores: Sequence[float],
    tuned_scores: Sequence[float],
    clusters: Sequence[int | str],
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> PairedComparison:
    """Compare two runs row by row: `PairedComparison` says what comes out.

    Scores are right/wrong when both runs together hold 0 and one other value only (1, or 100), else
    graded. Raises ValueError naming the row for a score that is no finite number, a missing cluster
    id or unequal lengths.
    """
    import numpy as np

    _same_length(base_scores=base_scores, tuned_scores=tuned_scores, clusters=clusters)
    base = _numbers(base_scores, "base_scores")
    tuned = _numbers(tuned_scores, "tuned_scores")
    differences = tuned - base
    # A rounding error is a tie: .9 against .3 + .6.
    differences[abs(differences) <= 1e-9 * np.maximum(abs(base), abs(tuned))] = 0.0
    sums, counts = _cluster_sums(differences, clusters)
    n, n_clusters = len(differences), len(sums)
    interval = _bootstrap(sums, counts, n_resamples, 0.95, seed)
    if _has_no_width(interval):
        same = "every image has the same difference: no interval"
        note = "; ".join(filter(None, [interval.note, same]))
        interval = replace(interval, low=None, high=None, note=note)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())

    notes = [interval.note] if interval.note else []
    test = p_value = p_value_mid = detectable = None
    if n_clusters > 1:
        if n_clusters == n and len({0.0, *base.tolist(), *tuned.tolist()}) <= 2:
            test = "mcnemar-exact"
            p_value, p_value_mid = mcnemar_p_values(losses, wins)
        else:
            test = "sign-flip-clustered"
            p_value = _sign_flip(sums, seed)
        detectable = minimum_detectable_difference(differences, clusters)
        if detectable is None:
            notes.append("the images' differences do not vary: no minimum detectable difference")
    return PairedComparison(
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        p_value_mid=p_value_mid,
        test=test,
        n=n,
        n_clusters=n_clusters,
        wins=wins,
        ties=n - wins - losses,
        losses=losses,
        minimum_detectable_difference=detectable,
        note="; ".join(notes) or None,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values in the order given; a None (no test possible) stays and counts not.

    Rejecting where the adjusted value is at most .05 keeps the chance of any false rejection in the
    family at 5 %, whatever the dependence. Raises ValueError naming the row outside 0..1.
    """
    for i, p_value in enumerate(p_values):
        if p_value is not None and not 0 <= p_value <= 1:
            raise ValueError(f"p_values[{i}] is {p_value!r}, must be between 0 and 1")
    tested = [i for i, p_value in enumerate(p_values) if p_value is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    if tested:
        from statsmodels.stats.multitest import multipletests

        corrected = multipletests([p_values[i] for i in tested], method="holm")[1]
        for i, p_value in zip(tested, corrected, strict=True):
            adjusted[i] = float(p_value)
    return adjusted


def _numbers(values: Sequence[float], name: str) -> np.ndarray:
    """The values as a float array; ValueError names the first that is no finite number."""
    import numpy as np

    numbers = np.empty(len(values))
    for i, value in enumerate(values):
        # math.isfinite refuses what is no number; a string of digits would slip into an array
        try:
            finite = math.isfinite(value)
        except TypeError:
            finite = False
        if not finite:
            raise ValueError(f"{name}[{i}] is {value!r}, must be a finite number")
        numbers[i] = value
    return numbers


def _same_length(**sequences: Sequence) -> None:
    lengths = {name: len(values) for name, values in sequences.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"unequal numbers of rows ({listed}): row {min(lengths.values())} lacks a partner"
        )


def _cluster_codes(clusters: Sequence[int | str]) -> np.ndarray:
    """0, 1, ... per cluster in sorted order of the ids, so that row order does not matter."""
    import numpy as np

    for i, cluster in enumerate(clusters):
        if cluster is None or cluster != cluster:
            raise ValueError(f"clusters[{i}] is {cluster!r}, must be an image id")
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _cluster_sums(
    values: np.ndarray, clusters: Sequence[int | str]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of rows of each cluster, both [C]; added in sorted order, as the codes."""
    import numpy as np

    codes = _cluster_codes(clusters)
    order = np.lexsort((values, codes))
    return np.bincount(codes[order], weights=values[order]), np.bincount(codes)


def _standard_error(values: np.ndarray, clusters: Sequence[int | str]) -> float | None:
    """Standard error of the mean that allows for clusters; None below two clusters.

    With C clusters and residuals e around the mean: sqrt(C/(C-1) * sum over clusters of
    (sum of e)**2) / n, the cluster-robust variance of a regression on a constant.
    """
    import numpy as np
    from statsmodels.regression.linear_model import OLS

    codes = _cluster_codes(clusters)
    if len(set(codes.tolist())) < 2:
        return None
    order = np.lexsort((values, codes))
    fit = OLS(values[order], np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": codes[order]}
    )
    return float(fit.bse[0])


def _has_no_width(interval: Interval) -> bool:
    if interval.low is None or interval.high is None:
        return False
    return interval.high - interval.low <= 1e-12 * max(1.0, abs(interval.high))


def _bootstrap(
    sums: np.ndarray, counts: np.ndarray, n_resamples: int, confidence: float, seed: int
) -> Interval:
    n, n_clusters = int(counts.sum()), len(counts)
    method = f"percentile bootstrap over clusters, {n_resamples} resamples"
    if n == 0:
        return Interval(None, None, None, 0, 0, method, "n = 0: no mean")
    mean = float(sums.sum() / n)
    if n_clusters == 1:
        return Interval(mean, None, None, n, 1, method, "one cluster: no interval, no test")
    from scipy.stats import bootstrap

    limits = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,  # a cluster is drawn with its sum and its count
        vectorized=True,
        n_resamples=n_resamples,
        batch=max(1, _PIECE // n_clusters),
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    few = f"only {n_clusters} clusters: the interval is too narrow"
    note = few if n_clusters < FEW_CLUSTERS else None
    return Interval(mean, float(limits.low), float(limits.high), n, n_clusters, method, note)


def _sign_flip(sums: np.ndarray, seed: int) -> float | None:
    """Two-sided p-value of the mean difference when each cluster's sign is exchangeable, from the
    clusters' summed differences, [C]. None below two clusters.

    Under the null hypothesis the two runs can swap names within a picture. Up to 13 clusters that
    differ all sign patterns are enumerated; above, 9,999 are drawn and p = (hits + 1) / 10,000.
    scipy.stats.permutation_test would do the same, but shuffles an index pair for each flip, too
    slow for the 40,000 pictures of VQAv2's validation split.
    """
    import numpy as np

    if len(sums) < 2:
        return None
    sums = sums[sums != 0]  # a flip changes nothing there
    observed = abs(sums.sum()) - 1e-9 * abs(sums).sum()  # a rounding error below is still a hit
    k = len(sums)
    if 2**k <= N_FLIPS:
        patterns = np.arange(2**k)[:, None] >> np.arange(k) & 1  # [2**k, k], each pattern once
        return float((abs((2 * patterns - 1) @ sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = drawn = 0
    while drawn < N_FLIPS:
        rows = min(N_FLIPS - drawn, max(1, _PIECE // k))
        packed = rng.integers(0, 256, size=(rows, (k + 7) // 8), dtype=np.uint8)
        flips = np.unpackbits(packed, axis=1, count=k)  # [rows, k] of 0 and 1
        hits += int((abs(2 * (flips @ sums) - sums.sum()) >= observed).sum())
        drawn += rows
    return (hits + 1) / (N_FLIPS + 1)
