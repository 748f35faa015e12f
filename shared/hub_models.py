"""Model folders: fetched from the Hugging Face Hub, or taken from a folder fetched by hand.

A model lies whole in `data/models/<org>/<name>/` with a `manifest.json` (Hub id, resolved commit,
file sizes), written last. It is fetched into a hidden folder beside that place, where the Hub
library continues interrupted files, and gets its name when all its files are there and whole.
Weights are taken as safetensors; only where a repository has none (CLIP ViT-L/14-336, Vicuna,
Chinese-CLIP) as `pytorch_model*.bin`, which every loader here reads with `weights_only=True`.
Beside them JSON and tokenizer files; no other pickles, no remote code.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.fetch import (
    BrokenFileError,
    check_free_space,
    free_bytes,
    human_size,
    link_or_copy,
)
from shared.options import DATA_ROOT, UserError, portable_path, read_json, write_json

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
UNWANTED = ("*/*", "*.bin.index.json", "manifest.json")  # other formats in subfolders; our own file
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
SAFETENSORS_INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
BIN_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")  # no variants such as .fp16.bin
BIN_NOTE = "weights: pytorch_model*.bin (no safetensors there); read with weights_only=True alone"
LEGACY_PICKLE = b"\x80\x02\x8a\x0a"  # torch before 1.6: a pickled magic number, no zip


def is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def get_model(
    model_id: str,
    *,
    revision: str | None,
    from_folder: Path | None,
    dry_run: bool,
    known: Mapping[str, int],
) -> Path:
    """Bring a model to `data/models/<org>/<name>/`; does nothing when that revision is there whole.

    `known`: rough sizes of the usual models, for when the Hub doesn't answer or has no such name.
    Raises UserError; without a network the message says which files belong where.
    """
    target = DATA_ROOT / "models" / model_id
    here = manifest_of(target)
    if here and not folder_problems(target) and revision in (None, here["revision"]):
        print(f"{model_id}: in place in {portable_path(target)}, revision {here['revision']}")
        return target
    part = target.with_name(f".{target.name}.part")
    if from_folder is not None:
        source = find_model_folder(from_folder, model_id)
        print(f"{model_id}: from {source} -> {portable_path(target)}")
        if dry_run:
            return target
        shutil.rmtree(part, ignore_errors=True)
        files = wanted_files([f.name for f in source.iterdir() if f.is_file()])
        if is_bin_only(files):
            print(f"  {BIN_NOTE}")
        for file in files:
            link_or_copy(source / file, part / file)
        commit, origin = revision, "files fetched by hand"
    else:
        commit, origin = fetch_from_hub(model_id, revision, target, part, dry_run, known)
        if dry_run:
            return target
    problems = folder_problems(part)
    if problems:
        raise BrokenFileError(f"{model_id}: " + "; ".join(problems) + f" (in {part})")
    sizes = {f.name: f.stat().st_size for f in sorted(part.iterdir()) if f.is_file()}
    manifest = {
        "synthetic": False,
        "model": model_id,
        "revision": commit,
        "source": origin,
        "files": sizes,
    }
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the Hub library's notes on half files
    write_json(part / "manifest.json", manifest)
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    print(f"{model_id}: complete in {portable_path(target)}, revision {commit or 'unknown'}")
    return target


def manifest_of(folder: Path) -> dict[str, Any] | None:
    file = folder / "manifest.json"
    return read_json(file) if file.is_file() else None


def wanted_files(names: list[str]) -> list[str]:
    """What to take of a repository; its weights in one format: safetensors, else .bin."""
    wanted = [
        name
        for name in names
        if any(fnmatch.fnmatch(name, p) for p in WANTED)
        and not any(fnmatch.fnmatch(name, p) for p in UNWANTED)
    ]
    if any(name.endswith(".safetensors") for name in wanted):
        return wanted
    bins = [name for name in names if BIN_WEIGHTS.fullmatch(name)]
    index = [name for name in names if name == BIN_INDEX and bins]
    return [name for name in wanted if name != SAFETENSORS_INDEX] + bins + index


def is_bin_only(files: list[str]) -> bool:
    return any(BIN_WEIGHTS.fullmatch(name) for name in files)


def fetch_from_hub(
    model_id: str,
    revision: str | None,
    target: Path,
    part: Path,
    dry_run: bool,
    known: Mapping[str, int],
) -> tuple[str | None, str]:
    """Show sizes, then fetch into `part`. Returns the resolved commit and the server's address."""
    from huggingface_hub import HfApi, constants, snapshot_download

    place = f"-> {portable_path(target)}, {human_size(free_bytes(target))} free"
    try:
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True, timeout=20)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings}
        files = wanted_files(list(sizes))
        if not is_bin_only(files) and not any(name.endswith(".safetensors") for name in files):
            raise UserError(
                f"{model_id}: no weights in it that are loaded here (*.safetensors, or else "
                "pytorch_model*.bin)"
            )
        total = sum(sizes[name] for name in files)
        print(f"{model_id} at {info.sha}: {human_size(total)} in {len(files)} files {place}")
        if is_bin_only(files):
            print(f"  {BIN_NOTE}")
        if dry_run:
            return info.sha, constants.ENDPOINT
        there = sum(f.stat().st_size for f in part.rglob("*") if f.is_file())
        check_free_space(target, max(0, total - there), model_id)
        snapshot_download(model_id, revision=info.sha, local_dir=part, allow_patterns=files)
    except UserError:
        raise
    except Exception as error:  # the Hub library's HTTP package, and so its errors, change with it
        if dry_run and model_id in known and not _refused(error):
            about = f"about {human_size(known[model_id])} {place}"
            print(f"{model_id}: {about} ({constants.ENDPOINT} does not answer)")
            return None, constants.ENDPOINT
        raise UserError(hub_problem(error, model_id, target, known)) from error
    for name in files:
        have = (part / name).stat().st_size if (part / name).is_file() else 0
        if sizes[name] and have != sizes[name]:
            (part / name).unlink(missing_ok=True)
            raise BrokenFileError(
                f"{model_id}: {name} has {have:,} of {sizes[name]:,} bytes; give the command again"
            )
    return info.sha, constants.ENDPOINT


