"""The comparison as a page and as text: notices, verdict, headline figures, and the sections.

Takes what `comparison.compare` computed and the paired records; both languages. `texts` are the
words of `comparison_texts` and the experiment's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared import charts
from shared import comparison_sections as parts
from shared.comparison import Pair, scored_data
from shared.comparison_sections import Comparison, FindPicture, Words, told_apart
from shared.report import Language, Report, Section, Tile, interval, p_value, percent, points
from shared.runs import Run
from shared.significance import FEW_CLUSTERS


def make_report(
    comparison: Comparison,
    base: Run,
    tuned: Run,
    pairs: Sequence[Pair],
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
    overall = comparison["overall"]
    is_scored = overall["n"] > 0
    by_id = {pair.sample_id: pair for pair in pairs}
    sections = []
    if is_scored:
        sections.append(
            Section("results", words["results"], parts.results(comparison, words, labels))
        )
    cards = parts.galleries(comparison, by_id, find_picture, words)
    sections.append(Section("examples", words["examples"], cards))
    if is_scored:
        sure = [(words[side], labels[side], comparison["confidence"][side])
                for side in ("base", "tuned")]  # fmt: skip
        official = [(words["base"], base.metrics.get("official")),
                    (words["tuned"], tuned.metrics.get("official"))]  # fmt: skip
        sections += [
            Section("confidence", words["confidence"], parts.confidence(sure, words, labels)),
            Section(
                "scoring",
                words["scoring"],
                [*parts.official_figures(official, words), *parts.scoring(comparison, words)],
            ),
            Section("take-away", words["take_away"], parts.copy_boxes(comparison, words)),
        ]
    ran = parts.what_ran(comparison, base, tuned, words)
    sections.append(Section("what-ran", words["what_ran"], ran))
    footer = [words["made_by"].format(command=made_by, date=date)]
    if overall["test"]:
        test = words[overall["test"]]
        footer.insert(0, words["method"].format(seed=comparison["seed"], test=test))
    return Report(
        title=words["title" if base.config else "title_predictions"],
        subtitle=subtitle(comparison, words),
        verdict=verdict(comparison, words),
        tiles=tiles(comparison, words),
        sections=sections,
        language=language,
        synthetic=synthetic_notice(comparison, words),
        banner_title=words["banner_title"],
        banner=banner(comparison, base, tuned, reasons, words),
        footer=footer,
    )


def summary(comparison: Comparison, reasons: Sequence[str], report: str, words: Words) -> str:
    """The last lines on the terminal: accuracies, difference with interval and p, the report."""
    overall = comparison["overall"]
    lines = [words["summary_forced"].format(reason=reason) for reason in reasons]
    if notice := synthetic_notice(comparison, words):
        lines.append(f"SYNTHETIC  {notice}")
    if not overall["n"]:
        lines.append(verdict(comparison, words))
    else:
        for name, row in comparison["per_answer_type"].items():
            values = " -> ".join(percent(row[side]["value"]) for side in ("base", "tuned"))
            difference = parts.difference_with_interval(row)
            lines.append(f"  {name}: {values}, {difference}, n {row['n']}")
        for side in ("base", "tuned"):
            estimate = overall[side]
            value = f"{percent(estimate['value'])} {interval(estimate['low'], estimate['high'])}"
            lines.append(
                words[f"summary_{side}"].format(value=value, name=comparison[side]["name"])
            )
        lines.append(words["summary_difference"].format(
            difference=points(overall["difference"]),
            interval=interval(overall["low"], overall["high"], signed=True),
            p=p_value(overall["p_value"]), test=words.get(overall["test"] or "", "–"),
            n=overall["n"], wins=overall["wins"], ties=overall["ties"], losses=overall["losses"],
        ))  # fmt: skip
    return "\n".join([*lines, words["summary_report"].format(path=report)])


def subtitle(comparison: Comparison, words: Words) -> str:
    said = [
        f"{comparison['base']['name']} → {comparison['tuned']['name']}",
        words["questions"].format(n=comparison["n_questions"]),
        words["pictures"].format(n=comparison["n_pictures"]),
    ]
    if comparison["overall"]["n"]:
        said.append(comparison["metric"])
    return " · ".join(said)


def verdict(comparison: Comparison, words: Words) -> str:
    """One sentence: better or worse only when interval and test both say so."""
    overall = comparison["overall"]
    if not overall["n"]:
        return words["no_scores"].format(
            changed=comparison["n_changed"], n=comparison["n_questions"]
        )
    p = overall["p_value"]
    clear = told_apart(overall) and p is not None and p <= 0.05
    kind = "unclear" if not clear else "better" if overall["difference"] > 0 else "worse"
    sentence = words[kind].format(
        base=percent(overall["base"]["value"]),
        tuned=percent(overall["tuned"]["value"]),
        difference=points(overall["difference"]),
        interval=interval(overall["low"], overall["high"], signed=True),
        p=p_value(overall["p_value"]),
    )
    detectable = overall["minimum_detectable_difference"]
    if kind == "unclear" and detectable is not None:
        sentence += " " + words["could_see"].format(points=f"{detectable:.2f}")
    if overall["n_pictures"] < FEW_CLUSTERS:
        sentence += " " + words["few_pictures"].format(n=overall["n_pictures"])
    return sentence


def tiles(comparison: Comparison, words: Words) -> list[Tile]:
    overall, blind = comparison["overall"], comparison["blind"]
    if not overall["n"]:
        failed = [comparison["counts"][side] for side in ("base", "tuned")]
        return [
            Tile(words["answers_differ"],
                 f"{comparison['n_changed']} / {comparison['n_questions']}"),
            Tile(words["errors_tile"],
                 " → ".join(str(counts["errors"] + counts["empty"]) for counts in failed)),
        ]  # fmt: skip
    difference, low, high = (overall[key] for key in ("difference", "low", "high"))
    tone = "" if not told_apart(overall) else "good" if difference > 0 else "bad"
    shown = [
        Tile(
            words[side],
            percent(overall[side]["value"]),
            words["interval_note"].format(
                interval=interval(overall[side].get("low"), overall[side].get("high"))
            ),
        )
        for side in ("base", "tuned")
    ]
    shown += [
        Tile(words["difference"], points(difference), words["difference_note"].format(
            interval=interval(low, high, signed=True), p=p_value(overall["p_value"])), tone),
        Tile(words["outcomes"], f"{overall['wins']} / {overall['ties']} / {overall['losses']}",
             words["outcomes_note"]),
    ]  # fmt: skip
    if blind and blind["value"] is not None:
        shown.append(Tile(words["blind"], percent(blind["value"]), words["blind_note"]))
    if overall["minimum_detectable_difference"] is not None:
        shown.append(Tile(words["detectable"], f"{overall['minimum_detectable_difference']:.2f}",
                          words["detectable_note"]))  # fmt: skip
    return shown


def synthetic_notice(comparison: Comparison, words: Words) -> str:
    toy = [part for part in ("data", "model") if comparison["synthetic"][part]]
    return words[f"synthetic_{'both' if len(toy) == 2 else toy[0]}"] if toy else ""


def banner(
    comparison: Comparison, base: Run, tuned: Run, reasons: Sequence[str], words: Words
) -> list[str]:
    lines = list(reasons)
    if reasons:
        lines.append(words["banner_forced"].format(n=comparison["n_questions"]))
    for side, run in (("base", base), ("tuned", tuned)):
        if side in comparison["trained_on_scored"]:
            data = parts.data_words(*scored_data(run), words)
            lines.append(words["trained_on_scored"].format(run=run.name, data=data))
        if run.config.get("pictures") == "shuffled":
            lines.append(f"{run.name}: {words['shuffled']}")
    return lines
