"""Two or more runs as one JSON-able dict: on the same pictures, or one setup on several splits.

Runs on the same pictures have every figure side by side, and paired tests of every two of them
(`paired.py`): known/unknown decisions, naming of the known, AUROC of the headline score, each a
family over all pairs and protocols. Runs of one setup on several splits by the same rules have each
split's figures with their mean and its t interval over splits. Anything else is refused, as a
difference could then be the pictures'. Figures and shares 0..1. No torch.

    python -m pytest tests/llava_openset/test_compare.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from llava_openset.paired import (
    NO_THRESHOLD,
    adjusted,
    auroc_test,
    decision_test,
    naming_test,
    no_test,
    row_key,
)
from llava_openset.run_reading import DECISIONS, LEADING, RANKING, OpenSetRun, split_rules
from shared.comparison_many import MOST_RUNS
from shared.comparison_sections import flat
from shared.options import UserError

PICTURES, SPLITS = "same pictures", "several splits"
# What must be one on several splits; the split itself and its prompts, which name classes, may not.
SETUP = (
    "model", "model_fingerprint", "revision", "adapter", "adapter_fingerprint", "quantization",
    "compute_dtype", "question", "pictures", "image_handling", "max_new_tokens",
)  # fmt: skip
SCORING = ("threshold_criterion", "length_normalisation")
# Options that say where and how fast a run was, not what it answers.
NEUTRAL = {"output_dir", "batch_size", "device", "toy", "language", "command"}
FAMILIES = ("decisions", "naming", "auroc")


def common_protocols(runs: Sequence[OpenSetRun]) -> list[str]:
    """Of all runs, the leading one first. Raises UserError when there is none."""
    first = [key for key in runs[0].protocols if all(key in run.protocols for run in runs)]
    if not first:
        listed = "; ".join(f"{run.name}: {', '.join(run.protocols)}" for run in runs)
        raise UserError(
            f"the runs have no protocol in common ({listed}); run evaluate.py with the same "
            "--protocol for all"
        )
    order = [key for key in LEADING if key in first]
    return [*order, *(key for key in first if key not in order)]


def kind_of_comparison(runs: Sequence[OpenSetRun]) -> str:
    """`PICTURES` or `SPLITS`; raises UserError with the reason when the runs are neither."""
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs: at most {MOST_RUNS} fit on one page")
    hashes = [run.metrics["split"]["data_hash"] for run in runs]
    if len(set(hashes)) == 1:
        check_same_pictures(runs)
        return PICTURES
    if len(set(hashes)) < len(hashes):
        listed = "; ".join(f"{run.name}: {run.metrics['split']['folder']}" for run in runs)
        raise UserError(
            "some of these runs share a split and some don't. Compare either runs on one split, or "
            f"one setup on several splits ({listed})"
        )
    check_several_splits(runs)
    return SPLITS


def check_same_pictures(runs: Sequence[OpenSetRun]) -> None:
    """Raises UserError where runs of one split scored other samples, as `--limit` makes them."""
    first = runs[0]
    for key in common_protocols(runs):
        ours = {row_key(row): row["label"] for row in first.test_rows(key)}
        for run in runs[1:]:
            theirs = {row_key(row): row["label"] for row in run.test_rows(key)}
            if ours != theirs:
                raise UserError(
                    f"{first.name} and {run.name} scored other pictures under {key}: "
                    f"{len(ours.keys() - theirs)} only in the first, "
                    f"{len(theirs.keys() - ours)} only in the second. Run evaluate.py again with "
                    "the same --limit and --part"
                )


def check_several_splits(runs: Sequence[OpenSetRun]) -> None:
    """Raises UserError unless the splits are drawn by the same rules and all else is the same."""
    first = runs[0]
    rules = {run.name: split_rules(run) for run in runs}
    absent = [name for name, found in rules.items() if found is None]
    if absent:
        raise UserError(
            f"{absent[0]}: other pictures than the rest, and its split's split.json is not there "
            "any more, so its rules can't be held against the others'"
        )
    for run in runs[1:]:
        reasons = [
            f"rule {key}: {ours} against {theirs}"
            for key, (ours, theirs) in _differing(
                flat(rules[first.name] or {}), flat(rules[run.name] or {})
            ).items()
        ]
        for side in ("known", "unknown"):
            counts = [len(r.metrics["split"][side]) for r in (first, run)]
            if counts[0] != counts[1]:
                reasons.append(f"{counts[0]} {side} classes against {counts[1]}")
        if reasons:
            raise UserError(
                f"{first.name} and {run.name} are about different pictures, by other rules: "
                f"{'; '.join(reasons)}. No difference between them would be the model's"
            )
        mixed = _differing(setup(first), setup(run))
        if mixed:
            listed = "; ".join(f"{key}: {a} against {b}" for key, (a, b) in mixed.items())
            raise UserError(
                f"{first.name} and {run.name} differ in their split and in more ({listed}). "
                "Compare models on one split, or one model on several splits"
            )
    drawn = [_draw_of(run) for run in runs]
    twice = [run.name for run, found in zip(runs, drawn, strict=True) if drawn.count(found) > 1]
    if twice:
        raise UserError(
            f"{' and '.join(twice)}: one draw of classes and seed, yet other pictures, as with "
            "own pictures in one run only. Run evaluate.py with the same --private_images for all"
        )


def _draw_of(run: OpenSetRun) -> tuple[Any, ...]:
    split = run.metrics["split"]
    return split["seed"], tuple(split["known"]), tuple(split["unknown"])


def setup(run: OpenSetRun) -> dict[str, str]:
    chosen = {name: run.config.get(name) for name in SETUP}
    chosen |= {name: run.metrics["scoring"].get(name) for name in SCORING}
    return flat(chosen)


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {
        key: (ours.get(key, "–"), theirs.get(key, "–"))
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    }


def compare(runs: Sequence[OpenSetRun], names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The content of `comparison.json`. Raises UserError when the runs should not be compared."""
    kind = kind_of_comparison(runs)
    keys = common_protocols(runs)
    common = {
        "kind": kind,
        "runs": [describe(run, name) for run, name in zip(runs, names, strict=True)],
        "protocols": keys,
        "differing": differing_options(runs),
        "seed": seed,
        "synthetic": {
            part: any(run.metrics["synthetic"].get(part) for run in runs)
            for part in ("data", "model")
        },
        "figures": {key: [chosen_figures(run, key) for run in runs] for key in keys},
    }
    if kind == PICTURES:
        return common | {"tests": tests_between(runs, names, keys, seed)}
    return common | {"over_splits": {key: over_splits(runs, key) for key in keys}}


