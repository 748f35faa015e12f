"""Own data in every format: good rows, bad rows by file and place, wholly wrong files, mixtures."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_clip_llava_lora.data_formats import Data, mix_data, open_data
from shared.conversation_files import row_images
from shared.images import open_image
from shared.options import UserError

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a star"}]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a.png and b.png, red and blue."""
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 6), color).save(tmp_path / f"{name}.png")
    return tmp_path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def said(row: dict[str, Any]) -> list[str]:
    return [turn["value"] for turn in row["conversations"]]


def problem(rows: Any, i: int) -> str:
    with pytest.raises(UserError) as error:
        rows[i]
    return str(error.value)


def refusal(*arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        open_data(*arguments, **more)
    return str(error.value)


# LLaVA rows


def test_chat_json_with_images_dl_and_both_role_keys(pictures: Path) -> None:
    (pictures / "images_dl").mkdir()
    (pictures / "a.png").rename(pictures / "images_dl" / "a.png")
    by_role = [{"role": t["from"], "content": t["value"]} for t in TURNS]
    rows = [
        {"id": str(i), "image": "a.png", "conversations": t} for i, t in enumerate([TURNS, by_role])
    ]
    write(pictures / "chat.json", rows)
    data = open_data(pictures)
    assert data.image_root == pictures / "images_dl"
    assert (len(data.rows), data.kind, data.name) == (2, None, pictures.name)
    assert data.rows[0]["conversations"] == data.rows[1]["conversations"] == TURNS


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"id": 1, "image": "a.png"}, "conversations: missing"),
        ({"id": 1, "image": "a.png", "conversations": TURNS[1:]}, "'gpt' where 'human' is due"),
        ({"id": 1, "conversations": TURNS}, "1 <image> for 0 picture(s)"),
        ("text", "expected an object"),
    ],
)
def test_a_bad_llava_row_is_named_and_the_next_is_read(pictures: Path, row: Any, part: str) -> None:
    good = {"id": "good", "image": "a.png", "conversations": TURNS}
    assert open_data(write(pictures / "own.json", [row, good])).rows[1]["id"] == "good"
    data = open_data(write(pictures / "own.json", [good, row, good]))
    message = problem(data.rows, 1)
    assert message.startswith(f"{pictures / 'own.json'} row 1")
    assert part in message
    assert data.rows[2]["id"] == "good"


@pytest.mark.parametrize(
    ("extra", "kind", "classes"),
    [
        ({}, None, ()),
        ({"captions": ["a", "b"]}, "caption", ()),
        ({"answers": ["a", "b"]}, "question", ()),
        ({"label": "Sad"}, "label", ("Happy", "Sad")),
    ],
)
def test_the_kind_is_read_from_fields_never_from_a_name(
    pictures: Path, extra: dict[str, Any], kind: str | None, classes: tuple[str, ...]
) -> None:
    first = {"id": "0", "image": "a.png", "conversations": TURNS, **extra}
    second = first | ({"label": "Happy"} if "label" in extra else {})
    data = open_data(write(pictures / "captions_vqa_label.json", [first, second]))
    assert (data.kind, data.classes) == (kind, classes)
    assert {k: v for k, v in data.rows[0].items() if k in extra} == extra


def test_dataset_json_beside_a_file_says_kind_classes_and_picture_folder(pictures: Path) -> None:
    rows = [{"id": "0", "image": "a.png", "conversations": TURNS}]
    write(pictures / "prepared" / "train.json", rows)
    write(pictures / "prepared" / "validation.json", rows * 2)
    described = {"kind": "label", "classes": ["star", "ring"], "image_root": ".."}
    write(pictures / "prepared" / "dataset.json", described)
    data = open_data(pictures / "prepared", name="validation")
    assert (data.kind, data.classes, len(data.rows)) == ("label", ("star", "ring"), 2)
    assert [p.is_file() for p in row_images(data.rows[0], data.image_root)] == [True]
    write(pictures / "prepared" / "dataset.json", {"kind": "captions"})
    assert "dataset.json: kind: expected one of caption" in refusal(pictures / "prepared")


# Columns


