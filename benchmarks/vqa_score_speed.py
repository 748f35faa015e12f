"""How long official VQA scoring takes on a set of the size of VQAv2's validation split.

Draws questions, ten annotators each and predictions in memory (seeded; answers frequent as in
natural data, some with punctuation, capitals and number words, some typed by one annotator only),
then times `shared.vqa_score.score_vqa` on one core, memo empty as in a fresh process. Reading the
files is not in it.

    python benchmarks/vqa_score_speed.py
    python benchmarks/vqa_score_speed.py | tee benchmarks/results/vqa_score_speed_$(date +%F).json

Reads nothing; prints one JSON line.
"""

import argparse
import datetime
import json
import os
import platform
import random
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from shared.vqa_score import PROTOCOLS, score_vqa

N_QUESTIONS = 214_354  # VQA v2.0 validation
N_IMAGES = 40_504
N_ANSWERS = 20_000  # distinct answers that several annotators give
N_QUESTION_TYPES = 65


def draw_set(n_questions: int, seed: int) -> tuple[list[dict[str, Any]], ...]:
    """Predictions, questions and annotations: lists as in the official files, and parsed like them,
    so that equal strings are separate objects."""
    rng = random.Random(seed)
    forms = ["{}", "{} {}", "the {}", "{}.", "{}-{}", "{}, {}", "{} {}!", "two {}", "{}'s", "{:u}"]
    words = ["".join(rng.choices("aeioubcdlmnrst", k=rng.randint(2, 8))) for _ in range(5_000)]
    vocabulary = ["yes", "no", "1", "2", "two", "Yes"]
    while len(vocabulary) < N_ANSWERS:
        form = rng.choice(forms)
        pair = rng.sample(words, 2)
        vocabulary.append(pair[0].title() if form == "{:u}" else form.format(*pair))
    weights = list(accumulate(1 / rank for rank in range(1, N_ANSWERS + 1)))  # Zipf
    predictions, questions, annotations = [], [], []
    for i in range(n_questions):
        ids = {"question_id": 1_000 * (i % N_IMAGES) + i // N_IMAGES, "image_id": i % N_IMAGES}
        drawn = rng.choices(vocabulary, cum_weights=weights, k=5)
        answers = [drawn[0] if rng.random() < 0.6 else rng.choice(drawn) for _ in range(10)]
        if rng.random() < 0.3:
            answers[rng.randrange(10)] += f" {rng.choice(words)}"  # one annotator's own words
        questions.append(ids | {"question": "what is it?"})
        annotations.append(
            ids
            | {
                "question_type": f"type {i % N_QUESTION_TYPES}",
                "answer_type": ("yes/no", "number", "other")[i % 3],
                "answers": [{"answer": text, "answer_id": j} for j, text in enumerate(answers, 1)],
            }
        )
        predictions.append({"question_id": ids["question_id"], "answer": rng.choice(answers)})
    return tuple(json.loads(json.dumps(rows)) for rows in (predictions, questions, annotations))


def machine() -> str:
    """Processor and system, for the record."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, " + (
        f"{platform.system()} {platform.machine()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--questions", type=int, default=N_QUESTIONS)
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="official-2021")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    predictions, questions, annotations = draw_set(options.questions, options.seed)
    distinct = {entry["answer"] for row in annotations for entry in row["answers"]}
    started, started_cpu = time.perf_counter(), time.process_time()
    score = score_vqa(predictions, questions, annotations, options.protocol)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    print(
        json.dumps(
            {
                "benchmark": "vqa_score_speed",
                "seconds": round(seconds, 3),
                "cpu_seconds": round(cpu_seconds, 3),
                "questions": score["n"],
                "distinct_answers": len(distinct),
                "protocol": options.protocol,
                "overall": score["overall"],
                "seed": options.seed,
                "machine": machine(),
                "python": platform.python_version(),
                "date": datetime.date.today().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main()
