"""The checkpoint layouts of LLaVA in circulation, read into one: our names, read when asked for.

| layout      | what is in the folder                                                             |
|-------------|-----------------------------------------------------------------------------------|
| Hub         | transformers' LLaVA as 4.3x, 4.52 or 5 wrote it, one config with both parts' own  |
| full        | the original repository's: `model.layers.*`, `model.mm_projector.*`, the tower     |
|             | inside as `model.vision_tower.vision_tower.*` or only named in config.json         |
| LoRA        | adapter_config.json, adapter_model.*, non_lora_trainables.bin; its base is given   |
| stage 1     | mm_projector.bin alone; its language model is given                                |

The files and the config decide, never a folder's name. Weights are found by their keys (`our_name`)
and must be exactly those of the model: what is missing or too much is listed in the error, except
for `HARMLESS` buffers that older versions stored. `.bin` files are read with `weights_only=True`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    LlavaConfig,
    PretrainedConfig,
)

from llava_repro.hub_layout import from_hub_projector
from llava_repro.model import Llava, make_projector, n_image_tokens
from llava_repro.settings import ARCHITECTURES
from shared.llava_parts import known_architecture
from shared.loading import (
    keep_trainable_after_inference,
    model_folder,
    pick_device,
    pick_dtype,
    quantization_config,
    quiet_libraries,
    use_one_thread_if_small,
)
from shared.options import MissingError, UserError, read_json
from shared.weight_files import Weight, read_file, read_folder

# First match wins; a key that matches none belongs to no LLaVA. In memory a model of ours has the
# parts vision_tower, projector and language_model, each with the names of transformers 5.
RENAMES = (
    (r"model\.vision_tower\.vision_tower\.(vision_model\.)?", "vision_tower."),  # original
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision_tower."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
    (r"model\.mm_projector\.", "projector."),  # original
    (r"model\.language_model\.", "language_model.model."),  # transformers from 4.52
    (r"language_model\.", "language_model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.", "language_model.model."),  # original, or a language model alone
)
# Buffers that are computed, not learned; older versions stored them.
HARMLESS = re.compile(r"(position_ids|rotary_emb\.inv_freq|attn\.(masked_)?bias)$")
# config.json of the original repository: its model_type -> the language model's
TEXT_TYPES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
}
NOT_OF_THE_TEXT = re.compile(
    r"^(mm_|use_mm_|tune_mm_|freeze_mm_|unfreeze_mm_|image_|tokenizer_|vision_|architectures$|"
    r"model_type$|auto_map$|transformers_version$|_name_or_path$|dtype$|torch_dtype$)"
)
STRATEGIES = {"patch": "default", "cls_patch": "full"}
LISTED = 8  # keys shown of each kind in an error


@dataclass(frozen=True)
class Checkpoint:
    """A LLaVA on disk. `weights` have our names and are complete; see `check_complete`."""

    folder: Path
    layout: str  # Hub, full, LoRA, stage 1
    config: LlavaConfig  # its projector_type names the projector
    weights: dict[str, Weight]
    text_folder: Path  # has the tokenizer
    vision_folder: Path | None  # has the image processor, when that is not in `folder`


def open_checkpoint(
    folder: Path | str, base: Path | str | None = None, vision_tower: Path | str | None = None
) -> Checkpoint:
    """The checkpoint in `folder`, whatever its layout. Raises UserError with what is wrong."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json in it, so it is not a LLaVA folder")
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise UserError(f"{folder / 'config.json'}: not a JSON object")
    if is_hub(raw):
        checkpoint = open_hub(folder, raw)
    elif "mm_vision_tower" in raw or "mm_hidden_size" in raw:
        checkpoint = open_original(
            folder, raw, base and Path(base), vision_tower and str(vision_tower)
        )
    else:
        raise UserError(
            f"{folder}: config.json of a {raw.get('model_type')}, neither a LLaVA of transformers "
            "(vision_config and text_config) nor of the original repository (mm_vision_tower)"
        )
    check_complete(checkpoint)
    return checkpoint


def is_hub(raw: Mapping[str, Any]) -> bool:
    return "vision_config" in raw and "text_config" in raw


