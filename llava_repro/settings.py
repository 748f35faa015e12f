"""Options of training, and where models and data lie; the toy world's in their place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared.images import published_name, trained_aspect_ratio
from shared.options import DATA_ROOT, OUTPUTS, REPO_ROOT, MissingError, ToyOptions, UserError

EXPERIMENT = "llava_repro"
RUNS = OUTPUTS / EXPERIMENT
TOY_DATA = DATA_ROOT / "toy" / "llava"
TOY_CLIP = DATA_ROOT / "toy_models" / "clip"
TOY_QWEN2 = DATA_ROOT / "toy_models" / "qwen2"
TOY_LLAVA = DATA_ROOT / "toy_models" / "llava"
ARCHITECTURES = Path(__file__).with_name("architectures.json")
# LLaVA's own evaluation asks v1.5 with conv_vicuna_v1 (llava/eval/model_vqa_loader.py, --conv-mode)
PUBLISHED_TEMPLATES = {
    "llava-hf/llava-1.5-7b-hf": "vicuna_v1",
    "llava-hf/llava-1.5-13b-hf": "vicuna_v1",
}

# What may train in which stage (LLaVA, section 4.2; "full" also opens the vision tower).
TRAIN_TYPES = {
    "pretrain": ("freeze_vision_and_llm",),
    "finetune": ("freeze_vision", "lora", "qlora", "full"),
}

# LLaVA's scripts: AdamW without decay, 3 % warm-up, cosine. Rates and batches are in configs/.
TRAINING_DEFAULTS = {
    "output_dir": "",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 2,
    "report_to": "none",
    "dataloader_num_workers": 4,
    "seed": 0,
}


def prepare_toy() -> None:
    """Draw the toy conversations and their pictures (some seconds, once)."""
    from shared.toy_world.conversations import ensure_llava

    ensure_llava(TOY_DATA)


def from_root(path: str | None) -> str | None:
    """A path as given; if nothing is there, the one of that name under the repository root.

    So that the presets' `data/llava/...` is found from inside the experiment's folder too.
    """
    if path is None or Path(path).is_absolute() or Path(path).exists():
        return path
    at_root = REPO_ROOT / path
    return str(at_root) if at_root.exists() else path


def toy_defaults(stage: str, whole_model: bool = False) -> dict[str, Any]:
    """The toy's parts, data and settings of a stage.

    With a `whole_model` of the user's only data and settings: it has towers and projector, and its
    run is another one than the toy's own.
    """
    from llava_repro.toy_recipe import TRAINING, VISION_FEATURE_LAYER

    parts = {
        "vision_tower": str(TOY_CLIP),
        "language_model": str(TOY_QWEN2),
        "vision_feature_layer": VISION_FEATURE_LAYER,
        "projector": None if stage == "pretrain" else str(RUNS / "toy_pretrain"),
        "output_dir": str(RUNS / f"toy_{stage}"),
    }
    return {
        **({} if whole_model else parts),
        "data": str(TOY_DATA / f"{stage}.jsonl"),
        "template": "plain" if stage == "pretrain" else None,
        "save_model": True,
        "dataloader_num_workers": 1,  # batches are made on the second core
        **TRAINING[stage],
    }


def is_given(argv: list[str], name: str) -> bool:
    """Whether a flag with a value is on the command line."""
    return any(token == f"--{name}" or token.startswith(f"--{name}=") for token in argv)


def stage_of(argv: list[str]) -> str:
    """The stage as argparse will read it: it decides the toy's other defaults."""
    stage = "pretrain"
    for i, token in enumerate(argv):
        if token.startswith("--stage="):
            stage = token.partition("=")[2]
        elif token == "--stage" and i + 1 < len(argv):
            stage = argv[i + 1]
    return stage if stage in TRAIN_TYPES else "pretrain"


