"""What the demo page shows, as HTML: a sample, two answers side by side, scores, parameters.

Whatever a visitor, a file or a model wrote is escaped here. What one of two answers has and the
other has not is marked, word by word (Chinese and Japanese: by characters).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.evaluation_setup import Sample, pictures_of
from shared.conversation_files import IMAGE_TAG
from shared.options import portable_path
from shared.report import thumbnail

if TYPE_CHECKING:
    from qwen_clip_llava_lora.contrast import Reply, Trained

Texts = Mapping[str, str]

PICTURE_SIDE = 480  # pixels
# a character of a script without blanks by itself, else a run of others; blanks belong to it
_ALONE = "\u3000-\u30ff\u3400-\u9fff\uff00-\uffef"
_WORD = re.compile(rf"(?:[{_ALONE}]|[^\s{_ALONE}]+)\s*|\s+")


@dataclass(frozen=True)
class Shown:
    """One side of the page: its name, what it has said so far, its scores against a reference."""

    name: str
    reply: Reply | None = None
    scores: Mapping[str, Any] | None = None

    @property
    def is_whole(self) -> bool:
        return self.reply is not None and self.reply.answer is not None


# Two answers


def marked_apart(left: str, right: str) -> tuple[str, str]:
    """Both texts as HTML, what stands in one of them alone in `<mark>`."""
    words = [_WORD.findall(text) for text in (left, right)]
    bare = [[word.strip() for word in own] for own in words]
    shown: tuple[list[str], list[str]] = ([], [])
    matcher = SequenceMatcher(None, *bare, autojunk=False)
    for kind, l0, l1, r0, r1 in matcher.get_opcodes():
        for side, own in zip(shown, (words[0][l0:l1], words[1][r0:r1]), strict=True):
            text = "".join(own)
            kept = text.rstrip() if kind != "equal" else ""
            mark = f"<mark>{escape(kept)}</mark>" if kept else ""
            side.append(mark + escape(text[len(kept) :]))
    return "".join(shown[0]), "".join(shown[1])


def answers_html(texts: Texts, sides: Sequence[Shown], sampled: bool = False) -> str:
    """Two cards; once both are whole, their differences and the scores. None before a question."""
    if not sides:
        return f'<div class="card"><p class="small">{texts["waiting"]}</p></div>'
    whole = all(side.is_whole for side in sides)
    said = [side.reply.text if side.reply else "" for side in sides]
    shown = marked_apart(*said) if whole else tuple(escape(text) for text in said)
    cards = [
        card_html(texts, side, text, is_next)
        for side, text, is_next in zip(
            sides, shown, (False, not sides[0].is_whole), strict=True
        )
    ]  # fmt: skip
    verdict = ""
    if whole:
        key = "agree" if said[0] == said[1] else "differ"
        verdict = f'<p class="verdict" role="status">{texts[key]}</p>'
    return (
        f'<div class="cards">{"".join(cards)}</div>{verdict}'
        + (scores_html(texts, sides, sampled) if whole and sides[0].scores else "")
        + (f'<p class="small">{texts["confidence_what"]}</p>' if whole else "")
    )


def card_html(texts: Texts, side: Shown, said: str, is_next: bool) -> str:
    reply, facts = side.reply, ""
    if reply is None or reply.answer is None:
        state = texts["next_side" if is_next else "answering"]
        facts = f'<p class="small">{state}</p>'
    else:
        answer = reply.answer
        end = texts[f"end_{'stopped' if reply.stopped else answer.finish_reason}"]
        rows = (
            (texts["confidence"], meter_html(texts, answer.confidence)),
            (texts["end"], end),
            (
                texts["amount"],
                texts["amount_value"].format(seconds=reply.seconds, n=answer.n_tokens),
            ),
        )
        facts = f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in rows)}</dl>"
        said = said or f'<span class="small">{texts["empty"]}</span>'
    return (
        f'<div class="card answer"><h3>{escape(side.name)}</h3>'
        f'<p class="said">{said}</p>{facts}</div>'
    )


def meter_html(texts: Texts, confidence: float | None) -> str:
    """A bar and its number, 0..1."""
    if confidence is None:
        return escape(texts["no_confidence"])
    return (
        f'<span class="meter" role="meter" aria-valuemin="0" aria-valuemax="1" '
        f'aria-valuenow="{confidence:.2f}" aria-label="{texts["confidence"]}">'
        f'<span style="width:{100 * confidence:.0f}%"></span></span>{confidence:.3f}'
    )


def scores_html(texts: Texts, sides: Sequence[Shown], sampled: bool) -> str:
    """Left, right and right minus left of each score of the two answers."""
    left, right = ({}, {}) if None in [s.scores for s in sides] else [dict(s.scores) for s in sides]
    rows = []
    for key in ("log_likelihood", "per_token", "exact_match", "token_f1", "vqa", "predicted"):
        if key not in left and key not in right:
            continue
        values = [own.get(key) for own in (left, right)]
        name = texts[key].format(n=left.get("reference_tokens") or right.get("reference_tokens"))
        apart = ""
        if all(isinstance(value, int | float) for value in values):
            change = values[1] - values[0]
            apart = f"{change:+.3f}" if isinstance(change, float) else f"{change:+d}"
        cells = [value_html(texts, value) for value in values]
        rows.append(
            f'<tr><th scope="row">{name}</th><td>{cells[0]}</td><td>{cells[1]}</td>'
            f"<td>{apart}</td></tr>"
        )
    titles = "".join(
        f'<th scope="col">{escape(title)}</th>'
        for title in (texts["scores"], sides[0].name, sides[1].name, texts["difference"])
    )
    about = texts["scores_what"] + (f" {texts['scores_sampled']}" if sampled else "")
    return (
        f'<div class="wide"><table class="figures scores"><thead><tr>{titles}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="small">{about}</p>'
    )


def value_html(texts: Texts, value: Any) -> str:
    if value is None:
        return texts["none"]
    if isinstance(value, float):
        return f"{value:.3f}"
    return escape(str(value))


# A sample of the data


def sample_html(texts: Texts, sample: Sample, where: str) -> str:
    """Pictures, what is asked, references."""
    pictures = [
        f'<img src="{uri}" alt="{escape(name)}">'
        if (uri := thumbnail(picture, PICTURE_SIDE))
        else f'<div class="gone">{texts["gone"].format(name=escape(name))}</div>'
        for picture, name in (
            (picture, picture.name) for picture in pictures_of(sample)
        )
    ]  # fmt: skip
    turns = "".join(
        f"<dt>{texts[role]}</dt><dd>{escape(text.replace(IMAGE_TAG, '').strip())}</dd>"
        for role, text in sample.turns
    )
    references = "".join(f"<li>{escape(text)}</li>" for text in sample.references)
    facts = [
        (texts["references" if len(sample.references) > 1 else "reference"],
         f"<ul>{references}</ul>" if references else texts["no_reference"]),
        *([(texts["class"], escape(sample.label))] if sample.label is not None else []),
        (texts["sample_id"], escape(sample.sample_id)),
    ]  # fmt: skip
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return (
        f'<p class="small">{escape(where)}</p><div class="pictures">{"".join(pictures)}</div>'
        f'<dl class="facts">{turns}{rows}</dl>'
    )


# What trained


def parameters_html(
    texts: Texts,
    counts: Mapping[str, int],
    trained: Mapping[str, Mapping[str, Trained]],
    manifests: Mapping[str, Mapping[str, Any]],
    folders: Mapping[str, Path],
) -> str:
    """Parameters of each component and what each adapter trained of it; how it was trained."""
    total = sum(counts.values())
    titles = [texts["component"], texts["parameters_base"], *trained]
    rows = [
        [
            texts[part],
            f"{n:,}",
            *(trained_text(texts, own.get(part), n) for own in trained.values()),
        ]
        for part, n in counts.items()
    ]
    sums = [sum(t.lora + t.whole for t in own.values()) for own in trained.values()]
    rows.append(
        [texts["total"], f"{total:,}",
         *(texts["share"].format(n=f"{n:,}", share=n / total) for n in sums)]
    )  # fmt: skip
    facts = [adapter_facts(texts, folders[name], manifests[name]) for name in trained]
    how = [
        [label, *(own.get(label, texts["none"]) for own in facts)]
        for label in (facts[0] if facts else {})
    ]
    return table_html(titles, rows) + (table_html(["", *trained], how) if how else "")


def trained_text(texts: Texts, trained: Trained | None, n_base: int) -> str:
    if trained is None:
        return texts["frozen"]
    said = []
    if trained.lora:
        said.append(texts["lora_weights"].format(n=f"{trained.lora:,}", rank=trained.rank))
    if trained.whole:
        key = "whole_weights" if trained.whole == n_base else "whole_part"
        said.append(texts[key].format(n=f"{trained.whole:,}"))
    return "; ".join(said)


def adapter_facts(texts: Texts, folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Label -> what the adapter's manifest says; a plain PEFT folder has none."""
    data = manifest.get("data") or {}
    sources = [
        portable_path(source["source"]) for source in data.get("sources") or [data] if source
    ]
    amount = (
        texts["rows"].format(rows=data["rows"], held_out=data.get("held_out_rows", 0))
        if "rows" in data
        else ""
    )
    validation = manifest.get("validation") or {}
    figures = ", ".join(
        f"{name} {value:.3f}"
        for name, value in validation.items()
        if name != "step" and isinstance(value, int | float)
    )
    steps = manifest.get("steps", validation.get("step"))
    synthetic = manifest.get("synthetic")
    found = {
        texts["folder"]: portable_path(folder),
        texts["preset"]: manifest.get("preset"),
        texts["train_type"]: manifest.get("train_type"),
        texts["trained_on"]: ", ".join(sources) + (f": {amount}" if amount else ""),
        texts["steps"]: None if steps is None else f"{steps:,}",
        texts["validation"]: figures,
        texts["seed_of"]: manifest.get("seed"),
        texts["is_synthetic"]: None if synthetic is None else texts["yes" if synthetic else "no"],
    }
    return {
        label: texts["none"] if value in (None, "") else str(value)
        for label, value in found.items()
    }  # fmt: skip


def table_html(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return (
        f'<div class="wide"><table class="figures"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
