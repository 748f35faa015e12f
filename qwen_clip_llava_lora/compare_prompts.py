"""Prompt templates of a run of describe_images.py held against references and each other.

By language: length, aspects covered, distinct n-grams, caption metrics against references where
there are some (paired tests, Holm's correction over all pairs) and agreement between templates;
tokens, cost and time; and pictures with what each template gave. `prompt_figures.py` says how the
figures are counted.

    python qwen_clip_llava_lora/compare_prompts.py RUN                # folder of describe_images.py
    python qwen_clip_llava_lora/compare_prompts.py RUN --references captions.json --language zh
    python qwen_clip_llava_lora/compare_prompts.py --toy              # the toy run, its captions

Reads config.json, descriptions.jsonl and metrics.json of the run, the references (any data file
that `data_formats.py` reads) and some pictures. Writes prompts.html and prompts.json into the run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen_clip_llava_lora.describe_settings import prepare_toy
from qwen_clip_llava_lora.settings import RUNS, TOY_SETS
from shared.options import (
    MissingError,
    UserError,
    guarded,
    parse_options,
    portable_path,
    read_json,
    this_command,
    write_json,
)
from shared.run_comparison import page_date


@dataclass
class ComparePromptsOptions:
    """What is compared, and the page"""

    run: str | None = field(default=None, metadata={"help": "run folder of describe_images.py"})
    references: str | None = field(
        default=None, metadata={"help": "data file whose rows have captions of the same pictures"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "where page and figures go (default: the run)"}
    )
    language: Literal["en", "zh"] = field(default="en", metadata={"help": "of the page"})
    pictures: int = field(default=12, metadata={"help": "of the sample table"})
    seed: int = field(default=0, metadata={"help": "of the sample and the resampling"})
    toy: bool = field(
        default=False, metadata={"help": "the toy run against the toy set's captions"}
    )

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("which run? compare_prompts.py RUN, a folder of describe_images.py")


def main(options: ComparePromptsOptions) -> None:
    # Read
    run = Path(str(options.run))
    config, metrics, records = read_run(run)

    from qwen_clip_llava_lora.prompt_figures import compare_templates, read_references
    from qwen_clip_llava_lora.prompt_report import make_page, summary
    from shared.report import write_report

    references, bad = None, 0
    if options.references is not None:
        pictures = list(dict.fromkeys(record["image"] for record in records))
        references, bad = read_references(Path(options.references), pictures)
        if not any(references.values()):
            raise UserError(f"{options.references}: no caption of any of the run's pictures in it")

    # Compare
    comparison = {
        "version": 1,
        "script": "compare_prompts",
        "run": portable_path(run),
        "model": metrics["model"],
        "synthetic": metrics["synthetic"],
        "references": options.references and portable_path(options.references),
        "bad_reference_rows": bad,
        "languages": compare_templates(records, config["templates"], references, options.seed),
    }

    # Write
    folder = Path(options.output_dir or run)
    write_json(folder / "prompts.json", comparison)
    report = make_page(
        comparison, config, metrics, records, references or {},
        language=options.language, n_pictures=options.pictures, seed=options.seed,
        made_by=this_command(),
        date=page_date(),
    )  # fmt: skip
    write_report(folder / "prompts.html", report)
    print(summary(comparison, metrics, options.language))
    print(f"report: {portable_path(folder / 'prompts.html')}")


def read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """config.json, metrics.json and the records. Raises UserError where it is no such run."""
    from shared.answering import read_records

    for name in ("config.json", "metrics.json", "descriptions.jsonl"):
        if not (run / name).is_file():
            raise MissingError(
                f"{run}: no {name} in it, so it is no finished run of describe_images.py; "
                "describe_images.py --toy makes the toy's"
            )
    config, metrics = read_json(run / "config.json"), read_json(run / "metrics.json")
    if not isinstance(config.get("templates"), dict) or "templates" not in metrics:
        raise UserError(f"{run}: not a run of describe_images.py")
    return config, metrics, list(read_records(run / "descriptions.jsonl").values())


def run_first(argv: Sequence[str]) -> list[str]:
    """`RUN --flag` as `--run RUN --flag`."""
    if argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml")):
        return ["--run", *argv]
    return list(argv)


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                ComparePromptsOptions,
                description=__doc__.split("\n")[0],
                argv=run_first(sys.argv[1:]),
                toy_defaults={
                    "run": str(RUNS / "describe_toy"),
                    "references": str(TOY_SETS / "cc3m_595k" / "held_out.json"),
                },
                prepare_toy=prepare_toy,
            )
        )
    )
