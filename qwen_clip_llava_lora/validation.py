"""Validation while training: the loss of the held-out rows and a task metric of greedy answers.

The loss is cross-entropy per learned token over all held-out rows. The first rows of them are also
answered by the model as it stands (`shared.vision_language` around the same weights) and scored as
evaluate.py scores: CIDEr for captions (0 to 10), exact match for labels, token F1 else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from qwen_clip_llava_lora.answer_scores import exact_match, token_f1
from qwen_clip_llava_lora.evaluation_setup import Sample, pictures_of, prompt_of, samples_of_row
from qwen_clip_llava_lora.train_settings import TrainOptions
from qwen_clip_llava_lora.training_data import TrainingData, VlmCollator
from shared.caption_score import score_captions
from shared.images import open_image
from shared.options import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from shared.vision_families import Family
    from shared.vision_language import VisionLanguage

METRICS = {"caption": "cider", "label": "exact_match"}
ANSWERED_TOGETHER = 8  # prompts in one forward pass


def metric_name(options: TrainOptions, data: TrainingData) -> str | None:
    """The metric of the held-out answers, None where none are made."""
    if not len(data.held_out) or not options.validation_answers:
        return None
    if options.validation_metric != "auto":
        return options.validation_metric
    return METRICS.get(data.validation.kind or "", "token_f1")


def validation_loss(
    model: Any, collate: VlmCollator, rows: Sequence[Any], training: TrainingArguments
) -> float:
    """Cross-entropy per learned token, however the rows are batched. Raises UserError when not one
    can be used."""
    total, tokens, skipped = 0.0, 0, []
    size = training.per_device_eval_batch_size
    for start in range(0, len(rows), size):
        batch = collate([rows[i] for i in range(start, min(start + size, len(rows)))])
        skipped += batch["skipped"]
        if not batch["sample_ids"]:
            continue
        tensors = {k: v.to(training.device) for k, v in batch.items() if torch.is_tensor(v)}
        total += float(model(**tensors, num_items_in_batch=1)["loss"])
        tokens += int((batch["labels"][:, 1:] >= 0).sum())
    if not tokens:
        raise UserError(f"not one held-out row can be used; the first: {skipped[0]}")
    return total / tokens


def answered_samples(data: TrainingData, n: int) -> list[Sample]:
    """The first `n` held-out rows that can be asked, each with its first answer's references."""
    samples: list[Sample] = []
    task = data.validation.kind or "text"
    for i in data.held_out.indices:
        if len(samples) >= n:
            break
        try:
            own = list(samples_of_row(data.validation, i, task, "first"))
        except UserError:  # counted by the loss and by the checks before training
            continue
        samples += [sample for sample in own if any(sample.references)]
    if not samples:
        raise UserError(
            "not one held-out row has an answer to compare with: give --validation_answers 0"
        )
    return samples


def asker(family: Family, max_new_tokens: int) -> VisionLanguage:
    """The model that trains, as one that answers: the same weights, nothing is copied."""
    from shared.vision_language import VisionLanguage

    return VisionLanguage(family, max_new_tokens=max_new_tokens, tags_are_meant=True)


def answers(model: VisionLanguage, samples: Sequence[Sample]) -> list[str]:
    """Greedy answers in order; "" for a broken picture, which then counts as wrong."""
    said = [""] * len(samples)
    shown: list[tuple[int, Any]] = []
    for place, sample in enumerate(samples):
        try:
            shown.append((place, [open_image(path) for path in pictures_of(sample)]))
        except UserError:
            continue
    for start in range(0, len(shown), ANSWERED_TOGETHER):
        chunk = shown[start : start + ANSWERED_TOGETHER]
        groups = [own if len(own) > 1 else own[0] for _, own in chunk if own]
        numbers = iter(range(len(groups)))
        index = [next(numbers) if own else None for _, own in chunk]
        prompts = [prompt_of(samples[place]) for place, _ in chunk]
        features = model.encode_images(groups)
        for (place, _), answer in zip(chunk, model.answer(features, index, prompts), strict=True):
            said[place] = answer.answer
    return said


def score(metric: str, samples: Sequence[Sample], said: Sequence[str]) -> float:
    """The metric over the samples: CIDEr 0 to 10, the others 0 to 1."""
    if metric == "cider":
        references = {s.sample_id: list(s.references) for s in samples}
        candidates = {s.sample_id: text for s, text in zip(samples, said, strict=True)}
        language = "zh" if any(s.language == "zh" for s in samples) else "en"
        scores = score_captions(
            references, candidates, language=language, meteor=False, n_resamples=2
        )
        return float(scores["corpus"]["CIDEr"] or 0.0)
    rule = exact_match if metric == "exact_match" else token_f1
    values = [
        rule(text, [r for r in sample.references if r], sample.language)
        for sample, text in zip(samples, said, strict=True)
    ]
    return sum(values) / len(values)


class Validation:
    """What the trainer calls at each evaluation: figures by name, "loss" and the metric's."""

    def __init__(
        self,
        options: TrainOptions,
        training: TrainingArguments,
        data: TrainingData,
        family: Family,
        dtype: torch.dtype,
    ) -> None:
        self.training = training
        self.rows = data.held_out
        self.collate = VlmCollator(family, Path(data.validation.image_root), options.max_length)
        self.metric = metric_name(options, data)
        self.dtype = dtype
        self.samples: list[Sample] = []
        if self.metric is not None:
            self.samples = answered_samples(data, options.validation_answers)
            self.asker = asker(family, options.validation_max_new_tokens)

    def __call__(self, model: Any) -> dict[str, float]:
        figures = {"loss": validation_loss(model, self.collate, self.rows, self.training)}
        if self.metric is not None:
            mixed = self.dtype != torch.float32
            with torch.autocast(self.training.device.type, self.dtype, enabled=mixed):
                said = answers(self.asker, self.samples)
            figures[self.metric] = score(self.metric, self.samples, said)
        return figures


class EarlyStopping(TrainerCallback):
    """Ends the training after `patience` validations in a row without a better figure.

    It counts in the trainer's own history, which a checkpoint holds: a continued run stops where
    an uninterrupted one does.
    """

    def __init__(self, selection: str, patience: int) -> None:
        self.key = f"eval_{selection}"
        self.sign = -1 if selection == "loss" else 1
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        values = [self.sign * row[self.key] for row in state.log_history if self.key in row]
        if values and len(values) - 1 - values.index(max(values)) >= self.patience:
            print(f"no better {self.key} in {self.patience} validations: stopped early")
            control.should_training_stop = True
