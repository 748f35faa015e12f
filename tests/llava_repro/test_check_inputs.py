"""pipeline.sh stops before training when something is missing, and asks for whole splits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from llava_repro import check_inputs
from llava_repro.check_inputs import TASKS, main
from shared import loading
from shared.options import REPO_ROOT, MissingError

PIPELINE = REPO_ROOT / "llava_repro" / "pipeline.sh"
CONFIGS = REPO_ROOT / "llava_repro" / "configs"


def calls(folder: Path, checked: int, **environment: str) -> tuple[int, list[str]]:
    """The pipeline with a stand-in for Python whose check ends with `checked`: (status, calls)."""
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> "{folder}/calls"\n'
        f'case "$1" in *check_inputs.py) exit {checked};; esac\n'
    )
    python.chmod(0o755)
    known = {k: v for k, v in os.environ.items() if k not in {"PRESET", "STAGE2", "TASKS"}}
    done = subprocess.run(
        ["bash", str(PIPELINE)], cwd=folder, capture_output=True,
        env=known | {"PYTHON": str(python), "LAUNCH": str(python)} | environment,
    )  # fmt: skip
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_the_pipeline_stops_before_training_when_something_is_missing(tmp_path):
    status, called = calls(tmp_path, 2)
    assert status == 2
    assert len(called) == 1
    assert called[0].endswith(f"english_finetune.yaml --tasks {' '.join(TASKS)}")


def test_the_pipeline_checks_what_it_takes_and_evaluates_whole_splits(tmp_path):
    status, called = calls(tmp_path, 0, PRESET="v1_5", STAGE2="v1_5_lora", TASKS="pope scienceqa")
    assert status == 0
    configs = "llava_repro/configs"
    assert called[0] == (
        f"llava_repro/check_inputs.py {configs}/v1_5_pretrain.yaml {configs}/v1_5_lora.yaml "
        "--tasks pope scienceqa"
    )
    asked = [line for line in called if line.startswith("llava_repro/evaluate.py")]
    assert len(asked) == 4
    assert all(" --limit 0 " in line for line in asked)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    for module in (check_inputs, loading):
        monkeypatch.setattr(module, "DATA_ROOT", tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_what_is_missing_is_said_with_its_command(data):
    presets = [str(CONFIGS / f"{name}.yaml") for name in ("v1_5_pretrain", "chinese_finetune")]
    with pytest.raises(MissingError) as error:
        main([*presets, "--tasks", "vqav2", "gqa"])
    said = str(error.value)
    for command in (
        "python -m shared.download openai/clip-vit-large-patch14-336\n",
        "python -m shared.download lmsys/vicuna-7b-v1.5\n",
        "python -m shared.download llava_pretrain ",
        "python -m shared.download vqav2 --splits val\n",
        "python -m shared.download gqa ",
    ):
        assert command in said
    assert "llava_cogvlm_sft_zh.jsonl: no such file" in said
    assert "prepare_data.py writes it" in said
    assert "pope" not in said


def test_what_is_there_is_accepted_and_an_empty_folder_of_pictures_is_not(data, capsys):
    (data / "rows.jsonl").write_text("{}\n")
    (data / "images").mkdir()
    preset = data / "own.yaml"
    toy = REPO_ROOT / "data" / "toy_models"
    preset.write_text(
        f"vision_tower: {toy / 'clip'}\nlanguage_model: {toy / 'qwen2'}\n"
        f"data: {data / 'rows.jsonl'}\nimage_root: {data / 'images'}\n"
    )
    with pytest.raises(MissingError, match="images: no pictures"):
        main([str(preset)])
    (data / "images" / "1.jpg").touch()
    main([str(preset)])
    assert "are here" in capsys.readouterr().out
