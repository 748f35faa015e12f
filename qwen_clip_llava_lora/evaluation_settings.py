"""Options of evaluate.py, and the toy's in their place.

python qwen_clip_llava_lora/evaluate.py --toy --dry_run
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qwen_clip_llava_lora.settings import TOY_MERGED, TOY_SETS
from shared.images import ImageHandling
from shared.options import ModelOptions, ToyOptions, UserError

TOY_DATA = TOY_SETS / "cc3m_595k" / "held_out.json"
TOY_DEFAULTS = {
    "model": str(TOY_MERGED),
    "data": str(TOY_DATA),
    "limit": 200,
    "max_new_tokens": 32,
    "batch_size": 64,
}
# What adds figures or lines to a run and changes no answer in it: not part of config.json.
BESIDE_THE_ANSWERS = ("likelihood", "label_scoring", "index")


@dataclass
class EvaluateOptions(ModelOptions, ToyOptions):
    """Model and how it is asked, data, run"""

    model: str = field(
        default="", metadata={"help": "folder in the Hub layout (merge_model.py writes one), or a "
                              "downloaded id"},
    )  # fmt: skip
    adapter: str | None = field(
        default=None, metadata={"help": "adapter/ of train.py (LoRA, projector, or both)"}
    )
    image_handling: ImageHandling = field(
        default="model",
        metadata={"help": "pictures that are no square: as the model was trained, or pad, crop, "
                  "resize"},
    )  # fmt: skip
    min_pixels: int | None = field(
        default=None,
        metadata={
            "help": "Qwen-VL: pictures of fewer pixels are enlarged (none = as the adapter "
            "or model was trained)"
        },
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Qwen-VL: pictures of more pixels are made smaller (likewise)"},
    )
    max_new_tokens: int = field(default=128, metadata={"help": "longest answer in tokens"})
    data: str | None = field(
        default=None,
        metadata={"help": "held-out rows: a file or folder in any format that train.py reads"},
    )
    image_root: str | None = field(
        default=None, metadata={"help": "where the rows' picture paths start (default: the data's)"}
    )
    task: Literal["auto", "caption", "question", "label", "text"] = field(
        default="auto",
        metadata={"help": "auto: what the data's dataset.json says, else text (free answers)"},
    )
    turns: Literal["first", "all"] = field(
        default="first",
        metadata={"help": "of a conversation: its first answer, or each one behind its own true "
                  "history"},
    )  # fmt: skip
    pictures: Literal["own", "shuffled"] = field(
        default="own",
        metadata={"help": "shuffled: a control that shows each question another's picture"},
    )
    likelihood: bool = field(
        default=True, metadata={"help": "also the log-likelihood of each reference answer"}
    )
    label_scoring: Literal["match", "likelihood"] = field(
        default="match",
        metadata={"help": "of label data; likelihood: beside the match, the likeliest class name"},
    )
    limit: int = field(default=1000, metadata={"help": "rows in the sample, 0 = all"})
    seed: int = field(default=0, metadata={"help": "of the sample and of shuffled pictures"})
    batch_size: int = field(default=16, metadata={"help": "questions in one forward pass"})
    index: int | None = field(
        default=None,
        metadata={"help": "this one row of the data, everything printed, nothing written; with "
                  "--adapter base and tuned"},
    )  # fmt: skip
    output_dir: str | None = field(
        default=None,
        metadata={"help": "run folder (default: outputs/qwen_clip_llava_lora/NAME OF THE RUN)"},
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("which model? --model FOLDER, or --toy")
        if not self.data:
            raise UserError("which rows? --data PATH of a held-out part, or --toy")
        for name, bound, what in (
            ("limit", 0, "0 for all"),
            ("batch_size", 1, "at least one"),
            ("max_new_tokens", 1, "at least one"),
        ):
            if getattr(self, name) < bound:
                raise UserError(f"--{name} {getattr(self, name)}: a number, {what}")


def prepare_toy() -> None:
    """Draw the toy rows (some seconds, once)."""
    from qwen_clip_llava_lora.toy_sets import ensure_cc3m

    ensure_cc3m()
