"""Odd pictures and texts through every task of predict.py: a clear message, the rest goes on."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_apps.captioning import Captioner
from lavis_apps.classification import Classifier
from lavis_apps.features import FeatureExtractor
from lavis_apps.localization import Localizer
from lavis_apps.matching import Matcher
from lavis_apps.predict import main
from lavis_apps.predict_settings import PredictOptions
from lavis_apps.vqa import Answerer
from shared.images import open_image
from shared.options import UserError, parse_options
from tests.tiny_models import tiny_blip

ASKED = {
    "caption": (),
    "vqa": ("--question", "what is it?"),
    "matching": ("--text", "a red star"),
    "classification": ("--classes", "star", "square"),
    "features": (),
    "localization": ("--text", "a red star"),
}
LONG = "a red star of the two " * 455  # a little over 10,000 characters


@pytest.fixture(scope="module")
def blips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("blips")
    models = {kind: tiny_blip(kind, folder / kind) for kind in ("caption", "vqa", "matching")}
    return {task: models.get(task, models["matching"]) for task in (*ASKED, "search")}


def run(blips: dict[str, Path], task: str, *argv: str) -> tuple[list[dict[str, Any]], str, int]:
    """Rows, what was told, exit status; UserErrors pass."""
    flags = ["--task", task, "--json", "--device", "cpu", "--model", str(blips[task]), *argv]
    out, told, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        try:
            main(parse_options(PredictOptions, description="", argv=flags))
        except SystemExit as end:
            code = int(end.code or 0)
    return [json.loads(line) for line in out.getvalue().splitlines()], told.getvalue(), code


@pytest.fixture(scope="module")
def odd_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of them, and beside those that can be read the plain picture that they show."""
    import numpy as np

    folder = tmp_path_factory.mktemp("odd")
    generator = np.random.default_rng(1)
    noise, other = (
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(2)
    )
    noise.save(folder / "good.png")
    Image.new("RGB", (1, 1), (200, 30, 30)).save(folder / "one_pixel.png")
    noise.resize((20_000, 8)).save(folder / "wide.png")
    noise.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    open_image(folder / "cmyk.jpg").save(folder / "cmyk_plain.png")
    grey = noise.convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 256).save(folder / "sixteen.png")
    grey.save(folder / "sixteen_plain.png")
    noise.save(folder / "moving.webp", save_all=True, append_images=[other], lossless=True)
    noise.save(folder / "moving_plain.png")
    noise.save(folder / "moving.gif", save_all=True, append_images=[other], duration=100)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    noise.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    noise.save(folder / "turned_plain.png")
    noise.save(folder / "whole.jpg", quality=95)
    content = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "words.jpg").write_text("this is no picture\n" * 20)
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def by_picture(blips, odd_pictures) -> dict[str, dict[str, dict[str, Any]]]:
    """task -> picture's name -> its row, of one call for the whole folder."""
    found = {}
    for task, words in ASKED.items():
        rows, told, code = run(blips, task, "--image", str(odd_pictures), *words)
        assert code == 1
        assert "3 of 15 pictures could not be used" in told
        assert "1 other file(s)" in told  # a GIF is no picture of a folder
        found[task] = {Path(row["image"]).name: row for row in rows}
        assert len(found[task]) == len(rows) == 15
    return found


