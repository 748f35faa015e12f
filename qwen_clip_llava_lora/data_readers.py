"""Records of CSV, Arrow and picture-and-text folders, and how columns become LLaVA rows.

A reader here is a `Conversations`: `raw(i)` is record i as it stands in the file, `where(i)` its
place for messages. `Converted` turns the records of one into rows, one at a time, so that a bad
record raises when it is read and names its place. Used by `data_formats.py` and `llama_factory.py`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from shared.conversation_check import language_of
from shared.conversation_files import IMAGE_TAG, Conversations, RowError
from shared.images import IMAGE_SUFFIXES, list_images
from shared.options import UserError, read_json

# What is asked where the data has only texts or labels; in the language of the text.
CAPTION_QUESTION = {"en": "Describe the image.", "zh": "请描述这张图片。"}
LABEL_QUESTION = {
    "en": "Which of these does the image show: {classes}? Answer with one of them.",
    "zh": "图片属于哪一类：{classes}？只回答其中一个。",
}
COLUMNS = {
    "id": ("id",),
    "image": ("image", "images", "file_name", "filename", "image_path"),
    "text": ("text", "caption", "captions"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "label": ("label",),
}
EXPECTED = "image,text or image,question,answer or image,label (image is also read as file_name)"
# the first bytes of a picture file -> its type in a data: address
SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}
# starts as a list of texts or objects does, or has brackets round all of it
LIST_CELL = re.compile(r"""\s*\[(\s*["'{]|.*\]\s*$)""", re.DOTALL)
LOOKED_AT = 20  # first rows in which columns and pictures are looked for
GB18030_SHARE = 0.95  # of the decoded Chinese that is common (GB 2312): else it is no Chinese text


class Converted(Conversations):
    """The records of another reader as rows; `convert(record, i)` raises RowError for a bad one."""

    def __init__(
        self, records: Conversations, convert: Callable[[Any, int], dict[str, Any]]
    ) -> None:
        super().__init__(records.path, records.image_root)
        self.records, self.convert = records, convert

    def __len__(self) -> int:
        return len(self.records)

    def where(self, i: int) -> str:
        return self.records.where(i)

    def raw(self, i: int) -> dict[str, Any]:
        record = self.records.raw(i)
        try:
            return self.convert(record, i)
        except RowError as error:
            raise UserError(f"{self.where(i)}: {error}") from error


def first_records(records: Conversations) -> list[dict[str, Any]]:
    """The first records that can be read, to see what the file is; some may be malformed."""
    found = []
    for i in range(min(LOOKED_AT, len(records))):
        try:
            record = records.raw(i)
        except UserError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


class Chained(Conversations):
    """Several readers one behind the other."""

    def __init__(self, path: Path, parts: Sequence[Conversations]) -> None:
        super().__init__(path, parts[0].image_root)
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, i: int) -> tuple[Conversations, int]:
        part = bisect_right(self.ends, i)
        return self.parts[part], i - (self.ends[part - 1] if part else 0)

    def where(self, i: int) -> str:
        part, k = self._place(i)
        return part.where(k)

    def raw(self, i: int) -> Any:
        part, k = self._place(i)
        return part.raw(k)


# CSV


class Table(Conversations):
    """A CSV or TSV with a header line, held in memory as text; records are dicts of text.

    UTF-8 with or without a byte order mark, or GB18030 (what Excel writes in Chinese). A line with
    too many or too few fields, or with a quote that never closes, is a bad row of its own.
    """

    def __init__(self, path: Path, image_root: Path) -> None:
        super().__init__(path, image_root)
        text, self.encoding = decode_text(path)
        lines = io.StringIO(text, newline="").readlines()
        if not lines:
            raise UserError(f"{path}: empty; expected a header line with the columns {EXPECTED}")
        delimiter = max(",\t;", key=lines[0].count)
        found = _csv_rows(lines, delimiter)
        header = next(found, (0, []))[1]
        if isinstance(header, str):
            raise UserError(f"{path} line 1: {header}")
        self.columns = [name.strip() for name in header]
        if twice := [name for name, n in Counter(self.columns).items() if n > 1]:
            raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one")
        self.records = [(line, fields) for line, fields in found if fields]
        if not self.records:
            raise UserError(f"{path}: a header line but no rows in it")

    def __len__(self) -> int:
        return len(self.records)

    def where(self, i: int) -> str:
        return f"{self.path} line {self.records[i][0] + 1}"

    def raw(self, i: int) -> dict[str, str]:
        fields = self.records[i][1]
        problem = fields if isinstance(fields, str) else ""
        if not problem and len(fields) != len(self.columns):
            problem = (
                f"{len(fields)} fields where the header has {len(self.columns)} "
                f"({', '.join(self.columns)}); a text with a comma stands in double quotes"
            )
        if problem:
            raise UserError(f"{self.where(i)}: {problem}")
        return dict(zip(self.columns, fields, strict=True))


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(line from 0, fields or what is wrong). After a row that can't be right, the reading goes on
    with the line behind its first, so that one open quote does not swallow the rest of the file."""
    start, width = 0, 0
    while start < len(lines):
        reader = csv.reader(islice(lines, start, None), delimiter=delimiter, strict=True)
        base, start = start, len(lines)
        while True:
            begin = base + reader.line_num
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield begin, f"not valid CSV: {error}; a quote inside a text is written twice"
                start = begin + 1
                break
            if fields is None:
                break
            width = width or len(fields)
            if fields and len(fields) != width and base + reader.line_num > begin + 1:
                yield begin, "a quoted text runs over several lines and its row does not fit"
                start = begin + 1
                break
            yield begin, fields


def decode_text(path: Path) -> tuple[str, str]:
    """(text, encoding) of a UTF-8 or GB18030 file. Raises UserError naming the first bad byte."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16"), "UTF-16"
        return content.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        try:
            text = content.decode("gb18030")
        except UnicodeDecodeError:
            text = ""
        beyond = [character for character in text if ord(character) > 127]
        common = sum(len(character.encode("gb2312", "ignore")) > 0 for character in beyond)
        if beyond and common >= GB18030_SHARE * len(beyond):
            return text, "GB18030"
        raise UserError(
            f"{path} line {line}: neither UTF-8 nor GB18030 text; save the file as UTF-8 "
            "(in Excel: CSV UTF-8)"
        ) from error


