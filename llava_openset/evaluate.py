"""How well a model says what an object is when its class is known, and admits when it is not.

Asks about every sample of a saved split by one or several protocols (`protocols.py` says what each
asks and how it scores), one JSON line each as they are made, then scores the test part; thresholds
come from the validation part. The same command goes on where it was stopped, and may add protocols
to a run.

    python llava_openset/evaluate.py --toy
    python llava_openset/evaluate.py --toy --protocol likelihood --pictures shuffled   # a control
    python llava_openset/evaluate.py --quantization nf4        # llava-1.5-7b-hf, a 16 GB card
    python llava_openset/evaluate.py --model Salesforce/blip2-opt-2.7b
    python llava_openset/evaluate.py --private_images private_images --protocol course
    python llava_openset/evaluate.py --score_only --threshold_criterion known_accept_95 \
        --output_dir outputs/llava_openset/RUN

Reads a split of make_known_from_coco.py and own pictures. Writes to `outputs/llava_openset/RUN/`:
config.json, environment.json, predictions_PROTOCOL.jsonl, scored.jsonl, metrics.json,
per_class.csv, of `course` results_known.jsonl and results_private.jsonl as that experiment did, and
the page: report.html, charts/*.png, figures.csv, paired_tests.csv.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_openset.evaluation_setup import (
    check_same_split,
    form_of,
    load_samples,
    options_of_run,
    picture_opener,
    print_plan,
    queries_there,
    records_file,
    run_config,
    run_folder,
)
from llava_openset.evaluation_summary import (
    print_summary,
    write_course_results,
    write_per_class,
    write_rows,
)
from llava_openset.protocols import CHOICE_PROTOCOLS, choices_of, job_of, queries
from llava_openset.samples import Sample, Split
from llava_openset.scoring import INTERVALS, Row, score_protocol
from llava_openset.settings import EvaluateOptions, prepare_toy, toy_defaults
from shared.answering import answer_questions, read_records, score_choices
from shared.options import (
    guarded,
    parse_options,
    portable_path,
    read_json,
    start_run,
    write_json,
)


def main(options: EvaluateOptions) -> None:
    # Data
    if options.score_only:
        options = options_of_run(options)
    split, samples = load_samples(options)
    folder = run_folder(options)
    if options.dry_run:
        print_plan(options, split, samples, folder)
        return

    # Answers
    if options.score_only:
        check_same_split(folder, split)
    else:
        if start_run(folder, run_config(options, split)):
            print(f"continuing {portable_path(folder)}")
        ask(options, split, samples, folder)

    # Score
    rows, metrics = score(options, split, samples, folder)

    # Save
    write_rows(folder / "scored.jsonl", rows)
    write_json(folder / "metrics.json", metrics)
    write_per_class(folder / "per_class.csv", metrics)
    write_course_results(folder, rows)
    print_summary(folder, rows, metrics, seed=options.seed)
    if options.report != "none":
        from llava_openset.report_page import write_report

        print(f"report: {portable_path(write_report(folder, options.report))}")


def ask(options: EvaluateOptions, split: Split, samples: Sequence[Sample], folder: Path) -> None:
    """The records of every sample by each protocol; those that are not there yet are asked."""
    form = form_of(options)
    jobs_of = {
        protocol: [
            job_of(query, split.classes.known, options.question, form)
            for query in queries(protocol, samples, options.freetext_variants)
        ]
        for protocol in options.protocol
    }
    from shared.vision_language import load_vision_language

    model = load_vision_language(
        options.model, options.quantization, options.device, options.dtype, options.adapter,
        options.revision, options.image_handling, options.max_new_tokens,
    )  # fmt: skip
    for note in model.notes:
        print(f"note: {note}")
    for protocol, jobs in jobs_of.items():
        started = time.perf_counter()
        print(f"{protocol}: {len(jobs)} prompts")
        common: dict[str, Any] = {
            "batch_size": options.batch_size,
            "open_picture": picture_opener(jobs, options),
        }
        path = records_file(folder, protocol)
        if protocol in CHOICE_PROTOCOLS:  # --length_normalisation only enters the scoring
            score_choices(
                model, jobs, path,
                choices=choices_of, choice_batch_size=options.batch_size, **common,
            )  # fmt: skip
        else:
            answer_questions(model, jobs, path, **common)
        print(f"  in {time.perf_counter() - started:.0f} s")


def score(
    options: EvaluateOptions, split: Split, samples: Sequence[Sample], folder: Path
) -> tuple[list[Row], dict[str, Any]]:
    """`scored.jsonl` and `metrics.json` of all protocols that the run has every record of."""
    rows: list[Row] = []
    protocols: dict[str, Any] = {}
    whole, notes = queries_there(options, samples, folder)
    for key, own in whole.items():
        records = read_records(records_file(folder, own[0].protocol))
        scored, protocols[key] = score_protocol(
            own, records, split.classes.known,
            criterion=options.threshold_criterion, normalisation=options.length_normalisation,
        )  # fmt: skip
        rows += scored
    return rows, {
        "version": 1,
        "script": "evaluate",
        "part": "test",
        "pictures": options.pictures,
        "synthetic": read_json(folder / "config.json")["synthetic"],
        "caveats": list(split.caveats),
        "notes": notes,
        "split": {
            "folder": portable_path(split.folder),
            "data_hash": split.data_hash,
            "seed": split.seed,
            "unit": split.rules.get("unit"),
            "known": list(split.classes.known),
            "unknown": list(split.classes.unknown),
            "n_private": len({row["sample_id"] for row in rows if row["private"]}),
        },
        "model": {
            "model": portable_path(options.model),
            "adapter": None if options.adapter is None else portable_path(options.adapter),
            "quantization": options.quantization,
        },
        "scoring": {
            "threshold_criterion": options.threshold_criterion,
            "length_normalisation": options.length_normalisation,
            "name_rule": "max",
            "intervals": INTERVALS,
        },
        "protocols": protocols,
    }  # fmt: skip


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                EvaluateOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=toy_defaults(),
                prepare_toy=prepare_toy,
            )
        )
    )
