"""What the two toy stages reached: figures of a model folder on the toy's held-out rows.

After stage 1 the loss of captions with their own pictures, against the same with other pictures
(paired). After stage 2 the answers to single questions, against other pictures and against the
blind answers, the commonest of training per question type. Used by `make_toy_model.py` and by the
test of the toy pipeline; reads `data/toy/llava`. Plain greedy decoding, exact match.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_repro.templates import TEMPLATES
from shared.conversations import encode, open_conversations, prompt_ids, row_images, row_turns
from shared.options import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from llava_repro.model import Llava

CAPTION_ROWS = 200
BATCH = 32
NEW_TOKENS = 16
SHIFT = 7  # a row's other picture is that of the row this much further on


def caption_figures(folder: Path, data: Path, rows: int = CAPTION_ROWS) -> dict[str, float]:
    """Mean caption loss a token on held-out pictures, own and others', and the paired p."""
    import torch
    from scipy.stats import ttest_rel

    from llava_repro.model import n_image_tokens

    model, tokenizer, processor = _load(folder)
    captions = list(open_conversations(data / "held_out_captions.jsonl"))[:rows]
    pictures = _pixels(processor, [path for row in captions for path in row_images(row, data)])
    losses: list[tuple[float, float]] = []
    for i, row in enumerate(captions):
        encoded = encode(row, tokenizer, TEMPLATES["plain"], n_image_tokens(model.config))
        inputs = {name: torch.tensor([ids]) for name, ids in encoded.items()}
        with torch.no_grad():
            pair = [
                model(**inputs, pixel_values=pictures[n : n + 1]).loss.item()
                for n in (i, (i + SHIFT) % len(captions))
            ]
        losses.append((pair[0], pair[1]))
    own, other = zip(*losses, strict=True)
    return {
        "caption_loss": round(sum(own) / len(own), 4),
        "caption_loss_shuffled": round(sum(other) / len(other), 4),
        "p": float(ttest_rel(own, other).pvalue),
        "captions": len(own),
    }


def answer_figures(folder: Path, data: Path, limit: int = 0) -> dict[str, Any]:
    """Shares (0..1) of right answers per group, of the model, with other pictures, and blind."""
    model, tokenizer, processor = _load(folder)
    rows = list(open_conversations(data / "held_out.jsonl"))[: limit or None]
    blind = read_json(data / "manifest.json")["blind_answers"]
    shown = [row_images(row, data) for row in rows]
    answers = answer_rows(model, tokenizer, processor, rows, shown)
    shuffled = answer_rows(model, tokenizer, processor, rows, other_pictures(shown))
    guessed = [blind[f"{row['language']}/{row['question_type']}"] for row in rows]
    chinese = [a for a, row in zip(answers, rows, strict=True) if row["language"] == "zh"]
    return {
        "questions": len(rows),
        "model": shares(rows, answers),
        "shuffled": shares(rows, shuffled),
        "blind": shares(rows, guessed),
        "yes_no_above_blind": difference(rows, answers, guessed, "yes/no"),
        "chinese_answered_in_chinese": round(
            sum(any("\u4e00" <= c <= "\u9fff" for c in a) for a in chinese) / max(1, len(chinese)),
            4,
        ),
    }


def answer_rows(
    model: Llava,
    tokenizer: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[Sequence[Path]],
) -> list[str]:
    """Greedy answers to each row's first question, about the pictures in `shown`."""
    import torch

    from llava_repro.answering import left_pad
    from llava_repro.model import n_image_tokens

    answers: list[str] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        prompts = [
            prompt_ids(row_turns(row)[:1], tokenizer, None, n_image_tokens(model.config))
            for row in batch
        ]
        input_ids, mask = left_pad(prompts, tokenizer.pad_token_id)
        paths = [path for found in shown[start : start + BATCH] for path in found]
        with torch.no_grad():
            output = model.generate(
                input_ids,
                pixel_values=_pixels(processor, paths) if paths else None,
                attention_mask=mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[:, input_ids.shape[1] :]
        answers += [a.strip() for a in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def other_pictures(shown: Sequence[Sequence[Path]]) -> list[Sequence[Path]]:
    """Each row gets another row's pictures, as many as it had."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, paths in enumerate(shown):
        places[len(paths)].append(place)
    result: list[Sequence[Path]] = list(shown)
    for alike in places.values():
        for n, place in enumerate(alike):
            result[place] = shown[alike[(n + SHIFT) % len(alike)]]
    return result


def shares(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> dict[str, float]:
    """Share of right answers: all, per answer type, language, and of two pictures."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        groups = ["all", row["answer_type"], row["language"]]
        groups += ["two pictures"] if isinstance(row["image"], list) else []
        for group in groups:
            hits[group].append(answer == row["answer"])
    return {group: round(sum(found) / len(found), 4) for group, found in hits.items()}


def difference(
    rows: Sequence[Mapping[str, Any]], ours: Sequence[str], theirs: Sequence[str], answer_type: str
) -> dict[str, float]:
    """Mean paired difference in share right with its 95 % interval (bootstrap over pictures)."""
    from shared.significance import cluster_bootstrap

    values, clusters = [], []
    for row, a, b in zip(rows, ours, theirs, strict=True):
        if row["answer_type"] == answer_type:
            values.append(float(a == row["answer"]) - float(b == row["answer"]))
            clusters.append(str(row["image"]))
    interval = cluster_bootstrap(values, clusters)
    mean = sum(values) / len(values)
    bounds = {"low": interval.low, "high": interval.high}
    return {"mean": round(mean, 4), **{k: round(v, 4) for k, v in bounds.items() if v is not None}}


def _load(folder: Path) -> tuple[Llava, Any, Any]:
    from llava_repro.answering import load_llava

    model, tokenizer, processor, _ = load_llava(str(folder), device="cpu", dtype="float32")
    return model, tokenizer, processor


def _pixels(processor: Any, paths: Sequence[Path]) -> Tensor:
    from PIL import Image

    images = [Image.open(path).convert("RGB") for path in paths]
    return processor(images=images, return_tensors="pt")["pixel_values"]
