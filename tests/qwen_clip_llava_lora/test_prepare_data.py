"""Published layouts as splits: rows of good and bad sources, splits by picture, the report."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_clip_llava_lora import prepare_data
from qwen_clip_llava_lora.converters import (
    AFFECTNET_COLUMNS,
    EMOTIONS,
    affectnet,
    cc3m,
    descriptions,
    medtrinity,
)
from qwen_clip_llava_lora.data_formats import open_data
from qwen_clip_llava_lora.preparing import _groups, prepare
from qwen_clip_llava_lora.validation_report import Kept, lengths
from shared.conversation_files import row_images
from shared.options import MissingError, UserError


def picture(color: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


def put(path: Path, content: bytes | str | list[Any] | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def said(row: dict[str, Any]) -> list[str]:
    return [turn["value"] for turn in row["conversations"]]


# MedTrinity


def shard(path: Path, records: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


def medical(content: bytes | None, caption: str | None, row_id: str = "a") -> dict[str, Any]:
    return {
        "image": {"bytes": content, "path": None},
        "caption": caption,
        "id": row_id,
        "source": "x",
    }


def test_medtrinity_rows_good_and_bad(tmp_path: Path) -> None:
    good = medical(picture("red"), " A CT slice. ")
    bad = [
        (medical(None, "x"), "image: no picture inside"),
        (medical(b"text", "x"), "image: 4 bytes that are no PNG"),
        (medical(picture("red"), " "), "caption: missing or empty"),
        (medical(picture("red"), None), "caption: missing or empty"),
    ]
    path = shard(
        tmp_path / "25M_demo" / "train-00000-of-00001.parquet", [good, *(r for r, _ in bad), good]
    )
    found = list(medtrinity(tmp_path, "en", None))
    assert [one.row is None for one in found] == [False, True, True, True, True, False]
    for i, (_, part) in enumerate(bad, start=1):
        assert part in found[i].problem
        assert found[i].place == f"{path} row {i}"
    assert said(found[0].row or {}) == ["<image>\nDescribe the image.", "A CT slice."]
    assert found[0].row == found[5].row
    zh = next(iter(medtrinity(tmp_path, "zh", "这是什么？")))
    assert said(zh.row or {})[0] == "<image>\n这是什么？"


def test_a_damaged_medtrinity_shard_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    records = [medical(picture(i), "a lesion") for i in range(8)]
    path = shard(tmp_path / "a.parquet", records)
    shard(tmp_path / "b.parquet", records)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)  # the first page's header
    path.write_bytes(content)
    broken, *good = medtrinity(tmp_path, "en", None)
    assert broken.place == f"{path} row 0"
    assert broken.problem.startswith("broken from here on: ")
    assert len(good) == 8


def test_medtrinity_columns_that_are_not_there_are_listed(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet", [{"img": b"x", "text": "y"}])
    with pytest.raises(UserError) as error:
        list(medtrinity(tmp_path, "en", None))
    assert f"{path}: no column image or caption" in str(error.value)
    assert "found: img, text" in str(error.value)
    put(tmp_path / "a.parquet", "no parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        list(medtrinity(tmp_path, "en", None))
    with pytest.raises(MissingError, match="25M_demo of the Hub data set"):
        list(medtrinity(tmp_path / "empty", "en", None))


def test_medtrinity_pictures_are_written_once_and_truncated_ones_counted(tmp_path: Path) -> None:
    records = [medical(picture((i, 0, 0)), f"text {i}", f"id/{i}") for i in range(10)]
    records += [medical(picture((0, 0, 0)), "another text", "id/0")]
    records += [medical(picture("blue")[:20], "x")]
    shard(tmp_path / "source" / "a.parquet", records)
    out = tmp_path / "out"
    report = prepare("medtrinity", tmp_path / "source", out, validation_share=0.2, test_share=0.2)
    assert report["bad_rows"]["total"] == 1
    assert (
        "row 11: image: a picture inside that Pillow can't read" in report["bad_rows"]["first"][0]
    )
    assert report["pictures_in_several_rows"] == 1
    pictures = {p: p.stat().st_mtime_ns for p in (out / "images").rglob("*.png")}
    assert len(pictures) == 10
    rows = [row for split in ("train", "validation", "test") for row in read(out / f"{split}.json")]
    assert len(rows) == 11
    data = open_data(out, name="test")
    assert len({p for row in data.rows for p in row_images(row, data.image_root)}) == 2
    assert all(p.is_file() for row in data.rows for p in row_images(row, data.image_root))
    before = {p.name: p.read_bytes() for p in out.glob("*.json")}
    prepare("medtrinity", tmp_path / "source", out, validation_share=0.2, test_share=0.2)
    assert {p.name: p.read_bytes() for p in out.glob("*.json")} == before
    assert {p: p.stat().st_mtime_ns for p in (out / "images").rglob("*.png")} == pictures


# AffectNet


def faces(
    folder: Path, name: str, rows: Sequence[tuple[str, object, object]], header: bool = True
) -> Path:
    """An AffectNet list of (path, expression, face_width)."""
    path = folder / "Manually_Annotated_file_lists" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(AFFECTNET_COLUMNS)
        for image, expression, width in rows:
            writer.writerow([image, 1, 2, width, 30, "1;2", expression, 0.1, 0.2])
    return path


def test_affectnet_classes_left_out_rows_and_bad_rows(tmp_path: Path) -> None:
    rows: list[tuple[str, object, object]] = [(f"1/{i}.jpg", i, 20) for i in range(12)]
    rows += [("2/a.jpg", 1, -1), ("2/b.jpg", "happy", 20), ("2/c.jpg", -1, 20), ("", 1, 20)]
    path = faces(tmp_path, "training.csv", rows)
    with path.open("a") as file:
        file.write("2/d.jpg,1,2\n")
    (tmp_path / "Manually_Annotated").mkdir()
    found = list(affectnet(tmp_path, "en", None))
    labels = [one.row["label"] for one in found if one.row]
    assert labels == list(EMOTIONS["en"])
    assert said(found[1].row or {}) == [
        "<image>\nWhich emotion does this face show? Answer with one of: Neutral, Happy, Sad, "
        "Surprise, Fear, Disgust, Anger, Contempt.",
        "Happy",
    ]
    assert (found[1].row or {})["image"] == "Manually_Annotated/1/1.jpg"
    assert Counter(one.left_out for one in found if one.left_out) == {
        "expression 8 None": 1,
        "expression 9 Uncertain": 1,
        "expression 10 Non-Face": 1,
        "face_width below 0 (no face)": 1,
    }
    problems = {one.place.removeprefix(f"{path} "): one.problem for one in found if one.problem}
    assert list(problems) == ["line 13", "line 15", "line 16", "line 17", "line 18"]
    assert "expression: 11 is none of 0 to 10" in problems["line 13"]
    assert "expected numbers, found 'happy'" in problems["line 15"]
    assert "subDirectory_filePath: empty" in problems["line 17"]
    assert "3 fields where there are 9 columns" in problems["line 18"]


def test_affectnet_in_chinese_without_header_and_with_an_own_question(tmp_path: Path) -> None:
    faces(tmp_path, "training.csv", [("1/a.jpg", 6, 20)])
    faces(tmp_path, "validation.csv", [("1/b.jpg", 0, 20), ("1/c.jpg", 4, 20)], header=False)
    train, first, second = affectnet(tmp_path, "zh", None)
    assert said(train.row or {}) == [
        "<image>\n这张脸表现出哪种情绪？只回答其中一个：中性、高兴、悲伤、惊讶、恐惧、厌恶、愤怒、轻蔑。",
        "愤怒",
    ]
    assert [(one.split, (one.row or {})["label"]) for one in (train, first, second)] == [
        ("", "愤怒"), ("test", "中性"), ("test", "恐惧")
    ]  # fmt: skip
    assert first.place.endswith("validation.csv line 1")
    asked = next(affectnet(tmp_path, "en", "One of {classes}?"))
    assert said(asked.row or {})[0].startswith("<image>\nOne of Neutral, Happy")


def test_an_open_quote_in_an_affectnet_list_is_named(tmp_path: Path) -> None:
    path = faces(tmp_path, "training.csv", [("1/a.jpg", 1, 20)])
    last = path.read_text().splitlines()[-1]
    with path.open("a") as file:
        file.write('"2/b.jpg,1\n' + "x" * 200_000 + f"\n{last}\n")
    good, bad, long, next_one = affectnet(tmp_path, "en", None)
    assert good.row == next_one.row != None  # noqa: E711
    for found, line in ((bad, 3), (long, 4)):
        assert found.place == f"{path} line {line}"
        assert "1 fields where there are 9 columns" in found.problem


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ("file,emotion\n1/a.jpg,1\n", "found: file, emotion"),
        ("subDirectory_filePath,emotion\n1/a.jpg,1\n", "no column expression; found: sub"),
        ("", "found: nothing"),
    ],
)
def test_affectnet_of_another_layout(tmp_path: Path, lines: str, part: str) -> None:
    put(tmp_path / "training.csv", lines)
    with pytest.raises(UserError) as error:
        list(affectnet(tmp_path, "en", None))
    assert part in str(error.value)
    with pytest.raises(MissingError, match=r"training\.csv in it"):
        list(affectnet(tmp_path / "none", "en", None))


def make_affectnet(folder: Path, per_class: dict[int, int], test: int = 2) -> Path:
    rows = [(f"1/{c}_{i}.png", c, 20) for c, n in per_class.items() for i in range(n)]
    held_out = [(f"9/{c}_{i}.png", c, 20) for c in per_class for i in range(test)]
    faces(folder, "training.csv", rows)
    faces(folder, "validation.csv", held_out, header=False)
    for k, (name, _, _) in enumerate([*rows, *held_out]):
        put(folder / "Manually_Annotated" / name, picture((k % 250, k // 250, 7)))
    return folder


def test_affectnet_is_balanced_in_the_training_part_alone(tmp_path: Path) -> None:
    source = make_affectnet(tmp_path / "source", {0: 20, 1: 40, 7: 5})
    report = prepare(
        "affectnet", source, tmp_path / "out", per_class=10, validation_share=0.2, seed=1
    )
    classes = {name: split["classes"] for name, split in report["splits"].items()}
    assert classes == {
        "train": {"Neutral": 10, "Happy": 10, "Contempt": 4},
        "validation": {"Neutral": 4, "Happy": 8, "Contempt": 1},
        "test": {"Neutral": 2, "Happy": 2, "Contempt": 2},
    }
    assert report["left_out"] == {"more than 10 of a class": 28}
    described = read(tmp_path / "out" / "dataset.json")
    assert (described["kind"], tuple(described["classes"])) == ("label", EMOTIONS["en"])
    assert described["synthetic"] is False
    assert described["counts"] == {"train": 24, "validation": 13, "test": 6}
    data = open_data(tmp_path / "out", name="validation")
    assert all(p.is_file() for row in data.rows for p in row_images(row, data.image_root))
    assert (data.kind, data.classes, data.name) == ("label", EMOTIONS["en"], "affectnet_validation")
    other = prepare(
        "affectnet", source, tmp_path / "other", per_class=10, validation_share=0.2, seed=2
    )
    assert other["splits"]["train"]["classes"] == classes["train"]
    assert read(tmp_path / "other" / "train.json") != read(tmp_path / "out" / "train.json")


# Conversations


def chat_row(image: Any, answer: str = "a star", row_id: str = "x") -> dict[str, Any]:
    n = 1 if isinstance(image, str) else len(image)
    turns = [("human", "<image>" * n + "What?"), ("gpt", answer)]
    return {
        "id": row_id,
        "image": image,
        "conversations": [{"from": r, "value": t} for r, t in turns],
    }


@pytest.mark.parametrize("folder", ["images_dl", "images", "."])
def test_cc3m_finds_its_pictures_and_names_bad_rows(tmp_path: Path, folder: str) -> None:
    for name in "ab":
        put(tmp_path / folder / f"{name}.png", picture((name == "a" and "red") or "blue"))
    bad = chat_row("b.png") | {"conversations": []}
    path = put(tmp_path / "chat.json", [chat_row("a.png"), bad, chat_row("b.png")])
    put(tmp_path / "held_out.json", [chat_row("a.png") | {"captions": ["x", "y"]}])
    found = list(cc3m(tmp_path, "en", None))
    prefix = "" if folder == "." else f"{folder}/"
    assert [(f.row or {}).get("image") for f in found] == [
        f"{prefix}a.png", None, f"{prefix}b.png", f"{prefix}a.png"
    ]  # fmt: skip
    assert found[1].problem == f"{path} row 1 (id 'x'): conversations: empty"
    assert [f.split for f in found] == ["", "", "", "test"]
    assert (found[3].row or {})["captions"] == ["x", "y"]
    with pytest.raises(MissingError, match="LLaVA-CC3M-Pretrain-595K"):
        list(cc3m(tmp_path / "none", "en", None))


def test_descriptions_with_several_pictures(tmp_path: Path) -> None:
    shown = {"<image_00>": "Train/0.png", "<image_01>": "Train/1.png"}
    turns = [
        {"role": "user", "content": "<image_01>\n<image_00>\n哪张？"},
        {"role": "assistant", "content": "第一张"},
    ]
    put(tmp_path / "train.json", [{"id": 0, "image": shown, "conversations": turns}])
    put(tmp_path / "eval.json", [{"id": 1, "image": "Val/2.png", "conversations": turns}])
    first, second = descriptions(tmp_path, "zh", None)
    assert (first.row or {})["image"] == ["Train/1.png", "Train/0.png"]
    assert said(first.row or {})[0] == "<image>\n<image>\n哪张？"
    assert second.split == "test" or "<image>" in second.problem
    assert second.problem.startswith(f"{tmp_path / 'eval.json'} row 0 (id 1): ")
    with pytest.raises(MissingError, match="NLP_Final_Project"):
        list(descriptions(tmp_path / "none", "zh", None))


# Splits, duplicates, leakage, missing pictures


def make_cc3m(folder: Path, rows: list[dict[str, Any]], names: Sequence[str]) -> Path:
    for k, name in enumerate(names):
        put(folder / "images_dl" / name, picture((k % 256, 3, 9)))
    put(folder / "chat.json", rows)
    return folder


def splits_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        p.stem: read(p) for p in folder.glob("*.json") if p.stem in ("train", "validation", "test")
    }


def test_rows_are_joined_through_pictures_of_other_rows() -> None:
    shown = (("a",), ("a", "b"), ("b", "c"), ("d", "c"), ("e",))
    groups = _groups([Kept({}, "place", "", digests) for digests in shown])
    assert [len(group) for group in groups] == [4, 1]


def test_rows_that_share_a_picture_stay_together_whatever_its_name(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(40)]
    source = make_cc3m(tmp_path / "source", [], names)
    for i in range(0, 40, 4):  # the same content under another name
        (source / "images_dl" / f"copy_{i}.png").write_bytes(
            (source / "images_dl" / f"{i}.png").read_bytes()
        )
    rows = [chat_row(name, f"text {name}", name) for name in names]
    rows += [chat_row(f"copy_{i}.png", f"other text {i}", f"copy_{i}") for i in range(0, 40, 4)]
    # 0, 1 and 2 belong together through rows about two pictures
    rows += [chat_row(["0.png", "1.png"], "01", "01"), chat_row(["1.png", "2.png"], "12", "12")]
    put(source / "chat.json", rows)
    report = prepare("cc3m", source, tmp_path / "out", validation_share=0.3, test_share=0.3)
    assert report["leakage"]["pictures_in_two_splits"] == {
        "train/validation": 0, "train/test": 0, "validation/test": 0
    }  # fmt: skip
    where = {row["id"]: name for name, rows in splits_of(tmp_path / "out").items() for row in rows}
    assert len(where) == len(rows)
    assert all(where[f"{i}.png"] == where[f"copy_{i}"] for i in range(0, 40, 4))
    assert len({where[key] for key in ("0.png", "1.png", "2.png", "01", "12", "copy_0")}) == 1
    # 38 groups: 0.3 of them are 11
    groups = Counter(where[f"{i}.png"] for i in [0, *range(3, 40)])
    assert groups == {"train": 16, "validation": 11, "test": 11}
    prepare("cc3m", source, tmp_path / "seed", validation_share=0.3, test_share=0.3, seed=1)
    other = {row["id"]: name for name, rows in splits_of(tmp_path / "seed").items() for row in rows}
    assert other.keys() == where.keys()
    assert other != where
    # the same pictures in another order of rows fall the same way
    put(source / "chat.json", rows[::-1])
    prepare("cc3m", source, tmp_path / "again", validation_share=0.3, test_share=0.3)
    assert {r["id"]: n for n, rs in splits_of(tmp_path / "again").items() for r in rs} == where


def test_duplicates_missing_pictures_and_leaks_are_left_out_and_counted(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(12)]
    rows = [chat_row(name, f"text {name}", name) for name in names]
    rows += [
        chat_row("3.png", "text 3.png", "twice"),
        chat_row("gone.png"),
        chat_row("../../x.png"),
    ]
    rows += [chat_row("broken.png")]
    source = make_cc3m(tmp_path / "source", rows, names)
    put(source / "images_dl" / "broken.png", "no picture")
    put(source / "images_dl" / "leak.png", (source / "images_dl" / "5.png").read_bytes())
    put(
        source / "held_out.json",
        [chat_row("leak.png", "held out"), chat_row("6.png", "text 6.png")],
    )
    report = prepare("cc3m", source, tmp_path / "out", validation_share=0.2)
    assert report["rows_read"] == 18
    assert report["duplicate_rows_left_out"] == 1
    assert report["missing_pictures"]["total"] == 1
    assert report["missing_pictures"]["first"][0].endswith(
        "chat.json row 13: " + str(source / "images_dl" / "gone.png")
    )
    assert report["bad_rows"]["total"] == 2
    first, second = report["bad_rows"]["first"]
    assert "chat.json row 14: image: images_dl/../../x.png leads outside" in first
    assert "broken.png: not a picture" in second
    assert report["leakage"]["rows_left_out"] == 2
    ids = {name: {row["id"] for row in rows} for name, rows in splits_of(tmp_path / "out").items()}
    assert ids["test"] == {"x"}
    assert not {"5.png", "6.png"} & (ids["train"] | ids["validation"])
    assert len(ids["validation"]) == 2
    assert read(tmp_path / "out" / "validation_report.json") == report
    page = (tmp_path / "out" / "validation_report.html").read_text("utf-8")
    assert "gone.png" in page
    assert "No picture is in two splits" in page
    assert "SYNTHETIC" not in page


def test_a_leak_that_got_through_is_reported(tmp_path: Path) -> None:
    from qwen_clip_llava_lora.validation_report import leakage

    row = chat_row("a.png")
    splits = {
        "train": [Kept(row, "p", "", ("d", "e"))],
        "test": [Kept(row, "p", "test", ("e", "f"))],
    }
    assert leakage(splits) == {"train/test": 1}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([5], {"min": 5, "median": 5, "mean": 5, "p95": 5, "max": 5}),
        (list(range(100)), {"min": 0, "median": 49.5, "mean": 49.5, "p95": 95, "max": 99}),
    ],
)
def test_lengths(values: list[int], expected: dict[str, float] | None) -> None:
    assert lengths(values) == expected


# The folder that is written


def test_nothing_is_overwritten_silently(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(10)]
    source = make_cc3m(tmp_path / "source", [chat_row(n, n, n) for n in names], names)
    put(tmp_path / "own" / "train.json", "[]")
    with pytest.raises(UserError, match=r"holds train\.json from elsewhere"):
        prepare("cc3m", source, tmp_path / "own")
    assert (tmp_path / "own" / "train.json").read_text() == "[]"
    prepare("cc3m", source, tmp_path / "out")
    with pytest.raises(UserError, match="seed: 0 there, 1 now"):
        prepare("cc3m", source, tmp_path / "out", seed=1)
    with pytest.raises(UserError, match="questions of their own"):
        prepare("cc3m", source, tmp_path / "other", question="What?")
    with pytest.raises(UserError, match="--per_class: cc3m has no classes"):
        prepare("cc3m", source, tmp_path / "other", per_class=3)
    with pytest.raises(UserError, match="together below 1"):
        prepare("cc3m", source, tmp_path / "other", validation_share=0.5, test_share=0.5)
    with pytest.raises(MissingError):
        prepare("cc3m", tmp_path / "gone", tmp_path / "gone" / "prepared")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "gone").exists()


def test_an_unfinished_preparation_is_made_anew(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(10)]
    source = make_cc3m(tmp_path / "source", [chat_row(n, n, n) for n in names], names)
    prepare("cc3m", source, tmp_path / "out")
    before = read(tmp_path / "out" / "train.json")
    (tmp_path / "out" / "dataset.json").unlink()
    (tmp_path / "out" / "train.json").unlink()
    prepare("cc3m", source, tmp_path / "out")
    assert read(tmp_path / "out" / "train.json") == before
    assert (tmp_path / "out" / "dataset.json").is_file()


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(10)]
    rows = [*(chat_row(n, n, n) for n in names), chat_row("gone.png")]
    source = make_cc3m(tmp_path / "source", rows, names)
    report = prepare("cc3m", source, tmp_path / "out", dry_run=True)
    assert (report["rows_kept"], report["missing_pictures"]["total"]) == (10, 1)
    assert report["pictures_by"] == "name (dry run)"
    assert not (tmp_path / "out").exists()


def test_a_limit_takes_the_first_rows_of_each_part(tmp_path: Path) -> None:
    source = make_affectnet(tmp_path / "source", {0: 5, 1: 5}, test=4)
    report = prepare("affectnet", source, tmp_path / "out", limit=4, validation_share=0.25)
    assert report["rows_read"] == 8
    assert {n: s["rows"] for n, s in report["splits"].items()} == {
        "train": 3,
        "validation": 1,
        "test": 4,
    }


def test_no_usable_row_says_why(tmp_path: Path) -> None:
    source = make_cc3m(tmp_path / "source", [chat_row("gone.png")] * 3, [])
    with pytest.raises(UserError, match=r"none of 3 rows can be used: .*gone\.png"):
        prepare("cc3m", source, tmp_path / "out")


def test_the_script_on_toy_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["prepare_data.py", "--toy", "--dataset", "affectnet", "--language", "zh",
         "--per_class", "24", "--output_dir", str(tmp_path / "out")],
    )  # fmt: skip
    prepare_data.main()
    printed = capsys.readouterr().out
    assert "left out, expression 10 Non-Face: 36" in printed
    assert "中性 24" in printed
    assert read(tmp_path / "out" / "dataset.json")["synthetic"] is True
    assert "toy data" in (tmp_path / "out" / "validation_report.html").read_text("utf-8")
    assert set(Counter(r["label"] for r in read(tmp_path / "out" / "train.json"))) == set(
        EMOTIONS["zh"]
    )
