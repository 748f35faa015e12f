"""The page and the summary of three runs and more: figures, pairs, types, examples, what ran.

Takes what `comparison_many.compare_all` computed; the blocks are those of `comparison_sections`,
the words those of `comparison_texts` and the experiment's own, in both languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared import charts
from shared import comparison_sections as parts
from shared.comparison import scored_data
from shared.comparison_many import Asked
from shared.comparison_report import synthetic_notice
from shared.comparison_sections import Comparison, FindPicture, Words, told_apart
from shared.report import (
    Block,
    Chart,
    Charts,
    CopyBox,
    Gallery,
    Language,
    Report,
    Row,
    Section,
    Table,
    Text,
    Tile,
    Tone,
    csv_table,
    interval,
    markdown_table,
    p_value,
    percent,
)
from shared.runs import Run
from shared.significance import FEW_CLUSTERS


def make_report_of_all(
    comparison: Comparison,
    runs: Sequence[Run],
    asked: Sequence[Asked],
    *,
    reasons: Sequence[str],
    find_picture: FindPicture,
    texts: Mapping[str, Words],
    language: Language,
    made_by: str,
    date: str,
) -> Report:
    """`reasons` say why the runs are not comparable; `find_picture` gives a record's file."""
    words = texts[language]
    labels = texts[charts.chart_language(language)]  # those that the charts' fonts can draw
    is_scored = comparison["n"] > 0
    names = [run["label"] for run in comparison["runs"]]
    sections = []
    if is_scored:
        sections.append(Section("results", words["results"], results(comparison, words, labels)))
    cards = galleries(comparison, asked, find_picture, words)
    sections.append(Section("examples", words["examples"], cards))
    counted = list(zip(names, comparison["counts"], strict=True))
    if is_scored:
        sure = list(zip(names, names, comparison["confidence"], strict=True))
        official = [(name, run.metrics.get("official"))
                    for name, run in zip(names, runs, strict=True)]  # fmt: skip
        sections += [
            Section("confidence", words["confidence"], parts.confidence(sure, words, labels)),
            Section("scoring", words["scoring"], [
                *parts.official_figures(official, words), parts.completeness(counted, words)
            ]),
            Section("take-away", words["take_away"], copy_boxes(comparison, words)),
        ]  # fmt: skip
    described = list(zip(runs, comparison["runs"], strict=True))
    ran: list[Block] = [
        Text(parts.data_statements(described, words)),
        *parts.option_tables(list(zip(names, comparison["runs"], strict=True)), words),
    ]
    sections.append(Section("what-ran", words["what_ran"], ran))
    footer = [words["made_by"].format(command=made_by, date=date)]
    if is_scored:
        tests = parts.tests_used(comparison["pairs"], words)
        footer.insert(0, words["method_many"].format(seed=comparison["seed"], tests=tests))
    return Report(
        title=words["title_many"].format(n=len(runs)),
        subtitle=subtitle(comparison, words),
        verdict=verdict(comparison, words),
        tiles=tiles(comparison, words),
        sections=sections,
        language=language,
        synthetic=synthetic_notice(comparison, words),
        banner_title=words["banner_title"],
        banner=banner(comparison, runs, reasons, words, comparison["n_questions"]),
        footer=footer,
    )


def summary_of_all(
    comparison: Comparison, reasons: Sequence[str], report: str, words: Words
) -> str:
    """The last lines on the terminal: each run's accuracy, every pair's difference, the report."""
    lines = [words["summary_forced"].format(reason=reason) for reason in reasons]
    if notice := synthetic_notice(comparison, words):
        lines.append(f"SYNTHETIC  {notice}")
    if not comparison["n"]:
        lines.append(verdict(comparison, words))
    else:
        for run, figure in zip(comparison["runs"], comparison["overall"], strict=True):
            limits = interval(figure["low"], figure["high"])
            lines.append(f"{run['label']}  {percent(figure['value'])} {limits}   {run['name']}")
        for row in comparison["pairs"]:
            lines.append(words["summary_pair"].format(
                pair=pair_name(comparison, row), difference=parts.difference_with_interval(row),
                p=p_value(row["p_holm"]), n=row["n"], wins=row["wins"], ties=row["ties"],
                losses=row["losses"],
            ))  # fmt: skip
    return "\n".join([*lines, words["summary_report"].format(path=report)])


def pair_name(comparison: Comparison, row: Mapping[str, Any]) -> str:
    first, second = (comparison["runs"][row[side]]["label"] for side in ("first", "second"))
    return f"{first} → {second}"


