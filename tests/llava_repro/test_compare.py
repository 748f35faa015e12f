"""compare.py on runs of other tools' answers: two, three, refused, verified, looked at."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_repro import chosen_runs
from llava_repro.chosen_runs import toy_commands
from llava_repro.compare import CompareOptions, main
from llava_repro.compare_texts import TEXTS, texts_for
from llava_repro.evaluate import main as evaluate_main
from llava_repro.evaluation_settings import EvaluateOptions
from shared import charts
from shared.options import REPO_ROOT, UserError, parse_options, read_json, write_json
from shared.run_comparison import runs_first
from shared.vqa_score import PUBLISHED_UNDER

SCRIPT = REPO_ROOT / "llava_repro" / "compare.py"
N_PICTURES = 12


@pytest.fixture(scope="session")
def pope_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE's three files about twelve pictures: yes and no for each, 24 questions a split."""
    root = tmp_path_factory.mktemp("pope")
    (root / "val2014").mkdir()
    names = [f"COCO_val2014_{i:012d}.jpg" for i in range(N_PICTURES)]
    for i, name in enumerate(names):
        Image.new("RGB", (40, 30), (20 * i, 90, 200)).save(root / "val2014" / name)
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": 2 * i + k + 1, "image": name, "text": f"Is there a {thing}?",
             "label": label}
            for i, name in enumerate(names)
            for k, (thing, label) in enumerate([("cat", "yes"), ("dog", "no")])
        ]  # fmt: skip
        (root / f"coco_pope_{split}.json").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    write_json(root / "manifest.json", {"synthetic": True})
    return root


@pytest.fixture
def make_run(tmp_path: Path, pope_data: Path) -> Callable[..., Path]:
    """A run of answers that are wrong for the first `wrong` questions of every split."""

    def make(name: str, wrong: int, *flags: str, **change: Any) -> Path:
        rows = []
        for split in ("random", "popular", "adversarial"):
            lines = (pope_data / f"coco_pope_{split}.json").read_text().splitlines()
            for i, question in enumerate(map(json.loads, lines)):
                right = question["label"] == "yes"
                said = "Yes" if right == (i >= wrong) else "No <b>way</b>"
                rows.append({"question_id": f"{split}/{question['question_id']}", "text": said,
                             "prompt": question["text"]} | change)  # fmt: skip
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["--task", "pope", "--data_root", str(pope_data), "--answers", str(file),
                "--output_dir", str(tmp_path / f"pope_{name}"), *flags]  # fmt: skip
        evaluate_main(parse_options(EvaluateOptions, description="", argv=argv))
        return tmp_path / f"pope_{name}"

    return make


@pytest.fixture
def two(make_run: Callable[..., Path]) -> list[str]:
    return [str(make_run("stage1", 16)), str(make_run("stage2", 4))]


@pytest.fixture
def tiny_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel for each chart: drawing takes most of a report's time."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    for name in ("accuracy_bars", "outcome_bars", "reliability_diagram", "risk_coverage_chart"):
        monkeypatch.setattr(charts, name, lambda *args, **labels: content.getvalue())


@pytest.fixture
def report(tmp_path: Path, tiny_charts: None) -> Callable[..., str]:
    def run(runs: list[str], **options: Any) -> str:
        folder = tmp_path / "report"
        main(CompareOptions(runs=runs, output_dir=str(folder), **options))
        return (folder / "report.html").read_text(encoding="utf-8")

    return run


def test_two_runs(two, report, tmp_path, capsys):
    capsys.readouterr()
    page = report(two)
    said = capsys.readouterr().out
    assert "first   33.33 %" in said
    assert "difference +50.00 points [" in said
    assert "n 72; 36 better, 36 equal, 0 worse" in said
    assert "stage2 answers better than stage1: 33.33\u00a0% → 83.33\u00a0%" in page
    assert "&lt;b&gt;way&lt;/b&gt;" in page
    assert "<b>way</b>" not in page
    assert "splits.random.f1" in page
    assert "SYNTHETIC" in page
    assert page.count('src="data:image/jpeg') > 5  # found under val2014, beside the file
    stored = read_json(tmp_path / "report" / "comparison.json")
    assert list(stored["per_question_type"]) == ["adversarial", "popular", "random"]
    assert stored["blind"]["value"] == 50.0


