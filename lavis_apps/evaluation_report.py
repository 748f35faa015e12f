"""The page of one run: the figures of its task, pictures with what was said, what ran.

A pure function of the run folder; the pictures of the examples are opened where they lie. Written
by evaluate.py as report.html.

    python lavis_apps/evaluate.py --toy --task retrieval
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lavis_apps.scoring_retrieval import DIRECTIONS, IR, TR
from shared import charts
from shared import comparison_sections as parts
from shared.caption_runs import NAMES, named, with_interval
from shared.comparison import describe, is_unusable, picture_file
from shared.comparison_report import synthetic_notice
from shared.comparison_texts import TEXTS
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

WORDS = TEXTS["en"]
CARDS = 6  # of each kind of example
MOST_CLASSES_DRAWN = 30  # of a confusion table
TITLES = {
    "caption": "Captions", "vqa": "Visual question answering", "retrieval": "Retrieval",
    "classification": "Classification", "matching": "Image-text matching",
    "localization": "Text localization",
}  # fmt: skip
ASKED_WITHOUT_WORDS = {"retrieval": "Which caption?", "classification": "Which class?"}
HOW = {
    "caption": "Errors and empty captions count as empty in every metric.",
    "vqa": "Errors count as wrong.",
    "retrieval": "TR: a picture asks for any of its captions. IR: a caption asks for its picture. "
    "A wrong candidate with the score of the right one counts as before it. After re-ranking, what "
    "is not among the first k_test has no score, so a right one that is not there is a miss. Mean: "
    "of R@1, R@5 and R@10.",
    "classification": "A wrong class as likely as the true one counts as before it. Macro: the "
    "mean recall of the classes.",
    "matching": "Each picture with its first caption and with a caption of another picture. AUROC: "
    "how often its own scores higher, ties half. That other caption may be true of it too.",
    "localization": "A map hits where its highest place lies in a box of the category; places that "
    "share the maximum count by their share. Pointing anywhere would hit as the boxes' share, but "
    "what stands out is mostly an object, so a map that ignores its words hits more often. The "
    "same maps are therefore held against the boxes of the picture's other categories, one by one: "
    "such a map hits those as often as the named ones.",
}


def make_report(run: Run) -> Report:
    metrics, config = run.metrics, run.config
    task = metrics["task"]
    tables = {
        "caption": caption_blocks, "vqa": vqa_blocks, "retrieval": retrieval_blocks,
        "classification": class_blocks, "matching": matching_blocks,
        "localization": localization_blocks,
    }[task]  # fmt: skip
    figure = metrics["accuracy"]
    model = config["model"] + (f" + {config['adapter']}" if config["adapter"] else "")
    saw = metrics["weights_saw"]
    return Report(
        title=f"{TITLES[task]}: {Path(config['model']).name}",
        subtitle=f"{model} · {config['split']} of {config['data_root']} · {len(run.scored):,} "
        + ("queries" if task == "retrieval" else "samples"),
        verdict=f"{metrics['metric']}: {percent(figure['value'])} "
        f"{interval(figure.get('low'), figure.get('high'))} over {figure['n']:,}.",
        tiles=tiles(metrics),
        sections=[
            Section("figures", "Figures", [*tables(metrics), Text([HOW[task]])]),
            Section("examples", "Examples", galleries(run)),
            Section("what-ran", "What ran", what_ran(run)),
        ],
        synthetic=synthetic_notice(metrics, WORDS),
        banner_title=WORDS["banner_title"],
        banner=[saw["warning"]] if saw["warning"] else [],
    )


def tiles(metrics: Mapping[str, Any]) -> list[Tile]:
    counts = metrics["counts"]
    found = [_tile(metrics["metric"], metrics["accuracy"])]
    task = metrics["task"]
    if task == "caption" and "captions" in metrics:
        found.append(Tile("CIDEr", with_interval(metrics["captions"], "CIDEr")))
    if task == "retrieval":
        found += [_tile(f"{name} R@1", metrics["retrieval"][name]["R@1"]) for name in DIRECTIONS]
        if metrics["equal_captions"]:
            own = metrics["equal_captions"]["retrieval"]["r_mean"]
            found.append(_tile("mean recall, equal captions as right", own))
    if task == "classification":
        found.append(_tile("top-5", metrics["top"]["top-5"]))
    if task == "matching":
        found.append(_tile("AUROC of ITC", metrics["auroc"]["itc"]))
    if task == "localization":
        found.append(_tile("boxes' share of the area", metrics["boxes_share"]))
        ratio = metrics["ratio"]
        if ratio["value"] is not None:
            limits = "" if ratio["low"] is None else f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"
            found.append(Tile("hits over that share", f"{ratio['value']:.2f}", limits))
        difference = metrics["named_against_others"]["difference"]
        found.append(_tile("hits on the named minus on others", difference))
    return [*found, Tile("Errors / empty / cut",
                         f"{counts['errors']} / {counts['empty']} / {counts['cut']}")]  # fmt: skip


def _tile(name: str, figure: Mapping[str, Any]) -> Tile:
    if figure["value"] is None:
        return Tile(name, "–", figure.get("reason", ""))
    note = "" if figure.get("low") is None else interval(figure["low"], figure["high"])
    return Tile(name, percent(figure["value"]), note)


def figure_table(
    rows: Sequence[tuple[str, Mapping[str, Any]]], title: str = "", note: str = ""
) -> Table:
    """Name, n, percent, interval of each estimate; the reason where there is no value."""
    return Table(
        header=["Figure", "n", "%", "95 % interval"],
        rows=[
            Row([name, f"{own['n']:,}", percent(own["value"]),
                 own.get("reason") or interval(own.get("low"), own.get("high"))], own["n"])
            for name, own in rows
        ],
        title=title, note=note,
    )  # fmt: skip


def caption_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    captions = metrics.get("captions")
    if captions is None:
        return [Text([f"No figures: {metrics['accuracy']['reason']}."])]
    return [
        Table(
            header=["Metric", "95 % interval"],
            rows=[Row([NAMES[name], with_interval(captions, name)])
                  for name in named(captions["corpus"])],
            note=f"As pycocoevalcap gives them; tokens: {captions['tokenizer']}. "
            + " ".join(captions["notes"].values()),
        )
    ]  # fmt: skip


def vqa_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    protocols = [
        (f"{name} ({own['published_under_it']})", own)
        for name, own in (metrics["protocols"] or {}).items()
    ]
    return [
        figure_table([("all", metrics["accuracy"]), *metrics["per_answer_type"].items()],
                     metrics["metric"], metrics["metric_reason"] or ""),
        figure_table([*protocols, ("exact match", metrics["exact_match"])], "Other protocols"),
        figure_table(list(metrics["per_question_type"].items()), "By question type"),
    ]  # fmt: skip


def retrieval_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    equal = metrics["equal_captions"] or {}
    tables = [
        (metrics["metric"] + ": by id, the headline", metrics["retrieval"], metrics["chance"]),
        ("By ITC alone, by id", metrics["retrieval_itc"], metrics["chance"]),
        ("Equal captions as right", equal.get("retrieval"), equal.get("chance")),
        ("Equal captions as right, by ITC alone", equal.get("retrieval_itc"), equal.get("chance")),
    ]
    blocks: list[Block] = []
    for title, figures, chance in tables:
        if figures is None:
            continue
        rows = [(f"{name} {key}", own) for name in DIRECTIONS
                for key, own in figures[name].items()]  # fmt: skip
        rows.append(("mean recall", figures["r_mean"]))
        said = ", ".join(f"{name} {value} %" for name, value in chance.items())
        blocks.append(figure_table(rows, title, f"R@1 of a random order: {said}."))
    if equal:
        blocks.append(Text([
            f"{equal['n_queries']:,} queries have a caption that another picture has too. By its "
            "id only one picture is right, though no model can tell which; the lower tables count "
            "every equal one as right."
        ]))  # fmt: skip
    return blocks


def class_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    macro, confusion = metrics["macro"], metrics["confusion"]
    mean = "–" if macro["value"] is None else f"{macro['value']:.2f} %"
    blocks: list[Block] = [
        figure_table(list(metrics["top"].items()), "Accuracy",
                     f"Macro: {mean}. By chance: {metrics['chance']} %."),
        Table(
            header=["Class", "n", "Recall, %", "95 % interval", "Precision, %", "Said"],
            rows=[
                Row([name, f"{own['n']:,}", percent(own["recall"]),
                     interval(own["low"], own["high"]), percent(own["precision"]),
                     f"{own['said']:,}"], own["n"])
                for name, own in metrics["per_class"].items()
            ],
            title="Classes", folded=len(metrics["per_class"]) > MOST_CLASSES_DRAWN,
        ),
    ]  # fmt: skip
    if confusion and 0 < len(confusion["columns"]) <= MOST_CLASSES_DRAWN:
        png = charts.heat_map(
            confusion["rows"], confusion["columns"], confusion["counts"],
            x_label="class said", y_label="true class",
        )  # fmt: skip
        alt = "Counts of true classes (rows) by classes said (columns)."
        blocks.append(Charts([Chart(png, "Which class was taken for which", alt)]))
    return blocks


def matching_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    return [
        figure_table([
            ("AUROC, ITM probability", metrics["auroc"]["itm"]),
            ("AUROC, ITC cosine", metrics["auroc"]["itc"]),
            ("told apart at 0.5", metrics["accuracy_at_half"]),
            *((f"{name}: told at 0.5", own) for name, own in metrics["per_answer_type"].items()),
        ])
    ]  # fmt: skip


def localization_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    rows = [
        ("pointing game", metrics["accuracy"]),
        ("boxes' share of the area", metrics["boxes_share"]),
        ("of the map inside the boxes", metrics["energy"]),
    ]
    several = metrics["named_against_others"]
    names = {"named": "hits on the category named", "others": "hits on one of the others",
             "difference": "difference, points"}  # fmt: skip
    return [figure_table(rows),
            figure_table([(name, several[key]) for key, name in names.items()],
                         "Pictures with several categories: does the map follow its words?"),
            figure_table(list(metrics["per_answer_type"].items()), "By category")]  # fmt: skip


def galleries(run: Run) -> list[Block]:
    """Right and wrong samples drawn with the run's seed, and errors; captions best and worst."""
    known = [row for row in run.scored.values() if row["score"] is not None]
    odd = [row for row in run.scored.values() if is_unusable(run.records[row["sample_id"]])]
    if run.metrics["task"] == "caption":
        ordered = sorted(known, key=lambda row: row["score"])
        chosen = [("Worst by CIDEr", ordered[:CARDS], len(known)),
                  ("Best by CIDEr", ordered[::-1][:CARDS], len(known))]  # fmt: skip
    else:
        right = [row for row in known if row["score"] >= 0.5]
        wrong = [row for row in known if row["score"] < 0.5]
        seed = run.config["seed"]
        chosen = [(name, _drawn(rows, seed), len(rows))
                  for name, rows in (("Wrong", wrong), ("Right", right))]  # fmt: skip
    chosen.append((WORDS["unusable"], odd[:CARDS], len(odd)))
    return [
        Gallery(title, f"{len(rows)} of {total:,}." if rows else "",
                [card(run, row) for row in rows])
        for title, rows, total in chosen
    ]  # fmt: skip


def _drawn(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    return random.Random(seed).sample(rows, min(CARDS, len(rows)))


def card(run: Run, row: Mapping[str, Any]) -> Card:
    """A sample with what was said; of a retrieval's query the rank, and what was found in words."""
    record = run.records[row["sample_id"]]
    answer = parts.said("Answer", record, row["score"], WORDS)
    details = [one for one in answer.details if one[1] != record["answer"]]
    if record.get("hits"):
        details.append(("rank", f"{record['rank']} of {record['n_candidates']}"))
        if record["answer_type"] == IR:  # the answer is a picture's name
            own = next(r for r in run.records.values() if r["image"] == record["answer"]
                       and r["answer_type"] == TR)  # fmt: skip
            details.append(("its caption", own["references"][0]))
    shown = parts.question_card(
        record, [replace(answer, details=details)], lambda r: picture_file(run, r), WORDS
    )
    asked = ASKED_WITHOUT_WORDS.get(run.metrics["task"])
    return shown if record["question"] or not asked else replace(shown, title=asked)


def what_ran(run: Run) -> list[Block]:
    described = describe(run)
    statements = parts.data_statements([(run, described)], WORDS)
    return [Text(statements), *parts.option_tables([(run.name, described)], WORDS)[1:]]
