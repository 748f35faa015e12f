"""A model on a split: records of every sample, then scores. What evaluate.py and train.py share.

    data = load_task_data("retrieval", data_root, "val2014")
    metrics = evaluate_model("retrieval", blip, data.samples, Asking(), folder)
    metrics["accuracy"]["value"], metrics["selection"]["value"]

The figure that train.py prints comes from this very function, with the same samples and settings as
evaluate.py's. Reads the samples' pictures; writes predictions.jsonl into the run folder, if one is
given, and goes on with one that is there.

    python lavis_apps/evaluate.py --toy --task retrieval
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavis_apps.evaluation_settings import Asking
from shared.options import UserError


def evaluate_model(
    task: str,
    model: Any,
    samples: Sequence[Any],
    settings: Asking,
    folder: Path | None = None,
    *,
    classes: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """The metrics of `model` on `samples`, as metrics.json holds them.

    `model`: a `Blip` of the task's kind (blip.py), for retrieval and classification any object with
    `image_features(images)` and `text_features(texts)` too (CLIP). `samples`: as `load_task_data`
    gives them, `classes` its names for classification. `folder`: where predictions.jsonl is written
    and read; None keeps nothing. The model is asked as it is: the caller sets eval mode.

    `accuracy` is the headline in percent with its interval (caption: BLEU-4; vqa: official
    accuracy; retrieval: mean recall; classification: top-1 accuracy), `selection` the figure by
    which the best checkpoint is chosen, higher is better (caption: CIDEr, else the headline).
    """
    raise UserError(f"task {task!r} is not measured")
