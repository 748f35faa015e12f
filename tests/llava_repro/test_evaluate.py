"""evaluate.py: each benchmark's files in and out, other tools' answers, stopping and going on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_repro import judge, score
from llava_repro.evaluate import main
from llava_repro.evaluation_scoring import sample_of, verify_run
from llava_repro.evaluation_settings import EvaluateOptions, task_of, toy_defaults
from llava_repro.evaluation_setup import shuffled
from llava_repro.tasks import TASKS, load_task
from shared.answering import Answer
from shared.options import REPO_ROOT, MissingError, UserError, parse_options
from shared.runs import read_run

SCRIPT = REPO_ROOT / "llava_repro" / "evaluate.py"
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
SHORT = "\nAnswer the question using a single word or phrase."


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 30), list(COLORS.values())[i % 3]).save(folder / name)


def write_benchmarks(root: Path) -> Path:
    """Six small sets in their official layouts, three pictures each: red, green, blue."""
    colors = list(COLORS)
    names = [f"COCO_val2014_{i:012d}.jpg" for i in (1, 2, 3)]
    write_pictures(root / "pope" / "val2014", names)
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": 1 + 2 * i + k, "image": name, "text": f"Is there a {thing} in it?",
             "label": label}
            for i, name in enumerate(names)
            for k, (thing, label) in enumerate([(colors[i], "yes"), ("dog", "no")])
        ]  # fmt: skip
        write_rows(root / "pope" / f"coco_pope_{split}.json", rows)

    problems = {}
    for i in range(8):
        problems[str(i)] = {
            "question": f"Which color is number {i}?", "choices": colors, "answer": i % 3,
            "hint": "", "image": "image.png" if i % 2 else None, "subject": "natural science",
            "grade": "grade2",
        }  # fmt: skip
        if i % 2:
            write_pictures(root / "scienceqa" / "images" / "test" / str(i), ["image.png"])
    write(root / "scienceqa" / "problems.json", problems)
    splits = {"train": ["6", "7"], "val": [], "test": [str(i) for i in range(6)]}
    write(root / "scienceqa" / "pid_splits.json", splits)

    write_pictures(root / "gqa" / "images", [f"n{i}.jpg" for i in range(3)])
    kinds = [("What color is it?", "query"), ("Is it dark?", "verify")]
    questions = {
        f"0{i}{k}": {
            "question": kinds[k][0], "answer": (colors[i], "yes")[k], "imageId": f"n{i}",
            "isBalanced": True, "types": {"structural": kinds[k][1], "semantic": "attr"},
            "groups": {"global": "color" if k == 0 else None},
        }
        for i in range(3) for k in range(2)
    }  # fmt: skip
    write(root / "gqa" / "testdev_balanced_questions.json", questions)

    write_pictures(root / "textvqa" / "train_images", [f"t{i}.jpg" for i in range(3)])
    texts = [
        {"question_id": 10 + i, "image_id": f"t{i}", "question": "what is written?",
         "answers": [colors[i]] * 6 + ["stop"] * 4}
        for i in range(3)
    ]  # fmt: skip
    write(root / "textvqa" / "TextVQA_0.5.1_val.json", {"data": texts})
    ocr = [{"image_id": f"t{i}", "ocr_tokens": ["STOP", colors[i]]} for i in range(3)]
    write(root / "textvqa" / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})

    for split, first in (("val2014", 1), ("train2014", 11)):
        ids = [first + i for i in range(3)]
        write_pictures(root / "vqav2" / split, [f"COCO_{split}_{i:012d}.jpg" for i in ids])
        asked = [{"image_id": i, "question": "What color is it?", "question_id": 10 * i}
                 for i in ids]  # fmt: skip
        write(root / "vqav2" / f"v2_OpenEnded_mscoco_{split}_questions.json",
              {"data_subtype": split, "questions": asked})  # fmt: skip
        annotations = [
            {"question_id": 10 * i, "image_id": i, "question_type": "what color is",
             "answer_type": "other", "multiple_choice_answer": colors[k],
             "answers": [{"answer": a} for a in [colors[k]] * 7 + ["dark " + colors[k]] * 3]}
            for k, i in enumerate(ids)
        ]  # fmt: skip
        write(root / "vqav2" / f"v2_mscoco_{split}_annotations.json",
              {"data_subtype": split, "annotations": annotations})  # fmt: skip

    captions = [
        {"image_id": i, "caption": text.format(colors[i - 1])}
        for i in (1, 2, 3) for text in ("a plain {} picture", "One {} picture!")
    ]  # fmt: skip
    write(root / "vqav2" / "annotations" / "captions_val2014.json", {"annotations": captions})

    write_pictures(root / "own", ["0.png", "1.png", "2.png", "3.png"])
    chat = [
        ("one", ["0.png"], "What color is it?", "Red."),
        ("two", ["0.png", "1.png"], "Which is red?", "first"),
        ("three", ["2.png", "3.png"], "Which is red?", "second"),
        ("none", [], "Say hello", "hello"),
        ("zh", ["2.png"], "这是什么颜色？", "蓝色。"),
    ]
    rows = [
        {"id": key, "image": images, "question_type": "what", "language": "zh" if key == "zh"
         else "en", "conversations": [
             {"from": "human", "value": "<image>\n" * len(images) + question},
             {"from": "gpt", "value": answer}]}
        for key, images, question, answer in chat
    ]  # fmt: skip
    for row in rows:
        if not row["image"]:
            del row["image"]
    write_rows(root / "own" / "chat.jsonl", rows)
    return root


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read them, don't write into them."""
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def source_flags(root: Path, task: str) -> list[str]:
    if task == "file":
        return ["--data", str(root / "own" / "chat.jsonl")]
    return ["--data_root", str(root / TASKS[task].data_folder)]


