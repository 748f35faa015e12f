"""The toy world: deterministic, balanced, official layout, splits apart, unseen shapes unseen."""

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.blind import blind_answers, blind_baseline
from shared.options import REPO_ROOT, UserError
from shared.toy_world import build, recipe
from shared.toy_world.build import ensure_vqav2, read_manifest, write_vqav2
from shared.toy_world.pictures import MAX_ITEMS, SIZE, draw, sample_scene, scene_and_jpeg
from shared.toy_world.questions import (
    DISSENT_COUNTS,
    NUMBER_WORDS,
    TEMPLATES,
    QuestionWriter,
    annotate,
    candidates,
    captions,
    position,
)
from shared.toy_world.samples import write_committed_samples
from shared.toy_world.shapes import (
    COLORS,
    HELD_BACK_SHAPES,
    KNOWN_SHAPES,
    SHAPES,
    Item,
    Scene,
    outline,
)

SMALL = {"train2014": 300, "val2014": 100, "test2015": 50}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole set, as users get it."""
    return ensure_vqav2(tmp_path_factory.mktemp("toy") / "vqav2")


@pytest.fixture(scope="module")
def annotations(toy: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        split: read(toy / f"v2_mscoco_{split}_annotations.json")["annotations"]
        for split in ("train2014", "val2014")
    }


def snapshot(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_same_seed_same_files_other_seed_other_pictures(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        write_vqav2(folder, seed=seed, question_counts=SMALL)
    a, b, c = (snapshot(folder) for folder in folders)
    assert a == b
    assert not set(a.values()) & {v for k, v in c.items() if k.endswith(".jpg")}
    hashes = [read_manifest(folder)["data_hash"] for folder in folders]
    assert hashes[0] == hashes[1] != hashes[2]


def test_counts_and_manifest(toy: Path) -> None:
    manifest = read_manifest(toy)
    assert manifest["synthetic"] is True
    assert manifest["recipe_hash"] == build.vqav2_recipe_hash()
    for split, count in (("train2014", 12_000), ("val2014", 3_000), ("test2015", 1_000)):
        asked = read(toy / f"v2_OpenEnded_mscoco_{split}_questions.json")["questions"]
        pictures = list((toy / split).glob("*.jpg"))
        assert len(asked) == len({q["question_id"] for q in asked}) == count
        assert {q["image_id"] for q in asked} == {int(p.stem[-12:]) for p in pictures}
        assert manifest["counts"][split] == {"pictures": len(pictures), "questions": count}
        assert 5.0 <= count / len(pictures) <= 5.8  # VQAv2: 5.4


def test_no_picture_is_shared_between_splits(toy: Path) -> None:
    contents = [hashlib.sha256(p.read_bytes()).hexdigest() for p in toy.rglob("*.jpg")]
    assert len(contents) == len(set(contents))
    ids = [{int(p.stem[-12:]) for p in (toy / s).glob("*.jpg")} for s in SMALL]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    assert not ids[1] & ids[2]


def test_a_repeated_picture_is_refused(tmp_path: Path) -> None:
    hashes: dict[str, str] = {}
    build.write_split(tmp_path, "train2014", "same", 20, 1, hashes)
    with pytest.raises(ValueError, match="same content"):
        build.write_split(tmp_path, "val2014", "same", 20, 1000, hashes)


def test_official_layout(toy: Path) -> None:
    for split in ("train2014", "val2014", "test2015"):
        questions = read(toy / f"v2_OpenEnded_mscoco_{split}_questions.json")
        assert set(questions) == {
            "info",
            "license",
            "data_subtype",
            "data_type",
            "task_type",
            "questions",
        }
        assert questions["data_subtype"] == split
        assert all(
            set(q) == {"image_id", "question", "question_id"} for q in questions["questions"]
        )
    assert not (toy / "v2_mscoco_test2015_annotations.json").exists()
    file = read(toy / "v2_mscoco_val2014_annotations.json")
    assert set(file) == {"info", "license", "data_subtype", "data_type", "annotations"}
    for annotation in file["annotations"]:
        assert set(annotation) == {
            "question_type",
            "multiple_choice_answer",
            "answers",
            "image_id",
            "answer_type",
            "question_id",
        }
    coco = read(toy / "captions_val2014.json")
    assert set(coco) == {"info", "images", "licenses", "annotations"}
    assert {i["file_name"] for i in coco["images"]} == {p.name for p in (toy / "val2014").iterdir()}
    per_picture = Counter(c["image_id"] for c in coco["annotations"])
    assert set(per_picture.values()) == {5}
    assert set(per_picture) == {i["id"] for i in coco["images"]}
    picture = Image.open(toy / "val2014" / coco["images"][0]["file_name"])
    assert picture.size == (SIZE, SIZE)


def test_ten_answers_with_a_true_majority_some_unanimous(
    toy: Path, annotations: dict[str, list[dict[str, Any]]]
) -> None:
    texts = {
        q["question_id"]: q["question"]
        for q in read(toy / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    }
    unanimous = 0
    for annotation in annotations["val2014"]:
        answers = Counter(a["answer"] for a in annotation["answers"])
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
        assert {a["answer_confidence"] for a in annotation["answers"]} <= {"yes", "maybe", "no"}
        assert answers[annotation["multiple_choice_answer"]] >= 10 - max(DISSENT_COUNTS)
        assert texts[annotation["question_id"]].lower().startswith(annotation["question_type"])
        unanimous += len(answers) == 1
    assert 0.3 < unanimous / len(annotations["val2014"]) < 0.8


def test_blind_baseline_is_at_most_40_percent(
    annotations: dict[str, list[dict[str, Any]]],
) -> None:
    assert 0.2 < blind_baseline(annotations["train2014"], annotations["val2014"]) <= 0.40


def test_blind_baseline_by_hand() -> None:
    def row(kind: str, truth: str, other: int = 0) -> dict[str, Any]:
        answers = [truth] * (10 - other) + ["x"] * other
        return {
            "question_type": kind,
            "multiple_choice_answer": truth,
            "answers": [{"answer": a} for a in answers],
        }

    train = [row("how many", "2"), row("how many", "2"), row("how many", "1"), row("is the", "no")]
    assert blind_answers(train) == {"how many": "2", "is the": "no", "": "2"}
    # right, wrong, unknown type answered with the commonest of all: 1 + 0 + 1 of 3
    val = [row("how many", "2"), row("is the", "yes"), row("where is", "2", other=4)]
    assert blind_baseline(train, val) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="empty"):
        blind_baseline(train, [])


def test_answers_are_balanced_within_each_template() -> None:
    """Knowing the wording must not tell the answer: no answer of a template is far ahead."""
    writer = QuestionWriter()
    seen: dict[str, Counter[str]] = {template: Counter() for template in TEMPLATES}
    for number in range(800):
        rng = random.Random(f"balance/{number}")
        scene = sample_scene(rng)
        for question in writer.ask(scene, 5, rng):
            seen[question.template][question.answer] += 1
    total = sum(sum(c.values()) for c in seen.values())
    for template, (_, answer_type, share) in TEMPLATES.items():
        answers = seen[template]
        assert sum(answers.values()) / total == pytest.approx(share, abs=0.02)
        largest = max(answers.values()) / sum(answers.values())
        options = {"yes/no": 2, "number": 3, "other": 4}[answer_type]
        assert largest < 1 / options + 0.06, (template, answers)


def test_questions_are_true_of_the_scene() -> None:
    scene = Scene(
        (
            Item("star", "red", 16, 16, 11),
            Item("cross", "red", 48, 16, 11),
            Item("star", "blue", 32, 50, 11),
        ),
        (248, 248, 248),
        False,
    )
    answers = {q.text: q.answer for t in TEMPLATES for q in candidates(scene, t, random.Random(0))}
    assert answers["How many shapes are there?"] == "3"
    assert answers["How many red shapes are there?"] == "2"
    assert answers["How many stars are there?"] == "2"
    assert answers["What shape is blue?"] == "star"
    assert answers["What color is the cross?"] == "red"
    assert answers["Where is the cross?"] == "top right"
    assert answers["Is there a red cross?"] == "yes"
    assert answers["Is the cross red?"] == "yes"
    assert "What color is the star?" not in answers  # there are two
    assert "What shape is red?" not in answers
    assert position(scene.items[2]) is None  # in the middle between left and right
    assert not any(text.startswith("What is in the") for text in answers)
    for caption in captions(scene, random.Random(1)):
        assert "star" in caption or "three shapes" in caption or "cross" in caption
    assert len(NUMBER_WORDS) == MAX_ITEMS + 1


def test_held_back_shapes_are_fixed_and_never_drawn(
    toy: Path, annotations: dict[str, list[dict[str, Any]]]
) -> None:
    # The open-set experiment rests on this choice: changing it makes every checkpoint worthless.
    assert HELD_BACK_SHAPES == ("circle", "heart", "ring", "stripes")
    assert set(HELD_BACK_SHAPES) | set(KNOWN_SHAPES) == set(SHAPES)
    for number in range(2000):
        scene = sample_scene(random.Random(number))
        assert not {item.shape for item in scene.items} & set(HELD_BACK_SHAPES)
    words = " ".join(
        [c["caption"] for c in read(toy / "captions_train2014.json")["annotations"]]
        + [
            q["question"]
            for s in SMALL
            for q in read(toy / f"v2_OpenEnded_mscoco_{s}_questions.json")["questions"]
        ]
        + [a["answer"] for rows in annotations.values() for r in rows for a in r["answers"]]
    ).lower()
    for shape in HELD_BACK_SHAPES:
        assert shape not in words


def test_every_shape_can_be_drawn_and_no_two_look_alike() -> None:
    drawn = {}
    for shape in SHAPES:
        scene = Scene((Item(shape, "red", 32, 32, 14),), (248, 248, 248), False)
        picture = draw(scene, random.Random(0))
        drawn[shape] = picture.getchannel("G").point(lambda value: 255 if value < 150 else 0)
        assert outline(shape)[0]
    for a in SHAPES:
        for b in SHAPES[SHAPES.index(a) + 1 :]:
            pairs = zip(drawn[a].tobytes(), drawn[b].tobytes(), strict=True)
            assert sum(x != y for x, y in pairs) >= 60, (a, b)  # pixels of about 400


def test_scene_items_stay_inside_and_apart() -> None:
    counts = Counter()
    for number in range(300):
        scene, jpeg = scene_and_jpeg(f"test/{number}")
        counts[len(scene.items)] += 1
        assert jpeg == scene_and_jpeg(f"test/{number}")[1]
        for i, item in enumerate(scene.items):
            assert item.color in COLORS
            assert item.radius <= min(item.x, item.y, SIZE - item.x, SIZE - item.y)
            for other in scene.items[i + 1 :]:
                gap = ((item.x - other.x) ** 2 + (item.y - other.y) ** 2) ** 0.5
                assert gap > item.radius + other.radius
    assert set(counts) == {1, 2, 3}


def test_annotators_dissent_with_words_for_every_answer() -> None:
    for template in TEMPLATES:
        for number in range(60):
            rng = random.Random(number)
            for question in candidates(sample_scene(rng), template, rng):
                assert len(annotate(question, rng)) == 10


@pytest.fixture
def small_set(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Makes ensure_vqav2 draw a small set, and counts the draws."""
    drawn: list[Path] = []

    def write(folder: Path) -> None:
        drawn.append(folder)
        write_vqav2(folder, question_counts={"train2014": 20, "val2014": 10})

    monkeypatch.setattr(build, "write_vqav2", write)
    return drawn


