"""The charts of a run's report, each with its title and what it shows in words.

ROC, precision-recall and risk-coverage curves come from `llava_openset.metrics`, by the scores of
scored.jsonl; counts and thresholds from metrics.json. No file is read or written here. No torch.

    python -m pytest tests/llava_openset/test_report.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llava_openset.metrics import (
    Curve,
    precision_recall_points,
    risk_coverage_points,
    roc_points,
)
from llava_openset.run_reading import Columns, OpenSetRun, columns
from shared import charts
from shared.report import Chart

Words = Mapping[str, str]
Xy = tuple[Sequence[float], Sequence[float]]
MOST_CURVES = 12  # colours and dashes that differ


def run_charts(run: OpenSetRun, words: Words, labels: Words) -> dict[str, Chart]:
    """Name (of the PNG file) -> chart. What cannot be drawn is left out; the page says why.

    `labels` are the words that the charts' fonts can draw, `words` those of the page.
    """
    drawn: dict[str, Chart | None] = {"decisions": decisions(run, words, labels)}
    headline = {key: run.protocols[key]["headline"] for key in run.protocols}
    by_protocol = {key: test_columns(run, key, headline[key]) for key in run.leading_first}
    for kind in ("roc", "pr_known", "pr_unknown", "risk_coverage"):
        drawn[kind] = curves(kind, by_protocol, run, headline, words, labels)
    for key, described in run.protocols.items():
        if described["kind"] == "choice":
            by_score = {score: test_columns(run, key, score) for score in described["scores"]}
            title = words["chart_roc_scores"].format(protocol=key)
            drawn[f"roc_scores_{key}"] = curves("roc", by_score, run, {}, words, labels, title)
    for key, table in by_protocol.items():
        drawn[f"scores_{key}"] = histogram(key, run.protocols[key], table, words, labels)
    for key in by_protocol:
        drawn[f"confusion_{key}"] = confusion(key, run.protocols[key], words, labels)
    return {name: chart for name, chart in drawn.items() if chart is not None}


def test_columns(run: OpenSetRun, protocol: str, score: str) -> Columns:
    return columns(run.test_rows(protocol), score, run.known_classes)


def figure_of(run: OpenSetRun, protocol: str, name: str) -> float | None:
    """A figure of the protocol's headline score."""
    described = run.protocols[protocol]
    return described["scores"][described["headline"]]["figures"][name]["value"]


def decisions(run: OpenSetRun, words: Words, labels: Words) -> Chart | None:
    """Known named rightly and unknown rejected, by protocol, with intervals."""
    groups, named, rejected = [], [], []
    for key in run.leading_first:
        described = run.protocols[key]
        figures = described["scores"][described["decision"]["score"]]["figures"]
        known, unknown = (figures[name] for name in
                          ("known_correct_and_accepted", "unknown_reject_rate"))  # fmt: skip
        if known["value"] is None and unknown["value"] is None:
            continue
        groups.append(key)
        named.append(in_percent(known))
        rejected.append(in_percent(unknown))
    if not groups:
        return None
    png = charts.accuracy_bars(
        groups,
        {labels["known_right"]: named, labels["unknown_rejected"]: rejected},
        x_label="%",
    )
    said = "; ".join(
        words["alt_decisions_one"].format(protocol=key, named=_said(a), rejected=_said(b))
        for key, a, b in zip(groups, named, rejected, strict=True)
    )
    return Chart(png, words["chart_decisions"], words["alt_decisions"].format(said=said))


def in_percent(entry: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        name: None if entry.get(name) is None else 100 * entry[name]
        for name in ("value", "low", "high")
    }


def _said(entry: Mapping[str, float | None]) -> str:
    return "–" if entry["value"] is None else f"{entry['value']:.1f} %"


