"""The demo: marked differences, scores, causes of errors; in a browser the three tabs."""

from __future__ import annotations

import os
import re
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from qwen_clip_llava_lora.contrast import Asked, Contrast, Decoding, Reply, load_contrast
from qwen_clip_llava_lora.data_formats import open_data
from qwen_clip_llava_lora.demo import (
    CSS_FILE,
    DemoOptions,
    check_adapters,
    is_synthetic,
)
from qwen_clip_llava_lora.demo_html import Shown, answers_html, marked_apart, scores_html
from qwen_clip_llava_lora.demo_pages import (
    MAX_PICTURES,
    Page,
    Visitor,
    answering,
    chosen,
    draw_page,
    parameters,
    sample_asked,
    sample_at,
    scores_of,
    toast,
    typed,
)
from qwen_clip_llava_lora.demo_texts import TEXTS, TITLE
from shared.answering import Answer, ChoiceScore
from shared.gradio_parts import LaunchOptions, bilingual_page, serve
from shared.options import REPO_ROOT, MissingError, UserError, write_json
from tests.tiny_models import tiny_adapter, tiny_folder

# Gradio's queue asks pandas for what pandas is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")

DEMO = REPO_ROOT / "qwen_clip_llava_lora" / "demo.py"
COLOURS = ("red", "green", "blue", "yellow")
SETTINGS = (6, 0, 1, 1, 0)  # as the page sends them


# Words


