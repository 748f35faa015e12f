"""Small hand-made COCO folders, and the toy world's split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CATEGORIES = {1: "person", 3: "car", 17: "cat", 18: "dog", 44: "bottle", 88: "teddy bear"}
FIRST_IMAGE = 1_000
Thing = dict[str, Any]


def thing(
    name: str, box: Sequence[float], *, area: float | None = None, crowd: bool = False
) -> Thing:
    """One object of a hand-made picture; its mask fills its box unless `area` says otherwise."""
    return {"name": name, "box": list(box), "area": area, "crowd": crowd}


def instances_content(pictures: Sequence[Sequence[Thing]], size: int = 100) -> dict[str, Any]:
    """The content of an instances file; picture i has the id 1000 + 37 i."""
    ids = {name: number for number, name in CATEGORIES.items()}
    images, annotations = [], []
    for place, things in enumerate(pictures):
        image_id = FIRST_IMAGE + 37 * place
        name = f"{image_id:012d}.jpg"
        images.append(
            {"license": 1, "file_name": name, "height": size, "width": size, "id": image_id}
        )
        for row in things:
            x, y, width, height = row["box"]
            polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            runs = {"counts": [0, size * size], "size": [size, size]}
            annotations.append(
                {
                    "segmentation": runs if row["crowd"] else polygon,
                    "area": width * height if row["area"] is None else row["area"],
                    "iscrowd": int(row["crowd"]),
                    "image_id": image_id,
                    "bbox": row["box"],
                    "category_id": ids[row["name"]],
                    "id": 5_000 + 11 * len(annotations),
                }
            )
    return {
        "info": {"description": "made by hand"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": "", "id": number, "name": name} for number, name in CATEGORIES.items()
        ],
    }


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """Writes a data root (annotations/, val2017/) with the given things in its pictures."""

    def make(pictures: Sequence[Sequence[Thing]], size: int = 100) -> Path:
        root = tmp_path / "coco2017"
        (root / "annotations").mkdir(parents=True)
        (root / "val2017").mkdir()
        content = instances_content(pictures, size)
        (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
        for image in content["images"]:
            noise = np.random.default_rng(image["id"]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((size, size))
            picture.save(root / "val2017" / image["file_name"], quality=90)
        return root

    return make


@pytest.fixture(scope="session")
def toy_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world's split, as `make_known_from_coco.py --toy` makes it. Don't write into it."""
    from llava_openset.split_writing import ensure_toy_split

    return ensure_toy_split(tmp_path_factory.mktemp("split") / "toy_split")


KNOWN, HELD_BACK = ("dog", "cat", "car"), ("bird", "boat")
N_TEST, N_VALIDATION = 6, 4  # of each class


