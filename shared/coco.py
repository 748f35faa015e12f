"""COCO's "instances" layout: pictures, boxes and categories of one annotation file, checked.

`instances_val2017.json` and every file in its form (https://cocodataset.org/#format-data, object
detection). Category ids are sparse there (80 classes, ids 1 to 90); a crowd (`iscrowd` 1) is one
box around many objects. Files that hold stuff beside things (sky, grass) are read as well: see
`Category.stuff`. Segmentations are dropped while the file is parsed. No torch here.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.options import MissingError, UserError

# Supercategories of stuff in COCO's panoptic and stuff files. Those files, brought into the form of
# instances, have lost the field `isthing` (cocodataset/panopticapi,
# converters/panoptic2detection_coco_format.py).
STUFF = frozenset(
    {
        "building", "ceiling", "floor", "food-stuff", "furniture-stuff", "ground", "plant",
        "raw-material", "sky", "solid", "structural", "textile", "wall", "water", "window",
    }
)  # fmt: skip
UNREAD = ("segmentation", "keypoints")  # most of a file, and nothing here looks at them


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One picture; `file_name` is relative to the folder of the split's pictures."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object or crowd. `box` is x, y, width, height and `area` the mask's, both in pixels."""

    id: int
    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects, or (`stuff`) of what has no count: sky, grass, wall."""

    id: int
    name: str
    supercategory: str
    stuff: bool


@dataclass
class Instances:
    """One annotation file: pictures and categories by id, annotations in the file's order."""

    images: dict[int, ImageEntry]
    annotations: list[Annotation]
    categories: dict[int, Category]

    def by_image(self) -> dict[int, list[Annotation]]:
        """Annotations of every picture, in the pictures' order; [] for one that has none."""
        found: dict[int, list[Annotation]] = {image_id: [] for image_id in self.images}
        for annotation in self.annotations:
            found[annotation.image_id].append(annotation)
        return found


def read_instances(path: Path) -> Instances:
    """The file, with every entry checked.

    A file of the size and rows of instances_train2017.json (0.44 GB, 860,001 annotations) takes
    1.1 GB at its highest. Raises MissingError when there is no such file, and UserError with
    file and entry for another kind of file, a missing or wrong field, an id that stands twice, or
    an annotation of an unknown picture or category.
    """
    if not path.is_file():
        raise MissingError(
            f"{path}: no such file. Get COCO 2017:\n"
            "  python -m shared.download coco2017 --splits val   (or train)\n"
            "  without any download: the same command with --toy"
        )
    # A million small objects: the cyclic collector would double the time and frees nothing.
    gc.disable()
    try:
        content = _parse(path)
        return _checked(path, content)
    finally:
        gc.enable()


def _parse(path: Path) -> dict[str, Any]:
    def keep(row: dict[str, Any]) -> dict[str, Any]:
        for key in UNREAD:
            row.pop(key, None)
        return row

    try:
        content = json.loads(path.read_bytes(), object_hook=keep)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a JSON text ({error})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON (line {error.lineno}): {error.msg}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _checked(path: Path, content: dict[str, Any]) -> Instances:
    kind = _other_kind(content)
    if kind:
        raise UserError(
            f"{path}: {kind}, not instances; give instances_val2017.json or a file in its form"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: no list under {key!r}; is it an instances file of COCO?")
    images = _entries(path, content["images"], "images", _image)
    categories = _entries(path, content["categories"], "categories", _category)
    names = [category.name for category in categories.values()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two categories are named {twice!r}")

    def annotation(row: dict[str, Any]) -> Annotation:
        return _annotation(row, images, categories)

    annotations = _entries(path, content["annotations"], "annotations", annotation)
    if not images or not categories:
        raise UserError(f"{path}: no pictures or no categories in it")
    return Instances(images, list(annotations.values()), categories)


def _other_kind(content: dict[str, Any]) -> str:
    """Which other file of COCO this is, "" for instances."""
    rows = content.get("annotations")
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    if "segments_info" in first:
        return "panoptic annotations"
    if "caption" in first:
        return "captions"
    if "question_id" in first:
        return "answers of VQAv2"
    if "annotations" not in content and "images" in content:
        return "pictures without annotations (image_info of a test split)"
    return ""


def _entries(
    path: Path, rows: list[Any], key: str, read: Callable[[dict[str, Any]], Any]
) -> dict[int, Any]:
    """Rows of one list by their id. `read` raises ValueError or KeyError with what is wrong."""
    found: dict[int, Any] = {}
    for place, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            entry = read(row)
            if entry.id in found:
                raise ValueError(f"id {entry.id} stands twice")
        except KeyError as error:
            raise UserError(f"{path}: {key}[{place}]: no {error.args[0]!r}") from error
        except ValueError as error:
            raise UserError(f"{path}: {key}[{place}]: {error}") from error
        found[entry.id] = entry
    return found


def _image(row: dict[str, Any]) -> ImageEntry:
    entry = ImageEntry(row["id"], row["file_name"], row["width"], row["height"])
    _whole("id", entry.id)
    for key in ("width", "height"):
        _whole(key, row[key])
        if row[key] < 1:
            raise ValueError(f"{key} is {row[key]}")
    if not isinstance(entry.file_name, str) or not entry.file_name:
        raise ValueError(f"file_name is {entry.file_name!r}, expected a file's name")
    if Path(entry.file_name).is_absolute() or ".." in Path(entry.file_name).parts:
        raise ValueError(f"file_name {entry.file_name!r} leaves the folder of the pictures")
    return entry


def _category(row: dict[str, Any]) -> Category:
    _whole("id", row["id"])
    if not isinstance(row["name"], str) or not row["name"].strip():
        raise ValueError(f"name is {row['name']!r}, expected a text")
    above = row.get("supercategory", "")
    stuff = not row["isthing"] if "isthing" in row else above in STUFF
    return Category(row["id"], row["name"].strip(), str(above), stuff)


def _annotation(
    row: dict[str, Any], images: dict[int, ImageEntry], categories: dict[int, Category]
) -> Annotation:
    for key in ("id", "image_id", "category_id"):
        _whole(key, row[key])
    if row["image_id"] not in images:
        raise ValueError(f"image_id {row['image_id']} is not among the file's images")
    if row["category_id"] not in categories:
        raise ValueError(f"category_id {row['category_id']} is not among the file's categories")
    box, area = row["bbox"], row["area"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_length, box)):
        raise ValueError(f"bbox is {box!r}, expected x, y, width, height in pixels")
    if min(box[2:]) < 0:
        raise ValueError(f"bbox {box} has a negative width or height")
    if not _is_length(area) or area < 0:
        raise ValueError(f"area is {area!r}, expected a number of pixels")
    if row.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"iscrowd is {row['iscrowd']!r}, expected 0 or 1")
    x, y, width, height = map(float, box)
    return Annotation(
        row["id"],
        row["image_id"],
        row["category_id"],
        (x, y, width, height),
        float(area),
        bool(row.get("iscrowd", 0)),
    )


def _whole(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected a whole number")


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
