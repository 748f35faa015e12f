"""Run folders as the first words of a command line, and which finished runs there are. No torch.

python llava_openset/compare.py RUN RUN
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.options import OUTPUTS, UserError, portable_path, read_json

RUNS = OUTPUTS / "llava_openset"


def finished_runs() -> str:
    """For a message: one folder a line."""
    found = sorted(portable_path(file.parent) for file in RUNS.glob("*/metrics.json"))
    return "\n  ".join(found) or "none yet: python llava_openset/evaluate.py --toy makes one"


def chosen_folders(runs: Sequence[str] | None, toy: bool) -> list[Path]:
    """The given folders, or with --toy the newest two toy runs. Raises UserError for others."""
    if not runs and toy:
        return newest_toy_runs()
    if not runs or len(runs) < 2:
        raise UserError(
            f"give two runs or more: compare.py RUN RUN. Finished ones here:\n  {finished_runs()}"
        )
    folders = [Path(folder) for folder in runs]
    twice = next(
        (f for f in folders if [x.resolve() for x in folders].count(f.resolve()) > 1), None
    )
    if twice:
        raise UserError(f"{twice}: given twice; a run has nothing to be compared with in itself")
    return folders


def newest_toy_runs() -> list[Path]:
    """Older first. Raises UserError when there are not two on one split."""
    by_split: dict[str, list[tuple[float, Path]]] = {}
    for file in RUNS.glob("*/metrics.json"):
        metrics = read_json(file)
        if isinstance(metrics, dict) and any((metrics.get("synthetic") or {}).values()):
            split = (metrics.get("split") or {}).get("data_hash")
            by_split.setdefault(split, []).append((file.stat().st_mtime, file.parent))
    pairs = [sorted(found)[-2:] for found in by_split.values() if len(found) > 1]
    if not pairs:
        raise UserError(
            "there are no two toy runs on one split; python llava_openset/evaluate.py --toy, and "
            "again with --pictures shuffled, make them"
        )
    return [folder for _, folder in max(pairs, key=lambda pair: pair[-1][0])]
