"""Open-set figures against tables worked by hand, brute force, scikit-learn and other code's rules.

THE TABLE, worked by hand below: 3 classes (class 2 never occurs), threshold .5.

    row  score  label  predicted   after the threshold
    A     .9      0       0            0   right
    B     .7      0       1            1   wrong
    C     .5      1       1            1   right, score equal to the threshold
    D     .3      1       1           -1   rejected
    E     .7     -1       0            0   accepted, ties with B
    F     .1     -1       1           -1
    G     .2     -1       0           -1
    H     .6     -1      -1           -1   the model said unknown; its score would be accepted
"""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest

from llava_openset.metrics import (
    METRICS,
    Threshold,
    checked_rows,
    choose_threshold,
    final_predictions,
    open_set_metrics,
    precision_recall_points,
    risk_coverage_points,
    roc_points,
)

SCORES = [0.9, 0.7, 0.5, 0.3, 0.7, 0.1, 0.2, 0.6]
LABELS = [0, 0, 1, 1, -1, -1, -1, -1]
PREDICTIONS = [0, 1, 1, 1, 0, 1, 0, -1]
BY_HAND = {
    # pairs won of 4 unknown: A 4, B 3.5 (tie with E), C 2 (F, G), D 2 (F, G)
    "auroc": 11.5 / 16,
    # down the scores, precision where a known sample is met: .9 1/1, .7 2/3, .5 3/5, .3 4/6
    "aupr_known": (1 + 2 / 3 + 3 / 5 + 4 / 6) / 4,
    # up the scores, where an unknown one is met: .1 1/1, .2 2/2, .6 3/5, .7 4/7
    "aupr_unknown": (1 + 1 + 3 / 5 + 4 / 7) / 4,
    # all four known (3/4 < .95) are accepted from .3 on: E and H with them
    "fpr95_known_positive": 2 / 4,
    # all four unknown are rejected up to .7: B, C, D with them
    "fpr95_unknown_positive": 3 / 4,
    # the pairs of auroc without B, which is wrong: 4 + 2 + 2
    "oscr": 8 / 16,
    "closed_set_accuracy": 3 / 4,
    "known_accept_rate": 3 / 4,
    "known_correct_and_accepted": 2 / 4,
    "unknown_reject_rate": 3 / 4,
    "normalised_accuracy": (2 / 4 + 3 / 4) / 2,
    # 2 hits / (occurs + called): class 0 2/(2 + 2), class 1 2/(2 + 2), class 2 0, unknown 6/(4 + 4)
    "macro_f1_with_unknown": (0.5 + 0.5 + 0 + 0.75) / 4,
    # errors among the first k of A right, B wrong, C right, D right
    "aurc": (0 / 1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
    # each in a bin of its own: |1 - .9|, |0 - .7|, |1 - .5|, |1 - .3|
    "ece": (0.1 + 0.7 + 0.5 + 0.7) / 4,
    "brier": (0.01 + 0.49 + 0.25 + 0.49) / 4,
    # 3 trained, 3 to be told, 3 + 2 met
    "openness": 1 - math.sqrt(2 * 3 / (5 + 3)),
}
NEEDS_BOTH = ("auroc", "aupr_known", "aupr_unknown", "fpr95_known_positive",
              "fpr95_unknown_positive", "oscr", "normalised_accuracy")  # fmt: skip
OF_KNOWN = ("closed_set_accuracy", "known_accept_rate", "known_correct_and_accepted", "aurc",
            "ece", "brier")  # fmt: skip
AT_THRESHOLD = ("known_accept_rate", "known_correct_and_accepted", "unknown_reject_rate",
                "normalised_accuracy", "macro_f1_with_unknown")  # fmt: skip
BY_ORDER = ("auroc", "aupr_known", "aupr_unknown", "fpr95_known_positive",
            "fpr95_unknown_positive", "oscr", "closed_set_accuracy", "aurc")  # fmt: skip


def random_rows(seed: int, n_known: int, n_unknown: int, n_classes: int = 4) -> tuple:
    """Scores on a grid of tenths, so that many tie; one in eight answers is withheld."""
    rng = np.random.default_rng(seed)
    labels = [*rng.integers(0, n_classes, n_known).tolist(), *[-1] * n_unknown]
    scores = (rng.integers(0, 11, len(labels)) + 2 * (np.array(labels) >= 0)).clip(0, 10) / 10
    guesses = rng.integers(0, n_classes, len(labels))
    predictions = np.where(rng.random(len(labels)) < 0.6, np.maximum(labels, 0), guesses)
    predictions[rng.random(len(labels)) < 1 / 8] = -1
    return scores.tolist(), labels, predictions.tolist()


# --- the table


def test_every_key_of_the_table_as_worked_by_hand() -> None:
    figures = open_set_metrics(SCORES, LABELS, PREDICTIONS, 0.5, 3, 2)
    assert figures.pop("notes") == {}
    assert figures == pytest.approx(BY_HAND)
    assert tuple(figures) == METRICS == tuple(BY_HAND)


def test_figures_are_plain_numbers_that_json_takes() -> None:
    columns = np.array(SCORES), np.array(LABELS), np.array(PREDICTIONS)
    figures = open_set_metrics(*columns, np.float64(0.5), 3, 2)
    assert all(type(figures[name]) is float for name in METRICS)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_the_order_of_rows_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(SCORES))
    shuffled = (np.array(column)[order] for column in (SCORES, LABELS, PREDICTIONS))
    figures = open_set_metrics(*shuffled, 0.5, 3, 2)
    figures.pop("notes")
    assert figures == pytest.approx(BY_HAND)


