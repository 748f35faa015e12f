"""Two runs of captions or more as one JSON-able dict: every metric, every pair's difference.

The pictures that all runs hold are scored anew, as CIDEr depends on which are scored together.
Differences are those of `shared.caption_score.compare_captions`, in the metrics' own units; the
p-values of the headlines (BLEU-4 and CIDEr) are adjusted by Holm's method over both and over all
pairs. No torch.

    python -m pytest tests/shared/test_caption_runs.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

from shared.caption_runs import (
    HEADLINES,
    METEORS,
    candidates_of,
    named,
    references_of,
    score_run,
)
from shared.caption_score import compare_captions
from shared.comparison import (
    CARDS,
    describe,
    drawn,
    is_unusable,
    pair_up,
    strata,
    synthetic_part,
    trained_on_scored,
)
from shared.comparison_many import common_questions
from shared.runs import Run
from shared.significance import holm


def rescored(runs: Sequence[Run], seed: int = 0) -> list[Run]:
    """The runs with the pictures that all of them hold, scored over these; `seed` of intervals.

    Raises UserError when there is none, and for more runs than a page can show.
    """
    again = []
    for run in common_questions(runs):
        rows, metrics = score_run(list(run.records.values()), expected=len(run.records), seed=seed)
        scored = dict(zip(run.records, rows, strict=True))
        again.append(replace(run, scored=scored, metrics={**run.metrics, **metrics}))
    return again


def compare_all_captions(
    runs: Sequence[Run], *, names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """The content of `comparison.json`; `runs` as `rescored` gives them, the base first.

    `seed` draws the gallery and the resamples. Lists of figures are in the order of the runs.
    """
    pairs = [
        {"first": first, "second": second,
         "metrics": _differences(runs[first], runs[second], seed)}
        for first, second in combinations(range(len(runs)), 2)
    ]  # fmt: skip
    heads = [pair["metrics"][name] for pair in pairs for name in HEADLINES
             if name in pair["metrics"]]  # fmt: skip
    for row, p in zip(heads, holm([row["p_value"] for row in heads]), strict=True):
        row["p_holm"] = None if p is None else float(f"{p:.6g}")
    return {
        "task": "caption",
        "runs": [{**describe(run), "label": name} for run, name in zip(runs, names, strict=True)],
        "metric": runs[0].metrics["metric"],
        "seed": seed,
        "synthetic": {part: any(synthetic_part(run, part) for run in runs)
                      for part in ("data", "model")},
        "n_pictures": len(runs[0].records),
        "trained_on_scored": [trained_on_scored(run) for run in runs],
        "captions": [run.metrics["captions"] for run in runs],
        "counts": [run.metrics["counts"] for run in runs],
        "pairs": pairs,
        "gallery": gallery(runs, seed),
    }  # fmt: skip


def _differences(base: Run, tuned: Run, seed: int) -> dict[str, dict[str, Any]]:
    """Metric -> the paired comparison, second minus first, BLEU first."""
    records = [list(run.records.values()) for run in (base, tuned)]
    stored = [run.metrics["captions"]["corpus"] for run in (base, tuned)]
    found = compare_captions(
        references_of(records[0]),
        *map(candidates_of, records),
        meteor=any(name in figures for figures in stored for name in METEORS),
        seed=seed,
    )
    return {name: asdict(found[name]) for name in named(found)}


def gallery(runs: Sequence[Run], seed: int) -> dict[str, dict[str, Any]]:
    """Pictures to show: what got better or worse from the first run to the last by its own CIDEr,
    and where any run has an error, an empty caption or a cut one."""
    pairs = pair_up(runs[0], runs[-1])
    found = strata(pairs, seed)
    found.pop("confident_errors", None)  # a caption is not simply wrong
    unusable = [p for p in pairs if any(is_unusable(run.records[p.sample_id]) for run in runs)]
    found["unusable"] = len(unusable), drawn(unusable, CARDS, seed)
    return {
        name: {"total": total, "shown": [pair.sample_id for pair in chosen]}
        for name, (total, chosen) in found.items()
    }
