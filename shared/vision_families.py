"""Families of vision-language models: prompts, pictures and choices in each one's own form.

A family is found by `model_type` in config.json: `llava` (any language model; CLIP, Chinese-CLIP or
SigLIP), `blip-2` (OPT, T5), `qwen2_vl`, `qwen2_5_vl`, `qwen3_vl` (dense; the mixture of experts is
not supported), `minicpmv4_6`. What is the same for all, generation and likelihood, is
`shared.vision_language`, which is the way in. A folder is loaded with `AutoTokenizer` and
`AutoImageProcessor`; no processor class is made, so nothing here needs torchvision.

Reads a model folder and an adapter folder; writes nothing.
Shapes: P pictures, N image tokens of a picture, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shared.chat_templates import chat_style, special_tokens
from shared.conversations import IMAGE_TAG, answer_end, escape_tags
from shared.images import trained_aspect_ratio
from shared.llava_parts import CLASS_TOKENS
from shared.options import UserError, read_json
from shared.vision_families_adapters import adapter_manifest, load_llava_parts
from shared.vision_families_base import ChatFamily, Family, Layout, PictureFeatures, Turns
from shared.vision_families_minicpm import MiniCpmFamily
from shared.vision_families_qwen import Qwen3VlFamily, QwenVlFamily

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig

__all__ = [
    "FAMILIES", "Family", "Layout", "LlavaFamily", "PictureFeatures", "Turns", "open_family",
]  # fmt: skip

T5_MAX_TOKENS = 512  # Flan-T5 was trained at this length; its relative positions set no hard bound
# The published LLaVA-1.5 folders' template writes no end behind an answer, though the models were
# trained with one; without it nothing shows where an answer ends.
END_OF_ANSWER = (
    "{% if not add_generation_prompt and messages[-1]['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}"
)


class LlavaFamily(ChatFamily):
    """LLaVA in the Hub layout: the chat template of the folder's tokenizer, as in its training.

    The published LLaVA-1.5 folders' template has no system text (the original's evaluation has).
    """

    model_class = "LlavaForConditionalGeneration"
    not_quantized = (r".*vision_tower", r".*multi_modal_projector", "lm_head")
    template_advice = "llava_repro/convert.py --template NAME writes one into the folder"

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(folder, config, tokenizer, image_processor)
        self.n_image_tokens = llava_image_tokens(config)
        self.trained_on = trained_aspect_ratio(folder)
        end = answer_end(tokenizer, None)
        if end in special_tokens(tokenizer):
            self.end_ids.add(tokenizer.convert_tokens_to_ids(end))
        else:
            self.end_text = end

    def probe_template(self) -> None:
        check_image_token(self, self.config.image_token_id)
        try:
            chat_style(self.tokenizer)
        except UserError:  # it may lack the end alone; anything else is told the second time
            self.tokenizer.chat_template += END_OF_ANSWER
            chat_style(self.tokenizer)
        super().probe_template()

    def load_adapter(self, model: nn.Module, adapter: Path) -> nn.Module:
        model = load_llava_parts(model, adapter, self.folder)
        self.trained_on = adapter_manifest(adapter).get("image_aspect_ratio") or self.trained_on
        return model

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        pixels = self.pixels(images)["pixel_values"]
        features = self.model.get_image_features(
            pixel_values=pixels.to(self.model.device, self.model.model.vision_tower.dtype)
        ).pooler_output  # P times (N, D)
        return [PictureFeatures(vectors, Layout(len(vectors))) for vectors in features]


class Blip2Family(Family):
    """BLIP-2: the prompt is plain text behind N query tokens ("Question: ... Answer:")."""

    model_class = "Blip2ForConditionalGeneration"
    not_quantized = ("language_projection", "qformer", "vision_model", "lm_head")

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(folder, config, tokenizer, image_processor)
        kind = config.text_config.model_type
        if kind not in ("opt", "t5"):
            raise UserError(
                f"{folder}: a BLIP-2 with a {kind} language model; only OPT and T5 work"
            )
        self.is_opt = kind == "opt"
        self.max_length = self.max_length or T5_MAX_TOKENS
        self.n_image_tokens = config.num_query_tokens
        if config.image_token_id is None:
            raise UserError(
                f"{folder}: config.json has no image_token_index: no place for pictures"
            )
        known = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
        if known not in (None, tokenizer.unk_token_id):  # old folders' tokenizers don't know it
            check_image_token(self, config.image_token_id)

    def attach(self, model: nn.Module) -> None:
        self.model, self.decoder = model, model.language_model
        end = model.generation_config.eos_token_id  # OPT's is the line break, not </s>
        end = self.config.text_config.eos_token_id if end is None else end
        self.end_ids = {*(end if isinstance(end, list) else [end])} - {None}

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        pixels = self.pixels(images)["pixel_values"]
        dtype = self.model.vision_model.embeddings.patch_embedding.weight.dtype
        features = self.model.get_image_features(pixels.to(self.model.device, dtype)).pooler_output
        return [PictureFeatures(vectors, Layout(len(vectors))) for vectors in features]

    def prompt_ids(
        self, prompt: str, layouts: Sequence[Layout] = (), tags_are_meant: bool = False
    ) -> list[int]:
        """The picture in front, wherever a tag may stand: the prompt is plain text."""
        if isinstance(prompt, Turns) and len(prompt.turns) > 1:
            raise UserError("BLIP-2 is asked one question; it has no form for several turns")
        if len(layouts) > 1:
            raise UserError(f"BLIP-2 is shown one picture, not {len(layouts)}")
        text = str(prompt)
        if tags_are_meant:
            text = text.replace(IMAGE_TAG, "").strip()
        ids = self.tokenizer(escape_tags(text, self.tokenizer))["input_ids"]
        return [i for layout in layouts for i in self.picture_ids(layout, 0)] + ids

    def lead(self, prompt: str) -> str:
        """OPT goes on behind "Answer:" with a blank, which its BPE keeps in the next token; T5's
        answer is a text of its own."""
        return " " if self.is_opt and prompt and not prompt[-1].isspace() else ""


FAMILIES: dict[str, type[Family]] = {
    "llava": LlavaFamily,
    "blip-2": Blip2Family,
    "qwen2_vl": QwenVlFamily,
    "qwen2_5_vl": QwenVlFamily,
    "qwen3_vl": Qwen3VlFamily,
    "minicpmv4_6": MiniCpmFamily,
}


# Loading without weights


def open_family(
    folder: Path,
    parts: Path | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Family:
    """The family of a model folder without its weights: tokenizer, image processor, counts.

    `parts` is where tokenizer and image processor lie, if not in the folder. Raises UserError.
    """
    from transformers import AutoConfig

    kind = read_json(folder / "config.json").get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"{folder}: model_type {kind} in its config.json; supported: {', '.join(FAMILIES)}"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its config.json cannot be used ({error})") from error
    processor = load_image_processor(parts or folder)
    if min_pixels is not None or max_pixels is not None:
        set_pixel_bounds(processor, kind, min_pixels, max_pixels)
    return FAMILIES[kind](folder, config, load_tokenizer(parts or folder), processor)


def set_pixel_bounds(processor: Any, kind: str, low: int | None, high: int | None) -> None:
    """A picture's fewest and most pixels behind resizing; the processor's own where None."""
    if not kind.startswith("qwen"):
        raise UserError(
            f"min_pixels and max_pixels are for Qwen-VL; {kind} has fixed sizes (train.py: "
            "--max_pixels 0 takes back a preset's)"
        )
    low = processor.size["shortest_edge"] if low is None else low
    high = processor.size["longest_edge"] if high is None else high
    smallest = (processor.patch_size * processor.merge_size) ** 2  # one token's
    if not smallest <= low <= high:
        raise UserError(
            f"min_pixels {low}, max_pixels {high}: the first must be at least {smallest} (one "
            "image token) and at most the second"
        )
    processor.size = {"shortest_edge": low, "longest_edge": high}


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({error})") from error


def load_image_processor(folder: Path) -> Any:
    """PIL's own where torchvision is missing. Raises UserError, naming a package that it needs."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder}: its image processor cannot be loaded ({error})") from error


# Checks


def llava_image_tokens(config: PretrainedConfig) -> int:
    """Image tokens of one picture, from the configuration: CLIP-L/14 at 336 pixels has 576.

    Raises UserError for an unknown tower, and for one that would lose its first patch.
    """
    vision = config.vision_config
    class_tokens = CLASS_TOKENS.get(vision.model_type)
    if class_tokens is None:
        raise UserError(
            f"a LLaVA with a {vision.model_type} tower: the number of its image tokens is known "
            f"for {', '.join(CLASS_TOKENS)} alone"
        )
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    if dropped > class_tokens:
        raise UserError(
            f"vision_feature_select_strategy is default, but {vision.model_type} has no class "
            "token: its first patch would be lost. Set it to full"
        )
    return (vision.image_size // vision.patch_size) ** 2 + class_tokens - dropped


def check_image_token(family: Family, expected: int) -> None:
    found = family.tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    if found != expected:
        raise UserError(
            f"{family.folder}: {IMAGE_TAG} is token {found} of its tokenizer, config.json says "
            f"{expected}: they don't belong together; download or convert the model again"
        )
