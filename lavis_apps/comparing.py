"""Two runs of evaluate.py of one task: the paired difference of every figure of the task.

Retrieval: the mean recall, also by ITC alone and with equal captions as right, and the recalls of
both directions, captions of a picture together with it. Classification: top-1 (McNemar's test, a
picture a sample) and top-5. Matching: AUROC, drawn at the same pictures. Localization has its hits
on the page alone. Differences are second minus first, with intervals over pictures; p-values are
adjusted by Holm's method over all rows but the first. No torch.

    python -m pytest tests/lavis_apps/test_compare.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lavis_apps.scoring_itm import bootstrap_rows, ordered_scores, weighted_auroc
from lavis_apps.scoring_retrieval import DIRECTIONS, RANKS, RECALLS, hit, picture_shares
from shared.report import Report, Section, Table, interval, p_value, percent, points
from shared.report import Row as PageRow
from shared.runs import Run
from shared.significance import PairedComparison, compare_paired, holm

Row = dict[str, Any]
Words = Mapping[str, str]
RANK_NAMES = {
    "rank": "", "rank_itc": ", ITC alone", "rank_equal": ", equal captions as right",
    "rank_itc_equal": ", equal captions as right, ITC alone",
}  # fmt: skip


def metric_rows(base: Run, tuned: Run, seed: int = 0) -> list[Row]:
    """One row a figure of the task; none for vqa, caption and localization.

    `p_holm` is Holm's over all rows but the first, the one that a comparison is made for.
    """
    both = [key for key in base.scored if key in tuned.scored]
    rows = {
        "retrieval": _retrieval, "classification": _classification, "matching": _matching,
        "localization": lambda *_: [],
    }.get(str(base.config.get("task")), lambda *_: [])(base, tuned, both, seed)  # fmt: skip
    known = [row["p_value"] for row in rows]
    adjusted = [*known[:1], *holm(known[1:])]
    return [row | {"p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def mean_recall_difference(base: Run, tuned: Run, key: str, seed: int) -> PairedComparison:
    """Of the mean recalls, 0..1; a picture with its captions is one cluster and one value."""
    both = [name for name in base.scored if name in tuned.scored]
    shares = [picture_shares([run.scored[name] for name in both], key) for run in (base, tuned)]
    pictures = list(shares[0])
    return compare_paired(*([own[p] for p in pictures] for own in shares), pictures, seed=seed)


def _retrieval(base: Run, tuned: Run, both: Sequence[str], seed: int) -> list[Row]:
    rows = []
    for key in _kept_ranks(base, tuned):
        found = mean_recall_difference(base, tuned, key, seed)
        shares = [picture_shares([run.scored[name] for name in both], key)
                  for run in (base, tuned)]  # fmt: skip
        means = [sum(own.values()) / len(own) for own in shares] if shares[0] else [0.0, 0.0]
        rows.append(_row(f"mean recall{RANK_NAMES[key]}", *means, found))
    for direction in DIRECTIONS:
        own = [name for name in both if base.scored[name]["answer_type"] == direction]
        for k in RECALLS:
            score = partial(hit, key="rank", k=k)
            rows.append(_of_scores(f"{direction} R@{k}", base, tuned, own, score, seed))
    return rows


def _kept_ranks(base: Run, tuned: Run) -> list[str]:
    """What both runs' metrics show: ITC beside re-ranking, equal captions where there are any."""
    runs = (base, tuned)
    shown = {
        "rank": True,
        "rank_itc": all(run.metrics.get("retrieval_itc") for run in runs),
        "rank_equal": all(run.metrics.get("equal_captions") for run in runs),
        "rank_itc_equal": all((run.metrics.get("equal_captions") or {}).get("retrieval_itc")
                              for run in runs),
    }  # fmt: skip
    return [key for key in RANKS if shown[key]]


def _classification(base: Run, tuned: Run, both: Sequence[str], seed: int) -> list[Row]:
    return [
        _of_scores(f"top-{k}", base, tuned, both, partial(hit, key="rank", k=k), seed)
        for k in (1, 5)
    ]


