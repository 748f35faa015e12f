"""BLIP-2's inputs and answers: the fast path equals transformers' own, labels are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip2_qlora.blip2 import (
    COMPONENTS,
    LORA_TARGETS,
    Blip2Answerer,
    Blip2ForVqa,
    Decoding,
    answer_ids,
    base_model,
    check_placeholders,
    choose_preset,
    embed_prompts,
    encode_pair,
    end_token_id,
    generate_plain,
    language_model_kind,
    load_blip2,
    pad_pairs,
    prompt_ids,
    read_config,
)
from blip2_qlora.planning import count_parameters, lora_parameters
from shared.options import IGNORE_INDEX, ModelOptions, UserError

PROMPTS = [
    "Question: what color is the circle? Answer:",
    "Question: how many? Answer:",
    "Question: is there a red star and a blue square? Answer:",
    "",
]


@pytest.fixture
def loaded(tiny_blip2: Path):
    return load_blip2(ModelOptions(model=str(tiny_blip2), device="cpu"), None)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(num_beams=1)], ids=["beams", "greedy"])
def test_batch_equals_one_by_one_equals_transformers(loaded, pictures, decoding):
    model, processor = loaded
    answerer = Blip2Answerer(model, processor, decoding)
    pairs = [(i, prompt) for i in range(len(pictures)) for prompt in PROMPTS]
    features = answerer.encode_images(pictures)
    batch = answerer.answer(features, [i for i, _ in pairs], [p for _, p in pairs])
    single = [answerer.answer(answerer.encode_images([pictures[i]]), [0], [p])[0] for i, p in pairs]
    plain = [generate_plain(model, processor, pictures[i], p, decoding) for i, p in pairs]
    assert [a.raw_output for a in batch] == [a.raw_output for a in single]
    assert [a.answer for a in batch] == plain
    # the pictures must matter, or this test would not see one that is ignored
    assert len({a.raw_output for a in batch}) > len(PROMPTS)


def test_confidence_is_the_probability_of_the_generated_tokens(loaded, pictures):
    """Greedy: the first token's confidence is the largest probability of the first step."""
    model, processor = loaded
    answerer = Blip2Answerer(model, processor, Decoding(num_beams=1))
    features = answerer.encode_images(pictures[:1])
    answer = answerer.answer(features, [0], PROMPTS[:1])[0]
    inputs = processor(images=pictures[0], text=PROMPTS[0], return_tensors="pt")
    base = base_model(model)
    with torch.no_grad():
        extra = {}
        if language_model_kind(base.config) == "t5":
            extra["decoder_input_ids"] = torch.tensor([[1]])
        logits = base(**inputs, **extra).logits[0, -1].clone()
    logits[end_token_id(model)] = -torch.inf  # one token at least: the end is not allowed yet
    best = logits.argmax()
    assert processor.tokenizer.decode([best]) == answer.raw_output.split()[0]
    full = base(**inputs, **extra).logits[0, -1].softmax(-1)[best]
    assert answer.first_token_confidence == pytest.approx(float(full), rel=1e-4)
    assert 0 < answer.confidence <= 1


def test_labels_are_the_answer_and_its_end(tiny_blip2):
    _, processor = load_blip2(ModelOptions(model=str(tiny_blip2), device="cpu"), None)
    kind = language_model_kind(read_config(str(tiny_blip2)))
    prompt = prompt_ids(processor, "Question: what color? Answer:")
    two = answer_ids(processor, "red circle", 2, kind)
    none = answer_ids(processor, "", 2, kind)
    words = processor.tokenizer.convert_ids_to_tokens
    assert words(two) == ["red", "circle", "</s>"]
    assert none == [2]
    batch = pad_pairs([encode_pair(prompt, a, kind) for a in (two, none)], 1, kind)
    learned = [words([i for i in row if i != IGNORE_INDEX]) for row in batch["labels"].tolist()]
    assert learned == [["red", "circle", "</s>"], ["</s>"]]
    if kind == "opt":
        assert batch["labels"].shape == batch["input_ids"].shape
        same = batch["labels"] != IGNORE_INDEX
        assert torch.equal(batch["labels"][same], batch["input_ids"][same])


