"""predict.py: captions and answers for a picture, a folder, a file of rows; bad pictures named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from blip2_qlora import blip2
from blip2_qlora.asking import CaptionsAndAnswers, CaptionStart
from blip2_qlora.predict import PredictOptions, main
from shared.options import REPO_ROOT, MissingError, UserError, parse_options

BASELINE = REPO_ROOT / "blip2_qlora" / "baseline_images"


@pytest.fixture(scope="module")
def loaded(tiny_blip2_opt):
    """The tiny model, loaded once for all tests of this file."""
    options = parse_options(
        PredictOptions, description="", argv=["--model", str(tiny_blip2_opt), "--device", "cpu"]
    )
    return blip2.load_blip2(options, None)


@pytest.fixture
def predict(loaded, tiny_blip2_opt, monkeypatch, capsys):
    """Runs the script's main with flags; returns the printed lines as objects."""
    monkeypatch.setattr(blip2, "load_blip2", lambda *_: loaded)

    def run(*argv: str) -> list[dict]:
        flags = ["--model", str(tiny_blip2_opt), "--device", "cpu", "--greedy", *argv]
        main(parse_options(PredictOptions, description="", argv=flags))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def folder(tmp_path, pictures) -> Path:
    """Two pictures, one file that only has a picture's name, and a note."""
    found = tmp_path / "pictures"
    found.mkdir()
    pictures[0].save(found / "a.png")
    pictures[1].save(found / "c.png")
    (found / "b.jpg").write_bytes(b"<html>not found</html>")
    (found / "note.txt").write_text("")
    return found


def test_one_picture_with_a_question(predict, folder):
    (line,) = predict("--image", str(folder / "a.png"), "--question", "What color?")
    assert set(line) == {"image_path", "caption", "question", "answer", "confidence"}
    assert line["image_path"] == str(folder / "a.png")
    assert line["question"] == "What color?"
    assert line["caption"]
    assert line["answer"]
    assert 0 < line["confidence"] <= 1


def test_one_picture_without_a_question_gives_a_caption(predict, folder):
    (line,) = predict("--image", str(folder / "a.png"))
    assert line["caption"]
    assert (line["question"], line["answer"]) == (None, None)


def test_a_folder_with_a_broken_picture(predict, folder):
    """The broken one is a line with its error, in its place; the others are answered."""
    lines = predict("--images", str(folder), "--question", "What color?")
    assert [Path(line["image_path"]).name for line in lines] == ["a.png", "b.jpg", "c.png"]
    assert ["error" in line for line in lines] == [False, True, False]
    assert "b.jpg: not a picture" in lines[1]["error"]
    assert (lines[1]["caption"], lines[1]["answer"]) == (None, None)
    assert lines[0]["answer"] != lines[2]["answer"]  # each its own picture's


def test_rows_of_a_file_each_picture_s_caption_once(predict, folder, tmp_path, monkeypatch):
    """Three questions about two pictures: two captions, three answers, in the file's order."""
    rows = [("c.png", "What color?"), ("a.png", "How many?"), ("c.png", "Is there a red star?")]
    file = folder / "rows.csv"
    file.write_text("image,question\n" + "".join(f"{i},{q}\n" for i, q in rows))
    calls = []
    encode = blip2.Blip2Answerer.encode_images
    monkeypatch.setattr(
        blip2.Blip2Answerer,
        "encode_images",
        lambda self, images: (calls.append(len(images)), encode(self, images))[1],
    )
    lines = predict("--questions", str(file))
    assert [(line["image_path"], line["question"]) for line in lines] == rows
    assert lines[0]["caption"] == lines[2]["caption"] != lines[1]["caption"]
    assert calls == [2]  # one encoding of each for captions and answers
    alone = predict("--image", str(folder / "a.png"), "--question", "How many?")
    assert (alone[0]["caption"], alone[0]["answer"]) == (lines[1]["caption"], lines[1]["answer"])


def test_a_caption_and_an_answer_from_one_encoding_are_each_decoded_their_own_way(loaded, pictures):
    """Known by their type: the same words may start a caption and be a prompt."""
    words = "Question: what? Answer:"
    preset = blip2.choose_preset(loaded[0].config, "paper", None, True)
    speaker = CaptionsAndAnswers(*loaded, preset, greedy=True, caption_min_tokens=9)
    features = speaker.encode_images(pictures)
    said = speaker.answer(features, [2, 0, 2], [words, CaptionStart(words), words])
    assert said[0] == said[2] == speaker.answers.answer(features, [2], [words])[0]
    assert said[1] == speaker.captions.answer(features, [0], [words])[0]
    assert said[1].n_tokens >= 9
    assert speaker.prompt_problem(CaptionStart("why " * 95)) is not None  # 30 tokens are to come
    assert speaker.prompt_problem("why " * 95) is None


