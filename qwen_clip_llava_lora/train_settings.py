"""Options of train.py, its presets and the toy's values in their place.

Precedence: flag, the user's own YAML file, `--toy`, the preset (presets/*.yaml), the defaults here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen_clip_llava_lora.settings import RUNS, TOY_MERGED, TOY_SETS
from shared.options import MissingError, ToyOptions, UserError

PRESETS = Path(__file__).with_name("presets")
PRESET_NAMES = ("course", "align", "strong", "medical_ct", "emotion")

TRAINING_DEFAULTS = {
    "output_dir": "",
    "max_steps": 800,
    "per_device_train_batch_size": 6,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 0.3,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_strategy": "steps",
    "save_steps": 200,
    "save_total_limit": 2,
    "report_to": "none",
    "dataloader_num_workers": 4,
    "seed": 0,
}
_TOY_COMMON = {
    "model": str(TOY_MERGED),
    "activation_checkpointing": False,  # memory is no question there
    "dataloader_num_workers": 1,  # batches are made on the second core
    "gradient_accumulation_steps": 1,
    "min_pixels": None,
    "max_pixels": None,
    "validation_samples": 100,
}
_TOY_ALIGNED = {"projector": str(RUNS / "toy_align")}
_TOY_CC3M = {
    "data": [str(TOY_SETS / "cc3m_595k")],
    "validation_metric": "cider",
    "validation_max_new_tokens": 32,
}
_TOY_SHORT = {
    "max_steps": 300,
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-3,
    "eval_steps": 100,
    "save_steps": 100,
}


def _toy_prepared(name: str) -> dict[str, Any]:
    folder = TOY_SETS / name / "prepared"
    return {"data": [str(folder)], "validation_data": str(folder / "validation.json")}


# preset -> its toy. The course keeps its numbers: 800 steps of 6 at 1e-3. The alignment before it
# is short, so that the course has something left to learn.
TOY: dict[str, dict[str, Any]] = {
    "align": _TOY_CC3M | {"max_steps": 70, "eval_steps": 35, "save_steps": 70},
    "course": _TOY_CC3M | _TOY_ALIGNED | {"eval_steps": 400, "save_steps": 400},
    "strong": _TOY_CC3M | _TOY_ALIGNED | _TOY_SHORT,
    "medical_ct": _toy_prepared("medtrinity")
    | _TOY_ALIGNED
    | _TOY_SHORT
    | {"validation_metric": "cider", "validation_max_new_tokens": 64},
    "emotion": _toy_prepared("affectnet")
    | _TOY_ALIGNED
    | _TOY_SHORT  # the names of the classes are new words to the toy Qwen2: more to learn with
    | {"lora_rank": 32, "lora_alpha": 64, "learning_rate": 3e-3, "validation_max_new_tokens": 8},
}


def preset_of(argv: Sequence[str]) -> str:
    """The preset as argparse will read it: it decides the other defaults. Flag, else the YAML's."""
    named = None
    for i, token in enumerate(argv):
        if token.startswith("--preset="):
            named = token.partition("=")[2]
        elif token == "--preset" and i + 1 < len(argv):
            named = argv[i + 1]
    if named is None and argv and argv[0].endswith((".yaml", ".yml")) and Path(argv[0]).is_file():
        content = read_yaml(Path(argv[0]))
        named = content.get("preset") if isinstance(content, dict) else None
    return named if named in PRESET_NAMES else "course"


def preset_values(name: str) -> dict[str, Any]:
    """What presets/NAME.yaml says, of our options and of TrainingArguments."""
    return read_yaml(PRESETS / f"{name}.yaml")


def read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def toy_defaults(preset: str) -> dict[str, Any]:
    return _TOY_COMMON | TOY[preset] | {"output_dir": str(RUNS / f"toy_{preset}")}


def prepare_toy(preset: str) -> None:
    """Draw the toy data of a preset (some seconds, once)."""
    from qwen_clip_llava_lora.toy_sets import ensure_cc3m, ensure_prepared

    prepared = {"medical_ct": "medtrinity", "emotion": "affectnet"}
    if preset in prepared:
        ensure_prepared(prepared[preset])
    else:
        ensure_cc3m()


def check_toy(options: TrainOptions) -> None:
    """Raises MissingError with the command that makes what the toy's defaults ask for."""
    script = "python qwen_clip_llava_lora/"
    made_by = {
        str(TOY_MERGED): f"{script}merge_model.py --toy",
        str(RUNS / "toy_align"): f"{script}train.py --toy --preset align",
    }
    started_from = () if options.dry_run else (options.projector,)
    for name in (options.model, *started_from):
        if name in made_by and not Path(name).is_dir():
            raise MissingError(f"{name} is not there yet; it is made by\n  {made_by[name]}")


