"""Plans without weights: published counts, what trains, memory against real tensors, the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from qwen_clip_llava_lora import memory_table
from qwen_clip_llava_lora.components import LANGUAGE, PROJECTOR, VISION
from qwen_clip_llava_lora.encoding import n_picture_tokens
from qwen_clip_llava_lora.memory import (
    COUNTED,
    Needs,
    in_ram,
    kept_per_layer,
    meta_model,
    on_each_gpu,
    trainable_map,
    training_needs,
)
from qwen_clip_llava_lora.planning import (
    opened,
    patches_per_token,
    read_config,
    tokens_of,
)
from qwen_clip_llava_lora.settings import ARCHITECTURES
from qwen_clip_llava_lora.train import main, parse
from qwen_clip_llava_lora.train_settings import TrainOptions
from qwen_clip_llava_lora.training_model import prepare_training
from shared.loading import GIB
from shared.options import MissingError, UserError, read_json
from shared.vision_families import open_family
from tests.tiny_models import tiny_folder

CLIP = "openai/clip-vit-large-patch14-336"
QWEN_7B = "Qwen/Qwen2.5-VL-7B-Instruct"
VISION_LANGUAGE = [
    name for name, entry in read_json(ARCHITECTURES).items() if "vision_config" in entry["config"]
]
ALONE = [name for name in read_json(ARCHITECTURES) if name not in VISION_LANGUAGE]


def options(model: str, **values: object) -> TrainOptions:
    return TrainOptions(model=model, data=["none"], **values)


def dry_run(*flags: str) -> None:
    main(*parse([*flags, "--dry_run"]))


# Architectures


def billions(n: int, published: str) -> str:
    """As the published number is rounded."""
    return f"{n / 1e9:.{len(published.rstrip('B').partition('.')[2])}f}B"


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_parameters_of_a_vision_language_model_are_the_published_number(name):
    published = read_json(ARCHITECTURES)[name]["parameters"]
    model = meta_model(read_config(name)[0])
    assert billions(sum(p.numel() for p in model.parameters()), published) == published
    assert sum(part.parameters for part in trainable_map(model).values()) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("name", ALONE)
def test_parameters_of_a_part_are_the_published_number(name):
    import transformers

    published = read_json(ARCHITECTURES)[name]["parameters"]
    config = dict(read_json(ARCHITECTURES)[name]["config"])
    kind = config.pop("model_type")
    known = transformers.AutoConfig.for_model(kind, **config)
    tower = {
        "clip_vision_model": "CLIPVisionModel",
        "siglip_vision_model": "SiglipVisionModel",
        "chinese_clip_vision_model": "ChineseCLIPVisionModel",
    }
    with torch.device("meta"):
        if kind in tower:
            model = getattr(transformers, tower[kind])(known)
        else:
            model = transformers.AutoModelForCausalLM.from_config(known)
    assert billions(sum(p.numel() for p in model.parameters()), published) == published


def test_every_architecture_says_where_its_numbers_were_seen():
    for name, entry in read_json(ARCHITECTURES).items():
        assert entry["source"] == f"https://huggingface.co/{name}/blob/main/config.json"
        assert entry["evidence"].startswith(("seen", "unverified: ")), name
        assert set(entry) == {"source", "evidence", "parameters", "config"}


@pytest.mark.parametrize(
    ("language_model", "projector"),
    [("Qwen/Qwen2.5-0.5B-Instruct", 1_722_112), ("Qwen/Qwen1.5-4B-Chat", 9_180_160)],
)
def test_a_llava_that_is_not_merged_yet(language_model, projector):
    """Projector: two linear layers, 1024 -> D -> D with their biases."""
    config, source = read_config(f"{language_model}+{CLIP}")
    parts = trainable_map(meta_model(config))
    assert parts[PROJECTOR].parameters == projector
    assert parts[VISION].parameters == 303_507_456
    assert source.count("not on disk: published numbers, seen") == 2


def test_a_model_that_nobody_knows_is_an_error_with_the_known_ones():
    with pytest.raises(MissingError, match=r"nobody/nothing is not on this machine(.|\n)*MiniCPM"):
        read_config("nobody/nothing")


# What trains


def test_the_trainable_map_of_lora_by_hand():
    """Rank 16 on q_proj (3584 -> 3584) and v_proj (3584 -> 512) of 28 layers; nothing else."""
    model = opened(read_config(QWEN_7B)[0], options(QWEN_7B, lora_rank=16))
    parts = trainable_map(model)
    assert parts[LANGUAGE].trained == 28 * 16 * ((3584 + 3584) + (3584 + 512))
    assert parts[LANGUAGE].lora_layers == 56
    assert parts[LANGUAGE].parameters == 7_615_616_512
    assert parts[VISION].trained == parts[PROJECTOR].trained == 0


@pytest.mark.parametrize("train_type", ["projector", "full"])
def test_the_trainable_map_of_the_other_types(train_type):
    chosen = options(QWEN_7B, train_type=train_type, train_projector=True)
    parts = trainable_map(opened(read_config(QWEN_7B)[0], chosen))
    assert parts[PROJECTOR].trained == parts[PROJECTOR].parameters
    assert parts[VISION].trained == 0
    assert parts[LANGUAGE].trained == (7_615_616_512 if train_type == "full" else 0)


def test_the_tower_opens_when_asked_to():
    chosen = options(QWEN_7B, train_type="full", train_vision=True)
    parts = trainable_map(opened(read_config(QWEN_7B)[0], chosen))
    assert parts[VISION].trained == parts[VISION].parameters


# The plan


@pytest.mark.parametrize(
    ("model", "trained", "vision"),
    [
        (QWEN_7B, "1,261,568 trained (LoRA, rank 4, on 56 layers)", "631,975,680, frozen"),
        ("openbmb/MiniCPM-V-4.6", "159,744 trained (LoRA, rank 4, on 12 layers)", "522,299,312"),
    ],
)
def test_dry_run_without_weights_and_data(model, trained, vision, tmp_path, capsys):
    dry_run("--model", model, "--data", str(tmp_path / "own.csv"), "--output_dir", str(tmp_path))
    said = capsys.readouterr().out
    assert "not on disk: published numbers, seen" in said
    assert f"language model: {7_615_616_512 if model == QWEN_7B else 752_393_024:,}, " in said
    assert trained in said
    assert f"vision tower: {vision}" in said
    assert "own.csv is not on this machine" in said
    assert "about " in said.split("memory:")[1].split("GiB on each GPU, with activation")[0]
    assert "without activation checkpointing" in said
    assert "16 GB: " in said
    assert "80 GB: fits" in said
    assert "computed, not measured" in said
    assert "assumed: one picture of 640 x 480" in said
    assert list(tmp_path.iterdir()) == []


def test_what_fits_no_card_says_over_how_many_gpus_it_would(tmp_path, capsys):
    dry_run("--model", QWEN_7B, "--data", str(tmp_path / "x"), "--train_type", "full")
    said = capsys.readouterr().out
    assert "80 GB: does not fit" in said
    two, four, eight = (
        int(part.split(": ")[1])
        for part in said.split("would take, GiB on each GPU, ")[1].split(" (")[0].split(", ")
    )
    assert two > four > eight
    assert "which train.py refuses so far" in said


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five usable rows of growing answers, and one without its picture."""
    for i in range(6):
        Image.new("RGB", (60 + 10 * i, 70)).save(tmp_path / f"{i}.png")
    content = [
        {"id": f"r{i}", "image": f"{i}.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "red " * (i + 1)},
        ]}
        for i in range(5)
    ]  # fmt: skip
    content.append(dict(content[0], id="gone", image="none.png"))
    (tmp_path / "rows.json").write_text(json.dumps(content))
    return tmp_path / "rows.json"


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "minicpmv4_6"])
def test_dry_run_of_a_model_and_data_on_disk(kind, rows, tmp_path, capsys):
    folder = tiny_folder(kind, tmp_path / kind)
    flags = ["--model", str(folder), "--data", str(rows), "--validation_samples", "0"]
    flags += ["--image_aspect_ratio", "square"] if kind == "llava" else []
    dry_run(*flags, "--max_steps", "-1", "--num_train_epochs", "2", "--batch_size", "2")
    said = capsys.readouterr().out
    assert "(on disk)" in said
    assert "6 train, 0 held out" in said
    assert "steps:      6, " in said
    assert "<image> x " in said
    assert "【red" in said
    assert "of the first 6 rows, 5 of them usable" in said
    assert "unusable:   1 of 6 rows: gone: " in said
    assert "none.png: no such picture" in said
    assert "r4, the longest looked at" in said


