"""TextVQA: questions whose answer is read off the picture; ten references, soft accuracy.

Reads TextVQA_0.5.1_{split}.json ({"data": [{question_id, question, image_id, answers}]},
https://textvqa.org/dataset) and, for the prompt choice `ocr`, the machine-read words of
TextVQA_Rosetta_OCR_v0.2_{split}.json; pictures train_images/{image_id}.jpg. Whether those words
stand in the prompt decides the figure (LLaVA-1.5-7B: 58.2 with them, about 46 without), so it is a
named choice. Scored as LLaVA's llava/eval/m4c_evaluator.py and eval_textvqa.py do
(https://github.com/haotian-liu/LLaVA, commit c121f043): each answer of LLaVA's file is found by
picture and question, as its question_id is the picture's. That script scores what is in the answers
file; here a question without an answer is wrong. An answer to no question is an error in both.

    python llava_repro/score.py --task textvqa --answers answers.jsonl --annotations data/textvqa
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks.common import (
    SHORT_ANSWER,
    Matched,
    Metrics,
    Record,
    Sample,
    Scored,
    Task,
    answer_of,
    gather,
    headline,
    m4c_normalise,
    mean,
    need_file,
    official_id,
    picture_folder,
    row_by_row,
    scored_row,
    usable,
)
from shared.options import UserError, read_json
from shared.vqav2 import N_ANNOTATORS, QuestionSet

OCR_LINE = "Reference OCR token: "
SOURCE = "https://textvqa.org/dataset"


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """Questions of a file or of TextVQA_0.5.1_{split}.json in a folder."""
    root = path.parent if path.is_file() else path
    file = path if path.is_file() else path / f"TextVQA_0.5.1_{split}.json"
    rows = _data(need_file(file, "textvqa", SOURCE))
    words: dict[str, list[str]] = {}
    if prompt == "ocr":
        ocr = root / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
        need_file(ocr, "textvqa", f"{SOURCE} (or ask without them: --prompt no_ocr)")
        words = {str(row.get("image_id")): row.get("ocr_tokens") or [] for row in _data(ocr)}
    example = f"{rows[0].get('image_id')}.jpg" if rows else ""
    named = "test_images" if split == "test" else "train_images"
    folder = picture_folder([root / named, root / "images", root], example)
    samples: list[Sample] = []
    problems: list[str] = []
    seen: set[str] = set()
    for i, row in enumerate(rows):
        problem = _problem(row, seen)
        if problem:
            problems.append(f"{file.name} row {i}: {problem}")
            continue
        seen.add(str(row["question_id"]))
        answers = tuple(row.get("answers") or ())
        picture = folder / f"{row['image_id']}.jpg"
        samples.append(
            Sample(
                sample_id=str(row["question_id"]),
                image=picture,
                image_name=picture.relative_to(root).as_posix(),
                image_id=row["image_id"],
                question=row["question"],
                references=answers,
                target=max(answers, key=answers.count) if answers else None,
                prompt=question_text(row["question"], words.get(str(row["image_id"]), []), prompt),
                llava_id=row["image_id"],
            )
        )
    return usable(samples, problems, len(rows), file)


def _data(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON object with a list under 'data'")
    return [row if isinstance(row, dict) else {} for row in rows]


def _problem(row: dict[str, Any], seen: set[str]) -> str | None:
    if not isinstance(row.get("question_id"), int | str) or not isinstance(
        row.get("image_id"), int | str
    ):
        return "question_id or image_id is missing"
    if str(row["question_id"]) in seen:
        return f"question_id {row['question_id']} stands twice; the first is used"
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        return f"question_id {row['question_id']}: the question is empty"
    answers = row.get("answers")
    if answers and (
        len(answers) != N_ANNOTATORS or not all(isinstance(answer, str) for answer in answers)
    ):
        return f"question_id {row['question_id']}: answers must be {N_ANNOTATORS} texts"
    return None


def question_text(question: str, words: Sequence[str], prompt: str) -> str:
    """`ocr`: LLaVA-1.5's three lines, the middle one "Reference OCR token: " and the words."""
    ocr = f"{OCR_LINE}{', '.join(words)}\n" if prompt == "ocr" else ""
    return question if prompt == "bare" else f"{question}\n{ocr}{SHORT_ANSWER}"


