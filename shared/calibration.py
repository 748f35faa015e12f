"""Whether a model knows when it is wrong: reliability and selective accuracy of its confidences.

Pure functions of (confidence, score) rows, all values 0..1; the score may be soft, so a half-right
answer counts half. No torch.

    python -m pytest tests/shared/test_calibration.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

N_BINS = 10
COVERAGE = 0.8  # the share of answers kept in the selective accuracy that is quoted


def reliability(rows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Bins of (confidence, score), ECE and Brier score, all 0..1.

    Ten bins of equal width, [0, .1), [.1, .2), ..., [.9, 1]. ECE is the mean over answers of their
    bin's |mean score - mean confidence| (Guo et al. 2017, arXiv 1706.04599, eq. 5); the score is
    the soft VQA accuracy, so a half-right answer counts half. Brier: mean (confidence - score)**2.
    """
    cells: list[list[tuple[float, float]]] = [[] for _ in range(N_BINS)]
    for confidence, score in rows:
        cells[min(int(confidence * N_BINS), N_BINS - 1)].append((confidence, score))
    bins = []
    ece = 0.0
    for i, cell in enumerate(cells):
        edges = {"low": i / N_BINS, "high": (i + 1) / N_BINS, "n": len(cell)}
        if cell:
            confidence, score = (sum(part) / len(cell) for part in zip(*cell, strict=True))
            edges |= {"confidence": confidence, "score": score}
            ece += abs(score - confidence) * len(cell) / len(rows)
        bins.append(edges)
    brier = sum((confidence - score) ** 2 for confidence, score in rows) / len(rows)
    return {"n": len(rows), "ece": ece, "brier": brier, "bins": bins}


def mean_scores_kept(rows: Sequence[tuple[float | None, float]]) -> list[float]:
    """Mean score of the k most confident answers, for k = 1..n.

    Where a tie is cut, the expectation over a random order inside it. Any numbers will do as
    confidences, infinite ones too; None ranks with the lowest.
    """
    groups: dict[float, list[float]] = {}
    for confidence, score in rows:
        groups.setdefault(-math.inf if confidence is None else confidence, []).append(score)
    expected = [
        sum(groups[confidence]) / len(groups[confidence])
        for confidence in sorted(groups, reverse=True)
        for _ in groups[confidence]
    ]
    return [total / i for i, total in enumerate(accumulate(expected), start=1)]


def risk_coverage(rows: Sequence[tuple[float | None, float]]) -> dict[str, Any]:
    """Mean score of the most confident answers, by the share of answers kept.

    Answers without a confidence (errors, empties) are given up first. Answers of equal confidence
    share their mean, so that their order does not matter. `aurc` is the mean risk (1 - score) over
    all coverages (Geifman, El-Yaniv 2017, arXiv 1705.08500); `curve` has at most 100 points
    [coverage, score].
    """
    kept = mean_scores_kept(rows)
    n = len(kept)
    points = sorted({max(1, round(n * k / 100)) for k in range(1, 101)})
    return {
        "aurc": 1 - sum(kept) / n,
        "score_at_coverage": [COVERAGE, kept[max(1, round(COVERAGE * n)) - 1]],
        "curve": [[i / n, kept[i - 1]] for i in points],
    }
