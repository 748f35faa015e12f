"""The toy LLaVA conversations and benchmarks: official fields, splits apart, nothing held back."""

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.options import UserError
from shared.toy_world import benchmarks, conversations, tasks
from shared.toy_world.__main__ import main
from shared.toy_world.build import ensure_vqav2, read_manifest
from shared.toy_world.chinese import SHAPES_ZH, question_zh
from shared.toy_world.conversations import ensure_llava
from shared.toy_world.pictures import SIZE
from shared.toy_world.questions import TEMPLATES, Question, candidates
from shared.toy_world.sets import Pictures, ensure_set
from shared.toy_world.shapes import HELD_BACK_SHAPES, Item, Scene, plural

HELD_BACK_NAMES = [
    *(name for shape in HELD_BACK_SHAPES for name in (shape, plural(shape))),
    *(SHAPES_ZH[shape] for shape in HELD_BACK_SHAPES),
]


@pytest.fixture(scope="module")
def llava() -> Path:
    return ensure_llava()


@pytest.fixture(scope="module")
def sets(llava: Path) -> dict[str, Path]:
    """Every toy set as users get it, drawn once."""
    return {
        "llava": llava,
        "vqav2": ensure_vqav2(),
        "pope": benchmarks.ensure_pope(),
        "scienceqa": benchmarks.ensure_scienceqa(),
        "gqa": benchmarks.ensure_gqa(),
        "textvqa": benchmarks.ensure_textvqa(),
    }


@pytest.fixture(scope="module")
def rows(llava: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: lines(llava / f"{name}.jsonl") for name in ("pretrain", "finetune", "held_out")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def images_of(row: dict[str, Any]) -> list[str]:
    image = row.get("image", [])
    return [image] if isinstance(image, str) else image


def test_rows_are_llava_s_with_one_image_tag_a_picture_in_front(
    llava: Path, rows: dict[str, list[dict[str, Any]]]
) -> None:
    for name, found in rows.items():
        assert len({row["id"] for row in found}) == len(found)
        for row in found:
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert all(turn["value"].strip() for turn in turns), row["id"]
            tags = len(images_of(row))
            assert turns[0]["value"].startswith("<image>\n" * tags)
            assert sum(turn["value"].count("<image>") for turn in turns) == tags
        for image in {image for row in found for image in images_of(row)}:
            assert (llava / image).is_file(), f"{name}: {image}"


def test_the_mixture_has_all_kinds_of_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    pretrain, finetune = rows["pretrain"], rows["finetune"]
    assert all(len(row["conversations"]) == 2 and len(images_of(row)) == 1 for row in pretrain)
    total = len(finetune)
    per_row = Counter(len(images_of(row)) for row in finetune)
    assert per_row[0] / total == pytest.approx(conversations.KINDS["text"], abs=0.02)
    assert per_row[2] / total == pytest.approx(conversations.KINDS["two_pictures"], abs=0.02)
    text = [" ".join(turn["value"] for turn in row["conversations"]) for row in finetune]
    for share, wanted in (
        (sum(any("\u4e00" <= c <= "\u9fff" for c in t) for t in text), 0.18),
        (sum(tasks.LETTER_ANSWER in t for t in text), 0.10),
        (sum(tasks.OCR_LINE in t for t in text), 0.04),
        (sum(t.split("\n", 1)[-1].startswith(tasks.DESCRIBE) for t in text), 0.14),
    ):
        assert share / total == pytest.approx(wanted, abs=0.05)
    chats = [row for row in finetune if len(row["conversations"]) == 2 * conversations.TURNS]
    assert len(chats) > total / 2
    firsts = Counter(row["conversations"][0]["value"].split()[1] for row in chats)
    assert len(firsts) > 5  # not always the same question first


def test_a_picture_belongs_to_one_split_and_one_content(sets: dict[str, Path]) -> None:
    """Training never saw a picture of any test: no content occurs twice, in all sets together."""
    seen: dict[str, Path] = {}
    for root in sets.values():
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".jpg", ".png")):
            digest = hashlib.sha256(Image.open(path).tobytes()).hexdigest()
            assert digest not in seen, f"{path} is {seen.get(digest)}"
            seen[digest] = path
            assert Image.open(path).size == (SIZE, SIZE)
    splits = [{i for row in lines(sets["llava"] / f"{n}.jsonl") for i in images_of(row)}
              for n in ("pretrain", "finetune", "held_out")]  # fmt: skip
    assert not splits[0] & splits[1]
    assert not splits[2] & (splits[0] | splits[1])


def test_no_text_names_a_held_back_shape(sets: dict[str, Path]) -> None:
    for name, root in sets.items():
        if name == "vqav2":  # its own test is in test_toy_world.py
            continue
        for path in [*root.glob("*.json"), *root.glob("*.jsonl")]:
            if path.name == "manifest.json":
                continue
            text = path.read_text("utf-8").lower()
            found = [
                word for word in HELD_BACK_NAMES if re.search(rf"(?<![a-z]){word}(?![a-z])", text)
            ]
            assert found == [], f"{path}: {found}"


