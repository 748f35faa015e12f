"""What a training leaves behind, and how it is taken up again.

Stage 1: `projector/` (projector.safetensors, config.json of the LLaVA it belongs to). LoRA:
`adapter/` (a PEFT folder, with the projector beside it). Everything else: `model/`, a whole LLaVA
in the Hub layout with tokenizer and image processor. Each folder has a manifest of where it comes
from and appears whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llava_repro.settings import LlavaParts, TrainOptions
from llava_repro.templates import TEMPLATES
from shared.conversation_data import Rows, rows_hash
from shared.conversations import chat_template
from shared.llava_parts import write_whole
from shared.loading import fingerprint, load_adapter, model_folder
from shared.options import UserError, environment, manifest_value, portable_path, write_json

if TYPE_CHECKING:
    from transformers import LlavaConfig, TrainingArguments

    from llava_repro.assembling import Assembled
    from llava_repro.model import Llava

PROJECTOR_FILE = "projector.safetensors"
PROJECTOR_FOLDER, ADAPTER_FOLDER, MODEL_FOLDER = "projector", "adapter", "model"


def manifest(
    options: TrainOptions,
    training: TrainingArguments,
    learned: Rows,
    held_out: Rows,
    config: LlavaConfig,
) -> dict[str, Any]:
    """What a reader needs to know of the weights: parts, stage, data, seed; `config` of the model
    that trained, which for --model is not what the flags' defaults say."""
    parts = {
        name: portable_path(value)
        for name in ("model", "vision_tower", "language_model", "projector")
        if (value := getattr(options, name)) is not None
    }
    base = options.model or options.language_model or ""
    return {
        "parts": parts,
        "base_model": portable_path(base),
        "base_fingerprint": fingerprint(model_folder(base)),
        "part_fingerprints": part_fingerprints(options),
        "projector_type": config.projector_type,
        "vision_feature_layer": config.vision_feature_layer,
        "image_aspect_ratio": options.image_aspect_ratio,
        "stage": options.stage,
        "train_type": options.train_type,
        "template": options.template,
        "data": {
            "source": portable_path(options.data or ""),
            "rows": len(learned),
            "rows_hash": rows_hash(learned),
            "held_out_rows": len(held_out),
        },
        "seed": training.seed,
        "synthetic": any(
            manifest_value(folder, "synthetic")
            for folder in (*parts.values(), Path(options.data or "").parent)
        ),
        "environment": environment(),
    }


def part_fingerprints(parts: LlavaParts) -> dict[str, str]:
    """Fingerprints of the folders that a model is made from, by the option that names them."""
    return {
        name: fingerprint(model_folder(value))
        for name in ("model", "vision_tower", "language_model")
        if (value := getattr(parts, name)) is not None
    }


def projector_state(model: Llava) -> dict[str, Tensor]:
    """The projector's tensors under the names of the original `mm_projector.bin`."""
    return {
        f"model.mm_projector.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in model.projector.state_dict().items()
    }


def save_projector(folder: Path, model: Llava, content: dict[str, Any]) -> None:
    """`projector.safetensors`, the LLaVA's config.json, manifest."""

    def write(staging: Path) -> None:
        save_file(projector_state(model), staging / PROJECTOR_FILE)
        model.config.save_pretrained(staging)
        write_json(staging / "manifest.json", content)

    write_whole(folder, write)


def save_lora(folder: Path, model: Llava, view: Any, content: dict[str, Any]) -> None:
    """The PEFT adapter with the projector that was trained with it."""

    def write(staging: Path) -> None:
        view.save_pretrained(staging, save_embedding_layers=False)
        save_file(projector_state(model), staging / PROJECTOR_FILE)
        write_json(staging / "manifest.json", content)

    write_whole(folder, write)


def save_whole(
    folder: Path, assembled: Assembled, content: dict[str, Any], dtype: torch.dtype
) -> None:
    """The model with its tokenizer and image processor in the Hub layout, in the dtype of training.

    The tokenizer carries the template that was trained with, so that nobody has to name it again;
    but not `plain`, which leaves the question out, if the language model brings a template of its
    own.
    """
    from shared.llava_parts import save_processor

    model, tokenizer = assembled.model, assembled.tokenizer
    named = TEMPLATES[content["template"]] if content["template"] else None
    if named is not None and not (named.images_only and tokenizer.chat_template):
        tokenizer.chat_template = chat_template(named)
    model.config.image_aspect_ratio = content["image_aspect_ratio"]  # inference pads as training

    def write(staging: Path) -> None:
        model.save_pretrained(staging, dtype)
        save_processor(staging, model.config, tokenizer, assembled.image_processor)
        write_json(staging / "manifest.json", content)

    write_whole(folder, write)


