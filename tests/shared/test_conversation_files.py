"""Rows and files of conversations: spellings, problems by field, lazy reading, `--validate`."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.conversation_check import language_of, main
from shared.conversation_files import (
    RowError,
    normalise_row,
    open_conversations,
    row_images,
    row_turns,
)
from shared.images import ImageError, header_size, open_image
from shared.options import UserError

ROWS = [
    [("human", "<image>\nWhat color is the circle?"), ("gpt", "The circle is red.")],
    [("human", "Hi"), ("gpt", "Yes"), ("human", "How many?"), ("gpt", "There are two.")],
    [("system", "Be brief."), ("human", "Hi <image>"), ("gpt", ""), ("human", "b"), ("gpt", "c")],
    [("human", "圆是什么颜色？\n<image>"), ("gpt", "红色。")],
    [("human", "Who?"), ("gpt", "The user asks the ASSISTANT: a star. USER: no")],
]


def row_of(turns: list[tuple[str, str]]) -> dict[str, Any]:
    n_images = sum(text.count("<image>") for _, text in turns)
    images = {"image": [f"{i}.png" for i in range(n_images)]} if n_images else {}
    conversations = [{"from": role, "value": text} for role, text in turns]
    return {"id": "r", **images, "conversations": conversations}


# Rows


def test_spellings_of_a_row_are_one_row() -> None:
    llava = {
        "id": 1,
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Yes"},
        ],
    }  # fmt: skip
    openai = {
        "id": 1,
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nHi"}]},
            {"role": "assistant", "content": "Yes"},
        ],
    }
    minicpm = {
        "id": 1,
        "image": {"<image_00>": "a.png"},
        "conversations": [
            {"role": "user", "content": "<image_00>\nHi"}, {"role": "assistant", "content": "Yes"},
        ],
    }  # fmt: skip
    course = {
        "id": 1,
        "image": "a.png",
        "conversations": [
            {"role": "human", "value": "<image>\nHi"}, {"role": "gpt", "value": "Yes"},
        ],
    }  # fmt: skip
    assert [normalise_row(row) for row in (llava, openai, minicpm, course)] == [llava] * 4
    assert row_turns(openai) == [("human", "<image>\nHi"), ("gpt", "Yes")]


def as_parts(*urls: Any, text: str = "Hi") -> dict[str, Any]:
    """A row of OpenAI's messages with image_url parts before the text."""
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    content = [*parts, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant",
                                                               "content": "Yes"}]}  # fmt: skip


def data_url(color: str = "red", size: tuple[int, int] = (4, 3)) -> str:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def test_image_url_parts_name_files_below_the_image_root(tmp_path: Path) -> None:
    file = tmp_path / "a b.png"
    row = as_parts({"url": "x/1.png"}, {"url": file.as_uri(), "detail": "low"}, "y.png")
    normal = normalise_row(row)
    assert normal["image"] == ["x/1.png", str(file), "y.png"]
    assert normal["conversations"][0]["value"] == "<image><image><image>Hi"
    assert normalise_row(normal) == normal
    assert row_images(row, tmp_path) == [tmp_path / "x" / "1.png", file, tmp_path / "y.png"]
    assert row_images(as_parts({"url": f"file://localhost{tmp_path}/z.png"}), tmp_path) == [
        tmp_path / "z.png"
    ]
    with pytest.raises(RowError, match="leads outside"):
        row_images(as_parts({"url": "file:///etc/passwd"}), tmp_path)


def test_image_url_parts_stay_between_their_words(tmp_path: Path) -> None:
    row = as_parts("a.png", text=" or ")
    row["messages"][0]["content"] += [{"type": "image_url", "image_url": {"url": "b.png"}}]
    assert row_turns(row)[0] == ("human", "<image> or <image>")
    assert row_images(row, tmp_path) == [tmp_path / "a.png", tmp_path / "b.png"]


