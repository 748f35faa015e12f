"""What the demos have in common: launch options, pages in two languages, errors, notices.

A demo draws its page by one function of the language; the start page is in `--language`, the bar on
top leads to the other one. Nothing is sent anywhere and nothing is loaded from elsewhere: no
analytics, no fonts from a server. Errors stand in the page with their cause, and the page goes on.
"""

from __future__ import annotations

import html
import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shared.loading import GIB
from shared.options import UserError

if TYPE_CHECKING:
    import gradio as gr
    import torch

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

Language = Literal["en", "zh"]
LANGUAGES: dict[Language, tuple[str, str]] = {"en": ("English", "en"), "zh": ("中文", "zh-CN")}
MAX_WAITING = 64  # visitors in the queue; the next one is told that it is full
KEEP_UPLOADS_S = 3600  # then visitors' pictures are deleted from the disk, and when the page ends
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
CSS = """.block > .html-container { padding: 0; }
.notice { padding: 8px 14px; border-radius: 8px; background: #fff4d6; color: #6b4700; }
.notice * { color: inherit; } .notice strong { letter-spacing: .05em; margin-right: .3em; }
.notice.stop { background: #fde8ea; color: #8f0019; overflow-wrap: anywhere; }
"""
PARTS_TEXTS: dict[Language, dict[str, str]] = {
    "en": {
        "unexpected": "{kind}: {message}. More is in the terminal where this page was started.",
        "memory": "Not enough free memory: start the page with --quantization nf4.",
        "synthetic": "SYNTHETIC",
        "cpu": "Runs on the CPU ({cores} cores), {free:.1f} GiB of memory free.",
        "gpu": "Runs on {name}, {used:.1f} of {total:.1f} GiB in use.",
    },
    "zh": {
        "unexpected": "{kind}：{message}。更多信息见启动本页面的终端。",
        "memory": "可用内存不足：请用 --quantization nf4 重新启动本页面。",
        "synthetic": "合成数据（SYNTHETIC）",
        "cpu": "运行于 CPU（{cores} 核），可用内存 {free:.1f} GiB。",
        "gpu": "运行于 {name}，显存已用 {used:.1f} / {total:.1f} GiB。",
    },
}


@dataclass
class LaunchOptions:
    """Page"""

    port: int = field(default=7860, metadata={"help": "where the page is served"})
    host: str = field(default="127.0.0.1", metadata={"help": "0.0.0.0 = for other machines too"})
    share: bool = field(default=False, metadata={"help": "a public address at Gradio's server"})
    language: Language = field(default="en", metadata={"help": "of the start page"})


def check_address(options: LaunchOptions) -> None:
    """Before weights are loaded for minutes: can the page be served there? Raises UserError."""
    try:
        socket.create_server((options.host, options.port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"the page can't be served at {options.host}, port {options.port} ({error}); if "
            "another program has the port, give another --port"
        ) from error


def bilingual_page(
    title: str, draw: Callable[[gr.Blocks, Language], None], first: Language
) -> gr.Blocks:
    """`draw(page, language)` puts the components of one page; called once for each language."""
    import gradio as gr

    second: Language = "zh" if first == "en" else "en"
    page = gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(KEEP_UPLOADS_S // 6, KEEP_UPLOADS_S)
    )
    for language in (first, second):
        name, code = LANGUAGES[language]
        with page if language == first else page.route(name, f"/{language}"):
            gr.Navbar(main_page_name=LANGUAGES[first][0])
            draw(page, language)
            page.load(None, js=f"() => {{ document.documentElement.lang = '{code}'; }}")
    return page


def serve(page: gr.Blocks, options: LaunchOptions, *, css: str = "", wait: bool = True) -> str:
    """Serve the page, print its address, stay until Ctrl+C (`wait`). Returns the local address."""
    import gradio as gr

    # Gradio asks its own page whether it is up; a proxy in between would answer in its place.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1"]))
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    _, address, public = page.launch(
        server_name=options.host, server_port=options.port, share=options.share,
        theme=gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=("monospace",)),
        css=CSS + css, max_file_size="32mb", footer_links=[], run_history=False,
        ssr_mode=False, quiet=True, prevent_thread_lock=True,
    )  # fmt: skip
    print(f"page: {' and '.join(filter(None, [address, public]))}  (Ctrl+C ends it)", flush=True)
    if wait:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as tidily as Ctrl+C
        page.block_thread()
    return address


def cause_of(language: Language, error: Exception) -> str:
    """The cause of an error in words; what nobody foresaw is also traced in the terminal."""
    from shared.answering import is_out_of_memory

    texts = PARTS_TEXTS[language]
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return texts["memory"]
    traceback.print_exception(error)
    return texts["unexpected"].format(kind=type(error).__name__, message=error)


def error_notice(language: Language, error: Exception) -> str:
    """HTML with the cause of an error."""
    return f'<div class="notice stop" role="alert">{html.escape(cause_of(language, error))}</div>'


def synthetic_notice(language: Language, text: str) -> str:
    """HTML that says that this is a toy. `text` goes in as it is."""
    return f'<div class="notice"><strong>{PARTS_TEXTS[language]["synthetic"]}</strong> {text}</div>'


def device_line(language: Language, device: torch.device) -> str:
    """Which device the model is on and how much memory there is."""
    texts = PARTS_TEXTS[language]
    if device.type == "cuda":
        from torch import cuda

        (free, total), name = cuda.mem_get_info(device), cuda.get_device_name(device)
        return texts["gpu"].format(name=name, used=(total - free) / GIB, total=total / GIB)
    from shared.machine import available_memory

    return texts["cpu"].format(cores=os.cpu_count(), free=(available_memory() or 0) / GIB)
