"""Captions and answers of a BLIP-2 for one picture, a folder, or a file of questions.

    python blip2_qlora/predict.py --toy                              # the ten baseline pictures
    python blip2_qlora/predict.py --image photo.jpg --question "What is on the table?"
    python blip2_qlora/predict.py --images folder/ --output captions.jsonl
    python blip2_qlora/predict.py --questions blip2_qlora/data/tiny.jsonl --toy

Prints one JSON line a question with `image_path, caption, question, answer`, the confidence, and
`synthetic` where model or pictures are; `--output` also writes them to a file. A picture that
cannot be read gives a line with `error`. A stopped run keeps its lines; the next starts anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blip2_qlora.asking import CaptionsAndAnswers, CaptionStart
from blip2_qlora.settings import TOY_MODEL, AskingOptions, BatchOptions, CaptionOptions
from shared.answering import Job, answer_batch
from shared.images import list_images, open_image
from shared.options import ToyOptions, UserError, guarded, manifest_value, parse_options
from shared.output_files import check_output, new_file
from shared.vqav2 import Question, QuestionSet, load_rows

BASELINE = Path(__file__).with_name("baseline_images") / "questions.jsonl"


@dataclass
class PredictOptions(AskingOptions, CaptionOptions, BatchOptions, ToyOptions):
    """What to look at"""

    image: str | None = field(default=None, metadata={"help": "one picture"})
    question: str | None = field(
        default=None, metadata={"help": "asked about --image or every picture of --images"}
    )
    images: str | None = field(default=None, metadata={"help": "folder of pictures"})
    questions: str | None = field(
        default=None, metadata={"help": "JSONL or CSV with image (relative to the file), question"}
    )
    caption_prompt: str = field(default="", metadata={"help": "start of every caption"})
    output: str | None = field(default=None, metadata={"help": "also write the lines to this file"})

    def __post_init__(self) -> None:
        CaptionOptions.__post_init__(self)
        BatchOptions.__post_init__(self)


def main(options: PredictOptions) -> None:
    rows = rows_to_answer(options)
    shown = (row.image for row in rows.questions)
    check_output(options.output, (options.questions, BASELINE), shown)
    if options.dry_run:
        print_plan(options, rows)
        return
    for problem in rows.problems:
        print(f"left out: {problem}", file=sys.stderr)

    from blip2_qlora.blip2 import load_blip2

    synthetic = manifest_value(options.model, "synthetic") or rows_are_drawn(options)
    lines: list[dict[str, Any]] = []
    try:
        model, processor = load_blip2(options, options.adapter)
        with new_file(options.output) as output:
            for line in predict(model, processor, rows.questions, options):
                if synthetic:  # nobody shall take these words for a real model's, or real pictures'
                    line["synthetic"] = True
                lines.append(line)
                print(json.dumps(line, ensure_ascii=False))
                if output is not None:  # as it is made: a stopped run keeps what it said
                    output.write([line])
    except KeyboardInterrupt:  # unlike an evaluation, this is not gone on with
        print(interrupted(len(lines), len(rows.questions), options.output), file=sys.stderr)
        sys.exit(130)
    if all("error" in line for line in lines):
        raise UserError(f"no row could be answered; the first, {first_of(lines)}")


def interrupted(done: int, n: int, output: str | None) -> str:
    kept = f", and {output} keeps them until then" if output and done else ""
    return f"stopped after {done} of {n} rows; the same command starts anew{kept}"


def first_of(lines: Sequence[dict[str, Any]]) -> str:
    """A row's error with the picture it is about, which not every error names."""
    picture, error = lines[0]["image_path"], lines[0]["error"]
    return error if picture in error else f"{picture}: {error}"


def print_plan(options: PredictOptions, rows: QuestionSet) -> None:
    """--dry_run: how many rows, one prompt, the memory; no weights are loaded."""
    from blip2_qlora.blip2 import choose_preset, read_config
    from blip2_qlora.planning import adapter_plan, inference_plan

    config = read_config(options.model, options.revision)
    print(f"rows:     {len(rows.questions)}, first: {rows.questions[0].image_name}")
    plan = inference_plan(
        config,
        choose_preset(config, options.preset, options.prompt, options.greedy),
        rows.questions[0].question,
        quantization=options.quantization,
        dtype=options.dtype,
        batch=min(options.batch_size, len(rows.questions)),
    )
    plan += adapter_plan(config, options.model, options.revision, options.adapter)
    print("\n".join(plan))


def rows_are_drawn(options: PredictOptions) -> bool:
    """Whether the ten drawn baseline pictures are looked at."""
    return not (options.image or options.images or options.questions)


def rows_to_answer(options: PredictOptions) -> QuestionSet:
    """The rows named by --image, --images, --questions, or the ten baseline pictures."""
    given = [name for name in ("image", "images", "questions") if getattr(options, name)]
    if len(given) > 1:
        raise UserError(f"give one of --image, --images, --questions, not {' and '.join(given)}")
    if options.question is not None and not options.question.strip():
        raise UserError("--question is empty; leave it out for a caption only")
    if options.questions or not given:
        if options.question:
            raise UserError("--question goes with --image or --images")
        return load_rows(Path(options.questions) if options.questions else BASELINE)
    if options.image and Path(options.image).is_dir():
        raise UserError(f"{options.image}: a folder; give it as --images")
    if options.images and Path(options.images).is_file():
        raise UserError(f"{options.images}: a file; give a picture as --image")
    files = [Path(options.image)] if options.image else list_images(Path(options.images))
    return QuestionSet(
        [
            Question(
                sample_id=str(i),
                image=file,
                image_name=str(file),
                image_id=str(file),
                question=options.question or "",
            )
            for i, file in enumerate(files)
        ]
    )


def predict(
    model: Any, processor: Any, questions: Sequence[Question], options: PredictOptions
) -> Iterator[dict[str, Any]]:
    """A caption for each picture, an answer for each row that asks one; a line a row, in order."""
    from blip2_qlora.blip2 import base_model, choose_preset

    preset = choose_preset(base_model(model).config, options.preset, options.prompt, options.greedy)
    speaker = CaptionsAndAnswers(
        model,
        processor,
        preset,
        greedy=options.greedy,
        caption_min_tokens=options.caption_min_tokens,
    )
    for start in range(0, len(questions), options.batch_size):
        rows = questions[start : start + options.batch_size]
        pictures = {row.image_name: row for row in rows}
        # one batch for both, so that each picture is opened and encoded once
        captioning = [
            Job(replace(row, sample_id=f"caption of {name}"), CaptionStart(options.caption_prompt))
            for name, row in pictures.items()
        ]
        asking = [
            Job(row, preset.prompt.format(row.question)) for row in rows if row.question.strip()
        ]
        records = {
            record["sample_id"]: record
            for record in answer_batch(
                speaker, captioning + asking, lambda row: open_image(row.image)
            )
        }
        for row in rows:
            seen = records[f"caption of {row.image_name}"]
            answer = records.get(row.sample_id, {})
            line = {
                "image_path": row.image_name,
                "caption": seen["answer"],
                "question": row.question or None,
                "answer": answer.get("answer"),
                "confidence": answer.get("confidence"),
            }
            error = seen["error"] or answer.get("error")
            yield line | ({"error": error} if error else {})


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                PredictOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={"model": str(TOY_MODEL), "caption_min_tokens": 1},
            )
        )
    )
