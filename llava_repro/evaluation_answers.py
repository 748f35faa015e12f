"""Answers of another tool as the records of a run, so that they are scored and compared like ours.

    python llava_repro/evaluate.py --task pope --answers M_POPE.tsv --answers_format vlmevalkit
    python llava_repro/evaluate.py --task textvqa --answers llava.jsonl

What such a file does not say (confidence, finish reason, time) is null. A question that it does not
answer is a record with status `skipped`, which counts as wrong and as missing, unless
`--answered_only` leaves it out. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_repro.evaluation_settings import EvaluateOptions
from llava_repro.evaluation_setup import jobs_of
from llava_repro.interchange import read_answers, write_lines
from llava_repro.tasks import Sample, match_answers
from llava_repro.tasks.common import N_NAMED, Matched, Metrics
from shared.answering import make_record
from shared.options import UserError
from shared.vqav2 import QuestionSet


def match_file(options: EvaluateOptions, samples: Sequence[Sample]) -> Matched:
    """The answers file's rows by sample id. `samples` are all questions: lmms-eval's rows are
    counted by their place.

    Raises UserError for a file in another layout and for answers to no question.
    """
    rows = read_answers(Path(options.answers or ""), options.answers_format, samples)
    return match_answers(options.task or "", rows, samples)


def answered_questions(
    options: EvaluateOptions, sample: QuestionSet, matched: Matched
) -> QuestionSet:
    """The questions with a record in the answers file, an error too. Raises UserError without."""
    found = [question for question in sample.questions if question.sample_id in matched.records]
    if not found:
        raise UserError(f"--answered_only: {options.answers} answers no question of this data")
    return QuestionSet(found, sample.problems)


def take_answers(
    options: EvaluateOptions, matched: Matched, samples: Sequence[Sample], predictions: Path
) -> tuple[list[dict[str, Any]], Metrics]:
    """Write `predictions` (whole) from the answers file; its records, and what was odd in it."""
    name = Path(options.answers or "").name
    records = []
    for job in jobs_of(samples):
        given = matched.records.get(job.question.sample_id)
        asked = replace(job, prompt=(given or {}).get("prompt") or "")
        record = make_record(asked)
        if given is None:
            record |= {"status": "skipped", "error": f"no answer in {name}"}
        elif given["status"] != "ok":
            record |= {"status": "error", "error": f"an error in {name}"}
        else:
            record |= {"raw_output": given["answer"], "answer": given["answer"]}
        records.append(record)
    write_lines(predictions, records)
    ids = {"duplicates": matched.duplicates, "unknown": matched.unknown}
    odd: Metrics = {name: len(found) for name, found in ids.items()}
    named = {name: list(found[:N_NAMED]) for name, found in ids.items() if found}
    return records, odd | {"named": named}
