"""VQA accuracy of a BLIP-2 on a VQAv2 split, zero-shot or with an adapter.

Answers the default sample (1,000 questions of val2014, drawn with seed 0; `--limit 0` for all), one
JSON line each as they are made, then scores them with the official metric. The same command goes on
where it was stopped.

    python blip2_qlora/evaluate.py --toy
    python blip2_qlora/evaluate.py --toy --adapter outputs/blip2_qlora/RUN/adapter
    python blip2_qlora/evaluate.py                     # Salesforce/blip2-opt-2.7b on data/vqav2
    python blip2_qlora/evaluate.py --data my_rows.jsonl

Reads a VQAv2 data root (`--data_root`, `--split`) or own rows (`--data`). Writes to
`outputs/blip2_qlora/RUN/`: config.json, environment.json, predictions.jsonl, scored.jsonl,
metrics.json and the official results file.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from blip2_qlora.settings import (
    DEFAULT_DATA,
    RUNS,
    TOY_DATA,
    TOY_MODEL,
    AskingOptions,
    BatchOptions,
    data_folder,
    data_hash,
    prepare_toy,
)
from shared.loading import (
    adapter_fingerprint,
    fingerprint,
    model_folder,
    pick_device,
    pick_dtype,
)
from shared.options import (
    ToyOptions,
    UserError,
    guarded,
    manifest_value,
    parse_options,
    portable_path,
    resolved_config,
    start_run,
    write_json,
)
from shared.vqav2 import QuestionSet, load_rows, load_split

N_CASES = 5  # printed at the end


@dataclass
class EvaluateOptions(AskingOptions, BatchOptions, ToyOptions):
    """Questions and run"""

    data_root: str = field(
        default=str(DEFAULT_DATA), metadata={"help": "folder in the official VQAv2 layout"}
    )
    split: Literal["train2014", "val2014", "test2015"] = field(
        default="val2014", metadata={"help": "test2015 has no annotations: results file only"}
    )
    data: str | None = field(
        default=None,
        metadata={"help": "own rows instead: JSONL or CSV with image, question, answer"},
    )
    limit: int = field(default=1000, metadata={"help": "questions in the sample, 0 = all"})
    seed: int = field(default=0, metadata={"help": "of the sample and of shuffled pictures"})
    pictures: Literal["own", "shuffled"] = field(
        default="own",
        metadata={"help": "shuffled: a control that shows each question another's picture"},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "run folder (default: outputs/blip2_qlora/NAME OF THE RUN)"}
    )


def main(options: EvaluateOptions) -> None:
    sample = load_questions(options)
    folder = Path(options.output_dir) if options.output_dir else RUNS / run_name(options)
    preset = choose_asking(options)
    if options.dry_run:
        print_plan(options, sample, folder, preset)
        return

    base_folder = model_folder(options.model, options.revision)
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    config = resolved_config(
        options,
        script="evaluate",
        asked={"prompt": preset.prompt, **asdict(preset.decoding)},
        compute_dtype=str(dtype).removeprefix("torch."),
        model_fingerprint=fingerprint(base_folder),
        adapter_fingerprint=adapter_fingerprint(options.adapter),
        data_hash=data_hash(options.data_root, options.data),
    )
    if start_run(folder, config):
        print(f"continuing {portable_path(folder)}")

    # Model
    from blip2_qlora.blip2 import Blip2Answerer, load_blip2

    model, processor = load_blip2(options, options.adapter)

    for note in adapter_notes(options, preset.prompt):
        print(note)

    # Answer
    records = answer(
        Blip2Answerer(model, processor, preset.decoding), preset, sample, folder, options
    )

    # Score
    metrics = score(folder, records, sample, options)
    report(folder, records, metrics, options)


def load_questions(options: EvaluateOptions) -> QuestionSet:
    if options.limit < 0:
        raise UserError(f"--limit {options.limit}: a number of questions, or 0 for all")
    rows = (
        load_rows(Path(options.data))
        if options.data
        else load_split(Path(options.data_root), options.split)
    )
    unasked = [q for q in rows.questions if not q.question.strip()]
    if unasked:
        raise UserError(
            f"{options.data}: {len(unasked)} rows have no question; predict.py captions"
        )
    return rows.sample(options.limit, options.seed)


def run_name(options: EvaluateOptions) -> str:
    """What ran, in the folder's name: data, sample, model, adapter, and what is not the default."""
    adapter = Path(options.adapter).resolve() if options.adapter else None
    parts = [
        Path(options.data).stem if options.data else options.split,
        str(options.limit or "all"),
        f"seed{options.seed}" if options.limit else "",
        Path(options.model).name,
        f"{adapter.parent.name}_{adapter.name}" if adapter else "zero-shot",
        "" if options.quantization == "none" else options.quantization,
        "" if options.preset == "paper" else options.preset,
        "greedy" if options.greedy else "",
        "" if options.pictures == "own" else "shuffled",
    ]
    return "_".join(part for part in parts if part)


def choose_asking(options: EvaluateOptions) -> Any:
    from blip2_qlora.blip2 import choose_preset, read_config

    config = read_config(options.model, options.revision)
    return choose_preset(config, options.preset, options.prompt, options.greedy)


