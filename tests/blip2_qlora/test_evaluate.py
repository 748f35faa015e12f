"""evaluate.py: its files, its figures against an independent scorer, stopping and going on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from blip2_qlora import blip2
from blip2_qlora.evaluate import main
from blip2_qlora.scoring import score_run
from blip2_qlora.settings import EvaluateOptions, data_hash
from shared.options import REPO_ROOT, MissingError, UserError, parse_options, write_json
from shared.runs import find_zero_shot
from shared.summaries import change_against_base
from shared.vqa_score import PUBLISHED_UNDER, score_vqa, validate_results

SCRIPT = REPO_ROOT / "blip2_qlora" / "evaluate.py"
TINY_ROWS = REPO_ROOT / "blip2_qlora" / "data" / "tiny.jsonl"
WORDS = {"how many": "1", "what color": "red", "is there": "yes", "are there": "no"}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def results_file(run: Path) -> Path:
    (found,) = run.glob("v2_OpenEnded_*_results.json")
    return found


def official(root: Path, run: Path, split: str = "val2014") -> tuple[list, list]:
    """Questions that the run asked, and all annotations."""
    asked = {int(record["sample_id"]) for record in records(run)}
    questions = read(root / f"v2_OpenEnded_mscoco_{split}_questions.json")["questions"]
    annotations = root / f"v2_mscoco_{split}_annotations.json"
    return (
        [row for row in questions if row["question_id"] in asked],
        read(annotations)["annotations"] if annotations.is_file() else [],
    )


@pytest.fixture
def evaluate(tiny_blip2_opt, small_vqav2):
    """Runs the script's main on the tiny model and the small set; later flags win."""

    def run(folder: Path, *argv: str) -> Path:
        flags = [
            "--model", str(tiny_blip2_opt), "--device", "cpu", "--greedy",
            "--data_root", str(small_vqav2), "--output_dir", str(folder), *argv,
        ]  # fmt: skip
        main(parse_options(EvaluateOptions, description="", argv=flags))
        return folder

    return run


@pytest.fixture
def plausible_answers(monkeypatch):
    """A model that answers by the question's first words: right now and then, unlike a random one.

    What is under test here are the figures; the tiny random model would get none above 0.
    """

    def answer(self, features, picture_index, prompts):
        found = []
        for prompt in prompts:
            question = prompt.removeprefix("Question: ").lower()
            said = next((a for q, a in WORDS.items() if question.startswith(q)), "a red Circle.")
            found.append(blip2.Answer(said + "</s>", said, 0.5, 0.5, "stop", 2))
        return found

    monkeypatch.setattr(blip2.Blip2Answerer, "answer", answer)


# Files and figures


def test_a_run_writes_its_files(evaluate, small_vqav2, tmp_path, capsys):
    run = evaluate(tmp_path / "run", "--limit", "40")
    said = capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {
        "config.json", "environment.json", "predictions.jsonl", "scored.jsonl", "metrics.json",
        "v2_OpenEnded_mscoco_val2014_sample40_run_results.json", ".lock",
    }  # fmt: skip
    metrics = read(run / "metrics.json")
    assert metrics["counts"]["expected"] == metrics["counts"]["answered"] == 40
    assert metrics["counts"]["errors"] == metrics["counts"]["missing"] == 0
    assert metrics["metric"] == "VQA accuracy (official-2021)"
    assert set(metrics["protocols"]) == set(PUBLISHED_UNDER)
    assert metrics["accuracy"]["n"] == 40
    assert metrics["blind"]["n"] == 40
    assert (metrics["trained_on_scored"], metrics["metric_reason"]) == (False, None)
    assert metrics["synthetic"] == {"data": True, "model": False}
    assert "SYNTHETIC" in said
    assert said.count("  ->  ") == 5  # the five seeded cases
    config = read(run / "config.json")
    assert config["asked"]["prompt"] == "Question: {} Answer:"
    assert (config["asked"]["num_beams"], config["compute_dtype"]) == (1, "float32")
    assert read(run / "environment.json")["packages"]["torch"]


