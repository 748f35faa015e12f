"""How the toy LLaVA is made: the settings of its two stages, found by trial on the toy world.

`TRAINING` is what `train.py --toy` uses where no flag says otherwise; `make_toy_model.py` runs the
same two stages and measures. Towers: the committed toy CLIP and toy Qwen2
(`shared/toy_world/clip.py`, `qwen2.py`). A change here makes the committed toy LLaVA stale.
"""

from pathlib import Path
from typing import Any

from shared.options import DATA_ROOT
from shared.toy_world import clip, conversations, qwen2
from shared.toy_world.build import read_manifest
from shared.toy_world.recipe import recipe_hash

SOURCES = (*conversations.SOURCES, *clip.SOURCES, *qwen2.SOURCES, Path(__file__))

VISION_FEATURE_LAYER = clip.READ_LAYER  # where the toy CLIP's patches learned what they show

# stage -> fields of TrainOptions and TrainingArguments
TRAINING: dict[str, dict[str, Any]] = {
    "pretrain": {
        "max_steps": 100,
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-3,
        "warmup_steps": 10,
        "validation_samples": 100,
        "eval_steps": 50,
        "save_steps": 50,
    },
    "finetune": {
        "max_steps": 450,
        "per_device_train_batch_size": 32,
        "group_by_length": True,
        "learning_rate": 2e-3,
        "warmup_steps": 50,
        "validation_samples": 100,
        "eval_steps": 225,
        "save_steps": 225,
    },
}


def tower_hashes() -> dict[str, str]:
    """The recipe hashes of the committed towers that a toy LLaVA is made of."""
    return {
        name: str(read_manifest(DATA_ROOT / "toy_models" / name).get("recipe_hash"))
        for name in ("clip", "qwen2")
    }


def toy_recipe_hash() -> str:
    """The hash that the manifest of a toy LLaVA made by this recipe holds."""
    return recipe_hash(SOURCES)
