"""The report of one run: its figures are those of metrics.json, and no gap goes unsaid."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_openset import report
from llava_openset.metrics import METRICS
from llava_openset.paired import auroc_test, decision_test, families_within, picture_id
from llava_openset.report_page import write_report
from llava_openset.report_sections import COURSE, FEW, ranked, rate
from llava_openset.report_texts import TEXTS, in_words
from llava_openset.run_reading import DECISIONS, RANKING, columns, read_run
from llava_openset.split_writing import TRAINING_CAVEAT
from shared import charts
from shared.options import REPO_ROOT, UserError, read_json

SCRIPT = REPO_ROOT / "llava_openset" / "report.py"
SECTIONS = ("about", "protocols", "curves", "classes", "two-query", "course", "answers", "cases",
            "missing", "take-away", "what-ran")  # fmt: skip
IN_PERCENT = {
    "closed_set_accuracy", "known_accept_rate", "known_correct_and_accepted",
    "unknown_reject_rate", "normalised_accuracy", "fpr95_known_positive", "fpr95_unknown_positive",
}  # fmt: skip
ScoredRun = Callable[..., Path]


@pytest.fixture(autouse=True)
def small_charts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A chart takes half a second to draw, and a page has twenty; one test draws them."""
    if "drawn_charts" in request.fixturenames:
        return
    content = io.BytesIO()
    Image.new("RGB", (4, 3)).save(content, format="PNG")
    for name in ("accuracy_bars", "curves_chart", "mirrored_histogram", "heat_map"):
        monkeypatch.setattr(charts, name, lambda *_, **__: content.getvalue())


@pytest.fixture
def drawn_charts() -> None:
    """The test that asks for it draws for real."""


def text_of(page: Path) -> str:
    """What a reader sees, on one line."""
    content = re.sub(r"(?s)<(script|style|textarea).*?</\1>", " ", page.read_text(encoding="utf-8"))
    content = html.unescape(re.sub(r"(?s)<[^>]*>", " ", content))
    return " ".join(content.replace("\u200b", "").replace("\u00ad", "").split())


def section_of(page: Path, anchor: str) -> str:
    content = page.read_text(encoding="utf-8")
    found = re.search(rf'(?s)<section id="{anchor}">.*?</section>', content)
    assert found, anchor
    return html.unescape(found.group()).replace("\u200b", "").replace("\u00ad", "")


