"""The app without a browser: the shelf of models, checked requests, what each tab answers."""

from __future__ import annotations

import base64
import io
import os
import re
import string
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_apps import app_models, app_search
from lavis_apps.app import TABS, plan
from lavis_apps.app_html import csv_bytes, figure, npz_bytes, table_html
from lavis_apps.app_models import Shelf, model_and_adapter, short_name
from lavis_apps.app_search import open_folders
from lavis_apps.app_settings import Examples, chosen_models, find_examples
from lavis_apps.app_tabs import (
    MAX_TEXT,
    Page,
    Tabs,
    Told,
    lines_of,
    number_of,
    open_upload,
    open_uploads,
    text_of,
    toast,
)
from lavis_apps.app_texts import TEXTS, WORDS
from lavis_apps.blip_demo import FUNCTIONS, BlipDemo
from lavis_apps.settings import PUBLISHED_MODELS, TOY_MODELS
from shared.images import open_image
from shared.options import REPO_ROOT, MissingError, UserError
from shared.toy_world.build import ensure_vqav2
from tests.lavis_apps.fake_models import draw_pictures

APP = REPO_ROOT / "lavis_apps" / "app.py"
TOY = {kind: [str(folder)] for kind, folder in TOY_MODELS.items()}
EN, ZH = TEXTS["en"], TEXTS["zh"]


# Models


def test_models_are_named_by_kind() -> None:
    found = chosen_models(["vqa=a/b", "vqa=run/model+run/adapter", "vqa=a/b"], "published")
    assert found["vqa"] == ["a/b", "run/model+run/adapter"]
    assert found["caption"] == [PUBLISHED_MODELS["caption"]]
    assert chosen_models([], "toy") == TOY
    for given, cause in (
        ("caption", "expected KIND=MODEL"),
        ("caption=", "expected KIND=MODEL"),
        ("captoin=a", "did you mean caption"),
    ):
        with pytest.raises(UserError, match=cause):
            chosen_models([given], "toy")


def test_a_plus_parts_model_and_adapter_but_not_a_folder_s_name(tmp_path: Path) -> None:
    assert model_and_adapter("a/b+c/d") == ("a/b", "c/d")
    assert model_and_adapter("a/b") == ("a/b", None)
    (tmp_path / "c++").mkdir()
    assert model_and_adapter(str(tmp_path / "c++")) == (str(tmp_path / "c++"), None)
    assert short_name("Salesforce/blip+run/adapter") == "Salesforce/blip + run/adapter"
    assert short_name(str(TOY_MODELS["vqa"])) == "toy_models/blip_vqa"


class FakeTool:
    """What a task's object looks like to the shelf."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = self

    def parameters(self) -> list[Any]:
        return [np.zeros(3)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which models were opened; opening takes a while, as real ones do."""
    names: list[str] = []

    def open_tool(kind: str, name: str, device: str, dtype: str) -> FakeTool:
        names.append(name)
        time.sleep(0.1)
        if name == "broken":
            raise UserError("no weights")
        return FakeTool(name)

    monkeypatch.setattr(app_models, "open_tool", open_tool)
    monkeypatch.setattr(app_models, "weights_bytes", lambda tool: 12)
    monkeypatch.setattr(app_models, "model_folder", lambda name: Path(name))
    return names


