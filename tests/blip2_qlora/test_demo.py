"""The demo: base and tuned answers of one model, errors with their cause, browsing two runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import string
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from blip2_qlora import demo as demo_module
from blip2_qlora.asking import Asker, Reply
from blip2_qlora.browsing import (
    chosen_runs,
    clamp_position,
    count_kinds,
    count_types,
    finished_runs,
    missing_file,
    open_comparison,
    permitted_folder,
    select,
)
from blip2_qlora.demo import DemoOptions, adapter_advice
from blip2_qlora.demo_html import pair_html, replies_html, runs_html
from blip2_qlora.demo_pages import check_input, example_rows
from blip2_qlora.demo_texts import TEXTS
from blip2_qlora.scoring import score_run, write_scores
from shared.answering import Answer
from shared.comparison import picture_file
from shared.options import REPO_ROOT, UserError, write_json

DEMO = REPO_ROOT / "blip2_qlora" / "demo.py"
QUESTION = "what color is the circle?"


def fields_of(text: str) -> set[str]:
    return {re.split(r"\W", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, text in TEXTS["en"].items():
        assert fields_of(text) == fields_of(TEXTS["zh"][key]), key


# A comparison of six questions, without a model


@dataclass(frozen=True)
class Asked:
    """A question of the fake comparison and what both runs answered (None: an error)."""

    question: str
    references: tuple[str, ...]
    base: str | None
    tuned: str | None
    answer_type: str = "other"
    question_type: str = "what color"


SIX = (
    Asked("What color is the kite?", ("red",) * 10, "green", "red"),
    Asked("How many dogs?", ("2",) * 10, "2", "3", "number", "how many"),
    Asked("Is it raining?", ("yes",) * 10, "yes", "yes", "yes/no", "is it"),
    Asked("Is it <b>late</b>?", ("no",) * 10, None, "no", "yes/no", "is it"),
    Asked("What is the man holding?", ("bat",) * 10, "", "ball"),
    Asked("What color is the bus?", ("white",) * 7 + ("grey",) * 3, "grey", "white"),
)


def write_run(folder: Path, side: str, data_root: Path, rows: tuple[Asked, ...] = SIX) -> Path:
    records = [
        {
            "sample_id": str(1000 + i), "image": f"val2014/{i}.png", "image_id": i,
            "question": row.question, "prompt": row.question, "answer_type": row.answer_type,
            "question_type": row.question_type, "references": list(row.references),
            "raw_output": said, "answer": said, "confidence": 0.5 if said else None,
            "first_token_confidence": None, "finish_reason": None if said is None else "stop",
            "n_tokens": 2, "seconds": 0.1, "status": "error" if said is None else "ok",
            "error": "broken picture" if said is None else None,
        }
        for i, row in enumerate(rows)
        for said in [getattr(row, side)]
    ]  # fmt: skip
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
    scored, metrics = score_run(records, expected=len(records))
    metrics["synthetic"] = {"data": True, "model": False}
    write_scores(folder, scored, metrics)
    adapter = "outputs/x/adapter" if side == "tuned" else None
    write_json(
        folder / "config.json",
        {"data_root": str(data_root), "data": None, "adapter": adapter, "quantization": "nf4"},
    )
    return folder


def write_comparison(folder: Path) -> tuple[Path, Path]:
    """Two runs under `folder`/blip2_qlora; pictures for all questions but the last."""
    from PIL import Image

    pictures = folder / "pictures" / "val2014"
    pictures.mkdir(parents=True)
    for i in range(len(SIX) - 1):
        Image.new("RGB", (40, 30), (40 * i, 90, 120)).save(pictures / f"{i}.png")
    root = folder / "pictures"
    runs = folder / "blip2_qlora"
    return write_run(runs / "zero", "base", root), write_run(runs / "tuned", "tuned", root)


@pytest.fixture(autouse=True)
def uploads_folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that a test hands to the page's functions itself count as uploaded."""
    if not request.node.get_closest_marker("browser"):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write_comparison(tmp_path)


def questions(pairs: list) -> list[int]:
    return [int(pair.sample_id) - 1000 for pair in pairs]