def fields_of(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, text in TEXTS["en"].items():
        assert fields_of(text) == fields_of(TEXTS["zh"][key]), key


@pytest.mark.parametrize(
    ("left", "right", "marked"),
    [
        ("a red star", "a blue star", ("a <mark>red</mark> star", "a <mark>blue</mark> star")),
        ("a star", "a star", ("a star", "a star")),
        ("", "two stars", ("", "<mark>two stars</mark>")),
        # a word more; the blank between two marked words is marked, the one behind them is not
        ("a star", "a big red star", ("a star", "a <mark>big red</mark> star")),
        ("一个红色圆", "一个蓝色圆", ("一个<mark>红</mark>色圆", "一个<mark>蓝</mark>色圆")),
        ("两个star", "三个 star", ("<mark>两</mark>个star", "<mark>三</mark>个 star")),
        ("<b> & c", "d & c", ("<mark>&lt;b&gt;</mark> &amp; c", "<mark>d</mark> &amp; c")),
        ("a\nb", "a b", ("a\nb", "a b")),
    ],
)  # fmt: skip
def test_words_of_one_answer_alone_are_marked(left, right, marked):
    assert marked_apart(left, right) == marked


def reply_of(text: str, *, stopped: bool = False, finish: str = "stop", **more: Any) -> Reply:
    return Reply(text, 0.5, Answer(text, text, 0.25, 0.5, finish, 3), stopped, **more)


def test_what_a_model_says_is_escaped_and_how_it_ended_is_told():
    sides = [Shown("base", reply_of("<script>x</script>", finish="length")),
             Shown("<b>", reply_of("", stopped=True, finish="length"))]  # fmt: skip
    page = answers_html(TEXTS["en"], sides)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<h3>&lt;b&gt;</h3>" in page
    assert "cut at the token limit" in page
    assert "stopped by you" in page
    assert "(empty answer)" in page
    assert page.count("0.250") == 2
    growing = answers_html(TEXTS["en"], [Shown("base", Reply("a <i", 0.1)), Shown("lora")])
    assert "a &lt;i" in growing
    assert "answering" in growing
    assert "comes next" in growing


def test_scores_stand_with_right_minus_left():
    left = {"log_likelihood": -6.0, "per_token": -2.0, "reference_tokens": 3, "exact_match": 0,
            "token_f1": 0.5}  # fmt: skip
    right = left | {"log_likelihood": -1.5, "per_token": -0.5, "exact_match": 1, "token_f1": 1.0}
    sides = [Shown("a", reply_of("x"), left), Shown("b", reply_of("y"), right)]
    table = scores_html(TEXTS["en"], sides, sampled=False)
    cells = re.findall(r"<tr><th scope=\"row\">(.*?)</th>((?:<td>.*?</td>)+)</tr>", table)
    assert {name: re.findall("<td>(.*?)</td>", row) for name, row in cells} == {
        "Log-likelihood of the reference": ["-6.000", "-1.500", "+4.500"],
        "… a token (3 tokens)": ["-2.000", "-0.500", "+1.500"],
        "Exact match": ["0", "1", "+1"],
        "Token F1": ["0.500", "1.000", "+0.500"],
    }
    assert "one of many possible" not in table
    assert "one of many possible" in scores_html(TEXTS["en"], sides, sampled=True)


# A page without a browser


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny base, two adapters, rows of one picture each with several references, a bad one."""
    folder = tmp_path_factory.mktemp("demo")
    base = tiny_folder("llava", folder / "model")
    rows: list[dict[str, Any]] = []
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
        said = "一张黄色的图片" if colour == "yellow" else f"a {colour} picture"
        talk = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": said}]
        rows.append({"id": f"row{i}", "image": f"{colour}.png", "conversations": talk,
                     "captions": [said, f"one {colour} picture"]})  # fmt: skip
    rows.append({"id": "gone", "image": "gone.png", "conversations": rows[0]["conversations"]})
    rows.append({"id": "bad", "image": "red.png", "conversations": [{"from": "gpt", "value": "x"}]})
    write_json(folder / "rows.json", rows)
    broken = folder / "holiday.jpg"
    broken.write_text("no picture")
    return SimpleNamespace(
        folder=folder, base=base, broken=broken, data=folder / "rows.json",
        pictures=[folder / f"{colour}.png" for colour in COLOURS],
        adapters=[
            tiny_adapter(base, folder / "align" / "adapter", seed=2, lora=False),
            tiny_adapter(base, folder / "course" / "adapter", steps=1234, data={
                "sources": [{"source": "data/my <set>.json"}], "rows": 5000, "held_out_rows": 20,
            }, validation={"loss": 0.5, "cider": 1.25, "step": 1000}),
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def contrast(files: SimpleNamespace) -> Contrast:
    return load_contrast(str(files.base), [str(a) for a in files.adapters], device="cpu")


@pytest.fixture(scope="module")
def common(files: SimpleNamespace, contrast: Contrast) -> Page:
    from shared.vision_families_adapters import adapter_manifest

    return Page(
        contrast=contrast, name="tiny", synthetic=True, data=open_data(files.data),
        decoding=Decoding(max_new_tokens=24),
        manifests={n: adapter_manifest(s.folder) for n, s in contrast.sides.items() if s.folder},
    )  # fmt: skip


def upload_of(path: Path) -> dict[str, str]:
    return {"path": str(path), "orig_name": f"my {path.name}"}


def test_the_scores_are_those_of_the_scoring_functions(common):
    sample = sample_at(common.data, 0, TEXTS["en"])
    likelihood = ChoiceScore(-6.0, 4)
    found = scores_of(sample, common.data, reply_of("A red picture.", likelihood=likelihood))
    assert found == {"exact_match": 1, "token_f1": 1.0, "log_likelihood": -6.0, "per_token": -1.5,
                     "reference_tokens": 4}  # fmt: skip
    found = scores_of(sample, common.data, reply_of("a picture", no_likelihood="too long"))
    assert found == {"exact_match": 0, "token_f1": pytest.approx(2 / 3),
                     "log_likelihood": "too long"}  # fmt: skip
    assert scores_of(sample, common.data, reply_of("a", stopped=True)) is None
    assert scores_of(sample, common.data, Reply("a", 0.1)) is None


def test_label_and_question_data_have_their_own_scores(files, tmp_path):
    talk = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "happy"}]
    row = {"id": "a", "image": "red.png", "conversations": talk}
    for kind, more, expected in (
        ("label", {"label": "happy"}, {"predicted": "happy"}),
        ("question", {"answers": ["happy"] * 9 + ["sad"]}, {"vqa": 1.0}),
        ("question", {"answers": ["happy"]}, {}),
    ):
        folder = tmp_path / f"{kind}{len(more)}{len(expected)}"
        folder.mkdir()
        write_json(folder / "test.json", [row | more])
        write_json(folder / "dataset.json", {"kind": kind, "classes": ["happy", "sad"]})
        data = open_data(folder / "test.json", files.folder)
        found = scores_of(sample_at(data, 0, TEXTS["en"]), data, reply_of("Happy"))
        assert found == {"exact_match": 1, "token_f1": 1.0} | expected


def asked_on(common: Page, collect: Any, *given: Any, names: Any = ("base", "course")) -> list[str]:
    return list(answering(common, "en", collect)(Visitor(), *names, *SETTINGS, *given))


def test_the_answers_grow_and_then_differ_with_scores(common):
    shown = asked_on(common, sample_asked(common.data, TEXTS["en"]), 1)
    assert all("Against the reference" not in page for page in shown[:-1])
    assert "Log-likelihood of the reference" in shown[-1]
    assert "<mark>" in shown[-1]
    assert "The answers differ" in shown[-1]
    said = [re.findall(r'<p class="said">(.*?)</p>', page, re.DOTALL) for page in shown]
    left = [one for one, _ in said]
    assert len(set(left)) > 3
    assert said[0] == ["", ""]
    same = asked_on(common, sample_asked(common.data, TEXTS["en"]), 1, names=("base", "base"))
    assert "Both answers are the same" in same[-1]
    assert "<mark>" not in same[-1]


@pytest.mark.parametrize(
    ("uploads", "question", "english", "chinese"),
    [
        ([], " ", "Write a question", "请先写一个问题"),
        (["red.png"], "x" * 4001, "4,001 characters", "4,001 个字符"),
        (["holiday.jpg"], "What?", "my holiday.jpg can't be used: not a picture", "my holiday.jpg"),
        (["gone.jpg"], "What?", "my gone.jpg can't be used", "无法使用 my gone.jpg"),
        (["red.png", "blue.png"], "Is <image> red?", "has 1 <image>, but there are 2", "有 1 个"),
    ],
)
def test_what_cannot_be_asked_is_told(monkeypatch, files, uploads, question, english, chinese):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(files.folder))
    given = [upload_of(files.folder / name) for name in uploads]
    for language, cause in (("en", english), ("zh", chinese)):
        with pytest.raises(UserError, match=re.escape(cause)) as caught:
            typed(given, question, TEXTS[language])
        assert str(files.folder) not in str(caught.value)


def test_samples_that_are_not_there_are_told(common):
    texts = TEXTS["en"]
    for index in (-1, 6, 10**9):
        with pytest.raises(UserError, match=rf"no sample {index}: rows has 0 to 5"):
            sample_at(common.data, index, texts)
    with pytest.raises(UserError, match=r"(?s)This sample can't be used.*gone\.png"):
        sample_asked(common.data, texts)(4)
    with pytest.raises(UserError, match=r"This sample can't be used.*row 5"):
        sample_at(common.data, 5, texts)
    for forged in (None, "../../etc/passwd", [1], {"path": "x"}):
        with pytest.raises(UserError, match="no sample -1"):
            sample_asked(common.data, texts)(forged)


def test_an_error_is_a_toast_with_its_cause(common, contrast):
    import gradio as gr

    def asked(*_: Any) -> tuple[Asked, None]:
        return Asked("x" * 600), None

    for given, settings, cause in (
        (("base", "course"), SETTINGS, "There is no room for this: the prompt has"),
        (("base", "../x"), SETTINGS, "There is no side &#x27;../x&#x27;"),
        (("base", "course"), (6, "hot", 1, 1, 0), "The setting can&#x27;t be used"),
        (("base", "course"), (6, 0, 7, 1, 0), "top_p 7.0: above 0, at most 1"),
    ):
        run = answering(common, "en", asked)(Visitor(), *given, *settings)
        with pytest.raises(gr.Error) as caught:
            list(run)
        assert cause in caught.value.message
    told = toast("zh", UserError("the prompt has 9 tokens; the model has room for 3"))
    assert "放不下了" in told.message
    assert contrast.lock.acquire(timeout=60)  # an error leaves the model to the next visitor
    contrast.lock.release()


def test_settings_from_the_page():
    assert chosen([6.0, 0, 1, 1, 0], TEXTS["en"]) == Decoding(6)
    assert chosen([10**9, 0.5, 0.9, 1.1, 7], TEXTS["en"]).max_new_tokens == 2048
    for values in ([None] * 5, [1, 0, 1, 1, float("inf")], [0, 0, 1, 1, 0]):
        with pytest.raises(UserError, match="无法使用这个设置"):
            chosen(values, TEXTS["zh"])


def test_the_parameters_panel_says_what_trained_on_what(common):
    page = parameters(TEXTS["en"], common)
    found = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    rows = {name: re.findall("<td>(.*?)</td>", cells) for name, cells in found}
    n = 32 * 64 + 64 * 64
    biases = 64 + 64
    assert rows["Projector"] == [f"{n + biases:,}", f"{n:,} of its own", f"{n:,} of its own"]
    assert rows["Language model"][1:] == ["as the base", "1,792 in LoRA, rank 4"]
    assert rows["Vision tower"][1:] == ["as the base", "as the base"]
    total = sum(p.numel() for p in common.contrast.model.parameters()) - 1792
    assert rows["Together"] == [
        f"{total:,}", f"{n:,} trained ({n / total:.2%} of the base)",
        f"{n + 1792:,} trained ({(n + 1792) / total:.2%} of the base)",
    ]  # fmt: skip
    assert rows["Data"] == ["none", "data/my &lt;set&gt;.json: 5,000 rows, 20 held out"]
    assert rows["Preset"] == ["align", "course"]
    assert rows["Steps"] == ["none", "1,234"]
    assert rows["Validation"] == ["none", "loss 0.500, cider 1.250"]
    assert rows["Synthetic"] == ["yes", "yes"]


# The command


def test_missing_adapters_are_told_with_their_commands(files, monkeypatch, tmp_path):
    import qwen_clip_llava_lora.demo as demo

    with pytest.raises(MissingError, match=r"--adapter RUN/adapter; train\.py writes one"):
        check_adapters([])
    toys = {str(tmp_path / "align"): "train.py --toy --preset align",
            str(tmp_path / "course"): "train.py --toy"}  # fmt: skip
    monkeypatch.setattr(demo, "TOY_ADAPTERS", toys)
    with pytest.raises(MissingError) as caught:
        check_adapters(demo.toy_adapters())
    assert "qwen_clip_llava_lora/train.py --toy --preset align\n" in str(caught.value)
    assert str(caught.value).endswith("qwen_clip_llava_lora/train.py --toy")
    (tmp_path / "course").mkdir()
    assert demo.toy_adapters() == [str(tmp_path / "course")]
    with pytest.raises(UserError, match="not an adapter folder: you mean --adapter"):
        check_adapters([str(files.adapters[0].parent)])
    with pytest.raises(MissingError, match="no such folder"):
        check_adapters(["nowhere"])
    with pytest.raises(UserError, match="which model"):
        DemoOptions()


def test_toys_are_known_by_model_adapter_or_data(files, tmp_path):
    data = open_data(files.data)
    assert is_synthetic([str(files.base)], data) is False
    assert is_synthetic([str(files.base), str(files.adapters[0])], None) is True
    (tmp_path / "set").mkdir()
    write_json(tmp_path / "set" / "rows.json", [])
    write_json(tmp_path / "set" / "dataset.json", {"synthetic": True, "kind": "caption"})
    own = SimpleNamespace(source=tmp_path / "set" / "rows.json")
    assert is_synthetic([str(files.base)], own) is True


@pytest.mark.slow
def test_the_dry_run_tells_what_is_compared(files):
    done = subprocess.run(
        [sys.executable, str(DEMO), "--model", str(files.base), "--adapter",
         *map(str, files.adapters), "--data", str(files.data), "--dry_run", "--port", "7999",
         "--language", "zh"], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:7999/ in zh" in done.stdout
    assert "(llava)" in done.stdout
    assert re.search(r"course: .*language model: 1,792 in LoRA, 0 of its own", done.stdout)
    assert "rows (conversations), 6 rows" in done.stdout
    assert r"human: '<image>\nDescribe it.'" in done.stdout


# In a browser


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def demo(common: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The page in this process; `slow` makes each token of the model wait for `go`."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        page = bilingual_page(TITLE, lambda blocks, lang: draw_page(blocks, lang, common), "en")
        css = CSS_FILE.read_text(encoding="utf-8")
        address = serve(page, LaunchOptions(port=free_port()), css=css, wait=False)
        yield SimpleNamespace(address=address, folder=folder)
        page.close()


def open_demo(page: Any, address: str, first: str = "row0") -> None:
    page.set_default_timeout(90_000)
    page.goto(address)
    page.locator(".sample dd", has_text=first).wait_for()


def ask(page: Any, name: str = "Ask both") -> None:
    page.locator("button:visible", has_text=name).click()


def choose(page: Any, label: str, name: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def said(page: Any) -> list[str]:
    """Both answers on the visible tab, once they are whole."""
    page.locator(".result:visible .verdict").wait_for()
    return page.locator(".result:visible .said").all_inner_texts()


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def told(page: Any, text: str) -> None:
    page.locator(".toast-body", has_text=text).first.wait_for()


def whole_texts(contrast: Contrast, names: list[str], asked: Asked, n: int = 24) -> list[str]:
    last = dict(contrast.ask(names, asked, Decoding(n)))
    return [" ".join(last[i].text.split()) for i in range(len(names))]


def joined(texts: list[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


@pytest.mark.browser
@pytest.mark.slow
def test_a_sample_by_its_number(demo, chromium_page, page_log, common) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_text("SYNTHETIC A toy model").wait_for()
    page.get_by_text("Runs on the CPU").wait_for()
    references = page.locator(".sample li")
    assert references.all_inner_texts() == ["a red picture", "one red picture"]
    ask(page)
    collect = sample_asked(common.data, TEXTS["en"])
    assert joined(said(page)) == whole_texts(common.contrast, ["base", "course"], collect(0)[0])
    page.locator(".scores tr", has_text="Token F1").wait_for()
    row = page.locator(".scores tr", has_text="Log-likelihood of the reference")
    last = dict(common.contrast.ask(["base", "course"], collect(0)[0], Decoding(24)))
    values = [last[i].likelihood.log_prob for i in (0, 1)]
    assert [float(cell) for cell in row.locator("td").all_inner_texts()] == pytest.approx(
        [*values, values[1] - values[0]], abs=2e-3
    )
    # another number takes the answers away
    page.locator("button:visible", has_text="Next").click()
    page.locator(".sample dd", has_text="row1").wait_for()
    assert page.locator(".result:visible .verdict").count() == 0
    # a number that was typed alone is asked about, and shown
    choose(page, "Right", "align")
    page.get_by_label("Sample", exact=True).fill("3")
    ask(page)
    page.locator(".sample dd", has_text="row3").wait_for()
    assert references.all_inner_texts() == ["一张黄色的图片"]  # the answer's language alone
    assert joined(said(page)) == whole_texts(common.contrast, ["base", "align"], collect(3)[0])
    assert page.locator(".result:visible h3").all_inner_texts() == ["base", "align"]
    page.locator("button:visible", has_text="Random").click()
    page.locator(".prose.result:visible", has_text="The answers appear here").wait_for()

    page.get_by_role("button", name="Parameters and training").click()
    page.locator(".parameters td", has_text="1,792 in LoRA, rank 4").wait_for()
    foreign = [
        u for u in page_log["requests"] if not u.startswith((demo.address, "data:", "blob:"))
    ]
    assert foreign == []
    assert page_log["errors"] == []


def put_picture(page: Any, path: Path) -> None:
    page.locator(".picture input[type=file]").set_input_files(path)
    page.locator(".picture img").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_an_own_picture_and_question(demo, chromium_page, page_log, common, files) -> None:
    from shared.images import open_image

    page = chromium_page
    open_demo(page, demo.address)
    # long before it is used: Gradio draws what is inside anew, with the values of the start
    page.get_by_role("button", name="Sampling settings").click()
    tab(page, "Own picture")
    ask(page)
    told(page, "Give a picture first.")
    put_picture(page, files.pictures[1])
    ask(page)
    told(page, "Write a question first.")
    page.get_by_label("Question", exact=True).locator("visible=true").fill("What is it?")
    ask(page)
    asked = Asked("What is it?", (open_image(files.pictures[1]),))
    assert joined(said(page)) == whole_texts(common.contrast, ["base", "course"], asked)
    assert page.locator(".result:visible mark").count() > 0
    assert page.locator(".result:visible .meter").count() == 2
    assert page.locator(".result:visible .scores").count() == 0

    tokens = page.get_by_label("number input for Longest answer (tokens)")
    tokens.fill("5")
    tokens.press("Tab")
    ask(page)
    page.locator(".result:visible dd", has_text="5 tokens").nth(1).wait_for()
    page.locator(".result:visible dd", has_text="cut at the token limit").nth(1).wait_for()
    assert page_log["errors"] == []


@pytest.mark.browser
@pytest.mark.slow
def test_several_pictures_in_one_question(demo, chromium_page, common, files) -> None:
    from shared.images import open_image

    page = chromium_page
    open_demo(page, demo.address)
    tab(page, "Several pictures")
    ask(page)
    told(page, "Give the pictures first.")
    page.locator(".gallery input[type=file]").set_input_files(files.pictures[:2])
    page.locator(".gallery img").nth(1).wait_for()
    question = page.get_by_label("Question", exact=True).locator("visible=true")
    question.fill("Is <image> red?")
    ask(page)
    told(page, "The question has 1 <image>, but there are 2 pictures.")
    question.fill("Which is red?")
    question.press("Enter")
    asked = Asked("Which is red?", tuple(open_image(p) for p in files.pictures[:2]))
    assert joined(said(page)) == whole_texts(common.contrast, ["base", "course"], asked)


@pytest.mark.browser
@pytest.mark.slow
def test_bad_uploads_and_numbers_are_told_and_the_page_goes_on(
    demo, chromium_page, files, common, tmp_path
) -> None:
    page = chromium_page
    open_demo(page, f"{demo.address}zh")
    page.get_by_role("tab", name="多张图片").wait_for()
    number = page.get_by_label("样本", exact=True)
    number.fill("99")
    number.press("Enter")
    told(page, "没有样本 99：rows 有 0 至 5。")
    number.fill("4")
    number.press("Enter")
    page.locator(".sample .gone").wait_for()
    ask(page, "两边都问")
    told(page, "无法使用这个样本")
    tab(page, "自己的图片")
    page.locator(".picture input[type=file]").set_input_files(files.broken)
    told(page, "无法使用 holiday.jpg：它不是图片")
    page.locator(".picture img").wait_for(state="detached")
    put_picture(page, files.pictures[0])
    page.get_by_label("问题", exact=True).locator("visible=true").fill("这是什么？")
    ask(page, "两边都问")
    assert len(said(page)) == 2
    tab(page, "多张图片")
    copies = [tmp_path / f"{i}.png" for i in range(MAX_PICTURES + 1)]
    for copy in copies:
        copy.write_bytes(files.pictures[0].read_bytes())
    page.locator(".gallery input[type=file]").set_input_files(copies)
    page.locator(".gallery img").nth(MAX_PICTURES).wait_for()
    page.get_by_label("问题", exact=True).locator("visible=true").fill("这是什么？")
    ask(page, "两边都问")
    told(page, "9 张图片太多；最多 8 张。")


@pytest.mark.browser
@pytest.mark.slow
def test_stop_ends_both_answers_and_the_next_question_is_answered(
    demo, chromium_page, common, monkeypatch
) -> None:
    """A model that takes its time for each token, as real ones do."""
    from shared.vision_language import VisionLanguage

    go_on = VisionLanguage.go_on
    monkeypatch.setattr(
        VisionLanguage, "go_on", lambda *given: time.sleep(0.5) or go_on(*given)
    )  # fmt: skip
    page = chromium_page
    open_demo(page, demo.address)
    ask(page)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.said')].some(said => said.innerText.length > 1)"
    )
    page.locator("button:visible", has_text="Stop").click()
    page.locator(".result:visible dd", has_text="stopped by you").nth(1).wait_for()
    monkeypatch.undo()
    collect = sample_asked(common.data, TEXTS["en"])
    whole = whole_texts(common.contrast, ["base", "course"], collect(0)[0])
    stopped = joined(said(page))
    assert all(full.startswith(cut) and len(cut) < len(full)
               for cut, full in zip(stopped, whole, strict=True))  # fmt: skip
    assert page.locator(".scores").count() == 0
    ask(page)
    page.locator(".scores").wait_for()
    assert joined(said(page)) == whole


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("beside", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_no_visitor_reads_the_servers_files_or_calls_an_api(demo, files, beside) -> None:
    """Forged requests name a picture on the server's disk in the place of an upload."""
    with httpx.Client(trust_env=False, base_url=demo.address, timeout=60) as client:
        assert client.get("gradio_api/info").json() == {
            "named_endpoints": {}, "unnamed_endpoints": {},
        }  # fmt: skip
        for path in (files.data, files.pictures[0], REPO_ROOT / "pyproject.toml"):
            answer = client.get(f"gradio_api/file={path}")
            assert answer.status_code in (403, 404), answer.text
        asks = [
            d for d in client.get("config").json()["dependencies"]
            if d["api_name"].startswith("handle") and len(d["inputs"]) == 10
        ]  # fmt: skip
        assert len(asks) == 4  # own picture, several pictures, in two languages
        forged = {"path": str(files.pictures[0]), **beside}
        one, many = forged, [{"image": forged, "caption": None}]
        for fn, given in zip(asks, (one, many, one, many), strict=True):
            session = f"thief{fn['id']}{len(beside)}"
            data = [None, "base", "course", *SETTINGS, given, "What is it?"]
            joined_queue = client.post(
                "gradio_api/queue/join",
                json={"data": data, "fn_index": fn["id"], "session_hash": session},
            )
            assert joined_queue.status_code == 200, joined_queue.text
            with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
                said = "\n".join(line for line in stream.iter_lines() if line[:5] == "data:")
            assert re.search(r'"success": ?false', said), said


@pytest.mark.browser
@pytest.mark.slow
def test_the_command_serves_another_family_and_deletes_uploads(
    chromium_page, tmp_path, files
) -> None:
    base = tiny_folder("qwen2_vl", tmp_path / "model")
    adapter = tiny_adapter(base, tmp_path / "run" / "adapter")
    uploads, port, log = tmp_path / "uploads", free_port(), tmp_path / "demo.log"
    uploads.mkdir()
    command = [
        sys.executable, str(DEMO), "--model", str(base), "--adapter", str(adapter), "--port",
        str(port), "--device", "cpu", "--max_new_tokens", "6",
    ]  # fmt: skip
    environment = os.environ | {"GRADIO_TEMP_DIR": str(uploads), "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 240
        while "page: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        page = chromium_page
        page.set_default_timeout(90_000)
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_text("No data was given").wait_for()
        assert page.get_by_label("Right", exact=True).count() == 0  # nothing to choose
        tab(page, "Own picture")
        put_picture(page, files.pictures[2])
        page.get_by_label("Question", exact=True).locator("visible=true").fill("What is it?")
        ask(page)
        assert len(said(page)) == 2
    finally:
        process.terminate()
        process.wait(60)
    assert [file for file in uploads.rglob("*") if file.is_file() and "upload" in file.name] == []
