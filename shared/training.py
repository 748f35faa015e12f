"""The Trainer of every experiment: transformers' own, made safe to stop and honest about failure.

What is added to it: a non-finite loss or gradient stops the run before the optimizer steps and
names the samples; a checkpoint appears whole or not at all and holds only trainable weights
(safetensors), optimizer and scheduler state, and random generators as tensors and JSON, so nothing
is unpickled on resume; the newest whole checkpoint is taken and training goes on bit for bit, its
curve too (but for the last row, times and mean loss of the last start); a
validation function given by the experiment runs at every evaluation and keeps the best weights;
`metrics.jsonl` holds the curve. The model's `forward` returns `{"loss": ...}` and takes
`num_items_in_batch`; batches may carry `sample_ids` and `skipped` (messages of bad samples). All
processes share the run folder.
"""

from __future__ import annotations

import atexit
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from shared.checkpoints import (
    checkpoint_problem,
    gather_in_place,
    list_checkpoints,
    load_optimizer_part,
    load_random_state,
    load_trainable_state,
    newest_checkpoint,
    optimizer_part,
    own_part,
    save_random_state,
    seal_checkpoint,
    sync_folder,
    trainable_state,
)
from shared.options import UserError, read_json, write_json
from shared.training_flags import check_training_flags, fsdp_is_asked_for, is_true

TRAINABLE_FILE = "trainable.safetensors"
CURVE_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped.txt"
UNVALIDATED_FILE = "unvalidated.json"  # the step of a checkpoint whose validation failed
# Bad samples of a run, all its processes together: more than this share of the training samples
# stop it, but never as few as this.
MAX_SKIPPED_SHARE = 0.01
MAX_SKIPPED_ALWAYS = 20


class NonFiniteError(UserError):
    """The loss or a gradient is NaN or infinite; no optimizer step was made with it."""


