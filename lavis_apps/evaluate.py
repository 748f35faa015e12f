"""What a BLIP, CLIP or captioner reaches on a split: captions, VQA, retrieval, classes, boxes.

Six tasks, one way: a record of every sample as it is answered, then scores with intervals over
pictures. Retrieval ranks all captions and pictures by ITC, the first --k_test again by ITM + ITC.
Says what the weights were trained on, and loudly when that is what scores them (BLIP's VQA weights
saw val2014). The same command goes on where it was stopped, and scores a finished run again.

    python lavis_apps/evaluate.py --task caption --toy
    python lavis_apps/evaluate.py --task retrieval --split karpathy_test --limit 0
    python lavis_apps/evaluate.py --task vqa --inference rank --candidates ANSWERS.txt
    python lavis_apps/evaluate.py --task classification --data_root FOLDER \
        --model openai/clip-vit-base-patch32
    python lavis_apps/evaluate.py --task matching --toy           # AUROC of true and false captions
    python lavis_apps/evaluate.py --task localization --toy       # pointing game on COCO's boxes

Reads COCO's captions and VQAv2 (`--data_root`, `--split`), SPLIT/CLASS/PICTURE folders, COCO's
instances. Writes to `outputs/lavis_apps/RUN/`: config.json, environment.json, predictions.jsonl,
scored.jsonl, metrics.json, report.html; match_scores.jsonl of retrieval, the official results file
of caption and vqa.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from lavis_apps.evaluation import answer_samples
from lavis_apps.evaluation_settings import EvaluateOptions, prepare_toy, task_of, toy_defaults
from lavis_apps.evaluation_setup import (
    chosen_samples,
    open_model,
    print_plan,
    run_config,
    run_folder,
    synthetic,
    what_weights_saw,
)
from lavis_apps.evaluation_summary import change_line, print_figures
from lavis_apps.scoring import score_task
from shared import coco_captions
from shared.options import (
    UserError,
    guarded,
    parse_options,
    portable_path,
    start_run,
    write_json,
)
from shared.summaries import print_summary


def main(options: EvaluateOptions) -> None:
    # Data
    folder = run_folder(options)
    if options.dry_run:
        print_plan(options, folder)
        return
    data, whole = chosen_samples(options)
    config = run_config(options)
    saw = what_weights_saw(options, config)
    if start_run(folder, config):
        print(f"continuing {portable_path(folder)}")
    if data.problems:
        print(f"note: {len(data.problems)} rows of the data not used; first: {data.problems[0]}")
    if saw["warning"]:
        print(f"WARNING: {saw['warning']}")

    # Answer
    started = time.perf_counter()
    records = answer_samples(
        options.task, lambda: open_model(options), data.samples, options, folder,
        classes=data.classes, seed=options.seed,
    )  # fmt: skip
    print(f"{len(records)} records in {time.perf_counter() - started:.0f} s")

    # Score
    rows, metrics = score_task(
        options.task, records, expected=len(records), classes=data.classes, seed=options.seed
    )
    metrics["weights_saw"] = saw
    metrics["trained_on_scored"] = saw["saw"] == "questions"
    metrics["synthetic"] = synthetic(options)
    metrics["data_problems"] = {"count": len(data.problems), "first": data.problems[:20]}

    # Save
    write_lines(folder / "scored.jsonl", rows)
    write_json(folder / "metrics.json", metrics)
    write_official(folder, options, records, whole)
    from lavis_apps.evaluation_report import make_report
    from shared.report import write_report
    from shared.runs import read_run

    write_report(folder / "report.html", make_report(read_run(folder)))
    print_summary(
        folder, records, metrics, print_figures,
        seed=options.seed, has_adapter=bool(options.adapter), change_line=change_line,
    )  # fmt: skip


def write_official(
    folder: Path, options: EvaluateOptions, records: list[dict[str, Any]], whole: bool
) -> None:
    """The file that the official server reads, of captions and VQA; a sample's name says its
    size."""
    split, sample = str(options.split), None if whole else len(records)
    if options.task == "caption":
        name = coco_captions.results_file(split, folder.name, sample)
        write_json(folder / name, coco_captions.official_results(records))
    if options.task == "vqa":
        part = split if sample is None else f"{split}_sample{sample}"
        answers = [{"question_id": int(r["sample_id"]), "answer": r["answer"] or ""}
                   for r in records]  # fmt: skip
        name = f"v2_OpenEnded_mscoco_{part}_{folder.name}_results.json"
        write_json(folder / name, answers)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


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
