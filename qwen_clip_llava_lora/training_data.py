"""Training samples: the rows of --data, which of them are held out, and how a batch is made.

Rows of any format (`data_formats.py`) come as LLaVA rows; `encoding.py` writes them in the model's
own chat form with their labels. What cannot be used (a picture that does not decode, a row without
an answer) is left out of its batch and reported in `skipped`; the trainer counts it against a
bound.

Used by train.py and planning.py; reads data files and pictures, writes nothing.
Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwen_clip_llava_lora.data_formats import Data, mix_data, open_data
from qwen_clip_llava_lora.encoding import batch_inputs, check_counts, encode_row, picture_inputs
from qwen_clip_llava_lora.train_settings import TrainOptions
from shared.conversation_data import Row, Rows, choose_rows, learnable, right_padded, row_name
from shared.conversations import row_images
from shared.images import open_image
from shared.options import UserError, manifest_value, read_json

if TYPE_CHECKING:
    from shared.vision_families import Family


@dataclass(frozen=True)
class TrainingData:
    """What trains and what is held out. `validation` is the data that the held-out rows are of."""

    learned: Rows
    held_out: Rows
    source: Data  # of one --data, or several mixed
    validation: Data
    parts: tuple[Data, ...]  # the --data as they were opened


def open_training_data(options: TrainOptions, seed: int) -> TrainingData:
    """--data opened, mixed where there are several, a part held out by picture (or
    --validation_data). Raises UserError, MissingError for a file that is not there."""
    root = None if options.image_root is None else Path(options.image_root)
    parts = tuple(open_data(Path(path), root) for path in options.data or ())
    source = parts[0]
    if len(parts) > 1:
        source = mix_data(parts, options.data_weights, seed)
    n_held = options.validation_samples if options.validation_data is None else 0
    learned, held_out = choose_rows(
        source.rows, limit=options.limit, n_validation=n_held, seed=seed
    )
    validation = source
    if options.validation_data is not None:
        validation = open_data(Path(options.validation_data), root)
        if any(part.source.resolve() == validation.source.resolve() for part in parts):
            print(
                f"note: {options.validation_data} is learned from and validates; without "
                "--validation_data a part is held out by picture"
            )
        places: Sequence[int] = range(len(validation.rows))
        if 0 < options.validation_samples < len(places):
            places = sorted(random.Random(seed).sample(places, options.validation_samples))
            print(f"{len(places)} of {len(validation.rows)} rows of --validation_data validate")
        held_out = Rows(validation.rows, places)
    return TrainingData(learned, held_out, source, validation, parts)


class VlmCollator:
    """Rows -> a batch of `VlmForTraining`, with `sample_ids`, `skipped` and `shortened`."""

    def __init__(self, family: Family, image_root: Path, max_length: int) -> None:
        self.family = family
        self.image_root = image_root
        self.max_length = max_length

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """input_ids, attention_mask, labels (B, T) padded on the right, and the pictures as the
        model's forward takes them, absent when the batch has none.

        Without one usable sample: empty `sample_ids` and labels (0, 0), to be counted and passed
        over.
        """
        samples, pictures, sample_ids, skipped = [], [], [], []
        for row in rows:
            name = row_name(row)
            try:
                sample, own = self.encode(row)
            except UserError as error:
                message = str(error)
                skipped.append(message if name in message else f"{name}: {message}")
                continue
            samples.append(sample)
            pictures += own
            sample_ids.append(name)
        if not samples:
            nothing = torch.empty((0, 0), dtype=torch.long)
            return {"labels": nothing, "sample_ids": [], "skipped": skipped}
        batch = right_padded(samples, self.family.pad_id)
        batch |= batch_inputs(self.family, batch["input_ids"])
        shown = picture_inputs(self.family, pictures)
        check_counts(self.family, batch["input_ids"], shown)
        return {**batch, **shown, "sample_ids": sample_ids, "skipped": skipped}

    def encode(self, row: Row) -> tuple[dict[str, list[int]], list[Any]]:
        """Ids and labels of a row, and its pictures.

        Raises UserError for a row that cannot be learned from: it has no learned token, a picture
        is broken, or shortening would have to cut into a picture.
        """
        if "problem" in row:
            raise UserError(row["problem"])
        pictures = [open_image(path) for path in row_images(row, self.image_root)]
        sample = encode_row(self.family, row, [picture.size for picture in pictures])
        fitting = learnable(sample, row_name(row), self.max_length, self.family.image_token_id)
        return fitting, pictures


def data_is_synthetic(data: TrainingData) -> bool:
    """Whether a part of it is the toy world's, by the manifest or dataset.json beside it."""
    for part in (*data.parts, data.validation):
        folder = part.source if part.source.is_dir() else part.source.parent
        described = folder / "dataset.json"
        said = read_json(described) if described.is_file() else {}
        said = said if isinstance(said, dict) else {}
        if said.get("synthetic") or manifest_value(folder, "synthetic"):
            return True
    return False
