"""The layouts that tasks read: class folders with and without readable names, COCO, VQAv2."""

from __future__ import annotations

import pytest
from PIL import Image

from lavis_apps.data import load_task_data
from lavis_apps.toy_sets import PER_CLASS, ensure_shapes, ensure_toy_data
from shared.options import MissingError, UserError
from shared.toy_world.shapes import HELD_BACK_SHAPES, KNOWN_SHAPES


def folders(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def test_class_folders(tmp_path):
    root = folders(tmp_path, "train/dog/b.jpg", "train/cat/a.png", "val/cat/a.jpg")
    (root / "train" / "dog" / "notes.txt").write_text("x")
    data = load_task_data("classification", root, "train")
    assert [(s.sample_id, s.label) for s in data.samples] == [
        ("cat/a.png", "cat"),
        ("dog/b.jpg", "dog"),
    ]
    assert data.samples[0].image.is_file()
    assert data.samples[0].image_name == "train/cat/a.png"
    assert data.problems == ["train/dog/notes.txt: not a picture by its name"]
    # a class that this split has no picture of can still be answered
    assert load_task_data("classification", root, "val").classes == ("cat", "dog")


def test_readable_names_in_their_order(tmp_path):
    root = folders(tmp_path, "val/n02/a.jpg", "val/n01/a.jpg")
    lines = "n02\tgreat white shark\nn01 tench\n"
    (root / "classes.txt").write_text(lines, encoding="utf-8-sig")  # as Notepad saves it
    data = load_task_data("classification", root, "val")
    assert data.classes == ("great white shark", "tench")
    assert [s.label for s in data.samples] == ["tench", "great white shark"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("n01 tench\n", "no line for the folder 'n02'"),
        ("n01 crane\nn02 crane\n", "line 2: 'n02 crane' stands twice"),
    ],
)
def test_classes_that_do_not_fit(tmp_path, lines, message):
    root = folders(tmp_path, "val/n02/a.jpg", "val/n01/a.jpg")
    (root / "classes.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        load_task_data("classification", root, "val")


def test_a_missing_split_and_an_empty_one(tmp_path):
    with pytest.raises(MissingError, match="CLASS/PICTURE"):
        load_task_data("classification", tmp_path, "val")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="no picture in its folders"):
        load_task_data("classification", tmp_path, "val")
    with pytest.raises(UserError, match="task 'nlvr'"):
        load_task_data("nlvr", tmp_path, "val")


def test_toy_shapes(tmp_path):
    root = ensure_shapes(tmp_path / "shapes")
    for split, count in PER_CLASS.items():
        data = load_task_data("classification", root, split)
        assert set(data.classes) == set(KNOWN_SHAPES)
        assert not set(data.classes) & set(HELD_BACK_SHAPES)
        assert len(data.samples) == count * len(KNOWN_SHAPES)


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa"])
def test_coco_and_vqav2(task):
    data = load_task_data(task, ensure_toy_data(task), "val2014")
    assert data.samples[0].references
    assert data.samples[0].image.is_file()
    assert bool(data.samples[0].question) == (task == "vqa")
    assert data.name.endswith("_val2014")
