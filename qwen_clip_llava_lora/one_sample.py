"""One row of the data, everything printed: what was sent, what came back, how likely the reference.

    python qwen_clip_llava_lora/evaluate.py --toy --index 17
    python qwen_clip_llava_lora/evaluate.py --model M --adapter A --data D --index 17

With an adapter base and tuned stand side by side. Nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.evaluation_settings import EvaluateOptions
from qwen_clip_llava_lora.evaluation_setup import (
    Sample,
    Samples,
    jobs_of,
    load_model,
    picture_opener,
    pictures_of,
    scorable,
)
from qwen_clip_llava_lora.scoring import score_records
from shared.answering import Job, answer_batch, score_batch
from shared.options import UserError, portable_path

if TYPE_CHECKING:
    from shared.vision_language import VisionLanguage

LABEL_WIDTH = 22


def show_samples(options: EvaluateOptions, found: Samples) -> None:
    """Ask every sample of the row, base and tuned, and print each whole."""
    if options.pictures == "shuffled":
        raise UserError("--index shows one row with its own picture; leave out --pictures shuffled")
    jobs = jobs_of(found.samples)
    shown: dict[str, list[dict[str, Any]]] = {}
    for name, adapter in {"base": None, "tuned": options.adapter}.items():
        if name == "tuned" and adapter is None:
            continue
        model = load_model(options, adapter)
        shown[name] = [ask_one(model, job, options, found) for job in jobs]
    for i, sample in enumerate(found.samples):
        print_sample(sample, found, {name: lines[i] for name, lines in shown.items()})


def ask_one(
    model: VisionLanguage, job: Job, options: EvaluateOptions, found: Samples
) -> dict[str, Any]:
    """The record of one job with its scores, its prompt as sent and its number of image tokens."""
    opener: Any = picture_opener(found.samples, options)
    (record,) = answer_batch(model, [job], opener)
    likelihoods = {}
    if scorable([job]):
        target = job.details["target"].strip()
        (scored,) = score_batch(model, [job], lambda _: [target], opener, "mean", 1)
        likelihoods[record["sample_id"]] = scored
    (row,) = score_records([record], found.task, found.classes, likelihoods)
    sent, n_tokens = as_sent(model, job, record, opener)
    return record | row | {"sent": sent, "image_tokens": n_tokens}


def as_sent(
    model: VisionLanguage, job: Job, record: Mapping[str, Any], opener: Any
) -> tuple[str, int | None]:
    """The prompt's tokens as text, each run of image tokens as one tag with its number."""
    family = model.family
    if record["status"] != "ok":
        return job.prompt, None
    opened = [opener(job.question)] if job.question.image is not None else []
    features = model.encode_images(opened)
    ids = model.sent_ids(job.prompt, features[0] if features else None)
    n_tokens = sum(token == family.image_token_id for token in ids)
    text = model.tokenizer.decode(ids)
    tag = model.tokenizer.convert_ids_to_tokens(family.image_token_id)
    run = re.compile(f"(?:{re.escape(tag)})+")
    return run.sub(lambda m: f"{tag}x{len(m[0]) // len(tag)}", text), n_tokens


def print_sample(sample: Sample, found: Samples, shown: Mapping[str, Mapping[str, Any]]) -> None:
    """What is the same for base and tuned once, the rest a line each."""
    first = next(iter(shown.values()))
    named = [portable_path(str(picture)) for picture in pictures_of(sample)] or ["(no picture)"]
    rows: list[tuple[str, Sequence[str]]] = [
        ("sample", [f"{sample.sample_id} ({found.task}, {sample.language})"]),
        ("data", [portable_path(found.data.source)]),
        *(("picture", [name]) for name in named),
        ("image tokens", [text_of(first["image_tokens"])]),
        ("prompt as sent", [repr(first["sent"])]),
        *(("reference", [repr(text)]) for text in sample.references),
    ]  # fmt: skip
    if sample.label is not None:
        rows.append(("class", [sample.label]))
    fields = [
        ("answer", lambda r: repr(r["answer"]) if r["status"] == "ok" else f"error: {r['error']}"),
        ("raw output", lambda r: repr(r["raw_output"])),
        ("finish reason", lambda r: text_of(r["finish_reason"])),
        ("answer tokens", lambda r: text_of(r["n_tokens"])),
        ("confidence", lambda r: text_of(r["confidence"])),
        ("log-likelihood", likelihood_text),
        ("exact match", lambda r: text_of(r["exact_match"])),
        ("token F1", lambda r: text_of(r["token_f1"])),
        *([("class named", lambda r: f"{r['predicted'] or 'none'} ({r['match']})")]
          if sample.label is not None else []),
        *([("VQA accuracy", lambda r: text_of(r["scores"]["official-2021"]))]
          if "scores" in first else []),
        ("seconds", lambda r: text_of(r["seconds"])),
    ]  # fmt: skip
    for label, value in fields:
        for name, record in shown.items():
            rows.append((f"{label} {name}" if len(shown) > 1 else label, [value(record)]))
    for label, values in rows:
        for value in values:
            print(f"{label:<{LABEL_WIDTH}} {value}")
    print()


def likelihood_text(record: Mapping[str, Any]) -> str:
    value, n = record.get("log_likelihood"), record.get("reference_tokens")
    if value is None:
        return f"none ({record.get('likelihood_error')})"
    return f"{value:.4f} of the row's own answer, {n} tokens, {value / n:.4f} a token"


def text_of(value: Any) -> str:
    return "none" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
