"""The chat page in a browser: streamed answers, a history of each visitor, causes of errors."""

from __future__ import annotations

import json
import os
import re
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from llava_repro.answering import LlavaAnswerer, load_llava
from llava_repro.asking import Decoding
from llava_repro.conversing import Conversation
from llava_repro.demo import DemoOptions, example_rows
from llava_repro.demo_pages import Page, Visitor, asking, explained, open_upload, write_flag
from llava_repro.demo_texts import TEXTS
from shared.images import open_image
from shared.options import REPO_ROOT, UserError, write_json

DEMO = REPO_ROOT / "llava_repro" / "demo.py"
LONG = 120  # tokens, long enough to be watched
# The page with a model that takes its time for each token, as real ones do: the tiny one's whole
# answer is there before a busy browser has drawn its first word.
SLOWLY = """
import runpy, sys, time
from llava_repro.answering import TokenLogProbs
note = TokenLogProbs.__call__
def slowly(self, *given):
    time.sleep(0.04)
    return note(self, *given)
TokenLogProbs.__call__ = slowly
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def fields_of(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, text in TEXTS["en"].items():
        assert fields_of(text) == fields_of(TEXTS["zh"][key]), key


@pytest.fixture(autouse=True)
def uploads_folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that a test hands to the page's functions itself count as uploaded."""
    if not request.node.get_closest_marker("browser"):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def chatty_model(
    tiny_llava_folder: Callable[..., Path], llava_parts: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """A tiny model that says small letters and blanks only and never ends by itself."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(tiny_llava_folder("clip", "qwen2"), folder)
    weights = load_file(folder / "model.safetensors")
    head = weights["language_model.lm_head.weight"]
    tokenizer = llava_parts["tokenizer"]("qwen2")
    letters = tokenizer.convert_tokens_to_ids(["Ġ", *string.ascii_lowercase])
    spoken = head[letters].clone()
    spoken[0] *= 1.6  # more blanks: a stream shows whole words
    head.zero_()
    head[letters] = spoken
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "manifest.json", {"synthetic": True})
    return folder


@pytest.fixture(scope="module")
def answerer(chatty_model: Path) -> LlavaAnswerer:
    loaded = load_llava(str(chatty_model), device="cpu")
    return LlavaAnswerer(*loaded, Decoding(max_new_tokens=LONG))


@pytest.fixture
def picture_files(tmp_path: Path, pictures: list) -> list[Path]:
    files = [tmp_path / f"upload_{i}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    return files


def page_of(answerer: LlavaAnswerer, folder: Path) -> Page:
    return Page(answerer, "tiny", None, True, {}, folder / "flags.jsonl", answerer.decoding)


# Without a browser


def test_an_error_keeps_what_was_typed_and_the_history(
    answerer: LlavaAnswerer, picture_files: list[Path], tmp_path: Path
) -> None:
    visitor, page = Visitor(), page_of(answerer, tmp_path)
    sampling = ("model", 0.0, 1.0, 12)
    *_, last = asking(page, "en")(
        {"text": "one?", "files": [str(picture_files[0])]}, visitor, *sampling
    )
    shown, turns = list(visitor.shown), list(visitor.conversation.turns)
    assert [message["role"] for message in last[0]] == ["user", "user", "assistant"]
    assert last[0][-1]["content"] == turns[1][1]
    text = tmp_path / "holiday.jpg"
    text.write_text("no picture")
    for given, cause in (
        ({"text": "two?", "files": [str(text)]}, "holiday.jpg can&#x27;t be used: not a picture"),
        ({"text": " ", "files": []}, "Write a question"),
        ({"text": "x" * 600, "files": []}, "There is no room for this"),
    ):
        *_, last = asking(page, "en")(given, visitor, *sampling)
        assert cause in last[2]
        assert last[1].value == given or last[1].constructor_args["value"] == given
        assert (visitor.shown, visitor.conversation.turns) == (shown, turns)


def test_causes_are_told_in_the_page_s_language(tmp_path: Path) -> None:
    import torch

    assert "显存不足" in explained("zh", torch.OutOfMemoryError("CUDA out of memory"))
    assert "memory is full" in explained("en", torch.OutOfMemoryError("CUDA out of memory"))
    room = UserError("the prompt has 9 tokens; beside 1 for the answer the model has room for 3")
    assert "清空" in explained("zh", room)
    missing = tmp_path / "gone.png"
    with pytest.raises(UserError, match=r"无法使用 gone\.png"):
        open_upload(str(missing), TEXTS["zh"]["bad_picture"])


def test_a_flag_keeps_the_conversation_and_its_pictures(
    answerer: LlavaAnswerer, picture_files: list[Path], tmp_path: Path
) -> None:
    visitor, page = Visitor(), page_of(answerer, tmp_path / "runs")
    given = {"text": "what is <image>?", "files": [str(file) for file in picture_files[:2]]}
    list(asking(page, "zh")(given, visitor, "pad", 0.0, 1.0, 12))
    for _ in range(2):
        write_flag(page, visitor, {"temperature": 0.0})
    first, second = (json.loads(line) for line in page.flags_file.read_text().splitlines())
    assert first["turns"] == [list(turn) for turn in visitor.conversation.turns]
    assert first["turns"][0][1] == "<image>\n<image>\nwhat is < image>?"
    assert first["pictures"] == second["pictures"]
    kept = [page.flags_file.parent / name for name in first["pictures"]]
    assert [file.read_bytes() for file in kept] == [f.read_bytes() for f in picture_files[:2]]
    assert (first["settings"], first["synthetic"]) == ({"temperature": 0.0}, True)


def test_examples_are_first_questions_about_different_pictures(
    shared_conversations: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in shared_conversations.read_text().splitlines()[:20]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [rows[4], rows[0], rows[0], rows[6]]))
    (one,), (two,) = example_rows(str(path), "en")
    assert one == {"text": "what color is the shape ?", "files": [str(tmp_path / "0_0.png")]}
    assert len(two["files"]) == 2
    rows = [rows[0] | {"language": "zh"}, rows[1] | {"language": "en"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [example_rows(str(path), language)[0][0]["files"] for language in ("zh", "en")]
    assert files == [[str(tmp_path / f"{i}_0.png")] for i in range(2)]


def test_llava_s_own_sampling_is_where_the_page_starts() -> None:
    options = DemoOptions()
    assert options.decoding() == Decoding(temperature=0.2, top_p=0.7, max_new_tokens=512)


@pytest.mark.slow
def test_the_dry_run_tells_address_and_prompt(chatty_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "--model", str(chatty_model), "--dry_run", "--port", "7999",
         "--language", "zh"], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:7999/ in zh" in done.stdout
    assert "<image> x 16" in done.stdout


# In a browser


@pytest.fixture(scope="module")
def demo(chatty_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The demo as a process of its own, greedy; it deletes uploads when it is told to end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uploads = tmp_path_factory.mktemp("uploads")
    flags = uploads.parent / f"runs_{port}" / "flags.jsonl"
    command = [
        sys.executable, "-c", SLOWLY, str(DEMO), "--model", str(chatty_model), "--device", "cpu",
        "--port", str(port), "--temperature", "0", "--max_new_tokens", str(LONG),
        "--flags_file", str(flags),
    ]  # fmt: skip
    environment = os.environ | {"GRADIO_TEMP_DIR": str(uploads), "OMP_NUM_THREADS": "1"}
    log = uploads.parent / f"demo_{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 240
        while "page: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}/", flags=flags)
    finally:
        process.terminate()
        process.wait(30)
    assert [file for file in uploads.rglob("*") if file.is_file() and "upload" in file.name] == []


def open_demo(page: Any, address: str) -> None:
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator("input[type=file]").first.wait_for(state="attached")
    page.locator(".ask textarea").wait_for()


def upload(page: Any, file: Path) -> None:
    with page.expect_response(re.compile("/upload")):
        page.locator("input[type=file]").first.set_input_files(file)
    page.locator(".ask .thumbnail-item").first.wait_for()


def ask(page: Any, question: str, n_answers: int) -> list[str]:
    """All answers on the page, once this one is whole: the field is open again."""
    field = page.locator(".ask textarea")
    field.fill(question)
    field.press("Enter")
    page.locator(".chat [data-testid=bot]").nth(n_answers - 1).wait_for()
    page.locator(".ask textarea:not([disabled])").wait_for()
    return answers(page)


def answers(page: Any) -> list[str]:
    return page.locator(".chat [data-testid=bot] .message-content").all_inner_texts()


def prompt(page: Any) -> str:
    """What the model read last."""
    return page.locator(".prompt").text_content()


def talk(answerer: LlavaAnswerer, *turns: tuple[str, list[Path]]) -> list[str]:
    conversation = Conversation()
    return [
        "".join(conversation.ask(answerer, text, [open_image(f) for f in files]))
        for text, files in turns
    ]


WATCH = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const said = document.querySelectorAll('.chat [data-testid=bot] .message-content');
    if (said.length) window.lengths.push(said[said.length - 1].innerText.length);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


@pytest.mark.browser
@pytest.mark.slow
def test_an_answer_grows_and_the_second_turn_has_read_the_first(
    demo: SimpleNamespace, chromium_page, page_log: dict[str, list[str]],
    answerer: LlavaAnswerer, picture_files: list[Path],
) -> None:  # fmt: skip
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_text("SYNTHETIC A toy model").wait_for()
    page.get_by_text("Runs on the CPU").wait_for()
    page.evaluate(WATCH)
    upload(page, picture_files[0])
    shown = ask(page, "What is it?", 1)
    first, second = talk(answerer, ("What is it?", picture_files[:1]), ("Are you sure?", []))
    assert shown == [first]
    lengths = page.evaluate("window.lengths")
    assert len({n for n in lengths if 0 < n < len(first)}) >= 3, lengths

    assert ask(page, "Are you sure?", 2) == [first, second]
    page.get_by_role("button", name="What the model reads").click()
    page.locator(".prompt").get_by_text("Are you sure?").wait_for()
    read = prompt(page)
    assert f"<image> × 16\nWhat is it?<|im_end|>\n<|im_start|>assistant\n{first}<|im_end|>" in read
    assert read.endswith("user\nAre you sure?<|im_end|>\n<|im_start|>assistant\n")

    foreign = [
        u for u in page_log["requests"] if not u.startswith((demo.address, "data:", "blob:"))
    ]
    assert foreign == []
    assert page_log["errors"] == []
    assert page.locator(".chat button[aria-label=Share]:visible").count() == 0


@pytest.mark.browser
@pytest.mark.slow
def test_errors_show_their_cause_and_the_page_goes_on(
    demo: SimpleNamespace, chromium_page, answerer: LlavaAnswerer, picture_files: list[Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    page = chromium_page
    open_demo(page, demo.address)
    alert = page.locator("[role=alert]:visible")
    text = tmp_path / "holiday.jpg"
    text.write_text("this is no picture")
    with page.expect_response(re.compile("/upload")):
        page.locator("input[type=file]").first.set_input_files(text)
    page.locator(".ask textarea").fill("What is it?")
    page.locator(".ask textarea").press("Enter")
    alert.get_by_text("holiday.jpg can't be used: not a picture").wait_for()
    assert page.locator(".ask textarea").input_value() == "What is it?"
    assert page.locator(".chat [data-testid=bot]").count() == 0

    open_demo(page, demo.address)
    page.locator(".ask textarea").fill("x" * 600)
    page.locator(".ask textarea").press("Enter")
    alert.get_by_text("There is no room for this: the prompt has").wait_for()
    page.get_by_role("button", name="Regenerate").click()
    alert.get_by_text("Nothing was asked yet").wait_for()
    page.get_by_role("button", name="Flag").click()
    alert.get_by_text("no conversation to flag").wait_for()
    assert ask(page, "hello", 1) == talk(answerer, ("hello", []))
    assert alert.count() == 0


@pytest.mark.browser
@pytest.mark.slow
def test_stop_regenerate_clear_flag(
    demo: SimpleNamespace, chromium_page, answerer: LlavaAnswerer, picture_files: list[Path]
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    (whole,) = talk(answerer, ("What is it?", picture_files[:1]))
    upload(page, picture_files[0])
    field = page.locator(".ask textarea")
    field.fill("What is it?")
    field.press("Enter")
    page.locator(".chat [data-testid=bot]").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped; the conversation goes on").wait_for()
    (stopped,) = answers(page)
    assert 0 < len(stopped) < len(whole)
    assert whole.startswith(stopped)

    page.get_by_role("button", name="Regenerate").click()
    page.get_by_text("reached the token limit").wait_for()
    assert answers(page) == [whole]

    page.get_by_role("button", name="Flag").click()
    page.get_by_text("Kept in").wait_for()
    record = json.loads(demo.flags.read_text().splitlines()[-1])
    assert record["turns"] == [["human", "<image>\nWhat is it?"], ["gpt", whole]]
    assert (demo.flags.parent / record["pictures"][0]).read_bytes() == picture_files[0].read_bytes()

    for name in ("✕ Clear", "Clear"):  # ours, and the chat's own
        # the chat empties itself at once; the visitor's history when the server has answered
        with page.expect_response(lambda response: response.request.method == "POST"):
            page.get_by_role("button", name=name, exact=True).click()
        page.locator(".chat [data-testid=bot]").first.wait_for(state="detached")
        page.locator(".said p").wait_for(state="detached")
        assert ask(page, "And <image>?", 1) == talk(answerer, ("And <image>?", []))
        assert page.locator(".chat [data-testid=user]").inner_text() == "And <image>?"


@pytest.mark.browser
@pytest.mark.slow
def test_two_visitors_at_once_have_each_their_own_history(
    demo: SimpleNamespace, chromium_page, answerer: LlavaAnswerer, picture_files: list[Path]
) -> None:
    other = chromium_page.context.browser.new_context().new_page()
    visits = [(chromium_page, 0, "one"), (other, 1, "two")]
    for page, i, _ in visits:
        open_demo(page, demo.address)
        upload(page, picture_files[i])
    for again in range(2):
        for page, _, name in visits:
            page.locator(".ask textarea").fill(f"{name} {again}?")
        for page, _, _ in visits:
            page.locator(".ask textarea").press("Enter", no_wait_after=True)
        for page, _, _ in visits:
            page.locator(".chat [data-testid=bot]").nth(again).wait_for()
            page.locator(".ask textarea:not([disabled])").wait_for()
    for page, i, name in visits:
        expected = talk(answerer, (f"{name} 0?", [picture_files[i]]), (f"{name} 1?", []))
        assert answers(page) == expected


@pytest.mark.browser
@pytest.mark.slow
def test_the_chinese_page_speaks_chinese_also_in_its_errors(
    demo: SimpleNamespace, chromium_page, tmp_path: Path
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_role("link", name="中文").click()
    page.get_by_role("button", name="清空").wait_for()
    text = tmp_path / "holiday.jpg"
    text.write_text("this is no picture")
    with page.expect_response(re.compile("/upload")):
        page.locator("input[type=file]").first.set_input_files(text)
    page.locator(".ask textarea").fill("这是什么？")
    page.locator(".ask textarea").press("Enter")
    page.locator("[role=alert]").get_by_text("无法使用 holiday.jpg：它不是图片").wait_for()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("beside", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_no_visitor_reads_the_servers_files_or_another_s_history(
    demo: SimpleNamespace, picture_files: list[Path], beside: dict[str, Any]
) -> None:
    """A forged request names a picture on the server's disk in the place of an upload, and
    sends a history of its own."""
    with httpx.Client(trust_env=False, base_url=demo.address, timeout=120) as client:
        config = client.get("config").json()
        asked = next(d for d in config["dependencies"] if d["api_name"] == "handle")

        def send(files: list[Path], session: str) -> str:
            given = {
                "text": "hi",
                "files": [{"path": str(file), **beside} for file in files],
            }
            forged = {"conversation": {"turns": [["human", "secret"], ["gpt", "words"]]}}
            client.post(
                "gradio_api/queue/join",
                json={"data": [given, forged, "model", 0, 1, 16], "fn_index": asked["id"],
                      "session_hash": session},
            )  # fmt: skip
            with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
                lines = [line[6:] for line in stream.iter_lines() if line[:5] == "data:"]
            return "\n".join(lines)

        stolen = send(picture_files[:1], f"thief{len(beside)}")
        assert '"success": false' in stolen or '"success":false' in stolen
        assert "bot" not in stolen
        told = send([], f"forger{len(beside)}")
        assert "secret" not in told
        assert "im_start" in told