def hub_config_of(folder: Path) -> LlavaConfig:
    """Raises UserError for a config.json that transformers cannot use."""
    try:
        config = LlavaConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(f"{folder}: its config.json cannot be used ({error})") from error
    config.projector_type = getattr(config, "projector_type", "mlp2x_gelu")
    return config


def open_hub(folder: Path, raw: Mapping[str, Any]) -> Checkpoint:
    if raw.get("model_type") != "llava":
        raise UserError(f"{folder}: a {raw.get('model_type')} model; only LLaVA v1 and v1.5 here")
    config = hub_config_of(folder)
    weights = ours(read_folder(folder), folder)
    return Checkpoint(folder, "Hub", config, from_hub_projector(config, weights), folder, None)


def open_original(
    folder: Path, raw: Mapping[str, Any], base: Path | None, vision_tower: str | None
) -> Checkpoint:
    """Full, LoRA or stage-1 folder of the original repository (facts from its builder.py)."""
    if "anyres" in str(raw.get("image_aspect_ratio")) or "unpad" in str(
        raw.get("mm_patch_merge_type")
    ):
        raise UserError(
            f"{folder}: a LLaVA v1.6 checkpoint (anyres); transformers' LLaVA-NeXT is its model"
        )
    is_lora = (folder / "adapter_config.json").is_file()
    stored = {} if is_lora else read_folder(folder, required=False)
    is_stage_1 = not is_lora and not stored and (folder / "mm_projector.bin").is_file()
    if not (is_lora or is_stage_1 or stored):
        raise UserError(
            f"{folder}: no model weights, no adapter_config.json and no mm_projector.bin in it"
        )
    text_folder = folder
    if is_lora or is_stage_1:
        if base is None:
            named = read_json(folder / "adapter_config.json") if is_lora else {}
            hint = named.get("base_model_name_or_path") or raw.get("_name_or_path")
            raise UserError(
                f"{folder}: {'a LoRA' if is_lora else 'a stage-1 projector'} without its language "
                f"model: give its folder with --base (config says {hint})"
            )
        text_folder = base
        stored = read_folder(base)
        added = "non_lora_trainables.bin" if is_lora else "mm_projector.bin"
        if not (folder / added).is_file():
            raise UserError(f"{folder}: no {added} in it: the trained projector is missing")
    weights = ours(stored, text_folder)
    if is_lora or is_stage_1:
        weights = {n: w for n, w in weights.items() if not n.startswith("projector.")}
        weights |= ours(unwrapped(read_file(folder / added)), folder)
    if is_lora:
        weights |= merged_lora(folder, weights)
    vision, vision_folder = vision_part_of(raw, text_folder, vision_tower)
    if not any(name.startswith("vision_tower.") for name in weights):
        if vision_folder is None:
            raise MissingError(
                f"{folder}: the vision tower {raw.get('mm_vision_tower')} is not inside and not on "
                "this machine: give its folder with --vision_tower, or\n"
                f"  python -m shared.download {raw.get('mm_vision_tower')}"
            )
        weights |= tower_weights(vision_folder)
    config = original_config(raw, text_part_of(raw, text_folder), vision)
    config.projector_type = projector_kind(folder, raw, weights)
    if config.projector_type in ("linear", "identity"):
        config.projector_hidden_act = "linear"
    layout = "LoRA" if is_lora else "stage 1" if is_stage_1 else "full"
    return Checkpoint(folder, layout, config, weights, text_folder, vision_folder)


def original_config(
    raw: Mapping[str, Any], text: PretrainedConfig, vision: PretrainedConfig
) -> LlavaConfig:
    """The Hub's configuration. `<image>` had no id there: it gets the one after the vocabulary."""
    selected = raw.get("mm_vision_select_feature", "patch")
    if selected not in STRATEGIES:
        raise UserError(f"config.json: mm_vision_select_feature {selected}, not patch or cls_patch")
    strategy = STRATEGIES[selected] if vision.model_type != "siglip_vision_model" else "full"
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size,
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    config.image_seq_length = n_image_tokens(config)
    for key in ("image_aspect_ratio", "mm_use_im_start_end"):
        if raw.get(key):
            setattr(config, key, raw[key])
    return config