def is_padded(model: str | None) -> bool:
    """Whether this whole LLaVA was trained with padded pictures, as far as it is here."""
    from shared.loading import model_folder

    if model is None:
        return False
    try:
        return trained_aspect_ratio(model_folder(model)) == "pad"
    except MissingError:
        return False


def base_parts(model: str, revision: str | None, adapter: str | None) -> dict[str, str]:
    """What answers: {"model": a whole LLaVA}, or an adapter's {"vision_tower", "language_model"}.

    Under an adapter it is `model` if that is the whole LLaVA (or the language model) that it was
    trained on, else what its manifest names; whoever loads, plans or records a run asks here, so
    that the three agree. Raises UserError for a folder that is no adapter.
    """
    from shared.loading import check_adapter_folder

    manifest = check_adapter_folder(Path(adapter)) if adapter else {}
    recorded = manifest.get("parts", {})
    names = ("model",) if "model" in recorded else ("vision_tower", "language_model")
    base = {name: from_root(recorded[name]) or "" for name in names if name in recorded}
    if not base:
        return {"model": model}
    if is_base(model, revision, manifest):
        base[names[-1]] = model
    return base


def template_name(template: str | None, adapter: str | None, folder: Path | None) -> str | None:
    """Which template of templates.py writes the prompts; None: the tokenizer's chat template.

    --template, else the adapter's, else what a published LLaVA in `folder` was trained with: the
    chat template that stands there lacks its system text and an answer's end.
    """
    from shared.loading import check_adapter_folder

    named = template or (check_adapter_folder(Path(adapter)).get("template") if adapter else None)
    if named is None and folder is not None:
        named = PUBLISHED_TEMPLATES.get(published_name(folder, PUBLISHED_TEMPLATES) or "")
    return named


def is_base(model: str, revision: str | None, manifest: dict[str, Any]) -> bool:
    """Whether an adapter was trained on this folder: a whole LLaVA, or its language model."""
    from shared.loading import fingerprint, model_folder

    try:
        return fingerprint(model_folder(model, revision)) == manifest.get("base_fingerprint")
    except MissingError:
        return False


def base_folder(base: dict[str, str], model: str, revision: str | None) -> Path:
    """The folder of a base's text side: config, tokenizer, fingerprint. `revision` is --model's."""
    from shared.loading import model_folder

    name = base.get("model") or base["language_model"]
    return model_folder(name, revision if name == model else None)


@dataclass
class LlavaParts:
    """Model: a whole LLaVA, or the parts that one is made from"""

    model: str | None = field(
        default=None, metadata={"help": "a whole LLaVA in the Hub layout (convert.py writes it)"}
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "CLIP, SigLIP or Chinese-CLIP: folder or downloaded id"}
    )
    language_model: str | None = field(
        default=None, metadata={"help": "causal language model: folder or downloaded Hub id"}
    )
    projector_type: str = field(
        default="mlp2x_gelu", metadata={"help": "linear, mlp2x_gelu, mlpNx_gelu, identity"}
    )
    projector: str | None = field(
        default=None, metadata={"help": "projector of stage 1: its run folder, or a file"}
    )
    vision_feature_layer: int = field(
        default=-2, metadata={"help": "which of the tower's hidden states is the picture"}
    )
    template: str | None = field(
        default=None,
        metadata={"help": "named prompt of templates.py (plain, vicuna_v1, ...); none = the chat "
                  "template of the tokenizer"},
    )  # fmt: skip
    device: str = field(default="auto", metadata={"help": "auto or cpu; GPUs by the launcher"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "of frozen weights and computation; auto: bfloat16 where the GPU has it"},
    )


