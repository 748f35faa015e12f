"""AUROC of matching scores, and the pointing game's figures, with intervals over pictures.

AUROC: the chance that a picture's own caption scores above another picture's, ties half (the
Mann-Whitney form). The pointing game's rule stands in pointing.py. Intervals are percentile
bootstraps over pictures. No torch.

    python -m pytest tests/lavis_apps/test_scoring.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lavis_apps.pointing import ratio_interval
from shared.estimates import by_group, estimate
from shared.significance import FEW_CLUSTERS, N_RESAMPLES, compare_paired

if TYPE_CHECKING:
    import numpy as np

PIECE = 2**22  # numbers of resampled weights held at a time
MATCH, NO_MATCH = "match", "no match"

Record = Mapping[str, Any]


def weighted_auroc(
    scores: Sequence[float], positive: Sequence[bool]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Weights (R, n) of the rows -> AUROC of each resample (R,), nan where a kind drew none."""
    import numpy as np

    kinds = np.asarray(positive, dtype=bool)
    if kinds.all() or not kinds.any():
        return None
    order = np.argsort(np.asarray(scores), kind="stable")
    kinds = kinds[order]
    ordered_scores = np.asarray(scores)[order]
    starts = np.flatnonzero(np.r_[True, ordered_scores[1:] != ordered_scores[:-1]])

    def of(weights: np.ndarray) -> np.ndarray:
        ordered = weights[:, order]
        right = np.add.reduceat(ordered * kinds, starts, axis=1)  # (R, groups of equal scores)
        wrong = np.add.reduceat(ordered * ~kinds, starts, axis=1)
        below = np.cumsum(wrong, axis=1) - wrong
        with np.errstate(invalid="ignore", divide="ignore"):
            return (right * (below + 0.5 * wrong)).sum(1) / (right.sum(1) * wrong.sum(1))

    return of


