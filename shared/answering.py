"""Many questions about many pictures: batched, each picture encoded once, resumable.

The model is anything with the two methods of `VisionLanguageModel`. Questions are ordered by
picture; a picture is opened and encoded once for all its questions. Every answer is appended to
`predictions.jsonl` and flushed as soon as its batch is done, so a killed run loses one batch: the
next start answers what has no `ok` record yet (errors are tried again), and repairs a line that the
crash cut. An unreadable picture or an unanswerable question becomes a record with status `error`,
the rest goes on. A question whose `image` is None is asked without a picture.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shared.images import ImageError, open_image
from shared.options import UserError
from shared.vqav2 import Question

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    `confidence` is the geometric mean of the answer tokens' probabilities under the model given
    picture and prompt, `first_token_confidence` that of the first one; the end token is not part of
    it. Both None for an empty answer. `n_tokens` counts the end token too.
    """

    raw_output: str
    answer: str
    confidence: float | None
    first_token_confidence: float | None
    finish_reason: str  # "stop" (the model ended) or "length" (cut at max_new_tokens)
    n_tokens: int


class VisionLanguageModel(Protocol):
    """What `answer_questions` needs; features are opaque to it but can be indexed by picture."""

    def encode_images(self, images: Sequence[Image]) -> Any:
        """Pictures -> features, first dimension = picture. No pictures: those of none."""

    def answer(
        self, features: Any, picture_index: Sequence[int | None], prompts: Sequence[str]
    ) -> list[Answer]:
        """Answers to `prompts[i]` about picture `picture_index[i]`, None for one without."""

    def prompt_problem(self, prompt: str) -> str | None:
        """Why this prompt cannot be answered (too long, ...), or None."""


@dataclass(frozen=True)
class Job:
    """A question and the prompt that asks it.

    `details` stand in its record too: what scoring needs besides the references (choices, ...).
    """

    question: Question
    prompt: str
    details: Mapping[str, Any] = field(default_factory=dict)


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """sample_id -> its last record. A line cut by a crash (the last one) is dropped.

    Raises UserError when a line in the middle is broken: that is no crash of ours.
    """
    records: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return records
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records[record["sample_id"]] = record
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number}: not a prediction record ({error})") from error
    return records


def repair_records(path: Path) -> None:
    """Cut a half-written last line, so that the next record starts on a line of its own."""
    if not path.is_file():
        return
    content = path.read_bytes()
    keep = content.rfind(b"\n") + 1
    if keep != len(content):
        with path.open("r+b") as file:
            file.truncate(keep)


class RecordWriter:
    """Appends records to a JSONL file, each batch flushed to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            repair_records(path)
            # a file's name that is no UTF-8 becomes JSON's \udcXX, which reads back as that name
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        try:
            for record in records:
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror or error}. What is written "
                "stays; make room and run the same command again."
            ) from error

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._file.close()
        except OSError:  # a full disk refuses what is still buffered; write() has said so
            if exc[0] is None:
                raise


def answer_questions(
    model: VisionLanguageModel,
    jobs: Sequence[Job],
    path: Path,
    *,
    batch_size: int,
    open_picture: Callable[[Question], Image] = lambda question: open_image(question.image),
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Answer every job that has no `ok` record in `path` yet; returns sample_id -> last record."""
    from tqdm import tqdm

    with RecordWriter(path) as writer:  # first, as it repairs a line that a crash has cut
        done = {key for key, record in read_records(path).items() if record.get("status") == "ok"}
        todo = [job for job in jobs if job.question.sample_id not in done]
        answered = len(jobs) - len(todo)
        with tqdm(
            total=len(jobs), initial=answered, desc="answering", disable=not progress or None
        ) as bar:
            for batch in batches_by_picture(todo, batch_size):
                records = answer_batch(model, batch, open_picture)
                writer.write(records)
                bar.update(len(records))
    return read_records(path)


def batches_by_picture(jobs: Sequence[Job], batch_size: int) -> Iterator[list[Job]]:
    """Batches of at most `batch_size` questions; those of a picture stay together if they fit."""
    ordered = sorted(jobs, key=lambda job: job.question.image_name)
    batch: list[Job] = []
    for _, group in groupby(ordered, key=lambda job: job.question.image_name):
        questions = list(group)
        if batch and len(batch) + len(questions) > batch_size:
            yield batch
            batch = []
        while len(questions) > batch_size:
            yield questions[:batch_size]
            questions = questions[batch_size:]
        batch += questions
    if batch:
        yield batch


