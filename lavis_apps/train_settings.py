"""Options of train.py, its presets and the toy's values in their place.

Precedence: flag, the user's own YAML file, `--toy`, presets/TASK.yaml, the defaults here. How
validation asks the model are evaluate.py's own options (`Asking`), so that both give one figure.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavis_apps.evaluation_settings import TOY_ASKING, Asking
from lavis_apps.settings import RUNS, default_model
from lavis_apps.toy_sets import TOY_NEW_SHAPES, TOY_PICTURES, ensure_new_shapes, ensure_toy_data
from shared.options import DATA_ROOT, ToyOptions, UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

PRESETS = Path(__file__).with_name("presets")
TRAINED_TASKS = ("caption", "vqa", "retrieval", "classification")
# what VlmTrainer calls the figure that the best weights are kept by
SELECTION = {
    "caption": "cider",
    "vqa": "accuracy",
    "retrieval": "mean_recall",
    "classification": "accuracy",
}
TRAINING_DEFAULTS = {
    "output_dir": "",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "per_device_eval_batch_size": 16,
    "report_to": "none",
    "dataloader_num_workers": 4,
    "seed": 0,
}
_TOY_COMMON = {
    "augment": "none",  # colours and left and right are what the toy's captions are about
    "warmup_steps": 0.05,
    "weight_decay": 0.01,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "dataloader_num_workers": 1,  # batches are made on the second core
    "validation_limit": 200,
}
TOY: dict[str, dict[str, Any]] = {
    "caption": {
        "max_steps": 70, "learning_rate": 5e-4, "eval_steps": 35, "save_steps": 35,
        "texts_per_picture": 5,  # 70 steps are an epoch
    },
    "vqa": {
        "max_steps": 300, "learning_rate": 5e-4, "eval_steps": 150, "save_steps": 150,
        "per_device_train_batch_size": 16,
    },
    "retrieval": {
        "max_steps": 200, "learning_rate": 3e-4, "eval_steps": 100, "save_steps": 100,
        "validation_limit": 60,  # k_test makes it the slowest of the four
    },
    "classification": {
        "max_steps": 100, "learning_rate": 3e-4, "eval_steps": 50, "save_steps": 50,
    },
}  # fmt: skip


def preset_values(task: str) -> dict[str, Any]:
    """What presets/TASK.yaml says, of our options and of TrainingArguments."""
    import yaml

    return yaml.safe_load((PRESETS / f"{task}.yaml").read_text(encoding="utf-8"))


def toy_defaults(task: str) -> dict[str, Any]:
    shapes = {
        "data_root": [str(TOY_NEW_SHAPES)], "train_splits": ["train"], "validation_split": "val"
    }  # fmt: skip
    return {
        **_TOY_COMMON,
        "model": default_model(task, toy=True),
        **(shapes if task == "classification" else {"data_root": [str(TOY_PICTURES)]}),
        **TOY_ASKING.get(task, {}),
        **TOY[task],
    }


def prepare_toy(task: str) -> None:
    """Draw the task's toy data (seconds, once)."""
    if task == "classification":
        ensure_new_shapes()
    else:
        ensure_toy_data(task)


