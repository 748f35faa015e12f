"""LLaMA-Factory's data sets: `dataset_info.json` with sharegpt, alpaca and OpenAI messages.

An entry names a file (json, jsonl, csv, parquet, arrow, or a folder of them), its `formatting`,
which `columns` hold what and, for sharegpt, which `tags` name role, text and speakers
(hiyouga/LLaMA-Factory, data/README.md). Read as LLaMA-Factory reads it, with these differences:
pictures' paths start at the folder of dataset_info.json unless an image root is given; a wrong
number of `<image>` is a bad row instead of a warning; preference pairs (`ranking`), tools, videos,
audio and unknown columns are refused by name; `num_samples` is not read, every row is. Used by
`data_formats.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.data_readers import (
    Arrow,
    Chained,
    Converted,
    Table,
    first_records,
    json_cell,
    picture_values,
)
from shared.conversation_files import Conversations, RowError, open_conversations
from shared.options import UserError, read_json

FILE_NAME = "dataset_info.json"
# LLaMA-Factory's names where an entry says nothing
DEFAULTS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
}
OPTIONAL = {"images": "images", "system": "system"}
COLUMNS = {"images", "system", "prompt", "query", "response", "history", "messages"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
}
ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


def open_entry(
    info_file: Path, name: str | None, image_root: Path | None
) -> tuple[Converted, str, str]:
    """(rows, name, format) of one data set of a dataset_info.json.

    Raises UserError for an unknown name, a data set that is elsewhere or of a kind not read here.
    """
    entries = read_json(info_file)
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise UserError(f"{info_file}: expected an object of data sets by name")
    known = ", ".join(entries) or "none"
    if name is None and len(entries) == 1:
        name = next(iter(entries))
    if name is None:
        raise UserError(
            f"{info_file}: several data sets, give one as {info_file}:NAME; there are: {known}"
        )
    if name not in entries:
        raise UserError(f"{info_file}: no data set {name!r}; there are: {known}")
    entry, where = entries[name], f"{info_file} data set {name!r}"
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise UserError(
            f"{where}: formatting: expected alpaca, sharegpt or openai, found {formatting!r}"
        )
    columns, tags = _mapping(entry, "columns", where), _mapping(entry, "tags", where)
    if entry.get("ranking") or {"chosen", "rejected", "kto_tag"} & set(columns):
        raise UserError(f"{where}: preference pairs are not read here; give a set of conversations")
    if unread := {"videos", "audios", "tools"} & set(columns):
        raise UserError(
            f"{where}: columns: {', '.join(sorted(unread))}: only texts and pictures are read"
        )
    if unknown := set(columns) - COLUMNS:
        raise UserError(
            f"{where}: columns: unknown {', '.join(sorted(unknown))}; known: "
            f"{', '.join(sorted(COLUMNS))}"
        )
    if unknown := set(tags) - set(TAGS):
        raise UserError(f"{where}: tags: unknown {', '.join(sorted(unknown))}")
    records = _records(info_file.parent, entry, where)
    records.image_root = image_root or info_file.parent
    names = DEFAULTS[formatting] | OPTIONAL | columns
    _check_columns(records, names, formatting, where)
    convert = partial(alpaca_row, names=names)
    if formatting != "alpaca":
        spoken = TAGS | (OPENAI_TAGS if formatting == "openai" else {}) | tags
        convert = partial(sharegpt_row, names=names, tags=spoken)
    return Converted(records, convert), name, f"LLaMA-Factory {formatting}"


def _mapping(entry: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    value = entry.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise UserError(f"{where}: {key}: expected an object of names")
    return value


def _records(folder: Path, entry: Mapping[str, Any], where: str) -> Conversations:
    if "file_name" not in entry:
        source = next((key for key in ELSEWHERE if key in entry), None)
        named = f"names {source} {entry[source]!r}" if source else "has no file_name"
        raise UserError(f"{where}: {named}; download it and set file_name to the file")
    path = folder / str(entry["file_name"])
    paths = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    if not paths or not all(p.is_file() for p in paths):
        raise UserError(f"{where}: file_name: {path}: no such file")
    parts: list[Conversations] = []
    for part in paths:
        if part.suffix == ".csv":
            parts.append(Table(part, folder))
        elif part.suffix == ".arrow":
            parts.append(Arrow(part, folder))
        else:
            parts.append(open_conversations(part, folder))
    return parts[0] if len(parts) == 1 else Chained(path, parts)


def _check_columns(
    records: Conversations, names: Mapping[str, str], formatting: str, where: str
) -> None:
    """Raises UserError when no record among the first has what the entry promises."""
    found = list(dict.fromkeys(column for record in first_records(records) for column in record))
    needed = names["response" if formatting == "alpaca" else "messages"]
    if needed not in found:
        raise UserError(
            f"{where}: {records.where(0)}: expected the column {needed!r} ({formatting}); found: "
            f"{', '.join(found) or 'no object'}. Name it under columns."
        )


def alpaca_row(record: Any, i: int, names: Mapping[str, str]) -> dict[str, Any]:
    """Instruction and input in one question, the turns of `history` before it."""
    if not isinstance(record, dict):
        raise RowError(f"expected an object, found {type(record).__name__}")
    turns: list[tuple[str, str]] = []
    history = json_cell(record.get(names.get("history", "history")), "history")
    if not isinstance(history or [], list):
        raise RowError("history: expected a list of question and answer")
    for k, pair in enumerate(history or []):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"history[{k}]: expected a question and its answer")
        said = [_said(text, f"history[{k}]") for text in pair]
        turns += [("human", said[0]), ("gpt", said[1])]
    asked = [record.get(names[key]) for key in ("prompt", "query")]
    question = "\n".join(_said(text, names["prompt"]) for text in asked if text)
    if not question:
        raise RowError(f"{names['prompt']}: missing or empty")
    if names["response"] not in record:
        raise RowError(f"{names['response']}: missing")
    turns += [("human", question), ("gpt", _said(record[names["response"]], names["response"]))]
    return _row(record, i, turns, names)


def sharegpt_row(
    record: Any, i: int, names: Mapping[str, str], tags: Mapping[str, str]
) -> dict[str, Any]:
    """Messages under the entry's own names for role, text and speakers."""
    if not isinstance(record, dict):
        raise RowError(f"expected an object, found {type(record).__name__}")
    column = names["messages"]
    messages = json_cell(record.get(column), column)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{column}: expected a list of messages")
    roles = {tags["user_tag"]: "human", tags["assistant_tag"]: "gpt", tags["system_tag"]: "system"}
    turns = []
    for k, message in enumerate(messages):
        where = f"{column}[{k}]"
        if not isinstance(message, dict):
            raise RowError(f"{where}: expected an object with {tags['role_tag']!r}")
        role = message.get(tags["role_tag"])
        if role in (tags["observation_tag"], tags["function_tag"]):
            raise RowError(f"{where}: {role!r}: turns with tools are not read here")
        if not isinstance(role, str) or role not in roles:
            raise RowError(
                f"{where}.{tags['role_tag']}: unknown role {role!r}; tags name {', '.join(roles)}"
            )
        turns.append((roles[role], _said(message.get(tags["content_tag"]), where)))
    return _row(record, i, turns, names)


def _row(
    record: dict[str, Any], i: int, turns: list[tuple[str, str]], names: Mapping[str, str]
) -> dict[str, Any]:
    system = record.get(names["system"])
    if system and turns[0][0] != "system":
        turns = [("system", _said(system, names["system"])), *turns]
    images = picture_values(record.get(names["images"]), names["images"])
    shown = {"image": images[0] if len(images) == 1 else images} if images else {}
    conversations = [{"from": role, "value": text} for role, text in turns]
    row_id = i if record.get("id") is None else record["id"]
    return {"id": str(row_id), **shown, "conversations": conversations}


def _said(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{where}: expected text, found {value!r}"[:200])
    return value
