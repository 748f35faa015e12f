"""The report of one run: `report.html`, its charts as PNG, its figures and tests as CSV.

    write_report(Path("outputs/llava_openset/RUN"), "en")

Reads what `run_reading.read_run` reads, the split's rules (`split.json`, if it is there still) and
the pictures of the gallery. Writes report.html, charts/*.png, figures.csv and paired_tests.csv into
the run's folder. No torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_openset import report_sections as parts
from llava_openset.paired import families_within
from llava_openset.report_answers import answers, two_query
from llava_openset.report_cases import cases
from llava_openset.report_charts import run_charts
from llava_openset.report_texts import TEXTS
from llava_openset.run_reading import OpenSetRun, read_run, split_rules
from shared import charts
from shared.options import UserError, this_command
from shared.report import Chart, Language, Report, Section, Tile, csv_table
from shared.report import write_report as write_page
from shared.run_comparison import page_date

Words = Mapping[str, str]
CHARTS = "charts"
DECIDED = ("closed_set_accuracy", "known_correct_and_accepted", "unknown_reject_rate",
           "normalised_accuracy")  # fmt: skip
TEST_COLUMNS = (
    "family", "protocol", "base", "other", "n", "difference", "low", "high", "p_value", "p_holm",
    "test", "wins", "losses", "note",
)  # fmt: skip


def write_report(folder: Path, language: Language = "en") -> Path:
    """Writes the report of a finished run into its folder; returns the page's path.

    Raises UserError when the folder is no finished run, or cannot be written.
    """
    run = read_run(folder)
    words = TEXTS[language]
    labels = TEXTS[charts.chart_language(language)]  # those that the charts' fonts can draw
    drawn = run_charts(run, words, labels)
    tests = families_within(run)
    write_charts(folder / CHARTS, drawn)
    write_csv(folder / "figures.csv", *parts.figure_rows(run))
    write_csv(folder / "paired_tests.csv", TEST_COLUMNS, test_rows(tests))
    page = folder / "report.html"
    write_page(page, make_report(run, drawn, tests, words, language))
    return page


def make_report(
    run: OpenSetRun,
    drawn: Mapping[str, Chart],
    tests: Mapping[str, Sequence[Mapping[str, Any]]],
    words: Words,
    language: Language,
) -> Report:
    sections = [
        Section("about", words["about"], parts.about(run, split_rules(run), words)),
        Section("protocols", words["protocols"], parts.protocols(run, drawn, tests, words)),
        Section("curves", words["curves"], parts.curves(run, drawn, words)),
        Section("classes", words["classes"], parts.classes(run, drawn, words)),
        Section("two-query", words["two_query"], two_query(run, words)),
        Section("course", words["course"], parts.course(run, words)),
        Section("answers", words["answers"], answers(run, words)),
        Section("cases", words["cases"], cases(run, words)),
        Section("missing", words["missing"], parts.missing(run, words)),
        Section("take-away", words["take_away"], parts.copy_boxes(run, words)),
        Section("what-ran", words["what_ran"], parts.what_ran(run, words)),
    ]
    command = run.environment.get("command") or run.name
    return Report(
        title=words["title"],
        subtitle=subtitle(run, words),
        verdict=verdict(run, words),
        tiles=tiles(run, words),
        sections=sections,
        language=language,
        synthetic=synthetic_notice([run], words),
        banner_title=words["banner_title"],
        banner=banner([run], words),
        footer=[
            words["method"],
            words["made_by"].format(command=this_command(), date=page_date(), run=command),
        ],
    )  # fmt: skip


def subtitle(run: OpenSetRun, words: Words) -> str:
    model = run.metrics["model"]
    named = [model["model"], *([model["adapter"]] if model.get("adapter") else [])]
    if model.get("quantization") not in (None, "none"):
        named.append(model["quantization"])
    sizes = run.protocols[run.leading]["parts"]["test"]
    split = run.metrics["split"]
    return " · ".join([
        run.name, " + ".join(named),
        words["n_classes"].format(n=len(split["known"])),
        words["n_pictures"].format(known=sizes["known"], unknown=sizes["unknown"]),
    ])  # fmt: skip


def verdict(run: OpenSetRun, words: Words) -> str:
    """One sentence on the leading protocol, which was fixed before any figure."""
    key = run.leading
    described = run.protocols[key]
    score = described["headline"]
    auroc = parts.figures(described, score)["auroc"]
    if auroc["value"] is None:
        sentence = words["verdict_none"].format(protocol=key, reason=auroc.get("reason", "–"))
    else:
        low, high = auroc.get("low"), auroc.get("high")
        kind = "unclear"
        if low is not None and high is not None:
            kind = "better" if low > 0.5 else "worse" if high < 0.5 else "unclear"
        sentence = words[f"verdict_{kind}"].format(
            protocol=key, auroc=parts.ranked(auroc), score=score
        )
    decided = parts.figures(described, described["decision"]["score"])
    named, rejected = (decided[name] for name in
                       ("known_correct_and_accepted", "unknown_reject_rate"))  # fmt: skip
    if named["value"] is None or rejected["value"] is None:
        sentence += words["verdict_no_threshold"]
    else:
        sentence += words["verdict_decides"].format(
            named=f"{100 * named['value']:.1f} %", rejected=f"{100 * rejected['value']:.1f} %"
        )
    few = min(described["parts"]["test"].values())
    if few < parts.FEW:
        sentence += words["verdict_few"].format(n=few, few=parts.FEW)
    return sentence


def tiles(run: OpenSetRun, words: Words) -> list[Tile]:
    """The leading protocol's headline figures."""
    described = run.protocols[run.leading]
    decision = described["decision"]["score"]
    chosen = [("auroc", described["headline"]), ("oscr", described["headline"])]
    chosen += [(name, decision) for name in DECIDED]
    shown = []
    for name, score in chosen:
        entry = parts.figures(described, score)[name]
        value = parts.shown(name, entry).split(" ")[0]
        unit = " %" if name in parts.RATES and entry["value"] is not None else ""
        limits = parts.shown(name, entry).partition(" ")[2]
        of = words["tile_of"].format(protocol=run.leading, n=entry.get("n"))
        note = f"{limits} · {of}" if limits else of
        shown.append(Tile(words[name], value + unit, note))
    return shown


def synthetic_notice(runs: Sequence[OpenSetRun], words: Words) -> str:
    toy = [part for part in ("data", "model")
           if any(run.metrics["synthetic"].get(part) for run in runs)]  # fmt: skip
    return words[f"synthetic_{'both' if len(toy) == 2 else toy[0]}"] if toy else ""


def banner(runs: Sequence[OpenSetRun], words: Words) -> list[str]:
    """Why figures must not be used as they stand."""
    return [
        f"{run.name}: {words['shuffled']}"
        for run in runs
        if run.metrics.get("pictures") == "shuffled"
    ]


def test_rows(tests: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[object]]:
    return [
        [family, *(test.get(name) for name in TEST_COLUMNS[1:])]
        for family, rows in tests.items()
        for test in rows
    ]


def write_charts(folder: Path, drawn: Mapping[str, Chart]) -> None:
    """The charts as PNG files in a folder of their own, which holds no older ones afterwards."""
    try:
        if folder.is_dir():
            for old in folder.glob("*.png"):
                old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        for name, chart in drawn.items():
            (folder / f"{name}.png").write_bytes(chart.png)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(csv_table(header, rows) + "\n", encoding="utf-8", newline="\n")
        shutil.move(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
