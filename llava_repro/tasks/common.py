"""What every task shares: the sample, the tables behind a figure, the matching of answers.

A task reads its official files into `Sample`s and scores records against them; a record is a
mapping with `answer` (text or None), `status` (ok or error) and, where a rule looks at it,
`prompt`. A question without an `ok` record counts as wrong. Imported by the tasks beside it and
by score.py; reads and writes nothing itself. No torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.conversation_files import Picture
from shared.estimates import estimate
from shared.options import MissingError
from shared.significance import Interval, wilson_interval
from shared.vqa_score import normalise_answer
from shared.vqav2 import Question, QuestionSet, check_usable

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
N_NAMED = 10  # ids that a message or a metrics file names; the others are counted

Record = Mapping[str, Any]
Scored = list[dict[str, Any]]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Sample(Question):
    """A question of any task: a `Question` with what is asked, literally, and how it is scored.

    `prompt` is the user's text after the picture (question, OCR tokens or options, suffix; without
    the template, and without `<image>` unless `interleaved`). `image` is None for a question
    without a picture; its `image_name` is then "" and its `image_id`, the cluster of the intervals,
    its own id.
    """

    image: Picture | None = None
    image_name: str = ""
    image_id: int | str = ""
    question: str = ""
    prompt: str = ""
    llava_id: int | str = ""  # `question_id` in LLaVA's answer files
    choices: tuple[str, ...] = ()
    correct: int | None = None  # which of the choices
    more_images: tuple[Picture, ...] = ()  # of a question about several pictures, after `image`
    interleaved: bool = False  # `prompt` holds its `<image>`s, with words between them
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)  # table -> row


def ask_short(question: str, prompt: str) -> str:
    """The question, with LLaVA-1.5's suffix unless the prompt choice is `bare`."""
    return question if prompt == "bare" else f"{question}\n{SHORT_ANSWER}"


def m4c_normalise(text: str) -> str:
    """An answer as LLaVA's `EvalAIAnswerProcessor` leaves it, for TextVQA and VQAv2 submissions.

    Lower case, no comma or question mark, "'s" set apart, then all steps of the VQA program.
    Source: llava/eval/m4c_evaluator.py at https://github.com/haotian-liu/LLaVA, c121f043. The
    steps are those of `shared.vqa_normalise`, which treats non-ASCII digits and U+180E as Python 2
    does; LLaVA's program runs under Python 3.
    """
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_answer(words)


def official_id(sample_id: str) -> int | str:
    """An id as the official files have it: a number where it is one."""
    return int(sample_id) if sample_id.isdecimal() else sample_id


def answer_of(record: Record | None) -> str | None:
    """The text to be scored; None for a missing answer and for an error."""
    if record is None or record.get("status", "ok") != "ok":
        return None
    return record["answer"]


def usable(samples: list[Sample], problems: list[str], n_rows: int, path: Path) -> QuestionSet:
    """The samples of a file, unless none is left or more rows are bad than a few: UserError."""
    check_usable(samples, problems, n_rows, path)
    return QuestionSet(samples, problems)


def need_file(path: Path, task: str, where_from: str) -> Path:
    """The path, or MissingError saying where the file comes from."""
    if not path.is_file():
        raise MissingError(
            f"{path} is not there.\n"
            f"  real data: {where_from}\n"
            f"  without any download: llava_repro/evaluate.py --task {task} --toy"
        )
    return path


def picture_folder(candidates: Iterable[Path], example: str) -> Path:
    """The first folder that holds the example picture, else the first one."""
    folders = list(candidates)
    return next((folder for folder in folders if (folder / example).is_file()), folders[0])


def in_percent(interval: Interval, scale: float = 100) -> Metrics:
    """The limits of an interval, times `scale`, as a metrics file keeps them."""
    kept: Metrics = {
        name: None if limit is None else round(scale * limit, 6)
        for name, limit in (("low", interval.low), ("high", interval.high))
    }
    return kept | {"n": interval.n} | ({"note": interval.note} if interval.note else {})


def proportion(successes: int, n: int, reason: str) -> tuple[float | None, Metrics]:
    """successes / n with Wilson's interval, 0..1; None with the reason when n is 0."""
    if n == 0:
        return None, {"low": None, "high": None, "n": 0, "note": reason}
    return successes / n, in_percent(wilson_interval(successes, n), 1)


