"""Two or more runs of evaluate.py side by side: what changed, how sure that is, on which pictures.

Base, LoRA, full, several sizes: pairs the samples of the runs, tests the difference of every metric
(likelihood of the references, exact match, captions, classes; Holm's correction over the pairs of
three runs and more), and writes a page that needs nothing but itself. Runs over other samples or
prompts are refused, or shown under a red banner with `--force`.

    python qwen_clip_llava_lora/compare.py RUN RUN              # folders of evaluate.py, base first
    python qwen_clip_llava_lora/compare.py RUN RUN RUN --names base lora full
    python qwen_clip_llava_lora/compare.py --toy                # the runs of the toy pipeline

Reads config.json, environment.json, predictions.jsonl, scored.jsonl, metrics.json of the runs and
the pictures of the gallery. Writes report.html and comparison.json.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qwen_clip_llava_lora.comparing import metric_rows, metric_rows_of_all, plain_reasons, scorer
from qwen_clip_llava_lora.report_texts import texts_for
from qwen_clip_llava_lora.settings import RUNS
from shared.comparison_many import (
    common_questions,
    reasons_against_all,
    short_names,
)
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
from shared.runs import read_run
from shared.vqa_score import PUBLISHED_UNDER

TOY_RUNS = [RUNS / "toy_pipeline" / name for name in ("merged", "align", "projector", "course")]


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
        metadata={"help": "where the report goes (default: "
                  "outputs/qwen_clip_llava_lora/compare_NAMES)"},
    )  # fmt: skip
    language: Literal["en", "zh"] = field(
        default="en", metadata={"help": "of the page and the summary"}
    )
    seed: int = field(default=0, metadata={"help": "of the gallery's sample and the resampling"})
    force: bool = field(
        default=False, metadata={"help": "compare what is not comparable, under a red banner"}
    )
    toy: bool = field(
        default=False, metadata={"help": "without runs: those of the toy pipeline (toy_pipeline/)"}
    )


def main(options: CompareOptions) -> None:
    # Read
    runs = [read_run(folder) for folder in chosen_folders(options)]
    names = options.names or short_names(runs)
    if len(names) != len(runs):
        raise UserError(f"--names: {len(names)} names for {len(runs)} runs")
    reasons = plain_reasons(reasons_against_all(runs, scorer(runs)))
    if reasons and not options.force:
        listed = "\n  ".join(reasons)
        raise UserError(
            f"these runs should not be compared:\n  {listed}\n"
            "Run evaluate.py again with the same options for all, or give --force: the report then "
            "compares the common samples under a red banner."
        )
    folder = Path(options.output_dir or RUNS / f"compare_{'_'.join(names)}"[:200])
    check_output_folder(folder)

    # Compare
    from qwen_clip_llava_lora.compare_page import likelihood_lines, with_contrast
    from qwen_clip_llava_lora.evaluation_report import picture_finder
    from shared.charts import chart_language

    texts = texts_for(names, runs[0].metrics["metric"])
    words, labels = texts[options.language], texts[chart_language(options.language)]
    comparison, report, said = compared(
        runs, names, portable_path(folder / "report.html"), texts=texts, protocols=PUBLISHED_UNDER,
        seed=options.seed,
        settings=page_settings(reasons, picture_finder(runs), options.language),
    )  # fmt: skip
    both = common_questions(runs)
    rows = metric_rows(*both, options.seed) if len(runs) == 2 else metric_rows_of_all(
        both, options.seed
    )  # fmt: skip

    # Report
    content = comparison | {"metrics": rows, "not_comparable": reasons}
    write_json(folder / "comparison.json", content)
    write_report(folder / "report.html", with_contrast(report, rows, both, names, words, labels))
    print("\n".join([*likelihood_lines(rows, names, words), said]))


def chosen_folders(options: CompareOptions) -> list[Path]:
    """The given folders, or with --toy those of the toy pipeline. Raises UserError for others."""
    if options.runs and len(options.runs) > 1:
        return [Path(folder) for folder in options.runs]
    if options.toy and not options.runs:
        there = [folder for folder in TOY_RUNS if (folder / "metrics.json").is_file()]
        if len(there) < 2:
            raise MissingError(
                f"{portable_path(TOY_RUNS[0].parent)} has no finished runs yet; they are made by\n"
                "  bash qwen_clip_llava_lora/pipeline_toy.sh"
            )
        return there
    finished = sorted(portable_path(path.parent) for path in RUNS.glob("**/scored.jsonl"))
    there = "\n  ".join(finished) or "none yet: evaluate.py --toy makes one"
    raise UserError(f"give two runs or more: compare.py RUN RUN. Finished ones here:\n  {there}")


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
