"""Bootstrap intervals: equal figure by figure to `open_set_metrics`, right in coverage, paired."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llava_openset.intervals import (
    AurocDifference,
    auroc_difference,
    bootstrap_intervals,
    figures_of_resamples,
)
from llava_openset.metrics import METRICS, checked_rows, open_set_metrics

NAMES = METRICS[:-1]  # openness is no figure of the samples


def random_rows(seed: int, n_known: int, n_unknown: int) -> tuple[list, list, list]:
    """Scores in tenths, so that they tie; 4 classes, of which the last does not occur."""
    rng = np.random.default_rng(seed)
    labels = np.array([*rng.integers(0, 3, n_known), *[-1] * n_unknown])
    scores = (rng.integers(0, 11, len(labels)) + 2 * (labels >= 0)).clip(0, 10) / 10
    guesses = rng.integers(-1, 3, len(labels))
    predictions = np.where(rng.random(len(labels)) < 0.6, np.maximum(labels, 0), guesses)
    return scores.tolist(), labels.tolist(), predictions.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_figures_of_resamples_equal_the_metrics_of_the_rows_drawn(seed: int) -> None:
    """Each row repeated as often as it was drawn, some never: the same 15 figures."""
    scores, labels, predictions = random_rows(seed, 23, 17)
    rows = checked_rows(scores, labels, predictions, 4)
    counts = np.random.default_rng(seed).integers(0, 4, size=(12, 40))
    counts[0] = 1
    figures = figures_of_resamples(rows, counts, 0.6, 4)
    assert set(figures) == set(NAMES)
    for b, drawn in enumerate(counts):
        columns = (np.repeat(column, drawn) for column in (scores, labels, predictions))
        one = open_set_metrics(*columns, 0.6, 4)
        for name in NAMES:
            assert figures[name][b] == pytest.approx(one[name], abs=1e-12), name


def test_intervals_hold_the_value_and_the_same_rows_in_any_order_give_the_same() -> None:
    columns = random_rows(0, 40, 30)
    intervals = bootstrap_intervals(*columns, 0.6, 4, NAMES, n_resamples=400, seed=3)
    values = open_set_metrics(*columns, 0.6, 4)
    assert list(intervals) == list(NAMES)
    for name, interval in intervals.items():
        assert interval.mean == values[name]
        assert 0 <= interval.low < interval.high <= 1, name
        assert interval.note is None
    assert intervals["auroc"].n == 70
    assert intervals["oscr"].n_clusters is None
    assert intervals["aurc"].n == intervals["known_accept_rate"].n == 40
    assert intervals["unknown_reject_rate"].n == 30

    order = np.random.default_rng(1).permutation(70)
    shuffled = [np.array(column)[order] for column in columns]
    again = bootstrap_intervals(*shuffled, 0.6, 4, NAMES, n_resamples=400, seed=3)
    for name in NAMES:
        assert again[name].low == pytest.approx(intervals[name].low, abs=1e-12)
        assert again[name].high == pytest.approx(intervals[name].high, abs=1e-12)
    other = bootstrap_intervals(*columns, 0.6, 4, ["auroc"], n_resamples=400, seed=4)
    assert other["auroc"].low != intervals["auroc"].low


def test_intervals_of_shares_are_the_percentiles_of_their_binomials() -> None:
    """Drawing n rows with replacement makes a share Binomial(n, share) / n.

    Over 8,000 resamples the mass below a limit has a standard error of .0017; four are allowed.
    """
    from scipy.stats import binom

    columns = random_rows(5, 600, 500)
    for name, n in (("closed_set_accuracy", 600), ("unknown_reject_rate", 500)):
        interval = bootstrap_intervals(*columns, 0.6, 4, [name], n_resamples=8000)[name]
        for limit, mass in ((interval.low, 0.025), (interval.high, 0.975)):
            # a limit may lie between two shares
            below, above = math.floor(limit * n + 1e-6), math.ceil(limit * n - 1e-6)
            assert binom.cdf(below - 1, n, interval.mean) < mass + 4 * 0.0017
            assert binom.cdf(above, n, interval.mean) > mass - 4 * 0.0017


@pytest.mark.parametrize("clusters", [None, [*range(10), *range(20)]])
def test_known_and_unknown_samples_keep_their_ratio(clusters: list | None) -> None:
    """With constant scores average precision is the share of the known: in no resample another.

    As pictures: ten with a known and an unknown row, ten with an unknown row only.
    """
    labels = [0] * 10 + [-1] * 20
    interval = bootstrap_intervals(
        [0.5] * 30, labels, [0] * 30, None, 1, ["aupr_known"], n_resamples=200, clusters=clusters
    )["aupr_known"]
    assert interval.mean == pytest.approx(1 / 3)
    assert interval.note == "every resample gives the same figure: no interval"


def test_the_interval_of_auroc_is_that_of_a_plain_bootstrap() -> None:
    """Known and unknown rows drawn by index, pairs counted; both sides have little noise left."""
    scores, labels, predictions = random_rows(5, 60, 50)
    known, unknown = np.array(scores[:60]), np.array(scores[60:])
    wins = (known[:, None] > unknown) + (known[:, None] == unknown) / 2
    rng = np.random.default_rng(0)
    plain = [wins[rng.integers(0, 60, 60)][:, rng.integers(0, 50, 50)].mean() for _ in range(8000)]
    low, high = np.quantile(plain, [0.025, 0.975])
    interval = bootstrap_intervals(
        scores, labels, predictions, None, 4, ["auroc"], n_resamples=8000
    )["auroc"]
    assert interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.05 * (high - low))


def test_the_interval_of_auroc_covers_the_truth_about_as_often_as_it_says() -> None:
    """Known from N(1, 1), unknown from N(0, 1), 40 each: AUROC is Phi(1 / sqrt 2) = .7602."""
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(120):
        scores = np.concatenate([rng.normal(1, 1, 40), rng.normal(0, 1, 40)])
        labels = [0] * 40 + [-1] * 40
        interval = bootstrap_intervals(
            scores, labels, [0] * 80, None, 1, ["auroc"], n_resamples=200
        )["auroc"]
        hits += interval.low <= truth <= interval.high
    assert 0.88 <= hits / 120 < 1


def test_a_share_at_its_end_gets_wilsons_interval_and_a_perfect_auroc_none() -> None:
    scores, labels = [*range(30)], [-1] * 15 + [0] * 15
    intervals = bootstrap_intervals(scores, labels, [0] * 30, 15, 1, NAMES, n_resamples=50, seed=0)
    for name in ("closed_set_accuracy", "known_accept_rate", "unknown_reject_rate"):
        # Wilson at 15 of 15: 15 / (15 + 1.96**2)
        assert (intervals[name].mean, intervals[name].high) == (1.0, 1.0)
        assert intervals[name].low == pytest.approx(15 / (15 + 1.959964**2), abs=1e-5)
        assert intervals[name].method == "wilson"
        assert "15 samples" in intervals[name].note
    assert intervals["auroc"].mean == 1.0
    assert intervals["auroc"].low is intervals["auroc"].high is None
    assert "every resample gives the same" in intervals["auroc"].note


def test_what_cannot_be_computed_has_no_interval_but_its_reason() -> None:
    scores, labels, predictions = random_rows(1, 20, 0)
    intervals = bootstrap_intervals(scores, labels, predictions, None, 4, NAMES, n_resamples=20)
    assert intervals["auroc"].mean is None
    assert intervals["auroc"].note == "no unknown sample"
    assert intervals["known_accept_rate"].note == "no threshold"
    assert intervals["closed_set_accuracy"].low is not None
    beyond = bootstrap_intervals([2.0] * 5, [0] * 5, [0] * 5, 1, 1, ["ece"], n_resamples=20)
    assert (beyond["ece"].low, beyond["ece"].n) == (None, 5)
    assert "[0, 1]" in beyond["ece"].note
    nothing = bootstrap_intervals([], [], [], 0.5, 1, NAMES)
    assert all(interval.mean is None and interval.note for interval in nothing.values())


def test_one_sample_gives_no_interval_and_few_say_that_it_is_too_narrow() -> None:
    scores, labels = [0.9, 0.2, 0.95, 0.4], [0, -1, -1, -1]
    intervals = bootstrap_intervals(scores, labels, [0] * 4, 0.5, 1, ["auroc", "ece"])
    assert intervals["auroc"].low is None
    assert intervals["auroc"].note == "one known sample: no interval"
    assert intervals["ece"].low is None
    rejected = bootstrap_intervals(scores, labels, [0] * 4, 0.5, 1, ["unknown_reject_rate"])
    assert rejected["unknown_reject_rate"].low < rejected["unknown_reject_rate"].high
    assert (
        rejected["unknown_reject_rate"].note == "only 3 unknown samples: the interval is too narrow"
    )


def test_infinite_scores_have_intervals() -> None:
    scores, labels, predictions = random_rows(2, 20, 20)
    endless = [{0.0: -math.inf, 1.0: math.inf}.get(score, score) for score in scores]
    names = ("auroc", "oscr", "aurc", "known_accept_rate", "fpr95_known_positive")
    finite = bootstrap_intervals(scores, labels, predictions, 0.6, 4, names, n_resamples=100)
    assert finite == bootstrap_intervals(
        endless, labels, predictions, 0.6, 4, names, n_resamples=100
    )


def test_rows_of_a_picture_are_drawn_together() -> None:
    """20 known and 20 unknown pictures, each cut into 5 like crops: 200 rows tell what 40 do.

    The interval over pictures is the one of a crop each; that over rows is narrower.
    """
    scores, labels, predictions = random_rows(4, 20, 20)
    single = bootstrap_intervals(scores, labels, predictions, 0.6, 4, ["auroc", "aurc"])
    five = [
        [value for value in column for _ in range(5)] for column in (scores, labels, predictions)
    ]
    pictures = [f"picture {i}" for i in range(40) for _ in range(5)]
    clustered = bootstrap_intervals(*five, 0.6, 4, ["auroc", "aurc"], clusters=pictures)
    naive = bootstrap_intervals(*five, 0.6, 4, ["auroc", "aurc"])
    for name in ("auroc", "aurc"):
        width = {k: v[name].high - v[name].low
                 for k, v in (("1", single), ("5", clustered), ("naive", naive))}  # fmt: skip
        assert width["5"] == pytest.approx(width["1"], rel=0.15)
        assert width["naive"] < 0.6 * width["5"]
    assert (clustered["auroc"].n, clustered["auroc"].n_clusters) == (200, 40)
    assert clustered["aurc"].n_clusters == 20


def test_a_picture_with_known_and_unknown_rows_keeps_them_together() -> None:
    """One picture asked twice. Its two scores share what the picture adds, which drops out."""
    rng = np.random.default_rng(0)
    picture = rng.normal(0, 5, 60)
    scores = np.concatenate([picture + 0.5, picture + rng.normal(0, 0.1, 60)])
    labels = [0] * 60 + [-1] * 60
    ids = [*range(60), *range(60)]
    apart = bootstrap_intervals(scores, labels, [0] * 120, None, 1, ["auroc"])["auroc"]
    together = bootstrap_intervals(scores, labels, [0] * 120, None, 1, ["auroc"], clusters=ids)[
        "auroc"
    ]
    assert together.n_clusters == 60
    assert together.high - together.low < 0.5 * (apart.high - apart.low)


def test_bad_names_and_clusters_are_named() -> None:
    columns = [0.1, 0.2], [0, -1], [0, 0]
    with pytest.raises(ValueError, match="no interval of 'auc'"):
        bootstrap_intervals(*columns, None, 1, ["auc"])
    with pytest.raises(ValueError, match="openness"):
        bootstrap_intervals(*columns, None, 1, ["openness"])
    with pytest.raises(ValueError, match=r"clusters 1.*row 1"):
        bootstrap_intervals(*columns, None, 1, ["auroc"], clusters=[1])
    with pytest.raises(ValueError, match=r"clusters\[1\] is None"):
        bootstrap_intervals(*columns, None, 1, ["auroc"], clusters=[1, None])
    with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
        bootstrap_intervals([0.1, math.nan], [0, -1], [0, 0], None, 1, ["auroc"])


# --- the difference of two AUROCs


def test_the_difference_is_that_of_the_two_figures_and_has_the_other_sign_swapped() -> None:
    base, labels, _ = random_rows(0, 40, 30)
    other = random_rows(9, 40, 30)[0]
    compared = auroc_difference(base, other, labels, n_resamples=400)
    figures = [open_set_metrics(s, labels, labels, None, 4)["auroc"] for s in (base, other)]
    assert compared.difference == pytest.approx(figures[1] - figures[0])
    assert compared.low < compared.difference < compared.high
    assert (compared.n_known, compared.n_unknown) == (40, 30)
    swapped = auroc_difference(other, base, labels, n_resamples=4000)
    compared = auroc_difference(base, other, labels, n_resamples=4000)
    assert swapped.difference == -compared.difference
    assert swapped.low == pytest.approx(-compared.high, abs=0.01)
    assert swapped.p_value == pytest.approx(compared.p_value, abs=0.05)


def test_two_scores_that_err_alike_are_told_apart_though_their_own_intervals_overlap() -> None:
    rng = np.random.default_rng(3)
    labels = [0] * 100 + [-1] * 100
    hard = rng.normal(0, 1, 200) + np.array([1.0] * 100 + [0.0] * 100)
    better = hard + np.array([0.3] * 100 + [0.0] * 100)
    one, two = (
        bootstrap_intervals(s, labels, [0] * 200, None, 1, ["auroc"])["auroc"]
        for s in (hard, better)
    )
    assert two.low < one.high
    compared = auroc_difference(hard, better, labels)
    assert compared.low > 0
    assert compared.p_value < 0.01
    # only the order of a score matters, not its unit
    assert auroc_difference(hard, np.exp(better), labels) == compared


def test_p_values_are_small_about_as_often_as_they_should_be_where_nothing_differs() -> None:
    """Two scores of the same quality: p <= .05 in about one of twenty trials."""
    rng = np.random.default_rng(11)
    labels = [0] * 40 + [-1] * 40
    p_values = []
    for _ in range(200):
        signal = np.array([1.0] * 40 + [0.0] * 40)
        base, other = signal + rng.normal(0, 1, 80), signal + rng.normal(0, 1, 80)
        compared = auroc_difference(base, other, labels, n_resamples=199)
        p_values.append(compared.p_value)
        # the test and the interval say the same, but for p-values at their grid's next step
        assert (compared.low > 0 or compared.high < 0) == (compared.p_value <= 0.05) or (
            0.03 < compared.p_value < 0.07
        )
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert 0.35 < np.mean(p_values) < 0.65


def test_a_difference_that_no_resample_changes_has_neither_interval_nor_test() -> None:
    scores, labels, _ = random_rows(1, 20, 20)
    compared = auroc_difference(scores, [2 * s for s in scores], labels, n_resamples=50)
    assert (compared.difference, compared.low, compared.p_value) == (0.0, None, None)
    assert "every resample" in compared.note


def test_no_difference_without_both_kinds_or_with_one_sample() -> None:
    assert auroc_difference([1, 2], [2, 1], [0, 0]) == AurocDifference(
        None, None, None, None, 2, 0, "no unknown sample"
    )
    assert auroc_difference([1], [2], [-1]).note == "no known sample"
    single = auroc_difference([1, 2, 3], [1, 3, 2], [0, 0, -1])
    assert (single.difference, single.low) == (0.5, None)
    assert single.note == "one unknown sample: no interval"
    with pytest.raises(ValueError, match=r"other_scores\[1\] is nan"):
        auroc_difference([1, 2], [1, math.nan], [0, -1])
    with pytest.raises(ValueError, match=r"other_scores 1.*row 1"):
        auroc_difference([1, 2], [1], [0, -1])


def test_the_difference_over_pictures_draws_pictures() -> None:
    base, labels, _ = random_rows(0, 20, 20)
    other = random_rows(9, 20, 20)[0]
    five = [[v for v in column for _ in range(5)] for column in (base, other, labels)]
    ids = [i for i in range(40) for _ in range(5)]
    width = {}
    for name, compared in {
        "single": auroc_difference(base, other, labels),
        "pictures": auroc_difference(*five, clusters=ids),
        "rows": auroc_difference(*five),
    }.items():
        width[name] = compared.high - compared.low
    assert width["pictures"] == pytest.approx(width["single"], rel=0.15)
    assert width["rows"] < 0.6 * width["pictures"]
