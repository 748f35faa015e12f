"""compare.py on small run folders whose figures are worked out by hand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip2_qlora import compare as compare_module
from blip2_qlora.compare import CompareOptions, main
from blip2_qlora.compare_texts import TEXTS
from blip2_qlora.predictions import read_predictions
from blip2_qlora.scoring import official_results, score_run, write_scores
from blip2_qlora.verifying import from_data
from shared import charts
from shared import comparison as comparison_module
from shared.comparison import adapter_manifest, compare, pair_up, strata
from shared.options import REPO_ROOT, UserError, read_json, write_json
from shared.runs import read_run
from shared.significance import holm
from shared.vqa_score import PUBLISHED_UNDER

SCRIPT = "<script>alert(1)</script>"
# id, picture, answer type, question type, references, base answer, tuned answer (None = error)
QUESTIONS: list[tuple[str, int, str, str, list[str], str | None, str | None]] = [
    ("1", 1, "yes/no", "is there a", ["yes"] * 10, "yes", "no"),  # 1 -> 0
    ("2", 1, "number", "how many", ["2"] * 10, "1", "2"),  # 0 -> 1
    ("3", 2, "other", "what color is the", ["red"] * 8 + ["dark red"] * 2, "dark red", "red"),
    ("4", 2, "yes/no", "is there a", ["no"] * 10, "no", "no"),  # .6 -> 1 above; 1 -> 1
    ("5", 3, "other", "what is", ["cat"] * 10, "", SCRIPT),  # 0 -> 0
    ("6", 4, "other", "what is", ["dog"] * 10, None, "dog"),  # 0 -> 1
]


def record(question: tuple, answer: str | None, confidence: float | None) -> dict[str, Any]:
    sample_id, picture, answer_type, question_type, references, *_ = question
    failed = answer is None
    return {
        "sample_id": sample_id,
        "image": f"val2014/{picture}.jpg",
        "image_id": picture,
        "question": f"What about {sample_id}?",
        "question_type": question_type,
        "answer_type": answer_type,
        "prompt": f"Question: What about {sample_id}? Answer:",
        "raw_output": None if failed else f"{answer}</s>",
        "answer": answer,
        "references": references,
        "confidence": confidence if answer else None,
        "first_token_confidence": confidence if answer else None,
        "finish_reason": None if failed else "stop",
        "n_tokens": None if failed else 2,
        "seconds": 0.1,
        "status": "error" if failed else "ok",
        "error": "broken picture" if failed else None,
    }


def write_run(
    folder: Path, records: list[dict[str, Any]], *, data_root: Path, **config: Any
) -> Path:
    """A run folder as evaluate.py leaves it."""
    write_json(
        folder / "config.json",
        {
            "model": "some/model", "adapter": None, "data_root": str(data_root),
            "split": "val2014", "data": None, "limit": 0, "seed": 0, "quantization": "none",
            "compute_dtype": "float32", "output_dir": str(folder),
            "asked": {"prompt": "Question: {} Answer:", "num_beams": 5},
        } | config,
    )  # fmt: skip
    write_json(folder / "environment.json", {"command": f"evaluate.py {folder.name}"})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records)
    (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
    scored, metrics = score_run(records, expected=len(records))
    metrics["synthetic"] = {"data": True, "model": True}
    metrics["trained_on_scored"] = False
    metrics["blind"] = {"value": 30.0, "low": 20.0, "high": 40.0, "n": len(records)}
    metrics["data_problems"] = {"count": 1, "first": ["row 7: nine answers"]}
    write_scores(folder, scored, metrics)
    name = f"v2_OpenEnded_mscoco_val2014_{folder.name}_results.json"
    write_json(folder / name, official_results(records))
    return folder


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Pictures 1 to 4, of which the fourth is not there."""
    folder = tmp_path / "data" / "val2014"
    folder.mkdir(parents=True)
    for i in (1, 2, 3):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(folder / f"{i}.jpg")
    return tmp_path / "data"