def bootstrap_rows(
    figure: Callable[[np.ndarray], np.ndarray],
    clusters: Sequence[Any],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> tuple[float | None, float | None, str | None]:
    """95 % percentile limits of `figure` (weights of the rows (R, n) -> (R,)) when whole clusters
    are drawn, and a note. Resamples without a figure are left out."""
    import numpy as np

    codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)[1]
    number = int(codes.max()) + 1
    if number < 2:
        return None, None, "one picture: no interval"
    rng = np.random.default_rng(seed)
    values, left = [], n_resamples
    while left:
        rows = min(left, max(1, PIECE // len(codes)))
        draws = rng.multinomial(number, np.full(number, 1 / number), size=rows)  # (R, C)
        values.append(figure(draws[:, codes].astype(float)))
        left -= rows
    found = np.concatenate(values)
    found = found[np.isfinite(found)]
    note = f"only {number} pictures: the interval is too narrow" if number < FEW_CLUSTERS else None
    if not len(found) or found.max() - found.min() <= 1e-12:
        return None, None, note or "every resample has the same figure: no interval"
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high), note


def auroc_estimate(
    scores: Sequence[float], positive: Sequence[bool], pictures: Sequence[Any], seed: int = 0
) -> dict[str, Any]:
    """In percent with n and interval, null with a reason where one of both kinds is missing."""
    of = weighted_auroc(scores, positive)
    if of is None:
        return {"value": None, "n": len(scores), "reason": "pairs of both kinds are needed"}

    def in_percent(weights: np.ndarray) -> np.ndarray:
        return 100 * of(weights)

    value = float(in_percent(_ones(len(scores)))[0])
    low, high, note = bootstrap_rows(in_percent, pictures, seed=seed)
    return _figure(value, low, high, len(scores), pictures, note, digits=2)


def ordered_scores(rows: Sequence[Record], key: str) -> list[float]:
    """The rows' scores; an error has no place in their order, so that a true pair with an error
    counts as the lowest, a false one as the highest."""
    worst = {True: float("-inf"), False: float("inf")}
    return [worst[row["positive"]] if row[key] is None else row[key] for row in rows]


def score_matching(
    records: Sequence[Record], seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows (`score`: rightly told whether they match, at ITM 0.5) and figures.

    The headline is the AUROC of the ITM probability, beside it that of the ITC cosine.
    """
    rows = []
    for record in records:
        ok, truth = record["status"] == "ok", record["references"][0]
        rows.append({
            "sample_id": record["sample_id"], "image_id": record["image_id"],
            "question_type": record["question_type"], "answer_type": record["answer_type"],
            "score": float(ok and record["answer"] == truth),
            "positive": truth == MATCH,
            "itm": record["itm"] if ok else None, "itc": record["itc"] if ok else None,
        })  # fmt: skip
    figures = {}
    for key in ("itm", "itc"):
        kinds, pictures = [r["positive"] for r in rows], [r["image_id"] for r in rows]
        figures[key] = auroc_estimate(ordered_scores(rows, key), kinds, pictures, seed)
    right = [row["score"] for row in rows]
    pictures = [row["image_id"] for row in rows]
    return rows, {
        "metric": "AUROC of the ITM probability, own caption against another picture's",
        "accuracy": figures["itm"],
        "auroc": figures,
        "accuracy_at_half": estimate(right, pictures, "no pair"),
        "per_answer_type": by_group(rows, lambda row: row["answer_type"]),
    }


def score_localization(
    records: Sequence[Record], seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows (`score` 1 for a hit) and figures of the pointing game; an error is a miss.

    The ratio of hits and boxes' share flatters: objects stand out, so a map that ignores its text
    is above 1 too. `named_against_others` tells whether it follows the text.
    """
    rows = [
        {
            "sample_id": r["sample_id"], "image_id": r["image_id"],
            "question_type": r["question_type"], "answer_type": r["answer_type"],
            "score": r["hit"] if r["status"] == "ok" else 0.0,
            "chance": r["chance"], "energy": r.get("energy"), "elsewhere": r.get("elsewhere"),
        }
        for r in records
    ]  # fmt: skip
    hits, shares = [row["score"] for row in rows], [row["chance"] for row in rows]
    pictures = [row["image_id"] for row in rows]
    known = [row for row in rows if row["energy"] is not None]
    nothing = "no category in a picture"
    return rows, {
        "metric": "pointing game",
        "accuracy": estimate(hits, pictures, nothing),
        "boxes_share": estimate(shares, pictures, nothing),
        "ratio": _ratio(hits, shares, pictures, seed),
        "named_against_others": named_against_others(rows, seed),
        "energy": estimate(
            [row["energy"] for row in known], [row["image_id"] for row in known], "no map"
        ),
        "per_answer_type": by_group(rows, lambda row: row["answer_type"]),
    }


def _ratio(
    hits: Sequence[float], shares: Sequence[float], pictures: Sequence[Any], seed: int
) -> dict[str, Any]:
    """Hits over the boxes' share of the area, 1 = no better than pointing anywhere."""
    if not hits:
        return {"value": None, "n": 0, "reason": "no category in a picture"}
    low, high, note = ratio_interval(hits, shares, pictures, seed=seed)
    value = sum(hits) / sum(shares)
    return _figure(value, low, high, len(hits), pictures, note, digits=3)


def named_against_others(rows: Sequence[Record], seed: int) -> dict[str, dict[str, Any]]:
    """Of pictures with several categories, in percent: hits on the category that the text names,
    the same maps' hits on the others (`pointing.elsewhere`), and the difference, 0 for a map that
    ignores its text. Errors have no map and are left out."""
    known = [row for row in rows if row["elsewhere"] is not None]
    pictures = [row["image_id"] for row in known]
    named, others = ([row[key] for row in known] for key in ("score", "elsewhere"))
    reason = "no map of a picture with several categories"
    figures = {
        "named": estimate(named, pictures, reason),
        "others": estimate(others, pictures, reason),
        "difference": {"value": None, "n": 0, "reason": reason},
    }
    if known:
        found = compare_paired(others, named, pictures, seed=seed)
        low, high = (None if v is None else 100 * v for v in (found.low, found.high))
        figures["difference"] = _figure(
            100 * found.difference, low, high, found.n, pictures,
            found.note and found.note.replace("cluster", "picture"), digits=2,
        )  # fmt: skip
    return figures


def _figure(
    value: float, low: float | None, high: float | None, n: int, pictures: Sequence[Any],
    note: str | None, *, digits: int,
) -> dict[str, Any]:  # fmt: skip
    """As `estimate` has it; a percentile interval of few pictures may leave out its own figure."""
    return {
        "value": round(value, digits) + 0.0,  # no -0.0
        "low": None if low is None else round(min(low, value), digits) + 0.0,
        "high": None if high is None else round(max(high, value), digits) + 0.0,
        "n": n,
        "n_pictures": len(set(pictures)),
    } | ({"note": note} if note else {})


def _ones(n: int) -> np.ndarray:
    import numpy as np

    return np.ones((1, n))
