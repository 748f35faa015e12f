"""Rows and figures of a run, against tables computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qwen_clip_llava_lora.answer_scores import language_of
from qwen_clip_llava_lora.scoring import metrics_of, resampled_macro_f1, score_records
from shared.caption_score import score_captions


def record(key: str, answer: str | None, references: list[str], **more: Any) -> dict[str, Any]:
    """A prediction record; None as answer is an error."""
    return {
        "sample_id": key,
        "image_id": more.pop("image_id", f"{key}.jpg"),
        "question_type": more.get("label"),
        "references": references,
        "answer": answer,
        "language": language_of(references[0]) if references else "en",
        "status": "ok" if answer is not None else "error",
        "error": None if answer is not None else "broken picture",
        "finish_reason": "stop" if answer is not None else None,
        **more,
    }


def run(records: list[dict], task: str, classes: tuple[str, ...] = (), **more: Any) -> dict:
    rows = score_records(records, task, classes, **more)
    return metrics_of(rows, records, task, classes, expected=len(records))


def test_free_text_is_headed_by_token_f1_and_an_error_is_wrong():
    records = [
        record("a", "a red circle", ["red circle"]),
        record("b", "red", ["red circle"]),  # F1 2 / 3
        record("c", None, ["red circle"]),
        record("d", "", ["red circle"]),
    ]
    metrics = run(records, "text")
    assert metrics["metric"] == "token F1"
    assert metrics["accuracy"]["value"] == pytest.approx(100 * (1 + 2 / 3) / 4, abs=0.01)
    assert metrics["exact_match"]["value"] == 25.0
    assert metrics["excluding_errors"]["n"] == 3
    assert metrics["excluding_errors"]["value"] == pytest.approx(100 * (5 / 3) / 3, abs=0.01)
    assert metrics["counts"] == {
        "expected": 4, "answered": 3, "errors": 1, "missing": 0, "empty": 1, "cut": 0,
    }  # fmt: skip
    assert metrics["classification"] is None
    assert "words" in metrics["token_f1"]["en"]["tokens"]


def test_a_sample_without_references_has_no_score():
    metrics = run([record("a", "a circle", [])], "text")
    assert metrics["accuracy"] == {"value": None, "n": 0, "reason": "no question with references"}
    assert metrics["captions"] == {"value": None, "reason": "no sample with a reference"}


TEN = ["yes"] * 3 + ["no"] * 7


def test_ten_answers_each_are_scored_by_the_official_protocol():
    metrics = run([record("a", "yes", TEN), record("b", "no", TEN)], "question")
    assert metrics["metric"] == "VQA accuracy (official-2021)"
    assert metrics["accuracy"]["value"] == 95.0  # three of ten: .9; seven: 1
    assert set(metrics["protocols"]) == {"official-2021", "official-2016", "always-normalise"}
    assert metrics["metric_reason"] is None


def test_one_question_with_another_number_of_answers_makes_it_exact_match():
    metrics = run([record("a", "yes", TEN), record("b", "no", ["no"])], "question")
    assert metrics["metric"] == "exact match"
    assert metrics["protocols"] is None
    assert "first: b has 1" in metrics["metric_reason"]
    assert metrics["accuracy"]["value"] == 100.0  # "yes" is among the ten


# Captions


def test_languages_are_scored_apart_and_as_score_captions_has_them():
    records = [
        record("a", "a red circle and a star", ["a red circle and a blue star"]),
        record("b", "a green square", ["a green square", "one green square"]),
        record("c", "一个红色的圆形", ["一个红色的圆"]),
        record("d", "一个绿色的方块", ["一个绿色的方块"]),
    ]
    metrics = run(records, "caption")
    assert metrics["language"]["value"] == "mixed"
    assert metrics["language"]["counts"] == {"en": 2, "zh": 2}
    english = score_captions(
        {"a": records[0]["references"], "b": records[1]["references"]},
        {"a": records[0]["answer"], "b": records[1]["answer"]},
    )
    assert metrics["captions"]["en"]["corpus"] == english["corpus"]
    chinese = metrics["captions"]["zh"]
    assert chinese["n"] == 2
    assert "characters" in chinese["tokenizer"]
    assert chinese["corpus"]["Bleu_4"] > 0.8  # nearly the same sentences
    assert chinese["corpus"]["CIDEr"] > 5


def test_a_failed_caption_lowers_the_corpus_as_an_empty_one():
    whole = [record("a", "a red circle", ["a red circle"]), record("b", "a star", ["a star"])]
    failed = [whole[0], record("b", None, ["a star"])]
    values = [run(r, "caption")["captions"]["en"]["corpus"]["ROUGE_L"] for r in (whole, failed)]
    assert values == [pytest.approx(1.0), pytest.approx(0.5)]


# Classes

CLASSES = ("happy", "sad", "angry")


@pytest.fixture
def emotions() -> list[dict]:
    said = [
        ("happy", "happy"), ("happy", "happy"), ("happy", "She looks sad."),
        ("sad", "sad"), ("sad", "no idea"), ("sad", "happy or sad"),
    ]  # fmt: skip
    return [record(str(i), answer, [label], label=label) for i, (label, answer) in enumerate(said)]


def test_classes_by_hand(emotions):
    found = run(emotions, "label", CLASSES)["classification"]
    assert found["accuracy"]["value"] == 50.0
    # happy: named twice, both right, of three: P 1, R 2/3; sad: named twice, one right, of three
    assert found["per_class"]["happy"] == {
        "n": 3, "said": 2, "precision": 100.0, "recall": 66.67, "f1": 80.0,
    }  # fmt: skip
    assert found["per_class"]["sad"]["f1"] == 40.0  # 2 * 1 / (2 + 3)
    assert found["per_class"]["angry"]["f1"] is None
    assert found["classes_without_samples"] == ["angry"]
    assert found["macro_f1"]["value"] == 60.0
    assert found["macro_f1"]["n_classes"] == 2
    assert found["macro_f1"]["low"] < 60 < found["macro_f1"]["high"]
    assert found["confusion"]["rows"] == ["happy", "sad"]
    assert found["confusion"]["counts"] == [[2, 1, 0, 0], [0, 1, 0, 2]]
    assert found["matches"] == {
        "exact": 3, "contained": 1, "no class": 1, "several classes": 1,
    }  # fmt: skip
    assert [row["answer"] for row in found["unmatched_answers"]] == ["no idea", "happy or sad"]


def test_an_error_is_an_unmatched_class():
    found = run([record("a", None, ["sad"], label="sad")], "label", CLASSES)["classification"]
    assert found["accuracy"]["value"] == 0.0
    assert found["matches"] == {"error": 1}


def test_the_likeliest_class_stands_beside_the_match(emotions):
    likeliest = {r["sample_id"]: {"status": "ok", "answer": "sad"} for r in emotions[1:]}
    metrics = run(emotions, "label", CLASSES, by_likelihood=likeliest)
    found = metrics["classification_by_likelihood"]
    assert found["accuracy"]["value"] == 50.0
    assert found["unmatched"] == 1  # the first has no record
    assert found["per_class"]["sad"]["recall"] == 100.0
    assert metrics["classification"]["per_class"]["sad"]["recall"] == 33.33


def test_resampled_macro_f1_scatters_around_the_figure(emotions):
    rows = score_records(emotions, "label", CLASSES)
    drawn = resampled_macro_f1([rows, rows], "predicted", ["happy", "sad"], seed=0)
    assert drawn.shape == (2, 2000)
    assert (drawn[0] == drawn[1]).all()  # the same pictures for both runs
    assert 0 <= drawn.min() < drawn.mean() < drawn.max() <= 1
    same = [row | {"predicted": row["label"]} for row in rows[:3]]
    assert resampled_macro_f1([same], "predicted", ["happy"], seed=0) is None


# Likelihood


def test_likelihood_by_hand():
    records = [record("a", "x", ["x"]), record("b", "y", ["y"]), record("c", "z", ["z"])]
    likelihoods = {
        "a": {"status": "ok", "choice_log_probs": [-2.0], "choice_n_tokens": [2]},
        "b": {"status": "ok", "choice_log_probs": [-6.0], "choice_n_tokens": [2]},
        "c": {"status": "error", "error": "choice '' is empty"},
    }
    found = run(records, "text", likelihoods=likelihoods)["likelihood"]
    assert found["per_sample"]["value"] == -4.0
    assert found["per_token"]["value"] == -2.0
    assert found["perplexity"] == pytest.approx(math.exp(2), abs=1e-4)
    assert found["n_tokens"] == 4
    assert found["not_scored"] == {"n": 1, "first": "choice '' is empty"}


def test_without_likelihoods_there_is_a_reason():
    metrics = run([record("a", "x", ["x"])], "text")
    assert metrics["likelihood"] == {
        "value": None, "reason": "not computed (--likelihood false)",
    }  # fmt: skip
    failed = {"a": {"status": "error", "error": "too long"}}
    found = run([record("a", "x", ["x"])], "text", likelihoods=failed)["likelihood"]
    assert (found["value"], found["not_scored"]["first"]) == (None, "too long")