@pytest.fixture
def make_run(tmp_path: Path, data_root: Path) -> Callable[..., Path]:
    def make(name: str, side: int, **config: Any) -> Path:
        confidences = (0.9, 0.8, 0.7, 0.6, 0.95, 0.5)
        records = [
            record(question, question[side], confidence)
            for question, confidence in zip(QUESTIONS, confidences, strict=True)
        ]
        return write_run(tmp_path / name, records, data_root=data_root, **config)

    return make


@pytest.fixture
def base(make_run: Callable[..., Path]) -> Path:
    return make_run("zero-shot", 5)


@pytest.fixture
def tuned(make_run: Callable[..., Path]) -> Path:
    return make_run("tuned", 6, adapter="some/adapter")


@pytest.fixture
def tiny_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel for each chart: drawing takes most of a report's time."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    for name in ("accuracy_bars", "outcome_bars", "reliability_diagram", "risk_coverage_chart"):
        monkeypatch.setattr(charts, name, lambda *args, **labels: content.getvalue())


@pytest.fixture
def report(tmp_path: Path, base: Path, tuned: Path, tiny_charts: None) -> Callable[..., str]:
    """Runs the script and gives the page; `test_command_line` and the browser draw real charts."""

    def run(**options: Any) -> str:
        folder = tmp_path / "report"
        given = {"base_run": str(base), "tuned_run": str(tuned), "output_dir": str(folder)}
        main(CompareOptions(**(given | options)))
        return (folder / "report.html").read_text(encoding="utf-8")

    return run