def test_pictures_are_counted_where_there_is_data_but_no_tokenizer(rows, capsys):
    dry_run("--model", QWEN_7B, "--data", str(rows), "--validation_samples", "0")
    said = capsys.readouterr().out
    assert f"sample:     none: the tokenizer of {QWEN_7B} is not on this machine" in said
    assert "pictures:   60 x 70: 4, 70 x 70: 4, 80 x 70: 6, 90 x 70: 6 tokens" in said


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(60, 60), (100, 50), (53, 101), (111, 112)])
def test_tokens_of_a_picture_without_the_folder_are_those_with_it(kind, size, tmp_path):
    folder = tiny_folder(kind, tmp_path / kind)
    family = open_family(folder)
    bounds = {}
    if kind != "llava":
        bounds = {"min_pixels": family.image_processor.size["shortest_edge"]}
        bounds["max_pixels"] = family.image_processor.size["longest_edge"]
    assert tokens_of(family.config, size, options(str(folder), **bounds)) == n_picture_tokens(
        family, *size
    )


def test_tokens_of_minicpm_by_hand():
    """448 x 448 are 32 x 32 patches, 64 groups of 4 x 4. 640 x 480 is 1.5 times that area: two
    slices of 320 x 480, each 7 x 10 groups at that area, beside the whole, 9 x 7 groups."""
    config, _ = read_config("openbmb/MiniCPM-V-4.6")
    chosen = options("openbmb/MiniCPM-V-4.6")
    assert patches_per_token(config) == 16
    assert tokens_of(config, (448, 448), chosen) == 64
    assert tokens_of(config, (640, 480), chosen) == 2 * 7 * 10 + 9 * 7


