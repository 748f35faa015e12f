"""The chat page as Gradio components and what its buttons do.

What a visitor said and showed is in a `Visitor`, which Gradio keeps apart for each browser tab;
nothing of it is in the page's own components, so a forged request cannot put words into a history.
"""

from __future__ import annotations

import hashlib
import html
import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_repro.asking import Decoding
from llava_repro.conversing import Conversation
from llava_repro.demo_texts import TEXTS
from shared.answering import is_out_of_memory
from shared.conversations import segments_of
from shared.gradio_parts import Language, device_line, error_notice, synthetic_notice
from shared.options import UserError, portable_path
from shared.uploads import open_upload

if TYPE_CHECKING:
    import gradio as gr

    from llava_repro.answering import LlavaAnswerer
    from shared.answering import Answer

HANDLINGS = ("model", "pad", "crop", "resize")
KEEP_CONVERSATION_S = 3600  # after a visitor has gone; pictures' features lie in the GPU's memory


@dataclass
class Visitor:
    """One visitor's conversation: what the model reads, what the page shows, what was stopped."""

    conversation: Conversation = field(default_factory=Conversation)
    shown: list[dict[str, Any]] = field(default_factory=list)  # messages of gr.Chatbot
    stopped: bool = False


@dataclass(frozen=True)
class Page:
    """What all visitors of the page have in common."""

    answerer: LlavaAnswerer
    model: str
    adapter: str | None
    synthetic: bool
    examples: dict[Language, list[list[dict[str, Any]]]]
    flags_file: Path
    decoding: Decoding


