"""The comparison of prompt templates as a page and as text, in English and Chinese.

Takes what `prompt_figures.compare_templates` computed, a run's metrics.json and its records; blocks
and page are `shared.report`'s, charts `shared.charts`'.

    python -m pytest tests/qwen_clip_llava_lora/test_compare_prompts.py

Reads the gallery's pictures; writes nothing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_clip_llava_lora.prompt_figures import METRICS, covered_aspects
from qwen_clip_llava_lora.prompt_texts import TEXTS
from shared import charts
from shared.caption_tokens import tokenize_caption
from shared.options import REPO_ROOT
from shared.report import (
    Answer,
    Block,
    Card,
    Chart,
    Charts,
    CopyBox,
    Gallery,
    Language,
    Report,
    Row,
    Section,
    Table,
    Text,
    Tile,
    Tone,
    markdown_table,
    p_value,
    thumbnail,
)

Words = Mapping[str, str]
Figures = Mapping[str, Any]
MOST_SERIES = len(charts.SERIES)
NAMES = {"Bleu_1": "BLEU-1", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr"}
SIGNIFICANT = 0.05
TEXT_COLUMNS = ("template", "usable", "length", "covered", "distinct", "different")
EFFORT_COLUMNS = ("template", "requests", "unusable", "failed", "tokens", "seconds", "cost_1000")


def make_page(
    comparison: Figures,
    config: Figures,
    metrics: Figures,
    records: Sequence[Figures],
    references: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    language: Language,
    n_pictures: int,
    seed: int,
    made_by: str,
    date: str,
) -> Report:
    words = TEXTS[language]
    labels = TEXTS[charts.chart_language(language)]
    sections = [Section("templates", words["templates"], overview(metrics, comparison, words))]
    for code, found in comparison["languages"].items():
        drawn = [aspect_chart(found, words, labels), reference_chart(found, words, labels)]
        blocks: list[Block] = [
            Charts([chart for chart in drawn if chart is not None]),
            *aspect_blocks(found, words),
            *reference_blocks(found, words),
            *agreement_blocks(found, words),
        ]
        sections.append(Section(f"language_{code}", words[f"language_{code}"], blocks))
    sections += [
        Section("samples", words["samples"],
                [gallery(comparison, metrics, records, references, words, n_pictures, seed)]),
        Section("prompts", words["prompts"], prompt_blocks(config, words)),
        Section("copy", words["copy"], [copy_box(comparison, metrics, words)]),
    ]  # fmt: skip
    synthetic = [part for part in ("data", "model") if metrics["synthetic"].get(part)]
    banner = [] if metrics["complete"] else [words["unfinished"]]
    return Report(
        title=words["title"].format(model=metrics["model"]),
        subtitle=words["subtitle"].format(run=comparison["run"], n=metrics["pictures"]),
        verdict=verdict(comparison, words),
        tiles=tiles(metrics, words),
        sections=sections,
        language=language,
        synthetic=words["synthetic"].format(
            parts=words["and"].join(words[f"synthetic_{part}"] for part in synthetic)
        )
        if synthetic
        else "",
        banner_title=words["unfinished_title"] if banner else "",
        banner=banner,
        footer=[f"{made_by} · {date}"],
    )


# Figures as text


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def with_limits(value: float | None, limits: Figures, digits: int = 3) -> str:
    """0.351 [0.330, 0.372]; – where there is none."""
    if value is None:
        return "–"
    if limits.get("low") is None:
        return number(value, digits)
    return f"{value:.{digits}f} [{limits['low']:.{digits}f}, {limits['high']:.{digits}f}]"


def verdict(comparison: Figures, words: Words) -> str:
    """One sentence a language: which template is nearest to the references, or covers most."""
    return " ".join(
        _sentence(code, found, words) for code, found in comparison["languages"].items()
    )


def _sentence(code: str, found: Figures, words: Words) -> str:
    name = words[f"language_{code}"]
    usable = [t for t in found["templates"] if found["figures"][t]["usable"]]
    if len(usable) < 2:
        return words["verdict_few"].format(language=name, n=len(usable))
    scored = found["references"].get("scores", {})
    values = {t: scored[t]["corpus"]["CIDEr"] for t in usable if t in scored}
    if values and None not in values.values():
        best = max(values, key=lambda t: values[t])
        clear = [
            pair["second"] if pair["first"] == best else pair["first"]
            for pair in found["references"]["pairs"]
            if best in (pair["first"], pair["second"])
            and pair["p_holm"] is not None
            and pair["p_holm"] <= SIGNIFICANT
        ]
        how = words["verdict_clear"].format(others=", ".join(clear)) if clear else ""
        text = words["verdict_references"].format(
            language=name, best=best, value=values[best], n=found["references"]["n_pictures"]
        )
        return text + (how or words["verdict_unclear"])
    covered = {t: found["figures"][t]["aspects_covered"] or 0.0 for t in usable}
    best = max(covered, key=lambda t: covered[t])
    return words["verdict_aspects"].format(
        language=name, best=best, value=covered[best], n=len(found["aspects"])
    )


def tiles(metrics: Figures, words: Words) -> list[Tile]:
    templates = metrics["templates"].values()
    asked = sum(figures["descriptions"] for figures in templates)
    usable = sum(figures["ok"] for figures in templates)
    unusable = sum(figures["unusable_answers"]["count"] for figures in templates)
    costs = [figures["cost"] for figures in templates]
    cost = None if None in costs else sum(costs)
    tone: Tone = "good" if usable == asked else "warn"
    return [
        Tile(words["pictures"], f"{metrics['pictures']:,}",
             words["pictures_note"].format(problems=metrics["data_problems"]["count"],
                                           **metrics["rows"])),
        Tile(words["usable"], f"{usable:,} / {asked:,}",
             words["unusable_answers"].format(n=unusable), tone),
        Tile(words["cost"], "–" if cost is None else f"{cost:,.4f}",
             words["cost_unknown"] if cost is None else words["cost_note"]),
    ]  # fmt: skip


# Sections


def overview(metrics: Figures, comparison: Figures, words: Words) -> list[Block]:
    texts, effort = overview_rows(metrics, comparison)
    n_usable = [
        figures["usable"]
        for found in comparison["languages"].values()
        for figures in found["figures"].values()
    ]
    return [
        Table([words[key] for key in TEXT_COLUMNS],
              [Row(cells, n=n) for cells, n in zip(texts, n_usable, strict=True)],
              title=words["texts"], note=words["texts_note"]),
        Table([words[key] for key in EFFORT_COLUMNS], [Row(cells) for cells in effort],
              title=words["effort"], note=words["effort_note"]),
        Charts([_outcomes(metrics, words)]),
    ]  # fmt: skip


def overview_rows(metrics: Figures, comparison: Figures) -> tuple[list[list[str]], list[list[str]]]:
    """Cells of `TEXT_COLUMNS` and `EFFORT_COLUMNS`, a row a template."""
    texts, effort = [], []
    for found in comparison["languages"].values():
        for name in found["templates"]:
            asked, said = metrics["templates"][name], found["figures"][name]
            failed = asked["error"] + asked["skipped"] + asked["missing"]
            texts.append([
                name,
                f"{asked['ok']:,} / {asked['descriptions']:,}",
                with_limits(said["length"]["mean"], said["length"], 1),
                f"{number(said['aspects_covered'])} / {len(found['aspects'])}",
                " / ".join(number(said["distinct"][n], 3) for n in ("1", "2")),
                f"{said['different_texts']:,}",
            ])  # fmt: skip
            effort.append([
                name,
                f"{asked['requests']:,}",
                f"{asked['unusable_answers']['count']:,}",
                f"{failed:,}",
                " / ".join(number(asked[key], 0) for key in ("prompt_tokens", "answer_tokens")),
                number(asked["seconds_per_usable"], 3),
                number(asked["cost_per_1000_usable"], 4),
            ])  # fmt: skip
    return texts, effort


def _outcomes(metrics: Figures, words: Words) -> Chart:
    labels = TEXTS[charts.chart_language(words["code"])]
    outcomes = [
        (asked["ok"], asked["malformed"], asked["error"] + asked["skipped"] + asked["missing"])
        for asked in metrics["templates"].values()
    ]
    png = charts.outcome_bars(
        list(metrics["templates"]),
        outcomes,
        [labels["outcome_ok"], labels["outcome_malformed"], labels["outcome_failed"]],
    )
    said = ", ".join(
        f"{name} {ok}/{malformed}/{failed}"
        for name, (ok, malformed, failed) in zip(metrics["templates"], outcomes, strict=True)
    )
    return Chart(png, words["outcomes"], f"{words['outcomes']}: {said}", words["outcomes_note"])


def aspect_chart(found: Figures, words: Words, labels: Words) -> Chart | None:
    shown = found["templates"][:MOST_SERIES]
    figures = {name: found["figures"][name]["aspects"] for name in shown}
    if not found["aspects"]:
        return None
    png = charts.accuracy_bars(
        list(found["aspects"]),
        {name: [own[aspect] for aspect in found["aspects"]] for name, own in figures.items()},
        x_label=labels["covered_axis"],
    )
    alt = "; ".join(
        f"{name}: " + ", ".join(f"{a} {number(own[a]['value'], 0)}" for a in found["aspects"])
        for name, own in figures.items()
    )
    return Chart(png, words["aspects_chart"], alt)


def aspect_blocks(found: Figures, words: Words) -> list[Block]:
    figures = {name: found["figures"][name]["aspects"] for name in found["templates"]}
    if not found["aspects"]:
        return [Text([words["no_aspects"]])]
    rows = [
        Row([aspect, *(with_limits(own[aspect]["value"], own[aspect], 1)
                       for own in figures.values())],
            n=max(own[aspect]["n"] for own in figures.values()))
        for aspect in found["aspects"]
    ]  # fmt: skip
    word_rows = [Row([aspect, ", ".join(own)]) for aspect, own in found["aspects"].items()]
    return [
        Table([words["aspect"], *figures], rows, title=words["aspects"],
              note=words["aspects_note"]),
        Table([words["aspect"], words["words"]], word_rows, title=words["aspect_words"],
              text_columns=(0, 1), folded=True),
    ]  # fmt: skip


def reference_chart(found: Figures, words: Words, labels: Words) -> Chart | None:
    scores = found["references"].get("scores")
    if not scores:
        return None
    drawn = ("Bleu_1", "Bleu_4", "ROUGE_L")  # 0..1, as percent; CIDEr goes to 10
    png = charts.accuracy_bars(
        [NAMES[metric] for metric in drawn],
        {
            name: [in_percent(own["corpus"][m], own["intervals"][m]) for m in drawn]
            for name, own in list(scores.items())[:MOST_SERIES]
        },
        x_label=labels["metrics_axis"],
    )
    alt = "; ".join(
        f"{name}: " + ", ".join(f"{NAMES[m]} {number(own['corpus'][m], 3)}" for m in drawn)
        for name, own in scores.items()
    )
    return Chart(png, words["references_chart"], alt)


def reference_blocks(found: Figures, words: Words) -> list[Block]:
    against = found["references"]
    if not against["n_pictures"]:
        return [Text([words["no_references"].format(reason=words[against["reason"]])])]
    n = against["n_pictures"]
    rows = [
        Row([name, *(with_limits(own["corpus"][m], own["intervals"][m]) for m in METRICS),
             f"{own['without_description']}"], n=n)
        for name, own in against["scores"].items()
    ]  # fmt: skip
    blocks: list[Block] = [
        Table([words["template"], *(NAMES[m] for m in METRICS), words["without"]], rows,
              title=words["references"],
              note=words["references_note"].format(
                  n=n, each=against["captions_a_picture"], tokenizer=against["tokenizer"],
                  length=number(against["length"]["mean"], 1))),
    ]  # fmt: skip
    if against["pairs"]:
        blocks.append(
            Table(
                [words["pair"], words["difference"], "p", words["p_holm"], words["wins"]],
                [pair_row(pair) for pair in against["pairs"]],
                title=words["pairs"],
                note=words["pairs_note"],
            )
        )
    return blocks


def in_percent(value: float | None, limits: Figures) -> dict[str, float | None]:
    low, high = (limits.get(key) for key in ("low", "high"))
    return {
        "value": None if value is None else 100 * value,
        "low": None if low is None else 100 * low,
        "high": None if high is None else 100 * high,
    }


def pair_row(pair: Figures) -> Row:
    tone: Tone = ""
    if pair["p_holm"] is not None and pair["p_holm"] <= SIGNIFICANT:
        tone = "good" if pair["difference"] > 0 else "bad"
    limits = "" if pair["low"] is None else f" [{pair['low']:+.3f}, {pair['high']:+.3f}]"
    cells = [
        f"{pair['first']} → {pair['second']}",
        f"{pair['difference']:+.3f}{limits}",
        p_value(pair["p_value"]),
        p_value(pair["p_holm"]),
        f"{pair['wins']} / {pair['ties']} / {pair['losses']}",
    ]
    return Row(cells, n=pair["n"], tone=tone)


def agreement_blocks(found: Figures, words: Words) -> list[Block]:
    names = found["templates"]
    if len(names) < 2:
        return []
    rows = [
        Row([name, *(number(value, 3) for value in row)])
        for name, row in zip(names, found["agreement"]["table"], strict=True)
    ]
    header = [words["agreement_head"], *names]
    return [Table(header, rows, title=words["agreement"], note=words["agreement_note"])]


def gallery(
    comparison: Figures,
    metrics: Figures,
    records: Sequence[Figures],
    references: Mapping[str, Mapping[str, Sequence[str]]],
    words: Words,
    n_pictures: int,
    seed: int,
) -> Gallery:
    """A drawn sample of pictures with every template's descriptions."""
    by_picture: dict[str, list[Figures]] = defaultdict(list)
    for record in records:
        by_picture[record["image"]].append(record)
    names = list(by_picture)
    drawn = set(random.Random(seed).sample(range(len(names)), min(n_pictures, len(names))))
    root = REPO_ROOT / metrics["image_root"]  # an absolute one stays as it is
    cards = [
        Card(
            picture=thumbnail(root / name),
            title=name,
            facts=[
                (words[f"references_{code}"], " · ".join(captions[name]))
                for code, captions in references.items()
                if name in captions
            ],
            answers=[answer(record, comparison, words) for record in by_picture[name]],
        )
        for i, name in enumerate(names)
        if i in drawn
    ]
    title = words["samples_title"].format(n=len(cards), total=len(names))
    return Gallery(title, words["samples_note"].format(seed=seed), cards)


