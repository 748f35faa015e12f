"""Which runs compare.py compares, and where the pictures of their records lie. No torch.

python llava_repro/compare.py RUN RUN [RUN ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from llava_repro.evaluation_scoring import scorer
from llava_repro.settings import RUNS, TRAIN_TYPES
from llava_repro.tasks import TASKS
from shared.comparison import locate
from shared.comparison_many import reasons_against_all
from shared.options import UserError, portable_path
from shared.runs import Run, read_run

NEWLINE = "\n  "
# config.json's keys that say who answered, by content: the models' folders may be named otherwise
ANSWERED_BY = ("model_fingerprint", "adapter_fingerprint", "answers_hash")


def chosen_folders(runs: Sequence[str] | None, toy: bool) -> list[Path]:
    """The given folders, or with --toy the newest comparable two. Raises UserError for others."""
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
    """The newest toy run that can be compared and the newest one before it that it can be compared
    with: same task and questions, asked alike, another model. Raises UserError when there is none.
    """
    runs: list[Run] = []  # newest first
    for file in sorted(RUNS.glob("*/metrics.json"), key=lambda f: f.stat().st_mtime, reverse=True):
        try:
            run = read_run(file.parent)
        except UserError:  # unfinished or damaged: nothing to compare
            continue
        if any((run.metrics.get("synthetic") or {}).values()):
            runs.append(run)
    for newer, older in combinations(runs, 2):
        if can_be_compared(older, newer):
            return [older.folder, newer.folder]
    raise UserError(
        "no two toy runs of other models answered the same questions alike. These commands, in "
        f"order, make two:\n  {NEWLINE.join(toy_commands())}"
    )


def can_be_compared(older: Run, newer: Run) -> bool:
    """Whether other models gave the two runs' answers, and main() would not refuse them."""
    tasks = {run.config.get("task") for run in (older, newer)}
    answered = [[run.config.get(key) for key in ANSWERED_BY] for run in (older, newer)]
    if len(tasks) > 1 or not tasks <= TASKS.keys() or answered[0] == answered[1]:
        return False
    return not reasons_against_all([older, newer], scorer(tasks.pop()))


def toy_commands() -> list[str]:
    """What leads to two toy runs that can be compared: both stages, asked the same questions."""
    trained, asked = [], []
    for stage in TRAIN_TYPES:
        model = RUNS / f"toy_{stage}" / "model"
        if not model.is_dir():
            trained.append(f"python llava_repro/train.py --toy --stage {stage}")
        path = portable_path(model)
        asked.append(f"python llava_repro/evaluate.py --toy --task pope --model {path}")
    return trained + asked


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
