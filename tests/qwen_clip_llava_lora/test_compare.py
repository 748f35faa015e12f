"""compare.py and its figures: paired tests by hand, refusals, pages of two and three runs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_clip_llava_lora import compare
from qwen_clip_llava_lora.answer_scores import language_of
from qwen_clip_llava_lora.compare import CompareOptions, chosen_folders, main
from qwen_clip_llava_lora.comparing import metric_rows, metric_rows_of_all
from qwen_clip_llava_lora.report_texts import OWN, texts_for
from qwen_clip_llava_lora.scoring import metrics_of, score_records
from shared import charts
from shared.options import REPO_ROOT, MissingError, UserError, read_json, write_json
from shared.run_comparison import runs_first
from shared.runs import read_run
from shared.significance import holm

SCRIPT = REPO_ROOT / "qwen_clip_llava_lora" / "compare.py"
REFERENCES = ["a red circle", "a blue star", "a green square", "two red stars", "a yellow cross",
              "one cyan arrow", "一个红色的圆", "一个蓝色的方块"]  # fmt: skip
N = len(REFERENCES)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A finished run of given answers and log-likelihoods, one sample a picture."""

    def make(
        name: str,
        answers: Sequence[str | None],
        log_probs: Sequence[float] | None = None,
        *,
        references: Sequence[str] = REFERENCES,
        task: str = "caption",
        classes: Sequence[str] = (),
        n_tokens: int = 4,
        **config: Any,
    ) -> Path:
        folder, pictures = tmp_path / name, tmp_path / "pictures"
        folder.mkdir()
        pictures.mkdir(exist_ok=True)
        records, likelihoods = [], {}
        for i, (answer, reference) in enumerate(zip(answers, references, strict=True)):
            Image.new("RGB", (8, 8), (30 * i, 90, 120)).save(pictures / f"{i}.png")
            records.append({
                "sample_id": str(i), "image": f"{i}.png", "image_id": f"{i}.png",
                "question": "What?", "question_type": reference if task == "label" else None,
                "answer_type": language_of(reference), "prompt": "<image>\nWhat?",
                "raw_output": answer, "answer": answer, "references": [reference],
                "confidence": None if answer is None else 0.5, "language": language_of(reference),
                "finish_reason": None if answer is None else "stop", "target": reference,
                "status": "error" if answer is None else "ok",
                "error": "broken" if answer is None else None,
                **({"label": reference} if task == "label" else {}),
            })  # fmt: skip
            if log_probs is not None:
                scores = {"choice_log_probs": [log_probs[i]], "choice_n_tokens": [n_tokens]}
                likelihoods[str(i)] = {"status": "ok", **scores}
        rows = score_records(records, task, classes, likelihoods if log_probs else None)
        metrics = metrics_of(rows, records, task, classes, expected=len(records))
        metrics |= {"trained_on_scored": False, "synthetic": {"data": True, "model": False},
                    "data_problems": {"count": 0, "first": []}}  # fmt: skip
        for file, lines in (("predictions", records), ("scored", rows)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{file}.jsonl").write_text(text, encoding="utf-8")
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "config.json", {
            "script": "evaluate", "task": task, "classes": list(classes), "model": "m",
            "adapter": None, "data": "rows.json", "data_hash": "d", "prompts_hash": "p", "limit": 0,
            "seed": 0, "pictures": "own", "image_root": str(pictures), "compute_dtype": "float32",
            "asked": {"template": "t", "max_new_tokens": 8}, **config,
        })  # fmt: skip
        return folder

    return make


WORSE = ["a red circle", "a star", "a square", "red", "a cross", "an arrow", "一个圆", "方块"]
BASE_LOG_PROBS = [-4.0, -6.0, -8.0, -5.0, -7.0, -9.0, -3.0, -2.0]
GAINS = [1.0, 2.0, -0.5, 3.0, 1.5, 2.5, 0.75, 4.0]
TUNED_LOG_PROBS = [a + b for a, b in zip(BASE_LOG_PROBS, GAINS, strict=True)]


@pytest.fixture
def two(make_run) -> list[str]:
    return [
        str(make_run("run_base", WORSE, BASE_LOG_PROBS)),
        str(make_run("run_tuned", REFERENCES, TUNED_LOG_PROBS)),
    ]


@pytest.fixture
def tiny_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel for each chart: drawing takes most of a report's time."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    for name in ("accuracy_bars", "outcome_bars", "reliability_diagram", "risk_coverage_chart",
                 "mirrored_histogram"):  # fmt: skip
        monkeypatch.setattr(charts, name, lambda *args, **labels: content.getvalue())


@pytest.fixture
def report(tmp_path: Path, tiny_charts: None) -> Callable[..., str]:
    def run(runs: list[str], **options: Any) -> str:
        folder = tmp_path / "report"
        main(CompareOptions(runs=runs, output_dir=str(folder), **options))
        return (folder / "report.html").read_text(encoding="utf-8")

    return run


def by_metric(rows: list[dict], metric: str, group: str = "") -> dict:
    return next(row for row in rows if (row["metric"], row["group"]) == (metric, group))


