"""VQA accuracy against tables worked out by hand: the protocols, each quirk, sums, files, messages.

python -m pytest tests/shared/test_vqa_score.py
"""

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared import vqa_normalise
from shared.vqa_score import (
    PROTOCOLS,
    main,
    normalise_answer,
    score_vqa,
    validate_results,
    vqa_accuracies,
    vqa_accuracy,
)

META = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}


def of(*counted: tuple[int, str]) -> list[str]:
    """of((4, "yes"), (6, "no")): ten annotators' strings."""
    return [text for count, text in counted for _ in range(count)]


# Ten references of which k match. Leaving out one of the k matching leaves k - 1, leaving out one
# of the others leaves k; each time the score is a third of that, at most 1.
LEAVE_ONE_OUT = [
    (0, 0.0),
    (1, 0.3),  # (1 * 0 + 9 * 1/3) / 10
    (2, 0.6),  # (2 * 1/3 + 8 * 2/3) / 10
    (3, 0.9),  # (3 * 2/3 + 7 * 1) / 10
    (4, 1.0),  # (4 * 1 + 6 * 1) / 10
    (9, 1.0),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("k", "expected"), LEAVE_ONE_OUT)
def test_ten_references(k: int, expected: float, protocol: str) -> None:
    answers = of((k, "red"), (10 - k, "blue"))
    assert vqa_accuracy("red", answers, protocol) == expected
    assert vqa_accuracy("red", answers[::-1], protocol) == expected


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (2, 3, 4 / 9),  # (2 * 1/3 + 1 * 2/3) / 3
        (3, 5, 0.8),  # (3 * 2/3 + 2 * 1) / 5
        (4, 4, 1.0),  # each leaves 3
        (3, 3, 2 / 3),  # each leaves 2
        (2, 2, 1 / 3),
        (1, 1, 0.0),  # leaves nothing to match
    ],
)
def test_other_numbers_of_references(k: int, n: int, expected: float) -> None:
    assert vqa_accuracy("red", of((k, "red"), (n - k, "blue"))) == pytest.approx(expected)


def test_equal_annotators_count_as_separate_ones() -> None:
    # Dropping all equal strings instead of one would leave 0 for the six and 6 for the four: .4.
    assert vqa_accuracy("yes", of((6, "yes"), (4, "no"))) == 1.0


# prediction, references, official-2021, official-2016, always-normalise
PROTOCOL_TABLE = [
    # Unanimous references. 2021 compares as they stand; 2016 normalises the prediction alone.
    ("Yes", of((10, "yes")), 0.0, 1.0, 1.0),
    ("black.", of((10, "black")), 0.0, 1.0, 1.0),
    (" two", of((10, "2")), 0.0, 1.0, 1.0),  # 2021: "two" is not "2"
    ("two", of((10, "two")), 1.0, 0.0, 1.0),  # 2016: "2" is not "two"
    ("none", of((10, "none")), 1.0, 0.0, 1.0),
    ("0", of((10, "none")), 0.0, 0.0, 1.0),  # normalising the prediction first is no help
    ("the cat", of((10, "the cat")), 1.0, 0.0, 1.0),
    ("t shirt", of((10, "t-shirt")), 0.0, 0.0, 1.0),
    (" yes\n", of((10, "yes")), 1.0, 1.0, 1.0),  # stripping is always done to the prediction
    # Unanimous only once stripped: for 2021 that counts as unanimous, for 2016 it does not.
    ("Yes", of((9, "yes"), (1, "yes ")), 0.0, 1.0, 1.0),
    ("yes-no", of((9, "yes-no"), (1, "yes-no\n")), 1.0, 1.0, 1.0),
    ("yes no", of((9, "yes-no"), (1, "yes-no\n")), 0.0, 1.0, 1.0),  # 2016: all ten lose the "-"
    # Alike only once normalised: unanimous for neither.
    ("YES", of((9, "yes"), (1, "Yes")), 1.0, 1.0, 1.0),
    ("two", of((7, "two"), (3, "2")), 1.0, 0.9, 1.0),  # 2016: "2" meets only the three
    # References that differ. 2021 does all steps to them, 2016 the punctuation only.
    ("red", of((5, "Red"), (5, "blue")), 1.0, 0.0, 1.0),  # 2016 never lower-cases a reference
    ("2", of((3, "two"), (7, "three")), 0.9, 0.0, 0.9),
    ("2", of((3, "two"), (1, "2"), (6, "three")), 1.0, 0.3, 1.0),
    ("the", of((2, "a"), (8, "dog")), 0.6, 0.0, 0.6),  # both empty, so they match
    ("", of((2, "a"), (8, "dog")), 0.6, 0.0, 0.6),
    ("yes", of((4, "yes\n"), (6, "no")), 1.0, 0.0, 1.0),  # 2016 does not strip references
    ("dont know", of((4, "don't know"), (6, "no")), 1.0, 1.0, 1.0),
    ("don't know", of((4, "dont know"), (6, "no")), 1.0, 0.0, 1.0),
    ("T-shirt", of((4, "t-shirt"), (6, "shirt")), 1.0, 1.0, 1.0),
    ("u.s.a", of((4, "usa"), (6, "uk")), 1.0, 1.0, 1.0),
]


