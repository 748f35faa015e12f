"""From records to `scored.jsonl` and `metrics.json`: a pure function of what the run recorded.

The headline, a score of 0 to 1 for each sample, goes by the task: accuracy of the matched class for
label data, VQA accuracy (official-2021) for questions with ten answers each, exact match for other
questions, token F1 for captions and free text. Beside it: exact match, token F1, caption metrics by
language, class figures, and the log-likelihood of the reference. An error counts as wrong in all of
them and is counted. What has nothing to divide by is null with a reason. No torch.

    python -m pytest tests/qwen_clip_llava_lora/test_scoring.py
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.answer_scores import (
    CLASS_RULE,
    EXACT_MATCH_RULE,
    LANGUAGE_RULE,
    TOKEN_F1_RULES,
    exact_match,
    matched_class,
    token_f1,
)
from shared.caption_score import score_captions
from shared.estimates import by_group, estimate
from shared.significance import N_RESAMPLES, cluster_bootstrap
from shared.vqa_score import PUBLISHED_UNDER, vqa_accuracies
from shared.vqav2 import N_ANNOTATORS

if TYPE_CHECKING:
    import numpy as np

VQA = "official-2021"
HEADLINES = {
    "label": "accuracy of the matched class",
    "vqa": f"VQA accuracy ({VQA})",
    "question": "exact match",
    "caption": "token F1",
    "text": "token F1",
}
NO_CLASS = "(no class)"
PIECE = 2**22  # numbers of a matrix of resamples at a time
N_SHOWN = 20  # of unmatched answers in metrics.json

Record = Mapping[str, Any]
Rows = list[dict[str, Any]]


# A row a sample


def score_records(
    records: Sequence[Record],
    task: str,
    classes: Sequence[str] = (),
    likelihoods: Mapping[str, Record] | None = None,
    by_likelihood: Mapping[str, Record] | None = None,
) -> Rows:
    """The lines of `scored.jsonl`. `likelihoods`: records of the references' log-likelihoods;
    `by_likelihood`: of the class names', the likeliest as `answer`."""
    official = task == "question" and vqa_problem(records) is None
    rows = []
    for record in records:
        row = score_record(record, task, classes, official)
        if likelihoods is not None:
            row |= likelihood_of(likelihoods.get(record["sample_id"]))
        if by_likelihood is not None:
            likeliest = by_likelihood.get(record["sample_id"], {})
            row["likeliest"] = likeliest.get("answer") if likeliest.get("status") == "ok" else None
        rows.append(row)
    return rows


def score_record(
    record: Record, task: str, classes: Sequence[str], official: bool
) -> dict[str, Any]:
    references, language = record["references"], record["language"]
    answer = record["answer"] if record["status"] == "ok" else None
    row: dict[str, Any] = {
        "sample_id": record["sample_id"],
        "image_id": record["image_id"],
        "question_type": record["question_type"],
        "answer_type": language,
        "score": None,
        "exact_match": None,
        "token_f1": None,
    }
    if references:
        row["exact_match"] = 0 if answer is None else exact_match(answer, references, language)
        row["token_f1"] = 0.0 if answer is None else token_f1(answer, references, language)
        row["score"] = row["token_f1" if task in ("caption", "text") else "exact_match"]
    if official:
        row["scores"] = (
            dict.fromkeys(PUBLISHED_UNDER, 0.0)
            if answer is None
            else vqa_accuracies(answer, references)
        )
        row["score"] = row["scores"][VQA]
    if task == "label":
        found, how = (None, "error")
        if answer is not None:
            found, how = matched_class(answer, classes, language)
        row |= {"label": record["label"], "predicted": found, "match": how}
        row["score"] = int(found == record["label"])
    return row