@dataclass
class TrainOptions(Asking, ToyOptions):
    """What trains, and on what"""

    task: Literal["caption", "vqa", "retrieval", "classification"] = field(
        default="caption", metadata={"help": "its file of presets/ holds the other defaults"}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "BLIP of the task's kind; retrieval, classification: CLIP too. Folder or "
                  "downloaded Hub id; none = the task's published BLIP"},
    )  # fmt: skip
    revision: str | None = field(
        default=None, metadata={"help": "commit of the Hub model; recorded with the run"}
    )
    device: str = field(default="auto", metadata={"help": "auto or cpu; GPUs by the launcher"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "of frozen weights and computation; auto: bfloat16 where the GPU has it"},
    )
    tuning: Literal["full", "lora", "frozen_tower"] = field(
        default="full", metadata={"help": "frozen_tower: all but the vision tower trains"}
    )
    lora_rank: int = field(default=16, metadata={"help": "rank r of the LoRA matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale is alpha / r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before LoRA"})
    lora_layers: Literal["attention", "all"] = field(
        default="attention", metadata={"help": "linear layers of tower and text model that get it"}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "the tower's layer i of L learns at learning_rate x this ** (L + 1 - i), "
                  "patches and positions are layer 0; 1: all alike"},
    )  # fmt: skip
    data_root: list[str] | None = field(
        default=None,
        metadata={"help": "one or more folders: COCO captions, VQAv2, or SPLIT/CLASS/PICTURE; none "
                  "= data/vqav2, where COCO's captions lie too"},
    )  # fmt: skip
    data_weights: list[float] | None = field(
        default=None, metadata={"help": "how often each root is drawn; none = by its samples"}
    )
    train_splits: list[str] = field(
        default_factory=lambda: ["train2014"], metadata={"help": "learned from, of every root"}
    )
    limit: int = field(default=0, metadata={"help": "rows of each root drawn with --seed, 0 = all"})
    validation_split: str | None = field(
        default="val2014", metadata={"help": "held out; none: no validation, the last weights stay"}
    )
    validation_root: str | None = field(
        default=None, metadata={"help": "where it is; none = the first --data_root"}
    )
    validation_limit: int = field(
        default=1000, metadata={"help": "rows of it drawn with --seed, 0 = all"}
    )
    texts_per_picture: int = field(
        default=1,
        metadata={"help": "caption, vqa: so many texts of a picture share one encoded picture"},
    )
    augment: Literal["none", "crop", "randaugment"] = field(
        default="randaugment",
        metadata={"help": "crop: random crops, mirrored or not; randaugment: and LAVIS' changes of "
                  "colour and form"},
    )  # fmt: skip
    label_smoothing: float = field(
        default=0.1, metadata={"help": "caption, vqa: of the learned tokens (BLIP: 0.1)"}
    )
    temperature: float = field(
        default=0.07,
        metadata={"help": "BLIP retrieval, classification: of the cosines at first; it is learned"},
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "pictures per device: alias of --per_device_train_batch_size"},
    )

    def __post_init__(self) -> None:
        self.model = self.model or default_model(self.task)
        if self.data_root is None and self.task != "classification":
            self.data_root = [str(DATA_ROOT / "vqav2")]
        if not self.data_root and not self.dry_run:
            raise UserError("which data? Give --data_root FOLDER (SPLIT/CLASS/PICTURE), or --toy")
        self.validation_split = self.validation_split or None
        if self.validation_split == "none":
            self.validation_split = None
        least = {
            "lora_rank": 1, "lora_alpha": 1, "limit": 0, "validation_limit": 0,
            "texts_per_picture": 1, "batch_size": 1, "lora_dropout": 0, "label_smoothing": 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise UserError(f"--{name} {value}: at least {bound}")
        for name in ("lora_dropout", "label_smoothing"):
            if not getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: from 0 to below 1")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer_decay {self.layer_decay}: above 0, at most 1")
        if self.layer_decay != 1 and self.tuning == "frozen_tower":
            raise UserError("--layer_decay is for the vision tower, which --tuning frozen_tower "
                            "does not train")  # fmt: skip
        if not 0.001 <= self.temperature <= 0.5:  # BLIP holds it there while training
            raise UserError(f"--temperature {self.temperature}: between 0.001 and 0.5")
        if self.task == "classification" and self.scoring != "cosine":
            raise UserError(f"--scoring {self.scoring}: classes are learned by their cosines")
        if self.texts_per_picture > 1 and self.task == "retrieval":
            raise UserError("--texts_per_picture is for captions and questions: each pair of a "
                            "picture and a text is compared with the others")  # fmt: skip
        self._check_weights()
        asking(self, 1)

    def _check_weights(self) -> None:
        if self.data_weights is None:
            return
        if len(self.data_weights) != len(self.data_root or ()):
            raise UserError(
                f"--data_weights has {len(self.data_weights)} values for "
                f"{len(self.data_root or ())} --data_root"
            )
        if not all(0 < weight < float("inf") for weight in self.data_weights):
            raise UserError(f"--data_weights {self.data_weights}: each above 0")


def asking(options: TrainOptions, batch_size: int) -> Asking:
    """How validation asks the model: evaluate.py's options of the same names. UserError."""
    own = {f.name: getattr(options, f.name) for f in dataclasses.fields(Asking)}
    return Asking(**own | {"batch_size": batch_size})


def run_name(options: TrainOptions, training: TrainingArguments) -> str:
    """caption_MODEL_DATA_full_seed0: two runs that differ in more need an --output_dir."""
    parts = [
        options.task,
        Path(options.model or "").name,
        *(Path(root).name for root in options.data_root or ()),
        str(options.limit) if options.limit else "",
        options.tuning,
        f"seed{training.seed}",
    ]
    return "_".join(part for part in parts if part)


def default_folder(options: TrainOptions, training: TrainingArguments) -> str:
    return training.output_dir or str(RUNS / run_name(options, training))
