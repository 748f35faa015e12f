"""evaluate.py --task caption: its files, figures against hand-counted ones, going on, comparing.

python -m pytest tests/blip2_qlora/test_caption_task.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blip2_qlora import blip2, compare
from blip2_qlora.evaluate import main
from blip2_qlora.settings import EvaluateOptions
from shared import caption_extras, caption_files
from shared.options import MissingError, UserError, parse_options
from shared.runs import read_run

EVERY_FILE = {
    "config.json", "environment.json", "predictions.jsonl", "scored.jsonl", "metrics.json", ".lock",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_extras, "meteor_problem", lambda language: "no Java")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def evaluate(tiny_blip2_opt, small_vqav2):
    """Runs the script's main on the tiny model and the small set; later flags win."""

    def run(folder: Path, *argv: str, root: Path = small_vqav2) -> Path:
        flags = [
            "--task", "caption", "--model", str(tiny_blip2_opt), "--device", "cpu", "--greedy",
            "--caption_min_tokens", "1", "--data_root", str(root), "--output_dir", str(folder),
            *argv,
        ]  # fmt: skip
        main(parse_options(EvaluateOptions, description="", argv=flags))
        return folder

    return run


@pytest.fixture
def say(monkeypatch):
    """Makes the model say these captions, by the number of the picture in its batch."""

    def install(caption) -> None:
        def answer(self, features, picture_index, prompts):
            said = [caption(i) for i in picture_index]
            return [blip2.Answer(text, text, 0.5, 0.5, "stop", 2) for text in said]

        monkeypatch.setattr(blip2.Blip2Answerer, "answer", answer)

    return install


def test_a_run_writes_its_files(evaluate, small_vqav2, tmp_path, capsys):
    run = evaluate(tmp_path / "run", "--limit", "8")
    said = capsys.readouterr().out
    name = "captions_val2014_sample8_run_results.json"
    assert {path.name for path in run.iterdir()} == EVERY_FILE | {name}
    captions = read(small_vqav2 / "captions_val2014.json")["annotations"]
    for record in records(run):
        own = [row["caption"] for row in captions if row["image_id"] == record["image_id"]]
        assert record["references"] == own
        assert (record["question"], record["prompt"], record["status"]) == ("", "", "ok")
    metrics = read(run / "metrics.json")
    assert (metrics["task"], metrics["synthetic"]["data"]) == ("caption", True)
    assert metrics["counts"]["answered"] == 8
    assert list(metrics["captions"]["corpus"])[:4] == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]
    assert said.index("BLEU-1") < said.index("METEOR") < said.index("ROUGE-L") < said.index("CIDEr")
    assert "SYNTHETIC" in said
    config = read(run / "config.json")
    assert config["asked"]["max_new_tokens"] == 30
    assert config["asked"]["length_penalty"] == 1.0
    assert read_run(run).metrics["accuracy"]["n"] == 8


def test_the_results_file_is_scored_as_the_run_is(evaluate, small_vqav2, say, tmp_path, capsys):
    """By the command on COCO's files, which knows nothing of runs."""
    say(lambda i: "A red circle and a blue square." if i % 2 else "one shape")
    run = evaluate(tmp_path / "run", "--limit", "0")
    results = run / "captions_val2014_run_results.json"
    rows = read(results)
    annotations = small_vqav2 / "captions_val2014.json"
    pictures = {row["image_id"] for row in read(annotations)["annotations"]}
    assert [set(row) for row in rows] == [{"image_id", "caption"}] * len(pictures)
    assert {row["image_id"] for row in rows} == pictures
    capsys.readouterr()
    caption_files.main([str(results), str(annotations), "--summary"])
    official = json.loads(capsys.readouterr().out)
    assert 0 < official["corpus"]["Bleu_4"] < 1
    stored = read(run / "metrics.json")["captions"]
    assert stored["corpus"] == pytest.approx(official["corpus"], abs=1e-6)
    assert stored["intervals"]["Bleu_4"]["low"] == pytest.approx(
        official["intervals"]["Bleu_4"]["low"], abs=1e-6
    )


def test_how_captions_start_is_asked_and_recorded(evaluate, tmp_path):
    run = evaluate(tmp_path / "run", "--limit", "3", "--caption_prompt", "a picture of")
    assert {record["prompt"] for record in records(run)} == {"a picture of"}
    assert read(run / "config.json")["asked"]["prompt"] == "a picture of"
    with pytest.raises(UserError, match="other options"):
        evaluate(run, "--limit", "3")


def test_an_unfinished_run_goes_on(evaluate, tmp_path, capsys):
    run = evaluate(tmp_path / "run", "--limit", "8")
    whole = records(run)
    kept = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:5]
    (run / "predictions.jsonl").write_text("".join(kept), encoding="utf-8")
    assert "continuing" in (evaluate(run, "--limit", "8") and capsys.readouterr().out)
    answers = [{key: r[key] for key in ("sample_id", "answer", "confidence")} for r in whole]
    again = {r["sample_id"]: r for r in records(run)}
    assert [{key: again[a["sample_id"]][key] for key in a} for a in answers] == answers


