"""The tasks: official files in, figures worked out by hand, official files out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llava_repro.tasks import (
    TASKS,
    gqa,
    load_task,
    match_answers,
    pope,
    scienceqa,
    score_task,
    submission,
    textvqa,
)
from llava_repro.tasks.common import Sample, m4c_normalise
from shared.answering import Job, make_record
from shared.options import MissingError, UserError

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(texts: dict[Any, str], prompts: dict[Any, str] | None = None) -> list[dict[str, Any]]:
    """Rows of LLaVA's answers file."""
    return [
        {"question_id": key, "prompt": (prompts or {}).get(key), "text": text}
        for key, text in texts.items()
    ]


def figures(task: str, path: Path, rows: list[dict[str, Any]], split: str | None = None) -> dict:
    prompt = "no_ocr" if task == "textvqa" else None
    samples = load_task(task, path, split, prompt).questions
    return score_task(task, match_answers(task, rows, samples), samples)[1]


# ---------------------------------------------------------------------------------------- POPE

POPE_ANSWERS = [
    ("Yes", "yes"),
    ("yes.", "yes"),
    ("No", "no"),
    ("no", "no"),
    ("No.", "no"),
    ("No, there is none", "no"),
    ("There is no dog", "no"),
    ("The picture does not show a dog.", "no"),
    ("Yes, there is no doubt", "no"),  # a word no in the first sentence decides
    ("Yes. There is no cat", "yes"),  # the second sentence is not looked at
    (" no", "no"),
    # What the rule only guesses, or gets wrong: everything else is yes.
    ("Not sure", "yes"),
    ("not sure", "no"),
    ("NO", "yes"),
    ("no\n", "yes"),
    ("Nope", "yes"),
    ("I cannot tell", "yes"),
    ("No!", "yes"),
    ("No,there is none", "yes"),  # "Nothere"
    (". no", "yes"),
    ("", "yes"),
    ("是", "yes"),
    ("不是", "yes"),
]


@pytest.mark.parametrize(("text", "expected"), POPE_ANSWERS)
def test_pope_answers_are_read_by_llavas_rule(text, expected):
    assert pope.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "clear"),
    [
        ("Yes", True),
        ("NO!", True),
        ("is not", True),
        ("nothing", False),
        ("", False),
        ("不是", False),
    ],
)
def test_pope_answers_that_the_rule_only_guesses_are_counted(text, clear):
    assert pope.is_clear(text) is clear


def pope_rows(labels: str) -> list[dict[str, Any]]:
    """One question a label (y or n), two a picture."""
    return [
        {
            "question_id": i + 1,
            "image": f"COCO_val2014_{i // 2:012d}.jpg",
            "text": f"Is there a thing {i} in the image?",
            "label": "yes" if label == "y" else "no",
        }
        for i, label in enumerate(labels)
    ]


