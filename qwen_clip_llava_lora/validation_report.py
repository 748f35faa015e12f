"""What prepare_data.py found: counts, lengths, missing pictures, duplicates, leakage; as a page.

Leakage is looked for again in the finished splits by the pictures' content. No picture is shown:
faces and medical pictures are personal data. Used by `preparing.py`; no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

from shared.conversation_check import language_of

NO_PICTURES = "No picture is shown here: faces and medical pictures are personal data."


@dataclass(frozen=True)
class Kept:
    """A row that can be used; `digests` are its pictures by content (of its text where none)."""

    row: dict[str, Any]
    place: str
    split: str
    digests: tuple[str, ...]
    picture_inside: bool = False


def build_report(
    splits: Mapping[str, Sequence[Kept]],
    counts: Mapping[str, Any],
    config: Mapping[str, Any],
    synthetic: bool,
    hashed: bool,
) -> dict[str, Any]:
    """Everything that validation_report.json holds. `hashed`: pictures were told by content."""
    pictures = Counter(d for rows in splits.values() for one in rows for d in one.digests)
    return {
        "synthetic": synthetic,
        "options": dict(config),
        "pictures_by": "content" if hashed else "name (dry run)",
        "rows_read": counts["read"],
        "rows_kept": sum(map(len, splits.values())),
        "left_out": dict(sorted(counts["left_out"].items())),
        "bad_rows": {"total": counts["problems"], "first": counts["first_problems"]},
        "missing_pictures": {"total": counts["missing"], "first": counts["first_missing"]},
        "duplicate_rows_left_out": counts["duplicates"],
        "pictures_in_several_rows": sum(n > 1 for n in pictures.values()),
        "leakage": {
            "rows_left_out": counts["leaks"],  # their picture is in the official test part
            "pictures_in_two_splits": leakage(splits),
        },
        "splits": {name: describe(rows) for name, rows in splits.items()},
    }


def leakage(splits: Mapping[str, Sequence[Kept]]) -> dict[str, int]:
    """How many pictures two splits have in common, by content."""
    pictures = {name: {d for one in rows for d in one.digests} for name, rows in splits.items()}
    return {f"{a}/{b}": len(pictures[a] & pictures[b]) for a, b in combinations(pictures, 2)}


def describe(rows: Sequence[Kept]) -> dict[str, Any]:
    """Counts and lengths of one split; lengths are characters, None where there is no row."""
    turns = [turn for one in rows for turn in one.row["conversations"]]
    answers = [len(turn["value"]) for turn in turns if turn["from"] == "gpt"]
    questions = [len(turn["value"]) for turn in turns if turn["from"] == "human"]
    texts = (" ".join(t["value"] for t in one.row["conversations"]) for one in rows)
    return {
        "rows": len(rows),
        "pictures": len({d for one in rows for d in one.digests}),
        "turns": len(turns),
        "answer_characters": lengths(answers),
        "question_characters": lengths(questions),
        "languages": dict(sorted(Counter(map(language_of, texts)).items())),
        "classes": dict(sorted(Counter(o.row["label"] for o in rows if "label" in o.row).items())),
    }


def lengths(values: Sequence[int]) -> dict[str, float] | None:
    """Smallest, median, mean, 95th percentile (the value at that rank), largest."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": median(ordered),
        "mean": round(mean(ordered), 1),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }


def text_summary(report: Mapping[str, Any]) -> str:
    """The report as lines for the terminal."""
    lines = [f"{report['rows_read']} rows read, {report['rows_kept']} kept"]
    for name, split in report["splits"].items():
        answers = split["answer_characters"]
        size = f", answers of {answers['median']:g} characters (median)" if answers else ""
        lines.append(f"  {name}: {split['rows']} rows, {split['pictures']} pictures{size}")
        if split["classes"]:
            lines.append("    " + ", ".join(f"{c} {n}" for c, n in split["classes"].items()))
    lines += [f"  left out, {reason}: {n}" for reason, n in report["left_out"].items()]
    for key, label in (("missing_pictures", "missing pictures"), ("bad_rows", "bad rows")):
        found = report[key]
        lines.append(f"  {label}: {found['total']}")
        lines += [f"    - {text}" for text in found["first"][:5]]
    shared = report["leakage"]["pictures_in_two_splits"]
    leaks, by = report["leakage"]["rows_left_out"], report["pictures_by"]
    lines += [
        f"  duplicate rows left out: {report['duplicate_rows_left_out']}",
        f"  pictures in several rows: {report['pictures_in_several_rows']}",
        f"  rows left out whose picture is in the official test part: {leaks}",
        f"  pictures in two splits (by {by}): {sum(shared.values())}",
    ]
    return "\n".join(lines)


