"""The training side of a model family: a row of data as token ids, labels and picture tensors.

A row is written by the folder's own chat template, piece by piece, each piece tokenised by itself:
an answer and the end token behind it are learned, everything else has the label -100. A picture
stands as one placeholder in the template's text and is then written out as many times as the image
processor makes tokens of it, which follows from the size in the file's header. What stands before
an answer here is, id by id, what `shared.vision_language` asks with.

Rows have no thinking. Where a folder's template opens a thought before each answer (Qwen3-VL-
Thinking: the prompt ends with `<think>`), a finished answer is written with an empty one, and so
the end of the thought, the answer and its end token are learned: such a model learns to answer at
once. MiniCPM-V 4.6's template closes the empty thought in the prompt; there the answer alone is
learned, as with a template without thoughts. Both write earlier answers of a conversation without
their thought, so that a row of several rounds would not be learned as it is asked: UserError.

Used by train.py; `family` is a `shared.vision_families.Family`, made without weights. Reads and
writes nothing.
Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.conversation_files import normalise_row
from shared.images import squared
from shared.options import IGNORE_INDEX, UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from shared.vision_families import Family

Size = tuple[int, int]  # (width, height) of a picture
PICTURE_INPUTS = ("pixel_values", "image_grid_thw", "target_sizes")


def encode_row(family: Family, row: dict[str, Any], sizes: Sequence[Size]) -> dict[str, list[int]]:
    """A LLaVA row -> {"input_ids", "labels"}, of equal length, not padded, labels not shifted.

    `sizes` are (width, height) of the row's pictures as they are shown, in the order of their
    `<image>`. Raises UserError for a malformed row, one without an answer to learn, and when sizes
    and `<image>` differ in number.
    """
    try:
        normal = normalise_row(row)
        turns = [(turn["from"], turn["value"]) for turn in normal["conversations"]]
        if turns[-1][0] != "gpt":
            raise UserError("conversations ends without an answer to learn")
        runs = family.turn_runs(turns)
        pieces = family.expand(
            [i for ids, _ in runs for i in ids], [family.layout(*size) for size in sizes]
        )
    except UserError as error:
        raise UserError(f"row {row.get('id')!r}: {error}") from error
    flags = [learned for ids, learned in runs for _ in ids]
    input_ids: list[int] = []
    labels: list[int] = []
    for piece, learned in zip(pieces, flags, strict=True):
        input_ids += piece
        labels += piece if learned else [IGNORE_INDEX] * len(piece)
    return {"input_ids": input_ids, "labels": labels}


def n_picture_tokens(family: Family, width: int, height: int) -> int:
    """Places of a picture of this size, as many as the model makes vectors of it; from the image
    processor's own size rule, nothing is decoded. Raises UserError for a size that it refuses.

    MiniCPM-V writes a few tokens more around them: the picture's number, marks of its slices.
    """
    return family.layout(width, height).n


def picture_inputs(family: Family, images: Sequence[Image]) -> dict[str, Tensor]:
    """Pictures of a batch, row by row in the order of their places -> what the model's forward
    takes: `pixel_values`, and Qwen-VL's `image_grid_thw`, MiniCPM-V's `target_sizes`. None: an
    empty dict.

    LLaVA's are made square as `family.trained_on` says, as in answering.
    """
    if not images:
        return {}
    mean = getattr(family.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    shown = [
        squared(image, "model", trained_on=family.trained_on, mean=mean, side=family.side)
        for image in images
    ]
    made = family.pixels(shown)
    return {name: made[name] for name in PICTURE_INPUTS if name in made}


def batch_inputs(family: Family, input_ids: Tensor) -> dict[str, Tensor]:
    """What forward needs besides ids (B, T), mask and pictures: Qwen-VL's positions follow from
    `mm_token_type_ids` (B, T), 1 at a picture's places."""
    return family.forward_inputs(input_ids)


def check_counts(family: Family, input_ids: Tensor, pictures: dict[str, Tensor]) -> None:
    """The places in a batch's ids (B, T) against the vectors that the model will make of its
    `picture_inputs`, before the forward pass. Raises UserError: the size that a row was encoded
    with was not that of its picture."""
    if "image_grid_thw" in pictures:
        merged = family.image_processor.merge_size**2
        n_vectors = int(pictures["image_grid_thw"].prod(dim=-1).sum()) // merged
    elif "target_sizes" in pictures:
        n_vectors = sum(int(size.prod()) // family.divisor for size in pictures["target_sizes"])
    else:
        n_vectors = family.n_image_tokens * len(pictures.get("pixel_values", ()))
    n_places = int((input_ids == family.image_token_id).sum())
    if n_places != n_vectors:
        raise UserError(f"the batch has {n_places} image tokens for pictures of {n_vectors}")
