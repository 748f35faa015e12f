"""What the toy BLIPs reach on held-out pictures: the figures in their manifests.

Caption and VQA: the official scores on the toy COCO captions and the toy VQAv2, val split.
Matching, on pictures of the recipe's held-out range: class names by ITC and by ITM, true against
false captions by ITM (AUROC), search by text with and without re-ranking, and whether the Grad-CAM
map of a shape's word points into the shape's box.

Used by `python lavis_apps/make_toy_model.py`. Reads a checkpoint folder, data/toy/vqav2.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.blip import Blip, load_blip
from lavis_apps.processors import blip_caption, blip_question
from lavis_apps.scoring_itm import auroc_estimate
from lavis_apps.toy_texts import caption, changed, holds
from shared.toy_world.clip import PAIRS, PATCH_SIZE, normalise
from shared.toy_world.pictures import SIZE
from shared.toy_world.questions import article, captions
from shared.toy_world.shapes import KNOWN_SHAPES, Item, Scene

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BATCH = 64
CAPTION_DECODING = {"num_beams": 3, "max_length": 40, "min_length": 5}  # LAVIS'
ANSWER_DECODING = {"num_beams": 3, "max_length": 10, "min_length": 1}  # LAVIS'
RERANKED = 16  # pictures that the ITM puts in order, of those that the ITC ranks first


def open_model(folder: Path, kind: str) -> Blip:
    return load_blip(folder, kind=kind, device="cpu", dtype="float32")


def caption_figures(folder: Path, data_root: Path, limit: int = 0) -> dict[str, Any]:
    """CIDEr and BLEU-4 (0..1 and above) on the val captions; `limit` pictures, 0: all."""
    from shared.caption_score import score_captions

    blip = open_model(folder, "caption")
    content = _read(data_root / "captions_val2014.json")
    names = {i["id"]: i["file_name"] for i in content["images"][: limit or None]}
    references: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        if annotation["image_id"] in names:
            references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    written: list[str] = []
    for part in _parts(list(names.values())):
        pixels = blip.pixel_values(_open(data_root / "val2014", part))
        ids = blip.model.generate(pixel_values=pixels, **CAPTION_DECODING)
        written += blip.tokenizer.batch_decode(ids, skip_special_tokens=True)
    candidates = dict(zip(names, written, strict=True))
    scores = score_captions(references, candidates, meteor=False)["corpus"]
    return {
        "decoding": CAPTION_DECODING,
        "pictures": len(names),
        **{name: round(scores[name] or 0.0, 4) for name in ("CIDEr", "Bleu_4")},
    }


def vqa_figures(folder: Path, data_root: Path, limit: int = 0) -> dict[str, Any]:
    """VQA accuracy (0..1) on the val questions, by answer type, and what is reached blind."""
    import torch

    from shared.blind import blind_baseline
    from shared.vqa_score import vqa_accuracy

    blip = open_model(folder, "vqa")
    train, val = (
        _read(data_root / f"v2_mscoco_{split}_annotations.json")["annotations"]
        for split in ("train2014", "val2014")
    )
    questions = _read(data_root / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    questions, val = questions[: limit or None], val[: limit or None]
    answers: list[str] = []
    text = blip.model.config.text_config
    for part in _parts(questions):
        names = [f"COCO_val2014_{q['image_id']:012d}.jpg" for q in part]
        tokens = blip.tokens([blip_question(q["question"]) for q in part], first="[ENC]")
        with torch.no_grad():
            images = blip.encode_images(_open(data_root / "val2014", names))
            ids = blip.model.text_decoder.generate(
                input_ids=torch.full((len(part), 1), blip.first_id("[DEC]")),
                encoder_hidden_states=blip.fused_states(images, tokens).last_hidden_state,
                encoder_attention_mask=tokens["attention_mask"],
                eos_token_id=text.sep_token_id,
                pad_token_id=text.pad_token_id,
                **ANSWER_DECODING,
            )
        answers += blip.tokenizer.batch_decode(ids, skip_special_tokens=True)
    scores: dict[str, list[float]] = {}
    for answer, annotation in zip(answers, val, strict=True):
        score = vqa_accuracy(answer, [a["answer"] for a in annotation["answers"]])
        scores.setdefault("all", []).append(score)
        scores.setdefault(annotation["answer_type"], []).append(score)
    return {
        "protocol": "official-2021",
        "decoding": ANSWER_DECODING,
        "questions": len(questions),
        "accuracy": {kind: round(sum(s) / len(s), 4) for kind, s in scores.items()},
        "blind": round(blind_baseline(train, val), 4),
    }


def matching_figures(
    folder: Path, scenes: Sequence[Scene], pixels: "torch.Tensor", seed: int = 0
) -> dict[str, Any]:
    """Shares (0..1), AUROC in percent, of a matching model on scenes and their pictures."""
    import torch

    blip = open_model(folder, "matching")
    rng = random.Random(f"{seed}/blip_figures")
    with torch.no_grad():
        states = torch.cat([blip.states(normalise(part)) for part in pixels.split(BATCH)])
        own = [caption(scene, rng) for scene in scenes]
        coco = [rng.choice(captions(scene, rng)[:4]) for scene in scenes]
        figures = {
            "classes": class_figures(blip, scenes, states),
            "itm_auroc": itm_figures(blip, scenes, states, own, rng),
            "search": {
                "own_captions": search_figures(blip, scenes, states, own),
                "coco_captions": search_figures(blip, scenes, states, coco),
            },
        }
    return {"pictures": len(scenes), **figures, "pointing": pointing_figures(blip, scenes, states)}


def class_figures(blip: Blip, scenes: Sequence[Scene], states: "Tensor") -> dict[str, Any]:
    """Which of 8 shapes, which of 48 pairs, on the pictures with one shape."""
    import torch

    rows = [n for n, scene in enumerate(scenes) if len(scene.items) == 1]
    items = [scenes[n].items[0] for n in rows]
    image = blip.image_features(states[rows])

    def share(scores: "Tensor", names: Sequence[Any], truth: Sequence[Any]) -> float:
        found = [names[i] for i in scores.argmax(dim=1).tolist()]
        return _mean([f == t for f, t in zip(found, truth, strict=True)])

    labels = [blip_caption(f"A picture of {shape}") for shape in KNOWN_SHAPES]
    pairs = [f"a picture of {article(f'{color} {shape}')}" for shape, color in PAIRS]
    matched = [blip.match_logits(states[rows], [label] * len(rows))[:, 1] for label in labels]
    truth = [item.shape for item in items]
    return {
        "single_shape_pictures": len(rows),
        "shape_itc": share(image @ blip.text_features(labels).T, KNOWN_SHAPES, truth),
        "shape_itm": share(torch.stack(matched, dim=1), KNOWN_SHAPES, truth),
        "pair_itc": share(
            image @ blip.text_features(pairs).T, PAIRS, [(i.shape, i.color) for i in items]
        ),
    }


def itm_figures(
    blip: Blip,
    scenes: Sequence[Scene],
    states: "Tensor",
    texts: Sequence[str],
    rng: random.Random,
) -> dict[str, Any]:
    """AUROC of own captions against captions of other pictures, and with one word changed."""
    count = len(scenes)
    others = [(row, texts[rng.randrange(count)]) for row in range(count)]
    false = {
        "other_picture": [(row, text) for row, text in others if not holds(text, scenes[row])],
        "one_word_changed": [
            (row, text) for row in range(count) if (text := changed(texts[row], scenes[row], rng))
        ],
    }
    own = _probabilities(blip, states, list(enumerate(texts)))
    figures = {}
    for name, pairs in false.items():
        scores = own + _probabilities(blip, states, pairs)
        pictures = [*range(count), *(row for row, _ in pairs)]
        figures[name] = auroc_estimate(scores, [n < count for n in range(len(scores))], pictures)
    return figures


def search_figures(
    blip: Blip, scenes: Sequence[Scene], states: "Tensor", texts: Sequence[str]
) -> dict[str, Any]:
    """Text-to-picture recall at 1 among all pictures, by ITC and with the first ones re-ranked.

    `true_of_first` counts any picture of which the caption is true, `recall_at_1` the one that it
    was written for; `pictures_true_of` is how many that is on average.
    """
    import torch

    similarity = blip.text_features(texts) @ blip.image_features(states).T  # (texts, pictures)
    first = similarity.topk(min(RERANKED, len(scenes)), dim=1).indices
    pairs = [(int(n), text) for row, text in zip(first, texts, strict=True) for n in row]
    itm = torch.tensor(_probabilities(blip, states, pairs)).view(first.shape)
    best = (itm + similarity.gather(1, first)).argmax(dim=1, keepdim=True)
    found = {"itc": first[:, 0].tolist(), "re_ranked": first.gather(1, best)[:, 0].tolist()}
    true = [[holds(text, scene) for scene in scenes] for text in texts]
    return {
        "pictures_true_of": round(sum(map(sum, true)) / len(texts), 2),
        "recall_at_1": {k: _mean([n == i for i, n in enumerate(v)]) for k, v in found.items()},
        "true_of_first": {
            k: _mean([true[i][n] for i, n in enumerate(v)]) for k, v in found.items()
        },
    }


def pointing_figures(blip: Blip, scenes: Sequence[Scene], states: "Tensor") -> dict[str, Any]:
    """By text layer: how often the highest place of a shape word's map lies in the shape's box.

    Asked of each shape that is in a picture once beside others, as "a red star"; `share_of_area`
    is what pointing anywhere would hit.
    """
    hits: list[list[bool]] = []
    areas: list[float] = []
    for row, scene in enumerate(scenes):
        shapes = [item.shape for item in scene.items]
        for item in scene.items if len(shapes) > 1 else ():
            if shapes.count(item.shape) == 1:
                hits.append(_points_at(blip, states[row : row + 1], item))
                areas.append((2 * item.radius / SIZE) ** 2)
    return {
        "words": len(hits),
        "by_layer": [_mean(layer) for layer in zip(*hits, strict=True)],
        "share_of_area": _mean(areas),
    }


def _points_at(blip: Blip, states: "Tensor", item: Item) -> list[bool]:
    """Per layer, whether attention times its clamped gradient is highest within the item's box."""
    import torch

    tokens = blip.tokens([article(f"{item.color} {item.shape}")], first="[ENC]")
    fused = blip.fused_states(states, tokens, output_attentions=True)
    logit = blip.model.itm_head(fused.last_hidden_state[:, 0])[0, 1]
    gradients = torch.autograd.grad(logit, fused.cross_attentions)
    pieces = len(blip.tokenizer.tokenize(item.shape))
    centers = torch.arange(SIZE // PATCH_SIZE) * PATCH_SIZE + PATCH_SIZE / 2
    inside = ((centers[:, None] - item.y).abs() <= item.radius) & (
        (centers - item.x).abs() <= item.radius
    )
    found = []
    for attention, gradient in zip(fused.cross_attentions, gradients, strict=True):
        maps = (attention * gradient.clamp(min=0))[0, :, :, 1:].mean(dim=0)  # (T, patches)
        word = maps[-1 - pieces : -1].mean(dim=0)  # its pieces stand before [SEP]
        found.append(bool(inside.flatten()[word.argmax()]))
    return found


def _probabilities(blip: Blip, states: "Tensor", pairs: Sequence[tuple[int, str]]) -> list[float]:
    """ITM probability of each (row of states, text)."""
    found: list[float] = []
    for part in _parts(pairs):
        rows, texts = zip(*part, strict=True)
        found += blip.match_probability(states[list(rows)], texts).tolist()
    return found


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _open(folder: Path, names: Sequence[str]) -> list[Any]:
    from PIL import Image

    return [Image.open(folder / name).convert("RGB") for name in names]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))
