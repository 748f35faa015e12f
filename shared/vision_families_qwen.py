"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: ChatML, as many tokens a picture as its size asks for.

A picture is brought to a multiple of the merged patch between the image processor's smallest and
largest number of pixels, both sides alike (`smart_resize`); positions have three dimensions
(M-RoPE). Qwen3-VL also adds features of earlier tower layers to the language model's first layers
(DeepStack), which the prompt's pass must be given.

Used through `shared.vision_families`.
Shapes: P pictures, B prompts, N image tokens of a picture, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared.options import UserError
from shared.vision_families_base import ChatFamily, Layout, PictureFeatures

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


class QwenVlFamily(ChatFamily):
    """Qwen2-VL and Qwen2.5-VL."""

    not_quantized = (r".*visual", "lm_head")

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(folder, config, tokenizer, image_processor)
        self.model_class = MODEL_CLASSES[config.model_type]
        vision = config.vision_config
        self.n_image_tokens = image_processor.size["longest_edge"] // (
            (vision.patch_size * vision.spatial_merge_size) ** 2
        )

    def layout(self, width: int, height: int) -> Layout:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        processor = self.image_processor
        patch, merge = processor.patch_size, processor.merge_size
        try:
            tall, wide = smart_resize(
                height,
                width,
                factor=patch * merge,
                min_pixels=processor.size["shortest_edge"],
                max_pixels=processor.size["longest_edge"],
            )
        except ValueError as error:  # more than 200 times as long as wide
            raise UserError(f"a picture of {width} x {height} pixels: {error}") from error
        return grid_layout((1, tall // patch, wide // patch), merge)

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        inputs = self.pixels(images)
        grids = inputs["image_grid_thw"].to(self.model.device)  # (P, 3)
        output = self.model.get_image_features(inputs["pixel_values"].to(self.model.device), grids)
        deep = getattr(output, "deepstack_features", None) or []  # a layer: P times (N, D)
        merge = self.image_processor.merge_size
        return [
            PictureFeatures(
                vectors,  # (N of that picture, D)
                grid_layout(tuple(grid), merge),
                tuple(layer[i] for layer in deep),
            )
            for i, (vectors, grid) in enumerate(
                zip(output.pooler_output, grids.tolist(), strict=True)
            )
        ]

    def positions(
        self, input_ids: Tensor, mask: Tensor, pictures: Sequence[PictureFeatures]
    ) -> tuple[Tensor, Tensor]:
        """transformers' own rule: (3, B, T); a picture takes the positions of its longer side."""
        grids = [picture.layout.grid for picture in pictures]
        positions, shift = self.model.model.get_rope_index(
            input_ids,
            (input_ids == self.image_token_id).int(),
            torch.tensor(grids, device=input_ids.device) if grids else None,
            attention_mask=mask,
        )
        return positions, mask.sum(dim=-1) + shift[:, 0]

    def forward_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Positions in a training pass follow from the kind of each token, 1 for a picture's."""
        return {"mm_token_type_ids": (input_ids == self.image_token_id).int()}


class Qwen3VlFamily(QwenVlFamily):
    """Qwen3-VL, dense. A Thinking folder's template opens a thought in front of each answer."""

    def run_prompts(
        self,
        input_ids: Tensor,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        pictures: Sequence[PictureFeatures],
    ) -> tuple[Any, Tensor]:
        """Through the model's own door for encoded pictures, which takes DeepStack's too."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (
            BaseModelOutputWithDeepstackFeatures,
        )

        encoded = None
        if pictures:
            encoded = BaseModelOutputWithDeepstackFeatures(
                pooler_output=[picture.vectors for picture in pictures],
                deepstack_features=list(zip(*(p.deep for p in pictures), strict=True)),
            )
        output = self.decoder(
            input_ids=input_ids,
            mm_encoder_outputs={"image": encoded},
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.past_key_values, output.logits[:, -1]


def grid_layout(grid: tuple[int, ...], merge: int) -> Layout:
    frames, rows, columns = grid
    return Layout(frames * rows * columns // merge**2, (frames, rows, columns))