def vqa_problem(records: Sequence[Record]) -> str | None:
    """Why VQA accuracy is not the metric; None where every question has ten answers."""
    other = [record for record in records if len(record["references"]) != N_ANNOTATORS]
    if records and not other:
        return None
    rule = f"VQA accuracy needs {N_ANNOTATORS} reference answers for every question"
    if len(other) == len(records):
        return f"{rule}; none has them"
    first = other[0]
    return (
        f"{rule}; {len(other)} of {len(records)} have another number, first: "
        f"{first['sample_id']} has {len(first['references'])}"
    )


def likelihood_of(record: Record | None) -> dict[str, Any]:
    """log P(reference's tokens | picture, prompt), and of how many tokens."""
    if record is None or record["status"] != "ok":
        error = record["error"] if record else "no reference answer"
        return {"log_likelihood": None, "reference_tokens": None, "likelihood_error": error}
    return {
        "log_likelihood": record["choice_log_probs"][0],
        "reference_tokens": record["choice_n_tokens"][0],
        "likelihood_error": None,
    }


# The figures of a run


def metrics_of(
    rows: Rows,
    records: Sequence[Record],
    task: str,
    classes: Sequence[str] = (),
    *,
    expected: int,
    seed: int = 0,
) -> dict[str, Any]:
    """`metrics.json` of a run that should hold `expected` records; `seed` draws the resamples."""
    scored = [row for row in rows if row["score"] is not None]
    ok = {record["sample_id"] for record in records if record["status"] == "ok"}
    official = bool(scored) and "scores" in scored[0]
    return {
        "task": task,
        "metric": HEADLINES["vqa" if official else task],
        "metric_reason": vqa_problem(records) if task == "question" else None,
        "language": set_language(rows) | {"rule": LANGUAGE_RULE},
        "accuracy": figure(scored, "score"),
        "exact_match": figure(scored, "exact_match"),
        "exact_match_rule": EXACT_MATCH_RULE,
        "token_f1": {
            language: figure(own, "token_f1") | {"tokens": TOKEN_F1_RULES[language]}
            for language, own in by_language(scored).items()
        },
        "protocols": {
            name: estimate([row["scores"][name] for row in scored], pictures(scored))
            | {"published_under_it": who}
            for name, who in PUBLISHED_UNDER.items()
        }
        if official
        else None,
        "captions": captions(scored, records, task, seed),
        "classification": classification(rows, "predicted", classes, records, seed)
        if task == "label"
        else None,
        "classification_by_likelihood": classification(rows, "likeliest", classes, (), seed)
        if rows and "likeliest" in rows[0]
        else None,
        "likelihood": likelihood(rows, seed),
        "per_answer_type": by_group(rows, lambda row: row["answer_type"]),
        "per_question_type": by_group(rows, lambda row: row["question_type"]),
        "excluding_errors": figure([row for row in scored if row["sample_id"] in ok], "score"),
        "counts": {
            "expected": expected,
            "answered": len(ok),
            "errors": sum(record["status"] == "error" for record in records),
            "missing": expected - len(records),
            "empty": sum(record["answer"] == "" for record in records),
            "cut": sum(record["finish_reason"] == "length" for record in records),
        },
    }


def figure(rows: Sequence[Record], key: str) -> dict[str, Any]:
    return estimate([row[key] for row in rows], pictures(rows))


def pictures(rows: Sequence[Record]) -> list[Any]:
    return [row["image_id"] for row in rows]


def by_language(rows: Sequence[Record]) -> dict[str, list[Record]]:
    """Language -> its rows, the commonest first."""
    counted = Counter(row["answer_type"] for row in rows).most_common()
    return {name: [row for row in rows if row["answer_type"] == name] for name, _ in counted}


def set_language(rows: Sequence[Record]) -> dict[str, Any]:
    """en, zh or mixed, with how many samples each has."""
    counts = {name: len(own) for name, own in by_language(rows).items()}
    names = list(counts)
    return {"value": "mixed" if len(names) > 1 else (names or [None])[0], "counts": counts}


