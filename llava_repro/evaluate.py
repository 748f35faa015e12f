"""A LLaVA on a standard benchmark: official files in, official figures and files out.

Answers the sample's questions greedily with the prompts of the published evaluation, one JSON line
each as they are made, then scores them by the benchmark's own rules (`llava_repro/tasks`). The same
command goes on where it was stopped. `--answers` scores another tool's file instead.

    python llava_repro/evaluate.py --task pope --toy
    python llava_repro/evaluate.py --task file --toy --model outputs/llava_repro/RUN/model
    python llava_repro/evaluate.py --task textvqa --model llava-hf/llava-1.5-7b-hf --prompt no_ocr
    python llava_repro/evaluate.py --task file --data my_rows.jsonl --adapter RUN/adapter
    python llava_repro/evaluate.py --task caption --toy
    python llava_repro/evaluate.py --task pope --answers theirs.jsonl

Reads data/TASK in the official layout, or own rows. Writes to `outputs/llava_repro/RUN/`:
config.json, environment.json, predictions.jsonl, scored.jsonl, metrics.json, the official results
file, and the answers as LLaVA (answers.jsonl; of POPE also answers_random.jsonl and the like, with
its own numbers) and VLMEvalKit (vlmevalkit.tsv) keep them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_repro.evaluation_answers import answered_questions, match_file, take_answers
from llava_repro.evaluation_scoring import blind_metrics, score, write_answer_files
from llava_repro.evaluation_settings import (
    EvaluateOptions,
    data_folder,
    prepare_toy,
    task_of,
    toy_defaults,
)
from llava_repro.evaluation_setup import (
    SeveralPictures,
    base_of,
    choose_decoding,
    jobs_of,
    load_questions,
    picture_opener,
    print_plan,
    run_config,
    run_folder,
    template_of,
)
from llava_repro.evaluation_summary import print_figures
from llava_repro.interchange import write_lines
from llava_repro.judge import judge_undecided
from llava_repro.tasks import Sample
from shared import caption_runs
from shared.answering import answer_questions
from shared.endpoint import Endpoint
from shared.options import (
    guarded,
    manifest_value,
    parse_options,
    portable_path,
    start_run,
    write_json,
)
from shared.summaries import print_summary


def main(options: EvaluateOptions) -> None:
    # Data
    sample, is_whole = load_questions(options)
    n_asked = len(sample.questions)
    matched = match_file(options, sample.questions) if options.answers else None
    if matched is not None and options.answered_only:
        sample = answered_questions(options, sample, matched)
        is_whole = is_whole and len(sample.questions) == n_asked
    samples: list[Sample] = sample.questions
    folder = run_folder(options)
    if options.dry_run:
        print_plan(options, sample, folder)
        return
    template = None if options.answers else template_of(options)
    if start_run(folder, run_config(options, sample, template)):
        print(f"continuing {portable_path(folder)}")

    # Answers
    predictions = folder / "predictions.jsonl"
    if matched is not None:
        records, odd = take_answers(options, matched, samples, predictions)
    else:
        records, odd = ask(options, samples, predictions), None

    # Score
    task = options.task or ""
    scored, metrics = score(task, records, samples, expected=len(samples))
    metrics["blind"] = blind_metrics(options, samples)
    if options.judge_endpoint:
        endpoint = Endpoint(
            options.judge_endpoint, options.judge_model or "", concurrency=options.judge_concurrency
        )
        by_id = {record["sample_id"]: record for record in records}
        metrics["judge"] = judge_undecided(endpoint, by_id, samples, scored, folder / "judge.jsonl")
    metrics["synthetic"] = synthetic(options)
    metrics["data_problems"] = {"count": len(sample.problems), "first": sample.problems[:20]}
    if odd is not None:
        metrics["answers_file"] = odd | {"left_out": n_asked - len(samples)}

    # Save
    write_lines(folder / "scored.jsonl", scored)
    write_json(folder / "metrics.json", metrics)
    write_answer_files(options, folder, samples, records, is_whole)
    is_caption = task == caption_runs.TASK
    print_summary(
        folder, records, metrics, caption_runs.print_figures if is_caption else print_figures,
        seed=options.seed, has_adapter=bool(options.adapter),
        change_line=caption_runs.change_line if is_caption else None,
    )  # fmt: skip


def ask(
    options: EvaluateOptions, samples: Sequence[Sample], predictions: Path
) -> list[dict[str, Any]]:
    """The records of all samples, those that are not there yet asked of the model."""
    from llava_repro.answering import load_answerer

    answerer = load_answerer(options, choose_decoding(options))
    started = time.perf_counter()
    latest = answer_questions(
        SeveralPictures(answerer),
        jobs_of(samples, answerer.tokenizer),
        predictions,
        batch_size=options.batch_size,
        open_picture=picture_opener(samples, options),
    )
    print(f"answered in {time.perf_counter() - started:.0f} s")
    return [latest[sample.sample_id] for sample in samples]


def synthetic(options: EvaluateOptions) -> dict[str, Any]:
    """Whether data and model are a toy's, by their manifests."""
    folder = data_folder(options)
    asked = [] if options.answers else [*base_of(options).values(), options.adapter]
    return {
        "data": bool(folder and manifest_value(folder, "synthetic")),
        "model": any(manifest_value(part, "synthetic") for part in asked if part),
    }


if __name__ == "__main__":
    task = task_of(sys.argv[1:])
    guarded(
        lambda: main(
            parse_options(
                EvaluateOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=toy_defaults(task),
                prepare_toy=lambda: prepare_toy(task),
            )
        )
    )
