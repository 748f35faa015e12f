"""The judge of undecided answers: what it is asked, how its replies are read and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_repro import judge
from llava_repro.judge import judge_messages, judge_undecided, read_verdict
from llava_repro.tasks import Sample, score_task
from shared.endpoint import Endpoint, Request

REPLIES = [  # of three choices
    ("B", 1),
    ("b", 1),
    ("(C).", 2),
    ("**A**", 0),
    ("Letter: B", 1),
    ("The answer is B.", 1),
    ("<think>It could be A, or C.</think>\n\nB", 1),
    ("NONE", None),
    ("None.", None),
    ("D", None),  # no such choice
    ("A or B", None),
    ("B because it says wood", None),
    ("<think>B", None),  # cut while it was thinking
    ("", None),
    ("木头", None),
]


@pytest.mark.parametrize(("text", "expected"), REPLIES)
def test_verdicts(text, expected):
    assert read_verdict(text, 3) == expected


def sample(key: str, correct: int) -> Sample:
    return Sample(
        sample_id=key,
        image_id=key,
        question="What floats?",
        references=("ABC"[correct],),
        target="ABC"[correct],
        prompt="What floats?",
        llava_id=key,
        choices=("iron", "wood", "glass"),
        correct=correct,
    )


def record(key: str, answer: str | None) -> dict[str, Any]:
    status = "error" if answer is None else "ok"
    return {"sample_id": key, "answer": answer, "status": status, "prompt": "What floats?"}


def test_the_judge_is_not_told_which_choice_is_right():
    asked = [judge_messages(sample("1", correct), "(B) wood") for correct in range(3)]
    assert asked[0] == asked[1] == asked[2]
    assert asked[0][1] == {
        "role": "user",
        "content": "Question: What floats?\nChoices:\nA. iron\nB. wood\nC. glass\n\n"
        "Answer: (B) wood\n\nLetter:",
    }


@pytest.fixture
def asked(monkeypatch) -> list[Request]:
    """Requests that reached the client, which replies by what the answer says."""
    seen: list[Request] = []
    replies = {"(B)": "B", "wood or glass": "NONE", "(A)": "A"}

    def ask(endpoint: Endpoint, requests: Any, path: Path) -> dict[str, dict[str, Any]]:
        found = {}
        for request in requests:
            seen.append(request)
            said = request.messages[1]["content"].split("Answer: ")[1].split("\n")[0]
            reply = replies.get(said)
            status = "ok" if reply else "error"
            found[request.sample_id] = {"status": status, "text": reply, "cached": said == "(A)"}
        return found

    monkeypatch.setattr(judge, "ask", ask)
    return seen


def test_undecided_answers_are_judged_and_counted_apart(asked, tmp_path):
    """By the rule 1 of 6 is right; of four undecided one is judged right, one wrong."""
    said = {"1": "B", "2": "(B)", "3": "wood or glass", "4": "(A)", "5": "broken", "6": None}
    samples = [sample(key, 1) for key in said]
    records = {key: record(key, answer) for key, answer in said.items()}
    scored, metrics = score_task("scienceqa", list(records.values()), samples)
    before = json.dumps(metrics)
    endpoint = Endpoint("http://localhost:1/v1", "judge")
    found = judge_undecided(endpoint, records, samples, scored, tmp_path / "c.jsonl")
    assert [request.sample_id for request in asked] == ["2", "3", "4", "5"]  # 6 is an error
    assert found == {
        "model": "judge",
        "endpoint": "http://localhost:1/v1",
        "asked": 4,
        "cached": 1,
        "decided": 2,
        "undecided": 1,
        "failed": 1,
        "right": 1,
        "accuracy_with_judge": pytest.approx(100 * 2 / 6),
    }
    assert json.dumps(metrics) == before  # the rule's own figures stay
    assert metrics["accuracy"] == pytest.approx(100 / 6)
    assert {row["sample_id"]: row.get("judged", "-") for row in scored} == {
        "1": "-", "2": "B", "3": None, "4": "A", "5": None, "6": "-",
    }  # fmt: skip


def test_nothing_undecided_asks_nobody(asked, tmp_path):
    samples, records = [sample("1", 1)], {"1": record("1", "C")}
    scored, _ = score_task("scienceqa", list(records.values()), samples)
    found = judge_undecided(Endpoint("http://x/v1", "j"), records, samples, scored, tmp_path / "c")
    assert (found["asked"], found["accuracy_with_judge"]) == (0, 0.0)
    assert asked == []
