"""A finished run of `llava_openset/evaluate.py`, read and checked: what its report and compare use.

    run = read_run(Path("outputs/llava_openset/RUN"))
    table = columns(run, "likelihood", "max_softmax")     # scores, labels, predictions by sample

Reads config.json, environment.json, scored.jsonl and metrics.json of the folder. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_openset import scoring
from llava_openset.protocols import LEFT_OUT
from shared.comparison import locate
from shared.options import UserError, read_json

SCRIPT, VERSION = "evaluate", 1
AGAIN = "the same evaluate.py command scores the run again"
UNKNOWN = scoring.UNKNOWN
# Which protocol leads the page, fixed before any figure: the one with a score for every class
# first, then free answers by how much the prompt tells the model.
LEADING = (
    "likelihood", "freetext-list_unknown", "freetext-list", "freetext-open_unknown",
    "freetext-open", "course", "two_query",
)  # fmt: skip
# Figures by what a protocol decides, and by how its headline score ranks.
DECISIONS = (
    "closed_set_accuracy", "known_accept_rate", "known_correct_and_accepted",
    "unknown_reject_rate", "normalised_accuracy", "macro_f1_with_unknown",
)  # fmt: skip
RANKING = (
    "auroc", "oscr", "aupr_known", "aupr_unknown", "fpr95_known_positive",
    "fpr95_unknown_positive", "aurc", "ece", "brier",
)  # fmt: skip
PROTOCOL_FIELDS = (
    "kind", "prompt", "rule", "counts", "parts", "decision", "headline", "scores", "matches",
    "course_figures", "own_pictures", "per_class", "confusion",
)  # fmt: skip
ROW_FIELDS = (
    "sample_id", "protocol", "query", "part", "known", "label", "present", "image", "image_id",
    "status", "answer", "match", "prediction", "decision", "correct", "correct_class", "scores",
)  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True)
class OpenSetRun:
    """One run folder; `rows` are those of scored.jsonl by protocol, in the run's order."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def protocols(self) -> dict[str, Any]:
        return self.metrics["protocols"]

    @property
    def known_classes(self) -> list[str]:
        return self.metrics["split"]["known"]

    @property
    def leading(self) -> str:
        """The protocol that the verdict, the first figures and the gallery are about."""
        named = [key for key in LEADING if key in self.protocols]
        return named[0] if named else next(iter(self.protocols))

    @property
    def leading_first(self) -> list[str]:
        return [self.leading, *(key for key in self.protocols if key != self.leading)]

    @property
    def without_threshold(self) -> list[str]:
        """Protocols whose decision needs a threshold that was not chosen: predictions stand."""
        return [
            key
            for key, described in self.protocols.items()
            if described["decision"]["threshold"] is None
        ]

    def test_rows(self, protocol: str, *, left_out: bool = True) -> list[dict[str, Any]]:
        """The rows that are scored; without `left_out` one a picture, asked with the whole list."""
        return [
            row
            for row in self.rows[protocol]
            if row["part"] == "test" and (left_out or row.get("query") != LEFT_OUT)
        ]

    def picture(self, row: Row) -> Path:
        """The file of a row's picture, whether or not it is there."""
        own = self.config.get("private_images")
        if row.get("private") and own:
            return locate(own).parent / row["image"]
        return locate(self.metrics["split"]["folder"]) / row["image"]


@dataclass(frozen=True)
class Columns:
    """What `llava_openset.metrics` takes, one row a sample, and the rows that they came from."""

    rows: Sequence[Row]
    scores: list[float]
    labels: list[int]
    predictions: list[int]


def columns(rows: Iterable[Row], score: str, known_classes: Sequence[str]) -> Columns:
    """Scores, labels and predictions of rows of one protocol, as their figures were computed."""
    rows = list(rows)
    return Columns(rows, *scoring.columns(rows, known_classes, score))


def read_run(folder: Path) -> OpenSetRun:
    """Raises UserError when the folder is no finished run, or names the file and field at fault."""
    if folder.is_file():
        raise UserError(f"{folder}: a file; expected the run's folder: {folder.parent}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; llava_openset/evaluate.py writes it")
    for name in ("config.json", "scored.jsonl", "metrics.json"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no {name} in it. It is not a finished run of llava_openset/evaluate.py;"
                " the same evaluate.py command goes on with an unfinished one"
            )
    metrics = read_metrics(folder / "metrics.json")
    environment = folder / "environment.json"
    return OpenSetRun(
        folder=folder,
        config=_object(folder / "config.json"),
        environment=_object(environment) if environment.is_file() else {},
        metrics=metrics,
        rows=read_scored(folder / "scored.jsonl", metrics),
    )


