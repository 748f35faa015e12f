"""train.py: what moves in each kind of training, what is left behind, stopping, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_repro import assembling, settings, train, trainable
from llava_repro.model import Llava
from llava_repro.planning import read_config
from llava_repro.results import check_projector, load_lora, read_projector
from llava_repro.train import main, parse, refuse_sharded_qlora
from shared.options import UserError
from shared.training import read_curve

STEPS = 6


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def flags(parts: tuple[Path, Path], data: Path, folder: Path, *more: str) -> list[str]:
    """A short training of tiny parts; later flags win."""
    return [
        "--vision_tower", str(parts[0]), "--language_model", str(parts[1]), "--data", str(data),
        "--image_root", str(data.parent / "images"), "--output_dir", str(folder),
        "--device", "cpu", "--max_steps", str(STEPS), "--per_device_train_batch_size", "4",
        "--learning_rate", "1e-2", "--warmup_steps", "0", "--validation_samples", "6",
        "--eval_steps", "3", "--save_steps", "3", "--logging_steps", "1", "--lora_rank", "4",
        "--lora_alpha", "8", "--lora_dropout", "0", "--dataloader_num_workers", "0",
        "--disable_tqdm", "true", *more,
    ]  # fmt: skip


@dataclass
class Seen:
    """What was seen of a training on the way."""

    before: dict[str, Tensor] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    trainer: Any = None

    @property
    def model(self) -> Llava:
        return self.trainer.model.model

    def moved(self) -> set[str]:
        return {
            name
            for name, weight in self.model.named_parameters()
            if not torch.equal(weight.detach(), self.before[name])
        }


def watched(argv: list[str]) -> Seen:
    """Run the script's main and keep what it made."""
    seen = Seen()
    load = assembling.load_for_training
    step, go = trainable.LlavaTrainer.training_step, trainable.LlavaTrainer.train_or_continue

    def watched_load(*arguments):
        assembled, adapter = load(*arguments)
        seen.before = {n: p.detach().clone() for n, p in assembled.model.named_parameters()}
        return assembled, adapter

    def watched_go(trainer):
        seen.trainer = trainer
        return go(trainer)

    def watched_step(trainer, model, inputs, n=None):
        seen.ids += inputs["sample_ids"]
        return step(trainer, model, inputs, n)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembling, "load_for_training", watched_load)
        patch.setattr(trainable.LlavaTrainer, "training_step", watched_step)
        patch.setattr(trainable.LlavaTrainer, "train_or_continue", watched_go)
        main(*parse(argv))
    return seen


@pytest.fixture(scope="module")
def parts(tiny_parts) -> tuple[Path, Path]:
    return tiny_parts("clip", "qwen2")


@pytest.fixture(scope="module")
def stage_1(parts, shared_conversations, tmp_path_factory) -> Path:
    """The run folder of a finished stage 1."""
    folder = tmp_path_factory.mktemp("stage_1") / "run"
    main(*parse(flags(parts, shared_conversations, folder, "--template", "plain")))
    return folder


@pytest.fixture
def finetune(parts, shared_conversations, stage_1, tmp_path) -> Callable[..., Seen]:
    """Run stage 2 into `tmp_path / "run"`."""

    def run(*more: str, folder: str = "run") -> Seen:
        stage_2 = ("--stage", "finetune", "--projector", str(stage_1), *more)
        return watched(flags(parts, shared_conversations, tmp_path / folder, *stage_2))

    return run


# What moves


@pytest.mark.parametrize("train_type", ["freeze_vision", "lora", "qlora", "full"])
def test_exactly_the_declared_parameters_move(finetune, train_type):
    """Every weight that trains gets other bytes; every other keeps its own."""
    seen = finetune("--train_type", train_type)
    names = set(seen.before)
    projector = {n for n in names if n.startswith("projector.")}
    language_model = {n for n in names if n.startswith("language_model.")}
    lora = {n for n in language_model if ".lora_" in n}
    behind = ("encoder.layers.2.", "post_layernorm")  # layer -2 of 3 is the picture
    tower = {n for n in names if n.startswith("vision_tower.") and not any(b in n for b in behind)}
    assert len(projector) == 4
    # a key's bias adds the same to every score of a query: its gradient is zero but for rounding
    declared = {
        "freeze_vision": projector | language_model,
        "lora": projector | lora,
        "qlora": projector | lora,
        "full": projector | language_model | tower,
    }[train_type]
    assert {n for n, p in seen.model.named_parameters() if p.requires_grad} == declared
    still = {n for n in declared - seen.moved() if "k_proj.bias" not in n}
    assert still == set()
    assert seen.moved() <= declared
    if "lora" in train_type:
        assert len(lora) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
        assert not any("lm_head" in n or "vision_tower" in n for n in lora)


