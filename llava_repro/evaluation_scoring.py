"""From prediction records to `scored.jsonl`, `metrics.json` and the benchmark's own files.

A pure function of the records: they hold references, choices and tables, so that a run is scored
and verified where neither model nor data is. `official` are the figures of the benchmark's program
(`llava_repro.tasks`), as score.py prints them; the rest has the form that all runs here share.
Errors count as wrong in the headline and are counted beside it. No torch.

    python llava_repro/compare.py --verify outputs/llava_repro/RUN
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.evaluation_settings import EvaluateOptions, data_folder
from llava_repro.interchange import read_llava, write_lines, write_llava, write_vlmevalkit
from llava_repro.tasks import TASKS, Sample, load_task, score_task, submission
from llava_repro.tasks.common import LETTERS
from llava_repro.tasks.pope import by_split
from shared import caption_runs
from shared.coco_captions import results_file
from shared.estimates import by_group, estimate
from shared.options import MissingError, UserError, manifest_value, write_json
from shared.runs import Run
from shared.verification import verify

LLAVA_ANSWERS, VLMEVALKIT_ANSWERS = "answers.jsonl", "vlmevalkit.tsv"
TRAIN_SPLITS = {"vqav2": "train2014", "gqa": "train_balanced", "textvqa": "train",
                "scienceqa": "train"}  # fmt: skip

Record = Mapping[str, Any]


def sample_of(record: Record) -> Sample:
    """The question of a record, as far as scoring looks at it."""
    references = tuple(record["references"])
    target = record.get("target") or (max(references, key=references.count) if references else None)
    choices = tuple(record.get("choices") or ())
    return Sample(
        sample_id=record["sample_id"],
        image=Path(record["image"]) if record["image"] else None,
        image_name=record["image"],
        image_id=record["image_id"],
        question=record["question"],
        references=references,
        question_type=record["question_type"],
        answer_type=record["answer_type"],
        target=target,
        llava_id=record["sample_id"],
        choices=choices,
        correct=LETTERS.index(target) if choices and target else None,
        groups=record.get("groups") or {},
    )


def scorer(task: str) -> Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]:
    """`score_run(records, expected=...)` of a task, as verification and comparison take it."""
    if task == caption_runs.TASK:
        return caption_runs.score_again

    def score_run(
        records: Sequence[Record], *, expected: int
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return score(task, records, [sample_of(record) for record in records], expected)

    return score_run


def score(
    task: str, records: Sequence[Record], samples: Sequence[Sample], expected: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Scored rows, in the order of the samples, and the metrics of a run of `expected` questions.

    A `skipped` record is a question that another tool's file does not answer: missing.
    """
    if task == caption_runs.TASK:
        scored, metrics = caption_runs.score_run(records, expected=expected)
        official = {"n": len(scored), "accuracy": metrics["accuracy"]["value"]}
        return scored, metrics | {"official": official}
    given = [record for record in records if record["status"] != "skipped"]
    scored, official = score_task(task, given, samples)
    with_score = [row for row in scored if row["score"] is not None]
    ok = {record["sample_id"] for record in given if record["status"] == "ok"}
    answered = [row for row in with_score if row["sample_id"] in ok]
    metrics: dict[str, Any] = {
        "task": task,
        "metric": official["metric"],
        "accuracy": mean_of(with_score),
        "official": {key: value for key, value in official.items() if key not in NOT_OFFICIAL},
        "per_answer_type": by_group(scored, lambda row: row["answer_type"]),
        "per_question_type": by_group(scored, lambda row: row["question_type"]),
        "excluding_errors": mean_of(answered),
        "counts": {
            "expected": expected,
            "answered": len(ok),
            "errors": sum(record["status"] == "error" for record in records),
            "missing": expected - len(given),
            "empty": sum(record["answer"] == "" for record in records),
            "cut": sum(record["finish_reason"] == "length" for record in records),
        },
    }
    return scored, metrics


# of `score_task`: what stands beside `official` under the names that all runs share
NOT_OFFICIAL = {"task", "metric", "headline", "answered", "errors", "missing", "duplicates",
                "unknown", "named"}  # fmt: skip


def mean_of(rows: Sequence[Record]) -> dict[str, Any]:
    return estimate([row["score"] for row in rows], [row["image_id"] for row in rows])


# The blind baseline


def blind_metrics(options: EvaluateOptions, samples: Sequence[Sample]) -> dict[str, Any]:
    """Accuracy of the commonest answer of each question type, no picture seen, by the task's rule.

    The answers are learned from the benchmark's train split where it is on disk, else from the
    toy's manifest, else from the very questions that are scored, which flatters blindness;
    `learned_from` says which.
    """
    told = [sample for sample in samples if sample.references]
    if options.task == caption_runs.TASK:
        return {"value": None, "n": 0, "reason": "captions have no commonest answer"}
    if not told:
        return {"value": None, "n": 0, "reason": "no question has a reference answer"}
    answers, learned_from = blind_answers(options, told)
    records = [
        {"sample_id": s.sample_id, "status": "ok", "answer": answers.get(kind_of(s), answers[""])}
        for s in told
    ]
    scored, figures = score_task(options.task or "", records, told)
    return {
        **figures["headline"],
        "learned_from": learned_from,
        "per_answer_type": by_group(scored, lambda row: row["answer_type"]),
        "per_question_type": by_group(scored, lambda row: row["question_type"]),
    }


