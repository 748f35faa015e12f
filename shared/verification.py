"""Whether a run's stored scores and figures are what its records give, scored again. No torch.

python blip2_qlora/compare.py --verify outputs/blip2_qlora/RUN
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.answering import read_records
from shared.runs import Run

ROUNDING = 0.011  # stored percentages have two decimals

# score_run(records, expected=how many there should be) -> rows of scored.jsonl, metrics
ScoreRun = Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]


def changed_scores(run: Run, score_run: ScoreRun) -> list[str]:
    """Stored scores that the stored records don't give, one line each."""
    lines = []
    rows, _ = score_run(list(run.records.values()), expected=len(run.records))
    for key, again in zip(run.records, rows, strict=True):
        stored = run.scored[key]
        for name in ("score", "exact_match", "scores"):
            if stored.get(name) != again.get(name):
                lines.append(f"question {key}: {name} is {stored.get(name)!r} in scored.jsonl, "
                             f"{again.get(name)!r} by its record")  # fmt: skip
    return lines


def verify(run: Run, score_run: ScoreRun) -> list[str]:
    """What the folder says otherwise than scoring its records again; empty when all agrees."""
    differing = changed_scores(run, score_run)
    records = read_records(run.folder / "predictions.jsonl")
    unscored = records.keys() - run.scored.keys()
    if unscored:
        differing.append(f"{len(unscored)} records have no line in scored.jsonl: {min(unscored)} …")
    expected = run.metrics.get("counts", {}).get("expected", len(run.records))
    _, metrics = score_run(list(run.records.values()), expected=expected)
    recomputed = {key: run.metrics.get(key) for key in metrics}
    return differing + unequal(recomputed, metrics, "metrics.json")


def not_scored_again(run: Run, score_run: ScoreRun) -> set[str]:
    """Figures of metrics.json that its records alone do not give."""
    _, metrics = score_run([], expected=0)
    return run.metrics.keys() - metrics.keys()


def unequal(stored: Any, again: Any, where: str) -> list[str]:
    """Leaves that one of both has otherwise or alone; figures may differ by their rounding."""
    if isinstance(again, dict):
        if not isinstance(stored, dict):
            return [f"{where}: {stored!r}, not {again!r}"]
        pairs = {
            key: (stored.get(key), again.get(key))
            for key in [*again, *(stored.keys() - again.keys())]
        }
        return [line for key, pair in pairs.items() for line in unequal(*pair, f"{where}: {key}")]
    both_numbers = all(
        isinstance(v, float | int) and not isinstance(v, bool) for v in (stored, again)
    )
    if stored == again or (both_numbers and abs(stored - again) <= ROUNDING):
        return []
    return [f"{where}: {stored!r}, not {again!r}"]
