"""What the page's tabs have in common: components, checked inputs, errors, loading with progress.

Gradio hands the values of a request on as they came (`preprocess=False`): its own reading of a
broken picture would hide the cause, so everything is checked here, and a request may send anything.
Also that a file is an upload: see shared/uploads.py.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lavis_apps.app_html import notice_html, small_html
from lavis_apps.app_models import Shelf, is_synthetic, short_name, size_text
from lavis_apps.app_search import Searched
from lavis_apps.app_settings import Examples
from lavis_apps.app_texts import TEXTS
from shared import uploads
from shared.answering import text_problem
from shared.gradio_parts import Language, cause_of, device_line
from shared.options import UserError

if TYPE_CHECKING:
    import gradio as gr
    from PIL.Image import Image

MAX_TEXT = 20_000  # characters; a model reads far fewer, and what it does not read is told
MAX_LINES = 500
MAX_PICTURES = 8
TOAST_S = 30


@dataclass(frozen=True)
class Page:
    """What all visitors have in common."""

    shelf: Shelf
    folders: Mapping[str, Searched]
    examples: Examples
    synthetic: bool


class Told(UserError):
    """A message that is in the page's language already."""


@dataclass
class Tabs:
    """A page of one language while it is drawn; its methods draw components and wire them."""

    page: Page
    language: Language
    memory: gr.Markdown

    @property
    def texts(self) -> Mapping[str, str]:
        return TEXTS[self.language]

    # Components

    @contextmanager
    def columns(self, result: Any = None) -> Iterator[Any]:
        """What is drawn inside, and beside it (below it on a narrow screen) the answer."""
        import gradio as gr

        if result is None:
            waiting = small_html(self.texts["waiting"])
            result = gr.HTML(waiting, elem_classes="result", render=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                yield result
            with gr.Column(scale=3, min_width=300):
                result.render()

    def button(self, name: str) -> gr.Button:
        import gradio as gr

        return gr.Button(self.texts[name], variant="primary")

    def settings(self) -> gr.Accordion:
        import gradio as gr

        return gr.Accordion(self.texts["settings"], open=False)

    def picture(self, label: str = "picture", height: int = 300) -> gr.Image:
        import gradio as gr

        component = gr.Image(
            label=self.texts[label], type="filepath", sources=["upload", "clipboard"], buttons=[],
            height=height, placeholder=self.texts["picture_hint"], elem_classes="picture",
        )  # fmt: skip
        component.change(
            self._look, component, component, preprocess=False, api_visibility="private",
            concurrency_limit=2, concurrency_id="look", show_progress="hidden",
        )  # fmt: skip
        return component

    def _look(self, given: Any) -> Any:
        """A file that is no picture is taken off: the browser would show a broken icon."""
        import gradio as gr

        try:
            if given is not None:
                open_upload(given, self.texts)
            return gr.skip()
        except UserError as error:
            gr.Warning(html.escape(str(error)), duration=TOAST_S)
            return None

    def pictures(self) -> gr.Gallery:
        import gradio as gr

        return gr.Gallery(
            label=self.texts["pictures"].format(most=MAX_PICTURES), file_types=["image"],
            interactive=True, sources=["upload", "clipboard"], columns=3, height=260,
            object_fit="contain", buttons=[], elem_classes="several",
        )  # fmt: skip

    def slider(self, name: str, low: float, high: float, value: float, step: float) -> gr.Slider:
        import gradio as gr

        return gr.Slider(
            low, high, value, step=step, label=self.texts[name],
            info=self.texts.get(f"{name}_what"), buttons=[], min_width=180,
        )  # fmt: skip

    def text(self, name: str, value: str = "", *, lines: int = 1) -> gr.Textbox:
        import gradio as gr

        return gr.Textbox(
            value, label=self.texts[name], info=self.texts.get(f"{name}_what"), lines=lines,
            max_lines=max(lines, 8), min_width=180,
        )  # fmt: skip

    def tick(self, name: str, value: bool = False) -> gr.Checkbox:
        import gradio as gr

        info = self.texts.get(f"{name}_what")
        return gr.Checkbox(value, label=self.texts[name], info=info, min_width=180)

    def choice(self, name: str, values: Sequence[str], value: str) -> gr.Radio:
        import gradio as gr

        return gr.Radio(
            [(self.texts[f"{name}_{v}"], v) for v in values], value=value, label=self.texts[name],
            info=self.texts.get(f"{name}_what"), min_width=180,
        )  # fmt: skip

    def model(self, *kinds: str) -> gr.Dropdown:
        """The models of these kinds; hidden where there is nothing to choose."""
        import gradio as gr

        models = self.page.shelf.models
        found = [(short_name(name), name) for kind in kinds for name in models[kind]]
        return gr.Dropdown(
            found, value=found[0][1], label=self.texts["model"], filterable=False,
            visible=len(found) > 1, min_width=180,
        )  # fmt: skip

    def chosen(self, given: Any, *kinds: str) -> tuple[str, str]:
        """(kind, model) of what `model(*kinds)` sends. Told where it is none of them."""
        models = self.page.shelf.models
        for kind in kinds:
            if given in models[kind]:
                return kind, given
        raise Told(self.texts["bad_choice"].format(value=str(given)[:80]))

    def examples(self, rows: Sequence[Sequence[Any]], inputs: Sequence[Any]) -> None:
        import gradio as gr

        if rows:
            gr.Examples([list(row) for row in rows], list(inputs), label=self.texts["examples"])

    # Events

    def answer(
        self,
        work: Callable[..., Any],
        button: gr.Button,
        inputs: Sequence[Any],
        outputs: Any,
        *,
        kind: str = "matching",
        submits: Sequence[Any] = (),
    ) -> None:
        """`work(use, *values)` behind a button, and Enter in `submits`; `use` is the shelf's."""
        import gradio as gr

        # first, as Gradio puts its own arguments where they stand in the signature
        def handle(progress: Any = gr.Progress(), *given: Any) -> Any:  # noqa: B008
            return self.guarded(lambda use: work(use, *given), progress)

        self.wire(handle, button, inputs, outputs, kind=kind, submits=submits)

    def guarded(self, work: Callable[..., Any], progress: Any) -> Any:
        """What `work(use)` answers; an error becomes a toast with its cause."""

        def tell(share: float, name: str) -> None:
            progress(share, desc=self.texts["loading"].format(model=name))

        try:
            return work(partial(self.page.shelf.use, progress=tell))
        except Exception as error:
            raise toast(self.language, error) from error

    def wire(
        self,
        handle: Callable[..., Any],
        button: gr.Button,
        inputs: Sequence[Any],
        outputs: Any,
        *,
        kind: str,
        submits: Sequence[Any] = (),
        api_name: str | None = None,
    ) -> None:
        """One request of a kind is answered at a time, the others wait in the queue; behind each
        the memory's line is renewed."""
        import gradio as gr

        gr.on(
            [button.click, *(field.submit for field in submits)], handle, list(inputs), outputs,
            preprocess=False, concurrency_id=kind, concurrency_limit=1, show_progress="full",
            api_name=api_name, api_visibility="public" if api_name else "private",
        ).then(
            self.memory_line, None, self.memory, queue=False, api_visibility="private",
            show_progress="hidden",
        )  # fmt: skip

    def memory_line(self) -> str:
        """The device, its free memory, and the models that are loaded."""
        shelf = self.page.shelf
        loaded = [
            f"{short_name(there.name)} ({size_text(there.n_bytes)})"
            for there in list(shelf.loaded.values())
        ]
        said = self.texts["loaded"].format(models=", ".join(loaded) or self.texts["loaded_none"])
        return f"{device_line(self.language, shelf.torch_device())} {said}"

    # Answers

    def foot(self, model: str, *notes: str) -> str:
        """Below an answer: notes, the model, and whether it is a toy."""
        line = self.texts["by_model"].format(model=short_name(model))
        line += f" · {self.texts['synthetic_mark']}" if is_synthetic(model) else ""
        return small_html(*notes, line)

    def cut_notice(self, cut: Sequence[bool]) -> str:
        n = sum(cut)
        return notice_html(self.texts["cut"].format(n=n, of=len(cut))) if n else ""


def toast(language: Language, error: Exception) -> gr.Error:
    """The cause of an error beside the page's corner; the page goes on."""
    import gradio as gr

    message = cause_of(language, error)
    if isinstance(error, UserError) and not isinstance(error, Told):
        message = TEXTS[language]["failed"].format(cause=message)
    return gr.Error(html.escape(message), duration=TOAST_S, print_exception=False)


# Values as requests send them


def open_upload(given: Any, texts: Mapping[str, str]) -> Image:
    """Told with the upload's own name, not that of the temporary file."""
    if not isinstance(given, Mapping) or not uploads.is_upload(given.get("path")):
        raise Told(texts["no_picture"])
    try:
        return uploads.open_upload(given, texts["bad_picture"])
    except UserError as error:
        raise Told(str(error)) from error


def open_uploads(given: Any, texts: Mapping[str, str]) -> list[tuple[str, Image]]:
    """(name, picture) of each of a gallery's."""
    entries = given if isinstance(given, list) else []
    pictures = [entry.get("image") for entry in entries if isinstance(entry, Mapping)]
    if len(pictures) > MAX_PICTURES:
        raise Told(texts["too_many"].format(n=len(pictures), most=MAX_PICTURES))
    return [
        (str(upload.get("orig_name") or number), open_upload(upload, texts))
        for number, upload in enumerate(pictures, start=1)
        if isinstance(upload, Mapping)
    ]


def text_of(value: Any, texts: Mapping[str, str], missing: str | None) -> str:
    """A field's text, stripped. Told what is missing (`missing`, a key), too long or no text."""
    text = value.strip() if isinstance(value, str) else ""
    if not text and missing is not None:
        raise Told(texts[missing])
    if len(text) > MAX_TEXT:
        raise Told(texts["long_text"].format(n=len(text), most=MAX_TEXT))
    problem = text_problem(text)
    if problem:
        raise Told(texts["bad_text"].format(cause=problem))
    return text


def lines_of(value: Any, texts: Mapping[str, str], missing: str | None) -> list[str]:
    """The lines of a field that are not empty."""
    text = text_of(value, texts, missing)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        raise Told(texts["many_lines"].format(n=len(lines), most=MAX_LINES))
    return lines


def number_of(value: Any, low: float, high: float, texts: Mapping[str, str], name: str) -> float:
    """A float also of JSON's whole numbers, as some libraries ask for. Told what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Told(
            texts["bad_number"].format(name=texts[name], value=str(value)[:40], low=low, high=high)
        )
    return float(value)


def whole_of(value: Any, low: int, high: int, texts: Mapping[str, str], name: str) -> int:
    return int(number_of(value, low, high, texts, name))