def test_the_results_file_is_what_the_server_takes(evaluate, small_vqav2, tmp_path):
    run = evaluate(tmp_path / "run", "--limit", "0")
    questions = read(small_vqav2 / "v2_OpenEnded_mscoco_val2014_questions.json")
    assert validate_results(read(results_file(run)), questions) == []
    assert results_file(run).name == "v2_OpenEnded_mscoco_val2014_run_results.json"


def test_the_results_file_of_a_sample_says_so(evaluate, small_vqav2, own_vqav2, edit_questions,
                                              tmp_path):  # fmt: skip
    """It has the server's format, and would be refused there."""
    half = evaluate(tmp_path / "half", "--limit", "30")
    assert results_file(half).name == "v2_OpenEnded_mscoco_val2014_sample30_half_results.json"
    questions = read(small_vqav2 / "v2_OpenEnded_mscoco_val2014_questions.json")
    missing, sample = validate_results(read(results_file(half)), questions)
    assert "30 questions without answer" in missing
    assert "30 of 60 questions are answered, so these are the results of a sample" in sample
    # more than there are is all of them; a row that was left out is not
    all_of_it = evaluate(tmp_path / "all", "--limit", "61")
    assert results_file(all_of_it).name == "v2_OpenEnded_mscoco_val2014_all_results.json"
    edit_questions(own_vqav2, "val2014", lambda rows: rows[0].update(question=""))
    less = evaluate(tmp_path / "less", "--data_root", str(own_vqav2), "--limit", "0")
    assert results_file(less).name == "v2_OpenEnded_mscoco_val2014_sample59_less_results.json"


@pytest.mark.parametrize("protocol", sorted(PUBLISHED_UNDER))
def test_figures_equal_an_independent_recomputation(
    evaluate, plausible_answers, small_vqav2, tmp_path, protocol
):
    """From the results file and the official annotations, by the scorer with its own sums."""
    run = evaluate(tmp_path / "run", "--limit", "40")
    metrics = read(run / "metrics.json")
    again = score_vqa(read(results_file(run)), *official(small_vqav2, run), protocol)
    assert 0 < again["overall"] < 100
    assert metrics["protocols"][protocol]["value"] == pytest.approx(again["overall"], abs=0.011)
    scored = [json.loads(line) for line in (run / "scored.jsonl").read_text().splitlines()]
    assert {int(row["sample_id"]): row["scores"][protocol] for row in scored} == pytest.approx(
        again["perQuestion"]
    )
    if protocol == "official-2021":
        assert metrics["accuracy"]["value"] == metrics["protocols"][protocol]["value"]
        for kind, key in (("per_answer_type", "perAnswerType"), ("per_question_type",
                                                                 "perQuestionType")):  # fmt: skip
            assert {name: value["value"] for name, value in metrics[kind].items()} == (
                pytest.approx(again[key], abs=0.011)
            )
            assert sum(value["n"] for value in metrics[kind].values()) == 40
        assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"]
        assert metrics["accuracy"]["value"] <= metrics["accuracy"]["high"]


def test_the_model_is_asked_like_transformers_would(
    evaluate, tiny_blip2_opt, small_vqav2, tmp_path
):
    """A record's answer equals the plain path's for the picture that the record names."""
    from shared.images import open_image
    from shared.options import ModelOptions

    run = evaluate(tmp_path / "run", "--limit", "5")
    model, processor = blip2.load_blip2(ModelOptions(model=str(tiny_blip2_opt), device="cpu"), None)
    for record in records(run):
        picture = open_image(small_vqav2 / record["image"])
        plain = blip2.generate_plain(
            model, processor, picture, record["prompt"], blip2.Decoding(num_beams=1)
        )
        assert record["answer"] == plain


