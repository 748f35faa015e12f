"""score.py as a program: one JSON object on stdout, its files, its messages."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llava_repro.score import ScoreOptions, main
from shared.options import REPO_ROOT, UserError, parse_options

SCRIPT = REPO_ROOT / "llava_repro" / "score.py"
LABELS = ["yes", "no", "yes", "no"]
SAID = ["Yes", "No, there is none", "No.", "Not sure"]  # right, right, wrong, wrong


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pope(tmp_path) -> tuple[Path, Path]:
    """Answers and annotations of four questions about two pictures."""
    labels = [
        {"question_id": i, "image": f"{i // 2}.jpg", "text": f"Is there a {i}?", "label": label}
        for i, label in enumerate(LABELS)
    ]
    said = [
        {"question_id": i, "prompt": f"Is there a {i}?\nAnswer.", "text": text}
        for i, text in enumerate(SAID)
    ]
    return (
        write_lines(tmp_path / "answers.jsonl", said),
        write_lines(tmp_path / "coco_pope_random.json", labels),
    )


@pytest.fixture
def scienceqa(tmp_path) -> tuple[Path, Path]:
    """Answers and a folder: "B" right with a picture, "(B)" undecided, "A" wrong."""
    folder = tmp_path / "scienceqa"
    folder.mkdir()
    problem = {"question": "Which?", "choices": ["iron", "wood"], "answer": 1, "hint": ""}
    problems = {str(i): {**problem, "image": "image.png" if i == 1 else None} for i in (1, 2, 3)}
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3"]}))
    said = [
        {"question_id": "1", "prompt": "<image>\nWhich?", "text": "B"},
        {"question_id": "2", "prompt": "Which?", "text": "(B)"},
        {"question_id": "3", "prompt": "Which?", "text": "A"},
    ]
    return write_lines(tmp_path / "answers.jsonl", said), folder


def score(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    main(parse_options(ScoreOptions, description="", argv=[str(part) for part in argv]))
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_the_program_prints_one_json_object(pope, inside):
    """From the repository's root and from inside the folder."""
    answers, annotations = pope
    done = subprocess.run(
        [sys.executable, "score.py" if inside else "llava_repro/score.py", "--task", "pope",
         "--answers", str(answers), "--annotations", str(annotations)],
        cwd=SCRIPT.parent if inside else REPO_ROOT,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["accuracy"], found["precision"], found["recall"], found["f1"]) == (0.5,) * 4
    assert (found["yes_ratio"], found["n"]) == (0.5, 4)
    assert not done.stderr


@pytest.mark.slow
def test_the_program_names_what_is_wrong(tmp_path, pope):
    answers, _ = pope
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--task", "pope", "--answers", str(answers),
         "--annotations", str(tmp_path / "nothing.json")],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'nothing.json'}: no such file or folder\n"


def test_scienceqa(scienceqa, capsys):
    answers, folder = scienceqa
    found = score(
        capsys, "--task", "scienceqa", "--answers", answers, "--annotations", folder,
        "--split", "test",
    )  # fmt: skip
    assert found["accuracy"] == pytest.approx(100 / 3)
    assert (found["image_accuracy"], found["n"], found["undecided"]) == (100.0, 3, 1)
    assert "judge" not in found  # off unless asked for


def test_files_that_are_asked_for(pope, capsys, tmp_path):
    answers, annotations = pope
    wanted = {
        name: tmp_path / "out" / f"{name}.{suffix}"
        for name, suffix in {
            "submission": "json", "scored": "jsonl", "to_llava": "jsonl", "to_vlmevalkit": "tsv",
        }.items()
    }  # fmt: skip
    flags = [part for name, path in wanted.items() for part in (f"--{name}", path)]
    base = ["--task", "pope", "--annotations", annotations]
    first = score(capsys, *base, "--answers", answers, *flags)
    rows = [json.loads(line) for line in wanted["scored"].read_text().splitlines()]
    assert [row["score"] for row in rows] == [1, 1, 0, 0]
    assert [row["parsed"] for row in rows] == ["yes", "no", "no", "yes"]
    lines = [json.loads(line) for line in wanted["submission"].read_text().splitlines()]
    assert lines[0] == {"question": "Is there a 0?", "answer": "Yes"}
    # the files written for other tools give the same figures here
    for name, format_of in {"to_llava": "llava", "to_vlmevalkit": "vlmevalkit"}.items():
        again = score(capsys, *base, "--answers", wanted[name], "--answers_format", format_of)
        assert again == first
    alone = score(
        capsys, "--task", "pope", "--answers", wanted["to_vlmevalkit"], "--answers_format",
        "vlmevalkit",
    )  # fmt: skip
    assert alone["confusion"] == first["confusion"]


def test_what_is_incomplete_is_noted_beside_the_result(pope, capsys, tmp_path):
    answers, annotations = pope
    short = write_lines(
        tmp_path / "short.jsonl", [json.loads(answers.read_text().split("\n")[0])] * 2
    )
    argv = ["--task", "pope", "--answers", str(short), "--annotations", str(annotations)]
    main(parse_options(ScoreOptions, description="", argv=argv))
    said = capsys.readouterr()
    assert json.loads(said.out)["missing"] == 3
    assert "3 missing" in said.err
    assert "1 duplicates" in said.err


