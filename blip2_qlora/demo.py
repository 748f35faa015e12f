"""The page: ask a BLIP-2 about a picture before and after QLoRA, and browse a finished comparison.

One base model is loaded; PEFT's `disable_adapter` gives the base's answer, then the same weights
with the adapter answer. A lock holds both answers of one visitor together, so nobody is answered
with somebody else's adapter state. `--comparison` alone loads the model too; with `--browse_only`
the page shows finished runs and needs none.

    python blip2_qlora/demo.py --toy --adapter outputs/blip2_qlora/quickstart_qlora/adapter
    python blip2_qlora/demo.py --adapter outputs/blip2_qlora/RUN/adapter --quantization nf4
    python blip2_qlora/demo.py --language zh --comparison outputs/blip2_qlora/quickstart_report
    python blip2_qlora/demo.py --browse_only --comparison outputs/blip2_qlora/quickstart_report
    python blip2_qlora/demo.py --toy --dry_run

Reads a model, an adapter folder, run folders of evaluate.py. Writes nothing; uploaded pictures lie
in the system's temporary folder for at most an hour or two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from blip2_qlora.asking import Asker
from blip2_qlora.browsing import chosen_runs
from blip2_qlora.demo_pages import draw_page
from blip2_qlora.demo_texts import TITLE
from blip2_qlora.settings import RUNS, TOY_MODEL, AskingOptions, CaptionOptions
from shared.comparison import locate
from shared.gradio_parts import LaunchOptions, bilingual_page, check_address, serve
from shared.loading import model_folder
from shared.options import (
    ToyOptions,
    guarded,
    manifest_value,
    parse_options,
    portable_path,
    read_json,
)

CSS_FILE = Path(__file__).with_name("demo.css")


@dataclass
class DemoOptions(AskingOptions, CaptionOptions, LaunchOptions, ToyOptions):
    """What the page shows"""

    comparison: str | None = field(
        default=None, metadata={"help": "folder written by compare.py: its two runs are browsed"}
    )
    base_run: str | None = field(
        default=None, metadata={"help": "run folder of evaluate.py (default: make quickstart's)"}
    )
    tuned_run: str | None = field(default=None, metadata={"help": "the same, with an adapter"})
    browse_only: bool = field(
        default=False, metadata={"help": "no questions are asked and no model is loaded"}
    )


def main(options: DemoOptions) -> None:
    base_run, tuned_run = chosen_runs(options.comparison, options.base_run, options.tuned_run, RUNS)
    if options.dry_run:
        print_plan(options, base_run, tuned_run)
        return
    check_address(options)
    asker, synthetic = (None, False) if options.browse_only else load_asker(options)
    advice = adapter_advice(options, tuned_run)
    page = bilingual_page(
        TITLE,
        lambda page, language: draw_page(
            page,
            language,
            asker,
            synthetic=synthetic,
            advice=advice,
            runs=(base_run, tuned_run),
        ),
        options.language,
    )
    serve(page, options, css=CSS_FILE.read_text(encoding="utf-8"))


def load_asker(options: DemoOptions) -> tuple[Asker, bool]:
    """The model that answers, and whether it or its adapter is synthetic."""
    folder = model_folder(options.model, options.revision)

    from blip2_qlora.blip2 import base_model, choose_preset, load_blip2

    model, processor = load_blip2(options, options.adapter)
    preset = choose_preset(base_model(model).config, options.preset, options.prompt, options.greedy)
    asker = Asker(
        model,
        processor,
        preset,
        greedy=options.greedy,
        caption_min_tokens=options.caption_min_tokens,
    )
    trained_on = manifest_value(options.adapter, "quantization") if options.adapter else None
    if trained_on not in (None, options.quantization):
        print(
            f"note: the adapter was trained on a base with --quantization {trained_on}; with "
            f"{options.quantization} the tuned model answers a little differently"
        )
    marked = (folder, options.adapter)
    return asker, any(manifest_value(f, "synthetic") for f in marked if f)


def print_plan(options: DemoOptions, base_run: Path | None, tuned_run: Path | None) -> None:
    """--dry_run: what would be loaded and shown; no weights are loaded."""
    shown = " -> ".join(portable_path(run) if run else "none" for run in (base_run, tuned_run))
    print(f"page:     http://{options.host}:{options.port}/ in {options.language}")
    if options.browse_only:
        print(f"model:    none\nbrowsing: {shown}")
        return
    from blip2_qlora.blip2 import choose_preset, read_config
    from blip2_qlora.planning import adapter_plan, inference_plan

    config = read_config(options.model, options.revision)
    print(f"model:    {options.model}, quantization {options.quantization}")
    adapter = adapter_plan(config, options.model, options.revision, options.adapter)
    print(*adapter or ["adapter:  none: only the base model answers"], sep="\n")
    print(f"browsing: {shown}")
    plan = inference_plan(
        config,
        choose_preset(config, options.preset, options.prompt, options.greedy),
        "What is in the picture?",
        quantization=options.quantization,
        dtype=options.dtype,
        batch=1,
    )
    print("\n".join(plan))


def adapter_advice(options: DemoOptions, tuned_run: Path | None) -> tuple[str, str]:
    """Commands that train an adapter and that start this page with one, with the browsed run's
    adapter where it still lies there."""
    toy = " --toy" if options.toy else ""
    start = "--adapter outputs/blip2_qlora/RUN/adapter"
    config = read_json(tuned_run / "config.json") if tuned_run else {}
    adapter = config.get("adapter")
    if adapter and locate(adapter).is_dir():
        start = f"--adapter {adapter} --quantization {config['quantization']}"
    return f"python blip2_qlora/train.py{toy}", f"python blip2_qlora/demo.py{toy} {start}"


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                DemoOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={"model": str(TOY_MODEL), "caption_min_tokens": 1},
            )
        )
    )
