"""The app in a browser and over HTTP: every tab, wrong files, twenty visitors at once, forged
requests."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from lavis_apps import app_search
from lavis_apps.app import CSS_FILE, draw_page
from lavis_apps.app_models import Shelf
from lavis_apps.app_search import open_folders
from lavis_apps.app_settings import find_examples
from lavis_apps.app_tabs import Page
from lavis_apps.app_texts import TEXTS, TITLE
from lavis_apps.blip_demo import FUNCTIONS, STRATEGIES
from lavis_apps.settings import TOY_MODELS
from shared.gradio_parts import LaunchOptions, bilingual_page, serve
from shared.images import open_image
from shared.options import REPO_ROOT
from shared.toy_world.build import ensure_vqav2

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    # Gradio's queue asks pandas for what pandas is about to drop.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing"),
]

EN, ZH = TEXTS["en"], TEXTS["zh"]
VISITORS = 20


@pytest.fixture(scope="module")
def pictures() -> list[Path]:
    return sorted((ensure_vqav2() / "val2014").iterdir())[:VISITORS]


@pytest.fixture(scope="module")
def app(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page on the toy models in this process, with a folder of six pictures to search."""
    folder = tmp_path_factory.mktemp("app")
    searched = folder / "shapes"
    searched.mkdir()
    for path in pictures[:6]:
        (searched / path.name).write_bytes(path.read_bytes())
    shelf = Shelf({kind: [str(model)] for kind, model in TOY_MODELS.items()}, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setattr(app_search, "INDEXES", folder / "indexes")
        common = Page(shelf, open_folders([str(searched)], [], shelf), find_examples(None), True)
        page = bilingual_page(TITLE, lambda blocks, lang: draw_page(blocks, lang, common), "en")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        css = CSS_FILE.read_text(encoding="utf-8")
        address = serve(page, LaunchOptions(port=port), css=css, wait=False)
        yield SimpleNamespace(address=address, searched=searched, shelf=shelf)
        page.close()


# In a browser


def open_tab(page: Any, address: str, name: str, texts: dict[str, str] = EN) -> None:
    page.set_default_timeout(90_000)
    page.goto(address)
    tab = page.get_by_role("tab", name=texts[f"tab_{name}"], exact=True)
    tab.click()
    page.locator("[role=tab][aria-selected=true]", has_text=texts[f"tab_{name}"]).wait_for()


def give(page: Any, *files: Path) -> None:
    place = page.locator(".picture:visible, .several:visible").first
    place.locator("input[type=file]").first.set_input_files(files)
    place.locator("img").nth(len(files) - 1).wait_for()


def field(page: Any, label: str) -> Any:
    """The visible text field under a label, whatever is explained beside it."""
    labels = page.locator("label:visible", has_text=re.compile(f"^\\s*{re.escape(label)}"))
    return labels.locator("textarea, input").first


def press(page: Any, name: str) -> None:
    page.locator("button.primary:visible", has_text=name).click()


def answer(page: Any, texts: dict[str, str] = EN) -> Any:
    """The visible answer, once it is whole: the model's name stands below it."""
    whole = page.locator(".result:visible .small", has_text=texts["by_model"].partition("{")[0])
    whole.wait_for()
    return page.locator(".block.result:visible")


def saved(page: Any, name: str) -> bytes:
    with page.expect_download() as download:
        page.locator(f".result:visible a.save[download='{name}']").first.click()
    assert download.value.suggested_filename == name
    return Path(download.value.path()).read_bytes()


def told(page: Any, text: str) -> None:
    page.locator(".toast-body", has_text=text).first.wait_for()


def test_a_description_with_settings_and_an_example(
    app: Any, chromium_page: Any, page_log: dict[str, list[str]], pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "caption")
    page.get_by_text("SYNTHETIC Toy models").wait_for()
    page.locator(".block.device", has_text="Runs on the CPU").wait_for()
    press(page, "Describe")
    told(page, "Give a picture first.")
    give(page, pictures[4])
    press(page, "Describe")
    shown = answer(page)
    with app.shelf.use("caption") as captioner:
        ((one,),) = captioner.caption([open_image(pictures[4])])
        (five,) = captioner.caption([open_image(pictures[4])], n=5, method="nucleus")
    assert shown.locator(".said").inner_text() == one.text
    page.locator(".block.device", has_text="toy_models/blip_caption").wait_for()
    page.get_by_label("Nucleus sampling").check()  # LAVIS shows five of them
    number = page.get_by_label("number input for Captions").locator("visible=true")
    page.wait_for_function("n => n.value === '5'", arg=number.element_handle())
    press(page, "Describe")
    page.locator(".result:visible tbody tr").nth(4).wait_for()
    rows = [row.split("\t") for row in shown.locator("tbody tr").all_inner_texts()]
    assert [row[1] for row in rows] == [caption.text for caption in five]
    content = saved(page, "captions.csv").decode("utf-8-sig")
    assert content.splitlines()[0] == "#,Caption,Score"
    assert len(content.splitlines()) == 6

    page.locator("button.gallery-item:visible").nth(1).click()  # an example
    page.wait_for_function(
        "() => [...document.querySelectorAll('.picture img')].some(i => i.src.includes('200002'))"
    )
    press(page, "Describe")
    with app.shelf.use("caption") as captioner:
        (five,) = captioner.caption([open_image(pictures[1])], n=5, method="nucleus")
    shown.locator("td", has_text=re.compile(f"^{five[4].text}$")).first.wait_for()
    foreign = [u for u in page_log["requests"] if not u.startswith((app.address, "data:", "blob:"))]
    assert foreign == []
    assert page_log["errors"] == []


def test_search_by_words_by_a_picture_with_maps(
    app: Any, chromium_page: Any, page_log: dict[str, list[str]], pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "search")
    field(page, "Query").fill("a green square")
    page.get_by_label("Show GradCam").check()
    press(page, "Search")
    shown = answer(page)
    assert shown.locator("figure img").count() == 6
    assert "ITM" in shown.locator("figcaption").first.inner_text()
    Image.open(io.BytesIO(saved(page, "hit_1.png"))).load()
    rows = saved(page, "hits.csv").decode("utf-8-sig").splitlines()
    assert len(rows) == 7
    field(page, "Query").fill("")
    give(page, pictures[3])
    press(page, "Search")
    page.locator(".result:visible .small", has_text="need words").wait_for()
    assert pictures[3].name in shown.locator("figcaption").first.inner_text()
    assert page_log["errors"] == []


def test_a_question_and_where_it_looked(
    app: Any, chromium_page: Any, page_log: dict[str, list[str]], pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "vqa")
    give(page, pictures[2])
    field(page, "Question").fill("What color is it?")
    page.get_by_role("button", name="Settings").locator("visible=true").click()
    field(page, "Possible answers").fill("red\ngreen\nblue")
    page.get_by_label("Where the question looked").check()
    press(page, "Answer")
    shown = answer(page)
    with app.shelf.use("vqa") as answerer:
        (found,) = answerer.answer(
            [open_image(pictures[2])], ["What color is it?"], candidates=["red", "green", "blue"]
        )
    assert shown.locator(".said").inner_text() == found.answer
    assert shown.locator(".meter").count() == 3
    Image.open(io.BytesIO(saved(page, "attention.png"))).load()
    assert page_log["errors"] == []


def test_a_matrix_of_pictures_and_texts(
    app: Any, chromium_page: Any, page_log: dict[str, list[str]], pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "matching")
    give(page, *pictures[:2])
    field(page, "Texts").fill("a purple frame\na green star\n<i>no</i>")
    press(page, "Match")
    shown = answer(page)
    assert shown.locator("h3").all_inner_texts() == ["ITM probability", "ITC cosine"]
    assert shown.locator(".matrix").first.locator("th").all_inner_texts() == [
        "", "a purple frame", "a green star", "<i>no</i>",
    ]  # fmt: skip
    assert shown.locator("figure img").count() == 6
    rows = saved(page, "matches.csv").decode("utf-8-sig").splitlines()
    assert rows[0] == "picture,text,itm_probability,itc_cosine"
    assert len(rows) == 7
    assert page_log["errors"] == []


def test_a_text_is_found_in_a_picture(
    app: Any, chromium_page: Any, page_log: dict[str, list[str]], pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "localization")
    give(page, pictures[1])
    field(page, "Text").fill("a cyan star")
    press(page, "Find")
    shown = answer(page)
    words = shown.locator(".words figcaption").all_inner_texts()
    assert [word.split()[0] for word in words] == ["a", "cyan", "star"]
    chart = Image.open(io.BytesIO(saved(page, "words.png")))
    assert chart.width > 500
    assert page_log["errors"] == []


def test_classes_by_each_score(
    app: Any, chromium_page: Any, page_log: dict[str, list[str]], pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "classification")
    give(page, pictures[2])
    field(page, "Classes").fill("star\nsquare")
    for name, model in (("Cosine (ITC)", "itm"), ("Multimodal (ITM)", "itm"), ("CLIP", "clip")):
        page.get_by_label(name, exact=True).check()
        press(page, "Classify")
        page.locator(".result:visible .small", has_text=re.compile(rf"Model: .*{model}")).wait_for()
    assert page.locator(".result:visible .meter").count() == 2
    field(page, "Classes").fill("star\n star")
    press(page, "Classify")
    told(page, "The class star stands there twice.")
    assert page_log["errors"] == []


def test_features_are_saved(
    app: Any, chromium_page: Any, page_log: dict[str, list[str]], pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "features")
    give(page, pictures[0])
    press(page, "Compute")
    answer(page)
    content = np.load(io.BytesIO(saved(page, "features.npz")), allow_pickle=False)
    assert content["image_features"].shape[0] == 1
    np.testing.assert_allclose(np.linalg.norm(content["image_features"]), 1, rtol=1e-5)
    assert page_log["errors"] == []


def test_the_blip_demo_as_it_was(app: Any, chromium_page: Any, pictures: list[Path]) -> None:
    page = chromium_page
    open_tab(page, app.address, "demo")
    give(page, pictures[0])
    page.get_by_label("Image-Text Matching").check()
    field(page, "Question, or text to match").fill("a purple frame")
    press(page, "Submit")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.output textarea')].some("
        "t => /^The image and text is matched with a probability of [01]\\.\\d{4}\\.\\nThe image "
        "feature and text feature has a cosine similarity of -?[01]\\.\\d{4}\\.$/.test(t.value))"
    )


