"""The Hub layout: what `save_pretrained` and `convert.py` write, as transformers 5 does.

Keys on disk are ours (`vision_tower.*`, `language_model.*`) but for the projector, which is
`multi_modal_projector.linear_1`, an activation, `linear_2`. Plain
`LlavaForConditionalGeneration.from_pretrained` loads every projector kind but mlpNx_gelu with N
other than 2, at which it stops with an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaConfig

from llava_repro.model import Llava, n_image_tokens
from shared.options import UserError
from shared.weight_files import ShardWriter, Weight

IN_TRANSFORMERS = ("mlp2x_gelu", "linear", "identity")  # projectors that its LLaVA can express
HUB_PROJECTOR = "multi_modal_projector."
EMBEDDING = "language_model.model.embed_tokens.weight"


def to_hub_projector(
    config: LlavaConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Our projector's tensors -> keys on disk.

    A linear projector W becomes W, no activation, the identity matrix: the same output to the bit
    at the price of a matrix. An mlpNx_gelu with N other than 2 keeps its own keys.
    """
    kind = config.projector_type
    if kind == "mlp2x_gelu":
        places = {"projector.0.": "linear_1.", "projector.2.": "linear_2."}
        return {HUB_PROJECTOR + places[name[:12]] + name[12:]: t for name, t in tensors.items()}
    if kind not in ("linear", "identity"):
        return {HUB_PROJECTOR + name.removeprefix("projector."): t for name, t in tensors.items()}
    width, with_bias = config.text_config.hidden_size, config.multimodal_projector_bias
    one, none = torch.eye(width, dtype=dtype), torch.zeros(width, dtype=dtype)
    hub = {"linear_1.weight": tensors.get("projector.weight", one), "linear_2.weight": one.clone()}
    if with_bias:
        hub["linear_1.bias"] = tensors.get("projector.bias", none)
        hub["linear_2.bias"] = none.clone()
    return {HUB_PROJECTOR + name: tensor for name, tensor in hub.items()}


def from_hub_projector(config: LlavaConfig, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Weights with the projector as `projector_type` says; the inverse of `to_hub_projector`."""
    rest = {name: w for name, w in weights.items() if not name.startswith("projector.linear_")}
    parts = {n.removeprefix("projector."): w for n, w in weights.items() if n not in rest}
    kind = config.projector_type
    if kind in ("linear", "identity") and {"linear_1.weight", "linear_2.weight"} <= parts.keys():
        first, second = parts["linear_1.weight"], parts["linear_2.weight"]
        if kind == "linear":
            shape = (second.shape[0], first.shape[1])
            rest["projector.weight"] = Weight(shape, partial(product, first, second))
            if "linear_1.bias" in parts:
                rest["projector.bias"] = Weight(
                    second.shape[:1],
                    partial(product, parts["linear_1.bias"], second, parts["linear_2.bias"]),
                )
        return rest
    places = {"linear_1": "0", "linear_2": "2"}
    for name, weight in parts.items():
        layer, _, rest_of_name = name.partition(".")
        rest[f"projector.{places.get(layer, layer)}.{rest_of_name}"] = weight
    return rest


def product(first: Weight, second: Weight, bias: Weight | None = None) -> Tensor:
    """Two linear layers without activation are one: W2 W1, and W2 b1 + b2."""
    left, right = second.read(), first.read()
    result = left.float() @ right.float()
    return (result if bias is None else result + bias.read().float()).to(right.dtype)


def hub_config(config: LlavaConfig, dtype: torch.dtype) -> LlavaConfig:
    """What goes into config.json. Plain transformers would give a projector that it cannot express
    random weights and a warning; the name of its activation, unknown there, makes that an error."""
    config = deepcopy(config)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = dtype
    config.image_seq_length = n_image_tokens(config)
    for part in (config, config.vision_config, config.text_config):
        part._name_or_path = ""  # where the parts lay on the machine that trained
    if config.projector_type in ("linear", "identity"):
        config.projector_hidden_act = "linear"
    elif config.projector_type != "mlp2x_gelu":
        config.projector_hidden_act = config.projector_type
    return config


def hub_tensors(
    config: LlavaConfig, weights: Mapping[str, Weight], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Keys on disk and tensors, read one at a time; floating point in `dtype` if given."""

    def read(weight: Weight) -> Tensor:
        tensor = weight.read()
        return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor

    stored_dtype = dtype or weights[EMBEDDING].read().dtype
    projector = {n: read(w) for n, w in weights.items() if n.startswith("projector.")}
    yield from to_hub_projector(config, projector, stored_dtype).items()
    for name, weight in weights.items():
        if name not in projector:
            yield name, read(weight)


def save_llava(model: Llava, folder: Path, dtype: torch.dtype | None) -> None:
    """See `Llava.save_pretrained`."""
    state = model.state_dict()
    if getattr(model.language_model, "is_quantized", False):
        raise UserError("4- or 8-bit weights are not saved: load with --quantization none")
    if any(".lora_" in name for name in state):
        raise UserError("the adapter is not merged: call merge_and_unload() before saving")
    if model.config.tie_word_embeddings:
        state.pop("language_model.lm_head.weight", None)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: Weight(tuple(t.shape), partial(Tensor.detach, t)) for n, t in state.items()}
    writer = ShardWriter(folder)
    writer.add(hub_tensors(model.config, weights, dtype))
    writer.finish()
    hub_config(model.config, dtype or model.dtype).save_pretrained(folder)
    model.language_model.generation_config.save_pretrained(folder)
