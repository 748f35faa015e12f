"""Figures of prompt templates from their descriptions: a pure function of a run's records.

By language, as words and characters don't compare: lengths, aspects covered, distinct n-grams,
caption metrics against references, and how far the templates agree with each other.

    python -m pytest tests/qwen_clip_llava_lora/test_compare_prompts.py

An aspect is covered where one of its words occurs: every template is held against the words of all
compared templates of its language, whether it asked for the aspect or not. English words match
whole tokens, also with -s or -es behind; Chinese ones anywhere in the text. Distinct-n is different
n-grams over all n-grams (Li et al. 2016), of as many tokens for each template, as it falls with
length. Caption metrics score sample 0 of each picture; a picture without a usable description
counts as an empty caption. No torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path, PurePosixPath
from statistics import mean, quantiles
from typing import Any

from shared.caption_tokens import tokenize_caption
from shared.estimates import estimate
from shared.significance import cluster_bootstrap, holm

Record = Mapping[str, Any]
References = dict[str, dict[str, list[str]]]  # language: picture: captions
CHINESE = re.compile("[\u4e00-\u9fff]")
HEADLINE = "CIDEr"
METRICS = ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr")
NONE_USABLE = "no usable description"


def compare_templates(
    records: Sequence[Record],
    templates: Mapping[str, Mapping[str, Any]],
    references: References | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Language -> figures. `records` are those of descriptions.jsonl, `templates` the files'
    contents by name, in the order in which they are shown."""
    languages = dict.fromkeys(str(content["language"]) for content in templates.values())
    found = {}
    for language in languages:
        names = [name for name, content in templates.items() if content["language"] == language]
        own = {name: [r for r in records if r["template"] == name] for name in names}
        captions = (references or {}).get(language, {})
        found[language] = _language_figures(language, own, templates, captions, seed)
    return found


def _language_figures(
    language: str,
    records: Mapping[str, Sequence[Record]],
    templates: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, Sequence[str]],
    seed: int,
) -> dict[str, Any]:
    usable = {
        name: [record for record in own if record["status"] == "ok"]
        for name, own in records.items()
    }
    tokens = {
        name: [tokenize_caption(record["description"], language) for record in own]
        for name, own in usable.items()
    }
    aspects = united_aspects([templates[name] for name in records])
    budget = min((sum(map(len, own)) for own in tokens.values() if own), default=0)
    figures = {}
    for name, own in usable.items():
        covered = [
            covered_aspects(record["description"], words, aspects, language)
            for record, words in zip(own, tokens[name], strict=True)
        ]
        pictures = [record["image"] for record in own]
        figures[name] = {
            "usable": len(own),
            "different_texts": len({record["description"] for record in own}),
            "length": lengths(tokens[name], pictures),
            "aspects": {
                aspect: estimate([float(aspect in one) for one in covered], pictures, NONE_USABLE)
                for aspect in aspects
            },
            "aspects_covered": round(mean(map(len, covered)), 3) if covered else None,
            "distinct": {str(n): distinct(tokens[name], n, budget) for n in (1, 2)},
        }
    captions = {name: first_samples(own) for name, own in usable.items()}
    return {
        "templates": list(records),
        "aspects": {aspect: list(words) for aspect, words in aspects.items()},
        "distinct_tokens": budget,
        "figures": figures,
        "agreement": agreement(captions, language),
        "references": against_references(records, captions, references, language, seed),
    }


# Texts


