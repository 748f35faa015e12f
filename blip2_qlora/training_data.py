"""Training samples: one picture with several of its questions, encoded together.

VQAv2 has about 5.4 questions a picture; grouped, a picture is decoded and encoded once for all of
them. Labels are built segment by segment (`blip2.encode_pair`). What cannot be used (a picture that
does not decode, a question too long for the model) is left out of its batch and reported in
`skipped`; the trainer counts it against a bound.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip2_qlora.blip2 import (
    answer_ids,
    encode_pair,
    end_token_id,
    language_model_kind,
    pad_pairs,
    prompt_ids,
    room_for_prompt,
)
from blip2_qlora.settings import TrainOptions
from shared.answering import text_problem
from shared.images import ImageError, header_size, open_image
from shared.options import UserError
from shared.vqav2 import Question, QuestionSet, load_rows, load_split

DEFAULT_HELD_OUT, DEFAULT_SHARE = 500, 5  # questions for validation; at most one in five
HEADERS_CHECKED = 2000  # before training; the rest is met, and counted, on the way


@dataclass(frozen=True)
class PictureGroup:
    """A picture and the questions about it that train in one step."""

    image: Path
    questions: tuple[Question, ...]


def load_questions(options: TrainOptions, seed: int) -> QuestionSet:
    """Own rows, or the train split; a sample of them with --limit."""
    if options.data:
        return load_rows(Path(options.data), need_answer=True).sample(options.limit, seed)
    return load_split(Path(options.data_root), "train2014").sample(options.limit, seed)


def group_by_picture(questions: Sequence[Question], most: int) -> list[PictureGroup]:
    """Groups of at most `most` questions about one picture, in order of first appearance."""
    by_picture: dict[Path, list[Question]] = defaultdict(list)
    for question in questions:
        by_picture[question.image].append(question)
    return [
        PictureGroup(image, tuple(asked[i : i + most]))
        for image, asked in by_picture.items()
        for i in range(0, len(asked), most)
    ]


def default_held_out(questions: Sequence[Question]) -> int:
    """How many questions are held out unless the user says: 500, of a small sample a fifth, and
    none where they are all about one picture."""
    if len({question.image for question in questions}) < 2:
        return 0
    return min(DEFAULT_HELD_OUT, len(questions) // DEFAULT_SHARE)


def hold_out(
    questions: Sequence[Question], n: int, seed: int, *, keep_one: bool = False
) -> tuple[list[Question], list[Question]]:
    """(for training, about `n` for validation) with no picture in both.

    Raises UserError when holding out would leave nothing to train on; with `keep_one` the last
    picture is left for training instead.
    """
    pictures = sorted({question.image for question in questions})
    random.Random(seed).shuffle(pictures)
    counts: dict[Path, int] = defaultdict(int)
    for question in questions:
        counts[question.image] += 1
    held: set[Path] = set()
    total = 0
    for picture in pictures:
        if total >= n or (keep_one and len(held) == len(pictures) - 1):
            break
        held.add(picture)
        total += counts[picture]
    training = [q for q in questions if q.image not in held]
    if not training:
        raise UserError(
            f"holding out {n} questions for validation leaves none to train on: give more rows or "
            "a smaller --validation_questions"
        )
    return training, [q for q in questions if q.image in held]


def check_pictures(questions: Sequence[Question], seed: int) -> None:
    """Before training: every file exists (by folder listing), a sample of headers is readable.

    Raises UserError that lists the first bad ones. The files are checked again when they are read.
    """
    pictures = list(dict.fromkeys(question.image for question in questions))
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for picture in pictures:
        by_folder[picture.parent].append(picture)
    problems: list[str] = []
    for folder, members in by_folder.items():
        present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        problems += [f"{p}: no such picture" for p in members if p.name not in present]
    if not problems:
        for picture in random.Random(seed).sample(pictures, min(HEADERS_CHECKED, len(pictures))):
            try:
                header_size(picture)
            except ImageError as error:
                problems.append(str(error))
    if problems:
        listed = "\n  ".join(problems[:5])
        raise UserError(f"{len(problems)} pictures cannot be used; the first:\n  {listed}")


def ids_hash(questions: Sequence[Question]) -> str:
    """A short hash of which questions were used, for the manifest."""
    digest = hashlib.sha256("\n".join(sorted(q.sample_id for q in questions)).encode())
    return digest.hexdigest()[:16]


class VqaCollator:
    """Picture groups -> a batch of `Blip2ForVqa`, with `sample_ids` and `skipped`."""

    def __init__(self, model: Any, processor: Any, prompt: str) -> None:
        self.processor = processor
        self.prompt = prompt
        self.kind = language_model_kind(model.config)
        self.end_id = end_token_id(model)
        pad = processor.tokenizer.pad_token_id
        self.pad_id = self.end_id if pad is None else pad
        # the answer needs its place too; VQAv2 answers are short
        self.room = model.config.num_query_tokens + room_for_prompt(model.config, 0)

    def __call__(self, groups: Sequence[PictureGroup]) -> dict[str, Any]:
        """pixel_values (P, 3, H, W), picture_index (B,), input_ids, attention_mask, labels (B, T).

        Without one usable sample: empty `sample_ids` and labels (0, 0), to be counted and passed
        over.
        """
        pictures, index, rows, sample_ids, skipped = [], [], [], [], []
        for group in groups:
            try:
                picture = open_image(group.image)
            except ImageError as error:
                skipped.append(str(error))
                continue
            for question in group.questions:
                problem = text_problem(question.question) or text_problem(question.target or "")
                if problem:
                    skipped.append(f"question {question.sample_id}: {problem}")
                    continue
                row = self.encode(question)
                if len(row["input_ids"]) > self.room:
                    skipped.append(
                        f"question {question.sample_id}: {len(row['input_ids'])} tokens, the model "
                        f"has room for {self.room}"
                    )
                    continue
                index.append(len(pictures))
                rows.append(row)
                sample_ids.append(question.sample_id)
            pictures.append(picture)
        if not rows:
            nothing = torch.empty((0, 0), dtype=torch.long)
            return {"labels": nothing, "sample_ids": [], "skipped": skipped}
        pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixels,
            "picture_index": torch.tensor(index),
            **pad_pairs(rows, self.pad_id, self.kind),
            "sample_ids": sample_ids,
            "skipped": skipped,
        }

    def encode(self, question: Question) -> dict[str, list[int]]:
        """Ids and labels of one question with its target answer."""
        prompt = prompt_ids(self.processor, self.prompt.format(question.question))
        answer = answer_ids(self.processor, question.target or "", self.end_id, self.kind)
        return encode_pair(prompt, answer, self.kind)


def show_labels(row: dict[str, list[int]], tokenizer: Any) -> str:
    """The decoded sample with what is learned in 【 】, for --dry_run."""
    if len(row["labels"]) != len(row["input_ids"]):  # T5: the labels are the decoder's own text
        return f"{tokenizer.decode(row['input_ids'])} -> 【{tokenizer.decode(row['labels'])}】"
    learned = [i for i, label in enumerate(row["labels"]) if label >= 0]
    start = learned[0]
    return (
        f"{tokenizer.decode(row['input_ids'][:start])} "
        f"【{tokenizer.decode(row['input_ids'][start:])}】"
    )
