"""The two tabs of the demo page as Gradio components and what their buttons do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2_qlora.browsing import (
    ALL_TYPES,
    KINDS,
    Comparison,
    clamp_position,
    count_kinds,
    count_types,
    finished_runs,
    missing_file,
    open_comparison,
    permitted_folder,
    select,
)
from blip2_qlora.demo_html import pair_html, replies_html, runs_html
from blip2_qlora.demo_texts import TEXTS
from blip2_qlora.settings import EXPERIMENT
from shared.comparison import picture_file
from shared.gradio_parts import Language, device_line, error_notice, synthetic_notice
from shared.options import OUTPUTS, UserError, portable_path
from shared.uploads import open_upload
from shared.vqav2 import load_rows

if TYPE_CHECKING:
    import gradio as gr
    from PIL.Image import Image

    from blip2_qlora.asking import Asker

EXAMPLES = Path(__file__).with_name("baseline_images") / "questions.jsonl"
EXAMPLES_SHOWN = 5


def draw_page(
    page: gr.Blocks,
    language: Language,
    asker: Asker | None,
    *,
    synthetic: bool,
    advice: tuple[str, str],
    runs: tuple[Path | None, Path | None],
) -> None:
    """Both tabs, or without a model the one that needs none."""
    import gradio as gr

    texts = TEXTS[language]
    if asker is None:
        gr.Markdown(f"# {texts['title']}")
        with gr.Tab(texts["tab_browse"]):
            draw_browsing(page, language, runs)
        return
    gr.Markdown(f"# {texts['title']}\n{texts['intro' if asker.has_adapter else 'intro_base']}")
    device = gr.Markdown(elem_classes="device")
    page.load(
        lambda: device_line(language, asker.device), None, device,
        api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    if synthetic:
        gr.HTML(synthetic_notice(language, texts["synthetic"]))
    with gr.Tab(texts["tab_ask"]):
        draw_asking(language, asker, advice)
    with gr.Tab(texts["tab_browse"]):
        draw_browsing(page, language, runs)


def draw_asking(language: Language, asker: Asker, advice: tuple[str, str]) -> None:
    import gradio as gr

    texts = TEXTS[language]
    shown_advice = None if asker.has_adapter else advice
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            picture = gr.Image(
                label=texts["picture"], type="filepath", sources=["upload", "clipboard"],
                height=320, placeholder=texts["picture_hint"], elem_classes="picture",
            )  # fmt: skip
            question = gr.Textbox(
                label=texts["question"], placeholder=texts["question_hint"], max_lines=4
            )
            button = gr.Button(texts["ask"], variant="primary")
        with gr.Column(scale=3, min_width=360):
            waiting = replies_html(texts, "", [], shown_advice)
            result = gr.HTML(waiting)
            gr.Examples(
                example_rows(), [picture, question], label=texts["examples"],
                examples_per_page=EXAMPLES_SHOWN,
            )  # fmt: skip

    refused = gr.State("")  # what was said of a picture that was taken off again

    def ask(given: dict[str, Any] | None, asked: str | None, refusal: str) -> str:
        if given is None and refusal:
            return refusal
        try:
            words = (asked or "").strip()
            image = check_input(given, words, asker, texts)
            return replies_html(texts, words, asker.ask(image, words), shown_advice)
        except Exception as error:
            return error_notice(language, error)

    def look(given: dict[str, Any] | None, refusal: str) -> tuple[Any, str, str]:
        """A file that is no picture is taken off: the browser would show a broken icon."""
        if given is None:
            return gr.skip(), refusal or waiting, refusal
        try:
            open_upload(given, texts["bad_picture"])
            return gr.skip(), waiting, ""
        except Exception as error:
            notice = error_notice(language, error)
            return None, notice, notice

    # Unprocessed values: Gradio's own reading of a broken picture would hide the cause.
    gr.on(
        [button.click, question.submit], ask, [picture, question, refused], result,
        preprocess=False, api_visibility="private", concurrency_id="model",
    )  # fmt: skip
    picture.change(
        look, [picture, refused], [picture, result, refused],
        preprocess=False, api_visibility="private", show_progress="hidden", queue=False,
    )  # fmt: skip


def example_rows() -> list[list[str]]:
    """The first question about each baseline picture."""
    first: dict[Path, str] = {}
    for row in load_rows(EXAMPLES).questions:
        first.setdefault(row.image, row.question)
    return [[str(image), question] for image, question in first.items()]


def check_input(
    given: dict[str, Any] | None, question: str, asker: Asker, texts: dict[str, str]
) -> Image:
    """The picture, when both it and the question can be used; UserError in the page's words."""
    if given is None:
        raise UserError(texts["no_picture"])
    if not question:
        raise UserError(texts["no_question"])
    if "<image>" in question:
        raise UserError(texts["image_word"])
    tokens, room = asker.length(question)
    if tokens > room:
        raise UserError(texts["too_long"].format(tokens=f"{tokens:,}", room=room))
    return open_upload(given, texts["bad_picture"])