def subtitle(comparison: Comparison, words: Words) -> str:
    said = [
        " · ".join(run["name"] for run in comparison["runs"]),
        words["questions"].format(n=comparison["n_questions"]),
        words["pictures"].format(n=comparison["n_pictures"]),
    ]
    if comparison["n"]:
        said.append(comparison["metric"])
    return " · ".join(said)


def is_clear(row: Mapping[str, Any]) -> bool:
    """A difference that both the interval and Holm's p show."""
    return told_apart(row) and row["p_holm"] is not None and row["p_holm"] <= 0.05


def verdict(comparison: Comparison, words: Words) -> str:
    """Which run is best, and from which of the others it can be told apart."""
    if not comparison["n"]:
        return words["no_scores_many"].format(n=comparison["n_questions"])
    values = [figure["value"] for figure in comparison["overall"]]
    best = values.index(max(values))
    names = [run["label"] for run in comparison["runs"]]
    against = {
        row["second"] if row["first"] == best else row["first"]: is_clear(row)
        for row in comparison["pairs"]
        if best in (row["first"], row["second"])
    }
    clear = [names[i] for i, known in against.items() if known]
    unclear = [names[i] for i, known in against.items() if not known]
    sentence = words["best"].format(name=names[best], value=percent(values[best]))
    if clear:
        sentence += " " + words["clearly_above"].format(names=words["list_comma"].join(clear))
    if unclear:
        sentence += " " + words["not_told_apart"].format(names=words["list_comma"].join(unclear))
    n_pictures = comparison["pairs"][0]["n_pictures"]  # a text-only question counts as its own
    if n_pictures < FEW_CLUSTERS:
        sentence += " " + words["few_pictures"].format(n=n_pictures)
    return sentence


def tiles(comparison: Comparison, words: Words) -> list[Tile]:
    shown = [
        Tile(run["label"], percent(figure["value"]), words["interval_note"].format(
            interval=interval(figure.get("low"), figure.get("high"))))
        for run, figure in zip(comparison["runs"], comparison["overall"], strict=True)
    ]  # fmt: skip
    blind = comparison["blind"]
    if not comparison["n"]:
        return [
            Tile(words["answers_differ"],
                 f"{comparison['gallery']['changed']['total']} / {comparison['n_questions']}")
        ]  # fmt: skip
    if blind and blind["value"] is not None:
        shown.append(Tile(words["blind"], percent(blind["value"]), words["blind_note"]))
    return shown


def banner(
    comparison: Comparison, runs: Sequence[Run], reasons: Sequence[str], words: Words, n: int
) -> list[str]:
    """Why the runs do not compare though they are, `n` samples of them; what was trained on what
    scores it; whose pictures were shuffled."""
    lines = list(reasons)
    if reasons:
        lines.append(words["banner_forced_many"].format(n=n))
    for run, learned in zip(runs, comparison["trained_on_scored"], strict=True):
        if learned:
            data = parts.data_words(*scored_data(run), words)
            lines.append(words["trained_on_scored"].format(run=run.name, data=data))
        if run.config.get("pictures") == "shuffled":
            lines.append(f"{run.name}: {words['shuffled']}")
    return lines


def results(comparison: Comparison, words: Words, labels: Words) -> list[Block]:
    """The headline chart, every pair, and each run's accuracy by answer and question type."""
    names = [run["label"] for run in comparison["runs"]]
    overall = comparison["overall"]
    answer_types, question_types = (
        list(comparison[key].items()) for key in ("per_answer_type", "per_question_type")
    )
    everything = [(labels["all"], overall), *answer_types]
    blind = comparison["blind"]
    marks = parts.blind_marks(comparison, "per_answer_type", list(dict(answer_types)))
    blocks: list[Block] = [
        Charts([
            accuracy_chart(everything, names, labels, words["chart_answer_types"], words,
                           [blind and blind["value"], *marks]),
            outcome_chart(comparison, words, labels),
        ]),
        pairs_table(comparison, words),
        type_table(words["by_answer_type"], [(words["all"], overall), *answer_types], names, words),
    ]  # fmt: skip
    if question_types:
        drawn = question_types[: parts.CHART_TYPES]
        title = words["chart_question_types"]
        if len(drawn) < len(question_types):
            title = words["chart_question_types_top"].format(n=parts.CHART_TYPES)
        marks = parts.blind_marks(comparison, "per_question_type", list(dict(drawn)))
        blocks += [
            Charts([accuracy_chart(drawn, names, labels, title, words, marks)]),
            type_table(words["by_question_type"], question_types, names, words),
        ]
    return blocks


