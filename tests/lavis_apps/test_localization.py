"""Grad-CAM: equal to LAVIS' computation done by hand, to finite differences, one by one; words."""

import copy
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_apps.blip import Blip
from lavis_apps.localization import (
    Localization,
    Localizer,
    default_block,
    grad_cam,
    grid_shape,
    group_words,
)
from shared.images import ImageError
from shared.options import UserError
from tests.tiny_models import tiny_blip

TEXTS = ["a red star", "two blue squares, and the red square", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip("matching", tmp_path_factory.mktemp("matching"))


@pytest.fixture(scope="module")
def localizer(folder: Path) -> Localizer:
    return Localizer.open(folder, device="cpu", dtype="float32")


def picture(seed: int = 0, size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def by_hand(blip: Blip, image: Image.Image, text: str, block: int) -> tuple[np.ndarray, ...]:
    """LAVIS' steps, one picture: a hook keeps the attention, backward() fills its gradient.

    The average, [ENC]'s map, those of the text's tokens.
    """
    model = copy.deepcopy(blip.model)
    kept = []

    def keep(module: torch.nn.Module, inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        output[1].retain_grad()
        kept.append(output[1])

    model.text_encoder.encoder.layer[block].crossattention.self.register_forward_hook(keep)
    states = model.vision_model(pixel_values=blip.pixel_values([image])).last_hidden_state
    tokens = blip.tokens([text], first="[ENC]")
    hidden = model.text_encoder(**tokens, encoder_hidden_states=states).last_hidden_state
    model.itm_head(hidden[:, 0])[0, 1].backward()
    (attention,) = kept
    heads, length = attention.shape[1:3]
    grids = np.zeros((length, 4, 4))
    for head in range(heads):
        for token in range(length):
            for patch in range(16):
                weight = attention[0, head, token, 1 + patch].item()
                slope = attention.grad[0, head, token, 1 + patch].item()
                grids[token, patch // 4, patch % 4] += weight * max(0.0, slope) / heads
    return grids[1:-1].sum(axis=0) / (length - 2), grids[0], grids[1:-1]


def same(one: Localization, other: Localization) -> None:
    scale = one.average.max()
    np.testing.assert_allclose(one.average, other.average, rtol=1e-3, atol=1e-4 * scale)
    assert [word.word for word in one.words] == [word.word for word in other.words]
    for left, right in zip(one.words, other.words, strict=True):
        np.testing.assert_allclose(left.grid, right.grid, rtol=1e-3, atol=1e-4 * left.grid.max())
    assert one.probability == pytest.approx(other.probability, abs=1e-5)
    assert one.cut == other.cut


def test_the_maps_are_those_of_lavis(localizer: Localizer) -> None:
    found = localizer.localize(picture(), "a red star", block=0)
    average, first, tokens = by_hand(localizer.blip, picture(), "a red star", 0)
    assert np.abs(first - average).max() > 1e-6
    assert found.average.shape == (4, 4)
    assert found.average.max() > 0
    np.testing.assert_allclose(found.average, average, rtol=1e-4, atol=1e-9)
    assert [word.word for word in found.words] == ["a", "red", "star"]
    np.testing.assert_allclose([word.grid for word in found.words], tokens, rtol=1e-4, atol=1e-9)


def test_the_slope_is_the_logits(localizer: Localizer) -> None:
    """In float64 against finite differences: attention is changed behind the softmax."""
    model = copy.deepcopy(localizer.blip.model).double()
    blip = replace(localizer.blip, model=model)
    states = blip.encode_images([picture()]).detach()
    tokens = blip.tokens(["two red squares"], first="[ENC]")
    maps, _ = grad_cam(blip, states, tokens, block=0)
    inner = model.text_encoder.encoder.layer[0].crossattention.self
    step, heads = 1e-5, model.config.text_config.num_attention_heads
    change: dict[str, torch.Tensor] = {}
    seen: list[torch.Tensor] = []

    def changed(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return output + change["by"] if change else output

    handle = inner.dropout.register_forward_hook(changed)

    @torch.no_grad()
    def logit(by: torch.Tensor | None = None) -> float:
        change.update({"by": by} if by is not None else {})
        hidden = blip.fused_states(states, tokens).last_hidden_state
        change.clear()
        return model.itm_head(hidden[:, 0])[0, 1].item()

    logit()
    attention = seen[0][0]  # (heads, T, N)
    for token, patch in ((1, 0), (2, 7), (3, 15)):
        expected = 0.0
        for head in range(heads):
            by = torch.zeros_like(attention)[None]
            by[0, head, token, 1 + patch] = step
            slope = (logit(by) - logit(-by)) / (2 * step)
            expected += max(0.0, slope) * attention[head, token, 1 + patch].item() / heads
        assert maps[0, token, patch].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    handle.remove()


def test_a_batch_equals_one_by_one(localizer: Localizer) -> None:
    images = [picture(0), picture(1), picture(0), picture(2)]
    texts = [*TEXTS, TEXTS[0]]
    alone = [localizer.localize(i, t) for i, t in zip(images, texts, strict=True)]
    for size in (1, 3, 4):
        together = localizer.localize_pairs(images, texts, batch_size=size)
        for one, other in zip(alone, together, strict=True):
            same(one, other)
    assert np.abs(alone[0].average - alone[3].average).max() > 1e-6  # each its own picture's


def test_a_picture_given_twice_is_encoded_once(
    localizer: Localizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = Blip.encode_images
    monkeypatch.setattr(
        Blip, "encode_images", lambda self, images: seen.append(len(images)) or encode(self, images)
    )
    image, other = picture(0), picture(1)
    found = localizer.localize_pairs([image, image, other], TEXTS)
    assert seen == [2]
    for one, seed, text in zip(found, (0, 0, 1), TEXTS, strict=True):
        same(one, localizer.localize(picture(seed), text))


def test_the_average_is_over_tokens_and_a_word_is_its_pieces_mean(localizer: Localizer) -> None:
    text = "two blue squares, and the red square"
    found = localizer.localize(picture(), text, block=0)
    words = [word.word for word in found.words]
    assert words == ["two", "blue", "squares", "and", "the", "red", "square"]
    _, _, tokens = by_hand(localizer.blip, picture(), text, 0)
    pieces = localizer.blip.tokenizer.tokenize(text)
    assert len(pieces) == len(tokens) == 11
    assert pieces[2:8] == ["square", "##s", ",", "a", "##n", "##d"]
    np.testing.assert_allclose(found.words[2].grid, tokens[2:4].mean(axis=0), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.words[3].grid, tokens[5:8].mean(axis=0), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.average, tokens.mean(axis=0), rtol=1e-4, atol=1e-9)
    alone = localizer.localize(picture(), "squares")
    np.testing.assert_allclose(alone.average, alone.words[0].grid, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A T-shirt, it's RED!", ["a", "t-shirt", "it's", "red"]),
        ("'star' - (square)", ["star", "square"]),
        ("red,blue/star", ["red", "blue", "/", "star"]),
        ("what is there?", ["what", "is", "there"]),
        ("café zoë", ["café", "zoë"]),
        ("红 a 星星", ["红", "a", "星", "星"]),
    ],
)
def test_words_as_they_were_written(localizer: Localizer, text: str, words: list[str]) -> None:
    found = localizer.localize(picture(), text)
    expected = [word for word in words if word != "/"]
    assert [word.word for word in found.words] == expected


def test_grouping_by_hand() -> None:
    text = "rock-n-roll,ok -"
    offsets = [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7), (7, 11), (11, 12), (12, 14), (15, 16)]
    numbers = [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert group_words(text, offsets, numbers) == [
        ("rock-n-roll", [0, 1, 2, 3, 4, 5]),
        ("ok", [7]),
    ]
    assert group_words("", [], []) == []


def test_only_punctuation_has_an_average_and_no_words(localizer: Localizer) -> None:
    found = localizer.localize(picture(), "?")
    assert found.words == []
    assert found.average.shape == (4, 4)


@pytest.mark.parametrize("text", ["", "   ", '."!()', "\n"])
def test_a_text_without_a_token_is_refused(localizer: Localizer, text: str) -> None:
    with pytest.raises(UserError, match="no word to look for"):
        localizer.localize(picture(), text)


def test_long_texts_are_cut_and_it_is_said(localizer: Localizer) -> None:
    long = "red star " * 1200  # above 10,000 characters
    found = localizer.localize(picture(), long)
    assert found.cut
    assert [word.word for word in found.words] == ["red", "star"] * 16 + ["red"]
    head = localizer.localize(picture(), " ".join(long.split()[:33]))
    assert not head.cut
    same(replace(head, cut=True), found)
    more = localizer.localize(picture(), long, max_tokens=64)
    assert more.cut
    assert len(more.words) == 62
    fits = localizer.localize(picture(), "star " * 62, max_tokens=64)
    assert not fits.cut
    assert len(fits.words) == 62  # not cut at blip_caption's 50 words
    # a word that the cut goes through keeps the pieces in front of it
    through = localizer.localize(picture(), "star " * 32 + "squares")
    assert through.cut
    assert through.words[-1].word == "square"
    for wrong in (2, 65):
        with pytest.raises(UserError, match=f"max_tokens {wrong}: this model takes 3 to 64"):
            localizer.localize(picture(), "a star", max_tokens=wrong)


def test_which_block(localizer: Localizer) -> None:
    assert [default_block(count) for count in (12, 24, 6, 3, 2, 1)] == [6, 13, 3, 1, 0, 0]
    assert localizer.blocks == 2
    default, first = (localizer.localize(picture(), "a star", block=block) for block in (None, 0))
    same(default, first)
    for wrong in (-1, 2):
        with pytest.raises(UserError, match=f"block {wrong}: this model has 0 to 1"):
            localizer.localize(picture(), "a star", block=wrong)


def test_in_the_last_block_only_the_first_token_has_a_map(localizer: Localizer) -> None:
    average, first, tokens = by_hand(localizer.blip, picture(), "a star", 1)
    assert not average.any()  # what LAVIS' code would show
    assert not tokens.any()
    found = localizer.localize(picture(), "a star", block=1)
    np.testing.assert_allclose(found.average, first, rtol=1e-4, atol=1e-9)
    assert found.average.max() > 0
    assert found.words == []


def test_the_probability_is_the_matching_models(localizer: Localizer) -> None:
    with torch.no_grad():
        states = localizer.blip.encode_images([picture(k) for k in range(3)])
        expected = localizer.blip.match_probability(states, TEXTS).tolist()
    found = localizer.localize_pairs([picture(k) for k in range(3)], TEXTS)
    assert [one.probability for one in found] == pytest.approx(expected, abs=1e-5)


def test_the_model_stays_as_it_was(localizer: Localizer) -> None:
    blip = localizer.blip
    localizer.localize(picture(), "a star")  # transformers installs its recorders on first use
    before = {name: value.clone() for name, value in blip.model.state_dict().items()}
    flags = [weight.requires_grad for weight in blip.model.parameters()]
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    kept = [localizer.localize(picture(), text) for text in TEXTS]
    gc.collect()
    left = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    assert left == tensors  # neither gradients nor a graph's
    assert not blip.model.training
    assert all(weight.grad is None for weight in blip.model.parameters())
    assert [weight.requires_grad for weight in blip.model.parameters()] == flags
    for name, value in blip.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(isinstance(one.average, np.ndarray) for one in kept)


def test_frozen_weights_and_modes_without_gradients(localizer: Localizer) -> None:
    expected = localizer.localize(picture(), "a red star")
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            same(localizer.localize(picture(), "a red star"), expected)
    frozen = replace(localizer.blip, model=copy.deepcopy(localizer.blip.model))
    frozen.model.requires_grad_(False)
    same(Localizer(frozen).localize(picture(), "a red star"), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_shows_the_same_places(localizer: Localizer, dtype: str) -> None:
    model = copy.deepcopy(localizer.blip.model).to(getattr(torch, dtype))
    half = Localizer(replace(localizer.blip, model=model))
    for text in TEXTS:
        exact, found = (one.localize(picture(), text) for one in (localizer, half))
        assert found.average.dtype == np.float32
        correlation = np.corrcoef(exact.average.flatten(), found.average.flatten())[0, 1]
        assert correlation > 0.95
        assert found.probability == pytest.approx(exact.probability, abs=0.1)


def test_other_grids(localizer: Localizer) -> None:
    assert grid_shape(576, 384, 16) == (24, 24)
    assert grid_shape(12, (24, 32), 8) == (3, 4)
    assert grid_shape(12, [24, 32], [8, 8]) == (3, 4)
    assert grid_shape(36, 32, 8) == (6, 6)  # positions interpolated
    with pytest.raises(ValueError, match="15 patches: neither 4 x 4 nor a square"):
        grid_shape(15, 32, 8)
    config = copy.deepcopy(localizer.blip.model.config)
    config.vision_config.image_size = 56
    torch.manual_seed(0)
    model = type(localizer.blip.model)(config).eval()
    larger = Localizer(replace(localizer.blip, model=model, image_size=56))
    assert larger.localize(picture(), "a star").average.shape == (7, 7)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 700)])
def test_pictures_of_any_size(localizer: Localizer, size: tuple[int, int]) -> None:
    found = localizer.localize(picture(0, size), "a star")
    assert found.average.shape == (4, 4)
    assert np.isfinite(found.average).all()


def test_pictures_of_any_mode_and_files(localizer: Localizer, tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    expected = localizer.localize(image, "a star")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        same(localizer.localize(path, "a star"), expected)
    same(localizer.localize(image.convert("RGBA"), "a star"), expected)
    grey = localizer.localize(image.convert("L"), "a star")
    same(grey, localizer.localize(image.convert("L").convert("RGB"), "a star"))
    (tmp_path / "b.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"b\.jpg: not a picture"):
        localizer.localize(tmp_path / "b.jpg", "a star")


def test_the_number_of_texts(localizer: Localizer) -> None:
    assert localizer.localize_pairs([], []) == []
    with pytest.raises(ValueError, match="2 pictures, 1 texts"):
        localizer.localize_pairs([picture(), picture()], ["a star"])


def test_another_kind_of_blip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this needs one for matching"):
        Localizer.open(tiny_blip("caption", tmp_path / "caption"))
