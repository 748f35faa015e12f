"""What evaluate.py settles before the model answers: questions, run folder, prompts, the plan.

python llava_repro/evaluate.py --task scienceqa --toy --dry_run
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_repro.asking import Decoding, human_text
from llava_repro.evaluation_settings import FIRST_SPLIT, JUDGE, EvaluateOptions
from llava_repro.settings import RUNS, base_folder, base_parts, template_name
from llava_repro.tasks import TASKS, Sample, load_task
from shared.answering import Answer, Job, shuffle_pictures
from shared.conversations import escape_tags
from shared.images import open_image
from shared.loading import (
    GIB,
    MemoryEstimate,
    adapter_fingerprint,
    fingerprint,
    pick_device,
    pick_dtype,
    weight_bytes,
)
from shared.options import MissingError, UserError, manifest_value, portable_path, resolved_config
from shared.vqav2 import Question, QuestionSet

if TYPE_CHECKING:
    from PIL.Image import Image

    from shared.conversation_files import Picture


def load_questions(options: EvaluateOptions) -> tuple[QuestionSet, bool]:
    """The sample to ask, and whether it is everything that the split or file holds."""
    source = options.source
    if source is None:
        from llava_repro.interchange import vlmevalkit_samples

        return QuestionSet(vlmevalkit_samples(Path(options.answers or ""), options.task)), True
    prompt = options.prompt
    if options.answers is not None and options.task == "textvqa":
        prompt = "no_ocr"  # the words belong to the prompt, which is in the answers
    found = load_task(options.task or "", source, options.split, prompt)
    limit = 0 if options.answers is not None else options.limit
    sample = found.sample(limit, options.seed)
    return sample, len(sample.questions) == len(found.questions) and not found.problems


def run_folder(options: EvaluateOptions) -> Path:
    return Path(options.output_dir) if options.output_dir else RUNS / run_name(options)


def run_name(options: EvaluateOptions) -> str:
    """What ran, in the folder's name: task, split, sample, model, adapter, what is no default."""
    task = TASKS[options.task or ""]
    adapter = Path(options.adapter).resolve() if options.adapter else None
    answers = Path(options.answers) if options.answers else None
    is_first = options.split == FIRST_SPLIT.get(task.name, task.splits[0])
    parts = [
        task.name if options.data is None else Path(options.data).stem,
        "" if is_first else options.split,
        "" if options.prompt == next(iter(task.prompts)) else options.prompt,
    ]
    if answers is not None:
        only = "answered_only" if options.answered_only else ""
        return "_".join(filter(None, [*parts, "answers", answers.stem, only]))
    parts += [
        str(options.limit or "all"),
        f"seed{options.seed}" if options.limit else "",
        named_model([*base_of(options).values()][-1]),
        f"{adapter.parent.name}_{adapter.name}" if adapter else "",
        "" if options.quantization == "none" else options.quantization,
        options.template,
        "" if options.image_handling == "model" else options.image_handling,
        "" if options.pictures == "own" else "shuffled",
    ]
    return "_".join(filter(None, parts))


def named_model(model: str) -> str:
    """The model's name; of the folder `model/` in a training run, the run's name."""
    path = Path(model)
    return path.resolve().parent.name if path.name in ("model", "merged") else path.name


def base_of(options: EvaluateOptions) -> dict[str, str]:
    """What answers, by name: --model, or under --adapter what that was trained on."""
    return base_parts(options.model, options.revision, options.adapter)


def folder_of(options: EvaluateOptions) -> Path:
    return base_folder(base_of(options), options.model, options.revision)


def choose_decoding(options: EvaluateOptions) -> Decoding:
    """Greedy, as LLaVA's evaluation. Raises UserError for a length that means nothing."""
    return Decoding(max_new_tokens=options.max_new_tokens or 0)


