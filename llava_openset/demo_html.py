"""What the demo page shows, as HTML: verdict, free answer, class probabilities, scores, the table.

Every bar has its number beside it, and known and unknown differ in words and sign, not in colour
alone. Whatever a visitor or a model wrote is escaped.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from llava_openset.classifying import Classified, Verdict, verdict
from llava_openset.protocols import CHOICE_SCORES

Texts = Mapping[str, str]

SHOWN_CLASSES = 16  # bars; the rest is folded away
# Lowest energy of the slider by the rule of length; an energy below widens it.
LOWEST_ENERGY = {"mean": -10.0, "sum": -30.0}
CSV_NAME = "known_or_unknown.csv"


@dataclass(frozen=True)
class Asked:
    """A picture, asked for a free answer and for the likelihood of each class; its own name."""

    name: str
    classes: tuple[str, ...]
    free: Classified
    likely: Classified

    @property
    def error(self) -> str | None:
        """Why there is no answer, without the name of the temporary file."""
        cause = self.likely.record["error"] or self.free.record["error"]
        return cause.removeprefix(f"{self.likely.name}: ") if cause else None

    def verdict(self, score: str, threshold: float) -> Verdict | None:
        return verdict(self.likely.outcome, score, threshold)


def score_range(
    score: str, n_classes: int, normalisation: str, *values: float
) -> tuple[float, float]:
    """Ends of the slider of a score, to three decimals; `values` lie between them."""
    low, high = {
        "entropy": (-math.log(n_classes), 0.0),
        "energy": (LOWEST_ENERGY[normalisation], math.log(n_classes)),
    }.get(score, (0.0, 1.0))
    low, high = min(low, *values, high), max(low, *values, high)
    return math.floor(1000 * low) / 1000, math.ceil(1000 * high) / 1000


def verdict_html(texts: Texts, asked: Asked | None, score: str, threshold: float, note: str) -> str:
    """The verdict and, with or without one, where the threshold is from."""
    about = f'<p class="small">{escape(note)}</p>'
    if asked is None:
        return f'<div class="card verdict"><p>{texts["waiting"]}</p>{about}</div>'
    is_known = asked.verdict(score, threshold) == "known"
    outcome = asked.likely.outcome
    name = outcome.prediction or ""
    said = texts["known"].format(name=name) if is_known else texts["unknown"]
    value = outcome.scores[score]
    decimals = 3 if number(value) != number(threshold) else 6  # "0.800 is below 0.800" says nothing
    why = texts["at_least" if is_known else "below"].format(
        score=texts[score], value=number(value, decimals), threshold=number(threshold, decimals),
        name=name,
    )  # fmt: skip
    kind, sign = ("known", "✓") if is_known else ("unknown", "?")
    return (
        f'<div class="card verdict {kind}"><p class="mark" role="status">'
        f'<span class="sign" aria-hidden="true">{sign}</span>{escape(said)}</p>'
        f"<p>{escape(why)}</p>{about}</div>"
    )


def details_html(
    texts: Texts, asked: Asked | None, score: str, threshold: float, normalisation: str
) -> str:
    """Everything below the slider; nothing before a picture was asked about."""
    if asked is None:
        return ""
    what = texts["probabilities_what"].format(rule=texts[f"rule_{normalisation}"])
    line = f" {texts['line']}" if score == "max_softmax" else ""
    return (
        f'<div class="cards"><div class="card">{bars_html(texts, asked, score, threshold)}'
        f'<p class="small">{what}{line}</p></div>'
        f'<div><div class="card">{free_html(texts, asked.free)}</div>'
        f'<div class="card">{scores_html(texts, asked, score, threshold, normalisation)}</div>'
        f"</div></div>{prompts_html(texts, asked)}"
    )


def free_html(texts: Texts, free: Classified) -> str:
    """The answer and what the matcher makes of it."""
    record = free.record
    cut = (
        f' <span class="small">({texts["cut"]})</span>'
        if record["finish_reason"] == "length"
        else ""
    )
    confidence = record["confidence"]
    token = (
        f'<p class="small">{texts["confidence"].format(value=number(confidence))}</p>'
        if confidence is not None
        else ""
    )
    return (
        f"<h3>{texts['free']}</h3>"
        f'<p class="said">{escape(record["answer"] or texts["empty"])}{cut}</p>'
        f'<p class="match">{escape(match_text(texts, free))}</p>{token}'
    )


def match_text(texts: Texts, free: Classified) -> str:
    kind, name = free.outcome.match, free.outcome.prediction
    if kind == "ambiguous" and verdict(free.outcome, "answer", None) == "unknown":
        return texts["match_ambiguous_none"]
    return texts[f"match_{kind}"].format(name=name)


def bars_html(texts: Texts, asked: Asked, score: str, threshold: float) -> str:
    """Classes by their probability; of max softmax the threshold stands in each bar."""
    ordered = sorted((asked.likely.outcome.class_probabilities or {}).items(), key=lambda p: -p[1])
    tick = threshold if score == "max_softmax" else None
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{bar(p, tick)}</td><td>{p:.3f}</td></tr>'
        for name, p in ordered
    ]
    head = (
        f'<thead class="unseen"><tr><th>{texts["class"]}</th><th></th>'
        f"<th>{texts['probability']}</th></tr></thead>"
    )
    table = f'<table class="bars">{head}<tbody>{{}}</tbody></table>'
    folded = rows[SHOWN_CLASSES:]
    more = ""
    if folded:
        summary = texts["more"].format(n=len(folded))
        more = f"<details><summary>{summary}</summary>{table.format(''.join(folded))}</details>"
    return f"<h3>{texts['probabilities']}</h3>{table.format(''.join(rows[:SHOWN_CLASSES]))}{more}"


def scores_html(
    texts: Texts, asked: Asked, score: str, threshold: float, normalisation: str
) -> str:
    """All four scores, the chosen one with the threshold in its bar."""
    rows = []
    for name in CHOICE_SCORES:
        value = asked.likely.outcome.scores[name]
        given = (value, threshold) if name == score else (value,)
        low, high = score_range(name, len(asked.classes), normalisation, *given)
        tick = (threshold - low) / (high - low) if name == score else None
        chosen = f' <span class="chip">{texts["chosen"]}</span>' if name == score else ""
        rows.append(
            f'<tr><th scope="row">{texts[name]}{chosen}</th>'
            f"<td>{bar((value - low) / (high - low), tick)}</td><td>{number(value)}</td></tr>"
            f'<tr class="what"><td colspan="3">{texts[f"{name}_what"]}</td></tr>'
        )
    head = (
        f'<thead class="unseen"><tr><th>{texts["score"]}</th><th></th>'
        f"<th>{texts['value']}</th></tr></thead>"
    )
    table = f'<table class="bars">{head}<tbody>{"".join(rows)}</tbody></table>'
    return f"<h3>{texts['scores']}</h3>{table}<p class='small'>{texts['line']}</p>"


def bar(share: float, tick: float | None) -> str:
    """A bar of 0..1 for the eye; its number stands beside it."""
    mark = f'<i style="left:{100 * min(max(tick, 0), 1):.2f}%"></i>' if tick is not None else ""
    width = 100 * min(max(share, 0), 1)
    return f'<div class="bar" aria-hidden="true"><b style="width:{width:.2f}%"></b>{mark}</div>'


def prompts_html(texts: Texts, asked: Asked) -> str:
    shown = "".join(
        f"<h3>{texts[name]}</h3><pre>{escape(picture.record['prompt'])}</pre>"
        for name, picture in (("prompt_free", asked.free), ("prompt_likely", asked.likely))
    )
    return (
        f'<details class="card prompts" open><summary>{texts["prompts"]}</summary>{shown}'
        f'<p class="small">{texts["prompts_what"]}</p></details>'
    )


# Several pictures


def table_html(
    texts: Texts,
    rows: Sequence[Asked],
    score: str,
    threshold: float,
    note: str,
    synthetic: bool,
    n_expected: int,
) -> str:
    """A line a picture, a broken one with its cause; the CSV to download once all are there."""
    about = f'<p class="small">{escape(note)}</p>'
    if not n_expected:
        return f'<div class="card verdict"><p>{texts["many_waiting"]}</p>{about}</div>'
    if len(rows) < n_expected:
        line = texts["progress"].format(done=len(rows), n=n_expected)
        head = (
            f'<p class="mark" role="status">{line}</p>'
            f'<progress value="{len(rows)}" max="{n_expected}">{line}</progress>'
        )
    else:
        said = [row.verdict(score, threshold) for row in rows]
        line = texts["summary"].format(
            n=len(rows), known=said.count("known"), unknown=said.count("unknown"),
            errors=said.count(None),
        )  # fmt: skip
        content = base64.b64encode(csv_text(rows, score, threshold, synthetic).encode()).decode()
        head = (
            f'<p class="mark" role="status">{line}</p><a class="csv" download="{CSV_NAME}" '
            f'href="data:text/csv;charset=utf-8;base64,{content}">{texts["csv"]}</a>'
        )
    columns = ("file", "verdict", "likeliest", score, "answer", "match")
    titles = "".join(f'<th scope="col">{texts[name]}</th>' for name in columns)
    body = "".join(row_html(texts, row, score, threshold) for row in rows)
    return (
        f'<div class="card verdict">{head}{about}</div><div class="wide"><table class="many">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def row_html(texts: Texts, row: Asked, score: str, threshold: float) -> str:
    name = f'<th scope="row">{escape(row.name)}</th>'
    if row.error:
        cause = escape(texts["not_usable"].format(cause=row.error))
        return f'<tr class="broken">{name}<td colspan="5">{cause}</td></tr>'
    said = row.verdict(score, threshold)
    sign = "✓" if said == "known" else "?"
    free, likely = row.free, row.likely.outcome
    taken = texts[f"taken_{free.outcome.match}"].format(name=free.outcome.prediction)
    cells = (
        likely.prediction, number(likely.scores[score]), free.record["answer"] or texts["empty"],
        taken,
    )  # fmt: skip
    others = "".join(f"<td>{escape(cell or '')}</td>" for cell in cells)
    return (
        f'<tr>{name}<td class="{said}"><span class="sign" aria-hidden="true">{sign}</span>'
        f"{texts[f'is_{said}']}</td>{others}</tr>"
    )


def csv_text(rows: Sequence[Asked], score: str, threshold: float, synthetic: bool) -> str:
    """One line a picture; `p(CLASS)` are the class probabilities. Begins with a byte order mark,
    without which Excel does not read UTF-8."""
    classes = rows[0].classes
    names = [
        "filename", "verdict", "class", "likeliest", "answer", "match", "answer_class",
        "prompt", "score", "threshold", *CHOICE_SCORES, "synthetic", "error",
        *(f"p({name})" for name in classes),
    ]  # fmt: skip
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line: dict[str, Any] = {
            "filename": row.name, "score": score, "threshold": threshold,
            "synthetic": str(synthetic).lower(), "error": row.error or "",
        }  # fmt: skip
        if not row.error:
            said, free, likely = row.verdict(score, threshold), row.free, row.likely.outcome
            line |= {
                "verdict": said,
                "class": likely.prediction if said == "known" else "",
                "likeliest": likely.prediction,
                "answer": free.record["answer"],
                "match": free.outcome.match,
                "answer_class": free.outcome.prediction,
                "prompt": free.record["prompt"],
                **likely.scores,
                **{f"p({name})": p for name, p in (likely.class_probabilities or {}).items()},
            }
        writer.writerow(line)
    return "\ufeff" + file.getvalue()


def number(value: float, decimals: int = 3) -> str:
    return f"{value:.{decimals}f}"
