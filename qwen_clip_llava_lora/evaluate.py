"""Answers and likelihoods of a model on held-out rows, base or tuned by the same script.

Answers a sample greedily with the rows' own prompts, one JSON line each as they are made; computes
the log-likelihood of every reference answer, which shows learning where exact match stays 0; scores
both. The same command goes on where it was stopped. `--index` shows one row whole.

    python qwen_clip_llava_lora/evaluate.py --toy
    python qwen_clip_llava_lora/evaluate.py --model MERGED --data data/my_set/test.json
    python qwen_clip_llava_lora/evaluate.py --model MERGED --adapter RUN/adapter --data ...
    python qwen_clip_llava_lora/evaluate.py --model MERGED --data test.json --index 17

Reads a model folder, an adapter folder, rows in any format of data_formats.py. Writes to
`outputs/qwen_clip_llava_lora/RUN/`: config.json, environment.json, predictions.jsonl,
likelihoods.jsonl, scored.jsonl, metrics.json, report.html.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.evaluation_settings import TOY_DEFAULTS, EvaluateOptions, prepare_toy
from qwen_clip_llava_lora.evaluation_setup import (
    Samples,
    as_trained,
    jobs_of,
    load_model,
    load_samples,
    picture_opener,
    print_plan,
    run_config,
    run_folder,
    scorable,
    synthetic,
    trained_on_scored,
)
from qwen_clip_llava_lora.evaluation_summary import print_figures
from qwen_clip_llava_lora.scoring import metrics_of, score_records
from shared.answering import answer_questions, score_choices
from shared.options import (
    UserError,
    guarded,
    parse_options,
    portable_path,
    start_run,
    write_json,
)
from shared.report import write_report
from shared.summaries import print_summary

Records = dict[str, dict[str, Any]]


def main(options: EvaluateOptions) -> None:
    # Data
    options = as_trained(options)
    found = load_samples(options)
    for problem in found.problems[:1]:
        print(f"note: {len(found.problems)} bad rows of the data not used; first: {problem}")
    if options.index is not None:
        from qwen_clip_llava_lora.one_sample import show_samples

        show_samples(options, found)
        return
    folder = run_folder(options, found)
    if options.dry_run:
        print_plan(options, found, folder)
        return
    config = run_config(options, found)
    if start_run(folder, config):
        print(f"continuing {portable_path(folder)}")

    # Answers and likelihoods
    answers, likelihoods, by_likelihood = ask(options, found, folder)
    records = [answers[sample.sample_id] for sample in found.samples]

    # Score
    rows = score_records(records, found.task, found.classes, likelihoods, by_likelihood)
    metrics = metrics_of(
        rows, records, found.task, found.classes, expected=len(found.samples), seed=options.seed
    )
    metrics["trained_on_scored"] = trained_on_scored(options, config)
    metrics["synthetic"] = synthetic(options, found)
    metrics["data_problems"] = {"count": len(found.problems), "first": found.problems[:20]}
    metrics["references_in_another_language"] = sum(s.n_left_out for s in found.samples)

    # Save
    write_lines(folder / "scored.jsonl", rows)
    write_json(folder / "metrics.json", metrics)
    from qwen_clip_llava_lora.evaluation_report import make_report
    from shared.runs import read_run

    write_report(folder / "report.html", make_report(read_run(folder)))
    print_summary(
        folder, records, metrics, print_figures,
        seed=options.seed, has_adapter=bool(options.adapter),
    )  # fmt: skip


def ask(
    options: EvaluateOptions, found: Samples, folder: Path
) -> tuple[Records, Records | None, Records | None]:
    """The records of answers, of the references' likelihoods, of the class names'."""
    model: Any = OnDemand(lambda: load_model(options, options.adapter))
    jobs = jobs_of(found.samples)
    how: dict[str, Any] = {
        "batch_size": options.batch_size,
        "open_picture": picture_opener(found.samples, options),
    }
    started = time.perf_counter()
    answers = answer_questions(model, jobs, folder / "predictions.jsonl", **how)
    likelihoods = by_likelihood = None
    if options.likelihood:
        likelihoods = score_choices(
            model, scorable(jobs), folder / "likelihoods.jsonl",
            choices=lambda job: [job.details["target"].strip()], **how,
        )  # fmt: skip
    if options.label_scoring == "likelihood" and found.task == "label":
        by_likelihood = score_choices(
            model, jobs, folder / "class_likelihoods.jsonl",
            choices=lambda job: found.classes, **how,
        )  # fmt: skip
    print(f"answered and scored in {time.perf_counter() - started:.0f} s")
    return answers, likelihoods, by_likelihood


class OnDemand:
    """The model, loaded when it is first asked: a finished run is scored again without it."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load

    @cached_property
    def model(self) -> Any:
        return self.load()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                EvaluateOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=TOY_DEFAULTS,
                prepare_toy=prepare_toy,
            )
        )
    )
