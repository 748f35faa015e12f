"""Toy faces with expressions, in the layout of AffectNet's manually annotated part.

A face is a head with eyes, brows, a nose and a mouth whose drawing tells the expression; position,
size, skin and hair vary. As in cartoons most feelings also colour the head (TINTS): the toy CLIP,
which has seen nothing but coloured shapes, tells these apart, but no smirk from a straight mouth.
`Manually_Annotated_file_lists/training.csv` has a header and classes as uneven as the real ones
(Mollahosseini et al. 2017, arXiv:1708.03985, table 3), with rows of the expressions 8 to 10 and
rows with a width below 0; `validation.csv` has no header, as in some copies, and as many faces of
each class. Used by `toy_sets.py`; writes into the folder it is given.
"""

from __future__ import annotations

import csv
import hashlib
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from shared.toy_world.build import SEED
from shared.toy_world.pictures import jpeg_bytes, scene_and_jpeg
from shared.toy_world.sets import Pictures
from shared.toy_world.shapes import COLORS

COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height",
    "facial_landmarks", "expression", "valence", "arousal",
)  # fmt: skip
# Expression number -> rows: Happy and Neutral many, Disgust and Contempt few; 8 None, 9 Uncertain,
# 10 Non-Face. The real counts are about 600 times these, the small classes less.
TRAINING = {0: 120, 1: 200, 2: 60, 3: 48, 4: 32, 5: 24, 6: 56, 7: 24, 8: 24, 9: 12, 10: 36}
VALIDATION = {**dict.fromkeys(range(8), 20), 8: 8, 9: 4}
WITHOUT_FACE = 6  # rows of the classes 0 to 7 whose detector found no face: width below 0
SIZE = 64
SCALE = 3
SKINS = ((245, 214, 186), (226, 180, 142), (186, 132, 96), (128, 86, 62))
HAIRS = ((40, 30, 26), (96, 62, 34), (200, 164, 92), (120, 118, 116))
GROUNDS = ((225, 232, 240), (238, 236, 226), (220, 230, 220))
INK = (52, 34, 30)
# Expression -> valence and arousal of its circle (Russell), for the two columns that hold them.
AFFECT = {
    0: (0.0, 0.0), 1: (0.7, 0.2), 2: (-0.7, -0.3), 3: (0.2, 0.8),
    4: (-0.3, 0.8), 5: (-0.7, 0.4), 6: (-0.5, 0.7), 7: (-0.6, 0.3),
}  # fmt: skip


