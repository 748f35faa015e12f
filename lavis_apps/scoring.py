"""From prediction records to `scored.jsonl` and `metrics.json`: pure functions of the records.

caption: BLEU, METEOR, ROUGE-L, CIDEr. vqa: official VQA accuracy. retrieval: recalls
(scoring_retrieval.py). classification: top-1, top-5, per class. matching, localization: AUROC and
pointing game (scoring_itm.py). An error counts as wrong and is counted beside the headline; a
figure with nothing to divide by is null with a reason. No torch.

    python lavis_apps/evaluate.py --toy --task vqa      # scores again without the model, when done
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lavis_apps.scoring_itm import score_localization, score_matching
from lavis_apps.scoring_retrieval import score_retrieval
from shared import caption_runs
from shared.estimates import by_group, estimate
from shared.vqa_score import PUBLISHED_UNDER, normalise_answer, vqa_accuracies
from shared.vqav2 import N_ANNOTATORS

HEADLINE = "official-2021"
TOP = (1, 5)  # of classification
MOST_CLASSES = 100  # of a confusion table in metrics.json

Record = Mapping[str, Any]
Scored = tuple[list[dict[str, Any]], dict[str, Any]]


def score_task(
    task: str,
    records: Sequence[Record],
    *,
    expected: int,
    classes: Sequence[str] = (),
    meteor: bool = True,
    seed: int = 0,
) -> Scored:
    """Rows and metrics of the task's records; `seed` of the intervals that are drawn anew."""
    if task == "caption":
        return caption_metrics(records, expected=expected, meteor=meteor, seed=seed)
    score = {
        "vqa": vqa_metrics,
        "retrieval": score_retrieval,
        "classification": lambda rows: classification_metrics(rows, classes),
        "matching": lambda rows: score_matching(rows, seed),
        "localization": lambda rows: score_localization(rows, seed),
    }[task]
    rows, metrics = score(records)
    answered = [record for record in records if record["status"] == "ok"]
    n_errors = sum(record["status"] == "error" for record in records)
    without = score(answered)[1] if n_errors else metrics
    found = {
        "task": task,
        **metrics,
        "excluding_errors": without["accuracy"],
        "counts": {
            "expected": expected,
            "answered": len(answered),
            "errors": n_errors,
            "missing": expected - len(records),
            "empty": sum(record["answer"] == "" for record in records),
            "cut": sum(record["finish_reason"] == "length" for record in records),
        },
        "selection": {"metric": metrics["metric"], "value": metrics["accuracy"]["value"]},
    }  # fmt: skip
    return rows, found


def caption_metrics(
    records: Sequence[Record], *, expected: int, meteor: bool = True, seed: int = 0
) -> Scored:
    """`shared.caption_runs.score_run`, and CIDEr as the figure of the best checkpoint."""
    rows, metrics = caption_runs.score_run(records, expected=expected, meteor=meteor, seed=seed)
    corpus = (metrics.get("captions") or {"corpus": {}})["corpus"]
    return rows, metrics | {"selection": {"metric": "CIDEr", "value": corpus.get("CIDEr")}}


def vqa_metrics(records: Sequence[Record]) -> Scored:
    """Official VQA accuracy where every question has ten references, else exact match with the
    commonest one; the other protocols beside it, per answer type and question type."""
    rows = [_vqa_row(record) for record in records]
    known = [row for row in rows if row["score"] is not None]
    others = [row["sample_id"] for row in known if row["scores"][HEADLINE] is None]
    is_official = bool(known) and not others
    reason = None
    if not known:
        reason = "no question with references"
    elif others:
        reason = (
            f"VQA accuracy needs {N_ANNOTATORS} reference answers for every question; "
            f"{len(others)} of {len(known)} have another number, first: {others[0]}"
        )
        for row in known:
            row["score"] = row["exact_match"]
    pictures = [row["image_id"] for row in known]
    protocols = {
        name: {**estimate([row["scores"][name] for row in known], pictures),
               "published_under_it": who}
        for name, who in PUBLISHED_UNDER.items()
    } if is_official else None  # fmt: skip
    return rows, {
        "metric": f"VQA accuracy ({HEADLINE})" if is_official else "exact match",
        "metric_reason": reason,
        "accuracy": estimate([row["score"] for row in known], pictures),
        "protocols": protocols,
        "exact_match": estimate([row["exact_match"] for row in known], pictures),
        "per_answer_type": by_group(rows, lambda row: row["answer_type"]),
        "per_question_type": by_group(rows, lambda row: row["question_type"]),
    }


