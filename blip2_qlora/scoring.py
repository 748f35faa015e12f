"""From prediction records to `scored.jsonl` and `metrics.json`: a pure function of the records.

The headline is the official VQA accuracy (protocol official-2021); the two other protocols stand
beside it, labelled with who publishes under them. Where a question has another number of references
than ten, all are scored by exact match, and `metric_reason` says so. Errors count as wrong in the
headline and are counted beside it. A metric with nothing to divide by is null with a reason. No
torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.estimates import by_group, estimate
from shared.options import UserError, read_json, write_json
from shared.runs import Run
from shared.verification import verify
from shared.vqa_score import PUBLISHED_UNDER, normalise_answer, vqa_accuracies
from shared.vqav2 import N_ANNOTATORS, Question, annotations_file

HEADLINE = "official-2021"

Record = Mapping[str, Any]


def score_record(record: Record) -> dict[str, Any]:
    """One line of `scored.jsonl`. `score` is the headline (0..1), null without references.

    An error or a missing answer scores 0.
    """
    references = record["references"]
    answer = record["answer"] if record["status"] == "ok" else None
    scores: dict[str, float | None] = dict.fromkeys(PUBLISHED_UNDER)
    exact = None
    if references:
        majority = Counter(references).most_common(1)[0][0]
        exact = int(answer is not None and normalise_answer(answer) == normalise_answer(majority))
    if len(references) == N_ANNOTATORS:
        scores = (
            dict.fromkeys(PUBLISHED_UNDER, 0.0)
            if answer is None
            else vqa_accuracies(answer, references)
        )
    return {
        "sample_id": record["sample_id"],
        "image_id": record["image_id"],
        "question_type": record["question_type"],
        "answer_type": record["answer_type"],
        "score": exact if scores[HEADLINE] is None else scores[HEADLINE],
        "scores": scores,
        "exact_match": exact,
    }


def score_run(records: Sequence[Record], *, expected: int) -> tuple[list[dict], dict[str, Any]]:
    """Scored rows and metrics of a run that should hold `expected` records."""
    scored = [score_record(record) for record in records]
    with_score = [row for row in scored if row["score"] is not None]
    clusters = [row["image_id"] for row in with_score]
    official = [row for row in with_score if row["scores"][HEADLINE] is not None]
    is_official = len(official) == len(with_score) > 0
    if not is_official:  # rows with ten answers among others: one metric for all of them
        for row in with_score:
            row["score"] = row["exact_match"]
    ok = {record["sample_id"] for record in records if record["status"] == "ok"}
    answered = [row for row in with_score if row["sample_id"] in ok]
    metrics: dict[str, Any] = {
        "metric": f"VQA accuracy ({HEADLINE})" if is_official else "exact match",
        "metric_reason": why_exact_match(
            [(record["sample_id"], len(record["references"])) for record in records]
        ),
        "accuracy": estimate([row["score"] for row in with_score], clusters),
        "protocols": {
            name: {
                **estimate(
                    [row["scores"][name] for row in official],
                    [row["image_id"] for row in official],
                ),
                "published_under_it": who,
            }
            for name, who in PUBLISHED_UNDER.items()
        }
        if is_official
        else None,
        "exact_match": estimate([row["exact_match"] for row in with_score], clusters),
        "per_answer_type": by_group(scored, lambda row: row["answer_type"]),
        "per_question_type": by_group(scored, lambda row: row["question_type"]),
        "excluding_errors": estimate(
            [row["score"] for row in answered], [row["image_id"] for row in answered]
        ),
        "counts": {
            "expected": expected,
            "answered": len(ok),
            "errors": sum(record["status"] == "error" for record in records),
            "missing": expected - len(records),
            "empty": sum(record["answer"] == "" for record in records),
            "cut": sum(record["finish_reason"] == "length" for record in records),
        },
    }
    return scored, metrics


def why_exact_match(references: Sequence[tuple[str, int]]) -> str | None:
    """Why VQA accuracy is not the metric, of (sample id, number of references); None where it is.

    One row with nine answers makes exact match the metric of all, so that row is named.
    """
    known = [(key, n) for key, n in references if n]
    other = [(key, n) for key, n in known if n != N_ANNOTATORS]
    if not other:
        return None if known else "no question with references"
    rule = f"VQA accuracy needs {N_ANNOTATORS} reference answers for every question"
    if len(other) == len(known):
        return f"{rule}; none has them"
    key, n = other[0]
    return f"{rule}; {len(other)} of {len(known)} have another number, first: {key} has {n}"


def blind_metrics(data_root: Path, questions: Sequence[Question]) -> dict[str, Any]:
    """The blind baseline on these questions: the commonest train answer of each question type.

    With its accuracy on each answer type and question type, which differs much between them.
    Null with a reason where the train annotations or the references are not there.
    """
    from shared.blind import blind_answers

    with_references = [q for q in questions if len(q.references) == N_ANNOTATORS]
    if not annotations_file(data_root, "train2014").is_file() or not with_references:
        return {"value": None, "n": 0, "reason": "no train annotations, or no references"}
    train = read_json(annotations_file(data_root, "train2014"))["annotations"]
    answers = blind_answers(train)
    scored = [
        {
            "score": vqa_accuracies(answers.get(q.question_type, answers[""]), q.references)[
                HEADLINE
            ],
            "image_id": q.image_id,
            "answer_type": q.answer_type,
            "question_type": q.question_type,
        }
        for q in with_references
    ]
    return {
        **estimate([row["score"] for row in scored], [row["image_id"] for row in scored]),
        "per_answer_type": by_group(scored, lambda row: row["answer_type"]),
        "per_question_type": by_group(scored, lambda row: row["question_type"]),
    }


def write_scores(folder: Path, scored: Sequence[Record], metrics: Mapping[str, Any]) -> None:
    try:
        (folder / "scored.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored),
            encoding="utf-8",
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    write_json(folder / "metrics.json", metrics)


def results_file(split: str, run: str, sample: int | None) -> str:
    """Name of the official results file; a sample's says its size, as no server takes it."""
    part = split if sample is None else f"{split}_sample{sample}"
    return f"v2_OpenEnded_mscoco_{part}_{run}_results.json"


def verify_run(run: Run) -> list[str]:
    """What the folder says otherwise than scoring its records again; empty when all agrees."""
    differing = verify(run, score_run)
    for file in sorted(run.folder.glob("v2_OpenEnded_*_results.json")):
        if read_json(file) != official_results(list(run.records.values())):
            differing.append(f"{file.name}: not the answers of predictions.jsonl")
    return differing


def official_results(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The evaluation server's format; an error is an empty answer there, which scores 0."""
    return [
        {"question_id": int(record["sample_id"]), "answer": record["answer"] or ""}
        for record in records
    ]
