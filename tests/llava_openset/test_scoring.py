"""Records to figures by hand: thresholds from the validation part, errors, tables, two queries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llava_openset import scoring
from llava_openset.protocols import Query, queries
from llava_openset.samples import Sample
from llava_openset.scoring import columns, score_protocol
from shared.significance import wilson_interval

CLASSES = ["dog", "cat", "bus"]


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals from 50 resamples: what is under test is not how wide they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            scoring, "bootstrap_intervals", partial(scoring.bootstrap_intervals, n_resamples=50)
        )
        yield


def sample(name: str, label: str, part: str = "test", present: Sequence[str] = ()) -> Sample:
    return Sample(
        sample_id=name,
        path=Path("/s") / name,
        file=f"images/{name}.jpg",
        label=label,
        known=label in CLASSES,
        part=part,
        image_id=None if name.startswith("private/") else int(name),
        present=tuple(present) or (label,),
    )


def free(answer: str, confidence: float = 0.9, **more: Any) -> dict[str, Any]:
    return {"status": "ok", "answer": answer, "confidence": confidence, "prompt": "What?",
            "first_token_confidence": confidence, "finish_reason": "stop", **more}  # fmt: skip


def chosen(probabilities: Mapping[str, float]) -> dict[str, Any]:
    """A likelihood record whose softmax over the classes is `probabilities`."""
    return {
        "status": "ok", "prompt": "What?", "answer": "x", "finish_reason": "choice",
        "choice_classes": list(probabilities),
        "choice_log_probs": [math.log(p) for p in probabilities.values()],
        "choice_n_tokens": [1] * len(probabilities),
    }  # fmt: skip


def sure(name: str, p: float, of: Sequence[str] = CLASSES) -> dict[str, Any]:
    rest = [other for other in of if other != name]
    return chosen({name: p, **{other: (1 - p) / len(rest) for other in rest}})


ERROR = {"status": "error", "answer": None, "error": "broken", "prompt": "What?"}

# likelihood of: 4 known and 3 unknown test samples, 2 and 2 for validation
LIKELIHOOD = [
    (sample("1", "dog"), sure("dog", 0.9)),
    (sample("2", "dog"), sure("cat", 0.8)),
    (sample("3", "cat"), sure("cat", 0.7)),
    (sample("4", "bus"), sure("bus", 0.5)),
    (sample("5", "horse"), sure("dog", 0.4)),
    (sample("6", "horse"), sure("dog", 0.75)),
    (sample("7", "zebra"), sure("cat", 0.45)),
    (sample("11", "dog", "validation"), sure("dog", 0.8)),
    (sample("12", "cat", "validation"), sure("cat", 0.6)),
    (sample("13", "horse", "validation"), sure("dog", 0.55)),
    (sample("14", "zebra", "validation"), sure("bus", 0.4)),
]


def score(
    rows: Sequence[tuple[Sample, Mapping[str, Any] | None]],
    protocol: str = "likelihood",
    variant: str | None = None,
    **more: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    asked = [Query(protocol, variant, s) for s, _ in rows]
    records = {q.key: r for q, (_, r) in zip(asked, rows, strict=True) if r is not None}
    return score_protocol(asked, records, CLASSES, **more)


def test_the_threshold_is_the_validation_parts_and_decides_the_test_part() -> None:
    """0.6 separates the validation samples; of the test ones 1, 2, 3 and 6 reach it."""
    rows, metrics = score(LIKELIHOOD)
    assert metrics["decision"] == {"score": "max_softmax", "threshold": 0.6, "reason": None}
    assert metrics["scores"]["max_softmax"]["threshold"] == {
        "value": 0.6, "criterion": "youden", "from": "validation", "n_known": 2, "n_unknown": 2,
        "notes": [],
    }  # fmt: skip
    decisions = {row["sample_id"]: row["decision"] for row in rows}
    assert decisions == {
        "1": "dog", "2": "cat", "3": "cat", "4": "unknown", "5": "unknown", "6": "dog",
        "7": "unknown", "11": "dog", "12": "cat", "13": "unknown", "14": "unknown",
    }  # fmt: skip
    assert [row["sample_id"] for row in rows if row["correct"] and row["part"] == "test"] == [
        "1", "3", "5", "7",
    ]  # fmt: skip
    figures = metrics["scores"]["max_softmax"]["figures"]
    values = {name: figure["value"] for name, figure in figures.items()}
    # pairs of known and unknown: 1 and 2 win all 3, 3 wins 2, 4 wins 2; 2 is wrong
    assert values["auroc"] == pytest.approx(10 / 12, abs=1e-6)
    assert values["oscr"] == pytest.approx(7 / 12, abs=1e-6)
    assert values["closed_set_accuracy"] == 0.75
    assert values["known_accept_rate"] == 0.75
    assert values["known_correct_and_accepted"] == 0.5
    assert values["unknown_reject_rate"] == pytest.approx(2 / 3, abs=1e-6)
    assert values["openness"] == pytest.approx(1 - math.sqrt(6 / 8), abs=1e-6)


def test_no_test_sample_moves_the_threshold() -> None:
    changed = [(s, r if s.part == "validation" else sure("bus", 0.99)) for s, r in LIKELIHOOD]
    assert score(changed)[1]["decision"]["threshold"] == 0.6
    moved = [(s, sure("cat", 0.7) if s.sample_id == "12" else r) for s, r in LIKELIHOOD]
    assert score(moved)[1]["decision"]["threshold"] == 0.7


def test_the_criterion_is_applied_and_recorded() -> None:
    threshold = score(LIKELIHOOD, criterion="known_accept_95")[1]["scores"]["energy"]["threshold"]
    assert threshold["criterion"] == "known_accept_95"
    best = score(LIKELIHOOD, criterion="known_accept_95")[1]["scores"]["max_softmax"]["threshold"]
    assert best["value"] == 0.6  # accepts both known ones


def test_without_a_validation_part_nothing_is_rejected_and_the_reason_stands_there() -> None:
    rows, metrics = score([(s, r) for s, r in LIKELIHOOD if s.part == "test"])
    assert metrics["decision"]["threshold"] is None
    assert metrics["decision"]["reason"] == "no validation sample"
    figures = metrics["scores"]["max_softmax"]["figures"]
    for name in ("known_accept_rate", "unknown_reject_rate", "macro_f1_with_unknown"):
        assert figures[name]["value"] is None
        assert figures[name]["reason"]
    assert figures["auroc"]["value"] is not None
    assert {row["decision"] for row in rows} == {"dog", "cat", "bus"}


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    scores = score(LIKELIHOOD)[1]["scores"]
    assert scores["max_softmax"]["figures"]["brier"]["value"] is not None
    for name in ("margin", "entropy", "energy"):
        for figure in ("ece", "brier"):
            entry = scores[name]["figures"][figure]
            assert entry["value"] is None
            assert "no probability" in entry["reason"]


FREE = [
    (sample("1", "dog"), free("a puppy", 0.9)),
    (sample("2", "dog", present=["dog", "cat"]), free("cat", 0.8)),
    (sample("3", "cat"), free("I cannot tell", 0.9)),
    (sample("4", "bus"), free("a bus and a dog", 0.6)),
    (sample("5", "horse"), free("a horse", 0.9)),
    (sample("6", "zebra"), free("unknown", 0.9)),
    (sample("private/a.jpg", "desk"), free("a cat", 0.3, finish_reason="length")),
]


def test_free_answers_decide_by_themselves() -> None:
    rows, metrics = score(FREE, "freetext", "open")
    assert metrics["decision"] == {"score": "answer", "threshold": 1.0, "reason": None}
    assert {row["sample_id"]: (row["match"], row["decision"], row["correct"]) for row in rows} == {
        "1": ("class", "dog", True),
        "2": ("class", "cat", False),
        "3": ("abstain", "unknown", False),
        "4": ("ambiguous", "bus", True),
        "5": ("unknown", "unknown", True),
        "6": ("abstain", "unknown", True),
        "private/a.jpg": ("class", "cat", False),
    }
    assert metrics["matches"] == {
        "known": {"class": 2, "unknown": 0, "abstain": 1, "ambiguous": 1, "error": 0},
        "unknown": {"class": 1, "unknown": 1, "abstain": 1, "ambiguous": 0, "error": 0},
    }
    assert metrics["counts"] == {
        "expected": 7, "answered": 7, "errors": 0, "missing": 0, "empty": 0, "cut": 1,
    }  # fmt: skip
    assert metrics["wrong_but_present"] == 1


def test_the_courses_four_figures() -> None:
    """4 known: 2 right, 3 called known; 3 unknown: 2 rejected, of the one own picture none."""
    metrics = score(FREE, "freetext", "open")[1]
    found = {k: (v["successes"], v["n"]) for k, v in metrics["course_figures"].items()}
    assert found == {
        "closed_set_accuracy": (2, 4),
        "predicted_as_known": (3, 4),
        "accuracy_among_those": (2, 3),
        "unknown_predicted_as_unknown": (2, 3),
    }
    wilson = wilson_interval(2, 3)
    entry = metrics["course_figures"]["accuracy_among_those"]
    assert (entry["low"], entry["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    own = metrics["own_pictures"]["unknown_predicted_as_unknown"]
    assert (own["successes"], own["n"]) == (0, 1)
    assert score(LIKELIHOOD)[1]["own_pictures"] is None


def test_course_takes_keywords_where_freetext_knows_synonyms() -> None:
    rows, _ = score(FREE, "course")
    assert rows[0]["decision"] == "unknown"
    assert score(FREE, "freetext", "open")[0][0]["decision"] == "dog"


def test_tables_of_classes_and_confusions_count_decisions() -> None:
    metrics = score(LIKELIHOOD)[1]
    table = {row["class"]: row for row in metrics["per_class"]}
    assert list(table) == ["dog", "cat", "bus", "horse", "zebra"]
    dog = table["dog"]
    assert (dog["n"], dog["correct"], dog["correct_before_rejection"]) == (2, 1, 1)
    assert dog["low"] == pytest.approx(wilson_interval(1, 2).low, abs=1e-6)
    assert (table["bus"]["correct"], table["bus"]["correct_before_rejection"]) == (0, 1)
    horse = table["horse"]
    assert (horse["known"], horse["n"], horse["correct"]) == (False, 2, 1)
    assert metrics["confusion"]["columns"] == ["dog", "cat", "bus", "unknown"]
    assert metrics["confusion"]["counts"] == [
        [1, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [1, 0, 0, 2],
    ]


def test_calibration_is_of_answers_that_name_a_class() -> None:
    """Silence and errors have confidence 0 in nothing: not right, so not well calibrated."""
    asked = [
        (sample("1", "dog"), free("a dog", 0.8)),
        (sample("2", "dog"), free("a cat", 0.7)),
        (sample("3", "cat"), free("I don't know", 0.9)),
        (sample("4", "bus"), ERROR),
        (sample("5", "horse"), free("a dog", 0.9)),
    ]
    figures = score(asked, "freetext", "open")[1]["scores"]["mean_probability"]["figures"]
    assert figures["brier"]["value"] == pytest.approx((0.2**2 + 0.7**2) / 2)
    assert figures["ece"]["value"] == pytest.approx((0.2 + 0.7) / 2)
    for name in ("ece", "brier"):
        assert figures[name]["n"] == 2
        assert "of the 2 of 4 known samples whose answer names a class" in figures[name]["note"]
    assert figures["aurc"]["n"] == 4  # what ranks has all of them


@pytest.mark.parametrize("record", [free("no idea"), ERROR])
def test_who_says_nothing_has_no_calibration(record: Any) -> None:
    asked = [(s, record) for s, _ in LIKELIHOOD]
    figures = score(asked, "freetext", "open")[1]["scores"]["mean_probability"]["figures"]
    for name in ("ece", "brier"):
        assert figures[name]["value"] is None
        assert figures[name]["reason"] == "no known sample whose answer names a class"


def test_of_choices_errors_alone_leave_the_calibration() -> None:
    whole = score(LIKELIHOOD)[1]["scores"]["max_softmax"]["figures"]
    assert (whole["brier"]["n"], whole["brier"]["value"]) == (
        4, pytest.approx((0.1**2 + 0.8**2 + 0.3**2 + 0.5**2) / 4, abs=1e-6),
    )  # fmt: skip
    broken = [(s, ERROR if s.sample_id == "2" else r) for s, r in LIKELIHOOD]
    figure = score(broken)[1]["scores"]["max_softmax"]["figures"]["brier"]
    assert (figure["n"], figure["value"]) == (
        3, pytest.approx((0.1**2 + 0.3**2 + 0.5**2) / 3, abs=1e-6),
    )  # fmt: skip


@pytest.mark.parametrize("failed", [ERROR, None])
def test_errors_and_missing_records_are_wrong_on_both_sides(failed: Any) -> None:
    """A known sample that failed is rejected, an unknown one accepted, whatever the threshold."""
    broken = [(s, failed if s.sample_id in ("1", "5") else r) for s, r in LIKELIHOOD]
    rows, metrics = score(broken)
    counts = metrics["counts"]
    assert counts["errors"] + counts["missing"] == 2
    assert counts["missing"] == (2 if failed is None else 0)
    assert rows[0]["decision"] is None
    assert rows[0]["scores"] == {}
    scores, labels, predictions = columns(rows[:7], CLASSES, "max_softmax")
    assert (scores[0], predictions[0]) == (0.0, -1)
    assert (scores[4], predictions[4]) == (1.0, 0)
    assert labels == [0, 0, 1, 2, -1, -1, -1]
    whole = score(LIKELIHOOD)[1]["scores"]["max_softmax"]["figures"]
    worse = metrics["scores"]["max_softmax"]["figures"]
    for name in ("auroc", "closed_set_accuracy", "known_accept_rate", "unknown_reject_rate"):
        assert worse[name]["value"] < whole[name]["value"]
    assert metrics["matches"]["known"]["error"] == metrics["matches"]["unknown"]["error"] == 1
    assert metrics["course_figures"]["closed_set_accuracy"]["n"] == 4
    assert metrics["confusion"]["errors"] == 2


def test_an_error_chooses_no_threshold() -> None:
    broken = [(s, ERROR if s.sample_id == "13" else r) for s, r in LIKELIHOOD]
    threshold = score(broken)[1]["scores"]["max_softmax"]["threshold"]
    assert (threshold["n_known"], threshold["n_unknown"]) == (2, 1)


@pytest.mark.parametrize("rows", [LIKELIHOOD, [(s, ERROR) for s, _ in LIKELIHOOD]])
def test_everything_can_be_written_as_strict_json(rows: Any) -> None:
    scored, metrics = score(rows)
    json.dumps([scored, metrics], allow_nan=False)


def two_query_records(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Of a dog the class falls from .9 to .6 without its own, of the cat it rises from .5 to .7."""
    records = {}
    for query in queries("two_query", samples):
        offered = query.offered(CLASSES)
        p = {("dog", "full"): 0.9, ("dog", "left_out"): 0.6, ("cat", "full"): 0.5,
             ("cat", "left_out"): 0.7}.get((query.sample.label, query.variant), 0.55)  # fmt: skip
        best = query.sample.label if query.known else offered[0]
        records[query.key] = sure(best, p, offered)
    return records