@pytest.fixture
def hand_made_split(tmp_path: Path) -> Callable[..., Path]:
    """A hand-made split folder of small pictures, five classes, synthetic unless said otherwise."""

    def make(
        name: str = "split",
        known: Sequence[str] = KNOWN,
        unknown: Sequence[str] = HELD_BACK,
        *,
        seed: int = 0,
        synthetic: bool = True,
        **rules: Any,
    ) -> Path:
        folder = tmp_path / name
        samples = []
        for k, label in enumerate([*known, *unknown]):
            side = "known" if label in known else "unknown"
            (folder / f"{side}_images").mkdir(parents=True, exist_ok=True)
            for i in range(N_TEST + N_VALIDATION):
                image_id = 100 * k + i
                file = f"{side}_images/{image_id:012d}.png"
                Image.new("RGB", (24, 18), (40 * k, 20 * i, 90)).save(folder / file)
                samples.append({
                    "sample_id": str(image_id), "file": file, "label": label,
                    "known": side == "known", "part": "test" if i < N_TEST else "validation",
                    "image_id": image_id, "box": None, "present": [label],
                })  # fmt: skip
        content = {
            "version": 1, "synthetic": synthetic, "seed": seed,
            "rules": {"unit": "image", "n_per_class": N_TEST} | rules,
            "classes": {"known": list(known), "unknown": list(unknown)}, "samples": samples,
            "left_out": {}, "caveats": ["A caveat of this split."],
            "data_hash": f"{name}-{seed}-{'-'.join(known)}",
        }  # fmt: skip
        (folder / "split.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def scored_run(
    tmp_path: Path, hand_made_split: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A finished run folder: records made up by a rule, scored by evaluate.py's own code.

    `skill` is how often a known sample is named rightly and an unknown one not named, and how far
    apart their scores are; with 0 both are alike. `rows` changes records before they are written.
    """
    import random
    from functools import partial

    from llava_openset import evaluate, scoring
    from llava_openset.evaluation_summary import write_rows
    from llava_openset.protocols import CHOICE_PROTOCOLS, Query, choices_of, job_of, queries
    from llava_openset.samples import read_split
    from llava_openset.settings import PROTOCOLS, EvaluateOptions
    from shared.options import write_json

    # what is under test is not how wide the intervals are
    few = partial(scoring.bootstrap_intervals, n_resamples=50)
    monkeypatch.setattr(scoring, "bootstrap_intervals", few)

    def record(query: Query, classes: Sequence[str], question: str, skill: float, seed: int) -> Any:
        job = job_of(query, classes, question)
        chance = random.Random(f"{query.key} {query.protocol} {seed}")
        sure = chance.random() < skill
        label = query.sample.label
        made = {
            "sample_id": query.key, "image": query.sample.file, "image_id": query.sample.image_id,
            "question": question, "prompt": job.prompt, "finish_reason": "stop", "n_tokens": 2,
            "seconds": 0.1, "status": "ok", "error": None, "references": [label],
            "question_type": None, "answer_type": None,
        } | job.details  # fmt: skip
        offered = query.offered(classes)
        if query.protocol in CHOICE_PROTOCOLS:
            names = choices_of(job)
            right = label if query.known and sure else chance.choice(offered)
            lift = 2 * query.known * skill + 2 * chance.random()
            probs = [lift * (owner == right) - 2.0 for owner in made["choice_classes"]]
            return made | {"choices": names, "choice_log_probs": probs, "answer": right,
                           "choice_n_tokens": [1] * len(names), "raw_output": right,
                           "confidence": 0.5, "first_token_confidence": None}  # fmt: skip
        answer = f"a {label}" if sure else f"a {chance.choice(offered)}"
        return made | {"answer": answer, "raw_output": answer,
                       "confidence": 0.2 + 0.7 * chance.random(),
                       "first_token_confidence": 0.5}  # fmt: skip

    def make(
        name: str = "run",
        split: Path | None = None,
        *,
        skill: float = 0.8,
        seed: int = 0,
        protocols: Sequence[str] = PROTOCOLS,
        variants: Sequence[str] = ("open", "list_unknown"),
        change: Callable[[dict[str, Any]], None] = lambda row: None,
        config: dict[str, Any] | None = None,
        **flags: Any,
    ) -> Path:
        split = split or (
            tmp_path / "split" if (tmp_path / "split").is_dir() else hand_made_split()
        )  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        options = EvaluateOptions(
            split=str(split), model="some/model", output_dir=str(folder), protocol=list(protocols),
            freetext_variants=list(variants), **flags,
        )  # fmt: skip
        whole = read_split(split)
        samples = [s for s in whole.samples if options.part == "all" or s.part == "test"]
        if options.limit:
            samples = samples[: options.limit]
        content = {"script": "evaluate", "data_hash": whole.data_hash, "model": options.model,
                   "model_fingerprint": "0123", "synthetic": {"data": whole.synthetic,
                   "model": False}} | options.run_options | (config or {})  # fmt: skip
        write_json(folder / "config.json", content)
        for protocol in protocols:
            rows = [
                record(query, whole.classes.known, options.question, skill, seed)
                for query in queries(protocol, samples, variants)
            ]
            for row in rows:
                change(row)
            write_rows(folder / f"predictions_{protocol}.jsonl", rows)
        scored, metrics = evaluate.score(options, whole, samples, folder)
        write_rows(folder / "scored.jsonl", scored)
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "environment.json", {"command": "evaluate.py --split split"})
        return folder

    return make
