"""Score answers that are already there, without a model; one JSON object on stdout.

    python llava_repro/score.py --task pope --answers A.jsonl --annotations coco_pope_random.json
    python llava_repro/score.py --task scienceqa --answers A.jsonl --annotations data/scienceqa
    python llava_repro/score.py --task pope --answers A.jsonl --annotations data/pope --split all
    python llava_repro/score.py --task pope --answers R/answers_random.jsonl --annotations data/pope
    python llava_repro/score.py --task textvqa --answers A.jsonl --annotations data/textvqa
    python llava_repro/score.py --task pope --answers M_POPE.tsv --answers_format vlmevalkit

Reads LLaVA's answers (JSON lines `question_id, prompt, text`), our predictions.jsonl, VLMEvalKit's
.tsv or .json, or lmms-eval's samples file, and the official annotations; figures are those of the
official scripts (each module of llava_repro/tasks says which, and where it departs from them). An
unanswered question is wrong and counted, or left out with --answered_only; of two answers to one
question the last counts. Writes nothing but what is asked for: --submission, --scored, --to_llava,
--to_vlmevalkit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_repro.interchange import (
    read_answers,
    vlmevalkit_samples,
    write_lines,
    write_llava,
    write_vlmevalkit,
)
from llava_repro.tasks import Sample, load_task, match_answers, score_task, submission
from llava_repro.tasks.common import Matched, Metrics, Scored, counts
from shared.options import UserError, guarded, parse_options, write_json


@dataclass
class ScoreOptions:
    """What is scored"""

    task: Literal["vqav2", "gqa", "textvqa", "scienceqa", "pope", "caption", "file"] = field(
        metadata={"help": "which benchmark"}
    )
    answers: str = field(metadata={"help": "the answers, one a question"})
    annotations: str | None = field(
        default=None,
        metadata={"help": "official file or folder; none only with vlmevalkit, whose files hold "
                  "the references"},
    )  # fmt: skip
    split: str | None = field(
        default=None, metadata={"help": "of a folder with several; none = the task's first"}
    )
    answers_format: Literal["llava", "records", "vlmevalkit", "lmms-eval"] = field(
        default="llava",
        metadata={"help": "records: our predictions.jsonl; lmms-eval: *_samples_*.jsonl"},
    )
    questions: str | None = field(
        default=None,
        metadata={"help": "pope: LLaVA's llava_pope_test.jsonl, when the answers are numbered as "
                  "there"},
    )  # fmt: skip
    answered_only: bool = field(
        default=False,
        metadata={"help": "score the questions that are answered, say how many are not: for the "
                  "answers of a sample (evaluate.py --limit)"},
    )  # fmt: skip
    submission: str | None = field(default=None, metadata={"help": "write the official file here"})
    scored: str | None = field(
        default=None, metadata={"help": "write a line for each question here"}
    )
    to_llava: str | None = field(default=None, metadata={"help": "write LLaVA's answers here"})
    to_vlmevalkit: str | None = field(
        default=None, metadata={"help": "write VLMEvalKit's .tsv or .json here"}
    )
    judge_endpoint: str | None = field(
        default=None,
        metadata={"help": "OpenAI-compatible server (http://host:8000/v1) that reads the undecided "
                  "multiple-choice answers; counted apart"},
    )  # fmt: skip
    judge_model: str | None = field(default=None, metadata={"help": "its model's name there"})
    judge_cache: str | None = field(
        default=None, metadata={"help": "its answers (default: beside --answers, .judge.jsonl)"}
    )
    judge_concurrency: int = field(default=8, metadata={"help": "requests under way at once"})


def main(options: ScoreOptions) -> None:
    every, problems = load_samples(options)
    matched = match(options, every)
    samples = answered(every, matched) if options.answered_only else every
    scored, metrics = score_task(options.task, matched, samples)
    if options.answered_only:  # how much of the whole it is stays in the output
        n_missing = len(every) - len(samples)
        metrics |= counts(every, matched) | {"answered_only": True, "n_missing": n_missing}
    if options.judge_endpoint:
        metrics["judge"] = judge(options, matched, samples, scored)
    metrics["data_problems"] = {"count": len(problems), "first": problems[:20]}
    write_files(options, matched, samples, scored)
    for note in notes(options, metrics, matched, samples):
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(metrics, ensure_ascii=False))


def answered(samples: list[Sample], matched: Matched) -> list[Sample]:
    """The questions with a record, an error too. Raises UserError without any."""
    found = [sample for sample in samples if sample.sample_id in matched.records]
    if not found:
        raise UserError("--answered_only: no question of these annotations is answered")
    return found


def notes(
    options: ScoreOptions, metrics: Metrics, matched: Matched, samples: list[Sample]
) -> Iterator[str]:
    """What a reader of the figure should know, for stderr."""
    for name in ("missing", "duplicates", "errors"):
        if not metrics[name]:
            continue
        what = "; see counts in the output"
        if name == "missing":
            what = " count as wrong (--answered_only leaves them out)"
            if options.answered_only:
                what = f" are left out, {len(samples)} answered questions are scored"
        yield f"{metrics[name]} {name}{what}"
    if options.task == "pope":  # its splits share their numbers
        prompts = {key: record.get("prompt") for key, record in matched.records.items()}
        foreign = [s for s in samples if s.question not in (prompts.get(s.sample_id) or s.question)]
        if foreign:
            yield (
                f"{len(foreign)} prompts of the answers do not hold the question that they are "
                "scored as: are they answers to another split (--split)?"
            )


def load_samples(options: ScoreOptions) -> tuple[list[Sample], list[str]]:
    """The questions, and what was wrong with rows that are left out."""
    if options.annotations is None:
        if options.answers_format != "vlmevalkit" or options.task == "gqa":
            raise UserError("which annotations? Give --annotations FILE_OR_FOLDER")
        return vlmevalkit_samples(Path(options.answers), options.task), []
    path = Path(options.annotations)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    # OCR words belong to the prompt, which is in the answers: scoring asks for no file of them
    prompt = "no_ocr" if options.task == "textvqa" else None
    found = load_task(options.task, path, options.split, prompt)
    return found.questions, found.problems


def match(options: ScoreOptions, samples: list[Sample]) -> Matched:
    rows = read_answers(Path(options.answers), options.answers_format, samples)
    if options.questions:
        if options.task != "pope":
            raise UserError("--questions is for pope: other tasks' answers carry their own ids")
        from llava_repro.tasks.pope import renumber

        rows = renumber(rows, Path(options.questions), samples)
    try:
        return match_answers(options.task, rows, samples)
    except UserError as error:
        if options.task != "pope" or options.split is not None:
            raise
        raise UserError(
            f"{error} Without --split the first one is scored; evaluate.py asks all three: "
            "--split all"
        ) from error


def judge(
    options: ScoreOptions, matched: Matched, samples: list[Sample], scored: Scored
) -> Metrics:
    from llava_repro.judge import judge_undecided
    from shared.endpoint import Endpoint

    if options.judge_model is None:
        raise UserError("--judge_endpoint needs --judge_model, the model's name on that server")
    if not any(sample.choices for sample in samples):
        raise UserError(f"--judge_endpoint: {options.task} is no multiple-choice task")
    cache = options.judge_cache or f"{options.answers}.judge.jsonl"
    endpoint = Endpoint(
        options.judge_endpoint, options.judge_model, concurrency=options.judge_concurrency
    )
    return judge_undecided(endpoint, matched.records, samples, scored, Path(cache))


def write_files(
    options: ScoreOptions, matched: Matched, samples: list[Sample], scored: Scored
) -> None:
    if options.submission:
        content, as_lines = submission(options.task, matched.records, samples)
        write: Any = write_lines if as_lines else write_json
        write(Path(options.submission), content)
    if options.scored:
        write_lines(Path(options.scored), scored)
    if options.to_llava:
        write_llava(Path(options.to_llava), samples, matched.records, Path(options.answers).stem)
    if options.to_vlmevalkit:
        write_vlmevalkit(Path(options.to_vlmevalkit), samples, matched.records)


if __name__ == "__main__":
    guarded(lambda: main(parse_options(ScoreOptions, description=__doc__.split("\n")[0])))
