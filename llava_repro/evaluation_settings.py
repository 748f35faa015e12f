"""Options of evaluate.py, and where each benchmark's files lie; the toy world's in their place.

python llava_repro/evaluate.py --task pope --toy --dry_run
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_repro.asking import AskingOptions
from llava_repro.settings import TOY_DATA, TOY_LLAVA
from llava_repro.tasks import TASKS
from shared.options import DATA_ROOT, ToyOptions, UserError

TOY = DATA_ROOT / "toy"
FIRST_SPLIT = {"pope": "all"}  # where the published figure is over all of them
TOY_LIMITS = {"vqav2": 300, "pope": 600, "caption": 200}  # of toy sets that are large for a laptop
JUDGE = ("judge_endpoint", "judge_model", "judge_concurrency")  # apart from the run's own answers


@dataclass
class EvaluateOptions(AskingOptions, ToyOptions):
    """Questions and run"""

    task: Literal["vqav2", "gqa", "textvqa", "scienceqa", "pope", "caption", "file"] | None = field(
        default=None,
        metadata={"help": "which benchmark; caption: COCO's; file: your own rows (--data)"},
    )
    data_root: str | None = field(
        default=None,
        metadata={
            "help": "folder in the benchmark's official layout (default: data/TASK; caption: "
            "data/vqav2)"
        },
    )
    data: str | None = field(
        default=None,
        metadata={"help": "--task file: JSONL or CSV with image, question, answer, or LLaVA "
                  "conversations"},
    )  # fmt: skip
    split: str | None = field(
        default=None,
        metadata={
            "help": "default: val2014, testdev_balanced, val, test; pope: all three; caption: also "
            "karpathy_test, of DATA_ROOT/dataset_coco.json"
        },
    )
    prompt: str | None = field(
        default=None,
        metadata={"help": "named prompt: short or bare; textvqa: ocr (with the machine-read words) "
                  "or no_ocr; scienceqa: letter or reason; caption: one_sentence or brief"},
    )  # fmt: skip
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "longest answer (default: LLaVA's, 128; scienceqa 1024; caption 64)"},
    )
    batch_size: int = field(default=16, metadata={"help": "questions in one forward pass"})
    limit: int = field(default=1000, metadata={"help": "questions in the sample, 0 = all"})
    seed: int = field(default=0, metadata={"help": "of the sample and of shuffled pictures"})
    pictures: Literal["own", "shuffled"] = field(
        default="own",
        metadata={"help": "shuffled: a control that shows each question another's picture"},
    )
    answers: str | None = field(
        default=None,
        metadata={"help": "score this file of answers; no model is asked, --limit has no effect"},
    )
    answers_format: Literal["llava", "records", "vlmevalkit", "lmms-eval"] = field(
        default="llava",
        metadata={"help": "whose file --answers is; records: a predictions.jsonl of ours"},
    )
    answered_only: bool = field(
        default=False,
        metadata={"help": "of --answers: score the questions that are answered, say how many are "
                  "not: for the answers of a sample (--limit)"},
    )  # fmt: skip
    judge_endpoint: str | None = field(
        default=None,
        metadata={"help": "OpenAI-compatible server (http://host:8000/v1) that reads undecided "
                  "multiple-choice answers; counted apart"},
    )  # fmt: skip
    judge_model: str | None = field(default=None, metadata={"help": "its model's name there"})
    judge_concurrency: int = field(default=8, metadata={"help": "requests under way at once"})
    output_dir: str | None = field(
        default=None, metadata={"help": "run folder (default: outputs/llava_repro/NAME OF THE RUN)"}
    )

    def __post_init__(self) -> None:
        if self.task is None:
            raise UserError(f"which benchmark? --task {'|'.join(TASKS)}")
        for name, bound, what in (("limit", 0, "0 for all"), ("batch_size", 1, "at least one")):
            if getattr(self, name) < bound:
                raise UserError(f"--{name} {getattr(self, name)}: a number of questions, {what}")
        if self.task == "file" and self.data is None:
            raise UserError("--task file: which rows? Give --data FILE")
        if self.task != "file" and self.data is not None:
            raise UserError(f"--data is for --task file; {self.task} takes --data_root FOLDER")
        if self.judge_endpoint and self.judge_model is None:
            raise UserError("--judge_endpoint needs --judge_model, the model's name on that server")
        if self.judge_endpoint and self.task != "scienceqa":
            raise UserError(f"--judge_endpoint: {self.task} is no multiple-choice task")
        if self.answers is not None and self.pictures != "own":
            raise UserError(
                f"--pictures {self.pictures} is how a model is asked; --answers asks none: leave "
                "one of them out"
            )
        if self.answered_only and self.answers is None:
            raise UserError("--answered_only is for --answers FILE")
        known = TASKS[self.task].prompts
        if self.prompt is not None and self.prompt not in known:
            listed = ", ".join(f"{name} ({what})" for name, what in known.items())
            raise UserError(f"--task {self.task} --prompt {self.prompt}: one of {listed}")
        task = TASKS[self.task]
        self.split = self.split or FIRST_SPLIT.get(task.name, task.splits[0])
        self.prompt = self.prompt or next(iter(known))
        self.max_new_tokens = self.max_new_tokens or task.max_new_tokens
        # a VLMEvalKit file holds its questions; all others need the official ones
        holds_questions = self.answers is not None and self.answers_format == "vlmevalkit"
        if self.data_root is None and self.task != "file" and not holds_questions:
            self.data_root = str(DATA_ROOT / task.data_folder)

    @property
    def source(self) -> Path | None:
        """File or folder of the questions; None where the answers hold them."""
        name = self.data if self.task == "file" else self.data_root
        return None if name is None else Path(name)


def data_folder(options: EvaluateOptions) -> Path | None:
    """The folder whose manifest speaks for the questions."""
    source = options.source
    return source.parent if source is not None and source.suffix else source


def toy_defaults(task: str | None) -> dict[str, Any]:
    """The toy LLaVA, and the task's toy files."""
    defaults: dict[str, Any] = {"model": str(TOY_LLAVA), "max_new_tokens": 16, "batch_size": 64}
    if task == "file":
        return defaults | {"data": str(TOY_DATA / "held_out.jsonl"), "limit": 0}
    if task in TASKS:
        root = TOY / TASKS[task].data_folder
        defaults |= {"data_root": str(root), "limit": TOY_LIMITS.get(task, 0)}
    if task == "caption":
        defaults |= {"prompt": "brief", "max_new_tokens": 40}
    return defaults


def prepare_toy(task: str | None) -> None:
    """Draw the task's toy files and pictures (some seconds, once)."""
    from shared.toy_world import benchmarks, build, conversations

    drawn = {
        "vqav2": build.ensure_vqav2,
        "caption": build.ensure_vqav2,
        "pope": benchmarks.ensure_pope,
        "scienceqa": benchmarks.ensure_scienceqa,
        "gqa": benchmarks.ensure_gqa,
        "textvqa": benchmarks.ensure_textvqa,
    }
    if task == "file":
        conversations.ensure_llava(TOY_DATA)
    elif task in drawn:
        drawn[task](TOY / TASKS[task].data_folder)


def task_of(argv: list[str]) -> str | None:
    """The task as argparse will read it: it decides the toy's other defaults."""
    task = None
    for i, token in enumerate(argv):
        if token.startswith("--task="):
            task = token.partition("=")[2]
        elif token == "--task" and i + 1 < len(argv):
            task = argv[i + 1]
    return task
