"""A model on a split: records of every sample, then scores. What evaluate.py and train.py share.

    data = load_task_data("retrieval", data_root, "val2014")
    metrics = evaluate_model("retrieval", blip, data.samples, Asking(), folder)
    metrics["accuracy"]["value"], metrics["selection"]["value"]

The figure that train.py prints comes from this very function, with the same samples and settings as
evaluate.py's. Reads the samples' pictures; writes predictions.jsonl into the run folder, if one is
given, and goes on with one that is there.

    python lavis_apps/evaluate.py --toy --task retrieval
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.evaluation_samples import class_question, matching_pairs
from lavis_apps.evaluation_settings import Asking, EvaluateOptions, read_lines
from lavis_apps.processors import blip_question
from lavis_apps.scoring import score_task
from lavis_apps.scoring_itm import MATCH, NO_MATCH
from shared.answering import (
    Answer,
    Job,
    RecordWriter,
    batches_by_picture,
    is_out_of_memory,
    make_record,
    read_records,
    text_problem,
)
from shared.images import ImageError, open_image
from shared.options import UserError
from shared.vqav2 import Question

if TYPE_CHECKING:
    from PIL.Image import Image

Records = list[dict[str, Any]]
# What a task's model says about each job, and what of it stands in the record besides the answer.
Said = list[tuple[Answer, dict[str, Any]]]
Ask = Callable[[Sequence[Job], Sequence["Image"]], Said]
DIGITS = 6


def evaluate_model(
    task: str,
    model: Any,
    samples: Sequence[Any],
    settings: Asking,
    folder: Path | None = None,
    *,
    classes: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """The metrics of `model` on `samples`, as metrics.json holds them.

    `model`: a `Blip` of the task's kind (blip.py); for retrieval and classification a `Family` of
    features.py too (CLIP). `samples`: as `load_task_data` gives them, `classes` its names for
    classification. `settings`: localization takes `EvaluateOptions`. `folder`: where
    predictions.jsonl is written and read; None keeps nothing. The model is asked as it is: the
    caller sets eval mode.

    `accuracy` is the headline in percent with its interval (caption: BLEU-4; vqa: official
    accuracy; retrieval: mean recall; classification: top-1 accuracy), `selection` the figure by
    which the best checkpoint is chosen, higher is better (caption: CIDEr, else the headline).
    """
    records = answer_samples(
        task, lambda: model, samples, settings, folder, classes=classes, progress=progress
    )
    meteor = folder is not None  # slow, and no checkpoint is chosen by it
    return score_task(task, records, expected=len(records), classes=classes, meteor=meteor, seed=0)[
        1
    ]


def answer_samples(
    task: str,
    load: Callable[[], Any],
    samples: Sequence[Any],
    settings: Asking,
    folder: Path | None,
    *,
    classes: Sequence[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> Records:
    """One record a sample (retrieval: a query; matching: a pair), in the samples' order.

    `load` gives the model; it is called only where a record is missing or an error, so a finished
    run is scored again without one. `seed` draws the other pictures' captions of matching.
    """
    path = folder / "predictions.jsonl" if folder else None
    if task == "retrieval":
        return _retrieval(load, samples, settings, folder, path, progress)
    jobs = jobs_of(task, samples, settings, seed)
    return ask_in_batches(
        jobs, lambda: asker(task, load(), settings, classes), path,
        batch_size=settings.batch_size, progress=progress,
    )  # fmt: skip


def jobs_of(
    task: str, samples: Sequence[Any], settings: Asking | EvaluateOptions, seed: int = 0
) -> list[Job]:
    """What the model is asked about each sample, as a record's `prompt` keeps it."""
    if task == "caption":
        return [Job(sample, settings.prompt) for sample in samples]
    if task == "vqa":
        return [Job(sample, blip_question(sample.question)) for sample in samples]
    if task == "classification":
        return [Job(class_question(sample), "") for sample in samples]
    if task == "matching":
        return matching_pairs(samples, seed)
    if task == "localization":
        return [
            Job(sample.question, settings.sentence.replace("{}", sample.question.question), {
                "boxes": sample.boxes, "other_boxes": sample.others, "size": sample.size,
                "chance": round(sample.chance, DIGITS),
            })
            for sample in samples
        ]  # fmt: skip
    raise UserError(f"task {task!r} has no measure")


