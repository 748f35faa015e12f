"""The toy experiment, trained once through the documented commands; its figures are tested here.

`make test-pipelines`. The thresholds are the experiment's promises: zero-shot at least 10 points
above the blind baseline, blind at most 40 %, QLoRA better with the interval of the paired
difference above 0 and trained in at most 120 s, shuffled pictures within 5 points of blind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.options import REPO_ROOT
from shared.runs import compare_runs, differences_in_kind, read_run

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]


def script(name: str, *flags: str) -> str:
    """Run a script as the README prints it; returns what it printed."""
    command = [sys.executable, str(REPO_ROOT / "blip2_qlora" / name), "--toy", *flags]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """zero-shot, tuned and shuffled runs over the whole val split, one training, one report."""
    out = tmp_path_factory.mktemp("pipeline")
    whole = ("--quantization", "nf4", "--limit", "0")
    adapter = ("--adapter", str(out / "qlora" / "adapter"))
    script("evaluate.py", *whole, "--output_dir", str(out / "zero-shot"))
    script("train.py", "--output_dir", str(out / "qlora"))
    script("evaluate.py", *whole, *adapter, "--output_dir", str(out / "tuned"))
    shuffled = (*whole, "--pictures", "shuffled")
    script("evaluate.py", *shuffled, "--output_dir", str(out / "shuffled"))
    script("evaluate.py", *shuffled, *adapter, "--output_dir", str(out / "tuned-shuffled"))
    return out


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_blind_is_at_most_40_percent(runs):
    assert metrics(runs / "zero-shot")["blind"]["value"] <= 40


def test_zero_shot_is_10_points_above_blind(runs):
    found = metrics(runs / "zero-shot")
    assert found["accuracy"]["n"] == 3000
    assert found["accuracy"]["value"] >= found["blind"]["value"] + 10


def test_qlora_is_better_with_the_interval_above_zero(runs):
    base, tuned = read_run(runs / "zero-shot"), read_run(runs / "tuned")
    assert differences_in_kind(base, tuned) == []
    change = compare_runs(base, tuned)
    assert change.n == 3000
    assert change.low > 0
    assert change.p_value < 0.01


def test_training_takes_at_most_two_minutes(runs):
    """Of processor time: training runs on one thread, so this is its time on an idle machine."""
    assert metrics(runs / "qlora")["cpu_seconds"] <= 120


@pytest.mark.parametrize("run", ["shuffled", "tuned-shuffled"])
def test_shuffled_pictures_fall_to_blind(runs, run):
    """A model that did not look at its pictures would keep its accuracy here."""
    found = metrics(runs / run)
    assert abs(found["accuracy"]["value"] - found["blind"]["value"]) <= 5


def test_nothing_was_lost(runs):
    for run in ("zero-shot", "tuned"):
        counts = metrics(runs / run)["counts"]
        assert counts["expected"] == counts["answered"] == 3000
        assert counts["errors"] == counts["missing"] == 0


def test_everything_says_synthetic(runs):
    assert metrics(runs / "zero-shot")["synthetic"] == {"data": True, "model": True}
    assert metrics(runs / "qlora")["synthetic"] is True
    manifest = json.loads((runs / "qlora" / "adapter" / "manifest.json").read_text())
    assert manifest["synthetic"] is True


def test_the_report_holds_both_figures(runs):
    said = script(
        "compare.py", "--base_run", str(runs / "zero-shot"), "--tuned_run", str(runs / "tuned"),
        "--output_dir", str(runs / "report"),
    )  # fmt: skip
    html = (runs / "report" / "report.html").read_text(encoding="utf-8")
    for run in ("zero-shot", "tuned"):
        figure = f"{metrics(runs / run)['accuracy']['value']:.2f}"
        assert figure in html
        assert figure in said
    assert "SYNTHETIC" in html
    assert "report.html" in said.splitlines()[-1]
