"""Charts as PNG bytes: bars with intervals, outcomes, calibration, curves, histogram, heat map.

Drawn by matplotlib's Agg canvas without pyplot, so nothing global is touched and no display is
needed. Chinese labels need a font that has them: `chart_language` says which language the labels
can be in, and characters that no font here can draw become "?" instead of boxes.

    python -m pytest tests/shared/test_charts.py

Reads and writes nothing. No torch; matplotlib is imported where it draws.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATIN_FONT = "DejaVu Sans"  # comes with matplotlib
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC",
    "Hiragino Sans GB", "Heiti SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei", "SimSun",
    "Arial Unicode MS",
)  # fmt: skip
WIDTH = 4.8  # inches; at 160 dots per inch 768 pixels, whose 9 pt labels read on a phone
DPI = 160
# Okabe and Ito's palette: told apart with any colour vision
BASE, TUNED = "#8d96a3", "#0072b2"
SERIES = (BASE, TUNED, "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
WIN, TIE, LOSS = "#009e73", "#cfd5dd", "#d55e00"
INK, GRID = "#2b323c", "#dfe3e9"
ROOM_FOR_COUNT = 6  # percent of a bar that a count fits into
# With the colours, so that no curve is told by colour alone; the two blues differ in dash too.
DASHES = ("-", "--", "-.", ":", "--", ":", "-.", ":", "-", "--", ":", "-")
MARKERS = ("o", "s", "^", "D", "v", "P")
HISTOGRAM_BINS = 20
MOST_CELLS = 24  # columns of a heat map whose cells hold their count


@lru_cache(1)
def cjk_font() -> str | None:
    """The first installed font that has Chinese characters, or None."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in installed), None)


def chart_language(language: str) -> str:
    """The language that labels can be drawn in: English where no font has Chinese."""
    return "en" if language == "zh" and cjk_font() is None else language


def font_families() -> list[str]:
    return [LATIN_FONT, *filter(None, [cjk_font()])]


@lru_cache(4096)
def _can_draw(character: str, families: tuple[str, ...]) -> bool:
    from matplotlib import font_manager

    return any(
        font_manager.get_font(font_manager.findfont(family)).get_char_index(ord(character))
        for family in families
    )


def drawable(text: str, limit: int = 28) -> str:
    """`text` on one line of at most `limit` characters that the fonts here can draw."""
    families = tuple(font_families())
    text = " ".join(text.split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if _can_draw(c, families) else "?" for c in text)


@contextmanager
def _figure(height: float, rows: int = 1, width: float = WIDTH) -> Iterator[tuple[Figure, Any]]:
    """A figure with its axes; with two rows the lower one is a third as high."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "font.family": font_families(),
        "font.size": 9,
        "text.parse_math": False,  # a "$" in a user's label is a dollar
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9aa5b4",
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure, figure.subplots(rows, height_ratios=[3, 1][:rows])


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _legend_above(axes: Axes, columns: int) -> None:
    """Bars before lines, whatever matplotlib's own order."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: hasattr(handles[i], "get_linestyle")
                   and not hasattr(handles[i], "patches"))  # fmt: skip
    axes.legend([handles[i] for i in order], [labels[i] for i in order], loc="lower left",
                bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)  # fmt: skip


def _height(groups: int, series: int = 2) -> float:
    """The same for both kinds of bars, so that two charts side by side align row by row."""
    return 0.95 + 0.22 * max(2, series) * groups


def _columns(series: int) -> int:
    """Of a legend: two names stand beside a third entry, more names in pairs."""
    return 3 if series <= 2 else 2


