"""The task `file`: the user's own questions, JSONL or CSV with image, question and answer.

Read by `shared.vqav2.load_rows`. Rows that all have ten `answers` are scored by the official VQA
accuracy, as in the task vqav2, others by exact match after the VQA program's normalisation, with
Chinese and other full stops at the end taken off. A missing answer is wrong; an answer to no row is
an error.

    python llava_repro/score.py --task file --answers answers.jsonl --annotations my_rows.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks import vqav2
from llava_repro.tasks.common import (
    Metrics,
    Record,
    Sample,
    Scored,
    Task,
    answer_of,
    headline,
    mean,
    scored_row,
    tables,
)
from shared.vqa_score import normalise_answer
from shared.vqav2 import N_ANNOTATORS, QuestionSet, load_rows


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """All rows of the file; `split` has no meaning here."""
    found = load_rows(path)
    return QuestionSet(
        [vqav2.as_sample(question, prompt) for question in found.questions], found.problems
    )


def exact(text: str) -> str:
    """What two answers must share to be the same."""
    return normalise_answer(text.strip().rstrip("。．！？"))


def score(records: Mapping[str, Record], samples: Sequence[Sample]) -> tuple[Scored, Metrics]:
    """`accuracy` in percent; `metric` says which."""
    if all(len(sample.references) == N_ANNOTATORS for sample in samples):
        return vqav2.score(records, samples)
    scored: Scored = []
    for sample in samples:
        answer = answer_of(records.get(sample.sample_id))
        parsed = None if answer is None else exact(answer)
        value = None if sample.target is None else float(parsed == exact(sample.target))
        scored.append(scored_row(sample, value, parsed=parsed))
    share = mean(row["score"] for row in scored if row["score"] is not None)
    return scored, {
        "metric": "exact match",
        "headline": headline(scored),
        "n": len(scored),
        "accuracy": None if share is None else 100 * share,
        "per_type": tables(samples, scored),
        "reasons": {"accuracy": "no row has an answer"} if share is None else {},
    }


def submission(records: Mapping[str, Record], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Lines {"question_id", "answer"}: no server asks for them."""
    return [
        {"question_id": s.llava_id, "answer": answer_of(records.get(s.sample_id)) or ""}
        for s in samples
    ]


TASK = Task(
    name="file",
    data_folder="",
    splits=("all",),
    prompts={"bare": "the question alone", "short": "question and LLaVA-1.5's suffix"},
    load=load,
    score=score,
    submission=submission,
    submission_lines=True,
)
