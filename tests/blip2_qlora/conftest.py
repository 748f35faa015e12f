"""A small VQAv2 in the official layout, with 60 questions to answer and 150 to learn from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def small_vqav2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, don't write into it: `own_vqav2` is a copy for that."""
    from shared.toy_world.build import write_vqav2

    root = tmp_path_factory.mktemp("data") / "vqav2"
    root.mkdir()
    write_vqav2(root, seed=7, question_counts={"train2014": 150, "val2014": 60, "test2015": 20})
    return root


@pytest.fixture
def own_vqav2(small_vqav2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_vqav2, tmp_path / "vqav2"))


@pytest.fixture
def edit_questions():
    """Change the rows of a copied data root's questions file in place."""

    def edit(root: Path, split: str, change: Any) -> list[dict[str, Any]]:
        path = root / f"v2_OpenEnded_mscoco_{split}_questions.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content["questions"])
        path.write_text(json.dumps(content), encoding="utf-8")
        return content["questions"]

    return edit
