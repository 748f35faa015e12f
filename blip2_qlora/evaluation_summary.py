"""What `evaluate.py` prints at its end: seeded cases, the figures, the change against zero-shot.

python blip2_qlora/evaluate.py --toy
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip2_qlora.scoring import why_exact_match
from shared.estimates import percent
from shared.options import UserError, portable_path
from shared.runs import compare_runs, find_zero_shot, read_run, summary_line
from shared.vqav2 import N_ANNOTATORS, QuestionSet

N_CASES = 5
LEARNED_THESE = (
    "WARNING: the adapter was trained on this very data. The figures show what it remembers, not "
    "how well it answers new questions"
)


def data_notes(sample: QuestionSet, learned_these: bool | None) -> list[str]:
    """What to know of the data before the model is asked: rows that are not used, rows that decide
    the metric, rows that the adapter has learned."""
    notes = [sample.left_out]
    counted = [(question.sample_id, len(question.references)) for question in sample.questions]
    reason = why_exact_match(counted)
    if reason and any(n == N_ANNOTATORS for _, n in counted):
        notes.append(f"note: exact match will be the metric. {reason}")
    if learned_these:
        notes.append(LEARNED_THESE)
    return [note for note in notes if note]


def print_summary(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    *,
    seed: int,
    has_adapter: bool,
) -> None:
    print_cases(records, seed)
    print_figures(metrics)
    if has_adapter:
        print(change_against_zero_shot(folder))
    print(f"records and metrics: {portable_path(folder)}")


def print_cases(records: Sequence[Mapping[str, Any]], seed: int) -> None:
    for record in random.Random(seed).sample(records, min(N_CASES, len(records))):
        said = record["answer"] if record["status"] == "ok" else f"error: {record['error']}"
        references = ", ".join(dict.fromkeys(record["references"])) or "no reference"
        print(f"  {record['image']}  {record['question']}  ->  {said!r}   ({references})")


def print_figures(metrics: Mapping[str, Any]) -> None:
    if any(metrics["synthetic"].values()):
        print("SYNTHETIC toy data or model: these figures say nothing about the real one")
    if metrics["trained_on_scored"]:
        print(LEARNED_THESE)
    print(f"{metrics['metric']}: {percent(metrics['accuracy'])}")
    if metrics["metric_reason"]:
        print(f"  {metrics['metric_reason']}")
    for name, value in (metrics["protocols"] or {}).items():
        print(f"  {name}: {percent(value)}   [{value['published_under_it']}]")
    if metrics["protocols"]:  # else it is the headline
        print(f"  exact match: {percent(metrics['exact_match'])}")
    for name, value in metrics["per_answer_type"].items():
        print(f"  {name}: {percent(value)}")
    if metrics.get("blind", {}).get("value") is not None:
        print(f"  blind (commonest train answer per question type): {percent(metrics['blind'])}")
    if (share := metrics.get("vqa_row_share")) is not None:
        print(
            f"  {share:.0%} of the toy model's training rows had the form of a VQA prompt: this "
            "share decides how good it is before fine-tuning"
        )
    print("  " + ", ".join(f"{value} {name}" for name, value in metrics["counts"].items()))
    if metrics["data_problems"]["count"]:
        print(f"  {metrics['data_problems']['count']} bad rows of the data not used")


def change_against_zero_shot(folder: Path) -> str:
    """The paired difference to the zero-shot run of the same sample, or why there is none."""
    mend = "the same command without --adapter, in a folder of its own, makes one"
    zero_shot, differences = find_zero_shot(folder)
    if zero_shot is None:
        return f"no zero-shot run of the same sample beside it: {mend}"
    name = portable_path(zero_shot)
    if differences:
        return (
            f"no zero-shot run to compare with: {name} asked the same sample, but with another "
            f"{'; another '.join(differences)}; {mend}"
        )
    try:
        change = compare_runs(read_run(zero_shot), read_run(folder))
    except UserError as error:  # a damaged neighbour does not spoil this run
        return f"no change to show, as the zero-shot run can't be read ({error})"
    return f"change against {name}: {summary_line(change)}"
