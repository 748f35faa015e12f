"""Open-set metrics: how well scores and predictions tell known classes from unknown, and apart.

Pure functions of four columns, one row a sample: `scores` (higher = more known; any numbers, also
infinite), `labels` and `predictions` (class index 0..n_classes-1, or -1 = unknown) and a threshold
that was chosen on other samples. A sample is accepted when its score >= threshold; one whose
prediction is -1 (the model itself said unknown, or withheld an answer) counts as predicted unknown
whatever its score. That holds for what a threshold decides; AUROC, AUPR, FPR and OSCR rank by the
scores alone, so a score of an answer "unknown" must say how known the sample is (-inf will do),
not how sure the model was of saying so.

    python -m pytest tests/llava_openset/test_metrics.py

Reads and writes nothing. Where scikit-learn defines the figure, it computes it: AUROC, AUPR as
average precision, the points of ROC and precision-recall curves (none dropped: by default it drops
collinear points, and with them the point at which FPR at 95 % recall is read), macro F1. It gets
the scores' ranks, as it refuses infinite scores, and no rank figure depends on more. OSCR, AURC and
ECE it does not have; its Brier score is the same figure as `shared.calibration` gives with the ECE.
No torch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shared.calibration import mean_scores_kept, reliability

UNKNOWN = -1
METRICS = (
    "auroc", "aupr_known", "aupr_unknown", "fpr95_known_positive", "fpr95_unknown_positive", "oscr",
    "closed_set_accuracy", "known_accept_rate", "known_correct_and_accepted", "unknown_reject_rate",
    "normalised_accuracy", "macro_f1_with_unknown", "aurc", "ece", "brier", "openness",
)  # fmt: skip
CRITERIA = ("youden", "known_accept_95", "normalised_accuracy")

Positive = Literal["known", "unknown"]


@dataclass(frozen=True, eq=False)
class Rows:
    """The checked columns as arrays of n rows; `known` and `correct` follow from them."""

    scores: np.ndarray  # float
    labels: np.ndarray  # int, -1 = unknown
    predictions: np.ndarray  # int, -1 = predicted unknown

    @property
    def known(self) -> np.ndarray:
        return self.labels != UNKNOWN

    @property
    def correct(self) -> np.ndarray:
        """Known samples whose class was predicted, before any rejection."""
        return self.known & (self.predictions == self.labels)

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Threshold:
    """Accept when score >= `value`. `criterion` is the one applied, `notes` say what else to know.

    None as value: none could be chosen, and the notes say why. An infinite value comes only from
    infinite scores.
    """

    value: float | None
    criterion: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of a curve, [P] each; its maker says what each of the `thresholds`, scores, decides.

    The point at which nothing is called positive has no score; its threshold is infinite.
    """

    x: np.ndarray
    y: np.ndarray
    thresholds: np.ndarray


def checked_rows(
    scores: Sequence[float],
    labels: Sequence[int],
    predictions: Sequence[int],
    n_classes: int | None = None,
) -> Rows:
    """The columns as arrays.

    Raises ValueError naming the row: NaN or no number as score, a label or prediction that is no
    whole number from -1 to n_classes - 1, unequal lengths.
    """
    lengths = {"scores": len(scores), "labels": len(labels), "predictions": len(predictions)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"unequal numbers of rows ({listed}): row {min(lengths.values())} lacks a partner"
        )
    if n_classes is not None:
        _at_least("n_classes", n_classes, 1)
    return Rows(
        checked_scores(scores),
        _class_indices(labels, "labels", n_classes),
        _class_indices(predictions, "predictions", n_classes),
    )


def checked_scores(scores: Sequence[float], name: str = "scores") -> np.ndarray:
    """The scores as a float array; ValueError names the row of the first that is no number."""
    numbers = np.empty(len(scores))
    for i, score in enumerate(scores):
        # math.isnan refuses what is no number; a string of digits would slip into an array
        try:
            bad = math.isnan(score)
        except (TypeError, OverflowError):
            bad = True
        if bad:
            raise ValueError(f"{name}[{i}] is {score!r}, must be a number (infinite is allowed)")
        numbers[i] = score
    return numbers


def final_predictions(rows: Rows, threshold: float) -> np.ndarray:
    """The class of each sample after rejection, [n]: -1 below the threshold or where it was -1."""
    return np.where(rows.scores >= threshold, rows.predictions, UNKNOWN)