def edit_records(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a run's records and score them again."""
    records = list(read_run(folder).records.values())
    config = read_json(folder / "config.json")
    change(records)
    write_run(folder, records, **{**config, "data_root": Path(config["data_root"])})


# Figures


def test_figures_by_hand(base: Path, tuned: Path) -> None:
    figures = compare(read_run(base), read_run(tuned), protocols=PUBLISHED_UNDER)
    overall = figures["overall"]
    assert overall["base"]["value"] == pytest.approx(100 * 2.6 / 6, abs=0.005)
    assert overall["tuned"]["value"] == pytest.approx(100 * 4 / 6, abs=0.005)
    assert overall["difference"] == pytest.approx(100 * 1.4 / 6, abs=0.005)
    assert (overall["wins"], overall["ties"], overall["losses"]) == (3, 2, 1)
    assert (overall["n"], overall["n_pictures"]) == (6, 4)
    # the pictures' sums are 0, .4, 0, 1: both signs of both give (2 of 4) at least as much
    assert overall["p_value"] == pytest.approx(0.5)
    assert overall["test"] == "sign-flip-clustered"
    assert overall["minimum_detectable_difference"] > 0


def test_figures_per_type_and_protocol(base: Path, tuned: Path) -> None:
    figures = compare(read_run(base), read_run(tuned), protocols=PUBLISHED_UNDER)
    types = figures["per_answer_type"]
    assert list(types) == ["other", "yes/no", "number"]  # largest first
    assert types["other"]["base"]["value"] == pytest.approx(20.0)
    assert types["other"]["tuned"]["value"] == pytest.approx(66.67)
    assert (types["yes/no"]["wins"], types["yes/no"]["losses"]) == (0, 1)
    assert types["yes/no"]["test"] == "mcnemar-exact"
    assert types["number"]["p_value"] is None  # one picture: nothing to test
    family = [*types.values(), *figures["per_question_type"].values()]
    assert [row["p_holm"] for row in family] == pytest.approx(
        holm([row["p_value"] for row in family]), nan_ok=True
    )
    assert figures["protocols"].keys() == PUBLISHED_UNDER.keys()
    for name in ("official-2021", "always-normalise"):
        assert figures["protocols"][name]["difference"] == pytest.approx(23.33)
    assert figures["exact_match"]["base"]["value"] == pytest.approx(33.33)  # 1 and 4
    assert figures["exact_match"]["tuned"]["value"] == pytest.approx(66.67)  # 2, 3, 4, 6


def test_completeness_and_confidence(base: Path, tuned: Path) -> None:
    figures = compare(read_run(base), read_run(tuned), protocols=PUBLISHED_UNDER)
    assert {key: figures["counts"]["base"][key] for key in ("errors", "empty", "cut")} == {
        "errors": 1, "empty": 1, "cut": 0,
    }  # fmt: skip
    assert figures["counts"]["base"]["excluding_errors"]["value"] == pytest.approx(52.0)  # 2.6 / 5
    assert figures["confidence"]["base"]["n"] == 4  # neither the error nor the empty answer
    # tuned: .9 -> 0, .8 -> 1, .7 -> 1, .6 -> 1, .95 -> 0, .5 -> 1; .9 and .95 share a bin
    assert figures["confidence"]["tuned"]["ece"] == pytest.approx(
        (2 * 0.925 + 0.2 + 0.3 + 0.4 + 0.5) / 6
    )


def test_gallery_strata_by_hand(base: Path, tuned: Path) -> None:
    drawn = strata(pair_up(read_run(base), read_run(tuned)), seed=0)
    ids = {name: [pair.sample_id for pair in pairs] for name, (_, pairs) in drawn.items()}
    assert ids == {
        "improved": ["2", "3", "6"],
        "worsened": ["1"],
        "confident_errors": ["5", "1"],  # surest first: .95, .9
        "unusable": ["5", "6"],  # empty and error of the base run
    }


def test_gallery_is_drawn_by_seed_and_bounded(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [(str(i), i, "number", "how many", ["1"] * 10, "0", "1") for i in range(60)]
    monkeypatch.setattr(sys.modules[__name__], "QUESTIONS", many[:6])
    folders = [make_run("a", 5), make_run("b", 6)]
    for folder, side in zip(folders, (5, 6), strict=True):
        edit_records(folder, lambda rows, side=side: rows.extend(
            record(question, question[side], 0.5) for question in many[6:]))  # fmt: skip
    pairs = pair_up(*map(read_run, folders))
    total, first = strata(pairs, seed=0)["improved"]
    assert (total, len(first)) == (60, comparison_module.CARDS)
    assert first == strata(pairs, seed=0)["improved"][1]
    assert first != strata(pairs, seed=1)["improved"][1]


# Refusal


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"asked": {"prompt": "Q: {}", "num_beams": 5}}, "prompt or decoding"),
        ({"asked": {"prompt": "Question: {} Answer:", "num_beams": 1}}, "prompt or decoding"),
        ({"compute_dtype": "bfloat16"}, "dtype"),
    ],
)
def test_other_prompt_decoding_or_dtype_is_refused(
    config: dict[str, Any], reason: str, make_run, report, tmp_path: Path
) -> None:
    other = make_run("other", 6, **config)
    with pytest.raises(UserError, match=reason):
        report(tuned_run=str(other))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("question", "Something else?", "question: not the same for 1"),
        ("prompt", "Q", "prompt: not the same for 1"),
        ("references", ["yes"] * 9 + ["no"], "references: not the same for 1"),
        ("image", "val2014/3.jpg", "picture: not the same for 1"),
    ],
)
def test_records_that_differ_are_refused(
    key: str, value: Any, reason: str, tuned: Path, report
) -> None:
    edit_records(tuned, lambda rows: rows[0].__setitem__(key, value))
    with pytest.raises(UserError, match=reason):
        report()


def test_other_questions_and_protocol_are_refused(tuned: Path, report) -> None:
    edit_records(tuned, lambda rows: rows.pop())
    with pytest.raises(UserError, match="1 only in zero-shot, 0 only in tuned"):
        report()
    # one reference instead of ten: exact match, not VQA accuracy
    edit_records(tuned, lambda rows: [row.update(references=["yes"]) for row in rows])
    with pytest.raises(UserError, match="protocol"):
        report()


