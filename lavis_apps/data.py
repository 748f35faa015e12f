"""The data that the tasks train and are measured on: published layouts, one call for all of them.

Captions and retrieval read COCO's captions, vqa VQAv2 (`shared/` has the readers), classification
a folder of folders: ROOT/SPLIT/CLASS/PICTURE. Bad rows are left out, counted and listed. No torch.

    load_task_data("retrieval", Path("data/coco2014"), "val2014").samples

Reads a data root; writes nothing. The scripts that use it: train.py, evaluate.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.coco_captions import load_captions
from shared.images import IMAGE_SUFFIXES
from shared.options import MissingError, UserError
from shared.vqav2 import load_split

CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Labelled:
    """A picture and its class; `label` is the class's readable name, `image_name` relative to the
    data root."""

    sample_id: str
    image: Path
    image_name: str
    label: str

    @property
    def image_id(self) -> str:
        return self.image_name


@dataclass(frozen=True)
class TaskData:
    """Usable samples of one split, and one line for each row that was left out.

    `samples` are `shared.vqav2.Question` (caption, retrieval: one a picture, its captions the
    `references`; vqa: one a question), or `Labelled` (classification, `classes` its names).
    """

    name: str
    samples: list[Any]
    problems: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()


def load_task_data(task: str, data_root: Path, split: str) -> TaskData:
    """A split of a data root in the task's layout.

    Raises MissingError where it is not there, UserError for an unknown task or split, another
    layout, or too many bad rows.
    """
    name = f"{data_root.name}_{split}"
    if task in ("caption", "retrieval"):
        captions = load_captions(data_root, split)
        return TaskData(name, captions.questions, captions.problems)
    if task == "vqa":
        questions = load_split(data_root, split)
        return TaskData(name, questions.questions, questions.problems)
    if task == "classification":
        return load_class_folders(data_root, split)
    raise UserError(f"task {task!r}: caption, vqa, retrieval or classification")


def load_class_folders(data_root: Path, split: str) -> TaskData:
    """ROOT/SPLIT/CLASS/PICTURE, as torchvision's ImageFolder and ImageNet's archives have it.

    Classes are those of all splits, so that one without a picture in this split can be answered
    too. ROOT/classes.txt, where it is, gives their order and readable names: a line a class, its
    folder, then (after a tab, else the first space) its name. Raises MissingError, UserError.
    """
    folder = data_root / split
    if not folder.is_dir():
        raise MissingError(
            f"{folder}: no such folder; expected {data_root}/{split}/CLASS/PICTURE.jpg\n"
            "  without any data: the same command with --toy"
        )
    names = class_names(data_root)
    samples, problems = [], []
    for class_folder in subfolders(folder):
        for path in sorted(p for p in class_folder.rglob("*") if p.is_file()):
            name = path.relative_to(data_root).as_posix()
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                problems.append(f"{name}: not a picture by its name")
                continue
            sample_id = path.relative_to(folder).as_posix()
            samples.append(Labelled(sample_id, path, name, names[class_folder.name]))
    if not samples:
        raise UserError(f"{folder}: no picture in its folders; expected {split}/CLASS/PICTURE.jpg")
    return TaskData(f"{data_root.name}_{split}", samples, problems, tuple(names.values()))


def class_names(data_root: Path) -> dict[str, str]:
    """Folder -> readable name of every class. Raises UserError for a folder that classes.txt
    doesn't have, a line without meaning, or two classes of one name."""
    present = {f.name for split in subfolders(data_root) for f in subfolders(split)}
    path = data_root / CLASSES_FILE
    if not path.is_file():
        return {name: name for name in sorted(present)}
    names: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        folder, _, name = line.strip().partition("\t" if "\t" in line else " ")
        name = name.strip() or folder
        if folder in names or name in names.values():
            raise UserError(f"{path} line {number}: {line.strip()!r} stands twice")
        names[folder] = name
    if unknown := sorted(present - names.keys()):
        raise UserError(f"{path}: it has no line for the folder {unknown[0]!r}")
    return names


def subfolders(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