def open_set_metrics(
    scores: Sequence[float],
    labels: Sequence[int],
    predictions: Sequence[int],
    threshold: float | None,
    n_classes: int,
    n_unknown_classes: int | None = None,
) -> dict[str, Any]:
    """All figures of `METRICS` as floats, 0..1, and `notes`: why a figure is None, by its key.

    - `auroc`: P(a known sample scores above an unknown one), ties half.
    - `aupr_known`, `aupr_unknown`: average precision (the step sum, not the trapezoid, which
      interpolates between points that no threshold reaches); unknown: on the negated score.
    - `fpr95_known_positive`: share of the unknown accepted at the first ROC point, of all
      thresholds, that accepts at least .95 of the known. `fpr95_unknown_positive`: share of the
      known rejected at the first that rejects at least .95 of the unknown (OpenOOD 1.5).
    - `oscr`: mean over all pairs of a known and an unknown sample of correct x (1 if the known one
      scores higher, 1/2 on a tie): the area under correct classification rate against false
      positive rate (Dhamija et al. 2018, arXiv 1811.04110), exact.
    - `closed_set_accuracy`: share of the known whose class is predicted, before rejection.
    - `known_accept_rate`, `known_correct_and_accepted`, `unknown_reject_rate` at the threshold;
      `normalised_accuracy`: mean of the last two.
    - `macro_f1_with_unknown`: F1 after rejection, mean over n_classes and unknown; a class that
      neither occurs nor is predicted counts 0.
    - `aurc`: mean over k = 1..n of the error rate among the k known samples that score highest,
      before rejection, expected under random order inside ties (arXiv 1705.08500).
    - `ece`, `brier`: of the score as probability that the class predicted is right, over the known;
      ten bins [0, .1), ..., [.9, 1]. Only when all scores, of the unknown too, lie in [0, 1]: that
      they are probabilities then is for the caller to know.
    - `openness`: 1 - sqrt(2 K / (K + U + K)) with K known classes, all trained and to be told, and
      U = n_unknown_classes (Scheirer et al. 2013, "Toward Open Set Recognition").

    A protocol that decides by its answer alone passes -inf as threshold. Raises ValueError as
    `checked_rows` does, for a NaN threshold and for n_classes < 1 or n_unknown_classes < 0.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    rows = checked_rows(scores, labels, predictions, n_classes)
    check_threshold(threshold)
    if n_unknown_classes is not None:
        _at_least("n_unknown_classes", n_unknown_classes, 0)
    known, correct, ranks = rows.known, rows.correct, _ranks(rows.scores)
    n_known, n_unknown = int(known.sum()), int((~known).sum())

    no_known = None if n_known else "no known sample"
    no_unknown = None if n_unknown else "no unknown sample"
    no_pair = no_known or no_unknown
    no_threshold = None if threshold is not None else "no threshold"
    no_confidence = None
    if not are_confidences(rows.scores):
        no_confidence = "not all scores lie in [0, 1]: they are no probabilities"
    final = None if threshold is None else final_predictions(rows, threshold)

    figures: dict[str, Any] = {}
    notes: dict[str, str] = {}

    def put(name: str, reason: str | None, figure: Callable[[], float]) -> None:
        figures[name] = None if reason else float(figure())
        if reason:
            notes[name] = reason

    put("auroc", no_pair, lambda: roc_auc_score(known, ranks))
    put("aupr_known", no_pair, lambda: average_precision_score(known, ranks))
    put("aupr_unknown", no_pair, lambda: average_precision_score(~known, -ranks))
    put("fpr95_known_positive", no_pair, lambda: _fpr95(known, ranks))
    put("fpr95_unknown_positive", no_pair, lambda: _fpr95(~known, -ranks))
    put("oscr", no_pair, lambda: _oscr(rows))
    put("closed_set_accuracy", no_known, lambda: correct.sum() / n_known)
    unknown_after = no_threshold or no_unknown
    known_after = no_threshold or no_known
    put("known_accept_rate", known_after, lambda: (final[known] != UNKNOWN).mean())
    put(
        "known_correct_and_accepted",
        known_after,
        lambda: (final[known] == rows.labels[known]).mean(),
    )
    put("unknown_reject_rate", unknown_after, lambda: (final[~known] == UNKNOWN).mean())
    put(
        "normalised_accuracy", known_after or unknown_after,
        lambda: (figures["known_correct_and_accepted"] + figures["unknown_reject_rate"]) / 2,
    )  # fmt: skip
    classes = list(range(UNKNOWN, n_classes))
    put(
        "macro_f1_with_unknown", no_threshold or (None if len(rows) else "no sample"),
        lambda: f1_score(rows.labels, final, labels=classes, average="macro", zero_division=0),
    )  # fmt: skip
    sure = list(
        zip(rows.scores[known].tolist(), correct[known].astype(float).tolist(), strict=True)
    )
    put("aurc", no_known, lambda: 1 - sum(mean_scores_kept(sure)) / n_known)
    put("ece", no_known or no_confidence, lambda: reliability(sure)["ece"])
    put("brier", no_known or no_confidence, lambda: reliability(sure)["brier"])
    not_given = (
        None if n_unknown_classes is not None else "the number of unknown classes is not given"
    )
    put(
        "openness", not_given,
        lambda: 1 - math.sqrt(2 * n_classes / (2 * n_classes + n_unknown_classes)),
    )  # fmt: skip
    return figures | {"notes": notes}


def choose_threshold(
    scores: Sequence[float],
    labels: Sequence[int],
    predictions: Sequence[int],
    criterion: str = "youden",
) -> Threshold:
    """The threshold for `open_set_metrics`, from validation samples; never from those scored by it.

    It is one of the scores of samples that the model answered (prediction not -1; the others are
    rejected at any threshold).

    - `youden`: the highest known accept rate + unknown reject rate.
    - `normalised_accuracy`: the highest share of known correct and accepted + unknown reject rate.
    - `known_accept_95`: the highest score that still accepts at least .95 of the known. Where the
      model answered fewer than that: the highest that accepts all known which it answered.

    Of several equal scores by the first two, the lowest, which accepts most. These need unknown
    samples; without any, `known_accept_95` stands in, with a note. Raises ValueError as
    `checked_rows` does and for a criterion that is not one of `CRITERIA`.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is {criterion!r}, must be one of {', '.join(CRITERIA)}")
    rows = checked_rows(scores, labels, predictions)
    answered = rows.predictions != UNKNOWN
    known = rows.known
    n_known, n_unknown = int(known.sum()), int((~known).sum())
    if not len(rows):
        return Threshold(None, criterion, ("no validation sample",))
    if not n_known:
        return Threshold(None, criterion, ("no known validation sample",))
    if not (answered & known).any():
        return Threshold(None, criterion, ("no known validation sample was answered",))
    notes = []
    if criterion != "known_accept_95" and not n_unknown:
        notes.append(f"no unknown validation sample: known_accept_95 instead of {criterion}")
        criterion = "known_accept_95"

    candidates = np.unique(rows.scores[answered])  # ascending
    accepted = _at_or_above(rows.scores[known & answered], candidates)  # known, by candidate
    if criterion == "known_accept_95":
        enough = 20 * accepted >= 19 * n_known
        if not enough.any():
            n_answered = int(accepted.max())
            notes.append(
                f"{n_answered} of {n_known} known samples were answered, less than .95: "
                "the threshold accepts all of these"
            )
            enough = accepted == n_answered
        return Threshold(float(candidates[enough][-1]), criterion, tuple(notes))
    if criterion == "normalised_accuracy":
        accepted = _at_or_above(rows.scores[rows.correct], candidates)
    rejected = n_unknown - _at_or_above(rows.scores[~known & answered], candidates)
    # whole numbers, so that ties are ties; argmax takes the first, the lowest
    best = np.argmax(accepted * n_unknown + rejected * n_known)
    return Threshold(float(candidates[best]), criterion, tuple(notes))