@pytest.mark.parametrize(
    ("header", "row", "texts", "kind"),
    [
        (
            "image,text",
            "a.png,a red star",
            ["<image>\nDescribe the image.", "a red star"],
            "caption",
        ),
        ("image,text", "a.png,红色的星形", ["<image>\n请描述这张图片。", "红色的星形"], "caption"),
        ("file_name,caption", 'a.png,"a star, red"', [..., "a star, red"], "caption"),
        ("Image, Question ,Answer", "a.png,What?,star", ["<image>\nWhat?", "star"], "question"),
        ("image\tquestion\tanswer", "a.png\tHow many?\t2", ["<image>\nHow many?", "2"], "question"),
        ("image;text", "a.png;a star, red", [..., "a star, red"], "caption"),
        (
            "image,label",
            "a.png,star",
            [
                "<image>\nWhich of these does the image show: ring, star? Answer with one of them.",
                "star",
            ],
            "label",
        ),
        ("image,text,label", "a.png,it is a star,star", [..., "it is a star"], "label"),
    ],
)
def test_columns_become_conversations(
    pictures: Path, header: str, row: str, texts: list[Any], kind: str
) -> None:
    more = f"\n{row.replace('star', 'ring')}" if "label" in header else ""
    data = open_data(write(pictures / "own.csv", f"{header}\n{row}{more}\n"))
    assert data.kind == kind
    assert data.classes == (("ring", "star") if kind == "label" else ())
    found = said(data.rows[0])
    assert [f for f, t in zip(found, texts, strict=True) if t is not ...] == [
        t for t in texts if t is not ...
    ]
    assert row_images(data.rows[0], data.image_root) == [pictures / "a.png"]


def test_several_pictures_captions_and_answers_in_a_cell(pictures: Path) -> None:
    path = pictures / "own.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        writer.writerow(['["a.png", "b.png"]', "Which is red?", '["first", "first", "left"]'])
        writer.writerow(['["a.png", "b.png"]', "<image> or <image>?", "first"])
        writer.writerow(["a.png", "What?", '["first'])
    data = open_data(path)
    assert data.rows[0]["image"] == ["a.png", "b.png"]
    assert data.rows[0]["answers"] == ["first", "first", "left"]
    assert said(data.rows[0]) == ["<image>\n<image>\nWhich is red?", "first"]
    assert said(data.rows[1])[0] == "<image> or <image>?"
    assert "answer: not valid JSON" in problem(data.rows, 2)
    data = open_data(write(pictures / "sic.csv", "image,text\na.png,[sic] a dog\n"))
    assert said(data.rows[0])[1] == "[sic] a dog"


def test_bad_csv_rows_are_named_by_line_and_the_rest_is_read(pictures: Path) -> None:
    lines = [
        "image,text",
        "a.png,first",
        "a.png",
        "a.png,one,two",
        "a.png,",
        ",no picture",
        'a.png,"two\nlines"',
        '"a.png,never closed',
        "b.png,last",
    ]
    data = open_data(write(pictures / "own.csv", "\n".join(lines) + "\n"))
    path = pictures / "own.csv"
    assert [said(data.rows[i])[1] for i in (0, 5, 7)] == ["first", "two\nlines", "last"]
    for i, line, part in (
        (1, 3, "1 fields where the header has 2"),
        (2, 4, "3 fields where the header has 2"),
        (3, 5, "text: expected text"),
        (4, 6, "image: empty"),
        (6, 9, "not valid CSV"),
    ):
        assert problem(data.rows, i).startswith(f"{path} line {line}: ")
        assert part in problem(data.rows, i)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8-sig", "UTF-8"), ("gb18030", "GB18030"), ("utf-16", "UTF-16")],
)
def test_encodings_that_spreadsheets_write(pictures: Path, encoding: str, name: str) -> None:
    (pictures / "own.csv").write_bytes(
        "image,text\na.png,图中有两个蓝色的圆环。\n".encode(encoding)
    )
    data = open_data(pictures / "own.csv")
    assert said(data.rows[0])[1] == "图中有两个蓝色的圆环。"
    assert name in data.format


def test_another_encoding_is_refused_by_line(pictures: Path) -> None:
    (pictures / "own.csv").write_bytes("image,text\na.png,ok\nb.png,un café\n".encode("latin-1"))
    assert "own.csv line 3: neither UTF-8 nor GB18030" in refusal(pictures / "own.csv")


