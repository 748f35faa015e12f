"""Weight files, read lazily and written shard by shard.

A `Weight` knows its shape and reads its tensor when asked. safetensors are read by key; `.bin`
files are mapped into memory and unpickled with `weights_only=True`, which builds tensors and
nothing else. `ShardWriter` writes safetensors as tensors come, so that a conversion never holds
more than one shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.options import UserError, read_json, write_json

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Weight:
    """One stored tensor; nothing of it is in memory before `read()`."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def read_folder(folder: Path, *, required: bool = True) -> dict[str, Weight]:
    """All weights of a model folder: by its index, or its one file; safetensors before `.bin`.

    Raises UserError when there are none (and they are `required`) or a shard is missing.
    """
    for name in INDEX_FILES[:1] + WHOLE_FILES[:1] + INDEX_FILES[1:] + WHOLE_FILES[1:]:
        if (folder / name).is_file():
            files = [folder / name]
            if name in INDEX_FILES:
                index = read_json(folder / name)
                if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
                    raise UserError(f"{folder / name}: not an index of weights (no weight_map)")
                files = [folder / part for part in sorted(set(index["weight_map"].values()))]
            break
    else:
        if required:
            raise UserError(f"{folder}: no weights in it ({', '.join(WHOLE_FILES)} or an index)")
        return {}
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{folder}: incomplete, {', '.join(absent)} missing; download it again")
    return {key: weight for file in files for key, weight in read_file(file).items()}


def read_file(file: Path) -> dict[str, Weight]:
    """The weights of one .safetensors or .bin file. Raises UserError for a broken one."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                return {
                    key: Weight(
                        tuple(opened.get_slice(key).get_shape()), partial(read_tensor, file, key)
                    )
                    for key in opened.keys()  # noqa: SIM118
                }
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: broken or incomplete ({error})") from error
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip(file))
    except UnpicklingError as error:
        raise UserError(
            f"{file}: it holds more than tensors, and unpickling that could run code: refused"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{file}: broken or incomplete ({error})") from error
    if not isinstance(stored, dict) or not all(isinstance(t, Tensor) for t in stored.values()):
        raise UserError(f"{file}: not a table of tensors")
    return {
        key: Weight(tuple(tensor.shape), partial(Tensor.detach, tensor))
        for key, tensor in stored.items()
    }


def is_zip(file: Path) -> bool:
    """torch's format since 1.6; only that can be mapped into memory."""
    with file.open("rb") as content:
        return content.read(2) == b"PK"


def read_tensor(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(key)


def grown(weight: Weight, rows: int) -> Weight:
    """Embeddings with rows for new tokens behind the old ones, each the mean of those."""

    def read() -> Tensor:
        old = weight.read()
        mean = old.float().mean(dim=0, keepdim=True).to(old.dtype)
        return torch.cat([old, mean.expand(rows - len(old), -1)])

    return Weight((rows, *weight.shape[1:]), read)


class ShardWriter:
    """Writes model-XXXXX.safetensors files of at most `limit` bytes, then the index."""

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self.waiting: dict[str, Tensor] = {}
        self.size = 0
        self.shards: list[tuple[Path, list[str], int]] = []

    def add(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        for key, tensor in tensors:
            if self.waiting and self.size + tensor.nbytes > self.limit:
                self.write()
            self.waiting[key] = tensor.cpu().contiguous()
            self.size += tensor.nbytes

    def write(self) -> None:
        file = self.folder / f"shard-{len(self.shards)}.safetensors"
        try:
            save_file(self.waiting, file, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:  # a full disk is one of the second kind
            raise UserError(f"{file}: cannot be written: {error}") from error
        self.shards.append((file, list(self.waiting), self.size))
        self.waiting, self.size = {}, 0

    def finish(self) -> None:
        """Give the shards the names that transformers looks for, and write their index."""
        if self.waiting:
            self.write()
        if len(self.shards) == 1:
            self.shards[0][0].rename(self.folder / WHOLE_FILES[0])
            return
        weight_map = {}
        for number, (file, keys, _) in enumerate(self.shards, start=1):
            name = f"model-{number:05}-of-{len(self.shards):05}.safetensors"
            file.rename(self.folder / name)
            weight_map |= dict.fromkeys(keys, name)
        total = sum(size for _, _, size in self.shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(self.folder / INDEX_FILES[0], json.loads(json.dumps(index, sort_keys=True)))
