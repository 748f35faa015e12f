"""The figures that evaluate.py prints at its end.

python qwen_clip_llava_lora/evaluate.py --toy
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.estimates import percent

CAPTION_METRICS = ("Bleu_4", "ROUGE_L", "CIDEr", "METEOR", "METEOR_nltk")
MOST_CLASSES = 12


def print_figures(metrics: Mapping[str, Any]) -> None:
    """Headline, then what the task has: captions, classes, likelihood; counts at the end."""
    counts = ", ".join(f"{n} {name}" for name, n in metrics["language"]["counts"].items())
    print(f"{metrics['task']} data ({counts}), {metrics['metric']}: {percent(metrics['accuracy'])}")
    if metrics["metric"] != "exact match":
        print(f"  exact match: {percent(metrics['exact_match'])}")
    for language, figure in metrics["token_f1"].items():
        print(f"  token F1, {language} ({figure['tokens']}): {percent(figure)}")
    for line in [*caption_lines(metrics), *class_lines(metrics), *likelihood_lines(metrics)]:
        print(f"  {line}")
    print("  " + ", ".join(f"{value} {name}" for name, value in metrics["counts"].items()))
    if metrics["trained_on_scored"]:
        print("  note: adapter or model was trained on the very rows that score it here")
    left_out = metrics["references_in_another_language"]
    if left_out:
        print(f"  note: {left_out} references in another language than their sample's left out")


def caption_lines(metrics: Mapping[str, Any]) -> list[str]:
    if "reason" in metrics["captions"]:
        return []
    lines = []
    for language, scores in metrics["captions"].items():
        known = [(name, scores["corpus"].get(name)) for name in CAPTION_METRICS]
        said = ", ".join(f"{name} {value:.4f}" for name, value in known if value is not None)
        lines.append(f"captions, {language} (n {scores['n']}; {scores['tokenizer']}): {said}")
    return lines


def class_lines(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, how in (("classification", "matched"), ("classification_by_likelihood", "likeliest")):
        found = metrics[key]
        if not found:
            continue
        lines.append(
            f"classes ({how}): accuracy {percent(found['accuracy'])}; macro-F1 "
            f"{found['macro_f1']['value']} % over {found['macro_f1']['n_classes']} classes; "
            f"{found['unmatched']} answers name no class or several"
        )
        if key == "classification" and len(found["per_class"]) <= MOST_CLASSES:
            lines += [
                f"  {name}: F1 {'none' if row['f1'] is None else row['f1']} (n {row['n']}, "
                f"said {row['said']})"
                for name, row in found["per_class"].items()
            ]
    return lines


def likelihood_lines(metrics: Mapping[str, Any]) -> list[str]:
    found = metrics["likelihood"]
    if "reason" in found:
        return [f"log-likelihood of the references: none ({found['reason']})"]
    whole, token = found["per_sample"], found["per_token"]
    return [
        f"log-likelihood of the references: {nats(whole)} a sample, {nats(token)} a token, "
        f"perplexity {found['perplexity']:.3f} (n {whole['n']}, "
        f"{found['not_scored']['n']} not scored)"
    ]


def nats(figure: Mapping[str, Any]) -> str:
    interval = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{interval}"
