"""Conversation files: LLaVA JSON, JSON lines and Parquet, read by row, checked by row and field.

Rows may be written LLaVA's way (`conversations` of `from`/`value`), OpenAI's (`messages` of
`role`/`content`) or mixed, with `image` as a path, a list of paths or MiniCPM's dict from
`<image_00>` to a path, or with the pictures in OpenAI's `image_url` parts; they come out as LLaVA
rows. A picture is a path below the image folder, a `file://` address of one, or a `data:image`
address; nothing is fetched from the net. JSON lines are found by the offsets of their
lines and Parquet by row groups, so that a million rows open in seconds; a JSON array is loaded
whole, and says so. `python -m shared.conversations FILE --validate` checks a whole file. Used
through `conversations.py`; writes nothing. No torch here.
"""

from __future__ import annotations

import json
import os
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shared.inline_pictures import InlinePicture, data_url_problem
from shared.options import UserError

Turn = tuple[str, str | None]  # ("human" | "gpt" | "system", text; None is an answer to come)
Picture = Path | InlinePicture  # what a row's picture is read from

IMAGE_TAG = "<image>"
ROLES = {
    "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system",
}  # fmt: skip
NUMBERED_TAG = re.compile(r"<image_\d+>")
LARGE_FILE = 50_000_000  # bytes; of a smaller array nobody minds the memory
BLOCK = 1 << 22  # bytes scanned for line ends at a time


class RowError(UserError):
    """A malformed row; the message begins with the field at fault."""


# Rows


def normalise_row(row: Any) -> dict[str, Any]:
    """A LLaVA row: `id`, `image` (absent, a path or a list of paths; a data: URL in the place of
    one), `conversations` of `{"from": "human"|"gpt"|"system", "value": text}` with `<image>` where
    a picture stands.

    Human and gpt turns alternate, a system turn may come first, and there are as many `<image>` as
    pictures. Raises RowError naming the field.
    """
    if not isinstance(row, dict):
        raise RowError(f"row: expected an object, found {_kind(row)}")
    key = "conversations" if "conversations" in row else "messages"
    turns = row.get(key)
    if turns is None:
        raise RowError("conversations: missing (LLaVA's name; OpenAI's `messages` is read too)")
    if not isinstance(turns, list):
        raise RowError(f"{key}: expected a list of turns, found {_kind(turns)}")
    if not turns:
        raise RowError(f"{key}: empty")
    addresses: list[str] = []  # of image_url parts, in their order
    conversation = [_normalise_turn(turn, f"{key}[{i}]", addresses) for i, turn in enumerate(turns)]
    _check_order(conversation, key)
    images = _normalise_images(row, conversation, key, addresses)
    n_tags = sum(turn["value"].count(IMAGE_TAG) for turn in conversation)
    if n_tags != len(images):
        raise RowError(
            f"{key}: {n_tags} {IMAGE_TAG} for {len(images)} picture(s) in `image`; each picture "
            "needs one tag, in a human turn"
        )
    extra = {k: v for k, v in row.items() if k not in {key, "image", "images"}}
    shown = {"image": images[0] if len(images) == 1 else images} if images else {}
    return extra | shown | {"conversations": conversation}