def test_likelihood_is_tested_by_sign_flips_and_wilcoxon(two):
    row = by_metric(metric_rows(*(read_run(Path(folder)) for folder in two)), "log_likelihood")
    assert row["first"] == pytest.approx(-5.5)
    assert row["difference"] == pytest.approx(sum(GAINS) / N, abs=1e-4)
    assert row["low"] < row["difference"] < row["high"]
    assert (row["wins"], row["ties"], row["losses"]) == (7, 0, 1)
    # As far from 0 as observed, of all 2**8 sign patterns: those with no loss, or the -0.5 alone,
    # and the same with all signs turned. Wilcoxon: the one loss has rank 1, so again none or that.
    assert row["p_value"] == pytest.approx(4 / 2**N)
    assert row["p_wilcoxon"] == pytest.approx(4 / 2**N)


def test_exact_match_is_mcnemar_s(two):
    row = by_metric(metric_rows(*(read_run(Path(folder)) for folder in two)), "exact_match")
    assert (row["first"], row["second"], row["difference"]) == (12.5, 100.0, 87.5)
    assert row["test"] == "mcnemar-exact"
    assert row["p_value"] == pytest.approx(2 / 2**7)  # seven changed, all the same way


def test_captions_are_compared_by_language_and_from_the_corpus(two):
    from shared.caption_score import compare_captions

    rows = metric_rows(*(read_run(Path(folder)) for folder in two))
    english = {str(i): [text] for i, text in enumerate(REFERENCES[:6])}
    said = [{str(i): text for i, text in enumerate(answers[:6])} for answers in (WORSE, REFERENCES)]
    expected = compare_captions(english, *said)["CIDEr"]
    row = by_metric(rows, "CIDEr", "en")
    assert row["difference"] == pytest.approx(expected.difference, abs=1e-3)
    assert row["second"] - row["first"] == pytest.approx(row["difference"], abs=1e-3)
    assert (row["p_value"], row["n"]) == (expected.p_value, 6)
    assert by_metric(rows, "CIDEr", "zh")["n"] == 2
    assert by_metric(rows, "token_f1", "zh")["second"] == 100.0


def test_other_tokens_leave_the_likelihood_of_a_token_out(two, make_run):
    other = make_run("other", REFERENCES, TUNED_LOG_PROBS, n_tokens=5)
    rows = metric_rows(read_run(Path(two[0])), read_run(other))
    assert "per_token" not in {row["metric"] for row in rows}
    assert "tokens differ" in by_metric(rows, "log_likelihood")["note"]
    same = metric_rows(*(read_run(Path(folder)) for folder in two))
    assert by_metric(same, "per_token")["difference"] == pytest.approx(sum(GAINS) / N / 4, abs=1e-4)


