"""Records and split -> scored rows and every figure of a run. Pure: no model, no torch, no files.

Each record becomes a row with prediction and scores (`protocols.py`). The figures are those of the
test part: `open_set_metrics` for each score with bootstrap intervals over pictures, at a threshold
that the validation part chose by the criterion that is named; the course's four figures, the table
of classes and the confusion matrix follow the protocol's own decision: of free answers the answer
itself, of class likelihoods `max_softmax` at its threshold.

An error counts as wrong: a known sample below all others and not predicted, an unknown one above
all others and accepted. Errors choose no threshold. ECE and Brier score are of the known samples
whose answer names a class: a confidence of 0 in no class is right, and would reward silence.

    python llava_openset/evaluate.py --score_only --output_dir outputs/llava_openset/RUN
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llava_openset.intervals import bootstrap_intervals
from llava_openset.metrics import METRICS, Threshold, choose_threshold, open_set_metrics
from llava_openset.protocols import (
    ANSWER_SCORES,
    CHOICE_PROTOCOLS,
    CHOICE_SCORES,
    FULL,
    LEFT_OUT,
    PROBABILITIES,
    Query,
    outcome_of,
    picture_of,
    rule_of,
)
from llava_openset.samples import PRIVATE
from shared.significance import Interval, cluster_bootstrap, score_interval, wilson_interval

UNKNOWN = "unknown"
CALIBRATION = ("ece", "brier")
MATCHES = ("class", "unknown", "abstain", "ambiguous", "error")
BY_ANSWER = Threshold(1.0, "the answer itself")
INTERVALS = (
    "95 %: percentile bootstrap over pictures, known and unknown drawn apart, the threshold as "
    "given; of counts of classes and of the course's figures Wilson's"
)
DECIMALS = 6

Record = Mapping[str, Any]
Row = dict[str, Any]


def score_protocol(
    queries: Sequence[Query],
    records: Mapping[str, Record],
    classes: Sequence[str],
    *,
    criterion: str = "youden",
    normalisation: str = "mean",
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of `scored.jsonl` and the figures of one protocol key, from the records by their key.

    `queries` are all of that protocol key; one without a record is missing, an error.
    """
    protocol = queries[0].protocol
    is_choice = protocol in CHOICE_PROTOCOLS
    rows = [row_of(query, records.get(query.key), classes, normalisation) for query in queries]
    names = CHOICE_SCORES if is_choice else ANSWER_SCORES
    thresholds = {name: threshold_of(rows, classes, name, criterion) for name in names}
    decision = "max_softmax" if is_choice else "answer"
    threshold = thresholds[decision]
    for row in rows:
        decide(row, decision, threshold.value)
    test = [row for row in rows if row["part"] == "test"]
    asked = [records.get(query.key) for query in queries]
    ok = [record for record in asked if record is not None and record["status"] == "ok"]
    metrics: dict[str, Any] = {
        "kind": "choice" if is_choice else "answer",
        "prompt": ok[0]["prompt"] if ok else None,
        "rule": rule_of(protocol),
        "counts": counts_of(asked, ok),
        "parts": {
            part: {
                "known": sum(row["known"] for row in rows if row["part"] == part),
                "unknown": sum(not row["known"] for row in rows if row["part"] == part),
            }
            for part in ("test", "validation")
        },
        "decision": {
            "score": decision,
            "threshold": threshold.value,
            "reason": "; ".join(threshold.notes) if threshold.value is None else None,
        },
        "headline": "max_softmax" if is_choice else "mean_probability",
        "scores": {
            name: {
                "threshold": threshold_entry(rows, thresholds[name]),
                "figures": figures_of(test, classes, name, thresholds[name].value),
            }
            for name in names
        },
        "matches": {
            kind: {m: sum(row["match"] == m for row in test if row["known"] == known)
                   for m in MATCHES}
            for kind, known in (("known", True), ("unknown", False))
        },
        "course_figures": course_figures(test),
        "own_pictures": own_pictures(test),
        "wrong_but_present": sum(
            row["known"] and not row["correct"] and row["decision"] in row["present"]
            for row in test
        ),
        "per_class": per_class(test, classes),
        "confusion": confusion(test, classes),
    }  # fmt: skip
    if protocol == "two_query":
        metrics |= two_query_figures(test, classes, thresholds)
    return rows, metrics