# --- what cannot be computed


def test_only_known_samples() -> None:
    figures = open_set_metrics(SCORES[:4], LABELS[:4], PREDICTIONS[:4], 0.5, 3, 2)
    for name in (*NEEDS_BOTH, "unknown_reject_rate"):
        assert figures[name] is None
        assert figures["notes"][name] == "no unknown sample"
    for name in (*OF_KNOWN, "openness"):
        assert figures[name] == pytest.approx(BY_HAND[name])
    # class 0: 2 hits of A, 2 occur, 1 called: 2/3; class 1: C, 2 occur, 2 called: 1/2; 2 and
    # unknown (D called so, none is): 0
    assert figures["macro_f1_with_unknown"] == pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4)
    assert set(figures["notes"]) == {name for name in METRICS if figures[name] is None}


def test_only_unknown_samples() -> None:
    figures = open_set_metrics(SCORES[4:], LABELS[4:], PREDICTIONS[4:], 0.5, 3, 2)
    for name in (*NEEDS_BOTH, *OF_KNOWN):
        assert figures[name] is None
        assert figures["notes"][name] == "no known sample"
    assert figures["unknown_reject_rate"] == 3 / 4
    # unknown: 3 hits, 4 occur, 3 called: 6/7; class 0 is called once and never occurs: 0
    assert figures["macro_f1_with_unknown"] == pytest.approx(6 / 7 / 4)


def test_no_samples_at_all() -> None:
    figures = open_set_metrics([], [], [], 0.5, 3)
    assert [name for name in METRICS if figures[name] is not None] == []
    assert set(figures["notes"]) == set(METRICS)


def test_without_a_threshold_what_it_decides_is_none_and_the_rest_stands() -> None:
    figures = open_set_metrics(SCORES, LABELS, PREDICTIONS, None, 3, 2)
    for name in METRICS:
        if name in AT_THRESHOLD:
            assert figures[name] is None
            assert figures["notes"][name] == "no threshold"
        else:
            assert figures[name] == pytest.approx(BY_HAND[name])


def test_openness_needs_the_number_of_unknown_classes() -> None:
    figures = open_set_metrics(SCORES, LABELS, PREDICTIONS, 0.5, 3)
    assert figures["openness"] is None
    assert "not given" in figures["notes"]["openness"]
    assert open_set_metrics(SCORES, LABELS, PREDICTIONS, 0.5, 3, 0)["openness"] == 0.0
    # 20 known, 60 unknown: sqrt(40 / 100)
    coco = open_set_metrics(SCORES, LABELS, PREDICTIONS, 0.5, 20, 60)["openness"]
    assert coco == pytest.approx(1 - math.sqrt(0.4))
    # another formula in use, 1 - sqrt(train / test), would give .5
    assert coco != pytest.approx(1 - math.sqrt(20 / 80))


# --- odd scores


