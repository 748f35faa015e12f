"""Paired tests on the same pictures: two protocols of a run, two scores, or two runs.

Known/unknown decisions are right or wrong per picture: McNemar's exact test, or sign flips over
pictures where several crops share one (`shared.significance`). AUROCs of two scores: the paired
bootstrap of `llava_openset.intervals`. The p-values of one table are a family, adjusted by Holm's
method. Units: shares 0..1.

    python -m pytest tests/llava_openset/test_compare.py

Reads and writes nothing. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from llava_openset.intervals import auroc_difference
from llava_openset.run_reading import LEFT_OUT, UNKNOWN, OpenSetRun, Row, columns
from shared.significance import compare_paired, holm

NO_THRESHOLD = "no decision: no threshold was chosen"


def decision_is_right(row: Row) -> float:
    """Whether known was called known, by whatever class, or unknown unknown; an error is wrong."""
    if row["decision"] is None:
        return 0.0
    return float((row["decision"] != UNKNOWN) == row["known"])


def picture_id(row: Row) -> str:
    """What the crops of one picture share, and a picture asked twice."""
    return str(row["image_id"])


def row_key(row: Row) -> tuple[str, bool]:
    """`two_query` asks a known picture twice, once without its own class in the list."""
    return row["sample_id"], row.get("query") == LEFT_OUT


def common_rows(sides: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Of each side the rows whose question all sides have, in the first one's order."""
    by_id = [{row_key(row): row for row in rows} for rows in sides]
    keys = [key for key in by_id[0] if all(key in rows for rows in by_id[1:])]
    return [[rows[key] for key in keys] for rows in by_id]


def decision_test(base: Sequence[Row], other: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Share of right known/unknown decisions, other minus base, on the questions both have."""
    return _share_test(*common_rows([base, other]), decision_is_right, seed)


def naming_test(base: Sequence[Row], other: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Closed-set accuracy, other minus base: known samples, their class before any rejection."""
    known = [[row for row in rows if row["known"]] for rows in (base, other)]
    return _share_test(*common_rows(known), lambda row: float(row["correct_class"]), seed)


def _share_test(
    base: Sequence[Row], other: Sequence[Row], is_right: Callable[[Row], float], seed: int
) -> dict[str, Any]:
    if not base:
        return no_test("no sample in common")
    compared = compare_paired(
        [is_right(row) for row in base],
        [is_right(row) for row in other],
        [picture_id(row) for row in base],
        seed,
    )
    return {
        "difference": compared.difference,
        "low": compared.low,
        "high": compared.high,
        "p_value": compared.p_value,
        "test": compared.test,
        "n": compared.n,
        "n_pictures": compared.n_clusters,
        "wins": compared.wins,
        "losses": compared.losses,
        "detectable": compared.minimum_detectable_difference,
        "note": compared.note,
    }


def auroc_test(
    base: Sequence[Row],
    other: Sequence[Row],
    scores: tuple[str, str],
    known_classes: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC of the other side's score minus the base's, on the samples both have."""
    base, other = common_rows([base, other])
    ours, theirs = (
        columns(rows, score, known_classes)
        for rows, score in zip((base, other), scores, strict=True)
    )
    if not base:
        return no_test("no sample in common")
    compared = auroc_difference(
        ours.scores,
        theirs.scores,
        ours.labels,
        seed=seed,
        clusters=[picture_id(row) for row in base],
    )
    return {
        "difference": compared.difference,
        "low": compared.low,
        "high": compared.high,
        "p_value": compared.p_value,
        "test": "paired-bootstrap",
        "n": compared.n_known + compared.n_unknown,
        "n_known": compared.n_known,
        "n_unknown": compared.n_unknown,
        "note": compared.note,
    }


def no_test(note: str) -> dict[str, Any]:
    """The result where a test is not possible; `note` says why."""
    return {"difference": None, "low": None, "high": None, "p_value": None, "test": None, "n": 0,
            "note": note}  # fmt: skip


def adjusted(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests with `p_holm`, adjusted over all of them as one family."""
    values = holm([test["p_value"] for test in tests])
    return [test | {"p_holm": p} for test, p in zip(tests, values, strict=True)]


def families_within(run: OpenSetRun, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The three families of one run, each test with the names of its `base` and `other` side.

    - `decisions`: every two protocols, by their own known/unknown decisions.
    - `auroc`: every two protocols, by their headline scores.
    - `auroc_scores`: in each protocol, every other score against the headline, on all its rows.

    Two protocols are compared on one row a picture, asked with the whole list.
    """
    keys = list(run.protocols)
    rows = {key: run.test_rows(key, left_out=False) for key in keys}
    headline = {key: run.protocols[key]["headline"] for key in keys}

    def decisions(base: str, other: str) -> dict[str, Any]:
        if {base, other} & set(run.without_threshold):
            return no_test(NO_THRESHOLD)
        return decision_test(rows[base], rows[other], seed)

    def aurocs(base: str, other: str) -> dict[str, Any]:
        scores = headline[base], headline[other]
        return auroc_test(rows[base], rows[other], scores, run.known_classes, seed)

    scores = []
    for key in keys:
        every = run.test_rows(key)
        scores += [
            {"protocol": key, "base": headline[key], "other": score}
            | auroc_test(every, every, (headline[key], score), run.known_classes, seed)
            for score in run.protocols[key]["scores"]
            if score != headline[key]
        ]
    return {
        "decisions": _pairs(keys, decisions),
        "auroc": _pairs(keys, aurocs),
        "auroc_scores": adjusted(scores),
    }


def _pairs(
    names: Sequence[str], test: Callable[[str, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    return adjusted(
        [
            {"base": base, "other": other} | test(base, other)
            for base, other in combinations(names, 2)
        ]
    )
