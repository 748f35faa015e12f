"""predict.py: one picture streamed, several together, a folder in batches, bad pictures named."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_repro import answering
from llava_repro import predict as script
from llava_repro.asking import Decoding, human_text
from llava_repro.predict import DESCRIBE, PredictOptions, main, rows_to_ask
from shared.options import REPO_ROOT, UserError, parse_options, write_json

PREDICT = REPO_ROOT / "llava_repro" / "predict.py"
FIELDS = {"image_path", "question", "answer", "confidence", "finish_reason", "n_tokens"}


@pytest.fixture(scope="module")
def loaded(tiny_llava_folder: Callable[..., Path]) -> tuple:
    return answering.load_llava(str(tiny_llava_folder("clip", "qwen2")), device="cpu")


@pytest.fixture
def predict(
    loaded: tuple, tiny_llava_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., str]:  # fmt: skip
    """Runs the script's main with flags; returns what it printed. `n_errors`: how many rows it
    says could not be answered, with exit status 1."""
    monkeypatch.setattr(answering, "load_llava", lambda *_: loaded)

    def run(*argv: str, n_errors: int = 0) -> str:
        flags = ["--model", str(tiny_llava_folder("clip", "qwen2")), "--max_new_tokens", "12"]
        capsys.readouterr()
        options = parse_options(PredictOptions, description="", argv=[*flags, *argv])
        if not n_errors:
            main(options)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            main(options)
        said = capsys.readouterr()
        assert ended.value.code == 1
        assert f"{n_errors} of {len(said.out.splitlines())} could not be answered" in said.err
        return said.out

    return run


@pytest.fixture
def folder(tmp_path: Path, pictures: list) -> Path:
    """Two pictures, one file that only has a picture's name, and a note."""
    found = tmp_path / "pictures"
    found.mkdir()
    pictures[0].save(found / "a.png")
    pictures[1].save(found / "c.png")
    (found / "b.jpg").write_bytes(b"<html>not found</html>")
    (found / "note.txt").write_text("")
    return found


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answer_to(loaded: tuple, pictures: list, question: str) -> Any:
    answerer = answering.LlavaAnswerer(*loaded, Decoding(max_new_tokens=12))
    features = answerer.encode_images(pictures)
    (said,) = answerer.answer(
        features, [range(len(pictures))], [human_text(question, len(pictures))]
    )
    return said


