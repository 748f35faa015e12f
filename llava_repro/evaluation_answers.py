"""Answers of another tool as the records of a run, so that they are scored and compared like ours.

    python llava_repro/evaluate.py --task pope --answers M_POPE.tsv --answers_format vlmevalkit
    python llava_repro/evaluate.py --task textvqa --answers llava.jsonl

What such a file does not say (confidence, finish reason, time) is null. A question that it does not
answer is a record with status `skipped`, which counts as wrong and as missing. No torch.
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
from llava_repro.tasks.common import N_NAMED, Metrics
from shared.answering import make_record


def take_answers(
    options: EvaluateOptions, samples: Sequence[Sample], predictions: Path
) -> tuple[list[dict[str, Any]], Metrics]:
    """Write `predictions` (whole) from the answers file; its records, and what was odd in it.

    Raises UserError for a file in another layout and for answers to no question.
    """
    rows = read_answers(Path(options.answers or ""), options.answers_format, samples)
    matched = match_answers(options.task or "", rows, samples)
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
