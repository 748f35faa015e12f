"""Fine-tunes BLIP (captions, VQA, retrieval, classification) or CLIP (retrieval, classification).

Everything trains, or LoRA matrices (arXiv 2106.09685), or all but the vision tower. Captions and
answers are learned by next-token loss, retrieval by BLIP's ITC and ITM with hard negatives
(arXiv 2201.12086) or CLIP's contrastive loss (arXiv 2103.00020), classes by cosine. The learning
rate warms up and falls per step, the tower's layers may have their own; the weights that are best
by the task's metric on held-out pictures are kept. Stopped, the same command continues bit for bit.

    python lavis_apps/train.py --toy --task retrieval               # a minute or two on a laptop
    python lavis_apps/train.py --task caption --validation_split karpathy_val
    python lavis_apps/train.py --task classification --data_root FOLDER --tuning lora \
        --model openai/clip-vit-base-patch32
    python lavis_apps/train.py --task vqa --data_root A B --data_weights 2 1 --dry_run
    accelerate launch --num_processes 4 lavis_apps/train.py --task retrieval   # one process a GPU

Writes `outputs/lavis_apps/RUN/`: config.json, environment.json, metrics.jsonl, curve.png,
checkpoint-N/ (to continue; trained weights only), best.json, metrics.json, and the best weights:
model/ (a whole folder), or adapter/ with --tuning lora. What is in them: results.py.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.evaluation_settings import task_of
from lavis_apps.train_settings import (
    SELECTION,
    TRAINED_TASKS,
    TRAINING_DEFAULTS,
    TrainOptions,
    default_folder,
    prepare_toy,
    preset_values,
    toy_defaults,
)
from shared.options import (
    MissingError,
    flag_is_set,
    guarded,
    parse_training_options,
    portable_path,
    start_run,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments

CHECKED_AHEAD = 2000  # samples whose pictures' headers are read before the first step


def main(options: TrainOptions, training: TrainingArguments) -> None:
    # Data
    from lavis_apps.training_data import (
        Collator,
        RatioSampler,
        SeenSamples,
        open_training_data,
        refuse_bad_pictures,
    )
    from shared.loading import model_folder, quiet_libraries
    from shared.training_flags import check_training_flags, refuse_unproven_sharding

    quiet_libraries()
    training.output_dir = default_folder(options, training)
    folder = Path(training.output_dir)
    seed = training.seed if training.data_seed is None else training.data_seed
    try:
        data = open_training_data(options, training.seed) if options.data_root else None
    except MissingError:
        if not options.dry_run:
            raise
        data = None
    if options.dry_run or data is None:
        from lavis_apps.training_plan import print_training_plan

        print_training_plan(options, training, data)
        return
    if not data.held_out:
        training.eval_strategy = "no"
    check_training_flags(training)
    refuse_unproven_sharding(training)
    if training.ddp_find_unused_parameters is None:  # all that trains is in every batch's loss
        training.ddp_find_unused_parameters = False
    if data.problems and training.process_index == 0:
        print(f"note: {len(data.problems)} rows of the data not used; first: {data.problems[0]}")
    samples = data.samples
    sampler = RatioSampler([len(part) for part in data.learned], options.data_weights, seed)
    refuse_bad_pictures(samples, sampler, CHECKED_AHEAD)
    base_folder = model_folder(options.model or "", options.revision)
    if training.process_index == 0:
        from lavis_apps.training_run import training_config

        start_run(folder, training_config(options, training, base_folder))
    if (folder / "metrics.json").is_file():  # written last
        print(f"{portable_path(folder)} is trained to its end; give another --output_dir")
        return

    # Model
    from lavis_apps.training_model import (
        TaskModel,
        class_sentences,
        compute_dtype,
        layer_rates,
        load_for_training,
        print_trained,
    )

    loaded = load_for_training(options, training)
    dtype = compute_dtype(options, training)
    collator = Collator(options, loaded.inputs())
    sentences = class_sentences(options, loaded.asked, data.classes)
    model = TaskModel(loaded, options, dtype, collator, sentences)
    print_trained(model)

    # Train
    from lavis_apps.results import manifest, result_folder, save_result
    from lavis_apps.training_run import (
        Validation,
        best_of,
        evaluate_command,
        evaluate_options,
        measured_again,
        write_outcome,
    )
    from shared.training import VlmTrainer

    content = manifest(options, training, data, loaded)

    def save(figures: Any) -> Path:
        known = {"temperature": model.learned_temperature(), "validation": dict(figures)}
        return save_result(folder, loaded, content | known)

    trainer = VlmTrainer(
        model=model,
        args=training,
        train_dataset=SeenSamples(samples, seed),
        data_collator=collator,
        validate=Validation(options, training, data, loaded, dtype),
        selection=SELECTION[options.task],
        keep_best=save,
        learning_rates=layer_rates(model, training.learning_rate, options.layer_decay),
        sampler=sampler,
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    steps = trainer.train_or_continue()

    # Save
    last = trainer.latest_figures() if data.held_out else {}
    if not trainer.is_world_process_zero():
        return
    best = best_of(folder)
    if best is None:  # nothing was held out
        save({"step": steps})
    result = folder / result_folder(options)
    outcome = {
        "steps": steps,
        "best_step": best["step"] if best else None,
        "selection": SELECTION[options.task],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        "samples": len(samples),
        "validation": data.held_out_name,
        "validation_samples": len(data.held_out),
        "skipped_in_training": len(trainer.skipped),
        "synthetic": content["synthetic"],
        "last": last,
        "best": measured_again(options, training, data, result) if best else None,
    }
    write_outcome(folder, outcome, options.task, len(data.held_out), data.problems)
    if best:
        figure = f"{outcome['selection']} {outcome['best']} on {data.held_out_name}"
        again = evaluate_command(evaluate_options(options, training, result))
        print(f"best step {best['step']}: {figure}, again:\n  {again}")
    print(f"written: {portable_path(result)}")


def parse(argv: list[str] | None = None) -> tuple[TrainOptions, TrainingArguments]:
    argv = list(sys.argv[1:] if argv is None else argv)
    task = task_of(argv, TRAINED_TASKS)
    return parse_training_options(
        TrainOptions,
        description=__doc__.split("\n")[0],
        argv=argv,
        training_defaults=TRAINING_DEFAULTS | preset_values(task),
        toy_defaults=toy_defaults(task) if flag_is_set(argv, "toy") else None,
        prepare_toy=lambda: prepare_toy(task),
    )


if __name__ == "__main__":
    guarded(lambda: main(*parse()))
