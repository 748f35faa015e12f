"""Answers as other tools keep them: LLaVA's JSON lines, VLMEvalKit's tables, lmms-eval's samples.

All are read into LLaVA's row, {"question_id", "prompt", "text", "status"}, which
`tasks.match_answers` takes to its question; LLaVA's and VLMEvalKit's are also written, so that a
run here is scored by those tools too. A file that is not in its layout is a UserError with the
line. Used by score.py and evaluate.py. No torch.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks import Sample
from llava_repro.tasks.common import LETTERS, Record, answer_of
from shared.conversation_files import IMAGE_TAG
from shared.options import UserError, read_json

ANSWER_FORMATS = ("llava", "records", "vlmevalkit", "lmms-eval")
FAILED = "Failed to obtain answer"  # what VLMEvalKit keeps where its model raised an error

Row = dict[str, Any]


def read_answers(path: Path, answers_format: str, samples: Sequence[Sample]) -> list[Row]:
    """Rows {"question_id", "prompt", "text", "status"} of a file in one of ANSWER_FORMATS."""
    if answers_format == "llava":
        return read_llava(path)
    if answers_format == "records":
        return read_predictions(path)
    if answers_format == "vlmevalkit":
        return read_vlmevalkit(path)
    if answers_format == "lmms-eval":
        return read_lmms_eval(path, samples)
    raise UserError(f"unknown format {answers_format!r}; one of {', '.join(ANSWER_FORMATS)}")


def read_llava(path: Path) -> list[Row]:
    """LLaVA's answers file: a JSON object a line with question_id, text and usually prompt."""
    rows = []
    for number, row in _json_lines(path):
        if not isinstance(row.get("question_id"), int | str):
            raise UserError(
                f"{path} line {number}: no question_id; LLaVA's answers are "
                '{"question_id": ..., "prompt": "...", "text": "..."} (other tools: '
                "--answers_format)"
            )
        if not isinstance(row.get("text"), str):
            raise UserError(f"{path} line {number}: text is {row.get('text')!r}, expected a text")
        rows.append(
            {
                "question_id": row["question_id"],
                "prompt": row.get("prompt"),
                "text": row["text"],
                "status": "ok",
            }
        )
    return rows


def write_llava(
    path: Path, samples: Sequence[Sample], records: Mapping[str, Record], model_id: str
) -> int:
    """Answers for LLaVA's own scripts, in the order of the questions; returns how many.

    The prompt is the question as LLaVA's files have it, with `<image>` only where
    eval_science_qa.py looks for it. `category` is what eval_pope.py looks for in its
    --question-file, so that an answers file of POPE is both of its inputs. Questions without an
    answer are left out, as there.
    """
    lines = []
    for sample in samples:
        answer = answer_of(records.get(sample.sample_id))
        if answer is None:
            continue
        line = {
            "question_id": sample.llava_id,
            "prompt": llava_prompt(sample, sample.prompt),
            "text": answer,
            "answer_id": sample.sample_id,
            "model_id": model_id,
            "metadata": {},
        }
        lines.append(line | ({"category": sample.question_type} if sample.question_type else {}))
    write_lines(path, lines)
    return len(lines)


def llava_prompt(sample: Sample, prompt: str) -> str:
    """`<image>` before the prompt of a multiple choice about a picture, as ScienceQA's files have
    it: eval_science_qa.py counts such answers in its figure for questions with a picture."""
    shown = sample.choices and sample.image is not None and IMAGE_TAG not in prompt
    return f"{IMAGE_TAG}\n{prompt}" if shown else prompt


def read_predictions(path: Path) -> list[Row]:
    """Our own predictions.jsonl."""
    from shared.answering import read_records

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return [
        {
            "question_id": sample_id,
            "prompt": record.get("prompt"),
            "text": record.get("answer") or "",
            "status": record.get("status", "ok"),
        }
        for sample_id, record in read_records(path).items()
    ]


