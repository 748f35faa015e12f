"""Writes the toy world's VQAv2 set: pictures, questions, annotations and captions, official layout.

Pictures are named by seed, split and number alone, so that no split and no training recipe shares
one; the content is compared as well. A set appears whole or not at all: it is written into a
temporary folder, its manifest last, and then renamed.

    python -m shared.toy_world          # draws data/toy/vqav2, a few seconds
"""

import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.options import DATA_ROOT, UserError
from shared.toy_world import pictures, questions, shapes
from shared.toy_world.pictures import SIZE, scene_and_jpeg
from shared.toy_world.questions import QuestionWriter, annotate, captions
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.shapes import HELD_BACK_SHAPES

SEED = 0
QUESTIONS = {"train2014": 12_000, "val2014": 3_000, "test2015": 1_000}
QUESTIONS_PER_PICTURE = (5, 5, 5, 6, 6)  # VQAv2 has 5.4 a picture
FIRST_IMAGE_ID = {"train2014": 1, "val2014": 200_001, "test2015": 400_001}
INFO = {
    "description": "Toy world: drawn coloured shapes in the VQA v2.0 layout (synthetic)",
    "url": "",
    "version": "1.0",
    "year": 2026,
    "contributor": "vlm-experiments",
    "date_created": "2026-01-01 00:00:00",
}
LICENSE = {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License 2.0"}

SOURCES = (Path(shapes.__file__), Path(pictures.__file__), Path(questions.__file__), Path(__file__))
STALE_AFTER = 3600.0  # seconds after which another process's temporary folder counts as abandoned


def vqav2_recipe_hash() -> str:
    """The hash that `manifest.json` of a current set holds."""
    return recipe_hash(SOURCES)


def ensure_vqav2(root: Path = DATA_ROOT / "toy" / "vqav2", redraw: bool = False) -> Path:
    """The toy VQAv2 folder, drawn when it is missing or its recipe has changed.

    Two processes may call this at once: each draws its own copy, one is kept.
    Raises UserError when the folder can't be written, or holds something that is not a toy set.
    """
    if not redraw and read_manifest(root).get("recipe_hash") == vqav2_recipe_hash():
        return root
    if root.exists() and any(root.iterdir()) and not read_manifest(root).get("synthetic"):
        raise UserError(
            f"{root} is not a toy set (no manifest.json with synthetic: true), so it is left as "
            "it is. Move it away, or give another folder."
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        folder = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise UserError(
            f"{root.parent}: can't be written ({error}). Free it or use --root."
        ) from error
    try:
        write_vqav2(folder)
        _put_in_place(folder, root)
    except OSError as error:
        raise UserError(f"{root}: drawing the toy set failed ({error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return root


def read_manifest(root: Path) -> dict[str, Any]:
    """manifest.json of a toy folder; empty when there is none that can be read."""
    try:
        manifest = json.loads((root / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def write_vqav2(
    root: Path, seed: int = SEED, question_counts: Mapping[str, int] = QUESTIONS
) -> dict[str, Any]:
    """Draws a whole set into an empty folder and returns its manifest, which is written last."""
    start = time.perf_counter()
    hashes: dict[str, str] = {}
    counts: dict[str, dict[str, int]] = {}
    for split, count in question_counts.items():
        counts[split] = write_split(
            root, split, f"{seed}/{split}", count, FIRST_IMAGE_ID[split], hashes
        )
    for path in sorted(root.glob("*.json")):
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    listing = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    manifest = {
        "synthetic": True,
        "dataset": "toy VQAv2",
        "seed": seed,
        "recipe_hash": vqav2_recipe_hash(),
        "data_hash": hashlib.sha256(listing.encode()).hexdigest()[:16],
        "counts": counts,
        "held_back_shapes": list(HELD_BACK_SHAPES),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(root / "manifest.json", manifest)
    return manifest


def write_split(
    root: Path,
    split: str,
    key: str,
    count: int,
    first_image_id: int,
    hashes: dict[str, str],
    questions_per_picture: Sequence[int] = QUESTIONS_PER_PICTURE,
) -> dict[str, int]:
    """Pictures, questions and (but for a test split) annotations and captions of one split.

    `key` names the range of pictures; `hashes` maps each file written so far, of all splits, to
    the SHA-256 of its content, and gets this split's. Returns the numbers of pictures and
    questions. Raises ValueError when a picture has been drawn before.
    """
    from tqdm import tqdm

    (root / split).mkdir(parents=True)
    writer = QuestionWriter()
    asked: list[dict[str, Any]] = []
    answered: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    captioned: list[dict[str, Any]] = []
    seen = set(hashes.values())
    progress = tqdm(total=count, desc=f"toy {split}", unit="question", disable=None)
    while len(asked) < count:
        number = len(images)
        scene, jpeg = scene_and_jpeg(f"{key}/{number}")
        rng = random.Random(f"{key}/{number}/questions")
        image_id = first_image_id + number
        name = f"COCO_{split}_{image_id:012d}.jpg"
        digest = hashlib.sha256(jpeg).hexdigest()
        if digest in seen:
            raise ValueError(f"{split}/{name} has the same content as another picture")
        seen.add(digest)
        hashes[f"{split}/{name}"] = digest
        (root / split / name).write_bytes(jpeg)
        images.append(
            {"license": 1, "file_name": name, "height": SIZE, "width": SIZE, "id": image_id}
        )
        per_picture = min(rng.choice(questions_per_picture), count - len(asked))
        for index, question in enumerate(writer.ask(scene, per_picture, rng)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + index}
            asked.append({**ids, "question": question.text})
            answered.append(
                {
                    "question_type": question.question_type,
                    "multiple_choice_answer": question.answer,
                    "answers": annotate(question, rng),
                    "answer_type": question.answer_type,
                    **ids,
                }
            )
        for index, caption in enumerate(captions(scene, rng)):
            captioned.append(
                {"image_id": image_id, "id": image_id * 10 + index, "caption": caption}
            )
        progress.update(per_picture)
    progress.close()
    head = {"info": INFO, "license": LICENSE, "data_subtype": split, "data_type": "mscoco"}
    write_json(
        root / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {**head, "task_type": "Open-Ended", "questions": asked},
    )
    if not split.startswith("test"):
        write_json(root / f"v2_mscoco_{split}_annotations.json", {**head, "annotations": answered})
        write_json(
            root / f"captions_{split}.json",
            {
                "info": INFO,
                "images": images,
                "licenses": [{**LICENSE, "id": 1}],
                "annotations": captioned,
            },
        )
    return {"pictures": len(images), "questions": len(asked)}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def _put_in_place(folder: Path, root: Path) -> None:
    """Renames a finished folder to `root`, unless another process has just put the same there."""
    os.chmod(folder, 0o755)  # mkdtemp makes it readable by its owner only
    old = folder.with_name(folder.name + "-old")
    for _ in range(10):
        try:
            if root.exists():
                os.rename(root, old)
                shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, root)
            return
        except OSError:
            if read_manifest(root).get("recipe_hash") == vqav2_recipe_hash():
                return
            time.sleep(0.1)
    os.rename(folder, root)


def _remove_stale(root: Path) -> None:
    """Temporary folders of processes that were killed long ago."""
    for folder in root.parent.glob(f".{root.name}-*"):
        if time.time() - folder.stat().st_mtime > STALE_AFTER:
            shutil.rmtree(folder, ignore_errors=True)
