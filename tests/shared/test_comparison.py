"""Three runs and more: figures by hand, Holm over the pairs, what is refused, the page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared import charts
from shared.comparison import compare, learned_from, pair_up
from shared.comparison_many import (
    common_questions,
    compare_all,
    questions_of,
    reasons_against_all,
    short_names,
)
from shared.comparison_many_report import make_report_of_all, summary_of_all
from shared.comparison_report import make_report
from shared.comparison_sections import question_card, type_cells
from shared.comparison_texts import TEXTS as SHARED
from shared.estimates import estimate
from shared.options import UserError, write_json
from shared.report import render
from shared.runs import Run, read_run
from shared.significance import holm

SCRIPT = "<script>alert(1)</script>"
OWN = {"title": "Two", "title_predictions": "Two sets", "title_many": "{n} runs", "protocols": ""}
TEXTS = {language: words | OWN for language, words in SHARED.items()}


def score_run(
    records: Sequence[Mapping[str, Any]], *, expected: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Right or wrong by equality; a record without references has no score."""
    rows = [
        {
            "sample_id": record["sample_id"],
            "image_id": record["image"],
            "question_type": record["question_type"],
            "answer_type": record["answer_type"],
            "score": float(record["answer"] == record["references"][0])
            if record["references"]
            else None,
        }
        for record in records
    ]
    scored = [row for row in rows if row["score"] is not None]
    figure = estimate([row["score"] for row in scored], [row["image_id"] for row in scored])
    return rows, {"metric": "exact match", "accuracy": figure,
                  "counts": {"expected": expected, "errors": 0}}  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str, answers: str, *, references: bool = True, **config: Any) -> Run:
        """40 questions, two a picture; `answers`: y or n for each, y is right."""
        records = [
            {
                "sample_id": str(i),
                "image": f"{i // 2}.png" if i < 38 else "",
                "question": f"Question {i}?",
                "question_type": "is there" if i < 30 else "which",
                "answer_type": "yes/no",
                "prompt": f"<image>\nQuestion {i}?",
                "raw_output": letter,
                "answer": {"y": "yes", "n": SCRIPT}.get(letter),
                "references": ["yes"] if references else [],
                "confidence": 0.9 if letter == "y" else 0.6,
                "finish_reason": "stop",
                "status": "error" if letter == "e" else "ok",
                "error": "broken picture" if letter == "e" else None,
                **({"choices": ["yes", "no"]} if i == 39 else {}),
            }
            for i, letter in enumerate(answers)
        ]
        folder = tmp_path / name
        asked = {"model": "some/model", "data_root": str(tmp_path), "split": "val", "limit": 0,
                 "seed": 0, "asked": {"prompt": "short"}, "compute_dtype": "float32"}  # fmt: skip
        write_json(folder / "config.json", asked | config)
        write_json(folder / "environment.json", {"command": name})
        rows, metrics = score_run(records, expected=len(records))
        official = {"accuracy": metrics["accuracy"]["value"], "splits": {"hard": {"f1": 0.5}}}
        metrics |= {
            "synthetic": {"data": True, "model": False}, "official": official,
            "blind": {"value": 30.0, "low": 20.0, "high": 40.0, "n": len(records)},
        }  # fmt: skip
        write_json(folder / "metrics.json", metrics)
        for file, lines in (("predictions.jsonl", records), ("scored.jsonl", rows)):
            (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_run(folder)

    return make


@pytest.fixture
def runs(make_run: Callable[..., Run]) -> list[Run]:
    """Right: 10, 30 and 32 of 40."""
    return [
        make_run("pope_40_stage-1", "y" * 10 + "n" * 30),
        make_run("pope_40_stage-2", "y" * 30 + "n" * 10),
        make_run("pope_40_lora", "n" * 2 + "y" * 32 + "n" * 5 + "e"),
    ]


@pytest.fixture
def tiny_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel for each chart: drawing takes most of a report's time."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    for name in ("accuracy_bars", "outcome_bars", "reliability_diagram", "risk_coverage_chart"):
        monkeypatch.setattr(charts, name, lambda *args, **labels: content.getvalue())


def page(runs: Sequence[Run], language: str = "en", reasons: Sequence[str] = ()) -> str:
    report = make_report_of_all(
        compare_all(runs), runs, questions_of(common_questions(runs)), reasons=reasons,
        find_picture=lambda record: Path(record["image"]), texts=TEXTS, language=language,
        made_by="compare.py", date="today",
    )  # fmt: skip
    return render(report)


def test_figures_by_hand(runs):
    figures = compare_all(runs)
    assert [row["value"] for row in figures["overall"]] == [25.0, 75.0, 80.0]
    assert [(row["first"], row["second"]) for row in figures["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    assert [row["difference"] for row in figures["pairs"]] == [50.0, 55.0, 5.0]
    first, second, third = figures["pairs"]
    assert (first["wins"], first["ties"], first["losses"]) == (20, 20, 0)
    assert (second["wins"], second["ties"], second["losses"]) == (24, 14, 2)
    assert (third["wins"], third["ties"], third["losses"]) == (4, 34, 2)
    assert figures["per_question_type"]["which"][2]["value"] == 40.0  # 30 to 33 of ten
    assert [row["value"] for row in figures["per_question_type"]["is there"]] == pytest.approx(
        [33.33, 100.0, 93.33]
    )
    assert figures["n_pictures"] == 19  # the last two questions are text alone
    assert [row["errors"] for row in figures["counts"]] == [0, 0, 1]
    assert figures["blind"]["value"] == 30.0


def test_every_pair_is_what_two_runs_give_with_holm_over_the_pairs(runs):
    figures = compare_all(runs)
    for row in figures["pairs"]:
        alone = compare(runs[row["first"]], runs[row["second"]])["overall"]
        for key in ("difference", "low", "high", "p_value", "test", "n"):
            assert row[key] == alone[key]
    adjusted = holm([row["p_value"] for row in figures["pairs"]])
    assert [row["p_holm"] for row in figures["pairs"]] == pytest.approx(adjusted, rel=1e-5)
    assert figures["pairs"][1]["p_holm"] > figures["pairs"][1]["p_value"]


def test_strata_of_three_runs(runs):
    gallery = compare_all(runs)["gallery"]
    # 10 to 29 and the first two are divided, 30 to 33 right in the last alone
    assert {name: stratum["total"] for name, stratum in gallery.items()} == {
        "divided": 2 + 20 + 4, "all_wrong": 6, "unusable": 1,
    }  # fmt: skip
    assert compare_all(runs, seed=1)["gallery"] != gallery


def test_names_are_what_tells_runs_apart(runs, make_run):
    assert short_names(runs) == ["stage-1", "stage-2", "lora"]
    hyphens = [make_run(f"gqa-{name}", "y") for name in ("pretrain", "finetune")]
    assert short_names(hyphens) == ["pretrain", "finetune"]
    same = make_run("pope_40", "y")
    assert short_names([same, runs[0]]) == ["pope_40", "pope_40_stage-1"]
    assert short_names([same, same]) == ["pope_40 (1)", "pope_40 (2)"]


def test_only_questions_of_all_runs_are_compared(runs, make_run):
    short = make_run("pope_40_short", "y" * 20)
    figures = compare_all([*runs, short])
    assert figures["n_questions"] == figures["n"] == 20
    assert figures["overall"][0]["value"] == 50.0
    assert figures["blind"] is None  # it is of other questions
    assert reasons_against_all([*runs, short], score_run) == [
        "pope_40_stage-1 / pope_40_short: questions differ: 20 only in pope_40_stage-1, "
        "0 only in pope_40_short"
    ]


def test_what_should_not_be_compared_is_said_once(runs, make_run):
    assert reasons_against_all(runs, score_run) == []
    other = make_run("pope_40_bf16", "y" * 40, compute_dtype="bfloat16")
    assert reasons_against_all([*runs, other], score_run) == [
        "pope_40_stage-1 / pope_40_bf16: dtype: 'float32' against 'bfloat16'"
    ]
    scored = runs[0].folder / "scored.jsonl"
    scored.write_text(scored.read_text().replace('"score": 1.0', '"score": 0.0', 1))
    changed = [read_run(runs[0].folder), *runs[1:]]
    (reason,) = reasons_against_all(changed, score_run)
    assert reason.startswith("pope_40_stage-1: 1 stored scores are not what its records give")


def test_too_many_runs_and_none_in_common(runs, make_run):
    with pytest.raises(UserError, match="7 runs: at most 6"):
        compare_all(runs * 2 + runs[:1])
    other = make_run("other", "y")
    write = other.folder / "predictions.jsonl"
    write.write_text(write.read_text().replace('"sample_id": "0"', '"sample_id": "x"'))
    scored = other.folder / "scored.jsonl"
    scored.write_text(scored.read_text().replace('"sample_id": "0"', '"sample_id": "x"'))
    with pytest.raises(UserError, match="have no question in common"):
        compare_all([*runs, read_run(other.folder)])


def test_the_page_of_three_runs(runs, tiny_charts):
    text = page(runs)
    assert SCRIPT not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "lora answers best: 80.00\u00a0%. It is clearly above stage-1." in text
    assert "It can&#39;t be told apart from stage-2." in text
    assert "SYNTHETIC" in text
    assert "splits.hard.f1" in text
    assert text.count("a question without a picture") > 0
    assert "| stage-1 → lora | 40 | +55.00 [" in text
    assert "3 runs" in text


def test_both_languages_have_a_page_and_a_banner(runs, tiny_charts):
    text = page(runs, "zh", reasons=["dtype: a against b"])
    assert '<html lang="zh-CN">' in text
    assert "dtype: a against b" in text
    assert 'class="banner"' in text
    assert SHARED["en"].keys() == SHARED["zh"].keys()


def test_the_summary_has_a_line_for_each_run_and_pair(runs):
    lines = summary_of_all(compare_all(runs), [], "report.html", TEXTS["en"]).splitlines()
    assert lines[0].startswith("SYNTHETIC")
    assert lines[1].startswith("stage-1  25.00 % [")
    assert lines[4].startswith("  stage-1 → stage-2: +50.00 [")
    assert "(Holm), n 40; 20 better, 20 equal, 0 worse" in lines[4]
    assert lines[-1] == "report: report.html"
    assert len(lines) == 1 + 3 + 3 + 1


def test_runs_without_references_are_a_gallery(make_run, tiny_charts):
    runs = [make_run(f"test_{i}", answers, references=False)
            for i, answers in enumerate(("yyn", "yyy", "yne"))]  # fmt: skip
    figures = compare_all(runs)
    assert {name: stratum["total"] for name, stratum in figures["gallery"].items()} == {
        "changed": 1, "same": 1, "unusable": 1,
    }  # fmt: skip
    assert "nothing is scored" in page(runs)


def test_rows_without_protocols_are_compared_two_by_two_as_well(runs, tiny_charts):
    """A benchmark other than VQA has no soft scores beside its own figure."""
    base, tuned = runs[:2]
    figures = compare(base, tuned)
    assert (figures["protocols"], figures["exact_match"]) == (None, None)
    assert figures["blind"]["value"] == 30.0
    report = make_report(
        figures, base, tuned, pair_up(base, tuned), reasons=[], texts=TEXTS, language="en",
        find_picture=lambda record: Path(record["image"]), made_by="", date="",
    )  # fmt: skip
    text = render(report)
    assert "splits.hard.f1" in text
    assert "Who publishes under it" not in text


def test_types_of_both_tables_are_one_family(runs):
    """The same questions under two names had two adjusted p-values, 0.0004 and 0.0002."""
    base, tuned = runs[:2]
    figures = compare(base, tuned)
    rows = [*figures["per_answer_type"].values(), *figures["per_question_type"].values()]
    assert len(rows) == 3
    adjusted = holm([row["p_value"] for row in rows])
    assert [row["p_holm"] for row in rows] == pytest.approx(adjusted, rel=1e-5)
    assert "p_holm" not in figures["overall"]
    for run in (base, tuned):
        for row in run.scored.values():
            row["question_type"] = "one type"
    figures = compare(base, tuned)
    one, other = figures["per_answer_type"]["yes/no"], figures["per_question_type"]["one type"]
    assert one == other
    assert one["p_holm"] == pytest.approx(2 * figures["overall"]["p_value"])


def test_p_and_adjusted_p_stand_in_columns_of_their_own(runs, tiny_charts):
    """The row of all questions showed its unadjusted p under "p (Holm)"."""
    figures = compare(*runs[:2])
    overall, is_there = figures["overall"], figures["per_question_type"]["is there"]
    header, body = type_cells([("all", overall), ("is there", is_there)], TEXTS["en"])
    p, adjusted = header.index("p"), header.index("p (Holm)")
    assert (body[0][p], body[0][adjusted]) == ("0.002", "–")  # 2 of 2**10 patterns
    assert (body[1][p], body[1][adjusted]) == ("0.002", "0.0059")  # of three types
    assert overall["test"] == "sign-flip-clustered"  # right or wrong, two questions a picture
    assert "p: sign flips, clustered by picture." in page_of_two(runs[:2])


def page_of_two(runs: Sequence[Run]) -> str:
    base, tuned = runs
    return render(make_report(
        compare(base, tuned), base, tuned, pair_up(base, tuned), reasons=[], texts=TEXTS,
        language="en", find_picture=lambda record: Path(record["image"]), made_by="", date="",
    ))  # fmt: skip


def test_the_blind_mark_is_each_types_own(runs, monkeypatch):
    """The overall figure was drawn through the bars of every type."""
    marks = []

    def draw(
        groups: Sequence[str], *args: Any, reference: tuple[str, list], **labels: Any
    ) -> bytes:
        marks.append(
            dict(zip([group.split(" (")[0] for group in groups], reference[1], strict=True))
        )
        return b""

    for name in ("outcome_bars", "reliability_diagram", "risk_coverage_chart"):
        monkeypatch.setattr(charts, name, lambda *args, **labels: b"")
    monkeypatch.setattr(charts, "accuracy_bars", draw)
    page_of_two(runs[:2])
    assert marks == [{"all": 30.0, "yes/no": None}, {"is there": None, "which": None}]
    for run in runs:
        run.metrics["blind"] |= {"per_answer_type": {"yes/no": {"value": 45.0}},
                                 "per_question_type": {"which": {"value": 10.0}}}  # fmt: skip
    by_type = [{"all": 30.0, "yes/no": 45.0}, {"is there": None, "which": 10.0}]
    marks.clear()
    page_of_two(runs[:2])
    assert marks == by_type
    marks.clear()
    page(runs)
    assert marks == by_type


OWN_ROWS = {"source": "good.jsonl", "split": None, "data_hash": "h1"}
OFFICIAL = {"source": "data/vqav2", "split": "train2014"}


@pytest.mark.parametrize(
    ("learned", "config", "same"),
    [
        # own rows: one content under any path, or one file however it is spelled
        (OWN_ROWS, {"data": "/elsewhere/copy.jsonl", "data_hash": "h1"}, True),
        (OWN_ROWS, {"data": "./good.jsonl", "data_hash": "edited since"}, True),
        (OWN_ROWS, {"data": str(Path("good.jsonl").absolute()), "data_hash": "h2"}, True),
        ({"source": "good.jsonl", "split": None}, {"data": "./good.jsonl", "data_hash": "h"}, True),
        (OWN_ROWS, {"data": "other.jsonl", "data_hash": "h2"}, False),
        (OWN_ROWS, {"data_root": "good.jsonl", "split": "val2014", "data_hash": "h1"}, False),
        # a data root with a hash
        (OFFICIAL | {"data_hash": "a"},
         {"data_root": "/copy", "split": "train2014", "data_hash": "a"}, True),
        (OFFICIAL | {"data_hash": "a"},
         {"data_root": "/copy", "split": "val2014", "data_hash": "a"}, False),
        (OFFICIAL | {"data_hash": "a"},
         {"data_root": "/toy", "split": "train2014", "data_hash": None}, False),
        # the real VQAv2 has none; of an adapter before hashes were kept only the path is known
        (OFFICIAL | {"data_hash": None},
         {"data_root": "/copy", "split": "train2014", "data_hash": None}, True),
        (OFFICIAL, {"data_root": "/copy", "split": "train2014", "data_hash": None}, False),
        (OFFICIAL, {"data_root": "data/../data/vqav2", "split": "train2014"}, True),
        (None, {"data": "good.jsonl"}, False),
    ],
)  # fmt: skip
def test_what_an_adapter_learned_is_known_by_content_and_place(learned, config, same):
    """Paths were compared as strings: "./good.jsonl" or a copy passed as other data."""
    assert learned_from({"data": learned} if learned else None, config) is same


@pytest.mark.slow
def test_charts_of_six_runs(runs):
    """Drawn for real: six colours, labels of any length."""
    text = page([*runs, *runs])
    assert text.count('class="chart" src="data:image/png') == 5


@pytest.mark.parametrize(
    ("references", "listed"),
    [
        (["red", "red", "blue"], "red ×2, blue"),
        (["a dog, a cat", "two pets"], "a dog, a cat | two pets"),
        (["红色，圆形", "圆"], "红色，圆形 | 圆"),
    ],
)
def test_references_with_commas_are_told_apart(references, listed):
    record = {"sample_id": "1", "image": "", "question": "What?", "question_type": None,
              "references": references}  # fmt: skip
    card = question_card(record, [], lambda _: Path(), TEXTS["en"])
    assert dict(card.facts)["References"] == listed
