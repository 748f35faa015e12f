"""Where in a picture a text is seen: Grad-CAM on BLIP's matching model, as LAVIS computes it.

The positive ITM logit is differentiated with respect to the attention that the text's tokens pay to
the picture's patches in one cross-attention block. Attention times the positive part of that
gradient, averaged over heads, is a token's map; the mean over the text's tokens (without [ENC] and
[SEP]) is the text's (LAVIS, `compute_gradcam`:
https://github.com/salesforce/LAVIS/blob/main/lavis/models/blip_models/blip_image_text_matching.py;
Selvaraju et al. 2017, arXiv 1610.02391). There the picture must be 384 pixels wide and the text
fit into 35 tokens; here the grid is the tower's, longer texts are cut and it is said.

    Localizer.open("Salesforce/blip-itm-base-coco").localize(image, "a girl with her dog")
    python lavis_apps/predict.py --task localization --image PICTURE --text TEXT [--toy]

Reads a model folder; writes nothing. heat_maps.py draws the maps, pointing.py scores them.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.blip import MAX_TEXT_TOKENS, Blip, load_blip
from lavis_apps.pictures import each_as_rgb
from lavis_apps.processors import blip_caption
from lavis_apps.settings import PUBLISHED_MODELS
from shared.options import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

DEFAULT_DEPTH = 7 / 12  # LAVIS takes the 7th of BLIP's 12 blocks
BATCH_SIZE = 16
JOINING = frozenset("'’-")  # tokens of their own in BERT, but "it's" and "t-shirt" are words


@dataclass(frozen=True)
class WordMap:
    """A word of the text as it was written, and its map: the mean of its word pieces' maps."""

    word: str
    grid: np.ndarray  # (rows, columns) of patches, float32, 0 or more


@dataclass(frozen=True)
class Localization:
    """The maps of a text on a picture. Their unit is arbitrary: compare places, not pictures."""

    average: np.ndarray  # (rows, columns), the mean over the text's tokens; last block: [ENC]'s
    words: list[WordMap]  # in the text's order, no punctuation; none in the last block
    probability: float  # ITM: that text and picture match
    cut: bool  # whether tokens were cut off the text's end


@dataclass
class Localizer:
    """A BLIP for matching that shows where it sees a text."""

    blip: Blip

    @classmethod
    def open(
        cls,
        model: str | Path = PUBLISHED_MODELS["matching"],
        *,
        device: str = "auto",
        dtype: str = "auto",
        adapter: str | Path | None = None,
    ) -> Localizer:
        """Raises MissingError and UserError as `load_blip`."""
        return cls(load_blip(model, kind="matching", device=device, dtype=dtype, adapter=adapter))

    @property
    def blocks(self) -> int:
        """How many blocks can be asked, 0 to `blocks` - 1."""
        return self.blip.model.config.text_config.num_hidden_layers

    def localize(
        self,
        image: Image | Path | str,
        text: str,
        *,
        block: int | None = None,
        max_tokens: int = MAX_TEXT_TOKENS,
    ) -> Localization:
        """One text on one picture; see `localize_pairs`."""
        return self.localize_pairs([image], [text], block=block, max_tokens=max_tokens)[0]

    def localize_pairs(
        self,
        images: Sequence[Image | Path | str],
        texts: Sequence[str],
        *,
        block: int | None = None,
        max_tokens: int = MAX_TEXT_TOKENS,
        batch_size: int = BATCH_SIZE,
    ) -> list[Localization]:
        """Text i on picture i (PIL or file). One given several times in a batch is encoded once.

        `block` counts from 0, LAVIS' app from 1 (None: its 7th of 12, in other depths the one at
        the same height). In the last block, which LAVIS does not offer, only [ENC] reaches the
        logit: all words' maps would be 0, so `average` is [ENC]'s map there and `words` is empty.
        `max_tokens` counts [ENC] and [SEP]; up to the model's positions, 512 in BLIP's. Raises
        UserError for a text without a word, a block or number of tokens that the model lacks,
        ImageError for a broken file.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures, {len(texts)} texts: one text a picture")
        block = self._block(block)
        positions = self.blip.model.config.text_config.max_position_embeddings
        if not 3 <= max_tokens <= positions:
            raise UserError(f"max_tokens {max_tokens}: this model takes 3 to {positions}")
        read = {text: read_text(self.blip.tokenizer, text, max_tokens) for text in set(texts)}
        found: list[Localization] = []
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            chunk = [read[text] for text in texts[start:stop]]
            pictures = each_as_rgb(images[start:stop])
            found += self._localize_batch(pictures, chunk, block, max_tokens)
        return found

    def _localize_batch(
        self, images: Sequence[Image], texts: Sequence[ReadText], block: int, max_tokens: int
    ) -> list[Localization]:
        import torch

        unique = {id(image): image for image in images}
        rows = [list(unique).index(id(image)) for image in images]
        # a caller's inference_mode would make tensors that autograd cannot take
        with torch.inference_mode(False), torch.no_grad():
            states = self.blip.encode_images(list(unique.values()))
            tokens = self.blip.tokens(
                [text.processed for text in texts], first="[ENC]", max_length=max_tokens
            )
            maps, probabilities = grad_cam(self.blip, states[rows], tokens, block)
        vision = self.blip.model.config.vision_config
        shape = grid_shape(maps.shape[2], vision.image_size, vision.patch_size)
        grids = maps.reshape(*maps.shape[:2], *shape).cpu().numpy()
        found = []
        for text, grid, probability in zip(texts, grids, probabilities.tolist(), strict=True):
            if block == self.blocks - 1:
                found.append(Localization(grid[0], [], probability, text.cut))
                continue
            own = grid[1 : 1 + text.count]  # without [ENC], [SEP] and padding
            words = [WordMap(word, own[pieces].mean(axis=0)) for word, pieces in text.words]
            found.append(Localization(own.mean(axis=0), words, probability, text.cut))
        return found

    def _block(self, block: int | None) -> int:
        if block is None:
            return default_block(self.blocks)
        if not 0 <= block < self.blocks:
            raise UserError(f"block {block}: this model has 0 to {self.blocks - 1}")
        return block


def grad_cam(
    blip: Blip, states: Tensor, tokens: dict[str, Tensor], block: int
) -> tuple[Tensor, Tensor]:
    """Maps (B, T, N - 1) of every token over the patches, and the ITM probabilities (B,).

    `states` (B, N, D) are pictures, `tokens` texts that begin with [ENC]; row i of one with row i
    of the other, and no row depends on another. Float32, whatever the model's dtype. No parameter
    gets a gradient: only the way from the logit to the attention is gone back.
    """
    import torch

    with torch.enable_grad():
        # The leaf that makes autograd record, also where the weights are frozen.
        leaf = states.detach().requires_grad_()
        fused = blip.fused_states(leaf, tokens, output_attentions=True)
        logits = blip.model.itm_head(fused.last_hidden_state[:, 0])  # (B, 2)
        attention = fused.cross_attentions[block]  # (B, heads, T, N)
        # summed: a row's logit depends on no other row's attention
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), attention)
    seen = attention.detach().float() * gradient.float().clamp(min=0)
    probabilities = logits.detach().float().softmax(dim=-1)[:, 1]
    return seen.mean(dim=1)[:, :, 1:], probabilities  # column 0: the picture's [CLS]


def default_block(blocks: int) -> int:
    """The index of the block at the height of LAVIS' 7th of 12 (13 of 24, 1 of 3), not the last."""
    return max(0, min(math.ceil(DEFAULT_DEPTH * blocks) - 1, blocks - 2))


