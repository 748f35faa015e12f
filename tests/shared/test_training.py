"""The trainer's contracts: exact resume, whole checkpoints, no step with a broken loss."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Sampler

from shared import training
from shared.checkpoints import (
    CHECKPOINT_MANIFEST,
    checkpoint_problem,
    list_checkpoints,
    newest_checkpoint,
    seal_checkpoint,
    trainable_state,
)
from shared.options import REPO_ROOT, UserError, read_json
from shared.training import CURVE_FILE, NonFiniteError, VlmTrainer, plot_curve, read_curve


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


def trainer_in(
    folder: Path,
    data: list[dict] | None = None,
    learning_rates: dict[str, float] | None = None,
    sampler: Sampler[int] | None = None,
    selection: str = "accuracy",
    **flags,
) -> VlmTrainer:
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
        validate=lambda: {
            "loss": abs(trainer.state.global_step - 4.0),
            "accuracy": float(trainer.state.global_step == 4),
        },
        selection=selection,
        keep_best=lambda figures: best.write_text(str(figures["step"])),
        learning_rates=learning_rates,
        sampler=sampler,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return trainer


class TwoKinds(Sampler[int]):
    """Batches of four of one kind (even or odd rows), dealt anew in each pass: as a training on
    rows with and without pictures wants them."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        shuffle = random.Random(f"{self.seed} {self.epoch}").shuffle
        batches = []
        for kind in (0, 1):
            rows = list(range(kind, self.n, 2))
            shuffle(rows)
            batches += [rows[i : i + 4] for i in range(0, len(rows), 4)]
        shuffle(batches)
        yield from (i for batch in batches for i in batch)


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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_mean_loss_over_a_stop_is_that_of_all_its_steps(tmp_path, accumulation):
    """Logged each third step, continued from step 4: the row of step 6 holds steps 4 to 6."""
    flags = {"logging_steps": 3, "gradient_accumulation_steps": accumulation}
    whole = trainer_in(tmp_path / "whole", **flags)
    whole.train_or_continue()
    again = stopped_and_continued(tmp_path / "broken", 5, **flags)
    assert read_json(tmp_path / "broken" / "checkpoint-4" / "loss_0.json")["since"] == 3
    again.train_or_continue()
    assert [r["step"] for r in curve(tmp_path / "whole") if "loss" in r] == [3, 6]
    assert curve(tmp_path / "whole") == curve(tmp_path / "broken")


def stopped_and_continued(folder: Path, stop: int, **settings) -> VlmTrainer:
    """A training that dies after its step `stop` and is started again in "another process"."""
    settings = {key: make() if callable(make) else make for key, make in settings.items()}
    broken = trainer_in(folder, **settings)
    StopAt(broken, stop)
    with pytest.raises(KeyboardInterrupt):
        broken.train_or_continue()
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    return trainer_in(folder, **settings)


@pytest.mark.parametrize("stop", [5, 7, 9])
@pytest.mark.parametrize("flags", [{}, {"lr_scheduler_type": "cosine", "warmup_steps": 2}])
def test_resume_is_exact_with_a_sampler_and_learning_rates_of_their_own(tmp_path, stop, flags):
    """Ten steps of four rows are two and a half passes: stopped within the second and the third."""
    settings = {
        "sampler": lambda: TwoKinds(16, seed=5), "learning_rates": {"trained.bias": 0.01},
        "max_steps": 10, "weight_decay": 0.1, **flags,
    }  # fmt: skip
    whole = trainer_in(tmp_path / "whole", **settings | {"sampler": TwoKinds(16, seed=5)})
    whole.train_or_continue()
    again = stopped_and_continued(tmp_path / "broken", stop, **settings)
    assert again.train_or_continue() == 10
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
    assert curve(tmp_path / "whole") == curve(tmp_path / "broken")


def test_a_sampler_decides_which_rows_learn_together(tmp_path):
    """Each batch of one kind, each pass through all rows, another order in each."""
    trainer = trainer_in(tmp_path, sampler=TwoKinds(16, seed=5), max_steps=8, eval_strategy="no")
    seen = []
    step = trainer.training_step

    def remember(model, inputs, n=None):
        seen.append([int(name[1:]) for name in inputs["sample_ids"]])
        return step(model, inputs, n)

    trainer.training_step = remember
    trainer.train_or_continue()
    assert [len({i % 2 for i in batch}) for batch in seen] == [1] * 8
    passes = [[i for batch in seen[start : start + 4] for i in batch] for start in (0, 4)]
    assert [sorted(order) for order in passes] == [list(range(16))] * 2
    assert passes[0] != passes[1]