def united_aspects(templates: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Aspect -> the words of all templates that have it, in their order."""
    words: dict[str, dict[str, None]] = defaultdict(dict)
    for content in templates:
        for aspect, own in (content.get("aspects") or {}).items():
            words[aspect] |= dict.fromkeys(own)
    return {aspect: tuple(own) for aspect, own in words.items()}


def covered_aspects(
    text: str, tokens: Sequence[str], aspects: Mapping[str, Sequence[str]], language: str
) -> list[str]:
    """The aspects of which a word occurs in the text, whose `tokens` these are."""
    if language == "zh":
        return [aspect for aspect, words in aspects.items() if any(word in text for word in words)]
    said = f" {' '.join(tokens)} "

    def occurs(word: str) -> bool:
        own = " ".join(tokenize_caption(word, "en"))
        return any(f" {own}{ending} " in said for ending in ("", "s", "es"))

    return [aspect for aspect, words in aspects.items() if any(map(occurs, words))]


def lengths(tokens: Sequence[Sequence[str]], pictures: Sequence[str]) -> dict[str, Any]:
    """Words (Chinese: characters) a description: mean with interval over pictures, quartiles."""
    counts = [float(len(words)) for words in tokens]
    if not counts:
        return {"mean": None, "reason": NONE_USABLE}
    interval = cluster_bootstrap(counts, list(pictures))
    alike = interval.low is None or interval.low == interval.high  # no width would claim certainty
    quarters = quantiles(counts, n=4, method="inclusive") if len(counts) > 1 else counts * 3
    return {
        "mean": round(mean(counts), 2),
        "low": None if alike else round(interval.low, 2),
        "high": None if alike else round(interval.high, 2),
        "quartiles": [round(value, 1) for value in quarters],
    }


def distinct(tokens: Sequence[Sequence[str]], n: int, budget: int) -> float | None:
    """Different n-grams over n-grams of the first descriptions that hold `budget` tokens."""
    seen: set[tuple[str, ...]] = set()
    total, left = 0, budget
    for words in tokens:
        words = words[:left]
        left -= len(words)
        ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(ngrams)
        total += len(ngrams)
    return round(len(seen) / total, 4) if total else None


def first_samples(records: Sequence[Record]) -> dict[str, str]:
    """Picture -> the description of sample 0, where that is usable."""
    return {r["image"]: r["description"] for r in records if r["sample"] == 0}


# Captions


def agreement(captions: Mapping[str, Mapping[str, str]], language: str) -> dict[str, Any]:
    """ROUGE-L of each template's descriptions with each other's as the reference, over the pictures
    that both describe; rows are what is scored, columns the reference."""
    from shared.caption_score import score_captions

    table: list[list[float | None]] = []
    for name, own in captions.items():
        row: list[float | None] = []
        for other, theirs in captions.items():
            both = [image for image in theirs if image in own]
            if name == other or not both:
                row.append(None)
                continue
            scores = score_captions(
                {image: [theirs[image]] for image in both},
                {image: own[image] for image in both},
                language=language, meteor=False, n_resamples=1,
            )  # fmt: skip
            value = scores["corpus"]["ROUGE_L"]
            row.append(None if value is None else round(value, 4))
        table.append(row)
    return {"metric": "ROUGE_L", "table": table}


def against_references(
    records: Mapping[str, Sequence[Record]],
    captions: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    language: str,
    seed: int,
) -> dict[str, Any]:
    """Caption metrics of each template, and the paired differences of the headline, p by Holm."""
    from shared.caption_score import compare_captions, score_captions

    asked = dict.fromkeys(record["image"] for own in records.values() for record in own)
    matched = {image: list(references[image]) for image in asked if image in references}
    if not matched:
        reason = "not_given" if not references else "not_matched"
        return {"n_pictures": 0, "reason": reason}
    own = {
        name: {image: text for image, text in texts.items() if image in matched}
        for name, texts in captions.items()
    }
    scores = {
        name: score_captions(matched, texts, language=language, meteor=False, seed=seed)
        for name, texts in own.items()
    }
    pairs = [
        {"first": first, "second": second,
         **asdict(compare_captions(matched, own[first], own[second], language=language,
                                   meteor=False, seed=seed)[HEADLINE])}
        for first, second in combinations(own, 2)
        if len(matched) > 1
    ]  # fmt: skip
    for pair, p in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = p
    return {
        "n_pictures": len(matched),
        "captions_a_picture": round(mean(map(len, matched.values())), 2),
        "tokenizer": next(iter(scores.values()))["tokenizer"],
        "length": lengths(
            [tokenize_caption(text, language) for texts in matched.values() for text in texts],
            [image for image, texts in matched.items() for _ in texts],
        ),
        "scores": {
            name: {
                "corpus": {metric: found["corpus"][metric] for metric in METRICS},
                "intervals": {m: found["intervals"].get(m, {}) for m in METRICS},
                "without_description": len(found["missing"]),
            }
            for name, found in scores.items()
        },
        "notes": next(iter(scores.values()))["notes"],
        "headline": HEADLINE,
        "pairs": pairs,
    }


def read_references(path: Path, pictures: Sequence[str]) -> tuple[References, int]:
    """Captions of the pictures from a data file's rows (`captions`, else the first answer), by
    language (Chinese where a text has a Chinese character), and how many rows could not be read.

    A row's picture is found by its name as the run has it, or by its file name where only one
    picture has that.
    """
    from qwen_clip_llava_lora.data_formats import open_data
    from shared.options import UserError

    by_file: dict[str, list[str]] = defaultdict(list)
    for name in pictures:
        by_file[PurePosixPath(name).name].append(name)
    found: References = {"en": defaultdict(list), "zh": defaultdict(list)}
    bad = 0
    data = open_data(path)
    for i in range(len(data.rows)):
        try:
            row = data.rows[i]
        except UserError:
            bad += 1
            continue
        image = row.get("image")
        if not isinstance(image, str):  # a text, or of several pictures
            continue
        same = by_file.get(PurePosixPath(image).name, [])
        name = image if image in same else same[0] if len(same) == 1 else None
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        for caption in row.get("captions") or answers[:1]:
            if name is not None and caption.strip():
                found["zh" if CHINESE.search(caption) else "en"][name].append(caption)
    return {language: dict(texts) for language, texts in found.items()}, bad
