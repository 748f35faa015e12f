"""Published datasets as LLaVA rows: exact rows from small folders in the published layouts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_repro import prepare_data
from llava_repro.source_datasets import (
    CAPTION_QUESTIONS,
    cogvlm_sft,
    sa1b_dense_caption,
    scienceqa,
)
from shared.conversations import open_conversations
from shared.options import REPO_ROOT, MissingError, UserError

PROBLEM = {
    "question": "Which is  red?", "choices": ["the sky", "a rose"], "answer": 1,
    "hint": "Look at it.", "image": None, "lecture": "Colors.\nMany.", "solution": "A rose is.",
    "split": "train",
}  # fmt: skip


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *flags])
    prepare_data.main()


@pytest.fixture
def scienceqa_root(tmp_path: Path) -> Path:
    problems = {
        "3": PROBLEM,
        "7": PROBLEM | {"image": "image.png", "hint": "", "lecture": "", "choices": list("abcde")},
        "8": PROBLEM | {"answer": 2},
        "9": PROBLEM | {"choices": ["a"]},
        "10": PROBLEM | {"image": "gone.png"},
        "11": PROBLEM | {"question": None},
    }
    write_json(tmp_path / "problems.json", problems)
    write_json(tmp_path / "pid_splits.json", {"train": [*problems, "99"], "val": ["3"]})
    picture(tmp_path / "images" / "train" / "7" / "image.png")
    return tmp_path


def test_scienceqa_as_llavas_script_writes_it(scienceqa_root: Path) -> None:
    rows = {row["id"]: row for _, row, _ in scienceqa(scienceqa_root, "train", "QCM-LEA") if row}
    assert rows["3"] == {
        "id": "3",
        "conversations": [
            {
                "from": "human",
                "value": "Which is red?\nContext: Look at it.\nOptions: (A) the sky (B) a rose",
            },
            {"from": "gpt", "value": "Colors.\nMany. A rose is. The answer is B."},
        ],
    }
    assert rows["7"] == {
        "id": "7",
        "image": "images/train/7/image.png",
        "conversations": [
            {
                "from": "human",
                "value": "Which is red?\nContext: N/A\nOptions: (A) a (B) b (C) c (D) d (E) e"
                "\n<image>",
            },
            {"from": "gpt", "value": "A rose is. The answer is B."},
        ],
    }
    short = [row for _, row, _ in scienceqa(scienceqa_root, "val", "QCM-A")]
    assert [r["conversations"][1]["value"] for r in short if r] == ["The answer is B."]


def test_bad_problems_are_named_and_left_out(
    scienceqa_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--data_root", str(scienceqa_root))
    output = scienceqa_root / "llava_train_QCM-LEA.jsonl"
    assert [row["id"] for row in open_conversations(output)] == ["3", "7"]
    report = json.loads(output.with_suffix(".report.json").read_text())
    source = report["source"]
    assert (source["rows_read"], source["rows_written"], source["rows_left_out"]) == (7, 2, 5)
    place = f"{scienceqa_root / 'problems.json'} problem"
    gone = scienceqa_root / "images" / "train" / "10" / "gone.png"
    assert source["problems"] == [
        f"{place} 8: answer: 2 is not the number of a choice (of 2)",
        f"{place} 9: choices: expected two to 5 texts, found ['a']",
        f"{place} 10: image: {gone}: no such picture",
        f"{place} 11: question: expected text, found ''",
        f"{place} 99: named in pid_splits.json, missing here",
    ]
    checked = report["output"]
    assert (checked["rows"], checked["images"], checked["bad_rows"]) == (2, 1, 0)
    out = capsys.readouterr().out
    assert "scienceqa: 7 rows read, 2 written, 5 left out" in out
    assert f"{place} 8: answer" in out


def test_scienceqa_pictures_in_the_other_folders_of_downloads(scienceqa_root: Path) -> None:
    (scienceqa_root / "images" / "train").rename(scienceqa_root / "train")
    rows = {row["id"]: row for _, row, _ in scienceqa(scienceqa_root, "train", "QCM-A") if row}
    assert rows["7"]["image"] == "train/7/image.png"


def test_missing_dataset_names_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"problems\.json is not there"):
        list(scienceqa(tmp_path, "train", "QCM-A"))
    with pytest.raises(MissingError, match=r"unpack CogVLM-SFT-311K\.zip"):
        list(cogvlm_sft(tmp_path, "zh"))
    with pytest.raises(MissingError, match=r"no \.parquet, \.csv or \.jsonl shard"):
        list(sa1b_dense_caption(tmp_path, "zh"))
    write_json(tmp_path / "problems.json", {})
    write_json(tmp_path / "pid_splits.json", {"train": []})
    with pytest.raises(UserError, match=r"no split 'dev': train"):
        list(scienceqa(tmp_path, "dev", "QCM-A"))


def cogvlm_folders(root: Path) -> Path:
    talk = root / "llava_instruction_multi_conversations_formate"
    turns = [("user", "图里有什么？"), ("assistant", "一只猫。"), ("user", "它在哪？"),
             ("assistant", "在沙发上。")]  # fmt: skip
    write_json(
        talk / "labels_zh" / "000005916.json",
        {"conversations": [{"role": role, "content": text} for role, text in turns]},
    )
    write_json(
        talk / "labels_en" / "000005916.json",
        {"conversations": [{"role": "user", "content": "What?"},
                           {"role": "assistant", "content": "A cat."}]},
    )  # fmt: skip
    write_json(talk / "labels_zh" / "000000002.json", {"conversations": []})
    write_json(
        talk / "labels_zh" / "000000003.json",
        {"conversations": [{"role": "assistant", "content": "x"}]},
    )
    (talk / "labels_zh" / "000000004.json").write_text("{", encoding="utf-8")
    picture(talk / "images" / "000005916.jpg")
    captions = root / "llava_details-minigpt4_3500_formate"
    label = {"captions": [{"role": "caption", "content": "一张照片。"}]}
    write_json(captions / "labels_zh" / "00000001.json", label)
    write_json(captions / "labels_zh" / "00000002.json", label)  # its picture is not there
    picture(captions / "images" / "00000001.jpg")
    return root


def test_cogvlm_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = cogvlm_folders(tmp_path)
    run(monkeypatch, "--dataset", "cogvlm_sft", "--data_root", str(root))
    first, second = open_conversations(root / "llava_cogvlm_sft_zh.jsonl")
    assert first["image"] == "llava_details-minigpt4_3500_formate/images/00000001.jpg"
    question = first["conversations"][0]["value"]
    assert question.startswith("<image>\n")
    assert question.removeprefix("<image>\n") in CAPTION_QUESTIONS["zh"]
    assert first["conversations"][1] == {"from": "gpt", "value": "一张照片。"}
    assert second == {
        "id": "llava_instruction_multi_conversations_formate/000005916",
        "image": "llava_instruction_multi_conversations_formate/images/000005916.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\n图里有什么？"},
            {"from": "gpt", "value": "一只猫。"},
            {"from": "human", "value": "它在哪？"},
            {"from": "gpt", "value": "在沙发上。"},
        ],
    }
    report = json.loads((root / "llava_cogvlm_sft_zh.report.json").read_text())
    assert report["source"]["rows_left_out"] == 4
    problems = "\n".join(report["source"]["problems"])
    assert "00000002.json: image:" in problems
    assert "000000002.json: expected `conversations` or `captions`" in problems
    assert "000000003.json: conversations[0]: expected a text from user" in problems
    assert "000000004.json: not valid JSON" in problems
    assert report["output"]["languages"] == {"zh": 2}
    english = [row for _, row, _ in cogvlm_sft(root, "en") if row]
    assert [row["conversations"][1]["value"] for row in english] == ["A cat."]


def test_cogvlm_one_folder_with_plain_labels(tmp_path: Path) -> None:
    write_json(tmp_path / "labels" / "1.json", {"captions": [{"role": "caption", "content": "c"}]})
    picture(tmp_path / "images" / "1.jpg")
    ((_, row, _),) = cogvlm_sft(tmp_path, "en")
    assert row is not None
    assert (row["id"], row["image"]) == ("1", "images/1.jpg")


SA1B = [
    {"url": "https://example.org/a/sa_1.jpg?x=1", "cap_seg": "{'global_caption': '一只狗。'}"},
    {"url": "https://example.org/a/sa_2.jpg", "cap_seg": "{'global_caption': '一辆车。'}"},
    {"url": "https://example.org/a/sa_3.jpg", "cap_seg": "__import__('os').getcwd()"},
    {"url": "https://example.org/a/sa_4.jpg", "cap_seg": "{'global_caption': ''}"},
]


def write_shard(root: Path, kind: str) -> None:
    path = root / "data" / f"train-0000-of-0001.{kind}"
    path.parent.mkdir(parents=True)
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(SA1B), path)
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["url", "cap_seg"])
            writer.writeheader()
            writer.writerows(SA1B)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in SA1B), encoding="utf-8")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_sa1b_dense_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write_shard(tmp_path, kind)
    picture(tmp_path / "images" / "sa_1.jpg")
    flags = ("--dataset", "sa1b_dense_caption", "--data_root", str(tmp_path))
    run(monkeypatch, *flags)
    output = tmp_path / "llava_sa1b_dense_caption_zh.jsonl"
    (row,) = open_conversations(output)
    assert (row["image"], row["url"]) == ("images/sa_1.jpg", SA1B[0]["url"])
    assert row["conversations"][1]["value"] == "一只狗。"
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["source"]["rows_left_out"] == 3
    problems = report["source"]["problems"]
    assert "row 2: cap_seg: neither a dict nor the text of one" in problems[1]
    assert "row 3: cap_seg.global_caption: missing or empty" in problems[2]
    urls = output.with_suffix(".missing_urls.txt")
    assert urls.read_text() == f"{SA1B[1]['url']}\n"
    assert f"wget -nc -P {tmp_path / 'images'} -i {urls}" in capsys.readouterr().out
    before = output.read_bytes()
    run(monkeypatch, *flags)  # its own output in the folder is no shard, and questions stay
    assert output.read_bytes() == before


def test_own_captions_with_paths_and_a_broken_line(tmp_path: Path) -> None:
    lines = [
        json.dumps({"image": "p/1.jpg", "caption": "a dog"}), '{"caption": ',
        json.dumps({"image": "p/1.jpg", "cap_seg": {"global_caption": "a cat"}}),
        json.dumps({"caption": "x"}),
    ]  # fmt: skip
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = list(sa1b_dense_caption(tmp_path, "en"))
    assert [row["conversations"][1]["value"] for _, row, _ in found if row] == ["a dog", "a cat"]
    assert "not valid JSON" in found[1][2]
    assert found[3][2] == "url, image: no picture named"
    assert found[0][0] == f"{tmp_path / 'mine.jsonl'} row 0"


def test_a_row_may_not_name_pictures_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "sa1b"
    picture(tmp_path / "secret.jpg")
    picture(root / "ok.jpg")
    rows = [{"image": "ok.jpg", "caption": "c"}, {"image": "../secret.jpg", "caption": "c"}]
    (root / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(monkeypatch, "--dataset", "sa1b_dense_caption", "--data_root", str(root))
    report = json.loads((root / "llava_sa1b_dense_caption_zh.report.json").read_text())
    assert report["source"]["rows_written"] == 1
    assert "leads outside" in report["source"]["problems"][0]


def test_nothing_usable_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "problems.json", {"1": PROBLEM | {"answer": 9}})
    write_json(tmp_path / "pid_splits.json", {"train": ["1"]})
    with pytest.raises(UserError, match=r"none of 1 rows can be used.*answer: 9 is not"):
        run(monkeypatch, "--data_root", str(tmp_path))
    assert not list(tmp_path.glob("*.jsonl*"))


def test_limit_is_in_the_name_of_the_output(
    scienceqa_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--data_root", str(scienceqa_root), "--limit", "1")
    assert len(open_conversations(scienceqa_root / "llava_train_QCM-LEA_1.jsonl")) == 1


def test_toy_from_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "toy.jsonl"
    done = subprocess.run(
        [sys.executable, "llava_repro/prepare_data.py", "--toy", "--output", str(output)],
        capture_output=True, text=True, cwd=REPO_ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "toy.report.json").read_text())
    assert report["source"]["rows_left_out"] == report["output"]["bad_rows"] == 0
    assert report["data_root"] == "data/toy/scienceqa"
    assert report["output"]["image_rows"] > 0
    assert report["output"]["text_only_rows"] > 0
