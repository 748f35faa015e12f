"""What evaluate.py settles before the model answers: samples, run folder, prompts, model, the plan.

A row of the data becomes one sample, its first answer, or with `--turns all` one for each answer
behind its true history. The prompt is the row's own text with its `<image>` tags, the same for base
and tuned: a hash of all prompts stands in config.json.

    python qwen_clip_llava_lora/evaluate.py --toy --dry_run
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.answer_scores import Language, language_of, normalise
from qwen_clip_llava_lora.data_formats import Data, open_data
from qwen_clip_llava_lora.evaluation_settings import BESIDE_THE_ANSWERS, EvaluateOptions
from qwen_clip_llava_lora.settings import RUNS, TOY_MERGED
from shared.answering import Job, shuffle_pictures
from shared.comparison import learned_from
from shared.conversation_files import IMAGE_TAG, Picture, Turn, row_images, row_turns
from shared.images import open_image, trained_aspect_ratio
from shared.loading import GIB, fingerprint, model_folder, pick_device, pick_dtype, weight_files
from shared.options import (
    MissingError,
    UserError,
    manifest_value,
    portable_path,
    read_json,
    resolved_config,
)
from shared.vqav2 import Question, bad_rows_allowed, sample_questions

if TYPE_CHECKING:
    from PIL.Image import Image

    from shared.vision_language import VisionLanguage

# Names that say which part of a set is asked, and not of which set.
PART_NAMES = ("train", "validation", "test", "eval", "held_out", "rows", "data")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "projector.safetensors")


@dataclass(frozen=True)
class Sample(Question):
    """A question with what asks it and what scores it beside its references.

    `turns` is the prompt: (role, text), the last one human, pictures as `<image>`. `answer` is the
    row's own answer, whose likelihood is taken; None where the row has none.
    """

    turns: tuple[tuple[str, str], ...] = ()
    answer: str | None = None
    label: str | None = None
    language: Language = "en"
    more_images: tuple[Picture, ...] = ()
    n_left_out: int = 0  # references in another language


@dataclass(frozen=True)
class Samples:
    """What is asked, and what the data says of it."""

    samples: list[Sample]
    task: str
    classes: tuple[str, ...]
    data: Data
    problems: list[str]  # rows that are not used, one line each


def load_samples(options: EvaluateOptions) -> Samples:
    """The sample of the data. Raises UserError when too many rows are bad or none is left."""
    data = open_data(Path(options.data or ""), as_path(options.image_root))
    task = options.task if options.task != "auto" else data.kind or "text"
    if task == "label" and options.turns == "all":
        raise UserError("--turns all: label data has one label a row, --turns first asks for it")
    if options.index is None:
        chosen = sample_questions(range(len(data.rows)), options.limit, options.seed)
    else:
        chosen = [options.index]
        if not 0 <= options.index < len(data.rows):
            raise UserError(f"--index {options.index}: {data.name} has rows 0 to "
                            f"{len(data.rows) - 1}")  # fmt: skip
    samples: dict[str, Sample] = {}
    problems: list[str] = []
    for i in chosen:
        try:
            own = list(samples_of_row(data, i, task, options.turns))
        except UserError as error:
            problems.append(str(error))
            continue
        for sample in own:  # an id that rows share would be one record for all of them
            key = sample.sample_id if sample.sample_id not in samples else f"{sample.sample_id}@{i}"
            samples[key] = sample if key == sample.sample_id else replace(sample, sample_id=key)
    listed = "\n  ".join(problems[:5])
    if not samples:
        raise UserError(f"{data.source}: no usable row:\n  {listed}")
    if len(problems) > (allowed := bad_rows_allowed(len(chosen))):
        raise UserError(f"{data.source}: {len(problems)} of {len(chosen)} rows are bad, at most "
                        f"{allowed} are passed over:\n  {listed}")  # fmt: skip
    classes = data.classes
    if task == "label" and not classes:
        classes = tuple(sorted({sample.label or "" for sample in samples.values()}))
    read_as: dict[str, str] = {}
    for name in classes:
        other = read_as.setdefault(normalise(name, language_of(name)), name)
        if other != name:
            raise UserError(f"{data.source}: the classes {other!r} and {name!r} read the same in "
                            "an answer: give them one name")  # fmt: skip
    return Samples(list(samples.values()), task, classes, data, problems)


def as_path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def samples_of_row(data: Data, i: int, task: str, turns: str) -> Iterator[Sample]:
    """The samples of row `i`. Raises UserError naming file and row."""
    row = data.rows[i]
    where = f"{data.source} row {i}"
    try:
        said = row_turns(row)
        images = row_images(row, data.image_root)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    label = row.get("label")
    if task == "label" and (label is None or (data.classes and label not in data.classes)):
        raise UserError(f"{where}: label is {label!r}, none of the data's classes "
                        f"({', '.join(data.classes) or 'no class list'})")  # fmt: skip
    named = row.get("image") or []
    names = [named] if isinstance(named, str) else list(named)
    for number, (history, answer) in enumerate(answers_of(said)):
        if number and turns == "first":
            return
        n_shown = sum(text.count(IMAGE_TAG) for _, text in history)
        shown = names[:n_shown]
        given = (row.get("captions") or row.get("answers")) if number == 0 else None
        references = [*given] if given else [] if answer is None else [answer]
        if not any(text.strip() for text in references):  # nothing to compare with
            references = [label] if number == 0 and task == "label" else []
        language = language_of(answer or next(iter(references), ""))
        kept = references
        if task in ("caption", "text"):
            kept = [text for text in references if language_of(text) == language] or references
        key = str(row.get("id", i)) + (f"#{number + 1}" if number else "")
        image_name = " + ".join(
            name if isinstance(image, Path) else image.name
            for name, image in zip(shown, images, strict=False)
        )
        yield Sample(
            sample_id=key,
            image=images[0] if n_shown else None,
            image_name=image_name,
            image_id=image_name or key,
            question=history[-1][1].replace(IMAGE_TAG, "").strip(),
            references=tuple(kept),
            question_type=label if task == "label" else None,
            answer_type=language,
            turns=tuple(history),
            answer=answer,
            label=label if task == "label" else None,
            language=language,
            more_images=tuple(images[1:n_shown]),
            n_left_out=len(references) - len(kept),
        )


def answers_of(turns: Sequence[Turn]) -> Iterator[tuple[list[tuple[str, str]], str | None]]:
    """Each answer behind the turns before it; a last human turn has none."""
    for i, (role, text) in enumerate(turns):
        if role == "gpt":
            yield [(r, t or "") for r, t in turns[:i]], text
    if turns[-1][0] == "human":
        yield [(r, t or "") for r, t in turns], None


# What is asked


def jobs_of(samples: Sequence[Sample]) -> list[Job]:
    """The prompts, with what scoring needs in the record."""
    return [Job(sample, prompt_of(sample), details(sample)) for sample in samples]


def prompt_of(sample: Sample) -> str:
    """The human text with its tags; several turns as `Turns`, which shows their text."""
    if len(sample.turns) == 1:
        return sample.turns[0][1]
    from shared.vision_families import Turns  # imports torch

    return Turns(sample.turns)


def details(sample: Sample) -> dict[str, Any]:
    found: dict[str, Any] = {"language": sample.language, "target": sample.answer}
    return found | ({"label": sample.label} if sample.label is not None else {})


def scorable(jobs: Sequence[Job]) -> list[Job]:
    """Those whose row has an answer, which has a likelihood."""
    return [job for job in jobs if (job.details["target"] or "").strip()]


def picture_opener(
    samples: Sequence[Sample], options: EvaluateOptions
) -> Callable[[Question], Image | list[Image]]:
    """Opens what is shown with a question, several pictures as a list: its own, or by --pictures
    another question's."""
    shown = {sample.sample_id: pictures_of(sample) for sample in samples}
    if options.pictures == "shuffled":
        shown |= shuffled(samples, options.seed)

    def open_all(question: Question) -> Image | list[Image]:
        opened = [open_image(path) for path in shown[question.sample_id]]
        return opened[0] if len(opened) == 1 else opened

    return open_all