def test_a_picture_that_is_too_long_is_an_error():
    config, _ = read_config(QWEN_7B)
    with pytest.raises(UserError, match="5000 x 10 pixels"):
        tokens_of(config, (5000, 10), options(QWEN_7B))


# Memory against real tensors


@pytest.mark.parametrize("train_type", ["lora", "projector", "full"])
def test_weights_gradients_and_optimizer_are_those_of_a_real_step(train_type, tmp_path):
    """Bytes of all tensors behind one step of AdamW, on the CPU; autocast's copies are not kept."""
    import transformers

    folder = tiny_folder("llava", tmp_path / "llava")
    chosen = options(str(folder), train_type=train_type)
    config, _ = read_config(str(folder))
    plan = training_needs(
        opened(config, chosen),
        samples=1, tokens=8, learned=1, patches=0, picture_tokens=0, recomputed=False,
    )  # fmt: skip
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    prepare_training(model, "llava", chosen)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [
        value for state in optimizer.state.values() for value in state.values() if value.dim()
    ]
    real = sum(t.nbytes for t in [*model.parameters(), *(p.grad for p in trained), *states])
    estimate = on_each_gpu(plan)
    copies = 2 * plan.trained / GIB
    assert plan.trained == sum(p.numel() for p in trained)
    assert (estimate.weights + estimate.trainable - copies) * GIB == pytest.approx(real)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "qwen3_vl", "minicpmv4_6"])
@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_what_is_kept_is_what_a_real_forward_pass_keeps(kind, train_type, tmp_path):
    """Bytes that autograd saves in the language model's layers with real weights, beside them and
    their copies in 16 bits: the difference of two lengths. With padding, as batches have it."""
    import transformers

    folder = tiny_folder(kind, tmp_path / kind)
    chosen = options(str(folder), train_type=train_type, lora_layers="all")
    estimate = kept_per_layer(opened(read_config(str(folder))[0], chosen).model.language_model)

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    prepare_training(model, kind, chosen)
    language_model = model.train().model.language_model
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(tokens: int) -> int:
        storages = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        embeddings = torch.randn(
            1, tokens, language_model.config.hidden_size,
            dtype=language_model.get_input_embeddings().weight.dtype, requires_grad=True,
        )  # fmt: skip
        mask = torch.ones(1, tokens, dtype=torch.long)
        mask[0, -1] = 0  # padding
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        ):
            language_model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        return sum(n for n, _ in storages.values())

    layers = language_model.config.num_hidden_layers
    real = (kept(COUNTED[1]) - kept(COUNTED[0])) / (COUNTED[1] - COUNTED[0]) / layers
    # what is kept once, whatever the number of layers (the last norm, positions), is not counted
    assert 0.9 * real <= estimate <= real


def test_recomputation_keeps_less_and_more_tokens_take_more():
    model = opened(read_config(QWEN_7B)[0], options(QWEN_7B, lora_layers="all"))

    def kept(samples: int, recomputed: bool) -> float:
        return training_needs(
            model, samples=samples, tokens=512, learned=64, patches=1024, picture_tokens=256,
            recomputed=recomputed,
        ).activations  # fmt: skip

    assert kept(1, True) < kept(2, True) < kept(2, False)
    assert kept(1, True) < 0.2 * kept(1, False)


