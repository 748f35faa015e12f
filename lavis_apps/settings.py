"""Where this experiment's runs, models and toy data lie; each script's options are beside it."""

from __future__ import annotations

from pathlib import Path

from shared.options import DATA_ROOT, OUTPUTS

EXPERIMENT = "lavis_apps"
RUNS = OUTPUTS / EXPERIMENT
TASKS = (
    "caption",
    "vqa",
    "matching",
    "classification",
    "features",
    "localization",
    "search",
)
TOY_SETS = DATA_ROOT / "toy"
TOY_IMAGES = TOY_SETS / "vqav2" / "val2014"  # what predict.py and build_index.py --toy look at
TOY_INDEX = RUNS / "index_toy"  # of TOY_IMAGES
# by kind (blip.py): what a folder can do
TOY_MODELS: dict[str, Path] = {
    "caption": DATA_ROOT / "toy_models" / "blip_caption",
    "vqa": DATA_ROOT / "toy_models" / "blip_vqa",
    "matching": DATA_ROOT / "toy_models" / "blip_itm",
    "clip": DATA_ROOT / "toy_models" / "clip",
}
PUBLISHED_MODELS: dict[str, str] = {
    "caption": "Salesforce/blip-image-captioning-base",
    "vqa": "Salesforce/blip-vqa-base",
    "matching": "Salesforce/blip-itm-base-coco",
    "clip": "openai/clip-vit-base-patch32",
}
# the kind of model that a task takes unless --model says otherwise
TASK_KINDS: dict[str, str] = {
    "caption": "caption",
    "vqa": "vqa",
    "matching": "matching",
    "classification": "matching",
    "features": "matching",
    "localization": "matching",
    "search": "matching",
    "retrieval": "matching",
}


def default_model(task: str, *, toy: bool = False) -> str:
    """The folder or Hub id that a task (`TASKS`, or retrieval) takes by default."""
    kind = TASK_KINDS[task]
    return str(TOY_MODELS[kind]) if toy else PUBLISHED_MODELS[kind]
