"""Captions: transformers' own tokens, scores of whole forward passes, batches, samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lavis_apps.blip import Blip, load_blip
from lavis_apps.captioning import Captioner
from lavis_apps.decoding import Decoding, Nucleus, blip_decode, language_decode
from lavis_apps.settings import TOY_MODELS
from shared.images import list_images
from shared.options import MissingError, UserError
from shared.vision_language import VisionLanguage
from tests.tiny_models import tiny_blip, tiny_folder

PROMPT = "a picture of "


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner.open(tiny_blip("caption", tmp_path_factory.mktemp("caption")))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner.open(tiny_folder("llava", tmp_path_factory.mktemp("any") / "llava"))


def blip_of(captioner: Captioner) -> Blip:
    assert isinstance(captioner.model, Blip)
    return captioner.model


def asker_of(captioner: Captioner) -> VisionLanguage:
    assert isinstance(captioner.model, VisionLanguage)
    return captioner.model


def texts(captions: list) -> list[list[str]]:
    return [[caption.text for caption in own] for own in captions]


def of_transformers(blip: Blip, image: Image.Image, prompt: str, **settings) -> list[str]:
    """`BlipForConditionalGeneration.generate`, which cuts the prompt's [SEP] itself."""
    given = {}
    if prompt:
        given = dict(blip.tokenizer(prompt, return_tensors="pt"))
        given.pop("token_type_ids", None)
    sequences = blip.model.generate(blip.pixel_values([image]), **given, **settings)
    shown = blip.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return [text.removeprefix(prompt.strip()).strip() for text in shown]


@pytest.mark.parametrize("prompt", ["", PROMPT, "the red star and "])
@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_transformers(captioner, pictures, prompt, beams):
    blip = blip_of(captioner)
    settings = {"num_beams": beams, "max_length": 24, "min_length": 8, "length_penalty": 0.5}
    for image in pictures:
        expected = of_transformers(
            blip, image, prompt, num_return_sequences=beams, do_sample=False, **settings
        )
        ((*found,),) = texts(captioner.caption([image], n=beams, prompt=prompt, **settings))
        assert found == expected


@pytest.mark.skipif(not TOY_MODELS["caption"].is_dir(), reason="no toy model yet")
def test_the_toy_captions_as_transformers_does(toy_pictures):
    captioner = Captioner.open(TOY_MODELS["caption"])
    assert captioner.synthetic
    found = captioner.caption(toy_pictures)
    for image, (caption,) in zip(toy_pictures, found, strict=True):
        settings = {"num_beams": 3, "max_length": 40, "min_length": 5}
        assert [caption.text] == of_transformers(blip_of(captioner), image, PROMPT, **settings)
        assert -3 < caption.score <= 0


@pytest.fixture(scope="module")
def toy_pictures() -> list[Image.Image]:
    from shared.images import open_image
    from shared.toy_world.build import ensure_vqav2

    return [open_image(path) for path in list_images(ensure_vqav2() / "val2014")[:4]]


@torch.no_grad()
@pytest.mark.parametrize("method", ["beam", "nucleus"])
def test_scores_are_those_of_a_whole_forward_pass(captioner, pictures, method):
    blip = blip_of(captioner)
    decoding = Decoding(
        method=method, n=3, max_length=20, temperature=2.0, repetition_penalty=1.5, seed=4
    )
    states = blip.encode_images(pictures)
    seen = torch.ones(states.shape[:2], dtype=torch.long)
    prompt = torch.tensor([[blip.first_id("[DEC]"), blip.tokenizer.vocab["a"]]] * 3)
    for row, own in enumerate(blip_decode(blip, prompt, states, seen, decoding)):
        assert len({tuple(text.ids) for text in own}) > 1
        for text in own:
            whole = torch.tensor([[*prompt[0].tolist(), *text.ids]])
            logits = blip.model.text_decoder(
                whole, encoder_hidden_states=states[row : row + 1]
            ).logits[0, 1:-1]
            log_probs = logits.log_softmax(-1)[range(len(text.ids)), text.ids]
            torch.testing.assert_close(torch.tensor(text.log_probs), log_probs)
            assert text.score == pytest.approx(float(log_probs.mean()), abs=1e-5)


