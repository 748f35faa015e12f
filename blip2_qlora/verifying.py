"""What `--verify` says of a run: scores from its records, other figures from data and model.

python blip2_qlora/compare.py --verify outputs/blip2_qlora/RUN

Reads the run's folder, the train annotations for the blind figure, and the manifests that say what
is synthetic, where these are on this machine. Writes nothing. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blip2_qlora.scoring import blind_metrics, score_run, verify_run
from blip2_qlora.settings import data_folder
from shared.caption_runs import are_caption_runs, verify_captions
from shared.coco_captions import official_results
from shared.comparison import adapter_manifest, learned_from, locate
from shared.options import manifest_value, read_json
from shared.runs import Run
from shared.verification import not_scored_again, unequal
from shared.vqav2 import Question, annotations_file


def verify_all(run: Run) -> tuple[list[str], list[str]]:
    """What the folder says otherwise than records, data and model give, one line each; and the
    figures of metrics.json that nothing on this machine can tell again."""
    if are_caption_runs([run]):
        return verify_caption_run(run), []
    differing = verify_run(run)
    if not run.config.get("data") and not any(run.folder.glob("v2_OpenEnded_*_results.json")):
        differing.append("no official results file; the same evaluate.py command writes it")
    again = from_data(run)
    differing += unequal({key: run.metrics.get(key) for key in again}, again, "metrics.json")
    unknown = not_scored_again(run, score_run) - again.keys()
    return differing, sorted(key for key in unknown if run.metrics[key] is not None)


def verify_caption_run(run: Run) -> list[str]:
    """The same of a run of --task caption; what manifests say is left out."""
    differing = verify_captions(run)
    files = sorted(run.folder.glob("captions_*_results.json"))
    if not files:
        differing.append("no official results file; the same evaluate.py command writes it")
    for file in files:
        if read_json(file) != official_results(list(run.records.values())):
            differing.append(f"{file.name}: not the captions of predictions.jsonl")
    return differing


def from_data(run: Run) -> dict[str, Any]:
    """The figures that need more than the records, as far as data and model are on this machine."""
    config, again = run.config, {}
    root, rows, model = (config.get(key) for key in ("data_root", "data", "model"))
    data = locate(str(data_folder(root or "", rows)))
    if data.is_dir() and model and locate(model).is_dir():
        again["synthetic"] = {
            "data": bool(manifest_value(data, "synthetic")),
            "model": bool(manifest_value(locate(model), "synthetic")),
        }
        again["vqa_row_share"] = manifest_value(locate(model), "vqa_row_share")
    manifest = adapter_manifest(run)
    if manifest or not config.get("adapter"):
        again["trained_on_scored"] = learned_from(manifest, config)
    if not rows and annotations_file(data, "train2014").is_file():
        again["blind"] = blind_metrics(data, [question_of(r) for r in run.records.values()])
    elif rows:
        again["blind"] = None
    return again


def question_of(record: dict[str, Any]) -> Question:
    return Question(
        sample_id=record["sample_id"],
        image=Path(record["image"]),
        image_name=record["image"],
        image_id=record["image_id"],
        question=record["question"],
        references=tuple(record["references"]),
        question_type=record["question_type"],
        answer_type=record["answer_type"],
    )
