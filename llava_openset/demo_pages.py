"""The two tabs of the demo page as Gradio components and what their buttons do.

A visitor's answers are in a `Shown` or `Batch`, which Gradio keeps apart for each browser tab. Only
the Ask buttons ask the model; score and threshold draw the verdict anew from what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava_openset.answer_words import key_of
from llava_openset.classifying import KEYS, classify
from llava_openset.demo_html import (
    Asked,
    details_html,
    number,
    score_range,
    table_html,
    verdict_html,
)
from llava_openset.demo_texts import TEXTS
from llava_openset.matching import ABSTAIN, AMBIGUOUS, UNKNOWN, match_answer
from llava_openset.protocols import CHOICE_SCORES
from shared.gradio_parts import Language, device_line, error_notice, synthetic_notice
from shared.options import UserError
from shared.uploads import is_upload, open_upload

if TYPE_CHECKING:
    import gradio as gr

    from shared.vision_language import VisionLanguage

VARIANTS = tuple(key for key in KEYS if key != "likelihood")
FIRST_VARIANT = "freetext-list_unknown"
MAX_CLASSES = 100
MAX_NAME = 60  # characters
MAX_FILES = 32
BATCH_SIZE = 4  # pictures at once: the table grows by as many
DECIMALS = 3  # of the slider
KEEP_ANSWERS_S = 3600  # after a visitor has gone
COMMAS = ",，、;；\n"


@dataclass(frozen=True)
class Page:
    """What all visitors of the page have in common. `thresholds`: score -> that of `run`."""

    model: VisionLanguage
    name: str
    adapter: str | None
    synthetic: bool
    question: str
    form: str
    normalisation: Literal["mean", "sum"]
    classes: tuple[str, ...]
    examples: tuple[str, ...] = ()
    run: str | None = None
    thresholds: Mapping[str, float] | None = None

    def start(self, score: str) -> float:
        """Where the slider of a score starts: the run's threshold, else the middle of its range."""
        low, high = score_range(score, len(self.classes), self.normalisation)
        return round((self.thresholds or {}).get(score, (low + high) / 2), DECIMALS)

    def exact(self, score: str, value: Any) -> float:
        """The slider's value; where it stands on the run's own, that with all its decimals."""
        value = float(value)
        own = (self.thresholds or {}).get(score)
        return own if own is not None and round(own, DECIMALS) == round(value, DECIMALS) else value

    def note(self, score: str, threshold: float, classes: Sequence[str], texts: Any) -> str:
        """Where a threshold is from, and whether it was chosen for these classes."""
        if self.run is None:
            return texts["not_calibrated"]
        own = (self.thresholds or {}).get(score)
        if own is None:
            return texts["not_in_run"].format(run=self.run)
        if set(classes) != set(self.classes):
            return texts["other_list"].format(run=self.run)
        if threshold != own:
            return texts["by_hand"].format(run=self.run, value=number(own))
        return texts["from_run"].format(run=self.run)


@dataclass(frozen=True)
class Shown:
    """What the first tab shows: a picture's answers, or why there are none (HTML). `refused` is
    said of a picture that was taken off again."""

    asked: Asked | None = None
    notice: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Batch:
    """What the second tab shows: the rows so far of `n_expected`."""

    rows: tuple[Asked, ...] = ()
    n_expected: int = 0
    notice: str = ""


