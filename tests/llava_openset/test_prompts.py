"""The exact words of every prompt, and that a core question changes nothing but its own place."""

from __future__ import annotations

import pytest

from llava_openset.prompts import (
    BLIP2_FORM,
    QUESTION,
    TEMPLATES,
    TOY_QUESTION,
    VARIANTS,
    prompt_form,
    prompt_text,
)

CLASSES = ("dog", "hot dog", "tv")
ASKED = {
    "course": "You are a vision classifier. The known classes are: dog, hot dog, tv.\nIf the main "
    "object clearly belongs to one of them, answer with exactly one word, the name of that class. "
    "Otherwise answer with a short English noun phrase for the object or scene, not with a full "
    "sentence.\nWhat is it?",
    "freetext-open": "What is it?",
    "freetext-open_unknown": "Answer unknown if you cannot tell what it is.\nWhat is it?",
    "freetext-list": "Choose one of these: dog, hot dog, tv.\nWhat is it?",
    "freetext-list_unknown": "Choose one of these: dog, hot dog, tv, unknown.\nWhat is it?",
    "likelihood": "What is it?",
    "two_query": "Choose one of these: dog, hot dog, tv.\nWhat is it?",
}


@pytest.mark.parametrize("key", ASKED)
def test_the_prompt_is_these_words(key: str) -> None:
    assert prompt_text(key, CLASSES, "What is it?") == ASKED[key]


def test_every_protocol_and_variant_has_words() -> None:
    assert set(TEMPLATES) == set(ASKED)
    assert {f"freetext-{name}" for name in VARIANTS} == {k for k in ASKED if "freetext" in k}


def test_the_default_question_and_the_toys() -> None:
    assert QUESTION == (
        "What is the main object in the picture? Answer the question using a single word or phrase."
    )
    for key in TEMPLATES:
        real, toy = (prompt_text(key, CLASSES, q) for q in (QUESTION, TOY_QUESTION))
        assert real.removesuffix(QUESTION) == toy.removesuffix(TOY_QUESTION)
        assert real.endswith(QUESTION)


def test_braces_in_question_and_classes_are_text() -> None:
    asked = prompt_text("two_query", ("{a}", "{question}?"), "{classes}?")
    assert asked.startswith("Choose one of these: {a}, ")
    assert prompt_text("likelihood", CLASSES, "{0} {x}") == "{0} {x}"


def test_blip2_is_asked_on_one_line_in_its_own_form() -> None:
    assert prompt_form("blip-2") == BLIP2_FORM
    assert prompt_form("llava") == prompt_form(None) == "{}"
    assert prompt_text("freetext-list", CLASSES, "What is it?", BLIP2_FORM) == (
        "Question: Choose one of these: dog, hot dog, tv. What is it? Answer:"
    )