def test_visitors_at_once_load_a_model_once_and_use_it_in_turns(opened: list[str]) -> None:
    shelf = Shelf({"caption": ["a"]})
    inside, most = 0, 0

    def visit() -> None:
        nonlocal inside, most
        with shelf.use("caption") as tool:
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            assert tool.name == "a"
            inside -= 1

    visitors = [threading.Thread(target=visit) for _ in range(20)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(30)
    assert (opened, most) == (["a"], 1)


def test_one_model_of_a_kind_stays_and_kinds_don_t_wait_for_each_other(opened: list[str]) -> None:
    shelf = Shelf({"caption": ["a", "b"], "vqa": ["c"]})
    with shelf.use("caption") as first, shelf.use("vqa") as other:
        assert (first.name, other.name) == ("a", "c")
    gone = weakref.ref(first)
    del first
    with shelf.use("caption", "b"):
        assert gone() is None
        assert {there.name for there in shelf.loaded.values()} == {"b", "c"}
    with shelf.use("caption", "b"):
        pass
    assert opened == ["a", "c", "b"]


def test_what_was_not_named_at_the_start_is_no_model(opened: list[str]) -> None:
    shelf = Shelf({"caption": ["a", "broken"]})
    for name in ("../../etc", "x" * 500):
        with pytest.raises(UserError, match="choose one of the list"), shelf.use("caption", name):
            pass
    for _ in range(2):  # an error leaves the lock free
        with pytest.raises(UserError, match="no weights"), shelf.use("caption", "broken"):
            pass
    assert opened == ["broken", "broken"]
    assert shelf.loaded == {}


def test_loading_tells_how_far_it_is() -> None:
    told: list[tuple[float, str]] = []
    shelf = Shelf(TOY, "cpu")
    with shelf.use("clip", progress=lambda share, name: told.append((share, name))) as family:
        n = sum(p.numel() * p.element_size() for p in family.model.parameters())
    assert [name for _, name in told] == ["toy_models/clip"] * len(told)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.9)
    assert shelf.loaded["clip"].n_bytes == n
    with shelf.use("clip", progress=lambda *_: told.clear()):
        pass
    assert told  # what is loaded is not read again


def test_the_plan_says_what_is_not_on_this_machine() -> None:
    here, missing = plan(Shelf({"caption": TOY["caption"], "vqa": ["nobody/nothing"]}))
    assert re.search(r"caption: +toy_models/blip_caption \(0\.\d MiB on disk", here)
    assert re.search(r"vqa: +nobody/nothing \(not here: ", missing)
    with pytest.raises(MissingError), Shelf({"vqa": ["nobody/nothing"]}).use("vqa"):
        pass


# Words and values