def test_batches_do_not_change_what_is_said(predict):
    rows = REPO_ROOT / "blip2_qlora" / "data" / "tiny.jsonl"
    whole = predict("--questions", str(rows))
    assert len(whole) == 24
    for line, other in zip(whole, predict("--questions", str(rows), "--batch_size", "5"),
                           strict=True):  # fmt: skip
        assert line.pop("confidence") == pytest.approx(other.pop("confidence"), rel=1e-4)
        assert line == other


def test_the_baseline_pictures_and_one_that_is_broken(predict, tmp_path, monkeypatch):
    """With no arguments: the ten committed pictures; one damaged does not stop the other nine."""
    lines = predict()
    assert len({line["image_path"] for line in lines}) == 10
    assert all(line["caption"] and line["answer"] for line in lines)
    copied = Path(shutil.copytree(BASELINE, tmp_path / "baseline"))
    broken = copied / "shapes_04.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    monkeypatch.setattr("blip2_qlora.predict.BASELINE", copied / "questions.jsonl")
    again = predict()
    assert {line["image_path"] for line in again if "error" in line} == {"shapes_04.jpg"}
    assert [line for line in again if "error" not in line] == [
        line for line in lines if line["image_path"] != "shapes_04.jpg"
    ]


def test_output_holds_the_printed_lines(predict, folder, tmp_path):
    output = tmp_path / "new" / "lines.jsonl"
    for name in ("c.png", "a.png"):  # the second start replaces the file
        lines = predict("--image", str(folder / name), "--output", str(output))
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert written == lines


def test_a_stopped_run_keeps_the_lines_that_it_said(predict, tmp_path, monkeypatch, capsys):
    """The file used to be written at the end: a thousand captions were lost with the last one."""
    output = tmp_path / "lines.jsonl"
    encode, calls = blip2.Blip2Answerer.encode_images, []

    def stopping(self, images):
        calls.append(1)
        if len(calls) == 2:  # captions and answers of the first batch are done
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(blip2.Blip2Answerer, "encode_images", stopping)
    with pytest.raises(SystemExit) as exit_info:
        predict("--batch_size", "4", "--output", str(output))
    assert exit_info.value.code == 130
    assert len(output.read_text(encoding="utf-8").splitlines()) == 4
    # not "the same command goes on": it would begin with the first picture and a new file
    said = capsys.readouterr().err
    n = len((BASELINE / "questions.jsonl").read_text(encoding="utf-8").splitlines())
    assert f"stopped after 4 of {n} rows; the same command starts anew, and {output} keeps" in said


@pytest.mark.parametrize("name", ["pictures/rows.jsonl", "pictures/../pictures/rows.jsonl", "link"])
def test_output_is_never_the_file_of_the_questions(predict, folder, tmp_path, monkeypatch, name):
    """By its path, a relative one, a link; the plan says so too, and the rows stay."""
    file = folder / "rows.jsonl"
    file.write_text(json.dumps({"image": "a.png", "question": "What?"}))
    before = file.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    output = "link.jsonl" if name == "link" else name
    for more in ([], ["--dry_run"]):
        with pytest.raises(UserError, match="is the file of the questions: give another"):
            predict("--questions", str(file), "--output", output, *more)
    assert file.read_bytes() == before
    assert (tmp_path / "link.jsonl").is_symlink()


def test_output_is_never_a_picture_nor_the_baseline(predict, folder, tmp_path, monkeypatch):
    odd = folder / "picture.jsonl"
    shutil.copy(folder / "a.png", odd)
    with pytest.raises(UserError, match="is a picture that is asked about"):
        predict("--image", str(odd), "--output", str(odd))
    assert odd.read_bytes() == (folder / "a.png").read_bytes()
    copied = tmp_path / "questions.jsonl"
    shutil.copy(BASELINE / "questions.jsonl", copied)
    monkeypatch.setattr("blip2_qlora.predict.BASELINE", copied)
    with pytest.raises(UserError, match="is the file of the questions"):
        predict("--output", str(copied), "--dry_run")
    assert copied.read_bytes() == (BASELINE / "questions.jsonl").read_bytes()


