"""The demo: verdicts from scores that are there, edited classes, several pictures, CSV, browser."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from llava_openset.classifying import classify
from llava_openset.demo import CSS_FILE, DemoOptions, example_pictures, of_run
from llava_openset.demo_html import Asked, csv_text, details_html, score_range
from llava_openset.demo_pages import (
    MAX_CLASSES,
    MAX_FILES,
    Batch,
    Page,
    Shown,
    ask_pictures,
    asking,
    asking_many,
    choosing,
    draw_page,
    looking,
    read_classes,
    showing,
    showing_many,
)
from llava_openset.demo_texts import TEXTS, TITLE
from llava_openset.prompts import TOY_QUESTION
from llava_openset.samples import read_split
from llava_openset.settings import TOY_MODEL
from shared.answering import Answer, ChoiceScore
from shared.gradio_parts import LaunchOptions, bilingual_page, serve
from shared.options import REPO_ROOT, MissingError, UserError, write_json

# Gradio's queue asks pandas for what pandas is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")

DEMO = REPO_ROOT / "llava_openset" / "demo.py"
COLOURS = ("red", "green", "blue")
QUESTION = "What colour?"
# Channels that sum to 255: the probabilities of red, green and blue are their shares.
MOSTLY_RED, MOSTLY_GREEN, UNSURE = (204, 34, 17), (17, 221, 17), (102, 85, 68)


class ColourModel:
    """Names the strongest channel of a picture of one colour; a colour is as likely as it is
    strong, and every other class 1 in 100. Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    def encode_images(self, images: Sequence[Any]) -> list[tuple[int, int, int]]:
        return [image.getpixel((0, 0)) for image in images]

    def prompt_problem(self, prompt: str) -> str | None:
        return "the prompt is too long" if len(prompt) > 2000 else None

    def choices_problem(self, prompt: str, choices: Sequence[str]) -> str | None:
        return None

    def answer(self, features: Any, picture_index: Any, prompts: Sequence[str]) -> list[Answer]:
        self.asked += prompts
        said = [COLOURS[features[i].index(max(features[i]))] for i in picture_index]
        return [Answer(word, f"A {word} <thing>", 0.5, 0.5, "stop", 2) for word in said]

    def choice_log_probs(
        self, features: Any, picture_index: Any, prompts: Sequence[str], choices: Any, _: int
    ) -> list[list[ChoiceScore]]:
        self.asked += prompts
        return [
            [
                ChoiceScore(
                    math.log(features[i][COLOURS.index(c)] / 255 if c in COLOURS else 0.01), 1
                )
                for c in own
            ]
            for i, own in zip(picture_index, choices, strict=True)
        ]


def page_of(**changes: Any) -> Page:
    settings: dict[str, Any] = {
        "model": ColourModel(), "name": "colours", "adapter": None, "synthetic": True,
        "question": QUESTION, "form": "{}", "normalisation": "mean", "classes": COLOURS,
        "run": "trial", "thresholds": {"max_softmax": 0.61234, "margin": 0.25},
    }  # fmt: skip
    return Page(**(settings | changes))


def picture(folder: Path, name: str, colour: tuple[int, int, int]) -> Path:
    from PIL import Image

    path = folder / name
    Image.new("RGB", (40, 30), colour).save(path)
    return path


@pytest.fixture(autouse=True)
def uploads_folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that a test hands to the page's functions itself count as uploaded."""
    if not request.node.get_closest_marker("browser"):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {
        "red": picture(tmp_path, "red.png", MOSTLY_RED),
        "green": picture(tmp_path, "green.png", MOSTLY_GREEN),
        "unsure": picture(tmp_path, "unsure.png", UNSURE),
        "broken": tmp_path / "holiday.jpg",
    }
    made["broken"].write_text("no picture")
    return made


def upload_of(path: Path) -> dict[str, str]:
    return {"path": str(path), "orig_name": f"my {path.name}"}


def ask_one(page: Page, path: Path, written: str = "red, green, blue") -> Shown:
    given = (upload_of(path), written, "freetext-list", "max_softmax", 0.5, Shown())
    shown, _ = asking(page, "en")(*given)
    return shown


# Words and classes


