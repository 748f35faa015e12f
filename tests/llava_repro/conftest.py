"""Conversation files with their pictures; tiny LLaVAs are in `tests/conftest.py`."""

from __future__ import annotations

from pathlib import Path

import pytest


def write_conversations(folder: Path) -> Path:
    """40 rows: most with a picture, some text alone, some with two pictures or two rounds."""
    import json

    from PIL import Image

    colors = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(40):
        color, other = list(colors)[i % 3], list(colors)[(i // 3) % 3]
        for k, name in enumerate((color, other)):
            ground = Image.new("RGB", (20 + i % 5, 16), colors[name])
            ground.save(folder / "images" / f"{i}_{k}.png")
        row = {"id": f"sample {i}"}
        if i % 5 == 4:
            turns = [("human", "say hello"), ("gpt", "hello . " * (1 + i % 4))]
        elif i % 7 == 6:
            row["image"] = [f"{i}_0.png", f"{i}_1.png"]
            turns = [("human", "<image>\n<image>\nwhat color is the shape ?"),
                     ("gpt", f"{color} and {other}")]  # fmt: skip
        else:
            row["image"] = f"{i}_0.png"
            turns = [("human", "<image>\nwhat color is the shape ?"), ("gpt", color)]
            if i % 2:
                turns += [("human", "is the shape red ?"), ("gpt", "yes" if i % 3 == 0 else "no")]
        row["conversations"] = [{"from": who, "value": text} for who, text in turns]
        rows.append(row)
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """chat.jsonl with its pictures beside it in images/, to be spoiled at will."""
    return write_conversations(tmp_path / "data")


@pytest.fixture(scope="session")
def shared_conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same to read from."""
    return write_conversations(tmp_path_factory.mktemp("conversations") / "data")
