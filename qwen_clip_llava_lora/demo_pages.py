"""The three tabs of the demo page as Gradio components and what their buttons do.

Both sides of every tab are asked by `answering`; a visitor's Stop is kept apart for each browser
tab. A data sample is named by its number alone, and pictures of the data go into the page itself:
no request names a file of this machine.
"""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.data_formats import Data
from qwen_clip_llava_lora.demo_html import Shown, answers_html, parameters_html, sample_html
from qwen_clip_llava_lora.demo_texts import TEXTS
from qwen_clip_llava_lora.evaluation_setup import (
    Sample,
    jobs_of,
    pictures_of,
    prompt_of,
    samples_of_row,
    scorable,
)
from qwen_clip_llava_lora.scoring import VQA, score_record, vqa_problem
from shared.answering import make_record
from shared.conversation_files import IMAGE_TAG
from shared.gradio_parts import Language, cause_of, device_line, synthetic_notice
from shared.images import ImageError, open_image
from shared.options import UserError
from shared.uploads import open_upload

if TYPE_CHECKING:
    import gradio as gr

    from qwen_clip_llava_lora.contrast import Asked, Contrast, Decoding, Reply

MAX_PICTURES = 8
MAX_QUESTION = 4000  # characters
MOST_NEW_TOKENS = 2048
TOAST_S = 30
KEEP_VISITOR_S = 3600  # after a visitor has gone


@dataclass
class Run:
    """One pair of answers under way; set by Stop."""

    stopped: bool = False


@dataclass
class Visitor:
    """What a visitor's Stop stops: the last pair that was asked for."""

    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Page:
    """What all visitors of the page have in common."""

    contrast: Contrast
    name: str
    synthetic: bool
    data: Data | None
    decoding: Decoding
    manifests: Mapping[str, Mapping[str, Any]]  # adapter -> its manifest


# What a tab asks: the prompt with its pictures, and the sample that scores the answers, if any.
Collect = Callable[..., "tuple[Asked, Sample | None]"]


