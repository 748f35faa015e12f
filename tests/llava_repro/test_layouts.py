"""One tiny model written in every layout: the same logits; everything else is one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_repro.layouts import open_checkpoint, our_name
from llava_repro.model import Llava
from shared.options import MissingError, UserError

State = dict[str, Tensor]
PROJECTOR = {"0": "linear_1", "2": "linear_2"}


@pytest.fixture(scope="module")
def source(tiny_llava_folder) -> Path:
    return tiny_llava_folder("clip", "llama")


@pytest.fixture(scope="module")
def state(source: Path) -> State:
    """Keys as transformers 5 writes them."""
    return load_file(source / "model.safetensors")


@pytest.fixture(scope="module")
def config(source: Path) -> dict[str, Any]:
    return json.loads((source / "config.json").read_text())


@pytest.fixture(scope="module")
def inputs(config: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, 250, (2, 9), generator=generator)
    picture = torch.full((2, 16), config["image_token_index"])
    return {
        "input_ids": torch.cat([words[:, :4], picture, words[:, 4:]], dim=1),
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
    }


@pytest.fixture(scope="module")
def expected(source: Path, inputs: dict[str, Tensor]) -> Tensor:
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(**inputs).logits


def logits(folder: Path, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    model = Llava.from_pretrained(folder, dtype="float32", device="cpu", **settings)
    # the original layouts have no id for <image>: theirs is the one after the vocabulary
    image_id = int(inputs["input_ids"].mode().values[0])
    ids = inputs["input_ids"].masked_fill(
        inputs["input_ids"] == image_id, model.config.image_token_index
    )
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits


def renamed(state: State, rules: list[tuple[str, str]]) -> State:
    """Each key by the first rule whose start fits; a key without a rule is a mistake here."""
    result = {}
    for key, tensor in state.items():
        start, new = next((old, new) for old, new in rules if key.startswith(old))
        result[new + key.removeprefix(start)] = tensor
    return result


V4 = [("vision_tower.", "vision_tower.vision_model."), ("", "")]
V4_52 = [
    ("vision_tower.", "model.vision_tower.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
]
ORIGINAL = [
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
]


def original_config(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """config.json as the original repository writes it: the language model's, with mm_ fields."""
    text = {k: v for k, v in config["text_config"].items() if k != "model_type"}
    return text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "some/clip-that-is-not-here",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "use_mm_proj": True,
        "tokenizer_model_max_length": 2048,
        "unfreeze_mm_vision_tower": False,
    } | changes  # fmt: skip


