"""Writes toy POPE, ScienceQA, GQA and TextVQA in the files and fields of the official sets.

Every set has pictures from a key range of its own, so that none was in a training. No picture shows
and no text names a held-back shape. Layouts:

    pope/       coco_pope_{random,popular,adversarial}.json (JSON lines), val2014/COCO_val2014_*.jpg
    scienceqa/  problems.json, pid_splits.json, images/{split}/{id}/image.png
    gqa/        testdev_balanced_questions.json, images/n*.jpg
    textvqa/    TextVQA_0.5.1_val.json, TextVQA_Rosetta_OCR_v0.2_val.json, train_images/*.jpg

    python -m shared.toy_world pope scienceqa gqa textvqa      # below data/toy, a second or two

Sources: github.com/AoiDragon/POPE, scienceqa.github.io, cs.stanford.edu/people/dorarad/gqa,
textvqa.org (the Rosetta tokens are Pythia's).
"""

import hashlib
import io
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from shared.options import DATA_ROOT
from shared.toy_world import pictures, questions, sets, shapes, tasks
from shared.toy_world.build import SEED, write_json
from shared.toy_world.pictures import SIZE, scene_and_jpeg
from shared.toy_world.questions import article
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.sets import Pictures, ensure_set, write_jsonl
from shared.toy_world.shapes import KNOWN_SHAPES, Scene

SOURCES = (
    *(Path(str(m.__file__)) for m in (shapes, pictures, questions, tasks, sets)),
    Path(__file__),
)

POPE_PICTURES = 100
POPE_OBJECTS = 3  # a picture, asked about with as many absent ones
SCIENCEQA_PROBLEMS = {"train": 200, "val": 100, "test": 300}
SCIENCEQA_PICTURE_SHARE = 0.5  # of problems; 10,332 of 21,208 in the real set
GQA_PICTURES = 120
TEXTVQA_QUESTIONS = 200
ANSWERS = 10  # a TextVQA question


def benchmarks_recipe_hash() -> str:
    """The hash that `manifest.json` of a current set holds."""
    return recipe_hash(SOURCES)


def ensure_pope(root: Path = DATA_ROOT / "toy" / "pope", redraw: bool = False) -> Path:
    """Toy POPE, drawn when missing or stale. All four raise UserError where `ensure_set` does."""
    return ensure_set(root, "toy POPE", benchmarks_recipe_hash(), write_pope, redraw)


def ensure_scienceqa(root: Path = DATA_ROOT / "toy" / "scienceqa", redraw: bool = False) -> Path:
    """Toy ScienceQA, drawn when missing or stale."""
    return ensure_set(root, "toy ScienceQA", benchmarks_recipe_hash(), write_scienceqa, redraw)


def ensure_gqa(root: Path = DATA_ROOT / "toy" / "gqa", redraw: bool = False) -> Path:
    """Toy GQA, drawn when missing or stale."""
    return ensure_set(root, "toy GQA", benchmarks_recipe_hash(), write_gqa, redraw)


def ensure_textvqa(root: Path = DATA_ROOT / "toy" / "textvqa", redraw: bool = False) -> Path:
    """Toy TextVQA, drawn when missing or stale."""
    return ensure_set(root, "toy TextVQA", benchmarks_recipe_hash(), write_textvqa, redraw)


