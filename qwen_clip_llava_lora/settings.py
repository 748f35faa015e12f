"""Where this experiment's runs, models and toy data lie; each script's options are beside it."""

from __future__ import annotations

from pathlib import Path

from shared.options import DATA_ROOT, OUTPUTS

EXPERIMENT = "qwen_clip_llava_lora"
RUNS = OUTPUTS / EXPERIMENT
TOY_QWEN2 = DATA_ROOT / "toy_models" / "qwen2"
TOY_CLIP = DATA_ROOT / "toy_models" / "clip"
TOY_MERGED = RUNS / "toy_merged"  # merge_model.py --toy
TOY_SETS = DATA_ROOT / "toy"  # cc3m_595k, descriptions, medtrinity, affectnet (toy_sets.py)
TOY_SHARES = {"validation_share": 0.1, "test_share": 0.1}  # prepare_data.py: the sets are small
# published numbers of the models, for plans where a model is not on disk
ARCHITECTURES = Path(__file__).with_name("architectures.json")
