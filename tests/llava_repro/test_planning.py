"""What a training would do, without weights: published counts and steps, memory, one sample."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from llava_repro import planning
from llava_repro.planning import (
    count_parameters,
    count_trained,
    estimate_memory,
    meta_model,
    n_image_tokens,
    read_config,
)
from llava_repro.settings import ARCHITECTURES, TRAIN_TYPES, TrainOptions
from llava_repro.train import main, parse
from llava_repro.trainable import lora_size
from shared.llava_parts import known_architecture
from shared.options import REPO_ROOT, MissingError, read_json
from shared.training_flags import steps_of_epochs

CONFIGS = REPO_ROOT / "llava_repro" / "configs"
PRESETS = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if "stage" in yaml.safe_load(path.read_text())
)
CLIP, CLIP_336 = "openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336"


def published(vision: str, text: str, projector: str = "mlp2x_gelu") -> torch.nn.Module:
    options = TrainOptions(
        vision_tower=vision, language_model=text, projector_type=projector, data="x", dry_run=True
    )
    config, kind, _ = read_config(options)
    return meta_model(config, kind)


@pytest.mark.parametrize(
    ("vision", "text", "projector", "weights", "language_model"),
    [
        (CLIP_336, "lmsys/vicuna-7b-v1.5", "mlp2x_gelu", 20_979_712, 6_738_415_616),
        (CLIP_336, "lmsys/vicuna-13b-v1.5", "mlp2x_gelu", 31_467_520, 13_015_864_320),
        (CLIP, "lmsys/vicuna-7b-v1.3", "linear", 4_198_400, 6_738_415_616),
        (CLIP, "lmsys/vicuna-13b-v1.3", "linear", 5_248_000, 13_015_864_320),
        (CLIP_336, "Qwen/Qwen2.5-0.5B-Instruct", "mlp2x_gelu", 1_722_112, 494_032_768),
        (CLIP_336, "Qwen/Qwen2.5-1.5B-Instruct", "mlp2x_gelu", 3_935_232, 1_543_714_304),
        (CLIP_336, "Qwen/Qwen2.5-3B-Instruct", "mlp2x_gelu", 6_295_552, 3_085_938_688),
        (CLIP_336, "Qwen/Qwen2.5-7B-Instruct", "mlp2x_gelu", 16_522_240, 7_615_616_512),
    ],
)
def test_published_parameter_counts(vision, text, projector, weights, language_model):
    """Projector D x h + h (+ h x h + h); language models as their authors count them."""
    counts = count_parameters(published(vision, text, projector))
    assert counts["projector"] == weights
    assert counts["language model"] == language_model


@pytest.mark.parametrize(
    ("text", "weights", "layers"),
    [("lmsys/vicuna-7b-v1.5", 319_815_680, 224), ("lmsys/vicuna-13b-v1.5", 500_695_040, 280)],
)
def test_published_lora_counts(text, weights, layers):
    """Rank 128 on the seven linear layers of every block, not on the head, not on the tower."""
    model = published(CLIP_336, text)
    assert lora_size(model.language_model, 128) == (weights, layers)
    trained = count_trained(model, "lora", 128)
    assert trained == {
        "vision tower": 0,
        "projector": count_parameters(model)["projector"],
        "language model": weights,
    }


def test_the_small_pair_has_its_published_size():
    """s-mllm's English model: 1.671 B, vision 0.428, language model 1.236; the Chinese 0.799 B."""
    english = published("google/siglip-so400m-patch14-384", "meta-llama/Llama-3.2-1B-Instruct")
    chinese = published(
        "OFA-Sys/chinese-clip-vit-large-patch14-336px", "Qwen/Qwen2.5-0.5B-Instruct"
    )
    billions = [
        {name: round(n / 1e9, 3) for name, n in count_parameters(model).items()}
        for model in (english, chinese)
    ]
    assert billions[0] == {"vision tower": 0.428, "projector": 0.007, "language model": 1.236}
    assert billions[1] == {"vision tower": 0.304, "projector": 0.002, "language model": 0.494}
    assert (n_image_tokens(english.config), n_image_tokens(chinese.config)) == (729, 576)


def test_of_a_trained_tower_only_what_is_used_trains():
    """Layer -2 is the picture: the last block and the norm behind it get no gradient."""
    model = published(CLIP_336, "lmsys/vicuna-7b-v1.5")
    trained = count_trained(model, "full", 1)["vision tower"]
    block = sum(p.numel() for p in model.vision_tower.encoder.layers[23].parameters())
    assert count_parameters(model)["vision tower"] - trained == block + 2 * 1024


def test_every_architecture_names_its_source():
    for name, entry in read_json(ARCHITECTURES).items():
        assert entry["source"].startswith(f"https://huggingface.co/{name}/")
        assert known_architecture(name, ARCHITECTURES) == entry["config"]
    assert known_architecture("nobody/nothing", ARCHITECTURES) is None


# Steps