def test_wrong_files_are_told_and_the_page_goes_on(
    app: Any, chromium_page: Any, pictures: list[Path], tmp_path: Path
) -> None:
    page = chromium_page
    text, cut = tmp_path / "holiday.jpg", tmp_path / "cut.jpg"
    text.write_text("this is no picture")
    Image.effect_noise((300, 200), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:3000])
    open_tab(page, app.address, "caption")
    for path in (text, cut):
        page.locator(".picture:visible input[type=file]").set_input_files(path)
        told(page, f"{path.name} can't be used: ")
        page.locator(".picture:visible img").wait_for(state="detached")
    give(page, pictures[0])
    press(page, "Describe")
    assert answer(page).locator(".said").inner_text()
    open_tab(page, app.address, "matching")
    page.locator(".several:visible input[type=file]").first.set_input_files(text)
    page.locator(".several:visible img").wait_for(state="attached")
    press(page, "Match")
    told(page, "holiday.jpg can't be used: ")


def test_the_language_is_switched_and_errors_with_it(
    app: Any, chromium_page: Any, pictures: list[Path]
) -> None:
    page = chromium_page
    open_tab(page, app.address, "caption")
    page.get_by_role("link", name="中文").click()
    page.get_by_role("tab", name="图像描述", exact=True).wait_for()
    page.get_by_text("合成数据（SYNTHETIC）").first.wait_for()
    press(page, "描述")
    told(page, "请先给一张图片。")
    give(page, pictures[0])
    press(page, "描述")
    assert answer(page, ZH).locator("th").all_inner_texts() == ["#", "描述", "分数"]
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.locator(".toast-close").first.click()  # it lies over the links for half a minute
    page.get_by_role("link", name="English").click()
    page.get_by_role("tab", name="Image Description", exact=True).wait_for()


