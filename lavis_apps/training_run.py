"""A training run: validation by evaluate.py's own code, its folder's records, what came out.

The figure printed last is not that of the weights in memory: the result is loaded again from its
folder and measured as evaluate.py measures it, so that the two agree on any device.

Used by train.py; reads and writes the run folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis_apps.evaluation import evaluate_model
from lavis_apps.evaluation_settings import ASKED, EvaluateOptions
from lavis_apps.train_settings import SELECTION, TrainOptions, asking
from shared.options import (
    UserError,
    manifest_value,
    portable_path,
    read_json,
    resolved_config,
    write_json,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from lavis_apps.training_data import TrainingData
    from lavis_apps.training_model import Loaded


class Validation:
    """What the trainer calls at each evaluation: the task's figure by its name."""

    def __init__(
        self,
        options: TrainOptions,
        training: TrainingArguments,
        data: TrainingData,
        loaded: Loaded,
        dtype: torch.dtype,
    ) -> None:
        self.task = options.task
        self.settings = asking(options, training.per_device_eval_batch_size)
        self.data = data
        self.loaded = loaded
        self.device = training.device
        self.dtype = dtype

    def __call__(self) -> dict[str, float]:
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            figure = measured(self.task, self.loaded.asked, self.data, self.settings)
        return {SELECTION[self.task]: figure}


@torch.no_grad()
def measured(task: str, model: Any, data: TrainingData, settings: Any) -> float:
    """The figure that decides which weights are the best. UserError where there is none."""
    metrics = evaluate_model(
        task, model, data.held_out, settings, None, classes=data.classes, progress=False
    )
    value = metrics["selection"]["value"]
    if value is None:
        reason = metrics["accuracy"].get("reason")
        raise UserError(f"the validation split gives no {SELECTION[task]} ({reason})")
    return float(value)


def measured_again(
    options: TrainOptions, training: TrainingArguments, data: TrainingData, folder: Path
) -> float:
    """The figure of the finished result, loaded as evaluate.py loads it."""
    from lavis_apps.evaluation_setup import open_model

    model = open_model(evaluate_options(options, training, folder))
    settings = asking(options, training.per_device_eval_batch_size)
    return measured(options.task, model, data, settings)


def evaluate_options(
    options: TrainOptions, training: TrainingArguments, result: Path
) -> EvaluateOptions:
    """evaluate.py's options that measure the result as validation does."""
    from shared.loading import model_folder

    settings = asking(options, training.per_device_eval_batch_size)
    base = model_folder(options.model or "", options.revision)
    is_adapter = options.tuning == "lora"
    return EvaluateOptions(
        **vars(settings),
        task=options.task,
        model=str(base if is_adapter else result),
        adapter=str(result) if is_adapter else None,
        device=str(training.device),
        dtype=options.dtype,
        data_root=options.validation_root or (options.data_root or [""])[0],
        split=options.validation_split,
        limit=options.validation_limit,
        seed=training.seed,
    )


def evaluate_command(options: EvaluateOptions) -> str:
    """The command with these options, without those of other tasks."""
    names = ("task", "model", "adapter", "data_root", "split", "limit", "seed", "batch_size")
    values = {name: getattr(options, name) for name in (*names, *ASKED[options.task])}
    values["dtype"] = None if options.dtype == "auto" else options.dtype
    for name in ("model", "adapter", "data_root"):
        values[name] = values[name] and portable_path(values[name])
    shown = [f"--{k} {shlex.quote(str(v))}" for k, v in values.items() if v is not None]
    return " ".join(["python lavis_apps/evaluate.py", *shown])


def training_config(
    options: TrainOptions, training: TrainingArguments, folder: Path
) -> dict[str, Any]:
    """config.json: our options, the training flags that decide what comes out, what was read."""
    from lavis_apps.training_model import compute_dtype
    from shared.loading import fingerprint
    from shared.training_flags import recorded_flags

    return resolved_config(
        options,
        script="train",
        data_root=[portable_path(root) for root in options.data_root or ()],
        compute_dtype=str(compute_dtype(options, training)).removeprefix("torch."),
        training=recorded_flags(training),
        model_fingerprint=fingerprint(folder),
        data_hashes=[manifest_value(root, "data_hash") for root in options.data_root or ()],
    )


def best_of(folder: Path) -> dict[str, Any] | None:
    """The kept weights' figure and step; None without validation."""
    file = folder / "best.json"
    return read_json(file) if file.is_file() else None


def write_outcome(
    folder: Path, outcome: dict[str, Any], task: str, n_validation: int, problems: Sequence[str]
) -> None:
    """curve.png and, last of all files, metrics.json; says what came out."""
    from shared.training import CURVE_FILE, plot_curve

    names = {"caption": "answer token", "vqa": "question", "retrieval": "pair (ITC + ITM)"}
    plot_curve(
        folder / CURVE_FILE, folder / "curve.png", selection=SELECTION[task], title=folder.name,
        synthetic=outcome["synthetic"], n_validation=n_validation,
        loss_name=f"loss per {names.get(task, 'picture')}",
    )  # fmt: skip
    outcome["data_problems"] = {"count": len(problems), "first": list(problems[:20])}
    write_json(folder / "metrics.json", outcome)
    print(f"trained {outcome['steps']} steps in {outcome['seconds']} s")
    if outcome["synthetic"]:
        print("SYNTHETIC data or model: its figures are no measure of a real one")
    print(f"curve: {portable_path(folder / 'curve.png')}")
