"""Questions: transformers' tokens for one, batches as one by one, ranking by hand, attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lavis_apps import vqa
from lavis_apps.blip import Blip
from lavis_apps.settings import TOY_MODELS
from lavis_apps.vqa import Answerer, RankedAnswer, dialogue, generated_answer
from shared.options import UserError
from shared.vision_language import Turns, VisionLanguage
from tests.tiny_models import tiny_blip, tiny_folder

QUESTIONS = ["what color is the red star?", "is there a blue square of the two?", "x"]
CANDIDATES = ["red", "blue star", "two", "a blue square", "yes"]


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    return Answerer.open(tiny_blip("vqa", tmp_path_factory.mktemp("vqa")))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    return Answerer.open(tiny_folder("llava", tmp_path_factory.mktemp("any") / "llava"))


@pytest.fixture(scope="module")
def blip2(tiny_blip2_opt) -> Answerer:
    return Answerer.open(tiny_blip2_opt, device="cpu")


def blip_of(answerer: Answerer) -> Blip:
    assert isinstance(answerer.model, Blip)
    return answerer.model


def asker_of(answerer: Answerer) -> VisionLanguage:
    assert isinstance(answerer.model, VisionLanguage)
    return answerer.model


@torch.no_grad()
def whole_log_likelihood(blip: Blip, image, question: str, answer: list[int]) -> float:
    """log P of the ids behind [DEC], from pixels, by the library's modules and no padding."""
    tokens = blip.tokens([question], first="[ENC]")
    states = blip.model.vision_model(blip.pixel_values([image])).last_hidden_state
    asked = blip.model.text_encoder(**tokens, encoder_hidden_states=states).last_hidden_state
    ids = torch.tensor([[blip.first_id("[DEC]"), *answer]])
    logits = blip.model.text_decoder(ids, encoder_hidden_states=asked).logits[0, :-1]
    return float(logits.log_softmax(-1)[range(len(answer)), answer].sum())


@pytest.mark.parametrize("beams", [1, 3])
def test_one_question_as_transformers_answers_it(answerer, pictures, beams):
    blip = blip_of(answerer)
    for image, question in zip(pictures, QUESTIONS, strict=True):
        tokens = blip.tokens([question], first="[ENC]")
        sequences = blip.model.generate(
            **tokens, pixel_values=blip.pixel_values([image]), num_beams=beams, max_length=10,
            min_length=1, num_return_sequences=beams, do_sample=False,
        )  # fmt: skip
        expected = blip.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        (found,) = answerer.answer([image], [question], num_beams=beams)
        assert [one.answer for one in found.top] == expected
        assert (found.answer, found.confidence) == (found.top[0].answer, found.top[0].probability)
        for one, ids in zip(found.top, sequences.tolist(), strict=True):
            end = blip.tokenizer.sep_token_id
            behind = ids[1 : ids.index(end) + 1] if end in ids else ids[1:]
            whole = whole_log_likelihood(blip, image, question, behind)
            assert one.log_likelihood == pytest.approx(whole, abs=1e-3)
            assert one.probability == pytest.approx(math.exp(whole), rel=1e-3)


@pytest.mark.parametrize("candidates", [None, CANDIDATES])
def test_unequal_questions_in_a_batch_equal_one_by_one(answerer, pictures, candidates):
    together = answerer.answer(pictures, QUESTIONS, candidates=candidates, attention=True)
    for i in range(3):
        (alone,) = answerer.answer(
            pictures[i : i + 1], QUESTIONS[i : i + 1], candidates=candidates, attention=True
        )
        assert [one.answer for one in alone.top] == [one.answer for one in together[i].top]
        expected = [one.log_likelihood for one in alone.top]
        assert [one.log_likelihood for one in together[i].top] == pytest.approx(expected, abs=1e-3)
        np.testing.assert_allclose(alone.attention, together[i].attention, atol=1e-5)


@torch.no_grad()
def test_the_padding_of_questions_is_not_attended_to(answerer, pictures):
    """transformers' own generate attends to it, and its layers drop the mask that says not to."""
    blip = blip_of(answerer)
    tokens = blip.tokens(QUESTIONS, first="[ENC]")
    seen = tokens["attention_mask"]
    assert seen.sum(1).tolist() != [seen.shape[1]] * 3
    states = blip.fused_states(blip.encode_images(pictures), tokens).last_hidden_state
    start = torch.full((3, 1), blip.first_id("[DEC]"))

    def logits(mask: torch.Tensor) -> torch.Tensor:
        return blip.model.text_decoder(
            start, encoder_hidden_states=states, encoder_attention_mask=mask
        ).logits

    assert (logits(seen) - logits(torch.ones_like(seen)))[2].abs().max() > 0.01