def test_a_narrow_screen_scrolls_only_down(
    app: Any, chromium_page: Any, pictures: list[Path]
) -> None:
    page = chromium_page
    page.set_viewport_size({"width": 390, "height": 844})
    page.set_default_timeout(90_000)
    page.goto(app.address)
    page.get_by_role("tab", name=EN["tab_caption"], exact=True).wait_for()
    give(page, pictures[0])
    press(page, "Describe")
    result = answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # the answer stands right below the button, in front of the examples
    examples = page.locator("button.gallery-item:visible").first.bounding_box()
    assert result.bounding_box()["y"] < examples["y"]


# Over HTTP


class Visitor:
    """One visitor's session: uploads, and answers of functions found in the page's config."""

    def __init__(self, address: str, name: str) -> None:
        self.client = httpx.Client(trust_env=False, base_url=address, timeout=240)
        self.name = name
        self.n = 0

    def functions(self) -> list[dict[str, Any]]:
        return self.client.get("config").json()["dependencies"]

    def upload(self, path: Path) -> dict[str, Any]:
        files = {"files": (f"{self.name}_{path.name}", path.read_bytes())}
        (there,) = self.client.post("gradio_api/upload", files=files).json()
        return {"path": there, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def ask(self, function: int, data: list[Any]) -> dict[str, Any]:
        """The queue's last message about the request: `success` and `output`."""
        self.n += 1
        session = f"{self.name}_{self.n}"
        joined = self.client.post(
            "gradio_api/queue/join",
            json={"data": data, "fn_index": function, "session_hash": session},
        )
        assert joined.status_code == 200, joined.text
        url = f"gradio_api/queue/data?session_hash={session}"
        with self.client.stream("GET", url) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        return message
        raise AssertionError("no answer")


def asking(functions: list[dict[str, Any]], tab: str) -> int:
    """The function behind a tab's button on the first, English page, by what goes in and out."""
    found = [
        f["id"] for f in functions
        if (len(f["inputs"]), len(f["outputs"])) == INPUTS_AND_OUTPUTS[tab] and f["targets"]
    ]  # fmt: skip
    assert len(found) == 2, (tab, found)
    return found[0]


INPUTS_AND_OUTPUTS = {
    "caption": (13, 1), "search": (8, 1), "vqa": (8, 2), "matching": (5, 1),
    "classification": (7, 1),
}  # fmt: skip


def requests_of(app: Any, visitor: Visitor, i: int, path: Path) -> tuple[int, list[Any]]:
    """Visitor i's request: each on another tab than the last one, about a picture of his own."""
    functions, given = visitor.functions(), visitor.upload(path)
    models = {kind: names[0] for kind, names in app.shelf.models.items()}
    if i % 3 == 0:
        data = [given, models["caption"], "nucleus", "", i, 2, 3, 40, 5, 0.9, 1, 1, 1]
        return asking(functions, "caption"), data
    if i % 3 == 1:
        question = f"How many shapes are there? {i}"
        return asking(functions, "vqa"), [
            given, question, models["vqa"], "", 3, False, False, None,
        ]  # fmt: skip
    scoring = "clip" if i % 2 else "itm"
    data = [given, "star\nsquare\nframe", scoring, "", None, models["matching"], models["clip"]]
    return asking(functions, "classification"), data


def test_twenty_visitors_at_once_get_their_own_answers(app: Any, pictures: list[Path]) -> None:
    visitors = [Visitor(app.address, f"v{i}") for i in range(VISITORS)]
    asked = [requests_of(app, visitors[i], i, pictures[i]) for i in range(VISITORS)]
    alone = [visitors[i].ask(*asked[i]) for i in range(VISITORS)]
    together: dict[int, dict[str, Any]] = {}
    start = threading.Barrier(VISITORS)

    def visit(i: int) -> None:
        start.wait(60)
        together[i] = visitors[i].ask(*asked[i])

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(VISITORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert [m["output"].get("error") for m in alone if not m["success"]] == []
    answers = [message["output"]["data"][0] for message in alone]
    assert [together[i]["output"]["data"][0] for i in range(VISITORS)] == answers
    assert len(set(answers)) > VISITORS / 2  # the pictures differ, and so do the answers
    assert {kind for kind in app.shelf.loaded} >= {"caption", "vqa", "matching", "clip"}


def test_the_blip_demo_is_called_by_its_names(app: Any, pictures: list[Path]) -> None:
    from gradio_client import Client, handle_file

    client = Client(app.address, verbose=False, analytics_enabled=False)
    (name,) = client.view_api(return_format="dict")["named_endpoints"]
    assert name == "/inference"
    said = client.predict(
        raw_image=handle_file(pictures[0]), model_n=FUNCTIONS[0], question="",
        strategy=STRATEGIES[0], api_name="/inference",
    )  # fmt: skip
    with app.shelf.use("caption") as captioner:
        ((caption,),) = captioner.caption([open_image(pictures[0])], max_length=20)
    assert said == f"caption: {caption.text}"
    with pytest.raises(Exception, match=r"model_n .*Nothing.*: one of"):
        client.predict(handle_file(pictures[0]), "Nothing", "", STRATEGIES[0], api_name=name)


def test_no_request_reaches_files_of_the_server(app: Any, pictures: list[Path]) -> None:
    """Paths in the place of uploads, folders and models; and files asked for by their address."""
    visitor = Visitor(app.address, "thief")
    inside = app.searched / pictures[0].name
    for path in (inside, REPO_ROOT / "pyproject.toml", Path("/etc/passwd")):
        for name in (str(path), f"{path.parent}/../{path.parent.name}/{path.name}"):
            answered = visitor.client.get(f"gradio_api/file={name}")
            assert answered.status_code in (403, 404), (name, answered.text[:200])
    functions = visitor.functions()
    demo = next(f["id"] for f in functions if f["api_name"] == "inference")
    caption, rest = (
        asking(functions, "caption"),
        ["beam", "", 0, 1, 3, 40, 5, 0.9, 1, 1, 1],
    )
    model, matcher = app.shelf.models["caption"][0], app.shelf.models["matching"][0]
    matching = asking(functions, "matching")
    meta = {"meta": {"_type": "gradio.FileData"}}
    for forged in (
        {"path": str(inside), **meta},
        {"path": "/etc/passwd", **meta},
        {"path": f"file://{inside}", **meta},
        {"path": "x.jpg", "url": f"file://{inside}", **meta},
        {"path": str(inside)},
        str(inside),
    ):
        for function, data in (
            (caption, [forged, model, *rest]),
            (demo, [forged, FUNCTIONS[0], "", STRATEGIES[0]]),
            (matching, [[{"image": forged, "caption": None}], "a", matcher, False, 1]),
        ):
            said = visitor.ask(function, data)
            assert said["success"] is False, (forged, said)
    upload = visitor.upload(pictures[0])
    for name in ("../../etc", str(REPO_ROOT / "data" / "toy_models" / "blip2_opt"), None, {"a": 1}):
        said = visitor.ask(caption, [upload, name, *rest])
        assert said["success"] is False
        assert "to choose" in said["output"]["error"]
    search = asking(functions, "search")
    for folder in ("/etc", "../shapes", str(app.searched), None):
        said = visitor.ask(search, [folder, "a star", None, 3, False, False, 48, 0.5])
        assert said["success"] is False
        assert "to choose" in said["output"]["error"]
    said = visitor.ask(search, ["shapes", "a star", None, 3, False, False, 48, 0.5])
    assert said["success"] is True
