"""Which weights are which component, which of them train, where LoRA goes: by name, by hand."""

from __future__ import annotations

import re

import pytest

from qwen_clip_llava_lora.components import (
    COMPONENTS,
    LANGUAGE,
    PROJECTOR,
    VISION,
    component_of,
    idle_names,
    lora_targets,
    trained_names,
)
from shared.options import UserError

LLAVA = {
    "model.vision_tower.embeddings.patch_embedding.weight": VISION,
    "model.vision_tower.encoder.layers.0.mlp.fc1.weight": VISION,
    "model.vision_tower.encoder.layers.1.mlp.fc1.weight": VISION,
    "model.vision_tower.post_layernorm.weight": VISION,
    "model.multi_modal_projector.linear_1.weight": PROJECTOR,
    "model.language_model.embed_tokens.weight": LANGUAGE,
    "model.language_model.layers.0.self_attn.q_proj.base_layer.weight": LANGUAGE,
    "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight": LANGUAGE,
    "lm_head.weight": LANGUAGE,
}


@pytest.mark.parametrize(
    ("model_type", "name", "component"),
    [
        *(("llava", name, component) for name, component in LLAVA.items()),
        ("qwen2_vl", "model.visual.blocks.0.attn.qkv.weight", VISION),
        ("qwen2_5_vl", "model.visual.merger.ln_q.weight", PROJECTOR),
        ("qwen3_vl", "model.visual.deepstack_merger_list.0.norm.weight", PROJECTOR),
        ("qwen2_vl", "model.visual.deepstack_merger_list.0.norm.weight", VISION),
        ("minicpmv4_6", "model.vision_tower.vit_merger.linear_1.weight", VISION),
        ("minicpmv4_6", "model.merger.mlp.0.linear_1.weight", PROJECTOR),
        ("llava", "something.else", None),
    ],
)
def test_the_longest_beginning_names_the_component(model_type, name, component):
    assert component_of(model_type, name) == component


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"model_type blip-2: .*llava, minicpmv4_6, qwen2_5_vl"):
        component_of("blip-2", "x")


@pytest.mark.parametrize(
    ("train_type", "projector", "vision", "n_trained"),
    [
        ("projector", True, False, {PROJECTOR}),
        ("lora", True, False, {PROJECTOR, "lora"}),
        ("lora", False, False, {"lora"}),
        ("qlora", False, False, {"lora"}),
        ("full", False, False, {LANGUAGE}),
        ("full", True, True, {LANGUAGE, PROJECTOR, VISION}),
    ],
)
def test_what_trains_is_as_declared(train_type, projector, vision, n_trained):
    found = trained_names(
        LLAVA, "llava", train_type, train_projector=projector, train_vision=vision
    )
    wanted = {
        name
        for name, component in LLAVA.items()
        if component in n_trained or ("lora" in n_trained and ".lora_A." in name)
    }
    assert found == wanted


def test_tower_layers_behind_the_features_are_idle():
    """Features of the last layer but one of two: layer 1 and the norm behind it do nothing."""
    behind = {
        "model.vision_tower.encoder.layers.1.mlp.fc1.weight",
        "model.vision_tower.post_layernorm.weight",
    }
    assert idle_names(LLAVA, "llava", -2) == behind
    assert idle_names(LLAVA, "llava", -1) == {"model.vision_tower.post_layernorm.weight"}
    assert idle_names(LLAVA, "llava", [0, -2]) == behind
    assert idle_names(LLAVA, "qwen2_vl", None) == set()
    names = trained_names(
        LLAVA, "llava", "full", train_projector=True, train_vision=True, idle=behind
    )
    assert names == set(LLAVA) - behind


def test_lora_is_anchored_to_the_language_model():
    for model_type in COMPONENTS:
        layers = [f"model.language_model.layers.0.self_attn.{x}_proj" for x in "qkv"]
        pattern = lora_targets(model_type, "q_proj, v_proj", layers)
        assert pattern == r"model\.language_model\..*\.(q_proj|v_proj)"
        assert re.fullmatch(pattern, "model.language_model.layers.0.self_attn.v_proj")
        assert not re.fullmatch(pattern, "model.vision_tower.encoder.layers.0.self_attn.v_proj")
        assert not re.fullmatch(pattern, "model.language_model.layers.0.self_attn.k_proj")
        assert not re.fullmatch(pattern, "model.language_model.layers.0.self_attn.my_v_proj")


def test_all_are_the_linear_layers_of_the_language_model_without_its_head():
    layers = [
        "model.vision_tower.encoder.layers.0.mlp.fc1",
        "model.multi_modal_projector.linear_1",
        "model.language_model.layers.0.self_attn.q_proj",
        "model.language_model.layers.1.mlp.down_proj",
        "lm_head",
    ]
    pattern = lora_targets("llava", "all", layers)
    assert [bool(re.fullmatch(pattern, name)) for name in layers] == [
        False,
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(UserError, match="--lora_layers all: the linear layers"):
        lora_targets("llava", "all", layers[:2])
    for which in (" , ", "q_proj,fc1"):  # a misspelt one beside a right one, too
        with pytest.raises(UserError, match=f"{which}: .* are down_proj, q_proj$"):
            lora_targets("llava", which, layers)
