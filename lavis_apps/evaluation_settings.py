"""Options of evaluate.py, and how each task asks its model unless they say otherwise.

train.py validates with the same `Asking`, so that its figure is the one that evaluate.py gives.

    python lavis_apps/evaluate.py --help
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.options import UserError

TASKS = ("caption", "vqa", "retrieval", "classification", "matching", "localization")


@dataclass
class Asking:
    """How the model is asked"""

    batch_size: int = field(default=16, metadata={"help": "pictures or questions at a time"})
    num_beams: int = field(default=3, metadata={"help": "caption, vqa: beams; 1 is greedy"})
    max_length: int = field(
        default=20, metadata={"help": "caption: tokens with the prompt's (BLIP on COCO: 20)"}
    )
    min_length: int = field(
        default=5, metadata={"help": "caption: tokens with the prompt's (BLIP on COCO: 5)"}
    )
    prompt: str = field(
        default="a picture of ", metadata={"help": "caption: how every caption starts"}
    )
    inference: Literal["generate", "rank"] = field(
        default="generate", metadata={"help": "vqa: rank chooses among --candidates"}
    )
    candidates: str | None = field(
        default=None, metadata={"help": "vqa: file of possible answers, a line each, for rank"}
    )
    k_test: int = field(
        default=256,
        metadata={"help": "retrieval: the first so many by ITC are ranked again by ITM + ITC "
                  "(BLIP: 256 on COCO, 128 on Flickr30k); 0: by ITC alone"},
    )  # fmt: skip
    scoring: Literal["cosine", "itm"] = field(
        default="cosine",
        metadata={"help": "classification: cosine of picture and class, or BLIP's matching head"},
    )
    templates: str | None = field(
        default=None,
        metadata={"help": "classification: file of sentences with {} for the class, a line each"},
    )
    sentence: str = field(
        default="a {}", metadata={"help": "localization: what is looked for, {} is the category"}
    )
    block: int | None = field(
        default=None,
        metadata={"help": "localization: cross-attention block from 0 (default: LAVIS' 7th of 12)"},
    )

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "num_beams": 1, "min_length": 0, "max_length": 1, "k_test": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"--{name} {getattr(self, name)}: at least {bound}")
        if self.min_length > self.max_length:
            raise UserError(f"--min_length {self.min_length}: more than --max_length")
        if self.inference == "rank" and self.candidates is None:
            raise UserError("--inference rank needs --candidates FILE, an answer a line")
        if "{}" not in self.sentence:
            raise UserError(f"--sentence {self.sentence!r}: no {{}} where the category stands")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a file that hold something. Raises UserError where it cannot be read or has
    none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path}: no line with a word in it")
    return found