def roc_points(
    scores: Sequence[float], labels: Sequence[int], positive: Positive = "known"
) -> Curve | None:
    """ROC: false positive rate (x), recall (y), from (0, 0), then a point for each distinct score.

    None unless there are known and unknown samples. A point calls known what scores
    >= its threshold; with `positive` "unknown" it calls unknown what scores <= it.
    """
    from sklearn.metrics import roc_curve

    rows = checked_rows(scores, labels, labels)
    truth, ranks = _oriented(rows, positive)
    if truth.all() or not truth.any():
        return None
    x, y, at = roc_curve(truth, ranks, drop_intermediate=False)
    nothing = math.inf if positive == "known" else -math.inf
    thresholds = np.concatenate([[nothing], _scores_at(at[1:], rows)])
    return Curve(x, y, thresholds)


def precision_recall_points(
    scores: Sequence[float], labels: Sequence[int], positive: Positive = "known"
) -> Curve | None:
    """Recall (x), precision (y), from recall 0 (precision 1 by convention) on.

    None unless there are known and unknown samples. Thresholds as in
    `roc_points`. Average precision takes steps, not lines, between the points.
    """
    from sklearn.metrics import precision_recall_curve

    rows = checked_rows(scores, labels, labels)
    truth, ranks = _oriented(rows, positive)
    if truth.all() or not truth.any():
        return None
    precision, recall, at = precision_recall_curve(truth, ranks, drop_intermediate=False)
    nothing = math.inf if positive == "known" else -math.inf
    thresholds = np.concatenate([[nothing], _scores_at(at[::-1], rows)])
    return Curve(recall[::-1], precision[::-1], thresholds)


