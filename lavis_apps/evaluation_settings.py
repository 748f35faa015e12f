"""Options of evaluate.py, and how each task asks its model unless they say otherwise.

train.py validates with the same `Asking`, so that its figure is the one that evaluate.py gives.

    python lavis_apps/evaluate.py --help
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lavis_apps.settings import TOY_SETS, default_model
from shared.options import DATA_ROOT, ToyOptions, UserError

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

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "num_beams": 1, "min_length": 0, "max_length": 1, "k_test": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"--{name} {getattr(self, name)}: at least {bound}")
        if self.min_length > self.max_length:
            raise UserError(f"--min_length {self.min_length}: more than --max_length")
        if self.inference == "rank" and self.candidates is None:
            raise UserError("--inference rank needs --candidates FILE, an answer a line")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a file that hold something. Raises UserError where it cannot be read or has
    none."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path}: no line with a word in it")
    return found


# How a task asks; the others of these options do not matter to it.
ASKED = {
    "caption": ("num_beams", "max_length", "min_length", "prompt"),
    "vqa": ("num_beams", "inference", "candidates"),
    "retrieval": ("k_test",),
    "classification": ("scoring", "templates"),
    "matching": (),
    "localization": ("sentence", "block"),
}
SPLITS = {"classification": "val", "localization": "val2017"}  # where it is not val2014
# The toy's captions are longer than COCO's, and its sets smaller.
TOY_ASKING: dict[str, dict[str, Any]] = {
    "caption": {"max_length": 40},
    "retrieval": {"k_test": 16},
}


@dataclass
class EvaluateOptions(Asking, ToyOptions):
    """Model, data and run"""

    task: Literal["caption", "vqa", "retrieval", "classification", "matching", "localization"] = (
        field(default="caption", metadata={"help": "what is measured"})
    )
    model: str | None = field(
        default=None,
        metadata={"help": "folder or downloaded Hub id (default: the task's published BLIP); CLIP "
                  "too for retrieval, classification; BLIP-2, LLaVA for caption, vqa"},
    )  # fmt: skip
    adapter: str | None = field(
        default=None, metadata={"help": "adapter folder written by train.py --tuning lora"}
    )
    quantization: Literal["none", "int8", "nf4"] = field(
        default="none", metadata={"help": "of BLIP-2's or LLaVA's language model"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "auto: bfloat16 where the GPU has it, float32 on a CPU"}
    )
    data_root: str | None = field(
        default=None,
        metadata={"help": "data/vqav2 (VQAv2 and COCO's captions), data/coco2017 for localization; "
                  "classification: FOLDER with SPLIT/CLASS/PICTURE"},
    )  # fmt: skip
    split: str | None = field(
        default=None,
        metadata={"help": "default: val2014; val2017 for localization, val for classification; "
                  "captions: karpathy_test, karpathy_val too"},
    )  # fmt: skip
    sentence: str = field(
        default="a {}", metadata={"help": "localization: what is looked for, {} is the category"}
    )
    block: int | None = field(
        default=None,
        metadata={"help": "localization: cross-attention block from 0 (default: LAVIS' 7th of 12)"},
    )
    categories: list[str] | None = field(
        default=None, metadata={"help": "localization: only these (default: all things)"}
    )
    limit: int = field(
        default=1000, metadata={"help": "pictures or questions in the sample, 0 = all"}
    )
    seed: int = field(default=0, metadata={"help": "of the sample and of drawn captions"})
    output_dir: str | None = field(
        default=None, metadata={"help": "run folder (default: outputs/lavis_apps/NAME OF THE RUN)"}
    )

    def __post_init__(self) -> None:
        Asking.__post_init__(self)
        self.model = self.model or default_model(self.task)
        self.split = self.split or SPLITS.get(self.task, "val2014")
        if self.limit < 0:
            raise UserError(f"--limit {self.limit}: a number of samples, or 0 for all")
        if self.data_root is None:
            if self.task == "classification":
                raise UserError("which data? --data_root FOLDER (SPLIT/CLASS/PICTURE), or --toy")
            name = "coco2017" if self.task == "localization" else "vqav2"
            self.data_root = str(DATA_ROOT / name)
        if "{}" not in self.sentence:
            raise UserError(f"--sentence {self.sentence!r}: no {{}} where the category stands")
        if self.categories and self.task != "localization":
            raise UserError("--categories is for --task localization")


def task_of(argv: Sequence[str], tasks: Sequence[str] = TASKS) -> str:
    """The task as argparse will read it: it decides the other defaults. Flag, else the YAML's.

    What is wrong with the one or the other, argparse says.
    """
    import yaml

    named = None
    for i, token in enumerate(argv):
        if token.startswith("--task="):
            named = token.partition("=")[2]
        elif token == "--task" and i + 1 < len(argv):
            named = argv[i + 1]
    if named is None and argv and argv[0].endswith((".yaml", ".yml")):
        try:
            content = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            content = None
        named = content.get("task") if isinstance(content, dict) else None
    return named if named in tasks else "caption"


def toy_defaults(task: str) -> dict[str, Any]:
    from lavis_apps.toy_sets import TOY_PICTURES, TOY_SHAPES
    from shared.toy_world.shapes import KNOWN_SHAPES

    found: dict[str, Any] = {
        "model": default_model(task, toy=True), "data_root": str(TOY_PICTURES), "limit": 200,
    }  # fmt: skip
    if task == "classification":
        found["data_root"] = str(TOY_SHAPES)
    if task == "localization":
        found |= {"data_root": str(TOY_SETS / "coco2017"), "categories": list(KNOWN_SHAPES)}
    return found | TOY_ASKING.get(task, {})


def prepare_toy(task: str) -> None:
    """Draw the task's toy data (seconds, once)."""
    from lavis_apps.toy_sets import ensure_toy_data

    if task == "localization":
        from shared.toy_world.coco import ensure_coco

        ensure_coco(TOY_SETS / "coco2017")
    else:
        ensure_toy_data(task)