def accuracy_bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    x_label: str,
    reference: tuple[str, Sequence[float | None]] = ("", ()),
) -> bytes:
    """Horizontal bars per group, one for each series (at most six), with interval whiskers.

    `series` maps a name to one estimate per group: `value`, `low`, `high` in percent, any of them
    None. `reference`: a label and for each group a value that is marked there, None for no mark.
    """
    with _figure(_height(len(groups), len(series))) as (figure, axes):
        height = 0.8 / len(series)
        for i, (name, estimates) in enumerate(series.items()):
            rows = [k + (i - (len(series) - 1) / 2) * height for k in range(len(groups))]
            values = [e["value"] or 0.0 for e in estimates]
            axes.barh(rows, values, height * 0.92, color=SERIES[i], label=drawable(name))
            for row, estimate in zip(rows, estimates, strict=True):
                if estimate.get("low") is not None:
                    axes.plot([estimate["low"], estimate["high"]], [row, row], color=INK, lw=1.1)
        marks = [(k, value) for k, value in enumerate(reference[1]) if value is not None]
        for k, value in marks:
            label = drawable(reference[0], 40) if k == marks[0][0] else None
            axes.plot([value] * 2, [k - 0.4, k + 0.4], color=LOSS, lw=1.6, ls="--", label=label)
        axes.set_yticks(range(len(groups)), [drawable(group) for group in groups])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(x_label)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        _legend_above(axes, min(len(series) + bool(marks), _columns(len(series))))
        return _png(figure)


def outcome_bars(
    groups: Sequence[str], outcomes: Sequence[tuple[int, int, int]], labels: Sequence[str]
) -> bytes:
    """Stacked shares of (wins, ties, losses) per group, each with its count; `labels` name them.

    A count that does not fit into its segment stands above it.
    """
    with _figure(_height(len(groups))) as (figure, axes):
        left = [0.0] * len(groups)
        for part, (label, color) in enumerate(zip(labels, (WIN, TIE, LOSS), strict=True)):
            shares = [100 * o[part] / max(1, sum(o)) for o in outcomes]
            axes.barh(range(len(groups)), shares, 0.7, left=left, color=color, label=label)
            for row, (share, start) in enumerate(zip(shares, left, strict=True)):
                count = str(outcomes[row][part])
                if share >= ROOM_FOR_COUNT:
                    ink = INK if part == 1 else "white"
                    axes.text(start + share / 2, row, count, color=ink, ha="center", va="center")
                elif share:  # above its segment: from the bar's end, or to it, as ties lie between
                    place = {0: (start, "left"), 2: (start + share, "right")}
                    x, side = place.get(part, (start + share / 2, "center"))
                    axes.text(x, row - 0.36, count, color=INK, fontsize=7, ha=side, va="bottom")
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set_yticks(range(len(groups)), [drawable(group) for group in groups])
        axes.tick_params(axis="both", length=0)
        axes.set_xticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        _legend_above(axes, 3)
        return _png(figure)


def reliability_diagram(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    x_label: str,
    y_label: str,
    count_label: str,
    ideal: str,
) -> bytes:
    """Mean score against mean confidence per bin, and below it the number of answers per bin.

    `series` maps a name (at most six) to bins with `low`, `high` (edges), `n`, and, where n > 0,
    mean `confidence` and `score`, all 0..1.
    """
    with _figure(3.7, rows=2) as (figure, (axes, below)):
        axes.plot([0, 1], [0, 1], color=LOSS, lw=1.1, ls="--", label=ideal)
        for i, ((name, bins), color) in enumerate(zip(series.items(), SERIES, strict=False)):
            filled = [cell for cell in bins if cell["n"]]
            axes.plot(
                [cell["confidence"] for cell in filled], [cell["score"] for cell in filled],
                marker="o", ms=4, lw=1.6, color=color, label=drawable(name),
            )  # fmt: skip
            for cell in bins:
                width = (cell["high"] - cell["low"]) / len(series)
                left = cell["low"] + i * width
                below.bar(left, cell["n"], width * 0.9, align="edge", color=color)
        axes.set_ylim(0, 1.03)
        axes.set_ylabel(y_label)
        axes.tick_params(axis="x", labelbottom=False)
        below.set_ylabel(count_label)
        below.set_xlabel(x_label)
        for part in (axes, below):
            part.set_xlim(0, 1)
            part.grid(color=GRID)
            part.set_axisbelow(True)
        _legend_above(axes, _columns(len(series)))
        return _png(figure)


