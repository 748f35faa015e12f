"""The sections of a run's report: figures side by side, curves, classes, the course's four, cases.

Each function turns a run of `run_reading` into blocks of `shared.report`; the figures are those of
metrics.json, the paired tests those of `paired`. Only the gallery opens files: its pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava_openset.report_cases import no_threshold
from llava_openset.report_texts import in_words
from llava_openset.run_reading import DECISIONS, LEFT_OUT, RANKING, OpenSetRun
from llava_openset.split_writing import TRAINING_CAVEAT
from shared.comparison_sections import flat
from shared.report import (
    Block,
    Chart,
    Charts,
    CopyBox,
    Row,
    Table,
    Text,
    Tone,
    csv_table,
    markdown_table,
    p_value,
)
from shared.significance import wilson_interval

Words = Mapping[str, str]
Entry = Mapping[str, Any]
ChartsByName = Mapping[str, Chart]

SOFT_HYPHEN = "\u00ad"  # in words that a narrow column may have to break
FEW = 20  # fewer samples than this behind a class's figure are said to be few
RATES = {
    "closed_set_accuracy", "known_accept_rate", "known_correct_and_accepted",
    "unknown_reject_rate", "normalised_accuracy", "fpr95_known_positive", "fpr95_unknown_positive",
}  # fmt: skip
# Published for the course experiment: LLaVA-1.5-7B in 4 bit, 240 pictures of 12 classes, 30 own
# ones. Counts (successes, n) that give its percentages: 75.4, 85.0, 88.7 and 86.7.
COURSE = {
    "closed_set_accuracy": (181, 240),
    "predicted_as_known": (204, 240),
    "accuracy_among_those": (181, 204),
    "unknown_predicted_as_unknown": (26, 30),
}


def rate(entry: Entry) -> str:
    """55.2 [45.0, 65.0], in percent."""
    return _with_limits(entry, 100, ".1f")


def ranked(entry: Entry) -> str:
    """0.712 [0.640, 0.780]"""
    return _with_limits(entry, 1, ".3f")


def shown(name: str, entry: Entry) -> str:
    return rate(entry) if name in RATES else ranked(entry)


def _with_limits(entry: Entry, unit: float, form: str) -> str:
    if entry["value"] is None:
        return "–"
    text = f"{unit * entry['value']:{form}}"
    if entry.get("low") is None or entry.get("high") is None:
        return text
    return f"{text} [{unit * entry['low']:{form}}, {unit * entry['high']:{form}}]"


def difference(test: Entry) -> str:
    """+0.042 [+0.010, +0.081]"""
    if test["difference"] is None:
        return "–"
    # a rounded -0.0 becomes 0.0 by adding 0
    value, low, high = (None if test[part] is None else round(test[part], 3) + 0.0
                        for part in ("difference", "low", "high"))  # fmt: skip
    return f"{value:+.3f}" if low is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def figures(described: Mapping[str, Any], score: str) -> Mapping[str, Entry]:
    return described["scores"][score]["figures"]


def about(run: OpenSetRun, rules: Mapping[str, Any] | None, words: Words) -> list[Block]:
    """What the figures may be taken for: training data, split, classes, threshold."""
    split = run.metrics["split"]
    caveats = run.metrics["caveats"]
    paragraphs = [in_words(line, words) for line in caveats]
    if not run.metrics["synthetic"]["data"] and not any("COCO" in line for line in caveats):
        paragraphs.insert(0, in_words(TRAINING_CAVEAT, words))
    paragraphs += [in_words(line, words) for line in run.metrics.get("notes", [])]
    paragraphs.append(words["threshold_rule"].format(
        criterion=run.metrics["scoring"].get("threshold_criterion") or "–"))  # fmt: skip
    if split.get("n_private"):
        paragraphs.append(words["own_pictures_there"].format(n=split["n_private"]))
    described = run.protocols[run.leading]
    openness = figures(described, described["headline"])["openness"]
    if openness["value"] is not None:
        paragraphs.append(words["openness_is"].format(value=f"{openness['value']:.3f}"))
    lead = described["parts"]
    rows = [
        Row([words[f"part_{part}"], *(str(lead[part][side]) for side in ("known", "unknown"))])
        for part in ("validation", "test")
        if part in lead
    ]
    sizes = Table(
        header=[words["part"], words["known"], words["unknown"]], rows=rows, title=words["parts"],
        note=words["parts_note"].format(protocol=run.leading),
    )  # fmt: skip
    named = Text([
        words["classes_known"].format(n=len(split["known"]), names=", ".join(split["known"])),
        words["classes_unknown"].format(
            n=len(split["unknown"]), names=", ".join(split["unknown"]) or "–"
        ),
    ])  # fmt: skip
    blocks: list[Block] = [Text(paragraphs), sizes, named]
    if rules is None:
        return [*blocks, Text([words["rules_missing"].format(folder=split["folder"])])]
    body = [
        Row([breakable(name), value])
        for name, value in flat({"unit": split["unit"], "seed": split["seed"], **rules}).items()
    ]
    return [
        *blocks,
        Table(header=[words["option"], words["value"]], rows=body, title=words["split_rules"],
              text_columns=(0, 1), folded=True),
    ]  # fmt: skip


def protocols(
    run: OpenSetRun,
    drawn: ChartsByName,
    tests: Mapping[str, Sequence[Mapping[str, Any]]],
    words: Words,
) -> list[Block]:
    """The protocols' figures on the same pictures, their thresholds, and the paired tests."""
    said = [words["protocols_what"]]
    if "two_query" in run.protocols and len(run.protocols) > 1:
        said.append(words["two_query_apart"])
    said += at_chance(run, words)
    blocks: list[Block] = [Text(said), *decision_tables(run, words)]
    if "decisions" in drawn:
        blocks.append(Charts([drawn["decisions"]]))
    blocks += [
        *ranking_tables(run, words),
        every_score_table(run, words),
        threshold_table(run, words),
    ]
    blocks += [test_table(family, rows, words) for family, rows in tests.items()]
    return blocks


