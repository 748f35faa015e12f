"""predict.py: every task's rows, files and exit codes; options that a task would not use."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lavis_apps import build_index
from lavis_apps.captioning import Captioner
from lavis_apps.matching import Matcher
from lavis_apps.predict import main, readable
from lavis_apps.predict_settings import GROUPS, HOW_MANY, TOY_IMAGES, PredictOptions
from lavis_apps.predict_tasks import numbers
from lavis_apps.settings import TASKS, TOY_MODELS
from lavis_apps.vqa import Answerer
from shared.options import REPO_ROOT, ToyOptions, UserError, parse_options
from tests.tiny_models import tiny_blip

KINDS = {"caption": "caption", "vqa": "vqa"}  # every other task asks a BLIP for matching
WORDS = {
    "caption": (),
    "vqa": ("--question", "what is it?"),
    "matching": ("--text", "a red star"),
    "classification": ("--classes", "star", "square"),
    "features": ("--text", "a red star"),
    "localization": ("--text", "a red star"),
}


@pytest.fixture(scope="session")
def tiny_blips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("blips")
    return {kind: tiny_blip(kind, folder / kind) for kind in ("caption", "vqa", "matching")}


@pytest.fixture
def predict(tiny_blips, capsys):
    """Runs main with flags; returns the rows printed, what was told, and the exit status."""

    def run(task: str, *argv: str) -> tuple[list[dict[str, Any]], str, int]:
        model = tiny_blips[KINDS.get(task, "matching")]
        flags = ["--task", task, "--json", "--device", "cpu"]
        if task != "search" and "--model" not in argv:
            flags += ["--model", str(model)]
        code = 0
        try:
            main(parse_options(PredictOptions, description="", argv=[*flags, *argv]))
        except SystemExit as end:
            code = int(end.code or 0)
        told = capsys.readouterr()
        return [json.loads(line) for line in told.out.splitlines()], told.err, code

    return run


@pytest.fixture
def folder(tmp_path, pictures) -> Path:
    """a.png, c.png, between them a file that is no picture, and a note."""
    found = tmp_path / "pictures"
    found.mkdir()
    pictures[0].save(found / "a.png")
    pictures[1].save(found / "c.png")
    (found / "b.jpg").write_bytes(b"<html>not found</html>")
    (found / "note.txt").write_text("")
    return found


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [Path(row["image"]).name for row in rows]


def test_captions(predict, folder, tiny_blips, pictures):
    rows, told, code = predict(
        "caption", "--image", str(folder), "--n", "2", "--max_length", "12", "--prompt", "the red"
    )
    assert names(rows) == ["a.png", "a.png", "b.jpg", "c.png", "c.png"]
    assert "b.jpg: not a picture" in rows[2]["error"]
    assert code == 1
    assert "1 of 3 pictures could not be used" in told
    assert "1 other file(s)" in told  # the note
    found = Captioner.open(tiny_blips["caption"], device="cpu").caption(
        pictures[:2], n=2, max_length=12, prompt="the red"
    )
    expected = [(i, c.text) for own in found for i, c in enumerate(own, start=1)]
    assert [(row["rank"], row["caption"]) for row in rows if "error" not in row] == expected
    assert rows[0]["score"] == pytest.approx(found[0][0].score, abs=1e-4)


def test_the_seed_reaches_nucleus_sampling(predict, folder):
    def sample(seed: str) -> list[str]:
        rows, _, _ = predict(
            "caption", "--image", str(folder / "a.png"), "--n", "3", "--method", "nucleus",
            "--seed", seed, "--max_length", "12",
        )  # fmt: skip
        return [row["caption"] for row in rows]

    assert sample("1") == sample("1") != sample("2")


def test_questions_candidates_and_attention(predict, folder, tmp_path, tiny_blips, pictures):
    file = tmp_path / "answers.txt"
    file.write_text("red\nblue\n\ntwo\n")
    drawings = tmp_path / "drawings"
    rows, _, code = predict(
        "vqa", "--image", str(folder), "--question", "what color?", "is it a star?",
        "--candidates_file", str(file), "--n", "2", "--attention", "--output_dir", str(drawings),
    )  # fmt: skip
    assert names(rows) == ["a.png", "a.png", "b.jpg", "c.png", "c.png"]
    assert code == 1
    answerer = Answerer.open(tiny_blips["vqa"], device="cpu")
    expected = answerer.answer(
        [pictures[0]] * 2 + [pictures[1]] * 2, ["what color?", "is it a star?"] * 2,
        candidates=["red", "blue", "two"], n=2, attention=True,
    )  # fmt: skip
    good = [row for row in rows if "error" not in row]
    for row, one in zip(good, expected, strict=True):
        assert (row["answer"], len(row["top"])) == (one.answer, 2)
        assert row["confidence"] == pytest.approx(one.confidence, abs=1e-4)
        np.testing.assert_allclose(row["attention"], one.attention, atol=1e-4)
        assert Image.open(row["drawing"]).size == (50, 40)
    assert len({row["drawing"] for row in good}) == 4


def test_matching_every_text_with_every_picture(predict, folder, tiny_blips, pictures):
    rows, _, _ = predict("matching", "--image", str(folder), "--text", "a red star", "two squares")
    good = [row for row in rows if "error" not in row]
    assert [row["text"] for row in good] == ["a red star", "two squares"] * 2
    found = Matcher.open(tiny_blips["matching"], device="cpu").match(
        pictures[:2], ["a red star", "two squares"]
    )
    assert [row["itm"] for row in good] == pytest.approx(found.itm.flatten().tolist(), abs=1e-4)
    assert [row["itc"] for row in good] == pytest.approx(found.itc.flatten().tolist(), abs=1e-4)


def test_classes_from_a_file_to_a_table(predict, folder, tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("star\nsquare\nStar\ntwo\n")
    table = tmp_path / "out" / "classes.csv"
    rows, told, code = predict(
        "classification", "--image", str(folder), "--classes_file", str(file), "--n", "2",
        "--output", str(table), "--none_threshold", "1.0", "--batch_size", "1",
    )  # fmt: skip
    assert code == 1
    assert "line 3: 'Star' stands in line 1 already" in told
    with table.open(encoding="utf-8", newline="") as content:
        written = list(csv.DictReader(content))
    assert [Path(row["image"]).name for row in written] == ["a.png", "b.jpg", "c.png"]
    assert "not a picture" in written[1]["error"]
    for row, line in zip(rows, written, strict=True):
        if "error" not in row:
            assert (row["label"], line["label"]) == (None, "none of these")
            assert [one["label"] for one in row["top"]] == [line["class_1"], line["class_2"]]
            assert row["top"][0]["probability"] == pytest.approx(
                float(line["probability_1"]), abs=1e-5
            )


def test_features_as_rows_and_as_a_file(predict, folder, tmp_path):
    rows, _, code = predict("features", "--image", str(folder), "--text", "a red star")
    assert code == 1
    assert rows[0]["text"] == "a red star"
    text = np.array(rows[0]["text_features"])
    vectors = np.array([row["image_features"] for row in rows[1:] if "error" not in row])
    assert vectors.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm([*vectors, text], axis=1), 1, rtol=1e-4)
    file = tmp_path / "features.npz"
    rows, _, code = predict(
        "features", "--image", str(folder), "--text", "a red star", "--output", str(file)
    )
    assert code == 1
    assert [row.get("count") for row in rows] == [None, 2]
    content = np.load(file)
    assert [Path(name).name for name in content["image"]] == ["a.png", "c.png"]
    np.testing.assert_allclose(content["image_features"], vectors, atol=1e-5)
    (alone,), _, code = predict("features", "--text", "a red star")
    assert code == 0
    np.testing.assert_allclose(alone["text_features"], text, atol=1e-5)


def test_localization_with_its_drawings(predict, folder, tmp_path):
    drawings = tmp_path / "maps"
    rows, _, _ = predict(
        "localization", "--image", str(folder), "--text", "a red star", "--block", "0",
        "--output_dir", str(drawings),
    )  # fmt: skip
    good = [row for row in rows if "error" not in row]
    assert len(good) == 2
    for row in good:
        assert [word["word"] for word in row["words"]] == ["a", "red", "star"]
        assert np.array(row["average"]).shape == (4, 4)
        assert Image.open(row["drawing"]).size == (50, 40)
        assert Image.open(row["words_drawing"]).format == "PNG"
    assert len(list(drawings.iterdir())) == 4


def test_search_by_words_and_by_a_picture(predict, tmp_path, tiny_blips, pictures, capsys):
    shown = tmp_path / "shown"
    shown.mkdir()
    for number, image in enumerate(pictures):
        image.save(shown / f"{number}.png")
    index = tmp_path / "index"
    build_index.main(
        build_index.IndexOptions(
            images=str(shown), output=str(index), model=str(tiny_blips["matching"]), device="cpu"
        )
    )
    capsys.readouterr()
    rows, _, code = predict("search", "--index", str(index), "--image", str(shown / "1.png"))
    assert code == 0
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["image"] == "1.png"
    assert rows[0]["score"] == pytest.approx(1, abs=1e-4)
    drawings = tmp_path / "hits"
    rows, _, _ = predict(
        "search", "--index", str(index), "--query", "a red star", "--n", "2", "--rerank", "3",
        "--localize", "--output_dir", str(drawings),
    )  # fmt: skip
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[0]["score"] >= rows[1]["score"]
    assert all(0 <= row["itm"] <= 1 and Path(row["drawing"]).is_file() for row in rows)
    with pytest.raises(UserError, match="takes one picture"):
        predict("search", "--index", str(index), "--image", str(shown))


def test_the_toy_builds_its_index_once(tmp_path, monkeypatch, pictures, capsys):
    shown, index = tmp_path / "val2014", tmp_path / "index_toy"
    shown.mkdir()
    pictures[0].save(shown / "a.png")
    for name, value in (("TOY_IMAGES", shown), ("TOY_INDEX", index)):
        for module in ("predict", "predict_settings"):
            monkeypatch.setattr(f"lavis_apps.{module}.{name}", value)
    argv = ["--task", "search", "--toy", "--json", "--device", "cpu"]
    for _ in range(2):
        main(parse_options(PredictOptions, description="", argv=argv))
        (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert (row["image"], row["synthetic"]) == ("a.png", True)
        monkeypatch.setattr("lavis_apps.index_building.build", lambda *a, **k: pytest.fail("again"))


def test_the_output_has_the_rows_that_are_printed(predict, folder, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("an earlier run\n")
    rows, _, _ = predict("caption", "--image", str(folder), "--output", str(file), "--limit", "2")
    assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == rows
    assert names(rows) == ["a.png", "b.jpg"]
    with pytest.raises(UserError, match=r"rows.txt: .jsonl for this task"):
        predict("caption", "--image", str(folder), "--output", str(tmp_path / "rows.txt"))
    with pytest.raises(UserError, match=r".csv or .jsonl"):
        predict("classification", "--image", str(folder), "--classes", "a", "--output", "rows.npz")


def test_a_name_that_is_no_utf8(predict, tmp_path, tiny_blips, pictures):
    """On the screen, as lines, as tables: the picture is answered, its name comes back."""
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    try:
        pictures[0].save(odd, format="png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    lines = tmp_path / "rows.jsonl"
    argv = ["classification", "--image", str(folder), "--classes", "a star", "a square"]
    rows, _, _ = predict(*argv, "--output", str(lines))
    assert rows[0]["image"] == json.loads(lines.read_text("utf-8"))["image"] == str(odd)
    predict(*argv, "--output", str(tmp_path / "rows.csv"))
    assert "caf\\udce9.png" in (tmp_path / "rows.csv").read_text("utf-8")
    for name in ("f.npz", "f.parquet"):
        predict("features", "--image", str(folder), "--output", str(tmp_path / name))
    assert np.load(tmp_path / "f.npz")["image"].tolist() == [str(odd)]
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["image"].to_pylist()[0].endswith("caf\\udce9.png")


def test_a_broken_picture_is_named_where_features_go_to_a_file(predict, folder, tmp_path):
    rows, _, code = predict("features", "--image", str(folder), "--output", str(tmp_path / "f.npz"))
    assert code == 1
    assert readable(rows[0]) == f"left out: {folder / 'b.jpg'}: not a picture that Pillow can read"


def test_small_maps_keep_their_digits():
    grid = np.array([[1.23456789e-7, 0.5], [0.0, 1 / 3]], dtype=np.float32)
    assert numbers(grid) == [[1.23457e-7, 0.5], [0.0, 0.333333]]


def test_what_is_read_by_the_eye_is_short():
    line = readable({"image": "a.jpg", "text": "word " * 2000, "itm": 0.5})
    assert line.startswith("a.jpg: text word word")
    assert line.endswith("...; itm 0.5000")
    assert len(line) < 600
    said = {"answer": "", "top": [{"answer": "", "probability": 0.5}]}
    assert readable({"image": "a.jpg"} | said) == "a.jpg: (empty); top: (empty) 0.500"


def test_nothing_usable_is_an_error(predict, folder):
    with pytest.raises(UserError, match=r"no picture could be used; the first: .*b\.jpg: not a"):
        predict("caption", "--image", str(folder / "b.jpg"))
    with pytest.raises(UserError, match="no such file or folder"):
        predict("caption", "--image", str(folder / "missing.png"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--task", "draw"), "--task draw: no such task; one of caption"),
        ((), "--task is missing"),
        (("--task", "caption", "--image", "x", "--classes", "a"), "--classes is not used by --task "
         "caption; it belongs to classification"),
        (("--task", "vqa", "--image", "x", "--prompt", "a"), "--prompt is not used by --task vqa"),
        (("--task", "search", "--index", "x", "--query", "a", "--limit", "3"), "--limit is not"),
        (("--task", "matching", "--image", "x", "--text", "a", "--n", "3"), "--n is not used"),
        (("--task", "features", "--text", "a", "--quantization", "nf4"), "--quantization is not"),
        (("--task", "caption"), "which picture"),
        (("--task", "vqa", "--image", "x"), "--task vqa needs --question"),
        (("--task", "matching", "--image", "x"), "--task matching needs --text"),
        (("--task", "classification", "--image", "x"), "needs --classes or --classes_file"),
        (("--task", "features",), "needs --image or --text"),
        (("--task", "search", "--query", "a"), "needs --index"),
        (("--task", "search", "--index", "x"), "needs --query or --image"),
        (("--task", "classification", "--image", "x", "--classes", "a", "--classes_file", "f"),
         "--classes or --classes_file, not both"),
        (("--task", "vqa", "--image", "x", "--question", "a", "--history", "b"), "--history"),
        (("--task", "vqa", "--image", "x", "--question", "a", "--output_dir", "d"), "--attention"),
        (("--task", "search", "--index", "x", "--query", "a", "--localize"), "--output_dir"),
        (("--task", "features", "--image", "x", "--text", "a", "b"), "takes one --text"),
        (("--task", "features", "--image", "x", "--tokens"), "--tokens needs --output"),
        (("--task", "caption", "--image", "x", "--batch_size", "0"), "--batch_size 0: at least 1"),
        (("--task", "caption", "--image", "x", "--top_p", "0.5"), "--top_p needs --method nucleus"),
        (("--task", "caption", "--image", "x", "--temperature", "2"), "--temperature needs"),
        (("--task", "caption", "--image", "x", "--method", "nucleus", "--num_beams", "5"),
         "--num_beams needs --method beam"),
        (("--task", "vqa", "--image", "x", "--question", "a", "--candidates", "b", "--max_length",
          "5"), "--max_length is of generated answers"),
        (("--task", "vqa", "--image", "x", "--question", "a", "--ranked", "5"), "--ranked needs"),
        (("--task", "vqa", "--image", "x", "--question", "a", "--n", "9"), "give --num_beams 9"),
        (("--task", "classification", "--image", "x", "--classes", "a", "--scoring", "itm",
          "--temperature", "2"), "--temperature is of cosines"),
        (("--task", "search", "--index", "x", "--query", "a", "--text_weight", "0.9"),
         "--text_weight needs --query and --image"),
        (("--task", "search", "--index", "x", "--query", "a", "--reranker", "m"),
         "--reranker needs --rerank or --localize"),
        (("--task", "classification", "--image", "x", "--classes_file", "a.csv", "--output",
          "./a.csv"), "is the file of the classes"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(argv, message):
    with pytest.raises(UserError) as refused:
        parse_options(PredictOptions, description="", argv=list(argv))
    assert message in str(refused.value)


def test_every_option_stands_in_a_group_that_names_its_tasks():
    grouped = [one.name for group in GROUPS for one in fields(group)]
    assert len(grouped) == len(set(grouped))
    others = {one.name for one in fields(ToyOptions)}
    assert {one.name for one in fields(PredictOptions)} == {*grouped, *others}
    for group in GROUPS:
        title = str(group.__doc__).splitlines()[0]
        if group.TASKS == TASKS:
            assert title.startswith("every task")
        else:
            assert [task for task in TASKS if task in title.replace(",", "").split(":")[0].split()]
            assert set(group.TASKS) == {task for task in TASKS if task in title.split(":")[0]}


@pytest.mark.parametrize("task", TASKS)
def test_the_toy_fills_in_what_is_not_given(task):
    options = PredictOptions(task=task, toy=True)
    assert options.n == HOW_MANY.get(task)
    if task == "search":
        assert options.model is None
        assert options.query
        return
    assert options.model == str(TOY_MODELS[KINDS.get(task, "matching")])
    assert (options.image, options.limit) == (str(TOY_IMAGES), 4)
    given = PredictOptions(task=task, toy=True, image="own.jpg")
    assert (given.image, given.limit) == ("own.jpg", 0)


def test_models_by_default():
    assert PredictOptions(task="caption", image="x").model == (
        "Salesforce/blip-image-captioning-base"
    )
    by_clip = {"task": "classification", "image": "x", "classes": ["a"], "scoring": "clip"}
    assert PredictOptions(**by_clip).model == "openai/clip-vit-base-patch32"
    assert PredictOptions(**by_clip, model="own").model == "own"


@pytest.mark.parametrize("task", [*WORDS])
def test_a_rehearsal_loads_no_weights(task, folder, tiny_blips, monkeypatch, capsys):
    import lavis_apps.blip

    monkeypatch.setattr(lavis_apps.blip, "load_pretrained", lambda *a, **k: pytest.fail("loaded"))
    model = tiny_blips[KINDS.get(task, "matching")]
    argv = ["--task", task, "--model", str(model), "--image", str(folder), "--dry_run"]
    main(parse_options(PredictOptions, description="", argv=[*argv, *WORDS[task]]))
    plan = capsys.readouterr().out
    assert f"task:     {task}" in plan
    assert f"pictures: 3, first: {folder / 'a.png'}" in plan
    assert f"model:    {model} (blip," in plan
    for word in WORDS[task][1:]:
        assert word in plan


def test_rows_for_the_eye():
    row = {"image": "a.jpg", "label": None, "probability": 0.5, "top": [
        {"label": "dog", "probability": 0.5, "score": 0.1}], "synthetic": True}  # fmt: skip
    assert readable(row) == (
        "a.jpg: none of these; probability 0.5000; top: dog 0.500; (SYNTHETIC: a toy)"
    )
    assert readable({"image": "a.jpg", "caption": "", "score": -1.0}) == (
        "a.jpg: (empty); score -1.0000"
    )
    assert readable({"image": "a.jpg", "error": "a.jpg: broken"}) == "left out: a.jpg: broken"
    assert readable({"text": "a", "text_features": [0.1, 0.2]}) == (
        "text a; text_features: 2 numbers"
    )


@pytest.mark.slow
def test_from_inside_its_folder_with_json_on_standard_output_alone(folder, tiny_blips):
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "predict.py", *argv], cwd=REPO_ROOT / "lavis_apps",
            capture_output=True, text=True,
        )  # fmt: skip

    done = run(
        "--task", "caption", "--image", str(folder), "--model", str(tiny_blips["caption"]),
        "--json", "--max_length", "8",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert names([json.loads(line) for line in done.stdout.splitlines()]) == [
        "a.png", "b.jpg", "c.png",
    ]  # fmt: skip
    refused = run("--task", "caption", "--classes", "a")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: --classes is not used")


def test_a_rehearsal_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shared.loading.DATA_ROOT", tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    argv = ["--task", "caption", "--image", str(tmp_path / "a.png"), "--dry_run"]
    main(parse_options(PredictOptions, description="", argv=argv))
    said = capsys.readouterr().out
    assert "about 1.0 GB" in said
    assert "python -m shared.download Salesforce/blip-image-captioning-base" in said