def pictures_of(sample: Sample) -> tuple[Picture, ...]:
    return () if sample.image is None else (sample.image, *sample.more_images)


def shuffled(samples: Sequence[Sample], seed: int) -> dict[str, tuple[Picture, ...]]:
    """sample_id -> another question's pictures, as many as the question has of its own."""
    by_number: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_number[len(pictures_of(sample))].append(sample)
    dealt: dict[str, tuple[Picture, ...]] = {}
    for number, group in by_number.items():
        if number:
            own = {sample.image: pictures_of(sample) for sample in group}
            dealt |= {key: own[q.image] for key, q in shuffle_pictures(group, seed).items()}
    return dealt


def load_model(options: EvaluateOptions, adapter: str | None) -> VisionLanguage:
    """The asker, base or tuned; prints what is worth knowing of it."""
    from shared.vision_language import load_vision_language

    model = load_vision_language(
        options.model,
        quantization=options.quantization,
        device=options.device,
        dtype=options.dtype,
        adapter=adapter,
        revision=options.revision,
        image_handling=options.image_handling,
        max_new_tokens=options.max_new_tokens,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        tags_are_meant=True,
    )
    for note in model.notes:
        print(f"note: {note}")
    return model


# The run


def run_folder(options: EvaluateOptions, found: Samples) -> Path:
    return Path(options.output_dir) if options.output_dir else RUNS / run_name(options, found)