def _refused(error: Exception) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    return isinstance(error, RepositoryNotFoundError | RevisionNotFoundError)


def hub_problem(error: Exception, model_id: str, target: Path, known: Mapping[str, int]) -> str:
    """What went wrong at the Hub and what to do, in the user's words."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return (
            f"{model_id} is gated: accept its terms at {constants.ENDPOINT}/{model_id}, then "
            "`hf auth login` (or set HF_TOKEN) and give the same command again"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{model_id}: there is no such revision (a branch, tag or full commit)"
    if isinstance(error, RepositoryNotFoundError):
        near = difflib.get_close_matches(model_id, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "if it is private: `hf auth login`"
        return f"{constants.ENDPOINT} has no model {model_id}; {hint}"
    size = f" ({human_size(known[model_id])})" if model_id in known else ""
    patterns = " ".join(f'"{p}"' for p in WANTED)
    command = f"python -m shared.download {model_id}"
    return (
        f"{model_id} did not come from {constants.ENDPOINT}: {type(error).__name__}: {error}\n"
        "What has arrived is kept; the same command goes on. Otherwise:\n"
        f"  through a mirror:   HF_ENDPOINT=https://hf-mirror.com {command}\n"
        f"  from another machine{size}: hf download {model_id} --include {patterns}"
        f" --local-dir FOLDER\n"
        '    (no *.safetensors there? then also: --include "pytorch_model*.bin*")\n'
        "  from ModelScope:    modelscope download --model ITS_ID_THERE --local_dir FOLDER\n"
        f"then, with FOLDER on this machine: {command} --from FOLDER\n"
        f"The files belong in {target}"
    )


def find_model_folder(folder: Path, model_id: str) -> Path:
    """The folder with this model's config.json at or below `folder`.

    Raises UserError when there is none or it can't be told which. ModelScope's cache writes "."
    as "___" in a model's name.
    """
    name = model_id.split("/")[1]
    names = {name, name.replace(".", "___")}
    if (folder / "config.json").is_file():
        return folder
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        if "config.json" in files and (
            is_bin_only(files) or any(f.endswith(".safetensors") for f in files)
        ):
            found.append(Path(here))
    chosen = [f for f in found if names & set(f.parts[len(folder.parts) :])] or found
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UserError(
            f"{folder}: no model in it; expected {model_id}'s config.json and *.safetensors (or, "
            "where it has none, pytorch_model*.bin)"
        )
    listed = ", ".join(str(f) for f in chosen[:5])
    raise UserError(f"{folder} holds several models: give one of them as --from: {listed}")


def folder_problems(folder: Path) -> list[str]:
    """What is missing or broken in a model folder, from names and headers alone (no torch)."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        return ["config.json is missing"]
    names = [f.name for f in folder.iterdir()]
    use_bin = is_bin_only(wanted_files(names)) and SAFETENSORS_INDEX not in names
    index_file = folder / (BIN_INDEX if use_bin else SAFETENSORS_INDEX)
    try:
        config = read_json(config_file)
        index = read_json(index_file) if index_file.is_file() else {}
        shards = set(index["weight_map"].values()) if index else set()
    except (UserError, KeyError, AttributeError) as error:
        return [f"unreadable JSON ({error})"]
    if use_bin:
        shards = shards or {"pytorch_model.bin"}
        problems = [p for name in sorted(shards) if (p := bin_problem(folder / name))]
        problems += [] if problems else total_problem(folder, index, shards)
    else:
        shards = shards or {n for n in names if n.endswith(".safetensors")} or {"model.safetensors"}
        problems = [p for name in sorted(shards) if (p := safetensors_problem(folder / name))]
    return problems + companion_problems(config if isinstance(config, dict) else {}, names)