def test_an_unwritable_output_is_one_message(predict, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"lines.jsonl: cannot be written"):
        predict("--image", str(folder / "a.png"), "--output", str(tmp_path / "file/lines.jsonl"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image", "a.png", "--images", "folder"], "give one of --image, --images, --questions"),
        (["--question", "What?"], "--question goes with --image or --images"),
        (["--image", "a.png", "--question", "  "], "--question is empty"),
        (["--images", "no/such/folder"], "no such folder"),
        (["--questions", "no/such/file.jsonl"], "no such file"),
        (["--batch_size", "0"], "at least one question at a time"),
        (["--caption_min_tokens", "31"], "--caption_min_tokens 31: between 0 and 30, the longest"),
        (["--caption_min_tokens", "-1"], "--caption_min_tokens -1: between 0 and 30"),
        (["--image", str(BASELINE)], "baseline_images: a folder; give it as --images"),
        (["--images", __file__], "test_predict.py: a file; give a picture as --image"),
        (["--questions", str(BASELINE)], "baseline_images: a folder; own rows are a JSONL or CSV"),
        (["--prompt", "no place for it"], "must contain {} once"),
        (["--prompt", "{} {topic}"], "must contain {} once"),
    ],
)
def test_what_does_not_fit_together_is_named(predict, argv, message):
    with pytest.raises(UserError) as error:
        predict(*argv)
    assert message in str(error.value)


def test_nothing_readable_is_an_error(predict, folder):
    """One picture, and it is missing: the line names it, the script ends with status 2."""
    with pytest.raises(UserError, match=r"no row could be answered; .*absent.png: no such pict"):
        predict("--image", str(folder / "absent.png"))


def test_nothing_answerable_names_the_picture_too(predict, folder):
    """Why the question can't be answered stood alone, without the row."""
    with pytest.raises(UserError, match=r"the first, .*a\.png: the prompt has 1,?\d+ tokens"):
        predict("--image", str(folder / "a.png"), "--question", "why " * 1250)


def test_a_question_of_5000_characters_keeps_its_caption(predict, folder):
    """It is longer than the model reads; the row behind it is answered."""
    rows = [{"image": "a.png", "question": q} for q in ("why " * 1250, "How many?")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    long, short = predict("--questions", str(folder / "rows.jsonl"))
    assert long["caption"] == short["caption"]
    assert long["answer"] is None
    assert "shorten the question" in long["error"]
    assert short["answer"]
    assert "error" not in short


def test_without_weights_the_two_commands_are_named(tmp_path, folder):
    flags = ["--image", str(folder / "a.png"), "--model", "org/absent"]
    with pytest.raises(MissingError) as missing:
        main(parse_options(PredictOptions, description="", argv=flags))
    assert "python -m shared.download org/absent" in str(missing.value)
    assert "--toy" in str(missing.value)


def test_dry_run_loads_no_weights(predict, folder, monkeypatch, capsys):
    from transformers import Blip2ForConditionalGeneration

    monkeypatch.setattr(blip2, "load_blip2", never)
    monkeypatch.setattr(Blip2ForConditionalGeneration, "from_pretrained", never)
    flags = ["--image", str(folder / "a.png"), "--question", "How many?", "--dry_run"]
    main(parse_options(PredictOptions, description="", argv=flags))  # the real model's plan
    said = capsys.readouterr().out
    assert "3, 224, 224) -> 32 image tokens" in said
    assert "Question: How many? Answer:" in said
    assert "memory:" in said
    assert "24 GB: " in said


def never(*_: object, **__: object) -> None:
    raise AssertionError("weights were loaded")


@pytest.mark.slow
def test_the_script_runs_from_the_root_and_from_its_folder_alike(tiny_blip2_opt, tmp_path):
    """Given paths count from where the user stands, the script's own from its folder."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    flags = ["--image", str(tmp_path / "a.png"), "--model", str(tiny_blip2_opt), "--greedy"]
    said = []
    for folder, script in ((REPO_ROOT, "blip2_qlora/predict.py"), (BASELINE.parent, "predict.py")):
        done = subprocess.run(
            [sys.executable, script, *flags], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert json.loads(said[0])["caption"]
