"""Which runs compare.py compares, and where the pictures of their records lie. No torch.

python llava_repro/compare.py RUN RUN [RUN ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.settings import RUNS
from llava_repro.tasks import TASKS
from shared.comparison import locate
from shared.options import UserError, portable_path, read_json
from shared.runs import Run


def runs_first(argv: Sequence[str]) -> list[str]:
    """`RUN RUN --flag` is `--runs RUN RUN --flag`; a leading .yaml of options stays what it is."""
    argv = list(argv)
    given = bool(argv) and not argv[0].startswith("-")
    return ["--runs", *argv] if given and Path(argv[0]).suffix not in (".yaml", ".yml") else argv


def chosen_folders(runs: Sequence[str] | None, toy: bool) -> list[Path]:
    """The given folders, or with --toy the newest two of one task. Raises UserError for others."""
    if not runs and toy:
        return newest_toy_runs()
    if not runs or len(runs) < 2:
        finished = sorted(portable_path(p.parent) for p in RUNS.glob("*/scored.jsonl"))
        there = "\n  ".join(finished) or (
            "none yet: python llava_repro/evaluate.py --task pope --toy makes one"
        )
        raise UserError(
            f"give two runs or more: compare.py RUN RUN. Finished ones here:\n  {there}"
        )
    return [Path(folder) for folder in runs]


def newest_toy_runs() -> list[Path]:
    """Older first. Raises UserError when no toy task has two finished runs."""
    by_task: dict[str, list[tuple[float, Path]]] = {}
    for file in RUNS.glob("*/metrics.json"):
        metrics = read_json(file)
        if (file.parent / "scored.jsonl").is_file() and any(
            (metrics.get("synthetic") or {}).values()
        ):
            by_task.setdefault(metrics["task"], []).append((file.stat().st_mtime, file.parent))
    pairs = [sorted(found)[-2:] for found in by_task.values() if len(found) > 1]
    if not pairs:
        raise UserError(
            "no toy task has two finished runs; python llava_repro/evaluate.py --task pope --toy, "
            "and again with --pictures shuffled, make them"
        )
    return [folder for _, folder in max(pairs, key=lambda pair: pair[-1][0])]


def task_of(runs: Sequence[Run]) -> str:
    """Raises UserError when the runs are of several tasks, or of another experiment."""
    tasks = {run.name: run.config.get("task") for run in runs}
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise UserError(f"these are runs of different tasks ({listed})")
    task = next(iter(tasks.values()))
    if task not in TASKS:
        raise UserError(f"{runs[0].folder}: not a run of llava_repro/evaluate.py")
    return task


def find_picture(record: Mapping[str, Any], runs: Sequence[Run]) -> Path:
    """The picture file of a record, whether or not it is there; the first of several."""
    name = record["image"].split(" + ")[0]
    roots = [run.config.get("image_root") for run in runs]
    tried = [locate(root) / name for root in roots if root] or [Path(name)]
    return next((path for path in tried if path.is_file()), tried[0])