def _normalise_turn(turn: Any, where: str, addresses: list[str]) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise RowError(f"{where}: expected an object with `from` and `value`, found {_kind(turn)}")
    role_key = "from" if turn.get("from") is not None else "role"
    text_key = "value" if turn.get("value") is not None else "content"
    role, text = turn.get(role_key), turn.get(text_key)
    if role is None:
        raise RowError(f"{where}.from: missing (or `role`)")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"{where}.{role_key}: unknown role {role!r}; known: {', '.join(ROLES)}")
    if text is None:
        raise RowError(f"{where}.value: missing (or `content`)")
    if isinstance(text, list):
        text = "".join(_part_text(part, f"{where}.{text_key}", addresses) for part in text)
    if not isinstance(text, str):
        raise RowError(f"{where}.{text_key}: expected text, found {_kind(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise RowError(f"{where}.{text_key}: {half}, half of a character (a cut emoji?)") from error
    return {"from": ROLES[role], "value": text}


def _part_text(part: Any, where: str, addresses: list[str]) -> str:
    """One part of OpenAI's content list; the address of an image_url part joins `addresses`."""
    if isinstance(part, dict) and part.get("type") == "image":
        return IMAGE_TAG
    if isinstance(part, dict) and part.get("type") == "image_url":
        shown = part.get("image_url")
        url = shown.get("url") if isinstance(shown, dict) else shown
        if not isinstance(url, str) or not url:
            raise RowError(f'{where}: image_url is {{"url": a file or a data: URL}}')
        addresses.append(url)
        return IMAGE_TAG
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise RowError(
        f'{where}: a part is {{"type": "image"}}, {{"type": "image_url", "image_url": {{"url": '
        '...}} or {"type": "text", "text": ...}'
    )


def _check_order(conversation: list[dict[str, str]], key: str) -> None:
    first = 1 if conversation[0]["from"] == "system" else 0
    if len(conversation) == first:
        raise RowError(f"{key}: only a system turn")
    for i, turn in enumerate(conversation):
        expected = "system" if i < first else "human" if (i - first) % 2 == 0 else "gpt"
        if turn["from"] != expected:
            raise RowError(
                f"{key}[{i}].from: {turn['from']!r} where {expected!r} is due; human and gpt "
                "turns alternate (are several conversations in one row?)"
            )


def _normalise_images(
    row: dict[str, Any], conversation: list[dict[str, str]], key: str, addresses: list[str]
) -> list[str]:
    """The row's pictures in the order of their tags; numbered tags become `<image>`."""
    field = "image" if row.get("image") not in (None, "", [], {}) else "images"
    value = row.get(field)
    if value in (None, "", [], {}):
        field, value = "image_url" if addresses else field, addresses
    elif addresses:
        raise RowError(
            f"{field}: pictures here and in image_url parts, so their order is not known; name "
            "each in its part"
        )
    if isinstance(value, dict) and not NUMBERED_TAG.fullmatch(next(iter(value))):
        what = "pixels inside the file" if "bytes" in value else f"keys {sorted(value)[:3]}"
        raise RowError(
            f"{field}: a dict maps tags like <image_00> to paths, found {what}; write the pictures "
            "as files and their paths here"
        )
    if isinstance(value, dict):
        used = [tag for turn in conversation for tag in NUMBERED_TAG.findall(turn["value"])]
        if used:
            for turn in conversation:
                turn["value"] = NUMBERED_TAG.sub(IMAGE_TAG, turn["value"])
            if sorted(used) != sorted(value):
                raise RowError(
                    f"{field}: the text shows {', '.join(used)}, `{field}` has "
                    f"{', '.join(value)}; each tag stands once in both"
                )
        value = [value[tag] for tag in used] if used else list(value.values())
    images = [value] if isinstance(value, str) else value
    if not isinstance(images, list):
        raise RowError(f"{field}: expected a path, a list or a dict, found {_kind(images)}")
    for i, image in enumerate(images):
        if not isinstance(image, str) or not image:
            raise RowError(f"{field}[{i}]: expected a path, found {_kind(image)}")
        if image.startswith("data:") and (problem := data_url_problem(image)):
            raise RowError(f"{field}[{i}]: {problem}")
    for i, turn in enumerate(conversation):
        if turn["from"] != "human" and IMAGE_TAG in turn["value"]:
            raise RowError(f"{key}[{i}]: {IMAGE_TAG} in a {turn['from']} turn")
    return [_local_path(image) if image.startswith("file://") else image for image in images]


def _local_path(url: str) -> str:
    """The path of a file:// address."""
    path = unquote(url.removeprefix("file://"))
    return path.removeprefix("localhost") if path.startswith("localhost/") else path


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"{type(value).__name__} {value!r}"[:60])


def row_turns(row: dict[str, Any]) -> list[Turn]:
    """The turns of a row as (role, text). Raises RowError."""
    return [(turn["from"], turn["value"]) for turn in normalise_row(row)["conversations"]]


def row_images(row: dict[str, Any], image_root: Path | str) -> list[Picture]:
    """A row's pictures in the order of their tags, files or `InlinePicture`s; not opened.

    Raises RowError for an address on the net and for a path that leaves `image_root`.
    """
    images = normalise_row(row).get("image", [])
    root = os.path.abspath(image_root)
    paths: list[Picture] = []
    for image in [images] if isinstance(images, str) else images:
        if image.startswith("data:"):
            paths.append(InlinePicture(image))
            continue
        if re.match(r"[a-z]+://", image):
            raise RowError(f"image: {image} is an address; download it and give the file's path")
        # without resolving links: data folders are often made of links to a larger disk
        path = os.path.normpath(os.path.join(root, image))
        if os.path.commonpath([root, path]) != root:
            raise RowError(
                f"image: {image} leads outside {image_root}; rows may only name pictures below "
                "that folder, so that a data file from elsewhere cannot read other files. Where a "
                "script has --image_root (train.py, shared.conversations), it names another folder"
            )
        paths.append(Path(path))
    return paths


# Files


class Conversations(Sequence[dict[str, Any]]):
    """The rows of a conversation file; `rows[i]` reads and checks row i. See open_conversations."""

    def __init__(self, path: Path, image_root: Path) -> None:
        self.path = path
        self.image_root = image_root

    def raw(self, i: int) -> Any:
        """Row i as it stands in the file, unchecked."""
        raise NotImplementedError

    def where(self, i: int) -> str:
        """File and place of row i, for messages."""
        return f"{self.path} row {i}"

    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        """Row i as a LLaVA row (`normalise_row`). Raises UserError with file, row and field."""
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(i)
        row = self.raw(i)
        try:
            return normalise_row(row)
        except RowError as error:
            raise UserError(f"{self.where(i)}{_id_of(row)}: {error}") from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class _JsonArray(Conversations):
    def __init__(self, path: Path, image_root: Path) -> None:
        super().__init__(path, image_root)
        try:
            self.rows = json.loads(path.read_bytes())
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON (line {error.lineno}): {error.msg}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        if path.stat().st_size < LARGE_FILE:
            return
        print(
            f"{path}: a JSON array of {len(self.rows)} rows, loaded whole; as JSON lines it would "
            "be read row by row",
            file=sys.stderr,  # stdout may be somebody's JSON lines
        )

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, i: int) -> Any:
        return self.rows[i]


