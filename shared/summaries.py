"""What an evaluation prints at its end: seeded cases, its figures, the change against the base.

python -m pytest tests/shared/test_summaries.py
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.options import UserError, portable_path
from shared.runs import Run, compare_runs, find_zero_shot, read_run, summary_line

N_CASES = 5


def print_summary(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    print_figures: Callable[[Mapping[str, Any]], None],
    *,
    seed: int,
    has_adapter: bool,
    change_line: Callable[[Run, Run], str] | None = None,
) -> None:
    """Cases drawn with `seed`, the experiment's own figures, with an adapter the change, and where
    it all lies. `change_line` says base and tuned run's difference otherwise than by their
    headline."""
    print_cases(records, seed)
    if any(metrics["synthetic"].values()):
        print("SYNTHETIC toy data or model: these figures say nothing about the real one")
    print_figures(metrics)
    if has_adapter:
        print(change_against_base(folder, change_line))
    print(f"records and metrics: {portable_path(folder)}")


def print_cases(records: Sequence[Mapping[str, Any]], seed: int) -> None:
    for record in random.Random(seed).sample(records, min(N_CASES, len(records))):
        said = repr(record["answer"]) if record["status"] == "ok" else f"error: {record['error']}"
        references = ", ".join(dict.fromkeys(record["references"])) or "no reference"
        shown = record["image"] or "(no picture)"
        print(f"  {shown}  {record['question']}  ->  {said}   ({references})")


def change_against_base(folder: Path, change_line: Callable[[Run, Run], str] | None = None) -> str:
    """The paired difference to the same sample's run without the adapter, or why there is none."""
    mend = "the same command without --adapter, in a folder of its own, makes one"
    base, differences = find_zero_shot(folder)
    if base is None:
        return f"no run of the base on the same sample beside it: {mend}"
    name = portable_path(base)
    if differences:
        return (
            f"no run of the base to compare with: {name} asked the same sample, but with another "
            f"{'; another '.join(differences)}; {mend}"
        )
    try:
        runs = read_run(base), read_run(folder)
        change = change_line(*runs) if change_line else summary_line(compare_runs(*runs))
    except UserError as error:  # a damaged neighbour does not spoil this run
        return f"no change to show, as the base's run can't be read ({error})"
    return f"change against {name}: {change}"
