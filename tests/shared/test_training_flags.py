"""Flags of transformers' Trainer: refused with a reason, or recorded, or without effect."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from shared.options import UserError, start_run
from shared.training_flags import (
    NEUTRAL,
    REFUSED,
    check_training_flags,
    recorded_flags,
    refuse_unproven_sharding,
    steps_of_epochs,
)


def arguments(folder: Path, **flags: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), **{"use_cpu": True, **flags})


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("label_smoothing_factor", 0.1),
        ("neftune_noise_alpha", 5.0),
        ("train_sampling_strategy", "group_by_length"),
        ("train_sampling_strategy", "batch_rebalance"),
        ("save_strategy", "best"),
        ("torch_compile", True),
        ("use_liger_kernel", True),
        ("auto_find_batch_size", True),
        ("load_best_model_at_end", True),
        ("metric_for_best_model", "accuracy"),
        ("save_only_model", True),
        ("ignore_data_skip", True),
        ("dataloader_persistent_workers", True),
        ("use_cache", True),
        ("push_to_hub", True),
        ("do_predict", True),
        ("bf16_full_eval", True),
        ("eval_accumulation_steps", 2),
        ("label_names", ["labels"]),
        ("resume_from_checkpoint", "true"),
        ("resume_from_checkpoint", "false"),
        ("resume_from_checkpoint", "nowhere/checkpoint-3"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(tmp_path, flag, value):
    """They used to crash in the middle (AttributeError, KeyError) or to be read by nobody."""
    steps = {"eval_strategy": "steps", "eval_steps": 10, "save_steps": 10}
    with pytest.raises(UserError) as refusal:
        check_training_flags(arguments(tmp_path, **steps, **{flag: value}))
    lines = str(refusal.value).splitlines()
    assert lines[0] == "these training flags do not work here:"
    assert lines[1].startswith(f"  --{flag} {value}: ")


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    """It used to end in a RuntimeError when the model had been loaded."""
    listing = "transformers.integrations.get_available_reporting_integrations"
    monkeypatch.setattr(listing, lambda: ["tensorboard"])
    check_training_flags(arguments(tmp_path, report_to="tensorboard"))
    for name in ("wandb", "wand"):
        with pytest.raises(UserError, match=f"--report_to {name}: .* installed: tensorboard"):
            check_training_flags(arguments(tmp_path, report_to=["tensorboard", name]))


def test_an_optimizer_that_is_not_installed_is_named(tmp_path, monkeypatch):
    check_training_flags(arguments(tmp_path, optim="adamw_8bit"))

    def absent(*_: Any) -> None:
        raise ImportError("You need to install `lomo_optim`")

    monkeypatch.setattr("transformers.Trainer.get_optimizer_cls_and_kwargs", absent)
    with pytest.raises(UserError, match=r"--optim lomo: You need to install"):
        check_training_flags(arguments(tmp_path, optim="lomo"))


def test_all_that_is_refused_is_named_at_once(tmp_path):
    with pytest.raises(UserError) as refusal:
        check_training_flags(arguments(tmp_path, save_only_model=True, label_smoothing_factor=0.1))
    assert "--save_only_model True: " in str(refusal.value)
    assert "--label_smoothing_factor 0.1: " in str(refusal.value)


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("per_device_train_batch_size", 0, "--per_device_train_batch_size 0: at least 1"),
        ("per_device_eval_batch_size", 0, "--per_device_eval_batch_size 0: at least 1"),
        ("gradient_accumulation_steps", 0, "--gradient_accumulation_steps 0: at least 1"),
        ("learning_rate", -1.0, "--learning_rate -1.0: at least 0"),
        ("learning_rate", float("nan"), "--learning_rate nan: at least 0"),
        ("adam_beta2", 1.5, "--adam_beta2 1.5: between 0 and 1"),
        ("num_train_epochs", 0.0, "--num_train_epochs 0.0: more than 0"),
    ],
)
def test_a_number_that_no_training_can_have_is_named(tmp_path, flag, value, said):
    with pytest.raises(UserError, match=said):
        check_training_flags(arguments(tmp_path, **{flag: value}))


def test_what_is_refused_names_no_folder_of_one_experiment_alone():
    """BLIP-2's best weights lie in adapter/; LLaVA's result is its last weights."""
    assert not [why for why in REFUSED.values() if "adapter/" in why]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"activation_checkpointing": True},
        {"train_sampling_strategy": "sequential"},
        {"do_train": True, "do_eval": True},
        {"save_strategy": "epoch", "eval_strategy": "epoch"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
    ],
)
def test_what_works_passes(tmp_path, flags):
    """transformers itself sets metric_for_best_model for a schedule that follows the loss."""
    check_training_flags(arguments(tmp_path, **flags))


def test_resuming_from_the_newest_needs_one(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    for given in ("true", "True", str(tmp_path / "checkpoint-5")):
        check_training_flags(arguments(tmp_path, resume_from_checkpoint=given))
    with pytest.raises(UserError, match=r"there is no checkpoint in .*leave the flag out"):
        check_training_flags(arguments(tmp_path / "empty", resume_from_checkpoint="true"))


def test_sharded_weights_are_refused(tmp_path, monkeypatch):
    """By the flag or by accelerate's config file: rank 0 would save its own shard as the whole."""
    with pytest.raises(UserError, match=r"--fsdp: sharded weights are not gathered"):
        check_training_flags(arguments(tmp_path, fsdp=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"--fsdp: sharded weights are not gathered"):
        check_training_flags(arguments(tmp_path))


def test_a_training_that_gathers_its_weights_may_shard_them(tmp_path, monkeypatch):
    """By accelerate's config file alone, with FSDP2."""
    check = partial(check_training_flags, may_shard=True)
    with pytest.raises(UserError, match="--fsdp: it is set in accelerate's config file"):
        check(arguments(tmp_path, fsdp=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP version 1: set fsdp_version: 2"):
        check(arguments(tmp_path))
    monkeypatch.setenv("FSDP_VERSION", "2")
    check(arguments(tmp_path))
    with pytest.raises(UserError, match="--optim adamw_8bit with FSDP"):
        check(arguments(tmp_path, optim="adamw_8bit"))
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(UserError, match="fsdp_cpu_ram_efficient_loading: the model is made from"):
        check(arguments(tmp_path))


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(UserError, match=r"2 GPUs are visible to one process: .*accelerate launch"):
        check_training_flags(arguments(tmp_path))


def test_the_lists_name_flags_that_exist():
    """A misspelt or renamed one would guard nothing."""
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(REFUSED) <= theirs
    assert theirs >= NEUTRAL
    assert not set(REFUSED) & NEUTRAL


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("data_seed", 3),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}'),
        ("dataloader_drop_last", True),
        ("optim_args", "a=1"),
        ("optim", "sgd"),
        ("max_grad_norm", 0.5),
        ("train_sampling_strategy", "sequential"),
        ("full_determinism", True),
        ("eval_delay", 5),
        ("accelerator_config", {"use_seedable_sampler": False}),
    ],
)
def test_what_decides_the_result_is_recorded(tmp_path, flag, value):
    """A continued run with another value used to go on without a word."""
    start_run(tmp_path, {"training": recorded_flags(arguments(tmp_path))})
    with pytest.raises(UserError, match=rf"training\.{flag}[.a-z_]*: .* there, .* now"):
        start_run(tmp_path, {"training": recorded_flags(arguments(tmp_path, **{flag: value}))})


