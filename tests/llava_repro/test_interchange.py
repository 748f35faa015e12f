"""Answers of other tools: read, written, and read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llava_repro import interchange
from llava_repro.interchange import (
    read_answers,
    read_llava,
    read_lmms_eval,
    read_vlmevalkit,
    vlmevalkit_samples,
    write_llava,
    write_vlmevalkit,
)
from llava_repro.tasks import Sample, match_answers, score_task
from shared.options import UserError


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pope_sample(number: int, label: str) -> Sample:
    return Sample(
        sample_id=str(number),
        image=Path("a.jpg"),
        image_name="a.jpg",
        image_id="a.jpg",
        question=f"Is there a thing {number}?",
        references=(label,),
        question_type="random",
        answer_type="yes/no",
        target=label,
        prompt=f"Is there a thing {number}?\nAnswer.",
        llava_id=number,
    )


def choice_sample(key: str, image: Path | None) -> Sample:
    return Sample(
        sample_id=key,
        image=image,
        image_name=str(image or ""),
        image_id=key,
        question="Which?",
        references=("B",),
        question_type="natural science",
        answer_type="multiple choice",
        target="B",
        prompt="Context: N/A\nWhich?",
        llava_id=key,
        choices=("iron", "wood, or cork", "glass")[: 3 if key == "5" else 2],
        correct=1,
    )


POPE = [pope_sample(1, "yes"), pope_sample(2, "no"), pope_sample(3, "no")]
RECORDS = {
    "1": {"sample_id": "1", "answer": "Yes", "status": "ok", "prompt": "USER: <image> ..."},
    "2": {"sample_id": "2", "answer": 'No, it\'s\t"none"\nat all.', "status": "ok", "prompt": None},
    "3": {"sample_id": "3", "answer": None, "status": "error", "prompt": None},
}


def scored(rows: list[dict[str, Any]], samples: list[Sample], task: str = "pope") -> dict[str, Any]:
    return score_task(task, match_answers(task, rows, samples), samples)[1]


def test_llava_answers_are_written_as_llavas_scripts_read_them(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert write_llava(path, POPE, RECORDS, "our-model") == 2  # no line for an error
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert first == {
        "question_id": 1,
        "prompt": "Is there a thing 1?\nAnswer.",
        "text": "Yes",
        "answer_id": "1",
        "model_id": "our-model",
        "metadata": {},
        "category": "random",
    }
    metrics = scored(read_llava(path), POPE)
    assert (metrics["confusion"]["TP"], metrics["confusion"]["TN"], metrics["missing"]) == (1, 1, 1)


def test_llava_answers_of_scienceqa_show_their_picture(tmp_path):
    """eval_science_qa.py tells the questions with a picture by <image> in the prompt."""
    samples = [choice_sample("4", None), choice_sample("5", Path("5/image.png"))]
    records = {key: {"sample_id": key, "answer": "B", "status": "ok"} for key in "45"}
    write_llava(tmp_path / "a.jsonl", samples, records, "m")
    rows = read_llava(tmp_path / "a.jsonl")
    assert [row["prompt"].startswith("<image>\nContext") for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1, "text": "Yes"', "line 2: not valid JSON"),
        ('["Yes"]', "line 2: expected a JSON object"),
        ('{"id": 1, "text": "Yes"}', "line 2: no question_id"),
        ('{"question_id": 1, "text": null}', "line 2: text is None"),
        ('{"question_id": 1, "prediction": "Yes"}', "line 2: text is None"),
    ],
)
def test_llava_answers_in_another_layout_name_the_line(tmp_path, line, message):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question_id": 1, "text": "Yes"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_llava(path)


def test_no_answers_at_all(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        read_llava(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_llava(tmp_path / "b.jsonl")


def test_our_own_records(tmp_path):
    path = write_lines(tmp_path / "predictions.jsonl", list(RECORDS.values()))
    metrics = scored(read_answers(path, "records", POPE), POPE)
    assert (metrics["answered"], metrics["errors"], metrics["missing"]) == (2, 1, 0)


@pytest.mark.parametrize("suffix", [".tsv", ".json"])
def test_vlmevalkit_predictions_come_back_as_they_were(tmp_path, suffix):
    """Quotes, tabs and line feeds in an answer; a failure as VLMEvalKit keeps its own."""
    path = tmp_path / f"ours_POPE{suffix}"
    write_vlmevalkit(path, POPE, RECORDS)
    rows = read_vlmevalkit(path)
    assert [(row["question_id"], row["text"], row["status"]) for row in rows] == [
        ("1", "Yes", "ok"),
        ("2", RECORDS["2"]["answer"], "ok"),
        ("3", "Failed to obtain answer", "error"),
    ]
    assert scored(rows, POPE)["errors"] == 1
    samples = vlmevalkit_samples(path, "pope")  # the file holds the references, too
    assert [(s.question, s.target) for s in samples] == [(s.question, s.target) for s in POPE]
    assert scored(rows, samples)["accuracy"] == scored(rows, POPE)["accuracy"] == 2 / 3


def test_vlmevalkit_columns_are_those_that_it_reads(tmp_path):
    path = tmp_path / "ours.tsv"
    write_vlmevalkit(path, POPE, RECORDS)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert rows[0] == {
        "index": "1", "question": "Is there a thing 1?", "answer": "Yes", "category": "random",
        "prediction": "Yes",
    }  # fmt: skip
    samples = [choice_sample("4", None), choice_sample("5", None)]
    records = {"4": {"sample_id": "4", "answer": "B", "status": "ok"}}
    write_vlmevalkit(path, samples, records)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert (rows[0]["B"], rows[0]["C"], rows[1]["C"]) == ("wood, or cork", "", "glass")
    assert rows[0]["answer"] == "B"


def test_vlmevalkit_multiple_choice_is_scored_from_its_own_file(tmp_path):
    """As pandas writes it to JSON: numbers for digits, NaN for an empty cell."""
    rows = [
        {"index": 3, "question": "Which?", "A": "iron", "B": "wood", "C": float("nan"),
         "answer": "B", "category": "physics", "prediction": "B"},
        {"index": 8, "question": "How many?", "A": 1.0, "B": 2.0, "C": 3.0, "answer": "A",
         "category": "math", "prediction": "It is (A)"},
    ]  # fmt: skip
    path = tmp_path / "m_ScienceQA_TEST.json"
    path.write_text(json.dumps(rows))
    samples = vlmevalkit_samples(path, "scienceqa")
    assert [sample.choices for sample in samples] == [("iron", "wood"), ("1", "2", "3")]
    metrics = scored(read_vlmevalkit(path), samples, "scienceqa")
    assert (metrics["accuracy"], metrics["undecided"]) == (50.0, 1)
    assert metrics["n_image"] == 2  # all of that file's questions have a picture


def test_vlmevalkit_ten_answers_are_read_as_a_literal(tmp_path):
    rows = [
        {"index": 1, "question": "What?", "answer": str(["nokia"] * 3 + ["lg"] * 7),
         "prediction": "Nokia"},
    ]  # fmt: skip
    path = tmp_path / "m_TextVQA_VAL.json"
    path.write_text(json.dumps(rows))
    samples = vlmevalkit_samples(path, "textvqa")
    assert scored(read_vlmevalkit(path), samples, "textvqa")["accuracy"] == pytest.approx(90)
    assert interchange._listed("[print('x')]") == ("[print('x')]",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.xlsx", "x", r"\.tsv or \.json is read"),
        ("m.json", '{"a": 1}', "a JSON list of objects"),
        ("m.tsv", "index\tquestion\n1\tWhat?\n", "row 1: no column prediction"),
        ("m.tsv", "index\tquestion\tprediction\n1\ta\tb\tc\n", "row 1: more fields"),
    ],
)
def test_vlmevalkit_files_in_another_layout(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_vlmevalkit(path)


def test_vlmevalkit_file_of_another_task(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text("index\tquestion\tanswer\tprediction\n1\tWhat?\tred\tred\n")
    with pytest.raises(UserError, match="row 1: answer is 'red'; not pope"):
        vlmevalkit_samples(path, "pope")
    with pytest.raises(UserError, match="not scienceqa"):
        vlmevalkit_samples(path, "scienceqa")


def lmms_row(doc_id: int, said: Any, **more: Any) -> dict[str, Any]:
    """A line of *_samples_*.jsonl; the document is not in it."""
    sample = POPE[doc_id]
    return {
        "doc_id": doc_id,
        "target": sample.target,
        "filtered_resps": said,
        "doc_hash": "0" * 64,
        "input": f"{sample.question}\nAnswer the question using a single word or phrase.",
    } | more


def test_lmms_eval_samples_by_question_id(tmp_path):
    """The metrics carry the question's id; filtered_resps is a text or a list of one."""
    rows = [
        lmms_row(i, said, pope_accuracy={"question_id": str(3 - i), "score": 0.0})
        for i, said in enumerate(["No.", ["no"], [["Yes"]]])
    ]
    found = read_lmms_eval(write_lines(tmp_path / "s.jsonl", rows), POPE)
    assert [(row["question_id"], row["text"]) for row in found] == [
        ("3", "No."), ("2", "no"), ("1", "Yes"),
    ]  # fmt: skip
    assert scored(found, POPE)["accuracy"] == 1.0  # "No." too, which lmms-eval counts as wrong