def answer_batch(
    model: VisionLanguageModel,
    jobs: Sequence[Job],
    open_picture: Callable[[Question], Image],
) -> list[dict[str, Any]]:
    """One record a job, in order. A GPU out of memory halves the batch and goes on."""
    records: dict[str, dict[str, Any]] = {}
    pictures: dict[str, Image] = {}
    unreadable: dict[str, str] = {}
    answerable: list[Job] = []
    for job in jobs:
        name = job.question.image_name
        problem = text_problem(job.prompt) or model.prompt_problem(job.prompt)
        problem = problem or unreadable.get(name)
        if not problem and job.question.image is not None and name not in pictures:
            try:
                pictures[name] = open_picture(job.question)
            except ImageError as error:
                problem = unreadable[name] = str(error)
        if problem:
            records[job.question.sample_id] = make_record(job, error=problem)
        else:
            answerable.append(job)
    if answerable:
        started = time.perf_counter()
        try:
            answers = _ask(model, answerable, pictures)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(answerable) == 1:
                raise UserError(
                    "the GPU's memory is full with one question at a time: --quantization nf4 "
                    "needs less, and so do greedy answers (no beams) and shorter ones "
                    f"({str(error).splitlines()[0]})"
                ) from error
            answers = None
        if answers is None:  # out of the except clause: the error would keep the features alive
            pictures.clear()
            half = len(jobs) // 2
            return answer_batch(model, jobs[:half], open_picture) + answer_batch(
                model, jobs[half:], open_picture
            )
        seconds = (time.perf_counter() - started) / len(answerable)
        for job, answer in zip(answerable, answers, strict=True):
            records[job.question.sample_id] = make_record(job, answer, seconds=seconds)
    return [records[job.question.sample_id] for job in jobs]


def _ask(
    model: VisionLanguageModel, jobs: Sequence[Job], pictures: dict[str, Image]
) -> list[Answer]:
    index = {name: i for i, name in enumerate(pictures)}
    return model.answer(
        model.encode_images(list(pictures.values())),
        [index[job.question.image_name] if job.question.image else None for job in jobs],
        [job.prompt for job in jobs],
    )


def text_problem(text: str) -> str | None:
    """Why no tokenizer and no file takes this text, or None: JSON may hold half of a character
    (a lone surrogate, as where a program cut an emoji in two)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start : error.end].encode("unicode_escape").decode()
        return f"the text holds half a character ({half}): write it again in the data"
    return None


def writable(text: str) -> str:
    """The same text with each half character replaced by U+FFFD, so that UTF-8 can hold it."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def make_record(
    job: Job,
    answer: Answer | None = None,
    *,
    seconds: float | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """The one prediction record of all experiments; `seconds` is the batch's time per question."""
    question = job.question
    return {
        "sample_id": question.sample_id,
        "image": question.image_name,
        "image_id": question.image_id,
        "question": writable(question.question),
        "question_type": question.question_type,
        "answer_type": question.answer_type,
        "prompt": writable(job.prompt),
        "raw_output": answer.raw_output if answer else None,
        "answer": answer.answer if answer else None,
        "references": [writable(reference) for reference in question.references],
        "confidence": round_or_none(answer.confidence) if answer else None,
        "first_token_confidence": round_or_none(answer.first_token_confidence) if answer else None,
        "finish_reason": answer.finish_reason if answer else None,
        "n_tokens": answer.n_tokens if answer else None,
        "seconds": round_or_none(seconds),
        "status": "error" if error else "ok",
        "error": error,
        **job.details,
    }