def fields_of(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, text in TEXTS["en"].items():
        assert fields_of(text) == fields_of(TEXTS["zh"][key]), key


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("dog, cat", ["dog", "cat"]),
        ("dog\ncat\n\n", ["dog", "cat"]),
        ("  hot   dog ,dog,\r\n teddy bear", ["hot dog", "dog", "teddy bear"]),
        ("狗，猫、hot dog；car; bus", ["狗", "猫", "hot dog", "car", "bus"]),
    ],
)
def test_classes_are_read_from_lines_and_commas(written: str, names: list[str]) -> None:
    assert read_classes(written, TEXTS["en"]) == names


@pytest.mark.parametrize(
    ("written", "english", "chinese"),
    [
        (None, "empty", "空的"),
        (" ,\n, ", "empty", "空的"),
        ("dog", "One class only, dog", "只有一个类别 dog"),
        ("dog, cat, Dog", "Dog stands twice", "Dog 在列表中出现了两次"),
        ("hot-dog, cat, hot dog", "hot dog stands twice", "出现了两次"),
        ("dog, unknown", "called unknown", "不能叫 unknown"),
        ("dog, !!", "!! has no word", "没有词"),
        ("dog, " + "x" * 61, "61 characters", "61 个字符"),
        (", ".join(f"c{i}" for i in range(MAX_CLASSES + 1)), "101 classes are too many", "101 个"),
    ],
)
def test_a_list_that_cannot_be_used_is_told(
    written: str | None, english: str, chinese: str
) -> None:
    for language, cause in (("en", english), ("zh", chinese)):
        with pytest.raises(UserError, match=re.escape(cause)):
            read_classes(written, TEXTS[language])


def test_a_bad_list_or_prompt_asks_nothing(files: dict[str, Path]) -> None:
    page = page_of()
    assert "stands twice" in ask_one(page, files["red"], "red, red").notice
    given = (upload_of(files["red"]), "red, blue", "two_query", "max_softmax", 0.5, Shown())
    shown, _ = asking(page, "en")(*given)
    assert "two_query" in shown.notice
    assert page.model.asked == []


# Verdicts


def test_the_four_scores_are_those_of_the_shares(files: dict[str, Path]) -> None:
    (asked,) = ask_pictures(page_of(), "freetext-list", [upload_of(files["red"])], COLOURS)
    assert asked.likely.outcome.class_probabilities == pytest.approx(
        {"red": 0.8, "green": 0.133333, "blue": 0.066667}
    )
    entropy = 0.8 * math.log(0.8) + 2 / 15 * math.log(2 / 15) + 1 / 15 * math.log(1 / 15)
    assert asked.likely.outcome.scores == pytest.approx(
        {"max_softmax": 0.8, "margin": 2 / 3, "entropy": entropy, "energy": 0.0}, abs=1e-6
    )
    assert (asked.name, asked.classes, asked.error) == ("my red.png", COLOURS, None)


def test_score_and_threshold_make_another_verdict_without_the_model(
    files: dict[str, Path],
) -> None:
    page = page_of()
    shown = ask_one(page, files["red"])
    assert page.model.asked == [
        "Choose one of these: red, green, blue.\nWhat colour?", "What colour?",
    ]  # fmt: skip
    show = showing(page, "en")
    known, details = show(shown, "max_softmax", 0.75)
    assert "Known: red</p>" in known
    assert "Max softmax 0.800 is at least the threshold 0.750." in known
    assert "left:75.00%" in details
    close, _ = show(shown, "max_softmax", 0.80004)
    assert "Max softmax 0.800000 is below the threshold 0.800040" in close
    unknown, _ = show(shown, "max_softmax", 0.801)
    assert "Unknown</p>" in unknown
    assert "below the threshold 0.801; likeliest of the list is red" in unknown
    unknown, details = show(shown, "margin", 0.7)
    assert "Margin 0.667 is below the threshold 0.700" in unknown
    assert details.count("left:70.00%") == 1  # in the score's bar, in none of the classes'
    assert "Known: red</p>" in show(shown, "energy", -0.001)[0]
    assert "score &#x27;rank&#x27;: one of max_softmax" in show(shown, "rank", 0)[0]
    assert len(page.model.asked) == 2