def captions(
    rows: Sequence[Record], records: Sequence[Record], task: str, seed: int
) -> dict[str, Any]:
    """language -> `score_captions` without the images' own, or null with a reason.

    Two languages are never scored together: words of one have no weight in the other.
    """
    if task not in ("caption", "text") or not rows:
        reason = "no sample with a reference" if task in ("caption", "text") else f"{task} data"
        return {"value": None, "reason": reason}
    found = {}
    for language, own in by_language(rows).items():
        references, candidates = caption_texts(own, records)
        scores = dict(score_captions(references, candidates, language=language, seed=seed))
        for key in ("per_image", "empty", "missing"):
            del scores[key]
        found[language] = scores
    return found


def caption_texts(
    rows: Sequence[Record], records: Sequence[Record]
) -> tuple[dict[Any, list[str]], dict[Any, str]]:
    """References and candidates by sample; an error is an empty caption."""
    by_id = {record["sample_id"]: record for record in records}
    ids = [row["sample_id"] for row in rows]
    return (
        {key: list(by_id[key]["references"]) for key in ids},
        {key: by_id[key]["answer"] or "" for key in ids},
    )


# Classes


def classification(
    rows: Sequence[Record],
    key: str,
    classes: Sequence[str],
    records: Sequence[Record],
    seed: int,
) -> dict[str, Any]:
    """Accuracy, macro-F1, a row a class, and which class was taken for which.

    `key`: where a row has its class, None for none. Macro-F1 is the mean over the classes that have
    samples; a class without samples has no F1 and is named. Its interval draws pictures.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth = [row["label"] for row in rows]
    said = [row[key] or NO_CLASS for row in rows]
    used = [name for name in classes if name in set(truth)]
    if not rows:
        return {"accuracy": estimate([], []), "macro_f1": {"value": None, "reason": "no sample"}}
    columns = [*classes, NO_CLASS]
    table = confusion_matrix(truth, said, labels=columns)
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, said, labels=list(classes), zero_division=math.nan
    )
    answers = {record["sample_id"]: record["answer"] for record in records}
    unmatched = [row for row in rows if row[key] is None]
    result = {
        "accuracy": estimate(
            [float(a == b) for a, b in zip(truth, said, strict=True)], pictures(rows)
        ),
        "macro_f1": {
            "value": percent_of(macro_f1(truth, said, used)),
            **limits_of(rows, key, used, seed),
            "n": len(rows),
            "n_classes": len(used),
        },
        "classes_without_samples": [name for name in classes if name not in used],
        "per_class": {
            name: {
                "n": int(support[i]),
                "said": int(table[:, i].sum()),
                "precision": percent_of(precision[i]),
                "recall": percent_of(recall[i]),
                "f1": percent_of(f1[i]) if support[i] else None,
            }
            for i, name in enumerate(classes)
        },
        "confusion": {"rows": used, "columns": columns,
                      "counts": [table[columns.index(name)].tolist() for name in used]},
        "unmatched": len(unmatched),
    }  # fmt: skip
    if key == "predicted":
        result["rule"] = CLASS_RULE
        result["matches"] = dict(Counter(row["match"] for row in rows))
        result["unmatched_answers"] = [
            {"sample_id": row["sample_id"], "match": row["match"],
             "answer": answers.get(row["sample_id"])}
            for row in unmatched[:N_SHOWN]
        ]  # fmt: skip
    return result


def macro_f1(truth: Sequence[str], said: Sequence[str], used: Sequence[str]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, said, labels=list(used), average="macro", zero_division=0))


def limits_of(
    rows: Sequence[Record], key: str, used: Sequence[str], seed: int
) -> dict[str, float | None]:
    """The 95 % percentile interval of macro-F1 over pictures drawn with replacement."""
    import numpy as np

    drawn = resampled_macro_f1([rows], key, used, seed)
    if drawn is None:
        return {"low": None, "high": None, "note": "one picture, or no variation: no interval"}
    low, high = np.percentile(drawn[0], [2.5, 97.5])
    return {"low": percent_of(low), "high": percent_of(high)}


def resampled_macro_f1(
    runs: Sequence[Sequence[Record]], key: str, used: Sequence[str], seed: int
) -> np.ndarray | None:
    """Macro-F1 of each run, [runs, resamples], the same pictures drawn for all; None where nothing
    varies. A class that a resample has neither in truth nor in answers counts 0 there."""
    import numpy as np

    codes, picture = np.unique([str(row["image_id"]) for row in runs[0]], return_inverse=True)
    truth = counted(picture, [[row["label"] == name for name in used] for row in runs[0]])
    said, hits = [], []
    for rows in runs:
        said.append(counted(picture, [[row[key] == name for name in used] for row in rows]))
        right = [[row[key] == row["label"] == name for name in used] for row in rows]
        hits.append(counted(picture, right))
    rng = np.random.default_rng(seed)
    figures = []
    for begin in range(0, N_RESAMPLES, PIECE // len(codes) + 1):
        size = min(PIECE // len(codes) + 1, N_RESAMPLES - begin)
        draws = rng.multinomial(len(codes), np.full(len(codes), 1 / len(codes)), size=size)
        both = np.stack([draws @ (truth + own) for own in said])  # [runs, resamples, classes]
        twice = np.stack([2 * (draws @ own) for own in hits])
        f1 = np.divide(twice, both, out=np.zeros(both.shape), where=both > 0)
        figures.append(f1.mean(axis=-1))
    found = np.concatenate(figures, axis=1)
    return found if np.ptp(found) > 1e-12 else None


def counted(picture: np.ndarray, flags: Sequence[Sequence[bool]]) -> np.ndarray:
    """Flags of each sample, [samples, classes], summed by picture: [pictures, classes]."""
    import numpy as np

    sums = np.zeros((int(picture.max()) + 1, len(flags[0])), dtype=np.int64)
    np.add.at(sums, picture, np.array(flags, dtype=np.int64))
    return sums


def percent_of(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * float(value), 2)


# Likelihood


def likelihood(rows: Sequence[Record], seed: int) -> dict[str, Any]:
    """Mean log-likelihood of the references in nats: of a whole reference, and of a token of it.

    Per token is the mean over samples of each one's own mean; `perplexity` is of all tokens
    together. Null with a reason where none was computed.
    """
    if not rows or "log_likelihood" not in rows[0]:
        return {"value": None, "reason": "not computed (--likelihood false)"}
    known = [row for row in rows if row["log_likelihood"] is not None]
    failed = [row for row in rows if row["log_likelihood"] is None]
    not_scored = {"n": len(failed), "first": failed[0]["likelihood_error"] if failed else None}
    if not known:
        return {"value": None, "reason": "no reference could be scored", "not_scored": not_scored}
    total = sum(row["log_likelihood"] for row in known)
    n_tokens = sum(row["reference_tokens"] for row in known)
    return {
        "unit": "nats; the end token is not counted",
        "per_sample": nats(known, per_sample, seed),
        "per_token": nats(known, per_token, seed),
        "perplexity": round(math.exp(min(-total / n_tokens, 700.0)), 4),
        "n_tokens": n_tokens,
        "not_scored": not_scored,
    }


def per_sample(row: Record) -> float:
    return row["log_likelihood"]


def per_token(row: Record) -> float:
    return row["log_likelihood"] / row["reference_tokens"]


def nats(rows: Sequence[Record], value: Callable[[Record], float], seed: int) -> dict[str, Any]:
    interval = cluster_bootstrap([value(row) for row in rows], pictures(rows), seed=seed)
    found = {
        "value": round_or_none(interval.mean),
        "low": round_or_none(interval.low),
        "high": round_or_none(interval.high),
        "n": interval.n,
        "n_pictures": interval.n_clusters,
    }
    note = interval.note and interval.note.replace("cluster", "picture")
    return found | ({"note": note} if note else {})


def round_or_none(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