def test_a_sampler_and_a_sampling_flag_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match=r"--train_sampling_strategy sequential: .* of its own"):
        trainer_in(tmp_path, sampler=TwoKinds(16, 5), train_sampling_strategy="sequential")


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_parameters_with_a_learning_rate_of_their_own(tmp_path, optim):
    """The flags hold for both groups: optimizer, decay (not of biases), schedule; the logged rate
    is --learning_rate's."""
    trainer = trainer_in(
        tmp_path, learning_rates={"trained.weight": 0.02}, optim=optim, weight_decay=0.3,
        lr_scheduler_type="linear", learning_rate=0.1, max_steps=4, logging_steps=1,
    )  # fmt: skip
    groups = trainer.create_optimizer().param_groups
    model = trainer.model
    found = {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in model.named_parameters()
        for group in groups
        if any(parameter is p for p in group["params"])
    }
    assert found == {"trained.weight": (0.02, 0.3), "trained.bias": (0.1, 0.0)}
    assert len(trainer.create_optimizer().param_groups) == len(groups)  # not cut twice
    trainer.train_or_continue()
    rates = [row["learning_rate"] for row in curve(tmp_path) if "learning_rate" in row]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_a_learning_rate_of_its_own_moves_what_it_names(tmp_path):
    """Rate 0 for the bias: it stays, the weight goes on as without."""
    trainer = trainer_in(tmp_path, learning_rates={"trained.bias": 0.0})
    before = weights(trainer)
    trainer.train_or_continue()
    after = weights(trainer)
    assert torch.equal(before["trained.bias"], after["trained.bias"])
    assert not torch.equal(before["trained.weight"], after["trained.weight"])


@pytest.mark.parametrize("prefix", ["projector.", "frozen."])
def test_a_learning_rate_for_nothing_that_trains_is_an_error(tmp_path, prefix):
    trainer = trainer_in(tmp_path, learning_rates={prefix: 0.1})
    with pytest.raises(UserError, match=f"a learning rate for '{prefix}', but nothing"):
        trainer.train_or_continue()


