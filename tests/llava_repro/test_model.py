"""The model equals transformers' LLaVA, and refuses what transformers would get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_repro.model import Llava

TOWERS = ("clip", "siglip", "chinese_clip")
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
STRATEGIES = {
    "default": {"strategy": "default", "layer": -2},
    "full": {"strategy": "full", "layer": -2},
    "last": {"strategy": "full", "layer": -1},
    "two layers": {"strategy": "full", "layer": (1, -2)},
}


def per_image(config: Any) -> int:
    vision = config.vision_config
    kept = config.vision_feature_select_strategy == "full" and "siglip" not in vision.model_type
    return (vision.image_size // vision.patch_size) ** 2 + int(kept)


def make_batch(config: Any, side: str) -> dict[str, Tensor]:
    """Three rows of unequal length with one, no and two images."""
    generator = torch.Generator().manual_seed(0)
    image = [config.image_token_index] * per_image(config)

    def words(n: int) -> list[int]:
        return torch.randint(3, 250, (n,), generator=generator).tolist()

    rows = [
        [1, *words(4), *image, *words(9)],
        [1, *words(11)],
        [1, *image, *words(5), *image, *words(3)],
    ]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    left = side == "left"
    ids = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [p + o if left else o + p for p, o in zip(pads, ones, strict=True)]
    size = config.vision_config.image_size
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.randn(3, 3, size, size, generator=generator),
    }


def load_both(folder: Path) -> tuple[Llava, LlavaForConditionalGeneration]:
    ours = Llava.from_pretrained(folder, dtype="float32", device="cpu")
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return ours, theirs


def combinations() -> list[Any]:
    found = []
    for tower in TOWERS:
        for text in LANGUAGE_MODELS:
            for name in STRATEGIES:
                if tower == "siglip" and name == "default":
                    continue  # refused: it would drop a patch
                found.append(pytest.param(tower, text, name, id=f"{tower}-{text}-{name}"))
    return found


@pytest.mark.parametrize(("tower", "text", "strategy"), combinations())
def test_logits_and_greedy_tokens_equal_transformers(tiny_llava_folder, tower, text, strategy):
    ours, theirs = load_both(tiny_llava_folder(tower, text, **STRATEGIES[strategy]))
    for side in ("left", "right"):
        batch = make_batch(ours.config, side)
        with torch.no_grad():
            expected = theirs(**batch).logits
            found = ours(**batch).logits
        kept = batch["attention_mask"].bool()
        torch.testing.assert_close(found[kept], expected[kept], atol=1e-4, rtol=1e-4)
    batch = make_batch(ours.config, "left")
    expected = theirs.generate(**batch, max_new_tokens=8, do_sample=False)
    found = ours.generate(**batch, max_new_tokens=8, do_sample=False)
    assert found.tolist() == expected.tolist()
