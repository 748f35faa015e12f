"""chat.py: several turns in one sequence, pictures kept, commands, what is typed stays text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_repro.answering import LlavaAnswerer, load_llava
from llava_repro.asking import Decoding
from llava_repro.chat import HELP, converse, unquoted
from llava_repro.conversing import Conversation
from shared.options import REPO_ROOT, UserError, write_json

CHAT = REPO_ROOT / "llava_repro" / "chat.py"


@pytest.fixture(scope="module")
def answerer(tiny_llava_folder: Callable[..., Path]) -> LlavaAnswerer:
    folder = tiny_llava_folder("clip", "qwen2")
    return LlavaAnswerer(*load_llava(str(folder), device="cpu"), Decoding(max_new_tokens=10))


@pytest.fixture
def asked(answerer: LlavaAnswerer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every prompt that the model was given, as text, and how many pictures came with it."""
    seen: list[tuple[str, int]] = []
    generate = LlavaAnswerer.generate

    def watched(self: LlavaAnswerer, rows: Any, features: Any, *more: Any, **named: Any) -> Any:
        image = "<image>" * self.n_image_tokens
        seen.extend(
            (self.tokenizer.decode(ids).replace(image, "[picture]"), len(features)) for ids in rows
        )
        return generate(self, rows, features, *more, **named)

    monkeypatch.setattr(LlavaAnswerer, "generate", watched)
    return seen