def write_affectnet(
    root: Path,
    seed: int = SEED,
    training: dict[int, int] = TRAINING,
    validation: dict[int, int] = VALIDATION,
) -> dict[str, Any]:
    """Draws the set into an empty folder; returns its counts."""
    stored = Pictures(root)
    lists = root / "Manually_Annotated_file_lists"
    lists.mkdir()
    for part, counts in (("training", training), ("validation", validation)):
        rng = random.Random(f"{seed}/affectnet/{part}")
        expressions = [number for number, count in counts.items() for _ in range(count)]
        rng.shuffle(expressions)
        lost = set(rng.sample([i for i, e in enumerate(expressions) if e < 8], WITHOUT_FACE))
        with (lists / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if part == "training":
                writer.writerow(COLUMNS)
            for i, expression in enumerate(expressions):
                key = f"{seed}/affectnet/{part}/{i}"
                writer.writerow(_row(stored, key, expression, i in lost))
    return {"counts": {"training": sum(training.values()), "validation": sum(validation.values())}}


def _row(stored: Pictures, key: str, expression: int, lost: bool) -> list[object]:
    digest = hashlib.sha256(key.encode()).hexdigest()
    name = f"{int(digest[:4], 16) % 20}/{digest[:40]}.jpg"
    if expression == 10:
        jpeg, box = scene_and_jpeg(key)[1], (0, 0, -1, -1)
    else:  # None and Uncertain: a face, but not one of the eight; any will do
        rng = random.Random(key)
        jpeg, box = face(rng, expression if expression < 8 else rng.randrange(8))
    stored.add(f"Manually_Annotated/Manually_Annotated_Images/{name}", jpeg)
    if lost:
        box = (0, 0, -1, -1)
    x, y, width, height = box
    landmarks = ";".join(f"{v:.1f}" for v in (x, y, x + width, y, x + width / 2, y + height))
    valence, arousal = AFFECT.get(expression, (-2, -2))
    return [name, x, y, width, height, landmarks, expression, valence, arousal]


def face(rng: random.Random, expression: int) -> tuple[bytes, tuple[int, int, int, int]]:
    """(JPEG file, x, y, width and height of the face in pixels) of an expression 0 to 7."""
    picture = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), rng.choice(GROUNDS))
    pen = ImageDraw.Draw(picture)
    radius = rng.uniform(22, 27)
    cx, cy = (rng.uniform(radius + 2, SIZE - radius - 2) for _ in range(2))

    def place(x: float, y: float) -> tuple[float, float]:
        return (cx + x * radius) * SCALE, (cy + y * radius) * SCALE

    def oval(x: float, y: float, width: float, height: float, **how: Any) -> None:
        pen.ellipse([*place(x - width, y - height), *place(x + width, y + height)], **how)

    def line(points: list[tuple[float, float]], width: float = 0.09) -> None:
        thick = max(2, round(width * radius * SCALE))
        pen.line([place(*point) for point in points], fill=INK, width=thick, joint="curve")

    hair, skin = rng.choice(HAIRS), TINTS.get(expression, rng.choice(SKINS))
    oval(0, -0.12, 0.92, 0.95, fill=hair)
    oval(0, 0.05, 0.8, 0.95, fill=skin)
    wide = expression in (3, 4)
    for side in (-1, 1):
        oval(side * 0.33, -0.15, 0.15, 0.2 if wide else 0.11, fill=(255, 255, 255))
        oval(side * 0.33, -0.15, 0.07, 0.07, fill=INK)
        line(
            [
                (side * 0.52, -0.42 + BROWS[expression][0]),
                (side * 0.16, -0.42 + BROWS[expression][1]),
            ]
        )
    line([(0, 0.0), (0.06, 0.2), (-0.05, 0.2)], 0.06)
    if expression == 5:  # a wrinkled nose
        for y in (0.02, 0.1):
            line([(-0.2, y + 0.05), (0, y), (0.2, y + 0.05)], 0.06)
    if expression == 3:
        oval(0, 0.58, 0.15, 0.22, fill=INK)
    elif expression == 4:
        oval(0, 0.56, 0.34, 0.12, fill=INK)
        oval(0, 0.54, 0.26, 0.05, fill=(255, 255, 255))
    else:
        line([(x / 10, MOUTHS[expression](x / 4)) for x in range(-4, 5)])
    box = (
        round(cx - 0.8 * radius),
        round(cy - 0.9 * radius),
        round(1.6 * radius),
        round(1.9 * radius),
    )
    return jpeg_bytes(picture.resize((SIZE, SIZE), Image.Resampling.BOX)), box


# Expression -> colour of the head; Neutral and Contempt have that of the skin.
TINTS = {
    number: COLORS[name]
    for number, name in {
        1: "yellow", 2: "blue", 3: "cyan", 4: "purple", 5: "green", 6: "red"
    }.items()
}  # fmt: skip
# Expression -> how much lower the brows' outer and inner ends are than at rest.
BROWS = {
    0: (0.0, 0.0), 1: (0.0, -0.02), 2: (0.08, -0.14), 3: (-0.16, -0.2),
    4: (-0.02, -0.24), 5: (0.04, 0.1), 6: (-0.14, 0.18), 7: (0.0, 0.04),
}  # fmt: skip
# Expression -> height of the mouth's line at x from -1 to 1, down is more.
MOUTHS = {
    0: lambda x: 0.55,
    1: lambda x: 0.66 - 0.24 * x * x,
    2: lambda x: 0.48 + 0.2 * x * x,
    5: lambda x: 0.52 + 0.07 * math.sin(4.5 * x),
    6: lambda x: 0.5 + 0.12 * x * x,
    7: lambda x: 0.58 - (0.22 * x * x if x > 0 else 0.0),
}