def test_filters_take_what_their_names_say(runs: tuple[Path, Path]) -> None:
    pairs = open_comparison(*runs).pairs
    assert questions(select(pairs, "improved", "", "")) == [0, 3, 5]
    assert questions(select(pairs, "worsened", "", "")) == [1]
    assert questions(select(pairs, "same", "", "")) == [2, 4]
    assert questions(select(pairs, "errors", "", "")) == [3, 4]
    assert count_kinds(pairs) == {"all": 6, "improved": 3, "worsened": 1, "same": 2, "errors": 2}
    assert questions(select(pairs, "all", "yes/no", "")) == [2, 3]
    assert questions(select(pairs, "improved", "how many", "")) == []
    assert count_types(pairs) == {
        "other": 3, "yes/no": 2, "number": 1, "what color": 3, "is it": 2, "how many": 1,
    }  # fmt: skip


def test_search_looks_at_questions_answers_references_and_ids(runs: tuple[Path, Path]) -> None:
    pairs = open_comparison(*runs).pairs
    assert questions(select(pairs, "all", "", " KITE ")) == [0]
    assert questions(select(pairs, "all", "", "ball")) == [4]
    assert questions(select(pairs, "all", "", "white")) == [5]
    assert questions(select(pairs, "all", "", "1003")) == [3]
    assert questions(select(pairs, "all", "", "unicorn")) == []


def test_rows_without_references_are_compared_by_their_words(tmp_path: Path) -> None:
    rows = (Asked("Who?", (), "a man", "a man"), Asked("Where?", (), "here", "there"))
    base = write_run(tmp_path / "a", "base", tmp_path, rows)
    tuned = write_run(tmp_path / "b", "tuned", tmp_path, rows)
    comparison = open_comparison(base, tuned)
    assert count_kinds(comparison.pairs) == {
        "all": 2, "improved": 0, "worsened": 0, "same": 1, "errors": 0,
    }  # fmt: skip
    assert "nothing is scored" in runs_html(TEXTS["en"], "en", comparison)


@pytest.mark.parametrize(
    ("position", "n", "expected"),
    [(1, 6, 1), (6, 6, 6), (0, 6, 1), (-3, 6, 1), (7, 6, 6), (None, 6, 1), ("x", 6, 1),
     (float("inf"), 6, 1), (3, 0, 0)],
)  # fmt: skip
def test_positions_stay_inside(position: Any, n: int, expected: int) -> None:
    assert clamp_position(position, n) == expected


