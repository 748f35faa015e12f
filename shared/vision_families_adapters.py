"""Adapters on a vision-language model: LoRA by peft, and every other trained part beside it.

An adapter folder holds PEFT files, `projector.safetensors` (all else that was trained, the
projector first of all), `manifest.json`; either of the two weight files may be missing. The second
names each tensor as the base model's parameter is named (`model.multi_modal_projector.linear_1.
weight`); folders of llava_repro/train.py name LLaVA's projector `model.mm_projector.0.weight` and
have a LoRA of the language model alone.

Used by `shared.vision_families`; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.loading import check_adapter_folder, fingerprint, load_adapter
from shared.options import UserError, read_json

PROJECTOR_FILE = "projector.safetensors"
OLD_PROJECTOR = "model.mm_projector."  # llava_repro's, and the original LLaVA's


def adapter_manifest(adapter: Path) -> dict[str, Any]:
    """The manifest, {} of a plain PEFT folder; raises UserError for what is no adapter folder."""
    if (adapter / "adapter_config.json").is_file() or not (adapter / PROJECTOR_FILE).is_file():
        return check_adapter_folder(adapter)
    file = adapter / "manifest.json"
    manifest = read_json(file) if file.is_file() else None
    if not isinstance(manifest, dict):
        raise UserError(
            f"{adapter}: {PROJECTOR_FILE} without a manifest.json that says of which model it is; "
            "give the adapter/ folder that train.py wrote"
        )
    return manifest


def load_parts(model: nn.Module, adapter: Path, folder: Path) -> nn.Module:
    """The model of `folder` with an adapter's trained parts and LoRA layers in it, without peft's
    wrapper. Raises UserError when they don't belong together."""
    manifest = adapter_manifest(adapter)
    if (adapter / PROJECTOR_FILE).is_file():
        check_base(manifest, adapter, folder)
        fill_parameters(model, read_tensors(adapter / PROJECTOR_FILE), adapter / PROJECTOR_FILE)
    if (adapter / "adapter_config.json").is_file():
        model = load_adapter(model, adapter, folder).get_base_model()
    return model.eval()


def check_base(manifest: Mapping[str, Any], adapter: Path, folder: Path) -> None:
    trained_on, here = manifest.get("base_fingerprint"), fingerprint(folder)
    if trained_on != here:
        raise UserError(
            f"{adapter} was trained on {manifest.get('base_model')} (fingerprint {trained_on}), "
            f"not on {folder} ({here}). Give that base with --model, or train an adapter for this "
            "one."
        )


def fill_parameters(model: nn.Module, saved: Mapping[str, Tensor], file: Path) -> None:
    """Copy tensors into the parameters of their names, in the model's precision. UserError for a
    name or a shape that the model has not."""
    own = dict(model.named_parameters())
    for name, tensor in saved.items():
        if name not in own:
            raise UserError(f"{file}: {name} is no parameter of this {type(model).__name__}")
        if own[name].shape != tensor.shape:
            raise UserError(
                f"{file}: {name} has the shape {tuple(tensor.shape)}, this model's has "
                f"{tuple(own[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)


def read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


# LLaVA: what llava_repro/train.py writes


def load_llava_parts(model: nn.Module, adapter: Path, folder: Path) -> nn.Module:
    """As `load_parts`, also for a LoRA of the language model alone and the old projector names."""
    manifest = adapter_manifest(adapter)
    whole = "its run's model/ folder (train.py --save_model true) holds the merged model: give that"
    if "model" not in manifest.get("parts", {"model": ""}):
        raise UserError(
            f"{adapter}: trained on a vision tower and a language model of their own, not on one "
            f"LLaVA folder; {whole} with --model"
        )
    if manifest.get("template") is not None:
        raise UserError(
            f"{adapter}: trained with the named prompt {manifest['template']}, here the folder's "
            f"own chat template asks; {whole} with --model"
        )
    file = adapter / PROJECTOR_FILE
    if file.is_file():
        check_base(manifest, adapter, folder)
        saved = read_tensors(file)
        if any(name.startswith(OLD_PROJECTOR) for name in saved):
            fill_projector(model, saved, file)
        else:
            fill_parameters(model, saved, file)
    if (adapter / "adapter_config.json").is_file():
        host = model if is_made_for(adapter, model) else language_model_view(model)
        load_adapter(host, adapter, folder)
        if host is not model:
            model.lm_head = host.get_output_embeddings()
    return model.eval()


def is_made_for(adapter: Path, model: nn.Module) -> bool:
    """Whether the adapter's layers are called as in this model, seen from its top."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{adapter}: its weights cannot be read ({error})") from error
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in names}
    return layers <= {name for name, _ in model.named_modules()}


def language_model_view(model: nn.Module) -> nn.Module:
    """The language model inside a LLaVA as the causal model that it is by itself, sharing its
    layers: an adapter trained on it finds them by their names."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        view = AutoModelForCausalLM.from_config(deepcopy(model.config.text_config))
    setattr(view, view.base_model_prefix, model.model.language_model)
    view.set_output_embeddings(model.lm_head)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer"):  # peft asks for them
        if hasattr(model, name):
            setattr(view, name, getattr(model, name))
    return view


def fill_projector(model: nn.Module, saved: Mapping[str, Tensor], file: Path) -> None:
    """Fill a Hub-layout projector from `model.mm_projector.*`, the original's names.

    A linear one has W alone: W, no activation and the identity, as in a converted folder. Raises
    UserError when it doesn't fit.
    """
    found = {name.removeprefix(OLD_PROJECTOR): tensor for name, tensor in saved.items()}
    projector = model.model.multi_modal_projector
    own = projector.state_dict()
    if "weight" in found and model.config.projector_hidden_act == "linear":
        width = len(found["weight"])
        found = {f"linear_1.{name}": tensor for name, tensor in found.items()}
        found["linear_2.weight"] = torch.eye(width)
        if "linear_2.bias" in own:
            found["linear_2.bias"] = torch.zeros(width)
    elif model.config.projector_hidden_act != "linear":
        places = {"0": "linear_1", "2": "linear_2"}
        parts = {name: name.partition(".") for name in found}
        found = {f"{places.get(p[0], p[0])}.{p[2]}": found[name] for name, p in parts.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in found.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if theirs != ours:
        raise UserError(f"{file}: a projector of {theirs}, this model's is {ours}")
    projector.load_state_dict(found)