def at_chance(run: OpenSetRun, words: Words) -> list[str]:
    """Of each protocol that names the known no better than a guess, that rejecting them is no
    merit. Under shuffled pictures that is what a control should show."""
    n = len(run.known_classes)
    if run.metrics.get("pictures") == "shuffled":
        return []
    named = {
        key: figures(described, described["headline"])["closed_set_accuracy"]["value"]
        for key, described in run.protocols.items()
    }
    return [
        words["at_chance"].format(
            protocol=key, named=f"{100 * value:.1f}", n=n, chance=f"{100 / n:.1f}"
        )
        for key, value in named.items()
        if value is not None and value <= 1 / n
    ]


def decision_tables(run: OpenSetRun, words: Words) -> list[Table]:
    scores = {key: run.protocols[key]["decision"]["score"] for key in run.leading_first}
    groups = (DECISIONS[:3], DECISIONS[3:])
    return figure_tables(run, scores, groups, "decisions", words)


def ranking_tables(run: OpenSetRun, words: Words) -> list[Table]:
    """Figures that need no threshold, of the headline scores."""
    scores = {key: run.protocols[key]["headline"] for key in run.leading_first}
    groups = (RANKING[:4], RANKING[4:6], RANKING[6:])
    return figure_tables(run, scores, groups, "ranking", words)


def figure_tables(
    run: OpenSetRun,
    scores: Mapping[str, str],
    groups: Sequence[Sequence[str]],
    name: str,
    words: Words,
) -> list[Table]:
    """A row for each protocol, by the score given for it; a column for each figure, and a table
    for each group, as no more columns with their intervals fit the page. The last has the note."""
    tables = []
    for place, names in enumerate(groups):
        rows = []
        for key, score in scores.items():
            sizes = run.protocols[key]["parts"]["test"]
            entries = figures(run.protocols[key], score)
            cells = [shown(figure, entries[figure]) for figure in names]
            n_both = f"{sizes['known']} / {sizes['unknown']}"
            rows.append(Row([breakable(f"{key}: {score}"), n_both, *cells]))
        title = words[name] if place == 0 else words["continued"].format(title=words[name])
        header = [f"{words['protocol']}: {words['score']}", words["n_both"]]
        tables.append(
            Table(
                header=[*header, *(words[figure] for figure in names)],
                rows=rows,
                title=title,
                note=words[f"{name}_note"] if place == len(groups) - 1 else "",
                text_columns=(0,),
            )
        )
    return tables


