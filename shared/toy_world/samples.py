"""The small committed samples of the BLIP-2 experiment, from pictures that are in no split.

`baseline_images/` (ten pictures and questions.jsonl) and `data/tiny/` (eight pictures in the
official VQAv2 layout, and `data/tiny.jsonl` with one row per question) let a visitor try the
scripts without any dataset.

    python -m shared.toy_world --committed_samples blip2_qlora
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from shared.toy_world.build import SEED, vqav2_recipe_hash, write_json, write_split
from shared.toy_world.pictures import MAX_ITEMS, scene_and_jpeg
from shared.toy_world.questions import QuestionWriter
from shared.toy_world.shapes import HELD_BACK_SHAPES

BASELINE_PICTURES = 10
BASELINE_QUESTIONS = 2  # a picture
TINY_QUESTIONS = 24
TINY_QUESTIONS_PER_PICTURE = 3
TINY_FIRST_IMAGE_ID = 600_001


def write_committed_samples(folder: Path) -> None:
    """(Re)writes `baseline_images/`, `data/tiny/` and `data/tiny.jsonl` under `folder`."""
    write_baseline_images(folder / "baseline_images")
    write_tiny(folder / "data")


def write_baseline_images(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = QuestionWriter()
    rows: list[dict[str, Any]] = []
    for number in range(BASELINE_PICTURES):
        key = f"{SEED}/baseline/{number}"
        scene, jpeg = scene_and_jpeg(key, count=1 + number % MAX_ITEMS)
        name = f"shapes_{number + 1:02d}.jpg"
        (folder / name).write_bytes(jpeg)
        for question in writer.ask(scene, BASELINE_QUESTIONS, random.Random(key + "/questions")):
            rows.append({"image": name, "question": question.text})
    _write_jsonl(folder / "questions.jsonl", rows)


def write_tiny(folder: Path) -> None:
    root = folder / "tiny"
    shutil.rmtree(root, ignore_errors=True)
    hashes: dict[str, str] = {}
    counts = write_split(
        root,
        "val2014",
        f"{SEED}/tiny",
        TINY_QUESTIONS,
        TINY_FIRST_IMAGE_ID,
        hashes,
        (TINY_QUESTIONS_PER_PICTURE,),
    )
    manifest = {
        "synthetic": True,
        "dataset": "toy VQAv2, committed sample",
        "seed": SEED,
        "recipe_hash": vqav2_recipe_hash(),
        "counts": {"val2014": counts},
        "held_back_shapes": list(HELD_BACK_SHAPES),
    }
    write_json(root / "manifest.json", manifest)
    asked = json.loads((root / "v2_OpenEnded_mscoco_val2014_questions.json").read_text("utf-8"))
    answered = json.loads((root / "v2_mscoco_val2014_annotations.json").read_text("utf-8"))
    rows = [
        {
            "image": f"tiny/val2014/COCO_val2014_{question['image_id']:012d}.jpg",
            "question": question["question"],
            "question_id": question["question_id"],
            "image_id": question["image_id"],
            "answers": [a["answer"] for a in annotation["answers"]],
            "answer": annotation["multiple_choice_answer"],
        }
        for question, annotation in zip(asked["questions"], answered["annotations"], strict=True)
    ]
    _write_jsonl(folder / "tiny.jsonl", rows)
    # a file of rows has no root of its own: the manifest beside it speaks for it
    write_json(folder / "manifest.json", manifest)


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
