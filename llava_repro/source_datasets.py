"""Three published datasets as LLaVA rows: ScienceQA, CogVLM-SFT-311K, SA1B-Dense-Caption.

Each reader yields (place, row, problem): a row with pictures named from the dataset's folder, or
why there is none. Used by `prepare_data.py`, which writes the rows. No torch here.
"""

from __future__ import annotations

import ast
import csv
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from llava_repro.tasks.scienceqa import OPTIONS, question_text
from shared.conversation_files import IMAGE_TAG
from shared.options import MissingError, UserError, read_json

Found = tuple[str, dict[str, Any] | None, str]  # place, row or None, what is wrong

# CogVLM's labels and SA1B's captions come without a question; stage 1's `plain` template leaves it
# out anyway. One is drawn for each row.
CAPTION_QUESTIONS = {
    "en": ("Describe this picture.", "What can be seen here?", "What does this picture show?",
           "Please give a description of this picture."),
    "zh": ("请描述这张图片。", "图片里有什么？", "这张图片展示了什么？", "请说明图片的内容。"),
}  # fmt: skip


def caption_question(language: str, key: str) -> str:
    """One of the questions, the same for the same key in every run."""
    return random.Random(key).choice(CAPTION_QUESTIONS[language])


def scienceqa(root: Path, split: str, prompt_format: str) -> Iterator[Found]:
    """Problems of a split, as LLaVA's scripts/convert_sqa_to_llava.py (c121f04) writes them.

    QCM: question, context (the hint) and options; LEA: lecture, explanation, "The answer is B.";
    A: the last sentence alone. Pictures are images/{split}/{id}/image.png, as published, or the
    same below {split}/ or images/.
    """
    problems, splits = _json_object(root / "problems.json"), _json_object(root / "pid_splits.json")
    if split not in splits:
        raise UserError(f"{root / 'pid_splits.json'}: no split {split!r}: {', '.join(splits)}")
    for pid in splits[split]:
        place = f"{root / 'problems.json'} problem {pid}"
        try:
            row = _scienceqa_row(str(pid), problems.get(pid), prompt_format)
        except UserError as error:
            yield place, None, str(error)
            continue
        if "image" in row:
            folder = problems[pid].get("split") or split
            places = [f"images/{folder}", str(folder), "images"]
            names = [f"{where}/{pid}/{row['image']}" for where in places]
            row["image"] = next((name for name in names if (root / name).is_file()), names[0])
        yield place, row, ""


def _scienceqa_row(pid: str, problem: Any, prompt_format: str) -> dict[str, Any]:
    if not isinstance(problem, dict):
        raise UserError("named in pid_splits.json, missing here")
    texts = {key: problem.get(key) or "" for key in ("question", "hint", "lecture", "solution")}
    for key, text in texts.items():
        if not isinstance(text, str) or (key == "question" and not text):
            raise UserError(f"{key}: expected text, found {text!r}")
    choices, answer = problem.get("choices"), problem.get("answer")
    if not isinstance(choices, list) or not 1 < len(choices) <= len(OPTIONS):
        raise UserError(f"choices: expected two to {len(OPTIONS)} texts, found {choices!r}")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(f"answer: {answer!r} is not the number of a choice (of {len(choices)})")
    question = question_text(texts["question"], texts["hint"].strip(), choices, "reason")
    reply = f"The answer is {OPTIONS[answer]}."
    if prompt_format == "QCM-LEA":
        reply = f"Answer: {texts['lecture']} {texts['solution']} {reply}".replace("  ", " ").strip()
        reply = reply.replace("Answer: ", "")  # every one of them, as in the original
    row: dict[str, Any] = {"id": pid}
    if problem.get("image"):
        row["image"] = str(problem["image"])
        question += f"\n{IMAGE_TAG}"
    return row | {"conversations": _conversation([question, reply])}


def cogvlm_sft(root: Path, language: str) -> Iterator[Found]:
    """Labels of CogVLM-SFT-311K: {folder}/labels_{zh,en}/NAME.json beside {folder}/images/NAME.jpg.

    `root` is the unpacked dataset or one of its three folders. A label is {"conversations": [{role,
    content}]} or {"captions": [{"role": "caption", "content"}]}. Folders with `labels/` alone are
    read whatever the language.
    """
    folders = sorted(p for p in (root, *root.glob("*/")) if (p / "images").is_dir())
    if not folders:
        raise MissingError(
            f"{root}: no folder with images/ and labels_{language}/ in it; unpack "
            "CogVLM-SFT-311K.zip there (Hub dataset THUDM/CogVLM-SFT-311K)"
        )
    for folder in folders:
        labels = next(
            (folder / n for n in (f"labels_{language}", "labels") if (folder / n).is_dir()), None
        )
        if labels is None:
            yield str(folder), None, f"no labels_{language}/ beside images/"
            continue
        for path in sorted(labels.glob("*.json")):
            image = folder.relative_to(root) / "images" / f"{path.stem}.jpg"
            try:
                row = _cogvlm_row(read_json(path), language, path.stem)
            except UserError as error:
                yield str(path), None, str(error).removeprefix(f"{path}: ")
                continue
            name = folder.relative_to(root) / path.stem
            yield str(path), {"id": name.as_posix(), "image": image.as_posix(), **row}, ""