def test_stage_1_moves_the_projector_alone(parts, shared_conversations, tmp_path):
    argv = flags(parts, shared_conversations, tmp_path / "run", "--template", "plain")
    seen = watched(argv)
    assert seen.moved() == {n for n in seen.before if n.startswith("projector.")}
    assert len(seen.moved()) == 4


def test_what_trains_is_checked_by_name(parts, shared_conversations, tmp_path):
    """One parameter too many, of any component, stops before the first step."""
    options, training = parse(flags(parts, shared_conversations, tmp_path))
    assembled, _ = assembling.load_for_training(options, training, None)
    trainable.check_trained(assembled.model, "freeze_vision_and_llm")
    odd = assembled.model.vision_tower.encoder.layers[0].mlp.fc1.weight
    odd.requires_grad_(True)
    with pytest.raises(UserError, match=r"1 parameters are not as declared: vision_tower.*fc1"):
        trainable.check_trained(assembled.model, "freeze_vision_and_llm")
    odd.requires_grad_(False)
    assembled.model.projector.half()
    with pytest.raises(UserError, match=r"projector\..* would train in torch.float16"):
        trainable.check_trained(assembled.model, "freeze_vision_and_llm")


@pytest.mark.parametrize("train_type", ["freeze_vision", "lora"])
def test_what_trains_is_fp32_and_the_rest_in_the_compute_dtype(finetune, train_type):
    seen = finetune("--train_type", train_type, "--dtype", "bfloat16")
    for name, weight in seen.model.named_parameters():
        expected = torch.float32 if weight.requires_grad else torch.bfloat16
        assert weight.dtype == expected, name
    assert len(seen.moved()) > 10
    losses = [r["loss"] for r in read_curve(seen.trainer.folder / "metrics.jsonl") if "loss" in r]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]


def test_learning_rates_and_weight_decay_reach_the_optimizer(finetune):
    """Also the projector's own rate; biases and norms have no decay, as in LLaVA."""
    seen = finetune(
        "--learning_rate", "3e-4", "--projector_learning_rate", "1e-5", "--weight_decay", "0.1",
        "--lr_scheduler_type", "constant",
    )  # fmt: skip
    names = {id(p): n for n, p in seen.model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in seen.trainer.optimizer.param_groups
        for p in group["params"]
    }
    assert found["projector.0.weight"] == (1e-5, 0.1)
    assert found["projector.0.bias"] == (1e-5, 0.0)
    assert found["language_model.model.layers.0.mlp.up_proj.weight"] == (3e-4, 0.1)
    assert found["language_model.model.norm.weight"] == (3e-4, 0.0)
    assert set(found) == {n for n, p in seen.model.named_parameters() if p.requires_grad}


def test_the_loss_falls_and_every_kind_of_row_trains(finetune, shared_conversations):
    """Twelve steps over 34 rows: text alone and two pictures among them."""
    seen = finetune("--max_steps", "20", "--group_by_modality_length")
    losses = [r["loss"] for r in read_curve(seen.trainer.folder / "metrics.jsonl") if "loss" in r]
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    rows = [json.loads(line) for line in shared_conversations.read_text().splitlines()]
    kinds = {r["id"]: type(r.get("image")).__name__ for r in rows}
    assert {kinds[i] for i in seen.ids} == {"str", "list", "NoneType"}
    metrics = read(seen.trainer.folder / "metrics.json")
    assert (metrics["steps"], metrics["skipped_in_training"]) == (20, 0)
    assert metrics["last"]["loss"] < losses[0]