@pytest.mark.parametrize("settings", [{"n": 2}, {"n": 3, "method": "nucleus", "seed": 5}])
def test_a_batch_equals_one_by_one(captioner, llava, pictures, settings):
    for speaker in (captioner, llava):
        together = speaker.caption(pictures, max_length=12, **settings)
        assert [len(own) for own in together] == [settings["n"]] * 3
        backwards = speaker.caption(pictures[::-1], max_length=12, **settings)[::-1]
        for i, image in enumerate(pictures):
            (alone,) = speaker.caption([image], max_length=12, **settings)
            assert texts([alone]) == texts([together[i]]) == texts([backwards[i]])
            expected = [caption.score for caption in alone]
            assert [c.score for c in together[i]] == pytest.approx(expected, abs=1e-4)
    assert captioner.caption([]) == []


def test_the_seed_decides_the_samples(captioner, pictures):
    def sample(n: int, seed: int) -> list[list[str]]:
        return texts(captioner.caption(pictures, n=n, method="nucleus", seed=seed, max_length=14))

    several = sample(3, seed=1)
    assert several == sample(3, seed=1)
    assert several != sample(3, seed=2)
    assert [own[:1] for own in several] == sample(1, seed=1)
    assert any(len(set(own)) > 1 for own in several)


def test_the_nucleus_draws_by_probability():
    n = 4000
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3])
    nucleus = Nucleus(Decoding(method="nucleus", n=n, top_p=0.9, seed=0))
    scores = probabilities.log().expand(n, -1)
    drawn = nucleus(torch.zeros(n, 0, dtype=torch.long), scores).argmax(dim=-1)
    shares = torch.bincount(drawn, minlength=4) / n
    assert shares[0] == 0  # behind the nucleus
    torch.testing.assert_close(shares[1:], probabilities[1:] / 0.95, atol=0.03, rtol=0)
    cold = Nucleus(Decoding(method="nucleus", n=n, top_p=1.0, temperature=0.01, seed=0))
    assert (cold(torch.zeros(n, 0, dtype=torch.long), scores).argmax(dim=-1) == 1).all()


def test_penalties_and_lengths_reach_the_search(captioner, pictures):
    def longest(**settings) -> int:
        return max(len(own[0].text) for own in captioner.caption(pictures, **settings))

    assert longest(max_length=8) < longest(max_length=30, min_length=20)
    plain = captioner.caption(pictures)
    assert texts(captioner.caption(pictures, repetition_penalty=3.0)) != texts(plain)
    assert texts(captioner.caption(pictures, prompt=PROMPT)) == texts(plain)  # BLIP's own


def test_the_length_penalty_chooses_among_captions_that_ended(captioner, pictures):
    blip = load_blip(blip_of(captioner).folder)
    with torch.no_grad():  # random weights hardly ever end a caption
        blip.model.text_decoder.cls.predictions.decoder.bias[blip.tokenizer.sep_token_id] += 6

    def caption(length_penalty: float) -> list[str]:
        return texts(
            Captioner(blip).caption(
                pictures, num_beams=8, min_length=6, max_length=20, length_penalty=length_penalty
            )
        )

    short, long = ([len(own[0]) for own in caption(penalty)] for penalty in (-4.0, 4.0))
    assert sum(short) < sum(long)
    for image, (found,) in zip(pictures, caption(-4.0), strict=True):
        settings = {"num_beams": 8, "min_length": 6, "max_length": 20, "length_penalty": -4.0}
        assert [found] == of_transformers(blip, image, PROMPT, **settings)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_blip2_captions_are_those_of_transformers(kind, write_tiny_blip2, tmp_path, pictures):
    from transformers import Blip2Processor

    folder = write_tiny_blip2(tmp_path / kind, kind)
    captioner = Captioner.open(folder, device="cpu")
    asker = asker_of(captioner)
    family = asker.family
    processor = Blip2Processor.from_pretrained(folder)
    for image in pictures:
        inputs = processor(images=image, text="a picture of", return_tensors="pt")
        assert (inputs["input_ids"] == family.image_token_id).sum() == 4
        sequences = family.model.generate(
            **inputs, num_beams=3, num_return_sequences=2, max_new_tokens=9, min_new_tokens=2,
            eos_token_id=sorted(family.end_ids), pad_token_id=family.pad_id, do_sample=False,
            suppress_tokens=[family.image_token_id],
        )  # fmt: skip
        if kind == "opt":
            sequences = sequences[:, inputs["input_ids"].shape[1] :]
        expected = asker.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        (found,) = captioner.caption(
            [image], n=2, prompt="a picture of", max_length=9, min_length=2
        )
        assert [caption.text for caption in found] == [text.strip() for text in expected]


