"""What evaluate.py prints at its end: the figures of each task, and the change against a base run.

python lavis_apps/evaluate.py --toy --task retrieval
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavis_apps.scoring_retrieval import DIRECTIONS
from shared import caption_runs
from shared.estimates import percent
from shared.runs import Run, compare_runs, summary_line

Figures = Mapping[str, Any]
WORST_CLASSES = 5


def print_figures(metrics: Figures) -> None:
    """Headline, what stands beside it, counts, and what the weights were trained on."""
    if metrics["task"] == "caption":
        caption_runs.print_figures(metrics)
    else:
        print("\n".join(figure_lines(metrics)))
        print("  " + ", ".join(f"{value} {name}" for name, value in metrics["counts"].items()))
    saw = metrics["weights_saw"]
    print("weights trained on: " + "; ".join(saw["trained_on"]))
    if saw["warning"]:
        print(f"WARNING: {saw['warning']}")


def figure_lines(metrics: Figures) -> list[str]:
    lines = [f"{metrics['metric']}: {percent(metrics['accuracy'])}"]
    if metrics["counts"]["errors"]:
        lines.append(f"  without errors: {percent(metrics['excluding_errors'])}")
    more = {
        "vqa": _vqa, "retrieval": _retrieval, "classification": _classification,
        "matching": _matching, "localization": _localization,
    }[metrics["task"]]  # fmt: skip
    return lines + more(metrics)


def _vqa(metrics: Figures) -> list[str]:
    lines = [f"  {name}: {percent(own)}" for name, own in metrics["per_answer_type"].items()]
    if metrics["metric_reason"]:
        lines.append(f"  note: {metrics['metric_reason']}")
    return lines


def _retrieval(metrics: Figures) -> list[str]:
    shown = {"": (metrics["retrieval"], metrics["chance"])}
    if metrics["retrieval_itc"]:
        shown["by ITC alone"] = metrics["retrieval_itc"], metrics["chance"]
    equal = metrics["equal_captions"]
    if equal:
        shown["equal captions as right"] = equal["retrieval"], equal["chance"]
        if equal["retrieval_itc"]:
            shown["equal captions as right, by ITC alone"] = equal["retrieval_itc"], equal["chance"]
    lines = []
    for name, (figures, chance) in shown.items():
        if name:
            lines.append(f"{name}: mean recall {percent(figures['r_mean'])}")
        for direction, said in DIRECTIONS.items():
            own = ", ".join(
                f"{k} {figure['value']}" for k, figure in figures[direction].items() if k != "mean"
            )
            lines.append(f"  {direction} ({said}): {own}; R@1 by chance {chance[direction]}")
    if equal:
        lines.append(
            f"  note: {equal['n_queries']} queries have a caption that another picture has too; by "
            "id only one picture is right, and a tie with a wrong one counts against"
        )
    return lines


def _classification(metrics: Figures) -> list[str]:
    lines = [f"  top-5: {percent(metrics['top']['top-5'])}"]
    macro = metrics["macro"]
    if macro["value"] is not None:
        lines.append(f"  macro (mean over {macro['n']} classes): {macro['value']:.2f} %")
    lines.append(f"  by chance: {metrics['chance']} % of {metrics['n_classes']} classes")
    known = [(own["recall"], name) for name, own in metrics["per_class"].items()
             if own["recall"] is not None]  # fmt: skip
    worst = ", ".join(f"{name} {recall:.1f} %" for recall, name in sorted(known)[:WORST_CLASSES])
    return [*lines, f"  lowest: {worst}"]


def _matching(metrics: Figures) -> list[str]:
    return [
        f"  AUROC of the ITC cosine: {percent(metrics['auroc']['itc'])}",
        f"  told apart at 0.5: {percent(metrics['accuracy_at_half'])}",
    ]


def _localization(metrics: Figures) -> list[str]:
    ratio = metrics["ratio"]
    limits = "" if ratio.get("low") is None else f" [{ratio['low']}, {ratio['high']}]"
    several = metrics["named_against_others"]
    return [
        f"  the boxes' share of the area: {percent(metrics['boxes_share'])}",
        f"  hits over that share: {ratio['value']}{limits}",
        f"  of the map inside the boxes: {percent(metrics['energy'])}",
        "  in pictures with several categories: hits on the one named "
        f"{percent(several['named'])},",
        f"    on the others {percent(several['others'])},",
        f"    difference {percent(several['difference'])}; 0: the map ignores its text",
    ]


def change_line(base: Run, tuned: Run) -> str:
    """Tuned against base on the same sample: the mean recall of retrieval, else the headline."""
    if base.config.get("task") == "caption":
        return caption_runs.change_line(base, tuned)
    if base.config.get("task") == "retrieval":
        from lavis_apps.comparing import mean_recall_difference

        return f"mean recall: {summary_line(mean_recall_difference(base, tuned, 'rank', 0))}"
    return summary_line(compare_runs(base, tuned))
