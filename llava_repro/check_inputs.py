"""Whether what a pipeline reads is on this machine: models, training data, benchmarks. Exit 2.

Called by pipeline.sh before its hours of training; looks at names, sizes and headers, loads
nothing.

    python llava_repro/check_inputs.py llava_repro/configs/english_pretrain.yaml \
        llava_repro/configs/english_finetune.yaml --tasks pope gqa
    bash llava_repro/pipeline_toy.sh      (the toy pipeline needs nothing, so nothing is checked)

Reads the presets, `data/` and the models' folders. Writes nothing; prints what is missing and the
command that brings it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_repro.settings import from_root
from shared.datasets_index import holds, load_index
from shared.doctor_checks import check_by_hand, check_split
from shared.hub_models import folder_problems
from shared.loading import model_folder
from shared.options import DATA_ROOT, MissingError, UserError, guarded

TASKS = ("vqav2", "gqa", "textvqa", "scienceqa", "pope")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="+", type=Path, help="YAML files of train.py")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[], help="of evaluate.py")
    options = parser.parse_args(argv)
    problems = [p for preset in options.presets for p in preset_problems(preset)]
    problems += [p for task in options.tasks for p in task_problems(task)]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        raise MissingError(f"not on this machine, or not whole:\n{listed}")
    print("models, training data and benchmarks are here")


def preset_problems(preset: Path) -> list[str]:
    """The models and the training data that a preset names. Raises UserError for no such preset."""
    import yaml

    try:
        settings: dict[str, Any] = yaml.safe_load(preset.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{preset}: cannot be read: {error.strerror or error}") from error
    models = [settings[key] for key in ("model", "vision_tower", "language_model")
              if key in settings]  # fmt: skip
    problems = [p for model in models for p in model_problems(model)]
    return problems + training_data_problems(settings["data"], settings.get("image_root"))


def model_problems(model: str) -> list[str]:
    try:
        problems = folder_problems(model_folder(model))
    except MissingError:
        problems = ["not on this machine"]
    mend = f"python -m shared.download {model}"
    return [f"{model}: {problem}\n    {mend}" for problem in problems]


def training_data_problems(data: str, image_root: str | None) -> list[str]:
    """The index knows LLaVA's files and their pictures; of others the file and any picture."""
    for dataset in load_index()["by_hand"].values():
        if data.removeprefix("data/") in dataset.files:
            return by_hand_problems(dataset.name)
    file = Path(from_root(data) or data)
    pictures = Path(from_root(image_root) or file.parent)
    mend = "\n    llava_repro/prepare_data.py writes it; where the data comes from: data/README.md"
    problems = [] if file.is_file() else [f"{data}: no such file{mend}"]
    if not holds(pictures, 1):
        problems.append(f"{image_root or pictures}: no pictures\n    see data/README.md")
    return problems


def task_problems(task: str) -> list[str]:
    if task != "vqav2":
        return by_hand_problems(task)
    index = load_index()
    archives = [index["archives"][name] for name in index["datasets"]["vqav2"]["splits"]["val"]]
    command = "python -m shared.download vqav2 --splits val"
    result = check_split("vqav2_val", archives, DATA_ROOT / "vqav2", command, None)
    return [] if result.status == "ok" else [f"vqav2: {result.detail}\n    {result.mend}"]


def by_hand_problems(name: str) -> list[str]:
    result = check_by_hand(load_index()["by_hand"][name], DATA_ROOT)
    return [] if result.status == "ok" else [f"{name}: {result.detail}\n    {result.mend}"]


if __name__ == "__main__":
    guarded(main)
