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

import time
from pathlib import Path
from typing import TYPE_CHECKING

from blip2_qlora.settings import RUNS, TOY_DATA, TOY_MODEL, TrainOptions, prepare_toy
from blip2_qlora.training_run import SELECTION, run_name, training_config, write_outcome
from shared.loading import model_folder
from shared.options import MissingError, guarded, parse_training_options, portable_path, start_run
from shared.training_flags import check_training_flags, steps_of_epochs

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


def main(options: TrainOptions, training: TrainingArguments) -> None:
    # Data
    from blip2_qlora.training_data import (
        check_pictures,
        default_held_out,
        group_by_picture,
        hold_out,
        load_questions,
    )

    try:
        rows = load_questions(options, training.seed)
    except MissingError as error:
        if not options.dry_run:
            raise
        from blip2_qlora.planning import print_plan_without_data

        print_plan_without_data(options, training, error)
        return
    if rows.left_out:
        print(rows.left_out)
    by_default = options.validation_questions is None
    if options.validation_questions is None:
        options.validation_questions = default_held_out(rows.questions)
    learned, held_out = hold_out(
        rows.questions, options.validation_questions, training.seed, keep_one=by_default
    )
    groups = group_by_picture(learned, options.questions_per_picture)
    if training.max_steps < 1:
        training.max_steps = steps_of_epochs(training, len(groups))
    if not training.output_dir:
        training.output_dir = str(RUNS / run_name(options, training))
    folder = Path(training.output_dir)
    if not held_out:
        training.eval_strategy = "no"
    check_training_flags(training)
    if options.dry_run:
        from blip2_qlora.planning import print_training_plan

        print_training_plan(options, training, rows, groups, held_out)
        return
    check_pictures(rows.questions, training.seed)
    base_folder = model_folder(options.model, options.revision)
    if training.process_index == 0:
        start_run(folder, training_config(options, training, base_folder))
    if (folder / "metrics.json").is_file():  # written last
        print(f"{portable_path(folder)} is trained to its end; give another --output_dir to train")
        print(f"its best adapter: {portable_path(folder / 'adapter')}")
        return

    # Model
    from blip2_qlora.adapters import adapter_manifest, load_for_training, save_adapter
    from blip2_qlora.blip2 import Blip2ForVqa, choose_preset, lora_targets

    model, processor = load_for_training(options, training)
    base = model.get_base_model()
    prompt = choose_preset(base.config, options.preset, options.prompt, False).prompt
    targets = lora_targets(base.config, options.train_qformer)
    manifest = adapter_manifest(
        options, training, base_folder, prompt=prompt, targets=targets,
        learned=learned, held_out=held_out,
    )  # fmt: skip

    # Train
    from blip2_qlora.training_data import VqaCollator
    from blip2_qlora.validation import validate
    from shared.training import VlmTrainer

    trainer = VlmTrainer(
        model=Blip2ForVqa(model),
        args=training,
        train_dataset=groups,
        data_collator=VqaCollator(base, processor, prompt),
        validate=lambda: validate(
            trainer.model,
            processor,
            prompt,
            held_out,
            questions_per_picture=options.questions_per_picture,
            batch_size=training.per_device_eval_batch_size,
        ),
        selection=SELECTION,
        keep_best=lambda figures: save_adapter(
            folder / "adapter", model, processor, manifest | {"validation": dict(figures)}
        ),
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    steps = trainer.train_or_continue()

    # Save
    if not trainer.is_world_process_zero():
        return
    final = trainer.latest_figures() if held_out else {}
    manifest["steps"] = steps
    save_adapter(folder / "adapter_last", model, processor, manifest | {"validation": final})
    if not held_out:
        save_adapter(folder / "adapter", model, processor, manifest)
    outcome = {
        "steps": steps,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        "data_problems": {"count": len(rows.problems), "first": rows.problems[:20]},
        "skipped_in_training": len(trainer.skipped),
        "synthetic": manifest["synthetic"],
        "last": final,
    }
    write_outcome(folder, learned, outcome, n_validation=len(held_out))


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
