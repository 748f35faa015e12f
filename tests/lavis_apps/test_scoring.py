"""Scores of lavis_apps against tables computed by hand, loops, and the originals' formula."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from lavis_apps.scoring import classification_metrics, score_task, vqa_metrics
from lavis_apps.scoring_itm import MATCH, NO_MATCH, auroc_estimate, bootstrap_rows, weighted_auroc
from lavis_apps.scoring_retrieval import (
    IR,
    TR,
    first_by,
    mean_hit,
    picture_shares,
    rank_of,
    recall_figures,
)


def record(sample_id: str, answer: str | None, **fields: Any) -> dict[str, Any]:
    """A prediction record; an answer of None is an error."""
    return {
        "sample_id": sample_id, "image": f"{sample_id}.jpg", "image_id": sample_id,
        "question": "", "question_type": None, "answer_type": None, "prompt": "",
        "raw_output": answer, "answer": answer, "references": [], "confidence": None,
        "finish_reason": None if answer is None else "stop", "n_tokens": None, "seconds": None,
        "status": "error" if answer is None else "ok",
        "error": "broken" if answer is None else None,
    } | fields  # fmt: skip


# retrieval ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "right", "rank"),
    [
        ([0.9, 0.5, 0.1], [0], 1),
        ([0.9, 0.5, 0.1], [2], 3),
        ([0.9, 0.5, 0.1], [1, 2], 2),  # the best of several counts
        ([0.5, 0.5, 0.1], [0], 2),  # a wrong one with the same score stands before it
        ([0.5, 0.5, 0.5], [0], 3),
        ([0.5, 0.5, 0.1], [0, 1], 1),  # a tie among right ones costs nothing
        ([0.9, float("nan"), 0.1], [0], None),
        ([0.9, 0.5], [], None),
    ],
)
def test_rank_never_gains_from_ties(scores, right, rank):
    truth = np.isin(np.arange(len(scores)), right)
    assert rank_of(np.array(scores), truth) == rank


def test_first_by_takes_wrong_ones_first_among_equals():
    scores, right = np.array([0.2, 0.7, 0.7, 0.7, 0.1]), np.array([0, 1, 0, 0, 0], bool)
    assert first_by(scores, right, 2).tolist() == [2, 3]
    assert first_by(scores, right, 3).tolist() == [2, 3, 1]
    assert first_by(scores, right, 99).tolist() == [2, 3, 1, 0, 4]
    assert first_by(scores, right, 1).tolist() == [2]


def original(scores: np.ndarray, owner: list[int]) -> dict[str, float]:
    """R@k in percent as BLIP's train_retrieval.py counts them: places in the sorted order by id."""
    found = {}
    for name, matrix, right_of in (
        (TR, scores, lambda i: [j for j, own in enumerate(owner) if own == i]),
        (IR, scores.T, lambda j: [owner[j]]),
    ):
        places = []
        for query, row in enumerate(matrix):
            order = list(np.argsort(row)[::-1])
            places.append(min(order.index(candidate) for candidate in right_of(query)))
        for k in (1, 5, 10):
            found[f"{name} R@{k}"] = 100 * sum(place < k for place in places) / len(places)
    return found


