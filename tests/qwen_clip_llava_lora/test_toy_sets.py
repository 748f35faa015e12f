"""The toy sets: published layouts, deterministic, no picture in two parts, words that are known."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qwen_clip_llava_lora import toy_sets
from qwen_clip_llava_lora.data_formats import open_data
from qwen_clip_llava_lora.settings import TOY_QWEN2
from qwen_clip_llava_lora.toy_affectnet import COLUMNS, TRAINING, face, write_affectnet
from qwen_clip_llava_lora.toy_captions import references, write_cc3m, write_descriptions
from qwen_clip_llava_lora.toy_medtrinity import ct_slice, write_medtrinity
from shared.conversation_check import check_conversations, language_of
from shared.toy_world.pictures import scene_and_jpeg
from shared.toy_world.shapes import HELD_BACK_SHAPES


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def small_cc3m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cc3m")
    write_cc3m(root, rows=60, held_out=30)
    return root


def test_cc3m_layout(small_cc3m: Path) -> None:
    chat, metadata = read(small_cc3m / "chat.json"), read(small_cc3m / "metadata.json")
    assert set(chat[0]) == {"id", "image", "conversations"}
    assert chat[0]["image"] == "GCC_train_000000000.jpg"
    assert [row["caption"] for row in metadata] == [r["conversations"][1]["value"] for r in chat]
    assert 0.7 < sum("blip_caption" in row for row in metadata) / len(metadata) <= 1
    asked = [row["conversations"][0]["value"] for row in chat]
    assert {text.startswith("<image>\n") for text in asked} == {True, False}
    for name, rows in (("chat", 60), ("held_out", 30)):
        data = open_data(small_cc3m / f"{name}.json")
        report = check_conversations(data.rows)
        assert (report["good_rows"], report["bad_rows"]) == (rows, 0)
        assert set(report["languages"]) == {"latin", "zh"}


def test_held_out_rows_have_references_and_pictures_of_their_own(small_cc3m: Path) -> None:
    held_out = read(small_cc3m / "held_out.json")
    pictures = sorted((small_cc3m / "images_dl").iterdir())
    assert len({digest(p) for p in pictures}) == len(pictures) == 90
    assert not {r["image"] for r in held_out} & {r["image"] for r in read(small_cc3m / "chat.json")}
    for row in held_out:
        assert row["conversations"][1]["value"] == row["captions"][0]
        assert len(set(row["captions"])) == len(row["captions"])
        assert {language_of(c) for c in row["captions"]} == {
            "zh" if row["language"] == "zh" else "latin"
        }
    assert sum(len(row["captions"]) > 1 for row in held_out) > 25
    assert open_data(small_cc3m / "held_out.json").kind == "caption"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_reference_names_everything(language: str) -> None:
    from shared.toy_world.chinese import COLORS_ZH, SHAPES_ZH

    for i in range(30):
        scene, _ = scene_and_jpeg(f"references/{i}")
        for caption in references(scene, language, random.Random(i)):
            for item in scene.items:
                names = (item.color, item.shape)
                if language == "zh":
                    names = (COLORS_ZH[item.color], SHAPES_ZH[item.shape])
                assert all(name in caption for name in names), caption


def test_descriptions_layout(tmp_path: Path) -> None:
    write_descriptions(tmp_path, parts={"train": ("Train", 0, 30), "eval": ("Val", 2000, 5)})
    rows = read(tmp_path / "train.json")
    assert {turn["role"] for turn in rows[0]["conversations"]} == {"user", "assistant"}
    several = [row["image"] for row in rows if isinstance(row["image"], dict)]
    assert several
    assert set(several[0]) == {"<image_00>", "<image_01>"}
    assert read(tmp_path / "eval.json")[0]["image"] in (
        "Val/2000.jpg", {"<image_00>": "Val/2000.jpg", "<image_01>": "Val/2001.jpg"}
    )  # fmt: skip
    for name in ("train", "eval"):
        assert check_conversations(open_data(tmp_path / f"{name}.json").rows)["bad_rows"] == 0


def test_medtrinity_layout_with_its_dirty_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    counts = write_medtrinity(tmp_path, rows=120)["counts"]
    shards = sorted((tmp_path / "25M_demo").glob("train-*-of-00002.parquet"))
    records = [record for shard in shards for record in pq.read_table(shard).to_pylist()]
    assert set(records[0]) == {"image", "id", "caption"}
    assert set(records[0]["image"]) == {"bytes", "path"}
    assert len(records) == counts["rows"] == 120
    assert [i for i, record in enumerate(records) if not record["caption"]] == [101]
    repeated = Counter(record["image"]["bytes"] for record in records)
    assert sorted(repeated.values())[-2:] == [1, 2]  # 230 lies behind these 120


def test_a_ct_caption_says_what_is_drawn() -> None:
    import io

    import numpy as np
    from PIL import Image

    corners = {
        "top left": (22, 22),
        "top right": (22, 42),
        "bottom left": (42, 22),
        "bottom right": (42, 42),
    }
    for i in range(40):
        png, caption = ct_slice(f"test/{i}")
        pixels = np.asarray(Image.open(io.BytesIO(png)), dtype=int)
        assert pixels.shape == (64, 64)
        named = [place for place in corners if place in caption]
        assert len(named) == (0 if "no other" in caption else 1)
        # grey levels that neither tissue (90 to 140) nor blur has, well inside the body
        ys, xs = np.mgrid[:64, :64]
        inside = ((xs - 32) / 23) ** 2 + ((ys - 32) / 20) ** 2 < 1
        inside &= ~((abs(xs - 32) < 7) & (ys > 43))  # without the spine
        extreme = inside & ((pixels > 180) | (pixels < 60))
        assert bool(extreme.any()) == bool(named), caption
        if named:
            y, x = (float(v.mean()) for v in np.nonzero(extreme))
            nearest = min(corners, key=lambda p: abs(corners[p][0] - y) + abs(corners[p][1] - x))
            assert nearest == named[0]


def test_affectnet_layout_imbalance_and_rows_without_a_face(tmp_path: Path) -> None:
    small = {number: max(2, count // 8) for number, count in TRAINING.items()}
    write_affectnet(tmp_path, training=small, validation=dict.fromkeys(range(9), 2))
    lists = tmp_path / "Manually_Annotated_file_lists"
    with (lists / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert Counter(int(row["expression"]) for row in rows) == small
    without = [row for row in rows if float(row["face_width"]) < 0]
    assert sum(int(row["expression"]) < 8 for row in without) == 6
    pictures = tmp_path / "Manually_Annotated" / "Manually_Annotated_Images"
    assert all((pictures / row["subDirectory_filePath"]).is_file() for row in rows)
    first = (lists / "validation.csv").read_text().splitlines()[0]
    assert "expression" not in first
    assert len(first.split(",")) == len(COLUMNS)
    assert TRAINING[1] > 8 * TRAINING[5]


def test_faces_of_different_expressions_differ_and_the_key_decides() -> None:
    drawn = {face(random.Random(5), expression)[0] for expression in range(8)}
    assert len(drawn) == 8
    jpeg, (x, y, width, height) = face(random.Random(5), 1)
    assert (jpeg, (x, y, width, height)) == face(random.Random(5), 1)
    assert 0 <= x < x + width <= 64
    assert 0 <= y < y + height <= 64


def test_every_word_is_one_token_of_the_toy_qwen2(small_cc3m: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOY_QWEN2)
    write_descriptions(tmp_path, parts={"train": ("Train", 0, 30)})
    rows = [*read(small_cc3m / "chat.json"), *read(tmp_path / "train.json")]
    texts = [
        turn.get("value", turn.get("content")) for row in rows for turn in row["conversations"]
    ]
    texts = [text for text in texts if "<image_0" not in text]
    texts += [ct_slice(f"tokens/{i}")[1] for i in range(60)]
    pieces = {token for text in texts for token in tokenizer.tokenize(text)}
    short = {token for token in pieces if len(token) == 1}
    assert short <= set("Ċa,.?")  # no letter by itself: nothing was spelled out in bytes
    assert not any(f" {name}" in text for text in texts for name in HELD_BACK_SHAPES)


def test_a_set_is_drawn_once_and_again_when_its_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def write(root: Path) -> dict[str, Any]:
        drawn.append(1)
        return write_cc3m(root, rows=2, held_out=1)

    monkeypatch.setattr("qwen_clip_llava_lora.toy_captions.write_cc3m", write)
    root = toy_sets.ensure_cc3m(tmp_path / "set")
    manifest = read(root / "manifest.json")
    assert manifest["synthetic"] is True
    assert manifest["counts"] == {"chat": 2, "held_out": 1, "pictures": 3}
    toy_sets.ensure_cc3m(tmp_path / "set")
    assert len(drawn) == 1
    monkeypatch.setattr("qwen_clip_llava_lora.toy_sets.recipe_hash", lambda sources: "another")
    toy_sets.ensure_cc3m(tmp_path / "set")
    assert len(drawn) == 2
    assert read(root / "manifest.json")["data_hash"] == manifest["data_hash"]


def test_prepared_toy_sets_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(root: Path = tmp_path / "medtrinity") -> Path:
        if not root.exists():
            root.mkdir()
            write_medtrinity(root, rows=40)
        return root

    monkeypatch.setattr(toy_sets, "ensure_medtrinity", small)
    prepared = toy_sets.ensure_prepared("medtrinity")
    assert {p.stem for p in prepared.glob("*.json")} >= {"train", "validation", "test", "dataset"}
    changed = (prepared / "dataset.json").stat().st_mtime_ns
    assert toy_sets.ensure_prepared("medtrinity") == prepared
    assert (prepared / "dataset.json").stat().st_mtime_ns == changed
    assert len(open_data(prepared).rows) == 31  # 40, one twice, a tenth each held out