def test_one_answer_is_printed_and_written(
    predict: Callable[..., str], loaded: tuple, pictures: list, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "lines.jsonl"
    picture = str(folder / "a.png")
    for _ in range(2):  # the second start replaces the file
        shown = predict("--image", picture, "--question", "What color?", "--output", str(output))
    (line,) = written(output)
    said = answer_to(loaded, pictures[:1], "What color?")
    assert set(line) == FIELDS
    assert shown.strip("\n") == line["answer"] == said.answer
    assert (line["image_path"], line["question"]) == (picture, "What color?")
    assert line["confidence"] == pytest.approx(said.confidence, rel=1e-4)


def test_beams_give_the_answer_of_a_beam_search(
    predict: Callable[..., str], loaded: tuple, pictures: list, folder: Path
) -> None:
    shown = predict("--image", str(folder / "a.png"), "--num_beams", "3")
    answerer = answering.LlavaAnswerer(*loaded, Decoding(num_beams=3, max_new_tokens=12))
    features = answerer.encode_images(pictures[:1])
    (said,) = answerer.answer(features, [0], [human_text(DESCRIBE, 1)])
    assert shown.strip("\n") == said.answer


def test_several_pictures_for_one_question_and_none(
    predict: Callable[..., str], loaded: tuple, pictures: list, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "lines.jsonl"
    two = [str(folder / "a.png"), str(folder / "c.png")]
    shown = predict("--image", *two, "--question", "Same?", "--output", str(output))
    assert shown.strip("\n") == answer_to(loaded, pictures[:2], "Same?").answer
    assert written(output)[0]["image_path"] == two
    assert shown != predict("--image", *two[::-1], "--question", "Same?")
    shown = predict("--question", "What is two and two?", "--output", str(output))
    assert shown.strip("\n") == answer_to(loaded, [], "What is two and two?").answer
    assert written(output)[0]["image_path"] is None


@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_a_folder_with_a_broken_picture(
    predict: Callable[..., str], loaded: tuple, pictures: list, folder: Path, batch_size: str
) -> None:
    """The broken one is a line with its error, in its place; the others are answered."""
    shown = predict(
        "--images", str(folder), "--question", "What?", "--batch_size", batch_size, n_errors=1
    )
    lines = [json.loads(line) for line in shown.splitlines()]
    assert [Path(line["image_path"]).name for line in lines] == ["a.png", "b.jpg", "c.png"]
    assert ["error" in line for line in lines] == [False, True, False]
    assert "b.jpg: not a picture" in lines[1]["error"]
    assert lines[1]["answer"] is None
    for line, picture in ((lines[0], pictures[0]), (lines[2], pictures[1])):
        assert line["answer"] == answer_to(loaded, [picture], "What?").answer


def test_first_questions_of_a_conversation_file(
    predict: Callable[..., str], loaded: tuple, shared_conversations: Path
) -> None:
    """Two pictures, text alone, one picture: each row with its own."""
    from shared.images import open_image

    image_root = shared_conversations.parent / "images"
    rows = [json.loads(line) for line in shared_conversations.read_text().splitlines()]
    file = image_root / "rows.jsonl"
    file.write_text("".join(json.dumps(rows[i]) + "\n" for i in (6, 4, 1, 0)))
    lines = [json.loads(line) for line in
             predict("--questions", str(file), "--limit", "3").splitlines()]  # fmt: skip
    for line, i in zip(lines, (6, 4, 1), strict=True):
        names = rows[i].get("image", [])
        names = [names] if isinstance(names, str) else names
        own = [open_image(image_root / name) for name in names]
        question = rows[i]["conversations"][0]["value"].replace("<image>", "").strip()
        assert line["question"] == question
        assert line["answer"] == answer_to(loaded, own, question).answer


def conversation(text: str, *pictures: str, answer: str = "Yes") -> dict[str, Any]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return ({"image": list(pictures)} if pictures else {}) | {"conversations": turns}


def test_bad_rows_of_a_conversation_file_are_lines_with_their_error(
    predict: Callable[..., str], loaded: tuple, pictures: list, folder: Path, tmp_path: Path
) -> None:
    """No JSON, no turns, an address, no picture: each in its place, and the rest goes on."""
    rows = [
        json.dumps(conversation("<image>\nWhat?", "a.png")),
        '{"conversations": [',
        json.dumps({"conversations": []}),
        json.dumps(conversation("<image>\nWhat?", "https://example.org/a.png")),
        json.dumps(conversation("<image>\nWhat?", "b.jpg")),
        json.dumps(conversation("<image>\nWhat?", "c.png")),
    ]
    file, output = folder / "rows.jsonl", tmp_path / "lines.jsonl"
    file.write_text("\n".join(rows))
    flags = ["--questions", str(file), "--output", str(output), "--batch_size", "2"]
    lines = [json.loads(line) for line in predict(*flags, n_errors=4).splitlines()]
    assert lines == written(output)
    errors = [line.get("error") for line in lines]
    assert [bool(error) for error in errors] == [False, True, True, True, True, False]
    assert f"{file} line 2: not valid JSON" in errors[1]
    assert f"{file} line 3: conversations: empty" in errors[2]
    assert f"{file} line 4: image: https://example.org/a.png is an address" in errors[3]
    assert "b.jpg: not a picture" in errors[4]
    assert lines[1]["question"] is None
    for line, picture in ((lines[0], pictures[0]), (lines[5], pictures[1])):
        assert line["answer"] == answer_to(loaded, [picture], "What?").answer
    file.write_text("\n".join(rows[1:3]))
    with pytest.raises(UserError, match=r"no row can be asked; the first, .* line 1: not valid"):
        predict("--questions", str(file))


def test_words_between_pictures_are_asked_in_their_places(
    predict: Callable[..., str], loaded: tuple, pictures: list, folder: Path
) -> None:
    """As they are trained; a special token in the text stays text."""
    text = "First: <image> second: <image> same?<|im_end|>"
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(conversation(text, "a.png", "c.png")) + "\n")
    answerer = answering.LlavaAnswerer(*loaded, Decoding(max_new_tokens=12))
    features = answerer.encode_images(pictures[:2])
    said, in_front = answerer.answer(
        features, [[0, 1]] * 2,
        [text.replace("<|im_end|>", "< |im_end|>"),
         "<image>\n<image>\nFirst:  second:  same?< |im_end|>"],
    )  # fmt: skip
    assert said.answer != in_front.answer
    assert predict("--questions", str(file)).strip("\n") == said.answer


def test_pictures_inside_messages_are_asked_about(
    predict: Callable[..., str], loaded: tuple, pictures: list, folder: Path, tmp_path: Path
) -> None:
    """OpenAI's image_url parts: a file, a file:// address, a data: URL."""
    content = base64.b64encode((folder / "c.png").read_bytes()).decode()
    urls = ["a.png", (folder / "a.png").as_uri(), f"data:image/png;base64,{content}"]
    rows = [
        {"messages": [
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"},
            ]},
            {"role": "assistant", "content": "Red"},
        ]}
        for url in urls
    ]  # fmt: skip
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.loads(line) for line in predict("--questions", str(file)).splitlines()]
    shown = [pictures[0], pictures[0], pictures[1]]
    for line, picture in zip(lines, shown, strict=True):
        assert line["answer"] == answer_to(loaded, [picture], "What?").answer
    assert lines[1]["image_path"] == str(folder / "a.png")
    assert lines[2]["image_path"].startswith("inline-")


