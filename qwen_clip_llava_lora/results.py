"""What a training leaves behind, and how a projector is taken up again.

`adapter/`: LoRA as peft writes it (adapter_config.json, adapter_model.safetensors) and, where
anything else changed, `projector.safetensors`: every parameter outside LoRA that is not as in the
base model's folder, under its full name there, in fp32. Training the projector alone leaves the
same folder without peft's files. --train_type full leaves `model/`, a whole folder with tokenizer
and processor. Each has a manifest.json of where it comes from and appears whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qwen_clip_llava_lora.components import PROJECTOR, component_of
from qwen_clip_llava_lora.train_settings import TrainOptions
from shared.conversation_data import rows_hash
from shared.llava_parts import write_whole
from shared.loading import fingerprint
from shared.options import (
    UserError,
    environment,
    manifest_value,
    portable_path,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from qwen_clip_llava_lora.training_data import TrainingData
    from qwen_clip_llava_lora.training_model import Loaded
    from shared.vision_families import Family

PROJECTOR_FILE = "projector.safetensors"
ADAPTER_FOLDER, LAST_FOLDER, MODEL_FOLDER = "adapter", "adapter_last", "model"
# Of a base folder, what makes its copy with other weights whole: tokenizer, processors, template.
COPIED = ("*.json", "*.jinja", "*.txt", "*.model")
NOT_COPIED = ("config.json", "manifest.json")


def manifest(
    options: TrainOptions,
    training: TrainingArguments,
    data: TrainingData,
    loaded: Loaded,
    components: Iterable[str],
) -> dict[str, Any]:
    """What loading checks and a reader needs: base, what trained, data, seed."""
    from qwen_clip_llava_lora.training_data import data_is_synthetic

    family = loaded.family
    return {
        "base_model": portable_path(options.model or ""),
        "base_revision": options.revision,
        "base_fingerprint": fingerprint(family.folder),
        "family": family.config.model_type,
        "preset": options.preset,
        "train_type": options.train_type,
        "parts": {"model": portable_path(options.model or "")},
        "components": list(components),
        "projector": None if options.projector is None else portable_path(options.projector),
        "lora": {
            "rank": options.lora_rank,
            "alpha": options.lora_alpha,
            "dropout": options.lora_dropout,
            "layers": options.lora_layers,
        }
        if loaded.view is not None
        else None,
        "contrastive_weight": options.contrastive_weight,
        "image_aspect_ratio": family.trained_on,
        "min_pixels": options.min_pixels,
        "max_pixels": options.max_pixels,
        "data": {
            "source": portable_path(data.parts[0].source),
            "sources": [
                {"source": portable_path(part.source), "format": part.format, "kind": part.kind}
                for part in data.parts
            ],
            "rows": len(data.learned),
            "rows_hash": rows_hash(data.learned),
            "held_out_rows": len(data.held_out),
        },
        "seed": training.seed,
        "synthetic": bool(manifest_value(family.folder, "synthetic")) or data_is_synthetic(data),
        "environment": environment(),
    }


def save_result(
    folder: Path, loaded: Loaded, content: dict[str, Any], dtype: torch.dtype, name: str
) -> Path:
    """`folder/name` written: an adapter, or for --train_type full the whole model in `dtype`."""
    if content["train_type"] == "full":
        save_model(folder / name, loaded, content, dtype)
    else:
        save_adapter(folder / name, loaded, content)
    return folder / name


def save_adapter(folder: Path, loaded: Loaded, content: dict[str, Any]) -> None:
    """LoRA, the other changed parameters, manifest."""

    def write(staging: Path) -> None:
        if loaded.view is not None:
            loaded.view.save_pretrained(staging, save_embedding_layers=False)
            config = read_json(staging / "adapter_config.json")  # peft writes this machine's path
            base = {"base_model_name_or_path": content["base_model"]}
            write_json(staging / "adapter_config.json", config | base)
            (staging / "README.md").unlink(missing_ok=True)  # an empty form; the manifest says all
        if loaded.changed:
            save_file(changed_state(loaded), staging / PROJECTOR_FILE)
        write_json(staging / "manifest.json", content)

    write_whole(folder, write)


def changed_state(loaded: Loaded) -> dict[str, Tensor]:
    named = dict(loaded.model.named_parameters())
    return {
        name: named[name].detach().float().cpu().contiguous() for name in sorted(loaded.changed)
    }


def save_model(folder: Path, loaded: Loaded, content: dict[str, Any], dtype: torch.dtype) -> None:
    """The whole model as transformers writes it, in `dtype`, with the base folder's tokenizer and
    processor files; the model itself keeps its fp32 weights."""

    def write(staging: Path) -> None:
        loaded.model.save_pretrained(staging, state_dict=state_in(loaded.model, dtype))
        config = read_json(staging / "config.json")
        if content["image_aspect_ratio"] is not None:  # inference pads as training did
            config["image_aspect_ratio"] = content["image_aspect_ratio"]
        for part in (config, config["text_config"], config["vision_config"]):
            part["dtype"] = str(dtype).removeprefix("torch.")
        write_json(staging / "config.json", config)
        for pattern in COPIED:
            for file in loaded.family.folder.glob(pattern):
                known = file.name in NOT_COPIED or file.name.endswith(".index.json")
                if not known and not (staging / file.name).exists():
                    shutil.copyfile(file, staging / file.name)
        write_json(staging / "manifest.json", content)

    write_whole(folder, write)


def state_in(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state in `dtype`; what is tied stays one tensor, or it would be written twice."""
    made: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in made or not tensor.numel():
            made[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        state[name] = made[key]
    return state


def find_projector(given: str) -> Path:
    """The file behind --projector: itself, or that of a run folder or its adapter folder."""
    path = Path(given)
    if path.is_file():
        return path
    for candidate in (path / ADAPTER_FOLDER / PROJECTOR_FILE, path / PROJECTOR_FILE):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"--projector {given}: no {PROJECTOR_FILE} there; train one with --preset align and give "
        "its run folder"
    )


@torch.no_grad()
def read_projector(model: nn.Module, given: str, family: Family) -> frozenset[str]:
    """Copy the projector of another training into the model; returns the parameters' names.

    Raises UserError when it is not this model's whole projector. Shapes alone don't tell whether it
    belongs: a training on another base is said.
    """
    path = find_projector(given)
    kind = family.config.model_type
    own = {n: p for n, p in model.named_parameters() if component_of(kind, n) == PROJECTOR}
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            wanted = {name: tuple(p.shape) for name, p in own.items()}
            if shapes.keys() != wanted.keys():
                odd = sorted(shapes.keys() ^ wanted.keys())
                raise UserError(
                    f"{path}: not the projector of this model ({odd[0]} is in one of them alone)"
                )
            for name, shape in wanted.items():
                if shapes[name] != shape:
                    raise UserError(
                        f"{path}: {name} is {shapes[name]}, this model's is {shape}: it was "
                        "trained for another vision tower or language model"
                    )
                own[name].copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    trained_on = manifest_value(path.parent, "base_fingerprint")
    if trained_on not in (None, fingerprint(family.folder)):
        print(
            f"note: {path} was trained on {manifest_value(path.parent, 'base_model')}, not on "
            f"{family.folder}: it fits in shape; whether it does in meaning, only you know"
        )
    return frozenset(own)