def tables(samples: Sequence[Sample], scored: Scored) -> dict[str, dict[str, Metrics]]:
    """`estimate` per row of every table that the samples' `groups` name, largest row first."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for sample, row in zip(samples, scored, strict=True):
        if row["score"] is not None:
            for table, name in sample.groups.items():
                found[table][name].append(row)
    return {
        table: {
            name: estimate([r["score"] for r in rows], [r["image_id"] for r in rows])
            for name, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        }
        for table, groups in found.items()
    }


def scored_row(sample: Sample, score: float | None, **extra: Any) -> dict[str, Any]:
    """One line of `scored.jsonl`; `score` is 0..1, None where there is nothing to score against."""
    return {
        "sample_id": sample.sample_id,
        "image_id": sample.image_id,
        "question_type": sample.question_type,
        "answer_type": sample.answer_type,
        "score": score,
    } | extra


def headline(scored: Scored) -> Metrics:
    """The task's main figure: the mean score over all questions, in percent."""
    rows = [row for row in scored if row["score"] is not None]
    return estimate(
        [row["score"] for row in rows],
        [row["image_id"] for row in rows],
        "no question has a reference answer",
    )


@dataclass(frozen=True)
class Matched:
    """Answers by sample id; of several for one question the last counts."""

    records: dict[str, Record]
    duplicates: tuple[str, ...] = ()  # sample ids answered more than once
    unknown: tuple[str, ...] = ()  # question ids that the annotations do not have


def match_by_id(rows: Sequence[Record], samples: Sequence[Sample]) -> Matched:
    """Rows of an answers file ({question_id, prompt, text}) to samples by question_id."""
    known = {str(sample.llava_id): sample.sample_id for sample in samples}
    known |= {sample.sample_id: sample.sample_id for sample in samples}
    return gather((row, known.get(str(row["question_id"]))) for row in rows)


def gather(pairs: Iterable[tuple[Record, str | None]]) -> Matched:
    """(row, its sample id or None) -> records by sample id, with what is repeated or unknown."""
    records: dict[str, Record] = {}
    duplicates: Counter[str] = Counter()
    unknown: list[str] = []
    for row, sample_id in pairs:
        if sample_id is None:
            unknown.append(str(row["question_id"]))
            continue
        duplicates[sample_id] += sample_id in records
        records[sample_id] = {
            "sample_id": sample_id,
            "prompt": row.get("prompt"),
            "answer": row["text"],
            "status": row.get("status", "ok"),
        }
    return Matched(records, tuple(key for key, n in duplicates.items() if n), tuple(unknown))


def counts(samples: Sequence[Sample], matched: Matched) -> Metrics:
    """How complete a run is: numbers, and the first ids by name."""
    missing = [s.sample_id for s in samples if s.sample_id not in matched.records]
    status = Counter(record.get("status", "ok") for record in matched.records.values())
    ids = {"missing": missing, "duplicates": matched.duplicates, "unknown": matched.unknown}
    return {
        "answered": status["ok"],
        "errors": len(matched.records) - status["ok"],
        **{name: len(found) for name, found in ids.items()},
        "named": {name: list(found[:N_NAMED]) for name, found in ids.items() if found},
    }


def mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


Load = Callable[[Path, str, str], QuestionSet]
Score = Callable[[Mapping[str, Record], Sequence[Sample]], tuple[Scored, Metrics]]
Submit = Callable[[Mapping[str, Record], Sequence[Sample]], Any]


def row_by_row(row: Callable[[Sample, str], dict[str, Any]]) -> Submit:
    """A submission of one row a sample, in order; its answer is "" where there is none."""

    def submit(records: Mapping[str, Record], samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [row(sample, answer_of(records.get(sample.sample_id)) or "") for sample in samples]

    return submit


@dataclass(frozen=True)
class Task:
    """A benchmark: where its files are, how it asks, how it is scored.

    `load(path, split, prompt)`: path is the data folder, or the annotation file where one file is
    all. `submission` gives what the official server or script takes: a JSON value, or a list of
    JSON lines when `submission_lines`. `unknown_ids` is what the official script does with an
    answer to no question: crash, so an error here, or pass over it.
    """

    name: str
    data_folder: str  # under data/
    splits: tuple[str, ...]  # the first is the default
    prompts: Mapping[str, str]  # named choices of the prompt; the first is LLaVA-1.5's
    load: Load
    score: Score
    submission: Submit
    match: Callable[[Sequence[Record], Sequence[Sample]], Matched] = match_by_id
    unknown_ids: str = "error"
    submission_lines: bool = False
    max_new_tokens: int = 128  # as LLaVA's evaluation scripts
