"""Finished runs of `evaluate.py`: reading them, telling whether two may be compared, comparing.

Two runs are comparable when the same questions were asked with the same prompt and decoding, in the
same precision, and are scored by the same metric; then any difference is the model's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.answering import read_records
from shared.options import RESULT_NEUTRAL, UserError, read_json
from shared.significance import PairedComparison, compare_paired

# What may differ between a base and a tuned run of one comparison, besides RESULT_NEUTRAL.
ADAPTER = {"adapter", "adapter_fingerprint"}
ANSWERS = {"answers", "answers_format", "answers_hash"}  # another tool's, scored here
FREE = RESULT_NEUTRAL | ADAPTER | ANSWERS | {"model", "model_fingerprint", "revision", "device"}
# Options whose effect is compared where it is recorded: `asked`, `compute_dtype`, the ids.
RAW = {"preset", "prompt", "greedy", "dtype", "limit", "template", "max_new_tokens"}
# What makes the sample of two runs of one model the same.
SAMPLE = {"task", "data", "data_root", "split", "data_hash", "limit", "seed", "pictures"}
SCORED_KEYS = ("sample_id", "score", "image_id", "question_type", "answer_type")
RECORD_KEYS = ("sample_id", "image", "question", "question_type", "answer_type", "raw_output",
               "answer", "references", "confidence", "finish_reason", "status",
               "error")  # fmt: skip
NAMES = {  # config key -> what a reader calls it
    "asked": "prompt or decoding",
    "compute_dtype": "dtype",
    "quantization": "quantisation",
    "pictures": "pictures shown",
}


@dataclass(frozen=True)
class Run:
    """One run folder, read whole; records and scores by sample_id, in the run's order."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    records: dict[str, dict[str, Any]]
    scored: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name


def read_run(folder: Path) -> Run:
    """Raises UserError when the folder is no finished run, naming the command that finishes it,
    and for a row that lacks what a comparison needs, naming it."""
    if folder.is_file():
        raise UserError(f"{folder}: a file; expected the run's folder: {folder.parent}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; evaluate.py writes it")
    for name in ("config.json", "metrics.json", "predictions.jsonl", "scored.jsonl"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no {name} in it. It is not a finished run of evaluate.py; "
                "the same evaluate.py command goes on with an unfinished one"
            )
    scored = read_scored(folder / "scored.jsonl")
    records = read_records(folder / "predictions.jsonl")
    absent = [key for key in scored if key not in records]
    if absent:
        raise UserError(
            f"{folder}: {len(absent)} scored questions have no record, the first {absent[0]}; the "
            "same evaluate.py command answers them"
        )
    for key in scored:
        lacking = next((name for name in RECORD_KEYS if name not in records[key]), None)
        if lacking:
            raise UserError(
                f"{folder / 'predictions.jsonl'}: the record of {key} has no {lacking!r}; delete "
                "that line, and the same evaluate.py command answers the question again"
            )
    return Run(
        folder=folder,
        config=read_json(folder / "config.json"),
        metrics=read_json(folder / "metrics.json"),
        records={key: records[key] for key in scored},
        scored=scored,
    )


def read_scored(path: Path) -> dict[str, dict[str, Any]]:
    """sample_id -> its row of `scored.jsonl`. Raises UserError with the line that is none."""
    scored = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            scored[row["sample_id"]] = row
            lacking = [name for name in SCORED_KEYS if name not in row]
            if lacking:
                raise KeyError(lacking[0])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} line {number}: not a row of scores ({error}); the same evaluate.py "
                "command scores the run again"
            ) from error
    return scored