def test_json_lines_with_columns(pictures: Path) -> None:
    rows = [{"image": "a.png", "question": "What?", "answers": [{"answer": "x"}, {"answer": "y"}]}]
    rows += [{"image": "a.png", "question": "What?"}]
    path = write(pictures / "own.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    data = open_data(path)
    assert (data.kind, data.rows[0]["answers"]) == ("question", ["x", "y"])
    assert problem(data.rows, 1) == f"{path} line 2: answers: expected text, found None"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("own.csv", "path,words\na.png,x\n", ["expected columns image,text", "found: path, words"]),
        ("own.csv", "image,question\na.png,x\n", ["found: image, question"]),
        ("own.csv", "", ["empty"]),
        ("own.csv", "image,text\n", ["no rows"]),
        ("own.csv", "image,text,text\na.png,x,y\n", ["two columns are called 'text'"]),
        ("own.json", [{"prompt": "x"}], ["`conversations` (LLaVA)", "found: prompt"]),
        ("own.json", {"rows": []}, ["found: rows"]),
        ("own.json", '[{"id": 1},', ["not valid JSON (line 1)"]),
        ("own.jsonl", "[1]\n", ["no object"]),
    ],
)
def test_a_wholly_wrong_file_says_what_was_expected_and_found(
    pictures: Path, name: str, content: Any, parts: list[str]
) -> None:
    message = refusal(write(pictures / "sub" / name, content))
    assert all(part in message for part in parts), message


# Pictures with texts, saved data sets


def test_pictures_with_a_text_beside_each(pictures: Path) -> None:
    (pictures / "a.txt").write_text("a red picture\n", "utf-8")
    (pictures / "sub").mkdir()
    Image.new("RGB", (4, 4)).save(pictures / "sub" / "c.jpg")
    (pictures / "sub" / "c.txt").write_bytes("黑色的图片".encode("gb18030"))
    data = open_data(pictures)
    assert data.kind == "caption"
    assert [data.rows[0]["image"], data.rows[2]["image"]] == ["a.png", "sub/c.jpg"]
    assert [said(data.rows[i])[1] for i in (0, 2)] == ["a red picture", "黑色的图片"]
    assert problem(data.rows, 1) == f"{pictures / 'b.png'}: no b.txt beside it"
    (pictures / "b.txt").write_text(" \n")
    assert "b.png: text: expected text" in problem(data.rows, 1)


def test_a_folder_without_any_text_or_data(pictures: Path) -> None:
    assert "2 pictures, none with a .txt" in refusal(pictures)
    (pictures / "sub").mkdir()
    (pictures / "sub" / "notes.md").write_text("")
    message = refusal(pictures / "sub")
    assert "Expected one of train.json" in message
    assert "found: notes.md" in message
    assert "no such file or folder" in refusal(pictures / "missing")