def test_candidates_are_ranked_by_their_whole_likelihood(answerer, pictures, monkeypatch):
    blip = blip_of(answerer)
    found = answerer.answer(pictures, QUESTIONS, candidates=CANDIDATES, n=3)
    monkeypatch.setattr(vqa, "RANK_BATCH", 2)
    assert answerer.answer(pictures, QUESTIONS, candidates=CANDIDATES, n=3)[0] == found[0]
    for image, question, answer in zip(pictures, QUESTIONS, found, strict=True):
        sums = {
            name: whole_log_likelihood(blip, image, question, blip.tokenizer(name)["input_ids"][1:])
            for name in CANDIDATES
        }
        ranking = sorted(CANDIDATES, key=lambda name: -sums[name])
        assert [one.answer for one in answer.top] == ranking[:3]
        total = sum(math.exp(value) for value in sums.values())
        for one in answer.top:
            assert one.log_likelihood == pytest.approx(sums[one.answer], abs=1e-3)
            assert one.probability == pytest.approx(math.exp(sums[one.answer]) / total, rel=1e-3)
        assert (answer.answer, answer.confidence) == (ranking[0], answer.top[0].probability)


@torch.no_grad()
def test_the_first_token_chooses_who_is_ranked(answerer, pictures):
    """BLIP's first stage: of many candidates those with the likeliest first tokens."""
    blip = blip_of(answerer)
    tokens = blip.tokens(QUESTIONS[:1], first="[ENC]")
    states = blip.fused_states(blip.encode_images(pictures[:1]), tokens).last_hidden_state
    start = torch.tensor([[blip.first_id("[DEC]")]])
    logits = blip.model.text_decoder(start, encoder_hidden_states=states).logits[0, 0]
    firsts = {name: float(logits[blip.tokenizer(name)["input_ids"][1]]) for name in CANDIDATES}
    likeliest = sorted(CANDIDATES, key=lambda name: -firsts[name])[:2]
    (found,) = answerer.answer(pictures[:1], QUESTIONS[:1], candidates=CANDIDATES, ranked=2)
    assert {one.answer for one in found.top} == set(likeliest)
    assert sum(one.probability for one in found.top) == pytest.approx(1)


def test_attention_is_the_mean_over_layers_heads_and_words(answerer, pictures):
    blip = blip_of(answerer)
    question = QUESTIONS[0]
    (found,) = answerer.answer(pictures[:1], [question], attention=True)
    tokens = blip.tokens([question], first="[ENC]")
    with torch.no_grad():
        fused = blip.fused_states(blip.encode_images(pictures[:1]), tokens, output_attentions=True)
    layers = [layer[0].numpy() for layer in fused.cross_attentions]  # (heads, T, N) each
    n_layers, n_words = len(layers), tokens["input_ids"].shape[1] - 2
    assert n_layers == 2
    grid = np.zeros(16)
    for layer in layers:
        for head in layer:
            for word in head[1 : 1 + n_words]:
                grid += word[1:] / (n_layers * len(layer) * n_words)
    np.testing.assert_allclose(found.attention, (grid / grid.sum()).reshape(4, 4), rtol=1e-4)
    assert answerer.answer(pictures[:1], [question])[0].attention is None


def test_a_picture_is_encoded_once_for_all_its_questions(answerer, pictures, monkeypatch):
    counts = []
    encode = Blip.encode_images
    monkeypatch.setattr(
        Blip,
        "encode_images",
        lambda self, images: counts.append(len(images)) or encode(self, images),
    )
    a, b, _ = pictures
    found = answerer.answer([b, a, b], QUESTIONS)
    assert counts == [2]
    assert [one.answer for one in found] == [
        answerer.answer([image], [question])[0].answer
        for image, question in zip([b, a, b], QUESTIONS, strict=True)
    ]
    assert answerer.answer([], []) == []


def test_one_answer_written_in_two_ways_is_one():
    found = generated_answer([("red", math.log(0.25)), ("a red", -3.0), ("red", math.log(0.5))])
    assert [one.answer for one in found.top] == ["red", "a red"]
    assert found.top[0] == RankedAnswer("red", 0.75, math.log(0.75))
    assert found.confidence == 0.75


