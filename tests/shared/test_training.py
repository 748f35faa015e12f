"""The trainer's contracts: exact resume, whole checkpoints, no step with a broken loss."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared import training
from shared.options import UserError
from shared.training import (
    CHECKPOINT_MANIFEST,
    CURVE_FILE,
    NonFiniteError,
    VlmTrainer,
    checkpoint_problem,
    list_checkpoints,
    newest_checkpoint,
    plot_curve,
    read_curve,
    trainable_state,
)


class Net(nn.Module):
    """A frozen and a trained layer with dropout between, so that random state matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.dropout = nn.Dropout(0.3)
        self.trained = nn.Linear(8, 3)

    def forward(self, x, labels, num_items_in_batch=None):
        logits = self.trained(self.dropout(self.frozen(x)))
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        return {"loss": total / (num_items_in_batch or (labels != -100).sum())}


def samples(n: int = 16) -> list[dict]:
    """Rows with one to four labels each: the number of learned tokens differs per batch."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(n):
        labels = torch.randint(0, 3, (4,), generator=generator)
        labels[1 + i % 4 :] = -100
        rows.append({"id": f"s{i}", "x": torch.randn(4, 4, generator=generator), "labels": labels})
    return rows


def collate(rows: list[dict]) -> dict:
    return {
        "x": torch.stack([row["x"] for row in rows]),
        "labels": torch.stack([row["labels"] for row in rows]),
        "sample_ids": [row["id"] for row in rows],
        "skipped": [row["problem"] for row in rows if "problem" in row],
    }


def trainer_in(folder: Path, data: list[dict] | None = None, **flags) -> VlmTrainer:
    from transformers import TrainingArguments

    settings = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.1, "save_steps": 2,
        "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "seed": 3, "save_total_limit": 2,
    } | flags  # fmt: skip
    best = folder / "best.txt"
    trainer = VlmTrainer(
        model=Net(),
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=data or samples(),
        data_collator=collate,
        validate=lambda: {"loss": 1.0, "accuracy": float(trainer.state.global_step == 4)},
        selection="accuracy",
        keep_best=lambda figures: best.write_text(str(figures["step"])),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return trainer


class StopAt:
    """Stands in for the end of a process: raises in the middle of training."""

    def __init__(self, trainer: VlmTrainer, step: int) -> None:
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == step:
                    raise KeyboardInterrupt

        trainer.add_callback(Callback())


def weights(trainer: VlmTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainable_state(trainer.model).items()}


def curve(folder: Path) -> list[dict]:
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    rows = [{k: v for k, v in r.items() if k not in timed} for r in read_curve(folder / CURVE_FILE)]
    return [row for row in rows if "train_loss" not in row]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_equals_uninterrupted(tmp_path, accumulation):
    whole = trainer_in(tmp_path / "whole", gradient_accumulation_steps=accumulation)
    whole.train_or_continue()
    broken = trainer_in(tmp_path / "broken", gradient_accumulation_steps=accumulation)
    StopAt(broken, 5)
    with pytest.raises(KeyboardInterrupt):
        broken.train_or_continue()
    torch.manual_seed(99)  # whatever state the new process starts in
    random.seed(99)
    np.random.seed(99)
    again = trainer_in(tmp_path / "broken", gradient_accumulation_steps=accumulation)
    assert again.train_or_continue() == 6
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
    assert curve(tmp_path / "whole") == curve(tmp_path / "broken")
    assert {r["step"] for r in curve(tmp_path / "broken")} == {1, 2, 3, 4, 5, 6}


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    trainer_in(tmp_path).train_or_continue()
    newest, older = list_checkpoints(tmp_path)
    assert (newest.name, older.name) == ("checkpoint-6", "checkpoint-4")
    with (newest / "optimizer.pt").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xfe\xfd")
    assert newest_checkpoint(tmp_path) == older
    assert "optimizer.pt is damaged" in capsys.readouterr().out
    (older / "scheduler.pt").unlink()
    assert "scheduler.pt is missing" in checkpoint_problem(older)
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match="is damaged"):
        trainer_in(tmp_path, resume_from_checkpoint=str(newest)).train_or_continue()


def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path, monkeypatch):
    seal = training.seal_checkpoint

    def full_at_four(folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(folder)

    monkeypatch.setattr(training, "seal_checkpoint", full_at_four)
    with pytest.raises(UserError, match=r"checkpoint-4: cannot be written.*No space left"):
        trainer_in(tmp_path).train_or_continue()
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"
    monkeypatch.undo()
    assert trainer_in(tmp_path).train_or_continue() == 6


def test_checkpoints_hold_no_pickles_and_only_trained_weights(tmp_path):
    from safetensors.torch import load_file

    trainer_in(tmp_path).train_or_continue()
    newest = list_checkpoints(tmp_path)[0]
    assert set(load_file(newest / "trainable.safetensors")) == {"trained.weight", "trained.bias"}
    names = {path.name for path in newest.iterdir()}
    assert "training_args.bin" not in names
    assert not [name for name in names if name.startswith("rng") and name.endswith(".pth")]
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(newest / name, weights_only=True)
    manifest = json.loads((newest / CHECKPOINT_MANIFEST).read_text())
    assert set(manifest["files"]) == names - {CHECKPOINT_MANIFEST}


def test_a_non_finite_loss_stops_before_the_step_and_names_the_samples(tmp_path):
    data = samples()
    data[7]["x"][0, 0] = float("nan")
    trainer = trainer_in(tmp_path, data)
    before = weights(trainer)
    steps_made = []
    step = trainer.training_step

    def remember(model, inputs, n=None):
        result = step(model, inputs, n)
        steps_made.append(inputs["sample_ids"])
        return result

    trainer.training_step = remember
    with pytest.raises(NonFiniteError, match=r"loss is nan at step \d+, samples .*'s7'"):
        trainer.train_or_continue()
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    assert all("s7" not in ids for ids in steps_made)
    if not steps_made:  # the bad sample came first: nothing may have moved
        assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_a_non_finite_gradient_stops_before_the_step(tmp_path):
    trainer = trainer_in(tmp_path)
    before = weights(trainer)
    trainer.model.trained.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=r"trained.weight.*samples \['s"):
        trainer.train_or_continue()
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_nothing_that_trains_is_an_error(tmp_path):
    trainer = trainer_in(tmp_path)
    trainer.create_optimizer()
    batch = collate(samples(4))
    trainer.model.trained.weight.grad = None
    with pytest.raises(NonFiniteError, match="no trainable weight got a gradient"):
        training.check_gradients(trainer.model, f"samples {batch['sample_ids']}")


def test_the_loss_does_not_depend_on_how_a_batch_is_cut(tmp_path):
    """Token-weighted: 8 x 1, 4 x 2 and 2 x 4 give the same first step."""
    states = []
    for size in (8, 4, 2):
        trainer = trainer_in(
            tmp_path / str(size), per_device_train_batch_size=size, max_steps=1,
            gradient_accumulation_steps=8 // size, save_strategy="no", eval_strategy="no",
        )  # fmt: skip
        trainer.model.dropout.p = 0.0
        trainer.train_or_continue()
        states.append(weights(trainer))
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


def test_the_best_validation_is_kept(tmp_path):
    trainer_in(tmp_path).train_or_continue()
    assert (tmp_path / "best.txt").read_text() == "4"
    assert json.loads((tmp_path / "best.json").read_text())["accuracy"] == 1.0


def test_skipped_samples_are_counted_against_a_bound(tmp_path):
    data = samples()
    for row in data[:2]:
        row["problem"] = f"{row['id']}: broken"
    trainer = trainer_in(tmp_path / "few", data, max_steps=4)
    trainer.train_or_continue()
    assert sorted(trainer.skipped) == ["s0: broken", "s1: broken"]
    assert (tmp_path / "few" / "skipped.txt").read_text().count("broken") == 2
    many = [row | {"problem": f"{row['id']}: broken"} for row in samples(40)]
    with pytest.raises(UserError, match="more than the 20 allowed"):
        trainer_in(tmp_path / "many", many, max_steps=10).train_or_continue()


def test_the_curve_is_drawn(tmp_path):
    trainer_in(tmp_path).train_or_continue()
    plot_curve(tmp_path / CURVE_FILE, tmp_path / "curve.png", selection="accuracy")
    from PIL import Image

    assert Image.open(tmp_path / "curve.png").size[0] > 600
