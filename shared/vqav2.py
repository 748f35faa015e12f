"""VQAv2 in its official layout, and the user's own rows, as one kind of question.

A data root holds the files as published (https://visualqa.org/download.html):
`v2_OpenEnded_mscoco_{split}_questions.json`, `v2_mscoco_{split}_annotations.json` (none for
test2015) and the pictures `{split}/COCO_{split}_{image_id:012d}.jpg`. Bad rows (a question without
annotation, a duplicate id, nine or eleven answers, a wrong type) are left out, counted and listed;
more than a bounded share of them is an error. No torch here.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.options import MissingError, UserError, read_json

SPLITS = ("train2014", "val2014", "test2015")
DOWNLOAD = {  # what fetches a split
    "train2014": "vqav2 --splits train  (train and val: vqav2)",
    "val2014": "vqav2 --limit 1000  (or all of it: vqav2)",
    "test2015": "vqav2 --splits test",
}
N_ANNOTATORS = 10
# A few broken rows are survivable, more say that the file is wrong: `bad_rows_allowed`.
BAD_ROW_SHARE, BAD_ROW_SHARE_OF_SMALL_FILES = 0.05, 0.1


@dataclass(frozen=True)
class Question:
    """One question about one picture; `references` are the annotators' strings as published."""

    sample_id: str
    image: Path | None  # None: asked without a picture (ScienceQA); VQAv2 has none of these
    image_name: str  # relative to the data root, forward slashes: what records keep
    image_id: int | str
    question: str
    references: tuple[str, ...] = ()
    question_type: str | None = None
    answer_type: str | None = None
    target: str | None = None  # the answer to learn: the most frequent one


@dataclass
class QuestionSet:
    """Usable questions of a file, in its order, and one line for each row that was left out."""

    questions: list[Question]
    problems: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> str:
        """A line for the console about rows that are not used, "" when there are none."""
        if not self.problems:
            return ""
        n = len(self.problems)
        return f"note: {n} bad row{'s' * (n > 1)} of the data not used; first: {self.problems[0]}"

    def sample(self, limit: int, seed: int) -> QuestionSet:
        """`limit` questions (0 = all) drawn with a private generator, in file order."""
        return QuestionSet(sample_questions(self.questions, limit, seed), self.problems)


def questions_file(data_root: Path, split: str) -> Path:
    return data_root / f"v2_OpenEnded_mscoco_{split}_questions.json"


def annotations_file(data_root: Path, split: str) -> Path:
    return data_root / f"v2_mscoco_{split}_annotations.json"


def image_name(split: str, image_id: int) -> str:
    return f"{split}/COCO_{split}_{image_id:012d}.jpg"


def sample_questions(questions: Sequence[Any], limit: int, seed: int) -> list[Any]:
    """The default sample: `limit` of them without replacement (0 = all), in their own order."""
    if not 0 < limit < len(questions):
        return list(questions)
    chosen = random.Random(seed).sample(range(len(questions)), limit)
    return [questions[i] for i in sorted(chosen)]


