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
from qwen_clip_llava_lora.scoring import by_language, likelihood
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
WORDS = TEXTS["en"]
LANGUAGES = {"en": "English", "zh": "Chinese"}


def make_report(run: Run) -> Report:
    metrics, config = run.metrics, run.config
    sections = [Section("answers", "Answers", [answer_table(metrics)])]
    if "reason" not in metrics["captions"]:
        sections.append(Section("captions", "Captions", [caption_table(metrics["captions"])]))
    if metrics["classification"]:
        sections.append(Section("classes", "Classes", class_blocks(metrics)))
    sections += [
        Section("likelihood", "Likelihood", [likelihood_block(run)]),
        Section("examples", "Examples", galleries(run)),
        Section("what-ran", "What ran", what_ran(run)),
    ]
    banner = []
    if metrics["trained_on_scored"]:
        banner.append(WORDS["trained_on_scored"].format(run=run.name, data=config["data"]))
    if config["pictures"] == "shuffled":
        banner.append(f"{run.name}: {WORDS['shuffled']}")
    figure = metrics["accuracy"]
    return Report(
        title=f"Evaluation of {run.name}",
        subtitle=f"{config['model']}{' + ' + config['adapter'] if config['adapter'] else ''} · "
        f"{len(run.scored):,} samples",
        verdict=f"{metrics['metric']}: {percent(figure['value'])} "
        f"{interval(figure.get('low'), figure.get('high'))} over {figure['n']:,} samples of "
        f"{config['data']} ({config['task']} data).",
        tiles=tiles(metrics),
        sections=sections,
        synthetic=synthetic_notice(metrics, WORDS),
        banner_title=WORDS["banner_title"],
        banner=banner,
    )


def tiles(metrics: Mapping[str, Any]) -> list[Tile]:
    counts = metrics["counts"]
    shown = {metrics["metric"]: metrics["accuracy"], "exact match": metrics["exact_match"]}
    if metrics["classification"]:
        shown["macro-F1"] = metrics["classification"]["macro_f1"]
    found = [Tile(name, percent(own["value"]), limits(own)) for name, own in shown.items()]
    if "reason" not in metrics["captions"]:
        for language, scores in metrics["captions"].items():
            if scores["corpus"]["CIDEr"] is not None:
                note = f"{LANGUAGES[language]}, n {scores['n']}; "
                note += limits(scores["intervals"]["CIDEr"])
                found.append(Tile("CIDEr", f"{scores['corpus']['CIDEr']:.3f}", note))
    if "reason" not in metrics["likelihood"]:
        own = metrics["likelihood"]["per_sample"]
        found.append(Tile("log-likelihood, nats a sample", f"{own['value']:.3f}", limits(own)))
    odd = f"{counts['errors']} / {counts['empty']} / {counts['cut']}"
    return [*found, Tile("Errors / empty / cut", odd)]


def limits(figure: Mapping[str, Any]) -> str:
    if figure.get("low") is None:
        return figure.get("note", "")
    return WORDS["interval_note"].format(interval=interval(figure["low"], figure["high"]))


def answer_table(metrics: Mapping[str, Any]) -> Table:
    """Headline, exact match and token F1; the published protocols; how it is scored."""
    rows = [
        (f"{metrics['metric']}, all (the headline)", metrics["accuracy"]),
        ("exact match", metrics["exact_match"]),
        *((f"token F1, {LANGUAGES[name]}: {figure['tokens']}", figure)
          for name, figure in metrics["token_f1"].items()),
        *((f"VQA accuracy, {name}: {figure['published_under_it']}", figure)
          for name, figure in (metrics["protocols"] or {}).items()),
        ("the headline without errors", metrics["excluding_errors"]),
    ]  # fmt: skip
    rules = [metrics["exact_match_rule"], metrics["language"]["rule"], metrics["metric_reason"]]
    return Table(
        header=["Metric", "n", "%", "95 % interval"],
        rows=[
            Row([name, f"{figure['n']:,}", percent(figure["value"]),
                 interval(figure.get("low"), figure.get("high"))], figure["n"])
            for name, figure in rows
        ],
        note=f"Exact match: {'. '.join(filter(None, rules))}.",
    )  # fmt: skip


def caption_table(captions: Mapping[str, Any]) -> Table:
    """A row a metric, a column a language; two languages have no figure together."""
    names = [name for name in SHOWN_METRICS
             if any(name in scores["corpus"] for scores in captions.values())]  # fmt: skip

    def cell(scores: Mapping[str, Any], name: str) -> str:
        value, own = scores["corpus"].get(name), scores["intervals"].get(name, {})
        if value is None:
            return "–"
        limits = "" if own.get("low") is None else f" [{own['low']:.4f}, {own['high']:.4f}]"
        return f"{value:.4f}{limits}"

    said = [f"{LANGUAGES[name]}: {scores['tokenizer']}" for name, scores in captions.items()]
    notes = [f"{name}: {note}" for scores in captions.values()
             for name, note in scores["notes"].items() if note]  # fmt: skip
    return Table(
        header=["Metric", *(f"{LANGUAGES[name]} (n {scores['n']:,})"
                            for name, scores in captions.items())],
        rows=[Row([name, *(cell(scores, name) for scores in captions.values())])
              for name in names],
        note=f"{'; '.join(dict.fromkeys(said + notes))}. Intervals of 95 % draw samples.",
    )  # fmt: skip


