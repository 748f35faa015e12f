"""Writes the toy world's COCO 2017: pictures and instances, for the open-set experiment.

All twelve shapes are categories here, the held-back ones too: those are its unknown classes. The
set is only ever evaluated on; no training may read it. Each split has pictures of one shape, of
several, of known and held-back ones together, of one with a small other one beside it, crowds,
specks and empty ones. Category ids are sparse, as in the real set.

    python -m shared.toy_world coco      # data/toy/coco2017: {split}/*.jpg, annotations/*.json

The area is the drawn shape's; the polygons are outlines only, so the holes of ring and frame are
not in them. Crowds have run-length encoded masks, as in COCO.
"""

import math
import random
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from shared.options import DATA_ROOT
from shared.toy_world import pictures, sets, shapes
from shared.toy_world.build import LICENSE, SEED, write_json
from shared.toy_world.pictures import ANGLE, SIZE, draw, jpeg_bytes, sample_scene
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.sets import Pictures, ensure_set
from shared.toy_world.shapes import (
    COLORS,
    GROUNDS,
    HELD_BACK_SHAPES,
    KNOWN_SHAPES,
    SHAPES,
    Item,
    Scene,
    outline,
)

SOURCES = (*(Path(str(m.__file__)) for m in (shapes, pictures, sets)), Path(__file__))
CATEGORY_IDS = dict(zip(SHAPES, (1, 2, 3, 5, 8, 13, 18, 21, 44, 62, 75, 90), strict=True))
FIRST_IMAGE_ID = {"train2017": 2_001, "val2017": 500_001}
# Pictures of a kind in each split; `single` and `beside` for every shape.
COUNTS = {
    "train2017": {"single": 25, "beside": 4, "several": 40, "mixed": 40, "crowd": 6, "speck": 4,
                  "empty": 4},
    "val2017": {"single": 60, "beside": 8, "several": 80, "mixed": 80, "crowd": 12, "speck": 8,
                "empty": 8},
}  # fmt: skip
SMALL_RADIUS = (2.5, 4.5)  # of the shape beside another, of specks and of a crowd's members
CROWD_RADIUS = (2.0, 3.0)
MAIN_RADIUS = (12.0, 15.0)  # of a shape with others around it
INFO = {
    "description": "Toy world: drawn coloured shapes in the layout of COCO 2017 (synthetic)",
    "url": "",
    "version": "1.0",
    "year": 2026,
    "contributor": "vlm-experiments",
    "date_created": "2026-01-01 00:00:00",
}


def coco_recipe_hash() -> str:
    """The hash that `manifest.json` of a current set holds."""
    return recipe_hash(SOURCES)


def ensure_coco(root: Path = DATA_ROOT / "toy" / "coco2017", redraw: bool = False) -> Path:
    """Toy COCO 2017, drawn when missing or stale. Raises UserError where `ensure_set` does."""
    return ensure_set(root, "toy COCO 2017", coco_recipe_hash(), write_coco, redraw)


def write_coco(root: Path, seed: int = SEED) -> dict[str, Any]:
    """Both splits into an empty folder; returns what the manifest says of them."""
    stored = Pictures(root)
    counts = {}
    for split in FIRST_IMAGE_ID:
        content = _write_split(stored, split, f"{seed}/coco2017/{split}")
        counts[split] = {
            "pictures": len(content["images"]),
            "annotations": len(content["annotations"]),
            "crowds": sum(row["iscrowd"] for row in content["annotations"]),
        }
    return {"counts": counts, "known_shapes": list(KNOWN_SHAPES)}


def _write_split(stored: Pictures, split: str, key: str) -> dict[str, Any]:
    """Draws the pictures in a shuffled order, so that an id says nothing of what it shows."""
    plans = [
        (kind, shape, number)
        for kind, count in COUNTS[split].items()
        for shape in (SHAPES if kind in ("single", "beside") else ("",))
        for number in range(count)
    ]
    random.Random(key).shuffle(plans)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place, (kind, shape, number) in enumerate(plans):
        rng = random.Random(f"{key}/{kind}/{shape}/{number}")
        scene, crowd = _scene(kind, shape, rng)
        image_id = FIRST_IMAGE_ID[split] + 7 * place
        name = f"{image_id:012d}.jpg"
        stored.add(f"{split}/{name}", jpeg_bytes(draw(scene, rng)))
        images.append(
            {"license": 1, "file_name": name, "height": SIZE, "width": SIZE, "id": image_id}
        )
        alone = scene.items[: len(scene.items) - crowd]
        groups = [((item,), 0) for item in alone]
        if crowd:
            groups.append((scene.items[-crowd:], 1))
        for items, iscrowd in groups:
            annotations.append(
                {
                    **_mask_fields(items, iscrowd),
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[items[0].shape],
                    "id": 900_001 + 3 * len(annotations),
                }
            )
    content = {
        "info": INFO,
        "licenses": [{**LICENSE, "id": 1}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": "shape", "id": number, "name": shape}
            for shape, number in CATEGORY_IDS.items()
        ],
    }
    (stored.root / "annotations").mkdir(exist_ok=True)
    write_json(stored.root / "annotations" / f"instances_{split}.json", content)
    return content


