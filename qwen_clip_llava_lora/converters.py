"""Published data sets as LLaVA rows: MedTrinity-25M, AffectNet, CC3M-595K, the 1,957 descriptions.

A converter yields one `Found` for each row of the source, in its order: a row, or why there is
none. What was not seen of a layout is said in its docstring, and where a column is missing the
error lists the columns found. Used by `preparing.py`; writes nothing, no torch.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from qwen_clip_llava_lora.data_readers import CAPTION_QUESTION, picture_type
from shared.conversation_files import IMAGE_TAG, RowError, open_conversations
from shared.options import MissingError, UserError

Language = Literal["en", "zh"]
WITHOUT_DOWNLOAD = "\n  without any download: the same command with --toy"

# AffectNet's expressions 0 to 7, in their order; 8 to 10 are no emotions and are left out.
EMOTIONS: dict[Language, tuple[str, ...]] = {
    "en": ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger", "Contempt"),
    "zh": ("中性", "高兴", "悲伤", "惊讶", "恐惧", "厌恶", "愤怒", "轻蔑"),
}
LEFT_OUT_EXPRESSIONS = {8: "None", 9: "Uncertain", 10: "Non-Face"}
EMOTION_QUESTION: dict[Language, str] = {
    "en": "Which emotion does this face show? Answer with one of: {classes}.",
    "zh": "这张脸表现出哪种情绪？只回答其中一个：{classes}。",
}
AFFECTNET_COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height",
    "facial_landmarks", "expression", "valence", "arousal",
)  # fmt: skip
AFFECTNET_PICTURES = (
    "Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated_Images",
    "Manually_Annotated", ".",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """One row of a source: `row`, or `left_out` (a rule, counted) or `problem` (a bad row)."""

    place: str  # file and row
    row: dict[str, Any] | None = None
    split: str = ""  # "test" where the source says so; "" is to be split
    left_out: str = ""
    problem: str = ""
    picture: bytes | None = None  # the picture's file where the source has it inside


@dataclass(frozen=True)
class Source:
    """A published data set: what its answers are, its folder below data/, how it is read."""

    kind: Literal["caption", "label"]
    folder: str
    read: Callable[[Path, Language, str | None], Iterator[Found]]
    asks: bool  # its rows have no question of their own
    test_part: str | None  # the file that becomes the test part
    notes: str


def medtrinity(source: Path, language: Language, question: str | None) -> Iterator[Found]:
    """MedTrinity-25M's `25M_demo`: Parquet shards with `image` (bytes, or bytes and path),
    `caption` and `id`. Of the columns only `image` was seen; `caption` and `id` are unverified.
    `25M_full` has no pictures inside and is not read.
    """
    shards = sorted(path for path in source.rglob("*.parquet") if path.is_file())
    if not shards:
        raise MissingError(
            f"{source}: no .parquet shard in it.\n"
            "  real data: configuration 25M_demo of the Hub data set UCSC-VLAA/MedTrinity-25M "
            f"(its terms are to be accepted there first){WITHOUT_DOWNLOAD}"
        )
    import pyarrow.parquet as pq

    asked = question or CAPTION_QUESTION[language]
    for shard in shards:
        try:
            names = pq.read_schema(shard).names
        except (OSError, ValueError) as error:
            raise UserError(f"{shard}: not a Parquet file: {error}") from error
        missing = [column for column in ("image", "caption") if column not in names]
        if missing:
            raise UserError(
                f"{shard}: no column {' or '.join(missing)} (25M_demo has both; 25M_full keeps its "
                f"pictures elsewhere); found: {', '.join(names)}"
            )
        with pq.ParquetFile(shard) as file:
            columns = [name for name in ("image", "caption", "id") if name in names]
            batches = file.iter_batches(batch_size=64, columns=columns)
            records = (record for batch in batches for record in batch.to_pylist())
            for i in count():
                place = f"{shard} row {i}"
                try:
                    record = next(records, None)
                except (OSError, ValueError) as error:
                    yield Found(place, problem=f"broken from here on: {error}")
                    break
                if record is None:
                    break
                try:
                    row, picture = _medtrinity_row(record, asked, f"{shard.stem}_{i}")
                except RowError as error:
                    yield Found(place, problem=str(error))
                else:
                    yield Found(place, row, picture=picture)


def _medtrinity_row(
    record: Mapping[str, Any], question: str, key: str
) -> tuple[dict[str, Any], bytes]:
    image, caption = record["image"], record["caption"]
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes) or not content:
        raise RowError("image: no picture inside")
    kind = picture_type(content)
    if kind is None:
        raise RowError(f"image: {len(content)} bytes that are no PNG, JPEG, GIF, BMP or WebP")
    if not isinstance(caption, str) or not caption.strip():
        raise RowError("caption: missing or empty")
    digest = hashlib.sha256(content).hexdigest()
    name = f"images/{digest[:2]}/{digest[:32]}.{kind}"  # by content: written once, whatever its id
    row_id = str(record.get("id") or key)
    return {"id": row_id, "image": name, **_conversation(question, caption.strip())}, content


def affectnet(source: Path, language: Language, question: str | None) -> Iterator[Found]:
    """AffectNet's manually annotated part: training.csv is to be split, validation.csv is the test
    part (the published test set was never released, and papers report on validation.csv).

    Columns and expression numbers were seen; that validation.csv may lack its header line was only
    read about: a first line without column names is taken for data in the official order.
    Expressions 8 to 10 and rows with a width below 0 (no face found) are left out. Pictures are
    used whole, not cut to the face's box.
    """
    lists = source / "Manually_Annotated_file_lists"
    if not lists.is_dir():
        lists = source
    if not (lists / "training.csv").is_file():
        raise MissingError(
            f"{source}: no Manually_Annotated_file_lists/training.csv in it.\n"
            "  real data: on request from its authors, http://mohammadmahoor.com/affectnet/"
            f"{WITHOUT_DOWNLOAD}"
        )
    root = next((r for r in AFFECTNET_PICTURES if (source / r).is_dir()), ".")
    classes = EMOTIONS[language]
    asked = question or EMOTION_QUESTION[language]
    asked = asked.replace("{classes}", ("、" if language == "zh" else ", ").join(classes))
    for name, split in (("training.csv", ""), ("validation.csv", "test")):
        path = lists / name
        if not path.is_file():
            continue
        for line, fields in _affectnet_lines(path):
            place = f"{path} line {line}"
            try:
                row, left_out = _affectnet_row(fields, classes, asked, root)
            except RowError as error:
                yield Found(place, problem=str(error))
            else:
                yield Found(place, row, split, left_out=left_out)


def _affectnet_lines(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line from 1, fields by column, or what is wrong with it)."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        # line by line, as no field has a line break: an open quote spoils its own line alone
        reader = ((line, _csv_fields(text)) for line, text in enumerate(file, 1))
        first = next(reader, (1, []))[1]
        if AFFECTNET_COLUMNS[0] in first:
            columns, rows = [name.strip() for name in first], []
        elif len(first) == len(AFFECTNET_COLUMNS) and "/" in first[0]:
            columns, rows = list(AFFECTNET_COLUMNS), [(1, first)]
        else:
            raise UserError(
                f"{path}: expected the columns {', '.join(AFFECTNET_COLUMNS)} (or as many fields "
                f"without a header line); found: {', '.join(first)[:200] or 'nothing'}"
            )
        absent = {"subDirectory_filePath", "expression"} - set(columns)
        if absent:
            raise UserError(
                f"{path}: no column {', '.join(sorted(absent))}; found: {', '.join(columns)}"
            )
        for line, fields in chain(rows, reader):
            if len(fields) == len(columns):
                yield line, dict(zip(columns, fields, strict=True))
            elif fields:
                yield line, f"{len(fields)} fields where there are {len(columns)} columns"


def _csv_fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # longer than any field is
        return [line]


def _affectnet_row(
    fields: dict[str, str] | str, classes: tuple[str, ...], question: str, root: str
) -> tuple[dict[str, Any] | None, str]:
    """(row, "") or (None, why it is left out). Raises RowError."""
    if isinstance(fields, str):
        raise RowError(fields)
    try:
        expression, width = int(fields["expression"]), float(fields.get("face_width") or 0)
    except ValueError:
        raise RowError(
            f"expression, face_width: expected numbers, found {fields['expression']!r}, "
            f"{fields.get('face_width')!r}"
        ) from None
    if expression in LEFT_OUT_EXPRESSIONS:
        return None, f"expression {expression} {LEFT_OUT_EXPRESSIONS[expression]}"
    if not 0 <= expression < len(classes):
        raise RowError(f"expression: {expression} is none of 0 to 10")
    if width < 0:
        return None, "face_width below 0 (no face)"
    name, label = fields["subDirectory_filePath"].strip(), classes[expression]
    if not name:
        raise RowError("subDirectory_filePath: empty")
    image = f"{root}/{name}" if root != "." else name
    return {"id": name, "image": image, "label": label, **_conversation(question, label)}, ""


def cc3m(source: Path, language: Language, question: str | None) -> Iterator[Found]:
    """LLaVA-CC3M-Pretrain-595K: `chat.json`, pictures in `images_dl/` (the course), `images/` or
    beside it. A `held_out.json` beside it, of rows like these, becomes the test part. Questions are
    those of the file.
    """
    chat = source / "chat.json"
    if not chat.is_file():
        raise MissingError(
            f"{chat} is not there.\n"
            "  real data: Hub data set liuhaotian/LLaVA-CC3M-Pretrain-595K, images.zip unpacked "
            f"into images_dl/{WITHOUT_DOWNLOAD}"
        )
    yield from _conversation_rows({chat: "", source / "held_out.json": "test"}, source)


def descriptions(source: Path, language: Language, question: str | None) -> Iterator[Found]:
    """The 1,957 descriptions: `train.json` and `eval.json` of {id, image, conversations[{role,
    content}]}, `image` a path or a dict from <image_00> to a path; eval.json becomes the test part.
    """
    train = source / "train.json"
    if not train.is_file():
        raise MissingError(
            f"{train} is not there.\n"
            "  real data: the repository BRONYA-818/NLP_Final_Project has the texts; the pictures "
            f"(Train/, Val/) are its authors'{WITHOUT_DOWNLOAD}"
        )
    yield from _conversation_rows({train: "", source / "eval.json": "test"}, source)


def _conversation_rows(files: Mapping[Path, str], source: Path) -> Iterator[Found]:
    """The rows of conversation files with pictures named from `source`."""
    for path, split in files.items():
        if not path.is_file():
            continue
        rows = open_conversations(path, source)
        folder = None
        for i in range(len(rows)):
            try:
                row = rows[i]
            except UserError as error:
                yield Found(rows.where(i), problem=str(error))
                continue
            named = row.get("image", [])
            images = [named] if isinstance(named, str) else named
            if folder is None and images:  # the first row with a picture decides
                folder = _picture_folder(source, images[0])
            if folder:
                images = [f"{folder}/{image}" for image in images]
            shown = {"image": images[0] if len(images) == 1 else images} if images else {}
            yield Found(rows.where(i), row | shown | {"id": str(row.get("id", i))}, split)


def _picture_folder(source: Path, name: str) -> str:
    """The folder below `source` that pictures are named from: images_dl, images or "" itself."""
    folders = ("", "images_dl", "images")
    holding = [f for f in folders if (source / f / name).is_file()]
    return [*holding, *(f for f in folders[1:] if (source / f).is_dir()), ""][0]


def _conversation(question: str, answer: str) -> dict[str, Any]:
    return {
        "conversations": [
            {"from": "human", "value": f"{IMAGE_TAG}\n{question}"},
            {"from": "gpt", "value": answer},
        ]
    }


SOURCES: dict[str, Source] = {
    "medtrinity": Source(
        "caption", "medtrinity", medtrinity, True, None,
        "25M_demo; columns caption and id unverified; pictures written out of the shards",
    ),
    "affectnet": Source(
        "label", "affectnet", affectnet, True, "validation.csv",
        "test is the official validation.csv; 8 official classes, expressions 8 to 10 left out",
    ),
    "cc3m": Source(
        "caption", "cc3m_595k", cc3m, False, "held_out.json",
        "rows of chat.json with their own questions; test is held_out.json where there is one",
    ),
    "descriptions": Source(
        "caption", "descriptions", descriptions, False, "eval.json",
        "rows of train.json with their own questions; test is the official eval.json",
    ),
}  # fmt: skip
