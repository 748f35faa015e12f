"""Training samples of every task, their order, and how a batch is made.

A sample is a picture with what is learned about it: captions, questions with weighted answers, or a
class. `--texts_per_picture` of one picture share one encoded picture. The order is a function of
seed and epoch: each data root is drawn by its weight, and so is the augmentation of each picture,
so that a continued run sees what an uninterrupted one would. What cannot be used (a picture that
does not decode) is left out of its batch and reported in `skipped`.

Used by train.py and training_plan.py; reads data roots and pictures, writes nothing.
Shapes: P pictures, B texts, A answers, T tokens, S pixels of a side.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lavis_apps.data import TaskData, load_task_data
from lavis_apps.processors import blip_image_train
from lavis_apps.train_settings import TrainOptions
from shared.conversation_data import refuse_bad_samples
from shared.images import header_size, open_image
from shared.options import IGNORE_INDEX, UserError
from shared.vqav2 import sample_questions

if TYPE_CHECKING:
    from lavis_apps.training_inputs import BlipInputs, ClipInputs

EPOCHS_PER_SEED = 1_000_003  # no epoch of a seed has the order of another seed's
MAX_LEARNED_TOKENS = 40  # of a caption with prompt and end token (BLIP, models/blip.py)


@dataclass(frozen=True)
class Sample:
    """A picture and what is learned about it. `picture` is one number for one file; `texts` are
    captions or questions as the data has them; `answers` (one entry a question) are pairs of answer
    and weight, which sum to 1; `label` is the class's place."""

    sample_id: str
    image: Path
    picture: int
    texts: tuple[str, ...] = ()
    answers: tuple[tuple[tuple[str, float], ...], ...] = ()
    label: int = 0


@dataclass(frozen=True)
class TrainingData:
    """`learned` holds one list a data root (its splits together); `held_out` is the validation
    split as evaluate.py reads it."""

    learned: list[list[Sample]]
    names: list[str]
    held_out: list[Any]
    held_out_name: str | None
    classes: tuple[str, ...]
    problems: list[str]

    @property
    def samples(self) -> list[Sample]:
        return [sample for part in self.learned for sample in part]


def open_training_data(options: TrainOptions, seed: int) -> TrainingData:
    """Every --data_root's --train_splits, and --validation_split of --validation_root.

    Raises UserError when the roots have other classes, or a validation picture is learned from,
    MissingError for files that are not there.
    """
    learned, names, problems = [], [], []
    classes: tuple[str, ...] = ()
    numbers: dict[Path, int] = {}
    for root in map(Path, options.data_root or ()):
        parts = [load_task_data(options.task, root, split) for split in options.train_splits]
        if classes and any(part.classes != classes for part in parts):
            raise UserError(f"{root}: other classes than the first --data_root's")
        classes = parts[0].classes
        rows = [row for part in parts for row in part.samples]
        problems += [problem for part in parts for problem in part.problems]
        rows = sample_questions(rows, options.limit, seed)
        learned.append(training_samples(options, rows, classes, numbers, problems))
        names += [part.name for part in parts]
        if not learned[-1]:
            raise UserError(f"{root}: nothing to learn in it; the first problem: {problems[0]}")
    held = held_out(options, classes, seed)
    if held is not None:
        learned_from = {path.absolute() for path in numbers}
        shared = {Path(row.image).absolute() for row in held.samples} & learned_from
        if shared:
            raise UserError(
                f"{len(shared)} pictures of the validation split are learned from, first: "
                f"{sorted(shared)[0]}; give another --validation_split"
            )
    return TrainingData(
        learned, names, held.samples if held else [], held.name if held else None, classes, problems
    )


def held_out(options: TrainOptions, classes: tuple[str, ...], seed: int) -> TaskData | None:
    """The samples that validate: those of evaluate.py with the same --split, --limit and --seed."""
    if options.validation_split is None:
        return None
    root = Path(options.validation_root or (options.data_root or [""])[0])
    data = load_task_data(options.task, root, options.validation_split)
    if data.classes != classes:
        raise UserError(f"{root}: other classes than those learned")
    chosen = sample_questions(data.samples, options.validation_limit, seed)
    return TaskData(data.name, chosen, data.problems, classes)


