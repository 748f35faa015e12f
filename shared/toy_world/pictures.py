"""Draws the toy pictures with Pillow: scenes of one to three coloured shapes, 64x64 pixels.

A scene is sampled first (what, where, how large) and then drawn at three times its size and
reduced, so that edges are smooth. Everything follows from the random generator that is passed in.
"""

import io
import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from shared.toy_world.shapes import COLORS, GROUNDS, KNOWN_SHAPES, Item, Scene, outline

SIZE = 64
SUPERSAMPLE = 3
MAX_ITEMS = 3
ANGLE = 10.0  # degrees of rotation either way
COLOR_JITTER = 18
NOISE = 8
JPEG_QUALITY = 95
# The chance that a further item repeats the shape or the colour of one already there, so that
# "how many red shapes" has answers above one often enough to be balanced.
REPEAT = 0.35


def sample_scene(
    rng: random.Random, shapes: Sequence[str] = KNOWN_SHAPES, count: int | None = None
) -> Scene:
    """A scene of `count` (default: one to three) shapes whose circles do not overlap."""
    count = count or rng.randint(1, MAX_ITEMS)
    while True:
        items: list[Item] = []
        for _ in range(40):
            if len(items) == count:
                break
            radius = rng.uniform(10, 16 if count == 1 else 14 if count == 2 else 13)
            x, y = (rng.uniform(radius + 1, SIZE - 1 - radius) for _ in range(2))
            if all(math.hypot(x - o.x, y - o.y) > radius + o.radius for o in items):
                shape, color = _sample_kind(rng, items, shapes)
                items.append(Item(shape, color, x, y, radius, rng.uniform(-ANGLE, ANGLE)))
        if len(items) == count:
            return Scene(tuple(items), rng.choice(GROUNDS), rng.random() < 0.5)


def _sample_kind(
    rng: random.Random, items: Sequence[Item], shapes: Sequence[str]
) -> tuple[str, str]:
    shape, color = rng.choice(shapes), rng.choice(list(COLORS))
    if items and rng.random() < REPEAT:
        other = rng.choice(items)
        if rng.random() < 0.5:
            shape = other.shape
        else:
            color = other.color
    return shape, color


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The picture of a scene, RGB, SIZE x SIZE. `rng` gives colour jitter and noise."""
    scale = SIZE * SUPERSAMPLE
    picture = Image.new("RGB", (scale, scale), scene.ground)
    for item in scene.items:
        mask = Image.new("L", (scale, scale), 0)
        pen = ImageDraw.Draw(mask)
        filled, holes = outline(item.shape)
        for polygons, value in ((filled, 255), (holes, 0)):
            for polygon in polygons:
                pen.polygon([_place(point, item) for point in polygon], fill=value)
        color = tuple(
            max(0, min(255, channel + rng.randint(-COLOR_JITTER, COLOR_JITTER)))
            for channel in COLORS[item.color]
        )
        picture.paste(color, mask=mask)
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    if scene.noisy:
        noise = np.random.default_rng(rng.getrandbits(32)).integers(
            -NOISE, NOISE + 1, size=(SIZE, SIZE, 1)
        )
        picture = Image.fromarray(
            np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
        )
    return picture


def _place(point: tuple[float, float], item: Item) -> tuple[float, float]:
    angle = math.radians(item.angle)
    x = point[0] * math.cos(angle) - point[1] * math.sin(angle)
    y = point[0] * math.sin(angle) + point[1] * math.cos(angle)
    return (
        (item.x + x * item.radius) * SUPERSAMPLE,
        (item.y + y * item.radius) * SUPERSAMPLE,
    )


def jpeg_bytes(picture: Image.Image) -> bytes:
    """The picture as the dataset's files hold it (JPEG without chroma subsampling)."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def scene_and_jpeg(
    key: str, shapes: Sequence[str] = KNOWN_SHAPES, count: int | None = None
) -> tuple[Scene, bytes]:
    """Scene and JPEG file of the picture named by `key`, such as '0/train2014/17'.

    The key alone decides the picture, so that splits and the pictures that a training recipe
    draws for itself come from ranges that cannot meet.
    """
    rng = random.Random(key)
    scene = sample_scene(rng, shapes, count)
    return scene, jpeg_bytes(draw(scene, rng))
