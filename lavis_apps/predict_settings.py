"""Options of predict.py: which there are, which task takes which, and what --toy fills in.

Each class is a group of --help; its first line names the tasks that take its options, and `TASKS`
says the same to the check that refuses an option which the task would not use.

    python lavis_apps/predict.py --help
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from lavis_apps.settings import (
    PUBLISHED_MODELS,
    TASKS,
    TOY_IMAGES,
    TOY_INDEX,
    TOY_MODELS,
    default_model,
)
from shared.options import ToyOptions, UserError

TOY_LIMIT = 4  # pictures that --toy looks at where none are named
TOY_TEXTS = ("a red square", "a blue star")
TOY_QUESTION = "How many shapes are there?"
SUFFIXES = {"classification": (".csv", ".jsonl"), "features": (".npz", ".parquet")}
# what --n is where it is not given
HOW_MANY = {"caption": 1, "vqa": 5, "classification": 5, "search": 24}


@dataclass
class EveryTask:
    """every task: what, with which model, to where"""

    TASKS: ClassVar[tuple[str, ...]] = TASKS

    task: str = field(default="", metadata={"help": ", ".join(TASKS)})
    image: str | None = field(
        default=None,
        metadata={"help": "a picture, or a folder with its subfolders; search: the picture that "
                  "others shall be like"},
    )  # fmt: skip
    model: str | None = field(
        default=None,
        metadata={"help": "folder, or downloaded Hub id (default: BLIP base for the task, "
                  f"{', '.join(PUBLISHED_MODELS.values())}; search: the index's)"},
    )  # fmt: skip
    adapter: str | None = field(default=None, metadata={"help": "adapter folder of train.py"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "auto: bfloat16 where the GPU has it"}
    )
    json: bool = field(default=False, metadata={"help": "print a JSON object a line"})
    output: str | None = field(
        default=None,
        metadata={"help": "also write the results: .jsonl; classification .csv too; features .npz "
                  "or .parquet"},
    )  # fmt: skip


@dataclass
class Pictures:
    """caption, vqa, matching, classification, features, localization: how many at once"""

    TASKS: ClassVar[tuple[str, ...]] = TASKS[:-1]

    batch_size: int = field(default=8, metadata={"help": "pictures in one forward pass"})
    limit: int = field(default=0, metadata={"help": "the first so many of a folder; 0: all"})


@dataclass
class HowMany:
    """caption, vqa, classification, search: results"""

    TASKS: ClassVar[tuple[str, ...]] = tuple(HOW_MANY)

    n: int | None = field(
        default=None,
        metadata={"help": "captions, answers, classes, hits; default "
                  + ", ".join(f"{name} {n}" for name, n in HOW_MANY.items())},
    )  # fmt: skip


@dataclass
class CaptionAndVqa:
    """caption, vqa: search for words"""

    TASKS: ClassVar[tuple[str, ...]] = ("caption", "vqa")

    num_beams: int = field(default=3, metadata={"help": "beams; 1 is greedy"})
    max_length: int | None = field(
        default=None,
        metadata={"help": "tokens: of BLIP with its first one and the prompt's, of BLIP-2 and "
                  "LLaVA new ones (default: captions 40, answers 10, a LLaVA's 64)"},
    )  # fmt: skip
    min_length: int | None = field(
        default=None, metadata={"help": "tokens at least (default: captions 5, answers 1)"}
    )
    quantization: Literal["none", "int8", "nf4"] = field(
        default="none", metadata={"help": "of a BLIP-2's or LLaVA's language model (bitsandbytes)"}
    )


@dataclass
class CaptionOptions:
    """caption"""

    TASKS: ClassVar[tuple[str, ...]] = ("caption",)

    method: Literal["beam", "nucleus"] = field(
        default="beam", metadata={"help": "beam search, or sampling from the likeliest tokens"}
    )
    prompt: str | None = field(
        default=None,
        metadata={"help": 'how captions start (BLIP: "a picture of "); what a LLaVA is asked, in '
                  "the language that it shall answer in"},
    )  # fmt: skip
    top_p: float = field(default=0.9, metadata={"help": "nucleus: share of the likeliest tokens"})
    length_penalty: float = field(default=1.0, metadata={"help": "beam: above 1 favours length"})
    repetition_penalty: float = field(default=1.0, metadata={"help": "above 1 avoids repetition"})
    seed: int = field(default=0, metadata={"help": "nucleus: the same seed, the same captions"})


@dataclass
class Temperature:
    """caption, classification: sharpness"""

    TASKS: ClassVar[tuple[str, ...]] = ("caption", "classification")

    temperature: float | None = field(
        default=None,
        metadata={"help": "caption: of nucleus sampling (default 1); classification: of the "
                  "softmax over cosines (default: the model's)"},
    )  # fmt: skip


@dataclass
class VqaOptions:
    """vqa"""

    TASKS: ClassVar[tuple[str, ...]] = ("vqa",)

    question: list[str] = field(
        default_factory=list, metadata={"help": "each is asked about every picture"}
    )
    candidates: list[str] = field(
        default_factory=list, metadata={"help": "rank these answers instead of generating one"}
    )
    candidates_file: str | None = field(default=None, metadata={"help": "the same, a line each"})
    ranked: int = field(
        default=128, metadata={"help": "of more candidates those with the likeliest first token"}
    )
    history: list[str] = field(
        default_factory=list,
        metadata={"help": "earlier turns, QUESTION ANSWER QUESTION ANSWER ... (BLIP-2, LLaVA)"},
    )
    attention: bool = field(
        default=False, metadata={"help": "BLIP: where the question looks, as a grid"}
    )


@dataclass
class Texts:
    """matching, features, localization: texts"""

    TASKS: ClassVar[tuple[str, ...]] = ("matching", "features", "localization")

    text: list[str] = field(default_factory=list, metadata={"help": "one or more texts"})


@dataclass
class ClassOptions:
    """classification"""

    TASKS: ClassVar[tuple[str, ...]] = ("classification",)

    classes: list[str] = field(default_factory=list, metadata={"help": "names of the classes"})
    classes_file: str | None = field(default=None, metadata={"help": "the same, a line each"})
    scoring: Literal["itc", "itm", "clip", "cosine"] = field(
        default="itc",
        metadata={"help": "itc, clip, cosine: of the features; itm: BLIP's matching head; clip "
                  "takes a CLIP where no --model is given"},
    )  # fmt: skip
    templates: list[str] = field(
        default_factory=list,
        metadata={"help": "sentences with {} for the class; several are averaged"},
    )
    none_threshold: float | None = field(
        default=None, metadata={"help": '"none of these" where the best score is lower'}
    )


@dataclass
class FeatureOptions:
    """features"""

    TASKS: ClassVar[tuple[str, ...]] = ("features",)

    tokens: bool = field(
        default=False, metadata={"help": "--output: those of every token and patch too"}
    )


@dataclass
class LocalizationOptions:
    """localization"""

    TASKS: ClassVar[tuple[str, ...]] = ("localization",)

    block: int | None = field(
        default=None, metadata={"help": "cross-attention block, from 0 (default: 6 of BLIP's 12)"}
    )
    max_tokens: int = field(default=35, metadata={"help": "of the text; more are cut off"})


@dataclass
class Drawings:
    """vqa --attention, localization, search --localize: drawings"""

    TASKS: ClassVar[tuple[str, ...]] = ("vqa", "localization", "search")

    output_dir: str | None = field(default=None, metadata={"help": "folder for PNG heat maps"})


@dataclass
class SearchOptions:
    """search"""

    TASKS: ClassVar[tuple[str, ...]] = ("search",)

    index: str | None = field(default=None, metadata={"help": "folder that build_index.py wrote"})
    query: str | None = field(default=None, metadata={"help": "words to search for"})
    text_weight: float = field(
        default=0.5, metadata={"help": "the words' part beside --image, 0 to 1"}
    )
    rerank: int = field(
        default=0, metadata={"help": "the first so many are ranked again by ITM; 0: none"}
    )
    reranker: str | None = field(default=None, metadata={"help": "BLIP that does it"})
    localize: bool = field(default=False, metadata={"help": "draw where the words are seen"})
    images: str | None = field(
        default=None, metadata={"help": "where the index's pictures are now, if they have moved"}
    )


GROUPS = (
    EveryTask, HowMany, Pictures, CaptionAndVqa, CaptionOptions, VqaOptions, Texts, ClassOptions,
    Temperature, FeatureOptions, LocalizationOptions, SearchOptions, Drawings,
)  # fmt: skip


@dataclass
class PredictOptions(
    EveryTask, HowMany, Pictures, CaptionAndVqa, CaptionOptions, VqaOptions, Texts, ClassOptions,
    Temperature, FeatureOptions, LocalizationOptions, SearchOptions, Drawings, ToyOptions,
):  # fmt: skip
    """Options of one call; raises UserError where they don't go together."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            given = f"{self.task}: no such task" if self.task else "is missing"
            raise UserError(f"--task {given}; one of {', '.join(TASKS)}")
        refuse_unused(self)
        for name in ("text", "question", "classes", "candidates", "templates", "query", "history"):
            value = getattr(self, name)
            for one in value if isinstance(value, list) else [value]:
                if one is not None and not one.strip():
                    raise UserError(f"--{name} is empty; give a few words")
        for name, least in (("batch_size", 1), ("limit", 0), ("n", 1), ("ranked", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value}: at least {least}")
        if self.toy:
            fill_in_toy(self)
        refuse_without_effect(self)
        if self.n is None:
            self.n = HOW_MANY.get(self.task)
        if self.model is None and self.task != "search":
            by_clip = self.scoring == "clip" and self.task == "classification"
            clip = str(TOY_MODELS["clip"]) if self.toy else PUBLISHED_MODELS["clip"]
            self.model = clip if by_clip else default_model(self.task, toy=self.toy)
        self.check_task()

    def check_task(self) -> None:
        """What the task needs. Raises UserError."""
        needs = {
            "vqa": ("question",),
            "matching": ("text",),
            "localization": ("text",),
            "classification": ("classes", "classes_file"),
            "features": ("image", "text"),
            "search": ("query", "image"),
        }.get(self.task, ())
        if needs and not any(getattr(self, name) for name in needs):
            flags = " or ".join(f"--{name}" for name in needs)
            raise UserError(f"--task {self.task} needs {flags}")
        if self.task == "search" and not self.index:
            raise UserError("--task search needs --index, a folder that build_index.py wrote")
        if self.task not in ("search", "features") and not self.image:
            raise UserError("which picture? Give --image FILE or FOLDER, or --toy")
        for one, other in (("classes", "classes_file"), ("candidates", "candidates_file")):
            if getattr(self, one) and getattr(self, other):
                raise UserError(f"give --{one} or --{other}, not both")
        if len(self.history) % 2:
            raise UserError("--history: an answer behind each question (QUESTION ANSWER ...)")
        if self.task == "features" and self.image and len(self.text) > 1:
            raise UserError(
                "--task features with pictures takes one --text, read with each of them"
            )
        if self.output is not None:
            suffixes = SUFFIXES.get(self.task, (".jsonl",))
            if Path(self.output).suffix not in suffixes:
                raise UserError(f"--output {self.output}: {' or '.join(suffixes)} for this task")
            if self.task == "features" and not self.image:
                raise UserError("--output of features holds pictures: give --image")
            own = self.classes_file
            if own is not None and Path(self.output).resolve() == Path(own).resolve():
                raise UserError(f"--output {self.output} is the file of the classes: give another")
        if self.tokens and self.output is None:
            raise UserError("--tokens needs --output FILE.npz or FILE.parquet")
        drawn = {"vqa": self.attention, "search": self.localize}.get(self.task, True)
        if self.output_dir is not None and not drawn:
            wanted = "--attention" if self.task == "vqa" else "--localize"
            raise UserError(f"--output_dir has drawings only with {wanted}")
        if self.localize and self.output_dir is None:
            raise UserError("--localize needs --output_dir, the folder for its drawings")


def refuse_unused(options: PredictOptions) -> None:
    """Raises UserError for an option, other than by default, that the task would not look at."""
    for group in GROUPS:
        if options.task in group.TASKS:
            continue
        fresh = group()
        for one in fields(group):
            if getattr(options, one.name) != getattr(fresh, one.name):
                raise UserError(
                    f"--{one.name} is not used by --task {options.task}; it belongs to "
                    f"{', '.join(group.TASKS)}"
                )


def refuse_without_effect(options: PredictOptions) -> None:
    """Raises UserError for an option, other than by default, that another one switches off."""
    caption, itm = options.task == "caption", options.scoring == "itm"
    nucleus = options.method == "nucleus"
    ranks = bool(options.candidates or options.candidates_file)
    off = (
        (caption and not nucleus, ("top_p", "temperature", "seed"), "needs --method nucleus"),
        (caption and nucleus, ("num_beams", "length_penalty"), "needs --method beam"),
        (ranks, ("num_beams", "max_length", "min_length"), "is of generated answers"),
        (not ranks, ("ranked",), "needs --candidates or --candidates_file"),
        (itm, ("temperature",), "is of cosines, not of --scoring itm"),
        (not (options.query and options.image), ("text_weight",), "needs --query and --image"),
        (not (options.rerank or options.localize), ("reranker",), "needs --rerank or --localize"),
    )
    if options.task == "vqa" and not ranks and options.n and options.n > options.num_beams:
        raise UserError(f"--n {options.n}: a search with {options.num_beams} beams has no more "
                        f"answers; give --num_beams {options.n} too")  # fmt: skip
    defaults = {one.name: one.default for one in fields(options)}
    for is_off, flags, why in off:
        for name in flags if is_off else ():
            if getattr(options, name) != defaults[name]:
                raise UserError(f"--{name} {why}")


def fill_in_toy(options: PredictOptions) -> None:
    """The toy world's pictures and words, where none are given."""
    from shared.toy_world.shapes import KNOWN_SHAPES

    if options.task == "search":
        options.index = options.index or str(TOY_INDEX)
        if not options.image:
            options.query = options.query or TOY_TEXTS[0]
        return
    if options.image is None and not (options.task == "features" and options.text):
        options.image = str(TOY_IMAGES)
        options.limit = options.limit or TOY_LIMIT
    if options.task == "vqa":
        options.question = options.question or [TOY_QUESTION]
    if options.task == "matching":
        options.text = options.text or list(TOY_TEXTS)
    if options.task == "localization":
        options.text = options.text or list(TOY_TEXTS[:1])
    if options.task == "classification" and not options.classes_file:
        options.classes = options.classes or list(KNOWN_SHAPES)