def test_force_shows_a_red_banner_and_compares_the_common_questions(
    tuned: Path, report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_records(tuned, lambda rows: rows.pop())
    page = report(force=True)
    assert 'class="banner"' in page
    assert "1 only in zero-shot" in page
    assert "for the 5 questions that both runs hold" in page
    stored = read_json(tmp_path / "report" / "comparison.json")
    assert stored["overall"]["n"] == 5
    assert len(stored["not_comparable"]) == 1
    assert stored["blind"] is None  # it was computed for six questions
    assert "NOT COMPARABLE" in capsys.readouterr().out


def test_comparable_runs_have_no_banner(report) -> None:
    assert 'class="banner"' not in report()


def test_another_model_is_comparable(make_run, report) -> None:
    other = make_run("other", 6, model="another/model")
    assert 'class="banner"' not in report(tuned_run=str(other))


def test_tampered_scores_are_refused(tuned: Path, report) -> None:
    rows = (tuned / "scored.jsonl").read_text().replace('"score": 0.0', '"score": 1.0', 1)
    (tuned / "scored.jsonl").write_text(rows)
    with pytest.raises(UserError, match="tuned: 1 stored scores are not what its records give"):
        report()


def test_adapter_trained_on_the_scored_questions_is_flagged(
    tmp_path: Path, data_root: Path, make_run, report
) -> None:
    learned = {"source": str(data_root), "split": "val2014", "questions": 6,
               "held_out_questions": 0}  # fmt: skip
    write_json(tmp_path / "adapter" / "manifest.json", {"data": learned})
    run = make_run("contaminated", 6, adapter=str(tmp_path / "adapter"))
    assert adapter_manifest(read_run(run)) == {"data": learned}
    page = report(tuned_run=str(run))
    assert 'class="banner"' in page
    assert "contaminated: its adapter was trained on val2014 of" in page
    write_json(tmp_path / "adapter" / "manifest.json", {"data": {**learned, "split": "train2014"}})
    assert 'class="banner"' not in report(tuned_run=str(run))


def test_an_adapter_trained_on_a_copy_of_the_scored_rows_is_flagged(
    tmp_path: Path, make_run, report
) -> None:
    """By the hash of the rows; and by what evaluate.py found, should the adapter be gone."""
    learned = {"source": "good.jsonl", "split": None, "data_hash": "abc", "questions": 6,
               "held_out_questions": 0}  # fmt: skip
    write_json(tmp_path / "adapter" / "manifest.json", {"data": learned})
    run = make_run("contaminated", 6, adapter=str(tmp_path / "adapter"),
                   data="/elsewhere/copy.jsonl", data_hash="abc")  # fmt: skip
    flagged = "contaminated: its adapter was trained on own rows, /elsewhere/copy.jsonl"
    assert flagged in report(tuned_run=str(run), force=True)
    (tmp_path / "adapter" / "manifest.json").unlink()
    assert flagged not in report(tuned_run=str(run), force=True)
    metrics = read_json(run / "metrics.json")
    write_json(run / "metrics.json", metrics | {"trained_on_scored": True})
    assert flagged in report(tuned_run=str(run), force=True)


# Page and text


def test_summary_ends_with_accuracies_difference_and_report(
    report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report()
    *_, base_line, tuned_line, difference, path = capsys.readouterr().out.strip().splitlines()
    assert "43.33 %" in base_line
    assert "66.67 %" in tuned_line
    assert difference.startswith("difference +23.33 points [")
    assert (
        "p 0.50 (sign flips, clustered by picture), n 6; 3 better, 2 equal, 1 worse" in difference
    )
    assert path == f"report: {tmp_path / 'report' / 'report.html'}"


def test_page_escapes_answers_and_carries_notices(report) -> None:
    page = report()
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "SYNTHETIC" in page
    assert "Only 4 pictures: the intervals are too narrow." in page
    assert "30.00\u00a0%" in page  # the blind baseline
    assert "row 7: nine answers" in page
    for published in ("GT-Vision-Lab/VQA", "LAVIS", "lmms-eval"):
        assert published in page


def test_missing_picture_becomes_a_placeholder(report) -> None:
    page = report()
    assert page.count('<div class="placeholder">') == 2  # question 6: improved, and unusable
    assert page.count('src="data:image/jpeg') == 6


def test_without_any_picture_the_page_still_comes(report, data_root: Path) -> None:
    for picture in data_root.glob("val2014/*"):
        picture.unlink()
    assert 'src="data:image/jpeg' not in report()


def test_empty_strata_say_none(base: Path, report) -> None:
    edit_records(base, lambda rows: [row.update(answer="x", status="ok", error=None)
                                     for row in rows])  # fmt: skip
    page = report(tuned_run=str(base))
    assert page.count('<p class="note">none</p>') == 3  # all but the confident errors
    assert "No clear difference" in page


def test_chinese_page_and_summary(report, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(language="zh")
    assert '<html lang="zh-CN">' in page
    assert "微调前后对比" in page
    assert "玩具数据和玩具模型" in page
    assert "报告：" in capsys.readouterr().out


def test_chinese_page_has_english_charts_without_a_chinese_font(
    report, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = charts.accuracy_bars
    monkeypatch.setattr(
        charts,
        "accuracy_bars",
        lambda groups, series, **labels: (
            drawn.append([*groups, *series, labels["x_label"]]) or draw(groups, series, **labels)
        ),
    )
    monkeypatch.setattr(charts, "cjk_font", lambda: None)
    report(language="zh")
    assert len(drawn) == 2
    assert all(text.isascii() for texts in drawn for text in texts)


def test_both_languages_say_the_same_things() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, english in TEXTS["en"].items():
        fields = {part.split("}")[0].split(":")[0] for part in english.split("{")[1:]}
        chinese = TEXTS["zh"][key].split("{")[1:]
        assert {part.split("}")[0].split(":")[0] for part in chinese} == fields, key
    assert all(f"published {name}" in TEXTS["en"] for name in PUBLISHED_UNDER)


def test_right_or_wrong_questions_that_share_pictures_are_tested_by_picture(
    base: Path, tuned: Path, report, tmp_path: Path
) -> None:
    for folder in (base, tuned):
        edit_records(folder, lambda rows: rows.pop(2))  # the only graded question
    page = report()
    overall = read_json(tmp_path / "report" / "comparison.json")["overall"]
    assert overall["test"] == "sign-flip-clustered"  # McNemar's takes them as independent
    assert "Test of the headline: sign flips, clustered by picture." in page
    assert "McNemar&#39;s exact test (a picture for each question)" in page  # of one type


def test_own_rows_are_found_beside_their_file(make_run, report, tmp_path: Path) -> None:
    (tmp_path / "mine" / "val2014").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "mine" / "val2014" / "4.jpg")
    own = {"data": str(tmp_path / "mine" / "rows.jsonl")}
    runs = [make_run(f"own{side}", side, **own) for side in (5, 6)]
    page = report(base_run=str(runs[0]), tuned_run=str(runs[1]))
    assert page.count('src="data:image/jpeg') == 2  # question 6, in two strata
    assert "own rows, " in page


def test_run_without_references_is_a_gallery(base: Path, tuned: Path, report) -> None:
    """As of the test2015 split, whose annotations are not published."""
    for folder in (base, tuned):
        edit_records(folder, lambda rows: [row.update(references=[]) for row in rows])
    page = report()
    assert "No question has references" in page
    assert "Different answers" in page


# predict.py's files


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def prediction(image: str, question: str | None, answer: str | None, **more: Any) -> dict[str, Any]:
    return {"image_path": image, "caption": "a shape", "question": question, "answer": answer,
            "confidence": 0.5} | more  # fmt: skip


def test_two_files_of_predict_give_a_gallery(
    tmp_path: Path, data_root: Path, report, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [prediction("1.jpg", "What?", "cat"), prediction("2.jpg", None, None),
            prediction("3.jpg", "What?", "dog"),
            prediction("4.jpg", "What?", None, error="4.jpg: no such picture")]  # fmt: skip
    before = write_rows(tmp_path / "before.jsonl", rows)
    rows[0]["answer"], rows[1]["caption"] = "dog", "another shape"
    after = write_rows(tmp_path / "after.jsonl", rows)
    pictures = str(data_root / "val2014")
    page = report(base_run=str(before), tuned_run=str(after), images_root=pictures)
    assert "2 of 4 differ" in capsys.readouterr().out
    assert page.count('src="data:image/jpeg') == 3
    assert "another shape" in page
    assert "4.jpg: no such picture" in page
    assert "Accuracy by answer type" not in page
    stored = read_json(tmp_path / "report" / "comparison.json")
    assert {name: stratum["total"] for name, stratum in stored["gallery"].items()} == {
        "changed": 2, "same": 1, "unusable": 1,
    }  # fmt: skip
    assert stored["overall"]["difference"] is None
    assert stored["overall"]["note"]


def test_predictions_of_other_pictures_are_refused(tmp_path: Path, report) -> None:
    before = write_rows(tmp_path / "before.jsonl", [prediction("1.jpg", "What?", "cat")])
    after = write_rows(tmp_path / "after.jsonl", [prediction("2.jpg", "What?", "cat")])
    with pytest.raises(UserError, match="questions differ"):
        report(base_run=str(before), tuned_run=str(after))
    with pytest.raises(UserError, match="no question in common"):
        report(base_run=str(before), tuned_run=str(after), force=True)


def test_the_same_question_twice_is_two_rows(tmp_path: Path) -> None:
    rows = [prediction("1.jpg", "What?", "cat"), prediction("1.jpg", "What?", "d\u2028og")]
    file = tmp_path / "twice.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    run = read_predictions(file)
    assert [row["answer"] for row in run.records.values()] == ["cat", "d\u2028og"]


def test_files_of_a_toy_model_keep_its_notice(tmp_path: Path, report) -> None:
    rows = [prediction("1.jpg", "What?", "cat", synthetic=True)]
    file = str(write_rows(tmp_path / "toy.jsonl", rows))
    assert "SYNTHETIC" in report(base_run=file, tuned_run=file)


def test_what_is_no_row_of_predict_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [prediction("1.jpg", "What?", "cat"), {"a": 1}])
    with pytest.raises(UserError, match=r"rows\.jsonl line 2: not a row of predict\.py"):
        read_predictions(file)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        read_predictions(tmp_path / "empty.jsonl")


def test_a_run_and_a_file_are_not_compared(tmp_path: Path, report) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [prediction("1.jpg", "What?", "cat")])
    with pytest.raises(UserError, match="not one of each"):
        report(tuned_run=str(file))


# What a folder does not hold


def test_a_file_is_no_run_and_its_folder_is_named(base: Path, tuned: Path) -> None:
    for where in (base / "metrics.json", base / "predictions.jsonl"):
        with pytest.raises(UserError, match=rf"{where.name}: a file; .* folder: {base}$"):
            main(CompareOptions(verify=str(where)))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        main(CompareOptions(verify=str(base / "nowhere")))


@pytest.mark.parametrize(
    ("file", "key", "message"),
    [
        ("predictions.jsonl", "answer", r"predictions.jsonl: the record of 3 has no 'answer'"),
        ("predictions.jsonl", "references", r"record of 3 has no 'references'"),
        ("scored.jsonl", "score", r"scored.jsonl line 3: not a row of scores \('score'\)"),
    ],
)
def test_a_row_without_its_prediction_or_score_is_named(
    base: Path, report, file: str, key: str, message: str
) -> None:
    """The page and the demo would meet it as a KeyError, far from its file."""
    rows = [json.loads(line) for line in (base / file).read_text("utf-8").splitlines()]
    del rows[2][key]
    write_rows(base / file, rows)
    with pytest.raises(UserError, match=message):
        report()


def test_a_scored_question_without_record_says_what_to_do(base: Path, report) -> None:
    rows = [json.loads(line) for line in (base / "predictions.jsonl").read_text().splitlines()]
    write_rows(base / "predictions.jsonl", rows[1:])
    with pytest.raises(UserError, match="1 scored questions have no record, the first 1; the"):
        report()


def test_a_report_that_cannot_be_written_is_told_before_it_is_computed(
    tmp_path: Path, report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "compare", None)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken: cannot be written"):
        report(output_dir=str(tmp_path / "taken"))


# --verify


def test_verify_accepts_what_evaluate_wrote(base: Path, capsys) -> None:
    main(CompareOptions(verify=str(base)))
    assert "6 questions scored again, all as stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("scored.jsonl", '"score": 0.6', '"score": 0.9', "question 3: score is 0.9 in scored"),
        (
            "metrics.json",
            '"value": 43.33',
            '"value": 53.33',
            "metrics.json: accuracy: value: 53.33",
        ),
        ("metrics.json", '"errors": 1', '"errors": 0', "metrics.json: counts: errors: 0, not 1"),
        ("predictions.jsonl", '"answer": "1"', '"answer": "2"', "question 2: score is 0.0"),
    ],
)
def test_verify_names_what_was_changed(
    file: str, old: str, new: str, named: str, base: Path, capsys
) -> None:
    content = (base / file).read_text()
    assert old in content
    (base / file).write_text(content.replace(old, new))
    with pytest.raises(SystemExit) as exit_info:
        main(CompareOptions(verify=str(base)))
    assert exit_info.value.code == 1
    assert named in capsys.readouterr().out


