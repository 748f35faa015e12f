"""The comparison of caption runs as a page and as text, in both languages.

Takes what `caption_comparison.compare_all_captions` computed; blocks and words are those of the
other comparisons (`comparison_sections`, `comparison_texts`) where they say the same.

    python -m pytest tests/shared/test_caption_runs.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared import charts
from shared import comparison_sections as parts
from shared.caption_comparison import compare_all_captions, rescored
from shared.caption_runs import HEADLINES, NAMES, named, with_interval
from shared.comparison_many_report import banner
from shared.comparison_report import synthetic_notice
from shared.comparison_sections import FindPicture, Words
from shared.comparison_texts import TEXTS as SHARED
from shared.report import (
    Answer,
    Block,
    Card,
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
    markdown_table,
    p_value,
    thumbnail,
)
from shared.runs import Run
from shared.significance import FEW_CLUSTERS

OWN: dict[str, dict[str, str]] = {
    "en": {
        "title_captions": "{model}: captions compared",
        "better_captions": "{second} captions better than {first}: {figures}.",
        "worse_captions": "{second} captions worse than {first}: {figures}.",
        "unclear_captions": "No clear difference between {first} and {second}: {figures}.",
        "mixed_captions": "{first} and {second} differ, each metric in its own way: {figures}.",
        "metrics": "Metrics",
        "metric": "Metric",
        "metrics_note": "As pycocoevalcap gives them (papers print them times 100), over {n:,} "
        "pictures, with 95 % intervals: bootstrap over pictures, 2,000 resamples, seed {seed}.",
        "differences_note": "Second minus first, both drawn at the same pictures; METEOR 1.5 is "
        "the mean over pictures here. p: the two captions of pictures swapped at random, the "
        "corpus figure computed anew each time. p (Holm): of BLEU-4 and CIDEr, over both and all "
        "pairs. Better, equal, worse count pictures by their own figure. A coloured edge: p (Holm) "
        "is at most 0.05.",
        "chart_metrics": "Metrics but CIDEr, times 100",
        "axis_metrics": "figure times 100",
        "how_scored": "How captions are scored",
        "tokens": "Tokens: {tokenizer}. Only figures of one tokenizer may stand side by side.",
        "cider_note": "CIDEr-D weighs words by these pictures' references: it holds for this set "
        "only. A picture's CIDEr decides what is better or worse in the examples.",
        "completeness_captions": "Errors and empty captions count as empty in every metric.",
        "drawn": "{limit:,} pictures drawn with seed {seed}",
        "unusable": "Errors, empty and cut captions",
        "chart_outcomes": "Pictures captioned better, equally well, worse",
    },
    "zh": {
        "title_captions": "{model}：图片描述对比",
        "better_captions": "{second} 的描述优于 {first}：{figures}。",
        "worse_captions": "{second} 的描述差于 {first}：{figures}。",
        "unclear_captions": "{first} 与 {second} 没有明确差别：{figures}。",
        "mixed_captions": "{first} 与 {second} 有差别，但各指标方向不同：{figures}。",
        "metrics": "指标",
        "metric": "指标",
        "metrics_note": "数值与 pycocoevalcap 相同（论文通常乘以 100），共 {n:,} 张图片；"
        "95 % 区间：按图片自助抽样 2,000 次，种子 {seed}。",
        "differences_note": "后者减前者，两者抽取相同的图片；METEOR 1.5 取各图片的平均。p：随机交换"
        "同一图片的两条描述并重新计算整体数值。p (Holm)：BLEU-4 与 CIDEr，对两者及各对比较校正。"
        "变好、相同、变差按各图片自己的数值计数。彩色边线：p (Holm) 不超过 0.05。",
        "chart_metrics": "除 CIDEr 外的指标，乘以 100",
        "axis_metrics": "数值 × 100",
        "how_scored": "描述如何评分",
        "tokens": "分词：{tokenizer}。只有同一分词下的数值才能并列。",
        "cider_note": "CIDEr-D 按这些图片的参考描述给词加权，只对这一组图片成立。"
        "示例中的变好与变差以图片的 CIDEr 为准。",
        "completeness_captions": "出错与空描述在所有指标中都按空描述计。",
        "drawn": "以种子 {seed} 抽取 {limit:,} 张图片",
        "unusable": "出错、空和被截断的描述",
        "chart_outcomes": "描述变好、相同、变差的图片",
    },
}
TEXTS: dict[str, dict[str, str]] = {language: SHARED[language] | OWN[language] for language in OWN}

Comparison = Mapping[str, Any]


def captions_compared(
    runs: Sequence[Run],
    names: Sequence[str],
    page: str,
    *,
    seed: int,
    reasons: Sequence[str],
    language: Language,
    **settings: Any,
) -> tuple[dict[str, Any], Report, str]:
    """Figures, page and summary of caption runs, for an experiment's compare.py.

    `page`: where the report will lie, for the summary; `settings`: the rest of
    `make_caption_report`. Raises UserError when there is no picture that all runs hold.
    """
    runs = rescored(runs, seed)
    comparison = compare_all_captions(runs, names=names, seed=seed)
    report = make_caption_report(comparison, runs, reasons=reasons, language=language, **settings)
    return comparison, report, caption_summary(comparison, reasons, page, language)


def make_caption_report(
    comparison: Comparison,
    runs: Sequence[Run],
    *,
    model: str,
    reasons: Sequence[str],
    find_picture: FindPicture,
    language: Language,
    made_by: str,
    date: str,
) -> Report:
    """`runs` as the comparison was made of; `reasons` say why they are not comparable."""
    words, labels = TEXTS[language], TEXTS[charts.chart_language(language)]
    names = labels_of(comparison)
    described = list(zip(runs, comparison["runs"], strict=True))
    ran: list[Block] = [
        Text(parts.data_statements(described, words)),
        *parts.option_tables(list(zip(names, comparison["runs"], strict=True)), words),
    ]
    return Report(
        title=words["title_captions"].format(model=model),
        subtitle=" · ".join(
            [*names, words["pictures"].format(n=comparison["n_pictures"]), comparison["metric"]]
        ),
        verdict=verdict(comparison, words),
        tiles=tiles(comparison, words),
        sections=[
            Section("results", words["results"], results(comparison, words, labels)),
            Section("examples", words["examples"],
                    galleries(comparison, runs, find_picture, words)),
            Section("scoring", words["how_scored"], scoring(comparison, words)),
            Section("take-away", words["take_away"], copy_boxes(comparison, words)),
            Section("what-ran", words["what_ran"], ran),
        ],
        language=language,
        synthetic=synthetic_notice(comparison, words),
        banner_title=words["banner_title"],
        banner=banner(comparison, runs, reasons, words, comparison["n_pictures"]),
        footer=[words["made_by"].format(command=made_by, date=date)],
    )  # fmt: skip


def caption_summary(
    comparison: Comparison, reasons: Sequence[str], report: str, language: Language
) -> str:
    """The last lines on the terminal: each run's figures, the headlines' differences, the page."""
    words = TEXTS[language]
    lines = [words["summary_forced"].format(reason=reason) for reason in reasons]
    if notice := synthetic_notice(comparison, words):
        lines.append(f"SYNTHETIC  {notice}")
    for name, captions in zip(labels_of(comparison), comparison["captions"], strict=True):
        said = ", ".join(f"{NAMES[key]} {with_interval(captions, key)}" for key in HEADLINES)
        lines.append(f"{name}  {said}")
    lines += [pair_sentence(comparison, pair, words) for pair in comparison["pairs"]]
    return "\n".join([*lines, words["summary_report"].format(path=report)])


def labels_of(comparison: Comparison) -> list[str]:
    return [run["label"] for run in comparison["runs"]]


def difference(row: Mapping[str, Any]) -> str:
    """+0.0512 [+0.0301, +0.0720]"""
    if row["low"] is None:
        return f"{row['difference']:+.4f}"
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def direction(row: Mapping[str, Any]) -> int:
    """1 better, -1 worse, 0 where interval or Holm's p leaves it open."""
    open_interval = row["low"] is None or row["low"] <= 0 <= row["high"]
    if open_interval or row["p_holm"] is None or row["p_holm"] > 0.05:
        return 0
    return 1 if row["difference"] > 0 else -1


