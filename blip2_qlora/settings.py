"""Defaults of this experiment's scripts: models, data, the toy world's in their place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.options import DATA_ROOT, OUTPUTS, ModelOptions, UserError

EXPERIMENT = "blip2_qlora"
RUNS = OUTPUTS / EXPERIMENT
DEFAULT_MODEL = "Salesforce/blip2-opt-2.7b"
DEFAULT_DATA = DATA_ROOT / "vqav2"
TOY_MODEL = DATA_ROOT / "toy_models" / "blip2_opt"
TOY_DATA = DATA_ROOT / "toy" / "vqav2"


def prepare_toy() -> None:
    """Draw the toy VQAv2 (about ten seconds, once)."""
    from shared.toy_world.build import ensure_vqav2

    ensure_vqav2(TOY_DATA)


@dataclass
class AskingOptions(ModelOptions):
    """Model and how it is asked"""

    model: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": "folder, or Hub id downloaded with python -m shared.download"},
    )
    adapter: str | None = field(
        default=None, metadata={"help": "adapter folder written by train.py; none = zero-shot"}
    )
    preset: Literal["paper", "lavis"] = field(
        default="paper",
        metadata={"help": "prompt and decoding of the paper, or of LAVIS' YAML files"},
    )
    prompt: str | None = field(
        default=None, metadata={"help": "own prompt, {} where the question stands"}
    )
    greedy: bool = field(default=False, metadata={"help": "no beam search: faster, a little worse"})
    batch_size: int = field(default=32, metadata={"help": "questions in one forward pass"})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size}: at least one question at a time")
