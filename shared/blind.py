"""The blind baseline: the commonest train answer of each question type, without any picture.

What it scores is what the form of the questions gives away; every toy report prints it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def blind_answers(train_annotations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """question_type -> its commonest multiple_choice_answer; a tie goes to the first in the
    alphabet. The key "" holds the commonest of all, for types that train does not have."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for annotation in train_annotations:
        counts[annotation["question_type"]][annotation["multiple_choice_answer"]] += 1
        counts[""][annotation["multiple_choice_answer"]] += 1
    return {kind: min(c, key=lambda answer: (-c[answer], answer)) for kind, c in counts.items()}


def blind_baseline(
    train_annotations: Sequence[Mapping[str, Any]],
    val_annotations: Sequence[Mapping[str, Any]],
    protocol: str = "official-2021",
) -> float:
    """Mean VQA accuracy (0..1) of the blind answers on val, under one of the scoring protocols.

    Raises ValueError when there is nothing to learn from or to score.
    """
    from shared.vqa_score import vqa_accuracy

    if not train_annotations or not val_annotations:
        raise ValueError("the blind baseline needs train and val annotations, and one is empty")
    answers = blind_answers(train_annotations)
    scores = [
        vqa_accuracy(
            answers.get(annotation["question_type"], answers[""]),
            [answer["answer"] for answer in annotation["answers"]],
            protocol=protocol,
        )
        for annotation in val_annotations
    ]
    return sum(scores) / len(scores)
