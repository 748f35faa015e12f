"""Two or more runs side by side: other models, prompts, base and tuned, or several splits.

Runs on the same pictures are paired: known/unknown decisions and naming by McNemar's test, AUROC by
the paired bootstrap, Holm's correction over all pairs. Runs of one setup on several splits by the
same rules: each split's figures, their mean and its t interval. Other pictures otherwise: refused.

    python llava_openset/compare.py RUN RUN                     # folders of evaluate.py
    python llava_openset/compare.py RUN RUN RUN --names 7b 13b tuned --language zh
    python llava_openset/compare.py --toy                       # the newest two toy runs

Reads config.json, scored.jsonl and metrics.json of the runs, split.json of their splits and the
gallery's pictures. Writes report.html, charts/*.png and comparison.json.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llava_openset.chosen_runs import RUNS, chosen_folders
from shared.options import (
    UserError,
    guarded,
    parse_options,
    portable_path,
    this_command,
    write_json,
)
from shared.run_comparison import page_date, runs_first


@dataclass
class CompareOptions:
    """What is compared, and the page"""

    runs: list[str] | None = field(
        default=None, metadata={"help": "two to six run folders of evaluate.py"}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "what the page calls them (default: what tells them apart)"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "where it goes (default: outputs/llava_openset/compare_NAMES)"},
    )
    language: Literal["en", "zh"] = field(
        default="en", metadata={"help": "of the page and the summary"}
    )
    seed: int = field(default=0, metadata={"help": "of the gallery's sample and the resampling"})
    toy: bool = field(
        default=False, metadata={"help": "without runs: the newest two on the synthetic world"}
    )


def main(options: CompareOptions) -> None:
    # Read
    folders = chosen_folders(options.runs, options.toy)

    from llava_openset.compare_page import make_page, summary
    from llava_openset.comparing import compare
    from llava_openset.report_page import write_charts
    from llava_openset.run_reading import read_run
    from shared.comparison_many import short_names
    from shared.report import write_report

    runs = [read_run(folder) for folder in folders]
    names = options.names or short_names(runs)
    if len(names) != len(runs):
        raise UserError(f"--names: {len(names)} names for {len(runs)} runs")
    if len(set(names)) < len(names):
        raise UserError(f"--names: two runs have the same name ({', '.join(names)})")

    # Compare
    comparison = compare(runs, names, options.seed)

    # Write
    folder = Path(options.output_dir or RUNS / f"compare_{'_'.join(names)}"[:200])
    report, drawn = make_page(
        comparison,
        runs,
        language=options.language,
        made_by=this_command(),
        date=page_date(),
    )
    write_json(folder / "comparison.json", comparison)
    write_charts(folder / "charts", drawn)
    write_report(folder / "report.html", report)
    print(summary(comparison, portable_path(folder / "report.html"), options.language))


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
