"""Options of describe_images.py, and the toy world's defaults in their place.

python qwen_clip_llava_lora/describe_images.py --help
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.settings import RUNS, TOY_SETS
from shared.images import ImageHandling
from shared.options import DATA_ROOT, ModelOptions, ToyOptions, UserError

TOY_PROMPTS = ["toy_plain_en", "toy_plain_zh", "toy_chain_en", "toy_chain_zh"]
# Apart from config.json: they may change between two starts of one run.
NOT_THE_RUN = (
    "concurrency", "timeout", "retries", "price_in", "price_out", "validation_share", "limit",
    "endpoint", "device",
)  # fmt: skip


@dataclass
class EndpointOptions:
    """A server that speaks the OpenAI chat protocol, in the place of a local model"""

    endpoint: str | None = field(
        default=None,
        metadata={"help": "its address, up to /v1: http://localhost:8000/v1; --model is not used"},
    )
    endpoint_model: str | None = field(
        default=None, metadata={"help": "the model's name there (its key: OPENAI_API_KEY)"}
    )
    temperature: float = field(
        default=0.0, metadata={"help": "above 0 each sample of --n is drawn with a seed of its own"}
    )
    concurrency: int = field(default=8, metadata={"help": "requests under way at once"})
    timeout: float = field(default=120.0, metadata={"help": "of one try, in seconds"})
    retries: int = field(default=4, metadata={"help": "tries of a failed request after the first"})
    image_side: int = field(
        default=1344, metadata={"help": "longer sides are sent scaled down to these pixels"}
    )
    price_in: float | None = field(
        default=None, metadata={"help": "price of a million prompt tokens, pictures included"}
    )
    price_out: float | None = field(
        default=None, metadata={"help": "price of a million answer tokens, in the same currency"}
    )


@dataclass
class DescribeOptions(EndpointOptions, ModelOptions, ToyOptions):
    """Pictures, prompts and run"""

    images: str | None = field(
        default=None,
        metadata={"help": "folder of pictures, or a data file whose rows name some"},
    )
    prompts: list[str] = field(
        default_factory=lambda: ["plain_en", "multi_aspect_en"],
        metadata={"help": "templates of description_prompts/, or paths of .yaml files"},
    )
    n: int = field(
        default=1,
        metadata={"help": "samples of each template and picture: its wordings in turn"},
    )
    malformed_retries: int = field(
        default=2, metadata={"help": "times that an unusable answer is asked for again"}
    )
    limit: int = field(default=0, metadata={"help": "pictures, drawn with --seed; 0 = all"})
    validation_share: float = field(
        default=0.1, metadata={"help": "of the pictures, put into validation.json"}
    )
    seed: int = field(
        default=0, metadata={"help": "of --limit, the split, the instructions, the endpoint"}
    )
    model: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "local: folder in the Hub layout, or a downloaded id"}
    )
    adapter: str | None = field(
        default=None, metadata={"help": "adapter folder trained on the local model"}
    )
    image_handling: ImageHandling = field(
        default="model", metadata={"help": "local: pictures that are no square"}
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "local Qwen-VL: pictures of fewer pixels are enlarged"}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "local Qwen-VL: pictures of more pixels are made smaller"}
    )
    batch_size: int = field(default=8, metadata={"help": "local: prompts in one forward pass"})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "run folder (default: outputs/qwen_clip_llava_lora/describe_NAMES)"},
    )

    def __post_init__(self) -> None:
        if self.images is None:
            raise UserError("--images: which pictures? A folder, or a data file; --toy draws some")
        self.images = os.path.abspath(self.images)  # "." is another folder tomorrow
        if self.endpoint is not None:
            self.model = None
        elif self.model is None:
            raise UserError("give --model (local), or --endpoint with --endpoint_model")
        if (self.endpoint is None) != (not self.endpoint_model):
            raise UserError("--endpoint and --endpoint_model, the model's name there: give both")
        if self.endpoint is not None and self.adapter:
            raise UserError("--adapter is of the local model; a server is given its own")
        for name, least in (
            ("n", 1), ("batch_size", 1), ("concurrency", 1), ("image_side", 28), ("limit", 0),
            ("retries", 0), ("malformed_retries", 0), ("temperature", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: at least {least}")
        if not self.timeout > 0:
            raise UserError(f"--timeout {self.timeout}: seconds, more than 0")
        if not 0 <= self.validation_share < 1:
            raise UserError(f"--validation_share {self.validation_share}: from 0 to below 1")
        if not self.prompts:
            raise UserError("--prompts: at least one template")

    @property
    def model_name(self) -> str:
        return str(self.endpoint_model if self.endpoint else self.model)


def run_folder(options: DescribeOptions) -> Path:
    """Named after pictures, model and templates, so that other ones get a folder of their own."""
    if options.output_dir:
        return Path(options.output_dir)
    source = Path(str(options.images)).resolve()
    parts = [source.stem, Path(options.model_name).name, *(Path(p).stem for p in options.prompts)]
    if options.limit:
        parts.append(f"limit{options.limit}")
    return RUNS / f"describe_{'_'.join(parts)}"[:120]


def toy_defaults() -> dict[str, Any]:
    return {
        "images": str(TOY_SETS / "cc3m_595k" / "held_out.json"),
        "model": str(DATA_ROOT / "toy_models" / "llava"),
        "prompts": TOY_PROMPTS,
        "limit": 40,
        "output_dir": str(RUNS / "describe_toy"),
    }


def prepare_toy() -> None:
    from qwen_clip_llava_lora.toy_sets import ensure_cc3m

    ensure_cc3m()
