"""The committed toy LLaVA tells known shapes from held-back ones; the control does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llava_openset.evaluate import main
from llava_openset.settings import TOY_DEFAULTS, EvaluateOptions
from shared.options import REPO_ROOT, parse_options

SECONDS = 180  # of processor time, for all protocols


def run(folder: Path, split: Path, *argv: str) -> dict[str, Any]:
    flags = ["--split", str(split), "--output_dir", str(folder), "--device", "cpu",
             "--report", "none", *argv]  # fmt: skip
    main(parse_options(EvaluateOptions, description="", argv=flags_of_toy() + flags))
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["protocols"]


def flags_of_toy() -> list[str]:
    return [f"--{name}={value}" for name, value in TOY_DEFAULTS.items()]


def auroc(protocols: dict[str, Any]) -> dict[str, float]:
    return protocols["likelihood"]["scores"]["max_softmax"]["figures"]["auroc"]


@pytest.mark.slow
def test_likelihoods_tell_known_from_unknown_by_the_picture(
    toy_split: Path, tmp_path: Path
) -> None:
    """Below .55 a score is worth nothing; with other pictures it must be."""
    own = auroc(run(tmp_path / "own", toy_split, "--protocol", "likelihood"))
    control = auroc(
        run(tmp_path / "other", toy_split, "--protocol", "likelihood", "--pictures", "shuffled")
    )
    print(f"own pictures {own}, others' {control}")
    assert own["low"] > 0.55
    assert own["low"] > control["high"]


@pytest.mark.slow
def test_all_protocols_take_minutes_and_hold_both_parts(toy_split: Path, tmp_path: Path) -> None:
    started = time.process_time()
    protocols = run(tmp_path / "run", toy_split)
    assert time.process_time() - started < SECONDS
    assert len(protocols) == 7
    for key, protocol in protocols.items():
        counts = protocol["counts"]
        assert counts["answered"] == counts["expected"] >= 360, key
        for part in ("validation", "test"):
            assert min(protocol["parts"][part].values()) > 0, key
    assert protocols["likelihood"]["scores"]["max_softmax"]["threshold"]["value"] is not None


@pytest.mark.pipeline
@pytest.mark.timeout(1200)
def test_one_command_goes_from_split_to_report(tmp_path: Path) -> None:
    script = REPO_ROOT / "llava_openset" / "pipeline_toy.sh"
    settings = {**os.environ, "PYTHON": sys.executable, "RUNS": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(script)], env=settings, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "toy" / "report.html").stat().st_size > 100_000
    figures = json.loads((tmp_path / "toy" / "metrics.json").read_text(encoding="utf-8"))
    assert len(figures["protocols"]) == 7
    control = json.loads((tmp_path / "toy_shuffled" / "metrics.json").read_text(encoding="utf-8"))
    assert (figures["pictures"], control["pictures"]) == ("own", "shuffled")
    assert auroc(figures["protocols"])["low"] > auroc(control["protocols"])["high"]
    crops = json.loads((tmp_path / "toy_crops" / "metrics.json").read_text(encoding="utf-8"))
    assert crops["split"]["unit"] == "crop"
    assert crops["protocols"]["likelihood"]["counts"]["answered"] == 360
