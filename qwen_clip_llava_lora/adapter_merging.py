"""The steps of `merge_adapter.py`: an adapter folder read and checked, each weight merged as it
passes, base with adapter and merged folder compared.

A LoRA layer (arXiv 2106.09685) becomes W + s B A, computed in fp32 and stored in the base's dtype;
s is alpha / r, for rsLoRA (arXiv 2312.03732) alpha / sqrt(r). A DoRA layer (arXiv 2402.09353) is
that matrix with each row brought to the length that was learned. What `projector.safetensors` holds
takes the place of the base's parameter. All other weights are copied as they are, under the names
that they have in the base's files: the merged folder loads wherever the base does. Which name in a
file is which parameter is transformers' own mapping, so older layouts are merged too.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwen_clip_llava_lora.merge_check import pictures
from qwen_clip_llava_lora.merging import file_hash
from shared.loading import fingerprint
from shared.options import UserError, manifest_value, read_json, write_json
from shared.vision_families_adapters import PROJECTOR_FILE, adapter_manifest, check_base
from shared.weight_files import INDEX_FILES, Weight, read_file, read_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from shared.vision_language import VisionLanguage

PREFIX = "base_model.model."  # of every name in a PEFT file
SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")  # what a model folder has beside its weights
QUESTIONS = ("What is in this picture?", "Describe the picture in one sentence.")
# Largest logit difference, as a share of the largest logit: merged weights are rounded to the dtype
# in which they are stored, and the model computes in another order.
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Lora:
    """One layer's matrices: a (r, in), b (out, r), magnitude (out,) of DoRA."""

    a: Weight
    b: Weight
    scale: float
    magnitude: Weight | None = None

    def merged(self, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
        full = weight.float() + self.scale * (self.b.read().float() @ self.a.read().float())
        if self.magnitude is not None:
            length = torch.linalg.norm(full, dim=1)
            full *= (self.magnitude.read().float().flatten() / length)[:, None]
        return full.to(dtype or weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """An adapter folder: layers by module name, other trained parameters by their full name."""

    folder: Path
    manifest: dict[str, Any]
    layers: dict[str, Lora]
    replaced: dict[str, Weight]


def read_adapter(folder: Path) -> Adapter:
    """Headers alone. Raises UserError for what is no adapter folder, and for one whose change is
    more than matrices on linear layers and whole parameters."""
    manifest = adapter_manifest(folder)
    file = folder / PROJECTOR_FILE
    replaced = read_file(file) if file.is_file() else {}
    layers = {}
    if (folder / "adapter_config.json").is_file():
        layers = read_lora(folder, read_json(folder / "adapter_config.json"))
    return Adapter(folder, manifest, layers, replaced)


def read_lora(folder: Path, config: Mapping[str, Any]) -> dict[str, Lora]:
    refused = {
        "peft_type": config.get("peft_type") != "LORA",
        "modules_to_save": bool(config.get("modules_to_save")),
        "bias": config.get("bias", "none") != "none",
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "alpha_pattern": bool(config.get("alpha_pattern")),
        "trainable_token_indices": bool(config.get("trainable_token_indices")),
        "target_parameters": bool(config.get("target_parameters")),
    }
    for name, wrong in refused.items():
        if wrong:
            raise UserError(
                f"{folder}: {name} is {config.get(name)!r} in its adapter_config.json, which is "
                "not merged here (train.py writes no such adapter); peft's merge_and_unload does it"
            )
    matrices: dict[str, dict[str, Weight]] = {}
    for key, weight in read_file(folder / "adapter_model.safetensors").items():
        module, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        kind = kind.removesuffix(".weight")
        if kind not in ("A", "B", "magnitude_vector"):
            raise UserError(
                f"{folder}: {key} is no matrix of a linear layer; peft's merge_and_unload may "
                "merge it"
            )
        matrices.setdefault(module, {})[kind] = weight
    layers = {}
    for module, found in matrices.items():
        absent = {"A", "B", *(["magnitude_vector"] if config.get("use_dora") else [])} - set(found)
        if absent:
            raise UserError(f"{folder}: of layer {module} lora_{min(absent)} is missing")
        rank = found["A"].shape[0]
        root = math.sqrt(rank) if config.get("use_rslora") else rank
        scale = config["lora_alpha"] / root
        layers[module] = Lora(found["A"], found["B"], scale, found.get("magnitude_vector"))
    return layers


def check_belongs(adapter: Adapter, base: Path) -> list[str]:
    """Raises UserError for another base, or a quantised one; notes for the screen."""
    if "quantization_config" in read_json(base / "config.json"):
        raise UserError(
            f"{base}: its weights are quantised; merging would round W + BA to 4 or 8 bits. Give "
            "the model in bf16, fp16 or fp32: an adapter that was trained on it with "
            "--quantization nf4 belongs to that one too"
        )
    if not adapter.manifest:
        return [f"{adapter.folder} has no manifest.json: only shapes are checked, not the base"]
    check_base(adapter.manifest, adapter.folder, base)
    return []


def parameter_names(config: PretrainedConfig, stored: Mapping[str, Weight]) -> dict[str, str]:
    """Name in the base's files -> name of the parameter in transformers' model, where one is copied
    to the other; tensors that transformers puts together from several are left out."""
    from transformers import AutoModelForImageTextToText
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    own = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    names = {}
    for key in stored:
        name, converted = rename_source_key(
            key, renamings, converters, model.base_model_prefix, own
        )
        if converted is None and name in own:
            names[key] = name
    return names


def merged_weights(
    adapter: Adapter, base: Path, config: PretrainedConfig, dtype: torch.dtype | None
) -> dict[str, Weight]:
    """The base's weights under their names in its files, merged when read, in `dtype` if given.
    Raises UserError when a layer or a parameter of the adapter is not among them, or of another
    shape."""
    stored = read_folder(base)
    names = parameter_names(config, stored)
    keys = {name: key for key, name in names.items()}
    result = dict(stored)
    for module, lora in adapter.layers.items():
        key = keys.get(f"{module}.weight")
        if key is None:
            raise UserError(
                f"{adapter.folder}: the base has no layer {module} (an adapter of llava_repro, or "
                "on a mixture of experts?)"
            )
        shape, wanted = stored[key].shape, (lora.b.shape[0], lora.a.shape[1])
        if shape != wanted or lora.a.shape[0] != lora.b.shape[1]:
            raise UserError(f"{adapter.folder}: {module} was {wanted} in training, here {shape}")
        result[key] = Weight(shape, partial(merge_layer, stored[key], lora, dtype))
    for name, weight in adapter.replaced.items():
        key = keys.get(name)
        if key is None or stored[key].shape != weight.shape:
            raise UserError(
                f"{adapter.folder / PROJECTOR_FILE}: {name} {weight.shape} is no parameter of "
                f"{base}" + ("" if key is None else f", where it is {stored[key].shape}")
            )
        result[key] = Weight(weight.shape, partial(in_place_of, stored[key], weight, dtype))
    return result


def merge_layer(weight: Weight, lora: Lora, dtype: torch.dtype | None) -> Tensor:
    return lora.merged(weight.read(), dtype)


def in_place_of(weight: Weight, trained: Weight, dtype: torch.dtype | None) -> Tensor:
    return trained.read().to(dtype or weight.read().dtype)


def copy_settings(folder: Path, base: Path, adapter: Adapter, dtype: torch.dtype | None) -> None:
    """Configuration, tokenizer, processor of the base; those beside the adapter, if it has some,
    and how its pictures were made square win."""
    sources = [base]
    if (adapter.folder / "processor_config.json").is_file():
        sources.append(adapter.folder)
    for source in sources:
        for file in sorted(path for pattern in SETTINGS for path in source.glob(pattern)):
            if file.name not in (*INDEX_FILES, "manifest.json", "adapter_config.json"):
                shutil.copyfile(file, folder / file.name)
    config = read_json(base / "config.json")
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
        config.pop("torch_dtype", None)
    aspect_ratio = adapter.manifest.get("image_aspect_ratio")
    if aspect_ratio is not None and config.get("model_type") == "llava":
        config["image_aspect_ratio"] = aspect_ratio
    write_json(folder / "config.json", config)


# The comparison


def first_logits(asker: VisionLanguage) -> Tensor:
    """Logits (B, V) of the first token of an answer: each question about each of two pictures, and
    one without a picture."""
    with torch.no_grad():
        features = asker.encode_images(pictures(max(asker.family.side, 64)))
        index: list[int | None] = [0, 1] * len(QUESTIONS)
        prompts = [question for question in QUESTIONS for _ in range(2)]
        rows = [asker.start(features, [i], [p]).logits for i, p in zip(index, prompts, strict=True)]
        rows.append(asker.start(features, [None], [QUESTIONS[0]]).logits)
    return torch.cat(rows).float().cpu()


@dataclass(frozen=True)
class Comparison:
    """Largest difference of the logits, in logits and as a share of the largest one; whether each
    next token is the same; what the share may be."""

    difference: float
    share: float
    same_tokens: bool
    allowed: float


def compare(
    base: Path, adapter: Path, merged: Path, stored: torch.dtype, device: str, allowed: float | None
) -> Comparison:
    """Base with adapter against the merged folder, one after the other. Raises UserError."""
    from shared.vision_language import load_vision_language

    asker = load_vision_language(str(base), adapter=str(adapter), device=device)
    computed = asker.family.model.dtype
    before = first_logits(asker)
    del asker
    gc.collect()
    asker = load_vision_language(str(merged), device=device)
    after = first_logits(asker)
    difference = float((before - after).abs().max())
    share = difference / float(before.abs().max())
    if allowed is None:
        allowed = max(LARGEST_DIFFERENCE[stored], LARGEST_DIFFERENCE[computed])
    if not share <= allowed:
        raise UserError(
            f"base with adapter and merged model differ by {difference:.3g} in a logit, "
            f"{share:.2g} of the largest (allowed: {allowed:g}); nothing was written. --dtype "
            "float32 stores the merged weights without rounding, --max_difference sets the bound"
        )
    same = torch.equal(before.argmax(dim=-1), after.argmax(dim=-1))
    return Comparison(difference, share, same, allowed)


def manifest(adapter: Adapter, base: Path, base_name: str, adapter_name: str) -> dict[str, Any]:
    """Where the merged folder comes from, and what was learned."""
    files = ("adapter_model.safetensors", PROJECTOR_FILE)
    kept = ("family", "preset", "train_type", "components", "data", "seed", "image_aspect_ratio",
            "min_pixels", "max_pixels")  # fmt: skip
    return {
        "synthetic": bool(manifest_value(base, "synthetic") or adapter.manifest.get("synthetic")),
        "merged": True,
        "base_model": base_name,
        "base_fingerprint": fingerprint(base),
        "parts": {"model": base_name, "adapter": adapter_name},
        "adapter_hashes": {
            name: file_hash(adapter.folder / name)
            for name in files
            if (adapter.folder / name).is_file()
        },
        **{name: adapter.manifest[name] for name in kept if name in adapter.manifest},
    }
