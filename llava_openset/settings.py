"""Options of evaluate.py and predict.py, and the toy world's defaults in their place.

python llava_openset/evaluate.py --help
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_openset.prompts import QUESTION, TOY_QUESTION, VARIANTS
from llava_openset.split_settings import DEFAULT_SPLIT, TOY_SPLIT
from shared.images import ImageHandling
from shared.options import DATA_ROOT, OUTPUTS, ModelOptions, ToyOptions, UserError

EXPERIMENT = "llava_openset"
RUNS = OUTPUTS / EXPERIMENT
DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
TOY_MODEL = DATA_ROOT / "toy_models" / "llava"
PROTOCOLS = ("course", "freetext", "likelihood", "two_query")
# Apart from config.json: more protocols may join a run, and its records may be scored otherwise.
NOT_THE_RUN = (
    "protocol", "freetext_variants", "threshold_criterion", "length_normalisation", "score_only",
    "report",
)  # fmt: skip


@dataclass
class AskingOptions(ModelOptions):
    """Model and how it is asked"""

    model: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": "LLaVA, BLIP-2 or Qwen-VL: folder in the Hub layout, or a downloaded id"},
    )
    adapter: str | None = field(
        default=None, metadata={"help": "PEFT adapter folder trained on this model"}
    )
    image_handling: ImageHandling = field(
        default="model",
        metadata={"help": "pictures that are no square: as the model was trained, or pad, crop, "
                  "resize"},
    )  # fmt: skip
    question: str = field(
        default=QUESTION, metadata={"help": "the core question that ends every prompt"}
    )
    max_new_tokens: int = field(default=32, metadata={"help": "longest free answer in tokens"})
    batch_size: int = field(
        default=8, metadata={"help": "prompts, and behind them class names, in one forward pass"}
    )
    length_normalisation: Literal["mean", "sum"] = field(
        default="mean",
        metadata={"help": "log-likelihood of a class name: mean of its tokens, or their sum, which "
                  "prefers short names"},
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UserError("--question is empty: what is to be asked about a picture?")
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: at least 1")


@dataclass
class EvaluateOptions(AskingOptions, ToyOptions):
    """Protocols, samples and run"""

    protocol: list[str] = field(
        default_factory=lambda: list(PROTOCOLS),
        metadata={"help": f"one or several of {', '.join(PROTOCOLS)}; default: all"},
    )
    freetext_variants: list[str] = field(
        default_factory=lambda: list(VARIANTS),
        metadata={"help": f"prompts of freetext, of {', '.join(VARIANTS)}; default: all"},
    )
    split: str = field(
        default=str(DEFAULT_SPLIT), metadata={"help": "folder of make_known_from_coco.py"}
    )
    private_images: str | None = field(
        default=None, metadata={"help": "folder of own unknown pictures, joined to the split"}
    )
    private_labels: str | None = field(
        default=None,
        metadata={"help": "their CSV (filename,label); default: private_labels.csv beside it"},
    )
    private_validation_share: float = field(
        default=0.0, metadata={"help": "of the own pictures put into the validation part"}
    )
    part: Literal["all", "test"] = field(
        default="all",
        metadata={"help": "test: the validation part is not asked, so there is no threshold"},
    )
    limit: int = field(
        default=0, metadata={"help": "samples, taken from all classes and parts in turn; 0 = all"}
    )
    seed: int = field(default=0, metadata={"help": "of --limit and of shuffled pictures"})
    pictures: Literal["own", "shuffled"] = field(
        default="own",
        metadata={"help": "shuffled: a control that shows each sample's prompt another's picture"},
    )
    threshold_criterion: Literal["youden", "known_accept_95", "normalised_accuracy"] = field(
        default="youden",
        metadata={"help": "what the threshold is best at, on the validation part alone"},
    )
    score_only: bool = field(
        default=False,
        metadata={"help": "score the records that --output_dir has; no model is loaded"},
    )
    report: Literal["en", "zh", "none"] = field(
        default="en",
        metadata={"help": "language of the page; none: no page, which report.py RUN makes later"},
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "run folder (default: outputs/llava_openset/NAME OF THE RUN)"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("private_images", "private_labels"):  # "." is another folder tomorrow
            if getattr(self, name) is not None:
                setattr(self, name, str(Path(getattr(self, name)).resolve()))
        for name, known in (("protocol", PROTOCOLS), ("freetext_variants", tuple(VARIANTS))):
            given = list(dict.fromkeys(getattr(self, name)))
            setattr(self, name, given)
            for value in given:
                if value not in known:
                    raise UserError(f"--{name} {value}: one or several of {', '.join(known)}")
            if not given:
                raise UserError(f"--{name}: at least one of {', '.join(known)}")
        if self.limit < 0:
            raise UserError(f"--limit {self.limit}: a number of samples, or 0 for all")
        if self.score_only and self.output_dir is None:
            raise UserError("--score_only: of which run? Give its folder as --output_dir")

    @property
    def run_options(self) -> dict[str, Any]:
        """The options that say which run it is: what a later --score_only takes over."""
        own = ("split", "private_images", "private_labels", "private_validation_share", "part",
               "limit", "seed", "pictures", "model", "adapter", "revision", "quantization",
               "question", "max_new_tokens", "image_handling")  # fmt: skip
        return {name: getattr(self, name) for name in own}


TOY_DEFAULTS = {
    "model": str(TOY_MODEL),
    "question": TOY_QUESTION,
    "max_new_tokens": 8,
    "batch_size": 64,
}


def prepare_toy() -> None:
    """Draws the toy COCO and makes its split where they are missing (seconds, once)."""
    from llava_openset.split_writing import ensure_toy_split

    ensure_toy_split(TOY_SPLIT)


def toy_defaults() -> dict[str, Any]:
    return {**TOY_DEFAULTS, "split": str(TOY_SPLIT)}


def path_or_none(value: str | None) -> Path | None:
    return None if value is None else Path(value)
