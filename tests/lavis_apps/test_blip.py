"""The BLIP object: first tokens as the original, batches equal one by one, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_apps.blip import Blip, load_blip
from shared.options import MissingError, UserError
from tests.tiny_models import tiny_blip

TEXTS = ["a red star", "two blue squares and a picture of the red square", "x"]


@pytest.fixture(scope="module")
def matching(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return load_blip(tiny_blip("matching", tmp_path_factory.mktemp("matching")))


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]


def test_first_tokens(matching: Blip) -> None:
    vocabulary = matching.tokenizer.get_vocab()
    for first in ("[CLS]", "[ENC]", "[DEC]"):
        tokens = matching.tokens(TEXTS, first=first)
        assert tokens["input_ids"][:, 0].tolist() == [vocabulary[first]] * 3
        ends = tokens["attention_mask"].sum(1) - 1
        assert (tokens["input_ids"][range(3), ends] == vocabulary["[SEP]"]).all()


def test_a_tokenizer_that_pads_on_the_left(matching: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = matching.tokens(TEXTS, first="[ENC]")
    monkeypatch.setattr(matching.tokenizer, "padding_side", "left")
    found = matching.tokens(TEXTS, first="[ENC]")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_published_tokenizers_without_the_two_tokens(matching: Blip) -> None:
    class Silent:
        def get_vocab(self) -> dict[str, int]:
            return {"[CLS]": 2}

    silent = Blip(**{**vars(matching), "tokenizer": Silent()})
    assert silent.first_id("[DEC]") == matching.first_id("[DEC]")
    assert silent.first_id("[ENC]") == matching.first_id("[ENC]")
    assert silent.first_id("[ENC]") == matching.model.config.text_config.vocab_size - 1
    with pytest.raises(UserError, match=r"no \[X\]"):
        silent.first_id("[X]")


@torch.no_grad()
def test_matching_equals_transformers_with_the_original_first_token(matching: Blip) -> None:
    images = pictures(3)
    states = matching.encode_images(images)
    assert states.shape == (3, 17, 32)
    pixels = matching.pixel_values(images)
    enc, cls = (matching.tokens(TEXTS, first=first) for first in ("[ENC]", "[CLS]"))
    ours = matching.match_logits(states, TEXTS)
    theirs = matching.model(pixel_values=pixels, **enc).itm_score
    torch.testing.assert_close(ours, theirs)
    with_cls = matching.model(pixel_values=pixels, **cls).itm_score
    assert (ours - with_cls).abs().max() > 1e-3  # what transformers computes by itself is another
    cosines = matching.image_features(states) @ matching.text_features(TEXTS).T
    theirs = matching.model(pixel_values=pixels, use_itm_head=False, **cls).itm_score
    torch.testing.assert_close(cosines, theirs)
    probabilities = matching.match_probability(states, TEXTS)
    torch.testing.assert_close(probabilities, ours.softmax(-1)[:, 1])


@torch.no_grad()
def test_a_batch_of_unequal_texts_equals_one_by_one(matching: Blip) -> None:
    states = matching.encode_images(pictures(3))
    together = matching.match_logits(states, TEXTS)
    features = matching.text_features(TEXTS)
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(matching.match_logits(states[i : i + 1], [text])[0], together[i])
        torch.testing.assert_close(matching.text_features([text])[0], features[i])


def test_long_texts_are_cut_in_front_of_the_end(matching: Blip) -> None:
    long = "a " * 5000
    tokens = matching.tokens([long, "a star"])
    assert tokens["input_ids"].shape == (2, 35)
    assert tokens["input_ids"][0, -1] == matching.tokenizer.sep_token_id
    assert matching.cut_texts([long, "a star", "a " * 33]) == [True, False, False]
    assert matching.tokens([long], max_length=None)["input_ids"].shape == (1, 64)


def test_refusals(tmp_path: Path) -> None:
    folder = tiny_blip("caption", tmp_path / "caption")
    assert load_blip(folder).kind == "caption"
    with pytest.raises(UserError, match="a BLIP for caption; this needs one for matching"):
        load_blip(folder, kind="matching")
    with pytest.raises(MissingError, match="not on this machine"):
        load_blip("Salesforce/not-there")
    text = (folder / "config.json").read_text("utf-8")
    (folder / "config.json").write_text(text.replace('"model_type": "blip"', '"model_type": "x"'))
    with pytest.raises(UserError, match="no BLIP"):
        load_blip(folder)
