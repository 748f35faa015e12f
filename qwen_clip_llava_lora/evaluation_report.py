"""The page of one run: figures, captions by language, classes, likelihood, worst and best samples.

A pure function of the run folder; the pictures of the examples are opened where they lie. Written
by evaluate.py as report.html.

    python qwen_clip_llava_lora/evaluate.py --toy
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.report_texts import TEXTS
from shared import charts
from shared import comparison_sections as parts
from shared.comparison import describe, is_unusable, locate
from shared.comparison_report import synthetic_notice
from shared.report import (
    Block,
    Card,
    Chart,
    Charts,
    Gallery,
    Language,
    Report,
    Row,
    Section,
    Table,
    Text,
    Tile,
    interval,
    percent,
)
from shared.runs import Run

CARDS = 6  # of each kind of example
MOST_CLASSES_DRAWN = 30  # of a confusion matrix
SHOWN_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "METEOR",
                 "METEOR_nltk")  # fmt: skip
Words = Mapping[str, str]


def make_report(run: Run, language: Language) -> Report:
    words = TEXTS[language]
    labels = TEXTS[charts.chart_language(language)]  # those that the charts' fonts can draw
    metrics = run.metrics
    sections = [Section("answers", words["answers"], answer_tables(metrics, words))]
    if "reason" not in metrics["captions"]:
        tables = [caption_table(metrics["captions"], words)]
        sections.append(Section("captions", words["captions"], tables))
    if metrics["classification"]:
        blocks = class_blocks(metrics, words, labels)
        sections.append(Section("classes", words["classes"], blocks))
    if "reason" not in metrics["likelihood"]:
        table = likelihood_table(run, words)
        sections.append(Section("likelihood", words["likelihood"], [table]))
    sections += [
        Section("examples", words["examples"], galleries(run, words)),
        Section("what-ran", words["what_ran"], what_ran(run, words)),
    ]
    figure = metrics["accuracy"]
    n_scored = sum(row["score"] is not None for row in run.scored.values())
    data = f"{run.config['data']} ({run.config['task']})"
    verdict = words["verdict_run"].format(
        metric=metrics["metric"], value=percent(figure["value"]), n=n_scored, data=data,
        interval=interval(figure.get("low"), figure.get("high")),
    )  # fmt: skip
    if "reason" not in metrics["likelihood"]:
        value = f"{metrics['likelihood']['per_sample']['value']:.3f}"
        verdict += " " + words["verdict_likelihood"].format(value=value)
    banner = []
    if metrics["trained_on_scored"]:
        banner.append(words["trained_on_scored"].format(run=run.name, data=run.config["data"]))
    if run.config["pictures"] == "shuffled":
        banner.append(f"{run.name}: {words['shuffled']}")
    tuned = f" + {run.config['adapter']}" if run.config["adapter"] else ""
    return Report(
        title=words["title_run"].format(name=run.name),
        subtitle=f"{run.config['model']}{tuned} · {words['questions'].format(n=len(run.scored))}",
        verdict=verdict,
        tiles=tiles(metrics, words),
        sections=sections,
        language=language,
        synthetic=synthetic_notice(metrics, words),
        banner_title=words["banner_title"],
        banner=banner,
    )


def tiles(metrics: Mapping[str, Any], words: Words) -> list[Tile]:
    headline, counts = metrics["accuracy"], metrics["counts"]
    shown = [Tile(metrics["metric"], percent(headline["value"]), limits(headline, words))]
    if metrics["metric"] != "exact match":
        exact = metrics["exact_match"]
        shown.append(Tile(words["exact_match"], percent(exact["value"]), limits(exact, words)))
    if metrics["classification"]:
        macro = metrics["classification"]["macro_f1"]
        shown.append(Tile(words["m macro_f1"], percent(macro["value"]), limits(macro, words)))
    if "reason" not in metrics["captions"]:
        for language, scores in metrics["captions"].items():
            value = scores["corpus"]["CIDEr"]
            if value is not None:
                own = scores["intervals"]["CIDEr"]
                note = f"{words[f'lang {language}']}, n {scores['n']}; {limits(own, words)}"
                shown.append(Tile("CIDEr", f"{value:.3f}", note))
    if "reason" not in metrics["likelihood"]:
        for key in ("per_sample", "per_token"):
            own = metrics["likelihood"][key]
            label = words["m log_likelihood" if key == "per_sample" else "m per_token"]
            shown.append(Tile(label, f"{own['value']:.3f}", limits(own, words)))
    odd = f"{counts['errors']} / {counts['empty']} / {counts['cut']}"
    return [*shown, Tile(words["tile_errors"], odd)]


def limits(figure: Mapping[str, Any], words: Words) -> str:
    if figure.get("low") is None:
        return figure.get("note", "")
    return words["interval_note"].format(interval=interval(figure["low"], figure["high"]))


def answer_tables(metrics: Mapping[str, Any], words: Words) -> list[Block]:
    """Headline, exact match and token F1; the published protocols; how it is scored."""
    rows = [
        (metrics["metric"], "", metrics["accuracy"]),
        (words["exact_match"], "", metrics["exact_match"]),
        *((words["m token_f1"], words[f"lang {name}"], figure)
          for name, figure in metrics["token_f1"].items()),
        *((name, who["published_under_it"], who)
          for name, who in (metrics["protocols"] or {}).items()),
        (words["without_errors"], "", metrics["excluding_errors"]),
    ]  # fmt: skip
    table = Table(
        header=[words["metric"], "", words["n"], words["u points"], ""],
        rows=[
            Row([name, of, f"{figure['n']:,}", percent(figure["value"]),
                 interval(figure.get("low"), figure.get("high"))], figure["n"])
            for name, of, figure in rows
        ],
        text_columns=(0, 1),
    )  # fmt: skip
    rules = [metrics["exact_match_rule"], metrics["language"]["rule"]]
    rules += [f"token F1, {name}: {f['tokens']}" for name, f in metrics["token_f1"].items()]
    rules += [metrics["metric_reason"]] if metrics["metric_reason"] else []
    listed = Table(header=[words["rules"]], rows=[Row([rule]) for rule in rules])
    return [table, listed]


def caption_table(captions: Mapping[str, Any], words: Words) -> Table:
    """A row a metric, a column a language; two languages have no figure together."""
    names = [name for name in SHOWN_METRICS
             if any(name in scores["corpus"] for scores in captions.values())]  # fmt: skip

    def cell(scores: Mapping[str, Any], name: str) -> str:
        value = scores["corpus"].get(name)
        if value is None:
            return "–"
        own = scores["intervals"].get(name, {})
        low, high = own.get("low"), own.get("high")
        return f"{value:.4f}" + ("" if low is None else f" [{low:.4f}, {high:.4f}]")

    said = {f"{words[f'lang {name}']}: {scores['tokenizer']}" for name, scores in captions.items()}
    notes = dict.fromkeys(note for scores in captions.values() for note in scores["notes"].values())
    return Table(
        header=[words["metric"],
                *(f"{words[f'lang {name}']} (n {scores['n']:,})"
                  for name, scores in captions.items())],
        rows=[Row([name, *(cell(scores, name) for scores in captions.values())])
              for name in names],
        note=words["caption_note"].format(
            tokenizer="; ".join(sorted(said)), notes="; ".join(filter(None, notes))
        ),
    )  # fmt: skip


def class_blocks(metrics: Mapping[str, Any], words: Words, labels: Words) -> list[Block]:
    """Per class, the confusion matrix, and the answers that are no class."""
    found = metrics["classification"]
    blocks: list[Block] = [class_table(found, words["m class"], words)]
    if metrics["classification_by_likelihood"]:
        likeliest = metrics["classification_by_likelihood"]
        blocks.append(class_table(likeliest, words["m likeliest"], words))
    confusion = found["confusion"]
    if len(confusion["columns"]) <= MOST_CLASSES_DRAWN:
        png = charts.heat_map(
            confusion["rows"], confusion["columns"], confusion["counts"],
            x_label=labels["axis_said"], y_label=labels["axis_true"],
        )  # fmt: skip
        blocks.append(Charts([Chart(png, words["confusion"], words["alt_confusion"])]))
    matches = ", ".join(f"{how} {n}" for how, n in found["matches"].items())
    blocks.append(
        Table(
            header=[words["sample"], words["answer"], words["how"]],
            rows=[Row([row["sample_id"], row["answer"] or "", row["match"]])
                  for row in found["unmatched_answers"]],
            title=words["unmatched"],
            note=words["unmatched_note"].format(
                n=found["unmatched"], total=found["accuracy"]["n"], matches=matches,
                rule=found["rule"],
            ),
            text_columns=(0, 1, 2),
        )
    )  # fmt: skip
    return blocks


def class_table(found: Mapping[str, Any], title: str, words: Words) -> Table:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    keys = ("precision", "recall", "f1")
    macro = found["macro_f1"]
    return Table(
        header=[words["class"], words["n"], words["said_count"], *(words[key] for key in keys)],
        rows=[
            Row([name, f"{row['n']:,}", f"{row['said']:,}", *(cell(row[key]) for key in keys)],
                row["n"])
            for name, row in found["per_class"].items()
        ],
        title=f"{title}: {parts.with_interval(found['accuracy'])} %; {words['m macro_f1']} "
        f"{parts.with_interval(macro)} %",
    )  # fmt: skip


def likelihood_table(run: Run, words: Words) -> Table:
    from qwen_clip_llava_lora.scoring import by_language, likelihood

    every = list(run.scored.values())
    groups = [(words["all"], run.metrics["likelihood"])]
    languages = by_language(every)
    if len(languages) > 1:
        groups += [(words[f"lang {name}"], likelihood(rows, run.config["seed"]))
                   for name, rows in languages.items()]  # fmt: skip
    known = [(name, found) for name, found in groups if "reason" not in found]
    missed = run.metrics["likelihood"]["not_scored"]
    return Table(
        header=[words["language"], words["n"], words["per_sample"], words["per_token"],
                words["perplexity"]],
        rows=[
            Row([name, f"{found['per_sample']['n']:,}", parts.with_interval(found["per_sample"]),
                 parts.with_interval(found["per_token"]), f"{found['perplexity']:.3f}"],
                found["per_sample"]["n"])
            for name, found in known
        ],
        note=words["likelihood_note"].format(
            n=missed["n"], first=f" ({missed['first']})" if missed["n"] else ""
        ),
    )  # fmt: skip


def galleries(run: Run, words: Words) -> list[Block]:
    """Worst and best by headline, then by likelihood; answers that are none."""
    scored = [row for row in run.scored.values() if row["score"] is not None]
    odd = [row for row in run.scored.values() if is_unusable(run.records[row["sample_id"]])]

    def order(row: Mapping[str, Any]) -> tuple[float, float]:
        return row["score"], row.get("log_likelihood") or 0.0

    blocks: list[Block] = []
    for name, rows in (
        ("worst", sorted(scored, key=order)),
        ("best", sorted(scored, key=order, reverse=True)),
    ):
        chosen = rows[:CARDS]
        note = words["by_score"].format(
            shown=len(chosen), total=len(scored),
            end=words["lowest" if name == "worst" else "highest"],
            likely=words["less_likely" if name == "worst" else "more_likely"],
        )  # fmt: skip
        cards = [card(run, row, words) for row in chosen]
        blocks.append(Gallery(words[name], note if cards else "", cards))
    note = words["all_shown"].format(total=len(odd)) if len(odd) <= CARDS else f"{CARDS}/{len(odd)}"
    blocks.append(Gallery(words["unusable"], note if odd else "",
                          [card(run, row, words) for row in odd[:CARDS]]))  # fmt: skip
    return blocks


def card(run: Run, row: Mapping[str, Any], words: Words) -> Card:
    record = run.records[row["sample_id"]]
    answer = parts.said(words["answer"], record, row["score"], words)
    if row.get("log_likelihood") is not None:
        value = f"{row['log_likelihood']:.3f} ({row['reference_tokens']})"
        answer = replace(answer, details=[*answer.details, (words["likelihood_card"], value)])
    return parts.question_card(record, [answer], picture_finder([run]), words)


def picture_finder(runs: Sequence[Run]) -> Callable[[Mapping[str, Any]], Path]:
    """record -> its picture file, the first of several, whether or not it is there."""

    def find(record: Mapping[str, Any]) -> Path:
        name = record["image"].split(" + ")[0]
        tried = [locate(run.config["image_root"]) / name for run in runs]
        return next((path for path in tried if path.is_file()), tried[0])

    return find


def what_ran(run: Run, words: Words) -> list[Block]:
    described = describe(run)
    statements = parts.data_statements([(run, described)], words)
    return [Text(statements), *parts.option_tables([(run.name, described)], words)]