def test_bars_have_names_and_numbers_the_likeliest_first(files: dict[str, Path]) -> None:
    page = page_of()
    _, details = showing(page, "en")(ask_one(page, files["unsure"]), "entropy", -1)
    rows = re.findall(r'<th scope="row">(\w+)</th><td>.*?</td><td>([\d.]+)</td>', details)
    assert rows[:3] == [("red", "0.400"), ("green", "0.333"), ("blue", "0.267")]
    assert "A red &lt;thing&gt;" in details
    assert "<thing>" not in details
    assert "Names the class red: known." in details
    assert "Mean token probability 0.500" in details


def test_many_classes_are_folded(files: dict[str, Path]) -> None:
    names = [f"thing{i}" for i in range(79)] + ["red"]
    page = page_of()
    shown = ask_one(page, files["red"], "\n".join(names))
    details = details_html(TEXTS["en"], shown.asked, "max_softmax", 0.5, "mean")
    unfolded, folded = details.split("<summary>64 more classes</summary>")
    assert unfolded.count("thing") == 15
    assert unfolded.index(">red<") < unfolded.index("thing")
    # once more each in the prompt
    assert folded.split("</details>")[0].count("thing") == 64


def asked_with(files: dict[str, Path], answer: str, classes: Sequence[str]) -> Asked:
    model = ColourModel()
    model.answer = lambda *_: [Answer(answer, answer, 0.5, 0.5, "stop", 2)]  # type: ignore
    page = page_of(model=model)
    (asked,) = ask_pictures(page, "freetext-open", [upload_of(files["red"])], classes)
    return asked


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("a puppy", "Names the class dog: known."),
        ("a hot dog", "Names something outside the list: unknown."),
        ("I can't tell.", "Names nothing: abstained, which counts as unknown."),
        ("", "Names nothing: abstained"),
        ("a cat and a dog", "Names several classes: ambiguous; cat, the first, counts."),
    ],
)
def test_what_the_matcher_makes_of_the_answer_is_told(
    files: dict[str, Path], answer: str, told: str
) -> None:
    asked = asked_with(files, answer, ["dog", "cat"])
    assert told in details_html(TEXTS["en"], asked, "margin", 0.5, "mean")


def test_where_the_threshold_is_from_is_told(files: dict[str, Path]) -> None:
    page = page_of()
    show, shown = showing(page, "en"), ask_one(page, files["red"])
    assert (
        "Threshold of the run trial, chosen on its validation part."
        in (show(shown, "max_softmax", 0.612)[0])
    )
    assert "set by hand; the run trial has 0.612" in show(shown, "max_softmax", 0.613)[0]
    assert "the run trial has no threshold of this score" in show(shown, "energy", -1)[0]
    other = ask_one(page, files["red"], "red, green")
    assert "Not calibrated for this class list" in show(other, "max_softmax", 0.612)[0]
    reordered = ask_one(page, files["red"], "blue, red, green")
    assert "chosen on its validation part" in show(reordered, "max_softmax", 0.612)[0]
    alone = page_of(run=None, thresholds=None)
    assert "no run was given" in showing(alone, "en")(Shown(), "max_softmax", 0.5)[0]
    assert "未校准" in showing(alone, "zh")(Shown(), "max_softmax", 0.5)[0]


def test_the_slider_s_steps_keep_the_run_s_own_decimals() -> None:
    """A threshold is the score of some sample: rounded up it would reject that one."""
    page = page_of()
    assert page.start("max_softmax") == 0.612
    assert page.exact("max_softmax", 0.612) == 0.61234
    assert page.exact("max_softmax", 0.611) == 0.611
    assert page.start("energy") == pytest.approx((-10 + math.log(3)) / 2, abs=0.001)


@pytest.mark.parametrize(
    ("score", "values", "ends"),
    [
        ("max_softmax", (0.5,), (0.0, 1.0)),
        ("entropy", (), (-1.387, 0.0)),  # ln 4 = 1.38629
        ("energy", (), (-10.0, 1.387)),
        ("energy", (-12.3456, -3.0), (-12.346, 1.387)),
    ],
)
def test_the_slider_reaches_every_value(
    score: str, values: tuple[float, ...], ends: tuple[float, float]
) -> None:
    assert score_range(score, 4, "mean", *values) == ends


