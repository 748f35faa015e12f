"""Samples that only evaluations have: pairs to match, categories to point at; classes as questions.

A split is read as `load_task_data` has it; matching asks of each picture its first caption and a
caption of another picture, drawn with the seed; localization takes COCO's instances: a picture and
one of its categories are a sample, with all boxes of that category. No torch.

    python lavis_apps/evaluate.py --toy --task localization --dry_run

Reads a data root; writes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavis_apps.data import Labelled, TaskData, load_task_data
from lavis_apps.pointing import Box, covered
from lavis_apps.processors import blip_caption
from lavis_apps.scoring_itm import MATCH, NO_MATCH
from shared.answering import Job
from shared.coco import read_instances
from shared.options import UserError
from shared.vqav2 import Question

TRIES = 20  # draws of another picture whose caption is none of the picture's own


@dataclass(frozen=True)
class BoxSample:
    """A picture and one category in it; boxes are x, y, width, height in pixels."""

    question: Question  # `answer_type` is the category
    boxes: tuple[Box, ...]
    others: tuple[tuple[Box, ...], ...]  # of each other category of the picture
    size: tuple[int, int]  # width, height, as the annotations say
    chance: float  # the boxes' share of the area

    @property
    def sample_id(self) -> str:
        return self.question.sample_id


def load_samples(
    task: str, data_root: Path, split: str, categories: Sequence[str] | None = None
) -> TaskData:
    """The samples of any task that evaluate.py measures. Raises UserError and MissingError as
    `load_task_data`; `categories`: only these, for localization."""
    if task == "localization":
        return load_boxes(data_root, split, categories)
    return load_task_data("caption" if task == "matching" else task, data_root, split)


def load_boxes(data_root: Path, split: str, categories: Sequence[str] | None = None) -> TaskData:
    """Every (picture, category) of DATA_ROOT/annotations/instances_SPLIT.json with a box that is no
    crowd's; a crowd of the category counts as one of its boxes. Stuff (sky, grass) is left out."""
    path = data_root / "annotations" / f"instances_{split}.json"
    found = read_instances(path)
    names = {key: c.name for key, c in found.categories.items() if not c.stuff}
    unknown = sorted(set(categories or ()) - set(names.values()))
    if unknown:
        raise UserError(f"--categories {unknown[0]}: {path} has {', '.join(names.values())}")
    samples: list[BoxSample] = []
    problems: list[str] = []
    for image_id, boxed in found.by_image().items():
        entry = found.images[image_id]
        size = (entry.width, entry.height)
        image_name = f"{split}/{entry.file_name}"
        boxes_of: dict[int, tuple[Box, ...]] = {}
        chances: dict[int, float] = {}
        for key in dict.fromkeys(a.category_id for a in boxed if not a.crowd):
            if key not in names or (categories and names[key] not in categories):
                continue
            boxes = tuple(a.box for a in boxed if a.category_id == key)
            inside = covered(boxes, size)
            if not inside.any():
                problems.append(f"{entry.file_name}: no box of {names[key]} lies in the picture")
                continue
            boxes_of[key], chances[key] = boxes, float(inside.mean())
        for key, boxes in boxes_of.items():
            question = Question(
                sample_id=f"{image_id}-{key}", image=data_root / image_name, image_name=image_name,
                image_id=image_id, question=names[key], answer_type=names[key],
            )  # fmt: skip
            others = tuple(own for other, own in boxes_of.items() if other != key)
            samples.append(BoxSample(question, boxes, others, size, chances[key]))
    if not samples:
        raise UserError(f"{path}: no picture with a box of these categories")
    return TaskData(f"{data_root.name}_{split}", samples, problems)


def class_question(sample: Labelled) -> Question:
    """A labelled picture as the question that records are made of."""
    return Question(
        sample_id=sample.sample_id, image=sample.image, image_name=sample.image_name,
        image_id=sample.image_id, question="", references=(sample.label,),
        answer_type=sample.label,
    )  # fmt: skip


def matching_pairs(samples: Sequence[Question], seed: int) -> list[Job]:
    """Two jobs a picture: its first caption, and one of another picture that is none of its own.

    Captions are compared as the model reads them. Raises UserError where no other caption is left.
    """
    jobs = []
    for sample in samples:
        if not sample.references:
            raise UserError(f"{sample.image_name}: no caption to match")
        own = {blip_caption(text) for text in sample.references}
        rng = random.Random(f"{seed}/{sample.sample_id}")
        others = (samples[rng.randrange(len(samples))] for _ in range(TRIES))
        other = next(
            (text for o in others if o.references and o is not sample
             and (text := blip_caption(rng.choice(o.references))) not in own), None
        )  # fmt: skip
        if other is None:
            raise UserError(f"{sample.image_name}: no caption of another picture differs from its "
                            "own; give more pictures")  # fmt: skip
        for kind, text in ((MATCH, blip_caption(sample.references[0])), (NO_MATCH, other)):
            question = Question(
                sample_id=f"{sample.sample_id}-{'own' if kind == MATCH else 'other'}",
                image=sample.image, image_name=sample.image_name, image_id=sample.image_id,
                question=text, references=(kind,), answer_type=kind,
            )  # fmt: skip
            jobs.append(Job(question, text))
    return jobs