def save_result(
    folder: Path,
    options: TrainOptions,
    assembled: Assembled,
    adapter: Any,
    content: dict[str, Any],
    dtype: torch.dtype,
) -> list[Path]:
    """The folders that this kind of training leaves in its run folder, written.

    `adapter` is peft's view when it was LoRA; `dtype` that of a whole model's file.
    """
    model, written = assembled.model, []
    if options.stage == "pretrain":
        save_projector(folder / PROJECTOR_FOLDER, model, content)
        written.append(folder / PROJECTOR_FOLDER)
    if adapter is not None:
        save_lora(folder / ADAPTER_FOLDER, model, adapter, content)
        written.append(folder / ADAPTER_FOLDER)
        if options.save_model:
            adapter.merge_and_unload()  # in place: `model` loses its LoRA layers
    if options.save_model or options.train_type in ("freeze_vision", "full"):
        save_whole(folder / MODEL_FOLDER, assembled, content, dtype)
        written.append(folder / MODEL_FOLDER)
    return written


def find_projector(given: str) -> Path:
    """The file behind --projector: itself, or that of a stage-1 run folder."""
    path = Path(given)
    if path.is_file():
        return path
    for candidate in (path / PROJECTOR_FOLDER / PROJECTOR_FILE, path / PROJECTOR_FILE):
        if candidate.is_file():
            return candidate
    if (path / "mm_projector.bin").is_file():
        return path / "mm_projector.bin"
    raise UserError(
        f"--projector {given}: no projector there; train one with --stage pretrain and give its "
        "run folder, or a projector.safetensors or mm_projector.bin"
    )


def read_projector(projector: nn.Module, given: str) -> None:
    """Fill the projector from --projector. Raises UserError when it was made for other widths."""
    from llava_repro.layouts import ours
    from shared.weight_files import read_file

    path = find_projector(given)
    weights = ours(read_file(path), path.parent)
    found = {
        name.removeprefix("projector."): weight.read()
        for name, weight in weights.items()
        if name.startswith("projector.")
    }
    own = projector.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes.keys() != theirs.keys():
        raise UserError(
            f"{path}: a projector with {sorted(theirs)}, this model's has {sorted(shapes)}: is "
            "--projector_type the one it was trained with?"
        )
    for name, shape in shapes.items():
        if theirs[name] != shape:
            raise UserError(
                f"{path}: {name} is {theirs[name]}, this vision tower and language model need "
                f"{shape}: it was trained for others"
            )
    projector.load_state_dict(found)


def check_projector(given: str, options: LlavaParts, config: LlavaConfig) -> list[str]:
    """What the manifest beside --projector says against this model: notes, where it may still do.

    Shapes alone don't tell: other hidden states of the tower, or another model of the same widths,
    mean something else to it. Raises UserError for another layer; another tower or language model
    is said, as its folder may hold the same weights in another file.
    """
    path = find_projector(given)
    layer = manifest_value(path.parent, "vision_feature_layer")
    if layer is not None and layer != config.vision_feature_layer:
        raise UserError(
            f"{path}: trained on hidden states {layer} of the vision tower, this model reads "
            f"{config.vision_feature_layer}: give --vision_feature_layer {layer}, or the projector "
            "of a stage 1 with this one"
        )
    theirs = manifest_value(path.parent, "part_fingerprints") or {}
    ours = part_fingerprints(options)
    return [
        f"{path} was trained with another {name.replace('_', ' ')} "
        f"({(manifest_value(path.parent, 'parts') or {}).get(name)}) than "
        f"{portable_path(getattr(options, name))}"
        for name in ours
        if theirs.get(name, ours[name]) != ours[name]
    ]


def load_lora(model: Llava, adapter: Path, base_folder: Path) -> Llava:
    """Put a trained adapter and its projector on the LLaVA that it was trained on.

    `base_folder` is the language model's, or that of the whole LLaVA if one was trained. Raises
    UserError when they do not belong together.
    """
    load_adapter(model.language_model, adapter, base_folder)
    read_projector(model.projector, str(adapter / PROJECTOR_FILE))
    return model
