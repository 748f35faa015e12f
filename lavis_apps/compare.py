"""Two runs of evaluate.py side by side: what changed, how sure that is, on which pictures.

Pairs the samples or queries of both runs and tests the difference of every figure of the task:
captions (BLEU-4, CIDEr), VQA accuracy, recalls, classes, AUROC, hits; all over pictures. Writes a
page that needs nothing but itself. Runs that differ in data, prompt, decoding, precision or
protocol are refused, or shown under a red banner with `--force`.

    python lavis_apps/compare.py RUN RUN            # folders of evaluate.py, the base first
    python lavis_apps/compare.py --toy              # the toy's retrieval, before and after training

Reads config.json, environment.json, predictions.jsonl, scored.jsonl, metrics.json of both runs and
the pictures of the gallery. Writes report.html and comparison.json.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavis_apps.compare_texts import TEXTS
from lavis_apps.comparing import figure_lines, metric_rows, with_figures
from lavis_apps.scoring import score_task
from lavis_apps.settings import RUNS
from shared.caption_runs import are_caption_runs
from shared.comparison import picture_file, reasons_against
from shared.options import (
    MissingError,
    UserError,
    check_output_folder,
    guarded,
    parse_options,
    portable_path,
    write_json,
)
from shared.report import write_report
from shared.run_comparison import compared, page_settings, runs_first
from shared.runs import Run, read_run
from shared.vqa_score import PUBLISHED_UNDER

if TYPE_CHECKING:
    from shared.report import Report

TOY_RUNS = tuple(RUNS / "toy_pipeline" / name for name in ("retrieval", "retrieval_trained"))
QUERIES = "R@1 over all queries"  # what the page's pairs are of; the recalls stand in its table


@dataclass
class CompareOptions:
    """What is compared, and the page"""

    runs: list[str] | None = field(
        default=None, metadata={"help": "two run folders of evaluate.py, the base first"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "where the report goes (default: outputs/lavis_apps/compare_RUN_RUN)"},
    )
    language: Literal["en", "zh"] = field(
        default="en", metadata={"help": "of the page and the summary"}
    )
    seed: int = field(default=0, metadata={"help": "of the gallery's sample and the resampling"})
    force: bool = field(
        default=False, metadata={"help": "compare what is not comparable, under a red banner"}
    )
    toy: bool = field(
        default=False, metadata={"help": "without runs: retrieval as pipeline_toy.sh left it"}
    )


def main(options: CompareOptions) -> None:
    # Read
    base, tuned = runs = [read_run(folder) for folder in chosen_folders(options)]
    tasks = [run.config.get("task") for run in runs]
    if tasks[0] != tasks[1]:
        raise UserError(f"{base.name} is of task {tasks[0]}, {tuned.name} of {tasks[1]}")
    task = str(tasks[0])
    again = partial(score_task, task, meteor=False)
    reasons = reasons_against(base, tuned, again)
    if reasons and not options.force:
        listed = "\n  ".join(reasons)
        raise UserError(
            f"{base.name} and {tuned.name} should not be compared:\n  {listed}\n"
            "Run evaluate.py again with the same options for both, or give --force: the report "
            "then compares the common samples under a red banner."
        )
    folder = Path(options.output_dir or RUNS / f"compare_{base.name}_{tuned.name}"[:200])
    check_output_folder(folder)

    # Compare
    find = partial(picture_file, base)
    settings = page_settings(reasons, find, options.language)
    comparison, report, said = compared_runs(
        runs, portable_path(folder / "report.html"), options.seed, settings
    )
    rows = metric_rows(base, tuned, options.seed)
    words = TEXTS[options.language]

    # Report
    write_json(folder / "comparison.json",
               comparison | {"figures": rows, "not_comparable": reasons})  # fmt: skip
    write_report(folder / "report.html", with_figures(report, rows, options.seed, words))
    print("\n".join([*figure_lines(rows, words), said]))


def compared_runs(
    runs: list[Run], page: str, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], Report, str]:
    """Figures, page and summary by the headline of single samples."""
    if are_caption_runs(runs):
        from shared.caption_report import captions_compared

        names = [TEXTS[settings["language"]][side] for side in ("base", "tuned")]
        return captions_compared(runs, names, page, seed=seed, model="lavis_apps", **settings)
    if runs[0].config["task"] == "retrieval":
        runs = [replace(run, metrics={**run.metrics, "metric": QUERIES}) for run in runs]
    return compared(
        runs, [run.name for run in runs], page, texts=TEXTS, protocols=PUBLISHED_UNDER,
        seed=seed, settings=settings,
    )  # fmt: skip


def chosen_folders(options: CompareOptions) -> list[Path]:
    """The two given folders, or with --toy those of the toy. Raises UserError for others."""
    if options.runs and len(options.runs) == 2:
        return [Path(folder) for folder in options.runs]
    if options.toy and not options.runs:
        if all((folder / "metrics.json").is_file() for folder in TOY_RUNS):
            return list(TOY_RUNS)
        raise MissingError(
            f"{portable_path(TOY_RUNS[0])} and {portable_path(TOY_RUNS[1])} are not both there; "
            "`bash lavis_apps/pipeline_toy.sh` makes them"
        )
    finished = sorted(portable_path(path.parent) for path in RUNS.glob("**/scored.jsonl"))
    there = "\n  ".join(finished) or "none yet: evaluate.py --toy makes one"
    raise UserError(f"give two runs: compare.py RUN RUN. Finished ones here:\n  {there}")


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
