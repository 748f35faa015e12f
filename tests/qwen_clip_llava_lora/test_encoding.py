"""Rows as ids and labels for every family: exact prompts, exact masks, counts equal to what the
image processors make, losses equal to transformers' own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_clip_llava_lora.encoding import (
    batch_inputs,
    check_counts,
    encode_row,
    n_picture_tokens,
    picture_inputs,
)
from shared.options import IGNORE_INDEX, UserError
from shared.vision_families import Family, open_family
from tests.tiny_models import KINDS, THINKING_TEMPLATE, tiny_folder

PROJECTORS = {  # below model.model
    "llava": "multi_modal_projector.linear_1.weight",
    "llava_siglip": "multi_modal_projector.linear_1.weight",
    "qwen2_vl": "visual.merger.mlp.0.weight",
    "qwen2_5_vl": "visual.merger.mlp.0.weight",
    "qwen3_vl": "visual.deepstack_merger_list.0.linear_fc1.weight",
    "minicpmv4_6": "merger.mlp.0.linear_1.weight",
}
SIZES = [(50, 40), (90, 60), (60, 110), (56, 56), (300, 20), (17, 400), (640, 480), (113, 112)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {kind: tiny_folder(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def families(folders: dict[str, Path]) -> dict[str, Family]:
    return {kind: open_family(folder) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    return families[request.param]


def row_of(*turns: tuple[str, str], images: int = 0) -> dict[str, Any]:
    row = {"id": "r", "conversations": [{"from": who, "value": text} for who, text in turns]}
    return row | ({"image": [f"{i}.png" for i in range(images)]} if images else {})


def picture(size: tuple[int, int], seed: int = 0) -> Any:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def readable(family: Family, ids: list[int]) -> str:
    """The text of ids, a picture's places as one `@` and their number."""
    text, n = "", 0
    for token in [*ids, None]:
        if token == family.image_token_id:
            n += 1
            continue
        text += f"@{n}" if n else ""
        n = 0
        text += "" if token is None else family.tokenizer.decode([token])
    return text


def learned(family: Family, encoded: dict[str, list[int]]) -> list[str]:
    """The runs of learned tokens."""
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        assert label in (token, IGNORE_INDEX)
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            runs[-1].append(token)
    return [family.tokenizer.decode(run) for run in runs if run]


# Rows


LLAVA_ROUNDS = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n@16\nWhat is it?<|im_end|>\n"
    "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
    "<|im_start|>assistant\nYes.<|im_end|>\n"
)
QWEN_ROUNDS = LLAVA_ROUNDS.replace("@16\n", "<|vision_start|>@4<|vision_end|>")


@pytest.mark.parametrize(
    ("kind", "text"),
    [("llava", LLAVA_ROUNDS), ("llava_siglip", LLAVA_ROUNDS), ("qwen2_vl", QWEN_ROUNDS),
     ("qwen2_5_vl", QWEN_ROUNDS), ("qwen3_vl", QWEN_ROUNDS)],
)  # fmt: skip
def test_a_row_is_the_templates_text_and_its_answers_are_learned(
    families: dict[str, Family], kind: str, text: str
) -> None:
    family = families[kind]
    row = row_of(
        ("system", "Be brief."), ("human", "<image>\nWhat is it?"), ("gpt", "A cat."),
        ("human", "Sure?"), ("gpt", "Yes."), images=1,
    )  # fmt: skip
    encoded = encode_row(family, row, [(56, 56)])
    assert readable(family, encoded["input_ids"]) == text
    assert learned(family, encoded) == ["A cat.<|im_end|>", "Yes.<|im_end|>"]


def test_pictures_between_words_stay_there(family: Family) -> None:
    row = row_of(
        ("human", "A <image> or B <image>?"), ("gpt", ""), images=2,
    )  # fmt: skip
    sizes = [(56, 56), (113, 112)]
    encoded = encode_row(family, row, sizes)
    text = readable(family, encoded["input_ids"])
    counts = [n_picture_tokens(family, *size) for size in sizes]
    for name in ("<|vision_start|>", "<|vision_end|>"):
        text = text.replace(name, "")
    if family.config.model_type == "minicpmv4_6":  # parts are lines; a number, then the picture
        assert "A \n<image_id>0</image_id><image>@4</image>\n or B \n<image_id>1" in text
        text = text.replace("\n<image_id>1</image_id><image>@4</image>", "")
        assert "or B " + "<slice>@4</slice><slice>@4</slice>\n" * 2 + "?<|im_end|>" in text
    else:
        assert f"A @{counts[0]} or B @{counts[1]}?" in text
    assert learned(family, encoded) == ["<|im_end|>"]  # an empty answer's end