def _matching(base: Run, tuned: Run, both: Sequence[str], seed: int) -> list[Row]:
    rows = []
    pictures = [base.scored[key]["image_id"] for key in both]
    kinds = [base.scored[key]["positive"] for key in both]
    for key, name in (("itm", "AUROC of ITM"), ("itc", "AUROC of ITC")):
        values = [ordered_scores([run.scored[k] for k in both], key) for run in (base, tuned)]
        areas = [weighted_auroc(scores, kinds) for scores in values]
        if None in areas:
            continue
        ones = _ones(len(both))
        first, second = (float(area(ones)[0]) for area in areas)
        low, high, note = bootstrap_rows(
            lambda weights, areas=areas: areas[1](weights) - areas[0](weights),
            pictures, seed=seed,
        )  # fmt: skip
        rows.append({
            "metric": name, "first": first, "second": second, "difference": second - first,
            "low": low, "high": high, "p_value": None, "test": None, "n": len(both),
            "wins": None, "ties": None, "losses": None, "note": note,
        })  # fmt: skip
    return rows


def _of_scores(name: str, base: Run, tuned: Run, keys: Sequence[str], score: Any, seed: int) -> Row:
    values = [[score(run.scored[key]) for key in keys] for run in (base, tuned)]
    pictures = [base.scored[key]["image_id"] for key in keys]
    found = compare_paired(*values, pictures, seed=seed)
    means = [sum(own) / len(own) if own else 0.0 for own in values]
    return _row(name, *means, found)


def _row(name: str, first: float, second: float, found: PairedComparison) -> Row:
    """All values 0..1."""
    return {
        "metric": name, "first": first, "second": second, "difference": found.difference,
        "low": found.low, "high": found.high, "p_value": found.p_value, "test": found.test,
        "n": found.n, "wins": found.wins, "ties": found.ties, "losses": found.losses,
        "note": found.note,
    }  # fmt: skip


def _ones(n: int) -> Any:
    import numpy as np

    return np.ones((1, n))


def with_figures(report: Report, rows: Sequence[Row], seed: int, words: Words) -> Report:
    """The page with the task's figures as its first section, and the first one in its verdict; as
    it is where there are none."""
    if not rows:
        return report
    table = Table(
        header=[words["figure"], words["n"], words["first_value"], words["second_value"],
                words["difference"], words["p_holm"], words["outcomes"]],
        rows=[
            _table_row(row) for row in rows
        ],
        note=words["figures_note"].format(seed=seed),
    )  # fmt: skip
    section = Section("figures", words["figures"], [table])
    verdict = f"{figure_lines(rows[:1], words)[0]}{words['full_stop']}{report.verdict}"
    return replace(report, verdict=verdict, sections=[section, *report.sections])


def _table_row(row: Row) -> PageRow:
    difference = f"{points(_percent(row['difference']))} {_limits(row)}"
    outcomes = "–" if row["wins"] is None else f"{row['wins']} / {row['ties']} / {row['losses']}"
    tone = ""
    if row["p_holm"] is not None and row["p_holm"] <= 0.05 and row["difference"]:
        tone = "good" if row["difference"] > 0 else "bad"
    return PageRow(
        [row["metric"], f"{row['n']:,}", percent(_percent(row["first"])),
         percent(_percent(row["second"])), difference, p_value(row["p_holm"]), outcomes],
        row["n"], tone,
    )  # fmt: skip


def figure_lines(rows: Sequence[Row], words: Words) -> list[str]:
    """The figures for the console."""
    return [
        words["figure_line"].format(
            metric=row["metric"], first=percent(_percent(row["first"])),
            second=percent(_percent(row["second"])),
            difference=points(_percent(row["difference"])), interval=_limits(row),
            p=p_value(row["p_holm"]),
        )
        for row in rows
    ]  # fmt: skip


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _limits(row: Row) -> str:
    return interval(_percent(row["low"]), _percent(row["high"]), signed=True)
