"""train.py: what moves and what is left behind, best and last, stopping and going on, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from qwen_clip_llava_lora import train_settings, training_model, validation
from qwen_clip_llava_lora.train import main, parse
from qwen_clip_llava_lora.train_settings import PRESET_NAMES, TOY, TrainOptions, preset_of
from qwen_clip_llava_lora.training_data import open_training_data
from qwen_clip_llava_lora.training_run import training_config
from qwen_clip_llava_lora.validation import EarlyStopping, score
from shared.options import MissingError, UserError
from shared.training import VlmTrainer, read_curve
from tests.tiny_models import tiny_folder

STEPS = 6


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llava", tmp_path_factory.mktemp("base") / "llava")


def write_data(folder: Path, n: int = 30) -> Path:
    """Pictures of one colour and its name; every fifth row is text alone."""
    folder.mkdir(parents=True, exist_ok=True)
    colors = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
    rows = []
    for i in range(n):
        name = list(colors)[i % 3]
        Image.new("RGB", (40 + i % 7, 36), colors[name]).save(folder / f"{i}.png")
        asked = {"from": "human", "value": "<image>\nwhat color ?"}
        row = {"id": f"s{i}", "image": f"{i}.png",
               "conversations": [asked, {"from": "gpt", "value": name}]}  # fmt: skip
        if i % 5 == 4:
            del row["image"]
            asked["value"] = "say it"
        rows.append(row)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows"))


def flags(base: Path, data: Path, folder: Path, *more: str) -> list[str]:
    """A short training of a tiny model; later flags win."""
    return [
        "--model", str(base), "--data", str(data), "--output_dir", str(folder), "--device", "cpu",
        "--max_steps", str(STEPS), "--batch_size", "4", "--learning_rate", "1e-2",
        "--warmup_steps", "0", "--validation_samples", "6", "--validation_answers", "3",
        "--validation_max_new_tokens", "3", "--eval_steps", "3", "--save_steps", "3",
        "--logging_steps", "1", "--lora_dropout", "0", "--dataloader_num_workers", "0",
        "--disable_tqdm", "true", "--activation_checkpointing", "false", *more,
    ]  # fmt: skip


class Seen:
    """What was seen of a training on the way."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.ids: list[str] = []
        self.model: Any = None

    def moved(self) -> set[str]:
        return {
            name
            for name, weight in self.model.named_parameters()
            if not torch.equal(weight.detach(), self.before[name])
        }


def watched(argv: list[str], stop_at: int | None = None) -> Seen:
    """Run the script's main and keep what it made; with `stop_at` as if killed in that step."""
    seen = Seen()
    load, step = training_model.load_for_training, VlmTrainer.training_step

    def watched_load(*arguments):
        loaded = load(*arguments)
        seen.model = loaded.model
        seen.before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
        return loaded

    def watched_step(trainer, model, inputs, n=None):
        if stop_at is not None and trainer.state.global_step == stop_at:
            raise KeyboardInterrupt
        seen.ids += inputs["sample_ids"]
        return step(trainer, model, inputs, n)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_model, "load_for_training", watched_load)
        patch.setattr(VlmTrainer, "training_step", watched_step)
        try:
            main(*parse(argv))
        except KeyboardInterrupt:
            assert stop_at is not None
    return seen


# What moves, what is left behind


@pytest.mark.parametrize("train_type", ["lora", "qlora", "projector", "full"])
def test_what_is_declared_moves_and_nothing_else(base, rows, tmp_path, train_type):
    seen = watched(flags(base, rows, tmp_path / "run", "--train_type", train_type))
    names = set(seen.before)
    projector = {n for n in names if ".multi_modal_projector." in n}
    lora = {n for n in names if ".lora_" in n}
    language = {n for n in names if n.startswith(("model.language_model.", "lm_head."))}
    declared = {
        "lora": projector | lora, "qlora": projector | lora, "projector": projector,
        "full": projector | language,
    }[train_type]  # fmt: skip
    assert len(projector) == 4
    assert len(lora) == (2 * 2 * 2 if "lora" in train_type else 0)  # A, B; q, v; two layers
    still = {n for n in declared - seen.moved() if "k_proj.bias" not in n}
    assert still == set()
    assert seen.moved() <= declared


