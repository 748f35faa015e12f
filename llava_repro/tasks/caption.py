"""COCO captions: five references a picture; BLEU first, METEOR, ROUGE-L and CIDEr beside it.

Reads captions_{split}.json or annotations/captions_{split}.json of a data root with COCO's pictures
(`shared.coco_captions`), or Karpathy's dataset_coco.json. LLaVA's papers report no captions; the
prompt is the one that LLaVA-1.5 learned with TextCaps (arXiv 2310.03744) and that lmms-eval asks
with (coco_cap). Scored as pycocoevalcap does (`shared.caption_score`), but over all pictures: a
missing caption is an empty one; a caption of no picture is an error in both.

    python llava_repro/evaluate.py --task caption --toy
    python llava_repro/score.py --task caption --answers answers.jsonl --annotations data/vqav2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_repro.tasks.common import Metrics, Record, Sample, Scored, Task, answer_of, row_by_row
from shared.caption_runs import score_run
from shared.coco_captions import SPLITS, load_captions
from shared.vqav2 import QuestionSet

PROMPTS = {
    "one_sentence": "Provide a one-sentence caption for the provided image.",
    "brief": "Describe the image briefly.",
}


def load(path: Path, split: str, prompt: str) -> QuestionSet:
    """One sample a picture of the split."""
    found = load_captions(path, split)
    asked = PROMPTS[prompt]
    samples = [
        Sample(**{**vars(picture), "question": asked}, prompt=asked, llava_id=picture.image_id)
        for picture in found.questions
    ]
    return QuestionSet(samples, found.problems)


def score(records: Mapping[str, Record], samples: Sequence[Sample]) -> tuple[Scored, Metrics]:
    """`accuracy` is BLEU-4 in percent, `captions` has every metric."""
    answers = [answer_of(records.get(sample.sample_id)) for sample in samples]
    scored, metrics = score_run(
        [
            {
                "sample_id": sample.sample_id,
                "image_id": sample.image_id,
                "question_type": None,
                "answer_type": None,
                "references": list(sample.references),
                "answer": answer,
                "status": "error" if answer is None else "ok",
                "finish_reason": None,
            }
            for sample, answer in zip(samples, answers, strict=True)
        ],
        expected=len(samples),
    )
    return scored, {
        "metric": metrics["metric"],
        "headline": metrics["accuracy"],
        "n": len(scored),
        "accuracy": metrics["accuracy"]["value"],
        "captions": metrics.get("captions"),
    }


def submission_row(sample: Sample, answer: str) -> dict[str, Any]:
    """Of what the official server and pycocoevalcap read."""
    return {"image_id": sample.image_id, "caption": answer}


TASK = Task(
    name="caption",
    data_folder="vqav2",
    splits=SPLITS,
    prompts={
        "one_sentence": "LLaVA-1.5's of TextCaps, and lmms-eval's",
        "brief": "describe the image briefly (the toy model learned it)",
    },
    load=load,
    score=score,
    submission=row_by_row(submission_row),
    max_new_tokens=64,
)
