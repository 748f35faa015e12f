"""The toy COCO 2017: official fields, boxes that hold, enough pictures, never trained on."""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.coco import read_instances
from shared.options import REPO_ROOT
from shared.toy_world import coco
from shared.toy_world.__main__ import main
from shared.toy_world.build import read_manifest
from shared.toy_world.coco import CATEGORY_IDS, FIRST_IMAGE_ID, ensure_coco
from shared.toy_world.pictures import SIZE
from shared.toy_world.shapes import GROUNDS, HELD_BACK_SHAPES, KNOWN_SHAPES, SHAPES

FEW = {
    split: {
        "single": 1,
        "beside": 1,
        "several": 3,
        "mixed": 3,
        "crowd": 2,
        "speck": 2,
        "empty": 1,
    }
    for split in FIRST_IMAGE_ID
}


@pytest.fixture(scope="module")
def toy() -> Path:
    """The whole set, as users get it."""
    return ensure_coco()


@pytest.fixture(scope="module")
def content(toy: Path) -> dict[str, dict[str, Any]]:
    return {
        split: json.loads((toy / "annotations" / f"instances_{split}.json").read_text("utf-8"))
        for split in FIRST_IMAGE_ID
    }


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_same_seed_same_files_other_seed_other_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "COUNTS", FEW)
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        coco.write_coco(tmp_path / name, seed)
        written.append(files(tmp_path / name))
    a, b, c = written
    assert a == b
    assert not {v for k, v in a.items() if k.endswith(".jpg")} & set(c.values())


def test_official_fields_and_no_picture_twice(toy: Path, content: dict[str, Any]) -> None:
    manifest = read_manifest(toy)
    assert manifest["synthetic"] is True
    assert manifest["held_back_shapes"] == list(HELD_BACK_SHAPES)
    for split, rows in content.items():
        assert {"info", "licenses", "images", "annotations", "categories"} == set(rows)
        assert {row["name"] for row in rows["categories"]} == set(SHAPES)
        assert len({row["id"] for row in rows["images"]}) == len(rows["images"])
        for image in rows["images"]:
            with Image.open(toy / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (SIZE, SIZE)
        assert manifest["counts"][split]["pictures"] == len(rows["images"])
        assert manifest["counts"][split]["annotations"] == len(rows["annotations"])
        assert {"segmentation", "area", "iscrowd", "image_id", "bbox", "category_id", "id"} == {
            key for row in rows["annotations"] for key in row
        }
    pictures = [v for k, v in files(toy).items() if k.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures)
    assert not {r["id"] for r in content["train2017"]["images"]} & {
        r["id"] for r in content["val2017"]["images"]
    }
    ids = list(CATEGORY_IDS.values())
    assert max(ids) <= 90
    assert ids != list(range(1, 13)), "the ids must have gaps, as COCO's have"


def test_the_boxes_hold_what_is_drawn(toy: Path) -> None:
    """Outside all boxes there is nothing but ground; inside each one there is something."""
    instances = read_instances(toy / "annotations" / "instances_val2017.json")
    shown = [item for item in instances.by_image().items() if item[1]][:150]
    for image_id, objects in shown:
        name = instances.images[image_id].file_name
        with Image.open(toy / "val2017" / name) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=int)
        distance = np.min([np.abs(pixels - g).max(axis=-1) for g in np.asarray(GROUNDS)], axis=0)
        drawn = distance > 45  # beyond noise and JPEG's ringing
        outside = drawn.copy()
        for annotation in objects:
            x, y, width, height = annotation.box
            assert 0 <= x <= x + width <= SIZE
            assert 0 <= y <= y + height <= SIZE
            left, top = int(x), int(y)
            right, bottom = int(np.ceil(x + width)), int(np.ceil(y + height))
            inside = drawn[top:bottom, left:right]
            assert 0 < annotation.area <= inside.size
            assert inside.any()
            if annotation.area >= 100:  # of a small one most pixels are edges, half covered
                assert 0.7 < inside.sum() / annotation.area < 1.4, name
            outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert outside.sum() == 0, name


def test_enough_of_every_kind(toy: Path) -> None:
    instances = read_instances(toy / "annotations" / "instances_val2017.json")
    names = {number: category.name for number, category in instances.categories.items()}
    alone: Counter[str] = Counter()
    several = mixed = empty = 0
    for objects in instances.by_image().values():
        shown = {names[a.category_id] for a in objects}
        empty += not objects
        several += len(objects) > 1
        mixed += bool(shown & set(KNOWN_SHAPES)) and bool(shown & set(HELD_BACK_SHAPES))
        if len(objects) == 1 and objects[0].area >= 0.03 * SIZE * SIZE:
            alone[names[objects[0].category_id]] += 1
    assert min(alone[shape] for shape in SHAPES) >= 20 + 10
    assert several >= 100
    assert mixed >= 50
    assert empty > 0
    assert sum(a.crowd for a in instances.annotations) >= 2
    assert sum(max(a.box[2:]) < 10 for a in instances.annotations) >= 20


def test_crowds_have_run_lengths_that_fit(content: dict[str, Any]) -> None:
    crowds = [row for row in content["val2017"]["annotations"] if row["iscrowd"]]
    assert crowds
    for row in crowds:
        counts = row["segmentation"]["counts"]
        assert row["segmentation"]["size"] == [SIZE, SIZE]
        assert sum(counts) == SIZE * SIZE
        assert sum(counts[1::2]) == row["area"]
    whole = [row for row in content["val2017"]["annotations"] if not row["iscrowd"]]
    assert all(isinstance(row["segmentation"], list) for row in whole)


def test_the_module_s_command_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "COUNTS", FEW)
    assert main(["coco", "--root", str(tmp_path / "coco2017")]) == 0
    assert read_manifest(tmp_path / "coco2017")["dataset"] == "toy COCO 2017"


def test_no_training_reads_it() -> None:
    """The held-back shapes are shown here: what trains must never see this set."""
    packages = [path.parent for path in REPO_ROOT.glob("*/__init__.py")]
    importers = []
    for path in [*(p for folder in packages for p in folder.rglob("*.py"))]:
        parts = path.relative_to(REPO_ROOT).parts
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            if "shared.toy_world.coco" in names:
                importers.append("/".join(parts))
    assert "shared/toy_world/__main__.py" in importers
    others = [name for name in importers if name != "shared/toy_world/__main__.py"]
    # the pointing game of lavis_apps only measures on it
    measuring = ("llava_openset/", "lavis_apps/evaluation_settings.py")
    assert all(name.startswith(measuring) for name in others)
    assert not [name for name in others if "train" in name or "recipe" in name or "model" in name]
