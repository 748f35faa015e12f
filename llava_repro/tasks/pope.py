"""POPE: is there a ... in the picture? Yes or no, three files of 3,000 questions about COCO.

Reads coco_pope_{random,popular,adversarial}.json (JSON lines `question_id, image, text, label`,
https://github.com/AoiDragon/POPE). The answer is read and scored as LLaVA's llava/eval/eval_pope.py
does (https://github.com/haotian-liu/LLaVA, commit c121f043), but for three things: that program
pairs answers with labels by their order, so that one missing answer shifts all others, here they
are paired by question_id; a question without an answer is wrong (a false negative when there is
one to find, else neither true negative nor false positive); and where it divides by zero the
figure is None with a reason.

    python llava_repro/score.py --task pope --answers A.jsonl --annotations data/pope --split all
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    in_percent,
    mean,
    need_file,
    official_id,
    picture_folder,
    proportion,
    row_by_row,
    scored_row,
    usable,
)
from shared.options import UserError
from shared.significance import score_interval
from shared.vqav2 import QuestionSet

SPLITS = ("adversarial", "popular", "random")


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """Questions of one file or split; split `all` joins the three, ids then `random/17`."""
    if path.is_file():
        files = {path.stem.removeprefix("coco_pope_"): path}
    else:
        files = {
            name: need_file(
                path / f"coco_pope_{name}.json",
                "pope",
                "output/coco of https://github.com/AoiDragon/POPE",
            )
            for name in (SPLITS if split == "all" else (split,))
        }
    samples: list[Sample] = []
    problems: list[str] = []
    n_rows = 0
    for name, file in files.items():
        seen: set[Any] = set()
        for number, row in _json_lines(file):
            n_rows += 1
            problem = row if isinstance(row, str) else _problem(row, seen)
            if problem:
                problems.append(f"{file.name} line {number}: {problem}")
                continue
            seen.add(row["question_id"])
            key = str(row["question_id"])
            samples.append(
                Sample(
                    sample_id=key if len(files) == 1 else f"{name}/{key}",
                    image=Path(row["image"]),
                    image_name=row["image"],
                    image_id=row["image"],
                    question=row["text"],
                    references=(row["label"],),
                    question_type=name,
                    answer_type="yes/no",
                    target=row["label"],
                    prompt=ask_short(row["text"], prompt),
                    llava_id=row["question_id"] if len(files) == 1 else f"{name}/{key}",
                    groups={"label": row["label"]},
                )
            )
    found = usable(samples, problems, n_rows, path)
    return QuestionSet(_with_pictures(path, found.questions), problems)


def _with_pictures(path: Path, samples: Sequence[Sample]) -> list[Sample]:
    root = path.parent if path.is_file() else path
    shared_pictures = [root.parent / name / "val2014" for name in ("vqav2", "coco2014")]
    folders = [root / "val2014", root / "images", root, *shared_pictures]
    folder = picture_folder(folders, samples[0].image_name)
    return [replace(sample, image=folder / sample.image_name) for sample in samples]


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any] | str]]:
    """(line number, row), or a message in the place of a row that is not a JSON object."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    rows: list[tuple[int, dict[str, Any] | str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = f"not valid JSON ({error.msg})"
        rows.append((number, row if isinstance(row, dict | str) else "expected an object"))
    return rows


