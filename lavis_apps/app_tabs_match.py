"""The tabs about texts and pictures together: matching, text localization, classification."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lavis_apps.app_html import (
    bar_html,
    csv_bytes,
    download_html,
    gallery_html,
    map_figure,
    matrix_html,
    said_html,
    table_html,
)
from lavis_apps.app_models import model_and_adapter
from lavis_apps.app_tabs import (
    Tabs,
    Told,
    lines_of,
    number_of,
    open_upload,
    open_uploads,
    text_of,
    whole_of,
)
from shared.loading import model_folder
from shared.options import MissingError, read_json

if TYPE_CHECKING:
    import gradio as gr

MOST_PAIRS = 400  # of pictures and texts in one answer
MOST_MAPS = 8
BLIP_BLOCKS = 12
SCORINGS = ("itc", "itm", "clip")


def layer_slider(tabs: Tabs) -> gr.Slider:
    """1 to the blocks of the first matching model's text encoder, at LAVIS' 7th of 12."""
    from lavis_apps.localization import default_block

    try:
        model, _ = model_and_adapter(tabs.page.shelf.models["matching"][0])
        config = read_json(model_folder(model) / "config.json")
        blocks = int(config.get("text_config", {}).get("num_hidden_layers", BLIP_BLOCKS))
    except MissingError:
        blocks = BLIP_BLOCKS
    return tabs.slider("layer", 1, max(blocks, 2), default_block(blocks) + 1, 1)


def check_pairs(n: int, texts: Mapping[str, str]) -> None:
    """The matching head looks at each pair by itself."""
    if n > MOST_PAIRS:
        raise Told(texts["many_pairs"].format(n=n, most=MOST_PAIRS))


def draw_matching(tabs: Tabs) -> None:
    texts, examples = tabs.texts, tabs.page.examples
    with tabs.columns() as result:
        pictures = tabs.pictures()
        written = tabs.text("match_texts", examples.caption, lines=3)
        model = tabs.model("matching")
        cam = tabs.tick("match_cam", True)
        layer = layer_slider(tabs)
        button = tabs.button("go_matching")
    rows = [[[path], caption] for path, caption, _ in examples.rows]
    tabs.examples(rows, [pictures, written])

    def work(use: Any, given: Any, written: Any, model: Any, cam: Any, layer: Any) -> str:
        from lavis_apps.localization import Localizer
        from lavis_apps.matching import Matcher

        opened = open_uploads(given, texts)
        if not opened:
            raise Told(texts["no_picture"])
        lines = lines_of(written, texts, "no_text")
        check_pairs(len(opened) * len(lines), texts)
        block = whole_of(layer, 1, 99, texts, "layer") - 1
        _, name = tabs.chosen(model, "matching")
        images = [image for _, image in opened]
        pairs = [(image, line) for image in images for line in lines]
        maps = []
        with use("matching", name) as family:
            found = Matcher(family).match(images, lines)
            blip = getattr(family, "blip", None)
            if cam is True and blip is not None and len(pairs) <= MOST_MAPS:
                maps = Localizer(blip).localize_pairs(*zip(*pairs, strict=True), block=block)
        names = [name for name, _ in opened]
        parts = [scores_html(tabs, names, lines, found.itm, found.itc)]
        drawn = [
            map_figure(texts, one.average, image, line, f"match_{i}")
            for i, (one, (image, line)) in enumerate(zip(maps, pairs, strict=False), start=1)
        ]
        parts.append(gallery_html(drawn))
        notes = [texts["itm_what"], texts["itc_what"]]
        if cam is True and len(pairs) > MOST_MAPS:
            notes.append(texts["many_maps"].format(most=MOST_MAPS))
        cut = [i in found.cut_texts for i in range(len(lines))]
        return "".join(parts) + tabs.cut_notice(cut) + tabs.foot(name, *notes)

    tabs.answer(work, button, [pictures, written, model, cam, layer], result)


def scores_html(tabs: Tabs, names: Sequence[str], lines: Sequence[str], itm: Any, itc: Any) -> str:
    """One pair in large type, more as two matrices, and both as CSV."""
    texts = tabs.texts
    head = ("picture", "text", "itm_probability", "itc_cosine")
    rows = [
        (name, line, None if itm is None else float(itm[i, j]), float(itc[i, j]))
        for i, name in enumerate(names)
        for j, line in enumerate(lines)
    ]
    saved = download_html(texts["save_csv"], "matches.csv", csv_bytes(head, rows))
    if len(rows) == 1:
        _, _, probability, cosine = rows[0]
        shown = [(texts["itc"], cosine)]
        if probability is not None:
            shown.insert(0, (texts["itm"], bar_html(probability)))
        return table_html((texts["score_kind"], texts["score"]), shown, "large") + saved
    parts = [] if itm is None else [(texts["itm"], itm)]
    return (
        "".join(
            f"<h3>{html.escape(title)}</h3>{matrix_html(names, lines, scores)}"
            for title, scores in [*parts, (texts["itc"], itc)]
        )
        + saved
    )


def draw_localization(tabs: Tabs) -> None:
    texts, examples = tabs.texts, tabs.page.examples
    with tabs.columns() as result:
        picture = tabs.picture()
        written = tabs.text("local_text", examples.caption)
        model = tabs.model("matching")
        layer = layer_slider(tabs)
        button = tabs.button("go_local")
    rows = [[path, caption] for path, caption, _ in examples.rows]
    tabs.examples(rows, [picture, written])

    def work(use: Any, given: Any, written: Any, model: Any, layer: Any) -> str:
        from lavis_apps.heat_maps import MOST_WORDS, words_chart
        from lavis_apps.localization import Localizer

        image = open_upload(given, texts)
        text = text_of(written, texts, "no_text")
        block = whole_of(layer, 1, 99, texts, "layer") - 1
        _, name = tabs.chosen(model, "matching")
        with use("matching", name) as family:
            blip = getattr(family, "blip", None)
            if blip is None:
                raise Told(texts["no_blip"].format(model=name))
            found = Localizer(blip).localize(image, text, block=block)
        words = [
            map_figure(texts, word.grid, image, word.word, f"word_{i}")
            for i, word in enumerate(found.words[:MOST_WORDS], start=1)
        ]
        saved = download_html(texts["save_all"], "words.png", words_chart(image, found))
        shown = [(texts["itm"], bar_html(found.probability))]
        return (
            table_html((texts["score_kind"], texts["score"]), shown, "large")
            + gallery_html([map_figure(texts, found.average, image, text, "average")])
            + f"<h3>{html.escape(texts['each_word'])}</h3>"
            + gallery_html(words, "words") + saved + tabs.cut_notice([found.cut])
            + tabs.foot(name, texts["cam_what"], texts["itm_what"])
        )  # fmt: skip

    tabs.answer(work, button, [picture, written, model, layer], result, submits=[written])


def draw_classification(tabs: Tabs) -> None:
    import gradio as gr

    texts, examples = tabs.texts, tabs.page.examples
    with tabs.columns() as result:
        picture = tabs.picture()
        classes = tabs.text("classes", "\n".join(examples.classes), lines=5)
        scoring = tabs.choice("scoring", SCORINGS, "itc")
        with tabs.settings():
            templates = tabs.text("templates", lines=2)
            threshold = gr.Number(
                None, label=texts["none_threshold"], info=texts["none_threshold_what"]
            )
            matching, clip = tabs.model("matching"), tabs.model("clip")
        button = tabs.button("go_classes")
    tabs.examples([[path] for path, _, _ in examples.rows], [picture])

    def work(
        use: Any, given: Any, classes: Any, scoring: Any, templates: Any, threshold: Any,
        matching: Any, clip: Any,
    ) -> str:  # fmt: skip
        from lavis_apps.classification import Classifier

        image = open_upload(given, texts)
        names = lines_of(classes, texts, "no_classes")
        for i, name in enumerate(names):
            if name.lower() in [earlier.lower() for earlier in names[:i]]:
                raise Told(texts["doubled"].format(name=name[:80]))
        sentences = lines_of(templates, texts, None)
        for sentence in sentences:
            if "{}" not in sentence:
                raise Told(texts["bad_template"].format(template=sentence[:80]))
        if threshold is not None:
            threshold = number_of(threshold, -1, 1, texts, "none_threshold")
        if scoring not in SCORINGS:
            raise Told(texts["bad_choice"].format(value=str(scoring)[:80]))
        if scoring == "itm":
            check_pairs(len(names) * max(1, len(sentences)), texts)
        kind = "clip" if scoring == "clip" else "matching"
        _, name = tabs.chosen(clip if kind == "clip" else matching, kind)
        with use(kind, name) as family:
            (found,) = Classifier(family, scoring).classify(
                [image], names, templates=sentences or None, none_threshold=threshold
            )
        head = (texts["class"], texts["probability"], texts["score"])
        plain = [(one.label, one.probability, one.score) for one in found.top]
        shown = [(label, bar_html(share), score) for label, share, score in plain]
        saved = download_html(texts["save_csv"], "classes.csv", csv_bytes(head, plain))
        label = texts["none_of_these"] if found.label is None else found.label
        notes = [texts["one_class" if len(names) == 1 else "classes_note"], texts["raw_what"]]
        return said_html(label) + table_html(head, shown) + saved + tabs.foot(name, *notes)

    inputs = [picture, classes, scoring, templates, threshold, matching, clip]
    tabs.answer(work, button, inputs, result)