def save_arrow(
    folder: Path, columns: dict[str, Any], features: dict[str, Any], parts: int = 1
) -> Path:
    """A folder as datasets' save_to_disk leaves it."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    table = pa.table(columns)
    names, step = [], -(-len(table) // parts)
    for k in range(parts):
        names.append(f"data-{k:05d}-of-{parts:05d}.arrow")
        with pa.ipc.new_stream(str(folder / names[-1]), table.schema) as writer:
            writer.write_table(table.slice(k * step, step))
    write(folder / "state.json", {"_data_files": [{"filename": name} for name in names]})
    write(folder / "dataset_info.json", {"features": features})
    return folder


def test_a_data_set_saved_to_disk(pictures: Path) -> None:
    shown = [{"bytes": (pictures / f"{n}.png").read_bytes(), "path": None} for n in "ab"]
    shown += [{"bytes": None, "path": "a.png"}, {"bytes": b"not a picture", "path": None}]
    folder = save_arrow(
        pictures / "saved" / "train",
        {"image": shown, "label": [1, 0, 2, 1]},
        {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}},
        parts=2,
    )
    data = open_data(folder, image_root=pictures)
    assert (data.kind, data.classes, len(data.rows)) == ("label", ("cat", "dog"), 4)
    assert [data.rows[i]["label"] for i in (0, 1)] == ["dog", "cat"]
    image = open_image(row_images(data.rows[1], data.image_root)[0])
    assert image.getpixel((0, 0)) == (0, 0, 255)
    assert "label: 2 is no number of 2 classes" in problem(data.rows, 2)
    assert "bytes that are no PNG" in problem(data.rows, 3)
    assert "data-00001-of-00002.arrow row 1" in problem(data.rows, 3)
    sent = ForkingPickler.dumps(data.rows)  # as to a data worker: names of files, no rows
    assert len(sent) < 3000
    assert deepcopy(data.rows)[0] == data.rows[0]

    write(pictures / "saved" / "dataset_dict.json", {"splits": ["train"]})
    assert len(open_data(pictures / "saved").rows) == 4
    assert "no split 'test'; there are: train" in refusal(pictures / "saved", name="test")


def test_saved_messages_and_parquet_with_pictures_inside(pictures: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    inside = {"bytes": (pictures / "b.png").read_bytes(), "path": "b.png"}
    messages = [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "blue"},
    ]
    folder = save_arrow(pictures / "saved", {"images": [[inside]], "messages": [messages]}, {})
    pq.write_table(pa.table({"image": [inside], "text": ["blue"]}), pictures / "own.parquet")
    for data in (open_data(folder), open_data(pictures / "own.parquet")):
        picture = row_images(data.rows[0], data.image_root)[0]
        assert open_image(picture).getpixel((0, 0)) == (0, 0, 255)
        assert said(data.rows[0])[-1] == "blue"


def test_a_damaged_parquet_row_names_its_place(pictures: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = pictures / "own.parquet"
    table = pa.table({"image": ["a.png"] * 4, "text": [f"text {i}" for i in range(4)]})
    pq.write_table(table, path, row_group_size=2)
    content = bytearray(path.read_bytes())
    content[4:30] = bytes(26)  # the first page's header
    path.write_bytes(content)
    data = open_data(path)
    assert problem(data.rows, 0).startswith(f"{path} row 0: this part of the file is broken")
    assert said(data.rows[2])[1] == "text 2"


def test_a_broken_saved_folder(tmp_path: Path) -> None:
    for state in ({"_data_files": []}, {"_data_files": [{}]}, []):
        write(tmp_path / "state.json", state)
        assert "_data_files: expected the names" in refusal(tmp_path)
    write(tmp_path / "state.json", {"_data_files": [{"filename": "x.arrow"}]})
    write(tmp_path / "x.arrow", "text")
    assert "x.arrow: not an Arrow file" in refusal(tmp_path)
    write(tmp_path / "dataset_dict.json", {"splits": ["train"]})
    assert "the split's folder is not there" in refusal(tmp_path)


# LLaMA-Factory

OPENAI = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user",
    "assistant_tag": "assistant", "system_tag": "system",
}  # fmt: skip


def factory(folder: Path, entry: dict[str, Any], rows: Any, name: str = "own.json") -> Data:
    write(folder / name, rows)
    write(folder / "dataset_info.json", {"own": {"file_name": name} | entry})
    return open_data(folder)


def test_llama_factory_sharegpt_with_mapped_names(pictures: Path) -> None:
    entry = {
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "shown", "system": "rule"},
        "tags": OPENAI,
    }
    talk = [
        {"role": "user", "content": "<image><image>Same?"},
        {"role": "assistant", "content": "no"},
    ]
    rows = [{"talk": talk, "shown": ["a.png", "b.png"], "rule": "Be brief."}]
    data = factory(pictures, entry, rows)
    assert (data.name, data.kind, data.format) == ("own", None, "LLaMA-Factory sharegpt")
    assert data.rows[0]["conversations"] == [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image><image>Same?"},
        {"from": "gpt", "value": "no"},
    ]
    assert row_images(data.rows[0], data.image_root) == [pictures / "a.png", pictures / "b.png"]
    rows[0]["talk"] = [{"role": "system", "content": "Its own."}, *talk]
    data = factory(pictures, entry, rows)
    assert [turn["value"] for turn in data.rows[0]["conversations"][:2]] == [
        "Its own.",
        "<image><image>Same?",
    ]


def test_llama_factory_alpaca_joins_instruction_and_input(pictures: Path) -> None:
    rows = [
        {
            "instruction": "<image>Describe.",
            "input": "In one word.",
            "output": "red",
            "history": [["Hello?", "Yes."]],
            "images": ["a.png"],
        },
        {"instruction": "No picture?", "input": "", "output": "no"},
    ]
    data = factory(pictures, {"columns": {"history": "history", "images": "images"}}, rows)
    assert said(data.rows[0]) == ["Hello?", "Yes.", "<image>Describe.\nIn one word.", "red"]
    assert said(data.rows[1]) == ["No picture?", "no"]
    assert "image" not in data.rows[1]
    rows[1]["history"] = 3
    data = factory(pictures, {"columns": {"history": "history", "images": "images"}}, rows)
    assert "own.json row 1: history: expected a list" in problem(data.rows, 1)


def test_llama_factory_openai_messages_and_other_files(pictures: Path) -> None:
    talk = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a"}]
    row = {"messages": talk, "images": ["a.png"]}
    lines = json.dumps(row) + "\n"
    data = factory(pictures, {"formatting": "openai"}, lines, "own.jsonl")
    assert said(data.rows[0]) == ["<image>What?", "a"]

    import pyarrow as pa
    import pyarrow.parquet as pq

    (pictures / "shards").mkdir()
    for k in range(2):
        pq.write_table(pa.Table.from_pylist([row]), pictures / "shards" / f"{k}.parquet")
    entry = {"file_name": "shards", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    write(pictures / "dataset_info.json", {"own": entry | {"tags": OPENAI}})
    assert [said(row)[1] for row in open_data(pictures).rows] == ["a", "a"]

    table = 'instruction,output,images\n<image>What?,red,"[""a.png""]"\n<image>What?,red,\n'
    data = factory(pictures, {"columns": {"images": "images"}}, table, "own.csv")
    assert data.rows[0]["image"] == "a.png"
    assert "own.csv line 3 (id '1'): conversations: 1 <image> for 0" in problem(data.rows, 1)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (
            {"conversations": [{"from": "user", "value": "x"}]},
            "unknown role 'user'; tags name human",
        ),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "turns with tools"),
        ({"conversations": "x"}, "expected a list of messages"),
        ({"conversations": [{"from": {}, "value": "x"}]}, "unknown role {}"),
        ({"conversations": TURNS}, "1 <image> for 0 picture(s)"),
        ({"conversations": TURNS, "images": ["a.png", "b.png"]}, "1 <image> for 2 picture(s)"),
        ({"conversations": [TURNS[0], {"from": "gpt"}]}, "expected text, found None"),
        ({"conversations": TURNS, "images": [{"a": "b"}]}, "images: expected a path or a picture"),
        (["x"], "expected an object"),
    ],
)
def test_a_bad_llama_factory_row(pictures: Path, row: Any, part: str) -> None:
    good = {"conversations": TURNS, "images": ["a.png"]}
    data = factory(pictures, {"formatting": "sharegpt"}, [good, row, good])
    message = problem(data.rows, 1)
    assert message.startswith(f"{pictures / 'own.json'} row 1")
    assert part in message
    assert said(data.rows[2])[1] == "a star"


def test_a_bad_first_llama_factory_row_leaves_the_others(pictures: Path) -> None:
    good = json.dumps({"conversations": TURNS, "images": ["a.png"], "id": None})
    data = factory(pictures, {"formatting": "sharegpt"}, f"{{broken\n{good}\n", "own.jsonl")
    assert problem(data.rows, 0).startswith(f"{pictures / 'own.jsonl'} line 1: not valid JSON")
    assert (data.rows[1]["id"], said(data.rows[1])[1]) == ("1", "a star")


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"formatting": "chatml"}, "expected alpaca, sharegpt or openai, found 'chatml'"),
        ({"ranking": True}, "preference pairs are not read"),
        ({"columns": {"videos": "videos"}}, "videos: only texts and pictures are read"),
        ({"columns": {"tools": "tools"}}, "tools: only texts and pictures are read"),
        ({"columns": {"respons": "reply"}}, "columns: unknown respons; known: history"),
        ({"formatting": "sharegpt", "tags": {"user": "human"}}, "tags: unknown user"),
        ({"file_name": "gone.json"}, "gone.json: no such file"),
        ({"columns": {"response": "reply"}}, "expected the column 'reply' (alpaca); found: x"),
        ({"columns": ["images"]}, "columns: expected an object of names"),
    ],
)
def test_a_bad_llama_factory_entry(pictures: Path, entry: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as error:
        factory(pictures, entry, [{"x": 1}])
    assert part in str(error.value)


def test_llama_factory_names(pictures: Path) -> None:
    good = [{"conversations": TURNS, "images": ["a.png"]}]
    write(pictures / "own.json", good)
    entry = {"file_name": "own.json", "formatting": "sharegpt"}
    info = {"first": entry, "second": {"hf_hub_url": "someone/somewhere"}}
    path = write(pictures / "dataset_info.json", info)
    assert "dataset_info.json:NAME; there are: first, second" in refusal(pictures)
    assert "no data set 'third'" in refusal(path, name="third")
    assert "hf_hub_url 'someone/somewhere'; download it" in refusal(path, name="second")
    assert len(open_data(path, name="first").rows) == 1
    moved = open_data(path, image_root=pictures / "elsewhere", name="first")
    assert moved.image_root == pictures / "elsewhere"


# Mixtures


def make_set(folder: Path, name: str, rows: int, kind: str = "text") -> Data:
    (folder / name).mkdir()
    Image.new("RGB", (4, 4)).save(folder / name / "p.png")
    lines = "".join(f"p.png,{name} {i}\n" for i in range(rows))
    header = "image,question,answer\n" if kind == "answer" else "image,text\n"
    lines = lines.replace("p.png,", "p.png,What?,") if kind == "answer" else lines
    return open_data(write(folder / name / "rows.csv", header + lines))


def test_a_mixture_has_the_weighted_shares_and_every_picture(tmp_path: Path) -> None:
    sets = [make_set(tmp_path, "large", 90), make_set(tmp_path, "small", 10)]
    mixed = mix_data(sets, [1, 1], seed=3)
    texts = [said(row)[1] for row in mixed.rows]
    small = [text for text in texts if text.startswith("small")]
    large = [text for text in texts if text.startswith("large")]
    assert (len(texts), len(small), len(large)) == (100, 50, 50)
    assert {text: small.count(text) for text in small} == {f"small {i}": 5 for i in range(10)}
    assert len(set(large)) == 50
    assert texts[:50] != sorted(texts[:50])
    assert all(p.is_file() for row in mixed.rows for p in row_images(row, mixed.image_root))
    assert {row["id"].split("/")[0] for row in mixed.rows} == {"rows"}
    again = mix_data(sets, [0.5, 0.5], seed=3)
    assert [row["id"] for row in again.rows] == [row["id"] for row in mixed.rows]
    other = mix_data(sets, [1, 1], seed=4)
    assert [said(row)[1] for row in other.rows] != texts
    assert "50 of rows" in mixed.format
    assert mixed.kind == "caption"


def test_a_mixture_without_weights_is_every_row_once(tmp_path: Path) -> None:
    sets = [make_set(tmp_path, "one", 3), make_set(tmp_path, "two", 2, kind="answer")]
    mixed = mix_data(sets)
    assert sorted(said(row)[1] for row in mixed.rows) == [
        "one 0",
        "one 1",
        "one 2",
        "two 0",
        "two 1",
    ]
    assert mixed.kind is None


def test_a_mixture_names_bad_rows_by_their_own_file(tmp_path: Path) -> None:
    sets = [make_set(tmp_path, "one", 1), make_set(tmp_path, "two", 1)]
    path = write(tmp_path / "two" / "rows.csv", "image,text\n../../secret.png,x\n")
    mixed = mix_data([sets[0], open_data(path)])
    bad = next(i for i in range(2) if mixed.rows.where(i).startswith(str(path)))
    assert "leads outside" in problem(mixed.rows, bad)
    assert said(mixed.rows[1 - bad])[1] == "one 0"
    for weights in ([1], [1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(UserError, match="weights"):
            mix_data(sets, weights)


def test_a_set_of_several_is_named_behind_the_path(tmp_path):
    """PATH:NAME, as --data takes it; a path that holds a colon of its own is a path."""
    rows = [{"instruction": "What?", "output": "one"}]
    for name in ("first", "second"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({n: {"file_name": f"{n}.json"} for n in ("first", "second")}))
    with pytest.raises(
        UserError, match=r"several data sets, give one as .*:NAME; there are: first"
    ):
        open_data(info)
    assert open_data(f"{info}:second").name == "second"
    odd = tmp_path / "odd:name.json"
    odd.write_text(json.dumps([{"id": "1", "conversations": [
        {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}]))  # fmt: skip
    assert len(open_data(odd).rows) == 1
