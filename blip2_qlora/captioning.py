"""`evaluate.py --task caption`: a BLIP-2 captions COCO's pictures, zero-shot or with an adapter.

Every picture of the sample is captioned as the paper does (5 beams; `--caption_prompt` is how each
caption starts), one JSON line each as they are made; then BLEU, METEOR, ROUGE-L and CIDEr by
`shared.caption_score`, with intervals. The same command goes on where it was stopped.

    python blip2_qlora/evaluate.py --task caption --toy
    python blip2_qlora/evaluate.py --task caption --split karpathy_test --limit 0

Reads the data root's captions_{split}.json (or annotations/captions_{split}.json; of Karpathy's
split dataset_coco.json) and pictures. Writes to `outputs/blip2_qlora/RUN/`: config.json,
environment.json, predictions.jsonl, scored.jsonl, metrics.json, and the results file that the
official server and pycocoevalcap read.
"""

from __future__ import annotations

import time
from pathlib import Path

from blip2_qlora.evaluation_setup import (
    adapter_notes,
    choose_asking,
    picture_opener,
    print_plan,
    run_config,
    run_name,
    trained_on_scored,
)
from blip2_qlora.scoring import write_scores
from blip2_qlora.settings import RUNS, EvaluateOptions, synthetic
from shared.answering import Job, answer_questions
from shared.caption_runs import change_line, print_figures, score_run
from shared.coco_captions import load_captions, official_results, results_file
from shared.options import manifest_value, portable_path, start_run, write_json
from shared.summaries import print_summary
from shared.vqav2 import QuestionSet

LEARNED_THESE = "WARNING: the adapter was trained on questions about these very pictures"


def load_pictures(options: EvaluateOptions) -> tuple[QuestionSet, bool]:
    """The sample to caption, and whether it is everything that the split holds."""
    found = load_captions(Path(options.data_root), options.split)
    sample = found.sample(options.limit, options.seed)
    return sample, len(sample.questions) == len(found.questions) and not found.problems


def evaluate_captions(options: EvaluateOptions) -> None:
    # Data
    folder = Path(options.output_dir) if options.output_dir else RUNS / run_name(options)
    asking = choose_asking(options)
    if options.dry_run:
        print_plan(options, folder, asking, load_pictures)
        return
    sample, is_whole = load_pictures(options)
    config = run_config(options, asking)
    if start_run(folder, config):
        print(f"continuing {portable_path(folder)}")
    learned_these = trained_on_scored(options, config)
    if sample.left_out:
        print(sample.left_out)
    if learned_these:
        print(LEARNED_THESE)

    # Model
    from blip2_qlora.blip2 import Blip2Answerer, load_blip2

    model, processor = load_blip2(options, options.adapter)
    for note in adapter_notes(options, manifest_value(options.adapter or "", "prompt")):
        print(note)  # it was trained to answer, so its prompt is another in any case

    # Caption
    started = time.perf_counter()
    latest = answer_questions(
        Blip2Answerer(model, processor, asking.decoding),
        [Job(picture, asking.prompt) for picture in sample.questions],
        folder / "predictions.jsonl",
        batch_size=options.batch_size,
        open_picture=picture_opener(sample, options),
    )
    print(f"captioned in {time.perf_counter() - started:.0f} s")
    records = [latest[picture.sample_id] for picture in sample.questions]

    # Score
    scored, metrics = score_run(records, expected=len(sample.questions))
    metrics["trained_on_scored"] = learned_these
    metrics["synthetic"] = synthetic(options.data_root, None, options.model)
    metrics["data_problems"] = {"count": len(sample.problems), "first": sample.problems[:20]}

    # Save
    write_scores(folder, scored, metrics)
    name = results_file(options.split, folder.name, None if is_whole else len(records))
    write_json(folder / name, official_results(records))
    print_summary(
        folder, records, metrics, print_figures,
        seed=options.seed, has_adapter=bool(options.adapter), change_line=change_line,
    )  # fmt: skip
