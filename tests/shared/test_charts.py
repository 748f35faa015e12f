"""Charts: PNG out, no box for a character without a glyph, no formula out of a user's label."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
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
            HOSTILE, {"a": estimates(n), "b": estimates(n)}, x_label="x",
            reference=("r", [30.0, None, 0.0, 100.0, 5.0]),
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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would become PNG."""
    figures: list[Any] = []
    monkeypatch.setattr(charts, "_png", lambda figure: figures.append(figure) or b"")
    return figures


def test_every_outcome_has_its_count(drawn: list[Any]) -> None:
    """Also where it does not fit into its segment: above it, and not on its neighbour's."""
    charts.outcome_bars(
        ["all", "few", "none"], [(2, 95, 3), (1, 3, 96), (0, 7, 0)], ["won", "tied", "lost"]
    )
    (axes,) = drawn[0].axes
    said = [text.get_text() for text in axes.texts]
    assert sorted(said) == sorted(["2", "95", "3", "1", "3", "96", "7"])
    drawn[0].draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    touching = [
        (a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)
    ]  # fmt: skip
    assert touching == []


def curve_rows() -> list[dict[str, float]]:
    return [
        {"step": 1, "loss": 2.0},
        {"step": 1, "eval_loss": 1.9, "eval_accuracy": 0.751},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval_loss": 1.5, "eval_accuracy": 0.769},
    ]


def test_a_training_curve_says_what_it_shows(drawn: list[Any]) -> None:
    """Two points of accuracy used to fill the axis, without how many questions they are of."""
    described = {"title": "my_run", "n_validation": 1234}
    charts.training_curve(curve_rows(), selection="accuracy", synthetic=True, **described)
    left, right = drawn[0].axes
    assert "SYNTHETIC" in left.get_title()
    assert "my_run" in left.get_title()
    assert right.get_ylim() == (0, 1.02)
    assert right.get_ylabel() == "validation accuracy (n 1,234)"
    charts.training_curve(curve_rows(), selection="loss", synthetic=False, **described)
    (alone,) = drawn[1].axes
    assert alone.get_title() == "my_run"
    assert [line.get_label() for line in alone.lines][1] == "validation loss (n 1,234)"


def test_a_figure_above_one_is_on_the_axis(drawn: list[Any]) -> None:
    """CIDEr goes to 10: an axis to 1 showed none of it."""
    rows = [{"step": 1, "eval_loss": 1.0, "eval_cider": 2.5}]
    charts.training_curve(
        rows, selection="cider", title="r", synthetic=False, n_validation=30, n_answered=3
    )
    left, right = drawn[0].axes
    assert right.get_ylim() == (0, pytest.approx(2.55))
    assert right.get_ylabel() == "validation cider (n 3)"
    assert [line.get_label() for line in left.lines] == ["validation loss (n 30)"]


def test_a_curve_without_validation_is_drawn() -> None:
    rows = [row for row in curve_rows() if "loss" in row]
    content = charts.training_curve(
        rows, selection="accuracy", title="run", synthetic=False, n_validation=0
    )
    assert Image.open(io.BytesIO(content)).size[0] > 600


def test_each_row_has_its_own_reference_mark() -> None:
    """One line through all rows used to show the overall blind figure as that of every type."""

    def columns_of_marks(reference: list[float | None]) -> list[set[int]]:
        """The pixel columns with the marks' colour in the upper and lower bar's half."""
        png = charts.accuracy_bars(
            ["all", "number"], {"a": [{"value": None}] * 2}, x_label="x", reference=("r", reference)
        )
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        colour = [int(charts.LOSS[i : i + 2], 16) for i in (1, 3, 5)]
        rows, columns = np.where((abs(pixels - colour) <= 8).all(axis=2))
        bars = rows > 40  # below the legend
        middle = (rows[bars].min() + rows[bars].max()) / 2
        upper = rows[bars] < middle
        return [set(columns[bars][upper].tolist()), set(columns[bars][~upper].tolist())]

    upper, lower = columns_of_marks([30.0, 80.0])
    assert upper
    assert lower
    assert max(upper) < min(lower)


def test_curves_differ_in_colour_and_dash_and_end_where_told(drawn: list[Any]) -> None:
    names = [f"score {i}" for i in range(12)]
    charts.curves_chart(
        {name: ([0.0, 0.5, 1.0], [0.0, 0.8, 1.0]) for name in names},
        x_label="x", y_label="y", points={"score 1": (0.5, 0.8), "no such curve": (0.1, 0.1)},
        reference=("chance", [0, 1], [0, 1]),
    )  # fmt: skip
    (axes,) = drawn[0].axes
    curves = [line for line in axes.lines if line.get_label() in names]
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == len(names)
    assert list(curves[0].get_ydata()) == [0.0, 0.8, 1.0]
    (point,) = [line for line in axes.lines if line.get_marker() == charts.MARKERS[1]]
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([0.5], [0.8])
    assert "chance" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_stepped_curve_has_the_right_point_s_height_between_two(drawn: list[Any]) -> None:
    """Average precision is the area under these steps; a line between the points has more."""
    charts.curves_chart({"a": ([0.0, 1.0], [1.0, 0.5])}, x_label="x", y_label="y", steps=True)
    (curve,) = [line for line in drawn[0].axes[0].lines if line.get_label() == "a"]
    assert curve.get_drawstyle() == "steps-pre"


def test_bars_of_a_mirrored_histogram_are_shares_of_their_group(drawn: list[Any]) -> None:
    charts.mirrored_histogram(
        ("known", [0.0, 1.0, 1.0, 1.0]), ("unknown", [0.0, float("-inf")]),
        x_label="x", y_label="y", mark=("threshold", 0.5),
    )  # fmt: skip
    (axes,) = drawn[0].axes
    above, below = axes.containers
    heights = [[bar.get_height() for bar in group if bar.get_height()] for group in (above, below)]
    assert heights == [[0.25, 0.75], [-0.5, -0.5]]
    assert all(bar.get_hatch() for bar in below)
    assert "−∞" in [label.get_text() for label in axes.get_xticklabels()]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"known (n 4)", "unknown (n 2)", "threshold"} == set(legend)


@pytest.mark.usefixtures("missing_glyphs_are_errors")
@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 3, [float("inf")], [-1e300, 1e300]])
def test_any_values_make_a_histogram(values: list[float]) -> None:
    content = charts.mirrored_histogram(
        (HOSTILE[0], values), (HOSTILE[1], []), x_label="x", y_label="y",
        mark=(HOSTILE[2], float("inf")),
    )  # fmt: skip
    assert Image.open(io.BytesIO(content)).format == "PNG"


def test_cells_of_a_heat_map_hold_their_counts(drawn: list[Any]) -> None:
    charts.heat_map(
        HOSTILE[:2], ["a", "b", "unknown"], [[3, 0, 1], [0, 0, 0]],
        x_label="predicted", y_label="true", rules=[1],
    )  # fmt: skip
    (axes,) = drawn[0].axes
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {((0, 0), "3"), ((2, 0), "1")}
    assert axes.images[0].get_array().tolist() == [[0.75, 0, 0.25], [0, 0, 0]]
    many = [f"class {i}" for i in range(80)]
    charts.heat_map(many, many, np.eye(80, dtype=int).tolist(), x_label="x", y_label="y")
    assert len(drawn[1].axes[0].texts) == 0  # no room to read them
    assert len(drawn[1].axes[0].get_xticklabels()) == 80
