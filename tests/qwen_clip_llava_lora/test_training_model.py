"""The training model of every family: what trains, the loss against transformers' own, memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from qwen_clip_llava_lora.components import LANGUAGE, PROJECTOR, VISION, component_of
from qwen_clip_llava_lora.train import parse
from qwen_clip_llava_lora.train_settings import TrainOptions
from qwen_clip_llava_lora.training_data import VlmCollator
from qwen_clip_llava_lora.training_model import (
    Loaded,
    VlmForTraining,
    check_trained,
    family_of,
    load_for_training,
    trained_map,
)
from qwen_clip_llava_lora.validation import validation_loss
from shared.options import IGNORE_INDEX, UserError
from shared.vision_families import open_family
from tests.tiny_models import tiny_folder

KINDS = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "minicpmv4_6")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_folder(kind, root / kind) for kind in KINDS}


def load(folder: Path, tmp_path: Path, *flags: str) -> tuple[Loaded, TrainOptions]:
    options, training = parse(
        ["--model", str(folder), "--data", "none.json", "--output_dir", str(tmp_path / "run"),
         "--device", "cpu", *flags]
    )  # fmt: skip
    return load_for_training(options, training, family_of(options)), options


def batch_of(family: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Two pictures of different sizes with answers of different lengths, and a row of text."""
    rows = []
    for i, (size, answer) in enumerate(
        [((60, 50), "red"), ((50, 90), "a blue circle"), (None, "hi")]
    ):
        turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": answer}]
        row: dict[str, Any] = {"id": f"s{i}", "conversations": turns}
        if size is not None:
            shades = Image.linear_gradient("L").rotate(90 * i).resize(size)
            shades.convert("RGB").save(folder / f"{i}.png")
            row["image"] = f"{i}.png"
            turns[0]["value"] = "<image>\nwhat ?"
        rows.append(row)
    batch = VlmCollator(family, folder, max_length=2000)(rows)
    assert batch["sample_ids"] == ["s0", "s1", "s2"]
    return {name: value for name, value in batch.items() if torch.is_tensor(value)}


def training_model(loaded: Loaded, **settings: Any) -> VlmForTraining:
    return VlmForTraining(loaded.family, torch.float32, **settings)


# What trains


@pytest.mark.parametrize("kind", KINDS)
def test_the_declared_parameters_train_and_no_others_for_every_family(folders, tmp_path, kind):
    """By the finished model: LoRA on q_proj and v_proj of the language model, the projector of a
    LLaVA (its own is new), nothing of the tower."""
    loaded, _ = load(folders[kind], tmp_path)
    names = [name for name, p in loaded.model.named_parameters() if p.requires_grad]
    lora = [name for name in names if ".lora_" in name]
    assert lora
    assert all(
        ".language_model." in name and ("q_proj" in name or "v_proj" in name) for name in lora
    )
    rest = {component_of(kind, name) for name in names if ".lora_" not in name}
    assert rest == ({PROJECTOR} if kind == "llava" else set())
    assert set(loaded.changed) == {name for name in names if ".lora_" not in name}
    counts = trained_map(loaded.model, kind)
    assert counts[VISION][1] == 0
    n_lora = sum(loaded.model.get_parameter(name).numel() for name in lora)
    assert counts[LANGUAGE] == (counts[LANGUAGE][0], n_lora)
    assert sum(total for total, _ in counts.values()) == sum(
        p.numel() for p in loaded.model.parameters()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_with_everything_open_everything_that_is_open_gets_a_gradient(folders, tmp_path, kind):
    """A weight without a gradient would wait for ever in several processes. Of a LLaVA's tower the
    layers behind the features stay closed."""
    flags = ("--train_type", "full", "--train_projector", "true", "--train_vision", "true")
    loaded, _ = load(folders[kind], tmp_path, *flags)
    model = training_model(loaded).train()
    model(**batch_of(loaded.family, tmp_path))["loss"].backward()
    without = [
        name
        for name, p in loaded.model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum())
    ]
    # a key's bias adds the same to every score of a query: its gradient is zero but for rounding
    assert [name for name in without if "k_proj.bias" not in name] == []
    closed = {name for name, p in loaded.model.named_parameters() if not p.requires_grad}
    assert all("layers.2." in name or "post_layernorm" in name for name in closed)
    assert bool(closed) == (kind == "llava")


def test_an_undeclared_parameter_is_an_error_that_names_it(folders, tmp_path):
    loaded, options = load(folders["llava"], tmp_path)
    loaded.model.model.vision_tower.post_layernorm.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"1 parameters are not as declared: model\.vision_tower"):
        check_trained(loaded.model, "llava", options)


def test_layers_that_are_not_there_are_an_error(folders, tmp_path):
    with pytest.raises(
        UserError, match="--lora_layers wq: the linear layers of this language model are"
    ):
        load(folders["llava"], tmp_path, "--lora_layers", "wq")


