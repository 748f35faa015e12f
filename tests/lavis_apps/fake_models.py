"""A cheap model for the tests of index and search: a picture's colours are its features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis_apps.index_building import build

IDENTITY: dict[str, Any] = {
    "name": "fake", "fingerprint": "1111", "adapter": None, "adapter_fingerprint": None,
    "processor": {"image_mean": [0.0]}, "synthetic": False,
}  # fmt: skip


class FakeEmbedder:
    """Features: the nine colours of the picture shrunk to 3 x 3, and a constant; counts its work"""

    size = 28

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.texts: list[str] = []

    @property
    def n_pictures(self) -> int:
        return sum(self.batches)

    def image_features(self, images: Sequence[Image.Image]) -> Any:
        import torch

        self.batches.append(len(images))
        return torch.from_numpy(np.stack([colour_features(image) for image in images]))

    def text_features(self, texts: Sequence[str]) -> Any:
        """A text "0.1 0.9 0.3" asks for pictures of that colour."""
        import torch

        self.texts += texts
        colours = [tuple(round(255 * float(part)) for part in text.split()) for text in texts]
        pictures = [Image.new("RGB", (3, 3), colour) for colour in colours]
        return torch.from_numpy(np.stack([colour_features(picture) for picture in pictures]))


def colour_features(image: Image.Image) -> np.ndarray:
    small = image.resize((3, 3), Image.Resampling.BOX)
    vector = np.append(np.asarray(small, dtype=np.float32).flatten() - 127, 50).astype(np.float32)
    return vector / np.linalg.norm(vector)


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour of its own for each number below 16 million."""
    mixed = number * 40_503 % (1 << 24)
    return mixed & 255, mixed >> 8 & 255, mixed >> 16


def draw_pictures(folder: Path, n: int, start: int = 0) -> Path:
    """0000.png, 0001.png, ... of one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + n):
        Image.new("RGB", (3, 3), colour_of(number)).save(folder / f"{number:04}.png")
    return folder


def expected_vectors(folder: Path, names: Sequence[str]) -> np.ndarray:
    rows = []
    for name in names:
        with Image.open(folder / name) as image:
            rows.append(colour_features(image.convert("RGB")))
    return np.stack(rows)


def make_index(folder: Path, n: int) -> Path:
    """FOLDER/index of FOLDER/pictures, where `n` pictures are drawn first."""
    pictures = draw_pictures(folder / "pictures", n)
    build(pictures, folder / "index", IDENTITY, FakeEmbedder, progress=False)
    return folder / "index"
