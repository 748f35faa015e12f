"""Which prompts a sample gets, and what records of answers and likelihoods come to, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llava_openset.protocols import (
    Query,
    answer_outcome,
    choice_outcome,
    choices_of,
    first_named,
    job_of,
    names_of,
    outcome_of,
    queries,
)
from llava_openset.samples import Sample
from shared.options import UserError

CLASSES = ["dog", "cat", "bus"]
DOG = Sample("7", Path("/s/known_images/7.jpg"), "known_images/7.jpg", "dog", True, "test", 70,
             None, ("dog", "cat"))  # fmt: skip
HORSE = Sample("8", Path("/s/8.jpg"), "unknown_images/8.jpg", "horse", False, "validation", 80)


def free(answer: str, confidence: float | None = 0.5, first: float | None = 0.25) -> dict[str, Any]:
    return {"status": "ok", "answer": answer, "confidence": confidence,
            "first_token_confidence": first}  # fmt: skip


def test_a_known_sample_is_asked_twice_by_two_query_and_once_by_the_others() -> None:
    samples = [DOG, HORSE]
    assert [q.key for q in queries("course", samples)] == ["7", "8"]
    assert [q.key for q in queries("likelihood", samples)] == ["7", "8"]
    two = queries("two_query", samples)
    assert [(q.key, q.known) for q in two] == [
        ("7#full", True), ("7#left_out", False), ("8#full", False),
    ]  # fmt: skip
    free_text = queries("freetext", samples, ["open", "list"])
    assert [q.protocol_key for q in free_text] == ["freetext-open", "freetext-list"] * 2
    assert [q.key for q in free_text] == ["7#open", "7#list", "8#open", "8#list"]


def test_the_own_class_is_left_out_of_prompt_and_choices() -> None:
    full, left_out = (job_of(q, CLASSES, "What?") for q in queries("two_query", [DOG]))
    assert full.prompt == "Choose one of these: dog, cat, bus.\nWhat?"
    assert left_out.prompt == "Choose one of these: cat, bus.\nWhat?"
    assert "dog" in choices_of(full)
    assert not {"dog", "puppy"} & set(choices_of(left_out))
    assert set(left_out.details["choice_classes"]) == {"cat", "bus"}
    assert full.question.image_id == left_out.question.image_id == 70


def test_a_job_keeps_what_scoring_needs() -> None:
    job = job_of(Query("freetext", "list", DOG), CLASSES, "What?")
    assert job.details == {
        "sample": "7", "variant": "list", "sample_known": True, "label": "dog", "part": "test",
        "present": ["dog", "cat"],
    }  # fmt: skip
    assert job.question.sample_id == "7#list"
    assert job.question.references == ("dog",)
    own = Sample("private/a.jpg", Path("/p/a.jpg"), "p/a.jpg", "desk", False, "test")
    assert job_of(Query("course", None, own), CLASSES, "What?").question.image_id == "p/a.jpg"


def test_choices_and_their_classes_have_one_order() -> None:
    job = job_of(Query("likelihood", None, DOG), ["tv", "dog"], "What?")
    named = list(zip(job.details["choice_classes"], choices_of(job), strict=True))
    assert named == names_of(("tv", "dog"))
    assert named[0] == ("tv", "tv")
    assert ("tv", "television") in named


def test_a_name_that_two_classes_share_is_scored_for_neither() -> None:
    names = names_of(("tv", "television"))
    assert names == [("tv", "tv"), ("television", "television")]


def test_two_query_needs_something_to_choose_from() -> None:
    with pytest.raises(UserError, match="two known classes beside the own one"):
        job_of(Query("two_query", "left_out", DOG), ["dog", "cat"], "What?")


@pytest.mark.parametrize(
    ("answer", "match", "prediction"),
    [
        ("A puppy.", "class", "dog"),
        ("a hot dog", "unknown", "unknown"),
        ("unknown", "abstain", "unknown"),
        ("", "abstain", "unknown"),
        ("a bus behind a cat", "ambiguous", "bus"),
    ],
)
def test_free_answers_are_matched(answer: str, match: str, prediction: str) -> None:
    outcome = answer_outcome(free(answer), CLASSES)
    assert (outcome.match, outcome.prediction) == (match, prediction)
    named = prediction != "unknown"
    assert outcome.scores == {
        "mean_probability": 0.5 if named else 0.0,
        "first_token_probability": 0.25 if named else 0.0,
        "answer": float(named),
    }


@pytest.mark.parametrize(
    ("answer", "prediction"),
    [("A puppy.", "unknown"), ("a hot dog", "dog"), ("a bus behind a cat", "cat"), ("", "unknown")],
)
def test_the_course_takes_keywords(answer: str, prediction: str) -> None:
    outcome = answer_outcome(free(answer), CLASSES, by_keyword=True)
    assert outcome.prediction == prediction
    assert outcome.match == ("unknown" if prediction == "unknown" else "class")


def test_an_empty_answer_has_no_probability() -> None:
    assert set(answer_outcome(free("", None, None), CLASSES).scores.values()) == {0.0}


def test_first_named_knows_compounds() -> None:
    assert first_named("a hot dog, a cat and a bus", CLASSES) == "cat"
    assert first_named("nothing", CLASSES) == "unknown"


def likelihoods(**values: tuple[str, float, int]) -> dict[str, Any]:
    return {
        "status": "ok",
        "choice_classes": [v[0] for v in values.values()],
        "choice_log_probs": [v[1] for v in values.values()],
        "choice_n_tokens": [v[2] for v in values.values()],
    }


def test_a_class_scores_as_its_likeliest_name_by_its_mean_token() -> None:
    """dog: max(-4/1, -2/2) = -1; cat: -1 - ln 3; so the softmax is 3/4 and 1/4."""
    record = likelihoods(
        a=("dog", -4.0, 1), b=("dog", -2.0, 2), c=("cat", 3 * (-1 - math.log(3)), 3)
    )
    outcome = choice_outcome(record, "mean")
    assert outcome.prediction == outcome.answer == "dog"
    assert outcome.class_probabilities == {"dog": 0.75, "cat": 0.25}
    expected = {
        "max_softmax": 0.75,
        "margin": 0.5,
        "entropy": 0.75 * math.log(0.75) + 0.25 * math.log(0.25),
        "energy": -1 + math.log(4 / 3),
    }
    assert outcome.scores == pytest.approx(expected, abs=1e-9)


def test_by_the_sum_a_long_name_is_less_likely() -> None:
    record = likelihoods(a=("dog", -2.0, 2), b=("cat", -1.5, 1))
    assert choice_outcome(record, "mean").prediction == "dog"
    assert choice_outcome(record, "sum").prediction == "cat"


def test_very_unlikely_names_leave_finite_scores() -> None:
    outcome = choice_outcome(likelihoods(a=("dog", -5000.0, 1), b=("cat", -9000.0, 1)), "sum")
    assert outcome.scores == {"max_softmax": 1.0, "margin": 1.0, "entropy": 0.0, "energy": -5000.0}


def test_what_failed_or_is_not_there_is_an_error() -> None:
    query = Query("course", None, DOG)
    for record in (None, {"status": "error", "answer": None}):
        outcome = outcome_of(query, record, CLASSES, "mean")
        assert (outcome.match, outcome.prediction, outcome.scores) == ("error", None, {})