def test_test2015_gives_a_results_file_and_no_accuracy(evaluate, small_vqav2, tmp_path, capsys):
    """There is nothing to score against: null with its reason, never 0."""
    run = evaluate(tmp_path / "run", "--split", "test2015", "--limit", "0")
    metrics = read(run / "metrics.json")
    assert metrics["accuracy"] == {
        "value": None, "n": 0, "reason": "no question with references"
    }  # fmt: skip
    assert metrics["protocols"] is None
    assert metrics["blind"]["value"] is None
    questions = read(small_vqav2 / "v2_OpenEnded_mscoco_test2015_questions.json")
    assert validate_results(read(results_file(run)), questions) == []
    assert "none (no question with references)" in capsys.readouterr().out


def test_own_rows_with_ten_answers_are_scored_officially(evaluate, plausible_answers, tmp_path):
    run = evaluate(tmp_path / "run", "--data", str(TINY_ROWS))
    metrics = read(run / "metrics.json")
    assert metrics["metric"] == "VQA accuracy (official-2021)"
    rows = [json.loads(line) for line in TINY_ROWS.read_text().splitlines()]
    tiny = TINY_ROWS.parent / "tiny"
    results = [
        {"question_id": int(record["sample_id"]), "answer": record["answer"]}
        for record in records(run)
    ]
    again = score_vqa(
        results,
        read(tiny / "v2_OpenEnded_mscoco_val2014_questions.json"),
        read(tiny / "v2_mscoco_val2014_annotations.json"),
    )
    assert metrics["accuracy"]["value"] == pytest.approx(again["overall"], abs=0.011)
    assert metrics["accuracy"]["n"] == len(rows) == 24
    assert not list(run.glob("*_results.json"))  # no server takes own rows


def test_own_rows_with_one_answer_are_scored_by_exact_match(
    evaluate, plausible_answers, tmp_path, capsys
):
    """The official metric gives a single reference 0 for every answer."""
    picture = (TINY_ROWS.parent / "tiny" / "val2014").glob("*.jpg").__next__()
    file = tmp_path / "own.csv"
    file.write_text(
        "image,question,answer\n"
        f"{picture},Is there a star?,Yes.\n{picture},How many shapes?,two\n"
        f"{picture},What color is it?,red\n{picture},What color is that?,\n"
    )
    run = evaluate(tmp_path / "run", "--data", str(file))
    metrics = read(run / "metrics.json")
    assert metrics["metric"] == "exact match"
    assert metrics["protocols"] is None
    assert metrics["metric_reason"].endswith("reference answers for every question; none has them")
    assert capsys.readouterr().out.count("exact match") == 1  # it is not printed beside itself
    # yes and red are right, two is not 1; the last has nothing to be compared with
    assert (metrics["accuracy"]["value"], metrics["accuracy"]["n"]) == (66.67, 3)
    assert metrics["counts"]["expected"] == 4


def test_mixed_own_rows_are_all_scored_by_the_metric_that_is_named(
    evaluate, plausible_answers, tmp_path, capsys
):
    """One row of many without ten answers used to mix exact match and VQA accuracy in one mean."""
    rows = [json.loads(line) for line in TINY_ROWS.read_text().splitlines()]
    for row in rows:
        row["image"] = str(TINY_ROWS.parent / row["image"])
    del rows[0]["answers"]
    # two of ten said what the model says: .6 officially, no exact match of the majority
    rows[1] |= {"question": "Is there a dog?", "answers": ["yes"] * 2 + ["no"] * 8}
    rows[2]["answers"] = rows[2]["answers"][:9]  # a typing error that decides the metric of all
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    run = evaluate(tmp_path / "run", "--data", str(file))
    metrics = read(run / "metrics.json")
    assert metrics["metric"] == "exact match"
    assert metrics["accuracy"] == metrics["exact_match"]
    n = len(rows)
    why = f"for every question; 2 of {n} have another number, first: 600001000 has 1"
    assert metrics["metric_reason"].endswith(why)
    said = capsys.readouterr().out
    assert said.index("note: exact match will be the metric. VQA accuracy needs 10") < said.index(
        "answered in"
    )
    assert said.count("exact match: ") == 1
    scored = [json.loads(line) for line in (run / "scored.jsonl").read_text().splitlines()]
    assert {row["score"] for row in scored} <= {0, 1}