@pytest.mark.parametrize(
    ("preset", "steps", "warm_up"),
    [
        ("v1_pretrain", 4652, 140),
        ("v1_finetune", 3699, 111),
        ("scienceqa", 1200, 36),
        ("v1_5_pretrain", 2181, 66),
        ("v1_5_finetune", 5198, 156),
        ("v1_5_lora", 5198, 156),
        ("english_pretrain", 2181, 66),
        ("english_finetune", 5198, 156),
        ("chinese_pretrain", 3907, 118),
        ("chinese_finetune", 1217, 37),
    ],
)
def test_dry_run_of_each_preset_without_weights(preset, steps, warm_up, tmp_path, capsys, byte_toy):
    """Steps of the published data sizes; the map of what trains; memory; a sample that says whose
    tokenizer made it."""
    main(*parse([str(CONFIGS / f"{preset}.yaml"), "--dry_run", "--output_dir", str(tmp_path)]))
    said = capsys.readouterr().out
    assert f"steps:      {steps:,}, {warm_up:,} of them warm-up" in said
    assert "not on disk: published numbers" in said
    assert said.count("weights:    ") == 3
    assert "memory:     about " in said
    assert "24 GB: " in said
    assert "【" in said
    assert "by the toy's tokenizer: that of " in said
    assert list(tmp_path.iterdir()) == []


def test_all_presets_are_tested():
    named = [
        mark.args[1]
        for mark in test_dry_run_of_each_preset_without_weights.pytestmark
        if mark.name == "parametrize"
    ]
    assert sorted(row[0] for row in named[0]) == PRESETS


@pytest.fixture
def byte_toy(tiny_parts, monkeypatch) -> Path:
    """A tokenizer of single bytes in the toy's place: these tests hold the plan, not the toy."""
    _, folder = tiny_parts("clip", "qwen2")
    monkeypatch.setattr(planning, "TOY_QWEN2", folder)
    return folder


@pytest.mark.parametrize("preset", ["v1_5_pretrain", "v1_5_finetune", "v1_5_lora"])
def test_v1_5_prints_its_published_counts(preset, capsys, byte_toy):
    main(*parse([str(CONFIGS / f"{preset}.yaml"), "--dry_run"]))
    said = capsys.readouterr().out
    assert "projector: 20,979,712, 20,979,712 trained" in said
    language_model = {
        "v1_5_pretrain": "language model: 6,738,415,616, frozen",
        "v1_5_finetune": "language model: 6,738,415,616, 6,738,415,616 trained",
        "v1_5_lora": "319,815,680 trained (LoRA, rank 128, 224 layers)",
    }[preset]
    assert language_model in said
    assert "vision tower: 303,507,456, frozen" in said


def test_learning_rate_at_step_22_is_that_of_the_published_log(tmp_path):
    """2e-5 x 22 / 156 = 2.8205128e-06 (haotian-liu/LLaVA issue 601)."""
    from transformers import get_scheduler

    _, training = parse([str(CONFIGS / "v1_5_finetune.yaml"), "--projector", "x", "--dry_run"])
    steps = steps_of_epochs(training, 665_298)  # as 8 x 16: accumulation is set in main
    training.gradient_accumulation_steps = 8
    steps = steps_of_epochs(training, 665_298)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=training.learning_rate)
    schedule = get_scheduler(
        training.lr_scheduler_type, optimizer,
        num_warmup_steps=training.get_warmup_steps(steps), num_training_steps=steps,
    )  # fmt: skip
    for _ in range(22):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(2.8205128e-06, rel=1e-7)


def test_presets_have_the_published_settings():
    """Global batch, rate, passes, template, LoRA of LLaVA's scripts."""

    def of(name: str) -> tuple:
        preset = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        return tuple(
            preset.get(key)
            for key in ("global_batch_size", "learning_rate", "num_train_epochs", "template")
        )

    assert of("v1_pretrain") == (128, 2e-3, 1, "plain")
    assert of("v1_finetune") == (128, 2e-5, 3, "vicuna_v1")
    assert of("scienceqa") == (128, 2e-5, 12, "vicuna_v1")
    assert of("v1_5_pretrain") == (256, 1e-3, 1, "plain")
    assert of("v1_5_finetune") == (128, 2e-5, 1, "vicuna_v1")
    assert of("v1_5_lora") == (128, 2e-4, 1, "vicuna_v1")
    options, training = parse([str(CONFIGS / "v1_5_lora.yaml"), "--projector", "x"])
    assert (options.lora_rank, options.lora_alpha, options.lora_dropout) == (128, 256, 0.05)
    assert options.projector_learning_rate == 2e-5
    assert (options.image_aspect_ratio, options.group_by_modality_length) == ("pad", True)
    assert (training.weight_decay, training.warmup_steps) == (0.0, 0.03)
    assert training.lr_scheduler_type == "cosine"
    assert training.activation_checkpointing


# Memory