def answer(record: Figures, comparison: Figures, words: Words) -> Answer:
    label = record["template"] + (f" #{record['sample']}" if record["sample"] else "")
    if record["status"] != "ok":
        note = f"{words['status_' + record['status']]}: {record['error']}"
        return Answer(label, note, tone="bad")
    code = record["language"]
    aspects = comparison["languages"][code]["aspects"]
    tokens = tokenize_caption(record["description"], code)
    covered = covered_aspects(record["description"], tokens, aspects, code)
    note = words["answer_note"].format(
        n=len(tokens), covered=len(covered), aspects=len(aspects), names=", ".join(covered)
    )
    return Answer(label, record["description"], note)


def prompt_blocks(config: Figures, words: Words) -> list[Block]:
    """The prompts as they are asked, so that the page can be read without the files."""
    rows = []
    for name, content in config["templates"].items():
        for step in content["steps"]:
            prompt = step["prompt"]
            for wording in prompt if isinstance(prompt, list) else [prompt]:
                rows.append(Row([name, step["name"], wording.strip()]))
    header = [words["template"], words["step"], words["prompt"]]
    return [Table(header, rows, text_columns=(0, 1, 2), title=words["prompts"], folded=True)]


def copy_box(comparison: Figures, metrics: Figures, words: Words) -> CopyBox:
    header = [words[key] for key in (*TEXT_COLUMNS, *EFFORT_COLUMNS[1:])]
    texts, effort = overview_rows(metrics, comparison)
    rows = [[*text, *cost[1:]] for text, cost in zip(texts, effort, strict=True)]
    return CopyBox(words["copy"], markdown_table(header, rows))


def summary(comparison: Figures, metrics: Figures, language: str) -> str:
    """For the console: the verdict and a line for each template."""
    words = TEXTS[language]
    lines = ["SYNTHETIC"] if any(metrics["synthetic"].values()) else []
    lines.append(verdict(comparison, words))
    for text, effort in zip(*overview_rows(metrics, comparison), strict=True):
        lines.append(
            words["summary"].format(
                name=text[0], usable=text[1], length=text[2], covered=text[3], cost=effort[-1]
            )
        )
    return "\n".join(lines)
