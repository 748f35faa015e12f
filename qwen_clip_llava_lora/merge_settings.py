"""Options of merge_model.py and merge_adapter.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qwen_clip_llava_lora.settings import RUNS, TOY_CLIP, TOY_MERGED, TOY_QWEN2
from shared.options import ToyOptions, UserError


@dataclass
class MergeOptions(ToyOptions):
    """What to merge"""

    language_model: str | None = field(
        default=None, metadata={"help": "folder or downloaded Hub id of a chat model"}
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "folder or downloaded Hub id: CLIP, SigLIP, Chinese-CLIP"}
    )
    output_dir: str | None = field(default=None, metadata={"help": "new folder of the LLaVA"})
    vision_feature_layer: int = field(
        default=-2, metadata={"help": "hidden state of the tower that is the picture (-1: last)"}
    )
    projector: str | None = field(
        default=None,
        metadata={"help": "an earlier run or its projector.safetensors; none = drawn from --seed"},
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Jinja file in the place of the tokenizer's own template"}
    )
    pad_to_multiple_of: int = field(
        default=64, metadata={"help": "embedding rows end at a multiple of this"}
    )
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = field(
        default="keep", metadata={"help": "of the written weights; keep = as each part is stored"}
    )
    shard_gb: float = field(default=2.0, metadata={"help": "largest size of one weight file"})
    seed: int = field(default=0, metadata={"help": "of the fresh projector"})
    no_check: bool = field(
        default=False, metadata={"help": "do not load the result and compare it with its sources"}
    )
    device: str = field(default="auto", metadata={"help": "of the check: auto, cpu, cuda"})

    def __post_init__(self) -> None:
        if not 0 < self.shard_gb < float("inf"):
            raise UserError(f"--shard_gb {self.shard_gb}: must be above 0")
        if self.pad_to_multiple_of < 1:
            raise UserError(f"--pad_to_multiple_of {self.pad_to_multiple_of}: at least 1")


def toy_defaults() -> dict[str, Any]:
    from shared.toy_world.clip import READ_LAYER

    return {
        "language_model": str(TOY_QWEN2),
        "vision_tower": str(TOY_CLIP),
        "output_dir": str(TOY_MERGED),
        "vision_feature_layer": READ_LAYER,
    }


@dataclass
class MergeAdapterOptions(ToyOptions):
    """What to merge"""

    adapter: str | None = field(
        default=None, metadata={"help": "adapter/ folder of a run, or the run"}
    )
    model: str | None = field(
        default=None, metadata={"help": "its base; none = what the adapter's manifest names"}
    )
    output_dir: str | None = field(default=None, metadata={"help": "new folder of the whole model"})
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = field(
        default="keep", metadata={"help": "of the written weights; keep = as in the base"}
    )
    shard_gb: float = field(default=2.0, metadata={"help": "largest size of one weight file"})
    max_difference: float | None = field(
        default=None,
        metadata={
            "help": "largest logit difference as a share of the largest logit; none = 1e-4 where "
            "all is float32, 1e-2 with float16, 5e-2 with bfloat16"
        },
    )
    no_check: bool = field(
        default=False, metadata={"help": "do not compare base with adapter and merged model"}
    )
    device: str = field(default="auto", metadata={"help": "of the comparison: auto, cpu, cuda"})

    def __post_init__(self) -> None:
        if not 0 < self.shard_gb < float("inf"):
            raise UserError(f"--shard_gb {self.shard_gb}: must be above 0")


def toy_adapter_defaults() -> dict[str, Any]:
    return {
        "adapter": str(RUNS / "toy_course" / "adapter"),
        "output_dir": str(RUNS / "toy_course_merged"),
    }