def test_what_is_frozen_keeps_its_dtype_and_what_trains_is_fp32(folders, tmp_path):
    loaded, _ = load(folders["llava"], tmp_path, "--dtype", "bfloat16")
    for name, parameter in loaded.model.named_parameters():
        wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == wanted, name
    model = VlmForTraining(loaded.family, torch.bfloat16).train()
    loss = model(**batch_of(loaded.family, tmp_path))["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    gradients = [p.grad.dtype for p in loaded.model.parameters() if p.grad is not None]
    assert set(gradients) == {torch.float32}


# Loss


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_their_end_are_learned_and_padding_is_on_the_right(folders, tmp_path, kind):
    """MiniCPM-V's empty thought stands before the answer and is not learned."""
    family = open_family(folders[kind])
    batch = batch_of(family, tmp_path)
    for i, answer in enumerate(["red", "a blue circle", "hi"]):
        learned = batch["input_ids"][i][batch["labels"][i] != IGNORE_INDEX]
        assert family.tokenizer.decode(learned) == f"{answer}<|im_end|>"
        n = int(batch["attention_mask"][i].sum())
        assert not batch["attention_mask"][i, n:].any()
        assert (batch["labels"][i, n:] == IGNORE_INDEX).all()
    n_places = (batch["input_ids"] == family.image_token_id).sum(dim=1).tolist()
    assert (min(n_places[:2]) > 0, n_places[2]) == (True, 0)


def test_text_is_shortened_and_a_picture_never(folders, tmp_path):
    family = open_family(folders["llava"])
    batch_of(family, tmp_path)  # writes 0.png
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "red " * 50}]
    row = {"id": "long", "image": "0.png", "conversations": turns}
    whole = VlmCollator(family, tmp_path, 2000)([row])
    n = whole["input_ids"].shape[1]
    first = int((whole["labels"][0] != IGNORE_INDEX).nonzero()[0])
    shorter = VlmCollator(family, tmp_path, first + 5)([row])
    assert torch.equal(shorter["input_ids"], whole["input_ids"][:, : first + 5])
    cut = VlmCollator(family, tmp_path, first)([row])
    assert cut["sample_ids"] == []
    assert cut["skipped"][0].startswith(f"long: {n} tokens; cut to --max_length {first} it would")


def test_a_true_end_token_that_doubles_as_padding_is_seen(folders, tmp_path):
    family = open_family(folders["llava"])
    family.pad_id = next(iter(family.end_ids))
    batch = batch_of(family, tmp_path)
    ends = (batch["labels"] == family.pad_id).nonzero().tolist()
    assert [row for row, _ in ends] == [0, 1, 2]
    assert all(batch["attention_mask"][row, place] == 1 for row, place in ends)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_transformers_own_and_the_head_sees_learned_positions_alone(
    folders, tmp_path, kind
):
    loaded, _ = load(folders[kind], tmp_path)
    batch = batch_of(loaded.family, tmp_path)
    model = training_model(loaded).eval()
    seen: list[tuple[int, ...]] = []
    hook = loaded.model.lm_head.register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(output.shape))
    )
    own = model(**batch)["loss"]
    hook.remove()
    n_learned = int((batch["labels"] != IGNORE_INDEX).sum())
    assert seen == [(n_learned, loaded.model.lm_head.out_features)]
    theirs = loaded.model(**batch, use_cache=False).loss
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)
    weights = [p for p in loaded.model.parameters() if p.requires_grad]
    for mine, other in zip(
        torch.autograd.grad(own, weights), torch.autograd.grad(theirs, weights), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    # accumulated batches: the sum over all tokens of the step
    half = model(**batch, num_items_in_batch=2 * n_learned)["loss"]
    torch.testing.assert_close(half, own / 2)


def test_the_validation_loss_is_a_learned_token_s_however_the_rows_are_batched(folders, tmp_path):
    loaded, _ = load(folders["llava"], tmp_path)
    model = training_model(loaded).eval()
    rows = [
        {"conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": said}]}
        for said in ("hi", "a blue circle in the corner", "red")
    ]
    collate = VlmCollator(loaded.family, tmp_path, max_length=2000)
    total, n = 0.0, 0
    for row in rows:
        batch = {k: v for k, v in collate([row]).items() if torch.is_tensor(v)}
        own = int((batch["labels"] != IGNORE_INDEX).sum())
        total, n = total + own * loaded.model(**batch, use_cache=False).loss.item(), n + own
    for size in (1, 2, 3):
        training: Any = SimpleNamespace(per_device_eval_batch_size=size, device=model.model.device)
        found = validation_loss(model, collate, rows, training)
        assert found == pytest.approx(total / n, rel=1e-5)


def test_a_batch_with_nothing_to_learn_is_an_error(folders, tmp_path):
    loaded, _ = load(folders["llava"], tmp_path)
    batch = batch_of(loaded.family, tmp_path)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    with pytest.raises(UserError, match="without a single token to learn"):
        training_model(loaded)(**batch)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_pictures_of_a_frozen_tower_and_projector_keep_nothing_for_a_backward_pass(
    folders, tmp_path, kind
):
    flags = ("--train_projector", "false")
    loaded, _ = load(folders[kind], tmp_path, *flags)
    model = training_model(loaded).train()
    seen: list[bool] = []
    original = loaded.model.model.get_image_features

    def watched(*arguments: Any, **named: Any) -> Any:
        output = original(*arguments, **named)
        seen.append(torch.cat(tuple(output.pooler_output)).requires_grad)
        return output

    loaded.model.model.get_image_features = watched
    model(**batch_of(loaded.family, tmp_path))["loss"].backward()
    assert seen == [False]


