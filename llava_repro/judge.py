"""A language model reads the multiple-choice answers that the rule left undecided.

Off by default and counted apart: the task's own figures stay those of the rule, beside them stands
what they would be with the judge. The judge sees question, choices and answer, not the picture and
not which choice is right, and says a letter or NONE. Requests are cached in a JSON lines file
(`shared.endpoint`), so that scoring again costs nothing.

    python llava_repro/score.py --task scienceqa --answers A.jsonl --annotations data/scienceqa \
        --judge_endpoint http://localhost:8000/v1 --judge_model Qwen/Qwen2.5-7B-Instruct
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks.common import LETTERS, Metrics, Record, Sample, Scored, answer_of
from shared.endpoint import Endpoint, Request, ask

INSTRUCTION = (
    "You are given a multiple-choice question, its choices and somebody's answer. Say which choice "
    "the answer means. Don't solve the question yourself and don't correct the answer. Reply with "
    "the letter of that choice alone, or with NONE if the answer means none of them, or more than "
    "one."
)


def judge_messages(sample: Sample, answer: str) -> list[dict[str, str]]:
    """The chat that asks for one answer's letter."""
    choices = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(sample.choices))
    task = f"Question: {sample.question}\nChoices:\n{choices}\n\nAnswer: {answer}\n\nLetter:"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": task}]


def read_verdict(text: str, n_choices: int) -> int | None:
    """The choice in a judge's reply; None for NONE and for whatever is not one letter.

    Thinking aloud (<think>...</think>) is passed over; "B", "(b).", "**B**" and "Letter: B" count.
    """
    said = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    said = re.sub(r"^(the )?(letter|answer|choice)( is)?\s*:?", "", said, flags=re.IGNORECASE)
    found = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", said)
    index = LETTERS.index(found.group(1).upper()) if found else -1
    return index if 0 <= index < n_choices else None


def judge_undecided(
    endpoint: Endpoint,
    records: Mapping[str, Record],
    samples: Sequence[Sample],
    scored: Scored,
    path: Path,
) -> Metrics:
    """Ask about every answered question with choices whose `parsed` is None.

    Returns how many were asked, decided, left undecided or not answered by the judge, how many of
    the decided are right, and the accuracy (percent) if those counted. `judged` in the scored rows
    gets the letter. Raises UserError where the server does not answer at all.
    """
    rows = {row["sample_id"]: row for row in scored}
    undecided = [s for s in samples if s.choices and _is_undecided(s, records, rows)]

    def requests() -> Iterator[Request]:
        for sample in undecided:
            answer = answer_of(records[sample.sample_id]) or ""
            yield Request(sample.sample_id, judge_messages(sample, answer))

    replies = ask(endpoint, requests(), path) if undecided else {}
    right = decided = 0
    for sample in undecided:
        reply = replies[sample.sample_id]
        index = None
        if reply["status"] == "ok":
            index = read_verdict(reply["text"], len(sample.choices))
        rows[sample.sample_id]["judged"] = None if index is None else LETTERS[index]
        decided += index is not None
        right += index is not None and index == sample.correct
    failed = sum(reply["status"] != "ok" for reply in replies.values())
    by_rule = sum(row["score"] for row in scored)
    return {
        "model": endpoint.model,
        "endpoint": endpoint.base_url,
        "asked": len(undecided),
        "cached": sum(bool(reply.get("cached")) for reply in replies.values()),
        "decided": decided,
        "undecided": len(undecided) - decided - failed,
        "failed": failed,
        "right": right,
        "accuracy_with_judge": 100 * (by_rule + right) / len(scored) if scored else None,
    }


def _is_undecided(
    sample: Sample, records: Mapping[str, Record], rows: Mapping[str, dict[str, Any]]
) -> bool:
    return (
        answer_of(records.get(sample.sample_id)) is not None
        and rows[sample.sample_id]["parsed"] is None
    )
