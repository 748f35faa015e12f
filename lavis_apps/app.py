"""The page: a tab for each task on pictures and words, in the order of LAVIS' app.

Image description, search over own folders, question answering, image-text matching, localization,
classification, features, and the BLIP demo as it was known. Models are loaded when they are first
asked for; one of each kind stays in memory, and visitors take turns.

    python lavis_apps/app.py --toy
    python lavis_apps/app.py --images photos/ --index holiday_index/ --language zh
    python lavis_apps/app.py --models caption=Salesforce/blip-image-captioning-large vqa=RUN/model
    python lavis_apps/app.py --toy --dry_run

--models takes KIND=MODEL (caption, vqa, matching, clip), several of a kind too; `models:` of a YAML
file is the same list. Reads models, the folders of --images and indexes of --index; nothing else
can be asked for. Writes the indexes of --images to outputs/lavis_apps/app_index/; uploads lie in
the system's temporary folder for at most an hour or two.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lavis_apps.app_models import Shelf, model_and_adapter, short_name, size_text
from lavis_apps.app_search import open_folders
from lavis_apps.app_settings import TOY_DEFAULTS, AppOptions, chosen_models, find_examples
from lavis_apps.app_tabs import Page, Tabs
from lavis_apps.app_tabs_match import draw_classification, draw_localization, draw_matching
from lavis_apps.app_tabs_search import draw_features, draw_search
from lavis_apps.app_tabs_text import draw_caption, draw_demo, draw_vqa
from lavis_apps.app_texts import TEXTS, TITLE
from lavis_apps.toy_sets import ensure_toy_data
from shared.gradio_parts import (
    Language,
    bilingual_page,
    check_address,
    serve,
    synthetic_notice,
)
from shared.loading import model_folder, weight_files
from shared.options import MissingError, guarded, parse_options

if TYPE_CHECKING:
    import gradio as gr

CSS_FILE = Path(__file__).with_name("app.css")
TABS = {
    "caption": draw_caption,
    "search": draw_search,
    "vqa": draw_vqa,
    "matching": draw_matching,
    "localization": draw_localization,
    "classification": draw_classification,
    "features": draw_features,
    "demo": draw_demo,
}


def main(options: AppOptions) -> None:
    # Model
    shelf = Shelf(
        chosen_models(options.models, options.default_models), options.device, options.dtype
    )
    for line in plan(shelf):
        print(line)
    if options.dry_run:
        folders = ", ".join([*options.images, *options.index]) or "none"
        print(f"searched: {folders}")
        print(f"page:     http://{options.host}:{options.port}/ in {options.language}")
        return
    check_address(options)

    # Data
    folders = open_folders(options.images, options.index, shelf)
    synthetic = shelf.synthetic() or any(f.index.synthetic for f in folders.values())
    common = Page(shelf, folders, find_examples(options.examples), synthetic)

    # Page
    page = bilingual_page(
        TITLE, lambda page, language: draw_page(page, language, common), options.language
    )
    serve(page, options, css=CSS_FILE.read_text(encoding="utf-8"))


def plan(shelf: Shelf) -> list[str]:
    """A line a model: whether it is here, and its size."""
    lines = []
    for kind, names in shelf.models.items():
        for name in names:
            try:
                size = sum(
                    file.stat().st_size
                    for file in weight_files(model_folder(model_and_adapter(name)[0]))
                )
                told = f"{size_text(size)} on disk, loaded when it is first asked for"
            except MissingError as error:
                told = f"not here: {str(error).splitlines()[0]}"
            lines.append(f"{kind + ':':16}{short_name(name)} ({told})")
    return lines


def draw_page(page: gr.Blocks, language: Language, common: Page) -> None:
    import gradio as gr

    texts = TEXTS[language]
    gr.Markdown(f"# {texts['title']}\n{texts['intro']}")
    tabs = Tabs(common, language, gr.Markdown(elem_classes="device"))
    page.load(tabs.memory_line, None, tabs.memory, api_visibility="private", show_progress="hidden")
    if common.synthetic:
        gr.HTML(synthetic_notice(language, texts["synthetic"]))
    with gr.Tabs():
        for name, draw in TABS.items():
            with gr.Tab(texts[f"tab_{name}"]):
                draw(tabs)


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                AppOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=TOY_DEFAULTS,
                prepare_toy=lambda: ensure_toy_data("caption"),
            )
        )
    )
