"""Intervals and tests against values worked out by hand, and against what they must mean.

python -m pytest tests/shared/test_significance.py
"""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import permutation_test

from shared.significance import (
    cluster_bootstrap,
    compare_paired,
    holm,
    mcnemar_p_values,
    minimum_detectable_difference,
    score_interval,
    wilson_interval,
)

Z = 1.959963984540054  # the normal distribution's 97.5 % point
POWERED = 2.801585  # standard errors of the minimum detectable difference: Z + the 80 % point


def sign_flip(differences, clusters, seed: int = 0) -> float:
    """The p-value of `compare_paired` where it flips signs."""
    zeros = [0.0] * len(differences)
    result = compare_paired(zeros, differences, clusters, seed=seed, n_resamples=2)
    assert result.test == "sign-flip-clustered"
    return result.p_value


# --- Wilson --------------------------------------------------------------------------------------


def test_wilson_at_both_ends() -> None:
    # With 0 of n the formula shrinks to 0 .. z^2 / (n + z^2), with n of n to its mirror image.
    none, every = wilson_interval(0, 10), wilson_interval(10, 10)
    assert (none.mean, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(Z**2 / (10 + Z**2))  # .2775
    assert (every.mean, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(10 / (10 + Z**2))  # .7225


@pytest.mark.parametrize("n", [1, 7, 50, 333])
def test_wilson_ends_are_exact(n: int) -> None:
    assert wilson_interval(0, n).low == 0.0
    assert wilson_interval(n, n).high == 1.0


def test_wilson_in_the_middle() -> None:
    # 5 of 10: centre (p + z^2/2n) / (1 + z^2/n) = .5, half width
    # z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2)
    # = 1.95996 / 1.38415 * sqrt(.025 + .0096037) = .26341.
    interval = wilson_interval(5, 10)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 0.26341, abs=1e-5)
    assert interval.high == pytest.approx(0.5 + 0.26341, abs=1e-5)
    assert (interval.n, interval.n_clusters, interval.note) == (10, None, None)


def test_wilson_of_nothing() -> None:
    interval = wilson_interval(0, 0)
    assert (interval.mean, interval.low, interval.high) == (None, None, None)
    assert "n = 0" in interval.note


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
        wilson_interval(successes, n)


# --- cluster bootstrap ---------------------------------------------------------------------------


def test_bootstrap_of_two_clusters_by_hand() -> None:
    # Clusters (0, 0) and (1): drawing two gives (0,0), (0,1), (1,0), (1,1), each a quarter of the
    # time, with means 0, 1/3, 1/3, 1. So the 95 % limits are 0 and 1, and the 40 % limits (the 30th
    # and the 70th percentile) both 1/3: rows are weighed, not clusters, whose mean would be 1/2.
    scores, clusters = [0.0, 0.0, 1.0], ["a", "a", "b"]
    wide = cluster_bootstrap(scores, clusters)
    assert wide.mean == pytest.approx(1 / 3)
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert (wide.n, wide.n_clusters) == (3, 2)
    assert "only 2 clusters" in wide.note
    narrow = cluster_bootstrap(scores, clusters, confidence=0.4)
    assert (narrow.low, narrow.high) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_bootstrap_draws_at_least_two_thousand() -> None:
    assert "2000 resamples" in cluster_bootstrap([0, 1], [1, 2]).method


def test_bootstrap_is_seeded() -> None:
    scores = np.random.default_rng(5).random(200)
    first = cluster_bootstrap(scores, range(200), seed=3)
    assert cluster_bootstrap(scores, range(200), seed=3) == first
    assert cluster_bootstrap(scores, range(200), seed=4) != first


def test_row_order_does_not_matter() -> None:
    """A resumed run has its rows in another order and must give the same figures to the digit."""
    rng = np.random.default_rng(0)
    base, tuned = rng.choice([0, 0.3, 0.6, 0.9, 1], size=(2, 300))
    clusters = rng.integers(0, 80, 300)
    order = rng.permutation(300)
    assert compare_paired(base, tuned, clusters) == compare_paired(
        base[order], tuned[order], clusters[order]
    )
    assert cluster_bootstrap(base, clusters) == cluster_bootstrap(base[order], clusters[order])


def test_bootstrap_normal_limits_for_singletons() -> None:
    # 400 rows of 0 and 1, half each, every row its own cluster: standard error .5 / 20 = .025.
    interval = cluster_bootstrap([0, 1] * 200, range(400), n_resamples=20_000)
    assert interval.low == pytest.approx(0.5 - Z * 0.025, abs=0.004)
    assert interval.high == pytest.approx(0.5 + Z * 0.025, abs=0.004)
    assert interval.note is None


def test_clusters_of_copies_widen_the_interval() -> None:
    # Each score four times: no new information, so the interval of the 100 stays. Taking the rows
    # as independent would halve it.
    rng = np.random.default_rng(1)
    once = rng.integers(0, 2, 100).astype(float)
    four = np.repeat(once, 4)
    width = {
        name: interval.high - interval.low
        for name, interval in {
            "once": cluster_bootstrap(once, range(100), n_resamples=10_000),
            "clustered": cluster_bootstrap(four, np.repeat(range(100), 4), n_resamples=10_000),
            "ignored": cluster_bootstrap(four, range(400), n_resamples=10_000),
        }.items()
    }
    assert width["clustered"] == width["once"]
    assert width["ignored"] == pytest.approx(width["once"] / 2, rel=0.1)


def test_bootstrap_covers_the_truth() -> None:
    """Images differ in difficulty, five questions each; the true mean is .5. Of 300 intervals 95 %
    should hold it: 275 or more is what a binomial with .95 gives in 99.5 % of the cases. Ignoring
    the images must fall clearly short."""
    rng = np.random.default_rng(7)
    covered = {"clustered": 0, "ignored": 0}
    for trial in range(300):
        difficulty = rng.beta(0.5, 0.5, size=60)
        scores = rng.random((60, 5)) < difficulty[:, None]
        flat = scores.ravel().astype(float)
        for name, clusters in {
            "clustered": np.repeat(range(60), 5),
            "ignored": range(300),
        }.items():
            interval = cluster_bootstrap(flat, clusters, n_resamples=500, seed=trial)
            covered[name] += interval.low <= 0.5 <= interval.high
    assert covered["clustered"] >= 275
    assert covered["ignored"] < 250


def test_bootstrap_keeps_the_unit() -> None:
    rng = np.random.default_rng(2)
    scores, clusters = rng.integers(0, 2, 60), rng.integers(0, 20, 60)
    fraction = cluster_bootstrap(scores, clusters)
    percent = cluster_bootstrap(100 * scores, clusters)
    assert percent.low == pytest.approx(100 * fraction.low)
    assert percent.high == pytest.approx(100 * fraction.high)


def test_bootstrap_of_nothing_and_of_one_cluster() -> None:
    nothing = cluster_bootstrap([], [])
    assert (nothing.mean, nothing.low, nothing.high, nothing.n) == (None, None, None, 0)
    assert "n = 0" in nothing.note
    one = cluster_bootstrap([0, 1, 1, 1], [9, 9, 9, 9])
    assert (one.mean, one.low, one.high, one.n_clusters) == (0.75, None, None, 1)
    assert "one cluster" in one.note


# --- clustered standard error and minimum detectable difference ----------------------------------


def test_at_the_ends_wilson_over_clusters_stands_for_the_bootstrap() -> None:
    """All right used to be 100 [100, 100], certain after ten pictures."""
    clusters = [i // 3 for i in range(30)]
    for score in (0, 1):
        wilson = wilson_interval(10 * score, 10)  # ten pictures, not thirty questions
        found = score_interval([score] * 30, clusters)
        assert (found.low, found.high) == (wilson.low, wilson.high)
        assert (found.mean, found.n, found.n_clusters) == (score, 30, 10)
        assert found.note == "all scores equal: Wilson's interval over 10 clusters"
    assert score_interval([1] * 10, range(10)).low == pytest.approx(0.7225, abs=1e-4)


def test_between_the_ends_the_bootstrap_stands_unless_it_has_no_width() -> None:
    scores, clusters = [0, 1, 1, 1, 0.3], [1, 2, 3, 4, 5]
    assert score_interval(scores, clusters) == cluster_bootstrap(scores, clusters)
    flat = score_interval([0, 1] * 10, [i // 2 for i in range(20)])  # each picture half right
    assert (flat.mean, flat.low, flat.high) == (0.5, None, None)
    assert flat.note == "every cluster has the same mean: no interval"
    assert score_interval([1, 1], ["x", "x"]).note == "one cluster: no interval, no test"


def test_standard_error_by_hand() -> None:
    # Mean 2. Residual sums: a: (-1) + (-1) = -2, b: 2, c: 0. C = 3, n = 5:
    # sqrt(3/2 * (4 + 4 + 0)) / 5 = sqrt(12) / 5.
    scores, clusters = [1, 1, 3, 3, 2], ["a", "a", "b", "b", "c"]
    expected = POWERED * math.sqrt(12) / 5
    assert minimum_detectable_difference(scores, clusters) == pytest.approx(expected)


def test_minimum_detectable_difference_by_hand() -> None:
    # Of singletons the textbook's standard error: 1, 2, 3, 4 have variance 5/3 with n - 1.
    # (1.959964 + .841621) * sqrt(5/12) = 2.801585 * .645497 = 1.808415
    assert minimum_detectable_difference([1, 2, 3, 4], range(4)) == pytest.approx(1.808415)
    # One-sided habits: z(.95) + z(.5) = 1.644854 at alpha .1 and power .5
    assert minimum_detectable_difference(
        [1, 2, 3, 4], range(4), alpha=0.1, power=0.5
    ) == pytest.approx(1.644854 * math.sqrt(5 / 12))


def test_minimum_detectable_difference_of_500_questions() -> None:
    # A tenth of 500 questions won, a tenth lost: variance .2, standard error sqrt(.2 / 499) =
    # .02002, times 2.80 is 5.6 points: a sample of 500 can't show one point.
    differences = [100] * 50 + [-100] * 50 + [0] * 400
    assert minimum_detectable_difference(differences, range(500)) == pytest.approx(5.609, abs=1e-3)


def test_detects_the_minimum_difference_in_four_of_five_trials() -> None:
    rng = np.random.default_rng(11)
    clusters = np.repeat(range(100), 3)
    found = 0
    for _ in range(200):
        noise = np.repeat(rng.normal(size=100), 3) + rng.normal(size=300)
        # The mean over an image's three questions varies by 1 + 1/3.
        smallest = POWERED * math.sqrt((1 + 1 / 3) / 100)
        mean = (noise + smallest).mean()
        standard_error = minimum_detectable_difference(noise, clusters) / POWERED
        found += abs(mean) > Z * standard_error
    assert 140 <= found <= 178  # 160 expected, standard deviation 5.7


def test_no_minimum_where_differences_do_not_vary() -> None:
    assert minimum_detectable_difference([0, 0, 0], [1, 2, 3]) is None
    assert minimum_detectable_difference([0.3, 0.3, 0.3], [1, 2, 3]) is None
    assert minimum_detectable_difference([1, -1, 1, -1], [1, 1, 2, 2]) is None
    assert minimum_detectable_difference([1, 2], [1, 1]) is None
    assert minimum_detectable_difference([], []) is None


# --- McNemar -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "wins", "exact", "mid"),
    [
        # P(X <= 1) of Binomial(10, 1/2) = (1 + 10)/1024, P(X = 1) = 10/1024.
        (1, 9, 22 / 1024, 12 / 1024),
        (9, 1, 22 / 1024, 12 / 1024),
        # Binomial(5, 1/2): P(0) = 1/32.
        (0, 5, 2 / 32, 1 / 32),
        # Binomial(8, 1/2): P(X <= 2) = (1 + 8 + 28)/256, P(2) = 28/256.
        (2, 6, 74 / 256, 46 / 256),
        (3, 3, 1.0, 1.0),  # exact: 2 * 42/64 is cut to 1; mid-p: 2 * 42/64 - 20/64 = 1
        (0, 0, 1.0, 1.0),
        (0, 1, 1.0, 0.5),
    ],
)
def test_mcnemar_by_hand(losses: int, wins: int, exact: float, mid: float) -> None:
    assert mcnemar_p_values(losses, wins) == (pytest.approx(exact), pytest.approx(mid))


def test_right_and_wrong_are_compared_by_mcnemar() -> None:
    # 2x2 table: 3 both right, 4 both wrong, tuned alone right 9, base alone right 1.
    base = [1] * 3 + [0] * 4 + [0] * 9 + [1] * 1
    tuned = [1] * 3 + [0] * 4 + [1] * 9 + [0] * 1
    result = compare_paired(base, tuned, range(17))
    assert result.test == "mcnemar-exact"
    assert (result.n, result.n_clusters) == (17, 17)
    assert (result.wins, result.ties, result.losses) == (9, 7, 1)
    assert result.difference == pytest.approx(8 / 17)
    assert result.p_value == pytest.approx(22 / 1024)
    assert result.p_value_mid == pytest.approx(12 / 1024)
    # Ten clusters differ, all by one: the flips of their signs are McNemar's coin tosses.
    differences = [after - before for before, after in zip(base, tuned, strict=True)]
    assert sign_flip(differences, range(17)) == pytest.approx(22 / 1024)
    assert result.low < result.difference < result.high
    assert result.note is None


def test_percent_and_fraction_are_the_same_comparison() -> None:
    base, tuned = [0, 1, 0, 0, 1, 0] * 4, [1, 1, 0, 1, 0, 0] * 4
    fraction = compare_paired(base, tuned, range(24))
    percent = compare_paired([100 * x for x in base], [100.0 * x for x in tuned], range(24))
    assert percent.test == fraction.test == "mcnemar-exact"
    for field in dataclasses.fields(fraction):
        one, hundred = getattr(fraction, field.name), getattr(percent, field.name)
        if field.name in ("difference", "low", "high", "minimum_detectable_difference"):
            assert hundred == pytest.approx(100 * one)
        else:
            assert hundred == one


def test_right_and_wrong_questions_that_share_images_are_compared_by_sign_flips() -> None:
    # Four images with five questions each, all twenty won: 2 / 2**20 as if independent, but only
    # four things happened: 2 of the 16 sign patterns are as extreme.
    result = compare_paired([0] * 20, [1] * 20, [i // 5 for i in range(20)])
    assert mcnemar_p_values(0, 20)[0] == pytest.approx(2 / 2**20)
    assert (result.test, result.p_value) == ("sign-flip-clustered", pytest.approx(2 / 16))
    assert result.p_value_mid is None


# --- sign-flip permutation -----------------------------------------------------------------------


def test_sign_flip_enumerated_by_hand() -> None:
    # Image sums 1, 2 and 3, so 6 is seen. Of the 8 sign patterns only +++ and --- reach 6: p = 1/4.
    assert sign_flip([1, 2, 1, 1, 1], ["a", "b", "c", "c", "c"]) == 0.25
    # Sums 3, -1, 2: seen 4. Patterns of |3 +- 1 +- 2| reaching 4: 6 (two signs), 4 (two): 4 of 8.
    assert sign_flip([3, -1, 2], [1, 2, 3]) == 0.5
    # Sums 1 and -1: seen 0, every pattern reaches it.
    assert sign_flip([1, -1], [1, 2]) == 1.0


def test_sign_flip_treats_an_image_as_one() -> None:
    # Eight wins on four images flip as four: 2/16; on eight images 2/256.
    wins = [0.3] * 7 + [0.6]
    assert sign_flip(wins, [0, 0, 1, 1, 2, 2, 3, 3]) == 2 / 16
    assert sign_flip(wins, range(8)) == 2 / 256


def test_images_without_difference_change_nothing() -> None:
    assert sign_flip([1, 2, 3, 0, 0, 5, -5], [1, 2, 3, 4, 5, 6, 6]) == 0.25


def test_sign_flip_rounding_errors_are_hits() -> None:
    # .1 + .2 and .3 are different floats: without a margin, sums equal to the one seen get lost.
    # Sums .1, .2, .3, -.4: seen .2. In tenths, 1 +- 2 +- 3 +- 4 = 10, 2, 4, -4, 6, -2, 0, -8, of
    # which seven are at least 2 in size, and as many of the eight with -1: p = 7/8.
    assert sign_flip([0.1, 0.2, 0.3, -0.4], [1, 2, 3, 4]) == 7 / 8


def test_drawn_sign_flips_agree_with_the_exact_value() -> None:
    # 20 images, 16 won and 4 lost by one each: the binomial's 2 * P(X <= 4) = 2 * 6196 / 2**20.
    differences = [1] * 16 + [-1] * 4
    exact = 2 * (1 + 20 + 190 + 1140 + 4845) / 2**20  # .01182
    p_value = sign_flip(differences, range(20))
    assert p_value == pytest.approx(exact, abs=0.004)  # standard error .0011
    assert sign_flip(differences, range(20)) == p_value
    assert sign_flip(differences, range(20), seed=1) != p_value


def test_drawn_p_value_is_never_zero() -> None:
    assert sign_flip([1, 2] * 30, range(60)) == 1 / 10_000


def test_sign_flip_agrees_with_scipy() -> None:
    sums = np.random.default_rng(3).normal(0.4, 1, size=12)
    reference = permutation_test(
        (sums,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True
    )
    assert sign_flip(sums, range(12)) == pytest.approx(reference.pvalue)


def test_sign_flip_p_values_are_uniform_under_the_null() -> None:
    """Rejections at .05 over 400 worlds without a difference, images correlated: 20 expected."""
    rng = np.random.default_rng(13)
    rejected = ignored = 0
    for trial in range(400):
        differences = np.repeat(rng.normal(size=12), 4) + 0.3 * rng.normal(size=48)
        rejected += sign_flip(differences, np.repeat(range(12), 4)) <= 0.05
        if trial < 100:
            ignored += sign_flip(differences, range(48)) <= 0.05
    assert 8 <= rejected <= 34  # 20 +- 3.2 standard deviations
    assert ignored > 20  # of 100, where 5 are expected: what forgetting the images does


def test_graded_scores_are_compared_by_sign_flips() -> None:
    # Image sums of the differences: 1: .3 + .1 = .4; 2: .6; 3: -.2 and .2 = 0; 4: 1. All with one
    # sign, so 2 of the 2**3 patterns of the images that differ: p = 1/4.
    base = [0.3, 0.5, 0.0, 0.5, 0.3, 0.0]
    tuned = [0.6, 0.6, 0.6, 0.3, 0.5, 1.0]
    result = compare_paired(base, tuned, [1, 1, 2, 3, 3, 4])
    assert result.test == "sign-flip-clustered"
    assert result.difference == pytest.approx(2.0 / 6)
    assert result.p_value == pytest.approx(0.25)
    assert result.p_value_mid is None
    assert (result.wins, result.ties, result.losses) == (5, 0, 1)
    assert (result.n, result.n_clusters) == (6, 4)
    assert "only 4 clusters" in result.note


def test_difference_interval_is_paired() -> None:
    """Scores that swing from image to image but always rise by .1 or .11: little doubt remains."""
    rng = np.random.default_rng(4)
    base = rng.choice([0, 0.3, 0.6, 0.9], size=200)
    result = compare_paired(base, base + np.tile([0.1, 0.11], 100), range(200))
    assert 0.104 < result.low < 0.105 < result.high < 0.106
    assert result.wins == 200


def test_a_difference_without_spread_has_no_interval() -> None:
    """Two equal runs had [0, 0]: a bootstrap that can't vary would claim certainty."""
    base = [0.0, 0.3, 0.6, 0.9]
    for rise in (0.0, 0.1):
        result = compare_paired(base, [score + rise for score in base], range(4))
        assert result.difference == pytest.approx(rise)
        assert (result.low, result.high, result.minimum_detectable_difference) == (None,) * 3
        assert "every image has the same difference: no interval" in result.note
        assert "do not vary" in result.note


def test_interval_is_the_bootstrap_of_the_differences() -> None:
    rng = np.random.default_rng(6)
    base, tuned = rng.choice([0, 0.3, 0.6, 1], size=(2, 90))
    clusters = rng.integers(0, 30, 90)
    result = compare_paired(base, tuned, clusters, seed=5)
    interval = cluster_bootstrap(tuned - base, clusters, seed=5)
    assert (result.low, result.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert result.minimum_detectable_difference == pytest.approx(
        minimum_detectable_difference(tuned - base, clusters)
    )


def test_a_rounding_error_is_a_tie() -> None:
    result = compare_paired([0.1 + 0.2, 0.6, 0.0], [0.3, 0.6, 1.0], [1, 2, 3])
    assert (result.wins, result.ties, result.losses) == (1, 2, 0)


def test_identical_runs() -> None:
    result = compare_paired([0.3, 1.0, 0.0], [0.3, 1.0, 0.0], [1, 2, 3])
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, None, None, 1.0)
    assert (result.wins, result.ties, result.losses) == (0, 3, 0)
    assert result.minimum_detectable_difference is None


def test_nothing_to_compare() -> None:
    result = compare_paired([], [], [])
    assert (result.difference, result.low, result.high, result.p_value) == (None,) * 4
    assert (result.test, result.minimum_detectable_difference) == (None, None)
    assert (result.n, result.n_clusters, result.wins, result.ties, result.losses) == (0,) * 5
    assert "n = 0" in result.note


def test_one_cluster_gives_a_difference_only() -> None:
    result = compare_paired([0, 0, 1], [1, 1, 1], ["x"] * 3)
    assert result.difference == pytest.approx(2 / 3)
    assert (result.low, result.high, result.p_value, result.p_value_mid) == (None,) * 4
    assert result.test is None
    assert (result.wins, result.ties, result.losses, result.n_clusters) == (2, 1, 0, 1)
    assert "one cluster" in result.note


@pytest.mark.parametrize(
    ("base", "tuned", "clusters", "message"),
    [
        ([0, math.nan], [0, 1], [1, 2], r"base_scores\[1\] is nan"),
        ([0, 1], [0, math.inf], [1, 2], r"tuned_scores\[1\] is inf"),
        ([0, 1], [None, 1], [1, 2], r"tuned_scores\[0\] is None"),
        ([0, "1"], [0, 1], [1, 2], r"base_scores\[1\] is '1'"),
        ([0, 1], [0, 1], [1, None], r"clusters\[1\] is None"),
        ([0, 1], [0, 1], [math.nan, 1], r"clusters\[0\] is nan"),
        ([0, 1], [0, 1, 1], [1, 2], r"base_scores 2, tuned_scores 3, clusters 2\): row 2"),
        ([0, 1], [0, 1], [1], r"clusters 1\): row 1 lacks a partner"),
    ],
)
def test_bad_rows_are_named(base: list, tuned: list, clusters: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_paired(base, tuned, clusters)


@pytest.mark.parametrize(
    "function",
    [cluster_bootstrap, minimum_detectable_difference],
)
def test_bad_rows_are_named_everywhere(function) -> None:
    with pytest.raises(ValueError, match=r"\[2\] is nan"):
        function([1, 2, math.nan], [1, 2, 3])
    with pytest.raises(ValueError, match="row 2 lacks a partner"):
        function([1, 2, 3], [1, 2])


# --- Holm ----------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # Sorted .01, .03, .04 times 3, 2, 1 = .03, .06, .04; made rising: .03, .06, .06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])  # 2 * .5 = 1; cut at 1
    assert holm([0.2]) == [0.2]


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = holm([None, 0.01, None, 0.04])
    assert (adjusted[0], adjusted[2]) == (None, None)
    assert [adjusted[1], adjusted[3]] == pytest.approx([0.02, 0.04])  # 2 * .01, 1 * .04
    assert holm([None]) == [None]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [1.2, -0.1, math.nan])
def test_holm_refuses_what_is_no_p_value(bad: float) -> None:
    with pytest.raises(ValueError, match=r"p_values\[1\]"):
        holm([0.1, bad])