def write_html(path: Path, report: Mapping[str, Any]) -> None:
    """The report as one page. Raises UserError when it can't be written."""
    from shared.report import Report, Row, Section, Table, Text, Tile, write_report

    splits = report["splits"]
    shared = sum(report["leakage"]["pictures_in_two_splits"].values())
    bad, missing = report["bad_rows"]["total"], report["missing_pictures"]["total"]

    def figures(found: Mapping[str, float] | None) -> list[str]:
        names = ("min", "median", "mean", "p95", "max")
        return [f"{found[name]:g}" if found else "–" for name in names]

    def languages(found: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {n}" for name, n in found.items()) or "–"

    sizes = [
        Row([name, f"{s['rows']:,}", f"{s['pictures']:,}", languages(s["languages"])])
        for name, s in splits.items()
    ]
    texts = [
        Row([f"{name}: {kind}", *figures(split[f"{kind}_characters"])])
        for name, split in splits.items()
        for kind in ("question", "answer")
    ]
    blocks: list[Any] = [
        Table(["Split", "Rows", "Pictures", "Languages"], sizes, "Rows", text_columns=(0, 3)),
        Table(["Characters", "Min", "Median", "Mean", "95 %", "Max"], texts, "Lengths"),
    ]
    classes = sorted({label for split in splits.values() for label in split["classes"]})
    if classes:
        per_split = [[f"{s['classes'].get(c, 0):,}" for s in splits.values()] for c in classes]
        rows = [Row([c, *counts]) for c, counts in zip(classes, per_split, strict=True)]
        blocks.append(Table(["Class", *splits], rows, "Classes"))
    lost = [Row([reason, f"{n:,}"]) for reason, n in report["left_out"].items()]
    lost += [
        Row(["duplicate row", f"{report['duplicate_rows_left_out']:,}"]),
        Row(["picture is in the official test part", f"{report['leakage']['rows_left_out']:,}"]),
        Row(["picture missing", f"{missing:,}"], tone="bad" if missing else ""),
        Row(["bad row", f"{bad:,}"], tone="bad" if bad else ""),
    ]
    common = [
        Row([pair, f"{n:,}"], tone="bad" if n else "")
        for pair, n in report["leakage"]["pictures_in_two_splits"].items()
    ]
    listed = [*report["missing_pictures"]["first"], *report["bad_rows"]["first"]]
    problems = Table(["Row"], [Row([text]) for text in listed or ["none"]], "The first bad rows")
    options = [Row([name, str(value)]) for name, value in report["options"].items()]
    verdict = f"{report['rows_kept']:,} of {report['rows_read']:,} rows are kept. "
    verdict += (
        f"{shared} pictures are in two splits: figures on them are not to be trusted."
        if shared
        else "No picture is in two splits, by its content."
    )
    write_report(
        path,
        Report(
            title=f"Data: {report['options']['dataset']}",
            subtitle=f"from {report['options']['source']}",
            verdict=verdict,
            tiles=[
                Tile("missing pictures", f"{missing:,}", tone="bad" if missing else "good"),
                Tile("bad rows", f"{bad:,}", tone="bad" if bad else "good"),
                Tile("pictures in two splits", f"{shared:,}", tone="bad" if shared else "good"),
            ],
            sections=[
                Section("splits", "Splits", blocks),
                Section(
                    "left_out",
                    "Left out",
                    [
                        Table(["Why", "Rows"], lost, "By reason"),
                        Table(["Splits", "Pictures"], common, "Pictures in two splits"),
                        problems,
                    ],
                ),
                Section(
                    "options",
                    "How it was made",
                    [Table(["Option", "Value"], options, text_columns=(0, 1)), Text([NO_PICTURES])],
                ),
            ],
            synthetic="toy data" if report["synthetic"] else "",
        ),
    )
