"""What evaluate.py leaves at its end: rows and tables as files, figures and cases on the screen.

python llava_openset/evaluate.py --toy
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_openset.protocols import FULL
from llava_openset.scoring import UNKNOWN, Row
from shared.options import UserError, portable_path

N_CASES = 3
CLASS_COLUMNS = ("protocol", "class", "known", "query", "n", "correct", "value", "low", "high",
                 "correct_before_rejection")  # fmt: skip
# What is shown of cases: the protocol whose answers say most of them.
CASES: dict[str, Callable[[Row], bool]] = {
    "unknown called known": lambda row: not row["known"] and row["decision"] not in (None, UNKNOWN),
    "known rejected": lambda row: row["known"] and row["decision"] == UNKNOWN,
    "ambiguous": lambda row: row["match"] == "ambiguous",
}


# Files


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_per_class(path: Path, metrics: Mapping[str, Any]) -> None:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(CLASS_COLUMNS)
    for key, protocol in metrics["protocols"].items():
        for row in protocol["per_class"]:
            table.writerow([key, *(row[name] for name in CLASS_COLUMNS[1:])])
    write_text(path, text.getvalue())


def write_course_results(folder: Path, rows: Sequence[Row]) -> None:
    """The course's two files, of its protocol's test part: known samples, and unknown ones (own
    pictures where there are any, else the split's)."""
    course = [row for row in rows if row["protocol"] == "course" and row["part"] == "test"]
    if not course:
        return
    has_own = any(row["private"] for row in course)
    parts = {
        "known": [row for row in course if row["known"]],
        "private": [row for row in course if not row["known"] and row["private"] == has_own],
    }
    for name, own in parts.items():
        lines = [
            {
                "filename": Path(row["image"]).name,
                "label": row["label"],
                "output": row["answer"],
                "prediction": row["prediction"],
                "correct": row["correct"],
            }
            for row in own
        ]
        write_rows(folder / f"results_{name}.jsonl", lines)


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: a reader never finds half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


# The screen


def print_summary(
    folder: Path, rows: Sequence[Row], metrics: Mapping[str, Any], *, seed: int
) -> None:
    for name, protocol in metrics["protocols"].items():
        print_cases(name, [row for row in rows if row["protocol"] == name], seed)
        print_protocol(name, protocol)
    if any(metrics["synthetic"].values()):
        print("SYNTHETIC toy data or model: these figures say nothing about the real one")
    if metrics["pictures"] == "shuffled":
        print("CONTROL: each prompt was asked about another sample's picture")
    for note in (*metrics["notes"], *metrics["caveats"]):
        print(f"note: {note}")
    print(f"records and metrics: {portable_path(folder)}")


def print_protocol(name: str, protocol: Mapping[str, Any]) -> None:
    """A small table: what ranks, what is decided, what went wrong."""
    parts, counts = protocol["parts"]["test"], protocol["counts"]
    print(f"{name}: {parts['known']} known, {parts['unknown']} unknown in the test part")
    headline = protocol["headline"]
    figures = protocol["scores"][headline]["figures"]
    for label, key in (
        (f"AUROC of {headline}", "auroc"),
        ("OSCR", "oscr"),
        ("unknown accepted at 95 % of the known", "fpr95_known_positive"),
        ("class right, before rejection", "closed_set_accuracy"),
    ):
        print(f"  {label:<38} {shown(figures[key])}")
    print(f"  {decision_line(protocol)}")
    for key, figure in protocol["course_figures"].items():
        of = f" ({figure['successes']} of {figure['n']})" if figure["n"] else ""
        print(f"  {key.replace('_', ' '):<38} {shown(figure)}{of}")
    odd = {key: counts[key] for key in ("errors", "missing", "empty", "cut") if counts[key]}
    for kind, match in protocol["matches"].items():
        odd |= {f"{m} of {kind}": match[m] for m in ("abstain", "ambiguous") if match[m]}
    if odd:
        print("  " + ", ".join(f"{n} {what}" for what, n in odd.items()))
    if "pairs" in protocol:
        pair = protocol["pairs"]["higher_with_full_list"]["max_softmax"]
        print(f"  {'max_softmax falls without its class':<38} {shown(pair)}")


def decision_line(protocol: Mapping[str, Any]) -> str:
    decision = protocol["decision"]
    if decision["score"] == "answer":
        return "decided by the answer itself:"
    if decision["threshold"] is None:
        return f"no threshold ({decision['reason']}): nothing is rejected:"
    chosen = protocol["scores"][decision["score"]]["threshold"]
    return (
        f"{decision['score']} >= {decision['threshold']:.4g} is known ({chosen['criterion']} of "
        f"{chosen['n_known']} known, {chosen['n_unknown']} unknown validation samples):"
    )


def shown(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"none ({figure['reason']})"
    interval = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{interval}"


def print_cases(name: str, rows: Sequence[Row], seed: int) -> None:
    """Three seeded cases each of what can go wrong in the test part."""
    test = [row for row in rows if row["part"] == "test" and row["query"] in (None, FULL)]
    for kind, is_case in CASES.items():
        found = [row for row in test if is_case(row)]
        if not found:
            continue
        print(f"{name}, {kind}: {len(found)}")
        for row in random.Random(seed).sample(found, min(N_CASES, len(found))):
            print(f"  {row['image']}  {row['label']}  ->  {row['answer']!r} ({row['decision']})")