def every_score_table(run: OpenSetRun, words: Words) -> Table:
    rows = []
    for key in run.leading_first:
        described = run.protocols[key]
        sizes = described["parts"]["test"]
        for score in described["scores"]:
            entries = figures(described, score)
            rows.append(Row([breakable(key), breakable(score),
                             *(shown(name, entries[name]) for name in RANKING)],
                            sizes["known"] + sizes["unknown"]))  # fmt: skip
    return Table(
        header=[words["protocol"], words["score"], *(words[name] for name in RANKING)], rows=rows,
        title=words["ranking_every"], folded=True, text_columns=(0, 1),
    )  # fmt: skip


def breakable(name: str) -> str:
    """A name that a narrow column may break at its joints, by zero-width spaces."""
    return name.replace("_", "_\u200b").replace("-", "-\u200b")


def threshold_table(run: OpenSetRun, words: Words) -> Table:
    rows = []
    for key, described in run.protocols.items():
        for score, scored in described["scores"].items():
            chosen = scored["threshold"]
            value = "–" if chosen["value"] is None else f"{chosen['value']:.4g}"
            decides = score == described["decision"]["score"]
            notes = "; ".join(in_words(note, words) for note in chosen.get("notes", []))
            rows.append(Row(
                [breakable(f"{key}: {score}"), value,
                 in_words(str(chosen["criterion"] or "–"), words),
                 in_words(str(chosen["from"]), words),
                 f"{chosen['n_known']} / {chosen['n_unknown']}", words["yes"] if decides else "",
                 notes],
                tone="mark" if decides else "",
            ))  # fmt: skip
    header = [words[key] for key in ("score", "threshold", "criterion", "comes_from", "n_both",
                                     "decides", "notes")]  # fmt: skip
    return Table(header=header, rows=rows, title=words["thresholds"], folded=True,
                 note=words["thresholds_note"], text_columns=(0, 2, 3, 6))  # fmt: skip


def test_table(family: str, tests: Sequence[Mapping[str, Any]], words: Words) -> Block:
    """One family of paired tests, other minus base; says why there is none."""
    if not tests:
        return Text([f"{words[f'tests_{family}']}: {words[f'tests_{family}_none']}"])
    has_notes = any(test["note"] for test in tests)
    rows = []
    for test in tests:
        changed = f"{test['wins']} / {test['losses']}" if "wins" in test else ""
        rows.append(Row([
            breakable(pair_of(test)), str(test["n"]), difference(test),
            p_value(test["p_value"]), p_value(test["p_holm"]),
            *([changed] if family == "decisions" else []),
            *([in_words(test["note"] or "", words)] if has_notes else []),
        ], test["n"], test_tone(test)))  # fmt: skip
    header = [words[key] for key in ("pair", "n", "difference", "p", "p_holm")]
    header += [words["changed"]] if family == "decisions" else []
    header += [words["notes"]] if has_notes else []
    used = sorted({test["test"] for test in tests if test["test"]})
    return Table(
        header=header, rows=rows, title=words[f"tests_{family}"],
        note=words["tests_note"].format(
            n=sum(test["p_value"] is not None for test in tests),
            tests=words["comma"].join(words[name] for name in used) or "–",
        ),
        text_columns=(0, *([len(header) - 1] if has_notes else [])), folded=len(tests) > 3,
    )  # fmt: skip


def pair_of(test: Mapping[str, Any]) -> str:
    """Two protocols, or a protocol and two of its scores."""
    pair = f"{test['base']} → {test['other']}"
    return f"{test['protocol']}: {pair}" if test.get("protocol") else pair