def ask_in_batches(
    jobs: Sequence[Job],
    open_ask: Callable[[], Ask],
    path: Path | None,
    *,
    batch_size: int,
    progress: bool = True,
) -> Records:
    """A record for every job that has no `ok` record in `path` yet, with those that are there.

    Jobs about one picture stand together and share the opened picture. A picture that can't be read
    is an error record, the rest goes on. Raises UserError where a GPU's memory is full.
    """
    from tqdm import tqdm

    with RecordWriter(path) if path else nullcontext() as writer:
        latest = read_records(path) if path else {}
        done = {key for key, record in latest.items() if record.get("status") == "ok"}
        todo = [job for job in jobs if job.question.sample_id not in done]
        ask = open_ask() if todo else None
        with tqdm(
            total=len(jobs),
            initial=len(jobs) - len(todo),
            desc="samples",
            disable=not progress or None,
        ) as bar:
            for batch in batches_by_picture(todo, batch_size):
                records = _answer(batch, ask)
                if writer is not None:
                    writer.write(records)
                latest.update({record["sample_id"]: record for record in records})
                bar.update(len(batch))
    return [latest[job.question.sample_id] for job in jobs]


def _answer(batch: Sequence[Job], ask: Ask | None) -> Records:
    records: dict[str, dict[str, Any]] = {}
    pictures: dict[str, Image] = {}
    unreadable: dict[str, str] = {}
    asked: list[Job] = []
    for job in batch:
        name = job.question.image_name
        if name not in pictures and name not in unreadable:
            try:
                pictures[name] = open_image(job.question.image)
            except ImageError as error:
                unreadable[name] = str(error)
        problem = unreadable.get(name) or text_problem(job.prompt)
        if problem:
            records[job.question.sample_id] = make_record(job, error=problem)
        else:
            asked.append(job)
    if asked and ask is not None:
        try:
            said = ask(asked, [pictures[job.question.image_name] for job in asked])
        except Exception as error:
            if is_out_of_memory(error):
                raise UserError(
                    f"the GPU's memory is full with {len(asked)} samples at a time: a smaller "
                    f"--batch_size needs less ({str(error).splitlines()[0]})"
                ) from error
            raise
        for job, (answer, details) in zip(asked, said, strict=True):
            records[job.question.sample_id] = make_record(job, answer) | details
    return [records[job.question.sample_id] for job in batch]


def asker(task: str, model: Any, settings: Asking | EvaluateOptions, classes: Sequence[str]) -> Ask:
    """How a task's model is asked about a batch."""
    makers: dict[str, Callable[[], Ask]] = {
        "caption": lambda: _caption(model, settings),
        "vqa": lambda: _vqa(model, settings),
        "classification": lambda: _classification(model, settings, classes),
        "matching": lambda: _matching(model),
        "localization": lambda: _localization(model, settings),
    }
    return makers[task]()


def _caption(model: Any, settings: Asking) -> Ask:
    from lavis_apps.captioning import Captioner

    captioner = Captioner(model)

    def ask(jobs: Sequence[Job], images: Sequence[Image]) -> Said:
        found = captioner.caption(
            images, n=1, method="beam", num_beams=settings.num_beams,
            max_length=settings.max_length, min_length=settings.min_length, prompt=settings.prompt,
        )  # fmt: skip
        return [(_said(own[0].text, math.exp(own[0].score)), {}) for own in found]

    return ask


def _vqa(model: Any, settings: Asking) -> Ask:
    from lavis_apps.vqa import Answerer

    answerer = Answerer(model)
    candidates = read_lines(settings.candidates) if settings.inference == "rank" else None

    def ask(jobs: Sequence[Job], images: Sequence[Image]) -> Said:
        questions = [job.question.question for job in jobs]
        found = answerer.answer(
            images, questions, candidates=candidates, n=1, num_beams=settings.num_beams
        )
        return [(_said(own.answer, own.confidence), {}) for own in found]

    return ask