def test_pope_figures_by_hand(tmp_path):
    """yes labels: 3 found, 1 not; no labels: 2 taken for yes, 4 right. TP 3, FN 1, FP 2, TN 4."""
    path = write_lines(tmp_path / "coco_pope_random.json", pope_rows("yyyynnnnnn"))
    said = ["Yes", "Yes.", "yes", "No", "Yes", "Maybe", "No", "no", "No, none.", "not there"]
    found = figures("pope", path, answers(dict(enumerate(said, start=1))))
    assert found["confusion"] == {"TP": 3, "FP": 2, "TN": 4, "FN": 1}
    assert found["accuracy"] == 7 / 10
    assert found["precision"] == 3 / 5
    assert found["recall"] == 3 / 4
    assert found["f1"] == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert found["yes_ratio"] == 5 / 10  # of the answers
    assert found["yes_ratio_of_labels"] == 4 / 10
    assert (found["n"], found["answered"], found["missing"]) == (10, 10, 0)
    assert found["unclear"] == 1  # Maybe
    assert found["headline"]["value"] == 70.0
    accuracy = found["intervals"]["accuracy"]  # over the five pictures, not the ten questions
    assert 0 < accuracy["low"] < 0.7 < accuracy["high"] <= 1
    assert accuracy["note"] == "only 5 clusters: the interval is too narrow"
    # Wilson for 3 of 5 at 95 %: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    z, p, n = 1.959964, 0.6, 5
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    limits = [(p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    precision = found["intervals"]["precision"]
    assert [precision["low"], precision["high"]] == pytest.approx(limits, abs=1e-6)


def test_pope_pairs_by_question_id_and_a_missing_answer_is_wrong(tmp_path):
    """LLaVA's script pairs by order: after a missing answer it would compare the wrong ones."""
    path = write_lines(tmp_path / "coco_pope_random.json", pope_rows("ynyn"))
    found = figures("pope", path, answers({4: "No", 3: "Yes", 2: "No"}))  # in another order
    assert found["confusion"] == {"TP": 1, "FP": 0, "TN": 2, "FN": 1}
    assert (found["accuracy"], found["recall"], found["yes_ratio"]) == (0.75, 0.5, 1 / 3)
    assert (found["missing"], found["named"]["missing"]) == (1, ["1"])
    # the missing answer to a no question is wrong, but no false positive
    found = figures("pope", path, answers({1: "Yes", 3: "Yes", 2: "No"}))
    assert found["confusion"] == {"TP": 2, "FP": 0, "TN": 1, "FN": 0}
    assert (found["accuracy"], found["precision"]) == (0.75, 1.0)


def test_pope_of_two_answers_the_last_counts_and_it_is_said(tmp_path):
    path = write_lines(tmp_path / "coco_pope_random.json", pope_rows("yn"))
    rows = answers({1: "No", 2: "No"}) + answers({1: "Yes"})
    found = figures("pope", path, rows)
    assert (found["accuracy"], found["duplicates"], found["n"]) == (1.0, 1, 2)
    assert found["named"]["duplicates"] == ["1"]


def test_pope_refuses_answers_of_other_questions(tmp_path):
    path = write_lines(tmp_path / "coco_pope_random.json", pope_rows("yn"))
    with pytest.raises(UserError, match="question_id 77"):
        figures("pope", path, answers({1: "No", 77: "No"}))


@pytest.mark.parametrize(
    ("labels", "said", "null"),
    [
        ("nn", ["No", "No"], {"precision", "recall", "f1"}),
        ("yy", ["No", "No"], {"precision", "f1"}),
        ("nn", ["Yes", "Yes"], {"recall", "f1"}),
        ("yn", ["No", "Yes"], {"f1"}),  # precision and recall are 0
    ],
)
def test_pope_with_nothing_to_divide_by(tmp_path, labels, said, null):
    path = write_lines(tmp_path / "coco_pope_random.json", pope_rows(labels))
    found = figures("pope", path, answers(dict(enumerate(said, start=1))))
    assert {name for name in ("precision", "recall", "f1", "yes_ratio") if found[name] is None} == (
        null
    )
    assert set(found["reasons"]) == null
    assert all(found["reasons"].values())


def test_pope_three_splits_and_their_mean_f1(tmp_path):
    for name, labels in {"adversarial": "yn", "popular": "yy", "random": "yn"}.items():
        write_lines(tmp_path / f"coco_pope_{name}.json", pope_rows(labels))
    said = {"adversarial/1": "Yes", "adversarial/2": "Yes", "popular/1": "Yes", "popular/2": "No"}
    said |= {"random/1": "Yes", "random/2": "No"}
    found = figures("pope", tmp_path, answers(said), "all")
    # adversarial P 1/2 R 1, popular P 1 R 1/2: both 2/3; random 1
    f1 = {name: split["f1"] for name, split in found["splits"].items()}
    assert f1 == pytest.approx({"adversarial": 2 / 3, "popular": 2 / 3, "random": 1})
    assert found["mean_f1"] == pytest.approx(7 / 9)
    assert (found["n"], found["accuracy"]) == (6, pytest.approx(4 / 6))


def test_pope_answers_numbered_as_in_llavas_question_file(tmp_path):
    """llava_pope_test.jsonl numbers through the splits; its rows say which question a number is."""
    for name in ("adversarial", "random"):
        write_lines(tmp_path / f"coco_pope_{name}.json", pope_rows("yn"))
    asked = [
        {"question_id": 10 * k + i, "image": row["image"], "text": f"{row['text']}\n{SHORT}",
         "category": name}
        for k, name in enumerate(("adversarial", "random"))
        for i, row in enumerate(pope_rows("yn"))
    ]  # fmt: skip
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    samples = load_task("pope", tmp_path, "random").questions
    rows = pope.renumber(answers({0: "No", 1: "No", 10: "Yes", 11: "No"}), questions, samples)
    assert [row["question_id"] for row in rows] == ["1", "2"]
    metrics = score_task("pope", match_answers("pope", rows, samples), samples)[1]
    assert metrics["accuracy"] == 1.0
    with pytest.raises(UserError, match="no question_id 99"):
        pope.renumber(answers({99: "No"}), questions, samples)


def test_pope_bad_rows_are_listed_and_pictures_found(tmp_path):
    good = pope_rows("yn" * 15)
    rows = [*good, {"question_id": 9, "image": "a.jpg", "text": "?", "label": "maybe"}]
    path = write_lines(tmp_path / "coco_pope_random.json", [*rows, pope_rows("y")[0]])
    path.write_text(path.read_text() + "{broken\n")
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / rows[0]["image"]).write_bytes(b"")
    found = load_task("pope", tmp_path, "random")
    assert [sample.image for sample in found.questions] == [
        tmp_path / "val2014" / row["image"] for row in good
    ]
    assert [problem.split(": ")[0] for problem in found.problems] == [
        f"coco_pope_random.json line {n}" for n in (31, 32, 33)
    ]
    assert found.questions[0].prompt == f"Is there a thing 0 in the image?\n{SHORT}"
    assert load_task("pope", path, prompt="bare").questions[0].prompt == rows[0]["text"]


# ----------------------------------------------------------------------------------- ScienceQA

SCIENCEQA_ANSWERS = [  # of four choices
    ("A", 0),
    ("D", 3),
    ("B. a magnet", 1),
    ("The answer is C.", 2),
    ("The answer is C because it floats", 2),  # the dot of the pattern is any character
    ("First heat it. The answer is D. BECAUSE: iron melts", 3),
    ("The answer is Beta", 1),  # any character: a trap of the pattern, kept
    # Undecided.
    ("E", None),  # a letter, but no choice here
    ("The answer is F.", None),
    ("A.", None),
    ("B.\n", None),
    ("(B)", None),
    ("b", None),
    (" B", None),
    ("B) a magnet", None),
    ("The answer is B", None),  # nothing after the letter
    ("The answer is B\n", None),
    ("the answer is B because it floats", None),
    ("The answer is A. No, The answer is B.", None),  # two
    ("a magnet", None),
    ("答案是B。", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), SCIENCEQA_ANSWERS)
def test_scienceqa_answers_are_read_by_llavas_rule(text, expected):
    assert scienceqa.parse(text, 4) == expected


def scienceqa_folder(root: Path) -> Path:
    def problem(answer: int, image: str | None, hint: str, subject: str, grade: int) -> dict:
        return {
            "question": "Which  is it?",
            "choices": ["iron", "wood", "glass"],
            "answer": answer,
            "hint": hint,
            "image": image,
            "task": "closed choice",
            "grade": f"grade{grade}",
            "subject": subject,
            "lecture": "",
            "solution": "",
            "split": "test",
        }

    problems = {
        "1": problem(0, "image.png", "", "natural science", 2),
        "4": problem(1, None, "Look here.", "social science", 8),
        "5": problem(2, "image.png", "See.", "natural science", 6),
        "7": problem(1, None, "", "language science", 12),
        "9": problem(0, None, "", "natural science", 1),
    }
    write(root / "problems.json", problems)
    write(root / "pid_splits.json", {"test": ["4", "1", "5", "7"], "train": ["9"]})
    for pid in ("1", "5"):
        folder = root / "images" / "test" / pid
        folder.mkdir(parents=True)
        (folder / "image.png").write_bytes(b"")
    return root


def test_scienceqa_figures_by_hand(tmp_path):
    """Four problems: A right with picture, "(B)" unread, a missing picture question, B right."""
    folder = scienceqa_folder(tmp_path)
    prompts = {"1": "<image>\nWhich?", "4": "Which?", "7": "Which?"}
    rows = answers({"1": "A", "4": "(B)", "7": "B. wood", "9": "A"}, prompts)
    found = figures("scienceqa", folder, rows, "test")
    assert (found["n"], found["accuracy"]) == (4, 50.0)
    # LLaVA's: over answers whose prompt holds <image>, so the missing one is not in it
    assert (found["image_accuracy"], found["n_image"]) == (100.0, 1)
    assert found["image_accuracy_of_problems"]["value"] == 50.0
    assert (found["undecided"], found["undecided_ids"]) == (1, ["4"])
    assert (found["missing"], found["named"]["missing"]) == (1, ["5"])
    assert (found["unknown"], found["named"]["unknown"]) == (1, ["9"])  # of another split
    values = {name: (row["value"], row["n"]) for name, row in found["per_type"].items()}
    assert values == {
        "NAT": (50.0, 2), "SOC": (0.0, 1), "LAN": (100.0, 1), "TXT": (0.0, 2), "IMG": (50.0, 2),
        "NO": (100.0, 1), "G1-6": (50.0, 2), "G7-12": (50.0, 2),
    }  # fmt: skip


def test_scienceqa_without_an_image_prompt_has_no_image_accuracy(tmp_path):
    folder = scienceqa_folder(tmp_path)
    rows = answers({"1": "A", "4": "B"}, {"1": "Which?", "4": "Which?"})  # 1 has a picture
    found = figures("scienceqa", folder, rows, "test")
    assert found["image_accuracy"] is None
    assert "<image>" in found["reasons"]["image_accuracy"]


def test_scienceqa_prompts_are_llavas(tmp_path):
    folder = scienceqa_folder(tmp_path)
    by_id = {s.sample_id: s for s in load_task("scienceqa", folder, "test").questions}
    assert list(by_id) == ["4", "1", "5", "7"]  # the order of pid_splits.json
    assert by_id["1"].prompt == (  # double spaces out, an absent hint is N/A
        f"Context: N/A\nQuestion: Which is it?\nOptions: (A) iron (B) wood (C) glass\n{LETTER}"
    )
    assert by_id["1"].image == folder / "images" / "test" / "1" / "image.png"
    assert by_id["4"].prompt.startswith("Context: Look here.\n")
    reason = {s.sample_id: s for s in load_task("scienceqa", folder, "test", "reason").questions}
    assert reason["4"].prompt == (
        "Which is it?\nContext: Look here.\nOptions: (A) iron (B) wood (C) glass"
    )


def test_scienceqa_question_without_a_picture(tmp_path):
    """It has no image, is its own cluster, and makes a record like any other."""
    samples = load_task("scienceqa", scienceqa_folder(tmp_path), "test").questions
    text_only = next(sample for sample in samples if sample.sample_id == "4")
    assert (text_only.image, text_only.image_name, text_only.image_id) == (None, "", "4")
    record = make_record(Job(text_only, text_only.prompt), error="not asked")
    assert (record["sample_id"], record["references"]) == ("4", ["B"])


def test_scienceqa_bad_problems_are_named(tmp_path):
    folder = scienceqa_folder(tmp_path)
    problems = json.loads((folder / "problems.json").read_text())
    problems["1"]["answer"] = 3
    problems["5"]["choices"] = ["one"]
    del problems["4"]
    more = [str(i) for i in range(100, 130)]  # good ones, so that three bad ones are a few
    write(folder / "problems.json", problems | {pid: problems["7"] for pid in more})
    write(folder / "pid_splits.json", {"test": ["4", "1", "5", "7", *more], "train": ["9"]})
    found = load_task("scienceqa", folder, "test")
    assert [sample.sample_id for sample in found.questions] == ["7", *more]
    assert [problem.split(": ")[1] for problem in found.problems] == [
        "problem 4", "problem 1", "problem 5",
    ]  # fmt: skip
    with pytest.raises(UserError, match="no split 'dev'; it has test, train"):
        load_task("scienceqa", folder, "dev")
    with pytest.raises(MissingError, match=r"problems\.json is not there"):
        load_task("scienceqa", folder / "elsewhere")


# ------------------------------------------------------------------------------------- TextVQA

NORMALISED = [
    ("Nokia", "nokia"),
    ("The Nokia.", "nokia"),
    ("coca-cola", "coca cola"),
    ("1,500", "1500"),  # commas go first, so that no digit,digit is left to delete other marks
    ("t-shirt 1,5", "t shirt 15"),
    ("What?", "what"),
    ("John's", "john 's"),
    ("ten", "10"),
    ("dont", "don't"),
    ("9:30", "9:30"),
    ("u.s.a.", "usa"),
    (" yes\n", "yes"),
]


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_textvqa_answers_are_normalised_as_m4c(text, expected):
    assert m4c_normalise(text) == expected


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_textvqa_accuracy_leaves_one_out(matches, expected):
    """With k of ten equal: k annotators see k-1 others, 10-k see k; each counts min(1, that/3)."""
    references = ["Nokia"] * matches + [f"other {i}" for i in range(10 - matches)]
    one_by_one = [min(1, (matches - (r == "Nokia")) / 3) for r in references]
    assert sum(one_by_one) / 10 == pytest.approx(expected)
    assert textvqa.accuracy("the nokia.", references) == pytest.approx(expected)


def textvqa_folder(root: Path) -> Path:
    rows = [
        {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "What brand is it?",
         "answers": ["nokia"] * 2 + ["Nokia"] * 2 + ["lg"] * 6},
        {"question_id": 34603, "image_id": "003a8ae2ef43b901", "question": "What time?",
         "answers": ["9:30"] * 3 + ["unknown"] * 7},
        {"question_id": 34604, "image_id": "00be7a3ea7ab3b02", "question": "What brand is it?",
         "answers": ["dakota"] * 10},
    ]  # fmt: skip
    write(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    ocr = [{"image_id": "003a8ae2ef43b901", "ocr_tokens": ["NOKIA", "9:30"]}]
    write(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    return root


def test_textvqa_figures_by_hand(tmp_path):
    """LLaVA's rows: question_id is the picture, the question stands in the prompt."""
    folder = textvqa_folder(tmp_path)
    samples = load_task("textvqa", folder).questions
    said = ["Nokia", "9:30", "Dakota digital"]  # 4 of ten, 3 of ten, none
    rows = [
        {"question_id": s.image_id, "prompt": s.prompt, "text": text}
        for s, text in zip(samples, said, strict=True)
    ]
    found = figures("textvqa", folder, rows[::-1])
    assert found["accuracy"] == pytest.approx(100 * (1 + 0.9 + 0) / 3)
    assert (found["n"], found["answered"], found["prompts_with_ocr"]) == (3, 3, 3)
    by_id = answers({34602: "Nokia", 34603: "9:30"})  # TextVQA's own ids, one missing
    found = figures("textvqa", folder / "TextVQA_0.5.1_val.json", by_id)
    assert found["accuracy"] == pytest.approx(100 * 1.9 / 3)
    assert found["named"]["missing"] == ["34604"]


def test_textvqa_prompts_with_and_without_ocr(tmp_path):
    folder = textvqa_folder(tmp_path)
    prompts = {
        name: [s.prompt for s in load_task("textvqa", folder, "val", name).questions]
        for name in TASKS["textvqa"].prompts
    }
    assert prompts["ocr"][0] == (f"What brand is it?\nReference OCR token: NOKIA, 9:30\n{SHORT}")
    assert prompts["ocr"][2] == f"What brand is it?\nReference OCR token: \n{SHORT}"
    assert prompts["no_ocr"][0] == f"What brand is it?\n{SHORT}"
    assert prompts["bare"][0] == "What brand is it?"
    (folder / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    with pytest.raises(MissingError, match="--prompt no_ocr"):
        load_task("textvqa", folder, "val", "ocr")


@pytest.mark.parametrize(
    "prompt",
    [
        f"What Brand?\nReference OCR token: A, B\n{SHORT}",
        f"Reference OCR token: A\nWhat Brand?\n{SHORT}",
        f"What Brand?\n{SHORT}",
        "What Brand?",
        "OCR tokens: A B. Question: What Brand? Short answer:",
    ],
)
def test_textvqa_question_is_found_in_llavas_prompts(prompt):
    assert textvqa.question_of(prompt) == "what brand?"


def test_textvqa_answer_without_its_question_is_refused(tmp_path):
    folder = textvqa_folder(tmp_path)
    rows = [{"question_id": "003a8ae2ef43b901", "prompt": None, "text": "nokia"}]
    with pytest.raises(UserError, match="the question cannot be told"):
        figures("textvqa", folder, rows)
    rows[0]["prompt"] = f"Who is it?\n{SHORT}"
    with pytest.raises(UserError, match="to no question of these annotations"):
        figures("textvqa", folder, rows)


def test_textvqa_same_question_twice_about_a_picture(tmp_path):
    row = {"image_id": "ab", "question": "What?"}
    rows = [
        {**row, "question_id": 1, "answers": ["a b"] * 10},
        {**row, "question_id": 2, "answers": ["c d"] * 10},
    ]
    path = write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    said = [
        {"question_id": "ab", "prompt": f"What?\n{SHORT}", "text": text} for text in ("a b", "c d")
    ]
    assert figures("textvqa", path, said)["accuracy"] == 100.0
    assert figures("textvqa", path, said[::-1])["accuracy"] == 0.0


# ----------------------------------------------------------------------------------------- GQA


def gqa_folder(root: Path) -> Path:
    def question(answer: str, image: str, structural: str, group: str | None, **more: Any) -> dict:
        return {
            "question": "What color is it?",
            "answer": answer,
            "imageId": image,
            "isBalanced": True,
            "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
            "groups": {"global": group, "local": "y"},
            "semantic": [
                {"operation": "select", "argument": "car (1)", "dependencies": []},
                {"operation": "query", "argument": "name", "dependencies": [0]},
            ],
            **more,
        }

    questions = {
        "201": question("red", "n1", "query", "color"),
        "202": question("blue", "n1", "query", "color"),
        "203": question("yes", "n2", "verify", None),
        "204": question("left", "n2", "choose", None),
        "205": question("red", "n3", "query", "color", isBalanced=False),
    }
    write(root / "testdev_balanced_questions.json", questions)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red.", "red"),
        ("red..", "red"),
        ("RED", "red"),
        (" red", " red"),
        ("red. ", "red. "),
        ("", ""),
    ],
)
def test_gqa_conversion_is_llavas(text, expected):
    assert gqa.convert(text) == expected


def test_gqa_figures_by_hand(tmp_path):
    """Open: Red. right, red for blue wrong. Binary: Yes right, one missing."""
    found = figures(
        "gqa", gqa_folder(tmp_path), answers({"201": "Red.", "202": "red", "203": "Yes"})
    )
    assert (found["n"], found["accuracy"], found["open"], found["binary"]) == (4, 50.0, 50.0, 50.0)
    # color: true red 1, blue 1; predicted red 2, blue 0: (2-1)²/1 + (0-1)²/1 = 2; over 100
    assert found["distribution"] == pytest.approx(0.02)
    structural = found["per_type"]["structural"]
    assert {k: (v["value"], v["n"]) for k, v in structural.items()} == {
        "query": (50.0, 2), "verify": (100.0, 1), "choose": (0.0, 1),
    }  # fmt: skip
    assert found["per_type"]["semantic"]["attribute"]["n"] == 4
    assert list(found["per_type"]["words"]) == ["4"]
    assert list(found["per_type"]["steps"]) == ["1"]  # "query: name" ends the question
    assert found["named"]["missing"] == ["204"]


def test_gqa_distribution_by_hand():
    """True: color red 3, blue 1; place sea 2. Predicted: color red 1, blue 3; place sea 0.

    color (1-3)²/3 + (3-1)²/1 = 16/3, of 4 questions; place (0-2)²/2 = 2, of 2; weighted mean.
    """
    true = ["red", "red", "red", "blue", "sea", "sea"]
    said = ["red", "blue", "blue", "blue", "hill", None]
    samples = [
        Sample(sample_id=str(i), target=word, groups={"group": "place" if i > 3 else "color"})
        for i, word in enumerate(true)
    ]
    found = gqa.distribution(samples, [{"parsed": word} for word in said])
    assert found == pytest.approx((16 / 3 * 4 + 2 * 2) / 6 / 100)


def test_gqa_without_groups_has_no_distribution(tmp_path):
    questions = {"1": {"question": "Is it?", "answer": "yes", "imageId": "n1"}}
    path = write(tmp_path / "q.json", questions)
    found = figures("gqa", path, answers({"1": "yes"}))
    assert found["accuracy"] == 100.0
    for name in ("distribution", "binary", "open"):
        assert found[name] is None
        assert found["reasons"][name]


def test_gqa_answers_of_nothing_known_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 of 2 answers"):
        figures("gqa", gqa_folder(tmp_path), answers({"7": "red", "8": "red"}))


# --------------------------------------------------------------------------- VQAv2 and own rows


def vqav2_folder(root: Path) -> Path:
    questions = [
        {"question_id": 10 + i, "image_id": 1 + i // 2, "question": f"What {i}?"} for i in range(3)
    ]
    references = [["yes"] * 10, ["red"] * 3 + ["dark red"] * 7, ["2"] * 5 + ["two"] * 5]
    kinds = ["yes/no", "other", "number"]
    annotations = [
        {
            "question_id": q["question_id"],
            "image_id": q["image_id"],
            "question_type": "what",
            "answer_type": kind,
            "multiple_choice_answer": max(refs, key=refs.count),
            "answers": [{"answer": a, "answer_id": i + 1} for i, a in enumerate(refs)],
        }
        for q, refs, kind in zip(questions, references, kinds, strict=True)
    ]
    write(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write(root / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    return root


def test_vqav2_scores_what_llava_submits(tmp_path):
    """ "Yes" is wrong against ten times "yes" as it stands, right as LLaVA's converter sends it."""
    folder = vqav2_folder(tmp_path)
    found = figures("vqav2", folder, answers({10: "Yes", 11: "Red.", 12: "Two"}))
    assert found["accuracy"] == pytest.approx(100 * (1 + 0.9 + 1) / 3)
    assert found["protocols"]["official-2021"] == pytest.approx(96.6667)
    assert found["protocols_of_answers_as_given"]["official-2021"] == pytest.approx(63.3333)
    kinds = found["per_type"]["answer type"]
    assert {k: v["value"] for k, v in kinds.items()} == {"yes/no": 100, "other": 90, "number": 100}
    with pytest.raises(UserError, match="give the folder"):
        load_task("vqav2", folder / "v2_mscoco_val2014_annotations.json")


def test_own_rows_by_exact_match(tmp_path):
    rows = [
        {"question_id": "a", "image": "1.png", "question": "什么颜色？", "answer": "红色"},
        {"question_id": "b", "image": "1.png", "question": "How many?", "answer": "2"},
        {"question_id": "c", "image": "2.png", "question": "What?"},
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    found = figures("file", path, answers({"a": "红色。", "b": "Two", "c": "anything"}))
    assert (found["metric"], found["n"], found["accuracy"]) == ("exact match", 3, 100.0)
    assert found["headline"]["n"] == 2  # the third has no answer to compare with
    path = write_lines(tmp_path / "rows.jsonl", rows[2:])
    found = figures("file", path, answers({"c": "anything"}))
    assert found["accuracy"] is None
    assert found["reasons"]["accuracy"]


def test_own_conversations_are_asked_as_they_are_trained(tmp_path):
    """Words between pictures keep them in their places; else they come first."""
    from llava_repro.evaluation_setup import asked

    def row(text: str, *pictures: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]
        return {"id": text[:9], "image": list(pictures), "conversations": turns}

    apart, together = "First: <image> second: <image> same?", "Same?\n<image> <image>"
    path = write_lines(
        tmp_path / "chat.jsonl",
        [
            row(apart, "1.png", "2.png"),
            row(together, "1.png", "2.png"),
            row("What <image>", "1.png"),
        ],
    )
    samples = load_task("file", path, prompt="short").questions
    suffix = "\nAnswer the question using a single word or phrase."
    assert [asked(sample) for sample in samples] == [
        apart + suffix, "<image>\n<image>\nSame?" + suffix, "<image>\nWhat" + suffix,
    ]  # fmt: skip
    assert [sample.question for sample in samples] == ["First:  second:  same?", "Same?", "What"]


def test_own_messages_with_pictures_inside(tmp_path):
    """A data: URL is a picture with a name of its content; a bad row is named with its line."""
    import base64
    import io

    from PIL import Image

    from shared.images import open_image

    content = io.BytesIO()
    Image.new("RGB", (3, 2), (0, 0, 255)).save(content, "PNG")
    url = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()

    def row(url: str) -> dict[str, Any]:
        part = {"type": "image_url", "image_url": {"url": url}}
        asked = [part, {"type": "text", "text": "What color?"}]
        return {"messages": [{"role": "user", "content": asked},
                             {"role": "assistant", "content": "Blue"}]}  # fmt: skip

    rows = [row(url), row("a.png"), *[row(url)] * 3, row("https://example.org/a.png")]
    found = load_task("file", write_lines(tmp_path / "chat.jsonl", rows))
    sample = found.questions[0]
    assert open_image(sample.image).getpixel((0, 0)) == (0, 0, 255)
    assert sample.image_name.startswith("inline-")
    assert sample.image_id == found.questions[2].image_id == sample.image_name
    assert found.questions[1].image_name == "a.png"
    assert found.problems == [
        f"{tmp_path / 'chat.jsonl'} line 6: image: https://example.org/a.png is an address; "
        "download it and give the file's path"
    ]


# -------------------------------------------------------------------------------- all of them


def all_tasks(root: Path) -> dict[str, Path]:
    return {
        "vqav2": vqav2_folder(root / "vqav2"),
        "gqa": gqa_folder(root / "gqa"),
        "textvqa": textvqa_folder(root / "textvqa"),
        "scienceqa": scienceqa_folder(root / "scienceqa"),
        "pope": write_lines(root / "coco_pope_random.json", pope_rows("yn")),
        "file": write_lines(
            root / "rows.jsonl",
            [{"question_id": "a", "image": "1.png", "question": "What?", "answer": "Red"}],
        ),
    }


def test_submission_files(tmp_path):
    """What each server or script takes, with the first question answered and the rest not."""
    expected = {
        "vqav2": [{"question_id": 10, "answer": "yes"}, {"question_id": 11, "answer": ""},
                  {"question_id": 12, "answer": ""}],
        "gqa": [{"questionId": "201", "prediction": "yes"}, {"questionId": "202", "prediction": ""},
                {"questionId": "203", "prediction": ""}, {"questionId": "204", "prediction": ""}],
        "textvqa": [{"question_id": 34602, "answer": "Yes."}, {"question_id": 34603, "answer": ""},
                    {"question_id": 34604, "answer": ""}],
        "scienceqa": {"acc": 0.0, "correct": 0, "count": 4,
                      "results": {"4": -1, "1": -1, "5": -1, "7": -1},
                      "outputs": {"4": "Yes.", "1": "FAILED", "5": "FAILED", "7": "FAILED"}},
        "pope": [{"question": "Is there a thing 0 in the image?", "answer": "Yes."},
                 {"question": "Is there a thing 1 in the image?", "answer": ""}],
        "file": [{"question_id": "a", "answer": "Yes."}],
    }  # fmt: skip
    for name, path in all_tasks(tmp_path).items():
        samples = load_task(name, path).questions
        first = samples[0].sample_id
        records = {first: {"sample_id": first, "answer": "Yes.", "status": "ok", "prompt": ""}}
        content, as_lines = submission(name, records, samples)
        assert content == expected[name], name
        assert as_lines == (name in ("pope", "file"))


def test_an_error_record_is_wrong_and_counted(tmp_path):
    """Records of evaluate.py: an error has no answer; scoring them changes nothing in them."""
    for name, path in all_tasks(tmp_path).items():
        samples = load_task(name, path).questions
        records = [
            make_record(Job(sample, sample.prompt), error="the picture is broken")
            for sample in samples
        ]
        before = json.dumps(records)
        scored, metrics = score_task(name, records, samples)
        assert [row["sample_id"] for row in scored] == [sample.sample_id for sample in samples]
        assert metrics["accuracy"] == 0, name
        assert (metrics["errors"], metrics["answered"]) == (len(samples), 0)
        assert metrics["headline"]["value"] == 0
        assert json.dumps(records) == before


def test_every_prompt_choice_loads_and_unknown_ones_are_named(tmp_path):
    for name, path in all_tasks(tmp_path).items():
        for prompt in TASKS[name].prompts:
            samples = load_task(name, path, prompt=prompt).questions
            assert all(sample.prompt and "<image>" not in sample.prompt for sample in samples)
        with pytest.raises(UserError, match="unknown prompt 'poem'"):
            load_task(name, path, prompt="poem")
    with pytest.raises(UserError, match="unknown task 'mme'"):
        load_task("mme", tmp_path)


def test_missing_files_name_the_source_and_the_toy(tmp_path):
    for name in ("pope", "gqa", "textvqa", "scienceqa"):
        with pytest.raises(MissingError) as caught:
            load_task(name, tmp_path / "nothing")
        assert "https://" in str(caught.value)
        assert f"--task {name} --toy" in str(caught.value)


@pytest.mark.parametrize("task", ["gqa", "textvqa", "scienceqa", "pope"])
def test_files_of_another_layout_are_refused(tmp_path, task):
    names = {"gqa": "testdev_balanced_questions.json", "textvqa": "TextVQA_0.5.1_val.json"}
    names |= {"scienceqa": "problems.json", "pope": "coco_pope_random.json"}
    write(tmp_path / "pid_splits.json", {"test": ["1"]})
    for content in ([1, 2], {"a": 1}, []):
        write(tmp_path / names[task], content)
        with pytest.raises(UserError, match=names[task].split("_")[0].split(".")[0]):
            load_task(task, tmp_path, None, "no_ocr" if task == "textvqa" else None)