def test_a_broken_picture_is_an_empty_caption(evaluate, own_vqav2, tmp_path):
    broken = sorted((own_vqav2 / "val2014").iterdir())[0]
    broken.write_bytes(b"no picture")
    run = evaluate(tmp_path / "run", "--limit", "0", root=own_vqav2)
    metrics = read(run / "metrics.json")
    assert metrics["counts"]["errors"] == 1
    assert metrics["captions"]["notes"]["missing"].startswith("1 of")
    empty = [row for row in read(run / "captions_val2014_run_results.json") if not row["caption"]]
    assert [row["image_id"] for row in empty] == [int(broken.stem.split("_")[-1])]


def test_two_runs_are_compared_and_verified(evaluate, say, tmp_path, capsys):
    say(lambda i: "one shape" if i % 2 else "a red circle and")
    base = evaluate(tmp_path / "base", "--limit", "10")
    say(lambda i: "a photo of a red square" if i % 2 else "a red circle")
    tuned = evaluate(tmp_path / "tuned", "--limit", "10")
    capsys.readouterr()
    out = tmp_path / "report"
    options = compare.CompareOptions(str(base), str(tuned), str(out))
    compare.main(options)
    said = capsys.readouterr().out
    comparison = read(out / "comparison.json")
    stored = [read(run / "metrics.json")["captions"]["corpus"]["CIDEr"] for run in (base, tuned)]
    row = comparison["pairs"][0]["metrics"]["CIDEr"]
    assert row["difference"] == pytest.approx(stored[1] - stored[0], abs=1e-5)
    assert f"CIDEr {row['difference']:+.4f}" in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "BLIP-2: captions compared" in page
    compare.main(compare.CompareOptions(verify=str(base)))
    assert "10 questions scored again, all as stored" in capsys.readouterr().out
    results = base / "captions_val2014_sample10_base_results.json"
    results.write_text(results.read_text().replace("one shape", "two shapes"), encoding="utf-8")
    with pytest.raises(SystemExit):
        compare.main(compare.CompareOptions(verify=str(base)))
    assert f"{results.name}: not the captions" in capsys.readouterr().out


def test_other_prompts_are_refused(evaluate, tmp_path):
    base = evaluate(tmp_path / "base", "--limit", "6")
    other = evaluate(tmp_path / "other", "--limit", "6", "--caption_prompt", "a picture of")
    with pytest.raises(UserError, match="should not be compared"):
        compare.main(compare.CompareOptions(str(base), str(other), str(tmp_path / "out")))


def test_what_does_not_go_together_is_said(small_vqav2, evaluate, tmp_path):
    with pytest.raises(UserError, match=r"predict.py captions own pictures"):
        EvaluateOptions(task="caption", data="rows.jsonl")
    with pytest.raises(UserError, match="--caption_prompt"):
        EvaluateOptions(task="caption", prompt="Question: {}")
    with pytest.raises(UserError, match="--caption_prompt is for --task caption"):
        EvaluateOptions(caption_prompt="a photo of")
    with pytest.raises(UserError, match="--split karpathy_test is for --task caption"):
        EvaluateOptions(split="karpathy_test")
    with pytest.raises(UserError, match="between 0 and 30"):
        EvaluateOptions(task="caption", caption_min_tokens=31)
    with pytest.raises(UserError, match="--split test2015: COCO's captions have"):
        evaluate(tmp_path / "run", "--split", "test2015")
    with pytest.raises(MissingError, match=r"dataset_coco.json is not there"):
        evaluate(tmp_path / "run", "--split", "karpathy_test")


def test_the_plan_and_the_run_s_name_say_caption(evaluate, small_vqav2, tiny_blip2_opt, capsys):
    flags = [
        "--task", "caption", "--model", str(tiny_blip2_opt), "--data_root", str(small_vqav2),
        "--caption_prompt", "a photo of", "--dry_run", "--limit", "9",
    ]  # fmt: skip
    main(parse_options(EvaluateOptions, description="", argv=flags))
    said = capsys.readouterr().out
    name = f"caption_val2014_9_seed0_{tiny_blip2_opt.name}_zero-shot_a_photo_of"
    assert f"outputs/blip2_qlora/{name}\n" in said
    assert "9 pictures, 0 bad rows left out" in said
    assert "<image> x 4 + 'a photo of'" in said


def test_a_run_of_questions_has_no_option_of_captions(small_vqav2, tiny_blip2_opt, tmp_path):
    """So that a run of an earlier version goes on."""
    flags = ["--model", str(tiny_blip2_opt), "--device", "cpu", "--greedy", "--limit", "3",
             "--data_root", str(small_vqav2), "--output_dir", str(tmp_path / "run")]  # fmt: skip
    main(parse_options(EvaluateOptions, description="", argv=flags))
    config = read(tmp_path / "run" / "config.json")
    assert not {"task", "caption_prompt", "caption_min_tokens"} & config.keys()
