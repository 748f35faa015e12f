"""What a training leaves behind: `model/`, a whole folder, or `adapter/` with LoRA's matrices.

`model/` is in the Hub layout with tokenizer and processor, weights in float32, and is loaded by
`load_blip`, `load_clip` or transformers' from_pretrained; `adapter/` is peft's own. Each has a
manifest.json of where it comes from (base, data and splits, seed, whether synthetic) and appears
whole or not at all.

Used by train.py. Reads the base folder; writes the run folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.train_settings import TrainOptions
from shared.llava_parts import write_whole
from shared.loading import fingerprint
from shared.options import environment, manifest_value, portable_path, read_json, write_json

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from lavis_apps.training_data import TrainingData
    from lavis_apps.training_model import Loaded

ADAPTER_FOLDER, MODEL_FOLDER = "adapter", "model"
# Of a base folder, what makes its copy with other weights whole: tokenizer, processors, templates.
COPIED = ("*.json", "*.jinja", "*.txt", "*.model")
NOT_COPIED = ("config.json", "manifest.json")


def result_folder(options: TrainOptions) -> str:
    return ADAPTER_FOLDER if options.tuning == "lora" else MODEL_FOLDER


def manifest(
    options: TrainOptions, training: TrainingArguments, data: TrainingData, loaded: Loaded
) -> dict[str, Any]:
    """What loading checks and a reader needs: base, what trained, data, seed."""
    roots = [Path(root) for root in options.data_root or ()]
    roots_named = [portable_path(root) for root in roots]
    return {
        "base_model": portable_path(options.model or ""),
        "base_revision": options.revision,
        "base_fingerprint": fingerprint(loaded.base_folder),
        "architecture": type(loaded.model).__name__,
        "task": options.task,
        "tuning": options.tuning,
        "lora": {
            "rank": options.lora_rank,
            "alpha": options.lora_alpha,
            "dropout": options.lora_dropout,
            "layers": options.lora_layers,
        }
        if loaded.view is not None
        else None,
        "prompt": options.prompt if options.task == "caption" else None,
        "data": [
            {
                "source": portable_path(root),
                "split": split,
                "data_hash": manifest_value(root, "data_hash"),
            }
            for root in roots
            for split in options.train_splits
        ],
        "samples": {name: len(part) for name, part in zip(roots_named, data.learned, strict=True)},
        "classes": list(data.classes) or None,
        "seed": training.seed,
        "synthetic": loaded.asked.synthetic
        or any(bool(manifest_value(root, "synthetic")) for root in roots),
        "environment": environment(),
    }


def save_result(folder: Path, loaded: Loaded, content: dict[str, Any]) -> Path:
    """`folder/model` or `folder/adapter` written, with `content` as its manifest; its path."""
    named = folder / (MODEL_FOLDER if loaded.view is None else ADAPTER_FOLDER)

    def write(staging: Path) -> None:
        if loaded.view is not None:
            loaded.view.save_pretrained(staging, save_embedding_layers=False)
            config = read_json(staging / "adapter_config.json")  # peft writes this machine's path
            base = {"base_model_name_or_path": content["base_model"]}
            write_json(staging / "adapter_config.json", config | base)
            (staging / "README.md").unlink(missing_ok=True)  # an empty form; the manifest says all
        else:
            save_model(staging, loaded)
        write_json(staging / "manifest.json", content)

    write_whole(named, write)
    return named


def save_model(staging: Path, loaded: Loaded) -> None:
    """The whole model in float32, also what was frozen in less, with the base folder's files."""
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in loaded.model.state_dict().items()
    }
    loaded.model.save_pretrained(staging, state_dict=state)
    config = read_json(staging / "config.json")
    write_json(staging / "config.json", config | {"dtype": "float32"})
    for pattern in COPIED:
        for file in loaded.base_folder.glob(pattern):
            known = file.name in NOT_COPIED or file.name.endswith(".index.json")
            if not known and not (staging / file.name).exists():
                shutil.copyfile(file, staging / file.name)