def write_folder(folder: Path, config: dict[str, Any], **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        torch.save(content, folder / f"{name}.bin")
    return folder


def write_bin_shards(folder: Path, state: State) -> None:
    """pytorch_model-0000x-of-00002.bin and their index, as transformers 4 wrote large models."""
    keys = list(state)
    weight_map = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({key: state[key] for key in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def tower(tmp_path_factory, state: State, config: dict[str, Any]) -> Path:
    """A whole CLIP with the tiny model's vision part: keys of the text part are beside it."""
    folder = tmp_path_factory.mktemp("clip")
    part = {
        f"vision_model.{key.removeprefix('vision_tower.')}": tensor
        for key, tensor in state.items()
        if key.startswith("vision_tower.")
    }
    save_file(
        part | {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.ones(4)},
        folder / "model.safetensors",
    )
    vision = {k: v for k, v in config["vision_config"].items() if k != "model_type"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": vision, "text_config": {}})
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, state: State, config: dict[str, Any]) -> Path:
    """The language model alone, as a folder of its own."""
    folder = tmp_path_factory.mktemp("vicuna")
    save_file(
        {
            key.removeprefix("language_model."): tensor
            for key, tensor in state.items()
            if key.startswith("language_model.")
        },
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    return folder


@pytest.mark.parametrize("rules", [[("", "")], V4, V4_52], ids=["v5", "v4", "v4.52"])
def test_layouts_of_transformers(tmp_path, state, config, inputs, expected, rules):
    folder = write_folder(tmp_path / "any_name", config)
    save_file(renamed(state, rules), folder / "model.safetensors")
    assert torch.equal(logits(folder, inputs), expected)


def original_state(state: State) -> State:
    """With the buffers that older transformers stored beside the weights."""
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(17),
    }
    return renamed(state, ORIGINAL) | extra


def test_original_full_layout_with_the_tower_inside(
    tmp_path, state, config, inputs, expected, tower
):
    folder = write_folder(tmp_path / "m", original_config(config))
    write_bin_shards(folder, original_state(state))
    (tmp_path / "config_only").mkdir()
    shutil.copy(tower / "config.json", tmp_path / "config_only")
    found = logits(folder, inputs, vision_tower=tmp_path / "config_only")
    assert torch.equal(found, expected)


def test_original_full_layout_with_the_tower_only_named(
    tmp_path, state, config, inputs, expected, tower
):
    weights = {k: v for k, v in original_state(state).items() if "vision_tower" not in k}
    named = write_folder(
        tmp_path / "named", original_config(config, mm_vision_tower=str(tower)),
        pytorch_model=weights,
    )  # fmt: skip
    assert torch.equal(logits(named, inputs), expected)
    elsewhere = write_folder(tmp_path / "elsewhere", original_config(config), pytorch_model=weights)
    assert torch.equal(logits(elsewhere, inputs, vision_tower=tower), expected)
    with pytest.raises(MissingError, match=r"some/clip-that-is-not-here.*--vision_tower"):
        open_checkpoint(elsewhere)


def projector_of(state: State, prefix: str = "") -> State:
    return {
        f"{prefix}model.mm_projector.{place}.{kind}": state[f"multi_modal_projector.{name}.{kind}"]
        for place, name in PROJECTOR.items()
        for kind in ("weight", "bias")
    }


def test_stage_1_layout(tmp_path, state, config, inputs, expected, tower, base):
    folder = write_folder(
        tmp_path / "lora_finetune", original_config(config), mm_projector=projector_of(state)
    )
    found = logits(folder, inputs, base=base, vision_tower=tower)
    assert torch.equal(found, expected)
    with pytest.raises(UserError, match=r"stage-1 projector without its language model.*--base"):
        open_checkpoint(folder, vision_tower=tower)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, base: Path) -> tuple[Path, Path]:
    """A LoRA as peft writes it on the language model, and that model as peft merges it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(3)
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.1)
    adapter, merged = (tmp_path_factory.mktemp(name) for name in ("adapter", "merged"))
    peft.save_pretrained(adapter)
    peft.merge_and_unload().save_pretrained(merged)
    return adapter, merged


def lora_folder(folder: Path, adapter: Path, config: dict[str, Any], state: State) -> Path:
    shutil.copytree(adapter, folder)
    return write_folder(
        folder, original_config(config),
        non_lora_trainables=projector_of(state, prefix="base_model.model."),
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_lora_layout(tmp_path, state, config, inputs, expected, tower, base, adapted, suffix):
    adapter, merged = adapted
    folder = lora_folder(tmp_path / "m", adapter, config, state)
    if suffix == "bin":
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    found = logits(folder, inputs, base=base, vision_tower=tower)
    # peft's own merge, put under the same projector and tower by the stage-1 layout
    stage_1 = write_folder(
        tmp_path / "s1", original_config(config), mm_projector=projector_of(state)
    )
    wanted = logits(stage_1, inputs, base=merged, vision_tower=tower)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (found - expected).abs().max() > 0.1  # the adapter does something


def test_lora_on_a_whole_llava_takes_the_adapters_projector(
    tmp_path, source, state, config, inputs, expected, adapted
):
    other = {key: torch.zeros_like(t) if "projector" in key else t for key, t in state.items()}
    whole = write_folder(tmp_path / "whole", config)
    save_file(other, whole / "model.safetensors")
    folder = lora_folder(tmp_path / "lora", adapted[0], config, state)
    onto_whole = logits(folder, inputs, base=whole)
    onto_source = logits(folder, inputs, base=source)
    assert torch.equal(onto_whole, onto_source)


def test_v1_linear_projector_without_a_name_in_the_config(
    tmp_path, state, config, inputs, tower, base
):
    weight, bias = torch.randn(64, 32), torch.randn(64)
    raw = original_config(config)
    del raw["mm_projector_type"]
    folder = write_folder(
        tmp_path / "m", raw,
        mm_projector={"model.mm_projector.weight": weight, "model.mm_projector.bias": bias},
    )  # fmt: skip
    model = Llava.from_pretrained(
        folder, base=base, vision_tower=tower, dtype="float32", device="cpu"
    )
    assert isinstance(model.projector, torch.nn.Linear)
    assert torch.equal(model.projector.weight, weight)


# Errors


def hub_with(tmp_path: Path, config: dict[str, Any], state: State) -> Path:
    folder = write_folder(tmp_path / "m", config)
    save_file(state, folder / "model.safetensors")
    return folder


def test_missing_unexpected_and_misshapen_weights_are_listed(tmp_path, state, config):
    wrong = dict(state)
    del wrong["language_model.model.layers.1.mlp.up_proj.weight"]
    del wrong["multi_modal_projector.linear_2.bias"]
    wrong["language_model.model.layers.7.mlp.up_proj.weight"] = torch.ones(2)
    wrong["vision_tower.pre_layrnorm.weight"] = torch.ones(5)
    with pytest.raises(UserError) as error:
        Llava.from_pretrained(hub_with(tmp_path, config, wrong))
    message = str(error.value)
    assert "2 missing: language_model.model.layers.1.mlp.up_proj.weight" in message
    assert "projector.2.bias" in message
    assert "1 unexpected: language_model.model.layers.7.mlp.up_proj.weight" in message
    assert "1 of another shape: vision_tower.pre_layrnorm.weight [5] instead of [32]" in message


def test_a_projector_of_another_width_is_named(tmp_path, state, config):
    wrong = state | {"multi_modal_projector.linear_1.weight": torch.ones(64, 48)}
    with pytest.raises(UserError, match=r"projector.0.weight \[64, 48\] instead of \[64, 32\]"):
        open_checkpoint(hub_with(tmp_path, config, wrong))


@pytest.mark.parametrize(
    ("key", "harmless"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("vision_tower.vision_model.embeddings.position_ids", True),
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("model.image_newline", False),
    ],
)
def test_only_listed_buffers_are_harmless(key, harmless):
    assert (our_name(key) is None) is harmless


class Payload:
    """What a pickle may do when it is read without `weights_only`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


def test_a_bin_file_with_code_in_it_is_refused(tmp_path, state, config, tower, base):
    ran = tmp_path / "ran"
    folder = write_folder(
        tmp_path / "m", original_config(config),
        mm_projector=projector_of(state) | {"extra": Payload(ran)},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"mm_projector.bin.*refused"):
        open_checkpoint(folder, base=base, vision_tower=tower)
    assert not ran.exists()


def test_broken_and_incomplete_files_are_named(tmp_path, state, config):
    folder = hub_with(tmp_path, config, state)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model.safetensors: broken or incomplete"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in it"):
        open_checkpoint(folder)
    write_bin_shards(folder, state)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"pytorch_model-00002-of-00002.bin missing"):
        open_checkpoint(folder)


