"""predict.py on a tiny random LLaVA: verdicts, thresholds of a run, JSON lines, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_openset.classifying import KEYS, verdict
from llava_openset.predict import PredictOptions, main, pictures_of, toy_defaults
from llava_openset.protocols import Outcome
from llava_openset.samples import read_split
from shared.options import UserError, parse_options

CLASSES = ["dog", "cat", "hot dog"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(path)
    return path


@pytest.fixture
def predict(
    tiny_llava_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the script's main with the tiny model; what it printed."""

    def run(*argv: str, classes: Sequence[str] = CLASSES) -> str:
        flags = ["--model", str(tiny_llava_folder("clip", "qwen2")), "--device", "cpu",
                 "--max_new_tokens", "8", "--classes", *classes, *argv]  # fmt: skip
        capsys.readouterr()
        main(parse_options(PredictOptions, description="", argv=flags))
        return capsys.readouterr().out

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_likelihood_without_a_threshold_leaves_the_verdict_open(
    predict: Callable[..., str], picture: Path
) -> None:
    (line,) = lines(predict("--image", str(picture), "--json"))
    assert line["prediction"] in CLASSES
    assert line["answer"] == line["prediction"]
    assert (line["verdict"], line["class"], line["threshold"]) == (None, None, None)
    assert set(line["class_probabilities"]) == set(CLASSES)
    assert line["scores"]["max_softmax"] == pytest.approx(
        max(line["class_probabilities"].values()), abs=1e-6
    )
    assert "no threshold" in predict("--image", str(picture))


@pytest.mark.parametrize(("threshold", "said"), [("0", "known"), ("1.1", "unknown")])
def test_a_threshold_decides(
    predict: Callable[..., str], picture: Path, threshold: str, said: str
) -> None:
    (line,) = lines(predict("--image", str(picture), "--json", "--threshold", threshold))
    assert line["verdict"] == said
    assert line["class"] == (line["prediction"] if said == "known" else None)
    text = predict("--image", str(picture), "--threshold", threshold)
    assert text.startswith(f"{picture}: {'unknown' if said == 'unknown' else line['prediction']}")


@pytest.mark.parametrize("key", KEYS)
def test_every_protocol_of_one_picture_answers(
    predict: Callable[..., str], picture: Path, key: str
) -> None:
    (line,) = lines(predict("--image", str(picture), "--json", "--protocol", key))
    assert line["protocol"] == key
    assert "error" not in line


def test_a_folder_goes_on_past_a_broken_picture(predict: Callable[..., str], picture: Path) -> None:
    (picture.parent / "b.png").write_bytes(b"no picture")
    first, second = lines(predict("--images", str(picture.parent), "--json"))
    assert "error" not in first
    assert "b.png" in second["error"]
    assert (second["verdict"], second["prediction"]) == (None, None)
    text = predict("--images", str(picture.parent))
    assert "error: " in text.splitlines()[1]


