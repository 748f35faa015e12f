"""Runs of captions: their figures, verification, comparison of two and three, the page.

python -m pytest tests/shared/test_caption_runs.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared import caption_extras
from shared.caption_comparison import compare_all_captions, rescored
from shared.caption_report import TEXTS, captions_compared, pair_sentence
from shared.caption_runs import (
    are_caption_runs,
    change_line,
    print_figures,
    score_again,
    score_run,
    verify_captions,
)
from shared.caption_score import score_captions
from shared.comparison import reasons_against
from shared.options import UserError, write_json
from shared.report import render
from shared.runs import Run, compare_runs, read_run

NOUNS = "dog cat bus train man woman child horse pizza table street kite".split()  # noqa: SIM905
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_extras, "meteor_problem", lambda language: "no Java")


def record(i: int, answer: str | None, **changes: Any) -> dict[str, Any]:
    one, other = NOUNS[i % 12], NOUNS[(5 * i + i // 12) % 12]
    return {
        "sample_id": str(i), "image": f"{i}.png", "image_id": i, "question": "",
        "question_type": None, "answer_type": None, "prompt": "", "raw_output": answer,
        "answer": answer, "references": [f"A {one} stands near a {other}.",
                                         f"the {one} is next to the {other}"],
        "confidence": None, "finish_reason": "stop", "status": "ok", "error": None,
    } | changes  # fmt: skip


def good(i: int) -> str:
    return f"a {NOUNS[i % 12]} stands near a {NOUNS[(5 * i + i // 12) % 12]}"


def poor(i: int) -> str:
    return f"a {NOUNS[i % 12]} looks at the sky"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str, captions: Mapping[int, str | None], **config: Any) -> Run:
        """None is an error. Written and read as evaluate.py's."""
        folder = tmp_path / name
        folder.mkdir()
        records = []
        for i, caption in captions.items():
            Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
            broken = {"status": "error", "error": "no such picture", "finish_reason": None}
            records.append(record(i, caption, **(broken if caption is None else {})))
        scored, metrics = score_run(records, expected=len(records))
        for file, rows in (("predictions.jsonl", records), ("scored.jsonl", scored)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / file).write_text(text, encoding="utf-8")
        settings = {"task": "caption", "data_root": str(tmp_path), "split": "val2014", "limit": 0}
        write_json(folder / "config.json", settings | config)
        write_json(folder / "metrics.json", metrics | {"synthetic": {"data": True, "model": True}})
        return read_run(folder)

    return make


# Figures


def test_figures_are_those_of_score_captions() -> None:
    records = [record(i, good(i) if i % 3 else poor(i)) for i in range(30)]
    rows, metrics = score_run(records, expected=30)
    expected = score_captions(
        {r["sample_id"]: r["references"] for r in records},
        {r["sample_id"]: r["answer"] for r in records},
    )
    assert metrics["captions"]["corpus"] == pytest.approx(expected["corpus"], abs=1e-6)
    assert list(metrics["captions"]["corpus"]) == [
        "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR_nltk", "ROUGE_L", "CIDEr",
    ]  # fmt: skip
    bleu, limits = expected["corpus"]["Bleu_4"], expected["intervals"]["Bleu_4"]
    assert metrics["accuracy"]["value"] == round(100 * bleu, 2)
    assert metrics["accuracy"]["low"] == round(100 * limits["low"], 2)
    assert rows[4]["scores"]["CIDEr"] == round(expected["per_image"]["4"]["CIDEr"], 6)
    assert rows[4]["score"] == pytest.approx(expected["per_image"]["4"]["CIDEr"] / 10, abs=1e-6)
    assert "METEOR_nltk" not in rows[4]["scores"]


