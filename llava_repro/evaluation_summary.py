"""The figures that evaluate.py prints at its end, those of the benchmark's own program beside them.

python llava_repro/evaluate.py --task pope --toy
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.estimates import percent

MOST_ROWS = 6  # of a table on the terminal; metrics.json and compare.py's page have all
POPE_FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def print_figures(metrics: Mapping[str, Any]) -> None:
    print(f"{metrics['task']}, {metrics['metric']}: {percent(metrics['accuracy'])}")
    for line in official_lines(metrics["official"]):
        print(f"  {line}")
    for table in ("per_answer_type", "per_question_type"):
        if 1 < len(metrics[table]) <= MOST_ROWS:
            for name, value in metrics[table].items():
                print(f"  {name}: {percent(value)}")
    left_out = metrics["data_problems"]
    if left_out["count"]:
        print(f"  {left_out['count']} bad rows of the data left out, not counted as questions; the "
              f"first: {left_out['first'][0]}")  # fmt: skip
    blind = metrics["blind"]
    if blind["value"] is not None:
        print(
            f"  blind (commonest answer per question type of {blind['learned_from']}, no picture): "
            f"{percent(blind)}"
        )
    if metrics.get("judge"):
        judge = metrics["judge"]
        print(
            f"  judge {judge['model']}: {judge['asked']} undecided answers read, "
            f"{judge['decided']} decided, {judge['right']} right; accuracy with it "
            f"{judge['accuracy_with_judge']:.2f} %"
        )
    print("  " + ", ".join(f"{value} {name}" for name, value in metrics["counts"].items()))
    for note in answers_notes(metrics):
        print(f"  note: {note}")


def answers_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Of an answers file: what the questions that it does not answer do to the figures."""
    file, n_missing = metrics.get("answers_file"), metrics["counts"]["missing"]
    notes = []
    if file and n_missing:
        notes.append(f"{n_missing} missing count as wrong (--answered_only leaves them out)")
    if file and file["left_out"]:
        notes.append(
            f"{file['left_out']} missing are left out, {metrics['counts']['expected']} answered "
            "questions are scored"
        )
    return notes


def official_lines(official: Mapping[str, Any]) -> list[str]:
    """The figures of the benchmark's own program that the headline is not."""
    if "yes_ratio" in official:
        named = official.get("splits") or {"all": official}
        lines = [f"{name}: " + ", ".join(f"{key} {short(figures[key])}" for key in POPE_FIGURES)
                 for name, figures in named.items()]  # fmt: skip
        if "mean_f1" in official:
            lines.append(f"mean F1 of the splits {short(official['mean_f1'])} (LLaVA's POPE)")
        if official["unclear"]:
            lines.append(f"{official['unclear']} answers hold no yes, no or not: read as yes")
        return lines
    keys = ("image_accuracy", "undecided", "binary", "open", "distribution", "prompts_with_ocr",
            "protocols")  # fmt: skip
    lines = []
    for key in keys:
        value = official.get(key)
        if isinstance(value, Mapping):
            lines += [f"{name}: {short(figure)} %" for name, figure in value.items()]
        elif value is not None:
            lines.append(f"{key.replace('_', ' ')}: {short(value)}")
    return lines


def short(value: float | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
