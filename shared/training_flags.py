"""Flags of `transformers.TrainingArguments`: which are refused here, and which decide the result.

Every experiment takes them all. What would crash in the middle, or would be read by nobody, is
refused with one message before a model is loaded (`check_training_flags`). What decides the result
is recorded in the run's config.json (`recorded_flags`), so that a run is only continued with the
same: everything but the short list `NEUTRAL`, so that a flag of a later transformers is recorded
unless somebody has thought about it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.options import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

OWN_VALIDATION = "validation is the experiment's own and doesn't read it"
BEST_IS_KEPT = "the experiment decides which weights are its result; best.json names the best"
COMPUTE = "the models compute in --dtype, in training and in validation"
# Flag -> why it can't have another value than transformers' default.
REFUSED = {
    "label_smoothing_factor": "the models compute the plain cross-entropy of the learned tokens",
    "neftune_noise_alpha": "there is no one embedding to put the noise on: image tokens join later",
    "torch_compile": "not made to work with 4-bit weights and batches of changing shape",
    "torch_compile_backend": "--torch_compile does not work here",
    "torch_compile_mode": "--torch_compile does not work here",
    "use_liger_kernel": "it patches whole transformers models, here is one inside another",
    "auto_find_batch_size": "a run's batch size is part of its result; give a smaller --batch_size",
    "load_best_model_at_end": BEST_IS_KEPT,
    "metric_for_best_model": BEST_IS_KEPT,
    "greater_is_better": BEST_IS_KEPT,
    "save_only_model": "such a checkpoint could not be continued; the result's folder is small",
    "ignore_data_skip": "a continued run would see other data than an uninterrupted one",
    "use_cache": "in training each sample is read once, there is nothing to keep",
    "dataloader_persistent_workers": "a continued run would draw other random numbers",
    "push_to_hub": "upload the finished folder: hf upload NAME FOLDER",
    "do_predict": "evaluate.py answers and scores a split",
    "fp16_full_eval": COMPUTE,
    "bf16_full_eval": COMPUTE,
    "prediction_loss_only": OWN_VALIDATION,
    "eval_do_concat_batches": OWN_VALIDATION,
    "eval_use_gather_object": OWN_VALIDATION,
    "eval_accumulation_steps": OWN_VALIDATION,
    "include_for_metrics": OWN_VALIDATION,
    "batch_eval_metrics": OWN_VALIDATION,
    "label_names": OWN_VALIDATION,
}
# Flag -> (smallest value, largest or None). Outside of them a training crashes when the model is
# loaded and config.json written, or runs and learns nothing.
BOUNDS: dict[str, tuple[float, float | None]] = {
    "per_device_train_batch_size": (1, None),
    "per_device_eval_batch_size": (1, None),
    "gradient_accumulation_steps": (1, None),
    "learning_rate": (0, None),
    "weight_decay": (0, None),
    "max_grad_norm": (0, None),
    "warmup_steps": (0, None),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, None),
    "logging_steps": (0, None),
    "eval_steps": (0, None),
    "save_steps": (0, None),
    "save_total_limit": (0, None),
    "dataloader_num_workers": (0, None),
    "seed": (0, None),
}
# These don't change what comes out: a run may be continued with others.
NEUTRAL = frozenset(
    {
        *("output_dir", "run_name", "project", "resume_from_checkpoint", "local_rank"),
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
        *("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug"),
        *("include_num_input_tokens_seen", "skip_memory_metrics", "torch_empty_cache_steps"),
        *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node"),
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
        *("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "do_train", "do_eval", "per_device_eval_batch_size", "ddp_timeout"),
        *("dataloader_num_workers", "dataloader_pin_memory"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),  # their older names
    }
)


def check_training_flags(training: TrainingArguments, may_shard: bool = False) -> None:
    """Raises UserError that names every flag which can't be obeyed, and why.

    Call it when `output_dir` stands and before a model is loaded. `may_shard`: this training
    gathers FSDP2's sharded weights before it saves them.
    """
    problems = []
    defaults = {
        field.name: field.default_factory()
        if field.default is dataclasses.MISSING
        else field.default
        for field in dataclasses.fields(training)
        if field.name in REFUSED
    }
    derived = {}  # transformers sets these two itself for schedules that follow the validation loss
    if training.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        derived = {"metric_for_best_model": "loss", "greater_is_better": False}
    for name, default in defaults.items():
        value = getattr(training, name)
        if value != default and value != derived.get(name, default):
            problems.append(f"--{name} {value}: {REFUSED[name]}")
    if training.save_strategy == "best":
        problems.append(f"--save_strategy best: {BEST_IS_KEPT}; steps, epoch or no")
    if training.train_sampling_strategy not in {"random", "sequential"}:
        problems.append(
            f"--train_sampling_strategy {training.train_sampling_strategy}: samples have no length "
            "before their picture is read; random or sequential"
        )
    problems += [
        *number_problems(training),
        *resume_problems(training),
        *report_problems(training),
        *optimizer_problems(training),
    ]
    if training.n_gpu > 1:  # nn.DataParallel would cut pictures and questions apart
        problems.append(
            f"{training.n_gpu} GPUs are visible to one process: start it with accelerate launch, "
            "or show it one of them (CUDA_VISIBLE_DEVICES=0)"
        )
    problems += fsdp_problems(training, may_shard)
    refuse(problems)


def fsdp_is_asked_for() -> bool:
    """By accelerate's config file, which its launcher turns into this variable."""
    return is_true(os.environ.get("ACCELERATE_USE_FSDP"))