def test_the_number_of_processes_is_recorded(tmp_path, monkeypatch):
    start_run(tmp_path, {"training": recorded_flags(arguments(tmp_path))})
    monkeypatch.setattr(TrainingArguments, "world_size", 4)
    with pytest.raises(UserError, match=r"training.world_size: 1 there, 4 now"):
        start_run(tmp_path, {"training": recorded_flags(arguments(tmp_path))})


def test_what_only_reports_and_saves_may_differ(tmp_path):
    start_run(tmp_path, {"training": recorded_flags(arguments(tmp_path))})
    other = arguments(
        tmp_path / "elsewhere", logging_steps=7, save_steps=3, save_total_limit=1,
        dataloader_num_workers=2, disable_tqdm=True, run_name="x", activation_checkpointing=True,
        per_device_eval_batch_size=2, resume_from_checkpoint="true", hub_token="secret",
    )  # fmt: skip
    recorded = recorded_flags(other)
    assert start_run(tmp_path, {"training": recorded})
    assert "secret" not in str(recorded)


def test_steps_of_epochs_by_hand(tmp_path):
    def steps(n: int, **flags: Any) -> int:
        return steps_of_epochs(arguments(tmp_path, per_device_train_batch_size=2, **flags), n)

    assert steps(21, num_train_epochs=2) == 22  # eleven batches a pass, the last of one
    assert steps(21, num_train_epochs=2, dataloader_drop_last=True) == 20
    assert steps(21, num_train_epochs=0.5, gradient_accumulation_steps=5) == 2  # half of three


@pytest.mark.parametrize("stage", [None, 2, 3])
def test_zero_3_is_refused_before_it_saves_empty_weights(stage):
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    training = SimpleNamespace(deepspeed_plugin=plugin)
    if stage == 3:
        with pytest.raises(UserError, match="ZeRO-3"):
            refuse_unproven_sharding(training)
    else:
        refuse_unproven_sharding(training)