class VlmTrainer(Trainer):
    """`transformers.Trainer` with the contracts of this file.

    `validate` returns figures without prefix, `selection` names the one to keep the best weights by
    (higher is better, of "loss" lower), `keep_best(metrics)` writes them where the experiment wants
    them. `learning_rates` maps the start of parameters' names to a learning rate of their own
    (`{"projector.": 2e-5}`); all else, --optim, --weight_decay and the schedule included, holds for
    them too. `sampler` gives the order of the training samples for all processes together: a
    function of its seed and of the epoch alone, which `set_epoch(n)` tells it before each pass, or
    a continued run would see other data. A model that has `stand_in()`, the smallest batch that
    passes through all that trains, goes on in several processes when one has bad samples only.
    """

    # FSDP2: only where `keep_best`, which the first process calls alone, reads no weights, and the
    # script calls `gather_weights` before it saves
    may_shard = False

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any,
        data_collator: Callable[[list[Any]], dict[str, Any]],
        validate: Callable[[], dict[str, float]],
        selection: str,
        keep_best: Callable[[Mapping[str, Any]], None],
        learning_rates: Mapping[str, float] | None = None,
        sampler: Sampler[int] | None = None,
    ) -> None:
        check_training_flags(args, self.may_shard)
        if sampler is not None and args.train_sampling_strategy != "random":
            raise UserError(
                f"--train_sampling_strategy {args.train_sampling_strategy}: this training has an "
                "order of samples of its own"
            )
        args.remove_unused_columns = False
        args.dataloader_pin_memory = torch.cuda.is_available()  # without a GPU it only warns
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=train_dataset,  # only so that evaluation is switched on; see evaluate()
            data_collator=data_collator,
        )
        if fsdp_is_asked_for() and not self.is_fsdp_enabled:
            raise UserError(
                "FSDP2: accelerate shards on GPUs only, here each process would train the whole "
                "model without a word: launch without FSDP (DDP)"
            )
        self.model_accepts_loss_kwargs = True
        self.validate = validate
        self.selection = selection
        self.keep_best = keep_best
        self.learning_rates = dict(learning_rates or {})
        self.sampler = sampler
        self._latest: tuple[int, dict[str, float]] = (-1, {})
        atexit.register(leave_process_group)
        self._staging: Path | None = None

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)

    def train_or_continue(self) -> int:
        """Train from the newest whole checkpoint of the run folder, or from the start.

        Returns the number of steps done. `--resume_from_checkpoint FOLDER` names another one.
        """
        given = self.args.resume_from_checkpoint
        named = given is not None and not is_true(given)
        checkpoint = Path(given) if named else newest_checkpoint(self.folder)
        if given is not None and checkpoint is None:
            raise UserError(f"--resume_from_checkpoint {given}: no whole one in {self.folder}")
        step = -1
        if checkpoint is not None:
            problem = checkpoint_problem(checkpoint)
            if problem:
                raise UserError(f"{checkpoint}: {problem}")
            step = read_json(checkpoint / "trainer_state.json")["global_step"]
            print(f"continuing from {checkpoint.name}")
            unvalidated = self.folder / UNVALIDATED_FILE
            due = read_json(unvalidated)["step"] if unvalidated.is_file() else None
            self.args.eval_on_start = due == step  # else the start was before the checkpoint
        truncate_curve(self.folder / CURVE_FILE, after_step=step)
        best = self.folder / "best.json"
        if best.is_file() and read_json(best)["step"] > step:
            best.unlink()  # of a training that is about to be repeated, or of another one
        if checkpoint is not None and 0 < self.args.max_steps <= step:
            self._take_up_finished(checkpoint, step)  # transformers would make one step more
            return step
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self.state.global_step

    def _take_up_finished(self, checkpoint: Path, step: int) -> None:
        """The weights and the last figures of a training that was stopped after its last step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = step
        for row in read_curve(self.folder / CURVE_FILE):
            if row["step"] == step and f"eval_{self.selection}" in row:
                figures = {k: v for k, v in row.items() if k.startswith("eval_")}
                self._latest = (step, {k.removeprefix("eval_"): v for k, v in figures.items()})

    # Optimizer and order of the samples

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers' own, its groups cut where `learning_rates` says so."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.learning_rates:
            named = dict((self.model if model is None else model).named_parameters())
            give_own_learning_rates(optimizer, named, self.learning_rates)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **rest: Any) -> None:
        """Tell the sampler its epoch here: accelerate does not reach it in a continued run of
        several processes (data_loader.py, `set_epoch`: a SkipBatchSampler around a shard)."""
        inner = train_dataloader.batch_sampler
        while hasattr(inner, "batch_sampler"):
            inner = inner.batch_sampler
        if hasattr(inner.sampler, "set_epoch"):
            inner.sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **rest)

    # Steps

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch forward and backward, then the check that nothing is NaN or infinite.

        A batch whose samples are all bad has empty `sample_ids`; it is counted and adds nothing.
        The other processes wait for this one's gradients, so it then gives zeros; a step for which
        no process has a sample passes without an update.
        """
        inputs = dict(inputs)
        sample_ids = inputs.pop("sample_ids", None)
        skipped = inputs.pop("skipped", [])
        self._count_skipped(skipped)
        if sample_ids == []:
            together = self.args.average_tokens_across_devices  # num_items_in_batch is of all then
            if self.args.world_size == 1 or (together and not num_items_in_batch):
                return torch.zeros((), device=self.args.device)
            inputs = self._stand_in(model, skipped)
            num_items_in_batch = math.inf  # the sum of its losses is divided by it
        loss = super().training_step(model, inputs, num_items_in_batch)
        where = f"at step {self.state.global_step + 1}, samples {sample_ids}"
        if not torch.isfinite(loss).all():
            # DeepSpeed's backward pass steps by itself
            unstepped = "" if self.is_deepspeed_enabled else "; no step was made with it"
            raise NonFiniteError(f"the loss is {float(loss)} {where}{unstepped}")
        # the fp16 scaler meets infinite gradients on purpose and skips them; FSDP2 has gradients
        # after the last accumulated batch; DeepSpeed has taken them into its own buffers
        hidden = self.is_fsdp_enabled and not self.accelerator.sync_gradients
        if not (self.args.fp16 or hidden or self.is_deepspeed_enabled):
            check_gradients(model, where)
        return loss

    def _stand_in(self, model: nn.Module, skipped: Sequence[str]) -> dict[str, Any]:
        own = self.accelerator.unwrap_model(model)
        if not hasattr(own, "stand_in"):
            raise UserError(f"a batch without one usable sample; the first: {skipped[0]}")
        return own.stand_in()

    @property
    def skipped(self) -> list[str]:
        """Messages of the bad samples so far: of all processes, and of an earlier start."""
        return listed_once(self.folder / SKIPPED_FILE)

    def _count_skipped(self, messages: Sequence[str]) -> None:
        if not messages or not add_lines(self.folder / SKIPPED_FILE, messages):
            return
        skipped = self.skipped
        bound = max(MAX_SKIPPED_ALWAYS, MAX_SKIPPED_SHARE * len(self.train_dataset))
        if len(skipped) > bound:
            raise UserError(
                f"{len(skipped)} bad samples, more than the {bound:.0f} allowed; they are "
                f"listed in {self.folder / SKIPPED_FILE}; the last: {skipped[-1]}"
            )

    # Validation and curve

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The experiment's validation in eval mode; keeps the weights when they are the best."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                figures = self.validate()
        except Exception:
            self._save_unvalidated()
            raise
        self.model.train(was_training)
        if self.is_world_process_zero():
            (self.folder / UNVALIDATED_FILE).unlink(missing_ok=True)
        self._latest = (self.state.global_step, figures)
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        if self.is_world_process_zero():
            best_file = self.folder / "best.json"
            best = read_json(best_file)[self.selection] if best_file.is_file() else None
            sign = -1 if self.selection == "loss" else 1
            if best is None or sign * figures[self.selection] > sign * best:
                self.keep_best({**figures, "step": self.state.global_step})
                write_json(best_file, {**figures, "step": self.state.global_step})
        return metrics

    def _save_unvalidated(self) -> None:
        """transformers saves after validating, so that one that fails (a full GPU, a bad picture)
        would lose all steps since the last checkpoint. The next start validates first."""
        step = self.state.global_step
        if step < 1 or self.optimizer is None or self.args.world_size > 1:  # they would wait
            return
        if not (self.folder / f"checkpoint-{step}").is_dir():
            self._save_checkpoint(self.model, None)
            write_json(self.folder / UNVALIDATED_FILE, {"step": step})
            print(f"the validation failed; the {step} steps until it are saved")

    def latest_figures(self) -> dict[str, float]:
        """The validation figures of the weights as they are, measured unless just done."""
        if self._latest[0] != self.state.global_step:
            self.evaluate()
        return self._latest[1]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.is_world_process_zero():
            row = {"step": self.state.global_step, **logs}
            with (self.folder / CURVE_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write into a temporary folder, then fsync, manifest, rename: whole or not at all."""
        name = f"checkpoint-{self.state.global_step}"
        self._staging = self.folder / f".unfinished-{name}"
        if self.is_world_process_zero():
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                seal_checkpoint(self._staging / name)
                shutil.rmtree(self.folder / name, ignore_errors=True)
                (self._staging / name).rename(self.folder / name)
                sync_folder(self.folder)
                self._staging.rmdir()
                self._rotate()
        except OSError as error:
            raise UserError(
                f"{self.folder / name}: cannot be written: {error.strerror or error}. Earlier "
                "checkpoints are whole; make room and run the same command again."
            ) from error
        finally:
            self._staging = None

    def _rotate(self) -> None:
        limit = self.args.save_total_limit
        if limit:
            for old in list_checkpoints(self.folder)[limit:]:
                shutil.rmtree(old)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Only what trains; the frozen base is named by the run's config. By all processes."""
        if output_dir is None:
            return
        state = trainable_state(self.model, keep=self.args.should_save)
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(state, Path(output_dir) / TRAINABLE_FILE)

    def gather_weights(self) -> None:
        """After the training, by all processes: on the first one the model is then whole, to be
        saved (on the CPU under FSDP2); it is not run any more."""
        gather_in_place(self.model, keep=self.is_world_process_zero())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """transformers' own, but under FSDP2 each process writes its part of the state."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(optimizer_part(self.optimizer), folder / self._optimizer_file())
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """transformers' would go on with a fresh optimizer if the file is missing."""
        if checkpoint is None:
            return
        path = Path(checkpoint) / self._optimizer_file()
        if not self.is_deepspeed_enabled and not path.is_file():
            raise UserError(
                f"{checkpoint}: {path.name} is missing: written by another kind or number of "
                "processes (FSDP2: one file each). Continue with the same launch, or start a new "
                "--output_dir"
            )
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        saved = torch.load(path, map_location="cpu", weights_only=True)
        load_optimizer_part(self.optimizer, saved)
        scheduler = torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)

    def _optimizer_file(self) -> str:
        rank = self.args.process_index
        return f"optimizer_{rank}.pt" if self.is_fsdp_enabled else "optimizer.pt"

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_trainable_state(
            self.model if model is None else model, Path(resume_from_checkpoint) / TRAINABLE_FILE
        )

    def _save_rng_state(self, output_dir: str) -> None:
        """Each process's generators, and its losses since the curve's last row."""
        save_random_state(Path(output_dir), self.args.process_index)
        unlogged = {"sum": self._tr_loss.item(), "since": self._globalstep_last_logged}
        write_json(self._unlogged_file(output_dir), unlogged)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        load_random_state(Path(checkpoint), self.args.process_index)
        path = self._unlogged_file(checkpoint)
        if path.is_file():  # else of a time before this: the next row is the mean since here
            unlogged = read_json(path)
            self._tr_loss += unlogged["sum"]
            self._globalstep_last_logged = unlogged["since"]
            self._total_loss_scalar -= unlogged["sum"]  # train_loss is the mean of this start alone

    def _unlogged_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"loss_{self.args.process_index}.json"