def test_another_score_takes_the_run_s_threshold_of_it(files: dict[str, Path]) -> None:
    page = page_of()
    slider = choosing(page)(ask_one(page, files["red"]), "margin")
    assert (slider.minimum, slider.maximum, slider.value) == (0.0, 1.0, 0.25)
    slider = choosing(page)(Batch(), "entropy")
    assert (slider.minimum, slider.maximum) == score_range("entropy", 3, "mean")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_broken_or_missing_picture_has_its_cause(
    files: dict[str, Path], language: Any, tmp_path: Path
) -> None:
    page, texts = page_of(), TEXTS[language]
    value, shown = looking(language)(upload_of(files["broken"]), Shown())
    assert value is None
    assert "my holiday.jpg" in shown.notice
    assert "not a picture that Pillow can read" in shown.notice
    assert str(tmp_path) not in shown.notice
    # the field is empty now: asking says again why
    _, kept = looking(language)(None, shown)
    again, _ = asking(page, language)(None, "red, blue", "course", "max_softmax", 0.5, kept)
    assert again.notice == shown.notice
    assert showing(page, language)(again, "max_softmax", 0.5)[0] == shown.notice
    never, _ = asking(page, language)(None, "red, blue", "course", "max_softmax", 0.5, Shown())
    assert texts["no_picture"] in never.notice
    _, new = looking(language)(upload_of(files["red"]), shown)
    assert new == Shown()
    # what was wrong with the classes is not said of a picture
    bad, _ = asking(page, language)(upload_of(files["red"]), "", "course", "margin", 0.5, new)
    _, emptied = looking(language)(None, bad)
    never, _ = asking(page, language)(None, "red, blue", "course", "margin", 0.5, emptied)
    assert texts["no_picture"] in never.notice


def test_a_new_picture_takes_the_old_verdict_away(files: dict[str, Path]) -> None:
    shown = ask_one(page_of(), files["red"])
    assert looking("en")(upload_of(files["red"]), shown)[1] is shown
    assert looking("en")(upload_of(files["green"]), shown)[1] == Shown()


def test_what_the_model_refuses_is_told(files: dict[str, Path]) -> None:
    names = [f"{i} {'x' * 50}" for i in range(50)]
    shown = ask_one(page_of(), files["red"], ", ".join(names))
    assert "This can&#x27;t be asked: the prompt is too long." in shown.notice


# Several pictures


def ask_many(page: Page, paths: Sequence[Path], language: Any = "en") -> list[tuple[Any, ...]]:
    given = [upload_of(path) for path in paths]
    return list(
        asking_many(page, language)(given, "red, green, blue", "course", "max_softmax", 0.5)
    )


def csv_of(html: str) -> list[dict[str, str]]:
    import base64

    content = re.search(r"base64,([^\"]+)\"", html)
    assert content, html
    text = base64.b64decode(content[1]).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def test_a_broken_picture_is_one_row_with_its_cause(files: dict[str, Path]) -> None:
    page = page_of()
    *_, (batch, _, _) = ask_many(page, [files[n] for n in ("red", "broken", "unsure")])
    table = showing_many(page, "en")(batch, "max_softmax", 0.612)
    assert "3 pictures: 1 known, 1 unknown, 1 not usable." in table
    rows = csv_of(table)
    assert [row["filename"] for row in rows] == ["my red.png", "my holiday.jpg", "my unsure.png"]
    assert [row["verdict"] for row in rows] == ["known", "", "unknown"]
    assert [row["class"] for row in rows] == ["red", "", ""]
    assert [row["likeliest"] for row in rows] == ["red", "", "red"]
    assert [row["error"] for row in rows] == ["", "not a picture that Pillow can read", ""]
    assert {row["threshold"] for row in rows} == {"0.61234"}
    assert {row["synthetic"] for row in rows} == {"true"}
    assert (rows[0]["answer"], rows[0]["match"]) == ("A red <thing>", "class")
    assert [float(rows[0][f"p({name})"]) for name in COLOURS] == pytest.approx(
        [0.8, 0.133333, 0.066667]
    )
    n_asked = len(page.model.asked)
    table = showing_many(page, "zh")(batch, "max_softmax", 0.3)
    assert [row["verdict"] for row in csv_of(table)] == ["known", "", "known"]
    assert "无法使用（not a picture" in table
    assert len(page.model.asked) == n_asked