def test_two_queries_are_told_apart_and_paired() -> None:
    samples = [sample("1", "dog"), sample("2", "cat"), sample("3", "horse"),
               sample("11", "dog", "validation"), sample("12", "zebra", "validation")]  # fmt: skip
    asked = queries("two_query", samples)
    rows, metrics = score_protocol(asked, two_query_records(samples), CLASSES)
    assert metrics["parts"]["test"] == {"known": 2, "unknown": 3}
    kinds = metrics["queries"]
    assert (kinds["left_out"]["n_known"], kinds["left_out"]["n_unknown"]) == (2, 2)
    assert kinds["unknown_pictures"]["n_unknown"] == 1
    # .9 and .5 against .6 and .7; against .55
    assert kinds["left_out"]["scores"]["max_softmax"]["auroc"]["value"] == 0.5
    assert kinds["unknown_pictures"]["scores"]["max_softmax"]["auroc"]["value"] == 0.5
    assert metrics["pairs"]["n"] == 2
    assert metrics["pairs"]["higher_with_full_list"]["max_softmax"]["value"] == 0.5
    assert metrics["pairs"]["mean_drop"]["max_softmax"]["value"] == pytest.approx(0.05, abs=1e-6)
    left_out = [row for row in metrics["per_class"] if row["query"] == "left_out"]
    assert [(row["class"], row["known"]) for row in left_out] == [("cat", False), ("dog", False)]
    assert {row["query"] for row in rows} == {"full", "left_out"}
    assert metrics["counts"]["expected"] == 8
    # one unknown class in the test part; dog and cat stay known where they were left out
    openness = metrics["scores"]["max_softmax"]["figures"]["openness"]["value"]
    assert openness == pytest.approx(1 - math.sqrt(6 / 7), abs=1e-6)


def test_millers_rows_hold_correct_known_samples_only() -> None:
    samples = [sample("1", "dog"), sample("2", "cat")]
    records = two_query_records(samples)
    records["2#full"] = sure("dog", 0.5)
    asked = queries("two_query", samples)
    kinds = score_protocol(asked, records, CLASSES)[1]["queries"]
    assert (kinds["left_out"]["n_known"], kinds["left_out_correct_only"]["n_known"]) == (2, 1)
    assert kinds["left_out_correct_only"]["scores"]["max_softmax"]["auroc"]["value"] == 1.0


def test_crops_of_one_picture_count_as_one_picture() -> None:
    together = [(replace(s, image_id=99 if s.known else s.image_id), r) for s, r in LIKELIHOOD]
    figure = score(together)[1]["scores"]["max_softmax"]["figures"]["closed_set_accuracy"]
    assert (figure["n"], figure["n_pictures"]) == (4, 1)