def curves(
    kind: str,
    by_name: Mapping[str, Columns],
    run: OpenSetRun,
    headline: Mapping[str, str],
    words: Words,
    labels: Words,
    title: str = "",
) -> Chart | None:
    """One curve a protocol (or score); with `headline`, its threshold marked where it has one."""
    found = {name: _points(kind, table) for name, table in by_name.items()}
    there = {name: curve for name, curve in found.items() if curve is not None}
    if not there:
        return None
    drawn: dict[str, Xy] = {
        name: (curve.x.tolist(), curve.y.tolist())
        for name, curve in list(there.items())[:MOST_CURVES]
    }
    points = {}
    if kind == "roc":
        for name in drawn:
            if name in headline:
                at = run.protocols[name]["scores"][headline[name]]["threshold"]["value"]
                point = operating_point(by_name[name], at)
                if point:
                    points[name] = point
    png = charts.curves_chart(
        drawn,
        x_label=labels[f"axis_{kind}_x"],
        y_label=labels[f"axis_{kind}_y"],
        steps=kind.startswith("pr"),
        points=points,
        reference=reference(kind, next(iter(by_name.values())), labels),
    )
    return Chart(
        png,
        title or words[f"chart_{kind}"],
        words["alt_curves"].format(
            title=title or words[f"chart_{kind}"], names=words["comma"].join(drawn)
        ),
        words["note_points"] if points else "",
    )


def _points(kind: str, table: Columns) -> Curve | None:
    if kind == "roc":
        return roc_points(table.scores, table.labels)
    if kind == "risk_coverage":
        return risk_coverage_points(table.scores, table.labels, table.predictions)
    positive = "known" if kind == "pr_known" else "unknown"
    return precision_recall_points(table.scores, table.labels, positive)


def operating_point(table: Columns, threshold: float | None) -> tuple[float, float] | None:
    """(share of unknown accepted, share of known accepted) at the threshold."""
    if threshold is None:
        return None
    accepted = [
        score >= threshold and prediction >= 0
        for score, prediction in zip(table.scores, table.predictions, strict=True)
    ]
    known = [a for a, label in zip(accepted, table.labels, strict=True) if label >= 0]
    unknown = [a for a, label in zip(accepted, table.labels, strict=True) if label < 0]
    if not known or not unknown:
        return None
    return sum(unknown) / len(unknown), sum(known) / len(known)


def reference(
    kind: str, table: Columns, labels: Words
) -> tuple[str, Sequence[float], Sequence[float]] | None:
    """What a score without any information gives: the diagonal, or the share of positives."""
    if kind == "roc":
        return labels["chance"], [0, 1], [0, 1]
    if kind == "risk_coverage":
        return None
    share = sum(label >= 0 for label in table.labels) / len(table.labels)
    share = share if kind == "pr_known" else 1 - share
    return labels["chance"], [0, 1], [share, share]


def histogram(
    key: str, described: Mapping[str, Any], table: Columns, words: Words, labels: Words
) -> Chart:
    score = described["headline"]
    threshold = described["scores"][score]["threshold"]["value"]
    values: dict[bool, list[float]] = {
        side: [s for s, label in zip(table.scores, table.labels, strict=True)
               if (label >= 0) == side]
        for side in (True, False)
    }  # fmt: skip
    mark = None
    if threshold is not None and math.isfinite(threshold):
        mark = (labels["threshold_at"].format(value=f"{threshold:.3g}"), threshold)
    png = charts.mirrored_histogram(
        (labels["known"], values[True]),
        (labels["unknown"], values[False]),
        x_label=score,
        y_label=labels["axis_share"],
        mark=mark,
    )
    alt = words["alt_histogram"].format(
        score=score, protocol=key, n_known=len(values[True]), n_unknown=len(values[False]),
        threshold="–" if threshold is None else f"{threshold:.3g}",
    )  # fmt: skip
    return Chart(png, words["chart_histogram"].format(protocol=key, score=score), alt)


def confusion(key: str, described: Mapping[str, Any], words: Words, labels: Words) -> Chart | None:
    """True classes by decided ones; unknown is the last row and column."""
    table = described["confusion"]
    if not any(map(any, table["counts"])):
        return None
    names = {side: [*table[side][:-1], labels["unknown"]] for side in ("rows", "columns")}
    png = charts.heat_map(
        names["rows"],
        names["columns"],
        table["counts"],
        x_label=labels["axis_decided"],
        y_label=labels["axis_true"],
        rules=[len(names["rows"]) - 1],
    )
    right = sum(table["counts"][i][i] for i in range(len(table["rows"])))
    total = sum(map(sum, table["counts"]))
    alt = words["alt_confusion"].format(protocol=key, right=right, total=total)
    note = words["note_confusion_errors"].format(n=table["errors"]) if table["errors"] else ""
    return Chart(png, words["chart_confusion"].format(protocol=key), alt, note)
