"""--task caption: what is asked, both prompts, errors, the comparison of three runs.

tests/llava_repro/test_evaluate.py runs it with every other task.

python -m pytest tests/llava_repro/test_caption_task.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_repro import compare, score
from llava_repro.answering import LlavaAnswerer
from llava_repro.evaluate import main
from llava_repro.evaluation_settings import EvaluateOptions, toy_defaults
from llava_repro.tasks import load_task
from llava_repro.tasks.caption import PROMPTS
from shared import caption_extras
from shared.answering import Answer
from shared.options import UserError, parse_options

COLORS = "red green blue yellow black white".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_extras, "meteor_problem", lambda language: "no Java")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six pictures in COCO's layout, two captions each."""
    folder = tmp_path / "data"
    (folder / "val2014").mkdir(parents=True)
    rows = []
    for i, color in enumerate(COLORS, start=1):
        Image.new("RGB", (20, 20), color).save(folder / f"val2014/COCO_val2014_{i:012d}.jpg")
        rows += [{"image_id": i, "caption": f"A plain {color} picture of nothing."},
                 {"image_id": i, "caption": f"nothing but {color}"}]  # fmt: skip
    (folder / "captions_val2014.json").write_text(json.dumps({"annotations": rows}))
    return folder


@pytest.fixture
def evaluate(tiny_llava_folder, root):
    def run(folder: Path, *argv: str) -> Path:
        flags = [
            "--task", "caption", "--model", str(tiny_llava_folder()), "--device", "cpu", "--limit",
            "0", "--max_new_tokens", "4", "--data_root", str(root), "--output_dir", str(folder),
            *argv,
        ]  # fmt: skip
        main(parse_options(EvaluateOptions, description="", argv=flags))
        return folder

    return run


@pytest.fixture
def say(monkeypatch):
    def install(caption) -> None:
        def answer(self, features, picture_index, prompts):
            said = [caption(index[0]) for index in picture_index]
            return [Answer(text, text, 0.5, 0.5, "stop", 2) for text in said]

        monkeypatch.setattr(LlavaAnswerer, "answer", answer)

    return install


@pytest.mark.parametrize("prompt", list(PROMPTS))
def test_each_picture_is_asked_once_in_the_words_of_the_choice(evaluate, root, tmp_path, prompt):
    run = evaluate(tmp_path / "run", "--prompt", prompt)
    assert [r["image_id"] for r in records(run)] == [1, 2, 3, 4, 5, 6]
    assert {r["prompt"] for r in records(run)} == {f"<image>\n{PROMPTS[prompt]}"}
    samples = load_task("caption", root, prompt=prompt).questions
    assert samples[1].references == ("A plain green picture of nothing.", "nothing but green")
    assert read(run / "config.json")["asked"]["prompt"] == prompt


def test_a_right_caption_scores_full_and_a_wrong_one_less(evaluate, say, tmp_path, capsys):
    say(lambda i: f"a plain {COLORS[i]} picture of nothing" if i else "wrong")
    run = evaluate(tmp_path / "run")
    metrics, said = read(run / "metrics.json"), capsys.readouterr().out
    # five captions of 6 words matched whole; "wrong" has 1 word, no match, reference of 3 words
    # closest: lengths 31 against 33
    assert metrics["captions"]["corpus"]["Bleu_1"] == pytest.approx(
        30 / 31 * 2.718281828 ** (1 - 33 / 31), abs=1e-6
    )
    rows = [json.loads(line) for line in (run / "scored.jsonl").read_text().splitlines()]
    assert [row["scores"]["ROUGE_L"] for row in rows] == [0, 1, 1, 1, 1, 1]
    assert rows[0]["score"] == 0 < min(row["score"] for row in rows[1:])
    assert metrics["blind"]["value"] is None
    assert metrics["blind"]["reason"]
    assert said.index("BLEU-4") < said.index("CIDEr")
    results = read(run / "captions_val2014_run_results.json")
    assert results[0] == {"image_id": 1, "caption": "wrong"}


def test_score_py_gives_the_same_from_the_answers(evaluate, say, root, tmp_path, capsys):
    say(lambda i: f"a plain {COLORS[i]} picture" if i % 2 else "nothing")
    run = evaluate(tmp_path / "run")
    capsys.readouterr()
    answers = str(run / "answers.jsonl")
    score.main(score.ScoreOptions(task="caption", answers=answers, annotations=str(root)))
    assert json.loads(capsys.readouterr().out)["captions"] == read(run / "metrics.json")["captions"]
    strange = tmp_path / "strange.jsonl"
    strange.write_text('{"question_id": 77, "text": "a dog"}\n')
    with pytest.raises(UserError, match="to no question"):
        score.main(score.ScoreOptions(task="caption", answers=str(strange), annotations=str(root)))


def test_three_runs_are_compared(evaluate, say, tmp_path, capsys):
    folders = []
    for name, words in (("one", "a {}"), ("two", "a plain {}"), ("three", "a plain {} picture of")):
        say(lambda i, words=words: words.format(COLORS[i]))
        folders.append(str(evaluate(tmp_path / name)))
    capsys.readouterr()
    out = tmp_path / "out"
    compare.main(compare.CompareOptions(runs=folders, output_dir=str(out)))
    comparison = read(out / "comparison.json")
    assert [run["label"] for run in comparison["runs"]] == ["one", "two", "three"]
    bleu = [captions["corpus"]["Bleu_4"] for captions in comparison["captions"]]
    assert bleu == sorted(bleu)
    for pair in comparison["pairs"]:
        difference = bleu[pair["second"]] - bleu[pair["first"]]
        assert pair["metrics"]["Bleu_4"]["difference"] == pytest.approx(difference, abs=1e-5)
    assert "LLaVA: captions compared" in (out / "report.html").read_text(encoding="utf-8")
    compare.main(compare.CompareOptions(verify=folders[0]))
    assert "6 questions scored again, all as stored" in capsys.readouterr().out


def test_the_toy_and_the_name_of_the_run(root, tiny_llava_folder, capsys):
    defaults = toy_defaults("caption")
    assert defaults["data_root"].endswith("data/toy/vqav2")
    assert (defaults["limit"], defaults["prompt"]) == (200, "brief")
    model = tiny_llava_folder()
    flags = ["--task", "caption", "--model", str(model), "--data_root", str(root), "--limit", "4",
             "--dry_run"]  # fmt: skip
    main(parse_options(EvaluateOptions, description="", argv=flags))
    said = capsys.readouterr().out
    assert f"outputs/llava_repro/caption_4_seed0_{model.name}\n" in said
    assert PROMPTS["one_sentence"] in said
