"""One answer against its references, by hand: exact match, token F1, language, class."""

from __future__ import annotations

import pytest

from qwen_clip_llava_lora.answer_scores import (
    exact_match,
    language_of,
    matched_class,
    normalise,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red circle", "en"),
        ("", "en"),
        ("42", "en"),
        ("一个红色的圆", "zh"),
        ("这是 CLIP", "zh"),  # two characters, one word
        ("a red 圆", "en"),  # one of three tokens
        ("圆 red", "zh"),  # one of two: half
    ],
)
def test_language(text, language):
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("answer", "references", "language", "exact", "f1"),
    [
        ("A red circle.", ["the red circle"], "en", 1, 1.0),
        ("a big red circle", ["a red circle"], "en", 0, 0.8),  # 2 * 2 / (3 + 2)
        ("red red", ["red"], "en", 0, 2 / 3),  # a bag: the second "red" matches nothing
        ("blue square", ["red circle", "square"], "en", 0, 2 / 3),  # the better reference
        ("", ["red"], "en", 0, 0.0),
        ("the", ["a"], "en", 0, 0.0),  # articles alone stay
        ("一个 红色的圆！", ["一个红色的圆"], "zh", 1, 1.0),
        ("Ａ个圆", ["a个圆"], "zh", 1, 1.0),  # full width
        ("一个红色的圆", ["一个红色的圆形"], "zh", 0, 12 / 13),  # 2 * 6 / (6 + 7)
        ("一个红色的圆", ["蓝"], "zh", 0, 0.0),
    ],
)
def test_exact_match_and_token_f1(answer, references, language, exact, f1):
    assert exact_match(answer, references, language) == exact
    assert token_f1(answer, references, language) == pytest.approx(f1)


def test_a_nearly_identical_chinese_sentence_scores_high():
    """Split at blanks the two would be two different words: 0."""
    said, reference = "一个穿红衣服的女孩在草地上跑步", "一个穿红衣服的女孩在草地上奔跑"
    assert token_f1(said, [reference], "zh") > 0.9
    assert set(said.split()).isdisjoint(reference.split())


def test_normalised_text():
    assert normalise("The  Dog's, an apple!", "en") == "dogs apple"
    assert normalise("３ 只，狗。", "zh") == "3只狗"


def test_the_letter_a_is_no_empty_text():
    assert (exact_match("A.", ["A"], "en"), exact_match("", ["A"], "en")) == (1, 0)
    assert matched_class("", ["A", "B"], "en") == (None, "no class")
    assert matched_class("a", ["A", "B"], "en") == ("A", "exact")


CLASSES = ("dog", "hot dog", "car", "surprise")


@pytest.mark.parametrize(
    ("answer", "found", "how"),
    [
        ("Dog.", "dog", "exact"),
        ("the hot dog", "hot dog", "exact"),
        ("It is a hot dog on a plate", "hot dog", "contained"),
        ("A dog and a hot dog", None, "several classes"),
        ("a dog in a car", None, "several classes"),
        ("a carpet", None, "no class"),
        ("", None, "no class"),
        ("The person shows surprise!", "surprise", "contained"),
    ],
)
def test_class_of_an_answer(answer, found, how):
    assert matched_class(answer, CLASSES, "en") == (found, how)


def test_chinese_class_names_stand_in_a_sentence_without_borders():
    assert matched_class("这个人很高兴。", ("高兴", "悲伤"), "zh") == ("高兴", "contained")
    assert matched_class("高兴", ("高兴", "悲伤"), "zh") == ("高兴", "exact")