def vlmevalkit_table(path: Path) -> list[Row]:
    """Rows of VLMEvalKit's prediction file (PRED_FORMAT=tsv or json), columns as they are named.

    Its default .xlsx loses long texts and texts that begin like an address, so it is not read.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: expected a JSON list of objects, one a question")
    elif suffix in (".tsv", ".csv"):
        csv.field_size_limit(2**31 - 1)  # a column may hold a whole picture
        text = io.StringIO(_text(path), newline="")
        try:
            rows = list(csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ","))
        except csv.Error as error:
            raise UserError(f"{path}: not a table ({error})") from error
    else:
        raise UserError(
            f"{path}: VLMEvalKit's .tsv or .json is read (PRED_FORMAT=tsv python run.py ...)"
        )
    for number, row in enumerate(rows, start=1):
        missing = [name for name in ("index", "question", "prediction") if name not in row]
        if missing:
            raise UserError(f"{path} row {number}: no column {', '.join(missing)}")
        if None in row:
            raise UserError(f"{path} row {number}: more fields than columns")
    return rows


def read_vlmevalkit(path: Path) -> list[Row]:
    """The predictions; one that says "Failed to obtain answer" is an error."""
    rows = []
    for row in vlmevalkit_table(path):
        text = _cell(row["prediction"])
        rows.append(
            {
                "question_id": _cell(row["index"]),
                "prompt": None,
                "text": text,
                "status": "error" if FAILED in text else "ok",
            }
        )
    return rows


def vlmevalkit_samples(path: Path, task: str) -> list[Sample]:
    """The questions of a VLMEvalKit file from the file itself: its index is no official id.

    Its columns `answer` and A, B, C, ... are the references and choices; a list of ten answers is
    kept there as Python text. Pictures are not in it, so intervals take each row as its own.
    """
    samples = []
    for number, row in enumerate(vlmevalkit_table(path), start=1):
        key, answer = _cell(row["index"]), _cell(row.get("answer"))
        cells = [_cell(row.get(letter)) for letter in LETTERS[:5]]
        choices = tuple(cells[: next((i for i, c in enumerate(cells) if not c), len(cells))])
        correct = None
        if task == "pope":
            answer = answer.lower()
        elif task == "scienceqa":
            correct = LETTERS.find(answer) if len(answer) == 1 else -1
        known = {"pope": answer in ("yes", "no"), "scienceqa": -1 < (correct or 0) < len(choices)}
        if not known.get(task, bool(answer)):
            raise UserError(f"{path} row {number}: answer is {row.get('answer')!r}; not {task}")
        references = _listed(answer)
        samples.append(
            Sample(
                sample_id=key,
                image=Path(f"{key}.jpg"),
                image_name=f"{key}.jpg",
                image_id=f"{key}.jpg",
                question=_cell(row["question"]),
                references=references,
                question_type=_cell(row.get("category")) or None,
                target=max(references, key=references.count),
                llava_id=key,
                choices=choices,
                correct=correct,
            )
        )
    return samples


def write_vlmevalkit(path: Path, samples: Sequence[Sample], records: Mapping[str, Record]) -> None:
    """A prediction file for VLMEvalKit, .tsv or .json; its index is our sample id.

    An answer that is not there is written as VLMEvalKit writes its own failures.
    """
    width = max((len(sample.choices) for sample in samples), default=0)
    rows = []
    for sample in samples:
        answer = answer_of(records.get(sample.sample_id))
        reference = (sample.target or "").capitalize()
        if len(sample.references) > 1:
            reference = str(list(sample.references))
        elif sample.answer_type != "yes/no":
            reference = sample.target or ""
        row = {"index": sample.sample_id, "question": sample.question}
        row |= {LETTERS[i]: (*sample.choices, *[""] * width)[i] for i in range(width)}
        row |= {"answer": reference, "category": sample.question_type or ""}
        row["prediction"] = FAILED if answer is None else answer
        rows.append(row)
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(rows, indent=4, ensure_ascii=False))
    elif path.suffix.lower() == ".tsv":
        text = io.StringIO()
        writer = csv.DictWriter(
            text,
            rows[0] if rows else [],
            delimiter="\t",
            quoting=csv.QUOTE_ALL,
            lineterminator="\n",
        )
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
    else:
        raise UserError(f"{path}: VLMEvalKit's predictions are written as .tsv or .json")


def read_lmms_eval(path: Path, samples: Sequence[Sample]) -> list[Row]:
    """The answers of a `*_samples_*.jsonl` of lmms-eval (--log_samples).

    The document itself is not in that file, and no prompt says that a picture was shown: for
    ScienceQA our annotations do (`llava_prompt`).

    Where the metrics carry a question_id that is one of ours and stands once (VQAv2, TextVQA; POPE
    with one split), it decides; else doc_id counts in the data set's order, and then the target and
    the question must be those of our sample there.
    """
    lines = list(_json_lines(path))
    answers = [_response(path, number, row) for number, row in lines]
    ids = [_nested_question_id(row) for _, row in lines]
    known = {sample.sample_id: sample for sample in samples}
    if len(set(ids)) == len(ids) and set(ids) <= set(known):
        keys = ids
    else:
        keys = [_by_position(path, number, row, samples) for number, row in lines]
    found = []
    for key, text, (_, row) in zip(keys, answers, lines, strict=True):
        asked = row.get("input")
        prompt = llava_prompt(known[key], asked) if isinstance(asked, str) else None
        found.append({"question_id": key, "prompt": prompt, "text": text, "status": "ok"})
    return found


def _response(path: Path, number: int, row: Row) -> str:
    """filtered_resps: a text, or a list of one; resps where only that is kept."""
    value = row.get("filtered_resps", row.get("resps"))
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise UserError(f"{path} line {number}: filtered_resps is {value!r}, expected one text")
    return value


def _nested_question_id(row: Row) -> str | None:
    for value in row.values():
        if isinstance(value, dict) and isinstance(value.get("question_id"), int | str):
            return str(value["question_id"])
    return None


def _by_position(path: Path, number: int, row: Row, samples: Sequence[Sample]) -> str:
    position = row.get("doc_id")
    if not isinstance(position, int) or not 0 <= position < len(samples):
        raise UserError(
            f"{path} line {number}: doc_id is {position!r}, of {len(samples)} questions"
        )
    sample = samples[position]
    target = str(row.get("target", "")).strip().lower()
    asked = str(row.get("input", "")).lower()
    same_target = not sample.target or target == sample.target.lower() or len(sample.references) > 1
    if not same_target or sample.question.strip().lower() not in asked:
        raise UserError(
            f"{path} line {number}: doc_id {position} is {row.get('input')!r} with target "
            f"{row.get('target')!r}, our question {position} is {sample.question!r} with "
            f"{sample.target!r}: another split or order, so the answers cannot be told apart"
        )
    return sample.sample_id


def _json_lines(path: Path) -> list[tuple[int, Row]]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number}: not valid JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number}: expected a JSON object, found {line[:60]!r}")
        rows.append((number, row))
    if not rows:
        raise UserError(f"{path}: the file is empty")
    return rows


def _cell(value: Any) -> str:
    """A table's cell as text: pandas keeps a number for "2" and NaN for an empty one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _listed(answer: str) -> tuple[str, ...]:
    """ "['a', 'b']" -> its texts, anything else -> itself; only literals are read, nothing runs."""
    if answer.startswith("["):
        try:
            values = ast.literal_eval(answer)
        except (ValueError, SyntaxError):
            values = None
        if isinstance(values, list) and values:
            return tuple(map(str, values))
    return (answer,)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