def test_an_error_is_an_empty_caption_and_is_counted() -> None:
    records = [record(i, good(i)) for i in range(9)]
    records.append(record(9, None, status="error", error="broken", finish_reason=None))
    rows, metrics = score_run(records, expected=11)
    # 9 captions of 6 words, all right, against references of 6 words: only the penalty is left
    assert metrics["accuracy"]["value"] == round(100 * math.exp(1 - 60 / 54), 2)
    assert metrics["excluding_errors"]["value"] == pytest.approx(100, abs=0.01)
    assert metrics["excluding_errors"]["n"] == 9
    assert rows[9]["score"] == 0
    assert metrics["counts"] == {"expected": 11, "answered": 9, "errors": 1, "missing": 1,
                                 "empty": 0, "cut": 0}  # fmt: skip
    assert metrics["captions"]["notes"]["missing"].startswith("1 of 10 images have no caption")


def test_no_and_one_picture() -> None:
    rows, metrics = score_run([], expected=0)
    assert (rows, metrics["accuracy"]["value"]) == ([], None)
    rows, metrics = score_run([record(1, good(1))], expected=1)
    assert rows[0]["score"] is None  # no CIDEr of a single picture
    assert metrics["captions"]["corpus"]["CIDEr"] is None
    assert metrics["accuracy"]["low"] is None


def test_the_figures_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    records = [record(i, good(i) if i % 3 else poor(i)) for i in range(30)]
    _, metrics = score_run(records, expected=30)
    print_figures(metrics)
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0].strip() for line in lines[2:9]]
    assert names == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR (nltk)", "ROUGE-L", "CIDEr"]
    value = metrics["captions"]["corpus"]["Bleu_4"]
    assert lines[5].startswith(f"  BLEU-4: {value:.4f} [")
    assert "not METEOR 1.5 (no Java)" in lines[9]


# Stored against scored again


def test_a_run_verifies_and_a_changed_one_does_not(make_run: Callable[..., Run]) -> None:
    run = make_run("run", {i: good(i) if i % 2 else poor(i) for i in range(12)})
    assert verify_captions(run) == []
    run.records["3"]["answer"] = "a boat"
    differing = verify_captions(run)
    assert any(line.startswith("question 3: score is") for line in differing)
    assert any("captions: corpus: Bleu_4" in line for line in differing)