def _classification(model: Any, settings: Asking, classes: Sequence[str]) -> Ask:
    from lavis_apps.classification import Classifier

    classifier = Classifier(model, settings.scoring)
    templates = read_lines(settings.templates) if settings.templates else None

    def ask(jobs: Sequence[Job], images: Sequence[Image]) -> Said:
        found = classifier.classify(images, classes, templates=templates)
        return [
            _ranked({c.label: (c.probability, c.score) for c in own.top}, job.question.answer_type)
            for job, own in zip(jobs, found, strict=True)
        ]

    return ask


def _ranked(
    classes: Mapping[str, tuple[float, float]], truth: str | None
) -> tuple[Answer, dict[str, Any]]:
    """The answer is the likeliest class, of equals a wrong one; the rank counts those as before.

    `classes`: name -> probability and raw score, which tells apart those whose probability float32
    has rounded to 0.
    """
    order = sorted(classes, key=lambda name: (classes[name], name != truth), reverse=True)
    own = classes.get(truth or "")
    rank = None
    if own is not None and all(map(math.isfinite, own)):
        rank = 1 + sum(other >= own for name, other in classes.items() if name != truth)
    top = [[name, round(classes[name][0], DIGITS)] for name in order[:5]]
    return _said(order[0], classes[order[0]][0]), {"rank": rank, "top": top}


def _matching(model: Any) -> Ask:
    """ITM probability and ITC cosine of each picture with its job's text."""
    import torch

    from lavis_apps.features import as_family

    family = as_family(model)

    def ask(jobs: Sequence[Job], images: Sequence[Image]) -> Said:
        unique = {id(image): image for image in images}
        rows = [list(unique).index(id(image)) for image in images]
        texts = [job.prompt for job in jobs]
        with torch.inference_mode():
            read = family.read_images(list(unique.values()))
            logits = family.match_logits(read.states[rows], texts).float()
            itm = logits.softmax(dim=-1)[:, 1].tolist()
            itc = (read.vector[rows] * family.read_texts(texts).vector).sum(dim=-1).tolist()
        return [
            (_said(MATCH if p >= 0.5 else NO_MATCH, max(p, 1 - p)), {"itm": p, "itc": cosine})
            for p, cosine in zip(itm, itc, strict=True)
        ]

    return ask


def _localization(model: Any, settings: EvaluateOptions) -> Ask:
    """The map of the category's words in the sentence against the category's boxes."""
    import numpy as np

    from lavis_apps.localization import Localizer
    from lavis_apps.pointing import elsewhere, point

    localizer = Localizer(model)

    def ask(jobs: Sequence[Job], images: Sequence[Image]) -> Said:
        texts = [job.prompt for job in jobs]
        said: Said = []
        found = localizer.localize_pairs(images, texts, block=settings.block)
        for job, image, own in zip(jobs, images, found, strict=True):
            wanted = str(job.question.answer_type).lower().split()
            grids = [word.grid for word in own.words if word.word.lower() in wanted]
            grid = np.mean(grids, axis=0) if grids else own.average
            result = point(grid, job.details["boxes"], image.size)
            other = elsewhere(grid, job.details["other_boxes"], image.size)
            details = {
                "hit": round(result.hit, DIGITS),
                "chance": round(result.chance, DIGITS),
                "energy": None if result.energy is None else round(result.energy, DIGITS),
                "elsewhere": None if other is None else round(other, DIGITS),
                "itm": round(own.probability, DIGITS),
            }
            said.append((_said("hit" if result.hit == 1 else "miss", None), details))
        return said

    return ask


def _said(text: str, confidence: float | None) -> Answer:
    """An answer of which no tokens are counted."""
    sure = confidence if confidence is not None and 0 <= confidence <= 1 else None
    return Answer(text, text.strip(), sure, None, "stop", 0)


def _retrieval(
    load: Callable[[], Any],
    samples: Sequence[Question],
    settings: Asking,
    folder: Path | None,
    path: Path | None,
    progress: bool,
) -> Records:
    from lavis_apps.evaluation_retrieval import query_ids, retrieval_records

    if path is not None:
        there = read_records(path)
        wanted = query_ids(samples)
        if all(there.get(key, {}).get("status") == "ok" for key in wanted):
            return [there[key] for key in wanted]
    records = retrieval_records(load(), samples, settings, folder, progress)
    if path is not None:
        path.unlink(missing_ok=True)
        with RecordWriter(path) as writer:
            writer.write(records)
    return records