# Rows


def row_of(query: Query, record: Record | None, classes: Sequence[str], normalisation: str) -> Row:
    """One line of `scored.jsonl`, before the decision."""
    outcome = outcome_of(query, record, classes, normalisation)
    sample = query.sample
    row: Row = {
        "sample_id": sample.sample_id,
        "protocol": query.protocol_key,
        "query": query.variant if query.protocol == "two_query" else None,
        "part": sample.part,
        "known": query.known,
        "label": sample.label,
        "present": list(sample.present),
        "image": sample.file,
        "image_id": picture_of(sample),
        "private": sample.sample_id.startswith(f"{PRIVATE}/"),
        "status": "error" if outcome.match == "error" else "ok",
        "answer": outcome.answer,
        "match": outcome.match,
        "prediction": outcome.prediction,
        "decision": None,
        "correct": False,
        "correct_class": outcome.prediction == sample.label if query.known else None,
        "scores": outcome.scores,
    }
    if outcome.class_probabilities is not None:
        row["class_probabilities"] = outcome.class_probabilities
    return row


def decide(row: Row, score: str, threshold: float | None) -> None:
    """Fills `decision` and `correct`; without a threshold the prediction stands."""
    if row["status"] == "error":
        return
    accepted = threshold is None or row["scores"][score] >= threshold
    row["decision"] = row["prediction"] if accepted else UNKNOWN
    row["correct"] = row["decision"] == (row["label"] if row["known"] else UNKNOWN)


def columns(
    rows: Sequence[Row], classes: Sequence[str], score: str
) -> tuple[list[float], list[int], list[int]]:
    """Scores, labels and predictions as `llava_openset.metrics` takes them; errors are wrong."""
    bounded = score not in ("entropy", "energy")
    lowest, highest = (0.0, 1.0) if bounded else (-math.inf, math.inf)
    index = {name: i for i, name in enumerate(classes)}
    scores, predictions = [], []
    for row in rows:
        if row["status"] == "error":
            scores.append(lowest if row["known"] else highest)
            predictions.append(-1 if row["known"] else 0)
        else:
            scores.append(row["scores"][score])
            predictions.append(index.get(row["prediction"], -1))
    labels = [index[row["label"]] if row["known"] else -1 for row in rows]
    return scores, labels, predictions


def counts_of(asked: Sequence[Record | None], ok: Sequence[Record]) -> dict[str, int]:
    there = [record for record in asked if record is not None]
    return {
        "expected": len(asked),
        "answered": len(ok),
        "errors": len(there) - len(ok),
        "missing": len(asked) - len(there),
        "empty": sum(record["answer"] == "" for record in ok),
        "cut": sum(record["finish_reason"] == "length" for record in ok),
    }


# Thresholds and figures


def threshold_of(
    rows: Sequence[Row], classes: Sequence[str], score: str, criterion: str
) -> Threshold:
    """By the validation part; of the score `answer` the answer itself decides."""
    if score == "answer":
        return BY_ANSWER
    validation = validation_rows(rows)
    return choose_threshold(*columns(validation, classes, score), criterion)


def validation_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["part"] == "validation" and row["status"] == "ok"]


def threshold_entry(rows: Sequence[Row], threshold: Threshold) -> dict[str, Any]:
    validation = [] if threshold is BY_ANSWER else validation_rows(rows)
    return {
        "value": threshold.value,
        "criterion": threshold.criterion,
        "from": threshold.criterion if threshold is BY_ANSWER else "validation",
        "n_known": sum(row["known"] for row in validation),
        "n_unknown": sum(not row["known"] for row in validation),
        "notes": list(threshold.notes),
    }