def grid_shape(
    patches: int, image_size: int | Sequence[int], patch_size: int | Sequence[int]
) -> tuple[int, int]:
    """(rows, columns) of a tower with so many patches, [CLS] not counted.

    As the config's sizes (a number, or height and width) say; a square where they say otherwise, as
    when positions are interpolated for another size. Raises ValueError when neither fits.
    """
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    patch_height, patch_width = (patch_size,) * 2 if isinstance(patch_size, int) else patch_size
    rows, columns = height // patch_height, width // patch_width
    if rows * columns == patches:
        return rows, columns
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches: neither {rows} x {columns} nor a square")
    return side, side


@dataclass(frozen=True)
class ReadText:
    """A text as the model reads it. `words` point at tokens, counted from the first behind [ENC]"""

    processed: str
    count: int  # tokens that were kept, without [ENC] and [SEP]
    words: list[tuple[str, list[int]]]
    cut: bool


def read_text(tokenizer: Any, text: str, max_tokens: int) -> ReadText:
    """Processed as captions are (`blip_caption`, but cut by tokens alone), with its words' tokens.

    Raises UserError where nothing is left of it.
    """
    processed = blip_caption(text, max_words=max(1, len(text)))
    encoded = tokenizer(
        processed, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    offsets, numbers = encoded["offset_mapping"], encoded.word_ids()
    if not offsets:
        raise UserError(f"{text[:80]!r}: no word to look for; give a text such as 'a red car'")
    count = min(len(offsets), max_tokens - 2)
    words = group_words(processed, offsets[:count], numbers[:count])
    return ReadText(processed, count, words, cut=len(offsets) > count)


def group_words(
    text: str, offsets: Sequence[tuple[int, int]], numbers: Sequence[int | None]
) -> list[tuple[str, list[int]]]:
    """The words of a text, each with its tokens' indices.

    Token i is `text[slice(*offsets[i])]` and a piece of the tokenizer's word `numbers[i]`.
    Apostrophes and hyphens join what stands around them; all punctuation at a word's ends is left
    out, so a comma belongs to no word.
    """
    groups: list[list[int]] = []
    for i, (start, end) in enumerate(offsets):
        touches = i > 0 and offsets[i - 1][1] == start
        joins = touches and (text[start:end] in JOINING or text[slice(*offsets[i - 1])] in JOINING)
        if i > 0 and (numbers[i] == numbers[i - 1] or joins):
            groups[-1].append(i)
        else:
            groups.append([i])
    words = []
    for group in groups:
        spoken = [i for i in group if not _is_punctuation(text[slice(*offsets[i])])]
        if spoken:
            pieces = group[group.index(spoken[0]) : group.index(spoken[-1]) + 1]
            words.append((text[offsets[pieces[0]][0] : offsets[pieces[-1]][1]], pieces))
    return words


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in text)