def _scene(kind: str, shape: str, rng: random.Random) -> tuple[Scene, int]:
    """What a picture of this kind shows, and how many of its last items are one crowd."""
    if kind == "single":
        return sample_scene(rng, (shape,), 1), 0
    if kind == "several":
        return sample_scene(rng, SHAPES, rng.choice((2, 3))), 0
    if kind == "mixed":
        while True:
            scene = sample_scene(rng, SHAPES, rng.choice((2, 3)))
            held_back = {item.shape in HELD_BACK_SHAPES for item in scene.items}
            if held_back == {True, False}:
                return scene, 0
    if kind == "beside":
        main = _item(rng, shape, MAIN_RADIUS)
        other = rng.choice([name for name in SHAPES if name != shape])
        return _scene_of(rng, [main, _item(rng, other, SMALL_RADIUS, beside=[main])]), 0
    if kind == "crowd":
        main = _item(rng, rng.choice(SHAPES), MAIN_RADIUS)
        of = rng.choice(SHAPES)
        members: list[Item] = []
        for _ in range(rng.randint(5, 8)):
            members.append(_item(rng, of, CROWD_RADIUS, beside=[main, *members]))
        return _scene_of(rng, [main, *members]), len(members)
    if kind == "speck":
        return _scene_of(rng, [_item(rng, rng.choice(SHAPES), SMALL_RADIUS)]), 0
    return Scene((), rng.choice(GROUNDS), noisy=True), 0  # or there were only four empty pictures


def _scene_of(rng: random.Random, items: Sequence[Item]) -> Scene:
    return Scene(tuple(items), rng.choice(GROUNDS), rng.random() < 0.5)


def _item(
    rng: random.Random, shape: str, radii: tuple[float, float], beside: Sequence[Item] = ()
) -> Item:
    """A shape somewhere in the picture whose circle meets none of `beside`."""
    while True:
        radius = rng.uniform(*radii)
        x, y = (rng.uniform(radius + 1, SIZE - 1 - radius) for _ in range(2))
        if all(math.hypot(x - o.x, y - o.y) > radius + o.radius for o in beside):
            color = rng.choice(list(COLORS))
            return Item(shape, color, x, y, radius, rng.uniform(-ANGLE, ANGLE))


def _mask_fields(items: Sequence[Item], iscrowd: int) -> dict[str, Any]:
    """`segmentation`, `area`, `bbox` and `iscrowd` of one object, or of a crowd's members."""
    filled: list[list[tuple[float, float]]] = []
    scale = pictures.SUPERSAMPLE
    drawn = Image.new("L", (SIZE * scale, SIZE * scale), 0)
    pen = ImageDraw.Draw(drawn)
    for item in items:
        polygons, holes = outline(item.shape)
        placed = [[_place(point, item) for point in polygon] for polygon in polygons]
        for polygon in placed:
            pen.polygon([(x * scale, y * scale) for x, y in polygon], fill=255)
        for hole in holes:
            points = [_place(point, item) for point in hole]
            pen.polygon([(x * scale, y * scale) for x, y in points], fill=0)
        filled += placed
    # a pixel belongs to the shape when at least half of it is covered
    mask = np.asarray(drawn.resize((SIZE, SIZE), Image.Resampling.BOX)) >= 128
    xs, ys = ([point[axis] for polygon in filled for point in polygon] for axis in (0, 1))
    left, right = max(0.0, min(xs)), min(float(SIZE), max(xs))
    top, bottom = max(0.0, min(ys)), min(float(SIZE), max(ys))
    polygons_flat = [[round(v, 2) for point in polygon for v in point] for polygon in filled]
    return {
        "segmentation": _run_lengths(mask) if iscrowd else polygons_flat,
        "area": float(mask.sum()),
        "bbox": [round(v, 2) for v in (left, top, right - left, bottom - top)],
        "iscrowd": iscrowd,
    }


def _place(point: tuple[float, float], item: Item) -> tuple[float, float]:
    """A point of the unit circle in pixels of the picture, as `pictures.draw` places it."""
    angle = math.radians(item.angle)
    x = point[0] * math.cos(angle) - point[1] * math.sin(angle)
    y = point[0] * math.sin(angle) + point[1] * math.cos(angle)
    return item.x + x * item.radius, item.y + y * item.radius


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed form: lengths of runs down the columns, the first one of background."""
    values = mask.flatten(order="F").tolist()
    counts = [len(list(run)) for _, run in groupby(values)]
    return {"counts": [0, *counts] if values[0] else counts, "size": list(mask.shape)}