def blind_answers(
    options: EvaluateOptions, samples: Sequence[Sample]
) -> tuple[dict[str, str], str]:
    """kind -> its commonest answer ("": of all kinds), and where they were counted."""
    folder = data_folder(options)
    listed = manifest_value(folder, "blind_answers") if folder and options.task == "file" else None
    if listed:
        return {"": commonest(list(listed.values())), **listed}, "the train split"
    learned: Sequence[Sample] = samples
    learned_from = "these questions themselves"
    split = TRAIN_SPLITS.get(options.task or "")
    if split and options.source is not None and options.source.is_dir():
        prompt = "no_ocr" if options.task == "textvqa" else None
        try:
            learned = load_task(options.task or "", options.source, split, prompt).questions
            learned_from = "the train split"
        except (MissingError, UserError):  # most have the scored split alone
            learned = samples
    counts: dict[str, list[str]] = defaultdict(list)
    for sample in learned:
        if sample.target is not None:
            counts[kind_of(sample)].append(sample.target)
            counts[""].append(sample.target)
    return {kind: commonest(answers) for kind, answers in counts.items()}, learned_from


def kind_of(sample: Sample) -> str:
    """Its question type, within its language where the rows name one."""
    kind = sample.question_type or "all"
    language = sample.groups.get("language")
    return f"{language}/{kind}" if language else kind


def commonest(answers: Sequence[str]) -> str:
    """A tie goes to the first in the alphabet."""
    counted = Counter(answers)
    return min(counted, key=lambda answer: (-counted[answer], answer))


# Files


def write_answer_files(
    options: EvaluateOptions,
    folder: Path,
    samples: Sequence[Sample],
    records: Sequence[Record],
    is_whole: bool,
) -> None:
    """LLaVA's answers, VLMEvalKit's table and the official file; a sample's name says its size.

    POPE's three splits share their numbers, so answers.jsonl calls them `random/17`; beside it
    stands a file a split with the numbers alone. LLaVA's eval_pope.py reads all of them, but pairs
    answers with labels by their order: its figures are right for whole splits (`--limit 0`) without
    an error only.
    """
    by_id = {r["sample_id"]: r for r in records if r["status"] != "skipped"}
    model = Path(options.adapter or options.answers or options.model).name
    write_llava(folder / LLAVA_ANSWERS, samples, by_id, model)
    splits = by_split(samples) if options.task == "pope" else {}
    for name, part in splits.items():
        write_llava(folder / f"answers_{name}.jsonl", part, by_id, model)
    write_vlmevalkit(folder / VLMEVALKIT_ANSWERS, samples, by_id)
    if options.task == "file":
        return  # no server asks for own rows
    for name, part in official_files(options, folder.name, samples, is_whole).items():
        content, as_lines = submission(options.task or "", by_id, part)
        write: Any = write_lines if as_lines else write_json
        write(folder / name, content)


def official_files(
    options: EvaluateOptions, run: str, samples: Sequence[Sample], is_whole: bool
) -> dict[str, list[Sample]]:
    """Name -> its questions: one file, for POPE one a split, as its program takes them."""
    part = "" if is_whole else f"_sample{len(samples)}"
    task, split = options.task, options.split
    if task == "pope":
        return {
            f"coco_pope_{name}{part}_answers.jsonl": own for name, own in by_split(samples).items()
        }
    names = {
        "vqav2": f"v2_OpenEnded_mscoco_{split}{part}_{run}_results.json",
        "gqa": f"{split}{part}_predictions.json",
        "textvqa": f"textvqa_{split}{part}_submission.json",
        "scienceqa": f"scienceqa_{split}{part}_result.json",
        "caption": results_file(split or "", run, None if is_whole else len(samples)),
    }
    return {names[task or ""]: list(samples)}


def verify_run(run: Run) -> list[str]:
    """What the folder says otherwise than scoring its records again; empty when all agrees."""
    task = run.config.get("task")
    if task not in TASKS:
        raise UserError(f"{run.folder}: not a run of llava_repro/evaluate.py (task {task!r})")
    if task == caption_runs.TASK:
        differing = caption_runs.verify_captions(run)
    else:
        differing = verify(run, scorer(task))
    answers = run.folder / LLAVA_ANSWERS
    if answers.is_file():
        said = [r["answer"] for r in run.records.values() if r["status"] == "ok"]
        if sorted(row["text"] for row in read_llava(answers)) != sorted(said):
            differing.append(f"{answers.name}: not the answers of predictions.jsonl")
    return differing
