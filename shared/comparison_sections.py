"""The sections of a comparison's page: results, examples, confidence, scoring, what ran.

Each function turns figures of `comparison.compare` into blocks of `shared.report`. Only the
gallery opens files: its pictures, where a missing one becomes a placeholder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared import charts
from shared.calibration import COVERAGE
from shared.comparison import Pair, scored_data
from shared.report import (
    Answer,
    Block,
    Card,
    Chart,
    Charts,
    CopyBox,
    Gallery,
    Row,
    Table,
    Text,
    Tone,
    csv_table,
    interval,
    markdown_table,
    p_value,
    percent,
    points,
    thumbnail,
)
from shared.runs import Run

# of a benchmark's own figures: what metrics.json has beside each, and tables that the page shows
BESIDE_A_FIGURE = {"n", "n_image", "low", "high", "intervals", "confusion", "per_type"}
CHART_TYPES = 12  # question types in the chart; the table holds all
Comparison = Mapping[str, Any]
Words = Mapping[str, str]
NamedRows = Sequence[tuple[str, Mapping[str, Any]]]
FindPicture = Callable[[Mapping[str, Any]], Path]


def with_interval(estimate: Mapping[str, Any]) -> str:
    """61.20 [58.10, 64.30], in percent."""
    return f"{estimate['value']:.2f} {interval(estimate.get('low'), estimate.get('high'))}"


def difference_with_interval(row: Mapping[str, Any]) -> str:
    """+8.20 [+5.10, +11.30], in percentage points."""
    return f"{points(row['difference'])} {interval(row['low'], row['high'], signed=True)}"


def told_apart(row: Mapping[str, Any]) -> bool:
    """Whether the difference's interval leaves out 0; where every picture has the same difference
    there is no interval, and any difference that could be tested is one."""
    if row["low"] is None:
        return bool(row["difference"]) and row["p_value"] is not None
    return not row["low"] <= 0 <= row["high"]


def results(comparison: Comparison, words: Words, labels: Words) -> list[Block]:
    """Charts and tables of the headline, by answer type and by question type.

    `labels` are the words that the charts' fonts can draw, `words` those of the page.
    """
    answer_types, question_types = (
        list(comparison[key].items()) for key in ("per_answer_type", "per_question_type")
    )
    everything = comparison["overall"]
    drawn = [(labels["all"], everything), *answer_types]
    blind = comparison["blind"]
    marks = blind_marks(comparison, "per_answer_type", list(dict(answer_types)))
    blocks: list[Block] = [
        Charts([
            accuracy_chart(drawn, labels, words, words["chart_answer_types"],
                           [blind and blind["value"], *marks]),
            outcome_chart(drawn, labels, words),
        ]),
        type_table(words["by_answer_type"], [(words["all"], everything), *answer_types], words),
    ]  # fmt: skip
    if question_types:
        drawn = question_types[:CHART_TYPES]
        title = words["chart_question_types"]
        if len(drawn) < len(question_types):
            title = words["chart_question_types_top"].format(n=CHART_TYPES)
        blocks += [
            Charts([
                accuracy_chart(drawn, labels, words, title,
                               blind_marks(comparison, "per_question_type", list(dict(drawn)))),
                outcome_chart(drawn, labels, words),
            ]),
            type_table(words["by_question_type"], question_types, words),
        ]  # fmt: skip
    return blocks


def blind_marks(comparison: Comparison, table: str, names: Sequence[str]) -> list[float | None]:
    """The blind baseline on each of these types, in percent, None where it is not known."""
    known = (comparison["blind"] or {}).get(table) or {}
    return [known[name]["value"] if name in known else None for name in names]


def tests_used(rows: Sequence[Mapping[str, Any]], words: Words) -> str:
    """Which paired test gave the p-values of these rows."""
    used = dict.fromkeys(row["test"] for row in rows if row["test"])
    return words["list_comma"].join(words[test] for test in sorted(used, reverse=True)) or "–"


def type_table(title: str, rows: NamedRows, words: Words) -> Table:
    header, body = type_cells(rows, words)

    def tone(row: Mapping[str, Any]) -> Tone:
        p = row.get("p_holm", row["p_value"])  # the row of all questions is a test of its own
        if p is None or p > 0.05:
            return ""
        return "good" if row["difference"] > 0 else "bad"

    return Table(
        header=header,
        rows=[Row(cells, row["n"], tone(row)) for cells, (_, row) in zip(body, rows, strict=True)],
        title=title,
        note=words["type_note"].format(test=tests_used([row for _, row in rows], words)),
    )


def type_cells(rows: NamedRows, words: Words) -> tuple[list[str], list[list[str]]]:
    header = [words["type"], words["n"], words["base"], words["tuned"], words["difference"],
              words["p"], words["p_holm"], words["outcomes"]]  # fmt: skip
    body = [
        [
            name,
            f"{row['n']:,}",
            *(with_interval(row[side]) for side in ("base", "tuned")),
            difference_with_interval(row),
            p_value(row["p_value"]),
            p_value(row.get("p_holm")),
            f"{row['wins']} / {row['ties']} / {row['losses']}",
        ]
        for name, row in rows
    ]
    return header, body


def accuracy_chart(
    rows: NamedRows, labels: Words, words: Words, title: str, blind: Sequence[float | None]
) -> Chart:
    """`blind`: the blind baseline on each row's questions, None where it is not known."""
    png = charts.accuracy_bars(
        [f"{charts.drawable(name, 22)} ({row['n']:,})" for name, row in rows],
        {labels[side]: [row[side] for _, row in rows] for side in ("base", "tuned")},
        x_label=labels["axis_accuracy"],
        reference=(labels["blind_line"], blind),
    )
    return Chart(png, title, words["alt_bars"])


