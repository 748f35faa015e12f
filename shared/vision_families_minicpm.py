"""MiniCPM-V 4.6: a picture as a whole and in slices, behind a hybrid language model (Qwen3.5).

A picture larger than the tower's 448 x 448 is shown small as a whole and cut into up to
`max_slice_nums` slices, rows of slices with line breaks between; each is merged 16-fold. In front
stands the picture's number in the prompt. Counts follow from the picture's size by the image
processor's own functions. Three of four layers of the language model keep a recurrent state in
place of keys and values; padding on the left does not reach it (transformers 5.23 masks it there),
so prompts of different length go together.

Older MiniCPM-V (2, 2.5, 2.6, 4, 4.5) need their own remote code and are not read here.

Used through `shared.vision_families`.
Shapes: S whole pictures and slices, B prompts, N image tokens of a picture, T tokens, D width.
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

DIVISORS = {"16x": 16, "4x": 4}  # patches that become one token


class MiniCpmFamily(ChatFamily):
    """MiniCPM-V 4.6, and its Thinking folder, whose template opens a thought before an answer."""

    model_class = "MiniCPMV4_6ForConditionalGeneration"
    # in_proj_a and in_proj_b are narrow gates; the published 4-bit folder leaves them out too
    not_quantized = (r".*vision_tower", r".*merger", r".*in_proj_a", r".*in_proj_b", "lm_head")

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(folder, config, tokenizer, image_processor)
        mode = image_processor.downsample_mode
        if mode != config.downsample_mode or mode not in DIVISORS:
            raise UserError(
                f"{folder}: its image processor counts tokens for downsample_mode {mode}, its "
                f"config.json says {config.downsample_mode}; make them equal"
            )
        self.divisor = DIVISORS[mode]
        side = image_processor.scale_resolution // image_processor.patch_size
        slices = image_processor.max_slice_nums if image_processor.slice_mode else 0
        self.n_image_tokens = (1 + slices) * side**2 // self.divisor
        names = ("image_start", "image_end", "slice_start", "slice_end", "image_id_start",
                 "image_id_end")  # fmt: skip
        missing = [n for n in names if getattr(tokenizer, f"{n}_token", None) is None]
        if missing:
            raise UserError(
                f"{folder}: its tokenizer_config.json names no {', '.join(missing)} token "
                "(extra_special_tokens); download the model again"
            )

    def layout(self, width: int, height: int) -> Layout:
        processor, size = self.image_processor, (height, width)
        patch, scale = processor.patch_size, processor.scale_resolution
        grid = (
            processor.get_sliced_grid(size, processor.max_slice_nums, scale)
            if processor.slice_mode
            else None
        )
        tall, wide = processor.find_best_resize(
            size, scale, patch, processor.downsample_mode, allow_upscale=grid is None
        )
        whole = (tall // patch) * (wide // patch) // self.divisor
        if grid is None:
            return Layout(whole, slices=(whole,))
        rows, columns = grid
        tall, wide = processor.get_refine_size(
            size, grid, scale, patch, processor.downsample_mode, allow_upscale=True
        )
        one = (tall // rows // patch) * (wide // columns // patch) // self.divisor
        slices = (whole, *([one] * (rows * columns)))
        return Layout(sum(slices), slices=slices, columns=columns)

    def picture_ids(self, layout: Layout, place: int) -> list[int]:
        tokenizer = self.tokenizer
        image = tokenizer.convert_ids_to_tokens(self.image_token_id)
        text = ""
        if self.image_processor.use_image_id:
            text = f"{tokenizer.image_id_start_token}{place}{tokenizer.image_id_end_token}"
        whole, *slices = layout.slices
        text += tokenizer.image_start_token + image * whole + tokenizer.image_end_token
        shown = [
            tokenizer.slice_start_token + image * n + tokenizer.slice_end_token for n in slices
        ]
        step = layout.columns or 1
        text += "\n".join("".join(shown[i : i + step]) for i in range(0, len(shown), step))
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        inputs = self.pixels(images)
        device = self.model.device
        vectors = self.model.get_image_features(
            inputs["pixel_values"].to(device), inputs["target_sizes"].to(device)
        ).pooler_output  # S times (n, D)
        features, done = [], 0
        for n, (_, columns) in zip(inputs["num_patches_per_image"], inputs["grids"], strict=True):
            own = vectors[done : done + n]
            counts = tuple(len(piece) for piece in own)
            layout = Layout(sum(counts), slices=counts, columns=columns)
            features.append(PictureFeatures(torch.cat(list(own)), layout))
            done += n
        return features

    def run_prompts(
        self,
        input_ids: Tensor,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        pictures: Sequence[PictureFeatures],
    ) -> tuple[Any, Tensor]:
        """The head on the last place alone: the class has no `logits_to_keep`, and its vocabulary
        is of 248,000 words."""
        output = self.model.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True
        )
        return output.past_key_values, self.model.lm_head(output.last_hidden_state[:, -1])
