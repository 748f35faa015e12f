"""Means of scores (0..1) in percent with n and interval, as `metrics.json` holds them. No torch.

python -m pytest tests/blip2_qlora/test_evaluate.py -k interval
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.significance import cluster_bootstrap

Record = Mapping[str, Any]


def estimate(values: Sequence[float], clusters: Sequence[Any]) -> dict[str, Any]:
    """Mean in percent with n and a 95 % interval (bootstrap over pictures)."""
    if not values:
        return {"value": None, "n": 0, "reason": "no question with references"}
    interval = cluster_bootstrap(values, clusters)
    return {
        "value": round(100 * sum(values) / len(values), 2),
        "low": None if interval.low is None else round(100 * interval.low, 2),
        "high": None if interval.high is None else round(100 * interval.high, 2),
        "n": len(values),
    }


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
