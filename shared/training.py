"""The Trainer of every experiment: transformers' own, made safe to stop and honest about failure.

What is added to it: a non-finite loss or gradient stops the run before the optimizer steps and
names the samples; a checkpoint appears whole or not at all and holds only trainable weights
(safetensors), optimizer and scheduler state, and random generators as tensors and JSON, so nothing
is unpickled on resume; the newest whole checkpoint is taken and training goes on bit for bit; a
validation function given by the experiment runs at every evaluation and keeps the best weights;
`metrics.jsonl` holds the curve. The model's `forward` returns `{"loss": ...}` and takes
`num_items_in_batch`; batches may carry `sample_ids` and `skipped` (messages of bad samples).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from shared.options import UserError, read_json, write_json
from shared.training_flags import check_training_flags, is_true

TRAINABLE_FILE = "trainable.safetensors"
CHECKPOINT_MANIFEST = "checkpoint_manifest.json"
CURVE_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped.txt"
UNVALIDATED_FILE = "unvalidated.json"  # the step of a checkpoint whose validation failed
MAX_SKIPPED_SHARE = 0.01  # of the training samples; more bad ones than this stop the run
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
    a continued run would see other data.
    """

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
        check_training_flags(args)
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
        self.model_accepts_loss_kwargs = True
        self.validate = validate
        self.selection = selection
        self.keep_best = keep_best
        self.learning_rates = dict(learning_rates or {})
        self.sampler = sampler
        self.skipped: list[str] = []
        self._latest: tuple[int, dict[str, float]] = (-1, {})
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
        listed = self.folder / SKIPPED_FILE
        self.skipped = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
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
        """
        inputs = dict(inputs)
        sample_ids = inputs.pop("sample_ids", None)
        skipped = inputs.pop("skipped", [])
        self._count_skipped(skipped)
        if sample_ids == []:
            if self.args.world_size > 1:  # the other processes wait for this one's gradients
                raise UserError(f"a batch without one usable sample; the first: {skipped[0]}")
            return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        where = f"at step {self.state.global_step + 1}, samples {sample_ids}"
        if not torch.isfinite(loss).all():
            raise NonFiniteError(f"the loss is {float(loss)} {where}; no step was made with it")
        if not self.args.fp16:  # the fp16 scaler meets infinite gradients on purpose and skips them
            check_gradients(model, where)
        return loss

    def _count_skipped(self, messages: Sequence[str]) -> None:
        new = [message for message in dict.fromkeys(messages) if message not in self.skipped]
        if not new:
            return
        self.skipped += new
        with (self.folder / SKIPPED_FILE).open("a", encoding="utf-8") as file:
            file.writelines(message + "\n" for message in new)
        bound = max(MAX_SKIPPED_ALWAYS, MAX_SKIPPED_SHARE * len(self.train_dataset))
        if len(self.skipped) > bound:
            raise UserError(
                f"{len(self.skipped)} bad samples, more than the {bound:.0f} allowed; they are "
                f"listed in {self.folder / SKIPPED_FILE}; the last: {new[-1]}"
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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Only what trains; the frozen base is named by the run's config."""
        if output_dir is None or not self.args.should_save:
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(trainable_state(self.model), Path(output_dir) / TRAINABLE_FILE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_trainable_state(
            self.model if model is None else model, Path(resume_from_checkpoint) / TRAINABLE_FILE
        )

    def _save_rng_state(self, output_dir: str) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        version, keys, gauss = random.getstate()
        kind, np_keys, position, has_gauss, cached = np.random.get_state()
        tensors = {
            "python": torch.tensor(keys, dtype=torch.int64),
            "numpy": torch.from_numpy(np_keys.astype(np.int64)),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        rank = self.args.process_index
        save_file(tensors, folder / f"rng_{rank}.safetensors")
        plain = {"python": [version, gauss], "numpy": [kind, position, has_gauss, cached]}
        (folder / f"rng_{rank}.json").write_text(json.dumps(plain), encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        rank = self.args.process_index
        path = Path(checkpoint) / f"rng_{rank}.safetensors"
        if not path.is_file():
            raise UserError(
                f"{checkpoint}: no random state of process {rank}: it was written by fewer "
                "processes. Resume with as many as before, or start a new --output_dir"
            )
        tensors = load_file(path)
        plain = read_json(path.with_suffix(".json"))
        version, gauss = plain["python"]
        random.setstate((version, tuple(tensors["python"].tolist()), gauss))
        kind, position, has_gauss, cached = plain["numpy"]
        np_keys = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state((kind, np_keys, position, has_gauss, cached))
        torch.set_rng_state(tensors["torch"])
        if torch.cuda.is_available() and "cuda" in tensors:
            torch.cuda.set_rng_state(tensors["cuda"])


def check_gradients(model: nn.Module, where: str) -> None:
    """Raises NonFiniteError naming the first parameters whose gradient is NaN or infinite."""
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not named:
        raise NonFiniteError(f"no trainable weight got a gradient {where}")
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named]))
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


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of everything that trains, on the CPU, contiguous."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(model: nn.Module, path: Path) -> None:
    """Copy the weights in place; raises UserError when names or shapes don't match exactly."""
    loaded = load_file(path)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if loaded.keys() != parameters.keys():
        odd = sorted(loaded.keys() ^ parameters.keys())
        raise UserError(f"{path}: other trainable weights than this run's ({odd[0]}, ...)")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if loaded[name].shape != parameter.shape:
                raise UserError(f"{path}: {name} has shape {tuple(loaded[name].shape)}")
            parameter.copy_(loaded[name])


def trainable_to_fp32(model: nn.Module) -> None:
    """Small bf16 updates round to nothing; what trains is kept in full precision."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run folder by step, newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named and passed over."""
    for checkpoint in list_checkpoints(folder):
        problem = checkpoint_problem(checkpoint)
        if problem is None:
            return checkpoint
        print(f"{checkpoint.name} is passed over: {problem}")
    return None


def seal_checkpoint(folder: Path) -> None:
    """fsync every file and write the manifest of sizes and hashes last."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": digest,
        }
    write_json(folder / CHECKPOINT_MANIFEST, {"files": files})
    with (folder / CHECKPOINT_MANIFEST).open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable (not possible, nor needed, on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checkpoint_problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or None."""
    if not folder.is_dir():
        return "no such checkpoint folder"
    if not (folder / CHECKPOINT_MANIFEST).is_file():
        return "it has no manifest, so it was not finished (or not written by this project)"
    try:
        files = read_json(folder / CHECKPOINT_MANIFEST)["files"]
    except UserError as error:
        return str(error)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            return f"{name} is missing or has another size"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return f"{name} is damaged"
    return None


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