def pair_sentence(comparison: Comparison, pair: Mapping[str, Any], words: Words) -> str:
    """Better or worse only when a headline clearly is and the other is not the other way."""
    names = labels_of(comparison)
    rows = {name: pair["metrics"][name] for name in HEADLINES if name in pair["metrics"]}
    found = {direction(row) for row in rows.values()} - {0}
    kind = {0: "unclear", 1: "better" if 1 in found else "worse", 2: "mixed"}[len(found)]
    figures = words["list_comma"].join(
        f"{NAMES[name]} {difference(row)}, p {p_value(row['p_holm'])}" for name, row in rows.items()
    )
    return words[f"{kind}_captions"].format(
        first=names[pair["first"]], second=names[pair["second"]], figures=figures
    )


def verdict(comparison: Comparison, words: Words) -> str:
    said = " ".join(pair_sentence(comparison, pair, words) for pair in comparison["pairs"])
    if comparison["n_pictures"] < FEW_CLUSTERS:
        said += " " + words["few_pictures"].format(n=comparison["n_pictures"])
    return said


def tiles(comparison: Comparison, words: Words) -> list[Tile]:
    """Each run's headlines; of two runs their differences."""
    shown = []
    for name in HEADLINES:
        for label, captions in zip(labels_of(comparison), comparison["captions"], strict=True):
            value, limits = captions["corpus"][name], captions["intervals"].get(name, {})
            note = ""
            if limits.get("low") is not None:
                span = f"[{limits['low']:.3f}, {limits['high']:.3f}]"
                note = words["interval_note"].format(interval=span)
            said = "–" if value is None else f"{value:.3f}"
            shown.append(Tile(f"{NAMES[name]}, {label}", said, note))
        if len(comparison["pairs"]) == 1 and name in comparison["pairs"][0]["metrics"]:
            row = comparison["pairs"][0]["metrics"][name]
            tone: Tone = {1: "good", -1: "bad"}.get(direction(row), "")
            shown.append(Tile(f"{NAMES[name]}, {words['difference']}", f"{row['difference']:+.3f}",
                              f"{difference(row)}, p {p_value(row['p_holm'])}", tone))  # fmt: skip
    return shown