def test_the_table_grows_and_the_csv_comes_last(files: dict[str, Path]) -> None:
    page = page_of()
    shown = ask_many(page, [files["green"]] * 6)
    states = [len(batch.rows) for batch, _, _ in shown]
    assert states == [0, 1, 2, 3, 4, 5, 6]
    assert "4 of 6 pictures" in shown[4][1]
    assert all("<a " not in str(table) for _, table, _ in shown)
    assert len(page.model.asked) == 12


def test_the_number_of_pictures_is_bounded(files: dict[str, Path]) -> None:
    page = page_of()
    ((batch, _, _),) = ask_many(page, [files["red"]] * (MAX_FILES + 1))
    assert "33 pictures are too many at once; the page takes 32" in batch.notice
    ((batch, _, _),) = ask_many(page, [], "zh")
    assert "请先给一些图片" in batch.notice
    assert page.model.asked == []


def test_a_csv_line_holds_commas_quotes_and_chinese(tmp_path: Path) -> None:
    path = picture(tmp_path, "a.png", MOSTLY_RED)
    given = [{"path": str(path), "orig_name": '猫, "x".png'}]
    rows = list(ask_pictures(page_of(), "freetext-open", given, ["red", "狗"]))
    text = csv_text(rows, "margin", 0.5, False)
    assert text.startswith("\ufefffilename,verdict,")
    (row,) = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    assert row["filename"] == '猫, "x".png'
    assert float(row["p(狗)"]) == pytest.approx(0.01 / 0.81, abs=1e-6)
    assert row["prompt"] == QUESTION


# The command


def write_run(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    config = {
        "model": str(TOY_MODEL), "adapter": None, "revision": None, "quantization": "none",
        "image_handling": "model", "question": TOY_QUESTION, "max_new_tokens": 8,
        "split": str(folder / "gone"), "pictures": "own",
    }  # fmt: skip
    thresholds = {"max_softmax": 0.9, "margin": 0.8, "entropy": None, "energy": -0.5}
    scores = {name: {"threshold": {"value": v, "notes": []}} for name, v in thresholds.items()}
    metrics = {
        "split": {"known": ["star", "cross", "arrow"]},
        "scoring": {"length_normalisation": "sum"},
        "protocols": {changes.pop("protocol", "likelihood"): {"scores": scores}},
    }
    write_json(folder / "config.json", config | changes)
    write_json(folder / "metrics.json", metrics)
    return folder


def test_a_run_brings_what_its_thresholds_belong_to(tmp_path: Path) -> None:
    options, thresholds = of_run(DemoOptions(run=str(write_run(tmp_path / "run"))))
    assert thresholds == {"max_softmax": 0.9, "margin": 0.8, "energy": -0.5}
    assert (options.model, options.question) == (str(TOY_MODEL), TOY_QUESTION)
    assert (options.classes, options.length_normalisation) == (["star", "cross", "arrow"], "sum")
    assert options.split is None
    assert of_run(DemoOptions()) == (DemoOptions(), {})
    for changes, cause in (
        ({"protocol": "course"}, "no protocol likelihood in it"),
        ({"pictures": "shuffled"}, "a control with other samples' pictures"),
    ):
        run = write_run(tmp_path / cause[:4], **changes)
        with pytest.raises(UserError, match=cause):
            of_run(DemoOptions(run=str(run)))
    with pytest.raises(UserError, match="--question is another than the run's"):
        of_run(DemoOptions(run=str(write_run(tmp_path / "other")), question="Is it?"))
    with pytest.raises(UserError, match=r"no config\.json in it"):
        of_run(DemoOptions(run=str(tmp_path)))


def test_examples_are_known_and_unknown_pictures_in_turn(toy_split: Path) -> None:
    shown = [Path(name) for name in example_pictures(str(toy_split))]
    assert [path.parent.name for path in shown] == ["known_images", "unknown_images"] * 4
    assert len(set(shown)) == 8
    labels = {sample.path: sample.label for sample in read_split(toy_split).samples}
    for side in (shown[::2], shown[1::2]):
        assert len({labels[path] for path in side}) == 4  # classes, not one class's pictures
    assert example_pictures(None) == ()
    with pytest.raises(MissingError, match=r"split\.json: no such file"):
        example_pictures(str(toy_split / "none"))


@pytest.mark.slow
def test_the_dry_run_tells_prompts_and_thresholds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, str(DEMO), "--run", str(run), "--dry_run", "--port", "7999",
         "--language", "zh"], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:7999/ in zh" in done.stdout
    assert (
        "'Choose one of these: star, cross, arrow, unknown.\\nWhat shape is this?'" in done.stdout
    )
    assert "threshold of margin: 0.8" in done.stdout
    assert "threshold of entropy: not calibrated" in done.stdout


