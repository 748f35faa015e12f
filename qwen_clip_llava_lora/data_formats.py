"""Own data as it lies, read as LLaVA rows: `open_data(path)` finds the format by what is there.

| given                                  | read as                                               |
|----------------------------------------|-------------------------------------------------------|
| .json, .jsonl, .parquet                | LLaVA's or OpenAI's rows, or columns as in a CSV      |
| a folder with chat.json (and images_dl/)| LLaVA-CC3M-Pretrain-595K's layout                    |
| a folder with dataset_info.json, or it | LLaMA-Factory: sharegpt, alpaca, OpenAI messages      |
| .csv, .tsv                             | image,text or image,question,answer or image,label    |
| a folder of pictures                   | a .txt of the same name beside each                   |
| a folder of `datasets.save_to_disk`    | its Arrow files, read with pyarrow                    |
| a folder of prepare_data.py            | train.json, validation.json, ... with dataset.json    |

Rows are read and checked one by one: a malformed row raises a UserError with file and row when it
is read, and the others stay readable. Used by train.py, evaluate.py, demo.py and prepare_data.py;
writes nothing, needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.conversation_files import Conversations, open_conversations
from shared.options import MissingError, UserError, read_json

Kind = Literal["caption", "question", "label"]
KINDS = ("caption", "question", "label")
IMAGE_FOLDERS = (".", "images_dl", "images")  # where pictures lie beside a file, first that fits
LOOKED_AT = 20  # rows in which pictures are looked for to choose among them


@dataclass(frozen=True)
class Data:
    """One data set, opened: rows as `shared.conversations` reads them, below one picture folder.

    A row may also have `label` (a class), `answers` or `captions` (several references).
    """

    rows: Sequence[dict[str, Any]]  # Conversations: where(i) names file and row
    image_root: Path
    kind: Kind | None  # what its answers are, where the format says so
    classes: tuple[str, ...]  # of label data
    name: str
    format: str
    source: Path


def open_data(
    path: Path | str, image_root: Path | str | None = None, name: str | None = None
) -> Data:
    """The data at `path`, a file or a folder. `name` chooses among several sets in one folder: an
    entry of dataset_info.json, a split (`validation`) of a prepared or saved folder.

    Raises UserError saying what was expected and what was found.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else None
    if path.is_dir():
        return _open_folder(path, root, name)
    if not path.is_file():
        raise MissingError(f"{path}: no such file or folder")
    return _open_file(path, root, name)


def _open_folder(folder: Path, root: Path | None, name: str | None) -> Data:
    prepared = folder / f"{name or 'train'}.json"
    if prepared.is_file():
        return _open_file(prepared, root, None)
    if (folder / "chat.json").is_file() and name is None:
        return _open_file(folder / "chat.json", root, None)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{folder}: no data found in it. Expected chat.json, {prepared.name}; found: {found}"
    )


def _open_file(path: Path, root: Path | None, name: str | None) -> Data:
    rows = open_conversations(path, root)
    described = _description(path)
    if root is None:
        said = described.get("image_root")
        rows.image_root = path.parent / said if said else find_image_root(rows, path.parent)
    kind, classes = described.get("kind"), tuple(described.get("classes") or ())
    if not described:
        kind, classes = _kind_of_rows(rows)
    return Data(
        rows=rows,
        image_root=rows.image_root,
        kind=kind,
        classes=classes,
        name=path.stem if path.stem not in ("chat", "train") else path.resolve().parent.name,
        format="LLaVA rows",
        source=path,
    )


def _description(path: Path) -> dict[str, Any]:
    """dataset.json beside a file, as prepare_data.py writes it; {} where there is none."""
    beside = path.parent / "dataset.json"
    if not beside.is_file():
        return {}
    content = read_json(beside)
    if not isinstance(content, dict) or "kind" not in content:
        return {}  # somebody else's file of that name
    if content["kind"] not in (*KINDS, None):
        raise UserError(f"{beside}: kind: expected one of {', '.join(KINDS)} or null")
    return content


def _kind_of_rows(rows: Conversations) -> tuple[Kind | None, tuple[str, ...]]:
    """Kind and classes by the fields of the first row; None where it has no reference fields."""
    first = rows.raw(0)
    fields = first if isinstance(first, dict) else {}
    if "label" in fields:
        raw = (rows.raw(i) for i in range(len(rows)))
        labels = {row["label"] for row in raw if isinstance(row, dict) and row.get("label")}
        return "label", tuple(sorted(map(str, labels)))
    return ("caption" if "captions" in fields else "question" if "answers" in fields else None), ()


def find_image_root(rows: Conversations, folder: Path) -> Path:
    """The folder among `IMAGE_FOLDERS` below `folder` in which the first rows' pictures are."""
    names: list[str] = []
    for i in range(min(LOOKED_AT, len(rows))):
        try:
            image = rows[i].get("image", [])
        except UserError:
            continue
        names += [image] if isinstance(image, str) else image
    for candidate in IMAGE_FOLDERS:
        if any((folder / candidate / name).is_file() for name in names):
            return folder / candidate
    return folder
