"""Three runs and more as one JSON-able dict: each run's figures, and every pair's difference.

The questions that all runs hold are compared. Each pair has its difference with interval and
paired test (`shared.significance`), the p-values adjusted by Holm's method over the pairs. Two runs
are `shared.comparison.compare`. Units as there: accuracies in percent, differences in percentage
points, p-values in 0..1. No torch.

    python -m pytest tests/shared/test_comparison.py
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from shared.comparison import (
    CARDS,
    CARDS_WITHOUT_SCORES,
    adjust,
    change,
    confidence_figures,
    counts,
    describe,
    is_unusable,
    pair_up,
    reasons_against,
    synthetic_part,
    trained_on_scored,
)
from shared.estimates import by_group, estimate
from shared.options import UserError
from shared.runs import Run
from shared.verification import ScoreRun

MOST_RUNS = 6  # what a chart can tell apart by colour


@dataclass(frozen=True)
class Asked:
    """One question with the records and scored rows of all runs, in their order."""

    sample_id: str
    records: tuple[Mapping[str, Any], ...]
    scored: tuple[Mapping[str, Any], ...]

    @property
    def scores(self) -> list[float | None]:
        return [row["score"] for row in self.scored]


def short_names(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: their folders' names without the parts that all share.

    Parts end at "_", or at "-" where no name has one. Whole names where nothing would remain of
    one, numbered where two folders are named alike.
    """
    separator = "_" if any("_" in run.name for run in runs) else "-"
    parts = [run.name.split(separator) for run in runs]
    start = end = 0
    shortest = min(map(len, parts))
    while start < shortest and len({part[start] for part in parts}) == 1:
        start += 1
    while end < shortest - start and len({part[-1 - end] for part in parts}) == 1:
        end += 1
    names = [separator.join(part[start : len(part) - end]) for part in parts]
    if not all(names):
        names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    return names


def reasons_against_all(runs: Sequence[Run], score_run: ScoreRun) -> list[str]:
    """Why the runs should not be compared: each of them against the first, no reason twice."""
    first = runs[0]
    found: dict[str, None] = {}
    for other in runs[1:]:
        for reason in reasons_against(first, other, score_run):
            of_one_run = reason.startswith((f"{first.name}: ", f"{other.name}: "))
            named = len(runs) == 2 or of_one_run
            found[reason if named else f"{first.name} / {other.name}: {reason}"] = None
    return list(found)


def common_questions(runs: Sequence[Run]) -> list[Run]:
    """The runs with the questions that all of them hold, in the first one's order.

    Raises UserError when there is none, and for more runs than a page can show.
    """
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs: at most {MOST_RUNS} fit on one page")
    keys = [key for key in runs[0].scored if all(key in run.scored for run in runs)]
    if not keys:
        folders = ", ".join(str(run.folder) for run in runs)
        raise UserError(f"{folders} have no question in common")
    return [
        replace(
            run,
            records={key: run.records[key] for key in keys},
            scored={key: run.scored[key] for key in keys},
        )
        for run in runs
    ]


def questions_of(runs: Sequence[Run]) -> list[Asked]:
    """One entry a question; the runs must hold the same ones (`common_questions`)."""
    return [
        Asked(
            key,
            tuple(run.records[key] for run in runs),
            tuple(run.scored[key] for run in runs),
        )
        for key in runs[0].scored
    ]


def compare_all(
    runs: Sequence[Run], *, names: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The content of `comparison.json` of several runs; `seed` draws gallery and resamples.

    Lists of figures are in the order of the runs. Raises UserError as `common_questions` does.
    """
    names = list(names) if names else short_names(runs)
    runs = common_questions(runs)
    asked = questions_of(runs)
    has_scores = {question.sample_id for question in asked if None not in question.scores}
    scored = [
        replace(run, scored={key: run.scored[key] for key in run.scored if key in has_scores})
        for run in runs
    ]
    blind = runs[0].metrics.get("blind")
    if blind and blind["n"] != len(has_scores):  # of other questions than those compared here
        blind = None
    selves = [pair_up(run, run) for run in runs]
    return {
        "runs": [{**describe(run), "label": name} for run, name in zip(runs, names, strict=True)],
        "metric": runs[0].metrics["metric"],
        "seed": seed,
        "synthetic": {part: any(synthetic_part(run, part) for run in runs)
                      for part in ("data", "model")},
        "n": len(has_scores),
        "n_questions": len(asked),
        "n_pictures": len({question.records[0]["image"] for question in asked} - {""}),
        "trained_on_scored": [trained_on_scored(run) for run in runs],
        "overall": [accuracy(run) for run in scored],
        "pairs": pairs_of(scored, seed),
        "per_answer_type": per_type(scored, "answer_type"),
        "per_question_type": per_type(scored, "question_type"),
        "blind": blind,
        "counts": [counts(pairs, "base", run) for pairs, run in zip(selves, runs, strict=True)],
        "confidence": [confidence_figures(pairs, "base") for pairs in selves],
        "gallery": {
            name: {"total": len(rows), "shown": chosen(rows, size, seed)}
            for name, (rows, size) in strata(asked).items()
        },
    }  # fmt: skip


def accuracy(run: Run) -> dict[str, Any]:
    rows = run.scored.values()
    return estimate([row["score"] for row in rows], [row["image_id"] for row in rows])


def pairs_of(runs: Sequence[Run], seed: int) -> list[dict[str, Any]]:
    """`change` of every two runs (second minus first), with `p_holm` over all these pairs."""
    rows = []
    for first, second in combinations(range(len(runs)), 2):
        both = pair_up(runs[first], runs[second])
        rows.append({"first": first, "second": second}
                    | change(both, lambda row: row["score"], seed))  # fmt: skip
    adjust(rows)
    return rows


def per_type(runs: Sequence[Run], key: str) -> dict[str, list[dict[str, Any]]]:
    """Type -> each run's accuracy on it, the largest type first."""
    tables = [by_group(list(run.scored.values()), lambda row: row[key]) for run in runs]
    return {name: [table[name] for table in tables] for name in tables[0]}


def strata(asked: Sequence[Asked]) -> dict[str, tuple[list[Asked], int]]:
    """Name -> (its questions, how many of them to show).

    With references: divided (some run is right, at least half, and some is not), all_wrong (score 0
    in every run), unusable. Without: changed, same, unusable.
    """
    unusable = [q for q in asked if any(map(is_unusable, q.records))]
    scored = [q for q in asked if None not in q.scores]
    if not scored:
        sound = [q for q in asked if all(record["status"] == "ok" for record in q.records)]
        words = [len({record["answer"] for record in q.records}) for q in sound]
        return {
            "changed": ([q for q, n in zip(sound, words, strict=True) if n > 1],
                        CARDS_WITHOUT_SCORES),
            "same": ([q for q, n in zip(sound, words, strict=True) if n == 1],
                     CARDS_WITHOUT_SCORES),
            "unusable": (unusable, CARDS_WITHOUT_SCORES),
        }  # fmt: skip
    return {
        "divided": ([q for q in scored if len({s >= 0.5 for s in q.scores if s is not None}) == 2],
                    2 * CARDS),
        "all_wrong": ([q for q in scored if not any(q.scores)], CARDS),
        "unusable": (unusable, CARDS),
    }  # fmt: skip


def chosen(rows: Sequence[Asked], size: int, seed: int) -> list[str]:
    """Ids of at most `size` of them, drawn at random, in their own order."""
    drawn = random.Random(seed).sample(range(len(rows)), min(size, len(rows)))
    return [rows[i].sample_id for i in sorted(drawn)]