def results(comparison: Comparison, words: Words, labels: Words) -> list[Block]:
    drawn = [name for name in named(comparison["captions"][0]["corpus"]) if name != "CIDEr"]
    series = {
        label: [_times_100(captions, name) for name in drawn]
        for label, captions in zip(labels_of(comparison), comparison["captions"], strict=True)
    }
    chart = charts.accuracy_bars(
        [NAMES[name] for name in drawn], series, x_label=labels["axis_metrics"]
    )
    outcomes = [
        (charts.drawable(f"{NAMES[name]} {pair_name(comparison, pair)}", 30), row)
        for pair in comparison["pairs"]
        for name, row in pair["metrics"].items()
        if name in HEADLINES
    ]
    shares = charts.outcome_bars(
        [name for name, _ in outcomes],
        [(row["wins"], row["ties"], row["losses"]) for _, row in outcomes],
        [labels[f"{name}_label"] for name in ("better", "equal", "worse")],
    )
    header, body = metric_cells(comparison, words)
    note = words["metrics_note"].format(n=comparison["n_pictures"], seed=comparison["seed"])
    return [
        Charts([Chart(chart, words["chart_metrics"], words["alt_bars"]),
                Chart(shares, words["chart_outcomes"], words["alt_outcomes"])]),
        Table(header, [Row(cells, comparison["n_pictures"]) for cells in body],
              title=words["metrics"], note=note),
        *(pair_table(comparison, pair, words) for pair in comparison["pairs"]),
    ]  # fmt: skip


def _times_100(captions: Mapping[str, Any], name: str) -> dict[str, float | None]:
    limits = captions["intervals"].get(name, {})
    figures = {"value": captions["corpus"].get(name)}
    figures |= {key: limits.get(key) for key in ("low", "high")}
    return {key: None if value is None else 100 * value for key, value in figures.items()}


def metric_cells(comparison: Comparison, words: Words) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(n for c in comparison["captions"] for n in named(c["corpus"])))
    body = [
        [NAMES[name], *(with_interval(captions, name) if name in captions["corpus"] else "–"
                        for captions in comparison["captions"])]
        for name in names
    ]  # fmt: skip
    return [words["metric"], *labels_of(comparison)], body