def outcome_chart(rows: NamedRows, labels: Words, words: Words) -> Chart:
    png = charts.outcome_bars(
        [charts.drawable(name, 22) for name, _ in rows],
        [(row["wins"], row["ties"], row["losses"]) for _, row in rows],
        [labels[f"{name}_label"] for name in ("better", "equal", "worse")],
    )
    return Chart(png, words["chart_outcomes"], words["alt_outcomes"])


def confidence(
    named: Sequence[tuple[str, str, Mapping[str, Any]]], words: Words, labels: Words
) -> list[Block]:
    """`named`: of each run its name on the page, its name in charts, its confidence figures."""
    known = [(name, drawn, figures) for name, drawn, figures in named if figures["ece"] is not None]
    blocks: list[Block] = [Text([words["confidence_what"]])]
    if not known:
        return [*blocks, Text([words["confidence_none"]])]
    eces = ", ".join(f"{name} {figures['ece']:.3f}" for name, _, figures in known)
    drawn = [
        Chart(
            charts.reliability_diagram(
                {name: figures["bins"] for _, name, figures in known},
                x_label=labels["axis_confidence"],
                y_label=labels["axis_score"],
                count_label=labels["axis_count"],
                ideal=labels["ideal"],
            ),
            words["chart_reliability"].format(eces=eces),
            words["alt_reliability"],
        ),
        Chart(
            charts.risk_coverage_chart(
                {name: figures["curve"] for _, name, figures in known},
                x_label=labels["axis_coverage"],
                y_label=labels["axis_accuracy"],
            ),
            words["chart_risk"],
            words["alt_risk"],
        ),
    ]
    table = Table(
        header=[words["run"], words["n"], words["ece_head"], words["brier_head"],
                words["coverage_head"].format(share=COVERAGE), words["aurc_head"]],
        rows=[
            Row([name, f"{figures['n']:,}", f"{figures['ece']:.3f}",
                 f"{figures['brier']:.3f}", percent(100 * figures["score_at_coverage"][1]),
                 f"{figures['aurc']:.3f}"], figures["n"])
            for name, _, figures in known
        ],
        title=words["confidence_table"],
        note=words["confidence_note_table"],
    )  # fmt: skip
    return [*blocks, Charts(drawn), table]


def scoring(comparison: Comparison, words: Words) -> list[Block]:
    rows = [
        (name, words[f"published {name}"], row)
        for name, row in (comparison["protocols"] or {}).items()
    ]
    if comparison["exact_match"]:
        rows.append((words["exact_match"], words["exact_match_who"], comparison["exact_match"]))
    protocols = Table(
        header=[words["protocol"], words["published"], words["n"], words["base"], words["tuned"],
                words["difference"]],
        rows=[
            Row([name, who, f"{row['n']:,}",
                 *(with_interval(row[side]) for side in ("base", "tuned")),
                 difference_with_interval(row)], row["n"])
            for name, who, row in rows
        ],
        title=words["protocols"],
        note=words["protocols_note"].format(metric=comparison["metric"]),
        text_columns=(0, 1),
    )  # fmt: skip
    counts = [(words[side], row) for side, row in comparison["counts"].items()]
    return [*([protocols] if rows else []), completeness(counts, words)]


def completeness(named: NamedRows, words: Words) -> Table:
    """How many questions each run was asked, and how many of its answers are none."""
    keys = ("expected", "compared", "errors", "empty", "cut")
    return Table(
        header=[words["run"], *(words[key] for key in keys), words["without_errors"]],
        rows=[
            Row([name, *(f"{counts[key]:,}" for key in keys),
                 f"{percent(counts['excluding_errors']['value'])} "
                 f"(n {counts['excluding_errors']['n']:,})"])
            for name, counts in named
        ],
        title=words["completeness"],
        note=words["completeness_note"],
    )  # fmt: skip