def text_part_of(raw: Mapping[str, Any], text_folder: Path) -> PretrainedConfig:
    """The language model's configuration, from the folder that holds its weights."""
    own = read_json(text_folder / "config.json")
    if is_hub(own):
        return hub_config_of(text_folder).text_config
    kind = TEXT_TYPES.get(own.get("model_type"), own.get("model_type"))
    fields = {key: value for key, value in own.items() if not NOT_OF_THE_TEXT.match(key)}
    try:
        return AutoConfig.for_model(kind, **fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"{text_folder}: its config.json cannot be used as a {kind} language model ({error})"
        ) from error


def vision_part_of(
    raw: Mapping[str, Any], text_folder: Path, vision_tower: str | None
) -> tuple[PretrainedConfig, Path | None]:
    """The tower's configuration and its folder, or None where only its published numbers are."""
    named = vision_tower or raw.get("mm_vision_tower") or raw.get("vision_tower")
    base = read_json(text_folder / "config.json")
    if vision_tower is None and is_hub(base):
        return hub_config_of(text_folder).vision_config, None
    try:
        folder = model_folder(str(named))
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except MissingError:
        numbers = None if vision_tower else known_architecture(str(named), ARCHITECTURES)
        if numbers is None:
            raise MissingError(
                f"config.json names the vision tower {named}, which is not on this machine: give "
                "its folder with --vision_tower"
            ) from None
        folder, config = None, AutoConfig.for_model(**numbers)
    return getattr(config, "vision_config", config), folder


def tower_weights(folder: Path) -> dict[str, Weight]:
    """The vision part of a CLIP-like folder, whole model or tower alone."""
    stored = read_folder(folder)
    part = {key: weight for key, weight in stored.items() if key.startswith("vision_model.")}
    return ours({f"vision_tower.{key}": weight for key, weight in (part or stored).items()}, folder)


def projector_kind(folder: Path, raw: Mapping[str, Any], weights: Iterable[str]) -> str:
    """The projector by its weights; config.json must say the same. v1's config says nothing."""
    names = {name for name in weights if name.startswith("projector.")}
    if not names:
        found = "identity"
    elif "projector.weight" in names:
        found = "linear"
    else:
        found = f"mlp{sum(name.endswith('.weight') for name in names)}x_gelu"
    said = raw.get("mm_projector_type", "linear")
    if said not in (found, None):
        raise UserError(f"{folder}: config.json says projector {said}, the weights are of {found}")
    return found


# Names


def our_name(key: str) -> str | None:
    """A key of any layout -> our name; None for a harmless buffer and for what is no LLaVA's."""
    if HARMLESS.search(key):
        return None
    for pattern, start in RENAMES:
        found = re.match(pattern, key)
        if found:
            return start + key[found.end() :]
    return key


def ours(stored: Mapping[str, Weight], folder: Path) -> dict[str, Weight]:
    """`stored` under our names. Raises UserError when two keys become one."""
    renamed: dict[str, Weight] = {}
    for key, weight in stored.items():
        name = our_name(key)
        if name in renamed:
            raise UserError(f"{folder}: two weights for {name}, one of them {key}")
        if name is not None:
            renamed[name] = weight
    return renamed


def unwrapped(stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """Without the prefix that peft puts before every name."""
    return {key.removeprefix("base_model.model."): weight for key, weight in stored.items()}


def check_complete(checkpoint: Checkpoint) -> None:
    """Exactly the model's weights in their shapes, by a model without storage. Raises UserError."""
    expected = {
        name: tuple(weight.shape) for name, weight in empty_llava(checkpoint.config).items()
    }
    if checkpoint.config.tie_word_embeddings:  # the head is the embedding, stored or not
        checkpoint.weights.pop("language_model.lm_head.weight", None)
        expected.pop("language_model.lm_head.weight", None)
    missing = sorted(expected.keys() - checkpoint.weights.keys())
    unexpected = sorted(checkpoint.weights.keys() - expected.keys())
    odd = [
        f"{name} {list(checkpoint.weights[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in checkpoint.weights and checkpoint.weights[name].shape != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", odd))
    problems = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names]
    if problems:
        raise UserError(
            f"{checkpoint.folder} ({checkpoint.layout} layout): its weights are not those of its "
            "config.json\n  " + "\n  ".join(problems)
        )