# Bad input: the run goes on, the error is counted and counts as wrong


def test_a_missing_and_a_broken_picture(evaluate, plausible_answers, own_vqav2, tmp_path):
    whole = evaluate(tmp_path / "whole", "--data_root", str(own_vqav2), "--limit", "0")
    names = sorted({record["image"] for record in records(whole)})
    (own_vqav2 / names[0]).unlink()
    broken = own_vqav2 / names[1]
    broken.write_bytes(broken.read_bytes()[:200])
    run = evaluate(tmp_path / "run", "--data_root", str(own_vqav2), "--limit", "0")
    metrics = read(run / "metrics.json")
    bad = [record for record in records(run) if record["status"] == "error"]
    assert {record["image"] for record in bad} == set(names[:2])
    assert {"no such picture", "broken picture"} == {
        what for what in ("no such picture", "broken picture")
        for record in bad if what in record["error"]
    }  # fmt: skip
    assert metrics["counts"]["errors"] == len(bad)
    assert metrics["counts"]["answered"] == 60 - len(bad)
    before = {record["sample_id"]: record for record in records(whole)}
    assert all(
        record["answer"] == before[record["sample_id"]]["answer"]
        for record in records(run)
        if record["status"] == "ok"
    )
    # wrong in the headline, left out of the figure beside it
    again = score_vqa(read(results_file(run)), *official(own_vqav2, run))
    assert metrics["accuracy"]["value"] == pytest.approx(again["overall"], abs=0.011)
    assert metrics["accuracy"]["n"] == 60
    assert metrics["excluding_errors"]["n"] == 60 - len(bad)
    questions = read(own_vqav2 / "v2_OpenEnded_mscoco_val2014_questions.json")
    assert validate_results(read(results_file(run)), questions) == []


def test_a_question_of_5000_characters(evaluate, own_vqav2, edit_questions, tmp_path):
    """An error record that says how much room there is; all other questions are answered."""
    rows = edit_questions(own_vqav2, "val2014", lambda rows: rows[3].update(question="why " * 1250))
    run = evaluate(tmp_path / "run", "--data_root", str(own_vqav2), "--limit", "0")
    (bad,) = [record for record in records(run) if record["status"] == "error"]
    assert bad["sample_id"] == str(rows[3]["question_id"])
    assert "the model has room for 114: shorten the question" in bad["error"]
    assert read(run / "metrics.json")["counts"]["errors"] == 1


def test_bad_rows_are_counted_in_the_metrics(evaluate, own_vqav2, edit_questions, tmp_path, capsys):
    edit_questions(own_vqav2, "val2014", lambda rows: rows[0].update(question=""))
    run = evaluate(tmp_path / "run", "--data_root", str(own_vqav2), "--limit", "0")
    metrics = read(run / "metrics.json")
    assert metrics["counts"]["expected"] == 59
    assert metrics["data_problems"]["count"] == 1
    assert "row 0: question_id" in metrics["data_problems"]["first"][0]
    said = capsys.readouterr().out
    assert "note: 1 bad row of the data not used; first: v2_OpenEnded_mscoco_val2014_quest" in said
    assert "\n  1 bad rows of the data not used\n" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--limit", "-1"], "--limit -1: a number of questions, or 0 for all"),
        (["--batch_size", "0"], "at least one question at a time"),
        (["--prompt", "no place"], "must contain {} once"),
        (["--adapter", "no/such/folder"], "no/such/folder: no adapter_"),
        (["--data", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--data", str(TINY_ROWS.parent)], "data: a folder; own rows are a JSONL or CSV file"),
        (["--data_root", __file__], "test_evaluate.py: a file; --data_root takes the folder"),
        (["--model", __file__], "test_evaluate.py: a file; --model takes the folder"),
        (["--device", "cuda:99"], "--device cuda:99: this"),
    ],
)
def test_what_cannot_be_is_named_before_the_model_is_loaded(
    evaluate, tmp_path, monkeypatch, argv, message
):
    monkeypatch.setattr(blip2, "load_blip2", never)
    with pytest.raises(UserError) as error:
        evaluate(tmp_path / "run", *argv)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def never(*_: object, **__: object) -> None:
    raise AssertionError("weights were loaded")