def draw_page(page: gr.Blocks, language: Language, common: Page) -> None:
    import gradio as gr

    texts = TEXTS[language]
    gr.Markdown(f"# {texts['title']}\n{texts['intro']}")
    device = gr.Markdown(elem_classes="device")
    page.load(
        lambda: model_line(common, texts) + device_line(language, common.model.device),
        None, device, api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    if common.synthetic:
        gr.HTML(synthetic_notice(language, texts["synthetic"]))
    gr.HTML(f'<p class="small">{texts["caveat"]}</p>')
    with gr.Row():
        classes = gr.Textbox(
            ", ".join(common.classes), label=texts["classes"], lines=2, max_lines=6, scale=3,
            info=texts["classes_what"].format(most=MAX_CLASSES), min_width=280,
        )  # fmt: skip
        variant = gr.Dropdown(
            [(texts[key], key) for key in VARIANTS], value=FIRST_VARIANT, filterable=False,
            label=texts["variant"], info=texts["variant_what"], scale=2, min_width=280,
        )  # fmt: skip
    with gr.Tab(texts["tab_one"]):
        draw_one(language, common, classes, variant)
    with gr.Tab(texts["tab_many"]):
        draw_many(language, common, classes, variant)


def model_line(common: Page, texts: dict[str, str]) -> str:
    name = common.name
    if common.adapter:
        name = texts["with_adapter"].format(model=name, adapter=common.adapter)
    return f"{texts['model'].format(model=name)} · "


# Unprocessed values throughout: Gradio's own reading of a broken picture would hide the cause. That
# a file is an upload, and no other file of this machine, Gradio checks in either case.
ASKS: dict[str, Any] = {
    "preprocess": False, "api_visibility": "private", "concurrency_id": "model",
}  # fmt: skip
SHOWS: dict[str, Any] = {
    "preprocess": False, "api_visibility": "private", "queue": False, "show_progress": "hidden",
}  # fmt: skip


def draw_one(language: Language, common: Page, classes: gr.Textbox, variant: gr.Dropdown) -> None:
    import gradio as gr

    texts = TEXTS[language]
    first = CHOICE_SCORES[0]
    state = gr.State(Shown(), time_to_live=KEEP_ANSWERS_S)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = gr.Image(
                label=texts["picture"], type="filepath", sources=["upload", "clipboard"],
                height=320, placeholder=texts["picture_hint"], elem_classes="picture", render=False,
            )  # fmt: skip
            if common.examples:  # above the picture: on a phone the verdict is below the button
                gr.Examples(
                    [[name] for name in common.examples], [picture], label=texts["examples"],
                    api_visibility="private",
                )  # fmt: skip
            picture.render()
            button = gr.Button(texts["ask"], variant="primary")
        with gr.Column(scale=3, min_width=320):
            show = showing(common, language)
            verdict, details = show(Shown(), first, common.start(first))
            verdict, score, threshold, details = (
                gr.HTML(verdict, elem_classes="answer"),
                *draw_decision(texts, common),
                gr.HTML(details, elem_classes="details"),
            )

    shown = [verdict, details]
    decision = [state, score, threshold]
    ask = button.click(
        asking(common, language), [picture, classes, variant, score, threshold, state],
        [state, threshold], show_progress_on=verdict, **ASKS,
    )  # fmt: skip
    ask.then(show, decision, shown, **SHOWS)
    look = picture.change(looking(language), [picture, state], [picture, state], **SHOWS)
    look.then(show, decision, shown, **SHOWS)
    threshold.input(show, decision, shown, trigger_mode="always_last", **SHOWS)
    choose = score.input(choosing(common), [state, score], threshold, **SHOWS)
    choose.then(show, decision, shown, **SHOWS)


def draw_many(language: Language, common: Page, classes: gr.Textbox, variant: gr.Dropdown) -> None:
    import gradio as gr

    texts = TEXTS[language]
    first = CHOICE_SCORES[0]
    state = gr.State(Batch(), time_to_live=KEEP_ANSWERS_S)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                file_count="multiple", label=texts["files"].format(most=MAX_FILES), height=200,
                elem_classes="files",
            )  # fmt: skip
            gr.HTML(f'<p class="small">{texts["many_what"]}</p>')
            button = gr.Button(texts["start"], variant="primary")
        with gr.Column(scale=3, min_width=320):
            score, threshold = draw_decision(texts, common)
    show = showing_many(common, language)
    table = gr.HTML(show(Batch(), first, common.start(first)), elem_classes="answer")

    decision = [state, score, threshold]
    ask = button.click(
        asking_many(common, language), [files, classes, variant, score, threshold],
        [state, table, threshold], show_progress="hidden", **ASKS,
    )  # fmt: skip
    ask.then(show, decision, table, **SHOWS)
    threshold.input(show, decision, table, trigger_mode="always_last", **SHOWS)
    choose = score.input(choosing(common), [state, score], threshold, **SHOWS)
    choose.then(show, decision, table, **SHOWS)


