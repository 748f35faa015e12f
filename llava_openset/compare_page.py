"""The page and the text summary of a comparison, from what `comparing.compare` computed.

Same pictures: a column for each run, paired tests, pictures on which the runs differ. Several
splits: a column for each split, mean and interval. Reads the gallery's pictures. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from llava_openset import report_charts
from llava_openset.compare_texts import TEXTS
from llava_openset.comparing import PICTURES
from llava_openset.paired import decision_is_right
from llava_openset.report_cases import answer
from llava_openset.report_page import banner, synthetic_notice
from llava_openset.report_sections import (
    RATES,
    SOFT_HYPHEN,
    breakable,
    difference,
    ranked,
    shown,
    test_tone,
)
from llava_openset.report_texts import in_words
from llava_openset.run_reading import DECISIONS, RANKING, OpenSetRun
from shared import charts
from shared.report import (
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
    csv_table,
    markdown_table,
    p_value,
    thumbnail,
)
from shared.significance import FEW_CLUSTERS

Comparison = Mapping[str, Any]
Words = Mapping[str, str]
CARDS = 9
MANY_TESTS = 15  # more are folded
SIDES = (("by_decision", DECISIONS), ("by_headline", RANKING))


def make_page(
    comparison: Comparison,
    runs: Sequence[OpenSetRun],
    *,
    language: Language,
    made_by: str,
    date: str,
) -> tuple[Report, dict[str, Chart]]:
    """The page, and its charts by the name of their PNG file."""
    words = TEXTS[language]
    labels = TEXTS[charts.chart_language(language)]  # those that the charts' fonts can draw
    paired = comparison["kind"] == PICTURES
    drawn = page_charts(comparison, runs, words, labels)
    sections = [Section("figures", words["figures"], figures(comparison, drawn, words))]
    if paired:
        sections += [
            Section("tests", words["tests"], tests(comparison, words)),
            Section("cases", words["cases"], cases(comparison, runs, words)),
        ]
    else:
        sections.append(Section("splits", words["splits"], splits(comparison, words)))
    sections += [
        Section("take-away", words["take_away"], copy_boxes(comparison, words)),
        Section("what-ran", words["what_ran"], [differing(comparison, words)]),
    ]
    names = [run["label"] for run in comparison["runs"]]
    report = Report(
        title=words["title_pictures" if paired else "title_splits"].format(n=len(runs)),
        subtitle=" · ".join([*names, *comparison["protocols"]]),
        verdict=verdict(comparison, words),
        tiles=tiles(comparison, words),
        sections=sections,
        language=language,
        synthetic=synthetic_notice(runs, words),
        banner_title=words["banner_title"],
        banner=banner(runs, words),
        footer=[
            words["method_pictures" if paired else "method_splits"].format(seed=comparison["seed"]),
            words["compared_by"].format(command=made_by, date=date),
        ],
    )
    return report, drawn


def summary(comparison: Comparison, report: str, language: Language) -> str:
    """The last lines on the terminal."""
    words = TEXTS[language]
    lines = []
    if any(comparison["synthetic"].values()):
        lines.append(f"SYNTHETIC  {words['synthetic_short']}")
    lines.append(verdict(comparison, words))
    lead = comparison["protocols"][0]
    for run, found in zip(comparison["runs"], comparison["figures"][lead], strict=True):
        lines.append(words["summary_run"].format(
            name=run["label"], protocol=lead, auroc=ranked(found["by_headline"]["auroc"]),
            normalised=shown("normalised_accuracy", found["by_decision"]["normalised_accuracy"]),
        ))  # fmt: skip
    for family, rows in comparison.get("tests", {}).items():
        for test in rows:
            if test["protocol"] == lead:
                lines.append(words["summary_test"].format(
                    family=words[f"family_{family}"], pair=f"{test['base']} → {test['other']}",
                    difference=difference(test), p=p_value(test["p_holm"]), n=test["n"],
                ))  # fmt: skip
    return "\n".join([*lines, words["summary_report"].format(path=report)])


def verdict(comparison: Comparison, words: Words) -> str:
    if comparison["kind"] != PICTURES:
        lead = comparison["protocols"][0]
        mean = comparison["over_splits"][lead]["auroc"]
        if mean["value"] is None:
            return words["verdict_no_mean"].format(protocol=lead, reason=mean["reason"])
        key = "verdict_mean" if mean["low"] is not None else "verdict_mean_alone"
        return words[key].format(protocol=lead, n=mean["n"], auroc=ranked(mean))
    lead = comparison["protocols"][0]
    names = [run["label"] for run in comparison["runs"]]
    values = [found["by_headline"]["auroc"]["value"] for found in comparison["figures"][lead]]
    if any(value is None for value in values):
        return words["verdict_no_auroc"].format(protocol=lead)
    best = values.index(max(values))
    against: dict[bool, list[str]] = {True: [], False: []}
    for test in comparison["tests"]["auroc"]:
        if test["protocol"] == lead and names[best] in (test["base"], test["other"]):
            other = test["other"] if test["base"] == names[best] else test["base"]
            p = test["p_holm"]
            against[p is not None and p <= 0.05].append(other)
    said = words["verdict_best"].format(
        name=names[best], protocol=lead,
        auroc=ranked(comparison["figures"][lead][best]["by_headline"]["auroc"]),
    )  # fmt: skip
    if against[True]:
        said += words["verdict_above"].format(names=words["comma"].join(against[True]))
    if against[False]:
        said += words["verdict_not_apart"].format(names=words["comma"].join(against[False]))
    return said


def tiles(comparison: Comparison, words: Words) -> list[Tile]:
    lead = comparison["protocols"][0]
    found = []
    for run, chosen in zip(comparison["runs"], comparison["figures"][lead], strict=True):
        value, _, limits = ranked(chosen["by_headline"]["auroc"]).partition(" ")
        size = words["tile_size"].format(
            protocol=lead, known=chosen["n_known"], unknown=chosen["n_unknown"]
        )
        found.append(Tile(f"{run['label']}: AUROC", value, f"{limits} · {size}".lstrip(" ·")))
    return found


def page_charts(
    comparison: Comparison, runs: Sequence[OpenSetRun], words: Words, labels: Words
) -> dict[str, Chart]:
    """AUROC and normalised accuracy by protocol, a bar for each run; ROC of the leading one."""
    names = [run["label"] for run in comparison["runs"]]
    drawn = {}
    for name, side in (("auroc", "by_headline"), ("normalised_accuracy", "by_decision")):
        keys = [
            key
            for key in comparison["protocols"]
            if any(found[side][name]["value"] is not None for found in comparison["figures"][key])
        ]
        if not keys:
            continue
        series = {
            label: [report_charts.in_percent(comparison["figures"][key][i][side][name])
                    for key in keys]
            for i, label in enumerate(names)
        }  # fmt: skip
        png = charts.accuracy_bars(
            keys, series, x_label=labels[f"axis_{name}"],
            reference=(labels["chance"], [50.0 if name == "auroc" else None] * len(keys)),
        )  # fmt: skip
        drawn[name] = Chart(png, words[f"chart_{name}"], words["alt_bars"])
    lead = comparison["protocols"][0]
    tables = {
        label: report_charts.test_columns(run, lead, run.protocols[lead]["headline"])
        for label, run in zip(names, runs, strict=True)
    }
    for kind in ("roc", "risk_coverage"):
        title = f"{lead}: {words[f'chart_{kind}']}"
        chart = report_charts.curves(kind, tables, runs[0], {}, words, labels, title)
        if chart:
            drawn[f"{kind}_{lead}"] = chart
    return drawn


def figures(comparison: Comparison, drawn: Mapping[str, Chart], words: Words) -> list[Block]:
    paired = comparison["kind"] == PICTURES
    blocks: list[Block] = [Text([words["figures_pictures" if paired else "figures_splits"]])]
    if drawn:
        blocks.append(Charts(list(drawn.values())))
    return [*blocks, *(figure_table(comparison, key, words) for key in comparison["protocols"])]


def figure_table(comparison: Comparison, key: str, words: Words) -> Table:
    found = comparison["figures"][key]
    header, rows = figure_cells(comparison, key, words)
    sizes = [words["n_both"], *(f"{f['n_known']} / {f['n_unknown']}" for f in found)]
    return Table(
        header=header, rows=[Row(sizes), *map(Row, rows)], title=key,
        note=words["figure_note"].format(
            decision=found[0]["decision"], headline=found[0]["headline"]
        ),
        folded=key != comparison["protocols"][0],
    )  # fmt: skip


def figure_cells(
    comparison: Comparison, key: str, words: Words
) -> tuple[list[str], list[list[str]]]:
    rows = [
        [words[name], *(shown(name, found[side][name]) for found in comparison["figures"][key])]
        for side, names in SIDES
        for name in names
    ]
    return [words["figure"], *(run["label"] for run in comparison["runs"])], rows


def tests(comparison: Comparison, words: Words) -> list[Block]:
    blocks: list[Block] = []
    for family, rows in comparison["tests"].items():
        has_counts = any("wins" in test for test in rows)
        has_notes = any(test["note"] for test in rows)
        body = [
            Row([
                breakable(test["protocol"]), f"{test['base']} → {test['other']}", str(test["n"]),
                difference(test), p_value(test["p_value"]), p_value(test["p_holm"]),
                *([changed(test)] if has_counts else []),
                *([in_words(test["note"] or "", words)] if has_notes else []),
            ], test["n"], test_tone(test))
            for test in rows
        ]  # fmt: skip
        header = [words[key] for key in ("protocol", "pair", "n", "difference", "p", "p_holm")]
        header += [words["changed"]] if has_counts else []
        used = sorted({test["test"] for test in rows if test["test"]})
        blocks.append(Table(
            header=[*header, *([words["notes"]] if has_notes else [])],
            rows=body, title=words[f"between_{family}"],
            note=words["between_note"].format(
                n=sum(test["p_value"] is not None for test in rows),
                tests=words["comma"].join(words[name] for name in used) or "–",
            ),
            text_columns=(0, 1, len(header)), folded=len(rows) > MANY_TESTS,
        ))  # fmt: skip
    n = comparison["figures"][comparison["protocols"][0]][0]
    if min(n["n_known"], n["n_unknown"]) < FEW_CLUSTERS:
        blocks.insert(0, Text([words["few_samples"].format(
            known=n["n_known"], unknown=n["n_unknown"])]))  # fmt: skip
    return blocks


def changed(test: Mapping[str, Any]) -> str:
    return f"{test['wins']} / {test['losses']}" if "wins" in test else "–"


def splits(comparison: Comparison, words: Words) -> list[Block]:
    """Mean and interval of every figure over the splits, by protocol; and what the splits are."""
    blocks: list[Block] = [Text([words["splits_what"].format(n=len(comparison["runs"]))])]
    for key, found in comparison["over_splits"].items():
        rows = [
            Row([words[name], shown(name, figure),
                 spread(name, figure), str(figure["n"]),
                 words_of_note(figure, words)])
            for name, figure in found.items()
        ]  # fmt: skip
        header = [words[name] for name in ("figure", "mean", "sd", "n_splits", "notes")]
        blocks.append(Table(header=header, rows=rows, title=key, text_columns=(0, 4),
                            folded=key != comparison["protocols"][0]))  # fmt: skip
    rows = [
        Row([run["label"], str(run["split"]["seed"]), ", ".join(run["split"]["known"]),
             ", ".join(run["split"]["unknown"])])
        for run in comparison["runs"]
    ]  # fmt: skip
    header = [words[name] for name in ("split", "seed", "known", "unknown")]
    return [*blocks, Table(header=header, rows=rows, title=words["split_table"],
                           text_columns=(0, 2, 3))]  # fmt: skip


def spread(name: str, figure: Mapping[str, Any]) -> str:
    """Standard deviation over the splits, in the unit of the figure."""
    if figure["sd"] is None:
        return "–"
    return f"{100 * figure['sd']:.1f}" if name in RATES else f"{figure['sd']:.3f}"


def words_of_note(figure: Mapping[str, Any], words: Words) -> str:
    return in_words(figure.get("reason") or figure.get("note") or "", words)


def cases(comparison: Comparison, runs: Sequence[OpenSetRun], words: Words) -> list[Block]:
    """Pictures on whose known/unknown decision the runs differ, under the leading protocol."""
    lead = comparison["protocols"][0]
    headline = runs[0].protocols[lead]["headline"]
    names = [run["label"] for run in comparison["runs"]]
    by_run = [
        {row["sample_id"]: row for row in run.test_rows(lead, left_out=False)} for run in runs
    ]
    strata: dict[str, list[str]] = {"case_divided_unknown": [], "case_divided_known": [],
                                    "case_all_wrong": []}  # fmt: skip
    for key, row in by_run[0].items():
        right = {bool(decision_is_right(rows[key])) for rows in by_run}
        if right == {True, False}:
            strata[f"case_divided_{'known' if row['known'] else 'unknown'}"].append(key)
        elif right == {False}:
            strata["case_all_wrong"].append(key)
    blocks: list[Block] = [Text([words["cases_between"].format(protocol=lead)])]
    for name, keys in strata.items():
        drawn = random.Random(comparison["seed"]).sample(range(len(keys)), min(CARDS, len(keys)))
        chosen = [keys[i] for i in sorted(drawn)]
        note = ""
        if keys:
            note = words["all_shown" if len(chosen) == len(keys) else "order_sampled"].format(
                shown=len(chosen), total=len(keys), seed=comparison["seed"]
            )
        cards = [
            Card(
                picture=thumbnail(runs[0].picture(by_run[0][key])),
                title=by_run[0][key]["label"],
                facts=[(words["truth"], words["known" if by_run[0][key]["known"] else "unknown"])],
                answers=[answer(label, rows[key], headline, words)
                         for label, rows in zip(names, by_run, strict=True)],
                note=by_run[0][key]["image"],
            )
            for key in chosen
        ]  # fmt: skip
        blocks.append(Gallery(words[name], note, cards))
    return blocks


def copy_boxes(comparison: Comparison, words: Words) -> list[Block]:
    lead = comparison["protocols"][0]
    header = ["protocol", "figure"]
    header += [f"{run['label']} {part}" for run in comparison["runs"]
               for part in ("value", "low", "high")]  # fmt: skip
    rows = [
        [key, name, *(found[side][name].get(part) for found in comparison["figures"][key]
                      for part in ("value", "low", "high"))]
        for key in comparison["protocols"]
        for side, names in SIDES
        for name in names
    ]  # fmt: skip
    markdown = markdown_table(*figure_cells(comparison, lead, words)).replace(SOFT_HYPHEN, "")
    return [CopyBox(f"{words['copy_markdown']} ({lead})", markdown),
            CopyBox(words["copy_csv"], csv_table(header, rows))]  # fmt: skip


def differing(comparison: Comparison, words: Words) -> Block:
    if not comparison["differing"]:
        return Text([words["nothing_differs"]])
    names = [run["label"] for run in comparison["runs"]]
    return Table(
        header=[words["option"], *names], rows=list(map(Row, comparison["differing"])),
        title=words["differing"], text_columns=range(len(names) + 1),
    )  # fmt: skip