def test_llava_captions_are_those_of_transformers(llava, pictures):
    asker = asker_of(llava)
    family = asker.family
    prompt = llava.default_prompt()
    assert prompt == "Describe the picture in one sentence."
    for image in pictures:
        features = asker.encode_images([image])
        ids = torch.tensor([asker.sent_ids(prompt, features[0])])
        assert (ids == family.image_token_id).sum() == family.n_image_tokens
        sequences = family.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids),
            pixel_values=family.pixels([image])["pixel_values"], num_beams=3, max_new_tokens=8,
            min_new_tokens=3, do_sample=False, eos_token_id=sorted(family.end_ids),
            pad_token_id=family.pad_id, suppress_tokens=[family.image_token_id],
        )[0, ids.shape[1] :]  # fmt: skip
        decoding = Decoding(max_length=8, min_length=3)
        ((found,),) = language_decode(asker, [image], [prompt], decoding)
        assert found.ids == sequences.tolist()[: len(found.ids)]
        ((caption,),) = llava.caption([image], max_length=8, min_length=3)
        assert caption.score == pytest.approx(found.score)


@torch.no_grad()
def test_llava_scores_are_those_of_a_whole_forward_pass(llava, pictures):
    asker = asker_of(llava)
    decoding = Decoding(method="nucleus", n=2, max_length=6, min_length=3, temperature=1.5)
    ((*found,),) = language_decode(asker, pictures[:1], ["What is it?"], decoding)
    features = asker.encode_images(pictures[:1])
    ids = asker.sent_ids("What is it?", features[0])
    for text in found:
        whole = torch.tensor([[*ids, *text.ids]])
        logits = asker.family.model(
            inputs_embeds=asker.embed(whole, [features]), attention_mask=torch.ones_like(whole)
        ).logits[0, len(ids) - 1 : -1]
        log_probs = logits.float().log_softmax(-1)[range(len(text.ids)), text.ids]
        torch.testing.assert_close(torch.tensor(text.log_probs), log_probs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 4}, "num_beams 4 or more"),
        ({"n": 0}, "n 0: at least 1"),
        ({"method": "greedy"}, "beam or nucleus"),
        ({"top_p": 1.5}, "top_p 1.5: at most 1"),
        ({"temperature": 0.0}, "temperature 0.0: more than 0"),
        ({"max_length": 4}, "min_length 5: more than max_length 4"),
        ({"prompt": "a " * 50}, "the prompt has 51 tokens"),
        ({"max_length": 65}, "positions for 64 tokens"),
    ],
)
def test_refusals(captioner, pictures, settings, message):
    with pytest.raises(UserError, match=message):
        captioner.caption(pictures[:1], **settings)


def test_refused_models(tmp_path, tmp_path_factory, llava, pictures):
    questions = tiny_blip("vqa", tmp_path / "vqa")
    with pytest.raises(UserError, match="a BLIP for vqa; this needs one for caption"):
        Captioner.open(questions)
    with pytest.raises(UserError, match="a clip model; this takes a BLIP, a BLIP-2 or a LLaVA"):
        Captioner.open(TOY_MODELS["clip"])
    with pytest.raises(UserError, match="is for BLIP-2 and LLaVA"):
        Captioner.open(questions, quantization="nf4")
    with pytest.raises(MissingError):
        Captioner.open("Salesforce/not-there")
    with pytest.raises(UserError, match="has room for"):
        llava.caption(pictures[:1], prompt="what " * 500)


def test_a_blip_in_hand_is_a_captioner(captioner, pictures, tmp_path: Path):
    blip = load_blip(blip_of(captioner).folder)
    assert Captioner(blip).caption(pictures) == captioner.caption(pictures)
    assert not Captioner(blip).synthetic
