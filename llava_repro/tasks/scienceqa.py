"""ScienceQA: multiple choice from school books, about half of the questions with a picture.

Reads problems.json and pid_splits.json (https://github.com/lupantech/ScienceQA, data/scienceqa) and
pictures images/{split}/{id}/image.png. Prompts as LLaVA's scripts/convert_sqa_to_llava.py and
llava/eval/model_vqa_science.py make them, answers read as llava/eval/eval_science_qa.py does
(https://github.com/haotian-liu/LLaVA, commit c121f043): an answer that its rule cannot read is
wrong (the random choice that its code also holds stands after a return and never runs) and is
counted as `undecided`; a missing answer is wrong; an answer to no question of the split is passed
over.

    python llava_repro/score.py --task scienceqa --answers A.jsonl --annotations data/scienceqa
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks.common import (
    LETTERS,
    OPTION_LETTER,
    Metrics,
    Record,
    Sample,
    Scored,
    Task,
    answer_of,
    estimate,
    headline,
    need_file,
    picture_folder,
    scored_row,
    tables,
    usable,
)
from shared.options import UserError, read_json
from shared.vqav2 import QuestionSet

OPTIONS = LETTERS[:5]  # the official scripts know five
# Any character may follow the letter, but one must: "The answer is B" at the end is not read.
ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
SOURCE = "data/scienceqa of https://github.com/lupantech/ScienceQA"


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """Problems of a split, in the order of pid_splits.json."""
    problems_file = need_file(path / "problems.json", "scienceqa", SOURCE)
    splits_file = need_file(path / "pid_splits.json", "scienceqa", SOURCE)
    problems, splits = read_json(problems_file), read_json(splits_file)
    if not isinstance(problems, dict) or not isinstance(splits, dict):
        raise UserError(f"{path}: problems.json and pid_splits.json must both be JSON objects")
    if split not in splits:
        raise UserError(f"{splits_file}: no split {split!r}; it has {', '.join(splits)}")
    pictured = [p for p in splits[split] if isinstance(problems.get(p), dict)]
    pictured = [p for p in pictured if problems[p].get("image")]
    folders = [path / "images" / split, path / split, path / "images"]
    example = f"{pictured[0]}/{problems[pictured[0]]['image']}" if pictured else ""
    folder = picture_folder(folders, example)
    samples: list[Sample] = []
    bad: list[str] = []
    for pid in splits[split]:
        problem = problems.get(pid)
        wrong = _problem(problem)
        if wrong:
            bad.append(f"{problems_file.name}: problem {pid}: {wrong}")
        else:
            samples.append(_sample(str(pid), problem, path, folder, prompt))
    return usable(samples, bad, len(splits[split]), problems_file)


def _problem(problem: Any) -> str | None:
    if not isinstance(problem, dict):
        return "is in pid_splits.json only"
    choices = problem.get("choices")
    if not isinstance(problem.get("question"), str):
        return "the question is no text"
    if not isinstance(choices, list) or not 1 < len(choices) <= len(OPTIONS):
        return f"choices is {choices!r}, expected two to five texts"
    answer = problem.get("answer")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"answer is {answer!r}, expected the number of a choice"
    return None


def _sample(pid: str, problem: dict[str, Any], root: Path, folder: Path, prompt: str) -> Sample:
    name = problem.get("image")
    picture = folder / pid / name if name else None
    choices = tuple(str(choice) for choice in problem["choices"])
    hint = (problem.get("hint") or "").strip()
    groups = {"grade": _grades(problem.get("grade"))}
    if problem.get("subject") in SUBJECTS:
        groups["subject"] = SUBJECTS[problem["subject"]]
    if hint:
        groups["text"] = "TXT"
    if picture:
        groups["picture"] = "IMG"
    if not hint and not picture:
        groups["no context"] = "NO"
    return Sample(
        sample_id=pid,
        image=picture,
        image_name=picture.relative_to(root).as_posix() if picture else "",
        image_id=pid,
        question=problem["question"],
        references=(OPTIONS[problem["answer"]],),
        question_type=problem.get("subject"),
        answer_type="multiple choice",
        target=OPTIONS[problem["answer"]],
        prompt=question_text(problem["question"], hint, choices, prompt),
        llava_id=pid,
        choices=choices,
        correct=problem["answer"],
        groups={table: row for table, row in groups.items() if row},
    )


def _grades(grade: Any) -> str:
    number = str(grade or "").removeprefix("grade")
    return "" if not number.isdigit() else "G1-6" if int(number) <= 6 else "G7-12"


def question_text(question: str, hint: str, choices: Sequence[str], prompt: str) -> str:
    """`letter`: LLaVA-1.5's CQM-A with the letter suffix. `reason`: v1's QCM, which was trained to
    reason before "The answer is B."; no suffix, and every "Question: " taken out, as there."""
    context = hint or "N/A"
    options = " ".join(f"({OPTIONS[i]}) {choice}" for i, choice in enumerate(choices))
    if prompt == "reason":
        text = f"Question: {question}\nContext: {context}\nOptions: {options}\n"
        return text.replace("  ", " ").strip().replace("Question: ", "")
    text = f"Context: {context}\nQuestion: {question}\nOptions: {options}\n"
    return f"{text.replace('  ', ' ').strip()}\n{OPTION_LETTER}"


def parse(text: str, n_choices: int) -> int | None:
    """Which choice an answer names, by LLaVA's rule; None where it names none of them.

    Read are "B", "B. ..." and exactly one "The answer is B" followed by any character; not "(B)",
    "B.", "b", "the answer is B", nor a letter beyond the choices.
    """
    if text and text in list(OPTIONS):
        letter = text
    elif len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
        letter = text[0]
    else:
        found = ANSWER_IS.findall(text)
        letter = found[0] if len(found) == 1 else ""
    index = LETTERS.find(letter) if letter else -1
    return index if 0 <= index < n_choices else None


def score(records: Mapping[str, Record], samples: Sequence[Sample]) -> tuple[Scored, Metrics]:
    """Percentages as LLaVA prints them.

    `image_accuracy` is over the answers whose prompt holds `<image>`, as there, so a missing answer
    is not in it; `image_accuracy_of_problems` is over all problems with a picture.
    """
    scored: Scored = []
    in_image_figure: list[float] = []
    undecided: list[str] = []
    for sample in samples:
        record = records.get(sample.sample_id)
        answer = answer_of(record)
        index = None if answer is None else parse(answer, len(sample.choices))
        if answer is not None and index is None:
            undecided.append(sample.sample_id)
        row = scored_row(
            sample,
            float(index is not None and index == sample.correct),
            parsed=None if index is None else OPTIONS[index],
        )
        scored.append(row)
        if _shows_picture(record, sample):
            in_image_figure.append(row["score"])
    with_picture = [r for r, s in zip(scored, samples, strict=True) if s.image is not None]
    reasons = {}
    if not in_image_figure:
        reasons["image_accuracy"] = "no answer's prompt holds <image>"
    by_type = tables(samples, scored)
    return scored, {
        "metric": "accuracy",
        "headline": headline(scored),
        "n": len(scored),
        "accuracy": sum(r["score"] for r in scored) / len(scored) * 100,
        "image_accuracy": (
            sum(in_image_figure) / len(in_image_figure) * 100 if in_image_figure else None
        ),
        "n_image": len(in_image_figure),
        "image_accuracy_of_problems": estimate(
            [r["score"] for r in with_picture],
            [r["image_id"] for r in with_picture],
            "no problem has a picture",
        ),
        "undecided": len(undecided),
        "undecided_ids": undecided[:10],
        "per_type": {name: figure for table in by_type.values() for name, figure in table.items()},
        "reasons": reasons,
    }


def _shows_picture(record: Record | None, sample: Sample) -> bool:
    if record is None:
        return False
    prompt = record.get("prompt")
    return sample.image is not None if prompt is None else "<image>" in prompt


def submission(records: Mapping[str, Record], samples: Sequence[Sample]) -> dict[str, Any]:
    """What eval_science_qa.py writes as --output-result: acc, correct, count, results, outputs."""
    scored, _ = score(records, samples)
    correct = sum(int(row["score"]) for row in scored)
    outputs = [answer_of(records.get(s.sample_id)) for s in samples]
    return {
        "acc": correct / len(samples) * 100,
        "correct": correct,
        "count": len(samples),
        "results": {
            row["sample_id"]: -1 if row["parsed"] is None else OPTIONS.index(row["parsed"])
            for row in scored
        },
        "outputs": {
            sample.sample_id: "FAILED" if text is None else text
            for sample, text in zip(samples, outputs, strict=True)
        },
    }


TASK = Task(
    name="scienceqa",
    data_folder="scienceqa",
    splits=("test", "val", "train", "minival", "minitest"),
    prompts={
        "letter": "LLaVA-1.5: context, question, options, asked for the letter",
        "reason": "LLaVA v1: question, context, options, no suffix",
    },
    load=load,
    score=score,
    submission=submission,
    unknown_ids="ignored",
    max_new_tokens=1024,
)