# In a browser


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The page in this process, with a model that counts what it is asked."""
    folder = tmp_path_factory.mktemp("demo")
    common = page_of(examples=(str(picture(folder, "example.png", MOSTLY_GREEN)),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        page = bilingual_page(TITLE, lambda blocks, lang: draw_page(blocks, lang, common), "en")
        css = CSS_FILE.read_text(encoding="utf-8")
        address = serve(page, LaunchOptions(port=free_port()), css=css, wait=False)
        yield SimpleNamespace(address=address, model=common.model)
        page.close()


def open_demo(page: Any, address: str) -> None:
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator(".picture input[type=file]").wait_for(state="attached")
    page.locator(".card.verdict:visible").wait_for()


def upload(page: Any, path: Path) -> None:
    """Puts a picture in and waits until the page has drawn itself anew for it."""
    looked = page.evaluate(
        "() => window.gradio_config.dependencies.filter(d => d.api_name.startsWith('look'))"
        ".map(d => d.id)"
    )
    drawn = page.evaluate(
        "looked => window.gradio_config.dependencies"
        ".filter(d => looked.includes(d.trigger_after)).map(d => d.id)",
        looked,
    )
    assert len(drawn) == len(looked) > 0

    def is_drawn(response: Any) -> bool:
        sent = response.request.post_data_json if "/run/predict" in response.url else None
        return bool(sent) and sent["fn_index"] in drawn

    with page.expect_response(is_drawn):
        page.locator(".picture input[type=file]").set_input_files(path)


def ask(page: Any, name: str = "Ask") -> None:
    page.get_by_role("button", name=name, exact=True).click()


def verdict(page: Any, text: str) -> None:
    page.locator(".verdict:visible", has_text=text).wait_for()


def bars(page: Any) -> list[str]:
    return page.locator(".details .bars").first.locator("th[scope=row]").all_inner_texts()


@pytest.mark.browser
@pytest.mark.slow
def test_moving_the_slider_flips_the_verdict_and_asks_nothing(
    demo: SimpleNamespace, chromium_page, page_log: dict[str, list[str]], files: dict[str, Path]
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_text("SYNTHETIC A toy model").wait_for()
    page.get_by_text("Runs on the CPU").wait_for()
    page.get_by_text("trained on COCO's pictures").wait_for()
    upload(page, files["red"])
    n_before = len(demo.model.asked)
    ask(page)
    verdict(page, "Known: red")
    verdict(page, "Max softmax 0.800 is at least the threshold 0.612.")
    verdict(page, "Threshold of the run trial")
    assert bars(page) == ["red", "green", "blue"]
    page.locator(".details").get_by_text("A red <thing>").wait_for()
    page.locator(".details pre", has_text="red, green, blue, unknown.").wait_for()
    assert len(demo.model.asked) == n_before + 2

    slider = page.locator("input[type=range]:visible")
    slider.press("End")
    verdict(page, "Max softmax 0.800 is below the threshold 1.000")
    verdict(page, "set by hand; the run trial has 0.612")
    slider.press("Home")
    verdict(page, "at least the threshold 0.000")
    page.locator("input[type=number]:visible").fill("0.801")
    verdict(page, "below the threshold 0.801")
    page.get_by_label("Margin").check()
    verdict(page, "Margin 0.667 is at least the threshold 0.250.")
    page.get_by_label("Entropy").check()
    verdict(page, "the run trial has no threshold of this score")
    slider.press("End")
    verdict(page, "below the threshold 0.000")
    assert len(demo.model.asked) == n_before + 2

    foreign = [
        u for u in page_log["requests"] if not u.startswith((demo.address, "data:", "blob:"))
    ]
    assert foreign == []
    assert page_log["errors"] == []


@pytest.mark.browser
@pytest.mark.slow
def test_an_edited_class_list_changes_the_bars(
    demo: SimpleNamespace, chromium_page, files: dict[str, Path]
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    upload(page, files["green"])
    ask(page)
    verdict(page, "Known: green")
    assert bars(page) == ["green", "red", "blue"]
    classes = page.get_by_label("Known classes")
    classes.fill("blue\nteapot\nhot dog")
    ask(page)
    verdict(page, "Not calibrated for this class list")
    verdict(page, "Known: blue")  # 17 / 255 against twice 0.01: 0.769
    assert bars(page)[0] == "blue"
    assert {"teapot", "hot dog"} == set(bars(page)[1:])
    page.locator(".details").get_by_text("Names something outside the list").wait_for()
    classes.fill("blue, teapot, Blue")
    ask(page)
    page.locator("[role=alert]:visible").get_by_text("The class Blue stands twice").wait_for()
    assert page.locator(".details .bars").count() == 0


@pytest.mark.browser
@pytest.mark.slow
def test_an_example_is_asked_by_the_chosen_prompt(demo: SimpleNamespace, chromium_page) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_label("Prompt of the free answer").click()
    page.get_by_role("option", name="Question alone").click()
    page.locator(".gallery-item:visible, .gallery button:visible").first.click()
    page.locator(".picture img").wait_for()
    ask(page)
    verdict(page, "Known: green")
    assert page.locator(".details pre").all_inner_texts() == [QUESTION, QUESTION]


@pytest.mark.browser
@pytest.mark.slow
def test_a_broken_upload_shows_its_cause_and_the_page_goes_on(
    demo: SimpleNamespace, chromium_page, files: dict[str, Path]
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    alert = page.locator("[role=alert]:visible")
    ask(page)
    alert.get_by_text("Give a picture first").wait_for()
    page.locator(".picture input[type=file]").set_input_files(files["broken"])
    alert.get_by_text("holiday.jpg can't be used: not a picture").wait_for()
    page.locator(".picture img").wait_for(state="detached")
    ask(page)
    alert.get_by_text("holiday.jpg can't be used: not a picture").wait_for()
    upload(page, files["red"])
    ask(page)
    verdict(page, "Known: red")
    assert alert.count() == 0


def downloaded(page: Any) -> list[dict[str, str]]:
    with page.expect_download() as started:
        page.locator("a.csv:visible").click()
    assert started.value.suggested_filename == "known_or_unknown.csv"
    text = Path(started.value.path()).read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.browser
@pytest.mark.slow
def test_several_pictures_give_a_table_and_a_csv(
    demo: SimpleNamespace, chromium_page, page_log: dict[str, list[str]], files: dict[str, Path]
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_role("tab", name="Several pictures").click()
    page.locator(".files input[type=file]").set_input_files(list(files.values()))
    page.locator(".files .file").nth(len(files) - 1).wait_for()
    n_before = len(demo.model.asked)
    ask(page, "Ask about all")
    verdict(page, "4 pictures: 2 known, 1 unknown, 1 not usable.")
    assert len(demo.model.asked) == n_before + 6
    page.locator(".many .broken", has_text="not a picture that Pillow can read").wait_for()
    rows = downloaded(page)
    assert [row["filename"] for row in rows] == [path.name for path in files.values()]
    assert [row["verdict"] for row in rows] == ["known", "known", "unknown", ""]
    assert [float(row["max_softmax"] or 0) for row in rows] == pytest.approx(
        [204 / 255, 221 / 255, 102 / 255, 0], abs=1e-6
    )
    page.locator("input[type=range]:visible").press("Home")
    verdict(page, "4 pictures: 3 known, 0 unknown, 1 not usable.")
    assert [row["verdict"] for row in downloaded(page)] == ["known", "known", "known", ""]
    assert len(demo.model.asked) == n_before + 6
    assert page_log["errors"] == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_chinese_page_speaks_chinese_also_in_its_errors(
    demo: SimpleNamespace, chromium_page, files: dict[str, Path]
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_role("link", name="中文").click()
    page.get_by_role("tab", name="多张图片").wait_for()
    ask(page, "提问")
    alert = page.locator("[role=alert]:visible")
    alert.get_by_text("请先给一张图片").wait_for()
    page.locator(".picture input[type=file]").set_input_files(files["broken"])
    alert.get_by_text("无法使用 holiday.jpg：它不是图片").wait_for()
    upload(page, files["unsure"])
    ask(page, "提问")
    verdict(page, "最大 softmax 0.400，低于阈值 0.612")
    page.locator("input[type=range]:visible").press("Home")
    verdict(page, "已知：red")
    page.get_by_label("已知类别").fill("red")
    ask(page, "提问")
    alert.get_by_text("只有一个类别 red").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_two_visitors_never_share_an_answer(
    demo: SimpleNamespace, chromium_page, files: dict[str, Path]
) -> None:
    other = chromium_page.context.browser.new_context().new_page()
    visits = [(chromium_page, "red", "0.800"), (other, "green", "0.867")]
    for page, name, _ in visits:
        open_demo(page, demo.address)
        upload(page, files[name])
    for page, _, _ in visits:
        page.get_by_role("button", name="Ask", exact=True).click(no_wait_after=True)
    for page, name, _ in visits:
        verdict(page, f"Known: {name}")
    other.locator("input[type=range]:visible").press("End")
    verdict(other, "Max softmax 0.867 is below the threshold 1.000")
    chromium_page.get_by_label("Margin").check()
    verdict(chromium_page, "Margin 0.667 is at least the threshold 0.250.")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("beside", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_no_visitor_reads_the_servers_files_or_calls_an_api(
    demo: SimpleNamespace, files: dict[str, Path], beside: dict[str, Any]
) -> None:
    """Forged requests name a picture on the server's disk in the place of an upload."""
    with httpx.Client(trust_env=False, base_url=demo.address, timeout=60) as client:
        assert client.get("gradio_api/info").json() == {
            "named_endpoints": {}, "unnamed_endpoints": {},
        }  # fmt: skip
        asks = [
            d for d in client.get("config").json()["dependencies"]
            if d["api_name"].startswith("ask")
        ]  # fmt: skip
        n_before = len(demo.model.asked)
        forged = {"path": str(files["red"]), **beside}
        settings = ["red, green", "course", "max_softmax", 0.5]
        one, many = (next(d for d in asks if len(d["inputs"]) == n) for n in (6, 5))
        for fn, data in ((one, [forged, *settings, None]), (many, [[forged], *settings])):
            session = f"thief{fn['id']}{len(beside)}"
            joined = client.post(
                "gradio_api/queue/join",
                json={"data": data, "fn_index": fn["id"], "session_hash": session},
            )
            assert joined.status_code == 200, joined.text
            with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
                told = "\n".join(line for line in stream.iter_lines() if line[:5] == "data:")
            if beside:  # Gradio itself refuses these
                assert re.search(r'"success": ?false', told), told
        assert len(demo.model.asked) == n_before


