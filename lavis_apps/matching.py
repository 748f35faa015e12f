"""Do these pictures and these texts belong together? ITM and ITC of m pictures x n texts.

    matcher = Matcher.open("Salesforce/blip-itm-base-coco")
    matches = matcher.match(["dog.jpg", "beach.jpg"], ["a dog runs", "the sea"])
    matches.itm, matches.itc     # (2, 2) probabilities, (2, 2) cosines

ITM (image-text matching): the text encoder reads the text while it attends to the picture, and a
head of two classes says "they match" with a probability. Each pair is judged by itself; the other
texts change nothing. ITC (image-text contrast): picture and text are encoded apart, the cosine of
their features is between -1 and 1, and only means something beside that of other pairs; it costs
nothing per pair, which is why a search sorts by it first. BLIP-2's is the largest cosine of the
text with any of the picture's 32 queries. A CLIP has ITC alone.

In ITM BLIP's text begins with [ENC], as the weights were trained; transformers' own forward of
`BlipForImageTextRetrieval` sends [CLS], which gives other probabilities (tested). Texts go through
`blip_caption` and are cut at 35 tokens (BLIP-2: 32; CLIP: its positions).

Each picture is encoded once; pictures go by `batch_size`, pairs too, so memory does not grow with
m x n. Reads model folders and pictures; writes nothing.

    python lavis_apps/predict.py --task matching --image photos/ --text "a dog" "the sea" [--toy]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_apps.features import (
    BATCH_SIZE,
    BATCH_TEXTS,
    Family,
    as_family,
    as_list,
    batches,
    checked_texts,
    open_family,
)
from lavis_apps.pictures import as_rgb
from lavis_apps.settings import default_model
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lavis_apps.blip import Blip

PAIRS = 32  # pairs that the matching head judges at once


@dataclass(frozen=True)
class Matches:
    """Row i is picture i, column j text j; float32 on the CPU."""

    itm: Tensor | None  # (m, n) probabilities; None: the family has no matching head
    itc: Tensor  # (m, n) cosines
    cut_texts: tuple[int, ...] = ()  # numbers (from 0) of texts whose end the model did not see


@dataclass
class Matcher:
    """A model with ITC and, but for CLIP, ITM."""

    family: Family

    @classmethod
    def open(
        cls,
        model: str | Path = "",
        *,
        device: str = "auto",
        dtype: str = "auto",
        adapter: str | Path | None = None,
    ) -> Matcher:
        """Of a model folder or a downloaded Hub id. Raises MissingError, UserError."""
        name = model or default_model("matching")
        return cls(open_family(name, device=device, dtype=dtype, adapter=adapter))

    @classmethod
    def of(cls, model: Blip | Family) -> Matcher:
        """Of a loaded model."""
        return cls(as_family(model))

    def match(
        self,
        images: Sequence[Image | Path | str] | Image | Path | str,
        texts: Sequence[str] | str,
        *,
        itm: bool = True,
        batch_size: int = BATCH_SIZE,
    ) -> Matches:
        """Every picture (PIL or file) with every raw text; `itm=False` leaves the slow head out.

        Raises UserError for no picture, no text or an empty one, ImageError for a broken file.
        """
        import torch

        pictures = as_list(images)
        if not pictures:
            raise UserError("no picture given: at least one is needed")
        checked = checked_texts(texts, self.family.process)
        cut = self.family.cut_texts(as_list(texts))
        itm_rows, itc_rows = [], []
        with torch.no_grad():
            features = text_features(self.family, checked)
            for batch in batches(pictures, batch_size):
                read = self.family.read_images([as_rgb(picture) for picture in batch])
                itc_rows.append(self.family.cosines(read, features).cpu())
                if itm and read.states is not None:
                    itm_rows.append(match_probabilities(self.family, read.states, checked))
        return Matches(
            itm=torch.cat(itm_rows) if itm_rows else None,
            itc=torch.cat(itc_rows),
            cut_texts=tuple(i for i, is_cut in enumerate(cut) if is_cut),
        )


def text_features(family: Family, processed: Sequence[str]) -> Tensor:
    """(n, P) float32 of length one, on the model's device."""
    import torch

    return torch.cat([family.read_texts(part).vector for part in batches(processed, BATCH_TEXTS)])


def match_logits(family: Family, states: Tensor, processed: Sequence[str]) -> Tensor:
    """(m, n, 2) float32 on the CPU: the matching head's logits of every pair, "they match" last."""
    import torch

    pairs = [(i, text) for i in range(len(states)) for text in processed]
    logits = [
        family.match_logits(states[[i for i, _ in part]], [text for _, text in part]).float().cpu()
        for part in batches(pairs, PAIRS)
    ]
    return torch.cat(logits).view(len(states), len(processed), 2)


def match_probabilities(family: Family, states: Tensor, processed: Sequence[str]) -> Tensor:
    """(m, n) float32 on the CPU: the ITM probability of every pair."""
    return match_logits(family, states, processed).softmax(-1)[..., 1]
