"""Prompts that a language model has read: its cache, which rows of it go on, padding of ids.

Used through `shared.vision_language`.
Shapes: B prompts, T tokens, C continuations, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class State:
    """Prompts that the language model has read, and what it says next."""

    cache: Any
    logits: Tensor  # (B, V) of the next token
    mask: Tensor  # (B, T): the prompt and what followed; T5: the encoder's
    following: Tensor | None  # (B,) position of the next token; T5 counts by itself
    encoded: Tensor | None = None  # (B, T, D) T5's encoder output

    def rows(self, index: Tensor) -> State:
        """The rows of `index` (C,), each as often as it stands there; this state stays as it is."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            cache=cache_rows(self.cache, index),
            logits=self.logits[index],
            mask=self.mask[index],
            following=pick(self.following),
            encoded=pick(self.encoded),
        )


def cache_rows(cache: Any, index: Tensor) -> Any:
    """A cache of chosen rows. Its layers replace keys and values and never write into them, so
    copies of the layers alone leave the original whole, without a copy of the whole prompt."""
    from transformers import EncoderDecoderCache

    if isinstance(cache, EncoderDecoderCache):
        own, cross = cache.self_attention_cache, cache.cross_attention_cache
        return EncoderDecoderCache(cache_rows(own, index), cache_rows(cross, index))
    chosen = copy(cache)
    chosen.layers = [copied_layer(layer) for layer in cache.layers]
    chosen.reorder_cache(index)
    return chosen


def copied_layer(layer: Any) -> Any:
    """A linear-attention layer keeps its states in dictionaries, which must not be shared; what is
    then written into are the reordered states, new tensors."""
    chosen = copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(chosen, name, dict(value))
    return chosen


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> input_ids and attention_mask, both (B, longest row)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids and which of them are real, both (B, longest row)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows])
    real = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, real
