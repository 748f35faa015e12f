"""The tabs whose answer is a text: image description, visual question answering, the BLIP demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lavis_apps.app_html import (
    bar_html,
    csv_bytes,
    download_html,
    gallery_html,
    map_figure,
    said_html,
    small_html,
    table_html,
)
from lavis_apps.app_tabs import Tabs, Told, lines_of, number_of, open_upload, text_of, whole_of
from lavis_apps.blip_demo import FUNCTIONS, MATCHING, QUESTION, STRATEGIES, BlipDemo

if TYPE_CHECKING:
    import gradio as gr

# (name, lowest, highest, at the start, step): LAVIS' values, and what it does not offer
CAPTION_SLIDERS = (
    ("n", 1, 10, 1, 1),
    ("num_beams", 1, 10, 3, 1),
    ("max_length", 5, 100, 40, 1),
    ("min_length", 0, 60, 5, 1),
    ("top_p", 0.05, 1, 0.9, 0.05),
    ("temperature", 0.1, 2, 1, 0.05),
    ("length_penalty", -2, 2, 1, 0.1),
    ("repetition_penalty", 1, 2, 1, 0.05),
)
WHOLE = ("n", "num_beams", "max_length", "min_length")
N_NUCLEUS = 5  # LAVIS shows so many captions of nucleus sampling, one of beam search
MAX_SEED = 2**31 - 1
MAX_TURNS = 20  # of a dialogue; earlier ones are left out


def draw_caption(tabs: Tabs) -> None:
    import gradio as gr

    texts, examples = tabs.texts, tabs.page.examples
    with tabs.columns() as result:
        picture = tabs.picture()
        model = tabs.model("caption")
        method = tabs.choice("method", ("beam", "nucleus"), "beam")
        sliders = {CAPTION_SLIDERS[0][0]: tabs.slider(*CAPTION_SLIDERS[0])}
        with tabs.settings():
            prompt = tabs.text("prompt")
            with gr.Row():
                sliders |= {row[0]: tabs.slider(*row) for row in CAPTION_SLIDERS[1:]}
            seed = gr.Number(0, label=texts["seed"], info=texts["seed_what"], precision=0)
        button = tabs.button("go_caption")
    tabs.examples([[path] for path, _, _ in examples.rows], [picture])
    method.change(
        lambda chosen: N_NUCLEUS if chosen == "nucleus" else 1, method, sliders["n"],
        queue=False, api_visibility="private", show_progress="hidden",
    )  # fmt: skip

    def work(
        use: Any, given: Any, model: Any, method: Any, prompt: Any, seed: Any, *values: Any
    ) -> str:
        image = open_upload(given, texts)
        settings: dict[str, Any] = {}
        for (name, low, high, _, _), value in zip(CAPTION_SLIDERS, values, strict=True):
            read = whole_of if name in WHOLE else number_of
            settings[name] = read(value, low, high, texts, name)
        if method not in ("beam", "nucleus"):
            raise Told(texts["bad_choice"].format(value=str(method)[:40]))
        if method == "beam" and settings["n"] > settings["num_beams"]:
            raise Told(texts["few_beams"].format(**settings))
        if settings["min_length"] > settings["max_length"]:
            raise Told(texts["bad_lengths"].format(**settings))
        settings["seed"] = whole_of(seed, 0, MAX_SEED, texts, "seed")
        start = text_of(prompt, texts, None) or None  # an empty field: the model's own
        _, name = tabs.chosen(model, "caption")
        with use("caption", name) as captioner:
            (found,) = captioner.caption([image], method=method, prompt=start, **settings)
        head = ("#", texts["caption"], texts["score"])
        rows = [(i, one.text, one.score) for i, one in enumerate(found, start=1)]
        saved = download_html(texts["save_csv"], "captions.csv", csv_bytes(head, rows))
        return (
            said_html(found[0].text or texts["empty"]) + table_html(head, rows) + saved
            + tabs.foot(name, texts["score_what"])
        )  # fmt: skip

    inputs = [picture, model, method, prompt, seed, *sliders.values()]
    tabs.answer(work, button, inputs, result, kind="caption", submits=[prompt])


def draw_vqa(tabs: Tabs) -> None:
    import gradio as gr

    texts, examples = tabs.texts, tabs.page.examples
    with tabs.columns() as result:
        picture = tabs.picture()
        question = tabs.text("question", examples.question)
        model = tabs.model("vqa")
        with tabs.settings():
            candidates = tabs.text("candidates", lines=3)
            n = tabs.slider("n_answers", 1, 10, 5, 1)
            attention = tabs.tick("attention")
            dialogue = tabs.tick("dialogue")
            forget = gr.Button(texts["forget"], size="sm")
        button = tabs.button("go_vqa")
    tabs.examples([[path, asked] for path, _, asked in examples.rows], [picture, question])
    turns = gr.State([], time_to_live=3600)  # (question, answer), kept apart for each visitor
    forget.click(lambda: [], None, turns, queue=False, api_visibility="private")

    def work(
        use: Any, given: Any, question: Any, model: Any, candidates: Any, n: Any, attention: Any,
        dialogue: Any, turns: list[tuple[str, str]],
    ) -> tuple[str, list[tuple[str, str]]]:  # fmt: skip
        image = open_upload(given, texts)
        asked = text_of(question, texts, "no_question")
        ranked = lines_of(candidates, texts, None)
        n = whole_of(n, 1, 10, texts, "n_answers")
        history = turns if dialogue is True else []
        _, name = tabs.chosen(model, "vqa")
        with use("vqa", name) as answerer:
            (found,) = answerer.answer(
                [image], [asked], candidates=ranked or None, history=history, n=n,
                attention=attention is True,
            )  # fmt: skip
        head = ("#", texts["answer"], texts["probability"], texts["log_likelihood"])
        top = list(enumerate(found.top, start=1))
        shown = [(i, a.answer, bar_html(a.probability), a.log_likelihood) for i, a in top]
        plain = [(i, a.answer, a.probability, a.log_likelihood) for i, a in top]
        parts = [
            said_html(found.answer or texts["empty"]),
            table_html(head, shown),
            download_html(texts["save_csv"], "answers.csv", csv_bytes(head, plain)),
        ]
        if found.attention is not None:
            parts.append(
                gallery_html(
                    [map_figure(texts, found.attention, image, texts["attention"], "attention")]
                )
            )
        if dialogue is True:
            turns = [*turns, (asked, found.answer)][-MAX_TURNS:]
            parts.append(table_html((texts["question"], texts["answer"]), turns))
        why = texts["ranked_what" if ranked else "confidence_what"]
        return "".join(parts) + tabs.foot(name, why), turns

    inputs = [picture, question, model, candidates, n, attention, dialogue, turns]
    tabs.answer(work, button, inputs, [result, turns], kind="vqa", submits=[question])


def draw_demo(tabs: Tabs) -> None:
    """The BLIP demo's own page; `/inference` is its endpoint, on the English page."""
    import gradio as gr

    texts, examples = tabs.texts, tabs.page.examples
    gr.HTML(small_html(texts["demo_what"]))
    output = gr.Textbox(label=texts["output"], lines=3, elem_classes="output", render=False)
    with tabs.columns(output) as result:
        picture = tabs.picture()
        function = gr.Radio(list(FUNCTIONS), value=FUNCTIONS[0], label=texts["function"])
        text = tabs.text("demo_text")
        strategy = gr.Radio(list(STRATEGIES), value=STRATEGIES[0], label=texts["strategy"])
        button = tabs.button("go_demo")
    rows = [
        [path, name, {QUESTION: asked, MATCHING: caption}.get(name, "")]
        for (path, caption, asked), name in zip(examples.rows, FUNCTIONS, strict=False)
    ]
    tabs.examples(rows, [picture, function, text])

    def inference(
        raw_image: Any, model_n: Any, question: Any, strategy: Any, progress: Any = gr.Progress()  # noqa: B008
    ) -> str:  # fmt: skip
        def work(use: Any) -> str:
            image = open_upload(raw_image, texts)
            words = text_of(question, texts, None)
            return BlipDemo(use).inference(image, model_n, words, strategy)

        return tabs.guarded(work, progress)

    api_name = "inference" if tabs.language == "en" else None
    inputs: list[gr.components.Component] = [picture, function, text, strategy]
    tabs.wire(inference, button, inputs, result, kind="demo", submits=[text], api_name=api_name)