def test_drawn_once_and_again_when_the_recipe_changed(
    tmp_path: Path, small_set: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "vqav2"
    assert ensure_vqav2(root) == root
    ensure_vqav2(root)
    assert len(small_set) == 1
    (root / "left_over.txt").write_text("old")
    monkeypatch.setattr(build, "vqav2_recipe_hash", lambda: "another recipe")
    ensure_vqav2(root)
    assert len(small_set) == 2
    assert not (root / "left_over.txt").exists()
    assert read_manifest(root)["recipe_hash"] == "another recipe"
    assert [p.name for p in tmp_path.iterdir()] == ["vqav2"]  # no temporary folder is left


def test_a_kill_while_drawing_leaves_no_half_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        (folder / "train2014").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "write_vqav2", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure_vqav2(tmp_path / "vqav2")
    assert list(tmp_path.iterdir()) == []


def test_when_another_process_was_faster_its_set_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "vqav2"

    def write(folder: Path) -> None:
        write_vqav2(folder, question_counts={"train2014": 20})
        if not root.exists():
            root.mkdir()
            write_vqav2(root, question_counts={"train2014": 20})

    monkeypatch.setattr(build, "write_vqav2", write)
    ensure_vqav2(root)
    assert read_manifest(root)["recipe_hash"] == build.vqav2_recipe_hash()
    assert [p.name for p in tmp_path.iterdir()] == ["vqav2"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, small_set: list[Path]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not a toy set"):
        ensure_vqav2(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert not small_set


def test_recipe_hash_sees_code_and_not_comments(tmp_path: Path) -> None:
    def hashed(source: str) -> str:
        path = tmp_path / "recipe.py"
        path.write_text(source)
        return recipe.recipe_hash([path])

    first = hashed('"""What."""\nSTEPS = 10\n')
    assert hashed('"""Other\nwords."""\n# why\n\nSTEPS = 10\n') == first
    assert hashed('"""What."""\nSTEPS = 11\n') != first


def test_committed_samples_are_current_and_in_no_split(tmp_path: Path, toy: Path) -> None:
    """Mended by `python -m shared.toy_world --committed_samples blip2_qlora`."""
    committed = REPO_ROOT / "blip2_qlora"
    write_committed_samples(tmp_path)
    for name in ("baseline_images/questions.jsonl", "data/tiny.jsonl"):
        assert (committed / name).read_text("utf-8") == (tmp_path / name).read_text("utf-8")
    for path in (tmp_path / "data" / "tiny").glob("*.json"):
        assert read(committed / "data" / "tiny" / path.name) == read(path), path.name
    pictures = [*committed.glob("baseline_images/*.jpg"), *committed.glob("data/tiny/*/*.jpg")]
    assert len(pictures) == 18
    drawn = {hashlib.sha256(p.read_bytes()).hexdigest() for p in toy.rglob("*.jpg")}
    assert not drawn & {hashlib.sha256(p.read_bytes()).hexdigest() for p in pictures}
    rows = [json.loads(r) for r in (committed / "data/tiny.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        assert (committed / "data" / row["image"]).is_file()
        assert len(row["answers"]) == 10
        assert row["answer"] in row["answers"]


def test_command_prints_the_blind_baseline(toy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shared.toy_world", "--root", str(toy)],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Blind baseline" in done.stdout
    assert '"synthetic": true' in done.stdout
