"""A training run's folder: its name, what its config.json records, what stands in it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2_qlora.settings import TrainOptions, data_hash
from shared.loading import fingerprint, pick_dtype
from shared.options import portable_path, resolved_config, write_json
from shared.training_flags import recorded_flags
from shared.vqav2 import Question

if TYPE_CHECKING:
    from transformers import TrainingArguments

SELECTION = "accuracy"  # the validation figure that the best adapter is chosen by


def run_name(options: TrainOptions, training: TrainingArguments) -> str:
    """What is trained, in the folder's name."""
    parts = [
        "train",
        Path(options.data).stem if options.data else "vqav2",
        str(options.limit) if options.limit else "",
        Path(options.model).name,
        options.quantization,
        f"r{options.lora_rank}",
        "qformer" if options.train_qformer else "",
        f"{training.max_steps}steps",
        f"seed{training.seed}",
    ]
    return "_".join(part for part in parts if part)


def training_config(
    options: TrainOptions, training: TrainingArguments, base_folder: Path
) -> dict[str, Any]:
    """config.json: our options, the dtype they come to, and the flags that decide the result."""
    return resolved_config(
        options,
        script="train",
        compute_dtype=str(pick_dtype(options.dtype, training.device)).removeprefix("torch."),
        training=recorded_flags(training),
        model_fingerprint=fingerprint(base_folder),
        data_hash=data_hash(options.data_root, options.data),
    )


def write_outcome(
    folder: Path, learned: Sequence[Question], outcome: dict[str, Any], *, n_validation: int
) -> None:
    """curve.png and, last of all files, metrics.json; says where the best adapter is."""
    from shared.training import CURVE_FILE, plot_curve

    plot_curve(
        folder / CURVE_FILE, folder / "curve.png", selection=SELECTION, title=folder.name,
        synthetic=outcome["synthetic"], n_validation=n_validation,
    )  # fmt: skip
    pictures = {question.image for question in learned}
    metrics = {"questions": len(learned), "pictures": len(pictures), **outcome}
    write_json(folder / "metrics.json", metrics)
    print(f"trained {outcome['steps']} steps in {outcome['seconds']} s")
    if outcome["synthetic"]:
        print("SYNTHETIC data or model: its accuracy is no measure of a real one")
    if outcome["last"]:
        last = 100 * outcome["last"][SELECTION]
        print(f"validation accuracy of the last weights: {last:.1f} % (n {n_validation})")
    print(f"curve: {portable_path(folder / 'curve.png')}")
    print(f"best adapter: {portable_path(folder / 'adapter')}")
