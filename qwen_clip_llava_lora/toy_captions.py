"""What the toy caption sets hold: shapes of the toy world, described in English and Chinese.

`write_cc3m` writes LLaVA-CC3M-Pretrain-595K's layout: `chat.json`, `metadata.json`, `images_dl/`
(the pictures' folder of the course), and, which the published set has not, `held_out.json`:
pictures that are in no training row, with several reference captions a row. The keys of
`metadata.json` are named after its card's description. `write_descriptions` writes the layout of
the 1,957 descriptions: `train.json` and `eval.json` of role/content rows, `Train/`, `Val/`, longer
Chinese texts, some rows about two pictures. Used by `toy_sets.py`; writes into the given folder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.toy_world.build import SEED
from shared.toy_world.chinese import COLORS_ZH, DESCRIBE_ZH, NUMBERS_ZH, caption_zh
from shared.toy_world.pictures import scene_and_jpeg
from shared.toy_world.questions import captions
from shared.toy_world.sets import Pictures
from shared.toy_world.shapes import COLORS, Scene
from shared.toy_world.tasks import DESCRIBE

CC3M_ROWS = 2_000
HELD_OUT_ROWS = 300
CHINESE_SHARE = 0.25
HELD_OUT_CHINESE_SHARE = 1 / 3  # enough Chinese rows for an interval of their own
REFERENCES = 4
DESCRIPTIONS = {"train": ("Train", 0, 600), "eval": ("Val", 2000, 120)}  # folder, first, rows
TWO_PICTURES_SHARE = 0.1  # of the descriptions
DESCRIBE_TWO_ZH = "请描述两张图片。"
BLIP_SHARE = 0.9  # of metadata.json's rows with a second caption, as its card says


def write_cc3m(
    root: Path, seed: int = SEED, rows: int = CC3M_ROWS, held_out: int = HELD_OUT_ROWS
) -> dict[str, Any]:
    """Draws the set into an empty folder; returns its counts."""
    stored = Pictures(root)
    chat, metadata = [], []
    for number in range(rows):
        rng = random.Random(f"{seed}/cc3m_train/{number}/text")
        language = "zh" if rng.random() < CHINESE_SHARE else "en"
        scene, image = _cc3m_picture(stored, f"{seed}/cc3m_train/{number}", number)
        first, *others = references(scene, language, rng)
        name = Path(image).stem
        question = rng.choice(DESCRIBE_ZH if language == "zh" else DESCRIBE)
        # before or behind the question, as in the published file
        asked = f"<image>\n{question}" if rng.random() < 0.5 else f"{question}\n<image>"
        chat.append({"id": name, "image": image, "conversations": _turns(asked, first)})
        blip = {"blip_caption": others[0]} if others and rng.random() < BLIP_SHARE else {}
        metadata.append({"id": name, "image": image, "caption": first, **blip})
    held = []
    for number in range(held_out):
        rng = random.Random(f"{seed}/cc3m_held_out/{number}/text")
        language = "zh" if rng.random() < HELD_OUT_CHINESE_SHARE else "en"
        scene, image = _cc3m_picture(stored, f"{seed}/cc3m_held_out/{number}", rows + number)
        several = references(scene, language, rng)
        question = (DESCRIBE_ZH if language == "zh" else DESCRIBE)[0]
        held.append(
            {
                "id": Path(image).stem,
                "image": image,
                "conversations": _turns(f"<image>\n{question}", several[0]),
                "captions": several,
                "language": language,
            }
        )
    for name, content in (("chat", chat), ("metadata", metadata), ("held_out", held)):
        _write_json(root / f"{name}.json", content)
    return {"counts": {"chat": rows, "held_out": held_out, "pictures": len(stored)}}


def write_descriptions(
    root: Path, seed: int = SEED, parts: Mapping[str, tuple[str, int, int]] = DESCRIPTIONS
) -> dict[str, Any]:
    """Draws the description set into an empty folder; returns its counts."""
    stored = Pictures(root)
    counts: dict[str, int] = {}
    for part, (folder, first, n_rows) in parts.items():
        number, rows = first, []
        for i in range(n_rows):
            rng = random.Random(f"{seed}/descriptions/{part}/{i}/text")
            scenes, images = [], []
            for _ in range(2 if rng.random() < TWO_PICTURES_SHARE else 1):
                scene, jpeg = scene_and_jpeg(f"{seed}/descriptions/{part}/{number}")
                images.append(stored.add(f"{folder}/{number:04d}.jpg", jpeg))
                scenes.append(scene)
                number += 1
            shown: Any = images[0]
            tags = "<image>\n"
            if len(images) > 1:
                shown = {f"<image_{k:02d}>": image for k, image in enumerate(images)}
                tags = "".join(f"{tag}\n" for tag in shown)
            turns = [
                {
                    "role": "user",
                    "content": tags + (DESCRIBE_ZH[0] if len(images) == 1 else DESCRIBE_TWO_ZH),
                },
                {"role": "assistant", "content": description_zh(scenes, rng)},
            ]
            rows.append({"id": str(i), "image": shown, "conversations": turns})
        _write_json(root / f"{part}.json", rows)
        counts[part] = n_rows
    return {"counts": {**counts, "pictures": len(stored)}}


def description_zh(scenes: Sequence[Scene], rng: random.Random) -> str:
    """How many shapes, what and where each is, a colour that is not there; by picture."""
    texts = []
    for number, scene in enumerate(scenes):
        head = "图中" if len(scenes) == 1 else f"{('第一张', '第二张')[number]}图片里"
        absent = rng.choice([c for c in COLORS if c not in {i.color for i in scene.items}])
        texts.append(
            f"{head}有{NUMBERS_ZH[len(scene.items)]}图形。{caption_zh(scene, rng)}。"
            f"没有{COLORS_ZH[absent]}的图形。"
        )
    return "".join(texts)


def references(scene: Scene, language: str, rng: random.Random) -> list[str]:
    """Different captions of a scene that each name everything in it, one to four."""
    if language == "zh":
        drawn = [caption_zh(scene, rng) for _ in range(4 * REFERENCES)]
    else:
        drawn = captions(scene, rng)[:4]  # the fifth names one thing alone
        rng.shuffle(drawn)
    return list(dict.fromkeys(drawn))[:REFERENCES]


def _cc3m_picture(stored: Pictures, key: str, number: int) -> tuple[Scene, str]:
    scene, jpeg = scene_and_jpeg(key)
    name = f"GCC_train_{number:09d}.jpg"
    stored.add(f"images_dl/{name}", jpeg)
    return scene, name


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _write_json(path: Path, content: Sequence[Mapping[str, Any]]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