def test_another_machine_s_meteor_is_not_compared(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("run", {i: good(i) if i % 2 else poor(i) for i in range(12)})
    stored = json.loads(json.dumps(run.metrics))
    stored["captions"]["corpus"]["METEOR_nltk"] = 0.123
    changed = replace(run, metrics=stored)
    assert any("METEOR_nltk" in line for line in verify_captions(changed))  # as its note is alike
    monkeypatch.setattr(caption_extras, "meteor_problem", lambda language: "no jar")
    assert verify_captions(changed) == []
    stored["captions"]["corpus"]["CIDEr"] += 1
    assert any("CIDEr" in line for line in verify_captions(changed))


# Two and three runs


def test_two_runs_are_compared_metric_by_metric(make_run: Callable[..., Run]) -> None:
    base = make_run("base", {i: good(i) if i % 3 == 0 else poor(i) for i in range(60)})
    tuned = make_run("tuned", {i: good(i) if i % 3 else poor(i) for i in range(60)})
    assert reasons_against(base, tuned, score_again) == []
    runs = rescored([base, tuned])
    comparison = compare_all_captions(runs, names=["base", "tuned"])
    (pair,) = comparison["pairs"]
    for name, row in pair["metrics"].items():
        scored = [c["corpus"][name] for c in comparison["captions"]]
        assert row["difference"] == pytest.approx(scored[1] - scored[0], abs=2e-6), name
        assert row["low"] < row["difference"] < row["high"]
    cider = pair["metrics"]["CIDEr"]
    assert (cider["wins"], cider["ties"], cider["losses"]) == (40, 0, 20)
    assert {name for name, row in pair["metrics"].items() if "p_holm" in row} == {"Bleu_4", "CIDEr"}
    both = sorted(pair["metrics"][name]["p_value"] for name in ("Bleu_4", "CIDEr"))
    adjusted = sorted(pair["metrics"][name]["p_holm"] for name in ("Bleu_4", "CIDEr"))
    assert adjusted == pytest.approx([min(1, 2 * both[0]), max(2 * both[0], both[1])], rel=1e-5)
    assert comparison["gallery"]["improved"]["total"] == 40
    assert comparison["gallery"]["worsened"]["total"] == 20
    assert "confident_errors" not in comparison["gallery"]
    assert pair_sentence(comparison, pair, TEXTS["en"]).startswith(
        "tuned captions better than base"
    )
    line = change_line(base, tuned)
    assert f"CIDEr {cider['difference']:+.4f} [{cider['low']:+.4f}" in line
    assert "40 better / 0 equal / 20 worse" in line
    assert compare_runs(base, tuned).wins == 40  # the headline of the common machinery


def test_only_common_pictures_are_scored_and_together(make_run: Callable[..., Run]) -> None:
    first = make_run("first", {i: good(i) if i % 2 else poor(i) for i in range(40)})
    second = make_run("second", {i: good(i) for i in range(20, 60)})
    runs = rescored([first, second])
    assert [len(run.records) for run in runs] == [20, 20]
    again, _ = score_run([first.records[str(i)] for i in range(20, 40)], expected=20)
    assert list(runs[0].scored.values()) == again
    third = make_run("third", {99: good(99)})
    with pytest.raises(UserError, match="no question in common"):
        rescored([first, third])


def test_three_runs_have_three_pairs_in_one_family(make_run: Callable[..., Run]) -> None:
    runs = [
        make_run("a", {i: poor(i) for i in range(40)}),
        make_run("b", {i: good(i) if i % 2 else poor(i) for i in range(40)}),
        make_run("c", {i: good(i) if i % 2 == 0 else poor(i) for i in range(40)}),
    ]
    comparison = compare_all_captions(rescored(runs), names=["a", "b", "c"])
    assert [(p["first"], p["second"]) for p in comparison["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    smallest = min(p["metrics"][n]["p_value"] for p in comparison["pairs"]
                   for n in ("Bleu_4", "CIDEr"))  # fmt: skip
    adjusted = min(p["metrics"][n]["p_holm"] for p in comparison["pairs"]
                   for n in ("Bleu_4", "CIDEr"))  # fmt: skip
    assert adjusted == pytest.approx(6 * smallest, rel=1e-5)
    sentence = pair_sentence(comparison, comparison["pairs"][2], TEXTS["en"])
    assert sentence.startswith("No clear difference between b and c")


def test_captions_and_answers_are_not_mixed(make_run: Callable[..., Run]) -> None:
    run = make_run("run", {i: good(i) for i in range(4)})
    vqa = replace(run, config={})
    assert are_caption_runs([run, run])
    assert not are_caption_runs([vqa])
    with pytest.raises(UserError, match=r"captions and answers.*run: caption, run: questions"):
        are_caption_runs([run, vqa])


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("n", [2, 3])
def test_the_page(make_run: Callable[..., Run], tmp_path: Path, language: str, n: int) -> None:
    base = {i: good(i) if i % 3 == 0 else poor(i) for i in range(40)}
    changed = {i: good(i) for i in range(38)} | {38: SCRIPT, 39: None}
    runs = [make_run("one", base), make_run("two", changed), make_run("three", base)][:n]
    names = ["<first>", "second", "third"][:n]
    comparison, report, said = captions_compared(
        runs, names, "out/report.html", seed=0, reasons=["prompt: not the same"], model="LLaVA",
        find_picture=lambda r: tmp_path / r["image"], language=language, made_by="compare.py",
        date="2026",
    )  # fmt: skip
    page = render(report)
    assert SCRIPT not in page
    assert "<first>" not in page
    assert "&lt;first&gt;" in page
    assert "prompt: not the same" in page
    assert "no such picture" in page  # the error, on a card
    assert "METEOR (nltk)" in page
    assert f"{comparison['captions'][1]['corpus']['CIDEr']:.4f}" in page
    assert said.count("\n") >= n + len(comparison["pairs"])
    assert f"{names[1]}  BLEU-4" in said
    missing = [key for key in TEXTS["en"] if key not in TEXTS["zh"]]
    assert missing == []
    json.dumps(comparison)
