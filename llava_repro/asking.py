"""How a LLaVA is asked: options of every script that asks one, decoding, what a visitor may type.

Used by predict.py, chat.py, demo.py and evaluate.py, so that they load and decode alike. No torch:
`--help` and plans answer at once. Reads and writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llava_repro.settings import TOY_LLAVA
from shared.conversations import IMAGE_TAG, escape_tags
from shared.images import ImageHandling
from shared.options import ModelOptions, UserError, manifest_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
TOY_DEFAULTS = {"model": str(TOY_LLAVA)}


@dataclass(frozen=True)
class Decoding:
    """How answers are generated; temperature 0 takes the likeliest token (greedy, or beams).

    LLaVA's evaluation is greedy with 128 new tokens, its chat samples (0.2, top_p 0.7, 512).
    Raises UserError for values that mean nothing.
    """

    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"--temperature {self.temperature}: 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p {self.top_p}: above 0, at most 1")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError("--num_beams searches, --temperature samples: give one of them")

    def generate_kwargs(self) -> dict[str, Any]:
        """For transformers' `generate`, complete: a model folder's generation_config.json (Qwen's
        samples, with a repetition penalty) must not decide what an evaluation measures."""
        sampling = self.temperature > 0
        return {
            "num_beams": self.num_beams,
            "do_sample": sampling,
            "temperature": self.temperature if sampling else 1.0,
            "top_p": self.top_p if sampling else 1.0,
            "top_k": 0 if sampling else 50,  # 0: none; 50 is the default, ignored without sampling
            "repetition_penalty": 1.0,
            "length_penalty": 1.0,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": 0,
        }


@dataclass
class AskingOptions(ModelOptions):
    """Model and how it is asked"""

    model: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": "folder in the Hub layout (convert.py writes it), or a downloaded id"},
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": "adapter/ of train.py (LoRA and projector); its base is --model if it "
                  "was trained on that, else the parts that it names"},
    )  # fmt: skip
    template: str | None = field(
        default=None,
        metadata={"help": "named prompt of templates.py; none = the adapter's or the tokenizer's"},
    )
    image_handling: ImageHandling = field(
        default="model",
        metadata={"help": "pictures that are no square: as the model was trained, or pad, crop, "
                  "resize"},
    )  # fmt: skip


@dataclass
class DecodingOptions:
    """Decoding"""

    num_beams: int = field(default=1, metadata={"help": "beams of a search; 1 = none"})
    temperature: float = field(default=0.0, metadata={"help": "0 = greedy, above 0 = sampling"})
    top_p: float = field(default=1.0, metadata={"help": "share of the probability sampled from"})
    max_new_tokens: int = field(default=128, metadata={"help": "longest answer in tokens"})
    seed: int = field(default=0, metadata={"help": "of sampling"})

    def decoding(self) -> Decoding:
        """Raises UserError for values that mean nothing."""
        return Decoding(self.num_beams, self.temperature, self.top_p, self.max_new_tokens)


def is_synthetic(options: AskingOptions) -> bool:
    """Whether the model, or its adapter, is a toy by its manifest."""
    folders = filter(None, (options.model, options.adapter))
    return any(manifest_value(folder, "synthetic") for folder in folders)


def human_text(text: str, n_images: int, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """A question as a human turn: one `<image>` a line for each picture, then what was typed.

    What stands in the text stays text: a typed `<image>` or end token gets a blank inside.
    """
    return f"{IMAGE_TAG}\n" * n_images + escape_tags(text, tokenizer)