def write_pope(root: Path, seed: int = SEED) -> dict[str, Any]:
    """Three present and three absent shapes a picture; the splits differ in the absent ones.

    As in POPE (Li et al. 2023, arXiv:2305.10355, section 4): random absent ones, those that are
    most frequent in the whole set, those that most often appear together with the present ones.
    """
    stored = Pictures(root)
    names: list[str] = []
    present: list[list[str]] = []
    for number in range(POPE_PICTURES):
        scene, jpeg = _pope_scene(f"{seed}/pope/{number}")
        name = f"COCO_val2014_{700_001 + number:012d}.jpg"
        stored.add(f"val2014/{name}", jpeg)
        names.append(name)
        present.append([item.shape for item in scene.items])
    frequency = Counter(shape for found in present for shape in found)
    together = Counter(
        pair for found in present for a, b in combinations(found, 2) for pair in ((a, b), (b, a))
    )
    for split in ("random", "popular", "adversarial"):
        rng = random.Random(f"{seed}/pope/{split}")
        rows: list[dict[str, Any]] = []
        for name, found in zip(names, present, strict=True):
            absent = [shape for shape in KNOWN_SHAPES if shape not in found]
            rng.shuffle(absent)  # decides among equals
            if split == "popular":
                absent.sort(key=lambda shape: -frequency[shape])
            elif split == "adversarial":
                beside = {a: sum(together[a, other] for other in found) for a in absent}
                absent.sort(key=beside.__getitem__, reverse=True)
            for yes, no in zip(found, absent, strict=False):
                for shape, label in ((yes, "yes"), (no, "no")):
                    rows.append(
                        {
                            "question_id": len(rows) + 1,
                            "image": name,
                            "text": f"Is there {article(shape)} in the image?",
                            "label": label,
                        }
                    )
        write_jsonl(root / f"coco_pope_{split}.json", rows)
    return {"counts": {"pictures": len(stored), "questions_a_split": len(rows)}}


def _pope_scene(key: str) -> tuple[Scene, bytes]:
    """Three different shapes; some are more frequent, and two groups keep together."""
    half = len(KNOWN_SHAPES) // 2
    groups = [KNOWN_SHAPES[:half], KNOWN_SHAPES[half:]]
    random.Random(key).shuffle(groups)
    # of each group the earlier ones are the more frequent
    weighted = [
        shape
        for group, times in zip(groups, (4, 1), strict=True)
        for place, shape in enumerate(group)
        for _ in range(times * (half - place))
    ]
    attempt = 0
    while True:
        scene, jpeg = scene_and_jpeg(f"{key}/{attempt}", shapes=weighted, count=POPE_OBJECTS)
        if len({item.shape for item in scene.items}) == POPE_OBJECTS:
            return scene, jpeg
        attempt += 1


def write_scienceqa(root: Path, seed: int = SEED) -> dict[str, Any]:
    """Problems about a picture (natural science), about words, and about a hint."""
    stored = Pictures(root)
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    for split, count in SCIENCEQA_PROBLEMS.items():
        splits[split] = []
        for _ in range(count):
            number = str(len(problems) + 1)
            splits[split].append(number)
            problems[number] = _problem(stored, f"{seed}/scienceqa/{number}", number, split)
    splits["trainval"] = splits["train"] + splits["val"]
    for split in ("train", "val", "test"):
        splits[f"mini{split}"] = splits[split][:50]
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)
    return {"counts": {**SCIENCEQA_PROBLEMS, "pictures": len(stored)}}


def _problem(stored: Pictures, key: str, number: str, split: str) -> dict[str, Any]:
    rng = random.Random(key + "/text")
    scene, jpeg = scene_and_jpeg(key)
    with_picture = rng.random() < SCIENCEQA_PICTURE_SHARE
    if with_picture:
        choice = tasks.picture_choice(scene, rng)
        stored.add(f"images/{split}/{number}/image.png", _png(jpeg))
        subject, topic, skill = "natural science", "shapes", "Look at a picture"
    else:
        choice = tasks.text_choice(scene, rng)
        subject, topic, skill = "language science", "words", "Know words"
        if choice.hint:
            subject, topic, skill = "social science", "reading", "Use a hint"
    right = choice.choices[choice.answer]
    return {
        "question": choice.question,
        "choices": list(choice.choices),
        "answer": choice.answer,
        "hint": choice.hint,
        "image": "image.png" if with_picture else None,
        "task": "closed choice",
        "grade": f"grade{rng.randint(1, 12)}",
        "subject": subject,
        "topic": topic,
        "category": topic.capitalize(),
        "skill": skill,
        "lecture": "",
        "solution": f"The answer is {right}.",
        "split": split,
    }