def verified(run: Path, capsys, *, differs: bool = True) -> str:
    """What --verify prints, after the exit status that goes with it."""
    if differs:
        with pytest.raises(SystemExit) as exit_info:
            main(CompareOptions(verify=str(run)))
        assert exit_info.value.code == 1
    else:
        main(CompareOptions(verify=str(run)))
    return capsys.readouterr().out


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    content = read_json(path)
    write_json(path, change(content) or content)


def test_verify_names_what_was_invented(base: Path, capsys) -> None:
    """Only what scoring gives used to be looked for, not what stood there beside it."""
    invented = {"what is the secret": {"value": 99.0, "low": 98.0, "high": 100.0, "n": 5}}
    edit_json(base / "metrics.json", lambda m: m["per_question_type"].update(invented))
    assert "per_question_type: what is the secret: {" in verified(base, capsys)


def test_verify_takes_what_is_synthetic_from_data_and_model(
    make_run: Callable[..., Path], data_root: Path, tmp_path: Path, capsys
) -> None:
    model = tmp_path / "model"
    for folder in (data_root, model):
        write_json(folder / "manifest.json", {"synthetic": True})
    run = make_run("run", 5, model=str(model))
    assert "not checked, as nothing here tells them again: blind, data_problems" in verified(
        run, capsys, differs=False
    )
    edit_json(run / "metrics.json", lambda m: m["synthetic"].update(data=False))
    assert "metrics.json: synthetic: data: False, not True" in verified(run, capsys)


