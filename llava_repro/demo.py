"""The page: chat with a LLaVA about pictures, several turns, answers as they are made.

One process serves all visitors; one is answered at a time and the others wait in a queue, each with
a conversation of his own.

    python llava_repro/demo.py --toy
    python llava_repro/demo.py --model llava-hf/llava-1.5-7b-hf --quantization nf4
    python llava_repro/demo.py --adapter outputs/llava_repro/RUN/adapter --language zh --share
    python llava_repro/demo.py --toy --dry_run

Reads a model, an adapter of train.py, and rows of a conversation file as examples. Writes what
visitors flag to outputs/llava_repro/flags.jsonl, its pictures beside it; other uploads lie in the
system's temporary folder for at most an hour or two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_repro.asking import TOY_DEFAULTS, AskingOptions, DecodingOptions, is_synthetic
from llava_repro.demo_pages import Page, draw_page
from llava_repro.demo_texts import TITLE
from llava_repro.settings import RUNS, TOY_DATA, prepare_toy
from shared.conversation_files import Picture
from shared.conversations import (
    IMAGE_TAG,
    is_interleaved,
    open_conversations,
    row_images,
    row_turns,
)
from shared.gradio_parts import (
    LANGUAGES,
    Language,
    LaunchOptions,
    bilingual_page,
    check_address,
    serve,
)
from shared.options import ToyOptions, guarded, parse_options, portable_path

CSS_FILE = Path(__file__).with_name("demo.css")
N_EXAMPLES = 6


@dataclass
class DemoOptions(AskingOptions, DecodingOptions, LaunchOptions, ToyOptions):
    """What the page starts with"""

    # LLaVA's own page starts with these (llava/serve/gradio_web_server.py)
    temperature: float = field(default=0.2, metadata={"help": "0 = greedy, above 0 = sampling"})
    top_p: float = field(default=0.7, metadata={"help": "share of the probability sampled from"})
    max_new_tokens: int = field(default=512, metadata={"help": "longest answer in tokens"})
    examples: str | None = field(
        default=None, metadata={"help": "LLaVA conversations whose first questions are offered"}
    )
    flags_file: str = field(
        default=str(RUNS / "flags.jsonl"), metadata={"help": "what visitors flag"}
    )


def main(options: DemoOptions) -> None:
    decoding = options.decoding()
    if options.dry_run:
        from llava_repro.inference_plan import inference_plan

        print(f"page:     http://{options.host}:{options.port}/ in {options.language}")
        print("\n".join(inference_plan(options, decoding)))
        return
    examples = {language: example_rows(options.examples, language) for language in LANGUAGES}
    check_address(options)

    # Model
    from transformers import set_seed

    from llava_repro.answering import load_answerer

    answerer = load_answerer(options, decoding)
    set_seed(options.seed)
    common = Page(
        answerer=answerer,
        model=portable_path(options.model),
        adapter=portable_path(options.adapter) if options.adapter else None,
        synthetic=is_synthetic(options),
        examples=examples,
        flags_file=Path(options.flags_file),
        decoding=decoding,
    )

    # Page
    page = bilingual_page(
        TITLE, lambda page, language: draw_page(page, language, common), options.language
    )
    serve(page, options, css=CSS_FILE.read_text(encoding="utf-8"))


def example_rows(file: str | None, language: Language) -> list[list[dict[str, Any]]]:
    """First questions of the file's first rows with different pictures; of rows that say their
    `language`, those of the page's."""
    if file is None:
        return []
    found: dict[tuple[Picture, ...], str] = {}
    for row in open_conversations(file):
        pictures = tuple(row_images(row, Path(file).parent))
        wanted = row.get("language", language) == language
        question = next(text for role, text in row_turns(row) if role == "human") or ""
        # the page takes files, and shows them before the question
        fits = all(isinstance(p, Path) for p in pictures) and not is_interleaved(question)
        if pictures and wanted and fits and pictures not in found:
            found[pictures] = question.replace(IMAGE_TAG, "").strip()
        if len(found) == N_EXAMPLES:
            break
    return [[{"text": text, "files": [str(p) for p in files]}] for files, text in found.items()]


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                DemoOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={
                    **TOY_DEFAULTS,
                    "max_new_tokens": 64,
                    "examples": str(TOY_DATA / "held_out.jsonl"),
                },
                prepare_toy=prepare_toy,
            )
        )
    )
