"""Every metric of two runs as a paired difference with interval and test; Holm over more pairs.

Log-likelihoods and scores: `shared.significance.compare_paired`, a bootstrap over pictures and a
paired test (McNemar's for right/wrong answers of a picture each, else sign flips by picture), for
log-likelihoods also Wilcoxon's signed-rank test over pictures (scipy). Captions:
`shared.caption_score.compare_captions`, resampled and swapped from sufficient statistics. Macro-F1:
both runs drawn at the same pictures. No torch.

    python -m pytest tests/qwen_clip_llava_lora/test_comparing.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from qwen_clip_llava_lora.answer_scores import EXACT_MATCH_RULE
from qwen_clip_llava_lora.scoring import (
    VQA,
    by_language,
    caption_texts,
    macro_f1,
    per_sample,
    per_token,
    resampled_macro_f1,
    round_or_none,
    score_records,
)
from shared.caption_score import compare_captions, score_captions
from shared.comparison import adjust
from shared.options import UserError
from shared.runs import Run
from shared.significance import PairedComparison, compare_paired, holm
from shared.verification import ScoreRun

Row = Mapping[str, Any]
Figures = dict[str, Any]
CAPTION_METRICS = ("CIDEr", "Bleu_4", "Bleu_1", "ROUGE_L", "METEOR", "METEOR_nltk")
NAMES = {"asked": "prompt's form or decoding", "prompts_hash": "prompts", "classes": "class list"}


def scorer(runs: Sequence[Run]) -> ScoreRun:
    """What scores these runs' records again. Raises UserError for runs of another experiment or of
    different tasks."""
    tasks = {run.name: run.config.get("task") for run in runs}
    strange = [run for run in runs if run.metrics.get("exact_match_rule") != EXACT_MATCH_RULE]
    if strange:
        raise UserError(
            f"{strange[0].folder}: not scored by this version of qwen_clip_llava_lora/evaluate.py; "
            "the same evaluate.py command scores the run again"
        )
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise UserError(f"these are runs of different tasks ({listed}): give --task to evaluate.py")
    task, classes = runs[0].config["task"], runs[0].config["classes"]

    def score(records: Sequence[Row], *, expected: int) -> tuple[list[Figures], Figures]:
        return score_records(records, task, classes), {}

    return score


def plain_reasons(reasons: Sequence[str]) -> list[str]:
    """The reasons against a comparison, config.json's keys by the names that a reader knows."""
    return [
        next(
            (f"{name}{r[len(key) :]}" for key, name in NAMES.items() if r.startswith(f"{key}:")), r
        )
        for r in reasons
    ]


def metric_rows(base: Run, tuned: Run, seed: int = 0) -> list[Figures]:
    """Both values and the paired difference of every metric that the two runs have.

    A row: `metric`, `group` (a language, or ""), `unit` (points: percent and percentage points;
    nats; figure: 0 to 1; cider: 0 to 10), `first`, `second`, `difference`, `low`, `high`,
    `p_value`, `test`, `p_wilcoxon`, `n`, `wins`, `ties`, `losses`, `note`.
    """
    keys = [key for key in base.scored if key in tuned.scored]
    pairs = [(base.scored[key], tuned.scored[key]) for key in keys]
    scored = [pair for pair in pairs if None not in (pair[0]["score"], pair[1]["score"])]
    rows = likelihood_rows(pairs, seed)
    rows += caption_rows(base, tuned, scored, seed)
    rows.append(paired("exact_match", scored, lambda row: row["exact_match"], seed))
    for language in by_language([first for first, _ in scored]):
        own = [pair for pair in scored if pair[0]["answer_type"] == language]
        rows.append(paired("token_f1", own, lambda row: row["token_f1"], seed, group=language))
    if scored and all("scores" in row for pair in scored for row in pair):
        rows.append(paired("vqa", scored, lambda row: row["scores"][VQA], seed))
    if scored and "predicted" in scored[0][0]:
        rows.append(paired("class", scored, is_right("predicted"), seed))
        rows.append(macro_f1_row(scored, seed))
    if scored and all("likeliest" in row for row in scored[0]):
        rows.append(paired("likeliest", scored, is_right("likeliest"), seed))
    return [row for row in rows if row["n"]]


def is_right(key: str) -> Callable[[Row], int]:
    return lambda row: int(row[key] == row["label"])


def paired(
    metric: str,
    pairs: Sequence[tuple[Row, Row]],
    value: Callable[[Row], float],
    seed: int,
    *,
    unit: str = "points",
    group: str = "",
) -> Figures:
    first, second = ([value(row) for row in side] for side in zip(*pairs, strict=True)) \
        if pairs else ([], [])  # fmt: skip
    pictures = [row["image_id"] for row, _ in pairs]
    result = compare_paired(first, second, pictures, seed=seed)
    scale = 100 if unit == "points" else 1
    return figures_of(result, scale) | {
        "metric": metric,
        "group": group,
        "unit": unit,
        "first": round_or_none(scale * fmean(first)) if first else None,
        "second": round_or_none(scale * fmean(second)) if second else None,
        "p_wilcoxon": wilcoxon(first, second, pictures) if unit == "nats" else None,
    }


