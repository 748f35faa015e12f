"""Small hand-made COCO folders, and the toy world's split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CATEGORIES = {1: "person", 3: "car", 17: "cat", 18: "dog", 44: "bottle", 88: "teddy bear"}
FIRST_IMAGE = 1_000
Thing = dict[str, Any]


def thing(
    name: str, box: Sequence[float], *, area: float | None = None, crowd: bool = False
) -> Thing:
    """One object of a hand-made picture; its mask fills its box unless `area` says otherwise."""
    return {"name": name, "box": list(box), "area": area, "crowd": crowd}


def instances_content(pictures: Sequence[Sequence[Thing]], size: int = 100) -> dict[str, Any]:
    """The content of an instances file; picture i has the id 1000 + 37 i."""
    ids = {name: number for number, name in CATEGORIES.items()}
    images, annotations = [], []
    for place, things in enumerate(pictures):
        image_id = FIRST_IMAGE + 37 * place
        name = f"{image_id:012d}.jpg"
        images.append(
            {"license": 1, "file_name": name, "height": size, "width": size, "id": image_id}
        )
        for row in things:
            x, y, width, height = row["box"]
            polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            runs = {"counts": [0, size * size], "size": [size, size]}
            annotations.append(
                {
                    "segmentation": runs if row["crowd"] else polygon,
                    "area": width * height if row["area"] is None else row["area"],
                    "iscrowd": int(row["crowd"]),
                    "image_id": image_id,
                    "bbox": row["box"],
                    "category_id": ids[row["name"]],
                    "id": 5_000 + 11 * len(annotations),
                }
            )
    return {
        "info": {"description": "made by hand"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": "", "id": number, "name": name} for number, name in CATEGORIES.items()
        ],
    }


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """Writes a data root (annotations/, val2017/) with the given things in its pictures."""

    def make(pictures: Sequence[Sequence[Thing]], size: int = 100) -> Path:
        root = tmp_path / "coco2017"
        (root / "annotations").mkdir(parents=True)
        (root / "val2017").mkdir()
        content = instances_content(pictures, size)
        (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
        for image in content["images"]:
            noise = np.random.default_rng(image["id"]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((size, size))
            picture.save(root / "val2017" / image["file_name"], quality=90)
        return root

    return make


@pytest.fixture(scope="session")
def toy_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world's split, as `make_known_from_coco.py --toy` makes it. Don't write into it."""
    from llava_openset.split_writing import ensure_toy_split

    return ensure_toy_split(tmp_path_factory.mktemp("split") / "toy_split")
