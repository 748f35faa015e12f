"""A training run's folder: its name, what its config.json records, what stands in it at the end."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.train_settings import TrainOptions
from shared.options import portable_path, read_json, resolved_config, write_json

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from qwen_clip_llava_lora.training_data import TrainingData


def best_of(folder: Path) -> int | None:
    """The step of the kept weights; None without validation."""
    file = folder / "best.json"
    return read_json(file)["step"] if file.is_file() else None


def run_name(options: TrainOptions, training: TrainingArguments) -> str:
    """course_MODEL_DATA_lora_seed0: two runs that differ in more need an --output_dir."""
    parts = [
        options.preset,
        Path(options.model or "").name,
        *(Path(path).stem for path in options.data or ()),
        str(options.limit) if options.limit else "",
        options.train_type,
        f"contrast{options.contrastive_weight:g}" if options.contrastive_weight else "",
        f"seed{training.seed}",
    ]
    return "_".join(part for part in parts if part)


def training_config(
    options: TrainOptions, training: TrainingArguments, data: TrainingData
) -> dict[str, Any]:
    """config.json: our options, the training flags that decide what comes out, what was read."""
    from qwen_clip_llava_lora.results import find_projector
    from qwen_clip_llava_lora.training_model import compute_dtype
    from shared.loading import fingerprint, model_folder
    from shared.training_flags import recorded_flags

    sources = [part.source for part in (*data.parts, data.validation)]
    projector = None if options.projector is None else find_projector(options.projector)
    return resolved_config(
        options,
        script="train",
        compute_dtype=str(compute_dtype(options, training)).removeprefix("torch."),
        training=recorded_flags(training),
        model_fingerprint=fingerprint(model_folder(options.model or "", options.revision)),
        projector_hash=None if projector is None else file_hash(projector),
        data_hashes=[file_hash(path) for path in sources if path.is_file()],
    )


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_outcome(folder: Path, outcome: dict[str, Any], metric: str | None) -> None:
    """curve.png with loss and metric and, last of all files, metrics.json; says what came out."""
    from shared.training import CURVE_FILE, plot_curve

    plot_curve(
        folder / CURVE_FILE, folder / "curve.png", selection=metric or "loss", title=folder.name,
        synthetic=outcome["synthetic"], n_validation=outcome["held_out"],
        n_answered=outcome["answered"],
    )  # fmt: skip
    write_json(folder / "metrics.json", outcome)
    print(f"trained {outcome['steps']} steps in {outcome['seconds']} s")
    if outcome["synthetic"]:
        print("SYNTHETIC data or model: its figures are no measure of a real one")
    if outcome["last"]:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in outcome["last"].items())
        print(f"validation of the last weights: {figures}; best step: {outcome['best_step']}")
    print(f"curve: {portable_path(folder / 'curve.png')}")