def class_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    """Per class, the confusion matrix, and the answers that are no class."""
    found = metrics["classification"]
    blocks: list[Block] = [class_table(found, "Matched by name")]
    if metrics["classification_by_likelihood"]:
        likeliest = metrics["classification_by_likelihood"]
        blocks.append(class_table(likeliest, "The likeliest class name"))
    confusion = found["confusion"]
    if len(confusion["columns"]) <= MOST_CLASSES_DRAWN:
        png = charts.heat_map(
            confusion["rows"], confusion["columns"], confusion["counts"],
            x_label="class named" , y_label="true class",
        )  # fmt: skip
        alt = "Counts of true classes (rows) by named classes (columns)."
        blocks.append(Charts([Chart(png, "Which class was taken for which", alt)]))
    matches = ", ".join(f"{how} {n}" for how, n in found["matches"].items())
    blocks.append(
        Table(
            header=["Sample", "Answer", "How"],
            rows=[Row([row["sample_id"], row["answer"] or "", row["match"]])
                  for row in found["unmatched_answers"]],
            title="Answers that name no class, or several",
            note=f"{found['unmatched']} of {found['accuracy']['n']}, the first of them shown; they "
            f"count as wrong. All answers: {matches}. {found['rule']}.",
            text_columns=(0, 1, 2),
        )
    )  # fmt: skip
    return blocks


def class_table(found: Mapping[str, Any], title: str) -> Table:
    keys = ("precision", "recall", "f1")
    return Table(
        header=["Class", "n", "Said", "Precision, %", "Recall, %", "F1, %"],
        rows=[
            Row([name, f"{row['n']:,}", f"{row['said']:,}",
                 *("–" if row[key] is None else f"{row[key]:.2f}" for key in keys)], row["n"])
            for name, row in found["per_class"].items()
        ],
        title=f"{title}: accuracy {percent_with(found['accuracy'])}, macro-F1 "
        f"{percent_with(found['macro_f1'])}",
    )  # fmt: skip


def percent_with(figure: Mapping[str, Any]) -> str:
    shown = "" if figure.get("low") is None else f" {interval(figure['low'], figure['high'])}"
    return percent(figure["value"]) + shown


def likelihood_block(run: Run) -> Block:
    """Over all samples, and of each language where there are two."""
    whole = run.metrics["likelihood"]
    if "reason" in whole:
        return Text([f"None: {whole['reason']}."])
    groups = {"all": whole}
    languages = by_language(list(run.scored.values()))
    if len(languages) > 1:
        groups |= {LANGUAGES[name]: likelihood(rows, run.config["seed"])
                   for name, rows in languages.items()}  # fmt: skip
    missed = whole["not_scored"]
    first = f" ({missed['first']})" if missed["n"] else ""
    return Table(
        header=["Language", "n", "Nats a sample", "Nats a token", "Perplexity"],
        rows=[
            Row([name, f"{found['per_sample']['n']:,}", parts.with_interval(found["per_sample"]),
                 parts.with_interval(found["per_token"]), f"{found['perplexity']:.3f}"],
                found["per_sample"]["n"])
            for name, found in groups.items() if "reason" not in found
        ],
        note="Log-likelihood of the reference answers, the end token not counted. A token's is the "
        "mean over samples of each one's mean; perplexity is of all tokens together. "
        f"{missed['n']} could not be scored{first}.",
    )  # fmt: skip


def galleries(run: Run) -> list[Block]:
    """Worst and best by headline, then by likelihood; answers that are none."""
    scored = [row for row in run.scored.values() if row["score"] is not None]
    odd = [row for row in run.scored.values() if is_unusable(run.records[row["sample_id"]])]
    ordered = sorted(scored, key=lambda row: (row["score"], row.get("log_likelihood") or 0.0))
    of_equals = f"of {len(scored)} samples; of equals, the {{}} likely reference first"
    return [
        Gallery(title, f"{min(CARDS, len(rows))} {note}." if rows else "",
                [card(run, row) for row in rows[:CARDS]])
        for title, note, rows in (
            ("Worst", of_equals.format("less"), ordered),
            ("Best", of_equals.format("more"), ordered[::-1]),
            (WORDS["unusable"], f"of {len(odd)}", odd),
        )
    ]  # fmt: skip


def card(run: Run, row: Mapping[str, Any]) -> Card:
    record = run.records[row["sample_id"]]
    answer = parts.said("Answer", record, row["score"], WORDS)
    if row.get("log_likelihood") is not None:
        value = f"{row['log_likelihood']:.3f} nats, {row['reference_tokens']} tokens"
        answer = replace(answer, details=[*answer.details, ("reference", value)])
    return parts.question_card(record, [answer], picture_finder([run]), WORDS)


def picture_finder(runs: Sequence[Run]) -> Callable[[Mapping[str, Any]], Path]:
    """record -> its picture file, the first of several, whether or not it is there."""

    def find(record: Mapping[str, Any]) -> Path:
        name = record["image"].split(" + ")[0]
        tried = [locate(run.config["image_root"]) / name for run in runs]
        return next((path for path in tried if path.is_file()), tried[0])

    return find


def what_ran(run: Run) -> list[Block]:
    described = describe(run)
    statements = parts.data_statements([(run, described)], WORDS)
    return [Text(statements), *parts.option_tables([(run.name, described)], WORDS)[1:]]
