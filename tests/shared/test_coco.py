"""The instances reader: real fields, and one clear message for each way a file can be wrong."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from shared.coco import Annotation, read_instances
from shared.options import MissingError, UserError

CONTENT: dict[str, Any] = {
    "info": {"year": 2017},
    "licenses": [{"id": 1}],
    "images": [
        {"license": 4, "file_name": "000000397133.jpg", "height": 427, "width": 640, "id": 397133},
        {"license": 1, "file_name": "000000037777.jpg", "height": 230, "width": 352, "id": 37777},
    ],
    "annotations": [
        {"segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], "area": 5.25, "iscrowd": 0,
         "image_id": 397133, "bbox": [217.62, 240.54, 2.5, 2.1], "category_id": 1, "id": 82445},
        {"segmentation": {"counts": [272, 2, 4], "size": [427, 640]}, "area": 18419, "iscrowd": 1,
         "image_id": 397133, "bbox": [1, 0, 639, 200], "category_id": 90, "id": 900100},
        {"segmentation": {"counts": "eme31V=8H8H7", "size": [427, 640]}, "area": 0, "iscrowd": 0,
         "image_id": 397133, "bbox": [9, 9, 0, 3], "category_id": 187, "id": 0},
    ],
    "categories": [
        {"supercategory": "person", "id": 1, "name": "person"},
        {"supercategory": "indoor", "id": 90, "name": "toothbrush"},
        {"supercategory": "sky", "id": 187, "name": "sky-other-merged"},
    ],
}  # fmt: skip


@pytest.fixture
def content() -> dict[str, Any]:
    return copy.deepcopy(CONTENT)


def write(folder: Path, content: Any) -> Path:
    path = folder / "instances_val2017.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_sparse_ids_crowds_tiny_boxes_and_stuff(tmp_path: Path, content: dict[str, Any]) -> None:
    instances = read_instances(write(tmp_path, content))
    assert list(instances.images) == [397133, 37777]
    assert (instances.images[397133].width, instances.images[397133].height) == (640, 427)
    assert [c.name for c in instances.categories.values() if not c.stuff] == [
        "person",
        "toothbrush",
    ]
    assert instances.categories[187].stuff
    first, crowd, empty = instances.annotations
    assert first == Annotation(82445, 397133, 1, (217.62, 240.54, 2.5, 2.1), 5.25, False)
    assert crowd.crowd
    assert crowd.box == (1.0, 0.0, 639.0, 200.0)
    assert all(isinstance(value, float) for value in crowd.box)
    assert empty.box[2] == 0
    assert {k: len(v) for k, v in instances.by_image().items()} == {397133: 3, 37777: 0}


def test_isthing_says_what_is_stuff_where_it_stands(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    content["categories"][0]["isthing"] = 0
    content["categories"][2]["isthing"] = 1
    categories = read_instances(write(tmp_path, content)).categories
    assert [category.stuff for category in categories.values()] == [True, False, False]


def change(key: str, place: int, field: str, value: Any) -> Any:
    def do(content: dict[str, Any]) -> None:
        content[key][place][field] = value

    return do


def remove(key: str, place: int, field: str) -> Any:
    def do(content: dict[str, Any]) -> None:
        del content[key][place][field]

    return do


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("annotations", 1, "image_id", 5), "annotations[1]: image_id 5 is not among"),
        (change("annotations", 0, "category_id", 2), "annotations[0]: category_id 2 is not among"),
        (change("annotations", 2, "id", 82445), "annotations[2]: id 82445 stands twice"),
        (change("images", 1, "id", 397133), "images[1]: id 397133 stands twice"),
        (change("categories", 1, "id", 1), "categories[1]: id 1 stands twice"),
        (change("categories", 1, "name", "person"), "two categories are named 'person'"),
        (change("annotations", 0, "bbox", [1, 2, 3]), "annotations[0]: bbox is [1, 2, 3]"),
        (change("annotations", 0, "bbox", [1, 2, -3, 4]), "negative width or height"),
        (change("annotations", 0, "bbox", [1, 2, float("nan"), 4]), "annotations[0]: bbox is"),
        (change("annotations", 0, "area", None), "annotations[0]: area is None"),
        (change("annotations", 0, "area", True), "annotations[0]: area is True"),
        (change("annotations", 0, "iscrowd", 2), "annotations[0]: iscrowd is 2"),
        (change("annotations", 0, "image_id", "397133"), "image_id is '397133', expected a whole"),
        (change("annotations", 0, "image_id", [397133]), "image_id is [397133], expected a whole"),
        (change("images", 0, "width", 0), "images[0]: width is 0"),
        (change("images", 0, "file_name", "../x.jpg"), "leaves the folder"),
        (change("images", 0, "file_name", "/etc/x.jpg"), "leaves the folder"),
        (remove("annotations", 2, "bbox"), "annotations[2]: no 'bbox'"),
        (remove("images", 1, "height"), "images[1]: no 'height'"),
        (remove("categories", 0, "name"), "categories[0]: no 'name'"),
        (lambda c: c["annotations"].append(7), "annotations[3]: expected an object, found int"),
        (lambda c: c.update(images=[]), "annotations[0]: image_id 397133 is not among"),
        (lambda c: c.update(images=[], annotations=[]), "no pictures or no categories"),
        (lambda c: c.pop("categories"), "no list under 'categories'"),
        (lambda c: c.pop("annotations"), "pictures without annotations"),
        (lambda c: c["annotations"].__setitem__(0, {"image_id": 1, "id": 3, "caption": "A dog"}),
         "captions, not instances"),
        (lambda c: c["annotations"].__setitem__(
            0, {"segments_info": [], "file_name": "x.png", "image_id": 1}),
         "panoptic annotations, not instances"),
        (lambda c: c["annotations"].__setitem__(0, {"question_id": 1, "answers": []}),
         "answers of VQAv2, not instances"),
    ],
)  # fmt: skip
def test_one_message_with_file_and_entry(
    tmp_path: Path, content: dict[str, Any], edit: Any, message: str
) -> None:
    edit(content)
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_instances(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"images": [', "not valid JSON (line 1)"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b"PK\x03\x04\xff\xfe\x00\x80", "not "),
    ],
)
def test_what_is_no_json(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "instances_val2017.json"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=re.escape(message)):
        read_instances(path)


def test_a_missing_file_names_the_download(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"shared\.download coco2017"):
        read_instances(tmp_path / "nothing.json")