def _cogvlm_row(label: Any, language: str, key: str) -> dict[str, Any]:
    if isinstance(label, dict) and isinstance(label.get("captions"), list) and label["captions"]:
        caption = label["captions"][0]
        if not isinstance(caption, dict) or not isinstance(caption.get("content"), str):
            raise UserError("captions[0].content: missing")
        return _captioned(caption["content"], language, key)
    turns = label.get("conversations") if isinstance(label, dict) else None
    if not isinstance(turns, list) or not turns:
        raise UserError("expected `conversations` or `captions` with something in it")
    texts = [turn.get("content") if isinstance(turn, dict) else None for turn in turns]
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    for i, (role, text) in enumerate(zip(roles, texts, strict=True)):
        expected = "user" if i % 2 == 0 else "assistant"
        if role != expected or not isinstance(text, str):
            raise UserError(f"conversations[{i}]: expected a text from {expected}, found {role!r}")
    texts = [text.replace(IMAGE_TAG, "").strip() for text in texts]
    return {"conversations": _conversation([f"{IMAGE_TAG}\n{texts[0]}", *texts[1:]])}


def sa1b_dense_caption(root: Path, language: str) -> Iterator[Found]:
    """Shards of SA1B-Dense-Caption (Parquet as published; CSV and JSON lines as people convert it).

    Columns `url` and `cap_seg`, a dict or its Python literal as text, with `global_caption`; a file
    of one's own may have `image` (a path below `root`) and `caption` instead. A picture with a
    `url` is looked for as images/{last part of the address}; its row keeps the `url`. Seen through
    two public readers, not in the published files; their other keys are not used.
    """
    shards = sorted(p for p in root.rglob("*") if p.suffix in {".parquet", ".csv", ".jsonl"})
    shards = [p for p in shards if _names_columns(p)]
    if not shards:
        raise MissingError(
            f"{root}: no .parquet, .csv or .jsonl shard with captions in it (ModelScope dataset "
            "Tongyi-DataEngine/SA1B-Dense-Caption, data/train-*.parquet)"
        )
    for shard in shards:
        for i, (record, problem) in enumerate(_records(shard)):
            place = f"{shard} row {i}"
            try:
                if problem:
                    raise UserError(problem)
                row = _sa1b_row(record, language, f"{shard.stem}_{i}")
            except UserError as error:
                yield place, None, str(error)
            else:
                yield place, row, ""


CAPTION_COLUMNS = ("cap_seg", "global_caption", "caption")


def _names_columns(path: Path) -> bool:
    """Whether a shard has captions: an output of ours beside it has not."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(path).names
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a Parquet file: {error}") from error
        return any(column in names for column in CAPTION_COLUMNS)
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    return any(column in first for column in CAPTION_COLUMNS) and "conversations" not in first


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(record, what is wrong with it) of a shard, read piece by piece."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            wanted = {*CAPTION_COLUMNS, "url", "image", "id"}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                yield from ((record, "") for record in batch.to_pylist())
        return
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.field_size_limit(1 << 30)
            yield from ((record, "") for record in csv.DictReader(file))
            return
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                yield {}, f"not valid JSON (column {error.colno}): {error.msg}"
                continue
            yield (record, "") if isinstance(record, dict) else ({}, "expected an object")


def _sa1b_row(record: dict[str, Any], language: str, key: str) -> dict[str, Any]:
    captions = record.get("cap_seg")
    if isinstance(captions, str):
        try:
            captions = ast.literal_eval(captions)  # literals only: nothing in it is run
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise UserError("cap_seg: neither a dict nor the text of one") from error
    caption = captions.get("global_caption") if isinstance(captions, dict) else None
    caption = caption or record.get("global_caption") or record.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise UserError("cap_seg.global_caption: missing or empty")
    url = record.get("url")
    image = record.get("image")
    if isinstance(url, str) and url and not image:
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        image = f"images/{name}" if name else None
    if not isinstance(image, str) or not image:
        raise UserError("url, image: no picture named")
    kept = {"url": url} if isinstance(url, str) and url else {}
    return {"id": str(record.get("id") or key), "image": image, **kept} | _captioned(
        caption.strip(), language, key
    )


def _captioned(caption: str, language: str, key: str) -> dict[str, Any]:
    question = f"{IMAGE_TAG}\n{caption_question(language, key)}"
    return {"conversations": _conversation([question, caption])}


def _conversation(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(
            f"{path} is not there.\n"
            "  real data: data/scienceqa of https://github.com/lupantech/ScienceQA\n"
            "  without any download: the same command with --toy"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content