PROCESS = """
import sys
from pathlib import Path
from tests.shared.test_training import StopAt, TwoKinds, trainer_in
folder, stop = Path(sys.argv[1]), int(sys.argv[2])
for name, sampler in (("own", TwoKinds(16, seed=5)), ("theirs", None)):
    trainer = trainer_in(folder / name, sampler=sampler, max_steps=7, eval_strategy="no",
                         per_device_train_batch_size=2)
    if stop:
        StopAt(trainer, stop)
    try:
        trainer.train_or_continue()
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.slow
def test_two_processes_continue_in_the_right_pass(tmp_path):
    """accelerate does not tell a sampler its epoch in a continued run of several processes: stopped
    in the second pass, it dealt the rows of the first again."""
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(script)]

    def run(folder: str, stop: int) -> None:
        done = subprocess.run(
            [*launch, str(tmp_path / folder), str(stop)], capture_output=True, text=True,
            cwd=REPO_ROOT, env=os.environ | {"PYTHONPATH": "."},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    run("whole", 0)
    run("broken", 7)  # four steps a pass, checkpoints after 2, 4 and 6
    assert newest_checkpoint(tmp_path / "broken" / "own").name == "checkpoint-6"
    run("broken", 0)
    for sampler in ("own", "theirs"):
        whole, broken = (
            load_file(tmp_path / run / sampler / "checkpoint-7" / "trainable.safetensors")
            for run in ("whole", "broken")
        )
        assert all(torch.equal(whole[name], broken[name]) for name in whole), sampler


def test_resume_true_takes_the_newest_whole_checkpoint(tmp_path, capsys):
    """transformers reads it as text: the folder named "true" was not found."""
    stopped_and_continued(tmp_path, 5)
    assert trainer_in(tmp_path, resume_from_checkpoint="true").train_or_continue() == 6
    assert "continuing from checkpoint-4" in capsys.readouterr().out
    for checkpoint in list_checkpoints(tmp_path):
        (checkpoint / CHECKPOINT_MANIFEST).unlink()
    with pytest.raises(UserError, match="--resume_from_checkpoint true: no whole one in"):
        trainer_in(tmp_path, resume_from_checkpoint="true").train_or_continue()


@pytest.mark.parametrize("at", [4, 6])  # 6: the last step
def test_a_validation_that_fails_loses_no_steps(tmp_path, at):
    """It comes before saving: an out-of-memory there lost what was learned since the last
    checkpoint. The next start validates what was not, and is then the uninterrupted run."""
    flags = {"save_steps": 6}
    whole = trainer_in(tmp_path / "whole", **flags)
    whole.train_or_continue()
    stopped = trainer_in(tmp_path / "broken", **flags)
    validate = stopped.validate

    def full() -> dict[str, float]:
        if stopped.state.global_step == at:
            raise torch.OutOfMemoryError("full")
        return validate()

    stopped.validate = full
    with pytest.raises(torch.OutOfMemoryError):
        stopped.train_or_continue()
    again = trainer_in(tmp_path / "broken", **flags)
    steps = []
    step = again.training_step
    again.training_step = lambda *args: (steps.append(1), step(*args))[1]
    again.train_or_continue()
    again.latest_figures()
    assert len(steps) == 6 - at
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[name])
    rows = [
        [(row["step"], row["eval_accuracy"]) for row in curve(folder) if "eval_loss" in row]
        for folder in (tmp_path / "whole", tmp_path / "broken")
    ]
    assert rows[0] == rows[1] == [(2, 0.0), (4, 1.0), (6, 0.0)]
    assert (tmp_path / "broken" / "best.txt").read_text() == "4"
    assert not (tmp_path / "broken" / "unvalidated.json").exists()


def test_an_evaluation_at_the_start_is_made_at_the_start_only(tmp_path):
    whole = trainer_in(tmp_path / "whole", eval_on_start=True)
    whole.train_or_continue()
    again = stopped_and_continued(tmp_path / "broken", 5, eval_on_start=True)
    again.train_or_continue()
    assert [row["step"] for row in curve(tmp_path / "broken") if "eval_loss" in row] == [0, 2, 4, 6]
    assert curve(tmp_path / "whole") == curve(tmp_path / "broken")


@pytest.mark.parametrize(
    "flags",
    [
        {"dataloader_num_workers": 1},
        {"train_sampling_strategy": "sequential"},
        {"data_seed": 8},
        {"include_num_input_tokens_seen": "all"},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"optim": "adamw_8bit"},
    ],
    ids=lambda flags: " ".join(map(str, flags.values())),
)
def test_resume_is_exact_with_flags_that_users_know(tmp_path, flags):
    whole = trainer_in(tmp_path / "whole", max_steps=10, **flags)
    whole.train_or_continue()
    again = stopped_and_continued(tmp_path / "broken", 7, max_steps=10, **flags)
    assert again.train_or_continue() == 10
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


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


def test_of_losses_the_lowest_is_the_best(tmp_path):
    trainer_in(tmp_path, selection="loss").train_or_continue()
    assert (tmp_path / "best.txt").read_text() == "4"
    assert json.loads((tmp_path / "best.json").read_text())["loss"] == 0.0


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


def test_skipped_samples_of_all_processes_count_once_against_one_bound(tmp_path):
    """They share the run folder: 15 here and 15 there, 5 of them the same, are 25."""
    ours, theirs = trainer_in(tmp_path), trainer_in(tmp_path)
    ours._count_skipped([f"s{i}: broken\nin two lines" for i in range(15)])
    theirs._count_skipped([f"s{i}: broken\nin two lines" for i in range(5, 20)])
    assert len(ours.skipped) == len(theirs.skipped) == 20
    ours._count_skipped(["s3: broken\nin two lines"])
    with pytest.raises(UserError, match="21 bad samples, more than the 20 allowed"):
        theirs._count_skipped(["s20: broken"])


def test_an_optimizer_state_that_is_missing_is_not_passed_over(tmp_path):
    """transformers goes on with a fresh one."""
    trainer_in(tmp_path).train_or_continue()
    for checkpoint in list_checkpoints(tmp_path):
        (checkpoint / "optimizer.pt").rename(checkpoint / "optimizer_0.pt")  # as under FSDP2
        (checkpoint / CHECKPOINT_MANIFEST).unlink()
        seal_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"optimizer.pt is missing: written by another kind"):
        trainer_in(tmp_path, max_steps=8).train_or_continue()


def test_the_curve_is_drawn(tmp_path):
    trainer_in(tmp_path).train_or_continue()
    described = {"title": "run", "synthetic": True, "n_validation": 4}
    plot_curve(tmp_path / CURVE_FILE, tmp_path / "curve.png", selection="accuracy", **described)
    from PIL import Image

    assert Image.open(tmp_path / "curve.png").size[0] > 600
