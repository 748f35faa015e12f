"""The toy data of this experiment that no other has: pictures of single shapes in class folders.

Captions, questions and boxes come from the toy world's own sets (data/toy/vqav2, coco2017). A set
is drawn again when the code that decides its content changes, and says `synthetic: true` in its
manifest.

    python lavis_apps/train.py --toy --task classification     # draws it on first use

Drawn below data/toy in seconds. Reads nothing; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.options import DATA_ROOT
from shared.toy_world import pictures, sets, shapes
from shared.toy_world.build import SEED, ensure_vqav2
from shared.toy_world.pictures import scene_and_jpeg
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.sets import Pictures, ensure_set
from shared.toy_world.shapes import HELD_BACK_SHAPES, KNOWN_SHAPES

TOY_PICTURES = DATA_ROOT / "toy" / "vqav2"  # captions and questions
TOY_SHAPES = DATA_ROOT / "toy" / "shapes_folder"
TOY_NEW_SHAPES = DATA_ROOT / "toy" / "new_shapes_folder"  # what train.py learns
PER_CLASS = {"train": 100, "val": 25}


def ensure_toy_data(task: str) -> Path:
    """The data root of a task's toy, drawn when it is missing. Raises UserError when the folder
    can't be written."""
    if task == "classification":
        return ensure_shapes()
    ensure_vqav2(TOY_PICTURES)
    return TOY_PICTURES


def ensure_shapes(root: Path = TOY_SHAPES, redraw: bool = False) -> Path:
    """{train,val}/SHAPE/N.jpg: one known shape a picture, in any colour; its folder."""
    return _ensure(root, "toy shapes in class folders", KNOWN_SHAPES, redraw)


def ensure_new_shapes(root: Path = TOY_NEW_SHAPES, redraw: bool = False) -> Path:
    """The same with the held-back shapes, which no toy model has seen: classes to be learned."""
    return _ensure(root, "toy held-back shapes in class folders", HELD_BACK_SHAPES, redraw)


def _ensure(root: Path, dataset: str, names: Sequence[str], redraw: bool) -> Path:
    own = [Path(str(module.__file__)) for module in (shapes, pictures, sets)]
    hash_ = recipe_hash([*own, Path(__file__)])
    return ensure_set(root, dataset, hash_, lambda folder: write_shapes(folder, names), redraw)


def write_shapes(root: Path, names: Sequence[str]) -> Mapping[str, Any]:
    written = Pictures(root)
    for split, count in PER_CLASS.items():
        for shape in names:
            for i in range(count):
                name = f"{split}/{shape}/{i:03d}.jpg"
                _, jpeg = scene_and_jpeg(f"{SEED}/shapes_folder/{name}", (shape,), count=1)
                written.add(name, jpeg)
    return {"classes": list(names), "pictures": len(written)}