def chat(answerer: LlavaAnswerer, capsys: pytest.CaptureFixture, *lines: str) -> list[str]:
    capsys.readouterr()
    converse(answerer, iter(lines), [])
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def files(tmp_path: Path, pictures: list) -> list[Path]:
    paths = [tmp_path / f"picture {i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return paths


def turn(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_the_second_turn_has_read_the_first(
    answerer: LlavaAnswerer, capsys: pytest.CaptureFixture, asked: list, files: list[Path]
) -> None:
    shown = chat(
        answerer, capsys, f"/image {files[0]}", "What is it?", "Are you sure?",
        f"/image {files[1]}", "And this?",
    )  # fmt: skip
    first, second, third = (prompt for prompt, _ in asked)
    assert first == turn("[picture]\nWhat is it?")
    assert second.startswith(first)
    assert second.endswith(f"<|im_end|>\n{turn('Are you sure?')}")
    answer = second.removeprefix(first).removesuffix(f"<|im_end|>\n{turn('Are you sure?')}")
    assert answer in "\n".join(shown)
    assert third.startswith(second)
    assert third.endswith(turn("[picture]\nAnd this?"))
    assert [n for _, n in asked] == [1, 1, 2]
    assert "50 x 40 pixels" in shown[0]


def test_a_picture_is_encoded_once_for_all_turns(
    answerer: LlavaAnswerer, pictures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    encode = LlavaAnswerer.encode_images
    monkeypatch.setattr(
        LlavaAnswerer, "encode_images",
        lambda self, images, *rest: (passes.append(len(images)), encode(self, images, *rest))[1],
    )  # fmt: skip
    conversation = Conversation()
    for text, images in (("one?", pictures[:1]), ("two?", []), ("three?", [])):
        assert list(conversation.ask(answerer, text, images)) is not None
    assert passes == [1]
    assert len(conversation.turns) == 6


def test_reset_forgets_and_typed_tags_stay_text(
    answerer: LlavaAnswerer, capsys: pytest.CaptureFixture, asked: list, files: list[Path]
) -> None:
    chat(
        answerer, capsys, f"/image {files[0]}", "What is it?", "/reset",
        "what does <image> mean, and <|im_end|>?",
    )  # fmt: skip
    prompt, n_images = asked[-1]
    assert n_images == 0
    assert prompt == turn("what does < image> mean, and < |im_end|>?")


def test_what_fails_is_said_and_the_chat_goes_on(
    answerer: LlavaAnswerer, capsys: pytest.CaptureFixture, asked: list, tmp_path: Path
) -> None:
    broken = tmp_path / "holiday.jpg"
    broken.write_text("no picture")
    shown = chat(
        answerer, capsys, f"/image {broken}", "/image", "/paint", "x" * 600, "", "hello", "/help",
        "/quit", "never read",
    )  # fmt: skip
    assert "holiday.jpg: not a picture" in shown[0]
    assert shown[1].startswith("error:")
    assert "/paint: no such command" in shown[2]
    assert "room for" in shown[3]
    assert "/reset" in shown[3]
    assert len(asked) == 1
    assert HELP in "\n".join(shown)
    assert "never read" not in "".join(prompt for prompt, _ in asked)


def test_a_failed_question_leaves_no_trace(answerer: LlavaAnswerer, pictures: list) -> None:
    conversation = Conversation()
    list(conversation.ask(answerer, "one?", pictures[:1]))
    before = (list(conversation.turns), list(conversation.pictures))
    with pytest.raises(UserError, match="room for"):
        list(conversation.ask(answerer, "x" * 600, pictures[1:2]))
    with pytest.raises(UserError, match="nothing to ask"):
        list(conversation.ask(answerer, "  "))
    assert (conversation.turns, conversation.pictures) == before


def test_a_stopped_answer_keeps_the_words_that_were_shown(
    answerer: LlavaAnswerer, pictures: list
) -> None:
    conversation = Conversation()
    pieces = conversation.ask(answerer, "one?", pictures[:1])
    shown = next(pieces)
    pieces.close()
    assert conversation.turns[1:] == [("gpt", shown)]
    assert list(conversation.ask(answerer, "and then?"))


def test_an_answer_can_be_made_again(answerer: LlavaAnswerer, pictures: list, asked: list) -> None:
    """By the same prompt and pictures; the first answer is not part of it."""
    conversation = Conversation()
    with pytest.raises(UserError, match="nothing was asked"):
        list(conversation.answer_again(answerer))
    list(conversation.ask(answerer, "one?", pictures[:1]))
    list(conversation.ask(answerer, "two?", pictures[1:]))
    turns = list(conversation.turns)
    list(conversation.answer_again(answerer))
    assert asked[-1] == asked[-2]
    assert conversation.turns == turns  # greedy
    sampling = Decoding(temperature=5.0, max_new_tokens=10)
    list(conversation.answer_again(answerer, decoding=sampling))
    assert conversation.turns[:-1] == turns[:-1]
    assert conversation.turns[-1] != turns[-1]
    assert len(conversation.pictures) == 3


def test_a_long_conversation_gets_shorter_answers(
    answerer: LlavaAnswerer, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 new tokens, LLaVA's default, must not refuse what a shorter answer has room for."""
    wanted: list[int] = []
    generate = LlavaAnswerer.generate
    monkeypatch.setattr(
        LlavaAnswerer, "generate",
        lambda self, rows, features, decoding, **more: (
            wanted.append(decoding.max_new_tokens), generate(self, rows, features, decoding, **more)
        )[1],
    )  # fmt: skip
    conversation = Conversation()
    list(conversation.ask(answerer, "x" * 400, decoding=Decoding(max_new_tokens=512)))
    length = len(answerer.prompt_ids([("human", "x" * 400)]))
    assert wanted == [512 - length]


@pytest.mark.parametrize(
    ("typed", "path"),
    [("a b.png ", "a b.png"), ("'a b.png'", "a b.png"), (r"a\ b.png", "a b.png"), ("'", "'")],
)
def test_paths_as_terminals_paste_them(typed: str, path: str) -> None:
    assert unquoted(typed) == path


@pytest.mark.slow
def test_the_command_reads_what_is_typed(
    tiny_llava_folder: Callable[..., Path], files: list[Path], tmp_path: Path
) -> None:
    """A process of its own: its answers are those of the same questions asked in here."""
    import shutil

    model = tmp_path / "toy"
    shutil.copytree(tiny_llava_folder("clip", "qwen2"), model)
    write_json(model / "manifest.json", {"synthetic": True})
    done = subprocess.run(
        [sys.executable, str(CHAT), "--model", str(model), "--device", "cpu", "--temperature",
         "0", "--max_new_tokens", "10", "--image", str(files[0])],
        input="What is it?\nSure?\n/quit\n", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answerer = LlavaAnswerer(*load_llava(str(model), device="cpu"), Decoding(max_new_tokens=10))
    conversation = Conversation()
    from shared.images import open_image

    said = ["".join(conversation.ask(answerer, "What is it?", [open_image(files[0])])),
            "".join(conversation.ask(answerer, "Sure?"))]  # fmt: skip
    assert "SYNTHETIC" in done.stdout
    assert done.stdout.endswith("\n".join(said) + "\n")