def _vqa_row(record: Record) -> dict[str, Any]:
    references = record["references"]
    answer = record["answer"] if record["status"] == "ok" else None
    scores: dict[str, float | None] = dict.fromkeys(PUBLISHED_UNDER)
    exact = None
    if references:
        majority = Counter(references).most_common(1)[0][0]
        exact = int(answer is not None and normalise_answer(answer) == normalise_answer(majority))
    if len(references) == N_ANNOTATORS:
        scores = dict.fromkeys(PUBLISHED_UNDER, 0.0)
        if answer is not None:
            scores = vqa_accuracies(answer, references)
    return {
        "sample_id": record["sample_id"],
        "image_id": record["image_id"],
        "question_type": record["question_type"],
        "answer_type": record["answer_type"],
        "score": exact if scores[HEADLINE] is None else scores[HEADLINE],
        "scores": scores,
        "exact_match": exact,
    }


def classification_metrics(records: Sequence[Record], classes: Sequence[str] = ()) -> Scored:
    """Top-1 and top-5 accuracy, macro accuracy, precision and recall per class, confusion.

    A record's `rank` is that of its true class, where a wrong class of the same probability stands
    before it. With a tie at the top the answer is the wrong one. Macro: the mean recall of the
    classes that have pictures. `classes` gives the order; without it, that of their names.
    """
    rows = []
    for record in records:
        rank = record.get("rank") if record["status"] == "ok" else None
        rows.append({
            "sample_id": record["sample_id"], "image_id": record["image_id"],
            "question_type": record["question_type"], "answer_type": record["answer_type"],
            "score": float(rank == 1), "rank": rank,
        })  # fmt: skip
    pictures = [row["image_id"] for row in rows]
    nothing = "no picture with a class"
    top = {
        f"top-{k}": estimate(
            [float(row["rank"] is not None and row["rank"] <= k) for row in rows], pictures, nothing
        )
        for k in TOP
    }
    names = list(classes) or sorted({record["references"][0] for record in records})
    table = Counter(
        (record["references"][0], record["answer"] if record["status"] == "ok" else None)
        for record in records
    )
    per_class = _per_class(rows, table, names)
    recalls = [row["recall"] for row in per_class.values() if row["recall"] is not None]
    said = sorted({answer for _, answer in table if answer is not None and answer not in names})
    columns = [*names, *said, *([None] if any(answer is None for _, answer in table) else [])]
    return rows, {
        "metric": "top-1 accuracy",
        "accuracy": top["top-1"],
        "top": top,
        "n_classes": len(names),
        "chance": round(100 / len(names), 4) if names else None,
        "macro": {"value": round(sum(recalls) / len(recalls), 2), "n": len(recalls)}
        if recalls
        else {"value": None, "n": 0, "reason": nothing},
        "per_class": per_class,
        "confusion": {
            "rows": names,
            "columns": ["(error)" if name is None else name for name in columns],
            "counts": [[table[name, other] for other in columns] for name in names],
        }
        if len(names) <= MOST_CLASSES
        else None,
    }


def _per_class(
    rows: Sequence[Record], table: Mapping[tuple[str, str | None], int], names: Sequence[str]
) -> dict[str, Any]:
    """Recall (with its interval) and precision in percent, null for a class without a picture, or
    never said."""
    recalls = by_group(rows, lambda row: row["answer_type"])
    said: Counter[str | None] = Counter()
    for (_, answer), count in table.items():
        said[answer] += count
    found = {}
    for name in names:
        own = recalls.get(name, {})
        precision = round(100 * table[name, name] / said[name], 2) if said[name] else None
        found[name] = {
            "n": own.get("n", 0), "said": said[name],
            "recall": own.get("value"), "low": own.get("low"), "high": own.get("high"),
            "precision": precision,
        }  # fmt: skip
    return found