def test_pope_answers_of_all_splits_name_the_flag(pope, tmp_path):
    """What evaluate.py writes by default."""
    answers, annotations = pope
    for split in ("popular", "adversarial"):
        (tmp_path / f"coco_pope_{split}.json").write_bytes(annotations.read_bytes())
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    joined = [
        {**row, "question_id": f"{split}/{row['question_id']}"}
        for split in ("adversarial", "popular", "random")
        for row in rows
    ]
    file = write_lines(tmp_path / "joined.jsonl", joined)
    options = ScoreOptions(task="pope", answers=str(file), annotations=str(tmp_path))
    with pytest.raises(UserError, match="--split all"):
        main(options)
    main(replace(options, split="all"))


def test_answered_only_scores_a_sample_and_states_what_is_missing(pope, capsys, tmp_path):
    """The answers of a run with --limit: three of four questions, one of them an error."""
    answers, annotations = pope
    rows = [json.loads(line) for line in answers.read_text().splitlines()][:3]
    flags = ["--task", "pope", "--annotations", annotations]
    sample = write_lines(tmp_path / "sample.jsonl", rows[:2])
    whole = score(capsys, *flags, "--answers", sample)
    assert (whole["n"], whole["accuracy"], whole["missing"]) == (4, 0.5, 2)
    assert "n_missing" not in whole
    main(parse_options(ScoreOptions, description="", argv=[
        *map(str, flags), "--answers", str(sample), "--answered_only"]))  # fmt: skip
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["n"], found["n_missing"], found["accuracy"]) == (2, 2, 1.0)
    assert (found["answered_only"], found["missing"], found["answered"]) == (True, 2, 2)
    assert found["named"]["missing"] == ["2", "3"]
    assert "2 missing are left out, 2 answered questions are scored" in said.err
    # an error is an answer that went wrong: it stays in, and is wrong
    records = [{"sample_id": str(r["question_id"]), "answer": r["text"], "status": "ok"}
               for r in rows[:2]]  # fmt: skip
    records.append({"sample_id": "2", "answer": None, "status": "error"})
    found = score(
        capsys, *flags, "--answers", write_lines(tmp_path / "records.jsonl", records),
        "--answers_format", "records", "--answered_only",
    )  # fmt: skip
    assert (found["n"], found["n_missing"], found["errors"]) == (3, 1, 1)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_pope_answers_to_another_split_are_noted(pope, capsys, tmp_path):
    """The three splits share their numbers, so that only the prompts tell."""
    answers, annotations = pope
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    other = [{**row, "text": "Is there a dog?"} for row in rows]
    file = write_lines(tmp_path / "coco_pope_popular.json", other)
    main(ScoreOptions(task="pope", answers=str(answers), annotations=str(file)))
    assert "4 prompts of the answers do not hold the question" in capsys.readouterr().err


def test_pope_in_llavas_numbering(tmp_path, pope, capsys):
    _, annotations = pope
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    asked = [{**row, "question_id": 100 + i, "category": "random"} for i, row in enumerate(rows)]
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    said = [{"question_id": 100 + i, "text": text} for i, text in enumerate(LABELS)]
    found = score(
        capsys, "--task", "pope", "--answers", write_lines(tmp_path / "a.jsonl", said),
        "--annotations", annotations, "--questions", questions,
    )  # fmt: skip
    assert found["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "pope"], "which annotations"),
        (["--task", "gqa", "--answers_format", "vlmevalkit"], "which annotations"),
        (["--task", "scienceqa", "--annotations", "FOLDER", "--questions", "q"], "is for pope"),
        (["--task", "scienceqa", "--annotations", "FOLDER", "--judge_endpoint", "http://x/v1"],
         "needs --judge_model"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(scienceqa, argv, message):
    answers, folder = scienceqa
    argv = [str(folder) if part == "FOLDER" else part for part in argv]
    options = parse_options(ScoreOptions, description="", argv=[*argv, "--answers", str(answers)])
    with pytest.raises(UserError, match=message):
        main(options)


def test_no_judge_for_a_task_without_choices(pope):
    answers, annotations = pope
    options = ScoreOptions(
        "pope", str(answers), str(annotations), judge_endpoint="http://x/v1", judge_model="m"
    )
    with pytest.raises(UserError, match="pope is no multiple-choice task"):
        main(options)


@pytest.fixture
def judge_server(monkeypatch) -> Iterator[tuple[str, list[str]]]:
    """A chat server that always says B; its address and what it was asked."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body["messages"][1]["content"])
            message = {"role": "assistant", "content": "B"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                     "choices": [choice]}  # fmt: skip
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    server.shutdown()
    server.server_close()


def test_the_judge_is_asked_once_about_the_undecided(scienceqa, judge_server, capsys):
    answers, folder = scienceqa
    url, seen = judge_server
    argv = ["--task", "scienceqa", "--answers", answers, "--annotations", folder,
            "--judge_endpoint", url, "--judge_model", "m"]  # fmt: skip
    found = score(capsys, *argv)
    assert found["accuracy"] == pytest.approx(100 / 3)  # the rule's figure, as without a judge
    assert found["judge"]["accuracy_with_judge"] == pytest.approx(200 / 3)
    assert (found["judge"]["asked"], found["judge"]["right"], len(seen)) == (1, 1, 1)
    assert "Answer: (B)" in seen[0]
    again = score(capsys, *argv)
    assert (again["judge"]["cached"], len(seen)) == (1, 1)
    assert Path(f"{answers}.judge.jsonl").is_file()