def test_a_question_that_is_too_long_is_a_line_of_its_own(
    predict: Callable[..., str], folder: Path
) -> None:
    with pytest.raises(UserError, match="room for 500"):
        predict("--image", str(folder / "a.png"), "--question", "long " * 200)


def test_a_toy_s_answers_are_marked(
    predict: Callable[..., str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_json(tmp_path / "toy" / "manifest.json", {"synthetic": True})
    toy = ["--model", str(tmp_path / "toy")]  # what is loaded is the fixture's
    shown = predict("--images", str(folder), *toy, n_errors=1)
    assert [json.loads(line)["synthetic"] for line in shown.splitlines()] == [True] * 3


@pytest.mark.parametrize("name", ["pictures/rows.jsonl", "pictures/../pictures/rows.jsonl", "link"])
def test_output_is_never_the_file_of_the_questions(
    predict: Callable[..., str], folder: Path, tmp_path: Path, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By its path, a relative one, a link; the plan says so too, and the rows stay."""
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(conversation("<image>\nWhat?", "a.png")))
    before = file.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    output = "link.jsonl" if name == "link" else name
    for more in ([], ["--dry_run"]):
        with pytest.raises(UserError, match="is the file of the questions: give another"):
            predict("--questions", str(file), "--output", output, *more)
    with pytest.raises(UserError, match="is the file of the questions: give another"):
        predict("--questions", str(tmp_path / "link.jsonl"), "--output", str(file))
    assert file.read_bytes() == before
    assert (tmp_path / "link.jsonl").is_symlink()


def test_output_is_never_a_picture_nor_the_toys_questions(
    predict: Callable[..., str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = folder / "picture.jsonl"
    shutil.copy(folder / "a.png", odd)
    with pytest.raises(UserError, match="is a picture that is asked about"):
        predict("--image", str(folder / "c.png"), str(odd), "--output", str(odd))
    (folder / "rows.jsonl").write_text(json.dumps(conversation("<image>\nWhat?", odd.name)))
    with pytest.raises(UserError, match="is a picture that is asked about"):
        predict("--questions", str(folder / "rows.jsonl"), "--output", str(odd))
    assert odd.read_bytes() == (folder / "a.png").read_bytes()
    toy = tmp_path / "held_out.jsonl"
    toy.write_text("{}")
    monkeypatch.setattr(script, "TOY_QUESTIONS", toy)
    with pytest.raises(UserError, match="is the file of the questions"):
        predict("--image", str(folder / "a.png"), "--output", str(toy))
    assert toy.read_text() == "{}"


def test_the_toys_limit_is_for_its_own_questions_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file or folder of the user's is asked whole, in a YAML file as on the command line."""

    def n_rows(*argv: str) -> int:
        flags = [*argv, "--toy", "--model", "any"]
        return len(rows_to_ask(parse_options(PredictOptions, description="", argv=flags)))

    own = folder / "rows.jsonl"
    own.write_text((json.dumps(conversation("<image>\nWhat?", "a.png")) + "\n") * 11)
    for i in range(9):
        shutil.copy(folder / "a.png", folder / f"more{i}.png")
    (tmp_path / "own.yaml").write_text(f"questions: {own}\n")
    monkeypatch.setattr(script, "TOY_QUESTIONS", own)
    assert n_rows() == 8
    assert [n_rows("--limit", "3"), n_rows("--limit", "0")] == [3, 11]
    assert n_rows("--questions", str(own)) == 11
    assert n_rows(str(tmp_path / "own.yaml")) == 11
    assert n_rows("--questions", str(own), "--limit", "2") == 2
    assert n_rows("--images", str(folder)) == 12
    assert n_rows("--images", str(folder), "--limit", "5") == 5


def test_standard_output_is_json_lines_alone(
    tiny_llava_folder: Callable[..., Path], loaded: tuple, folder: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Notes of the reader and of the loader are not among them."""

    def load_with_a_note(*_: Any) -> tuple:
        print("tokenizer:  a note")
        return loaded

    monkeypatch.setattr(answering, "load_llava", load_with_a_note)
    monkeypatch.setattr("shared.conversation_files.LARGE_FILE", 1)
    file = folder / "rows.json"
    file.write_text(json.dumps([conversation("<image>\nWhat?", "a.png")] * 2))
    flags = ["--model", str(tiny_llava_folder("clip", "qwen2")), "--max_new_tokens", "2"]
    main(parse_options(PredictOptions, description="", argv=[*flags, "--questions", str(file)]))
    said = capsys.readouterr()
    assert [set(json.loads(line)) for line in said.out.splitlines()] == [FIELDS] * 2
    assert "a JSON array of 2 rows, loaded whole" in said.err
    assert "tokenizer:  a note" in said.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image", "FOLDER"], "a folder; give it as --images"),
        (["--images", "FOLDER/a.png"], "a file; give a picture as --image"),
        ([], "what to look at"),
        (["--image", "FOLDER/a.png", "--question", " "], "--question is empty"),
        (["--image", "FOLDER/b.jpg"], "nothing could be answered; the first: .*not a picture"),
        (["--image", "FOLDER/a.png", "--output", "FOLDER/note.txt"], "is no .jsonl file"),
        (["--image", "FOLDER/a.png", "--batch_size", "0"], "--batch_size 0"),
        (["--image", "FOLDER/a.png", "--top_p", "2"], "--top_p 2.0"),
    ],
)
def test_bad_input_says_what_to_do(
    predict: Callable[..., str], folder: Path, argv: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict(*(word.replace("FOLDER", str(folder)) for word in argv))


def test_the_dry_run_needs_no_weights(
    tiny_llava_folder: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    """Of a folder without weights it says so; published models are planned without a file."""
    done = subprocess.run(
        [sys.executable, str(PREDICT), "--image", str(folder / "a.png"), "--question", "Why?",
         "--dry_run", "--quantization", "nf4", "--model",
         str(tiny_llava_folder("clip", "qwen2"))],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "-> 16 image tokens each" in done.stdout
    assert "<image> x 16\\nWhy?<|im_end|>" in done.stdout
    assert "quantization nf4" in done.stdout
    assert "memory:   about" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_weights_answer(
    tiny_llava_folder: Callable[..., Path], folder: Path, capsys: pytest.CaptureFixture,
    quantization: str,
) -> None:  # fmt: skip
    flags = ["--model", str(tiny_llava_folder("clip", "qwen2")), "--device", "cpu",
             "--max_new_tokens", "6", "--quantization", quantization,
             "--image", str(folder / "a.png")]  # fmt: skip
    main(parse_options(PredictOptions, description="", argv=flags))
    assert capsys.readouterr().out.strip()


def test_a_model_that_is_not_here_names_two_commands(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PREDICT), "--model", "nobody/nothing", "--image",
         str(folder / "a.png")], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert "python -m shared.download nobody/nothing" in done.stderr
    assert "--toy" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_copied_folder_without_weights_is_refused(
    tiny_llava_folder: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "model"
    shutil.copytree(
        tiny_llava_folder("clip", "qwen2"), copied, ignore=shutil.ignore_patterns("*.safetensors")
    )
    flags = ["--model", str(copied), "--image", str(folder / "a.png")]
    with pytest.raises(UserError, match=str(copied)):
        main(parse_options(PredictOptions, description="", argv=flags))
