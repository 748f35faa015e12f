"""Toy CT slices with descriptions, in the layout of MedTrinity-25M's demo part.

A grey slice is an ellipse (the body) with a ring of bone and some organs; most have one lesion,
brighter or darker than its surroundings, of some form, size and place. The caption says what is
there in words that are single tokens of the toy Qwen2. Parquet shards `25M_demo/train-*.parquet`
with the columns `image` (bytes and path), `id`, `caption`; a few rows are dirty, as real ones are:
a picture twice, a caption empty. Used by `toy_sets.py`; writes into the folder it is given.
"""

from __future__ import annotations

import io
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

from shared.toy_world.build import SEED
from shared.toy_world.shapes import outline

ROWS = 600
SHARDS = 2
SIZE = 64
SCALE = 3  # drawn larger and reduced
FORMS = ("square", "star", "diamond", "crescent", "cross")  # of lesions: shapes a toy model knows
SIZES = {"small": (4.0, 5.0), "large": (7.5, 9.0)}  # radius in pixels
PLACES = {
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
HEALTHY_SHARE = 0.2
NUMBERS = {1: "one", 2: "two", 3: "three"}
DUPLICATES = (17, 230)  # rows that repeat the picture of the row before
EMPTY = (101,)  # rows without a caption


def write_medtrinity(root: Path, seed: int = SEED, rows: int = ROWS) -> dict[str, Any]:
    """Draws the set into an empty folder; returns its counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records: list[dict[str, Any]] = []
    for i in range(rows):
        png, caption = ct_slice(f"{seed}/medtrinity/{i}")
        if i in DUPLICATES:
            png, caption = records[-1]["image"]["bytes"], records[-1]["caption"]
        image = {"bytes": png, "path": f"ct_{i:05d}.png"}
        records.append({"image": image, "id": f"ct_{i:05d}", "caption": caption})
        if i in EMPTY:
            records[-1]["caption"] = ""
    folder = root / "25M_demo"
    folder.mkdir()
    step = -(-rows // SHARDS)
    for k in range(SHARDS):
        table = pa.Table.from_pylist(records[k * step : (k + 1) * step])
        pq.write_table(table, folder / f"train-{k:05d}-of-{SHARDS:05d}.parquet")
    return {"counts": {"rows": rows, "duplicates": len(DUPLICATES), "empty": len(EMPTY)}}


def ct_slice(key: str) -> tuple[bytes, str]:
    """(PNG file, caption) of the slice named by `key`; the key alone decides both."""
    rng = random.Random(key)
    picture = Image.new("L", (SIZE * SCALE, SIZE * SCALE), rng.randint(0, 12))
    pen = ImageDraw.Draw(picture)
    width, height = rng.uniform(27, 30), rng.uniform(24, 28)
    tissue = rng.randint(90, 110)
    _ellipse(pen, 32, 32, width, height, 200)
    _ellipse(pen, 32, 32, width - 2, height - 2, tissue)
    _ellipse(pen, 32, 50, 4, 3.5, 210)  # the spine
    organs = rng.randint(1, 3)
    for x in rng.sample((18, 32, 46), organs):
        _ellipse(pen, x, 32 + rng.uniform(-3, 3), 5, 4, tissue + rng.randint(15, 30))
    caption = f"{NUMBERS[organs]} object{'s' if organs > 1 else ''} and "
    if rng.random() < HEALTHY_SHARE:
        caption += "no other"
    else:
        form, size, place = rng.choice(FORMS), rng.choice([*SIZES]), rng.choice([*PLACES])
        radius = rng.uniform(*SIZES[size])
        x, y = (32 + side * rng.uniform(9, 10.5) for side in PLACES[place])
        grey = rng.choice((rng.randint(225, 250), rng.randint(15, 35)))
        _form(pen, form, (x, y), radius, rng.uniform(-0.2, 0.2), grey, tissue)
        caption += f"a {size} {form} in the {place}"
    picture = picture.filter(ImageFilter.GaussianBlur(SCALE * 0.3))
    buffer = io.BytesIO()
    picture.resize((SIZE, SIZE), Image.Resampling.BOX).save(buffer, "PNG")
    return buffer.getvalue(), caption


def _ellipse(
    pen: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float, grey: int
) -> None:
    box = (x - width, y - height, x + width, y + height)
    pen.ellipse([value * SCALE for value in box], fill=grey)


def _form(
    pen: ImageDraw.ImageDraw,
    form: str,
    center: tuple[float, float],
    radius: float,
    angle: float,
    grey: int,
    tissue: int,
) -> None:
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    filled, holes = outline(form)
    for polygons, value in ((filled, grey), (holes, tissue)):
        for polygon in polygons:
            points = [
                (center[0] + x * cos - y * sin, center[1] + x * sin + y * cos) for x, y in polygon
            ]
            pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=value)