def training_samples(
    options: TrainOptions,
    rows: Sequence[Any],
    classes: Sequence[str],
    numbers: dict[Path, int],
    problems: list[str],
) -> list[Sample]:
    """Rows as the readers give them -> samples; `numbers` counts pictures across data roots."""
    places = {name: place for place, name in enumerate(classes)}
    by_picture: dict[Path, list[tuple[str, str, tuple[tuple[str, float], ...]]]] = {}
    samples = []
    for row in rows:
        number = numbers.setdefault(row.image, len(numbers))
        if options.task == "classification":
            samples.append(Sample(row.sample_id, row.image, number, label=places[row.label]))
            continue
        if options.task == "vqa":
            answers = weighted_answers(row.references or ((row.target,) if row.target else ()))
            if not answers:
                problems.append(f"question {row.sample_id}: no answer to learn")
                continue
            texts = [(row.sample_id, row.question, answers)]
        else:
            texts = [(row.sample_id, caption, ()) for caption in row.references]
        by_picture.setdefault(row.image, []).extend(texts)
    for image, entries in by_picture.items():
        size = options.texts_per_picture
        for start in range(0, len(entries), size):
            chunk = entries[start : start + size]
            samples.append(
                Sample(
                    ",".join(dict.fromkeys(sample_id for sample_id, _, _ in chunk)),
                    image,
                    numbers[image],
                    tuple(text for _, text, _ in chunk),
                    tuple(answers for _, _, answers in chunk) if options.task == "vqa" else (),
                )
            )
    return samples