def test_several_pictures_in_front_and_none_at_all(family: Family) -> None:
    row = row_of(("human", "<image>\n<image>\nSame?"), ("gpt", "No"), images=2)
    encoded = encode_row(family, row, [(56, 56), (90, 60)])
    n = n_picture_tokens(family, 56, 56) + n_picture_tokens(family, 90, 60)
    assert encoded["input_ids"].count(family.image_token_id) == n
    plain = encode_row(family, row_of(("human", "Hi"), ("gpt", "No")), [])
    assert family.image_token_id not in plain["input_ids"]
    assert learned(family, encoded) == learned(family, plain) == ["No<|im_end|>"]


def test_what_stands_before_an_answer_is_what_is_asked(family: Family) -> None:
    """Training and inference agree id by id, and so does an answer's first token."""
    row = row_of(("human", "<image>\nWhat is it?"), ("gpt", "A cat."), images=1)
    encoded = encode_row(family, row, [(56, 56)])
    prompt = family.prompt_ids("What is it?", [family.layout(56, 56)])
    answer = family.choice_ids("A cat.", family.lead("What is it?"))
    assert encoded["input_ids"][: len(prompt) + len(answer)] == prompt + answer
    assert encoded["labels"][: len(prompt)] == [IGNORE_INDEX] * len(prompt)


def test_rows_that_cannot_be_learned_are_named(family: Family) -> None:
    for row, sizes, reason in (
        (row_of(("human", "<image>\na"), ("gpt", "b"), images=1), [], r"1 <image> for 0 pict"),
        (row_of(("human", "a")), [], "ends without an answer to learn"),
        (row_of(("human", "<image>\na"), ("gpt", "b")), [], "1 <image> for 0 pict"),
        (row_of(("gpt", "b")), [], "row 'r'"),
    ):
        with pytest.raises(UserError, match=reason):
            encode_row(family, row, sizes)


def test_a_thought_is_learned_empty_where_the_template_opens_one(
    folders: dict[str, Path], families: dict[str, Family], tmp_path: Path
) -> None:
    """The Thinking folder's prompt ends inside a thought, MiniCPM-V's behind an empty one."""
    folder = tmp_path / "thinking"
    shutil.copytree(folders["qwen3_vl"], folder)
    (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE, encoding="utf-8")
    row = row_of(("human", "<image>\nWhat?"), ("gpt", "A cat."), images=1)
    thinking, minicpm = open_family(folder), families["minicpmv4_6"]
    encoded = encode_row(thinking, row, [(64, 64)])
    assert learned(thinking, encoded) == ["\n</think>\n\nA cat.<|im_end|>"]
    prompt = thinking.prompt_ids("What?", [thinking.layout(64, 64)])
    assert encoded["input_ids"][: len(prompt)] == prompt
    answer = thinking.choice_ids("A cat.", thinking.lead("What?"))
    assert encoded["input_ids"][len(prompt) :][: len(answer)] == answer
    encoded = encode_row(minicpm, row, [(64, 64)])
    assert learned(minicpm, encoded) == ["A cat.<|im_end|>"]
    assert readable(minicpm, encoded["input_ids"]) == (
        "<|im_start|>user\n<image_id>0</image_id><image>@4</image>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nA cat.<|im_end|>\n"
    )
    rounds = row_of(("human", "A"), ("gpt", "B"), ("human", "C"), ("gpt", "D"))
    for family in (thinking, minicpm):
        with pytest.raises(UserError, match=r"row 'r': .* rows of one question each"):
            encode_row(family, rounds, [])


# Pictures


def test_places_are_counted_before_the_forward_pass(family: Family) -> None:
    """A header that lied: the row was encoded for another size than the picture's."""
    row = row_of(("human", "<image>\nWhat?"), ("gpt", "A cat."), images=1)
    told = (113, 112)
    if family.config.model_type == "llava":  # all sizes alike: a picture is missing
        ids, shown = encode_row(family, row, [told])["input_ids"], []
    else:
        ids, shown = encode_row(family, row, [told])["input_ids"], [picture((60, 60))]
    right = picture_inputs(family, [picture(told)])
    check_counts(family, torch.tensor([ids]), right)
    with pytest.raises(UserError, match=r"the batch has \d+ image tokens for pictures of \d+"):
        check_counts(family, torch.tensor([ids]), picture_inputs(family, shown))