def draw_decision(texts: dict[str, str], common: Page) -> tuple[gr.Radio, gr.Slider]:
    import gradio as gr

    first = CHOICE_SCORES[0]
    score = gr.Radio(
        [(texts[name], name) for name in CHOICE_SCORES], value=first, label=texts["score"],
        info=texts["score_what"],
    )  # fmt: skip
    start = common.start(first)
    low, high = score_range(first, len(common.classes), common.normalisation, start)
    threshold = gr.Slider(
        low, high, start, step=10**-DECIMALS, label=texts["threshold"],
        info=texts["threshold_what"], buttons=[],
    )  # fmt: skip
    return score, threshold


# What the buttons do


def asking(common: Page, language: Language) -> Callable[..., tuple[Shown, Any]]:
    """One picture asked for an answer and for likelihoods."""
    texts = TEXTS[language]

    def ask(
        given: dict[str, Any] | None, written: str | None, key: str, score: str, threshold: Any,
        before: Shown,
    ) -> tuple[Shown, Any]:  # fmt: skip
        import gradio as gr

        try:
            if given is None and before.refused:
                return Shown(notice=before.refused, refused=before.refused), gr.skip()
            if given is None:
                raise UserError(texts["no_picture"])
            names = read_classes(written, texts)
            open_upload(given, texts["bad_picture"])
            (asked,) = ask_pictures(common, key, [given], names)
            if asked.error:
                raise UserError(texts["cannot_ask"].format(cause=asked.error))
            return Shown(asked), slider(common, [asked], score, threshold)
        except Exception as error:
            return Shown(notice=error_notice(language, error)), gr.skip()

    return ask


def asking_many(common: Page, language: Language) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Several pictures; the table grows. One that is broken is a row with its cause."""
    texts = TEXTS[language]
    show = showing_many(common, language)

    def ask(
        given: list[dict[str, Any]] | None, written: str | None, key: str, score: str,
        threshold: Any,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        import gradio as gr

        def now(batch: Batch) -> tuple[Any, ...]:
            return batch, show(batch, score, threshold), gr.skip()

        try:
            names = read_classes(written, texts)
            if not given:
                raise UserError(texts["no_files"])
            if len(given) > MAX_FILES:
                raise UserError(texts["too_many_files"].format(n=len(given), most=MAX_FILES))
            batch = Batch(n_expected=len(given))
            yield now(batch)
            for asked in ask_pictures(common, key, given, names):
                batch = Batch((*batch.rows, asked), len(given))
                if len(batch.rows) < len(given):
                    yield now(batch)
            yield batch, gr.skip(), slider(common, batch.rows, score, threshold)
        except Exception as error:
            yield now(Batch(notice=error_notice(language, error)))

    return ask


def showing(common: Page, language: Language) -> Callable[[Shown, str, Any], tuple[str, str]]:
    """Verdict and details of what is there, at this score and threshold; no model is asked."""
    texts = TEXTS[language]

    def show(shown: Shown, score: str, value: Any) -> tuple[str, str]:
        try:
            check_score(score)
            threshold = common.exact(score, value)
            classes = shown.asked.classes if shown.asked else common.classes
            note = common.note(score, threshold, classes, texts)
            return (
                shown.notice or verdict_html(texts, shown.asked, score, threshold, note),
                details_html(texts, shown.asked, score, threshold, common.normalisation),
            )
        except Exception as error:
            return error_notice(language, error), ""

    return show


def showing_many(common: Page, language: Language) -> Callable[[Batch, str, Any], str]:
    texts = TEXTS[language]

    def show(batch: Batch, score: str, value: Any) -> str:
        try:
            check_score(score)
            threshold = common.exact(score, value)
            classes = batch.rows[0].classes if batch.rows else common.classes
            note = common.note(score, threshold, classes, texts)
            return batch.notice or table_html(
                texts, batch.rows, score, threshold, note, common.synthetic, batch.n_expected
            )
        except Exception as error:
            return error_notice(language, error)

    return show


def choosing(common: Page) -> Callable[[Shown | Batch, str], Any]:
    """Another score: the slider gets its range and the run's threshold of it."""

    def choose(state: Shown | Batch, score: str) -> Any:
        check_score(score)
        rows = state.rows if isinstance(state, Batch) else [state.asked] if state.asked else []
        return slider(common, rows, score, common.start(score))

    return choose