def listed(names: list[str]) -> str:
    more = f", ... ({len(names) - LISTED} more)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def empty_llava(config: LlavaConfig) -> dict[str, Tensor]:
    """Names and shapes of the whole model, in no memory."""
    with torch.device("meta"):
        parts = {
            "vision_tower": AutoModel.from_config(config.vision_config),
            "projector": make_projector(config.projector_type, config),
            "language_model": AutoModelForCausalLM.from_config(config.text_config),
        }
    return {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def merged_lora(folder: Path, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The adapted matrices W + (alpha / r) B A, each computed when it is read.

    Raises UserError for an adapter that is more than plain LoRA, or for another base.
    """
    settings = read_json(folder / "adapter_config.json")
    special = [
        key
        for key in (
            "use_dora",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
            "fan_in_fan_out",
        )
        if settings.get(key)
    ]
    if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none" or special:
        raise UserError(
            f"{folder}: only plain LoRA can be merged, this adapter has "
            f"{', '.join(special) or settings.get('peft_type') + ' or trained biases'}"
        )
    files = [folder / f"adapter_model{suffix}" for suffix in (".safetensors", ".bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{folder}: no adapter_model.safetensors or adapter_model.bin in it")
    stored = {key.replace(".default.", "."): w for key, w in unwrapped(read_file(file)).items()}
    rank = settings["r"]
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    merged = {}
    for key, down in stored.items():
        if not key.endswith(".lora_A.weight"):
            continue
        layer = key.removesuffix(".lora_A.weight")
        name = our_name(f"{layer}.weight")
        up = stored.get(f"{layer}.lora_B.weight")
        if up is None or name not in weights:
            raise UserError(f"{file}: the base has no {name}, or the adapter only half of it")
        merged[name] = Weight(
            weights[name].shape, partial(add_lora, weights[name], down, up, scale)
        )
    leftover = [key for key in stored if ".lora_A." not in key and ".lora_B." not in key]
    if leftover or not merged:
        raise UserError(f"{file}: not LoRA matrices: {listed(leftover) or 'nothing in it'}")
    return merged


def add_lora(weight: Weight, down: Weight, up: Weight, scale: float) -> Tensor:
    """(out, in) + scale * (out, r) @ (r, in), summed in fp32, in the base's dtype."""
    base = weight.read()
    return (base.float() + scale * (up.read().float() @ down.read().float())).to(base.dtype)


# Whole models


def load_llava(
    folder: Path | str,
    *,
    dtype: str | torch.dtype,
    quantization: str,
    device: str | torch.device,
    base: Path | str | None,
    vision_tower: Path | str | None,
) -> Llava:
    """See `Llava.from_pretrained`. Only the language model is quantised; its head is not."""
    folder = Path(folder)
    quiet_libraries()
    device = pick_device(device) if isinstance(device, str) else device
    dtype = pick_dtype(dtype, device) if isinstance(dtype, str) else dtype
    checkpoint = open_checkpoint(folder, base, vision_tower)
    use_one_thread_if_small(checkpoint.text_folder, device)
    config = checkpoint.config
    quantized = quantization_config(quantization, dtype, ["lm_head"])
    placement = {} if quantized is None else {"device_map": {"": device}}
    tower = MODEL_MAPPING[type(config.vision_config)].from_pretrained(
        None,
        config=config.vision_config,
        state_dict=part(checkpoint, "vision_tower."),
        dtype=dtype,
    )
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)]
    language_model = model_class.from_pretrained(
        None,
        config=config.text_config,
        state_dict=part(checkpoint, "language_model."),
        dtype=dtype,
        quantization_config=quantized,
        **placement,
    )
    if (checkpoint.text_folder / "generation_config.json").is_file():
        language_model.generation_config = GenerationConfig.from_pretrained(
            checkpoint.text_folder, local_files_only=True
        )
    model = Llava(config, tower, language_model, projector=config.projector_type)
    model.projector.load_state_dict(part(checkpoint, "projector."))
    model.projector.to(dtype)
    keep_trainable_after_inference(model)
    for module in (tower, model.projector, *([] if quantized else [language_model])):
        module.to(device)
    return model.eval()


def part(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The tensors of one part, read now, without the part's prefix."""
    return {
        name.removeprefix(prefix): weight.read()
        for name, weight in checkpoint.weights.items()
        if name.startswith(prefix)
    }