def test_three_runs_with_given_names(two, make_run, report, tmp_path, capsys):
    third = str(make_run("lora", 0))
    page = report([*two, third], names=["base", "tuned {0}", "LoRA"])
    said = capsys.readouterr().out
    assert "  tuned {0} → LoRA: +16.67 [" in said
    assert "LLaVA: 3 runs compared" in page
    assert "LoRA answers best: 100.00\u00a0%" in page
    stored = read_json(tmp_path / "report" / "comparison.json")
    assert [run["label"] for run in stored["runs"]] == ["base", "tuned {0}", "LoRA"]
    assert len(stored["pairs"]) == 3
    assert stored["not_comparable"] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_names_with_braces_and_both_languages(language, two, report):
    page = report(two, names=["{a}", "b{}"], language=language)
    assert "{a}" in page
    assert ("答得比" in page) == (language == "zh")


def test_texts_are_the_same_in_both_languages():
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, english in texts_for(["a", "b"])["en"].items():
        chinese = texts_for(["a", "b"])["zh"][key]
        fields = [{part.split("}")[0].split(":")[0] for part in text.split("{")[1:]}
                  for text in (english, chinese)]  # fmt: skip
        assert fields[0] == fields[1], key
    assert all(f"published {name}" in TEXTS["en"] for name in PUBLISHED_UNDER)


# ----------------------------------------------------------------------------- what is refused


def test_other_prompts_are_refused_or_shown_under_a_banner(two, make_run, report):
    other = str(make_run("other", 4, prompt="Quick: cat?"))
    with pytest.raises(UserError, match=r"should not be compared:\n  prompt: not the same for 72"):
        report([two[0], other])
    page = report([two[0], other], force=True)
    assert 'class="banner"' in page
    with pytest.raises(UserError, match=r"pope_stage1 / pope_other: prompt: not the same"):
        report([*two, other])
    page = report([*two, other], force=True)
    assert "pope_stage1 / pope_other: prompt: not the same for 72 questions" in page


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("asked", {"prompt": "bare"}, "prompt or decoding: "),
        ("compute_dtype", "bfloat16", "dtype: None against 'bfloat16'"),
        ("pictures", "shuffled", "pictures shown: 'own' against 'shuffled'"),
        ("quantization", "nf4", "quantisation: 'none' against 'nf4'"),
        ("split", "random", "split: 'all' against 'random'"),
    ],
)
def test_runs_asked_otherwise_are_refused(key, value, named, two, report):
    config = Path(two[1]) / "config.json"
    write_json(config, read_json(config) | {key: value})
    with pytest.raises(UserError) as error:
        report(two)
    assert named in str(error.value)


def test_model_adapter_and_judge_may_differ(two, report):
    config = Path(two[1]) / "config.json"
    free = {"model": "other", "adapter": "a/b", "model_fingerprint": "1", "device": "cuda",
            "batch_size": 3, "adapter_fingerprint": "2"}  # fmt: skip
    write_json(config, read_json(config) | free)
    assert 'class="banner"' not in report(two)


def test_runs_of_two_tasks_and_of_another_experiment_are_refused(two, report):
    config = Path(two[1]) / "config.json"
    write_json(config, read_json(config) | {"task": "gqa"})
    with pytest.raises(UserError, match=r"different tasks \(pope_stage1: pope, pope_stage2: gqa"):
        report(two)
    for folder in two:
        write_json(Path(folder) / "config.json", {"split": "val2014"})
    with pytest.raises(UserError, match=r"not a run of llava_repro/evaluate.py"):
        report(two)


def test_a_run_alone_or_too_few_names(two, report):
    with pytest.raises(UserError, match=r"give two runs or more: compare.py RUN RUN"):
        report(two[:1])
    with pytest.raises(UserError, match=r"--names: 1 names for 2 runs"):
        report(two, names=["a"])
    with pytest.raises(UserError, match=r"no such folder"):
        report([two[0], "nowhere"])


def test_the_toy_compares_the_newest_two_of_a_task(two, report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chosen_runs, "RUNS", tmp_path / "none")
    with pytest.raises(UserError, match="no two toy runs of other models"):
        report([], toy=True)
    monkeypatch.setattr(chosen_runs, "RUNS", tmp_path)
    os.utime(Path(two[0]) / "metrics.json", (1, 1))
    report([], toy=True)
    assert "second  83.33 %" in capsys.readouterr().out