def test_the_adapter_folder_says_what_it_is(base, rows, tmp_path):
    run = tmp_path / "run"
    main(*parse(flags(base, rows, run)))
    assert sorted(p.name for p in (run / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
        "projector.safetensors",
    ]  # fmt: skip
    lora = read(run / "adapter" / "adapter_config.json")
    assert lora["target_modules"] == r"model\.language_model\..*\.(q_proj|v_proj)"
    assert (lora["r"], lora["lora_alpha"]) == (4, 8)
    saved = load_file(run / "adapter" / "projector.safetensors")
    assert sorted(saved) == [
        f"model.multi_modal_projector.linear_{k}.{part}"
        for k in (1, 2)
        for part in ("bias", "weight")
    ]
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    manifest = read(run / "adapter" / "manifest.json")
    assert manifest["family"] == "llava"
    assert manifest["base_model"] == manifest["parts"]["model"] == str(base)
    assert (manifest["preset"], manifest["train_type"]) == ("course", "lora")
    assert manifest["components"] == ["language model", "projector"]
    assert (manifest["data"]["rows"], manifest["data"]["held_out_rows"]) == (24, 6)
    assert manifest["synthetic"] is False
    assert read(run / "config.json")["training"]["max_grad_norm"] == 0.3
    assert (run / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "minicpmv4_6"])
def test_a_loaded_adapter_is_the_model_that_was_kept(tmp_path, rows, kind):
    """Every family: train, load base and adapter as evaluate.py does, and the held-out loss is the
    one that stands in the manifest."""
    from shared.vision_language import load_vision_language

    base = tiny_folder(kind, tmp_path / "base")
    run = tmp_path / "run"
    more = ("--train_projector", "true", "--validation_answers", "0", "--max_steps", "2")
    argv = flags(base, rows, run, "--eval_steps", "2", *more)
    main(*parse(argv))
    asker = load_vision_language(str(base), adapter=str(run / "adapter"), device="cpu")
    options, training = parse(argv)
    held_out = open_training_data(options, training.seed).held_out
    collate = training_model_collator(asker.family, rows)
    model = training_model.VlmForTraining(asker.family, torch.float32).eval()
    with torch.no_grad():
        loss = validation.validation_loss(model, collate, held_out, training)
    kept = read(run / "adapter" / "manifest.json")["validation"]
    assert loss == pytest.approx(kept["loss"], rel=1e-5)
    untrained = read_curve(run / "metrics.jsonl")
    assert untrained[-1]["step"] == 2


def training_model_collator(family: Any, rows: Path) -> Any:
    from qwen_clip_llava_lora.training_data import VlmCollator

    return VlmCollator(family, rows.parent, max_length=2048)


def test_the_projector_alone_and_then_lora_on_it(base, rows, tmp_path):
    """Stage 1 leaves no peft files; stage 2 starts from its projector, and with the projector
    frozen still brings it along, because the base has another."""
    align, tuned = tmp_path / "align", tmp_path / "tuned"
    main(*parse(flags(base, rows, align, "--preset", "align", "--learning_rate", "1e-2")))
    names = sorted(p.name for p in (align / "adapter").iterdir())
    assert names == ["manifest.json", "projector.safetensors"]
    more = ("--projector", str(align), "--train_projector", "false")
    seen = watched(flags(base, rows, tuned, *more))
    first = load_file(align / "adapter" / "projector.safetensors")
    for name, tensor in first.items():
        assert torch.equal(seen.before[name], tensor)
    brought = load_file(tuned / "adapter" / "projector.safetensors")
    assert all(torch.equal(brought[name], tensor) for name, tensor in first.items())
    assert read(tuned / "adapter" / "manifest.json")["base_model"] == str(base)


def test_full_training_leaves_a_model_that_plain_transformers_loads(base, rows, tmp_path):
    import transformers

    run = tmp_path / "run"
    seen = watched(
        flags(base, rows, run, "--train_type", "full", "--learning_rate", "1e-4",
              "--eval_steps", str(STEPS), "--image_aspect_ratio", "pad")
    )  # fmt: skip
    folder = run / "model"
    assert not (run / "adapter").exists()
    loaded, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, weight in seen.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight.detach()), name
    assert read(folder / "config.json")["image_aspect_ratio"] == "pad"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == transformers.AutoTokenizer.from_pretrained(base).chat_template
    assert read(folder / "manifest.json")["train_type"] == "full"


