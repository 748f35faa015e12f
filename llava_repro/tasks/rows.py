"""The task `file`: the user's own questions, JSONL or CSV with image, question and answer.

Read by `shared.vqav2.load_rows`. Conversations (LLaVA JSON, JSON lines, Parquet) are read too: the
first question of each is asked, with its pictures, and its answer is the reference. Rows that all
have ten `answers` are scored by the official VQA accuracy, as in the task vqav2, others by exact
match after the VQA program's normalisation, with Chinese and other full stops at the end taken off.
A missing answer is wrong; an answer to no row is an error.

    python llava_repro/score.py --task file --answers answers.jsonl --annotations my_rows.jsonl
"""

from __future__ import annotations

import json
import os
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
    ask_short,
    headline,
    mean,
    row_by_row,
    scored_row,
    tables,
    usable,
)
from shared.chat_templates import is_interleaved
from shared.conversation_files import (
    IMAGE_TAG,
    Picture,
    RowError,
    open_conversations,
    row_images,
    row_turns,
)
from shared.options import UserError
from shared.vqa_score import normalise_answer
from shared.vqav2 import N_ANNOTATORS, QuestionSet, load_rows


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """All rows of the file; `split` has no meaning here."""
    if _holds_conversations(path):
        return load_conversations(path, prompt)
    found = load_rows(path)
    return QuestionSet(
        [vqav2.as_sample(question, prompt) for question in found.questions], found.problems
    )


def _holds_conversations(path: Path) -> bool:
    """By the format, or the first row of a JSON lines file."""
    if path.suffix.lower() in (".json", ".parquet"):
        return True
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and bool({"conversations", "conversation", "messages"} & set(row))


def load_conversations(path: Path, prompt: str) -> QuestionSet:
    """The first question of every conversation; `language` is a table beside the types.

    Pictures of a question about several are named together in its record ("a.jpg + b.jpg"); with
    words between them they are asked in their places, as they are trained.
    """
    rows = open_conversations(path)
    samples: list[Sample] = []
    problems: list[str] = []
    seen: set[str] = set()
    for i in range(len(rows)):
        try:
            sample = _from_conversation(i, rows[i], path.parent, prompt)
        except RowError as error:  # of the row alone
            problems.append(f"{rows.where(i)}: {error}")
            continue
        except UserError as error:
            problems.append(str(error))
            continue
        if sample.sample_id in seen:
            problems.append(
                f"{rows.where(i)}: id {sample.sample_id} stands twice; the first is used"
            )
            continue
        seen.add(sample.sample_id)
        samples.append(sample)
    return usable(samples, problems, len(rows), path)


def _from_conversation(i: int, row: dict[str, Any], root: Path, prompt: str) -> Sample:
    turns = [turn for turn in row_turns(row) if turn[0] != "system"]
    if len(turns) < 2:
        raise RowError("conversations: no answer behind the question, so nothing to score against")
    text = turns[0][1] or ""
    pictures = row_images(row, root)[: text.count(IMAGE_TAG)]
    names = [_name(picture, root) for picture in pictures]
    question = text.replace(IMAGE_TAG, "").strip()
    if not question:
        raise RowError("conversations: the question has no text (evaluate.py asks questions)")
    answer = (turns[1][1] or "").strip()
    key = str(i if row.get("id") is None else row["id"])
    kinds = {name: row.get(name) for name in ("answer_type", "question_type", "language")}
    kinds = {name: kind for name, kind in kinds.items() if isinstance(kind, str)}
    return Sample(
        sample_id=key,
        image=pictures[0] if pictures else None,
        image_name=" + ".join(names),
        image_id=" + ".join(names) or key,
        question=question,
        references=(answer,),
        question_type=kinds.get("question_type"),
        answer_type=kinds.get("answer_type"),
        target=answer,
        prompt=ask_short(text if is_interleaved(text) else question, prompt),
        llava_id=key,
        more_images=tuple(pictures[1:]),
        interleaved=is_interleaved(text),
        groups={name.replace("_", " "): kind for name, kind in kinds.items()},
    )


def _name(picture: Picture, root: Path) -> str:
    if isinstance(picture, Path):
        return os.path.relpath(picture, root).replace(os.sep, "/")
    return picture.name


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


def submission_row(sample: Sample, answer: str) -> dict[str, Any]:
    """No server asks for it."""
    return {"question_id": sample.llava_id, "answer": answer}


TASK = Task(
    name="file",
    data_folder="",
    splits=("all",),
    prompts={"bare": "the question alone", "short": "question and LLaVA-1.5's suffix"},
    load=load,
    score=score,
    submission=row_by_row(submission_row),
    submission_lines=True,
)
