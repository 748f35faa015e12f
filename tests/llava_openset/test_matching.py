"""The answer matcher against hand-written answers, and over all of its own table.

`answers.tsv` was written by hand, its first part before the matcher and its synonym table. An
over-match is a listed class that is not the right result, an under-match any other wrong result.
"""

from __future__ import annotations

import random
import sys
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest

from llava_openset.matching import (
    CLASSES_FILE,
    _data,
    keyword_match,
    match_answer,
    normalise,
    plural,
    synonyms,
)

RESULTS = {"unknown", "abstain", "ambiguous"}
COCO = tuple(_data()["classes"])
COURSE = [
    *("person", "dog", "cat", "car", "bus", "bicycle"),
    *("train", "truck", "airplane", "boat", "tv", "laptop"),
]
CLASSES = _data()["classes"]


class Row(NamedTuple):
    classes: list[str]
    answer: str
    expected: str
    kind: str
    where: str


def read_table() -> list[Row]:
    path = Path(__file__).with_name("answers.tsv")
    lists: dict[str, list[str]] = {}
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("@"):
            name, classes = line[1:].split("\t")
            lists[name] = classes.split(", ")
        elif line and not line.startswith("#"):
            name, answer, expected, kind = line.split("\t")
            answer = answer.replace("\\n", "\n")
            rows.append(Row(lists[name], answer, expected, kind, f"{path.name} line {number}"))
    return rows


TABLE = read_table()


def test_the_table_is_large_and_each_row_can_be_right():
    assert len(TABLE) >= 160
    assert len({(tuple(row.classes), row.answer) for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row.expected in {*row.classes, *RESULTS}, row.where
    assert {row.expected for row in TABLE} >= RESULTS


def test_answers_written_by_hand(capsys):
    """All wrong rows at once; the counts are shown whether or not it passes."""
    over, under = [], []
    for row in TABLE:
        result = match_answer(row.answer, row.classes)
        if result != row.expected:
            wrong = over if result in row.classes else under
            wrong.append(f"{row.where}: {row.answer!r} ({row.kind}): {result}, not {row.expected}")
    with capsys.disabled():
        print(
            f"\nmatcher: {len(TABLE)} answers, {len(over)} over-matches, "
            f"{len(under)} under-matches",
            file=sys.stderr,
        )
    assert over == []
    assert under == []


def test_keyword_matching_overmatches_where_the_matcher_does_not():
    """Its rule is the course's; the traps of the table show what it gets wrong."""
    assert keyword_match("A Dog on a couch", COURSE) == "dog"
    assert keyword_match("a puppy", COURSE) is None
    assert keyword_match("The cat chased the dog", COURSE) == "dog"  # the first of the list
    for answer, wrong in (("carpet", "car"), ("hot dog", "dog"), ("a busy street", "bus"),
                          ("a wolf, not a dog", "dog")):  # fmt: skip
        assert keyword_match(answer, COURSE) == wrong
        assert match_answer(answer, COURSE) == "unknown"


# What the data file says holds for every entry of it.


def test_the_table_of_classes_is_coco_s():
    assert len(COCO) == 80
    assert set(COURSE) < set(COCO)
    assert all(entry["chinese"] for entry in CLASSES.values())
    assert all(source["what"] and source["from"] for source in _data()["sources"])
    fields = {field for entry in CLASSES.values() for field in entry}
    assert fields <= set(_data()["fields"])


def names(name: str) -> list[str]:
    """Every name of a COCO class, with its plurals."""
    entry = CLASSES[name]
    english = [name, *entry.get("synonyms", []), *entry.get("kinds", [])]
    chinese = [*entry["chinese"], *entry.get("chinese_kinds", [])]
    return [*english, *map(plural, english), *chinese]


@pytest.mark.parametrize("name", COCO)
def test_every_name_is_its_class_and_no_other_s(name):
    others = [other for other in COCO if other != name]
    for term in names(name):
        for classes, expected in ((COCO, name), ([name], name), (others, "unknown")):
            assert match_answer(term, classes) == expected, (term, len(classes))
            assert match_answer(term.upper(), classes) == expected, (term, len(classes))


@pytest.mark.parametrize("name", COCO)
def test_every_name_in_a_sentence_is_its_class(name):
    entry = CLASSES[name]
    for term in [name, *entry.get("synonyms", []), *entry.get("kinds", [])]:
        for text in (f"I think that the main object is a {term}.", f"**{term.title()}**\n\n",
                     f"There are two {plural(term)} here, on the left.",
                     f"It is not a lighthouse, it is a {term}!"):  # fmt: skip
            assert match_answer(text, COCO) == name, text
        for text in (f"There is no {term} in the image.", f"not a {term}", f"No {plural(term)}."):
            assert match_answer(text, COCO) == "abstain", text
    for term in entry["chinese"]:
        assert match_answer(f"图中是{term}。", COCO) == name
        assert match_answer(f"没有{term}", COCO) == "abstain"


@pytest.mark.parametrize("name", [name for name in COCO if "not" in CLASSES[name]])
def test_what_only_holds_the_name_is_not_the_class(name):
    mine = {normalise(term) for term in names(name)}
    for term in CLASSES[name]["not"]:
        assert normalise(term) not in mine
        assert match_answer(term, [name]) in ("unknown", "abstain"), term
        assert match_answer(f"This is a {term}.", [name]) in ("unknown", "abstain"), term
        assert match_answer(term, COCO) != name, term


@pytest.mark.parametrize("name", [name for name in COCO if "heads" in CLASSES[name]])
def test_a_compound_is_what_its_last_word_says(name):
    named = {normalise(term) for term in names(name)}
    for head in [*_data()["heads"][CLASSES[name]["heads"]], *_data()["heads"]["any"]]:
        if normalise(f"{name} {head}") not in named:
            assert match_answer(f"a {name} {head}", [name]) == "unknown", head
            assert match_answer(f"the {name}'s {head}", [name]) == "unknown", head


def test_a_listed_head_is_the_class():
    assert match_answer("a dog house", ["dog", "house"]) == "house"
    assert match_answer("a dog bowl", ["dog", "bowl"]) == "bowl"
    assert match_answer("a train station", ["train", "station"]) == "station"


def test_scored_names_are_names_of_the_class():
    for name in COCO:
        scored = synonyms(name)
        assert scored[0] == name
        assert len(scored) == len(set(scored)) <= 5
        assert all(match_answer(term, COCO) == name for term in scored)
    assert synonyms("tv") == ["tv", "television"]
    assert synonyms("sofa") == ["sofa", "couch"]
    assert synonyms("heart") == ["heart"]
    assert synonyms("puppy") == ["puppy"]


def test_plurals():
    for singular, expected in {
        "dog": "dogs", "bus": "buses", "person": "people", "mouse": "mice", "knife": "knives",
        "sheep": "sheep", "skis": "skis", "scissors": "scissors", "wine glass": "wine glasses",
        "cross": "crosses", "stripes": "stripes", "berry": "berries", "key": "keys", "fox": "foxes",
        "fireman": "firemen", "human": "humans", "potted plant": "potted plants", "leaf": "leaves",
        "notice board": "notice boards", "DVD": "DVDs", "Box": "Boxes", "lens": "lenses",
        "狗": "狗",
    }.items():  # fmt: skip
        assert plural(singular) == expected


@pytest.mark.parametrize(
    "classes",
    [
        ["circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond", "crescent",
         "arrow", "frame", "stripes"],
        ["strawberry", "box", "wolf", "church", "lens", "child's drawing", "T-shirt", "key"],
        ["dorm room", "classroom", "notice board", "office desk", "hôtel"],
        ["other", "none", "list"],
    ],
)  # fmt: skip
def test_own_lists_work_by_name_and_plural(classes):
    for name in classes:
        for text in (name, name.upper(), f"A {name}.", plural(name), f"I see two {plural(name)},"):
            assert match_answer(text, classes) == name, text
        assert match_answer(f"no {name} here", classes) == "abstain"
        assert match_answer(f"{name}x", classes) == "unknown"


def test_listed_names_that_share_a_synonym():
    classes = ["sofa", "couch", "chair"]
    assert match_answer("a sofa", classes) == "sofa"
    assert match_answer("couches", classes) == "couch"
    assert match_answer("settee", classes) == "ambiguous"
    assert match_answer("a settee, or sofa", classes) == "sofa"
    assert match_answer("a settee and a chair", classes) == "ambiguous"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "empty"),
        ("dog", "sequence"),
        (["dog", "Dog"], "same name"),
        (["stop sign", "stop-sign"], "same name"),
        (["dog", " "], "no word"),
        (["dog", "Unknown"], "result of the matcher"),
    ],
)
def test_a_class_list_that_cannot_mean_anything(classes, message):
    with pytest.raises(ValueError, match=message):
        match_answer("dog", classes)