def round_or_none(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def shuffle_pictures(questions: Sequence[Question], seed: int) -> dict[str, Question]:
    """A control: each question's sample_id -> a question whose picture is shown in its place.

    Pictures are permuted so that none stays where it was; a model that looks at its picture then
    falls to what the question's words alone allow. Questions without a picture are left out.
    Raises UserError with fewer than two pictures.
    """
    import random

    questions = [question for question in questions if question.image is not None]
    by_picture = {question.image_name: question for question in questions}
    names = sorted(by_picture)
    if len(names) < 2:
        raise UserError("shuffled pictures need at least two different pictures")
    random.Random(seed).shuffle(names)
    shown = {name: by_picture[names[(i + 1) % len(names)]] for i, name in enumerate(names)}
    return {q.sample_id: replace(q, image=shown[q.image_name].image) for q in questions}


# Likelihood of given answers


@dataclass(frozen=True)
class ChoiceScore:
    """log P(choice's tokens | picture, prompt), natural logarithm; the end token is not counted."""

    log_prob: float
    n_tokens: int


class ChoiceModel(VisionLanguageModel, Protocol):
    """What `score_choices` needs."""

    def choices_problem(self, prompt: str, choices: Sequence[str]) -> str | None:
        """Why the likelihood of these choices behind this prompt cannot be computed, or None."""

    def choice_log_probs(
        self,
        features: Any,
        picture_index: Sequence[int | None],
        prompts: Sequence[str],
        choices: Sequence[Sequence[str]],
        batch_size: int,
    ) -> list[list[ChoiceScore]]:
        """A score for each of `choices[i]` behind `prompts[i]`; `batch_size` choices at a time."""


# How choices of different lengths are compared: by the mean log-probability of a token, or by that
# of the whole choice, which prefers short ones.
LengthNormalisation = Literal["mean", "sum"]


def score_choices(
    model: ChoiceModel,
    jobs: Sequence[Job],
    path: Path,
    *,
    choices: Callable[[Job], Sequence[str]],
    batch_size: int,
    choice_batch_size: int = 16,
    length_normalisation: LengthNormalisation = "mean",
    open_picture: Callable[[Question], Image] = lambda question: open_image(question.image),
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """The likelihood of each of a job's `choices`, for every job that has no `ok` record with these
    choices and this rule in `path` yet; returns sample_id -> last record.

    Resumable, with errors and a full GPU as in `answer_questions`. A record is `make_record`'s with
    `choices`, `choice_log_probs` (as they are, of the whole choice), `choice_n_tokens` and
    `length_normalisation` beside it; `answer` is the likeliest by that rule (the first of equals),
    `confidence` the geometric mean of its tokens' probabilities, `finish_reason` "choice".
    """
    from tqdm import tqdm

    with RecordWriter(path) as writer:
        done = {
            (key, *record["choices"])
            for key, record in read_records(path).items()
            if record.get("status") == "ok"
            and record.get("length_normalisation") == length_normalisation
        }
        todo = [job for job in jobs if (job.question.sample_id, *choices(job)) not in done]
        scored = len(jobs) - len(todo)
        with tqdm(
            total=len(jobs), initial=scored, desc="scoring", disable=not progress or None
        ) as bar:
            for batch in batches_by_picture(todo, batch_size):
                records = score_batch(
                    model, batch, choices, open_picture, length_normalisation, choice_batch_size
                )
                writer.write(records)
                bar.update(len(records))
    return read_records(path)


def score_batch(
    model: ChoiceModel,
    jobs: Sequence[Job],
    choices: Callable[[Job], Sequence[str]],
    open_picture: Callable[[Question], Image],
    length_normalisation: LengthNormalisation,
    choice_batch_size: int,
) -> list[dict[str, Any]]:
    """One record a job, in order. A GPU out of memory halves the jobs at a time; with one left, the
    choices at a time."""
    records: dict[str, dict[str, Any]] = {}
    pictures: dict[str, Image] = {}
    unreadable: dict[str, str] = {}
    scorable: list[Job] = []
    for job in jobs:
        name = job.question.image_name
        problem = text_problem(job.prompt) or model.prompt_problem(job.prompt)
        problem = problem or model.choices_problem(job.prompt, choices(job)) or unreadable.get(name)
        if not problem and job.question.image is not None and name not in pictures:
            try:
                pictures[name] = open_picture(job.question)
            except ImageError as error:
                problem = unreadable[name] = str(error)
        if problem:
            records[job.question.sample_id] = make_record(job, error=problem)
        else:
            scorable.append(job)
    if scorable:
        started, scores = time.perf_counter(), None
        index = {name: i for i, name in enumerate(pictures)}
        try:
            scores = model.choice_log_probs(
                model.encode_images(list(pictures.values())),
                [
                    index[job.question.image_name] if job.question.image else None
                    for job in scorable
                ],
                [job.prompt for job in scorable],
                [choices(job) for job in scorable],
                choice_batch_size,
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(scorable) == choice_batch_size == 1:
                raise UserError(
                    "the GPU's memory is full with one question and one choice at a time: "
                    f"--quantization nf4 needs less ({str(error).splitlines()[0]})"
                ) from error
        if scores is None:  # out of the except clause: the error would keep the features alive
            pictures.clear()
            parts = [jobs]
            if len(scorable) > 1:
                parts = [jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]]
            else:
                choice_batch_size = choice_batch_size // 2
            settings = (choices, open_picture, length_normalisation, choice_batch_size)
            return [record for part in parts for record in score_batch(model, part, *settings)]
        seconds = (time.perf_counter() - started) / len(scorable)
        for job, own in zip(scorable, scores, strict=True):
            records[job.question.sample_id] = choice_record(
                job, choices(job), own, length_normalisation, seconds
            )
    return [records[job.question.sample_id] for job in jobs]


def choice_record(
    job: Job,
    choices: Sequence[str],
    scores: Sequence[ChoiceScore],
    length_normalisation: LengthNormalisation,
    seconds: float,
) -> dict[str, Any]:
    """The record of a scored job; an error where the model gave no number (float16 overflows)."""
    if not all(math.isfinite(score.log_prob) for score in scores):
        return make_record(
            job, error="a log-probability is not finite; --dtype bfloat16 or float32 may help"
        )
    means = [score.log_prob / score.n_tokens for score in scores]
    values = means if length_normalisation == "mean" else [score.log_prob for score in scores]
    best = max(range(len(values)), key=values.__getitem__)
    answer = Answer(
        raw_output=choices[best],
        answer=choices[best].strip(),
        confidence=math.exp(means[best]),
        first_token_confidence=None,
        finish_reason="choice",
        n_tokens=scores[best].n_tokens,
    )
    return {
        **make_record(job, answer, seconds=seconds),
        "choices": list(choices),
        "choice_log_probs": [round(score.log_prob, 6) for score in scores],
        "choice_n_tokens": [score.n_tokens for score in scores],
        "length_normalisation": length_normalisation,
    }