def test_training_loss_equals_transformers(loaded, pictures):
    """Image-once, answer-only loss against the stock forward pass, question by question."""
    model, processor = loaded
    base, kind = base_model(model), language_model_kind(base_model(model).config)
    questions = [(0, PROMPTS[0], "red"), (0, PROMPTS[1], "2"), (1, PROMPTS[2], "yes no")]
    rows = [
        encode_pair(prompt_ids(processor, p), answer_ids(processor, a, 2, kind), kind)
        for _, p, a in questions
    ]
    pixels = processor.image_processor(pictures[:2], return_tensors="pt")["pixel_values"]
    training = Blip2ForVqa(model).eval()
    loss = training(pixels, torch.tensor([i for i, _, _ in questions]), **pad_pairs(rows, 1, kind))[
        "loss"
    ]
    total, count = 0.0, 0
    for (i, _, _), row in zip(questions, rows, strict=True):
        one = pad_pairs([row], 1, kind)
        n = int((one["labels"] != IGNORE_INDEX).sum())
        total += float(base(pixel_values=pixels[i : i + 1], **one).loss) * n
        count += n
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_a_batch_without_labels_is_an_error(loaded, pictures):
    model, processor = loaded
    kind = language_model_kind(base_model(model).config)
    batch = pad_pairs([encode_pair(prompt_ids(processor, "Question:"), [2], kind)], 1, kind)
    batch["labels"][:] = IGNORE_INDEX
    pixels = processor.image_processor(pictures[:1], return_tensors="pt")["pixel_values"]
    with pytest.raises(ValueError, match="without a single token"):
        Blip2ForVqa(model)(pixels, torch.tensor([0]), **batch)


def test_missing_placeholders_are_an_error(loaded, pictures):
    model, processor = loaded
    features = Blip2Answerer(model, processor, Decoding()).encode_images(pictures[:1])
    with pytest.raises(ValueError, match="image tokens"):
        embed_prompts(base_model(model), features, torch.tensor([[5, 6, 7]]))
    processor.num_query_tokens = 3
    with pytest.raises(UserError, match="3 image tokens, the model expects 4"):
        check_placeholders(base_model(model).config, processor)


def test_too_long_a_prompt_is_named(tiny_blip2_opt):
    model, processor = load_blip2(ModelOptions(model=str(tiny_blip2_opt), device="cpu"), None)
    answerer = Blip2Answerer(model, processor, Decoding())
    assert answerer.prompt_problem("Question: how many? Answer:") is None
    assert "room for 114" in answerer.prompt_problem("red " * 200)
    assert "contains <image>" in answerer.prompt_problem("Question: <image> red? Answer:")


def test_lora_targets_stay_in_the_language_model(loaded):
    from peft import LoraConfig, get_peft_model

    model, _ = loaded
    targets = LORA_TARGETS[language_model_kind(model.config)]
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    trainable = {n: p.numel() for n, p in peft_model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("language_model." in name for name in trainable)
    assert sum(trainable.values()) == lora_parameters(model.config, 2, targets)


def test_presets():
    opt = read_config("Salesforce/blip2-opt-2.7b")
    t5 = read_config("Salesforce/blip2-flan-t5-xl")
    assert choose_preset(opt, "paper", None, False).prompt == "Question: {} Answer:"
    assert choose_preset(t5, "paper", None, False).prompt == "Question: {} Short answer:"
    assert choose_preset(opt, "paper", None, False).decoding == Decoding(5, -1.0, 10, 1)
    assert choose_preset(opt, "lavis", None, False).decoding.length_penalty == 0.0
    assert choose_preset(opt, "paper", "Q {} A", True).decoding.num_beams == 1
    with pytest.raises(UserError, match="must contain"):
        choose_preset(opt, "paper", "no place", False)


def test_real_architecture_counts():
    """3.745 B = ViT-g 0.986 + Q-Former 0.105 + OPT 2.652, counted once on the real model."""
    counts = count_parameters(read_config("Salesforce/blip2-opt-2.7b"))
    assert set(counts) == set(COMPONENTS)
    assert sum(counts.values()) == pytest.approx(3.745e9, rel=1e-3)
    assert counts["vision tower"] == pytest.approx(0.986e9, rel=1e-3)
    assert counts["Q-Former"] == pytest.approx(0.105e9, rel=5e-3)
    assert counts["language model"] == pytest.approx(2.652e9, rel=1e-3)
