"""GQA: compositional questions about pictures, one answer each, exact match.

Reads {split}_questions.json ({id: {question, answer, imageId, isBalanced, types, groups, ...}},
https://cs.stanford.edu/people/dorarad/gqa/download.html); pictures images/{imageId}.jpg.
Predictions are converted as LLaVA's scripts/convert_gqa_for_eval.py does (trailing periods off,
lower case; https://github.com/haotian-liu/LLaVA, commit c121f043) and compared as GQA's eval.py
does, over balanced questions only. That program stops at a missing prediction; here it is wrong and
counted. Predictions of other questions are passed over, as there.
Consistency, validity, plausibility and grounding need files that the testdev split does not have.

    python llava_repro/score.py --task gqa --answers answers.jsonl --annotations data/gqa
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks.common import (
    Metrics,
    Record,
    Sample,
    Scored,
    Task,
    answer_of,
    ask_short,
    headline,
    mean,
    need_file,
    picture_folder,
    row_by_row,
    scored_row,
    tables,
    usable,
)
from shared.options import UserError, read_json
from shared.vqav2 import QuestionSet

NO_STEP = ("exist", "query: name", "choose name")  # eval.py: operations that end a question
SUBTYPES = {"attr": "attribute", "cat": "category", "global": "scene", "obj": "object"}
SUBTYPES["rel"] = "relation"


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """Balanced questions of a file or of `{split}_questions.json` in a folder."""
    file = path
    if not path.is_file():
        names = [path / f"{split}_questions.json", path / "questions" / f"{split}_questions.json"]
        file = next((name for name in names if name.is_file()), names[0])
        need_file(file, "gqa", "questions of https://cs.stanford.edu/people/dorarad/gqa")
    questions = read_json(file)
    if not isinstance(questions, dict):
        raise UserError(f"{file}: expected an object of questions by id, as GQA publishes it")
    balanced = {k: q for k, q in questions.items() if not _is_unbalanced(q)}
    problems = [
        f"{file.name}: question {key}: {problem}"
        for key, row in balanced.items()
        if (problem := _problem(row))
    ]
    good = {key: row for key, row in balanced.items() if not _problem(row)}
    root = path.parent if path.is_file() else path
    example = next((f"{row['imageId']}.jpg" for row in good.values()), "")
    folder = picture_folder([root / "images", root / "allImages" / "images", root], example)
    samples = [_sample(str(key), row, root, folder, prompt) for key, row in good.items()]
    return usable(samples, problems, len(balanced), file)


def _is_unbalanced(row: Any) -> bool:
    return isinstance(row, dict) and row.get("isBalanced") is False


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "expected an object"
    for key in ("question", "answer", "imageId"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"{key} is {row.get(key)!r}, expected a text"
    return None


def _sample(key: str, row: dict[str, Any], root: Path, folder: Path, prompt: str) -> Sample:
    types = row.get("types") or {}
    structural, semantic = types.get("structural"), types.get("semantic")
    groups = {"words": str(len(row["question"].split()))}
    if structural:
        groups |= {"kind": "open" if structural == "query" else "binary", "structural": structural}
    if semantic:
        groups["semantic"] = SUBTYPES.get(semantic, semantic)
    if isinstance(row.get("semantic"), list):
        steps = [f"{step.get('operation')}: {step.get('argument')}" for step in row["semantic"]]
        groups["steps"] = str(sum(not any(end in step for end in NO_STEP) for step in steps))
    if (row.get("groups") or {}).get("global") is not None:
        groups["group"] = row["groups"]["global"]
    picture = folder / f"{row['imageId']}.jpg"
    return Sample(
        sample_id=key,
        image=picture,
        image_name=picture.relative_to(root).as_posix(),
        image_id=row["imageId"],
        question=row["question"],
        references=(row["answer"],),
        question_type=structural,
        answer_type=groups.get("kind"),
        target=row["answer"],
        prompt=ask_short(row["question"], prompt),
        llava_id=key,
        groups=groups,
    )


def convert(text: str) -> str:
    """LLaVA's conversion. White space stays: " yes" is not "yes"."""
    return text.rstrip(".").lower()


def score(records: Mapping[str, Record], samples: Sequence[Sample]) -> tuple[Scored, Metrics]:
    """Percentages as GQA's eval.py prints them; `distribution` is its chi-square / 100."""
    scored: Scored = []
    for sample in samples:
        answer = answer_of(records.get(sample.sample_id))
        prediction = None if answer is None else convert(answer)
        scored.append(scored_row(sample, float(prediction == sample.target), parsed=prediction))
    by_table = tables(samples, [row for row in scored])
    by_table.pop("group", None)
    kinds = by_table.pop("kind", {})
    kind_of = [sample.groups.get("kind") for sample in samples]
    metrics: Metrics = {
        "metric": "accuracy",
        "headline": headline(scored),
        "n": len(scored),
        "accuracy": sum(row["score"] for row in scored) / len(scored) * 100,
        "distribution": distribution(samples, scored),
        "intervals": kinds,
        "per_type": by_table,
        "reasons": {},
    }
    for kind in ("binary", "open"):
        share = mean(row["score"] for row, k in zip(scored, kind_of, strict=True) if k == kind)
        metrics[kind] = None if share is None else 100 * share
        if share is None:
            metrics["reasons"][kind] = f"no question of the type {kind}"
    if metrics["distribution"] is None:
        metrics["reasons"]["distribution"] = "no question belongs to a group"
    return scored, metrics


def distribution(samples: Sequence[Sample], scored: Scored) -> float | None:
    """How far the predicted answers' histogram is from the true one; 0 is equal.

    Per global group (such as "color"), chi-square over the true answers: sum of
    (predicted - true)^2 / true; groups weighted by their size; divided by 100, as eval.py.
    """
    true: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for sample, row in zip(samples, scored, strict=True):
        group = sample.groups.get("group")
        if group is not None:
            true[group][str(sample.target)] += 1
            if row["parsed"] is not None:
                predicted[group][row["parsed"]] += 1
    total = sum(sum(histogram.values()) for histogram in true.values())
    if not total:
        return None
    weighted = 0.0
    for group, histogram in true.items():
        chi = sum((predicted[group][word] - n) ** 2 / n for word, n in histogram.items())
        weighted += chi * sum(histogram.values())
    return weighted / total / 100


def submission_row(sample: Sample, answer: str) -> dict[str, Any]:
    """Of {split}_predictions.json."""
    return {"questionId": sample.sample_id, "prediction": convert(answer)}


TASK = Task(
    name="gqa",
    data_folder="gqa",
    splits=("testdev_balanced", "val_balanced", "train_balanced"),
    prompts={"short": "question and LLaVA-1.5's suffix", "bare": "the question alone"},
    load=load,
    score=score,
    submission=row_by_row(submission_row),
    unknown_ids="ignored",
)