def question_of(prompt: str) -> str:
    """The question in a prompt of LLaVA's files, lower case; ValueError for another shape.

    Shapes that eval_textvqa.py reads: the question before or after a line of OCR words, the
    question and the suffix, and the older "OCR tokens: ... Question: ... Short answer:". The
    question alone, which that script does not know, is one more.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found.group(1).lower()
    elif OCR_LINE in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(OCR_LINE.strip()) else 0].lower()
    elif prompt and len(lines) <= 2:
        return lines[0].lower()
    raise ValueError(prompt)


def match(rows: Sequence[Record], samples: Sequence[Sample]) -> Matched:
    """Answers by picture and question (LLaVA's files), or by TextVQA's own question_id.

    A question asked twice about one picture takes its answers in order.
    """
    by_id = {sample.sample_id: sample.sample_id for sample in samples}
    by_question: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in samples:
        key = (str(sample.image_id), sample.question.strip().lower())
        by_question[key].append(sample.sample_id)
    used: dict[tuple[str, str], int] = defaultdict(int)
    pictures = {image_id for image_id, _ in by_question}

    def pairs() -> Iterator[tuple[Record, str | None]]:
        for number, row in enumerate(rows, start=1):
            key = str(row["question_id"])
            if key not in pictures:
                yield row, by_id.get(key)
                continue
            try:
                question = question_of((row.get("prompt") or "").removeprefix("<image>\n")).strip()
            except ValueError:
                raise UserError(
                    f"answer {number}: question_id {key} is a picture, and its prompt "
                    f"{row.get('prompt')!r} is in none of LLaVA's forms, so the question cannot be "
                    "told; give TextVQA's own question_id"
                ) from None
            found = by_question.get((key, question), [])
            i = used[key, question]
            used[key, question] += 1
            yield row, found[i % len(found)] if found else None

    return gather(pairs())


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """0, .3, .6, .9, 1 for 0, 1, 2, 3, 4 and more equal references of ten.

    That is the mean over the ten of min(1, matches among the other nine / 3): with k matches,
    (k min(1, (k-1)/3) + (10-k) min(1, k/3)) / 10. Both sides as `m4c_normalise` leaves them.
    """
    wanted = m4c_normalise(prediction)
    return min(10, 3 * sum(m4c_normalise(reference) == wanted for reference in references)) / 10


def score(records: Mapping[str, Record], samples: Sequence[Sample]) -> tuple[Scored, Metrics]:
    """`accuracy` in percent over all questions with references; None for the test split."""
    scored: Scored = []
    with_ocr = 0
    for sample in samples:
        record = records.get(sample.sample_id)
        answer = answer_of(record)
        with_ocr += record is not None and "OCR token" in (record.get("prompt") or "")
        value = 0.0 if answer is None else accuracy(answer, sample.references)
        parsed = None if answer is None else m4c_normalise(answer)
        scored.append(scored_row(sample, value if sample.references else None, parsed=parsed))
    share = mean(row["score"] for row in scored if row["score"] is not None)
    return scored, {
        "metric": "TextVQA accuracy (m4c)",
        "headline": headline(scored),
        "n": len(scored),
        "accuracy": None if share is None else 100 * share,
        "prompts_with_ocr": with_ocr,
        "reasons": {"accuracy": "the split has no reference answers"} if share is None else {},
    }


def submission_row(sample: Sample, answer: str) -> dict[str, Any]:
    """Of what the evaluation server takes: the question's id with the answer as it was given."""
    return {"question_id": official_id(sample.sample_id), "answer": answer}


TASK = Task(
    name="textvqa",
    data_folder="textvqa",
    splits=("val", "train", "test"),
    prompts={
        "ocr": "question, machine-read words (Rosetta), LLaVA-1.5's suffix",
        "no_ocr": "question and LLaVA-1.5's suffix",
        "bare": "the question alone",
    },
    load=load,
    score=score,
    submission=row_by_row(submission_row),
    match=match,
)