def official_figures(named: NamedRows, words: Words) -> list[Block]:
    """What the benchmark's own program gives for each run; nothing where a run has none.

    `named`: the run's name and what its metrics.json holds under `official`.
    """
    figures = [flat(figures or {}) for _, figures in named]
    if not all(figures):
        return []
    numbers = [
        {key: value for key, value in column.items() if _is_number(value)} for column in figures
    ]
    rows = [
        Row([key.removesuffix(".value"), *(_short(value) for value in values)])
        for key, *values in side_by_side(numbers)
        if not set(key.split(".")) & BESIDE_A_FIGURE
    ]
    return [
        Table(
            header=[words["figure"], *(name for name, _ in named)],
            rows=rows,
            title=words["official"],
            note=words["official_note"],
        )
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    return text if not _is_number(text) or "." not in text else f"{float(text):.4f}"


def galleries(
    comparison: Comparison,
    by_id: Mapping[str, Pair],
    find_picture: FindPicture,
    words: Words,
) -> list[Block]:
    return [
        Gallery(
            words[name],
            stratum_note(name, stratum, comparison["seed"], words),
            [card(by_id[key], find_picture, words) for key in stratum["shown"]],
        )
        for name, stratum in comparison["gallery"].items()
    ]


def stratum_note(name: str, stratum: Mapping[str, Any], seed: int, words: Words) -> str:
    """How many there are, and which of them are shown."""
    shown, total = len(stratum["shown"]), stratum["total"]
    kind = "surest" if name == "confident_errors" else "sampled"
    kind = "none" if total == 0 else "all_shown" if shown == total else kind
    return words[kind].format(shown=shown, total=total, seed=seed)


def card(pair: Pair, find_picture: FindPicture, words: Words) -> Card:
    answers = [
        said(words["base"], pair.base, pair.base_scored["score"], words),
        said(words["tuned"], pair.tuned, pair.tuned_scored["score"], words),
    ]
    return question_card(pair.base, answers, find_picture, words)


def question_card(
    record: Mapping[str, Any], answers: Sequence[Answer], find_picture: FindPicture, words: Words
) -> Card:
    """One question, by any run's record of it, with what the runs said."""
    facts = []
    if record.get("choices"):
        listed = " ".join(f"({chr(65 + i)}) {c}" for i, c in enumerate(record["choices"]))
        facts.append((words["choices"], listed))
    if record["references"]:
        counted = Counter(record["references"]).most_common()
        sentences = any({",", "，"} & set(answer) for answer, _ in counted)
        between = " | " if sentences else ", "
        listed = between.join(f"{answer} ×{n}" if n > 1 else answer for answer, n in counted)
        facts.append((words["references"], listed))
    key, image = record["sample_id"], record["image"]
    place = [record["question_type"], key, image]
    if image and key.startswith(image):  # rows of predict.py have no id of their own
        place.remove(key)
    return Card(
        picture=thumbnail(find_picture(record)) if image else None,
        title=record["question"] or words["no_question"],
        answers=answers,
        facts=facts,
        note=" · ".join(filter(None, place)),
        instead="" if image else words["text_only"],
    )


def said(label: str, record: Mapping[str, Any], score: float | None, words: Words) -> Answer:
    """One model's answer, or its error, with score and confidence."""
    if record["status"] != "ok":
        return Answer(label, record["error"], words["error_note"], "stop")
    notes = []
    if score is not None:
        notes.append(words["score_note"].format(score=score))
    if record["confidence"] is not None:
        notes.append(words["confidence_note"].format(confidence=record["confidence"]))
    if record["finish_reason"] == "length":
        notes.append(words["cut_note"])
    tone = "" if score is None else "good" if score >= 0.5 else "warn" if score > 0 else "bad"
    details = [(words["raw"], record["raw_output"]), (words["caption"], record.get("caption"))]
    if not record["question"]:
        details.pop()  # the caption is the answer
    details = [(name, text) for name, text in details if text is not None]
    return Answer(label, record["answer"], ", ".join(notes), tone, details)


def copy_boxes(comparison: Comparison, words: Words) -> list[Block]:
    """The types' table as Markdown, and as CSV with plain numbers."""
    rows = [
        (words["all"], comparison["overall"]),
        *comparison["per_answer_type"].items(),
        *comparison["per_question_type"].items(),
    ]
    header, body = type_cells(rows, words)
    numbers = ["difference", "low", "high", "p_value", "wins", "ties", "losses"]
    csv_rows = [
        [name, row["n"],
         *(row[side].get(key) for side in ("base", "tuned") for key in ("value", "low", "high")),
         *(row[key] for key in numbers[:4]), row.get("p_holm"), *(row[key] for key in numbers[4:])]
        for name, row in rows
    ]  # fmt: skip
    csv_header = [
        "type", "n", "base", "base_low", "base_high", "tuned", "tuned_low", "tuned_high",
        *numbers[:4], "p_holm", *numbers[4:],
    ]  # fmt: skip
    return [
        CopyBox(words["copy_markdown"], markdown_table(header, body)),
        CopyBox(words["copy_csv"], csv_table(csv_header, csv_rows)),
    ]


def what_ran(comparison: Comparison, base: Run, tuned: Run, words: Words) -> list[Block]:
    """Data, what the weights had seen, both configurations and environments, side by side."""
    if not base.config:
        header = [words["run"], words["file"]]
        rows = [Row([words[side], comparison[side]["folder"]]) for side in ("base", "tuned")]
        return [Table(header=header, rows=rows, text_columns=(0, 1))]
    named = [(words[side], comparison[side]) for side in ("base", "tuned")]
    statements = data_statements([(base, comparison["base"]), (tuned, comparison["tuned"])], words)
    return [Text(statements), *option_tables(named, words)]


def option_tables(named: NamedRows, words: Words) -> list[Block]:
    """Options and environments of all runs side by side, and what adapters say of themselves."""
    sides = [side for _, side in named]
    options = side_by_side([flat(side["config"]) for side in sides])
    environments = side_by_side([flat(side["environment"] or {}) for side in sides])
    differing = [row for row in options + environments if len(set(row[1:])) > 1]

    def table(title: str, rows: Sequence[Sequence[str]], folded: bool) -> Table:
        return Table(
            header=[words["option"], *(name for name, _ in named)],
            rows=[
                Row(row, tone="mark" if folded and len(set(row[1:])) > 1 else "") for row in rows
            ],
            title=title, text_columns=range(len(named) + 1), folded=folded,
        )  # fmt: skip

    blocks: list[Block] = [
        table(words["differing"], differing, False),
        table(words["all_options"], options, True),
        table(words["environment"], environments, True),
    ]
    for side in sides:
        if side["adapter_manifest"]:
            rows = [Row(item) for item in flat(side["adapter_manifest"]).items()]
            blocks.append(Table(
                header=[words["option"], words["value"]], rows=rows, folded=True,
                title=f"{words['adapter_table']} ({side['name']})", text_columns=(0, 1),
            ))  # fmt: skip
    return blocks


def data_statements(described: Sequence[tuple[Run, Mapping[str, Any]]], words: Words) -> list[str]:
    """What is scored, and which data trained the weights, as far as it is recorded.

    `described`: each run with what `comparison.describe` says of it.
    """
    base, first_side = described[0]
    config = base.config
    sample = words["all_of_it"]
    if config.get("limit"):
        sample = words["drawn"].format(limit=config["limit"], seed=config.get("seed"))
    data = data_words(*scored_data(base), words)
    lines = [words["scored_on"].format(data=f"{data} ({sample})")]
    for run, side in described:
        learned = (side["adapter_manifest"] or {}).get("data")
        if seen := side["trained_on"]:
            lines.append(words["weights_saw"].format(run=run.name, data="; ".join(seen)))
        elif learned and "rows" in learned:
            lines.append(words["adapter_rows"].format(
                run=run.name, rows=learned["rows"], held_out=learned["held_out_rows"],
                data=data_words(learned["source"], None, words),
            ))  # fmt: skip
        elif learned:
            lines.append(words["adapter_data"].format(
                run=run.name, questions=learned["questions"],
                held_out=learned["held_out_questions"],
                data=data_words(learned["source"], learned["split"], words),
            ))  # fmt: skip
        elif side["adapter"]:
            lines.append(words["adapter_unknown"].format(run=run.name, adapter=side["adapter"]))
    if not all(side["trained_on"] for _, side in described):
        lines.append(words["base_data"])
    problems = first_side["data_problems"]
    if problems and problems["count"]:
        lines.append(words["left_out"].format(count=problems["count"], first=problems["first"][0]))
    return lines


def data_words(source: str | None, split: str | None, words: Words) -> str:
    if split is None:
        return words["data_own"].format(data=source)
    return words["data_split"].format(split=split, root=source)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as one level of dotted names, values as JSON."""
    result: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            result[f"{prefix}{key}"] = "–" if value is None else text
    return result


def side_by_side(columns: Sequence[Words]) -> list[tuple[str, ...]]:
    """(key, the value in each column) of every key that any column has."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [(key, *(column.get(key, "–") for column in columns)) for key in keys]
