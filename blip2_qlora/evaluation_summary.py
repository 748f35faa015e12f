"""What `evaluate.py` prints of the data before it asks, and of the figures at its end.

python blip2_qlora/evaluate.py --toy
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip2_qlora.scoring import why_exact_match
from shared.estimates import percent
from shared.vqav2 import N_ANNOTATORS, QuestionSet

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


def print_figures(metrics: Mapping[str, Any]) -> None:
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
