"""Reading questions: every kind of bad row is left out, counted and named; good ones stay."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.options import REPO_ROOT, MissingError, UserError
from shared.vqav2 import bad_rows_allowed, load_rows, load_split, sample_questions

SPLIT = "val2014"
QUESTIONS = f"v2_OpenEnded_mscoco_{SPLIT}_questions.json"
ANNOTATIONS = f"v2_mscoco_{SPLIT}_annotations.json"


def official(n: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`n` good questions, two a picture, and their annotations."""
    questions = [
        {"question_id": 100 + i, "image_id": 1 + i // 2, "question": f"What is {i}?"}
        for i in range(n)
    ]
    annotations = [
        {
            "question_id": row["question_id"],
            "image_id": row["image_id"],
            "question_type": "what is",
            "answer_type": "other",
            "multiple_choice_answer": "red",
            "answers": [
                {"answer": "red", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)
            ],
        }
        for row in questions
    ]
    return questions, annotations


def write(root: Path, questions: Any, annotations: Any, split: str = SPLIT) -> Path:
    for name, key, rows in (
        (f"v2_OpenEnded_mscoco_{split}_questions.json", "questions", questions),
        (f"v2_mscoco_{split}_annotations.json", "annotations", annotations),
    ):
        if rows is not None:
            content = {"data_subtype": split, key: rows}
            (root / name).write_text(json.dumps(content), encoding="utf-8")
    return root


def test_a_folder_for_own_rows_and_a_file_for_the_data_root_are_named(tmp_path):
    """Both used to say that it is not there, the second with advice to download it."""
    file = tmp_path / "rows.jsonl"
    file.write_text("{}")
    with pytest.raises(UserError, match=r": a folder; own rows are a JSONL or CSV file"):
        load_rows(tmp_path)
    with pytest.raises(UserError, match=r"rows.jsonl: a file; --data_root takes the folder") as e:
        load_split(file, SPLIT)
    assert not isinstance(e.value, MissingError)


def test_questions_and_annotations_are_joined(tmp_path):
    root = write(tmp_path, *official(4))
    found = load_split(root, SPLIT)
    assert found.problems == []
    assert [q.sample_id for q in found.questions] == ["100", "101", "102", "103"]
    first = found.questions[0]
    assert first.image_name == "val2014/COCO_val2014_000000000001.jpg"
    assert first.image == root / first.image_name
    assert first.references == ("red",) * 10
    assert (first.question_type, first.answer_type, first.target) == ("what is", "other", "red")


def test_annotations_may_stand_in_another_order_and_be_more(tmp_path):
    questions, annotations = official(6)
    annotations[2]["answers"][0]["answer"] = "blue"
    found = load_split(write(tmp_path, questions[:4], annotations[::-1]), SPLIT)
    assert found.problems == []
    assert found.questions[2].references[0] == "blue"


# Bad rows of section D: each left out, one line in `problems` that names file, row and reason

Damage = Callable[[list[dict[str, Any]], list[dict[str, Any]]], Any]


def left_out(folder: Path, damage: Damage) -> list[str]:
    """Problems after `damage` to twenty good rows, of which the first is expected to fall out."""
    questions, annotations = official(20)
    damage(questions, annotations)
    found = load_split(write(folder, questions, annotations), SPLIT)
    assert [q.sample_id for q in found.questions] == [str(i) for i in range(101, 120)]
    return found.problems


def test_a_question_without_annotation(tmp_path):
    """Used to be scored against nothing, or to stop a run with a KeyError."""
    (problem,) = left_out(tmp_path, lambda q, a: a.pop(0))
    assert problem == f"{QUESTIONS} row 0: question_id 100 has no annotation"


def test_a_duplicate_question_id(tmp_path):
    """Two rows under one id would overwrite each other's prediction; the first is used."""
    questions, annotations = official(4)
    questions.append({**questions[0], "question": "Another?"})
    found = load_split(write(tmp_path, questions, annotations), SPLIT)
    assert [q.question for q in found.questions if q.sample_id == "100"] == ["What is 0?"]
    assert found.problems == [f"{QUESTIONS} row 4: question_id 100 stands twice; the first is used"]


def test_a_question_annotated_twice(tmp_path):
    """The official program's index would silently take the last one."""
    questions, annotations = official(4)
    second = copy.deepcopy(annotations[0])
    second["answers"][0]["answer"] = "blue"
    found = load_split(write(tmp_path, questions, [*annotations, second]), SPLIT)
    assert found.questions[0].references == ("red",) * 10
    assert found.problems == [
        f"{ANNOTATIONS} row 4: question_id 100 is annotated twice; the first is used"
    ]


@pytest.mark.parametrize("n", [0, 1, 9, 11])
def test_nine_or_eleven_answers(tmp_path, n):
    """The metric's figures hold for ten annotators; another number is another metric."""

    def damage(questions, annotations):
        annotations[0]["answers"] = [{"answer": "red"}] * n

    (problem,) = left_out(tmp_path, damage)
    assert problem == f"{ANNOTATIONS} row 0: question_id 100: {n} answers, expected 10"


WRONG_TYPES: dict[str, tuple[Damage, str]] = {
    "question is a list": (
        lambda q, a: q[0].update(question=["What?"]),
        f"{QUESTIONS} row 0: question_id 100: the question is not a string",
    ),
    "question is missing": (
        lambda q, a: q[0].pop("question"),
        f"{QUESTIONS} row 0: question_id 100: the question is not a string",
    ),
    "question_id is text": (
        lambda q, a: q[0].update(question_id="100"),
        f"{QUESTIONS} row 0: question_id is '100', expected a whole number",
    ),
    "question_id is true": (
        lambda q, a: q[0].update(question_id=True),
        f"{QUESTIONS} row 0: question_id is True, expected a whole number",
    ),
    "image_id is a fraction": (
        lambda q, a: q[0].update(image_id=1.5),
        f"{QUESTIONS} row 0: image_id is 1.5, expected a whole number",
    ),
    "row is a string": (
        lambda q, a: q.__setitem__(0, "What?"),
        f"{QUESTIONS} row 0: expected an object, found str",
    ),
    "answers is an object": (
        lambda q, a: a[0].update(answers={"answer": "red"}),
        f"{ANNOTATIONS} row 0: question_id 100: no list of answers, expected 10",
    ),
    "an answer is a number": (
        lambda q, a: a[0]["answers"].__setitem__(3, {"answer": 2}),
        f"{ANNOTATIONS} row 0: question_id 100: an answer is not an object with a string 'answer'",
    ),
    "an answer is a bare string": (
        lambda q, a: a[0]["answers"].__setitem__(3, "red"),
        f"{ANNOTATIONS} row 0: question_id 100: an answer is not an object with a string 'answer'",
    ),
    "multiple_choice_answer is null": (
        lambda q, a: a[0].update(multiple_choice_answer=None),
        f"{ANNOTATIONS} row 0: question_id 100: multiple_choice_answer is not a string",
    ),
    "question_type is a list": (
        lambda q, a: a[0].update(question_type=["what"]),
        f"{ANNOTATIONS} row 0: question_id 100: question_type is ['what'], expected a string",
    ),
    "answer_type is a number": (
        lambda q, a: a[0].update(answer_type=3),
        f"{ANNOTATIONS} row 0: question_id 100: answer_type is 3, expected a string",
    ),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_wrong_json_types(tmp_path, case):
    """Each used to be a TypeError somewhere in prompting or scoring, hours into a run."""
    damage, expected = WRONG_TYPES[case]
    assert left_out(tmp_path, damage) == [expected]


def test_an_annotation_that_is_no_object(tmp_path):
    """Its question is then without annotation, and both rows are named."""
    first, second = left_out(tmp_path, lambda q, a: a.__setitem__(0, None))
    assert first == f"{ANNOTATIONS} row 0: no whole-numbered question_id"
    assert second == f"{QUESTIONS} row 0: question_id 100 has no annotation"


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_question(tmp_path, text):
    """A bare prompt would be answered, and the answer scored, as if something had been asked."""
    (problem,) = left_out(tmp_path, lambda q, a: q[0].update(question=text))
    assert problem == f"{QUESTIONS} row 0: question_id 100: the question is empty"


def test_an_image_id_that_differs_from_the_annotation(tmp_path):
    """Files of two data sets: the picture shown is not the one that was annotated."""
    (problem,) = left_out(tmp_path, lambda q, a: a[0].update(image_id=77))
    assert problem == f"{QUESTIONS} row 0: question_id 100: image_id 1 here, 77 in its annotation"


def test_bad_rows_are_bounded(tmp_path):
    """Twenty bad rows are survivable, twenty-one of 200 say that the file is wrong."""
    questions, annotations = official(200)
    for row in annotations[:20]:
        row["answers"] = row["answers"][:9]
    found = load_split(write(tmp_path, questions, annotations), SPLIT)
    assert (len(found.questions), len(found.problems)) == (180, 20)
    annotations[20]["answers"] = []
    with pytest.raises(UserError, match=r"21 bad rows of 200, .*:\n  .* row 0: .* 9 answ"):
        load_split(write(tmp_path, questions, annotations), SPLIT)


@pytest.mark.parametrize(
    ("n_rows", "allowed"), [(1, 1), (9, 1), (20, 2), (60, 6), (200, 20), (399, 20), (1000, 50)]
)
def test_the_bound_scales_with_the_file(n_rows, allowed):
    assert bad_rows_allowed(n_rows) == allowed


def test_19_bad_rows_of_20_are_no_small_loss(tmp_path):
    """Twenty bad rows used to pass in any file, so that one good row was a run."""
    rows = ['{"image": "a.jpg", "question": "What?"}', *['{"image": 5}'] * 19]
    path = rows_file(tmp_path, "rows.jsonl", "\n".join(rows))
    with pytest.raises(UserError, match=r"19 bad rows of 20, at most 2 are .*\n  .*row 2: 'image'"):
        load_rows(path)


def test_a_file_with_no_good_row_is_an_error(tmp_path):
    """A small file below the bound used to give a run over no question at all."""
    questions, annotations = official(3)
    for row in annotations:
        row["answers"] = row["answers"][:9]
    with pytest.raises(UserError, match=r"no usable row:\n  .* row 0: question_id 100: 9 answers"):
        load_split(write(tmp_path, questions, annotations), SPLIT)
    with pytest.raises(UserError, match="the file is empty"):
        load_split(write(tmp_path, [], []), SPLIT)


# Bad files


def test_an_unknown_split(tmp_path):
    """`val` for `val2014` is named with the splits that exist."""
    with pytest.raises(UserError, match=r"unknown split 'val'; VQAv2 has train2014, val2014"):
        load_split(write(tmp_path, *official(4)), "val")


def test_a_file_of_another_split_under_this_one_s_name(tmp_path):
    """Renamed train questions would ask about val pictures that don't exist."""
    questions, annotations = official(4)
    write(tmp_path, questions, annotations)
    content = {"data_subtype": "train2014", "questions": questions}
    (tmp_path / QUESTIONS).write_text(json.dumps(content))
    with pytest.raises(UserError, match="says that it is train2014, its name says val2014"):
        load_split(tmp_path, SPLIT)


def test_test2015_needs_no_annotations(tmp_path):
    questions, _ = official(4)
    found = load_split(write(tmp_path, questions, None, "test2015"), "test2015")
    assert len(found.questions) == 4
    assert found.questions[0].references == ()
    assert found.questions[0].target is None
    assert found.questions[0].image_name == "test2015/COCO_test2015_000000000001.jpg"


@pytest.mark.parametrize("absent", [QUESTIONS, ANNOTATIONS])
def test_missing_files_name_the_download_and_the_toy_command(tmp_path, absent):
    """The first thing a new user meets: what is missing, and the two commands that go on."""
    write(tmp_path, *official(4))
    (tmp_path / absent).unlink()
    with pytest.raises(MissingError) as missing:
        load_split(tmp_path, SPLIT)
    what, real, toy = str(missing.value).splitlines()
    assert what == f"{tmp_path / absent} is not there."
    assert "python -m shared.download vqav2" in real
    assert "--toy" in toy


def test_broken_json_names_the_line(tmp_path):
    """A download that stopped in the middle."""
    write(tmp_path, *official(4))
    (tmp_path / QUESTIONS).write_text('{"questions": [\n{"question_id": 1,\n')
    with pytest.raises(UserError, match=rf"{QUESTIONS}: not valid JSON \(line 3\)"):
        load_split(tmp_path, SPLIT)


@pytest.mark.parametrize("content", [[], {}, {"questions": {}}, "text"])
def test_another_layout_is_named(tmp_path, content):
    """The v1 annotations, or a bare list as other projects write it."""
    write(tmp_path, *official(4))
    (tmp_path / QUESTIONS).write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected a JSON object with a list under 'questions'"):
        load_split(tmp_path, SPLIT)


def test_a_question_of_5000_characters_is_kept(tmp_path):
    """Whether it fits is the model's matter, and named there, question by question."""
    questions, annotations = official(4)
    questions[0]["question"] = "why " * 1250
    found = load_split(write(tmp_path, questions, annotations), SPLIT)
    assert len(found.questions[0].question) == 5000
    assert found.problems == []


# Own rows


def rows_file(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_jsonl_rows(tmp_path):
    path = rows_file(
        tmp_path,
        "rows.jsonl",
        '{"image": "a.jpg", "question": "What?", "answer": "red"}\n'
        "\n"
        '{"image": "sub/b.jpg", "question": "Wie groß?", "question_id": 7, "image_id": 3}\n',
    )
    found = load_rows(path)
    assert found.problems == []
    assert [q.sample_id for q in found.questions] == ["1", "7"]  # the line, unless it has an id
    first, second = found.questions
    assert (first.image, first.image_name) == (tmp_path / "a.jpg", "a.jpg")
    assert (first.references, first.target, first.image_id) == (("red",), "red", "a.jpg")
    assert (second.question, second.references, second.image_id) == ("Wie groß?", (), 3)


def test_csv_rows_with_bom_blank_lines_and_spaces(tmp_path):
    """As Excel writes it, and as people type it: `image, question, answer`."""
    path = rows_file(
        tmp_path,
        "rows.csv",
        'image, question, answer\r\na.jpg, What?, red\r\n\r\n"b.jpg","Red, or\r\nblue?",blue\r\n',
        "utf-8-sig",
    )
    found = load_rows(path, need_answer=True)
    assert found.problems == []
    assert [(q.image_name, q.question, q.target) for q in found.questions] == [
        ("a.jpg", "What?", "red"),
        ("b.jpg", "Red, or\nblue?", "blue"),
    ]


def test_jsonl_with_bom(tmp_path):
    path = rows_file(tmp_path, "rows.jsonl", '{"image": "a.jpg"}\n', "utf-8-sig")
    assert load_rows(path).questions[0].image_name == "a.jpg"


def test_ten_answers_are_scored_officially_and_the_commonest_is_learned(tmp_path):
    """The first annotator's answer used to be learned, be it alone with it."""
    answers = ["rot", *["red"] * 9]
    path = rows_file(
        tmp_path,
        "rows.jsonl",
        json.dumps({"image": "a.jpg", "question": "What?", "answers": answers}),
    )
    (question,) = load_rows(path, need_answer=True).questions
    assert question.references == tuple(answers)
    assert question.target == "red"


def test_csv_with_a_missing_column(tmp_path):
    for text, found in (
        ("picture,question\na.jpg,What?\n", "picture, question"),
        ("image|question\na.jpg|What?\n", r"image\|question"),
        ("", "nothing"),
    ):
        message = f"must name the columns image,question,answer; it has: {found}$"
        with pytest.raises(UserError, match=message):
            load_rows(rows_file(tmp_path, "rows.csv", text))
    path = rows_file(tmp_path, "rows.csv", "image,question\na.jpg,What?\n")
    with pytest.raises(UserError, match=r"rows.csv row 2: no 'answer' to learn"):
        load_rows(path, need_answer=True)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_as_excel_writes_it(tmp_path, separator):
    """Semicolons or tabs, capitals, a byte-order mark, an empty last column used to be refused."""
    lines = ["Image|Question |ANSWER|", 'a.jpg|"Red, or blue; which?"|red|', "b.jpg|What?|blue|"]
    text = "\ufeff" + "\r\n".join(lines).replace("|", separator) + "\r\n"
    found = load_rows(rows_file(tmp_path, "rows.csv", text), need_answer=True)
    assert found.problems == []
    assert [(q.image_name, q.question, q.target) for q in found.questions] == [
        ("a.jpg", "Red, or blue; which?", "red"),
        ("b.jpg", "What?", "blue"),
    ]


def test_two_columns_of_one_name_are_refused(tmp_path):
    """The second would silently stand for the first."""
    path = rows_file(tmp_path, "rows.csv", "image,question,Question\na.jpg,What?,Why?\n")
    with pytest.raises(UserError, match=r"rows.csv: two columns are named question"):
        load_rows(path)


def test_a_question_id_typed_twice_in_a_csv_is_said(tmp_path):
    text = "question_id,image,question\n7,a.jpg,What?\n7,b.jpg,Why?\n8,c.jpg,Where?\n"
    found = load_rows(rows_file(tmp_path, "rows.csv", text))
    assert [q.image_name for q in found.questions] == ["a.jpg", "c.jpg"]
    assert found.left_out == (
        "note: 1 bad row of the data not used; first: rows.csv row 3: question_id 7 stands twice; "
        "the first is used"
    )
    assert (
        load_rows(rows_file(tmp_path, "good.csv", "image,question\na.jpg,What?\n")).left_out == ""
    )


@pytest.mark.parametrize(
    ("split", "download"),
    [("train2014", "vqav2 --splits train"), ("val2014", "vqav2 --limit 1000"),
     ("test2015", "vqav2 --splits test")],
)  # fmt: skip
def test_missing_files_name_the_download_that_brings_them(tmp_path, split, download):
    """`--limit 1000` brings val only; to train it was no help."""
    with pytest.raises(MissingError, match=f"python -m shared.download {download}"):
        load_split(tmp_path, split)


def test_an_unquoted_comma_in_a_csv_is_not_read_as_an_answer(tmp_path):
    """Used to be read as the question "Red" with the answer "or blue?", and trained on."""
    path = rows_file(
        tmp_path, "rows.csv", "image,question,answer\na.jpg,Red, or blue?,red\nb.jpg,What?,red\n"
    )
    found = load_rows(path, need_answer=True)
    assert [q.image_name for q in found.questions] == ["b.jpg"]
    assert "rows.csv row 2: more fields than columns" in found.problems[0]


def test_a_file_that_is_not_utf8(tmp_path):
    """Excel saves text in the system's own encoding, which was a UnicodeDecodeError."""
    for name, text, encoding in (
        ("rows.csv", "image,question\na.jpg,什么颜色?\n", "gbk"),
        ("rows.jsonl", '{"image": "a.jpg", "question": "groß?"}\n', "latin-1"),
    ):
        with pytest.raises(UserError, match=rf"{name}: not UTF-8"):
            load_rows(rows_file(tmp_path, name, text, encoding))


def test_row_numbers_are_those_of_the_editor(tmp_path):
    """After a blank line or a text with a line break the count used to be off."""
    path = rows_file(
        tmp_path,
        "rows.csv",
        'image,question,answer\na.jpg,What?,red\n\n"b.jpg","two\nlines",red\n,What?,red\n',
    )
    assert "rows.csv row 6: 'image' is None" in load_rows(path).problems[0]
    path = rows_file(tmp_path, "rows.jsonl", '{"image": "a.jpg"}\n\n\n{"image": 5}\n')
    assert "rows.jsonl row 4: 'image' is 5" in load_rows(path).problems[0]


BAD_OWN_ROWS = {
    '{"image": ""}': "'image' is ''",
    '{"question": "What?"}': "'image' is None",
    '{"image": "a.jpg", "question": 5}': "'question' is 5, expected a string",
    '{"image": "a.jpg", "question": "What?", "answer": 2}': "'answer' is 2, expected a string",
    '{"image": "a.jpg", "question": "What?", "answers": "red"}': "'answers' is not a list",
    '{"image": "a.jpg", "question": "What?", "answers": ["red", 2]}': "'answers' is not a list",
    '{"image": "a.jpg", "question": " ", "answer": "red"}': "the question is empty",
    '{"image": "a.jpg", "answer": "red"}': "the question is empty",
    '{"image": "a.jpg", "question": "What?"}': "no 'answer' to learn",
    '{"image": "a.jpg", "question": "What?", "answer": "a", "image_id": [1]}': "'image_id' is [1]",
    '{"image": "a.jpg", "question": "What?", "answer": "a", "question_type": 4}': "question_type",
    '["a.jpg", "What?"]': "expected an object",
    '{"image": "a.jpg"': "not valid JSON",
}


@pytest.mark.parametrize("row", BAD_OWN_ROWS)
def test_bad_own_rows_are_named(tmp_path, row):
    good = '{"image": "a.jpg", "question": "What?", "answer": "red"}'
    found = load_rows(rows_file(tmp_path, "rows.jsonl", f"{good}\n{row}\n"), need_answer=True)
    assert len(found.questions) == 1
    (problem,) = found.problems
    assert problem.startswith("rows.jsonl row 2: ")
    assert BAD_OWN_ROWS[row] in problem


def test_own_ids_that_repeat_are_named(tmp_path):
    rows = [{"image": "a.jpg", "question_id": 5}, {"image": "b.jpg", "question_id": "5"}]
    text = "\n".join(map(json.dumps, rows))
    found = load_rows(rows_file(tmp_path, "rows.jsonl", text))
    assert [q.image_name for q in found.questions] == ["a.jpg"]
    assert "question_id 5 stands twice" in found.problems[0]


def test_null_ids_are_no_ids(tmp_path):
    """Two rows with `"question_id": null` used to be one id, "None"."""
    text = '{"image": "a.jpg", "question_id": null, "image_id": null}\n' * 2
    found = load_rows(rows_file(tmp_path, "rows.jsonl", text))
    assert [(q.sample_id, q.image_id) for q in found.questions] == [("1", "a.jpg"), ("2", "a.jpg")]


def test_missing_and_empty_own_files(tmp_path):
    with pytest.raises(UserError, match=r"absent.jsonl: no such file"):
        load_rows(tmp_path / "absent.jsonl")
    for name in ("rows.jsonl", "rows.csv"):
        header = "image,question,answer\n" if name.endswith("csv") else ""
        with pytest.raises(UserError, match=r"no usable row:\n  the file is empty"):
            load_rows(rows_file(tmp_path, name, header))


def test_the_committed_rows_are_good():
    tiny = load_rows(REPO_ROOT / "blip2_qlora" / "data" / "tiny.jsonl", need_answer=True)
    assert tiny.problems == []
    assert all(len(q.references) == 10 and q.image.is_file() for q in tiny.questions)
    base = load_rows(REPO_ROOT / "blip2_qlora" / "baseline_images" / "questions.jsonl")
    assert base.problems == []
    assert len({q.image for q in base.questions if q.image.is_file()}) == 10


# The sample


def test_the_sample_is_deterministic_in_order_and_without_repeats():
    rows = list(range(1000))
    chosen = sample_questions(rows, 100, seed=0)
    assert chosen == sample_questions(rows, 100, seed=0)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 100
    assert chosen != sample_questions(rows, 100, seed=1)


def test_the_sample_does_not_touch_the_common_generator():
    """Drawing the sample from the global generator would make it depend on what ran before."""
    import random

    random.seed(5)
    before = random.getstate()
    first = sample_questions(list(range(50)), 5, seed=0)
    assert random.getstate() == before
    random.random()
    assert sample_questions(list(range(50)), 5, seed=0) == first


def test_the_sample_is_the_same_in_every_python_process():
    """It is named in published figures: `--limit 1000 --seed 0` must mean the same questions."""
    code = "from shared.vqav2 import sample_questions as s; print(s(list(range(99)), 9, 0))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=REPO_ROOT, env={"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert said == {f"{sample_questions(list(range(99)), 9, 0)}\n"}


@pytest.mark.parametrize("limit", [0, 4, 5, 100])
def test_a_limit_of_zero_or_more_than_there_are_takes_all(limit):
    assert sample_questions([1, 2, 3, 4], limit, seed=0) == [1, 2, 3, 4]


def test_problems_stay_with_a_sample(tmp_path):
    questions, annotations = official(6)
    annotations.pop()
    sample = load_split(write(tmp_path, questions, annotations), SPLIT).sample(2, seed=0)
    assert (len(sample.questions), len(sample.problems)) == (2, 1)
