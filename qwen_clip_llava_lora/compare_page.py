"""What this experiment adds to the shared comparison pages: every metric, likelihoods, classes.

The pages of two runs (`shared.comparison_report`) and of several (`shared.comparison_many_report`)
get a first section with the figures of `comparing`, and a sentence on the likelihood.

    python qwen_clip_llava_lora/compare.py RUN RUN
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwen_clip_llava_lora.scoring import per_token
from shared import charts
from shared.report import (
    Block,
    Chart,
    Charts,
    CopyBox,
    Report,
    Row,
    Section,
    Table,
    Text,
    Tone,
    csv_table,
    interval,
    p_value,
)
from shared.runs import Run

Words = Mapping[str, str]
Figures = Mapping[str, Any]
CSV_KEYS = ("metric", "group", "unit", "first", "second", "difference", "low", "high", "p_value",
            "test", "p_wilcoxon", "p_holm", "n", "wins", "ties", "losses", "note")  # fmt: skip


def with_contrast(
    report: Report,
    rows: Sequence[Figures],
    runs: Sequence[Run],
    names: Sequence[str],
    words: Words,
    labels: Words,
) -> Report:
    """The page with the section in front, and of two runs the likelihood in its first sentences.

    `labels` are words that the charts' fonts can draw.
    """
    blocks: list[Block] = []
    lines = likelihood_lines(rows, names, words)
    if len(runs) == 2:
        blocks += likelihood_chart(runs, names, words, labels)
    elif lines:
        blocks.append(Text(lines))
    blocks.append(metrics_table(rows, names, words))
    if runs[0].metrics.get("classification"):
        blocks.append(class_table(runs, names, words))
    cells = [[row.get(key) for key in CSV_KEYS] for row in rows]
    pair = [[" / ".join(names[i] for i in row.get("pair", (0, 1)))] for row in rows]
    table = csv_table(("pair", *CSV_KEYS), [a + b for a, b in zip(pair, cells, strict=True)])
    blocks.append(CopyBox(words["copy_csv"], table))
    section = Section("contrast", words["contrast"], blocks)
    verdict = f"{report.verdict} {lines[0]}" if len(runs) == 2 and lines else report.verdict
    return replace(report, verdict=verdict, sections=[section, *report.sections])


def likelihood_lines(rows: Sequence[Figures], names: Sequence[str], words: Words) -> list[str]:
    """One sentence for each pair of runs; with several runs each says which two."""
    lines = []
    for row in rows:
        if row["metric"] != "log_likelihood":
            continue
        sentence = words["likelihood_verdict"].format(
            base=f"{row['first']:.3f}", tuned=f"{row['second']:.3f}",
            difference=f"{row['difference']:+.3f}", interval=signed(row),
            p=p_value(row.get("p_holm", row["p_value"])), wilcoxon=p_value(row["p_wilcoxon"]),
        )  # fmt: skip
        lines.append(f"{pair_name(row, names)}: {sentence}" if "pair" in row else sentence)
    return lines


def pair_name(row: Figures, names: Sequence[str]) -> str:
    first, second = row.get("pair", (0, 1))
    return f"{names[first]} → {names[second]}"


def signed(row: Figures) -> str:
    """The interval of a difference with as many decimals as its unit asks for."""
    if row["low"] is None:
        return "–"
    if row["unit"] == "points":
        return interval(row["low"], row["high"], signed=True)
    return f"[{row['low']:+.3f}, {row['high']:+.3f}]"


def likelihood_chart(
    runs: Sequence[Run], names: Sequence[str], words: Words, labels: Words
) -> list[Block]:
    """Both runs' log-likelihoods of a token over one axis, of the samples that both have."""
    values: list[list[float]] = []
    for run in runs:
        known = [
            per_token(row)
            for key, row in run.scored.items()
            if all(other.scored.get(key, {}).get("log_likelihood") is not None for other in runs)
        ]
        values.append(known)
    if not values[0]:
        reasons = [run.metrics.get("likelihood", {}).get("reason") for run in runs]
        reason = next(filter(None, reasons), "–")
        return [Text([words["no_likelihood"].format(reason=reason)])]
    png = charts.mirrored_histogram(
        (charts.drawable(names[0]), values[0]),
        (charts.drawable(names[1]), values[1]),
        x_label=labels["axis_nats"],
        y_label=labels["axis_share"],
    )
    return [Charts([Chart(png, words["chart_likelihood"], words["alt_likelihood"])])]


def metrics_table(rows: Sequence[Figures], names: Sequence[str], words: Words) -> Table:
    """A row a metric and language, of several runs a row a pair; the first columns name them."""
    many = any("pair" in row for row in rows)
    sides = [words["first_run"], words["second_run"]] if many else list(names)
    header = [words["metric"], *([words["pair"]] if many else []), words["n"], *sides,
              words["difference"], words["p_holm"] if many else words["p"],
              words["outcomes"]]  # fmt: skip
    return Table(
        header=header,
        rows=[
            Row(
                [
                    metric_name(row, words),
                    *([pair_name(row, names)] if many else []),
                    f"{row['n']:,}",
                    value_text(row, "first"),
                    value_text(row, "second"),
                    f"{value_text(row, 'difference')} {signed(row)}",
                    p_value(row["p_holm"] if many else row["p_value"]),
                    outcomes(row),
                ],
                row["n"],
                tone(row),
            )
            for row in rows
        ],
        title=words["metrics_table"],
        note=words["metrics_note_many" if many else "metrics_note"] + words["tests_note"],
        text_columns=(0, 1) if many else (0,),
    )


def metric_name(row: Figures, words: Words) -> str:
    name = words.get(f"m {row['metric']}", row["metric"])
    group = f", {words['lang ' + row['group']]}" if row["group"] else ""
    return f"{name}{group} ({words['u ' + row['unit']]})"


def value_text(row: Figures, key: str) -> str:
    value = row[key]
    if value is None:
        return "–"
    decimals = 2 if row["unit"] == "points" else 3
    return f"{value:+.{decimals}f}" if key == "difference" else f"{value:.{decimals}f}"


def outcomes(row: Figures) -> str:
    return "–" if row["wins"] is None else f"{row['wins']} / {row['ties']} / {row['losses']}"


def tone(row: Figures) -> Tone:
    """Coloured where the test says so; a figure without a test stays plain."""
    p = row.get("p_holm", row["p_value"])
    if p is None or p > 0.05 or not row["difference"]:
        return ""
    return "good" if row["difference"] > 0 else "bad"


def class_table(runs: Sequence[Run], names: Sequence[str], words: Words) -> Table:
    """F1 of every class in each run."""
    tables = [run.metrics["classification"]["per_class"] for run in runs]

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    return Table(
        header=[words["class"], words["n"], *names],
        rows=[
            Row([name, f"{row['n']:,}", *(cell(table[name]["f1"]) for table in tables)], row["n"])
            for name, row in tables[0].items()
        ],
        title=words["f1"],
    )