def load_split(data_root: Path, split: str) -> QuestionSet:
    """Questions of an official split with their annotations joined.

    Each question that is left out is one line in `problems`, naming the row at fault. Raises
    MissingError (download and toy command) when files are not there, UserError when the split is
    unknown, a file has another layout, too many rows are bad, or none is left.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; VQAv2 has {', '.join(SPLITS)}")
    if data_root.is_file():
        raise UserError(
            f"{data_root}: a file; --data_root takes the folder that holds the VQAv2 files "
            "(own rows go to --data)"
        )
    question_path = questions_file(data_root, split)
    annotation_path = annotations_file(data_root, split)
    for path in (question_path, annotation_path):
        if not path.is_file() and not (path == annotation_path and split == "test2015"):
            raise MissingError(
                f"{path} is not there.\n"
                f"  real data: python -m shared.download {DOWNLOAD[split]}\n"
                "  without any download: the same command with --toy"
            )
    # Half a million small objects: the cyclic collector would double the time and frees nothing.
    gc.disable()
    try:
        return _join_split(data_root, split, question_path, annotation_path)
    finally:
        gc.enable()


def _join_split(
    data_root: Path, split: str, question_path: Path, annotation_path: Path
) -> QuestionSet:
    rows = _list_under(question_path, "questions", split)
    annotations: dict[int, dict[str, Any]] = {}
    unusable: dict[int, str] = {}  # question_id -> what is wrong with its annotation
    problems: list[str] = []
    if annotation_path.is_file():
        for i, row in enumerate(_list_under(annotation_path, "annotations", split)):
            where = f"{annotation_path.name} row {i}"
            if not isinstance(row, dict) or not _is_whole(row.get("question_id")):
                problems.append(f"{where}: no whole-numbered question_id")
                continue
            question_id = row["question_id"]
            if question_id in annotations or question_id in unusable:
                problems.append(f"{where}: question_id {question_id} is annotated twice; the first "
                                "is used")  # fmt: skip
                continue
            problem = _annotation_problem(row)
            if problem:
                unusable[question_id] = f"{where}: question_id {question_id}: {problem}"
            else:
                annotations[question_id] = row
    questions: list[Question] = []
    seen: set[int] = set()
    for i, row in enumerate(rows):
        problem = _question_problem(row, seen)
        annotation = None if problem else annotations.get(row["question_id"])
        if not problem and row["question_id"] in unusable:
            problems.append(unusable[row["question_id"]])
            continue
        if not problem and annotation is None and split != "test2015":
            problem = f"question_id {row['question_id']} has no annotation"
        if not problem and annotation and annotation.get("image_id") != row["image_id"]:
            problem = (
                f"question_id {row['question_id']}: image_id {row['image_id']} here, "
                f"{annotation.get('image_id')} in its annotation"
            )
        if problem:
            problems.append(f"{question_path.name} row {i}: {problem}")
            continue
        seen.add(row["question_id"])
        questions.append(_official_question(data_root, split, row, annotation))
    check_usable(questions, problems, len(rows), question_path)
    return QuestionSet(questions, problems)


def _official_question(
    data_root: Path, split: str, row: dict[str, Any], annotation: dict[str, Any] | None
) -> Question:
    name = image_name(split, row["image_id"])
    question = Question(
        sample_id=str(row["question_id"]),
        image=data_root / name,
        image_name=name,
        image_id=row["image_id"],
        question=row["question"],
    )
    if annotation is None:
        return question
    return replace(
        question,
        references=tuple(answer["answer"] for answer in annotation["answers"]),
        question_type=annotation.get("question_type"),
        answer_type=annotation.get("answer_type"),
        target=annotation.get("multiple_choice_answer"),
    )


def _list_under(path: Path, key: str, split: str) -> list[Any]:
    """The list in an official file, which says itself of what split it is."""
    content = read_json(path)
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON object with a list under {key!r}")
    subtype = content.get("data_subtype", split)
    if subtype != split and (subtype, split) != ("test-dev2015", "test2015"):
        raise UserError(f"{path}: the file says that it is {subtype}, its name says {split}")
    return rows


def _question_problem(row: Any, seen: set[int]) -> str | None:
    if not isinstance(row, dict):
        return f"expected an object, found {type(row).__name__}"
    for key in ("question_id", "image_id"):
        if not _is_whole(row.get(key)):
            return f"{key} is {row.get(key)!r}, expected a whole number"
    if row["question_id"] in seen:
        return f"question_id {row['question_id']} stands twice; the first is used"
    if not isinstance(row.get("question"), str):
        return f"question_id {row['question_id']}: the question is not a string"
    if not row["question"].strip():
        return f"question_id {row['question_id']}: the question is empty"
    return None


def _annotation_problem(row: dict[str, Any]) -> str | None:
    answers = row.get("answers")
    if not isinstance(answers, list) or len(answers) != N_ANNOTATORS:
        found = len(answers) if isinstance(answers, list) else "no list of"
        return f"{found} answers, expected {N_ANNOTATORS}"
    if not all(isinstance(a, dict) and isinstance(a.get("answer"), str) for a in answers):
        return "an answer is not an object with a string 'answer'"
    if not isinstance(row.get("multiple_choice_answer"), str):
        return "multiple_choice_answer is not a string"
    return _type_problem(row)


def _type_problem(row: dict[str, Any]) -> str | None:
    """Groups of the figures are named by these two, which may be absent."""
    for key in ("question_type", "answer_type"):
        if not isinstance(row.get(key), str | None):
            return f"{key} is {row[key]!r}, expected a string"
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def bad_rows_allowed(n_rows: int) -> int:
    """5 % of a file; of a small one a tenth (at most 20 rows), and one in any case."""
    small = min(20, max(1, int(BAD_ROW_SHARE_OF_SMALL_FILES * n_rows)))
    return max(small, int(BAD_ROW_SHARE * n_rows))


def check_usable(
    questions: Sequence[Question], problems: Sequence[str], n_rows: int, path: Path
) -> None:
    """Raises UserError when no question is left, or more rows are bad than the bound allows."""
    listed = "\n  ".join(problems[:5]) or "the file is empty"
    if not questions:
        raise UserError(f"{path}: no usable row:\n  {listed}")
    if len(problems) > (allowed := bad_rows_allowed(n_rows)):
        raise UserError(
            f"{path}: {len(problems)} bad rows of {n_rows}, at most {allowed} are passed over; the "
            f"first:\n  {listed}"
        )


def load_rows(path: Path, *, need_answer: bool = False) -> QuestionSet:
    """Own rows from JSONL or CSV: `image`, `question` and, for training and scoring, `answer`.

    A CSV may have commas, semicolons or tabs between its columns, and capitals in their names.
    `image` is relative to the file. `answers` (ten strings) and `question_id`, `image_id` are taken
    when present, so `tiny.jsonl` is scored officially; with one answer exact match is the measure.
    An own row without `question` asks for a caption only. Raises UserError for an unreadable file.
    """
    if path.is_dir():
        raise UserError(
            f"{path}: a folder; own rows are a JSONL or CSV file with image, question, answer "
            "(a folder in the VQAv2 layout goes to --data_root)"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path)
    questions: list[Question] = []
    problems: list[str] = []
    seen: set[str] = set()
    n_rows = 0
    for where, row in rows:
        n_rows += 1
        problem = row if isinstance(row, str) else _own_row_problem(row, need_answer)
        if not problem:
            sample_id = str(where if row.get("question_id") is None else row["question_id"])
            if sample_id in seen:
                problem = f"question_id {sample_id} stands twice; the first is used"
        if problem:
            problems.append(f"{path.name} row {where}: {problem}")
            continue
        seen.add(sample_id)
        answers = row.get("answers") or ([row["answer"]] if row.get("answer") is not None else [])
        questions.append(
            Question(
                sample_id=sample_id,
                image=path.parent / row["image"],
                image_name=Path(row["image"]).as_posix(),
                image_id=row["image"] if row.get("image_id") is None else row["image_id"],
                question=row.get("question") or "",
                references=tuple(answers),
                question_type=row.get("question_type"),
                answer_type=row.get("answer_type"),
                target=row.get("answer")
                or (Counter(answers).most_common(1)[0][0] if answers else None),
            )
        )
    check_usable(questions, problems, n_rows, path)
    return QuestionSet(questions, problems)


def _own_row_problem(row: dict[str, Any], need_answer: bool) -> str | None:
    if not isinstance(row.get("image"), str) or not row["image"].strip():
        return f"'image' is {row.get('image')!r}, expected a path relative to the file"
    for key in ("question", "answer"):
        if row.get(key) is not None and not isinstance(row[key], str):
            return f"{key!r} is {row[key]!r}, expected a string"
    for key in ("question_id", "image_id"):
        if not isinstance(row.get(key), str | int | None):
            return f"{key!r} is {row[key]!r}, expected a number or a string"
    answers = row.get("answers")
    if answers is not None and (
        not isinstance(answers, list) or not all(isinstance(a, str) for a in answers)
    ):
        return "'answers' is not a list of strings"
    if need_answer and not (row.get("question") or "").strip():
        return "the question is empty"
    if need_answer and not (row.get("answer") or answers):
        return "no 'answer' to learn"
    return _type_problem(row)


def _read_jsonl(path: Path) -> Iterable[tuple[int, dict[str, Any] | str]]:
    """(line number, row), or a message in the place of a row that is not a JSON object."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not valid JSON ({error.msg})"
            continue
        yield number, row if isinstance(row, dict) else f"expected an object: {line.strip()}"


def _read_csv(path: Path) -> Iterable[tuple[int, dict[str, Any] | str]]:
    """(line number, row), or a message in the place of a row with more fields than columns."""
    text = _read_text(path)
    # Excel writes ";" where the comma is the decimal sign
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), skipinitialspace=True, delimiter=separator
    )
    try:
        names = [name.strip().lower() for name in reader.fieldnames or []]
        if "image" not in names:
            found = ", ".join(names) or "nothing"
            raise UserError(
                f"{path}: the first line must name the columns image,question,answer; it has: "
                f"{found}"
            )
        twice = [name for name, n in Counter(filter(None, names)).items() if n > 1]
        if twice:
            raise UserError(f"{path}: two columns are named {twice[0]}")
        reader.fieldnames = names
        for row in reader:
            if None in row:  # read on, the rest would be a cut question and a wrong answer
                yield reader.line_num, "more fields than columns: put texts with commas in quotes"
            else:
                yield reader.line_num, {key: value for key, value in row.items() if key and value}
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: not valid CSV ({error})") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
