"""The training side of a model family: a row of data as token ids, labels and picture tensors.

A row is written by the folder's own chat template, piece by piece, each piece tokenised by itself:
an answer and the end token behind it are learned, everything else has the label -100. A picture
stands as one placeholder in the template's text and is then written out as many times as the
image processor makes tokens of it, which follows from the size in the file's header. What stands
before an answer here is, id by id, what `shared.vision_language` asks with.

Used by train.py; `family` is a `shared.vision_families.Family`, made without weights. Reads and
writes nothing.
Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.conversations import IMAGE_TAG, encode, ids_after, segments_of
from shared.images import squared
from shared.options import IGNORE_INDEX, UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from shared.vision_families import Family

Size = tuple[int, int]  # (width, height) of a picture


def encode_row(family: Family, row: dict[str, Any], sizes: Sequence[Size]) -> dict[str, list[int]]:
    """A LLaVA row -> {"input_ids", "labels"}, of equal length, not padded, labels not shifted.

    `sizes` are (width, height) of the row's pictures as they are shown, in the order of their
    `<image>`. Raises UserError for a malformed row, one without an answer to learn, and when sizes
    and `<image>` differ in number.
    """
    if family.config.model_type == "llava":
        encoded = encode(row, family.tokenizer, None, 1)
    else:
        encoded = encode_parts(family, row)
    n_places = encoded["input_ids"].count(family.image_token_id)
    if n_places != len(sizes):
        raise UserError(
            f"row {row.get('id')!r}: {n_places} {IMAGE_TAG} for {len(sizes)} picture(s)"
        )
    counts = iter([n_picture_tokens(family, *size) for size in sizes])
    input_ids: list[int] = []
    labels: list[int] = []
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        n = next(counts) if token == family.image_token_id else 1
        input_ids += [token] * n
        labels += [label] * n
    return {"input_ids": input_ids, "labels": labels}


def encode_parts(family: Family, row: dict[str, Any]) -> dict[str, list[int]]:
    """As `shared.conversations.encode`, for a tokenizer whose placeholder is not `<image>`."""
    from shared.conversation_files import RowError, normalise_row

    try:
        normal = normalise_row(row)
    except RowError as error:
        raise UserError(f"row {row.get('id')!r}: {error}") from error
    turns = [(turn["from"], turn["value"]) for turn in normal["conversations"]]
    if turns[-1][0] != "gpt":
        raise UserError(f"row {row.get('id')!r}: conversations ends without an answer to learn")
    input_ids: list[int] = []
    labels: list[int] = []
    before = ""
    for text, learned in segments_of(turns, family.tokenizer, None):
        ids = ids_after(family.tokenizer, text, before)
        input_ids += ids
        labels += ids if learned else [IGNORE_INDEX] * len(ids)
        before = text
    return {"input_ids": input_ids, "labels": labels}


def n_picture_tokens(family: Family, width: int, height: int) -> int:
    """Places of a picture of this size, as many as the model makes vectors of it; from the image
    processor's own size rule, nothing is decoded. Raises UserError for a size that it refuses."""
    if family.config.model_type == "llava":
        return family.n_image_tokens
    processor = family.image_processor
    try:
        return processor.get_number_of_image_patches(height, width) // processor.merge_size**2
    except ValueError as error:  # more than 200 times as long as wide
        raise UserError(f"a picture of {width} x {height} pixels: {error}") from error


def picture_inputs(family: Family, images: Sequence[Image]) -> dict[str, Tensor]:
    """Pictures of a batch, row by row in the order of their places -> what the model's forward
    takes (`pixel_values`; Qwen-VL's `image_grid_thw` too). None: an empty dict.

    LLaVA's are made square as `family.trained_on` says, as in answering.
    """
    if not images:
        return {}
    mean = getattr(family.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    shown = [
        squared(image, "model", trained_on=family.trained_on, mean=mean, side=family.side)
        for image in images
    ]
    return dict(family.pixels(shown))


def batch_inputs(family: Family, input_ids: Tensor) -> dict[str, Tensor]:
    """What forward needs besides ids (B, T), mask and pictures: Qwen-VL's positions follow from
    `mm_token_type_ids` (B, T), 1 at a picture's places."""
    if family.config.model_type == "llava":
        return {}
    return {"mm_token_type_ids": (input_ids == family.image_token_id).int()}