def test_scenes_hold_no_held_back_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Scene] = []
    for module in (conversations, benchmarks):
        real = module.scene_and_jpeg

        def spy(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            drawn.append(result[0])
            return result

        monkeypatch.setattr(module, "scene_and_jpeg", spy)
    conversations.write_llava(tmp_path / "llava", 1, 50, 200, 20, 10)
    for write in (benchmarks.write_pope, benchmarks.write_scienceqa, benchmarks.write_gqa):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder, seed=1)
    shapes = {item.shape for scene in drawn for item in scene.items}
    shapes |= {tasks.written_picture(f"w/{n}")[0].items[0].shape for n in range(100)}
    assert len(drawn) > 500
    assert not shapes & set(HELD_BACK_SHAPES)


def test_held_out_rows_are_single_questions_and_blind_answers_are_poor(
    llava: Path, rows: dict[str, list[dict[str, Any]]]
) -> None:
    blind = read_manifest(llava)["blind_answers"]
    right: dict[str, list[bool]] = {"all": [], "yes/no": []}
    for row in rows["held_out"]:
        assert len(row["conversations"]) == 2
        assert row["answer"] == row["conversations"][1]["value"]
        hit = blind[f"{row['language']}/{row['question_type']}"] == row["answer"]
        right["all"].append(hit)
        if row["answer_type"] == "yes/no":
            right["yes/no"].append(hit)
    assert sum(right["all"]) / len(right["all"]) < 0.40
    assert sum(right["yes/no"]) / len(right["yes/no"]) < 0.56
    assert {row["language"] for row in rows["held_out"]} == {"en", "zh"}
    which = Counter(r["answer"] for r in rows["held_out"] if r["question_type"] == "which picture")
    assert abs(which["first"] - which["second"]) <= 1


def test_chinese_questions_say_the_same() -> None:
    scene = Scene((Item("star", "red", 16, 16, 10), Item("cross", "blue", 48, 48, 10)),
                  (248, 248, 248), False)  # fmt: skip
    said = {
        ("is there a colored shape", "Is there a red star?", "yes"): ("图中有红色的星形吗？", "有"),
        ("is the shape colored", "Is the star blue?", "no"): ("星形是蓝色的吗？", "不是"),
        ("how many of a shape", "How many crosses are there?", "2"): ("图中有几个十字？", "两个"),
        ("where is the shape", "Where is the star?", "top left"): ("星形在哪里？", "左上角"),
        ("what is in the corner", "What is in the bottom right?", "cross"): (
            "右下角是什么图形？",
            "十字",
        ),
    }
    for question, expected in said.items():
        assert question_zh(Question(*question)) == expected
    for template in TEMPLATES:  # every template has its Chinese form, with its nouns in it
        for question in candidates(scene, template, random.Random(0)):
            text, answer = question_zh(question)
            assert "{" not in text
            assert text.endswith("？")
            assert answer


def test_gqa_answers_follow_the_scene() -> None:
    scene = Scene((Item("star", "red", 12, 30, 10), Item("cross", "red", 50, 30, 10)),
                  (248, 248, 248), False)  # fmt: skip
    asked: dict[str, str] = {}
    for seed in range(60):
        for question in tasks.gqa_questions(scene, random.Random(seed)):
            asked[question.text] = question.answer
    assert asked["Is the star to the left or to the right of the cross?"] == "left"
    assert asked["Is the cross to the left or to the right of the star?"] == "right"
    assert asked["Do the star and the cross have the same color?"] == "yes"
    assert asked["Is there a star in this picture?"] == "yes"
    assert asked["Is there a frame in this picture?"] == "no"
    assert {a for t, a in asked.items() if t.startswith("What color")} == {"red"}


def test_pope_has_the_official_fields_and_harder_absent_objects(sets: dict[str, Path]) -> None:
    frequency: Counter[str] = Counter()
    absent: dict[str, Counter[str]] = {}
    for split in ("random", "popular", "adversarial"):
        found = lines(sets["pope"] / f"coco_pope_{split}.json")
        assert [set(row) for row in found] == [{"question_id", "image", "text", "label"}] * 600
        assert [row["question_id"] for row in found] == list(range(1, 601))
        assert Counter(row["label"] for row in found) == {"yes": 300, "no": 300}
        shapes = {label: Counter(r["text"].split()[3] for r in found if r["label"] == label)
                  for label in ("yes", "no")}  # fmt: skip
        frequency, absent[split] = shapes["yes"], shapes["no"]
        pairs = [(row["image"], row["text"]) for row in found]
        assert len(set(pairs)) == len(pairs)
        assert all((sets["pope"] / "val2014" / row["image"]).is_file() for row in found)

    def popularity(split: str) -> float:
        return sum(frequency[shape] * n for shape, n in absent[split].items())

    assert popularity("popular") > popularity("random")