def draw_page(page: gr.Blocks, language: Language, common: Page) -> None:
    import gradio as gr

    texts = TEXTS[language]
    gr.Markdown(f"# {texts['title']}\n{texts['intro']}")
    device = gr.Markdown(elem_classes="device")
    page.load(
        lambda: texts["model"].format(model=common.name)
        + device_line(language, common.contrast.device),
        None, device, api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    if common.synthetic:
        gr.HTML(synthetic_notice(language, texts["synthetic"]))
    sides = draw_sides(texts, common)
    with gr.Accordion(texts["settings"], open=False):
        settings = draw_settings(texts, common.decoding)
    with gr.Tab(texts["tab_data"]):
        if common.data is None:
            gr.HTML(f'<p class="small">{html.escape(texts["no_data"])}</p>')
        else:
            draw_data(page, language, common, common.data, [*sides, *settings])
    with gr.Tab(texts["tab_one"]):
        draw_one(language, common, [*sides, *settings])
    with gr.Tab(texts["tab_many"]):
        draw_many(language, common, [*sides, *settings])
    with gr.Accordion(texts["parameters"], open=False):
        gr.HTML(parameters(texts, common), elem_classes="parameters")


def draw_sides(texts: Mapping[str, str], common: Page) -> list[gr.Dropdown]:
    """Who stands left and right; with one adapter there is nothing to choose."""
    import gradio as gr

    names = list(common.contrast.sides)
    choices = [(side_title(texts, name), name) for name in names]
    with gr.Row(visible=len(names) > 2):
        return [
            gr.Dropdown(choices, value=name, label=texts[label], filterable=False, min_width=150)
            for label, name in (("left", names[0]), ("right", names[-1]))
        ]


def draw_settings(texts: Mapping[str, str], decoding: Decoding) -> list[Any]:
    """In the order of `Decoding`'s fields."""
    import gradio as gr

    def slider(name: str, low: float, high: float, step: float) -> gr.Slider:
        value = getattr(decoding, name)
        return gr.Slider(
            min(low, value), max(high, value), value, step=step, label=texts[name],
            info=texts.get(f"{name}_what"), buttons=[], min_width=220,
        )  # fmt: skip

    with gr.Row():
        sliders = [
            slider("max_new_tokens", 1, max(256, 2 * decoding.max_new_tokens), 1),
            slider("temperature", 0, 2, 0.05),
            slider("top_p", 0.05, 1, 0.05),
            slider("repetition_penalty", 1, 2, 0.05),
        ]
        seed = gr.Number(
            decoding.seed, label=texts["seed"], info=texts["seed_what"], precision=0, min_width=220
        )
    return [*sliders, seed]


# Unprocessed values throughout: Gradio's own reading of a broken picture would hide the cause. That
# a file is an upload, and no other file of this machine, Gradio checks in either case.
ASKS: dict[str, Any] = {
    "preprocess": False, "api_visibility": "private", "concurrency_id": "model",
    "show_progress": "hidden",
}  # fmt: skip
LOOKS: dict[str, Any] = {
    "preprocess": False, "api_visibility": "private", "concurrency_limit": 8,
    "show_progress": "hidden",
}  # fmt: skip


def draw_buttons(texts: Mapping[str, str]) -> tuple[gr.Button, gr.Button]:
    import gradio as gr

    with gr.Row(elem_classes="asks"):
        return (
            gr.Button(texts["ask"], variant="primary", scale=3, min_width=120),
            gr.Button(texts["stop"], scale=1, min_width=90),
        )


def wire(
    language: Language,
    common: Page,
    collect: Collect,
    start: Callable[..., Any],
    stop: gr.Button,
    visitor: gr.State,
    given: Sequence[Any],
    settings: Sequence[Any],
    result: gr.HTML,
) -> Any:
    """A tab's asking, which `start` makes an event of, and its Stop; returns the event."""
    inputs = [visitor, *settings, *given]
    asked = start(answering(common, language, collect), inputs, result, **ASKS)
    stop.click(stop_answers, visitor, None, queue=False, api_visibility="private")
    return asked


def draw_visitor() -> gr.State:
    import gradio as gr

    return gr.State(Visitor(), time_to_live=KEEP_VISITOR_S)


def draw_data(
    page: gr.Blocks, language: Language, common: Page, data: Data, settings: Sequence[Any]
) -> None:
    import gradio as gr

    texts = TEXTS[language]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Row(elem_classes="low"):
                previous = gr.Button(texts["previous"], min_width=90)
                index = gr.Number(0, label=texts["index"], precision=0, min_width=90)
                following = gr.Button(texts["next"], min_width=90)
                chance = gr.Button(texts["random"], min_width=90)
            sample = gr.HTML(elem_classes="sample")
        with gr.Column(scale=3, min_width=320):
            ask, stop = draw_buttons(texts)
            result = gr.HTML(answers_html(texts, []), elem_classes="result")
    visitor = draw_visitor()

    def show(where: Callable[[int, int], int]) -> Callable[..., tuple[Any, ...]]:
        """An event that goes to `where(index, number of rows)`; answers under way end."""

        def handle(now: Any, run: Visitor) -> tuple[Any, ...]:
            try:
                run.run.stopped = True
                wanted = where(whole(now), len(data.rows))
                found = sample_at(data, wanted, texts)
                line = texts["of"].format(data=data.name, last=f"{len(data.rows) - 1:,}")
                return wanted, sample_html(texts, found, line), answers_html(texts, [])
            except Exception as error:
                raise toast(language, error) from error

        return handle

    place: dict[str, Any] = {
        "inputs": [index, visitor], "outputs": [index, sample, result], **LOOKS,
    }  # fmt: skip
    page.load(show(lambda now, n: now), **place)
    # a number that was typed and not yet entered is shown first, then asked about
    shown = ask.click(show(lambda now, n: now), **place)
    collect = sample_asked(data, texts)
    asked = wire(language, common, collect, shown.success, stop, visitor, [index], settings, result)
    place["cancels"] = [asked]  # or answers under way would go on beside another sample
    index.submit(show(lambda now, n: now), **place)
    previous.click(show(lambda now, n: (now - 1) % n), **place)
    following.click(show(lambda now, n: (now + 1) % n), **place)
    chance.click(show(lambda now, n: random.randrange(n)), **place)


def draw_one(language: Language, common: Page, settings: Sequence[Any]) -> None:
    import gradio as gr

    texts = TEXTS[language]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = gr.Image(
                label=texts["picture"], type="filepath", sources=["upload", "clipboard"],
                height=320, placeholder=texts["picture_hint"], elem_classes="picture",
            )  # fmt: skip
            question = gr.Textbox(
                label=texts["question"], placeholder=texts["question_hint"], max_lines=6
            )
        with gr.Column(scale=3, min_width=320):
            ask, stop = draw_buttons(texts)
            result = gr.HTML(answers_html(texts, []), elem_classes="result")

    def collect(given: Mapping[str, Any] | None, written: str | None) -> tuple[Asked, None]:
        if given is None:
            raise UserError(texts["no_picture"])
        return typed([given], written, texts), None

    def look(given: Mapping[str, Any] | None) -> Any:
        """A file that is no picture is taken off: the browser would show a broken icon."""
        try:
            if given is not None:
                open_upload(given, texts["bad_picture"])
            return gr.skip()
        except UserError as error:
            gr.Warning(html.escape(str(error)), duration=TOAST_S)
            return None

    start = partial(gr.on, [ask.click, question.submit])
    wire(
        language,
        common,
        collect,
        start,
        stop,
        draw_visitor(),
        [picture, question],
        settings,
        result,
    )
    picture.change(look, picture, picture, **LOOKS)


def draw_many(language: Language, common: Page, settings: Sequence[Any]) -> None:
    import gradio as gr

    texts = TEXTS[language]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gallery = gr.Gallery(
                label=texts["pictures"].format(most=MAX_PICTURES), file_types=["image"],
                interactive=True, sources=["upload", "clipboard"], columns=3, height=260,
                object_fit="contain", buttons=[], elem_classes="gallery",
            )  # fmt: skip
            question = gr.Textbox(
                label=texts["question"], placeholder=texts["question_many_hint"], max_lines=6
            )
            gr.HTML(f'<p class="small">{html.escape(texts["pictures_what"])}</p>')
        with gr.Column(scale=3, min_width=320):
            ask, stop = draw_buttons(texts)
            result = gr.HTML(answers_html(texts, []), elem_classes="result")

    def collect(given: list[dict[str, Any]] | None, written: str | None) -> tuple[Asked, None]:
        uploads = [entry["image"] for entry in given or []]
        if not uploads:
            raise UserError(texts["no_pictures"])
        if len(uploads) > MAX_PICTURES:
            raise UserError(texts["too_many"].format(n=len(uploads), most=MAX_PICTURES))
        return typed(uploads, written, texts), None

    start = partial(gr.on, [ask.click, question.submit])
    wire(
        language,
        common,
        collect,
        start,
        stop,
        draw_visitor(),
        [gallery, question],
        settings,
        result,
    )


# What the buttons do


def answering(common: Page, language: Language, collect: Collect) -> Callable[..., Iterator[Any]]:
    """Both sides' answers as they grow; an error is a toast, and the page goes on."""
    texts = TEXTS[language]

    def handle(
        visitor: Visitor, left: str, right: str, max_new_tokens: Any, temperature: Any, top_p: Any,
        penalty: Any, seed: Any, *given: Any,
    ) -> Iterator[Any]:  # fmt: skip
        try:
            run = visitor.run = Run()
            decoding = chosen((max_new_tokens, temperature, top_p, penalty, seed), texts)
            for name in (left, right):
                if name not in common.contrast.sides:
                    raise UserError(texts["bad_side"].format(name=f"{name!r:.40}"))
            asked, sample = collect(*given)
            shown = [Shown(side_title(texts, name)) for name in (left, right)]
            yield answers_html(texts, shown)
            for number, reply in common.contrast.ask(
                [left, right], asked, decoding, lambda: run.stopped
            ):
                name = shown[number].name
                scores = None if sample is None else scores_of(sample, common.data, reply)
                shown[number] = Shown(name, reply, scores)
                yield answers_html(texts, shown, decoding.temperature > 0)
        except Exception as error:
            yield answers_html(texts, [])
            raise toast(language, error) from error

    return handle


def stop_answers(visitor: Visitor) -> None:
    visitor.run.stopped = True


def toast(language: Language, error: Exception) -> Exception:
    """What Gradio shows in a corner of the page: the cause, in its language where we know it."""
    import gradio as gr

    texts = TEXTS[language]
    if isinstance(error, UserError) and "the model has room for" in str(error):
        error = UserError(texts["too_long"].format(cause=error))
    message = html.escape(cause_of(language, error))
    return gr.Error(message, duration=TOAST_S, print_exception=False)


def sample_asked(data: Data, texts: Mapping[str, str]) -> Collect:
    """The sample of a number, asked to the letter as evaluate.py asks it."""

    def collect(index: Any) -> tuple[Asked, Sample]:
        from qwen_clip_llava_lora.contrast import Asked

        sample = sample_at(data, whole(index), texts)
        try:
            images = tuple(open_image(picture) for picture in pictures_of(sample))
        except ImageError as error:
            raise UserError(texts["bad_row"].format(cause=error)) from error
        (job,) = jobs_of([sample])
        target = job.details["target"].strip() if scorable([job]) else None
        return Asked(prompt_of(sample), images, target), sample

    return collect


def sample_at(data: Data, index: int, texts: Mapping[str, str]) -> Sample:
    """The row's first answer as a sample. UserError for no row of this number, or a bad one."""
    if not 0 <= index < len(data.rows):
        raise UserError(
            texts["no_index"].format(index=index, data=data.name, last=len(data.rows) - 1)
        )
    try:
        return next(samples_of_row(data, index, task_of(data), "first"))
    except UserError as error:
        raise UserError(texts["bad_row"].format(cause=error)) from error


def task_of(data: Data) -> str:
    """As evaluate.py's --task auto; a class can be looked for where there is a list of them."""
    return "text" if data.kind is None or (data.kind == "label" and not data.classes) else data.kind


def scores_of(sample: Sample, data: Data | None, reply: Reply) -> dict[str, Any] | None:
    """evaluate.py's scores of one answer; none of an answer that was stopped."""
    if reply.answer is None or reply.stopped or data is None:
        return None
    (job,) = jobs_of([sample])
    record = make_record(job, reply.answer, seconds=reply.seconds)
    task = task_of(data)
    official = task == "question" and vqa_problem([record]) is None
    row = score_record(record, task, data.classes, official)
    found = {key: row[key] for key in ("exact_match", "token_f1")}
    if official:
        found["vqa"] = row["scores"][VQA]
    if task == "label":
        found["predicted"] = row["predicted"]
    if reply.likelihood is not None:
        value, n = reply.likelihood.log_prob, reply.likelihood.n_tokens
        found |= {"log_likelihood": value, "per_token": value / n, "reference_tokens": n}
    elif reply.no_likelihood is not None:
        found["log_likelihood"] = reply.no_likelihood
    return found


def typed(uploads: Sequence[Mapping[str, Any]], written: str | None, texts: Any) -> Asked:
    """Pictures and a question that a visitor gave. Raises UserError in the page's words."""
    from qwen_clip_llava_lora.contrast import Asked

    images = tuple(open_upload(upload, texts["bad_picture"]) for upload in uploads)
    text = (written or "").strip()
    if not text:
        raise UserError(texts["no_question"])
    if len(text) > MAX_QUESTION:
        raise UserError(texts["long_question"].format(n=len(text), most=MAX_QUESTION))
    n = text.count(IMAGE_TAG)
    if n not in (0, len(images)):
        raise UserError(texts["bad_tags"].format(n=n, pictures=len(images)))
    return Asked(text, images)


# Small parts


def chosen(values: Sequence[Any], texts: Mapping[str, str]) -> Decoding:
    """The settings as the page sends them; a request may send anything."""
    from qwen_clip_llava_lora.contrast import Decoding

    try:
        tokens, temperature, top_p, penalty, seed = (float(value) for value in values)
        return Decoding(min(int(tokens), MOST_NEW_TOKENS), temperature, top_p, penalty, int(seed))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(texts["bad_setting"].format(cause=error)) from error
    except UserError as error:
        raise UserError(texts["bad_setting"].format(cause=error)) from error


def whole(value: Any) -> int:
    """An emptied or forged field is no sample's number."""
    return value if isinstance(value, int) else int(value) if isinstance(value, float) else -1


def side_title(texts: Mapping[str, str], name: str) -> str:
    from qwen_clip_llava_lora.contrast import BASE

    return texts["base"] if name == BASE else name


def parameters(texts: Mapping[str, str], common: Page) -> str:
    from qwen_clip_llava_lora.contrast import trained_of

    contrast = common.contrast
    kind = next(iter(contrast.sides.values())).asker.family.config.model_type
    folders = {name: side.folder for name, side in contrast.sides.items() if side.folder}
    trained = {name: trained_of(folder, kind) for name, folder in folders.items()}
    return parameters_html(texts, contrast.counts, trained, common.manifests, folders)
