"""Recall of retrieval: ranks of queries, R@1, R@5, R@10 of both directions, mean recall.

TR is text retrieval (a picture asks for its captions), IR picture retrieval (a caption asks for its
picture). A caption of COCO belongs to one picture by its id, and by that the headline goes, as in
BLIP (https://github.com/salesforce/BLIP/blob/main/train_retrieval.py, itm_eval). Ties count
against: a wrong candidate with the score of the right one stands before it, where the original
takes the order that a sort happens to leave. Of equal captions of two pictures no model can tell
whose they are; where a set has them, the same figures that take any equal caption as right stand
beside the headline. No torch.

    python -m pytest tests/lavis_apps/test_scoring.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.estimates import estimate

if TYPE_CHECKING:
    import numpy as np

TR, IR = "TR", "IR"
DIRECTIONS = {TR: "text retrieval: a picture asks", IR: "picture retrieval: a caption asks"}
RECALLS = (1, 5, 10)
NOT_RANKED = -100.0  # score of what is not among the first k_test, as in BLIP
NO_QUERY = "no query of this kind"
# What a record's rank is by: the headline's own, ITC alone, and both with equal captions as right.
RANKS = ("rank", "rank_itc", "rank_equal", "rank_itc_equal")

Record = Mapping[str, Any]


def rank_of(scores: np.ndarray, right: np.ndarray) -> int | None:
    """1 + the number of wrong candidates that score at least as high as the best right one.

    `scores` (C,), `right` (C,) of bool. None where nothing is right or a score is no number.
    """
    import numpy as np

    if not right.any() or not np.isfinite(scores).all():
        return None
    return 1 + int((scores[~right] >= scores[right].max()).sum())


def first_by(scores: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, highest first; of equals the wrong ones come first, then
    the lower index. `scores` and `right` as in `rank_of`."""
    import numpy as np

    k = min(k, len(scores))
    if k < len(scores):  # only those that may be among them need a full sort
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        among = np.flatnonzero(scores >= limit)
    else:
        among = np.arange(len(scores))
    return among[np.lexsort((among, right[among], -scores[among]))][:k]


def recall_figures(rows: Sequence[Record], key: str) -> dict[str, Any]:
    """`TR` and `IR` with `R@1`, `R@5`, `R@10`, `mean`, and `r_mean` of all six, as estimates.

    `rows` have `answer_type` (TR or IR), `image_id` and the rank under `key`, None for a miss. In
    percent, with bootstrap intervals over pictures (a picture with its captions is drawn).
    """
    figures: dict[str, Any] = {}
    for direction in DIRECTIONS:
        own = [row for row in rows if row["answer_type"] == direction]
        pictures = [row["image_id"] for row in own]
        figures[direction] = {
            f"R@{k}": estimate([hit(row, key, k) for row in own], pictures, NO_QUERY)
            for k in RECALLS
        } | {"mean": estimate([mean_hit(row, key) for row in own], pictures, NO_QUERY)}
    figures["r_mean"] = mean_recall(rows, key)
    return figures


def hit(row: Record, key: str, k: int) -> float:
    return float(row[key] is not None and row[key] <= k)


def mean_hit(row: Record, key: str) -> float:
    """Of one query: the mean over R@1, R@5 and R@10."""
    return sum(hit(row, key, k) for k in RECALLS) / len(RECALLS)


def mean_recall(rows: Sequence[Record], key: str) -> dict[str, Any]:
    """The mean of the six recalls in percent, null where a direction has no query."""
    shares = picture_shares(rows, key)
    figure = estimate(list(shares.values()), list(shares), "queries of both kinds are needed") | {
        "n": len(rows) if shares else 0
    }
    if figure["value"] is not None and figure["high"] is not None:
        figure["high"] = min(100.0, figure["high"])  # a picture of many captions counts above 1
    return figure


def picture_shares(rows: Sequence[Record], key: str) -> dict[Any, float]:
    """Picture -> what it gives to the mean recall, so that their mean is that recall (0..1).

    Half of a picture's own mean hit and half of its captions' summed ones, each direction weighted
    as its queries are many: with several captions a picture, IR's queries outnumber TR's, and the
    mean recall still weighs both directions alike. Empty where a direction has no query.
    """
    numbers = {d: sum(row["answer_type"] == d for row in rows) for d in DIRECTIONS}
    if not all(numbers.values()):
        return {}
    pictures = {row["image_id"] for row in rows}
    shares: dict[Any, float] = defaultdict(float)
    for row in rows:
        weight = len(pictures) / numbers[row["answer_type"]]
        shares[row["image_id"]] += 0.5 * weight * mean_hit(row, key)
    return dict(shares)


def chance(rows: Sequence[Record], key: str = "n_right") -> dict[str, float | None]:
    """R@1 in percent of a random order, per direction: the mean share of right candidates."""
    found: dict[str, float | None] = {}
    for direction in DIRECTIONS:
        own = [r for r in rows if r["answer_type"] == direction and r.get("n_candidates")]
        shares = [row[key] / row["n_candidates"] for row in own]
        found[direction] = round(100 * sum(shares) / len(shares), 4) if shares else None
    return found


def score_retrieval(records: Sequence[Record]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows (`score` is R@1 of the query) and figures of the records of both directions.

    An error, of a picture that can't be read or of a score that is no number, is a miss.
    """
    rows = []
    for record in records:
        ok = record["status"] == "ok"
        ranks = {key: record.get(key) if ok else None for key in RANKS}
        rows.append({
            "sample_id": record["sample_id"], "image_id": record["image_id"],
            "question_type": record["question_type"], "answer_type": record["answer_type"],
            "score": hit(ranks, "rank", 1), **ranks,
        })  # fmt: skip
    reranked = any(record.get("reranked") for record in records)
    equal = sum(record.get("n_right_equal", 0) > record.get("n_right", 0) for record in records)
    metrics: dict[str, Any] = {
        "metric": "mean recall (R@1, R@5, R@10 of both directions), "
        + ("ITM + ITC" if reranked else "ITC"),
        "accuracy": mean_recall(rows, "rank"),
        "retrieval": recall_figures(rows, "rank"),
        "retrieval_itc": recall_figures(rows, "rank_itc") if reranked else None,
        "chance": chance(records),
        "equal_captions": None,
    }
    if equal:
        metrics["equal_captions"] = {
            "n_queries": equal,
            "retrieval": recall_figures(rows, "rank_equal"),
            "retrieval_itc": recall_figures(rows, "rank_itc_equal") if reranked else None,
            "chance": chance(records, "n_right_equal"),
        }
    return rows, metrics