TypeRows = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]


def accuracy_chart(
    rows: TypeRows,
    names: Sequence[str],
    labels: Words,
    title: str,
    words: Words,
    blind: Sequence[float | None],
) -> Chart:
    png = charts.accuracy_bars(
        [f"{charts.drawable(name, 22)} ({figures[0]['n']:,})" for name, figures in rows],
        {name: [figures[i] for _, figures in rows] for i, name in enumerate(names)},
        x_label=labels["axis_accuracy"],
        reference=(labels["blind_line"], blind),
    )
    return Chart(png, title, words["alt_bars"])


def outcome_chart(comparison: Comparison, words: Words, labels: Words) -> Chart:
    pairs = comparison["pairs"]
    png = charts.outcome_bars(
        [charts.drawable(pair_name(comparison, row), 26) for row in pairs],
        [(row["wins"], row["ties"], row["losses"]) for row in pairs],
        [labels[f"{name}_label"] for name in ("better", "equal", "worse")],
    )
    return Chart(png, words["chart_outcomes"], words["alt_outcomes"])


def pairs_table(comparison: Comparison, words: Words) -> Table:
    def tone(row: Mapping[str, Any]) -> Tone:
        if row["p_holm"] is None or row["p_holm"] > 0.05:
            return ""
        return "good" if row["difference"] > 0 else "bad"

    return Table(
        header=pair_header(words),
        rows=[Row(pair_cells(comparison, row), row["n"], tone(row)) for row in comparison["pairs"]],
        title=words["pairs"],
        note=words["pairs_note"],
    )


def pair_header(words: Words) -> list[str]:
    return [words[key] for key in ("pair", "n", "difference", "p_holm", "outcomes")]


def pair_cells(comparison: Comparison, row: Mapping[str, Any]) -> list[str]:
    return [
        pair_name(comparison, row),
        f"{row['n']:,}",
        parts.difference_with_interval(row),
        p_value(row["p_holm"]),
        f"{row['wins']} / {row['ties']} / {row['losses']}",
    ]


def type_table(title: str, rows: TypeRows, names: Sequence[str], words: Words) -> Table:
    header, body = type_cells(rows, names, words)
    ns = [figures[0]["n"] for _, figures in rows]
    return Table(
        header=header,
        rows=[Row(cells, n) for cells, n in zip(body, ns, strict=True)],
        title=title,
        note=words["type_note_many"],
    )


def type_cells(
    rows: TypeRows, names: Sequence[str], words: Words
) -> tuple[list[str], list[list[str]]]:
    body = [
        [name, f"{figures[0]['n']:,}", *(parts.with_interval(figure) for figure in figures)]
        for name, figures in rows
    ]
    return [words["type"], words["n"], *names], body


def galleries(
    comparison: Comparison, asked: Sequence[Asked], find_picture: FindPicture, words: Words
) -> list[Block]:
    by_id = {question.sample_id: question for question in asked}
    names = [run["label"] for run in comparison["runs"]]
    blocks: list[Block] = []
    for name, stratum in comparison["gallery"].items():
        cards = []
        for key in stratum["shown"]:
            question = by_id[key]
            answers = [
                parts.said(label, record, row["score"], words)
                for label, record, row in zip(names, question.records, question.scored, strict=True)
            ]
            cards.append(parts.question_card(question.records[0], answers, find_picture, words))
        note = parts.stratum_note(name, stratum, comparison["seed"], words)
        blocks.append(Gallery(words[name], note, cards))
    return blocks


def copy_boxes(comparison: Comparison, words: Words) -> list[Block]:
    """Types and pairs as Markdown, and the types as CSV with plain numbers."""
    names = [run["label"] for run in comparison["runs"]]
    rows = [
        (words["all"], comparison["overall"]),
        *comparison["per_answer_type"].items(),
        *comparison["per_question_type"].items(),
    ]
    types = markdown_table(*type_cells(rows, names, words))
    pairs = markdown_table(
        pair_header(words), [pair_cells(comparison, row) for row in comparison["pairs"]]
    )
    keys = ("value", "low", "high")
    header = ["type", "n", *(f"{name} {key}" for name in names for key in keys)]
    csv_rows = [
        [name, figures[0]["n"], *(figure.get(key) for figure in figures for key in keys)]
        for name, figures in rows
    ]
    return [
        CopyBox(words["copy_markdown"], f"{types}\n\n{pairs}"),
        CopyBox(words["copy_csv"], csv_table(header, csv_rows)),
    ]
