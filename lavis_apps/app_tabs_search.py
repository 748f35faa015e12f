"""The tabs multimodal search, over the folders of the start, and features."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lavis_apps.app_html import (
    THUMBNAIL,
    csv_bytes,
    download_html,
    encoded,
    gallery_html,
    matrix_html,
    notice_html,
    npz_bytes,
    picture_html,
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
from shared.images import ImageError, open_image

if TYPE_CHECKING:
    from lavis_apps.search import Hit

MOST_HITS = 48  # LAVIS offers 12, 24 and 48
MOST_RERANKED = 200


def draw_search(tabs: Tabs) -> None:
    import gradio as gr

    texts, page = tabs.texts, tabs.page
    if not page.folders:
        gr.HTML(notice_html(texts["no_folders"]))
        return
    names = list(page.folders)
    with tabs.columns() as result:
        folder = gr.Dropdown(
            [(f"{name} ({len(page.folders[name].index.images):,})", name) for name in names],
            value=names[0], label=texts["folder"], filterable=False,
        )  # fmt: skip
        query = tabs.text("query", page.examples.query)
        picture = tabs.picture("query_picture", height=180)
        n = tabs.slider("n_hits", 1, MOST_HITS, 24, 1)
        rerank = tabs.tick("rerank", True)
        cam = tabs.tick("show_cam")
        with tabs.settings():
            n_reranked = tabs.slider("n_reranked", 1, MOST_RERANKED, MOST_HITS, 1)
            weight = tabs.slider("text_weight", 0, 1, 0.5, 0.05)
        button = tabs.button("go_search")
    tabs.examples([[path] for path, _, _ in page.examples.rows], [picture])

    def work(
        use: Any, folder: Any, query: Any, given: Any, n: Any, rerank: Any, cam: Any,
        n_reranked: Any, weight: Any,
    ) -> str:  # fmt: skip
        searched = page.folders.get(folder) if isinstance(folder, str) else None
        if searched is None:
            raise Told(texts["bad_choice"].format(value=str(folder)[:40]))
        words = text_of(query, texts, None)
        image = None if given is None else open_upload(given, texts)
        if not words and image is None:
            raise Told(texts["no_query"])
        n = whole_of(n, 1, MOST_HITS, texts, "n_hits")
        depth = whole_of(n_reranked, 1, MOST_RERANKED, texts, "n_reranked")
        weight = number_of(weight, 0, 1, texts, "text_weight")
        with use(searched.kind, searched.model) as family:
            searcher = searched.searcher(family)
            # both ask whether words and picture match, so they need words and a model that asks
            reranks = rerank is True and bool(words) and family.fuses
            maps = cam is True and bool(words) and hasattr(family, "blip")
            hits = searcher.search(
                words or None, image, n, rerank=depth if reranks else 0, localize=maps,
                text_weight=weight,
            )  # fmt: skip
        notes = []
        if (rerank is True and not reranks) or (cam is True and not maps):
            notes.append(texts["no_reranker" if words else "no_words"])
        return hits_html(tabs, hits) + tabs.foot(searched.model, *notes, texts["hits_what"])

    inputs = [folder, query, picture, n, rerank, cam, n_reranked, weight]
    tabs.answer(work, button, inputs, result, submits=[query])


def hits_html(tabs: Tabs, hits: Sequence[Hit]) -> str:
    texts = tabs.texts
    shown = []
    for hit in hits:
        scores = f"ITC {hit.itc:.3f}" + ("" if hit.itm is None else f" · ITM {hit.itm:.1%}")
        more = f"<br>{html.escape(hit.image)}"
        try:
            # `path` is None for what is gone or leads out of the folder: never opened
            image = hit.heat or (None if hit.path is None else open_image(hit.path))
        except ImageError:
            image = None
        if image is None:
            gone = texts["gone"].format(name=hit.image)
            shown.append(f'<figure class="gone">{html.escape(gone)}<br>{scores}</figure>')
            continue
        if hit.heat is not None:
            saved = encoded(hit.heat, "PNG")
            more += " " + download_html(texts["save_png"], f"hit_{hit.rank}.png", saved)
        caption = f"{hit.rank} · {scores}"
        shown.append(picture_html(image, caption, width=THUMBNAIL, more=more))
    head = ("rank", "image", "score", "itc_cosine", "itm_probability")
    rows = [(hit.rank, hit.image, hit.score, hit.itc, hit.itm) for hit in hits]
    saved_rows = download_html(texts["save_csv"], "hits.csv", csv_bytes(head, rows))
    found = texts["found"].format(n=len(hits))
    return f"<p>{html.escape(found)} {saved_rows}</p>" + gallery_html(shown, "hits")


# Features

LENGTH_ONE = ("image_embeds_proj", "image_features", "text_embeds_proj", "text_features")
MOST_BYTES = 24 << 20  # of a file inside an answer; a folder's go through predict.py


def draw_features(tabs: Tabs) -> None:

    texts, examples = tabs.texts, tabs.page.examples
    with tabs.columns() as result:
        pictures = tabs.pictures()
        written = tabs.text("feature_texts", examples.caption, lines=3)
        model = tabs.model("matching", "clip")
        tokens = tabs.tick("tokens")
        button = tabs.button("go_features")
    tabs.examples([[[path]] for path, _, _ in examples.rows], [pictures])

    def work(use: Any, given: Any, written: Any, model: Any, tokens: Any) -> str:
        import numpy as np

        from lavis_apps.features import FeatureExtractor, family_fingerprint

        opened = open_uploads(given, texts)
        lines = lines_of(written, texts, None)
        if not opened and not lines:
            raise Told(texts["no_features"])
        kind, name = tabs.chosen(model, "matching", "clip")
        with use(kind, name) as family:
            extractor = FeatureExtractor(family, name, family_fingerprint(*model_and_adapter(name)))
            found = extractor.extract(
                [image for _, image in opened] or None, lines or None,
                multimodal=len(opened) == len(lines),
            )  # fmt: skip
        arrays = {
            name: tensor.numpy()
            for name, tensor in vars(found).items()
            if name != "cut_texts" and tensor is not None
        }
        rows = [
            (name, "×".join(map(str, array.shape)), texts["yes" if name in LENGTH_ONE else "no"])
            for name, array in arrays.items()
        ]
        head = (texts["field"], texts["shape"], texts["length_one"])
        kept = {
            name: array for name, array in arrays.items()
            if tokens is True or name.endswith("_features")
        }  # fmt: skip
        kept["image"] = np.array([name for name, _ in opened], dtype=str)
        kept["text"] = np.array(lines, dtype=str)
        content = npz_bytes(kept)
        if len(content) > MOST_BYTES:
            raise Told(texts["large_file"].format(n=len(content) >> 20, most=MOST_BYTES >> 20))
        parts = [table_html(head, rows), download_html(texts["save_npz"], "features.npz", content)]
        if opened and lines:
            cosines = arrays["image_features"] @ arrays["text_features"].T
            parts.append(f"<h3>{html.escape(texts['cosines'])}</h3>")
            parts.append(matrix_html([name for name, _ in opened], lines, cosines))
        cut = [i in found.cut_texts for i in range(len(lines))]
        notes = [texts["features_what"], texts["pairs"] if len(opened) == len(lines) else ""]
        return "".join(parts) + tabs.cut_notice(cut) + tabs.foot(name, *notes)

    tabs.answer(work, button, [pictures, written, model, tokens], result)