# Best, last, early


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Validation figures as given, one after another."""
    given = iter(losses)
    monkeypatch.setattr(
        validation.Validation,
        "__call__",
        lambda self, model: {"loss": next(given), "token_f1": 0.5},
    )


def test_the_best_is_kept_and_the_last_beside_it(base, rows, tmp_path, monkeypatch):
    scripted(monkeypatch, [2.0, 1.0, 1.5])
    run = tmp_path / "run"
    main(*parse(flags(base, rows, run, "--eval_steps", "2")))
    assert read(run / "best.json")["step"] == 4
    best, last = (
        load_file(run / f / "adapter_model.safetensors") for f in ("adapter", "adapter_last")
    )
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert read(run / "adapter" / "manifest.json")["validation"]["loss"] == 1.0
    assert read(run / "metrics.json")["best_step"] == 4


def test_without_validation_the_last_is_the_adapter(base, rows, tmp_path):
    run = tmp_path / "run"
    main(*parse(flags(base, rows, run, "--validation_samples", "0", "--max_steps", "2")))
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run / "adapter_last").exists()
    assert not (run / "best.json").exists()


def test_early_stopping(base, rows, tmp_path, monkeypatch, capsys):
    """Better, worse, worse: with a patience of 2 the third validation is the last."""
    scripted(monkeypatch, [2.0, 2.5, 2.1, 0.1, 0.1])
    run = tmp_path / "run"
    main(*parse(flags(base, rows, run, "--eval_steps", "1", "--early_stopping", "2")))
    assert read(run / "metrics.json")["steps"] == 3
    assert read(run / "metrics.json")["best_step"] == 1
    assert "no better eval_loss in 2 validations" in capsys.readouterr().out
    again = EarlyStopping("metric", 1)  # higher is better of anything but the loss

    class State:
        log_history = ({"eval_metric": 0.2}, {"loss": 1.0}, {"eval_metric": 0.4})

    class Control:
        should_training_stop = False

    control = Control()
    again.on_evaluate(None, State, control)
    assert not control.should_training_stop


def test_selection_by_the_metric(base, rows, tmp_path, monkeypatch):
    figures = iter([{"loss": 1.0, "token_f1": 0.9}, {"loss": 0.5, "token_f1": 0.1}])
    monkeypatch.setattr(validation.Validation, "__call__", lambda self, model: next(figures))
    run = tmp_path / "run"
    main(*parse(flags(base, rows, run, "--selection", "metric")))
    assert read(run / "best.json")["step"] == 3


# Going on


def test_a_continued_run_equals_an_uninterrupted_one(base, rows, tmp_path):
    """With dropout, a contrastive loss and two kinds of figures: the same weights, bit for bit, the
    same samples, the same curve."""
    more = ("--lora_dropout", "0.1", "--contrastive_weight", "0.3", "--save_steps", "2",
            "--eval_steps", "2")  # fmt: skip
    whole = watched(flags(base, rows, tmp_path / "whole", *more))
    broken = watched(flags(base, rows, tmp_path / "broken", *more), stop_at=5)
    assert broken.ids == whole.ids[: len(broken.ids)]
    goes_on = watched(flags(base, rows, tmp_path / "broken", *more))
    assert goes_on.ids == whole.ids[-len(goes_on.ids) :]
    for folder in ("adapter_model.safetensors", "projector.safetensors"):
        one, two = (load_file(tmp_path / run / "adapter" / folder) for run in ("whole", "broken"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    figures = [
        [
            {key: row[key] for key in ("step", "loss", "eval_loss", "eval_token_f1") if key in row}
            for row in read_curve(tmp_path / run / "metrics.jsonl")
        ]
        for run in ("whole", "broken")
    ]
    assert figures[0] == figures[1]


def test_a_finished_run_is_left_alone_and_another_one_refused(base, rows, tmp_path, capsys):
    argv = flags(base, rows, tmp_path / "run", "--max_steps", "1", "--validation_samples", "0")
    main(*parse(argv))
    main(*parse(argv))
    assert "is trained to its end" in capsys.readouterr().out
    with pytest.raises(UserError, match="lora_rank: 4 there, 8 now"):
        main(*parse([*argv, "--lora_rank", "8"]))


# Data


def test_bad_rows_are_left_out_and_counted(base, tmp_path):
    """A picture that is whole in its header only, a row without an answer, one that is no JSON."""
    data = write_data(tmp_path / "data")
    lines = data.read_text().splitlines()
    picture = data.parent / "0.png"
    picture.write_bytes(picture.read_bytes()[:60])
    lines[1] = "{not json"
    mute = json.loads(lines[2])
    mute["conversations"] = mute["conversations"][:1]
    lines[2] = json.dumps(mute)
    data.write_text("\n".join(lines))
    run = tmp_path / "run"
    main(*parse(flags(base, data, run, "--validation_samples", "0", "--max_steps", "8")))
    skipped = (run / "skipped.txt").read_text().splitlines()
    assert read(run / "metrics.json")["skipped_in_training"] == len(skipped) == 3
    text = "\n".join(skipped)
    assert "0.png: broken picture" in text
    assert "line 2: not valid JSON" in text
    assert "'s2': conversations ends without an answer" in text


def test_several_data_sets_are_mixed_by_weight(base, rows, tmp_path):
    other = write_data(tmp_path / "other", n=10).rename(tmp_path / "other" / "others.jsonl")
    options, _ = parse(
        ["--model", str(base), "--data", str(rows), str(other), "--data_weights", "1", "3",
         "--validation_samples", "0"]
    )  # fmt: skip
    data = open_training_data(options, seed=0)
    assert len(data.learned) == 40
    names = [str(data.learned[i]["id"]).split("/")[0] for i in range(40)]
    assert (names.count("rows"), names.count("others")) == (10, 30)
    assert [part.source for part in data.parts] == [rows, other]


def test_held_out_pictures_do_not_train(base, rows, capsys):
    options, _ = parse(["--model", str(base), "--data", str(rows), "--validation_samples", "8"])
    data = open_training_data(options, seed=0)
    held = {row["image"] for row in data.held_out if "image" in row}
    assert held
    assert not held & {row["image"] for row in data.learned if "image" in row}
    own, _ = parse(["--model", str(base), "--data", str(rows), "--validation_data", str(rows)])
    data = open_training_data(own, seed=0)
    assert (len(data.learned), len(data.held_out)) == (30, 30)
    own.validation_samples = 7
    assert len(open_training_data(own, seed=0).held_out) == 7
    assert "is learned from and validates" in capsys.readouterr().out


def test_other_rows_in_the_same_folder_are_another_run(base, rows, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    said = [json.loads(line) for line in rows.read_text().splitlines()]
    options, training = parse(
        ["--model", str(base), "--data", str(folder), "--device", "cpu",
         "--image_root", str(rows.parent), "--validation_samples", "4"]
    )  # fmt: skip
    hashes = []
    for own in (said, said[:-1]):
        (folder / "chat.json").write_text(json.dumps(own))
        config = training_config(options, training, open_training_data(options, 0))
        hashes.append(config["data_hashes"])
    assert len(hashes[0]) == 2  # what trains, and what the held-out rows are of
    assert hashes[0] != hashes[1]


def test_held_out_pictures_of_a_mixture_do_not_train(base, rows, tmp_path):
    """The mixture has other rows at other places than its first file."""
    other = write_data(tmp_path / "other", n=10).rename(tmp_path / "other" / "others.jsonl")
    options, _ = parse(
        ["--model", str(base), "--data", str(rows), str(other), "--data_weights", "1", "3",
         "--validation_samples", "12"]
    )  # fmt: skip
    data = open_training_data(options, seed=0)
    assert len(data.learned) + len(data.held_out) == 40
    held = {row["image"] for row in data.held_out if "image" in row}
    assert any("other" in name for name in held)
    assert not held & {row["image"] for row in data.learned if "image" in row}


def test_validation_asks_as_evaluate_does(base, tmp_path):
    """One picture, two, none, a broken one: as each alone; the broken one has an empty answer."""
    from shared.vision_language import load_vision_language

    data = write_data(tmp_path)
    said = [json.loads(line) for line in data.read_text().splitlines()[:5]]
    said[1]["image"] = ["0.png", "1.png"]
    said[1]["conversations"][0]["value"] = "<image> and <image>\nboth ?"
    (tmp_path / "3.png").write_bytes(b"no picture")
    data.write_text("".join(json.dumps(row) + "\n" for row in said))
    options, _ = parse(["--model", str(base), "--data", str(data), "--validation_data", str(data)])
    samples = validation.answered_samples(open_training_data(options, 0), 50)
    assert [sample.references for sample in samples[:2]] == [("red",), ("green",)]
    family = load_vision_language(str(base), device="cpu").family
    asker = validation.asker(family, 4)
    together = validation.answers(asker, samples)
    assert together[3] == ""
    alone = [validation.answers(asker, [sample])[0] for sample in samples]
    assert together == alone
    assert len({together[i] for i in (0, 1, 2, 4)}) > 1


@pytest.mark.slow
def test_full_training_of_tied_weights_writes_them_once(rows, tmp_path, tiny_llava_folder):
    """Qwen2.5-0.5B's head is its embedding: one tensor in the file, the same one when loaded."""
    import transformers

    base = tiny_llava_folder("clip", "qwen2", tied=True)
    more = ("--train_type", "full", "--dtype", "bfloat16", "--max_steps", "1", "--eval_steps", "1")
    main(*parse(flags(base, rows, tmp_path / "run", *more, "--validation_answers", "0")))
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert not any("lm_head" in name for name in saved)
    loaded, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert loaded.dtype == torch.bfloat16
    config = read(tmp_path / "run" / "model" / "config.json")
    parts = (config, config["text_config"], config["vision_config"])
    assert [part["dtype"] for part in parts] == ["bfloat16"] * 3
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_answers_are_scored_by_the_metric_of_the_data():
    from qwen_clip_llava_lora.evaluation_setup import Sample

    def sample(i: int, *references: str) -> Sample:
        return Sample(sample_id=str(i), image=None, image_name="", image_id=str(i), question="?",
                      references=references)  # fmt: skip

    samples = [sample(0, "a red circle", "red circle"), sample(1, "blue square")]
    said = ["Red circle.", "blue triangle"]
    assert score("exact_match", samples, said) == 0.5
    assert score("token_f1", samples, said) == pytest.approx((1 + 0.5) / 2)
    assert (
        score("cider", samples, ["a red circle", "blue square"]) > score("cider", samples, said) > 0
    )