def companion_problems(config: Mapping[str, Any], names: list[str]) -> list[str]:
    """Tokenizer and picture preprocessing, where the architecture cannot be used without.

    What generates text needs a tokenizer; a CLIP or SigLIP folder is read for its vision tower
    alone. What has a vision part needs its preprocessing; the original LLaVA layout
    (`mm_vision_tower`) leaves that in the tower's own repository.
    """
    kind = str(config.get("model_type", ""))
    heads = ("ForCausalLM", "ForConditionalGeneration")
    generates = any(str(a).endswith(heads) for a in config.get("architectures") or [])
    problems = []
    if (generates or kind in ("blip-2", "llava")) and not set(TOKENIZER_FILES) & set(names):
        problems.append("the tokenizer is missing (" + " or ".join(TOKENIZER_FILES[:2]) + ")")
    sees = kind == "blip-2" or kind.endswith("_vision_model") or "vision_config" in config
    if sees and not {"preprocessor_config.json", "processor_config.json"} & set(names):
        problems.append("preprocessor_config.json is missing")
    return problems


def bin_problem(path: Path) -> str | None:
    """None when torch's zip file is whole: its list of members stands at the very end.

    Nothing is unpickled. Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
    """
    if not path.is_file():
        return f"{path.name} is missing"
    with path.open("rb") as file:
        start = file.read(len(LEGACY_PICKLE))
    if start == LEGACY_PICKLE:
        return None  # no list of members, so a cut shows only when it is loaded
    if not start.startswith(b"PK"):
        return f"{path.name} is not a file of torch weights"
    try:
        with zipfile.ZipFile(path) as members:
            whole = any(name.endswith("data.pkl") for name in members.namelist())
    except zipfile.BadZipFile:
        return f"{path.name} is cut off ({path.stat().st_size:,} bytes)"
    return None if whole else f"{path.name} is not a file of torch weights"


def total_problem(folder: Path, index: Mapping[str, Any], shards: set[str]) -> list[str]:
    """The index says how many bytes of tensors the shards hold together."""
    wanted = (index.get("metadata") or {}).get("total_size") or 0
    have = sum((folder / name).stat().st_size for name in shards)
    if have >= wanted:
        return []
    return [f"the shards hold {have:,} bytes, {BIN_INDEX} says {wanted:,}"]


def safetensors_problem(path: Path) -> str | None:
    """None when the file is as long as its header says (8 bytes length, JSON, then the tensors).

    Format: https://github.com/huggingface/safetensors#format
    """
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= size - 8:
                raise ValueError
            header = json.loads(file.read(header_bytes))
        end = max(
            (t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{path.name} is not a safetensors file"
    if size != 8 + header_bytes + end:
        return f"{path.name} is cut off ({size:,} of {8 + header_bytes + end:,} bytes)"
    return None