def figures_of(result: PairedComparison, scale: float = 1) -> Figures:
    def scaled(value: float | None) -> float | None:
        return None if value is None else round_or_none(scale * value)

    return {
        "difference": scaled(result.difference),
        "low": scaled(result.low),
        "high": scaled(result.high),
        "p_value": result.p_value,
        "test": result.test,
        "n": result.n,
        "wins": result.wins,
        "ties": result.ties,
        "losses": result.losses,
        "note": result.note and result.note.replace("cluster", "picture"),
    }


def wilcoxon(
    first: Sequence[float], second: Sequence[float], pictures: Sequence[Any]
) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test of the pictures' mean differences; None where none
    differs."""
    from scipy.stats import wilcoxon as signed_rank

    by_picture: dict[Any, list[float]] = defaultdict(list)
    for a, b, picture in zip(first, second, pictures, strict=True):
        by_picture[picture].append(b - a)
    differences = [fmean(values) for values in by_picture.values()]
    if len(differences) < 2 or not any(differences):
        return None
    return float(f"{signed_rank(differences).pvalue:.6g}")


def likelihood_rows(pairs: Sequence[tuple[Row, Row]], seed: int) -> list[Figures]:
    """Of the whole reference, and of a token where both models cut the references alike."""
    known = [
        pair for pair in pairs if all(row.get("log_likelihood") is not None for row in pair)
    ]  # fmt: skip
    rows = [paired("log_likelihood", known, per_sample, seed, unit="nats")]
    if all(first["reference_tokens"] == second["reference_tokens"] for first, second in known):
        rows.append(paired("per_token", known, per_token, seed, unit="nats"))
    else:
        rows[0]["note"] = "the models' tokens differ, so a token's likelihood is not compared"
    return rows


def caption_rows(
    base: Run, tuned: Run, pairs: Sequence[tuple[Row, Row]], seed: int
) -> list[Figures]:
    """Caption metrics of each language, where the runs have them; METEOR is its captions' mean."""
    if base.config.get("task") not in ("caption", "text"):
        return []
    rows: list[Figures] = []
    for language, own in by_language([first for first, _ in pairs]).items():
        references, first = caption_texts(own, list(base.records.values()))
        _, second = caption_texts(own, list(tuned.records.values()))
        compared = compare_captions(references, first, second, language=language, seed=seed)
        values = [caption_values(references, said, language) for said in (first, second)]
        for name in CAPTION_METRICS:
            if name in compared:
                rows.append(figures_of(compared[name]) | {
                    "metric": name, "group": language,
                    "unit": "cider" if name == "CIDEr" else "figure",
                    "first": values[0][name], "second": values[1][name], "p_wilcoxon": None,
                })  # fmt: skip
    return rows


def caption_values(
    references: Mapping[Any, list[str]], said: Mapping[Any, str], language: str
) -> dict[str, float | None]:
    """Corpus values; METEOR's is the mean of its captions, as its difference is."""
    scores = score_captions(references, said, language=language, n_resamples=2)
    values = {name: round_or_none(value) for name, value in scores["corpus"].items()}
    if "METEOR" in values:
        values["METEOR"] = round_or_none(
            fmean(own["METEOR"] for own in scores["per_image"].values())
        )
    return values


def macro_f1_row(pairs: Sequence[tuple[Row, Row]], seed: int) -> Figures:
    """Macro-F1 over the classes that have samples: an interval of the difference, and no test."""
    import numpy as np

    runs = [list(side) for side in zip(*pairs, strict=True)]
    truth = [row["label"] for row in runs[0]]
    used = sorted(set(truth))
    values = [
        100 * macro_f1(truth, [row["predicted"] or "" for row in rows], used) for rows in runs
    ]
    drawn = resampled_macro_f1(runs, "predicted", used, seed)
    low, high = (None, None) if drawn is None else np.percentile(
        100 * (drawn[1] - drawn[0]), [2.5, 97.5]
    ).tolist()  # fmt: skip
    return {
        "metric": "macro_f1", "group": "", "unit": "points",
        "first": round_or_none(values[0]), "second": round_or_none(values[1]),
        "difference": round_or_none(values[1] - values[0]),
        "low": round_or_none(low), "high": round_or_none(high),
        "p_value": None, "test": None, "p_wilcoxon": None,
        "n": len(pairs), "wins": None, "ties": None, "losses": None,
        "note": "a figure of all samples together: no test",
    }  # fmt: skip


def metric_rows_of_all(runs: Sequence[Run], seed: int = 0) -> list[Figures]:
    """`metric_rows` of every two runs, by metric; `p_holm`, and `p_wilcoxon`, are adjusted
    over the pairs of each.

    `runs` hold the same samples (`shared.comparison_many.common_questions`); `pair` are the two
    runs' places.
    """
    families: dict[tuple[str, str], list[Figures]] = {}
    for places in combinations(range(len(runs)), 2):
        for row in metric_rows(runs[places[0]], runs[places[1]], seed):
            own = families.setdefault((row["metric"], row["group"]), [])
            own.append(row | {"pair": list(places)})
    for rows in families.values():
        adjust(rows)
        for row, p in zip(rows, holm([row["p_wilcoxon"] for row in rows]), strict=True):
            row["p_wilcoxon"] = p
    return [row for rows in families.values() for row in rows]