def test_the_toy_passes_over_runs_that_it_would_refuse(
    two, make_run, report, tmp_path, monkeypatch, capsys
):
    """Newer ones: other pictures shown, another task, the same answers, unfinished."""
    monkeypatch.setattr(chosen_runs, "RUNS", tmp_path)
    changes = {"shuffled": {"pictures": "shuffled"}, "gqa": {"task": "gqa"}}
    for name, change in changes.items():
        config = make_run(name, 0) / "config.json"
        write_json(config, read_json(config) | change)
    (make_run("unfinished", 0) / "scored.jsonl").unlink()
    again = tmp_path / "pope_again"
    shutil.copytree(two[1], again)
    for when, folder in enumerate([*two, again], start=1):
        os.utime(Path(folder) / "metrics.json", (when, when))
    report([], toy=True)
    assert read_json(tmp_path / "report" / "comparison.json")["not_comparable"] == []
    said = capsys.readouterr().out
    assert "stage1" in said
    assert "again" in said  # newer than stage2, whose answers it has
    shutil.rmtree(two[0])
    with pytest.raises(UserError, match="no two toy runs of other models"):
        report([], toy=True)


def test_the_toy_s_advice_names_two_models_and_trains_those_that_are_not_there(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(chosen_runs, "RUNS", tmp_path)
    (tmp_path / "toy_pretrain" / "model").mkdir(parents=True)
    asks = f"python llava_repro/evaluate.py --toy --task pope --model {tmp_path}"
    assert toy_commands() == [
        "python llava_repro/train.py --toy --stage finetune",
        f"{asks}/toy_pretrain/model",
        f"{asks}/toy_finetune/model",
    ]


def test_runs_may_stand_first():
    assert runs_first(["a", "b", "--force"]) == ["--runs", "a", "b", "--force"]
    assert runs_first(["--toy"]) == ["--toy"]
    assert runs_first(["options.yaml"]) == ["options.yaml"]
    assert runs_first([]) == []


# --------------------------------------------------------------------------------------- --verify


def test_verify_accepts_what_evaluate_wrote(two, capsys):
    main(CompareOptions(verify=two[0]))
    assert "72 questions scored again, all as stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("scored.jsonl", '"score": 0.0', '"score": 1.0', "score is 1.0 in scored.jsonl, 0.0 by"),
        ("metrics.json", '"mean_f1": ', '"mean_f1": 9', "metrics.json: official: mean_f1: 9"),
        ("predictions.jsonl", '"answer": "Yes"', '"answer": "No"', "score is 0.0 in scored.jsonl"),
        ("answers.jsonl", '"text": "Yes"', '"text": "No"', "answers.jsonl: not the answers of"),
    ],
)
def test_verify_names_what_was_changed(file, old, new, named, two, capsys):
    path = Path(two[1]) / file
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(SystemExit) as exit_info:
        main(CompareOptions(verify=two[1]))
    assert exit_info.value.code == 1
    assert named in capsys.readouterr().out


# ----------------------------------------------------------------------------- the command, a page


@pytest.mark.slow
def test_command_line(two, tmp_path):
    names = [Path(folder).name for folder in two]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *names, "--output_dir", "out"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.browser
@pytest.mark.parametrize("n_runs", [2, 3])
def test_report_in_a_browser(
    n_runs, two, make_run, tmp_path, chromium_page, page_log: dict[str, list[str]]
):
    runs = [*two, str(make_run("a_longer_name_of_lora", 1))][:n_runs]
    main(CompareOptions(runs=runs, output_dir=str(tmp_path / "out")))
    chromium_page.goto((tmp_path / "out" / "report.html").as_uri())
    widths = chromium_page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
    assert min(widths) > 0
    assert page_log["errors"] == []
    assert [url for url in page_log["requests"] if not url.startswith(("data:", "file:"))] == []
    chromium_page.get_by_role("button", name="Copy").first.click()
    copied = chromium_page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[2].startswith("| all | 72 | 33.33 [")
    chromium_page.set_viewport_size({"width": 390, "height": 844})
    assert chromium_page.evaluate("document.documentElement.scrollWidth") == 390