# Options


def test_the_course_preset_is_the_course_s():
    options, training = parse(["--preset", "course", "--model", "m", "--data", "d.json"])
    assert (options.lora_rank, options.lora_alpha, options.lora_dropout) == (4, 8, 0.05)
    assert (options.lora_layers, options.train_type) == ("q_proj,v_proj", "lora")
    assert (training.learning_rate, training.max_steps) == (1e-3, 800)
    assert (training.per_device_train_batch_size, training.max_grad_norm) == (6, 0.3)
    assert (training.lr_scheduler_type, training.save_steps) == ("cosine", 200)
    assert training.warmup_steps > 0
    assert training.activation_checkpointing or training.gradient_checkpointing
    assert options.dtype == "auto"
    assert training_model.trains_projector(options, "llava")
    assert not training_model.trains_projector(options, "qwen2_vl")


def test_flags_win_over_the_user_s_file_which_wins_over_toy_and_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"preset": "strong", "lora_rank": 5, "max_steps": 7}))
    given = ["--model", "m", "--data", "d.json"]
    options, training = parse([str(file), *given, "--lora_alpha", "3"])
    assert (options.preset, options.lora_layers) == ("strong", "all")
    assert (options.lora_rank, options.lora_alpha, training.max_steps) == (5, 3, 7)
    assert preset_of([str(file), "--preset=align"]) == "align"
    assert preset_of([]) == "course"


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_every_preset_and_its_toy_are_options_that_exist(preset, monkeypatch):
    monkeypatch.setattr("qwen_clip_llava_lora.train.prepare_toy", lambda preset: None)
    written = train_settings.preset_values(preset)
    options, training = parse(["--preset", preset, "--model", "m", "--data", "d.json"])
    for name, value in written.items():
        if name != "model":
            assert getattr(options if hasattr(options, name) else training, name) == value, name
    toy_options, toy_training = parse(["--toy", "--preset", preset])
    for name, value in TOY[preset].items():
        holder = toy_options if hasattr(toy_options, name) else toy_training
        assert getattr(holder, name) == value, name
    assert toy_training.output_dir.endswith(f"toy_{preset}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": None}, "which model"),
        ({"data": None}, "which data"),
        ({"data_weights": [1.0, 2.0]}, "--data_weights has 2 values for 1 --data"),
        ({"data_weights": [0.0]}, "each above 0"),
        ({"train_type": "projector", "train_projector": False}, "nothing trains"),
        ({"train_vision": True}, "--train_vision true opens the tower of --train_type full alone"),
        ({"lora_rank": 0}, "--lora_rank 0: at least 1"),
        ({"lora_dropout": 1.0}, "--lora_dropout 1.0"),
        ({"contrastive_weight": -1.0}, "--contrastive_weight -1.0: at least 0"),
        ({"contrastive_weight": float("nan")}, "--contrastive_weight nan"),
        ({"contrastive_temperature": 0.0}, "--contrastive_temperature 0.0: above 0"),
        ({"early_stopping": 2, "validation_samples": 0}, "--early_stopping needs held-out rows"),
        ({"selection": "metric", "validation_answers": 0}, "--selection metric needs answers"),
    ],
)
def test_options_that_cannot_be_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        TrainOptions(**{"model": "m", "data": ["d.json"], **given})


