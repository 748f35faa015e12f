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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2_qlora.settings import (
    RUNS,
    TOY_DATA,
    TOY_MODEL,
    TrainOptions,
    data_hash,
    prepare_toy,
)
from shared.options import (
    UserError,
    guarded,
    parse_training_options,
    portable_path,
    resolved_config,
    start_run,
    write_json,
)
from shared.vqav2 import Question, load_rows, load_split

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
    "max_steps": 600,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3,
    "eval_steps": 300,
    "save_steps": 300,
    "lora_dropout": 0.0,
    "dataloader_num_workers": 1,
}
# Training flags that decide what comes out: a run is only continued with the same ones.
DECIDING_FLAGS = (
    *("seed", "max_steps", "num_train_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "max_grad_norm", "optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("eval_steps", "bf16", "fp16"),
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
    if training.max_steps < 1:
        training.max_steps = steps_of_epochs(training, len(groups))
    if not training.output_dir:
        training.output_dir = str(RUNS / run_name(options, training))
    folder = Path(training.output_dir)
    if not held_out:
        training.eval_strategy = "no"
    if options.dry_run:
        from blip2_qlora.planning import print_training_plan

        print_training_plan(options, training, rows, groups, held_out)
        return
    check_pictures([*groups, *group_by_picture(held_out, len(held_out))], training.seed)
    base_folder = model_folder(options.model, options.revision)
    if training.process_index == 0:
        start_run(folder, training_config(options, training, base_folder))
    if (folder / "metrics.json").is_file():  # written last
        print(f"{portable_path(folder)} is trained to its end; give another --output_dir")
        return

    # Model
    from blip2_qlora.adapters import adapter_manifest, load_for_training, save_adapter
    from blip2_qlora.blip2 import Blip2ForVqa, choose_preset, lora_targets

    model, processor = load_for_training(options, training)
    preset = choose_preset(model.get_base_model().config, options.preset, options.prompt, False)

    # Train
    from blip2_qlora.training_data import VqaCollator
    from shared.training import CURVE_FILE, VlmTrainer, plot_curve

    manifest = adapter_manifest(
        options,
        training,
        base_folder,
        prompt=preset.prompt,
        targets=lora_targets(model.get_base_model().config, options.train_qformer),
        learned=learned,
        held_out=held_out,
    )
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
    started, cpu_started = time.perf_counter(), time.process_time()
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
            "cpu_seconds": round(time.process_time() - cpu_started, 1),
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


def steps_of_epochs(training: TrainingArguments, n_samples: int) -> int:
    """Optimizer steps of --num_train_epochs, as the Trainer counts them: a rest is a step too."""
    batches = math.ceil(n_samples / (training.per_device_train_batch_size * training.world_size))
    steps = math.ceil(batches / training.gradient_accumulation_steps)
    return math.ceil(training.num_train_epochs * steps)


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
        data_hash=data_hash(options.data_root, options.data),
    )


def validate(
    model: Any, processor: Any, preset: Any, held_out: list[Question], options: TrainOptions
) -> dict[str, float]:
    """Loss per answer token and accuracy (greedy, headline metric, 0..1) of the held-out part."""
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
        if not batch["sample_ids"]:
            continue
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
    if not tokens:
        raise UserError(f"not one held-out question can be used; the first: {records[0]['error']}")
    return {"loss": total / tokens, "accuracy": sum(scores) / len(scores)}


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
