"""Own data as it lies, read as LLaVA rows: `open_data(path)` finds the format by what is there.

| given                                   | read as                                            |
|-----------------------------------------|----------------------------------------------------|
| .json, .jsonl, .parquet                 | LLaVA's or OpenAI's rows, or columns as in a CSV   |
| a folder with chat.json (and images_dl/)| LLaVA-CC3M-Pretrain-595K's layout                  |
| a folder with dataset_info.json, or it  | LLaMA-Factory: sharegpt, alpaca, OpenAI messages   |
| .csv, .tsv                              | image,text or image,question,answer or image,label |
| a folder of pictures                    | a .txt of the same name beside each                |
| a folder of `datasets.save_to_disk`     | its Arrow files, read with pyarrow                 |
| a folder of prepare_data.py             | train.json, validation.json, ... with dataset.json |

Rows are read and checked one by one: a malformed row raises a UserError with file and row when it
is read, and the others stay readable. `mix_data` makes one of several sets. Used by train.py,
evaluate.py, demo.py and prepare_data.py; writes nothing, needs no torch.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qwen_clip_llava_lora import llama_factory
from qwen_clip_llava_lora.data_readers import (
    COLUMNS,
    EXPECTED,
    LOOKED_AT,
    Arrow,
    Columns,
    Converted,
    PictureTexts,
    Table,
    column_row,
    find_columns,
    first_records,
    has_pictures,
    label_classes,
    open_saved,
    picture_values,
)
from shared.conversation_files import Conversations, open_conversations, row_images
from shared.options import MissingError, UserError, read_json

Kind = Literal["caption", "question", "label"]
KINDS = ("caption", "question", "label")
IMAGE_FOLDERS = (".", "images_dl", "images")  # where pictures lie beside a file, first that fits
COLUMN_NAMES = {name for names in COLUMNS.values() for name in names}


@dataclass(frozen=True)
class Data:
    """One data set, opened: rows as `shared.conversations` reads them, below one picture folder.

    A row may also have `label` (a class), `answers` or `captions` (several references).
    """

    rows: Conversations  # a Sequence of rows; where(i) names file and row
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
    entry of dataset_info.json, a split (`validation`) of a prepared or saved folder; on a command
    line it stands behind the path, PATH:NAME.

    Raises UserError saying what was expected and what was found.
    """
    path = Path(path)
    if name is None and not path.exists():
        before, _, behind = str(path).rpartition(":")
        if before and Path(before).exists():
            path, name = Path(before), behind
    root = Path(image_root) if image_root is not None else None
    if path.is_dir():
        return _open_folder(path, root, name)
    if not path.is_file():
        raise MissingError(f"{path}: no such file or folder")
    return _open_file(path, root, name)


def _open_folder(folder: Path, root: Path | None, name: str | None) -> Data:
    if (folder / "dataset_dict.json").is_file():  # several splits, one folder each
        folder, name = _split_folder(folder, name), None
    if (folder / "state.json").is_file():
        records, names = open_saved(folder, root or folder)
        return _of_records(records, root, "datasets on disk", names)
    if (folder / llama_factory.FILE_NAME).is_file():
        return _open_file(folder / llama_factory.FILE_NAME, root, name)
    files = [f"{name or 'train'}{suffix}" for suffix in (".json", ".jsonl")]
    for file in (*files, *([] if name else ["chat.json"])):
        if (folder / file).is_file():
            return _open_file(folder / file, root, None)
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".csv", ".tsv"))
    if len(tables) == 1 and name is None:
        return _open_file(tables[0], root, None)
    if name is None and has_pictures(folder):
        return _of_columns(PictureTexts(folder), ["id", "image", "text"], "pictures with .txt")
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{folder}: no data found in it. Expected one of {', '.join(files)}, chat.json, "
        f"{llama_factory.FILE_NAME}, one CSV, a folder of datasets.save_to_disk, or pictures with "
        f"a .txt beside each; found: {found}"
    )