def differences_in_kind(base: Run, tuned: Run) -> list[str]:
    """Why the two runs should not be compared, one line each; empty when they may."""
    reasons = []
    only_base, only_tuned = base.scored.keys() - tuned.scored, tuned.scored.keys() - base.scored
    if only_base or only_tuned:
        reasons.append(
            f"questions differ: {len(only_base)} only in {base.name}, "
            f"{len(only_tuned)} only in {tuned.name}"
        )
    if base.metrics["metric"] != tuned.metrics["metric"]:
        reasons.append(f"protocol: {base.metrics['metric']} against {tuned.metrics['metric']}")
    own_pictures = base.config.get("pictures") == tuned.config.get("pictures") == "own"
    ignored = FREE | RAW | ({"seed"} if own_pictures else set())  # else the seed deals the pictures
    for key, (ours, theirs) in differing_options(base.config, tuned.config, ignored).items():
        reasons.append(f"{NAMES.get(key, key)}: {ours!r} against {theirs!r}")
    return reasons


def differing_options(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], ignored: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """Option -> both values, where they differ; of nested options only the ones that do."""
    found = {}
    for key in sorted((ours.keys() | theirs.keys()) - set(ignored)):
        values = ours.get(key), theirs.get(key)
        if values[0] == values[1]:
            continue
        if all(isinstance(value, dict) for value in values):
            inside = differing_options(*values, ()).items()
            values = {k: v[0] for k, v in inside}, {k: v[1] for k, v in inside}
        found[key] = values
    return found


def paired_scores(base: Run, tuned: Run) -> tuple[list[float], list[float], list[Any]]:
    """Headline scores (0..1) of the questions both runs scored, and their pictures' ids."""
    both = [
        key
        for key, row in base.scored.items()
        if row["score"] is not None and tuned.scored.get(key, {}).get("score") is not None
    ]
    return (
        [base.scored[key]["score"] for key in both],
        [tuned.scored[key]["score"] for key in both],
        [base.scored[key]["image_id"] for key in both],
    )


def compare_runs(base: Run, tuned: Run) -> PairedComparison:
    """The paired comparison of the headline metric, values 0..1."""
    return compare_paired(*paired_scores(base, tuned))


def find_zero_shot(folder: Path) -> tuple[Path | None, list[str]]:
    """The zero-shot run beside `folder` of the same sample and base model, and how it differs.

    The one with the fewest differences, then the newest; without any it can be compared.
    """
    ours = read_json(folder / "config.json")
    ignored = RESULT_NEUTRAL | ADAPTER | RAW | {"device", "model", "revision"}
    found: list[tuple[int, float, Path, list[str]]] = []
    for metrics_file in folder.parent.glob("*/metrics.json"):
        config_file = metrics_file.with_name("config.json")
        if not config_file.is_file():
            continue
        try:
            theirs = read_json(config_file)
        except UserError:
            continue
        if not isinstance(theirs, dict):  # a broken neighbour is no reason to fail here
            continue
        same = all(ours.get(k) == theirs.get(k) for k in SAMPLE | {"model_fingerprint", "script"})
        if theirs.get("adapter") or not same:
            continue
        differences = [
            f"{NAMES.get(key, key)} ({there!r} there, {here!r} here)"
            for key, (here, there) in differing_options(ours, theirs, ignored).items()
        ]
        age = -metrics_file.stat().st_mtime
        found.append((len(differences), age, config_file.parent, differences))
    return min(found)[2:] if found else (None, [])


def summary_line(comparison: PairedComparison) -> str:
    """Difference in percentage points with interval, p, n and wins/ties/losses, as text."""
    if comparison.difference is None:
        return f"no difference to report ({comparison.note})"
    interval = (
        "no interval"
        if comparison.low is None
        else f"[{100 * comparison.low:+.2f}, {100 * comparison.high:+.2f}]"
    )
    p_value = "none" if comparison.p_value is None else f"{comparison.p_value:.2g}"
    return (
        f"{100 * comparison.difference:+.2f} points {interval}, p {p_value} ({comparison.test}), "
        f"n {comparison.n}, {comparison.wins} better / {comparison.ties} equal / "
        f"{comparison.losses} worse"
    )