@pytest.mark.parametrize(("prediction", "answers", "p2021", "p2016", "always"), PROTOCOL_TABLE)
def test_protocols(
    prediction: str, answers: list[str], p2021: float, p2016: float, always: float
) -> None:
    expected = {"official-2021": p2021, "official-2016": p2016, "always-normalise": always}
    assert vqa_accuracies(prediction, answers) == expected
    assert {p: vqa_accuracy(prediction, answers, p) for p in PROTOCOLS} == expected


NORMALISED = [
    # Strip.
    ("  yes \n", "yes"),
    ("new\nline\ttab", "new line tab"),
    ("\u00a0yes\u3000", "yes"),
    ("\u180eyes", "yes"),  # white space to Python 2.7
    # Punctuation: beside a space the mark goes, elsewhere it becomes a space.
    ("left/right", "left right"),
    ("left / right", "left right"),
    ("yes,no", "yes no"),
    ("no!", "no"),
    ('"quoted" [b] {c} (d)', "quoted b c d"),
    ("a_x=1+1>0<2@home`s`\\n;?", "x 1 1 0 2 home s n"),  # "a" is then an article
    ("well-known -yes", "wellknown yes"),  # one " -" decides for every "-"
    ("well-known- yes", "wellknown yes"),  # and so does one "- "
    # Judged on the text as given: the ";" that became a space does not make "-b" a " -".
    ("x-y;-b", "x y b"),
    # One digit,digit deletes every mark, at any place.
    ("1,500", "1500"),
    ("t-shirt 1,5", "tshirt 15"),
    ("left/right 1,5", "leftright 15"),
    ("1, 5", "1 5"),
    # Not in the list of marks.
    ("it's 50% of $5: a&b #1 *~|^", "it's 50% of $5: a&b #1 *~|^"),
    ("a\u2014b \u201cc\u201d", "a\u2014b \u201cc\u201d"),
    # Periods go unless a digit follows.
    ("u.s.a.", "usa"),
    ("5.", "5"),
    (".5", ".5"),
    ("3.30", "3.30"),
    ("..5", ".5"),
    ("5.-3", "5 3"),  # after "-" became a space
    ("x" + "." * 33, "x."),  # the first 32 of them
    ("." * 40, "." * 8),
    # Words.
    ("NONE", "0"),
    ("zero one two three four five", "0 1 2 3 4 5"),
    ("six seven eight nine ten eleven", "6 7 8 9 10 eleven"),
    ("one-way", "1 way"),
    ("someone", "someone"),
    ("A man and the dog", "man and dog"),
    ("an", ""),
    ("The", ""),
    # Contractions, with the dead, identical, reversed and absent entries.
    ("Dont", "don't"),
    ("couldn'tve", "couldn't've"),
    ("ow's'at", "'ow's'at"),
    ("twas 5 oclock", "'twas 5 o'clock"),
    ("Im", "im"),
    ("Ive", "ive"),
    ("Id've", "id've"),
    ("I'dve", "i'dve"),
    ("let's", "let's"),
    ("lets", "lets"),
    ("somebody'd", "somebodyd"),
    ("somebodyd", "somebodyd"),
    ("ill shell well were id shes", "ill shell well were id shes"),
    # Python 2: ASCII digits only, lower case letter by letter.
    ("\u0663,\u0664", "\u0663 \u0664"),  # no digit,digit, so the comma becomes a space
    ("5.\u0663", "5\u0663"),  # no digit follows the period
    ("\u0130ZM\u0130R", "izmir"),
    ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c3"),  # no final sigma
    ("\u13a0", "\u13a0"),
    ("CAF\u00c9", "caf\u00e9"),
]


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalise_answer(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_contraction_table_is_the_published_one() -> None:
    """The digest was taken from the table in the published file (commit a013f00), keys sorted."""
    table = vqa_normalise._CONTRACTIONS
    assert len(table) == 120
    text = " ".join(f"{written}:{table[written]}" for written in sorted(table))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "d812787e40a46d11b1138ecb509c7c9c7faf9038f0b643a3c30b5c542940ac66"


@pytest.mark.parametrize(
    ("prediction", "answers", "message"),
    [
        (5, ["yes"], "prediction is int 5"),
        (None, ["yes"], "prediction is NoneType None"),
        ("yes", [], "non-empty list"),
        ("yes", "yes", "answers is str 'yes'"),
        ("yes", ["yes", 3], r"answers\[1\] is int 3"),
        ("yes", [{"answer": "yes"}], r"answers\[0\] is dict"),
    ],
)
def test_wrong_types(prediction: object, answers: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(prediction, answers)
    with pytest.raises(ValueError, match=message):
        vqa_accuracies(prediction, answers)


def test_unknown_protocol() -> None:
    with pytest.raises(ValueError, match=r"official-2020.*official-2021, official-2016"):
        vqa_accuracy("yes", ["yes"], "official-2020")


def world(
    *rows: tuple[list[str], str, str], first_id: int = 1
) -> tuple[dict[str, object], dict[str, object]]:
    """Questions and annotations in the official layout from (answers, answer type, question type);
    ids count up from first_id, two questions share an image."""
    questions, annotations = [], []
    for i, (answers, answer_type, question_type) in enumerate(rows):
        ids = {"question_id": first_id + i, "image_id": 500 + i // 2}
        questions.append(ids | {"question": "what is this?"})
        annotations.append(
            ids
            | {
                "answer_type": answer_type,
                "question_type": question_type,
                "multiple_choice_answer": answers[0],
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": j + 1}
                    for j, answer in enumerate(answers)
                ],
            }
        )
    return META | {"questions": questions}, META | {"annotations": annotations}


@pytest.fixture
def five() -> tuple[list[dict], dict, dict]:
    """Five questions scoring 1, .9, .6, .3 and 0 when all are answered."""
    questions, annotations = world(
        (of((10, "yes")), "yes/no", "is this"),
        (of((3, "2"), (7, "3")), "number", "how many"),
        (of((2, "red"), (8, "blue")), "other", "what color"),
        (of((1, "cat"), (9, "dog")), "other", "what"),
        (of((10, "no")), "yes/no", "is this"),
    )
    given = ["yes", "two", "Red", "a cat", "yes"]
    predictions = [{"question_id": i + 1, "answer": text} for i, text in enumerate(given)]
    return predictions, questions, annotations


def test_score_vqa(five: tuple[list[dict], dict, dict]) -> None:
    score = score_vqa(*five)
    assert score == {
        "protocol": "official-2021",
        "n": 5,
        "overall": 56.0,  # (1 + .9 + .6 + .3 + 0) / 5
        "overallAnswered": 56.0,
        "perAnswerType": {"yes/no": 50.0, "number": 90.0, "other": 45.0},
        "perQuestionType": {"is this": 50.0, "how many": 90.0, "what color": 60.0, "what": 30.0},
        "missing": 0,
        "errors": 0,
        "duplicates": 0,
        "unasked": 0,
        "note": None,
        "perQuestion": {1: 1.0, 2: 0.9, 3: 0.6, 4: 0.3, 5: 0.0},
        "evalQA": {1: 100.0, 2: 90.0, 3: 60.0, 4: 30.0, 5: 0.0},
    }


def test_score_vqa_takes_lists_and_any_order(five: tuple[list[dict], dict, dict]) -> None:
    predictions, questions, annotations = five
    expected = score_vqa(predictions, questions, annotations)
    assert (
        score_vqa(predictions[::-1], questions["questions"][::-1], annotations["annotations"])
        == expected
    )


def test_score_vqa_by_protocol() -> None:
    questions, annotations = world(
        (of((10, "yes")), "yes/no", "is this"), (of((5, "Red"), (5, "blue")), "other", "what")
    )
    predictions = [{"question_id": 1, "answer": "Yes"}, {"question_id": 2, "answer": "red"}]
    figures = {p: score_vqa(predictions, questions, annotations, p) for p in PROTOCOLS}
    assert {p: figure["perQuestion"] for p, figure in figures.items()} == {
        "official-2021": {1: 0.0, 2: 1.0},
        "official-2016": {1: 1.0, 2: 0.0},
        "always-normalise": {1: 1.0, 2: 1.0},
    }
    assert [figure["overall"] for figure in figures.values()] == [50.0, 50.0, 100.0]
    assert [figure["protocol"] for figure in figures.values()] == list(PROTOCOLS)


def test_missing_failed_and_skipped_count_as_wrong(five: tuple[list[dict], dict, dict]) -> None:
    predictions, questions, annotations = five
    predictions[1] = {"question_id": 2, "answer": "two", "status": "error"}
    predictions[2] = {"question_id": 3, "answer": None, "status": "skipped"}
    predictions[0]["status"] = "ok"
    del predictions[3]
    score = score_vqa(predictions, questions, annotations)
    assert (score["n"], score["missing"], score["errors"]) == (5, 2, 1)
    assert score["perQuestion"] == {1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}
    assert score["overall"] == 20.0  # 1 / 5
    assert score["overallAnswered"] == 50.0  # 1 / 2
    assert score["perAnswerType"] == {"yes/no": 50.0, "number": 0.0, "other": 0.0}
    assert "2 of 5 questions have no answer and count as wrong" in score["note"]
    assert "--validate" in score["note"]


def test_last_prediction_of_a_question_counts(five: tuple[list[dict], dict, dict]) -> None:
    predictions, questions, annotations = five
    predictions.append({"question_id": 5, "answer": "no"})
    predictions.append({"question_id": 1, "answer": None, "status": "error"})
    score = score_vqa(predictions, questions, annotations)
    assert score["perQuestion"] == {1: 0.0, 2: 0.9, 3: 0.6, 4: 0.3, 5: 1.0}
    assert (score["duplicates"], score["errors"], score["missing"]) == (2, 1, 0)


def test_sample_of_the_questions_against_all_annotations(
    five: tuple[list[dict], dict, dict],
) -> None:
    predictions, questions, annotations = five
    score = score_vqa(predictions[:2], questions["questions"][:2], annotations)
    assert (score["n"], score["overall"], score["unasked"]) == (2, 95.0, 3)
    assert list(score["perQuestion"]) == [1, 2]


def test_no_questions() -> None:
    score = score_vqa([], [], [])
    assert (score["n"], score["overall"], score["overallAnswered"]) == (0, None, None)
    assert (score["perAnswerType"], score["perQuestionType"]) == ({}, {})
    assert "no questions" in score["note"]


def test_nothing_answered(five: tuple[list[dict], dict, dict]) -> None:
    score = score_vqa([], *five[1:])
    assert (score["overall"], score["overallAnswered"], score["missing"]) == (0.0, None, 5)


def test_nothing_given_is_changed(five: tuple[list[dict], dict, dict]) -> None:
    """The official program writes normalised references back, so that its second run may see them
    as unanimous and score a "Two" 0 that was 1 before."""
    predictions, _, annotations = five
    annotations["annotations"][0]["answers"][0]["answer"] = " Two."
    annotations["annotations"][0]["answers"][1]["answer"] = "the t-shirt\n"
    predictions[0]["answer"] = " YES. "
    before = copy.deepcopy(five)
    first = [score_vqa(*five, protocol) for protocol in PROTOCOLS]
    assert five == before
    assert [score_vqa(*five, protocol) for protocol in PROTOCOLS] == first
    assert first[0]["perQuestion"][1] == 1.0


def one_right_of(n: int, answers: list[str], prediction: str) -> dict:
    """Score of n questions of which the first has these answers and the others go unanswered."""
    questions, annotations = world(
        (answers, "other", "what"), *[(["no"] * 10, "yes/no", "is")] * (n - 1)
    )
    return score_vqa([{"question_id": 1, "answer": prediction}], questions, annotations)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (32, 3.13),  # 3.125: Python 2 rounds an exact tie up, Python 3 would print 3.12
        (160, 0.63),  # 0.625
        (3, 33.33),
        (7, 14.29),  # 14.2857
    ],
)
def test_rounding_is_that_of_python_2(n: int, expected: float) -> None:
    assert one_right_of(n, ["yes"] * 10, "yes")["overall"] == expected


