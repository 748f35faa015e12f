"""The toy world's vocabulary: twelve shapes, six colours, grounds, and which shapes are held back.

Held-back shapes play the unknown classes of the open-set experiment: no training recipe and no
VQA or caption picture shows them. They are drawn by a seed that was fixed before any figure was
looked at. Outlines are polygons in a unit circle, so that one routine draws all of them.
"""

import math
import random
from dataclasses import dataclass

Point = tuple[float, float]
Polygon = list[Point]

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "diamond",
    "crescent",
    "arrow",
    "frame",
    "stripes",
)
HELD_BACK_SEED = 0
HELD_BACK_COUNT = 4
HELD_BACK_SHAPES = tuple(sorted(random.Random(HELD_BACK_SEED).sample(SHAPES, HELD_BACK_COUNT)))
KNOWN_SHAPES = tuple(shape for shape in SHAPES if shape not in HELD_BACK_SHAPES)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (235, 190, 20),
    "purple": (140, 50, 170),
    "cyan": (30, 190, 205),
}
# Light grounds only: on dark or mixed ones a tower of this size learns many times slower.
GROUNDS = ((248, 248, 248), (238, 238, 232), (235, 238, 245), (250, 244, 236))


@dataclass(frozen=True)
class Item:
    """One drawn shape. Centre and radius are in pixels of the final picture, angle in degrees."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn: its items, ground colour and whether it carries noise."""

    items: tuple[Item, ...]
    ground: tuple[int, int, int]
    noisy: bool


def plural(noun: str) -> str:
    """The plural used in questions and captions: 'cross' -> 'crosses', 'star' -> 'stars'."""
    return noun + "es" if noun.endswith("s") else noun + "s"


def outline(shape: str) -> tuple[list[Polygon], list[Polygon]]:
    """(filled polygons, holes cut out of them) of a shape within the unit circle, y downwards.

    Raises KeyError for a name that is not in SHAPES.
    """
    return _OUTLINES[shape]


def _arc(radius: float, center: Point = (0.0, 0.0), start: float = 0, stop: float = 360) -> Polygon:
    steps = 48
    angles = [math.radians(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return [(center[0] + radius * math.cos(a), center[1] + radius * math.sin(a)) for a in angles]


def _rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star() -> Polygon:
    points = []
    for i in range(10):
        radius = 1.0 if i % 2 == 0 else 0.42
        angle = math.radians(-90 + 36 * i)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> Polygon:
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 16))
    return points


_OUTLINES: dict[str, tuple[list[Polygon], list[Polygon]]] = {
    "circle": ([_arc(0.92)], []),
    "square": ([_rectangle(-0.78, -0.78, 0.78, 0.78)], []),
    "triangle": ([[(0.0, -0.98), (0.98, 0.72), (-0.98, 0.72)]], []),
    "star": ([_star()], []),
    "heart": ([_heart()], []),
    "cross": ([_rectangle(-0.3, -0.95, 0.3, 0.95), _rectangle(-0.95, -0.3, 0.95, 0.3)], []),
    "ring": ([_arc(0.95)], [_arc(0.52)]),
    "diamond": ([[(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]], []),
    "crescent": ([_arc(0.95)], [_arc(0.78, center=(0.45, 0.0))]),
    "arrow": (
        [
            [
                (-0.95, -0.28),
                (0.1, -0.28),
                (0.1, -0.8),
                (1.0, 0.0),
                (0.1, 0.8),
                (0.1, 0.28),
                (-0.95, 0.28),
            ]
        ],
        [],
    ),
    "frame": ([_rectangle(-0.85, -0.85, 0.85, 0.85)], [_rectangle(-0.45, -0.45, 0.45, 0.45)]),
    "stripes": (
        [
            _rectangle(-0.85, -0.8, 0.85, -0.4),
            _rectangle(-0.85, -0.2, 0.85, 0.2),
            _rectangle(-0.85, 0.4, 0.85, 0.8),
        ],
        [],
    ),
}
