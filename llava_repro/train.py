"""Both stages of LLaVA: first the projector learns captions, then the language model to answer.

Stage 1 (`--stage pretrain`) trains the projector alone; stage 2 (`--stage finetune`) the projector
with the language model, or LoRA matrices on it (LLaVA, arXiv 2304.08485, section 4.2). What trains
is declared in `trainable.py`, printed and checked. Only answers and their end tokens are learned.
Stopped, the same command continues bit for bit.

    python llava_repro/train.py --toy --stage pretrain        # both: minutes on a laptop
    python llava_repro/train.py --toy --stage finetune
    python llava_repro/train.py llava_repro/configs/v1_5_pretrain.yaml --dry_run
    accelerate launch --config_file llava_repro/configs/ddp.yaml llava_repro/train.py \
        llava_repro/configs/v1_5_lora.yaml --projector outputs/llava_repro/STAGE1_RUN

Where the model does not fit on each GPU: configs/fsdp2.yaml in ddp.yaml's place. Both were run as
two CPU processes, neither on GPUs; configs/deepspeed_zero2.yaml was never run.

Writes `outputs/llava_repro/RUN/`: config.json, environment.json, metrics.jsonl, curve.png,
checkpoint-N/ (to continue), metrics.json, and `projector/`, `adapter/` or `model/` (results.py):
the last weights, as in the published recipes; best.json names the step of lowest validation loss.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_repro.settings import (
    RUNS,
    TRAINING_DEFAULTS,
    TrainOptions,
    is_given,
    prepare_toy,
    stage_of,
    toy_defaults,
)
from shared.options import (
    MissingError,
    UserError,
    flag_is_set,
    guarded,
    parse_training_options,
    portable_path,
    resolved_config,
    start_run,
    write_json,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments


CHECKED_AHEAD = 2000  # samples whose rows and pictures' headers are read before the first step


def main(options: TrainOptions, training: TrainingArguments) -> None:
    from llava_repro.results import find_projector, manifest, save_result
    from llava_repro.training_data import (
        ConversationCollator,
        named_template,
        open_rows,
        validation_loss,
    )
    from shared.conversation_data import (
        ConversationSampler,
        check_samples,
        modality_length,
        refuse_bad_samples,
    )
    from shared.training_flags import check_training_flags, refuse_unproven_sharding

    # Data
    template = named_template(options.template)
    set_accumulation(options, training)
    training.output_dir = training.output_dir or str(RUNS / run_name(options, training))
    folder = Path(training.output_dir)
    rows = open_rows(options, training.seed)
    if options.dry_run:
        from llava_repro.planning import print_training_plan

        print_training_plan(options, training, rows)
        return
    if rows is None:
        raise MissingError(f"--data {options.data}: no such file; --toy needs none, and --dry_run "
                           "plans without it")  # fmt: skip
    learned, held_out = rows
    if not len(held_out):
        training.eval_strategy = "no"
    check_training_flags(training, may_shard=True)
    refuse_unproven_sharding(training)
    refuse_sharded_qlora(options.train_type)
    if options.projector:
        find_projector(options.projector)
    if training.ddp_find_unused_parameters is None:  # a batch of text alone uses the projector too
        training.ddp_find_unused_parameters = False
    grouped = options.group_by_modality_length or options.group_by_length
    sampler = ConversationSampler(
        len(learned),
        batch_size=training.per_device_train_batch_size,
        n_batches=training.world_size * training.gradient_accumulation_steps,
        seed=training.seed if training.data_seed is None else training.data_seed,
        length_of=(lambda i: modality_length(learned[i])) if grouped else None,
        like_lengths=options.group_by_length,
    )
    image_root = Path(options.image_root or Path(options.data or "").parent)
    ahead = None if options.validate else CHECKED_AHEAD
    refuse_bad_samples(*check_samples(learned, iter(sampler), image_root, n=ahead))
    if training.process_index == 0:
        start_run(folder, training_config(options, training))
    if (folder / "metrics.json").is_file():  # written last
        print(f"{portable_path(folder)} is trained to its end; give another --output_dir")
        return

    # Model
    from llava_repro.assembling import compute_dtype, load_for_training
    from llava_repro.model import n_image_tokens
    from llava_repro.trainable import LlavaForTraining, LlavaTrainer

    dtype = compute_dtype(options, training)
    assembled, adapter = load_for_training(options, training, template)
    collate = ConversationCollator(
        assembled.tokenizer,
        assembled.image_processor,
        template,
        n_image_tokens=n_image_tokens(assembled.model.config),
        max_length=options.max_length,
        image_root=image_root,
        image_aspect_ratio=options.image_aspect_ratio,
    )

    # Train
    from shared.training import CURVE_FILE, plot_curve

    trainer = LlavaTrainer(
        model=LlavaForTraining(assembled.model, dtype),
        args=training,
        train_dataset=learned,
        data_collator=collate,
        validate=lambda: validation_loss(trainer.model, collate, held_out, training),
        selection="loss",
        keep_best=lambda figures: None,  # the published recipes take the last weights
        learning_rates=own_rates(options),
        sampler=sampler,
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    steps = trainer.train_or_continue()

    # Save
    final = trainer.latest_figures() if len(held_out) else {}
    trainer.gather_weights()
    if trainer.is_world_process_zero():
        content = manifest(options, training, learned, held_out, assembled.model.config)
        content |= {"steps": steps} | final
        results = save_result(folder, options, assembled, adapter, content, dtype)
        plot_curve(folder / CURVE_FILE, folder / "curve.png", selection="loss", title=folder.name,
                   synthetic=content["synthetic"], n_validation=len(held_out))  # fmt: skip
        metrics = {
            "steps": steps,
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu_started, 1),
            "samples": len(learned),
            "skipped_in_training": len(trainer.skipped),
            "shortened_in_training": len(trainer.shortened()),
            "synthetic": content["synthetic"],
            "last": final,
        }
        write_json(folder / "metrics.json", metrics)
        print(f"trained {steps} steps in {metrics['seconds']} s; curve: "
              f"{portable_path(folder / 'curve.png')}")  # fmt: skip
        for result in results:
            print(f"written: {portable_path(result)}")


def set_accumulation(options: TrainOptions, training: TrainingArguments) -> None:
    """--global_batch_size as accumulated batches on the devices there are. Raises UserError."""
    if options.global_batch_size is None:
        return
    together = training.per_device_train_batch_size * training.world_size
    if options.global_batch_size % together:
        raise UserError(
            f"--global_batch_size {options.global_batch_size} is no multiple of {together} "
            f"({training.per_device_train_batch_size} samples x {training.world_size} devices)"
        )
    training.gradient_accumulation_steps = options.global_batch_size // together


def refuse_sharded_qlora(train_type: str) -> None:
    """Raises UserError for FSDP2 under 4 bits, which would save wrong weights."""
    from shared.training_flags import fsdp_is_asked_for

    if train_type == "qlora" and fsdp_is_asked_for():
        raise UserError(
            "--train_type qlora with FSDP2: 4-bit weights are not sharded; with "
            "llava_repro/configs/ddp.yaml each GPU holds them whole"
        )


def own_rates(options: TrainOptions) -> dict[str, float]:
    rate = options.projector_learning_rate
    return {} if rate is None else {"model.projector.": rate}


def run_name(options: TrainOptions, training: TrainingArguments) -> str:
    """pretrain_CLIP_QWEN_DATA_seed0: two runs that differ in more need an --output_dir."""
    parts = [
        options.stage,
        options.train_type if options.stage == "finetune" else "",
        *(Path(p).name for p in (options.model, options.vision_tower, options.language_model) if p),
        Path(options.data or "").stem,
        str(options.limit) if options.limit else "",
        f"seed{training.seed}",
    ]
    return "_".join(part for part in parts if part)


def training_config(options: TrainOptions, training: TrainingArguments) -> dict[str, Any]:
    """config.json: our options, the training flags that decide what comes out, what was read."""
    from llava_repro.results import find_projector
    from shared.loading import fingerprint, model_folder
    from shared.training_flags import recorded_flags

    parts = (options.model, options.vision_tower, options.language_model)
    extra = (
        {}
        if options.projector is None
        else {"projector_hash": file_hash(find_projector(options.projector))}
    )
    return resolved_config(
        options,
        **extra,
        script="train",
        training=recorded_flags(training),
        model_fingerprints=[fingerprint(model_folder(part)) for part in parts if part],
        data_hash=file_hash(Path(options.data or "")),
    )


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def parse(argv: list[str] | None = None) -> tuple[TrainOptions, TrainingArguments]:
    argv = list(sys.argv[1:] if argv is None else argv)
    return parse_training_options(
        TrainOptions,
        description=__doc__.split("\n")[0],
        argv=argv,
        training_defaults=TRAINING_DEFAULTS,
        toy_defaults=toy_defaults(stage_of(argv), is_given(argv, "model"))
        if flag_is_set(argv, "toy")
        else None,
        prepare_toy=prepare_toy,
    )


if __name__ == "__main__":
    guarded(lambda: main(*parse()))
