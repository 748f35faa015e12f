"""LAVIS' text and image processors with their exact semantics, without torchvision.

    blip_caption("A dog, running!  (fast)")     -> "a dog, running fast"
    blip_question("Is it RED (or blue)?")       -> "is it red or blue?"
    blip_image_eval(image, 384)                 -> (3, 384, 384) float32

`blip_caption` puts a blank where it takes a character out, `blip_question` nothing, and only the
former collapses blanks and strips the front (LAVIS, lavis/processors/blip_processors.py:
https://github.com/salesforce/LAVIS/blob/main/lavis/processors/blip_processors.py). The image
processors squeeze a picture to a square, they crop nothing. Reads and writes nothing; no torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MAX_WORDS = 50
CAPTION_PROMPT = "a picture of "  # BLIP's, in front of captions in training and generation
_TAKEN_OUT = re.compile(r'[.!"()*#:;~]')
_BLANKS = re.compile(r"\s{2,}")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MIN_CROP_SHARE = 0.5  # of the area that a training crop keeps
CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default of RandomResizedCrop
CROP_TRIES = 10
AUGMENTATIONS, MAGNITUDE, LEVELS = 2, 5, 10  # RandAugment(2, 5): two operations, level 5 of 10


def blip_caption(text: str, prompt: str = "", max_words: int = MAX_WORDS) -> str:
    """What LAVIS' `blip_caption` makes of a caption or of a text to match.

    Lower case; `. ! " ( ) * # : ; ~` become blanks; runs of white space one blank; stripped; cut
    behind `max_words` words; `prompt` (not itself processed, not counted) in front.
    """
    text = _TAKEN_OUT.sub(" ", text.lower())
    text = _BLANKS.sub(" ", text).rstrip("\n").strip(" ")
    return prompt + _first_words(text, max_words)


def blip_question(text: str, max_words: int = MAX_WORDS) -> str:
    """What LAVIS' `blip_question` makes of a question.

    Lower case; `. ! " ( ) * # : ; ~` are deleted ("?" stays); blanks at the end are; cut behind
    `max_words` words. Blanks in front and runs of blanks stay, as there.
    """
    return _first_words(_TAKEN_OUT.sub("", text.lower()).rstrip(" "), max_words)


def _first_words(text: str, count: int) -> str:
    words = text.split(" ")  # as there: a run of blanks holds empty words
    return text if len(words) <= count else " ".join(words[:count])


def blip_image_eval(
    image: Image, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> np.ndarray:
    """An RGB picture squeezed to `size` x `size` (bicubic), normalised: (3, size, size) float32."""
    from PIL import Image as PillowImage

    return _normalised(image.resize((size, size), PillowImage.Resampling.BICUBIC), mean, std)


def blip_image_train(
    image: Image,
    size: int,
    rng: random.Random,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    *,
    augment: bool = True,
) -> np.ndarray:
    """LAVIS' training picture, (3, size, size) float32: a random crop of half the area or more,
    mirrored half of the time, and with `augment` RandAugment(2, 5).

    Everything is drawn from `rng`, so that a resumed training sees the pictures it would have seen.
    """
    from PIL import Image as PillowImage

    image = _random_crop(image, size, rng)
    if rng.random() < 0.5:
        image = image.transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT)
    if augment:
        for name in rng.choices(_OPERATIONS, k=AUGMENTATIONS):
            if rng.random() < 0.5:  # LAVIS applies each chosen operation half of the time
                image = _augmented(image, name, rng)
    return _normalised(image, mean, std)


def _normalised(image: Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    import numpy as np

    pixels = np.asarray(image, dtype=np.float32) / 255  # (H, W, 3)
    pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _random_crop(image: Image, size: int, rng: random.Random) -> Image:
    """torchvision's RandomResizedCrop(size, scale=(0.5, 1)), bicubic."""
    import math

    from PIL import Image as PillowImage

    width, height = image.size
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(MIN_CROP_SHARE, 1.0)
        ratio = math.exp(rng.uniform(*(math.log(r) for r in CROP_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            break
    else:  # a very long picture: its middle, as near to the allowed ratios as it goes
        low, high = CROP_RATIO
        w = min(width, max(1, round(height * high)))
        h = min(height, max(1, round(width / low)))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), PillowImage.Resampling.BICUBIC, box=box)


_OPERATIONS = (
    "identity",
    "autocontrast",
    "brightness",
    "sharpness",
    "equalize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)


def _augmented(image: Image, name: str, rng: random.Random) -> Image:
    """One operation of RandAugment at `MAGNITUDE`; empty corners are filled with mid grey."""
    from PIL import Image as PillowImage
    from PIL import ImageEnhance, ImageOps

    share = MAGNITUDE / LEVELS
    sign = rng.choice((-1, 1))
    if name == "autocontrast":
        return ImageOps.autocontrast(image)
    if name == "equalize":
        return ImageOps.equalize(image)
    if name == "brightness":
        return ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * share)
    if name == "sharpness":
        return ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * share)
    grey = (128, 128, 128)
    if name == "rotate":
        return image.rotate(sign * 30 * share, fillcolor=grey)
    moves = {
        "shear_x": (1, sign * 0.3 * share, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * share, 1, 0),
        "translate_x": (1, 0, sign * 10 * share, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * 10 * share),
    }
    if name in moves:
        affine = PillowImage.Transform.AFFINE
        return image.transform(image.size, affine, moves[name], fillcolor=grey)
    return image