def fsdp_problems(training: TrainingArguments, may_shard: bool) -> list[str]:
    """What of FSDP, by the flag or by accelerate's config file, does not work."""
    if not (training.fsdp or fsdp_is_asked_for()):
        return []
    if not may_shard:
        return [
            "--fsdp: sharded weights are not gathered for checkpoints and adapters here; "
            "accelerate launch without it shares the batches (DDP)"
        ]
    problems = []
    if training.fsdp:
        problems.append("--fsdp: it is set in accelerate's config file (fsdp_config), by no flag")
    elif os.environ.get("FSDP_VERSION") != "2":
        problems.append("FSDP version 1: set fsdp_version: 2 in accelerate's config file")
    if is_true(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")):
        problems.append(
            "fsdp_cpu_ram_efficient_loading: the model is made from several folders, each process "
            "reads them; set it to false in accelerate's config file"
        )
    if "8bit" in getattr(training.optim, "value", str(training.optim)):
        problems.append(
            f"--optim {training.optim.value} with FSDP: its state has no form in shards; take "
            "adamw_torch"
        )
    return problems


def refuse_unproven_sharding(training: TrainingArguments) -> None:
    """Raises UserError for DeepSpeed ZeRO-3, which would save empty weights: each process holds a
    part of them. (`check_training_flags` decides about FSDP.)"""
    plugin = getattr(training, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise UserError(
            "DeepSpeed ZeRO-3: sharded weights are not gathered for adapters and checkpoints here; "
            "accelerate launch without it shares the batches (DDP)"
        )


def check_numbers(training: TrainingArguments) -> None:
    """Raises UserError that names every number which is out of its bounds."""
    refuse(number_problems(training))


def refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("\n  ".join(["these training flags do not work here:", *problems]))


def number_problems(training: TrainingArguments) -> list[str]:
    """Numbers that no training can have; `parse_training_options` asks for them too, as scripts
    divide by batch sizes before anything else."""
    problems = []
    for name, (least, most) in BOUNDS.items():
        value = getattr(training, name)
        if value is None:
            continue
        if not math.isfinite(value) or value < least or (most is not None and value > most):
            between = f"at least {least}" if most is None else f"between {least} and {most}"
            problems.append(f"--{name} {value}: {between}")
    if training.max_steps < 1 and not 0 < training.num_train_epochs < math.inf:
        problems.append(f"--num_train_epochs {training.num_train_epochs}: more than 0")
    return problems


def resume_problems(training: TrainingArguments) -> list[str]:
    """What is wrong with --resume_from_checkpoint: a folder, or "true" for the newest one."""
    given, folder = training.resume_from_checkpoint, Path(training.output_dir)
    if given is None:
        return []
    if is_true(given):
        if any(folder.glob("checkpoint-*")):
            return []
        return [
            f"--resume_from_checkpoint {given}: there is no checkpoint in {folder}; leave the flag "
            "out: a run continues from its newest checkpoint when it has one"
        ]
    if str(given).lower() in {"false", "no", "0"}:
        return [
            f"--resume_from_checkpoint {given}: a run always continues where it stopped; give "
            "another --output_dir to start anew"
        ]
    return [] if Path(given).is_dir() else [f"--resume_from_checkpoint {given}: no such folder"]


def report_problems(training: TrainingArguments) -> list[str]:
    """Trackers of --report_to whose package is not installed; transformers says so at the start of
    the training only."""
    if not training.report_to:
        return []
    from transformers.integrations import get_available_reporting_integrations

    present = get_available_reporting_integrations()
    return [
        f"--report_to {name}: its package is not installed, or the name is another; installed: "
        f"{', '.join(present) or 'none'} (metrics.jsonl and curve.png are always written)"
        for name in training.report_to
        if name not in present
    ]


def optimizer_problems(training: TrainingArguments) -> list[str]:
    """An --optim whose package is not installed, which transformers misses at the first step."""
    from transformers import Trainer

    try:
        Trainer.get_optimizer_cls_and_kwargs(training)
    except ImportError as error:
        return [f"--optim {training.optim.value}: {error}"]
    except ValueError:  # of those that need the model, which is not here yet
        pass
    return []


def is_true(value: Any) -> bool:
    """Whether a text means yes; transformers declares --resume_from_checkpoint as text."""
    return str(value).lower() in {"true", "yes", "1"}


def recorded_flags(training: TrainingArguments) -> dict[str, Any]:
    """The flags that decide the result, and the number of processes, as plain JSON values."""
    flags = {
        name: value
        for name, value in training.to_dict().items()
        if name not in NEUTRAL and name not in REFUSED
    }
    flags["world_size"] = training.world_size
    return json.loads(json.dumps(flags, default=str))


def steps_of_epochs(training: TrainingArguments, n_samples: int) -> int:
    """Optimizer steps of --num_train_epochs, as the Trainer counts them: a rest is a step too."""
    a_batch = training.per_device_train_batch_size * training.world_size
    batches = (
        n_samples // a_batch if training.dataloader_drop_last else math.ceil(n_samples / a_batch)
    )
    steps = math.ceil(batches / training.gradient_accumulation_steps)
    return math.ceil(training.num_train_epochs * steps)