def weighted_answers(references: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Each different answer with the share of annotators who gave it (BLIP's vqa_dataset.py)."""
    given = Counter(text.strip() for text in references if text.strip())
    return tuple((text, count / given.total()) for text, count in given.items())


# Order


class RatioSampler(Sampler[int]):
    """Places of `SeenSamples`, each data root by its weight, for all processes together.

    An epoch has as many samples as the roots together. Of each root it holds the share of its
    weight, drawn without repetition until all have been seen. Without weights that is a shuffle.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        self.sizes = list(sizes)
        self.total = sum(sizes)
        weights = self.sizes if weights is None else weights
        part = self.total / sum(weights)
        bounds = [round(part * sum(weights[:i])) for i in range(len(sizes) + 1)]
        self.counts = [end - start for start, end in itertools.pairwise(bounds)]
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.total

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # below 2 ** 32, of which torch's generator on the CPU takes no more
        mixed = (self.seed * EPOCHS_PER_SEED + self.epoch) % 2**32
        generator = torch.Generator().manual_seed(mixed)
        order: list[int] = []
        first = 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            drawn: list[int] = []
            while len(drawn) < count:
                drawn += torch.randperm(size, generator=generator).tolist()
            order += [first + place for place in drawn[:count]]
            first += size
        for i in torch.randperm(self.total, generator=generator).tolist():
            yield self.epoch * self.total + order[i]


class SeenSamples(Sequence[tuple[Sample, str]]):
    """Samples by epoch x number + place, each with the key of its augmentation: workers are told no
    epoch, and random numbers of their own would not survive a restart."""

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Sample, str]:  # type: ignore[override]
        return self.samples[i % len(self.samples)], f"{self.seed}/{i}"


def refuse_bad_pictures(samples: Sequence[Sample], order: RatioSampler, n: int) -> None:
    """Read the headers of the first `n` samples' pictures; a few bad ones are named and left out
    later. Raises UserError where there are more."""
    problems: dict[Path, str] = {}
    for _, i in zip(range(n), order, strict=False):
        path = samples[i % len(samples)].image
        try:
            header_size(path)
        except UserError as error:
            problems[path] = str(error)
    refuse_bad_samples(min(n, len(order)), list(problems.values()))


# Batches


class Collator:
    """Samples -> a batch of `TaskModel` (training_model.py), with `sample_ids` and `skipped`.

    `labels` counts what the loss is a mean of: learned tokens (caption), questions, pairs,
    pictures. Without one usable sample: empty `sample_ids` and labels.
    """

    def __init__(self, options: TrainOptions, inputs: BlipInputs | ClipInputs) -> None:
        self.task = options.task
        self.augment = options.augment
        self.prompt = options.prompt
        self.inputs: Any = inputs

    def __call__(self, seen: Sequence[tuple[Sample, str]]) -> dict[str, Any]:
        usable: list[Sample] = []
        pixels, skipped = [], []
        for sample, key in seen:
            try:
                pixels.append(self.pixels(sample, key))
                usable.append(sample)
            except UserError as error:
                skipped.append(str(error))
        sample_ids = [sample.sample_id for sample in usable]
        if not usable:
            nothing = torch.empty(0, dtype=torch.long)
            return {"labels": nothing, "sample_ids": [], "skipped": skipped}
        shown = {"pixel_values": torch.stack(pixels)}  # (P, 3, S, S)
        return {**shown, **self.learned(usable), "sample_ids": sample_ids, "skipped": skipped}

    def learned(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """All of a batch but the pictures."""
        make = {
            "caption": self.captions,
            "vqa": self.questions,
            "retrieval": self.pairs,
            "classification": self.labels,
        }
        return make[self.task](samples)

    def blank(self) -> dict[str, Tensor]:
        """The smallest batch that passes through all that trains."""
        size = self.inputs.image_size
        sample = Sample("", Path(), 0, ("a",), ((("a", 1.0),),))
        return {"pixel_values": torch.zeros(1, 3, size, size), **self.learned([sample])}

    def pixels(self, sample: Sample, key: str) -> Tensor:
        """(3, S, S) float32 as the model sees it, or a crop of it. Raises ImageError."""
        image = open_image(sample.image)
        if self.augment == "none":
            return self.inputs.picture(image)
        made = blip_image_train(
            image,
            self.inputs.image_size,
            random.Random(key),
            self.inputs.mean,
            self.inputs.std,
            augment=self.augment == "randaugment",
        )
        return torch.from_numpy(made)

    def captions(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """picture_of (B,), input_ids, attention_mask and labels (B, T): [DEC] and the prompt are
        given, the caption and its [SEP] learned."""
        texts = [self.inputs.caption(text) for sample in samples for text in sample.texts]
        return {"picture_of": picture_of(samples), **self.decoded(texts, self.prompt)}

    def decoded(self, texts: Sequence[str], prompt: str = "") -> dict[str, Tensor]:
        """Decoder rows built piece by piece, so that no label depends on a second count."""
        inputs = self.inputs
        given = [inputs.first["[DEC]"], *inputs.words(prompt)]
        room = max(0, min(MAX_LEARNED_TOKENS, inputs.positions) - len(given) - 1)
        rows = [(given, [*inputs.words(text)[:room], inputs.end_id]) for text in texts]
        return padded_rows(rows, inputs.pad_id)

    def questions(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """picture_of (B,), input_ids and attention_mask (B, T) of the questions, [ENC] first;
        answer_* (A, T) of their answers, answer_weights and question_of (A,); labels (B,)."""
        texts = [self.inputs.question(text) for sample in samples for text in sample.texts]
        asked = [answers for sample in samples for answers in sample.answers]
        decoded = self.decoded([answer for answers in asked for answer, _ in answers])
        return {
            "picture_of": picture_of(samples),
            **self.inputs.tokens(texts, "[ENC]"),
            **{f"answer_{name}": tensor for name, tensor in decoded.items()},
            "answer_weights": torch.tensor([w for answers in asked for _, w in answers]),
            "question_of": torch.tensor([i for i, answers in enumerate(asked) for _ in answers]),
            "labels": torch.zeros(len(texts), dtype=torch.long),
        }

    def pairs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """input_ids, attention_mask (B, T), [CLS] first; `same` (B, B) bool: which pairs are true,
        by picture or by text; labels (B,) the pictures' numbers."""
        texts = [self.inputs.caption(sample.texts[0]) for sample in samples]
        pictures = torch.tensor([sample.picture for sample in samples])
        numbers = torch.tensor([texts.index(text) for text in texts])
        same = (pictures[:, None] == pictures) | (numbers[:, None] == numbers)
        return {**self.inputs.tokens(texts, "[CLS]"), "same": same, "labels": pictures}

    def labels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return {"labels": torch.tensor([sample.label for sample in samples])}


def picture_of(samples: Sequence[Sample]) -> Tensor:
    """(B,): for each text the place of its picture in the batch."""
    return torch.tensor([place for place, sample in enumerate(samples) for _ in sample.texts])


def padded_rows(rows: Sequence[tuple[list[int], list[int]]], pad_id: int) -> dict[str, Tensor]:
    """(given ids, learned ids) of each row -> input_ids, attention_mask, labels (B, T)."""
    shape = (len(rows), max(len(given) + len(learned) for given, learned in rows))
    input_ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORE_INDEX)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for i, (given, learned) in enumerate(rows):
        n, all_ids = len(given), torch.tensor([*given, *learned])
        input_ids[i, : len(all_ids)] = all_ids
        labels[i, n : len(all_ids)] = all_ids[n:]
        attention_mask[i, : len(all_ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