def test_lmms_eval_samples_by_position(tmp_path):
    """The same ids in several splits say nothing, so the place in the data set decides."""
    rows = [lmms_row(i, "no", pope_accuracy={"question_id": "1"}) for i in (2, 1)]
    found = read_lmms_eval(write_lines(tmp_path / "s.jsonl", rows), POPE)
    assert [row["question_id"] for row in found] == ["3", "2"]
    rows[0]["target"] = "yes"
    with pytest.raises(UserError, match=r"line 1: doc_id 2 is .* another split or order"):
        read_lmms_eval(write_lines(tmp_path / "s.jsonl", rows), POPE)
    rows[0] = lmms_row(2, "no", input="Is there a cat?")
    with pytest.raises(UserError, match="another split or order"):
        read_lmms_eval(write_lines(tmp_path / "s.jsonl", rows), POPE)
    rows[0] = lmms_row(2, "no") | {"doc_id": 3}
    with pytest.raises(UserError, match="doc_id is 3, of 3 questions"):
        read_lmms_eval(write_lines(tmp_path / "s.jsonl", rows), POPE)
    with pytest.raises(UserError, match="line 1: filtered_resps is"):
        read_lmms_eval(write_lines(tmp_path / "s.jsonl", [lmms_row(0, ["a", "b"])]), POPE)


def test_lmms_eval_scienceqa_counts_the_questions_with_a_picture(tmp_path):
    """Its prompts never hold <image>; our annotations know which questions have a picture."""
    samples = [choice_sample("4", None), choice_sample("5", Path("5/image.png"))]
    rows = [
        {"doc_id": i, "target": "B", "filtered_resps": said, "input": "Context: N/A\nWhich?"}
        for i, said in enumerate(["A", "B"])
    ]
    found = read_lmms_eval(write_lines(tmp_path / "s.jsonl", rows), samples)
    metrics = scored(found, samples, "scienceqa")
    assert (metrics["accuracy"], metrics["image_accuracy"], metrics["n_image"]) == (50, 100, 1)
    assert not metrics["reasons"]


def test_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match="one of llava, records, vlmevalkit, lmms-eval"):
        read_answers(tmp_path, "csv", POPE)
