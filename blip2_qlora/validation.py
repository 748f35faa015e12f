"""Validation while training: loss and accuracy of the held-out questions, as the model stands."""

from __future__ import annotations

from typing import Any

import torch

from blip2_qlora.blip2 import Blip2Answerer, Decoding
from blip2_qlora.scoring import score_record
from blip2_qlora.training_data import VqaCollator, group_by_picture
from shared.answering import Job, answer_batch, batches_by_picture
from shared.images import open_image
from shared.options import UserError
from shared.vqav2 import Question

QUESTIONS_PER_PICTURE = 4  # answered at once; VQAv2 has 5.4, and answering takes less than learning


def validate(
    model: Any,
    processor: Any,
    prompt: str,
    held_out: list[Question],
    *,
    questions_per_picture: int,
    batch_size: int = 8,
) -> dict[str, float]:
    """Loss per answer token and accuracy (greedy, headline metric, 0..1), `batch_size` pictures at
    a time (--per_device_eval_batch_size).

    Questions that cannot be used count as wrong and have no part in the loss. Raises UserError when
    none can be used.
    """
    collate = VqaCollator(model.model.get_base_model(), processor, prompt)
    device = next(model.parameters()).device
    groups = group_by_picture(held_out, questions_per_picture)
    total, tokens, scores = 0.0, 0, []
    for start in range(0, len(groups), batch_size):
        batch = collate(groups[start : start + batch_size])
        if not batch["sample_ids"]:
            continue
        tensors = {key: value.to(device) for key, value in batch.items() if torch.is_tensor(value)}
        total += float(model(**tensors, num_items_in_batch=1)["loss"])
        tokens += int((batch["labels"] >= 0).sum())
    answerer = Blip2Answerer(model.model, processor, Decoding(num_beams=1))
    jobs = [Job(question, prompt.format(question.question)) for question in held_out]
    for jobs_batch in batches_by_picture(jobs, QUESTIONS_PER_PICTURE * batch_size):
        records = answer_batch(answerer, jobs_batch, lambda question: open_image(question.image))
        scores += [score_record(record)["score"] for record in records]
    if not tokens:
        raise UserError(f"not one held-out question can be used; the first: {records[0]['error']}")
    return {"loss": total / tokens, "accuracy": sum(scores) / len(scores)}