def describe(run: OpenSetRun, name: str) -> dict[str, Any]:
    return {
        "label": name,
        "name": run.name,
        "model": run.metrics["model"],
        "split": run.metrics["split"],
        "pictures": run.metrics.get("pictures"),
        "scoring": run.metrics["scoring"],
    }


def chosen_figures(run: OpenSetRun, protocol: str) -> dict[str, Any]:
    """The protocol's figures by the scores that it decides and ranks by."""
    described = run.protocols[protocol]
    decision, headline = described["decision"]["score"], described["headline"]
    return {
        "decision": decision,
        "headline": headline,
        "by_decision": described["scores"][decision]["figures"],
        "by_headline": described["scores"][headline]["figures"],
        "n_known": described["parts"]["test"]["known"],
        "n_unknown": described["parts"]["test"]["unknown"],
    }


def differing_options(runs: Sequence[OpenSetRun]) -> list[list[str]]:
    """Option, and its value in each run, where they differ; prompts and scoring among them."""
    columns = [
        flat({k: v for k, v in run.config.items() if k not in NEUTRAL})
        | flat(run.metrics["scoring"], "scoring.")
        for run in runs
    ]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *(column.get(key, "–") for column in columns)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def tests_between(
    runs: Sequence[OpenSetRun], names: Sequence[str], keys: Sequence[str], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Each family's tests, second run minus first, for every protocol and every two runs."""

    def decisions(key: str, base: OpenSetRun, other: OpenSetRun) -> dict[str, Any]:
        if key in base.without_threshold or key in other.without_threshold:
            return no_test(NO_THRESHOLD)
        return decision_test(base.test_rows(key), other.test_rows(key), seed)

    def naming(key: str, base: OpenSetRun, other: OpenSetRun) -> dict[str, Any]:
        return naming_test(base.test_rows(key), other.test_rows(key), seed)

    def auroc(key: str, base: OpenSetRun, other: OpenSetRun) -> dict[str, Any]:
        scores = base.protocols[key]["headline"], other.protocols[key]["headline"]
        rows = base.test_rows(key), other.test_rows(key)
        return auroc_test(*rows, scores, base.known_classes, seed)

    tests: dict[str, Callable[[str, OpenSetRun, OpenSetRun], dict[str, Any]]] = {
        "decisions": decisions, "naming": naming, "auroc": auroc,
    }  # fmt: skip
    return {
        family: adjusted(
            [
                {"protocol": key, "base": names[i], "other": names[j]}
                | tests[family](key, runs[i], runs[j])
                for key in keys
                for i, j in combinations(range(len(runs)), 2)
            ]
        )
        for family in FAMILIES
    }


def over_splits(runs: Sequence[OpenSetRun], protocol: str) -> dict[str, dict[str, Any]]:
    """Of each figure its mean over the splits with a t interval; openness is fixed by the rules."""
    chosen = [chosen_figures(run, protocol) for run in runs]
    found = {}
    for side, names in (("by_decision", DECISIONS), ("by_headline", RANKING)):
        for name in names:
            found[name] = mean_over_splits([figures[side][name]["value"] for figures in chosen])
    return found


def mean_over_splits(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % t interval over the splits that have the figure.

    One split has no interval; where all have the same value there is none either, as it would claim
    certainty. `n` is how many splits entered; limits may lie outside 0..1, and are not cut.
    """
    given = [value for value in values if value is not None]
    n = len(given)
    figure: dict[str, Any] = {"value": None, "low": None, "high": None, "sd": None, "n": n,
                              "values": list(values)}  # fmt: skip
    if not n:
        return figure | {"reason": "no split has this figure"}
    mean = sum(given) / n
    figure["value"] = mean
    if n < len(values):
        figure["note"] = f"{len(values) - n} of {len(values)} splits don't have this figure"
    if n == 1:
        return figure | {"note": "one split: no interval"}
    sd = math.sqrt(sum((value - mean) ** 2 for value in given) / (n - 1))
    figure["sd"] = sd
    if sd <= 1e-12:
        return figure | {"note": "the same in every split: no interval"}
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return figure | {"low": mean - half, "high": mean + half}