def test_the_dialogue_as_lavis_writes_it(blip2, llava):
    history = [("Which city is this?", "singapore"), ("Is it hot?", "yes")]
    assert dialogue(asker_of(blip2), history, "Why?") == (
        "Question: Which city is this? Answer: singapore. Question: Is it hot? Answer: yes. "
        "Question: Why? Answer:"
    )
    assert dialogue(asker_of(blip2), (), "Why?") == "Question: Why? Answer:"
    turns = dialogue(asker_of(llava), history[:1], "Why?")
    assert isinstance(turns, Turns)
    assert turns.turns == (
        ("human", "Which city is this?"), ("gpt", "singapore"), ("human", "Why?"),
    )  # fmt: skip
    assert dialogue(asker_of(llava), (), "Why?") == "Why?"


def test_blip2_and_llava_answer_and_rank(blip2, llava, pictures):
    questions = ["what color?", "how many red circle?", "is there a star?"]
    for answerer in (blip2, llava):
        answers = answerer.answer(pictures, questions, max_length=5)
        for answer, image, question in zip(answers, pictures, questions, strict=True):
            assert 1 <= len(answer.top) <= 3
            assert 0 < answer.confidence <= 1
            (alone,) = answerer.answer([image], [question], max_length=5)
            assert alone.answer == answer.answer
            assert alone.confidence == pytest.approx(answer.confidence, rel=1e-3)
        asker = asker_of(answerer)
        (ranked,) = answerer.answer(pictures[:1], questions[:1], candidates=["red", "blue", "no"])
        prompt = dialogue(asker, (), questions[0])
        (scores,) = asker.choice_log_probs(
            asker.encode_images(pictures[:1]), [0], [prompt], [["red", "blue", "no"]]
        )
        by_hand = dict(zip(["red", "blue", "no"], [s.log_prob for s in scores], strict=True))
        assert [one.answer for one in ranked.top] == sorted(by_hand, key=lambda c: -by_hand[c])
        assert sum(one.probability for one in ranked.top) == pytest.approx(1)
        (later,) = answerer.answer(
            pictures[:1], questions[:1], candidates=["red", "blue", "no"], history=[("a", "blue")]
        )
        assert later.top[0].log_likelihood != pytest.approx(ranked.top[0].log_likelihood)


@pytest.mark.skipif(not TOY_MODELS["vqa"].is_dir(), reason="no toy model yet")
def test_the_toy_answers_as_transformers_does():
    from shared.images import list_images, open_image
    from shared.toy_world.build import ensure_vqav2

    images = [open_image(path) for path in list_images(ensure_vqav2() / "val2014")[:4]]
    answerer = Answerer.open(TOY_MODELS["vqa"])
    assert answerer.synthetic
    blip = blip_of(answerer)
    questions = ["how many shapes are there?", "is there a circle?", "what color is it?", "what?"]
    for image, question, found in zip(
        images, questions, answerer.answer(images, questions), strict=True
    ):
        tokens = blip.tokens([question], first="[ENC]")
        sequences = blip.model.generate(
            **tokens, pixel_values=blip.pixel_values([image]), num_beams=3, max_length=10
        )
        assert [found.answer] == blip.tokenizer.batch_decode(sequences, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"questions": [" "]}, "question 1 is empty"),
        ({"questions": ["a", "b"]}, "2 questions about 1 pictures"),
        ({"candidates": []}, "no candidate"),
        ({"candidates": ["red", ""]}, "candidate 2 is empty"),
        ({"candidates": ["red", "two", "Red "]}, "candidates 1 and 3 are the same"),
        ({"candidates": ["a " * 99]}, "101 tokens, room for 64"),
        ({"history": [("a", "b")]}, "history is for BLIP-2, LLaVA"),
        ({"n": 0}, "at least 1"),
        ({"max_length": 1}, "the prompt has 1 tokens"),
    ],
)
def test_refusals(answerer, pictures, settings, message):
    given = {"questions": ["a"]} | settings
    with pytest.raises(UserError, match=message):
        answerer.answer(pictures[:1], **given)


def test_other_families_have_no_picture_attention(blip2, pictures):
    with pytest.raises(UserError, match="BLIP's question encoder alone"):
        blip2.answer(pictures[:1], ["what?"], attention=True)


def test_one_candidate_is_certain_and_a_long_question_is_cut(answerer, pictures):
    (one,) = answerer.answer(pictures[:1], ["what?"], candidates=["red"])
    assert (one.answer, one.confidence) == ("red", 1.0)
    long = "red star " * 1200
    (found,) = answerer.answer(pictures[:1], [long])
    (cut,) = answerer.answer(pictures[:1], ["red star " * 20])
    assert found.top == cut.top
