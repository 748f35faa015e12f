"""The report of one run again, from its files: no model, no pictures asked.

Curves, tables, paired tests between protocols, the course's four figures and a gallery, as
`evaluate.py` writes it at its end. The figures are those of metrics.json.

    python llava_openset/report.py outputs/llava_openset/RUN
    python llava_openset/report.py outputs/llava_openset/RUN --language zh

Reads config.json, environment.json, scored.jsonl and metrics.json of the run, its split's
split.json and the gallery's pictures. Writes report.html, charts/*.png, figures.csv and
paired_tests.csv into the run's folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llava_openset.chosen_runs import finished_runs
from shared.options import UserError, guarded, parse_options, portable_path
from shared.run_comparison import runs_first


@dataclass
class ReportOptions:
    """Which run, and the page"""

    run: str | None = field(default=None, metadata={"help": "run folder of evaluate.py"})
    language: Literal["en", "zh"] = field(default="en", metadata={"help": "of the page"})


def main(options: ReportOptions) -> None:
    if not options.run:
        raise UserError(f"give a run: report.py RUN. Finished ones here:\n  {finished_runs()}")

    from llava_openset.report_page import write_report

    page = write_report(Path(options.run), options.language)
    print(f"report: {portable_path(page)}")


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                ReportOptions,
                description=__doc__.split("\n")[0],
                argv=runs_first(sys.argv[1:], "--run"),
            )
        )
    )
