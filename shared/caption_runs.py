"""From records of captions to `scored.jsonl` and `metrics.json`: a pure function of the records.

The headline, in the place that every run's figures have, is BLEU-4 of the corpus in percent; beside
it stand all metrics of `shared.caption_score` with their bootstrap intervals. An error counts as an
empty caption. A picture's own `score` (0..1) is its CIDEr / 10, as sentence BLEU-4 is nearly 0 for
most captions; its other figures are beside it. No torch.

    python blip2_qlora/evaluate.py --task caption --toy
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.caption_metrics import BLEU
from shared.caption_score import CaptionScores, compare_captions, score_captions
from shared.options import UserError
from shared.report import p_value
from shared.runs import Run
from shared.significance import PairedComparison
from shared.verification import verify

TASK = "caption"
METEORS = ("METEOR", "METEOR_nltk")  # which of them depends on the machine that scores
ORDER = (*BLEU, *METEORS, "ROUGE_L", "CIDEr")
HEADLINES = ("Bleu_4", "CIDEr")  # what a comparison's sentence goes by
NAMES = {name: name.replace("Bleu_", "BLEU-").replace("_L", "-L") for name in ORDER}
NAMES["METEOR_nltk"] = "METEOR (nltk)"
METRIC = "BLEU-4 of captions, {tokenizer}"
NO_CAPTIONS = "no picture with reference captions"

Record = Mapping[str, Any]


def references_of(records: Sequence[Record]) -> dict[str, list[str]]:
    return {record["sample_id"]: record["references"] for record in records}


def candidates_of(records: Sequence[Record]) -> dict[str, str]:
    """The captions that there are: a picture with an error has none."""
    return {r["sample_id"]: r["answer"] for r in records if r["status"] == "ok"}


def are_caption_runs(runs: Sequence[Run]) -> bool:
    """Raises UserError when some are and others are not."""
    kinds = {run.config.get("task") == TASK for run in runs}
    if len(kinds) > 1:
        listed = ", ".join(f"{run.name}: {run.config.get('task') or 'questions'}" for run in runs)
        raise UserError(f"captions and answers can't be compared ({listed})")
    return kinds == {True}


def score_run(
    records: Sequence[Record], *, expected: int, meteor: bool = True, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Scored rows and metrics of a run that should hold `expected` records.

    `captions` in the metrics has every corpus figure in pycocoevalcap's units (0..1, CIDEr 0..10).
    Rows don't hold METEOR, which another machine may have in another form.
    """
    metrics: dict[str, Any] = {"task": TASK, "counts": _counts(records, expected)}
    if not records:
        nothing = {"value": None, "n": 0, "reason": NO_CAPTIONS}
        return [], metrics | {"metric": METRIC.format(tokenizer="none"), "accuracy": nothing}
    scores = score_captions(
        references_of(records), candidates_of(records), meteor=meteor, seed=seed
    )
    answered = [record for record in records if record["status"] == "ok"]
    without_errors = scores
    if 0 < len(answered) < len(records):
        without_errors = score_captions(
            references_of(answered), candidates_of(answered), meteor=False, seed=seed
        )
    metrics |= {
        "metric": METRIC.format(tokenizer=scores["tokenizer"]),
        "accuracy": headline(scores),
        "excluding_errors": headline(without_errors),
        "captions": {
            "corpus": {name: _rounded(scores["corpus"][name]) for name in named(scores["corpus"])},
            "intervals": {
                name: {key: _rounded(value) for key, value in interval.items()}
                for name, interval in scores["intervals"].items()
            },
            "tokenizer": scores["tokenizer"],
            "notes": scores["notes"],
        },
    }
    return [_row(record, scores["per_image"][record["sample_id"]]) for record in records], metrics