def cells(section: str) -> list[list[str]]:
    return [
        [" ".join(re.sub("<[^>]*>", "", cell).split())
         for cell in re.findall(r"(?s)<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in re.findall(r"(?s)<tr.*?</tr>", section)
    ]  # fmt: skip


def test_the_figures_of_the_page_are_those_of_metrics_json(scored_run: ScoredRun) -> None:
    folder = scored_run()
    page = write_report(folder)
    protocols = read_json(folder / "metrics.json")["protocols"]
    assert set(protocols) == {"course", "freetext-open", "freetext-list_unknown", "likelihood",
                              "two_query"}  # fmt: skip
    table = cells(section_of(page, "protocols"))
    heads = [place for place, row in enumerate(table) if row and row[0] == "Protocol: Score"]
    kinds = ("decision", "decision", "headline", "headline", "headline")
    by_protocol: dict[str, dict[str, dict[str, str]]] = {"decision": {}, "headline": {}}
    for kind, place in zip(kinds, heads, strict=True):
        rows = table[place + 1 : place + 1 + len(protocols)]
        assert rows[0][0].startswith("likelihood: ")  # it leads
        for row in rows:
            by_protocol[kind].setdefault(row[0], {}).update(zip(table[place], row, strict=True))
    for key, described in protocols.items():
        for kind, names, score in (
            ("decision", DECISIONS, described["decision"]["score"]),
            ("headline", RANKING, described["headline"]),
        ):
            for name in names:
                entry = described["scores"][score]["figures"][name]
                form = rate if name in IN_PERCENT else ranked
                words = TEXTS["en"][name].replace("\u00ad", "")
                shown = by_protocol[kind][f"{key}: {score}"][words]
                assert shown == form(entry), (key, name)
    with (folder / "figures.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    n_scores = sum(len(described["scores"]) for described in protocols.values())
    assert len(table) == n_scores * len(METRICS)
    for row in table:
        entry = protocols[row["protocol"]]["scores"][row["score"]]["figures"][row["figure"]]
        assert row["value"] == ("" if entry["value"] is None else str(entry["value"]))
        assert row["note"] == entry.get("reason", entry.get("note", ""))


def test_every_section_is_there_and_the_head_says_what_matters(scored_run: ScoredRun) -> None:
    folder = scored_run()
    page = write_report(folder)
    content, seen = page.read_text(encoding="utf-8"), text_of(page)
    assert tuple(re.findall(r'<section id="([^"]+)">', content)) == SECTIONS
    auroc = read_json(folder / "metrics.json")["protocols"]["likelihood"]["scores"]["max_softmax"]
    assert f"AUROC {ranked(auroc['figures']['auroc'])} (max_softmax)" in seen
    assert "SYNTHETIC" in seen
    assert "A caveat of this split." in seen
    assert "n_per_class" in seen  # a rule of the split
    assert "Known classes (3): dog, cat, car." in seen
    assert f"Only 12 samples on one side, fewer than {FEW}" in seen
    for alt in re.findall(r'<img class="chart" src="[^"]*" alt="([^"]*)"', content):
        assert len(alt) > 30


def test_real_pictures_come_with_the_caveat_of_the_training_data(
    scored_run: ScoredRun, hand_made_split: Callable[..., Path]
) -> None:
    folder = scored_run(split=hand_made_split(synthetic=False), protocols=["likelihood"])
    seen = text_of(write_report(folder))
    assert TRAINING_CAVEAT in seen
    assert "SYNTHETIC" not in seen


def test_a_protocol_that_was_stopped_is_named_on_the_page(scored_run: ScoredRun) -> None:
    folder = scored_run(protocols=["likelihood"])
    note = (
        "left out, not finished: freetext-open: 3 of 50 answered; "
        "the same command with --protocol freetext --freetext_variants open goes on"
    )
    metrics = read_json(folder / "metrics.json")
    assert metrics["notes"] == []
    (folder / "metrics.json").write_text(json.dumps({**metrics, "notes": [note]}))
    assert note in section_of(write_report(folder), "about")
    chinese = section_of(write_report(folder, "zh"), "about")
    assert "freetext-open 的 50 个提问中已答 3 个" in chinese
    assert "加上 --protocol freetext --freetext_variants open 可以继续" in chinese


def test_a_protocol_at_chance_is_said_to_say_nothing(scored_run: ScoredRun) -> None:
    def change(row: dict[str, Any]) -> None:
        if "choices" not in row:  # free answers never name a class
            row.update(answer="no idea", raw_output="no idea")

    folder = scored_run(change=change, protocols=["course", "likelihood", "two_query"])
    page = write_report(folder)
    protocols = section_of(page, "protocols")
    assert "course names 0.0 % of the known samples rightly, no more than guessing among 3" in (
        protocols
    )
    assert re.findall(r"(\w+) names [\d.]+ % of the known samples rightly", protocols) == ["course"]
    assert "one summand less" in section_of(page, "two-query")
    answered = {row[0]: row[1:] for row in cells(section_of(page, "answers")) if row}
    assert answered["course: known"] == ["0", "18", "–", "–", "0"]
    assert answered["likelihood: known"] == ["18", "–", "–", "–", "0"]
    metrics = read_json(folder / "metrics.json")
    (folder / "metrics.json").write_text(json.dumps({**metrics, "pictures": "shuffled"}))
    assert "no more than guessing" not in section_of(write_report(folder), "protocols")


def test_what_did_not_run_is_said_in_its_place(scored_run: ScoredRun) -> None:
    page = write_report(scored_run(protocols=["likelihood"]))
    assert "Protocol two_query did not run" in section_of(page, "two-query")
    assert "Protocol course did not run" in section_of(page, "course")
    assert "no test, as only one protocol ran" in section_of(page, "protocols")


def test_a_run_without_validation_part_has_no_threshold_and_says_so(scored_run: ScoredRun) -> None:
    folder = scored_run(protocols=["freetext", "likelihood"], part="test")
    page = write_report(folder)
    seen = text_of(page)
    assert "there is no decision, as no threshold was chosen" in seen
    assert "No threshold could be chosen for likelihood" in section_of(page, "classes")
    missing = section_of(page, "missing")
    assert "no threshold" in missing
    assert "Unknown rejected" in missing
    tests = families_within(read_run(folder))["decisions"]
    by_likelihood = [test for test in tests if "likelihood" in (test["base"], test["other"])]
    assert {test["note"] for test in by_likelihood} == {"no decision: no threshold was chosen"}
    assert {test["p_value"] for test in by_likelihood} == {None}


def test_only_known_samples_leave_no_curve_and_a_reason(
    scored_run: ScoredRun, hand_made_split: Callable[..., Path]
) -> None:
    split = hand_made_split("lone", unknown=())
    page = write_report(scored_run(split=split, protocols=["likelihood"]))
    assert "No ROC and precision-recall curves" in section_of(page, "curves")
    assert "no unknown sample" in section_of(page, "missing")
    assert "has no AUROC (no unknown sample)" in text_of(page)


def test_cases_are_the_run_s_and_hostile_answers_stay_text(scored_run: ScoredRun) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["sample_id"] == "300#open":
            row["answer"] = "a dog or a cat <img src=x onerror=alert(1)>"
        if row["sample_id"] == "1" and "choices" in row:
            row.update(status="error", error="out of memory")

    folder = scored_run(change=change, skill=0.3)
    page = write_report(folder)
    section = section_of(page, "cases")
    raw = page.read_text(encoding="utf-8")
    assert "<img src=x" not in raw
    assert "&lt;img src=x onerror" in raw
    rows = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
    lead = [r for r in rows if r["protocol"] == "likelihood" and r["part"] == "test"]
    accepted = [r for r in lead if not r["known"] and r["decision"] not in (None, "unknown")]
    rejected = [r for r in lead if r["known"] and r["decision"] == "unknown"]
    strata = re.split("<h3>", section)[1:]
    by_title = {stratum.split("</h3>")[0]: stratum for stratum in strata}
    for title, found in (("Unknown called known, surest first", accepted),
                         ("Known rejected, surest first", rejected)):  # fmt: skip
        assert by_title[title].count('<article class="card">') == min(6, len(found))
    assert accepted  # the fixture errs
    surest = max(accepted, key=lambda row: row["scores"]["max_softmax"])
    assert by_title["Unknown called known, surest first"].index(surest["image"]) > 0
    assert by_title["Ambiguous answers"].count('<article class="card">') == 1
    assert by_title["Errors"].count('<article class="card">') == 1
    assert "data:image/jpeg;base64," in section


def test_the_course_s_figures_stand_beside_ours(scored_run: ScoredRun) -> None:
    folder = scored_run()
    section = section_of(write_report(folder), "course")
    published = [f"{100 * k / n:.1f}" for k, n in COURSE.values()]
    assert published == ["75.4", "85.0", "88.7", "86.7"]
    assert "86.7 [70.3, 94.7] (n 30)" in section
    ours = read_json(folder / "metrics.json")["protocols"]["course"]["course_figures"]
    for entry in ours.values():
        assert f"{rate(entry)} (n {entry['n']})" in section


def test_few_samples_of_a_class_are_said_to_be_few(scored_run: ScoredRun) -> None:
    page = write_report(scored_run(protocols=["likelihood"]))
    section = section_of(page, "classes")
    assert "6 (< 20)" in section
    assert "5 of 5 classes have fewer than 20 samples" in section


def test_paired_tests_of_protocols_are_those_of_the_rows(scored_run: ScoredRun) -> None:
    run = read_run(scored_run(protocols=["course", "likelihood", "two_query"]))
    tests = families_within(run)
    assert [len(rows) for rows in tests.values()] == [3, 3, 2 + 3 + 3]
    (first,) = [
        t for t in tests["decisions"] if (t["base"], t["other"]) == ("course", "likelihood")
    ]
    right = {
        key: {row["sample_id"]: row["decision"] is not None
              and (row["decision"] != "unknown") == row["known"] for row in run.test_rows(key)}
        for key in ("course", "likelihood")
    }  # fmt: skip
    ids = right["course"]
    assert first["n"] == len(ids) == 30
    assert first["wins"] == sum(right["likelihood"][i] and not right["course"][i] for i in ids)
    assert first["losses"] == sum(right["course"][i] and not right["likelihood"][i] for i in ids)
    assert first["test"] == "mcnemar-exact"
    for family in tests.values():
        for test in family:
            if test["p_value"] is not None:
                assert test["p_holm"] >= test["p_value"]
    (inside,) = [
        t for t in tests["auroc_scores"] if (t["protocol"], t["other"]) == ("two_query", "margin")
    ]
    assert inside["n"] == 30 + 18  # the known pictures once more, their own class left out


def test_a_perfect_score_against_a_useless_one(scored_run: ScoredRun) -> None:
    run = read_run(scored_run(protocols=["likelihood"]))
    rows = run.test_rows("likelihood")
    perfect = [row | {"scores": {"a": float(row["known"]), "b": 0.5}} for row in rows]
    test = auroc_test(perfect, perfect, ("b", "a"), run.known_classes)
    assert test["difference"] == pytest.approx(0.5)
    same = decision_test(rows, rows)
    assert (same["difference"], same["wins"], same["losses"]) == (0.0, 0, 0)
    assert len({picture_id(row) for row in rows}) == len(rows)


def test_rows_give_the_auroc_that_metrics_json_has(scored_run: ScoredRun) -> None:
    from llava_openset.metrics import open_set_metrics

    run = read_run(scored_run(protocols=["likelihood"]))
    table = columns(run.test_rows("likelihood"), "margin", run.known_classes)
    figures = open_set_metrics(table.scores, table.labels, table.predictions, None, 3)
    stored = run.protocols["likelihood"]["scores"]["margin"]["figures"]["auroc"]["value"]
    assert figures["auroc"] == pytest.approx(stored, abs=1e-6)


def test_the_control_stands_under_a_red_banner(scored_run: ScoredRun) -> None:
    page = write_report(scored_run(protocols=["likelihood"], pictures="shuffled"))
    assert '<div class="banner"' in page.read_text(encoding="utf-8")
    assert "control: every question was asked about another picture" in text_of(page)


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_charts")
def test_charts_are_written_as_png_and_old_ones_go(scored_run: ScoredRun) -> None:
    folder = scored_run(protocols=["course", "likelihood"])
    (folder / "charts").mkdir()
    (folder / "charts" / "confusion_older.png").write_bytes(b"")
    write_report(folder)
    names = {path.stem for path in (folder / "charts").iterdir()}
    assert names == {
        "decisions", "roc", "pr_known", "pr_unknown", "risk_coverage", "roc_scores_likelihood",
        "scores_course", "scores_likelihood", "confusion_course", "confusion_likelihood",
    }  # fmt: skip
    for path in (folder / "charts").iterdir():
        assert Image.open(path).width > 600


def test_the_chinese_page_is_chinese(scored_run: ScoredRun) -> None:
    page = write_report(scored_run(protocols=["likelihood"], part="test"), "zh")
    seen = text_of(page)
    assert "开放集分类：已知与未知" in seen
    assert "没有阈值" in seen
    for english in ("Closed-set", "no threshold", "Before reading", "no validation sample"):
        assert english not in seen


def test_both_languages_have_the_same_keys_and_fields() -> None:
    def fields(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    english, chinese = TEXTS["en"], TEXTS["zh"]
    assert english.keys() == chinese.keys()
    assert [key for key in english if fields(english[key]) != fields(chinese[key])] == []
    assert set(METRICS) - {"openness"} <= english.keys()


def test_reasons_are_translated_and_unknown_ones_stay() -> None:
    said = in_words("only 4 known samples: the interval is too narrow; a new one", TEXTS["zh"])
    assert said == "只有 4 个已知样本：区间偏窄；a new one"
    assert in_words("no threshold", TEXTS["en"]) == "no threshold"


def test_every_rule_and_caveat_has_its_chinese() -> None:
    from types import SimpleNamespace

    from llava_openset.protocols import rule_of
    from llava_openset.settings import PROTOCOLS
    from llava_openset.split_writing import caveats
    from llava_openset.splitting import Rules

    said = [rule_of(protocol) for protocol in PROTOCOLS]
    for unit in ("image", "crop"):
        plan = SimpleNamespace(rules=Rules(unit=unit), images_root=Path("none/val2017"), unknown=[])
        said += [*caveats(plan, True), *caveats(plan, False)]
        plan.unknown = ["ring"]  # learned, as nothing says that it was held back
        said += caveats(plan, True)
    assert len(set(said)) > 8
    plan.rules = Rules(validation_per_class=5)
    assert any("same unknown classes" in line for line in caveats(plan, False))
    plan.unknown = []  # nothing that a threshold could have seen
    assert not any("same unknown classes" in line for line in caveats(plan, False))
    assert [text for text in said if in_words(text, TEXTS["zh"]) == text] == []


def test_evaluate_writes_the_report_at_its_end(
    scored_run: ScoredRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava_openset import evaluate
    from llava_openset.settings import EvaluateOptions

    folder = scored_run(protocols=["likelihood"])
    options = EvaluateOptions(output_dir=str(folder), score_only=True, report="zh")
    evaluate.main(options)
    assert "report: " in capsys.readouterr().out
    assert "开放集分类" in text_of(folder / "report.html")
    (folder / "report.html").unlink()
    evaluate.main(EvaluateOptions(output_dir=str(folder), score_only=True, report="none"))
    assert not (folder / "report.html").exists()


def test_folders_that_are_no_finished_run(scored_run: ScoredRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    folder = scored_run(protocols=["likelihood"])
    with pytest.raises(UserError, match="expected the run's folder"):
        write_report(folder / "metrics.json")
    metrics = read_json(folder / "metrics.json")
    for change, message in (
        ({"script": "other"}, "not the figures of a run of llava_openset/evaluate.py"),
        ({"version": 7}, "version 7, this program reads 1"),
        ({"protocols": {}}, "no protocol in it"),
    ):
        (folder / "metrics.json").write_text(json.dumps(metrics | change))
        with pytest.raises(UserError, match=message):
            write_report(folder)
    broken = json.loads(json.dumps(metrics))
    broken["protocols"]["likelihood"]["scores"]["margin"]["figures"]["auroc"] = {"value": None}
    (folder / "metrics.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"auroc of likelihood \(margin\)"):
        write_report(folder)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    scored = (folder / "scored.jsonl").read_text()
    lines = scored.splitlines()
    row = json.loads(lines[2])
    for line, message in (
        ("{", "line 3: not JSON"),
        (json.dumps(row | {"label": "zebra", "known": True}), "line 3: label 'zebra'"),
        (json.dumps({k: v for k, v in row.items() if k != "decision"}), "line 3: no 'decision'"),
    ):
        (folder / "scored.jsonl").write_text("\n".join([*lines[:2], line, *lines[3:]]))
        with pytest.raises(UserError, match=message):
            write_report(folder)
    (folder / "scored.jsonl").unlink()
    with pytest.raises(UserError, match=r"no scored\.jsonl in it.*goes on with an unfinished one"):
        write_report(folder)


def test_a_split_that_is_gone_is_said_and_its_pictures_are_placeholders(
    scored_run: ScoredRun, tmp_path: Path
) -> None:
    folder = scored_run(protocols=["likelihood"])
    split = tmp_path / "split" / "split.json"
    content = read_json(split)
    split.write_text(json.dumps(content | {"data_hash": "made again"}))
    assert "The rules of the split can't be shown" in section_of(write_report(folder), "about")
    (tmp_path / "split").rename(tmp_path / "moved")
    page = write_report(folder)
    assert "The rules of the split can't be shown" in section_of(page, "about")
    assert "picture not found" in section_of(page, "cases")


def test_the_script_takes_a_run_first_and_lists_runs_without(
    scored_run: ScoredRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scored_run(protocols=["likelihood"])
    report.main(report.ReportOptions(run=str(folder)))
    assert "report.html" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"report\.py RUN"):
        report.main(report.ReportOptions())


def test_help_answers() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "--language" in done.stdout