def risk_coverage_chart(
    curves: Mapping[str, Sequence[Sequence[float]]], *, x_label: str, y_label: str
) -> bytes:
    """Mean score of the answers kept, against the share kept when the least sure are left out.

    Each curve (at most six) holds points (share kept, mean score), both 0..1.
    """
    with _figure(3.7) as (figure, axes):
        for (name, curve), color in zip(curves.items(), SERIES, strict=False):
            shares, scores = ([100 * value for value in part] for part in zip(*curve, strict=True))
            axes.plot(shares, scores, color=color, lw=1.8, label=drawable(name))
        lowest = min(score for curve in curves.values() for _, score in curve)
        axes.set_xlim(0, 100)
        axes.set_ylim(max(0, 10 * math.floor(10 * lowest) - 10), 102)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color=GRID)
        _legend_above(axes, 2)
        return _png(figure)


def curves_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    steps: bool = False,
    points: Mapping[str, tuple[float, float]] | None = None,
    reference: tuple[str, Sequence[float], Sequence[float]] | None = None,
    y_from: float = 0.0,
) -> bytes:
    """Curves inside the unit square, each (x, y) by ascending x, in a colour and dash of its own.

    `steps`: between two points the curve has the y of the right one, as average precision takes it.
    `points` marks an operating point on the curve of that name; `reference` is a line to hold the
    curves against: its label, x and y. `y_from` is where the y axis starts.
    """
    with _figure(3.7 + 0.17 * ((len(series) + 1) // 2)) as (figure, axes):
        if reference:
            label, x, y = reference
            axes.plot(x, y, color="#9aa5b4", lw=1.0, ls=(0, (1, 2)), label=drawable(label, 40))
        for i, (name, (x, y)) in enumerate(series.items()):
            color = SERIES[i % len(SERIES)]
            dash = DASHES[i % len(DASHES)]
            style = "steps-pre" if steps else "default"
            # a curve of one point has no length, and must not vanish
            lone = {"marker": ".", "ms": 7} if len(x) == 1 else {}
            axes.plot(x, y, color=color, ls=dash, lw=1.7, drawstyle=style,
                      label=drawable(name, 32), **lone)  # fmt: skip
            if points and name in points:
                axes.plot(*points[name], color=color, marker=MARKERS[i % len(MARKERS)], ms=7,
                          mec=INK, mew=0.8, ls="none", zorder=5)  # fmt: skip
        axes.set_xlim(-0.015, 1.015)
        margin = 0.015 * (1 - y_from)
        axes.set_ylim(y_from - margin, 1 + margin)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        _legend_above(axes, 2)
        return _png(figure)


def mirrored_histogram(
    above: tuple[str, Sequence[float]],
    below: tuple[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    mark: tuple[str, float] | None = None,
) -> bytes:
    """Two groups' values over one axis, the first upwards, the second downwards and hatched.

    Bars are shares of their own group, so that groups of different sizes compare. Infinite values
    have a bar of their own at the ends. `mark` is a labelled vertical line; an infinite one is left
    out.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    everything = np.array([*above[1], *below[1]], dtype=float)
    finite = everything[np.isfinite(everything)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if high - low <= 1e-12 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    width = edges[1] - edges[0]
    ends = {-np.inf: low - 2 * width, np.inf: high + 2 * width}
    with _figure(3.4) as (figure, axes):
        tallest = 0.0
        for (label, values), sign, color, hatch in (
            (above, 1, TUNED, None),
            (below, -1, "#e69f00", "////"),
        ):
            numbers = np.array(values, dtype=float)
            n = max(1, len(numbers))
            counts = np.histogram(numbers[np.isfinite(numbers)], edges)[0]
            shares = [*counts / n, *(float((numbers == end).sum()) / n for end in ends)]
            places = [*(edges[:-1] + width / 2), *ends.values()]
            axes.bar(
                places, [sign * share for share in shares], width * 0.94, color=color, hatch=hatch,
                edgecolor="white", lw=0.3, label=f"{drawable(label, 24)} (n {len(numbers):,})",
            )  # fmt: skip
            tallest = max(tallest, *shares)
        axes.axhline(0, color=INK, lw=0.8)
        if mark and math.isfinite(mark[1]):
            axes.axvline(mark[1], color=LOSS, lw=1.5, ls="--", label=drawable(mark[0], 32))
        ticks = {value: f"{value:g}" for value in MaxNLocator(6).tick_values(low, high)
                 if low - width / 2 <= value <= high + width / 2}  # fmt: skip
        ticks |= {place: "−∞" if end < 0 else "∞"
                  for end, place in ends.items() if (everything == end).any()}  # fmt: skip
        axes.set_xticks(list(ticks), [label.replace("-", "−") for label in ticks.values()])
        top = max(tallest * 1.08, 0.05)
        axes.set_ylim(-top, top)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(100 * value):.0f}")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
        _legend_above(axes, 2)
        return _png(figure)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    x_label: str,
    y_label: str,
    rules: Sequence[int] = (),
) -> bytes:
    """Counts as cells, darker the larger their share of the row; zeros stay empty.

    A line is drawn before each of the rows in `rules`. Cells hold their count where there are few
    enough of them to be read.
    """
    import numpy as np

    table = np.array(counts, dtype=float).reshape(len(rows), len(columns))
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    width = max(WIDTH, min(1.6 + 0.36 * len(columns), 9.0))
    height = min(1.5 + 0.26 * len(rows), 12.0)
    small = len(columns) > MOST_CELLS
    with _figure(height, width=width) as (figure, axes):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        if not small:
            for i, j in zip(*np.nonzero(table), strict=True):
                ink = "white" if shares[i, j] > 0.55 else INK
                axes.text(j, i, f"{table[i, j]:.0f}", color=ink, ha="center", va="center",
                          fontsize=8)  # fmt: skip
        size = 5.5 if small else 8.5
        axes.set_xticks(range(len(columns)), [drawable(name, 20) for name in columns],
                        rotation=60, ha="right", rotation_mode="anchor", fontsize=size)  # fmt: skip
        axes.set_yticks(range(len(rows)), [drawable(name, 24) for name in rows], fontsize=size)
        for row in rules:
            axes.axhline(row - 0.5, color=INK, lw=1.0)
        axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
        axes.grid(which="minor", color=GRID, lw=0.6)
        axes.tick_params(which="both", length=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _png(figure)


def training_curve(
    rows: Sequence[Mapping[str, Any]],
    *,
    selection: str,
    title: str,
    synthetic: bool,
    n_validation: int,
    n_answered: int | None = None,
    loss_name: str = "cross-entropy per answer token",
) -> bytes:
    """Loss (left axis) and the validation figure `eval_<selection>` (right axis, from 0 to 1, or to
    its largest value where it has no such bound: CIDEr) by step.

    `rows` are those of metrics.jsonl; `n_validation` is how many samples the validation is of,
    `n_answered` how many the figure is of, if fewer. With selection "loss" there is no right axis.
    """
    with _figure(4, width=7) as (figure, left):
        left.set_xlabel("step")
        left.set_ylabel(loss_name)
        for key, label, style in (
            ("loss", "training loss", {"alpha": 0.6}),
            ("eval_loss", f"validation loss (n {n_validation:,})", {"marker": "o"}),
        ):
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                left.plot(*zip(*points, strict=True), label=label, **style)
        key = f"eval_{selection}"
        points = [(row["step"], row[key]) for row in rows if key in row and key != "eval_loss"]
        handles, labels = left.get_legend_handles_labels()
        if points:
            right = left.twinx()
            right.spines["right"].set_visible(True)
            n_figure = n_validation if n_answered is None else n_answered
            label = f"validation {selection} (n {n_figure:,})"
            right.set_ylabel(label)
            # the whole range, or noise would look like progress
            right.set_ylim(0, 1.02 * max(1.0, *(value for _, value in points)))
            (line,) = right.plot(*zip(*points, strict=True), color=WIN, marker="s")
            handles, labels = [*handles, line], [*labels, label]
        mark = "SYNTHETIC data or model: no measure of a real one\n" if synthetic else ""
        left.set_title(mark + drawable(title, 80), fontsize=9)
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return _png(figure)