@pytest.fixture(scope="module")
def toy_demo(
    toy_split: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """The command as a process of its own; it deletes uploads when it is told to end."""
    folder = tmp_path_factory.mktemp("toy")
    run, port, log = write_run(folder / "run"), free_port(), folder / "demo.log"
    uploads = folder / "uploads"
    uploads.mkdir()
    command = [
        sys.executable, str(DEMO), "--run", str(run), "--split", str(toy_split), "--port",
        str(port), "--device", "cpu",
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
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}/")
    finally:
        process.terminate()
        process.wait(30)
    assert [file for file in uploads.rglob("*") if file.is_file() and "upload" in file.name] == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_toy_model_s_verdict_is_that_of_predict(
    toy_demo: SimpleNamespace, chromium_page, toy_split: Path, tmp_path: Path
) -> None:
    import shutil

    from shared.vision_language import load_vision_language

    path = tmp_path / "upload.jpg"
    shutil.copy(min((toy_split / "known_images").iterdir()), path)
    model = load_vision_language(str(TOY_MODEL), device="cpu", max_new_tokens=8)
    classes = ["star", "cross", "arrow"]
    free, likely = (
        next(classify(model, key, [str(path)], classes, TOY_QUESTION, normalisation="sum"))
        for key in ("freetext-list_unknown", "likelihood")
    )
    page = chromium_page
    open_demo(page, toy_demo.address)
    page.get_by_text("SYNTHETIC A toy model").wait_for()
    upload(page, path)
    ask(page)
    verdict(page, f"Max softmax {likely.outcome.scores['max_softmax']:.3f}")
    assert page.locator(".details .said").inner_text() == free.outcome.answer
    shown = page.locator(".verdict:visible").inner_text()
    assert ("Known:" in shown) == (likely.outcome.scores["max_softmax"] >= 0.9)
    assert set(bars(page)) == set(classes)