def test_an_unwritable_output_folder_is_named_before_the_model_is_loaded(
    evaluate, tmp_path, monkeypatch
):
    monkeypatch.setattr(blip2, "load_blip2", never)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run: cannot be written"):
        evaluate(tmp_path / "file" / "run")


def test_without_data_the_script_ends_with_two_commands(tmp_path):
    """The README's first command on a new machine: status 2, no traceback."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data_root", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    what, real, toy = done.stderr.splitlines()
    assert what.startswith("error: ")
    assert what.endswith("_val2014_questions.json is not there.")
    assert "python -m shared.download vqav2" in real
    assert "--toy" in toy


def test_without_weights_the_two_commands_are_named(evaluate, tmp_path):
    with pytest.raises(MissingError, match=r"python -m shared.download org/absent(.|\n)*--toy"):
        evaluate(tmp_path / "run", "--model", "org/absent")


# Stopping and going on


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "seconds"}


def assert_same_outcome(run: Path, whole: Path) -> None:
    """Each question once with the same answer, the same metrics and the same results file."""
    assert Counter(record["sample_id"] for record in records(run)) == Counter(
        record["sample_id"] for record in records(whole)
    )
    assert set(Counter(record["sample_id"] for record in records(run)).values()) == {1}
    answers = {record["sample_id"]: record["answer"] for record in records(whole)}
    assert {record["sample_id"]: record["answer"] for record in records(run)} == answers
    assert comparable(read(run / "metrics.json")) == comparable(read(whole / "metrics.json"))
    assert read(results_file(run)) == read(results_file(whole))


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(
    evaluate, tiny_blip2_opt, small_vqav2, tmp_path, capsys
):
    """SIGKILL while it answers, then the same command: as if it had never been stopped."""
    run = tmp_path / "killed"
    flags = ["--model", str(tiny_blip2_opt), "--data_root", str(small_vqav2), "--greedy",
             "--limit", "0", "--output_dir", str(run), "--device", "cpu"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags, "--batch_size", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    predictions = run / "predictions.jsonl"
    while process.poll() is None:
        if predictions.is_file() and predictions.read_bytes().count(b"\n") >= 5:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    answered = predictions.read_bytes().count(b"\n")
    assert 5 <= answered < 60
    assert not (run / "metrics.json").exists()
    whole = evaluate(tmp_path / "whole", "--limit", "0", "--batch_size", "7")
    capsys.readouterr()
    evaluate(run, "--limit", "0")  # another batch size is allowed: it changes no answer
    assert "continuing" in capsys.readouterr().out
    assert_same_outcome(run, whole)


class Interrupted(Exception):
    """Stands in for anything that ends a process."""


def test_interrupted_in_any_batch_and_started_again(evaluate, tmp_path, monkeypatch):
    whole = evaluate(tmp_path / "whole", "--limit", "40", "--batch_size", "8")
    answer = blip2.Blip2Answerer.answer
    for stop in (1, 3):
        run, calls = tmp_path / f"stopped_{stop}", []

        def stopping(self, *arguments, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                raise Interrupted
            return answer(self, *arguments)

        monkeypatch.setattr(blip2.Blip2Answerer, "answer", stopping)
        with pytest.raises(Interrupted):
            evaluate(run, "--limit", "40", "--batch_size", "8")
        monkeypatch.undo()
        evaluate(run, "--limit", "40", "--batch_size", "8")
        assert_same_outcome(run, whole)


def test_a_finished_run_is_scored_again_without_asking(evaluate, tmp_path, monkeypatch):
    run = evaluate(tmp_path / "run", "--limit", "10")
    before = (run / "predictions.jsonl").read_bytes(), read(run / "metrics.json")
    monkeypatch.setattr(blip2.Blip2Answerer, "answer", never)
    evaluate(run, "--limit", "10")
    assert ((run / "predictions.jsonl").read_bytes(), read(run / "metrics.json")) == before


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--limit", "12"], "limit: 10 there, 12 now"),
        (["--seed", "1"], "seed: 0 there, 1 now"),
        (["--prompt", "Q: {} A:"], "prompt: None there, 'Q: {} A:' now"),
        (["--pictures", "shuffled"], "pictures: 'own' there, 'shuffled' now"),
        (["--quantization", "nf4"], "quantization: 'none' there, 'nf4' now"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(evaluate, tmp_path, argv, named):
    """The old answers would be taken for the new configuration's."""
    run = evaluate(tmp_path / "run", "--limit", "10")
    before = (run / "predictions.jsonl").read_bytes()
    with pytest.raises(UserError) as error:
        evaluate(run, "--limit", "10", *argv)
    assert named in str(error.value)
    assert (run / "predictions.jsonl").read_bytes() == before