def read_metrics(path: Path) -> dict[str, Any]:
    """Raises UserError for a run of another experiment or version, and for what is not whole."""
    metrics = _object(path)
    if metrics.get("script") != SCRIPT or not isinstance(metrics.get("protocols"), dict):
        raise UserError(f"{path}: not the figures of a run of llava_openset/evaluate.py")
    if metrics.get("version") != VERSION:
        raise UserError(
            f"{path}: version {metrics.get('version')!r}, this program reads {VERSION}; {AGAIN}"
        )
    for name in ("split", "model", "synthetic", "caveats", "scoring"):
        if name not in metrics:
            raise UserError(f"{path}: no {name!r} in it; {AGAIN}")
    if not metrics["protocols"]:
        raise UserError(f"{path}: no protocol in it; {AGAIN}")
    for key, protocol in metrics["protocols"].items():
        lacking = next((name for name in PROTOCOL_FIELDS if name not in protocol), None)
        if lacking:
            raise UserError(f"{path}: protocol {key} has no {lacking!r}; {AGAIN}")
        for score in (protocol["headline"], protocol["decision"]["score"]):
            if score not in protocol["scores"]:
                raise UserError(f"{path}: protocol {key} has no score {score!r}; {AGAIN}")
        for score, scored in protocol["scores"].items():
            for name, entry in scored["figures"].items():
                if not is_entry(entry):
                    raise UserError(
                        f"{path}: {name} of {key} ({score}) is {entry!r:.60}, not a figure with "
                        f"its interval, or null with its reason; {AGAIN}"
                    )
    return metrics


def is_entry(entry: Any) -> bool:
    """A figure with its interval around it, or null with a reason."""
    if not isinstance(entry, dict) or "value" not in entry:
        return False
    given = [entry.get(name) for name in ("low", "value", "high")]
    numbers = [part for part in given if part is not None]
    if not all(isinstance(part, int | float) and math.isfinite(part) for part in numbers):
        return False
    if entry["value"] is None:
        return bool(entry.get("reason"))
    # a percentile interval may leave its figure out (ECE is biased in resamples), not turn round
    low, high = entry.get("low"), entry.get("high")
    return low is None or high is None or low <= high


def read_scored(path: Path, metrics: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows by protocol. Raises UserError with the line that cannot be used."""
    known = set(metrics["split"]["known"])
    found: dict[str, list[dict[str, Any]]] = {key: [] for key in metrics["protocols"]}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        problem = ""
        try:
            row = json.loads(line)
            lacking = [name for name in ROW_FIELDS if name not in row]
        except (ValueError, TypeError) as error:
            row, lacking, problem = {}, [], f"not JSON ({error})"
        if lacking:
            problem = f"no {lacking[0]!r}"
        elif not problem and row["protocol"] not in found:
            problem = f"protocol {row['protocol']!r} is not in metrics.json"
        elif not problem and row["known"] and row["label"] not in known:
            problem = f"label {row['label']!r} is not a known class of metrics.json"
        if problem:
            raise UserError(f"{path} line {number}: {problem}; {AGAIN}")
        found[row["protocol"]].append(row)
    empty = [key for key, rows in found.items() if not any(row["part"] == "test" for row in rows)]
    if empty:
        raise UserError(f"{path}: no row of the test part for protocol {empty[0]}; {AGAIN}")
    return found


def split_rules(run: OpenSetRun) -> dict[str, Any] | None:
    """The rules of the run's split, by its split.json; None when that is gone or another one."""
    file = locate(run.metrics["split"]["folder"]) / "split.json"
    try:
        content = read_json(file)
    except UserError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("rules"), dict):
        return None
    split = run.metrics["split"]
    same = content.get("seed") == split["seed"] and all(
        content.get("classes", {}).get(side) == split[side] for side in ("known", "unknown")
    )
    if not split.get("n_private"):  # own pictures enter the run's hash
        same = same and content.get("data_hash") == split["data_hash"]
    return content["rules"] if same else None


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, not {content!r:.40}; {AGAIN}")
    return content
