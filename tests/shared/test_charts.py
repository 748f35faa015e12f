"""Charts: PNG out, no box for a character without a glyph, no formula out of a user's label."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import pytest
from PIL import Image

from shared import charts

HOSTILE = ["颜色 是什么", "emoji 😀", "$\\frac{$", "long " * 20, ""]


def estimates(n: int) -> list[dict]:
    rows = [{"value": 50.0, "low": 40.0, "high": 60.0}, {"value": None, "low": None, "high": None}]
    return [rows[i % 2] for i in range(n)]


@pytest.fixture
def missing_glyphs_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("missing_glyphs_are_errors")
@pytest.mark.parametrize("with_cjk", [True, False])
def test_every_chart_draws_hostile_labels_without_boxes(
    with_cjk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_cjk:
        monkeypatch.setattr(charts, "cjk_font", lambda: None)
    bins = [{"low": i / 10, "high": (i + 1) / 10, "n": i, "confidence": i / 10 + 0.05, "score": 0.5}
            for i in range(10)]  # fmt: skip
    n = len(HOSTILE)
    drawn = [
        charts.accuracy_bars(
            HOSTILE, {"a": estimates(n), "b": estimates(n)}, x_label="x", reference=("r", 30.0)
        ),
        charts.outcome_bars(HOSTILE, [(1, 2, 3), (0, 0, 0)] * 2 + [(0, 1, 0)], ["w", "t", "l"]),
        charts.reliability_diagram(
            {HOSTILE[0]: bins, HOSTILE[1]: bins[:1]},
            x_label="x", y_label="y", count_label="n", ideal="i",
        ),
        charts.risk_coverage_chart(
            {HOSTILE[2]: [[0.5, 1.0], [1.0, 0.7]], "b": [[1.0, 0.2]]}, x_label="x", y_label="y"
        ),
    ]  # fmt: skip
    for png in drawn:
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG"
        assert image.width == pytest.approx(charts.WIDTH * charts.DPI, abs=2)


def test_without_a_chinese_font_labels_are_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "cjk_font", lambda: None)
    assert charts.chart_language("zh") == "en"
    assert charts.drawable("颜色 ok") == "?? ok"


def test_with_a_chinese_font_labels_stay_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    if charts.cjk_font() is None:
        pytest.skip("no font with Chinese characters here (Debian: fonts-noto-cjk)")
    assert charts.chart_language("zh") == "zh"
    assert charts.drawable("颜色") == "颜色"
    assert charts.chart_language("en") == "en"


def test_drawable_is_one_short_line() -> None:
    assert charts.drawable("a\n b\t c") == "a b c"
    assert charts.drawable("x" * 50, 10) == "x" * 9 + "…"
