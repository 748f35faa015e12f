"""What a checkpoint folder is, and the weights of its file: whole or not at all, nothing pickled.

Written into a temporary folder, sealed (`seal_checkpoint`: every file on the disk, then a manifest
of sizes and hashes) and renamed; at the next start the newest whole one is taken. Under FSDP2
(torch's `fully_shard`) each parameter is a DTensor of which every process holds a part: weights are
gathered, so that the file is that of one process; the optimizer's state stays in parts, one file a
process.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from shared.options import UserError, read_json, write_json

CHECKPOINT_MANIFEST = "checkpoint_manifest.json"

# Weights


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is, FSDP2's parts put together; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """A tensor as it is, of FSDP2's what lies on this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trainable_state(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Name -> weight of everything that trains, on the CPU, contiguous.

    Sharded weights are gathered one by one, in which all processes take part; those that don't
    `keep` them get an empty dict and need no memory.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weight = whole(parameter.detach())
            if keep:
                state[name] = weight.cpu().contiguous()
    return state


@torch.no_grad()
def load_trainable_state(model: nn.Module, path: Path) -> None:
    """Copy the weights in place, each process its part of a sharded one.

    Raises UserError when names or shapes don't match exactly.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with safe_open(path, framework="pt") as file:
        if odd := sorted(set(file.keys()) ^ parameters.keys()):
            raise UserError(f"{path}: other trainable weights than this run's ({odd[0]}, ...)")
        for name, parameter in parameters.items():
            shape = tuple(file.get_slice(name).get_shape())
            if shape != parameter.shape:
                raise UserError(f"{path}: {name} has shape {shape}")
            weight = file.get_tensor(name)
            if isinstance(parameter, DTensor):  # every process reads the file: nothing is sent
                weight = distribute_tensor(
                    weight.to(parameter.device), parameter.device_mesh, parameter.placements,
                    src_data_rank=None,
                )  # fmt: skip
            parameter.copy_(weight)


@torch.no_grad()
def gather_in_place(model: nn.Module, keep: bool) -> None:
    """Sharded parameters replaced by whole ones on the CPU where `keep` is set, else by nothing.

    For the end of a training: the model can then be saved as one that was never sharded, and no
    longer run. All processes take part. Tied parameters stay tied.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # validation leaves whole what is not gathered layer by layer
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if parameter not in made:
                weight = whole(parameter.detach())
                weight = weight.cpu() if keep else torch.empty(0, dtype=weight.dtype)
                made[parameter] = nn.Parameter(weight, parameter.requires_grad)
            setattr(module, name, made[parameter])


# Optimizer


def optimizer_part(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`state_dict()` with this process's parts of sharded tensors as plain ones."""
    state = optimizer.state_dict()
    parts = {
        i: {n: own_part(v) if torch.is_tensor(v) else v for n, v in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": parts}


def load_optimizer_part(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """What `optimizer_part` gave, sharded again as the parameters are.

    Raises UserError when a part has another shape: it was written by another number of processes.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, values in saved["state"].items():
        parameter = parameters[i]
        if not isinstance(parameter, DTensor):
            continue
        for name, value in values.items():
            if not torch.is_tensor(value) or not value.dim():  # the step number is not sharded
                continue
            if value.shape != parameter.to_local().shape:
                raise UserError(
                    f"a part of the optimizer's {name} has shape {tuple(value.shape)}, here "
                    f"{tuple(parameter.to_local().shape)}: continue with as many processes as it "
                    "was written by"
                )
            values[name] = DTensor.from_local(
                value.to(parameter.device), parameter.device_mesh, parameter.placements,
                run_check=False, shape=parameter.shape, stride=parameter.stride(),
            )  # fmt: skip
    optimizer.load_state_dict(saved)


# Random generators


def save_random_state(folder: Path, rank: int) -> None:
    """The generators' state of one process, as tensors and JSON."""
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
    save_file(tensors, folder / f"rng_{rank}.safetensors")
    plain = {"python": [version, gauss], "numpy": [kind, position, has_gauss, cached]}
    (folder / f"rng_{rank}.json").write_text(json.dumps(plain), encoding="utf-8")


def load_random_state(checkpoint: Path, rank: int) -> None:
    """Raises UserError when this process has none there."""
    path = checkpoint / f"rng_{rank}.safetensors"
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


# Folders


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
