"""LLaVA (arXiv 2304.08485, v1.5: arXiv 2310.03744): a language model that is shown pictures.

A vision tower turns a picture into N vectors, a projector brings them to the language model's
width, and they stand in the place of N `<image>` tokens among the embeddings of the text. The
towers and language models are those of transformers; what makes a LLaVA of them is this file, and
its tests hold it equal to `transformers.LlavaForConditionalGeneration`.

    model = Llava.from_pretrained("data/toy_models/llava")
    ids = model.generate(input_ids, pixel_values=pixel_values, max_new_tokens=64)

`from_pretrained` reads every checkpoint layout of `layouts.py`; `save_pretrained` writes the Hub
layout, which plain transformers loads.

Shapes: B batch, I images of the whole batch, N image tokens of one image, T tokens of the text with
its N image tokens per image, A learned tokens of the batch, D width, V vocabulary.
"""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast

from shared.llava_parts import CLASS_TOKENS
from shared.options import IGNORE_INDEX, UserError


class Llava(nn.Module):
    """Vision tower, projector, language model.

    `config` is transformers' `LlavaConfig`: `vision_feature_layer` says which hidden state is the
    picture (-2: the last but one; a list: several side by side), `vision_feature_select_strategy`
    whether the class token is dropped ("default") or everything kept ("full"), `image_token_index`
    which token stands for an image's vector. `projector`: linear (v1), mlp2x_gelu (v1.5),
    mlpNx_gelu, identity.
    """

    base_model_prefix = ""  # peft 0.21 asks every model that holds transformers' ones for it

    def __init__(
        self,
        config: LlavaConfig,
        vision_tower: PreTrainedModel,
        language_model: PreTrainedModel,
        projector: str = "mlp2x_gelu",
    ) -> None:
        super().__init__()
        n_image_tokens(config)  # refuses a tower or strategy that would not fit
        self.config = config
        self.vision_tower = vision_tower
        self.projector = make_projector(projector, config)
        self.language_model = language_model
        config.projector_type = projector

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (I, 3, H, W) -> one vector per image token (I, N, D of the language model).

        A frozen tower keeps no activations for a backward pass that would not use them.
        """
        trained = any(weight.requires_grad for weight in self.vision_tower.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            hidden_states = self.vision_tower(
                pixel_values.to(self.vision_tower.dtype), output_hidden_states=True
            ).hidden_states  # one (I, class token + patches, D of the tower) per layer
        layers = self.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        features = torch.cat([hidden_states[layer] for layer in layers], dim=-1)
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]  # without the class token: (I, N, D of the tower)
        return self.projector(features.to(self._projector_dtype(features.dtype)))

    def embed(
        self, input_ids: Tensor, pixel_values: Tensor | None, image_features: Tensor | None
    ) -> Tensor:
        """input_ids (B, T) with N placeholders per image -> embeddings (B, T, D), images in place.

        The images follow the rows: all of row 0 first, in the order of their placeholders.
        `image_features` (I, N, D) are used instead of `pixel_values` when given. Raises UserError.
        """
        is_image = input_ids == self.config.image_token_index  # (B, T)
        given = pixel_values if image_features is None else image_features
        n_tokens = n_image_tokens(self.config)
        check_image_tokens(is_image, n_tokens, 0 if given is None else len(given))
        # the placeholder may lie outside the vocabulary, so it is never looked up
        embeds = self.language_model.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if given is not None and len(given):
            features = self.image_features(given) if image_features is None else image_features
            if features.shape[1] != n_tokens:  # masked_scatter would take them in a wrong order
                raise UserError(f"{features.shape[1]} features a picture for {n_tokens} tokens")
            return embeds.masked_scatter(is_image.unsqueeze(-1), features.to(embeds.dtype))
        return embeds + self._unused() if self.training else embeds

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_features: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Without labels: logits (B, T, V), or fewer by `logits_to_keep`, as in transformers.

        With labels (B, T): `loss`, and `logits` (A, V) of the positions before a learned token,
        row by row; the head is computed for no other. The loss is the summed cross-entropy over
        `num_items_in_batch` (learned tokens of all accumulated batches and processes; None: of
        this one). attention_mask (B, T), padding on either side; with a cache (B, past + T).
        Raises UserError when images and placeholders differ in number or nothing is to be learned.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, image_features)  # (B, T, D)
        if position_ids is None and attention_mask is not None:  # counted without the padding
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
            position_ids = position_ids[:, -inputs_embeds.shape[1] :]  # (B, T)
        if labels is not None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # (B, T)
            logits_to_keep = targets != IGNORE_INDEX  # position t predicts token t + 1
            targets = targets[logits_to_keep]  # (A,)
            if not len(targets):
                raise UserError("a batch without a single token to learn")
            use_cache = False if use_cache is None else use_cache
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        if labels is not None:
            total = nn.functional.cross_entropy(output.logits.float(), targets, reduction="sum")
            output.loss = total / (
                len(targets) if num_items_in_batch is None else num_items_in_batch
            )
        return output

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **generation_kwargs: Any,
    ) -> Tensor:
        """Prompt and new tokens (B, T + new), by transformers' own `generate`: beams, sampling,
        streamers, stopping criteria. Prompts are padded on the left. Raises UserError."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        ends_in_padding = (attention_mask[:, -1] == 0).nonzero()[:, 0].tolist()
        if ends_in_padding:
            raise UserError(
                f"row {ends_in_padding[0]} of the batch ends in padding: a prompt that is to be "
                "continued must be padded on the left"
            )
        return self.language_model.generate(
            input_ids=input_ids,
            inputs_embeds=self.embed(input_ids, pixel_values, image_features),
            attention_mask=attention_mask,
            **generation_kwargs,
        )

    def _projector_dtype(self, default: torch.dtype) -> torch.dtype:
        return next((weight.dtype for weight in self.projector.parameters()), default)

    def _unused(self) -> Tensor:
        """Zero, computed with every trainable weight of projector and tower.

        In distributed training each process waits for the gradients of all trainable weights. One
        whose batch has no picture would not use these and the others would wait for ever; with
        this term it contributes gradients of 0, without a pass through the tower.
        """
        width = projector_widths(self.config)[0]
        blank = torch.zeros(1, 1, width, dtype=self._projector_dtype(torch.float32))
        unused = 0.0 * self.projector(blank.to(self.device)).sum()
        for weight in self.vision_tower.parameters():
            if weight.requires_grad:
                unused = unused + 0.0 * weight.sum()
        return unused.to(self.language_model.get_input_embeddings().weight.dtype)

    @property
    def device(self) -> torch.device:
        return self.language_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.get_input_embeddings().weight.dtype

    def train(self, mode: bool = True) -> Llava:
        """Training mode; a frozen tower keeps its dropout off."""
        super().train(mode)
        trained = any(weight.requires_grad for weight in self.vision_tower.parameters())
        self.vision_tower.train(mode and trained)
        return self

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """The Trainer's hook: layers are computed again in the backward pass, not remembered."""
        self.language_model.activation_checkpointing_enable(**settings)
        if any(weight.requires_grad for weight in self.vision_tower.parameters()):
            self.vision_tower.activation_checkpointing_enable(**settings)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        dtype: str | torch.dtype = "auto",
        quantization: str = "none",
        device: str | torch.device = "auto",
        base: Path | str | None = None,
        vision_tower: Path | str | None = None,
    ) -> Llava:
        """A LLaVA from a folder of any layout in `layouts.py`, in eval mode.

        `quantization` (none, int8, nf4) is of the language model alone. `base` is the language
        model under a LoRA or stage-1 folder, `vision_tower` a folder with the tower when it is not
        inside. Raises UserError with the cause, every missing and unexpected weight among them.
        """
        from llava_repro.layouts import load_llava

        return load_llava(
            folder,
            dtype=dtype,
            quantization=quantization,
            device=device,
            base=base,
            vision_tower=vision_tower,
        )

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write config.json and safetensors in the Hub layout, weights in `dtype` if given.

        `LlavaForConditionalGeneration.from_pretrained` loads the folder without a missing or
        unexpected weight; only an mlpNx_gelu projector with N other than 2 has no form there, and
        transformers stops at it. Raises UserError for 4/8-bit weights and unmerged adapters.
        """
        from llava_repro.hub_layout import save_llava

        save_llava(self, Path(folder), dtype)


def make_projector(kind: str, config: LlavaConfig) -> nn.Module:
    """From the tower's width to the language model's. Raises UserError for an unknown kind."""
    width, text_width = projector_widths(config)
    bias = config.multimodal_projector_bias
    if kind == "identity":
        if width != text_width:
            raise UserError(
                f"projector identity: the tower's width {width} is not the language model's "
                f"{text_width}"
            )
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, text_width, bias=bias)
    depth = projector_depth(kind)
    activation = config.projector_hidden_act if kind == "mlp2x_gelu" else "gelu"
    layers: list[nn.Module] = [nn.Linear(width, text_width, bias=bias)]
    for _ in range(depth - 1):
        layers += [deepcopy(ACT2FN[activation]), nn.Linear(text_width, text_width, bias=bias)]
    return nn.Sequential(*layers)


def projector_depth(kind: str) -> int:
    """The N of mlpNx_gelu. Raises UserError for another name."""
    found = re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind)
    if found is None:
        raise UserError(f"projector {kind}: not one of linear, mlp2x_gelu, mlpNx_gelu, identity")
    return int(found[1])


def projector_widths(config: LlavaConfig) -> tuple[int, int]:
    """Width of what comes out of the tower, all chosen layers side by side, and of the text."""
    layers = config.vision_feature_layer
    n_layers = 1 if isinstance(layers, int) else len(layers)
    return n_layers * config.vision_config.hidden_size, config.text_config.hidden_size


def n_image_tokens(config: LlavaConfig) -> int:
    """Image tokens of one picture, from the configuration alone.

    CLIP-L/14 at 336 pixels: 24 x 24 patches = 576, with the class token kept ("full") 577.
    Raises UserError for an unknown tower, and for SigLIP with "default", which would drop a patch.
    """
    vision = config.vision_config
    class_tokens = CLASS_TOKENS.get(vision.model_type)
    if class_tokens is None:
        raise UserError(f"{vision.model_type}: not a vision tower of {', '.join(CLASS_TOKENS)}")
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    if dropped > class_tokens:
        raise UserError(
            f"vision_feature_select_strategy is default, but {vision.model_type} has no class "
            "token: its first patch would be lost. Set it to full"
        )
    return (vision.image_size // vision.patch_size) ** 2 + class_tokens - dropped


def check_image_tokens(is_image: Tensor, per_image: int, n_images: int) -> None:
    """Raises UserError unless the placeholders (B, T) are those of exactly `n_images` images."""
    counts = is_image.sum(dim=1).tolist()
    for row, count in enumerate(counts):
        if count % per_image:
            raise UserError(
                f"sample {row} of the batch has {count} image tokens, which is no multiple of the "
                f"{per_image} of one image: was it cut, or prepared for another vision tower?"
            )
    if sum(counts) != n_images * per_image:
        listed = ", ".join(
            f"sample {row}: {count // per_image}" for row, count in enumerate(counts)
        )
        raise UserError(
            f"the batch has {n_images} images, its text has places for "
            f"{sum(counts) // per_image} ({listed})"
        )