def test_tone(test: Mapping[str, Any]) -> Tone:
    """A coloured edge where the adjusted p shows a difference."""
    if test["p_holm"] is None or test["p_holm"] > 0.05:
        return ""
    return "good" if test["difference"] > 0 else "bad"


def curves(run: OpenSetRun, drawn: ChartsByName, words: Words) -> list[Block]:
    first = [drawn[name] for name in ("roc", "risk_coverage", "pr_known", "pr_unknown")
             if name in drawn]  # fmt: skip
    blocks: list[Block] = [Text([words["curves_what"]])]
    if "roc" not in drawn:
        blocks.append(Text([words["curves_none"]]))
    if first:
        blocks.append(Charts(first))
    scores = [chart for name, chart in drawn.items() if name.startswith("roc_scores_")]
    histograms = [chart for name, chart in drawn.items() if name.startswith("scores_")]
    return [*blocks, *([Charts(scores)] if scores else []), Charts(histograms)]


def classes(run: OpenSetRun, drawn: ChartsByName, words: Words) -> list[Block]:
    """Confusion of every protocol, and each class's share of right decisions."""
    blocks: list[Block] = [Text([words["classes_what"]])]
    if run.without_threshold:
        blocks.append(Text([no_threshold(run, words)]))
    names = [f"confusion_{key}" for key in run.leading_first]
    matrices = [drawn[name] for name in names if name in drawn]
    blocks.append(Charts(matrices) if matrices else Text([words["confusion_none"]]))
    return [*blocks, *(class_table(run, key, words) for key in run.leading_first)]


def class_table(run: OpenSetRun, key: str, words: Words) -> Table:
    entries = run.protocols[key]["per_class"]
    rows = [
        Row([
            entry["class"], kind_of(entry, words), count_of(entry["n"]),
            str(entry["correct"]), rate(entry),
            "–" if entry["correct_before_rejection"] is None
            else str(entry["correct_before_rejection"]),
            entry["most_common_decision"] or "–",
        ], entry["n"], "mark" if entry["known"] and not entry["correct"] and entry["n"] else "")
        for entry in entries
    ]  # fmt: skip
    few = sum(entry["n"] < FEW for entry in entries)
    note = words["class_note"] + (
        " " + words["class_few"].format(n=few, total=len(entries), few=FEW) if few else ""
    )
    header = [
        words[name] for name in ("class", "kind", "n", "right", "share", "before", "commonest")
    ]
    return Table(
        header=header, rows=rows, title=words["class_table"].format(protocol=key), note=note,
        text_columns=(0, 1, 6), folded=key != run.leading,
    )  # fmt: skip


def kind_of(entry: Entry, words: Words) -> str:
    if entry["known"]:
        return words["known"]
    return words["query_left_out"] if entry.get("query") == LEFT_OUT else words["unknown"]


def count_of(n: int) -> str:
    return str(n) if n >= FEW else f"{n} (< {FEW})"


def course(run: OpenSetRun, words: Words) -> list[Block]:
    """The course's four figures, as published and as every protocol here gives them."""
    published = {name: wilson_interval(*counts) for name, counts in COURSE.items()}
    rows = []
    for name, (_, n) in COURSE.items():
        there = published[name]
        limits = {"value": there.mean, "low": there.low, "high": there.high}
        ours = [described["course_figures"][name] for described in run.protocols.values()]
        rows.append(Row([words[f"course_{name}"], f"{rate(limits)} (n {n})", *map(with_n, ours)]))
    own = [described["own_pictures"] for described in run.protocols.values()]
    if any(own):
        entries = [(o or {}).get("unknown_predicted_as_unknown") for o in own]
        cells = ["–" if entry is None else with_n(entry) for entry in entries]
        rows.append(Row([words["course_own_pictures"], "–", *cells]))
    table = Table(
        header=[words["figure"], words["published"], *run.protocols], rows=rows,
        title=words["course_table"], note=words["course_note"],
    )  # fmt: skip
    said = [words["course_why"]] if "course" in run.protocols else [
        words["course_not_run"], words["course_why"]]  # fmt: skip
    reasons = [words[f"course_differs_{i}"] for i in range(1, 6)]
    if run.metrics["synthetic"]["data"]:
        reasons.insert(0, words["course_synthetic"])
    return [table, Text([*said, *reasons])]


