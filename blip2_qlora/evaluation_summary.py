"""What `evaluate.py` prints at its end: seeded cases, the figures, the change against zero-shot.

python blip2_qlora/evaluate.py --toy
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.options import UserError, portable_path
from shared.runs import compare_runs, find_zero_shot, read_run, summary_line

N_CASES = 5


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
    print(f"{metrics['metric']}: {percent(metrics['accuracy'])}")
    for name, value in (metrics["protocols"] or {}).items():
        print(f"  {name}: {percent(value)}   [{value['published_under_it']}]")
    print(f"  exact match: {percent(metrics['exact_match'])}")
    for name, value in metrics["per_answer_type"].items():
        print(f"  {name}: {percent(value)}")
    if metrics.get("blind", {}).get("value") is not None:
        print(f"  blind (commonest train answer per question type): {percent(metrics['blind'])}")
    if (share := metrics.get("vqa_row_share")) is not None:
        print(f"  {share:.0%} of the toy model's training rows had the form of a VQA prompt")
    print("  " + ", ".join(f"{value} {name}" for name, value in metrics["counts"].items()))


def percent(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return f"none ({estimate['reason']})"
    if estimate["low"] is None:
        return f"{estimate['value']:.2f} % (n {estimate['n']})"
    interval = f"[{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.2f} % {interval} (n {estimate['n']})"


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