def test_another_model_under_the_same_name_is_refused(evaluate, tiny_blip2_opt, tmp_path):
    """A toy checkpoint that was trained anew, a folder that holds another download now."""
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_blip2_opt, tmp_path / "model"))
    evaluate(tmp_path / "run", "--limit", "5", "--model", str(model))
    weights = load_file(model / "model.safetensors")
    weights["query_tokens"] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model_fingerprint: "):
        evaluate(tmp_path / "run", "--limit", "5", "--model", str(model))


def test_rows_that_were_edited_since_are_refused(evaluate, tmp_path):
    """The answers to the old questions used to be kept and scored against the old references."""
    file = tmp_path / "own.jsonl"
    picture = str(next((TINY_ROWS.parent / "tiny" / "val2014").glob("*.jpg")))
    row = {"image": picture, "question": "How many?", "answer": "1"}
    file.write_text(json.dumps(row))
    evaluate(tmp_path / "run", "--data", str(file))
    file.write_text(json.dumps(row | {"question": "What color?", "answer": "red"}))
    with pytest.raises(UserError, match=r"data_hash: "):
        evaluate(tmp_path / "run", "--data", str(file))


# The control, and the rehearsal


def test_shuffled_pictures_show_each_question_another_picture(evaluate, tmp_path, monkeypatch):
    from blip2_qlora import evaluation_setup

    opened: list[str] = []
    open_image = evaluation_setup.open_image

    def watched(path):
        opened.append(Path(path).name)
        return open_image(path)

    monkeypatch.setattr(evaluation_setup, "open_image", watched)
    own = evaluate(tmp_path / "own", "--limit", "40")
    own_opened, opened = opened.copy(), []
    monkeypatch.setattr(evaluation_setup, "open_image", lambda p: (opened.append(Path(p).name),
                                                                   open_image(p))[1])  # fmt: skip
    shuffled = evaluate(tmp_path / "shuffled", "--limit", "40", "--pictures", "shuffled")
    # the same pictures, each once, in another order; the records name the questions' own
    assert sorted(opened) == sorted(own_opened) == sorted(set(opened))
    assert all(a != b for a, b in zip(opened, own_opened, strict=True))
    pairs = {record["sample_id"]: record for record in records(own)}
    changed = [pairs[r["sample_id"]]["answer"] != r["answer"] for r in records(shuffled)]
    assert sum(changed) > 20
    assert [pairs[r["sample_id"]]["image"] for r in records(shuffled)] == [
        r["image"] for r in records(shuffled)
    ]
    assert read(shuffled / "config.json")["pictures"] == "shuffled"


