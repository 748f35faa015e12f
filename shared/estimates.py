"""Means of scores (0..1) in percent with n and interval, as `metrics.json` holds them. No torch.

python -m pytest tests/shared/test_estimates.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.significance import score_interval

Record = Mapping[str, Any]


def estimate(
    values: Sequence[float], clusters: Sequence[Any], reason: str = "no question with references"
) -> dict[str, Any]:
    """Mean in percent with n, number of pictures and a 95 % interval (`score_interval`).

    `reason` says why there is no value when there are no scores. `note`, where there is one, says
    what is wrong with the interval (few pictures, none at all) or how else it was computed.
    """
    if not values:
        return {"value": None, "n": 0, "reason": reason}
    interval = score_interval(values, clusters)
    figure = {
        "value": round(100 * sum(values) / len(values), 2),
        "low": None if interval.low is None else round(100 * interval.low, 2),
        "high": None if interval.high is None else round(100 * interval.high, 2),
        "n": len(values),
        "n_pictures": interval.n_clusters,
    }
    note = interval.note and interval.note.replace("cluster", "picture")
    return figure | ({"note": note} if note else {})


def by_group(
    scored: Sequence[Record], key: Callable[[Record], str | None]
) -> dict[str, dict[str, Any]]:
    """`estimate` of the headline per group, largest group first; rows without a group left out."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for row in scored:
        name = key(row)
        if name is not None and row["score"] is not None:
            groups[name].append(row)
    return {
        name: estimate([r["score"] for r in rows], [r["image_id"] for r in rows])
        for name, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def percent(estimate: Mapping[str, Any]) -> str:
    """A figure for the console: value, interval, how many questions about how many pictures."""
    if estimate["value"] is None:
        return f"none ({estimate['reason']})"
    interval = (
        "" if estimate["low"] is None else f"[{estimate['low']:.2f}, {estimate['high']:.2f}] "
    )
    note = f"; {estimate['note']}" if estimate.get("note") else ""
    of = f"(n {estimate['n']}, {estimate['n_pictures']} pictures{note})"
    return f"{estimate['value']:.2f} % {interval}{of}"