def test_scienceqa_has_the_official_fields(sets: dict[str, Path]) -> None:
    problems = read(sets["scienceqa"] / "problems.json")
    splits = read(sets["scienceqa"] / "pid_splits.json")
    assert splits["trainval"] == splits["train"] + splits["val"]
    assert set(splits["train"]) | set(splits["val"]) | set(splits["test"]) == set(problems)
    fields = [
        *("question", "choices", "answer", "hint", "image", "task", "grade", "subject"),
        *("topic", "category", "skill", "lecture", "solution", "split"),
    ]
    for number, problem in problems.items():
        assert list(problem) == fields
        assert 2 <= len(problem["choices"]) == len(set(problem["choices"])) <= 5
        assert problem["solution"] == f"The answer is {problem['choices'][problem['answer']]}."
        path = sets["scienceqa"] / "images" / problem["split"] / number / "image.png"
        assert path.is_file() == (problem["image"] == "image.png")
    shown = sum(problem["image"] is not None for problem in problems.values()) / len(problems)
    assert 0.4 < shown < 0.6
    assert {p["subject"] for p in problems.values()} == {
        "natural science", "language science", "social science",
    }  # fmt: skip


def test_gqa_has_the_official_fields(sets: dict[str, Path]) -> None:
    asked = read(sets["gqa"] / "testdev_balanced_questions.json")
    for question in asked.values():
        assert {"question", "imageId", "answer", "fullAnswer", "types", "isBalanced"} <= set(
            question
        )
        assert set(question["types"]) == {"detailed", "semantic", "structural"}
        assert (sets["gqa"] / "images" / f"{question['imageId']}.jpg").is_file()
    kinds = Counter(q["types"]["structural"] for q in asked.values())
    assert set(kinds) == {"verify", "query", "choose", "logical", "compare"}


def test_textvqa_has_the_official_fields_and_ocr_mostly_finds_the_word(
    sets: dict[str, Path],
) -> None:
    asked = read(sets["textvqa"] / "TextVQA_0.5.1_val.json")["data"]
    found = read(sets["textvqa"] / "TextVQA_Rosetta_OCR_v0.2_val.json")["data"]
    tokens = {row["image_id"]: row["ocr_tokens"] for row in found}
    hits = 0
    for question in asked:
        assert len(question["answers"]) == 10
        assert (sets["textvqa"] / "train_images" / f"{question['image_id']}.jpg").is_file()
        word = Counter(question["answers"]).most_common(1)[0][0]
        assert word in tasks.WRITTEN_WORDS
        assert len(tokens[question["image_id"]]) > 0
        hits += word in tokens[question["image_id"]]
    assert 0.8 < hits / len(asked) < 1.0
    assert all([i["word"] for i in row["ocr_info"]] == row["ocr_tokens"] for row in found)


def test_same_seed_same_set_other_seed_other_pictures(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        conversations.write_llava(tmp_path / name, seed, 20, 60, 10, 5)
        texts.append({p.relative_to(tmp_path / name): p.read_bytes()
                      for p in (tmp_path / name).rglob("*") if p.is_file()})  # fmt: skip
    assert texts[0] == texts[1]
    pictures = [{v for k, v in found.items() if k.suffix == ".jpg"} for found in texts]
    assert not pictures[0] & pictures[2]


def test_a_set_is_whole_or_not_there_and_redrawn_when_its_recipe_changes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    drawn: list[int] = []

    def write(folder: Path) -> dict[str, Any]:
        drawn.append(len(drawn))
        Pictures(folder).add("images/a.jpg", bytes([len(drawn)]))
        return {"counts": {}}

    def broken(folder: Path) -> dict[str, Any]:
        (folder / "half.jpg").write_bytes(b"x")
        raise OSError("disk full")

    with pytest.raises(UserError, match="disk full"):
        ensure_set(root, "test", "one", broken)
    assert list(tmp_path.iterdir()) == []
    assert ensure_set(root, "test", "one", write) == root
    ensure_set(root, "test", "one", write)
    assert len(drawn) == 1
    first = read_manifest(root)
    assert first["synthetic"] is True
    ensure_set(root, "test", "two", write)
    assert len(drawn) == 2
    assert read_manifest(root)["data_hash"] != first["data_hash"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_foreign_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not a toy set"):
        ensure_llava(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_repeated_picture_is_refused(tmp_path: Path) -> None:
    stored = Pictures(tmp_path)
    stored.add("a.jpg", b"same")
    with pytest.raises(ValueError, match="same content"):
        stored.add("b.jpg", b"same")


def test_command_draws_one_set_and_names_unknown_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gqa", "--root", str(tmp_path / "gqa")]) == 0
    assert '"dataset": "toy GQA"' in capsys.readouterr().out
    for wrong in (["cifar"], ["gqa", "pope", "--root", str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "set" in capsys.readouterr().err
