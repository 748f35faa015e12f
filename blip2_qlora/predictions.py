"""Files of `predict.py` as runs without scores, for the gallery of `compare.py`. No torch.

python blip2_qlora/compare.py --base_run before.jsonl --tuned_run after.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip2_qlora.scoring import score_record
from shared.options import UserError
from shared.runs import Run


def read_predictions(file: Path) -> Run:
    """A file of `predict.py` as a run without scores; rows are known by picture and question.

    Raises UserError naming the line that is no such row.
    """
    try:
        # not splitlines(): an answer may hold U+2028, which JSON leaves as it is
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    records: dict[str, dict[str, Any]] = {}
    synthetic = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, question = row["image_path"], row["question"] or ""
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} line {number}: not a row of predict.py ({error})") from error
        key = name = f"{image} {question}".strip()
        repetition = 2
        while key in records:
            key, repetition = f"{name} ({repetition})", repetition + 1
        synthetic = synthetic or bool(row.get("synthetic"))
        error = row.get("error")
        said = row.get("answer") if question else row.get("caption")
        records[key] = {
            "sample_id": key, "image": image, "image_id": image, "question": question,
            "question_type": None, "answer_type": None, "prompt": None, "raw_output": None,
            "answer": said, "caption": row.get("caption"), "references": [],
            "confidence": row.get("confidence"), "finish_reason": None,
            "status": "error" if error else "ok", "error": error,
        }  # fmt: skip
    if not records:
        raise UserError(f"{file}: no rows; predict.py --output writes them")
    scored = {key: score_record(record) for key, record in records.items()}
    return Run(file, {}, {"metric": None, "synthetic": {"model": synthetic}}, records, scored)