def run_name(options: EvaluateOptions, found: Samples) -> str:
    """What ran, in the folder's name: data, sample, model, adapter, and what is not the default."""
    adapter = Path(options.adapter).resolve() if options.adapter else None
    model = Path(options.model)
    parts = [
        data_name(found.data),
        "" if options.task == "auto" else found.task,
        "" if options.turns == "first" else "all_turns",
        str(options.limit or "all"),
        f"seed{options.seed}" if options.limit else "",
        model.resolve().parent.name if model.name in ("model", "merged") else model.name,
        f"{adapter.parent.name}_{adapter.name}" if adapter else "base",
        "" if options.quantization == "none" else options.quantization,
        "" if options.image_handling == "model" else options.image_handling,
        "" if options.pictures == "own" else "shuffled",
    ]
    return "_".join(part for part in parts if part)


def data_name(data: Data) -> str:
    """The data's own name; of a part (test.json) or its like the folder's in front of it."""
    folder = data.source.resolve().parent
    folder = folder.parent if folder.name == "prepared" else folder
    return f"{folder.name}_{data.name}" if data.name in PART_NAMES else data.name


def run_config(options: EvaluateOptions, found: Samples) -> dict[str, Any]:
    """`config.json`: the options and what they came to. Raises where model or device is missing,
    and for an adapter of another model."""
    folder = base_folder(options)
    fingerprint_of_adapter = adapter_fingerprint(options.adapter)
    if options.adapter:
        from shared.vision_families_adapters import adapter_manifest, check_base

        if manifest := adapter_manifest(Path(options.adapter)):  # a plain PEFT folder has none
            check_base(manifest, Path(options.adapter), folder)
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    config = resolved_config(
        options,
        script="evaluate",
        data=portable_path(found.data.source),  # a folder is named by its file, as in manifests
        task=found.task,
        classes=list(found.classes),
        asked={
            "template": template_hash(options.adapter, folder),
            "image_handling": options.image_handling,
            "max_new_tokens": options.max_new_tokens,
            "decoding": "greedy",
            **trained_aspect(options, folder),
        },
        compute_dtype=str(dtype).removeprefix("torch."),
        model_fingerprint=fingerprint(folder),
        adapter_fingerprint=fingerprint_of_adapter,
        data_hash=samples_hash(found.samples, lambda s: [s.references, s.answer, s.label]),
        prompts_hash=samples_hash(found.samples, lambda s: s.turns),
        image_root=portable_path(found.data.image_root),
    )
    return {key: value for key, value in config.items() if key not in BESIDE_THE_ANSWERS}


def base_folder(options: EvaluateOptions) -> Path:
    """Where the model lies. Raises MissingError, for the toy's with the command that makes it."""
    if options.model == str(TOY_MERGED) and not TOY_MERGED.is_dir():
        raise MissingError(
            f"{portable_path(TOY_MERGED)} is not there yet; it is made by\n"
            "  python qwen_clip_llava_lora/merge_model.py --toy"
        )
    return model_folder(options.model, options.revision)


