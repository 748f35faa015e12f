"""Pieces of the demo page as HTML: two answers side by side, one question of a comparison.

Every text that comes from a model, a file or a visitor is escaped here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2_qlora.browsing import Comparison
from shared.comparison import Pair
from shared.gradio_parts import Language, synthetic_notice
from shared.report import percent, thumbnail
from shared.runs import differences_in_kind

if TYPE_CHECKING:
    from blip2_qlora.asking import Reply

Texts = Mapping[str, str]
PICTURE_SIDE = 640  # pixels
MOST_DIFFERENCES = 5  # named above a comparison of runs that should not be compared


def replies_html(
    texts: Texts, question: str, replies: Sequence[Reply], advice: tuple[str, str] | None
) -> str:
    """Base and tuned model side by side; answers that differ are marked.

    `advice` (how to train an adapter, how to start with it) takes the tuned model's place.
    """
    words = [reply.answer.answer for reply in replies]
    differ = len({normal(word) for word in words}) > 1
    cards = [
        card_html(
            texts[side],
            said_html(texts, reply.answer.answer, differ, reply.answer.finish_reason),
            (
                (texts["confidence"], meter_html(texts, reply.answer.confidence)),
                (texts["caption"], escape(reply.caption.answer) or escape(texts["empty"])),
                (texts["seconds"], texts["seconds_value"].format(seconds=reply.seconds)),
            ),
        )
        for side, reply in zip(("base", "tuned"), replies, strict=False)
    ]
    if advice:
        cards.append(advice_html(texts, advice))
    if not replies:
        cards.insert(0, card_html("", f'<p class="small">{texts["waiting"]}</p>', ()))
    asked = f'<p class="asked">{escape(question)}</p>' if question else ""
    verdict = texts["differ" if differ else "agree"] if len(replies) > 1 else ""
    return (
        f'{asked}<div class="cards">{"".join(cards)}</div>'
        + (f'<p class="verdict">{verdict}</p>' if verdict else "")
        + (f'<p class="small">{texts["confidence_what"]}</p>' if replies else "")
    )


def normal(answer: str | None) -> str:
    return (answer or "").strip().casefold()


def card_html(title: str, body: str, facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in facts)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    rows = f"<dl>{rows}</dl>" if rows else ""
    return f'<div class="card">{heading}{body}{rows}</div>'


def said_html(texts: Texts, answer: str | None, differs: bool, finish_reason: str | None) -> str:
    kind = ("differs" if differs else "same") if answer else "none"
    cut = f' <span class="small">({texts["cut"]})</span>' if finish_reason == "length" else ""
    words = escape(answer or texts["empty"])
    return f'<p class="said"><span class="words {kind}">{words}</span>{cut}</p>'


def meter_html(texts: Texts, confidence: float | None) -> str:
    """A bar and its number, 0..1."""
    if confidence is None:
        return escape(texts["no_confidence"])
    return (
        f'<span class="meter" role="meter" aria-valuemin="0" aria-valuemax="1" '
        f'aria-valuenow="{confidence:.2f}" aria-label="{texts["confidence"]}">'
        f'<span style="width:{100 * confidence:.0f}%"></span></span>{confidence:.2f}'
    )


def advice_html(texts: Texts, advice: tuple[str, str]) -> str:
    train, start = (f"<code>{escape(command)}</code>" for command in advice)
    return (
        f'<div class="card wide"><h3>{texts["tuned"]}</h3><div>{texts["no_adapter"]}{train}'
        f"{texts['with_adapter']}{start}</div></div>"
    )


def runs_html(texts: Texts, language: Language, comparison: Comparison) -> str:
    """Both runs' headline, and what a reader must know before trusting it."""
    base, tuned = comparison.base, comparison.tuned
    n = len(comparison.pairs)
    values = [run.metrics["accuracy"]["value"] for run in (base, tuned)]
    line = (
        texts["no_figures"].format(n=n)
        if None in values
        else texts["figures"].format(
            base=percent(values[0]), tuned=percent(values[1]), metric=base.metrics["metric"], n=n
        )
    )
    line = f"<b>{escape(line)}</b>"
    notices = [
        synthetic_notice(language, f"{line} {texts['synthetic_run']}")
        if comparison.synthetic
        else f"<div>{line}</div>"
    ]
    reasons = differences_in_kind(base, tuned)
    if reasons:
        items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons[:MOST_DIFFERENCES])
        notices.append(f'<div class="notice stop">{texts["not_comparable"]}<ul>{items}</ul></div>')
    if comparison.shuffled:
        notices.append(f'<div class="notice stop">{texts["shuffled"]}</div>')
    return "".join(notices)


def pair_html(texts: Texts, pair: Pair, picture: Path, position: int, n: int) -> str:
    """One question: picture, both answers with scores, references."""
    differ = normal(pair.base["answer"]) != normal(pair.tuned["answer"])
    cards = [
        record_html(texts, texts[side], record, scored["score"], differ)
        for side, record, scored in (
            ("base", pair.base, pair.base_scored),
            ("tuned", pair.tuned, pair.tuned_scored),
        )
    ]
    references = Counter(pair.base["references"]).most_common()
    kind = " · ".join(filter(None, (pair.base["answer_type"], pair.base["question_type"])))
    facts = (
        (texts["references"],
         ", ".join(f"{word} × {count}" for word, count in references) or texts["no_references"]),
        (texts["type"], kind or "–"),
        (texts["question_id"], pair.sample_id),
        (texts["picture_of"], pair.base["image"]),
    )  # fmt: skip
    rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    uri = thumbnail(picture, PICTURE_SIDE)
    image = (
        f'<img src="{uri}" alt="{escape(pair.base["question"])}">'
        if uri
        else f'<div class="gone">{texts["gone"].format(picture=escape(pair.base["image"]))}</div>'
    )
    return (
        f'<div class="pair"><div>{image}</div><div>'
        f'<p class="small">{texts["of"].format(position=position, n=n)}</p>'
        f'<p class="asked">{escape(pair.base["question"])}</p>'
        f'<div class="cards">{"".join(cards)}</div><dl class="facts">{rows}</dl></div></div>'
    )


def record_html(
    texts: Texts, title: str, record: Mapping[str, Any], score: float | None, differ: bool
) -> str:
    facts = [(texts["confidence"], meter_html(texts, record["confidence"]))]
    if score is not None:
        facts.insert(0, (texts["score_name"], f"{score:.2f}"))
    if record["status"] != "ok":
        return card_html(title, f'<p>{escape(texts["error"].format(error=record["error"]))}</p>',
                         facts[:-1])  # fmt: skip
    body = said_html(texts, record["answer"], differ, record["finish_reason"])
    return card_html(title, body, facts)
