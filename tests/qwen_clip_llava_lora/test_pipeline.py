"""The toy pipeline from nothing, once, through its documented command; its figures are tested here.

`make test-pipelines`. The thresholds are the experiment's promises: the course training makes the
held-out references more likely and their captions better, the interval of the paired difference
above 0, in English and, by characters, in Chinese; LoRA adds to the projector alone; trainings take
at most six minutes of processor time together. Then describe -> train -> measure, through a server
on this machine that answers with the toy LLaVA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_clip_llava_lora.toy_sets import ensure_cc3m
from shared.options import REPO_ROOT
from tests.qwen_clip_llava_lora.toy_endpoint import ToyEndpoint

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(2400)]
HERE = REPO_ROOT / "qwen_clip_llava_lora"
RUNS = ("merged", "align", "projector", "course")


def run(command: list[str], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen_clip_pipeline")
    run(["bash", str(HERE / "pipeline_toy.sh")], folder, PYTHON=sys.executable, RUNS=str(folder))
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def contrast(
    report: Path, metric: str, group: str, pair: list[int] | None = None
) -> dict[str, Any]:
    """One metric's paired comparison in a comparison.json."""
    (found,) = [
        m for m in read(report / "comparison.json")["metrics"]
        if (m["metric"], m["group"], m.get("pair")) == (metric, group, pair)
    ]  # fmt: skip
    return found


def test_the_trainings_take_at_most_six_minutes_together(runs):
    """Of processor time: training runs on one thread, so this is its time on an idle machine."""
    trainings = [read(runs / f"toy_{name}" / "metrics.json") for name in RUNS[1:]]
    assert sum(training["cpu_seconds"] for training in trainings) <= 360
    assert [training["skipped_in_training"] for training in trainings] == [0, 0, 0]


@pytest.mark.parametrize(
    ("metric", "group"), [("log_likelihood", ""), ("CIDEr", "en"), ("CIDEr", "zh")]
)
def test_the_course_training_raises_likelihood_and_captions(runs, metric, group):
    found = contrast(runs / "toy_pipeline" / "align-course", metric, group)
    assert found["low"] > 0
    assert found["p_value"] < 0.01


def test_lora_adds_to_the_projector_alone(runs):
    """Both trained as many steps on the same rows from the same projector."""
    pair = [RUNS.index("projector"), RUNS.index("course")]
    found = contrast(runs / "toy_pipeline" / "report", "log_likelihood", "", pair)
    assert found["low"] > 0
    assert found["p_holm"] < 0.05


def test_chinese_captions_are_scored_by_characters(runs):
    captions = read(runs / "toy_pipeline" / "course" / "metrics.json")["captions"]
    assert "characters" in captions["zh"]["tokenizer"]
    assert captions["zh"]["corpus"]["CIDEr"] > 1  # split at blanks, hardly a sentence would match


def test_every_run_says_that_it_is_synthetic_and_has_its_pages(runs):
    for name in RUNS:
        metrics = read(runs / "toy_pipeline" / name / "metrics.json")
        assert metrics["synthetic"] == {"data": True, "model": True}
        assert metrics["counts"]["answered"] == 200
        assert (runs / "toy_pipeline" / name / "report.html").is_file()
    page = (runs / "toy_pipeline" / "report" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in RUNS)


def test_describe_train_measure(runs):
    """Captions of a teacher behind a server, learned from the aligned projector on, help."""
    described, trained = runs / "described", runs / "toy_described"
    script = [sys.executable, str(HERE / "describe_images.py")]
    server = ToyEndpoint().start()
    try:
        run(
            [*script, "--toy", "--images", str(ensure_cc3m() / "chat.json"), "--limit", "120",
             "--endpoint", server.url, "--endpoint_model", "toy", "--output_dir", str(described)],
            runs,
        )  # fmt: skip
        assert server.n_answered > 0
    finally:
        server.close()
    model = ["--model", str(runs / "toy_merged")]
    run(
        [sys.executable, str(HERE / "train.py"), "--toy", *model, "--data", str(described),
         "--validation_data", str(described / "validation.json"), "--max_steps", "150",
         "--eval_steps", "150", "--save_steps", "150", "--projector", str(runs / "toy_align"),
         "--output_dir", str(trained)],
        runs,
    )  # fmt: skip
    answers = runs / "toy_pipeline" / "described"
    run(
        [sys.executable, str(HERE / "evaluate.py"), "--toy", *model,
         "--adapter", str(trained / "adapter"), "--output_dir", str(answers)],
        runs,
    )  # fmt: skip
    report = runs / "toy_pipeline" / "align-described"
    run(
        [sys.executable, str(HERE / "compare.py"), str(runs / "toy_pipeline" / "align"),
         str(answers), "--output_dir", str(report)],
        runs,
    )  # fmt: skip
    assert contrast(report, "CIDEr", "en")["low"] > 0
