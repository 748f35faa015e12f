"""Looking through a finished comparison question by question: which runs, which questions, where.

Pure functions without a page. A folder typed by a visitor is opened only under the outputs folder
or when the operator named it. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.comparison import Pair, is_unusable, locate, pair_up, same_words
from shared.options import REPO_ROOT, UserError, portable_path, read_json
from shared.runs import Run, read_run

KINDS = ("all", "improved", "worsened", "same", "errors")
ALL_TYPES = ""
RUN_FILES = ("config.json", "metrics.json", "predictions.jsonl", "scored.jsonl")
EQUAL = 1e-9  # scores are sums of tenths
QUICKSTART = ("quickstart_zero-shot", "quickstart_tuned")  # what `make quickstart` leaves


@dataclass(frozen=True)
class Comparison:
    """Two runs and their common questions."""

    base: Run
    tuned: Run
    pairs: list[Pair]

    @property
    def synthetic(self) -> bool:
        return any(any(r.metrics.get("synthetic", {}).values()) for r in (self.base, self.tuned))

    @property
    def shuffled(self) -> bool:
        return any(r.config.get("pictures") == "shuffled" for r in (self.base, self.tuned))


def chosen_runs(
    comparison: str | None, base_run: str | None, tuned_run: str | None, runs: Path
) -> tuple[Path | None, Path | None]:
    """The folders named by flags: each run, else those of `compare.py`'s folder, else quickstart's.

    Raises UserError when a given folder is not there.
    """
    given: list[str | None] = [base_run, tuned_run]
    if comparison:
        if Path(comparison).is_file():
            raise UserError(
                f"{comparison}: a file; --comparison takes the folder: {Path(comparison).parent}"
            )
        content = read_json(Path(comparison) / "comparison.json")
        try:
            compared = [str(locate(content[side]["folder"])) for side in ("base", "tuned")]
        except (KeyError, TypeError) as error:
            raise UserError(f"{comparison}: its comparison.json names no two runs") from error
        given = [flag or found for flag, found in zip(given, compared, strict=True)]
    elif not any(given):
        given = [str(runs / name) if (runs / name).is_dir() else None for name in QUICKSTART]
    for folder in given:
        if folder and Path(folder).is_file():
            raise UserError(f"{folder}: a file; expected the run's folder: {Path(folder).parent}")
        if folder and not Path(folder).is_dir():
            raise UserError(f"{folder}: no such run folder; evaluate.py writes it")
    base, tuned = (Path(folder).resolve() if folder else None for folder in given)
    return base, tuned


def finished_runs(outputs: Path, experiment: str) -> list[str]:
    """Runs of `evaluate.py` to choose from: this experiment's and the committed samples."""
    found = [
        file.parent
        for group in (experiment, "sample")
        for file in sorted((outputs / group).glob("*/scored.jsonl"))
        if all((file.parent / name).is_file() for name in RUN_FILES)
    ]
    return [portable_path(folder) for folder in found]


def permitted_folder(
    typed: str, outputs: Path, experiment: str, given: Collection[Path]
) -> Path | None:
    """The folder that a visitor may open under this name, or None.

    A name counts from the repository or from the experiment's runs; links and `..` are resolved
    before it is judged.
    """
    for start in (REPO_ROOT, outputs / experiment):
        try:
            folder = (start / typed.strip()).resolve()
            inside = folder in given or folder.is_relative_to(outputs.resolve())
            if inside and folder.is_dir():
                return folder
        except (OSError, ValueError):  # a null byte, a name of a thousand characters
            continue
    return None


def missing_file(folder: Path) -> str | None:
    """The first file of a finished run that is not in the folder."""
    return next((name for name in RUN_FILES if not (folder / name).is_file()), None)


def open_comparison(base: Path, tuned: Path) -> Comparison:
    """Both runs, read again only when they changed. Raises UserError."""
    stamps = tuple(
        (folder / name).stat().st_mtime_ns for folder in (base, tuned) for name in RUN_FILES
    )
    return _read_comparison(base, tuned, stamps)


@lru_cache(maxsize=4)
def _read_comparison(base: Path, tuned: Path, stamps: tuple[int, ...]) -> Comparison:
    runs = read_run(base), read_run(tuned)
    return Comparison(*runs, pair_up(*runs))


def is_kind(pair: Pair, kind: str) -> bool:
    """Changed scores where there are references, else only whether the words are the same."""
    if kind == "errors":
        return any(is_unusable(record) for record in (pair.base, pair.tuned))
    if kind == "same":
        return abs(pair.change) < EQUAL if pair.scored else same_words(pair)
    if kind == "improved":
        return pair.scored and pair.change > EQUAL
    if kind == "worsened":
        return pair.scored and pair.change < -EQUAL
    return True


def count_kinds(pairs: Sequence[Pair]) -> dict[str, int]:
    return {kind: sum(is_kind(pair, kind) for pair in pairs) for kind in KINDS}


def count_types(pairs: Sequence[Pair]) -> dict[str, int]:
    """Answer types, then question types, each from the largest."""
    counts: dict[str, int] = {}
    for key in ("answer_type", "question_type"):
        found = Counter(pair.base[key] for pair in pairs if pair.base[key])
        counts |= {name: n for name, n in found.most_common() if name not in counts}
    return counts


def select(pairs: Sequence[Pair], kind: str, type_name: str, text: str) -> list[Pair]:
    """Pairs of a kind and type in which the text occurs (case ignored), in the runs' order."""
    wanted = text.casefold().strip()
    return [
        pair
        for pair in pairs
        if is_kind(pair, kind)
        and type_name in (ALL_TYPES, pair.base["answer_type"], pair.base["question_type"])
        and (not wanted or wanted in searchable(pair))
    ]


def searchable(pair: Pair) -> str:
    words = [pair.sample_id, pair.base["question"], pair.base["answer"], pair.tuned["answer"]]
    return "\n".join([*(word or "" for word in words), *pair.base["references"]]).casefold()


def clamp_position(position: Any, n: int) -> int:
    """A position typed by a visitor -> 1..n (0 when there is nothing)."""
    try:
        wanted = int(position)
    except (TypeError, ValueError, OverflowError):
        wanted = 1
    return min(max(wanted, 1), n)