@pytest.mark.parametrize(("train_type", "published"), [("lora", 16), ("qlora", 6), ("full", 120)])
def test_the_estimate_is_near_llama_factorys_rule_for_7b(train_type, published):
    """GB of LLaMA-Factory's README for a 7B language model (LoRA 16 bit, QLoRA 4 bit, full bf16
    with AMP); this one is 7.6B and has CLIP beside it. Within a factor of 1.6."""
    name = f"Qwen/Qwen2.5-7B-Instruct+{CLIP}"
    chosen = options(name, train_type=train_type, lora_rank=8, lora_layers="all")
    needs = training_needs(
        opened(read_config(name)[0], chosen),
        samples=1, tokens=1024, learned=128, patches=576, picture_tokens=576, recomputed=True,
        packed=train_type == "qlora",
    )  # fmt: skip
    assert published / 1.6 < on_each_gpu(needs).total * GIB / 1e9 < published * 1.6


# Several GPUs


def test_strategies_by_hand():
    """1e9 frozen, 1e9 trained parameters in bfloat16, 2 bytes a parameter of ZeRO's weights."""
    needs = Needs(frozen=10**9, frozen_bytes=2e9, trained=10**9, activations=0.0)

    def gigabytes(strategy: str, gpus: int) -> float:
        memory = on_each_gpu(needs, strategy, gpus)
        return (memory.weights + memory.trainable) * GIB / 1e9

    assert gigabytes("ddp", 1) == pytest.approx(2 + 18)
    assert gigabytes("ddp", 2) == gigabytes("ddp", 8) == pytest.approx(2 + 18 + 4)
    assert gigabytes("zero2", 2) == pytest.approx(2 + 2 + 14 / 2 + 1)
    assert gigabytes("zero2_offload", 2) == pytest.approx(2 + 2 + 1)
    assert gigabytes("zero3", 4) == pytest.approx((4 + 14) / 4 + 2 + 1)
    assert gigabytes("zero3_offload", 4) == pytest.approx(2 + 1)
    assert in_ram(needs, "zero2_offload") * GIB / 1e9 == pytest.approx(16)
    assert in_ram(needs, "zero3_offload") * GIB / 1e9 == pytest.approx(16 + 2 + 2)
    assert in_ram(needs, "zero3") == 0
    assert on_each_gpu(needs, optim="adamw_bnb_8bit").trainable * GIB / 1e9 == pytest.approx(12)


@pytest.mark.parametrize("train_type", ["lora", "full"])
@pytest.mark.parametrize("name", [memory_table.MODELS[0], "Qwen/Qwen3-VL-8B-Instruct"])
def test_more_gpus_never_need_more_and_offload_needs_less(name, train_type):
    needs = memory_table.needs_of_model(name, train_type, memory_table.TableOptions())
    for strategy in ("zero2", "zero3", "zero2_offload", "zero3_offload"):
        several = [on_each_gpu(needs, strategy, n).total for n in (2, 4, 8)]
        assert several == sorted(several, reverse=True)
    for n in (2, 4, 8):
        assert on_each_gpu(needs, "ddp", n).total >= on_each_gpu(needs, "zero2", n).total
        for stage in ("zero2", "zero3"):
            plain, offloaded = (
                on_each_gpu(needs, f"{stage}{o}", n).total for o in ("", "_offload")
            )
            assert offloaded < plain
    assert in_ram(needs, "zero3_offload") > in_ram(needs, "zero2_offload") > 0


@pytest.mark.parametrize(
    ("language", "said", "full", "ram"),
    [
        ("en", "computed, not measured", "full", "; RAM 18"),
        ("zh", "未经实测", "全参数", "；内存 18"),
    ],
)
def test_the_table(language, said, full, ram, monkeypatch):
    """Of 2**30 trained parameters: four figures a strategy; offload names the RAM that it takes."""
    needs = Needs(frozen=0, frozen_bytes=0.0, trained=GIB, activations=0.0)
    monkeypatch.setattr(memory_table, "needs_of_model", lambda *_: needs)
    lines = memory_table.table(memory_table.TableOptions(models=["a/b+c/d"], language=language))
    assert said in lines[0]
    head, rule, lora, whole = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]
    )
    assert len(head) == len(rule) == len(lora) == len(whole) == 7
    assert (lora[0], lora[1], whole[1]) == ("a/b + c/d", "LoRA", full)
    assert whole[2] == "19 / 23 / 23 / 23"
    assert [len(cell.split(" / ")) for cell in whole[2:]] == [4] * 5
    assert whole[3].startswith("– / ")
    assert whole[6].endswith(ram)


def test_the_table_refuses_impossible_samples():
    with pytest.raises(UserError, match="--picture"):
        memory_table.TableOptions(picture=[640])
    with pytest.raises(UserError, match="--answer_tokens"):
        memory_table.TableOptions(text_tokens=10, answer_tokens=11)