def figures_of(
    rows: Sequence[Row],
    classes: Sequence[str],
    score: str,
    threshold: float | None,
    names: Sequence[str] = METRICS,
) -> dict[str, dict[str, Any]]:
    """Every named figure with its interval, or null with its reason."""
    calibration = [name for name in names if name in CALIBRATION]
    if calibration and score in PROBABILITIES:
        others = [name for name in names if name not in CALIBRATION]
        found = figures_of(rows, classes, score, threshold, others)
        found |= calibration_of(rows, classes, score, calibration)
        return {name: found[name] for name in names}
    scores, labels, predictions = columns(rows, classes, score)
    # a known class that was left out of one query is no unknown class
    n_unknown_classes = len(
        {row["label"] for row in rows if not row["known"] and row["query"] != LEFT_OUT}
    )
    values = open_set_metrics(
        scores, labels, predictions, threshold, len(classes), n_unknown_classes
    )
    reasons = dict(values["notes"])
    reasons |= dict.fromkeys(calibration, f"{score} is no probability of being right")
    bounds: dict[str, Interval] = {}
    with_interval = [n for n in names if n != "openness" and n not in reasons]
    if rows and with_interval:
        bounds = bootstrap_intervals(
            scores, labels, predictions, threshold, len(classes), with_interval,
            clusters=[str(row["image_id"]) for row in rows],
        )  # fmt: skip
    figures = {}
    for name in names:
        if name in reasons:
            figures[name] = {"value": None, "low": None, "high": None, "n": len(rows),
                             "n_pictures": None, "reason": reasons[name]}  # fmt: skip
        elif name in bounds:
            figures[name] = entry(bounds[name])
        else:
            figures[name] = {"value": round(values[name], DECIMALS), "low": None, "high": None,
                             "n": len(rows), "n_pictures": None,
                             "note": "follows from the numbers of classes"}  # fmt: skip
    return figures


def calibration_of(
    rows: Sequence[Row], classes: Sequence[str], score: str, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """ECE and Brier score over the known samples that have an answer which names a class."""
    known = [row for row in rows if row["known"]]
    named = [row for row in known if row["prediction"] in classes]
    if not named:
        reason = "no known sample whose answer names a class" if known else "no known sample"
        return {
            name: {"value": None, "low": None, "high": None, "n": 0, "n_pictures": None,
                   "reason": reason}
            for name in names
        }  # fmt: skip
    bounds = bootstrap_intervals(
        *columns(named, classes, score), None, len(classes), names,
        clusters=[str(row["image_id"]) for row in named],
    )  # fmt: skip
    figures = {name: entry(bounds[name]) for name in names}
    if len(named) < len(known):
        part = f"of the {len(named)} of {len(known)} known samples whose answer names a class"
        for figure in figures.values():
            figure["note"] = "; ".join(filter(None, [part, figure.get("note")]))
    return figures


def entry(interval: Interval, **more: Any) -> dict[str, Any]:
    """An interval as `metrics.json` holds it."""

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, DECIMALS)

    figure = {
        "value": rounded(interval.mean),
        "low": rounded(interval.low),
        "high": rounded(interval.high),
        "n": interval.n,
        "n_pictures": interval.n_clusters,
    }
    if interval.note:
        figure["reason" if interval.mean is None else "note"] = interval.note
    return figure | more


def proportion(hits: Sequence[bool]) -> dict[str, Any]:
    successes = sum(hits)
    return entry(wilson_interval(successes, len(hits)), successes=successes)


# What the decisions give


