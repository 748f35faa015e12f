"""compare.py: paired on the same pictures, averaged over splits, refused where it means nothing."""

from __future__ import annotations

import io
import json
import math
import re
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llava_openset import chosen_runs
from llava_openset.chosen_runs import chosen_folders
from llava_openset.compare import CompareOptions, main
from llava_openset.compare_page import make_page
from llava_openset.compare_texts import OWN, TEXTS
from llava_openset.comparing import PICTURES, SPLITS, compare, mean_over_splits
from llava_openset.metrics import open_set_metrics
from llava_openset.report_sections import ranked, rate
from llava_openset.run_reading import columns, read_run
from shared import charts
from shared.options import REPO_ROOT, UserError, read_json
from shared.run_comparison import runs_first

SCRIPT = REPO_ROOT / "llava_openset" / "compare.py"
ScoredRun = Callable[..., Path]
Split = Callable[..., Path]


@pytest.fixture(autouse=True)
def small_charts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A chart takes half a second to draw; `test_report.py` and one test here draw them."""
    if "drawn_charts" in request.fixturenames:
        return
    content = io.BytesIO()
    Image.new("RGB", (4, 3)).save(content, format="PNG")
    for name in ("accuracy_bars", "curves_chart"):
        monkeypatch.setattr(charts, name, lambda *_, **__: content.getvalue())


@pytest.fixture
def drawn_charts() -> None:
    """The test that asks for it draws for real."""


@pytest.fixture
def two(scored_run: ScoredRun) -> list[Path]:
    """A good and a bad run of two protocols on one split."""
    protocols = ["course", "likelihood"]
    return [
        scored_run("toy_base", skill=0.0, seed=1, protocols=protocols),
        scored_run("toy_tuned", skill=1.0, protocols=protocols, config={"adapter": "some/adapter"}),
    ]


@pytest.fixture
def three_splits(scored_run: ScoredRun, hand_made_split: Split) -> list[Path]:
    classes = ["dog", "cat", "car", "bird", "boat"]
    runs = []
    for i in range(3):
        known = classes[i : i + 3]
        split = hand_made_split(
            f"split{i}", known, [name for name in classes if name not in known], seed=i
        )
        runs.append(scored_run(f"run{i}", split, seed=i, skill=0.5, protocols=["likelihood"]))
    return runs


def run_compare(folders: list[Path], out: Path, **flags: object) -> str:
    options = CompareOptions(runs=[str(f) for f in folders], output_dir=str(out), **flags)
    main(options)
    return (out / "report.html").read_text(encoding="utf-8")


def test_two_runs_on_the_same_pictures_are_paired(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = run_compare(two, tmp_path / "out")
    comparison = read_json(tmp_path / "out" / "comparison.json")
    assert comparison["kind"] == PICTURES
    assert [run["label"] for run in comparison["runs"]] == ["base", "tuned"]
    assert comparison["protocols"] == ["likelihood", "course"]
    runs = [read_run(folder) for folder in two]
    aurocs = []
    for run in runs:
        rows = columns(run.test_rows("likelihood"), "max_softmax", run.known_classes)
        found = open_set_metrics(rows.scores, rows.labels, rows.predictions, None, 3)
        aurocs.append(found["auroc"])
    tests = {(t["protocol"], name): t for name, rows in comparison["tests"].items() for t in rows}
    test = tests["likelihood", "auroc"]
    assert test["difference"] == pytest.approx(aurocs[1] - aurocs[0])
    assert (test["base"], test["other"], test["n"]) == ("base", "tuned", 30)
    named = tests["likelihood", "naming"]
    right = [
        {row["sample_id"]: row["correct_class"] for row in run.test_rows("likelihood")
         if row["known"]} for run in runs
    ]  # fmt: skip
    assert named["n"] == 18
    assert named["wins"] == sum(right[1][key] and not right[0][key] for key in right[0])
    assert named["difference"] == pytest.approx(
        (sum(right[1].values()) - sum(right[0].values())) / 18
    )
    entry = runs[1].protocols["likelihood"]["scores"]["max_softmax"]["figures"]["auroc"]
    assert ranked(entry) in page
    assert "some/adapter" in page  # what differs
    said = capsys.readouterr().out
    assert f"tuned  likelihood: AUROC {ranked(entry)}" in said
    assert "Under likelihood, tuned ranks known above unknown best" in said
    assert "SYNTHETIC" in said


def test_holm_is_over_all_pairs_and_protocols(scored_run: ScoredRun) -> None:
    runs = [
        read_run(scored_run(f"r{i}", skill=i / 2, seed=i, protocols=["course", "likelihood"]))
        for i in range(3)
    ]
    comparison = compare(runs, ["a", "b", "c"])
    for rows in comparison["tests"].values():
        assert len(rows) == 6
        tested = [row for row in rows if row["p_value"] is not None]
        smallest = min(tested, key=lambda row: row["p_value"])
        assert smallest["p_holm"] == pytest.approx(min(1, len(tested) * smallest["p_value"]))
    pairs = [(t["base"], t["other"]) for t in comparison["tests"]["auroc"][:3]]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]


def test_splits_have_mean_and_t_interval(three_splits: list[Path], tmp_path: Path) -> None:
    page = run_compare(three_splits, tmp_path / "out")
    comparison = read_json(tmp_path / "out" / "comparison.json")
    assert comparison["kind"] == SPLITS
    assert "tests" not in comparison
    values = [
        read_run(f).protocols["likelihood"]["scores"]["max_softmax"]["figures"]["auroc"]["value"]
        for f in three_splits
    ]
    mean = comparison["over_splits"]["likelihood"]["auroc"]
    assert mean["values"] == values
    assert mean["value"] == pytest.approx(sum(values) / 3)
    assert ranked(mean) in page
    assert rate(comparison["over_splits"]["likelihood"]["closed_set_accuracy"]) in page
    assert "Over 3 splits likelihood reaches a mean AUROC" in page
    assert "dog, cat, car" in page


def test_mean_over_splits_by_hand() -> None:
    """t(.975, 2) = 4.3027; the mean of 1, 2, 3 is 2, their standard deviation 1."""
    figure = mean_over_splits([0.1, 0.2, 0.3])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert figure["value"] == pytest.approx(0.2)
    assert figure["sd"] == pytest.approx(0.1)
    assert (figure["low"], figure["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    one = mean_over_splits([0.4])
    assert (one["value"], one["low"], one["note"]) == (0.4, None, "one split: no interval")
    gap = mean_over_splits([0.4, None, 0.6])
    assert (gap["n"], gap["note"]) == (2, "1 of 3 splits don't have this figure")
    same = mean_over_splits([0.5, 0.5])
    assert (same["low"], same["note"]) == (None, "the same in every split: no interval")
    none = mean_over_splits([None, None])
    assert (none["value"], none["reason"]) == (None, "no split has this figure")


def refused(folders: list[Path], message: str) -> None:
    runs = [read_run(folder) for folder in folders]
    with pytest.raises(UserError, match=message):
        compare(runs, [str(i) for i in range(len(runs))])


def test_other_pictures_are_refused(
    scored_run: ScoredRun, hand_made_split: Split, tmp_path: Path
) -> None:
    lone = ["likelihood"]
    first = scored_run("first", protocols=lone)
    rules = scored_run("rules", hand_made_split("b", seed=1, max_other_share=0.5), protocols=lone)
    refused([first, rules], r"other rules: rule max_other_share: – against 0\.5")
    counts = scored_run(
        "counts", hand_made_split("c", ("dog", "cat"), ("bird", "boat", "car")), protocols=lone
    )
    refused([first, counts], "3 known classes against 2")
    both = scored_run(
        "both", hand_made_split("d", seed=2), protocols=lone, config={"adapter": "x/adapter"}
    )
    refused([first, both], r"differ in their split and in more \(adapter: – against x/adapter\)")
    again = scored_run("again", hand_made_split("e"), protocols=lone)
    refused([first, again], "one draw of classes and seed, yet other pictures")
    second = scored_run("second", tmp_path / "split", protocols=lone)
    other = scored_run("other", hand_made_split("f", seed=3), protocols=lone)
    refused([first, second, other], "some of these runs share a split and some don't")
    short = scored_run("short", tmp_path / "split", protocols=lone, limit=43)
    refused([first, short], "scored other pictures under likelihood: 3 only in the first")
    (tmp_path / "d" / "split.json").unlink()
    refused([first, both], "split.json is not there any more")


def test_runs_without_a_common_protocol_are_refused(scored_run: ScoredRun) -> None:
    course = scored_run("a", protocols=["course"])
    likelihood = scored_run("b", protocols=["likelihood"])
    refused([course, likelihood], r"no protocol in common \(a: course; b: likelihood\)")


def test_without_thresholds_there_is_no_decision_to_test(scored_run: ScoredRun) -> None:
    runs = [
        read_run(scored_run(name, part="test", protocols=["likelihood"], seed=i))
        for i, name in enumerate("ab")
    ]
    comparison = compare(runs, ["a", "b"])
    (test,) = comparison["tests"]["decisions"]
    assert (test["p_value"], test["note"]) == (None, "no decision: no threshold was chosen")
    assert comparison["tests"]["auroc"][0]["p_value"] is not None


def test_a_run_that_is_no_run_and_a_run_given_twice(scored_run: ScoredRun, tmp_path: Path) -> None:
    folder = scored_run(protocols=["likelihood"])
    with pytest.raises(UserError, match="given twice"):
        main(CompareOptions(runs=[str(folder), f"{folder}/."]))
    with pytest.raises(UserError, match="give two runs or more"):
        main(CompareOptions(runs=[str(folder)]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json in it"):
        main(CompareOptions(runs=[str(folder), str(tmp_path / "empty")]))
    other = scored_run("other", protocols=["likelihood"])
    with pytest.raises(UserError, match="1 names for 2 runs"):
        main(CompareOptions(runs=[str(folder), str(other)], names=["a"]))


def test_the_newest_two_toy_runs_are_found(
    two: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chosen_runs, "RUNS", tmp_path)
    assert chosen_folders(None, toy=True) == two
    monkeypatch.setattr(chosen_runs, "RUNS", tmp_path / "none")
    with pytest.raises(UserError, match="no two toy runs on one split"):
        chosen_folders(None, toy=True)


def test_runs_come_first_on_the_command_line() -> None:
    assert runs_first(["a", "b", "--seed", "1"]) == ["--runs", "a", "b", "--seed", "1"]
    assert runs_first(["--toy"]) == ["--toy"]
    assert runs_first(["flags.yaml"]) == ["flags.yaml"]


def test_cases_are_where_the_runs_differ(two: list[Path]) -> None:
    runs = [read_run(folder) for folder in two]
    report, _ = make_page(
        compare(runs, ["a", "b"]), runs, language="en", made_by="compare.py", date="today"
    )
    (section,) = [section for section in report.sections if section.anchor == "cases"]
    decisions = [
        {row["sample_id"]: (row["decision"] != "unknown") == row["known"]
         for row in run.test_rows("likelihood")} for run in runs
    ]  # fmt: skip
    differing = sum(decisions[0][key] != decisions[1][key] for key in decisions[0])
    galleries = [block for block in section.blocks if block.kind == "gallery"]
    totals = [int(re.search(r"(?:All|of) (\d+)", g.note).group(1)) if g.note else 0
              for g in galleries]  # fmt: skip
    assert differing > 0
    assert totals[0] + totals[1] == differing


def test_chinese_page_and_summary(
    three_splits: list[Path],
    two: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = run_compare(two, tmp_path / "zh", language="zh")
    assert "配对检验" in page
    assert "报告：" in capsys.readouterr().out
    page = run_compare(three_splits, tmp_path / "zh_splits", language="zh")
    assert "各划分" in page
    visible = re.sub(r"(?s)<(style|script).*?</\1>", "", page)
    for english in ("Paired tests", "Over the splits", "no split has", "Mean<"):
        assert english not in visible


def test_both_languages_have_the_same_keys_and_fields() -> None:
    def fields(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert OWN["en"].keys() == OWN["zh"].keys()
    assert [k for k in OWN["en"] if fields(OWN["en"][k]) != fields(OWN["zh"][k])] == []
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_charts")
def test_its_charts_are_png_files(two: list[Path], tmp_path: Path) -> None:
    run_compare(two, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out" / "charts").iterdir()}
    assert names == {"auroc", "normalised_accuracy", "roc_likelihood", "risk_coverage_likelihood"}


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.usefixtures("drawn_charts")
def test_the_page_fits_a_phone(
    two: list[Path], tmp_path: Path, chromium_page, page_log: dict[str, list[str]]
) -> None:
    run_compare(two, tmp_path / "out")
    chromium_page.set_viewport_size({"width": 420, "height": 900})
    chromium_page.goto((tmp_path / "out" / "report.html").as_uri())
    width = chromium_page.evaluate("document.documentElement.scrollWidth")
    assert width == 420
    assert page_log["errors"] == []


def test_help_answers() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "--names" in done.stdout


def test_comparison_json_is_plain_json(two: list[Path], tmp_path: Path) -> None:
    run_compare(two, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