def run_config(
    options: EvaluateOptions, sample: QuestionSet, template: str | None
) -> dict[str, Any]:
    """`config.json`: the options and what they came to. Raises where model or device is missing.

    The judge's flags are left out: its verdicts stand beside the run's figures and may come later.
    """
    extra: dict[str, Any] = {
        "script": "evaluate",
        "data_hash": questions_hash(sample),
        "image_root": image_root(sample.questions),
    }
    if options.answers is not None:
        extra |= {
            "model": None,
            "asked": {"answers of": options.answers_format},
            "answers_hash": file_hash(Path(options.answers)),
        }
    else:
        decoding = asdict(choose_decoding(options))
        dtype = pick_dtype(options.dtype, pick_device(options.device))
        extra |= {
            "asked": {"prompt": options.prompt, "template": template,
                      "image_handling": options.image_handling, **decoding},
            "compute_dtype": str(dtype).removeprefix("torch."),
            "model_fingerprint": fingerprint(folder_of(options)),
            "adapter_fingerprint": adapter_fingerprint(options.adapter),
        }  # fmt: skip
        base = base_of(options)
        if base != {"model": options.model}:  # the run is told by what answered
            whole = base.get("model")
            extra |= {"revision": None, "model": whole or base["language_model"]}
            extra |= {} if whole else {"vision_tower": base["vision_tower"]}
    config = resolved_config(options, **extra)
    if not options.answered_only:  # a run of an earlier version, which lacks it, goes on
        del config["answered_only"]
    return {key: value for key, value in config.items() if key not in JUDGE}