def adapter_notes(options: EvaluateOptions, prompt: str) -> list[str]:
    """Where this evaluation asks the adapter otherwise than it was trained."""
    if not options.adapter:
        return []
    trained = {key: manifest_value(options.adapter, key) for key in ("quantization", "prompt")}
    here = {"quantization": options.quantization, "prompt": prompt}
    return [
        f"note: the adapter was trained with {key} {trained[key]!r}, it is evaluated with {value!r}"
        for key, value in here.items()
        if trained[key] not in (None, value)
    ]


def print_plan(options: EvaluateOptions, sample: QuestionSet, folder: Path, preset: Any) -> None:
    """--dry_run: the sample, one prompt, the memory; no weights are loaded."""
    from blip2_qlora.blip2 import language_model_kind, read_config
    from blip2_qlora.planning import inference_plan

    config = read_config(options.model, options.revision)
    print(f"run:      {portable_path(folder)}")
    print(f"model:    {options.model} ({language_model_kind(config)})")
    print(f"sample:   {len(sample.questions)} questions, {len(sample.problems)} bad rows left out")
    plan = inference_plan(
        config,
        preset,
        sample.questions[0].question,
        quantization=options.quantization,
        dtype=options.dtype,
        batch=options.batch_size,
    )
    print("\n".join(plan))


def answer(
    answerer: Any, preset: Any, sample: QuestionSet, folder: Path, options: EvaluateOptions
) -> list[dict[str, Any]]:
    """Records of the whole sample, in its order."""
    from shared.answering import Job, answer_questions, shuffle_pictures
    from shared.images import open_image

    started = time.perf_counter()
    shown = (
        shuffle_pictures(sample.questions, options.seed) if options.pictures == "shuffled" else {}
    )
    records = answer_questions(
        answerer,
        [Job(question, preset.prompt.format(question.question)) for question in sample.questions],
        folder / "predictions.jsonl",
        batch_size=options.batch_size,
        open_picture=lambda question: open_image(shown.get(question.sample_id, question).image),
    )
    print(f"answered in {time.perf_counter() - started:.0f} s")
    return [records[question.sample_id] for question in sample.questions]


def score(
    folder: Path, records: list[dict[str, Any]], sample: QuestionSet, options: EvaluateOptions
) -> dict[str, Any]:
    from blip2_qlora.scoring import blind_metrics, official_results, score_run, write_scores

    scored, metrics = score_run(records, expected=len(sample.questions))
    if options.data is None:
        metrics["blind"] = blind_metrics(Path(options.data_root), sample.questions)
        name = f"v2_OpenEnded_mscoco_{options.split}_{folder.name}_results.json"
        write_json(folder / name, official_results(records))
    metrics["synthetic"] = {
        "data": bool(manifest_value(data_folder(options.data_root, options.data), "synthetic")),
        "model": bool(manifest_value(options.model, "synthetic")),
    }
    metrics["data_problems"] = {"count": len(sample.problems), "first": sample.problems[:20]}
    write_scores(folder, scored, metrics)
    return metrics


def report(
    folder: Path, records: list[dict[str, Any]], metrics: dict[str, Any], options: EvaluateOptions
) -> None:
    """What the terminal shows: five seeded cases, the figures, the change against zero-shot."""
    for record in random.Random(options.seed).sample(records, min(N_CASES, len(records))):
        said = record["answer"] if record["status"] == "ok" else f"error: {record['error']}"
        references = ", ".join(dict.fromkeys(record["references"])) or "no reference"
        print(f"  {record['image']}  {record['question']}  ->  {said!r}   ({references})")
    if any(metrics["synthetic"].values()):
        print("SYNTHETIC toy data or model: these figures say nothing about the real one")
    print(f"{metrics['metric']}: {percent(metrics['accuracy'])}")
    for name, value in (metrics["protocols"] or {}).items():
        print(f"  {name}: {percent(value)}   [{value['published_under_it']}]")
    print(f"  exact match: {percent(metrics['exact_match'])}")
    for name, value in metrics["per_answer_type"].items():
        print(f"  {name}: {percent(value)}")
    if metrics.get("blind", {}).get("value") is not None:
        print(f"  blind (commonest train answer per question type): {percent(metrics['blind'])}")
    print("  " + ", ".join(f"{value} {name}" for name, value in metrics["counts"].items()))
    if options.adapter:
        print_change(folder)
    print(f"records and metrics: {portable_path(folder)}")


def percent(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return f"none ({estimate['reason']})"
    if estimate["low"] is None:
        return f"{estimate['value']:.2f} % (n {estimate['n']})"
    interval = f"[{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.2f} % {interval} (n {estimate['n']})"


def print_change(folder: Path) -> None:
    """The paired difference to the zero-shot run of the same sample, when there is one."""
    from blip2_qlora.runs import compare_runs, find_zero_shot, read_run, summary_line

    zero_shot = find_zero_shot(folder)
    if zero_shot is None:
        print("no zero-shot run of the same sample beside it: make one without --adapter")
        return
    change = compare_runs(read_run(zero_shot), read_run(folder))
    print(f"change against {portable_path(zero_shot)}: {summary_line(change)}")


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                EvaluateOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={"model": str(TOY_MODEL), "data_root": str(TOY_DATA)},
                prepare_toy=prepare_toy,
            )
        )
    )