@dataclass
class TrainOptions(LlavaParts, ToyOptions):
    """What trains, and on what"""

    stage: Literal["pretrain", "finetune"] = field(
        default="pretrain", metadata={"help": "1: the projector; 2: the language model too"}
    )
    train_type: str | None = field(
        default=None,
        metadata={"help": "pretrain: freeze_vision_and_llm; finetune: freeze_vision (default), "
                  "lora, qlora, full"},
    )  # fmt: skip
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "of the projector; none = --learning_rate"}
    )
    lora_rank: int = field(default=64, metadata={"help": "rank r of the LoRA matrices"})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA scale is alpha / r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before LoRA"})
    data: str | None = field(
        default=None, metadata={"help": "conversations: LLaVA JSON, JSON lines or Parquet"}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "folder of the pictures; none = that of --data"}
    )
    limit: int = field(default=0, metadata={"help": "rows drawn with --seed, 0 = all"})
    n_samples: int = field(
        default=0, metadata={"help": "rows that --dry_run counts with where --data is not there"}
    )
    validation_samples: int = field(
        default=200, metadata={"help": "rows held out by picture for the validation loss, 0 = none"}
    )
    max_length: int = field(
        default=2048, metadata={"help": "tokens of a sample; text is shortened, pictures never"}
    )
    image_aspect_ratio: Literal["square", "pad"] | None = field(
        default=None,
        metadata={"help": "square: the tower's own resizing and cropping; pad: a mean-coloured "
                  "square around the picture; none = as --model was trained, else square"},
    )  # fmt: skip
    group_by_modality_length: bool = field(
        default=False, metadata={"help": "batches of pictures or of text alone, as LLaVA has them"}
    )
    group_by_length: bool = field(
        default=False,
        metadata={"help": "the same, and of like length: less padding, an order less random"},
    )
    validate: bool = field(
        default=False, metadata={"help": "check every row and every picture's header first"}
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "samples a step over all devices; sets --gradient_accumulation_steps"},
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "samples per device: alias of --per_device_train_batch_size"},
    )
    save_model: bool = field(
        default=False,
        metadata={"help": "also write the whole model after pretrain or LoRA (merged)"},
    )

    def __post_init__(self) -> None:
        least = {"lora_rank": 1, "limit": 0, "validation_samples": 0, "max_length": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"--{name} {getattr(self, name)}: at least {bound}")
        for name in ("batch_size", "global_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: at least one sample")
        if self.train_type is None:
            self.train_type = TRAIN_TYPES[self.stage][0]
        if self.train_type not in TRAIN_TYPES[self.stage]:
            raise UserError(
                f"--stage {self.stage} --train_type {self.train_type}: no such combination; "
                f"{self.stage} trains {' or '.join(TRAIN_TYPES[self.stage])}"
            )
        if self.model is None and (self.vision_tower is None or self.language_model is None):
            raise UserError(
                "which model? Give --model LLAVA_FOLDER, or --vision_tower and --language_model, a "
                "preset (llava_repro/configs/*.yaml), or --toy"
            )
        if self.model is not None and (self.vision_tower or self.language_model):
            raise UserError("--model is a whole LLaVA: leave --vision_tower and --language_model")
        if self.data is None:
            raise UserError("which data? Give --data FILE (and --image_root FOLDER), or --toy")
        if self.train_type == "qlora" and self.save_model:
            raise UserError(
                "--save_model: a 4-bit base cannot take the merged LoRA without loss; train with "
                "--train_type lora, or use the adapter as it is"
            )
        self.data, self.image_root = from_root(self.data), from_root(self.image_root)
        self.projector = from_root(self.projector)
        if self.image_aspect_ratio is None:
            self.image_aspect_ratio = "pad" if is_padded(self.model) else "square"
        fresh = self.model is None and self.projector is None and self.projector_type != "identity"
        if self.stage == "finetune" and fresh and not self.dry_run:
            raise UserError(
                "--stage finetune starts from a trained projector: give --projector with the run "
                "folder of stage 1 (outputs/llava_repro/...) or a file of weights"
            )

    @property
    def quantization(self) -> str:
        return "nf4" if self.train_type == "qlora" else "none"