def pair_name(comparison: Comparison, pair: Mapping[str, Any]) -> str:
    names = labels_of(comparison)
    return f"{names[pair['first']]} → {names[pair['second']]}"


def pair_table(comparison: Comparison, pair: Mapping[str, Any], words: Words) -> Table:
    def tone(row: Mapping[str, Any]) -> Tone:
        return {1: "good", -1: "bad", 0: ""}[direction(row)] if "p_holm" in row else ""

    return Table(
        header=pair_header(words),
        rows=[
            Row(cells, row["n"], tone(row))
            for cells, row in zip(pair_cells(pair), pair["metrics"].values(), strict=True)
        ],
        title=pair_name(comparison, pair),
        note=words["differences_note"],
    )


def pair_header(words: Words) -> list[str]:
    return [words[key] for key in ("metric", "difference", "p", "p_holm", "outcomes")]


def pair_cells(pair: Mapping[str, Any]) -> list[list[str]]:
    return [
        [NAMES[name], difference(row), p_value(row["p_value"]),
         p_value(row["p_holm"]) if "p_holm" in row else "–",
         f"{row['wins']} / {row['ties']} / {row['losses']}"]
        for name, row in pair["metrics"].items()
    ]  # fmt: skip


def galleries(
    comparison: Comparison, runs: Sequence[Run], find_picture: FindPicture, words: Words
) -> list[Block]:
    return [
        Gallery(
            words[name],
            parts.stratum_note(name, stratum, comparison["seed"], words),
            [card(key, comparison, runs, find_picture, words) for key in stratum["shown"]],
        )
        for name, stratum in comparison["gallery"].items()
    ]


def card(
    key: str, comparison: Comparison, runs: Sequence[Run], find_picture: FindPicture, words: Words
) -> Card:
    answers = []
    for label, run in zip(labels_of(comparison), runs, strict=True):
        record, figures = run.records[key], run.scored[key]["scores"]
        if record["status"] != "ok":
            answers.append(Answer(label, record["error"], words["error_note"], "stop"))
            continue
        notes = [f"{NAMES[name]} {figures[name]:.2f}" for name in HEADLINES if name in figures]
        if record["finish_reason"] == "length":
            notes.append(words["cut_note"])
        answers.append(Answer(label, record["answer"], ", ".join(notes)))
    record = runs[0].records[key]
    references = " / ".join(dict.fromkeys(record["references"]))
    return Card(
        picture=thumbnail(find_picture(record)),
        title=str(record["image_id"]),
        answers=answers,
        facts=[(words["references"], references)],
        note=record["image"],
    )


def scoring(comparison: Comparison, words: Words) -> list[Block]:
    captions = comparison["captions"][0]
    said = [words["tokens"].format(tokenizer=captions["tokenizer"]), words["cider_note"]]
    said += dict.fromkeys(note for c in comparison["captions"] for note in c["notes"].values())
    keys = ("expected", "errors", "empty", "cut")
    counts = Table(
        header=[words["run"], *(words[key] for key in keys)],
        rows=[
            Row([label, *(f"{row[key]:,}" for key in keys)])
            for label, row in zip(labels_of(comparison), comparison["counts"], strict=True)
        ],
        title=words["completeness"],
        note=words["completeness_captions"],
    )
    return [Text(said), counts]


def copy_boxes(comparison: Comparison, words: Words) -> list[Block]:
    """Both tables as Markdown, and the runs' figures as CSV with plain numbers."""
    names = labels_of(comparison)
    tables = [markdown_table(*metric_cells(comparison, words))]
    for pair in comparison["pairs"]:
        title = pair_name(comparison, pair)
        tables.append(f"{title}\n\n{markdown_table(pair_header(words), pair_cells(pair))}")
    header = ["metric", *(f"{name} {key}" for name in names for key in ("value", "low", "high"))]
    rows = []
    for name in named(comparison["captions"][0]["corpus"]):
        cells: list[object] = [name]
        for captions in comparison["captions"]:
            limits = captions["intervals"].get(name, {})
            cells += [captions["corpus"].get(name), limits.get("low"), limits.get("high")]
        rows.append(cells)
    return [
        CopyBox(words["copy_markdown"], "\n\n".join(tables)),
        CopyBox(words["copy_csv"], csv_table(header, rows)),
    ]