def fields_of(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_take_the_same_values() -> None:
    for key, (english, chinese) in WORDS.items():
        if key != "templates_what":  # its {} stands for a class
            assert fields_of(english) == fields_of(chinese), key
    for key in TABS:
        assert f"tab_{key}" in WORDS


@pytest.mark.parametrize(
    ("call", "english", "chinese"),
    [
        (lambda t: text_of("  ", t, "no_question"), "Write a question", "请先写一个问题"),
        (lambda t: text_of({"a": 1}, t, "no_text"), "Write a text first", "请先写一条文本"),
        (lambda t: text_of("x" * (MAX_TEXT + 1), t, None), "20,001 characters", "20,001 个字符"),
        (lambda t: text_of("\ud83d", t, None), "half a character", "无法使用这段文本"),
        (lambda t: lines_of("a\n" * 501, t, None), "501 lines", "501 行"),
        (lambda t: number_of("9", 1, 5, t, "n"), "Captions: 9 is not from 1 to 5", "描述条数：9"),
        (lambda t: number_of(float("nan"), 1, 5, t, "n"), "nan is not", "nan 不在"),
        (lambda t: number_of(None, 1, 5, t, "n"), "None is not", "None 不在"),
        (lambda t: number_of(True, 0, 5, t, "n"), "True is not", "True 不在"),
        (lambda t: open_upload(None, t), "Give a picture", "请先给一张图片"),
        (lambda t: open_upload("/etc/passwd", t), "Give a picture", "请先给一张图片"),
        (lambda t: open_uploads([{"image": {}}] * 9, t), "9 pictures", "9 张图片太多"),
    ],
)
def test_what_a_request_may_not_send(call: Any, english: str, chinese: str) -> None:
    for texts, cause in ((EN, english), (ZH, chinese)):
        with pytest.raises(Told, match=re.escape(cause)):
            call(texts)


@pytest.fixture(scope="module", autouse=True)
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of uploads of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        yield


def upload(path: Path) -> dict[str, str]:
    """As a request names an upload, which lies in Gradio's folder."""
    there = Path(os.environ["GRADIO_TEMP_DIR"]) / path.name
    there.write_bytes(path.read_bytes())
    return {"path": str(there), "orig_name": f"my {path.name}"}


def test_only_uploads_are_opened(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "own.png")
    given = upload(tmp_path / "own.png")
    assert open_upload(given, EN).size == (4, 4)
    link = Path(given["path"]).with_name("link.png")
    link.symlink_to(tmp_path / "own.png")
    for path in (
        str(tmp_path / "own.png"),
        str(Path(given["path"]).parent / ".." / ".." / tmp_path.name / "own.png"),
        str(link),
        "/etc/passwd",
        "\0",
        None,
        3,
    ):
        with pytest.raises(Told, match="Give a picture first"):
            open_upload({"path": path}, EN)


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that visitors give: strange but readable ones, and ones that are no pictures."""
    folder = tmp_path_factory.mktemp("odd")
    red = Image.new("RGB", (60, 40), "red")
    files = {name: folder / name for name in (
        "dot.png", "wide.png", "cmyk.jpg", "deep.png", "moving.gif", "turned.jpg", "clear.png",
        "text.jpg", "cut.jpg", "empty.png", "huge.png",
    )}  # fmt: skip
    red.resize((1, 1)).save(files["dot.png"])
    Image.new("RGB", (20_000, 30), "red").save(files["wide.png"])
    red.convert("CMYK").save(files["cmyk.jpg"])
    Image.fromarray(np.full((40, 60), 30_000, np.uint16)).save(files["deep.png"])
    red.save(files["moving.gif"], save_all=True, append_images=[red.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(files["turned.jpg"], exif=exif)
    Image.new("RGBA", (60, 40), (255, 0, 0, 0)).save(files["clear.png"])
    files["text.jpg"].write_text("this is no picture")
    red.resize((600, 400)).save(files["cut.jpg"])
    files["cut.jpg"].write_bytes(files["cut.jpg"].read_bytes()[:1500])
    files["empty.png"].write_bytes(b"")
    header = io.BytesIO()
    red.save(header, "PNG")  # a header that claims 60,000 x 60,000 pixels
    claimed = bytearray(header.getvalue())
    claimed[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    claimed[29:33] = zlib.crc32(claimed[12:29]).to_bytes(4, "big")
    files["huge.png"].write_bytes(claimed)
    return files


ODD = ("dot.png", "wide.png", "cmyk.jpg", "deep.png", "moving.gif", "turned.jpg", "clear.png")
WRONG = ("text.jpg", "cut.jpg", "empty.png", "huge.png")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_told_by_the_name_that_the_visitor_knows(
    odd_files: dict[str, Path], name: str
) -> None:
    for texts, cause in ((EN, f"my {name} can't be used: "), (ZH, f"无法使用 my {name}：")):
        with pytest.raises(Told) as caught:
            open_upload(upload(odd_files[name]), texts)
        assert str(caught.value).startswith(cause)
        assert str(odd_files[name].parent) not in str(caught.value)


def test_answers_are_escaped_and_files_are_whole() -> None:
    table = table_html(("<b>",), [("<script>x</script>", 0.5, None)])
    assert "<script>" not in table
    assert "&lt;script&gt;" in table
    assert "&lt;b&gt;" in table
    assert (figure(0.123456), figure(None), figure(3)) == ("0.1235", "–", "3")
    assert csv_bytes(("a", "词"), [("x,y", 0.1)]).decode("utf-8-sig") == 'a,词\r\n"x,y",0.1\r\n'
    back = np.load(io.BytesIO(npz_bytes({"a": np.arange(3)})), allow_pickle=False)
    assert back["a"].tolist() == [0, 1, 2]


# What the tabs answer


class Drawn(Tabs):
    """Keeps each tab's work, in the order in which the tabs are drawn."""

    works: list[Any]

    def answer(self, work: Any, *args: Any, **kwargs: Any) -> None:
        self.works.append(work)


@pytest.fixture(scope="module")
def pictures() -> list[Path]:
    return sorted((ensure_vqav2() / "val2014").iterdir())[:6]


@pytest.fixture(scope="module")
def drawn(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Each tab's work by its name, English and Chinese, on the toy models and a folder of four."""
    import gradio as gr

    folder = tmp_path_factory.mktemp("searched") / "shapes"
    (folder / "more").mkdir(parents=True)
    for i, path in enumerate(pictures[:4]):
        (folder / ("more" if i > 1 else "") / f"{i}.jpg").write_bytes(path.read_bytes())
    shelf = Shelf(TOY, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_search, "INDEXES", folder.parent / "indexes")
        folders = open_folders([str(folder)], [], shelf)
    page = Page(shelf, folders, Examples([]), synthetic=True)
    works: dict[str, dict[str, Any]] = {}
    for language in ("en", "zh"):
        with gr.Blocks():
            tabs = Drawn(page, language, gr.Markdown())
            tabs.works = []
            for draw in TABS.values():
                draw(tabs)
        # the BLIP demo has an endpoint of its own
        works[language] = dict(zip([n for n in TABS if n != "demo"], tabs.works, strict=True))
    return SimpleNamespace(
        **works["en"], zh=works["zh"], use=shelf.use, shelf=shelf, page=page, folder=folder
    )


CAPTION = (1, 3, 40, 5, 0.9, 1, 1, 1)  # the sliders as the page sends them


def test_a_caption_is_the_captioner_s(drawn: SimpleNamespace, pictures: list[Path]) -> None:
    model = TOY["caption"][0]
    answer = drawn.caption(
        drawn.use, upload(pictures[0]), model, "nucleus", "", 7, 4, *CAPTION[1:]
    )  # fmt: skip
    with drawn.use("caption") as captioner:
        (expected,) = captioner.caption([open_image(pictures[0])], n=4, method="nucleus", seed=7)
    for one in expected:
        assert f"<td>{one.text}</td><td>{one.score:.4f}</td>" in answer
    assert "toy_models/blip_caption · SYNTHETIC" in answer
    assert 'download="captions.csv"' in answer
    for changed, cause in (
        ({"n": 4}, "4 captions need 4 beams or more"),
        ({"n": 11}, "Captions: 11 is not from 1 to 10"),
        ({"min_length": 50}, "shortest length \\(50\\) is above the longest \\(40\\)"),
    ):
        values = dict(zip(("n", "num_beams", "max_length", "min_length"), CAPTION, strict=False))
        values |= changed
        with pytest.raises(Told, match=cause):
            drawn.caption(drawn.use, upload(pictures[0]), model, "beam", "", 0,
                          *values.values(), *CAPTION[4:])  # fmt: skip


def test_an_answer_is_the_answerer_s_also_ranked(
    drawn: SimpleNamespace, pictures: list[Path]
) -> None:
    model, question = TOY["vqa"][0], "What color is the shape?"
    for candidates in ("", "red\n blue \n\ngreen"):
        answer, turns = drawn.vqa(
            drawn.use, upload(pictures[0]), question, model, candidates, 3, True, False, []
        )
        with drawn.use("vqa") as answerer:
            (expected,) = answerer.answer(
                [open_image(pictures[0])], [question],
                candidates=["red", "blue", "green"] if candidates else None, n=3,
            )  # fmt: skip
        assert f'<p class="said">{expected.answer}</p>' in answer
        assert all(f"{one.probability:.3%}" in answer for one in expected.top)
        assert 'download="attention.png"' in answer
        assert turns == []
    with pytest.raises(UserError, match="a BLIP answers single questions"):
        drawn.vqa(drawn.use, upload(pictures[0]), question, model, "", 3, False, True, [("a", "b")])


def test_a_dialogue_goes_on_with_what_was_said(
    drawn: SimpleNamespace, pictures: list[Path], tmp_path: Path
) -> None:
    import gradio as gr

    blip2 = str(REPO_ROOT / "data" / "toy_models" / "blip2_opt")
    page = Page(Shelf({**TOY, "vqa": [blip2]}, "cpu"), {}, Examples([]), synthetic=True)
    with gr.Blocks():
        tabs = Drawn(page, "en", gr.Markdown())
        tabs.works = []
        TABS["vqa"](tabs)
    (work,) = tabs.works
    turns: list[tuple[str, str]] = []
    for question in ("what color is the shape?", "what shape is it?"):
        answer, turns = work(
            page.shelf.use, upload(pictures[0]), question, blip2, "", 3, False, True, turns
        )
        with page.shelf.use("vqa") as answerer:
            (expected,) = answerer.answer(
                [open_image(pictures[0])], [question], history=turns[:-1], n=3
            )
        assert turns[-1] == (question, expected.answer)
    assert len(turns) == 2
    assert "<td>what color is the shape?</td>" in answer


def test_matches_are_the_matcher_s_for_one_pair_and_many(
    drawn: SimpleNamespace, pictures: list[Path]
) -> None:
    from lavis_apps.matching import Matcher

    model, texts = TOY["matching"][0], ["a red star", "a blue <b>square</b>"]
    given = [{"image": upload(path)} for path in pictures[:2]]
    answer = drawn.matching(drawn.use, given, "\n".join(texts), model, True, 2)
    with drawn.use("matching") as family:
        expected = Matcher(family).match([open_image(p) for p in pictures[:2]], texts)
    for scores in (expected.itm, expected.itc):
        for row in scores.tolist():
            assert "".join(f"<td>{value:.4f}</td>" for value in row) in answer
    assert "<b>square" not in answer
    assert answer.count("<figure>") == 4
    one = drawn.matching(drawn.use, given[:1], texts[0], model, False, 2)
    assert f"{float(expected.itm[0, 0]):.3%}" in one
    assert f"<td>{float(expected.itc[0, 0]):.4f}</td>" in one
    assert "<figure>" not in one
    with pytest.raises(Told, match=r"404 pairs .* at most 400"):
        drawn.matching(drawn.use, given[:2], "a\n" * 202, model, False, 2)
    with pytest.raises(Told, match=r"There is no \.\./\.\./etc to choose"):
        drawn.matching(drawn.use, given, "a", "../../etc", False, 2)


def test_long_texts_are_cut_and_it_is_said(drawn: SimpleNamespace, pictures: list[Path]) -> None:
    long = "a red star and " * 700
    assert len(long) > 10_000
    model = TOY["matching"][0]
    given = [{"image": upload(pictures[0])}]
    answer = drawn.matching(drawn.use, given, f"a star\n{long}", model, True, 2)
    assert "1 of 2 texts are longer than the model reads" in answer
    answer = drawn.localization(drawn.use, upload(pictures[0]), long, model, 2)
    assert "1 of 1 texts are longer" in answer
    answer, _ = drawn.vqa(
        drawn.use, upload(pictures[0]), long, TOY["vqa"][0], "", 3, False, False, []
    )
    assert '<p class="said">' in answer


def test_a_text_is_found_word_by_word(drawn: SimpleNamespace, pictures: list[Path]) -> None:
    answer = drawn.localization(drawn.use, upload(pictures[0]), "a red star", TOY["matching"][0], 1)
    captions = re.findall(r"<figcaption>(.*?) <a", answer)
    assert captions == ["a red star", "a", "red", "star"]
    saved = re.findall(r'download="(\w+\.png)" href="data:image/png;base64,(.*?)"', answer)
    assert [name for name, _ in saved] == [
        "average.png", "word_1.png", "word_2.png", "word_3.png", "words.png",
    ]  # fmt: skip
    for _, content in saved:
        Image.open(io.BytesIO(base64.b64decode(content))).load()
    with pytest.raises(Told, match="Layer: 0 is not from 1"):
        drawn.localization(drawn.use, upload(pictures[0]), "a", TOY["matching"][0], 0)
    with pytest.raises(UserError, match="block 8"):
        drawn.localization(drawn.use, upload(pictures[0]), "a", TOY["matching"][0], 9)


@pytest.mark.parametrize("scoring", ["itc", "itm", "clip"])
def test_classes_are_the_classifier_s(
    drawn: SimpleNamespace, pictures: list[Path], scoring: str
) -> None:
    from lavis_apps.classification import Classifier

    models = (TOY["matching"][0], TOY["clip"][0])
    kind, names = "clip" if scoring == "clip" else "matching", ["star", "square", "frame"]
    answer = drawn.classification(
        drawn.use, upload(pictures[0]), "\n".join(names), scoring, "a {}\na picture of {}", None,
        *models,
    )  # fmt: skip
    with drawn.use(kind) as family:
        (expected,) = Classifier(family, scoring).classify(
            [open_image(pictures[0])], names, templates=["a {}", "a picture of {}"]
        )
    assert f'<p class="said">{expected.label}</p>' in answer
    assert [*re.findall(r"<tr><td>(\w+)</td>", answer)] == [one.label for one in expected.top]
    assert all(f"{one.probability:.3%}" in answer for one in expected.top)
    none = drawn.zh["classification"](
        drawn.use, upload(pictures[0]), "star", scoring, "", 1, *models
    )
    assert '<p class="said">都不是</p>' in none
    assert "只有一个类别" in none


def test_classes_that_cannot_be(drawn: SimpleNamespace, pictures: list[Path]) -> None:
    models = (TOY["matching"][0], TOY["clip"][0])
    for classes, scoring, templates, cause in (
        ("star\nStar", "itc", "", "The class Star stands there twice"),
        ("\n", "itc", "", "Write the classes first"),
        ("star", "best", "", "There is no best to choose"),
        ("star", "itc", "a shape", "has no {} where the class goes"),
        ("\n".join(map(str, range(401))), "itm", "", "401 pairs"),
    ):
        with pytest.raises(Told, match=re.escape(cause)):
            drawn.classification(
                drawn.use, upload(pictures[0]), classes, scoring, templates, None, *models
            )


def test_features_are_the_extractor_s_with_a_file(
    drawn: SimpleNamespace, pictures: list[Path]
) -> None:
    from lavis_apps.features import FeatureExtractor

    given = [{"image": upload(path)} for path in pictures[:2]]
    for kind in ("matching", "clip"):
        answer = drawn.features(drawn.use, given, "a star\na square", TOY[kind][0], False)
        (content,) = re.findall(r'features\.npz" href="data:[\w/-]+;base64,(.*?)"', answer)
        saved = np.load(io.BytesIO(base64.b64decode(content)), allow_pickle=False)
        with drawn.use(kind) as family:
            expected = FeatureExtractor(family, "", "").extract(
                [open_image(path) for path in pictures[:2]], ["a star", "a square"]
            )
        assert set(saved) >= {"image_features", "text_features"}
        assert saved["image"].tolist() == [f"my {path.name}" for path in pictures[:2]]
        assert saved["text"].tolist() == ["a star", "a square"]
        for name in set(saved) - {"image", "text"}:
            np.testing.assert_array_equal(saved[name], getattr(expected, name).numpy())
        assert (
            f"<td>image_embeds</td><td>{'×'.join(map(str, expected.image_embeds.shape))}" in answer
        )
    with pytest.raises(Told, match="Give pictures or texts first"):
        drawn.features(drawn.use, [], " ", TOY["clip"][0], True)


# Search


def found(answer: str) -> list[str]:
    return re.findall(r"<br>([\w/.]+\.jpg)", answer)


def searched(drawn: SimpleNamespace, *given: Any) -> str:
    folder, query, image, n, rerank, cam = given
    return drawn.search(drawn.use, folder, query, image, n, rerank, cam, 48, 0.5)


def test_a_folder_is_searched_by_words_and_by_a_picture(
    drawn: SimpleNamespace, pictures: list[Path]
) -> None:
    assert list(drawn.page.folders) == ["shapes"]
    answer = searched(drawn, "shapes", "", upload(pictures[2]), 2, True, False)
    assert found(answer)[0] == "more/2.jpg"
    assert len(found(answer)) == 2
    assert "Re-ranking and maps need words" in answer
    assert "ITM" not in answer.split("figcaption")[1]
    answer = searched(drawn, "shapes", "a star", None, 24, True, True)
    assert sorted(found(answer)) == ["0.jpg", "1.jpg", "more/2.jpg", "more/3.jpg"]
    assert answer.count('download="hit_') == 4
    assert "need words" not in answer
    for folder in ("/etc", "../shapes", None, 3, str(drawn.folder)):
        with pytest.raises(Told, match=r"There is no .* to choose"):
            searched(drawn, folder, "a star", None, 24, True, False)
    with pytest.raises(Told, match="Write what to search for"):
        searched(drawn, "shapes", " ", None, 24, True, False)


def test_pictures_that_moved_are_told_and_the_rest_is_shown(
    drawn: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (64, 64), "red").save(secret)
    gone, swapped = drawn.folder / "0.jpg", drawn.folder / "1.jpg"
    contents = {path: path.read_bytes() for path in (gone, swapped)}
    try:
        for path in contents:
            path.unlink()
        swapped.symlink_to(secret)  # leads out of the folder: not opened
        answer = searched(drawn, "shapes", "a star", None, 24, True, True)
        assert answer.count('class="gone"') == 2
        assert "0.jpg is not there any more" in answer
        assert "1.jpg is not there any more" in answer
        assert answer.count("<img") == 2
        assert str(drawn.folder) not in answer
    finally:
        swapped.unlink()
        for path, content in contents.items():
            path.write_bytes(content)


def test_folders_have_names_of_their_own_and_their_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_search, "INDEXES", tmp_path / "indexes")
    for place in ("a", "b"):
        draw_pictures(tmp_path / place / "same", 2)
    shelf = Shelf(TOY, "cpu")
    folders = open_folders([str(tmp_path / p / "same") for p in ("a", "b")], [], shelf)
    assert list(folders) == ["same", "same'"]
    assert {f.model for f in folders.values()} == set(TOY["matching"])
    index = str(folders["same"].index.folder)
    again = open_folders([], [index], shelf)
    assert [f.kind for f in again.values()] == ["matching"]
    other = Shelf(TOY | {"matching": TOY["clip"]}, "cpu")
    with pytest.raises(UserError, match=r"blip_itm, which is none of the page's models"):
        open_folders([], [index], other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture"):
        open_folders([str(tmp_path / "empty")], [], shelf)


# Odd pictures through each tab


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_pass_through_every_tab(
    drawn: SimpleNamespace, odd_files: dict[str, Path], name: str
) -> None:
    one, many = upload(odd_files[name]), [{"image": upload(odd_files[name])}]
    matching, clip = TOY["matching"][0], TOY["clip"][0]
    answers = [
        drawn.caption(drawn.use, one, TOY["caption"][0], "beam", "", 0, *CAPTION),
        drawn.vqa(drawn.use, one, "what?", TOY["vqa"][0], "", 3, True, False, [])[0],
        drawn.matching(drawn.use, many, "a star", matching, True, 1),
        drawn.localization(drawn.use, one, "a star", matching, 1),
        drawn.classification(drawn.use, one, "star\nring", "itc", "", None, matching, clip),
        drawn.classification(drawn.use, one, "star\nring", "clip", "", None, matching, clip),
        drawn.features(drawn.use, many, "", clip, True),
        searched(drawn, "shapes", "", one, 3, False, False),
    ]
    assert all("SYNTHETIC" in answer for answer in answers)


# The BLIP demo


@pytest.fixture(scope="module")
def demo() -> BlipDemo:
    return BlipDemo.open(
        caption=TOY["caption"][0], vqa=TOY["vqa"][0], matching=TOY["matching"][0], device="cpu"
    )


def test_the_blip_demo_answers_in_its_own_form(demo: BlipDemo, pictures: list[Path]) -> None:
    image = open_image(pictures[0])
    with demo.use("caption") as captioner:
        ((caption,),) = captioner.caption([image], max_length=20)
    assert demo.inference(image, FUNCTIONS[0], "", "Beam search") == f"caption: {caption.text}"
    assert demo.predict(pictures[0]) == f"Caption: {caption.text}"
    assert re.fullmatch("caption: .+", demo.inference(image, FUNCTIONS[0], "", "Nucleus sampling"))
    question = "What color is the shape?"
    with demo.use("vqa") as answerer:
        (answer,) = answerer.answer([image], [question])
    assert (
        demo.inference(image, FUNCTIONS[1], question, "Beam search") == f"answer: {answer.answer}"
    )
    said = demo.predict(image, "visual_question_answering", question=question)
    assert said == f"Answer: {answer.answer}"
    with demo.use("matching") as family:
        matches = app_matches(family, image, "a red star")
    expected = (
        f"The image and text is matched with a probability of {matches[0]:.4f}.\n"
        f"The image feature and text feature has a cosine similarity of {matches[1]:.4f}."
    )
    assert demo.inference(image, FUNCTIONS[2], "a red star", "Beam search") == expected
    assert demo.predict(image, "image_text_matching", caption="a red star") == expected


def app_matches(family: Any, image: Image.Image, text: str) -> tuple[float, float]:
    from lavis_apps.matching import Matcher

    found = Matcher(family).match([image], [text])
    return float(found.itm[0, 0]), float(found.itc[0, 0])


def test_the_blip_demo_says_what_it_misses(demo: BlipDemo, pictures: list[Path]) -> None:
    image = open_image(pictures[0])
    for given, cause in (
        (("Image Caption", "", "Beam search"), "model_n 'Image Caption': one of Image Captioning"),
        ((FUNCTIONS[0], "", "greedy"), "strategy 'greedy': one of Beam search"),
        ((FUNCTIONS[1], " ", "Beam search"), "Visual Question Answering needs a text"),
    ):
        with pytest.raises(UserError, match=cause):
            demo.inference(image, *given)
    with pytest.raises(UserError, match="task 'x': one of image_captioning"):
        demo.predict(image, "x")
    with pytest.raises(UserError, match="needs a text"):
        demo.predict(image, "image_text_matching", question="a dog")


# The command


def test_causes_are_told_in_the_page_s_language() -> None:
    assert toast("en", UserError("no <b>")).message == "no &lt;b&gt;"
    assert toast("zh", UserError("no weights")).message == "无法完成：no weights"
    assert toast("zh", Told("已是中文")).message == "已是中文"


def test_examples_are_a_folder_s_or_drawn(pictures: list[Path], tmp_path: Path) -> None:
    drawn = find_examples(None)
    assert all(Path(path).is_file() for path, _, _ in drawn.rows)
    assert drawn.rows[0][1:] == (drawn.caption, drawn.question)
    given = find_examples(str(pictures[0].parent))
    assert [Path(path).name for path, _, _ in given.rows] == [p.name for p in pictures[:4]]
    assert given.classes == ("merlion", "sky", "giraffe", "fountain", "marina bay")
    with pytest.raises(UserError):
        find_examples(str(tmp_path))


@pytest.mark.slow
def test_the_dry_run_tells_what_would_be_served() -> None:
    done = subprocess.run(
        [sys.executable, str(APP), "--toy", "--dry_run", "--models", "vqa=some/model", "--port",
         "7999", "--language", "zh"], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:7999/ in zh" in done.stdout
    assert re.search(r"vqa: +some/model \(not here: ", done.stdout)
    assert "toy_models/clip" in done.stdout
    assert "test2015" in done.stdout
