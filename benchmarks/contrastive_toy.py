"""Does the contrastive loss beside the language loss help on the toy? Measured and told as it is.

    python qwen_clip_llava_lora/merge_model.py --toy            # once: the toy LLaVA
    python benchmarks/contrastive_toy.py [--seeds 0 1 2] [--weight 0.5] [--steps 150]

For each seed the projector is aligned (`train.py --toy --preset align`) without the contrastive
loss and with it, everything else equal. Then, over the toy's held-out pictures: the loss of each
caption, and recall@1 among all of them with different words, picture -> text and text -> picture,
by the cosine of the features that the contrastive loss compares. One JSON line: figures per seed,
and the paired difference with minus without over all seeds, its interval by pictures, machine and
date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.settings import TOY_MERGED, TOY_SETS
from shared.options import REPO_ROOT, guarded
from shared.significance import compare_paired, score_interval

HELD_OUT = TOY_SETS / "cc3m_595k" / "held_out.json"
MEASURES = ("recall_picture_to_text", "recall_text_to_picture", "caption_loss")
BATCH = 20  # held-out rows in one forward pass


@dataclass(frozen=True)
class Figures:
    """Of each held-out row: the mean loss of a caption's tokens; of rows with different words: 1
    where the own partner is the nearest. `*_ids` name the rows."""

    caption_loss: list[float]
    recall_picture_to_text: list[float]
    recall_text_to_picture: list[float]
    ids: list[str]
    different_ids: list[str]

    def of(self, measure: str) -> tuple[list[float], list[str]]:
        ids = self.ids if measure == "caption_loss" else self.different_ids
        return getattr(self, measure), ids


def train(folder: Path, seed: int, weight: float, steps: int, batch_size: int) -> Path:
    """One training; its adapter folder."""
    command = [
        sys.executable, str(REPO_ROOT / "qwen_clip_llava_lora" / "train.py"), "--toy",
        "--preset", "align", "--seed", str(seed), "--contrastive_weight", str(weight),
        "--max_steps", str(steps), "--per_device_train_batch_size", str(batch_size),
        "--eval_steps", str(steps), "--save_steps", str(steps), "--validation_answers", "0",
        "--disable_tqdm", "true", "--output_dir", str(folder),
    ]  # fmt: skip
    subprocess.run(command, cwd=REPO_ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "adapter"


def measure(adapter: Path) -> Figures:
    """The held-out figures of an adapter on the toy LLaVA."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    from qwen_clip_llava_lora.contrastive import answer_words, picture_features, text_features
    from qwen_clip_llava_lora.data_formats import open_data
    from qwen_clip_llava_lora.training_data import VlmCollator
    from shared.options import IGNORE_INDEX
    from shared.vision_language import load_vision_language

    family = load_vision_language(str(TOY_MERGED), adapter=str(adapter), device="cpu").family
    data = open_data(HELD_OUT)
    collate = VlmCollator(family, data.image_root, max_length=2048)
    special = {*family.tokenizer.all_special_ids, *family.end_ids}
    losses: list[float] = []
    ids: list[str] = []
    words: list[tuple[int, ...]] = []
    pictures, texts = [], []
    with torch.no_grad():
        for start in range(0, len(data.rows), BATCH):
            rows = [data.rows[i] for i in range(start, min(start + BATCH, len(data.rows)))]
            batch = collate(rows)
            tensors: dict[str, Any] = {k: v for k, v in batch.items() if torch.is_tensor(v)}
            labels = tensors.pop("labels")
            logits = family.model(**tensors, use_cache=False).logits[:, :-1]
            each = cross_entropy(
                logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
            )  # (B, T - 1), 0 where nothing is learned
            losses += (each.sum(1) / (labels[:, 1:] != IGNORE_INDEX).sum(1)).tolist()
            ids += batch["sample_ids"]
            input_ids = tensors["input_ids"]
            is_word = answer_words(input_ids, labels, special)
            words += [tuple(sorted(i[w].tolist())) for i, w in zip(input_ids, is_word, strict=True)]
            vectors = family.model.get_image_features(tensors["pixel_values"]).pooler_output
            counts = (input_ids == family.image_token_id).sum(1).tolist()
            pictures.append(picture_features(torch.cat(tuple(vectors)), counts))
            embedded = family.model.get_input_embeddings()(input_ids.masked_fill(~is_word, 0))
            texts.append(text_features(embedded, is_word))
    first = {bag: i for i, bag in reversed(list(enumerate(words)))}
    chosen = sorted(first.values())
    scores = (
        normalize(torch.cat(pictures)[chosen], dim=-1)
        @ normalize(torch.cat(texts)[chosen], dim=-1).T
    )  # row picture, column text
    own = torch.arange(len(chosen))
    return Figures(
        caption_loss=losses,
        recall_picture_to_text=(scores.argmax(1) == own).float().tolist(),
        recall_text_to_picture=(scores.argmax(0) == own).float().tolist(),
        ids=ids,
        different_ids=[ids[i] for i in chosen],
    )


def summary(figures: Figures) -> dict[str, Any]:
    """Mean and interval of each measure."""
    told = {}
    for name in MEASURES:
        values, clusters = figures.of(name)
        interval = score_interval(values, clusters)
        told[name] = {key: getattr(interval, key) for key in ("mean", "low", "high", "n")}
    return told


def differences(without: list[Figures], with_it: list[Figures]) -> dict[str, Any]:
    """With minus without, all seeds together; a picture's rows of the seeds are one cluster."""
    told = {}
    for name in MEASURES:
        base = [value for figures in without for value in figures.of(name)[0]]
        tuned = [value for figures in with_it for value in figures.of(name)[0]]
        clusters = [i for figures in without for i in figures.of(name)[1]]
        change = asdict(compare_paired(base, tuned, clusters))
        told[name] = {key: change[key] for key in ("difference", "low", "high", "p_value", "n")}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weight", type=float, default=0.5, help="of the contrastive loss")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--output", type=Path, help="also write the line to this file")
    arguments = parser.parse_args()
    runs: dict[float, list[Figures]] = {0.0: [], arguments.weight: []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for weight, found in runs.items():
                run = Path(folder) / f"{weight}_{seed}"
                adapter = train(run, seed, weight, arguments.steps, arguments.batch_size)
                found.append(measure(adapter))
                print(f"seed {seed}, weight {weight}: done", file=sys.stderr)
    without, with_it = runs[0.0], runs[arguments.weight]
    result = {
        "command": f"python benchmarks/contrastive_toy.py --weight {arguments.weight} --steps "
        f"{arguments.steps} --batch_size {arguments.batch_size}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "synthetic": True,
        "held_out_pictures": len(without[0].ids),
        "pictures_with_different_words": len(without[0].different_ids),
        "chance_recall": 1 / len(without[0].different_ids),
        "seeds": [
            {"seed": seed, "without": summary(a), "with": summary(b)}
            for seed, a, b in zip(arguments.seeds, without, with_it, strict=True)
        ],
        "with_minus_without": differences(without, with_it),
    }
    print(json.dumps(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    guarded(main)