def test_a_frozen_tower_keeps_its_dropout_off(folders, tmp_path):
    loaded, _ = load(folders["qwen2_vl"], tmp_path, "--train_projector", "true")
    model = training_model(loaded).train()
    assert not loaded.model.model.visual.blocks[0].training
    assert loaded.model.model.visual.merger.training
    assert loaded.model.model.language_model.training
    aligned, _ = load(folders["llava"], tmp_path, "--preset", "align")
    model = training_model(aligned).train()
    assert not aligned.model.model.language_model.training
    model.activation_checkpointing_enable()  # transformers recomputes in training mode alone
    model.train()
    assert aligned.model.model.language_model.training
    assert not aligned.model.model.vision_tower.training


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_activation_checkpointing_changes_no_gradient(folders, tmp_path, kind):
    gradients = []
    flags = ("--lora_dropout", "0", "--train_projector", "true")
    for recompute in (False, True):
        loaded, _ = load(folders[kind], tmp_path, *flags)
        model = training_model(loaded)
        if recompute:
            model.activation_checkpointing_enable()
        model.train()
        model(**batch_of(loaded.family, tmp_path))["loss"].backward()
        gradients.append({n: p.grad for n, p in loaded.model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_text_alone_gives_every_trained_weight_a_gradient(folders, tmp_path):
    """Of zero, for the projector: in several processes each waits for the gradients of all."""
    loaded, _ = load(folders["llava"], tmp_path)
    model = training_model(loaded).train()
    model(**model.stand_in())["loss"].backward()
    for name, parameter in loaded.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if ".multi_modal_projector." in name:
            assert not parameter.grad.any()


# Contrastive loss


@pytest.mark.parametrize("kind", KINDS)
def test_weight_0_changes_nothing_and_runs_nothing(folders, tmp_path, kind, monkeypatch):
    """The same loss, bit for bit, with not one pass more; above 0 one loss is added, the pictures
    still encoded once; a validation has the language loss alone."""
    loaded, _ = load(folders[kind], tmp_path, "--train_projector", "true", "--lora_dropout", "0")
    batch = batch_of(loaded.family, tmp_path)
    calls: list[str] = []
    counted = {
        "tower": loaded.model.model.visual
        if hasattr(loaded.model.model, "visual")
        else loaded.model.model.vision_tower,
        "language model": loaded.model.model.language_model,
    }
    for name, module in counted.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    plain = training_model(loaded).train()(**batch)["loss"]
    assert sorted(calls) == ["language model", "tower"]
    calls.clear()
    with_it = training_model(loaded, contrastive_weight=0.5).train()
    more = with_it(**batch)["loss"]
    assert sorted(calls) == ["language model", "tower"]
    _, own = with_it.contrast(
        batch["input_ids"], batch["labels"],
        {name: value for name, value in batch.items() if name not in ("input_ids", "labels")},
    )  # fmt: skip
    assert float(own.detach()) > 0
    torch.testing.assert_close(more, plain + 0.5 * own)
    n_learned = int((batch["labels"] != IGNORE_INDEX).sum())  # half of an accumulated step
    torch.testing.assert_close(with_it(**batch, num_items_in_batch=2 * n_learned)["loss"], more / 2)
    assert torch.equal(
        with_it.eval()(**batch)["loss"], training_model(loaded).eval()(**batch)["loss"]
    )

    def never(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the contrastive loss ran with weight 0")

    monkeypatch.setattr("qwen_clip_llava_lora.contrastive.contrastive_loss", never)
    assert torch.equal(
        training_model(loaded, contrastive_weight=0.0).train()(**batch)["loss"], plain
    )


# 4 bits


@pytest.mark.slow
def test_a_4_bit_base_gets_lora_gradients_before_and_after_a_validation(folders, tmp_path):
    """The language model is NF4, tower, projector and head are not; an evaluation in between leaves
    the layers trainable."""
    loaded, _ = load(folders["llava"], tmp_path, "--train_type", "qlora", "--lora_dropout", "0")
    kinds = {
        name: type(module).__name__
        for name, module in loaded.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    four_bit = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    assert four_bit
    assert all(name.startswith("model.language_model.") for name in four_bit)
    model = training_model(loaded)
    batch = batch_of(loaded.family, tmp_path)
    gradients = []
    for _ in range(2):
        model.train()
        model.zero_grad()
        model(**batch)["loss"].backward()
        gradients.append([p.grad.clone() for p in loaded.model.parameters() if p.requires_grad])
        model.eval()
        with torch.no_grad():
            model(**batch)
    assert any(gradient.any() for gradient in gradients[0])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)