@dataclass
class TrainOptions(ToyOptions):
    """What trains, and on what"""

    preset: Literal["course", "align", "strong", "medical_ct", "emotion"] = field(
        default="course", metadata={"help": "file of presets/ whose values the flags override"}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "LLaVA (merge_model.py writes one), Qwen2-VL, Qwen2.5-VL, Qwen3-VL or "
                  "MiniCPM-V 4.6: folder or downloaded Hub id"},
    )  # fmt: skip
    revision: str | None = field(
        default=None, metadata={"help": "commit of the Hub model; recorded with the run"}
    )
    device: str = field(default="auto", metadata={"help": "auto or cpu; GPUs by the launcher"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "of frozen weights and computation; auto: bfloat16 where the GPU has it"},
    )
    train_type: Literal["lora", "qlora", "projector", "full"] = field(
        default="lora", metadata={"help": "of the language model; qlora: on 4-bit weights"}
    )
    train_projector: bool | None = field(
        default=None,
        metadata={"help": "train the projector too; none = for LLaVA, whose projector is new"},
    )
    train_vision: bool = field(
        default=False, metadata={"help": "--train_type full: open the vision tower too"}
    )
    projector: str | None = field(
        default=None, metadata={"help": "start from the projector of this run (--preset align)"}
    )
    lora_rank: int = field(default=4, metadata={"help": "rank r of the LoRA matrices"})
    lora_alpha: int = field(default=8, metadata={"help": "LoRA scale is alpha / r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before LoRA"})
    lora_layers: str = field(
        default="q_proj,v_proj",
        metadata={"help": "layers of the language model, or all: every linear one but the head"},
    )
    data: list[str] | None = field(
        default=None,
        metadata={"help": "one or more files or folders of own data, in any format of "
                  "data_formats.py"},
    )  # fmt: skip
    data_weights: list[float] | None = field(
        default=None, metadata={"help": "how often each --data is drawn; none = by its rows"}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "folder of the pictures; none = found beside the data"}
    )
    limit: int = field(default=0, metadata={"help": "rows drawn with --seed, 0 = all"})
    validation_data: str | None = field(
        default=None, metadata={"help": "held-out rows of their own; none = --validation_samples"}
    )
    validation_samples: int = field(
        default=200,
        metadata={"help": "rows held out by picture, 0 = none; of --validation_data at most so "
                  "many, 0 = all"},
    )  # fmt: skip
    max_length: int = field(
        default=2048, metadata={"help": "tokens of a sample; text is shortened, pictures never"}
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Qwen-VL: pictures of fewer pixels are enlarged"}
    )
    max_pixels: int | None = field(
        default=None,
        metadata={
            "help": "Qwen-VL: pictures of more pixels are made smaller; 0 takes back a "
            "preset's bound, for other families"
        },
    )
    image_aspect_ratio: Literal["square", "pad"] | None = field(
        default=None,
        metadata={"help": "LLaVA: the tower's own resizing and cropping, or a mean-coloured square "
                  "around the picture; none = as --model was trained"},
    )  # fmt: skip
    selection: Literal["loss", "metric"] = field(
        default="loss", metadata={"help": "the validation figure that the best weights are kept by"}
    )
    validation_metric: Literal["auto", "token_f1", "exact_match", "cider"] = field(
        default="auto",
        metadata={"help": "auto: cider for captions, exact_match for labels, else token_f1"},
    )
    validation_answers: int = field(
        default=50, metadata={"help": "held-out rows that are answered for the metric, 0 = none"}
    )
    validation_max_new_tokens: int = field(
        default=64, metadata={"help": "longest of these answers"}
    )
    early_stopping: int = field(
        default=0,
        metadata={"help": "stop after this many validations without a better one, 0 = no"},
    )
    contrastive_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the image-text contrastive loss beside the language loss"},
    )
    contrastive_temperature: float = field(
        default=0.07, metadata={"help": "its fixed temperature (CLIP's first value)"}
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "samples per device: alias of --per_device_train_batch_size"},
    )

    def __post_init__(self) -> None:
        least = {
            "lora_rank": 1, "limit": 0, "validation_samples": 0, "max_length": 1,
            "validation_answers": 0, "validation_max_new_tokens": 1, "early_stopping": 0,
            "contrastive_weight": 0, "batch_size": 1, "min_pixels": 0, "max_pixels": 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise UserError(f"--{name} {value}: at least {bound}")
        self.min_pixels, self.max_pixels = self.min_pixels or None, self.max_pixels or None
        if not 0 < self.contrastive_temperature < float("inf"):
            raise UserError(f"--contrastive_temperature {self.contrastive_temperature}: above 0")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout}: from 0 to below 1")
        if self.model is None:
            raise UserError(
                "which model? Give --model FOLDER (merge_model.py makes a LLaVA from Qwen and "
                "CLIP), or --toy"
            )
        if not self.data and not self.dry_run:
            raise UserError("which data? Give --data FILE_OR_FOLDER, or --toy")
        self._check_weights()
        self._check_parts()
        validates = self.validation_data is not None or self.validation_samples > 0
        if self.early_stopping and not validates:
            raise UserError("--early_stopping needs held-out rows: give --validation_samples")
        if self.selection == "metric" and not (validates and self.validation_answers):
            raise UserError(
                "--selection metric needs answers to held-out rows: give --validation_samples and "
                "--validation_answers"
            )

    def _check_weights(self) -> None:
        if self.data_weights is None:
            return
        if len(self.data_weights) != len(self.data or ()):
            raise UserError(
                f"--data_weights has {len(self.data_weights)} values for "
                f"{len(self.data or ())} --data"
            )
        if not all(0 < weight < float("inf") for weight in self.data_weights):
            raise UserError(f"--data_weights {self.data_weights}: each above 0")

    def _check_parts(self) -> None:
        if self.train_type == "projector":
            if self.train_projector is False:
                raise UserError("--train_type projector --train_projector false: nothing trains")
            self.train_projector = True
        if self.train_vision and self.train_type != "full":
            raise UserError(
                f"--train_vision true opens the tower of --train_type full alone, this is "
                f"--train_type {self.train_type}"
            )

    @property
    def quantization(self) -> str:
        return "nf4" if self.train_type == "qlora" else "none"