def test_other_models_are_not_mistaken_for_a_llava(tmp_path, config, base):
    with pytest.raises(UserError, match=r"config.json of a llama, neither"):
        open_checkpoint(base)
    anyres = original_config(config, image_aspect_ratio="anyres")
    with pytest.raises(UserError, match=r"v1.6"):
        open_checkpoint(write_folder(tmp_path / "llava-v1.5-7b", anyres))
    with pytest.raises(UserError, match=r"no config.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_lora_needs_its_parts(tmp_path, state, config, tower, base, adapted):
    folder = lora_folder(tmp_path / "m", adapted[0], config, state)
    with pytest.raises(UserError, match=r"a LoRA without its language model.*--base"):
        open_checkpoint(folder, vision_tower=tower)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(UserError, match=r"only plain LoRA.*use_dora"):
        open_checkpoint(folder, base=base, vision_tower=tower)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(UserError, match=r"no non_lora_trainables.bin"):
        open_checkpoint(folder, base=base, vision_tower=tower)


@pytest.mark.parametrize(
    "change",
    [{"vision_feature_select_strategy": "some"}, {"text_config": {"model_type": "no such model"}}],
    ids=["strategy", "language model"],
)
def test_a_config_that_cannot_be_used_is_named(tmp_path, config, change):
    with pytest.raises(UserError, match=r"its config.json cannot be used"):
        open_checkpoint(write_folder(tmp_path / "m", config | change))


def test_old_settings_of_the_language_model_are_kept(tmp_path, state, config, tower, base):
    """rope_theta stood at the top of config.json before transformers 5."""
    old = json.loads((base / "config.json").read_text())
    old.pop("rope_parameters")
    folder = write_folder(tmp_path / "base", old | {"rope_theta": 500000.0})
    shutil.copy(base / "model.safetensors", folder)
    stage_1 = write_folder(
        tmp_path / "m", original_config(config), mm_projector=projector_of(state)
    )
    text = open_checkpoint(stage_1, base=folder, vision_tower=tower).config.text_config
    assert text.rope_parameters["rope_theta"] == 500000.0


def test_contradictions_between_config_and_weights_are_errors(tmp_path, state, config, tower, base):
    linear = original_config(config, mm_projector_type="linear")
    folder = write_folder(tmp_path / "m", linear, mm_projector=projector_of(state))
    with pytest.raises(UserError, match=r"config.json says projector linear, .* are of mlp2x_gelu"):
        open_checkpoint(folder, base=base, vision_tower=tower)
    odd = original_config(config, mm_vision_select_feature="cls")
    folder = write_folder(tmp_path / "odd", odd, mm_projector=projector_of(state))
    with pytest.raises(UserError, match="mm_vision_select_feature cls, not patch or cls_patch"):
        open_checkpoint(folder, base=base, vision_tower=tower)


def test_cls_patch_keeps_the_class_token(tmp_path, state, config, tower, base):
    raw = original_config(config, mm_vision_select_feature="cls_patch", mm_vision_select_layer=-1)
    folder = write_folder(tmp_path / "m", raw, mm_projector=projector_of(state))
    found = open_checkpoint(folder, base=base, vision_tower=tower).config
    assert found.vision_feature_select_strategy == "full"
    assert found.vision_feature_layer == -1
    assert found.image_seq_length == 17


@pytest.mark.parametrize(
    ("name", "n_tokens"),
    [("openai/clip-vit-large-patch14", 256), ("openai/clip-vit-large-patch14-336", 576)],
)
def test_the_published_towers_are_known_by_their_numbers(tmp_path, config, name, n_tokens):
    """A full checkpoint with the tower inside needs no other download to be read."""
    from llava_repro.layouts import original_config as hub_config
    from llava_repro.layouts import text_part_of, vision_part_of
    from llava_repro.model import n_image_tokens

    raw = original_config(config, mm_vision_tower=name)
    folder = write_folder(tmp_path, raw)
    vision, _ = vision_part_of(raw, folder, None)
    assert vision.hidden_size == 1024
    assert n_image_tokens(hub_config(raw, text_part_of(raw, folder), vision)) == n_tokens
