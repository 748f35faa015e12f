"""One page over the comparisons of several benchmarks: the end of the pipeline.

Reads the comparison.json that compare.py left in folders below the one given (two runs each) and
writes overview.html there: one row a benchmark with both figures, the blind baseline, the
difference with interval and p (Holm's correction over the benchmarks), and the way to each report.

    python llava_repro/overview.py outputs/llava_repro/toy_pipeline     (of pipeline_toy.sh)
    python llava_repro/overview.py outputs/llava_repro/english --language zh

Needs no model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared.options import UserError, guarded, parse_options, portable_path, read_json, this_command
from shared.report import (
    CopyBox,
    Report,
    Row,
    Section,
    Table,
    Text,
    interval,
    markdown_table,
    p_value,
    percent,
    points,
    write_report,
)
from shared.significance import holm

TEXTS = {
    "en": {
        "title": "Benchmarks of a LLaVA, {base} and {tuned}",
        "verdict": "{better} of {n} benchmarks better, {worse} worse (p below 0.05 after Holm)",
        "header": ("benchmark", "n", "blind", "{base}", "{tuned}", "difference", "p (Holm)"),
        "reports": "Figures are percent with 95 % intervals. Metric and page of each:",
        "table": "Benchmarks",
        "copy": "Copy as Markdown",
        "synthetic": "Toy data or a toy model: the figures say nothing about real ones.",
    },
    "zh": {
        "title": "LLaVA 评测总览:{base} 与 {tuned}",
        "verdict": "{n} 个评测中 {better} 个变好,{worse} 个变差(Holm 校正后 p 小于 0.05)",
        "header": ("评测", "n", "盲猜", "{base}", "{tuned}", "差值", "p (Holm)"),
        "reports": "数字为百分比及 95 % 区间。各评测的指标与报告:",
        "table": "评测",
        "copy": "复制为 Markdown",
        "synthetic": "玩具数据或玩具模型:这些数字不代表真实模型和数据。",
    },
}


@dataclass
class OverviewOptions:
    """Which comparisons"""

    folder: str = field(
        default="outputs/llava_repro/toy_pipeline",
        metadata={"help": "folder below which compare.py wrote its reports"},
    )
    names: list[str] = field(
        default_factory=lambda: ["stage 1", "stage 2"],
        metadata={"help": "what the page calls the two runs of each comparison"},
    )
    language: Literal["en", "zh"] = field(default="en", metadata={"help": "of the page"})


def main(options: OverviewOptions) -> None:
    folder = Path(options.folder)
    if len(options.names) != 2:
        raise UserError(f"--names: {len(options.names)} names; each comparison has two runs")
    comparisons = read_comparisons(folder)
    report = make_overview(comparisons, options.names, options.language)
    path = folder / "overview.html"
    write_report(path, report)
    table = report.sections[0].blocks[0]
    print(markdown_table(table.header, [row.cells for row in table.rows]))
    print(f"{report.verdict}\noverview: {portable_path(path)}")


def read_comparisons(folder: Path) -> dict[str, dict[str, Any]]:
    """Report folder -> its comparison of two runs. Raises UserError when there is none."""
    found = {}
    for file in sorted(folder.glob("*/comparison.json")):
        comparison = read_json(file)
        if isinstance(comparison, dict) and {"base", "tuned", "overall"} <= comparison.keys():
            found[file.parent.name] = comparison
    if not found:
        raise UserError(
            f"{folder}: no comparison of two runs below it; python llava_repro/compare.py RUN RUN "
            f"--output_dir {folder / 'TASK-report'} makes one"
        )
    return found


def make_overview(
    comparisons: dict[str, dict[str, Any]], names: list[str], language: Literal["en", "zh"]
) -> Report:
    """The page: comparisons of `compare.py`, in one table."""
    words = TEXTS[language]
    both = {"base": names[0], "tuned": names[1]}
    corrected = holm([c["overall"]["p_value"] for c in comparisons.values()])
    rows, pages, better, worse = [], [], 0, 0
    for (name, comparison), p in zip(comparisons.items(), corrected, strict=True):
        overall = comparison["overall"]
        surely = p is not None and p < 0.05
        better += surely and overall["difference"] > 0
        worse += surely and overall["difference"] < 0
        task = comparison["base"]["config"].get("task", name)
        change = interval(overall["low"], overall["high"], signed=True)
        cells = (
            task,
            str(overall["n"]),
            percent((comparison.get("blind") or {}).get("value")),
            figure(overall["base"]),
            figure(overall["tuned"]),
            f"{points(overall['difference'])} {change}",
            p_value(p),
        )
        rows.append(Row(cells, n=overall["n"]))
        pages.append(f"{task}: {comparison['metric']}; {name}/report.html")
    header = tuple(cell.format(**both) for cell in words["header"])
    table = Table(header, rows)
    copy = CopyBox(words["copy"], markdown_table(header, [row.cells for row in rows]))
    synthetic = any(any(c["synthetic"].values()) for c in comparisons.values())
    return Report(
        title=words["title"].format(**both),
        subtitle=this_command(),
        verdict=words["verdict"].format(better=better, worse=worse, n=len(rows)),
        tiles=(),
        sections=[
            Section("benchmarks", words["table"], [table, Text([words["reports"], *pages]), copy])
        ],
        language=language,
        synthetic=words["synthetic"] if synthetic else "",
    )


def figure(estimate: dict[str, Any]) -> str:
    return f"{percent(estimate['value'])} {interval(estimate['low'], estimate['high'])}"


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("--"):
        words = ["--folder", *words]
    guarded(
        lambda: main(parse_options(OverviewOptions, description=__doc__.split("\n")[0], argv=words))
    )