def score_again(
    records: Sequence[Record], *, expected: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`score_run` without METEOR, which the rows don't hold."""
    return score_run(records, expected=expected, meteor=False)


def named(figures: Mapping[str, Any]) -> list[str]:
    """The metrics that are there, BLEU first."""
    return [name for name in ORDER if name in figures]


def headline(scores: CaptionScores) -> dict[str, Any]:
    """BLEU-4 in percent with n and interval, as the headline of every run is kept."""
    value = scores["corpus"]["Bleu_4"] or 0.0
    limits = scores["intervals"]["Bleu_4"]
    low, high = limits["low"], limits["high"]
    # A percentile interval of few pictures may leave out the figure itself.
    figure = {
        "value": round(100 * value, 2),
        "low": None if low is None else round(100 * min(low, value), 2),
        "high": None if high is None else round(100 * max(high, value), 2),
        "n": scores["n"],
        "n_pictures": scores["n"],
    }
    note = limits.get("note")
    return figure | ({"note": note.replace("image", "picture")} if note else {})


def _row(record: Record, figures: Mapping[str, float]) -> dict[str, Any]:
    cider = figures.get("CIDEr")
    return {
        "sample_id": record["sample_id"],
        "image_id": record["image_id"],
        "question_type": record["question_type"],
        "answer_type": record["answer_type"],
        "score": None if cider is None else _rounded(cider / 10),
        "scores": {n: _rounded(figures[n]) for n in named(figures) if n not in METEORS},
    }


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _counts(records: Sequence[Record], expected: int) -> dict[str, int]:
    status = [record["status"] for record in records]
    return {
        "expected": expected,
        "answered": status.count("ok"),
        "errors": status.count("error"),
        "missing": expected - len(records) + status.count("skipped"),
        "empty": sum(record["answer"] == "" for record in records),
        "cut": sum(record["finish_reason"] == "length" for record in records),
    }


def print_figures(metrics: Mapping[str, Any]) -> None:
    """What an evaluation prints at its end."""
    captions = metrics.get("captions")
    if captions is None:
        print(f"no figures: {metrics['accuracy']['reason']}")
        return
    print(
        f"captions of {metrics['accuracy']['n']} pictures, tokens: {captions['tokenizer']}\n"
        "figures as pycocoevalcap gives them (papers print them times 100), 95 % intervals:"
    )
    for name in named(captions["corpus"]):
        print(f"  {NAMES[name]}: {with_interval(captions, name)}")
    few = metrics["accuracy"].get("note")
    for note in [*captions["notes"].values(), *filter(None, [few])]:
        print(f"  note: {note}")
    print("  " + ", ".join(f"{value} {name}" for name, value in metrics["counts"].items()))
    problems = metrics.get("data_problems")
    if problems and problems["count"]:
        print(f"  {problems['count']} bad rows of the data not used; first: {problems['first'][0]}")


def with_interval(captions: Mapping[str, Any], name: str) -> str:
    """0.3512 [0.3301, 0.3720] of a run's or a comparison's figures; "none" where there is none."""
    value, limits = captions["corpus"][name], captions["intervals"].get(name, {})
    if value is None:
        return "none"
    if limits.get("low") is None:
        return f"{value:.4f}"
    return f"{value:.4f} [{limits['low']:.4f}, {limits['high']:.4f}]"


def change_line(base: Run, tuned: Run) -> str:
    """The paired difference of the headlines over the pictures that both runs have, as text."""
    both = [key for key in base.records if key in tuned.records]
    records = [[run.records[key] for key in both] for run in (base, tuned)]
    if not both:
        raise UserError(f"{base.folder} has none of these pictures")
    found = compare_captions(references_of(records[0]), *map(candidates_of, records), meteor=False)
    return "; ".join(f"{NAMES[name]} {difference(found[name])}" for name in HEADLINES
                     if name in found)  # fmt: skip


def difference(row: PairedComparison) -> str:
    """+0.0512 [+0.0301, +0.0720], p 0.0005, n 200, 90 better / 60 equal / 50 worse"""
    limits = "no interval" if row.low is None else f"[{row.low:+.4f}, {row.high:+.4f}]"
    return (
        f"{row.difference:+.4f} {limits}, p {p_value(row.p_value)}, n {row.n}, "
        f"{row.wins} better / {row.ties} equal / {row.losses} worse"
    )


def verify_captions(run: Run) -> list[str]:
    """What the folder says otherwise than scoring its records again; empty when all agrees.

    METEOR is compared where this machine has it in the run's form, as its note says.
    """
    expected = run.metrics.get("counts", {}).get("expected", len(run.records))
    rows, again = score_run(list(run.records.values()), expected=expected)
    stored = run.metrics
    if _meteor_notes(stored) != _meteor_notes(again):
        stored, again = _without_meteor(stored), _without_meteor(again)
    return verify(replace(run, metrics=dict(stored)), lambda records, expected: (rows, again))


def _meteor_notes(metrics: Mapping[str, Any]) -> dict[str, str]:
    notes = (metrics.get("captions") or {}).get("notes", {})
    return {name: notes[name] for name in METEORS if name in notes}


def _without_meteor(metrics: Mapping[str, Any]) -> dict[str, Any]:
    captions = {
        key: {name: value for name, value in part.items() if name not in METEORS}
        if isinstance(part, dict)
        else part
        for key, part in (metrics.get("captions") or {}).items()
    }
    return {**metrics, "captions": captions}
