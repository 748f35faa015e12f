"""What a run of describe_images.py leaves: training rows, and figures by template.

Usable descriptions become LLaVA rows in `train.json` and `validation.json`, with `dataset.json`
beside them (`data_formats.open_data` reads the folder). A picture is in one of the two parts only,
and so are files of the same content. A row asks a plain instruction, not the engineered prompt, so
that the trained model describes without being told how.

    python -m pytest tests/qwen_clip_llava_lora/test_describe.py

Writes into the run folder. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.describing import CUT, Picture, Task, total
from shared.options import REPO_ROOT, UserError, write_json

STATUSES = ("ok", "malformed", "error", "skipped", "missing")
FIRST = 5  # problems shown in words
NO_PRICE = "no price: --price_in and --price_out"
NO_TOKENS = "the answers came without token counts"


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all. Raises UserError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def validation_pictures(pictures: Sequence[Picture], share: float, seed: int) -> set[str]:
    """Names of the pictures held out, `share` of the different ones by content; at least one where
    any are, never all. The order is by hash: a few pictures more move few to the other part."""
    contents = {
        picture.name: hashlib.sha256(f"{seed}/{content_hash(picture.path)}".encode()).hexdigest()
        for picture in pictures
    }
    different = sorted(set(contents.values()))
    if share == 0 or len(different) < 2:
        return set()
    chosen = set(different[: min(max(1, round(share * len(different))), len(different) - 1)])
    return {name for name, content in contents.items() if content in chosen}


def content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def training_rows(tasks: Sequence[Task], model: str, seed: int) -> tuple[list[dict[str, Any]], int]:
    """A LLaVA row for each usable description, and how many were left out because the same text of
    the same picture is there already."""
    rows, seen = [], set()
    usable = [task for task in tasks if task.status == "ok"]
    for task in usable:
        text = task.template.describe(task.values)
        if (task.picture.name, text) in seen:
            continue
        seen.add((task.picture.name, text))
        instruction = random.Random(f"{seed}/{task.key}").choice(task.template.instructions)
        rows.append(
            {
                "id": task.key,
                "image": task.picture.name,
                "conversations": [
                    {"from": "human", "value": f"<image>\n{instruction}"},
                    {"from": "gpt", "value": text},
                ],
                "language": task.template.language,
                "source": {
                    "template": task.template.name,
                    "model": model,
                    "sample": task.sample,
                },
            }
        )
    return rows, len(usable) - len(rows)


def write_training_data(
    folder: Path,
    tasks: Sequence[Task],
    image_root: Path,
    *,
    model: str,
    source: str,
    synthetic: bool,
    share: float,
    seed: int,
) -> dict[str, int]:
    """train.json, validation.json (none without rows), dataset.json; returns the counts."""
    rows, n_duplicates = training_rows(tasks, model, seed)
    described = dict.fromkeys(task.picture for task in tasks if task.status == "ok")
    held_out = validation_pictures(list(described), share, seed)
    parts = {
        "train": [row for row in rows if row["image"] not in held_out],
        "validation": [row for row in rows if row["image"] in held_out],
    }
    counts = {part: len(own) for part, own in parts.items()} | {"duplicates": n_duplicates}
    for part, own in parts.items():
        if own or part == "train":
            write_json(folder / f"{part}.json", own)
        else:
            (folder / f"{part}.json").unlink(missing_ok=True)  # of an earlier start
    write_json(
        folder / "dataset.json",
        {
            "kind": "caption",
            "classes": [],
            "source": source,
            "synthetic": synthetic,
            "image_root": root_for(image_root, folder),
            "format_notes": f"LLaVA rows written by describe_images.py; descriptions by {model}, "
            "`source` of a row names the template",
            "counts": counts,
        },
    )
    return counts


def root_for(image_root: Path, folder: Path) -> str:
    """The pictures' folder as dataset.json names it: relative where both lie in the repository,
    which may be moved, else whole."""
    root, folder = Path(os.path.abspath(image_root)), Path(os.path.abspath(folder))
    if root.is_relative_to(REPO_ROOT) and folder.is_relative_to(REPO_ROOT):
        return Path(os.path.relpath(root, folder)).as_posix()
    return str(root)


# Figures


def template_figures(
    tasks: Sequence[Task], price_in: float | None, price_out: float | None
) -> dict[str, Any]:
    """Counts, tokens, time and cost of one template's tasks, unusable answers and all."""
    statuses = Counter(task.status for task in tasks)
    records = [task.record() for task in tasks if task.replies]
    problems = [problem for task in tasks for problem in task.problems]
    cut = CUT.partition("{")[0]
    tokens = {
        kind: total([record[kind] for record in records])
        for kind in ("prompt_tokens", "answer_tokens")
    }
    seconds = total([record["seconds"] for record in records])
    n_ok = statuses["ok"]
    return {
        "language": tasks[0].template.language,
        "descriptions": len(tasks),
        **{status: statuses[status] for status in STATUSES},
        "requests": sum(record["requests"] for record in records),
        "connection_retries": sum(record["retries"] for record in records),
        "unusable_answers": {
            "count": len(problems),
            "cut": sum(problem.startswith(cut) for problem in problems),
            "first": list(dict.fromkeys(problems))[:FIRST],
        },
        "errors": list(dict.fromkeys(str(t.problem) for t in tasks if t.status == "error"))[:FIRST],
        **tokens,
        "request_seconds": seconds,
        "seconds_per_usable": round(seconds / n_ok, 3) if seconds is not None and n_ok else None,
        **cost_figures(tokens["prompt_tokens"], tokens["answer_tokens"], price_in, price_out, n_ok),
    }


def cost_figures(
    prompt_tokens: int | None,
    answer_tokens: int | None,
    price_in: float | None,
    price_out: float | None,
    n_usable: int,
) -> dict[str, Any]:
    """Tokens times price per million, in the currency of the prices; null with a reason."""
    if price_in is None or price_out is None:
        return {"cost": None, "cost_per_1000_usable": None, "cost_reason": NO_PRICE}
    if prompt_tokens is None or answer_tokens is None:
        return {"cost": None, "cost_per_1000_usable": None, "cost_reason": NO_TOKENS}
    cost = (prompt_tokens * price_in + answer_tokens * price_out) / 1e6
    each = round(1000 * cost / n_usable, 6) if n_usable else None
    return {"cost": round(cost, 6), "cost_per_1000_usable": each}
