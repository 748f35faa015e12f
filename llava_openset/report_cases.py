"""The gallery of a run's report: pictures where the leading protocol errs, and ambiguous answers.

Every card shows what all protocols said of its picture. Reads the pictures that it shows; a missing
one becomes a placeholder. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from llava_openset.run_reading import LEFT_OUT, UNKNOWN, OpenSetRun, Row
from shared.report import Answer, Block, Card, Gallery, Text, Tone, thumbnail

Words = Mapping[str, str]
CARDS = 6
SEED = 0  # of the sample of cases that have no order of their own


def cases(run: OpenSetRun, words: Words) -> list[Block]:
    """Strata by the leading protocol's decision, then ambiguous free answers, and errors."""
    lead = run.leading
    rows = run.test_rows(lead, left_out=False)
    headline = run.protocols[lead]["headline"]
    answered = [row for row in rows if row["decision"] is not None]

    def score(row: Row) -> float:
        return row["scores"].get(headline, float("-inf"))

    accepted = [row for row in answered if row["decision"] != UNKNOWN]
    surest_first = sorted(accepted, key=score, reverse=True)
    strata: list[tuple[str, list[Row], str]] = [
        ("case_unknown_accepted", [r for r in surest_first if not r["known"]], "highest"),
        ("case_known_rejected",
         sorted((r for r in answered if r["known"] and r["decision"] == UNKNOWN), key=score),
         "lowest"),
        ("case_wrong_class",
         [r for r in surest_first if r["known"] and not r["correct"]], "highest"),
        ("case_ambiguous", ambiguous(run), "sampled"),
        ("case_errors", [r for r in rows if r["status"] != "ok"], "sampled"),
    ]  # fmt: skip
    by_sample = {
        key: {row["sample_id"]: row for row in run.test_rows(key, left_out=False)}
        for key in run.leading_first
    }
    blocks: list[Block] = [Text([words["cases_what"].format(protocol=lead, score=headline)])]
    if run.without_threshold:
        blocks.append(Text([no_threshold(run, words)]))
    for name, found, order in strata:
        chosen = sampled(found) if order == "sampled" else found[:CARDS]
        note = stratum_note(len(found), len(chosen), order, headline, words)
        cards = [card(run, row, by_sample, words) for row in chosen]
        blocks.append(Gallery(words[name], note, cards))
    return blocks


def no_threshold(run: OpenSetRun, words: Words) -> str:
    """Which protocols decided without the threshold that they need."""
    return words["no_threshold_stands"].format(names=words["comma"].join(run.without_threshold))


def ambiguous(run: OpenSetRun) -> list[Row]:
    """Rows whose free answer names two listed classes, one a picture, over all protocols."""
    found: dict[str, Row] = {}
    for key, described in run.protocols.items():
        if described["kind"] == "answer":
            for row in run.test_rows(key):
                if row["match"] == "ambiguous":
                    found.setdefault(row["sample_id"], row)
    return list(found.values())


def sampled(rows: Sequence[Row]) -> list[Row]:
    chosen = random.Random(SEED).sample(range(len(rows)), min(CARDS, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def stratum_note(total: int, shown: int, order: str, score: str, words: Words) -> str:
    if total == 0:
        return ""
    if total == shown:
        return words["all_shown"].format(total=total)
    return words[f"order_{order}"].format(shown=shown, total=total, score=score, seed=SEED)


def card(
    run: OpenSetRun,
    row: Row,
    by_sample: Mapping[str, Mapping[str, Row]],
    words: Words,
    said: Callable[[str, Row, str, Words], Answer] | None = None,
) -> Card:
    """One picture with what each protocol said of it, when asked with the whole list."""
    said = said or answer
    answers = [
        said(key, rows[row["sample_id"]], run.protocols[key]["headline"], words)
        for key, rows in by_sample.items()
        if row["sample_id"] in rows
    ]
    facts = [(words["truth"], words["known" if row["known"] else "unknown"])]
    if row["present"] and list(row["present"]) != [row["label"]]:
        facts.append((words["present"], ", ".join(row["present"])))
    return Card(
        picture=thumbnail(run.picture(row)),
        title=row["label"],
        answers=answers,
        facts=facts,
        note=row["image"],
    )


def answer(key: str, row: Row, score: str, words: Words) -> Answer:
    """A protocol's decision, with what it rests on: the answer and its score."""
    if row["status"] != "ok":
        return Answer(key, row["answer"], words["match_error"], "stop")
    tone: Tone = "good" if row["correct"] else "bad"
    decided = row["decision"]
    if decided is None:
        tone, decided = "", words["no_decision"]
    elif decided == UNKNOWN:
        decided = words["unknown"]
    note = ""
    if score in row["scores"]:
        note = words["score_of"].format(value=f"{row['scores'][score]:.2f}")
    if row["match"] == "ambiguous":
        note += f", {words['match_ambiguous']}"
    likeliest = "class_probabilities" in row
    details = [(words["likeliest" if likeliest else "answered"], row["answer"])]
    if row.get("query") == LEFT_OUT:
        details.append((words["query"], words["query_left_out"]))
    return Answer(key, decided, note, tone, details)
