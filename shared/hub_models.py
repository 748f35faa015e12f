"""Model folders: fetched from the Hugging Face Hub, or taken from a folder fetched by hand.

A model lies whole in `data/models/<org>/<name>/` with a `manifest.json` (Hub id, resolved commit,
file sizes), written last. It is fetched into a hidden folder beside that place, where the Hub
library continues interrupted files, and gets its name when all its files are there and whole. Only
safetensors, JSON and tokenizer files are taken: no pickled weights, no remote code.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import shutil
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
        for file in wanted_files([f.name for f in source.iterdir() if f.is_file()]):
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
    return [
        name
        for name in names
        if any(fnmatch.fnmatch(name, p) for p in WANTED)
        and not any(fnmatch.fnmatch(name, p) for p in UNWANTED)
    ]


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
        if not any(name.endswith(".safetensors") for name in files):
            raise UserError(
                f"{model_id}: no safetensors weights there, and pickled ones are not loaded here"
            )
        total = sum(sizes[name] for name in files)
        print(f"{model_id} at {info.sha}: {human_size(total)} in {len(files)} files {place}")
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
        if "config.json" in files and any(f.endswith(".safetensors") for f in files):
            found.append(Path(here))
    chosen = [f for f in found if names & set(f.parts[len(folder.parts) :])] or found
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UserError(
            f"{folder}: no model in it; expected {model_id}'s config.json and *.safetensors"
        )
    listed = ", ".join(str(f) for f in chosen[:5])
    raise UserError(f"{folder} holds several models: give one of them as --from: {listed}")


def folder_problems(folder: Path) -> list[str]:
    """What is missing or broken in a model folder, from names and headers alone (no torch)."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        return ["config.json is missing"]
    try:
        config = read_json(config_file)
        index_file = folder / "model.safetensors.index.json"
        shards = set(read_json(index_file)["weight_map"].values()) if index_file.is_file() else None
    except (UserError, KeyError, AttributeError) as error:
        return [f"unreadable JSON ({error})"]
    shards = shards or {f.name for f in folder.glob("*.safetensors")} or {"model.safetensors"}
    problems = [p for name in sorted(shards) if (p := safetensors_problem(folder / name))]
    if isinstance(config, dict) and config.get("model_type") == "blip-2":
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            problems.append("the tokenizer is missing (" + " or ".join(TOKENIZER_FILES[:2]) + ")")
        if not any(
            (folder / f"{kind}_config.json").is_file() for kind in ("preprocessor", "processor")
        ):
            problems.append("preprocessor_config.json is missing")
    return problems


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
