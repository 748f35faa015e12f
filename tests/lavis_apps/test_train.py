"""train.py: results that load, the best figure again by evaluate.py, stopping and going on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from lavis_apps import evaluate, train_settings, training_run
from lavis_apps.blip import load_blip
from lavis_apps.evaluation_settings import ASKED, EvaluateOptions, task_of
from lavis_apps.evaluation_splits import weights_saw
from lavis_apps.train import main, parse
from lavis_apps.train_settings import PRESETS, SELECTION, TOY, TRAINED_TASKS
from shared.options import REPO_ROOT, UserError, parse_options, resolved_config
from shared.training import VlmTrainer, read_curve
from tests.lavis_apps.test_training_data import coco
from tests.tiny_models import tiny_blip

STEPS = 4
TOY_CLIP = str(REPO_ROOT / "data" / "toy_models" / "clip")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("blip")
    kinds = {"caption": "caption", "vqa": "vqa", "retrieval": "matching"}
    made = {task: tiny_blip(kind, root / task) for task, kind in kinds.items()}
    return made | {"classification": made["retrieval"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    pictures = coco(tmp_path_factory.mktemp("data") / "coco", pictures=8)
    classes = tmp_path_factory.mktemp("classes")
    for split in ("train", "val"):
        for i, name in enumerate(("red", "blue", "green", "red", "blue", "green")):
            (classes / split / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40 + i), name).save(classes / split / name / f"{i}.png")
    return dict.fromkeys(("caption", "vqa", "retrieval"), pictures) | {"classification": classes}


def flags(task: str, model: Path | str, data: Path, folder: Path, *more: str) -> list[str]:
    """A short training of a tiny model; later flags win."""
    return [
        "--task", task, "--model", str(model), "--data_root", str(data), "--output_dir",
        str(folder), "--device", "cpu", "--max_steps", str(STEPS), "--batch_size", "4",
        "--learning_rate", "5e-3", "--eval_strategy", "steps", "--eval_steps", "2",
        "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1",
        "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--augment", "crop",
        "--num_beams", "1", "--k_test", "4", *more,
    ]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model" if (folder / "adapter_config.json").is_file() else "model"
    return load_file(folder / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("task", "model", "tuning"),
    [
        ("caption", "blip", "full"),
        ("vqa", "blip", "lora"),
        ("retrieval", "blip", "frozen_tower"),
        ("retrieval", "clip", "full"),
        ("classification", "blip", "full"),
        ("classification", "clip", "lora"),
    ],
)
def test_the_figure_printed_is_the_one_that_evaluate_gives(
    task, model, tuning, folders, data, tmp_path, capsys
):
    """Of the best weights, by the very command that train.py prints."""
    base = folders[task] if model == "blip" else TOY_CLIP
    main(*parse(flags(task, base, data[task], tmp_path / "run", "--tuning", tuning)))
    said = capsys.readouterr().out
    outcome = read(tmp_path / "run" / "metrics.json")
    best = read(tmp_path / "run" / "best.json")
    assert outcome["best_step"] == best["step"]
    assert outcome["best"] == pytest.approx(best[SELECTION[task]])
    assert f"{SELECTION[task]} {outcome['best']} on {outcome['validation']}" in said
    (command,) = [line for line in said.splitlines() if "evaluate.py --task" in line]
    argv = [*shlex.split(command)[2:], "--output_dir", str(tmp_path / "measured")]
    evaluate.main(parse_options(EvaluateOptions, description="", argv=argv))
    measured = read(tmp_path / "measured" / "metrics.json")
    assert measured["selection"]["value"] == outcome["best"]
    split = "train" if task == "classification" else "train2014"
    assert measured["weights_saw"]["trained_on"][0].startswith(f"{data[task]}, split {split} (")


def test_the_command_keeps_the_precision_that_was_asked_for(tmp_path):
    known = {"task": "vqa", "model": str(tmp_path), "data_root": str(tmp_path)}
    assert "--dtype" not in training_run.evaluate_command(EvaluateOptions(**known))
    command = training_run.evaluate_command(EvaluateOptions(**known, dtype="float32"))
    assert command.endswith("--dtype float32")


def test_the_whole_model_is_a_hub_folder(folders, data, tmp_path):
    main(*parse(flags("caption", folders["caption"], data["caption"], tmp_path / "run")))
    folder = tmp_path / "run" / "model"
    import transformers

    theirs = transformers.BlipForConditionalGeneration.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    transformers.AutoProcessor.from_pretrained(folder)
    ours = load_blip(folder, device="cpu")
    assert ours.image_size == 32
    manifest = read(folder / "manifest.json")
    assert manifest["base_model"] == str(folders["caption"])
    assert [(d["source"], d["split"]) for d in manifest["data"]] == [
        (str(data["caption"]), "train2014")
    ]
    assert manifest["samples"] == {str(data["caption"]): 16}
    assert manifest["prompt"] == "a picture of "
    assert not manifest["synthetic"]
    assert manifest["environment"]["packages"]["torch"]
    assert not any(p.name.startswith(".unfinished") for p in (tmp_path / "run").iterdir())
    run = {"data_root": str(data["caption"]), "split": "train2014"}
    assert weights_saw("caption", str(folder), None, run)["saw"] == "questions"
    assert weights_saw("caption", str(folder), None, run | {"split": "val2014"})["saw"] is None


class Stopped(Exception):
    """As if the process was killed."""


def stopped_at(step: int, patch: pytest.MonkeyPatch) -> None:
    own = VlmTrainer.training_step

    def watched(trainer, model, inputs, n=None):
        if trainer.state.global_step == step:
            raise Stopped
        return own(trainer, model, inputs, n)

    patch.setattr(VlmTrainer, "training_step", watched)


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("retrieval", ("--tuning", "frozen_tower")),
        ("retrieval", ("--tuning", "lora", "--lora_dropout", "0.1", "--layer_decay", "0.7")),
        ("vqa", ("--augment", "randaugment", "--texts_per_picture", "2")),
    ],
)
def test_a_continued_run_equals_an_uninterrupted_one(task, more, folders, data, tmp_path):
    """Hard negatives, crops, dropout and the learned temperature too: bit for bit. Frozen weights
    are in no checkpoint."""
    runs = {name: tmp_path / name for name in ("whole", "broken")}
    argv = {name: flags(task, folders[task], data[task], run, *more) for name, run in runs.items()}
    main(*parse(argv["whole"]))
    with pytest.MonkeyPatch.context() as patch:
        stopped_at(3, patch)
        with pytest.raises(Stopped):
            main(*parse(argv["broken"]))
    saved = load_file(runs["broken"] / "checkpoint-2" / "trainable.safetensors")
    tower = {name for name in saved if "vision_model." in name and ".lora_" not in name}
    assert bool(tower) == (task == "vqa")
    assert ("temperature" in saved) == (task == "retrieval")
    main(*parse(argv["broken"]))
    result = "adapter" if "lora" in more else "model"
    one, two = (weights(run / result) for run in runs.values())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    temperatures = {read(run / result / "manifest.json")["temperature"] for run in runs.values()}
    assert len(temperatures) == 1
    curves = [
        [(row["step"], row.get("loss"), row.get(f"eval_{SELECTION[task]}")) for row in
         read_curve(run / "metrics.jsonl")][:-1]
        for run in runs.values()
    ]  # fmt: skip
    assert curves[0] == curves[1]


def test_the_best_weights_are_kept_not_the_last(folders, data, tmp_path, monkeypatch):
    figures = iter([10.0, 30.0, 20.0, 25.0])
    seen = []

    def measured(task, model, data, settings):
        seen.append({n: p.detach().clone() for n, p in model.model.named_parameters()})
        return next(figures)

    monkeypatch.setattr(training_run, "measured", measured)
    argv = flags("caption", folders["caption"], data["caption"], tmp_path / "run",
                 "--max_steps", "3", "--eval_steps", "1")  # fmt: skip
    main(*parse(argv))
    assert read(tmp_path / "run" / "best.json") == {"cider": 30.0, "step": 2}
    kept = weights(tmp_path / "run" / "model")
    name = "vision_model.embeddings.class_embedding"
    assert torch.equal(kept[name], seen[1][name])
    assert not torch.equal(kept[name], seen[2][name])
    assert torch.equal(kept[name], seen[3][name])  # what is measured at the end is what is kept


def test_without_validation_the_last_weights_stay(folders, data, tmp_path, capsys):
    argv = flags("caption", folders["caption"], data["caption"], tmp_path / "run",
                 "--validation_split", "none", "--max_steps", "1")  # fmt: skip
    main(*parse(argv))
    outcome = read(tmp_path / "run" / "metrics.json")
    assert (outcome["best"], outcome["best_step"], outcome["last"]) == (None, None, {})
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    main(*parse(argv))
    assert "is trained to its end" in capsys.readouterr().out
    with pytest.raises(UserError, match="label_smoothing: 0"):
        main(*parse([*argv, "--label_smoothing", "0.2"]))


def test_a_broken_picture_is_left_out_and_counted(folders, tmp_path, capsys):
    root = coco(tmp_path / "coco", pictures=8)
    (root / "train2014" / f"COCO_train2014_{0:012d}.jpg").write_bytes(b"no picture")
    argv = flags("caption", folders["caption"], root, tmp_path / "run", "--validation_split",
                 "none", "--texts_per_picture", "2", "--max_steps", "-1",
                 "--num_train_epochs", "1")  # fmt: skip
    main(*parse(argv))
    outcome = read(tmp_path / "run" / "metrics.json")
    assert (outcome["steps"], outcome["skipped_in_training"]) == (2, 1)
    assert "000000000000.jpg" in (tmp_path / "run" / "skipped.txt").read_text()
    assert "1 of 8 samples will be left out" in capsys.readouterr().out


# Options and plans


@pytest.mark.parametrize("task", TRAINED_TASKS)
def test_presets_hold_options_only_and_toys_begin_from_them(task):
    preset = yaml.safe_load((PRESETS / f"{task}.yaml").read_text())
    root = () if task != "classification" else ("--data_root", "x")
    options, training = parse([str(PRESETS / f"{task}.yaml"), *root])
    by_task = parse(["--task", task, *root])
    values = {**vars(training), **vars(options)}
    for name, value in preset.items():
        assert values[name] == value, name
    for own, other in zip((options, training), by_task, strict=True):
        assert {k: v for k, v in resolved_values(own).items()} == resolved_values(other)
    known = set(vars(options)) | set(training.to_dict())
    assert set(TOY[task]) <= known
    assert ("https://" in (PRESETS / f"{task}.yaml").read_text()) == (task != "classification")


def resolved_values(options: Any) -> dict[str, Any]:
    values = options.to_dict() if hasattr(options, "to_dict") else resolved_config(options)
    return {k: v for k, v in values.items() if k != "logging_dir"}


def test_the_task_decides_the_defaults(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("task: vqa\n")
    assert task_of([str(file)], TRAINED_TASKS) == "vqa"
    assert task_of([str(file), "--task", "retrieval"], TRAINED_TASKS) == "retrieval"
    assert task_of(["--task=classification"], TRAINED_TASKS) == "classification"
    assert task_of(["--task=localization"], TRAINED_TASKS) == "caption"  # argparse refuses it
    assert parse(["--task", "vqa"])[0].model == "Salesforce/blip-vqa-base"
    assert set(SELECTION) == set(TRAINED_TASKS) == set(TOY)
    assert set(TRAINED_TASKS) <= set(ASKED)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--layer_decay", "0"), "--layer_decay 0.0: above 0"),
        (("--layer_decay", "0.9", "--tuning", "frozen_tower"), "frozen_tower does not train"),
        (("--temperature", "2"), "--temperature 2.0: between"),
        (("--data_weights", "1", "2"), "--data_weights has 2 values for 1"),
        (("--data_weights", "-1"), "each above 0"),
        (("--task", "retrieval", "--texts_per_picture", "2"), "is for captions and questions"),
        (("--label_smoothing", "1"), "from 0 to below 1"),
        (("--k_test", "-1"), "--k_test -1: at least 0"),
        (("--inference", "rank"), "needs --candidates"),
        (("--task", "classification", "--scoring", "itm"), "--scoring itm: classes are learned"),
    ],
)
def test_options_that_cannot_be(more, message):
    with pytest.raises(UserError, match=message):
        parse(["--data_root", "x", *more])


@pytest.mark.parametrize("task", TRAINED_TASKS)
def test_a_dry_run_reads_no_weights(task, folders, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lavis_apps.training_model.load_for_training", None)
    argv = flags(task, folders[task], data[task], tmp_path / "run", "--dry_run", "--tuning", "lora")
    main(*parse(argv))
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    expected = {
        "caption": "[DEC] a picture of【a red picture [SEP]】",
        "vqa": "[DEC] 【red [SEP]】 (weight 0.8)",
        "retrieval": "a red picture [SEP]",
        "classification": "class 【blue】 of 3",
    }
    assert expected[task] in said
    assert "vision tower: " in said
    assert "memory: " in said


def test_a_dry_run_without_data_or_model(tmp_path, capsys):
    main(*parse(["--task", "vqa", "--data_root", str(tmp_path), "--model", "no/such", "--dry_run"]))
    said = capsys.readouterr().out
    assert "not on this machine" in said
    assert "no/such" in said


def test_the_toy_s_data_is_its_own():
    assert (
        train_settings.toy_defaults("classification")["data_root"]
        != (train_settings.toy_defaults("caption")["data_root"])
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_does(folders, data, tmp_path):
    """DDP on the CPU: captions have one loss however they are dealt. With plain gradient steps:
    Adam would blow up the rounding noise of the keys' biases, whose gradient is 0."""
    more = ("--augment", "none", "--validation_split", "none", "--optim", "sgd")
    argv = ["caption", folders["caption"], data["caption"]]
    main(*parse(flags(*argv, tmp_path / "one", *more)))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend",
        "c10d", "--rdzv_endpoint", "localhost:0", str(REPO_ROOT / "lavis_apps" / "train.py"),
        *flags(*argv, tmp_path / "two", *more, "--batch_size", "2"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        [row["loss"] for row in read_curve(tmp_path / run / "metrics.jsonl") if "loss" in row]
        for run in ("one", "two")
    ]
    assert len(losses[0]) == STEPS
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = (weights(tmp_path / run / "model") for run in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-4, msg=name)