@pytest.mark.slow
def test_holm_over_the_pairs_of_a_metric_by_hand(two, make_run):
    third = make_run("third", WORSE, [value - 0.1 for value in BASE_LOG_PROBS])
    runs = [read_run(Path(folder)) for folder in (*two, third)]
    rows = [row for row in metric_rows_of_all(runs) if row["metric"] == "exact_match"]
    assert [row["pair"] for row in rows] == [[0, 1], [0, 2], [1, 2]]
    p = [row["p_value"] for row in rows]
    assert p == [2 / 2**7, 1.0, 2 / 2**7]
    # smallest times three, the next times two but not below it, the largest as it is
    assert [row["p_holm"] for row in rows] == [
        pytest.approx(3 * p[0]),
        1.0,
        pytest.approx(3 * p[0]),
    ]
    of_all = [row for row in metric_rows_of_all(runs) if row["metric"] == "log_likelihood"]
    alone = [metric_rows(runs[i], runs[j])[0]["p_wilcoxon"] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert [row["p_wilcoxon"] for row in of_all] == pytest.approx(holm(alone))
    assert [row["p_wilcoxon"] for row in of_all] != alone


CLASSES = ("happy", "sad")
LABELS = ["happy", "happy", "happy", "sad", "sad", "sad"]


def test_classes_of_two_runs(make_run):
    runs = [
        read_run(make_run(name, said, references=LABELS, task="label", classes=CLASSES))
        for name, said in (("one", ["happy"] * 6), ("both", LABELS))
    ]
    rows = metric_rows(*runs)
    accuracy = by_metric(rows, "class")
    assert (accuracy["first"], accuracy["second"]) == (50.0, 100.0)
    assert accuracy["p_value"] == pytest.approx(2 / 2**3)
    macro = by_metric(rows, "macro_f1")
    assert macro["first"] == pytest.approx(100 / 3, abs=1e-3)  # happy 2/3, sad 0
    assert (macro["second"], macro["p_value"]) == (100.0, None)
    assert macro["low"] <= macro["difference"] <= macro["high"]
    assert "CIDEr" not in {row["metric"] for row in rows}


# The script


def test_two_runs(two, report, tmp_path, capsys):
    page = report(two)
    said = capsys.readouterr().out
    assert "Log-likelihood of the references: -5.500 → -3.719 nats a sample, +1.781 [" in said
    assert "7 better, 1 equal, 0 worse" in said
    assert "tuned answers better than base by token F1" in page
    assert "log-likelihood, a sample (nats)" in page
    assert "CIDEr, Chinese (0–10)" in page
    assert "SYNTHETIC" in page
    assert page.count('src="data:image/jpeg') >= 6
    stored = read_json(tmp_path / "report" / "comparison.json")
    assert stored["not_comparable"] == []
    assert by_metric(stored["metrics"], "exact_match")["difference"] == 87.5


@pytest.mark.slow
def test_three_runs_have_a_row_for_every_pair(two, make_run, report, tmp_path, capsys):
    third = make_run("run_full", REFERENCES, TUNED_LOG_PROBS)
    page = report([*two, str(third)], names=["none", "LoRA", "full"])
    for pair in ("none → LoRA", "none → full", "LoRA → full"):
        assert f"{pair}: Log-likelihood of the references" in page
        assert page.count(pair) > 5
    stored = read_json(tmp_path / "report" / "comparison.json")
    assert all("p_holm" in row for row in stored["metrics"])
    assert "none → full: +" in capsys.readouterr().out


def test_the_page_in_chinese(two, report):
    page = report(two, language="zh")
    assert "全部指标" in page
    assert "对数似然，每个样本" in page
    assert 'lang="zh-CN"' in page


def test_both_languages_have_the_same_words():
    assert OWN["en"].keys() == OWN["zh"].keys()
    names = ["a{b", "c"]
    sentence = texts_for(names, "token F1")["en"]["better"]
    said = sentence.format(base="1", tuned="2", difference="+1", interval="[0, 2]", p="0.01")
    assert said.startswith("c answers better than a{b by token F1: 1 → 2")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts_hash": "q"}, "prompts: 'p' against 'q'"),
        ({"data_hash": "e"}, "data_hash: 'd' against 'e'"),
        ({"asked": {"template": "u", "max_new_tokens": 8}}, "prompt or decoding"),
        ({"compute_dtype": "bfloat16"}, "dtype"),
        ({"pictures": "shuffled"}, "pictures shown"),
    ],
)
def test_runs_asked_otherwise_are_refused_and_shown_with_force(
    two, make_run, report, tmp_path, changes, reason
):
    other = str(make_run("other", REFERENCES, **changes))
    with pytest.raises(UserError, match=reason):
        report([two[0], other])
    assert not (tmp_path / "report").exists()
    assert reason.split(":")[0] in report([two[0], other], force=True)


def test_other_samples_references_and_edited_scores_are_refused(two, make_run, report, tmp_path):
    fewer = make_run("fewer", REFERENCES[:5], references=REFERENCES[:5])
    with pytest.raises(UserError, match="3 only in run_base, 0 only in fewer"):
        report([two[0], str(fewer)])
    others = make_run("others", REFERENCES, references=REFERENCES[::-1])
    with pytest.raises(UserError, match="references: not the same for 8 questions"):
        report([two[0], str(others)])
    scored = Path(two[1]) / "scored.jsonl"
    scored.write_text(scored.read_text("utf-8").replace('"exact_match": 1', '"exact_match": 0', 1))
    with pytest.raises(UserError, match="stored scores are not what its records give"):
        report(two)


def test_another_task_or_experiment_is_refused(two, make_run, report):
    label = make_run("label", LABELS, references=LABELS, task="label", classes=CLASSES)
    with pytest.raises(UserError, match="different tasks"):
        report([two[0], str(label)])
    metrics = read_json(Path(two[1]) / "metrics.json")
    write_json(Path(two[1]) / "metrics.json", metrics | {"exact_match_rule": "another"})
    with pytest.raises(UserError, match="not scored by this version"):
        report(two)


def test_one_run_alone_and_an_unfinished_one(two, report):
    with pytest.raises(UserError, match="give two runs or more"):
        report(two[:1])
    (Path(two[1]) / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"no metrics\.json"):
        report(two)


def test_the_toy_s_runs_are_those_that_are_there(two, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "TOY_RUNS", [Path(two[0]), tmp_path / "none", Path(two[1])])
    assert chosen_folders(CompareOptions(toy=True)) == [Path(two[0]), Path(two[1])]
    monkeypatch.setattr(compare, "TOY_RUNS", [Path(two[0]), tmp_path / "none"])
    with pytest.raises(MissingError, match=r"pipeline_toy\.sh"):
        chosen_folders(CompareOptions(toy=True))


def test_runs_without_likelihoods_say_so(make_run, report):
    page = report([str(make_run("x_a", WORSE)), str(make_run("x_b", REFERENCES))])
    assert "No likelihoods to compare: not computed (--likelihood false)." in page


def test_the_script_takes_runs_first():
    assert runs_first(["a", "b", "--force"]) == ["--runs", "a", "b", "--force"]
    assert runs_first(["--toy"]) == ["--toy"]
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
