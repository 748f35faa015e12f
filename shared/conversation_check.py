"""Looking through a conversation file: counts, languages, and every problem by row and field.

    python -m shared.conversations data/llava/finetune.json --image_root data/llava --validate
    python -m shared.conversations data/toy/llava/finetune.jsonl --validate     (the toy's)

Reads the rows and the headers of their pictures, decodes none, writes nothing. Without `--validate`
only the first rows are looked at. The exit status is 1 when a row has a problem.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from shared.conversation_files import Conversations, open_conversations, row_images
from shared.images import header_size
from shared.options import UserError

SHOWN_PROBLEMS = 20
QUICK_ROWS = 1000  # looked at without --validate
CHINESE = re.compile(r"[\u4e00-\u9fff]")
KANA = re.compile(r"[\u3040-\u30ff]")
LATIN_WORD = re.compile(r"[A-Za-z]{2,}")


def check_conversations(
    rows: Conversations, limit: int = 0, progress: bool = False
) -> dict[str, Any]:
    """Counts and problems of the first `limit` rows (0 = all), as JSON can hold them.

    A row with any problem counts under `bad_rows` alone; `problems` lists the first 20, each with
    file, row and field.
    """
    from tqdm import tqdm

    n = min(limit or len(rows), len(rows))
    counts: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    problems: list[str] = []
    for i in tqdm(range(n), desc="rows", disable=not progress, leave=False):
        try:
            row = rows[i]
            images = row_images(row, rows.image_root)
            for image in images:
                header_size(image)
        except UserError as error:
            counts["bad_rows"] += 1
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(_located(rows, i, error))
            continue
        counts["turns"] += len(row["conversations"])
        counts["images"] += len(images)
        counts["image_rows" if images else "text_only_rows"] += 1
        counts["rows_of_several_images"] += len(images) > 1
        languages[language_of(" ".join(turn["value"] for turn in row["conversations"]))] += 1
    kinds = ("turns", "images", "image_rows", "rows_of_several_images", "text_only_rows")
    return {
        "file": str(rows.path),
        "rows": len(rows),
        "checked_rows": n,
        "good_rows": n - counts["bad_rows"],
        **{kind: counts[kind] for kind in kinds},
        "languages": dict(sorted(languages.items())),
        "bad_rows": counts["bad_rows"],
        "problems": problems,
    }


def _located(rows: Conversations, i: int, error: UserError) -> str:
    """The message with file and row in front, where it doesn't name them already."""
    where = rows.where(i)
    message = str(error)
    if message.startswith(where):
        return message
    return f"{where}: {message if message.startswith('image') else f'image: {message}'}"


def language_of(text: str) -> str:
    """ "zh", "latin" (English and its neighbours) or "other", by the script that prevails.

    A Chinese character counts like a Latin word: both are about one token of meaning.
    """
    chinese, words = len(CHINESE.findall(text)), len(LATIN_WORD.findall(text))
    if KANA.search(text) or not chinese + words:
        return "other"
    return "zh" if chinese > words else "latin"


def print_report(report: dict[str, Any]) -> None:
    """The report of `check_conversations` as a few lines."""
    n = report["checked_rows"]
    share = "" if n == report["rows"] else f", the first {n} checked (all with --validate)"
    languages = ", ".join(f"{name} {n}" for name, n in report["languages"].items()) or "none"
    print(
        f"{report['file']}: {report['rows']} rows{share}\n"
        f"  good rows {report['good_rows']}: {report['turns']} turns, {report['images']} pictures; "
        f"{report['image_rows']} rows with pictures ({report['rows_of_several_images']} with "
        f"several), {report['text_only_rows']} text only\n"
        f"  languages: {languages}\n"
        f"  bad rows {report['bad_rows']}"
    )
    for problem in report["problems"]:
        print(f"  - {problem}")
    if report["bad_rows"] > len(report["problems"]):
        print(f"  ... and {report['bad_rows'] - len(report['problems'])} more")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m shared.conversations",
        description="what a conversation file holds, and what is wrong with it",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="LLaVA JSON, JSON lines or Parquet")
    parser.add_argument(
        "--image_root",
        type=Path,
        help="where the pictures' paths start; default: the file's folder",
    )
    parser.add_argument("--validate", action="store_true", help="every row, every picture's header")
    options = parser.parse_args(argv)
    rows = open_conversations(options.file, options.image_root)
    report = check_conversations(rows, 0 if options.validate else QUICK_ROWS, progress=True)
    print_report(report)
    if report["bad_rows"]:
        sys.exit(1)