def test_only_broken_pictures_are_an_error(predict: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture could be answered"):
        predict("--image", str(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("prediction", "scores", "threshold", "likelihood", "expected"),
    [
        ("dog", {"s": 0.5}, 0.5, True, "known"),
        ("dog", {"s": 0.49}, 0.5, True, "unknown"),
        ("dog", {"s": 0.9}, None, True, None),
        ("dog", {"s": 0.9}, None, False, "known"),
        ("unknown", {"s": 0.0}, None, False, "unknown"),
        ("unknown", {"s": 0.0}, -1.0, False, "unknown"),
        (None, {}, 0.5, False, None),
    ],
)
def test_verdicts(
    prediction: str | None, scores: dict, threshold: float | None, likelihood: bool,
    expected: str | None,
) -> None:  # fmt: skip
    outcome = Outcome("x", "class", prediction, scores, {"dog": 1.0} if likelihood else None)
    assert verdict(outcome, "s", threshold) == expected


@pytest.fixture
def run_folder(tmp_path: Path, tiny_llava_folder: Callable[..., Path]) -> Path:
    """What predict.py reads of a run: its model and prompts, classes and thresholds."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "model": str(tiny_llava_folder("clip", "qwen2")), "adapter": None, "revision": None,
        "quantization": "none", "image_handling": "model", "question": "What do you see?",
        "max_new_tokens": 8,
    }  # fmt: skip
    scores = {
        "max_softmax": {"threshold": {"value": 0.25, "notes": []}},
        "energy": {"threshold": {"value": None, "notes": ["no validation sample"]}},
    }
    metrics = {
        "split": {"known": ["bus", "tv"]}, "scoring": {"length_normalisation": "sum"},
        "protocols": {"likelihood": {"scores": scores}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_run_brings_model_question_classes_and_threshold(
    run_folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--run", str(run_folder), "--device", "cpu", "--image", str(picture)]
    main(parse_options(PredictOptions, description="", argv=[*argv, "--json"]))
    (line,) = lines(capsys.readouterr().out)
    assert line["threshold"] == 0.25
    assert set(line["class_probabilities"]) == {"bus", "tv"}
    assert line["verdict"] == "known"  # of two classes one has at least a half
    main(parse_options(PredictOptions, description="", argv=[*argv, "--dry_run"]))
    said = capsys.readouterr().out
    assert "'What do you see?'" in said
    assert "max_softmax 0.25" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--protocol", "two_query"], "--protocol two_query: one of"),
        (["--score", "answer"], "--score answer: likelihood has max_softmax"),
        (["--run", "x", "--threshold", "1"], "--run has its own threshold"),
        (["--image", "a", "--images", "b"], "not both"),
    ],
)
def test_wrong_options_have_one_message(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_options(PredictOptions, description="", argv=argv)


@pytest.mark.parametrize(
    "argv", [["--classes", "dog", "cat"], ["--question", "Is it?"], ["--model", "another/model"]]
)
def test_what_contradicts_a_run_is_refused(run_folder: Path, argv: list[str]) -> None:
    given = ["--run", str(run_folder), "--image", "a", "--dry_run", *argv]
    with pytest.raises(UserError, match=f"{argv[0]} is another than the run's"):
        main(parse_options(PredictOptions, description="", argv=given))


def test_what_agrees_with_a_run_is_not_refused(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run", str(run_folder), "--image", "a", "--dry_run", "--classes", "bus", "tv",
             "--question", "What do you see?"]  # fmt: skip
    main(parse_options(PredictOptions, description="", argv=given))
    toy = parse_options(
        PredictOptions, description="", argv=[*given[:5], "--toy"], toy_defaults=toy_defaults()
    )
    main(toy)  # the toy's own classes are no wish
    assert capsys.readouterr().out.count("max_softmax 0.25") == 2


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "dog"], "--classes: The classes 'dog' and 'dog' are the same name"),
        (["unknown", "dog"], "--classes: No class may be called 'unknown'"),
    ],
)
@pytest.mark.parametrize("protocol", ["likelihood", "freetext-list"])
def test_classes_are_checked_before_the_model_loads(
    classes: list[str], message: str, protocol: str
) -> None:
    argv = ["--model", "no/such/model", "--image", "a", "--protocol", protocol, "--classes"]
    with pytest.raises(UserError, match=message):
        main(parse_options(PredictOptions, description="", argv=[*argv, *classes]))


def test_toy_pictures_are_of_several_classes(
    toy_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_openset.predict.TOY_SPLIT", toy_split)
    labels = {str(sample.path): sample.label for sample in read_split(toy_split).samples}
    options = parse_options(PredictOptions, description="", argv=["--toy"])
    shown = [labels[path] for path in pictures_of(options)]
    assert len(set(shown[:4])) == len(set(shown[4:])) == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--protocol", "course"], "no protocol course in it; --protocol likelihood"),
        (["--score", "energy"], "no threshold of energy .no validation sample."),
    ],
)
def test_what_a_run_lacks_is_named(run_folder: Path, argv: list[str], message: str) -> None:
    options = parse_options(
        PredictOptions, description="", argv=["--run", str(run_folder), "--image", "a", *argv]
    )
    with pytest.raises(UserError, match=message):
        main(options)


def test_no_run_and_no_picture_are_named(tmp_path: Path) -> None:
    for argv, message in (
        (["--run", str(tmp_path), "--image", "a"], "no finished run"),
        ([], "which picture"),
    ):
        with pytest.raises(UserError, match=message):
            main(parse_options(PredictOptions, description="", argv=argv))


def test_toy_defaults_are_fields() -> None:
    assert set(toy_defaults()) <= set(PredictOptions.__dataclass_fields__)