def template_of(options: EvaluateOptions) -> str:
    """Which prompt is written: a named template, or a hash of the tokenizer's chat template.

    Two models of one family then count as asked alike, two templates never.
    """
    folder = folder_of(options)
    named = template_name(options.template, options.adapter, folder)
    if named:
        return named
    text = None
    if (folder / "chat_template.jinja").is_file():
        text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif (folder / "tokenizer_config.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        text = settings.get("chat_template")
    if text is None:
        return "the tokenizer's"
    return f"the tokenizer's ({hashlib.sha256(str(text).encode()).hexdigest()[:8]})"


def questions_hash(sample: QuestionSet) -> str:
    """A short hash of the questions and references, without the prompt's form: an edited file is
    another one."""
    digest = hashlib.sha256()
    for question in sample.questions:
        known = [question.sample_id, question.image_name, question.question, question.references]
        digest.update(json.dumps(known, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def image_root(samples: Sequence[Sample]) -> str | None:
    """The folder that the records' picture names start from; None without any picture file."""
    for sample in samples:
        if isinstance(sample.image, Path) and not sample.more_images:
            path, name = sample.image.as_posix(), sample.image_name
            return portable_path(path.removesuffix(name).rstrip("/") or "/")
    return None


def jobs_of(samples: Sequence[Sample], tokenizer: Any = None) -> list[Job]:
    """What is asked, and what scoring needs in the record."""
    return [Job(sample, asked(sample, tokenizer), details(sample)) for sample in samples]


def asked(sample: Sample, tokenizer: Any = None) -> str:
    """The human turn: `<image>` first for each picture, unless words stand between them."""
    if sample.interleaved:
        return escape_tags(sample.prompt, tokenizer, keep_images=True)
    return human_text(sample.prompt, n_pictures(sample), tokenizer)


def n_pictures(sample: Sample) -> int:
    return 0 if sample.image is None else 1 + len(sample.more_images)


def details(sample: Sample) -> dict[str, Any]:
    """Of a record: choices and tables, so that it can be scored where the data is not."""
    found: dict[str, Any] = {"choices": list(sample.choices)} if sample.choices else {}
    if sample.groups:
        found["groups"] = dict(sample.groups)
    if sample.references and sample.target != max(sample.references, key=sample.references.count):
        found["target"] = sample.target
    return found


class SeveralPictures:
    """The model with questions about several pictures: what is opened for one is a list of them.

    Each picture is encoded once a batch; a question gets the numbers of all its own.
    """

    def __init__(self, answerer: Any) -> None:
        self.answerer = answerer
        self.numbers: list[list[int]] = []

    def prompt_problem(self, prompt: str) -> str | None:
        return self.answerer.prompt_problem(prompt)

    def encode_images(self, images: Sequence[Sequence[Image]]) -> Any:
        self.numbers, flat = [], []
        for pictures in images:
            self.numbers.append(list(range(len(flat), len(flat) + len(pictures))))
            flat += pictures
        return self.answerer.encode_images(flat)

    def answer(
        self, features: Any, picture_index: Sequence[int | None], prompts: Sequence[str]
    ) -> list[Answer]:
        index = [None if i is None else self.numbers[i] for i in picture_index]
        return self.answerer.answer(features, index, prompts)


def picture_opener(
    samples: Sequence[Sample], options: EvaluateOptions
) -> Callable[[Question], list[Image]]:
    """Opens what is shown with a question: its own pictures, or by --pictures another's."""
    shown = {sample.sample_id: pictures_of(sample) for sample in samples}
    if options.pictures == "shuffled":
        shown |= shuffled(samples, options.seed)
    return lambda question: [open_image(path) for path in shown[question.sample_id]]


def pictures_of(sample: Sample) -> tuple[Picture, ...]:
    return () if sample.image is None else (sample.image, *sample.more_images)


def shuffled(samples: Sequence[Sample], seed: int) -> dict[str, tuple[Picture, ...]]:
    """sample_id -> another question's pictures, as many as the question has of its own."""
    by_number: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_number[n_pictures(sample)].append(sample)
    dealt: dict[str, tuple[Picture, ...]] = {}
    for number, group in by_number.items():
        if number:
            own = {sample.image: pictures_of(sample) for sample in group}
            dealt |= {key: own[q.image] for key, q in shuffle_pictures(group, seed).items()}
    return dealt


def print_plan(options: EvaluateOptions, sample: QuestionSet, folder: Path) -> None:
    """--dry_run: the sample, one prompt, the memory; no weights are loaded."""
    samples: list[Sample] = sample.questions
    text_only = sum(question.image is None for question in samples)
    print(f"run:      {portable_path(folder)}")
    print(f"task:     {options.task}, split {options.split}, prompt {options.prompt}")
    print(f"sample:   {len(samples)} questions, {text_only} of them without a picture, "
          f"{len(sample.problems)} bad rows left out")  # fmt: skip
    if options.answers:
        print(f"answers:  {options.answers} ({options.answers_format}); no model is asked")
        return
    parts = [*base_of(options).values(), *filter(None, [options.adapter])]
    print(f"model:    {' + '.join(parts)}")
    print(f"decoding: greedy, at most {options.max_new_tokens} new tokens")
    try:
        plan = prompt_plan(options, samples[0])
    except MissingError as error:
        plan = [f"asked:    {asked(samples[0])!r}", f"note:     {error}"]
    print("\n".join(plan))


def prompt_plan(options: EvaluateOptions, sample: Sample) -> list[str]:
    """The first prompt as the model reads it, as far as the model's files are here."""
    from llava_repro.model import n_image_tokens
    from llava_repro.training_data import named_template
    from shared.conversations import segments_of
    from shared.llava_parts import load_tokenizer, prepare_tokenizer

    text = asked(sample)
    tokenizer = load_tokenizer(folder_of(options))
    prepare_tokenizer(tokenizer)
    named = template_name(options.template, options.adapter, folder_of(options))
    pieces = segments_of(
        [("human", text)], tokenizer, named_template(named), add_generation_prompt=True
    )
    config, projector = config_of(options)
    tokens = n_image_tokens(config)
    text_tokens = len(tokenizer(sample.prompt)["input_ids"])
    return [
        f"template: {named or template_of(options)}; {tokens} tokens a picture",
        f"prompt:   {''.join(piece for piece, _ in pieces)!r}",
        f"memory:   {memory(options, config, projector, tokens + text_tokens)}",
    ]


def config_of(options: EvaluateOptions) -> tuple[Any, str]:
    """(configuration, projector type) of what answers, from its folders' config.json."""
    from llava_repro.layouts import open_checkpoint
    from llava_repro.planning import read_config
    from llava_repro.settings import LlavaParts

    base = base_of(options)
    if "model" in base:
        config = open_checkpoint(folder_of(options)).config
        return config, config.projector_type
    known = {name: manifest_value(options.adapter or "", name)
             for name in ("projector_type", "vision_feature_layer")}  # fmt: skip
    return read_config(LlavaParts(**base, **known))[:2]


def memory(
    options: EvaluateOptions, config: Any, projector: str, prompt_tokens: int
) -> MemoryEstimate:
    """GiB of a batch by sizes alone: weights, and the keys and values of prompt and answer."""
    from llava_repro.planning import count_parameters, meta_model

    text = config.text_config
    width = pick_dtype(options.dtype, pick_device(options.device)).itemsize
    counts = count_parameters(meta_model(config, projector))
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * width
    tokens = options.batch_size * (prompt_tokens + (options.max_new_tokens or 0))
    return MemoryEstimate(
        weights=weight_bytes(counts, ["language model"], options.quantization, width) / GIB,
        trainable=0.0,
        activations=tokens * per_token / GIB,
    )