def samples_hash(samples: Sequence[Sample], what: Callable[[Sample], Any]) -> str:
    """A short hash of something of each sample, with its id and pictures."""
    digest = hashlib.sha256()
    for sample in samples:
        known = [sample.sample_id, sample.image_name, what(sample)]
        digest.update(json.dumps(known, ensure_ascii=False).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


def template_hash(adapter: str | None, folder: Path) -> str | None:
    """Of the chat template, which writes the prompt around the text: the adapter's own where one
    was saved beside it (`shared.vision_language` takes that), else the model folder's."""
    if adapter and (Path(adapter) / "processor_config.json").is_file():
        folder = Path(adapter)
    text = None
    if (folder / "chat_template.jinja").is_file():
        text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif (folder / "tokenizer_config.json").is_file():
        text = read_json(folder / "tokenizer_config.json").get("chat_template")
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()[:16]


def as_trained(options: EvaluateOptions) -> EvaluateOptions:
    """Pixel bounds that were not given, as the adapter or the fully trained or merged model was
    trained with: config.json names them, so that a base asked with others is not compared."""
    trained = options.adapter or options.model
    return replace(options, **{
        key: manifest_value(trained, key)
        for key in ("min_pixels", "max_pixels") if getattr(options, key) is None
    })  # fmt: skip


def trained_aspect(options: EvaluateOptions, folder: Path) -> dict[str, str]:
    """How --image_handling model makes pictures square, where adapter or model folder say so."""
    if options.image_handling != "model":
        return {}
    own = options.adapter and manifest_value(options.adapter, "image_aspect_ratio")
    aspect = own or trained_aspect_ratio(folder)
    return {"image_aspect_ratio": aspect} if aspect else {}


def adapter_fingerprint(adapter: str | None) -> str | None:
    """A short hash of LoRA and projector: the same folder may hold newly trained ones.

    Raises UserError for a folder with neither.
    """
    if adapter is None:
        return None
    files = [Path(adapter) / name for name in ADAPTER_WEIGHTS]
    there = [file for file in files if file.is_file()]
    if not there:
        hint = f": you mean --adapter {adapter}/adapter" if is_adapter_of(Path(adapter)) else ""
        raise UserError(f"{adapter}: no {' and no '.join(ADAPTER_WEIGHTS)} in it, so it is not an "
                        f"adapter folder{hint}")  # fmt: skip
    digest = hashlib.sha256()
    for file in there:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def is_adapter_of(folder: Path) -> bool:
    """Whether the folder is a training run with its adapter inside."""
    return any((folder / "adapter" / name).is_file() for name in ADAPTER_WEIGHTS)


def trained_on_scored(options: EvaluateOptions, config: Mapping[str, Any]) -> bool | None:
    """Whether the adapter, or a fully trained model, learned from the very file that is scored, by
    its manifest; None for an adapter that has no record of its data."""
    learned = manifest_value(options.adapter or base_folder(options), "data")
    if not isinstance(learned, dict):
        return None if options.adapter else False
    sources = learned.get("sources") or [learned]
    return any(learned_from({"data": source}, config) for source in sources)


def synthetic(options: EvaluateOptions, found: Samples) -> dict[str, Any]:
    """Whether data and model are a toy's, by the manifests and dataset.json."""
    folder = found.data.source if found.data.source.is_dir() else found.data.source.parent
    said = folder / "dataset.json"
    data = said.is_file() and bool(read_json(said).get("synthetic"))
    asked = [base_folder(options), *filter(None, [options.adapter])]
    return {
        "data": data or bool(manifest_value(folder, "synthetic")),
        "model": any(manifest_value(part, "synthetic") for part in asked),
    }


def print_plan(options: EvaluateOptions, found: Samples, folder: Path) -> None:
    """--dry_run: the sample, one prompt, the weights' size; nothing is loaded."""
    samples = found.samples
    languages = {name: sum(s.language == name for s in samples) for name in ("en", "zh")}
    first = samples[0]
    print(f"run:      {portable_path(folder)}")
    print(f"data:     {found.data.name} ({found.data.format}), {len(found.data.rows):,} rows; "
          f"{len(samples):,} samples, {languages['en']:,} English, {languages['zh']:,} Chinese, "
          f"{len(found.problems)} bad rows left out")  # fmt: skip
    classes = f", {len(found.classes)} classes: {', '.join(found.classes)}" * bool(found.classes)
    print(f"task:     {found.task}{classes}")
    print(f"pictures: {sum(len(pictures_of(s)) for s in samples):,}, {options.pictures}")
    print(f"prompt:   {' / '.join(f'{role}: {text!r}' for role, text in first.turns)}")
    print(f"answer:   {first.answer!r}; {len(first.references)} references")
    print(f"decoding: greedy, at most {options.max_new_tokens} new tokens; "
          f"likelihood of the references: {options.likelihood}")  # fmt: skip
    try:
        base = base_folder(options)
    except UserError as error:
        print(f"model:    {error}")
        return
    size = sum(file.stat().st_size for file in weight_files(base)) / GIB
    tuned = f" + {options.adapter}" if options.adapter else ""
    print(f"model:    {options.model}{tuned}, {size:.2f} GiB of weights on disk")
