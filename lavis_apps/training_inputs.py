"""Pictures and texts as a BLIP or a CLIP reads them, on the CPU: what the data workers need.

The same as `Blip.pixel_values`, `Blip.tokens` and `Clip`'s make of them, but without a model, so
that a worker process touches no GPU; a test compares them. BLIP's texts go through LAVIS' text
processors, CLIP's as they are.

Used by training_data.py; reads nothing, writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_apps.blip import MAX_TEXT_TOKENS, Blip
from lavis_apps.processors import blip_caption, blip_image_eval, blip_question

if TYPE_CHECKING:
    from PIL.Image import Image

    from lavis_apps.clip import Clip


class BlipInputs:
    """For every BLIP: the first token is one of [CLS], [ENC], [DEC]."""

    def __init__(self, blip: Blip) -> None:
        text = blip.model.config.text_config
        self.tokenizer: Any = blip.tokenizer
        self.image_size, self.mean, self.std = blip.image_size, blip.mean, blip.std
        self.first = {name: blip.first_id(name) for name in ("[CLS]", "[ENC]", "[DEC]")}
        self.end_id: int = blip.tokenizer.sep_token_id
        self.pad_id: int = blip.tokenizer.pad_token_id
        self.positions: int = text.max_position_embeddings

    def picture(self, image: Image) -> Tensor:
        """(3, S, S) float32, squeezed to a square."""
        return torch.from_numpy(blip_image_eval(image, self.image_size, self.mean, self.std))

    def caption(self, text: str) -> str:
        return blip_caption(text)

    def question(self, text: str) -> str:
        return blip_question(text)

    def words(self, text: str) -> list[int]:
        """Ids of the text alone, without first and end token."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def tokens(self, texts: Sequence[str], first: str) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, T), right-padded, of at most 35 tokens."""
        limit = min(MAX_TEXT_TOKENS, self.positions)
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        batch["input_ids"][:, 0] = self.first[first]
        return {name: batch[name] for name in ("input_ids", "attention_mask")}


class ClipInputs:
    """For CLIP: texts have its own start and end tokens; `first` changes nothing."""

    def __init__(self, clip: Clip) -> None:
        self.tokenizer = clip.tokenizer
        self.processor = clip.image_processor
        self.image_size: int = clip.model.config.vision_config.image_size
        self.mean = tuple(clip.image_processor.image_mean)
        self.std = tuple(clip.image_processor.image_std)
        self.positions = clip.max_tokens

    def picture(self, image: Image) -> Tensor:
        """(3, S, S) float32: the middle square."""
        from lavis_apps.clip import middle

        return self.processor(middle(image), return_tensors="pt")["pixel_values"][0]

    def caption(self, text: str) -> str:
        return text.strip()

    def tokens(self, texts: Sequence[str], first: str) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, T), right-padded, cut in front of the end token."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.positions,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        return {name: batch[name] for name in ("input_ids", "attention_mask")}