def _problem(row: dict[str, Any], seen: set[Any]) -> str | None:
    if not isinstance(row.get("question_id"), int | str):
        return f"question_id is {row.get('question_id')!r}, expected a number"
    if row["question_id"] in seen:
        return f"question_id {row['question_id']} stands twice; the first is used"
    for key in ("image", "text"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"{key} is {row.get(key)!r}, expected a text"
    if row.get("label") not in ("yes", "no"):
        return f"label is {row.get('label')!r}, expected yes or no"
    return None


def parse(text: str) -> str:
    """LLaVA's rule: in the first sentence, commas out, one of the words No, not, no means no.

    Anything else is yes: an empty answer, "Not sure", "NO", and Chinese in both senses. `is_clear`
    tells which answers the rule only guesses.
    """
    first_sentence = text.split(".")[0].replace(",", "")
    return "no" if {"No", "not", "no"} & set(first_sentence.split(" ")) else "yes"


def is_clear(text: str) -> bool:
    """Whether the answer holds a word yes, no or not at all, in any case."""
    return re.search(r"\b(yes|no|not)\b", text.lower()) is not None


def score(records: Mapping[str, Record], samples: Sequence[Sample]) -> tuple[Scored, Metrics]:
    """Figures 0..1 as LLaVA prints them. `yes_ratio` is that of the answers, not of the labels."""
    scored: Scored = []
    unclear = 0
    for sample in samples:
        answer = answer_of(records.get(sample.sample_id))
        parsed = None if answer is None else parse(answer)
        unclear += answer is not None and not is_clear(answer)
        scored.append(scored_row(sample, float(parsed == sample.target), parsed=parsed))
    metrics = _figures(samples, scored)
    splits = {name: None for name in (sample.question_type for sample in samples)}
    if len(splits) > 1:
        for name in splits:
            chosen = [i for i, s in enumerate(samples) if s.question_type == name]
            splits[name] = _figures([samples[i] for i in chosen], [scored[i] for i in chosen])
        f1 = [figures["f1"] for figures in splits.values()]
        metrics["splits"] = splits
        # LLaVA's paper gives the mean of the three F1 as its POPE figure
        metrics["mean_f1"] = None if None in f1 else mean(f1)
    metrics["unclear"] = unclear
    return scored, {"metric": "accuracy", "headline": headline(scored)} | metrics


def _figures(samples: Sequence[Sample], scored: Scored) -> Metrics:
    cells = Counter(
        (sample.target, row["parsed"]) for sample, row in zip(samples, scored, strict=True)
    )
    tp, fp = cells["yes", "yes"], cells["no", "yes"]
    tn, fn = cells["no", "no"], cells["yes", "no"] + cells["yes", None]
    answered = len(scored) - cells["yes", None] - cells["no", None]
    precision, of_precision = proportion(tp, tp + fp, "no answer is yes: no precision")
    recall, of_recall = proportion(tp, tp + fn, "no label is yes: no recall")
    yes_ratio, of_yes = proportion(tp + fp, answered, "no answer: no yes ratio")
    f1 = 2 * precision * recall / (precision + recall) if precision and recall else None
    of_accuracy = score_interval([r["score"] for r in scored], [r["image_id"] for r in scored])
    reasons = {"precision": of_precision, "recall": of_recall, "yes_ratio": of_yes}
    reasons = {name: figure["note"] for name, figure in reasons.items() if figure["n"] == 0}
    if f1 is None:
        reasons["f1"] = "no yes is right: precision and recall have no harmonic mean"
    return {
        "n": len(scored),
        "accuracy": (tp + tn) / len(scored),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": yes_ratio,
        "yes_ratio_of_labels": (tp + fn) / len(scored),
        "confusion": {"TP": tp, "FP": fp, "TN": tn, "FN": fn},
        "intervals": {
            "accuracy": in_percent(of_accuracy, 1),
            "precision": of_precision,
            "recall": of_recall,
            "yes_ratio": of_yes,
        },
        "reasons": reasons,
    }


def renumber(
    rows: Sequence[Record], questions: Path, samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """Answers to LLaVA's llava_pope_test.jsonl, numbered through the three splits, as ours.

    That file (`question_id, image, text, category`) tells which split, picture and question a
    number is. Answers to splits that are not among the samples are left out. Raises UserError for a
    number that is not in the file.
    """
    ours = {(s.question_type, s.image_name, s.question): s.sample_id for s in samples}
    asked = {}
    for number, row in _json_lines(questions):
        keys = ("question_id", "image", "text", "category")
        if isinstance(row, str) or any(key not in row for key in keys):
            raise UserError(f"{questions} line {number}: expected {', '.join(keys)}")
        asked[str(row["question_id"])] = (row["category"], row["image"], row["text"].split("\n")[0])
    renumbered = []
    for row in rows:
        key = asked.get(str(row["question_id"]))
        if key is None:
            raise UserError(f"{questions}: no question_id {row['question_id']}, which is answered")
        if key in ours:
            renumbered.append({**row, "question_id": ours[key]})
    return renumbered


def by_split(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Split -> its questions with the ids of its own file: `random/17` is 17 among the random."""
    splits: dict[str, list[Sample]] = {}
    for sample in samples:
        name = sample.question_type or ""
        own = official_id(sample.sample_id.removeprefix(f"{name}/"))
        splits.setdefault(name, []).append(replace(sample, llava_id=own))
    return dict(sorted(splits.items()))


def submission_row(sample: Sample, answer: str) -> dict[str, Any]:
    """Of the lines for POPE's own evaluate.py."""
    return {"question": sample.question, "answer": answer}


TASK = Task(
    name="pope",
    data_folder="pope",
    splits=("random", "popular", "adversarial", "all"),
    prompts={"short": "question and LLaVA-1.5's suffix", "bare": "the question alone"},
    load=load,
    score=score,
    submission=row_by_row(submission_row),
    submission_lines=True,
)