class JsonLines(Conversations):
    """Rows by the offsets of their lines: 8 bytes of memory a row."""

    def __init__(self, path: Path, image_root: Path) -> None:
        super().__init__(path, image_root)
        self.starts = _line_starts(path)

    def __len__(self) -> int:
        return len(self.starts)

    def _line(self, i: int) -> bytes:
        with self.path.open("rb") as file:  # opened each time: safe in forked data workers
            file.seek(self.starts[i])
            return file.readline()

    def raw(self, i: int) -> Any:
        try:
            return json.loads(self._line(i).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.where(i)}: not UTF-8 text ({error.reason})") from error
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.where(i)}: not valid JSON (column {error.colno}): {error.msg}"
            ) from error

    def where(self, i: int) -> str:
        """Counts the lines before row i, blank ones too, as an editor does."""
        lines, left = 1, self.starts[i]
        with self.path.open("rb") as file:
            while left > 0:
                block = file.read(min(BLOCK, left))
                lines += block.count(b"\n")
                left -= len(block)
        return f"{self.path} line {lines}"


class _Parquet(Conversations):
    """Rows by row group; the last groups read stay in memory."""

    def __init__(self, path: Path, image_root: Path) -> None:
        super().__init__(path, image_root)
        pq = _parquet_module()
        try:
            metadata = pq.read_metadata(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise UserError(f"{path}: not a Parquet file: {error}") from error
        self.ends = array("Q")
        total = 0
        for group in range(metadata.num_row_groups):
            total += metadata.row_group(group).num_rows
            self.ends.append(total)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def raw(self, i: int) -> Any:
        from bisect import bisect_right

        group = bisect_right(self.ends, i)
        try:
            rows = _row_group(str(self.path), self.path.stat().st_mtime_ns, group)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.where(i)}: this part of the file is broken: {error}") from error
        return rows[i - (self.ends[group - 1] if group else 0)]


def open_conversations(path: Path | str, image_root: Path | str | None = None) -> Conversations:
    """The rows of a JSON array, JSON lines or Parquet file, told apart by their first bytes.

    `image_root` is where the pictures' paths start, the file's folder unless given. Raises
    UserError when the file is missing, empty or of another kind.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.startswith(b"PAR1"):
        rows: Conversations = _Parquet(path, root)
    elif head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        rows = _JsonArray(path, root)
    elif path.suffix == ".json" and _is_one_object(path):
        raise UserError(
            f"{path}: one JSON object; expected a list of rows, or one row a line (JSON lines)"
        )
    else:
        rows = JsonLines(path, root)
    if not len(rows):
        raise UserError(f"{path}: no rows in it")
    return rows


def _is_one_object(path: Path) -> bool:
    """Whether the first line is no JSON by itself: an object spread over the file."""
    with path.open("rb") as file:
        try:
            json.loads(file.readline())
        except ValueError:
            return True
    return False


def _line_starts(path: Path) -> array[int]:
    """Offsets of the lines that are not blank, found in blocks."""
    import numpy as np

    starts = array("Q")
    last_byte = 0
    with path.open("rb") as file:
        line_start = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
        file.seek(line_start)
        position = line_start
        while block := file.read(BLOCK):
            data = np.frombuffer(block, dtype=np.uint8)
            ends = np.flatnonzero(data == ord("\n"))
            lengths = np.diff(ends + position, prepend=line_start - 1) - 1
            blank = lengths == 0
            for k in np.flatnonzero(lengths == 1):  # "\r\n" is blank too
                end = int(ends[k])
                blank[k] = (data[end - 1] if end else last_byte) == ord("\r")
            begins = (ends + position - lengths)[~blank]
            starts.frombytes(begins.astype(np.uint64).tobytes())
            last_byte = block[-1]
            line_start = int(ends[-1]) + position + 1 if len(ends) else line_start
            position += len(block)
    if position > line_start:
        starts.append(line_start)  # a last line without its line end
    return starts


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: pip install pyarrow") from error
    return pq


@lru_cache(maxsize=4)
def _row_group(path: str, changed: int, group: int) -> list[dict[str, Any]]:
    with _parquet_module().ParquetFile(path) as file:
        return file.read_row_group(group).to_pylist()


def _id_of(row: Any) -> str:
    return f" (id {row['id']!r})" if isinstance(row, dict) and "id" in row else ""
