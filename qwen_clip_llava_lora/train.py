"""LoRA on own data: a LLaVA of Qwen and CLIP, Qwen-VL or MiniCPM-V learns to answer as the data do.

The vision tower is frozen, the projector trains where it is new, the language model gets LoRA
matrices (arXiv 2106.09685), on 4-bit weights with --train_type qlora (arXiv 2305.14314), or trains
whole. What trains is declared in components.py, printed and checked; only answers and their end
tokens are learned. A part of the rows is held out by picture: loss and a task metric while
training, and the best adapter kept. Stopped, the same command continues bit for bit.

    python qwen_clip_llava_lora/train.py --toy --preset align       # minutes on a laptop
    python qwen_clip_llava_lora/train.py --toy                      # preset course
    python qwen_clip_llava_lora/train.py --model MERGED --data data/cc3m_595k --dry_run
    python qwen_clip_llava_lora/train.py --preset strong --model MERGED --data a.csv b.json \
        --data_weights 2 1 --projector outputs/qwen_clip_llava_lora/ALIGN_RUN
    accelerate launch --num_processes 4 qwen_clip_llava_lora/train.py --model ... (DDP)

Writes `outputs/qwen_clip_llava_lora/RUN/`: config.json, environment.json, metrics.jsonl, curve.png,
checkpoint-N/ (to continue), best.json, metrics.json, and adapter/ (best by --selection) with
adapter_last/ where the last weights are others; --train_type full: model/ (best) alone. What is in
them: results.py.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.settings import RUNS
from qwen_clip_llava_lora.train_settings import (
    TRAINING_DEFAULTS,
    TrainOptions,
    check_toy,
    prepare_toy,
    preset_of,
    preset_values,
    toy_defaults,
)
from qwen_clip_llava_lora.training_run import (
    best_of,
    run_name,
    training_config,
    write_outcome,
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

CHECKED_AHEAD = 2000  # samples whose rows and pictures' headers are read before the first step


def main(options: TrainOptions, training: TrainingArguments) -> None:
    # Data
    from qwen_clip_llava_lora.training_data import VlmCollator, open_training_data
    from shared.conversation_data import ConversationSampler, check_samples, refuse_bad_samples
    from shared.loading import quiet_libraries
    from shared.training_flags import check_training_flags, refuse_unproven_sharding

    quiet_libraries()
    check_toy(options)
    training.output_dir = training.output_dir or str(RUNS / run_name(options, training))
    folder = Path(training.output_dir)
    try:
        data = open_training_data(options, training.seed) if options.data else None
    except MissingError:
        if not options.dry_run:
            raise
        data = None
    if options.dry_run or data is None:
        from qwen_clip_llava_lora.planning import print_training_plan

        print_training_plan(options, training, data)
        return
    if not len(data.held_out):
        training.eval_strategy = "no"
    check_training_flags(training)
    refuse_unproven_sharding(training)
    if training.ddp_find_unused_parameters is None:  # a batch of text alone uses the projector too
        training.ddp_find_unused_parameters = False
    sampler = ConversationSampler(
        len(data.learned),
        batch_size=training.per_device_train_batch_size,
        n_batches=training.world_size * training.gradient_accumulation_steps,
        seed=training.seed if training.data_seed is None else training.data_seed,
    )
    root = Path(data.source.image_root)
    refuse_bad_samples(*check_samples(data.learned, iter(sampler), root, n=CHECKED_AHEAD))
    if training.process_index == 0:
        start_run(folder, training_config(options, training, data))
    if (folder / "metrics.json").is_file():  # written last
        print(f"{portable_path(folder)} is trained to its end; give another --output_dir")
        return

    # Model
    from qwen_clip_llava_lora.components import trained_parts
    from qwen_clip_llava_lora.training_model import (
        VlmForTraining,
        compute_dtype,
        family_of,
        load_for_training,
        trains_projector,
    )

    family = family_of(options)
    dtype = compute_dtype(options, training)
    loaded = load_for_training(options, training, family)
    model = VlmForTraining(
        family, dtype, options.contrastive_weight, options.contrastive_temperature
    )

    # Train
    from qwen_clip_llava_lora.results import (
        ADAPTER_FOLDER,
        LAST_FOLDER,
        MODEL_FOLDER,
        manifest,
        save_result,
    )
    from qwen_clip_llava_lora.validation import EarlyStopping, Validation
    from shared.training import VlmTrainer

    parts = trained_parts(
        options.train_type, trains_projector(options, model.model_type), options.train_vision
    )
    content = manifest(options, training, data, loaded, parts)
    validation = Validation(options, training, data, family, dtype)
    selection = validation.metric if options.selection == "metric" else "loss"
    result = MODEL_FOLDER if options.train_type == "full" else ADAPTER_FOLDER

    def save(name: str, figures: Any) -> Path:
        return save_result(folder, loaded, content | {"validation": dict(figures)}, dtype, name)

    trainer = VlmTrainer(
        model=model,
        args=training,
        train_dataset=data.learned,
        data_collator=VlmCollator(family, root, options.max_length),
        validate=lambda: validation(model),
        selection=selection,
        keep_best=lambda figures: save(result, figures),
        sampler=sampler,
    )
    if options.early_stopping:
        trainer.add_callback(EarlyStopping(selection, options.early_stopping))
    started, cpu_started = time.perf_counter(), time.process_time()
    steps = trainer.train_or_continue()

    # Save
    final = trainer.latest_figures() if len(data.held_out) else {}
    if not trainer.is_world_process_zero():
        return
    content["steps"] = steps
    best_step = best_of(folder)
    if best_step is None:  # nothing was held out
        save(result, final)
    elif best_step != steps and result == ADAPTER_FOLDER:
        save(LAST_FOLDER, final)
    outcome = {
        "steps": steps,
        "best_step": best_step,
        "selection": selection,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        "samples": len(data.learned),
        "held_out": len(data.held_out),
        "answered": len(validation.samples),
        "skipped_in_training": len(trainer.skipped),
        "synthetic": content["synthetic"],
        "last": final,
    }
    write_outcome(folder, outcome, validation.metric)
    print(f"written: {portable_path(folder / result)}")


def parse(argv: list[str] | None = None) -> tuple[TrainOptions, TrainingArguments]:
    argv = list(sys.argv[1:] if argv is None else argv)
    preset = preset_of(argv)
    return parse_training_options(
        TrainOptions,
        description=__doc__.split("\n")[0],
        argv=argv,
        training_defaults=TRAINING_DEFAULTS | preset_values(preset),
        toy_defaults=toy_defaults(preset) if flag_is_set(argv, "toy") else None,
        prepare_toy=lambda: prepare_toy(preset),
    )


if __name__ == "__main__":
    guarded(lambda: main(*parse()))
