"""What app.py starts with: its options, the models of each kind, the folders that are searched.

No torch, no Gradio. Used by app.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lavis_apps.pictures import chosen_pictures
from lavis_apps.settings import PUBLISHED_MODELS, TOY_MODELS
from lavis_apps.toy_sets import TOY_PICTURES, ensure_toy_data
from shared.gradio_parts import LaunchOptions
from shared.options import ToyOptions, UserError, read_json
from shared.toy_world.shapes import KNOWN_SHAPES

DEFAULT_MODELS = {
    "published": PUBLISHED_MODELS,
    "toy": {kind: str(folder) for kind, folder in TOY_MODELS.items()},
}
TOY_SEARCHED = TOY_PICTURES / "test2015"
N_EXAMPLES = 4
# what the fields of LAVIS' app begin with
LAVIS_CAPTION = "a woman sitting on the beach with a dog"
LAVIS_QUESTION = "What are objects there?"
LAVIS_QUERY = "A dog running on the grass."
LAVIS_CLASSES = ("merlion", "sky", "giraffe", "fountain", "marina bay")


@dataclass(frozen=True)
class Examples:
    """Pictures to try, each with a text and a question, and what the fields begin with."""

    rows: Sequence[tuple[str, str, str]]
    caption: str = LAVIS_CAPTION
    question: str = LAVIS_QUESTION
    query: str = LAVIS_QUERY
    classes: Sequence[str] = LAVIS_CLASSES


@dataclass
class AppOptions(LaunchOptions, ToyOptions):
    """What the page starts with"""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "KIND=MODEL ..., of the kinds caption, vqa, matching, clip; MODEL is a "
                  "folder or a downloaded Hub id, or MODEL+ADAPTER; of several of a kind the "
                  "visitor chooses one"},
    )  # fmt: skip
    default_models: Literal["published", "toy"] = field(
        default="published", metadata={"help": "where kinds come from that --models leaves out"}
    )
    images: list[str] = field(
        default_factory=list,
        metadata={"help": "folders whose pictures are searched; their index is built at the start "
                  "and renewed at the next one"},
    )  # fmt: skip
    index: list[str] = field(
        default_factory=list, metadata={"help": "indexes of build_index.py that are searched"}
    )
    examples: str | None = field(
        default=None,
        metadata={"help": "folder of pictures to try (default: drawn shapes, no download)"},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "auto: bfloat16 where the GPU has it, float32 on a CPU"},
    )


TOY_DEFAULTS = {"default_models": "toy", "images": [str(TOY_SEARCHED)]}


def chosen_models(given: Sequence[str], defaults: str) -> dict[str, list[str]]:
    """kind -> its models, the first of which the page starts with.

    Raises UserError for what is no KIND=MODEL, or an unknown kind.
    """
    known = DEFAULT_MODELS[defaults]
    found: dict[str, list[str]] = {kind: [] for kind in known}
    for entry in given:
        kind, equals, model = entry.partition("=")
        if not equals or not model:
            raise UserError(f"--models {entry}: expected KIND=MODEL, as caption=FOLDER")
        if kind not in found:
            near = difflib.get_close_matches(kind, found, n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--models {entry}: the kinds are {', '.join(found)}{meant}")
        found[kind].append(model)
    return {kind: list(dict.fromkeys(found[kind])) or [known[kind]] for kind in known}


def find_examples(folder: str | None) -> Examples:
    """The first pictures of a folder with LAVIS' texts; without one, drawn shapes with theirs.

    Raises UserError for a folder without pictures.
    """
    if folder is not None:
        pictures = chosen_pictures(Path(folder))[:N_EXAMPLES]
        return Examples([(str(path), LAVIS_CAPTION, LAVIS_QUESTION) for path in pictures])
    root = ensure_toy_data("caption")
    said = read_json(root / "captions_val2014.json")
    asked = read_json(root / "v2_OpenEnded_mscoco_val2014_questions.json")
    captions = {entry["image_id"]: entry["caption"] for entry in reversed(said["annotations"])}
    questions = {entry["image_id"]: entry["question"] for entry in reversed(asked["questions"])}
    rows = [
        (str(root / "val2014" / image["file_name"]), captions[image["id"]], questions[image["id"]])
        for image in said["images"][:N_EXAMPLES]
    ]
    return Examples(rows, rows[0][1], rows[0][2], "a red star", KNOWN_SHAPES)
