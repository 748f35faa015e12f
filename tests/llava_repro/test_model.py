"""The model equals transformers' LLaVA, and refuses what transformers would get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_repro.model import Llava, n_image_tokens
from shared.options import IGNORE_INDEX, UserError

TOWERS = ("clip", "siglip", "chinese_clip")
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
STRATEGIES = {
    "default": {"strategy": "default", "layer": -2},
    "full": {"strategy": "full", "layer": -2},
    "last": {"strategy": "full", "layer": -1},
    "two layers": {"strategy": "full", "layer": (1, -2)},
}


def per_image(config: Any) -> int:
    vision = config.vision_config
    kept = config.vision_feature_select_strategy == "full" and "siglip" not in vision.model_type
    return (vision.image_size // vision.patch_size) ** 2 + int(kept)


def make_batch(config: Any, side: str) -> dict[str, Tensor]:
    """Three rows of unequal length with one, no and two images."""
    generator = torch.Generator().manual_seed(0)
    image = [config.image_token_index] * per_image(config)

    def words(n: int) -> list[int]:
        return torch.randint(3, 250, (n,), generator=generator).tolist()

    rows = [
        [1, *words(4), *image, *words(9)],
        [1, *words(11)],
        [1, *image, *words(5), *image, *words(3)],
    ]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    left = side == "left"
    ids = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [p + o if left else o + p for p, o in zip(pads, ones, strict=True)]
    size = config.vision_config.image_size
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.randn(3, 3, size, size, generator=generator),
    }


def load_both(folder: Path) -> tuple[Llava, LlavaForConditionalGeneration]:
    ours = Llava.from_pretrained(folder, dtype="float32", device="cpu")
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return ours, theirs


def combinations() -> list[Any]:
    found = []
    for tower in TOWERS:
        for text in LANGUAGE_MODELS:
            for name in STRATEGIES:
                if tower == "siglip" and name == "default":
                    continue  # refused: it would drop a patch
                found.append(pytest.param(tower, text, name, id=f"{tower}-{text}-{name}"))
    return found


@pytest.mark.parametrize(("tower", "text", "strategy"), combinations())
def test_logits_and_greedy_tokens_equal_transformers(tiny_llava_folder, tower, text, strategy):
    ours, theirs = load_both(tiny_llava_folder(tower, text, **STRATEGIES[strategy]))
    for side in ("left", "right"):
        batch = make_batch(ours.config, side)
        with torch.no_grad():
            expected = theirs(**batch).logits
            found = ours(**batch).logits
        kept = batch["attention_mask"].bool()
        torch.testing.assert_close(found[kept], expected[kept], atol=1e-4, rtol=1e-4)
    batch = make_batch(ours.config, "left")
    expected = theirs.generate(**batch, max_new_tokens=8, do_sample=False)
    found = ours.generate(**batch, max_new_tokens=8, do_sample=False)
    assert found.tolist() == expected.tolist()


def with_labels(batch: dict[str, Tensor], image_token_index: int) -> dict[str, Tensor]:
    """The last words of each row are learned, the rest, images and padding are not."""
    labels = batch["input_ids"].clone()
    labels[(batch["attention_mask"] == 0) | (labels == image_token_index)] = IGNORE_INDEX
    for row in labels:
        real = (row != IGNORE_INDEX).nonzero()[:, 0]
        row[real[:-4]] = IGNORE_INDEX
    return batch | {"labels": labels}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tower", TOWERS)
def test_loss_and_projector_gradients_equal_transformers(tiny_llava_folder, tower, side):
    ours, theirs = load_both(tiny_llava_folder(tower, "qwen2"))
    batch = with_labels(make_batch(ours.config, side), ours.config.image_token_index)
    ours.train()
    theirs.train()
    found = ours(**batch).loss
    expected = theirs(**batch).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.backward()
    expected.backward()
    projector = theirs.model.multi_modal_projector
    for place, layer in ((0, projector.linear_1), (2, projector.linear_2)):
        for kind in ("weight", "bias"):
            one = getattr(ours.projector[place], kind).grad
            other = getattr(layer, kind).grad
            assert other.abs().max() > 1e-4
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_both_paddings_and_single_rows_give_the_same(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    left, right = (make_batch(model.config, side) for side in ("left", "right"))
    with torch.no_grad():
        on_left, on_right = model(**left).logits, model(**right).logits
    assert torch.equal(left["pixel_values"], right["pixel_values"])
    first = 0
    for row in range(3):
        kept_left, kept_right = (b["attention_mask"][row].bool() for b in (left, right))
        ids = left["input_ids"][row, kept_left][None]
        n_images = int((ids == model.config.image_token_index).sum()) // 16
        pixels = left["pixel_values"][first : first + n_images] if n_images else None
        first += n_images
        with torch.no_grad():
            alone = model(input_ids=ids, pixel_values=pixels).logits[0]
        torch.testing.assert_close(on_left[row, kept_left], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(on_right[row, kept_right], alone, atol=1e-4, rtol=1e-4)


def test_each_picture_stands_at_its_own_place(tiny_llava_folder):
    """Changing one picture changes its row from its place on, and nothing else."""
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    batch = make_batch(model.config, "right")
    other = batch | {"pixel_values": batch["pixel_values"].clone()}
    other["pixel_values"][2] += 1.0  # the second picture of row 2
    with torch.no_grad():
        changed = (model(**batch).logits - model(**other).logits).abs().amax(dim=-1) > 1e-3
    is_image = batch["input_ids"][2] == model.config.image_token_index
    second = is_image.nonzero()[16, 0]
    assert not changed[:2].any()
    assert not changed[2, :second].any()
    end = int(batch["attention_mask"][2].sum())
    assert changed[2, second:end].all()


def test_the_head_sees_only_positions_before_learned_tokens(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    batch = make_batch(model.config, "left")
    batch = with_labels(batch, model.config.image_token_index)
    rows: list[int] = []
    model.language_model.lm_head.register_forward_hook(
        lambda _, inputs, __: rows.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    output = model(**batch)
    assert rows == [12]  # three rows of four learned tokens
    assert output.logits.shape == (12, model.config.text_config.vocab_size)
    everything = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    kept = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    torch.testing.assert_close(output.logits, everything[kept != IGNORE_INDEX])


def test_accumulated_micro_batches_learn_like_one_batch(tiny_llava_folder):
    """The loss is over all learned tokens, so rows of unequal length weigh by their tokens."""
    folder = tiny_llava_folder()
    batch = make_batch(Llava.from_pretrained(folder, device="cpu").config, "right")
    labels = batch["input_ids"].clone()
    labels[(labels == 259) | (batch["attention_mask"] == 0)] = IGNORE_INDEX
    labels[0, :-30] = IGNORE_INDEX
    batch["labels"] = labels
    pictures = (slice(0, 1), slice(1, 1), slice(1, 3))
    n_items = int((labels[:, 1:] != IGNORE_INDEX).sum())
    gradients = []
    for parts in (
        [batch],
        [
            {k: v[i : i + 1] for k, v in batch.items()}
            | {"pixel_values": batch["pixel_values"][pictures[i]]}
            for i in range(3)
        ],
    ):
        model = Llava.from_pretrained(folder, dtype="float32", device="cpu").train()
        for part in parts:
            model(**part, num_items_in_batch=n_items).loss.backward()
        gradients.append(model.projector[0].weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_nothing_to_learn_is_an_error(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), device="cpu")
    batch = make_batch(model.config, "left")
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    labels[:, 0] = 5  # no position stands before the first token
    with pytest.raises(UserError, match="without a single token to learn"):
        model(**batch, labels=labels)


# Generation


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
    ],
    ids=["beams", "two of two beams", "sampling"],
)
def test_beams_and_sampling_equal_transformers(tiny_llava_folder, settings):
    ours, theirs = load_both(tiny_llava_folder("siglip", "qwen3"))
    batch = make_batch(ours.config, "left")
    found, expected = (
        (torch.manual_seed(5), model.generate(**batch, max_new_tokens=6, **settings))[1]
        for model in (ours, theirs)
    )
    assert found.tolist() == expected.tolist()
    n = settings.get("num_return_sequences", 1)
    prompt = batch["input_ids"].repeat_interleave(n, dim=0)
    assert torch.equal(found[:, : prompt.shape[1]], prompt)


def test_generation_goes_through_the_cache_and_sees_the_picture_once(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    batch = make_batch(model.config, "left")
    calls, lengths = [], []
    model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    model.language_model.model.norm.register_forward_hook(
        lambda _, inputs, __: lengths.append(inputs[0].shape[1])
    )
    model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert len(calls) == 1
    assert lengths == [batch["input_ids"].shape[1], 1, 1, 1]


def test_features_computed_before_give_the_same(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    batch = make_batch(model.config, "left")
    with torch.no_grad():
        features = model.image_features(batch["pixel_values"])
    assert features.shape == (3, 16, model.config.text_config.hidden_size)
    found = model.generate(
        batch["input_ids"], image_features=features, attention_mask=batch["attention_mask"],
        max_new_tokens=5,
    )  # fmt: skip
    assert torch.equal(found, model.generate(**batch, max_new_tokens=5))


def test_a_prompt_padded_on_the_right_is_not_continued(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), device="cpu")
    with pytest.raises(UserError, match=r"row 0 of the batch ends in padding.*on the left"):
        model.generate(**make_batch(model.config, "right"))


# Image tokens

REAL_TOWERS = {
    "CLIP-L/14 at 224": ("clip_vision_model", 224, 14, "default", 256),
    "CLIP-L/14 at 336": ("clip_vision_model", 336, 14, "default", 576),
    "CLIP-L/14 at 336, class token kept": ("clip_vision_model", 336, 14, "full", 577),
    "Chinese-CLIP-L/14 at 336": ("chinese_clip_vision_model", 336, 14, "default", 576),
    "SigLIP-so400m/14 at 384": ("siglip_vision_model", 384, 14, "full", 729),
}


def config_of(kind: str, image_size: int, patch_size: int, strategy: str) -> LlavaConfig:
    return LlavaConfig(
        vision_config=AutoConfig.for_model(kind, image_size=image_size, patch_size=patch_size),
        text_config=AutoConfig.for_model("llama"),
        vision_feature_select_strategy=strategy,
    )


@pytest.mark.parametrize("name", REAL_TOWERS)
def test_image_tokens_are_computed_from_the_config(name):
    *numbers, expected = REAL_TOWERS[name]
    assert n_image_tokens(config_of(*numbers)) == expected


@pytest.mark.parametrize("tower", TOWERS)
def test_the_computed_count_is_what_the_tower_gives(tiny_llava_folder, tower):
    model = Llava.from_pretrained(tiny_llava_folder(tower), device="cpu")
    with torch.no_grad():
        features = model.image_features(torch.zeros(1, 3, 32, 32))
    assert features.shape[1] == n_image_tokens(model.config) == 16


def test_siglip_never_loses_a_patch():
    with pytest.raises(UserError, match="no class token: its first patch would be lost"):
        n_image_tokens(config_of("siglip_vision_model", 384, 14, "default"))
    with pytest.raises(UserError, match="vit: not a vision tower"):
        n_image_tokens(config_of("vit", 224, 16, "full"))


def test_placeholders_that_do_not_fit_stop_before_the_forward_pass(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), device="cpu")
    model.vision_tower.register_forward_hook(lambda *_: pytest.fail("the tower ran"))
    model.language_model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    batch = make_batch(model.config, "right")
    cut = batch | {"input_ids": batch["input_ids"].clone()}
    place = (cut["input_ids"][2] == model.config.image_token_index).nonzero()[0, 0]
    cut["input_ids"][2, place] = 7
    with pytest.raises(UserError, match="sample 2 of the batch has 31 image tokens"):
        model(**cut)
    fewer = batch | {"pixel_values": batch["pixel_values"][:2]}
    with pytest.raises(UserError, match=r"2 images, its text has places for 3.*sample 2: 2"):
        model(**fewer)
    with pytest.raises(UserError, match="15 features a picture for 16 tokens"):
        model(batch["input_ids"], image_features=torch.zeros(3, 15, 64))
    with pytest.raises(UserError, match="0 images, its text has places for 3"):
        model.generate(make_batch(model.config, "left")["input_ids"])


# Training


def text_only(model: Llava) -> dict[str, Tensor]:
    ids = torch.arange(3, 15).reshape(2, 6)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def test_text_only_batch_leaves_the_tower_alone_and_reaches_the_projector(tiny_llava_folder):
    """Without a gradient for the projector, other processes of a distributed run would wait."""
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    model.vision_tower.register_forward_hook(lambda *_: pytest.fail("the tower ran"))
    plain = model(**text_only(model)).loss
    model.train()
    loss = model(**text_only(model)).loss
    assert torch.equal(loss, plain)
    loss.backward()
    for name, weight in model.named_parameters():
        if name.startswith(("projector.", "vision_tower.")):
            assert weight.grad is not None, name
            assert not weight.grad.any(), name


def test_text_only_batch_trains_when_only_the_projector_does(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu").train()
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    model(**text_only(model)).loss.backward()
    assert not model.projector[0].weight.grad.any()


def test_a_frozen_tower_is_not_recorded_and_keeps_its_dropout_off(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    model.vision_tower.requires_grad_(False)
    model.train()
    assert not model.vision_tower.training
    assert model.language_model.training
    seen = []
    model.projector.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    batch = make_batch(model.config, "left")
    model(**batch)
    assert not seen[0].requires_grad
    model.vision_tower.requires_grad_(True)
    assert model.train().vision_tower.training
    model(**batch)
    assert seen[1].requires_grad


def test_activation_checkpointing_recomputes_and_changes_no_gradient(tiny_llava_folder):
    gradients, calls = [], []
    for recompute in (False, True):
        model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
        model.vision_tower.requires_grad_(False)
        model.train()
        if recompute:
            model.activation_checkpointing_enable()
        layer = model.language_model.model.layers[0].input_layernorm
        calls.append([])
        layer.register_forward_hook(lambda *_, seen=calls[-1]: seen.append(1))
        batch = with_labels(make_batch(model.config, "right"), model.config.image_token_index)
        model(**batch).loss.backward()
        gradients.append(model.projector[0].weight.grad)
    assert [len(seen) for seen in calls] == [1, 2]
    torch.testing.assert_close(*gradients)


# Dtypes and quantisation


def test_every_part_is_loaded_in_the_dtype_asked_for(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="bfloat16", device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    default = Llava.from_pretrained(tiny_llava_folder(), device="cpu")
    assert default.dtype == torch.float32
    assert not default.training


def test_a_trained_fp32_projector_between_bf16_parts(tiny_llava_folder):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="bfloat16", device="cpu")
    model.requires_grad_(False)
    model.projector.float().requires_grad_(True)
    model.train()
    batch = with_labels(make_batch(model.config, "right"), model.config.image_token_index)
    loss = model(**batch).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert model.projector[0].weight.grad.dtype == torch.float32
    assert model.projector[0].weight.grad.any()
    assert torch.isfinite(model(**text_only(model)).loss)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.1), ("nf4", 0.6)])
def test_only_the_language_model_is_quantised(tiny_llava_folder, kind, error):
    folder = tiny_llava_folder()
    exact = Llava.from_pretrained(folder, dtype="float32", device="cpu")
    model = Llava.from_pretrained(folder, dtype="float32", device="cpu", quantization=kind)
    quantised = {
        name for name, module in model.named_modules() if "bnb" in type(module).__module__
        or "bitsandbytes" in type(module).__module__
    }  # fmt: skip
    linears = {
        name for name, module in exact.named_modules() if isinstance(module, torch.nn.Linear)
    }
    assert quantised == {
        name for name in linears if name.startswith("language_model.") and "lm_head" not in name
    }
    for part in (model.vision_tower, model.projector, model.language_model.lm_head):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}
    batch = make_batch(model.config, "left")
    with torch.no_grad():
        one, other = exact(**batch).logits, model(**batch).logits
    assert 0 < (one - other).norm() / one.norm() < error
    with pytest.raises(UserError, match="4- or 8-bit weights are not saved"):
        model.save_pretrained(folder.parent / "never")


def test_an_evaluation_between_two_steps_changes_no_gradient(tiny_llava_folder):
    """On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights, and training would be over."""
    gradients = []
    for evaluate in (False, True):
        model = Llava.from_pretrained(
            tiny_llava_folder(), dtype="float32", device="cpu", quantization="nf4"
        )
        model.requires_grad_(False)
        model.projector.requires_grad_(True)
        batch = with_labels(make_batch(model.config, "right"), model.config.image_token_index)
        if evaluate:
            with torch.no_grad():
                model(**batch)
        model.train()
        model(**batch).loss.backward()
        gradients.append(model.projector[0].weight.grad)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


# Saving


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_saved_model_loads_in_transformers_and_back(tiny_llava_folder, tmp_path, tower, tied):
    ours, _ = load_both(tiny_llava_folder(tower, "qwen2", tied=tied))
    ours.save_pretrained(tmp_path / "ours")
    theirs, found = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not found["missing_keys"] | found["unexpected_keys"] | found["mismatched_keys"]
    assert theirs.dtype == torch.float32
    batch = make_batch(ours.config, "left")
    with torch.no_grad():
        expected = ours(**batch).logits
        torch.testing.assert_close(theirs(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    tokens = ours.generate(**batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(theirs.generate(**batch, max_new_tokens=6, do_sample=False), tokens)
    theirs.save_pretrained(tmp_path / "theirs")
    again = Llava.from_pretrained(tmp_path / "theirs", dtype="float32", device="cpu")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, expected)
    assert again.language_model.generation_config.eos_token_id == 2


def with_projector(folder: Path, kind: str) -> Llava:
    model = Llava.from_pretrained(folder, dtype="float32", device="cpu")
    torch.manual_seed(0)
    return Llava(model.config, model.vision_tower, model.language_model, projector=kind).eval()


@pytest.mark.parametrize(
    ("kind", "n_weights"),
    [("linear", 32 * 64 + 64), ("mlp1x_gelu", 32 * 64 + 64), ("mlp2x_gelu", 6272),
     ("mlp3x_gelu", 6272 + 64 * 64 + 64)],
)  # fmt: skip
def test_projector_kinds_are_saved_and_loaded(tiny_llava_folder, tmp_path, kind, n_weights):
    model = with_projector(tiny_llava_folder(), kind)
    assert sum(weight.numel() for weight in model.projector.parameters()) == n_weights
    model.save_pretrained(tmp_path)
    again = Llava.from_pretrained(tmp_path, dtype="float32", device="cpu")
    assert again.config.projector_type == kind
    assert str(again.projector) == str(model.projector)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["linear", "identity"])
def test_transformers_loads_a_linear_projector_exactly(tiny_llava_folder, tmp_path, kind):
    """As W, no activation, the identity matrix."""
    width = {"vision_width": 64} if kind == "identity" else {}
    model = with_projector(tiny_llava_folder(**width), kind)
    model.save_pretrained(tmp_path)
    theirs, found = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not found["missing_keys"] | found["unexpected_keys"]
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = torch.stack(theirs.get_image_features(pixels).pooler_output)
        assert torch.equal(model.image_features(pixels), expected)
    again = Llava.from_pretrained(tmp_path, dtype="float32", device="cpu")
    assert str(again.projector) == str(model.projector)


def test_transformers_stops_at_a_projector_that_it_cannot_express(tiny_llava_folder, tmp_path):
    """It must not fill its own two layers with random weights and go on with a warning."""
    with_projector(tiny_llava_folder(), "mlp3x_gelu").save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="mlp3x_gelu"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path)


def test_wrong_projectors_are_named(tiny_llava_folder):
    with pytest.raises(UserError, match="projector resampler: not one of linear"):
        with_projector(tiny_llava_folder(), "resampler")
    with pytest.raises(UserError, match="tower's width 32 is not the language model's 64"):
        with_projector(tiny_llava_folder(), "identity")


def test_an_unmerged_adapter_is_not_saved(tiny_llava_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    batch = make_batch(model.config, "left")
    view = get_peft_model(
        model, LoraConfig(r=2, target_modules=r"language_model\..*\.(q_proj|v_proj)")
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    with torch.no_grad():
        adapted = model(**batch).logits
    with pytest.raises(UserError, match="merge_and_unload"):
        model.save_pretrained(tmp_path)
    merged = view.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = Llava.from_pretrained(tmp_path, dtype="float32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, adapted, atol=1e-4, rtol=1e-4)


def test_the_state_of_a_float16_copy_is_half_as_large(tiny_llava_folder, tmp_path):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    model.save_pretrained(tmp_path, dtype=torch.float16)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert {weight.dtype for weight in again.parameters()} == {torch.float16}


def test_a_saved_folder_does_not_name_where_its_parts_lay(tiny_llava_folder, tmp_path):
    model = Llava.from_pretrained(tiny_llava_folder(), device="cpu")
    for part in (model.config, model.config.vision_config, model.config.text_config):
        part._name_or_path = "/home/somebody/models/part"
    model.save_pretrained(tmp_path)
    assert "somebody" not in (tmp_path / "config.json").read_text("utf-8")
    assert model.config.text_config._name_or_path == "/home/somebody/models/part"