def slider(common: Page, rows: Sequence[Asked], score: str, threshold: Any) -> Any:
    """The slider with a range that has room for these rows' values of the score."""
    import gradio as gr

    check_score(score)
    values = [row.likely.outcome.scores[score] for row in rows if not row.error]
    n_classes = len(rows[0].classes) if rows else len(common.classes)
    low, high = score_range(score, n_classes, common.normalisation, *values)
    return gr.Slider(low, high, value=min(max(float(threshold), low), high))


def looking(language: Language) -> Callable[..., tuple[Any, Shown]]:
    """A new picture takes the old one's answers away; a file that is no picture is taken off with
    its cause, for the browser would show a broken icon."""
    texts = TEXTS[language]

    def look(given: dict[str, Any] | None, shown: Shown) -> tuple[Any, Shown]:
        import gradio as gr

        if given is None:
            return gr.skip(), Shown(notice=shown.refused, refused=shown.refused)
        if shown.asked and shown.asked.likely.name == given["path"]:
            return gr.skip(), shown  # a quick visitor's question was answered before this look
        try:
            open_upload(given, texts["bad_picture"])
            return gr.skip(), Shown()
        except Exception as error:
            notice = error_notice(language, error)
            return None, Shown(notice=notice, refused=notice)

    return look


# Small parts


def read_classes(written: str | None, texts: dict[str, str]) -> list[str]:
    """Names from lines or between commas, checked. Raises UserError in the page's words."""
    text = written or ""
    for sign in COMMAS:
        text = text.replace(sign, ",")
    names = [name for part in text.split(",") if (name := " ".join(part.split()))]
    if not names:
        raise UserError(texts["no_classes"])
    if len(names) == 1:
        raise UserError(texts["one_class"].format(name=names[0]))
    if len(names) > MAX_CLASSES:
        raise UserError(texts["too_many"].format(n=len(names), most=MAX_CLASSES))
    seen = set()
    for name in names:
        if len(name) > MAX_NAME:
            raise UserError(texts["long_name"].format(n=len(name), name=name[:MAX_NAME]))
        if name.lower() in (UNKNOWN, ABSTAIN, AMBIGUOUS):
            raise UserError(texts["reserved"].format(name=name))
        key = key_of(name)
        if not key:
            raise UserError(texts["no_word"].format(name=name))
        if key in seen:
            raise UserError(texts["twice"].format(name=name))
        seen.add(key)
    try:
        match_answer("", names)
    except ValueError as error:
        raise UserError(str(error)) from error
    return names


def check_score(score: Any) -> None:
    if score not in CHOICE_SCORES:
        raise UserError(f"score {score!r:.40}: one of {', '.join(CHOICE_SCORES)}")


def own_name(given: Mapping[str, Any]) -> str:
    return given.get("orig_name") or Path(given["path"]).name


def ask_pictures(
    common: Page, key: str, given: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> Iterator[Asked]:
    """Uploads in their order, each asked for a free answer and for the classes' likelihoods."""
    if key not in VARIANTS:
        raise UserError(f"prompt {key!r:.40}: one of {', '.join(VARIANTS)}")
    if not all(is_upload(upload["path"]) for upload in given):
        raise UserError("only an uploaded picture is opened")
    files = [upload["path"] for upload in given]
    free, likely = (
        classify(
            common.model, protocol, files, classes, common.question, form=common.form,
            normalisation=common.normalisation, batch_size=BATCH_SIZE,
        )
        for protocol in (key, "likelihood")
    )  # fmt: skip
    for upload, said, scored in zip(given, free, likely, strict=True):
        yield Asked(own_name(upload), tuple(classes), said, scored)