def course_figures(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The four figures of the course experiment, by the protocol's decision.

    `closed_set_accuracy` has all known samples below it, the rejected count as wrong: it is the
    product of the two after it. An error counts as wrong in each.
    """
    known = [row for row in rows if row["known"]]
    is_called = [row["decision"] not in (None, UNKNOWN) for row in known]
    return {
        "closed_set_accuracy": proportion([row["correct"] for row in known]),
        "predicted_as_known": proportion(is_called),
        "accuracy_among_those": proportion(
            [row["correct"] for row, called in zip(known, is_called, strict=True) if called]
        ),
        "unknown_predicted_as_unknown": proportion(
            [row["correct"] for row in rows if not row["known"]]
        ),
    }


def own_pictures(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The same of the user's own pictures alone, None without any."""
    own = [row["correct"] for row in rows if row["private"]]
    return {"unknown_predicted_as_unknown": proportion(own)} if own else None


def per_class(rows: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Known classes in their order, unknown ones, then samples asked without their own class."""
    table = []
    groups = [(name, True, None) for name in classes]
    unknown = dict.fromkeys((row["label"], row["query"]) for row in rows if not row["known"])
    ordered = sorted(unknown, key=lambda key: (key[1] == LEFT_OUT, key[0]))
    groups += [(name, False, query) for name, query in ordered]
    for name, known, query in groups:
        own = [
            row for row in rows
            if row["label"] == name and row["known"] == known
            and (known or row["query"] == query)
        ]  # fmt: skip
        decisions = Counter(row["decision"] or "error" for row in own).most_common(1)
        figure = proportion([row["correct"] for row in own])
        table.append(
            {
                "class": name,
                "known": known,
                "query": query,
                "n": figure["n"],
                "correct": figure["successes"],
                **{part: figure[part] for part in ("value", "low", "high")},
                "correct_before_rejection": (
                    sum(bool(row["correct_class"]) for row in own) if known else None
                ),
                "most_common_decision": decisions[0][0] if decisions else None,
            }
        )
    return table


def confusion(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """Truth (rows) by decision (columns), `unknown` last; errors are counted beside it."""
    names = [*classes, UNKNOWN]
    cells = Counter(
        (row["label"] if row["known"] else UNKNOWN, row["decision"])
        for row in rows
        if row["status"] == "ok"
    )
    return {
        "rows": names,
        "columns": names,
        "counts": [[cells[truth, said] for said in names] for truth in names],
        "errors": sum(row["status"] == "error" for row in rows),
    }


# Two queries


def two_query_figures(
    rows: Sequence[Row], classes: Sequence[str], thresholds: Mapping[str, Threshold]
) -> dict[str, Any]:
    """Known samples against each kind of unknown, and how a sample's score moves when its class
    is left out."""
    known = [row for row in rows if row["known"]]
    left_out = [row for row in rows if row["query"] == LEFT_OUT]
    unknown = [row for row in rows if not row["known"] and row["query"] == FULL]
    right = [row for row in known if row["correct_class"]]
    kinds = {
        "left_out": ("known samples, full list, against the same samples with their class left out",
                     [*known, *left_out]),
        "left_out_correct_only": ("the same, of the known only those whose class is predicted with "
                                  "the full list: as Miller et al. keep them",
                                  [*right, *left_out]),
        "unknown_pictures": ("known samples against the split's unknown samples, full list",
                             [*known, *unknown]),
    }  # fmt: skip
    names = ("auroc", "aupr_known", "fpr95_known_positive")
    return {
        "queries": {
            kind: {
                "what": what,
                "n_known": sum(row["known"] for row in own),
                "n_unknown": sum(not row["known"] for row in own),
                "scores": {
                    score: figures_of(own, classes, score, thresholds[score].value, names)
                    for score in thresholds
                },
            }
            for kind, (what, own) in kinds.items()
        },
        "pairs": pairs(known, left_out, list(thresholds)),
    }


def pairs(
    known: Sequence[Row], left_out: Sequence[Row], score_names: Sequence[str]
) -> dict[str, Any]:
    """Of samples with both queries answered: accuracy, and how often and far the score falls."""
    without = {row["sample_id"]: row for row in left_out if row["status"] == "ok"}
    both = [
        (row, without[row["sample_id"]])
        for row in known
        if row["status"] == "ok" and row["sample_id"] in without
    ]
    pictures = [str(row["image_id"]) for row, _ in both]
    higher, drop = {}, {}
    for name in score_names:
        falls = [full["scores"][name] - less["scores"][name] for full, less in both]
        higher[name] = entry(
            score_interval([1.0 if f > 0 else 0.5 if f == 0 else 0.0 for f in falls], pictures)
        )
        drop[name] = entry(cluster_bootstrap(falls, pictures))
    return {
        "n": len(both),
        "closed_set_accuracy": proportion([bool(full["correct_class"]) for full, _ in both]),
        "higher_with_full_list": higher,
        "mean_drop": drop,
    }
