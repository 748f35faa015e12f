"""Answers of a LLaVA about one picture, several together, or each picture of a folder.

One question is answered as it is made, word by word; a folder in batches, one JSON line a picture.

    python llava_repro/predict.py --toy                         # questions held out of training
    python llava_repro/predict.py --image photo.jpg --question "What is on the table?"
    python llava_repro/predict.py --image before.jpg after.jpg --question "What has changed?"
    python llava_repro/predict.py --images folder/ --question "Describe it." --output answers.jsonl
    python llava_repro/predict.py --questions rows.jsonl      # LLaVA's format, first question each

Without a picture the question is asked as text alone. `--output` gets one JSON line an answer:
`image_path, question, answer, confidence, finish_reason, n_tokens`, and `synthetic` where the model
is a toy. A picture or a row that cannot be read is a line with `error`, and the rest goes on; the
exit status is then 1. Standard output has answers alone, notes go to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_repro.asking import (
    TOY_DEFAULTS,
    AskingOptions,
    DecodingOptions,
    is_synthetic,
)
from llava_repro.predict_rows import Row, first_questions
from llava_repro.settings import TOY_DATA, prepare_toy
from shared.answering import Answer, is_out_of_memory
from shared.images import ImageError, list_images, open_image
from shared.options import ToyOptions, UserError, guarded, parse_options
from shared.output_files import check_output, new_file

if TYPE_CHECKING:
    from llava_repro.answering import LlavaAnswerer

DESCRIBE = "Describe the picture."
TOY_QUESTIONS = TOY_DATA / "held_out.jsonl"  # asked by --toy where nothing else is given
N_TOY_QUESTIONS = 8  # of them, without --limit


@dataclass
class PredictOptions(AskingOptions, DecodingOptions, ToyOptions):
    """What to look at"""

    image: list[str] = field(
        default_factory=list, metadata={"help": "a picture, or several for one question"}
    )
    images: str | None = field(
        default=None, metadata={"help": "folder: each picture is asked about (if no --image)"}
    )
    question: str | None = field(
        default=None, metadata={"help": f"default: {DESCRIBE} Without a picture: text alone"}
    )
    questions: str | None = field(
        default=None,
        metadata={"help": "LLaVA conversations: the first question of each (if nothing else)"},
    )
    limit: int | None = field(
        default=None,
        metadata={
            "help": "of --images or --questions, 0 = all (default: all; of the toy's own "
            f"questions {N_TOY_QUESTIONS})"
        },
    )
    batch_size: int = field(default=8, metadata={"help": "pictures in one forward pass"})
    output: str | None = field(default=None, metadata={"help": "JSON lines, one an answer"})

    def __post_init__(self) -> None:
        for name, bound in (("limit", 0), ("batch_size", 1)):
            if (getattr(self, name) or 0) < bound:
                raise UserError(f"--{name} {getattr(self, name)}: at least {bound}")


def main(options: PredictOptions) -> None:
    rows = rows_to_ask(options)
    shown = (picture for row in rows for picture in row.pictures)
    check_output(options.output, (options.questions, TOY_QUESTIONS), shown)
    decoding = options.decoding()
    if options.dry_run:
        from llava_repro.inference_plan import inference_plan

        good = [row for row in rows if not row.problem]
        names = [str(picture) for picture in good[0].pictures]
        bad = f", {len(rows) - len(good)} bad ones" if len(good) < len(rows) else ""
        print(f"rows:     {len(rows)}{bad}, first: {', '.join(names) or 'text alone'}")
        batch = min(options.batch_size, len(rows))
        print("\n".join(inference_plan(options, decoding, good[0].text(), batch)))
        return

    # Model
    from transformers import set_seed

    from llava_repro.answering import load_answerer

    with new_file(options.output) as output:
        with redirect_stdout(sys.stderr):  # its notes are no answers
            answerer = load_answerer(options, decoding)
        set_seed(options.seed)

        # Answer
        synthetic = is_synthetic(options)
        found = stream_one(answerer, rows[0]) if len(rows) == 1 else in_batches(
            answerer, rows, options.batch_size
        )  # fmt: skip
        errors, n = [], 0
        try:
            for line in found:
                n += 1
                if synthetic:  # nobody shall take these words for a real model's
                    line["synthetic"] = True
                errors += [line["error"]] if "error" in line else []
                if len(rows) > 1:
                    print(json.dumps(line, ensure_ascii=False), flush=True)
                if output is not None:  # as it is made: a stopped run keeps what it said
                    output.write([line])
        except KeyboardInterrupt:
            kept = f", and {options.output} keeps them" if options.output else ""
            print(f"stopped after {n} of {len(rows)} answers{kept}", file=sys.stderr)
            sys.exit(130)
    if len(errors) == len(rows):
        raise UserError(f"nothing could be answered; the first: {errors[0]}")
    if synthetic and len(rows) == 1:
        print("(SYNTHETIC: a toy model, which knows coloured shapes alone)", file=sys.stderr)
    if errors:
        print(
            f"{len(errors)} of {len(rows)} could not be answered; the first: {errors[0]}",
            file=sys.stderr,
        )
        sys.exit(1)


def rows_to_ask(options: PredictOptions) -> list[Row]:
    """The questions of --image, --images, --question alone or --questions, else the toy's own.

    Raises UserError.
    """
    question = options.question
    if question is not None and not question.strip():
        raise UserError("--question is empty")
    if options.image:
        for name in options.image:
            if Path(name).is_dir():
                raise UserError(f"{name}: a folder; give it as --images")
        return [Row(tuple(options.image), question or DESCRIBE)]
    if options.images:
        if Path(options.images).is_file():
            raise UserError(f"{options.images}: a file; give a picture as --image")
        files = list_images(Path(options.images))
        return [Row((str(f),), question or DESCRIBE) for f in files[: options.limit or None]]
    if question is not None:
        return [Row((), question)]
    if options.questions is not None:
        return first_questions(Path(options.questions), options.limit or 0)
    if options.toy:
        return first_questions(
            TOY_QUESTIONS, N_TOY_QUESTIONS if options.limit is None else options.limit
        )
    raise UserError(
        "what to look at? Give --image FILE, --images FOLDER, --questions FILE, or --toy"
    )


def stream_one(answerer: LlavaAnswerer, row: Row) -> Iterator[dict[str, Any]]:
    """One answer, printed as it is made; then its line."""
    from llava_repro.streaming import stream

    try:
        features = answerer.encode_images([open_image(name) for name in row.pictures])
        pieces = stream(answerer, features, [("human", row.text(answerer.tokenizer))])
        try:
            while True:
                print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print("" if end.value.answer else "(empty answer)")
            yield row.line(end.value)
    except UserError as error:
        yield row.line(error=str(error))


def in_batches(
    answerer: LlavaAnswerer, rows: Sequence[Row], batch_size: int
) -> Iterator[dict[str, Any]]:
    """A line a row, in order; rows that cannot be asked are lines with their error."""
    for start in range(0, len(rows), batch_size):
        lines: list[dict[str, Any]] = []
        pictures, index, prompts, asked = [], [], [], []
        for row in rows[start : start + batch_size]:
            text = row.text(answerer.tokenizer)
            problem = row.problem or answerer.prompt_problem(text)
            own = []
            try:
                own = [open_image(name) for name in row.pictures]
            except ImageError as error:
                problem = str(error)
            lines.append(row.line(error=problem))
            if not problem:
                asked.append(len(lines) - 1)
                index.append(range(len(pictures), len(pictures) + len(own)))
                prompts.append(text)
                pictures += own
        for i, answer in zip(asked, answer_all(answerer, pictures, index, prompts), strict=True):
            lines[i] = rows[start + i].line(answer)
        yield from lines


def answer_all(
    answerer: LlavaAnswerer, pictures: list[Any], index: list[range], prompts: list[str]
) -> list[Answer]:
    if not prompts:
        return []
    try:
        return answerer.answer(answerer.encode_images(pictures), index, prompts)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the GPU's memory is full with {len(prompts)} pictures at once: give a smaller "
            "--batch_size, or --quantization nf4"
        ) from error


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                PredictOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=TOY_DEFAULTS,
                prepare_toy=prepare_toy,
            )
        )
    )