def risk_coverage_points(
    scores: Sequence[float], labels: Sequence[int], predictions: Sequence[int]
) -> Curve | None:
    """Coverage k/n (x) and error rate (y) of the k known samples that score highest, k = 1..n.

    None without known samples. Before rejection; inside ties the expectation, as in
    `aurc`, which is the mean of y. The threshold is the score of the k-th.
    """
    rows = checked_rows(scores, labels, predictions)
    known_scores = rows.scores[rows.known]
    n = len(known_scores)
    if not n:
        return None
    right = rows.correct[rows.known].astype(float)
    kept = mean_scores_kept(list(zip(known_scores.tolist(), right.tolist(), strict=True)))
    return Curve(np.arange(1, n + 1) / n, 1 - np.array(kept), np.sort(known_scores)[::-1])


def check_threshold(threshold: float | None) -> None:
    """Raises ValueError for a NaN."""
    if threshold is not None and math.isnan(threshold):
        raise ValueError("the threshold is NaN, must be a number or None")


def _class_indices(values: Sequence[int], name: str, n_classes: int | None) -> np.ndarray:
    indices = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        try:
            index = operator.index(value)
        except TypeError:
            index = None
        if index is None or index < UNKNOWN or (n_classes is not None and index >= n_classes):
            top = "" if n_classes is None else f" up to {n_classes - 1}"
            raise ValueError(
                f"{name}[{i}] is {value!r}, must be a class index{top} or -1 (unknown)"
            )
        indices[i] = index
    return indices


def _at_least(name: str, value: int, least: int) -> None:
    if operator.index(value) < least:
        raise ValueError(f"{name} is {value}, must be at least {least}")


def _ranks(scores: np.ndarray) -> np.ndarray:
    """0, 1, ... by ascending score, equal for equal scores: finite whatever the scores are."""
    return np.unique(scores, return_inverse=True)[1]


def _oriented(rows: Rows, positive: Positive) -> tuple[np.ndarray, np.ndarray]:
    ranks = _ranks(rows.scores)
    return (rows.known, ranks) if positive == "known" else (~rows.known, -ranks)


def _scores_at(ranks: np.ndarray, rows: Rows) -> np.ndarray:
    return np.unique(rows.scores)[np.abs(ranks).astype(np.int64)]


def are_confidences(scores: np.ndarray) -> bool:
    return bool(((scores >= 0) & (scores <= 1)).all())


def _fpr95(positive: np.ndarray, ranks: np.ndarray) -> float:
    """False positive rate at the first ROC point of recall .95; of 20 positives 19 are enough.

    A share k/n that is .95 rounds to the same float as .95 does, so nothing is lost to rounding.
    """
    from sklearn.metrics import roc_curve

    fpr, recall, _ = roc_curve(positive, ranks, drop_intermediate=False)
    return fpr[np.argmax(recall >= 0.95)]


def _oscr(rows: Rows) -> float:
    unknown = np.sort(rows.scores[~rows.known])
    of_correct = rows.scores[rows.correct]
    below = np.searchsorted(unknown, of_correct, side="left")
    not_above = np.searchsorted(unknown, of_correct, side="right")
    return (below + not_above).sum() / 2 / (rows.known.sum() * len(unknown))


def _at_or_above(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """How many of the scores each candidate accepts."""
    return len(scores) - np.searchsorted(np.sort(scores), candidates, side="left")