def values(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("image", "synthetic")}


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [one for part in value for one in flat(part)] if isinstance(value, list) else [value]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal results but for the rounding of a batch."""
    assert one.keys() == other.keys()
    for left, right in zip(flat(values(one)), flat(values(other)), strict=True):
        assert left == (pytest.approx(right, abs=1e-3) if isinstance(right, float) else right)


@pytest.mark.parametrize("task", ASKED)
@pytest.mark.parametrize("name", ["good.png", "one_pixel.png", "wide.png"])
def test_a_1x1_and_a_20000_pixel_wide_picture_are_answered(by_picture, task, name):
    row = by_picture[task][name]
    assert "error" not in row
    assert values(row).keys() == values(by_picture[task]["good.png"]).keys()


@pytest.mark.parametrize("task", ASKED)
@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("cmyk.jpg", "cmyk_plain.png"),
        ("sixteen.png", "sixteen_plain.png"),
        ("moving.webp", "moving_plain.png"),
        ("turned.png", "turned_plain.png"),
    ],
)
def test_cmyk_16_bit_animated_and_turned_pictures_are_seen_as_shown(by_picture, task, name, plain):
    assert_same(by_picture[task][name], by_picture[task][plain])


@pytest.mark.parametrize("task", ASKED)
@pytest.mark.parametrize(
    ("name", "why"),
    [("truncated.jpg", "broken picture"), ("words.jpg", "not a picture"), ("empty.png", "not a")],
)
def test_a_truncated_picture_and_a_text_named_jpg_are_told(by_picture, task, name, why):
    row = by_picture[task][name]
    assert row.keys() == {"image", "error"}
    assert name in row["error"]
    assert why in row["error"]


@pytest.mark.parametrize("task", ASKED)
def test_an_animated_gif_shows_its_first_picture(blips, odd_pictures, task, tmp_path):
    with Image.open(odd_pictures / "moving.gif") as moving:
        moving.convert("RGB").save(tmp_path / "first.png")
    words = ASKED[task]
    (gif,), _, code = run(blips, task, "--image", str(odd_pictures / "moving.gif"), *words)
    (first,), _, _ = run(blips, task, "--image", str(tmp_path / "first.png"), *words)
    assert code == 0
    assert_same(gif, first)


@pytest.mark.parametrize("task", ASKED)
def test_a_folder_without_a_picture(blips, tmp_path, task):
    (tmp_path / "note.txt").write_text("nothing here")
    with pytest.raises(UserError, match="no picture in it"):
        run(blips, task, "--image", str(tmp_path), *ASKED[task])


@pytest.mark.parametrize(
    ("task", "flag"),
    [
        ("vqa", "--question"),
        ("vqa", "--candidates"),
        ("matching", "--text"),
        ("classification", "--classes"),
        ("features", "--text"),
        ("localization", "--text"),
        ("search", "--query"),
    ],
)
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text(blips, odd_pictures, task, flag, text):
    picture = str(odd_pictures / "good.png")
    with pytest.raises(UserError, match=f"{flag} is empty"):
        run(blips, task, "--image", picture, flag, "a", *([] if task == "search" else [text]),
            *([flag, text] if task == "search" else []))  # fmt: skip


def test_one_picture_or_text_where_several_are_asked_for(blips, odd_pictures):
    """A path is one picture, not its letters; a text no list of candidates."""
    path = str(odd_pictures / "good.png")
    assert len(Captioner.open(blips["caption"]).caption(path, max_length=12)) == 1
    answerer = Answerer.open(blips["vqa"])
    assert len(answerer.answer(path, "what is it?")) == 1
    with pytest.raises(UserError, match="candidates 'red': a list of answers"):
        answerer.answer([path], ["what is it?"], candidates="red")


def test_an_empty_text_in_the_functions(blips, odd_pictures):
    image = open_image(odd_pictures / "good.png")
    with pytest.raises(UserError, match="question 1 is empty"):
        Answerer.open(blips["vqa"]).answer([image], [""])
    with pytest.raises(UserError, match="question 1 has no word: '!!!'"):
        Answerer.open(blips["vqa"]).answer([image], ["!!!"])
    with pytest.raises(UserError, match="the text is empty"):
        Matcher.open(blips["matching"]).match([image], [""])
    with pytest.raises(UserError, match="class 2 of 2 is empty"):
        Classifier.open(blips["matching"]).classify([image], ["a", ""])
    with pytest.raises(UserError, match=r"class 2 of 2 has no word: '\.\.'"):
        Classifier.open(blips["matching"]).classify([image], ["a", ".."])
    with pytest.raises(UserError, match="the text is empty"):
        FeatureExtractor.open(blips["matching"]).extract(texts=[""])
    with pytest.raises(UserError, match="no word"):
        Localizer.open(blips["matching"]).localize(image, "")


def test_a_text_of_10000_characters_is_cut_and_that_is_told(blips, odd_pictures):
    picture = ("--image", str(odd_pictures / "good.png"))
    assert len(LONG) > 10_000
    for task, flag in (("matching", "--text"), ("localization", "--text"), ("vqa", "--question")):
        (row,), told, code = run(blips, task, *picture, flag, LONG)
        assert code == 0
        assert row["cut"] is True
        assert ("the first 35 tokens of the question" in told) == (task == "vqa")
        (short,), _, _ = run(blips, task, *picture, flag, LONG[:44])
        assert "cut" not in short
    text, _ = run(blips, "features", *picture, "--text", LONG)[0]
    assert text["cut"] is True
    (row,), _, _ = run(blips, "classification", *picture, "--classes", LONG, "star")
    assert {one["label"] for one in row["top"]} == {LONG, "star"}


def test_a_prompt_of_10000_characters_has_no_room(blips, odd_pictures):
    picture = str(odd_pictures / "good.png")
    with pytest.raises(UserError, match="leaves no room behind it"):
        run(blips, "caption", "--image", picture, "--prompt", LONG)
    with pytest.raises(UserError, match="leaves no room behind it"):
        Captioner.open(blips["caption"]).caption([open_image(picture)], prompt=LONG)


def test_one_class(blips, odd_pictures):
    picture = str(odd_pictures / "good.png")
    (row,), _, code = run(blips, "classification", "--image", picture, "--classes", "star")
    assert code == 0
    assert (row["label"], row["probability"]) == ("star", 1.0)
    assert "one class" in row["note"]
    assert -1 <= row["score"] <= 1


def test_duplicate_classes(blips, odd_pictures):
    picture = str(odd_pictures / "good.png")
    with pytest.raises(UserError, match=r"class 3 \(Star\) is the same as class 1"):
        run(blips, "classification", "--image", picture, "--classes", "star", "square", "Star")
    with pytest.raises(UserError, match="candidates 1 and 2 are the same"):
        run(blips, "vqa", "--image", picture, "--question", "a", "--candidates", "no", "No")