def test_normalise():
    assert normalise("  The **Hot-Dog's** bun</s> ") == "hot dog bun"
    assert normalise("It isn’t a ‘T.V.’") == "it is not tv"
    assert normalise("不是狗，是猫。") == "不 是 狗 是 猫"
    assert normalise("ＤＯＧ<|im_end|>") == "dog"
    assert normalise("...") == ""


def random_texts(n: int) -> list[str]:
    """Any unicode, spiced with what the matcher has rules for."""
    generator = random.Random(0)
    words = "a |the |dog|cats|hot dog| no |n't|'s |not |or |No|t.v.|狗|没有|unknown |is |orange "
    others = ", |.|?|:|(|-|—|，|</s>|*|\n|’|'|it's |\u200b|İ|ß|ﬁ|´|1,5"
    pieces = [*words.split("|"), *others.split("|")]
    texts = []
    for _ in range(n):
        parts = []
        for _ in range(generator.randrange(12)):
            if generator.random() < 0.3:
                parts.append(chr(generator.randrange(0x110000)))
            else:
                parts.append(generator.choice(pieces))
        texts.append("".join(parts))
    return texts


def test_any_text_has_a_result_and_normalising_twice_changes_nothing():
    letters = 0
    for text in random_texts(5000):
        for classes in (COCO, COURSE, ["heart", "other"]):
            assert match_answer(text, classes) in {*classes, *RESULTS}, text
        plain = normalise(text)
        assert normalise(plain) == plain, text
        assert plain == " ".join(plain.split())
        letters += any(unicodedata.category(c).startswith("L") for c in plain)
    assert letters > 2500


def test_the_result_does_not_depend_on_case_or_wrapping():
    for row in TABLE:
        wrapped = [f"  {row.answer}  ", f"**{row.answer}**</s>", f'"{row.answer}"']
        for text in (row.answer.upper(), *wrapped):
            assert match_answer(text, row.classes) == row.expected, text


def test_the_data_file_travels_with_the_package():
    assert CLASSES_FILE.is_file()
    assert CLASSES_FILE.name.endswith(".json")