def test_a_picture_inside_the_row_is_decoded_when_it_is_opened(tmp_path: Path) -> None:
    red, broken = data_url(), "data:image/png;base64,!!!!"
    for row in (as_parts({"url": red}), normalise_row(as_parts({"url": red}))):
        (picture,) = row_images(row, tmp_path)
        assert header_size(picture) == (4, 3)
        assert open_image(picture).getpixel((0, 0)) == (255, 0, 0)
    (same,), (other,) = row_images(row, tmp_path), row_images(as_parts(data_url("blue")), tmp_path)
    assert (str(picture), picture) == (str(same), same)
    assert str(picture) != str(other)
    assert re.fullmatch(r"inline-[0-9a-f]{12}\.png", str(picture))
    (picture,) = row_images(as_parts(broken), tmp_path)  # nothing is decoded here
    with pytest.raises(ImageError, match=r"inline-.*png: broken picture"):
        open_image(picture)
    (page,) = row_images(as_parts("data:image/png;base64," + "PGh0bWw+"), tmp_path)
    with pytest.raises(ImageError, match=r"inline-.*png: not a picture"):
        header_size(page)


def test_validate_checks_pictures_inside_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [as_parts(data_url()), as_parts("data:image/png;base64,QQ==")]
    file = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(SystemExit):
        main([str(file), "--validate"])
    said = capsys.readouterr().out
    assert "good rows 1" in said
    assert "a.jsonl line 2: image: inline-" in said


def test_half_a_character_is_a_bad_row():
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "\ud83d"}]}
    with pytest.raises(RowError, match=r"conversations\[1\].value: \\ud83d, half of a character"):
        row_turns(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (as_parts({"url": "https://example.org/a.png"}), "is an address; download it"),
        (as_parts({"url": ""}), r"messages\[0\].content: image_url is"),
        (as_parts({}), r"messages\[0\].content: image_url is"),
        (as_parts("data:text/html;base64,AAAA"), r"image_url\[0\]: .* only data:image"),
        (as_parts("data:image/svg+xml,<svg/>"), r"image_url\[0\]: .* only data:image"),
        (as_parts("data:image/png;base64," + "A" * (33 << 20)),
         r"image_url\[0\]: a picture of 33 MiB inside the row, at most 32"),
        ({**as_parts("a.png"), "image": "b.png"}, "image: pictures here and in image_url parts"),
    ],
    ids=["http", "empty", "none", "no picture", "no base64", "too large", "twice"],
)  # fmt: skip
def test_image_url_that_is_not_read_says_why(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=message):
        row_images(row, tmp_path)


def test_numbered_pictures_come_in_the_order_of_their_tags() -> None:
    row = {
        "image": {"<image_00>": "a.png", "<image_01>": "b.png"},
        "conversations": [
            {"from": "human", "value": "<image_01> or <image_00>?"}, {"from": "gpt", "value": "b"},
        ],
    }  # fmt: skip
    assert normalise_row(row)["image"] == ["b.png", "a.png"]
    row["conversations"] = [
        {"from": "human", "value": "<image_01>?"},
        {"from": "gpt", "value": "b"},
    ]
    with pytest.raises(RowError, match=r"image: the text shows <image_01>.*<image_00>, <image_01>"):
        normalise_row(row)


HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "row: expected an object, found a list"),
        ({"id": 1}, "conversations: missing"),
        ({"conversations": []}, "conversations: empty"),
        ({"conversations": "Hi"}, "conversations: expected a list of turns, found text"),
        ({"conversations": ["Hi", "Yes"]}, r"conversations\[0\]: expected an object"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, r"\[0\].from: unknown role 'bot'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role: unknown role"),
        ({"conversations": [{"value": "x"}]}, r"conversations\[0\].from: missing"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, r"conversations\[1\].value: missing"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": 3}]}, r"\[1\].value: expected text"),
        ({"conversations": [HUMAN, HUMAN, GPT]}, r"conversations\[1\].from: 'human' where 'gpt'"),
        ({"conversations": [GPT]}, r"conversations\[0\].from: 'gpt' where 'human'"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "only a system turn"),
        ({"image": "a.png", "conversations": [HUMAN, GPT]}, "0 <image> for 1 picture"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, GPT]},
            "1 <image> for 0 picture",
        ),
        (
            {"image": "a", "conversations": [HUMAN, {"from": "gpt", "value": "<image>"}]},
            r"conversations\[1\]: <image> in a gpt turn",
        ),
        ({"image": ["a", 3], "conversations": [HUMAN, GPT]}, r"image\[1\]: expected a path"),
        (
            {"image": {"bytes": b"x", "path": "a"}, "conversations": [HUMAN, GPT]},
            "image: a dict maps tags .* pixels inside the file",
        ),
    ],
)
def test_malformed_row_is_refused_with_its_field(row: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        normalise_row(row)


def test_pictures_outside_the_image_root_are_refused(tmp_path: Path) -> None:
    def paths(image: str) -> list[Path]:
        turns = [{"from": "human", "value": "<image>"}, GPT]
        return row_images({"image": image, "conversations": turns}, tmp_path / "pictures")

    assert paths("a/../b.png") == [tmp_path / "pictures" / "b.png"]
    assert paths(str(tmp_path / "pictures" / "c.png")) == [tmp_path / "pictures" / "c.png"]
    for bad in (
        "../secret.png",
        "a/../../secret.png",
        "/etc/passwd",
        str(tmp_path / "pictures2/x"),
    ):
        with pytest.raises(
            RowError, match=r"leads outside .*pictures; rows may only .* below that folder"
        ):
            paths(bad)
    with pytest.raises(RowError, match="is an address; download it"):
        paths("https://example.org/a.png")


# Files


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_three_formats_give_the_same_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = [row_of(turns) | {"id": str(i)} for i, turns in enumerate(ROWS * 3)]
    lines = open_conversations(write_lines(tmp_path / "a.jsonl", rows))
    assert capsys.readouterr() == ("", "")
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    open_conversations(tmp_path / "a.json")
    assert capsys.readouterr() == ("", "")  # so small a file may be loaded whole
    monkeypatch.setattr("shared.conversation_files.LARGE_FILE", 1)
    array = open_conversations(tmp_path / "a.json")
    said = capsys.readouterr()
    assert f"a JSON array of {len(rows)} rows, loaded whole" in said.err
    assert said.out == ""  # a script's JSON lines go there
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    parquet = open_conversations(tmp_path / "a.parquet")
    expected = [normalise_row(row) for row in rows]
    for read in (lines, array, parquet):
        assert len(read) == len(rows)
        assert list(read) == expected
        assert [read[i] for i in (7, 0, 14, -1)] == [expected[i] for i in (7, 0, 14, -1)]
        with pytest.raises(IndexError):
            read[len(rows)]


def test_lines_are_found_across_blocks_blanks_and_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shared.conversation_files as files

    row = json.dumps({"conversations": [HUMAN, GPT]}).encode()
    text = b"\xef\xbb\xbf" + row + b"\r\n\r\n\n" + row + b"\n" + row + b"\n\n\n" + row
    path = tmp_path / "a.jsonl"
    path.write_bytes(text)
    for block in (1, 2, 7, len(row), len(row) + 1, 1 << 22):
        monkeypatch.setattr(files, "BLOCK", block)
        rows = open_conversations(path)
        assert len(list(rows)) == 4
        assert [rows.where(i).rpartition(" ")[2] for i in range(4)] == ["1", "4", "5", "8"]


def test_opening_a_long_file_parses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 lines: indexed without parsing one; reading three rows parses three."""
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for i in range(200_000):
            turns = '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]'
            file.write(f'{{"id": {i}, "conversations": {turns}}}\n')
    parsed = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda *a, **k: parsed.append(1) or real(*a, **k))
    rows = open_conversations(path)
    assert len(rows) == 200_000
    assert parsed == []
    assert [rows[i]["id"] for i in (0, 123_456, 199_999)] == [0, 123_456, 199_999]
    assert len(parsed) == 3
    assert rows.starts.itemsize * len(rows.starts) == 8 * 200_000  # all that stays in memory


def test_parquet_reads_the_row_groups_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pa.Table.from_pylist([{"id": i, "conversations": [HUMAN, GPT]} for i in range(100)])
    pq.write_table(table, path, row_group_size=10)
    read = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, g, **k: read.append(g) or real(self, g, **k)
    )
    rows = open_conversations(path)
    assert len(rows) == 100
    assert read == []
    assert [rows[i]["id"] for i in (55, 57, 3, 99)] == [55, 57, 3, 99]
    assert read == [5, 0, 9]


def test_broken_json_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"id": "x", "conversations": [HUMAN, GPT]})
    bad_role = json.dumps({"id": "y", "conversations": [{"from": "bot", "value": ""}]})
    path.write_bytes(f"{good}\n\n{good[:-5]}\n{bad_role}\n".encode() + b'{"id": "\xff"}\n')
    rows = open_conversations(path)
    assert rows[0]["id"] == "x"
    with pytest.raises(UserError, match=r"a\.jsonl line 3: not valid JSON \(column \d+\)"):
        rows[1]
    with pytest.raises(
        UserError, match=r"a\.jsonl line 4 \(id 'y'\): conversations\[0\].from: unk"
    ):
        rows[2]
    with pytest.raises(UserError, match=r"a\.jsonl line 5: not UTF-8"):
        rows[3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{\n "rows": []\n}', "one JSON object; expected a list of rows"),
        ("a.json", "[{]", r"a\.json: not valid JSON \(line 1\)"),
        ("a.json", "[]", "no rows in it"),
        ("a.jsonl", "", "no rows in it"),
        ("a.parquet", "PAR1 no", "not a Parquet file"),
    ],
)
def test_file_of_another_kind_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_conversations(tmp_path / name)
    with pytest.raises(UserError, match=r"missing\.json: cannot be read: No such file"):
        open_conversations(tmp_path / "missing.json")


# Checking


def test_validate_counts_and_lists_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        row_of(ROWS[0]) | {"image": "a.png"},
        row_of(ROWS[3]) | {"image": ["a.png"]},
        row_of(ROWS[1]),
        row_of([("human", "<image> or <image>?"), ("gpt", "no")]) | {"image": ["a.png", "a.png"]},
    ]
    path = write_lines(tmp_path / "good.jsonl", rows)
    main([str(path), "--validate"])
    out = capsys.readouterr().out
    assert "4 rows\n" in out
    assert "good rows 4: 10 turns, 4 pictures; 3 rows with pictures (1 with several), 1 text" in out
    assert "languages: latin 3, zh 1" in out
    bad = [
        row_of(ROWS[0]) | {"id": "m", "image": "missing.png"},
        row_of(ROWS[0]) | {"id": "b", "image": "broken.png"},
        row_of(ROWS[0]) | {"id": "o", "image": "../a.png"},
        {"id": "e", "conversations": []},
    ]
    path = write_lines(tmp_path / "bad.jsonl", rows + bad * 8)
    with pytest.raises(SystemExit) as stopped:
        main([str(path), "--image_root", str(tmp_path), "--validate"])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert "bad rows 32" in out
    assert out.count("\n  - ") == 20
    assert "and 12 more" in out
    where = f"{path} line"
    assert f"{where} 5: image: {tmp_path / 'missing.png'}: no such picture" in out
    assert f"{where} 6: image: {tmp_path / 'broken.png'}: not a picture" in out
    assert f"{where} 7: image: ../a.png leads outside" in out
    assert f"{where} 8 (id 'e'): conversations: empty" in out


def test_without_validate_only_the_first_rows_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"conversations": [HUMAN, GPT]}] * 1000 + [{"conversations": []}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    main([str(path)])
    assert "1001 rows, the first 1000 checked (all with --validate)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(path), "--validate"])


def test_language_of() -> None:
    assert language_of("圆是什么颜色？ red") == "zh"
    assert language_of("What color is the 圆?") == "latin"
    assert language_of("まるは何色") == "other"
    assert language_of("1 + 2") == "other"


def test_command_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"conversations": []}])
    command = [sys.executable, "-m", "shared.conversations", str(path), "--validate"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "conversations: empty" in done.stdout
    assert "Warning" not in done.stderr  # nothing imports the module before it runs
    done = subprocess.run([*command[:3], str(tmp_path / "no")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
