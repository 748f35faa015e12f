"""LAVIS' processors, string by string and pixel by pixel."""

import random

import numpy as np
import pytest
from PIL import Image

from lavis_apps.processors import blip_caption, blip_image_eval, blip_image_train, blip_question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Dog.", "a dog"),
        ("a dog,running!  fast", "a dog,running fast"),
        ('(a) "b" *c* #d: e; f~g', "a b c d e f g"),
        ("end-of-day's sun?", "end-of-day's sun?"),  # - ' , ? stay
        ("a\n\nb \t c", "a b c"),  # a run of white space, whatever it holds, is one blank
        ("a\nb", "a\nb"),  # one line break alone stays
        ("  a  ", "a"),
        ("a\n", "a"),
        ("...", ""),
        ("", ""),
        ("ÄÖ É", "äö é"),
    ],
)
def test_caption(text: str, expected: str) -> None:
    assert blip_caption(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is it RED (or blue)?", "is it red or blue?"),
        ("what's this: a cat or a dog?", "what's this a cat or a dog?"),
        ("a.b", "ab"),  # deleted, no blank in its place
        ("a . b", "a  b"),  # so two blanks stay
        ("  where?  ", "  where?"),  # stripped on the right alone
        ("where?\n", "where?\n"),
        ("", ""),
    ],
)
def test_question(text: str, expected: str) -> None:
    assert blip_question(text) == expected


def test_words_are_cut_behind_the_fiftieth() -> None:
    words = [f"w{i}" for i in range(60)]
    assert blip_caption(" ".join(words)) == " ".join(words[:50])
    assert blip_question(" ".join(words)) == " ".join(words[:50])
    assert blip_caption(" ".join(words), prompt="A picture of ") == (
        "A picture of " + " ".join(words[:50])  # the prompt is neither counted nor lowered
    )
    assert blip_caption("a b c", max_words=2) == "a b"
    # runs of blanks are empty words to the question's counting, as in LAVIS
    assert blip_question("a  b c", max_words=3) == "a  b"


def test_eval_picture_is_squeezed_not_cropped() -> None:
    image = Image.new("RGB", (300, 100), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 20, 100))  # at the left edge: a middle crop would lose it
    pixels = blip_image_eval(image, 30, mean=(0, 0, 0), std=(1, 1, 1))
    assert pixels.shape == (3, 30, 30)
    assert pixels.dtype == np.float32
    assert pixels[:, :, 0].min() > 0.9
    assert pixels[:, :, 10:].max() == 0


def test_eval_picture_equals_transformers(tmp_path) -> None:
    from transformers import BlipImageProcessorPil

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (57, 83, 3), dtype=np.uint8))
    reference = BlipImageProcessorPil()(image, return_tensors="np")["pixel_values"][0]
    assert np.abs(blip_image_eval(image, 384) - reference).max() < 1e-5


def test_training_picture_follows_its_generator_alone() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 90, 3), dtype=np.uint8))
    first = [blip_image_train(image, 16, random.Random(seed)) for seed in range(8)]
    again = [blip_image_train(image, 16, random.Random(seed)) for seed in range(8)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) == 8
    assert all(a.shape == (3, 16, 16) and np.isfinite(a).all() for a in first)


def test_training_crops_keep_half_of_the_area_and_augmentation_is_optional() -> None:
    # a picture of one colour stays it under crops and mirrors, not under RandAugment
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    plain = [
        blip_image_train(image, 8, random.Random(s), (0, 0, 0), (1, 1, 1), augment=False)
        for s in range(20)
    ]
    assert all(np.allclose(p[0], 200 / 255, atol=1e-3) for p in plain)
    drawn = [blip_image_train(image, 8, random.Random(s), (0, 0, 0), (1, 1, 1)) for s in range(20)]
    assert any(not np.allclose(p[0], 200 / 255, atol=1e-3) for p in drawn)
    # the left half white: at most all of it can be cropped away from a crop of half the area
    image = Image.new("RGB", (1000, 10), (0, 0, 0))  # too long for the ratios: the middle is taken
    assert blip_image_train(image, 8, random.Random(0)).shape == (3, 8, 8)