def test_verify_computes_the_blind_figure_again(
    make_run: Callable[..., Path], data_root: Path, capsys
) -> None:
    """Of the train split's answers: "yes" is right for one of the six questions."""
    train = [{"question_type": "what", "multiple_choice_answer": "yes", "answers": []}]
    write_json(data_root / "v2_mscoco_train2014_annotations.json", {"annotations": train})
    run = make_run("run", 5)
    said = verified(run, capsys)  # the fixture's own figure is made up
    assert "metrics.json: blind: value: 30.0, not 16.67" in said
    again = from_data(read_run(run))["blind"]
    edit_json(run / "metrics.json", lambda m: m.update(blind=again))
    assert "not checked, as nothing here tells them again: data_problems, synthetic" in verified(
        run, capsys, differs=False
    )


def test_verify_misses_the_results_file(base: Path, capsys) -> None:
    next(base.glob("*_results.json")).unlink()
    assert "no official results file" in verified(base, capsys)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("predictions.jsonl", {"answer": 7}, r"predictions.jsonl: .* of 3: 'answer' is 7, not a t"),
        ("predictions.jsonl", {"confidence": "high"}, r"of 3: 'confidence' is 'high', not a num"),
        ("predictions.jsonl", {"confidence": 3.5}, r"'confidence' is 3.5, not a number from 0 to"),
        ("predictions.jsonl", {"references": "abc"}, r"'references' is 'abc', not a list of text"),
        ("scored.jsonl", {"score": 6}, r"scored.jsonl: 3: 'score' is 6, not a number from 0 to 1"),
        ("metrics.json", [], r"metrics.json: not a run's figures, but \[\]"),
        ("metrics.json", {"counts": None}, r"metrics.json: 'counts' is None, not whole numbers"),
        (
            "metrics.json",
            {"blind": {"value": 1.0, "low": 20.0, "high": 40.0}},
            r"'blind' is .* not",
        ),
        (
            "metrics.json",
            {"data_problems": {"count": 77, "first": []}},
            r"'data_problems' is .*, not a count and the first problems",
        ),
        ("config.json", [], r"config.json: not a run's options, but \[\]"),
    ],
)
def test_a_damaged_run_is_one_message_with_file_and_field(
    base: Path, report, file: str, change: Any, message: str
) -> None:
    """Each used to end in a traceback, of --verify, of the report, or of neither."""
    path = base / file
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        rows[2] |= change
        write_rows(path, rows)
    else:
        write_json(path, read_json(path) | change if isinstance(change, dict) else change)
    for use in (report, lambda: main(CompareOptions(verify=str(base)))):
        with pytest.raises(UserError, match=message):
            use()


