"""COCO's caption files, checked, and the command that scores them.

    python -m shared.caption_score RESULTS ANNOTATIONS [--language zh] [--summary]
    python -m shared.caption_score SAMPLE_RESULTS ANNOTATIONS --answered_only

Reads RESULTS, [{"image_id": 1, "caption": "a dog"}, ...], and ANNOTATIONS in the layout of
captions_val2014.json. An image of ANNOTATIONS that RESULTS lacks counts as an empty caption, unless
--answered_only leaves it out: for the results of a sample. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.caption_score import ImageId, score_captions
from shared.caption_tokens import TOKENIZERS
from shared.options import UserError, read_json


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """{image_id: captions} of a captions file in COCO's layout, in its order.

    Raises UserError with file and entry for another kind of file or a wrong entry.
    """
    content = read_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{path}: no list under 'annotations'; expected captions in COCO's layout: "
            '{"annotations": [{"image_id": 1, "caption": "a dog"}, ...]}'
        )
    references: dict[ImageId, list[str]] = {}
    for i, row in enumerate(rows):
        image_id, caption = _entry(row, f"{path}: annotations[{i}]")
        references.setdefault(image_id, []).append(caption)
    return references


def read_candidates(path: Path, references: Mapping[ImageId, Any]) -> dict[ImageId, str]:
    """{image_id: caption} of a results file, every entry checked against the images.

    Raises UserError with file and entry for a wrong entry, an image without references, and a
    second caption of one image: which of them would count?
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: {type(rows).__name__}, expected a list: "
            '[{"image_id": 1, "caption": "a dog"}, ...]'
        )
    candidates: dict[ImageId, str] = {}
    places: dict[ImageId, int] = {}
    for i, row in enumerate(rows):
        image_id, caption = _entry(row, f"{path}: [{i}]")
        if image_id in candidates:
            raise UserError(
                f"{path}: [{i}]: a second caption of image {image_id!r}, the first is entry "
                f"[{places[image_id]}]; one caption an image is scored"
            )
        if image_id not in references:
            other: ImageId = str(image_id)
            if isinstance(image_id, str) and image_id.isdecimal():
                other = int(image_id)
            hint = f"; the annotations have {other!r}" if other in references else ""
            raise UserError(f"{path}: [{i}]: image {image_id!r} has no references{hint}")
        candidates[image_id] = caption
        places[image_id] = i
    return candidates


def _entry(row: Any, where: str) -> tuple[ImageId, str]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: {type(row).__name__}, expected an object")
    image_id, caption = row.get("image_id"), row.get("caption")
    if type(image_id) not in (int, str):  # True is an int to isinstance
        raise UserError(f"{where}: image_id is {image_id!r}, expected a whole number or a string")
    if not isinstance(caption, str):
        raise UserError(f"{where} (image {image_id!r}): caption is {caption!r:.60}, expected text")
    return image_id, caption


def main(argv: Sequence[str] | None = None) -> None:
    """Raises UserError for files that can't be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.caption_score",
        description="BLEU, ROUGE-L, CIDEr-D and METEOR of a results file, as one JSON object.",
        epilog="Languages: " + "; ".join(f"{name}: {how}" for name, how in TOKENIZERS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("results", type=Path, help="[{image_id, caption}, ...]")
    parser.add_argument("annotations", type=Path, help="{annotations: [{image_id, caption}, ...]}")
    parser.add_argument("--language", choices=list(TOKENIZERS), default="en")
    parser.add_argument("--spice", action="store_true", help="SPICE too, where it can run")
    parser.add_argument(
        "--answered_only",
        action="store_true",
        help="score the images of RESULTS alone, say how many are left out: for a sample",
    )
    parser.add_argument("--summary", action="store_true", help="leave out the images' own scores")
    options = parser.parse_args(argv)
    references = read_references(options.annotations)
    candidates = read_candidates(options.results, references)
    n_images = len(references)
    if options.answered_only:
        if not candidates:
            raise UserError(f"{options.results}: no caption in it, so --answered_only scores none")
        references = {i: texts for i, texts in references.items() if i in candidates}
    try:
        scores = score_captions(
            references, candidates, language=options.language, spice=options.spice
        )
    except ModuleNotFoundError as error:  # jieba
        raise UserError(str(error)) from error
    result: dict[str, Any] = dict(scores)
    if options.answered_only:
        result["left_out"] = n_images - len(references)
    if options.summary:
        del result["per_image"]
    print(json.dumps(result, indent=2, ensure_ascii=False))