def test_sums_carry_the_official_rounding_errors() -> None:
    """Two matches of ten are .6, and .6 of 32 questions is the tie 1.875. The official program adds
    thirds in the order of the annotators: 1/3 + 1/3 + 8 * 2/3 comes to 6.0, but the other way round
    to 5.999999999999999, and is no tie any more. Each question's own score is .6 either way."""
    first = one_right_of(32, of((2, "red"), (8, "blue")), "red")
    last = one_right_of(32, of((8, "blue"), (2, "red")), "red")
    assert (first["overall"], last["overall"]) == (1.88, 1.87)
    assert first["perQuestion"][1] == last["perQuestion"][1] == 0.6
    assert first["evalQA"][1] == last["evalQA"][1] == 60.0


def _predictions(row: object) -> tuple:
    questions, annotations = world((["yes"] * 10, "yes/no", "is this"))
    return [{"question_id": 1, "answer": "yes"}, row], questions, annotations


def _annotation(**changes: object) -> tuple:
    questions, annotations = world(*[(["yes"] * 10, "yes/no", "is this")] * 2)
    row = annotations["annotations"][1]
    row.update(changes)
    annotations["annotations"][1] = {k: v for k, v in row.items() if v is not Ellipsis}
    return [], questions, annotations


def _questions(row: object) -> tuple:
    questions, annotations = world((["yes"] * 10, "yes/no", "is this"))
    questions["questions"].append(row)
    return [], questions, annotations


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            _predictions({"question_id": 9, "answer": "x"}),
            r"predictions\[1\] \(question_id 9\).*not",
        ),
        (_predictions({"question_id": "1", "answer": "x"}), r"predictions\[1\]: .*str '1'.*int"),
        (_predictions({"question_id": True, "answer": "x"}), r"predictions\[1\]: .*bool True"),
        (_predictions({"answer": "x"}), r"predictions\[1\]: no question_id"),
        (_predictions(["x"]), r"predictions\[1\]: list .*object"),
        (
            _predictions({"question_id": 1}),
            r"predictions\[1\] \(question_id 1\): answer is NoneType",
        ),
        (_predictions({"question_id": 1, "answer": 2}), r"predictions\[1\].*answer is int 2"),
        (_predictions({"question_id": 1, "answer": ["x"]}), r"predictions\[1\].*answer is list"),
        (
            _predictions({"question_id": 1, "answer": "x", "status": "done"}),
            r"predictions\[1\].*status is str 'done', must be ok, error or skipped",
        ),
        (({}, *_predictions({})[1:]), r"predictions: dict .*must be a list"),
        (_annotation(answers=...), r"annotations\[1\] \(question_id 2\): no answers"),
        (_annotation(answers=[]), r"annotations\[1\] \(question_id 2\): no answers"),
        (_annotation(answers=["yes"] * 10), r"annotations\[1\].*answers\[0\] is str 'yes'"),
        (_annotation(answers=[{"answer": 1}]), r"annotations\[1\].*answers\[0\] is dict"),
        (_annotation(answer_type=...), r"annotations\[1\].*answer_type is NoneType"),
        (_annotation(question_type=7), r"annotations\[1\].*question_type is int 7"),
        (_annotation(question_id=1), r"annotations\[1\]: question_id 1 again"),
        (_annotation(image_id=4), r"questions\[1\] \(question_id 2\): not the image_id"),
        (_questions({"question_id": 7, "image_id": 1}), r"questions\[1\].*7\): no annotation"),
        (_questions({"question_id": 1}), r"questions\[1\]: question_id 1 again"),
        (_questions(None), r"questions\[1\]: NoneType"),
        (([], META, []), "questions: the file has no key 'questions', only info, task_type"),
        (([], {"questions": {}}, []), r"questions: dict .*must be a list"),
        (([], [], {"questions": []}), "annotations: the file has no key 'annotations'"),
    ],
)
def test_bad_rows_are_named(inputs: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_vqa(*inputs)


def test_image_id_is_optional(five: tuple[list[dict], dict, dict]) -> None:
    expected = score_vqa(*five)
    for row in [*five[1]["questions"][:2], *five[2]["annotations"][1:3]]:
        del row["image_id"]
    assert score_vqa(*five) == expected


# --- validation for the server -------------------------------------------------------------------

GOOD = [{"question_id": i, "answer": "yes"} for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("results", "problems"),
    [
        (GOOD, []),
        (GOOD[::-1], []),
        ([row | {"confidence": 0.5} for row in GOOD], []),
        (
            GOOD[:2],
            [
                "1 questions without answer: question_id 3",
                "2 of 3 questions are answered, so these are the results of a sample",
            ],
        ),
        ([], ["3 questions without answer: question_id 1, 2, 3"]),
        ([*GOOD, GOOD[1]], ["results[3] (question_id 2): answered before, in results[1]"]),
        ([*GOOD, {"question_id": 4, "answer": "x"}], ["results[3] (question_id 4): not among"]),
        (
            [*GOOD[:2], {"question_id": "3", "answer": "x"}],
            [
                "results[2]: question_id is str '3', must be an int",
                "1 questions without answer",
                "2 of 3 questions are answered",
            ],
        ),
        (
            [*GOOD[:2], {"question_id": 3.0, "answer": "x"}],
            [
                "results[2]: question_id is float 3.0",
                "1 questions without answer",
                "2 of 3 questions are answered",
            ],
        ),
        (
            [*GOOD[:2], {"question_id": 3, "answer": 7}],
            ["results[2] (question_id 3): answer is int 7, must be a string"],
        ),
        ([*GOOD[:2], {"question_id": 3}], ["results[2] (question_id 3): answer is NoneType"]),
        ([*GOOD, "x"], ["results[3]: str 'x', must be an object"]),
        ([*GOOD, {"answer": "x"}], ["results[3]: no question_id"]),
        ({"results": GOOD}, ["the file holds dict"]),
    ],
)
def test_validate_results(results: object, problems: list[str]) -> None:
    questions, annotations = world(*[(["yes"] * 10, "yes/no", "is this")] * 3)
    for found in (
        validate_results(results, questions),
        validate_results(results, questions["questions"], annotations),
    ):
        assert len(found) == len(problems)
        assert all(line.startswith(start) for line, start in zip(found, problems, strict=True))


def test_validate_names_ten_ids_at_most() -> None:
    questions, _ = world(*[(["yes"] * 10, "yes/no", "is this")] * 12)
    assert validate_results([], questions) == [
        "12 questions without answer: question_id 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ..."
    ]


def test_validate_sees_annotations_of_another_set() -> None:
    questions, _ = world(*[(["yes"] * 10, "yes/no", "is this")] * 3)
    _, annotations = world(*[(["yes"] * 10, "yes/no", "is this")] * 3, first_id=3)
    assert validate_results(GOOD, questions, annotations) == [
        "2 questions without annotation: question_id 1, 2",
        "2 annotations without question: question_id 4, 5",
    ]


def test_validate_refuses_test_dev_alone() -> None:
    questions, _ = world(*[(["yes"] * 10, "yes/no", "is this")] * 3)
    (problem,) = validate_results(GOOD, questions | {"data_subtype": "test-dev2015"})
    assert "v2_OpenEnded_mscoco_test2015_questions.json" in problem


# --- command line --------------------------------------------------------------------------------


@pytest.fixture
def files(five: tuple[list[dict], dict, dict], tmp_path) -> list[str]:
    paths = [tmp_path / f"{name}.json" for name in ("results", "questions", "annotations")]
    for path, content in zip(paths, five, strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return [str(path) for path in paths]


def test_command_prints_one_json_object(files: list[str], five: tuple) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shared.vqa_score", *files], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    expected = score_vqa(*five)
    for key in ("perQuestion", "evalQA"):  # JSON keys are strings
        expected[key] = {str(i): value for i, value in expected[key].items()}
    assert printed == expected


def test_command_protocol_and_summary(files: list[str], five: tuple, capsys) -> None:
    assert main([*files, "--protocol", "official-2016", "--summary"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = score_vqa(*five, "official-2016")
    assert printed == {k: v for k, v in expected.items() if k not in ("perQuestion", "evalQA")}


def test_command_validate(files: list[str], capsys) -> None:
    assert main([*files[:2], "--validate"]) == 0
    assert capsys.readouterr().out == f"{files[0]}: valid\n"
    with open(files[0], "w", encoding="utf-8") as file:
        json.dump([{"question_id": 1, "answer": "yes"}] * 2, file)
    assert main([*files, "--validate"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "results[1] (question_id 1): answered before, in results[0]",
        "4 questions without answer: question_id 2, 3, 4, 5",
        "1 of 5 questions are answered, so these are the results of a sample; a server takes the "
        "whole split (evaluate.py --limit 0)",
        f"{files[0]}: 3 problems",
    ]


def test_command_validate_shows_fifty_problems(files: list[str], capsys) -> None:
    with open(files[0], "w", encoding="utf-8") as file:
        json.dump(["x"] * 60, file)
    assert main([*files[:2], "--validate"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[49:] == [
        "results[49]: str 'x', must be an object",
        "...",
        f"{files[0]}: 61 problems",  # 60 rows, and the missing answers
    ]


def test_command_validate_broken_file(files: list[str], capsys) -> None:
    with open(files[0], "w", encoding="utf-8") as file:
        file.write("[{]")
    assert main([*files[:2], "--validate"]) == 1
    assert f"{files[0]}: not valid JSON" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"[{]", b"\xff", b'[{"question_id": 77, "answer": "x"}]'])
def test_command_names_file_and_fault(files: list[str], content: bytes, capsys) -> None:
    with open(files[0], "wb") as file:
        file.write(content)
    assert main(files) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert files[0] in captured.err
    assert "Traceback" not in captured.err


def test_command_missing_file(files: list[str], capsys) -> None:
    assert main([files[0] + "x", *files[1:]]) == 2
    assert files[0] + "x" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("more", [[], ["--validate"]])
def test_command_names_a_folder_and_what_is_in_it(
    files: list[str], place: int, more: list[str], capsys
) -> None:
    """A run folder or data root in the place of its file: not a problem of the results."""
    folder = str(Path(files[0]).parent)
    files[place] = folder
    assert main([*files, *more]) == 2
    said = capsys.readouterr().err
    assert f"error: {folder}: a folder, expected a JSON file; in it: annotations.json, " in said


def test_command_scoring_needs_annotations(files: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(files[:2])
    assert "ANNOTATIONS is needed" in capsys.readouterr().err


def test_import_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, shared.vqa_score; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