# Arrow


class Arrow(Conversations):
    """One Arrow file as `datasets` saves it (IPC stream), mapped into memory, not loaded."""

    def __init__(self, path: Path, image_root: Path) -> None:
        super().__init__(path, image_root)
        try:
            import pyarrow as pa
        except ImportError as error:
            raise UserError("Arrow files need pyarrow: pip install pyarrow") from error
        try:
            with pa.memory_map(str(path)) as source:
                try:
                    self.table = pa.ipc.open_stream(source).read_all()
                except pa.ArrowInvalid:
                    self.table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: not an Arrow file: {error}") from error
        self.columns = list(self.table.column_names)

    def __len__(self) -> int:
        return self.table.num_rows

    def raw(self, i: int) -> dict[str, Any]:
        return self.table.slice(i, 1).to_pylist()[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Arrow, (self.path, self.image_root)  # a data worker maps the file anew


def open_saved(folder: Path, image_root: Path) -> tuple[Chained, dict[str, list[str]]]:
    """(records, class names by column) of a folder written by `Dataset.save_to_disk`."""
    state = read_json(folder / "state.json")
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
    except (TypeError, KeyError):
        names = []
    if not names or state.get("_indices_data_files"):
        raise UserError(f"{folder / 'state.json'}: _data_files: expected the names of Arrow files")
    info = folder / "dataset_info.json"
    features = (read_json(info).get("features") or {}) if info.is_file() else {}
    classes = {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and isinstance(feature.get("names"), list)
    }
    parts = [Arrow(folder / name, image_root) for name in names]
    if not sum(map(len, parts)):
        raise UserError(f"{folder}: no rows in it")
    return Chained(folder, [part for part in parts if len(part)]), classes


# Pictures with a text beside each


class PictureTexts(Conversations):
    """A folder of pictures with a .txt of the same name beside each; records {image, text}."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder)
        self.pictures = list_images(folder)
        texts = {path for path in folder.rglob("*.txt")}
        if not any(picture.with_suffix(".txt") in texts for picture in self.pictures):
            raise UserError(
                f"{folder}: {len(self.pictures)} pictures, none with a .txt of the same name "
                f"beside it (for {self.pictures[0].name}: {self.pictures[0].stem}.txt)"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    def where(self, i: int) -> str:
        return str(self.pictures[i])

    def raw(self, i: int) -> dict[str, str]:
        picture = self.pictures[i]
        beside = picture.with_suffix(".txt")
        if not beside.is_file():
            raise UserError(f"{picture}: no {beside.name} beside it")
        name = picture.relative_to(self.path).as_posix()
        return {"id": name, "image": name, "text": decode_text(beside)[0]}


# Columns


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None where there is none. `classes` are of the label column."""

    image: str
    id: str | None = None
    text: str | None = None
    question: str | None = None
    answer: str | None = None
    label: str | None = None
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # a label that is a number stands for one of these

    @property
    def kind(self) -> str:
        return "label" if self.label else "question" if self.question else "caption"


def find_columns(columns: Sequence[str], source: Path | str) -> Columns:
    """The roles of columns by their names. Raises UserError listing what was found."""
    lower = {name.strip().lower(): name for name in columns}
    found = {
        role: next((lower[name] for name in names if name in lower), None)
        for role, names in COLUMNS.items()
    }
    asked = found["question"] and found["answer"]
    if not found["image"] or not (found["text"] or asked or found["label"]):
        listed = ", ".join(map(str, columns)) or "none"
        raise UserError(f"{source}: expected columns {EXPECTED}; found: {listed}")
    if not asked:
        found["question"] = found["answer"] = None
    return Columns(**found)  # type: ignore[arg-type]


def label_classes(records: Conversations, columns: Columns) -> tuple[str, ...]:
    """The classes of a label column, sorted: every record is looked at, bad ones passed over."""
    found = set()
    for i in range(len(records)):
        try:
            found.add(_label(records.raw(i), columns))
        except UserError:
            continue
    return tuple(sorted(found))


def column_row(record: Any, i: int, columns: Columns) -> dict[str, Any]:
    """A LLaVA row of a record. Raises RowError naming the column."""
    if not isinstance(record, dict):
        raise RowError(f"expected columns, found {type(record).__name__}")
    images = picture_values(record.get(columns.image), columns.image)
    if not images:
        raise RowError(f"{columns.image}: empty")
    row: dict[str, Any] = {"id": str(record.get(columns.id or "") or i)}
    row["image"] = images[0] if len(images) == 1 else images
    if columns.label:
        row["label"] = _label(record, columns)
    if columns.question:
        question = _text(record, columns.question)
        answers = _texts(record, str(columns.answer))
        answer = Counter(answers).most_common(1)[0][0]
        row |= {"answers": answers} if len(answers) > 1 else {}
    elif columns.text:
        captions = _texts(record, columns.text)
        answer = captions[0]
        row |= {"captions": captions} if len(captions) > 1 else {}
        question = CAPTION_QUESTION[_language(answer)]
    else:
        answer = row["label"]
        listed = {"en": ", ".join, "zh": "、".join}[_language(answer)](columns.classes)
        question = LABEL_QUESTION[_language(answer)].format(classes=listed)
    if IMAGE_TAG not in question:
        question = f"{IMAGE_TAG}\n" * len(images) + question
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return row | {"conversations": turns}


def _language(text: str) -> str:
    return "zh" if language_of(text) == "zh" else "en"


def _text(record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{column}: expected text, found {value!r}"[:200])
    return value.strip()


def _texts(record: dict[str, Any], column: str) -> list[str]:
    """One text, a list of them (as JSON in a CSV) or VQAv2's list of {"answer": text}."""
    value = json_cell(record.get(column), column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    several = value if isinstance(value, list) else [value]
    several = [v.get("answer") if isinstance(v, dict) else v for v in several]
    if not several:
        raise RowError(f"{column}: empty")
    return [_text({column: text}, column) for text in several]


def _label(record: Any, columns: Columns) -> str:
    value = record.get(columns.label) if isinstance(record, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        if columns.names and not 0 <= value < len(columns.names):
            raise RowError(f"{columns.label}: {value} is no number of {len(columns.names)} classes")
        return columns.names[value] if columns.names else str(value)
    name = _text({"label": value}, "label")
    if columns.names and name not in columns.names:
        raise RowError(f"{columns.label}: {name!r} is none of {', '.join(columns.names)}")
    return name


def json_cell(value: Any, column: str) -> Any:
    """A CSV's cell that holds a JSON list, parsed; anything else as it is ("[sic] a dog" too)."""
    if isinstance(value, str) and LIST_CELL.match(value):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError(f"{column}: not valid JSON: {error.msg}") from error
    return value


def picture_values(value: Any, column: str) -> list[str]:
    """Paths of a picture column: one, a list (as JSON in a CSV), or the pictures' own bytes, which
    become `data:` addresses. Raises RowError."""
    value = json_cell(value, column)
    if value in (None, "", []):
        return []
    found = []
    for picture in value if isinstance(value, list) else [value]:
        if isinstance(picture, dict) and set(picture) <= {"bytes", "path"}:
            picture = picture.get("bytes") or picture.get("path")
        if isinstance(picture, bytes):
            picture = data_url(picture, column)
        if not isinstance(picture, str) or not picture.strip():
            raise RowError(f"{column}: expected a path or a picture, found {picture!r}"[:200])
        found.append(picture.strip())
    return found


def picture_type(content: bytes) -> str | None:
    """ "png", "jpeg", ... by the first bytes, None for what is no picture of a known type."""
    return next((kind for head, kind in SIGNATURES.items() if content.startswith(head)), None)


def data_url(content: bytes, column: str) -> str:
    kind = picture_type(content)
    if kind is None:
        raise RowError(f"{column}: {len(content)} bytes that are no PNG, JPEG, GIF, BMP or WebP")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def has_pictures(folder: Path) -> bool:
    """Whether a folder or a subfolder has a picture in it; stops at the first."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))
