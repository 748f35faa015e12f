"""Figures as `metrics.json` and the console have them: pictures, notes, intervals at the ends."""

from __future__ import annotations

import pytest

from llava_repro.tasks import common
from shared import estimates
from shared.estimates import by_group, estimate, percent
from shared.significance import wilson_interval


def test_a_figure_has_its_pictures_and_the_bootstraps_own_note() -> None:
    """Nine questions about four pictures: the interval is too narrow, and nothing said so."""
    figure = estimate([1, 0, 1, 1, 0.6, 0, 1, 1, 0], [1, 1, 1, 2, 2, 3, 3, 4, 4])
    assert (figure["value"], figure["n"], figure["n_pictures"]) == (62.22, 9, 4)
    assert figure["note"] == "only 4 pictures: the interval is too narrow"
    assert percent(figure).endswith(
        "(n 9, 4 pictures; only 4 pictures: the interval is too narrow)"
    )


def test_enough_pictures_need_no_note() -> None:
    figure = estimate([i % 2 for i in range(40)], [i // 2 // 2 for i in range(40)][::-1])
    assert figure["n_pictures"] == 10
    figure = estimate([float(i < 25) for i in range(40)], [i // 2 for i in range(40)])
    assert "note" not in figure
    assert percent(figure).startswith("62.50 % [")
    assert percent(figure).endswith("] (n 40, 20 pictures)")


@pytest.mark.parametrize(("score", "value"), [(1.0, 100.0), (0.0, 0.0)])
def test_at_0_and_100_percent_the_interval_is_wilsons_over_pictures(
    score: float, value: float
) -> None:
    figure = estimate([score] * 56, [i // 2 for i in range(56)])
    wilson = wilson_interval(int(28 * score), 28)
    assert figure["value"] == value
    assert (figure["low"], figure["high"]) == (
        round(100 * wilson.low, 2),
        round(100 * wilson.high, 2),
    )
    assert figure["high"] - figure["low"] > 10
    assert figure["note"] == "all scores equal: Wilson's interval over 28 pictures"


def test_groups_have_the_same_form() -> None:
    rows = [{"score": 1, "image_id": i, "kind": "a" if i < 12 else "b"} for i in range(14)]
    found = by_group([*rows, {"score": None, "image_id": 1, "kind": "a"}], lambda row: row["kind"])
    assert list(found) == ["a", "b"]
    assert found["a"]["low"] == pytest.approx(75.75)
    assert found["b"]["n_pictures"] == 2


def test_without_scores_there_is_a_reason() -> None:
    assert estimate([], []) == {"value": None, "n": 0, "reason": "no question with references"}
    assert estimate([], [], "none asked")["reason"] == "none asked"
    assert percent(estimate([], [])) == "none (no question with references)"


def test_llavas_tasks_use_the_same_figures() -> None:
    assert common.estimate is estimates.estimate