@pytest.mark.parametrize(
    "preset", ["english_pretrain", "english_finetune", "chinese_pretrain", "chinese_finetune"]
)
def test_the_small_pair_fits_one_card_of_24_gb(preset, capsys, byte_toy):
    main(*parse([str(CONFIGS / f"{preset}.yaml"), "--dry_run"]))
    assert "24 GB: fits" in capsys.readouterr().out


def test_a_7b_trained_whole_does_not_fit_and_says_over_how_many_it_would(capsys, byte_toy):
    main(*parse([str(CONFIGS / "v1_5_finetune.yaml"), "--dry_run"]))
    said = capsys.readouterr().out
    assert "24 GB: does not fit" in said
    assert "weights and training state divided by 8 GPUs: about " in said


def test_memory_by_hand():
    """Vicuna 7B in stage 1, one sample: bf16 weights of everything frozen, 18 bytes for each weight
    of the projector (fp32, gradient, two moments, bf16 copy)."""
    model = published(CLIP_336, "lmsys/vicuna-7b-v1.5")
    settings = {"samples": 1, "text_tokens": 32, "dtype": torch.bfloat16, "recomputed": True}
    trained = count_trained(model, "freeze_vision_and_llm", 1)
    memory = estimate_memory(
        model, train_type="freeze_vision_and_llm", trained=trained, optim="adamw_torch", **settings
    )
    gib = 1024**3
    assert memory.weights == pytest.approx((303_507_456 + 6_738_415_616) * 2 / gib)
    assert memory.trainable == pytest.approx(20_979_712 * 18 / gib)
    trained = count_trained(model, "qlora", 64)
    packed = estimate_memory(
        model, train_type="qlora", trained=trained, optim="paged_adamw_8bit", **settings
    )
    assert packed.weights < 0.35 * memory.weights
    assert packed.trainable == pytest.approx(sum(trained.values()) * 12 / gib)
    kept = estimate_memory(
        model, train_type="qlora", trained=trained, optim="adamw_torch",
        **(settings | {"recomputed": False}),
    )  # fmt: skip
    assert kept.activations > 5 * packed.activations


# Models and data on disk


def test_a_model_on_disk_is_planned_with_its_own_tokenizer(
    tiny_parts, shared_conversations, capsys
):
    vision, text = tiny_parts("clip", "qwen2")
    argv = ["--vision_tower", str(vision), "--language_model", str(text)]
    argv += ["--data", str(shared_conversations), "--validation_samples", "5"]
    argv += ["--image_root", str(shared_conversations.parent / "images")]
    main(*parse([*argv, "--dry_run", "--batch_size", "4", "--num_train_epochs", "2"]))
    said = capsys.readouterr().out
    assert said.count("(on disk)") == 2
    assert "<image> x 16\\nwhat color is the shape ?" in said
    assert "【" in said
    assert "by the model's tokenizer" in said
    n_held = int(said.split(" held out")[0].rsplit(" ", 1)[1])
    assert n_held >= 5
    steps = 2 * -(-(40 - n_held) // 4)
    assert f"{40 - n_held} samples, {n_held} held out" in said
    assert f"steps:      {steps}, " in said


def test_a_model_that_nobody_knows_is_an_error_with_a_command():
    argv = ["--vision_tower", "a/b", "--language_model", "c/d", "--data", "x", "--dry_run"]
    with pytest.raises(MissingError, match=r"a/b is not on this machine(.|\n)*shared.download a/b"):
        main(*parse(argv))


def test_train_types_are_declared_for_each_stage():
    from llava_repro.trainable import TRAINED

    assert {t for types in TRAIN_TYPES.values() for t in types} == set(TRAINED)


@pytest.mark.parametrize("preset", ["v1_finetune", "v1_5_finetune", "scienceqa"])
def test_presets_for_several_gpus_say_what_they_need(preset, tmp_path, capsys, byte_toy):
    """The figures of their own --dry_run, rounded as it prints them."""
    path = CONFIGS / f"{preset}.yaml"
    main(*parse([str(path), "--dry_run", "--output_dir", str(tmp_path)]))
    one, sharded = re.findall(r"about ([\d.]+) GiB", capsys.readouterr().out)
    header = path.read_text().partition("\nstage:")[0]
    assert f"{one} GiB on one GPU, {sharded} GiB each" in header
    assert "Never run on" in header


def test_launch_files_say_what_was_not_run_here():
    """And are whole: accelerate reads each."""
    launches = [p for p in CONFIGS.glob("*.yaml") if p.stem not in PRESETS]
    assert {p.stem for p in launches} == {"ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"}
    for path in launches:
        assert "not run" in path.read_text().lower(), path
        assert "distributed_type" in yaml.safe_load(path.read_text())
    for name in ("deepspeed_zero2", "deepspeed_zero3"):
        named = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["deepspeed_config"]
        settings = read_json(REPO_ROOT / named["deepspeed_config_file"])
        assert settings["zero_optimization"]["stage"] == int(name[-1])
