"""VQAv2: ten references a question, the official accuracy.

Reads a data root in the official layout (`shared.vqav2`). What is scored is the answer as LLaVA
submits it (scripts/convert_vqav2_for_submission.py at https://github.com/haotian-liu/LLaVA, commit
c121f043): normalised first, since "Yes" against ten times "yes" is wrong by the official program.
The same answers as they stand, and the other protocols, are beside it. A missing answer is wrong,
as that script submits ""; an answer to no question is an error, as in the official program.

    python llava_repro/score.py --task vqav2 --answers answers.jsonl --annotations data/vqav2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks.common import (
    Metrics,
    Record,
    Sample,
    Scored,
    Task,
    answer_of,
    ask_short,
    headline,
    m4c_normalise,
    mean,
    official_id,
    row_by_row,
    scored_row,
    tables,
)
from shared.options import UserError
from shared.vqa_score import PROTOCOLS, vqa_accuracies
from shared.vqav2 import N_ANNOTATORS, QuestionSet, load_split

HEADLINE = "official-2021"


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """Questions of a split. They and their annotations are two files, so `path` is the folder."""
    if path.is_file():
        raise UserError(
            f"{path}: give the folder that holds the questions and the annotations of VQAv2"
        )
    found = load_split(path, split)
    return QuestionSet(
        [as_sample(question, prompt) for question in found.questions], found.problems
    )


def as_sample(question: Any, prompt: str) -> Sample:
    """A `shared.vqav2.Question` with what is asked and its tables."""
    groups = {"answer type": question.answer_type, "question type": question.question_type}
    return Sample(
        **vars(question),
        prompt=ask_short(question.question, prompt),
        llava_id=official_id(question.sample_id),
        groups={table: row for table, row in groups.items() if row},
    )


def score(records: Mapping[str, Record], samples: Sequence[Sample]) -> tuple[Scored, Metrics]:
    """`accuracy` in percent: the official accuracy of the normalised answers."""
    scored: Scored = []
    for sample in samples:
        answer = answer_of(records.get(sample.sample_id))
        submitted = None if answer is None else m4c_normalise(answer)
        protocols = as_given = value = None
        if len(sample.references) == N_ANNOTATORS:
            protocols = as_given = dict.fromkeys(PROTOCOLS, 0.0)
            if answer is not None and submitted is not None:
                protocols = vqa_accuracies(submitted, sample.references)
                as_given = vqa_accuracies(answer, sample.references)
            value = protocols[HEADLINE]
        scored.append(
            scored_row(sample, value, parsed=submitted, scores=protocols, as_given=as_given)
        )
    official = [row for row in scored if row["score"] is not None]
    share = mean(row["score"] for row in official)
    return scored, {
        "metric": f"VQA accuracy ({HEADLINE})",
        "headline": headline(scored),
        "n": len(scored),
        "accuracy": None if share is None else 100 * share,
        "protocols": _averages(official, "scores"),
        "protocols_of_answers_as_given": _averages(official, "as_given"),
        "per_type": tables(samples, scored),
        "reasons": {"accuracy": "no question has ten references"} if share is None else {},
    }


def _averages(official: Scored, key: str) -> Metrics:
    averages = {name: mean(row[key][name] for row in official) for name in PROTOCOLS}
    return {name: None if v is None else round(100 * v, 4) for name, v in averages.items()}


def submission_row(sample: Sample, answer: str) -> dict[str, Any]:
    """Of the server's file (`shared.vqa_score --validate` tells whether it has all that the server
    wants)."""
    return {"question_id": sample.llava_id, "answer": m4c_normalise(answer)}


TASK = Task(
    name="vqav2",
    data_folder="vqav2",
    splits=("val2014", "train2014", "test2015"),
    prompts={"short": "question and LLaVA-1.5's suffix", "bare": "the question alone"},
    load=load,
    score=score,
    submission=row_by_row(submission_row),
)
