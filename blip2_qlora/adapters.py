"""An adapter from its first weights to the folder that holds it.

LoRA matrices (arXiv 2106.09685) in fp32 on a frozen, usually 4-bit base; what trains is declared,
printed and checked. The folder holds adapter, processor and a manifest that loading checks.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2_qlora.blip2 import COMPONENTS, load_blip2, lora_targets
from blip2_qlora.settings import TrainOptions, data_folder, data_hash
from blip2_qlora.training_data import ids_hash
from shared.loading import fingerprint, keep_trainable_after_inference, trainable_report
from shared.options import (
    UserError,
    environment,
    manifest_value,
    portable_path,
    read_json,
    write_json,
)
from shared.training import trainable_to_fp32
from shared.vqav2 import Question

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Blip2Processor, TrainingArguments


def load_for_training(
    options: TrainOptions, training: TrainingArguments
) -> tuple[PeftModel, Blip2Processor]:
    """The frozen base with fresh LoRA matrices (fp32), and the processor; prints what trains."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    options.device = str(training.device)
    base, processor = load_blip2(options, None)
    base.requires_grad_(False)
    set_seed(training.seed)  # of the first LoRA weights; the Trainer sets it for what follows
    model = get_peft_model(
        base,
        LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=lora_targets(base.config, options.train_qformer),
            bias="none",
        ),
    )
    trainable_to_fp32(model)
    keep_trainable_after_inference(model)
    report = trainable_report(model, COMPONENTS)
    for component, counts in report.items():
        print(f"  {component}: {counts['parameters']:,} weights, {counts['trainable']:,} trained")
    allowed = {"language model", "Q-Former"} if options.train_qformer else {"language model"}
    training_parts = {name for name, counts in report.items() if counts["trainable"]}
    if training_parts != allowed:
        raise UserError(f"{training_parts} would train, meant were {allowed}")
    return model, processor


def adapter_manifest(
    options: TrainOptions,
    training: TrainingArguments,
    base_folder: Path,
    *,
    prompt: str,
    targets: str,
    learned: list[Question],
    held_out: list[Question],
) -> dict[str, Any]:
    """What loading checks and a reader needs: base, quantisation, prompt, data, seed."""
    root = options.data or options.data_root
    return {
        "base_model": portable_path(options.model),
        "base_revision": options.revision,
        "base_fingerprint": fingerprint(base_folder),
        "quantization": options.quantization,
        "prompt": prompt,
        "lora": {
            "rank": options.lora_rank,
            "alpha": options.lora_alpha,
            "dropout": options.lora_dropout,
            "targets": targets,
        },
        "data": {
            "source": portable_path(root),
            "split": None if options.data else "train2014",
            "data_hash": data_hash(options.data_root, options.data),
            "questions": len(learned),
            "ids_hash": ids_hash(learned),
            "held_out_questions": len(held_out),
        },
        "seed": training.seed,
        "synthetic": any(
            manifest_value(folder, "synthetic")
            for folder in (options.model, data_folder(options.data_root, options.data))
        ),
        "environment": environment(),
    }


def describe(folder: Path, manifest: dict[str, Any]) -> None:
    """Where peft writes this machine's path of the base and an empty form: a name that holds on
    other machines, and a card."""
    base = portable_base(manifest["base_model"])
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": base})
    (folder / "README.md").write_text(adapter_card(manifest, base), encoding="utf-8")


def portable_base(name: str) -> str:
    """A Hub id or a folder of this repository as it is; of a folder elsewhere its name alone."""
    return Path(name).name if Path(name).is_absolute() or ".." in Path(name).parts else name


def adapter_card(manifest: dict[str, Any], base: str) -> str:
    """README.md of an adapter folder, all of it from the manifest."""
    data, lora, validation = manifest["data"], manifest["lora"], manifest.get("validation") or {}
    steps = validation.get("step", manifest.get("steps"))
    lines = [
        "---\nlibrary_name: peft\npipeline_tag: image-text-to-text\n---",
        f"# LoRA adapter for {base}",
    ]
    if manifest["synthetic"]:
        lines.append("**SYNTHETIC** data or model: its figures are no measure of a real one.")
    revision = f", revision {manifest['base_revision']}" if manifest["base_revision"] else ""
    split = f", {data['split']}" if data["split"] else ""
    facts = [
        f"base: `{base}`{revision}, fingerprint {manifest['base_fingerprint']}, trained with "
        f"quantization {manifest['quantization']}",
        f"data: {Path(data['source']).name}{split}, {data['questions']:,} questions, "
        f"{data['held_out_questions']:,} more held out by picture",
        f"prompt: `{manifest['prompt']}`",
        f"LoRA: rank {lora['rank']}, alpha {lora['alpha']}, dropout {lora['dropout']}; "
        f"seed {manifest['seed']}" + (f"; {steps:,} steps" if steps is not None else ""),
    ]
    if "accuracy" in validation:
        facts.append(
            f"validation: accuracy {100 * validation['accuracy']:.1f} % of "
            f"{data['held_out_questions']:,} held-out questions, loss {validation['loss']:.3f}"
        )
    lines += [
        "\n".join(f"- {fact}" for fact in facts),
        "The rest is in manifest.json, which loading checks. Evaluate it:",
        f"    python blip2_qlora/evaluate.py --model {base} --adapter THIS_FOLDER "
        f"--quantization {manifest['quantization']}",
    ]
    return "\n\n".join(lines) + "\n"


def save_adapter(folder: Path, model: Any, processor: Any, manifest: dict[str, Any]) -> None:
    """Adapter, processor and manifest, replaced as one: a reader never sees a mixture."""
    staging = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        describe(staging, manifest)
        write_json(staging / "manifest.json", manifest)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