def draw_page(page: gr.Blocks, language: Language, common: Page) -> None:
    import gradio as gr

    texts = TEXTS[language]
    gr.Markdown(f"# {texts['title']}\n{texts['intro']}")
    device = gr.Markdown(elem_classes="device")
    page.load(
        lambda: model_line(common, texts) + device_line(language, common.answerer.device),
        None, device, api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    if common.synthetic:
        gr.HTML(synthetic_notice(language, texts["synthetic"]))
    visitor = gr.State(Visitor(), time_to_live=KEEP_CONVERSATION_S)
    with gr.Row():
        with gr.Column(scale=3, min_width=420):
            chat = gr.Chatbot(
                label=texts["chat"], height=470, placeholder=texts["start"], elem_classes="chat",
                render_markdown=False, buttons=["copy"], allow_file_downloads=False,
            )  # fmt: skip
            notice = gr.HTML(elem_classes="said")
            ask = gr.MultimodalTextbox(
                placeholder=texts["ask_hint"], show_label=False, file_count="multiple",
                file_types=["image"], sources=["upload"], max_lines=6, autofocus=True,
                elem_classes="ask",
            )  # fmt: skip
            with gr.Row():
                stop, again, clear, flag = (
                    gr.Button(texts[name], min_width=90, size="md")
                    for name in ("stop", "again", "clear", "flag")
                )
            gr.Markdown(texts["flag_what"], elem_classes="small")
            if common.examples[language]:
                gr.Examples(common.examples[language], [ask], label=texts["examples"])
        with gr.Column(scale=1, min_width=270):
            gr.Markdown(f"### {texts['settings']}")
            handling = gr.Radio(
                [(texts[f"handling_{name}"], name) for name in HANDLINGS],
                value=common.answerer.image_handling, label=texts["handling"],
                info=texts["handling_what"],
            )  # fmt: skip
            temperature = gr.Slider(
                0, 1.5, common.decoding.temperature, step=0.05, label=texts["temperature"],
                info=texts["temperature_what"], buttons=[],
            )  # fmt: skip
            top_p = gr.Slider(
                0.05, 1, common.decoding.top_p, step=0.05, label=texts["top_p"],
                info=texts["top_p_what"], buttons=[],
            )  # fmt: skip
            max_new_tokens = gr.Slider(
                16, 1024, common.decoding.max_new_tokens, step=16, label=texts["max_new_tokens"],
                buttons=[],
            )  # fmt: skip
            with gr.Accordion(texts["prompt"], open=False):
                prompt = gr.HTML(prompt_html(common.answerer, [], texts))

    settings = [handling, temperature, top_p, max_new_tokens]
    outputs = [chat, ask, notice, prompt]
    model: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model"}
    aside: dict[str, Any] = {"api_visibility": "private", "queue": False}
    asked = ask.submit(
        asking(common, language), [ask, visitor, *settings], outputs, show_progress="hidden",
        **model,
    )  # fmt: skip
    asked_again = again.click(
        answering_again(common, language), [visitor, *settings], outputs, show_progress="hidden",
        **model,
    )  # fmt: skip
    stop.click(stop_answer, visitor, None, **aside)
    # cancelled, or the answer under way would go on being shown in the emptied chat
    gr.on(
        [clear.click, chat.clear], clearing(common, texts), visitor, [visitor, *outputs],
        show_progress="hidden", cancels=[asked, asked_again], **aside,
    )  # fmt: skip
    flag.click(flagging(common, language), [visitor, *settings], notice, **aside)


def model_line(common: Page, texts: dict[str, str]) -> str:
    name = common.model
    if common.adapter:
        name = texts["with_adapter"].format(model=name, adapter=common.adapter)
    return f"{texts['model'].format(model=name)} · "


# What the buttons do. Each yields values of: chat, ask field, notice, prompt.


def asking(common: Page, language: Language) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """A question with its pictures: shown at once, then the answer as it is made."""
    texts = TEXTS[language]

    def handle(
        given: dict[str, Any], visitor: Visitor, handling: str, *sampling: float
    ) -> Iterator[tuple[Any, ...]]:
        import gradio as gr

        text, files = (given.get("text") or "").strip(), given.get("files") or []
        before = list(visitor.shown)
        try:
            if not text and not files:
                raise UserError(texts["nothing"])
            images = [open_upload(file, texts["bad_picture"]) for file in files]
            asked = [{"role": "user", "content": {"path": file}} for file in files]
            asked += [message("user", text)] if text else []
            visitor.shown = before + asked
            visitor.stopped = False
            # emptied and locked, until the answer is there
            yield visitor.shown, gr.MultimodalTextbox(None, interactive=False), "", gr.skip()
            pieces = visitor.conversation.ask(
                common.answerer, text, images, decoding=chosen(*sampling), handling=handling,
                stop=lambda: visitor.stopped,
            )  # fmt: skip
            yield from show(common, visitor, pieces, texts)
        except Exception as error:
            visitor.shown = before
            field = gr.MultimodalTextbox(given, interactive=True)
            yield before, field, explained(language, error), gr.skip()

    return handle


def answering_again(common: Page, language: Language) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Another answer in the place of the last one."""
    texts = TEXTS[language]

    def handle(visitor: Visitor, handling: str, *sampling: float) -> Iterator[tuple[Any, ...]]:
        import gradio as gr

        before = list(visitor.shown)
        try:
            if not visitor.conversation.turns:
                raise UserError(texts["not_asked"])
            visitor.shown = before[:-1]
            visitor.stopped = False
            yield visitor.shown, gr.MultimodalTextbox(interactive=False), "", gr.skip()
            pieces = visitor.conversation.answer_again(
                common.answerer, decoding=chosen(*sampling), stop=lambda: visitor.stopped
            )
            yield from show(common, visitor, pieces, texts)
        except Exception as error:
            visitor.shown = before
            field = gr.MultimodalTextbox(interactive=True)
            yield before, field, explained(language, error), gr.skip()

    return handle


def show(
    common: Page, visitor: Visitor, pieces: Generator[str, None, Answer], texts: dict[str, str]
) -> Iterator[tuple[Any, ...]]:
    """The answer growing in the chat; at its end how it ended, and the prompt."""
    import gradio as gr

    asked, said = list(visitor.shown), ""
    while True:
        try:
            said += next(pieces)
        except StopIteration as end:
            answer = end.value
            break
        # kept with each word: a visitor who leaves in the middle finds them again
        visitor.shown = [*asked, message("assistant", said)]
        yield visitor.shown, gr.skip(), gr.skip(), gr.skip()
    visitor.shown = [*asked, message("assistant", said or texts["empty"])]
    how = "stopped" if visitor.stopped else "cut" if answer.finish_reason == "length" else None
    yield (
        visitor.shown,
        gr.MultimodalTextbox(interactive=True),
        f'<p class="small">{texts[how]}</p>' if how else "",
        prompt_html(common.answerer, visitor.conversation.turns[:-1], texts),
    )


def stop_answer(visitor: Visitor) -> None:
    visitor.stopped = True


def clearing(common: Page, texts: dict[str, str]) -> Callable[[Visitor], tuple[Any, ...]]:
    def clear(visitor: Visitor) -> tuple[Any, ...]:
        import gradio as gr

        visitor.stopped = True  # an answer under way ends at its next word
        # what is already typed stays: the next question may be there before this has come back
        field = gr.MultimodalTextbox(interactive=True)
        return Visitor(), [], field, "", prompt_html(common.answerer, [], texts)

    return clear


def flagging(common: Page, language: Language) -> Callable[..., str]:
    """Keeps the conversation for whoever runs the page to look at."""
    texts = TEXTS[language]

    def flag(visitor: Visitor, handling: str, *sampling: float) -> str:
        try:
            if not visitor.conversation.turns:
                raise UserError(texts["nothing_to_flag"])
            settings = {"image_handling": handling, **vars(chosen(*sampling))}
            write_flag(common, visitor, settings)
            told = texts["flagged"].format(file=portable_path(common.flags_file))
            return f'<p class="small">{html.escape(told)}</p>'
        except Exception as error:
            return explained(language, error)

    return flag


def write_flag(common: Page, visitor: Visitor, settings: dict[str, Any]) -> None:
    """One JSON line; the pictures beside it, named by their content. Raises UserError."""
    folder = common.flags_file.with_suffix("")
    pictures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for said in visitor.shown:
            if isinstance(said["content"], dict):
                upload = Path(said["content"]["path"])
                content = upload.read_bytes()
                copy = folder / f"{hashlib.sha256(content).hexdigest()[:16]}{upload.suffix}"
                copy.write_bytes(content)
                pictures.append(f"{folder.name}/{copy.name}")
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "model": common.model,
            "adapter": common.adapter,
            "synthetic": common.synthetic,
            "settings": settings,
            "turns": visitor.conversation.turns,
            "pictures": pictures,
        }
        with common.flags_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{common.flags_file}: {error.strerror or error}") from error


# Small parts


def message(role: str, text: str) -> dict[str, Any]:
    """A message of gr.Chatbot that shows the words as they are, tags and all: without Markdown it
    still takes them for HTML."""
    return {"role": role, "content": html.escape(text, quote=False)}


def chosen(temperature: float, top_p: float, max_new_tokens: float) -> Decoding:
    return Decoding(temperature=temperature, top_p=top_p, max_new_tokens=int(max_new_tokens))


def explained(language: Language, error: Exception) -> str:
    """The cause on the page, in its language where we know it."""
    texts = TEXTS[language]
    if is_out_of_memory(error):
        error = UserError(texts["memory"])
    elif isinstance(error, UserError) and "the model has room for" in str(error):
        error = UserError(texts["too_long"].format(cause=error))
    return error_notice(language, error)


def prompt_html(answerer: LlavaAnswerer, turns: list[Any], texts: dict[str, str]) -> str:
    """The prompt to the letter, as `shared.conversations` writes it, a picture's tokens counted."""
    if not turns:
        return f'<p class="small">{texts["no_prompt"]}</p>'
    pieces = segments_of(turns, answerer.tokenizer, answerer.template, add_generation_prompt=True)
    pictures = texts["pictures_as"].format(n=answerer.n_image_tokens)
    written = "".join(text for text, _ in pieces).replace("<image>", pictures)
    heading = f'<p class="small">{texts["prompt_what"]}</p>'
    return f'{heading}<pre class="prompt">{html.escape(written)}</pre>'
