"""Defaults of this experiment's scripts: models, data, the toy world's in their place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.options import (
    DATA_ROOT,
    OUTPUTS,
    ModelOptions,
    ToyOptions,
    UserError,
    manifest_value,
)

EXPERIMENT = "blip2_qlora"
RUNS = OUTPUTS / EXPERIMENT
DEFAULT_MODEL = "Salesforce/blip2-opt-2.7b"
DEFAULT_DATA = DATA_ROOT / "vqav2"
TOY_MODEL = DATA_ROOT / "toy_models" / "blip2_opt"
TOY_DATA = DATA_ROOT / "toy" / "vqav2"
MAX_CAPTION_TOKENS = 30  # LAVIS' caption task


def prepare_toy() -> None:
    """Draw the toy VQAv2 (about ten seconds, once)."""
    from shared.toy_world.build import ensure_vqav2

    ensure_vqav2(TOY_DATA)


def data_folder(data_root: str, data: str | None) -> Path:
    """The folder whose manifest speaks for the questions: the data root, or that of own rows."""
    return Path(data).parent if data else Path(data_root)


def synthetic(data_root: str, data: str | None, model: str) -> dict[str, bool]:
    """Whether data and model are a toy's, by their manifests."""
    return {
        "data": bool(manifest_value(data_folder(data_root, data), "synthetic")),
        "model": bool(manifest_value(model, "synthetic")),
    }


def data_hash(data_root: str, data: str | None) -> str | None:
    """A short hash of own rows' file, or the one in a data root's manifest (the real one has none).

    Kept with a run, so that a file that was edited since is not taken for the same questions.
    """
    if data is None:
        return manifest_value(data_root, "data_hash")
    try:
        return hashlib.sha256(Path(data).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{data}: cannot be read: {error.strerror or error}") from error


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


@dataclass
class BatchOptions:
    """Speed"""

    batch_size: int = field(default=32, metadata={"help": "questions in one forward pass"})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size}: at least one question at a time")


@dataclass
class CaptionOptions:
    """Captions"""

    caption_min_tokens: int = field(
        default=8, metadata={"help": "shortest caption (LAVIS: 8 on COCO), at most 30"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.caption_min_tokens <= MAX_CAPTION_TOKENS:
            raise UserError(
                f"--caption_min_tokens {self.caption_min_tokens}: between 0 and "
                f"{MAX_CAPTION_TOKENS}, the longest caption"
            )


@dataclass
class EvaluateOptions(AskingOptions, BatchOptions, CaptionOptions, ToyOptions):
    """Questions and run"""

    task: Literal["vqa", "caption"] = field(
        default="vqa", metadata={"help": "caption: COCO's captions instead of VQAv2's questions"}
    )
    caption_prompt: str = field(
        default="",
        metadata={"help": "how every caption starts; the paper has none zero-shot, 'a photo of' "
                  "where it fine-tunes on COCO"},
    )  # fmt: skip
    data_root: str = field(
        default=str(DEFAULT_DATA),
        metadata={"help": "folder in the official VQAv2 layout; COCO's captions lie there too"},
    )
    split: Literal["train2014", "val2014", "test2015", "karpathy_test", "karpathy_val"] = field(
        default="val2014",
        metadata={"help": "test2015 has no annotations: results file only; karpathy_*: captions of "
                  "DATA_ROOT/dataset_coco.json"},
    )  # fmt: skip
    data: str | None = field(
        default=None,
        metadata={"help": "own rows instead: JSONL or CSV with image, question, answer"},
    )
    limit: int = field(default=1000, metadata={"help": "questions in the sample, 0 = all"})
    seed: int = field(default=0, metadata={"help": "of the sample and of shuffled pictures"})
    pictures: Literal["own", "shuffled"] = field(
        default="own",
        metadata={"help": "shuffled: a control that shows each question another's picture"},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "run folder (default: outputs/blip2_qlora/NAME OF THE RUN)"}
    )

    def __post_init__(self) -> None:
        BatchOptions.__post_init__(self)
        CaptionOptions.__post_init__(self)
        if self.limit < 0:
            raise UserError(f"--limit {self.limit}: a number of questions, or 0 for all")
        if self.task == "caption" and self.data:
            raise UserError("--data is rows of questions; predict.py captions own pictures")
        if self.task == "caption" and self.prompt:
            raise UserError("--prompt asks a question; a caption's start is --caption_prompt")
        if self.task == "vqa" and self.caption_prompt:
            raise UserError("--caption_prompt is for --task caption")
        if self.task == "vqa" and self.split.startswith("karpathy"):
            raise UserError(f"--split {self.split} is for --task caption")


@dataclass
class TrainOptions(ModelOptions, ToyOptions):
    """Data and adapter"""

    model: str = field(default=DEFAULT_MODEL, metadata={"help": "folder or downloaded Hub id"})
    quantization: Literal["none", "int8", "nf4"] = field(
        default="nf4", metadata={"help": "nf4 = QLoRA; none = LoRA on full-precision weights"}
    )
    data_root: str = field(
        default=str(DEFAULT_DATA), metadata={"help": "folder in the official VQAv2 layout"}
    )
    data: str | None = field(
        default=None, metadata={"help": "own rows: JSONL or CSV with image, question, answer"}
    )
    limit: int = field(default=0, metadata={"help": "train questions drawn with --seed, 0 = all"})
    validation_questions: int | None = field(
        default=None,
        metadata={
            "help": "held out by picture from the train split, 0 = none (default: 500, of fewer "
            "than 2,500 questions a fifth)"
        },
    )
    questions_per_picture: int = field(
        default=6, metadata={"help": "at most so many questions share one encoded picture"}
    )
    preset: Literal["paper", "lavis"] = field(
        default="paper", metadata={"help": "whose prompt is learned"}
    )
    prompt: str | None = field(default=None, metadata={"help": "own prompt, {} for the question"})
    lora_rank: int = field(default=16, metadata={"help": "rank r of the LoRA matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale is alpha / r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before LoRA"})
    train_qformer: bool = field(default=False, metadata={"help": "LoRA on the Q-Former too"})
    batch_size: int | None = field(
        default=None,
        metadata={"help": "pictures per device and step: alias of --per_device_train_batch_size"},
    )

    def __post_init__(self) -> None:
        least = {
            "questions_per_picture": 1, "lora_rank": 1, "lora_alpha": 1, "limit": 0,
            "validation_questions": 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"--{name} {value}: at least {bound}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout}: at least 0, less than 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size}: at least one picture at a time")