def with_n(entry: Entry) -> str:
    return f"{rate(entry)} (n {entry['n']})"


def missing(run: OpenSetRun, words: Words) -> list[Block]:
    """Every figure without a value, or without an interval, and why; alike ones in one row."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}  # (figure, reason) -> where
    for key, described in run.protocols.items():
        for score in described["scores"]:
            for name, entry in figures(described, score).items():
                reason = entry.get("reason") if entry["value"] is None else entry.get("note")
                if reason and name != "openness":  # which follows from the class lists
                    found.setdefault((name, reason), []).append((key, score))
    alike: dict[tuple[str, str], list[str]] = {}  # (reason, where) -> figures
    for (name, reason), where in found.items():
        place = places(run, where, words)
        alike.setdefault((reason, place), []).append(words[name].removesuffix(", %"))
    if not alike:
        return [Text([words["missing_none"]])]
    rows = [
        Row([words["comma"].join(names), in_words(reason, words), place])
        for (reason, place), names in alike.items()
    ]
    header = [words[key] for key in ("figure", "reason", "where")]
    return [Table(header=header, rows=rows, text_columns=(0, 1, 2), note=words["missing_note"])]


def places(run: OpenSetRun, where: Sequence[tuple[str, str]], words: Words) -> str:
    """Protocols and their scores; a protocol alone where all its scores are meant."""
    by_protocol: dict[str, list[str]] = {}
    for key, score in where:
        by_protocol.setdefault(key, []).append(score)
    said = [
        breakable(key if len(scores) == len(run.protocols[key]["scores"])
                  else f"{key}: {' / '.join(scores)}")
        for key, scores in by_protocol.items()
    ]  # fmt: skip
    return words["comma"].join(said)


def figure_rows(run: OpenSetRun) -> tuple[list[str], list[list[object]]]:
    """Header and rows of figures.csv: every figure of every score as metrics.json has it."""
    header = ["protocol", "score", "figure", "value", "low", "high", "n", "n_pictures", "note"]
    rows: list[list[object]] = [
        [key, score, name, entry["value"], entry.get("low"), entry.get("high"), entry.get("n"),
         entry.get("n_pictures"), entry.get("reason") or entry.get("note") or ""]
        for key, described in run.protocols.items()
        for score in described["scores"]
        for name, entry in figures(described, score).items()
    ]  # fmt: skip
    return header, rows


def copy_boxes(run: OpenSetRun, words: Words) -> list[Block]:
    tables = [*decision_tables(run, words), *ranking_tables(run, words)]
    text = "\n\n".join(
        markdown_table(table.header, [row.cells for row in table.rows]) for table in tables
    ).replace(SOFT_HYPHEN, "")
    return [CopyBox(words["copy_markdown"], text),
            CopyBox(words["copy_csv"], csv_table(*figure_rows(run)))]  # fmt: skip


def what_ran(run: OpenSetRun, words: Words) -> list[Block]:
    asked = Table(
        header=[words["protocol"], words["prompt"], words["rule"]],
        rows=[Row([breakable(key), described["prompt"] or "–", in_words(described["rule"], words)])
              for key, described in run.protocols.items()],
        title=words["prompts"], text_columns=(0, 1, 2),
    )  # fmt: skip
    tables = [
        Table(header=[words["option"], words["value"]],
              rows=[Row([breakable(name), value]) for name, value in flat(content).items()],
              title=words[title], text_columns=(0, 1), folded=True)
        for title, content in (("scoring_options", run.metrics["scoring"]),
                               ("all_options", run.config), ("environment", run.environment))
    ]  # fmt: skip
    return [asked, *tables]
