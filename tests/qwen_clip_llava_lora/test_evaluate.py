"""evaluate.py on a tiny random LLaVA: answers, likelihoods, resume, prompts, one row, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_clip_llava_lora.evaluate import main
from qwen_clip_llava_lora.evaluation_settings import EvaluateOptions
from qwen_clip_llava_lora.evaluation_setup import (
    as_trained,
    load_samples,
    picture_opener,
    prompt_of,
    run_config,
)
from shared.answering import read_records
from shared.options import REPO_ROOT, UserError, read_json, write_json
from tests.tiny_models import tiny_folder

SCRIPT = REPO_ROOT / "qwen_clip_llava_lora" / "evaluate.py"
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llava", tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four captions, one of them Chinese, each about a picture of one colour."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
        said = "一张黄色的图片" if colour == "yellow" else f"a {colour} picture"
        rows.append(row(f"{colour}.png", [("<image>\nDescribe it.", said)], id=f"row{i}"))
    write_json(folder / "rows.json", rows)
    return folder / "rows.json"


def row(image: str | list[str], talk: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
    turns = [{"from": who, "value": text} for asked, answer in talk
             for who, text in (("human", asked), ("gpt", answer))]  # fmt: skip
    return {"image": image, "conversations": turns, **more}


@pytest.fixture
def options(tiny_llava: Path, data: Path, tmp_path: Path) -> Callable[..., EvaluateOptions]:
    def make(**changes: Any) -> EvaluateOptions:
        given: dict[str, Any] = {
            "model": str(tiny_llava), "data": str(data), "output_dir": str(tmp_path / "run"),
            "max_new_tokens": 4, "batch_size": 3, "device": "cpu",
        }  # fmt: skip
        return EvaluateOptions(**given | changes)

    return make


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_a_run_and_the_likelihood_of_plain_forward_passes(options, tmp_path, request, data, kind):
    """The record's log-likelihood is the sum over the answer's tokens that training learns from,
    less the end token, of transformers' own forward pass from pixels."""
    import torch
    import transformers

    from qwen_clip_llava_lora.encoding import batch_inputs, encode_row, picture_inputs
    from shared.images import open_image
    from shared.vision_language import load_vision_language

    path = request.getfixturevalue("tiny_llava")
    if kind != "llava":
        path = tiny_folder(kind, tmp_path / kind)
    main(options(model=str(path)))
    folder = tmp_path / "run"
    scored = read_records(folder / "scored.jsonl")
    family = load_vision_language(str(path), device="cpu").family
    model = getattr(transformers, family.model_class).from_pretrained(path).eval()
    for own in read_json(data):
        image = open_image(data.parent / own["image"])
        encoded = encode_row(family, own, [image.size])
        ids, labels = (torch.tensor([encoded[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            inputs = picture_inputs(family, [image]) | batch_inputs(family, ids)
            logits = model(input_ids=ids, **inputs).logits
        log_probs = logits.float().log_softmax(-1)[0, :-1]
        targets = labels[0, 1:]
        places = (targets != -100).nonzero()[:, 0]
        own_log_probs = log_probs[places, targets[places]]
        tokens = targets[places].tolist()
        n_end = 1 + tokens[::-1].index(family.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        expected = own_log_probs[:-n_end].double().sum().item()
        found = scored[own["id"]]
        assert found["log_likelihood"] == pytest.approx(expected, abs=1e-3)
        assert found["reference_tokens"] == len(tokens) - n_end
    metrics = read_json(folder / "metrics.json")
    total = sum(own["log_likelihood"] for own in scored.values())
    assert metrics["likelihood"]["per_sample"]["value"] == pytest.approx(total / 4, abs=1e-3)
    assert metrics["language"]["counts"] == {"en": 3, "zh": 1}
    assert metrics["task"] == "text"
    assert metrics["metric"] == "token F1"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg') >= 8  # worst and best of four
    assert "一张黄色的图片" in page


def test_the_same_command_goes_on_and_asks_nothing_twice(options, tmp_path, capsys, monkeypatch):
    main(options(batch_size=1))
    folder = tmp_path / "run"
    whole = {name: (folder / name).read_text() for name in ("scored.jsonl", "metrics.json")}
    for name in ("predictions.jsonl", "likelihoods.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:2]) + lines[2][:40])  # as a crash leaves it
    asked: list[str] = []
    from shared.vision_language import VisionLanguage

    plain = VisionLanguage.answer
    monkeypatch.setattr(
        VisionLanguage, "answer",
        lambda self, f, index, prompts: asked.extend(prompts) or plain(self, f, index, prompts),
    )  # fmt: skip
    main(options(batch_size=1))
    assert "continuing" in capsys.readouterr().out
    assert len(asked) == 2
    assert {name: (folder / name).read_text() for name in whole} == whole
    with pytest.raises(UserError, match="max_new_tokens: 4 there, 5 now"):
        main(options(max_new_tokens=5))


def test_a_finished_run_is_scored_again_without_the_model(options, tmp_path, monkeypatch):
    main(options())
    (tmp_path / "run" / "metrics.json").unlink()
    monkeypatch.setitem(sys.modules, "shared.vision_language", None)
    main(options())
    assert read_json(tmp_path / "run" / "metrics.json")["likelihood"]["per_sample"]["n"] == 4


def test_likelihoods_can_be_added_to_a_finished_run(options, tmp_path):
    main(options(likelihood=False))
    assert not (tmp_path / "run" / "likelihoods.jsonl").exists()
    assert "reason" in read_json(tmp_path / "run" / "metrics.json")["likelihood"]
    main(options())
    assert read_json(tmp_path / "run" / "metrics.json")["likelihood"]["per_sample"]["n"] == 4


def write_projector(folder: Path, model: Path) -> str:
    """An adapter folder with another projector and no LoRA."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    weights = load_file(model / "model.safetensors")
    own = {name: tensor for name, tensor in weights.items() if "multi_modal_projector" in name}
    torch.manual_seed(1)
    # under the parameters' names in the model, as train.py writes them
    full = {"model." + name.removeprefix("model."): torch.randn_like(t) for name, t in own.items()}
    save_file(full, folder / "projector.safetensors")
    from shared.loading import fingerprint

    write_json(folder / "manifest.json", {
        "base_model": str(model), "base_fingerprint": fingerprint(model), "family": "llava",
        "parts": {"model": str(model)}, "train_type": "projector", "synthetic": True,
    })  # fmt: skip
    return str(folder)


def test_base_and_tuned_are_asked_with_the_same_prompts(options, tmp_path, tiny_llava):
    adapter = write_projector(tmp_path / "adapter", tiny_llava)
    main(options())
    main(options(adapter=adapter, output_dir=str(tmp_path / "tuned")))
    configs = [read_json(tmp_path / name / "config.json") for name in ("run", "tuned")]
    for key in ("prompts_hash", "data_hash", "asked", "model_fingerprint"):
        assert configs[0][key] == configs[1][key], key
    assert configs[0]["adapter_fingerprint"] != configs[1]["adapter_fingerprint"]
    records = [read_records(tmp_path / name / "predictions.jsonl") for name in ("run", "tuned")]
    assert [r["prompt"] for r in records[0].values()] == [r["prompt"] for r in records[1].values()]
    values = [read_records(tmp_path / name / "scored.jsonl")["row0"]["log_likelihood"]
              for name in ("run", "tuned")]  # fmt: skip
    assert values[0] != values[1]
    assert read_json(tmp_path / "tuned" / "metrics.json")["synthetic"]["model"] is True


def test_an_adapter_trained_on_the_scored_rows_is_named(
    options, tmp_path, tiny_llava, data, capsys
):
    adapter = Path(write_projector(tmp_path / "adapter", tiny_llava))
    manifest = read_json(adapter / "manifest.json")
    sources = [{"source": "elsewhere.json"}, {"source": str(data)}]
    learned = {"source": "elsewhere.json", "sources": sources, "rows": 3, "held_out_rows": 1}
    write_json(adapter / "manifest.json", manifest | {"data": learned})
    data.with_name("chat.json").write_bytes(data.read_bytes())
    sources[1]["source"] = str(data.with_name("chat.json"))
    write_json(adapter / "manifest.json", manifest | {"data": learned})
    main(options(adapter=str(adapter), data=str(data.parent)))  # the folder, which is chat.json's
    assert read_json(tmp_path / "run" / "metrics.json")["trained_on_scored"] is True
    assert "trained on the very rows" in capsys.readouterr().out
    assert "its adapter was trained on" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_an_adapter_of_another_model_is_refused_before_anything_is_written(
    options, tmp_path, tiny_llava
):
    adapter = Path(write_projector(tmp_path / "adapter", tiny_llava))
    manifest = read_json(adapter / "manifest.json")
    write_json(adapter / "manifest.json", manifest | {"base_fingerprint": "another"})
    with pytest.raises(UserError, match="was trained on"):
        main(options(adapter=str(adapter)))
    assert not (tmp_path / "run").exists()


def test_how_pictures_were_shown_in_training_is_on_record(options, tmp_path, tiny_llava):
    """Base and tuned must not differ in it without a word: `compare.py` reads config.json."""
    adapter = Path(write_projector(tmp_path / "adapter", tiny_llava))
    shown = {"min_pixels": 784, "max_pixels": 3136, "image_aspect_ratio": "pad"}
    write_json(adapter / "manifest.json", read_json(adapter / "manifest.json") | shown)
    tuned = as_trained(options(adapter=str(adapter), max_pixels=1568))
    assert (tuned.min_pixels, tuned.max_pixels) == (784, 1568)
    config = run_config(tuned, load_samples(tuned))
    assert config["asked"]["image_aspect_ratio"] == "pad"
    base = as_trained(options())
    assert (base.min_pixels, base.max_pixels) == (None, None)
    assert "image_aspect_ratio" not in run_config(base, load_samples(base))["asked"]


def test_another_prompt_is_another_hash(options, data, tmp_path):
    rows = read_json(data)
    main(options())
    rows[1]["conversations"][0]["value"] = "<image>\nWhat is it?"
    write_json(data, rows)
    with pytest.raises(UserError, match="prompts_hash"):
        main(options())


# One row


def test_index_prints_one_row_whole_for_base_and_tuned(options, tmp_path, tiny_llava, capsys):
    adapter = write_projector(tmp_path / "adapter", tiny_llava)
    main(options(index=2, adapter=adapter))
    said = capsys.readouterr().out
    lines = dict(line.split("  ", 1) for line in said.splitlines() if "  " in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    assert lines["sample"].startswith("row2")
    assert lines["picture"].endswith("blue.png")
    assert lines["image tokens"] == "16"
    assert "<image>x16\\nDescribe it." in lines["prompt as sent"]
    assert lines["reference"] == "'a blue picture'"
    for side in ("base", "tuned"):
        for field in ("answer", "raw output", "finish reason", "confidence", "exact match"):
            assert f"{field} {side}" in lines
        assert "of the row's own answer" in lines[f"log-likelihood {side}"]
    assert lines["log-likelihood base"] != lines["log-likelihood tuned"]
    assert not (tmp_path / "run").exists()  # nothing is written


def test_index_outside_the_data(options):
    with pytest.raises(UserError, match="--index 4: rows has rows 0 to 3"):
        main(options(index=4))


# What rows become


@pytest.fixture
def talk(data: Path) -> Path:
    """A conversation of two answers behind a system text, and one about two pictures."""
    first = row("red.png", [("<image>\nColour?", "red"), ("And the shape?", "a rectangle")], id="a")
    first["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    second = row(["red.png", "blue.png"], [("A: <image> B: <image> Same?", "no")], id="b")
    write_json(data, [first, second])
    return data


def test_all_turns_are_asked_behind_their_true_history(options, talk, tmp_path):
    main(options(turns="all"))
    records = read_records(tmp_path / "run" / "predictions.jsonl")
    assert list(records) == ["b", "a", "a#2"] or list(records) == ["a", "a#2", "b"]
    assert "Be brief." in records["a#2"]["prompt"]
    assert "gpt: red" in records["a#2"]["prompt"]
    assert records["a#2"]["question"] == "And the shape?"
    assert records["a"]["references"] == ["red"]
    assert all(record["status"] == "ok" for record in records.values())
    assert records["b"]["image"] == "red.png + blue.png"
    assert {row["image_id"] for row in records.values()} == {"red.png", "red.png + blue.png"}


def test_first_turns_are_the_default(options, talk):
    found = load_samples(options())
    assert [sample.sample_id for sample in found.samples] == ["a", "b"]
    assert found.samples[0].turns == (("system", "Be brief."), ("human", "<image>\nColour?"))
    opened = picture_opener(found.samples, options())(found.samples[1])
    assert [picture.getpixel((0, 0)) for picture in opened] == [(255, 0, 0), (0, 0, 255)]
    assert prompt_of(found.samples[1]) == "A: <image> B: <image> Same?"


def test_references_in_another_language_are_left_out_and_counted(options, data, tmp_path):
    rows = read_json(data)
    rows[0]["captions"] = ["a red picture", "一张红色的图片", "something red"]
    write_json(data, rows)
    main(options())
    records = read_records(tmp_path / "run" / "predictions.jsonl")
    assert records["row0"]["references"] == ["a red picture", "something red"]
    assert read_json(tmp_path / "run" / "metrics.json")["references_in_another_language"] == 1


def test_rows_of_one_id_are_samples_of_their_own(options, data):
    rows = read_json(data)
    for own in rows:
        own["id"] = "same"
    write_json(data, rows)
    found = load_samples(options())
    assert [s.sample_id for s in found.samples] == ["same", "same@1", "same@2", "same@3"]


def test_shuffled_pictures_are_another_row_s(options, data):
    found = load_samples(options())
    own, other = (picture_opener(found.samples, options(pictures=how))
                  for how in ("own", "shuffled"))  # fmt: skip
    for sample in found.samples:
        assert own(sample).getpixel((0, 0)) != other(sample).getpixel((0, 0))


def test_a_row_without_a_picture_and_one_without_an_answer(options, data, tmp_path, capsys):
    rows = read_json(data)[:2]
    del rows[0]["image"]
    rows[0]["conversations"][0]["value"] = "What colour has the sky?"
    del rows[1]["conversations"][1]
    rows.append(row("red.png", [("<image>\nDescribe it.", " ")], id="blank"))
    write_json(data, rows)
    main(options())
    records = read_records(tmp_path / "run" / "predictions.jsonl")
    assert [record["status"] for record in records.values()] == ["ok", "ok", "ok"]
    assert read_json(tmp_path / "run" / "metrics.json")["exact_match"]["n"] == 1
    scored = read_records(tmp_path / "run" / "scored.jsonl")
    assert scored["row0"]["image_id"] == "row0"
    assert (scored["row1"]["score"], scored["row1"]["log_likelihood"]) == (None, None)
    assert scored["row1"]["likelihood_error"] == "no reference answer"
    main(options(index=0))
    assert "(no picture)" in capsys.readouterr().out


def test_questions_with_ten_answers(options, data, tmp_path):
    rows = read_json(data)
    for own in rows:
        own["answers"] = ["yes"] * 8 + ["no"] * 2
    write_json(data, rows)
    main(options(likelihood=False))
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert (metrics["task"], metrics["metric"]) == ("question", "VQA accuracy (official-2021)")
    assert metrics["captions"] == {"value": None, "reason": "question data"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "VQA accuracy, official-2016" in page
    assert "None: not computed (--likelihood false)." in page


# Label data


@pytest.fixture
def emotions(data: Path) -> Path:
    rows = read_json(data)[:3]
    for own, name in zip(rows, ("happy", "sad", "happy"), strict=True):
        own["label"] = own["conversations"][1]["value"] = name
    write_json(data, rows)
    write_json(data.with_name("dataset.json"), {"kind": "label", "classes": ["happy", "sad"]})
    return data


def test_label_data_and_the_likeliest_class(options, emotions, tmp_path, capsys):
    main(options(label_scoring="likelihood"))
    folder = tmp_path / "run"
    metrics = read_json(folder / "metrics.json")
    assert metrics["task"] == "label"
    assert metrics["metric"] == "accuracy of the matched class"
    choices = read_records(folder / "class_likelihoods.jsonl")
    own = read_records(folder / "likelihoods.jsonl")
    right = 0
    for key, record in choices.items():
        assert record["choices"] == ["happy", "sad"]
        means = [p / n for p, n in zip(record["choice_log_probs"], record["choice_n_tokens"],
                                       strict=True)]  # fmt: skip
        assert record["answer"] == ("happy" if means[0] >= means[1] else "sad")
        right += record["answer"] == record["label"]
        place = record["choices"].index(record["label"])  # the reference is the class's name here
        assert record["choice_log_probs"][place] == pytest.approx(
            own[key]["choice_log_probs"][0], abs=1e-4
        )
    found = metrics["classification_by_likelihood"]
    assert found["accuracy"]["value"] == pytest.approx(100 * right / 3, abs=0.01)
    assert "macro-F1" in capsys.readouterr().out
    assert "Which class was taken for which" in (folder / "report.html").read_text("utf-8")


def test_a_label_outside_the_class_list_is_named(options, emotions):
    rows = read_json(emotions)
    rows[1]["label"] = "bored"
    rows[2].pop("label")
    write_json(emotions, rows)
    with pytest.raises(UserError, match=r"2 of 3 rows are bad(.|\n)*row 1: label is 'bored'"):
        main(options())
    with pytest.raises(UserError, match="--turns first"):
        main(options(turns="all"))
    write_json(emotions.with_name("dataset.json"), {"kind": "label", "classes": ["Sad", "sad"]})
    rows[0]["label"] = rows[1]["label"] = rows[2]["label"] = "sad"
    write_json(emotions, rows)
    with pytest.raises(UserError, match="classes 'Sad' and 'sad' read the same"):
        main(options())


# Bad input


def test_a_bad_row_is_passed_over_and_named(options, data, tmp_path, capsys):
    rows = read_json(data)
    rows[1]["conversations"][0]["value"] = "no tag"
    write_json(data, rows)
    main(options())
    assert "1 bad rows of the data not used" in capsys.readouterr().out
    problems = read_json(tmp_path / "run" / "metrics.json")["data_problems"]
    assert problems["count"] == 1
    assert "row 1" in problems["first"][0]


def test_a_missing_picture_is_an_error_that_counts_as_wrong(options, data, tmp_path):
    (data.parent / "green.png").unlink()
    main(options())
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["counts"]["errors"] == 1
    assert metrics["accuracy"]["n"] == 4
    assert metrics["likelihood"]["not_scored"]["n"] == 1
    assert "green.png" in metrics["likelihood"]["not_scored"]["first"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.json"}, "nowhere.json"),
        ({"adapter": "nowhere"}, "not an adapter folder"),
        ({"model": "nowhere/at_all"}, "not on this machine"),
        ({"pictures": "shuffled", "index": 0}, "own picture"),
    ],
)
def test_wrong_paths(options, changes, message):
    with pytest.raises(UserError, match=message):
        main(options(**changes))


@pytest.mark.parametrize("name", ["limit", "batch_size", "max_new_tokens"])
def test_wrong_numbers(options, name):
    with pytest.raises(UserError, match=f"--{name} -1"):
        options(**{name: -1})


def test_no_model_and_no_data():
    with pytest.raises(UserError, match="which model"):
        EvaluateOptions()
    with pytest.raises(UserError, match="which rows"):
        EvaluateOptions(model="m")


def test_dry_run_loads_no_weights(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shared.vision_language", None)
    main(options(dry_run=True))
    said = capsys.readouterr().out
    assert "4 samples, 3 English, 1 Chinese" in said
    assert "human: '<image>\\nDescribe it.'" in said
    assert not (tmp_path / "run").exists()


def test_the_script_shows_its_help():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--label_scoring" in done.stdout


def test_scoring_and_settings_import_without_torch():
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'matplotlib'): sys.modules[name] = None\n"
        "import qwen_clip_llava_lora.evaluate, qwen_clip_llava_lora.compare\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]


def test_records_are_json_lines_with_the_shared_fields(options, tmp_path):
    main(options(limit=2))
    lines = (tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert {"sample_id", "prompt", "answer", "confidence", "language"} <= json.loads(
        lines[0]
    ).keys()