def test_a_changed_run_is_read_again(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert len(open_comparison(*runs).pairs) == 6
    shutil.rmtree(runs[1])
    write_run(runs[1], "tuned", tmp_path, SIX[:2])
    os.utime(runs[1] / "scored.jsonl", (1, 1))
    assert len(open_comparison(*runs).pairs) == 2


def test_only_runs_under_outputs_or_given_ones_open(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    inside = write_run(outputs / "blip2_qlora" / "run", "base", tmp_path)
    outside = write_run(tmp_path / "private" / "run", "base", tmp_path)
    link = outputs / "blip2_qlora" / "link"
    link.symlink_to(outside)

    def opened(typed: str, given: tuple[Path, ...] = ()) -> Path | None:
        return permitted_folder(typed, outputs, "blip2_qlora", given)

    assert opened("run") == opened(str(inside)) == opened(f" {inside}/../run ") == inside
    assert opened(str(outside), (outside,)) == outside
    for trick in (
        str(outside), str(link), "link", f"{inside}/../../../private/run", "/etc", "../../..", "~",
        "run\0", "a" * 5000, "no-such-run",
    ):  # fmt: skip
        assert opened(trick) is None, trick
    # A run beside a given one is no given one.
    assert opened(str(tmp_path / "private"), (outside,)) is None


def test_an_unfinished_run_is_no_choice(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert finished_runs(tmp_path, "blip2_qlora") == [str(runs[1]), str(runs[0])]
    (runs[0] / "metrics.json").unlink()
    assert missing_file(runs[0]) == "metrics.json"
    assert finished_runs(tmp_path, "blip2_qlora") == [str(runs[1])]


def test_which_runs_are_browsed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    assert chosen_runs(None, None, None, empty) == (None, None)
    assert chosen_runs(None, str(runs[0]), None, empty) == (runs[0], None)
    report = tmp_path / "report"
    content = {
        side: {"folder": str(run)} for side, run in zip(("base", "tuned"), runs, strict=True)
    }
    write_json(report / "comparison.json", content)
    assert chosen_runs(str(report), None, None, empty) == runs
    assert chosen_runs(str(report), str(runs[1]), None, empty) == (runs[1], runs[1])
    quickstart = tmp_path / "quickstart_tuned"
    quickstart.mkdir()
    assert chosen_runs(None, None, None, tmp_path) == (None, quickstart)
    with pytest.raises(UserError, match=r"nowhere: no such run folder; evaluate\.py writes it"):
        chosen_runs(None, "nowhere", None, empty)
    with pytest.raises(UserError, match=r"config.json: a file; expected the run's folder"):
        chosen_runs(None, str(runs[0] / "config.json"), None, empty)
    with pytest.raises(UserError, match=r"comparison.json: a file; --comparison takes the folder"):
        chosen_runs(str(report / "comparison.json"), None, None, empty)
    write_json(report / "comparison.json", {"base": 1})
    with pytest.raises(UserError, match="names no two runs"):
        chosen_runs(str(report), None, None, empty)


def test_a_question_is_shown_with_everything_that_is_known(runs: tuple[Path, Path]) -> None:
    comparison = open_comparison(*runs)
    page = [
        pair_html(TEXTS["en"], pair, picture_file(comparison.base, pair.base), i + 1, 6)
        for i, pair in enumerate(comparison.pairs)
    ]
    assert "1 of 6" in page[0]
    assert 'src="data:image/jpeg;base64,' in page[0]
    assert page[0].count('class="words differs"') == 2
    assert ">green<" in page[0]
    assert ">red<" in page[0]
    assert "red × 10" in page[0]
    assert "<dd>0.00</dd>" in page[0]
    assert "<dd>1.00</dd>" in page[0]
    assert 'class="words differs"' not in page[2]
    assert "Is it &lt;b&gt;late&lt;/b&gt;?" in page[3]
    assert "Error: broken picture" in page[3]
    assert "(empty answer)" in page[4]
    assert "white × 7, grey × 3" in page[5]
    assert "val2014/5.png is not there" in page[5]


def test_the_head_of_a_comparison_says_what_to_mistrust(runs: tuple[Path, Path]) -> None:
    head = runs_html(TEXTS["en"], "en", open_comparison(*runs))
    assert "SYNTHETIC" in head
    # By hand: base 2, yes and grey (3 of 10: 0.9), tuned red, yes, no and white, of 6 questions.
    assert "48.33 % → 66.67 %" in head
    assert "6 questions in both runs" in head
    assert "differ in more than the model" not in head
    config = json.loads((runs[1] / "config.json").read_text())
    write_json(runs[1] / "config.json", config | {"pictures": "shuffled", "asked": "<lavis>"})
    head = runs_html(TEXTS["zh"], "zh", open_comparison(*runs))
    assert "这两次运行的差别不只在模型" in head
    assert "&lt;lavis&gt;" in head
    assert "另一张图片" in head


# Asking


def said(text: str, confidence: float | None = 0.5, finish_reason: str = "stop") -> Answer:
    return Answer(text, text, confidence, confidence, finish_reason, 2)


def test_answers_side_by_side() -> None:
    replies = [Reply(said("a cat"), said("red"), 0.25), Reply(said("a dog"), said("<i>"), 1.5)]
    page = replies_html(TEXTS["en"], "what & why?", replies, advice=None)
    assert "what &amp; why?" in page
    assert "&lt;i&gt;" in page
    assert "<i>" not in page
    assert page.count('class="words differs"') == 2
    assert "The two answers differ." in page
    assert 'aria-valuenow="0.50"' in page
    assert "0.25 s for caption and answer" in page
    assert "1.50 s for caption and answer" in page
    same = replies_html(
        TEXTS["en"], "x", [Reply(said("a"), said(word), 0.1) for word in ("Red ", "red")], None
    )
    assert "differs" not in same
    assert "Both give the same answer." in same


def test_an_empty_or_cut_answer_is_told() -> None:
    reply = Reply(said("a cat"), said("", None), 0.25)
    page = replies_html(TEXTS["en"], "x", [reply], advice=("train it", "start <it>"))
    assert "(empty answer)" in page
    assert "none for an empty answer" in page
    assert "train it" in page
    assert "start &lt;it&gt;" in page
    assert "Both give" not in page
    cut = Reply(said("a cat"), said("on and on", 0.4, "length"), 0.25)
    assert "cut at the token limit" in replies_html(TEXTS["en"], "x", [cut], None)


class SwitchedModel:
    """Stands for a PEFT model whose adapter state is shared by all callers."""

    def __init__(self) -> None:
        self.on = True

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


class StatefulAsker(Asker):
    """An Asker whose model takes a while and answers with the state of its adapter."""

    def __init__(self) -> None:
        self.model = SwitchedModel()
        self.lock = threading.Lock()

    def reply(self, image: Any, question: str) -> Reply:
        before = self.model.on
        time.sleep(0.02)
        assert self.model.on == before, "the adapter was switched while answering"
        if question == "fail":
            raise ValueError("no answer")
        return Reply(said("a picture"), said(f"{question} {self.model.on}"), 0.02)


def test_two_visitors_never_mix_adapter_states() -> None:
    asker = StatefulAsker()
    answers: dict[str, list[str]] = {}

    def visit(name: str) -> None:
        answers[name] = [reply.answer.answer for reply in asker.ask(None, name)]

    visitors = [threading.Thread(target=visit, args=(f"v{i}",)) for i in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert answers == {f"v{i}": [f"v{i} False", f"v{i} True"] for i in range(8)}


def test_a_failed_answer_leaves_the_adapter_on_and_the_model_free() -> None:
    asker = StatefulAsker()
    with pytest.raises(ValueError, match="no answer"):
        asker.ask(None, "fail")
    assert asker.model.on
    assert [reply.answer.answer for reply in asker.ask(None, "x")] == ["x False", "x True"]


@pytest.fixture(scope="module")
def adapter(tiny_blip2_opt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain PEFT folder whose random matrices change the tiny model's answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Blip2ForConditionalGeneration

    from blip2_qlora.blip2 import LORA_TARGETS

    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration.from_pretrained(tiny_blip2_opt)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=LORA_TARGETS["opt"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def load_asker(model_folder: Path, adapter: Path | None) -> Asker:
    from blip2_qlora.blip2 import base_model, choose_preset, load_blip2

    options = DemoOptions(model=str(model_folder), device="cpu")
    model, processor = load_blip2(options, str(adapter) if adapter else None)
    preset = choose_preset(base_model(model).config, "paper", None, False)
    return Asker(model, processor, preset, greedy=False, caption_min_tokens=8)


@pytest.fixture(scope="module")
def asker(tiny_blip2_opt: Path, adapter: Path) -> Asker:
    with pytest.warns(UserWarning, match="no manifest"):
        return load_asker(tiny_blip2_opt, adapter)


@pytest.mark.slow
def test_base_is_the_model_without_adapter_and_tuned_the_one_with_it(
    asker: Asker, tiny_blip2_opt: Path, adapter: Path, pictures: list
) -> None:
    plain = load_asker(tiny_blip2_opt, None)
    assert not plain.has_adapter
    with pytest.warns(UserWarning, match="no manifest"):
        always_on = load_asker(tiny_blip2_opt, adapter)
    for picture in pictures:
        base, tuned = asker.ask(picture, QUESTION)
        (alone,) = plain.ask(picture, QUESTION)
        assert (base.answer, base.caption) == (alone.answer, alone.caption)
        adapted = always_on.reply(picture, QUESTION)
        assert (tuned.answer, tuned.caption) == (adapted.answer, adapted.caption)
        assert base.answer.answer != tuned.answer.answer
        assert base.caption.n_tokens >= 8
        assert base.seconds > 0


@pytest.fixture
def given(tmp_path: Path, pictures: list) -> dict[str, Any]:
    path = tmp_path / "upload.png"
    pictures[0].save(path)
    return {"path": str(path), "orig_name": "my cat.png"}


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_bad_input_has_its_message(
    asker: Asker, given: dict[str, Any], language: str, tmp_path: Path
) -> None:
    texts = TEXTS[language]

    def refused(picture: dict[str, Any] | None, question: str) -> str:
        with pytest.raises(UserError) as told:
            check_input(picture, question, asker, texts)
        return str(told.value)

    assert refused(None, QUESTION) == texts["no_picture"]
    assert refused(given, "") == texts["no_question"]
    assert refused(given, "what is <image>?") == texts["image_word"]
    # <s>, Question, :, 1000 words, Answer, :
    long = texts["too_long"].format(tokens="1,005", room=128 - 4 - 10)
    assert refused(given, "what " * 1000) == long
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    broken = refused({"path": str(text), "orig_name": "holiday.jpg"}, QUESTION)
    assert "holiday.jpg" in broken
    assert "not a picture" in broken
    assert str(tmp_path) not in broken
    assert check_input(given, QUESTION, asker, texts).size == (50, 40)


def test_examples_are_committed_pictures() -> None:
    rows = example_rows()
    assert len(rows) == len({picture for picture, _ in rows}) == 10
    for picture, question in rows:
        assert Path(picture).is_file()
        assert Path(picture).is_relative_to(REPO_ROOT)
        assert question.endswith("?")


def test_advice_names_the_browsed_adapter_while_it_is_there(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    train, start = adapter_advice(DemoOptions(toy=True), runs[1])
    assert train == "python blip2_qlora/train.py --toy"
    assert start.endswith("demo.py --toy --adapter outputs/blip2_qlora/RUN/adapter")
    config = json.loads((runs[1] / "config.json").read_text())
    write_json(runs[1] / "config.json", config | {"adapter": str(tmp_path)})
    _, start = adapter_advice(DemoOptions(), runs[1])
    assert start.endswith(f"demo.py --adapter {tmp_path} --quantization nf4")


# The command


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_dry_run_needs_no_weights(tiny_blip2_opt: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_blip2_opt, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    done = run_demo("--model", str(folder), "--dry_run", "--language", "zh", "--port", "7999")
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:7999/ in zh" in done.stdout
    assert "<image> x 4 + 'Question: What is in the picture? Answer:'" in done.stdout
    assert "only the base model answers" in done.stdout
    done = run_demo("--model", "absent/model", "--dry_run", "--browse_only")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model:    none" in done.stdout


@pytest.mark.slow
def test_finished_runs_are_browsed_without_a_model(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 GB were loaded, and needed, only to look at a comparison."""
    served = []
    monkeypatch.setattr(demo_module, "serve", lambda page, *_, **__: served.append(page))
    demo_module.main(
        DemoOptions(
            model="absent/model", base_run=str(runs[0]), tuned_run=str(runs[1]), browse_only=True
        )
    )
    kinds = {type(block).__name__ for block in served[0].blocks.values()}
    assert {"Radio", "Dropdown"} <= kinds
    assert not kinds & {"Image", "ImageEditor", "Examples"}


@pytest.mark.parametrize("tokens", [-1, 31])
def test_a_caption_s_least_length_has_bounds(tokens: int) -> None:
    with pytest.raises(UserError, match=f"--caption_min_tokens {tokens}: between 0 and 30"):
        DemoOptions(caption_min_tokens=tokens)


@pytest.mark.slow
def test_without_weights_two_commands_are_named() -> None:
    done = run_demo("--model", "nobody/nothing")
    assert done.returncode == 2
    assert "python -m shared.download nobody/nothing" in done.stderr
    assert "--toy" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_taken_port_ends_the_start(tiny_blip2_opt: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run_demo("--model", str(tiny_blip2_opt), "--port", port)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr


# The page in a browser


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def demo(
    tiny_blip2_opt: Path,
    adapter: Path,
    comparison: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SimpleNamespace]:
    """The demo as a process of its own, its model marked synthetic.

    When it is told to end, it has deleted what visitors uploaded.
    """
    model = tmp_path_factory.mktemp("synthetic") / "model"
    shutil.copytree(tiny_blip2_opt, model)
    write_json(model / "manifest.json", {"synthetic": True})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uploads = tmp_path_factory.mktemp("uploads")
    command = [
        sys.executable, str(DEMO), "--model", str(model), "--adapter", str(adapter),
        "--device", "cpu", "--port", str(port),
        "--base_run", str(comparison[0]), "--tuned_run", str(comparison[1]),
    ]  # fmt: skip
    environment = os.environ | {"GRADIO_TEMP_DIR": str(uploads), "OMP_NUM_THREADS": "1"}
    log = uploads.parent / f"demo_{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 180
        while "page: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}/")
    finally:
        process.terminate()
        process.wait(30)
    assert [file for file in uploads.rglob("*") if file.is_file() and "upload" in file.name] == []


@pytest.fixture
def picture_files(tmp_path: Path, pictures: list) -> list[Path]:
    files = [tmp_path / f"upload_{i}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    return files


def open_demo(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("tab").first.wait_for()
    page.locator("input[type=file]").first.wait_for(state="attached")


def upload(page: Any, file: Path) -> None:
    with page.expect_response(re.compile("/upload")):
        page.locator("input[type=file]").first.set_input_files(file)
    page.locator(".picture img").wait_for(state="attached")


def answers_to(page: Any, question: str) -> list[str]:
    """Both answers once the page shows those to this question."""
    page.locator(".asked", has_text=question).first.wait_for()
    return page.locator(".said .words").all_inner_texts()


def expected(asker: Asker, picture: Any, question: str) -> list[str]:
    return [reply.answer.answer or "(empty answer)" for reply in asker.ask(picture, question)]


@pytest.mark.browser
@pytest.mark.slow
def test_a_visitor_sees_both_answers(
    demo: SimpleNamespace,
    chromium_page,
    page_log: dict[str, list[str]],
    asker: Asker,
    pictures: list,
    picture_files: list[Path],
) -> None:
    open_demo(chromium_page, demo.address)
    chromium_page.get_by_text("Runs on the CPU").wait_for()
    chromium_page.get_by_text("SYNTHETIC A toy model").wait_for()
    upload(chromium_page, picture_files[0])
    chromium_page.get_by_label("Question", exact=True).fill(QUESTION)
    chromium_page.get_by_role("button", name="Ask", exact=True).click()
    shown = answers_to(chromium_page, QUESTION)
    assert shown == expected(asker, pictures[0], QUESTION)
    assert chromium_page.locator("[role=meter]").count() == 2
    assert chromium_page.get_by_text("s for caption and answer").count() == 2
    foreign = [
        u for u in page_log["requests"] if not u.startswith((demo.address, "data:", "blob:"))
    ]
    assert foreign == []
    assert page_log["errors"] == []


@pytest.mark.browser
@pytest.mark.slow
def test_an_example_fills_picture_and_question(demo: SimpleNamespace, chromium_page) -> None:
    open_demo(chromium_page, demo.address)
    chromium_page.get_by_text("Is there a frame?").click()
    chromium_page.locator(".picture img").wait_for(state="attached")
    chromium_page.get_by_role("button", name="Ask", exact=True).click()
    assert len(answers_to(chromium_page, "Is there a frame?")) == 2


@pytest.mark.browser
@pytest.mark.slow
def test_errors_show_their_cause_and_the_page_goes_on(
    demo: SimpleNamespace, chromium_page, picture_files: list[Path], tmp_path: Path
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    alert = page.locator("[role=alert]:visible")
    ask = page.get_by_role("button", name="Ask", exact=True)

    ask.click()
    alert.get_by_text("Give a picture first").wait_for()

    upload(page, picture_files[0])
    ask.click()
    alert.get_by_text("Write a question first").wait_for()

    page.get_by_label("Question", exact=True).fill("what " * 1000)
    ask.click()
    alert.get_by_text("The question is too long: with its prompt it has 1,005 tokens").wait_for()

    text = tmp_path / "holiday.jpg"
    text.write_text("this is no picture")
    page.reload()
    open_demo(page, demo.address)
    page.locator("input[type=file]").first.set_input_files(text)
    alert.get_by_text("holiday.jpg can't be used: not a picture").wait_for()
    page.locator(".picture img").wait_for(state="detached")  # no broken icon beside the message
    page.get_by_label("Question", exact=True).fill(QUESTION)
    ask.click()
    alert.get_by_text("holiday.jpg can't be used: not a picture").wait_for()

    upload(page, picture_files[1])
    page.get_by_text("The answers appear here").first.wait_for()
    assert alert.count() == 0  # the refusal is forgotten
    ask.click()
    assert len(answers_to(page, QUESTION)) == 2
    assert alert.count() == 0


@pytest.mark.browser
@pytest.mark.slow
def test_the_chinese_page_speaks_chinese_also_in_its_errors(
    demo: SimpleNamespace, chromium_page, tmp_path: Path
) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_role("link", name="中文").click()
    page.get_by_role("tab", name="浏览对比结果").wait_for()
    page.get_by_role("button", name="提问", exact=True).click()
    page.locator("[role=alert]").get_by_text("请先给一张图片").wait_for()
    text = tmp_path / "holiday.jpg"
    text.write_text("this is no picture")
    page.locator("input[type=file]").first.set_input_files(text)
    page.locator("[role=alert]").get_by_text("无法使用 holiday.jpg：它不是图片").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_browsing_a_comparison(demo: SimpleNamespace, chromium_page) -> None:
    page = chromium_page
    open_demo(page, demo.address)
    page.get_by_role("tab", name="Browse a comparison").click()
    page.get_by_text("48.33 % → 66.67 %").wait_for()
    page.get_by_text("1 of 6").wait_for()
    assert page.locator(".pair img").get_attribute("src").startswith("data:image/jpeg")
    assert page.locator(".pair .said .words").all_inner_texts() == ["green", "red"]

    page.set_viewport_size({"width": 1200, "height": 900})
    kinds = page.get_by_role("radio").all()
    assert len({box["y"] for kind in kinds if (box := kind.bounding_box())}) == 1  # none wraps

    following = page.get_by_role("button", name="Next")
    following.click()
    page.locator(".pair").get_by_text("How many dogs?").wait_for()
    page.get_by_role("button", name="Previous").click()
    page.get_by_text("1 of 6").wait_for()
    page.get_by_role("button", name="Previous").click()
    page.get_by_text("1 of 6").wait_for()

    page.get_by_label("improved (3)").check()
    page.get_by_text("1 of 3").wait_for()
    following.click()
    page.locator(".pair").get_by_text("Error: broken picture").wait_for()
    search = page.get_by_label("Search in questions and answers")
    search.press_sequentially("bus")  # Gradio listens to keys: `fill` alone would start nothing
    page.get_by_text("1 of 1").wait_for()
    page.locator(".pair").get_by_text("val2014/5.png is not there").wait_for()
    search.press_sequentially(" unicorn")
    page.get_by_text("No question matches").wait_for()

    page.get_by_label("Base run").fill("/etc")
    page.get_by_label("Base run").press("Enter")
    page.get_by_role("button", name="Open").click()
    page.locator("[role=alert]").get_by_text("only runs under outputs can be opened").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_two_visitors_at_once_get_their_own_answers(
    demo: SimpleNamespace, chromium_page, asker: Asker, pictures: list, picture_files: list[Path]
) -> None:
    other = chromium_page.context.browser.new_context().new_page()
    visits = [(chromium_page, 0, "what color is the star?"), (other, 1, "how many are there?")]
    for page, i, _ in visits:
        open_demo(page, demo.address)
        upload(page, picture_files[i])
    for again in range(3):
        for page, _, question in visits:
            page.get_by_label("Question", exact=True).fill(f"{question} {again}")
        for page, _, _ in visits:
            page.get_by_role("button", name="Ask", exact=True).click(no_wait_after=True)
        for page, i, question in visits:
            asked = f"{question} {again}"
            assert answers_to(page, asked) == expected(asker, pictures[i], asked)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("beside", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_no_visitor_reads_the_servers_files(
    demo: SimpleNamespace, picture_files: list[Path], beside: dict[str, Any]
) -> None:
    """A forged request names a picture on the server's disk in the place of an upload."""
    with httpx.Client(trust_env=False, base_url=demo.address, timeout=60) as client:
        config = client.get("config").json()
        ask = next(d for d in config["dependencies"] if d["api_name"] == "ask")
        forged = {"path": str(picture_files[0]), **beside}
        session = f"forged{len(beside)}"
        joined = client.post(
            "gradio_api/queue/join",
            json={
                "data": [forged, QUESTION],
                "fn_index": ask["id"],
                "session_hash": session,
            },
        )
        assert joined.status_code == 200, joined.text
        with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line[:5] == "data:"]
    (done,) = [event for event in events if event["msg"] == "process_completed"]
    assert done["success"] is False
    assert "said" not in json.dumps(done["output"])
