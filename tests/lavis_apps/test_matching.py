"""ITM and ITC of m pictures x n texts: pairs one by one, transformers' figures, [ENC], refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_apps import matching
from lavis_apps.blip import load_blip
from lavis_apps.matching import Matcher
from lavis_apps.settings import TOY_MODELS
from shared.images import ImageError
from shared.options import UserError
from tests.tiny_models import tiny_blip, tiny_blip2

TEXTS = ["a red star", "two blue squares and a picture of the red square", "x", "is there a star"]


@pytest.fixture(scope="module")
def matchers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Matcher]:
    return {
        "blip": Matcher.open(tiny_blip("matching", tmp_path_factory.mktemp("blip"))),
        "blip2": Matcher.open(tiny_blip2(tmp_path_factory.mktemp("blip2"))),
        "clip": Matcher.open(TOY_MODELS["clip"]),
    }


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("family", ["blip", "blip2", "clip"])
def test_the_matrix_is_its_pairs_one_by_one(family: str, matchers: dict[str, Matcher]) -> None:
    """Also captions of different lengths in one batch (LAVIS' BLIP-2 refuses them)."""
    matcher, images = matchers[family], pictures(3)
    whole = matcher.match(images, TEXTS, batch_size=2)
    assert whole.itc.shape == (3, 4)
    assert (whole.itm is None) == (family == "clip")
    for i, image in enumerate(images):
        for j, text in enumerate(TEXTS):
            alone = matcher.match(image, text)
            torch.testing.assert_close(alone.itc[0, 0], whole.itc[i, j])
            if whole.itm is not None:
                torch.testing.assert_close(alone.itm[0, 0], whole.itm[i, j])
    assert whole.itc.abs().max() <= 1 + 1e-6
    assert whole.itc.std(0).min() > 1e-4  # pictures differ, texts differ
    assert whole.itc.std(1).min() > 1e-4
    if whole.itm is not None:
        assert 0 <= whole.itm.min() < whole.itm.max() <= 1


@torch.no_grad()
def test_blip_equals_transformers_but_for_the_first_token(matchers: dict[str, Matcher]) -> None:
    matcher = matchers["blip"]
    blip = matcher.family.blip
    images = pictures(4)
    got = matcher.match(images, TEXTS)
    pixels = blip.pixel_values(images)
    cls, enc = (blip.tokens(TEXTS, first) for first in ("[CLS]", "[ENC]"))
    theirs = blip.model(pixel_values=pixels, use_itm_head=False, **cls).itm_score
    torch.testing.assert_close(got.itc, theirs)
    # one caption a picture: the diagonal
    with_enc = blip.model(pixel_values=pixels, **enc).itm_score.softmax(-1)[:, 1]
    torch.testing.assert_close(got.itm.diagonal(), with_enc)
    # what transformers' processor sends begins with [CLS]: another probability
    with_cls = blip.model(pixel_values=pixels, **cls).itm_score.softmax(-1)[:, 1]
    assert (got.itm.diagonal() - with_cls).abs().max() > 1e-3


@torch.no_grad()
def test_blip2_equals_transformers(matchers: dict[str, Matcher]) -> None:
    matcher = matchers["blip2"]
    family, images = matcher.family, pictures(4)
    got = matcher.match(images, TEXTS)
    inputs = {"pixel_values": family.pixel_values(images), **family.tokens(TEXTS)}
    itc = family.model(**inputs, use_image_text_matching_head=False)
    torch.testing.assert_close(got.itc, itc.logits_per_image)
    # the largest of the queries' cosines, by hand
    by_hand = torch.stack([(q @ itc.text_embeds.T).max(0).values for q in itc.image_embeds])
    torch.testing.assert_close(got.itc, by_hand)
    itm = family.model(**inputs, use_image_text_matching_head=True).logits_per_image
    torch.testing.assert_close(got.itm.diagonal(), itm.softmax(-1)[:, 1])  # one softmax, not two


def test_every_picture_is_encoded_once(
    matchers: dict[str, Matcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = matchers["blip"]
    monkeypatch.setattr(matching, "PAIRS", 3)
    sizes: list[int] = []
    pairs: list[int] = []
    tower, text = matcher.family.model.vision_model, matcher.family.model.text_encoder
    hooks = [
        tower.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
        ),
        text.register_forward_pre_hook(
            lambda _, args, kwargs: pairs.append(
                len(kwargs["input_ids"]) if "encoder_hidden_states" in kwargs else 0
            ),
            with_kwargs=True,
        ),
    ]
    got = matcher.match(pictures(5), TEXTS, batch_size=2)
    for hook in hooks:
        hook.remove()
    assert sizes == [2, 2, 1]
    assert sum(pairs) == 5 * 4
    assert max(pairs) == 3
    monkeypatch.setattr(matching, "PAIRS", 64)
    again = matcher.match(pictures(5), TEXTS)
    torch.testing.assert_close(got.itm, again.itm)


def test_three_lines(matchers: dict[str, Matcher], tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path, image in zip(paths, pictures(2), strict=True):
        image.save(path)
    folder = matchers["blip"].family.folder
    matcher = Matcher.open(folder)
    matches = matcher.match(paths, ["a dog runs", "the sea"])
    assert matches.itm.shape == matches.itc.shape == (2, 2)
    torch.testing.assert_close(Matcher.of(load_blip(folder)).match(paths, ["the sea"]).itm,
                               matches.itm[:, 1:])  # fmt: skip
    without = matcher.match(paths, ["the sea", "a dog runs"], itm=False)
    assert without.itm is None
    torch.testing.assert_close(without.itc[:, [1, 0]], matches.itc)


def test_texts_are_processed_as_lavis_does(matchers: dict[str, Matcher]) -> None:
    for family in ("blip", "blip2"):
        got = matchers[family].match(pictures(1), ["A (red) STAR!!", "a red star"])
        torch.testing.assert_close(got.itm[:, 0], got.itm[:, 1])
        torch.testing.assert_close(got.itc[:, 0], got.itc[:, 1])


def test_bad_input(matchers: dict[str, Matcher], tmp_path: Path) -> None:
    long = "star " * 2000  # 10,000 characters
    for matcher in matchers.values():
        got = matcher.match(pictures(1), ["a star", long])
        assert got.cut_texts == (1,)
        assert torch.isfinite(got.itc).all()
        with pytest.raises(UserError, match="text 2 of 2 is empty"):
            matcher.match(pictures(1), ["a star", " "])
        with pytest.raises(UserError, match="no text given"):
            matcher.match(pictures(1), [])
        with pytest.raises(UserError, match="no picture given"):
            matcher.match([], ["a star"])
    (tmp_path / "x.jpg").write_text("text")
    with pytest.raises(ImageError, match=r"x\.jpg: not a picture"):
        matchers["blip"].match(tmp_path / "x.jpg", "a star")
    with pytest.raises(UserError, match="a BLIP for vqa; this needs one for matching"):
        Matcher.of(load_blip(tiny_blip("vqa", tmp_path / "vqa")))


def test_pictures_of_every_kind(matchers: dict[str, Matcher]) -> None:
    odd = [
        Image.new("RGB", (1, 1)),
        Image.new("RGB", (20_000, 3), "red"),
        Image.new("CMYK", (30, 20)),
        Image.new("I;16", (30, 20)),
        Image.new("RGBA", (30, 20)),
        Image.new("1", (30, 20)),
    ]
    for matcher in matchers.values():
        assert torch.isfinite(matcher.match(odd, "a star").itc).all()
