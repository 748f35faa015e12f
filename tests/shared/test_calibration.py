"""Reliability and selective accuracy against values worked out by hand."""

from __future__ import annotations

import pytest

from shared.calibration import reliability, risk_coverage


def test_ece_and_brier_by_hand() -> None:
    figures = reliability([(0.95, 1.0), (0.95, 0.6), (0.85, 0.0)])
    # bin 9: |0.8 - 0.95| for two answers; bin 8: |0 - 0.85| for one
    assert figures["ece"] == pytest.approx((2 * 0.15 + 0.85) / 3)
    assert figures["brier"] == pytest.approx((0.05**2 + 0.35**2 + 0.85**2) / 3)
    assert [cell["n"] for cell in figures["bins"]] == [0] * 8 + [1, 2]


def test_edges_belong_to_the_bin_above_and_one_to_the_last() -> None:
    bins = reliability([(0.0, 0), (0.1, 0), (0.3, 0), (0.7, 0), (0.9, 0), (1.0, 1)])["bins"]
    assert [cell["n"] for cell in bins] == [1, 1, 0, 1, 0, 0, 0, 1, 0, 2]


def test_risk_coverage_by_hand_gives_up_answers_without_confidence_first() -> None:
    figures = risk_coverage([(None, 0.0), (0.7, 1.0), (0.9, 1.0), (0.8, 0.0)])
    kept = [1, 1 / 2, 2 / 3, 2 / 4]
    assert [score for _, score in figures["curve"]] == pytest.approx(kept)
    assert [share for share, _ in figures["curve"]] == [0.25, 0.5, 0.75, 1.0]
    assert figures["aurc"] == pytest.approx(1 - sum(kept) / 4)
    assert figures["score_at_coverage"] == [0.8, pytest.approx(2 / 3)]  # 3.2 of 4: three are kept


def test_equal_confidences_share_their_mean_whatever_their_order() -> None:
    rows = [(0.5, 1.0), (0.5, 0.0), (0.9, 1.0)]
    assert risk_coverage(rows) == risk_coverage(rows[::-1])
    assert risk_coverage(rows)["curve"][1][1] == pytest.approx(1.5 / 2)


def test_curve_of_many_answers_has_a_hundred_points_and_ends_at_the_mean() -> None:
    rows = [(i / 1000, float(i % 2)) for i in range(1000)]
    curve = risk_coverage(rows)["curve"]
    assert len(curve) == 100
    assert curve[-1] == [1.0, pytest.approx(0.5)]