def test_a_dry_run_reads_no_weight_and_writes_nothing(base, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_model, "load_pretrained", None)
    main(*parse(flags(base, rows, tmp_path / "run", "--dry_run")))
    with_data = capsys.readouterr().out
    assert "24 train, 6 held out" in with_data
    assert not (tmp_path / "run").exists()
    main(*parse(["--model", str(base), "--device", "cpu", "--dry_run"]))
    assert "memory:" in capsys.readouterr().out


def test_missing_things_say_what_to_do(base, rows, tmp_path, monkeypatch):
    with pytest.raises(MissingError, match=r"none\.json: no such file"):
        main(*parse(["--model", str(base), "--data", "none.json", "--device", "cpu"]))
    argv = flags(base, rows, tmp_path / "run", "--projector", str(tmp_path))
    with pytest.raises(UserError, match="train one with --preset align"):
        main(*parse(argv))
    monkeypatch.setattr(train_settings, "TOY_MERGED", tmp_path / "absent")
    with pytest.raises(MissingError, match=r"merge_model\.py --toy"):
        train_settings.check_toy(TrainOptions(model=str(tmp_path / "absent"), data=["d"]))


def test_a_projector_of_another_model_is_refused(base, rows, tmp_path):
    from safetensors.torch import save_file

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        save_file(tensors, tmp_path / "projector.safetensors")
        argv = flags(base, rows, tmp_path / "run", "--projector", str(tmp_path))
        with pytest.raises(UserError, match=message):
            main(*parse(argv))

    main(*parse(flags(base, rows, tmp_path / "first", "--preset", "align", "--max_steps", "1")))
    good = load_file(tmp_path / "first" / "adapter" / "projector.safetensors")
    name = "model.multi_modal_projector.linear_1.weight"
    refused({**good, name: torch.zeros(3, 3)}, "trained for another vision tower")
    refused({name: good[name]}, "not the projector of this model")
    refused({**good, "model.merger.x": torch.zeros(1)}, r"model\.merger\.x is in one of them")


def test_a_model_that_is_no_family_here_is_refused(rows, tmp_path, write_tiny_blip2: Callable):
    folder = write_tiny_blip2(tmp_path / "blip", "opt")
    with pytest.raises(UserError, match="model_type blip-2: not a family that is trained here"):
        main(*parse(flags(folder, rows, tmp_path / "run")))
