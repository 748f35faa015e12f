"""Own pictures of a run: their folder given as ".", and found again by what reads the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llava_openset.evaluation_setup import load_samples, run_name
from llava_openset.run_reading import OpenSetRun
from llava_openset.settings import EvaluateOptions
from shared.options import resolved_config


def test_own_pictures_of_the_current_folder_are_found_again(
    tmp_path: Path, hand_made_split: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    Image.new("RGB", (30, 20)).save(own / "a.png")
    (own / "private_labels.csv").write_text("filename,label\na.png,dorm room\n")
    split = hand_made_split()
    monkeypatch.chdir(own)
    options = EvaluateOptions(split=str(split), private_images=".")
    assert "mine" in run_name(options)
    sample = load_samples(options)[1][-1]
    monkeypatch.chdir(tmp_path)
    run = OpenSetRun(tmp_path, resolved_config(options), {}, {"split": {"folder": "x"}}, {})
    assert sample.file == "mine/a.png"
    assert run.picture({"private": True, "image": sample.file}) == own.resolve() / "a.png"
