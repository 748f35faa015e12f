"""Two or more runs side by side: what differs, how sure that is, and on which pictures.

Base and tuned, stage 1 and 2, two checkpoints, ours and another tool's answers: pairs the questions
of runs of evaluate.py, tests every difference (Holm's correction over the pairs), and writes a page
that needs nothing but itself. Runs that are not comparable (other questions, prompt, decoding,
protocol or dtype) are refused, or shown under a red banner with `--force`. `--verify` scores a
run's records again and compares.

    python llava_repro/compare.py RUN RUN                  # folders of evaluate.py
    python llava_repro/compare.py RUN RUN RUN --names stage1 stage2 lora
    python llava_repro/compare.py --toy                    # the newest two that fit each other
    python llava_repro/compare.py --verify outputs/llava_repro/RUN

Reads config.json, environment.json, predictions.jsonl, scored.jsonl, metrics.json of the runs and
the pictures of the gallery. Writes report.html and comparison.json. `--verify` exits with 1 when
something differs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llava_repro.chosen_runs import chosen_folders, find_picture, task_of
from llava_repro.evaluation_scoring import scorer, verify_run
from llava_repro.settings import RUNS
from shared.caption_runs import are_caption_runs
from shared.comparison_many import (
    reasons_against_all,
    short_names,
)
from shared.options import (
    UserError,
    guarded,
    parse_options,
    portable_path,
    write_json,
)
from shared.report import write_report
from shared.run_comparison import compared, page_settings, runs_first
from shared.runs import read_run
from shared.vqa_score import PUBLISHED_UNDER

MOST_DIFFERENCES = 20  # printed by --verify


@dataclass
class CompareOptions:
    """What is compared, and the page"""

    runs: list[str] | None = field(
        default=None, metadata={"help": "two to six run folders of evaluate.py, the base first"}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "what the page calls them (default: what tells them apart)"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "where the report goes (default: outputs/llava_repro/compare_NAMES)"},
    )
    language: Literal["en", "zh"] = field(
        default="en", metadata={"help": "of the page and the summary"}
    )
    seed: int = field(default=0, metadata={"help": "of the gallery's sample and the resampling"})
    force: bool = field(
        default=False, metadata={"help": "compare what is not comparable, under a red banner"}
    )
    verify: str | None = field(
        default=None, metadata={"help": "score this run's records again instead, and compare"}
    )
    toy: bool = field(
        default=False,
        metadata={"help": "without runs: the newest two of the toy world that can be compared"},
    )


def main(options: CompareOptions) -> None:
    if options.verify:
        print_verification(Path(options.verify))
        return

    # Read
    runs = [read_run(folder) for folder in chosen_folders(options.runs, options.toy)]
    names = options.names or short_names(runs)
    if len(names) != len(runs):
        raise UserError(f"--names: {len(names)} names for {len(runs)} runs")
    reasons = reasons_against_all(runs, scorer(task_of(runs)))
    if reasons and not options.force:
        listed = "\n  ".join(reasons)
        raise UserError(
            f"these runs should not be compared:\n  {listed}\n"
            "Run evaluate.py again with the same options for all, or give --force: the report then "
            "compares the common questions under a red banner."
        )

    # Compare and report
    folder = Path(options.output_dir or RUNS / f"compare_{'_'.join(names)}"[:200])
    page = portable_path(folder / "report.html")
    settings = page_settings(reasons, lambda record: find_picture(record, runs), options.language)
    if are_caption_runs(runs):
        from shared.caption_report import captions_compared

        comparison, report, said = captions_compared(
            runs, names, page, seed=options.seed, model="LLaVA", **settings
        )
    else:
        from llava_repro.compare_texts import texts_for

        comparison, report, said = compared(
            runs, names, page, texts=texts_for(names), protocols=PUBLISHED_UNDER,
            seed=options.seed, settings=settings,
        )  # fmt: skip
    write_json(folder / "comparison.json", comparison | {"not_comparable": reasons})
    write_report(folder / "report.html", report)
    print(said)


def print_verification(folder: Path) -> None:
    """Prints whether the stored scores are those of the records; exit status 1 when not."""
    run = read_run(folder)
    differing = verify_run(run)
    if not differing:
        print(f"{folder}: {len(run.records)} questions scored again, all as stored")
        return
    print(f"{folder}: {len(differing)} things are not as its records give:")
    for line in differing[:MOST_DIFFERENCES]:
        print(f"  {line}")
    if len(differing) > MOST_DIFFERENCES:
        print(f"  ... and {len(differing) - MOST_DIFFERENCES} more")
    sys.exit(1)


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                CompareOptions,
                description=__doc__.split("\n")[0],
                argv=runs_first(sys.argv[1:]),
            )
        )
    )