def _split_folder(folder: Path, name: str | None) -> Path:
    content = read_json(folder / "dataset_dict.json")
    splits = content.get("splits") if isinstance(content, dict) else None
    wanted = name or "train"
    if not splits or wanted not in splits:
        there = ", ".join(map(str, splits or [])) or "none"
        raise UserError(f"{folder}: no split {wanted!r}; there are: {there}")
    if not (folder / wanted).is_dir():
        raise UserError(f"{folder / wanted}: the split's folder is not there; copy the whole set")
    return folder / wanted


def _open_file(path: Path, root: Path | None, name: str | None) -> Data:
    if path.name == llama_factory.FILE_NAME:
        rows, name, kind_of_file = llama_factory.open_entry(path, name, root)
        return Data(rows, rows.image_root, None, (), name, kind_of_file, rows.path)
    if path.suffix.lower() in (".csv", ".tsv"):
        table = Table(path, root or path.parent)
        kind_of_file = f"table, {table.encoding}"
        return _of_columns(table, table.columns, kind_of_file, find_root=root is None)
    if path.suffix.lower() == ".arrow":
        return _of_records(Arrow(path, root or path.parent), root, "Arrow")
    return _of_records(open_conversations(path, root), root, "JSON or Parquet")


def _of_records(
    records: Conversations,
    root: Path | None,
    kind_of_file: str,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Data:
    """Rows with `conversations` or `messages` as they are, others by their columns."""
    first = first_records(records)
    fields = list(dict.fromkeys(field for record in first for field in record))
    if "conversations" not in fields and "messages" not in fields:
        if not COLUMN_NAMES & {field.lower() for field in fields}:
            raise UserError(
                f"{records.where(0)}: expected `conversations` (LLaVA), `messages` (OpenAI) or "
                f"columns {EXPECTED}; found: {', '.join(fields) or 'no object'}"
            )
        return _of_columns(records, fields, kind_of_file, names, find_root=root is None)
    rows, path = Converted(records, _with_inline_pictures), records.path
    described = _description(path)
    if root is None:
        said, folder = described.get("image_root"), rows.image_root
        there = Path(os.path.normpath(folder / said)) if said else None
        rows.image_root = there or find_image_root(rows, folder)
    kind, classes = described.get("kind"), tuple(described.get("classes") or ())
    if not described:
        kind, classes = _kind_of_rows(rows, fields)
    name = described.get("name")
    name = _name(path) if not name else name if path.stem == "train" else f"{name}_{path.stem}"
    return Data(rows, rows.image_root, kind, classes, name, "conversations", path)


def _of_columns(
    records: Conversations,
    columns: Sequence[str],
    kind_of_file: str,
    names: Mapping[str, Sequence[str]] | None = None,
    find_root: bool = False,
) -> Data:
    path = records.path
    roles = find_columns(columns, path)
    if roles.label:
        given = tuple((names or {}).get(roles.label, ()))
        roles = replace(roles, names=given)
        roles = replace(roles, classes=given or label_classes(records, roles))
    rows = Converted(records, partial(column_row, columns=roles))
    if find_root:
        rows.image_root = find_image_root(rows, rows.image_root)
    return Data(rows, rows.image_root, roles.kind, roles.classes, _name(path), kind_of_file, path)


def _with_inline_pictures(record: Any, i: int) -> Any:
    """A record whose pictures are bytes (Parquet, Arrow) with `data:` addresses in their place;
    MiniCPM's dict from <image_00> to a path is left as it is."""
    if not isinstance(record, dict):
        return record
    return record | {
        column: picture_values(record[column], column)
        for column in ("image", "images")
        if _holds_bytes(record.get(column))
    }


def _holds_bytes(value: Any) -> bool:
    pictures = value if isinstance(value, list) else [value]
    return any(isinstance(p, bytes) or (isinstance(p, dict) and "bytes" in p) for p in pictures)


def _name(path: Path) -> str:
    return path.stem if path.stem not in ("chat", "train") else path.resolve().parent.name


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


def _kind_of_rows(
    rows: Conversations, fields: Sequence[str]
) -> tuple[Kind | None, tuple[str, ...]]:
    """Kind and classes by the fields of the first rows; None where they name no references."""
    if "label" in fields:
        return "label", label_classes(rows, Columns(image="image", label="label"))
    return ("caption" if "captions" in fields else "question" if "answers" in fields else None), ()


def find_image_root(rows: Conversations, folder: Path) -> Path:
    """The folder among `IMAGE_FOLDERS` below `folder` in which the first rows' pictures are."""
    names: list[str] = []
    for i in range(min(LOOKED_AT, len(rows))):
        try:
            image = rows[i].get("image", [])
        except UserError:
            continue
        several = [image] if isinstance(image, str) else image
        names += [name for name in several if not name.startswith("data:")]
    for candidate in IMAGE_FOLDERS:
        if any((folder / candidate / name).is_file() for name in names):
            return folder / candidate
    return folder


# Mixtures


class Mixed(Conversations):
    """Rows of several data sets; pictures are named from the folder that all of them share."""

    def __init__(self, parts: Sequence[Data], places: Sequence[tuple[int, int]]) -> None:
        roots = [os.path.abspath(part.image_root) for part in parts]
        super().__init__(parts[0].source, Path(os.path.commonpath(roots)))
        self.parts, self.places = parts, places

    def __len__(self) -> int:
        return len(self.places)

    def where(self, i: int) -> str:
        part, k = self.places[i]
        return self.parts[part].rows.where(k)

    def raw(self, i: int) -> dict[str, Any]:
        part, k = self.places[i]
        data = self.parts[part]
        row = data.rows[k]
        row_images(row, data.image_root)  # a path that leaves its own set's folder is refused
        named = row.get("image", [])
        shown = [self._from_here(n, data) for n in ([named] if isinstance(named, str) else named)]
        image = {"image": shown[0] if len(shown) == 1 else shown} if shown else {}
        return row | image | {"id": f"{data.name}/{row.get('id', k)}"}

    def _from_here(self, name: str, data: Data) -> str:
        if name.startswith("data:"):
            return name
        path = os.path.join(os.path.abspath(data.image_root), name)
        return os.path.relpath(path, self.image_root)


def mix_data(
    datasets: Sequence[Data], weights: Sequence[float] | None = None, seed: int = 0
) -> Data:
    """Several data sets as one. `weights` are the sets' shares of its rows (they need not sum to 1;
    None takes every row once).

    An epoch is one pass through the mixture, which has as many rows as the sets together. A set
    whose share is more than it has is repeated, whole times and then a part drawn by `seed`; of a
    set whose share is less a part is drawn, the same one in every epoch. Ids become `name/id`.
    Raises UserError for weights that are none.
    """
    sizes = [len(data.rows) for data in datasets]
    counts = sizes if weights is None else _shares(weights, sum(sizes))
    if len(counts) != len(sizes):
        raise UserError(f"{len(sizes)} data sets and {len(counts)} weights: give one for each")
    rng = random.Random(seed)
    places: list[tuple[int, int]] = []
    for part, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        drawn = sorted(rng.sample(range(size), count % size))
        places += [(part, k) for k in [*range(size)] * (count // size) + drawn]
    rng.shuffle(places)
    kinds = {data.kind for data in datasets}
    rows = Mixed(datasets, places)
    taken = ", ".join(f"{n} of {d.name}" for d, n in zip(datasets, counts, strict=True))
    return Data(
        rows=rows,
        image_root=rows.image_root,
        kind=kinds.pop() if len(kinds) == 1 else None,
        classes=tuple(dict.fromkeys(c for data in datasets for c in data.classes)),
        name="+".join(data.name for data in datasets),
        format=f"mixture, rows an epoch: {taken}",
        source=rows.image_root,
    )


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` divided by weights, the rest to the largest fractions; none gets 0 rows."""
    if not weights or any(not 0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights {list(weights)}: expected a positive number for each data set")
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda k: (counts[k] - exact[k], k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return [max(1, count) for count in counts]
