"""QLoRA on VQAv2: a 4-bit BLIP-2 learns to answer, about 1 % of its weights train.

The base is loaded in NF4 with double quantisation (QLoRA, arXiv 2305.14314), LoRA matrices are put
on the linear layers of the language model (and of the Q-Former with --train_qformer), and only the
answer's tokens are learned. A part of the train pictures is held out for validation; the adapter
with the best validation accuracy is kept. Stopped, the same command continues bit for bit.

    python blip2_qlora/train.py --toy                         # two minutes on a laptop
    python blip2_qlora/train.py                               # blip2-opt-2.7b on data/vqav2
    python blip2_qlora/train.py --data my_rows.jsonl --max_steps 300
    accelerate launch --num_processes 4 blip2_qlora/train.py  # one process a GPU

Writes `outputs/blip2_qlora/RUN/`: config.json, environment.json, metrics.jsonl, curve.png,
checkpoint-N/ (to continue), adapter/ (best), adapter_last/, best.json, metrics.json.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blip2_qlora.settings import DEFAULT_DATA, DEFAULT_MODEL, RUNS, TOY_DATA, TOY_MODEL, prepare_toy
from shared.options import (
    ModelOptions,
    ToyOptions,
    UserError,
    guarded,
    manifest_value,
    parse_training_options,
    portable_path,
    resolved_config,
    start_run,
    write_json,
)
from shared.vqav2 import Question, QuestionSet, load_rows, load_split

if TYPE_CHECKING:
    from transformers import TrainingArguments

# 4 pictures x 4 accumulated = 16 pictures with about 86 questions a step, as VQAv2 has 5.4 a
# picture; rank, learning rate and targets are the QLoRA paper's habits (all linear layers).
TRAINING_DEFAULTS = {
    "output_dir": "",
    "max_steps": 1000,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_strategy": "steps",
    "save_steps": 200,
    "save_total_limit": 2,
    "report_to": "none",
    "dataloader_num_workers": 4,
    "seed": 0,
}
TOY_DEFAULTS = {
    "model": str(TOY_MODEL),
    "data_root": str(TOY_DATA),
    "max_steps": 400,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3,
    "eval_steps": 100,
    "save_steps": 100,
    "validation_questions": 200,
    "dataloader_num_workers": 0,
}
# Training flags that decide what comes out: a run is only continued with the same ones.
DECIDING_FLAGS = (
    *("seed", "max_steps", "num_train_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "max_grad_norm", "optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("eval_steps", "bf16", "fp16"),
)
# For the time that --dry_run states: an RTX 3090's 71 TFLOP/s in bfloat16, a third of it reached.
ASSUMED_FLOPS = 71e12 / 3


@dataclass
class TrainOptions(ModelOptions, ToyOptions):
    """Data and adapter"""

    model: str = field(default=DEFAULT_MODEL, metadata={"help": "folder or downloaded Hub id"})
    quantization: Literal["none", "int8", "nf4"] = field(
        default="nf4", metadata={"help": "nf4 = QLoRA; none = LoRA on full-precision weights"}
    )
    data_root: str = field(
        default=str(DEFAULT_DATA), metadata={"help": "folder in the official VQAv2 layout"}
    )
    data: str | None = field(
        default=None, metadata={"help": "own rows: JSONL or CSV with image, question, answer"}
    )
    limit: int = field(default=0, metadata={"help": "train questions drawn with --seed, 0 = all"})
    validation_questions: int = field(
        default=500, metadata={"help": "held out by picture from the train split, 0 = none"}
    )
    questions_per_picture: int = field(
        default=6, metadata={"help": "at most so many questions share one encoded picture"}
    )
    preset: Literal["paper", "lavis"] = field(
        default="paper", metadata={"help": "whose prompt is learned"}
    )
    prompt: str | None = field(default=None, metadata={"help": "own prompt, {} for the question"})
    lora_rank: int = field(default=16, metadata={"help": "rank r of the LoRA matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale is alpha / r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before LoRA"})
    train_qformer: bool = field(default=False, metadata={"help": "LoRA on the Q-Former too"})
    batch_size: int | None = field(
        default=None,
        metadata={"help": "pictures per device and step: alias of --per_device_train_batch_size"},
    )


def main(options: TrainOptions, training: TrainingArguments) -> None:
    from shared.loading import model_folder

    # Data
    rows = (
        load_rows(Path(options.data), need_answer=True)
        if options.data
        else load_split(Path(options.data_root), "train2014")
    ).sample(options.limit, training.seed)
    from blip2_qlora.training_data import check_pictures, group_by_picture, hold_out

    learned, held_out = hold_out(rows.questions, options.validation_questions, training.seed)
    groups = group_by_picture(learned, options.questions_per_picture)
    if not training.output_dir:
        training.output_dir = str(RUNS / run_name(options, training))
    folder = Path(training.output_dir)
    if not held_out:
        training.eval_strategy = "no"
    if options.dry_run:
        print_plan(options, training, rows, groups, held_out)
        return
    check_pictures(groups, training.seed)
    base_folder = model_folder(options.model, options.revision)
    start_run(folder, training_config(options, training, base_folder))

    # Model
    from blip2_qlora.blip2 import Blip2ForVqa, choose_preset

    model, processor = load_for_training(options, training)
    preset = choose_preset(model.get_base_model().config, options.preset, options.prompt, False)

    # Train
    from blip2_qlora.training_data import VqaCollator
    from shared.training import CURVE_FILE, VlmTrainer, plot_curve

    manifest = adapter_manifest(options, training, base_folder, preset.prompt, learned, held_out)
    trainer = VlmTrainer(
        model=Blip2ForVqa(model),
        args=training,
        train_dataset=groups,
        data_collator=VqaCollator(model.get_base_model(), processor, preset.prompt),
        validate=lambda: validate(trainer.model, processor, preset, held_out, options),
        selection="accuracy",
        keep_best=lambda figures: save_adapter(
            folder / "adapter", model, processor, manifest | {"validation": dict(figures)}
        ),
    )
    started = time.perf_counter()
    steps = trainer.train_or_continue()

    # Save
    if trainer.is_world_process_zero():
        final = trainer.latest_figures() if held_out else {}
        manifest["steps"] = steps
        save_adapter(folder / "adapter_last", model, processor, manifest | {"validation": final})
        if not held_out:
            save_adapter(folder / "adapter", model, processor, manifest)
        plot_curve(folder / CURVE_FILE, folder / "curve.png", selection="accuracy")
        metrics = {
            "steps": steps,
            "seconds": round(time.perf_counter() - started, 1),
            "questions": len(learned),
            "pictures": len({question.image for question in learned}),
            "data_problems": {"count": len(rows.problems), "first": rows.problems[:20]},
            "skipped_in_training": len(trainer.skipped),
            "synthetic": manifest["synthetic"],
            "last": final,
        }
        write_json(folder / "metrics.json", metrics)
        print(f"trained {steps} steps in {metrics['seconds']} s; curve: "
              f"{portable_path(folder / 'curve.png')}")  # fmt: skip
        print(f"best adapter: {portable_path(folder / 'adapter')}")


def run_name(options: TrainOptions, training: TrainingArguments) -> str:
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
    """config.json: our options and the training flags that decide what comes out."""
    flags = {name: getattr(training, name) for name in DECIDING_FLAGS}
    flags = {k: v if isinstance(v, int | float | str | None) else str(v) for k, v in flags.items()}
    from shared.loading import fingerprint

    return resolved_config(
        options,
        script="train",
        training=flags,
        model_fingerprint=fingerprint(base_folder),
        data_hash=manifest_value(options.data_root, "data_hash"),
    )


def load_for_training(options: TrainOptions, training: TrainingArguments) -> tuple[Any, Any]:
    """The frozen base with fresh LoRA matrices (fp32), and the processor; prints what trains."""
    from peft import LoraConfig, get_peft_model

    from blip2_qlora.blip2 import COMPONENTS, load_blip2
    from shared.loading import keep_trainable_after_inference, trainable_report
    from shared.training import trainable_to_fp32

    options.device = str(training.device)
    base, processor = load_blip2(options, None)
    base.requires_grad_(False)
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


def lora_targets(config: Any, train_qformer: bool) -> str:
    from blip2_qlora.blip2 import LORA_TARGETS, QFORMER_TARGETS, language_model_kind

    targets = LORA_TARGETS[language_model_kind(config)]
    return f"({targets})|({QFORMER_TARGETS})" if train_qformer else targets


def validate(
    model: Any, processor: Any, preset: Any, held_out: list[Question], options: TrainOptions
) -> dict[str, float]:
    """Loss per answer token and accuracy (greedy, headline metric, 0..1) on the held-out questions."""
    import torch

    from blip2_qlora.blip2 import Blip2Answerer, Decoding
    from blip2_qlora.scoring import score_record
    from blip2_qlora.training_data import VqaCollator, group_by_picture
    from shared.answering import Job, answer_batch, batches_by_picture
    from shared.images import open_image

    collate = VqaCollator(model.model.get_base_model(), processor, preset.prompt)
    groups = group_by_picture(held_out, options.questions_per_picture)
    total, tokens, scores = 0.0, 0, []
    for start in range(0, len(groups), 8):
        batch = collate(groups[start : start + 8])
        tensors = {
            k: v.to(next(model.parameters()).device) for k, v in batch.items() if torch.is_tensor(v)
        }
        total += float(model(**tensors, num_items_in_batch=1)["loss"])
        tokens += int((batch["labels"] >= 0).sum())
    answerer = Blip2Answerer(model.model, processor, Decoding(num_beams=1))
    jobs = [Job(question, preset.prompt.format(question.question)) for question in held_out]
    for jobs_batch in batches_by_picture(jobs, 32):
        records = answer_batch(answerer, jobs_batch, lambda question: open_image(question.image))
        scores += [score_record(record)["score"] for record in records]
    return {"loss": total / tokens, "accuracy": sum(scores) / len(scores)}


def adapter_manifest(
    options: TrainOptions,
    training: TrainingArguments,
    base_folder: Path,
    prompt: str,
    learned: list[Question],
    held_out: list[Question],
) -> dict[str, Any]:
    """What loading checks and a reader needs: base, quantisation, prompt, data, seed."""
    from blip2_qlora.training_data import ids_hash
    from shared.loading import fingerprint
    from shared.options import environment

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
            "train_qformer": options.train_qformer,
        },
        "data": {
            "source": portable_path(root),
            "split": None if options.data else "train2014",
            "questions": len(learned),
            "ids_hash": ids_hash(learned),
            "held_out_questions": len(held_out),
        },
        "seed": training.seed,
        "synthetic": any(
            manifest_value(folder, "synthetic") for folder in (options.model, options.data_root)
        ),
        "environment": environment(),
    }


def save_adapter(folder: Path, model: Any, processor: Any, manifest: dict[str, Any]) -> None:
    """Adapter, processor and manifest, replaced as one: a reader never sees a mixture."""
    import shutil

    staging = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        write_json(staging / "manifest.json", manifest)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error


def print_plan(
    options: TrainOptions,
    training: TrainingArguments,
    rows: QuestionSet,
    groups: list[Any],
    held_out: list[Question],
) -> None:
    """--dry_run: data, one sample with its learned tokens, what trains, steps, memory, time."""
    import torch

    from blip2_qlora.blip2 import (
        choose_preset,
        count_parameters,
        estimate_memory,
        lora_parameters,
        read_config,
    )

    config = read_config(options.model, options.revision)
    preset = choose_preset(config, options.preset, options.prompt, False)
    counts = count_parameters(config)
    targets = lora_targets(config, options.train_qformer)
    trained = lora_parameters(config, options.lora_rank, targets)
    n_questions = sum(len(group.questions) for group in groups)
    per_picture = n_questions / len(groups)
    pictures = training.per_device_train_batch_size
    print(f"run:        {portable_path(training.output_dir)}")
    print(f"data:       {n_questions} questions in {len(groups)} picture groups, "
          f"{len(held_out)} questions held out, {len(rows.problems)} bad rows left out")  # fmt: skip
    print(f"step:       {pictures} pictures x {training.gradient_accumulation_steps} accumulated, "
          f"{per_picture:.1f} questions a picture")  # fmt: skip
    epochs = training.max_steps * pictures * training.gradient_accumulation_steps / len(groups)
    print(f"length:     {training.max_steps} steps, {epochs:.2f} passes over the data")
    print(f"sample:     {sample_with_labels(options, preset.prompt, groups[0].questions[0])}")
    for component, count in counts.items():
        print(f"weights:    {component}: {count:,}, frozen")
    print(f"trained:    {trained:,} LoRA weights ({100 * trained / sum(counts.values()):.2f} %)")
    memory = estimate_memory(
        config,
        quantization=options.quantization,
        dtype=torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype),
        pictures=pictures,
        questions=math.ceil(pictures * per_picture),
        text_tokens=16,
        n_trainable=trained,
    )
    print(f"memory:     {memory}")
    print(f"time:       about {estimated_hours(config, counts, options, training, per_picture):.1f} h"
          " on a 24 GB card (computed for an RTX 3090 at a third of its peak, never measured)")  # fmt: skip


def sample_with_labels(options: TrainOptions, prompt: str, question: Question) -> str:
    """One encoded sample by the model's own tokenizer when it is on disk, else as plain text."""
    from transformers import Blip2Config, Blip2Processor

    from blip2_qlora.blip2 import answer_ids, encode_pair, language_model_kind, prompt_ids
    from blip2_qlora.training_data import show_labels
    from shared.loading import model_folder

    try:
        folder = model_folder(options.model, options.revision)
    except UserError:
        return f"{prompt.format(question.question)} 【{question.target}】 (weights not on disk)"
    config = Blip2Config.from_pretrained(folder)
    processor = Blip2Processor.from_pretrained(folder, local_files_only=True)
    processor.num_query_tokens = config.num_query_tokens
    kind = language_model_kind(config)
    answer = answer_ids(processor, question.target or "", config.text_config.eos_token_id, kind)
    row = encode_pair(prompt_ids(processor, prompt.format(question.question)), answer, kind)
    return show_labels(row, processor.tokenizer)


def estimated_hours(
    config: Any,
    counts: dict[str, int],
    options: TrainOptions,
    training: TrainingArguments,
    per_picture: float,
) -> float:
    """FLOPs over an assumed speed: 2 per weight and token forward, 2 more for the gradient that
    passes through the frozen language model."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    vision = 2 * counts["vision tower"] * patches
    language = 4 * counts["language model"] * (config.num_query_tokens + 16) * per_picture
    pictures = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return training.max_steps * pictures * (vision + language) / ASSUMED_FLOPS / 3600


def parse(argv: list[str] | None = None) -> tuple[TrainOptions, TrainingArguments]:
    return parse_training_options(
        TrainOptions,
        description=__doc__.split("\n")[0],
        argv=argv,
        training_defaults=TRAINING_DEFAULTS,
        toy_defaults=TOY_DEFAULTS,
        prepare_toy=prepare_toy,
    )


if __name__ == "__main__":
    guarded(lambda: main(*parse()))
