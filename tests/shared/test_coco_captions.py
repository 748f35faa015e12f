"""COCO's captions: both places of the file, Karpathy's split, bad rows, the results file's rows.

python -m pytest tests/shared/test_coco_captions.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.coco_captions import load_captions, official_results, results_file
from shared.options import MissingError, UserError

GOOD: list[Any] = [
    {"image_id": i, "id": 10 * i + k, "caption": f"caption {k} of {i}"}
    for k in range(2)
    for i in (7, 3, 5)
]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("folder", [".", "annotations"])
def test_a_picture_is_one_entry_with_all_its_captions(tmp_path: Path, folder: str) -> None:
    images = [{"id": 3, "file_name": "COCO_val2014_three.jpg"}]
    content = {"images": images, "annotations": GOOD}
    write(tmp_path / folder / "captions_val2014.json", content)
    found = load_captions(tmp_path, "val2014")
    assert [q.sample_id for q in found.questions] == ["7", "3", "5"]  # the file's order
    assert found.questions[1].references == ("caption 0 of 3", "caption 1 of 3")
    assert [q.image_name for q in found.questions[:2]] == [
        "val2014/COCO_val2014_000000000007.jpg", "val2014/COCO_val2014_three.jpg",
    ]  # fmt: skip
    assert found.questions[0].image == tmp_path / "val2014/COCO_val2014_000000000007.jpg"
    assert (found.problems, found.questions[0].question) == ([], "")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a caption", "annotations[6]: expected an object, found str"),
        ({"caption": "a dog"}, "annotations[6]: image_id is None, expected a whole number"),
        ({"image_id": "7", "caption": "x"}, "annotations[6]: image_id is '7', expected"),
        ({"image_id": True, "caption": "x"}, "annotations[6]: image_id is True, expected"),
        ({"image_id": 7, "caption": " "}, "annotations[6]: image 7: caption is ' ', expected text"),
        ({"image_id": 7, "caption": None}, "annotations[6]: image 7: caption is None, expected"),
        ({"image_id": 7, "caption": ["x"]}, "annotations[6]: image 7: caption is ['x'], expected"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_used(tmp_path: Path, row: Any, problem: str) -> None:
    write(tmp_path / "captions_val2014.json", {"annotations": [*GOOD, row]})
    found = load_captions(tmp_path, "val2014")
    assert len(found.questions) == 3
    (said,) = found.problems
    assert said.startswith(f"captions_val2014.json {problem}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no list under 'annotations'"),
        ({"annotations": {}}, "no list under 'annotations'"),
        ({"annotations": []}, "no usable row"),
        ({"annotations": [*GOOD, 1, 2]}, r"2 bad rows of 8.*annotations\[6\]"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path / "captions_val2014.json", content)
    with pytest.raises(UserError, match=f"(?s)captions_val2014.json.*{message}"):
        load_captions(tmp_path, "val2014")


def test_absent_files_and_unknown_splits_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"shared.download coco2014 --splits val\n.*--toy"):
        load_captions(tmp_path, "val2014")
    with pytest.raises(MissingError, match=r"(?s)dataset_coco.json is not there.*karpathy"):
        load_captions(tmp_path, "karpathy_test")
    with pytest.raises(UserError, match="--split test2015: COCO's captions have val2014, train"):
        load_captions(tmp_path, "test2015")
    file = tmp_path / "captions_val2014.json"
    write(file, {"annotations": GOOD})
    with pytest.raises(UserError, match="takes the folder"):
        load_captions(file, "val2014")


def karpathy(cocoid: Any, split: str, **changes: Any) -> dict[str, Any]:
    return {
        "filepath": "val2014", "filename": f"COCO_val2014_{cocoid}.jpg", "cocoid": cocoid,
        "split": split, "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}, {"raw": "Dog"}],
    } | changes  # fmt: skip


def test_karpathy_s_split(tmp_path: Path) -> None:
    others = [karpathy(i, "restval") for i in range(20, 50)]
    rows = [
        karpathy(9, "test"), karpathy(4, "val"), karpathy(2, "test"), *others,
        karpathy(9, "test"), karpathy(1, "test", sentences=[]),
        karpathy(8, "test", sentences=[{"raw": 3}]),
    ]  # fmt: skip
    write(tmp_path / "dataset_coco.json", {"images": rows})
    found = load_captions(tmp_path, "karpathy_test")
    assert [q.sample_id for q in found.questions] == ["9", "2"]
    assert found.questions[0].references == ("A dog.", "Dog")
    assert found.questions[0].image == tmp_path / "val2014/COCO_val2014_9.jpg"
    assert [problem.split(": ", 1)[1] for problem in found.problems] == [
        "cocoid 9 stands twice; the first is used",
        "cocoid 1: 'sentences' is not a list of objects with a text 'raw'",
        "cocoid 8: 'sentences' is not a list of objects with a text 'raw'",
    ]
    assert [q.sample_id for q in load_captions(tmp_path, "karpathy_val").questions] == ["4"]


def test_results_hold_every_picture_once() -> None:
    records = [{"image_id": 5, "answer": "a dog"}, {"image_id": 3, "answer": None}]
    assert official_results(records) == [
        {"image_id": 5, "caption": "a dog"}, {"image_id": 3, "caption": ""},
    ]  # fmt: skip
    assert results_file("val2014", "run", None) == "captions_val2014_run_results.json"
    assert results_file("val2014", "run", 9) == "captions_val2014_sample9_run_results.json"