@pytest.mark.parametrize("model", ["tiny", "Salesforce/blip2-opt-2.7b"])
def test_dry_run_loads_no_weights(evaluate, tiny_blip2_opt, tmp_path, monkeypatch, capsys, model):
    """Also of the real model, whose configuration the project knows without its files."""
    from transformers import Blip2ForConditionalGeneration

    monkeypatch.setattr(blip2, "load_blip2", never)
    monkeypatch.setattr(Blip2ForConditionalGeneration, "from_pretrained", never)
    name = str(tiny_blip2_opt) if model == "tiny" else model
    evaluate(tmp_path / "run", "--dry_run", "--model", name)
    said = capsys.readouterr().out
    assert "60 questions, 0 bad rows left out" in said
    shape = "3, 32, 32) -> 4 image" if model == "tiny" else "3, 224, 224) -> 32 image"
    assert shape in said
    assert "'Question: " in said
    assert " Answer:'" in said
    assert "24 GB: fits" in said
    assert not (tmp_path / "run").exists()


def test_dry_run_without_data_says_whether_the_model_fits(evaluate, tmp_path, capsys):
    """It used to need 20 GB of pictures on disk to compute a number from the configuration."""
    more = ("--data_root", str(tmp_path / "absent"), "--model", "Salesforce/blip2-opt-2.7b")
    evaluate(tmp_path / "run", "--dry_run", *more)
    said = capsys.readouterr().out
    assert "val2014_questions.json is not there." in said
    assert "python -m shared.download vqav2 --limit 1000" in said
    assert "24 GB: fits" in said
    assert not (tmp_path / "run").exists()


# Data that the adapter has learned


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """A folder with a manifest; the model is loaded without it."""
    load = blip2.load_blip2
    monkeypatch.setattr(blip2, "load_blip2", lambda options, adapter: load(options, None))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"0")

    def learned(**data: Any) -> str:
        write_json(folder / "manifest.json", {"data": data} if data else {})
        return str(folder)

    return learned


def test_scoring_what_the_adapter_learned_is_said_loudly(
    evaluate, adapter, small_vqav2, tmp_path, capsys
):
    """Only compare.py said it, and only where the paths were spelled alike."""
    learned = {"source": str(small_vqav2), "split": "train2014", "data_hash": None}
    warned = "WARNING: the adapter was trained on this very data."
    flags = ("--limit", "10", "--adapter", adapter(**learned))
    run = evaluate(tmp_path / "train", "--split", "train2014", *flags)
    said = capsys.readouterr().out
    assert said.count(warned) == 2  # before the work, and over the figures
    assert said.index(warned) < said.index("answered in") < said.rindex(warned)
    assert read(run / "metrics.json")["trained_on_scored"] is True
    run = evaluate(tmp_path / "val", *flags)
    assert warned not in capsys.readouterr().out
    assert read(run / "metrics.json")["trained_on_scored"] is False
    run = evaluate(tmp_path / "unknown", "--limit", "10", "--adapter", adapter())
    assert read(run / "metrics.json")["trained_on_scored"] is None


def test_a_copy_of_the_learned_rows_is_known(evaluate, adapter, tmp_path, capsys):
    rows = [json.loads(line) for line in TINY_ROWS.read_text().splitlines()]
    for row in rows:
        row["image"] = str(TINY_ROWS.parent / row["image"])
    copy = tmp_path / "copy.jsonl"
    copy.write_text("\n".join(map(json.dumps, rows)))
    content = data_hash("", str(copy))
    flags = ("--data", str(copy), "--adapter", adapter(source="a.jsonl", split=None,
                                                       data_hash=content))  # fmt: skip
    run = evaluate(tmp_path / "run", *flags)
    assert read(run / "metrics.json")["trained_on_scored"] is True
    copy.write_text("\n".join(map(json.dumps, rows[1:])))
    run = evaluate(tmp_path / "other", *flags)
    assert read(run / "metrics.json")["trained_on_scored"] is False


def test_blind_figures_of_each_type(small_vqav2):
    """The overall one says little: it is about half of yes/no and less of the rest."""
    from blip2_qlora.scoring import blind_metrics
    from shared.blind import blind_baseline
    from shared.vqav2 import load_split

    found = blind_metrics(small_vqav2, load_split(small_vqav2, "val2014").questions)
    annotations = {split: read(small_vqav2 / f"v2_mscoco_{split}_annotations.json")["annotations"]
                   for split in ("train2014", "val2014")}  # fmt: skip
    for key in ("answer_type", "question_type"):
        for name, figure in found[f"per_{key}"].items():
            part = [row for row in annotations["val2014"] if row[key] == name]
            expected = 100 * blind_baseline(annotations["train2014"], part)
            assert (figure["value"], figure["n"]) == (pytest.approx(expected, abs=0.006), len(part))
    assert len({figure["value"] for figure in found["per_answer_type"].values()}) > 1


