"""The page: is what a picture shows one of these classes, or unknown?

A picture is asked twice: for a free answer, which the matcher reads, and for the likelihood of each
class of an editable list. A score of the likelihoods against a threshold makes the verdict; the
slider moves that threshold without asking again. A second tab takes several own pictures and gives
a CSV. One process serves all visitors, each with a state of his own.

    python llava_openset/demo.py --toy
    python llava_openset/demo.py --toy --run outputs/llava_openset/toy
    python llava_openset/demo.py --run outputs/llava_openset/RUN --language zh --share
    python llava_openset/demo.py --model llava-hf/llava-1.5-7b-hf --quantization nf4
    python llava_openset/demo.py --toy --dry_run

`--run` takes a finished run's model, question, class list and thresholds, which belong together:
another --model, --question or --classes beside it is refused. Without it no threshold is
calibrated. Reads a model, a run, a split's pictures as examples. Writes nothing; uploads lie in the
system's temporary folder for at most an hour or two.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_openset.classifying import refuse_contradiction, run_basis
from llava_openset.demo_pages import VARIANTS, Page, draw_page, read_classes
from llava_openset.demo_texts import TEXTS, TITLE
from llava_openset.evaluation_setup import form_of, memory_plan
from llava_openset.prompts import prompt_text
from llava_openset.protocols import CHOICE_SCORES
from llava_openset.samples import SPLIT_FILE, read_split
from llava_openset.settings import TOY_DEFAULTS, AskingOptions, prepare_toy
from llava_openset.split_settings import TOY_SPLIT
from llava_openset.splitting import COURSE_CLASSES
from shared.comparison import locate
from shared.gradio_parts import LaunchOptions, bilingual_page, check_address, serve
from shared.options import (
    ToyOptions,
    UserError,
    guarded,
    manifest_value,
    parse_options,
    portable_path,
    read_json,
)

CSS_FILE = Path(__file__).with_name("demo.css")
N_EXAMPLES = 4  # known and unknown pictures each


@dataclass
class DemoOptions(AskingOptions, LaunchOptions, ToyOptions):
    """What the page starts with"""

    classes: list[str] = field(
        default_factory=lambda: list(COURSE_CLASSES),
        metadata={"help": "known classes, those of two words in quotes; default: the course's 12"},
    )
    run: str | None = field(
        default=None,
        metadata={"help": "finished run of evaluate.py with protocol likelihood: its model, "
                  "question, classes, thresholds"},
    )  # fmt: skip
    split: str | None = field(
        default=None, metadata={"help": "split whose pictures are examples (default: the run's)"}
    )


def main(options: DemoOptions) -> None:
    options, thresholds = of_run(options)
    read_classes(", ".join(options.classes), TEXTS["en"])
    examples = example_pictures(options.split)
    if options.dry_run:
        print_plan(options, thresholds, examples)
        return
    check_address(options)

    # Model
    from shared.vision_language import load_vision_language

    model = load_vision_language(
        options.model, options.quantization, options.device, options.dtype, options.adapter,
        options.revision, options.image_handling, options.max_new_tokens,
    )  # fmt: skip
    for note in model.notes:
        print(f"note: {note}")
    common = Page(
        model=model,
        name=portable_path(options.model),
        adapter=portable_path(options.adapter) if options.adapter else None,
        synthetic=any(
            manifest_value(m, "synthetic") for m in (options.model, options.adapter) if m
        ),
        question=options.question,
        form=form_of(options),
        normalisation=options.length_normalisation,
        classes=tuple(options.classes),
        examples=examples,
        run=Path(options.run).name if options.run else None,
        thresholds=thresholds,
    )

    # Page
    page = bilingual_page(
        TITLE, lambda page, language: draw_page(page, language, common), options.language
    )
    serve(page, options, css=CSS_FILE.read_text(encoding="utf-8"))


def of_run(options: DemoOptions) -> tuple[DemoOptions, dict[str, float]]:
    """The options with what --run brings, and its thresholds by score. Raises UserError."""
    if options.run is None:
        return options, {}
    folder = Path(options.run)
    taken, protocols = run_basis(folder)
    refuse_contradiction(options, taken, toy_defaults() if options.toy else {})
    config = read_json(folder / "config.json")
    if "likelihood" not in protocols:
        raise UserError(
            f"{folder}: no protocol likelihood in it, whose thresholds this page needs; run "
            "evaluate.py with --protocol likelihood"
        )
    if config.get("pictures") == "shuffled":
        raise UserError(f"{folder}: a control with other samples' pictures; give a run without it")
    try:
        found = {
            score: protocols["likelihood"]["scores"][score]["threshold"]["value"]
            for score in CHOICE_SCORES
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a run of llava_openset/evaluate.py (no {error})") from error
    split = options.split
    if split is None and (locate(config["split"]) / SPLIT_FILE).is_file():
        split = str(locate(config["split"]))
    thresholds = {score: value for score, value in found.items() if value is not None}
    return replace(options, **taken, split=split), thresholds


def example_pictures(split: str | None) -> tuple[str, ...]:
    """Known and unknown test pictures of a split in turn, of different classes.

    Raises UserError, MissingError.
    """
    if split is None:
        return ()
    whole = read_split(Path(split))
    sides = [whole.examples(known, N_EXAMPLES) for known in (True, False)]
    return tuple(str(sample.path) for pair in zip(*sides, strict=False) for sample in pair)


def print_plan(
    options: DemoOptions, thresholds: dict[str, float], examples: tuple[str, ...]
) -> None:
    """--dry_run: address, prompts, thresholds, memory; no weights are loaded."""
    form = form_of(options)
    prompts = {
        key: prompt_text(key, options.classes, options.question, form)
        for key in (*VARIANTS, "likelihood")
    }
    print(f"page:     http://{options.host}:{options.port}/ in {options.language}")
    print(f"classes:  {', '.join(options.classes)}")
    for key, prompt in prompts.items():
        print(f"{key}:\n  {prompt!r}")
    for score in CHOICE_SCORES:
        value = thresholds.get(score)
        print(f"threshold of {score}: {'not calibrated' if value is None else f'{value:.4g}'}")
    print(f"examples: {len(examples)}")
    print("\n".join(memory_plan(options, max(prompts.values(), key=len))))


def toy_defaults() -> dict[str, Any]:
    from shared.toy_world.shapes import KNOWN_SHAPES

    return {**TOY_DEFAULTS, "classes": list(KNOWN_SHAPES), "split": str(TOY_SPLIT)}


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                DemoOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=toy_defaults(),
                prepare_toy=prepare_toy,
            )
        )
    )
