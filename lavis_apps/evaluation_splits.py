"""What the weights were trained on, and whether that is what scores them.

Published weights by a small table with its sources; own ones by the manifest.json that train.py
leaves beside them, and by that of the model that they began from. No torch.

    python -m pytest tests/lavis_apps/test_evaluate.py

Reads manifest.json and adapter_config.json; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.comparison import learned_from, locate
from shared.options import portable_path, read_json

BLIP_CONFIGS = "https://github.com/salesforce/BLIP/blob/main/configs"
# Karpathy's training part is train2014 and 30,504 of the 40,504 pictures of val2014.
KARPATHY_TRAIN = ("train2014", "val2014")
# Split -> those of 2014 whose pictures it has; COCO 2017 has the same pictures, divided anew
# (https://cocodataset.org/#download).
PART_OF = {
    "karpathy_val": ("val2014",), "karpathy_test": ("val2014",),
    "train2017": ("train2014", "val2014"), "val2017": ("val2014",),
}  # fmt: skip


@dataclass(frozen=True)
class Training:
    """Splits that published weights were fine-tuned on: `coco` of COCO's pictures with captions,
    `vqa` of VQAv2's questions (about the same pictures)."""

    said: str
    source: str
    coco: tuple[str, ...] = ()
    vqa: tuple[str, ...] = ()


# Whether these are the weights before or after fine-tuning on COCO, their cards do not say; the
# pre-training had those captions too.
CAPTIONS = Training(
    "COCO captions, Karpathy's training part (train2014 and most of val2014), among others",
    f"{BLIP_CONFIGS}/caption_coco.yaml; {BLIP_CONFIGS}/pretrain.yaml", coco=KARPATHY_TRAIN,
)  # fmt: skip
RETRIEVAL = Training(
    "COCO captions, Karpathy's training part (train2014 and most of val2014)",
    f"{BLIP_CONFIGS}/retrieval_coco.yaml", coco=KARPATHY_TRAIN,
)  # fmt: skip
FLICKR = Training("Flickr30k, training part", f"{BLIP_CONFIGS}/retrieval_flickr.yaml")
VQA = Training(
    "VQAv2 train2014 and val2014, and Visual Genome's questions",
    f"{BLIP_CONFIGS}/vqa.yaml; https://github.com/salesforce/LAVIS/issues/488",
    vqa=("train2014", "val2014"),
)
CLIP = Training(
    "400 million pairs from the web (WIT), which are not published",
    "https://arxiv.org/abs/2103.00020, section 2.2",
)
PUBLISHED: dict[str, Training] = {
    "Salesforce/blip-image-captioning-base": CAPTIONS,
    "Salesforce/blip-image-captioning-large": CAPTIONS,
    "Salesforce/blip-itm-base-coco": RETRIEVAL,
    "Salesforce/blip-itm-large-coco": RETRIEVAL,
    "Salesforce/blip-itm-base-flickr": FLICKR,
    "Salesforce/blip-itm-large-flickr": FLICKR,
    "Salesforce/blip-vqa-base": VQA,
    "Salesforce/blip-vqa-capfilt-large": VQA,
    "openai/clip-vit-base-patch32": CLIP,
    "openai/clip-vit-base-patch16": CLIP,
    "openai/clip-vit-large-patch14": CLIP,
    "openai/clip-vit-large-patch14-336": CLIP,
}
NOT_KNOWN = "not known: no published weights by their name, and no manifest.json that says it"


def weights_saw(
    task: str, model: str, adapter: str | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """`trained_on` (lines in words), `saw` (questions, pictures, None where nothing says so) of a
    run with these options; `saw` "questions" means the very rows that are scored.

    `config`: data_root, split, data_hash, synthetic_data. Published weights never saw a toy's data.
    """
    lines: list[str] = []
    saw: str | None = None
    for path, manifest in _trainings(model, adapter):
        folder, data = portable_path(path), manifest.get("data")
        sets = data if isinstance(data, list) else [data] if data else []
        for one in sets:
            split = f", split {one['split']}" if one.get("split") else ""
            lines.append(f"{one.get('source')}{split} ({folder})")
            learned = str(manifest.get("task", task))
            if learned == "classification":  # every folder has a "train"; only COCO's are one
                one = {key: value for key, value in one.items() if value is not None}
            if any(learned_from({"data": one}, config | {"split": s}) for s in _within(config)):
                same = _rows_of(learned) == _rows_of(task)
                saw = "questions" if same else saw or "pictures"
        if not sets and manifest.get("synthetic"):
            lines.append(f"pictures that the toy world draws ({folder})")
    published = PUBLISHED.get("/".join(Path(_first_model(model, adapter)).parts[-2:]))
    if published is not None:
        lines.append(f"{published.said} ({published.source})")
        if not config.get("synthetic_data"):
            saw = saw or _saw_published(task, published, str(config.get("split")))
    return {"trained_on": lines or [NOT_KNOWN], "saw": saw}


def warning(found: Mapping[str, Any], split: str) -> str | None:
    """The line for the console and the page's red banner; None where nothing says so."""
    if found["saw"] is None:
        return None
    what = {
        "questions": f"The weights were trained on {split}, which is what scores them",
        "pictures": f"The weights were trained with pictures of {split}, though not on this task",
    }[found["saw"]]
    return f"{what}: {'; '.join(found['trained_on'])}"


def _within(config: Mapping[str, Any]) -> list[str]:
    """The split, and those that it is a part of."""
    split = str(config.get("split"))
    return [split, *PART_OF.get(split, ())]


def _rows_of(task: str) -> str:
    """What a task learns from or is scored by, of the same pictures."""
    return "captions" if task in ("caption", "retrieval", "matching") else task


def _saw_published(task: str, training: Training, split: str) -> str | None:
    own = training.vqa if task == "vqa" else training.coco
    if task not in ("classification", "localization") and split in own:
        return "questions"
    # Karpathy's test pictures are part of val2014: of all of it, as VQAv2 has it, not of COCO's
    seen = training.vqa if split.startswith("karpathy") else {*training.coco, *training.vqa}
    return "pictures" if {*_within({"split": split})} & {*seen} else None


def _trainings(model: str, adapter: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Manifests of the weights and of those that they began from, the newest first."""
    found: list[tuple[str, dict[str, Any]]] = []
    for folder in (adapter, model):
        while folder and (locate(folder) / "manifest.json").is_file():
            if locate(folder).resolve() in [locate(name).resolve() for name, _ in found]:
                break
            content = read_json(locate(folder) / "manifest.json")
            if not isinstance(content, dict):
                break
            found.append((folder, content))
            folder = content.get("base_model")
    return found


def _first_model(model: str, adapter: str | None) -> str:
    """The weights at the beginning: of an own training, the base that its manifest names."""
    known = [content.get("base_model") for _, content in _trainings(model, adapter)]
    return next((str(name) for name in reversed(known) if name), model)