def _png(jpeg: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(buffer, "PNG")
    return buffer.getvalue()


def write_gqa(root: Path, seed: int = SEED) -> dict[str, Any]:
    """All of GQA's question forms that a scene allows, a picture after another."""
    stored = Pictures(root)
    asked: dict[str, dict[str, Any]] = {}
    for number in range(GQA_PICTURES):
        key = f"{seed}/gqa/{number}"
        scene, jpeg = scene_and_jpeg(key)
        image_id = f"n{700_001 + number}"
        stored.add(f"images/{image_id}.jpg", jpeg)
        for question in tasks.gqa_questions(scene, random.Random(key + "/text")):
            asked[f"20{len(asked):07d}"] = {
                "semantic": [],
                "entailed": [],
                "equivalent": [],
                "question": question.text,
                "imageId": image_id,
                "isBalanced": True,
                "groups": {"global": None, "local": None},
                "answer": question.answer,
                "semanticStr": "",
                "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                "types": {
                    "detailed": question.detailed,
                    "semantic": question.semantic,
                    "structural": question.structural,
                },
                "fullAnswer": question.full_answer,
            }
    write_json(root / "testdev_balanced_questions.json", asked)
    return {"counts": {"pictures": len(stored), "questions": len(asked)}}


def write_textvqa(root: Path, seed: int = SEED) -> dict[str, Any]:
    """One question a picture with a word on it; the OCR file holds the word and noise."""
    stored = Pictures(root)
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number in range(TEXTVQA_QUESTIONS):
        key = f"{seed}/textvqa/{number}"
        rng = random.Random(key + "/text")
        _, word, jpeg = tasks.written_picture(key)
        image_id = hashlib.sha256(key.encode()).hexdigest()[:16]
        stored.add(f"train_images/{image_id}.jpg", jpeg)
        size = {"image_width": SIZE, "image_height": SIZE}
        question = rng.choice(tasks.WORD_QUESTIONS)
        rows.append(
            {
                "question": question,
                "image_id": image_id,
                "image_classes": ["Shape"],
                "flickr_original_url": "",
                "flickr_300k_url": "",
                **size,
                "answers": _answers(word, rng),
                "question_tokens": question.lower().rstrip("?").split(),
                "question_id": 34_602 + number,
                "set_name": "val",
            }
        )
        tokens = tasks.ocr_tokens(word, rng)
        found.append(
            {
                "image_id": image_id,
                "ocr_tokens": tokens,
                "ocr_info": [_ocr_info(token, rng) for token in tokens],
                **size,
            }
        )
    head = {"dataset_type": "val", "dataset_name": "textvqa"}
    write_json(root / "TextVQA_0.5.1_val.json", {**head, "dataset_version": "0.5.1", "data": rows})
    write_json(
        root / "TextVQA_Rosetta_OCR_v0.2_val.json",
        {**head, "dataset_version": "0.2", "data": found},
    )
    return {"counts": {"pictures": len(stored), "questions": len(rows)}}


def _answers(word: str, rng: random.Random) -> list[str]:
    """Ten answers; up to three annotators write something else."""
    dissent = rng.choices((0, 1, 2, 3), (60, 20, 12, 8))[0]
    others = [f"the word {word}", word[:-1], "answering does not require reading text in the image"]
    answers: Sequence[str] = [word] * (ANSWERS - dissent) + rng.sample(others, dissent)
    return rng.sample(answers, ANSWERS)


def _ocr_info(word: str, rng: random.Random) -> dict[str, Any]:
    """Rosetta's record of one token; the box is relative to the picture's size."""
    width, height = (length / SIZE for length in tasks.word_box(word))
    return {
        "word": word,
        "bounding_box": {
            "width": round(width, 4),
            "height": round(height, 4),
            "rotation": 0,
            "roll": 0,
            "pitch": 0,
            "yaw": 0,
            "top_left_x": round(rng.uniform(0, max(0.0, 1 - width)), 4),
            "top_left_y": round(rng.uniform(0.7, max(0.7, 1 - height)), 4),
        },
    }