# The change against the zero-shot run


@pytest.fixture
def adapted(evaluate, tmp_path):
    """A finished run, as if it had been made with an adapter."""

    def make(*argv: str) -> Path:
        run = evaluate(tmp_path / "runs" / "tuned", "--limit", "20", *argv)
        config = read(run / "config.json")
        write_json(run / "config.json", config | {"adapter": "a", "adapter_fingerprint": "1"})
        return run

    return make


def test_the_change_is_against_the_zero_shot_run_of_the_same_sample(evaluate, adapted, tmp_path):
    """Another way to name the same dtype, or a later run of another sample, is no hindrance."""
    tuned = adapted()
    zero_shot = evaluate(tmp_path / "runs" / "zero", "--limit", "20", "--dtype", "float32")
    evaluate(tmp_path / "runs" / "other", "--limit", "19")
    assert find_zero_shot(tuned) == (zero_shot, [])
    said = change_against_base(tuned)
    assert said.startswith(f"change against {zero_shot}: +0.00 points")
    (zero_shot / "predictions.jsonl").unlink()
    assert "no change to show, as the base's run can't be read" in change_against_base(tuned)


def test_a_zero_shot_run_that_differs_in_more_than_the_adapter_is_named(
    evaluate, adapted, tmp_path
):
    """It used to be: no zero-shot run of the same sample, when there was one in full precision."""
    tuned = adapted("--quantization", "nf4")
    assert change_against_base(tuned).startswith("no run of the base on the same sample")
    full = evaluate(tmp_path / "runs" / "full", "--limit", "20")
    evaluate(tmp_path / "runs" / "far", "--limit", "20", "--prompt", "Q: {} A:")
    said = change_against_base(tuned)
    assert (
        f"{full} asked the same sample, but with another quantisation ('none' there, 'nf4'" in said
    )
    assert "the same command without --adapter" in said
    exact = evaluate(tmp_path / "runs" / "exact", "--limit", "20", "--quantization", "nf4")
    assert change_against_base(tuned).startswith(f"change against {exact}: ")


# Scoring as a pure function


def record(sample_id: str, answer: str | None, references: list[str], **changes: Any) -> dict:
    return {
        "sample_id": sample_id, "image_id": sample_id, "question_type": "what", "answer": answer,
        "answer_type": "other", "references": references, "status": "ok", "error": None,
        "finish_reason": "stop",
    } | changes  # fmt: skip


def test_counts_of_empty_cut_and_failed_answers():
    rows = [
        record("1", "red", ["red"] * 10),
        record("2", "", ["red"] * 10),
        record("3", "red red red", ["red"] * 10, finish_reason="length"),
        record("4", None, ["red"] * 10, status="error", error="broken", finish_reason=None),
    ]
    _, metrics = score_run(rows, expected=5)
    assert metrics["counts"] == {
        "expected": 5, "answered": 3, "errors": 1, "missing": 1, "empty": 1, "cut": 1
    }  # fmt: skip
    assert metrics["accuracy"]["value"] == 25.0
    assert metrics["excluding_errors"]["value"] == pytest.approx(33.33)


def test_one_picture_has_no_interval():
    """The bootstrap draws pictures: from one there is nothing to draw."""
    rows = [record(str(i), "red", ["red"] * 10, image_id=1) for i in range(3)]
    _, metrics = score_run(rows, expected=3)
    assert metrics["accuracy"] == {
        "value": 100.0, "low": None, "high": None, "n": 3, "n_pictures": 1,
        "note": "one picture: no interval, no test",
    }  # fmt: skip