def test_constant_scores() -> None:
    figures = open_set_metrics([0.5] * 8, LABELS, PREDICTIONS, 0.5, 3)
    assert figures["auroc"] == 0.5
    assert figures["oscr"] == 0.5 * 3 / 4
    assert figures["aupr_known"] == figures["aupr_unknown"] == 4 / 8
    # the one threshold that accepts any sample accepts all
    assert figures["fpr95_known_positive"] == figures["fpr95_unknown_positive"] == 1.0
    assert figures["aurc"] == pytest.approx(1 / 4)  # the error rate at any coverage
    assert figures["ece"] == pytest.approx(abs(3 / 4 - 0.5))
    assert figures["known_accept_rate"] == 1.0
    assert figures["unknown_reject_rate"] == 1 / 4  # H alone, by its answer
    above = open_set_metrics([0.5] * 8, LABELS, PREDICTIONS, math.nextafter(0.5, 1), 3)
    assert (above["known_accept_rate"], above["unknown_reject_rate"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("negative", lambda score: score - 5),
        ("huge", lambda score: (score - 0.5) * 1e308),
        ("tiny", lambda score: score * 1e-300),
        ("infinite ends", {0.9: math.inf, 0.1: -math.inf}.get),
    ],
)
def test_only_the_order_of_scores_matters_for_figures_by_order(kind: str, change) -> None:
    new = change if kind != "infinite ends" else (lambda score: change(score, score))
    scores = [new(score) for score in SCORES]
    figures = open_set_metrics(scores, LABELS, PREDICTIONS, new(0.5), 3, 2)
    for name in (*BY_ORDER, *AT_THRESHOLD):
        assert figures[name] == pytest.approx(BY_HAND[name]), name
    if kind != "tiny":  # still in [0, 1]
        assert figures["ece"] is figures["brier"] is None
        assert "[0, 1]" in figures["notes"]["ece"]
        assert "[0, 1]" in figures["notes"]["brier"]


def test_infinite_scores_that_tie_count_half() -> None:
    inf = math.inf
    # known +inf ties with unknown +inf (1/2), beats -inf (1); known -inf loses, ties (1/2)
    figures = open_set_metrics([inf, -inf, inf, -inf], [0, 0, -1, -1], [0, 0, 0, 0], inf, 1)
    assert figures["auroc"] == figures["oscr"] == (1 / 2 + 1 + 0 + 1 / 2) / 4
    assert figures["known_accept_rate"] == figures["unknown_reject_rate"] == 1 / 2
    everything = open_set_metrics([inf, -inf], [0, -1], [0, 0], -inf, 1)
    assert (everything["known_accept_rate"], everything["unknown_reject_rate"]) == (1.0, 0.0)


def test_a_score_of_an_unknown_sample_outside_0_1_also_shows_that_scores_are_no_probabilities() -> (
    None
):
    figures = open_set_metrics([0.9, -0.1], [0, -1], [0, 0], 0.5, 1)
    assert figures["ece"] is None
    assert open_set_metrics([1.0, 0.0], [0, -1], [0, 0], 0.5, 1)["ece"] == 0.0


def test_a_sample_whose_prediction_is_unknown_is_rejected_whatever_its_score() -> None:
    for score in (0.6, 1.0, math.inf):
        rows = checked_rows([score, score], [0, -1], [-1, -1], 1)
        assert final_predictions(rows, -math.inf).tolist() == [-1, -1]
        figures = open_set_metrics([score, score], [0, -1], [-1, -1], -math.inf, 1)
        assert figures["known_accept_rate"] == figures["closed_set_accuracy"] == 0.0
        assert figures["unknown_reject_rate"] == 1.0


def test_a_known_class_that_is_absent_counts_0_and_leaves_the_rest_alone() -> None:
    few = open_set_metrics([1, 0], [0, -1], [0, 0], 0.5, 1)
    many = open_set_metrics([1, 0], [0, -1], [0, 0], 0.5, 9)
    assert few["macro_f1_with_unknown"] == 1.0
    assert many["macro_f1_with_unknown"] == pytest.approx(2 / 10)
    assert {k: v for k, v in few.items() if k != "macro_f1_with_unknown"} == {
        k: v for k, v in many.items() if k != "macro_f1_with_unknown"
    }


