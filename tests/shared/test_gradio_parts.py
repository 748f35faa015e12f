"""The demos' common parts: addresses, languages, notices, errors; nothing foreign is loaded."""

from __future__ import annotations

import os
import socket
import string
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import torch

from shared.gradio_parts import (
    PARTS_TEXTS,
    LaunchOptions,
    bilingual_page,
    check_address,
    device_line,
    error_notice,
    serve,
    synthetic_notice,
)
from shared.options import UserError, parse_options


def fields_of(text: str) -> set[str]:
    return {name.split(".")[0] for _, name, _, _ in string.Formatter().parse(text) if name}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_both_languages_say_the_same_things() -> None:
    english, chinese = PARTS_TEXTS["en"], PARTS_TEXTS["zh"]
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert fields_of(text) == fields_of(chinese[key]), key


def test_launch_flags() -> None:
    @dataclass
    class Options(LaunchOptions):
        """Page of a test"""

    assert parse_options(Options, description="x", argv=[]) == Options(
        port=7860, host="127.0.0.1", share=False, language="en"
    )
    argv = ["--port", "8000", "--host", "0.0.0.0", "--share", "--language", "zh"]
    options = parse_options(Options, description="x", argv=argv)
    assert (options.port, options.host, options.share, options.language) == (
        8000, "0.0.0.0", True, "zh",
    )  # fmt: skip


def test_a_taken_port_is_told_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .*give another --port"):
            check_address(LaunchOptions(port=port))
    check_address(LaunchOptions(port=port))


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no-such-host.invalid", 7860)])
def test_an_impossible_address_is_a_user_error(host: str, port: int) -> None:
    with pytest.raises(UserError, match=f"can't be served at {host}, port {port}"):
        check_address(LaunchOptions(port=port, host=host))


def test_a_user_error_stands_in_the_page_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    notice = error_notice("en", UserError("<script>alert(1)</script> & more"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in notice
    assert "<script>" not in notice
    assert 'role="alert"' in notice
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("language", "words"), [("en", "terminal"), ("zh", "终端")])
def test_what_nobody_foresaw_is_named_and_traced(
    language: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by nothing")

    try:
        broken()
    except ZeroDivisionError as error:
        notice = error_notice(language, error)
    assert "ZeroDivisionError" in notice
    assert "by nothing" in notice
    assert words in notice
    assert "in broken" in capsys.readouterr().err


def test_out_of_memory_says_what_to_do() -> None:
    for language in ("en", "zh"):
        notice = error_notice(language, torch.OutOfMemoryError("CUDA out of memory. Tried to"))
        assert "--quantization nf4" in notice
        assert "Tried to" not in notice


def test_device_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert f"CPU ({os.cpu_count()} cores)" in device_line("en", cpu)
    assert f"CPU（{os.cpu_count()} 核）" in device_line("zh", cpu)
    gib = 1024**3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (15 * gib, 24 * gib))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    assert device_line("en", torch.device("cuda")) == "Runs on A Card, 9.0 of 24.0 GiB in use."


def test_synthetic_is_said_in_both_languages() -> None:
    for language in ("en", "zh"):
        assert "SYNTHETIC" in synthetic_notice(language, "words")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a small page whose start page is Chinese, served behind a dead proxy setting."""
    import gradio as gr

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    page = bilingual_page("A page", lambda page, language: gr.Markdown(f"in {language}"), "zh")
    assert page.analytics_enabled is False
    yield serve(page, LaunchOptions(port=free_port(), language="zh"), wait=False)
    page.close()


@pytest.mark.slow
def test_each_language_has_its_page_and_a_proxy_is_no_obstacle(served: str) -> None:
    with httpx.Client(trust_env=False, base_url=served) as client:
        config = client.get("config").json()
        assert client.get("").status_code == client.get("en").status_code == 200
        assert client.get("de").status_code == 404
    markdown = {
        c["id"]: c["props"]["value"] for c in config["components"] if c["type"] == "markdown"
    }
    on_page = {
        path: [markdown[i] for i in page["components"] if i in markdown]
        for path, page in config["page"].items()
    }
    assert on_page == {"": ["in zh"], "en": ["in en"]}
    bars = [c["props"] for c in config["components"] if c["type"] == "navbar"]
    assert [bar["main_page_name"] for bar in bars] == ["中文", "中文"]
    assert [tuple(page[:2]) for page in config["pages"]] == [("", "Home"), ("en", "English")]


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_asks_nobody_else_and_knows_its_language(
    served: str, chromium_page, page_log: dict[str, list[str]]
) -> None:
    chromium_page.goto(served)
    chromium_page.get_by_text("in zh").wait_for()
    chromium_page.wait_for_function("document.documentElement.lang == 'zh-CN'")
    chromium_page.get_by_role("link", name="English").click()
    chromium_page.get_by_text("in en").wait_for()
    chromium_page.wait_for_function("document.documentElement.lang == 'en'")
    foreign = [url for url in page_log["requests"] if not url.startswith((served, "data:"))]
    assert foreign == []
    assert page_log["errors"] == []