@pytest.fixture
def evaluate(tiny_llava_folder: Callable[..., Path], benchmarks: Path) -> Callable[..., Path]:
    """Runs the script's main on a tiny model and the small sets; later flags win."""

    def run(folder: Path, task: str, *argv: str, root: Path = benchmarks) -> Path:
        flags = [
            "--task", task, "--model", str(tiny_llava_folder()), "--device", "cpu", "--limit", "0",
            "--max_new_tokens", "4", *source_flags(root, task), "--output_dir", str(folder), *argv,
        ]  # fmt: skip
        main(parse_options(EvaluateOptions, description="", argv=flags))
        return folder

    return run


@pytest.fixture
def plausible_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says what the words suggest: right now and then, unlike a random one."""
    from llava_repro.answering import LlavaAnswerer

    def answer(self, features, picture_index, prompts):
        found = []
        for prompt in prompts:
            said = "Yes" if "Is " in prompt else "red"
            said = "B" if "Options:" in prompt else "No." if "dog" in prompt else said
            said = "A plain red picture." if "caption" in prompt else said
            found.append(Answer(said + "</s>", said, 0.5, 0.5, "stop", 2))
        return found

    monkeypatch.setattr(LlavaAnswerer, "answer", answer)


def score_py(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """What score.py prints."""
    capsys.readouterr()
    score.main(score.ScoreOptions(**options))
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------------------------------ files and figures

EXPECTED = {
    # by hand: what the plausible answers get
    "pope": 100 * 6 / 6,  # every color is there, no dog is
    "scienceqa": 100 * 2 / 6,  # B is right for 1 and 4
    "gqa": 100 * 4 / 6,  # red once, "Yes" three times: GQA's conversion makes it yes
    "textvqa": 100 / 3,  # red for one of three pictures: six of ten said so
    "vqav2": 100 / 3,
    "file": 100 * 1 / 5,  # red; which of two, hello and Chinese are wrong
    # BLEU-4: of 4, 3, 2, 1 n-grams a picture all for red; "a plain" and "picture" for the others
    "caption": 100 * (10 / 12 * 5 / 9 * 2 / 6 * 1 / 3) ** 0.25,
}
OFFICIAL = {
    "pope": "coco_pope_{}_answers.jsonl",
    "scienceqa": "scienceqa_test_result.json",
    "gqa": "testdev_balanced_predictions.json",
    "textvqa": "textvqa_val_submission.json",
    "vqav2": "v2_OpenEnded_mscoco_val2014_run_results.json",
    "caption": "captions_val2014_run_results.json",
}
ALWAYS = {"config.json", "environment.json", "predictions.jsonl", "scored.jsonl", "metrics.json",
          "answers.jsonl", "vlmevalkit.tsv", ".lock"}  # fmt: skip


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_writes_its_files_and_the_figures_of_score_py(
    task, evaluate, plausible_answers, benchmarks, tmp_path, capsys
):
    run = evaluate(tmp_path / "run", task)
    metrics = read(run / "metrics.json")
    assert metrics["accuracy"]["value"] == pytest.approx(EXPECTED[task], abs=0.006)
    own = OFFICIAL.get(task, "")
    splits = ("random", "popular", "adversarial") if task == "pope" else ("",)
    assert {path.name for path in run.iterdir()} == ALWAYS | (
        {own.format(split) for split in splits} if own else set()
    ) | {f"answers_{split}.jsonl" for split in splits if split}
    samples = load_task(task, Path(source_flags(benchmarks, task)[1]),
                        "all" if task == "pope" else None).questions  # fmt: skip
    assert Counter(r["sample_id"] for r in records(run)) == Counter(s.sample_id for s in samples)
    assert metrics["counts"] == {"expected": len(samples), "answered": len(samples), "errors": 0,
                                 "missing": 0, "empty": 0, "cut": 0}  # fmt: skip
    # from LLaVA's answers and the official files, by the script without a model
    again = score_py(
        capsys, task=task, answers=str(run / "answers.jsonl"),
        annotations=source_flags(benchmarks, task)[1], split="all" if task == "pope" else None,
    )  # fmt: skip
    assert metrics["official"] == {k: again[k] for k in metrics["official"]}
    assert metrics["official"].keys() >= {"n", "accuracy"}
    # and where neither model nor data is looked at
    assert verify_run(read_run(run)) == []
    assert metrics["blind"]["n"] == (0 if task == "caption" else len(samples))


def test_records_hold_what_is_scored(evaluate, plausible_answers, benchmarks, tmp_path):
    """A sample made of its record alone is scored as the official row is."""
    run = evaluate(tmp_path / "run", "scienceqa")
    samples = {s.sample_id: s for s in load_task("scienceqa", benchmarks / "scienceqa").questions}
    for record in records(run):
        made, own = sample_of(record), samples[record["sample_id"]]
        for name in ("choices", "correct", "target", "references", "groups", "image_name"):
            assert getattr(made, name) == getattr(own, name), name
        assert record["prompt"].startswith("<image>\n") == (own.image is not None)


def test_the_model_is_asked_as_one_question_at_a_time(
    evaluate, tiny_llava_folder, benchmarks, tmp_path
):
    """Several pictures, none, and one: all in one batch, each with its own pictures."""
    from llava_repro.answering import LlavaAnswerer, load_llava
    from llava_repro.asking import Decoding

    run = evaluate(tmp_path / "run", "file")
    answerer = LlavaAnswerer(
        *load_llava(str(tiny_llava_folder()), device="cpu"), Decoding(max_new_tokens=4)
    )
    found = records(run)
    assert {record["image"] for record in found} == {
        "0.png", "0.png + 1.png", "2.png + 3.png", "", "2.png",
    }  # fmt: skip
    for record in found:
        names = [name for name in record["image"].split(" + ") if name]
        pictures = [Image.open(benchmarks / "own" / name).convert("RGB") for name in names]
        features = answerer.encode_images(pictures)
        (alone,) = answerer.answer(features, [list(range(len(names)))], [record["prompt"]])
        assert record["raw_output"] == alone.raw_output
    assert len({record["raw_output"] for record in found}) > 1


def test_words_of_the_picture_are_a_named_choice(evaluate, plausible_answers, tmp_path):
    with_words = evaluate(tmp_path / "ocr", "textvqa")
    without = evaluate(tmp_path / "no_ocr", "textvqa", "--prompt", "no_ocr")
    assert records(with_words)[0]["prompt"] == (
        "<image>\nwhat is written?\nReference OCR token: STOP, red" + SHORT
    )
    assert records(without)[0]["prompt"] == "<image>\nwhat is written?" + SHORT
    assert read(with_words / "metrics.json")["official"]["prompts_with_ocr"] == 3
    assert read(without / "metrics.json")["official"]["prompts_with_ocr"] == 0
    assert read(without / "config.json")["asked"]["prompt"] == "no_ocr"


def test_pope_is_told_per_split_with_the_yes_ratio_of_the_answers(
    evaluate, plausible_answers, tmp_path, capsys
):
    run = evaluate(tmp_path / "run", "pope")
    splits = read(run / "metrics.json")["official"]["splits"]
    assert splits.keys() == {"random", "popular", "adversarial"}
    assert all(figures["yes_ratio"] == 0.5 and figures["f1"] == 1 for figures in splits.values())
    said = capsys.readouterr().out
    assert "popular: accuracy 1, precision 1, recall 1, f1 1, yes_ratio 0.5" in said
    assert "blind (commonest answer per question type of these questions themselves" in said


def test_pope_answers_of_each_split_have_the_numbers_of_its_file(
    evaluate, plausible_answers, benchmarks, tmp_path, capsys
):
    """As LLaVA's eval_pope.py takes them: an answers file is its --question-file too, `category`
    tells the split, and answers and labels are paired by their order."""
    run = evaluate(tmp_path / "run", "pope")
    figures = read(run / "metrics.json")["official"]["splits"]
    for split in ("random", "popular", "adversarial"):
        labels = [
            json.loads(line)
            for line in (benchmarks / "pope" / f"coco_pope_{split}.json").read_text().splitlines()
        ]
        for name in ("answers.jsonl", f"answers_{split}.jsonl"):
            rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
            questions = {row["question_id"]: row for row in rows}
            own = [r for r in rows if questions[r["question_id"]]["category"] == split]
            said = ["no" if "No" in row["text"] else "yes" for row in own]
            right = [a == row["label"] for a, row in zip(said, labels, strict=True)]
            assert sum(right) / len(right) == figures[split]["accuracy"]
        assert [row["question_id"] for row in rows] == [row["question_id"] for row in labels]
        again = score_py(
            capsys, task="pope", answers=str(run / f"answers_{split}.jsonl"),
            annotations=str(benchmarks / "pope"), split=split,
        )  # fmt: skip
        assert {key: again[key] for key in figures[split]} == figures[split]


@pytest.mark.parametrize(
    ("task", "value", "learned_from"),
    [
        ("pope", 50.0, "these questions themselves"),
        # problems 6 and 7 have the answers A and B: A wins the tie, right for 0 and 3
        ("scienceqa", 33.33, "the train split"),
        # blue, green, red once each: blue wins the tie
        ("vqav2", 33.33, "the train split"),
    ],
)
def test_the_blind_baseline(task, value, learned_from, evaluate, plausible_answers, tmp_path):
    blind = read(evaluate(tmp_path / "run", task) / "metrics.json")["blind"]
    assert (blind["value"], blind["learned_from"]) == (value, learned_from)
    kinds = blind["per_answer_type"].values()
    assert sum(kind["n"] * kind["value"] for kind in kinds) / blind["n"] == pytest.approx(value)


def test_a_sample_says_so_in_its_files(evaluate, plausible_answers, tmp_path):
    run = evaluate(tmp_path / "run", "gqa", "--limit", "4")
    assert len(read(run / "testdev_balanced_sample4_predictions.json")) == 4
    assert read(run / "metrics.json")["counts"]["expected"] == 4


def test_shuffled_pictures_are_others_and_as_many(benchmarks):
    samples = load_task("file", benchmarks / "own" / "chat.jsonl").questions
    dealt = shuffled(samples, 0)
    own = {s.sample_id: (s.image, *s.more_images) for s in samples if s.image is not None}
    assert dealt.keys() == own.keys()  # not the question without a picture
    for key, pictures in dealt.items():
        assert len(pictures) == len(own[key])
        assert pictures[0] != own[key][0]


# ---------------------------------------------------------------------------------- bad input


def test_a_missing_picture_is_an_error_that_counts_as_wrong(evaluate, plausible_answers, tmp_path):
    root = write_benchmarks(tmp_path / "data")
    (root / "gqa" / "images" / "n0.jpg").unlink()
    run = evaluate(tmp_path / "run", "gqa", root=root)
    metrics = read(run / "metrics.json")
    assert metrics["counts"]["errors"] == 2
    assert metrics["accuracy"]["value"] == pytest.approx(100 * 2 / 6, abs=0.006)
    assert metrics["excluding_errors"] == {**metrics["excluding_errors"], "value": 50.0, "n": 4}
    assert "no such picture" in next(r["error"] for r in records(run) if r["error"])
    predictions = read(run / "testdev_balanced_predictions.json")
    assert sum(row["prediction"] == "" for row in predictions) == 2


def test_rows_left_out_are_said_at_the_end(
    evaluate, plausible_answers, benchmarks, tmp_path, capsys
):
    evaluate(tmp_path / "whole", "pope")
    assert "left out" not in capsys.readouterr().out
    root = write_benchmarks(tmp_path / "data")
    with (root / "pope" / "coco_pope_random.json").open("a") as file:
        file.write('{"question_id": 99}\n')
    evaluate(tmp_path / "run", "pope", root=root)
    said = capsys.readouterr().out
    assert "1 bad rows of the data left out" in said
    assert "coco_pope_random.json line" in said


def never(*_: object, **__: object) -> None:
    raise AssertionError("weights were loaded")


@pytest.mark.parametrize(
    ("task", "argv", "message"),
    [
        ("pope", ["--limit", "-1"], "--limit -1: a number of questions, 0 for all"),
        ("pope", ["--batch_size", "0"], "--batch_size 0"),
        ("pope", ["--split", "val"], "coco_pope_val.json is not there"),
        ("pope", ["--split", "nope"], "--split nope: pope has random, popular, adversarial, all;"),
        ("gqa", ["--split", "nope"], "--split nope: gqa has testdev_balanced, val_balanced,"),
        ("textvqa", ["--split", "nope"], "--split nope: textvqa has val, train, test;"),
        ("scienceqa", ["--split", "nope"], "no split 'nope'; it has"),
        ("vqav2", ["--split", "nope"], "unknown split 'nope'; VQAv2 has"),
        ("pope", ["--answers", "a.jsonl", "--pictures", "shuffled"], "--answers asks none"),
        ("pope", ["--answered_only"], "--answered_only is for --answers FILE"),
        ("pope", ["--prompt", "ocr"], "--task pope --prompt ocr: one of short"),
        ("pope", ["--data", "rows.jsonl"], "--data is for --task file"),
        ("pope", ["--judge_endpoint", "http://x/v1"], "--judge_endpoint needs --judge_model"),
        ("pope", ["--judge_endpoint", "http://x/v1", "--judge_model", "m"], "no multiple-choice"),
        ("gqa", ["--max_new_tokens", "-1"], "--max_new_tokens -1: at least 1"),
        ("gqa", ["--adapter", "no/such/folder"], "no/such/folder: no adapter_"),
        ("gqa", ["--model", "org/absent"], "python -m shared.download org/absent"),
        ("file", ["--data", "absent.jsonl"], "absent.jsonl: no such file"),
    ],
)
def test_what_cannot_be_is_named_before_the_model_is_loaded(
    task, argv, message, evaluate, tmp_path, monkeypatch
):
    from llava_repro import answering

    monkeypatch.setattr(answering, "load_llava", never)
    with pytest.raises(UserError) as error:
        evaluate(tmp_path / "run", task, *argv)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_without_task_or_rows_the_message_says_which_there_are():
    tasks = r"--task vqav2\|gqa\|textvqa\|scienceqa\|pope\|caption\|file"
    with pytest.raises(UserError, match=tasks):
        EvaluateOptions()
    with pytest.raises(UserError, match="--task file: which rows"):
        EvaluateOptions(task="file")


def test_without_data_the_message_names_the_toy(evaluate, tmp_path):
    with pytest.raises(MissingError, match=r"--task pope --toy"):
        evaluate(tmp_path / "run", "pope", "--data_root", str(tmp_path))


# -------------------------------------------------------------------------- other tools' answers


def score_file(evaluate, folder: Path, task: str, file: Path, *argv: str) -> dict[str, Any]:
    run = evaluate(folder, task, "--answers", str(file), *argv)
    assert verify_run(read_run(run)) == []
    return read(run / "metrics.json")


@pytest.mark.parametrize("task", ["pope", "scienceqa", "textvqa", "vqav2", "gqa", "file"])
def test_our_files_are_read_back_to_the_same_figures(
    task, evaluate, plausible_answers, tmp_path, monkeypatch
):
    """LLaVA's answers, VLMEvalKit's table and our records, without a model."""
    from llava_repro import answering

    run = evaluate(tmp_path / "run", task)
    metrics = read(run / "metrics.json")
    monkeypatch.setattr(answering, "load_llava", never)
    for answers_format, name in (("llava", "answers.jsonl"), ("vlmevalkit", "vlmevalkit.tsv"),
                                 ("records", "predictions.jsonl")):  # fmt: skip
        again = score_file(evaluate, tmp_path / answers_format, task, run / name,
                           "--answers_format", answers_format)  # fmt: skip
        assert again["accuracy"] == metrics["accuracy"]
        assert again["counts"] == metrics["counts"]
        assert again["official"]["accuracy"] == metrics["official"]["accuracy"]


def test_a_vlmevalkit_file_alone_holds_questions_and_references(evaluate, tmp_path, capsys):
    file = tmp_path / "M_POPE.tsv"
    file.write_text(
        "index\tquestion\tanswer\tcategory\tprediction\n"
        "0\tIs there a dog?\tYes\trandom\tYes\n1\tIs there a cat?\tNo\trandom\tYes\n"
        "2\tIs there a cow?\tNo\trandom\tFailed to obtain answer via API.\n"
    )
    flags = ["--task", "pope", "--answers", str(file), "--answers_format", "vlmevalkit",
             "--output_dir", str(tmp_path / "run")]  # fmt: skip
    main(parse_options(EvaluateOptions, description="", argv=flags))
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["accuracy"]["value"] == pytest.approx(33.33)
    assert metrics["counts"]["errors"] == 1


def test_missing_double_and_unknown_answers_are_counted(evaluate, benchmarks, tmp_path):
    samples = load_task("gqa", benchmarks / "gqa").questions
    rows = [{"question_id": s.llava_id, "prompt": s.prompt, "text": s.target} for s in samples]
    rows = [{**rows[0], "text": "pink"}, *rows[:-1], {**rows[0], "question_id": "other"}]
    metrics = score_file(evaluate, tmp_path / "run", "gqa", write_rows(tmp_path / "a.jsonl", rows))
    assert metrics["counts"] == {"expected": 6, "answered": 5, "errors": 0, "missing": 1,
                                 "empty": 0, "cut": 0}  # fmt: skip
    assert metrics["accuracy"]["value"] == pytest.approx(100 * 5 / 6, abs=0.006)
    assert metrics["answers_file"] == {
        "duplicates": 1, "unknown": 1,
        "named": {"duplicates": [samples[0].sample_id], "unknown": ["other"]}, "left_out": 0,
    }  # fmt: skip
    missing = records(tmp_path / "run")[-1]
    assert (missing["status"], missing["error"]) == ("skipped", "no answer in a.jsonl")


def test_answers_of_a_sample_say_what_is_missing_or_leave_it_out(
    evaluate, benchmarks, tmp_path, capsys
):
    samples = load_task("gqa", benchmarks / "gqa").questions
    rows = [{"question_id": s.llava_id, "prompt": s.prompt, "text": s.target} for s in samples]
    file = write_rows(tmp_path / "a.jsonl", rows[:2])
    whole = score_file(evaluate, tmp_path / "whole", "gqa", file)
    assert "note: 4 missing count as wrong (--answered_only leaves" in capsys.readouterr().out
    assert whole["accuracy"]["value"] == pytest.approx(100 * 2 / 6, abs=0.006)
    assert "answered_only" not in read(tmp_path / "whole" / "config.json")
    part = score_file(evaluate, tmp_path / "part", "gqa", file, "--answered_only")
    said = capsys.readouterr().out
    assert "note: 4 missing are left out, 2 answered questions are scored" in said
    assert "count as wrong" not in said
    assert (part["accuracy"]["value"], part["accuracy"]["n"]) == (100, 2)
    assert (part["counts"]["expected"], part["counts"]["missing"]) == (2, 0)
    assert part["answers_file"]["left_out"] == 4
    assert (tmp_path / "part" / "testdev_balanced_sample2_predictions.json").is_file()
    by_place = [{"doc_id": i, "target": samples[i].target, "filtered_resps": samples[i].target,
                 "input": samples[i].prompt} for i in (5, 3)]  # fmt: skip
    part = score_file(evaluate, tmp_path / "place", "gqa", write_rows(file, by_place),
                      "--answers_format", "lmms-eval", "--answered_only")  # fmt: skip
    assert (part["accuracy"]["value"], part["accuracy"]["n"]) == (100, 2)
    capsys.readouterr()
    evaluate(tmp_path / "all", "gqa", "--answers", str(write_rows(tmp_path / "all.jsonl", rows)))
    assert "note:" not in capsys.readouterr().out


def test_answers_of_another_task_are_refused(evaluate, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"question_id": 99, "prompt": "", "text": "yes"}])
    with pytest.raises(UserError, match="are to no question of these annotations"):
        evaluate(tmp_path / "run", "pope", "--answers", str(file))


def test_the_judge_stands_beside_the_figures_and_may_come_later(
    evaluate, benchmarks, tmp_path, monkeypatch
):
    samples = load_task("scienceqa", benchmarks / "scienceqa").questions
    rows = [{"question_id": s.llava_id, "prompt": s.prompt, "text": "It is red."} for s in samples]
    file = write_rows(tmp_path / "a.jsonl", rows)
    without = score_file(evaluate, tmp_path / "run", "scienceqa", file)
    assert (without["official"]["undecided"], without["accuracy"]["value"]) == (6, 0.0)
    monkeypatch.setattr(
        judge, "ask",
        lambda endpoint, requests, path: {
            r.sample_id: {"status": "ok", "text": "A"} for r in requests
        },
    )  # fmt: skip
    judged = score_file(
        evaluate, tmp_path / "run", "scienceqa", file,
        "--judge_endpoint", "http://localhost:1/v1", "--judge_model", "m",
    )  # fmt: skip
    assert judged["accuracy"] == without["accuracy"]
    assert (judged["judge"]["asked"], judged["judge"]["right"]) == (6, 2)
    assert judged["judge"]["accuracy_with_judge"] == pytest.approx(100 / 3)


# ------------------------------------------------------------------------- stopping and going on


def assert_same_outcome(run: Path, whole: Path) -> None:
    """Each question once with the same answer, the same metrics and the same files."""
    answers = {record["sample_id"]: record["answer"] for record in records(whole)}
    assert set(Counter(record["sample_id"] for record in records(run)).values()) == {1}
    assert {record["sample_id"]: record["answer"] for record in records(run)} == answers
    for name in ("metrics.json", "scored.jsonl", "vlmevalkit.tsv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


class Interrupted(Exception):
    """Stands in for anything that ends a process."""


@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_in_any_batch_and_started_again(stop, evaluate, tmp_path, monkeypatch):
    from llava_repro.answering import LlavaAnswerer

    whole = evaluate(tmp_path / "whole", "pope", "--batch_size", "5")
    answer, calls = LlavaAnswerer.answer, []

    def stopping(self, *arguments):
        calls.append(1)
        if len(calls) == stop:
            raise Interrupted
        return answer(self, *arguments)

    monkeypatch.setattr(LlavaAnswerer, "answer", stopping)
    with pytest.raises(Interrupted):
        evaluate(tmp_path / "stopped", "pope", "--batch_size", "5")
    monkeypatch.undo()
    evaluate(tmp_path / "stopped", "pope", "--batch_size", "4")
    assert_same_outcome(tmp_path / "stopped", whole)


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(
    evaluate, tiny_llava_folder, benchmarks, tmp_path, capsys
):
    """SIGKILL while it answers, then the same command: as if it had never been stopped."""
    run = tmp_path / "killed"
    flags = [
        "--task", "pope", "--model", str(tiny_llava_folder()), "--device", "cpu", "--limit", "0",
        "--max_new_tokens", "4", *source_flags(benchmarks, "pope"), "--output_dir", str(run),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags, "--batch_size", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    predictions = run / "predictions.jsonl"
    while process.poll() is None:
        if predictions.is_file() and predictions.read_bytes().count(b"\n") >= 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= predictions.read_bytes().count(b"\n") < 18
    assert not (run / "metrics.json").exists()
    whole = evaluate(tmp_path / "whole", "pope", "--batch_size", "7")
    capsys.readouterr()
    evaluate(run, "pope")
    assert "continuing" in capsys.readouterr().out
    assert_same_outcome(run, whole)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--limit", "5"], "limit: 0 there, 5 now"),
        (["--prompt", "bare"], "prompt: 'short' there, 'bare' now"),
        (["--template", "vicuna_v1"], "template: None there, 'vicuna_v1' now"),
        (["--pictures", "shuffled"], "pictures: 'own' there, 'shuffled' now"),
        (["--max_new_tokens", "5"], "max_new_tokens: 4 there, 5 now"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(
    argv, named, evaluate, plausible_answers, tmp_path
):
    run = evaluate(tmp_path / "run", "gqa")
    before = (run / "predictions.jsonl").read_bytes()
    with pytest.raises(UserError) as error:
        evaluate(run, "gqa", *argv)
    assert named in str(error.value)
    assert (run / "predictions.jsonl").read_bytes() == before


# ------------------------------------------------------------------------- rehearsal and the toy


@pytest.mark.parametrize("model", ["tiny", "llava-hf/llava-1.5-7b-hf"])
def test_dry_run_loads_no_weights(
    model, evaluate, tiny_llava_folder, tmp_path, monkeypatch, capsys
):
    """Also of a model that is not on this machine: then the question is shown without template."""
    from llava_repro import answering

    monkeypatch.setattr(answering, "load_llava", never)
    name = str(tiny_llava_folder()) if model == "tiny" else model
    evaluate(tmp_path / "run", "scienceqa", "--dry_run", "--model", name)
    said = capsys.readouterr().out
    assert "6 questions, 3 of them without a picture" in said
    assert "Options: (A) red (B) green (C) blue" in said
    assert ("USER: " in said) == (model == "tiny")
    assert ("memory:   about 1.0 GiB (weights 0.0" in said) == (model == "tiny")
    assert not (tmp_path / "run").exists()


def test_the_toy_changes_defaults_by_task():
    assert task_of(["--toy", "--task", "gqa"]) == task_of(["--task=gqa"]) == "gqa"
    assert task_of(["--toy"]) is None
    assert toy_defaults("gqa")["data_root"].endswith("toy/gqa")
    assert toy_defaults("file")["data"].endswith("held_out.jsonl")


def run_script(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *argv], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_command_line(tmp_path):
    done = run_script("--help")
    assert done.returncode == 0
    assert "--judge_endpoint" in done.stdout
    done = run_script("--task", "pope", "--data_root", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