def test_data_seed_alone_decides_the_order(finetune):
    """Transformers' flag: the same first weights, other batches."""
    orders = [finetune("--data_seed", seed, "--max_steps", "3", folder=seed).ids for seed in "01"]
    assert orders[0] != orders[1]
    assert finetune("--max_steps", "3", folder="none").ids == orders[0]  # --seed is 0


def test_accumulated_batches_learn_what_one_batch_does(finetune):
    """Four samples at once or two times two: the same losses, token by token."""
    whole = finetune("--global_batch_size", "4", folder="a")
    halves = finetune(
        "--global_batch_size", "4", "--per_device_train_batch_size", "2", folder="b"
    )  # fmt: skip
    assert halves.trainer.args.gradient_accumulation_steps == 2
    assert whole.ids == halves.ids
    curves = [
        [r["loss"] for r in read_curve(s.trainer.folder / "metrics.jsonl") if "loss" in r]
        for s in (whole, halves)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_recomputed_activations_change_no_loss(
    parts, shared_conversations, stage_1, stage, tmp_path
):
    """And they are recomputed, in the frozen language model of stage 1 too."""
    more = ["--template", "plain"] if stage == "pretrain" else ["--projector", str(stage_1)]
    losses = []
    for name, extra in (("a", []), ("b", ["--activation_checkpointing"])):
        argv = flags(parts, shared_conversations, tmp_path / name, "--stage", stage, *more, *extra)
        seen = watched(argv)
        losses.append([r["loss"] for r in read_curve(tmp_path / name / "metrics.jsonl")
                       if "loss" in r])  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    layers = seen.model.language_model.model.layers
    seen.trainer.model.train()
    assert all(layer.gradient_checkpointing and layer.training for layer in layers)
    assert not seen.model.vision_tower.training


# What is left behind


def test_stage_1_leaves_its_projector(stage_1, parts):
    assert {p.name for p in (stage_1 / "projector").iterdir()} == {
        "projector.safetensors", "config.json", "manifest.json",
    }  # fmt: skip
    saved = load_file(stage_1 / "projector" / "projector.safetensors")
    assert sorted(saved) == [f"model.mm_projector.{n}" for n in
                             ("0.bias", "0.weight", "2.bias", "2.weight")]  # fmt: skip
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    manifest = read(stage_1 / "projector" / "manifest.json")
    assert (manifest["stage"], manifest["projector_type"]) == ("pretrain", "mlp2x_gelu")
    assert manifest["parts"]["vision_tower"] == str(parts[0])
    assert not (stage_1 / "model").exists()
    metrics = read(stage_1 / "metrics.json")
    assert metrics["skipped_in_training"] > 0  # rows of text alone have no place in `plain`


def test_stage_2_starts_from_that_projector(finetune, stage_1):
    seen = finetune()
    saved = load_file(stage_1 / "projector" / "projector.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(seen.before[name.removeprefix("model.mm_")], tensor)


def example(model: Llava) -> dict[str, Tensor]:
    image = model.config.image_token_index
    generator = torch.Generator().manual_seed(5)
    return {
        "input_ids": torch.tensor([[3, 9, *[image] * 16, 20, 21, 22]]),
        "attention_mask": torch.ones(1, 21, dtype=torch.long),
        "pixel_values": torch.randn(1, 3, 32, 32, generator=generator),
    }


def test_stage_2_leaves_a_folder_that_transformers_loads(finetune, tmp_path):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    seen = finetune("--template", "chatml_direct")
    folder = tmp_path / "run" / "model"
    theirs, found = LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert [sorted(found[k]) for k in ("missing_keys", "unexpected_keys")] == [[], []]
    inputs = example(seen.model)
    seen.trainer.model.eval()
    with torch.no_grad():
        ours, other = seen.model(**inputs).logits, theirs.eval()(**inputs).logits
    assert torch.allclose(ours, other, atol=1e-4)
    processor = AutoProcessor.from_pretrained(folder)
    turns = [{"role": "user", "content": "<image>\nhi"}]
    prompt = processor.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert "Answer the questions." in prompt  # the template that was trained with
    assert read(folder / "manifest.json")["train_type"] == "freeze_vision"


def test_lora_leaves_an_adapter_and_with_save_model_the_merged_whole(finetune, parts, tmp_path):
    """The trained model, the adapter on a fresh base and the merged folder answer alike."""
    expected: list[Tensor] = []
    seen = finetune("--train_type", "lora")
    seen.trainer.model.eval()
    inputs = example(seen.model)
    with torch.no_grad():
        expected.append(seen.model(**inputs).logits)
    adapter = tmp_path / "run" / "adapter"
    assert {p.name for p in adapter.iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "projector.safetensors",
        "manifest.json",
    }  # fmt: skip
    assert not (tmp_path / "run" / "model").exists()

    options, _ = parse(flags(parts, Path("x"), tmp_path / "x"))
    fresh = assembling.assemble(
        options, None, device=torch.device("cpu"), dtype=torch.float32,
        language_model_dtype=torch.float32, quantization="none",
    ).model.eval()  # fmt: skip
    with torch.no_grad():
        assert not torch.allclose(fresh(**inputs).logits, expected[0], atol=1e-2)
        load_lora(fresh, adapter, parts[1])
        assert torch.allclose(fresh(**inputs).logits, expected[0], atol=1e-4)

    finetune("--train_type", "lora", "--save_model", folder="merged")
    merged = Llava.from_pretrained(tmp_path / "merged" / "model", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(merged(**inputs).logits, expected[0], atol=1e-3)


def test_an_adapter_of_another_base_is_refused(finetune, tiny_parts, parts, tmp_path):
    finetune("--train_type", "lora")
    other = tiny_parts("clip", "llama")
    options, _ = parse(flags(other, Path("x"), tmp_path / "x"))
    model = assembling.assemble(
        options, None, device=torch.device("cpu"), dtype=torch.float32,
        language_model_dtype=torch.float32, quantization="none",
    ).model  # fmt: skip
    with pytest.raises(UserError, match="was trained on"):
        load_lora(model, tmp_path / "run" / "adapter", other[1])


def test_a_whole_llava_trains_on(tiny_llava_folder, shared_conversations, tmp_path):
    """--model needs no --projector: it has one."""
    folder = tiny_llava_folder("siglip", "llama")
    argv = flags((Path("a"), Path("b")), shared_conversations, tmp_path / "run")[4:]
    seen = watched([*argv, "--model", str(folder), "--stage", "finetune", "--train_type", "lora",
                    "--template", "vicuna_v1"])  # fmt: skip
    assert seen.moved() == {n for n, p in seen.model.named_parameters() if p.requires_grad}
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_whole_llava_keeps_its_way_with_pictures_and_is_told_as_it_is(
    tiny_llava_folder, shared_conversations, tmp_path
):
    """Defaults of the flags are not what a folder was trained with."""
    folder = tmp_path / "padded"
    shutil.copytree(tiny_llava_folder("siglip", "llama"), folder)
    config = read(folder / "config.json") | {
        "image_aspect_ratio": "pad", "vision_feature_layer": -1
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    argv = flags((Path("a"), Path("b")), shared_conversations, tmp_path / "run")[4:]
    argv += ["--model", str(folder), "--stage", "finetune", "--train_type", "lora", "--save_model",
             "--template", "vicuna_v1"]  # fmt: skip
    main(*parse(argv))
    assert read(tmp_path / "run" / "model" / "config.json")["image_aspect_ratio"] == "pad"
    content = read(tmp_path / "run" / "adapter" / "manifest.json")
    assert (content["image_aspect_ratio"], content["vision_feature_layer"]) == ("pad", -1)
    assert parse([*argv, "--image_aspect_ratio", "square"])[0].image_aspect_ratio == "square"


def test_a_run_writes_its_files_and_a_finished_one_changes_nothing(
    finetune, tmp_path, monkeypatch, capsys
):
    finetune()
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "metrics.json", "curve.png",
        "best.json", "checkpoint-3", "checkpoint-6", "model", ".lock",
    }  # fmt: skip
    assert not [p for p in folder.rglob("*") if p.suffix in {".bin", ".pth", ".pkl"}]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}

    def never(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(assembling, "load_for_training", never)
    finetune()
    assert "is trained to its end" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    with pytest.raises(UserError, match="max_length: 2048 there, 100 now"):
        finetune("--max_length", "100")


@pytest.mark.slow
def test_validation_loss_by_hand(finetune, tmp_path):
    """Per learned token over all held-out rows, however they are batched; none of them trains."""
    seen = finetune("--max_steps", "20")
    collate, model = seen.trainer.data_collator, seen.trainer.model.eval()
    all_rows = seen.trainer.train_dataset.rows
    names = {row["id"] for row in all_rows}
    held = [r for r in all_rows if r["id"] in names - {x["id"] for x in seen.trainer.train_dataset}]
    assert len(held) >= 6
    assert not {r["id"] for r in held} & set(seen.ids)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in held:
            batch = collate([row])
            n = int((batch["labels"] != -100).sum())
            tensors = {k: v for k, v in batch.items() if torch.is_tensor(v)}
            total += float(model(**tensors)["loss"]) * n
            count += n
    last = read(tmp_path / "run" / "metrics.json")["last"]["loss"]
    assert last == pytest.approx(total / count, rel=1e-4)


# Stopping and going on


@pytest.mark.slow
@pytest.mark.parametrize("train_type", ["freeze_vision", "lora"])
def test_resumed_equals_uninterrupted(finetune, train_type, tmp_path, monkeypatch):
    """Stopped at step 8 of 14, in the first of two passes with grouped batches and dropout; the
    same command goes on from step 6 with the same samples to the same bytes."""
    more = ("--train_type", train_type, "--max_steps", "14", "--group_by_modality_length",
            "--lora_dropout", "0.1")  # fmt: skip
    whole = finetune(*more, folder="whole")
    step = trainable.LlavaTrainer.training_step

    def stopping(trainer, *arguments):
        if trainer.state.global_step == 7:
            raise KeyboardInterrupt
        return step(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainable.LlavaTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            finetune(*more)
    assert not (tmp_path / "run" / "metrics.json").exists()
    resumed = finetune(*more)
    assert resumed.ids == whole.ids[-len(resumed.ids) :]
    assert len(resumed.ids) == 8 * 4 - 2 * (34 % 4 == 2)  # steps 7 to 14, one batch is a rest
    ours = dict(whole.model.named_parameters())
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, ours[name]), name
    timed = {"train_runtime"}
    curves = [
        [r for r in read_curve(tmp_path / f / "metrics.jsonl") if not timed & r.keys()]
        for f in ("whole", "run")
    ]
    assert curves[0] == curves[1]


# Bad input


def refused(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The message that stops the script before a weight trains."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(trainable.LlavaTrainer, "train_or_continue", never)
    with pytest.raises(UserError) as error:
        main(*parse(argv))
    return str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stage", "pretrain", "--train_type", "lora"], "--stage pretrain --train_type lora: no"),
        (["--stage", "finetune", "--train_type", "freeze_llm"], "finetune trains freeze_vision or"),
        (["--stage", "finetune"], "starts from a trained projector: give --projector"),
        (["--stage", "finetune", "--projector", "/nowhere"], "/nowhere: no projector there"),
        (["--template", "vicuna"], "--template vicuna: not one of plain"),
        (["--global_batch_size", "6"], "6 is no multiple of 4"),
        (["--projector_type", "mlp"], "projector mlp: not one of linear, mlp2x_gelu"),
        (["--model", "x"], "--model is a whole LLaVA"),
        (["--lora_rank", "0"], "--lora_rank 0: at least 1"),
        (["--stage", "finetune", "--train_type", "qlora", "--projector", "x", "--save_model"],
         "a 4-bit base cannot take the merged LoRA"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(
    parts, shared_conversations, tmp_path, monkeypatch, more, message
):
    argv = flags(parts, shared_conversations, tmp_path / "run", *more)
    assert message in refused(argv, monkeypatch)


def test_sharded_4_bit_weights_are_refused(monkeypatch):
    refuse_sharded_qlora("qlora")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refuse_sharded_qlora("lora")
    with pytest.raises(UserError, match="qlora with FSDP2: 4-bit weights are not sharded"):
        refuse_sharded_qlora("qlora")


def test_sharding_without_gpus_is_refused(parts, shared_conversations, tmp_path, monkeypatch):
    """accelerate would go on without it and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    argv = flags(parts, shared_conversations, tmp_path / "run")
    assert "FSDP2: accelerate shards on GPUs only" in refused(argv, monkeypatch)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_toy_trains_a_whole_model_on_without_its_own_parts(stage, monkeypatch):
    monkeypatch.setattr(train, "prepare_toy", lambda: None)
    options, training = train.parse(["--toy", "--stage", stage, f"--model={settings.TOY_LLAVA}"])
    assert (options.vision_tower, options.language_model, options.projector) == (None, None, None)
    assert options.data.endswith(f"{stage}.jsonl")
    assert training.output_dir in ("", None)  # run_name's, not the folder of the toy's own run
    options, training = train.parse(["--toy", "--stage", stage])
    assert options.vision_tower.endswith("clip")
    assert training.output_dir.endswith(f"toy_{stage}")


def test_no_model_and_no_data_are_named(monkeypatch, parts, tmp_path):
    assert "which model?" in refused(["--data", "x"], monkeypatch)
    argv = ["--vision_tower", str(parts[0]), "--language_model", str(parts[1])]
    assert "which data?" in refused(argv, monkeypatch)
    missing = flags(parts, tmp_path / "absent.json", tmp_path / "run")
    assert "absent.json: no such file" in refused(missing, monkeypatch)


def test_empty_data_is_named(parts, conversations, tmp_path, monkeypatch):
    conversations.write_text("")
    argv = flags(parts, conversations, tmp_path / "run")
    assert "no rows in it" in refused(argv, monkeypatch)


def test_missing_pictures_are_listed_before_training(parts, conversations, tmp_path, monkeypatch):
    for i in (0, 1, 2, 3, 5):
        (conversations.parent / "images" / f"{i}_0.png").unlink()
    argv = flags(parts, conversations, tmp_path / "run", "--validation_samples", "0")
    message = refused(argv, monkeypatch)
    assert "5 of the 40 samples checked cannot be used, at most 4 would be left out" in message
    assert "5 miss a picture: is --image_root the right folder?" in message
    assert "1_0.png: no such picture" in message


def test_a_picture_broken_behind_its_header_is_left_out_and_counted(parts, conversations, tmp_path):
    picture = conversations.parent / "images" / "0_0.png"
    picture.write_bytes(picture.read_bytes()[:60])
    argv = flags(parts, conversations, tmp_path / "run", "--max_steps", "20",
                 "--validation_samples", "0", "--max_length", "300")  # fmt: skip
    main(*parse(argv))
    assert read(tmp_path / "run" / "metrics.json")["skipped_in_training"] == 1
    (line,) = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert "sample 0: " in line
    assert "broken picture" in line


def test_shortened_samples_are_counted_once(finetune, tmp_path):
    """--max_length cuts the last answers of long rows, and no row is dropped for it."""
    seen = finetune("--max_steps", "20", "--max_length", "85")
    listed = (tmp_path / "run" / "shortened.txt").read_text().splitlines()
    assert len(listed) == len(set(listed)) > 5
    assert set(listed) <= set(seen.ids)
    assert read(tmp_path / "run" / "metrics.json")["shortened_in_training"] == len(listed)


def test_a_projector_of_another_layer_or_model_is_told(
    stage_1, parts, tiny_parts, shared_conversations, tmp_path, monkeypatch, capsys
):
    """Its shapes fit all the same."""
    more = ("--stage", "finetune", "--projector", str(stage_1))
    argv = flags(parts, shared_conversations, tmp_path / "a", *more, "--vision_feature_layer", "-1")
    assert "trained on hidden states -2" in refused(argv, monkeypatch)
    own = parse(flags(parts, shared_conversations, tmp_path / "b", *more))[0]
    config = read_config(own)[0]
    assert check_projector(str(stage_1), own, config) == []
    other = (parts[0], tmp_path / "other")
    shutil.copytree(parts[1], other[1])
    weights = other[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"none")
    theirs = parse(flags(other, shared_conversations, tmp_path / "c", *more))[0]
    (note,) = check_projector(str(stage_1), theirs, config)
    assert "was trained with another language model" in note


def test_a_run_does_not_go_on_from_another_projector(
    stage_1, parts, shared_conversations, tmp_path, monkeypatch
):
    given = tmp_path / "stage_1"
    shutil.copytree(stage_1 / "projector", given)
    more = ("--stage", "finetune", "--projector", str(given))
    argv = flags(parts, shared_conversations, tmp_path / "run", *more)
    main(*parse(argv))
    saved = load_file(given / "projector.safetensors")
    save_file({name: tensor + 1 for name, tensor in saved.items()}, given / "projector.safetensors")
    assert "projector_hash" in refused(argv, monkeypatch)


@pytest.mark.parametrize("spoiled", ["vision", "text", "kind"])
def test_a_projector_of_other_widths_is_refused(
    tiny_llava_folder, parts, stage_1, shared_conversations, tmp_path, monkeypatch, spoiled
):
    saved = load_file(stage_1 / "projector" / "projector.safetensors")
    if spoiled == "vision":
        saved["model.mm_projector.0.weight"] = saved["model.mm_projector.0.weight"][:, :16].clone()
    elif spoiled == "text":
        saved["model.mm_projector.2.weight"] = saved["model.mm_projector.2.weight"][:16].clone()
    else:
        saved = {"model.mm_projector.weight": saved["model.mm_projector.0.weight"]}

    file = tmp_path / "other.safetensors"
    save_file(saved, file)
    argv = flags(parts, shared_conversations, tmp_path / "run", "--stage", "finetune",
                 "--projector", str(file))  # fmt: skip
    message = refused(argv, monkeypatch)
    assert "other.safetensors" in message
    expected = "is --projector_type the one" if spoiled == "kind" else "it was trained for others"
    assert expected in message


def test_a_tokenizer_without_image_gets_one_and_the_embeddings_grow(
    llava_parts, tiny_parts, shared_conversations, tmp_path, capsys
):
    """As language models are published; the old rows stay as they are."""
    import shutil

    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    vision, tiny = tiny_parts("clip", "qwen2")
    text = Path(shutil.copytree(tiny, tmp_path / "text"))
    raw = json.loads(llava_parts["tokenizer"]("qwen2").backend_tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<image>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = llava_parts["tokenizer"]("qwen2").chat_template
    tokenizer.save_pretrained(text)
    model = AutoModelForCausalLM.from_pretrained(text)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(text)
    old = model.get_input_embeddings().weight.detach().clone()

    argv = flags((vision, text), shared_conversations, tmp_path / "run", "--save_model")
    seen = watched(argv)
    said = capsys.readouterr().out
    assert "<image> added as token 259" in said
    new = seen.model.language_model.get_input_embeddings().weight
    assert len(new) > len(old)
    assert torch.equal(new[: len(old)], old)
    assert seen.model.config.image_token_index == 259
    again = Llava.from_pretrained(tmp_path / "run" / "model")
    assert again.config.image_token_index == 259


def test_a_tokenizer_without_bos_is_said(parts, shared_conversations, tmp_path, capsys):
    main(*parse(flags(parts, shared_conversations, tmp_path / "run", "--max_steps", "1")))
    assert "the tokenizer puts no BOS token before a text" in capsys.readouterr().out


def test_an_end_token_that_the_tokenizer_does_not_have_is_refused(
    parts, shared_conversations, tmp_path, monkeypatch
):
    """Vicuna's prompt with Qwen's tokenizer: the model would never stop."""
    argv = flags(parts, shared_conversations, tmp_path / "run", "--template", "vicuna_v1")
    message = refused(argv, monkeypatch)
    assert "'</s>', which is not one token of this tokenizer" in message


def test_a_projector_is_read_from_the_original_s_file(stage_1, tmp_path):
    """mm_projector.bin, read with weights_only."""
    saved = load_file(stage_1 / "projector" / "projector.safetensors")
    torch.save(saved, tmp_path / "mm_projector.bin")
    projector = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 64)
    )
    read_projector(projector, str(tmp_path))
    assert torch.equal(projector[0].weight, saved["model.mm_projector.0.weight"])
    assert torch.equal(projector[2].bias, saved["model.mm_projector.2.bias"])