def test_verify_checks_the_official_results_file_too(base: Path, capsys) -> None:
    (file,) = base.glob("*_results.json")
    file.write_text(file.read_text().replace("dark red", "red"))
    with pytest.raises(SystemExit):
        main(CompareOptions(verify=str(base)))
    assert f"{file.name}: not the answers of predictions.jsonl" in capsys.readouterr().out


# Command line


def run_script(*arguments: str, cwd: Path = REPO_ROOT) -> subprocess.CompletedProcess[str]:
    script = REPO_ROOT / "blip2_qlora" / "compare.py"
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=300,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


@pytest.mark.slow
def test_command_line(base: Path, tuned: Path, tmp_path: Path) -> None:
    done = run_script(
        "--base_run", "zero-shot", "--tuned_run", "tuned", "--output_dir", "out", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "report.html").is_file()
    (base / "metrics.json").unlink()
    done = run_script("--base_run", str(base), "--tuned_run", str(tuned))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "metrics.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_runs_the_message_says_how_to_make_them() -> None:
    with pytest.raises(UserError, match=r"--base_run and --tuned_run"):
        main(CompareOptions())
    with pytest.raises(UserError, match="make quickstart writes it"):
        main(CompareOptions(base_run="/nowhere/run", tuned_run="/nowhere/run2", toy=True))


def test_unwritable_output_folder(report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        report(output_dir=str(tmp_path / "file" / "report"))


@pytest.mark.browser
def test_report_in_a_browser(
    base: Path, tuned: Path, tmp_path: Path, chromium_page, page_log: dict[str, list[str]]
) -> None:
    folder = tmp_path / "report"
    main(CompareOptions(base_run=str(base), tuned_run=str(tuned), output_dir=str(folder)))
    chromium_page.on("dialog", lambda dialog: pytest.fail("a script of an answer ran"))
    chromium_page.goto((folder / "report.html").as_uri())
    widths = chromium_page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
    assert len(widths) == 12  # six charts, six pictures
    assert min(widths) > 0
    assert page_log["errors"] == []
    assert [url for url in page_log["requests"] if not url.startswith(("data:", "file:"))] == []
    chromium_page.get_by_role("button", name="Copy").first.click()
    copied = chromium_page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[2].startswith("| all | 6 | 43.33 [")
    chromium_page.set_viewport_size({"width": 390, "height": 844})
    assert chromium_page.evaluate("document.documentElement.scrollWidth") == 390
