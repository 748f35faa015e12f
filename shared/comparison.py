"""Everything that is said about two runs, as one JSON-able dict: a pure function of their records.

The questions of both runs are paired by id. Differences come with a cluster-bootstrap interval and
a paired test (`shared.significance`), types with Holm's correction, confidence with reliability and
risk-coverage figures (`calibration`). Accuracies are in percent, differences in percentage points,
confidences and p-values in 0..1. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.calibration import reliability, risk_coverage
from shared.estimates import estimate
from shared.options import REPO_ROOT, UserError, manifest_value, portable_path, read_json
from shared.runs import Run, differences_in_kind
from shared.significance import PairedComparison, compare_paired, holm
from shared.verification import ScoreRun, changed_scores

CARDS = 6  # of each stratum in the gallery
CARDS_WITHOUT_SCORES = 48  # where the gallery is all there is


@dataclass(frozen=True)
class Pair:
    """One question, both records, both headline scores (0..1, None without references)."""

    sample_id: str
    base: dict[str, Any]
    tuned: dict[str, Any]
    base_scored: dict[str, Any]
    tuned_scored: dict[str, Any]

    @property
    def scored(self) -> bool:
        return self.base_scored["score"] is not None and self.tuned_scored["score"] is not None

    @property
    def change(self) -> float:
        return self.tuned_scored["score"] - self.base_scored["score"]


def pair_up(base: Run, tuned: Run) -> list[Pair]:
    """The questions that both runs hold, in the base run's order."""
    return [
        Pair(key, base.records[key], tuned.records[key], base.scored[key], tuned.scored[key])
        for key in base.scored
        if key in tuned.scored
    ]


def reasons_against(base: Run, tuned: Run, score_run: ScoreRun) -> list[str]:
    """Why the two should not be compared: by their options, then by their records."""
    reasons = differences_in_kind(base, tuned)
    pairs = pair_up(base, tuned)
    for name, key in (
        ("question", "question"),
        ("prompt", "prompt"),
        ("references", "references"),
        ("picture", "image"),
    ):
        differing = [p.sample_id for p in pairs if p.base.get(key) != p.tuned.get(key)]
        if differing:
            reasons.append(
                f"{name}: not the same for {len(differing)} questions, the first {differing[0]}"
            )
    for run in (base, tuned):
        if run.config:
            changed = changed_scores(run, score_run)
            if changed:
                reasons.append(f"{run.name}: {len(changed)} stored scores are not what its records "
                               f"give; first: {changed[0]}")  # fmt: skip
    return reasons


def compare(
    base: Run, tuned: Run, *, protocols: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The content of `comparison.json`; `seed` draws the gallery and the resamples.

    `protocols`: names in the `scores` of a row in scored.jsonl -> who publishes under them.
    """
    pairs = pair_up(base, tuned)
    if not pairs:
        raise UserError(f"{base.folder} and {tuned.folder} have no question in common")
    scored = [pair for pair in pairs if pair.scored]
    answer_types, question_types = types = [
        per_group(scored, key, seed) for key in ("answer_type", "question_type")
    ]
    adjust([row for table in types for row in table.values()])
    official = [p for p in scored if _official(p.base_scored) and _official(p.tuned_scored)]
    blind = base.metrics.get("blind")
    if blind and blind["n"] != len(official or scored):  # of other questions than compared here
        blind = None
    sides = {"base": base, "tuned": tuned}
    return {
        **{side: describe(run) for side, run in sides.items()},
        "metric": base.metrics["metric"],
        "seed": seed,
        "synthetic": {part: any(synthetic_part(run, part) for run in sides.values())
                      for part in ("data", "model")},
        "n_questions": len(pairs),
        "n_pictures": len({pair.base["image"] for pair in pairs} - {""}),
        "n_changed": sum(not same_words(pair) for pair in pairs),
        "trained_on_scored": [side for side, run in sides.items() if trained_on_scored(run)],
        "overall": change(scored, lambda row: row["score"], seed),
        "per_answer_type": answer_types,
        "per_question_type": question_types,
        "protocols": per_protocol(official, protocols, seed) if official and protocols else None,
        "exact_match": change(scored, lambda row: row["exact_match"], seed)
        if scored and all(_has_exact_match(pair) for pair in scored) else None,
        "blind": blind,
        "counts": {side: counts(pairs, side, run) for side, run in sides.items()},
        "confidence": {side: confidence_figures(pairs, side) for side in sides},
        "gallery": {
            name: {"total": total, "shown": [pair.sample_id for pair in chosen]}
            for name, (total, chosen) in strata(pairs, seed).items()
        },
    }  # fmt: skip


def change(
    pairs: Sequence[Pair], score: Callable[[dict[str, Any]], float], seed: int
) -> dict[str, Any]:
    """Both means (`estimate`) and the paired comparison, in percent and percentage points."""
    base = [score(pair.base_scored) for pair in pairs]
    tuned = [score(pair.tuned_scored) for pair in pairs]
    pictures = [pair.base_scored["image_id"] for pair in pairs]
    result: PairedComparison = compare_paired(base, tuned, pictures, seed=seed)

    def in_points(value: float | None) -> float | None:
        return None if value is None else round(100 * value, 2)

    return {
        "base": estimate(base, pictures),
        "tuned": estimate(tuned, pictures),
        "difference": in_points(result.difference),
        "low": in_points(result.low),
        "high": in_points(result.high),
        "p_value": result.p_value,
        "test": result.test,
        "n": result.n,
        "n_pictures": result.n_clusters,
        "wins": result.wins,
        "ties": result.ties,
        "losses": result.losses,
        "minimum_detectable_difference": in_points(result.minimum_detectable_difference),
        "note": result.note,
    }


def per_protocol(
    official: Sequence[Pair], protocols: Mapping[str, str], seed: int
) -> dict[str, dict[str, Any]]:
    """`change` of the same answers under each protocol."""
    return {
        name: {
            "published_under_it": who,
            **change(official, lambda row, name=name: row["scores"][name], seed),
        }
        for name, who in protocols.items()
    }


def per_group(pairs: Sequence[Pair], key: str, seed: int) -> dict[str, dict[str, Any]]:
    """`change` per type, largest first."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        name = pair.base_scored[key]
        if name is not None:
            groups.setdefault(name, []).append(pair)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: change(rows, lambda row: row["score"], seed) for name, rows in ordered}


def adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Puts `p_holm` into each row: Holm's p over all of them as one family.

    The types of all tables are one family, so that the same questions under two names ("number",
    "how many") have one p. The overall difference, the one hypothesis that a comparison is made
    for, is not of it.
    """
    for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = None if p is None else float(f"{p:.6g}")


def counts(pairs: Sequence[Pair], side: str, run: Run) -> dict[str, Any]:
    """Completeness of one run over the compared questions; accuracy with errors left out, too."""
    records = [getattr(pair, side) for pair in pairs]
    answered = [
        getattr(pair, f"{side}_scored") for pair in pairs
        if pair.scored and getattr(pair, side)["status"] == "ok"
    ]  # fmt: skip
    return {
        "expected": run.metrics.get("counts", {}).get("expected", len(run.records)),
        "compared": len(records),
        "errors": sum(record["status"] != "ok" for record in records),
        "empty": sum(is_empty(record) for record in records),
        "cut": sum(record["finish_reason"] == "length" for record in records),
        "excluding_errors": estimate(
            [row["score"] for row in answered], [row["image_id"] for row in answered]
        ),
    }


def is_empty(record: dict[str, Any]) -> bool:
    """An answer without a word, from a model that did answer."""
    return record["status"] == "ok" and not (record["answer"] or "").strip()


def confidence_figures(pairs: Sequence[Pair], side: str) -> dict[str, Any]:
    """Reliability and selective accuracy of one run; None with a reason where nothing is known."""
    rows = [
        (getattr(pair, side)["confidence"], getattr(pair, f"{side}_scored")["score"])
        for pair in pairs
        if pair.scored
    ]
    known = [(confidence, score) for confidence, score in rows if confidence is not None]
    if not known:
        return {"ece": None, "reason": "no answer with both a confidence and a score"}
    return reliability(known) | risk_coverage(rows)


def strata(pairs: Sequence[Pair], seed: int) -> dict[str, tuple[int, list[Pair]]]:
    """Name -> (how many there are, those for the gallery), drawn with the seed, not picked.

    With references: improved, worsened, confident_errors (score 0, surest first), unusable (error,
    empty or cut in either run). Without: changed, same, unusable.
    """
    unusable = [p for p in pairs if any(is_unusable(record) for record in (p.base, p.tuned))]
    scored = [pair for pair in pairs if pair.scored]
    size = CARDS if scored else CARDS_WITHOUT_SCORES
    if not scored:
        sound = [p for p in pairs if p.base["status"] == p.tuned["status"] == "ok"]
        members = {
            "changed": [p for p in sound if not same_words(p)],
            "same": [p for p in sound if same_words(p)],
            "unusable": unusable,
        }
    else:
        wrong = [
            p for p in scored
            if p.tuned_scored["score"] == 0 and p.tuned["confidence"] is not None
        ]  # fmt: skip
        members = {
            "improved": [p for p in scored if p.change > 1e-9],
            "worsened": [p for p in scored if p.change < -1e-9],
            "confident_errors": sorted(wrong, key=lambda p: (-p.tuned["confidence"], p.sample_id)),
            "unusable": unusable,
        }
    return {
        name: (len(rows), rows[:size] if name == "confident_errors" else drawn(rows, size, seed))
        for name, rows in members.items()
    }


def drawn(rows: Sequence[Pair], size: int, seed: int) -> list[Pair]:
    """At most `size` of them at random, in their own order."""
    chosen = random.Random(seed).sample(range(len(rows)), min(size, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def same_words(pair: Pair) -> bool:
    return pair.base["answer"] == pair.tuned["answer"]


def is_unusable(record: dict[str, Any]) -> bool:
    return record["status"] != "ok" or is_empty(record) or record["finish_reason"] == "length"


def describe(run: Run) -> dict[str, Any]:
    """What ran: options, environment, and the adapter's own record of its training."""
    environment = run.folder / "environment.json"
    return {
        "name": run.name,
        "folder": portable_path(run.folder),
        "model": run.config.get("model"),
        "adapter": run.config.get("adapter"),
        "config": run.config,
        "environment": read_json(environment) if environment.is_file() else None,
        "adapter_manifest": adapter_manifest(run),
        "data_problems": run.metrics.get("data_problems"),
        # what is known of all its weights, where evaluate.py found it out
        "trained_on": (run.metrics.get("weights_saw") or {}).get("trained_on"),
    }


