"""What evaluate.py settles before the model is asked: samples, run folder, options, the plan.

    python lavis_apps/evaluate.py --toy --task retrieval --dry_run

Reads data roots, configurations and manifests; writes nothing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from lavis_apps.blip import blip_kind
from lavis_apps.classification import BLIP_TEMPLATE, CLIP_TEMPLATE
from lavis_apps.data import TaskData
from lavis_apps.evaluation import jobs_of
from lavis_apps.evaluation_samples import load_samples
from lavis_apps.evaluation_settings import ASKED, EvaluateOptions
from lavis_apps.evaluation_splits import warning, weights_saw
from lavis_apps.settings import RUNS, TASK_KINDS
from shared.loading import adapter_fingerprint, fingerprint, model_folder, pick_device, pick_dtype
from shared.options import (
    MissingError,
    UserError,
    manifest_value,
    portable_path,
    read_json,
    resolved_config,
)
from shared.vqav2 import sample_questions


def chosen_samples(options: EvaluateOptions) -> tuple[TaskData, bool]:
    """The sample to ask about, and whether it is everything that the split holds."""
    found = load_samples(
        options.task, Path(options.data_root or ""), str(options.split), options.categories
    )
    chosen = sample_questions(found.samples, options.limit, options.seed)
    whole = len(chosen) == len(found.samples) and not found.problems
    return TaskData(found.name, chosen, found.problems, found.classes), whole


def run_folder(options: EvaluateOptions) -> Path:
    """--output_dir, or one whose name says what ran: what is not the default is in it."""
    if options.output_dir:
        return Path(options.output_dir)
    adapter = Path(options.adapter).resolve() if options.adapter else None
    parent = Path(str(options.model)).resolve().parent  # RUN/model of a training says RUN
    named = Path(str(options.model)).name
    if named in ("model", "best"):
        named = f"{parent.name}_{named}"
    asked = [
        f"{name}_{re.sub(r'[^a-zA-Z0-9]+', '_', Path(str(value)).name).strip('_')}"
        for name, value in asked_of(options).items()
        if value != default_of(options.task, name)
    ]
    parts = [
        options.task,
        Path(str(options.data_root)).name,
        str(options.split),
        str(options.limit or "all"),
        f"seed{options.seed}" if options.limit else "",
        named,
        f"{adapter.parent.name}_{adapter.name}" if adapter else "",
        "" if options.quantization == "none" else options.quantization,
        *asked,
    ]
    return RUNS / "_".join(part for part in parts if part)[:200]


def asked_of(options: EvaluateOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ASKED[options.task]}


def default_of(task: str, name: str) -> Any:
    return next(field.default for field in fields(EvaluateOptions) if field.name == name)


def run_config(options: EvaluateOptions) -> dict[str, Any]:
    """`config.json`: the options that matter to the task, `asked` what the model gets with each
    sample. Raises where model or device is missing."""
    folder = model_folder(str(options.model))
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    lists = {name: file_hash(getattr(options, name)) for name in ("candidates", "templates")
             if name in ASKED[options.task]}  # fmt: skip
    asked = asked_of(options) | {f"{name}_hash": hash_ for name, hash_ in lists.items()}
    if options.task == "classification" and options.templates is None:
        is_clip = read_json(folder / "config.json").get("model_type") == "clip"
        asked["templates"] = CLIP_TEMPLATE if is_clip else BLIP_TEMPLATE
    config = resolved_config(
        options,
        script="evaluate",
        asked=asked,
        compute_dtype=str(dtype).removeprefix("torch."),
        model_fingerprint=fingerprint(folder),
        adapter_fingerprint=adapter_fingerprint(options.adapter),
        data_hash=manifest_value(str(options.data_root), "data_hash"),
    )
    left_out = {name for names in ASKED.values() for name in names}
    return {key: value for key, value in config.items() if key not in left_out}


def file_hash(path: str | None) -> str | None:
    """Of a file of lines, so that an edited one is another run. Raises UserError."""
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_model(options: EvaluateOptions) -> Any:
    """What `evaluate_model` takes for the task. Raises MissingError and UserError."""
    where: dict[str, Any] = {
        "device": options.device, "dtype": options.dtype, "adapter": options.adapter,
    }  # fmt: skip
    if options.task in ("caption", "vqa"):
        from lavis_apps.captioning import open_speaker

        return open_speaker(
            str(options.model), options.task, options.device, options.dtype, options.adapter,
            options.quantization,
        )  # fmt: skip
    if options.quantization != "none":
        raise UserError("--quantization is for --task caption and vqa, of BLIP-2 and LLaVA")
    if options.task in ("retrieval", "classification"):
        from lavis_apps.features import open_family

        return open_family(str(options.model), **where)
    from lavis_apps.blip import load_blip

    return load_blip(str(options.model), kind="matching", **where)


def what_weights_saw(options: EvaluateOptions, config: dict[str, Any]) -> dict[str, Any]:
    """`weights_saw`, with its warning or None."""
    known = config | {"synthetic_data": synthetic_data(options)}
    found = weights_saw(options.task, str(options.model), options.adapter, known)
    scored = f"{options.split} of {portable_path(str(options.data_root))}"
    return found | {"warning": warning(found, scored)}


def synthetic_data(options: EvaluateOptions) -> bool:
    return bool(manifest_value(str(options.data_root), "synthetic"))


def synthetic(options: EvaluateOptions) -> dict[str, bool]:
    """Whether data and model are a toy's, by their manifests."""
    parts = [str(model_folder(str(options.model))), options.adapter]
    return {
        "data": synthetic_data(options),
        "model": any(manifest_value(part, "synthetic") for part in parts if part),
    }


def print_plan(options: EvaluateOptions, folder: Path) -> None:
    """--dry_run: model, sample, one prompt, what the weights saw; no weights are loaded."""
    print(f"run:      {portable_path(folder)}")
    try:
        content = read_json(model_folder(str(options.model)) / "config.json")
        kind = blip_kind(model_folder(str(options.model)))
        said = f"{content.get('model_type')}{f', BLIP for {kind}' if kind else ''}"
        if kind not in (None, TASK_KINDS[options.task]):
            raise UserError(f"{options.model}: a BLIP for {kind}; --task {options.task} needs one "
                            f"for {TASK_KINDS[options.task]}")  # fmt: skip
    except MissingError as error:
        said = f"not known, {error}"
    print(f"model:    {options.model} ({said})")
    print(f"asked:    {', '.join(f'{k} {v!r}' for k, v in asked_of(options).items()) or '–'}")
    found = what_weights_saw(options, {
        "data_root": portable_path(str(options.data_root)), "split": options.split,
        "data_hash": manifest_value(str(options.data_root), "data_hash"),
    })  # fmt: skip
    for line in found["trained_on"]:
        print(f"weights:  {line}")
    if found["warning"]:
        print(f"WARNING:  {found['warning']}")
    try:
        data, whole = chosen_samples(options)
    except MissingError as error:
        print(f"sample:   not known, {error}")
        return
    part = "all of it" if whole else f"{len(data.problems)} bad rows left out"
    print(f"sample:   {len(data.samples)} of {options.split} ({part})")
    if options.task == "retrieval":
        m, n = len(data.samples), sum(len(sample.references) for sample in data.samples)
        pairs = m * min(options.k_test, n) + n * min(options.k_test, m)
        print(f"queries:  {m} pictures and {n} captions; at most {pairs:,} pairs for ITM")
    else:
        first = jobs_of(options.task, data.samples, options, options.seed)[0]
        asked = first.question
        print(f"first:    {asked.image_name} {asked.question!r}, prompt {first.prompt!r}")