def draw_browsing(
    page: gr.Blocks, language: Language, runs: tuple[Path | None, Path | None]
) -> None:
    import gradio as gr

    texts = TEXTS[language]
    given = {run for run in runs if run}
    names = [portable_path(run) if run else None for run in runs]
    choices = list(dict.fromkeys([*filter(None, names), *finished_runs(OUTPUTS, EXPERIMENT)]))
    with gr.Row(elem_classes="low"):
        base, tuned = (
            gr.Dropdown(
                choices, value=name, label=f"{texts[label]} ({texts['run_hint']})", scale=4,
                allow_custom_value=True,
            )
            for name, label in zip(names, ("base_run", "tuned_run"), strict=True)
        )  # fmt: skip
        opening = gr.Button(texts["open"], scale=1, min_width=90)
    head = gr.HTML(f'<p class="nothing">{texts["choose_runs"]}</p>')
    kind = gr.Radio(kind_choices(texts), value="all", label=texts["kind"])
    with gr.Row(elem_classes="low"):
        previous = gr.Button(texts["previous"], min_width=110)
        position = gr.Number(1, label=texts["position"], precision=0, min_width=80, container=False)
        following = gr.Button(texts["next"], min_width=110)
        type_name = gr.Dropdown(
            type_choices(texts), value=ALL_TYPES, label=texts["type"], scale=2, min_width=200
        )
        search = gr.Textbox(label=texts["search"], scale=3, min_width=220)
    shown = gr.HTML()

    def open_runs(base_name: str | None, tuned_name: str | None) -> tuple[Any, ...]:
        try:
            comparison = read(base_name, tuned_name, given, texts)
            return (
                runs_html(texts, language, comparison),
                gr.Radio(kind_choices(texts, count_kinds(comparison.pairs)), value="all"),
                gr.Dropdown(type_choices(texts, count_types(comparison.pairs)), value=ALL_TYPES),
                "",
                *view(comparison, texts, "all", ALL_TYPES, "", 1),
            )
        except Exception as error:
            return (error_notice(language, error), *(gr.skip() for _ in range(4)), "")

    def step(by: int, at: int | None = None) -> Any:
        """An event that goes `by` questions on from where the visitor is, or to question `at`."""

        def show(
            base_name: str | None, tuned_name: str | None, kind: str, type_name: str, text: str,
            now: int | None,
        ) -> tuple[Any, str]:  # fmt: skip
            try:
                comparison = read(base_name, tuned_name, given, texts)
                wanted = at or clamp_position(now, len(comparison.pairs)) + by
                return view(comparison, texts, kind, type_name, text, wanted)
            except Exception as error:
                return gr.skip(), error_notice(language, error)

        return show

    filters = [base, tuned, kind, type_name, search, position]
    place: dict[str, Any] = {
        "inputs": filters, "outputs": [position, shown], "api_visibility": "private",
        "concurrency_limit": 4, "show_progress": "hidden",
    }  # fmt: skip
    everything = [head, kind, type_name, search, position, shown]
    opening.click(open_runs, [base, tuned], everything, api_visibility="private")
    if all(names):
        page.load(open_runs, [base, tuned], everything, api_visibility="private")
    previous.click(step(-1), **place)
    following.click(step(1), **place)
    gr.on([position.submit, position.blur], step(0), **place)
    gr.on(
        [kind.input, type_name.input, search.input], step(0, at=1), trigger_mode="always_last",
        **place,
    )  # fmt: skip


def kind_choices(
    texts: dict[str, str], counts: dict[str, int] | None = None
) -> list[tuple[str, str]]:
    return [
        (f"{texts[f'kind_{kind}']} ({counts[kind]:,})" if counts else texts[f"kind_{kind}"], kind)
        for kind in KINDS
    ]


def type_choices(
    texts: dict[str, str], counts: dict[str, int] | None = None
) -> list[tuple[str, str]]:
    named = [(f"{name} ({n:,})", name) for name, n in (counts or {}).items()]
    return [(texts["all_types"], ALL_TYPES), *named]


def read(
    base_name: str | None, tuned_name: str | None, given: set[Path], texts: dict[str, str]
) -> Comparison:
    """The two runs that a visitor named; UserError in the page's words."""
    folders = []
    for name in (base_name, tuned_name):
        if not (name or "").strip():
            raise UserError(texts["choose_runs"])
        folder = permitted_folder(name, OUTPUTS, EXPERIMENT, given)
        if folder is None:
            raise UserError(texts["outside"].format(folder=name, outputs=portable_path(OUTPUTS)))
        absent = missing_file(folder)
        if absent:
            raise UserError(texts["no_run"].format(folder=name, name=absent))
        folders.append(folder)
    try:
        comparison = open_comparison(*folders)
    except UserError as error:
        raise UserError(texts["broken_run"].format(cause=error)) from error
    if not comparison.pairs:
        raise UserError(texts["no_common"])
    return comparison


def view(
    comparison: Comparison,
    texts: dict[str, str],
    kind: str,
    type_name: str,
    text: str,
    wanted: int | None,
) -> tuple[int, str]:
    """Position and HTML of the question at `wanted` (1 = the first) among those that match."""
    chosen = select(comparison.pairs, kind, type_name or ALL_TYPES, text or "")
    at = clamp_position(wanted, len(chosen))
    if not at:
        return 0, f'<p class="nothing">{texts["nothing"]}</p>'
    pair = chosen[at - 1]
    picture = picture_file(comparison.base, pair.base)
    return at, pair_html(texts, pair, picture, at, len(chosen))
