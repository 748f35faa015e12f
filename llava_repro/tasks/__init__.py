"""The benchmarks, one module each: official files in, official figures and files out.

`load_task` gives the questions of a task, `score_task` the figures of records about them. Used by
evaluate.py (with a model) and score.py (without); a table, nothing more. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks import caption, gqa, pope, rows, scienceqa, textvqa, vqav2
from llava_repro.tasks.common import (
    N_NAMED,
    Matched,
    Metrics,
    Record,
    Sample,
    Scored,
    Task,
    counts,
)
from shared.options import MissingError, UserError
from shared.vqav2 import QuestionSet

__all__ = ["TASKS", "Sample", "Task", "load_task", "match_answers", "score_task"]

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (vqav2, gqa, textvqa, scienceqa, pope, caption, rows)
}


def load_task(
    name: str, path: Path, split: str | None = None, prompt: str | None = None
) -> QuestionSet:
    """Questions (`Sample`s) of a task; None takes the first split and prompt choice of its table.

    `path` is the data folder, or the annotation file for pope, gqa, textvqa and file; a file is
    its own split. Raises UserError for an unknown name, split or prompt and for files in another
    layout, MissingError where they are not there.
    """
    task = TASKS.get(name)
    if task is None:
        raise UserError(f"unknown task {name!r}; one of {', '.join(TASKS)}")
    if prompt is not None and prompt not in task.prompts:
        known = ", ".join(task.prompts)
        raise UserError(f"--task {name}: unknown prompt {prompt!r}; one of {known}")
    split = split or task.splits[0]
    try:
        return task.load(path, split, prompt or next(iter(task.prompts)))
    except MissingError as error:
        if split in task.splits:
            raise
        where = str(error).splitlines()[0]  # a download would not mend it
        known = ", ".join(task.splits)
        raise UserError(f"--split {split}: {name} has {known}; {where}") from error


def match_answers(name: str, answers: Sequence[Record], samples: Sequence[Sample]) -> Matched:
    """Rows {question_id, prompt, text} of an answers file to records by sample id.

    Raises UserError when an answer belongs to no question and the official script would stop
    there, or when no answer belongs to any.
    """
    task = TASKS[name]
    matched = task.match(answers, samples)
    if matched.unknown and (task.unknown_ids == "error" or not matched.records):
        named = ", ".join(matched.unknown[:N_NAMED])
        raise UserError(
            f"{len(matched.unknown)} of {len(answers)} answers are to no question of these "
            f"annotations (question_id {named}); are they of another split or task?"
        )
    return matched


def score_task(
    name: str, records: Sequence[Record] | Matched, samples: Sequence[Sample]
) -> tuple[Scored, Metrics]:
    """One scored row a sample, in order, and the metrics: a pure function of the two.

    `records` are prediction records (`sample_id`, `answer`, `status`, `prompt`; the last of a
    sample counts) or what `match_answers` gives. Besides the task's own figures: `metric` and
    `headline` (percent, with n and a 95 % interval), and how complete the run is.
    """
    if not isinstance(records, Matched):
        records = Matched({record["sample_id"]: record for record in records})
    scored, figures = TASKS[name].score(records.records, samples)
    return scored, {"task": name} | figures | counts(samples, records)


def submission(
    name: str, records: Mapping[str, Record], samples: Sequence[Sample]
) -> tuple[Any, bool]:
    """The official file's content, and whether it is JSON lines."""
    task = TASKS[name]
    return task.submission(records, samples), task.submission_lines