def leave_process_group() -> None:
    """What several processes talk through is closed before Python ends: threads of it that outlive
    the interpreter can abort a process whose training was finished (exit status -6)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_gradients(model: nn.Module, where: str) -> None:
    """Raises NonFiniteError naming the first parameters whose gradient is NaN or infinite."""
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not named:
        raise NonFiniteError(f"no trainable weight got a gradient {where}")
    norms = torch.stack(torch._foreach_norm([own_part(gradient) for _, gradient in named]))
    if not torch.isfinite(norms).all():
        bad = [name for (name, _), norm in zip(named, norms, strict=True) if not norm.isfinite()]
        raise NonFiniteError(
            f"{len(bad)} gradients are not finite ({bad[0]}, ...) {where}; no step was made"
        )


def give_own_learning_rates(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], rates: Mapping[str, float]
) -> None:
    """Move parameters whose name starts with a key of `rates` into groups with that learning rate.

    The first groups stay first, so that the logged learning rate is --learning_rate's. Call it
    before the first step. Raises UserError when a key fits nothing that trains.
    """
    for prefix, rate in rates.items():
        own = {id(p) for name, p in named.items() if name.startswith(prefix) and p.requires_grad}
        if not own:
            raise UserError(f"a learning rate for {prefix!r}, but nothing of that name trains")
        for group in list(optimizer.param_groups):
            moved = [p for p in group["params"] if id(p) in own]
            if moved:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                optimizer.param_groups.append({**group, "params": moved, "lr": rate})


def trainable_to_fp32(model: nn.Module) -> None:
    """Small bf16 updates round to nothing; what trains is kept in full precision."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def listed_once(path: Path) -> list[str]:
    """The lines of a list, each once: several processes may have met the same sample."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return list(dict.fromkeys(lines))


def add_lines(path: Path, lines: Sequence[str]) -> bool:
    """Append those that a list doesn't have yet; whether there were any. Each is one line."""
    lines = [" ".join(line.splitlines()) for line in lines]
    known = set(listed_once(path))
    new = [line for line in dict.fromkeys(lines) if line not in known]
    if new:
        with path.open("a", encoding="utf-8") as file:  # one write: other processes append too
            file.write("".join(line + "\n" for line in new))
    return bool(new)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a half-written last line is dropped."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def truncate_curve(path: Path, *, after_step: int) -> None:
    """Drop what was logged after the checkpoint that training goes on from."""
    rows = [row for row in read_curve(path) if row["step"] <= after_step]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def plot_curve(path: Path, output: Path, **described: Any) -> None:
    """metrics.jsonl as a PNG; `described` as `shared.charts.training_curve` takes it."""
    from shared.charts import training_curve

    output.write_bytes(training_curve(read_curve(path), **described))
