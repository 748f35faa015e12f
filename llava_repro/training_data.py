"""Training samples: the rows of --data, and how a batch is made of them.

Which rows train and in which order is `shared.conversation_data`'s. A sample is encoded once with
its labels (`shared.conversations.encode`); a picture's tokens are never cut.
What cannot be used (a picture that does not decode, a row without a learned token) is left out of
its batch and reported in `skipped`; the trainer counts it against a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava_repro.settings import TrainOptions
from llava_repro.templates import TEMPLATES
from shared.conversation_data import Row, Rows, choose_rows, learnable, right_padded, row_name
from shared.conversations import Template, encode, open_conversations, row_images
from shared.images import open_image, pad_to_square
from shared.options import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments


# Which rows


def named_template(name: str | None) -> Template | None:
    """A template of templates.py, None for the tokenizer's own. Raises UserError."""
    if name is not None and name not in TEMPLATES:
        raise UserError(f"--template {name}: not one of {', '.join(TEMPLATES)}")
    return None if name is None else TEMPLATES[name]


def open_rows(options: TrainOptions, seed: int) -> tuple[Rows, Rows] | None:
    """(rows that train, rows held out) of --data, or None when the file is not here."""
    path = Path(options.data or "")
    if not path.is_file():
        return None
    root = Path(options.image_root or path.parent)
    rows = open_conversations(path, root)
    return choose_rows(
        rows, limit=options.limit, n_validation=options.validation_samples, seed=seed
    )


# Batches


class ConversationCollator:
    """Rows -> a batch of `LlavaForTraining`, with `sample_ids`, `skipped` and `shortened`."""

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        template: Template | None,
        *,
        n_image_tokens: int,
        max_length: int,
        image_root: Path,
        image_aspect_ratio: str = "square",
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = template
        self.n_image_tokens = n_image_tokens
        self.max_length = max_length
        self.image_root = image_root
        self.pads = image_aspect_ratio == "pad"
        self.image_token_id = tokenizer.convert_tokens_to_ids("<image>")

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """input_ids, attention_mask, labels (B, T) padded on the right, pixel_values
        (pictures, 3, H, W) or absent when the batch has none.

        Without one usable sample: empty `sample_ids` and labels (0, 0), to be counted and passed
        over.
        """
        samples, pictures, sample_ids, skipped, shortened = [], [], [], [], []
        for row in rows:
            name = row_name(row)
            try:
                if "problem" in row:
                    raise UserError(row["problem"])
                sample, cut = self.encode(row)
                own = [open_image(path) for path in row_images(row, self.image_root)]
            except UserError as error:
                message = str(error)
                skipped.append(message if name in message else f"{name}: {message}")
                continue
            samples.append(sample)
            pictures += own
            sample_ids.append(name)
            if cut:
                shortened.append(name)
        if not samples:
            nothing = torch.empty((0, 0), dtype=torch.long)
            return {"labels": nothing, "sample_ids": [], "skipped": skipped}
        batch = right_padded(samples, self.tokenizer.pad_token_id)
        if pictures:
            batch["pixel_values"] = self.pixels(pictures)
        return {**batch, "sample_ids": sample_ids, "skipped": skipped, "shortened": shortened}

    def encode(self, row: Row) -> tuple[dict[str, list[int]], bool]:
        """Ids and labels of a row, and whether its text was shortened.

        Raises UserError for a row that cannot be learned from: it has no learned token, its
        pictures do not fit, or shortening would have to cut into a picture.
        """
        sample = encode(row, self.tokenizer, self.template, self.n_image_tokens)
        n_tokens = sample["input_ids"].count(self.image_token_id)
        n_pictures = len(row_images(row, self.image_root))
        if n_tokens != n_pictures * self.n_image_tokens:
            raise UserError(
                f"{row_name(row)}: {n_pictures} pictures, but {n_tokens // self.n_image_tokens} "
                "<image> in its text"
            )
        fitting = learnable(sample, row_name(row), self.max_length, self.image_token_id)
        return fitting, fitting is not sample

    def pixels(self, pictures: Sequence[Any]) -> torch.Tensor:
        if self.pads:
            mean = tuple(int(255 * value) for value in self.image_processor.image_mean)
            pictures = [pad_to_square(picture, mean) for picture in pictures]
        return self.image_processor(pictures, return_tensors="pt")["pixel_values"]


def validation_loss(
    model: Any, collate: ConversationCollator, held_out: Rows, training: TrainingArguments
) -> dict[str, float]:
    """Cross-entropy per learned token over the held-out rows, however they are batched."""
    total, tokens, size = 0.0, 0, training.per_device_train_batch_size
    for start in range(0, len(held_out), size):
        batch = collate([held_out[i] for i in range(start, min(start + size, len(held_out)))])
        if not batch["sample_ids"]:
            continue
        tensors = {k: v.to(training.device) for k, v in batch.items() if torch.is_tensor(v)}
        total += float(model(**tensors, num_items_in_batch=1)["loss"])
        tokens += int((batch["labels"] >= 0).sum())
    if not tokens:
        raise UserError(f"not one held-out row can be used; the first: {batch['skipped'][0]}")
    return {"loss": total / tokens}
