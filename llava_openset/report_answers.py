"""Two sections of a run's report: what the answers named, and the pictures that were asked twice.

As in `report_sections`: a run of `run_reading` becomes blocks of `shared.report`, by the figures of
metrics.json. No file is read or written here. No torch.

    python -m pytest tests/llava_openset/test_report.py
"""

from __future__ import annotations

from collections.abc import Mapping

from llava_openset.report_sections import ranked, rate, shown
from llava_openset.run_reading import OpenSetRun
from shared.report import Block, Row, Table, Text

Words = Mapping[str, str]

MATCHES = ("class", "unknown", "abstain", "ambiguous", "error")
# Keywords know no abstention and stop at the first class; a choice is always a class.
NEVER = {"course": {"abstain", "ambiguous"}, "choice": {"unknown", "abstain", "ambiguous"}}
COUNTS = ("expected", "answered", "errors", "missing", "empty", "cut")


def answers(run: OpenSetRun, words: Words) -> list[Block]:
    """What the answers named, by kind of picture, and how many are none."""
    rows = []
    for key, described in run.protocols.items():
        never = NEVER.get(key) or NEVER.get(described["kind"], set())
        for side in ("known", "unknown"):
            counts = described["matches"][side]
            cells = ["–" if m in never else str(counts.get(m, 0)) for m in MATCHES]
            rows.append(Row([f"{key}: {words[side]}", *cells]))
    matches = Table(
        header=[words["protocol"], *(words[f"match_{m}"] for m in MATCHES)], rows=rows,
        title=words["matches"], note=words["matches_note"],
    )  # fmt: skip
    body = [
        Row([key, *(str(described["counts"].get(name, 0)) for name in COUNTS),
             str(described.get("wrong_but_present", "–"))])
        for key, described in run.protocols.items()
    ]  # fmt: skip
    complete = Table(
        header=[words["protocol"], *(words[f"count_{name}"] for name in COUNTS),
                words["wrong_but_present"]],
        rows=body, title=words["completeness"], note=words["completeness_note"],
    )  # fmt: skip
    return [matches, complete]


def two_query(run: OpenSetRun, words: Words) -> list[Block]:
    """Each picture asked with the full list and without its own class (Miller et al. 2024)."""
    described = run.protocols.get("two_query")
    if described is None:
        return [Text([words["two_query_not_run"]])]
    names = ("auroc", "aupr_known", "fpr95_known_positive")
    rows = [
        Row([words.get(f"query_{query}", query), f"{part['n_known']} / {part['n_unknown']}", score,
             *(shown(name, entries[name]) for name in names)], part["n_known"] + part["n_unknown"])
        for query, part in described["queries"].items()
        for score, entries in part["scores"].items()
    ]  # fmt: skip
    queries = Table(
        header=[words["unknown_are"], words["n_both"], words["score"], *(words[n] for n in names)],
        rows=rows, title=words["queries"], note=words["queries_note"], text_columns=(0, 2),
    )  # fmt: skip
    pairs = described["pairs"]
    body = [
        Row([score, rate(share), ranked(pairs["mean_drop"][score]), str(share["n"])], share["n"])
        for score, share in pairs["higher_with_full_list"].items()
    ]
    drops = Table(
        header=[words[key] for key in ("score", "higher_full", "mean_drop", "n")], rows=body,
        title=words["query_pairs"],
        note=words["query_pairs_note"].format(n=pairs["n"],
                                              accuracy=rate(pairs["closed_set_accuracy"])),
    )  # fmt: skip
    return [Text([words["two_query_what"]]), queries, drops]