def adapter_manifest(run: Run) -> dict[str, Any] | None:
    if not run.config.get("adapter"):
        return None
    manifest = locate(run.config["adapter"]) / "manifest.json"
    return read_json(manifest) if manifest.is_file() else None


def scored_data(run: Run) -> tuple[str | None, str | None]:
    """(source, split) of the questions, spelled as the adapter's manifest spells them."""
    if run.config.get("data"):
        return run.config["data"], None
    return run.config.get("data_root"), run.config.get("split")


def trained_on_scored(run: Run) -> bool:
    """Whether the adapter learned from the very file or split that scores it.

    By the run's own metrics, which keep what evaluate.py found, or by the adapter's manifest.
    """
    if run.metrics.get("trained_on_scored"):
        return True
    return learned_from(adapter_manifest(run), run.config)


def learned_from(manifest: Mapping[str, Any] | None, config: Mapping[str, Any]) -> bool:
    """Whether an adapter's manifest names the questions that a run with these options scores.

    They are the same file or split when the contents have one hash, however the path is spelled;
    when the paths lead to one place (rows edited since were learned for the most part); and when
    both are the same split of the real VQAv2, which has no hash, in whichever folder it lies.
    """
    learned = (manifest or {}).get("data") or {}
    if isinstance(learned, list):  # of several data sets
        return any(learned_from({"data": one}, config) for one in learned)
    source, split = config.get("data"), None
    if not source:
        source, split = config.get("data_root"), config.get("split")
    if not source or not learned.get("source") or learned.get("split") != split:
        return False
    hashes = learned.get("data_hash"), config.get("data_hash")
    if None not in hashes and hashes[0] == hashes[1]:
        return True
    if locate(learned["source"]).resolve() == locate(source).resolve():
        return True
    return split is not None and "data_hash" in learned and hashes == (None, None)


def picture_file(run: Run, record: Mapping[str, Any]) -> Path:
    """Where the picture of a record lies: under the run's data root, or beside its own rows."""
    rows = run.config.get("data")
    root = locate(rows).parent if rows else locate(run.config["data_root"])
    return root / record["image"]


def locate(path: str) -> Path:
    """A path of `config.json`: relative ones count from the repository, else from here."""
    inside = REPO_ROOT / path
    return inside if inside.exists() else Path(path)


def _official(scored: dict[str, Any]) -> bool:
    scores = scored.get("scores") or {"none": None}
    return all(value is not None for value in scores.values())


def _has_exact_match(pair: Pair) -> bool:
    return all(row.get("exact_match") is not None for row in (pair.base_scored, pair.tuned_scored))


def synthetic_part(run: Run, part: str) -> bool:
    """By the run's own metrics, or by the manifest of what it used, should it lie there still."""
    if run.metrics.get("synthetic", {}).get(part):
        return True
    if part == "data" and run.config.get("data"):
        return False
    used = run.config.get("data_root" if part == "data" else "model")
    return used is not None and bool(manifest_value(locate(used), "synthetic"))
