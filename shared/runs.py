"""Finished runs of `evaluate.py`: reading them, telling whether two may be compared, comparing.

Two runs are comparable when the same questions were asked with the same prompt and decoding, in the
same precision, and are scored by the same metric; then any difference is the model's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.answering import read_records
from shared.options import RESULT_NEUTRAL, UserError, read_json
from shared.report import p_value
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
AGAIN = "the same evaluate.py command scores the run again"
ASK_AGAIN = "delete that line, and the same evaluate.py command answers the question again"
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
    and for a row or figure that a comparison cannot use, naming file and field."""
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
    predictions = folder / "predictions.jsonl"
    for key in scored:
        lacking = next((name for name in RECORD_FIELDS if name not in records[key]), None)
        if lacking:
            raise UserError(f"{predictions}: the record of {key} has no {lacking!r}; {ASK_AGAIN}")
        check_fields(records[key], RECORD_FIELDS, f"{predictions}: the record of {key}", ASK_AGAIN)
        check_fields(scored[key], SCORED_FIELDS, f"{folder / 'scored.jsonl'}: {key}", AGAIN)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'}: not a run's options, but {config!r:.40}")
    return Run(
        folder=folder,
        config=config,
        metrics=read_metrics(folder / "metrics.json"),
        records={key: records[key] for key in scored},
        scored=scored,
    )


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def is_share_or_none(value: Any) -> bool:
    """0..1, with room for the rounding of an exponential."""
    return value is None or (is_number(value) and 0 <= value <= 1 + 1e-6)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_figure(value: Any) -> bool:
    """An estimate: a percentage or null, its interval around it where there is one."""
    if not isinstance(value, dict):
        return False
    parts = [value.get(name) for name in ("low", "value", "high")]
    given = [part for part in parts if part is not None]
    return all(map(is_number, given)) and given == sorted(given) and all(
        0 <= part <= 100 for part in given
    )  # fmt: skip


def are_figures(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_figure, value.values()))


def are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(n, int) and not isinstance(n, bool) for n in value.values()
    )


def are_problems(value: Any) -> bool:
    """Of the data: how many, and the first ones in words."""
    if not isinstance(value, dict) or not is_texts(value.get("first")):
        return False
    count = value.get("count")
    return is_number(count) and count >= len(value["first"]) and bool(count) == bool(value["first"])


# Field -> whether a value can be used, and in words what it should be.
Fields = Mapping[str, tuple[Callable[[Any], bool], str]]
TEXT, TEXT_OR_NULL = (is_text, "a text"), (is_text_or_none, "a text or null")
SHARE = (is_share_or_none, "a number from 0 to 1 or null")
RECORD_FIELDS: Fields = {
    **dict.fromkeys(("sample_id", "image", "question", "status"), TEXT),
    **dict.fromkeys(("question_type", "answer_type", "raw_output", "answer"), TEXT_OR_NULL),
    **dict.fromkeys(("finish_reason", "error"), TEXT_OR_NULL),
    "references": (is_texts, "a list of texts"),
    "confidence": SHARE,
}
SCORED_FIELDS: Fields = {
    "sample_id": TEXT,
    "score": SHARE,
    "question_type": TEXT_OR_NULL,
    "answer_type": TEXT_OR_NULL,
}
FIGURE = (is_figure, "an estimate in percent whose interval holds it")
METRICS_FIELDS: Fields = {
    "metric": TEXT,
    **dict.fromkeys(("accuracy", "exact_match", "excluding_errors", "blind"), FIGURE),
    **dict.fromkeys(("per_answer_type", "per_question_type"), (are_figures, "estimates by name")),
    "counts": (are_counts, "whole numbers by name"),
    "synthetic": (lambda value: isinstance(value, dict), "data and model: true or false"),
    "data_problems": (are_problems, "a count and the first problems in words"),
}


def check_fields(row: Mapping[str, Any], fields: Fields, where: str, mend: str) -> None:
    """Raises UserError for the first field that is there and is not what it should be."""
    for name, (fits, expected) in fields.items():
        if name in row and not fits(row[name]):
            raise UserError(f"{where}: {name!r} is {row[name]!r:.60}, not {expected}; {mend}")


def read_metrics(path: Path) -> dict[str, Any]:
    """Raises UserError with the field that a comparison or page could not use."""
    metrics = read_json(path)
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: not a run's figures, but {metrics!r:.40}; {AGAIN}")
    lacking = next((name for name in ("metric", "accuracy") if name not in metrics), None)
    if lacking:
        raise UserError(f"{path}: no {lacking!r} in it; {AGAIN}")
    check_fields(metrics, METRICS_FIELDS, str(path), AGAIN)
    return metrics


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
    return (
        f"{100 * comparison.difference:+.2f} points {interval}, "
        f"p {p_value(comparison.p_value)} ({comparison.test}), "
        f"n {comparison.n}, {comparison.wins} better / {comparison.ties} equal / "
        f"{comparison.losses} worse"
    )