def test_counts_from_the_header_are_those_of_the_image_processor(family: Family) -> None:
    for size in SIZES:
        inputs = picture_inputs(family, [picture(size)])
        made = made_tokens(family, inputs)
        assert n_picture_tokens(family, *size) == made, size
    if family.config.model_type != "llava":
        assert len({n_picture_tokens(family, *size) for size in SIZES}) > 3
    if family.config.model_type.startswith("qwen"):
        with pytest.raises(UserError, match="3000 x 10 pixels"):
            n_picture_tokens(family, 3000, 10)
    assert picture_inputs(family, []) == {}


def made_tokens(family: Family, inputs: dict[str, Any]) -> int:
    if "image_grid_thw" in inputs:
        return int(inputs["image_grid_thw"].prod()) // 4
    if "target_sizes" in inputs:
        return sum(int(tall) * int(wide) // 16 for tall, wide in inputs["target_sizes"])
    return 16


def test_llavas_pictures_are_padded_where_it_was_trained_so(folders: dict[str, Path]) -> None:
    family = open_family(folders["llava"])
    plain = picture_inputs(family, [picture((90, 30))])["pixel_values"]
    family.trained_on = "pad"
    padded = picture_inputs(family, [picture((90, 30))])["pixel_values"]
    assert plain.shape == padded.shape == (1, 3, 32, 32)
    assert float(padded[:, :, 0].abs().max()) < 0.02  # the mean's colour above the picture
    assert float(plain[:, :, 0].abs().max()) > 0.5


# The forward pass


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_answers_and_sees_the_picture(
    folders: dict[str, Path], families: dict[str, Family], kind: str
) -> None:
    """Two rows of different length with one and two pictures; the loss against one by hand from
    the logits of each row alone. The projector learns from it."""
    import transformers

    family = families[kind]
    model = transformers.AutoModelForImageTextToText.from_pretrained(folders[kind]).eval()
    rows = [
        row_of(("human", "<image>\nWhat?"), ("gpt", "A cat."), images=1),
        row_of(("human", "A <image> B <image>?"), ("gpt", "Both of them"), images=2),
        row_of(("human", "Who?"), ("gpt", "Me")),
    ]
    sizes = [[(56, 56)], [(90, 60), (60, 110)], []]
    shown = [[picture(size, i) for i, size in enumerate(own)] for own in sizes]
    encoded = [encode_row(family, row, own) for row, own in zip(rows, sizes, strict=True)]

    def run(which: list[int], pictures: list[list[Any]]) -> Any:
        width = max(len(encoded[i]["input_ids"]) for i in which)
        ids = torch.full((len(which), width), family.pad_id)
        labels, mask = torch.full_like(ids, IGNORE_INDEX), torch.zeros_like(ids)
        for place, i in enumerate(which):
            n = len(encoded[i]["input_ids"])
            ids[place, :n] = torch.tensor(encoded[i]["input_ids"])
            labels[place, :n] = torch.tensor(encoded[i]["labels"])
            mask[place, :n] = 1
        return model(
            input_ids=ids, attention_mask=mask, labels=labels, use_cache=False,
            **picture_inputs(family, [p for i in which for p in pictures[i]]),
            **batch_inputs(family, ids),
        )  # fmt: skip

    together = float(run([0, 1, 2], shown).loss.detach())
    total, n_learned = 0.0, 0
    for i, row in enumerate(encoded):
        log_probs = run([i], shown).logits[0].detach().float().log_softmax(-1)
        targets = torch.tensor(row["labels"][1:])
        kept = targets != IGNORE_INDEX
        total -= float(log_probs[:-1][kept].gather(1, targets[kept][:, None]).sum())
        n_learned += int(kept.sum())
    assert together == pytest.approx(total / n_learned, rel=1e-4)
    other = [[picture(size, 9) for size in own] for own in sizes]
    assert float(run([0, 1, 2], other).loss.detach()) != pytest.approx(together, rel=1e-3)
    run([0, 1, 2], shown).loss.backward()
    for name in ("language_model.layers.0.mlp.up_proj.weight", PROJECTORS[kind]):
        gradient = model.model.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0
        assert bool(gradient.isfinite().all())