# --- bad input


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0.1, math.nan], [0, 0], [0, 0]), r"scores\[1\] is nan"),
        (([0.1, None], [0, 0], [0, 0]), r"scores\[1\] is None"),
        (([0.1, "0.2"], [0, 0], [0, 0]), r"scores\[1\] is '0.2'"),
        (([10**400], [0], [0]), r"scores\[0\] is 1000"),
        (([0.1, 0.2], [0], [0, 0]), "scores 2, labels 1, predictions 2.*row 1 lacks a partner"),
        (([0.1], [0], [0, 0]), "predictions 2.*row 1 lacks a partner"),
        (([0.1, 0.2], [0, 2], [0, 0]), r"labels\[1\] is 2, must be a class index up to 1 or -1"),
        (([0.1, 0.2], [-2, 0], [0, 0]), r"labels\[0\] is -2"),
        (([0.1, 0.2], [0, 0], [0, 2]), r"predictions\[1\] is 2"),
        (([0.1, 0.2], [0, 0], [-2, 0]), r"predictions\[0\] is -2"),
        (([0.1, 0.2], [0, 0.5], [0, 0]), r"labels\[1\] is 0.5"),
        (([0.1, 0.2], [0, 0], [0, "dog"]), r"predictions\[1\] is 'dog'"),
    ],
)
def test_a_bad_row_is_named(columns: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_set_metrics(*columns, 0.5, 2)


@pytest.mark.parametrize(
    ("threshold", "n_classes", "n_unknown", "message"),
    [
        (math.nan, 2, None, "threshold is NaN"),
        (0.5, 0, None, "n_classes is 0"),
        (0.5, 2, -1, "n_unknown_classes is -1"),
    ],
)
def test_bad_settings_are_named(threshold, n_classes, n_unknown, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_set_metrics([0.1], [0], [0], threshold, n_classes, n_unknown)


# --- brute force and scikit-learn


@pytest.mark.parametrize("seed", range(5))
def test_pair_figures_equal_all_pairs_counted(seed: int) -> None:
    scores, labels, predictions = random_rows(seed, 37, 23)
    figures = open_set_metrics(scores, labels, predictions, 0.5, 4)
    wins = correct_wins = 0.0
    for i, j in itertools.product(range(37), range(37, 60)):
        win = (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2
        wins += win
        correct_wins += win * (predictions[i] == labels[i])
    assert figures["auroc"] == pytest.approx(wins / (37 * 23), abs=1e-12)
    assert figures["oscr"] == pytest.approx(correct_wins / (37 * 23), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_fpr95_equals_the_best_of_all_thresholds_tried(seed: int) -> None:
    """Of all thresholds with enough recall the first ROC point has the fewest false positives."""
    scores, labels, predictions = random_rows(seed, 41, 33)
    figures = open_set_metrics(scores, labels, predictions, 0.5, 4)
    known, unknown = np.array(scores[:41]), np.array(scores[41:])
    accepting = [(unknown >= t).mean() for t in scores if 20 * (known >= t).sum() >= 19 * 41]
    rejecting = [(known <= t).mean() for t in scores if 20 * (unknown <= t).sum() >= 19 * 33]
    assert figures["fpr95_known_positive"] == pytest.approx(min(accepting))
    assert figures["fpr95_unknown_positive"] == pytest.approx(min(rejecting))


@pytest.mark.parametrize("seed", range(5))
def test_agreement_with_scikit_learn_where_the_definitions_coincide(seed: int) -> None:
    """On the raw scores, ties and all; ours hands ranks over, so that is not the same call."""
    from sklearn import metrics

    scores, labels, predictions = map(np.array, random_rows(seed, 50, 40))
    known = labels >= 0
    correct = (predictions == labels)[known]
    final = np.where(scores >= 0.5, predictions, -1)
    theirs = {
        "auroc": metrics.roc_auc_score(known, scores),
        "aupr_known": metrics.average_precision_score(known, scores),
        "aupr_unknown": metrics.average_precision_score(~known, -scores),
        "closed_set_accuracy": metrics.accuracy_score(labels[known], predictions[known]),
        "known_accept_rate": metrics.recall_score(known[known], final[known] >= 0),
        "unknown_reject_rate": metrics.recall_score(labels, final, labels=[-1], average="macro"),
        "brier": metrics.brier_score_loss(correct, scores[known]),
        "macro_f1_with_unknown": metrics.f1_score(labels, final, average="macro"),  # all 4 occur
        "oscr": correct.mean()  # accuracy x AUROC of the correct against the unknown
        * metrics.roc_auc_score(np.concatenate([correct[correct], 0 * scores[~known]]),
                                np.concatenate([scores[known][correct], scores[~known]])),
    }  # fmt: skip
    ours = open_set_metrics(scores, labels, predictions, 0.5, 4)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-12)


def test_macro_f1_differs_from_scikit_learns_default_when_a_class_is_absent() -> None:
    from sklearn.metrics import f1_score

    final = [0, 1, 1, -1, 0, -1, -1, -1]
    ours = open_set_metrics(SCORES, LABELS, PREDICTIONS, 0.5, 3)["macro_f1_with_unknown"]
    assert f1_score(LABELS, final, average="macro") == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert ours == pytest.approx((0.5 + 0.5 + 0.75) / 4)


def test_no_warning_reaches_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (slice(0, 4), slice(4, 8), slice(0, 0), slice(0, 8), slice(3, 4)):
            open_set_metrics(SCORES[rows], LABELS[rows], PREDICTIONS[rows], 0.5, 5, 1)
            roc_points(SCORES[rows], LABELS[rows])
            precision_recall_points(SCORES[rows], LABELS[rows])
            risk_coverage_points(SCORES[rows], LABELS[rows], PREDICTIONS[rows])


# --- where definitions part


def test_dropped_roc_points_would_turn_fpr95_from_95_into_100_percent() -> None:
    """20 known and 20 unknown tied pair by pair: all ROC points lie on the diagonal.

    The first with recall 19/20 has a false positive rate of 19/20. scikit-learn's default keeps the
    two ends of a line only, so the first that it has is (1, 1).
    """
    from sklearn.metrics import roc_curve

    scores, labels = [*range(20), *range(20)], [0] * 20 + [-1] * 20
    figures = open_set_metrics(scores, labels, [0] * 40, None, 1)
    assert figures["fpr95_known_positive"] == figures["fpr95_unknown_positive"] == 0.95
    fpr, tpr, _ = roc_curve(np.array(labels) >= 0, scores)
    assert fpr[np.argmax(tpr >= 0.95)] == 1.0


def test_dropped_roc_points_matter_on_sloping_lines_only() -> None:
    """20 scores with two known and two unknown samples each: collinear points on a slope, as above.

    With the unknown of each score moved up by a half the line is a staircase: what is dropped there
    lies on its vertical and level parts, and the first point of recall .95 has the same x.
    """
    from sklearn.metrics import roc_curve

    scores = np.repeat(np.arange(20.0), 4)
    labels = np.array([0, 0, -1, -1] * 20)
    for moved, theirs in ((scores, 1.0), (scores - labels / 2, 0.95)):
        ours = open_set_metrics(moved, labels, labels, None, 1)["fpr95_known_positive"]
        fpr, tpr, _ = roc_curve(labels >= 0, moved)
        assert ours == 0.95
        assert fpr[np.argmax(tpr >= 0.95)] == theirs


@pytest.mark.parametrize(
    ("n_known", "expected"),
    [
        (19, 1.0),  # 18/19 = .947: all must be accepted, the unknown below the 18th with them
        (20, 0.0),  # 19/20 = .95 is enough
        (21, 0.0),  # 20/21
        (39, 1 / 2),  # 38/39 = .974 is enough, 37/39 = .949 is not
        (40, 0.0),  # 38/40 = .95
    ],
)
def test_recall_95_at_its_boundary(n_known: int, expected: float) -> None:
    """Known samples at 1, 2, ..., n; unknown ones at 1.5 and, for n > 21, at 2.5."""
    unknown = [1.5] if n_known <= 21 else [1.5, 2.5]
    labels = [0] * n_known + [-1] * len(unknown)
    scores = [*range(1, n_known + 1), *unknown]
    figures = open_set_metrics(scores, labels, [0] * len(labels), None, 1)
    assert figures["fpr95_known_positive"] == expected
    mirrored = open_set_metrics(
        [-s for s in scores], [-1 - y for y in labels], [0] * len(labels), None, 1
    )
    assert mirrored["fpr95_unknown_positive"] == expected


def test_every_n_needs_the_whole_number_of_samples_that_fractions_say() -> None:
    """No n at which 19/20 of it would be missed, or reached early, by rounding."""
    for n in (*range(1, 64), 100, 199, 200, 201, 1000, 1020, 4999):
        scores = [*range(n), *(i - 0.5 for i in range(n))]  # unknown k lies just below known k
        figures = open_set_metrics(scores, [0] * n + [-1] * n, [0] * 2 * n, None, 1)
        needed = -(-19 * n // 20)
        assert figures["fpr95_known_positive"] == (needed - 1) / n


def test_fpr95_of_other_code() -> None:
    """Known 1..19, unknown 1.5 and 2.5: the three other rules in use read other points.

    OpenOOD 1.0 takes the floor(.95 n)-th known score and counts the unknown strictly above it;
    Miller et al. the ROC point nearest to .95; OpenOOD 1.5 has the unknown as positive.
    """
    from sklearn.metrics import roc_curve

    known, unknown = np.arange(1.0, 20), np.array([1.5, 2.5])
    scores, labels = np.concatenate([known, unknown]), np.array([0] * 19 + [-1] * 2)
    figures = open_set_metrics(scores, labels, labels, None, 1)
    assert figures["fpr95_known_positive"] == 1.0  # all 19 accepted, from 1 on

    openood_1_0 = (unknown > np.sort(known)[-math.floor(0.95 * 19)]).mean()
    assert openood_1_0 == 0.5  # the 18th is 2: 2.5 lies above
    fpr, tpr, _ = roc_curve(labels >= 0, scores)
    assert fpr[abs(tpr - 0.95).argmin()] == 0.5  # 18/19 = .947 is nearer than 1
    fpr, tpr, _ = roc_curve(labels == -1, -scores)
    openood_1_5 = fpr[np.argmax(tpr >= 0.95)]
    assert openood_1_5 == figures["fpr95_unknown_positive"] == 2 / 19  # known 1 and 2 below 2.5


def test_aupr_is_average_precision_not_the_trapezoid() -> None:
    """OpenOOD and Miller et al. join the points by lines, which says more than any threshold gives.

    Scores down: unknown .9, known .8, known .7. Points (recall, precision): (0, 0) at .9,
    (1/2, 1/2), (1, 2/3), and by convention (0, 1) first. Steps: 1/2 * 1/2 + 1/2 * 2/3 = 7/12.
    Lines: 1/2 * (0 + 1/2)/2 + 1/2 * (1/2 + 2/3)/2 = 5/12. One tie of all: steps 2/3; lines
    (1 + 2/3)/2 = 5/6.
    """
    from sklearn.metrics import auc

    labels = [-1, 0, 0]
    for scores, steps, lines in (([0.9, 0.8, 0.7], 7 / 12, 5 / 12), ([0.5] * 3, 2 / 3, 5 / 6)):
        figures = open_set_metrics(scores, labels, labels, None, 1)
        curve = precision_recall_points(scores, labels)
        assert figures["aupr_known"] == pytest.approx(steps)
        assert auc(curve.x, curve.y) == pytest.approx(lines)


def arpl_oscr(known: list, unknown: list, correct: list) -> float:
    """The loop of ARPL (Chen et al. 2021), which SSB shares, said again in NumPy.

    Cut k of the rows in ascending order counts the correct from k + 1 and the unknown from k, for
    k = 0..n-2; (0, 0) and (1, 1) are added; trapezoids join the points.
    """
    order = np.argsort([*known, *unknown])
    is_correct = np.array([*correct, *[0] * len(unknown)])[order]
    is_unknown = np.array([0] * len(known) + [1] * len(unknown))[order]
    points = [(0.0, 0.0), (0.0, 0.0), (1.0, 1.0)]
    for k in range(len(order) - 1):
        points.append((is_unknown[k:].sum() / len(unknown), is_correct[k + 1 :].sum() / len(known)))
    points.sort(reverse=True)
    return sum((a - c) * (b + d) / 2 for (a, b), (c, d) in itertools.pairwise(points))


def test_oscr_of_arpl_is_not_1_for_perfect_scores_and_hangs_on_the_order_of_ties() -> None:
    figures = open_set_metrics([3, 4, 1, 2], [0, 0, -1, -1], [0, 0, 0, 0], None, 1)
    assert figures["oscr"] == 1.0
    # its points here: (1, 1), (1/2, 1), (0, 1/2), (0, 0): 1/2 * 1 + 1/2 * 3/4
    assert arpl_oscr([3, 4], [1, 2], [1, 1]) == pytest.approx(7 / 8)

    tied = open_set_metrics([1, 1], [0, -1], [0, 0], None, 1)
    assert tied["oscr"] == 0.5
    # ours is the mean of all orders of the rows in a tie; theirs is what the sort makes of them
    scores, labels, predictions = random_rows(3, 30, 30)
    ours = open_set_metrics(scores, labels, predictions, None, 4)["oscr"]
    correct = [int(p == y) for p, y in zip(predictions, labels, strict=True)][:30]
    rng = np.random.default_rng(0)
    theirs = []
    for _ in range(50):
        order = rng.permutation(30)
        known = [scores[i] for i in order]
        theirs.append(arpl_oscr(known, scores[30:], [correct[i] for i in order]))
    assert np.ptp(theirs) > 0.002
    assert np.mean(theirs) < ours - 0.01


# --- AURC, ECE


def test_aurc_inside_a_tie_is_the_mean_over_all_orders() -> None:
    """Known samples: .9 wrong, a tie of four at .5 with two errors, .1 right: 24 orders, listed."""
    scores, right = [0.9, 0.5, 0.5, 0.5, 0.5, 0.1], [0, 1, 0, 0, 1, 1]
    areas = []
    for tie in itertools.permutations(right[1:5]):
        wrong = 1 - np.array([right[0], *tie, right[5]])
        areas.append((np.cumsum(wrong) / np.arange(1, 7)).mean())
    figures = open_set_metrics(scores, [0] * 6, [1 - r for r in right], None, 2)
    assert figures["aurc"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert max(areas) - min(areas) > 0.1  # so the order would have mattered
    curve = risk_coverage_points(scores, [0] * 6, [1 - r for r in right])
    assert curve.y.mean() == pytest.approx(figures["aurc"])


def test_aurc_leaves_unknown_samples_out_and_counts_a_withheld_answer_as_an_error() -> None:
    assert open_set_metrics([3, 9, 2], [0, -1, 0], [0, 0, -1], None, 1)["aurc"] == (0 + 1 / 2) / 2


def test_ece_takes_means_within_bins() -> None:
    # .92 right and .98 wrong share a bin: |1/2 - .95|; .1 opens the second bin: |0 - .1|
    figures = open_set_metrics([0.92, 0.98, 0.1], [0, 0, 0], [0, 1, 1], None, 2)
    assert figures["ece"] == pytest.approx((2 * 0.45 + 0.1) / 3)
    assert figures["brier"] == pytest.approx((0.08**2 + 0.98**2 + 0.1**2) / 3)


# --- the threshold


def test_youden_by_hand() -> None:
    """Known accepted + unknown rejected of 4 + 4, by threshold (H is always rejected):

    .1 4+1, .2 4+2, .3 4+3, .5 3+3, .7 2+3, .9 1+4. The best is .3.
    """
    assert choose_threshold(SCORES, LABELS, PREDICTIONS) == Threshold(0.3, "youden")


def test_normalised_accuracy_by_hand() -> None:
    """As above without B, which is wrong: .1 3+1, .2 3+2, .3 3+3, .5 2+3, .7 1+3, .9 1+4."""
    chosen = choose_threshold(SCORES, LABELS, PREDICTIONS, "normalised_accuracy")
    assert chosen == Threshold(0.3, "normalised_accuracy")
    # with D wrong too: .1 2+1, .2 2+2, .3 2+3, .5 2+3, .7 1+3, .9 1+4: the lowest of three
    wrong_d = [0, 1, 1, 0, 0, 1, 0, -1]
    assert choose_threshold(SCORES, LABELS, wrong_d, "normalised_accuracy").value == 0.3
    # and with D withheld, .3 is no score of an answer any more
    no_d = [0, 1, 1, -1, 0, 1, 0, -1]
    assert choose_threshold(SCORES, LABELS, no_d, "normalised_accuracy").value == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_threshold_is_the_best_of_all_by_the_figures_themselves(seed: int) -> None:
    columns = random_rows(seed, 30, 20)
    of_answers = {s for s, p in zip(columns[0], columns[2], strict=True) if p >= 0}
    figures = {t: open_set_metrics(*columns, t, 4) for t in sorted(of_answers)}
    youden = {t: f["known_accept_rate"] + f["unknown_reject_rate"] for t, f in figures.items()}
    normalised = {t: f["normalised_accuracy"] for t, f in figures.items()}
    for criterion, by_threshold in (("youden", youden), ("normalised_accuracy", normalised)):
        best = max(by_threshold.values())
        lowest = next(t for t, value in by_threshold.items() if value > best - 1e-9)
        assert choose_threshold(*columns, criterion).value == lowest


def test_known_accept_95_takes_the_highest_threshold_that_keeps_19_of_20() -> None:
    scores = [*range(1, 21), 1.5]
    labels = [0] * 20 + [-1]
    chosen = choose_threshold(scores, labels, [0] * 21, "known_accept_95")
    assert chosen == Threshold(2.0, "known_accept_95")
    figures = open_set_metrics(scores, labels, [0] * 21, chosen.value, 1)
    assert (figures["known_accept_rate"], figures["unknown_reject_rate"]) == (0.95, 1.0)
    assert choose_threshold([*range(1, 20)], [0] * 19, [0] * 19, "known_accept_95").value == 1.0


def test_known_accept_95_out_of_reach_accepts_all_that_was_answered_and_says_so() -> None:
    # two of 20 withheld, one of them with the lowest score
    predictions = [-1, 0, -1, *[0] * 17]
    chosen = choose_threshold(range(1, 21), [0] * 20, predictions, "known_accept_95")
    assert chosen.value == 2.0
    assert "18 of 20" in chosen.notes[0]


@pytest.mark.parametrize("criterion", ["youden", "normalised_accuracy"])
def test_a_validation_part_of_known_samples_only_falls_back(criterion: str) -> None:
    chosen = choose_threshold(range(1, 21), [0] * 20, [0] * 20, criterion)
    assert (chosen.value, chosen.criterion) == (2.0, "known_accept_95")
    assert criterion in chosen.notes[0]
    assert "no unknown" in chosen.notes[0]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (([], [], []), "no validation sample"),
        (([0.5], [-1], [0]), "no known validation sample"),
        (([0.5, 0.1], [0, -1], [-1, 0]), "no known validation sample was answered"),
    ],
)
@pytest.mark.parametrize("criterion", ["youden", "normalised_accuracy", "known_accept_95"])
def test_no_threshold_and_why(rows: tuple, reason: str, criterion: str) -> None:
    assert choose_threshold(*rows, criterion) == Threshold(None, criterion, (reason,))


def test_thresholds_of_infinite_and_constant_scores() -> None:
    inf = math.inf
    assert choose_threshold([inf, -inf], [0, -1], [0, 0]).value == inf
    assert choose_threshold([0.5] * 4, [0, 0, -1, -1], [0] * 4).value == 0.5
    with pytest.raises(ValueError, match="must be one of youden, known_accept_95"):
        choose_threshold([1], [0], [0], "best")
    with pytest.raises(ValueError, match=r"scores\[0\]"):
        choose_threshold([math.nan], [0], [0])


# --- curves


def test_roc_points_by_hand() -> None:
    curve = roc_points(SCORES, LABELS)
    assert curve.thresholds.tolist() == [math.inf, 0.9, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1]
    assert (4 * curve.x).tolist() == [0, 0, 1, 2, 2, 2, 3, 4]
    assert (4 * curve.y).tolist() == [0, 1, 2, 2, 3, 4, 4, 4]
    unknown = roc_points(SCORES, LABELS, "unknown")
    assert unknown.thresholds.tolist() == [-math.inf, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.9]
    assert (4 * unknown.x).tolist() == [0, 0, 0, 1, 2, 2, 3, 4]
    assert (4 * unknown.y).tolist() == [0, 1, 2, 2, 2, 3, 4, 4]


def test_precision_recall_points_by_hand_and_their_steps_are_the_figure() -> None:
    curve = precision_recall_points(SCORES, LABELS)
    assert curve.thresholds.tolist() == [math.inf, 0.9, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1]
    assert (4 * curve.x).tolist() == [0, 1, 2, 2, 3, 4, 4, 4]
    assert curve.y.tolist() == pytest.approx([1, 1, 2 / 3, 2 / 4, 3 / 5, 4 / 6, 4 / 7, 4 / 8])
    assert (np.diff(curve.x) * curve.y[1:]).sum() == pytest.approx(BY_HAND["aupr_known"])
    unknown = precision_recall_points(SCORES, LABELS, "unknown")
    assert unknown.thresholds[0] == -math.inf
    assert (np.diff(unknown.x) * unknown.y[1:]).sum() == pytest.approx(BY_HAND["aupr_unknown"])


def test_risk_coverage_points_by_hand() -> None:
    curve = risk_coverage_points(SCORES, LABELS, PREDICTIONS)
    assert curve.x.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.y.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert curve.thresholds.tolist() == [0.9, 0.7, 0.5, 0.3]


def test_curves_keep_each_score_and_take_infinite_ones() -> None:
    scores, labels = [math.inf, 0, -math.inf, 0], [0, 0, -1, -1]
    assert roc_points(scores, labels).thresholds.tolist() == [math.inf, math.inf, 0, -math.inf]
    assert len(precision_recall_points(scores, labels).x) == 4
    ties = [*range(20), *range(20)]
    assert len(roc_points(ties, [0] * 20 + [-1] * 20).x) == 21
    assert len(precision_recall_points([*range(40)], [0] * 20 + [-1] * 20).x) == 41


def test_a_curve_that_does_not_exist_is_none() -> None:
    assert roc_points([0.5], [0]) is roc_points([0.5], [-1]) is roc_points([], []) is None
    assert precision_recall_points([0.5], [0]) is None
    assert precision_recall_points([0.5], [-1], "unknown") is None
    assert risk_coverage_points([0.5], [-1], [0]) is None