def recalls_of(scores: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Figures of a whole matrix of pictures x texts; `truth`: which text is of which picture."""
    rows = [{"answer_type": TR, "image_id": i, "rank": rank_of(row, truth[i])}
            for i, row in enumerate(scores)]  # fmt: skip
    rows += [{"answer_type": IR, "image_id": int(np.argmax(truth[:, j])),
              "rank": rank_of(scores[:, j], truth[:, j])}
             for j in range(scores.shape[1])]  # fmt: skip
    return recall_figures(rows, "rank")


def test_recalls_equal_the_originals_where_nothing_ties():
    rng = np.random.default_rng(0)
    owner = [i for i in range(14) for _ in range(3)]
    truth = np.array([[own == i for own in owner] for i in range(14)])
    scores = rng.normal(size=truth.shape) + 0.2 * truth
    figures = recalls_of(scores, truth)
    expected = original(scores, owner)
    for name in (TR, IR):
        for k in (1, 5, 10):
            assert figures[name][f"R@{k}"]["value"] == round(expected[f"{name} R@{k}"], 2)
    assert 0 < expected["TR R@1"] < expected["TR R@5"] < 100
    assert figures["r_mean"]["value"] == pytest.approx(sum(expected.values()) / 6, abs=0.005)
    assert figures["r_mean"]["low"] < figures["r_mean"]["value"] < figures["r_mean"]["high"]


def test_recalls_of_a_table_by_hand():
    # pictures A, B; captions a1, a2 of A, b1 of B
    scores = np.array([[0.1, 0.9, 0.8], [0.3, 0.2, 0.3]])
    truth = np.array([[True, True, False], [False, False, True]])
    figures = recalls_of(scores, truth)
    # A finds a2 first; B's own b1 ties with a1: second
    assert figures[TR]["R@1"]["value"] == 50.0
    assert figures[TR]["R@5"]["value"] == 100.0
    # a1 prefers B (0.3), a2 finds A, b1 prefers A (0.8)
    assert figures[IR]["R@1"]["value"] == 33.33
    assert figures[IR]["mean"]["value"] == pytest.approx(100 * (1 / 3 + 1 + 1) / 3, abs=0.005)
    tr, ir = (50 + 100 + 100) / 3, (100 / 3 + 100 + 100) / 3
    assert figures["r_mean"]["value"] == pytest.approx((tr + ir) / 2, abs=0.005)
    assert figures["r_mean"]["n"] == 5
    assert figures["r_mean"]["n_pictures"] == 2


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    truth = np.eye(4, dtype=bool)
    figures = recalls_of(np.zeros((4, 4)), truth)
    assert figures[TR]["R@1"]["value"] == figures[IR]["R@1"]["value"] == 0.0
    assert figures[TR]["R@1"]["high"] > 0  # Wilson's, as a bootstrap would have no width


def test_mean_recall_weighs_both_directions_alike_whatever_the_number_of_captions():
    rng = random.Random(1)
    rows = [{"answer_type": TR, "image_id": i, "rank": rng.choice([1, 3, 8, None])}
            for i in range(6)]  # fmt: skip
    rows += [{"answer_type": IR, "image_id": i, "rank": rng.choice([1, 3, 8, 40])}
             for i in range(6) for _ in range(1 + i)]  # fmt: skip
    shares = picture_shares(rows, "rank")
    means = [np.mean([mean_hit(r, "rank") for r in rows if r["answer_type"] == d])
             for d in (TR, IR)]  # fmt: skip
    assert np.mean(list(shares.values())) == pytest.approx(np.mean(means))
    assert picture_shares(rows[:6], "rank") == {}  # no picture was asked for


def query(kind: str, key: str, rank: int | None, rank_equal: int | None, **more: Any) -> dict:
    ranks = {"rank": rank, "rank_itc": rank, "rank_equal": rank_equal, "rank_itc_equal": rank_equal}
    answer = None if rank is None else "x"
    counts = {"n_candidates": 10, "n_right": 1, "n_right_equal": 1, **more} if answer else {}
    fields = {"image_id": key[0], "answer_type": kind, "reranked": False, **counts, **ranks}
    return record(f"{kind}-{key}", answer, **fields)


def test_equal_captions_stand_beside_the_headline_and_errors_are_misses():
    records = [
        query(TR, "a", 1, 1), query(TR, "b", 2, 1, n_right_equal=2), query(TR, "c", None, None),
        query(IR, "a0", 1, 1), query(IR, "b0", 2, 1, n_right_equal=2), query(IR, "c0", None, None),
    ]  # fmt: skip
    rows, metrics = score_task("retrieval", records, expected=6)
    assert [row["score"] for row in rows] == [1, 0, 0, 1, 0, 0]
    assert metrics["retrieval"][TR]["R@1"]["value"] == 33.33
    assert metrics["equal_captions"]["n_queries"] == 2
    assert metrics["equal_captions"]["retrieval"][TR]["R@1"]["value"] == 66.67
    assert metrics["retrieval_itc"] is None  # nothing was ranked again
    assert metrics["counts"] == {
        "expected": 6, "answered": 4, "errors": 2, "missing": 0, "empty": 0, "cut": 0,
    }  # fmt: skip
    assert metrics["chance"] == {TR: 10.0, IR: 10.0}
    assert metrics["equal_captions"]["chance"] == {TR: 15.0, IR: 15.0}
    assert metrics["excluding_errors"]["value"] == 83.33  # the headline, not R@1 of all queries
    without = score_task("retrieval", [records[0], records[3]], expected=2)[1]
    assert without["equal_captions"] is None
    assert without["accuracy"]["value"] == without["selection"]["value"] == 100.0


@pytest.mark.parametrize("task", ["retrieval", "classification", "matching", "vqa", "localization"])
def test_nothing_to_score_is_null_with_a_reason(task):
    rows, metrics = score_task(task, [], expected=0)
    assert rows == []
    assert metrics["accuracy"]["value"] is None
    assert metrics["accuracy"]["reason"]
    assert metrics["excluding_errors"]["value"] is None
    assert metrics["selection"]["value"] is None


# matching -------------------------------------------------------------------------------------


def auroc(scores: list[float], kinds: list[bool]) -> float | None:
    area = weighted_auroc(scores, kinds)
    return None if area is None else float(area(np.ones((1, len(scores))))[0])


def test_auroc_by_hand_and_by_a_loop():
    # own 0.9, 0.4, 0.4; others 0.4, 0.1: 2 + 1.5 + 1.5 of 6 pairs
    scores, kinds = [0.9, 0.4, 0.4, 0.4, 0.1], [True, True, True, False, False]
    assert auroc(scores, kinds) == pytest.approx(5 / 6)
    rng = random.Random(2)
    scores = [rng.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(60)]
    kinds = [rng.random() < 0.4 for _ in range(60)]
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(
        [s for s, k in zip(scores, kinds, strict=True) if k],
        [s for s, k in zip(scores, kinds, strict=True) if not k],
    )]  # fmt: skip
    assert auroc(scores, kinds) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([0.1, 0.2], [True, True]) is None


def test_auroc_interval_draws_whole_pictures():
    scores = [0.9, 0.2, 0.8, 0.3, 0.1, 0.7] * 8
    kinds = [True, False] * 24
    pictures = [i // 2 for i in range(48)]
    figure = auroc_estimate(scores, kinds, pictures)
    assert figure["n"] == 48
    assert figure["n_pictures"] == 24
    assert figure["low"] < figure["value"] < figure["high"]
    assert figure == auroc_estimate(scores, kinds, pictures)  # the seed decides
    low, high, note = bootstrap_rows(lambda weights: weights.sum(1), ["one"] * 4)
    assert (low, high) == (None, None)
    assert note


def test_matching_counts_errors_against_the_model():
    def pair(key: str, truth: str, itm: float | None) -> dict:
        said = None if itm is None else MATCH if itm >= 0.5 else NO_MATCH
        return record(f"{key}-{truth}", said, image_id=key, answer_type=truth, references=[truth],
                      itm=itm, itc=itm)  # fmt: skip

    pairs = [
        pair("a", MATCH, 0.9), pair("a", NO_MATCH, 0.2), pair("b", MATCH, 0.4),
        pair("b", NO_MATCH, 0.1), pair("c", MATCH, None), pair("c", NO_MATCH, None),
    ]  # fmt: skip
    _, metrics = score_task("matching", pairs, expected=6)
    # 0.9 and 0.4 above 0.2 and 0.1, below the false pair's error; the true one's below all
    assert metrics["auroc"]["itm"]["value"] == pytest.approx(100 * 4 / 9, abs=0.01)
    assert metrics["accuracy_at_half"]["value"] == 50.0  # a's two, b's false one
    assert metrics["counts"]["errors"] == 2


# localization ---------------------------------------------------------------------------------


def test_pointing_game_is_hits_over_the_boxes_share():
    def pointed(key: str, hit: float | None, chance: float) -> dict:
        return record(key, None if hit is None else "hit", image_id=key[0], hit=hit, chance=chance,
                      energy=0.4, answer_type="star")  # fmt: skip

    records = [pointed("a1", 1.0, 0.2), pointed("a2", 0.5, 0.1), pointed("b", None, 0.3)]
    rows, metrics = score_task("localization", records, expected=3)
    assert [row["score"] for row in rows] == [1.0, 0.5, 0.0]
    assert metrics["accuracy"]["value"] == 50.0
    assert metrics["boxes_share"]["value"] == 20.0
    assert metrics["ratio"]["value"] == 2.5
    assert metrics["ratio"]["low"] <= 2.5 <= metrics["ratio"]["high"]
    assert metrics["named_against_others"]["difference"]["value"] is None


def test_hits_on_the_named_are_held_against_hits_on_the_others():
    def pointed(key: str, hit: float | None, elsewhere: float | None) -> dict:
        extra = {} if hit is None else {"hit": hit, "energy": 0.4, "elsewhere": elsewhere}
        return record(key, None if hit is None else "hit", image_id=key[0], chance=0.25,
                      answer_type="star", **extra)  # fmt: skip

    follows = [pointed(f"{p}{i}", 1.0, 0.5 if p == "a" else 0.0) for p in "abc" for i in "12"]
    alone, broken = pointed("d", 1.0, None), pointed("e", None, None)
    rows, metrics = score_task("localization", [*follows, alone, broken], expected=8)
    found = metrics["named_against_others"]
    assert rows[0]["elsewhere"] == 0.5
    assert found["named"]["value"] == 100.0
    assert found["others"]["value"] == 16.67
    assert found["difference"]["value"] == 83.33
    assert found["difference"]["low"] < 83.33 < found["difference"]["high"]
    assert {figure["n"] for figure in found.values()} == {6}  # no single one, no error

    salient = [pointed(f"{p}{i}", hit, 1 - hit) for p in "abc" for i, hit in enumerate((1.0, 0.0))]
    _, metrics = score_task("localization", salient, expected=6)
    assert metrics["ratio"]["value"] == 2.0  # well above chance, whatever the text
    difference = metrics["named_against_others"]["difference"]
    assert difference["value"] == 0.0
    assert difference["low"] is None  # every picture has the same


# classification -------------------------------------------------------------------------------


def test_classification_table_by_hand():
    def said(key: str, truth: str, answer: str | None, rank: int | None) -> dict:
        return record(key, answer, references=[truth], answer_type=truth, rank=rank)

    records = [
        said("1", "cat", "cat", 1), said("2", "cat", "dog", 2), said("3", "cat", None, None),
        said("4", "dog", "dog", 1), said("5", "dog", "cat", 6),
    ]  # fmt: skip
    rows, metrics = classification_metrics(records, ["cat", "dog", "fox"])
    assert [row["score"] for row in rows] == [1, 0, 0, 1, 0]
    assert metrics["accuracy"]["value"] == 40.0
    assert metrics["top"]["top-5"]["value"] == 60.0
    assert metrics["per_class"]["cat"]["recall"] == 33.33
    assert metrics["per_class"]["cat"]["precision"] == 50.0
    assert metrics["per_class"]["fox"]["recall"] is None
    assert metrics["per_class"]["fox"]["precision"] is None
    assert metrics["macro"]["value"] == pytest.approx((33.33 + 50) / 2, abs=0.006)
    assert metrics["macro"]["n"] == 2
    assert metrics["chance"] == pytest.approx(33.3333)
    assert metrics["confusion"]["columns"] == ["cat", "dog", "fox", "(error)"]
    assert metrics["confusion"]["counts"] == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]


# vqa and captions -----------------------------------------------------------------------------


def test_vqa_is_the_official_accuracy_and_an_error_is_wrong():
    three = ["red"] * 3 + ["blue"] * 7
    records = [
        record("1", "red", references=three, answer_type="other"),
        record("2", "blue.", references=three, answer_type="other"),
        record("3", None, references=three, answer_type="other"),
    ]  # fmt: skip
    rows, metrics = vqa_metrics(records)
    # leave-one-out: three times 2/3, seven times 1
    assert rows[0]["score"] == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert [row["score"] for row in rows[1:]] == [1.0, 0.0]
    assert metrics["accuracy"]["value"] == pytest.approx(100 * 1.9 / 3, abs=0.01)
    assert metrics["metric"] == "VQA accuracy (official-2021)"


def test_vqa_with_other_numbers_of_references_is_exact_match_and_says_so():
    records = [
        record("1", "red", references=["red"] * 10), record("2", "red", references=["blue", "red"])
    ]  # fmt: skip
    rows, metrics = vqa_metrics(records)
    assert metrics["metric"] == "exact match"
    assert "first: 2" in metrics["metric_reason"]
    assert [row["score"] for row in rows] == [1, 0]


def test_captions_choose_checkpoints_by_cider():
    references = [["a red star", "one red star"], ["a blue square", "one blue square"]]
    records = [
        record("1", "a red star", references=references[0]),
        record("2", None, references=references[1]),
    ]
    rows, metrics = score_task("caption", records, expected=2, meteor=False)
    assert metrics["selection"] == {
        "metric": "CIDEr", "value": metrics["captions"]["corpus"]["CIDEr"],
    }  # fmt: skip
    assert rows[0]["score"] > rows[1]["score"] == 0
    assert metrics["counts"]["errors"] == 1
