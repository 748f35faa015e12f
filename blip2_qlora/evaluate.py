"""VQA accuracy or caption metrics of a BLIP-2 on a split, zero-shot or with an adapter.

Answers the default sample (1,000 questions of val2014, drawn with seed 0; `--limit 0` for all), one
JSON line each as they are made, then scores them with the official metric. `--task caption` instead
captions the pictures of COCO's captions (`captioning.py`). The same command goes on where it was
stopped.

    python blip2_qlora/evaluate.py --toy
    python blip2_qlora/evaluate.py --toy --adapter outputs/blip2_qlora/RUN/adapter
    python blip2_qlora/evaluate.py                     # Salesforce/blip2-opt-2.7b on data/vqav2
    python blip2_qlora/evaluate.py --data my_rows.jsonl
    python blip2_qlora/evaluate.py --task caption --toy

Reads a VQAv2 data root (`--data_root`, `--split`) or own rows (`--data`). Writes to
`outputs/blip2_qlora/RUN/`: config.json, environment.json, predictions.jsonl, scored.jsonl,
metrics.json and the official results file, which says in its name when it is a sample's.
"""

from __future__ import annotations

import time
from pathlib import Path

from blip2_qlora.captioning import evaluate_captions
from blip2_qlora.evaluation_setup import (
    adapter_notes,
    choose_asking,
    jobs_of,
    load_questions,
    picture_opener,
    print_plan,
    run_config,
    run_name,
    trained_on_scored,
)
from blip2_qlora.evaluation_summary import data_notes, print_figures
from blip2_qlora.scoring import (
    blind_metrics,
    official_results,
    results_file,
    score_run,
    write_scores,
)
from blip2_qlora.settings import (
    RUNS,
    TOY_DATA,
    TOY_MODEL,
    EvaluateOptions,
    prepare_toy,
    synthetic,
)
from shared.answering import answer_questions
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
    if options.task == "caption":
        evaluate_captions(options)
        return

    # Data
    folder = Path(options.output_dir) if options.output_dir else RUNS / run_name(options)
    preset = choose_asking(options)
    if options.dry_run:
        print_plan(options, folder, preset)
        return
    sample, is_whole = load_questions(options)
    config = run_config(options, preset)
    if start_run(folder, config):
        print(f"continuing {portable_path(folder)}")
    learned_these = trained_on_scored(options, config)
    for note in data_notes(sample, learned_these):
        print(note)

    # Model
    from blip2_qlora.blip2 import Blip2Answerer, load_blip2

    model, processor = load_blip2(options, options.adapter)
    for note in adapter_notes(options, preset.prompt):
        print(note)

    # Answer
    started = time.perf_counter()
    latest = answer_questions(
        Blip2Answerer(model, processor, preset.decoding),
        jobs_of(sample, preset),
        folder / "predictions.jsonl",
        batch_size=options.batch_size,
        open_picture=picture_opener(sample, options),
    )
    print(f"answered in {time.perf_counter() - started:.0f} s")
    records = [latest[question.sample_id] for question in sample.questions]

    # Score
    scored, metrics = score_run(records, expected=len(sample.questions))
    if options.data is None:
        metrics["blind"] = blind_metrics(Path(options.data_root), sample.questions)
    metrics["trained_on_scored"] = learned_these
    metrics["synthetic"] = synthetic(options.data_root, options.data, options.model)
    metrics["vqa_row_share"] = manifest_value(options.model, "vqa_row_share")  # toy models
    metrics["data_problems"] = {"count": len(sample.problems), "first": sample.problems[:20]}

    # Save
    write_scores(folder, scored, metrics)
    if options.data is None:
        name = results_file(options.split, folder.name, None if is_whole else len(records))
        write_json(folder / name, official_results(records))
    print_summary(
        folder, records, metrics, print_figures,
        seed=options.seed, has_adapter=bool(options.adapter),
    )  # fmt: skip


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                EvaluateOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={
                    "model": str(TOY_MODEL),
                    "data_root": str(TOY_DATA),
                    "caption_min_tokens": 1,
                },
                prepare_toy=prepare_toy,
            )
        )
    )
