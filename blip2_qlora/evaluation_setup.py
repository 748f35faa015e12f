"""What `evaluate.py` settles before the model answers: questions, run folder, prompts, the plan.

python blip2_qlora/evaluate.py --toy --dry_run
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2_qlora.settings import EvaluateOptions, data_hash
from shared.answering import Job, shuffle_pictures
from shared.comparison import learned_from
from shared.images import open_image
from shared.loading import adapter_fingerprint, fingerprint, model_folder, pick_device, pick_dtype
from shared.options import MissingError, UserError, manifest_value, portable_path, resolved_config
from shared.vqav2 import Question, QuestionSet, load_rows, load_split

if TYPE_CHECKING:
    from PIL.Image import Image

    from blip2_qlora.blip2 import Preset


def load_questions(options: EvaluateOptions) -> tuple[QuestionSet, bool]:
    """The sample to ask, and whether it is everything that the split or file holds."""
    rows = (
        load_rows(Path(options.data))
        if options.data
        else load_split(Path(options.data_root), options.split)
    )
    unasked = [q for q in rows.questions if not q.question.strip()]
    if unasked:
        raise UserError(
            f"{options.data}: {len(unasked)} rows have no question; predict.py captions"
        )
    sample = rows.sample(options.limit, options.seed)
    return sample, len(sample.questions) == len(rows.questions) and not rows.problems


def run_name(options: EvaluateOptions) -> str:
    """What ran, in the folder's name: data, sample, model, adapter, and what is not the default."""
    adapter = Path(options.adapter).resolve() if options.adapter else None
    captions = options.task == "caption"
    parts = [
        "caption" if captions else "",
        Path(options.data).stem if options.data else options.split,
        str(options.limit or "all"),
        f"seed{options.seed}" if options.limit else "",
        Path(options.model).name,
        f"{adapter.parent.name}_{adapter.name}" if adapter else "zero-shot",
        "" if options.quantization == "none" else options.quantization,
        "" if captions or options.preset == "paper" else options.preset,
        "_".join(re.findall(r"\w+", options.caption_prompt)),
        "greedy" if options.greedy else "",
        "" if options.pictures == "own" else "shuffled",
    ]
    return "_".join(part for part in parts if part)


def choose_asking(options: EvaluateOptions) -> Preset:
    """Prompt and decoding of the questions, or of captions."""
    from blip2_qlora.blip2 import Preset, caption_decoding, choose_preset, read_config

    config = read_config(options.model, options.revision)
    if options.task == "caption":
        decoding = caption_decoding(greedy=options.greedy, min_tokens=options.caption_min_tokens)
        return Preset(options.caption_prompt, decoding)
    return choose_preset(config, options.preset, options.prompt, options.greedy)


def run_config(options: EvaluateOptions, preset: Preset) -> dict[str, Any]:
    """`config.json`: the options and what they came to. Raises where model or device is missing."""
    base_folder = model_folder(options.model, options.revision)
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    config = resolved_config(
        options,
        script="evaluate",
        asked={"prompt": preset.prompt, **asdict(preset.decoding)},
        compute_dtype=str(dtype).removeprefix("torch."),
        model_fingerprint=fingerprint(base_folder),
        adapter_fingerprint=adapter_fingerprint(options.adapter),
        data_hash=data_hash(options.data_root, options.data),
    )
    of_captions = {"task", "caption_prompt", "caption_min_tokens"}
    if options.task == "vqa":  # a run of an earlier version, which lacks them, goes on
        return {key: value for key, value in config.items() if key not in of_captions}
    return {key: value for key, value in config.items() if key not in {"preset", "prompt", "data"}}


def adapter_notes(options: EvaluateOptions, prompt: str) -> list[str]:
    """Where this evaluation asks the adapter otherwise than it was trained."""
    if not options.adapter:
        return []
    trained = {key: manifest_value(options.adapter, key) for key in ("quantization", "prompt")}
    here = {"quantization": options.quantization, "prompt": prompt}
    return [
        f"note: the adapter was trained with {key} {trained[key]!r}, it is evaluated with {value!r}"
        for key, value in here.items()
        if trained[key] not in (None, value)
    ]


def trained_on_scored(options: EvaluateOptions, config: dict[str, Any]) -> bool | None:
    """Whether the adapter learned from the file or split that is scored here, by its manifest.

    None for an adapter that has no record of its data. `config`: what `run_config` gives.
    """
    if not options.adapter:
        return False
    learned = manifest_value(options.adapter, "data")
    return learned_from({"data": learned}, config) if learned else None


def jobs_of(sample: QuestionSet, preset: Preset) -> list[Job]:
    return [Job(question, preset.prompt.format(question.question)) for question in sample.questions]


def picture_opener(sample: QuestionSet, options: EvaluateOptions) -> Callable[[Question], Image]:
    """Opens the picture that is shown with a question: its own, or by --pictures another's."""
    shown = (
        shuffle_pictures(sample.questions, options.seed) if options.pictures == "shuffled" else {}
    )
    return lambda question: open_image(shown.get(question.sample_id, question).image)


def print_plan(
    options: EvaluateOptions,
    folder: Path,
    preset: Preset,
    load: Callable[[EvaluateOptions], tuple[QuestionSet, bool]] = load_questions,
) -> None:
    """--dry_run: the sample, one prompt, the memory; no weights are loaded.

    Data that is not there yet is said, and the rest of the plan is shown without it.
    """
    asked = "pictures" if options.task == "caption" else "questions"
    from blip2_qlora.blip2 import language_model_kind, read_config
    from blip2_qlora.planning import adapter_plan, inference_plan

    config = read_config(options.model, options.revision)
    question = "What is in the picture?"
    try:
        sample, _ = load(options)
    except MissingError as error:
        said = f"not known, {error}"
    else:
        question = sample.questions[0].question
        said = f"{len(sample.questions)} {asked}, {len(sample.problems)} bad rows left out"
        if sample.left_out:
            print(sample.left_out)
    print(f"run:      {portable_path(folder)}")
    print(f"model:    {options.model} ({language_model_kind(config)})")
    print(f"sample:   {said}")
    plan = inference_plan(
        config,
        preset,
        question,
        quantization=options.quantization,
        dtype=options.dtype,
        batch=options.batch_size,
    )
    plan += adapter_plan(config, options.model, options.revision, options.adapter)
    print("\n".join(plan))
